//! `bench claims` as a person meets it, with hardly any training: what it writes and what it refuses. No claim is tested here.

use std::path::Path;
use std::process::{Command, Output};

fn bench(dir: &Path, line: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lapidary")).args(["bench", "claims"]).args(line).current_dir(dir).output().unwrap()
}

#[test]
fn one_claim_from_training_to_the_page() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let out = bench(dir, &["--only", "1a,1b", "--seeds", "0,7", "--quick", "0.02", "--out", "claims", "--json"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let told: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let saved: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join("claims/claims.json")).unwrap()).unwrap();
    assert_eq!(told, saved);
    let rows = told["rows"].as_array().unwrap();
    let geometry: Vec<_> = rows.iter().filter(|r| r["claim"] == "1a").collect();
    // The identity needs no training at all.
    assert!(geometry.len() == 3 && geometry.iter().all(|r| r["verdict"] == "holds" && r["seeds_held"] == 2), "{geometry:?}");
    let images = rows.iter().find(|r| r["claim"] == "1b").unwrap();
    assert_eq!(images["verdict"], "skipped");
    assert!(images["condition"].as_str().unwrap().contains("--mnist DIR"));
    let page = std::fs::read_to_string(dir.join("claims/claims.md")).unwrap();
    assert!(page.contains("| 1a |") && page.contains("no evidence") && page.contains("holds (2/2)"), "{page}");
    let again = bench(dir, &["--only", "1a", "--seeds", "0,7", "--quick", "0.02", "--threads", "1", "--json"]);
    let again: serde_json::Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(again["tables"], told["tables"], "threads change nothing");
}

#[test]
fn wrong_requests_are_refused_before_any_work() {
    let dir = tempfile::tempdir().unwrap();
    for (line, says) in [
        (&["--only", "9z"][..], "the claims are 1a"),
        (&["--seeds", "1,1"], "each seed once"),
        (&["--quick", "2"], "share of the steps"),
        (&["--only", "1b", "--mnist", "nowhere"], "nowhere"),
        (&["--only", "1b", "--mnist", "."], "train-images-idx3-ubyte"),
    ] {
        let out = bench(dir.path(), line);
        let message = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{line:?}: {message}");
        assert!(message.contains(says) && message.contains("help:") && out.stdout.is_empty(), "{line:?}: {message}");
    }
}
