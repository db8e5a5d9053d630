//! Plus and minus each principal axis: the best linear code, made sparse by keeping the k largest projections.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{self_adjoint_evd, self_adjoint_evd_scratch, ComputeEigenvectors};
use faer::{Mat, MatRef, Par};
use rayon::prelude::*;

use super::{BaselineConfig, Sample};
use crate::error::{Error, Result};

/// Rows of the covariance that one task computes; fixed, so that the number of threads changes nothing.
const BAND: usize = 64;

/// `[2 * axes, d]`, by variance descending, plus before minus. A dictionary with fewer than 2 d latents gets as many axes as it has
/// room for, but k at least: plus and minus of one axis never fire together.
pub fn atoms(sample: &Sample, config: &BaselineConfig) -> Result<Vec<f32>> {
    let d = sample.d;
    let axes = d.min((config.d_sae / 2).max(config.k));
    let vectors = eigenvectors(&covariance(sample), d)?;
    let mut atoms = Vec::with_capacity(2 * axes * d);
    for column in (d - axes..d).rev() {
        let axis: Vec<f32> = (0..d).map(|r| vectors[(r, column)] as f32).collect();
        // An eigenvector's sign is arbitrary: the entry that is largest in size is made positive.
        let largest = axis.iter().copied().fold(0f32, |best, v| if v.abs() > best.abs() { v } else { best });
        let sign = if largest < 0.0 { -1.0 } else { 1.0 };
        atoms.extend(axis.iter().map(|v| sign * v));
        atoms.extend(axis.iter().map(|v| -sign * v));
    }
    Ok(atoms)
}

/// Sum over rows of the outer products of the centred rows, `[d, d]`, f64.
fn covariance(sample: &Sample) -> Vec<f64> {
    let d = sample.d;
    let rows: Vec<f64> = sample.centred.par_iter().map(|&v| f64::from(v)).collect();
    let x = MatRef::from_row_major_slice(&rows, sample.n, d);
    let mut covariance = vec![0f64; d * d];
    covariance.par_chunks_mut(BAND * d).enumerate().for_each(|(band, out)| {
        let height = out.len() / d;
        let out = faer::MatMut::from_row_major_slice_mut(out, height, d);
        let left = x.subcols(band * BAND, height);
        faer::linalg::matmul::matmul(out, faer::Accum::Replace, left.transpose(), x, 1.0, Par::Seq);
    });
    covariance
}

/// Eigenvectors of a symmetric `[d, d]` matrix as columns, by eigenvalue ascending. On one thread: faer's parallel form splits sums.
pub(crate) fn eigenvectors(symmetric: &[f64], d: usize) -> Result<Mat<f64>> {
    let matrix = MatRef::from_row_major_slice(symmetric, d, d);
    let (mut values, mut vectors) = (faer::diag::Diag::<f64>::zeros(d), Mat::<f64>::zeros(d, d));
    let scratch = self_adjoint_evd_scratch::<f64>(d, ComputeEigenvectors::Yes, Par::Seq, Default::default());
    let mut memory = MemBuffer::new(scratch);
    self_adjoint_evd(matrix, values.as_mut(), Some(vectors.as_mut()), Par::Seq, MemStack::new(&mut memory), Default::default()).map_err(
        |e| Error::request(format!("the principal axes of the training rows could not be computed: {e:?}"), "score without baselines"),
    )?;
    Ok(vectors)
}
