//! Inference rules: many ways to train end in these few ways to infer.

use std::str::FromStr;
use std::sync::Arc;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::codes::Codes;
use crate::error::{Error, Result};
use crate::kernels::{self, Coder, Pick, PursuitRule};

use super::Dictionary;

/// Which pre-activations become codes. Serialised with its parameters under `kind`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Activation {
    /// Every positive one.
    Relu,
    /// The k largest positive ones of each row.
    TopK {
        /// Latents per row.
        k: usize,
    },
    /// The k of largest magnitude of each row, with their signs (imported dictionaries).
    AbsTopK {
        /// Latents per row.
        k: usize,
    },
    /// Those strictly above one threshold (BatchTopK, Matryoshka and JumpReLU end here).
    Threshold {
        /// In units of pre-activation, not negative.
        threshold: f32,
    },
    /// Those strictly above their latent's threshold ([`Dictionary::thresholds`](super::Dictionary::thresholds)).
    JumpRelu,
    /// Those that are positive, as `gain (a - b_enc) + bias` where that is positive
    /// ([`Dictionary::magnitude`](super::Dictionary::magnitude)).
    Gated,
    /// Matching pursuit of `x - b_dec` in the decoder's atoms; the encoder takes no part (see [`kernels::pursuit`]).
    Pursuit {
        /// Steps per row at most. An atom may be taken again, so fewer latents may be active.
        steps: usize,
        /// Which atom a step takes.
        #[serde(default)]
        selection: Pick,
        /// A row ends when its residual's norm falls below this; 0 for never.
        #[serde(default)]
        tolerance: f32,
        /// Is the tolerance a share of the row's own norm? Otherwise it is in the input's units.
        #[serde(default)]
        relative: bool,
        /// Does a row end with the step that takes an atom again?
        #[serde(default)]
        stop_on_repeat: bool,
        /// Pursue in the atoms' directions, whatever their norms (codes still belong to the atoms as they are)? Without it, inner
        /// products are with the atoms as they are, which for norms other than 1 is no pursuit any more (but is what SAELens does).
        #[serde(default = "yes")]
        renormalise: bool,
    },
    /// Orthogonal matching pursuit: coefficients are refitted by least squares after each step, and may be negative (see
    /// [`kernels::orthogonal_pursuit`]). Always in the atoms' directions.
    OrthogonalPursuit {
        /// Steps, hence latents, per row at most.
        steps: usize,
        /// Which atom a step takes.
        #[serde(default)]
        selection: Pick,
        /// A row ends when its residual's norm falls below this; 0 for never.
        #[serde(default)]
        tolerance: f32,
        /// Is the tolerance a share of the row's own norm?
        #[serde(default)]
        relative: bool,
    },
}

fn yes() -> bool {
    true
}

/// What a pursuit needs of a dictionary beside its atoms, made once.
#[derive(Debug)]
pub(super) struct Prepared {
    /// Unit atoms, or the atoms as they are, `[d_sae, d]`.
    atoms: Tensor,
    /// What turns a coefficient of a unit atom into a code: 1 / norm.
    scale: Option<Vec<f32>>,
    gram: Option<Tensor>,
}

impl Prepared {
    fn new(w_dec: &Tensor, renormalise: bool, gram: bool) -> Result<Self> {
        let w_dec = w_dec.contiguous()?;
        let (atoms, scale) = if renormalise {
            let norms: Vec<f32> = w_dec.sqr()?.sum(1)?.sqrt()?.to_vec1()?;
            // A zero atom stays zero, and is never of use.
            let scale: Vec<f32> = norms.iter().map(|&n| if n > 0.0 { 1.0 / n } else { 0.0 }).collect();
            let factor = Tensor::from_slice(&scale, (scale.len(), 1), w_dec.device())?;
            (w_dec.broadcast_mul(&factor)?, Some(scale))
        } else {
            (w_dec, None)
        };
        let gram = if gram { kernels::new_gram(&atoms)? } else { None };
        if let Some(gram) = &gram {
            kernels::fill_gram(&atoms, gram)?;
        }
        Ok(Self { atoms, scale, gram })
    }
}

impl Activation {
    /// Latents per row that the rule promises, if it does.
    pub fn k(&self) -> Option<usize> {
        match self {
            Self::TopK { k } | Self::AbsTopK { k } => Some(*k),
            // A pursuit's steps are a bound: rows end early, and atoms come again.
            Self::Relu | Self::Threshold { .. } | Self::JumpRelu | Self::Gated | Self::Pursuit { .. } | Self::OrthogonalPursuit { .. } => {
                None
            }
        }
    }

