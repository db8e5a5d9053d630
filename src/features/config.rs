//! What to put into a feature table.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How much of everything.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FeaturesConfig {
    /// Rows to read at most; `None`: all of the split.
    pub n_tokens: Option<u64>,
    /// Examples of the largest values, per latent.
    pub top: usize,
    /// Bands of the active rows by value.
    pub bands: usize,
    /// Examples per band.
    pub per_band: usize,
    /// Stretches of text at random.
    pub random: usize,
    /// Rows before the chosen one.
    pub before: usize,
    /// Rows after it.
    pub after: usize,
    /// Top and bottom output tokens.
    pub logits: usize,
    /// Nearest atoms, and co-active latents.
    pub neighbours: usize,
    /// Entries (row, latent) kept to count co-active latents, 8 bytes each; above it rows are thinned out.
    pub coactive_entries: usize,
    /// Held-out rows that are labelled with known concepts, at most.
    pub concept_rows: usize,
    /// Seed of what is drawn at random.
    pub seed: u64,
}

impl Default for FeaturesConfig {
    fn default() -> Self {
        Self {
            n_tokens: None,
            top: 20,
            bands: 5,
            per_band: 4,
            random: 4,
            before: 20,
            after: 11,
            logits: 10,
            neighbours: 10,
            coactive_entries: 1 << 25,
            concept_rows: 60_000,
            seed: 0,
        }
    }
}

impl FeaturesConfig {
    /// The impossible is refused before work starts.
    pub(super) fn check(&self) -> Result<()> {
        let refuse = |key: &str, problem: &str, help: &str| Err(Error::config(format!("features.{key}"), problem, help));
        if self.before + self.after + 1 > 256 {
            return refuse("before", "and `after` make contexts of more than 256 rows", "a few dozen show what a latent reads");
        }
        if self.n_tokens == Some(0) {
            return refuse("n_tokens", "0 rows show nothing", "leave it out to read all");
        }
        if self.bands == 0 {
            return refuse("bands", "0 bands hold no row", "1 is a sample of all active rows; set per_band to 0 for none");
        }
        Ok(())
    }
}
