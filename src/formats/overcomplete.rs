//! overcomplete: a state dict, `sae.pt`. It has neither the class nor its k, nor how atoms are normalised: a JSON file of the same name
//! beside it (`sae.json`, our convention) or the options of the reader say it.
//!
//! ```text
//! D = normalised atoms * exp(multiplier), [F, d];   h = x W^T + b;   y = z D
//! SAE       z = relu(h)                             TopKSAE   z = the k largest relu(h)
//! JumpSAE   z = relu(h) where >= exp(thresholds)    BatchTopKSAE (eval)   z = relu(h) where >= running_threshold, which is not saved
//! MpSAE     r = x; k times: i = argmax r D^T, v = r D[i], z_i += v, r -= v D[i]
//! ```
//!
//! There is no decoder bias: their users centre rows themselves. A dictionary with a `b_dec` is written for rows minus it, and `sae.json`
//! has it as `input_shift`, to be subtracted from rows and added to reconstructions.
//!
//! Read too: relaxed archetypal dictionaries (`D = W C + Relax`), encoders tied to the dictionary, a batch norm behind the encoder (as it is
//! in evaluation). Not: encoders of several layers, layer norms, QSAE, OMPSAE (its non-negative least squares is not our refit).

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::{json, Value};

use super::archive::{files, item, pt_names, read_pt};
use super::container::pt::{self, Item};
use super::container::Array;
use super::fit::{fit, Holds};
use super::foreign::{own_config, Foreign, Source};
use super::saelens::with_thresholds;
use super::tensors::{read_json, typed, write_json, Tensors};
use super::{Format, ReadOptions, WriteOptions, Written};
use crate::dictionary::{Activation, Dictionary, InputTransform, Provenance};
use crate::error::{Error, Result};
use crate::kernels::{Coder, Pick};

/// The dialect.
pub(super) struct Overcomplete;

const ID: &str = "overcomplete";
const NAME: &str = "overcomplete dictionary";
const WEIGHTS: &str = "sae.pt";
/// Added to a norm before dividing by it.
const EPSILON: f64 = 1e-8;
/// Added to a variance under its root, in PyTorch's batch norm.
const BATCH_NORM_EPSILON: f64 = 1e-5;
/// Norms may be so far from 1 for their default normalisation to be taken for granted: what the last step of an optimiser leaves.
const NEARLY_UNIT: f64 = 0.05;

/// Their classes that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Class {
    #[serde(rename = "SAE")]
    Relu,
    #[serde(rename = "TopKSAE", alias = "RATopKSAE")]
    TopK,
    #[serde(rename = "BatchTopKSAE")]
    BatchTopK,
    #[serde(rename = "JumpSAE", alias = "RAJumpSAE")]
    Jump,
    #[serde(rename = "MpSAE")]
    Pursuit,
}

/// `DictionaryLayer.NORMALIZATIONS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Normalization {
    L2,
    MaxL2,
    L1,
    MaxL1,
    Identity,
}

/// The file beside the state dict: what its constructor was given.
#[derive(Debug, Default, Deserialize)]
struct Beside {
    #[serde(default)]
    class: Option<Class>,
    #[serde(default)]
    top_k: Option<usize>,
    #[serde(default)]
    k: Option<usize>,
    #[serde(default)]
    running_threshold: Option<f32>,
    #[serde(default)]
    dictionary_params: DictionaryParams,
    /// Subtracted from rows first, added to reconstructions last.
    #[serde(default)]
    input_shift: Option<Vec<f32>>,
    #[serde(default)]
    hook: String,
    #[serde(default)]
    host: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct DictionaryParams {
    #[serde(default)]
    normalization: Option<Normalization>,
}

fn unsupported<T>(what: String, instead: &str) -> Result<T> {
    Err(Error::Unsupported { by: "a dictionary".into(), what, instead: instead.into() })
}

impl Format for Overcomplete {
    fn id(&self) -> &'static str {
        ID
    }

