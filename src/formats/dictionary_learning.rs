//! dictionary_learning: `ae.pt` + `config.json`, whose `trainer.dict_class` says which class the tensors are of.
//!
//! | class | codes | `b_dec` subtracted |
//! |---|---|---|
//! | AutoEncoder | relu | yes |
//! | AutoEncoderNew | relu | no |
//! | GatedAutoEncoder | u = (x - b) W^T; relu(exp(r_mag) u + mag_bias) where u + gate_bias > 0 | yes |
//! | JumpReluAutoEncoder | relu(h) where h > threshold, per latent | no |
//! | AutoEncoderTopK | relu, then the k largest of a row | yes |
//! | BatchTopKSAE, MatryoshkaBatchTopKSAE | relu(h) where h > threshold, one for all; -1 is unset: relu | yes |
//!
//! Classes with linear layers keep `encoder.weight` `[F, d]` and `decoder.weight` `[d, F]`; the others `W_enc` `[d, F]`, `W_dec` `[F, d]`.

use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use serde::Deserialize;
use serde_json::{json, Map, Value};

use super::archive::{has_extension, item, pt_names, read_pt};
use super::container::pt::{self, Item};
use super::container::Array;
use super::fit::{fit, Holds};
use super::foreign::{own_config, Foreign, Source};
use super::saelens::with_thresholds;
use super::tensors::{peek_json, read_json, typed, write_json, Tensors};
use super::{Format, ReadOptions, WriteOptions, Written};
use crate::dictionary::{Activation, Dictionary, Provenance};
use crate::error::{Error, Result};
use crate::hook::{HookPoint, Site};
use crate::kernels::Coder;

/// The dialect.
pub(super) struct DictionaryLearning;

const ID: &str = "dictionary-learning";
const NAME: &str = "dictionary_learning dictionary";
const CONFIG: &str = "config.json";
const WEIGHTS: &str = "ae.pt";

/// Their classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum Class {
    AutoEncoder,
    AutoEncoderNew,
    GatedAutoEncoder,
    JumpReluAutoEncoder,
    AutoEncoderTopK,
    BatchTopKSAE,
    MatryoshkaBatchTopKSAE,
}

impl Class {
    fn name(self) -> &'static str {
        match self {
            Self::AutoEncoder => "AutoEncoder",
            Self::AutoEncoderNew => "AutoEncoderNew",
            Self::GatedAutoEncoder => "GatedAutoEncoder",
            Self::JumpReluAutoEncoder => "JumpReluAutoEncoder",
            Self::AutoEncoderTopK => "AutoEncoderTopK",
            Self::BatchTopKSAE => "BatchTopKSAE",
            Self::MatryoshkaBatchTopKSAE => "MatryoshkaBatchTopKSAE",
        }
    }

    /// The trainer that makes it, as evaluations look it up.
    fn trainer(self) -> &'static str {
        match self {
            Self::AutoEncoder | Self::AutoEncoderNew => "StandardTrainer",
            Self::GatedAutoEncoder => "GatedSAETrainer",
            Self::JumpReluAutoEncoder => "JumpReluTrainer",
            Self::AutoEncoderTopK => "TopKTrainer",
            Self::BatchTopKSAE => "BatchTopKTrainer",
            Self::MatryoshkaBatchTopKSAE => "MatryoshkaBatchTopKTrainer",
        }
    }

    /// Does its encoder subtract the decoder's bias?
    fn centred(self) -> bool {
        !matches!(self, Self::AutoEncoderNew | Self::JumpReluAutoEncoder)
    }
}

/// The keys that decide the function or say what was read; the others are kept in the provenance.
#[derive(Debug, Deserialize)]
struct Config {
    trainer: Trainer,
}

#[derive(Debug, Deserialize)]
struct Trainer {
    dict_class: Class,
    #[serde(default)]
    activation_dim: Option<usize>,
    #[serde(default)]
    dict_size: Option<usize>,
    #[serde(default)]
    k: Option<usize>,
    #[serde(default)]
    layer: Option<usize>,
    #[serde(default)]
    lm_name: Option<String>,
    #[serde(default)]
    submodule_name: Option<String>,
}

