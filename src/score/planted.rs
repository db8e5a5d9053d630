//! A dictionary against the truth: rows were planted (`corpus::planted`), so the features behind them are known.
//!
//! * Directions: atoms against features, matched one to one by |cos| (MCC), or each with its nearest (recovery, uniqueness).
//! * Activity: each latent as a detector of its nearest feature (precision, recall, F1).
//! * Structure: latents matched with features by *activations* (the inner product of codes, each divided by its largest), as the MP-SAE
//!   paper does: absorption, and the deviation of the Gram matrix within and across levels.
//!
//! Formulas in docs/metrics.md. Not for: making the rows (`corpus::planted`) or choosing them (the caller passes held-out ones).

mod assignment;
mod matching;

use candle_core::Tensor;

pub use assignment::{assign, is_exact};
pub use matching::{mcc, mcc_null, Mcc};

use super::{Definition, Metrics};
use crate::codes::Codes;
use crate::corpus::planted::{Planted, Truth};
use crate::error::Result;
use matching::Cosines;

/// Entries of latents x features up to which activations are matched (128 MiB of sums); above, figures that need it are undefined.
const MAX_PAIRS: usize = 1 << 24;

const fn definition(id: &'static str, unit: &'static str, formula: &'static str, whose: &'static str) -> Definition {
    Definition { id, unit, formula, whose }
}

/// What is computed here, for planted rows only. `D_i` is an atom, `f_g` a feature, n latents, G features.
pub const DEFINITIONS: &[Definition] = &[
    definition(
        "mcc",
        "cosine",
        "mean of |cos(D_i, f_g)| over the min(n, G) pairs of the one-to-one matching with the largest sum",
        "SynthSAEBench, SAELens (mean correlation coefficient, MCC)",
    ),
    definition("mcc_is_exact", "0 or 1", "1: the matching of `mcc` is optimal; 0: greedy, for min(n, G)^2 max(n, G) > 1e12", "Lapidary"),
    definition("uniqueness", "of latents", "number of different argmax_g |cos(D_i, f_g)| / n", "SynthSAEBench, SAELens"),
    definition("recovered_08", "of features", "share of features with max_i |cos(D_i, f_g)| > 0.8", "common"),
    definition("recovered_09", "of features", "share of features with max_i |cos(D_i, f_g)| > 0.9", "common"),
    definition(
        "precision",
        "ratio",
        "mean over latents of P(f_g on | latent fires), g = argmax |cos(D_i, f_g)|; dead latents count 0",
        "SynthSAEBench, SAELens",
    ),
    definition(
        "recall",
        "ratio",
        "mean over latents of P(latent fires | f_g on), g = argmax |cos(D_i, f_g)|; dead latents count 0",
        "SynthSAEBench, SAELens",
    ),
    definition("f1_mean", "ratio", "mean over latents of the harmonic mean of their precision and recall", "SynthSAEBench, SAELens (F1)"),
    definition("f1_p50", "ratio", "median over latents (nearest rank) of the same", "Lapidary"),
    definition("f1_above_08", "of latents", "share of latents whose F1 is above 0.8", "Lapidary"),
    definition(
        "f1_features",
        "ratio",
        "mean over features of the largest F1 of a latent whose nearest feature it is; 0 where there is none",
        "Lapidary",
    ),
    definition("true_l0", "features/row", "mean over rows of the number of features that are on", "common"),
    definition(
        "absorption",
        "cosine",
        "mean over features with a parent of cos(D_m(child), f_parent); m by activations: one to one, largest sum of \
         sum_rows (z_i / max z_i) (c_g / max c_g); features whose latent never fires with them are left out",
        "MP-SAE paper",
    ),
    definition("absorption_children", "features", "number of features behind `absorption`", "Lapidary"),
    definition(
        "gram_hierarchical",
        "squared",
        "mean over pairs of features of different levels of (cos(D_m(a), D_m(b)) - f_a . f_b)^2; m as in `absorption`",
        "MP-SAE paper (hierarchical MSE; f_a . f_b is 0 there)",
    ),
    definition(
        "gram_flat",
        "squared",
        "mean over pairs of different features of one level of (cos(D_m(a), D_m(b)) - f_a . f_b)^2; m as in `absorption`",
        "MP-SAE paper (flat MSE)",
    ),
];

