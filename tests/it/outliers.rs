//! Masking rules on a host with planted massive activations, in shards and in a stream alike: what is left out, what is counted, and
//! where the threshold comes from.

use std::path::Path;

use candle_core::Device;
use lapidary::corpus::{Corpus, CorpusConfig};
use lapidary::harvest::{harvest, HarvestConfig, MaskRule, Mode, Spot, Stream};
use lapidary::host::{self, Capture, HostModel, LoadOptions, Tokens};
use lapidary::progress::Silent;
use lapidary::rng::Rng;
use lapidary::shard::{Batch, Counts, Shards, Split};
use lapidary::HookPoint;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

use crate::support::concat;

pub const HOOK: &str = "blocks.1.hook_resid_post";
pub const VOCAB: u64 = 40;
/// Its embedding is a thousand times too long.
pub const LOUD: u32 = 7;
/// Its embedding holds a NaN.
pub const NAN: u32 = 8;
const D: usize = 24;

/// A random two-block GPT-2 whose weights were edited: the token [`LOUD`] and, if asked, position 0 are massive at every hook point.
pub fn planted(bos: Option<u32>, loud_first: bool) -> Box<dyn HostModel> {
    let config = json!({"model_type": "gpt2", "n_layer": 2, "n_embd": D, "n_head": 3, "n_positions": 96, "vocab_size": VOCAB,
        "bos_token_id": bos, "eos_token_id": null});
    let mut shapes = vec![("wte.weight".to_string(), vec![VOCAB as usize, D]), ("wpe.weight".into(), vec![96, D])];
    for l in 0..2 {
        for (name, from, to) in [("attn.c_attn", D, 3 * D), ("attn.c_proj", D, D), ("mlp.c_fc", D, 4 * D), ("mlp.c_proj", 4 * D, D)] {
            shapes.push((format!("h.{l}.{name}.weight"), vec![from, to]));
            shapes.push((format!("h.{l}.{name}.bias"), vec![to]));
        }
        shapes.extend(["ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"].map(|n| (format!("h.{l}.{n}"), vec![D])));
    }
    shapes.extend(["ln_f.weight", "ln_f.bias"].map(|n| (n.to_string(), vec![D])));
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let mut rng = Rng::stream(5, &name, 0);
            let n: usize = shape.iter().product();
            let mut values: Vec<f32> = (0..n).map(|_| 0.3 * rng.normal() as f32 + f32::from(u8::from(name.contains("ln_")))).collect();
            let scale = |row: u32, by: f32, values: &mut [f32]| values[row as usize * D..][..D].iter_mut().for_each(|v| *v *= by);
            if name == "wte.weight" {
                scale(LOUD, 1000.0, &mut values);
                values[NAN as usize * D] = f32::NAN;
            } else if name == "wpe.weight" && loud_first {
                scale(0, 1000.0, &mut values);
            }
            (name, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, b)| (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), b).unwrap()));
    let bytes = safetensors::serialize(views, None).unwrap();
    host::load_bytes("planted", &serde_json::to_vec(&config).unwrap(), &bytes, &LoadOptions::default()).unwrap()
}

/// Documents of ordinary tokens, some with the loud one inside; each begins with `begin`.
pub fn documents(n: usize, begin: u32) -> Vec<Vec<u32>> {
    let mut rng = Rng::stream(3, "documents", 0);
    (0..n)
        .map(|d| {
            let length = 1 + rng.below(40) as usize;
            let mut ids: Vec<u32> = std::iter::once(begin).chain((0..length).map(|_| 10 + rng.below(VOCAB - 10) as u32)).collect();
            if d % 4 == 1 {
                let at = 1 + rng.below(length as u64) as usize;
                ids[at] = LOUD;
            }
            ids
        })
        .collect()
}