    fn title(&self) -> &'static str {
        "overcomplete 0.3.0"
    }

    fn find(&self, at: &Path) -> Vec<PathBuf> {
        let is_ours = |names: Vec<String>| names.iter().any(|n| n == "dictionary._weights" || n == "dictionary.W");
        files(at, &["pt", "pth"]).into_iter().filter(|path| pt_names(path).is_some_and(is_ours)).collect()
    }

    fn read(&self, at: &Path, options: &ReadOptions) -> Result<Foreign> {
        let (mut t, plain) = read_pt(NAME, at)?;
        if let Some((name, value)) = plain.iter().next() {
            return Err(t.damaged(format!("its entry `{name}` ({}) is not known", value.kind())));
        }
        let json_path = at.with_extension("json");
        let mut read = vec![at.to_path_buf()];
        let (config, beside) = if json_path.is_file() {
            let config = read_json(NAME, &json_path)?;
            let beside = typed::<Beside>(NAME, &json_path, &config)?;
            read.push(json_path);
            (config, beside)
        } else {
            (Value::Null, Beside::default())
        };
        if t.has("Q") {
            return unsupported(format!("the quantised codes (QSAE) of {}", at.display()), "only continuous codes have a counterpart here");
        }
        let mut notes = Vec::new();
        let tied = untie(&mut t)?;
        let atoms = atoms(&mut t, beside.dictionary_params.normalization, &mut notes)?;
        let (d_sae, d_in) = atoms.dims2()?;
        let device = &Device::Cpu;
        let encoder = encoder(&mut t, &atoms, tied, &mut notes)?;
        let thresholds = if t.has("thresholds") { Some(t.vector("thresholds")?.to_vec1::<f32>()?) } else { None };
        t.finish()?;

        let agree = |what: &str, told: Option<String>, asked: Option<String>| match (&told, &asked) {
            (Some(a), Some(b)) if a != b => {
                Err(Error::request(format!("{what} is {a} in the file beside {}, not {b}", at.display()), "leave it out"))
            }
            _ => Ok(()),
        };
        let told = beside.top_k.or(beside.k);
        agree("k", told.map(|k| k.to_string()), options.k.map(|k| k.to_string()))?;
        agree("the threshold", beside.running_threshold.map(|t| t.to_string()), options.threshold.map(|t| t.to_string()))?;
        let (k, threshold) = (told.or(options.k), beside.running_threshold.or(options.threshold));
        let class = match beside.class {
            Some(class) => class,
            None if thresholds.is_some() => Class::Jump,
            None if encoder.is_some() && k.is_some() && threshold.is_none() => Class::TopK,
            None if encoder.is_some() && threshold.is_some() && k.is_none() => Class::BatchTopK,
            None => {
                let help = format!(
                    "write {{\"class\": \"TopKSAE\", \"top_k\": 32}} into {} (classes: SAE, TopKSAE, BatchTopKSAE with running_threshold, JumpSAE, \
                     MpSAE with k), or pass a k for top-k, a threshold for batch top-k",
                    at.with_extension("json").display()
                );
                return Err(Error::request(format!("{} does not say of which class it is", at.display()), help));
            }
        };
        let need_k =
            || k.ok_or_else(|| Error::request(format!("{} does not have its k", at.display()), "pass it, or write it beside as top_k"));
        if (class == Class::Jump) != thresholds.is_some() || (class == Class::Pursuit) == encoder.is_some() {
            return Err(Error::request(
                format!("the tensors of {} are not those of the class beside it", at.display()),
                "correct the class: JumpSAE has thresholds, MpSAE has no encoder",
            ));
        }
        let (w_enc, b_enc) = match encoder {
            Some(encoder) => encoder,
            None => (atoms.clone(), Tensor::zeros(d_sae, DType::F32, device)?),
        };
        let coder = Coder { w_enc, b_enc, w_dec: atoms, b_dec: Tensor::zeros(d_in, DType::F32, device)? };
        let dictionary = Dictionary::new(coder, Activation::Relu, false, Provenance::default())?;
        // Theirs fire at their threshold, ours above it.
        let below = |t: f32| if t > 0.0 { t.next_down() } else { 0.0 };
        let (dictionary, activation) = match class {
            Class::Relu => (dictionary, Activation::Relu),
            Class::TopK => (dictionary, Activation::TopK { k: need_k()? }),
            Class::BatchTopK => {
                let help = "pass it, or write it beside as running_threshold: a state dict does not keep it";
                let t = threshold.ok_or_else(|| Error::request(format!("{} does not have its running threshold", at.display()), help))?;
                (dictionary, Activation::Threshold { threshold: below(t) })
            }
            Class::Jump => {
                let logs = thresholds.expect("it was looked for");
                with_thresholds(dictionary, &logs.into_iter().map(|l| below(l.exp())).collect::<Vec<_>>())?
            }
            Class::Pursuit => {
                let rule = Activation::Pursuit {
                    steps: need_k()?,
                    selection: Pick::Max,
                    tolerance: 0.0,
                    relative: false,
                    stop_on_repeat: false,
                    renormalise: false,
                };
                (dictionary, rule)
            }
        };
        let mut dictionary = dictionary.with_activation(activation)?;
        if let Some(shift) = beside.input_shift {
            if let Some(bad) = shift.iter().find(|v| !v.is_finite()) {
                return Err(Error::request(format!("an input_shift of {bad}"), "it must be finite"));
            }
            dictionary.input_transform = Some(InputTransform { shift: Tensor::from_vec(shift, d_in, device)?, scale: 1.0 });
        }
        let source = Source { format: ID, files: read, config, hook: beside.hook, host: beside.host, ..Default::default() };
        Foreign::new(dictionary, source, notes)
    }

    fn write(&self, dictionary: &Dictionary, out: &Path, _: &WriteOptions) -> Result<Written> {
        write(dictionary, out, self.title())
    }
}

