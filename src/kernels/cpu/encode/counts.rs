//! What encoding came to so far in this process: how often exactness mattered, and what it cost.

use std::sync::atomic::{AtomicU64, Ordering};

/// Totals over all encodes of this process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct EncodeCounts {
    /// Rows encoded by the fused paths.
    pub rows: u64,
    /// Scores computed in float64 for them; how many depends on the screen, and a little on what the threads did before.
    pub candidates: u64,
    /// Rows of a top-k whose last selected score and best rejected one are closer than an f32 product may be off: where a selection from
    /// f32 products could have differed.
    pub near_ties: u64,
    /// Rows for which no bound holds (NaN, infinity, norms from 1e18), so that all their scores were computed in float64.
    pub whole_rows: u64,
}

static COUNTS: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

/// The totals so far.
pub fn encode_counts() -> EncodeCounts {
    let [rows, candidates, near_ties, whole_rows] = COUNTS.each_ref().map(|c| c.load(Ordering::Relaxed));
    EncodeCounts { rows, candidates, near_ties, whole_rows }
}

impl EncodeCounts {
    /// What came since `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            rows: self.rows - before.rows,
            candidates: self.candidates - before.candidates,
            near_ties: self.near_ties - before.near_ties,
            whole_rows: self.whole_rows - before.whole_rows,
        }
    }

    /// Adds to the process's totals.
    pub(crate) fn add(self) {
        for (total, part) in COUNTS.iter().zip([self.rows, self.candidates, self.near_ties, self.whole_rows]) {
            total.fetch_add(part, Ordering::Relaxed);
        }
    }
}
