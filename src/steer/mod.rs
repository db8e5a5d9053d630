//! Text from a host whose latents are changed, beside the text it would have written.
//!
//! A prompt is continued twice, unsteered and with [`Edit`]s made at one hook point by [`Edited`]; both draw with the same random numbers,
//! so what differs is what the edits did. On the steered text the two next-token distributions are compared position by position.
//! Masked positions (special tokens, a first token without BOS) are never changed: the dictionary has not seen their like.
//! Hosts keep no cache, so each token is a pass over all before it. Not for: whole corpora, or which latents to change (`trace`).

mod edit;
mod sampling;
mod tap;

use candle_core::{DType, Device, Tensor};
use serde::Serialize;

use crate::corpus::Tokenizer;
use crate::dictionary::Dictionary;
use crate::error::{Error, Result};
use crate::hook::HookPoint;
use crate::host::{HostModel, NoTap, Tap, Tokens};
use crate::progress::Progress;
use crate::rng::Rng;
use crate::trace::{mask, spelled, Prompt};

pub use edit::{Change, Edit};
pub use sampling::Sampling;
pub use tap::Edited;

/// Which positions are changed, of those that are not masked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Positions {
    /// All.
    #[default]
    All,
    /// Those of the prompt.
    Prompt,
    /// Those after it.
    Generated,
    /// From this one on, counted from 0 with BOS.
    From(usize),
}

impl Positions {
    fn admit(self, at: usize, prompt: usize) -> bool {
        match self {
            Self::All => true,
            Self::Prompt => at < prompt,
            Self::Generated => at >= prompt,
            Self::From(first) => at >= first,
        }
    }
}

/// How to steer.
#[derive(Debug, Clone, PartialEq)]
pub struct SteerConfig {
    /// Changes of latents, each latent once.
    pub edits: Vec<Edit>,
    /// Is what the dictionary does not reconstruct kept? Otherwise changed positions become the reconstruction from the changed codes.
    pub keep_error: bool,
    /// Where.
    pub positions: Positions,
    /// Tokens to write at most; a text also ends with an end-of-text token, or where the host's context is full.
    pub n_tokens: usize,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// Texts to draw.
    pub samples: usize,
    /// Of the draws: stream "steer", one per sample.
    pub seed: u64,
    /// How many of the most changed next tokens to report.
    pub top: usize,
}

impl Default for SteerConfig {
    fn default() -> Self {
        Self {
            edits: Vec::new(),
            keep_error: true,
            positions: Positions::All,
            n_tokens: 40,
            sampling: Sampling::default(),
            samples: 1,
            seed: 0,
            top: 10,
        }
    }
}

/// A token of the steered text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SteeredToken {
    /// Token id.
    pub id: u32,
    /// As the vocabulary spells it.
    pub token: String,
    /// KL(unsteered || steered) of the distributions that it was drawn from, given the same text before it; nats.
    pub kl: f64,
}

/// A continuation without and with the edits.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sample {
    /// What the host writes untouched, with the same draws; the prompt is not part of it.
    pub unsteered: String,
    /// What it writes with the edits.
    pub steered: String,
    /// Token by token.
    pub tokens: Vec<SteeredToken>,
    /// Mean of their KL, nats per token.
    pub mean_kl: f64,
}

/// A next token after the prompt, and what the edits did to it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Shift {
    /// Token id.
    pub id: u32,
    /// As the vocabulary spells it.
    pub token: String,
    /// Its probability without the edits.
    pub before: f64,
    /// And with them.
    pub after: f64,
}

/// What came of steering one prompt.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Steered {
    /// The prompt.
    pub text: String,
    /// Tokens of it.
    pub prompt_tokens: usize,
    /// Where latents were changed.
    pub hook: String,
    /// How.
    pub edits: Vec<Edit>,
    /// At which positions.
    pub positions: Positions,
    /// Was the reconstruction's error kept?
    pub error_kept: bool,
    /// The texts.
    pub samples: Vec<Sample>,
    /// KL(unsteered || steered) of the next token after the prompt, nats.
    pub prompt_kl: f64,
    /// The next tokens whose probability changed most, greatest change first.
    pub shifts: Vec<Shift>,
}

