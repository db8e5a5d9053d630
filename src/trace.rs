//! Which latents fire on each token of a text.
//!
//! Rows are read at one hook point as a harvest reads them: special tokens, and a first token without BOS, are shown but not encoded,
//! unless asked for ([`Reading`]). The harvest's outlier rule takes no part: a text is too short for a median. Not for: corpora
//! (`encode`), or what a latent means (feature tables).

mod prompt;

use candle_core::{Device, Tensor};
use serde::Serialize;

use crate::dictionary::Dictionary;
use crate::error::{Error, Result};
use crate::hook::HookPoint;
use crate::host::{Capture, HostModel, Tokens};

pub(crate) use prompt::{mask, spelled};
pub use prompt::{Prompt, Reading};

/// A latent that fires.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Active {
    /// Its index.
    pub latent: u32,
    /// Its code, in units of the dictionary's codes.
    pub value: f32,
}

/// One token of a text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TracedToken {
    /// In its text, from 0; a BOS counts.
    pub position: usize,
    /// Token id.
    pub id: u32,
    /// As the vocabulary spells it.
    pub token: String,
    /// The rule that masks it, `special` or `first`: it was not encoded.
    pub masked: Option<&'static str>,
    /// Euclidean norm of the activation.
    pub norm: f64,
    /// `||x - xhat||^2 / ||x||^2`; absent where nothing was encoded, or the dictionary writes elsewhere than it reads.
    pub nmse: Option<f64>,
    /// The latents that fire, strongest first.
    pub active: Vec<Active>,
}

/// What fires on one text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Trace {
    /// What was read.
    pub text: String,
    /// Where.
    pub hook: String,
    /// `sum ||x - xhat||^2 / sum ||x - mean x||^2` over the encoded tokens of this text (mean over them too); absent as `nmse` is, and where
    /// they do not vary.
    pub fvu: Option<f64>,
    /// Token by token.
    pub tokens: Vec<TracedToken>,
}

/// Runs the host over a prompt and encodes what it sees at `at`.
///
/// # Errors
/// A hook point that the host has not, or whose width the dictionary does not read; a host that fails.
pub fn trace(host: &dyn HostModel, at: &HookPoint, dictionary: &Dictionary, prompt: &Prompt) -> Result<Trace> {
    check_width(host, at, dictionary)?;
    let mut capture = Capture::new(&[*at]);
    host.forward(&Tokens::new(std::slice::from_ref(&prompt.ids), &Device::Cpu)?, &mut capture)?;
    let t = prompt.ids.len();
    let x = capture.take(at)?.to_device(&Device::Cpu)?.reshape((t, dictionary.d_in()))?;
    let encoded: Vec<u32> = (0u32..).zip(&prompt.masked).filter(|(_, m)| m.is_none()).map(|(i, _)| i).collect();
    let rows: Vec<Vec<f32>> = x.to_vec2()?;
    let mut tokens: Vec<TracedToken> = (0..t)
        .map(|i| TracedToken {
            position: i,
            id: prompt.ids[i],
            token: prompt.tokens[i].clone(),
            masked: prompt.masked[i],
            norm: sum_sq(rows[i].iter().map(|&v| f64::from(v))).sqrt(),
            nmse: None,
            active: Vec::new(),
        })
        .collect();
    let mut fvu = None;
    if !encoded.is_empty() {
        let chosen = x.index_select(&Tensor::from_slice(&encoded, encoded.len(), &Device::Cpu)?, 0)?.to_device(dictionary.device())?;
        let (codes, xhat) = dictionary.reconstruct(&chosen)?;
        for (r, &i) in encoded.iter().enumerate() {
            let (indices, values) = codes.row(r);
            tokens[i as usize].active = indices.iter().zip(values).map(|(&latent, &value)| Active { latent, value }).collect();
        }
        if dictionary.d_in() == dictionary.d_out() {
            let xhat: Vec<Vec<f32>> = xhat.to_device(&Device::Cpu)?.to_vec2()?;
            let mut mean = vec![0f64; dictionary.d_in()];
            for &i in &encoded {
                mean.iter_mut().zip(&rows[i as usize]).for_each(|(m, &v)| *m += f64::from(v) / encoded.len() as f64);
            }
            let (mut error, mut spread) = (0.0, 0.0);
            for (&i, xhat) in encoded.iter().zip(&xhat) {
                let (x, token) = (&rows[i as usize], &mut tokens[i as usize]);
                let e = sum_sq(x.iter().zip(xhat).map(|(&a, &b)| f64::from(a) - f64::from(b)));
                token.nmse = (token.norm > 0.0).then(|| e / token.norm.powi(2));
                error += e;
                spread += sum_sq(x.iter().zip(&mean).map(|(&a, m)| f64::from(a) - m));
            }
            fvu = (spread > 0.0).then(|| error / spread);
        }
    }
    Ok(Trace { text: prompt.text.clone(), hook: at.to_string(), fvu, tokens })
}

