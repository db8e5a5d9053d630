//! GPT-2: learned positions, pre-LayerNorm, tied head. Its `Conv1D` weights are stored `[in, out]`, and q, k, v in one matrix.
//!
//! Radford et al., "Language Models are Unsupervised Multitask Learners" (2019).

use serde_json::Value;

use super::{activation, Family, Layer};
use crate::error::Result;
use crate::host::config::Config;
use crate::host::layers::{Block, Linear};
use crate::host::spec::{AttentionSpec, BlockSpec, MlpSpec, Names, NormKind, NormSpec, Norms, QkNorm, Spec};
use crate::host::weights::{Part, Weights};

pub(super) const FAMILY: Family = Family {
    name: "gpt2",
    model_types: &["gpt2"],
    architectures: &["GPT2LMHeadModel", "GPT2Model"],
    within: None,
    spec,
    block,
    norm_offset: 0.0,
    names: NAMES,
};

const NAMES: Names = Names {
    prefix: "transformer.",
    old_prefixes: &[],
    embed: "wte",
    positions: "wpe",
    blocks: "h",
    attention: "attn",
    mlp: "mlp",
    final_norm: "ln_f",
    final_norm_bias: true,
    head: "lm_head.weight",
    post_norms: None,
};

fn spec(config: &Config) -> Result<Spec> {
    let d_model = config.size("n_embd")?;
    let n_heads = config.size("n_head")?;
    if d_model % n_heads != 0 {
        return Err(config.wrong("n_head", format!("{n_heads} does not divide n_embd = {d_model}"), "correct the file"));
    }
    let d_head = d_model / n_heads;
    let activation = activation(config, &["activation_function"], "gelu_new")?;
    config.refuse_unless("add_cross_attention", &Value::from(false))?;
    let norm = NormSpec { kind: NormKind::Layer, eps: config.positive("layer_norm_epsilon", Some(1e-5))? };
    let scaled = config.flag("scale_attn_weights", true)?;
    let by_layer = config.flag("scale_attn_by_inverse_layer_idx", false)?;
    let d_mlp = config.size_or("n_inner", Some(4 * d_model))?;
    let blocks = (0..config.layers("n_layer")?).map(|layer| BlockSpec {
        norm,
        norms: Norms::Before,
        parallel: false,
        attention: AttentionSpec {
            n_heads,
            n_kv_heads: n_heads,
            d_head,
            scale: if scaled { 1.0 / (d_head as f64).sqrt() } else { 1.0 } / if by_layer { (layer + 1) as f64 } else { 1.0 },
            softcap: None,
            window: None,
            rope: None,
            qk_norm: QkNorm::None,
            norm,
            qkv_bias: true,
            out_bias: true,
        },
        mlp: MlpSpec { d_mlp, activation, gated: false, bias: true },
    });
    let spec = Spec {
        d_model,
        vocab_size: config.size("vocab_size")?,
        n_context: config.size_or("n_positions", Some(1024))?,
        blocks: blocks.collect(),
        final_norm: norm,
        learned_positions: true,
        embed_scale: 1.0,
        final_softcap: None,
        tied: config.flag("tie_word_embeddings", true)?,
        bos_token_id: config.token_ids_or("bos_token_id", Some(50_256))?.first().copied(),
        eos_token_ids: config.token_ids_or("eos_token_id", Some(50_256))?,
    };
    config.refuse_the_rest("gpt2")?;
    Ok(spec)
}

fn block(weights: &Weights, spec: &Spec, layer: usize) -> Result<Block> {
    let (d, d_mlp) = (spec.d_model, spec.blocks[layer].mlp.d_mlp);
    let at = Layer { weights, layer };
    let linear = |name: &str, from: usize, to: usize| -> Result<Linear> {
        let part = |suffix: &str, n: usize| [Part::new(at.name(&format!("{name}.{suffix}")), n)];
        Ok(Linear::new(weights.stacked(&part("weight", from), Some(to))?, Some(weights.stacked(&part("bias", to), None)?)))
    };
    Ok(Block {
        attention_norm: Some(at.norm("ln_1", d, true)?),
        qkv: linear("attn.c_attn", d, 3 * d)?,
        q_norm: None,
        k_norm: None,
        attention_out: linear("attn.c_proj", d, d)?,
        attention_after: None,
        mlp_norm: Some(at.norm("ln_2", d, true)?),
        mlp_in: linear("mlp.c_fc", d, d_mlp)?,
        mlp_out: linear("mlp.c_proj", d_mlp, d)?,
        mlp_after: None,
    })
}
