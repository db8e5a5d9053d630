//! Vectors whose features are known: what a dictionary finds in them can be compared with the truth.
//!
//! ```text
//! x = sum_g c_g f_g + bias + noise * N(0, 1)        f_g [d] unit directions, c sparse and not negative
//! ```
//!
//! A generator is a file with a config (serde, every key with a default), `check`, and a sampler of codes: `zipf` (superposition),
//! `hierarchy` (the 20 features of the MP-SAE paper), `tree` (a conditional forest), `synth` (a correlated forest in superposition).
//! Specified in docs/planted.md. Row `i` depends on the spec, the seed and `i` alone: not on threads, nor on which rows are asked for.
//!
//! Not for: shards of them (`harvest::ingest`), or scores against the truth (`score::planted`).

mod directions;
mod firing;
mod forest;
mod hierarchy;
mod normal;
mod synth;
mod tree;
mod truth;
mod zipf;

pub use hierarchy::{HierarchyConfig, SIBLING_E_CHILDREN, SIBLING_E_PARENTS};
pub use synth::SynthConfig;
pub use tree::TreeConfig;
pub use truth::{Truth, TRUTH_FILE};
pub use zipf::ZipfConfig;

use std::ops::Range;
use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{json, Value};

use crate::codes::Codes;
use crate::error::{Error, Result};
use crate::rng::Rng;

/// Version of the generators: it changes when the same spec and seed give other values.
pub const GENERATOR_VERSION: u32 = 1;
/// Name of the column that planted shards have.
pub const HOOK: &str = "planted";
/// `kind` of the manifest's `corpus` in planted shards.
const KIND: &str = "planted";

/// Which generator, with its settings; tagged by `kind`.
///
/// ```
/// use lapidary::corpus::planted::{Planted, PlantedConfig};
/// let spec = PlantedConfig::parse("hierarchy?sibling_correlation=0.3").unwrap();
/// let planted = Planted::new(&spec, 0).unwrap();
/// let rows = planted.rows(100..104);
/// assert_eq!((rows.x.len(), rows.codes.n_rows()), (4 * 20, 4));
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum PlantedConfig {
    /// More features than dimensions, firing by a Zipf law.
    Zipf(ZipfConfig),
    /// Eleven exclusive parents, three of which have three exclusive children (MP-SAE).
    Hierarchy(HierarchyConfig),
    /// A forest: children fire only with their parent.
    Tree(TreeConfig),
    /// Correlated, hierarchical, in superposition (after SynthSAEBench).
    Synth(SynthConfig),
}

/// Names of the generators.
pub const KINDS: &[&str] = &["zipf", "hierarchy", "tree", "synth"];

/// One generator's side of the bargain.
trait Generator: Send + Sync + std::fmt::Debug {
    /// Appends the codes of one row: features ascending or not, values above 0, each feature once.
    fn codes(&self, rng: &mut Rng, row: &mut Vec<(u32, f32)>);
}

/// Its config's side.
trait Spec {
    /// Refuses impossible settings.
    fn check(&self) -> Result<()>;
    /// Width of a row.
    fn d_in(&self) -> usize;
    /// Standard deviation of the noise per value.
    fn noise(&self) -> f64;
    /// The truth (directions left out: `[0]`, when `with_directions` is false: they may be costly), and the sampler.
    fn build(&self, seed: u64, with_directions: bool) -> (Truth, Box<dyn Generator>);
}

/// A wrong key of a generator.
fn wrong(key: &str, problem: impl Into<String>, help: impl Into<String>) -> Error {
    Error::config(format!("planted.{key}"), problem, help)
}

/// Refuses what is no finite number in a range.
fn within(key: &str, value: f64, range: std::ops::RangeInclusive<f64>) -> Result<()> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(wrong(key, format!("is {value}"), format!("choose a value from {} to {}", range.start(), range.end())))
}

/// Refuses sizes that are 0 or that no memory holds.
fn sized(key: &str, value: usize, most: usize) -> Result<()> {
    if (1..=most).contains(&value) {
        return Ok(());
    }
    Err(wrong(key, format!("is {value}"), format!("choose a number from 1 to {most}")))
}

