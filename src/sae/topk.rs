//! TopK SAE (Gao et al., "Scaling and evaluating sparse autoencoders", arXiv 2406.04093).
//!
//! ```text
//! a    = (x - b_dec) W_enc^T + b_enc          [n, d_sae]
//! z    = the k largest positive a of each row
//! xhat = z W_dec + b_dec
//! L    = sum |x - xhat|^2 / (n d_in) + AuxK
//! ```
//!
//! Decoder rows stay on the unit sphere. Becomes `Activation::TopK` at inference.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::parts::{check_k, unscaled};
use super::{AuxKConfig, Body, Learner, OnDevice, Step};
use crate::dictionary::{Activation, Dictionary, Provenance};
use crate::error::Result;
use crate::kernels::{encode_topk, sparse_decode_onto, Choice, Columns, StepPlan};

/// The `[sae]` table for `arch = "topk"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TopKConfig {
    /// Number of latents; 0 stands for 16 times the input's width.
    pub d_sae: usize,
    /// Active latents per row.
    pub k: usize,
    /// The auxiliary loss that revives dead latents.
    pub aux_k: AuxKConfig,
}

impl Default for TopKConfig {
    fn default() -> Self {
        Self { d_sae: 0, k: 32, aux_k: AuxKConfig::default() }
    }
}

impl TopKConfig {
    pub(super) fn resolve(&self, d_in: usize, n_tokens: u64) -> Result<Self> {
        let d_sae = check_k(self.d_sae, self.k, d_in, &self.aux_k)?;
        Ok(Self { d_sae, k: self.k, aux_k: self.aux_k.resolve(d_in, n_tokens) })
    }
}

/// A TopK SAE in training.
#[derive(Debug)]
pub struct TopK {
    config: TopKConfig,
    body: Body,
}

impl TopK {
    /// Tied start from `rows` (see `init`).
    ///
    /// # Errors
    /// A tensor operation that fails.
    pub fn new(config: TopKConfig, rows: &Tensor, seed: u64) -> Result<Self> {
        let body = Body::tied(config.d_sae, config.k, config.aux_k.dead_after_tokens, rows, seed)?;
        Ok(Self { config, body })
    }
}

impl Learner for TopK {
    fn body(&self) -> &Body {
        &self.body
    }

    fn body_mut(&mut self) -> &mut Body {
        &mut self.body
    }

    fn step(&mut self, x: &Tensor) -> Result<Step> {
        let (config, coder) = (&self.config, &self.body.coder);
        let xc = self.body.centred(x)?;
        let selection = encode_topk(&xc, &coder.w_enc, &coder.b_enc, config.k, None)?;
        let error = sparse_decode_onto(&selection, &coder.w_dec, &xc, -1.0)?;
        let columns = Columns::new(&selection, config.d_sae)?;
        Ok(self.body.plain(xc, columns, error, Some(&config.aux_k))?.step(Vec::new()))
    }

    fn on_device(&self) -> Option<OnDevice> {
        Some(OnDevice { k: self.config.k, prefixes: 1, aux_k: self.config.aux_k.on_device() })
    }

    fn plan(&mut self) -> Option<StepPlan> {
        Some(StepPlan { choice: Choice::TopK { k: self.config.k }, prefixes: vec![self.config.d_sae] })
    }

    fn finish(&self, scale: f64, _rows: &Tensor) -> Result<Dictionary> {
        // Top-k does not mind a positive factor.
        let provenance = Provenance { made_by: "topk".into(), ..Default::default() };
        Dictionary::new(unscaled(&self.body.coder, scale)?, Activation::TopK { k: self.config.k }, true, provenance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Gradient;
    use crate::rng::Rng;
    use candle_core::Device;

    fn rows(n: usize, d: usize) -> Tensor {
        let mut rng = Rng::stream(1, "test", 0);
        Tensor::from_vec((0..n * d).map(|_| rng.normal() as f32).collect::<Vec<_>>(), (n, d), &Device::Cpu).unwrap()
    }

    #[test]
    fn finish_folds_the_scale_away() {
        let x = rows(50, 8);
        let config = TopKConfig { d_sae: 40, k: 3, ..Default::default() }.resolve(8, 1000).unwrap();
        let learner = TopK::new(config, &x, 0).unwrap();
        let scale = 3.5;
        let raw = (&x / scale).unwrap();
        let (codes, xhat) = learner.finish(scale, &x).unwrap().reconstruct(&raw).unwrap();
        let (want_codes, want) = learner.finish(1.0, &x).unwrap().reconstruct(&x).unwrap();
        assert_eq!(codes.indices, want_codes.indices);
        let diff =
            ((xhat * scale).unwrap() - want).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
        assert!(diff < 1e-5, "{diff}");
    }

    #[test]
    fn dead_latents_join_through_aux_k_only() {
        let x = rows(64, 8);
        let config = TopKConfig { d_sae: 40, k: 2, aux_k: AuxKConfig { coef: 0.1, k: 4, dead_after_tokens: 1000 } };
        let mut learner = TopK::new(config, &x, 0).unwrap();
        assert!(learner.step(&x).unwrap().aux_loss.is_none(), "nothing is dead at the start");
        // Latent 7 is pushed out of every selection, and counts as dead from now on.
        let mut b = vec![0f32; 40];
        b[7] = -1e3;
        learner.body.coder.b_enc = Tensor::from_vec(b, 40, &Device::Cpu).unwrap();
        learner.body.silence.tokens[7] = 1000;
        let terms = |step: Step| match step.grad {
            Gradient::Sparse(grad) => grad.terms,
            Gradient::Pursuit(_) => unreachable!("TopK has an encoder"),
        };
        let step = terms(learner.step(&x).unwrap());
        assert!(step[0].columns.count(7) == 0);
        assert!(step.get(1).is_none_or(|t| (0..40).all(|j| j == 7 || t.columns.count(j) == 0)));
        // Revived: with its bias back it may predict the residual, still as the only one.
        learner.body.coder.b_enc = Tensor::zeros(40, candle_core::DType::F32, &Device::Cpu).unwrap();
        learner.body.silence.tokens = vec![0; 40];
        learner.body.silence.tokens[7] = 1000;
        let step = learner.step(&x).unwrap();
        assert!(step.aux_loss.unwrap() > 0.0 && terms(step)[1].columns.count(7) > 0);
    }
}
