//! Architecture families: each says how its configuration and its tensor names map to the specification.
//!
//! Most are Llama with changes, so [`rotary_decoder`] reads a Llama-shaped specification with a family's defaults and the family's file
//! changes it; [`rotary_block`] reads the parameters by the names that nearly all of them use. What a file leaves out means what it
//! means to Hugging Face's class of that family.

use super::config::Config;
use super::layers::{Block, Linear, Norm};
use super::rope::{self, RopeDefaults};
use super::spec::{Activation, AttentionSpec, BlockSpec, MlpSpec, Names, NormKind, NormSpec, Norms, QkNorm, Spec};
use super::weights::{Part, Weights};
use crate::error::{Error, Result};

mod gemma;
mod gpt2;
mod gpt_neox;
mod llama;
mod mistral;
mod olmo2;
mod phi3;
mod qwen;
mod starcoder2;

/// An architecture family: how its files say what `spec` and `layers` need.
pub(super) struct Family {
    /// As in `HostInfo::family`.
    pub name: &'static str,
    /// `model_type` values of config.json.
    pub model_types: &'static [&'static str],
    /// `architectures` values, for files without a `model_type`.
    pub architectures: &'static [&'static str],
    /// The table of config.json that describes the language model, where that is not the whole file.
    pub within: Option<&'static str>,
    /// Configuration to specification.
    pub spec: fn(&Config) -> Result<Spec>,
    /// Parameters of one block.
    pub block: fn(&Weights, &Spec, usize) -> Result<Block>,
    /// What is added to norm weights as stored: Gemma's are around zero.
    pub norm_offset: f64,
    /// Where the tensors and modules around the blocks are.
    pub names: Names,
}

/// Every family; adding one is a file and a line here.
pub(super) const ALL: &[Family] = &[
    gpt2::FAMILY,
    gpt_neox::FAMILY,
    llama::FAMILY,
    mistral::FAMILY,
    qwen::QWEN2,
    qwen::QWEN3,
    gemma::GEMMA,
    gemma::GEMMA2,
    gemma::GEMMA3_TEXT,
    gemma::GEMMA3,
    phi3::FAMILY,
    olmo2::FAMILY,
    starcoder2::FAMILY,
];

/// The names of all families, for messages.
pub(super) fn names() -> String {
    ALL.iter().map(|f| f.name).collect::<Vec<_>>().join(", ")
}

/// The family that a configuration names.
///
/// # Errors
/// When it names none, or none that is known; the message lists them.
pub(super) fn of(config: &Config) -> Result<&'static Family> {
    let model_type = config.string("model_type")?;
    let architectures = config.strings("architectures")?;
    let found = match &model_type {
        Some(given) => ALL.iter().find(|f| f.model_types.contains(&given.as_str())),
        None => ALL.iter().find(|f| architectures.iter().any(|a| f.architectures.contains(&a.as_str()))),
    };
    found.ok_or_else(|| {
        let given = model_type.unwrap_or_else(|| if architectures.is_empty() { "none given".into() } else { architectures.join(", ") });
        Error::Unsupported {
            by: "a host".into(),
            what: format!("the architecture `{given}` ({})", config.path().display()),
            instead: format!("the supported families are {}", names()),
        }
    })
}

/// What a rotary family's configuration means where it is silent.
#[derive(Clone, Copy)]
struct Defaults {
    n_heads: Option<usize>,
    /// `None`: as many as query heads. A null in the file always means that.
    n_kv_heads: Option<usize>,
    /// `None`: the model's width over the number of heads. A null in the file always means that.
    d_head: Option<usize>,
    vocab_size: Option<usize>,
    n_context: usize,
    /// Keys of the activation's name; where several are given they must agree.
    activation_keys: &'static [&'static str],
    activation: &'static str,
    norm: NormKind,
    eps_key: &'static str,
    eps: f64,
    rope: RopeDefaults,
    tied: bool,
    bos: Option<u32>,
    eos: Option<u32>,
}

impl Defaults {
    /// Llama's.
    const LLAMA: Self = Self {
        n_heads: None,
        n_kv_heads: None,
        d_head: None,
        vocab_size: None,
        n_context: 2048,
        activation_keys: &["hidden_act"],
        activation: "silu",
        norm: NormKind::Rms,
        eps_key: "rms_norm_eps",
        eps: 1e-6,
        rope: RopeDefaults { theta: 10_000.0, theta_key: "rope_theta", partial: None, original_context: None, longrope_aliases: false },
        tied: false,
        bos: Some(1),
        eos: Some(2),
    };
}

