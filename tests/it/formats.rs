//! Dictionaries of other tools: read with golden codes, written and read back.

use std::path::Path;

use candle_core::{Device, Tensor};
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
