//! A bare state dict in safetensors: torch's names of an encoder and a decoder, with no configuration that says whose. Read only.
//!
//! | tensor | |
//! |---|---|
//! | `encoder.weight` `[F, d]`, `encoder.bias` `[F]`, `decoder.weight` `[d, F]` | as `nn.Linear` keeps them |
//! | `b_dec`, `bias` or `pre_bias` `[d]` | subtracted before the encoder, added after the decoder |
//! | `decoder.bias` `[d]` | added after the decoder alone |
//! | `threshold` | a number above 0: codes are above it (BatchTopK as dictionary_learning saves it) |
//! | `k` | without a threshold: top-k |
//!
//! With neither, [`ReadOptions`] must say which codes are meant.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use super::foreign::{Foreign, Source};
use super::tensors::{peek_json, safetensors_names, Tensors};
use super::{Format, ReadOptions};
use crate::dictionary::{Activation, Dictionary, Provenance};
use crate::error::{Error, Result};
use crate::kernels::Coder;

/// The dialect.
pub(super) struct StateDict;

const ID: &str = "state-dict";
const NAME: &str = "state dict";
/// Names that stand for a bias subtracted before the encoder.
const CENTRED: [&str; 3] = ["b_dec", "bias", "pre_bias"];

fn is_ours(file: &Path) -> bool {
    let needed = ["encoder.weight", "encoder.bias", "decoder.weight"];
    file.extension().is_some_and(|e| e == "safetensors")
        && safetensors_names(file).is_some_and(|names| needed.iter().all(|n| names.iter().any(|name| name == n)))
        // Another tool's folder, whose configuration says more.
        && peek_json(&file.with_file_name("config.json")).is_none_or(|c| c.get("d_model").is_none())
}

impl Format for StateDict {
    fn id(&self) -> &'static str {
        ID
    }

    fn title(&self) -> &'static str {
        "a bare state dict"
    }

    fn find(&self, at: &Path) -> Vec<PathBuf> {
        if at.is_file() {
            return if is_ours(at) { vec![at.to_path_buf()] } else { Vec::new() };
        }
        let Ok(entries) = std::fs::read_dir(at) else { return Vec::new() };
        let mut files: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.is_file() && is_ours(p)).collect();
        files.sort();
        files
    }

    fn read(&self, at: &Path, options: &ReadOptions) -> Result<Foreign> {
        let mut t = Tensors::safetensors(NAME, at)?;
        let (w_enc, b_enc, w_dec) = (t.matrix("encoder.weight")?, t.vector("encoder.bias")?, t.transposed("decoder.weight")?);
        let own = CENTRED.into_iter().find(|n| t.has(n));
        let (b_dec, centred) = match own {
            Some(name) => (t.vector(name)?, true),
            None if t.has("decoder.bias") => (t.vector("decoder.bias")?, false),
            None => (Tensor::zeros(w_dec.dim(1)?, DType::F32, &Device::Cpu)?, false),
        };
        let threshold = t.number("threshold")?.map(|v| v as f32).filter(|v| *v >= 0.0);
        let k = t.number("k")?.map(|k| k as usize);
        t.finish()?;
        let mut notes = Vec::new();
        let contradicts = |what: &str| Error::request(format!("{} says another {what}", at.display()), format!("leave out --{what}"));
        if options.k.is_some_and(|o| k.is_some_and(|k| k != o)) {
            return Err(contradicts("k"));
        }
        if options.threshold.is_some_and(|o| threshold.is_some_and(|t| t != o)) {
            return Err(contradicts("threshold"));
        }
        let activation = match (threshold.or(options.threshold), k.or(options.k)) {
            (Some(threshold), k) => {
                if let Some(k) = k {
                    notes.push(format!("codes are above the threshold {threshold}; k = {k} was its training's"));
                }
                Activation::Threshold { threshold }
            }
            (None, Some(k)) => Activation::TopK { k },
            (None, None) => {
                return Err(Error::request(
                    format!("{} does not say which pre-activations are codes", at.display()),
                    "pass --k N for top-k, or --threshold X (0 for relu)",
                ))
            }
        };
        let dictionary = Dictionary::new(Coder { w_enc, b_enc, w_dec, b_dec }, activation, centred, Provenance::default())?;
        notes.push(match (own, centred) {
            (Some(name), _) => format!("`{name}` is taken to be subtracted before the encoder, as its name says elsewhere"),
            _ => "nothing is subtracted before the encoder".into(),
        });
        let config_path = at.with_file_name("config.json");
        let config = peek_json(&config_path).unwrap_or(Value::Null);
        let mut files = vec![at.to_path_buf()];
        files.extend((!config.is_null()).then_some(config_path));
        Foreign::new(dictionary, Source { format: ID, files, config, k, ..Default::default() }, notes)
    }

    fn writes(&self) -> bool {
        false
    }
}
