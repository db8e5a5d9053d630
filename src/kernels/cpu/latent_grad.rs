//! One latent's gradient from the entries of a batch's codes, in two row-sized buffers that the next latent uses again.

use super::storage::with_slices;
use super::vector::{axpy, combine, dot, four_dots, sq_norm};
use crate::error::Result;
use crate::kernels::{Columns, Pull, Role, SparseGrad, Summed};

use candle_core::Tensor;

/// A latent's gradient, in buffers that are used again for the next one.
#[derive(Default)]
pub(super) struct LatentGrad {
    pub w_enc: Vec<f32>,
    pub w_dec: Vec<f32>,
    pub b_enc: f32,
    /// What reaches the encoder's input, in units of the latent's encoder row.
    pub through: f32,
    /// Per term: sums of dz and dz z.
    pub sums: Vec<[f32; 2]>,
    /// Gradients of the values of a term's entries, and of their pre-activations.
    dz: Vec<f32>,
    da: Vec<f32>,
}

/// Gradients of the values of each term's entries: found once, when the gradient is measured, and kept for the update.
pub(super) enum Dz<'a> {
    /// Compute them, and put them here: a slice per term, of some latents that begin with this one's.
    Find(&'a mut [&'a mut [f32]]),
    /// All of them, per term.
    Known(&'a [Vec<f32>]),
}

/// A term with its gradient as a slice.
pub(super) struct View<'a> {
    pub columns: &'a Columns,
    grad: &'a [f32],
    scale: f32,
    pub role: &'a Role,
    summed: Option<&'a Summed>,
}

/// A latent's encoder, and where it is pulled to.
pub(super) struct Pulled<'a> {
    w_enc: (&'a [f32], &'a [f32]),
    b_enc: (f32, f32),
    pull: &'a Pull,
}

/// Where a pull goes, as slices; empty without one.
pub(super) struct Target<'a> {
    pull: Option<&'a Pull>,
    w_enc: &'a [f32],
    b_enc: &'a [f32],
}

impl Target<'_> {
    pub fn of<'a>(&'a self, j: usize, w_enc: &'a [f32], b_enc: f32) -> Option<Pulled<'a>> {
        let d = w_enc.len();
        let pull = self.pull?;
        Some(Pulled { w_enc: (w_enc, &self.w_enc[j * d..(j + 1) * d]), b_enc: (b_enc, self.b_enc[j]), pull })
    }
}

/// Row `r` of a matrix `[_, d]`.
fn row(matrix: &[f32], r: u32, d: usize) -> &[f32] {
    &matrix[r as usize * d..(r as usize + 1) * d]
}

/// `scale <grad_r, w> + offset` for rows `r`.
pub(super) fn products(rows: &[u32], grad: &[f32], w: &[f32], scale: f32, offset: f32, out: &mut [f32]) {
    let d = w.len();
    let (fours, rest) = rows.as_chunks::<4>();
    let (out_fours, out_rest) = out.as_chunks_mut::<4>();
    for (rows, out) in fours.iter().zip(out_fours) {
        *out = four_dots(rows.map(|r| row(grad, r, d)), w).map(|p| p * scale + offset);
    }
    if let Some(last) = rest.len().checked_sub(1) {
        // The last again, where there is none: four at once cost less than two one by one.
        let four = four_dots([0, 1, 2, 3].map(|i: usize| row(grad, rest[i.min(last)], d)), w);
        out_rest.iter_mut().zip(four).for_each(|(out, p)| *out = p * scale + offset);
    }
}

/// Takes the part of `g` that is parallel to a unit vector away.
fn project(g: &mut [f32], unit: &[f32]) {
    let parallel = dot(g, unit);
    axpy(-parallel, unit, g);
}

impl LatentGrad {
    /// Adds a pull's gradient.
    pub fn pull(&mut self, p: &Pulled<'_>) {
        let twice = 2.0 * p.pull.weight;
        for ((g, w), to) in self.w_enc.iter_mut().zip(p.w_enc.0).zip(p.w_enc.1) {
            *g += twice * (w - to);
        }
        self.b_enc += 2.0 * p.pull.bias_weight * (p.b_enc.0 - p.b_enc.1);
    }

