//! BatchTopK SAE (Bussmann, Leask, Nanda, "BatchTopK Sparse Autoencoders", arXiv 2412.06410).
//!
//! ```text
//! a    = (x - b_dec) W_enc^T + b_enc               [n, d_sae]
//! z    = the n k largest positive a of the batch
//! xhat = z W_dec + b_dec
//! L    = sum |x - xhat|^2 / (n d_in) + AuxK
//! ```
//!
//! Rows with more to say get more latents. A single row has no batch, so inference uses a threshold, calibrated after training as the
//! value that gives k active latents per row on fixed training rows; the running mean of each batch's smallest kept value, which
//! others use, is kept as a note.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::{json, Value};

use super::body::BatchSelection;
use super::parts::{calibrate, check_k, unscaled};
use super::{AuxKConfig, Body, Figures, Learner, OnDevice, Step};
use crate::dictionary::{Activation, Dictionary, Provenance};
use crate::error::{Error, Result};
use crate::kernels::{decode_codes_onto, Choice, Columns, StepPlan, Told};

/// The `[sae]` table for `arch = "batch-topk"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BatchTopKConfig {
    /// Number of latents; 0 stands for 16 times the input's width.
    pub d_sae: usize,
    /// Active latents per row, on average.
    pub k: usize,
    /// The same where it is no whole number: above `k - 1`, at most `k`; 0 stands for `k`.
    pub mean_k: f64,
    /// Decay of the running mean of the smallest kept value.
    pub threshold_decay: f64,
    /// The auxiliary loss that revives dead latents.
    pub aux_k: AuxKConfig,
}

impl Default for BatchTopKConfig {
    fn default() -> Self {
        Self { d_sae: 0, k: 32, mean_k: 0.0, threshold_decay: 0.999, aux_k: AuxKConfig::default() }
    }
}

impl BatchTopKConfig {
    pub(super) fn resolve(&self, d_in: usize, n_tokens: u64) -> Result<Self> {
        let d_sae = check_k(self.d_sae, self.k, d_in, &self.aux_k)?;
        if self.mean().ceil() != self.k as f64 {
            let problem = format!("{} does not round up to sae.k = {}", self.mean_k, self.k);
            return Err(Error::config("sae.mean_k", problem, "leave it out, or set sae.k to the next whole number above it"));
        }
        Ok(Self { d_sae, aux_k: self.aux_k.resolve(d_in, n_tokens), ..self.clone() })
    }

    fn mean(&self) -> f64 {
        if self.mean_k == 0.0 {
            self.k as f64
        } else {
            self.mean_k
        }
    }
}

/// A BatchTopK SAE in training.
#[derive(Debug)]
pub struct BatchTopK {
    config: BatchTopKConfig,
    body: Body,
    selection: BatchSelection,
}

impl BatchTopK {
    /// Tied start from `rows` (see `init`).
    ///
    /// # Errors
    /// A tensor operation that fails.
    pub fn new(config: BatchTopKConfig, rows: &Tensor, seed: u64) -> Result<Self> {
        let body = Body::tied(config.d_sae, config.k, config.aux_k.dead_after_tokens, rows, seed)?;
        Ok(Self { config, body, selection: BatchSelection::default() })
    }
}

impl Learner for BatchTopK {
    fn body(&self) -> &Body {
        &self.body
    }

    fn body_mut(&mut self) -> &mut Body {
        &mut self.body
    }

    fn step(&mut self, x: &Tensor) -> Result<Step> {
        let (config, coder) = (&self.config, &self.body.coder);
        let xc = self.body.centred(x)?;
        let codes = self.selection.encode(&xc, coder, config.mean(), config.threshold_decay)?;
        let error = decode_codes_onto(&codes, &coder.w_dec, &xc, -1.0)?;
        Ok(self.body.plain(xc, Columns::of_codes(&codes), error, Some(&config.aux_k))?.step(Vec::new()))
    }

    fn on_device(&self) -> Option<OnDevice> {
        Some(OnDevice { k: self.config.k, prefixes: 1, aux_k: self.config.aux_k.on_device() })
    }

    fn plan(&mut self) -> Option<StepPlan> {
        Some(StepPlan { choice: Choice::BatchTopK { k: self.config.mean() }, prefixes: vec![self.config.d_sae] })
    }

    fn told(&mut self, told: &Told, rows: usize) -> Figures {
        self.selection.saw(told.smallest, self.config.threshold_decay);
        let (_, d) = self.body.coder.w_dec.dims2().unwrap_or((0, 1));
        Figures::plain(told, rows, d)
    }

    fn state(&self) -> Value {
        self.selection.state()
    }

    fn restore(&mut self, state: &Value) {
        self.selection.restore(state);
    }

    fn calibrates(&self) -> bool {
        true
    }

    fn finish(&self, scale: f64, rows: &Tensor) -> Result<Dictionary> {
        let threshold = calibrate(&self.body.coder, rows, self.config.mean())?;
        let mut notes = json!({
            "k": self.config.k,
            "calibration_rows": rows.dim(0)?,
            "running_threshold": self.selection.threshold.map(|t| t / scale),
        });
        if self.config.mean_k > 0.0 {
            notes["mean_k"] = json!(self.config.mean_k);
        }
        let provenance = Provenance { made_by: "batch-topk".into(), notes, ..Default::default() };
        let activation = Activation::Threshold { threshold: (f64::from(threshold) / scale) as f32 };
        Dictionary::new(unscaled(&self.body.coder, scale)?, activation, true, provenance)
    }
}