/// The weights and the configuration of the dictionary at `at`: a folder, or a `.pt` file in it or in its `checkpoints`.
fn files_of(at: &Path) -> Option<(PathBuf, PathBuf)> {
    if at.is_dir() {
        return Some((at.join(WEIGHTS), at.join(CONFIG)));
    }
    let folder = at.parent().filter(|_| has_extension(at, &["pt"]))?;
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let above = folder.file_name().filter(|n| *n == "checkpoints").and_then(|_| folder.parent()).unwrap_or(folder);
    let config = [folder, above].into_iter().map(|f| f.join(CONFIG)).find(|p| p.is_file())?;
    Some((at.to_path_buf(), config))
}

impl Format for DictionaryLearning {
    fn id(&self) -> &'static str {
        ID
    }

    fn title(&self) -> &'static str {
        "dictionary_learning 0.1.0"
    }

    fn find(&self, at: &Path) -> Vec<PathBuf> {
        let Some((weights, config)) = files_of(at) else { return Vec::new() };
        let says = |c: Value| c["trainer"]["dict_class"].is_string();
        let is_ours = weights.is_file()
            && peek_json(&config).is_some_and(says)
            // Another tool's file may lie beside this configuration. One that cannot be read is claimed, so that reading it says why.
            && (at.is_dir() || pt_names(&weights).is_none_or(|names| names.iter().any(|n| n == "encoder.weight" || n == "W_enc")));
        match is_ours {
            // `ae.pt` stands for its folder.
            true if weights.file_name().is_some_and(|n| n == WEIGHTS) => vec![weights.parent().unwrap_or(at).to_path_buf()],
            true => vec![at.to_path_buf()],
            false => Vec::new(),
        }
    }

    fn read(&self, at: &Path, options: &ReadOptions) -> Result<Foreign> {
        let nothing =
            || Error::request(format!("{} has no {CONFIG} beside it", at.display()), "point to a folder with ae.pt and config.json");
        let (path, json_path) = files_of(at).ok_or_else(nothing)?;
        let config = read_json(NAME, &json_path)?;
        let trainer = typed::<Config>(NAME, &json_path, &config)?.trainer;
        let (mut t, plain) = read_pt(NAME, &path)?;
        if let Some((name, value)) = plain.iter().next() {
            return Err(t.damaged(format!("its entry `{name}` ({}) is not known", value.kind())));
        }
        let mut notes = Vec::new();
        let (dictionary, prefixes, k) = dictionary_of(&mut t, &trainer, options, &mut notes)?;
        let found = (Some(dictionary.d_in()), Some(dictionary.d_sae()));
        let told = (trainer.activation_dim.or(found.0), trainer.dict_size.or(found.1));
        if found != told {
            return Err(t.damaged(format!("it has {} latents over {}, {CONFIG} says {told:?}", dictionary.d_sae(), dictionary.d_in())));
        }
        t.finish()?;
        let source = Source {
            format: ID,
            files: vec![json_path, path],
            hook: hook_of(&trainer),
            host: trainer.lm_name.filter(|name| !name.is_empty()),
            config,
            prefixes,
            k,
        };
        Foreign::new(dictionary, source, notes)
    }

    fn write(&self, dictionary: &Dictionary, out: &Path, _: &WriteOptions) -> Result<Written> {
        write(dictionary, out, self.title())
    }
}

/// What the tensors of a class are: a dictionary, its prefixes, the k that a threshold was made for.
type Parts = (Dictionary, Vec<usize>, Option<usize>);

