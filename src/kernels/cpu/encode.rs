//! Fused encode and selection: a block of rows meets panels of the encoder; the pre-activations of one panel stay in cache, pass a
//! per-row threshold, and only survivors are kept.
//!
//! The encoder panel is the left operand and the destination is token-contiguous: measured faster than the natural orientation,
//! which repacks the big matrix for every block of rows. Rayon runs over blocks of rows, so each row's arithmetic is the same
//! whatever the number of threads.

use std::cell::RefCell;

use candle_core::{Tensor, WithDType};
use rayon::prelude::*;

use super::storage::with_slice;
use crate::codes::{Codes, PAD};
use crate::error::Result;
use crate::kernels::Selection;

/// Rows per block.
pub(super) const BLOCK: usize = 64;
/// Latents per panel: 1024 x 64 f32 is 256 KiB, which stays in the second-level cache.
const PANEL: usize = 1024;

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Calls `visit(first_latent, pre)` for each panel, `pre` `[panel][rows]`: products without bias, which `visit` may write over.
pub(super) fn panels(x: &[f32], rows: usize, d: usize, w: &[f32], d_sae: usize, mut visit: impl FnMut(usize, &mut [f32])) {
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.resize(PANEL * BLOCK, 0.0);
        for first in (0..d_sae).step_by(PANEL) {
            let m = PANEL.min(d_sae - first);
            // SAFETY: dst covers m x rows with strides (rows, 1) inside `scratch` (m <= PANEL, rows <= BLOCK); lhs covers rows
            // first..first + m of the [d_sae, d] matrix `w`; rhs covers the [rows, d] matrix `x`, read transposed. dst is not read.
            unsafe {
                gemm::gemm(
                    m,
                    rows,
                    d,
                    scratch.as_mut_ptr(),
                    1,
                    rows as isize,
                    false,
                    w[first * d..].as_ptr(),
                    1,
                    d as isize,
                    x.as_ptr(),
                    d as isize,
                    1,
                    0.0,
                    1.0,
                    false,
                    false,
                    false,
                    gemm::Parallelism::None,
                );
            }
            visit(first, &mut scratch[..m * rows]);
        }
    });
}

/// Larger value first, then lower index: one unsigned comparison. Values are positive, so their bits are ordered.
fn key(value: f32, index: u32) -> u64 {
    (u64::from(value.to_bits()) << 32) | u64::from(!index)
}

/// The survivors of one row so far.
struct Candidates {
    keys: Vec<u64>,
    k: usize,
    /// Nothing at or below this value can still be selected.
    threshold: f32,
}

impl Candidates {
    fn push(&mut self, value: f32, index: u32) {
        self.keys.push(key(value, index));
        if self.keys.len() >= 4 * self.k + 16 {
            self.compact();
        }
    }

    fn compact(&mut self) {
        if self.keys.len() > self.k {
            self.keys.select_nth_unstable_by(self.k - 1, |a, b| b.cmp(a));
            self.keys.truncate(self.k);
            // Latents come in ascending order, so a later one with an equal value loses its tie: strict `>` is right.
            self.threshold = f32::from_bits((self.keys[self.k - 1] >> 32) as u32);
        }
    }
}

