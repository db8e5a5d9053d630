//! Metrics: one definition each, in f64, over a whole set of rows, fed by one pass.
//!
//! A family of metrics is a file with a [`Kind`]: the definitions (id, unit, formula, whose), and an accumulator. [`ALL`] lists the
//! families; the table, `--require`, and docs/metrics.md come from it. Where a peer computes something else under the same name, both are
//! here under different names (`legacy.rs`).
//!
//! Rows are cut into blocks of `ScoreConfig::block_rows` whatever the batches of the stream, so no figure depends on how it was cut,
//! nor on the number of threads. Not for: choosing which rows (the caller passes the held-out scan), or writing codes (`encode`).

mod beside;
mod block;
mod decoder;
mod density;
mod direction;
mod error;
mod fvu;
mod latents;
mod legacy;
mod report;
mod require;
mod sparsity;

pub mod baselines;
pub mod concepts;
pub mod loss_recovered;
pub mod planted;

use candle_core::{Device, Tensor};

pub use beside::{compare, Compared};
pub use block::{Block, Moments, RowSums};
pub use decoder::{encoder_cosines, max_cosines};
pub use latents::{LatentStats, DENSE_ABOVE, LATENTS_FILE};
pub use report::{figure, thousands, Metrics, Ordered, ScoreReport, SCORE_FILE};
pub use require::{Relation, Requirement};

use crate::codes::Codes;
use crate::corpus::planted::Planted;
use crate::dictionary::Dictionary;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::shard::Batch;

/// What a figure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Definition {
    /// Name in tables, in JSON and in requirements.
    pub id: &'static str,
    /// Of one.
    pub unit: &'static str,
    /// How it is computed; `x` a row, `xhat` its reconstruction, E a mean over rows.
    pub formula: &'static str,
    /// Whose definition it is.
    pub whose: &'static str,
}

/// Adds up one family of metrics.
pub trait Metric: Send {
    /// Takes in a block. Families that read only the table of latents leave it out.
    fn update(&mut self, _block: &Block<'_>) {}

    /// The figures so far, in the order of the family's definitions; NaN for what is undefined.
    fn values(&self, latents: &LatentStats) -> Vec<f64>;
}

/// A family of metrics.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// What it computes.
    pub definitions: &'static [Definition],
    /// A fresh accumulator.
    pub new: fn() -> Box<dyn Metric>,
}

/// Every family that needs only rows; adding one is a file and a line here.
pub const ALL: &[Kind] = &[fvu::KIND, error::KIND, direction::KIND, sparsity::KIND, density::KIND, decoder::KIND, legacy::KIND];

/// The definition of an id, of [`ALL`], [`loss_recovered`] or [`planted`].
pub fn definition(id: &str) -> Option<&'static Definition> {
    definitions().find(|d| d.id == id)
}

/// Every definition, in the order of the table.
pub fn definitions() -> impl Iterator<Item = &'static Definition> {
    ALL.iter().flat_map(|kind| kind.definitions).chain([&ROWS]).chain(planted::DEFINITIONS).chain(loss_recovered::DEFINITIONS)
}

/// Every metric id.
pub fn known_ids() -> Vec<&'static str> {
    definitions().map(|d| d.id).collect()
}

const ROWS: Definition = Definition { id: "rows", unit: "rows", formula: "number of scored rows", whose: "Lapidary" };

/// How to score.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScoreConfig {
    /// Rows that are encoded together, and the batch of the batch-dependent legacy metrics.
    pub block_rows: usize,
}

impl Default for ScoreConfig {
    fn default() -> Self {
        Self { block_rows: 4096 }
    }
}

/// The result of scoring one dictionary.
#[derive(Debug, Clone)]
pub struct Scores {
    /// Number of rows.
    pub rows: u64,
    /// Figures by id.
    pub metrics: Metrics,
    /// The table of latents.
    pub latents: LatentStats,
}

/// Scores a dictionary on all rows of a stream.
///
/// # Errors
/// A stream that fails or is empty, rows of another width, NaN or infinity in rows or reconstructions.
pub fn score(
    dictionary: &Dictionary,
    batches: impl IntoIterator<Item = Result<Batch>>,
    config: &ScoreConfig,
    progress: &dyn Progress,
) -> Result<Scores> {
    let mut all = score_all(&[dictionary], batches, config, progress)?;
    Ok(all.pop().expect("one dictionary gives one result"))
}

