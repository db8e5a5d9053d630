//! Dictionaries of other tools: read with golden codes, written and read back.

use std::path::Path;

use candle_core::{Device, Tensor};
use lapidary::dictionary::InputTransform;
use lapidary::formats::{self, ReadOptions, WriteOptions};
use lapidary::Dictionary;

use crate::support::{shared_data, skip};

/// The golden rows beside a case: x, dense codes, reconstruction.
fn golden(dir: &Path) -> [Tensor; 3] {
    let all = candle_core::safetensors::load(dir.join("io.safetensors"), &Device::Cpu).unwrap();
    ["x", "acts", "recon"].map(|n| all[n].clone())
}

fn off(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
}

/// Codes and reconstruction to 1e-5, equal supports.
fn assert_golden(dictionary: &Dictionary, [x, acts, recon]: &[Tensor; 3], what: &str) {
    let (codes, xhat) = dictionary.reconstruct(x).unwrap();
    let dense = codes.to_dense().unwrap();
    let (a, r) = (off(&dense, acts), off(&xhat, recon));
    assert!(a < 1e-5 && r < 1e-5, "{what}: codes are off by {a}, reconstructions by {r}");
    let support = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|v| *v != 0.0).collect::<Vec<_>>();
    assert_eq!(support(&dense), support(acts), "{what}: supports");
}

/// Directory of a case, where its golden rows lie, and the dialect it must be taken for.
const CASES: &[(&str, &str, &str)] = &[
    ("saved/sparsify/sae/layers.5", "saved/sparsify/sae/layers.5", "sparsify"),
    ("written/sparsify/layers.5", "written/sparsify/layers.5", "sparsify"),
    ("saved/saelens/standard/train", "saved/saelens/standard", "saelens"),
    ("saved/saelens/standard/inference", "saved/saelens/standard", "saelens"),
    ("saved/saelens/topk/train", "saved/saelens/topk", "saelens"),
    ("saved/saelens/topk/inference", "saved/saelens/topk", "saelens"),
    ("saved/saelens/abstopk/train", "saved/saelens/abstopk", "saelens"),
    ("saved/saelens/abstopk/inference", "saved/saelens/abstopk", "saelens"),
    ("saved/saelens/jumprelu/train", "saved/saelens/jumprelu", "saelens"),
    ("saved/saelens/jumprelu/inference", "saved/saelens/jumprelu", "saelens"),
    ("saved/saelens/batchtopk/train", "saved/saelens/batchtopk", "saelens"),
    ("saved/saelens/batchtopk/inference", "saved/saelens/batchtopk", "saelens"),
    ("saved/saelens/matryoshka_batchtopk/train", "saved/saelens/matryoshka_batchtopk", "saelens"),
    ("saved/saelens/matryoshka_batchtopk/inference", "saved/saelens/matryoshka_batchtopk", "saelens"),
    ("saved/saelens/matching_pursuit/train", "saved/saelens/matching_pursuit", "saelens"),
    ("saved/saelens/matching_pursuit/inference", "saved/saelens/matching_pursuit", "saelens"),
    ("written/saelens/standard", "written/saelens/standard", "saelens"),
    ("written/saelens/topk", "written/saelens/topk", "saelens"),
    ("written/saelens/topk_min", "written/saelens/topk_min", "saelens"),
    ("written/saelens/abstopk", "written/saelens/abstopk", "saelens"),
    ("written/saelens/jumprelu_from_batchtopk", "written/saelens/jumprelu_from_batchtopk", "saelens"),
    ("written/saelens/jumprelu_from_matryoshka", "written/saelens/jumprelu_from_matryoshka", "saelens"),
    ("written/saelens/matching_pursuit_fixed_k", "written/saelens/matching_pursuit_fixed_k", "saelens"),
    ("written/saelens/topk_constant_norm_rescale", "written/saelens/topk_constant_norm_rescale", "saelens"),
    ("written/saelens/topk_expected_average_only_in", "written/saelens/topk_expected_average_only_in", "saelens"),
    ("saved/dictionary_learning/matryoshka/trainer_0", "saved/dictionary_learning/matryoshka/trainer_0", "dictionary-learning"),
    ("written/dictionary_learning/trainer_0", "written/dictionary_learning/trainer_0", "dictionary-learning"),
    ("written/openai", "written/openai", "openai"),
    ("written/gemma_scope", "written/gemma_scope", "gemma-scope"),
];

