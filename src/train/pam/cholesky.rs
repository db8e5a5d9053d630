//! Dense symmetric systems in f64 on all cores, to the same bits whatever their number: blocks are fixed, and each is one thread's.

use faer::linalg::matmul::matmul;
use faer::linalg::triangular_solve::{solve_lower_triangular_in_place, solve_upper_triangular_in_place};
use faer::prelude::ReborrowMut;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

/// Columns that are factored, and rows or columns that are updated, together.
const BLOCK: usize = 128;
/// Right-hand sides that one task solves for.
const COLUMNS: usize = 32;
/// Rows of a product that one task computes.
const BAND: usize = 64;

/// `L` of `A = L L^T`.
#[derive(Debug)]
pub struct Factor {
    /// Column-major; what is above the diagonal is not `L`'s.
    l: Vec<f64>,
    n: usize,
}

impl Factor {
    /// Of a symmetric `a` `[n, n]`; `None` where it is not positive definite.
    pub fn new(mut a: Vec<f64>, n: usize) -> Option<Self> {
        for k in (0..n).step_by(BLOCK) {
            let nb = BLOCK.min(n - k);
            let corner = small(&a, n, k, nb)?;
            for c in 0..nb {
                a[(k + c) * n + k + c..(k + c) * n + k + nb].copy_from_slice(&corner[c * nb + c..(c + 1) * nb]);
            }
            let below = k + nb;
            if below == n {
                break;
            }
            // The panel below the corner, row-major: X with X L11^T = A21, that is L11 X^T = A21^T.
            let mut panel = vec![0f64; (n - below) * nb];
            let l11 = MatRef::from_column_major_slice(&corner, nb, nb);
            panel.par_chunks_mut(BAND * nb).enumerate().for_each(|(band, rows)| {
                for (i, row) in rows.chunks_exact_mut(nb).enumerate() {
                    let r = below + band * BAND + i;
                    row.iter_mut().enumerate().for_each(|(c, v)| *v = a[(k + c) * n + r]);
                }
                let m = rows.len() / nb;
                solve_lower_triangular_in_place(l11, MatMut::from_column_major_slice_mut(rows, nb, m), Par::Seq);
            });
            let (done, rest) = a.split_at_mut(below * n);
            done[k * n..].par_chunks_mut(n).enumerate().for_each(|(c, column)| {
                column[below..].iter_mut().enumerate().for_each(|(i, v)| *v = panel[i * nb + c]);
            });
            let x = MatRef::from_row_major_slice(&panel, n - below, nb);
            rest.par_chunks_mut(BLOCK * n).enumerate().for_each(|(block, columns)| {
                let (first, width) = (block * BLOCK, columns.len() / n);
                let height = n - below - first;
                let target = MatMut::from_column_major_slice_mut(columns, n, width).subrows_mut(below + first, height);
                matmul(target, Accum::Add, x.subrows(first, height), x.subrows(first, width).transpose(), -1.0, Par::Seq);
            });
        }
        Some(Self { l: a, n })
    }

    /// `A^-1 C` for `c` `[n, d]`, row-major.
    pub fn solve(&self, c: &[f64], d: usize) -> Vec<f64> {
        let n = self.n;
        let l = MatRef::from_column_major_slice(&self.l, n, n);
        let blocks: Vec<Vec<f64>> = (0..d.div_ceil(COLUMNS))
            .into_par_iter()
            .map(|block| {
                let columns = block * COLUMNS..((block + 1) * COLUMNS).min(d);
                let width = columns.len();
                let mut y: Vec<f64> = columns.flat_map(|j| (0..n).map(move |i| c[i * d + j])).collect();
                let mut view = MatMut::from_column_major_slice_mut(&mut y, n, width);
                solve_lower_triangular_in_place(l, view.rb_mut(), Par::Seq);
                solve_upper_triangular_in_place(l.transpose(), view, Par::Seq);
                y
            })
            .collect();
        let mut out = vec![0f64; n * d];
        for (block, y) in blocks.iter().enumerate() {
            for (j, column) in y.chunks_exact(n).enumerate() {
                column.iter().enumerate().for_each(|(i, v)| out[i * d + block * COLUMNS + j] = *v);
            }
        }
        out
    }
}

/// The factor of the corner `[nb, nb]` at (k, k), column-major, zeros above its diagonal.
fn small(a: &[f64], n: usize, k: usize, nb: usize) -> Option<Vec<f64>> {
    let mut l = vec![0f64; nb * nb];
    for c in 0..nb {
        l[c * nb + c..(c + 1) * nb].copy_from_slice(&a[(k + c) * n + k + c..(k + c) * n + k + nb]);
    }
    for c in 0..nb {
        let (head, tail) = l.split_at_mut((c + 1) * nb);
        let column = &mut head[c * nb..];
        let pivot = column[c];
        // Also refuses NaN.
        if !(pivot > 0.0 && pivot.is_finite()) {
            return None;
        }
        let root = pivot.sqrt();
        column[c..].iter_mut().for_each(|v| *v /= root);
        for (i, other) in tail.chunks_exact_mut(nb).enumerate() {
            let j = c + 1 + i;
            let factor = column[j];
            other[j..].iter_mut().zip(&column[j..]).for_each(|(v, l)| *v -= factor * l);
        }
    }
    Some(l)
}

/// `out = rows B` with `rows` `[m, n]` and `b` `[n, d]`, all row-major.
pub fn product(rows: &[f64], b: &[f64], n: usize, d: usize, out: &mut [f64]) {
    let b = MatRef::from_row_major_slice(b, n, d);
    (rows.par_chunks(BAND * n), out.par_chunks_mut(BAND * d)).into_par_iter().for_each(|(rows, out)| {
        let m = rows.len() / n;
        let (rows, out) = (MatRef::from_row_major_slice(rows, m, n), MatMut::from_row_major_slice_mut(out, m, d));
        matmul(out, Accum::Replace, rows, b, 1.0, Par::Seq);
    });
}
