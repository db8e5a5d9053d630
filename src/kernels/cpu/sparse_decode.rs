//! Decoding sparse codes: gathered rows of the decoder, summed in entry order.

use candle_core::Tensor;
use rayon::prelude::*;

use super::storage::with_slice;
use super::vector::axpy;
use crate::codes::{Codes, PAD};
use crate::error::{Error, Result};
use crate::kernels::Selection;

fn beyond(index: u32, d_sae: usize) -> Error {
    Error::Width {
        what: format!("a dictionary that has latent {index}"),
        expected: d_sae,
        got: index as usize + 1,
        help: "decode codes with the dictionary that made them".into(),
    }
}

fn decode(rows: usize, entries: impl Fn(usize, &mut dyn FnMut(u32, f32)) + Sync, w_dec: &Tensor, b_dec: Option<&Tensor>) -> Result<Tensor> {
    let (_, d) = w_dec.dims2()?;
    let mut out = vec![0f32; rows * d];
    let bias: Option<Vec<f32>> = b_dec.map(|b| b.to_vec1()).transpose()?;
    with_slice(w_dec, |w: &[f32]| {
        out.par_chunks_mut(d).enumerate().for_each(|(r, y)| {
            if let Some(bias) = &bias {
                y.copy_from_slice(bias);
            }
            entries(r, &mut |j, v| axpy(v, &w[j as usize * d..(j as usize + 1) * d], y));
        });
    })?;
    Ok(Tensor::from_vec(out, (rows, d), w_dec.device())?)
}

/// See [`crate::kernels::sparse_decode`].
pub fn sparse_decode(selection: &Selection, w_dec: &Tensor, b_dec: Option<&Tensor>) -> Result<Tensor> {
    let (n, k) = selection.indices.dims2()?;
    let d_sae = w_dec.dim(0)?;
    with_slice(&selection.indices, |indices: &[u32]| {
        with_slice(&selection.values, |values: &[f32]| {
            if let Some(&j) = indices.iter().find(|&&j| j != PAD && j as usize >= d_sae) {
                return Err(beyond(j, d_sae));
            }
            decode(
                n,
                |r, add| {
                    for (&j, &v) in indices[r * k..(r + 1) * k].iter().zip(&values[r * k..(r + 1) * k]) {
                        if j != PAD {
                            add(j, v);
                        }
                    }
                },
                w_dec,
                b_dec,
            )
        })
    })??
}

/// See [`crate::kernels::decode_codes`].
pub fn decode_codes(codes: &Codes, w_dec: &Tensor, b_dec: Option<&Tensor>) -> Result<Tensor> {
    let d_sae = w_dec.dim(0)?;
    if let Some(&j) = codes.indices.iter().find(|&&j| j as usize >= d_sae) {
        return Err(beyond(j, d_sae));
    }
    decode(
        codes.n_rows(),
        |r, add| {
            let (indices, values) = codes.row(r);
            for (&j, &v) in indices.iter().zip(values) {
                add(j, v);
            }
        },
        w_dec,
        b_dec,
    )
}
