//! All scores above their latent's threshold.

use std::cell::RefCell;

use rayon::prelude::*;

use super::counts::EncodeCounts;
use super::entries::Order;
use super::exact::Entry;
use super::panels::BLOCK;
use super::screen::Encoder;
use crate::codes::Codes;

/// Rows that are worked on together.
const ROWS: usize = 8 * BLOCK;
/// Candidates that are scored at once.
const PART: usize = 1 << 18;

#[derive(Default)]
struct Scratch {
    entries: Vec<Entry>,
    order: Order,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Encodes rows `x`.
pub fn encode(encoder: &Encoder<'_>, x: &[f32], thresholds: &[f32]) -> Codes {
    let rows = (x.len() / encoder.d).div_ceil(2 * rayon::current_num_threads()).next_multiple_of(BLOCK).clamp(BLOCK, ROWS);
    let blocks: Vec<Codes> = x.par_chunks(rows * encoder.d).map(|x| block(encoder, x, thresholds)).collect();
    let mut codes = Codes::new(thresholds.len());
    for block in &blocks {
        codes.extend(block);
    }
    codes
}

fn block(encoder: &Encoder<'_>, x: &[f32], thresholds: &[f32]) -> Codes {
    // Taken out, so that nothing breaks should this thread come here again meanwhile.
    let mut scratch = SCRATCH.take();
    let Scratch { entries, order } = &mut scratch;
    let mut kept: Vec<Vec<(u32, f32)>> = vec![Vec::new(); x.len() / encoder.d];
    let put = |kept: &mut [Vec<(u32, f32)>], entries: &[Entry]| {
        for e in entries {
            if e.value > thresholds[e.latent as usize] {
                kept[e.row as usize].push((e.latent, e.value));
            }
        }
    };
    entries.clear();
    let mut counts = EncodeCounts { rows: kept.len() as u64, ..EncodeCounts::default() };
    let whole = encoder.walk(
        x,
        |_| 1.0,
        |j| Some(thresholds[j]),
        |latent, q, _, _| {
            entries.push(Entry { latent, row: q as u32, value: 0.0 });
            if entries.len() >= PART {
                counts.candidates += entries.len() as u64;
                encoder.score(x, entries, order);
                put(&mut kept, entries);
                entries.clear();
            }
            None
        },
    );
    counts.candidates += entries.len() as u64;
    encoder.score(x, entries, order);
    put(&mut kept, entries);
    for (q, _) in whole.iter().enumerate().filter(|(_, &whole)| whole) {
        kept[q].clear();
        counts.whole_rows += 1;
        counts.candidates += encoder.bias.len() as u64;
        encoder.score_whole(x, q, entries, |part| put(&mut kept, part));
    }
    SCRATCH.set(scratch);
    counts.add();
    let mut codes = Codes::new(thresholds.len());
    for mut row in kept {
        row.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        codes.push_row(row.into_iter().filter(|&(_, v)| v != 0.0));
    }
    codes
}
