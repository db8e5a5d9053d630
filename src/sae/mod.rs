//! Learners: each turns a batch into a loss, named parts and a sparse gradient, and ends as a [`Dictionary`].
//!
//! One file per variant, one case of [`SaeConfig`], one arm of [`build`]. Not for: optimisers, schedules, checkpoints, logs (`train`),
//! nor for inference (`dictionary`): training rules are many, inference rules few.

mod aux_k;
mod batch_topk;
mod body;
mod gated;
mod init;
mod jump_relu;
mod l1;
mod matryoshka;
mod mp;
mod msae;
mod pam;
mod parts;
mod relu;
mod start;
mod topk;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::codes::Codes;
use crate::dictionary::Dictionary;
use crate::error::{Error, Result};
use crate::kernels::{Coder, Gradient, StepPlan, Told};

pub use aux_k::{AuxKConfig, Silence};
pub use batch_topk::{BatchTopK, BatchTopKConfig};
pub use body::Body;
pub use gated::Gated;
pub use init::geometric_median;
pub use jump_relu::{JumpRelu, JumpReluConfig};
pub use l1::L1Config;
pub use matryoshka::{Inside, Matryoshka, MatryoshkaConfig};
pub use mp::{Mp, MpConfig};
pub use msae::{Msae, MsaeConfig, Weighting};
pub use pam::PamEncoder;
pub use parts::{Part, Per};
pub use relu::Relu;
pub use start::Start;
pub use topk::{TopK, TopKConfig};

/// Settings of [`Gated`].
pub type GatedConfig = L1Config;
/// Settings of [`Relu`].
pub type ReluConfig = L1Config;

/// Which learner, with its settings: the `[sae]` table, tagged by `arch`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "arch", rename_all = "kebab-case")]
pub enum SaeConfig {
    /// The k largest of each row (Gao et al., arXiv 2406.04093).
    #[serde(rename = "topk")]
    TopK(TopKConfig),
    /// The n k largest of a batch (Bussmann et al., arXiv 2412.06410).
    #[serde(rename = "batch-topk")]
    BatchTopK(BatchTopKConfig),
    /// Nested prefixes (Bussmann et al., arXiv 2503.17547).
    Matryoshka(MatryoshkaConfig),
    /// Nested k (Zaigrajew et al., arXiv 2502.20578).
    Msae(MsaeConfig),
    /// Thresholds that are learnt (Rajamanoharan et al., arXiv 2407.14435).
    JumpRelu(JumpReluConfig),
    /// Which and how much apart (Rajamanoharan et al., arXiv 2404.16014).
    Gated(GatedConfig),
    /// L1 on norm-weighted codes.
    Relu(ReluConfig),
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
pub const ARCHS: &[&str] = &["topk", "batch-topk", "matryoshka", "msae", "mp", "jump-relu", "gated", "relu"];

/// The same for every learner's configuration.
macro_rules! each {
    ($config:expr, $c:ident => $body:expr) => {
        match $config {
            SaeConfig::TopK($c) => $body,
            SaeConfig::BatchTopK($c) => $body,
            SaeConfig::Matryoshka($c) => $body,
            SaeConfig::Msae($c) => $body,
            SaeConfig::Mp($c) => $body,
            SaeConfig::JumpRelu($c) => $body,
            SaeConfig::Gated($c) => $body,
            SaeConfig::Relu($c) => $body,
        }
    };
}

impl SaeConfig {
    /// The defaults of a learner, by its name in [`ARCHS`].
    pub fn of_arch(arch: &str) -> Option<Self> {
        Some(match arch {
            "topk" => Self::TopK(TopKConfig::default()),
            "batch-topk" => Self::BatchTopK(BatchTopKConfig::default()),
            "matryoshka" => Self::Matryoshka(MatryoshkaConfig::default()),
            "msae" => Self::Msae(MsaeConfig::default()),
            "mp" => Self::Mp(MpConfig::default()),
            "jump-relu" => Self::JumpRelu(JumpReluConfig::default()),
            "gated" => Self::Gated(GatedConfig::default()),
            "relu" => Self::Relu(ReluConfig::default()),
            _ => return None,
        })
    }

    /// The settings that made a dictionary, or those that come nearest to what it is; a run's lengths are left to the next run.
    pub fn like(dictionary: &Dictionary) -> Self {
        let own = dictionary.provenance.config.get("sae").cloned().map(serde_json::from_value::<Self>);
        let mut config = match own {
            Some(Ok(own)) => own,
            _ => start::nearest(dictionary),
        };
        match &mut config {
            Self::TopK(TopKConfig { aux_k, .. })
            | Self::BatchTopK(BatchTopKConfig { aux_k, .. })
            | Self::Matryoshka(MatryoshkaConfig { aux_k, .. })
            | Self::Msae(MsaeConfig { aux_k, .. })
            | Self::Mp(MpConfig { aux_k, .. }) => aux_k.dead_after_tokens = 0,
            Self::JumpRelu(JumpReluConfig { aux_k, warmup_tokens, .. }) => (aux_k.dead_after_tokens, *warmup_tokens) = (0, 0),
            Self::Gated(GatedConfig { dead_after_tokens, warmup_tokens, .. })
            | Self::Relu(ReluConfig { dead_after_tokens, warmup_tokens, .. }) => (*dead_after_tokens, *warmup_tokens) = (0, 0),
        }
        config
    }

