//! Llamascopium (OpenMOSS Language-Model-SAEs) and the Llama Scope releases made with it.
//!
//! ```text
//! h = x W_E + b_E;  a = act(h n) / n  with n = |W_D[i]| if sparsity_include_decoder_norm, else n = 1;  y = a W_D + b_D
//! relu · topk: the k largest, positive · jumprelu: above exp(log_jumprelu_threshold)        W_E [d, F], W_D [F, d]
//! ```
//!
//! `b_D` is never subtracted from x. With `norm_activation` `dataset-wise` the **caller** multiplies x by `s = sqrt(d) / average norm`, which
//! is stored beside the weights: kept here as the input transform. Three layouts: `config.json` + `sae_weights.safetensors` with the names
//! above; the same with `encoder.weight` `[F, d]`, `decoder.weight` `[d, F]` and `log_jumprelu_threshold` (R1-Distill); `hyperparams.json` +
//! `checkpoints/final.safetensors` with one threshold in the JSON (Llama Scope), which is read as SAELens reads it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use serde_json::{json, Value};

use super::fit::{fit, Holds};
use super::foreign::{Foreign, Source};
use super::saelens::with_thresholds;
use super::tensors::{peek_json, read_json, safetensors_names, typed, write_json, write_safetensors_with, Tensors};
use super::{Format, ReadOptions, WriteOptions, Written};
use crate::dictionary::{Activation, Dictionary, InputTransform, Provenance};
use crate::error::{Error, Result};
use crate::kernels::Coder;

/// The dialect.
pub(super) struct Llamascopium;

const ID: &str = "llamascopium";
const NAME: &str = "Llamascopium dictionary";
const CONFIG: &str = "config.json";
const WEIGHTS: &str = "sae_weights.safetensors";
const OLD_CONFIG: &str = "hyperparams.json";
const OLD_WEIGHTS: &str = "checkpoints/final.safetensors";
const NORM: &str = "dataset_average_activation_norm";
/// Written into `__metadata__`.
const VERSION: &str = "2.0.0b34";

/// The keys that decide the function; the others are kept in the provenance.
#[derive(Debug, Deserialize)]
struct Config {
    #[serde(default = "sae")]
    sae_type: String,
    #[serde(default)]
    hook_point_in: String,
    #[serde(default)]
    hook_point_out: String,
    d_model: usize,
    d_sae: Option<usize>,
    expansion_factor: f64,
    #[serde(default = "relu")]
    act_fn: String,
    #[serde(default = "dataset_wise")]
    norm_activation: String,
    #[serde(default = "yes")]
    sparsity_include_decoder_norm: bool,
    #[serde(default)]
    top_k: Option<usize>,
    #[serde(default)]
    use_glu_encoder: bool,
    #[serde(default)]
    jump_relu_threshold: Option<f32>,
    #[serde(default)]
    apply_decoder_bias_to_pre_encoder: bool,
}

fn sae() -> String {
    "sae".into()
}

fn relu() -> String {
    "relu".into()
}

fn dataset_wise() -> String {
    "dataset-wise".into()
}

fn yes() -> bool {
    true
}

/// Configuration and weights of a folder.
fn layout(folder: &Path) -> (PathBuf, PathBuf, bool) {
    let old = folder.join(OLD_CONFIG).is_file();
    let (config, weights) = if old { (OLD_CONFIG, OLD_WEIGHTS) } else { (CONFIG, WEIGHTS) };
    (folder.join(config), folder.join(weights), old)
}

