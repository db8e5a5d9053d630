//! Which atoms point the same way.

use candle_core::{DType, Tensor};

use crate::error::Result;
use crate::kernels;

/// Atoms of `w_dec` `[d_sae, d]` at unit norm; a zero atom stays zero.
pub(super) fn unit_atoms(w_dec: &Tensor) -> Result<Tensor> {
    let norms = w_dec.sqr()?.sum_keepdim(1)?.sqrt()?;
    let safe = norms.maximum(f64::from(f32::MIN_POSITIVE))?;
    Ok(w_dec.broadcast_div(&safe)?)
}

/// The `n` atoms of largest positive cosine to each of `unit` `[d_sae, d]`, closest first; equal ones by index.
pub(super) fn nearest(unit: &Tensor, n: usize) -> Result<Vec<Vec<(u32, f32)>>> {
    let (d_sae, _) = unit.dims2()?;
    let zero = Tensor::zeros(d_sae, DType::F32, unit.device())?;
    // The fused encode is exact, and an atom's own cosine of 1 takes one place more. (A duplicate may push it out: then the last goes.)
    let k = (n + 1).min(d_sae);
    let codes = kernels::encode_topk(unit, unit, &zero, k, None)?.to_codes(d_sae)?;
    Ok((0..d_sae)
        .map(|i| {
            let (indices, values) = codes.row(i);
            let others = indices.iter().zip(values).filter(|(&j, _)| j as usize != i);
            others.map(|(&j, &c)| (j, c.min(1.0))).take(n).collect()
        })
        .collect())
}
