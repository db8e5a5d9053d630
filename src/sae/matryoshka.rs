//! Matryoshka SAE, nested prefixes (Bussmann, Nabeshima, Karvonen, Nanda, "Learning Multi-Level Features with Matryoshka Sparse
//! Autoencoders", arXiv 2503.17547).
//!
//! ```text
//! z       = BatchTopK or TopK codes of x over all latents
//! xhat_p  = z[:, :m_p] W_dec[:m_p] + b_dec                 for prefixes m_1 < .. < m_P = d_sae
//! L       = 1/P sum_p sum |x - xhat_p|^2 / (n d_in) + AuxK
//! ```
//!
//! Early latents must do without the later ones, so they keep the general features that a wide flat dictionary splits or absorbs.
//! An entry of latent j is taught by the residuals of every prefix that holds it. Prefixes are fixed fractions, fixed widths, or drawn
//! anew each step (Nabeshima's note: lengths with density falling as 1 / sqrt(length)). Not `msae`, which nests k and not prefixes.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::{json, Value};

use super::aux_k::{aux_term, sum_sq};
use super::body::{BatchSelection, Plain};
use super::parts::{calibrate, check_k, unscaled, Part, Per};
use super::{AuxKConfig, Body, Figures, Learner, OnDevice, Step};
use crate::codes::Codes;
use crate::dictionary::{Activation, Dictionary, Provenance};
use crate::error::{Error, Result};
use crate::kernels::{column_sums, decode_codes_onto, encode_topk, Choice, Columns, SparseGrad, StepPlan, Term, Told};
use crate::rng::Rng;

/// How codes are selected inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Inside {
    /// The n k largest of the batch.
    BatchTopk,
    /// The k largest of each row.
    Topk,
}

/// The `[sae]` table for `arch = "matryoshka"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MatryoshkaConfig {
    /// Number of latents; 0 stands for 16 times the input's width.
    pub d_sae: usize,
    /// Active latents per row (with batch-topk: on average).
    pub k: usize,
    /// How codes are selected.
    pub inside: Inside,
    /// Widths of the prefixes, increasing, the last `d_sae`; empty: from `fractions`.
    pub prefixes: Vec<usize>,
    /// The same as fractions of `d_sae`.
    pub fractions: Vec<f64>,
    /// Prefixes drawn anew each step, the whole among them; 0: fixed ones.
    pub sampled: usize,
    /// Weight of `b_dec` alone as a prefix of no latents, beside the prefixes' own 1.
    pub empty_prefix: f64,
    /// Decay of the running mean of the smallest kept value.
    pub threshold_decay: f64,
    /// Save each fixed prefix as a dictionary of its own beside the whole one.
    pub save_prefixes: bool,
    /// The auxiliary loss that revives dead latents.
    pub aux_k: AuxKConfig,
}

impl Default for MatryoshkaConfig {
    fn default() -> Self {
        Self {
            d_sae: 0,
            k: 32,
            inside: Inside::BatchTopk,
            prefixes: Vec::new(),
            fractions: vec![0.0625, 0.125, 0.25, 0.5, 1.0],
            sampled: 0,
            empty_prefix: 0.0,
            threshold_decay: 0.999,
            save_prefixes: false,
            aux_k: AuxKConfig::default(),
        }
    }
}

impl MatryoshkaConfig {
    pub(super) fn resolve(&self, d_in: usize, n_tokens: u64) -> Result<Self> {
        let d_sae = check_k(self.d_sae, self.k, d_in, &self.aux_k)?;
        super::parts::check_weight("sae.empty_prefix", self.empty_prefix, "0 leaves it out")?;
        let mut prefixes = self.prefixes.clone();
        if prefixes.is_empty() {
            if let Some(bad) = self.fractions.iter().find(|f| !(**f > 0.0 && **f <= 1.0)) {
                return Err(Error::config("sae.fractions", format!("{bad} is no fraction of d_sae"), "give increasing numbers up to 1"));
            }
            prefixes = self.fractions.iter().map(|f| (f * d_sae as f64).round() as usize).collect();
        }
        if self.sampled > 0 {
            if self.sampled > d_sae {
                return Err(Error::config("sae.sampled", format!("{} of {d_sae} prefixes", self.sampled), "5 or 10 are usual"));
            }
            prefixes = vec![d_sae];
        }
        if let Some(pair) = prefixes.windows(2).find(|p| p[0] >= p[1]) {
            let problem = format!("{} is followed by {}", pair[0], pair[1]);
            return Err(Error::config("sae.prefixes", problem, "prefixes are nested: give them in increasing order"));
        }
        if prefixes.last() != Some(&d_sae) {
            let problem = format!("the last prefix is {:?}, the dictionary has {d_sae} latents", prefixes.last());
            return Err(Error::config("sae.prefixes", problem, format!("end the list with {d_sae}")));
        }
        if prefixes[0] < self.k {
            let problem = format!("k = {} latents do not fit into the smallest prefix of {}", self.k, prefixes[0]);
            return Err(Error::config("sae.k", problem, "choose a smaller k or a wider first prefix"));
        }
        Ok(Self { d_sae, prefixes, fractions: Vec::new(), aux_k: self.aux_k.resolve(d_in, n_tokens), ..self.clone() })
    }
}