impl Format for Llamascopium {
    fn id(&self) -> &'static str {
        ID
    }

    fn title(&self) -> &'static str {
        "Llamascopium 2.0.0b34"
    }

    fn find(&self, at: &Path) -> Vec<PathBuf> {
        let folder = match at.file_name() {
            Some(name) if at.is_file() && name == WEIGHTS => at.parent().unwrap_or(at),
            _ => at,
        };
        let (config, weights, _) = layout(folder);
        let says = |c: &Value| c.get("d_model").is_some() && c.get("expansion_factor").is_some();
        let has = |names: Vec<String>| names.iter().any(|n| n == "W_D" || n == "decoder.weight");
        let is_ours = peek_json(&config).is_some_and(|c| says(&c)) && safetensors_names(&weights).is_some_and(has);
        if is_ours {
            vec![folder.to_path_buf()]
        } else {
            Vec::new()
        }
    }

    fn read(&self, at: &Path, _: &ReadOptions) -> Result<Foreign> {
        let (json_path, path, old) = layout(at);
        let config = read_json(NAME, &json_path)?;
        let c: Config = typed(NAME, &json_path, &config)?;
        check(&c, &json_path)?;
        let mut t = Tensors::safetensors(NAME, &path)?;
        let mut notes = Vec::new();

        let named = t.has("W_E");
        let (w_enc, w_dec) = match named {
            true => (t.transposed("W_E")?, t.matrix("W_D")?),
            false => (t.matrix("encoder.weight")?, t.transposed("decoder.weight")?),
        };
        let (enc, dec) = if named { ("b_E", "b_D") } else { ("encoder.bias", "decoder.bias") };
        let b_enc = t.vector(enc)?;
        let b_dec = if t.has(dec) { t.vector(dec)? } else { Tensor::zeros(w_dec.dim(1)?, DType::F32, &Device::Cpu)? };
        let d_sae = c.d_sae.unwrap_or((c.d_model as f64 * c.expansion_factor) as usize);
        if w_enc.dims() != [d_sae, c.d_model] {
            return Err(t.damaged(format!("the encoder is {:?}, the configuration says {d_sae} latents over {}", w_enc.dims(), c.d_model)));
        }
        let mut norms = averages(&mut t, &config, &c)?;
        let mut dictionary = Dictionary::new(Coder { w_enc, b_enc, w_dec, b_dec }, Activation::Relu, false, Provenance::default())?;
        dictionary = act(dictionary, &c, &mut t, old.then_some(norms.0).flatten(), &mut notes)?;
        t.finish()?;
        if c.norm_activation == "dataset-wise" {
            let d = c.d_model as f64;
            if c.hook_point_in == c.hook_point_out {
                norms.1 = norms.0;
            }
            let (Some(into), Some(out)) = norms else {
                return Err(Error::Unsupported {
                    by: "a dictionary".into(),
                    what: format!("rows scaled by an average norm that {} does not hold", path.display()),
                    instead: "save it with `dataset_average_activation_norm`, or standardised for inference".into(),
                });
            };
            let d_out = dictionary.d_out() as f64;
            dictionary = scaled(dictionary, d.sqrt() / into, d_out.sqrt() / out)?;
            notes.push(format!(
                "rows are multiplied by {:.6} (sqrt(d) / average norm) before encoding: kept as the input transform",
                d.sqrt() / into
            ));
        }
        dictionary.check()?;
        if c.hook_point_in != c.hook_point_out {
            notes.push(format!("a transcoder: it writes {}", c.hook_point_out));
        }
        let source = Source { format: ID, files: vec![json_path, path], config, hook: c.hook_point_in, ..Default::default() };
        Foreign::new(dictionary, source, notes)
    }

    fn write(&self, dictionary: &Dictionary, out: &Path, _: &WriteOptions) -> Result<Written> {
        let mut notes = Vec::new();
        let holds = Holds { centred: Some(false), other_width: false, selection_scale: true, ..Default::default() };
        let d = fit(dictionary, self.title(), holds, &mut notes)?;
        let mut tensors = vec![
            ("W_E", d.coder.w_enc.t()?.contiguous()?),
            ("b_E", d.coder.b_enc.clone()),
            ("W_D", d.coder.w_dec.clone()),
            ("b_D", d.coder.b_dec.clone()),
        ];
        // log 0 is no number; the smallest threshold above it is passed by the same codes.
        let log = |t: Tensor| -> Result<Tensor> { Ok(t.maximum(f64::from(f32::MIN_POSITIVE))?.log()?) };
        let (act_fn, top_k, by_norm) = match &d.activation {
            Activation::Relu => ("relu", None, false),
            Activation::TopK { k } => ("topk", Some(*k), ranked_by_norm(&d)?),
            Activation::Threshold { threshold } => {
                tensors.push(("activation_function.log_jumprelu_threshold", log(Tensor::full(*threshold, d.d_sae(), d.device())?)?));
                ("jumprelu", None, false)
            }
            Activation::JumpRelu => {
                let thresholds =
                    d.thresholds.clone().ok_or_else(|| Error::request("a dictionary without its thresholds", "import it again"))?;
                tensors.push(("activation_function.log_jumprelu_threshold", log(thresholds)?));
                ("jumprelu", None, false)
            }
            other => {
                return Err(Error::Unsupported {
                    by: self.title().into(),
                    what: format!("the activation {other:?}"),
                    instead: "relu, top-k and thresholds can be written; export to saelens".into(),
                });
            }
        };
        // Readers take int(d_model * expansion_factor).
        let mut factor = d.d_sae() as f64 / d.d_in() as f64;
        if (factor * d.d_in() as f64) as usize != d.d_sae() {
            factor = factor.next_up();
        }
        let hook = &d.provenance.hook;
        let config = json!({
            "sae_type": "sae", "hook_point_in": hook, "hook_point_out": hook, "d_model": d.d_in(), "expansion_factor": factor,
            "use_decoder_bias": true, "act_fn": act_fn, "norm_activation": "inference", "sparsity_include_decoder_norm": by_norm,
            "top_k": top_k.unwrap_or(50), "use_glu_encoder": false,
        });
        let metadata = HashMap::from([("version".to_string(), VERSION.to_string())]);
        write_safetensors_with(out, WEIGHTS, &tensors, Some(metadata))?;
        write_json(out, CONFIG, &config, true)?;
        Ok(Written { path: out.to_path_buf(), notes })
    }
}

