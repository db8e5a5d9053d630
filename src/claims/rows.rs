//! Rows in memory as a source for `train`: planted ones, made as they are asked for, or a fixed set that is shuffled each epoch.

use candle_core::{Device, Tensor};
use serde_json::Value;

use crate::corpus::planted::Planted;
use crate::error::{Error, Result};
use crate::rng::Rng;
use crate::shard::Batch;
use crate::train::{Cursor, RowSource};

/// Held-out planted rows begin here, beyond any that are trained on.
pub const HELD_OUT: u64 = 1 << 40;

/// Planted rows that are made at once.
const CHUNK: u64 = 8192;

/// Rows from which the mean squared norm of planted rows is taken.
const NORM_ROWS: u64 = 16_384;

fn refuse(cursor: &Cursor) -> Result<()> {
    if cursor.source == Value::Null {
        return Ok(());
    }
    Err(Error::request("the cursor is of rows that a host streamed", "rows in memory begin at their own cursors"))
}

/// Planted rows, endless: row i of the run is row i of the generator, so no row comes twice.
#[derive(Debug)]
pub struct PlantedRows<'a> {
    planted: &'a Planted,
    next: u64,
    /// Rows `at ..`, row-major.
    buffer: Vec<f32>,
    at: u64,
}

impl<'a> PlantedRows<'a> {
    /// From row 0.
    pub fn new(planted: &'a Planted) -> Self {
        Self { planted, next: 0, buffer: Vec::new(), at: 0 }
    }
}

impl RowSource for PlantedRows<'_> {
    fn width(&self) -> usize {
        self.planted.d_in()
    }

    fn next_rows(&mut self, n: usize) -> Result<Batch> {
        let d = self.width();
        let mut x = Vec::with_capacity(n * d);
        let doc_id: Vec<u64> = (self.next..self.next + n as u64).collect();
        while x.len() < n * d {
            let held = self.at..self.at + (self.buffer.len() / d) as u64;
            if !held.contains(&self.next) {
                self.buffer = self.planted.rows(self.next..self.next + CHUNK).x;
                self.at = self.next;
                continue;
            }
            let from = (self.next - self.at) as usize * d;
            let take = (n * d - x.len()).min(self.buffer.len() - from);
            x.extend_from_slice(&self.buffer[from..from + take]);
            self.next += (take / d) as u64;
        }
        Ok(Batch { n, x, doc_id, position: vec![0; n], token_id: Vec::new() })
    }

    fn cursor(&self) -> Cursor {
        Cursor { offset: self.next, ..Cursor::default() }
    }

    fn seek(&mut self, cursor: &Cursor) -> Result<()> {
        refuse(cursor)?;
        self.next = cursor.offset;
        Ok(())
    }

    fn epoch(&self) -> u64 {
        0
    }

    fn mean_sq_norm(&mut self) -> Result<f64> {
        let x = self.planted.rows(0..NORM_ROWS).x;
        Ok(x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / NORM_ROWS as f64)
    }
}

/// Held-out planted rows `[n, d]` as a batch that `score` knows the truth of.
pub fn held_out(planted: &Planted, n: u64) -> Batch {
    let range = HELD_OUT..HELD_OUT + n;
    let x = planted.rows(range.clone()).x;
    Batch { n: n as usize, x, doc_id: range.collect(), position: vec![0; n as usize], token_id: Vec::new() }
}

/// A set of rows in memory.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Set {
    /// Row-major `[n, d]`.
    pub x: Vec<f32>,
    /// Width.
    pub d: usize,
}

impl Set {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.x.len().checked_div(self.d).unwrap_or(0)
    }

    /// Is there no row?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Row `r`.
    pub fn row(&self, r: usize) -> &[f32] {
        &self.x[r * self.d..(r + 1) * self.d]
    }

    /// The rows named, in that order.
    pub fn pick(&self, rows: &[u32]) -> Self {
        Self { x: rows.iter().flat_map(|&r| self.row(r as usize)).copied().collect(), d: self.d }
    }

    /// The first `n` rows of a seeded permutation, and the rest.
    pub fn split(&self, n: usize, seed: u64) -> (Self, Self) {
        let mut order: Vec<u32> = (0..self.len() as u32).collect();
        Rng::stream(seed, "claims.split", 0).shuffle(&mut order);
        let (first, rest) = order.split_at(n.min(self.len()));
        (self.pick(first), self.pick(rest))
    }

    /// `[n, d]`, f32.
    ///
    /// # Errors
    /// When memory cannot be allocated.
    pub fn tensor(&self) -> Result<Tensor> {
        Ok(Tensor::from_slice(&self.x, (self.len(), self.d), &Device::Cpu)?)
    }

    /// As one batch, rows numbered from 0.
    pub fn batch(&self) -> Batch {
        let n = self.len();
        Batch { n, x: self.x.clone(), doc_id: (0..n as u64).collect(), position: vec![0; n], token_id: Vec::new() }
    }
}