/// The activation's name, from any of its keys.
fn activation(config: &Config, keys: &[&'static str], default: &str) -> Result<Activation> {
    let mut found: Option<(&str, String)> = None;
    for &key in keys {
        let Some(name) = config.string(key)? else { continue };
        if let Some((other, given)) = found.as_ref().filter(|(_, given)| Activation::from_name(given) != Activation::from_name(&name)) {
            let problem = format!("is `{name}`, but `{other}` is `{given}`");
            return Err(config.wrong(key, problem, "keep the one that the model was trained with"));
        }
        found.get_or_insert((key, name));
    }
    let (key, name) = found.unwrap_or((keys[0], default.to_string()));
    Activation::from_name(&name).ok_or_else(|| config.unsupported(key, &name, format!("the supported ones are {}", Activation::NAMES)))
}

/// A Llama-shaped specification: RMSNorm before attention and MLP, rotary positions over the whole head, a gated MLP, no biases, full
/// attention. The caller changes what its family does otherwise and then calls [`Config::refuse_the_rest`].
fn rotary_decoder(config: &Config, defaults: &Defaults) -> Result<Spec> {
    let d_model = config.size("hidden_size")?;
    let n_heads = config.size_or("num_attention_heads", defaults.n_heads)?;
    let absent = |key: &str, default: Option<usize>| if config.is_null(key) { None } else { default };
    let n_kv_heads = config.size_or("num_key_value_heads", absent("num_key_value_heads", defaults.n_kv_heads).or(Some(n_heads)))?;
    if n_heads % n_kv_heads != 0 {
        let problem = format!("{n_kv_heads} does not divide num_attention_heads = {n_heads}");
        return Err(config.wrong("num_key_value_heads", problem, "correct the file"));
    }
    // Not always hidden / heads; old files do not say.
    let d_head = match config.size_if("head_dim")?.or(absent("head_dim", defaults.d_head)) {
        Some(given) => given,
        None if d_model % n_heads == 0 => d_model / n_heads,
        None => {
            let problem = format!("{n_heads} does not divide hidden_size = {d_model}, and there is no head_dim");
            return Err(config.wrong("num_attention_heads", problem, "correct the file"));
        }
    };
    let n_context = config.size_or("max_position_embeddings", Some(defaults.n_context))?;
    let rope = rope::read(config, d_head, n_context, &defaults.rope, "full_attention")?;
    let norm = NormSpec { kind: defaults.norm, eps: config.positive(defaults.eps_key, Some(defaults.eps))? };
    let block = BlockSpec {
        norm,
        norms: Norms::Before,
        parallel: false,
        mlp: MlpSpec {
            d_mlp: config.size("intermediate_size")?,
            activation: activation(config, defaults.activation_keys, defaults.activation)?,
            gated: true,
            bias: false,
        },
        attention: AttentionSpec {
            n_heads,
            n_kv_heads,
            d_head,
            scale: 1.0 / (d_head as f64).sqrt(),
            softcap: None,
            window: None,
            qk_norm: QkNorm::None,
            norm,
            qkv_bias: false,
            out_bias: false,
            rope: Some(rope.clone()),
        },
    };
    Ok(Spec {
        d_model,
        vocab_size: config.size_or("vocab_size", defaults.vocab_size)?,
        n_context: rope.stretches_to(n_context),
        blocks: vec![block; config.layers("num_hidden_layers")?],
        final_norm: norm,
        learned_positions: false,
        embed_scale: 1.0,
        final_softcap: None,
        tied: config.flag("tie_word_embeddings", defaults.tied)?,
        bos_token_id: config.token_ids_or("bos_token_id", defaults.bos)?.first().copied(),
        eos_token_ids: config.token_ids_or("eos_token_id", defaults.eos)?,
    })
}

/// Windows attention in the layers that `layer_types` names, or else in those that `otherwise` picks.
fn window_layers(config: &Config, spec: &mut Spec, window: Option<usize>, otherwise: impl Fn(usize) -> bool) -> Result<()> {
    let windowed = config.windowed_layers(spec.blocks.len(), otherwise)?;
    for (block, _) in spec.blocks.iter_mut().zip(windowed).filter(|(_, windowed)| *windowed) {
        block.attention.window = Some(window.ok_or_else(|| {
            config.wrong("sliding_window", "is null, and some layers have sliding attention", "give the window, or full attention")
        })?);
    }
    Ok(())
}

/// Windows attention in every layer, where there is a window.
fn window_all(config: &Config, spec: &mut Spec, window: Option<usize>) -> Result<()> {
    let windowed = config.windowed_layers(spec.blocks.len(), |_| window.is_some())?;
    if windowed.iter().any(|&w| w != window.is_some()) {
        return Err(config.unsupported("layer_types", "a mixture", "in this architecture all layers have the sliding window, or none"));
    }
    spec.blocks.iter_mut().for_each(|block| block.attention.window = window);
    Ok(())
}

/// Names of the tensors around the blocks, as nearly all rotary families have them.
const ROTARY_NAMES: Names = Names {
    prefix: "model.",
    old_prefixes: &[],
    embed: "embed_tokens",
    positions: "",
    blocks: "layers",
    attention: "self_attn",
    mlp: "mlp",
    final_norm: "norm",
    final_norm_bias: false,
    head: "lm_head.weight",
    post_norms: None,
};

/// The norms of a block with one on what attention and MLP read.
const NORMS_BEFORE: BlockNorms = BlockNorms { attention: Some("input_layernorm"), mlp: Some("post_attention_layernorm"), after: None };

/// Tensor names of a block's norms.
#[derive(Clone, Copy)]
struct BlockNorms {
    attention: Option<&'static str>,
    mlp: Option<&'static str>,
    /// On what attention and MLP add.
    after: Option<(&'static str, &'static str)>,
}

/// The parameters of a block by the names q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj.
fn rotary_block(weights: &Weights, spec: &Spec, layer: usize, norms: BlockNorms) -> Result<Block> {
    let (d, block) = (spec.d_model, &spec.blocks[layer]);
    let (attention, mlp) = (&block.attention, &block.mlp);
    let (q, kv) = (attention.n_heads * attention.d_head, attention.n_kv_heads * attention.d_head);
    let at = Layer { weights, layer };
    let (q_norm, k_norm) = match attention.qk_norm {
        QkNorm::None => (None, None),
        QkNorm::Head => (Some(attention.d_head), Some(attention.d_head)),
        QkNorm::Whole => (Some(q), Some(kv)),
    };
    let qk = |name: &str, width: Option<usize>| width.map(|width| at.norm(&format!("self_attn.{name}"), width, false)).transpose();
    let norm = |name: Option<&str>| name.map(|name| at.norm(name, d, block.norm.kind == NormKind::Layer)).transpose();
    Ok(Block {
        attention_norm: norm(norms.attention)?,
        qkv: at.rows(&[("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)], d, attention.qkv_bias)?,
        q_norm: qk("q_norm", q_norm)?,
        k_norm: qk("k_norm", k_norm)?,
        attention_out: at.rows(&[("self_attn.o_proj", d)], q, attention.out_bias)?,
        attention_after: norm(norms.after.map(|n| n.0))?,
        mlp_norm: norm(norms.mlp)?,
        mlp_in: if mlp.gated {
            at.rows(&[("mlp.gate_proj", mlp.d_mlp), ("mlp.up_proj", mlp.d_mlp)], d, mlp.bias)?
        } else {
            at.rows(&[("mlp.c_fc", mlp.d_mlp)], d, mlp.bias)?
        },
        mlp_out: at.rows(&[(if mlp.gated { "mlp.down_proj" } else { "mlp.c_proj" }, d)], mlp.d_mlp, mlp.bias)?,
        mlp_after: norm(norms.after.map(|n| n.1))?,
    })
}

/// The tensors of one block.
struct Layer<'a> {
    weights: &'a Weights<'a>,
    layer: usize,
}

impl Layer<'_> {
    fn name(&self, name: &str) -> String {
        format!("{}.{}.{name}", self.weights.names.blocks, self.layer)
    }

    /// Layers that read the same input, stored `[out, in]`, as one product.
    fn rows(&self, parts: &[(&str, usize)], from: usize, bias: bool) -> Result<Linear> {
        let named =
            |suffix: &str| parts.iter().map(|(name, to)| Part::new(self.name(&format!("{name}.{suffix}")), *to)).collect::<Vec<_>>();
        let weight = self.weights.stacked(&named("weight"), Some(from))?;
        let bias = if bias { Some(self.weights.stacked(&named("bias"), None)?) } else { None };
        Ok(Linear::new(weight.t()?, bias))
    }

    /// A norm of `width`.
    fn norm(&self, name: &str, width: usize, bias: bool) -> Result<Norm> {
        self.weights.norm(&self.name(name), width, bias)
    }
}
