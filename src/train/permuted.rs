//! The control without structure: rows whose coordinates come from different rows each.
//!
//! Every coordinate keeps its own distribution, and nothing that coordinates have in common is left. What a dictionary still finds in
//! such rows is no feature of the host.

use super::{Cursor, RowSource, SourceReport};
use crate::error::Result;
use crate::rng::Rng;
use crate::shard::Batch;

/// A source's rows with each coordinate permuted over the rows of a batch.
pub struct Permuted<'a> {
    inner: &'a mut dyn RowSource,
    seed: u64,
}

impl<'a> Permuted<'a> {
    /// The permutations depend on `seed`, the place in the source and the number of rows asked for.
    pub fn new(inner: &'a mut dyn RowSource, seed: u64) -> Self {
        Self { inner, seed }
    }
}

impl RowSource for Permuted<'_> {
    fn width(&self) -> usize {
        self.inner.width()
    }

    fn next_rows(&mut self, n: usize) -> Result<Batch> {
        let Cursor { epoch, window, offset, .. } = self.inner.cursor();
        let mut batch = self.inner.next_rows(n)?;
        let d = self.inner.width();
        let mut rng = Rng::stream(self.seed, &format!("permute {epoch} {window}"), offset);
        let mut column = Vec::with_capacity(batch.n);
        for c in 0..d {
            column.clear();
            column.extend(batch.x.iter().skip(c).step_by(d));
            rng.shuffle(&mut column);
            batch.x.iter_mut().skip(c).step_by(d).zip(&column).for_each(|(x, v)| *x = *v);
        }
        Ok(batch)
    }

    fn cursor(&self) -> Cursor {
        self.inner.cursor()
    }

    fn seek(&mut self, cursor: &Cursor) -> Result<()> {
        self.inner.seek(cursor)
    }

    fn epoch(&self) -> u64 {
        self.inner.epoch()
    }

    fn rows_per_epoch(&self) -> Option<u64> {
        self.inner.rows_per_epoch()
    }

    fn mean_sq_norm(&mut self) -> Result<f64> {
        self.inner.mean_sq_norm()
    }

    fn report(&self) -> Result<SourceReport> {
        self.inner.report()
    }
}
