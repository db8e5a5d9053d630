//! What a decoder's least squares needs to know of the rows: sums of products, in f64, from sparse codes.
//!
//! ```text
//! gram = sum_r z_r^T z_r   cross = sum_r z_r^T x_r   sum_z   sum_x   sq_x = sum_r |x_r|^2   rows
//! ```
//!
//! A row with K codes costs K^2 + K d. Each latent's sums are its own task and go through the rows in their order, so the number of threads
//! changes nothing.

use rayon::prelude::*;

use crate::codes::Codes;
use crate::kernels::Columns;

/// Sums over some rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// Latents.
    pub n: usize,
    /// Width of a row.
    pub d: usize,
    /// Number of rows.
    pub rows: u64,
    /// `[n, n]`, symmetric to the bit.
    pub gram: Vec<f64>,
    /// `[n, d]`.
    pub cross: Vec<f64>,
    /// `[n]`.
    pub sum_z: Vec<f64>,
    /// `[d]`.
    pub sum_x: Vec<f64>,
    /// Summed squared norms of the rows.
    pub sq_x: f64,
}

impl Statistics {
    /// Of no rows.
    pub fn new(n: usize, d: usize) -> Self {
        Self { n, d, rows: 0, gram: vec![0.0; n * n], cross: vec![0.0; n * d], sum_z: vec![0.0; n], sum_x: vec![0.0; d], sq_x: 0.0 }
    }

    /// Bytes that one of them takes.
    pub fn bytes(n: usize, d: usize) -> u64 {
        8 * (n as u64 * n as u64 + n as u64 * d as u64)
    }

    /// Adds the rows of `x` `[m, d]` for which `keep` says so; `columns` are the entries of `codes` by latent.
    pub fn add(&mut self, x: &[f32], codes: &Codes, columns: &Columns, keep: &[bool]) {
        let (n, d) = (self.n, self.d);
        for (row, _) in x.chunks_exact(d).zip(keep).filter(|(_, &k)| k) {
            self.rows += 1;
            for (sum, &v) in self.sum_x.iter_mut().zip(row) {
                *sum += f64::from(v);
            }
            self.sq_x += row.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
        }
        (self.gram.par_chunks_mut(n), self.cross.par_chunks_mut(d), self.sum_z.par_iter_mut())
            .into_par_iter()
            .enumerate()
            .with_min_len(8)
            .for_each(|(j, (gram, cross, sum_z))| {
                let (rows, values) = columns.column(j);
                for (&r, &v) in rows.iter().zip(values).filter(|(&r, _)| keep[r as usize]) {
                    let (r, v) = (r as usize, f64::from(v));
                    *sum_z += v;
                    let (latents, others) = codes.row(r);
                    for (&i, &w) in latents.iter().zip(others) {
                        gram[i as usize] += v * f64::from(w);
                    }
                    for (sum, &value) in cross.iter_mut().zip(&x[r * d..(r + 1) * d]) {
                        *sum += v * f64::from(value);
                    }
                }
            });
    }

    /// Adds the rows that another one has seen.
    pub fn merge(&mut self, other: &Self) {
        fn sum(a: &mut [f64], b: &[f64]) {
            a.par_iter_mut().zip(b).with_min_len(1 << 14).for_each(|(a, b)| *a += b);
        }
        sum(&mut self.gram, &other.gram);
        sum(&mut self.cross, &other.cross);
        sum(&mut self.sum_z, &other.sum_z);
        sum(&mut self.sum_x, &other.sum_x);
        self.sq_x += other.sq_x;
        self.rows += other.rows;
    }

    /// Did latent `j` fire?
    pub fn fired(&self, j: usize) -> bool {
        self.gram[j * self.n + j] > 0.0
    }

    /// Mean of the gram matrix's diagonal over the latents that fired: the size that a ridge compares with. 0 when none did.
    pub fn mean_diagonal(&self) -> f64 {
        let fired: Vec<f64> = (0..self.n).filter(|&j| self.fired(j)).map(|j| self.gram[j * self.n + j]).collect();
        fired.iter().sum::<f64>() / fired.len().max(1) as f64
    }

    /// Summed squared distance of the rows from their mean.
    pub fn spread(&self) -> f64 {
        self.sq_x - self.sum_x.iter().map(|s| s * s).sum::<f64>() / self.rows.max(1) as f64
    }
}
