//! SAELens: `cfg.json` + `sae_weights.safetensors`, and `sparsity.safetensors` where somebody measured densities.
//!
//! ```text
//! x' = norm_in(x);  s = x' - b_dec [apply_b_dec_to_input];  h = s W_enc + b_enc                 W_enc [d, F], W_dec [F, d]
//! standard  a = relu(h)                                     jumprelu  a = relu(h) (h > threshold)
//! topk      a = relu of the k largest h                     abstopk   a = the k largest |h|, with their signs
//! gated     a = [s W_enc + b_gate > 0] relu(s (W_enc exp(r_mag)) + b_mag)
//! matching_pursuit: r = s; repeat i = argmax relu(r W_dec^T), v = r W_dec[i], a_i += v, r -= v W_dec[i]
//! y = norm_out(a W_dec + b_dec)                             transcoders: + x W_skip^T, no norm_out
//! ```
//!
//! With `rescale_acts_by_decoder_norm` codes are `h |W_dec[i]|` and the decoder divides by it: the same function has atoms of unit norm, an
//! encoder times that norm, and no such key, and that is how it is kept. BatchTopK and Matryoshka are saved for inference as jumprelu;
//! their training directories, which SAELens itself cannot load, are read as what they would be saved as.

mod config;
mod read;
mod write;

pub(super) use read::with_thresholds;

use std::path::{Path, PathBuf};

use super::foreign::Foreign;
use super::tensors::{peek_json, safetensors_names};
use super::{Format, ReadOptions, WriteOptions, Written};
use crate::dictionary::Dictionary;
use crate::error::Result;

/// The dialect.
pub(super) struct SaeLens;

const ID: &str = "saelens";
const NAME: &str = "SAELens dictionary";
const CONFIG: &str = "cfg.json";
const WEIGHTS: &str = "sae_weights.safetensors";
const SPARSITY: &str = "sparsity.safetensors";
/// The version whose loader the writer was checked against; loaders look at it.
const VERSION: &str = "6.54.12";

impl Format for SaeLens {
    fn id(&self) -> &'static str {
        ID
    }

    fn title(&self) -> &'static str {
        "SAELens 6.54.12"
    }

    fn find(&self, at: &Path) -> Vec<PathBuf> {
        let folder = match at.file_name() {
            Some(name) if at.is_file() && name == WEIGHTS => at.parent().unwrap_or(at),
            _ => at,
        };
        let says = |c: &serde_json::Value| {
            ["architecture", "activation_fn_str", "activation_fn", "apply_b_dec_to_input"].iter().any(|k| c.get(*k).is_some())
        };
        let is_ours = peek_json(&folder.join(CONFIG)).is_some_and(|c| says(&c) && c.get("sae_type").is_none())
            && safetensors_names(&folder.join(WEIGHTS)).is_some_and(|names| names.iter().any(|n| n == "W_dec"));
        if is_ours {
            vec![folder.to_path_buf()]
        } else {
            Vec::new()
        }
    }

    fn read(&self, at: &Path, _: &ReadOptions) -> Result<Foreign> {
        read::read(at)
    }

    fn write(&self, dictionary: &Dictionary, out: &Path, options: &WriteOptions) -> Result<Written> {
        write::write(dictionary, out, options)
    }
}

fn unsupported(what: String, instead: &str) -> crate::error::Error {
    crate::error::Error::Unsupported { by: "a dictionary".into(), what, instead: instead.into() }
}
