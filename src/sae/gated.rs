//! Gated SAE (Rajamanoharan et al., "Improving Dictionary Learning with Gated Sparse Autoencoders", arXiv 2404.16014).
//!
//! ```text
//! pi    = (x - b_dec) W_enc^T
//! gate  = 1 where pi + b_gate > 0
//! z     = gate ReLU(exp(r_mag) pi + b_mag)
//! v     = ReLU(pi + b_gate)
//! L     = [ sum |x - z W_dec - b_dec|^2 + l1 sum v + sum |x - v sg(W_dec) - sg(b_dec)|^2 ] / (n d_in)
//! ```
//!
//! The penalty falls on the gate's own path, which has no part in the reconstruction, so that magnitudes are not shrunk. `sg` stops
//! gradients. `b_gate` is the coder's `b_enc`.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use serde_json::Value;

use super::body::Warmup;
use super::parts::{unscaled, Part, Per};
use super::relu::INIT_K;
use super::{Body, GatedConfig, Learner, Start, Step};
use crate::dictionary::{Activation, Dictionary, Provenance};
use crate::error::Result;
use crate::kernels::{decode_codes_onto, encode_threshold, Columns, Role, Term};

/// A Gated SAE in training.
#[derive(Debug)]
pub struct Gated {
    config: GatedConfig,
    /// `b_enc` is the gate's bias.
    body: Body,
    /// `[d_sae]`, f32.
    r_mag: Tensor,
    /// `[d_sae]`, f32.
    b_mag: Tensor,
    warmup: Warmup,
}

impl Gated {
    /// Tied start from `rows` (see `init`).
    ///
    /// # Errors
    /// A tensor operation that fails.
    pub fn new(config: GatedConfig, rows: &Tensor, seed: u64) -> Result<Self> {
        let body = Body::tied(config.d_sae, INIT_K, config.dead_after_tokens, rows, seed)?;
        let zeros = || Tensor::zeros(config.d_sae, DType::F32, rows.device());
        Ok(Self { r_mag: zeros()?, b_mag: zeros()?, warmup: Warmup::new(config.warmup_tokens), config, body })
    }
}

impl Learner for Gated {
    fn body(&self) -> &Body {
        &self.body
    }

    fn body_mut(&mut self) -> &mut Body {
        &mut self.body
    }

    fn adopt(&mut self, start: &Start, _rows: &Tensor) -> Result<()> {
        self.body.adopt(start)?;
        // Without magnitudes of their own, codes are the gate's pre-activations: gain 1, the same bias.
        (self.r_mag, self.b_mag) = match &start.magnitude {
            Some((gain, bias)) => (gain.maximum(f64::from(f32::MIN_POSITIVE))?.log()?, bias.copy()?),
            None => (self.r_mag.zeros_like()?, self.body.coder.b_enc.copy()?),
        };
        Ok(())
    }

    fn step(&mut self, x: &Tensor) -> Result<Step> {
        let (n, d) = x.dims2()?;
        let l1 = self.config.l1 * self.warmup.add(n);
        let coder = &self.body.coder;
        let xc = self.body.centred(x)?;
        let open = encode_threshold(&xc, &coder.w_enc, &coder.b_enc, &coder.b_enc.zeros_like()?)?;
        let gain: Vec<f32> = self.r_mag.exp()?.to_vec1()?;
        let (b_mag, b_gate): (Vec<f32>, Vec<f32>) = (self.b_mag.to_vec1()?, coder.b_enc.to_vec1()?);
        let codes = open.mapped(|j, v| gain[j] * (v - b_gate[j]) + b_mag[j]);
        let error = decode_codes_onto(&codes, &coder.w_dec, &xc, -1.0)?;
        let (gate_error, sq_gate) = decode_codes_onto(&open, &coder.w_dec, &xc, -1.0)?;
        let total: f64 = open.values.iter().map(|&v| f64::from(v)).sum();
        let per_element = 1.0 / (n as f64 * d as f64);
        let mut plain = self.body.plain(xc, Columns::of_codes(&codes), error, None)?;
        plain.loss += (l1 * total + sq_gate) * per_element;
        plain.grad.terms[0].role = Role { bias: false, gain: Some(Arc::new(gain)), sums: true, ..Role::default() };
        let gating = Role { decoder: false, offset: (l1 * per_element) as f32, ..Role::default() };
        plain.grad.terms.push(Term::new(Columns::of_codes(&open), (gate_error * (2.0 * per_element))?, gating));
        Ok(plain.step(vec![
            Part { name: "l1".into(), value: total / d as f64, per: Per::Row },
            Part { name: "fvu_gate".into(), value: sq_gate, per: Per::Spread },
        ]))
    }

    fn extras(&self) -> Vec<(&'static str, &Tensor)> {
        vec![("r_mag", &self.r_mag), ("b_mag", &self.b_mag)]
    }

    fn extra_grads(&self, sums: &[Vec<[f32; 2]>]) -> Result<Vec<Vec<f32>>> {
        let b_mag: Vec<f32> = self.b_mag.to_vec1()?;
        // z = exp(r) pi + b, so exp(r) pi = z - b.
        let r = sums[0].iter().zip(&b_mag).map(|([dz, dz_z], b)| dz_z - b * dz).collect();
        Ok(vec![r, sums[0].iter().map(|[dz, _]| *dz).collect()])
    }

    fn state(&self) -> Value {
        self.warmup.state()
    }

    fn restore(&mut self, state: &Value) {
        self.warmup.restore(state);
    }

    fn finish(&self, scale: f64, _rows: &Tensor) -> Result<Dictionary> {
        let provenance = Provenance { made_by: "gated".into(), ..Default::default() };
        let mut dictionary = Dictionary::new(unscaled(&self.body.coder, scale)?, Activation::Relu, true, provenance)?;
        dictionary.magnitude = Some((self.r_mag.exp()?, (&self.b_mag / scale)?));
        dictionary.activation = Activation::Gated;
        Ok(dictionary)
    }
}
