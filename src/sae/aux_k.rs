//! AuxK: dead latents predict what the living left over (Gao et al., arXiv 2406.04093, section 2.3 there). Shared by the variants.
//!
//! ```text
//! r    = x - xhat                      (no gradient through it)
//! rhat = TopK_{k_aux}(a restricted to dead latents) W_dec
//! L    = coef * sum |r - rhat|^2 / sum |r - mean r|^2
//! ```
//!
//! The target includes no `b_dec`: decoding with it and adding it to the residual, as the paper's code does, cancels.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::kernels::{dead_topk, spread, summed, Coder, Columns, Term};

/// The `[sae.aux_k]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuxKConfig {
    /// Weight of the auxiliary loss; 0 turns it off.
    pub coef: f64,
    /// Dead latents per row that take part; 0 stands for `d_in / 2`.
    pub k: usize,
    /// A latent is dead when silent for this many tokens; 0 stands for min(10 million, 5 % of `train.n_tokens`).
    pub dead_after_tokens: u64,
}

impl Default for AuxKConfig {
    fn default() -> Self {
        Self { coef: 1.0 / 32.0, k: 0, dead_after_tokens: 0 }
    }
}

impl AuxKConfig {
    pub(super) fn resolve(&self, d_in: usize, n_tokens: u64) -> Self {
        Self {
            coef: self.coef,
            k: if self.k == 0 { (d_in / 2).max(1) } else { self.k },
            dead_after_tokens: if self.dead_after_tokens == 0 { (n_tokens / 20).clamp(1, 10_000_000) } else { self.dead_after_tokens },
        }
    }
}

impl AuxKConfig {
    /// Its weight and latents per row on a GPU, where it is on.
    pub(super) fn on_device(&self) -> Option<(f64, usize)> {
        (self.coef > 0.0).then_some((self.coef, self.k))
    }
}

/// How long each latent has been silent.
#[derive(Debug, Clone, PartialEq)]
pub struct Silence {
    /// Tokens since the latent last fired, `[d_sae]`.
    pub tokens: Vec<u64>,
    /// At this many it counts as dead.
    pub dead_after_tokens: u64,
}

impl Silence {
    /// Nothing has been silent yet.
    pub fn new(d_sae: usize, dead_after_tokens: u64) -> Self {
        Self { tokens: vec![0; d_sae], dead_after_tokens }
    }

    /// The dead latents, ascending.
    pub fn dead(&self) -> Vec<u32> {
        (0u32..).zip(&self.tokens).filter(|(_, &t)| t >= self.dead_after_tokens).map(|(j, _)| j).collect()
    }

    /// How many are dead.
    pub fn n_dead(&self) -> usize {
        self.tokens.iter().filter(|&&t| t >= self.dead_after_tokens).count()
    }

    /// Counts a batch of `n` tokens.
    pub fn count(&mut self, columns: &Columns, n: u64) {
        for (j, tokens) in self.tokens.iter_mut().enumerate() {
            *tokens = if columns.count(j) > 0 { 0 } else { *tokens + n };
        }
    }
}

/// Entries per dead latent from which it pays to sum their gradients beforehand.
const MANY: usize = 16;

/// The auxiliary loss and its gradient term; `None` when nothing is dead or the loss is off.
///
/// `xc` `[n, d_in]` is the encoder's input, `error` `[n, d_out]` is `xhat - x`.
pub fn aux_term(config: &AuxKConfig, silence: &Silence, coder: &Coder, xc: &Tensor, error: &Tensor) -> Result<Option<(f64, Term)>> {
    let dead = silence.dead();
    if dead.is_empty() || config.coef == 0.0 {
        return Ok(None);
    }
    let spread = spread(error)?;
    if spread <= 0.0 {
        return Ok(None);
    }
    let (columns, error, square) = dead_topk(xc, error, coder, &dead, config.k)?;
    let entries = columns.rows.len();
    if entries == 0 {
        return Ok(None);
    }
    let mut term = Term { scale: (2.0 * config.coef / spread) as f32, ..Term::codes(columns, error) };
    if entries >= MANY * dead.len() {
        term.summed = Some(summed(&term, xc, &coder.w_dec, &dead)?);
    }
    Ok(Some((config.coef * square / spread, term)))
}

/// `sum x^2`, f64, in memory order.
pub fn sum_sq(x: &Tensor) -> Result<f64> {
    // A row's sum in f32 lanes, rows in f64: exact enough for a loss, and independent of threads.
    let (_, d) = x.dims2()?;
    let data = x.flatten_all()?.to_vec1::<f32>()?;
    Ok(data.chunks_exact(d).map(|row| f64::from(crate::kernels::sq_norm(row))).sum())
}
