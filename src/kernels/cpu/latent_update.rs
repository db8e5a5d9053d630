//! The sparse backward pass and Adam, one visit per latent: value gradients, both weight gradients, projection, moments,
//! renormalisation. A latent's gradient lives in two row-sized buffers; no gradient of size `[d_sae, d_in]` exists.
//!
//! Clipping by the global norm needs the norm before the first update, so [`measure`] walks the same gradients first: recomputing
//! them costs about `2 k / d_sae` of the encode, storing them would cost two matrices.

use std::cell::RefCell;

use candle_core::Tensor;
use rayon::prelude::*;

use super::storage::{with_slice, with_slices, with_slices_mut};
use super::vector::{axpy, dot, sq_norm};
use crate::error::Result;
use crate::kernels::{Coder, Columns, Measured, Pull, Role, SparseGrad};

/// Adam's settings at one step (Kingma & Ba, arXiv 1412.6980; no weight decay).
#[derive(Debug, Clone, Copy)]
pub struct Adam {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Step, from 1 (bias correction).
    pub step: u64,
    /// Factor on the gradient, 1 or less when clipping.
    pub grad_scale: f64,
}

/// First and second moments of a [`Coder`]'s four tensors, of the same shapes.
#[derive(Debug, Clone)]
pub struct Moments {
    /// First moments.
    pub first: Coder,
    /// Second moments.
    pub second: Coder,
}

impl Moments {
    /// Zeros for `coder`.
    ///
    /// # Errors
    /// When memory cannot be allocated.
    pub fn zeros(coder: &Coder) -> Result<Self> {
        let zeros = || -> Result<Coder> {
            Ok(Coder {
                w_enc: coder.w_enc.zeros_like()?,
                b_enc: coder.b_enc.zeros_like()?,
                w_dec: coder.w_dec.zeros_like()?,
                b_dec: coder.b_dec.zeros_like()?,
            })
        };
        Ok(Self { first: zeros()?, second: zeros()? })
    }
}

/// Latents whose contributions to `b_dec`'s gradient are summed together; fixed, so that sums do not depend on threads.
pub(super) const CHUNK: usize = 128;

/// A latent's gradient, in buffers that are used again for the next one.
#[derive(Default)]
struct LatentGrad {
    w_enc: Vec<f32>,
    w_dec: Vec<f32>,
    b_enc: f32,
    /// What reaches the encoder's input, in units of the latent's encoder row.
    through: f32,
    /// Per term: sums of dz and dz z.
    sums: Vec<[f32; 2]>,
}

thread_local! {
    static BUFFER: RefCell<LatentGrad> = RefCell::default();
}

/// A term with its gradient as a slice.
struct View<'a> {
    columns: &'a Columns,
    grad: &'a [f32],
    role: &'a Role,
}

/// A latent's encoder, and where it is pulled to.
struct Pulled<'a> {
    w_enc: (&'a [f32], &'a [f32]),
    b_enc: (f32, f32),
    pull: &'a Pull,
}

/// Where a pull goes, as slices; empty without one.
struct Target<'a> {
    pull: Option<&'a Pull>,
    w_enc: &'a [f32],
    b_enc: &'a [f32],
}

impl Target<'_> {
    fn of<'a>(&'a self, j: usize, w_enc: &'a [f32], b_enc: f32) -> Option<Pulled<'a>> {
        let d = w_enc.len();
        let pull = self.pull?;
        Some(Pulled { w_enc: (w_enc, &self.w_enc[j * d..(j + 1) * d]), b_enc: (b_enc, self.b_enc[j]), pull })
    }
}

impl LatentGrad {
    /// Adds a pull's gradient.
    fn pull(&mut self, p: &Pulled<'_>) {
        let twice = 2.0 * p.pull.weight;
        for ((g, w), to) in self.w_enc.iter_mut().zip(p.w_enc.0).zip(p.w_enc.1) {
            *g += twice * (w - to);
        }
        self.b_enc += 2.0 * p.pull.bias_weight * (p.b_enc.0 - p.b_enc.1);
    }