/// Atoms as their evaluation mode has them, `[F, d]`.
fn atoms(t: &mut Tensors, normalization: Option<Normalization>, notes: &mut Vec<String>) -> Result<Tensor> {
    let multiplier = t.number("dictionary.multiplier")?.unwrap_or(0.0).exp();
    let (w, relax) = if t.has("dictionary.W") {
        notes.push("a relaxed archetypal dictionary: read as its atoms W C + Relax; the points it was made of stay behind".into());
        let w = t.matrix("dictionary.W")?.relu()?;
        let sums = (w.sum_keepdim(1)? + EPSILON)?;
        let points = t.matrix("dictionary.C")?;
        let relax = t.matrix("dictionary.Relax")?;
        if w.dims()[1] != points.dims()[0] || (w.dims()[0], points.dims()[1]) != relax.dims2()? {
            return Err(t.damaged("its W, C and Relax do not fit together"));
        }
        (w.broadcast_div(&sums)?.matmul(&points)?, Some(relax))
    } else {
        (t.matrix("dictionary._weights")?, None)
    };
    if let Some(relax) = relax {
        return Ok(((w + relax)? * multiplier)?);
    }
    let (rows, d) = w.dims2()?;
    let values = w.flatten_all()?.to_vec1::<f32>()?;
    let norm = |power: fn(f64) -> f64, root: fn(f64) -> f64| -> Vec<f64> {
        values.chunks_exact(d).map(|row| root(row.iter().map(|&v| power(f64::from(v).abs())).sum())).collect()
    };
    let l2 = norm(|v| v * v, f64::sqrt);
    let off = l2.iter().fold(0.0f64, |m, n| m.max((n - 1.0).abs()));
    let normalization = match normalization {
        Some(given) => given,
        None if off < NEARLY_UNIT => Normalization::L2,
        None => return unsupported(
            "atoms of other norms than 1 (a state dict does not say how they are normalised in use)".into(),
            "save it after model.eval(), which normalises them, or write {\"dictionary_params\": {\"normalization\": \"identity\"}} into \
                 the JSON file of the same name beside it",
        ),
    };
    let most = |norms: Vec<f64>| vec![norms.iter().copied().fold(0.0, f64::max); rows];
    let by: Vec<f64> = match normalization {
        Normalization::L2 => l2.iter().map(|n| n + EPSILON).collect(),
        Normalization::L1 => norm(|v| v, |v| v).iter().map(|n| n + EPSILON).collect(),
        Normalization::MaxL2 => most(l2),
        Normalization::MaxL1 => most(norm(|v| v, |v| v)),
        Normalization::Identity => vec![1.0; rows],
    };
    if by.contains(&0.0) {
        return Err(t.damaged("all of its atoms are zero"));
    }
    let values: Vec<f32> =
        values.chunks_exact(d).zip(&by).flat_map(|(row, by)| row.iter().map(move |&v| (f64::from(v) / by * multiplier) as f32)).collect();
    Ok(Tensor::from_vec(values, (rows, d), &Device::Cpu)?)
}

