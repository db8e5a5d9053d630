//! `cfg.json` of SAELens 3 to 6 as one type. Version 6 has `architecture` and nested `metadata`; before, everything was flat, top-k was an
//! `activation_fn_str` (the architecture could say `standard`), and keys had older names still.

use std::path::Path;

use serde_json::Value;

use super::{unsupported, NAME};
use crate::dictionary::RowNorm;
use crate::error::{Error, Result};

/// What a code is, as far as the configuration tells.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Rule {
    Standard,
    TopK {
        k: usize,
        abs: bool,
        rescale: bool,
    },
    JumpRelu,
    Gated,
    /// The training form of BatchTopK and Matryoshka: `topk_threshold` is a scalar tensor.
    BatchTopK {
        rescale: bool,
    },
    Pursuit {
        tolerance: f32,
        steps: usize,
        stop_on_repeat: bool,
    },
}

/// What decides the function, and where it comes from.
#[derive(Debug)]
pub(super) struct Config {
    pub d_in: usize,
    pub d_sae: usize,
    pub rule: Rule,
    /// A transcoder's output width.
    pub d_out: Option<usize>,
    /// A transcoder with a skip path.
    pub skip: bool,
    pub centred: bool,
    pub row_norm: Option<RowNorm>,
    /// `normalize_activations` was `expected_average_only_in`: no-op once saved for inference, a factor in a checkpoint.
    pub scaled_in_training: bool,
    pub scaling_factors_count: bool,
    pub head: Option<u64>,
    pub hook: String,
    pub host: Option<String>,
    pub widths: Vec<usize>,
    /// k of the training of a dictionary with thresholds.
    pub trained_k: Option<usize>,
}

/// The first of several names for a key.
fn first<'a>(c: &'a Value, names: &[&str]) -> &'a Value {
    names.iter().map(|n| &c[*n]).find(|v| !v.is_null()).unwrap_or(&Value::Null)
}

