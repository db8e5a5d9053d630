//! The threshold search: every feature's values sorted once, every concept's best F1 read off in one pass over them.
//!
//! A threshold lies between two neighbouring values, never inside a run of equal ones. Of equal F1 the higher threshold wins, then
//! the lower feature: the result does not depend on how the work is split.

use rayon::prelude::*;

use super::bits;
use crate::codes::Codes;

/// Where a feature is cut.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Cut {
    /// F1 on the selection rows.
    pub f1: f64,
    /// Above it: positive.
    pub threshold: f64,
}

/// Rows called positive, and how many of them are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Confusion {
    pub hit: u64,
    pub called: u64,
}

impl Confusion {
    pub(super) fn f1(&self, positives: u64) -> f64 {
        match self.called + positives {
            0 => 0.0,
            sum => 2.0 * self.hit as f64 / sum as f64,
        }
    }
}

/// Features by column: the rows on which each has a value.
pub(super) enum Columns<'a> {
    /// Compressed by column; other rows are 0 and are never called positive.
    Sparse { starts: Vec<usize>, rows: Vec<u32>, values: Vec<f32> },
    /// `[n, width]`; column `2 j` is dimension j, column `2 j + 1` its negative. Every row has a value, of any sign.
    Dense { x: &'a [f32], width: usize },
}

impl<'a> Columns<'a> {
    /// Transposes; values not above 0 are left out.
    pub(super) fn from_codes(codes: &Codes) -> Self {
        let mut starts = vec![0usize; codes.d_sae + 1];
        let kept = |(&j, &v): (&u32, &f32)| (v > 0.0).then_some((j as usize, v));
        for (j, _) in codes.indices.iter().zip(&codes.values).filter_map(kept) {
            starts[j + 1] += 1;
        }
        for j in 0..codes.d_sae {
            starts[j + 1] += starts[j];
        }
        let mut next = starts.clone();
        let (mut rows, mut values) = (vec![0; starts[codes.d_sae]], vec![0.0; starts[codes.d_sae]]);
        for r in 0..codes.n_rows() {
            let (indices, row_values) = codes.row(r);
            for (j, v) in indices.iter().zip(row_values).filter_map(kept) {
                rows[next[j]] = r as u32;
                values[next[j]] = v;
                next[j] += 1;
            }
        }
        Columns::Sparse { starts, rows, values }
    }

    pub(super) fn from_dense(x: &'a [f32], width: usize) -> Self {
        Columns::Dense { x, width }
    }

    fn len(&self) -> usize {
        match self {
            Columns::Sparse { starts, .. } => starts.len() - 1,
            Columns::Dense { width, .. } => 2 * width,
        }
    }

    /// Row and value of each entry of a column.
    fn entries(&self, column: usize) -> Box<dyn Iterator<Item = (u32, f32)> + '_> {
        match self {
            Columns::Sparse { starts, rows, values } => {
                let span = starts[column]..starts[column + 1];
                Box::new(rows[span.clone()].iter().copied().zip(values[span].iter().copied()))
            }
            Columns::Dense { x, width } => {
                let sign = if column.is_multiple_of(2) { 1.0 } else { -1.0 };
                Box::new((0u32..).zip(x.iter().skip(column / 2).step_by(*width).map(move |v| sign * v)))
            }
        }
    }

    /// What a cut of a column does on the rows that `judge` admits: (is the row counted, is it positive).
    pub(super) fn confusion(&self, column: u32, cut: &Cut, judge: impl Fn(u32) -> (bool, bool)) -> Confusion {
        let mut confusion = Confusion { hit: 0, called: 0 };
        for (row, value) in self.entries(column as usize) {
            if let (true, (true, positive)) = (f64::from(value) > cut.threshold, judge(row)) {
                confusion.called += 1;
                confusion.hit += u64::from(positive);
            }
        }
        confusion
    }
}

/// Is a row in the set? `[n]`.
pub(super) fn membership(n: usize, rows: &[u32]) -> Vec<bool> {
    let mut member = vec![false; n];
    rows.iter().for_each(|&row| member[row as usize] = true);
    member
}

/// For each concept the column and cut with the best F1 on the selection rows; `None` where no column holds a positive row.
pub(super) fn sweep_columns(columns: &Columns, labels: &[u128], selection: &[u32], n_concepts: usize) -> Vec<Option<(u32, Cut)>> {
    let mut best: Vec<Option<(u32, Cut)>> = vec![None; n_concepts];
    for (column, found) in all_cuts(columns, labels, selection, n_concepts).into_iter().enumerate() {
        for (concept, cut) in found {
            let slot = &mut best[concept as usize];
            if slot.is_none_or(|(_, held)| cut.f1 > held.f1) {
                *slot = Some((column as u32, cut));
            }
        }
    }
    best
}

