//! Does a concept's latent do what the concept does? It is ablated in the host, and the probability of what the grammar lets follow the
//! concept is read.
//!
//! What the grammar licenses after a concept is read off its own stories: the words that ever follow a token with the concept's label. The
//! latent is silenced wherever it fires (the error term stays). Controls are latents that fire equally often, within 20 %, drawn by the seed.

use std::collections::BTreeSet;

use candle_core::{DType, Device};
use serde::Serialize;

use super::rows::Column;
use crate::codes::Codes;
use crate::corpus::fable;
use crate::dictionary::Dictionary;
use crate::error::{Error, Result};
use crate::harvest::passes;
use crate::hook::HookPoint;
use crate::host::{HostModel, NoTap, Tokens};
use crate::rng::Rng;
use crate::score::concepts::ConceptScore;
use crate::steer::{Edit, Edited};

/// Stories that the licensed words are read from, of a seed of their own.
const GRAMMAR_STORIES: u64 = 6000;
const GRAMMAR_SEED: u64 = 77;
/// Test stories that run through the host.
const STORIES: usize = 120;
/// Matched latents per concept, at most.
const MATCHED: usize = 8;
/// How far their density may be off.
const TOLERANCE: f64 = 0.2;
/// Tokens of a forward pass, padding included.
const PASS: usize = 2048;

/// What silencing a concept's latent does.
#[derive(Debug, Clone, Serialize)]
pub struct Causal {
    /// The concept.
    pub concept: String,
    /// Its best latent.
    pub latent: u32,
    /// Rows of the test stories where the concept holds.
    pub rows: usize,
    /// Words that may follow it, by the grammar.
    pub licensed: usize,
    /// Mean probability of a licensed word at these rows, untouched.
    pub before: f64,
    /// How much of it is gone when the latent is silenced.
    pub change: f64,
    /// The same for each matched latent.
    pub matched: Vec<Matched>,
}

/// A latent that fires as often.
#[derive(Debug, Clone, Serialize)]
pub struct Matched {
    /// Which.
    pub latent: u32,
    /// Its density over that of the concept's latent.
    pub density_ratio: f64,
    /// How much of the probability of licensed words is gone at the concept's rows when it is silenced.
    pub change: f64,
}

impl Causal {
    /// Mean change over the matched latents.
    pub fn matched_mean(&self) -> f64 {
        self.matched.iter().map(|m| m.change).sum::<f64>() / self.matched.len().max(1) as f64
    }

    /// Greatest change by a matched latent.
    pub fn matched_max(&self) -> f64 {
        self.matched.iter().map(|m| m.change).fold(f64::NEG_INFINITY, f64::max)
    }
}

/// For each concept the words that follow it, in the grammar's own stories.
pub(super) struct Grammar(Vec<BTreeSet<u32>>);

impl Grammar {
    pub fn read() -> Self {
        let mut after = vec![BTreeSet::new(); fable::concepts().len()];
        for index in 0..GRAMMAR_STORIES {
            let story = fable::story(GRAMMAR_SEED, index);
            for (labels, next) in story.labels.iter().zip(story.tokens.iter().skip(1)) {
                for (c, words) in after.iter_mut().enumerate() {
                    if labels >> c & 1 == 1 {
                        words.insert(*next);
                    }
                }
            }
        }
        Self(after)
    }

    fn licensed(&self, concept: usize) -> &BTreeSet<u32> {
        &self.0[concept]
    }
}

/// Whole test stories, batched, with their labels.
pub(super) struct Stories {
    batches: Vec<Batch>,
}

struct Batch {
    tokens: Tokens,
    /// Positions that may be changed, `[b * t]`.
    open: Vec<bool>,
    /// What holds at each position, `[b * t]`; 0 for padding.
    labels: Vec<fable::Labels>,
}

impl Stories {
    /// The first stories of the test rows.
    pub fn of(column: &Column, seed: u64) -> Result<Self> {
        let mut ids: Vec<u64> = column.test.iter().map(|&r| column.doc_id[r as usize]).collect();
        ids.dedup();
        let stories: Vec<fable::Story> = ids.iter().take(STORIES).map(|&id| fable::story(seed, id)).collect();
        let lengths: Vec<usize> = stories.iter().map(|s| s.tokens.len()).collect();
        let batch = |pass: Vec<usize>| -> Result<Batch> {
            let rows: Vec<Vec<u32>> = pass.iter().map(|&i| stories[i].tokens.clone()).collect();
            let tokens = Tokens::padded(&rows, fable::PAD, &Device::Cpu)?;
            let t = tokens.ids.dim(1)?;
            let (mut open, mut labels) = (Vec::new(), Vec::new());
            for &i in &pass {
                let story = &stories[i];
                // BOS is masked, as in the harvest.
                open.extend((0..t).map(|at| at > 0 && at < story.tokens.len()));
                labels.extend((0..t).map(|at| story.labels.get(at).copied().unwrap_or(0)));
            }
            Ok(Batch { tokens, open, labels })
        };
        Ok(Self { batches: passes(&lengths, PASS).into_iter().map(batch).collect::<Result<_>>()? })
    }

