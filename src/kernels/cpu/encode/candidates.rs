//! What may still be among a row's k largest, from bounds alone.

/// Larger value first, then lower index: one unsigned comparison. Values are positive, so their bits are ordered.
pub fn key(value: f32, index: u32) -> u64 {
    (u64::from(value.to_bits()) << 32) | u64::from(!index)
}

/// The least upper bound that can be positive.
const LEAST: f32 = f32::from_bits(1);

/// One row's.
#[derive(Debug)]
pub struct Candidates {
    /// Lower bound, upper bound, latent.
    kept: Vec<(f32, f32, u32)>,
    k: usize,
    /// At least k latents score this much: an upper bound below it is out.
    threshold: f32,
    /// Length at which the list is thinned out.
    full: usize,
    lows: Vec<f32>,
}

impl Candidates {
    /// None yet.
    pub fn new(k: usize) -> Self {
        let full = 4 * k + 16;
        Self { kept: Vec::with_capacity(full), k, threshold: LEAST, full, lows: Vec::new() }
    }

    /// Adds one; the row's new threshold, where it rose.
    #[inline]
    pub fn push(&mut self, low: f32, high: f32, latent: u32) -> Option<f32> {
        if high < self.threshold {
            return None;
        }
        self.kept.push((low, high, latent));
        (self.kept.len() >= self.full).then(|| {
            self.thin();
            // Many within the bound of each other: do not come back for each of them.
            self.full = self.full.max(2 * self.kept.len());
            self.threshold
        })
    }

    fn thin(&mut self) {
        if self.kept.len() <= self.k {
            return;
        }
        self.lows.clear();
        self.lows.extend(self.kept.iter().map(|c| c.0));
        let (_, &mut low, _) = self.lows.select_nth_unstable_by(self.k - 1, |a, b| b.total_cmp(a));
        self.threshold = self.threshold.max(low);
        let threshold = self.threshold;
        self.kept.retain(|c| c.1 >= threshold);
    }

    /// Latents that no bound rules out.
    pub fn survivors(mut self) -> impl Iterator<Item = u32> {
        self.thin();
        self.kept.into_iter().map(|c| c.2)
    }
}
