//! Concept recovery: for each known concept, how well does one feature of a representation find it?
//!
//! For a concept, the feature and the threshold with the best F1 on the *selection* rows are chosen, and F1 is reported on the *test* rows:
//! F1 = 2 TP / (2 TP + FP + FN), where a row is called positive when the feature's value is above the threshold. The same search runs on the
//! codes of a dictionary and on the controls (raw neurons in both signs, the word itself, codes of a dictionary on the embedding or on a
//! random host), so the numbers compare. Beside them stand two scores that are allowed to combine: [`word_alone`], the best any predictor
//! can do that sees only the token, and [`probe`], a linear read-out of the whole activation.
//!
//! Plain slices in, serialisable structs out. Not for: making the labels (`corpus::fable`) or the codes (`encode`).

mod probe;
mod sweep;

pub use probe::{probe, ProbeOptions};

use std::collections::HashMap;

use crate::codes::Codes;
use crate::error::{Error, Result};
use sweep::{best_threshold, confusion, sweep_columns, Columns, Confusion, Cut};

/// File that holds the recovery of concepts under several representations, as `lapidary demo` writes it: `representations`, a list of
/// [`Recovery`], with `selection_rows` and `test_rows` beside.
pub const CONCEPTS_FILE: &str = "concepts.json";

/// A concept's name and the class it is reported under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Unique name.
    pub name: String,
    /// Class, such as `contextual`; summaries are per class, in order of first appearance.
    pub class: String,
}

/// Labelled rows and their two disjoint splits.
#[derive(Debug, Clone)]
pub struct Task<'a> {
    /// The concepts; at most 128. Bit `i` of a label is concept `i`.
    pub concepts: &'a [Known],
    /// Labels of each row, `[n]`.
    pub labels: &'a [u128],
    /// Rows that choose feature and threshold.
    pub selection: &'a [u32],
    /// Rows that are scored. Split by document, so that no story is in both.
    pub test: &'a [u32],
    /// A concept with fewer positive rows than this in either split is skipped and counted.
    pub min_positives: u64,
}

/// Positive rows below which a concept is not scored, unless asked otherwise.
pub const MIN_POSITIVES: u64 = 50;

/// F1 above which a concept counts as recovered in [`ClassSummary::recovered`].
pub const RECOVERED: f64 = 0.7;

/// One concept under one representation.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ConceptScore {
    /// Name of the concept.
    pub concept: String,
    /// Class of the concept.
    pub class: String,
    /// Positive rows of the test split.
    pub positives: u64,
    /// F1 on the test split, 0 to 1.
    pub f1: f64,
    /// TP / (TP + FP) on the test split; 0 where nothing is called positive.
    pub precision: f64,
    /// TP / (TP + FN) on the test split.
    pub recall: f64,
    /// F1 of the same feature and threshold on the selection split.
    pub selection_f1: f64,
    /// The chosen feature: latent, token or dimension. `None` for scores that combine.
    pub feature: Option<u32>,
    /// True where the feature is a dimension read with its sign reversed.
    pub negated: bool,
    /// Rows whose (signed) value is above this are called positive.
    pub threshold: f64,
}

/// A class of concepts under one representation.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ClassSummary {
    /// The class.
    pub class: String,
    /// Concepts scored.
    pub concepts: usize,
    /// Concepts skipped for want of positive rows.
    pub skipped: usize,
    /// Mean test F1 of those scored; NaN-free: 0 where none is.
    pub mean_f1: f64,
    /// Median test F1 of those scored.
    pub median_f1: f64,
    /// How many have test F1 above [`RECOVERED`].
    pub recovered: usize,
}

/// All concepts under one representation.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Recovery {
    /// What was read: `dictionary`, `neurons`, `token`, ...
    pub features: String,
    /// Per concept, in the order of the task, without the skipped ones.
    pub concepts: Vec<ConceptScore>,
    /// Per class.
    pub classes: Vec<ClassSummary>,
    /// Names of the skipped concepts.
    pub skipped: Vec<String>,
}

impl Recovery {
    /// A concept's score by name; `None` where it was skipped.
    pub fn concept(&self, name: &str) -> Option<&ConceptScore> {
        self.concepts.iter().find(|c| c.concept == name)
    }

    /// A class's summary by name.
    pub fn class(&self, name: &str) -> Option<&ClassSummary> {
        self.classes.iter().find(|c| c.class == name)
    }
}

/// Recovery by single latents of `codes`: `[n]` rows, values above 0 only.
///
/// # Errors
/// When the rows of codes and labels differ in number, or the task is malformed.
pub fn latents(name: &str, codes: &Codes, task: &Task) -> Result<Recovery> {
    task.check(codes.n_rows())?;
    Ok(search(name, &Columns::from_codes(codes), task, |f| (f, false)))
}