/// For each column the concept and cut with the best F1 on the selection rows, of those admitted; the first of equal ones.
pub(super) fn best_concepts(columns: &Columns, labels: &[u128], selection: &[u32], admitted: &[bool]) -> Vec<Option<(usize, Cut)>> {
    let best = |found: Vec<(u32, Cut)>| {
        let mut best: Option<(usize, Cut)> = None;
        for (concept, cut) in found.into_iter().filter(|f| admitted[f.0 as usize]) {
            if best.is_none_or(|(_, held)| cut.f1 > held.f1) {
                best = Some((concept as usize, cut));
            }
        }
        best
    };
    all_cuts(columns, labels, selection, admitted.len()).into_iter().map(best).collect()
}

/// For each column, the best cut of every concept that has a positive row in it.
fn all_cuts(columns: &Columns, labels: &[u128], selection: &[u32], n_concepts: usize) -> Vec<Vec<(u32, Cut)>> {
    let member = membership(labels.len(), selection);
    let mut positives = vec![0u64; n_concepts];
    for &row in selection {
        bits(labels[row as usize]).filter(|&c| c < n_concepts).for_each(|c| positives[c] += 1);
    }
    (0..columns.len())
        .into_par_iter()
        .map(|column| {
            let mut entries: Vec<_> = columns.entries(column).filter(|e| member[e.0 as usize]).collect();
            // Rows break ties, so the order (though not the result) is fixed too.
            entries.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            let sparse = matches!(columns, Columns::Sparse { .. });
            sweep_one(&entries, labels, &positives, sparse)
        })
        .collect()
}

/// One column, sorted by value descending: the best cut for every concept that has a positive row in it.
///
/// F1 can only rise where a positive row is taken in, so each run of equal values touches the concepts of its rows and no others: the
/// cost is the number of set label bits, not rows times concepts.
fn sweep_one(entries: &[(u32, f32)], labels: &[u128], positives: &[u64], sparse: bool) -> Vec<(u32, Cut)> {
    let n_concepts = positives.len();
    let mut hits = vec![0u64; n_concepts];
    let mut best: Vec<Option<Cut>> = vec![None; n_concepts];
    let mut at = 0;
    while at < entries.len() {
        let value = entries[at].1;
        let run = entries[at..].iter().take_while(|e| e.1 == value).count();
        let mut touched = 0u128;
        for &(row, _) in &entries[at..at + run] {
            touched |= labels[row as usize];
            bits(labels[row as usize]).filter(|&c| c < n_concepts).for_each(|c| hits[c] += 1);
        }
        at += run;
        let below = entries.get(at).map(|e| f64::from(e.1)).or(sparse.then_some(0.0));
        let threshold = below.map_or(f64::MIN, |below| 0.5 * (f64::from(value) + below));
        for c in bits(touched).filter(|&c| c < n_concepts) {
            let f1 = Confusion { hit: hits[c], called: at as u64 }.f1(positives[c]);
            if best[c].is_none_or(|held| f1 > held.f1) {
                best[c] = Some(Cut { f1, threshold });
            }
        }
    }
    best.into_iter().enumerate().filter_map(|(c, cut)| cut.map(|cut| (c as u32, cut))).collect()
}

/// The best cut of one list of (score, is positive); sorts it.
pub(super) fn best_threshold(scores: &mut [(f64, bool)], positives: u64) -> Cut {
    scores.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)));
    let mut best = Cut { f1: 0.0, threshold: f64::MAX };
    let mut confusion = Confusion { hit: 0, called: 0 };
    for (i, &(score, positive)) in scores.iter().enumerate() {
        confusion.called += 1;
        confusion.hit += u64::from(positive);
        let below = scores.get(i + 1).map(|s| s.0);
        if below == Some(score) {
            continue;
        }
        let f1 = confusion.f1(positives);
        if f1 > best.f1 {
            best = Cut { f1, threshold: below.map_or(f64::MIN, |below| 0.5 * (score + below)) };
        }
    }
    best
}

/// What a threshold does on a list of (score, is positive).
pub(super) fn confusion(scores: &[(f64, bool)], threshold: f64) -> Confusion {
    let called = scores.iter().filter(|s| s.0 > threshold);
    called.fold(Confusion { hit: 0, called: 0 }, |sum, s| Confusion { hit: sum.hit + u64::from(s.1), called: sum.called + 1 })
}
