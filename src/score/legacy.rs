//! The peers' batch-dependent or mistaken forms, under their own names, so that published numbers can be compared with like.
//!
//! A batch here is a block of `ScoreConfig::block_rows` rows (4096 by default) in the order of the stream; a last block shorter than
//! that is left out of the batch means. Never use these to choose between dictionaries.

use super::{Block, Definition, Kind, LatentStats, Metric};

/// SAELens' and SAEBench's explained variance, sparsify's FVU.
pub const KIND: Kind = Kind {
    definitions: &[
        Definition {
            id: "explained_variance_legacy",
            unit: "ratio",
            formula: "mean over tokens of 1 - ||x - xhat||^2 / ||x - batch mean||^2; batches of 4096 rows",
            whose: "SAELens and SAEBench (`explained_variance_legacy`)",
        },
        Definition {
            id: "explained_variance_saebench",
            unit: "ratio",
            formula: "1 - E||x - xhat||^2 / (E||x||^2 - (E||x||^2 / d_in)^2); the denominator is no variance",
            whose: "SAEBench 0.6, SAELens 5.11 to 6.18 (`explained_variance`)",
        },
        Definition {
            id: "fvu_sparsify",
            unit: "ratio",
            formula: "mean over batches of sum ||x - xhat||^2 / sum ||x - batch mean||^2; batches of 4096 rows",
            whose: "sparsify (`fvu`)",
        },
    ],
    new: || Box::new(Legacy::default()),
};

#[derive(Default)]
struct Legacy {
    rows: u64,
    d: usize,
    sq_error: f64,
    sq_x: f64,
    tokens: u64,
    legacy: f64,
    batches: u64,
    sparsify: f64,
}

impl Metric for Legacy {
    fn update(&mut self, block: &Block<'_>) {
        self.rows += block.n as u64;
        self.d = block.d;
        let sq_error = block.sum(|r| r.sq_error);
        self.sq_error += sq_error;
        self.sq_x += block.sum(|r| r.sq_x);
        if block.is_full {
            self.tokens += block.n as u64;
            self.legacy += block.sum(|r| 1.0 - r.sq_error / r.sq_centred);
            self.batches += 1;
            self.sparsify += sq_error / block.x.total();
        }
    }

    fn values(&self, _latents: &LatentStats) -> Vec<f64> {
        let n = self.rows as f64;
        let mean_sq = self.sq_x / n;
        let saebench = 1.0 - self.sq_error / n / (mean_sq - (mean_sq / self.d as f64).powi(2));
        vec![self.legacy / self.tokens as f64, saebench, self.sparsify / self.batches as f64]
    }
}
