//! Fraction of variance unexplained, and its relatives that are well defined on a whole set.

use super::{Block, Definition, Kind, LatentStats, Metric, Moments};

/// FVU, explained variance, and dictionary_learning's fraction. The mean of the scored rows is the zero of the scale: predicting
/// it for every row scores FVU 1.
pub const KIND: Kind = Kind {
    definitions: &[
        Definition {
            id: "fvu",
            unit: "ratio",
            formula: "sum ||x - xhat||^2 / sum ||x - mean x||^2; the mean is that of all scored rows",
            whose: "Lapidary",
        },
        Definition { id: "explained_variance", unit: "ratio", formula: "1 - fvu", whose: "Lapidary; SAELens from 6.54 on" },
        Definition {
            id: "frac_variance_explained_dl",
            unit: "ratio",
            formula: "1 - sum_d var(x - xhat)_d / sum_d var(x)_d over all scored rows; blind to a constant offset",
            whose: "dictionary_learning (there per batch)",
        },
    ],
    new: || Box::new(Fvu::default()),
};

#[derive(Default)]
struct Fvu {
    sq_error: f64,
    x: Moments,
    residual: Moments,
}

impl Metric for Fvu {
    fn update(&mut self, block: &Block<'_>) {
        self.sq_error += block.sum(|r| r.sq_error);
        self.x.merge(block.x);
        self.residual.merge(&block.residual);
    }

    fn values(&self, _latents: &LatentStats) -> Vec<f64> {
        let total = self.x.total();
        let fvu = self.sq_error / total;
        vec![fvu, 1.0 - fvu, 1.0 - self.residual.total() / total]
    }
}
