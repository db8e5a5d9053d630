//! What the learners share: parameters with their silence counters, the step of plain reconstruction, a penalty that grows, and the
//! selection of a batch's largest codes. Not for: any variant's own loss.

use candle_core::Tensor;
use serde_json::{json, Value};

use super::aux_k::aux_term;
use super::{init, AuxKConfig, Part, Silence, Start, Step};
use crate::codes::Codes;
use crate::error::Result;
use crate::kernels::{column_sums, encode_batch_topk, Coder, Columns, SparseGrad, Term};

/// What every learner has.
#[derive(Debug)]
pub struct Body {
    /// The parameters; the optimiser updates them in place.
    pub coder: Coder,
    /// Tokens since each latent last fired.
    pub silence: Silence,
}

impl Body {
    /// Tied start from `rows` `[m, d_in]` (see `init`), its gain fitted with `k` latents per row.
    ///
    /// # Errors
    /// A tensor operation that fails.
    pub(super) fn tied(d_sae: usize, k: usize, dead_after_tokens: u64, rows: &Tensor, seed: u64) -> Result<Self> {
        Ok(Self { coder: init::tied_topk(d_sae, k.min(d_sae), rows, seed)?, silence: Silence::new(d_sae, dead_after_tokens) })
    }

    /// Takes a trained dictionary's parameters.
    ///
    /// # Errors
    /// Another size.
    pub(super) fn adopt(&mut self, start: &Start) -> Result<()> {
        let (d_sae, d_in) = self.coder.w_dec.dims2()?;
        start.check(d_sae, d_in)?;
        self.coder = start.coder(&self.coder)?;
        Ok(())
    }

    /// The input as the encoder sees it: `x - b_dec`, `[n, d_in]`.
    ///
    /// # Errors
    /// Another width.
    pub(super) fn centred(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.broadcast_sub(&self.coder.b_dec)?)
    }

    /// The step of plain reconstruction from codes by latent and their error `xhat - x`, `[n, d_in]`, with the sum of its squares; counts
    /// who stayed silent. Without `aux_k` dead latents are left alone.
    ///
    /// # Errors
    /// A tensor operation that fails.
    pub(super) fn plain(
        &mut self,
        xc: Tensor,
        columns: Columns,
        (error, sq_error): (Tensor, f64),
        aux_k: Option<&AuxKConfig>,
    ) -> Result<Plain> {
        let (n, d) = xc.dims2()?;
        let per_element = 1.0 / (n as f64 * d as f64);
        let aux = match aux_k {
            Some(aux_k) => aux_term(aux_k, &self.silence, &self.coder, &xc, &error)?,
            None => None,
        };
        self.silence.count(&columns, n as u64);
        let n_active = columns.rows.len() as u64;
        let b_dec = column_sums(&error, 2.0 * per_element)?;
        let term = Term { scale: (2.0 * per_element) as f32, ..Term::codes(columns, error) };
        let grad = SparseGrad { x: xc, terms: vec![term], b_dec, centred: true, pull: None };
        let mut plain = Plain { loss: sq_error * per_element, sq_error, n_active, aux_loss: None, grad };
        plain.add_aux(aux);
        Ok(plain)
    }
}

/// A step while a variant adds to it. The gradient's first term is that of the codes.
#[derive(Debug)]
pub(super) struct Plain {
    pub loss: f64,
    pub sq_error: f64,
    pub n_active: u64,
    pub aux_loss: Option<f64>,
    pub grad: SparseGrad,
}

impl Plain {
    /// Adds the auxiliary loss and its gradient.
    pub fn add_aux(&mut self, aux: Option<(f64, Term)>) {
        if let Some((value, term)) = aux {
            self.loss += value;
            self.aux_loss = Some(value);
            self.grad.terms.push(term);
        }
    }

    /// Done.
    pub fn step(self, parts: Vec<Part>) -> Step {
        let Self { loss, sq_error, n_active, aux_loss, grad } = self;
        Step { loss, sq_error, n_active, aux_loss, parts, grad: grad.into() }
    }
}

/// A penalty that grows over the first tokens.
#[derive(Debug)]
pub(super) struct Warmup {
    tokens: u64,
    over: u64,
}

impl Warmup {
    /// Over so many tokens.
    pub fn new(over: u64) -> Self {
        Self { tokens: 0, over }
    }

    /// What 0 stands for: 5 % of the run.
    pub fn resolve(over: u64, n_tokens: u64) -> u64 {
        if over == 0 {
            (n_tokens / 20).max(1)
        } else {
            over
        }
    }

    /// The penalty's factor once `n` more tokens are seen.
    pub fn add(&mut self, n: usize) -> f64 {
        self.tokens += n as u64;
        (self.tokens as f64 / self.over.max(1) as f64).min(1.0)
    }

    /// For a checkpoint.
    pub fn state(&self) -> Value {
        json!({ "tokens": self.tokens })
    }

    /// From a checkpoint.
    pub fn restore(&mut self, state: &Value) {
        self.tokens = state["tokens"].as_u64().unwrap_or_default();
    }
}

/// Selects the largest codes of batches, and keeps the running mean of the smallest that was kept (a batch without any does not count).
#[derive(Debug, Default)]
pub(super) struct BatchSelection {
    /// The running mean.
    pub threshold: Option<f64>,
    /// The smallest of the last batch: what the next one guesses from, which changes no result.
    last: Option<f32>,
}

impl BatchSelection {
    /// The n k largest positive pre-activations of `xc` `[n, d_in]`; n k is rounded, k need not be whole.
    ///
    /// # Errors
    /// As [`encode_batch_topk`].
    pub fn encode(&mut self, xc: &Tensor, coder: &Coder, k: f64, decay: f64) -> Result<Codes> {
        let guess = self.last.map(|last| 0.9 * last);
        let (codes, smallest) = encode_batch_topk(xc, &coder.w_enc, &coder.b_enc, (xc.dim(0)? as f64 * k).round() as usize, guess)?;
        self.saw(smallest.is_finite().then_some(smallest), decay);
        Ok(codes)
    }

    /// Takes in the smallest code that a batch kept, if it kept any.
    pub fn saw(&mut self, smallest: Option<f32>, decay: f64) {
        self.last = smallest;
        if let Some(smallest) = smallest.map(f64::from) {
            self.threshold = Some(self.threshold.map_or(smallest, |mean| decay * mean + (1.0 - decay) * smallest));
        }
    }

    /// For a checkpoint.
    pub fn state(&self) -> Value {
        json!({ "threshold": self.threshold })
    }

    /// From a checkpoint.
    pub fn restore(&mut self, state: &Value) {
        self.threshold = state["threshold"].as_f64();
    }
}
