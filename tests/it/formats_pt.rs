//! Dialects that live in PyTorch and NumPy archives: what each writes it reads back as the same function, class by class; state dicts that
//! their libraries leave, made by hand, mean what the libraries mean.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use lapidary::dictionary::{InputTransform, Provenance, RowNorm};
use lapidary::formats::container::pickle::Value;
use lapidary::formats::container::pt::{self, Item, PtFile};
use lapidary::formats::container::{Array, Bytes};
use lapidary::formats::{self, Foreign, ReadOptions, WriteOptions};
use lapidary::kernels::{Coder, Pick};
use lapidary::rng::Rng;
use lapidary::{Activation, Dictionary, Result};
use serde_json::json;

const D: usize = 8;
const F: usize = 24;

fn random(rng: &mut Rng, shape: &[usize], scale: f32) -> Tensor {
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.normal() as f32 * scale).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn unit(t: &Tensor) -> Tensor {
    t.broadcast_div(&t.sqr().unwrap().sum_keepdim(1).unwrap().sqrt().unwrap()).unwrap()
}

/// Random weights with biases that are not zero; atoms of unit norm or not.
fn coder(unit_atoms: bool) -> Coder {
    let mut rng = Rng::stream(7, "formats", 0);
    let w_dec = random(&mut rng, &[F, D], 0.5);
    let w_dec = if unit_atoms { unit(&w_dec) } else { w_dec };
    Coder { w_enc: random(&mut rng, &[F, D], 0.5), b_enc: random(&mut rng, &[F], 0.1), w_dec, b_dec: random(&mut rng, &[D], 0.3) }
}

fn rows() -> Tensor {
    random(&mut Rng::stream(8, "rows", 0), &[50, D], 1.0)
}

fn dictionary(activation: Activation, centred: bool, unit_atoms: bool) -> Dictionary {
    let mut rng = Rng::stream(9, "extras", 0);
    let mut d = Dictionary::new(coder(unit_atoms), Activation::Relu, centred, Provenance::default()).unwrap();
    d.provenance.hook = "blocks.5.hook_resid_post".into();
    d.provenance.host = json!({ "name": "gpt2" });
    if activation == Activation::JumpRelu {
        d.thresholds = Some(random(&mut rng, &[F], 0.5).abs().unwrap());
    }
    if activation == Activation::Gated {
        d.magnitude = Some((random(&mut rng, &[F], 0.3).exp().unwrap(), random(&mut rng, &[F], 0.1)));
    }
    d.with_activation(activation).unwrap()
}

