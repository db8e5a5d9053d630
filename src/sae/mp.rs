//! Matching-pursuit SAE (Costa, Fel, Lubana, Tolooshams, Ba, "From Flat to Hierarchical: Extracting Sparse Representations with Matching
//! Pursuit", arXiv 2506.03093).
//!
//! ```text
//! r_0  = x - b_dec
//! r_t  = r_{t-1} - v_t D_{j_t},   j_t = pick(D r_{t-1}),   v_t = <r_{t-1}, D_{j_t}>,   t = 1..k
//! xhat = x - r_k
//! L    = sum |r_k|^2 / (n d_in) + auxiliary terms
//! ```
//!
//! The gradient goes through all steps. There is no encoder: correlations are with the decoder's own atoms, which stay on the unit
//! sphere. Becomes `Activation::Pursuit` at inference.

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::aux_k::sum_sq;
use super::parts::check_weight;
use super::{init, AuxKConfig, Body, Learner, Silence, Start, Step};
use crate::codes::PAD;
use crate::dictionary::{Activation, Dictionary, Provenance};
use crate::error::{Error, Result};
use crate::kernels::{fill_gram, new_gram, pursuit, Coder, Gradient, Pick, PursuitGrad, PursuitPath, PursuitRule, Tape};

/// The `[sae]` table for `arch = "mp"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MpConfig {
    /// Number of latents; 0 stands for 16 times the input's width.
    pub d_sae: usize,
    /// Steps per row at most. An atom may be taken again, so fewer latents may be active.
    pub k: usize,
    /// Which atom a step takes: `non_neg`, `max` or `signed`.
    pub selection: Pick,
    /// A row ends when its residual's norm falls below this; 0 turns it off. Rows have mean squared norm `d_in` in training.
    pub tolerance: f32,
    /// Is the tolerance a share of the row's own norm?
    pub relative: bool,
    /// Does a row end with the step that takes an atom again?
    pub stop_on_repeat: bool,
    /// Must be true: a pursuit has no encoder that could differ from its decoder.
    pub tied: bool,
    /// Dead atoms pursue what the living left over, as in AuxK; `k` are their steps, 0 standing for the row's own `k`.
    pub aux_k: AuxKConfig,
    /// Weight of overcomplete's term, which adds the mean inner product of dead atoms and residuals to what is maximised; 0 turns it off.
    pub revive: f64,
}

impl Default for MpConfig {
    fn default() -> Self {
        Self {
            d_sae: 0,
            k: 32,
            selection: Pick::NonNeg,
            tolerance: 0.0,
            relative: false,
            stop_on_repeat: false,
            tied: true,
            aux_k: AuxKConfig::default(),
            revive: 0.0,
        }
    }
}

impl MpConfig {
    pub(super) fn resolve(&self, d_in: usize, n_tokens: u64) -> Result<Self> {
        let d_sae = if self.d_sae == 0 { 16 * d_in } else { self.d_sae };
        if !self.tied {
            return Err(Error::config(
                "sae.tied",
                "matching pursuit has no encoder of its own: each step correlates with the decoder's atoms",
                "leave it out, or train an untied variant such as arch = \"topk\"",
            ));
        }
        if self.k == 0 {
            return Err(Error::config("sae.k", "a pursuit of 0 steps selects nothing", "use 1 step or more; 32 is the default"));
        }
        if !(self.tolerance.is_finite() && self.tolerance >= 0.0) || (self.relative && self.tolerance >= 1.0) {
            return Err(Error::config(
                "sae.tolerance",
                format!("{} is no residual norm to stop at", self.tolerance),
                "0 turns it off; a relative one is a share below 1",
            ));
        }
        for (key, weight) in [("sae.aux_k.coef", self.aux_k.coef), ("sae.revive", self.revive)] {
            check_weight(key, weight, "use 0 to turn the term off, or a small positive number")?;
        }
        let mut aux_k = self.aux_k.resolve(d_in, n_tokens);
        aux_k.k = if self.aux_k.k == 0 { self.k } else { self.aux_k.k };
        Ok(Self { d_sae, aux_k, ..self.clone() })
    }

    fn rule(&self) -> PursuitRule {
        PursuitRule {
            steps: self.k,
            pick: self.selection,
            tolerance: self.tolerance,
            relative: self.relative,
            stop_on_repeat: self.stop_on_repeat,
        }
    }
}

/// A matching-pursuit SAE in training.
#[derive(Debug)]
pub struct Mp {
    config: MpConfig,
    /// Its encoder is empty, `[0, d_in]`.
    body: Body,
    /// Inner products of the atoms, filled anew at each step; `None` where they would not fit.
    gram: Option<Tensor>,
}

impl Mp {
    /// Unit atoms from the "init" stream, `b_dec` the rows' geometric median.
    ///
    /// # Errors
    /// A tensor operation that fails.
    pub fn new(config: MpConfig, rows: &Tensor, seed: u64) -> Result<Self> {
        let (_, d) = rows.dims2()?;
        let empty = |shape: &[usize]| Tensor::from_vec(Vec::<f32>::new(), shape, rows.device());
        let coder = Coder {
            w_enc: empty(&[0, d])?,
            b_enc: empty(&[0])?,
            w_dec: init::unit_rows(config.d_sae, d, seed)?,
            b_dec: init::geometric_median(rows)?,
        };
        let silence = Silence::new(config.d_sae, config.aux_k.dead_after_tokens);
        Ok(Self { gram: new_gram(&coder.w_dec)?, config, body: Body { coder, silence } })
    }

