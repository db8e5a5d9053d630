//! Gemma 1 to 3, text: Llama with embeddings scaled by the root of the width, norm weights stored around zero, a gelu in the gate and a
//! tied head. Gemma 2 norms what attention and MLP add as well, caps attention scores and logits, and windows every other layer; Gemma 3
//! norms queries and keys instead of capping, windows five layers of six, and rotates the windowed ones by a base of their own.
//!
//! Gemma team, "Gemma" (2024), "Gemma 2" (2024), "Gemma 3 Technical Report" (2025).

use super::{llama, rotary_block, rotary_decoder, window_layers, BlockNorms, Defaults, Family, ROTARY_NAMES};
use crate::error::Result;
use crate::host::config::Config;
use crate::host::rope::{self, RopeDefaults};
use crate::host::spec::{Activation, Names, NormKind, Norms, QkNorm, Spec};

const AROUND: BlockNorms = BlockNorms {
    attention: Some("input_layernorm"),
    mlp: Some("pre_feedforward_layernorm"),
    after: Some(("post_attention_layernorm", "post_feedforward_layernorm")),
};

pub(super) const GEMMA: Family = Family {
    name: "gemma",
    model_types: &["gemma"],
    architectures: &["GemmaForCausalLM", "GemmaModel"],
    spec: gemma,
    norm_offset: 1.0,
    ..llama::FAMILY
};

pub(super) const GEMMA2: Family = Family {
    name: "gemma2",
    model_types: &["gemma2"],
    architectures: &["Gemma2ForCausalLM", "Gemma2Model"],
    spec: gemma2,
    block: |weights, spec, layer| rotary_block(weights, spec, layer, AROUND),
    names: Names { post_norms: AROUND.after, ..ROTARY_NAMES },
    ..GEMMA
};

pub(super) const GEMMA3_TEXT: Family = Family {
    name: "gemma3_text",
    model_types: &["gemma3_text"],
    architectures: &["Gemma3ForCausalLM", "Gemma3TextModel"],
    spec: gemma3,
    ..GEMMA2
};

/// The language model inside a model that also reads images, which are left out.
pub(super) const GEMMA3: Family = Family {
    name: "gemma3",
    model_types: &["gemma3"],
    architectures: &["Gemma3ForConditionalGeneration", "Gemma3Model"],
    within: Some("text_config"),
    names: Names { prefix: "model.language_model.", old_prefixes: &["language_model.model.", "language_model."], ..GEMMA2.names },
    ..GEMMA3_TEXT
};

const DEFAULTS: Defaults = Defaults {
    d_head: Some(256),
    n_context: 8192,
    activation: "gelu_pytorch_tanh",
    norm: NormKind::RmsLate,
    tied: true,
    bos: Some(2),
    eos: Some(1),
    ..Defaults::LLAMA
};

/// What the three have in common, given their defaults.
fn common(config: &Config, defaults: &Defaults) -> Result<Spec> {
    let mut spec = rotary_decoder(config, defaults)?;
    spec.embed_scale = (spec.d_model as f64).sqrt();
    let bias = config.flag("attention_bias", false)?;
    config.refuse_unless("use_bidirectional_attention", &false.into())?;
    for block in &mut spec.blocks {
        (block.attention.qkv_bias, block.attention.out_bias) = (bias, bias);
    }
    Ok(spec)
}

fn gemma(config: &Config) -> Result<Spec> {
    // The first releases said `gelu` and meant its tanh form; `hidden_activation` came to set it right.
    let mut spec = common(config, &Defaults { n_kv_heads: Some(16), n_heads: Some(16), ..DEFAULTS })?;
    let said = config.string("hidden_activation")?;
    let activation = match said.as_deref() {
        None | Some("gelu" | "gelu_pytorch_tanh") => None,
        Some(other) => Some(
            Activation::from_name(other)
                .ok_or_else(|| config.unsupported("hidden_activation", other, format!("the supported ones are {}", Activation::NAMES)))?,
        ),
    };
    for block in &mut spec.blocks {
        if let Some(activation) = activation {
            block.mlp.activation = activation;
        } else if block.mlp.activation == Activation::Gelu {
            block.mlp.activation = Activation::GeluNew;
        }
    }
    config.refuse_the_rest("gemma")?;
    Ok(spec)
}