    /// Accumulates latent `j`'s gradient over all terms, `x` `[_, d_in]`; false when nothing fired.
    pub fn accumulate(
        &mut self,
        j: usize,
        terms: &[View<'_>],
        (x, d_in): (&[f32], usize),
        w_dec: &[f32],
        unit_norm: bool,
        dz: &mut Dz<'_>,
    ) -> bool {
        self.w_enc.clear();
        self.w_enc.resize(d_in, 0.0);
        self.w_dec.clear();
        self.w_dec.resize(w_dec.len(), 0.0);
        self.sums.clear();
        (self.b_enc, self.through) = (0.0, 0.0);
        let mut any = false;
        for (t, term) in terms.iter().enumerate() {
            match term.summed {
                Some(summed) => any |= self.add_summed(j, summed, term.role),
                None => any |= self.add_entries(j, t, term, x, w_dec, dz),
            }
        }
        if any && unit_norm {
            project(&mut self.w_dec, w_dec);
        }
        any
    }

    fn add_summed(&mut self, j: usize, summed: &Summed, role: &Role) -> bool {
        let Ok(slot) = summed.latents.binary_search(&(j as u32)) else { return false };
        if role.decoder {
            axpy(1.0, row(&summed.w_dec, slot as u32, self.w_dec.len()), &mut self.w_dec);
        }
        axpy(1.0, row(&summed.w_enc, slot as u32, self.w_enc.len()), &mut self.w_enc);
        self.b_enc += summed.bias[slot];
        self.through += summed.bias[slot];
        true
    }

    fn add_entries(&mut self, j: usize, t: usize, term: &View<'_>, x: &[f32], w_dec: &[f32], dz: &mut Dz<'_>) -> bool {
        let View { columns, grad, role, scale, .. } = term;
        let (rows, values) = columns.column(j);
        if rows.is_empty() {
            if role.sums {
                self.sums.push([0.0; 2]);
            }
            return false;
        }
        let norm = if role.norm_penalty != 0.0 { sq_norm(w_dec).sqrt() } else { 0.0 };
        self.dz.clear();
        match dz {
            Dz::Known(all) => self.dz.extend_from_slice(&all[t][columns.starts[j]..columns.starts[j + 1]]),
            Dz::Find(out) => {
                self.dz.resize(rows.len(), 0.0);
                products(rows, grad, w_dec, *scale, role.offset + role.norm_penalty * norm, &mut self.dz);
                let (own, rest) = std::mem::take(&mut out[t]).split_at_mut(rows.len());
                own.copy_from_slice(&self.dz);
                out[t] = rest;
            }
        }
        if role.decoder {
            combine(values, *scale, rows, grad, &mut self.w_dec);
        }
        let gain = role.gain.as_ref().map_or(1.0, |g| g[j]);
        let slope = |v: f32| role.softcap.map_or(1.0, |c| 1.0 - (v / c) * (v / c));
        self.da.clear();
        self.da.extend(self.dz.iter().zip(values).map(|(dz, &v)| dz * gain * slope(v)));
        if role.encoder {
            combine(&self.da, 1.0, rows, x, &mut self.w_enc);
        }
        let sum: f32 = self.da.iter().sum();
        if role.encoder {
            self.through += sum;
        }
        if role.bias {
            self.b_enc += sum;
        }
        if role.decoder && norm > 0.0 {
            axpy(role.norm_penalty * values.iter().sum::<f32>() / norm, w_dec, &mut self.w_dec);
        }
        if role.sums {
            let sum_z = self.dz.iter().zip(values).map(|(dz, v)| dz * v).sum();
            self.sums.push([self.dz.iter().sum(), sum_z]);
        }
        true
    }
}

/// Calls `f` with the slices of a gradient's terms.
pub(super) fn with_terms<R>(grad: &SparseGrad, f: impl FnOnce(&[View<'_>], &[f32], &Target<'_>) -> R) -> Result<R> {
    let pulled = grad.pull.iter().flat_map(|p| [&p.w_enc, &p.b_enc]);
    let tensors: Vec<&Tensor> = grad.terms.iter().map(|t| &t.grad).chain([&grad.x]).chain(pulled).collect();
    with_slices(&tensors, |slices| {
        let (grads, rest) = slices.split_at(grad.terms.len());
        let view = |(t, g)| {
            let t: &crate::kernels::Term = t;
            View { columns: &t.columns, grad: g, scale: t.scale, role: &t.role, summed: t.summed.as_ref() }
        };
        let terms: Vec<View<'_>> = grad.terms.iter().zip(grads.iter().copied()).map(view).collect();
        let at = |i: usize| rest.get(i).copied().unwrap_or_default();
        f(&terms, at(0), &Target { pull: grad.pull.as_ref(), w_enc: at(1), b_enc: at(2) })
    })
}
