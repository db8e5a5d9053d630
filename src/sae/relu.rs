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
use serde_json::Value;

use super::body::Warmup;
use super::parts::{unit_rows, unscaled, Part, Per};
use super::{Body, Learner, ReluConfig, Step};
use crate::dictionary::{Activation, Dictionary, Provenance};
use crate::error::Result;
use crate::kernels::{decode_codes_onto, encode_threshold, Columns, Role};

/// Latents that the tied start's gain is fitted with.
pub(super) const INIT_K: usize = 32;

/// A ReLU SAE in training.
#[derive(Debug)]
pub struct Relu {
    config: ReluConfig,
    body: Body,
    warmup: Warmup,
}

impl Relu {
    /// Tied start from `rows` (see `init`).
    ///
    /// # Errors
    /// A tensor operation that fails.
    pub fn new(config: ReluConfig, rows: &Tensor, seed: u64) -> Result<Self> {
        let body = Body::tied(config.d_sae, INIT_K, config.dead_after_tokens, rows, seed)?;
        Ok(Self { warmup: Warmup::new(config.warmup_tokens), config, body })
    }
}

impl Learner for Relu {
    fn body(&self) -> &Body {
        &self.body
    }

    fn body_mut(&mut self) -> &mut Body {
        &mut self.body
    }

    fn unit_norm(&self) -> bool {
        false
    }

    fn step(&mut self, x: &Tensor) -> Result<Step> {
        let (n, d) = x.dims2()?;
        let l1 = self.config.l1 * self.warmup.add(n);
        let coder = &self.body.coder;
        let xc = self.body.centred(x)?;
        let codes = encode_threshold(&xc, &coder.w_enc, &coder.b_enc, &coder.b_enc.zeros_like()?)?;
        let error = decode_codes_onto(&codes, &coder.w_dec, &xc, -1.0)?;
        let norms: Vec<f32> = coder.w_dec.sqr()?.sum(1)?.sqrt()?.to_vec1()?;
        let weighted: f64 = codes.indices.iter().zip(&codes.values).map(|(&j, &v)| f64::from(norms[j as usize]) * f64::from(v)).sum();
        let mut plain = self.body.plain(xc, Columns::of_codes(&codes), error, None)?;
        let penalty = l1 / (n as f64 * d as f64);
        plain.loss += penalty * weighted;
        plain.grad.terms[0].role = Role { norm_penalty: penalty as f32, ..Role::default() };
        Ok(plain.step(vec![Part { name: "l1".into(), value: weighted / d as f64, per: Per::Row }]))
    }

    fn state(&self) -> Value {
        self.warmup.state()
    }

    fn restore(&mut self, state: &Value) {
        self.warmup.restore(state);
    }

    fn finish(&self, scale: f64, _rows: &Tensor) -> Result<Dictionary> {
        let (coder, _) = unit_rows(unscaled(&self.body.coder, scale)?)?;
        Dictionary::new(coder, Activation::Relu, true, Provenance { made_by: "relu".into(), ..Default::default() })
    }
}