impl Config {
    pub(super) fn of(c: &Value, path: &Path) -> Result<Self> {
        let bad = |problem: String| Error::format(NAME, path, problem, "fetch or save the dictionary again");
        let count = |v: &Value| v.as_u64().or_else(|| v.as_f64().filter(|f| f.fract() == 0.0 && *f >= 0.0).map(|f| f as u64));
        let whole = |v: &Value, what: &str| count(v).map(|n| n as usize).ok_or_else(|| bad(format!("`{what}` is {v}, no whole number")));
        let flag = |key: &str, default: bool| match &c[key] {
            Value::Null => Ok(default),
            Value::Bool(b) => Ok(*b),
            other => Err(bad(format!("`{key}` is {other}, not true or false"))),
        };
        let meta = &c["metadata"];
        let named = first(c, &["architecture"]).as_str().unwrap_or("standard").to_string();
        let function = first(c, &["activation_fn_str", "activation_fn"]).as_str().unwrap_or("relu").to_string();
        let k = || {
            whole(first(c, &["k", "activation_fn_kwargs"]), "k")
                .or_else(|_| whole(&c["activation_fn_kwargs"]["k"], "activation_fn_kwargs.k"))
        };
        let (kind, skip, transcoder) = match named.as_str() {
            "transcoder" => ("standard", false, true),
            "skip_transcoder" => ("standard", true, true),
            "jumprelu_transcoder" => ("jumprelu", false, true),
            "jumprelu_skip_transcoder" => ("jumprelu", true, true),
            other => (other, false, false),
        };
        let rule = match (kind, function.as_str()) {
            // SAELens itself: a missing k is 100. That is nobody's choice.
            ("topk", _) | ("standard", "topk") => Rule::TopK { k: k()?, abs: false, rescale: flag("rescale_acts_by_decoder_norm", false)? },
            ("abstopk", _) => Rule::TopK { k: k()?, abs: true, rescale: flag("rescale_acts_by_decoder_norm", false)? },
            ("standard", "relu") => Rule::Standard,
            ("standard", other) => {
                return Err(unsupported(format!("the activation function `{other}` of {}", path.display()), "relu and topk are read"));
            }
            ("jumprelu", _) => Rule::JumpRelu,
            ("gated", _) => Rule::Gated,
            ("batchtopk" | "matryoshka_batchtopk", _) => Rule::BatchTopK { rescale: flag("rescale_acts_by_decoder_norm", true)? },
            ("matching_pursuit", _) => Rule::Pursuit {
                tolerance: c["residual_threshold"].as_f64().unwrap_or(1e-2) as f32,
                steps: if c["max_iterations"].is_null() {
                    whole(&c["d_in"], "d_in")?
                } else {
                    whole(&c["max_iterations"], "max_iterations")?
                },
                stop_on_repeat: flag("stop_on_duplicate_support", true)?,
            },
            _ => {
                let known = "standard, topk, abstopk, jumprelu, gated, matching_pursuit, transcoders and batchtopk checkpoints are read";
                return Err(unsupported(format!("the architecture `{named}` of {}", path.display()), known));
            }
        };
        let norm = first(c, &["normalize_activations"]);
        let (row_norm, scaled_in_training) = match norm {
            Value::Null | Value::Bool(false) => (None, false),
            Value::Bool(true) => (None, true),
            Value::String(s) => match s.as_str() {
                "none" => (None, false),
                "expected_average_only_in" => (None, true),
                "layer_norm" => (Some(RowNorm::LayerNorm), false),
                "constant_norm_rescale" => (Some(RowNorm::ConstantNorm), false),
                other => {
                    let instead = "save it for inference with SAELens, which folds it into the weights";
                    return Err(unsupported(format!("`normalize_activations` {other:?} of {}", path.display()), instead));
                }
            },
            other => return Err(bad(format!("`normalize_activations` is {other}"))),
        };
        if transcoder && row_norm.is_some() {
            let what = format!("a transcoder of normalised rows, {}, whose output is not normalised back", path.display());
            return Err(unsupported(what, "keep it in SAELens"));
        }
        let text = |v: &Value| v.as_str().map(str::to_string).filter(|s| !s.is_empty());
        let either = |keys: &[&str]| text(first(meta, keys)).or_else(|| text(first(c, keys)));
        let widths = [&meta["training_architecture_details"]["matryoshka_widths"], &c["matryoshka_widths"]];
        Ok(Self {
            d_in: whole(&c["d_in"], "d_in")?,
            d_sae: whole(&c["d_sae"], "d_sae")?,
            rule,
            d_out: if transcoder { Some(whole(&c["d_out"], "d_out")?) } else { None },
            skip,
            centred: flag("apply_b_dec_to_input", !transcoder)? && !transcoder,
            row_norm,
            scaled_in_training,
            scaling_factors_count: flag("finetuning_scaling_factor", false)?,
            head: first(meta, &["hook_head_index"]).as_u64().or_else(|| first(c, &["hook_head_index", "hook_point_head_index"]).as_u64()),
            hook: either(&["hook_name", "hook_point"]).unwrap_or_default(),
            host: either(&["model_name"]),
            trained_k: count(first(&meta["training_architecture_details"], &["k"])).or_else(|| count(&c["k"])).map(|k| k as usize),
            widths: widths.into_iter().find_map(|w| serde_json::from_value(w.clone()).ok()).unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(c: Value) -> Result<Config> {
        Config::of(&c, Path::new("cfg.json"))
    }

    #[test]
    fn flat_and_nested_say_the_same() {
        let old = of(json!({
            "architecture": "standard", "d_in": 4, "d_sae": 8, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3},
            "hook_point": "blocks.1.hook_resid_pre", "model_name": "gpt2-small", "normalize_activations": true,
        }))
        .unwrap();
        assert_eq!(old.rule, Rule::TopK { k: 3, abs: false, rescale: false });
        assert!(
            old.centred && old.scaled_in_training && old.hook == "blocks.1.hook_resid_pre" && old.host.as_deref() == Some("gpt2-small")
        );
        let new = of(json!({
            "architecture": "topk", "d_in": 4, "d_sae": 8, "k": 3.0, "apply_b_dec_to_input": false,
            "metadata": {"hook_name": "blocks.1.hook_resid_pre"},
        }))
        .unwrap();
        assert_eq!(new.rule, old.rule);
        assert!(!new.centred);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let base = json!({"d_in": 4, "d_sae": 8});
        for (key, value) in [
            ("architecture", json!("temporal")),
            ("activation_fn_str", json!("tanh-relu")),
            ("normalize_activations", json!("covariance_whitening")),
        ] {
            let mut c = base.clone();
            c[key] = value;
            assert_eq!(of(c).unwrap_err().exit_code(), 2, "{key}");
        }
        // SAELens would make it 100.
        let mut c = base.clone();
        c["architecture"] = json!("topk");
        assert!(of(c).unwrap_err().to_string().contains('k'));
    }
}
