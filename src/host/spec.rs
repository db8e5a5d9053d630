//! What a decoder computes, as plain data: the family files write it, `decoder` and `layers` read it.
//!
//! A field here is implemented in every path. A family that needs more adds the field and its one use in `decoder` or `layers`; nothing
//! else changes.

use super::rope::RopeSpec;
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
    /// What embeddings are multiplied by as they enter the residual stream.
    pub embed_scale: f64,
    /// Logits become `cap * tanh(logit / cap)`.
    pub final_softcap: Option<f64>,
    /// The head is the token embedding.
    pub tied: bool,
    pub bos_token_id: Option<u32>,
    pub eos_token_ids: Vec<u32>,
}

/// One block.
#[derive(Debug, Clone)]
pub(super) struct BlockSpec {
    /// Kind of every norm of the block.
    pub norm: NormSpec,
    pub norms: Norms,
    /// Attention and MLP both read the block's input (GPT-NeoX), so that there is no `resid_mid`.
    pub parallel: bool,
    pub attention: AttentionSpec,
    pub mlp: MlpSpec,
}

/// Where a block has norms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Norms {
    /// On what attention and MLP read (nearly everyone).
    Before,
    /// On what they add to the stream (OLMo 2).
    After,
    /// On both (Gemma 2 and 3).
    Around,
}

impl Norms {
    /// On what they add to the stream.
    pub fn after(self) -> bool {
        self != Self::Before
    }
}

/// A norm over the last dimension.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct NormSpec {
    pub kind: NormKind,
    pub eps: f64,
}

/// How a norm centres and scales. (Gemma's `1 + w` is folded into the weight when it is read.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NormKind {
    /// Centre, divide by the standard deviation.
    Layer,
    /// Divide by the root mean square. In a bf16 run the result is rounded before the weight is applied (Llama, Qwen, Phi).
    Rms,
    /// The same, rounded once, after the weight (Gemma, OLMo 2).
    RmsLate,
}

/// Norms of queries and keys, before they are rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QkNorm {
    None,
    /// Of each head, by one weight for all heads (Qwen 3, Gemma 3).
    Head,
    /// Of all heads together (OLMo 2).
    Whole,
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
    pub qk_norm: QkNorm,
    /// Kind of that norm.
    pub norm: NormSpec,
    /// q, k and v have biases.
    pub qkv_bias: bool,
    /// The output projection has one.
    pub out_bias: bool,
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
    /// The square of `Relu`.
    Relu2,
    /// `x * sigmoid(1.702 x)`.
    QuickGelu,
}

impl Activation {
    /// Every name that is understood.
    pub const NAMES: &'static str = "gelu, gelu_new, gelu_pytorch_tanh, silu, swish, relu, relu2, quick_gelu";

    /// From its name in config.json.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "gelu" | "gelu_python" => Self::Gelu,
            // One function under several names; they differ in how it is evaluated.
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_python_tanh" | "gelu_fast" | "gelu_accurate" => Self::GeluNew,
            "silu" | "swish" => Self::Silu,
            "relu" => Self::Relu,
            "relu2" => Self::Relu2,
            "quick_gelu" => Self::QuickGelu,
            _ => return None,
        })
    }
}

impl Spec {
    /// Every hook point, in forward order.
    pub fn hook_points(&self) -> Vec<HookPoint> {
        let mut points = vec![HookPoint::block(0, Site::Embed)];
        for (layer, block) in self.blocks.iter().enumerate() {
            points.extend(Site::IN_BLOCK.into_iter().filter(|&site| block.has(site)).map(|site| HookPoint::block(layer, site)));
        }
        points.push(HookPoint::block(0, Site::LnFinal));
        points
    }

    /// Width of a hook point, if the decoder has it.
    pub fn width(&self, at: &HookPoint) -> Option<usize> {
        let block = if at.site.is_in_block() { self.blocks.get(at.layer)? } else { self.blocks.first()? };
        match at.site {
            site if !block.has(site) => None,
            Site::AttnZ => Some(block.attention.n_heads * block.attention.d_head),
            Site::MlpPost => Some(block.mlp.d_mlp),
            _ => Some(self.d_model),
        }
    }
}

impl BlockSpec {
    /// Does the block pass this site? (Sites outside blocks are always there.)
    fn has(&self, site: Site) -> bool {
        match site {
            Site::ResidMid => !self.parallel,
            Site::AttnRaw | Site::MlpRaw => self.norms.after(),
            _ => true,
        }
    }
}

/// Where a family keeps what stands around the blocks: tensor names below the common prefix, which are module paths as well.
#[derive(Debug, Clone, Copy)]
pub(super) struct Names {
    /// Prefix of everything but the head, with its dot ("model."). Files without it are read too.
    pub prefix: &'static str,
    /// Older spellings of the prefix.
    pub old_prefixes: &'static [&'static str],
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
    /// Modules of a block whose outputs are added to the stream, if they are not attention and MLP themselves.
    pub post_norms: Option<(&'static str, &'static str)>,
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
            Site::AttnOut => Some(format!("{prefix}{blocks}.{layer}.{}", self.post_norms.map_or(self.attention, |p| p.0))),
            Site::MlpOut => Some(format!("{prefix}{blocks}.{layer}.{}", self.post_norms.map_or(self.mlp, |p| p.1))),
            Site::AttnRaw => self.post_norms.map(|_| format!("{prefix}{blocks}.{layer}.{}", self.attention)),
            Site::MlpRaw => self.post_norms.map(|_| format!("{prefix}{blocks}.{layer}.{}", self.mlp)),
            Site::ResidPre | Site::AttnZ | Site::ResidMid | Site::MlpPost => None,
        }
    }
}
