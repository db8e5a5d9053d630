//! Size of the error: squared, per element, per token, and relative to the row.

use super::{Block, Definition, Kind, LatentStats, Metric};

/// Mean squared errors. Three libraries print three quantities as "mse", so each says per what.
pub const KIND: Kind = Kind {
    definitions: &[
        Definition { id: "mse", unit: "squared/element", formula: "sum ||x - xhat||^2 / (rows * d_in)", whose: "Lapidary" },
        Definition { id: "mse_per_token", unit: "squared/row", formula: "sum ||x - xhat||^2 / rows", whose: "SAELens (`mse`)" },
        Definition {
            id: "nmse",
            unit: "ratio",
            formula: "mean over rows of ||x - xhat||^2 / ||x||^2; rows of zero norm left out",
            whose: "openai (`normalized_mean_squared_error`)",
        },
        Definition {
            id: "fvu_row",
            unit: "ratio",
            formula: "mean over rows of var_dims(x - xhat) / var_dims(x); rows of zero variance left out",
            whose: "MSAE (`fvu`)",
        },
    ],
    new: || Box::new(SquaredError::default()),
};

#[derive(Default)]
struct SquaredError {
    rows: u64,
    d: usize,
    sq_error: f64,
    nmse: Mean,
    fvu_row: Mean,
}

/// A running mean over the rows for which a ratio exists.
#[derive(Default)]
pub(super) struct Mean {
    n: u64,
    sum: f64,
}

impl Mean {
    /// Takes `numerator / denominator`, unless the denominator is 0.
    pub(super) fn push(&mut self, numerator: f64, denominator: f64) {
        if denominator > 0.0 {
            self.n += 1;
            self.sum += numerator / denominator;
        }
    }

    /// NaN when nothing was taken.
    pub(super) fn value(&self) -> f64 {
        self.sum / self.n as f64
    }
}

impl Metric for SquaredError {
    fn update(&mut self, block: &Block<'_>) {
        self.rows += block.n as u64;
        self.d = block.d;
        for row in &block.rows {
            self.sq_error += row.sq_error;
            self.nmse.push(row.sq_error, row.sq_x);
            self.fvu_row.push(row.var_error, row.var_x);
        }
    }

    fn values(&self, _latents: &LatentStats) -> Vec<f64> {
        let per_token = self.sq_error / self.rows as f64;
        vec![per_token / self.d as f64, per_token, self.nmse.value(), self.fvu_row.value()]
    }
}
