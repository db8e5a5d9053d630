//! Orthogonal matching pursuit: after each step, least squares on the support by an incremental Cholesky factor in f64.

use candle_core::Tensor;

use super::pursuit::{best_atoms, gather, over_blocks, Row};
use super::storage::with_slice;
use crate::error::Result;
use crate::kernels::{PursuitPath, PursuitRule};

/// A residual of this share of the row's norm is rounding.
const NOISE: f64 = 1e-6;
/// Squared distance of an atom from the span of the others, as a share of its squared norm, below which it depends on them.
const DEPENDENT: f64 = 1e-9;

/// What a row has besides its path.
struct Fit {
    /// The row.
    x: Vec<f32>,
    sq_norm: f64,
    /// Rows of the lower Cholesky factor of the support's Gram matrix.
    factor: Vec<Vec<f64>>,
    /// `factor y = atoms x`.
    y: Vec<f64>,
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

impl Fit {
    fn new(x: &[f32]) -> Self {
        Self { sq_norm: dot(x, x), x: x.to_vec(), factor: Vec::new(), y: Vec::new() }
    }

    /// Adds atom `j`, refits, and leaves coefficients and residual in `row`; false when the atom depends on the support.
    fn add(&mut self, row: &mut Row<'_>, j: usize, atoms: &[f32]) -> bool {
        let d = self.x.len();
        let atom = |j: usize| &atoms[j * d..(j + 1) * d];
        let new = atom(j);
        let mut line: Vec<f64> = Vec::with_capacity(row.taken + 1);
        for (s, factor) in self.factor.iter().enumerate() {
            let below: f64 = factor.iter().zip(&line).map(|(l, w)| l * w).sum();
            line.push((dot(atom(row.indices[s] as usize), new) - below) / factor[s]);
        }
        let sq = dot(new, new);
        let rest = sq - line.iter().map(|w| w * w).sum::<f64>();
        if rest.is_nan() || rest <= DEPENDENT * sq {
            return false;
        }
        let diagonal = rest.sqrt();
        self.y.push((dot(new, &self.x) - line.iter().zip(&self.y).map(|(w, y)| w * y).sum::<f64>()) / diagonal);
        line.push(diagonal);
        self.factor.push(line);
        row.indices[row.taken] = j as u32;
        row.taken += 1;

        let mut c = self.y.clone();
        for s in (0..row.taken).rev() {
            c[s] /= self.factor[s][s];
            let (head, tail) = c.split_at_mut(s);
            head.iter_mut().zip(&self.factor[s]).for_each(|(c, l)| *c -= l * tail[0]);
        }
        let mut left: Vec<f64> = self.x.iter().map(|&v| f64::from(v)).collect();
        for (s, &c) in c.iter().enumerate() {
            row.values[s] = c as f32;
            left.iter_mut().zip(atom(row.indices[s] as usize)).for_each(|(r, a)| *r -= c * f64::from(*a));
        }
        row.residual.iter_mut().zip(&left).for_each(|(r, l)| *r = *l as f32);
        true
    }
}

/// See [`crate::kernels::orthogonal_pursuit`].
pub fn orthogonal_pursuit(x: &Tensor, atoms: &Tensor, rule: &PursuitRule) -> Result<PursuitPath> {
    with_slice(atoms, |atoms: &[f32]| over_blocks(x, rule, |rows, d| block(rows, d, atoms, rule)))?
}

fn block(rows: &mut [Row<'_>], d: usize, atoms: &[f32], rule: &PursuitRule) {
    let mut fits: Vec<Fit> = rows.iter().map(|r| Fit::new(r.residual)).collect();
    let mut residuals = Vec::new();
    loop {
        let alive: Vec<usize> = (0..rows.len()).filter(|&q| rows[q].live).collect();
        let mut live = gather(rows, &mut residuals);
        let n = live.len();
        if n == 0 {
            break;
        }
        // An atom is not taken twice: its inner product is 0 but for rounding.
        let best = best_atoms(&residuals, n, d, atoms, rule.pick, |first, pre| {
            let panel = first..first + pre.len() / n;
            for (q, row) in live.iter().enumerate() {
                for &j in row.indices[..row.taken].iter().filter(|&&j| panel.contains(&(j as usize))) {
                    pre[(j as usize - first) * n + q] = f32::NAN;
                }
            }
        });
        for ((row, best), &q) in live.iter_mut().zip(best).zip(&alive) {
            let fit = &mut fits[q];
            let added = best.is_some_and(|j| fit.add(row, j, atoms));
            let left = dot(row.residual, row.residual);
            row.live = added && row.taken < rule.steps && !row.is_small() && left > NOISE * NOISE * fit.sq_norm;
        }
    }
}
