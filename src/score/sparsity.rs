//! How many latents a row uses: the mean and the distribution.

use super::{nearest_rank, Block, Definition, Kind, LatentStats, Metric};

/// L0 of rows. BatchTopK and threshold dictionaries have a spread; a mean alone hides rows without a single latent.
pub const KIND: Kind = Kind {
    definitions: &[
        Definition { id: "l0", unit: "latents/row", formula: "mean over rows of the number of non-zero codes", whose: "common" },
        Definition { id: "l0_min", unit: "latents/row", formula: "smallest number of non-zero codes of a row", whose: "Lapidary" },
        Definition {
            id: "l0_p05",
            unit: "latents/row",
            formula: "5 % quantile over rows (nearest rank) of the number of non-zero codes",
            whose: "Lapidary",
        },
        Definition { id: "l0_p50", unit: "latents/row", formula: "median over rows (nearest rank)", whose: "Lapidary" },
        Definition { id: "l0_p95", unit: "latents/row", formula: "95 % quantile over rows (nearest rank)", whose: "Lapidary" },
        Definition { id: "l0_max", unit: "latents/row", formula: "largest number of non-zero codes of a row", whose: "Lapidary" },
    ],
    new: || Box::new(L0::default()),
};

#[derive(Default)]
struct L0 {
    /// `counts[l]` rows have l latents.
    counts: Vec<u64>,
}

impl Metric for L0 {
    fn update(&mut self, block: &Block<'_>) {
        for span in block.codes.indptr.windows(2) {
            let l0 = span[1] - span[0];
            if l0 >= self.counts.len() {
                self.counts.resize(l0 + 1, 0);
            }
            self.counts[l0] += 1;
        }
    }

    fn values(&self, _latents: &LatentStats) -> Vec<f64> {
        let rows: u64 = self.counts.iter().sum();
        let total: u64 = self.counts.iter().enumerate().map(|(l0, n)| l0 as u64 * n).sum();
        let quantile = |q: f64| {
            let rank = nearest_rank(q, rows);
            let mut seen = 0;
            let found = self.counts.iter().position(|n| {
                seen += n;
                seen > rank
            });
            found.map_or(f64::NAN, |l0| l0 as f64)
        };
        vec![total as f64 / rows as f64, quantile(0.0), quantile(0.05), quantile(0.5), quantile(0.95), quantile(1.0)]
    }
}
