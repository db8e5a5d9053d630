//! `features.parquet`: what is known of each latent. docs/features.md is the specification; a field here is a column there.
//!
//! Lists that belong together (`nearest` and `nearest_cos`) have one length. Not for: computing any of it.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config::FeaturesConfig;
use super::parquet;
use crate::artefact;
use crate::error::{Error, Result};

/// File of the table.
pub const FEATURES_FILE: &str = "features.parquet";
/// File that says what the table is of.
pub const INFO_FILE: &str = "features.json";
/// The value of `kind` in it.
pub const KIND: &str = "lapidary-features";
/// Version of the folder's layout. Readers refuse a greater one.
pub const VERSION: u32 = 1;

/// One latent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Feature {
    /// Its index.
    pub latent: u32,
    /// Rows on which it is active.
    pub fires: u64,
    /// Share of the rows on which it is active.
    pub density: f64,
    /// Largest value; `None` for a dead latent, as all that is of active values.
    pub max: Option<f32>,
    /// Mean value over the rows on which it is active.
    pub mean_active: Option<f64>,
    /// Values that the shares [`FeaturesInfo::quantiles`] of the active rows do not exceed, to 0.8 % of the value; empty for a dead latent.
    pub quantiles: Vec<f32>,
    /// Active rows by value: bin i counts `[i w, (i + 1) w)` with w = `histogram_width`; 32 to 64 bins.
    pub histogram: Vec<u32>,
    /// Width of those bins, a power of two.
    pub histogram_width: Option<f32>,
    /// Was it never active?
    pub dead: bool,
    /// Is it active on more than [`crate::score::DENSE_ABOVE`] of the rows?
    pub dense: bool,
    /// Cosine of its encoder row with its atom; `None` where the widths differ.
    pub enc_dec_cos: Option<f32>,
    /// Tokens that its atom raises most through the final norm and the unembedding; empty without a host, or off the residual stream.
    pub top_tokens: Vec<String>,
    /// Their ids.
    pub top_token_ids: Vec<u32>,
    /// Their logit weights.
    pub top_logits: Vec<f32>,
    /// Tokens that it lowers most, lowest first.
    pub bottom_tokens: Vec<String>,
    /// Their ids.
    pub bottom_token_ids: Vec<u32>,
    /// Their logit weights.
    pub bottom_logits: Vec<f32>,
    /// All logit weights of its atom in equal bins from `logit_min` to `logit_max`; empty as `top_tokens`.
    pub logit_histogram: Vec<u32>,
    /// Smallest logit weight.
    pub logit_min: Option<f32>,
    /// Largest logit weight.
    pub logit_max: Option<f32>,
    /// Latents with the closest atoms, closest first; those at an angle above 90 degrees are left out.
    pub nearest: Vec<u32>,
    /// Cosines of the atoms.
    pub nearest_cos: Vec<f32>,
    /// Latents that are active on the same rows, by Jaccard index.
    pub coactive: Vec<u32>,
    /// Rows on which both are active over rows on which either is.
    pub coactive_jaccard: Vec<f32>,
    /// log2 p(both) / (p(one) p(other)), bits.
    pub coactive_pmi: Vec<f32>,
    /// The known concept that it finds best (the built-in language).
    pub concept: Option<String>,
    /// Class of the concept.
    pub concept_class: Option<String>,
    /// F1 on rows that chose neither concept nor threshold.
    pub concept_f1: Option<f64>,
    /// Precision there.
    pub concept_precision: Option<f64>,
    /// Recall there.
    pub concept_recall: Option<f64>,
    /// What to call it.
    pub label: Option<String>,
    /// Where that comes from: `concept`, `tokens` or `file`.
    pub label_source: Option<String>,
    /// Place on the map of atoms, 0 to 1.
    pub atlas_x: f32,
    /// Place on the map of atoms, 0 to 1.
    pub atlas_y: f32,
}

/// Of which dictionary.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// Its folder's name.
    pub name: String,
    /// Hook point that it reads.
    pub hook: String,
    /// What made it.
    pub made_by: String,
    /// Width of what it reads.
    pub d_in: usize,
    /// Number of latents.
    pub d_sae: usize,
    /// The rule that turns pre-activations into codes.
    pub activation: String,
}

/// `features.json`: what the table is of, and how it was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FeaturesInfo {
    /// [`KIND`].
    pub kind: String,
    /// [`VERSION`].
    pub version: u32,
    /// Version of Lapidary that wrote it.
    pub lapidary: String,
    /// The dictionary.
    pub dictionary: Source,
    /// The host, as the shards' manifest has it.
    pub host: Value,
    /// The corpus, as the shards' manifest has it.
    pub corpus: Value,
    /// Which rows: `train`, `held-out` or `all`.
    pub split: String,
    /// Rows encoded.
    pub rows: u64,
    /// Mean active latents per row.
    pub l0: f64,
    /// Rows behind the co-active latents: all, or a seeded sample where these would not fit.
    pub coactive_rows: u64,
    /// Held-out rows that chose and judged concepts; 0 where none is known.
    pub concept_rows: u64,
    /// Shares behind [`Feature::quantiles`].
    pub quantiles: Vec<f64>,
    /// As asked for.
    pub config: FeaturesConfig,
}

/// The table with what it is of.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureTable {
    /// Where it comes from.
    pub info: FeaturesInfo,
    /// One per latent, in order.
    pub features: Vec<Feature>,
}

impl FeatureTable {
    /// Reads `features.json` and `features.parquet`.
    ///
    /// # Errors
    /// Files that are missing, damaged, or of a later version.
    pub fn load(dir: &Path) -> Result<Self> {
        const HELP: &str = "run `lapidary features` again";
        let path = dir.join(INFO_FILE);
        let bytes = std::fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
        let wrong = |problem: String| Error::format("feature table", &path, problem, HELP);
        let told: Value = serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))?;
        if told["kind"] != KIND {
            return Err(wrong(format!("its kind is {}, not `{KIND}`", told["kind"])));
        }
        if told["version"].as_u64().is_none_or(|v| v > u64::from(VERSION)) {
            return Err(wrong(format!("its version is {}, and this reads up to {VERSION}", told["version"])));
        }
        let info: FeaturesInfo = serde_json::from_value(told).map_err(|e| wrong(e.to_string()))?;
        let features: Vec<Feature> = parquet::read(&dir.join(FEATURES_FILE))?;
        let in_order = features.iter().zip(0u32..).all(|(f, i)| f.latent == i);
        if features.len() != info.dictionary.d_sae || !in_order {
            let problem = format!("{} rows for {} latents, or not in their order", features.len(), info.dictionary.d_sae);
            return Err(Error::format("feature table", dir.join(FEATURES_FILE), problem, HELP));
        }
        Ok(Self { info, features })
    }

    /// Writes both files into `dir`, which is made if it is not there.
    ///
    /// # Errors
    /// I/O errors.
    pub fn save(&self, dir: &Path) -> Result<()> {
        parquet::write(dir, FEATURES_FILE, &self.features)?;
        let mut json = serde_json::to_vec_pretty(&self.info).expect("plain data with string keys");
        json.push(b'\n');
        artefact::write(dir, INFO_FILE, &json)
    }

    /// What latent `i` is called, if it has a name.
    pub fn label(&self, i: usize) -> Option<&str> {
        self.features.get(i)?.label.as_deref()
    }
}
