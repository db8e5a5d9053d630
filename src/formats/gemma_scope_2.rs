//! Gemma Scope 2: `params.safetensors` + `config.json`, JumpReLU dictionaries and transcoders.
//!
//! ```text
//! h = x w_enc + b_enc;  a = relu(h) (h > threshold);  y = a w_dec + b_dec (+ x affine_skip_connection)      w_enc [d, F], w_dec [F, d]
//! ```
//!
//! `b_dec` is never subtracted. Cross-layer transcoders, whose `w_dec` has a layer axis, are refused.

use std::path::{Path, PathBuf};

use candle_core::Tensor;
use serde_json::{json, Value};

use super::fit::{fit, Holds};
use super::foreign::{own_config, Foreign, Source};
use super::saelens::with_thresholds;
use super::tensors::{read_json, safetensors_names, write_json, write_safetensors, Tensors};
use super::{Format, ReadOptions, WriteOptions, Written};
use crate::dictionary::{Activation, Dictionary, Provenance};
use crate::error::{Error, Result};
use crate::kernels::Coder;

/// The dialect.
pub(super) struct GemmaScope2;

const ID: &str = "gemma-scope-2";
const NAME: &str = "Gemma Scope 2 dictionary";
const CONFIG: &str = "config.json";
const WEIGHTS: &str = "params.safetensors";

impl Format for GemmaScope2 {
    fn id(&self) -> &'static str {
        ID
    }

    fn title(&self) -> &'static str {
        "Gemma Scope 2"
    }

    fn find(&self, at: &Path) -> Vec<PathBuf> {
        let folder = match at.file_name() {
            Some(name) if at.is_file() && name == WEIGHTS => at.parent().unwrap_or(at),
            _ => at,
        };
        let has = |names: Vec<String>| names.iter().any(|n| n == "w_enc") && names.iter().any(|n| n == "threshold");
        if safetensors_names(&folder.join(WEIGHTS)).is_some_and(has) {
            vec![folder.to_path_buf()]
        } else {
            Vec::new()
        }
    }

    fn read(&self, at: &Path, _: &ReadOptions) -> Result<Foreign> {
        let (json_path, path) = (at.join(CONFIG), at.join(WEIGHTS));
        // Some folders have none; the tensors say all there is to say.
        let config = if json_path.is_file() { read_json(NAME, &json_path)? } else { Value::Null };
        let named = config["architecture"].as_str().unwrap_or("jump_relu");
        if named != "jump_relu" {
            return Err(Error::Unsupported {
                by: "a dictionary".into(),
                what: format!("the architecture `{named}` of {}", json_path.display()),
                instead: "jump_relu is read".into(),
            });
        }
        let mut t = Tensors::safetensors(NAME, &path)?;
        if t.shape("w_dec").is_some_and(|s| s.len() == 3) {
            return Err(Error::Unsupported {
                by: "a dictionary".into(),
                what: format!("a cross-layer transcoder, which writes several layers ({})", path.display()),
                instead: "single-layer dictionaries and transcoders are read".into(),
            });
        }
        let coder =
            Coder { w_enc: t.transposed("w_enc")?, b_enc: t.vector("b_enc")?, w_dec: t.matrix("w_dec")?, b_dec: t.vector("b_dec")? };
        let thresholds = t.vector("threshold")?.to_vec1::<f32>()?;
        if thresholds.len() != coder.w_enc.dim(0)? {
            return Err(t.damaged(format!("{} thresholds for {} latents", thresholds.len(), coder.w_enc.dim(0)?)));
        }
        let skip = if t.has("affine_skip_connection") { Some(t.transposed("affine_skip_connection")?) } else { None };
        t.finish()?;
        let plain = Dictionary::new(coder, Activation::Relu, false, Provenance::default())?;
        let (mut dictionary, activation) = with_thresholds(plain, &thresholds)?;
        dictionary.activation = activation;
        dictionary.skip = skip;
        dictionary.check()?;
        let mut files = vec![path];
        files.extend(json_path.is_file().then_some(json_path));
        let hook = config["hf_hook_point_in"].as_str().unwrap_or_default().to_string();
        let host = config["model_name"].as_str().map(str::to_string);
        let notes = match config["hf_hook_point_out"].as_str().filter(|out| *out != hook) {
            Some(out) => vec![format!("a transcoder: it writes {out}")],
            None => Vec::new(),
        };
        Foreign::new(dictionary, Source { format: ID, files, config, hook, host, ..Default::default() }, notes)
    }

    fn write(&self, dictionary: &Dictionary, out: &Path, _: &WriteOptions) -> Result<Written> {
        let mut notes = Vec::new();
        let holds = Holds { centred: Some(false), skip: true, other_width: true, ..Default::default() };
        let d = fit(dictionary, self.title(), holds, &mut notes)?;
        let mut tensors = vec![
            ("w_enc", d.coder.w_enc.t()?.contiguous()?),
            ("b_enc", d.coder.b_enc.clone()),
            ("w_dec", d.coder.w_dec.clone()),
            ("b_dec", d.coder.b_dec.clone()),
            ("threshold", thresholds_of(&d, self.title())?),
        ];
        if let Some(skip) = &d.skip {
            tensors.push(("affine_skip_connection", skip.t()?.contiguous()?));
        }
        let own = own_config(dictionary, ID);
        let config = match own.filter(|c| c.is_object()) {
            Some(config) => config.clone(),
            None => json!({
                "architecture": "jump_relu", "model_name": d.provenance.host["name"], "hf_hook_point_in": d.provenance.hook,
                "hf_hook_point_out": d.provenance.hook, "width": d.d_sae(), "affine_connection": d.skip.is_some(), "type": "sae",
            }),
        };
        write_safetensors(out, WEIGHTS, &tensors)?;
        write_json(out, CONFIG, &config, true)?;
        Ok(Written { path: out.to_path_buf(), notes })
    }
}

