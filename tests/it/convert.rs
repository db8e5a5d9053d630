//! `import`, `export`, `convert` and `inspect` as a person meets them.

use std::path::Path;
use std::process::{Command, Output};

use candle_core::{Device, Tensor};
use lapidary::dictionary::Provenance;
use lapidary::formats::container::npz::NpzFile;
use lapidary::kernels::Coder;
use lapidary::rng::Rng;
use lapidary::Dictionary;
use serde_json::Value;

fn lapidary(dir: &Path, line: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lapidary")).args(line).env("HF_HUB_OFFLINE", "1").current_dir(dir).output().unwrap()
}

fn done(dir: &Path, line: &[&str]) -> Value {
    let line = [line, &["--json"]].concat();
    let out = lapidary(dir, &line);
    assert!(out.status.success(), "{line:?}: {}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

fn refused(dir: &Path, line: &[&str], code: i32, why: &str) {
    let out = lapidary(dir, line);
    let message = String::from_utf8(out.stderr).unwrap();
    assert!(out.status.code() == Some(code) && message.contains(why) && message.contains("help:"), "{line:?}: {message}");
}

/// 32 latents over 12 dimensions, as its maker would save it.
fn dictionary(rule: &str) -> Dictionary {
    let mut rng = Rng::stream(1, "test", 0);
    let mut random = |shape: &[usize]| {
        let n = shape.iter().product();
        Tensor::from_vec((0..n).map(|_| rng.normal() as f32).collect::<Vec<_>>(), shape, &Device::Cpu).unwrap()
    };
    let coder = Coder { w_enc: random(&[32, 12]), b_enc: random(&[32]), w_dec: random(&[32, 12]), b_dec: random(&[12]) };
    let provenance = Provenance {
        hook: "blocks.3.hook_resid_post".into(),
        made_by: "topk".into(),
        host: serde_json::json!({ "name": "a-host" }),
        ..Default::default()
    };
    Dictionary::new(coder, rule.parse().unwrap(), true, provenance).unwrap()
}

#[test]
fn an_export_is_proved_imported_and_converted() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    dictionary("topk:4").save(&dir.join("d")).unwrap();
    let report = done(dir, &["export", "--dictionary", "d", "--format", "saelens", "--out", "theirs"]);
    assert!(report["equal"] == true && report["proof"]["codes"] == 0.0 && report["proof"]["l0"][0].as_f64().unwrap() > 3.0, "{report}");
    let cfg: Value = serde_json::from_slice(&std::fs::read(dir.join("theirs/cfg.json")).unwrap()).unwrap();
    assert_eq!((&cfg["architecture"], &cfg["k"], &cfg["apply_b_dec_to_input"]), (&"topk".into(), &4.into(), &true.into()));
    assert_eq!(cfg["metadata"]["model_name"], "a-host");

    // In use, unknown, of another kind: refused with the remedy.
    refused(dir, &["export", "--dictionary", "d", "--format", "saelens", "--out", "theirs"], 2, "not empty");
    refused(dir, &["export", "--dictionary", "d", "--format", "sealens", "--out", "x"], 2, "choose one of: saelens");
    refused(dir, &["export", "--dictionary", "d", "--format", "gemma-scope-2", "--out", "x"], 2, "thresholds alone");
    refused(dir, &["export", "--dictionary", "d", "--format", "saelens", "--prefix", "8", "--out", "x"], 2, "no dictionary of their own");
    refused(dir, &["export", "--dictionary", "d", "--format", "saelens", "--fold-norms", "--out", "x"], 2, "top-k");

    let back = done(dir, &["import", "--from", "theirs", "--out", "back"]);
    assert_eq!((&back["format"], &back["d_sae"], &back["hook"]), (&"saelens".into(), &32.into(), &"blocks.3.hook_resid_post".into()));
    assert_eq!(done(dir, &["inspect", "theirs"])["format"], "saelens");
    let lint = done(dir, &["inspect", "back"]);
    assert!(lint["lint"]["notes"][0].as_str().unwrap().contains("not of unit norm"), "{lint}");

    done(dir, &["convert", "--from", "theirs", "--format", "sparsify", "--out", "repo/layers.3"]);
    done(dir, &["convert", "--from", "repo", "--format", "llamascopium", "--out", "repo/other"]);
    refused(dir, &["import", "--from", "repo", "--out", "x"], 2, "holds 2 dictionaries");
    refused(dir, &["import", "--from", "no/such/folder", "--out", "x"], 2, "HF_HUB_OFFLINE");
    refused(dir, &["import", "--from", "d", "--format", "saelens", "--out", "x"], 2, "no dictionary of saelens");

    // A repository to upload.
    done(dir, &["export", "--dictionary", "d", "--format", "saelens", "--card", "--out", "repository"]);
    assert!(dir.join("repository/blocks.3.hook_resid_post/cfg.json").is_file());
    let card = std::fs::read_to_string(dir.join("repository/README.md")).unwrap();
    assert!(card.starts_with("---\n") && card.contains("blocks.3.hook_resid_post") && card.contains("SAE.from_pretrained"), "{card}");
}

#[test]
fn vectors_are_encoded_and_atoms_written() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let d = dictionary("topk:4");
    d.save(&dir.join("d")).unwrap();
    let x = lapidary::formats::made_rows(&d, 70, 3).unwrap();
    let path = dir.join("x.safetensors");
    candle_core::safetensors::save(&[("rows", x.clone()), ("other", x.narrow(1, 0, 3).unwrap())].into(), &path).unwrap();
    refused(dir, &["encode", "--dictionary", "d", "--from", "x.safetensors", "--out", "c"], 2, "none is named");
    refused(dir, &["encode", "--dictionary", "d", "--from", "x.safetensors", "--tensor", "other", "--out", "c"], 2, "wide");
    let report =
        done(dir, &["encode", "--dictionary", "d", "--from", "x.safetensors", "--tensor", "rows", "--reconstruct", "--out", "codes"]);
    assert_eq!(report["rows"], 70);
    let back = Tensor::read_npy(dir.join("codes/reconstruction.npy")).unwrap();
    let (codes, want) = d.reconstruct(&x).unwrap();
    assert_eq!(back.to_vec2::<f32>().unwrap(), want.to_vec2::<f32>().unwrap());
    assert!((report["l0"].as_f64().unwrap() - codes.indices.len() as f64 / 70.0).abs() < 1e-12);

    let v = done(dir, &["export", "--dictionary", "d", "--format", "gguf", "--latents", "1,5=-2", "--scale", "3", "--out", "cv"]);
    let bytes = std::fs::read(dir.join("cv/control-vector.gguf")).unwrap();
    assert_eq!((&bytes[..4], v["format"].as_str().unwrap()), (&b"GGUF"[..], "gguf"));
    let at = bytes.len() - 64;
    let first = f32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let atoms = d.coder.w_dec.to_vec2::<f32>().unwrap();
    assert!((first - (3.0 * atoms[1][0] - 6.0 * atoms[5][0])).abs() < 1e-5);
    refused(dir, &["export", "--dictionary", "d", "--format", "gguf", "--latents", "32", "--out", "x"], 2, "no latent 32");
    let early = ["export", "--dictionary", "d", "--format", "gguf", "--latents", "1", "--hook", "blocks.0.hook_resid_post", "--out", "x"];
    refused(dir, &early, 2, "block 0");

    done(dir, &["export", "--dictionary", "d", "--format", "csv", "--out", "csv"]);
    let text = std::fs::read_to_string(dir.join("csv/latents.csv")).unwrap();
    let line: Vec<&str> = text.lines().nth(6).unwrap().split(',').collect();
    assert!(line[0] == "5" && line[4].parse::<f32>().unwrap() == atoms[5][0] && text.lines().count() == 33);
    done(dir, &["export", "--dictionary", "d", "--format", "npz", "--latents", "3,1=2", "--out", "npz"]);
    let bytes = std::fs::read(dir.join("npz/latents.npz")).unwrap();
    let arrays = NpzFile::new(&bytes, dir).unwrap();
    assert_eq!(arrays.array("latent").unwrap().to_i64().unwrap(), [3, 1]);
    assert_eq!(arrays.array("w_dec").unwrap().shape[0], 2);
    done(dir, &["export", "--dictionary", "d", "--format", "parquet", "--out", "parquet"]);
    assert!(dir.join("parquet/latents.parquet").is_file());
}