/// How far codes and reconstructions of two dictionaries are apart on rows.
fn off(a: &Dictionary, b: &Dictionary) -> f32 {
    let x = rows();
    let ((za, ya), (zb, yb)) = (a.reconstruct(&x).unwrap(), b.reconstruct(&x).unwrap());
    let apart = |a: &Tensor, b: &Tensor| (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    apart(&za.to_dense().unwrap(), &zb.to_dense().unwrap()).max(apart(&ya, &yb))
}

fn read(at: &Path, format: &str) -> Result<Foreign> {
    let found = formats::find_one(at, None)?;
    assert_eq!(found.format.id(), format);
    found.format.read(&found.path, &ReadOptions::default())
}

/// Written and read back, twice: the second time nothing may change, not a bit.
fn there_and_back(d: &Dictionary, format: &str) -> Dictionary {
    let dialect = formats::by_id(format).unwrap();
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let written = dialect.write(d, first.path(), &WriteOptions::default()).unwrap();
    assert!(written.path.starts_with(first.path()));
    let once = read(first.path(), format).unwrap().dictionary;
    assert!(d.d_sae() == F && off(d, &once) < 1e-5, "{format} {:?}: off by {}", d.activation, off(d, &once));
    dialect.write(&once, second.path(), &WriteOptions::default()).unwrap();
    let twice = read(second.path(), format).unwrap().dictionary;
    let matrices = |d: &Dictionary| [&d.coder.w_enc, &d.coder.w_dec].map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    assert_eq!(matrices(&once), matrices(&twice), "{format}");
    once
}

#[test]
fn every_class_of_dictionary_learning_comes_back() {
    let threshold = Activation::Threshold { threshold: 0.4 };
    for (activation, centred, unit_atoms, class) in [
        (Activation::Relu, true, true, "AutoEncoder"),
        (Activation::Relu, true, false, "AutoEncoderNew"),
        (Activation::Relu, false, true, "AutoEncoderNew"),
        (Activation::TopK { k: 4 }, true, true, "AutoEncoderTopK"),
        (Activation::TopK { k: 4 }, false, false, "AutoEncoderTopK"),
        (threshold.clone(), true, true, "JumpReluAutoEncoder"),
        (Activation::JumpRelu, true, true, "JumpReluAutoEncoder"),
        (Activation::JumpRelu, false, false, "JumpReluAutoEncoder"),
        (Activation::Gated, true, true, "GatedAutoEncoder"),
        (Activation::Gated, false, true, "GatedAutoEncoder"),
    ] {
        let back = there_and_back(&dictionary(activation, centred, unit_atoms), "dictionary-learning");
        let p = &back.provenance;
        assert_eq!(p.notes["imported"]["config"]["trainer"]["dict_class"], class);
        assert_eq!((p.hook.as_str(), &p.host["name"]), ("blocks.5.hook_resid_post", &json!("gpt2")));
    }
    // With a k, thresholds are those of BatchTopK; with prefixes, Matryoshka's.
    let mut d = dictionary(threshold, true, true);
    d.provenance.notes = json!({ "k": 4 });
    let back = there_and_back(&d, "dictionary-learning");
    assert_eq!(back.provenance.notes["imported"]["config"]["trainer"]["dict_class"], "BatchTopKSAE");
    d.provenance.notes = json!({ "k": 4, "prefixes": [6, 12] });
    let back = there_and_back(&d, "dictionary-learning");
    let trainer = &back.provenance.notes["imported"]["config"]["trainer"];
    assert_eq!((&trainer["trainer_class"], &trainer["group_sizes"]), (&json!("MatryoshkaBatchTopKTrainer"), &json!([6, 6, 12])));
    assert_eq!(back.prefixes(), [6, 12]);
    assert!(off(&d.prefix(6).unwrap(), &back.prefix(6).unwrap()) < 1e-5);
}

#[test]
fn an_input_transform_is_folded_on_the_way_out() {
    let mut d = dictionary(Activation::TopK { k: 4 }, true, true);
    d.input_transform = Some(InputTransform { shift: random(&mut Rng::stream(1, "shift", 0), &[D], 0.5), scale: 1.7 });
    let back = there_and_back(&d, "dictionary-learning");
    assert!(back.input_transform.is_none() && off(&d, &back) < 1e-5);
}

#[test]
fn openai_has_topk_behind_a_layer_norm_and_relu_without() {
    let mut d = dictionary(Activation::TopK { k: 4 }, true, true);
    let dialect = formats::by_id("openai").unwrap();
    let out = tempfile::tempdir().unwrap();
    let e = dialect.write(&d, out.path(), &WriteOptions::default()).unwrap_err();
    assert!(e.exit_code() == 2 && e.to_string().contains("layer norm"), "{e}");
    d.row_norm = Some(RowNorm::LayerNorm);
    let back = there_and_back(&d, "openai");
    assert_eq!(back.row_norm, Some(RowNorm::LayerNorm));
    there_and_back(&dictionary(Activation::Relu, true, false), "openai");
    there_and_back(&dictionary(Activation::Relu, false, true), "openai");
    for refused in [Activation::JumpRelu, Activation::Gated, Activation::Threshold { threshold: 0.1 }] {
        assert_eq!(dialect.write(&dictionary(refused, true, true), out.path(), &WriteOptions::default()).unwrap_err().exit_code(), 2);
    }
}

#[test]
fn gemma_scope_has_thresholds() {
    for activation in [Activation::Relu, Activation::Threshold { threshold: 0.4 }, Activation::JumpRelu] {
        for (centred, unit_atoms) in [(true, true), (false, false)] {
            there_and_back(&dictionary(activation.clone(), centred, unit_atoms), "gemma-scope");
        }
    }
    let out = tempfile::tempdir().unwrap();
    let topk = dictionary(Activation::TopK { k: 4 }, true, true);
    assert_eq!(formats::by_id("gemma-scope").unwrap().write(&topk, out.path(), &WriteOptions::default()).unwrap_err().exit_code(), 2);
}

/// The rule of `MpSAE`.
fn pursuit(steps: usize, selection: Pick) -> Activation {
    Activation::Pursuit { steps, selection, tolerance: 0.0, relative: false, stop_on_repeat: false, renormalise: false }
}

#[test]
fn overcomplete_reads_rows_minus_the_decoder_bias() {
    let dialect = formats::by_id("overcomplete").unwrap();
    let threshold = Activation::Threshold { threshold: 0.4 };
    for activation in [Activation::Relu, Activation::TopK { k: 4 }, threshold, Activation::JumpRelu, pursuit(4, Pick::Max)] {
        for (centred, unit_atoms) in [(true, true), (true, false), (false, true)] {
            let back = there_and_back(&dictionary(activation.clone(), centred, unit_atoms), "overcomplete");
            assert!(back.input_transform.is_some());
        }
        let mut d = dictionary(activation, true, true);
        d.coder.b_dec = Tensor::zeros(D, DType::F32, &Device::Cpu).unwrap();
        assert!(there_and_back(&d, "overcomplete").input_transform.is_none());
    }
    // The state dict alone is the function of rows minus b_dec.
    let d = dictionary(Activation::TopK { k: 4 }, true, true);
    let out = tempfile::tempdir().unwrap();
    dialect.write(&d, out.path(), &WriteOptions::default()).unwrap();
    std::fs::remove_file(out.path().join("sae.json")).unwrap();
    let mut options = ReadOptions::default();
    options.k = Some(4);
    let alone = dialect.read(&out.path().join("sae.pt"), &options).unwrap().dictionary;
    let x = rows();
    let shifted = x.broadcast_sub(&d.coder.b_dec).unwrap();
    let (a, b) = (d.encode(&x).unwrap().to_dense().unwrap(), alone.encode(&shifted).unwrap().to_dense().unwrap());
    assert!((a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() < 1e-5);
    // A pursuit by another rule than theirs.
    let d = dictionary(pursuit(4, Pick::NonNeg), true, true);
    assert!(dialect.write(&d, out.path(), &WriteOptions::default()).unwrap_err().to_string().contains("NonNeg"));
}

fn tensor(t: &Tensor) -> Item {
    Item::Tensor(Array::from_tensor(t).unwrap())
}

fn scalar(v: f32) -> Item {
    Item::Tensor(Array::from_f32(Vec::new(), &[v]).unwrap())
}

/// A dictionary without biases that computes `z = rule(x W^T + b)`, `y = z D`.
fn plain(w: &Tensor, b: &Tensor, atoms: &Tensor, activation: Activation) -> Dictionary {
    let b_dec = Tensor::zeros(D, DType::F32, &Device::Cpu).unwrap();
    let coder = Coder { w_enc: w.clone(), b_enc: b.clone(), w_dec: atoms.clone(), b_dec };
    Dictionary::new(coder, activation, false, Provenance::default()).unwrap()
}

#[test]
fn state_dicts_of_overcomplete_mean_what_they_mean_there() {
    let c = coder(true);
    let (w, b, atoms) = (&c.w_enc, &c.b_enc, &c.w_dec);
    let zeros = Tensor::zeros(F, DType::F32, &Device::Cpu).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sae.pt");
    let linear = || vec![("encoder.final_block.0.weight", tensor(w)), ("encoder.final_block.0.bias", tensor(b))];
    let atoms_as = |t: &Tensor, log: f32| vec![("dictionary._weights", tensor(t)), ("dictionary.multiplier", scalar(log))];
    let saved = |items: Vec<(&str, Item)>, options: &dyn Fn(&mut ReadOptions)| {
        pt::save(&path, &items).unwrap();
        let mut o = ReadOptions::default();
        options(&mut o);
        formats::find_one(&path, None).and_then(|found| found.format.read(&found.path, &o)).map(|f| f.dictionary)
    };
    let k4 = |o: &mut ReadOptions| o.k = Some(4);
    let top4 = Activation::TopK { k: 4 };

    // A multiplier scales the atoms.
    let d = saved([linear(), atoms_as(atoms, 0.5)].concat(), &k4).unwrap();
    assert!(off(&d, &plain(w, b, &(atoms * 0.5f64.exp()).unwrap(), top4.clone())) < 1e-5);
    // Nearly unit atoms become unit ones, as `eval()` makes them; others are not guessed at, but a file beside may tell.
    let d = saved([linear(), atoms_as(&(atoms * 1.01).unwrap(), 0.0)].concat(), &k4).unwrap();
    assert!(off(&d, &plain(w, b, atoms, top4.clone())) < 1e-5);
    let twice = (atoms * 2.0).unwrap();
    let e = saved([linear(), atoms_as(&twice, 0.0)].concat(), &k4).unwrap_err().to_string();
    assert!(e.contains("model.eval()"), "{e}");
    for (normalization, expected) in [("identity", &twice), ("l2", atoms), ("max_l2", atoms)] {
        let beside = json!({ "class": "TopKSAE", "top_k": 4, "dictionary_params": { "normalization": normalization } });
        std::fs::write(dir.path().join("sae.json"), beside.to_string()).unwrap();
        let d = saved([linear(), atoms_as(&twice, 0.0)].concat(), &|_| ()).unwrap();
        assert!(off(&d, &plain(w, b, expected, top4.clone())) < 1e-5, "{normalization}");
        assert!(saved([linear(), atoms_as(&twice, 0.0)].concat(), &|o| o.k = Some(5)).is_err());
    }
    std::fs::remove_file(dir.path().join("sae.json")).unwrap();
    // Neither k nor threshold: the class cannot be known.
    let e = saved([linear(), atoms_as(atoms, 0.0)].concat(), &|_| ()).unwrap_err();
    assert!(e.exit_code() == 2 && e.to_string().contains("sae.json"), "{e}");
    let d = saved([linear(), atoms_as(atoms, 0.0)].concat(), &|o| o.threshold = Some(0.4)).unwrap();
    assert!(off(&d, &plain(w, b, atoms, Activation::Threshold { threshold: 0.4 })) < 1e-5);
    // Thresholds are logarithms, and fire at their value.
    let logs = Tensor::full(0.4f32.ln(), F, &Device::Cpu).unwrap();
    let d = saved([linear(), atoms_as(atoms, 0.0), vec![("thresholds", tensor(&logs))]].concat(), &|_| ()).unwrap();
    assert!(off(&d, &plain(w, b, atoms, Activation::Threshold { threshold: 0.4 })) < 1e-5);
    // Tied encoders: PyTorch saves the dictionary a second time.
    let tied = vec![("encoder.tied_to._weights", tensor(atoms)), ("encoder.tied_to.multiplier", scalar(0.0))];
    let d = saved([tied.clone(), atoms_as(atoms, 0.0)].concat(), &k4).unwrap();
    assert!(off(&d, &plain(atoms, &zeros, atoms, top4.clone())) < 1e-5);
    let e = saved([tied, atoms_as(&w.neg().unwrap(), 0.0)].concat(), &k4).unwrap_err().to_string();
    assert!(e.contains("tied to another"), "{e}");
    // A batch norm: gain (h - mean) / sqrt(variance + 1e-5) + bias.
    let mut rng = Rng::stream(11, "norm", 0);
    let [gain, bias, mean] = [0; 3].map(|_| random(&mut rng, &[F], 0.5));
    let variance = random(&mut rng, &[F], 0.5).abs().unwrap();
    let norm = vec![
        ("encoder.final_block.1.weight", tensor(&gain)),
        ("encoder.final_block.1.bias", tensor(&bias)),
        ("encoder.final_block.1.running_mean", tensor(&mean)),
        ("encoder.final_block.1.running_var", tensor(&variance)),
        ("encoder.final_block.1.num_batches_tracked", Item::Tensor(Array::from_i64(Vec::new(), &[9]).unwrap())),
    ];
    let d = saved([linear(), norm.clone(), atoms_as(atoms, 0.0)].concat(), &k4).unwrap();
    let scale = (&gain / (variance + 1e-5).unwrap().sqrt().unwrap()).unwrap();
    let (w2, b2) = (w.broadcast_mul(&scale.unsqueeze(1).unwrap()).unwrap(), ((b - &mean).unwrap() * &scale).unwrap().add(&bias).unwrap());
    assert!(off(&d, &plain(&w2, &b2, atoms, top4.clone())) < 1e-4);
    // A layer norm, and layers before, are refused.
    assert!(saved([linear(), norm[..2].to_vec(), atoms_as(atoms, 0.0)].concat(), &k4).unwrap_err().to_string().contains("layer norm"));
    let deep = vec![("encoder.mlp_blocks.0.0.weight", tensor(w))];
    assert!(saved([linear(), deep, atoms_as(atoms, 0.0)].concat(), &k4).unwrap_err().to_string().contains("several layers"));
    // Archetypes: relu(W) with rows that sum to 1, times the points, and the relaxation.
    let (mixture, points) = (random(&mut rng, &[F, 5], 1.0), random(&mut rng, &[5, D], 1.0));
    let relax = random(&mut rng, &[F, D], 0.1);
    let ra = vec![
        ("dictionary.W", tensor(&mixture)),
        ("dictionary.C", tensor(&points)),
        ("dictionary.Relax", tensor(&relax)),
        ("dictionary.multiplier", scalar(0.2)),
    ];
    let d = saved([linear(), ra].concat(), &k4).unwrap();
    let positive = mixture.relu().unwrap();
    let shares = positive.broadcast_div(&(positive.sum_keepdim(1).unwrap() + 1e-8).unwrap()).unwrap();
    let expected = ((shares.matmul(&points).unwrap() + relax).unwrap() * 0.2f64.exp()).unwrap();
    assert!(off(&d, &plain(w, b, &expected, top4)) < 1e-5);
    // A pursuit has no encoder, and must be named.
    assert!(saved(atoms_as(atoms, 0.0), &k4).is_err());
    std::fs::write(dir.path().join("sae.json"), json!({ "class": "MpSAE", "k": 4 }).to_string()).unwrap();
    let d = saved(atoms_as(atoms, 0.0), &|_| ()).unwrap();
    assert!(off(&d, &plain(atoms, &zeros, atoms, pursuit(4, Pick::Max))) < 1e-5);
}

#[test]
fn goodfires_two_layers_are_read_and_not_written() {
    let c = coder(false);
    let dir = tempfile::tempdir().unwrap();
    let items = [
        ("encoder_linear.weight", tensor(&c.w_enc)),
        ("encoder_linear.bias", tensor(&c.b_enc)),
        ("decoder_linear.weight", tensor(&c.w_dec.t().unwrap().contiguous().unwrap())),
        ("decoder_linear.bias", tensor(&c.b_dec)),
    ];
    pt::save(&dir.path().join("Llama-3.1-8B-Instruct-SAE-l19.pth"), &items).unwrap();
    let d = read(dir.path(), "goodfire").unwrap().dictionary;
    assert_eq!(d.provenance.hook, "blocks.19.hook_resid_post");
    assert_eq!(off(&d, &dictionary(Activation::Relu, false, false)), 0.0);
    let goodfire = formats::by_id("goodfire").unwrap();
    assert!(!goodfire.writes());
    assert!(goodfire.write(&d, dir.path(), &WriteOptions::default()).unwrap_err().to_string().contains("only reads"));
}

/// A dictionary_learning folder whose tensors or configuration were changed.
fn changed(dir: &Path, change: impl FnOnce(&mut Vec<(String, Item)>, &mut serde_json::Value)) {
    let out = tempfile::tempdir().unwrap();
    let mut d = dictionary(Activation::Threshold { threshold: 0.4 }, true, true);
    d.provenance.notes = json!({ "k": 4, "prefixes": [6, 12] });
    formats::by_id("dictionary-learning").unwrap().write(&d, out.path(), &WriteOptions::default()).unwrap();
    let bytes = Bytes::open(&out.path().join("ae.pt")).unwrap();
    let file = PtFile::new(&bytes, Path::new("ae.pt")).unwrap();
    let mut items: Vec<(String, Item)> =
        file.entries().unwrap().into_iter().map(|(n, v)| (n.to_string(), Item::Tensor(file.array(n, v).unwrap()))).collect();
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(out.path().join("config.json")).unwrap()).unwrap();
    change(&mut items, &mut config);
    let items: Vec<(&str, Item)> = items.iter().map(|(n, i)| (n.as_str(), i.clone())).collect();
    pt::save(&dir.join("ae.pt"), &items).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &'static str, item: Item| {
        move |items: &mut Vec<(String, Item)>, _: &mut serde_json::Value| {
            items.retain(|(n, _)| n != name);
            items.push((name.to_string(), item));
        }
    };
    let says = |expected: &str| {
        let e = read(dir.path(), "dictionary-learning").unwrap_err().to_string();
        assert!(e.contains(expected), "{e}");
    };
    changed(dir.path(), |_, _| ());
    read(dir.path(), "dictionary-learning").unwrap();
    changed(dir.path(), put("W_skip", scalar(1.0)));
    says("tensor `W_skip`");
    changed(dir.path(), put("note", Item::Plain(Value::Text("x".into()))));
    says("`note` (a string)");
    changed(dir.path(), put("group_sizes", Item::Tensor(Array::from_i64(vec![2], &[6, 6]).unwrap())));
    says("do not add up");
    changed(dir.path(), put("group_sizes", Item::Tensor(Array::from_i64(vec![2], &[-6, 30]).unwrap())));
    says("do not add up");
    changed(dir.path(), put("k", Item::Tensor(Array::from_i32(Vec::new(), &[5]).unwrap())));
    says("its k is 5, config.json says 4");
    changed(dir.path(), put("k", Item::Tensor(Array::from_i32(Vec::new(), &[-1]).unwrap())));
    says("its k is -1");
    changed(dir.path(), put("b_enc", Item::Tensor(Array::from_f32(vec![F], &[f32::NAN; F]).unwrap())));
    says("NaN");
    changed(dir.path(), put("b_enc", Item::Tensor(Array::from_f32(vec![F + 1], &[0.0; F + 1]).unwrap())));
    says("25");
    changed(dir.path(), |items, _| items.retain(|(n, _)| n != "W_enc"));
    says("`W_enc` is missing");
    changed(dir.path(), |_, config| config["trainer"]["dict_size"] = json!(25));
    says("config.json says");
    changed(dir.path(), |_, config| config["trainer"]["dict_class"] = json!("IdentityDict"));
    says("IdentityDict");
    // The transpose of a class with linear layers.
    changed(dir.path(), |_, config| config["trainer"]["dict_class"] = json!("BatchTopKSAE"));
    says("`encoder.weight` is missing");
    // k neither in the tensors nor beside them.
    changed(dir.path(), |items, config| {
        items.retain(|(n, _)| n != "k");
        config["trainer"]["k"] = serde_json::Value::Null;
    });
    says("has a k");
}

#[test]
fn a_checkpoint_finds_its_configuration_above() {
    let dir = tempfile::tempdir().unwrap();
    changed(dir.path(), |_, _| ());
    let checkpoints = dir.path().join("checkpoints");
    std::fs::create_dir(&checkpoints).unwrap();
    std::fs::rename(dir.path().join("ae.pt"), checkpoints.join("ae_100.pt")).unwrap();
    let d = read(&checkpoints.join("ae_100.pt"), "dictionary-learning").unwrap().dictionary;
    assert_eq!(d.prefixes(), [6, 12]);
}