/// The documents as a token file that `begin` cuts again.
pub fn corpus(dir: &Path, documents: &[Vec<u32>], begin: u32) -> Corpus {
    let path = dir.join("tokens.u16");
    std::fs::write(&path, documents.concat().iter().flat_map(|&v| (v as u16).to_le_bytes()).collect::<Vec<_>>()).unwrap();
    Corpus::open(&CorpusConfig { doc_token: Some(begin), ..CorpusConfig::new(path.to_string_lossy()) }).unwrap()
}

pub fn config() -> HarvestConfig {
    let config = HarvestConfig { hooks: vec![HOOK.into()], context: 16, batch_tokens: 200, held_out: 0.2, ..HarvestConfig::default() };
    HarvestConfig { outlier_rows: 500, ..config }
}

/// What should come of a corpus, by the slow way: each context alone through the host.
#[derive(Debug, Default, PartialEq)]
struct Expected {
    special: u64,
    first: u64,
    outlier: u64,
    rows: u64,
    median: f64,
}

fn expect(host: &dyn HostModel, documents: &[Vec<u32>], special: Option<u32>, keep: &[MaskRule], rows: usize) -> Expected {
    let at: HookPoint = HOOK.parse().unwrap();
    let (mut found, mut norms) = (Expected::default(), Vec::new());
    for ids in documents.iter().flat_map(|d| d.chunks(16)) {
        let mut capture = Capture::new(&[at]);
        host.forward(&Tokens::new(&[ids.to_vec()], &Device::Cpu).unwrap(), &mut capture).unwrap();
        let x = capture.get(&at).unwrap().squeeze(0).unwrap().to_vec2::<f32>().unwrap();
        for (i, (id, row)) in ids.iter().zip(x).enumerate() {
            if Some(*id) == special {
                found.special += u64::from(!keep.contains(&MaskRule::Special));
                if !keep.contains(&MaskRule::Special) {
                    continue;
                }
            } else if i == 0 && !keep.contains(&MaskRule::First) {
                found.first += 1;
                continue;
            }
            norms.push(row.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt());
        }
    }
    let mut head = norms[..rows.min(norms.len())].to_vec();
    head.sort_by(f64::total_cmp);
    found.median = (head[(head.len() - 1) / 2] + head[head.len() / 2]) / 2.0;
    let outliers = norms.iter().filter(|&&n| n > 10.0 * found.median).count() as u64;
    found.outlier = if keep.contains(&MaskRule::Outlier) { 0 } else { outliers };
    found.rows = norms.len() as u64 - found.outlier;
    found
}

fn found(counts: &Counts, median: f64) -> Expected {
    let of = |rule: &str| counts.masked[rule];
    assert_eq!(counts.tokens, counts.rows.of(None) + counts.masked.values().sum::<u64>());
    Expected { special: of("special"), first: of("first"), outlier: of("outlier"), rows: counts.rows.of(None), median }
}

