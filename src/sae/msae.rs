//! MSAE: nested k over the whole dictionary (Zaigrajew, Baniecki, Biecek, "Interpreting CLIP with Hierarchical Sparse Autoencoders",
//! arXiv 2502.20578).
//!
//! ```text
//! a       = (x - b_dec) W_enc^T + b_enc
//! z_l     = softcap(the k_l largest positive a of each row)     k_1 < .. < k_h,  softcap(u) = c tanh(u / c), or u when c = 0
//! xhat_l  = z_l W_dec + b_dec
//! L       = sum_l alpha_l sum |x - xhat_l|^2 / (n d_in) / sum_l alpha_l + AuxK
//! ```
//!
//! Weights: uniform, alpha = 1, or reversed, alpha = h, h - 1, .., 1, which favours the smallest k. One selection serves all levels: the
//! smaller ones are its beginnings. One dictionary is then good at every listed k (progressive readout). Not `matryoshka`, which nests
//! prefixes of the dictionary.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::aux_k::aux_term;
use super::body::Plain;
use super::parts::{check_k, unscaled, Part, Per};
use super::{AuxKConfig, Body, Learner, Step};
use crate::dictionary::{Activation, Dictionary, Provenance};
use crate::error::{Error, Result};
use crate::kernels::{encode_topk, sparse_decode_onto, Columns, Role, Selection, SparseGrad, Term};

/// How levels are weighted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weighting {
    /// All alike.
    Uniform,
    /// The smallest k has the largest weight.
    Reverse,
}

/// The `[sae]` table for `arch = "msae"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MsaeConfig {
    /// Number of latents; 0 stands for 16 times the input's width.
    pub d_sae: usize,
    /// The smallest level, from which `levels` double when they are not given.
    pub k: usize,
    /// Active latents per row at each level, increasing; empty: k, 2 k, 4 k, ... up to an eighth of `d_sae`.
    pub levels: Vec<usize>,
    /// How levels are weighted.
    pub weighting: Weighting,
    /// Bound of codes, in the trainer's scale; 0: none.
    pub softcap: f64,
    /// The auxiliary loss that revives dead latents.
    pub aux_k: AuxKConfig,
}

impl Default for MsaeConfig {
    fn default() -> Self {
        Self { d_sae: 0, k: 32, levels: Vec::new(), weighting: Weighting::Uniform, softcap: 0.0, aux_k: AuxKConfig::default() }
    }
}

impl MsaeConfig {
    pub(super) fn resolve(&self, d_in: usize, n_tokens: u64) -> Result<Self> {
        let d_sae = check_k(self.d_sae, self.k, d_in, &self.aux_k)?;
        super::parts::check_weight("sae.softcap", self.softcap, "0 leaves codes unbounded")?;
        let mut levels = self.levels.clone();
        if levels.is_empty() {
            levels = std::iter::successors(Some(self.k), |k| Some(2 * k)).take_while(|&k| k == self.k || k <= d_sae / 8).collect();
        }
        if let Some(pair) = levels.windows(2).find(|p| p[0] >= p[1]) {
            let problem = format!("{} is followed by {}", pair[0], pair[1]);
            return Err(Error::config("sae.levels", problem, "levels are nested: give them in increasing order"));
        }
        if levels[0] == 0 || levels[levels.len() - 1] > d_sae {
            let problem = format!("{levels:?} of {d_sae} latents");
            return Err(Error::config("sae.levels", problem, format!("levels lie between 1 and {d_sae}")));
        }
        Ok(Self { d_sae, k: levels[0], levels, aux_k: self.aux_k.resolve(d_in, n_tokens), ..self.clone() })
    }

    fn weights(&self) -> Vec<f64> {
        let h = self.levels.len();
        let raw = |l: usize| match self.weighting {
            Weighting::Uniform => 1.0,
            Weighting::Reverse => (h - l) as f64,
        };
        let total: f64 = (0..h).map(raw).sum();
        (0..h).map(|l| raw(l) / total).collect()
    }
}

