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
use serde_json::Value;

use super::body::Warmup;
use super::parts::{calibrate, check_k, check_weight, unscaled, Part, Per};
use super::relu::INIT_K;
use super::{AuxKConfig, Body, Learner, Start, Step};
use crate::dictionary::{Activation, Dictionary, Provenance};
use crate::error::{Error, Result};
use crate::kernels::{decode_codes_onto, encode_threshold, Coder, Columns, Role, Term};

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
        Ok(Self { d_sae, warmup_tokens: Warmup::resolve(self.warmup_tokens, n_tokens), aux_k, ..self.clone() })
    }
}

/// A JumpReLU SAE in training.
#[derive(Debug)]
pub struct JumpRelu {
    config: JumpReluConfig,
    body: Body,
    /// `[d_sae]`, f32.
    log_threshold: Tensor,
    warmup: Warmup,
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
        let body = Body::tied(config.d_sae, k, config.aux_k.dead_after_tokens, rows, seed)?;
        let log_threshold = start_of_thresholds(&config, &body.coder, rows)?;
        Ok(Self { warmup: Warmup::new(config.warmup_tokens), config, body, log_threshold, band: (Vec::new(), 0.0) })
    }
}

/// Thresholds move slowly, so a start far from the target would cost most of a short run.
fn start_of_thresholds(config: &JumpReluConfig, coder: &Coder, rows: &Tensor) -> Result<Tensor> {
    let start = match config.initial_threshold {
        given if given > 0.0 => given,
        _ if config.target_l0 >= 1.0 => f64::from(calibrate(coder, rows, config.target_l0)?).max(1e-3),
        _ => 0.1,
    };
    Ok(Tensor::full(start.ln() as f32, config.d_sae, rows.device())?)
}

impl Learner for JumpRelu {
    fn body(&self) -> &Body {
        &self.body
    }

    fn body_mut(&mut self) -> &mut Body {
        &mut self.body
    }

    fn adopt(&mut self, start: &Start, rows: &Tensor) -> Result<()> {
        self.body.adopt(start)?;
        self.log_threshold = match &start.thresholds {
            // A threshold of 0 would never move: its logarithm is what is learnt.
            Some(thresholds) => thresholds.maximum(1e-3)?.log()?,
            None => start_of_thresholds(&self.config, &self.body.coder, rows)?,
        };
        Ok(())
    }

    fn step(&mut self, x: &Tensor) -> Result<Step> {
        let (n, d) = x.dims2()?;
        let coef = self.config.l0_coef * self.warmup.add(n);
        let half = (self.config.bandwidth / 2.0) as f32;
        let theta: Vec<f32> = self.log_threshold.exp()?.to_vec1()?;
        let low = Tensor::from_vec(theta.iter().map(|t| t - half).collect::<Vec<_>>(), theta.len(), x.device())?;
        let coder = &self.body.coder;
        let xc = self.body.centred(x)?;
        // One encode gives the active entries and those near the step.
        let above = Columns::of_codes(&encode_threshold(&xc, &coder.w_enc, &coder.b_enc, &low)?);
        let active = above.filtered(|j, v| v > theta[j]);
        let band = above.filtered(|j, v| (v - theta[j]).abs() < half);
        let error = decode_codes_onto(&active.to_codes(n), &coder.w_dec, &xc, -1.0)?;
        let mut plain = self.body.plain(xc, active, error, Some(&self.config.aux_k))?;
        let l0 = plain.n_active as f64 / n as f64;
        let (penalty, slope) = if self.config.target_l0 > 0.0 {
            let excess = l0 / self.config.target_l0 - 1.0;
            (coef * excess * excess, 2.0 * coef * excess / self.config.target_l0)
        } else {
            (coef * l0 / d as f64, coef / d as f64)
        };
        plain.loss += penalty;
        self.band = ((0..theta.len()).map(|j| band.count(j)).collect(), slope / n as f64);
        let role = Role { decoder: false, encoder: false, bias: false, sums: true, ..Role::default() };
        let codes = &plain.grad.terms[0];
        let band = Term { scale: codes.scale, ..Term::new(band, codes.grad.clone(), role) };
        plain.grad.terms.push(band);
        Ok(plain.step(vec![Part { name: "l0_penalty".into(), value: penalty, per: Per::Step }]))
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

    fn state(&self) -> Value {
        self.warmup.state()
    }

    fn restore(&mut self, state: &Value) {
        self.warmup.restore(state);
    }

    fn finish(&self, scale: f64, _rows: &Tensor) -> Result<Dictionary> {
        let provenance = Provenance { made_by: "jump-relu".into(), ..Default::default() };
        let mut dictionary = Dictionary::new(unscaled(&self.body.coder, scale)?, Activation::Relu, true, provenance)?;
        dictionary.thresholds = Some((self.log_threshold.exp()? / scale)?);
        dictionary.activation = Activation::JumpRelu;
        Ok(dictionary)
    }
}
