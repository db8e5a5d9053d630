//! StarCoder2: grouped keys and values and rotary positions as Llama, LayerNorm and a plain MLP as GPT-2, biases everywhere, a sliding
//! window over all layers where the configuration has one.
//!
//! Lozhkov et al., "StarCoder 2 and The Stack v2" (2024).

use super::{llama, rotary_decoder, window_all, Defaults, Family, ROTARY_NAMES};
use crate::error::Result;
use crate::host::config::Config;
use crate::host::spec::{Names, NormKind, Spec};

pub(super) const FAMILY: Family = Family {
    name: "starcoder2",
    model_types: &["starcoder2"],
    architectures: &["Starcoder2ForCausalLM", "Starcoder2Model"],
    spec,
    names: Names { final_norm_bias: true, ..ROTARY_NAMES },
    ..llama::FAMILY
};

fn spec(config: &Config) -> Result<Spec> {
    let defaults = Defaults {
        n_kv_heads: Some(2),
        n_context: 4096,
        activation: "gelu_pytorch_tanh",
        norm: NormKind::Layer,
        eps_key: "norm_epsilon",
        eps: 1e-5,
        tied: true,
        bos: Some(50_256),
        eos: Some(50_256),
        ..Defaults::LLAMA
    };
    let mut spec = rotary_decoder(config, &defaults)?;
    let window = config.window("sliding_window", None)?;
    window_all(config, &mut spec, window)?;
    // Both exist in files; nothing else is implemented by anybody.
    config.refuse_unless("mlp_type", &"default".into())?;
    config.refuse_unless("norm_type", &"layer_norm".into())?;
    let bias = config.flag("use_bias", true)?;
    for block in &mut spec.blocks {
        (block.attention.qkv_bias, block.attention.out_bias) = (bias, bias);
        (block.mlp.gated, block.mlp.bias) = (false, bias);
    }
    config.refuse_the_rest("starcoder2")?;
    Ok(spec)
}
