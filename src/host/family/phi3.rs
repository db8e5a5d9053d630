//! Phi-3 and Phi-4-mini: Llama with q, k, v in one matrix and gate and up in another, and LongRoPE for the long-context versions.
//!
//! Abdin et al., "Phi-3 Technical Report" (2024).

use super::{llama, rotary_decoder, window_all, Defaults, Family, Layer, NORMS_BEFORE};
use crate::error::Result;
use crate::host::config::Config;
use crate::host::layers::Block;
use crate::host::rope::RopeDefaults;
use crate::host::spec::Spec;
use crate::host::weights::Weights;

pub(super) const FAMILY: Family =
    Family { name: "phi3", model_types: &["phi3"], architectures: &["Phi3ForCausalLM", "Phi3Model"], spec, block, ..llama::FAMILY };

fn spec(config: &Config) -> Result<Spec> {
    let rope = RopeDefaults {
        partial: Some(("partial_rotary_factor", 1.0)),
        original_context: Some(4096),
        longrope_aliases: true,
        ..RopeDefaults::default()
    };
    let defaults = Defaults { n_context: 4096, eps: 1e-5, rope, bos: Some(1), eos: Some(32_000), ..Defaults::LLAMA };
    let mut spec = rotary_decoder(config, &defaults)?;
    let window = config.window("sliding_window", None)?;
    window_all(config, &mut spec, window)?;
    // Both exist in files and are false in all of them.
    config.refuse_unless("attention_bias", &false.into())?;
    config.refuse_unless("mlp_bias", &false.into())?;
    config.refuse_the_rest("phi3")?;
    Ok(spec)
}

fn block(weights: &Weights, spec: &Spec, layer: usize) -> Result<Block> {
    let (d, block) = (spec.d_model, &spec.blocks[layer]);
    let (attention, d_mlp) = (&block.attention, block.mlp.d_mlp);
    let (q, kv) = (attention.n_heads * attention.d_head, attention.n_kv_heads * attention.d_head);
    let at = Layer { weights, layer };
    let norm = |name: Option<&str>| name.map(|name| at.norm(name, d, false)).transpose();
    Ok(Block {
        attention_norm: norm(NORMS_BEFORE.attention)?,
        qkv: at.rows(&[("self_attn.qkv_proj", q + 2 * kv)], d, false)?,
        q_norm: None,
        k_norm: None,
        attention_out: at.rows(&[("self_attn.o_proj", d)], q, false)?,
        attention_after: None,
        mlp_norm: norm(NORMS_BEFORE.mlp)?,
        mlp_in: at.rows(&[("mlp.gate_up_proj", 2 * d_mlp)], d, false)?,
        mlp_out: at.rows(&[("mlp.down_proj", d)], d_mlp, false)?,
        mlp_after: None,
    })
}
