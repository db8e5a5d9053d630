//! From a dictionary, its shards and perhaps the host to the tables.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;
use serde_json::Value;

use super::atlas::atlas;
use super::coactive::{partners, Partner};
use super::concepts;
use super::config::FeaturesConfig;
use super::examples::{Example, Examples, Group};
use super::label;
use super::logits::{logits, Logits};
use super::nearest::{nearest, unit_atoms};
use super::scan::{Scan, Seen, Stretch};
use super::table::{Feature, FeatureTable, FeaturesInfo, Source, KIND, VERSION};
use super::tally::Tally;
use super::window::Window;
use crate::corpus::Tokenizer;
use crate::dictionary::Dictionary;
use crate::error::{Error, Result};
use crate::hook::HookPoint;
use crate::host::HostModel;
use crate::progress::Progress;
use crate::rng::hash64;
use crate::score::concepts::ConceptScore;
use crate::score::{encoder_cosines, DENSE_ABOVE};
use crate::shard::{Shards, Split};

/// Shares of the active rows whose values are in the table.
pub const QUANTILES: [f64; 5] = [0.05, 0.25, 0.5, 0.75, 0.95];
/// Characters of a token in the tables; its id says the rest.
const CHARACTERS: usize = 200;
/// Neighbours that hold the map together.
const SPRINGS: usize = 15;

/// What a feature table is made from.
pub struct Inputs<'a> {
    /// The dictionary.
    pub dictionary: &'a Dictionary,
    /// Its folder's name, for people.
    pub name: String,
    /// Activations.
    pub shards: &'a Shards,
    /// Column of the shards that the dictionary reads.
    pub column: &'a str,
    /// Which rows; `None` = all.
    pub split: Option<Split>,
    /// The host, for output tokens.
    pub host: Option<&'a dyn HostModel>,
    /// The host's tokenizer, for tokens as text.
    pub tokenizer: Option<&'a Tokenizer>,
    /// Labels that people or models gave; they win.
    pub labels: HashMap<u32, String>,
}

impl<'a> Inputs<'a> {
    /// All rows of a column, without a host, tokenizer or labels; set those fields where there are some.
    pub fn new(dictionary: &'a Dictionary, shards: &'a Shards, column: &'a str) -> Self {
        Self { dictionary, name: String::new(), shards, column, split: None, host: None, tokenizer: None, labels: HashMap::new() }
    }
}

/// What came out.
#[derive(Debug, Clone, Serialize)]
pub struct FeaturesReport {
    /// The folder.
    pub out: PathBuf,
    /// Rows encoded.
    pub rows: u64,
    /// Mean active latents per row.
    pub l0: f64,
    /// Number of latents.
    pub latents: usize,
    /// Latents that were never active.
    pub dead: usize,
    /// Latents active on more than a tenth of the rows.
    pub dense: usize,
    /// Latents with a label.
    pub labelled: usize,
    /// Number of examples.
    pub examples: usize,
    /// Wall clock.
    pub seconds: f64,
}

impl fmt::Display for FeaturesReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} latents over {} rows (mean L0 {:.2}): {} dead, {} dense, {} with a label; {} examples; {:.1} s",
            self.latents, self.rows, self.l0, self.dead, self.dense, self.labelled, self.examples, self.seconds
        )?;
        let out = self.out.display();
        write!(f, "{out}/features.parquet, {out}/examples.parquet\nlook at them: lapidary dashboard --features {out} --out features.html")
    }
}