/// An encoder tied to the dictionary has the dictionary's tensors again under its own name: takes them, if they are there.
fn untie(t: &mut Tensors) -> Result<bool> {
    let mut tied = false;
    for name in ["_weights", "multiplier", "W", "C", "Relax"] {
        let Some(again) = t.take(&format!("encoder.tied_to.{name}")) else { continue };
        tied = true;
        let own = format!("dictionary.{name}");
        let Some(first) = t.take(&own) else {
            return Err(t.damaged(format!("its encoder is tied to a `{name}` that the dictionary lacks")));
        };
        if first != again {
            return Err(t.damaged(format!("its encoder is tied to another `{name}` than the dictionary's")));
        }
        t.insert(own, first)?;
    }
    Ok(tied)
}

/// The encoder's weights `[F, d]` and bias `[F]`; `None` where there is none (pursuits).
fn encoder(t: &mut Tensors, atoms: &Tensor, tied: bool, notes: &mut Vec<String>) -> Result<Option<(Tensor, Tensor)>> {
    let (d_sae, _) = atoms.dims2()?;
    let zeros = || Tensor::zeros(d_sae, DType::F32, &Device::Cpu);
    if tied {
        notes.push("the encoder is tied to the dictionary: it is written out as one of its own".into());
        let bias = if t.has("encoder.bias") { t.vector("encoder.bias")? } else { zeros()? };
        return Ok(Some((atoms.clone(), bias)));
    }
    if t.has("encoder.weight") {
        let bias = if t.has("encoder.bias") { Some(t.vector("encoder.bias")?) } else { None };
        let bias = bias.map_or_else(zeros, Ok)?;
        return Ok(Some((t.matrix("encoder.weight")?, bias)));
    }
    if !t.has("encoder.final_block.0.weight") {
        return Ok(None);
    }
    let deep: Vec<String> =
        t.names().filter(|n| n.starts_with("encoder.") && !n.starts_with("encoder.final_block.")).map(str::to_string).collect();
    if let Some(name) = deep.first() {
        return unsupported(format!("an encoder of several layers (tensor `{name}`)"), "train with encoder_module=\"linear\"");
    }
    let w = t.matrix("encoder.final_block.0.weight")?;
    let b = t.vector("encoder.final_block.0.bias")?;
    if !t.has("encoder.final_block.1.weight") {
        return Ok(Some((w, b)));
    }
    if !t.has("encoder.final_block.1.running_mean") {
        return unsupported("a layer norm behind the encoder".into(), "train with encoder_module=\"linear\"");
    }
    let mut vector = |name: &str| -> Result<Vec<f64>> {
        let v = t.vector(&format!("encoder.final_block.1.{name}"))?;
        if v.dims1()? != d_sae {
            return Err(t.damaged(format!("the batch norm's {name} has {} values", v.dims1()?)));
        }
        Ok(v.to_vec1::<f32>()?.into_iter().map(f64::from).collect())
    };
    let (gain, bias, mean, variance) = (vector("weight")?, vector("bias")?, vector("running_mean")?, vector("running_var")?);
    t.take("encoder.final_block.1.num_batches_tracked");
    notes.push("the batch norm behind the encoder was folded into it, as it is in evaluation".into());
    let scale: Vec<f64> = gain.iter().zip(&variance).map(|(g, v)| g / (v + BATCH_NORM_EPSILON).sqrt()).collect();
    let (rows, d) = w.dims2()?;
    if rows != d_sae || b.dims1()? != d_sae {
        return Err(t.damaged(format!("its encoder has {rows} latents, its dictionary {d_sae}")));
    }
    let weights = w.flatten_all()?.to_vec1::<f32>()?;
    let weights: Vec<f32> =
        weights.chunks_exact(d).zip(&scale).flat_map(|(row, s)| row.iter().map(move |&v| (f64::from(v) * s) as f32)).collect();
    let biases = b.to_vec1::<f32>()?.into_iter().enumerate();
    let biases: Vec<f32> = biases.map(|(i, b)| ((f64::from(b) - mean[i]) * scale[i] + bias[i]) as f32).collect();
    Ok(Some((Tensor::from_vec(weights, (rows, d), &Device::Cpu)?, Tensor::from_vec(biases, rows, &Device::Cpu)?)))
}