/// The dictionary in the tensors of a class.
fn dictionary_of(t: &mut Tensors, trainer: &Trainer, options: &ReadOptions, notes: &mut Vec<String>) -> Result<Parts> {
    let class = trainer.dict_class;
    let linear = |t: &mut Tensors, b_enc: &str, b_dec: &str| -> Result<Coder> {
        Ok(Coder {
            w_enc: t.matrix("encoder.weight")?,
            b_enc: t.vector(b_enc)?,
            w_dec: t.transposed("decoder.weight")?,
            b_dec: t.vector(b_dec)?,
        })
    };
    let plain = |t: &mut Tensors| -> Result<Coder> {
        Ok(Coder { w_enc: t.transposed("W_enc")?, b_enc: t.vector("b_enc")?, w_dec: t.matrix("W_dec")?, b_dec: t.vector("b_dec")? })
    };
    let coder = match class {
        Class::AutoEncoder => linear(t, "encoder.bias", "bias")?,
        Class::AutoEncoderNew => linear(t, "encoder.bias", "decoder.bias")?,
        Class::GatedAutoEncoder => linear(t, "gate_bias", "decoder_bias")?,
        Class::AutoEncoderTopK | Class::BatchTopKSAE => linear(t, "encoder.bias", "b_dec")?,
        Class::JumpReluAutoEncoder | Class::MatryoshkaBatchTopKSAE => plain(t)?,
    };
    let d_sae = coder.b_enc.dims1()?;
    let mut d = Dictionary::new(coder, Activation::Relu, class.centred(), Provenance::default())?;
    let (mut prefixes, mut meant) = (Vec::new(), None);
    let activation = match class {
        Class::AutoEncoder | Class::AutoEncoderNew => Activation::Relu,
        Class::GatedAutoEncoder => {
            d.magnitude = Some((t.vector("r_mag")?.exp()?, t.vector("mag_bias")?));
            Activation::Gated
        }
        Class::JumpReluAutoEncoder => {
            let thresholds = t.vector("threshold")?.to_vec1::<f32>()?;
            let (with, activation) = with_thresholds(d, &thresholds)?;
            d = with;
            activation
        }
        Class::AutoEncoderTopK => {
            let k = k_of(t, trainer, options)?;
            if t.number("threshold")?.is_some_and(|threshold| threshold >= 0.0) {
                notes.push("the threshold of `use_threshold` is left behind: codes are top-k, as their encoder has it by default".into());
            }
            Activation::TopK { k }
        }
        Class::BatchTopKSAE | Class::MatryoshkaBatchTopKSAE => {
            meant = Some(k_of(t, trainer, options)?);
            // Files from before they had thresholds have none.
            let threshold = t.number("threshold")?.map(|t| t as f32).or(options.threshold).unwrap_or(-1.0);
            if threshold < 0.0 {
                notes.push("its threshold was never set (-1): codes are all positive ones, as their encoder has it too".into());
            }
            if class == Class::MatryoshkaBatchTopKSAE {
                let groups = t.integers("group_sizes")?.ok_or_else(|| t.damaged("a Matryoshka dictionary without `group_sizes`"))?;
                prefixes = cumulative(&groups)
                    .filter(|all| all.last() == Some(&d_sae))
                    .ok_or_else(|| t.damaged(format!("its group sizes {groups:?} do not add up to its {d_sae} latents")))?;
            }
            Activation::Threshold { threshold: threshold.max(0.0) }
        }
    };
    Ok((d.with_activation(activation)?, prefixes, meant))
}

/// Sums of the first one, two, ... groups; `None` where a group is empty or the sums are beyond this machine.
fn cumulative(groups: &[i64]) -> Option<Vec<usize>> {
    let mut sum = 0usize;
    let mut add = |&g: &i64| {
        sum = sum.checked_add(usize::try_from(g).ok().filter(|g| *g > 0)?)?;
        Some(sum)
    };
    groups.iter().map(&mut add).collect()
}

