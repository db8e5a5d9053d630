//! ReLU SAE with an L1 penalty on norm-weighted codes (Anthropic's "Update on how we train SAEs", April 2024).
//!
//! ```text
//! z    = ReLU((x - b_dec) W_enc^T + b_enc)
//! xhat = z W_dec + b_dec
//! L    = [ sum |x - xhat|^2 + l1 sum_i z_i |D_i| ] / (n d_in)
//! ```
//!
//! Decoder rows are free: the penalty does not see how a code's size is split between z and D. The dictionary is saved with unit rows,
//! norms moved into the encoder, which for ReLU is the same function. The penalty grows over the first tokens.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::{json, Value};

use super::aux_k::sum_sq;
use super::parts::{check_k, check_weight, unit_rows, unscaled, Part, Per};
use super::{init, AuxKConfig, Learner, Silence, Step};
use crate::dictionary::{Activation, Dictionary, Provenance};
use crate::error::Result;
use crate::kernels::{decode_codes, encode_threshold, Coder, Columns, Role, SparseGrad, Term};

/// Latents that the tied start's gain is fitted with.
pub(super) const INIT_K: usize = 32;

/// The `[sae]` table for `arch = "relu"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReluConfig {
    /// Number of latents; 0 stands for 16 times the input's width.
    pub d_sae: usize,
    /// Weight of the L1 penalty, on rows of mean squared norm `d_in`.
    pub l1: f64,
    /// Tokens over which the penalty grows from 0; 0 stands for 5 % of `train.n_tokens`.
    pub warmup_tokens: u64,
    /// A latent is dead when silent for this many tokens; 0 stands for min(10 million, 5 % of `train.n_tokens`).
    pub dead_after_tokens: u64,
}

impl Default for ReluConfig {
    fn default() -> Self {
        Self { d_sae: 0, l1: 5.0, warmup_tokens: 0, dead_after_tokens: 0 }
    }
}

/// The default of warm-ups: 5 % of the run.
pub(super) fn warmup(tokens: u64, n_tokens: u64) -> u64 {
    if tokens == 0 {
        (n_tokens / 20).max(1)
    } else {
        tokens
    }
}

/// The factor of a penalty after so many tokens.
pub(super) fn grown(tokens: u64, over: u64) -> f64 {
    (tokens as f64 / over.max(1) as f64).min(1.0)
}

impl ReluConfig {
    pub(super) fn resolve(&self, d_in: usize, n_tokens: u64) -> Result<Self> {
        let aux = AuxKConfig { dead_after_tokens: self.dead_after_tokens, ..AuxKConfig::default() }.resolve(d_in, n_tokens);
        check_weight("sae.l1", self.l1, "0 turns the penalty off, 5 is the default")?;
        let d_sae = check_k(self.d_sae, 1, d_in, &aux)?;
        Ok(Self { d_sae, l1: self.l1, warmup_tokens: warmup(self.warmup_tokens, n_tokens), dead_after_tokens: aux.dead_after_tokens })
    }
}

/// A ReLU SAE in training.
#[derive(Debug)]
pub struct Relu {
    config: ReluConfig,
    coder: Coder,
    silence: Silence,
    tokens: u64,
}

impl Relu {
    /// Tied start from `rows` (see `init`).
    ///
    /// # Errors
    /// A tensor operation that fails.
    pub fn new(config: ReluConfig, rows: &Tensor, seed: u64) -> Result<Self> {
        let coder = init::tied_topk(config.d_sae, INIT_K.min(config.d_sae), rows, seed)?;
        let silence = Silence::new(config.d_sae, config.dead_after_tokens);
        Ok(Self { config, coder, silence, tokens: 0 })
    }
}

impl Learner for Relu {
    fn coder(&self) -> &Coder {
        &self.coder
    }

    fn unit_norm(&self) -> bool {
        false
    }

    fn step(&mut self, x: &Tensor) -> Result<Step> {
        let (n, d) = x.dims2()?;
        self.tokens += n as u64;
        let l1 = self.config.l1 * grown(self.tokens, self.config.warmup_tokens);
        let xc = x.broadcast_sub(&self.coder.b_dec)?;
        let codes = encode_threshold(&xc, &self.coder.w_enc, &self.coder.b_enc, &self.coder.b_enc.zeros_like()?)?;
        let error = (decode_codes(&codes, &self.coder.w_dec, Some(&self.coder.b_dec))? - x)?;
        let sq_error = sum_sq(&error)?;
        let per_element = 1.0 / (n as f64 * d as f64);
        let columns = Columns::of_codes(&codes);
        self.silence.count(&columns, n as u64);
        let norms: Vec<f32> = self.coder.w_dec.sqr()?.sum(1)?.sqrt()?.to_vec1()?;
        let weighted: f64 =
            (0..self.config.d_sae).map(|j| f64::from(norms[j]) * columns.column(j).1.iter().map(|&v| f64::from(v)).sum::<f64>()).sum();
        let grad = (error * (2.0 * per_element))?;
        let b_dec = grad.sum(0)?;
        let n_active = columns.rows.len() as u64;
        let role = Role { norm_penalty: (l1 * per_element) as f32, ..Role::default() };
        Ok(Step {
            loss: (sq_error + l1 * weighted) * per_element,
            sq_error,
            n_active,
            aux_loss: None,
            parts: vec![Part { name: "l1".into(), value: weighted / d as f64, per: Per::Row }],
            grad: SparseGrad { x: xc, terms: vec![Term { columns, grad, role }], b_dec, centred: true }.into(),
        })
    }

    fn silence(&self) -> &Silence {
        &self.silence
    }

    fn silence_mut(&mut self) -> &mut Silence {
        &mut self.silence
    }

    fn state(&self) -> Value {
        json!({ "tokens": self.tokens })
    }

    fn restore(&mut self, state: &Value) {
        self.tokens = state["tokens"].as_u64().unwrap_or_default();
    }

    fn finish(&self, scale: f64, _rows: &Tensor) -> Result<Dictionary> {
        let (coder, _) = unit_rows(unscaled(&self.coder, scale)?)?;
        Dictionary::new(coder, Activation::Relu, true, Provenance { made_by: "relu".into(), ..Default::default() })
    }
}
