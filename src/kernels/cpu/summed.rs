//! The gradient of few latents with many entries each: a segment of the rows stays in cache while a group of latents takes from it, so
//! that rows pass the cache once per group instead of once per entry. Each latent's sums run over its rows in order all the same.

use std::ops::Range;

use candle_core::Tensor;
use rayon::prelude::*;

use super::aligned::{below, Aligned};
use super::latent_grad::products;
use super::storage::with_slices;
use super::vector::combine;
use crate::error::Result;
use crate::kernels::{Summed, Term};

/// Most latents that take from a segment together: all rows pass once per group.
const GROUP: usize = 128;
/// Entries that a latent should have in a segment: fewer, and its sums are moved more than they are added to.
const ENTRIES: usize = 8;

/// A group's atoms, sums and values' gradients, and how far each of its latents got.
#[derive(Default)]
struct Scratch {
    atoms: Aligned,
    sums: Aligned,
    dz: Vec<f32>,
    at: Vec<usize>,
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
    let entries = term.columns.rows.len().max(1);
    let walk = Walk { term, n, segment: (ENTRIES * latents.len() * n / entries).clamp(32, 256) };
    let group = latents.len().div_ceil(4 * rayon::current_num_threads()).clamp(1, GROUP);
    with_slices(&[x, w_dec, &term.grad], |slices: &[&[f32]]| {
        let [x, atoms, grad] = slices else { unreachable!("three tensors went in") };
        let (x, grad) = (Aligned::copy(x, d_in), Aligned::copy(grad, d_out));
        (
            latents.par_chunks(group),
            w_enc.par_chunks_mut(group * d_in),
            of_decoder.par_chunks_mut(group * d_out),
            bias.par_chunks_mut(group),
        )
            .into_par_iter()
            .for_each_init(Scratch::default, |scratch, (latents, w_enc, w_dec, bias)| {
                let Scratch { atoms: own, sums, dz, at } = scratch;
                own.gather_from(atoms, d_out, latents);
                dz.clear();
                dz.resize(latents.iter().map(|&j| term.columns.count(j as usize)).sum(), 0.0);
                // The gradient's rows first, then the input's: half the sums at a time stay in cache.
                sums.reset(latents.len(), d_out);
                walk.each(latents, &grad, sums, at, |i, rows, values, places, sum| {
                    let atom = &own.slice()[i * grad.width()..(i + 1) * grad.width()];
                    products(rows, grad.slice(), atom, term.scale, 0.0, &mut dz[places]);
                    combine(values, term.scale, rows, grad.slice(), sum);
                });
                sums.copy_to(w_dec, d_out);
                sums.reset(latents.len(), d_in);
                walk.each(latents, &x, sums, at, |i, rows, _, places, sum| {
                    combine(&dz[places.clone()], 1.0, rows, x.slice(), sum);
                    bias[i] += dz[places].iter().sum::<f32>();
                });
                sums.copy_to(w_enc, d_in);
            });
    })?;
    Ok(sums)
}

/// How a group of latents walks over the rows.
struct Walk<'a> {
    term: &'a Term,
    n: usize,
    /// Rows that all of the group take from before the next ones.
    segment: usize,
}

impl Walk<'_> {
    /// Calls `f(latent's place in the group, rows, values, places among the group's entries, its sum)`; the next rows of `of_rows` are on
    /// their way meanwhile.
    fn each(
        &self,
        latents: &[u32],
        of_rows: &Aligned,
        sums: &mut Aligned,
        at: &mut Vec<usize>,
        mut f: impl FnMut(usize, &[u32], &[f32], Range<usize>, &mut [f32]),
    ) {
        at.clear();
        at.resize(latents.len(), 0);
        let width = sums.width();
        for end in (self.segment..self.n + self.segment).step_by(self.segment) {
            let mut first = 0;
            for (i, ((&j, at), sum)) in latents.iter().zip(&mut *at).zip(sums.slice_mut().chunks_exact_mut(width)).enumerate() {
                if i < self.segment {
                    of_rows.prefetch(end + i);
                }
                let (rows, values) = self.term.columns.column(j as usize);
                let of_segment = *at..*at + below(&rows[*at..], end);
                *at = of_segment.end;
                let places = first + of_segment.start..first + of_segment.end;
                first += rows.len();
                f(i, &rows[of_segment.clone()], &values[of_segment], places, sum);
            }
        }
    }
}