    pub(super) fn check(&self, d_sae: usize) -> Result<()> {
        match self {
            Self::TopK { k } | Self::AbsTopK { k } if *k == 0 || *k > d_sae => {
                Err(Error::config("k", format!("{k} of {d_sae} latents cannot be selected"), format!("choose k between 1 and {d_sae}")))
            }
            Self::Threshold { threshold } if !(threshold.is_finite() && *threshold >= 0.0) => {
                Err(Error::config("threshold", format!("{threshold} is no threshold"), "it must be finite and not negative"))
            }
            Self::Pursuit { steps: 0, .. } | Self::OrthogonalPursuit { steps: 0, .. } => {
                Err(Error::config("steps", "a pursuit of 0 steps selects nothing", "use 1 step or more"))
            }
            Self::OrthogonalPursuit { steps, .. } if *steps > d_sae => Err(Error::config(
                "steps",
                format!("{steps} of {d_sae} latents cannot be selected"),
                format!("choose between 1 and {d_sae} steps"),
            )),
            Self::Pursuit { tolerance, .. } | Self::OrthogonalPursuit { tolerance, .. }
                if !(tolerance.is_finite() && *tolerance >= 0.0) =>
            {
                Err(Error::config(
                    "tolerance",
                    format!("{tolerance} is no residual norm"),
                    "it must be finite and not negative; 0 turns it off",
                ))
            }
            _ => Ok(()),
        }
    }

    /// Steps per row that a pursuit takes at most.
    pub fn steps(&self) -> Option<usize> {
        match self {
            Self::Pursuit { steps, .. } | Self::OrthogonalPursuit { steps, .. } => Some(*steps),
            _ => None,
        }
    }

    /// The same pursuit with another number of steps; `None` for other rules.
    pub(super) fn with_steps(&self, n: usize) -> Option<Self> {
        let mut rule = self.clone();
        match &mut rule {
            Self::Pursuit { steps, .. } | Self::OrthogonalPursuit { steps, .. } => *steps = n,
            _ => return None,
        }
        Some(rule)
    }

    /// Is this a pursuit, which takes `x - b_dec` apart and knows no encoder?
    pub fn is_pursuit(&self) -> bool {
        matches!(self, Self::Pursuit { .. } | Self::OrthogonalPursuit { .. })
    }

    /// What [`codes`](Self::codes) wants for a pursuit.
    pub(super) fn prepare(&self, coder: &Coder) -> Result<Option<Arc<Prepared>>> {
        let (renormalise, gram) = match self {
            Self::Pursuit { renormalise, .. } => (*renormalise, true),
            Self::OrthogonalPursuit { .. } => (true, false),
            _ => return Ok(None),
        };
        Ok(Some(Arc::new(Prepared::new(&coder.w_dec, renormalise, gram)?)))
    }

    /// Codes of `u` `[n, d_in]`, already transformed and centred (for a pursuit: minus `b_dec`, with what [`prepare`](Self::prepare) made).
    pub(super) fn codes(&self, u: &Tensor, dictionary: &Dictionary, prepared: Option<&Prepared>) -> Result<Codes> {
        let coder = &dictionary.coder;
        let d_sae = coder.b_enc.dims1()?;
        let above = |t: &Tensor| kernels::encode_threshold(u, &coder.w_enc, &coder.b_enc, t);
        let all_above = |t: f32| above(&Tensor::full(t, d_sae, u.device())?);
        // `Dictionary::check` saw that what a rule needs is there.
        let missing = || Error::request("a dictionary without what its activation needs", "it is damaged: train or import it again");
        match self {
            Self::Relu => all_above(0.0),
            Self::Threshold { threshold } => all_above(*threshold),
            Self::TopK { k } => {
                kernels::encode_topk(u, &coder.w_enc, &coder.b_enc, *k, dictionary.selection_scale.as_ref())?.to_codes(d_sae)
            }
            Self::AbsTopK { k } => abs_topk(u, dictionary, *k),
            Self::JumpRelu => above(dictionary.thresholds.as_ref().ok_or_else(missing)?),
            Self::Gated => {
                let (gain, bias) = dictionary.magnitude.as_ref().ok_or_else(missing)?;
                let (gain, bias, gate): (Vec<f32>, Vec<f32>, Vec<f32>) = (gain.to_vec1()?, bias.to_vec1()?, coder.b_enc.to_vec1()?);
                Ok(all_above(0.0)?.mapped(|j, a| gain[j] * (a - gate[j]) + bias[j]))
            }
            Self::Pursuit { steps, selection: pick, tolerance, relative, stop_on_repeat, .. } => {
                let p = prepared.expect("a pursuit was prepared");
                let (steps, pick, tolerance, relative, stop_on_repeat) = (*steps, *pick, *tolerance, *relative, *stop_on_repeat);
                let rule = PursuitRule { steps, pick, tolerance, relative, stop_on_repeat };
                kernels::pursuit(u, &p.atoms, p.gram.as_ref(), &rule)?.to_codes(d_sae, p.scale.as_deref())
            }
            Self::OrthogonalPursuit { steps, selection: pick, tolerance, relative } => {
                let p = prepared.expect("a pursuit was prepared");
                let (steps, pick, tolerance, relative) = (*steps, *pick, *tolerance, *relative);
                let rule = PursuitRule { steps, pick, tolerance, relative, stop_on_repeat: true };
                kernels::orthogonal_pursuit(u, &p.atoms, &rule)?.to_codes(d_sae, p.scale.as_deref())
            }
        }
    }
}

