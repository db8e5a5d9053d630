//! The one pass over the rows: encodes them, feeds each latent's tally, and keeps what co-activity and concepts are counted on.

use candle_core::Tensor;
use rayon::prelude::*;

use super::config::FeaturesConfig;
use super::tally::{Keep, Tally};
use super::window::{Held, Window};
use crate::codes::Codes;
use crate::dictionary::Dictionary;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::rng::hash64;
use crate::shard::{Batch, Shards, Split};

/// Rows encoded together.
const BLOCK: usize = 4096;
/// Stretches of text drawn at random, for all latents to choose from.
const POOL: usize = 256;

/// A row of the concept task.
#[derive(Debug, Clone, Default)]
pub(super) struct Labelled {
    pub doc_id: Vec<u64>,
    pub position: Vec<u32>,
    pub codes: Codes,
}

/// A stretch of text with all that was active in it.
#[derive(Debug, Clone)]
pub(super) struct Stretch {
    number: u64,
    /// Without a latent: values are 0.
    pub window: Window,
    /// Per row of the window.
    pub codes: Codes,
}

/// Rows thinned out by halves until their entries fit.
#[derive(Debug)]
pub(super) struct Thinned {
    pub codes: Codes,
    numbers: Vec<u64>,
    below: u64,
    seen: u64,
    limit: usize,
    seed: u64,
}

impl Thinned {
    fn new(d_sae: usize, limit: usize, seed: u64) -> Self {
        Self { codes: Codes::new(d_sae), numbers: Vec::new(), below: u64::MAX, seen: 0, limit, seed }
    }

    fn push(&mut self, codes: &Codes) {
        for r in 0..codes.n_rows() {
            let number = hash64(self.seed, self.seen);
            self.seen += 1;
            if number > self.below {
                continue;
            }
            let (indices, values) = codes.row(r);
            self.numbers.push(number);
            self.codes.push_row(indices.iter().copied().zip(values.iter().copied()));
            while self.codes.indices.len() > self.limit && self.numbers.len() > 1 {
                self.below /= 2;
                let mut kept = Codes::new(self.codes.d_sae);
                for (r, _) in self.numbers.iter().enumerate().filter(|(_, &n)| n <= self.below) {
                    let (indices, values) = self.codes.row(r);
                    kept.push_row(indices.iter().copied().zip(values.iter().copied()));
                }
                self.numbers.retain(|&n| n <= self.below);
                self.codes = kept;
            }
        }
    }
}

/// What the pass leaves.
#[derive(Debug)]
pub(super) struct Seen {
    pub rows: u64,
    pub entries: u64,
    pub tallies: Vec<Tally>,
    pub thinned: Thinned,
    pub labelled: Labelled,
    /// By number.
    pub pool: Vec<Stretch>,
    pub has_tokens: bool,
}

/// Under way.
pub(super) struct Scan<'a> {
    dictionary: &'a Dictionary,
    config: &'a FeaturesConfig,
    /// Of how many held-out rows `concept_rows` are taken; 0 where no concept is known.
    labelled_of: u64,
    keep: Keep,
    held: Held,
    seen: Seen,
}

impl<'a> Scan<'a> {
    /// Begins. `labelled_of`: held-out rows there are, when concepts are known for them; else 0.
    pub fn new(dictionary: &'a Dictionary, config: &'a FeaturesConfig, labelled_of: u64) -> Self {
        let d_sae = dictionary.d_sae();
        // Twice what is shown: bands of a small sample would be bands of chance.
        let sample = 2 * config.bands * config.per_band;
        Self {
            dictionary,
            config,
            labelled_of,
            keep: Keep { top: config.top, sample, seed: hash64(config.seed, 1) },
            held: Held::new(d_sae, config.before, config.after),
            seen: Seen {
                rows: 0,
                entries: 0,
                tallies: vec![Tally::default(); d_sae],
                thinned: Thinned::new(d_sae, config.coactive_entries, hash64(config.seed, 2)),
                labelled: Labelled { codes: Codes::new(d_sae), ..Labelled::default() },
                pool: Vec::new(),
                has_tokens: false,
            },
        }
    }

    /// Reads a split of a column.
    pub fn split(&mut self, shards: &Shards, column: &str, split: Split, progress: &dyn Progress) -> Result<()> {
        let most = self.config.n_tokens.unwrap_or(u64::MAX);
        for batch in shards.scan(column, Some(split))? {
            let batch = batch?;
            let d = batch.x.len() / batch.n.max(1);
            for first in (0..batch.n).step_by(BLOCK) {
                if progress.is_cancelled() {
                    return Err(Error::Cancelled { doing: "reading features" });
                }
                let n = BLOCK.min(batch.n - first).min((most - self.seen.rows) as usize);
                if n == 0 {
                    self.drain();
                    return Ok(());
                }
                self.block(&part(&batch, first, n, d), split)?;
                progress.advance(n as u64);
            }
        }
        self.drain();
        Ok(())
    }

    /// The end of a split: documents do not go on in the next.
    fn drain(&mut self) {
        self.look(true);
        self.held.finish(self.held.doc_id.len());
        self.held = Held::new(self.dictionary.d_sae(), self.config.before, self.config.after);
    }

