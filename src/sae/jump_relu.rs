//! JumpReLU SAE (Rajamanoharan et al., "Jumping Ahead", arXiv 2407.14435).
//!
//! ```text
//! a     = (x - b_dec) W_enc^T + b_enc
//! z     = a where a > theta, else 0;   theta = exp(log_theta), one per latent
//! xhat  = z W_dec + b_dec
//! L     = sum |x - xhat|^2 / (n d_in) + S + AuxK
//! S     = l0_coef L0 / d_in,  or with a target  l0_coef (L0 / target_l0 - 1)^2
//! ```
//!
//! The step has no gradient in theta, so a rectangle of width `bandwidth` stands for its derivative: with K = 1 where
//! |a - theta| < bandwidth / 2, dz/dtheta = -(theta / bandwidth) K and dL0/dtheta = -K / bandwidth. The penalty grows over the first tokens.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::{json, Value};

use super::aux_k::{aux_term, sum_sq};
use super::parts::{calibrate, check_k, check_weight, unscaled, Part, Per};
use super::relu::{grown, warmup, INIT_K};
use super::{init, AuxKConfig, Learner, Silence, Step};
use crate::dictionary::{Activation, Dictionary, Provenance};
use crate::error::{Error, Result};
use crate::kernels::{decode_codes, encode_threshold, Coder, Columns, Role, SparseGrad, Term};

/// The `[sae]` table for `arch = "jump-relu"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JumpReluConfig {
    /// Number of latents; 0 stands for 16 times the input's width.
    pub d_sae: usize,
    /// Active latents per row to aim at; 0: the plain penalty on L0.
    pub target_l0: f64,
    /// Weight of the penalty.
    pub l0_coef: f64,
    /// Thresholds start here, in the trainer's scale (rows of mean squared norm `d_in`); 0: where `target_l0` latents of the starting rows
    /// are active (without a target, 0.1).
    pub initial_threshold: f64,
    /// Width of the rectangle, in the same scale.
    pub bandwidth: f64,
    /// Tokens over which the penalty grows from 0; 0 stands for 5 % of `train.n_tokens`.
    pub warmup_tokens: u64,
    /// The auxiliary loss that revives dead latents.
    pub aux_k: AuxKConfig,
}

impl Default for JumpReluConfig {
    fn default() -> Self {
        Self {
            d_sae: 0,
            target_l0: 32.0,
            l0_coef: 1.0,
            initial_threshold: 0.0,
            bandwidth: 0.1,
            warmup_tokens: 0,
            aux_k: AuxKConfig::default(),
        }
    }
}

impl JumpReluConfig {
    pub(super) fn resolve(&self, d_in: usize, n_tokens: u64) -> Result<Self> {
        let d_sae = check_k(self.d_sae, 1, d_in, &self.aux_k)?;
        check_weight("sae.l0_coef", self.l0_coef, "1 is the default")?;
        check_weight("sae.target_l0", self.target_l0, "0 stands for the plain penalty")?;
        if self.target_l0 > d_sae as f64 {
            let problem = format!("{} of {d_sae} latents cannot be active", self.target_l0);
            return Err(Error::config("sae.target_l0", problem, format!("choose at most {d_sae}, or a larger sae.d_sae")));
        }
        check_weight("sae.initial_threshold", self.initial_threshold, "0 stands for where the target is met")?;
        if !(self.bandwidth.is_finite() && self.bandwidth > 0.0) {
            return Err(Error::config("sae.bandwidth", format!("is {}", self.bandwidth), "it must be above 0; 0.1 is the default"));
        }
        let aux_k = self.aux_k.resolve(d_in, n_tokens);
        Ok(Self { d_sae, warmup_tokens: warmup(self.warmup_tokens, n_tokens), aux_k, ..self.clone() })
    }
}

/// A JumpReLU SAE in training.
#[derive(Debug)]
pub struct JumpRelu {
    config: JumpReluConfig,
    coder: Coder,
    /// `[d_sae]`, f32.
    log_threshold: Tensor,
    silence: Silence,
    tokens: u64,
    /// Of the last step: entries in the rectangle per latent, and dL/dL0 over the number of rows.
    band: (Vec<usize>, f64),
}