/// k of the file, of its configuration or as asked: those that are there must agree.
fn k_of(t: &mut Tensors, trainer: &Trainer, options: &ReadOptions) -> Result<usize> {
    let whole = |v: f64| (v >= 1.0 && v.fract() == 0.0 && v < 1e9).then_some(v as usize);
    let in_file = match t.number("k")? {
        Some(k) => Some(whole(k).ok_or_else(|| t.damaged(format!("its k is {k}")))?),
        None => None,
    };
    if let (Some(file), Some(config)) = (in_file, trainer.k) {
        if file != config {
            return Err(t.damaged(format!("its k is {file}, {CONFIG} says {config}")));
        }
    }
    let known = in_file.or(trainer.k);
    if let (Some(known), Some(asked)) = (known, options.k) {
        if known != asked {
            return Err(Error::request(format!("k is {known} in the files, not {asked}"), "leave the k out"));
        }
    }
    known.or(options.k).ok_or_else(|| t.damaged("neither it nor its configuration has a k"))
}

/// `resid_post_layer_5`, or the layer alone, which is that of a residual stream after it (as SAELens takes it too).
fn hook_of(trainer: &Trainer) -> String {
    let name = trainer.submodule_name.as_deref().unwrap_or_default();
    let site = match name.split("_layer").next().unwrap_or_default() {
        "" | "resid_post" => Site::ResidPost,
        "resid_pre" => Site::ResidPre,
        "mlp" | "mlp_out" => Site::MlpOut,
        "attn" | "attn_out" | "attention_out" => Site::AttnOut,
        _ => return name.to_string(),
    };
    trainer.layer.map(|layer| HookPoint::block(layer, site).to_string()).unwrap_or_default()
}

/// `resid_post_layer_5`, as their scripts call it.
fn submodule_of(point: HookPoint) -> Value {
    let site = match point.site {
        Site::ResidPost => "resid_post",
        Site::ResidPre => "resid_pre",
        Site::MlpOut => "mlp_out",
        Site::AttnOut => "attention_out",
        _ => return Value::Null,
    };
    format!("{site}_layer_{}", point.layer).into()
}

/// The class that holds a dictionary.
fn class_of(d: &Dictionary, k: Option<usize>, title: &str) -> Result<Class> {
    let own = own_config(d, ID).and_then(|c| serde_json::from_value::<Class>(c["trainer"]["dict_class"].clone()).ok());
    Ok(match &d.activation {
        // Their loader folds the norms of an AutoEncoder, and complains where that is inexact.
        Activation::Relu if own != Some(Class::AutoEncoderNew) && d.centred && d.atom_norms()?.iter().all(|n| (n - 1.0).abs() < 1e-5) => {
            Class::AutoEncoder
        }
        Activation::Relu => Class::AutoEncoderNew,
        Activation::TopK { .. } => Class::AutoEncoderTopK,
        // Without a k their classes cannot be made; the other class needs none.
        Activation::Threshold { .. } if own == Some(Class::JumpReluAutoEncoder) || k.is_none() => Class::JumpReluAutoEncoder,
        Activation::Threshold { .. } if d.prefixes().is_empty() && own != Some(Class::MatryoshkaBatchTopKSAE) => Class::BatchTopKSAE,
        Activation::Threshold { .. } => Class::MatryoshkaBatchTopKSAE,
        Activation::JumpRelu => Class::JumpReluAutoEncoder,
        Activation::Gated => Class::GatedAutoEncoder,
        other => {
            return Err(Error::Unsupported {
                by: title.into(),
                what: format!("the activation {other:?}"),
                instead: "export to saelens, which has pursuits and signed top-k".into(),
            })
        }
    })
}

/// The k that was meant, where the rule has a threshold.
fn known_k(d: &Dictionary) -> Option<usize> {
    let p = &d.provenance;
    let imported = &p.notes["imported"]["config"];
    let places = [&imported["trainer"]["k"], &imported["k"], &imported["metadata"]["training_architecture_details"]["k"], &p.notes["k"]];
    d.activation.k().or_else(|| places.into_iter().find_map(|v| usize::try_from(v.as_u64()?).ok()).filter(|k| *k > 0))
}

