//! An absorption case, found in the data: a concept whose main latent stays silent on a word that carries the concept, where a latent of that
//! word fires instead and points along the concept.

use std::collections::BTreeMap;

use serde::Serialize;

use super::rows::Column;
use crate::codes::Codes;
use crate::corpus::fable;
use crate::dictionary::Dictionary;
use crate::error::Result;
use crate::score::concepts::ConceptScore;

/// A word whose own latent says what the concept's latent leaves out.
#[derive(Debug, Clone, Serialize)]
pub struct Absorption {
    /// The concept.
    pub concept: String,
    /// Its best latent.
    pub main: u32,
    /// Precision and recall of that latent, at its threshold, on the test rows.
    pub precision: f64,
    /// See `precision`.
    pub recall: f64,
    /// The word on which it stays silent.
    pub word: String,
    /// Test rows of that word.
    pub rows: usize,
    /// Share of them where the main latent fires at all.
    pub main_on_word: f64,
    /// Share of the concept's other rows where it does.
    pub main_elsewhere: f64,
    /// The latent that fires instead.
    pub absorber: u32,
    /// Share of the word's rows where it does.
    pub absorber_on_word: f64,
    /// Share of its firing that is on that word.
    pub absorber_precision: f64,
    /// Cosine of its atom with the concept's direction: the mean of the rows with the concept, minus that of those without it and of the word.
    pub absorber_cos: f64,
    /// Cosine of the main latent's atom with it.
    pub main_cos: f64,
    /// What the absorber writes along that direction on the word's rows, over what the main latent writes where it fires.
    pub carried: f64,
    /// Sentences where it happens; the word stands in brackets.
    pub examples: Vec<String>,
}

/// Rows of a word below which it is no case.
const FEW: usize = 40;
/// The main latent is silent on a word when it fires on at most this share of its rows, and alive elsewhere above the other.
const SILENT: f64 = 0.1;
const ALIVE: f64 = 0.5;

/// All cases among these concepts, the clearest first: by the share of the concept's direction that the absorber carries, at most 1, times how
/// much of the word is its own.
pub(super) fn absorptions(
    column: &Column,
    seed: u64,
    dictionary: &Dictionary,
    codes: &Codes,
    found: &[ConceptScore],
) -> Result<Vec<Absorption>> {
    let atoms: Vec<Vec<f32>> = dictionary.coder.w_dec.to_vec2()?;
    let mut fires = vec![0usize; codes.d_sae];
    for &r in &column.test {
        codes.row(r as usize).0.iter().for_each(|&l| fires[l as usize] += 1);
    }
    let value = |row: u32, latent: u32| {
        let (indices, values) = codes.row(row as usize);
        indices.iter().position(|&i| i == latent).map(|i| values[i])
    };
    let mut cases = Vec::new();
    for score in found.iter().filter(|s| s.class != "contextual" && s.precision >= 0.7) {
        let (Some(main), Some(concept)) = (score.feature, fable::concept(&score.concept)) else { continue };
        let holds = |row: u32| column.labels[row as usize] >> concept & 1 == 1;
        let mut by_word: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for &row in column.test.iter().filter(|&&row| holds(row)) {
            by_word.entry(column.token_id[row as usize]).or_default().push(row);
        }
        if by_word.len() < 3 {
            continue;
        }
        let on = |rows: &[u32]| rows.iter().filter(|&&r| value(r, main).is_some()).count();
        let (all_on, all): (usize, usize) = by_word.values().fold((0, 0), |sum, rows| (sum.0 + on(rows), sum.1 + rows.len()));
        for (&word, rows) in by_word.iter().filter(|(_, rows)| rows.len() >= FEW) {
            let fired = on(rows);
            let main_on_word = fired as f64 / rows.len() as f64;
            let main_elsewhere = (all_on - fired) as f64 / (all - rows.len()).max(1) as f64;
            if main_on_word > SILENT || main_elsewhere < ALIVE {
                continue;
            }
            let direction = direction(column, |row| holds(row) && column.token_id[row as usize] != word, |row| !holds(row));
            let along = |latent: u32| {
                let atom = &atoms[latent as usize];
                let dot: f64 = atom.iter().zip(&direction).map(|(&a, d)| f64::from(a) * d).sum();
                (dot, dot / atom.iter().map(|&a| f64::from(a).powi(2)).sum::<f64>().sqrt().max(1e-12))
            };
            let mut instead: BTreeMap<u32, (usize, f64)> = BTreeMap::new();
            for &row in rows {
                let (indices, values) = codes.row(row as usize);
                for (&l, &v) in indices.iter().zip(values) {
                    let entry = instead.entry(l).or_default();
                    *entry = (entry.0 + 1, entry.1 + f64::from(v));
                }
            }
            let others: Vec<u32> = by_word.iter().filter(|(w, _)| **w != word).flat_map(|(_, rows)| rows).copied().collect();
            let written: Vec<f64> = others.iter().filter_map(|&r| value(r, main)).map(f64::from).collect();
            let by_main = written.iter().sum::<f64>() / written.len().max(1) as f64 * along(main).0;
            for (&latent, &(n, sum)) in instead.iter().filter(|(_, v)| v.0 as f64 >= 0.9 * rows.len() as f64) {
                let precision = n as f64 / fires[latent as usize].max(1) as f64;
                let carried = sum / rows.len() as f64 * along(latent).0 / by_main;
                if precision < 0.5 || along(latent).1 < 0.1 || !(carried > 0.0) {
                    continue;
                }
                cases.push((
                    precision * carried.min(1.0),
                    Absorption {
                        concept: score.concept.clone(),
                        main,
                        precision: score.precision,
                        recall: score.recall,
                        word: fable::vocabulary()[word as usize].to_string(),
                        rows: rows.len(),
                        main_on_word,
                        main_elsewhere,
                        absorber: latent,
                        absorber_on_word: n as f64 / rows.len() as f64,
                        absorber_precision: precision,
                        absorber_cos: along(latent).1,
                        main_cos: along(main).1,
                        carried,
                        examples: examples(column, seed, rows, main, &value),
                    },
                ));
            }
        }
    }
    cases.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.concept.cmp(&b.1.concept)).then(a.1.absorber.cmp(&b.1.absorber)));
    Ok(cases.into_iter().map(|(_, case)| case).collect())
}

