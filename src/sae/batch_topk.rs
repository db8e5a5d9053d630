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

use super::aux_k::{aux_term, sum_sq};
use super::parts::{calibrate, check_k, unscaled};
use super::{init, AuxKConfig, Learner, Silence, Step};
use crate::dictionary::{Activation, Dictionary, Provenance};
use crate::error::Result;
use crate::kernels::{decode_codes, encode_batch_topk, Coder, Columns, SparseGrad, Term};

/// The `[sae]` table for `arch = "batch-topk"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BatchTopKConfig {
    /// Number of latents; 0 stands for 16 times the input's width.
    pub d_sae: usize,
    /// Active latents per row, on average.
    pub k: usize,
    /// Decay of the running mean of the smallest kept value.
    pub threshold_decay: f64,
    /// The auxiliary loss that revives dead latents.
    pub aux_k: AuxKConfig,
}

impl Default for BatchTopKConfig {
    fn default() -> Self {
        Self { d_sae: 0, k: 32, threshold_decay: 0.999, aux_k: AuxKConfig::default() }
    }
}

impl BatchTopKConfig {
    pub(super) fn resolve(&self, d_in: usize, n_tokens: u64) -> Result<Self> {
        let d_sae = check_k(self.d_sae, self.k, d_in, &self.aux_k)?;
        Ok(Self { d_sae, aux_k: self.aux_k.resolve(d_in, n_tokens), ..self.clone() })
    }
}

/// The running mean of the smallest kept value; a batch without any does not count.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RunningThreshold {
    pub value: Option<f64>,
}

impl RunningThreshold {
    pub fn add(&mut self, smallest: f32, decay: f64) {
        if smallest.is_finite() {
            let smallest = f64::from(smallest);
            self.value = Some(self.value.map_or(smallest, |mean| decay * mean + (1.0 - decay) * smallest));
        }
    }

    /// A little below where the next batch's cut should be.
    pub fn guess(&self, last: Option<f32>) -> Option<f32> {
        last.map(|l| 0.9 * l)
    }

    pub fn state(&self) -> Value {
        json!({ "threshold": self.value })
    }

    pub fn restore(&mut self, state: &Value) {
        self.value = state["threshold"].as_f64();
    }
}

/// A BatchTopK SAE in training.
#[derive(Debug)]
pub struct BatchTopK {
    config: BatchTopKConfig,
    coder: Coder,
    silence: Silence,
    running: RunningThreshold,
    /// Smallest value that the last batch kept; only a guess for the next.
    last: Option<f32>,
}

impl BatchTopK {
    /// Tied start from `rows` (see `init`).
    ///
    /// # Errors
    /// A tensor operation that fails.
    pub fn new(config: BatchTopKConfig, rows: &Tensor, seed: u64) -> Result<Self> {
        let coder = init::tied_topk(config.d_sae, config.k, rows, seed)?;
        let silence = Silence::new(config.d_sae, config.aux_k.dead_after_tokens);
        Ok(Self { config, coder, silence, running: RunningThreshold::default(), last: None })
    }
}

impl Learner for BatchTopK {
    fn coder(&self) -> &Coder {
        &self.coder
    }

    fn step(&mut self, x: &Tensor) -> Result<Step> {
        let (n, d) = x.dims2()?;
        let xc = x.broadcast_sub(&self.coder.b_dec)?;
        let guess = self.running.guess(self.last);
        let (codes, smallest) = encode_batch_topk(&xc, &self.coder.w_enc, &self.coder.b_enc, n * self.config.k, guess)?;
        self.running.add(smallest, self.config.threshold_decay);
        self.last = smallest.is_finite().then_some(smallest);
        let error = (decode_codes(&codes, &self.coder.w_dec, Some(&self.coder.b_dec))? - x)?;
        let sq_error = sum_sq(&error)?;
        let per_element = 1.0 / (n as f64 * d as f64);
        let columns = Columns::of_codes(&codes);
        let aux = aux_term(&self.config.aux_k, &self.silence, &self.coder, &xc, &error.neg()?)?;
        self.silence.count(&columns, n as u64);
        let n_active = columns.rows.len() as u64;
        let grad = (error * (2.0 * per_element))?;
        let b_dec = grad.sum(0)?;
        let mut step = Step {
            loss: sq_error * per_element,
            sq_error,
            n_active,
            aux_loss: None,
            parts: Vec::new(),
            grad: SparseGrad { x: xc, terms: vec![Term::codes(columns, grad)], b_dec, centred: true }.into(),
        };
        step.add_aux(aux);
        Ok(step)
    }

    fn silence(&self) -> &Silence {
        &self.silence
    }

    fn silence_mut(&mut self) -> &mut Silence {
        &mut self.silence
    }

    fn state(&self) -> Value {
        self.running.state()
    }

    fn restore(&mut self, state: &Value) {
        self.running.restore(state);
    }

    fn calibrates(&self) -> bool {
        true
    }

    fn finish(&self, scale: f64, rows: &Tensor) -> Result<Dictionary> {
        let threshold = calibrate(&self.coder, rows, self.config.k)?;
        let notes = json!({
            "k": self.config.k,
            "calibration_rows": rows.dim(0)?,
            "running_threshold": self.running.value.map(|t| t / scale),
        });
        let provenance = Provenance { made_by: "batch-topk".into(), notes, ..Default::default() };
        let activation = Activation::Threshold { threshold: (f64::from(threshold) / scale) as f32 };
        Dictionary::new(unscaled(&self.coder, scale)?, activation, true, provenance)
    }
}
