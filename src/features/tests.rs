//! The tables against the obvious way to make them.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::{json, Value};

use super::*;
use crate::dictionary::{Activation, Dictionary, Provenance};
use crate::kernels::Coder;
use crate::progress::Silent;
use crate::rng::Rng;
use crate::shard::{Column, Counts, Dtype, Manifest, Rows, ShardWriter, Shards, Split, WriterOptions};

const D: usize = 6;
const D_SAE: usize = 9;

struct Row {
    doc: u64,
    position: u32,
    token: u32,
    x: Vec<f32>,
    held_out: bool,
}

/// Documents of all lengths, one far longer than a block, with masked positions here and there.
fn rows() -> Vec<Row> {
    let mut rng = Rng::stream(11, "test", 0);
    let mut rows = Vec::new();
    for doc in 0..60u64 {
        let length = if doc == 7 { 6000 } else { 1 + rng.below(90) as u32 };
        for position in (0..length).filter(|p| p % 13 != 5) {
            let token = rng.below(20) as u32;
            // Rows repeat: equal values must be told apart by their place.
            let x = (0..D).map(|c| ((token as usize * 7 + c * 3 + position as usize % 4) % 11) as f32 / 5.0 - 1.0).collect();
            rows.push(Row { doc, position, token, x, held_out: doc % 5 == 2 });
        }
    }
    rows
}

fn write(rows: &[Row], dir: &Path, tokens: bool) -> Shards {
    let columns = vec![Column { name: "x".into(), width: D, dtype: Dtype::F32 }];
    let mut writer = ShardWriter::create(dir, columns, &WriterOptions { row_group_rows: Some(900), harvest_id: "test".into() }).unwrap();
    for (i, chunk) in rows.chunks(700).enumerate() {
        for split in Split::ALL {
            let mine: Vec<&Row> = chunk.iter().filter(|r| r.held_out == (split == Split::HeldOut)).collect();
            let rows = Rows {
                doc_id: mine.iter().map(|r| r.doc).collect(),
                position: mine.iter().map(|r| r.position).collect(),
                token_id: tokens.then(|| mine.iter().map(|r| r.token).collect()),
                columns: vec![mine.iter().flat_map(|r| r.x.clone()).collect()],
            };
            writer.push(split, &rows).unwrap();
        }
        // Documents go on in the next pair of files.
        if i % 3 == 2 {
            writer.seal_shard().unwrap();
        }
    }
    writer.seal_shard().unwrap();
    let manifest = Manifest {
        kind: crate::shard::KIND.into(),
        version: crate::shard::VERSION,
        id: "test".into(),
        columns: writer.column_entries(),
        counts: Counts { rows: writer.rows(), ..Counts::default() },
        host: Value::Null,
        tokenizer: Value::Null,
        corpus: json!({ "kind": "test" }),
        masking: Value::Null,
        config: Value::Null,
        shards: writer.entries().to_vec(),
    };
    manifest.save(dir).unwrap();
    Shards::open(dir).unwrap()
}

fn dictionary() -> Dictionary {
    let mut rng = Rng::stream(5, "test", 0);
    let matrix = |rng: &mut Rng| {
        let mut w: Vec<f32> = (0..D_SAE * D).map(|_| rng.normal() as f32).collect();
        // The last latent is dead.
        w[(D_SAE - 1) * D..].iter_mut().for_each(|v| *v = 0.0);
        Tensor::from_vec(w, (D_SAE, D), &Device::Cpu).unwrap()
    };
    let zeros = |n: usize| Tensor::zeros(n, candle_core::DType::F32, &Device::Cpu).unwrap();
    let w = matrix(&mut rng);
    let coder = Coder { w_enc: w.clone(), b_enc: zeros(D_SAE), w_dec: w, b_dec: zeros(D) };
    let provenance = Provenance { hook: "x".into(), made_by: "test".into(), ..Provenance::default() };
    Dictionary::new(coder, Activation::TopK { k: 3 }, false, provenance).unwrap()
}

fn tables(shards: &Shards, split: Option<Split>, config: &FeaturesConfig) -> (FeatureTable, Examples) {
    let dictionary = dictionary();
    let inputs =
        Inputs { name: "test".into(), split, labels: HashMap::from([(2, "two".to_string())]), ..Inputs::new(&dictionary, shards, "x") };
    features(&inputs, config, &Silent).unwrap()
}