/// An MSAE in training.
#[derive(Debug)]
pub struct Msae {
    config: MsaeConfig,
    body: Body,
}

impl Msae {
    /// Tied start from `rows` (see `init`).
    ///
    /// # Errors
    /// A tensor operation that fails.
    pub fn new(config: MsaeConfig, rows: &Tensor, seed: u64) -> Result<Self> {
        let body = Body::tied(config.d_sae, config.k, config.aux_k.dead_after_tokens, rows, seed)?;
        Ok(Self { config, body })
    }
}

impl Learner for Msae {
    fn body(&self) -> &Body {
        &self.body
    }

    fn body_mut(&mut self) -> &mut Body {
        &mut self.body
    }

    fn step(&mut self, x: &Tensor) -> Result<Step> {
        let (n, d) = x.dims2()?;
        let (d_sae, cap) = (self.config.d_sae, self.config.softcap);
        let largest = self.config.levels[self.config.levels.len() - 1];
        let xc = self.body.centred(x)?;
        let mut selection = encode_topk(&xc, &self.body.coder.w_enc, &self.body.coder.b_enc, largest, None)?;
        if cap > 0.0 {
            selection.values = ((selection.values / cap)?.tanh()? * cap)?;
        }
        let per_element = 1.0 / (n as f64 * d as f64);
        let weights = self.config.weights();
        let mut error = xc.clone();
        let (mut levels, mut parts, mut loss, mut from) = (Vec::new(), Vec::new(), 0.0, 0);
        for (&k, &weight) in self.config.levels.iter().zip(&weights) {
            let between = |t: &Tensor| -> Result<Tensor> { Ok(t.narrow(1, from, k - from)?.contiguous()?) };
            let part = Selection { indices: between(&selection.indices)?, values: between(&selection.values)? };
            let (next, sq) = sparse_decode_onto(&part, &self.body.coder.w_dec, &error, if from == 0 { -1.0 } else { 1.0 })?;
            error = next;
            loss += weight * sq * per_element;
            parts.push(Part { name: format!("fvu_k{k}"), value: sq, per: Per::Spread });
            levels.push((Columns::new(&part, d_sae)?, (&error * (2.0 * weight * per_element))?, sq));
            from = k;
        }
        let sq_error = levels[levels.len() - 1].2;
        let aux = aux_term(&self.config.aux_k, &self.body.silence, &self.body.coder, &xc, &error)?;
        let whole = Columns::new(&selection, d_sae)?;
        self.body.silence.count(&whole, n as u64);
        let role = Role { softcap: (cap > 0.0).then_some(cap as f32), ..Role::default() };
        let mut terms = Vec::with_capacity(levels.len());
        let mut suffix: Option<Tensor> = None;
        for (columns, grad, _) in levels.into_iter().rev() {
            let grad = match suffix {
                Some(later) => (later + grad)?,
                None => grad,
            };
            terms.push(Term::new(columns, grad.clone(), role.clone()));
            suffix = Some(grad);
        }
        let b_dec = suffix.map_or_else(|| self.body.coder.b_dec.zeros_like(), |s| s.sum(0))?;
        let n_active = whole.rows.len() as u64;
        let grad = SparseGrad { x: xc, terms, b_dec, centred: true, pull: None };
        let mut plain = Plain { loss, sq_error, n_active, aux_loss: None, grad };
        plain.add_aux(aux);
        Ok(plain.step(parts))
    }

    fn finish(&self, scale: f64, _rows: &Tensor) -> Result<Dictionary> {
        let largest = self.config.levels[self.config.levels.len() - 1];
        let notes = json!({ "levels": self.config.levels });
        let provenance = Provenance { made_by: "msae".into(), notes, ..Default::default() };
        let mut dictionary = Dictionary::new(unscaled(&self.body.coder, scale)?, Activation::TopK { k: largest }, true, provenance)?;
        if self.config.softcap > 0.0 {
            dictionary.softcap = Some((self.config.softcap / scale) as f32);
        }
        Ok(dictionary)
    }
}
