//! The `[train.pam]` table.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The `[train.pam]` table: its presence turns PAM-SGD on. Weights are on the sum over all training rows, scaled as in training to mean
/// squared norm `d_in`; in the encoder's mean loss they are divided by `N d_in`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PamConfig {
    /// Weight of `|D|^2`; 0 stands for one that is chosen at each solve on validation documents.
    pub ridge: f64,
    /// Smallest ridge to try, in multiples of the mean diagonal entry of the codes' gram matrix.
    pub ridge_from: f64,
    /// Largest ridge to try, in the same unit.
    pub ridge_to: f64,
    /// Ridges to try, equally far apart in their logarithm.
    pub ridge_steps: usize,
    /// Share of documents whose rows choose the ridge (with `ridge = 0` only): no encoder step sees them.
    pub validation_fraction: f64,
    /// Is the decoder solved for before the first encoder step?
    pub initial_solve: bool,
    /// Rows between solves; 0 stands for one pass over the training rows. A solve reads all of them, whatever this is.
    pub solve_every_tokens: u64,
    /// Weight of `|D - D^t|^2`.
    pub mu_dec: f64,
    /// Weight of `|b_dec - b_dec^t|^2`.
    pub nu_dec: f64,
    /// Weight of `|b_dec|^2`.
    pub beta: f64,
    /// Weight of `|W_enc - W_enc^t|^2`.
    pub mu_enc: f64,
    /// Weight of `|b_enc - b_enc^t|^2`.
    pub nu_enc: f64,
    /// With more latents than this, blocks of atoms are solved for in turn instead of all at once.
    pub block_above: usize,
    /// Sweeps over the blocks per solve, at most.
    pub block_sweeps: usize,
    /// Statistics and systems that would take more memory than this are refused.
    pub max_memory_bytes: u64,
}

impl Default for PamConfig {
    fn default() -> Self {
        Self {
            ridge: 0.0,
            ridge_from: 1e-7,
            ridge_to: 10.0,
            ridge_steps: 17,
            validation_fraction: 0.1,
            initial_solve: true,
            solve_every_tokens: 0,
            mu_dec: 0.0,
            nu_dec: 0.0,
            beta: 0.0,
            mu_enc: 0.0,
            nu_enc: 0.0,
            block_above: 8192,
            block_sweeps: 10,
            max_memory_bytes: 8 << 30,
        }
    }
}

impl PamConfig {
    /// Is the ridge chosen on validation rows?
    pub fn chooses(&self) -> bool {
        self.ridge == 0.0
    }

    /// Refuses what cannot be.
    ///
    /// # Errors
    /// The key, with the remedy.
    pub fn check(&self) -> Result<()> {
        let refuse = |key: &str, found: String, help: &str| Err(Error::config(format!("train.pam.{key}"), found, help));
        let weights = [
            ("ridge", self.ridge),
            ("mu_dec", self.mu_dec),
            ("nu_dec", self.nu_dec),
            ("beta", self.beta),
            ("mu_enc", self.mu_enc),
            ("nu_enc", self.nu_enc),
        ];
        if let Some((key, value)) = weights.iter().find(|(_, w)| !(w.is_finite() && *w >= 0.0)) {
            return refuse(key, format!("{value} is no weight"), "use 0 or a positive number");
        }
        if !(self.ridge_from > 0.0 && self.ridge_to >= self.ridge_from && self.ridge_to.is_finite()) {
            let found = format!("ridges from {} to {} are no grid", self.ridge_from, self.ridge_to);
            return refuse("ridge_from", found, "both are positive, the larger one is ridge_to; 1e-7 and 10 are the defaults");
        }
        if self.ridge_steps == 0 {
            return refuse("ridge_steps", "0 ridges leave nothing to choose".into(), "use 1 or more; 17 is the default");
        }
        if !(self.validation_fraction > 0.0 && self.validation_fraction < 1.0) {
            let found = format!("{} is no share of the documents to choose on", self.validation_fraction);
            return refuse("validation_fraction", found, "use a share above 0 and below 1, or say the ridge with train.pam.ridge");
        }
        if self.block_sweeps == 0 {
            return refuse("block_sweeps", "0 sweeps solve for nothing".into(), "use 1 or more; 10 is the default");
        }
        Ok(())
    }
}
