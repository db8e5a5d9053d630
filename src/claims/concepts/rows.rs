//! Labelled rows of the built-in language: activations of held-out stories, with what the generator knows of each token.

use std::collections::HashMap;

use candle_core::{Device, Tensor};

use crate::codes::Codes;
use crate::corpus::fable;
use crate::dictionary::Dictionary;
use crate::error::Result;
use crate::score::concepts::{Known, Task, MIN_POSITIVES};
use crate::shard::{Shards, Split};

/// Held-out rows that are labelled, at most.
const ROWS: usize = 60_000;

/// Rows of one column with their places and labels.
pub(super) struct Column {
    /// Values of a row.
    pub width: usize,
    /// Row-major `[n, width]`.
    pub x: Vec<f32>,
    /// Story of each row, `[n]`.
    pub doc_id: Vec<u64>,
    /// Position in the story, `[n]`.
    pub position: Vec<u32>,
    /// Token, `[n]`.
    pub token_id: Vec<u32>,
    /// What holds there, `[n]`.
    pub labels: Vec<fable::Labels>,
    /// Rows that choose.
    pub selection: Vec<u32>,
    /// Rows that are scored; of other stories.
    pub test: Vec<u32>,
    concepts: Vec<Known>,
}

impl Column {
    /// The first held-out rows of a column of shards that were harvested from the built-in language.
    pub fn read(shards: &Shards, column: &str) -> Result<Self> {
        let (mut x, mut doc_id, mut position, mut token_id) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let width = shards.width(column)?;
        for batch in shards.scan(column, Some(Split::HeldOut))? {
            let batch = batch?;
            let n = batch.n.min(ROWS - doc_id.len());
            x.extend_from_slice(&batch.x[..n * width]);
            doc_id.extend_from_slice(&batch.doc_id[..n]);
            position.extend_from_slice(&batch.position[..n]);
            token_id.extend_from_slice(&batch.token_id[..n]);
            if doc_id.len() == ROWS {
                break;
            }
        }
        let seed = corpus_seed(shards);
        let mut stories: HashMap<u64, Vec<fable::Labels>> = HashMap::new();
        let at = |(&doc, &position): (&u64, &u32)| stories.entry(doc).or_insert_with(|| fable::story(seed, doc).labels)[position as usize];
        let labels = doc_id.iter().zip(&position).map(at).collect();
        // Whole stories go to one split or the other.
        let (selection, test) = (0..doc_id.len() as u32).partition(|&r| (doc_id[r as usize] / 2).is_multiple_of(2));
        let concepts = fable::concepts().iter().map(|c| Known { name: c.name.to_string(), class: c.class.name().to_string() }).collect();
        Ok(Self { width, x, doc_id, position, token_id, labels, selection, test, concepts })
    }

    /// What is to be recovered.
    pub fn task(&self) -> Task<'_> {
        let Self { concepts, labels, selection, test, .. } = self;
        Task { concepts, labels, selection, test, min_positives: MIN_POSITIVES }
    }

    /// Codes of all rows.
    pub fn codes(&self, dictionary: &Dictionary) -> Result<Codes> {
        dictionary.encode(&Tensor::from_slice(&self.x, (self.doc_id.len(), self.width), &Device::Cpu)?)
    }
}

/// The seed of the stories.
pub(super) fn corpus_seed(shards: &Shards) -> u64 {
    shards.manifest().config["corpus"]["seed"].as_u64().unwrap_or(0)
}
