//! Score on what the other stages make: shards from disk, a real host.

use candle_core::{DType, Device, Tensor};
use lapidary::dictionary::Provenance;
use lapidary::host::{self, Capture, LoadOptions, Tokens};
use lapidary::kernels::Coder;
use lapidary::progress::Silent;
use lapidary::rng::Rng;
use lapidary::score::baselines::{baselines, BaselineConfig};
use lapidary::score::loss_recovered::{loss_recovered_all, TokenBatch};
use lapidary::score::{score, score_all, ScoreConfig};
use lapidary::shard::{Batch, Column, Counts, Dtype, Manifest, Rows, ShardWriter, Shards, Split, WriterOptions, KIND, VERSION};
use lapidary::{Activation, Dictionary, HookPoint};
use serde_json::Value;

use crate::support::{shared_data, skip};

/// `xhat = x`: plus and minus each axis, ReLU.
fn identity(d: usize) -> Dictionary {
    let eye = Tensor::eye(d, DType::F32, &Device::Cpu).unwrap();
    let w = Tensor::cat(&[&eye, &eye.neg().unwrap()], 0).unwrap();
    let zeros = |n: usize| Tensor::zeros(n, DType::F32, &Device::Cpu).unwrap();
    let coder = Coder { w_enc: w.clone(), b_enc: zeros(2 * d), w_dec: w, b_dec: zeros(d) };
    Dictionary::new(coder, Activation::Relu, false, Provenance::default()).unwrap()
}

fn batch(x: Vec<f32>, n: usize) -> Batch {
    Batch { n, x, doc_id: vec![0; n], position: (0..n as u32).collect(), token_id: vec![] }
}

#[test]
fn a_scan_of_shards_scores_as_its_rows_do() {
    let (dir, d, n) = (tempfile::tempdir().unwrap(), 6, 5000);
    let columns = vec![Column { name: "x".into(), width: d, dtype: Dtype::F32 }];
    let options = WriterOptions { row_group_rows: Some(512), harvest_id: "score".into() };
    let mut writer = ShardWriter::create(dir.path(), columns, &options).unwrap();
    let mut rng = Rng::stream(1, "it score", 0);
    let mut draw = |n: usize| -> Vec<f32> { (0..n * d).map(|i| ((i % d) as f64 + rng.normal()) as f32).collect() };
    let (train, held_out) = (draw(n), draw(n));
    for (split, x) in [(Split::Train, &train), (Split::HeldOut, &held_out)] {
        let rows = Rows { doc_id: vec![0; n], position: (0..n as u32).collect(), token_id: None, columns: vec![x.clone()] };
        writer.push(split, &rows).unwrap();
    }
    writer.seal_shard().unwrap();
    let counts = Counts { rows: writer.rows(), tokens: 2 * n as u64, ..Counts::default() };
    let (host, tokenizer, corpus, masking, config) = (Value::Null, Value::Null, Value::Null, Value::Null, Value::Null);
    let (columns, shards) = (writer.column_entries(), writer.entries().to_vec());
    let id = "score".to_string();
    let manifest = Manifest { kind: KIND.into(), version: VERSION, id, columns, counts, host, tokenizer, corpus, masking, config, shards };
    manifest.save(dir.path()).unwrap();

    let shards = Shards::open(dir.path()).unwrap();
    let config = BaselineConfig { k: 2, d_sae: 32, ..BaselineConfig::default() };
    let made = baselines(shards.scan("x", Some(Split::Train)).unwrap(), &config, &Silent).unwrap();
    let again = baselines([Ok(batch(train, n))], &config, &Silent).unwrap();
    for ((name, from_disk), (_, from_memory)) in made.iter().zip(&again) {
        let disk = score(from_disk, shards.scan("x", Some(Split::HeldOut)).unwrap(), &ScoreConfig::default(), &Silent).unwrap();
        let memory = score(from_memory, [Ok(batch(held_out.clone(), n))], &ScoreConfig::default(), &Silent).unwrap();
        assert_eq!(disk.metrics, memory.metrics, "{name}");
        assert_eq!(disk.rows, n as u64);
    }
}

