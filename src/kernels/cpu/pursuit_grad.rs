//! The exact gradient through an unrolled pursuit, by latent, from the tape of its steps.
//!
//! With the running gradient `g_t = g_T + sum_{s>t} dv_s D_s` and `r_{t-1} = r_T + sum_{s>=t} v_s D_s`, a step's share is
//!
//! ```text
//! dv_t r_{t-1} - v_t g_t = dv_t r_T - v_t g_T + sum_{s>t} (dv_t v_s - v_t dv_s) D_s + dv_t v_t D_t
//! ```
//!
//! which needs nothing but the tape and the atoms: each latent sums its own steps in a fixed order, no row waits for another, and no
//! gradient of the dictionary's size is stored. It costs T/2 atoms per step, twice (to measure, to update).

use std::cell::RefCell;

use candle_core::Tensor;
use rayon::prelude::*;

use super::adam::{Adam, Moments, Rule};
use super::latent_update::CHUNK;
use super::storage::{with_slice, with_slices, with_slices_mut};
use super::vector::{axpy, combine, dot, sq_norm};
use crate::codes::PAD;
use crate::error::Result;
use crate::kernels::{Coder, Columns, Measured, PursuitGrad, PursuitPath};

/// Gradients of the coefficients, `[n, steps]`, and of the input, `[n, d]`.
pub fn pursuit_backward(atoms: &Tensor, path: &PursuitPath, grad: &Tensor) -> Result<(Tensor, Tensor)> {
    let (n, steps) = path.indices.dims2()?;
    let (_, d) = atoms.dims2()?;
    let mut g: Vec<f32> = super::encode::to_vec(grad)?;
    let mut dv = vec![0f32; n * steps];
    with_slice(&path.indices, |indices: &[u32]| {
        with_slice(atoms, |atoms: &[f32]| {
            (g.par_chunks_mut(d), dv.par_chunks_mut(steps), indices.par_chunks(steps)).into_par_iter().for_each(|(g, dv, indices)| {
                for (dv, &j) in dv.iter_mut().zip(indices).rev().filter(|(_, &j)| j != PAD) {
                    let atom = &atoms[j as usize * d..(j as usize + 1) * d];
                    *dv = -dot(g, atom);
                    axpy(*dv, atom, g);
                }
            });
        })
    })??;
    Ok((Tensor::from_vec(dv, (n, steps), atoms.device())?, Tensor::from_vec(g, (n, d), atoms.device())?))
}

/// A tape's slices.
struct Steps<'a> {
    columns: &'a Columns,
    steps: usize,
    indices: &'a [u32],
    values: &'a [f32],
    dv: &'a [f32],
    residual: &'a [f32],
    grad: &'a [f32],
}

/// All that a latent's gradient is made of.
struct Parts<'a> {
    tapes: Vec<Steps<'a>>,
    /// By latent: does the shared direction belong to it?
    shared: Option<(Vec<bool>, Vec<f32>)>,
    atoms: &'a [f32],
    d: usize,
    unit_norm: bool,
}

thread_local! {
    static BUFFER: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl Parts<'_> {
    fn atom(&self, j: usize) -> &[f32] {
        &self.atoms[j * self.d..(j + 1) * self.d]
    }

    /// Latent `j`'s gradient into `out`; false (and zeros) when nothing reaches it.
    fn accumulate(&self, j: usize, out: &mut Vec<f32>) -> bool {
        out.clear();
        out.resize(self.d, 0.0);
        let (mut any, mut factors) = (false, Vec::new());
        let own = self.atom(j);
        for tape in &self.tapes {
            let (entries, values) = tape.columns.column(j);
            for (&e, &v) in entries.iter().zip(values) {
                any = true;
                let (row, t) = (e as usize / tape.steps, e as usize % tape.steps);
                let span = row * self.d..(row + 1) * self.d;
                let dv = tape.dv[e as usize];
                axpy(-v, &tape.grad[span.clone()], out);
                axpy(dv, &tape.residual[span], out);
                axpy(dv * v, own, out);
                let later = row * tape.steps + t + 1..(row + 1) * tape.steps;
                let atoms = &tape.indices[later.clone()];
                let atoms = &atoms[..atoms.iter().position(|&i| i == PAD).unwrap_or(atoms.len())];
                factors.clear();
                factors.extend(tape.values[later.clone()].iter().zip(&tape.dv[later]).map(|(value, of)| dv * value - v * of));
                combine(&factors, 1.0, atoms, self.atoms, out);
            }
        }
        if let Some((_, direction)) = self.shared.as_ref().filter(|(members, _)| members[j]) {
            any = true;
            axpy(1.0, direction, out);
        }
        if any && self.unit_norm {
            let parallel = dot(out, own);
            axpy(-parallel, own, out);
        }
        any
    }
}

