//! Cosines of atoms with features: nearest of each, and the one-to-one matching (MCC).

use candle_core::Tensor;
use rayon::prelude::*;

use super::assignment::{assign, is_exact};
use crate::corpus::planted::Truth;
use crate::error::{Error, Result};
use crate::rng::Rng;
use crate::score::decoder::products;

/// Atoms whose cosines are computed at a time.
const BLOCK: usize = 256;

/// A mean correlation coefficient.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mcc {
    /// Mean |cos| of the matched pairs.
    pub mcc: f64,
    /// Is the matching optimal, or greedy?
    pub is_exact: bool,
}

/// |cos| of every atom with every feature, and what is nearest.
pub(super) struct Cosines {
    n: usize,
    g: usize,
    /// `[n, G]`.
    abs: Vec<f32>,
    /// Feature with the largest |cos| of each atom, `[n]`; the lower number wins ties.
    pub(super) nearest_feature: Vec<u32>,
    /// Largest |cos| of each feature with an atom, `[G]`.
    pub(super) best_of_feature: Vec<f32>,
}

impl Cosines {
    /// `atoms` are unit rows `[n, d]`.
    pub(super) fn new(atoms: &[f32], truth: &Truth) -> Self {
        Self::of(atoms, &truth.features, truth.d)
    }

    fn of(atoms: &[f32], features: &[f32], d: usize) -> Self {
        let (n, g) = (atoms.len() / d, features.len() / d);
        let mut abs = vec![0f32; n * g];
        abs.par_chunks_mut(BLOCK * g).zip(atoms.par_chunks(BLOCK * d)).for_each(|(out, rows)| {
            products(rows, features, d, out);
            // Rounding may pass 1 by a bit or two.
            out.iter_mut().for_each(|v| *v = v.abs().min(1.0));
        });
        let mut best_of_feature = vec![0f32; g];
        let nearest = |line: &[f32]| line.iter().enumerate().fold((0, f32::NEG_INFINITY), |b, (i, &v)| if v > b.1 { (i, v) } else { b }).0;
        let nearest_feature = abs.chunks_exact(g).map(|line| nearest(line) as u32).collect();
        for line in abs.chunks_exact(g) {
            best_of_feature.iter_mut().zip(line).for_each(|(b, &c)| *b = b.max(c));
        }
        Self { n, g, abs, nearest_feature, best_of_feature }
    }

    pub(super) fn n_distinct_nearest(&self) -> usize {
        let mut nearest = self.nearest_feature.clone();
        nearest.sort_unstable();
        nearest.dedup();
        nearest.len()
    }

    pub(super) fn mcc(&self) -> Mcc {
        let matched = assign(&self.abs, self.n, self.g);
        let sum: f64 = matched.iter().enumerate().filter_map(|(i, c)| c.map(|c| f64::from(self.abs[i * self.g + c as usize]))).sum();
        Mcc { mcc: sum / self.n.min(self.g) as f64, is_exact: is_exact(self.n, self.g) }
    }
}

/// Unit rows of a matrix `[n, d]`, f32; a row of zeros stays.
pub(super) fn unit_rows(w: &Tensor) -> Result<Vec<f32>> {
    let (_, d) = w.dims2()?;
    let mut rows: Vec<f32> = w.to_dtype(candle_core::DType::F32)?.flatten_all()?.to_vec1()?;
    rows.par_chunks_mut(d).for_each(normalise);
    Ok(rows)
}

fn normalise(row: &mut [f32]) {
    let norm = dot(row, row).sqrt();
    if norm > 0.0 {
        row.iter_mut().for_each(|v| *v = (f64::from(*v) / norm) as f32);
    }
}

/// In f64.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// MCC of atoms `[n, d]` with the features of a truth; for a dictionary at initialisation, compare with [`mcc_null`].
///
/// # Errors
/// Another width.
pub fn mcc(atoms: &Tensor, truth: &Truth) -> Result<Mcc> {
    let (_, d) = atoms.dims2()?;
    if d != truth.d {
        let help = "compare a dictionary with the features of the rows that it reads".into();
        return Err(Error::Width { what: "the atoms".into(), expected: truth.d, got: d, help });
    }
    Ok(Cosines::new(&unit_rows(atoms)?, truth).mcc())
}

/// MCC that chance gives: `n_latents` against `n_features` random unit vectors in `d` dimensions. An initial dictionary far above it has
/// seen the truth (one seed used for data and initialisation, say).
pub fn mcc_null(d: usize, n_latents: usize, n_features: usize, seed: u64) -> Mcc {
    let draw = |name: &str, n: usize| {
        let mut rng = Rng::stream(seed, name, 0);
        let mut rows: Vec<f32> = (0..n * d).map(|_| rng.normal() as f32).collect();
        rows.chunks_exact_mut(d).for_each(normalise);
        rows
    };
    Cosines::of(&draw("mcc null atoms", n_latents), &draw("mcc null features", n_features), d).mcc()
}