fn write(dictionary: &Dictionary, out: &Path, title: &str) -> Result<Written> {
    let mut notes = Vec::new();
    let k = known_k(dictionary);
    let class = class_of(dictionary, k, title)?;
    let d = fit(dictionary, title, Holds { centred: Some(class.centred()), ..Default::default() }, &mut notes)?;
    let c = &d.coder;
    let linear = |b_enc: &'static str, b_dec: &'static str| -> Result<Vec<(&'static str, Item)>> {
        Ok(vec![
            (b_dec, item(&c.b_dec)?),
            ("encoder.weight", item(&c.w_enc)?),
            (b_enc, item(&c.b_enc)?),
            ("decoder.weight", item(&c.w_dec.t()?)?),
        ])
    };
    let plain = || -> Result<Vec<(&'static str, Item)>> {
        Ok(vec![("W_enc", item(&c.w_enc.t()?)?), ("b_enc", item(&c.b_enc)?), ("W_dec", item(&c.w_dec)?), ("b_dec", item(&c.b_dec)?)])
    };
    let scalars = |threshold: f32| -> Result<Vec<(&'static str, Item)>> {
        let k = k.and_then(|k| i32::try_from(k).ok()).unwrap_or(1);
        Ok(vec![
            ("k", Item::Tensor(Array::from_i32(Vec::new(), &[k])?)),
            ("threshold", Item::Tensor(Array::from_f32(Vec::new(), &[threshold])?)),
        ])
    };
    let threshold = match d.activation {
        Activation::Threshold { threshold } => threshold,
        _ => -1.0,
    };
    let mut widths = d.prefixes();
    widths.push(d.d_sae());
    let groups: Vec<i64> = widths.iter().scan(0, |from, &to| Some((to - std::mem::replace(from, to)) as i64)).collect();
    let items = match class {
        Class::AutoEncoder => linear("encoder.bias", "bias")?,
        Class::AutoEncoderNew => linear("encoder.bias", "decoder.bias")?,
        Class::AutoEncoderTopK => [linear("encoder.bias", "b_dec")?, scalars(-1.0)?].concat(),
        Class::BatchTopKSAE => [linear("encoder.bias", "b_dec")?, scalars(threshold)?].concat(),
        Class::MatryoshkaBatchTopKSAE => {
            let groups = ("group_sizes", Item::Tensor(Array::from_i64(vec![groups.len()], &groups)?));
            [plain()?, scalars(threshold)?, vec![groups]].concat()
        }
        Class::JumpReluAutoEncoder => {
            let all = match (&d.thresholds, &d.activation) {
                (Some(thresholds), _) => thresholds.clone(),
                _ => Tensor::full(threshold, d.d_sae(), d.device())?.to_dtype(DType::F32)?,
            };
            [plain()?, vec![("threshold", item(&all)?)]].concat()
        }
        Class::GatedAutoEncoder => {
            let (gain, bias) =
                d.magnitude.as_ref().ok_or_else(|| Error::request("a gated dictionary without its magnitudes", "import it again"))?;
            if gain.to_vec1::<f32>()?.iter().any(|&g| g <= 0.0) {
                return Err(Error::Unsupported {
                    by: title.into(),
                    what: "a gain of magnitudes that is not positive: it keeps exp(r_mag)".into(),
                    instead: "keep it in Lapidary's own format".into(),
                });
            }
            [linear("gate_bias", "decoder_bias")?, vec![("r_mag", item(&gain.log()?)?), ("mag_bias", item(bias)?)]].concat()
        }
    };
    pt::save(&out.join(WEIGHTS), &items)?;
    let mut groups_or_not = Map::new();
    if class == Class::MatryoshkaBatchTopKSAE {
        let share: Vec<f64> = groups.iter().map(|&g| g as f64 / d.d_sae() as f64).collect();
        let weight = vec![1.0 / groups.len() as f64; groups.len()];
        groups_or_not = Map::from_iter([
            ("group_sizes".to_string(), json!(groups)),
            ("group_fractions".to_string(), json!(share)),
            ("group_weights".to_string(), json!(weight)),
        ]);
    }
    write_json(out, CONFIG, &config(&d, class, k, groups_or_not, &mut notes), true)?;
    Ok(Written { path: out.to_path_buf(), notes })
}

