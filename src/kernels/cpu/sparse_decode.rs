//! Decoding sparse codes: gathered rows of the decoder, summed in entry order; with the loss in the same pass where a base is given.

use candle_core::Tensor;
use rayon::prelude::*;

use super::storage::with_slice;
use super::vector::{combine, sq_norm};
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

/// What the sum of atoms is added to.
#[derive(Clone, Copy)]
enum Base<'a> {
    /// The same for each row; nothing where it is empty.
    Bias(&'a [f32]),
    /// A matrix of rows, with a factor.
    Rows(&'a [f32], f32),
}

/// Codes by row.
#[derive(Clone, Copy)]
enum Entries<'a> {
    Padded { indices: &'a [u32], values: &'a [f32], k: usize },
    Codes(&'a Codes),
}

impl<'a> Entries<'a> {
    /// What row `r` holds, pads left out.
    fn row(self, r: usize) -> (&'a [u32], &'a [f32]) {
        match self {
            Self::Codes(codes) => codes.row(r),
            Self::Padded { indices, values, k } => {
                let row = &indices[r * k..(r + 1) * k];
                let len = row.iter().position(|&j| j == PAD).unwrap_or(k);
                (&row[..len], &values[r * k..r * k + len])
            }
        }
    }

    fn n_rows(self) -> usize {
        match self {
            Self::Codes(codes) => codes.n_rows(),
            Self::Padded { indices, k, .. } => indices.len() / k.max(1),
        }
    }
}

/// Calls `f` with a selection's entries, once they are known to lie in the dictionary.
fn with_padded<R>(selection: &Selection, d_sae: usize, f: impl FnOnce(Entries<'_>) -> Result<R>) -> Result<R> {
    let (_, k) = selection.indices.dims2()?;
    with_slice(&selection.indices, |indices: &[u32]| {
        with_slice(&selection.values, |values: &[f32]| match indices.iter().find(|&&j| j != PAD && j as usize >= d_sae) {
            Some(&j) => Err(beyond(j, d_sae)),
            None => f(Entries::Padded { indices, values, k }),
        })
    })??
}

fn checked(codes: &Codes, d_sae: usize) -> Result<Entries<'_>> {
    match codes.indices.iter().find(|&&j| j as usize >= d_sae) {
        Some(&j) => Err(beyond(j, d_sae)),
        None => Ok(Entries::Codes(codes)),
    }
}

/// The decoded rows, and the sum of their squares (f32 within a row, f64 over rows).
fn decode(entries: Entries<'_>, w_dec: &Tensor, base: Base<'_>) -> Result<(Tensor, f64)> {
    let (_, d) = w_dec.dims2()?;
    let rows = entries.n_rows();
    let mut out = vec![0f32; rows * d];
    let squares: Vec<f32> = with_slice(w_dec, |w: &[f32]| {
        let row = |(r, y): (usize, &mut [f32])| {
            match base {
                Base::Bias(bias) => y[..bias.len()].copy_from_slice(bias),
                Base::Rows(base, factor) => y.iter_mut().zip(&base[r * d..(r + 1) * d]).for_each(|(y, b)| *y = factor * b),
            }
            let (indices, values) = entries.row(r);
            combine(values, 1.0, indices, w, y);
            sq_norm(y)
        };
        out.par_chunks_mut(d).enumerate().map(row).collect()
    })?;
    Ok((Tensor::from_vec(out, (rows, d), w_dec.device())?, squares.into_iter().map(f64::from).sum()))
}

fn bias(b_dec: Option<&Tensor>) -> Result<Vec<f32>> {
    Ok(b_dec.map(|b| b.to_vec1()).transpose()?.unwrap_or_default())
}

/// See [`crate::kernels::sparse_decode`].
pub fn sparse_decode(selection: &Selection, w_dec: &Tensor, b_dec: Option<&Tensor>) -> Result<Tensor> {
    let bias = bias(b_dec)?;
    Ok(with_padded(selection, w_dec.dim(0)?, |entries| decode(entries, w_dec, Base::Bias(&bias)))?.0)
}

/// See [`crate::kernels::decode_codes`].
pub fn decode_codes(codes: &Codes, w_dec: &Tensor, b_dec: Option<&Tensor>) -> Result<Tensor> {
    let bias = bias(b_dec)?;
    Ok(decode(checked(codes, w_dec.dim(0)?)?, w_dec, Base::Bias(&bias))?.0)
}

/// See [`crate::kernels::sparse_decode_onto`].
pub fn sparse_decode_onto(selection: &Selection, w_dec: &Tensor, base: &Tensor, factor: f32) -> Result<(Tensor, f64)> {
    with_slice(base, |base| with_padded(selection, w_dec.dim(0)?, |entries| decode(entries, w_dec, Base::Rows(base, factor))))?
}

/// See [`crate::kernels::decode_codes_onto`].
pub fn decode_codes_onto(codes: &Codes, w_dec: &Tensor, base: &Tensor, factor: f32) -> Result<(Tensor, f64)> {
    with_slice(base, |base| decode(checked(codes, w_dec.dim(0)?)?, w_dec, Base::Rows(base, factor)))?
}
