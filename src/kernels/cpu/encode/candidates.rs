//! What may still be among a row's k largest, from bounds alone.

use super::isa::{Isa, Level};

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
    k: usize,
    /// At least k latents score this much: an upper bound below it is out.
    threshold: f32,
    /// Length at which the list is thinned out.
    full: usize,
}

impl Candidates {
    /// None yet.
    pub fn reset(&mut self, k: usize) {
        self.clear();
        (self.k, self.threshold, self.full) = (k, LEAST, 4 * k + 32);
    }

    fn clear(&mut self) {
        self.lows.clear();
        self.highs.clear();
        self.latents.clear();
    }

    /// Adds one; the row's new threshold, where it rose.
    #[inline]
    pub fn push(&mut self, isa: Isa, low: f32, high: f32, latent: u32) -> Option<f32> {
        if high < self.threshold {
            return None;
        }
        self.lows.push(low);
        self.highs.push(high);
        self.latents.push(latent);
        (self.lows.len() >= self.full).then(|| {
            self.thin(isa, 8);
            // Many within the bound of each other: do not come back for each of them.
            self.full = self.full.max(self.lows.len() + self.lows.len() / 2);
            self.threshold
        })
    }

    fn thin(&mut self, isa: Isa, steps: usize) {
        self.threshold = kth_below(isa, &self.lows, self.k, self.threshold, steps);
        let mut kept = 0;
        for i in 0..self.lows.len() {
            let stays = self.highs[i] >= self.threshold;
            (self.lows[kept], self.highs[kept], self.latents[kept]) = (self.lows[i], self.highs[i], self.latents[i]);
            kept += usize::from(stays);
        }
        self.lows.truncate(kept);
        self.highs.truncate(kept);
        self.latents.truncate(kept);
    }

    /// The first latents to score: k or a few more that bounds put on top, or all if those are few. They leave the list.
    pub fn first(&mut self, isa: Isa, mut visit: impl FnMut(u32)) {
        self.thin(isa, 16);
        if self.lows.len() <= self.k + self.k / 8 || self.threshold == LEAST {
            self.latents.iter().for_each(|&j| visit(j));
            self.clear();
            return;
        }
        let mut kept = 0;
        for i in 0..self.lows.len() {
            let (low, high, latent) = (self.lows[i], self.highs[i], self.latents[i]);
            if low >= self.threshold {
                visit(latent);
            } else {
                (self.highs[kept], self.latents[kept]) = (high, latent);
                kept += 1;
            }
        }
        self.lows.clear();
        self.highs.truncate(kept);
        self.latents.truncate(kept);
    }

    /// Those of the others that may reach `least`.
    pub fn others(&self, least: f32, mut visit: impl FnMut(u32)) {
        for (&high, &latent) in self.highs.iter().zip(&self.latents) {
            if high >= least {
                visit(latent);
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
            n if n == k => return middle,
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
