//! Inference rules: many ways to train end in these few ways to infer.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::codes::Codes;
use crate::error::{Error, Result};
use crate::kernels;

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
}

impl Activation {
    /// Latents per row that the rule promises, if it does.
    pub fn k(&self) -> Option<usize> {
        match self {
            Self::TopK { k } => Some(*k),
            Self::Relu | Self::Threshold { .. } | Self::JumpRelu | Self::Gated => None,
        }
    }

    pub(super) fn check(&self, d_sae: usize) -> Result<()> {
        match self {
            Self::TopK { k } if *k == 0 || *k > d_sae => {
                Err(Error::config("k", format!("{k} of {d_sae} latents cannot be selected"), format!("choose k between 1 and {d_sae}")))
            }
            Self::Threshold { threshold } if !(threshold.is_finite() && *threshold >= 0.0) => {
                Err(Error::config("threshold", format!("{threshold} is no threshold"), "it must be finite and not negative"))
            }
            _ => Ok(()),
        }
    }

    /// Codes of `u` `[n, d_in]`, already transformed and centred.
    pub(super) fn codes(&self, u: &Tensor, dictionary: &Dictionary) -> Result<Codes> {
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
            Self::JumpRelu => above(dictionary.thresholds.as_ref().ok_or_else(missing)?),
            Self::Gated => {
                let (gain, bias) = dictionary.magnitude.as_ref().ok_or_else(missing)?;
                let (gain, bias, gate): (Vec<f32>, Vec<f32>, Vec<f32>) = (gain.to_vec1()?, bias.to_vec1()?, coder.b_enc.to_vec1()?);
                Ok(all_above(0.0)?.mapped(|j, a| gain[j] * (a - gate[j]) + bias[j]))
            }
        }
    }
}
