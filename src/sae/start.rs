//! Fine-tuning: a trained dictionary as a learner's start, whatever variant made it.
//!
//! Atoms become unit rows, with norms moved into the encoder; an input transform and an encoder that reads x uncentred are folded into the
//! biases. All of that keeps the function where codes scale with their pre-activations, which is every rule but top-k ranked by other
//! norms. Not for: a resumed run, whose checkpoint has the optimiser's state too.

use candle_core::{DType, Tensor};

use super::parts::unit_rows;
use super::{BatchTopKConfig, GatedConfig, JumpReluConfig, MpConfig, ReluConfig, SaeConfig, TopKConfig};
use crate::dictionary::{Activation, Dictionary};
use crate::error::{Error, Result};
use crate::kernels::Coder;

/// A dictionary in the trainer's scale, where rows have mean squared norm `d_in`.
#[derive(Debug, Clone)]
pub struct Start {
    /// Unit atoms, an encoder that subtracts `b_dec`.
    pub coder: Coder,
    /// Has it an encoder? A pursuit's is its atoms.
    pub pursuit: bool,
    /// Above them codes are active, `[d_sae]`, where the dictionary has thresholds (one for all, or one each).
    pub thresholds: Option<Tensor>,
    /// Latents are ranked by `code * ranked`, `[d_sae]`, where the dictionary has such a rule.
    pub ranked: Option<Tensor>,
    /// Gain and bias of magnitudes, `[d_sae]` each, where it has them.
    pub magnitude: Option<(Tensor, Tensor)>,
}

impl Start {
    /// From a dictionary of rows in their own units; training rows are multiplied by `scale`.
    ///
    /// # Errors
    /// A dictionary with a linear path beside its codes, or one that writes another width than it reads: no learner has such.
    pub fn new(dictionary: &Dictionary, scale: f64) -> Result<Self> {
        if dictionary.skip.is_some() || dictionary.d_in() != dictionary.d_out() {
            return Err(Error::request(
                "a transcoder cannot be the start of a dictionary that reconstructs its input",
                "name a dictionary that reads and writes the same rows",
            ));
        }
        if dictionary.row_norm.is_some() || matches!(dictionary.activation, Activation::AbsTopK { .. }) {
            return Err(Error::request(
                "a dictionary that norms each row, or whose codes may be negative, cannot be the start of one that does not",
                "name a dictionary without a norm per row, with positive codes",
            ));
        }
        let c = &dictionary.coder;
        // u = s (x - shift) is what it reads; t x is what the learner reads.
        let (s, shift) = dictionary.input_transform.as_ref().map_or((1.0, None), |t| (t.scale, Some(&t.shift)));
        let factor = scale / s;
        let mut b_enc = c.b_enc.copy()?;
        if !dictionary.centred && !dictionary.activation.is_pursuit() {
            b_enc = (b_enc + c.w_enc.matmul(&c.b_dec.unsqueeze(1)?)?.squeeze(1)?)?;
        }
        let mut b_dec = (&c.b_dec * factor)?;
        if let Some(shift) = shift {
            b_dec = (b_dec + (shift * scale)?)?;
        }
        let (coder, norms) = unit_rows(Coder { w_enc: c.w_enc.copy()?, b_enc: (b_enc * factor)?, w_dec: c.w_dec.copy()?, b_dec })?;
        let moved = |t: &Tensor| -> Result<Tensor> { Ok(((t * factor)? * &norms)?) };
        let thresholds = match &dictionary.activation {
            Activation::Threshold { threshold } => Some(moved(&Tensor::full(*threshold, dictionary.d_sae(), c.b_enc.device())?)?),
            _ => dictionary.thresholds.as_ref().map(moved).transpose()?,
        };
        let ranked = dictionary.selection_scale.as_ref().map(|s| s / norms.maximum(f64::from(f32::MIN_POSITIVE))?).transpose()?;
        let magnitude = match &dictionary.magnitude {
            Some((gain, bias)) => Some((gain.copy()?, moved(bias)?)),
            None => None,
        };
        Ok(Self { coder, pursuit: dictionary.activation.is_pursuit(), thresholds, ranked, magnitude })
    }

    /// Number of latents.
    pub fn d_sae(&self) -> usize {
        self.coder.w_dec.dims()[0]
    }

    /// Refuses another size than the learner's `[d_sae, d_in]`.
    pub(super) fn check(&self, d_sae: usize, d_in: usize) -> Result<()> {
        let (found, width) = self.coder.w_dec.dims2()?;
        if width != d_in {
            return Err(Error::Width {
                what: "the dictionary to start from".into(),
                expected: d_in,
                got: width,
                help: "name one of the same hook point and host".into(),
            });
        }
        if found != d_sae {
            return Err(Error::config(
                "sae.d_sae",
                format!("{d_sae} latents cannot start from a dictionary of {found}"),
                format!("leave it out, or set it to {found}"),
            ));
        }
        Ok(())
    }

    /// The parameters of an ordinary learner. A pursuit's atoms encode with the gain of `made`, whose encoder is its atoms times one number.
    pub(super) fn coder(&self, made: &Coder) -> Result<Coder> {
        let mut coder = self.coder.clone();
        if self.pursuit {
            let gain = f64::from(made.w_enc.get(0)?.sqr()?.sum_all()?.to_dtype(DType::F32)?.to_scalar::<f32>()?).sqrt();
            coder.w_enc = (&coder.w_dec * gain)?;
        }
        Ok(coder)
    }
}

/// The learner that ends as a dictionary of this kind, for one that no learner here made.
pub(super) fn nearest(dictionary: &Dictionary) -> SaeConfig {
    let d_sae = dictionary.d_sae();
    match dictionary.activation {
        Activation::TopK { k } | Activation::AbsTopK { k } => SaeConfig::TopK(TopKConfig { d_sae, k, ..Default::default() }),
        Activation::Threshold { .. } => SaeConfig::BatchTopK(BatchTopKConfig { d_sae, ..Default::default() }),
        Activation::JumpRelu => SaeConfig::JumpRelu(JumpReluConfig { d_sae, target_l0: 32f64.min(d_sae as f64), ..Default::default() }),
        Activation::Gated => SaeConfig::Gated(GatedConfig { d_sae, ..Default::default() }),
        Activation::Relu => SaeConfig::Relu(ReluConfig { d_sae, ..Default::default() }),
        Activation::Pursuit { steps, selection, .. } => SaeConfig::Mp(MpConfig { d_sae, k: steps, selection, ..Default::default() }),
        Activation::OrthogonalPursuit { steps, .. } => SaeConfig::Mp(MpConfig { d_sae, k: steps, ..Default::default() }),
    }
}
