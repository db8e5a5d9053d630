//! Which known concept each latent finds: the built-in language says what holds at each row.

use std::collections::HashMap;

use super::scan::Labelled;
use crate::corpus::fable;
use crate::error::Result;
use crate::score::concepts::{by_latent, ConceptScore, Known, Task, MIN_POSITIVES};

/// Seed of the stories, where the corpus of a manifest is the built-in language.
pub(super) fn fable_seed(corpus: &serde_json::Value) -> Option<u64> {
    (corpus["builtin"] == "fable").then(|| corpus["seed"].as_u64().unwrap_or(0))
}

/// The best concept of each latent: chosen with its threshold on half of the stories, judged on the other half.
pub(super) fn best(labelled: &Labelled, seed: u64) -> Result<Vec<Option<ConceptScore>>> {
    let concepts: Vec<Known> =
        fable::concepts().iter().map(|c| Known { name: c.name.to_string(), class: c.class.name().to_string() }).collect();
    let mut stories: HashMap<u64, Vec<fable::Labels>> = HashMap::new();
    let label = |(&doc, &position): (&u64, &u32)| {
        let story = stories.entry(doc).or_insert_with(|| fable::story(seed, doc).labels);
        story.get(position as usize).copied().unwrap_or_default()
    };
    let labels: Vec<fable::Labels> = labelled.doc_id.iter().zip(&labelled.position).map(label).collect();
    let (selection, test): (Vec<u32>, Vec<u32>) =
        (0..labels.len() as u32).partition(|&r| (labelled.doc_id[r as usize] / 2).is_multiple_of(2));
    let task = Task { concepts: &concepts, labels: &labels, selection: &selection, test: &test, min_positives: MIN_POSITIVES };
    by_latent(&labelled.codes, &task)
}
