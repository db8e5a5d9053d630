//! Does the reconstruction point where the activation points, and is it as long?

use super::error::Mean;
use super::{Block, Definition, Kind, LatentStats, Metric};

/// Cosine, length ratio, shrinkage.
pub const KIND: Kind = Kind {
    definitions: &[
        Definition {
            id: "cosine",
            unit: "cosine",
            formula: "mean over rows of <x, xhat> / (||x|| ||xhat||); a row with a zero norm counts 0",
            whose: "common (SAELens `cossim`)",
        },
        Definition {
            id: "l2_ratio",
            unit: "ratio",
            formula: "mean over rows of ||xhat|| / ||x||; rows of zero norm left out",
            whose: "common (SAELens `l2_ratio`)",
        },
        Definition {
            id: "relative_reconstruction_bias",
            unit: "ratio",
            formula: "sum ||xhat||^2 / sum <x, xhat>; below 1 means shrinkage",
            whose: "Gated SAE paper; SAELens, SAEBench",
        },
    ],
    new: || Box::new(Direction::default()),
};

#[derive(Default)]
struct Direction {
    rows: u64,
    cosine: f64,
    l2_ratio: Mean,
    sq_x_hat: f64,
    dot: f64,
}

impl Metric for Direction {
    fn update(&mut self, block: &Block<'_>) {
        self.rows += block.n as u64;
        for row in &block.rows {
            let norms = (row.sq_x * row.sq_x_hat).sqrt();
            if norms > 0.0 {
                self.cosine += row.dot / norms;
            }
            self.l2_ratio.push(row.sq_x_hat.sqrt(), row.sq_x.sqrt());
            self.sq_x_hat += row.sq_x_hat;
            self.dot += row.dot;
        }
    }

    fn values(&self, _latents: &LatentStats) -> Vec<f64> {
        vec![self.cosine / self.rows as f64, self.l2_ratio.value(), self.sq_x_hat / self.dot]
    }
}