impl PlantedConfig {
    /// From `KIND` or `KIND?key=value,key=value`.
    ///
    /// # Errors
    /// An unknown kind or key, a value of another type, impossible settings.
    pub fn parse(text: &str) -> Result<Self> {
        let (kind, settings) = text.split_once('?').unwrap_or((text, ""));
        let mut spec = toml::Table::new();
        spec.insert("kind".into(), kind.trim().into());
        Self::with(spec, settings.split(',').filter(|s| !s.trim().is_empty()))
    }

    /// From a TOML table (`kind` and the generator's keys) with assignments `key=value` on top.
    ///
    /// # Errors
    /// As [`PlantedConfig::parse`].
    pub fn with<'a>(mut table: toml::Table, assignments: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        for assignment in assignments {
            let Some((key, value)) = assignment.split_once('=') else {
                return Err(Error::request(format!("`{assignment}` assigns nothing"), "write key=value, as in planted:zipf?l0=6"));
            };
            let key = key.trim();
            let key = key.strip_prefix("planted.").unwrap_or(key);
            let value = value.trim();
            let parsed = format!("v = {value}").parse::<toml::Table>().ok().and_then(|mut t| t.remove("v"));
            table.insert(key.to_string(), parsed.unwrap_or_else(|| toml::Value::String(value.to_string())));
        }
        let kind = table.get("kind").and_then(toml::Value::as_str).unwrap_or_default().to_string();
        if !KINDS.contains(&kind.as_str()) {
            return Err(wrong("kind", format!("`{kind}` is no generator"), format!("choose one of {}", KINDS.join(", "))));
        }
        let spec: Self = toml::Value::Table(table)
            .try_into()
            .map_err(|e: toml::de::Error| wrong(&kind, e.message().to_string(), "docs/planted.md lists the keys of each generator"))?;
        spec.check()?;
        Ok(spec)
    }

    fn spec(&self) -> &dyn Spec {
        match self {
            Self::Zipf(c) => c,
            Self::Hierarchy(c) => c,
            Self::Tree(c) => c,
            Self::Synth(c) => c,
        }
    }

    /// Name of the generator.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Zipf(_) => "zipf",
            Self::Hierarchy(_) => "hierarchy",
            Self::Tree(_) => "tree",
            Self::Synth(_) => "synth",
        }
    }

    /// Refuses impossible settings.
    ///
    /// # Errors
    /// [`Error::Config`] with the remedy.
    pub fn check(&self) -> Result<()> {
        self.spec().check()
    }

    /// Width of a row.
    pub fn d_in(&self) -> usize {
        self.spec().d_in()
    }
}

/// A generator with its truth, ready to give rows.
#[derive(Debug)]
pub struct Planted {
    config: PlantedConfig,
    seed: u64,
    truth: Truth,
    generator: Box<dyn Generator>,
}

/// Some rows with their codes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PlantedRows {
    /// Row-major `[n, d]`.
    pub x: Vec<f32>,
    /// True codes over the features, `[n]` rows.
    pub codes: Codes,
}

impl Planted {
    /// Makes the directions and everything else that all rows share.
    ///
    /// # Errors
    /// Impossible settings.
    pub fn new(config: &PlantedConfig, seed: u64) -> Result<Self> {
        config.check()?;
        let (truth, generator) = config.spec().build(seed, true);
        Ok(Self { config: config.clone(), seed, truth, generator })
    }

    /// The settings.
    pub fn config(&self) -> &PlantedConfig {
        &self.config
    }

    /// The seed of directions and rows.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// What is known: directions, bias, parents, firing frequencies.
    pub fn truth(&self) -> &Truth {
        &self.truth
    }

    /// Width of a row.
    pub fn d_in(&self) -> usize {
        self.config.d_in()
    }

    /// Rows `range`: values and true codes.
    pub fn rows(&self, range: Range<u64>) -> PlantedRows {
        let d = self.d_in();
        let n = (range.end.saturating_sub(range.start)) as usize;
        let (mut made, mut x) = (vec![Row::new(); n], vec![0f32; n * d]);
        made.par_iter_mut().zip(x.par_chunks_mut(d)).enumerate().for_each(|(r, (row, x))| {
            let (codes, mut rng) = self.row(range.start + r as u64);
            // Noise comes after the codes in a row's stream, so codes can be had alone.
            self.vector(&codes, &mut rng, x);
            *row = codes;
        });
        PlantedRows { x, codes: self.gather(&made) }
    }

