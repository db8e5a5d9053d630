//! `features` and what is made of its tables, as a person meets them, on the built-in host; completions and man pages.

use std::path::Path;
use std::process::{Command, Output};

use lapidary::features::{Examples, FeatureTable};

fn lapidary(dir: &Path, line: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lapidary")).args(line).env("HF_HUB_OFFLINE", "1").current_dir(dir).output().unwrap()
}

fn done(dir: &Path, line: &[&str]) -> String {
    let out = lapidary(dir, line);
    assert!(out.status.success(), "{line:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Exit code 2, and the remedy.
fn refused(dir: &Path, line: &[&str], says: &str) {
    let out = lapidary(dir, line);
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.code() == Some(2) && told.contains("help: ") && told.contains(says), "{line:?}: {:?} {told}", out.status);
}

#[test]
fn a_table_is_made_read_and_handed_on() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let hook = "blocks.1.hook_resid_post";
    let rows = ["--hook", hook, "--n-tokens", "20_000", "--held-out", "0.3"];
    done(dir, &[&["harvest", "--model", "fable", "--corpus", "fable", "--out", "shards"], &rows[..]].concat());
    done(
        dir,
        &[
            "train",
            "--shards",
            "shards",
            "--d-sae",
            "96",
            "--k",
            "6",
            "--batch",
            "256",
            "--n-tokens",
            "20_000",
            "--lr",
            "4e-3",
            "--out",
            "d",
        ],
    );
    std::fs::write(dir.join("labels.json"), "{\"5\": \"mine\"}").unwrap();
    let line = ["features", "--dictionary", "d", "--shards", "shards", "--labels", "labels.json"];
    let report = done(dir, &[&line[..], &["--out", "a", "--threads", "1", "--json"]].concat());
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    done(dir, &[&line[..], &["--out", "b"]].concat());
    for file in ["features.parquet", "examples.parquet", "features.json"] {
        assert!(std::fs::read(dir.join("a").join(file)).unwrap() == std::fs::read(dir.join("b").join(file)).unwrap(), "{file}: threads");
    }

    let (table, examples) = (FeatureTable::load(&dir.join("a")).unwrap(), Examples::load(&dir.join("a")).unwrap());
    assert_eq!((report["latents"].as_u64(), report["rows"].as_u64()), (Some(96), Some(table.info.rows)));
    assert_eq!((table.info.rows, table.info.dictionary.hook.as_str(), table.label(5)), (20_000, hook, Some("mine")));
    // The host was found by the shards' manifest: there are output tokens, and words.
    let alive: Vec<_> = table.features.iter().filter(|f| !f.dead).collect();
    assert!(alive.len() > 30, "{}", alive.len());
    assert!(alive.iter().all(|f| f.top_tokens.len() == 10 && f.bottom_logits[0] <= f.top_logits[0]));
    assert!(alive.iter().any(|f| f.concept_f1.is_some_and(|f1| f1 > 0.5)) && table.info.concept_rows > 1000);
    let top = examples.0.iter().find(|e| e.group == "top").unwrap();
    assert!(top.tokens.iter().all(|t| t.starts_with(' ') && !t.contains('<')), "BOS is masked: {:?}", top.tokens);

    let dashboard = done(dir, &["dashboard", "--dictionary", "d", "--features", "a", "--out", "page.html"]);
    assert!(dashboard.contains("96 latents") && dir.join("page.html").is_file());
    let export = ["export", "--dictionary", "d", "--features", "a", "--model-id", "fable", "--set", "res"];
    done(dir, &[&export[..], &["--format", "neuronpedia", "--out", "pages"]].concat());
    let body: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join("pages/upload-batch-0.json")).unwrap()).unwrap();
    assert_eq!((&body["source"], body["features"].as_array().unwrap().len()), (&"1-res".into(), alive.len()));

    refused(dir, &[&line[..], &["--out", "a"]].concat(), "--overwrite");
    refused(dir, &[&line[..], &["--out", "c", "--model", "fable-random"]].concat(), "other weights");
    refused(dir, &[&line[..], &["--out", "c", "--before", "300"]].concat(), "features.before");
    refused(dir, &[&line[..], &["--out", "c", "--n-tokens", "0"]].concat(), "n_tokens");
    refused(dir, &["export", "--dictionary", "d", "--format", "saedashboard", "--out", "c"], "--features");
    std::fs::write(dir.join("labels.json"), "{\"96\": \"beyond\"}").unwrap();
    refused_as_damaged(dir, &[&line[..], &["--out", "c"]].concat());
    assert!(!dir.join("c").exists(), "nothing is left of what was refused");
}

/// A file that is not what it should be: exit code 3.
fn refused_as_damaged(dir: &Path, line: &[&str]) {
    let out = lapidary(dir, line);
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && told.contains("`96` is no latent") && told.contains("help: "), "{told}");
}

#[test]
fn shells_and_man_know_every_verb() {
    let dir = tempfile::tempdir().unwrap();
    let verbs = ["demo", "harvest", "train", "score", "features", "dashboard", "trace", "steer", "plot", "export", "completions"];
    for shell in ["bash", "zsh", "fish"] {
        let script = done(dir.path(), &["completions", shell]);
        assert!(verbs.iter().all(|verb| script.contains(verb)) && script.contains("held-out"), "{shell}");
    }
    done(dir.path(), &["man", "--out", "man"]);
    for verb in verbs {
        let page = std::fs::read_to_string(dir.path().join(format!("man/lapidary-{verb}.1"))).unwrap();
        assert!(page.contains(".SH SYNOPSIS") && page.contains("Example"), "{verb}");
    }
}
