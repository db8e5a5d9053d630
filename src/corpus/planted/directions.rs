//! Directions of features: orthonormal, or more of them than dimensions and pushed apart.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use crate::rng::Rng;

/// Rows of the Gram matrix held at a time, per thread.
const TILE: usize = 64;

/// `n` random unit rows, `[n, d]`.
pub(super) fn random(seed: u64, n: usize, d: usize) -> Vec<f32> {
    let mut rows: Vec<f32> = Vec::with_capacity(n * d);
    for i in 0..n {
        let mut rng = Rng::stream(seed, "planted.direction", i as u64);
        rows.extend((0..d).map(|_| rng.normal() as f32));
    }
    normalise(&mut rows, d);
    rows
}

/// `n <= d` orthonormal rows, `[n, d]`, f64: Gram-Schmidt, twice, over Gaussian rows (the Q of their QR).
pub(super) fn orthonormal(seed: u64, n: usize, d: usize) -> Vec<f64> {
    let mut q: Vec<f64> = Vec::with_capacity(n * d);
    for i in 0..n {
        let mut rng = Rng::stream(seed, "planted.direction", i as u64);
        let mut row: Vec<f64> = (0..d).map(|_| rng.normal()).collect();
        for _ in 0..2 {
            for other in q.chunks_exact(d) {
                let dot: f64 = row.iter().zip(other).map(|(a, b)| a * b).sum();
                row.iter_mut().zip(other).for_each(|(a, b)| *a -= dot * b);
            }
        }
        let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt();
        q.extend(row.iter().map(|v| v / norm));
    }
    q
}

/// A vector of norm `norm` in a random direction, `[d]`; zeros when `norm` is 0.
pub(super) fn bias(seed: u64, norm: f64, d: usize) -> Vec<f32> {
    let mut rng = Rng::stream(seed, "planted.bias", 0);
    let raw: Vec<f64> = (0..d).map(|_| rng.normal()).collect();
    let length = raw.iter().map(|v| v * v).sum::<f64>().sqrt();
    raw.iter().map(|v| (v / length * norm) as f32).collect()
}

/// Pushes unit rows apart: `rounds` times `D <- unit(D - rate offdiag(D D^T) D)`.
pub(super) fn decorrelate(rows: &mut [f32], d: usize, rounds: usize, rate: f32) {
    for _ in 0..rounds {
        let push = gram_times(rows, d, |cos| cos, |_| 0.0);
        rows.iter_mut().zip(&push).for_each(|(v, p)| *v -= rate * p);
        normalise(rows, d);
    }
}

/// `steps` Adam steps (0.9, 0.999) on `sum_{i != j} (d_i . d_j)^2 + n sum_i (d_i . d_i - 1)^2`, then unit rows.
pub(super) fn orthogonalise(rows: &mut [f32], d: usize, steps: usize, lr: f64) {
    let n = (rows.len() / d) as f32;
    let (mut first, mut second) = (vec![0f32; rows.len()], vec![0f32; rows.len()]);
    for step in 1..=steps as i32 {
        let grad = gram_times(rows, d, |dot| 4.0 * dot, |sq| 4.0 * n * (sq - 1.0));
        let (c1, c2) = (1.0 - 0.9f64.powi(step), 1.0 - 0.999f64.powi(step));
        let (rate, scale) = ((lr / c1) as f32, (1.0 / c2) as f32);
        rows.par_iter_mut().zip(&mut first).zip(&mut second).zip(&grad).for_each(|(((v, m), s), g)| {
            *m = 0.9 * *m + 0.1 * g;
            *s = 0.999 * *s + 0.001 * g * g;
            *v -= rate * *m / ((scale * *s).sqrt() + 1e-8);
        });
    }
    normalise(rows, d);
}

/// `f(D D^T) D`, where `off(dot)` maps entries off the diagonal and `on(dot)` those on it. Tiles of rows are independent, so the
/// number of threads changes nothing; memory is a tile of the Gram matrix per thread.
fn gram_times(rows: &[f32], d: usize, off: impl Fn(f32) -> f32 + Sync, on: impl Fn(f32) -> f32 + Sync) -> Vec<f32> {
    let n = rows.len() / d;
    let mut out = vec![0f32; rows.len()];
    let all = MatRef::from_row_major_slice(rows, n, d);
    out.par_chunks_mut(TILE * d).enumerate().for_each(|(tile, out)| {
        let height = out.len() / d;
        let mut gram = vec![0f32; height * n];
        let mine = all.subrows(tile * TILE, height);
        matmul(MatMut::from_row_major_slice_mut(&mut gram, height, n), Accum::Replace, mine, all.transpose(), 1.0, Par::Seq);
        for (r, line) in gram.chunks_exact_mut(n).enumerate() {
            let i = tile * TILE + r;
            let diagonal = on(line[i]);
            line.iter_mut().for_each(|v| *v = off(*v));
            line[i] = diagonal;
        }
        let gram = MatRef::from_row_major_slice(&gram, height, n);
        matmul(MatMut::from_row_major_slice_mut(out, height, d), Accum::Replace, gram, all, 1.0, Par::Seq);
    });
    out
}

/// Rows of norm 1 (a row of zeros, which nobody draws, stays).
pub(super) fn normalise(rows: &mut [f32], d: usize) {
    rows.par_chunks_mut(d).for_each(|row| {
        let norm = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        if norm > 0.0 {
            row.iter_mut().for_each(|v| *v = (f64::from(*v) / norm) as f32);
        }
    });
}
