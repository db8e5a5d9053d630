//! One latent under way: counts, sums, and the contexts it may show.

use super::spread::Spread;
use super::window::{Held, Window};
use crate::rng::hash64;

/// What a latent did so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    pub fires: u64,
    pub sum: f64,
    pub max: f32,
    pub spread: Spread,
    /// Largest values, one per stretch, best first.
    pub top: Vec<Window>,
    /// Active rows at random, by what was drawn for them.
    pub sample: Vec<(u64, Window)>,
}

/// How many contexts a latent keeps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keep {
    pub top: usize,
    pub sample: usize,
    pub seed: u64,
}

/// Larger values first; of equal ones what comes first in the corpus.
fn key(value: f32, doc_id: u64, position: u32) -> (std::cmp::Reverse<u32>, u64, u32) {
    // Positive floats are ordered as their bits.
    (std::cmp::Reverse(value.to_bits()), doc_id, position)
}

impl Tally {
    /// Takes in the latent's entries (row, value), ascending by row, of the rows that are held; those from `held.done` to `upto` are new.
    pub fn update(&mut self, latent: u32, entries: &[(u32, f32)], held: &Held, upto: usize, keep: &Keep) {
        let fresh = |e: &&(u32, f32)| (held.done..upto).contains(&(e.0 as usize));
        let drawn = hash64(keep.seed, u64::from(latent));
        let mut peak: Option<((u64, u32), usize, f32)> = None;
        for &(row, value) in entries.iter().filter(fresh) {
            let row = row as usize;
            self.fires += 1;
            self.sum += f64::from(value);
            self.max = self.max.max(value);
            self.spread.add(value);
            self.draw(drawn, row, entries, held, keep.sample);
            let stretch = held.stretch_of(row);
            match &mut peak {
                Some((of, at, best)) if *of == stretch => {
                    if value > *best {
                        (*at, *best) = (row, value);
                    }
                }
                _ => {
                    if let Some((_, at, best)) = peak.replace((stretch, row, value)) {
                        self.rank(at, best, entries, held, keep.top);
                    }
                }
            }
        }
        if let Some((_, at, best)) = peak {
            self.rank(at, best, entries, held, keep.top);
        }
    }

    fn rank(&mut self, row: usize, value: f32, entries: &[(u32, f32)], held: &Held, n: usize) {
        let of = |w: &Window| key(w.value, w.doc_id, w.position);
        let mine = key(value, held.doc_id[row], held.position[row]);
        let at = self.top.partition_point(|w| of(w) < mine);
        if at < n {
            self.top.truncate(n - 1);
            self.top.insert(at, held.window(row, entries));
        }
    }

    /// A row is in the sample if its number is among the smallest: the same rows whatever the order.
    fn draw(&mut self, drawn: u64, row: usize, entries: &[(u32, f32)], held: &Held, n: usize) {
        let number = hash64(hash64(drawn, held.doc_id[row]), u64::from(held.position[row]));
        if self.sample.len() == n && self.sample.last().is_none_or(|last| last.0 <= number) {
            return;
        }
        let at = self.sample.partition_point(|s| s.0 < number);
        self.sample.truncate(n - 1);
        self.sample.insert(at, (number, held.window(row, entries)));
    }
}