    /// As `--arch` spells it.
    pub fn arch(&self) -> &'static str {
        match self {
            Self::TopK(_) => "topk",
            Self::BatchTopK(_) => "batch-topk",
            Self::Matryoshka(_) => "matryoshka",
            Self::Msae(_) => "msae",
            Self::JumpRelu(_) => "jump-relu",
            Self::Gated(_) => "gated",
            Self::Relu(_) => "relu",
            Self::Mp(_) => "mp",
        }
    }

    /// Number of latents; 0 stands for 16 times the input's width.
    pub fn d_sae(&self) -> usize {
        each!(self, c => c.d_sae)
    }

    /// Replaces what depends on the data (0 and absent values) by numbers.
    ///
    /// # Errors
    /// Impossible settings, with the remedy.
    pub fn resolve(&self, d_in: usize, n_tokens: u64) -> Result<Self> {
        Ok(match self {
            Self::TopK(c) => Self::TopK(c.resolve(d_in, n_tokens)?),
            Self::BatchTopK(c) => Self::BatchTopK(c.resolve(d_in, n_tokens)?),
            Self::Matryoshka(c) => Self::Matryoshka(c.resolve(d_in, n_tokens)?),
            Self::Msae(c) => Self::Msae(c.resolve(d_in, n_tokens)?),
            Self::Mp(c) => Self::Mp(c.resolve(d_in, n_tokens)?),
            Self::JumpRelu(c) => Self::JumpRelu(c.resolve(d_in, n_tokens)?),
            Self::Gated(c) => Self::Gated(c.resolve(d_in, n_tokens)?),
            Self::Relu(c) => Self::Relu(c.resolve(d_in, n_tokens)?),
        })
    }

    /// A short name for folders and legends: `k32-d1024`; with the learner's before it, but for `topk`.
    pub fn label(&self) -> String {
        let sparsity = match self {
            Self::TopK(c) => return format!("k{}-d{}", c.k, c.d_sae),
            Self::BatchTopK(c) => format!("k{}", c.k),
            Self::Matryoshka(c) => format!("k{}", c.k),
            Self::Msae(c) => format!("k{}", c.k),
            Self::Mp(c) => format!("k{}", c.k),
            Self::JumpRelu(c) if c.target_l0 > 0.0 => format!("l0-{}", c.target_l0),
            Self::JumpRelu(c) => format!("c{}", c.l0_coef),
            Self::Gated(c) => format!("l1-{}", c.l1),
            Self::Relu(c) => format!("l1-{}", c.l1),
        };
        format!("{}-{sparsity}-d{}", self.arch(), self.d_sae())
    }
}

/// Figures of one step, for the log.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// See [`Step`].
    pub loss: f64,
    /// See [`Step`].
    pub sq_error: f64,
    /// See [`Step`].
    pub n_active: u64,
    /// See [`Step`].
    pub aux_loss: Option<f64>,
    /// See [`Step`].
    pub parts: Vec<Part>,
}

/// What a learner needs room for on a GPU.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OnDevice {
    /// Codes per row, on average.
    pub k: usize,
    /// Prefixes whose errors count.
    pub prefixes: usize,
    /// AuxK's weight and its latents per row, where it is on.
    pub aux_k: Option<(f64, usize)>,
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
    /// What else the log should have.
    pub parts: Vec<Part>,
    /// Gradient with respect to the coder.
    pub grad: Gradient,
}

impl Figures {
    /// Of a step on a GPU, `rows` rows `d` wide: the errors of its prefixes count alike.
    fn plain(told: &Told, rows: usize, d: usize) -> Self {
        let per_element = 1.0 / (told.prefixes.len().max(1) as f64 * rows as f64 * d as f64);
        Self {
            loss: told.sq_errors.iter().sum::<f64>() * per_element + told.aux_loss.unwrap_or(0.0),
            sq_error: told.sq_errors.last().copied().unwrap_or_default(),
            n_active: told.active.last().copied().unwrap_or_default(),
            aux_loss: told.aux_loss,
            parts: Vec::new(),
        }
    }
}

impl Step {
    /// What the log has of it.
    pub fn figures(&self) -> Figures {
        let Self { loss, sq_error, n_active, aux_loss, parts, .. } = self;
        Figures { loss: *loss, sq_error: *sq_error, n_active: *n_active, aux_loss: *aux_loss, parts: parts.clone() }
    }
}

/// A variant in training. Inputs are normalised rows `[n, d_in]`, f32, mean squared norm `d_in`.
pub trait Learner: Send {
    /// Parameters and silence counters.
    fn body(&self) -> &Body;

    /// For counting, and for restoring a checkpoint.
    fn body_mut(&mut self) -> &mut Body;

