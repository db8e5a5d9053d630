//! The gradient of few latents with many entries each: a segment of the rows stays in cache while a group of latents takes from it, so
//! that rows pass the cache once per group instead of once per entry. Each latent's sums run over its rows in order all the same.

use std::cell::RefCell;

use candle_core::Tensor;
use rayon::prelude::*;

use super::aligned::Aligned;
use super::latent_grad::products;
use super::storage::with_slices;
use super::vector::combine;
use crate::error::Result;
use crate::kernels::{Summed, Term};

/// Latents that take from a segment together: all rows pass once per group.
const GROUP: usize = 64;
/// Entries that a latent should have in a segment: fewer, and its sums are moved more than they are added to.
const ENTRIES: usize = 8;

/// A group's sums and atoms.
#[derive(Default)]
struct Scratch {
    atoms: Aligned,
    w_enc: Aligned,
    w_dec: Aligned,
    at: Vec<usize>,
    dz: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// See [`crate::kernels::summed`].
pub fn summed(term: &Term, x: &Tensor, w_dec: &Tensor, latents: &[u32]) -> Result<Summed> {
    let ((n, d_in), (_, d_out)) = (x.dims2()?, w_dec.dims2()?);
    let mut sums = Summed {
        latents: latents.to_vec(),
        w_enc: vec![0.0; latents.len() * d_in],
        w_dec: vec![0.0; latents.len() * d_out],
        bias: vec![0.0; latents.len()],
    };
    let Summed { w_enc, w_dec: of_decoder, bias, .. } = &mut sums;
    let segment = (ENTRIES * latents.len() * n / term.columns.rows.len().max(1)).clamp(32, 256);
    with_slices(&[x, w_dec, &term.grad], |slices: &[&[f32]]| {
        let [x, atoms, grad] = slices else { unreachable!("three tensors went in") };
        let (x, grad) = (Aligned::copy(x, d_in), Aligned::copy(grad, d_out));
        (
            latents.par_chunks(GROUP),
            w_enc.par_chunks_mut(GROUP * d_in),
            of_decoder.par_chunks_mut(GROUP * d_out),
            bias.par_chunks_mut(GROUP),
        )
            .into_par_iter()
            .for_each(|(latents, to_enc, to_dec, bias)| {
                let mut scratch = SCRATCH.take();
                let Scratch { atoms: own, w_enc, w_dec, at, dz } = &mut scratch;
                own.gather_from(atoms, d_out, latents);
                w_enc.reset(latents.len(), d_in);
                w_dec.reset(latents.len(), d_out);
                at.clear();
                at.resize(latents.len(), 0);
                let (in_width, out_width) = (x.width(), grad.width());
                for end in (segment..n + segment).step_by(segment) {
                    let sums = w_enc.slice_mut().chunks_exact_mut(in_width).zip(w_dec.slice_mut().chunks_exact_mut(out_width));
                    let sums = sums.zip(own.slice().chunks_exact(out_width)).zip(bias.iter_mut());
                    for ((&j, at), (((w_enc, w_dec), atom), bias)) in latents.iter().zip(&mut *at).zip(sums) {
                        let (rows, values) = term.columns.column(j as usize);
                        let len = rows[*at..].partition_point(|&r| (r as usize) < end);
                        let (rows, values) = (&rows[*at..*at + len], &values[*at..*at + len]);
                        *at += len;
                        dz.resize(len, 0.0);
                        products(rows, grad.slice(), atom, term.scale, 0.0, dz);
                        combine(values, term.scale, rows, grad.slice(), w_dec);
                        combine(dz, 1.0, rows, x.slice(), w_enc);
                        *bias += dz.iter().sum::<f32>();
                    }
                }
                w_enc.copy_to(to_enc, d_in);
                w_dec.copy_to(to_dec, d_out);
                SCRATCH.set(scratch);
            });
    })?;
    Ok(sums)
}