/// Scores several dictionaries (a dictionary and its baselines, a sweep) on the same rows in one pass; results in their order.
///
/// # Errors
/// As [`score`].
pub fn score_all(
    dictionaries: &[&Dictionary],
    batches: impl IntoIterator<Item = Result<Batch>>,
    config: &ScoreConfig,
    progress: &dyn Progress,
) -> Result<Vec<Scores>> {
    score_planted(dictionaries, batches, config, None, progress)
}

/// As [`score_all`]; of rows that were planted, the figures of [`planted`] too. Row `doc_id` of the batches is row `doc_id` of the
/// generator, as `ingest` writes them.
///
/// # Errors
/// As [`score`]; rows that the generator does not make.
pub fn score_planted(
    dictionaries: &[&Dictionary],
    batches: impl IntoIterator<Item = Result<Batch>>,
    config: &ScoreConfig,
    truth: Option<&Planted>,
    progress: &dyn Progress,
) -> Result<Vec<Scores>> {
    if config.block_rows == 0 {
        return Err(Error::config("score.block_rows", "0 rows are no block", "leave it out, or choose a few thousand"));
    }
    let mut jobs: Vec<Job<'_>> = Vec::with_capacity(dictionaries.len());
    for dictionary in dictionaries {
        // What only the weights say is worked out once for dictionaries that share them (a pursuit and its shorter ones).
        let twin = jobs.iter().find(|j| j.dictionary.shares_weights(dictionary)).map(|j| j.latents.clone());
        jobs.push(Job::new(dictionary, twin, truth)?);
    }
    progress.begin("score", None, "rows");
    let mut pending = Pending::default();
    let mut blocks = 0u64;
    let mut take = |pending: &mut Pending, n: usize, is_full: bool| -> Result<()> {
        if progress.is_cancelled() {
            return Err(Error::Cancelled { doing: "scoring" });
        }
        let d = pending.d;
        let x = &pending.x[..n * d];
        let place = |r: usize| format!("document {}, position {}", pending.doc_id[r], pending.position[r]);
        check_finite(x, d, "the activations", "harvest them again in f32 (f16 overflows at 65504), or drop the damaged shard", place)?;
        let moments = Moments::of(n, d, |r, c| f64::from(x[r * d + c]));
        let known = match truth {
            Some(truth) => Some(true_codes(truth, x, d, &pending.doc_id[..n])?),
            None => None,
        };
        for job in &mut jobs {
            job.update(x, d, &moments, is_full, known.as_ref(), place)?;
        }
        pending.x.drain(..n * d);
        pending.doc_id.drain(..n);
        pending.position.drain(..n);
        blocks += 1;
        progress.advance(n as u64);
        Ok(())
    };
    for batch in batches {
        pending.push(batch?)?;
        while pending.doc_id.len() >= config.block_rows {
            take(&mut pending, config.block_rows, true)?;
        }
    }
    let left = pending.doc_id.len();
    if left > 0 {
        let is_only = pending.taken == left as u64;
        take(&mut pending, left, is_only)?;
    }
    progress.end();
    if pending.taken == 0 {
        return Err(Error::request("there is no row to score", "choose a split that has rows (`all` when nothing was held out)"));
    }
    Ok(jobs.into_iter().map(Job::finish).collect())
}

/// True codes of planted rows; the first of them is compared with what the generator makes.
fn true_codes(truth: &Planted, x: &[f32], d: usize, doc_id: &[u64]) -> Result<Codes> {
    if !planted::is_row_of(truth, doc_id[0], &x[..d]) {
        return Err(Error::request(
            format!("row {} is not the one that the planted spec makes", doc_id[0]),
            "score the column that was planted, or ingest the rows again with this version",
        ));
    }
    Ok(truth.codes_of(doc_id))
}

/// Rows that do not fill a block yet.
#[derive(Default)]
struct Pending {
    d: usize,
    x: Vec<f32>,
    doc_id: Vec<u64>,
    position: Vec<u32>,
    /// Rows ever pushed.
    taken: u64,
}

