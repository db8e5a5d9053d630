//! What the pages must hold, as Neuronpedia's upload checks it.

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use super::*;
use crate::dictionary::{Activation, Provenance};
use crate::features::{FeaturesConfig, FeaturesInfo, Source};
use crate::kernels::Coder;

fn given() -> (Dictionary, FeatureTable, Examples) {
    let (d_sae, d) = (300, 4);
    let zeros = |n: usize| Tensor::zeros(n, DType::F32, &Device::Cpu).unwrap();
    let w = Tensor::arange(0f32, (d_sae * d) as f32, &Device::Cpu).unwrap().reshape((d_sae, d)).unwrap();
    let coder = Coder { w_enc: w.clone(), b_enc: zeros(d_sae), w_dec: w, b_dec: zeros(d) };
    let dictionary = Dictionary::new(coder, Activation::Relu, false, Provenance::default()).unwrap();
    let features = (0..d_sae as u32)
        .map(|latent| Feature {
            latent,
            fires: 5,
            density: 0.01,
            max: Some(2.5),
            dead: latent == 7,
            histogram: vec![1; 40],
            histogram_width: Some(0.0625),
            top_tokens: vec![String::new(), "</script>".into()],
            top_token_ids: vec![0, 1],
            top_logits: vec![1.23456, 1.0],
            label: Some("x".repeat(600)),
            label_source: Some("file".into()),
            ..Feature::default()
        })
        .collect();
    let example = |latent: u32, group: &str, quantile: Option<u32>, value: f32| Example {
        latent,
        group: group.into(),
        rank: 0,
        quantile,
        doc_id: 0,
        position: 1,
        value,
        peak: 1,
        tokens: vec!["a".into(), String::new()],
        token_ids: vec![0, 1],
        positions: vec![0, 1],
        values: vec![0.0, value],
    };
    let examples = (0..d_sae as u32)
        .filter(|&l| l != 7)
        .flat_map(|l| [example(l, "top", None, 2.5), example(l, "quantile", Some(4), 2.0), example(l, "random", None, 0.0)])
        .collect();
    let info = FeaturesInfo {
        kind: crate::features::KIND.into(),
        version: crate::features::VERSION,
        lapidary: String::new(),
        dictionary: Source { name: "d".into(), hook: "blocks.3.hook_resid_post".into(), d_in: d, d_sae, ..Source::default() },
        host: Value::Null,
        corpus: Value::Null,
        split: "all".into(),
        rows: 500,
        l0: 1.0,
        coactive_rows: 500,
        concept_rows: 0,
        quantiles: vec![],
        config: FeaturesConfig::default(),
    };
    (dictionary, FeatureTable { info, features }, Examples(examples))
}

fn written(format: FeatureFormat) -> (tempfile::TempDir, PagesReport) {
    let (d, table, examples) = given();
    let dir = tempfile::tempdir().unwrap();
    let names = PageNames { model_id: "tiny".into(), set: "res".into(), suffix: None };
    let report = write_pages(&d, &table, &examples, format, &names, dir.path()).unwrap();
    assert_eq!((report.files, report.features, report.dead), (3, 299, 1));
    (dir, report)
}

fn json(dir: &Path, name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(dir.join(name)).unwrap()).unwrap()
}

#[test]
fn neuronpedia_gets_what_it_asks_for() {
    let (dir, _) = written(FeatureFormat::Neuronpedia);
    let body = json(dir.path(), "upload-batch-0.json");
    assert_eq!((&body["modelId"], &body["source"]), (&"tiny".into(), &"3-res".into()));
    let features = body["features"].as_array().unwrap();
    assert_eq!(features.len(), 128);
    assert!(features.iter().all(|f| f["index"] != 7));
    let f = &features[0];
    assert_eq!(f["explanations"][0]["text"].as_str().unwrap().len(), 512);
    assert_eq!(f["topLogits"][0], serde_json::json!({ "token": " ", "value": 1.235 }));
    let activations = f["activations"].as_array().unwrap();
    assert_eq!(activations.len(), 2, "random stretches have no place there");
    assert!(activations[0].get("quantileMin").is_none() && activations[1]["quantileMin"] == 2.0);
    for a in activations {
        let tokens = a["tokens"].as_array().unwrap();
        assert!(tokens.len() == a["values"].as_array().unwrap().len() && tokens.iter().all(|t| t != ""));
    }
}

#[test]
fn saedashboard_batches_have_its_keys() {
    let (dir, _) = written(FeatureFormat::SaeDashboard);
    let batch = json(dir.path(), "batch-2.json");
    assert_eq!((&batch["layer"], batch["features"].as_array().unwrap().len()), (&3.into(), 43));
    let f = &batch["features"][42];
    assert_eq!((&f["feature_index"], &f["neuron_alignment_indices"][0]), (&299.into(), &3.into()));
    assert_eq!(f["vector"].as_array().unwrap().len(), 4);
    assert_eq!(f["activations"][0]["bin_contains"], -1.0);
    assert_eq!(f["freq_hist_data_bar_values"].as_array().unwrap().len(), f["freq_hist_data_bar_heights"].as_array().unwrap().len());
    assert_eq!(json(dir.path(), "skipped_indexes.json")["skipped_indexes"], serde_json::json!([7]));
    assert_eq!(json(dir.path(), "run_settings.json")["sae_set"], "res");
}

#[test]
fn what_has_no_page_is_refused() {
    let (d, table, examples) = given();
    let dir = tempfile::tempdir().unwrap();
    let names = |set: &str| PageNames { model_id: "tiny".into(), set: set.into(), suffix: None };
    let write = |table: &FeatureTable, examples: &Examples, set: &str| {
        write_pages(&d, table, examples, FeatureFormat::Neuronpedia, &names(set), dir.path()).unwrap_err().to_string()
    };
    assert!(write(&table, &examples, "").contains("--set"));
    let mut other = table.clone();
    other.features.truncate(10);
    assert!(write(&other, &examples, "s").contains("make the table of this dictionary"));
    let mut vectors = examples.clone();
    vectors.0[0].token_ids.clear();
    assert!(write(&table, &vectors, "s").contains("no tokens"));
    let mut nowhere = table;
    nowhere.info.dictionary.hook = "planted".into();
    assert!(write(&nowhere, &examples, "s").contains("--hook"));
}
