//! The encoder's half of PAM-SGD (SplInterp, arXiv 2505.11836): gradient steps on the encoder alone, the decoder held still. The other
//! half, which solves for the decoder, is `train`'s.
//!
//! ```text
//! a    = x W_enc^T + b_enc                 (b_dec is not subtracted: it jumps when the decoder is solved for)
//! z    = the k largest positive a, or ReLU(a)
//! xhat = z W_dec + b_dec                   (no gradient to either)
//! L    = [ sum |x - xhat|^2 (+ l1 sum_i z_i |D_i|) ] / (n d_in) + mu |W_enc - W_enc^t|^2 + nu |b_enc - b_enc^t|^2 (+ AuxK)
//! ```
//!
//! `t` marks the point at which the decoder was last solved for. Within such an epoch `|D_i|` is a constant weight of the L1 penalty, so
//! that the penalty does not depend on how a code's size is split between z and D. The dictionary is saved with unit rows; top-k then
//! ranks by the codes as they were in training (`selection_scale`), so the function is the same.

use candle_core::{DType, Tensor};
use serde_json::Value;

use super::body::Warmup;
use super::parts::{unscaled, Part, Per};
use super::relu::INIT_K;
use super::{Body, Learner, ReluConfig, SaeConfig, Step, TopKConfig};
use crate::codes::Codes;
use crate::dictionary::{Activation, Dictionary, Provenance};
use crate::error::{Error, Result};
use crate::kernels::{decode_codes, encode_threshold, encode_topk, overwrite, Coder, Columns, Pull};

/// Which codes.
#[derive(Debug)]
enum Rule {
    TopK(TopKConfig),
    Relu(ReluConfig, Warmup),
}

/// A coder whose encoder learns by gradients, while its decoder waits to be solved for.
#[derive(Debug)]
pub struct PamEncoder {
    rule: Rule,
    body: Body,
    pull: Option<Pull>,
}

fn unsupported(config: &SaeConfig) -> Error {
    Error::config(
        "train.pam",
        format!("PAM-SGD solves for the decoder of topk and relu, and this is {}", config.arch()),
        "use arch = \"topk\" or \"relu\", or leave train.pam out",
    )
}

impl PamEncoder {
    /// Can this variant's decoder be solved for?
    ///
    /// # Errors
    /// When it cannot.
    pub fn supports(config: &SaeConfig) -> Result<()> {
        match config {
            SaeConfig::TopK(_) | SaeConfig::Relu(_) => Ok(()),
            other => Err(unsupported(other)),
        }
    }

    /// The learner of `config`, at its tied start with `b_dec` folded into `b_enc`. `mu` and `nu` weigh the pulls of `W_enc` and `b_enc`
    /// in the mean loss.
    ///
    /// # Errors
    /// A variant other than `topk` and `relu`.
    pub fn new(config: &SaeConfig, mu: f64, nu: f64, rows: &Tensor, seed: u64) -> Result<Self> {
        let (rule, k, dead_after_tokens) = match config {
            SaeConfig::TopK(c) => (Rule::TopK(c.clone()), c.k, c.aux_k.dead_after_tokens),
            SaeConfig::Relu(c) => (Rule::Relu(c.clone(), Warmup::new(c.warmup_tokens)), INIT_K, c.dead_after_tokens),
            other => return Err(unsupported(other)),
        };
        let body = Body::tied(config.d_sae(), k, dead_after_tokens, rows, seed)?;
        let c = &body.coder;
        let folded = c.w_enc.matmul(&c.b_dec.unsqueeze(1)?)?.squeeze(1)?;
        overwrite(&c.b_enc, &(&c.b_enc - folded)?.to_vec1::<f32>()?)?;
        let pulled = mu != 0.0 || nu != 0.0;
        let pull = pulled.then(|| -> Result<_> {
            Ok(Pull { w_enc: c.w_enc.copy()?, b_enc: c.b_enc.copy()?, weight: mu as f32, bias_weight: nu as f32 })
        });
        Ok(Self { rule, pull: pull.transpose()?, body })
    }

    fn encode(&self, x: &Tensor) -> Result<Codes> {
        let c = &self.body.coder;
        match &self.rule {
            Rule::TopK(config) => encode_topk(x, &c.w_enc, &c.b_enc, config.k, None)?.to_codes(config.d_sae),
            Rule::Relu(..) => encode_threshold(x, &c.w_enc, &c.b_enc, &c.b_enc.zeros_like()?),
        }
    }

    fn norms(&self) -> Result<Vec<f32>> {
        Ok(self.body.coder.w_dec.sqr()?.sum(1)?.sqrt()?.to_vec1()?)
    }
}

impl Learner for PamEncoder {
    fn body(&self) -> &Body {
        &self.body
    }

