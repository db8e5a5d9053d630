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
//! `t` marks the point at which the decoder was last solved for. For ReLU the atoms' norms are moved into the encoder after each solve, so
//! that the penalty is on codes of unit atoms; until then `|D_i|` is a constant. The dictionary is saved with unit rows; top-k then ranks
//! by the codes as they were in training (`selection_scale`), so the function is the same.

use candle_core::{DType, Tensor};
use serde_json::Value;

use super::body::Warmup;
use super::parts::{unscaled, Part, Per};
use super::relu::INIT_K;
use super::{Body, Learner, ReluConfig, SaeConfig, Start, Step, TopKConfig};
use crate::codes::Codes;
use crate::dictionary::{Activation, Dictionary, Provenance};
use crate::error::{Error, Result};
use crate::kernels::{decode_codes_onto, encode_threshold, encode_topk, overwrite, Coder, Columns, Pull};

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
        uncentre(&body.coder)?;
        let c = &body.coder;
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

    /// What an atom's encoder is multiplied by for the atom to have unit norm, and the atom itself, `[d_sae]` each. An atom of zeros has
    /// no direction: it and its encoder stay as they are.
    fn scales(&self) -> Result<(Tensor, Tensor)> {
        let norms: Vec<f32> = self.norms()?.into_iter().map(|n| if n > 0.0 && n.is_finite() { n } else { 1.0 }).collect();
        let inverse: Vec<f32> = norms.iter().map(|n| 1.0 / n).collect();
        let (n, device) = (norms.len(), self.body.coder.b_enc.device());
        Ok((Tensor::from_vec(norms, n, device)?, Tensor::from_vec(inverse, n, device)?))
    }
}

/// Folds the `b_dec` that the encoder would subtract into `b_enc`.
fn uncentre(c: &Coder) -> Result<()> {
    let folded = c.w_enc.matmul(&c.b_dec.unsqueeze(1)?)?.squeeze(1)?;
    overwrite(&c.b_enc, &(&c.b_enc - folded)?.to_vec1::<f32>()?)
}

impl Learner for PamEncoder {
    fn body(&self) -> &Body {
        &self.body
    }

    fn body_mut(&mut self) -> &mut Body {
        &mut self.body
    }