/// The other way round: for each latent of `codes` the concept that it finds best on the selection rows, with its figures on the test
/// rows. `None` for a latent that is active on no positive row; concepts with too few positives take no part.
///
/// # Errors
/// As [`latents`].
pub fn by_latent(codes: &Codes, task: &Task) -> Result<Vec<Option<ConceptScore>>> {
    task.check(codes.n_rows())?;
    let columns = Columns::from_codes(codes);
    let least = task.min_positives.max(1);
    let positives: Vec<[u64; 2]> =
        (0..task.concepts.len()).map(|c| [task.positives(task.selection, c), task.positives(task.test, c)]).collect();
    let admitted: Vec<bool> = positives.iter().map(|p| p[0] >= least && p[1] >= least).collect();
    let in_test = sweep::membership(task.labels.len(), task.test);
    let best = sweep::best_concepts(&columns, task.labels, task.selection, &admitted);
    Ok(best
        .into_iter()
        .enumerate()
        .map(|(column, found)| {
            let (c, cut) = found?;
            let test = columns.confusion(column as u32, &cut, |row| (in_test[row as usize], task.labels[row as usize] >> c & 1 == 1));
            Some(task.judged(c, positives[c][1], &Found { feature: Some(column as u32), negated: false, cut, test }))
        })
        .collect())
}

/// Recovery by single dimensions of `x`: `[n, width]`, row-major, each read in both signs. This is the raw-neuron control.
///
/// # Errors
/// When `x` is not `[n, width]` for the labels' n, holds NaN, or the task is malformed.
pub fn neurons(name: &str, x: &[f32], width: usize, task: &Task) -> Result<Recovery> {
    check_dense(x, width, task)?;
    Ok(search(name, &Columns::from_dense(x, width), task, |f| (f / 2, f % 2 == 1)))
}

/// Recovery by single tokens: the feature "this row's token is `t`". `tokens`: `[n]`.
///
/// # Errors
/// When tokens and labels differ in number, or the task is malformed.
pub fn best_token(name: &str, tokens: &[u32], task: &Task) -> Result<Recovery> {
    task.check(tokens.len())?;
    let mut codes = Codes::new(tokens.iter().max().map_or(0, |&t| t as usize + 1));
    for &token in tokens {
        codes.push_row([(token, 1.0)].into_iter());
    }
    latents(name, &codes, task)
}

/// What the token alone can tell: a row's score is the concept's share among the selection rows with its token, and the threshold on that
/// share is the one with the best F1. No predictor that sees only the token has a higher F1 on the selection rows, so a representation
/// that does not beat this has recovered no context. A token unseen in the selection rows scores 0.
///
/// # Errors
/// When tokens and labels differ in number, or the task is malformed.
pub fn word_alone(name: &str, tokens: &[u32], task: &Task) -> Result<Recovery> {
    task.check(tokens.len())?;
    let mut counts: HashMap<u32, Vec<f64>> = HashMap::new();
    for &row in task.selection {
        let count = counts.entry(tokens[row as usize]).or_insert_with(|| vec![0.0; task.concepts.len() + 1]);
        count[task.concepts.len()] += 1.0;
        bits(task.labels[row as usize]).for_each(|c| count[c] += 1.0);
    }
    let share = |row: u32, c: usize| counts.get(&tokens[row as usize]).map_or(0.0, |n| n[c] / n[task.concepts.len()]);
    Ok(task.report(name, |c| Some(task.score_with(c, |row| share(row, c)))))
}

