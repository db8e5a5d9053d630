//! What may still be among a row's k largest, from bounds alone.

use super::isa::Isa;
#[cfg(target_arch = "x86_64")]
use super::isa::Level;

/// Larger value first, then lower index: one unsigned comparison. Values are positive, so their bits are ordered.
pub fn key(value: f32, index: u32) -> u64 {
    (u64::from(value.to_bits()) << 32) | u64::from(!index)
}

/// The least value that can be selected.
pub const LEAST: f32 = f32::from_bits(1);

/// One row's.
#[derive(Debug, Default)]
pub struct Candidates {
    lows: Vec<f32>,
    highs: Vec<f32>,
    latents: Vec<u32>,
    /// Used length of the lists.
    len: usize,
    k: usize,
    /// At least k latents score this much: an upper bound below it is out.
    threshold: f32,
}

impl Candidates {
    /// None yet, of `d_sae` latents.
    pub fn reset(&mut self, k: usize, d_sae: usize) {
        (self.len, self.k, self.threshold) = (0, k, LEAST);
        let room = (4 * k + 32).min(d_sae + 1);
        if self.lows.len() < room {
            self.grow(room);
        }
    }

    fn grow(&mut self, room: usize) {
        self.lows.resize(room, 0.0);
        self.highs.resize(room, 0.0);
        self.latents.resize(room, 0);
    }

    /// Adds one; the row's new threshold, where it rose.
    #[inline]
    pub fn push(&mut self, isa: Isa, low: f32, high: f32, latent: u32) -> Option<f32> {
        if high < self.threshold {
            return None;
        }
        let len = self.len;
        (self.lows[len], self.highs[len], self.latents[len]) = (low, high, latent);
        self.len = len + 1;
        (self.len == self.lows.len()).then(|| self.make_room(isa))
    }

    #[cold]
    fn make_room(&mut self, isa: Isa) -> f32 {
        self.thin(isa, 8);
        // Many within the bound of each other: do not come back for each of them.
        if self.len > self.lows.len() * 2 / 3 {
            self.grow(self.len * 2);
        }
        self.threshold
    }

    fn thin(&mut self, isa: Isa, steps: usize) {
        self.threshold = kth_below(isa, &self.lows[..self.len], self.k, self.threshold, steps);
        let (mut kept, threshold) = (0, self.threshold);
        let (lows, highs, latents) = (&mut self.lows[..self.len], &mut self.highs[..self.len], &mut self.latents[..self.len]);
        for i in 0..lows.len() {
            let stays = highs[i] >= threshold;
            (lows[kept], highs[kept], latents[kept]) = (lows[i], highs[i], latents[i]);
            kept += usize::from(stays);
        }
        self.len = kept;
    }

    /// The first latents to score: k or a few more that bounds put on top, or all if those are few; and the others, with upper bounds.
    pub fn split(&mut self, isa: Isa, mut first: impl FnMut(u32), mut other: impl FnMut(f32, u32)) {
        self.thin(isa, 12);
        let all = self.len <= self.k + self.k / 8 || self.threshold == LEAST;
        for i in 0..self.len {
            if all || self.lows[i] >= self.threshold {
                first(self.latents[i]);
            } else {
                other(self.highs[i], self.latents[i]);
            }
        }
    }
}

#[inline(always)]
fn count(values: &[f32], least: f32) -> usize {
    values.iter().map(|&v| u32::from(v >= least)).sum::<u32>() as usize
}

#[inline(always)]
fn bisect(values: &[f32], k: usize, from: f32, steps: usize) -> f32 {
    if count(values, from) < k {
        return from;
    }
    let (mut low, mut high) = (from, values.iter().copied().fold(from, f32::max));
    for _ in 0..steps {
        let middle = low + (high - low) * 0.5;
        match count(values, middle) {
            // The least of just these is the k-th largest.
            n if n == k => return values.iter().map(|&v| if v >= middle { v } else { f32::INFINITY }).fold(f32::INFINITY, f32::min),
            n if n > k => low = middle,
            _ => high = middle,
        }
    }
    low
}

/// A value that k of `values` reach, near the largest such (the closer, the more steps); `from` when none above it is known.
pub fn kth_below(isa: Isa, values: &[f32], k: usize, from: f32, steps: usize) -> f32 {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f")]
        fn avx512(values: &[f32], k: usize, from: f32, steps: usize) -> f32 {
            bisect(values, k, from, steps)
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2(values: &[f32], k: usize, from: f32, steps: usize) -> f32 {
            bisect(values, k, from, steps)
        }
        // SAFETY: `isa` was detected on this machine.
        match isa.level {
            Level::Avx512 => return unsafe { avx512(values, k, from, steps) },
            Level::Avx2 => return unsafe { avx2(values, k, from, steps) },
            Level::Portable => {}
        }
    }
    let _ = isa;
    bisect(values, k, from, steps)
}