#[test]
fn planted_outliers_are_left_out_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    // (BOS of the host, what documents begin with, is position 0 massive?)
    let hosts = [(Some(1), 1, false), (Some(0), 0, true), (None, 9, true), (None, 9, false)];
    let rules = [vec![], vec![MaskRule::First], vec![MaskRule::Special, MaskRule::First], vec![MaskRule::Outlier]];
    for (h, (bos, begin, loud_first)) in hosts.into_iter().enumerate() {
        let host = planted(bos, loud_first);
        let documents = documents(150, begin);
        let loud = documents.concat().iter().filter(|&&id| id == LOUD).count() as u64;
        let corpus = corpus(dir.path(), &documents, begin);
        for (k, keep) in rules.iter().enumerate() {
            let config = HarvestConfig { keep: keep.clone(), ..config() };
            let want = expect(host.as_ref(), &documents, bos, keep, config.outlier_rows);
            if keep.is_empty() {
                // Position 0 is masked by its own rule; of the loud tokens only those are left that begin no context.
                assert!(loud > 25 && want.outlier > 25 && want.outlier <= loud, "{loud} {want:?}");
                assert_eq!(want.special > 0, bos.is_some());
                assert!(want.first > 0, "documents are longer than a context");
            } else if loud_first && keep.contains(&MaskRule::First) {
                assert!(want.outlier > loud, "position 0 is an outlier where nothing else masks it");
            }

            let out = dir.path().join(format!("{h}-{k}"));
            harvest(host.as_ref(), &corpus, None, &config, &out, Mode::Fresh, &Silent).unwrap();
            let shards = Shards::open(&out).unwrap();
            let manifest = shards.manifest();
            let median = manifest.masking["outlier"]["median_norm"][HOOK].as_f64();
            assert_eq!(median.is_none(), keep.contains(&MaskRule::Outlier));
            let got = found(&manifest.counts, median.unwrap_or(want.median));
            assert!((got.median / want.median - 1.0).abs() < 1e-6, "{got:?} {want:?}");
            let want = Expected { median: got.median, ..want };
            assert_eq!(got, want, "host {h}, {keep:?}");
            if median.is_some() {
                assert_eq!(manifest.masking["outlier"]["rows"], 500);
            }
            let rows = concat(Split::ALL.into_iter().flat_map(|s| shards.scan(HOOK, Some(s)).unwrap()).map(Result::unwrap));
            assert_eq!(rows.token_id.contains(&LOUD), keep.contains(&MaskRule::Outlier));

            // The stream leaves out and counts the same.
            let mut stream = Stream::new(host.as_ref(), &corpus, None, &config).unwrap();
            let mut streamed = Batch::default();
            let (end, ended) = stream.read(&Spot::default(), usize::MAX, &mut streamed, &Silent).unwrap();
            assert!(ended);
            assert_eq!(*end.counts(), manifest.counts);
            assert_eq!(stream.provenance(&end).unwrap()["masking"], manifest.masking);
            assert!(streamed == concat(shards.scan(HOOK, Some(Split::Train)).unwrap().map(Result::unwrap)), "the same rows, to the bit");
        }
    }
}

#[test]
fn passes_hold_like_lengths_and_their_size_does_not_show() {
    let dir = tempfile::tempdir().unwrap();
    let host = planted(Some(1), false);
    let documents = documents(200, 1);
    let corpus = corpus(dir.path(), &documents, 1);
    let of = |batch_tokens: usize| {
        let config = HarvestConfig { batch_tokens, context: 64, ..config() };
        let mut stream = Stream::new(host.as_ref(), &corpus, None, &config).unwrap();
        let mut rows = Batch::default();
        stream.read(&Spot::default(), usize::MAX, &mut rows, &Silent).unwrap();
        (rows, stream.forwarded())
    };
    let (alone, (_, tokens, padding)) = of(1);
    assert_eq!((tokens, padding), (documents.concat().len() as u64, 0.0), "one context per pass");
    let mut bit_equal = true;
    for batch_tokens in [64, 300, 1024, 100_000] {
        let (rows, (_, passed, padding)) = of(batch_tokens);
        assert_eq!((passed, &rows.position, &rows.doc_id), (tokens, &alone.position, &alone.doc_id));
        let worst = rows.x.iter().zip(&alone.x).map(|(a, b)| (a - b).abs() / (1.0 + b.abs())).fold(0.0, f32::max);
        assert!(worst < 1e-5, "{batch_tokens}: {worst}");
        bit_equal &= rows == alone;
        // Lengths of 2 to 41, evenly: in corpus order half of each pass would be padding. Only a pass of everything has that much.
        assert!(padding < if batch_tokens <= 1024 { 0.2 } else { 0.6 }, "{batch_tokens}: {padding}");
        println!("batch_tokens {batch_tokens}: padding {padding:.3}, worst difference {worst:e}");
    }
    println!("bit-equal whatever the batch: {bit_equal}");
}
