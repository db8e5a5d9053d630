//! What to harvest: as written ([`HarvestConfig`]), then checked against a host ([`Plan`]).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{json, Value};

use crate::corpus::{Bos, ContextConfig, Pack, Specials, Tokenizer};
use crate::error::{Error, Result};
use crate::hook::HookPoint;
use crate::host::HostModel;
use crate::shard::{split_of, Column, Dtype, Split, WriterOptions};

/// Bytes per row besides the activations, after encoding: more than it usually takes.
const ID_BYTES: usize = 12;

/// A rule that keeps rows from being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MaskRule {
    /// Special tokens: BOS, end, unknown, ...
    Special,
    /// First token of a context that begins with no special token.
    First,
    /// Rows whose norm, at any harvested hook point, is above `outlier_factor` times the median of the first rows there.
    Outlier,
}

/// What to harvest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HarvestConfig {
    /// Hook points, in the order of the columns; any spelling [`HookPoint`] understands.
    pub hooks: Vec<String>,
    /// Rows to write; `None`: all that the corpus gives.
    pub n_tokens: Option<u64>,
    /// Most tokens that the host sees at once, BOS included.
    pub context: usize,
    /// Most tokens of one forward pass, padding included.
    pub batch_tokens: usize,
    /// Stored type of the activations.
    pub dtype: Dtype,
    /// Expected fraction of documents held out; 0: no split.
    pub held_out: f64,
    /// Seed of the split.
    pub split_seed: u64,
    /// Does a text begin with BOS?
    pub bos: Bos,
    /// Mask the first row of token-id documents.
    pub drop_bos: bool,
    /// Masking rules to switch off.
    pub keep: Vec<MaskRule>,
    /// Rows with more than this many times the median norm are outliers.
    pub outlier_factor: f64,
    /// Rows whose median norm that is. They wait in memory until it is known.
    pub outlier_rows: usize,
    /// Fill each context with as many documents as it takes; a document then attends to those before it in its context. Training and
    /// held-out documents never share one.
    pub pack: bool,
    /// Rows per pair of shard files; a crash loses at most the work on one. `None`: 65,536 or 256 MiB.
    pub shard_rows: Option<u64>,
    /// Rows per Parquet row group; `None`: about 4 MiB of the widest column.
    pub row_group_rows: Option<usize>,
}

impl Default for HarvestConfig {
    fn default() -> Self {
        Self {
            hooks: Vec::new(),
            n_tokens: None,
            context: 128,
            batch_tokens: 2048,
            dtype: Dtype::F32,
            held_out: 0.05,
            split_seed: 0,
            bos: Bos::Tokenizer,
            drop_bos: false,
            keep: Vec::new(),
            outlier_factor: 10.0,
            outlier_rows: 16_384,
            pack: false,
            shard_rows: None,
            row_group_rows: None,
        }
    }
}

/// A harvest that can run: hook points found, widths known, every default resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The configuration with canonical names and no `None` but `n_tokens`.
    pub config: HarvestConfig,
    /// Hook points, in column order.
    pub points: Vec<HookPoint>,
    /// Columns to write.
    pub columns: Vec<Column>,
}

impl HarvestConfig {
    /// Checks the configuration against a host.
    ///
    /// # Errors
    /// On the first key that is impossible or does not fit the host.
    pub fn check(&self, host: &dyn HostModel) -> Result<Plan> {
        let info = host.info();
        let config = |key: &str, problem: String, help: &str| Error::config(format!("harvest.{key}"), problem, help);
        if self.hooks.is_empty() {
            let all = host.hook_points().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            return Err(config("hooks", "names no hook point".to_string(), &format!("name one or more of {all}")));
        }
        if self.context == 0 || self.context > info.n_context {
            let help = format!("{} takes 1 to {} tokens", info.name, info.n_context);
            return Err(config("context", format!("is {}", self.context), &help));
        }
        if self.n_tokens == Some(0) {
            return Err(config("n_tokens", "is 0".to_string(), "leave it out to take the whole corpus"));
        }
        if self.batch_tokens == 0 {
            return Err(config("batch_tokens", "is 0".to_string(), "2048 suits most machines"));
        }
        if !(0.0..1.0).contains(&self.held_out) {
            return Err(config("held_out", format!("is {}", self.held_out), "give a fraction of documents: 0 for none, less than 1"));
        }
        if !self.outlier_factor.is_finite() || self.outlier_factor <= 1.0 {
            let help = "give a number above 1, or keep outliers with `harvest.keep`";
            return Err(config("outlier_factor", format!("is {}", self.outlier_factor), help));
        }
        let zeros = [
            ("outlier_rows", self.outlier_rows == 0),
            ("shard_rows", self.shard_rows == Some(0)),
            ("row_group_rows", self.row_group_rows == Some(0)),
        ];
        for (key, zero) in zeros {
            if zero {
                return Err(config(key, "is 0".to_string(), "leave it out for the default"));
            }
        }
        let points = self.hooks.iter().map(|h| host.hook_point(h)).collect::<Result<Vec<_>>>()?;
        let columns = points
            .iter()
            .map(|p| Ok(Column { name: p.to_string(), width: host.width(p)?, dtype: self.dtype }))
            .collect::<Result<Vec<_>>>()?;
        let mut resolved = self.clone();
        resolved.hooks = columns.iter().map(|c| c.name.clone()).collect();
        resolved.keep.sort_unstable();
        resolved.keep.dedup();
        let row_bytes: usize = columns.iter().map(|c| c.width * c.dtype.bytes()).sum();
        resolved.shard_rows.get_or_insert((256usize << 20).checked_div(row_bytes).map_or(65_536, |n| n.clamp(8192, 65_536)) as u64);
        let options = WriterOptions { row_group_rows: self.row_group_rows, ..WriterOptions::default() };
        resolved.row_group_rows = Some(options.resolve_row_group_rows(&columns));
        Ok(Plan { config: resolved, points, columns })
    }
}