/// Thresholds `[d_sae]` of a rule that has them; relu's are 0.
///
/// # Errors
/// Another rule.
pub(super) fn thresholds_of(d: &Dictionary, by: &str) -> Result<Tensor> {
    Ok(match &d.activation {
        Activation::Relu => Tensor::zeros(d.d_sae(), candle_core::DType::F32, d.device())?,
        Activation::Threshold { threshold } => Tensor::full(*threshold, d.d_sae(), d.device())?,
        Activation::JumpRelu => {
            d.thresholds.clone().ok_or_else(|| Error::request("a dictionary without its thresholds", "train or import it again"))?
        }
        other => {
            return Err(Error::Unsupported {
                by: by.into(),
                what: format!("the activation {other:?}: it knows thresholds alone"),
                instead: "export to saelens, or read it with thresholds (--activation threshold:X, which changes its codes)".into(),
            })
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::proof::{compare, made_rows};
    use crate::rng::Rng;
    use candle_core::Device;

    #[test]
    fn a_skip_transcoder_comes_back() {
        let mut rng = Rng::stream(1, "test", 0);
        let mut random = |shape: &[usize]| {
            let n = shape.iter().product();
            Tensor::from_vec((0..n).map(|_| rng.normal() as f32).collect::<Vec<_>>(), shape, &Device::Cpu).unwrap()
        };
        let coder = Coder { w_enc: random(&[12, 6]), b_enc: random(&[12]), w_dec: random(&[12, 4]), b_dec: random(&[4]) };
        let mut d = Dictionary::new(coder, Activation::Relu, false, Provenance::default()).unwrap();
        d.skip = Some(random(&[4, 6]));
        d.thresholds = Some(random(&[12]).abs().unwrap());
        d.activation = Activation::JumpRelu;
        let out = tempfile::tempdir().unwrap();
        GemmaScope2.write(&d, out.path(), &WriteOptions::default()).unwrap();
        assert_eq!(GemmaScope2.find(out.path()).len(), 1);
        let back = GemmaScope2.read(out.path(), &ReadOptions::default()).unwrap().dictionary;
        let proof = compare(&d, &back, &[made_rows(&d, 100, 1).unwrap()], 1e-6).unwrap();
        assert!(proof.holds() && proof.codes == 0.0 && proof.l0[0] > 0.5, "{proof}");
    }
}
