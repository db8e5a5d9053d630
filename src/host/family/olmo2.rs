//! OLMo 2: Llama with its norms after attention and MLP instead of before, and a norm over all queries and one over all keys.
//!
//! OLMo team, "2 OLMo 2 Furious" (2025).

use super::{llama, rotary_block, rotary_decoder, BlockNorms, Defaults, Family, ROTARY_NAMES};
use crate::error::Result;
use crate::host::config::Config;
use crate::host::spec::{Names, NormKind, Norms, QkNorm, Spec};

const NORMS: BlockNorms =
    BlockNorms { attention: None, mlp: None, after: Some(("post_attention_layernorm", "post_feedforward_layernorm")) };

pub(super) const FAMILY: Family = Family {
    name: "olmo2",
    model_types: &["olmo2"],
    architectures: &["Olmo2ForCausalLM", "Olmo2Model"],
    spec,
    block: |weights, spec, layer| rotary_block(weights, spec, layer, NORMS),
    names: Names { post_norms: NORMS.after, ..ROTARY_NAMES },
    ..llama::FAMILY
};

fn spec(config: &Config) -> Result<Spec> {
    let defaults = Defaults { norm: NormKind::RmsLate, eps: 1e-5, bos: None, eos: Some(50_279), ..Defaults::LLAMA };
    let mut spec = rotary_decoder(config, &defaults)?;
    let bias = config.flag("attention_bias", false)?;
    config.refuse_unless("clip_qkv", &serde_json::Value::Null)?;
    for block in &mut spec.blocks {
        block.norms = Norms::After;
        block.attention.qk_norm = QkNorm::Whole;
        (block.attention.qkv_bias, block.attention.out_bias) = (bias, bias);
    }
    config.refuse_the_rest("olmo2")?;
    Ok(spec)
}