impl Plan {
    /// Is a masking rule switched off?
    pub(super) fn keeps(&self, rule: MaskRule) -> bool {
        self.config.keep.contains(&rule)
    }

    /// Expected bytes on disk per row.
    pub(super) fn row_bytes(&self) -> usize {
        ID_BYTES + self.columns.iter().map(|c| c.width * c.dtype.bytes()).sum::<usize>()
    }

    /// Tokens of one block: several forward passes, so that contexts of like length can share one, yet at most 64 MiB of rows.
    pub(super) fn block_tokens(&self) -> usize {
        let row: usize = self.columns.iter().map(|c| 4 * c.width).sum();
        ((64 << 20) / row.max(1)).clamp(self.config.batch_tokens, 8 * self.config.batch_tokens)
    }

    /// How documents become contexts under this plan.
    pub fn contexts(&self, host: &dyn HostModel, tokenizer: Option<&Tokenizer>) -> ContextConfig {
        let info = host.info();
        // Token ids come without a tokenizer: then the model's own configuration is all that is known.
        let specials = match tokenizer {
            Some(tokenizer) => Specials::of(tokenizer),
            None => Specials::ids(info.bos_token_id.iter().chain(&info.eos_token_ids).copied()),
        };
        ContextConfig {
            context: self.config.context,
            bos: self.config.bos,
            drop_bos: self.config.drop_bos,
            keep_special: self.keeps(MaskRule::Special),
            keep_first: self.keeps(MaskRule::First),
            vocab_size: info.vocab_size,
            specials,
            pack: self.config.pack.then(|| {
                let (seed, held_out) = (self.config.split_seed, self.config.held_out);
                Pack::new(move |document| split_of(document, seed, held_out) == Split::HeldOut)
            }),
        }
    }

    /// The `masking` entry of the manifest.
    pub(super) fn masking(&self, thresholds: Option<&Thresholds>) -> Value {
        let rule = |rule| if self.keeps(rule) { "off" } else { "on" };
        json!({
            "special": rule(MaskRule::Special),
            "first": rule(MaskRule::First),
            "drop_bos": if self.config.drop_bos { "on" } else { "off" },
            "outlier": match thresholds {
                Some(t) => json!({ "factor": self.config.outlier_factor, "rows": t.rows, "median_norm": t.median, "max_norm": t.limit }),
                None => Value::from("off"),
            },
        })
    }
}

/// What counts as an outlier, per column name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Thresholds {
    /// Rows that the medians are of.
    pub rows: usize,
    /// Median norm of the first rows.
    pub median: BTreeMap<String, f64>,
    /// Greatest norm that is written.
    pub limit: BTreeMap<String, f64>,
}

impl Thresholds {
    /// From the norms of the first rows, per column.
    pub fn decide(columns: &[Column], norms: &[Vec<f64>], factor: f64) -> Self {
        let mut thresholds = Self { rows: norms.first().map_or(0, Vec::len), median: BTreeMap::new(), limit: BTreeMap::new() };
        for (column, norms) in columns.iter().zip(norms) {
            let mut sorted = norms.clone();
            sorted.sort_unstable_by(f64::total_cmp);
            let n = sorted.len();
            let median = if n == 0 { 0.0 } else { (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0 };
            // Where half the rows are zero there is no scale to be far from.
            let limit = if median > 0.0 { median * factor } else { f64::MAX };
            thresholds.median.insert(column.name.clone(), median);
            thresholds.limit.insert(column.name.clone(), limit);
        }
        thresholds
    }
}
