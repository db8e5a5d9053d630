//! Which rows are written: token rules, the outlier rule, the split, the count.

use super::config::{MaskRule, Plan, Thresholds};
use super::forward::BlockRows;
use super::state::State;
use super::timing::Timing;
use super::write::Writer;
use crate::corpus::Mask;
use crate::error::Result;
use crate::shard::{split_of, Counts, Rows, Split};

/// Takes blocks in order and hands rows to the writer.
pub(super) struct Rower<'a> {
    plan: &'a Plan,
    counts: Counts,
    thresholds: Option<Thresholds>,
    /// Blocks that wait for the thresholds, with the timing when they came.
    waiting: Vec<(BlockRows, Timing)>,
    waiting_rows: usize,
    /// Rows handed to the writer since the last seal.
    open_rows: u64,
    full: bool,
}

impl<'a> Rower<'a> {
    /// At the beginning, or after a sealed shard.
    pub fn new(plan: &'a Plan, resumed: Option<(Counts, Option<Thresholds>)>) -> Self {
        let (mut counts, thresholds) = resumed.unwrap_or_default();
        for rule in ["drop_bos", "special", "first", "outlier"] {
            counts.masked.entry(rule.to_string()).or_insert(0);
        }
        let full = plan.config.n_tokens.is_some_and(|n| counts.rows.of(None) >= n);
        Self { plan, counts, thresholds, waiting: Vec::new(), waiting_rows: 0, open_rows: 0, full }
    }

    /// What was counted so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The thresholds of the outlier rule, once decided.
    pub fn thresholds(&self) -> Option<&Thresholds> {
        self.thresholds.as_ref()
    }

    /// Takes a block. Returns whether all wanted rows are written.
    ///
    /// # Errors
    /// When the writer failed.
    pub fn take(&mut self, block: BlockRows, writer: &Writer, timing: &Timing) -> Result<bool> {
        if self.full {
            return Ok(true);
        }
        if self.thresholds.is_none() && !self.plan.keeps(MaskRule::Outlier) {
            self.waiting_rows += block.kept();
            self.waiting.push((block, timing.clone()));
            let rows = self.plan.config.outlier_rows;
            let enough = self.plan.config.n_tokens.map_or(rows, |n| rows.min(n as usize));
            if self.waiting_rows >= enough {
                self.decide(writer)?;
            }
        } else {
            self.write(block, writer, timing)?;
        }
        Ok(self.full)
    }

    /// The corpus is at its end, or enough rows are written.
    ///
    /// # Errors
    /// When the writer failed.
    pub fn finish(&mut self, writer: &Writer) -> Result<()> {
        self.decide(writer)
    }

    /// Decides the thresholds on the first rows, and writes the blocks that waited for them.
    fn decide(&mut self, writer: &Writer) -> Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let first =
            |c: usize| self.waiting.iter().flat_map(|(b, _)| b.norms[c].iter().copied()).take(self.plan.config.outlier_rows).collect();
        let norms: Vec<Vec<f64>> = (0..self.plan.columns.len()).map(first).collect();
        self.thresholds = Some(Thresholds::decide(&self.plan.columns, &norms, self.plan.config.outlier_factor));
        for (block, timing) in std::mem::take(&mut self.waiting) {
            if !self.full {
                self.write(block, writer, &timing)?;
            }
        }
        Ok(())
    }

    /// Counts every token up to the last wanted row, and sends the rows.
    fn write(&mut self, block: BlockRows, writer: &Writer, timing: &Timing) -> Result<()> {
        let columns = &self.plan.columns;
        let limits: Option<Vec<f64>> = self.thresholds.as_ref().map(|t| columns.iter().map(|c| t.limit[&c.name]).collect());
        let is_outlier = |row: usize| limits.as_ref().is_some_and(|l| l.iter().zip(&block.norms).any(|(limit, norms)| norms[row] > *limit));
        let empty = || Rows { token_id: Some(Vec::new()), columns: vec![Vec::new(); columns.len()], ..Rows::default() };
        let mut out = [empty(), empty()];
        let mut row = 0;
        for (&(doc_id, mask), &begins) in block.tokens.iter().zip(&block.begins) {
            self.counts.tokens += 1;
            self.counts.documents += u64::from(begins);
            let rule = match mask {
                Mask::DropBos => Some("drop_bos"),
                Mask::Special => Some("special"),
                Mask::First => Some("first"),
                Mask::Keep => is_outlier(row).then_some("outlier"),
            };
            match rule {
                Some(rule) => *self.counts.masked.entry(rule.to_string()).or_insert(0) += 1,
                None => {
                    let split = split_of(doc_id, self.plan.config.split_seed, self.plan.config.held_out);
                    let rows = &mut out[split as usize];
                    rows.doc_id.push(doc_id);
                    rows.position.push(block.position[row]);
                    if let Some(ids) = &mut rows.token_id {
                        ids.push(block.token_id[row]);
                    }
                    for ((to, from), column) in rows.columns.iter_mut().zip(&block.columns).zip(columns) {
                        to.extend_from_slice(&from[row * column.width..(row + 1) * column.width]);
                    }
                    self.counts.rows.add(split, 1);
                    self.open_rows += 1;
                }
            }
            row += usize::from(mask == Mask::Keep);
            if self.plan.config.n_tokens == Some(self.counts.rows.of(None)) {
                self.full = true;
                break;
            }
        }
        for (split, rows) in Split::ALL.into_iter().zip(out) {
            if !rows.doc_id.is_empty() {
                writer.rows(split, rows)?;
            }
        }
        if self.open_rows >= self.plan.config.shard_rows.unwrap_or(u64::MAX) {
            self.open_rows = 0;
            let timing = Timing { tokens: self.counts.tokens, ..timing.clone() };
            writer.seal(State::parts(block.end, self.counts.clone(), self.thresholds.as_ref(), &timing))?;
        }
        Ok(())
    }
}