/// A Matryoshka SAE in training.
#[derive(Debug)]
pub struct Matryoshka {
    config: MatryoshkaConfig,
    body: Body,
    selection: BatchSelection,
    seed: u64,
    steps: u64,
}

impl Matryoshka {
    /// Tied start from `rows` (see `init`).
    ///
    /// # Errors
    /// A tensor operation that fails.
    pub fn new(config: MatryoshkaConfig, rows: &Tensor, seed: u64) -> Result<Self> {
        let body = Body::tied(config.d_sae, config.k, config.aux_k.dead_after_tokens, rows, seed)?;
        Ok(Self { config, body, selection: BatchSelection::default(), seed, steps: 0 })
    }

    /// This step's prefixes.
    fn prefixes(&self) -> Vec<usize> {
        if self.config.sampled == 0 {
            return self.config.prefixes.clone();
        }
        let d_sae = self.config.d_sae;
        let mut rng = Rng::stream(self.seed, "prefixes", self.steps);
        let mut drawn = std::collections::BTreeSet::from([d_sae]);
        while drawn.len() < self.config.sampled {
            // P(length <= l) = sqrt(l / d_sae).
            let u = rng.uniform();
            drawn.insert(((u * u * d_sae as f64).ceil() as usize).clamp(1, d_sae));
        }
        drawn.into_iter().collect()
    }

    fn encode(&mut self, xc: &Tensor) -> Result<Codes> {
        let (config, coder) = (&self.config, &self.body.coder);
        match config.inside {
            Inside::Topk => encode_topk(xc, &coder.w_enc, &coder.b_enc, config.k, None)?.to_codes(config.d_sae),
            Inside::BatchTopk => self.selection.encode(xc, coder, config.k as f64, config.threshold_decay),
        }
    }
}

/// What the log has of a prefix: its squared error, its codes, its dead latents.
fn prefix_parts(to: usize, sq_error: f64, entries: f64, dead: &[u32]) -> [Part; 3] {
    let n_dead = dead.partition_point(|&j| (j as usize) < to);
    [
        Part { name: format!("fvu_{to}"), value: sq_error, per: Per::Spread },
        Part { name: format!("l0_{to}"), value: entries, per: Per::Row },
        Part { name: format!("dead_{to}"), value: n_dead as f64, per: Per::Last },
    ]
}

/// The entries of latents `from..to`, rows and their order kept.
fn group(codes: &Codes, from: usize, to: usize) -> Codes {
    let mut part = Codes::new(codes.d_sae);
    for r in 0..codes.n_rows() {
        let (indices, values) = codes.row(r);
        part.push_row(indices.iter().copied().zip(values.iter().copied()).filter(|(j, _)| (from..to).contains(&(*j as usize))));
    }
    part
}

impl Learner for Matryoshka {
    fn body(&self) -> &Body {
        &self.body
    }

    fn body_mut(&mut self) -> &mut Body {
        &mut self.body
    }

