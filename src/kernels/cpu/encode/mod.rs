//! Fused encode and selection, exact whatever the instructions: a screen computes products of a block of rows with panels of the encoder
//! in cache, a rigorous bound (`bound`) keeps every latent that might be selected, and those few are scored as the definition says
//! (`exact`). The screen is f32 (`gemm`) or bf16; it decides how long a call takes and nothing else.
//!
//! Rayon runs over blocks of rows; a panel's norms, or its rounded form, are made by the first block that comes to it.

mod bf16;
pub(super) mod bound;
mod candidates;
pub(super) mod exact;
mod gate;
mod isa;
mod panels;
mod screen;

use candle_core::{Tensor, WithDType};
use rayon::prelude::*;

use super::storage::with_slice;
use crate::codes::{Codes, PAD};
use crate::error::Result;
use crate::kernels::Selection;
use candidates::{key, Candidates};
use exact::{score, Entry};
use gate::{LatentTerms, RowTerms};
pub(super) use isa::Isa;
use screen::Encoder;

pub(super) use panels::{panels, BLOCK};
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
                let encoder = Encoder::new(w, bias, d, n);
                (x.par_chunks(BLOCK * d), indices.par_chunks_mut(BLOCK * k), values.par_chunks_mut(BLOCK * k)).into_par_iter().for_each(
                    |(x, indices, values)| {
                        let entries = top_candidates(&encoder, x, k, ranks.as_deref());
                        let mut keys: Vec<Vec<(u64, f32)>> = (0..x.len() / d).map(|_| Vec::with_capacity(k + k / 4)).collect();
                        for e in entries {
                            let ranked = ranks.as_ref().map_or(e.value, |r| e.value * r[e.latent as usize]);
                            if ranked > 0.0 {
                                keys[e.row as usize].push((key(ranked, e.latent), e.value));
                            }
                        }
                        for (q, mut keys) in keys.into_iter().enumerate() {
                            if keys.len() > k {
                                keys.select_nth_unstable_by(k - 1, |a, b| b.0.cmp(&a.0));
                                keys.truncate(k);
                            }
                            keys.sort_unstable_by_key(|entry| std::cmp::Reverse(entry.0));
                            for (slot, (key, value)) in keys.into_iter().enumerate() {
                                indices[q * k + slot] = !(key as u32);
                                values[q * k + slot] = value;
                            }
                        }
                    },
                );
            })
        })
    })???;
    Ok(Selection { indices: Tensor::from_vec(indices, (n, k), x.device())?, values: Tensor::from_vec(values, (n, k), x.device())? })
}

/// All entries of a block of rows that may be among the k largest, scored.
fn top_candidates(encoder: &Encoder<'_>, x: &[f32], k: usize, ranks: Option<&[f32]>) -> Vec<Entry> {
    let rows = x.len() / encoder.d;
    let mut candidates: Vec<Candidates> = (0..rows).map(|_| Candidates::new(k)).collect();
    let whole = encoder.walk(
        x,
        |j| ranks.map_or(1.0, |r| r[j]),
        |_| None,
        |terms: &mut RowTerms, latent: &LatentTerms, j, q, pre| {
            let (low, high) = latent.bounds(terms, pre, q);
            if let Some(threshold) = candidates[q].push(low, high, j) {
                terms.threshold[q] = threshold;
            }
        },
    );
    let mut entries = Vec::with_capacity(rows * (k + k / 4));
    for (q, candidates) in candidates.into_iter().enumerate() {
        if !whole[q] {
            entries.extend(candidates.survivors().map(|latent| Entry { latent, row: q as u32, value: 0.0 }));
        }
    }
    encoder.scored(x, entries, &whole)
}

/// See [`crate::kernels::encode_threshold`].
pub fn encode_threshold(x: &Tensor, w_enc: &Tensor, b_enc: &Tensor, threshold: &Tensor) -> Result<Codes> {
    let (n, d) = x.dims2()?;
    let d_sae = w_enc.dim(0)?;
    let thresholds: Vec<f32> = threshold.to_vec1()?;
    let blocks: Vec<Codes> = with_slice(x, |x: &[f32]| {
        with_slice(w_enc, |w: &[f32]| {
            with_slice(b_enc, |bias: &[f32]| {
                let encoder = Encoder::new(w, bias, d, n);
                x.par_chunks(BLOCK * d)
                    .map(|x| {
                        let mut entries = Vec::new();
                        let whole = encoder.walk(
                            x,
                            |_| 1.0,
                            |j| Some(thresholds[j]),
                            |_, _, j, q, _| entries.push(Entry { latent: j, row: q as u32, value: 0.0 }),
                        );
                        entries.retain(|e| !whole[e.row as usize]);
                        let mut kept: Vec<Vec<(u32, f32)>> = vec![Vec::new(); x.len() / d];
                        for e in encoder.scored(x, entries, &whole) {
                            if e.value > thresholds[e.latent as usize] {
                                kept[e.row as usize].push((e.latent, e.value));
                            }
                        }
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

impl Encoder<'_> {
    /// Scores entries of rows `x`, and all latents of rows that must be scored whole.
    fn scored(&self, x: &[f32], mut entries: Vec<Entry>, whole: &[bool]) -> Vec<Entry> {
        for (q, _) in whole.iter().enumerate().filter(|(_, &whole)| whole) {
            entries.extend((0..self.bias.len() as u32).map(|latent| Entry { latent, row: q as u32, value: 0.0 }));
        }
        // By latent, so that the encoder is read once, in order.
        entries.sort_unstable_by_key(|e| u64::from(e.latent) << 32 | u64::from(e.row));
        score(Isa::best(), x, self.d, self.w, self.bias, &mut entries);
        entries
    }
}

/// Reads a tensor of `T` back as a vector, whatever its shape.
pub fn to_vec<T: WithDType>(tensor: &Tensor) -> Result<Vec<T>> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}
