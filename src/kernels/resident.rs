//! Training steps that stay on a device: parameters, moments and codes live there, the host sends rows and reads figures later. What a
//! learner must say for it, and what comes back. Not for: how (`cuda`), nor for learners that only the CPU trains.

use serde::{Deserialize, Serialize};

/// Arithmetic of the encoder's products during training. Encoding and scoring are always exact.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// bf16 operands with f32 sums; selection and parameters in f32.
    #[default]
    Bf16,
    /// f32 rounded to tf32 by the tensor cores.
    Tf32,
    /// f32.
    F32,
    /// The set that float64 picks: bf16 screens, f64 decides.
    Certified,
}

/// Which kernels encode on a GPU where operands are bf16. Sums go in another order in each, so near-ties may be decided another way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceEncode {
    /// The fastest that the chip has.
    #[default]
    Auto,
    /// Products by cuBLAS a chunk of latents at a time, merged as they come: any chip, any size.
    Chunked,
    /// Fused, for sm_90.
    Hopper,
    /// Fused, for sm_80 and later.
    Ampere,
}

/// How a step selects codes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Choice {
    /// The k largest of each row.
    TopK {
        /// k.
        k: usize,
    },
    /// The largest of the batch.
    BatchTopK {
        /// So many of them, k per row on average.
        k: f64,
    },
}

/// What a learner's next step does.
#[derive(Debug, Clone, PartialEq)]
pub struct StepPlan {
    /// How codes are selected.
    pub choice: Choice,
    /// Ends of the prefixes whose errors are averaged; the last is `d_sae`.
    pub prefixes: Vec<usize>,
}

/// What does not change from step to step.
#[derive(Debug, Clone, PartialEq)]
pub struct ResidentConfig {
    /// Rows per batch.
    pub batch: usize,
    /// Prefixes that a plan may name.
    pub most_prefixes: usize,
    /// Codes per row that a plan may ask for, on average.
    pub k: usize,
    /// AuxK: its weight and its latents per row.
    pub aux_k: Option<(f64, usize)>,
    /// A latent is dead when silent for this many tokens.
    pub dead_after_tokens: u64,
    /// Are decoder rows kept at norm 1?
    pub unit_norm: bool,
    /// Gradients are clipped to this norm; 0: not.
    pub clip_norm: f64,
    /// The encoder's arithmetic.
    pub precision: Precision,
    /// The encoder's kernels.
    pub encode: DeviceEncode,
}

/// Figures of a step, read after it.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// Ends of its prefixes.
    pub prefixes: Vec<usize>,
    /// Sum of squared errors after each.
    pub sq_errors: Vec<f64>,
    /// Codes below each prefix's end.
    pub active: Vec<u64>,
    /// The auxiliary loss, where it was active.
    pub aux_loss: Option<f64>,
    /// The smallest code that a batch selection kept.
    pub smallest: Option<f32>,
    /// The gradient's norm before clipping; not finite where the step was not applied.
    pub grad_norm: f64,
}
