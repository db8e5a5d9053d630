//! Writing, for the loader of version 6 with keys beside that older ones read. Every key is written: what is missing, the loader fills in
//! without a word (`k` with 100).

use std::path::Path;

use candle_core::Tensor;
use serde_json::{json, Map, Value};

use super::{CONFIG, ID, SPARSITY, VERSION, WEIGHTS};
use crate::dictionary::{Activation, Dictionary, RowNorm};
use crate::error::{Error, Result};
use crate::formats::fit::{fit, Holds};
use crate::formats::foreign::own_config;
use crate::formats::tensors::{write_json, write_safetensors};
use crate::formats::{WriteOptions, Written};
use crate::hook::HookPoint;
use crate::kernels::Pick;

pub(super) fn write(dictionary: &Dictionary, out: &Path, options: &WriteOptions) -> Result<Written> {
    let mut notes = Vec::new();
    let transcoder = dictionary.skip.is_some() || dictionary.d_in() != dictionary.d_out();
    let holds =
        Holds { row_norm: true, skip: true, other_width: true, pursuit: true, centred: transcoder.then_some(false), ..Default::default() };
    let d = fit(dictionary, "SAELens", holds, &mut notes)?;
    let (architecture, keys, mut tensors) = rule(&d)?;
    let architecture = match (transcoder, d.skip.is_some(), architecture) {
        (false, _, a) => a.to_string(),
        (_, false, "standard") => "transcoder".into(),
        (_, true, "standard") => "skip_transcoder".into(),
        (_, false, "jumprelu") => "jumprelu_transcoder".into(),
        (_, true, "jumprelu") => "jumprelu_skip_transcoder".into(),
        (.., other) => return refuse(&format!("a transcoder with {other} codes"), "relu and threshold codes have one; sparsify has top-k"),
    };
    tensors.push(("W_dec", d.coder.w_dec.clone()));
    tensors.push(("b_dec", d.coder.b_dec.clone()));
    if !d.activation.is_pursuit() {
        tensors.push(("W_enc", d.coder.w_enc.t()?.contiguous()?));
    }
    tensors.extend(d.skip.clone().map(|skip| ("W_skip", skip)));

    let hook = &d.provenance.hook;
    let metadata = metadata(&d);
    let normalize = match d.row_norm {
        None => "none",
        Some(RowNorm::LayerNorm) => "layer_norm",
        Some(RowNorm::ConstantNorm) => "constant_norm_rescale",
    };
    let reshape = if hook.ends_with("hook_z") { "hook_z" } else { "none" };
    let mut config = json!({
        "d_in": d.d_in(), "d_sae": d.d_sae(), "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": d.centred && !transcoder, "normalize_activations": normalize, "reshape_activations": reshape,
        "architecture": architecture,
    });
    let object = config.as_object_mut().expect("made as an object");
    object.extend(keys);
    if transcoder {
        object.insert("d_out".into(), d.d_out().into());
    }
    // For readers older than version 6; its loader passes over them.
    let kwargs = d.activation.k().map_or(json!({}), |k| json!({ "k": k }));
    object.insert("model_name".into(), metadata["model_name"].clone());
    object.insert("hook_name".into(), metadata["hook_name"].clone());
    object.insert("hook_layer".into(), hook.parse::<HookPoint>().map_or(Value::Null, |p| p.layer.into()));
    object.insert("hook_head_index".into(), metadata["hook_head_index"].clone());
    object.insert("activation_fn_str".into(), if d.activation.k().is_some() { "topk" } else { "relu" }.into());
    object.insert("activation_fn_kwargs".into(), kwargs);
    object.insert("finetuning_scaling_factor".into(), false.into());
    object.insert("metadata".into(), metadata);

    write_safetensors(out, WEIGHTS, &tensors)?;
    if let Some(density) = &options.density {
        let logs: Vec<f32> = density.iter().map(|f| (f + 1e-10).log10() as f32).collect();
        let n = logs.len();
        write_safetensors(out, SPARSITY, &[("sparsity", Tensor::from_vec(logs, n, d.device())?)])?;
    }
    write_json(out, CONFIG, &config, false)?;
    Ok(Written { path: out.to_path_buf(), notes })
}

fn refuse<T>(what: &str, instead: &str) -> Result<T> {
    Err(Error::Unsupported { by: "SAELens".into(), what: what.into(), instead: instead.into() })
}

type Parts = (&'static str, Map<String, Value>, Vec<(&'static str, Tensor)>);

