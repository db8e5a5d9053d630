//! Models one can look inside: the seam that a harvest reads through.

use candle_core::Tensor;
use serde::Serialize;

use crate::error::Result;
use crate::hook::HookPoint;

/// A batch of token ids.
#[derive(Debug, Clone)]
pub struct Tokens {
    /// Token ids, `[b, t]`, u32. Positions are 0..t whatever the mask says.
    pub ids: Tensor,
    /// `[b, t]`, u8: 1 = a real token, 0 = padding that no position may attend to. `None` = all real.
    pub mask: Option<Tensor>,
}

/// What a host is: shapes, and the provenance that every artefact made from it carries.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HostInfo {
    /// Folder name, or the name of the built-in host.
    pub name: String,
    /// Architecture family.
    pub family: &'static str,
    /// Number of blocks.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Number of query heads.
    pub n_heads: usize,
    /// Width of one head.
    pub d_head: usize,
    /// Number of MLP neurons of a block.
    pub d_mlp: usize,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Longest context, in tokens.
    pub n_context: usize,
    /// What the forward computes in: "f32" or "bf16".
    pub dtype: String,
    /// Number of parameters in use; a tied head counts once.
    pub n_params: u64,
    /// SHA-256 of the weights file.
    pub weights_sha256: String,
    /// First token of a document, if the model has one.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a document.
    pub eos_token_ids: Vec<u32>,
    /// Keys of config.json that nothing here reads.
    pub unread_config: Vec<String>,
}

/// Offered every activation of a forward pass.
pub trait Tap {
    /// Does it care about this point? If not, the activation is not even offered.
    fn wants(&self, at: &HookPoint) -> bool;

    /// The activation at a point, `[b, t, width]`, f32. `None` = looked only; `Some(y)` = go on with `y`, of the same shape.
    ///
    /// # Errors
    /// Whatever goes wrong in the tap ends the forward pass.
    fn visit(&mut self, at: &HookPoint, x: &Tensor) -> Result<Option<Tensor>>;

    /// The forward pass may stop after this point. `None` = run to the logits.
    fn last(&self) -> Option<HookPoint>;
}

/// A model whose forward pass can be looked into and changed.
pub trait HostModel: Send + Sync {
    /// Shapes and provenance.
    fn info(&self) -> &HostInfo;

    /// Every hook point, in the order a forward pass reaches them.
    fn hook_points(&self) -> Vec<HookPoint>;

    /// Width of the activation at `at`.
    ///
    /// # Errors
    /// When the host has no such point, listing what exists.
    fn width(&self, at: &HookPoint) -> Result<usize>;

    /// Runs the model over a batch, offering each hook point to the tap. Returns logits, `[b, t, vocab]`, f32; `None` when the tap
    /// let the pass stop early.
    ///
    /// # Errors
    /// When ids or mask do not fit the model, when the tap's last hook point does not exist, or when the tap fails.
    fn forward(&self, input: &Tokens, tap: &mut dyn Tap) -> Result<Option<Tensor>>;

    /// The Hugging Face module whose output `at` is, where there is one.
    fn hf_path(&self, at: &HookPoint) -> Option<String>;
}