/// A host with a prompt and what is to be done to it.
struct Stage<'a> {
    host: &'a dyn HostModel,
    tokenizer: &'a Tokenizer,
    at: HookPoint,
    dictionary: &'a Dictionary,
    prompt: &'a Prompt,
    config: &'a SteerConfig,
}

/// Continues a prompt without and with edits. The same arguments give the same texts, whatever the number of threads.
///
/// # Errors
/// No edit, an impossible one or one twice, a dictionary of another width or that writes elsewhere than it reads, impossible sampling, a host
/// that fails or whose logits are not finite, cancellation.
pub fn steer(
    host: &dyn HostModel,
    tokenizer: &Tokenizer,
    at: &HookPoint,
    dictionary: &Dictionary,
    prompt: &Prompt,
    config: &SteerConfig,
    progress: &dyn Progress,
) -> Result<Steered> {
    tap::check(host, at, dictionary, &config.edits)?;
    config.sampling.check(config.samples)?;
    if config.edits.is_empty() {
        return Err(Error::request("nothing is to be changed", "name a latent and what to do to it, as in 12=+8"));
    }
    let stage = Stage { host, tokenizer, at: *at, dictionary, prompt, config };
    let ids = std::slice::from_ref(&prompt.ids);
    let (before, after) = (stage.last_logits(ids, false)?.remove(0), stage.last_logits(ids, true)?.remove(0));
    let (prompt_kl, shifts) = (divergence(&before, &after)?, stage.shifts(&before, &after)?);
    progress.begin("steer", Some(2 * config.n_tokens as u64), "tokens");
    let unsteered = stage.write(false, progress)?;
    let steered = stage.write(true, progress)?;
    progress.end();
    let samples = unsteered.into_iter().zip(steered).map(|(plain, ids)| stage.sample(&plain, &ids)).collect::<Result<_>>()?;
    Ok(Steered {
        text: prompt.text.clone(),
        prompt_tokens: prompt.ids.len(),
        hook: at.to_string(),
        edits: config.edits.clone(),
        positions: config.positions,
        error_kept: config.keep_error,
        samples,
        prompt_kl,
        shifts,
    })
}

