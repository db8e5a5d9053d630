//! Planted rows through the binary: shards that bring their truth back, training, scores against it, refusals.

use std::path::Path;
use std::process::{Command, Output};

use lapidary::corpus::planted::{Planted, TRUTH_FILE};
use lapidary::shard::{Shards, Split};

use crate::support::concat;

fn lapidary(dir: &Path, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lapidary")).args(line.split(' ')).current_dir(dir).output().unwrap()
}

fn done(dir: &Path, line: &str) -> serde_json::Value {
    let out = lapidary(dir, &format!("{line} --json"));
    assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

#[test]
fn every_kind_becomes_shards_that_know_their_truth() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("spec.toml"), "kind = \"tree\"\nroots = 2\nnoise = 0.01\n").unwrap();
    for (i, from) in ["zipf?decorrelate_rounds=5", "hierarchy", "spec.toml?depth=1", "synth?orthogonalise_steps=2"].iter().enumerate() {
        let report = done(dir, &format!("ingest --from planted:{from} --n-tokens 5_000 --seed 3 --held-out 0.1 --out s{i}"));
        assert_eq!(report["rows"]["train"].as_u64().unwrap() + report["rows"]["held-out"].as_u64().unwrap(), 5000);
        let shards = Shards::open(&dir.join(format!("s{i}"))).unwrap();
        // Nothing but the manifest is needed.
        std::fs::rename(shards.dir().join(TRUTH_FILE), dir.join("moved")).unwrap();
        let planted = Planted::of_corpus(&shards.manifest().corpus, shards.dir()).unwrap().unwrap();
        assert_eq!(planted.seed(), 3);
        let rows = planted.rows(0..5000).x;
        let d = planted.d_in();
        for split in Split::ALL {
            let all = concat(shards.scan("planted", Some(split)).unwrap().map(|b| b.unwrap()));
            assert!(all.n > 300);
            for (x, &row) in all.x.chunks(d).zip(&all.doc_id) {
                assert_eq!(x, &rows[row as usize * d..(row as usize + 1) * d], "{from}: row {row}");
            }
        }
    }
    // Same spec and seed, same bytes; the spec is part of the identity.
    let again = "ingest --from planted:hierarchy --n-tokens 5_000 --held-out 0.1";
    done(dir, &format!("{again} --seed 3 --out again"));
    let bytes = |name: &str, file: &str| std::fs::read(dir.join(name).join(file)).unwrap();
    for file in ["manifest.json", "train-00000.parquet"] {
        assert_eq!(bytes("s1", file), bytes("again", file));
    }
    assert_eq!(std::fs::read(dir.join("again").join(TRUTH_FILE)).unwrap().len() % 8, 0);
    done(dir, &format!("{again} --seed 3 --resume --out again"));
    assert_eq!(lapidary(dir, &format!("{again} --seed 4 --resume --out again")).status.code(), Some(2));
    done(dir, &format!("{again} --seed 4 --overwrite --out again"));
    assert_ne!(bytes("s1", "train-00000.parquet"), bytes("again", "train-00000.parquet"));
}

#[test]
fn a_trained_dictionary_is_scored_against_the_truth() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    done(dir, "ingest --from planted:zipf?d_in=16,n_features=24,l0=2 --n-tokens 40_000 --seed 1 --held-out-last 4_000 --out shards");
    done(dir, "train --shards shards --d-sae 32 --k 3 --lr 1e-2 --batch 128 --n-tokens 120_000 --seed 1 --out run");
    let score = done(dir, "score --dictionary run --shards shards --require mcc>0.9 --require recovered_08>0.9");
    let (ours, random) = (&score["metrics"], &score["baselines"]["random"]);
    assert!(ours["f1_mean"].as_f64() > random["f1_mean"].as_f64());
    assert!(random["mcc"].as_f64().unwrap() < 0.75 && ours["absorption"].is_null());
    assert!((ours["true_l0"].as_f64().unwrap() - 2.0).abs() < 0.1);
    // What untrained atoms have in common with the features is chance.
    let notes = |dir: &Path| {
        let text = std::fs::read_to_string(dir.join("dictionary.json")).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["provenance"]["notes"].clone()
    };
    let start = &notes(&dir.join("run"))["at_start"];
    let (found, chance) = (start["mcc"].as_f64().unwrap(), start["mcc_null"].as_f64().unwrap());
    assert!((found - chance).abs() < 0.1 && found < 0.75, "{found} at the start, {chance} by chance");
    // A few steps from there, as another learner too; prefixes are scored beside the whole.
    done(dir, "train --shards shards --init-from run --lr 1e-4 --batch 128 --n-tokens 1_280 --out tuned");
    let start = notes(&dir.join("tuned"))["at_start"]["mcc"].as_f64().unwrap();
    assert!(start > 0.9, "{start}");
    let nested = "--arch matryoshka --set sae.prefixes=[8,32] --k 3";
    done(dir, &format!("train --shards shards --init-from run {nested} --lr 1e-4 --batch 128 --n-tokens 1_280 --out nested"));
    let score = done(dir, "score --dictionary nested --shards shards --no-baselines");
    let fvu = |m: &serde_json::Value| m["fvu"].as_f64().unwrap();
    assert!(fvu(&score["prefixes"]["8"]) > fvu(&score["metrics"]) && fvu(&score["metrics"]) < 0.5, "{score}");
    let wide = lapidary(dir, "train --shards shards --init-from run --d-sae 33 --n-tokens 1_280 --batch 128 --out wide");
    assert!(wide.status.code() == Some(2) && String::from_utf8_lossy(&wide.stderr).contains("set it to 32"));
    // Other shards have no such figures, and a requirement on them says why.
    let plain = lapidary(dir, "score --dictionary run --shards shards --require ce_loss_score>0");
    assert_eq!(plain.status.code(), Some(2));
}

#[test]
fn refusals_name_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    for (line, remedy) in [
        ("ingest --from planted:zipf --out s", "--n-tokens"),
        ("ingest --from planted:zipf --n-tokens 0 --out s", "how many"),
        ("ingest --from planted:zipff --n-tokens 9 --out s", "zipf, hierarchy"),
        ("ingest --from planted:tree --set zzz=1 --n-tokens 9 --out s", "zzz"),
        ("ingest --from planted:tree --tensor x --n-tokens 9 --out s", "--tensor"),
        ("ingest --from planted:none.toml --n-tokens 9 --out s", "none.toml"),
        ("ingest --from planted:tree --n-tokens 9 --held-out-last 10 --out s", "hold out fewer"),
        ("ingest --from x.npy --hook h --n-tokens 9 --out s", "planted:KIND"),
        ("ingest --from x.npy --out s", "--hook"),
    ] {
        let out = lapidary(dir.path(), line);
        let message = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(2) && message.contains(remedy), "{line}: {message}");
        assert!(!dir.path().join("s").exists(), "{line} left a folder");
    }
}
