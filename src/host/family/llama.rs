//! Llama 1 to 3: rotary positions, RMSNorm, grouped keys and values, a gated MLP. Weights are stored `[out, in]`.
//!
//! Touvron et al., "LLaMA: Open and Efficient Foundation Language Models" (2023); Llama 3.1's rope scaling is in `rope`.

use super::{rotary_block, rotary_decoder, Defaults, Family, NORMS_BEFORE, ROTARY_NAMES};
use crate::error::Result;
use crate::host::config::Config;
use crate::host::spec::Spec;

pub(super) const FAMILY: Family = Family {
    name: "llama",
    model_types: &["llama"],
    architectures: &["LlamaForCausalLM", "LlamaModel"],
    within: None,
    spec,
    block: |weights, spec, layer| rotary_block(weights, spec, layer, NORMS_BEFORE),
    norm_offset: 0.0,
    names: ROTARY_NAMES,
};

fn spec(config: &Config) -> Result<Spec> {
    let mut spec = rotary_decoder(config, &Defaults::LLAMA)?;
    let (attention_bias, mlp_bias) = (config.flag("attention_bias", false)?, config.flag("mlp_bias", false)?);
    for block in &mut spec.blocks {
        (block.attention.qkv_bias, block.attention.out_bias) = (attention_bias, attention_bias);
        block.mlp.bias = mlp_bias;
    }
    config.refuse_the_rest("llama")?;
    Ok(spec)
}
