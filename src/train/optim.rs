//! Adam over a coder's parameters: clip by the global norm, then one fused pass in the kernels. Moments are reachable, so that a
//! checkpoint can hold them.

use candle_core::Tensor;

use crate::error::Result;
use crate::kernels::{overwrite, vector_update, Adam, Gradient, Moments};
use crate::sae::Learner;

use super::TrainConfig;

/// Adam's state for one learner.
#[derive(Debug)]
pub struct Optimizer {
    /// First and second moments.
    pub moments: Moments,
    /// The same for the learner's other parameters, in their order.
    pub extras: Vec<[Tensor; 2]>,
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
    pub fn new(config: &TrainConfig, learner: &dyn Learner) -> Result<Self> {
        let extras = learner.extras().iter().map(|(_, t)| Ok([t.zeros_like()?, t.zeros_like()?])).collect::<Result<_>>()?;
        Ok(Self {
            moments: Moments::zeros(learner.coder())?,
            extras,
            step: 0,
            beta1: config.beta1,
            beta2: config.beta2,
            eps: config.eps,
            clip_norm: config.clip_norm,
        })
    }

    /// Adam's settings for one more step, without clipping.
    pub fn next(&mut self, lr: f64) -> Adam {
        self.step += 1;
        Adam { lr, beta1: self.beta1, beta2: self.beta2, eps: self.eps, step: self.step, grad_scale: 1.0 }
    }

    /// One step in place; returns the gradient's norm before clipping.
    /// A gradient whose norm is not finite is not applied: the caller sees it in the returned norm.
    ///
    /// # Errors
    /// A tensor operation that fails.
    pub fn apply(&mut self, learner: &dyn Learner, grad: &Gradient, lr: f64) -> Result<f64> {
        let (coder, unit_norm) = (learner.coder(), learner.unit_norm());
        let measured = grad.measure(coder, unit_norm)?;
        let extras = learner.extra_grads(&measured.sums)?;
        let of_extras: f64 = extras.iter().flatten().map(|g| f64::from(*g) * f64::from(*g)).sum();
        let norm = (measured.sq_norm + of_extras).sqrt();
        if !norm.is_finite() {
            return Ok(norm);
        }
        let grad_scale = if self.clip_norm > 0.0 && norm > self.clip_norm { self.clip_norm / norm } else { 1.0 };
        let adam = Adam { grad_scale, ..self.next(lr) };
        grad.update(coder, &self.moments, &measured, &adam, unit_norm)?;
        for (((_, parameter), [first, second]), grad) in learner.extras().into_iter().zip(&self.extras).zip(&extras) {
            let read = |t: &Tensor| -> Result<Vec<f32>> { Ok(t.to_vec1()?) };
            let (mut p, mut m, mut v) = (read(parameter)?, read(first)?, read(second)?);
            vector_update(&mut p, &mut m, &mut v, grad, &adam);
            overwrite(parameter, &p)?;
            overwrite(first, &m)?;
            overwrite(second, &v)?;
        }
        Ok(norm)
    }
}