/// Makes the tables and writes them into `out`.
///
/// # Errors
/// As [`features`]; I/O errors.
pub fn write_features(inputs: &Inputs<'_>, config: &FeaturesConfig, out: &Path, progress: &dyn Progress) -> Result<FeaturesReport> {
    let started = Instant::now();
    let (table, examples) = features(inputs, config, progress)?;
    // The table last: where it lies, all lies.
    examples.save(out)?;
    table.save(out)?;
    let count = |f: &dyn Fn(&Feature) -> bool| table.features.iter().filter(|x| f(x)).count();
    Ok(FeaturesReport {
        out: out.to_path_buf(),
        rows: table.info.rows,
        l0: table.info.l0,
        latents: table.features.len(),
        dead: count(&|f| f.dead),
        dense: count(&|f| f.dense),
        labelled: count(&|f| f.label.is_some()),
        examples: examples.0.len(),
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// Makes the tables: one pass over the rows, then the weights. Memory grows with the dictionary (about 20 kB a latent) and with
/// `coactive_entries`, not with the rows. The same tables for any number of threads.
///
/// # Errors
/// Settings that cannot be met, no rows, a host or tokenizer of another width or vocabulary, NaN.
pub fn features(inputs: &Inputs<'_>, config: &FeaturesConfig, progress: &dyn Progress) -> Result<(FeatureTable, Examples)> {
    config.check()?;
    let dictionary = inputs.dictionary;
    let manifest = inputs.shards.manifest();
    let available = inputs.shards.rows(inputs.split);
    if available == 0 {
        return Err(Error::request(
            format!("{} holds no such rows", inputs.shards.dir().display()),
            "choose another --split; `all` reads every row",
        ));
    }
    let at = inputs.host.map(|host| host.hook_point(inputs.column)).transpose()?;
    let seed = concepts::fable_seed(&manifest.corpus);
    let held_out = if inputs.split == Some(Split::Train) { 0 } else { inputs.shards.rows(Some(Split::HeldOut)) };
    let mut scan = Scan::new(dictionary, config, if seed.is_some() { held_out } else { 0 });
    progress.begin("encode", Some(available.min(config.n_tokens.unwrap_or(u64::MAX))), "rows");
    // Held-out rows first, so that a limit on rows leaves those by which concepts are judged; a document is never in both.
    for split in [Split::HeldOut, Split::Train].into_iter().filter(|s| inputs.split.is_none_or(|only| only == *s)) {
        scan.split(inputs.shards, inputs.column, split, progress)?;
    }
    progress.end();
    let seen = scan.finish();

    progress.begin("neighbours", None, "tables");
    let unit = unit_atoms(&dictionary.coder.w_dec)?;
    let close = nearest(&unit, config.neighbours.max(SPRINGS))?;
    let places = atlas(&unit, &close, config.seed)?;
    progress.advance(1);
    let partners = partners(&seen.thinned.codes, config.neighbours);
    progress.advance(1);
    let weights = output_weights(inputs, at.as_ref(), config.logits)?;
    progress.advance(1);
    let known = match seed {
        Some(seed) if !seen.labelled.doc_id.is_empty() => concepts::best(&seen.labelled, seed)?,
        _ => Vec::new(),
    };
    progress.end();

    let text = Texts::new(inputs.tokenizer);
    let angles = encoder_cosines(dictionary)?;
    let mut all_examples = Vec::new();
    let mut features = Vec::with_capacity(dictionary.d_sae());
    for (j, tally) in seen.tallies.iter().enumerate() {
        let mut feature = described(j, tally, seen.rows);
        feature.enc_dec_cos = Some(angles[j] as f32).filter(|c| !c.is_nan());
        (feature.nearest, feature.nearest_cos) = close[j].iter().copied().take(config.neighbours).unzip();
        with_partners(&mut feature, &partners[j]);
        if let Some(weights) = &weights {
            with_weights(&mut feature, &weights[j], &text);
        }
        if let Some(Some(concept)) = known.get(j) {
            with_concept(&mut feature, concept);
        }
        (feature.atlas_x, feature.atlas_y) = places[j];
        let examples = examples_of(j as u32, tally, &seen, config, &text);
        label::name(&mut feature, &examples);
        if let Some(given) = inputs.labels.get(&(j as u32)) {
            (feature.label, feature.label_source) = (Some(given.clone()), Some("file".into()));
        }
        features.push(feature);
        all_examples.extend(examples);
    }
    let info = FeaturesInfo {
        kind: KIND.into(),
        version: VERSION,
        lapidary: env!("CARGO_PKG_VERSION").into(),
        dictionary: source(inputs),
        host: manifest.host.clone(),
        corpus: manifest.corpus.clone(),
        split: inputs.split.map_or("all", Split::name).into(),
        rows: seen.rows,
        l0: seen.entries as f64 / seen.rows as f64,
        coactive_rows: seen.thinned.codes.n_rows() as u64,
        concept_rows: seen.labelled.doc_id.len() as u64,
        quantiles: QUANTILES.to_vec(),
        config: config.clone(),
    };
    Ok((FeatureTable { info, features }, Examples(all_examples)))
}

fn source(inputs: &Inputs<'_>) -> Source {
    let d = inputs.dictionary;
    let activation = match serde_json::to_value(&d.activation) {
        Ok(Value::String(name)) => name,
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    };
    Source {
        name: inputs.name.clone(),
        hook: if d.provenance.hook.is_empty() { inputs.column.to_string() } else { d.provenance.hook.clone() },
        made_by: d.provenance.made_by.clone(),
        d_in: d.d_in(),
        d_sae: d.d_sae(),
        activation,
    }
}

/// Weights on output tokens, in units of the host's activations.
fn output_weights(inputs: &Inputs<'_>, at: Option<&HookPoint>, n: usize) -> Result<Option<Vec<Logits>>> {
    let (Some(host), Some(at)) = (inputs.host, at) else { return Ok(None) };
    let d = inputs.dictionary;
    let scale = d.input_transform.as_ref().map_or(1.0, |t| 1.0 / t.scale);
    logits(host, at, &(&d.coder.w_dec * scale)?, n)
}

fn described(j: usize, tally: &Tally, rows: u64) -> Feature {
    let active = tally.fires > 0;
    let density = tally.fires as f64 / rows as f64;
    let (histogram, histogram_width) = tally.spread.histogram();
    Feature {
        latent: j as u32,
        fires: tally.fires,
        density,
        max: active.then_some(tally.max),
        mean_active: active.then(|| tally.sum / tally.fires as f64),
        // The middle of the largest value's bin may lie above it.
        quantiles: tally.spread.quantiles(&QUANTILES).into_iter().map(|q| q.min(tally.max)).collect(),
        histogram,
        histogram_width,
        dead: !active,
        dense: density > DENSE_ABOVE,
        ..Feature::default()
    }
}

fn with_partners(feature: &mut Feature, partners: &[Partner]) {
    feature.coactive = partners.iter().map(|p| p.latent).collect();
    feature.coactive_jaccard = partners.iter().map(|p| p.jaccard).collect();
    feature.coactive_pmi = partners.iter().map(|p| p.pmi).collect();
}

fn with_weights(feature: &mut Feature, weights: &Logits, text: &Texts<'_>) {
    (feature.top_token_ids, feature.top_logits) = weights.top.iter().copied().unzip();
    (feature.bottom_token_ids, feature.bottom_logits) = weights.bottom.iter().copied().unzip();
    feature.top_tokens = feature.top_token_ids.iter().map(|&t| text.of(t)).collect();
    feature.bottom_tokens = feature.bottom_token_ids.iter().map(|&t| text.of(t)).collect();
    feature.logit_histogram.clone_from(&weights.histogram);
    (feature.logit_min, feature.logit_max) = weights.range.unzip();
}

fn with_concept(feature: &mut Feature, found: &ConceptScore) {
    feature.concept = Some(found.concept.clone());
    feature.concept_class = Some(found.class.clone());
    feature.concept_f1 = Some(found.f1);
    feature.concept_precision = Some(found.precision);
    feature.concept_recall = Some(found.recall);
}

/// Tokens as text, each asked for once.
struct Texts<'a> {
    tokenizer: Option<&'a Tokenizer>,
    known: std::cell::RefCell<HashMap<u32, String>>,
}

impl<'a> Texts<'a> {
    fn new(tokenizer: Option<&'a Tokenizer>) -> Self {
        Self { tokenizer, known: HashMap::new().into() }
    }

    fn of(&self, id: u32) -> String {
        let Some(tokenizer) = self.tokenizer else { return format!("⟨{id}⟩") };
        self.known.borrow_mut().entry(id).or_insert_with(|| label::cut(&tokenizer.text_of(id), CHARACTERS)).clone()
    }
}

/// The examples of a latent, in the order of the table.
fn examples_of(latent: u32, tally: &Tally, seen: &Seen, config: &FeaturesConfig, text: &Texts<'_>) -> Vec<Example> {
    if tally.fires == 0 {
        return Vec::new();
    }
    let example = |group: Group, rank: usize, quantile: Option<u32>, window: &Window| {
        let mut values = vec![0.0; window.positions.len()];
        window.active.iter().for_each(|&(i, v)| values[usize::from(i)] = v);
        let tokens = match window.token_ids.is_empty() {
            true => vec![String::new(); values.len()],
            false => window.token_ids.iter().map(|&t| text.of(t)).collect(),
        };
        Example {
            latent,
            group: group.name().into(),
            rank: rank as u32,
            quantile,
            doc_id: window.doc_id,
            position: window.position,
            value: window.value,
            peak: window.peak,
            tokens,
            token_ids: window.token_ids.to_vec(),
            positions: window.positions.to_vec(),
            values,
        }
    };
    let mut examples: Vec<Example> = tally.top.iter().enumerate().map(|(i, w)| example(Group::Top, i, None, w)).collect();
    for (band, windows) in bands(tally, config) {
        examples.extend(windows.into_iter().enumerate().map(|(i, w)| example(Group::Quantile, i, Some(band), w)));
    }
    let drawn = |s: &&Stretch| hash64(hash64(u64::from(latent), s.window.doc_id), u64::from(s.window.position));
    let mut random: Vec<&Stretch> = seen.pool.iter().collect();
    random.sort_by_key(drawn);
    for (i, stretch) in random.into_iter().take(config.random).enumerate() {
        let mut window = stretch.window.clone();
        let value = |r: usize| {
            let (indices, values) = stretch.codes.row(r);
            indices.iter().position(|&j| j == latent).map(|at| (r as u8, values[at]))
        };
        window.active = (0..window.positions.len()).filter_map(value).collect();
        window.value = window.active.iter().find(|a| u32::from(a.0) == window.peak).map_or(0.0, |a| a.1);
        examples.push(example(Group::Random, i, None, &window));
    }
    examples
}

/// The sample by value, cut into bands of equal numbers, highest band first; of each those that were drawn first.
fn bands<'t>(tally: &'t Tally, config: &FeaturesConfig) -> Vec<(u32, Vec<&'t Window>)> {
    let mut sample: Vec<&(u64, Window)> = tally.sample.iter().collect();
    let place = |s: &(u64, Window)| (s.1.value.to_bits(), s.1.doc_id, s.1.position);
    sample.sort_by_key(|s| place(s));
    let edge = |b: usize| b * sample.len() / config.bands;
    (0..config.bands)
        .rev()
        .map(|b| {
            let mut band = sample[edge(b)..edge(b + 1)].to_vec();
            band.sort_by_key(|s| s.0);
            band.truncate(config.per_band);
            band.sort_by_key(|s| std::cmp::Reverse(place(s)));
            (b as u32, band.into_iter().map(|s| &s.1).collect())
        })
        .collect()
}