#[test]
fn a_real_host_loses_nothing_to_the_identity() {
    let Some(data) = shared_data() else { return skip("no shared data: scoring a real host") };
    let host = host::load(data.join("stories260K/hf").to_str().unwrap(), &LoadOptions::default()).unwrap();
    let at: HookPoint = "blocks.2.hook_resid_post".parse().unwrap();
    let bytes = std::fs::read(data.join("stories260K/sampled_tokens.u16")).unwrap();
    let ids: Vec<u32> = bytes.chunks_exact(2).take(128 * 24).map(|b| u32::from(u16::from_le_bytes([b[0], b[1]]))).collect();
    let contexts: Vec<Vec<u32>> = ids.chunks(128).map(<[u32]>::to_vec).collect();

    // The rows a harvest would give: all but the first token of a story.
    let mut rows = Vec::new();
    let mut token_batches = Vec::new();
    for group in contexts.chunks(8) {
        let tokens = Tokens::new(group, &Device::Cpu).unwrap();
        let mut capture = Capture::new(&[at]);
        host.forward(&tokens, &mut capture).unwrap();
        let x: Vec<f32> = capture.get(&at).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let unmasked: Vec<u8> = group.concat().iter().map(|&id| u8::from(id != 1)).collect();
        let d = x.len() / unmasked.len();
        let kept: Vec<f32> = x.chunks(d).zip(&unmasked).filter(|(_, m)| **m == 1).flat_map(|(row, _)| row.to_vec()).collect();
        rows.push(batch(kept.clone(), kept.len() / d));
        let unmasked = Tensor::from_vec(unmasked, (group.len(), 128), &Device::Cpu).unwrap();
        token_batches.push(TokenBatch { tokens, unmasked });
    }
    let stream = || rows.iter().cloned().map(Ok::<Batch, lapidary::Error>);
    let config = BaselineConfig { k: 8, d_sae: 512, ..BaselineConfig::default() };
    let mut dictionaries = baselines(stream(), &config, &Silent).unwrap();
    dictionaries.push(("identity".into(), identity(64)));
    let list: Vec<&Dictionary> = dictionaries.iter().map(|(_, d)| d).collect();
    let scores = score_all(&list, stream(), &ScoreConfig::default(), &Silent).unwrap();
    let batches = token_batches.into_iter().map(Ok::<TokenBatch, lapidary::Error>);
    let recovered = loss_recovered_all(&*host, &at, &list, batches, None, &Silent).unwrap();
    let figure = |i: usize, id: &str| *scores[i].metrics.get(id).or_else(|| recovered[i].get(id)).unwrap();
    for (i, (name, _)) in dictionaries.iter().enumerate() {
        println!(
            "{name:9} l0 {:5.2} fvu {:.4} ce {:.4} (clean {:.4}, zero {:.4}) score {:.4} kl score {:.4}",
            figure(i, "l0"),
            figure(i, "fvu"),
            figure(i, "ce_spliced"),
            figure(i, "ce_clean"),
            figure(i, "ce_zero"),
            figure(i, "ce_loss_score"),
            figure(i, "kl_score"),
        );
    }
    for id in ["explained_variance", "ce_loss_score", "ce_loss_score_all", "kl_score", "kl_score_all"] {
        assert_eq!(figure(4, id), 1.0, "{id}");
    }
    // 128 tokens cut across stories: a little above the host's 1.34 nats on its own samples. Zeroing destroys it, each baseline saves part.
    assert!((1.2..1.5).contains(&figure(4, "ce_clean")), "{}", figure(4, "ce_clean"));
    assert!(figure(4, "ce_zero") > 2.0 * figure(4, "ce_clean"));
    for i in 0..4 {
        assert!((0.0..1.0).contains(&figure(i, "kl_score")) && figure(i, "kl_spliced") > 0.0);
        assert!(figure(i, "ce_positions") < figure(i, "ce_positions_all"));
    }
}
