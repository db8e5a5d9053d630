//! Plain passes over rows: column sums, spreads.

use candle_core::Tensor;
use rayon::prelude::*;

use super::storage::with_slice;
use crate::error::Result;

/// Rows whose sums are made together; fixed, so that results do not depend on threads.
const CHUNK: usize = 256;

/// Column sums of `x` `[_, d]`.
fn sums(x: &[f32], d: usize) -> Vec<f64> {
    let chunks: Vec<Vec<f64>> = x
        .par_chunks(CHUNK * d)
        .map(|rows| {
            let mut sums = vec![0f64; d];
            for row in rows.chunks_exact(d) {
                sums.iter_mut().zip(row).for_each(|(s, &v)| *s += f64::from(v));
            }
            sums
        })
        .collect();
    let mut total = vec![0f64; d];
    for chunk in chunks {
        total.iter_mut().zip(chunk).for_each(|(t, s)| *t += s);
    }
    total
}

/// See [`crate::kernels::column_sums`].
pub fn column_sums(x: &Tensor, factor: f64) -> Result<Tensor> {
    let (_, d) = x.dims2()?;
    let total = with_slice(x, |x: &[f32]| sums(x, d))?;
    Ok(Tensor::from_vec(total.into_iter().map(|s| (s * factor) as f32).collect(), d, x.device())?)
}

/// See [`crate::kernels::spread`].
pub fn spread(x: &Tensor) -> Result<f64> {
    let (_, d) = x.dims2()?;
    with_slice(x, |x: &[f32]| spread_of(x, d))
}

fn spread_of(x: &[f32], d: usize) -> f64 {
    let n = (x.len() / d).max(1) as f64;
    let mean: Vec<f64> = sums(x, d).into_iter().map(|s| s / n).collect();
    let chunks: Vec<f64> = x
        .par_chunks(CHUNK * d)
        .map(|rows| rows.chunks_exact(d).map(|row| row.iter().zip(&mean).map(|(&v, m)| (f64::from(v) - m).powi(2)).sum::<f64>()).sum())
        .collect();
    chunks.into_iter().sum()
}
