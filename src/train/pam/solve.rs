//! The decoder that fits best, jointly with its bias, at given codes:
//!
//! ```text
//! F(D, b) = sum_r |x_r - z_r D - b|^2 + ridge |D|^2 + beta |b|^2 + mu |D - D^t|^2 + nu |b - b^t|^2
//! s = beta + nu + N
//! A = (ridge + mu) I + gram - sum_z^T sum_z / s
//! C = mu D^t + cross - sum_z^T (sum_x + nu b^t) / s
//! D = A^-1 C          b = (nu b^t + sum_x - sum_z D) / s
//! ```
//!
//! By Cholesky, or where that is too large by exact steps on blocks of atoms in turn, which never raise F.

use rayon::prelude::*;

use super::cholesky::{product, Factor};
use super::statistics::Statistics;

/// Atoms that are solved for together where there are too many for all at once.
pub const BLOCK: usize = 512;
/// Rows of a product that one task computes; fixed, so that the number of threads changes nothing.
const BAND: usize = 64;

/// Weights of the quadratic terms, on the sum over rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weights {
    /// On `|D|^2`.
    pub ridge: f64,
    /// On `|b|^2`.
    pub beta: f64,
    /// On `|D - D^t|^2`.
    pub mu: f64,
    /// On `|b - b^t|^2`.
    pub nu: f64,
}

/// Atoms `[n, d]` and bias `[d]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoder {
    /// Atoms are rows.
    pub atoms: Vec<f64>,
    /// Added to every reconstruction.
    pub bias: Vec<f64>,
}

/// The minimiser; `None` where the ridge is too small for the numbers to tell.
pub fn exact(stats: &Statistics, w: &Weights, before: &Decoder) -> Option<Decoder> {
    let n = stats.n;
    let (s, shift) = (w.beta + w.nu + stats.rows as f64, w.ridge + w.mu);
    let mut a = stats.gram.clone();
    a.par_chunks_mut(n).enumerate().for_each(|(j, row)| {
        let factor = stats.sum_z[j] / s;
        row.iter_mut().zip(&stats.sum_z).for_each(|(a, z)| *a -= factor * z);
        row[j] += shift;
    });
    let factor = Factor::new(a, n)?;
    let atoms = factor.solve(&right_side(stats, w, before), stats.d);
    Some(with_bias(stats, w, before, atoms))
}

/// At most `sweeps` sweeps of exact steps on blocks of atoms, from `start`; ends early where nothing moves any more.
pub fn by_blocks(stats: &Statistics, w: &Weights, before: &Decoder, start: &Decoder, sweeps: usize) -> Option<Decoder> {
    let (n, d) = (stats.n, stats.d);
    let (s, shift) = (w.beta + w.nu + stats.rows as f64, w.ridge + w.mu);
    let wanted = right_side(stats, w, before);
    let mut atoms = start.atoms.clone();
    for _ in 0..sweeps {
        let (mut moved, mut size) = (0f64, 0f64);
        for from in (0..n).step_by(BLOCK) {
            let m = BLOCK.min(n - from);
            let mean = times(&stats.sum_z, &atoms, d);
            let mut residual = vec![0f64; m * d];
            product(&stats.gram[from * n..(from + m) * n], &atoms, n, d, &mut residual);
            for i in 0..m {
                let (j, factor) = (from + i, stats.sum_z[from + i] / s);
                for c in 0..d {
                    residual[i * d + c] = wanted[j * d + c] - (residual[i * d + c] - factor * mean[c] + shift * atoms[j * d + c]);
                }
            }
            let mut a = vec![0f64; m * m];
            for i in 0..m {
                for k in 0..m {
                    a[i * m + k] = stats.gram[(from + i) * n + from + k] - stats.sum_z[from + i] * stats.sum_z[from + k] / s;
                }
                a[i * m + i] += shift;
            }
            let step = Factor::new(a, m)?.solve(&residual, d);
            for (atom, by) in atoms[from * d..(from + m) * d].iter_mut().zip(&step) {
                *atom += by;
                moved += by * by;
                size += *atom * *atom;
            }
        }
        if moved <= 1e-24 * size {
            break;
        }
    }
    Some(with_bias(stats, w, before, atoms))
}

/// `C`, `[n, d]`.
fn right_side(stats: &Statistics, w: &Weights, before: &Decoder) -> Vec<f64> {
    let s = w.beta + w.nu + stats.rows as f64;
    let mean: Vec<f64> = stats.sum_x.iter().zip(&before.bias).map(|(x, b)| (x + w.nu * b) / s).collect();
    let mut c = stats.cross.clone();
    c.par_chunks_mut(stats.d).enumerate().for_each(|(j, row)| {
        for ((c, m), atom) in row.iter_mut().zip(&mean).zip(&before.atoms[j * stats.d..]) {
            *c += w.mu * atom - stats.sum_z[j] * m;
        }
    });
    c
}

fn with_bias(stats: &Statistics, w: &Weights, before: &Decoder, atoms: Vec<f64>) -> Decoder {
    let s = w.beta + w.nu + stats.rows as f64;
    let codes = times(&stats.sum_z, &atoms, stats.d);
    let bias = stats.sum_x.iter().zip(&before.bias).zip(&codes).map(|((x, b), z)| (w.nu * b + x - z) / s).collect();
    Decoder { atoms, bias }
}

/// `z D`, `[d]`.
fn times(z: &[f64], atoms: &[f64], d: usize) -> Vec<f64> {
    let mut sum = vec![0f64; d];
    for (z, atom) in z.iter().zip(atoms.chunks_exact(d)) {
        sum.iter_mut().zip(atom).for_each(|(s, a)| *s += z * a);
    }
    sum
}

/// `sum_r |x_r - z_r D - b|^2` in closed form.
pub fn sq_error(stats: &Statistics, decoder: &Decoder) -> f64 {
    let (n, d) = (stats.n, stats.d);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    // <D, gram D - 2 cross>, band by band.
    let bands: Vec<f64> = (stats.gram.par_chunks(BAND * n), stats.cross.par_chunks(BAND * d), decoder.atoms.par_chunks(BAND * d))
        .into_par_iter()
        .map(|(gram, cross, atoms)| {
            let mut out = vec![0f64; atoms.len()];
            product(gram, &decoder.atoms, n, d, &mut out);
            out.iter_mut().zip(cross).for_each(|(o, c)| *o -= 2.0 * c);
            dot(&out, atoms)
        })
        .collect();
    let codes = times(&stats.sum_z, &decoder.atoms, d);
    let b = &decoder.bias;
    stats.sq_x + bands.iter().sum::<f64>() - 2.0 * dot(b, &stats.sum_x) + 2.0 * dot(&codes, b) + stats.rows as f64 * dot(b, b)
}

/// F without its proximal terms.
pub fn objective(stats: &Statistics, w: &Weights, decoder: &Decoder) -> f64 {
    let sq = |v: &[f64]| v.iter().map(|v| v * v).sum::<f64>();
    sq_error(stats, decoder) + w.ridge * sq(&decoder.atoms) + w.beta * sq(&decoder.bias)
}
