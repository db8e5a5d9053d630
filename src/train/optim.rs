//! Adam over a coder's parameters: clip by the global norm, then one fused pass in the kernels. Moments are reachable, so that a
//! checkpoint can hold them.

use crate::error::Result;
use crate::kernels::{Adam, Coder, Gradient, Moments};

use super::TrainConfig;

/// Adam's state for one learner.
#[derive(Debug)]
pub struct Optimizer {
    /// First and second moments.
    pub moments: Moments,
    /// Steps taken.
    pub step: u64,
    beta1: f64,
    beta2: f64,
    eps: f64,
    clip_norm: f64,
}

impl Optimizer {
    /// At rest.
    ///
    /// # Errors
    /// When memory cannot be allocated.
    pub fn new(config: &TrainConfig, coder: &Coder) -> Result<Self> {
        Ok(Self {
            moments: Moments::zeros(coder)?,
            step: 0,
            beta1: config.beta1,
            beta2: config.beta2,
            eps: config.eps,
            clip_norm: config.clip_norm,
        })
    }

    /// One step in place; returns the gradient's norm before clipping.
    /// A gradient whose norm is not finite is not applied: the caller sees it in the returned norm.
    ///
    /// # Errors
    /// A tensor operation that fails.
    pub fn apply(&mut self, coder: &Coder, grad: &Gradient, lr: f64, unit_norm: bool) -> Result<f64> {
        let measured = grad.measure(coder, unit_norm)?;
        let norm = measured.sq_norm.sqrt();
        if !norm.is_finite() {
            return Ok(norm);
        }
        self.step += 1;
        let grad_scale = if self.clip_norm > 0.0 && norm > self.clip_norm { self.clip_norm / norm } else { 1.0 };
        let adam = Adam { lr, beta1: self.beta1, beta2: self.beta2, eps: self.eps, step: self.step, grad_scale };
        grad.update(coder, &self.moments, &measured, &adam, unit_norm)?;
        Ok(norm)
    }
}