    fn body_mut(&mut self) -> &mut Body {
        &mut self.body
    }

    fn unit_norm(&self) -> bool {
        false
    }

    fn step(&mut self, x: &Tensor) -> Result<Step> {
        let (n, d) = x.dims2()?;
        let per_element = 1.0 / (n as f64 * d as f64);
        let codes = self.encode(x)?;
        let penalty = match &mut self.rule {
            Rule::TopK(_) => None,
            Rule::Relu(config, warmup) => Some(config.l1 * warmup.add(n) * per_element),
        };
        let aux_k = if let Rule::TopK(config) = &self.rule { Some(&config.aux_k) } else { None };
        let coder = &self.body.coder;
        let xhat = decode_codes(&codes, &coder.w_dec, Some(&coder.b_dec))?;
        let mut plain = self.body.plain(x, x.clone(), Columns::of_codes(&codes), &xhat, aux_k)?;
        let mut parts = Vec::new();
        if let Some(penalty) = penalty {
            let norms = self.norms()?;
            let weighted: f64 = codes.indices.iter().zip(&codes.values).map(|(&j, &v)| f64::from(norms[j as usize]) * f64::from(v)).sum();
            plain.loss += penalty * weighted;
            plain.grad.terms[0].role.norm_penalty = penalty as f32;
            parts.push(Part { name: "l1".into(), value: weighted / d as f64, per: Per::Row });
        }
        for term in &mut plain.grad.terms {
            term.role.decoder = false;
        }
        plain.grad.b_dec = plain.grad.b_dec.zeros_like()?;
        plain.grad.centred = false;
        if let Some(pull) = &self.pull {
            let c = &self.body.coder;
            let from = |a: &Tensor, b: &Tensor| -> Result<f64> { Ok((a - b)?.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()?) };
            let (mu, nu) = (f64::from(pull.weight), f64::from(pull.bias_weight));
            let value = mu * from(&c.w_enc, &pull.w_enc)? + nu * from(&c.b_enc, &pull.b_enc)?;
            plain.loss += value;
            parts.push(Part { name: "proximal".into(), value, per: Per::Step });
            plain.grad.pull = Some(pull.clone());
        }
        Ok(plain.step(parts))
    }

    fn codes(&self, x: &Tensor) -> Result<Codes> {
        self.encode(x)
    }

    fn solved(&mut self) -> Result<()> {
        if let Some(pull) = &self.pull {
            let c = &self.body.coder;
            overwrite(&pull.w_enc, &c.w_enc.flatten_all()?.to_vec1::<f32>()?)?;
            overwrite(&pull.b_enc, &c.b_enc.to_vec1::<f32>()?)?;
        }
        Ok(())
    }

    fn anchors(&self) -> Vec<(&'static str, &Tensor)> {
        self.pull.iter().flat_map(|p| [("w_enc", &p.w_enc), ("b_enc", &p.b_enc)]).collect()
    }

    fn state(&self) -> Value {
        match &self.rule {
            Rule::TopK(_) => Value::Null,
            Rule::Relu(_, warmup) => warmup.state(),
        }
    }

    fn restore(&mut self, state: &Value) {
        if let Rule::Relu(_, warmup) = &mut self.rule {
            warmup.restore(state);
        }
    }

    fn finish(&self, scale: f64, _rows: &Tensor) -> Result<Dictionary> {
        let c = unscaled(&self.body.coder, scale)?;
        // An atom of zeros has no direction: it and its encoder stay as they are.
        let norms: Vec<f32> = self.norms()?.into_iter().map(|n| if n > 0.0 && n.is_finite() { n } else { 1.0 }).collect();
        let inverse: Vec<f32> = norms.iter().map(|n| 1.0 / n).collect();
        let n = norms.len();
        let (norms, inverse) = (Tensor::from_vec(norms, n, c.b_enc.device())?, Tensor::from_vec(inverse, n, c.b_enc.device())?);
        let coder = Coder {
            w_enc: c.w_enc.broadcast_mul(&norms.unsqueeze(1)?)?,
            b_enc: (&c.b_enc * &norms)?,
            w_dec: c.w_dec.broadcast_mul(&inverse.unsqueeze(1)?)?,
            b_dec: c.b_dec,
        };
        let (activation, made_by) = match &self.rule {
            Rule::TopK(config) => (Activation::TopK { k: config.k }, "topk"),
            Rule::Relu(..) => (Activation::Relu, "relu"),
        };
        let provenance = Provenance { made_by: format!("pam-{made_by}"), ..Default::default() };
        let mut dictionary = Dictionary::new(coder, activation, false, provenance)?;
        if matches!(self.rule, Rule::TopK(_)) {
            dictionary.selection_scale = Some(inverse);
        }
        Ok(dictionary)
    }
}