impl Stage<'_> {
    /// Logits of equally long texts, `[b, t, vocab]`.
    fn logits(&self, texts: &[Vec<u32>], steered: bool) -> Result<Tensor> {
        let tokens = Tokens::new(texts, &Device::Cpu)?;
        let run = |tap: &mut dyn Tap| -> Result<Tensor> {
            let logits = self.host.forward(&tokens, tap)?;
            logits.ok_or_else(|| Error::request("the host gave no logits", "use a host that has a language-model head"))
        };
        if !steered {
            return run(&mut NoTap);
        }
        let n = self.prompt.ids.len();
        let open = texts.iter().flat_map(|text| {
            text.iter()
                .enumerate()
                .map(|(at, &id)| self.config.positions.admit(at, n) && mask(at, id, self.tokenizer, self.prompt.reading).is_none())
        });
        let open = open.collect();
        run(&mut Edited::new(self.host, self.at, self.dictionary, &self.config.edits, self.config.keep_error, open)?)
    }

    /// Logits of the last position of each text, `[vocab]`.
    fn last_logits(&self, texts: &[Vec<u32>], steered: bool) -> Result<Vec<Vec<f32>>> {
        let logits = self.logits(texts, steered)?;
        let last = logits.narrow(1, logits.dim(1)? - 1, 1)?.squeeze(1)?;
        Ok(last.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.to_vec2()?)
    }

    /// Ids of the samples' continuations, end-of-text token included where one was drawn.
    fn write(&self, steered: bool, progress: &dyn Progress) -> Result<Vec<Vec<u32>>> {
        let (samples, config) = (self.config.samples, self.config);
        let info = self.host.info();
        let prompt = self.prompt.ids.len();
        let mut draws: Vec<Rng> = (0..samples).map(|i| Rng::stream(config.seed, "steer", i as u64)).collect();
        let mut texts = vec![self.prompt.ids.clone(); samples];
        let mut open: Vec<usize> = (0..samples).collect();
        for _ in 0..config.n_tokens {
            if progress.is_cancelled() {
                return Err(Error::Cancelled { doing: "steering" });
            }
            // All open texts are equally long: each is one pass's length.
            if open.is_empty() || texts[open[0]].len() >= info.n_context {
                break;
            }
            let batch: Vec<Vec<u32>> = open.iter().map(|&i| texts[i].clone()).collect();
            for (&i, logits) in open.iter().zip(self.last_logits(&batch, steered)?) {
                log_normaliser(&logits)?;
                texts[i].push(config.sampling.choose(&logits, draws[i].uniform()));
            }
            open.retain(|&i| !texts[i].last().is_some_and(|id| info.eos_token_ids.contains(id)));
            progress.advance(1);
        }
        Ok(texts.into_iter().map(|text| text[prompt..].to_vec()).collect())
    }

    fn sample(&self, plain: &[u32], ids: &[u32]) -> Result<Sample> {
        let prompt = self.prompt.ids.len();
        let mut tokens = Vec::with_capacity(ids.len());
        if !ids.is_empty() {
            // The last token was drawn from the distribution before it.
            let text = vec![[&self.prompt.ids, &ids[..ids.len() - 1]].concat()];
            let rows = |steered: bool| -> Result<Vec<Vec<f32>>> {
                Ok(self.logits(&text, steered)?.squeeze(0)?.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.to_vec2()?)
            };
            let (before, after) = (rows(false)?, rows(true)?);
            for (i, &id) in ids.iter().enumerate() {
                let kl = divergence(&before[prompt - 1 + i], &after[prompt - 1 + i])?;
                tokens.push(SteeredToken { id, token: spelled(self.tokenizer, id), kl });
            }
        }
        let mean_kl = tokens.iter().map(|t| t.kl).sum::<f64>() / tokens.len().max(1) as f64;
        Ok(Sample { unsteered: self.text(plain)?, steered: self.text(ids)?, tokens, mean_kl })
    }

    /// The text that ids add to the prompt.
    fn text(&self, ids: &[u32]) -> Result<String> {
        let whole = self.tokenizer.decode(&[&self.prompt.ids, ids].concat())?;
        let prompt = self.tokenizer.decode(&self.prompt.ids)?;
        // Decoded alone, a first token may lose the space before it.
        whole.strip_prefix(&prompt).map_or_else(|| self.tokenizer.decode(ids), |rest| Ok(rest.to_string()))
    }

    fn shifts(&self, before: &[f32], after: &[f32]) -> Result<Vec<Shift>> {
        let (zb, za) = (log_normaliser(before)?, log_normaliser(after)?);
        let mut all: Vec<(u32, f64, f64)> =
            (0..).zip(before.iter().zip(after)).map(|(id, (&b, &a))| (id, (f64::from(b) - zb).exp(), (f64::from(a) - za).exp())).collect();
        all.sort_by(|x, y| (y.2 - y.1).abs().total_cmp(&(x.2 - x.1).abs()).then(x.0.cmp(&y.0)));
        let shift = |(id, before, after)| Shift { id, token: spelled(self.tokenizer, id), before, after };
        Ok(all.into_iter().take(self.config.top).map(shift).collect())
    }
}

/// ln of the sum of exponentials, f64.
fn log_normaliser(logits: &[f32]) -> Result<f64> {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let z = max + logits.iter().map(|&l| (f64::from(l) - max).exp()).sum::<f64>().ln();
    if z.is_finite() && logits.iter().all(|l| !l.is_nan()) {
        return Ok(z);
    }
    Err(Error::NotFinite {
        what: "the logits".into(),
        count: logits.iter().filter(|v| !v.is_finite()).count(),
        place: format!("token {}", logits.iter().position(|v| !v.is_finite()).unwrap_or(0)),
        help: "change the latent by less, or run the host in f32".into(),
    })
}

/// KL(before || after) of two distributions given by logits, nats.
fn divergence(before: &[f32], after: &[f32]) -> Result<f64> {
    let (zb, za) = (log_normaliser(before)?, log_normaliser(after)?);
    let term = |(&b, &a): (&f32, &f32)| {
        let log_p = f64::from(b) - zb;
        if log_p == f64::NEG_INFINITY {
            return 0.0;
        }
        log_p.exp() * (log_p - (f64::from(a) - za))
    };
    // Rounding alone can make it negative.
    Ok(before.iter().zip(after).map(term).sum::<f64>().max(0.0))
}

#[cfg(test)]
mod tests;