/// A set of rows, in another order each epoch.
#[derive(Debug)]
pub struct Shuffled<'a> {
    set: &'a Set,
    seed: u64,
    epoch: u64,
    offset: usize,
    order: Vec<u32>,
}

impl<'a> Shuffled<'a> {
    /// From the first row of the first epoch; `seed` orders the rows.
    ///
    /// # Errors
    /// A set without rows.
    pub fn new(set: &'a Set, seed: u64) -> Result<Self> {
        if set.is_empty() {
            return Err(Error::request("there is no row to train on", "pass data with rows"));
        }
        let mut source = Self { set, seed, epoch: 0, offset: 0, order: Vec::new() };
        source.reorder();
        Ok(source)
    }

    fn reorder(&mut self) {
        self.order = (0..self.set.len() as u32).collect();
        Rng::stream(self.seed, "data", self.epoch).shuffle(&mut self.order);
    }
}

impl RowSource for Shuffled<'_> {
    fn width(&self) -> usize {
        self.set.d
    }

    fn next_rows(&mut self, n: usize) -> Result<Batch> {
        let mut rows = Vec::with_capacity(n);
        while rows.len() < n {
            if self.offset == self.order.len() {
                self.epoch += 1;
                self.offset = 0;
                self.reorder();
            }
            let take = (n - rows.len()).min(self.order.len() - self.offset);
            rows.extend_from_slice(&self.order[self.offset..self.offset + take]);
            self.offset += take;
        }
        let x = self.set.pick(&rows).x;
        Ok(Batch { n, x, doc_id: rows.into_iter().map(u64::from).collect(), position: vec![0; n], token_id: Vec::new() })
    }

    fn cursor(&self) -> Cursor {
        Cursor { epoch: self.epoch, offset: self.offset as u64, ..Cursor::default() }
    }

    fn seek(&mut self, cursor: &Cursor) -> Result<()> {
        refuse(cursor)?;
        if cursor.offset > self.order.len() as u64 {
            let problem = format!("a cursor at row {} of a set of {}", cursor.offset, self.order.len());
            return Err(Error::request(problem, "it belongs to other rows"));
        }
        (self.epoch, self.offset) = (cursor.epoch, cursor.offset as usize);
        self.reorder();
        Ok(())
    }

    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn rows_per_epoch(&self) -> Option<u64> {
        Some(self.set.len() as u64)
    }

    fn mean_sq_norm(&mut self) -> Result<f64> {
        Ok(self.set.x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / self.set.len() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::planted::PlantedConfig;

    #[test]
    fn epochs_are_permutations_and_cursors_find_back() {
        let set = Set { x: (0..10).map(|v| v as f32).collect(), d: 2 };
        let mut source = Shuffled::new(&set, 3).unwrap();
        let first = source.next_rows(4).unwrap();
        let cursor = source.cursor();
        let then = source.next_rows(7).unwrap();
        assert_eq!((source.epoch(), cursor.offset), (2, 4));
        let mut epoch: Vec<u64> = first.doc_id.iter().chain(&then.doc_id[..1]).copied().collect();
        epoch.sort_unstable();
        assert_eq!(epoch, [0, 1, 2, 3, 4], "an epoch has every row once");
        source.seek(&cursor).unwrap();
        assert_eq!(source.next_rows(7).unwrap(), then);
        source.seek(&Cursor::default()).unwrap();
        assert_eq!(source.next_rows(4).unwrap(), first);
        assert!(source.seek(&Cursor { offset: 99, ..Default::default() }).is_err());
        assert!(source.seek(&Cursor { source: serde_json::json!(1), ..Default::default() }).is_err());
        assert!(Shuffled::new(&Set::default(), 0).is_err());
    }

    #[test]
    fn planted_rows_are_the_generators_whatever_the_batches() {
        let planted = Planted::new(&PlantedConfig::parse("hierarchy").unwrap(), 1).unwrap();
        let mut source = PlantedRows::new(&planted);
        let n = CHUNK as usize - 5;
        assert_eq!(source.next_rows(n).unwrap().x, planted.rows(0..n as u64).x);
        let across = source.next_rows(50).unwrap();
        assert_eq!(across.x, planted.rows(n as u64..n as u64 + 50).x);
        assert_eq!(across.doc_id[0], n as u64);
        let cursor = source.cursor();
        let then = source.next_rows(3).unwrap();
        source.seek(&cursor).unwrap();
        assert_eq!(source.next_rows(3).unwrap(), then);
        let norm = source.mean_sq_norm().unwrap();
        assert!((norm / (1.36 * (2.25 + 0.0625)) - 1.0).abs() < 0.05, "{norm}");
    }

    #[test]
    fn a_split_parts_the_rows() {
        let set = Set { x: (0..20).map(|v| v as f32).collect(), d: 2 };
        let (a, b) = set.split(3, 1);
        assert_eq!((a.len(), b.len()), (3, 7));
        let mut all: Vec<f32> = a.x.iter().chain(&b.x).copied().collect();
        all.sort_by(f32::total_cmp);
        assert_eq!(all, set.x);
    }
}