    /// Accumulates latent `j`'s gradient over all terms; false when nothing fired.
    fn accumulate(&mut self, j: usize, terms: &[View<'_>], x: &[f32], w_dec: &[f32], d_in: usize, unit_norm: bool) -> bool {
        let d_out = w_dec.len();
        self.w_enc.clear();
        self.w_enc.resize(d_in, 0.0);
        self.w_dec.clear();
        self.w_dec.resize(d_out, 0.0);
        self.sums.clear();
        (self.b_enc, self.through) = (0.0, 0.0);
        let mut any = false;
        for View { columns, grad, role } in terms {
            let (rows, values) = columns.column(j);
            any |= !rows.is_empty();
            let norm = if role.norm_penalty != 0.0 && !rows.is_empty() { sq_norm(w_dec).sqrt() } else { 0.0 };
            let gain = role.gain.as_ref().map_or(1.0, |g| g[j]);
            let (mut sum, mut sum_z, mut total) = (0f32, 0f32, 0f32);
            for (&r, &v) in rows.iter().zip(values) {
                let g = &grad[r as usize * d_out..(r as usize + 1) * d_out];
                let dz = dot(g, w_dec) + role.offset + role.norm_penalty * norm;
                if role.decoder {
                    axpy(v, g, &mut self.w_dec);
                }
                let da = dz * gain * role.softcap.map_or(1.0, |c| 1.0 - (v / c) * (v / c));
                if role.encoder {
                    axpy(da, &x[r as usize * d_in..(r as usize + 1) * d_in], &mut self.w_enc);
                    self.through += da;
                }
                if role.bias {
                    self.b_enc += da;
                }
                (sum, sum_z, total) = (sum + dz, sum_z + dz * v, total + v);
            }
            if role.decoder && norm > 0.0 {
                axpy(role.norm_penalty * total / norm, w_dec, &mut self.w_dec);
            }
            if role.sums {
                self.sums.push([sum, sum_z]);
            }
        }
        if any && unit_norm {
            let parallel = dot(&self.w_dec, w_dec);
            axpy(-parallel, w_dec, &mut self.w_dec);
        }
        any
    }
}

/// Calls `f` with the slices of a gradient's terms.
fn with_terms<R>(grad: &SparseGrad, f: impl FnOnce(&[View<'_>], &[f32], &Target<'_>) -> R) -> Result<R> {
    let pulled = grad.pull.iter().flat_map(|p| [&p.w_enc, &p.b_enc]);
    let tensors: Vec<&Tensor> = grad.terms.iter().map(|t| &t.grad).chain([&grad.x]).chain(pulled).collect();
    with_slices(&tensors, |slices| {
        let (grads, rest) = slices.split_at(grad.terms.len());
        let terms: Vec<View<'_>> =
            grad.terms.iter().zip(grads).map(|(t, g)| View { columns: &t.columns, grad: g, role: &t.role }).collect();
        let at = |i: usize| rest.get(i).copied().unwrap_or_default();
        f(&terms, at(0), &Target { pull: grad.pull.as_ref(), w_enc: at(1), b_enc: at(2) })
    })
}

/// See [`crate::kernels::measure`].
pub fn measure(coder: &Coder, grad: &SparseGrad, unit_norm: bool) -> Result<Measured> {
    let (_, d_in) = coder.w_enc.dims2()?;
    let (_, d_out) = coder.w_dec.dims2()?;
    let (b_dec, b_enc): (Vec<f32>, Vec<f32>) = (grad.b_dec.to_vec1()?, coder.b_enc.to_vec1()?);
    let chunks: Vec<(f64, Vec<f64>, Vec<[f32; 2]>)> = with_terms(grad, |terms, x, target| {
        with_slice(&coder.w_enc, |w_enc: &[f32]| {
            with_slice(&coder.w_dec, |w_dec: &[f32]| {
                (w_enc.par_chunks(CHUNK * d_in), w_dec.par_chunks(CHUNK * d_out))
                    .into_par_iter()
                    .enumerate()
                    .map(|(c, (w_enc, w_dec))| {
                        let mut sq = 0f64;
                        let mut through_encoder = vec![0f64; if grad.centred { d_in } else { 0 }];
                        let mut sums = Vec::new();
                        BUFFER.with_borrow_mut(|buffer| {
                            for (i, (w_enc, w_dec)) in w_enc.chunks_exact(d_in).zip(w_dec.chunks_exact(d_out)).enumerate() {
                                let j = c * CHUNK + i;
                                let mut any = buffer.accumulate(j, terms, x, w_dec, d_in, unit_norm);
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
    Ok(Measured { sq_norm, b_dec: Tensor::from_vec(b_dec, d_out, coder.b_dec.device())?, sums })
}

/// Adam on slices, constants folded once per step.
#[derive(Clone, Copy)]
pub(super) struct Rule {
    beta1: f32,
    beta2: f32,
    eps: f32,
    /// `lr / (1 - beta1^t)`.
    step_size: f32,
    /// `1 / sqrt(1 - beta2^t)`.
    root_correction: f32,
    grad_scale: f32,
}

impl Rule {
    pub(super) fn new(adam: &Adam) -> Self {
        let t = adam.step as f64;
        Self {
            beta1: adam.beta1 as f32,
            beta2: adam.beta2 as f32,
            eps: adam.eps as f32,
            step_size: (adam.lr / (1.0 - adam.beta1.powf(t))) as f32,
            root_correction: (1.0 / (1.0 - adam.beta2.powf(t)).sqrt()) as f32,
            grad_scale: adam.grad_scale as f32,
        }
    }

    #[inline]
    pub(super) fn apply(&self, p: &mut [f32], m: &mut [f32], v: &mut [f32], g: impl Iterator<Item = f32>) {
        for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
            let g = g * self.grad_scale;
            *m = self.beta1 * *m + (1.0 - self.beta1) * g;
            *v = self.beta2 * *v + (1.0 - self.beta2) * g * g;
            *p -= self.step_size * *m / (v.sqrt() * self.root_correction + self.eps);
        }
    }
}

/// Adam on one vector of parameters, in place.
pub fn vector_update(parameter: &mut [f32], first: &mut [f32], second: &mut [f32], grad: &[f32], adam: &Adam) {
    Rule::new(adam).apply(parameter, first, second, grad.iter().copied());
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
            rule.apply(bd, mbd, vbd, b_dec_grad.iter().copied());
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
                        buffer.accumulate(j, terms, x, wd, d_in, unit_norm);
                        if let Some(pulled) = target.of(j, we, be[0]) {
                            buffer.pull(&pulled);
                        }
                        rule.apply(we, mwe, vwe, buffer.w_enc.iter().copied());
                        rule.apply(be, mbe, vbe, std::iter::once(buffer.b_enc));
                        rule.apply(wd, mwd, vwd, buffer.w_dec.iter().copied());
                        if unit_norm {
                            let norm = sq_norm(wd).sqrt();
                            if norm > 0.0 {
                                wd.iter_mut().for_each(|w| *w /= norm);
                            }
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
    with_terms(grad, |terms, x, target| {
        let mut buffer = LatentGrad::default();
        for (j, row) in w_dec.iter().enumerate() {
            buffer.accumulate(j, terms, x, row, d_in, unit_norm);
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
        b_dec: measure(coder, grad, unit_norm).unwrap().b_dec,
    }
}
