//! Llama: rotary positions, RMSNorm, grouped keys and values, a gated MLP. Weights are stored `[out, in]`.
//!
//! Touvron et al., "LLaMA: Open and Efficient Foundation Language Models" (2023); Llama 3.1's rope scaling is in `layers`.

use serde_json::Value;

use super::config::Config;
use super::layers::{Block, Linear, Norm};
use super::spec::{Activation, AttentionSpec, BlockSpec, MlpSpec, Names, NormKind, NormSpec, RopeSpec, Spec};
use super::weights::Weights;
use super::Family;
use crate::error::Result;

pub(super) const FAMILY: Family =
    Family { name: "llama", model_types: &["llama"], architectures: &["LlamaForCausalLM", "LlamaModel"], spec, block, names: NAMES };

const NAMES: Names = Names {
    prefix: "model.",
    embed: "embed_tokens",
    positions: "",
    blocks: "layers",
    attention: "self_attn",
    mlp: "mlp",
    final_norm: "norm",
    final_norm_bias: false,
    head: "lm_head.weight",
};

fn spec(config: &Config) -> Result<Spec> {
    let d_model = config.size("hidden_size")?;
    let n_heads = config.size("num_attention_heads")?;
    let n_kv_heads = config.size_or("num_key_value_heads", Some(n_heads))?;
    if n_heads % n_kv_heads != 0 {
        let problem = format!("{n_kv_heads} does not divide num_attention_heads = {n_heads}");
        return Err(config.wrong("num_key_value_heads", problem, "correct the file"));
    }
    // Not always hidden / heads; old files do not say.
    let d_head = match config.size_if("head_dim")? {
        Some(given) => given,
        None if d_model % n_heads == 0 => d_model / n_heads,
        None => {
            let problem = format!("{n_heads} does not divide hidden_size = {d_model}, and there is no head_dim");
            return Err(config.wrong("num_attention_heads", problem, "correct the file"));
        }
    };
    if d_head % 2 != 0 {
        return Err(config.wrong("head_dim", format!("is {d_head}"), "rotary positions need an even head width"));
    }
    let name = config.string("hidden_act")?.unwrap_or_else(|| "silu".into());
    let activation = Activation::from_name(&name)
        .ok_or_else(|| config.unsupported("hidden_act", &name, format!("the supported ones are {}", Activation::NAMES)))?;
    config.refuse_unless("partial_rotary_factor", &Value::from(1.0))?;
    let attention_bias = config.flag("attention_bias", false)?;
    let n_context = config.size_or("max_position_embeddings", Some(2048))?;
    let (theta, scaling) = config.rope(10_000.0, n_context)?;
    let norm = NormSpec { kind: NormKind::Rms, eps: config.positive("rms_norm_eps", Some(1e-6))? };
    let block = BlockSpec {
        norm,
        parallel: false,
        attention: AttentionSpec {
            n_heads,
            n_kv_heads,
            d_head,
            scale: 1.0 / (d_head as f64).sqrt(),
            softcap: None,
            window: None,
            rope: Some(RopeSpec { n_dims: d_head, theta, scaling }),
            qkv_bias: attention_bias,
            out_bias: attention_bias,
        },
        mlp: MlpSpec { d_mlp: config.size("intermediate_size")?, activation, gated: true, bias: config.flag("mlp_bias", false)? },
    };
    let spec = Spec {
        d_model,
        vocab_size: config.size("vocab_size")?,
        n_context,
        blocks: vec![block; config.layers("num_hidden_layers")?],
        final_norm: norm,
        learned_positions: false,
        tied: config.flag("tie_word_embeddings", false)?,
        bos_token_id: config.token_ids("bos_token_id")?.first().copied(),
        eos_token_ids: config.token_ids("eos_token_id")?,
    };
    config.refuse_the_rest("llama")?;
    Ok(spec)
}

fn block(weights: &Weights, spec: &Spec, layer: usize) -> Result<Block> {
    let (d, block) = (spec.d_model, &spec.blocks[layer]);
    let (attention, mlp) = (&block.attention, &block.mlp);
    let (q, kv) = (attention.n_heads * attention.d_head, attention.n_kv_heads * attention.d_head);
    let get = |name: String, shape: &[usize]| weights.get(NAMES.prefix, &format!("layers.{layer}.{name}"), shape);
    let norm = |name: &str| -> Result<Norm> { Ok(Norm { weight: get(format!("{name}.weight"), &[d])?, bias: None }) };
    // Layers that read the same input become one product.
    let joined = |names: &[(&str, usize)], from: usize, bias: bool| -> Result<Linear> {
        let rows: Vec<_> = names.iter().map(|(name, to)| get(format!("{name}.weight"), &[*to, from])).collect::<Result<_>>()?;
        let biases: Vec<_> = names.iter().filter(|_| bias).map(|(name, to)| get(format!("{name}.bias"), &[*to])).collect::<Result<_>>()?;
        Linear::from_rows(&rows, bias.then_some(biases.as_slice()))
    };
    Ok(Block {
        attention_norm: norm("input_layernorm")?,
        qkv: joined(&[("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)], d, attention.qkv_bias)?,
        attention_out: joined(&[("self_attn.o_proj", d)], q, attention.out_bias)?,
        mlp_norm: norm("post_attention_layernorm")?,
        mlp_in: joined(&[("mlp.gate_proj", mlp.d_mlp), ("mlp.up_proj", mlp.d_mlp)], d, mlp.bias)?,
        mlp_out: joined(&[("mlp.down_proj", d)], mlp.d_mlp, mlp.bias)?,
    })
}
