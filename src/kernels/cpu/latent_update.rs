//! The sparse backward pass and Adam, one visit per latent: value gradients, both weight gradients, projection, moments,
//! renormalisation. A latent's gradient lives in two row-sized buffers; no gradient of size `[d_sae, d_in]` exists.
//!
//! Clipping by the global norm needs the norm before the first update, so [`measure`] walks the same gradients first: recomputing
//! them costs about `2 k / d_sae` of the encode, storing them would cost two matrices. The gradients of the values are kept.

use std::cell::RefCell;

use candle_core::Tensor;
use rayon::prelude::*;

use super::adam::{Adam, Moments, Rule};
use super::latent_grad::{with_terms, Dz, LatentGrad, View};
use super::storage::{with_slice, with_slices_mut};
use super::vector::sq_norm;
use crate::error::Result;
use crate::kernels::{Coder, Measured, SparseGrad};

/// Latents whose contributions to `b_dec`'s gradient are summed together; fixed, so that sums do not depend on threads.
pub(super) const CHUNK: usize = 128;

thread_local! {
    static BUFFER: RefCell<LatentGrad> = RefCell::default();
}

/// The places of each chunk's entries in the values' gradients, per term.
fn by_chunk<'a>(dz: &'a mut [Vec<f32>], terms: &[View<'_>], d_sae: usize) -> Vec<Vec<&'a mut [f32]>> {
    let mut chunks: Vec<Vec<&mut [f32]>> = (0..d_sae.div_ceil(CHUNK)).map(|_| Vec::with_capacity(terms.len())).collect();
    for (dz, term) in dz.iter_mut().zip(terms) {
        let mut rest = dz.as_mut_slice();
        for (c, chunk) in chunks.iter_mut().enumerate() {
            let end = term.columns.starts[((c + 1) * CHUNK).min(d_sae)] - term.columns.starts[c * CHUNK];
            let (own, later) = rest.split_at_mut(end.min(rest.len()));
            chunk.push(own);
            rest = later;
        }
    }
    chunks
}

/// See [`crate::kernels::measure`].
pub fn measure(coder: &Coder, grad: &SparseGrad, unit_norm: bool) -> Result<Measured> {
    let (_, d_in) = coder.w_enc.dims2()?;
    let (_, d_out) = coder.w_dec.dims2()?;
    let (b_dec, b_enc): (Vec<f32>, Vec<f32>) = (grad.b_dec.to_vec1()?, coder.b_enc.to_vec1()?);
    let d_sae = b_enc.len();
    let mut dz: Vec<Vec<f32>> = grad.terms.iter().map(|t| vec![0.0; if t.summed.is_some() { 0 } else { t.columns.values.len() }]).collect();
    let chunks: Vec<(f64, Vec<f64>, Vec<[f32; 2]>)> = with_terms(grad, |terms, x, target| {
        let by_chunk = by_chunk(&mut dz, terms, d_sae);
        with_slice(&coder.w_enc, |w_enc: &[f32]| {
            with_slice(&coder.w_dec, |w_dec: &[f32]| {
                (w_enc.par_chunks(CHUNK * d_in), w_dec.par_chunks(CHUNK * d_out), by_chunk)
                    .into_par_iter()
                    .enumerate()
                    .map(|(c, (w_enc, w_dec, mut dz))| {
                        let mut dz = Dz::Find(&mut dz);
                        let mut sq = 0f64;
                        let mut through_encoder = vec![0f64; if grad.centred { d_in } else { 0 }];
                        let mut sums = Vec::new();
                        BUFFER.with_borrow_mut(|buffer| {
                            for (i, (w_enc, w_dec)) in w_enc.chunks_exact(d_in).zip(w_dec.chunks_exact(d_out)).enumerate() {
                                let j = c * CHUNK + i;
                                let mut any = buffer.accumulate(j, terms, (x, d_in), w_dec, unit_norm, &mut dz);
                                if let Some(pulled) = target.of(j, w_enc, b_enc[j]) {
                                    buffer.pull(&pulled);
                                    any = true;
                                }
                                sums.extend_from_slice(&buffer.sums);
                                if !any {
                                    continue;
                                }
                                sq += f64::from(sq_norm(&buffer.w_enc)) + f64::from(sq_norm(&buffer.w_dec));
                                sq += f64::from(buffer.b_enc) * f64::from(buffer.b_enc);
                                for (sum, w) in through_encoder.iter_mut().zip(w_enc) {
                                    *sum += f64::from(buffer.through) * f64::from(*w);
                                }
                            }
                        });
                        (sq, through_encoder, sums)
                    })
                    .collect()
            })
        })
    })???;
    let mut sq_norm = 0f64;
    let mut total: Vec<f64> = b_dec.iter().map(|&g| f64::from(g)).collect();
    let n_sums = grad.terms.iter().filter(|t| t.role.sums).count();
    let mut sums: Vec<Vec<[f32; 2]>> = vec![Vec::new(); n_sums];
    for (sq, through_encoder, of_latents) in &chunks {
        sq_norm += sq;
        for latent in of_latents.chunks_exact(n_sums.max(1)) {
            sums.iter_mut().zip(latent).for_each(|(all, one)| all.push(*one));
        }
        for (t, e) in total.iter_mut().zip(through_encoder) {
            *t -= e;
        }
    }
    sq_norm += total.iter().map(|g| g * g).sum::<f64>();
    let b_dec = total.into_iter().map(|g| g as f32).collect::<Vec<_>>();
    Ok(Measured { sq_norm, b_dec: Tensor::from_vec(b_dec, d_out, coder.b_dec.device())?, sums, dz })
}

/// See [`crate::kernels::latent_update`].
pub fn latent_update(coder: &Coder, moments: &Moments, grad: &SparseGrad, measured: &Measured, adam: &Adam, unit_norm: bool) -> Result<()> {
    let (_, d_in) = coder.w_enc.dims2()?;
    let (_, d_out) = coder.w_dec.dims2()?;
    let rule = Rule::new(adam);
    let b_dec_grad: Vec<f32> = measured.b_dec.to_vec1()?;
    let (first, second) = (&moments.first, &moments.second);
    let tensors = [
        &coder.w_enc,
        &first.w_enc,
        &second.w_enc,
        &coder.w_dec,
        &first.w_dec,
        &second.w_dec,
        &coder.b_enc,
        &first.b_enc,
        &second.b_enc,
        &coder.b_dec,
        &first.b_dec,
        &second.b_dec,
    ];
    with_terms(grad, |terms, x, target| {
        with_slices_mut(&tensors, &mut |slices| {
            let [we, mwe, vwe, wd, mwd, vwd, be, mbe, vbe, bd, mbd, vbd] = slices else { unreachable!("twelve tensors went in") };
            rule.apply(bd, mbd, vbd, &b_dec_grad);
            (
                we.par_chunks_mut(d_in),
                mwe.par_chunks_mut(d_in),
                vwe.par_chunks_mut(d_in),
                wd.par_chunks_mut(d_out),
                mwd.par_chunks_mut(d_out),
                vwd.par_chunks_mut(d_out),
                be.par_chunks_mut(1),
                mbe.par_chunks_mut(1),
                vbe.par_chunks_mut(1),
            )
                .into_par_iter()
                .enumerate()
                .with_min_len(32)
                .for_each(|(j, (we, mwe, vwe, wd, mwd, vwd, be, mbe, vbe))| {
                    BUFFER.with_borrow_mut(|buffer| {
                        // Silent latents still see their moments decay: that is what Adam does.
                        buffer.accumulate(j, terms, (x, d_in), wd, unit_norm, &mut Dz::Known(&measured.dz));
                        if let Some(pulled) = target.of(j, we, be[0]) {
                            buffer.pull(&pulled);
                        }
                        rule.apply(we, mwe, vwe, &buffer.w_enc);
                        rule.apply(be, mbe, vbe, &[buffer.b_enc]);
                        if unit_norm {
                            rule.apply_on_sphere(wd, mwd, vwd, &buffer.w_dec);
                        } else {
                            rule.apply(wd, mwd, vwd, &buffer.w_dec);
                        }
                    });
                });
        })
    })?
}

/// The whole gradient, dense, for tests.
#[cfg(test)]
pub fn dense_gradient(coder: &Coder, grad: &SparseGrad, unit_norm: bool) -> Coder {
    let (d_sae, d_in) = coder.w_enc.dims2().unwrap();
    let w_dec: Vec<Vec<f32>> = coder.w_dec.to_vec2().unwrap();
    let (mut we, mut be, mut wd) = (Vec::new(), Vec::new(), Vec::new());
    let (w_enc, b_enc): (Vec<Vec<f32>>, Vec<f32>) = (coder.w_enc.to_vec2().unwrap(), coder.b_enc.to_vec1().unwrap());
    let measured = measure(coder, grad, unit_norm).unwrap();
    with_terms(grad, |terms, x, target| {
        let mut buffer = LatentGrad::default();
        for (j, row) in w_dec.iter().enumerate() {
            buffer.accumulate(j, terms, (x, d_in), row, unit_norm, &mut Dz::Known(&measured.dz));
            if let Some(pulled) = target.of(j, &w_enc[j], b_enc[j]) {
                buffer.pull(&pulled);
            }
            we.extend_from_slice(&buffer.w_enc);
            be.push(buffer.b_enc);
            wd.extend_from_slice(&buffer.w_dec);
        }
    })
    .unwrap();
    let device = coder.w_enc.device();
    Coder {
        w_enc: Tensor::from_vec(we, (d_sae, d_in), device).unwrap(),
        b_enc: Tensor::from_vec(be, d_sae, device).unwrap(),
        w_dec: Tensor::from_vec(wd, coder.w_dec.dims(), device).unwrap(),
        b_dec: measured.b_dec,
    }
}
