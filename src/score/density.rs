//! How often each latent fires: quantiles over latents, and the dead and the dense.

use super::{nearest_rank, Definition, Kind, LatentStats, Metric};

/// Firing densities. "Dead" and "alive" are meant over the scored rows, whose number stands in the head of the table: a latent that
/// is dead over ten thousand rows may fire once in a million.
pub const KIND: Kind = Kind {
    definitions: &[
        Definition { id: "alive", unit: "latents", formula: "number of latents that fire on at least one scored row", whose: "common" },
        Definition {
            id: "dead_fraction",
            unit: "of latents",
            formula: "share of latents that fire on no scored row",
            whose: "common; peers count over 10M tokens or 1000 steps of training",
        },
        Definition {
            id: "dense_fraction",
            unit: "of latents",
            formula: "share of latents with density > 0.1",
            whose: "SAEBench (`freq_over_10_percent`)",
        },
        Definition {
            id: "density_p05",
            unit: "of rows",
            formula: "5 % quantile over all latents (nearest rank) of density = rows on which the latent fires / rows",
            whose: "Lapidary",
        },
        Definition { id: "density_p50", unit: "of rows", formula: "median over all latents (nearest rank) of density", whose: "Lapidary" },
        Definition {
            id: "density_p95",
            unit: "of rows",
            formula: "95 % quantile over all latents (nearest rank) of density",
            whose: "Lapidary",
        },
        Definition { id: "density_max", unit: "of rows", formula: "largest density of a latent", whose: "Lapidary" },
    ],
    new: || Box::new(Density),
};

/// Reads the table of latents; adds up nothing itself.
struct Density;

impl Metric for Density {
    fn values(&self, latents: &LatentStats) -> Vec<f64> {
        let d_sae = latents.len();
        let mut fires = latents.fires.clone();
        fires.sort_unstable();
        let quantile = |q: f64| fires.get(nearest_rank(q, d_sae as u64) as usize).map_or(f64::NAN, |&f| f as f64 / latents.rows as f64);
        let count = |which: &dyn Fn(usize) -> bool| (0..d_sae).filter(|&j| which(j)).count() as f64;
        let alive = count(&|j| !latents.is_dead(j));
        vec![
            alive,
            1.0 - alive / d_sae as f64,
            count(&|j| latents.is_dense(j)) / d_sae as f64,
            quantile(0.05),
            quantile(0.5),
            quantile(0.95),
            quantile(1.0),
        ]
    }
}