    /// Dead atoms pursue the residual `[n, d]`, which is a constant here: the weighted loss, and its tape.
    fn aux(&self, dead: &[u32], residual: &Tensor) -> Result<Option<(f64, Tape)>> {
        let config = &self.config.aux_k;
        if dead.is_empty() || config.coef == 0.0 {
            return Ok(None);
        }
        let spread = sum_sq(&residual.broadcast_sub(&residual.mean(0)?)?)?;
        if spread <= 0.0 {
            return Ok(None);
        }
        let atoms = self.body.coder.w_dec.index_select(&Tensor::from_slice(dead, dead.len(), &Device::Cpu)?, 0)?;
        let gram = new_gram(&atoms)?;
        if let Some(gram) = &gram {
            fill_gram(&atoms, gram)?;
        }
        let rule = PursuitRule { steps: config.k, pick: self.config.selection, tolerance: 0.0, relative: false, stop_on_repeat: false };
        let path = pursuit(residual, &atoms, gram.as_ref(), &rule)?;
        let loss = config.coef * sum_sq(&path.residual)? / spread;
        let grad = (&path.residual * (2.0 * config.coef / spread))?;
        let indices: Vec<u32> = path.indices.flatten_all()?.to_vec1::<u32>()?;
        let indices: Vec<u32> = indices.into_iter().map(|i| if i == PAD { PAD } else { dead[i as usize] }).collect();
        let path = PursuitPath { indices: Tensor::from_vec(indices, path.indices.shape(), &Device::Cpu)?, ..path };
        let (tape, _) = Tape::new(&self.body.coder.w_dec, path, grad)?;
        Ok(Some((loss, tape)))
    }
}

impl Learner for Mp {
    fn body(&self) -> &Body {
        &self.body
    }

    fn body_mut(&mut self) -> &mut Body {
        &mut self.body
    }

    fn adopt(&mut self, start: &Start, _rows: &Tensor) -> Result<()> {
        let coder = &mut self.body.coder;
        start.check(coder.w_dec.dim(0)?, coder.w_dec.dim(1)?)?;
        (coder.w_dec, coder.b_dec) = (start.coder.w_dec.copy()?, start.coder.b_dec.copy()?);
        Ok(())
    }

    fn step(&mut self, x: &Tensor) -> Result<Step> {
        let (n, d) = x.dims2()?;
        let atoms = &self.body.coder.w_dec;
        if let Some(gram) = &self.gram {
            fill_gram(atoms, gram)?;
        }
        let path = pursuit(&self.body.centred(x)?, atoms, self.gram.as_ref(), &self.config.rule())?;
        let sq_error = sum_sq(&path.residual)?;
        let per_element = 1.0 / (n as f64 * d as f64);
        let mut loss = sq_error * per_element;
        let mut grad = (&path.residual * (2.0 * per_element))?;

        let dead = self.body.silence.dead();
        let aux = self.aux(&dead, &path.residual)?;
        let mut shared = None;
        let mut aux_loss = aux.as_ref().map(|(value, _)| *value);
        if self.config.revive > 0.0 && !dead.is_empty() {
            // -coef mean_{rows, dead} <r_k, D_i>: pulls dead atoms towards the mean residual, and residuals towards dead atoms.
            let coef = self.config.revive / dead.len() as f64;
            let direction = path.residual.mean(0)?;
            let towards = atoms.index_select(&Tensor::from_slice(&dead, dead.len(), &Device::Cpu)?, 0)?.sum(0)?;
            let value = -coef * f64::from((&direction * &towards)?.sum_all()?.to_scalar::<f32>()?);
            grad = grad.broadcast_sub(&(&towards * (coef / n as f64))?)?;
            shared = Some((dead, (direction * -coef)?));
            aux_loss = Some(aux_loss.unwrap_or(0.0) + value);
        }
        loss += aux_loss.unwrap_or(0.0);

        let (tape, input) = Tape::new(atoms, path, grad)?;
        self.body.silence.count(&tape.columns, n as u64);
        let n_active = tape.n_active()?;
        let b_dec = input.sum(0)?.neg()?;
        let tapes = std::iter::once(tape).chain(aux.map(|(_, tape)| tape)).collect();
        let grad = Gradient::Pursuit(PursuitGrad { tapes, shared, b_dec });
        Ok(Step { loss, sq_error, n_active, aux_loss, parts: Vec::new(), grad })
    }

    fn finish(&self, scale: f64, _rows: &Tensor) -> Result<Dictionary> {
        // With u = scale * x all inner products, hence all steps, scale alike; an absolute tolerance is in x's units now.
        let c = &self.body.coder;
        let w_dec = c.w_dec.copy()?;
        let b_enc = Tensor::zeros(self.config.d_sae, candle_core::DType::F32, w_dec.device())?;
        let coder = Coder { w_enc: w_dec.clone(), b_enc, w_dec, b_dec: (&c.b_dec / scale)? };
        let MpConfig { k: steps, selection, tolerance, relative, stop_on_repeat, .. } = self.config;
        let tolerance = if relative { tolerance } else { (f64::from(tolerance) / scale) as f32 };
        let activation = Activation::Pursuit { steps, selection, tolerance, relative, stop_on_repeat, renormalise: true };
        Dictionary::new(coder, activation, true, Provenance { made_by: "mp".into(), ..Default::default() })
    }
}

#[cfg(test)]
mod tests;
