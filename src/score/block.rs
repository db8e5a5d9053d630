//! What every metric is fed: a block of rows with the quantities that several metrics need, computed once, in f64.
//!
//! Not for: encoding (`Dictionary`) or adding up over blocks (each metric does that itself, in block order).

use rayon::prelude::*;

use crate::codes::Codes;

/// Count, mean and sum of squared deviations of each column, merged from blocks without cancellation (Chan, Golub and LeVeque).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Moments {
    /// Number of rows.
    pub n: u64,
    /// Mean of each column, `[d]`.
    pub mean: Vec<f64>,
    /// Sum over rows of squared deviations from that mean, `[d]`.
    pub m2: Vec<f64>,
}

/// Columns that one task sums; fixed, so that the number of threads changes nothing.
const COLUMNS: usize = 64;

impl Moments {
    /// Moments of the `[n, d]` rows that `at(row, column)` gives: two passes, each in row order.
    pub fn of(n: usize, d: usize, at: impl Fn(usize, usize) -> f64 + Sync) -> Self {
        let (mut mean, mut m2) = (vec![0f64; d], vec![0f64; d]);
        if n > 0 {
            mean.par_chunks_mut(COLUMNS).zip(m2.par_chunks_mut(COLUMNS)).enumerate().for_each(|(chunk, (mean, m2))| {
                let first = chunk * COLUMNS;
                for r in 0..n {
                    for (c, m) in mean.iter_mut().enumerate() {
                        *m += at(r, first + c);
                    }
                }
                mean.iter_mut().for_each(|m| *m /= n as f64);
                for r in 0..n {
                    for (c, s) in m2.iter_mut().enumerate() {
                        *s += (at(r, first + c) - mean[c]).powi(2);
                    }
                }
            });
        }
        Self { n: n as u64, mean, m2 }
    }

    /// Takes in the moments of more rows.
    pub fn merge(&mut self, other: &Self) {
        if self.n == 0 {
            self.clone_from(other);
            return;
        }
        let (a, b) = (self.n as f64, other.n as f64);
        let n = a + b;
        for c in 0..self.mean.len() {
            let delta = other.mean[c] - self.mean[c];
            self.mean[c] += delta * b / n;
            self.m2[c] += other.m2[c] + delta * delta * a * b / n;
        }
        self.n += other.n;
    }

    /// Sum over columns of the squared deviations: `sum ||x - mean x||^2`.
    pub fn total(&self) -> f64 {
        self.m2.iter().sum()
    }
}

/// Scalars of one row, in f64. `r = x - xhat`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RowSums {
    /// `||r||^2`.
    pub sq_error: f64,
    /// `||x||^2`.
    pub sq_x: f64,
    /// `||xhat||^2`.
    pub sq_x_hat: f64,
    /// `<x, xhat>`.
    pub dot: f64,
    /// `||x - mean of the block||^2`.
    pub sq_centred: f64,
    /// Variance of the row's values around the row's own mean, `x`.
    pub var_x: f64,
    /// The same of `r`.
    pub var_error: f64,
}

/// A block of scored rows.
#[derive(Debug)]
pub struct Block<'a> {
    /// Number of rows.
    pub n: usize,
    /// Width.
    pub d: usize,
    /// Codes of the rows.
    pub codes: &'a Codes,
    /// Moments of `x` over this block.
    pub x: &'a Moments,
    /// Moments of `x - xhat` over this block.
    pub residual: Moments,
    /// Scalars of each row, `[n]`.
    pub rows: Vec<RowSums>,
    /// False for a last block that is shorter than the others, unless it is the only one. The peers' batch-dependent
    /// metrics leave such a block out: a batch of one row has no variance.
    pub is_full: bool,
}

impl<'a> Block<'a> {
    /// `x` and `x_hat` are `[n, d]`, row-major; `moments` are those of `x`.
    pub fn new(x: &[f32], x_hat: &[f32], d: usize, codes: &'a Codes, moments: &'a Moments, is_full: bool) -> Self {
        let n = x.len() / d;
        let residual = Moments::of(n, d, |r, c| f64::from(x[r * d + c]) - f64::from(x_hat[r * d + c]));
        let rows = x.par_chunks(d).zip(x_hat.par_chunks(d)).map(|(x, x_hat)| RowSums::of(x, x_hat, &moments.mean)).collect();
        Self { n, d, codes, x: moments, residual, rows, is_full }
    }

    /// Sum of a row scalar over the rows, in row order.
    pub fn sum(&self, of: impl Fn(&RowSums) -> f64) -> f64 {
        self.rows.iter().map(of).sum()
    }
}

impl RowSums {
    fn of(x: &[f32], x_hat: &[f32], mean: &[f64]) -> Self {
        let d = x.len() as f64;
        let mut s = Self::default();
        let (mut sum_x, mut sum_r) = (0f64, 0f64);
        for ((&x, &y), m) in x.iter().zip(x_hat).zip(mean) {
            let (x, y) = (f64::from(x), f64::from(y));
            let r = x - y;
            sum_x += x;
            sum_r += r;
            s.sq_error += r * r;
            s.sq_x += x * x;
            s.sq_x_hat += y * y;
            s.dot += x * y;
            s.sq_centred += (x - m) * (x - m);
        }
        let (mean_x, mean_r) = (sum_x / d, sum_r / d);
        for (&x, &y) in x.iter().zip(x_hat) {
            let (x, y) = (f64::from(x), f64::from(y));
            s.var_x += (x - mean_x).powi(2) / d;
            s.var_error += (x - y - mean_r).powi(2) / d;
        }
        s
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn merged_moments_are_those_of_the_whole_even_far_from_zero() {
        let (n, d) = (1000, 3);
        let mut rng = Rng::stream(1, "test", 0);
        // A mean 10^6 times the spread: E x^2 - (E x)^2 would lose twelve of sixteen digits.
        let x: Vec<f64> = (0..n * d).map(|_| 1e6 + rng.normal()).collect();
        let whole = Moments::of(n, d, |r, c| x[r * d + c]);
        let mut merged = Moments::default();
        for start in (0..n).step_by(77) {
            let len = 77.min(n - start);
            merged.merge(&Moments::of(len, d, |r, c| x[(start + r) * d + c]));
        }
        assert_eq!(merged.n, 1000);
        for c in 0..d {
            assert!((merged.mean[c] / whole.mean[c] - 1.0).abs() < 1e-14);
            assert!((merged.m2[c] / whole.m2[c] - 1.0).abs() < 1e-9, "{} {}", merged.m2[c], whole.m2[c]);
        }
    }
}
