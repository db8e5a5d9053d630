//! Mistral: Llama with a sliding window over all layers, where the configuration has one (later versions have none).
//!
//! Jiang et al., "Mistral 7B" (2023).

use super::{llama, rotary_decoder, window_all, Defaults, Family};
use crate::error::Result;
use crate::host::config::Config;
use crate::host::spec::Spec;

pub(super) const FAMILY: Family =
    Family { name: "mistral", model_types: &["mistral"], architectures: &["MistralForCausalLM", "MistralModel"], spec, ..llama::FAMILY };

fn spec(config: &Config) -> Result<Spec> {
    let mut spec = rotary_decoder(config, &Defaults { n_kv_heads: Some(8), n_context: 131_072, ..Defaults::LLAMA })?;
    let window = config.window("sliding_window", Some(4096))?;
    window_all(config, &mut spec, window)?;
    config.refuse_the_rest("mistral")?;
    Ok(spec)
}