fn gemma2(config: &Config) -> Result<Spec> {
    let defaults = Defaults { n_heads: Some(8), n_kv_heads: Some(4), activation_keys: &["hidden_activation", "hidden_act"], ..DEFAULTS };
    let mut spec = common(config, &defaults)?;
    let window = config.window("sliding_window", Some(4096))?;
    window_layers(config, &mut spec, window, |layer| layer % 2 == 0)?;
    let scale = config.positive("query_pre_attn_scalar", Some(256.0))?.powf(-0.5);
    let softcap = config.positive_or_off("attn_logit_softcapping", Some(50.0))?;
    spec.final_softcap = config.positive_or_off("final_logit_softcapping", Some(30.0))?;
    for block in &mut spec.blocks {
        block.norms = Norms::Around;
        (block.attention.scale, block.attention.softcap) = (scale, softcap);
    }
    config.refuse_the_rest("gemma2")?;
    Ok(spec)
}

fn gemma3(config: &Config) -> Result<Spec> {
    let rope = RopeDefaults { theta: 1_000_000.0, ..RopeDefaults::default() };
    let defaults = Defaults {
        n_heads: Some(8),
        n_kv_heads: Some(4),
        vocab_size: Some(262_208),
        n_context: 131_072,
        activation_keys: &["hidden_activation", "hidden_act"],
        rope,
        ..DEFAULTS
    };
    if let Some(table) = config.table("rope_parameters")? {
        // A table for all layers would leave it open which kind it is for.
        if table.table("full_attention")?.is_none() && table.table("sliding_attention")?.is_none() && !table.is_empty() {
            let help = "give rope_parameters a table for full_attention and one for sliding_attention";
            return Err(config.wrong("rope_parameters", "has no table per kind of layer", help));
        }
    }
    let mut spec = common(config, &defaults)?;
    let local = local_rope(config, &spec)?;
    let period = config.size_or("sliding_window_pattern", config.size_if("_sliding_window_pattern")?.or(Some(6)))?;
    let window = config.window("sliding_window", Some(4096))?;
    window_layers(config, &mut spec, window, |layer| (layer + 1) % period != 0)?;
    let scale = config.positive("query_pre_attn_scalar", Some(256.0))?.powf(-0.5);
    // Transformers reads it and never applies it, so what it should mean is nobody's guess.
    config.refuse_unless("attn_logit_softcapping", &serde_json::Value::Null)?;
    spec.final_softcap = config.positive_or_off("final_logit_softcapping", None)?;
    for block in &mut spec.blocks {
        block.norms = Norms::Around;
        block.attention.scale = scale;
        block.attention.qk_norm = QkNorm::Head;
        if block.attention.window.is_some() {
            block.attention.rope = Some(local.clone());
        }
    }
    config.refuse_the_rest("gemma3")?;
    Ok(spec)
}

/// The rotation of the windowed layers: `rope_scaling` is for the others only.
fn local_rope(config: &Config, spec: &Spec) -> Result<rope::RopeSpec> {
    let defaults = RopeDefaults { theta_key: "rope_local_base_freq", ..RopeDefaults::default() };
    let own = match config.table("rope_parameters")? {
        Some(table) => table.table("sliding_attention")?,
        None => None,
    };
    let d_head = spec.blocks[0].attention.d_head; // a size in a config is at least 1
    rope::read_table(config, "rope_parameters", &own.unwrap_or_else(|| config.empty()), d_head, spec.n_context, &defaults)
}
