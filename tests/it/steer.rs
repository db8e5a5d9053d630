//! `trace`, `steer` and `bench concepts` as a person meets them, on the built-in host.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use arrow::array::{RecordBatch, StringArray, UInt32Array};
use parquet::arrow::ArrowWriter;

const TEXT: &str = "one sunny morning , a boy named tom met two foxes";

fn lapidary(dir: &Path, line: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lapidary")).args(line).env("HF_HUB_OFFLINE", "1").current_dir(dir).output().unwrap()
}

fn done(dir: &Path, line: &[&str]) -> String {
    let out = lapidary(dir, line);
    assert!(out.status.success(), "{line:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn dictionary(dir: &Path) {
    let hook = "blocks.1.hook_resid_post";
    let line = ["train", "--model", "fable", "--corpus", "fable", "--hook", hook, "--d-sae", "64", "--k", "4", "--batch", "256"];
    done(dir, &[&line[..], &["--n-tokens", "4_000", "--out", "d"]].concat());
}

fn labels(dir: &Path) {
    std::fs::create_dir(dir).unwrap();
    let names = (0..64).map(|i| (i % 2 == 0).then(|| format!("label {i}")));
    let batch = RecordBatch::try_from_iter([
        ("latent", Arc::new(UInt32Array::from_iter_values(0..64)) as arrow::array::ArrayRef),
        ("label", Arc::new(names.collect::<StringArray>()) as _),
    ])
    .unwrap();
    let file = std::fs::File::create(dir.join("features.parquet")).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

#[test]
fn a_text_is_traced_and_steered() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    dictionary(dir);
    labels(&dir.join("features"));
    let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    let base = ["--dictionary", "d", "--model", "fable"];
    let with = |verb: &'static str, extra: &[&'static str]| [&[verb][..], &base, extra].concat();

    let told = parse(&done(dir, &with("trace", &["--text", TEXT, "--features", "features", "--json"])));
    let tokens = told["texts"][0]["tokens"].as_array().unwrap();
    assert_eq!((tokens.len(), &tokens[0]["masked"], &tokens[1]["token"]), (12, &"special".into(), &"one".into()));
    assert!(tokens[0]["active"].as_array().unwrap().is_empty() && tokens[1]["nmse"].as_f64().unwrap() < 1.0);
    assert!(tokens[1..].iter().all(|t| t["active"].as_array().unwrap().len() <= 4));
    let labelled = told["labels"].as_object().unwrap();
    assert!(!labelled.is_empty() && labelled.iter().all(|(l, name)| *name == format!("label {l}")), "{labelled:?}");
    let table = done(dir, &with("trace", &["--text", TEXT, "--features", "features", "--top", "4"]));
    assert!(table.contains("(special: masked)") && table.contains("label ") && table.lines().count() == 14, "{table}");
    let kept = parse(&done(dir, &with("trace", &["--text", TEXT, "--keep", "special", "--json"])));
    assert!(kept["texts"][0]["tokens"][0]["masked"].is_null());
    std::fs::write(dir.join("text.txt"), format!("{TEXT}\n")).unwrap();
    let from_file = parse(&done(dir, &with("trace", &["--text-file", "text.txt", "--text", "tom", "--json"])));
    assert_eq!(from_file["texts"].as_array().unwrap().len(), 2);
    assert_eq!(from_file["texts"][1]["tokens"], parse(&done(dir, &with("trace", &["--text", TEXT, "--json"])))["texts"][0]["tokens"]);

    let latent = tokens[5]["active"][0]["latent"].as_u64().unwrap();
    let edit: &'static str = format!("{latent}=+200").leak();
    let greedy = parse(&done(dir, &with("steer", &["--text", TEXT, "--latent", edit, "--n-tokens", "8", "--json"])));
    let sample = &greedy["texts"][0]["samples"][0];
    assert_eq!(sample["tokens"].as_array().unwrap().len(), 8);
    assert!(sample["mean_kl"].as_f64().unwrap() > 0.0 && greedy["texts"][0]["edits"][0] == edit);
    let none: &'static str = format!("{latent}=x1").leak();
    let same = parse(&done(dir, &with("steer", &["--text", TEXT, "--latent", none, "--n-tokens", "8", "--json"])));
    assert_eq!(same["texts"][0]["samples"][0]["steered"], same["texts"][0]["samples"][0]["unsteered"]);
    assert_eq!(same["texts"][0]["samples"][0]["mean_kl"], 0.0);
    let drawn = ["--text", TEXT, "--latent", edit, "--n-tokens", "6", "--temperature", "1", "--samples", "2", "--seed", "3", "--json"];
    let one = done(dir, &[&with("steer", &drawn)[..], &["--threads", "1"]].concat());
    assert_eq!(one, done(dir, &with("steer", &drawn)), "threads change nothing");
    let text = done(dir, &with("steer", &["--text", TEXT, "--latent", edit, "--n-tokens", "4", "--without-error"]));
    assert!(text.contains("unsteered") && text.contains("reconstruction instead"), "{text}");

    for (line, says) in [
        (with("trace", &["--text", TEXT, "--latent", "64"]), "latents go from 0 to 63"),
        (with("trace", &["--text", TEXT, "--hook", "blocks.1.mlp.hook_post"]), "wide"),
        (with("trace", &["--text", TEXT, "--features", "nowhere"]), "features.parquet"),
        (with("steer", &["--text", TEXT, "--latent", "64=1"]), "latents go from 0 to 63"),
        (with("steer", &["--text", TEXT, "--latent", "1=1", "--latent", "1=2"]), "twice"),
        (with("steer", &["--text", TEXT, "--latent", "1=1", "--samples", "2"]), "temperature"),
        (with("steer", &["--text", TEXT, "--latent", "1"]), "LATENT=+8"),
    ] {
        let out = lapidary(dir, &line);
        let message = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{line:?}: {message}");
        assert!(message.contains(says) && out.stdout.is_empty(), "{line:?}: {message}");
    }
}

#[test]
fn concepts_from_harvest_to_the_page() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let line = [
        "bench", "concepts", "--seeds", "0", "--quick", "0.02", "--d-sae", "64", "--k", "4", "--out", "c", "--report", "page.md", "--json",
    ];
    let told: serde_json::Value = serde_json::from_str(&done(dir, &line)).unwrap();
    let saved: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join("c/concepts.json")).unwrap()).unwrap();
    assert_eq!(told, saved);
    assert_eq!(told["runs"][0]["recoveries"]["representations"].as_array().unwrap().len(), 8);
    let page = std::fs::read_to_string(dir.join("page.md")).unwrap();
    assert_eq!(page, std::fs::read_to_string(dir.join("c/concepts.md")).unwrap());
    assert!(page.contains("no evidence") && page.contains("| linear probe") && page.contains("## Absorption"), "{page}");
    for wrong in ["1,1", "x"] {
        assert_eq!(lapidary(dir, &["bench", "concepts", "--seeds", wrong]).status.code(), Some(2));
    }
}