/// See [`crate::kernels::encode_topk`].
pub fn encode_topk(x: &Tensor, w_enc: &Tensor, b_enc: &Tensor, k: usize, rank: Option<&Tensor>) -> Result<Selection> {
    let (n, d) = x.dims2()?;
    let d_sae = w_enc.dim(0)?;
    let ranks: Option<Vec<f32>> = rank.map(|t| t.to_vec1()).transpose()?;
    let mut indices = vec![PAD; n * k];
    let mut values = vec![0f32; n * k];
    with_slice(x, |x: &[f32]| {
        with_slice(w_enc, |w: &[f32]| {
            with_slice(b_enc, |bias: &[f32]| {
                (x.par_chunks(BLOCK * d), indices.par_chunks_mut(BLOCK * k), values.par_chunks_mut(BLOCK * k)).into_par_iter().for_each(
                    |(x, indices, values)| {
                        let rows = x.len() / d;
                        let mut candidates: Vec<Candidates> =
                            (0..rows).map(|_| Candidates { keys: Vec::with_capacity(4 * k + 16), k, threshold: 0.0 }).collect();
                        let mut thresholds = [0f32; BLOCK];
                        panels(x, rows, d, w, d_sae, |first, pre| {
                            for (j, pre) in pre.chunks_exact(rows).enumerate() {
                                let (b, r) = (bias[first + j], ranks.as_ref().map_or(1.0, |r| r[first + j]));
                                if !any_above(pre, b, r, &thresholds) {
                                    continue;
                                }
                                for (q, &v) in pre.iter().enumerate() {
                                    let v = (v + b) * r;
                                    if v > thresholds[q] {
                                        candidates[q].push(v, (first + j) as u32);
                                        thresholds[q] = candidates[q].threshold;
                                    }
                                }
                            }
                        });
                        for (q, mut c) in candidates.into_iter().enumerate() {
                            c.compact();
                            c.keys.sort_unstable_by(|a, b| b.cmp(a));
                            for (slot, key) in c.keys.iter().enumerate() {
                                let j = !(*key as u32);
                                indices[q * k + slot] = j;
                                let ranked = f32::from_bits((key >> 32) as u32);
                                values[q * k + slot] = ranks.as_ref().map_or(ranked, |r| ranked / r[j as usize]);
                            }
                        }
                    },
                );
            })
        })
    })???;
    Ok(Selection { indices: Tensor::from_vec(indices, (n, k), x.device())?, values: Tensor::from_vec(values, (n, k), x.device())? })
}

/// Whether any row of a panel line passes its threshold: a branch-free sweep that the compiler vectorises.
#[inline]
fn any_above(pre: &[f32], bias: f32, rank: f32, thresholds: &[f32; BLOCK]) -> bool {
    let mut any = false;
    for (v, t) in pre.iter().zip(thresholds) {
        any |= (v + bias) * rank > *t;
    }
    any
}

/// See [`crate::kernels::encode_threshold`].
pub fn encode_threshold(x: &Tensor, w_enc: &Tensor, b_enc: &Tensor, threshold: &Tensor) -> Result<Codes> {
    let (n, d) = x.dims2()?;
    let d_sae = w_enc.dim(0)?;
    let thresholds: Vec<f32> = threshold.to_vec1()?;
    let blocks: Vec<Codes> = with_slice(x, |x: &[f32]| {
        with_slice(w_enc, |w: &[f32]| {
            with_slice(b_enc, |bias: &[f32]| {
                x.par_chunks(BLOCK * d)
                    .map(|x| {
                        let rows = x.len() / d;
                        let mut kept: Vec<Vec<(u32, f32)>> = vec![Vec::new(); rows];
                        panels(x, rows, d, w, d_sae, |first, pre| {
                            for (j, pre) in pre.chunks_exact(rows).enumerate() {
                                let (b, t) = (bias[first + j], thresholds[first + j]);
                                for (q, &v) in pre.iter().enumerate() {
                                    if v + b > t {
                                        kept[q].push(((first + j) as u32, v + b));
                                    }
                                }
                            }
                        });
                        let mut codes = Codes::new(d_sae);
                        for mut row in kept {
                            row.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
                            codes.push_row(row.into_iter().filter(|&(_, v)| v != 0.0));
                        }
                        codes
                    })
                    .collect()
            })
        })
    })???;
    let mut codes = Codes::new(d_sae);
    for block in &blocks {
        codes.extend(block);
    }
    debug_assert_eq!(codes.n_rows(), n);
    Ok(codes)
}

/// Reads a tensor of `T` back as a vector, whatever its shape.
pub fn to_vec<T: WithDType>(tensor: &Tensor) -> Result<Vec<T>> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}
