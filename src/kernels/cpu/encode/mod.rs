//! Fused encode and selection, exact whatever the instructions: a screen computes products of blocks of rows with panels of the encoder
//! in cache, a rigorous bound (`bound`) keeps every latent that might be selected, and those few are scored as the definition says
//! (`exact`), by latent and over many rows (`entries`). The screen is f32 (`gemm`), bf16 or bytes; it decides how long a call takes and
//! nothing else (`choice`).
//!
//! Rayon runs over parts of the rows; a panel's norms, or its rounded form, are made by the first part that comes to it.

pub(super) mod bf16;
pub(super) mod bound;
mod candidates;
mod choice;
mod counts;
mod entries;
pub(super) mod exact;
pub(super) mod gate;
mod int8;
mod isa;
mod panels;
mod screen;
mod threshold;
mod topk;

use candle_core::{Tensor, WithDType};

use super::storage::with_slice;
use crate::codes::{Codes, PAD};
use crate::error::Result;
use crate::kernels::Selection;
use choice::with_encoder;
pub(super) use isa::{Isa, Level};

pub use counts::{encode_counts, EncodeCounts};
pub(super) use panels::{panels, product, transpose, BLOCK};
pub use screen::{screen, set_screen, Screen};

/// See [`crate::kernels::encode_topk`].
pub fn encode_topk(x: &Tensor, w_enc: &Tensor, b_enc: &Tensor, k: usize, rank: Option<&Tensor>) -> Result<Selection> {
    let (n, d) = x.dims2()?;
    let ranks: Option<Vec<f32>> = rank.map(|t| t.to_vec1()).transpose()?;
    let mut indices = vec![PAD; n * k];
    let mut values = vec![0f32; n * k];
    with_slice(x, |x: &[f32]| {
        with_slice(w_enc, |w: &[f32]| {
            with_slice(b_enc, |bias: &[f32]| {
                with_encoder(x, d, w, bias, k, |encoder, rows| {
                    let of = rows.start * k..rows.end * k;
                    let x = &x[rows.start * d..rows.end * d];
                    topk::encode(encoder, x, k, ranks.as_deref(), &mut indices[of.clone()], &mut values[of]);
                });
            })
        })
    })???;
    Ok(Selection { indices: Tensor::from_vec(indices, (n, k), x.device())?, values: Tensor::from_vec(values, (n, k), x.device())? })
}

/// See [`crate::kernels::encode_threshold`].
pub fn encode_threshold(x: &Tensor, w_enc: &Tensor, b_enc: &Tensor, threshold: &Tensor) -> Result<Codes> {
    let (n, d) = x.dims2()?;
    let thresholds: Vec<f32> = threshold.to_vec1()?;
    let mut codes = Codes::new(thresholds.len());
    with_slice(x, |x: &[f32]| {
        with_slice(w_enc, |w: &[f32]| {
            with_slice(b_enc, |bias: &[f32]| {
                with_encoder(x, d, w, bias, 0, |encoder, rows| {
                    codes.extend(&threshold::encode(encoder, &x[rows.start * d..rows.end * d], &thresholds));
                });
            })
        })
    })???;
    debug_assert_eq!(codes.n_rows(), n);
    Ok(codes)
}

/// Reads a tensor of `T` back as a vector, whatever its shape.
pub fn to_vec<T: WithDType>(tensor: &Tensor) -> Result<Vec<T>> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}

#[cfg(test)]
mod tests;