fn write(dictionary: &Dictionary, out: &Path, title: &str) -> Result<Written> {
    let refuse = |what: &str, instead: &str| Err(Error::Unsupported { by: title.into(), what: what.into(), instead: instead.into() });
    let mut notes = Vec::new();
    let d = fit(dictionary, title, Holds { pursuit: true, ..Default::default() }, &mut notes)?;
    let biased = d.coder.b_dec.to_vec1::<f32>()?.iter().any(|&b| b != 0.0);
    let d = if biased { d.with_centred(true)? } else { d };
    let unit = d.atom_norms()?.iter().all(|n| (n - 1.0).abs() < 1e-6);
    let mut config = json!({
        "library": "overcomplete", "version": "0.3.0", "class": "SAE", "input_shape": d.d_in(), "nb_concepts": d.d_sae(),
        "encoder_module": "linear", "dictionary_params": { "normalization": if unit { "l2" } else { "identity" } },
    });
    if biased {
        config["input_shift"] = json!(d.coder.b_dec.to_vec1::<f32>()?);
        notes.push("overcomplete has no decoder bias: subtract `input_shift` of sae.json from rows, and add it to reconstructions".into());
    }
    if !unit {
        notes.push("its atoms are not of unit norm: construct it with dictionary_params={\"normalization\": \"identity\"}".into());
    }
    // Ours fire above their threshold, theirs at it.
    let logs = |thresholds: Vec<f32>| thresholds.into_iter().map(|t| t.next_up().max(f32::MIN_POSITIVE).ln()).collect::<Vec<_>>();
    let was_batch = own_config(dictionary, ID).is_some_and(|c| c["class"] == "BatchTopKSAE");
    let mut items = Vec::new();
    let class = match &d.activation {
        Activation::Relu => Class::Relu,
        Activation::TopK { k } => {
            config["top_k"] = json!(k);
            Class::TopK
        }
        Activation::Threshold { threshold } if *threshold == 0.0 => Class::Relu,
        Activation::Threshold { threshold } if was_batch => {
            config["running_threshold"] = json!(threshold.next_up());
            notes.push("set running_threshold by hand after loading: a state dict does not keep it".into());
            Class::BatchTopK
        }
        Activation::Threshold { threshold } => {
            items.push(("thresholds", Item::Tensor(Array::from_f32(vec![d.d_sae()], &logs(vec![*threshold; d.d_sae()]))?)));
            Class::Jump
        }
        Activation::JumpRelu => {
            let all = d.thresholds.as_ref().ok_or_else(|| Error::request("a dictionary without its thresholds", "import it again"))?;
            items.push(("thresholds", Item::Tensor(Array::from_f32(vec![d.d_sae()], &logs(all.to_vec1::<f32>()?))?)));
            Class::Jump
        }
        Activation::Pursuit { steps, selection, tolerance, stop_on_repeat, renormalise, .. } => {
            if *selection != Pick::Max {
                return refuse(
                    &format!("a pursuit that selects by {selection:?}: MpSAE takes the largest inner product, negative where all are"),
                    "export to saelens, or read it so: --activation mp:STEPS,selection=max (which changes codes of rows where all are negative)",
                );
            }
            if *tolerance > 0.0 || *stop_on_repeat {
                return refuse("a pursuit that ends before its last step", "export to saelens, or set tolerance=0,stop_on_repeat=false");
            }
            if *renormalise && !unit {
                return refuse("a pursuit in the directions of atoms that are not of unit norm", "fold their norms first: --fold-norms");
            }
            config["k"] = json!(steps);
            config["encoder_module"] = "identity".into();
            Class::Pursuit
        }
        other => return refuse(&format!("the activation {other:?}"), "export to saelens"),
    };
    config["class"] = json!(class);
    config["hook"] = d.provenance.hook.clone().into();
    config["host"] = d.provenance.host["name"].clone();
    if class != Class::Pursuit {
        items.push(("encoder.final_block.0.weight", item(&d.coder.w_enc)?));
        items.push(("encoder.final_block.0.bias", item(&d.coder.b_enc)?));
    }
    items.push(("dictionary._weights", item(&d.coder.w_dec)?));
    items.push(("dictionary.multiplier", Item::Tensor(Array::from_f32(Vec::new(), &[0.0])?)));
    let path = out.join(WEIGHTS);
    let beside = path.with_extension("json");
    let name = beside.file_name().unwrap_or_default().to_string_lossy().to_string();
    pt::save(&path, &items)?;
    write_json(out, &name, &config, true)?;
    notes.push("sae.pt is the state dict; what its constructor wants is in sae.json, which overcomplete itself does not read".into());
    Ok(Written { path, notes })
}