/// Unit vector from the mean of the selection rows `without` to the mean of those `with`, `[width]`.
fn direction(column: &Column, with: impl Fn(u32) -> bool, without: impl Fn(u32) -> bool) -> Vec<f64> {
    let mean = |chosen: &dyn Fn(u32) -> bool| {
        let (mut sum, mut n) = (vec![0f64; column.width], 0usize);
        for &row in column.selection.iter().filter(|&&r| chosen(r)) {
            n += 1;
            sum.iter_mut().zip(&column.x[row as usize * column.width..]).for_each(|(s, &v)| *s += f64::from(v));
        }
        sum.iter_mut().for_each(|s| *s /= n.max(1) as f64);
        sum
    };
    let mut d: Vec<f64> = mean(&with).iter().zip(mean(&without)).map(|(a, b)| a - b).collect();
    let norm = d.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-12);
    d.iter_mut().for_each(|v| *v /= norm);
    d
}

/// The sentences around the first rows where the main latent is silent, of different stories.
fn examples(column: &Column, seed: u64, rows: &[u32], main: u32, value: &dyn Fn(u32, u32) -> Option<f32>) -> Vec<String> {
    let mut seen = Vec::new();
    for &row in rows {
        let doc = column.doc_id[row as usize];
        if value(row, main).is_some() || seen.iter().any(|(d, _)| *d == doc) {
            continue;
        }
        let story = fable::story(seed, doc);
        let at = column.position[row as usize] as usize;
        let word = |i: usize| fable::vocabulary()[story.tokens[i] as usize];
        let first = (1..at).rev().find(|&i| word(i) == ".").map_or(1, |i| i + 1);
        let last = (at..story.tokens.len()).find(|&i| word(i) == ".").unwrap_or(story.tokens.len() - 1);
        let said = (first..=last).map(|i| if i == at { format!("[{}]", word(i)) } else { word(i).to_string() });
        seen.push((doc, said.collect::<Vec<_>>().join(" ")));
        if seen.len() == 3 {
            break;
        }
    }
    seen.into_iter().map(|(_, text)| text).collect()
}