    fn step(&mut self, x: &Tensor) -> Result<Step> {
        let (n, d) = x.dims2()?;
        let prefixes = self.prefixes();
        self.steps += 1;
        let xc = self.body.centred(x)?;
        let codes = self.encode(&xc)?;
        let columns = Columns::of_codes(&codes);
        // Residuals after each prefix, each from the one before.
        let mut error = xc.clone();
        let (mut errors, mut parts, mut from) = (Vec::new(), Vec::new(), 0);
        let dead = self.body.silence.dead();
        for &to in &prefixes {
            let sign = if from == 0 { -1.0 } else { 1.0 };
            let (next, sq) = decode_codes_onto(&group(&codes, from, to), &self.body.coder.w_dec, &error, sign)?;
            error = next;
            errors.push((to, error.clone(), sq));
            if self.config.sampled == 0 && to < self.config.d_sae {
                parts.extend(prefix_parts(to, errors[errors.len() - 1].2, columns.starts[to] as f64, &dead));
            }
            from = to;
        }
        let weight = 1.0 / (prefixes.len() as f64 + self.config.empty_prefix);
        let per_element = weight / (n as f64 * d as f64);
        let sq_error = errors.last().map_or(0.0, |(_, _, sq)| *sq);
        let mut loss = errors.iter().map(|(_, _, sq)| sq * per_element).sum::<f64>();
        let aux = aux_term(&self.config.aux_k, &self.body.silence, &self.body.coder, &xc, &error)?;
        self.body.silence.count(&columns, n as u64);
        let n_active = columns.rows.len() as u64;
        // Suffix sums: what the latents of a group are taught by.
        let mut terms = Vec::with_capacity(prefixes.len());
        let mut suffix: Option<Tensor> = None;
        for (p, (to, error, _)) in errors.iter().enumerate().rev() {
            let grad = (error * (2.0 * per_element))?;
            let grad = match suffix {
                Some(later) => (later + grad)?,
                None => grad,
            };
            let from = if p == 0 { 0 } else { prefixes[p - 1] };
            terms.push(Term::codes(columns.range(from, *to), grad.clone()));
            suffix = Some(grad);
        }
        let mut b_dec = suffix.map_or_else(|| Ok(self.body.coder.b_dec.zeros_like()?), |s| column_sums(&s, 1.0))?;
        if self.config.empty_prefix > 0.0 {
            let factor = per_element * self.config.empty_prefix;
            // The empty prefix' error is -xc.
            loss += sum_sq(&xc)? * factor;
            b_dec = (b_dec + column_sums(&xc, -2.0 * factor)?)?;
        }
        let grad = SparseGrad { x: xc, terms, b_dec, centred: true, pull: None };
        let mut plain = Plain { loss, sq_error, n_active, aux_loss: None, grad };
        plain.add_aux(aux);
        Ok(plain.step(parts))
    }

    fn on_device(&self) -> Option<OnDevice> {
        // The empty prefix is an extra that only the CPU has.
        let (config, count) = (&self.config, self.config.sampled.max(self.config.prefixes.len()));
        (config.empty_prefix == 0.0).then(|| OnDevice { k: config.k, prefixes: count, aux_k: config.aux_k.on_device() })
    }

    fn plan(&mut self) -> Option<StepPlan> {
        let prefixes = self.prefixes();
        self.steps += 1;
        let choice = match self.config.inside {
            Inside::Topk => Choice::TopK { k: self.config.k },
            Inside::BatchTopk => Choice::BatchTopK { k: self.config.k as f64 },
        };
        Some(StepPlan { choice, prefixes })
    }

    fn told(&mut self, told: &Told, rows: usize) -> Figures {
        if self.config.inside == Inside::BatchTopk {
            self.selection.saw(told.smallest, self.config.threshold_decay);
        }
        let (_, d) = self.body.coder.w_dec.dims2().unwrap_or((0, 1));
        let mut figures = Figures::plain(told, rows, d);
        if self.config.sampled == 0 {
            let dead = self.body.silence.dead();
            let each = told.prefixes.iter().zip(told.sq_errors.iter().zip(&told.active));
            for (&to, (&sq, &entries)) in each.filter(|(&to, _)| to < self.config.d_sae) {
                figures.parts.extend(prefix_parts(to, sq, entries as f64, &dead));
            }
        }
        figures
    }

    fn state(&self) -> Value {
        json!({ "selection": self.selection.state(), "steps": self.steps })
    }

    fn restore(&mut self, state: &Value) {
        self.selection.restore(&state["selection"]);
        self.steps = state["steps"].as_u64().unwrap_or_default();
    }

    fn calibrates(&self) -> bool {
        self.config.inside == Inside::BatchTopk
    }

    fn finish(&self, scale: f64, rows: &Tensor) -> Result<Dictionary> {
        let activation = match self.config.inside {
            Inside::Topk => Activation::TopK { k: self.config.k },
            Inside::BatchTopk => {
                Activation::Threshold { threshold: (f64::from(calibrate(&self.body.coder, rows, self.config.k as f64)?) / scale) as f32 }
            }
        };
        let notes = json!({
            "k": self.config.k,
            "prefixes": self.config.prefixes,
            "calibration_rows": rows.dim(0)?,
            "running_threshold": self.selection.threshold.map(|t| t / scale),
        });
        let provenance = Provenance { made_by: "matryoshka".into(), notes, ..Default::default() };
        Dictionary::new(unscaled(&self.body.coder, scale)?, activation, true, provenance)
    }

    fn beside(&self, whole: &Dictionary) -> Result<Vec<(String, Dictionary)>> {
        let widths = self.config.prefixes.iter().filter(|&&m| self.config.save_prefixes && m < self.config.d_sae);
        widths.map(|&m| Ok((format!("prefix-{m}"), whole.prefix(m)?))).collect()
    }
}