/// The k largest of a row's pre-activations and of their negatives: those of an encoder beside its negative, of which at most one of a
/// pair is positive.
fn abs_topk(u: &Tensor, dictionary: &Dictionary, k: usize) -> Result<Codes> {
    let c = &dictionary.coder;
    let both = |t: &Tensor| -> Result<Tensor> { Ok(Tensor::cat(&[t, &t.neg()?], 0)?) };
    let rank = dictionary.selection_scale.as_ref().map(|s| Tensor::cat(&[s, s], 0)).transpose()?;
    let d_sae = c.b_enc.dims1()?;
    let found = kernels::encode_topk(u, &both(&c.w_enc)?, &both(&c.b_enc)?, k, rank.as_ref())?.to_codes(2 * d_sae)?;
    let mut codes = Codes::new(d_sae);
    for r in 0..found.n_rows() {
        let (indices, values) = found.row(r);
        let signed = |(&j, &v): (&u32, &f32)| if (j as usize) < d_sae { (j, v) } else { (j - d_sae as u32, -v) };
        let mut row: Vec<(u32, f32)> = indices.iter().zip(values).map(signed).collect();
        row.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        codes.push_row(row.into_iter());
    }
    Ok(codes)
}

/// `relu`, `topk:K`, `abstopk:K`, `threshold:X`, `mp:STEPS` or `omp:STEPS`, the last two with `,key=value` for any of their other settings:
/// `mp:8,selection=signed,tolerance=0.05,relative=true`.
impl FromStr for Activation {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let bad = |problem: String| {
            let help = "write relu, topk:32, abstopk:32, threshold:0.5, mp:8 or omp:8; pursuits take ,selection=signed,tolerance=0.05,relative=true";
            Error::request(format!("`{s}` is no activation rule: {problem}"), help)
        };
        let (name, rest) = s.split_once(':').unwrap_or((s, ""));
        let mut parts = rest.split(',');
        let first = parts.next().unwrap_or_default();
        let (kind, key) = match name {
            "relu" => ("relu", None),
            "topk" => ("top_k", Some("k")),
            "abstopk" => ("abs_top_k", Some("k")),
            "threshold" => ("threshold", Some("threshold")),
            "mp" => ("pursuit", Some("steps")),
            "omp" => ("orthogonal_pursuit", Some("steps")),
            _ => return Err(bad(format!("there is no `{name}`"))),
        };
        // Through JSON, so that this spelling and the file's know the same keys, defaults and refusals.
        let parse = |text: &str| serde_json::from_str(text).unwrap_or_else(|_| serde_json::Value::String(text.to_string()));
        let mut object = serde_json::Map::from_iter([("kind".to_string(), kind.into())]);
        match key {
            Some(key) if !first.is_empty() => drop(object.insert(key.to_string(), parse(first))),
            Some(key) => return Err(bad(format!("`{name}` needs its {key}"))),
            None if rest.is_empty() => {}
            None => return Err(bad(format!("`{name}` takes nothing"))),
        }
        for part in parts {
            let (key, value) = part.split_once('=').ok_or_else(|| bad(format!("`{part}` assigns nothing")))?;
            object.insert(key.trim().to_string(), parse(value.trim()));
        }
        serde_json::from_value(object.into()).map_err(|e| bad(e.to_string()))
    }
}