/// What one dictionary did on planted rows, under way.
pub(super) struct Tally {
    cosines: Cosines,
    /// Unit atoms, `[n, d]`.
    atoms: Vec<f32>,
    rows: u64,
    /// Rows on which each latent fires, and fires together with its nearest feature, `[n]`.
    fires: Vec<u64>,
    together: Vec<u64>,
    /// Rows on which each feature is on, `[G]`.
    on: Vec<u64>,
    max_code: Vec<f64>,
    max_feature: Vec<f64>,
    /// `sum_rows z_i c_g`, `[n, G]`; empty when there are too many.
    products: Vec<f64>,
    /// On or off on the row at hand, `[G]`.
    is_on: Vec<bool>,
}

impl Tally {
    /// `w_dec` is `[n, d]`.
    pub(super) fn new(w_dec: &Tensor, truth: &Truth) -> Result<Self> {
        let (n, _) = w_dec.dims2()?;
        let g = truth.len();
        let atoms = matching::unit_rows(w_dec)?;
        let cosines = Cosines::new(&atoms, truth);
        Ok(Self {
            cosines,
            atoms,
            rows: 0,
            fires: vec![0; n],
            together: vec![0; n],
            on: vec![0; g],
            max_code: vec![0.0; n],
            max_feature: vec![0.0; g],
            products: if n.saturating_mul(g) <= MAX_PAIRS { vec![0.0; n * g] } else { Vec::new() },
            is_on: vec![false; g],
        })
    }

    /// Takes in rows: the dictionary's codes and the true ones.
    pub(super) fn update(&mut self, codes: &Codes, truth: &Codes) {
        let n_features = self.on.len();
        self.rows += codes.n_rows() as u64;
        for r in 0..codes.n_rows() {
            let (latents, values) = codes.row(r);
            let (features, magnitudes) = truth.row(r);
            for (&g, &c) in features.iter().zip(magnitudes) {
                self.is_on[g as usize] = true;
                self.on[g as usize] += 1;
                self.max_feature[g as usize] = self.max_feature[g as usize].max(f64::from(c));
            }
            for (&i, &z) in latents.iter().zip(values) {
                let i = i as usize;
                self.fires[i] += 1;
                self.together[i] += u64::from(self.is_on[self.cosines.nearest_feature[i] as usize]);
                self.max_code[i] = self.max_code[i].max(f64::from(z.abs()));
                if !self.products.is_empty() {
                    let line = &mut self.products[i * n_features..(i + 1) * n_features];
                    for (&g, &c) in features.iter().zip(magnitudes) {
                        line[g as usize] += f64::from(z) * f64::from(c);
                    }
                }
            }
            features.iter().for_each(|&g| self.is_on[g as usize] = false);
        }
    }

    /// The figures, in the order of [`DEFINITIONS`].
    pub(super) fn finish(self, truth: &Truth) -> Metrics {
        let (n, g) = (self.fires.len(), self.on.len());
        let ratio = |a: u64, b: u64| if b > 0 { a as f64 / b as f64 } else { 0.0 };
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let nearest = &self.cosines.nearest_feature;
        let precision: Vec<f64> = (0..n).map(|i| ratio(self.together[i], self.fires[i])).collect();
        let recall: Vec<f64> = (0..n).map(|i| ratio(self.together[i], self.on[nearest[i] as usize])).collect();
        // 2 P R / (P + R) = 2 TP / (fires + on).
        let f1: Vec<f64> = (0..n).map(|i| 2.0 * ratio(self.together[i], self.fires[i] + self.on[nearest[i] as usize])).collect();
        let mut by_feature = vec![0f64; g];
        f1.iter().zip(nearest).for_each(|(&f, &g)| by_feature[g as usize] = by_feature[g as usize].max(f));
        let mut sorted = f1.clone();
        sorted.sort_by(f64::total_cmp);
        let matched = self.cosines.mcc();
        let above = |bound: f32| self.cosines.best_of_feature.iter().filter(|&&c| c > bound).count() as f64 / g as f64;
        let structure = self.structure(truth);
        let values = [
            matched.mcc,
            f64::from(u8::from(matched.is_exact)),
            self.cosines.n_distinct_nearest() as f64 / n as f64,
            above(0.8),
            above(0.9),
            mean(&precision),
            mean(&recall),
            mean(&f1),
            sorted[super::nearest_rank(0.5, n as u64) as usize],
            f1.iter().filter(|&&f| f > 0.8).count() as f64 / n as f64,
            mean(&by_feature),
            self.on.iter().sum::<u64>() as f64 / self.rows as f64,
            structure.absorption,
            structure.children as f64,
            structure.across,
            structure.within,
        ];
        DEFINITIONS.iter().zip(values).map(|(d, v)| (d.id.to_string(), v)).collect()
    }