/// What is understood.
fn check(c: &Config, path: &Path) -> Result<()> {
    let refuse = |what: String, instead: &str| {
        Err(Error::Unsupported { by: "a dictionary".into(), what: format!("{what} ({})", path.display()), instead: instead.into() })
    };
    if c.sae_type != "sae" {
        return refuse(format!("the kind `{}`", c.sae_type), "sae is read; others have weights of other shapes");
    }
    if c.use_glu_encoder {
        return refuse("a gated linear encoder (use_glu_encoder)".into(), "it has no counterpart here: keep it in Llamascopium");
    }
    if c.apply_decoder_bias_to_pre_encoder {
        return refuse("a decoder bias that is subtracted (apply_decoder_bias_to_pre_encoder)".into(), "save it without");
    }
    match c.norm_activation.as_str() {
        "dataset-wise" | "inference" | "none" => Ok(()),
        other => refuse(format!("`norm_activation` {other:?}"), "standardise it for inference with Llamascopium"),
    }
}

/// Average norms of input and output rows: scalars among the tensors, or in the old configuration.
fn averages(t: &mut Tensors, config: &Value, c: &Config) -> Result<(Option<f64>, Option<f64>)> {
    let mut of = |hook: &str, side: &str| -> Result<Option<f64>> {
        for name in [format!("{NORM}.{hook}"), format!("{NORM}.{side}")] {
            if let Some(norm) = t.number(&name)? {
                return Ok(Some(norm));
            }
        }
        Ok(config[NORM][side].as_f64().or(config[NORM][hook].as_f64()))
    };
    let (into, out) = (of(&c.hook_point_in, "in")?, of(&c.hook_point_out, "out")?);
    let positive = |n: Option<f64>| n.filter(|n| n.is_finite() && *n > 0.0);
    Ok((positive(into), positive(out)))
}

