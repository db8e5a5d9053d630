//! Reading: tensors to a dictionary by the rule that the configuration names.

use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::config::{Config, Rule};
use super::{unsupported, CONFIG, ID, NAME, SPARSITY, WEIGHTS};
use crate::dictionary::{Activation, Dictionary, InputTransform, Provenance};
use crate::error::Result;
use crate::formats::foreign::{Foreign, Source};
use crate::formats::tensors::{peek_json, read_json, Tensors};
use crate::kernels::{Coder, Pick};

/// Iterations of a pursuit that nothing else bounds.
const MOST_STEPS: usize = 65_536;

pub(super) fn read(at: &Path) -> Result<Foreign> {
    let (json_path, path) = (at.join(CONFIG), at.join(WEIGHTS));
    let config = read_json(NAME, &json_path)?;
    let c = Config::of(&config, &json_path)?;
    let mut t = Tensors::safetensors(NAME, &path)?;
    let mut notes = Vec::new();
    let mut files = vec![json_path, path];

    let mut dictionary = weights(&c, &mut t, &mut notes)?;
    t.finish()?;
    dictionary.row_norm = c.row_norm;
    if c.scaled_in_training {
        match scale_of_checkpoint(at)? {
            Some(scale) => {
                let shift = Tensor::zeros(c.d_in, DType::F32, &Device::Cpu)?;
                dictionary.input_transform = Some(InputTransform { shift, scale });
                files.push(at.join("activation_scaler.json"));
                notes.push(format!("a checkpoint of training on rows times {scale}: kept as the input transform"));
            }
            None => {
                notes.push("`normalize_activations` expected_average_only_in does nothing once a dictionary is saved for inference".into())
            }
        }
    }
    dictionary.check()?;
    if let Some(head) = c.head {
        notes.push(format!("it reads head {head} of its hook point alone (hook_head_index)"));
    }
    if at.join(SPARSITY).is_file() {
        files.push(at.join(SPARSITY));
        notes.push(sparsity(&at.join(SPARSITY), c.d_sae)?);
    }
    let source = Source { format: ID, files, config, hook: c.hook, host: c.host, prefixes: c.widths, k: c.trained_k };
    Foreign::new(dictionary, source, notes)
}

fn weights(c: &Config, t: &mut Tensors, notes: &mut Vec<String>) -> Result<Dictionary> {
    let mut w_dec = t.matrix("W_dec")?;
    let mut b_dec = t.vector("b_dec")?;
    if w_dec.dims() != [c.d_sae, c.d_out.unwrap_or(c.d_in)] {
        return Err(t.damaged(format!("`W_dec` is {:?}, the configuration says {} latents over {}", w_dec.dims(), c.d_sae, c.d_in)));
    }
    if let Rule::Pursuit { tolerance, steps, stop_on_repeat } = c.rule {
        if !c.centred {
            notes.push("`apply_b_dec_to_input` is false, and then SAELens' pursuit uses b_dec nowhere: it is kept as zeros".into());
            b_dec = b_dec.zeros_like()?;
        }
        // A row that ends when an atom repeats takes no more steps than there are atoms, and one. Others take memory by the step.
        let steps = if stop_on_repeat { steps.min(c.d_sae + 1) } else { steps };
        if steps > MOST_STEPS {
            return Err(unsupported(format!("a pursuit of {steps} iterations"), "lower `max_iterations`, or stop on duplicate support"));
        }
        let b_enc = Tensor::zeros(c.d_sae, DType::F32, &Device::Cpu)?;
        let coder = Coder { w_enc: w_dec.clone(), b_enc, w_dec, b_dec };
        let activation = Activation::Pursuit {
            steps,
            selection: Pick::NonNeg,
            tolerance: tolerance.max(0.0),
            relative: false,
            stop_on_repeat,
            renormalise: false,
        };
        return Dictionary::new(coder, activation, true, Provenance::default());
    }
    let w_enc = t.transposed("W_enc")?;
    if w_enc.dims() != [c.d_sae, c.d_in] {
        let (f, d) = w_enc.dims2()?;
        return Err(t.damaged(format!("`W_enc` is [{d}, {f}], the configuration says [{}, {}]", c.d_in, c.d_sae)));
    }
    let b_enc = t.vector(if c.rule == Rule::Gated { "b_gate" } else { "b_enc" })?;
    if let Some(factors) = t.has("scaling_factor").then(|| t.vector("scaling_factor")).transpose()? {
        if factors.to_vec1::<f32>()?.iter().any(|&s| s != 1.0) {
            if !c.scaling_factors_count || factors.dims1()? != c.d_sae {
                return Err(t.damaged("it has a `scaling_factor` other than 1 and `finetuning_scaling_factor` is not set"));
            }
            w_dec = w_dec.broadcast_mul(&factors.unsqueeze(1)?)?;
            notes.push("the decoder's rows were multiplied by `scaling_factor`, which SAELens does when it decodes".into());
        }
    }
    let coder = Coder { w_enc, b_enc, w_dec, b_dec };
    let new = |coder: Coder, activation: Activation| {
        // The rule's own tensors are put in after.
        let plain = Dictionary::new(coder, Activation::Relu, c.centred, Provenance::default())?;
        Ok::<_, crate::Error>((plain, activation))
    };
    let (mut d, activation) = match &c.rule {
        Rule::Standard => new(coder, Activation::Relu)?,
        Rule::TopK { k, abs, rescale } => {
            let (d, activation) = new(coder, if *abs { Activation::AbsTopK { k: *k } } else { Activation::TopK { k: *k } })?;
            (if *rescale { rescaled(&d, notes)? } else { d }, activation)
        }
        Rule::JumpRelu => {
            let thresholds = match t.has("log_threshold") {
                true => t.vector("log_threshold")?.exp()?,
                false => t.vector("threshold")?,
            };
            with_thresholds(new(coder, Activation::Relu)?.0, &thresholds.to_vec1()?)?
        }
        Rule::BatchTopK { rescale } => {
            let threshold = t.number("topk_threshold")?.ok_or_else(|| t.damaged("a training directory without `topk_threshold`"))?;
            let (d, _) = new(coder, Activation::Relu)?;
            let d = if *rescale { rescaled(&d, notes)? } else { d };
            notes.push("a training directory: read as the jumprelu dictionary that SAELens saves it as, with its running threshold".into());
            with_thresholds(d, &vec![threshold as f32; c.d_sae])?
        }
        Rule::Gated => {
            let magnitude = (t.vector("r_mag")?.exp()?, t.vector("b_mag")?);
            let (mut d, _) = new(coder, Activation::Relu)?;
            d.magnitude = Some(magnitude);
            (d, Activation::Gated)
        }
        Rule::Pursuit { .. } => return Err(unsupported("a pursuit with an encoder".into(), "it has none")),
    };
    d.activation = activation;
    if c.skip {
        d.skip = Some(t.matrix("W_skip")?);
    }
    d.check()?;
    Ok(d)
}