/// Dense codes of all rows, `[n][d_sae]`.
fn dense(rows: &[Row]) -> Vec<Vec<f32>> {
    let x: Vec<f32> = rows.iter().flat_map(|r| r.x.clone()).collect();
    let codes = dictionary().encode(&Tensor::from_vec(x, (rows.len(), D), &Device::Cpu).unwrap()).unwrap();
    codes.to_dense().unwrap().to_vec2().unwrap()
}

fn config() -> FeaturesConfig {
    FeaturesConfig { top: 7, per_band: 3, before: 6, after: 4, ..FeaturesConfig::default() }
}

/// Statistics and the top examples, with their contexts, as a sort over everything finds them.
#[test]
fn one_pass_finds_what_sorting_everything_finds() {
    let dir = tempfile::tempdir().unwrap();
    let rows = rows();
    let shards = write(&rows, dir.path(), true);
    let (table, examples) = tables(&shards, None, &config());
    let values = dense(&rows);
    assert_eq!(table.info.rows, rows.len() as u64);
    for (j, feature) in table.features.iter().enumerate() {
        let active: Vec<usize> = (0..rows.len()).filter(|&r| values[r][j] > 0.0).collect();
        assert_eq!((feature.fires, feature.dead), (active.len() as u64, active.is_empty()), "{j}");
        assert_eq!(feature.max, active.iter().map(|&r| values[r][j]).max_by(f32::total_cmp));
        if let Some(mean) = feature.mean_active {
            let want = active.iter().map(|&r| f64::from(values[r][j])).sum::<f64>() / active.len() as f64;
            assert!((mean - want).abs() < 1e-9 * want, "{j}: {mean} {want}");
        }
        assert_eq!(feature.histogram.iter().map(|&c| u64::from(c)).sum::<u64>(), feature.fires);

        // The best row of each stretch of 11, then the best stretches.
        let mut best: BTreeMap<(u64, u32), usize> = BTreeMap::new();
        for &r in &active {
            let slot = best.entry((rows[r].doc, rows[r].position / 11)).or_insert(r);
            if values[r][j] > values[*slot][j] {
                *slot = r;
            }
        }
        let mut best: Vec<usize> = best.into_values().collect();
        best.sort_by(|&a, &b| {
            values[b][j].total_cmp(&values[a][j]).then((rows[a].doc, rows[a].position).cmp(&(rows[b].doc, rows[b].position)))
        });
        best.truncate(7);
        let top: Vec<&Example> = examples.of(j as u32).iter().filter(|e| e.group == "top").collect();
        assert_eq!(top.len(), best.len(), "{j}");
        for (rank, (example, &r)) in top.iter().zip(&best).enumerate() {
            assert_eq!((example.doc_id, example.position, example.value), (rows[r].doc, rows[r].position, values[r][j]), "{j} {rank}");
            assert_eq!(example.rank as usize, rank);
            let same = |i: &usize| rows[*i].doc == rows[r].doc;
            let span: Vec<usize> = (r.saturating_sub(6)..=r + 4).filter(|i| *i < rows.len()).filter(same).collect();
            assert_eq!(example.positions, span.iter().map(|&i| rows[i].position).collect::<Vec<_>>());
            assert_eq!(example.token_ids, span.iter().map(|&i| rows[i].token).collect::<Vec<_>>());
            assert_eq!(example.values, span.iter().map(|&i| values[i][j]).collect::<Vec<_>>());
            assert_eq!(example.positions[example.peak as usize], example.position);
        }
    }
    assert!(table.features[D_SAE - 1].dead && examples.of(D_SAE as u32 - 1).is_empty());
    assert_eq!((table.label(2), table.features[2].label_source.as_deref()), (Some("two"), Some("file")));
}