#[test]
fn a_delphi_cache_covers_all_latents() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let harvest = ["harvest", "--model", "fable", "--corpus", "fable", "--hook", "blocks.1.hook_resid_post", "--n-tokens", "2_000"];
    done(dir, &[&harvest[..], &["--held-out", "0.3", "--out", "shards"]].concat());
    done(dir, &["train", "--shards", "shards", "--d-sae", "128", "--k", "4", "--batch", "256", "--n-tokens", "4_000", "--out", "d"]);
    let line = ["export", "--dictionary", "d", "--format", "delphi", "--context", "16", "--out", "cache"];
    refused(dir, &line, 2, "holds codes of rows");
    let report = done(dir, &[&line[..], &["--shards", "shards"]].concat());
    let cache = dir.join("cache/latents/layers.1");
    let (mut next, mut codes) = (0, 0);
    let bounds = [0, 25, 51, 76, 102, 128];
    for pair in bounds.windows(2) {
        assert_eq!(pair[0], next);
        let bytes = std::fs::read(cache.join(format!("{}_{}.safetensors", pair[0], pair[1] - 1))).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        codes += file.tensor("activations").unwrap().shape()[0];
        assert_eq!(file.tensor("tokens").unwrap().shape()[1], 16);
        let locations = file.tensor("locations").unwrap();
        assert_eq!(locations.dtype(), safetensors::Dtype::U16);
        let within = |b: &[u8]| (u16::from_le_bytes([b[0], b[1]]) as usize) < pair[1] - pair[0];
        assert!(locations.data().chunks_exact(6).all(|l| within(&l[4..6])));
        next = pair[1];
    }
    assert_eq!(report["codes"], codes);
    assert!(codes > 500);
}