    fn block(&mut self, batch: &Batch, split: Split) -> Result<()> {
        if let Some(bad) = batch.x.iter().position(|v| !v.is_finite()) {
            let r = bad / (batch.x.len() / batch.n);
            return Err(Error::NotFinite {
                what: "the activations".into(),
                count: batch.x.iter().filter(|v| !v.is_finite()).count(),
                place: format!("document {}, position {}", batch.doc_id[r], batch.position[r]),
                help: "harvest them again in f32 (f16 overflows at 65504), or drop the damaged shard".into(),
            });
        }
        let x = Tensor::from_slice(&batch.x, (batch.n, batch.x.len() / batch.n), self.dictionary.device())?;
        let mut codes = self.dictionary.encode(&x)?;
        // Some imported rules have codes of both signs; here it is their size that counts.
        codes.values.iter_mut().for_each(|v| *v = v.abs());
        self.seen.rows += batch.n as u64;
        self.seen.entries += codes.indices.len() as u64;
        self.seen.has_tokens |= !batch.token_id.is_empty();
        self.seen.thinned.push(&codes);
        if split == Split::HeldOut && self.labelled_of > 0 {
            self.label(batch, &codes);
        }
        self.held.push(batch, &codes);
        self.look(false);
        Ok(())
    }

    /// Keeps held-out rows of whole documents, as many as are wanted of all there are.
    fn label(&mut self, batch: &Batch, codes: &Codes) {
        let labelled = &mut self.seen.labelled;
        let share = self.config.concept_rows as f64 / self.labelled_of as f64;
        for r in 0..batch.n {
            let number = hash64(hash64(self.config.seed, 3), batch.doc_id[r]);
            if number as f64 / u64::MAX as f64 <= share && labelled.doc_id.len() < self.config.concept_rows {
                let (indices, values) = codes.row(r);
                labelled.doc_id.push(batch.doc_id[r]);
                labelled.position.push(batch.position[r]);
                labelled.codes.push_row(indices.iter().copied().zip(values.iter().copied()));
            }
        }
    }

    /// Looks at the rows that have all their neighbours.
    fn look(&mut self, is_last: bool) {
        let upto = self.held.ready(is_last);
        if upto == self.held.done {
            return;
        }
        self.draw(upto);
        let (held, keep) = (&self.held, &self.keep);
        let (starts, entries) = by_latent(&held.codes);
        // A latent's tally is its own, so no order of threads shows.
        self.seen.tallies.par_iter_mut().enumerate().with_min_len(64).for_each(|(j, tally)| {
            let entries = &entries[starts[j]..starts[j + 1]];
            if !entries.is_empty() {
                tally.update(j as u32, entries, held, upto, keep);
            }
        });
        self.held.finish(upto);
    }

    /// Draws stretches of text for the group `random`: those with the smallest numbers.
    fn draw(&mut self, upto: usize) {
        let seed = hash64(self.config.seed, 4);
        let pool = &mut self.seen.pool;
        for row in self.held.done..upto {
            // The middle of a window, one row in many: cheap, and each stretch once.
            let number = hash64(hash64(seed, self.held.doc_id[row]), u64::from(self.held.position[row]));
            if pool.len() == POOL && pool.last().is_none_or(|last| last.number <= number) {
                continue;
            }
            let window = self.held.window(row, &[]);
            let first = row - window.peak as usize;
            let mut codes = Codes::new(self.held.codes.d_sae);
            for r in first..first + window.positions.len() {
                let (indices, values) = self.held.codes.row(r);
                codes.push_row(indices.iter().copied().zip(values.iter().copied()));
            }
            let at = pool.partition_point(|s| s.number < number);
            pool.truncate(POOL - 1);
            pool.insert(at, Stretch { number, window, codes });
        }
    }

    /// What was seen.
    pub fn finish(self) -> Seen {
        self.seen
    }
}

fn part(batch: &Batch, first: usize, n: usize, d: usize) -> Batch {
    let rows = first..first + n;
    Batch {
        n,
        x: batch.x[first * d..(first + n) * d].to_vec(),
        doc_id: batch.doc_id[rows.clone()].to_vec(),
        position: batch.position[rows.clone()].to_vec(),
        token_id: batch.token_id.get(rows).map(<[u32]>::to_vec).unwrap_or_default(),
    }
}

/// Entries (row, value) of each latent, ascending by row: `entries[starts[j]..starts[j + 1]]`.
pub(super) fn by_latent(codes: &Codes) -> (Vec<usize>, Vec<(u32, f32)>) {
    let mut starts = vec![0usize; codes.d_sae + 1];
    codes.indices.iter().for_each(|&j| starts[j as usize + 1] += 1);
    for j in 0..codes.d_sae {
        starts[j + 1] += starts[j];
    }
    let mut next = starts.clone();
    let mut entries = vec![(0, 0.0); codes.indices.len()];
    for r in 0..codes.n_rows() {
        let (indices, values) = codes.row(r);
        for (&j, &v) in indices.iter().zip(values) {
            entries[next[j as usize]] = (r as u32, v);
            next[j as usize] += 1;
        }
    }
    (starts, entries)
}