/// Puts the rule in. `old_norm`: of the old layout, whose threshold is in rows' own units.
fn act(mut d: Dictionary, c: &Config, t: &mut Tensors, old_norm: Option<f64>, notes: &mut Vec<String>) -> Result<Dictionary> {
    let norms = Tensor::from_vec(d.atom_norms()?, d.d_sae(), &Device::Cpu)?;
    match c.act_fn.to_lowercase().as_str() {
        "relu" => Ok(d),
        "topk" => {
            let k = c.top_k.ok_or_else(|| t.damaged("act_fn topk without top_k"))?;
            d.selection_scale = c.sparsity_include_decoder_norm.then_some(norms);
            d.activation = Activation::TopK { k };
            d.check()?;
            Ok(d)
        }
        "jumprelu" => {
            let logs = ["activation_function.log_jumprelu_threshold", "log_jumprelu_threshold"].into_iter().find(|n| t.has(n));
            let mut thresholds = match (logs, t.number("jump_relu_threshold")?.or(c.jump_relu_threshold.map(f64::from))) {
                (Some(name), _) => t.vector(name)?.exp()?,
                (None, Some(one)) => {
                    let s = old_norm.map_or(1.0, |norm| (c.d_model as f64).sqrt() / norm);
                    notes.push(format!("one threshold, {one}, times {s:.6} (sqrt(d) / average norm), as SAELens reads it"));
                    Tensor::full((one * s) as f32, d.d_sae(), &Device::Cpu)?
                }
                (None, None) => return Err(t.damaged("act_fn jumprelu without a threshold")),
            };
            // The old layout's published dictionaries are read without norms; theirs are 1.
            if c.sparsity_include_decoder_norm && logs == Some("activation_function.log_jumprelu_threshold") {
                thresholds = (thresholds / norms.maximum(1e-30)?)?.minimum(f64::from(f32::MAX))?;
                notes.push(
                    "thresholds were divided by the atoms' norms, which the codes that they are compared with are multiplied by".into(),
                );
            }
            let (mut d, activation) = with_thresholds(d, &thresholds.to_vec1()?)?;
            d.activation = activation;
            d.check()?;
            Ok(d)
        }
        other => Err(Error::Unsupported {
            by: "a dictionary".into(),
            what: format!("the activation `{other}`"),
            instead: "relu, topk and jumprelu are read; batchtopk picks over a batch: save it as jumprelu with Llamascopium".into(),
        }),
    }
}

/// With rows multiplied by `into` and targets by `out`.
fn scaled(mut d: Dictionary, into: f64, out: f64) -> Result<Dictionary> {
    if d.d_in() == d.d_out() && into == out {
        let shift = Tensor::zeros(d.d_in(), DType::F32, &Device::Cpu)?;
        d.input_transform = Some(InputTransform { shift, scale: into });
        return Ok(d);
    }
    // W_E stays; h, hence codes and thresholds, shrink by s_in, and the decoder makes up for it.
    let c = &d.coder;
    let coder = Coder { w_enc: c.w_enc.clone(), b_enc: (&c.b_enc / into)?, w_dec: (&c.w_dec * (into / out))?, b_dec: (&c.b_dec / out)? };
    let mut folded = Dictionary::new(coder, Activation::Relu, false, Provenance::default())?;
    folded.selection_scale = d.selection_scale;
    folded.thresholds = d.thresholds.map(|t| t / into).transpose()?;
    folded.activation = match d.activation {
        Activation::Threshold { threshold } => Activation::Threshold { threshold: (f64::from(threshold) / into) as f32 },
        other => other,
    };
    folded.check()?;
    Ok(folded)
}