#[test]
fn every_saved_dictionary_gives_its_golden_codes() {
    let Some(shared) = shared_data() else { return skip("../shared/data is not there") };
    for (path, io, format) in CASES {
        let root = shared.join("formats");
        let found = formats::find_one(&root.join(path), None).unwrap();
        assert_eq!(found.format.id(), *format, "{path}");
        let foreign = found.format.read(&found.path, &ReadOptions::default()).unwrap();
        let rows = golden(&root.join(io));
        assert_golden(&foreign.dictionary, &rows, path);

        // Written again in the same dialect, and as ours, nothing changes.
        let out = tempfile::tempdir().unwrap();
        if found.format.writes() {
            let written = found.format.write(&foreign.dictionary, out.path(), &WriteOptions::default()).unwrap();
            let back = found.format.read(&written.path, &ReadOptions::default()).unwrap();
            assert_golden(&back.dictionary, &rows, path);
        }
        let own = tempfile::tempdir().unwrap();
        foreign.dictionary.save(own.path()).unwrap();
        let back = Dictionary::load(own.path()).unwrap();
        assert_golden(&back, &rows, path);
        assert_eq!(back.provenance, foreign.dictionary.provenance);
    }
}

/// From tool to tool and back: nothing but rounding may change, and here not even that.
#[test]
fn a_dictionary_comes_back_from_a_chain_of_dialects() {
    let Some(shared) = shared_data() else { return skip("../shared/data is not there") };
    let root = shared.join("formats/written/sparsify/layers.5");
    let read = |path: &Path| {
        let found = formats::find_one(path, None).unwrap();
        found.format.read(&found.path, &ReadOptions::default()).unwrap().dictionary
    };
    let start = read(&root);
    let mut at = start.clone();
    for format in ["saelens", "llamascopium", "saelens", "sparsify"] {
        let out = tempfile::tempdir().unwrap();
        formats::by_id(format).unwrap().write(&at, out.path(), &WriteOptions::default()).unwrap();
        at = read(out.path());
        assert_eq!(at.provenance.notes["imported"]["format"], format);
    }
    assert_golden(&at, &golden(&root), "the chain");
    assert!(off(&at.coder.b_enc, &start.coder.b_enc) < 1e-6, "b_enc took up b_dec and gave it back");
    assert!(off(&at.coder.w_enc, &start.coder.w_enc) == 0.0 && off(&at.coder.w_dec, &start.coder.w_dec) == 0.0);
}

/// A real BatchTopK SAE: figures that its authors' code gives.
#[test]
fn a_real_dictionary_scores_what_it_should() {
    let Some(shared) = shared_data() else { return skip("../shared/data is not there") };
    let dir = shared.join("sae_listcomp");
    let found = formats::find_one(&dir.join("k4/ae.safetensors"), None).unwrap();
    assert_eq!(found.format.id(), "state-dict");
    let mut d = found.format.read(&found.path, &ReadOptions::default()).unwrap().dictionary;
    let rows = candle_core::safetensors::load(dir.join("acts_sep_layer0.safetensors"), &Device::Cpu).unwrap();
    d.input_transform = Some(InputTransform { shift: rows["act_mean"].clone(), scale: 1.0 });
    let x = &rows["acts"];
    let (codes, xhat) = d.reconstruct(x).unwrap();
    let squares = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
    let residual = squares(&(x - &xhat).unwrap());
    let spread = squares(&x.broadcast_sub(&x.mean(0).unwrap()).unwrap());
    let (n, width) = x.dims2().unwrap();
    let (mse, l0, fvu) = (residual / (n * width) as f64, codes.indices.len() as f64 / n as f64, residual / spread);
    assert!((mse - 0.00453).abs() < 5e-6 && (l0 - 3.89).abs() < 5e-3 && (fvu - 0.0115).abs() < 5e-5, "MSE {mse}, L0 {l0}, FVU {fvu}");

    let golden = &rows["k4_latents_first256"];
    let first = d.encode(&x.narrow(0, 0, 256).unwrap()).unwrap().to_dense().unwrap();
    assert!(off(&first, golden) < 1e-5, "codes are off by {}", off(&first, golden));
}