/// Samples are of active rows, spread over the bands; random stretches are shared places with their own values.
#[test]
fn bands_and_random_stretches_are_what_they_say() {
    let dir = tempfile::tempdir().unwrap();
    let rows = rows();
    let values = dense(&rows);
    let (table, examples) = tables(&write(&rows, dir.path(), true), None, &config());
    let at: HashMap<(u64, u32), usize> = rows.iter().enumerate().map(|(i, r)| ((r.doc, r.position), i)).collect();
    for j in (0..D_SAE).filter(|&j| !table.features[j].dead) {
        let mut bands: BTreeMap<u32, Vec<f32>> = BTreeMap::new();
        for example in examples.of(j as u32) {
            for (&position, &value) in example.positions.iter().zip(&example.values) {
                assert_eq!(value, values[at[&(example.doc_id, position)]][j]);
            }
            assert_eq!(example.values[example.peak as usize], example.value);
            if let Some(band) = example.quantile {
                assert!(example.group == "quantile" && example.value > 0.0);
                bands.entry(band).or_default().push(example.value);
            }
        }
        assert_eq!(bands.keys().copied().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        let edges: Vec<(f32, f32)> =
            bands.values().map(|b| (b.iter().copied().fold(f32::MAX, f32::min), b.iter().copied().fold(0.0, f32::max))).collect();
        assert!(edges.windows(2).all(|w| w[0].1 <= w[1].0), "{edges:?}");
        assert_eq!(examples.of(j as u32).iter().filter(|e| e.group == "random").count(), 4);
    }
}

#[test]
fn threads_change_nothing_and_files_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let shards = write(&rows(), dir.path(), true);
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| tables(&shards, None, &config()))
    };
    let (one, four) = (with(1), with(4));
    assert!(one == four);
    let out = dir.path().join("features");
    one.0.save(&out).unwrap();
    one.1.save(&out).unwrap();
    assert!(FeatureTable::load(&out).unwrap() == one.0);
    assert!(Examples::load(&out).unwrap() == one.1);
    std::fs::write(out.join(INFO_FILE), b"{\"kind\":\"lapidary-features\",\"version\":2}").unwrap();
    assert!(FeatureTable::load(&out).unwrap_err().to_string().contains("version"));
}

#[test]
fn splits_limits_and_vectors_without_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let rows = rows();
    let shards = write(&rows, &dir.path().join("a"), true);
    let held_out = rows.iter().filter(|r| r.held_out).count() as u64;
    assert_eq!(tables(&shards, Some(Split::HeldOut), &config()).0.info.rows, held_out);
    let few = FeaturesConfig { n_tokens: Some(1001), ..config() };
    let (table, _) = tables(&shards, None, &few);
    assert_eq!((table.info.rows, table.features.iter().map(|f| f.fires).sum::<u64>() <= 3003), (1001, true));

    let (_, examples) = tables(&write(&rows, &dir.path().join("b"), false), None, &config());
    assert!(examples.0.iter().all(|e| e.positions.len() == 1 && e.token_ids.is_empty() && e.tokens == [""]));

    // What does not fit is counted on a sample, and the table says on how many rows.
    let small = FeaturesConfig { coactive_entries: 500, ..config() };
    let (table, _) = tables(&shards, None, &small);
    assert!((50..400).contains(&table.info.coactive_rows), "{}", table.info.coactive_rows);
    let bad = FeaturesConfig { before: 300, ..config() };
    let dictionary = dictionary();
    let inputs = Inputs::new(&dictionary, &shards, "x");
    assert!(features(&inputs, &bad, &Silent).unwrap_err().to_string().contains("features.before"));
}

/// Tokens that would break a page, a terminal or a table come through as they are, long ones cut.
#[test]
fn hostile_tokens_come_through() {
    let hostile = ["<script>alert(1)</script>", "\u{202e}rtl", "\u{1f3f3}\u{fe0f}\u{200d}\u{1f308}", "a\0b", "\"';--", "\u{2028}"];
    let mut vocab = serde_json::Map::new();
    hostile.iter().for_each(|t| drop(vocab.insert((*t).into(), vocab.len().into())));
    vocab.insert("x".repeat(10_000), vocab.len().into());
    (vocab.len()..20).for_each(|i| drop(vocab.insert(format!("w{i}"), i.into())));
    let tokenizer_json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": null, "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "w19" },
    });
    let tokenizer = crate::corpus::Tokenizer::from_bytes(tokenizer_json.to_string().as_bytes(), None, None).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let shards = write(&rows(), dir.path(), true);
    let dictionary = dictionary();
    let inputs = Inputs { tokenizer: Some(&tokenizer), ..Inputs::new(&dictionary, &shards, "x") };
    let (table, examples) = features(&inputs, &config(), &Silent).unwrap();
    let out = dir.path().join("out");
    table.save(&out).unwrap();
    examples.save(&out).unwrap();
    let back = Examples::load(&out).unwrap();
    assert!(back == examples && FeatureTable::load(&out).unwrap() == table);
    for (id, text) in hostile.iter().enumerate() {
        let shown = back.0.iter().flat_map(|e| e.token_ids.iter().zip(&e.tokens)).find(|(&i, _)| i as usize == id);
        assert!(shown.is_some_and(|(_, t)| t.contains(text)), "{text:?}: {shown:?}");
    }
    let longest = back.0.iter().flat_map(|e| &e.tokens).map(|t| t.chars().count()).max();
    assert_eq!(longest, Some(201), "cut, with a sign that more follows");
}