/// Is top-k ranked by codes times the atoms' norms? (Without a scale it is ranked by codes.)
fn ranked_by_norm(d: &Dictionary) -> Result<bool> {
    let Some(scale) = &d.selection_scale else { return Ok(false) };
    let (scale, norms) = (scale.to_vec1::<f32>()?, d.atom_norms()?);
    // Any common factor ranks alike.
    let first = scale.first().copied().unwrap_or(1.0) / norms.first().copied().unwrap_or(1.0).max(f32::MIN_POSITIVE);
    if scale.iter().zip(&norms).all(|(s, n)| (s - first * n).abs() <= 1e-5 * s.abs()) {
        return Ok(true);
    }
    Err(Error::Unsupported {
        by: "Llamascopium".into(),
        what: "a selection scale other than the atoms' norms".into(),
        instead: "keep it in Lapidary's own format".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::proof::{compare, made_rows};
    use crate::rng::Rng;

    fn random(rng: &mut Rng, shape: &[usize]) -> Tensor {
        let n = shape.iter().product();
        Tensor::from_vec((0..n).map(|_| rng.normal() as f32).collect::<Vec<_>>(), shape, &Device::Cpu).unwrap()
    }

    #[test]
    fn norms_and_scales_are_part_of_the_function() {
        let dir = tempfile::tempdir().unwrap();
        let mut rng = Rng::stream(1, "test", 0);
        let (d, f) = (6, 12);
        let hook = "blocks.2.hook_resid_post";
        let (we, be, wd, bd) = (random(&mut rng, &[d, f]), random(&mut rng, &[f]), random(&mut rng, &[f, d]), random(&mut rng, &[d]));
        let logs = (random(&mut rng, &[f]) * 0.2).unwrap();
        let norm = Tensor::new(4f32, &Device::Cpu).unwrap();
        let name = format!("{NORM}.{hook}");
        let tensors = [
            ("W_E", we.clone()),
            ("b_E", be.clone()),
            ("W_D", wd.clone()),
            ("b_D", bd.clone()),
            ("activation_function.log_jumprelu_threshold", logs.clone()),
            (name.as_str(), norm),
        ];
        write_safetensors_with(dir.path(), WEIGHTS, &tensors, None).unwrap();
        let config = json!({
            "sae_type": "sae", "hook_point_in": hook, "hook_point_out": hook, "d_model": d, "expansion_factor": 2.0, "act_fn": "jumprelu",
            "norm_activation": "dataset-wise", "sparsity_include_decoder_norm": true,
        });
        write_json(dir.path(), CONFIG, &config, true).unwrap();
        assert_eq!(Llamascopium.find(dir.path()).len(), 1);
        let found = Llamascopium.read(dir.path(), &ReadOptions::default()).unwrap().dictionary;

        // The formula of the module's head, written out.
        let x = random(&mut rng, &[40, d]);
        let s = (d as f64).sqrt() / 4.0;
        let h = (&x * s).unwrap().matmul(&we).unwrap().broadcast_add(&be).unwrap();
        let n = wd.sqr().unwrap().sum(1).unwrap().sqrt().unwrap();
        let open = h.broadcast_mul(&n).unwrap().broadcast_gt(&logs.exp().unwrap()).unwrap().to_dtype(DType::F32).unwrap();
        let a = (h * open).unwrap();
        let y = (a.matmul(&wd).unwrap().broadcast_add(&bd).unwrap() / s).unwrap();
        let (codes, xhat) = found.reconstruct(&x).unwrap();
        let off = |a: &Tensor, b: &Tensor| (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(off(&codes.to_dense().unwrap(), &a) < 1e-5 && off(&xhat, &y) < 1e-5);

        // Written, the scale is folded, and nothing changes.
        let out = tempfile::tempdir().unwrap();
        Llamascopium.write(&found, out.path(), &WriteOptions::default()).unwrap();
        let back = Llamascopium.read(out.path(), &ReadOptions::default()).unwrap().dictionary;
        let proof = compare(&found, &back, &[x, made_rows(&found, 100, 1).unwrap()], 1e-5).unwrap();
        assert!(proof.holds(), "{proof}");
    }

    #[test]
    fn what_has_no_counterpart_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let base = json!({"sae_type": "sae", "d_model": 4, "expansion_factor": 2, "act_fn": "relu", "norm_activation": "inference"});
        for (key, value) in [("use_glu_encoder", json!(true)), ("sae_type", json!("crosscoder")), ("norm_activation", json!("token-wise"))]
        {
            let mut config = base.clone();
            config[key] = value;
            write_json(dir.path(), CONFIG, &config, true).unwrap();
            assert_eq!(Llamascopium.read(dir.path(), &ReadOptions::default()).unwrap_err().exit_code(), 2, "{key}");
        }
    }
}