    /// True codes of the rows named, without their values.
    pub fn codes_of(&self, rows: &[u64]) -> Codes {
        let made: Vec<Row> = rows.par_iter().map(|&i| self.row(i).0).collect();
        self.gather(&made)
    }

    /// Codes of row `i` and its stream after them.
    fn row(&self, i: u64) -> (Row, Rng) {
        let mut rng = Rng::stream(self.seed, "planted.row", i);
        let mut row = Vec::new();
        self.generator.codes(&mut rng, &mut row);
        row.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        (row, rng)
    }

    fn vector(&self, row: &[(u32, f32)], rng: &mut Rng, x: &mut [f32]) {
        let mut sum: Vec<f64> = self.truth.bias.iter().map(|&b| f64::from(b)).collect();
        for &(g, c) in row {
            for (s, &f) in sum.iter_mut().zip(self.truth.feature(g as usize)) {
                *s += f64::from(c) * f64::from(f);
            }
        }
        let noise = self.config.spec().noise();
        for (x, s) in x.iter_mut().zip(sum) {
            let extra = if noise > 0.0 { noise * rng.normal() } else { 0.0 };
            *x = (s + extra) as f32;
        }
    }

    fn gather(&self, rows: &[Row]) -> Codes {
        let mut codes = Codes::new(self.truth.len());
        rows.iter().for_each(|row| codes.push_row(row.iter().copied()));
        codes
    }

    /// What a manifest says of planted rows: enough to make them, and the truth, again.
    ///
    /// # Errors
    /// Never for the generators here; kept for values that JSON cannot hold.
    pub fn provenance(&self, rows: u64) -> Result<Value> {
        Ok(json!({
            "kind": KIND,
            "generator": GENERATOR_VERSION,
            "spec": self.config,
            "seed": self.seed,
            "rows": rows,
            "truth_sha256": self.truth.sha256()?,
        }))
    }

    /// The generator behind shards, from the `corpus` entry of their manifest; `None` when they were not planted. Directions come from
    /// `dir/truth.safetensors` when it is there and is the one the manifest names, else they are made again.
    ///
    /// # Errors
    /// A spec of another version of the generators, or directions that come out differently here.
    pub fn of_corpus(corpus: &Value, dir: &Path) -> Result<Option<Self>> {
        if corpus.get("kind").and_then(Value::as_str) != Some(KIND) {
            return Ok(None);
        }
        let bad = |problem: String| Error::format("shard manifest", dir, problem, "ingest the planted rows again with this version");
        let version = corpus.get("generator").and_then(Value::as_u64);
        if version != Some(u64::from(GENERATOR_VERSION)) {
            let found = version.map_or("none".to_string(), |v| v.to_string());
            return Err(bad(format!("its rows were planted by generator version {found}; this program has {GENERATOR_VERSION}")));
        }
        let field = |name: &str| corpus.get(name).cloned().unwrap_or_default();
        let config: PlantedConfig = serde_json::from_value(field("spec")).map_err(|e| bad(format!("its planted spec: {e}")))?;
        config.check()?;
        let seed = field("seed").as_u64().ok_or_else(|| bad("it has no seed of the planted rows".into()))?;
        let want = field("truth_sha256");
        let want = want.as_str().unwrap_or_default();
        let (mut truth, generator) = config.spec().build(seed, false);
        if !truth.read_directions(&dir.join(TRUTH_FILE), want) {
            let (made, generator) = config.spec().build(seed, true);
            if made.sha256()? != want {
                return Err(bad("the features planted here differ from those that its rows were made of".into()));
            }
            return Ok(Some(Self { config, seed, truth: made, generator }));
        }
        Ok(Some(Self { config, seed, truth, generator }))
    }
}

/// Features and values of one row.
type Row = Vec<(u32, f32)>;

#[cfg(test)]
mod tests;
