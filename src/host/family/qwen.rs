//! Qwen 2 (and 2.5): Llama with biases on q, k and v, and a window in the last layers if it is switched on. Qwen 3 norms each head's
//! queries and keys instead of the biases.
//!
//! Yang et al., "Qwen2 Technical Report" (2024) and "Qwen3 Technical Report" (2025).

use super::{llama, rotary_decoder, window_layers, Defaults, Family};
use crate::error::Result;
use crate::host::config::Config;
use crate::host::spec::{QkNorm, Spec};

pub(super) const QWEN2: Family =
    Family { name: "qwen2", model_types: &["qwen2"], architectures: &["Qwen2ForCausalLM", "Qwen2Model"], spec: qwen2, ..llama::FAMILY };

pub(super) const QWEN3: Family =
    Family { name: "qwen3", model_types: &["qwen3"], architectures: &["Qwen3ForCausalLM", "Qwen3Model"], spec: qwen3, ..llama::FAMILY };

const DEFAULTS: Defaults = Defaults { n_context: 32_768, n_kv_heads: Some(32), bos: None, eos: None, ..Defaults::LLAMA };

fn windows(config: &Config, spec: &mut Spec) -> Result<()> {
    let window = config.window("sliding_window", Some(4096))?;
    let window = if config.flag("use_sliding_window", false)? { window } else { None };
    let first = config.count_or("max_window_layers", 28)?;
    window_layers(config, spec, window, |layer| window.is_some() && layer >= first)
}

fn qwen2(config: &Config) -> Result<Spec> {
    let mut spec = rotary_decoder(config, &DEFAULTS)?;
    windows(config, &mut spec)?;
    spec.blocks.iter_mut().for_each(|block| block.attention.qkv_bias = true);
    config.refuse_the_rest("qwen2")?;
    Ok(spec)
}

fn qwen3(config: &Config) -> Result<Spec> {
    let mut spec = rotary_decoder(config, &Defaults { d_head: Some(128), ..DEFAULTS })?;
    windows(config, &mut spec)?;
    let bias = config.flag("attention_bias", false)?;
    for block in &mut spec.blocks {
        (block.attention.qkv_bias, block.attention.out_bias) = (bias, bias);
        block.attention.qk_norm = QkNorm::Head;
    }
    config.refuse_the_rest("qwen3")?;
    Ok(spec)
}
