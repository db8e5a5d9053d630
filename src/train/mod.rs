//! The training loop: rows in, dictionaries out. One pass over the rows trains a whole sweep.
//!
//! Ignorant of variants: it sees [`crate::sae::Learner`]s. Everything it writes but `timing.parquet` is the same bytes for the same seed, for any
//! number of threads, and for a run that was killed and resumed.

mod checkpoint;
mod log;
mod normalize;
mod optim;
mod pam;
mod permuted;
mod remote;
mod run;
mod schedule;
mod source;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::kernels::{DeviceEncode, Precision};

pub use log::{read as read_log, LogRecord, LOG_COLUMNS};
pub use normalize::scale_for;
pub use optim::Optimizer;
pub use pam::PamConfig;
pub use permuted::Permuted;
pub use run::{train, Beginning, Look, Member, Mode, TrainReport, TrainedMember};
pub use schedule::Schedule;
pub(crate) use source::normalised;
pub use source::{Cursor, Forward, RowSource, SourceReport};

/// The `[train]` table. Learning rates are for rows of mean squared norm `d_in`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Rows to train on, counted with repetition: epochs wrap. 0 stands for one pass over the training rows.
    pub n_tokens: u64,
    /// Rows per optimiser step.
    pub batch: usize,
    /// Peak learning rate; 0 stands for `2e-4 / sqrt(d_sae / 2^14)`.
    pub lr: f64,
    /// Share of `n_tokens` over which the rate rises linearly from 0.
    pub warmup_fraction: f64,
    /// Share of `n_tokens` at the end over which the rate falls linearly to 0.
    pub decay_fraction: f64,
    /// Adam's decay of the first moment.
    pub beta1: f64,
    /// Adam's decay of the second moment.
    pub beta2: f64,
    /// Adam's epsilon.
    pub eps: f64,
    /// The gradient's global norm is clipped to this; 0 turns clipping off.
    pub clip_norm: f64,
    /// Arithmetic of the encoder's products on a GPU: `bf16`, `tf32`, `f32`, or `certified` for the sets that float64 picks. The CPU always
    /// picks those.
    pub gpu_precision: Precision,
    /// Kernels that encode on a GPU in bf16: `auto`, `chunked`, `hopper` or `ampere`.
    pub gpu_encode: DeviceEncode,
    /// Seeds the "init" stream, and the "data" stream unless `data_seed` is given.
    pub seed: u64,
    /// Seeds the order of rows. In a sweep all members share one order: that of the first seed, unless given.
    pub data_seed: Option<u64>,
    /// Folder of the dictionary to start from; empty: unit atoms from `seed`.
    pub init_from: String,
    /// Control: does the decoder stay as it started, while encoder and biases learn?
    pub freeze_decoder: bool,
    /// Control: are the coordinates of the rows permuted, each on its own, over the rows of a batch ([`Permuted`])?
    pub permute_columns: bool,
    /// Rows used to initialise (geometric median, encoder gain).
    pub init_rows: usize,
    /// Steps between lines of the log; 0 stands for about 200 lines in all.
    pub log_every_steps: u64,
    /// Seconds of wall clock between checkpoints.
    pub checkpoint_seconds: f64,
    /// Bytes of rows held for shuffling: all rows that fit are shuffled perfectly, more are shuffled window by window. Shards take
    /// them twice, for a window is read ahead. From a host this is the mixing buffer.
    pub shuffle_bytes: u64,
    /// Solve for the decoder instead of training it (PAM-SGD, for `topk` and `relu`): the `[train.pam]` table, absent by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pam: Option<PamConfig>,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            n_tokens: 0,
            batch: 4096,
            lr: 0.0,
            warmup_fraction: 0.02,
            decay_fraction: 0.2,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            clip_norm: 1.0,
            gpu_precision: Precision::Bf16,
            gpu_encode: DeviceEncode::Auto,
            seed: 0,
            data_seed: None,
            init_from: String::new(),
            freeze_decoder: false,
            permute_columns: false,
            init_rows: 32_768,
            log_every_steps: 0,
            checkpoint_seconds: 60.0,
            shuffle_bytes: 512 << 20,
            pam: None,
        }
    }
}

impl TrainConfig {
    /// Replaces zeros that stand for something by numbers, and refuses what cannot run.
    ///
    /// # Errors
    /// Impossible settings, with the remedy.
    pub fn resolve(&self, d_sae: usize, n_train_rows: u64) -> Result<Self> {
        let mut c = self.clone();
        if n_train_rows == 0 {
            return Err(Error::request("the shards hold no training rows", "harvest with a smaller --held-out, or a larger corpus"));
        }
        if c.n_tokens == 0 {
            c.n_tokens = n_train_rows;
        }
        let positive = |key: &str, ok: bool, found: String, help: &str| {
            if ok {
                Ok(())
            } else {
                Err(Error::config(format!("train.{key}"), format!("{found} will not do"), help))
            }
        };
        positive("batch", c.batch > 1, c.batch.to_string(), "use at least 2 rows per step (one row has no variance); 4096 is the default")?;
        positive("lr", c.lr.is_finite() && c.lr >= 0.0, c.lr.to_string(), "use a positive rate, or 0 for 2e-4 / sqrt(d_sae / 2^14)")?;
        let share = |x: f64| (0.0..=1.0).contains(&x);
        positive(
            "warmup_fraction",
            share(c.warmup_fraction) && share(c.decay_fraction) && c.warmup_fraction + c.decay_fraction <= 1.0,
            format!("warm-up {} with decay {}", c.warmup_fraction, c.decay_fraction),
            "both are shares of train.n_tokens, together at most 1",
        )?;
        positive(
            "beta1",
            [c.beta1, c.beta2].iter().all(|b| *b >= 0.0 && (*b as f32) < 1.0),
            format!("{} and {}", c.beta1, c.beta2),
            "use decays below 1",
        )?;
        positive(
            "eps",
            c.eps as f32 >= f32::MIN_POSITIVE && c.eps.is_finite(),
            c.eps.to_string(),
            "use a small positive number, 1e-8 is the default",
        )?;
        positive("clip_norm", c.clip_norm >= 0.0, c.clip_norm.to_string(), "use a positive norm, or 0 to turn clipping off")?;
        positive("init_rows", c.init_rows > 0, c.init_rows.to_string(), "use at least 1 row, 32768 is the default")?;
        positive("checkpoint_seconds", c.checkpoint_seconds >= 0.0, c.checkpoint_seconds.to_string(), "use seconds of wall clock")?;
        if let Some(pam) = &c.pam {
            pam.check()?;
        }
        if c.lr == 0.0 {
            c.lr = 2e-4 / (d_sae as f64 / 16384.0).sqrt();
        }
        if c.log_every_steps == 0 {
            c.log_every_steps = (c.n_steps() / 200).max(1);
        }
        c.data_seed = Some(c.data_seed.unwrap_or(c.seed));
        Ok(c)
    }

    /// Optimiser steps in a run: every batch is full, the last one may pass `n_tokens` by less than a batch.
    pub fn n_steps(&self) -> u64 {
        self.n_tokens.div_ceil(self.batch as u64)
    }
}

#[cfg(test)]
mod tests;
