//! What a decoder computes, as plain data: the family files write it, `decoder` and `layers` read it.
//!
//! A field here is implemented in every path. A family that needs more (post-norms, query and key norms, an embedding scale) adds the
//! field and its one use in `decoder` or `layers`; nothing else changes.

use crate::hook::{HookPoint, Site};

/// A whole decoder.
#[derive(Debug, Clone)]
pub(super) struct Spec {
    pub d_model: usize,
    pub vocab_size: usize,
    /// Longest context, in tokens.
    pub n_context: usize,
    /// The blocks, which may differ (windows, say).
    pub blocks: Vec<BlockSpec>,
    pub final_norm: NormSpec,
    /// Learned absolute positions, added after the token embedding.
    pub learned_positions: bool,
    /// The head is the token embedding.
    pub tied: bool,
    pub bos_token_id: Option<u32>,
    pub eos_token_ids: Vec<u32>,
}

/// One block.
#[derive(Debug, Clone)]
pub(super) struct BlockSpec {
    pub norm: NormSpec,
    /// Attention and MLP both read the block's input (GPT-NeoX), so that there is no `resid_mid`.
    pub parallel: bool,
    pub attention: AttentionSpec,
    pub mlp: MlpSpec,
}

/// A norm over the last dimension.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct NormSpec {
    pub kind: NormKind,
    pub eps: f64,
}

/// How a norm centres and scales. (Gemma's `1 + w` is folded into the weight by its family file.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NormKind {
    /// Centre, divide by the standard deviation.
    Layer,
    /// Divide by the root mean square.
    Rms,
}

/// Causal self-attention.
#[derive(Debug, Clone)]
pub(super) struct AttentionSpec {
    pub n_heads: usize,
    /// Fewer than `n_heads`: each serves a group of query heads.
    pub n_kv_heads: usize,
    pub d_head: usize,
    /// What query-key products are multiplied by.
    pub scale: f64,
    /// Scores become `cap * tanh(score / cap)`.
    pub softcap: Option<f64>,
    /// A position sees itself and the `window - 1` before it.
    pub window: Option<usize>,
    pub rope: Option<RopeSpec>,
    /// q, k and v have biases.
    pub qkv_bias: bool,
    /// The output projection has one.
    pub out_bias: bool,
}

/// Rotary positions, in the half-split convention.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RopeSpec {
    /// How many of a head's dimensions rotate, from the first.
    pub n_dims: usize,
    pub theta: f64,
    pub scaling: RopeScaling,
}

/// How rotary frequencies are changed for longer contexts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum RopeScaling {
    None,
    /// All frequencies divided.
    Linear {
        factor: f64,
    },
    /// Low frequencies divided, high ones kept, a ramp between (Llama 3.1).
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_context: f64,
    },
}

/// Feed-forward part.
#[derive(Debug, Clone)]
pub(super) struct MlpSpec {
    pub d_mlp: usize,
    pub activation: Activation,
    /// Neurons are `act(gate) * up`.
    pub gated: bool,
    /// Both layers have biases.
    pub bias: bool,
}

/// A non-linearity, named as Hugging Face names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activation {
    /// With the error function.
    Gelu,
    /// With a tanh.
    GeluNew,
    Silu,
    Relu,
}

impl Activation {
    /// Every name that is understood.
    pub const NAMES: &'static str = "gelu, gelu_new, gelu_pytorch_tanh, silu, swish, relu";

    /// From its name in config.json.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "gelu" => Self::Gelu,
            // One function under three names; they differ in how it is evaluated.
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Self::GeluNew,
            "silu" | "swish" => Self::Silu,
            "relu" => Self::Relu,
            _ => return None,
        })
    }
}

impl Spec {
    /// Every hook point, in forward order.
    pub fn hook_points(&self) -> Vec<HookPoint> {
        let mut points = vec![HookPoint::block(0, Site::Embed)];
        for (layer, block) in self.blocks.iter().enumerate() {
            let sites = Site::IN_BLOCK.into_iter().filter(|&site| !(block.parallel && site == Site::ResidMid));
            points.extend(sites.map(|site| HookPoint::block(layer, site)));
        }
        points.push(HookPoint::block(0, Site::LnFinal));
        points
    }

    /// Width of a hook point, if the decoder has it.
    pub fn width(&self, at: &HookPoint) -> Option<usize> {
        let block = if at.site.is_in_block() { self.blocks.get(at.layer)? } else { self.blocks.first()? };
        match at.site {
            Site::ResidMid if block.parallel => None,
            Site::AttnZ => Some(block.attention.n_heads * block.attention.d_head),
            Site::MlpPost => Some(block.mlp.d_mlp),
            _ => Some(self.d_model),
        }
    }
}

/// Where a family keeps what stands around the blocks: tensor names below the common prefix, which are module paths as well.
#[derive(Debug, Clone, Copy)]
pub(super) struct Names {
    /// Prefix of everything but the head, with its dot ("model."); files without it are read too.
    pub prefix: &'static str,
    pub embed: &'static str,
    pub positions: &'static str,
    /// "layers" or "h".
    pub blocks: &'static str,
    pub attention: &'static str,
    pub mlp: &'static str,
    pub final_norm: &'static str,
    pub final_norm_bias: bool,
    /// Full name of the untied head's weight.
    pub head: &'static str,
}

impl Names {
    /// The module whose output a hook point is.
    pub fn hf_path(&self, at: &HookPoint) -> Option<String> {
        let Names { prefix, blocks, .. } = self;
        let layer = at.layer;
        match at.site {
            Site::Embed => Some(format!("{prefix}{}", self.embed)),
            Site::LnFinal => Some(format!("{prefix}{}", self.final_norm)),
            Site::ResidPost => Some(format!("{prefix}{blocks}.{layer}")),
            Site::AttnOut => Some(format!("{prefix}{blocks}.{layer}.{}", self.attention)),
            Site::MlpOut => Some(format!("{prefix}{blocks}.{layer}.{}", self.mlp)),
            Site::ResidPre | Site::AttnZ | Site::ResidMid | Site::MlpPost => None,
        }
    }
}