impl Trace {
    /// Leaves only these latents, in their order by value; none given leaves all.
    #[must_use]
    pub fn only(mut self, latents: &[u32]) -> Self {
        if !latents.is_empty() {
            self.tokens.iter_mut().for_each(|t| t.active.retain(|a| latents.contains(&a.latent)));
        }
        self
    }
}

/// Does the dictionary read what the host has at `at`?
pub(crate) fn check_width(host: &dyn HostModel, at: &HookPoint, dictionary: &Dictionary) -> Result<()> {
    let width = host.width(at)?;
    if width == dictionary.d_in() {
        return Ok(());
    }
    let own = &dictionary.provenance.hook;
    let trained = if own.is_empty() { String::new() } else { format!(" (it was trained on {own})") };
    Err(Error::Width {
        what: format!("{at} of {}", host.info().name),
        expected: dictionary.d_in(),
        got: width,
        help: format!("name the host and the hook point that the dictionary reads{trained}"),
    })
}

fn sum_sq(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::Tokenizer;
    use crate::dictionary::{Activation, Provenance};
    use crate::host::{self, LoadOptions};
    use crate::kernels::Coder;

    /// Latent j is dimension j of the row, for as many as wanted.
    fn axes(d_sae: usize, d: usize) -> Dictionary {
        let eye: Vec<f32> = (0..d_sae * d).map(|i| f32::from(u8::from(i % d == i / d))).collect();
        let w = Tensor::from_vec(eye, (d_sae, d), &Device::Cpu).unwrap();
        let zeros = |n: usize| Tensor::zeros(n, candle_core::DType::F32, &Device::Cpu).unwrap();
        let coder = Coder { w_enc: w.clone(), b_enc: zeros(d_sae), w_dec: w, b_dec: zeros(d) };
        Dictionary::new(coder, Activation::Relu, true, Provenance { hook: "blocks.1.hook_resid_post".into(), ..Provenance::default() })
            .unwrap()
    }

    #[test]
    fn codes_norms_and_errors_are_those_of_the_rows() {
        let host = host::load("fable", &LoadOptions::default()).unwrap();
        let tokenizer = Tokenizer::fable().unwrap();
        let at: HookPoint = "blocks.1.hook_resid_post".parse().unwrap();
        let d = host.width(&at).unwrap();
        let prompt = Prompt::new("one sunny day , a boy", host.info(), &tokenizer, Reading::default()).unwrap();
        let traced = trace(host.as_ref(), &at, &axes(d, d), &prompt).unwrap();
        let mut capture = Capture::new(&[at]);
        host.forward(&Tokens::new(std::slice::from_ref(&prompt.ids), &Device::Cpu).unwrap(), &mut capture).unwrap();
        let x: Vec<Vec<f32>> = capture.get(&at).unwrap().get(0).unwrap().to_vec2().unwrap();
        assert!(traced.tokens[0].masked == Some("special") && traced.tokens[0].active.is_empty() && traced.tokens[0].nmse.is_none());
        let (mut lost, mut n) = (0.0, 0);
        for (token, x) in traced.tokens.iter().zip(&x).skip(1) {
            let mut expected: Vec<(u32, f32)> = (0..).zip(x.iter().copied()).filter(|e| e.1 > 0.0).collect();
            expected.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            assert_eq!(token.active.iter().map(|a| (a.latent, a.value)).collect::<Vec<_>>(), expected);
            // What ReLU loses: the negative half.
            let negative: f64 = x.iter().map(|&v| f64::from(v.min(0.0)).powi(2)).sum();
            assert!((token.nmse.unwrap() - negative / token.norm.powi(2)).abs() < 1e-6);
            lost += negative;
            n += 1;
        }
        assert!(n == 6 && lost > 0.0 && traced.fvu.unwrap() > 0.0);
        let one = traced.clone().only(&[3]);
        assert!(one.tokens.iter().all(|t| t.active.iter().all(|a| a.latent == 3)));
        assert_eq!(traced.clone().only(&[]), traced);
        let error = trace(host.as_ref(), &at, &axes(4, d + 1), &prompt).unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().contains("blocks.1.hook_resid_post"), "{error}");
    }
}
