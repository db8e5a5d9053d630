//! The bench's tools: the toy trainer, scoring in memory, and progress over a whole run.

use std::time::Instant;

use super::rows::PlantedRows;
use crate::corpus::planted::Planted;
use crate::dictionary::{Dictionary, Provenance};
use crate::error::{Error, Result};
use crate::progress::{Progress, Silent};
use crate::sae::SaeConfig;
use crate::score::baselines::{self, BaselineConfig};
use crate::score::{self, ScoreConfig, Scores};
use crate::shard::Batch;
use crate::train::{self, Beginning, Member, Mode, RowSource, TrainConfig};

/// The settings of a small training run. Rows are scaled to mean squared norm `d_in` by the loop, as always.
#[derive(Debug, Clone, Copy)]
pub struct Toy {
    /// Peak learning rate.
    pub lr: f64,
    /// Rows per step.
    pub batch: usize,
    /// Optimiser steps.
    pub steps: u64,
    /// Steps of linear warm-up; the last 20 % decay linearly.
    pub warmup: u64,
    /// Adam's decays.
    pub betas: (f64, f64),
    /// Rows that learners start from, and that thresholds are calibrated on.
    pub init_rows: usize,
}

impl Default for Toy {
    fn default() -> Self {
        Self { lr: 3e-3, batch: 256, steps: 3000, warmup: 200, betas: (0.9, 0.999), init_rows: 16_384 }
    }
}

/// What a claim works with.
pub struct Lab<'a> {
    /// Of data and initialisation: streams with different names, so one number serves both.
    pub seeds: &'a [u64],
    /// Share of the steps that are run.
    pub factor: f64,
    progress: &'a dyn Progress,
    started: Instant,
    /// Weights of what is done, and of all.
    done: std::cell::Cell<u64>,
    total: u64,
}

/// Passes on the wish to stop, and nothing else: the bench draws one bar, not one per training run.
struct Quiet<'a>(&'a dyn Progress);

impl Progress for Quiet<'_> {
    fn warn(&self, text: &str) {
        self.0.warn(text);
    }

    fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }
}

impl<'a> Lab<'a> {
    /// `total` is the sum of the weights that [`Lab::finished`] will be told.
    pub fn new(seeds: &'a [u64], factor: f64, total: u64, progress: &'a dyn Progress) -> Self {
        progress.begin("claims", Some(total), "parts");
        Self { seeds, factor, progress, started: Instant::now(), done: 0.into(), total }
    }

    /// Steps of a run that is `full` steps long.
    pub fn steps(&self, full: u64) -> u64 {
        ((full as f64 * self.factor) as u64).max(10)
    }

    /// What is under way.
    pub fn status(&self, text: &str) {
        self.progress.status(text);
    }

    /// A part of that weight is over.
    pub fn finished(&self, what: &str, weight: u64) {
        self.progress.advance(weight);
        self.done.set(self.done.get() + weight);
        let spent = self.started.elapsed().as_secs_f64();
        let left = spent * self.total.saturating_sub(self.done.get()) as f64 / self.done.get().max(1) as f64;
        self.progress.note(&format!("{what}; {spent:.0} s so far, about {left:.0} s left"));
    }

    /// Ends the bar.
    pub fn end(&self) {
        self.progress.end();
    }

    /// Trains all learners from one pass; returns their dictionaries in order, and the seconds it took.
    ///
    /// # Errors
    /// Impossible settings, divergence, cancellation.
    pub fn train(&self, source: &mut dyn RowSource, seed: u64, toy: &Toy, learners: &[SaeConfig]) -> Result<(Vec<Dictionary>, f64)> {
        self.train_with(source, seed, toy, learners, &|_| {})
    }

    /// As [`Lab::train`], with the loop's settings changed by `adjust` at the end.
    ///
    /// # Errors
    /// As [`Lab::train`].
    pub fn train_with(
        &self,
        source: &mut dyn RowSource,
        seed: u64,
        toy: &Toy,
        learners: &[SaeConfig],
        adjust: &dyn Fn(&mut TrainConfig),
    ) -> Result<(Vec<Dictionary>, f64)> {
        let root = tempfile::tempdir().map_err(|e| Error::io("create a folder in", std::env::temp_dir(), e))?;
        let steps = self.steps(toy.steps);
        let mut config = TrainConfig {
            n_tokens: steps * toy.batch as u64,
            batch: toy.batch,
            lr: toy.lr,
            warmup_fraction: (toy.warmup as f64 / toy.steps as f64).min(0.8),
            decay_fraction: 0.2,
            beta1: toy.betas.0,
            beta2: toy.betas.1,
            seed,
            init_rows: toy.init_rows,
            log_every_steps: steps,
            checkpoint_seconds: 1e9,
            ..TrainConfig::default()
        };
        adjust(&mut config);
        let member = |(i, sae): (usize, &SaeConfig)| -> Result<Member> {
            let sae = sae.resolve(source.width(), config.n_tokens)?;
            let name = format!("m{i}");
            Ok(Member {
                dir: root.path().join(&name),
                name,
                train: config.resolve(sae.d_sae(), config.n_tokens)?,
                sae,
                config_toml: String::new(),
                provenance: Provenance::default(),
                beginning: Beginning::default(),
                device: candle_core::Device::Cpu,
            })
        };
        let members: Vec<Member> = learners.iter().enumerate().map(member).collect::<Result<_>>()?;
        let trained = train::train(members, source, root.path(), Mode::Fresh, &Quiet(self.progress)).map_err(cancelled)?;
        let load = |m: &train::TrainedMember| Dictionary::load(&m.dictionary);
        Ok((trained.members.iter().map(load).collect::<Result<_>>()?, trained.seconds))
    }

    /// Scores on one batch of rows; with the generator, against the truth too.
    ///
    /// # Errors
    /// As [`score::score_planted`].
    pub fn score(&self, dictionaries: &[&Dictionary], rows: &Batch, truth: Option<&Planted>) -> Result<Vec<Scores>> {
        if self.progress.is_cancelled() {
            return Err(Error::Cancelled { doing: "the claims" });
        }
        score::score_planted(dictionaries, [Ok(rows.clone())], &ScoreConfig::default(), truth, &Silent)
    }

    /// Untrained dictionaries of planted rows, by name: `random`, `pca`, `kmeans`, at `k` latents per row.
    ///
    /// # Errors
    /// As [`baselines::baselines`].
    pub fn baselines(&self, planted: &Planted, d_sae: usize, k: usize, seed: u64) -> Result<Vec<(String, Dictionary)>> {
        let config = BaselineConfig { k, d_sae, seed, ..BaselineConfig::default() };
        let sample = PlantedRows::new(planted).next_rows(config.sample_rows)?;
        baselines::baselines([Ok(sample)], &config, &Silent)
    }

    /// A metric of several dictionaries on the same rows; NaN where it is undefined.
    ///
    /// # Errors
    /// As [`Lab::score`].
    pub fn metric(&self, id: &str, dictionaries: &[Dictionary], rows: &Batch) -> Result<Vec<f64>> {
        let refs: Vec<&Dictionary> = dictionaries.iter().collect();
        Ok(self.score(&refs, rows, None)?.iter().map(|s| figure(s, id)).collect())
    }
}

/// A figure of a score; NaN where it is undefined.
pub fn figure(scores: &Scores, id: &str) -> f64 {
    scores.metrics.get(id).copied().unwrap_or(f64::NAN)
}

/// There is nothing to resume here.
fn cancelled(error: Error) -> Error {
    match error {
        Error::Interrupted { .. } => Error::Cancelled { doing: "the claims" },
        other => other,
    }
}