/// Calls `f` with all that a gradient is made of; `atoms` are the values to differentiate at.
fn with_parts<R>(grad: &PursuitGrad, atoms: &[f32], d: usize, unit_norm: bool, f: impl FnOnce(&Parts<'_>) -> R) -> Result<R> {
    let m = atoms.len() / d;
    let floats: Vec<&Tensor> = grad.tapes.iter().flat_map(|t| [&t.path.values, &t.dv, &t.path.residual, &t.grad]).collect();
    let indices: Vec<&Tensor> = grad.tapes.iter().map(|t| &t.path.indices).collect();
    let shared = match &grad.shared {
        None => None,
        Some((latents, direction)) => {
            let mut members = vec![false; m];
            latents.iter().for_each(|&j| members[j as usize] = true);
            Some((members, direction.to_vec1()?))
        }
    };
    let steps: Vec<usize> = indices.iter().map(|t| t.dim(1)).collect::<candle_core::Result<_>>()?;
    with_slices(&floats, |floats: &[&[f32]]| {
        with_slices(&indices, |indices: &[&[u32]]| {
            let tapes = (floats.chunks_exact(4).zip(indices).zip(&grad.tapes).zip(steps))
                .map(|(((f, i), t), steps)| Steps {
                    columns: &t.columns,
                    steps,
                    indices: i,
                    values: f[0],
                    dv: f[1],
                    residual: f[2],
                    grad: f[3],
                })
                .collect();
            f(&Parts { tapes, shared, atoms, d, unit_norm })
        })
    })?
}

/// See [`crate::kernels::Gradient::measure`].
pub fn pursuit_measure(coder: &Coder, grad: &PursuitGrad, unit_norm: bool) -> Result<Measured> {
    let (m, d) = coder.w_dec.dims2()?;
    let chunks: Vec<f64> = with_slice(&coder.w_dec, |atoms: &[f32]| {
        with_parts(grad, atoms, d, unit_norm, |parts| {
            (0..m.div_ceil(CHUNK))
                .into_par_iter()
                .map(|c| {
                    BUFFER.with_borrow_mut(|buffer| {
                        let latents = c * CHUNK..((c + 1) * CHUNK).min(m);
                        latents.map(|j| if parts.accumulate(j, buffer) { f64::from(sq_norm(buffer)) } else { 0.0 }).sum()
                    })
                })
                .collect()
        })
    })??;
    let b_dec: Vec<f32> = grad.b_dec.to_vec1()?;
    let sq_norm = chunks.iter().sum::<f64>() + b_dec.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
    Ok(Measured { sq_norm, b_dec: grad.b_dec.clone(), sums: Vec::new(), dz: Vec::new() })
}

/// See [`crate::kernels::Gradient::update`].
pub fn pursuit_update(
    coder: &Coder,
    moments: &Moments,
    grad: &PursuitGrad,
    measured: &Measured,
    adam: &Adam,
    unit_norm: bool,
) -> Result<()> {
    let (_, d) = coder.w_dec.dims2()?;
    let rule = Rule::new(adam);
    let b_dec: Vec<f32> = measured.b_dec.to_vec1()?;
    let (first, second) = (&moments.first, &moments.second);
    let tensors = [&coder.w_dec, &first.w_dec, &second.w_dec, &coder.b_dec, &first.b_dec, &second.b_dec];
    // A latent's gradient holds atoms of the latents that came later in its rows: all are read as they were before this step.
    let atoms: Vec<f32> = super::encode::to_vec(&coder.w_dec)?;
    with_parts(grad, &atoms, d, unit_norm, |parts| {
        with_slices_mut(&tensors, &mut |slices| {
            let [wd, mwd, vwd, bd, mbd, vbd] = slices else { unreachable!("six tensors went in") };
            rule.apply(bd, mbd, vbd, &b_dec);
            (wd.par_chunks_mut(d), mwd.par_chunks_mut(d), vwd.par_chunks_mut(d)).into_par_iter().enumerate().with_min_len(32).for_each(
                |(j, (wd, mwd, vwd))| {
                    BUFFER.with_borrow_mut(|buffer| {
                        // Silent latents still see their moments decay: that is what Adam does.
                        parts.accumulate(j, buffer);
                        rule.apply(wd, mwd, vwd, buffer);
                        if unit_norm {
                            let norm = sq_norm(wd).sqrt();
                            if norm > 0.0 {
                                wd.iter_mut().for_each(|w| *w /= norm);
                            }
                        }
                    });
                },
            );
        })
    })?
}