    /// Mean probability of `licensed` words where a concept holds, and the number of such positions.
    fn mass(
        &self,
        host: &dyn HostModel,
        at: HookPoint,
        dictionary: &Dictionary,
        edits: &[Edit],
        concept: usize,
        licensed: &BTreeSet<u32>,
    ) -> Result<(f64, usize)> {
        let (mut sum, mut n) = (0.0, 0);
        for batch in &self.batches {
            let logits = if edits.is_empty() {
                host.forward(&batch.tokens, &mut NoTap)?
            } else {
                host.forward(&batch.tokens, &mut Edited::new(host, at, dictionary, edits, true, batch.open.clone())?)?
            };
            let logits = logits.ok_or_else(|| Error::request("the host gave no logits", "use a host that has a language-model head"))?;
            let vocab = logits.dim(candle_core::D::Minus1)?;
            let values: Vec<f32> = logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
            for (row, labels) in values.chunks_exact(vocab).zip(&batch.labels) {
                if labels >> concept & 1 == 0 {
                    continue;
                }
                let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
                let weight = |l: f32| (f64::from(l) - max).exp();
                let all: f64 = row.iter().map(|&l| weight(l)).sum();
                sum += licensed.iter().map(|&w| weight(row[w as usize])).sum::<f64>() / all;
                n += 1;
            }
        }
        Ok((sum / n.max(1) as f64, n))
    }
}

/// What the causal test works with.
pub(super) struct Setting<'a> {
    pub host: &'a dyn HostModel,
    pub at: HookPoint,
    pub grammar: &'a Grammar,
    pub stories: &'a Stories,
    pub seed: u64,
}

/// Silences a concept's latent, and those that match it. `None` where no latent fires as often.
pub(super) fn causal(setting: &Setting<'_>, dictionary: &Dictionary, codes: &Codes, found: &ConceptScore) -> Result<Option<Causal>> {
    let (Some(latent), Some(concept)) = (found.feature, fable::concept(&found.concept)) else { return Ok(None) };
    let mut fires = vec![0u64; codes.d_sae];
    codes.indices.iter().for_each(|&l| fires[l as usize] += 1);
    let own = fires[latent as usize] as f64;
    let ratio = |l: u32| fires[l as usize] as f64 / own;
    let mut matched: Vec<u32> = (0..codes.d_sae as u32).filter(|&l| l != latent && (ratio(l) - 1.0).abs() <= TOLERANCE).collect();
    Rng::stream(setting.seed, "matched", concept as u64).shuffle(&mut matched);
    matched.truncate(MATCHED);
    if matched.is_empty() {
        return Ok(None);
    }
    let licensed = setting.grammar.licensed(concept);
    let mass = |edits: &[Edit]| setting.stories.mass(setting.host, setting.at, dictionary, edits, concept, licensed);
    let (before, rows) = mass(&[])?;
    let change = |l: u32| -> Result<f64> { Ok(before - mass(&[Edit::ablate(l)])?.0) };
    Ok(Some(Causal {
        concept: found.concept.clone(),
        latent,
        rows,
        licensed: licensed.len(),
        before,
        change: change(latent)?,
        matched: matched
            .into_iter()
            .map(|l| Ok(Matched { latent: l, density_ratio: ratio(l), change: change(l)? }))
            .collect::<Result<_>>()?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_says_what_follows() {
        let grammar = Grammar::read();
        let words = |concept: &str| {
            let after = grammar.licensed(fable::concept(concept).unwrap());
            after.iter().map(|&w| fable::vocabulary()[w as usize]).collect::<Vec<_>>()
        };
        assert_eq!(words("quote.end"), ["\""]);
        assert_eq!(words("question"), ["?"]);
        let mut opening = words("quote.opening");
        opening.sort_unstable();
        assert_eq!(opening, ["are", "do", "i", "we", "where", "you"]);
        assert_eq!(words("place.ending").len(), 12, "find, win, lose, miss in three forms");
    }
}