#[test]
fn folders_of_several_are_listed_and_unknown_ones_refused() {
    let Some(shared) = shared_data() else { return skip("../shared/data is not there") };
    let saved = shared.join("formats/saved/saelens/topk");
    let error = formats::find_one(&saved, None).err().unwrap();
    let text = error.to_string();
    assert!(error.exit_code() == 2 && text.contains("topk/train (saelens)") && text.contains("topk/inference (saelens)"), "{text}");
    let none = formats::find_one(&shared.join("text"), None).err().unwrap();
    assert!(none.exit_code() == 2 && none.to_string().contains("no dictionary"));
    assert_eq!(formats::by_id("sealens").err().unwrap().exit_code(), 2);
}

#[test]
fn what_a_dialect_cannot_hold_is_refused_with_the_reason() {
    let Some(shared) = shared_data() else { return skip("../shared/data is not there") };
    let root = shared.join("formats/written/saelens");
    let read = |name: &str| {
        let found = formats::find_one(&root.join(name), None).unwrap();
        found.format.read(&found.path, &ReadOptions::default()).unwrap().dictionary
    };
    let out = tempfile::tempdir().unwrap();
    for (name, format, why) in [
        ("matching_pursuit_fixed_k", "sparsify", "top-k alone"),
        ("jumprelu_from_batchtopk", "sparsify", "top-k alone"),
        ("matching_pursuit_fixed_k", "llamascopium", "pursuit"),
        ("abstopk", "gemma-scope-2", "thresholds alone"),
        ("topk_constant_norm_rescale", "sparsify", "norm of each row"),
    ] {
        let error = formats::by_id(format).unwrap().write(&read(name), out.path(), &WriteOptions::default()).unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().contains(why), "{name} as {format}: {error}");
    }
}

/// Steps take memory: a file does not decide how much.
#[test]
fn a_pursuit_without_end_is_refused() {
    let coder = lapidary::kernels::Coder {
        w_enc: Tensor::eye(4, candle_core::DType::F32, &Device::Cpu).unwrap(),
        b_enc: Tensor::zeros(4, candle_core::DType::F32, &Device::Cpu).unwrap(),
        w_dec: Tensor::eye(4, candle_core::DType::F32, &Device::Cpu).unwrap(),
        b_dec: Tensor::zeros(4, candle_core::DType::F32, &Device::Cpu).unwrap(),
    };
    let d = Dictionary::new(coder, "mp:2".parse().unwrap(), true, Default::default()).unwrap();
    let out = tempfile::tempdir().unwrap();
    let saelens = formats::by_id("saelens").unwrap();
    saelens.write(&d, out.path(), &WriteOptions::default()).unwrap();
    let cfg = out.path().join("cfg.json");
    let text = std::fs::read_to_string(&cfg).unwrap();
    let endless = text.replace("\"max_iterations\":2", "\"max_iterations\":1000000000000");
    assert_ne!(text, endless);
    std::fs::write(&cfg, &endless).unwrap();
    let error = saelens.read(out.path(), &ReadOptions::default()).unwrap_err();
    assert!(error.exit_code() == 2 && error.to_string().contains("iterations"), "{error}");
    // A row that ends at a repeat takes as many steps as there are atoms, and one.
    std::fs::write(&cfg, endless.replace("\"stop_on_duplicate_support\":false", "\"stop_on_duplicate_support\":true")).unwrap();
    let read = saelens.read(out.path(), &ReadOptions::default()).unwrap().dictionary;
    assert!(matches!(read.activation, lapidary::Activation::Pursuit { steps: 5, .. }), "{:?}", read.activation);
}
