//! GPT-NeoX and Pythia: LayerNorm, attention and MLP side by side, rotary positions over a part of each head, biases. Stores q, k and v
//! of a head together, head after head.
//!
//! Black et al., "GPT-NeoX-20B" (2022); Biderman et al., "Pythia" (2023).

use super::{activation, Family, Layer};
use crate::error::Result;
use crate::host::config::Config;
use crate::host::layers::{Block, Linear};
use crate::host::rope::{self, RopeDefaults};
use crate::host::spec::{AttentionSpec, BlockSpec, MlpSpec, Names, NormKind, NormSpec, Norms, QkNorm, Spec};
use crate::host::weights::{Part, Weights};

pub(super) const FAMILY: Family = Family {
    name: "gpt_neox",
    model_types: &["gpt_neox"],
    architectures: &["GPTNeoXForCausalLM", "GPTNeoXModel"],
    within: None,
    spec,
    block,
    norm_offset: 0.0,
    names: NAMES,
};

const NAMES: Names = Names {
    prefix: "gpt_neox.",
    old_prefixes: &[],
    embed: "embed_in",
    positions: "",
    blocks: "layers",
    attention: "attention",
    mlp: "mlp",
    final_norm: "final_layer_norm",
    final_norm_bias: true,
    head: "embed_out.weight",
    post_norms: None,
};

fn spec(config: &Config) -> Result<Spec> {
    let d_model = config.size("hidden_size")?;
    let n_heads = config.size("num_attention_heads")?;
    if d_model % n_heads != 0 {
        let problem = format!("{n_heads} does not divide hidden_size = {d_model}");
        return Err(config.wrong("num_attention_heads", problem, "correct the file"));
    }
    let d_head = d_model / n_heads;
    let n_context = config.size_or("max_position_embeddings", Some(2048))?;
    let defaults = RopeDefaults { theta_key: "rotary_emb_base", partial: Some(("rotary_pct", 0.25)), ..RopeDefaults::default() };
    let rope = rope::read(config, d_head, n_context, &defaults, "full_attention")?;
    // The usual spellings outside any table are not this family's: they must not say something else.
    config.refuse_unless("rope_theta", &rope.theta.into())?;
    if let Some(part) = config.number_if("partial_rotary_factor")?.filter(|part| (d_head as f64 * part) as usize != rope.dims) {
        return Err(config.unsupported("partial_rotary_factor", part, "this architecture says `rotary_pct`"));
    }
    let norm = NormSpec { kind: NormKind::Layer, eps: config.positive("layer_norm_eps", Some(1e-5))? };
    let bias = config.flag("attention_bias", true)?;
    let block = BlockSpec {
        norm,
        norms: Norms::Before,
        parallel: config.flag("use_parallel_residual", true)?,
        mlp: MlpSpec {
            d_mlp: config.size("intermediate_size")?,
            activation: activation(config, &["hidden_act"], "gelu")?,
            gated: false,
            bias: true,
        },
        attention: AttentionSpec {
            n_heads,
            n_kv_heads: n_heads,
            d_head,
            scale: 1.0 / (d_head as f64).sqrt(),
            softcap: None,
            window: None,
            qk_norm: QkNorm::None,
            norm,
            qkv_bias: bias,
            out_bias: bias,
            rope: Some(rope.clone()),
        },
    };
    let spec = Spec {
        d_model,
        vocab_size: config.size("vocab_size")?,
        n_context: rope.stretches_to(n_context),
        blocks: vec![block; config.layers("num_hidden_layers")?],
        final_norm: norm,
        learned_positions: false,
        embed_scale: 1.0,
        final_softcap: None,
        tied: config.flag("tie_word_embeddings", false)?,
        bos_token_id: config.token_ids_or("bos_token_id", Some(0))?.first().copied(),
        eos_token_ids: config.token_ids_or("eos_token_id", Some(2))?,
    };
    config.refuse_the_rest("gpt_neox")?;
    Ok(spec)
}

fn block(weights: &Weights, spec: &Spec, layer: usize) -> Result<Block> {
    let (d, block) = (spec.d_model, &spec.blocks[layer]);
    let attention = &block.attention;
    let at = Layer { weights, layer };
    // Stored: for each head its q rows, k rows, v rows. Wanted: the q rows of all heads, then k, then v.
    let width = attention.d_head;
    let order: Vec<usize> = (0..3 * d).map(|row| (row % d / width * 3 + row / d) * width + row % width).collect();
    let qkv = |suffix: &str| [Part::reordered(at.name(&format!("attention.query_key_value.{suffix}")), order.clone())];
    let bias = if attention.qkv_bias { Some(weights.stacked(&qkv("bias"), None)?) } else { None };
    Ok(Block {
        attention_norm: Some(at.norm("input_layernorm", d, true)?),
        qkv: Linear::new(weights.stacked(&qkv("weight"), Some(d))?.t()?, bias),
        q_norm: None,
        k_norm: None,
        attention_out: at.rows(&[("attention.dense", d)], d, attention.out_bias)?,
        attention_after: None,
        mlp_norm: Some(at.norm("post_attention_layernorm", d, true)?),
        mlp_in: at.rows(&[("mlp.dense_h_to_4h", block.mlp.d_mlp)], d, true)?,
        mlp_out: at.rows(&[("mlp.dense_4h_to_h", d)], block.mlp.d_mlp, true)?,
        mlp_after: None,
    })
}
