//! Rows held while their neighbours are still wanted: what a latent did around a row.
//!
//! Rows come in the order of their documents. Stretches (`position / length` of a document) are the unit of "one example per context".

use crate::codes::Codes;
use crate::shard::Batch;

/// A row and those around it, as one latent sees them.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Window {
    pub value: f32,
    pub doc_id: u64,
    pub position: u32,
    /// Index of the row in the lists.
    pub peak: u32,
    pub token_ids: Box<[u32]>,
    pub positions: Box<[u32]>,
    /// Index and value where the latent is active.
    pub active: Box<[(u8, f32)]>,
}

/// Rows of a stream that are not done with.
#[derive(Debug)]
pub(super) struct Held {
    before: usize,
    after: usize,
    stretch: u32,
    pub doc_id: Vec<u64>,
    pub position: Vec<u32>,
    /// Empty for vectors without tokens.
    pub token_id: Vec<u32>,
    pub codes: Codes,
    /// Rows before this one were looked at and stay as context.
    pub done: usize,
}

impl Held {
    /// Holds nothing yet. Vectors without tokens are no text: their windows are the row alone.
    pub fn new(d_sae: usize, before: usize, after: usize) -> Self {
        let stretch = (before + after + 1) as u32;
        Self { before, after, stretch, doc_id: vec![], position: vec![], token_id: vec![], codes: Codes::new(d_sae), done: 0 }
    }

    /// Takes rows in.
    pub fn push(&mut self, batch: &Batch, codes: &Codes) {
        if batch.token_id.is_empty() && self.doc_id.is_empty() {
            (self.before, self.after, self.stretch) = (0, 0, 1);
        }
        self.doc_id.extend_from_slice(&batch.doc_id);
        self.position.extend_from_slice(&batch.position);
        self.token_id.extend_from_slice(&batch.token_id);
        self.codes.extend(codes);
    }

    /// Rows `done..` up to here can be looked at: their stretches are whole, and what follows them is here. All, at the end.
    pub fn ready(&self, is_last: bool) -> usize {
        let n = self.doc_id.len();
        if is_last {
            return n;
        }
        let begins = |r: &usize| *r == 0 || self.stretch_of(*r) != self.stretch_of(*r - 1);
        (self.done + 1..=n.saturating_sub(self.after)).rev().filter(|&r| r < n).find(begins).unwrap_or(self.done)
    }

    /// Rows before `upto` are done; lets go of those that no window reaches.
    pub fn finish(&mut self, upto: usize) {
        let drop = upto.saturating_sub(self.before);
        self.doc_id.drain(..drop);
        self.position.drain(..drop);
        if !self.token_id.is_empty() {
            self.token_id.drain(..drop);
        }
        let entries = self.codes.indptr[drop];
        self.codes.indptr.drain(..drop);
        self.codes.indptr.iter_mut().for_each(|p| *p -= entries);
        self.codes.indices.drain(..entries);
        self.codes.values.drain(..entries);
        self.done = upto - drop;
    }

    /// The stretch that a row belongs to.
    pub fn stretch_of(&self, row: usize) -> (u64, u32) {
        (self.doc_id[row], self.position[row] / self.stretch)
    }

    /// Rows of the window around `row`.
    fn span(&self, row: usize) -> std::ops::Range<usize> {
        let same = |r: &usize| self.doc_id[*r] == self.doc_id[row];
        let start = (row.saturating_sub(self.before)..row).rev().take_while(same).last().unwrap_or(row);
        let end = (row + 1..(row + 1 + self.after).min(self.doc_id.len())).take_while(same).last().unwrap_or(row) + 1;
        start..end
    }

    /// The window around `row` of a latent whose entries (row, value), ascending, are `entries`.
    pub fn window(&self, row: usize, entries: &[(u32, f32)]) -> Window {
        let span = self.span(row);
        let first = entries.partition_point(|e| (e.0 as usize) < span.start);
        let inside = entries[first..].iter().take_while(|e| (e.0 as usize) < span.end);
        let active: Box<[(u8, f32)]> = inside.map(|&(r, v)| ((r as usize - span.start) as u8, v)).collect();
        let value = active.iter().find(|e| usize::from(e.0) == row - span.start).map_or(0.0, |e| e.1);
        Window {
            value,
            doc_id: self.doc_id[row],
            position: self.position[row],
            peak: (row - span.start) as u32,
            token_ids: self.token_id.get(span.clone()).map(Box::from).unwrap_or_default(),
            positions: self.position[span].into(),
            active,
        }
    }
}
