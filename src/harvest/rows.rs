//! Which rows leave a harvest: token rules, the outlier rule, the split, the count. The same for shards and for a stream.

use std::collections::VecDeque;

use super::config::{MaskRule, Plan, Thresholds};
use super::forward::BlockRows;
use super::timing::Timing;
use crate::corpus::{Mask, Place};
use crate::shard::{split_of, Counts, Rows, Split};

/// The rows of a block that are left, and what was counted up to its end.
pub(super) struct Chosen {
    /// Training rows and held-out rows, each in corpus order.
    pub rows: [Rows; 2],
    /// Where the next block begins.
    pub end: Place,
    /// Everything counted up to there.
    pub counts: Counts,
    /// The clock when the block came.
    pub timing: Timing,
}

/// Takes blocks in order and gives them back as the rows that are left, as soon as the thresholds are known.
pub(super) struct Chooser<'a> {
    plan: &'a Plan,
    counts: Counts,
    thresholds: Option<Thresholds>,
    /// Blocks that wait for the thresholds, with the timing when they came.
    waiting: VecDeque<(BlockRows, Timing)>,
    waiting_rows: usize,
    /// No block comes any more.
    ended: bool,
    full: bool,
}

impl<'a> Chooser<'a> {
    /// At the beginning, or where counts and thresholds were these.
    pub fn new(plan: &'a Plan, so_far: Option<(Counts, Option<Thresholds>)>) -> Self {
        let (mut counts, thresholds) = so_far.unwrap_or_default();
        for rule in ["drop_bos", "special", "first", "outlier"] {
            counts.masked.entry(rule.to_string()).or_insert(0);
        }
        let full = plan.config.n_tokens.is_some_and(|n| counts.rows.of(None) >= n);
        Self { plan, counts, thresholds, waiting: VecDeque::new(), waiting_rows: 0, ended: false, full }
    }

    /// What was counted so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The thresholds of the outlier rule, once decided.
    pub fn thresholds(&self) -> Option<&Thresholds> {
        self.thresholds.as_ref()
    }

    /// Are all wanted rows chosen?
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Takes a block.
    pub fn push(&mut self, block: BlockRows, timing: &Timing) {
        self.waiting_rows += block.kept();
        self.waiting.push_back((block, timing.clone()));
    }

    /// The corpus is at its end: what waits for thresholds waits no longer.
    pub fn end(&mut self) {
        self.ended = true;
    }

    /// The rows of the next block, if the thresholds are known by now.
    pub fn pop(&mut self) -> Option<Chosen> {
        if self.full || self.waiting.is_empty() {
            return None;
        }
        if self.thresholds.is_none() && !self.plan.keeps(MaskRule::Outlier) {
            let rows = self.plan.config.outlier_rows;
            let enough = self.plan.config.n_tokens.map_or(rows, |n| rows.min(n as usize));
            if self.waiting_rows < enough && !self.ended {
                return None;
            }
            self.decide();
        }
        let (block, timing) = self.waiting.pop_front()?;
        Some(self.choose(&block, timing))
    }

    /// Decides the thresholds on the first rows.
    fn decide(&mut self) {
        let first =
            |c: usize| self.waiting.iter().flat_map(|(b, _)| b.norms[c].iter().copied()).take(self.plan.config.outlier_rows).collect();
        let norms: Vec<Vec<f64>> = (0..self.plan.columns.len()).map(first).collect();
        self.thresholds = Some(Thresholds::decide(&self.plan.columns, &norms, self.plan.config.outlier_factor));
    }

    /// Counts every token up to the last wanted row, and copies the rows that are left.
    fn choose(&mut self, block: &BlockRows, timing: Timing) -> Chosen {
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
                }
            }
            row += usize::from(mask == Mask::Keep);
            if self.plan.config.n_tokens == Some(self.counts.rows.of(None)) {
                self.full = true;
                break;
            }
        }
        Chosen { rows: out, end: block.end, counts: self.counts.clone(), timing }
    }
}

/// The split whose rows stand at an index of [`Chosen::rows`].
pub(super) fn splits() -> [Split; 2] {
    debug_assert!(Split::Train as usize == 0 && Split::HeldOut as usize == 1);
    Split::ALL
}
