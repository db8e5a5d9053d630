//! Dictionaries whose scores are known: the truth itself, one that absorbs, one that nobody trained; and slow forms of the sums.

use candle_core::{DType, Device};

use super::*;
use crate::corpus::planted::PlantedConfig;
use crate::dictionary::{Activation, Dictionary, Provenance};
use crate::kernels::Coder;
use crate::progress::Silent;
use crate::rng::Rng;
use crate::score::{score_planted, ScoreConfig};
use crate::shard::Batch;

fn planted(text: &str) -> Planted {
    Planted::new(&PlantedConfig::parse(text).unwrap(), 5).unwrap()
}

fn dictionary(w_enc: Vec<f32>, w_dec: Vec<f32>, d: usize, activation: Activation) -> Dictionary {
    let n = w_dec.len() / d;
    let tensor = |v: Vec<f32>| Tensor::from_vec(v, (n, d), &Device::Cpu).unwrap();
    let zeros = |n: usize| Tensor::zeros(n, DType::F32, &Device::Cpu).unwrap();
    let coder = Coder { w_enc: tensor(w_enc), b_enc: zeros(n), w_dec: tensor(w_dec), b_dec: zeros(d) };
    Dictionary::new(coder, activation, false, Provenance::default()).unwrap()
}

fn scores(dictionary: &Dictionary, planted: &Planted, n: u64) -> Metrics {
    let d = planted.d_in();
    let batch = |first: u64, n: u64| {
        let x = planted.rows(first..first + n).x;
        Ok(Batch { n: n as usize, x, doc_id: (first..first + n).collect(), position: vec![0; n as usize], token_id: vec![] })
    };
    let batches = [batch(40, n / 3), batch(40 + n / 3, n - n / 3)];
    assert_eq!(dictionary.d_in(), d);
    let mut all = score_planted(&[dictionary], batches, &ScoreConfig { block_rows: 100 }, Some(planted), &Silent).unwrap();
    all.remove(0).metrics
}

fn get(metrics: &Metrics, id: &str) -> f64 {
    *metrics.get(id).unwrap_or_else(|| panic!("no {id}"))
}

#[test]
fn the_truth_scores_one() {
    let planted = planted("hierarchy?child_mean=1");
    let features = planted.truth().features.clone();
    let m = scores(&dictionary(features.clone(), features, 20, Activation::Threshold { threshold: 1e-3 }), &planted, 2000);
    for id in [
        "mcc",
        "mcc_is_exact",
        "uniqueness",
        "recovered_08",
        "recovered_09",
        "precision",
        "recall",
        "f1_mean",
        "f1_p50",
        "f1_above_08",
        "f1_features",
    ] {
        assert!((get(&m, id) - 1.0).abs() < 1e-6, "{id}: {}", get(&m, id));
    }
    for id in ["absorption", "gram_hierarchical", "gram_flat", "fvu"] {
        assert!(get(&m, id).abs() < 1e-6, "{id}: {}", get(&m, id));
    }
    assert_eq!(get(&m, "absorption_children"), 9.0);
    assert_eq!(get(&m, "true_l0"), get(&m, "l0"));
    assert!((get(&m, "true_l0") - 1.36).abs() < 0.05);
}

#[test]
fn a_dictionary_that_absorbs_is_caught() {
    // Each child's atom carries its parent too, and the parent's latent is silent when a child is on: it reconstructs as well as the
    // truth does.
    let planted = planted("hierarchy?parent_std=0,child_std=0,parent_mean=1,child_mean=1");
    let truth = planted.truth();
    let (mut w_enc, mut w_dec) = (truth.features.clone(), truth.features.clone());
    for (child, parent) in truth.parents.iter().enumerate().filter_map(|(c, p)| Some((c, (*p)? as usize))) {
        for c in 0..20 {
            w_dec[child * 20 + c] += truth.feature(parent)[c];
            w_enc[parent * 20 + c] -= truth.feature(child)[c];
        }
    }
    let m = scores(&dictionary(w_enc, w_dec, 20, Activation::Threshold { threshold: 0.1 }), &planted, 3000);
    assert!(get(&m, "fvu") < 1e-6, "{}", get(&m, "fvu"));
    assert!((get(&m, "absorption") - 0.5f64.sqrt()).abs() < 1e-6, "{}", get(&m, "absorption"));
    assert!(get(&m, "gram_hierarchical") > 0.01 && get(&m, "recall") < 1.0 && get(&m, "f1_mean") < 1.0);
    assert!(get(&m, "true_l0") > get(&m, "l0") + 0.3, "one latent stands for two features");
}