impl Task<'_> {
    /// The impossible is refused before work starts.
    fn check(&self, n: usize) -> Result<()> {
        let refuse = |what: String, help: &str| Err(Error::request(what, help.to_owned()));
        if self.labels.len() != n {
            return refuse(format!("{n} rows of features, {} of labels", self.labels.len()), "give one label per row, in the same order");
        }
        if self.concepts.len() > 128 {
            return refuse(format!("{} concepts, and labels hold 128", self.concepts.len()), "score them in several tasks");
        }
        let mut side = vec![false; n];
        for &row in self.selection.iter().chain(self.test) {
            match side.get_mut(row as usize) {
                Some(seen) if !*seen => *seen = true,
                Some(_) => return refuse(format!("row {row} is in the splits twice"), "let selection and test rows be disjoint"),
                None => return refuse(format!("row {row} is in a split, and there are {n} rows"), "let the splits index the rows given"),
            }
        }
        Ok(())
    }

    /// Positive rows of a concept among `rows`.
    fn positives(&self, rows: &[u32], concept: usize) -> u64 {
        rows.iter().filter(|&&row| self.labels[row as usize] >> concept & 1 == 1).count() as u64
    }

    /// Threshold on the selection rows, confusion on both.
    fn score_with(&self, concept: usize, score: impl Fn(u32) -> f64) -> Found {
        let holds = |row: u32| self.labels[row as usize] >> concept & 1 == 1;
        let rated = |rows: &[u32]| rows.iter().map(|&row| (score(row), holds(row))).collect::<Vec<_>>();
        let mut selection = rated(self.selection);
        let cut = best_threshold(&mut selection, self.positives(self.selection, concept));
        Found { feature: None, negated: false, cut, test: confusion(&rated(self.test), cut.threshold) }
    }

    /// Scores every concept that has enough positives and summarises by class. A concept no feature fires on gets F1 0.
    fn report(&self, name: &str, find: impl Fn(usize) -> Option<Found> + Sync) -> Recovery {
        use rayon::prelude::*;
        let scored: Vec<Option<ConceptScore>> = (0..self.concepts.len())
            .into_par_iter()
            .map(|c| {
                let positives = self.positives(self.test, c);
                if positives < self.min_positives.max(1) || self.positives(self.selection, c) < self.min_positives.max(1) {
                    return None;
                }
                let nothing = Confusion { hit: 0, called: 0 };
                let found =
                    find(c).unwrap_or(Found { feature: None, negated: false, cut: Cut { f1: 0.0, threshold: f64::MAX }, test: nothing });
                Some(self.judged(c, positives, &found))
            })
            .collect();
        let skipped = self.concepts.iter().zip(&scored).filter(|(_, s)| s.is_none()).map(|(c, _)| c.name.clone()).collect();
        let mut classes: Vec<ClassSummary> = Vec::new();
        for concept in self.concepts {
            if !classes.iter().any(|k| k.class == concept.class) {
                classes.push(self.summary(&concept.class, &scored));
            }
        }
        Recovery { features: name.to_owned(), concepts: scored.into_iter().flatten().collect(), classes, skipped }
    }

    /// The figures of what was found for a concept with so many positive test rows.
    fn judged(&self, c: usize, positives: u64, found: &Found) -> ConceptScore {
        ConceptScore {
            concept: self.concepts[c].name.clone(),
            class: self.concepts[c].class.clone(),
            positives,
            f1: found.test.f1(positives),
            precision: if found.test.called == 0 { 0.0 } else { found.test.hit as f64 / found.test.called as f64 },
            recall: found.test.hit as f64 / positives as f64,
            selection_f1: found.cut.f1,
            feature: found.feature,
            negated: found.negated,
            threshold: found.cut.threshold,
        }
    }

    fn summary(&self, class: &str, scored: &[Option<ConceptScore>]) -> ClassSummary {
        let mut f1: Vec<f64> = scored.iter().flatten().filter(|s| s.class == class).map(|s| s.f1).collect();
        f1.sort_by(f64::total_cmp);
        let n = f1.len();
        let median = if n == 0 { 0.0 } else { (f1[(n - 1) / 2] + f1[n / 2]) / 2.0 };
        ClassSummary {
            class: class.to_owned(),
            concepts: n,
            skipped: self.concepts.iter().filter(|c| c.class == class).count() - n,
            mean_f1: if n == 0 { 0.0 } else { f1.iter().sum::<f64>() / n as f64 },
            median_f1: median,
            recovered: f1.iter().filter(|&&f| f > RECOVERED).count(),
        }
    }
}

/// What was chosen for a concept, and how it did on the test rows.
struct Found {
    feature: Option<u32>,
    negated: bool,
    cut: Cut,
    test: Confusion,
}

/// The best single column for each concept. `origin` names a column's feature and sign.
fn search(name: &str, columns: &Columns, task: &Task, origin: impl Fn(u32) -> (u32, bool) + Sync) -> Recovery {
    let best = sweep_columns(columns, task.labels, task.selection, task.concepts.len());
    let in_test = sweep::membership(task.labels.len(), task.test);
    task.report(name, |c| {
        let (column, cut) = best[c]?;
        let test = columns.confusion(column, &cut, |row| (in_test[row as usize], task.labels[row as usize] >> c & 1 == 1));
        let (feature, negated) = origin(column);
        Some(Found { feature: Some(feature), negated, cut, test })
    })
}

fn check_dense(x: &[f32], width: usize, task: &Task) -> Result<()> {
    if width == 0 || !x.len().is_multiple_of(width) {
        return Err(Error::request(
            format!("{} values do not make rows of width {width}", x.len()),
            "give the activations row-major, [n, width]".to_owned(),
        ));
    }
    if let Some(at) = x.iter().position(|v| !v.is_finite()) {
        return Err(Error::request(
            format!("row {} of the activations holds {}", at / width, x[at]),
            "find out what made it; scores over such rows mean nothing".to_owned(),
        ));
    }
    task.check(x.len() / width)
}

/// The set bits of a label.
fn bits(mut labels: u128) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        (labels != 0).then(|| {
            let bit = labels.trailing_zeros() as usize;
            labels &= labels - 1;
            bit
        })
    })
}

#[cfg(test)]
mod tests;
