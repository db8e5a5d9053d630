//! Feature tables for other tools' pages: Neuronpedia's upload, SAEDashboard's batches. Written, never read; docs/formats.md says what is
//! filled in and what is not.

mod neuronpedia;
mod saedashboard;

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::dictionary::Dictionary;
use crate::error::{Error, Result};
use crate::features::{Example, Examples, Feature, FeatureTable};
use crate::hook::HookPoint;

/// Features of one file.
const BATCH: usize = 128;

/// Whose pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeatureFormat {
    /// Bodies of `POST /api/feature/upload-batch`.
    Neuronpedia,
    /// `batch-N.json`, as SAEDashboard writes and Neuronpedia's bulk import takes.
    SaeDashboard,
}

impl FeatureFormat {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Neuronpedia, Self::SaeDashboard];

    /// Name on the command line.
    pub fn id(self) -> &'static str {
        match self {
            Self::Neuronpedia => "neuronpedia",
            Self::SaeDashboard => "saedashboard",
        }
    }

    /// The one of that name.
    pub fn by_id(id: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|f| f.id() == id)
    }
}

/// What the pages call things.
#[derive(Debug, Clone, Default)]
pub struct PageNames {
    /// The host, as Neuronpedia knows it: `gpt2-small`.
    pub model_id: String,
    /// The set of dictionaries: `res-topk-24k`.
    pub set: String,
    /// Told apart within the set.
    pub suffix: Option<String>,
}

/// What was written.
#[derive(Debug, Clone, Serialize)]
pub struct PagesReport {
    /// The folder.
    pub path: PathBuf,
    /// Files of features.
    pub files: usize,
    /// Features in them.
    pub features: usize,
    /// Latents left out, for they are dead.
    pub dead: usize,
    /// What is to be known of it.
    pub notes: Vec<String>,
}

/// Writes the pages of all latents that are alive into `out`, which exists.
///
/// # Errors
/// A table of another dictionary, no hook point in a block, vectors without tokens, names that are missing; I/O errors.
pub fn write_pages(
    d: &Dictionary,
    table: &FeatureTable,
    examples: &Examples,
    format: FeatureFormat,
    names: &PageNames,
    out: &Path,
) -> Result<PagesReport> {
    if table.features.len() != d.d_sae() || table.info.dictionary.d_in != d.d_in() {
        let of = &table.info.dictionary;
        return Err(Error::request(
            format!(
                "the feature table is of {} latents over {} dimensions, the dictionary has {} over {}",
                of.d_sae,
                of.d_in,
                d.d_sae(),
                d.d_in()
            ),
            "make the table of this dictionary: lapidary features --dictionary DIR --shards DIR",
        ));
    }
    if examples.0.iter().any(|e| e.token_ids.is_empty()) {
        return Err(Error::request("these examples have no tokens: the shards hold vectors", "harvest from a host and a corpus"));
    }
    if names.model_id.is_empty() || names.set.is_empty() {
        return Err(Error::request("pages belong to a model and a set of dictionaries", "name them: --model-id gpt2-small --set res-topk"));
    }
    let point: HookPoint = table.info.dictionary.hook.parse().map_err(|_| {
        let problem = format!("`{}` is no hook point of a model, so the pages have no layer", table.info.dictionary.hook);
        Error::request(problem, "name it: --hook blocks.5.hook_resid_post")
    })?;
    let page = Pages { d, table, examples, names, layer: point.layer, out };
    match format {
        FeatureFormat::Neuronpedia => neuronpedia::write(&page),
        FeatureFormat::SaeDashboard => saedashboard::write(&page),
    }
}

/// All that a writer looks at.
struct Pages<'a> {
    d: &'a Dictionary,
    table: &'a FeatureTable,
    examples: &'a Examples,
    names: &'a PageNames,
    layer: usize,
    out: &'a Path,
}

/// The values that a group of examples stands for.
struct Band {
    low: f32,
    high: f32,
    /// Share of all rows.
    share: f64,
}

impl Pages<'_> {
    /// Latents that are alive, a file of them at a time.
    fn batches(&self) -> Vec<Vec<&Feature>> {
        let alive: Vec<&Feature> = self.table.features.iter().filter(|f| !f.dead).collect();
        alive.chunks(BATCH).map(<[&Feature]>::to_vec).collect()
    }

    fn dead(&self) -> Vec<u32> {
        self.table.features.iter().filter(|f| f.dead).map(|f| f.latent).collect()
    }

    /// Examples of a latent with what each stands for; `None`: the largest values. Random stretches are left out: no page has a place for
    /// them.
    fn examples(&self, feature: &Feature) -> Vec<(&Example, Option<Band>)> {
        let all = self.examples.of(feature.latent);
        let bands = self.table.info.config.bands.max(1) as f64;
        let band = |quantile: u32| {
            let values = all.iter().filter(|e| e.quantile == Some(quantile)).map(|e| e.value);
            let (low, high) = values.fold((f32::INFINITY, 0f32), |(low, high), v| (low.min(v), high.max(v)));
            Band { low, high, share: feature.density / bands }
        };
        all.iter().filter(|e| e.group != "random").map(|e| (e, e.quantile.map(band))).collect()
    }

    fn report(&self, files: usize, features: usize, notes: Vec<String>) -> PagesReport {
        PagesReport { path: self.out.to_path_buf(), files, features, dead: self.dead().len(), notes }
    }
}

/// Three decimals, as the pages have them.
fn short(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// No page takes an empty token.
fn shown(tokens: &[String]) -> Vec<&str> {
    tokens.iter().map(|t| if t.is_empty() { " " } else { t.as_str() }).collect()
}

#[cfg(test)]
mod tests;
