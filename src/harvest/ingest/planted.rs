//! Planted rows, as many as were asked for: row `i` is document `i`.

use super::{Chunk, Vectors};
use crate::corpus::planted::{Planted, Truth};
use crate::error::Result;

/// Rows being planted.
pub(super) struct Rows {
    planted: Planted,
    total: u64,
    at: u64,
}

impl Rows {
    pub(super) fn new(planted: Planted, total: u64) -> Self {
        Self { planted, total, at: 0 }
    }
}

impl Vectors for Rows {
    fn rows(&self) -> u64 {
        self.total
    }

    fn width(&self) -> usize {
        self.planted.d_in()
    }

    fn next(&mut self, n: usize) -> Result<Chunk> {
        let end = self.total.min(self.at + n as u64);
        let rows = self.planted.rows(self.at..end);
        let n = (end - self.at) as usize;
        self.at = end;
        Ok(Chunk { x: rows.x, n, ..Chunk::default() })
    }

    fn truth(&self) -> Option<&Truth> {
        Some(self.planted.truth())
    }
}
