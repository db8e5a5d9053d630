//! Where training rows come from: shards, or a host that streams them. Both are sources by the same trait.

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::kernels::spread;
use crate::shard::{self, Batch, Shuffled};

/// A place in an endless sequence of rows. The default is the beginning.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// Passes over the data that are complete.
    pub epoch: u64,
    /// Window of the epoch: rows are shuffled window by window.
    pub window: u64,
    /// Rows of the window that were handed out.
    pub offset: u64,
    /// What else the source needs to find the window again: the source's own, null where three numbers are enough.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub source: Value,
}

impl From<shard::Cursor> for Cursor {
    fn from(c: shard::Cursor) -> Self {
        Self { epoch: c.epoch, window: c.window, offset: c.offset, source: Value::Null }
    }
}

/// What a source knows of itself after a run.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SourceReport {
    /// Provenance of streamed rows, for the dictionary; null where a manifest has it.
    pub stream: Value,
    /// The host's share of the work; `None` where rows came from shards.
    pub forward: Option<Forward>,
}

/// A host's forward passes, as far as this process ran them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Forward {
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Tokens that went through, masked and held-out ones included.
    pub tokens: u64,
    /// Share of the passes that was padding.
    pub padding_share: f64,
}

/// An endless, seeded, seekable stream of rows.
pub trait RowSource {
    /// Width of a row.
    fn width(&self) -> usize;
    /// The next `n` rows; epochs wrap.
    ///
    /// # Errors
    /// Damaged or vanished data, [`Error::Interrupted`]. Where the source then stands is undefined: seek.
    fn next_rows(&mut self, n: usize) -> Result<Batch>;
    /// Where the next row comes from.
    fn cursor(&self) -> Cursor;
    /// Goes back (or ahead) to a cursor.
    ///
    /// # Errors
    /// A cursor of other data.
    fn seek(&mut self, cursor: &Cursor) -> Result<()>;
    /// Passes over the data that are complete.
    fn epoch(&self) -> u64;
    /// Rows of one epoch, where each can be read again: the first so many from the default [`Cursor`] are all of them, once. `None` for a
    /// stream.
    fn rows_per_epoch(&self) -> Option<u64> {
        None
    }
    /// Mean squared norm of the training rows, or of enough of them to normalise by: the same for a whole run, whatever the cursor.
    ///
    /// # Errors
    /// As `next_rows`.
    fn mean_sq_norm(&mut self) -> Result<f64>;
    /// What is known after a run.
    ///
    /// # Errors
    /// Never in practice: provenance that is no JSON.
    fn report(&self) -> Result<SourceReport> {
        Ok(SourceReport::default())
    }
}

impl RowSource for Shuffled {
    fn width(&self) -> usize {
        Shuffled::width(self)
    }

    fn next_rows(&mut self, n: usize) -> Result<Batch> {
        self.next_batch(n)
    }

    fn cursor(&self) -> Cursor {
        Shuffled::cursor(self).into()
    }

    fn seek(&mut self, cursor: &Cursor) -> Result<()> {
        if !cursor.source.is_null() {
            return Err(Error::request(
                "the checkpoint is of a run that streamed its rows from a host",
                "resume with the --model and --corpus that started the run, or choose another --out",
            ));
        }
        Shuffled::seek(self, &shard::Cursor { epoch: cursor.epoch, window: cursor.window, offset: cursor.offset })
    }

    fn epoch(&self) -> u64 {
        Shuffled::epoch(self)
    }

    fn rows_per_epoch(&self) -> Option<u64> {
        Some(Shuffled::rows_per_epoch(self))
    }

    fn mean_sq_norm(&mut self) -> Result<f64> {
        Ok(Shuffled::mean_sq_norm(self))
    }
}

/// The batch's rows times `scale`, `[n, width]`, and their summed squared distance from their mean (the batch's FVU denominator).
///
/// # Errors
/// NaN or infinity, with the row's place.
pub fn normalised(batch: Batch, width: usize, scale: f64) -> Result<(Tensor, f64)> {
    let Batch { n, mut x, doc_id, position, .. } = batch;
    let scale = scale as f32;
    let bad = x.par_chunks_exact_mut(width).enumerate().filter_map(|(r, row)| {
        let mut check = 0f32;
        for v in row.iter_mut() {
            *v *= scale;
            check += *v * 0.0; // stays 0 unless the value is NaN or infinite
        }
        (check != 0.0).then_some(r)
    });
    if let Some(r) = bad.min() {
        let count = x[r * width..(r + 1) * width].iter().filter(|v| !v.is_finite()).count();
        let place = format!("document {}, position {}", doc_id.get(r).copied().unwrap_or(0), position.get(r).copied().unwrap_or(0));
        return Err(Error::NotFinite {
            what: "a training row".into(),
            count,
            place,
            help: "harvest again in f32, or drop that document".into(),
        });
    }
    let x = Tensor::from_vec(x, (n, width), &Device::Cpu)?;
    let spread = spread(&x)?;
    Ok((x, spread))
}