/// Codes are above their threshold and above 0: one threshold for all where they are equal.
pub(in crate::formats) fn with_thresholds(mut d: Dictionary, thresholds: &[f32]) -> Result<(Dictionary, Activation)> {
    let positive: Vec<f32> = thresholds.iter().map(|t| t.max(0.0)).collect();
    if let Some(&threshold) = positive.first().filter(|first| positive.iter().all(|t| t == *first)) {
        return Ok((d, Activation::Threshold { threshold }));
    }
    d.thresholds = Some(Tensor::from_vec(positive, thresholds.len(), &Device::Cpu)?);
    Ok((d, Activation::JumpRelu))
}

/// `rescale_acts_by_decoder_norm`, of a dictionary whose rule is not set yet.
fn rescaled(d: &Dictionary, notes: &mut Vec<String>) -> Result<Dictionary> {
    notes.push("`rescale_acts_by_decoder_norm`: kept in the equal form of unit atoms and an encoder times their norms".into());
    d.with_unit_atoms()
}

/// The factor of rows in training, of a checkpoint that says it.
fn scale_of_checkpoint(at: &Path) -> Result<Option<f64>> {
    let path = at.join("activation_scaler.json");
    let Some(scaler) = peek_json(&path) else { return Ok(None) };
    if scaler["has_whitening"] == true {
        return Err(unsupported(
            format!("a whitening in training ({})", path.display()),
            "save it for inference with SAELens, which folds it",
        ));
    }
    Ok(scaler["scaling_factor"].as_f64().filter(|s| s.is_finite() && *s > 0.0))
}

/// log10(density + 1e-10) per latent: looked at, not kept.
fn sparsity(path: &Path, d_sae: usize) -> Result<String> {
    let mut t = Tensors::safetensors(NAME, path)?;
    let values = t.vector("sparsity")?.to_vec1::<f32>()?;
    if values.len() != d_sae {
        return Err(t.damaged(format!("{} values for {d_sae} latents", values.len())));
    }
    let silent = values.iter().filter(|v| **v < -9.0).count();
    let rare = values.iter().filter(|v| **v < -5.0).count() - silent;
    Ok(format!("{SPARSITY} says that {silent} latents never fired and {rare} on less than 1 row in 100,000; it is not kept"))
}
