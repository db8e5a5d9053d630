//! What the learners with an L1 penalty are told. Not for: the penalty itself, which is on other codes in each (`gated`, `relu`).

use serde::{Deserialize, Serialize};

use super::body::Warmup;
use super::parts::{check_k, check_weight};
use super::AuxKConfig;
use crate::error::Result;

/// The `[sae]` table for `arch = "gated"` and `arch = "relu"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct L1Config {
    /// Number of latents; 0 stands for 16 times the input's width.
    pub d_sae: usize,
    /// Weight of the L1 penalty (`gated`: on the gate's path), on rows of mean squared norm `d_in`.
    pub l1: f64,
    /// Tokens over which the penalty grows from 0; 0 stands for 5 % of `train.n_tokens`.
    pub warmup_tokens: u64,
    /// A latent is dead when silent for this many tokens; 0 stands for min(10 million, 5 % of `train.n_tokens`).
    pub dead_after_tokens: u64,
}

impl Default for L1Config {
    fn default() -> Self {
        Self { d_sae: 0, l1: 5.0, warmup_tokens: 0, dead_after_tokens: 0 }
    }
}

impl L1Config {
    pub(super) fn resolve(&self, d_in: usize, n_tokens: u64) -> Result<Self> {
        let aux = AuxKConfig { dead_after_tokens: self.dead_after_tokens, ..AuxKConfig::default() }.resolve(d_in, n_tokens);
        check_weight("sae.l1", self.l1, "0 turns the penalty off, 5 is the default")?;
        let d_sae = check_k(self.d_sae, 1, d_in, &aux)?;
        Ok(Self {
            d_sae,
            l1: self.l1,
            warmup_tokens: Warmup::resolve(self.warmup_tokens, n_tokens),
            dead_after_tokens: aux.dead_after_tokens,
        })
    }
}