/// Architecture, its keys, and its tensors beside W_enc, W_dec and b_dec.
fn rule(d: &Dictionary) -> Result<Parts> {
    let b_enc = || vec![("b_enc", d.coder.b_enc.clone())];
    let keys = |value: Value| value.as_object().cloned().unwrap_or_default();
    Ok(match &d.activation {
        Activation::Relu => ("standard", Map::new(), b_enc()),
        Activation::TopK { k } => ("topk", keys(json!({ "k": k, "rescale_acts_by_decoder_norm": false })), b_enc()),
        Activation::AbsTopK { k } => ("abstopk", keys(json!({ "k": k, "rescale_acts_by_decoder_norm": false })), b_enc()),
        Activation::Threshold { threshold } => {
            let all = Tensor::full(*threshold, d.d_sae(), d.device())?;
            ("jumprelu", Map::new(), [b_enc(), vec![("threshold", all)]].concat())
        }
        Activation::JumpRelu => {
            let thresholds =
                d.thresholds.clone().ok_or_else(|| Error::request("a dictionary without its thresholds", "import it again"))?;
            ("jumprelu", Map::new(), [b_enc(), vec![("threshold", thresholds)]].concat())
        }
        Activation::Gated => {
            let Some((gain, bias)) = d.magnitude.clone() else {
                return Err(Error::request("a gated dictionary without its magnitudes", "import it again"));
            };
            if gain.to_vec1::<f32>()?.iter().any(|&g| g <= 0.0) {
                return refuse("a gain of magnitudes that is not positive: it keeps exp(r_mag)", "keep it in Lapidary's own format");
            }
            ("gated", Map::new(), vec![("b_gate", d.coder.b_enc.clone()), ("r_mag", gain.log()?), ("b_mag", bias)])
        }
        Activation::Pursuit { steps, selection, tolerance, relative, stop_on_repeat, renormalise } => {
            if *selection != Pick::NonNeg {
                return refuse(
                    "a pursuit that may pick negative inner products",
                    "train with selection non_neg, or export to overcomplete",
                );
            }
            if *relative && *tolerance > 0.0 {
                return refuse("a pursuit that ends at a share of each row's norm", "set the tolerance in the rows' units");
            }
            if *renormalise && d.atom_norms()?.iter().any(|n| (n - 1.0).abs() > 1e-4) {
                return refuse("a pursuit in the directions of atoms that are not of unit norm", "fold their norms first: --fold-norms");
            }
            let own = json!({ "residual_threshold": tolerance, "max_iterations": steps, "stop_on_duplicate_support": stop_on_repeat });
            ("matching_pursuit", keys(own), Vec::new())
        }
        Activation::OrthogonalPursuit { .. } => {
            return refuse("an orthogonal pursuit", "export it with plain matching pursuit (--activation mp:STEPS), or top-k");
        }
    })
}

/// What SAELens keeps of a dictionary's origin: that of the import where it came from SAELens, else from our provenance.
fn metadata(d: &Dictionary) -> Value {
    let p = &d.provenance;
    let own = own_config(d, ID).map(|c| c["metadata"].clone()).filter(Value::is_object);
    let mut meta = own.and_then(|m| m.as_object().cloned()).unwrap_or_default();
    let mut put = |key: &str, value: Value| {
        if !value.is_null() || !meta.contains_key(key) {
            meta.insert(key.into(), value);
        }
    };
    put("sae_lens_version", VERSION.into());
    put("hook_name", p.hook.clone().into());
    put("model_name", p.host["hub_id"].as_str().or(p.host["name"].as_str()).map_or(Value::Null, Into::into));
    put("hook_head_index", Value::Null);
    let harvest = if p.shards.is_null() { &p.stream } else { &p.shards };
    let corpus = &harvest["corpus"];
    put("dataset_path", corpus["source"].as_str().or(corpus["builtin"].as_str()).map_or(Value::Null, Into::into));
    put("context_size", harvest["config"]["harvest"]["context"].clone());
    put("prepend_bos", Value::Null);
    put("model_class_name", "HookedTransformer".into());
    if p.made_by != "imported" {
        put("training_architecture", architecture_name(&p.made_by).into());
        let mut details = Map::new();
        if !p.notes["k"].is_null() {
            details.insert("k".into(), p.notes["k"].clone());
        }
        let mut widths = d.prefixes();
        if !widths.is_empty() {
            widths.push(d.d_sae());
            details.insert("matryoshka_widths".into(), json!(widths));
        }
        put("training_architecture_details", details.into());
        let residual = "rows are of the unprocessed model (Hugging Face values): load it without centring of writing weights";
        put("lapidary", json!({ "version": p.lapidary, "made_by": p.made_by, "host": p.host, "config": p.config, "rows": residual }));
    } else if own_config(d, ID).is_none() {
        put("lapidary", json!({ "version": p.lapidary, "imported": p.notes["imported"] }));
    }
    meta.into()
}

/// A learner's name as SAELens calls its like.
fn architecture_name(made_by: &str) -> &str {
    match made_by {
        "batch-topk" => "batchtopk",
        "matryoshka" => "matryoshka_batchtopk",
        "mp" => "matching_pursuit",
        "jump-relu" => "jumprelu",
        "relu" => "standard",
        other => other,
    }
}