#[test]
fn a_random_dictionary_is_near_the_null() {
    let planted = planted("zipf");
    let (n, d) = (192, 64);
    let mut rng = Rng::stream(9, "test", 0);
    let w: Vec<f32> = (0..n * d).map(|_| rng.normal() as f32).collect();
    let m = scores(&dictionary(w.clone(), w, d, Activation::TopK { k: 5 }), &planted, 600);
    let null = mcc_null(d, n, 128, 0);
    assert!(null.is_exact && (0.2..0.5).contains(&null.mcc));
    // Features pushed apart are a little easier to hit than random ones.
    assert!((get(&m, "mcc") - null.mcc).abs() < 0.02, "{} {}", get(&m, "mcc"), null.mcc);
    assert!(get(&m, "recovered_08") == 0.0 && get(&m, "f1_mean") < 0.4);
    assert!(get(&m, "absorption").is_nan() && get(&m, "gram_hierarchical").is_nan() && get(&m, "absorption_children") == 0.0);
    // The same function before any row is seen, and at the truth itself.
    let truth = planted.truth();
    let features = Tensor::from_slice(&truth.features, (128, 64), &Device::Cpu).unwrap();
    assert!((mcc(&features, truth).unwrap().mcc - 1.0).abs() < 1e-6);
    assert!(mcc(&features.narrow(1, 0, 32).unwrap(), truth).is_err());
}

#[test]
fn detection_equals_counting() {
    let planted = planted("tree?bias_norm=0.2,noise=0.05");
    let (d, n, rows) = (64, 40, 700u64);
    let truth = planted.truth();
    let mut rng = Rng::stream(11, "test", 0);
    let w: Vec<f32> = (0..n * d).map(|i| truth.features[i] + 0.1 * rng.normal() as f32).collect();
    let dictionary = dictionary(w.clone(), w.clone(), d, Activation::Threshold { threshold: 0.3 });
    let m = scores(&dictionary, &planted, rows);
    let x = Tensor::from_vec(planted.rows(40..40 + rows).x, (rows as usize, d), &Device::Cpu).unwrap();
    let z: Vec<Vec<f32>> = dictionary.encode(&x).unwrap().to_dense().unwrap().to_vec2().unwrap();
    let c: Vec<Vec<f32>> = planted.rows(40..40 + rows).codes.to_dense().unwrap().to_vec2().unwrap();
    let cos = |i: usize, g: usize| {
        let atom = &w[i * d..(i + 1) * d];
        matching::dot(atom, truth.feature(g)).abs() / matching::dot(atom, atom).sqrt()
    };
    let (mut f1, mut by_feature) = (0.0, vec![0f64; truth.len()]);
    let fired = |r: usize, i: usize| z[r][i] > 0.0;
    for i in 0..n {
        let g = (0..truth.len()).max_by(|&a, &b| cos(i, a).total_cmp(&cos(i, b))).unwrap();
        let count = |f: &dyn Fn(usize) -> bool| (0..rows as usize).filter(|&r| f(r)).count() as f64;
        let (tp, fires, on) = (count(&|r| fired(r, i) && c[r][g] > 0.0), count(&|r| fired(r, i)), count(&|r| c[r][g] > 0.0));
        let (precision, recall) = (tp / fires, tp / on);
        let one = if tp > 0.0 { 2.0 * precision * recall / (precision + recall) } else { 0.0 };
        f1 += one / n as f64;
        by_feature[g] = by_feature[g].max(one);
    }
    assert!((get(&m, "f1_mean") - f1).abs() < 1e-12 && f1 > 0.3, "{} {f1}", get(&m, "f1_mean"));
    assert!((get(&m, "f1_features") - by_feature.iter().sum::<f64>() / truth.len() as f64).abs() < 1e-12);
    assert_eq!(get(&m, "uniqueness"), 1.0);
    let recovered = (0..truth.len()).filter(|&g| (0..n).any(|i| cos(i, g) > 0.8)).count() as f64 / truth.len() as f64;
    assert_eq!(get(&m, "recovered_08"), recovered);
}

#[test]
fn foreign_rows_are_refused() {
    let (one, other) = (planted("tree?noise=0.1"), planted("tree?noise=0.1,roots=3"));
    let w = one.truth().features.clone();
    let dictionary = dictionary(w.clone(), w, 64, Activation::Relu);
    let batch = Batch { n: 5, x: one.rows(0..5).x, doc_id: (0..5).collect(), position: vec![0; 5], token_id: vec![] };
    let e = score_planted(&[&dictionary], [Ok(batch)], &ScoreConfig::default(), Some(&other), &Silent).unwrap_err();
    assert!(e.to_string().contains("row 0 is not the one"), "{e}");
}