impl JumpRelu {
    /// Tied start from `rows` (see `init`).
    ///
    /// # Errors
    /// A tensor operation that fails.
    pub fn new(config: JumpReluConfig, rows: &Tensor, seed: u64) -> Result<Self> {
        let k = if config.target_l0 >= 1.0 { config.target_l0 as usize } else { INIT_K };
        let coder = init::tied_topk(config.d_sae, k.min(config.d_sae), rows, seed)?;
        let silence = Silence::new(config.d_sae, config.aux_k.dead_after_tokens);
        // Thresholds move slowly, so a start far from the target would cost most of a short run.
        let start = match config.initial_threshold {
            given if given > 0.0 => given,
            _ if config.target_l0 >= 1.0 => f64::from(calibrate(&coder, rows, k)?).max(1e-3),
            _ => 0.1,
        };
        let log_threshold = Tensor::full(start.ln() as f32, config.d_sae, rows.device())?;
        Ok(Self { config, coder, log_threshold, silence, tokens: 0, band: (Vec::new(), 0.0) })
    }
}

impl Learner for JumpRelu {
    fn coder(&self) -> &Coder {
        &self.coder
    }

    fn step(&mut self, x: &Tensor) -> Result<Step> {
        let (n, d) = x.dims2()?;
        self.tokens += n as u64;
        let half = (self.config.bandwidth / 2.0) as f32;
        let theta: Vec<f32> = self.log_threshold.exp()?.to_vec1()?;
        let low = Tensor::from_vec(theta.iter().map(|t| t - half).collect::<Vec<_>>(), theta.len(), x.device())?;
        let xc = x.broadcast_sub(&self.coder.b_dec)?;
        // One encode gives the active entries and those near the step.
        let above = Columns::of_codes(&encode_threshold(&xc, &self.coder.w_enc, &self.coder.b_enc, &low)?);
        let active = above.filtered(|j, v| v > theta[j]);
        let band = above.filtered(|j, v| (v - theta[j]).abs() < half);
        let error = (decode_codes(&active.to_codes(n), &self.coder.w_dec, Some(&self.coder.b_dec))? - x)?;
        let sq_error = sum_sq(&error)?;
        let per_element = 1.0 / (n as f64 * d as f64);
        let l0 = active.rows.len() as f64 / n as f64;
        let coef = self.config.l0_coef * grown(self.tokens, self.config.warmup_tokens);
        let (penalty, slope) = if self.config.target_l0 > 0.0 {
            let excess = l0 / self.config.target_l0 - 1.0;
            (coef * excess * excess, 2.0 * coef * excess / self.config.target_l0)
        } else {
            (coef * l0 / d as f64, coef / d as f64)
        };
        self.band = ((0..theta.len()).map(|j| band.count(j)).collect(), slope / n as f64);
        let aux = aux_term(&self.config.aux_k, &self.silence, &self.coder, &xc, &error.neg()?)?;
        self.silence.count(&active, n as u64);
        let n_active = active.rows.len() as u64;
        let grad = (error * (2.0 * per_element))?;
        let b_dec = grad.sum(0)?;
        let role = Role { decoder: false, encoder: false, bias: false, sums: true, ..Role::default() };
        let terms = vec![Term::codes(active, grad.clone()), Term { columns: band, grad, role }];
        let mut step = Step {
            loss: sq_error * per_element + penalty,
            sq_error,
            n_active,
            aux_loss: None,
            parts: vec![Part { name: "l0_penalty".into(), value: penalty, per: Per::Step }],
            grad: SparseGrad { x: xc, terms, b_dec, centred: true }.into(),
        };
        step.add_aux(aux);
        Ok(step)
    }

    fn extras(&self) -> Vec<(&'static str, &Tensor)> {
        vec![("log_threshold", &self.log_threshold)]
    }

    fn extra_grads(&self, sums: &[Vec<[f32; 2]>]) -> Result<Vec<Vec<f32>>> {
        let width = self.config.bandwidth;
        let theta: Vec<f32> = self.log_threshold.exp()?.to_vec1()?;
        let (counts, slope) = &self.band;
        let gradient = theta.iter().zip(&sums[0]).zip(counts).map(|((&theta, [dz, _]), &count)| {
            let theta = f64::from(theta);
            (theta * (-(theta / width) * f64::from(*dz) - slope / width * count as f64)) as f32
        });
        Ok(vec![gradient.collect()])
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
        let provenance = Provenance { made_by: "jump-relu".into(), ..Default::default() };
        let mut dictionary = Dictionary::new(unscaled(&self.coder, scale)?, Activation::Relu, true, provenance)?;
        dictionary.thresholds = Some((self.log_threshold.exp()? / scale)?);
        dictionary.activation = Activation::JumpRelu;
        Ok(dictionary)
    }
}