    fn adopt(&mut self, start: &Start, _rows: &Tensor) -> Result<()> {
        self.body.adopt(start)?;
        if let (Rule::TopK(_), Some(ranked)) = (&self.rule, &start.ranked) {
            // Atoms may have any norm here: let codes be what latents are ranked by.
            let (c, by) = (&mut self.body.coder, ranked.unsqueeze(1)?);
            c.w_enc = c.w_enc.broadcast_mul(&by)?;
            c.b_enc = (&c.b_enc * ranked)?;
            c.w_dec = c.w_dec.broadcast_div(&by)?;
        }
        uncentre(&self.body.coder)?;
        if let Some(pull) = &mut self.pull {
            (pull.w_enc, pull.b_enc) = (self.body.coder.w_enc.copy()?, self.body.coder.b_enc.copy()?);
        }
        Ok(())
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
        let centred = self.body.centred(x)?;
        let error = decode_codes_onto(&codes, &coder.w_dec, &centred, -1.0)?;
        let mut plain = self.body.plain(x.clone(), Columns::of_codes(&codes), error, aux_k)?;
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
        if let Rule::Relu(..) = self.rule {
            // The same function with unit atoms, which the penalty needs: it shrinks codes, the solve makes up for it by larger atoms,
            // and so on for ever. Top-k has no such pull, and would select otherwise.
            let (norms, inverse) = self.scales()?;
            let c = &self.body.coder;
            let scaled = |t: &Tensor, by: &Tensor| -> Result<Vec<f32>> { Ok(t.broadcast_mul(by)?.flatten_all()?.to_vec1()?) };
            overwrite(&c.w_enc, &scaled(&c.w_enc, &norms.unsqueeze(1)?)?)?;
            overwrite(&c.b_enc, &scaled(&c.b_enc, &norms)?)?;
            overwrite(&c.w_dec, &scaled(&c.w_dec, &inverse.unsqueeze(1)?)?)?;
        }
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
        let (norms, inverse) = self.scales()?;
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

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::kernels::{decode_codes, dense_gradient, measure, Gradient};
    use crate::rng::Rng;
    use crate::sae::AuxKConfig;

    const N: usize = 40;
    const D: usize = 9;
    const M: usize = 26;

    fn random(name: &str, shape: &[usize], scale: f64) -> Tensor {
        let mut rng = Rng::stream(3, name, 0);
        let data: Vec<f32> = (0..shape.iter().product()).map(|_| (rng.normal() * scale) as f32).collect();
        Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
    }

    fn flat(t: &Tensor) -> Vec<f32> {
        t.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Both rules, with atoms of any norm, some distance from where the pulls go.
    fn learners() -> Vec<PamEncoder> {
        let off = AuxKConfig { coef: 0.0, ..AuxKConfig::default() };
        let topk = SaeConfig::TopK(TopKConfig { d_sae: M, k: 4, aux_k: off });
        let relu = SaeConfig::Relu(ReluConfig { d_sae: M, l1: 0.4, warmup_tokens: 1, ..Default::default() });
        let made = [topk, relu].into_iter().map(|config| {
            let learner = PamEncoder::new(&config.resolve(D, 1000).unwrap(), 0.03, 0.02, &random("rows", &[200, D], 1.0), 3).unwrap();
            let c = &learner.body.coder;
            overwrite(&c.w_enc, &flat(&random("w_enc", &[M, D], 0.4))).unwrap();
            overwrite(&c.b_enc, &flat(&random("b_enc", &[M], 0.2))).unwrap();
            let sizes: Vec<f32> = (0..M).map(|j| 0.2 + 0.1 * j as f32).collect();
            let sizes = Tensor::from_vec(sizes, (M, 1), &Device::Cpu).unwrap();
            overwrite(&c.w_dec, &flat(&random("w_dec", &[M, D], 0.4).broadcast_mul(&sizes).unwrap())).unwrap();
            overwrite(&c.b_dec, &flat(&random("b_dec", &[D], 0.3))).unwrap();
            learner
        });
        made.collect()
    }

    #[test]
    fn the_encoders_gradient_is_that_of_the_dense_formulation_and_the_decoder_has_none() {
        let x = random("x", &[N, D], 1.0);
        for mut learner in learners() {
            let made = learner.step(&x).unwrap();
            let Gradient::Sparse(grad) = &made.grad else { unreachable!("there is an encoder") };
            let got = dense_gradient(&learner.body.coder, grad, false);
            let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
            let (c, pull) = (&learner.body.coder, learner.pull.as_ref().unwrap());
            let [w, b] = [&c.w_enc, &c.b_enc].map(|t| Var::from_tensor(&wide(t)).unwrap());
            let mask = wide(&learner.encode(&x).unwrap().to_dense().unwrap()).ne(0f64).unwrap().to_dtype(DType::F64).unwrap();
            let a = wide(&x).matmul(&w.t().unwrap()).unwrap().broadcast_add(b.as_tensor()).unwrap();
            let z = (a * mask).unwrap();
            let xhat = z.matmul(&wide(&c.w_dec)).unwrap().broadcast_add(&wide(&c.b_dec)).unwrap();
            let sum = |t: Tensor| t.sum_all().unwrap();
            let sq = |t: Tensor| sum(t.sqr().unwrap());
            let per_element = 1.0 / (N * D) as f64;
            let mut loss = (sq((xhat - wide(&x)).unwrap()) * per_element).unwrap();
            if let Rule::Relu(config, _) = &learner.rule {
                let norms = wide(&c.w_dec).sqr().unwrap().sum(1).unwrap().sqrt().unwrap();
                loss = (loss + (sum(z.broadcast_mul(&norms).unwrap()) * (config.l1 * per_element)).unwrap()).unwrap();
            }
            loss = (loss + (sq((w.as_tensor() - wide(&pull.w_enc)).unwrap()) * 0.03).unwrap()).unwrap();
            loss = (loss + (sq((b.as_tensor() - wide(&pull.b_enc)).unwrap()) * 0.02).unwrap()).unwrap();
            assert!((made.loss / loss.to_scalar::<f64>().unwrap() - 1.0).abs() < 1e-5);
            let autograd = loss.backward().unwrap();
            let norm = |t: &Tensor| sq(t.clone()).to_scalar::<f64>().unwrap().sqrt();
            let mut all = 0.0;
            for (got, var) in [(&got.w_enc, &w), (&got.b_enc, &b)] {
                let want = autograd.get(var).unwrap();
                let error = norm(&(wide(got) - want).unwrap()) / norm(want);
                assert!(error < 1e-5, "{error}");
                all += norm(want).powi(2);
            }
            assert!(norm(&wide(&got.w_dec)) == 0.0 && norm(&wide(&got.b_dec)) == 0.0);
            assert!((measure(c, grad, false).unwrap().sq_norm / all - 1.0).abs() < 1e-5);
        }
    }

    #[test]
    fn unit_atoms_are_the_same_function() {
        let x = random("x", &[N, D], 1.0);
        for mut learner in learners() {
            let c = learner.body.coder.clone();
            let codes = learner.codes(&x).unwrap();
            let want = decode_codes(&codes, &c.w_dec, Some(&c.b_dec)).unwrap();
            let far = |a: &Tensor, b: &Tensor| flat(&(a - b).unwrap()).into_iter().fold(0f32, |m, v| m.max(v.abs()));
            let scale = 2.5;
            let check = |learner: &PamEncoder| {
                let dictionary = learner.finish(scale, &x).unwrap();
                assert!(dictionary.atom_norms().unwrap().iter().all(|n| (n - 1.0).abs() < 1e-5));
                let dir = tempfile::tempdir().unwrap();
                dictionary.save(dir.path()).unwrap();
                for d in [&dictionary, &Dictionary::load(dir.path()).unwrap()] {
                    let (found, xhat) = d.reconstruct(&(&x / scale).unwrap()).unwrap();
                    for r in 0..N {
                        let sorted = |codes: &Codes| {
                            let mut row = codes.row(r).0.to_vec();
                            row.sort_unstable();
                            row
                        };
                        assert_eq!(sorted(&found), sorted(&codes));
                    }
                    assert!(far(&(xhat * scale).unwrap(), &want) < 2e-5);
                }
                dictionary
            };
            let mut dictionary = check(&learner);
            if dictionary.selection_scale.take().is_some() {
                let others = dictionary.encode(&(&x / scale).unwrap()).unwrap();
                assert!(others.indices != codes.indices, "the scale is what keeps the selection");
            }
            // A dictionary that was solved for is a start that goes on with the same function.
            let whole = learner.finish(scale, &x).unwrap();
            let config = match &learner.rule {
                Rule::TopK(c) => SaeConfig::TopK(c.clone()),
                Rule::Relu(c, _) => SaeConfig::Relu(c.clone()),
            };
            let mut again = PamEncoder::new(&config, 0.1, 0.1, &x, 8).unwrap();
            again.adopt(&Start::new(&whole, scale).unwrap(), &x).unwrap();
            check(&again);
            // What ReLU's coder becomes after a solve is the same function too; top-k's is left alone; pulls go to where it is now.
            learner.solved().unwrap();
            check(&learner);
            let (c, pull) = (&learner.body.coder, learner.pull.as_ref().unwrap());
            assert!(far(&c.w_enc, &pull.w_enc) == 0.0 && far(&c.b_enc, &pull.b_enc) == 0.0);
        }
    }

    #[test]
    fn the_start_is_the_tied_one_without_its_shift() {
        let x = (random("x", &[N, D], 1.0) + 0.7).unwrap();
        let config = SaeConfig::TopK(TopKConfig { d_sae: M, k: 4, ..Default::default() }).resolve(D, 1000).unwrap();
        let solved = PamEncoder::new(&config, 0.0, 0.0, &x, 3).unwrap();
        let learned = crate::sae::build(&config, &x, 3).unwrap();
        let one = solved.codes(&x).unwrap();
        let other = learned.finish(1.0, &x).unwrap().encode(&x).unwrap();
        assert_eq!(one.indices, other.indices);
        assert!(one.values.iter().zip(&other.values).all(|(a, b)| (a - b).abs() < 1e-5));
        assert!(solved.anchors().is_empty());
    }
}
