//! Adam's state and rule (Kingma & Ba, arXiv 1412.6980).

use candle_core::Tensor;

use super::dispatch::dispatched;
use super::vector::sq_norm;
use crate::error::Result;
use crate::kernels::Coder;

/// Adam's settings at one step (Kingma & Ba, arXiv 1412.6980; no weight decay).
#[derive(Debug, Clone, Copy)]
pub struct Adam {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Step, from 1 (bias correction).
    pub step: u64,
    /// Factor on the gradient, 1 or less when clipping.
    pub grad_scale: f64,
}

/// First and second moments of a [`Coder`]'s four tensors, of the same shapes.
#[derive(Debug, Clone)]
pub struct Moments {
    /// First moments.
    pub first: Coder,
    /// Second moments.
    pub second: Coder,
}

impl Moments {
    /// Zeros for `coder`.
    ///
    /// # Errors
    /// When memory cannot be allocated.
    pub fn zeros(coder: &Coder) -> Result<Self> {
        let zeros = || -> Result<Coder> {
            Ok(Coder {
                w_enc: coder.w_enc.zeros_like()?,
                b_enc: coder.b_enc.zeros_like()?,
                w_dec: coder.w_dec.zeros_like()?,
                b_dec: coder.b_dec.zeros_like()?,
            })
        };
        Ok(Self { first: zeros()?, second: zeros()? })
    }

    /// First and second moment of `w_enc`, `b_enc`, `w_dec` and `b_dec`.
    pub fn pairs(&self) -> [[&Tensor; 2]; 4] {
        let (m, v) = (&self.first, &self.second);
        [[&m.w_enc, &v.w_enc], [&m.b_enc, &v.b_enc], [&m.w_dec, &v.w_dec], [&m.b_dec, &v.b_dec]]
    }
}

/// Adam on slices, constants folded once per step.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Rule {
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    /// `lr / (1 - beta1^t)`.
    pub step_size: f32,
    /// `1 / sqrt(1 - beta2^t)`.
    pub root_correction: f32,
    grad_scale: f32,
}

impl Rule {
    pub fn new(adam: &Adam) -> Self {
        let t = adam.step as f64;
        Self {
            beta1: adam.beta1 as f32,
            beta2: adam.beta2 as f32,
            eps: adam.eps as f32,
            step_size: (adam.lr / (1.0 - adam.beta1.powf(t))) as f32,
            root_correction: (1.0 / (1.0 - adam.beta2.powf(t)).sqrt()) as f32,
            grad_scale: adam.grad_scale as f32,
        }
    }

    /// A step of parameters `p` with moments `m` and `v` along `g`.
    pub(super) fn apply(&self, p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32]) {
        step(self, p, m, v, g);
    }

    /// The same, after which `p` has norm 1.
    pub(super) fn apply_on_sphere(&self, p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32]) {
        step_on_sphere(self, p, m, v, g);
    }
}

#[inline(always)]
fn step_body(rule: &Rule, p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32]) {
    for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
        let g = g * rule.grad_scale;
        *m = rule.beta1 * *m + (1.0 - rule.beta1) * g;
        *v = rule.beta2 * *v + (1.0 - rule.beta2) * g * g;
        *p -= rule.step_size * *m / (v.sqrt() * rule.root_correction + rule.eps);
    }
}

#[inline(always)]
fn step_on_sphere_body(rule: &Rule, p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32]) {
    step_body(rule, p, m, v, g);
    let norm = sq_norm(p).sqrt();
    if norm > 0.0 {
        p.iter_mut().for_each(|w| *w /= norm);
    }
}

dispatched! { fn step(rule: &Rule, p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32]) = step_body }
dispatched! { fn step_on_sphere(rule: &Rule, p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32]) = step_on_sphere_body }

/// Adam on one vector of parameters, in place.
pub fn vector_update(parameter: &mut [f32], first: &mut [f32], second: &mut [f32], grad: &[f32], adam: &Adam) {
    Rule::new(adam).apply(parameter, first, second, grad);
}