impl Pending {
    fn push(&mut self, batch: Batch) -> Result<()> {
        if batch.n == 0 {
            return Ok(());
        }
        let d = batch.x.len() / batch.n;
        if self.d != 0 && d != self.d {
            return Err(Error::Width { what: "a batch".into(), expected: self.d, got: d, help: "score one column at a time".into() });
        }
        self.d = d;
        self.taken += batch.n as u64;
        self.x.extend_from_slice(&batch.x);
        self.doc_id.extend_from_slice(&batch.doc_id);
        self.position.extend_from_slice(&batch.position);
        Ok(())
    }
}

fn check_finite(x: &[f32], d: usize, what: &str, help: &str, place: impl Fn(usize) -> String) -> Result<()> {
    // The sum of absolute values is finite when all are (4096 rows of f32 in f64 cannot overflow): one sweep, no branch.
    if x.iter().map(|v| f64::from(v.abs())).sum::<f64>().is_finite() {
        return Ok(());
    }
    let bad = |v: &&f32| !v.is_finite();
    let first = x.iter().position(|v| !v.is_finite()).unwrap_or(0);
    Err(Error::NotFinite { what: what.into(), count: x.iter().filter(bad).count(), place: place(first / d), help: help.into() })
}

/// One dictionary under way.
struct Job<'a> {
    dictionary: &'a Dictionary,
    metrics: Vec<Box<dyn Metric>>,
    latents: LatentStats,
    planted: Option<(planted::Tally, &'a Planted)>,
}

impl<'a> Job<'a> {
    fn new(dictionary: &'a Dictionary, fresh: Option<LatentStats>, truth: Option<&'a Planted>) -> Result<Self> {
        if dictionary.d_in() != dictionary.d_out() {
            return Err(Error::Unsupported {
                by: "score".into(),
                what: format!("a dictionary that reads {} and writes {} values", dictionary.d_in(), dictionary.d_out()),
                instead: "score dictionaries that reconstruct their own input".into(),
            });
        }
        if let Some(truth) = truth.filter(|t| t.d_in() != dictionary.d_out()) {
            return Err(Error::Width {
                what: "the dictionary".into(),
                expected: truth.d_in(),
                got: dictionary.d_out(),
                help: "score a dictionary that was trained on these planted rows".into(),
            });
        }
        let planted = match truth {
            Some(truth) => Some((planted::Tally::new(&dictionary.coder.w_dec, truth.truth())?, truth)),
            None => None,
        };
        let metrics = ALL.iter().map(|kind| (kind.new)()).collect();
        let latents = match fresh {
            Some(latents) => latents,
            None => LatentStats::new(dictionary)?,
        };
        Ok(Self { dictionary, metrics, latents, planted })
    }

    fn update(
        &mut self,
        x: &[f32],
        d: usize,
        moments: &Moments,
        is_full: bool,
        truth: Option<&Codes>,
        place: impl Fn(usize) -> String,
    ) -> Result<()> {
        let rows = Tensor::from_slice(x, (x.len() / d, d), self.dictionary.device())?;
        let (codes, x_hat) = self.dictionary.reconstruct(&rows)?;
        let x_hat: Vec<f32> = x_hat.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?;
        check_finite(
            &x_hat,
            d,
            "the reconstruction",
            "the dictionary's weights are too large for these activations: train it again",
            place,
        )?;
        let block = Block::new(x, &x_hat, d, &codes, moments, is_full);
        for metric in &mut self.metrics {
            metric.update(&block);
        }
        self.latents.update(&codes);
        if let (Some((tally, _)), Some(truth)) = (&mut self.planted, truth) {
            tally.update(&codes, truth);
        }
        Ok(())
    }

    fn finish(self) -> Scores {
        let mut metrics = Metrics::default();
        for (kind, metric) in ALL.iter().zip(&self.metrics) {
            for (definition, value) in kind.definitions.iter().zip(metric.values(&self.latents)) {
                metrics.insert(definition.id, value);
            }
        }
        metrics.insert(ROWS.id, self.latents.rows as f64);
        if let Some((tally, planted)) = self.planted {
            metrics.extend(tally.finish(planted.truth()));
        }
        Scores { rows: self.latents.rows, metrics, latents: self.latents }
    }
}

/// Index in sorted data of the q-quantile by nearest rank: the smallest value that at least a share q does not exceed.
fn nearest_rank(q: f64, n: u64) -> u64 {
    ((q * n as f64).ceil() as u64).clamp(1, n.max(1)) - 1
}

#[cfg(test)]
mod tests;