    /// Absorption and Gram errors, by the matching of activations.
    fn structure(&self, truth: &Truth) -> Structure {
        let (n, g, d) = (self.fires.len(), self.on.len(), truth.d);
        if self.products.is_empty() || !is_exact(n, g) {
            return Structure { absorption: f64::NAN, children: 0, across: f64::NAN, within: f64::NAN };
        }
        let norm = |i: usize, f: usize| self.max_code[i] * self.max_feature[f];
        let mut weight = vec![0f32; n * g];
        for (i, line) in weight.chunks_exact_mut(g).enumerate() {
            for (f, w) in line.iter_mut().enumerate().filter(|(f, _)| norm(i, *f) > 0.0) {
                *w = (self.products[i * g + f] / norm(i, f) / self.rows as f64) as f32;
            }
        }
        let mut latent_of = vec![None; g];
        for (i, f) in assign(&weight, n, g).into_iter().enumerate() {
            if let Some(f) = f.filter(|&f| weight[i * g + f as usize] > 0.0) {
                latent_of[f as usize] = Some(i);
            }
        }
        let atom = |i: usize| &self.atoms[i * d..(i + 1) * d];
        let levels = truth.levels();
        let known: Vec<(usize, usize)> = latent_of.iter().enumerate().filter_map(|(f, i)| Some((f, (*i)?))).collect();
        let (mut absorbed, mut children) = (0.0, 0);
        let (mut across, mut within) = (Mean::default(), Mean::default());
        for (k, &(f, i)) in known.iter().enumerate() {
            if let Some(parent) = truth.parents[f] {
                absorbed += matching::dot(atom(i), truth.feature(parent as usize));
                children += 1;
            }
            for &(other, j) in &known[..k] {
                let error = matching::dot(atom(i), atom(j)) - matching::dot(truth.feature(f), truth.feature(other));
                if levels[f] == levels[other] { &mut within } else { &mut across }.push(error * error);
            }
        }
        let absorption = if children > 0 { absorbed / children as f64 } else { f64::NAN };
        Structure { absorption, children, across: across.value(), within: within.value() }
    }
}

struct Structure {
    absorption: f64,
    children: usize,
    across: f64,
    within: f64,
}

#[derive(Default)]
struct Mean {
    n: u64,
    sum: f64,
}

impl Mean {
    fn push(&mut self, value: f64) {
        self.n += 1;
        self.sum += value;
    }

    /// NaN when nothing was taken.
    fn value(&self) -> f64 {
        self.sum / self.n as f64
    }
}

/// Are these the rows that the generator makes? Compares one of them, as far as 8 bits of mantissa go.
pub(super) fn is_row_of(planted: &Planted, row: u64, x: &[f32]) -> bool {
    let made = planted.rows(row..row.saturating_add(1)).x;
    let largest = made.iter().fold(0f32, |m, v| m.max(v.abs()));
    made.len() == x.len() && made.iter().zip(x).all(|(a, b)| (a - b).abs() <= largest / 128.0)
}

#[cfg(test)]
mod tests;
