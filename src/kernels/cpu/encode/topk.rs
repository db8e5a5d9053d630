//! The k largest of each row, in two rounds of exact scores: first those that the bounds put on top, whose scores say how much another
//! latent must be able to reach; then the others that may.

use std::cell::RefCell;

use rayon::prelude::*;

use super::candidates::{key, kth_below, Candidates, LEAST};
use super::counts::EncodeCounts;
use super::entries::Order;
use super::exact::Entry;
use super::panels::BLOCK;
use super::screen::Encoder;

/// Rows that are screened together: few enough that their lists stay in cache, enough that a panel is not fetched again too often.
const SCREENED: usize = 4 * BLOCK;
/// Most rows whose candidates are scored together: enough that they share latents.
const ROWS: usize = 4 * SCREENED;
/// Candidates that are enough to score them.
const PART: usize = 1 << 20;

#[derive(Default)]
struct Scratch {
    candidates: Vec<Candidates>,
    entries: Vec<Entry>,
    /// What is not scored at first; upper bounds for values.
    others: Vec<Entry>,
    order: Order,
    /// Per row: keys of what it ranks by, and values.
    keys: Vec<Vec<(u64, f32)>>,
    ranked: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Encodes rows `x`; `indices` and `values` `[n, k]` are filled from the left of each row.
pub fn encode(encoder: &Encoder<'_>, x: &[f32], k: usize, ranks: Option<&[f32]>, indices: &mut [u32], values: &mut [f32]) {
    let d = encoder.d;
    let rows = (x.len() / d).div_ceil(2 * rayon::current_num_threads()).next_multiple_of(BLOCK).clamp(BLOCK, ROWS);
    (x.par_chunks(rows * d), indices.par_chunks_mut(rows * k), values.par_chunks_mut(rows * k)).into_par_iter().for_each(
        |(x, indices, values)| {
            // Taken out, so that nothing breaks should this thread come here again meanwhile.
            let mut scratch = SCRATCH.take();
            let mut counts = block(encoder, x, k, ranks, &mut scratch);
            for (q, keys) in scratch.keys.iter_mut().enumerate().take(x.len() / d) {
                if let (Some((kept, rejected)), None) = (keep_largest(keys, k), ranks) {
                    counts.near_ties += u64::from(encoder.near(&x[q * d..(q + 1) * d], kept, rejected, &mut scratch.ranked));
                }
                keys.sort_unstable_by_key(|entry| std::cmp::Reverse(entry.0));
                for (slot, (key, value)) in keys.iter().enumerate() {
                    indices[q * k + slot] = !(*key as u32);
                    values[q * k + slot] = *value;
                }
            }
            counts.add();
            SCRATCH.set(scratch);
        },
    );
}

/// What a key ranks by.
fn ranked_by(key: u64) -> f32 {
    f32::from_bits((key >> 32) as u32)
}

/// Keeps the k largest, in any order; what the least of them and the largest of the others rank by, where there are others.
fn keep_largest(keys: &mut Vec<(u64, f32)>, k: usize) -> Option<(f32, f32)> {
    if keys.len() <= k {
        return None;
    }
    let (_, &mut (least, _), others) = keys.select_nth_unstable_by(k - 1, |a, b| b.0.cmp(&a.0));
    let rejected = others.iter().map(|entry| entry.0).max()?;
    keys.truncate(k);
    Some((ranked_by(least), ranked_by(rejected)))
}

/// Leaves in `scratch.keys` all scores of each row that may be among its k largest. Near ties are not counted yet.
fn block(encoder: &Encoder<'_>, x: &[f32], k: usize, ranks: Option<&[f32]>, scratch: &mut Scratch) -> EncodeCounts {
    let (rows, d, d_sae, isa) = (x.len() / encoder.d, encoder.d, encoder.bias.len(), encoder.isa);
    scratch.candidates.resize_with(SCREENED.max(scratch.candidates.len()), Candidates::default);
    scratch.keys.resize_with(rows.max(scratch.keys.len()), Vec::new);
    scratch.keys.iter_mut().for_each(Vec::clear);
    let mut counts = EncodeCounts { rows: rows as u64, ..EncodeCounts::default() };
    let mut whole = Vec::with_capacity(rows);
    for part in x.chunks(SCREENED * d) {
        let Scratch { candidates, entries, others, .. } = scratch;
        candidates.iter_mut().for_each(|c| c.reset(k, d_sae));
        let of_part =
            encoder.walk(part, |j| ranks.map_or(1.0, |r| r[j]), |_| None, |j, q, low, high| candidates[q].push(isa, low, high, j));
        for (candidates, wild) in candidates.iter_mut().zip(of_part) {
            let row = whole.len() as u32;
            whole.push(wild);
            if !wild {
                let entry = |latent, value| Entry { latent, row, value };
                candidates.split(isa, |latent| entries.push(entry(latent, 0.0)), |high, latent| others.push(entry(latent, high)));
            }
        }
        if entries.len() + others.len() >= PART {
            counts.candidates += decide(encoder, x, k, ranks, scratch);
        }
    }
    counts.candidates += decide(encoder, x, k, ranks, scratch);
    for (q, _) in whole.iter().enumerate().filter(|(_, &whole)| whole) {
        let Scratch { entries, keys, .. } = scratch;
        encoder.score_whole(x, q, entries, |part| {
            part.iter().for_each(|e| put(keys, ranks, e));
            keep_largest(&mut keys[q], k);
        });
        entries.clear();
        counts.whole_rows += 1;
        counts.candidates += d_sae as u64;
    }
    counts
}

fn put(keys: &mut [Vec<(u64, f32)>], ranks: Option<&[f32]>, e: &Entry) {
    let ranked = ranks.map_or(e.value, |r| e.value * r[e.latent as usize]);
    if ranked > 0.0 {
        keys[e.row as usize].push((key(ranked, e.latent), e.value));
    }
}

/// Scores `scratch.entries`, and those of `scratch.others` that may still be among the k largest; leaves both empty. How many were scored.
fn decide(encoder: &Encoder<'_>, x: &[f32], k: usize, ranks: Option<&[f32]>, scratch: &mut Scratch) -> u64 {
    let Scratch { entries, others, order, keys, ranked, .. } = scratch;
    let mut n = entries.len();
    encoder.score(x, entries, order);
    entries.iter().for_each(|e| put(keys, ranks, e));
    entries.clear();
    for of_row in others.chunk_by(|a, b| a.row == b.row) {
        ranked.clear();
        ranked.extend(keys[of_row[0].row as usize].iter().map(|(key, _)| ranked_by(*key)));
        let least = kth_below(encoder.isa, ranked, k, LEAST, 24);
        entries.extend(of_row.iter().filter(|e| e.value >= least));
    }
    n += entries.len();
    encoder.score(x, entries, order);
    entries.iter().for_each(|e| put(keys, ranks, e));
    entries.clear();
    others.clear();
    n as u64
}
