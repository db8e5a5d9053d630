//! Learners: each turns a batch into a loss, named parts and a sparse gradient, and ends as a [`Dictionary`].
//!
//! One file per variant, one case of [`SaeConfig`], one arm of [`build`]. Not for: optimisers, schedules, checkpoints, logs (`train`),
//! nor for inference (`dictionary`): training rules are many, inference rules few.

mod aux_k;
mod init;
mod mp;
mod topk;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::dictionary::Dictionary;
use crate::error::Result;
use crate::kernels::{Coder, Gradient};

pub use aux_k::{AuxKConfig, Silence};
pub use init::geometric_median;
pub use mp::{Mp, MpConfig};
pub use topk::{TopK, TopKConfig};

/// Which learner, with its settings: the `[sae]` table, tagged by `arch`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "arch", rename_all = "kebab-case")]
pub enum SaeConfig {
    /// The k largest of each row (Gao et al., arXiv 2406.04093).
    #[serde(rename = "topk")]
    TopK(TopKConfig),
    /// Matching pursuit, unrolled (Costa et al., arXiv 2506.03093).
    #[serde(rename = "mp")]
    Mp(MpConfig),
}

impl Default for SaeConfig {
    fn default() -> Self {
        Self::TopK(TopKConfig::default())
    }
}

/// Names of the learners, as `--arch` takes them.
pub const ARCHS: &[&str] = &["topk", "mp"];

impl SaeConfig {
    /// As `--arch` spells it.
    pub fn arch(&self) -> &'static str {
        match self {
            Self::TopK(_) => "topk",
            Self::Mp(_) => "mp",
        }
    }

    /// Number of latents; 0 stands for 16 times the input's width.
    pub fn d_sae(&self) -> usize {
        match self {
            Self::TopK(c) => c.d_sae,
            Self::Mp(c) => c.d_sae,
        }
    }

    /// Replaces what depends on the data (0 and absent values) by numbers.
    ///
    /// # Errors
    /// Impossible settings, with the remedy.
    pub fn resolve(&self, d_in: usize, n_tokens: u64) -> Result<Self> {
        match self {
            Self::TopK(c) => Ok(Self::TopK(c.resolve(d_in, n_tokens)?)),
            Self::Mp(c) => Ok(Self::Mp(c.resolve(d_in, n_tokens)?)),
        }
    }

    /// A short name for folders and legends: `k32-d1024`.
    pub fn label(&self) -> String {
        match self {
            Self::TopK(c) => format!("k{}-d{}", c.k, c.d_sae),
            Self::Mp(c) => format!("mp-k{}-d{}", c.k, c.d_sae),
        }
    }
}

/// What a learner makes of one batch.
#[derive(Debug)]
pub struct Step {
    /// The whole loss. Inputs have mean squared norm `d_in`, so the reconstruction part is close to an FVU.
    pub loss: f64,
    /// `sum |x - xhat|^2` over the batch.
    pub sq_error: f64,
    /// Latents that fired, over all rows.
    pub n_active: u64,
    /// The auxiliary part of the loss, when it was active.
    pub aux_loss: Option<f64>,
    /// Gradient with respect to the coder.
    pub grad: Gradient,
}

/// A variant in training. Inputs are normalised rows `[n, d_in]`, f32, mean squared norm `d_in`.
pub trait Learner: Send {
    /// The parameters; the optimiser updates them in place.
    fn coder(&self) -> &Coder;

    /// Loss and gradient of one batch; also counts which latents stayed silent.
    ///
    /// # Errors
    /// A tensor operation that fails.
    fn step(&mut self, x: &Tensor) -> Result<Step>;

    /// Tokens since each latent last fired.
    fn silence(&self) -> &Silence;

    /// For restoring a checkpoint.
    fn silence_mut(&mut self) -> &mut Silence;

    /// Do decoder rows stay on the unit sphere?
    fn unit_norm(&self) -> bool {
        true
    }

    /// The dictionary, in the activations' own units: the normalising factor `scale` is folded away.
    ///
    /// # Errors
    /// A tensor operation that fails.
    fn finish(&self, scale: f64) -> Result<Dictionary>;
}

/// A learner at its start. `rows` `[m, d_in]` are normalised rows for initialisation; `seed` feeds only the "init" stream. What rows
/// decide must be in the coder, which a checkpoint restores: a resumed run passes another row here.
///
/// # Errors
/// A configuration that was not resolved, or impossible settings.
pub fn build(config: &SaeConfig, rows: &Tensor, seed: u64) -> Result<Box<dyn Learner>> {
    match config {
        SaeConfig::TopK(c) => Ok(Box::new(TopK::new(c.clone(), rows, seed)?)),
        SaeConfig::Mp(c) => Ok(Box::new(Mp::new(c.clone(), rows, seed)?)),
    }
}