/// Their `config.json`: that of the import where it came from here, else made of our provenance. What decides the function is written anew.
fn config(d: &Dictionary, class: Class, k: Option<usize>, groups: Map<String, Value>, notes: &mut Vec<String>) -> Value {
    let p = &d.provenance;
    let own = own_config(d, ID);
    let mut trainer = own.and_then(|c| c["trainer"].as_object().cloned()).unwrap_or_default();
    let same_class = trainer.get("dict_class").is_some_and(|c| c == class.name());
    if !same_class {
        trainer.insert("trainer_class".into(), class.trainer().into());
    }
    let point = p.hook.parse::<HookPoint>().ok();
    let mut put = |key: &str, value: Value| {
        if !value.is_null() || !trainer.contains_key(key) {
            trainer.insert(key.into(), value);
        }
    };
    put("dict_class", class.name().into());
    put("activation_dim", d.d_in().into());
    put("dict_size", d.d_sae().into());
    put("k", k.map_or(Value::Null, Into::into));
    put("device", "cpu".into());
    put("layer", point.map_or(Value::Null, |p| p.layer.into()));
    put("lm_name", p.host["hub_id"].as_str().or(p.host["name"].as_str()).map_or(Value::Null, Into::into));
    put("submodule_name", point.map_or(Value::Null, submodule_of));
    if own.is_none() {
        put("lr", p.config["train"]["lr"].clone());
        put("steps", Value::Null);
        put("seed", p.config["train"]["seed"].clone());
        put("wandb_name", format!("Lapidary {} {}", p.lapidary, p.made_by).into());
    }
    for (key, value) in groups {
        put(&key, value);
    }
    if trainer["layer"].is_null() || trainer["lm_name"].is_null() {
        notes.push("the layer or the model's name is not known here: SAELens and SAEBench want `trainer.layer` and `trainer.lm_name` in config.json".into());
    }
    let harvest = if p.shards.is_null() { &p.stream } else { &p.shards };
    let buffer = own.map(|c| c["buffer"].clone()).unwrap_or_else(|| {
        let context = harvest["config"]["harvest"]["context"].as_u64().unwrap_or(128);
        json!({ "d_submodule": d.d_in(), "io": "out", "ctx_len": context, "device": "cpu" })
    });
    let mut all = json!({ "trainer": trainer });
    if !buffer.is_null() {
        all["buffer"] = buffer;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_add_up_to_prefixes() {
        assert_eq!(cumulative(&[4, 4, 8]), Some(vec![4, 8, 16]));
        assert_eq!(cumulative(&[4, 0]), None);
        assert_eq!(cumulative(&[4, -4]), None);
        assert_eq!(cumulative(&[i64::MAX, i64::MAX, i64::MAX]), None);
    }

    #[test]
    fn a_class_of_theirs_is_found_by_its_name() {
        for class in [Class::AutoEncoder, Class::JumpReluAutoEncoder, Class::MatryoshkaBatchTopKSAE] {
            assert_eq!(serde_json::from_value::<Class>(class.name().into()).unwrap(), class);
        }
    }

    #[test]
    fn submodules_name_hook_points() {
        let of = |name: Option<&str>| {
            let trainer = json!({ "dict_class": "AutoEncoder", "layer": 5, "submodule_name": name });
            hook_of(&serde_json::from_value(trainer).unwrap())
        };
        assert_eq!(of(None), "blocks.5.hook_resid_post");
        assert_eq!(of(Some("resid_post_layer_5")), "blocks.5.hook_resid_post");
        assert_eq!(of(Some("mlp_out_layer_5")), "blocks.5.hook_mlp_out");
        assert_eq!(of(Some("embed")), "embed");
        for site in [Site::ResidPost, Site::ResidPre, Site::MlpOut, Site::AttnOut] {
            let point = HookPoint::block(5, site);
            assert_eq!(of(submodule_of(point).as_str()), point.to_string());
        }
    }
}