    /// The parameters; the optimiser updates them in place.
    fn coder(&self) -> &Coder {
        &self.body().coder
    }

    /// Loss and gradient of one batch; also counts which latents stayed silent.
    ///
    /// # Errors
    /// A tensor operation that fails.
    fn step(&mut self, x: &Tensor) -> Result<Step>;

    /// What it needs room for on a GPU; `None`: it learns on the CPU only.
    fn on_device(&self) -> Option<OnDevice> {
        None
    }

    /// Its next step there.
    fn plan(&mut self) -> Option<StepPlan> {
        None
    }

    /// Takes in what came of a step there, of `rows` rows; figures for the log.
    fn told(&mut self, told: &Told, rows: usize) -> Figures {
        let (_, d) = self.coder().w_dec.dims2().unwrap_or((0, 1));
        Figures::plain(told, rows, d)
    }

    /// Tokens since each latent last fired.
    fn silence(&self) -> &Silence {
        &self.body().silence
    }

    /// Takes a trained dictionary as its start instead of the one it made; `rows` `[m, d_in]` are those it was built with.
    ///
    /// # Errors
    /// Another size.
    fn adopt(&mut self, start: &Start, _rows: &Tensor) -> Result<()> {
        self.body_mut().adopt(start)
    }

    /// Do decoder rows stay on the unit sphere?
    fn unit_norm(&self) -> bool {
        true
    }

    /// Parameters besides the coder's, by name: one value per latent, `[d_sae]`, f32. The optimiser updates them in place.
    fn extras(&self) -> Vec<(&'static str, &Tensor)> {
        Vec::new()
    }

    /// Their gradients for the last step, in the same order, from the sums that its terms asked for ([`crate::kernels::Measured::sums`]).
    ///
    /// # Errors
    /// A tensor operation that fails.
    fn extra_grads(&self, _sums: &[Vec<[f32; 2]>]) -> Result<Vec<Vec<f32>>> {
        Ok(Vec::new())
    }

    /// Codes of rows `[n, d_in]`, for whoever solves for the decoder. Only learners that leave their decoder alone have them.
    ///
    /// # Errors
    /// A learner that trains its decoder itself.
    fn codes(&self, _x: &Tensor) -> Result<Codes> {
        Err(Error::request("this learner trains its decoder by gradients", "leave train.pam out"))
    }

    /// The decoder was solved for: what is pulled to this point is pulled to it from now on.
    ///
    /// # Errors
    /// A tensor operation that fails.
    fn solved(&mut self) -> Result<()> {
        Ok(())
    }

    /// Tensors that a checkpoint must hold besides parameters, by name, f32; restored in place.
    fn anchors(&self) -> Vec<(&'static str, &Tensor)> {
        Vec::new()
    }

    /// What a checkpoint must hold besides tensors and silence.
    fn state(&self) -> Value {
        Value::Null
    }

    /// Takes such a state back.
    fn restore(&mut self, _state: &Value) {}

    /// Does [`Learner::finish`] look at its rows?
    fn calibrates(&self) -> bool {
        false
    }

    /// The dictionary, in the activations' own units: the normalising factor `scale` is folded away. `rows` `[m, d_in]` are the fixed
    /// training rows, normalised, that thresholds are calibrated on.
    ///
    /// # Errors
    /// A tensor operation that fails.
    fn finish(&self, scale: f64, rows: &Tensor) -> Result<Dictionary>;

    /// Dictionaries to save beside the whole one, by the name of their folder.
    ///
    /// # Errors
    /// A tensor operation that fails.
    fn beside(&self, _whole: &Dictionary) -> Result<Vec<(String, Dictionary)>> {
        Ok(Vec::new())
    }
}

/// A learner at its start. `rows` `[m, d_in]` are normalised rows for initialisation; `seed` feeds only the "init" stream. What rows
/// decide must be in the coder, which a checkpoint restores: a resumed run passes another row here.
///
/// # Errors
/// A configuration that was not resolved, or impossible settings.
pub fn build(config: &SaeConfig, rows: &Tensor, seed: u64) -> Result<Box<dyn Learner>> {
    Ok(match config {
        SaeConfig::TopK(c) => Box::new(TopK::new(c.clone(), rows, seed)?),
        SaeConfig::BatchTopK(c) => Box::new(BatchTopK::new(c.clone(), rows, seed)?),
        SaeConfig::Matryoshka(c) => Box::new(Matryoshka::new(c.clone(), rows, seed)?),
        SaeConfig::Msae(c) => Box::new(Msae::new(c.clone(), rows, seed)?),
        SaeConfig::Mp(c) => Box::new(Mp::new(c.clone(), rows, seed)?),
        SaeConfig::JumpRelu(c) => Box::new(JumpRelu::new(c.clone(), rows, seed)?),
        SaeConfig::Gated(c) => Box::new(Gated::new(c.clone(), rows, seed)?),
        SaeConfig::Relu(c) => Box::new(Relu::new(c.clone(), rows, seed)?),
    })
}

#[cfg(test)]
mod tests;
