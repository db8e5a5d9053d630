//! `examples.parquet`: where each latent is active, in context. docs/features.md is the specification.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::parquet;
use crate::error::Result;

/// File of the examples.
pub const EXAMPLES_FILE: &str = "examples.parquet";

/// Why an example was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Group {
    /// Of the largest values, at most one per stretch of text.
    Top,
    /// At random from a quarter (fifth, ...) of the active rows, by value.
    Quantile,
    /// A stretch of text at random, whether the latent is active or not.
    Random,
}

impl Group {
    /// `top`, `quantile` or `random`.
    pub fn name(self) -> &'static str {
        match self {
            Group::Top => "top",
            Group::Quantile => "quantile",
            Group::Random => "random",
        }
    }
}

/// One latent in one context. The four lists have one length.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// The latent.
    pub latent: u32,
    /// `top`, `quantile` or `random`.
    pub group: String,
    /// Place in its group, from 0.
    pub rank: u32,
    /// Of the group `quantile`: which band of the active rows by value, 0 = the lowest.
    pub quantile: Option<u32>,
    /// Ordinal of the document in the corpus.
    pub doc_id: u64,
    /// Position of the row that was chosen, in its document.
    pub position: u32,
    /// The latent's value there.
    pub value: f32,
    /// Index of that row in the lists.
    pub peak: u32,
    /// Tokens as text, cut at 200 characters; empty strings for vectors without tokens.
    pub tokens: Vec<String>,
    /// Their ids; empty for vectors without tokens.
    pub token_ids: Vec<u32>,
    /// Their positions in the document; rows that the harvest masked are not there.
    pub positions: Vec<u32>,
    /// The latent's value at each; 0 where it is not active.
    pub values: Vec<f32>,
}

/// The examples of all latents, by latent, then group, then rank.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Examples(pub Vec<Example>);

impl Examples {
    /// Reads `examples.parquet`.
    ///
    /// # Errors
    /// A file that is missing or damaged.
    pub fn load(dir: &Path) -> Result<Self> {
        Ok(Self(parquet::read(&dir.join(EXAMPLES_FILE))?))
    }

    /// Writes it.
    ///
    /// # Errors
    /// I/O errors.
    pub fn save(&self, dir: &Path) -> Result<()> {
        parquet::write(dir, EXAMPLES_FILE, &self.0)
    }

    /// Those of a latent.
    pub fn of(&self, latent: u32) -> &[Example] {
        let start = self.0.partition_point(|e| e.latent < latent);
        let end = self.0.partition_point(|e| e.latent <= latent);
        &self.0[start..end]
    }
}
