//! Lists of (latent, row) pairs in order of latents, so that scoring them reads the encoder once.

use super::exact::{score, Entry};
use super::screen::Encoder;

/// Sorts by latent; entries of one latent stay in their order.
#[derive(Debug, Default)]
pub struct Order {
    starts: Vec<u32>,
    sorted: Vec<Entry>,
}

impl Order {
    /// Puts `entries` in order of latents below `d_sae`.
    pub fn by_latent(&mut self, entries: &mut Vec<Entry>, d_sae: usize) {
        if entries.len() < d_sae / 8 {
            entries.sort_by_key(|e| e.latent);
            return;
        }
        self.starts.clear();
        self.starts.resize(d_sae + 1, 0);
        for e in entries.iter() {
            self.starts[e.latent as usize + 1] += 1;
        }
        let mut sum = 0;
        for start in &mut self.starts {
            sum += *start;
            *start = sum;
        }
        self.sorted.clear();
        self.sorted.resize(entries.len(), Entry { latent: 0, row: 0, value: 0.0 });
        for e in entries.iter() {
            let at = &mut self.starts[e.latent as usize];
            self.sorted[*at as usize] = *e;
            *at += 1;
        }
        std::mem::swap(entries, &mut self.sorted);
    }
}

impl Encoder<'_> {
    /// Scores entries of rows `x`.
    pub fn score(&self, x: &[f32], entries: &mut Vec<Entry>, order: &mut Order) {
        order.by_latent(entries, self.bias.len());
        score(self.isa, x, self.d, self.w, self.bias, entries);
    }

    /// Scores all latents for row `q` of `x`, a part at a time.
    pub fn score_whole(&self, x: &[f32], q: usize, entries: &mut Vec<Entry>, mut visit: impl FnMut(&[Entry])) {
        const PART: usize = 4096;
        let d_sae = self.bias.len() as u32;
        for first in (0..d_sae).step_by(PART) {
            entries.clear();
            entries.extend((first..d_sae.min(first + PART as u32)).map(|latent| Entry { latent, row: q as u32, value: 0.0 }));
            score(self.isa, x, self.d, self.w, self.bias, entries);
            visit(entries);
        }
    }
}
