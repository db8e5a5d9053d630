//! The binary as a person or a script meets it: the whole path on the built-in host, exit codes, JSON, refusals with a remedy.

use std::path::Path;
use std::process::{Command, Output};

fn lapidary(dir: &Path, line: &[&str]) -> Output {
    // A name that is no folder may be looked up on the hub: not from here.
    Command::new(env!("CARGO_BIN_EXE_lapidary")).args(line).env("HF_HUB_OFFLINE", "1").current_dir(dir).output().unwrap()
}

fn done(dir: &Path, line: &[&str]) -> String {
    let out = lapidary(dir, line);
    assert!(out.status.success(), "{line:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Exit code and the message on stderr; stdout must stay empty.
fn refused(dir: &Path, line: &[&str]) -> (i32, String) {
    let out = lapidary(dir, line);
    assert!(out.stdout.is_empty(), "{line:?} printed a result");
    (out.status.code().unwrap(), String::from_utf8(out.stderr).unwrap())
}

const HOOK: &str = "blocks.1.hook_resid_post";

fn harvest(dir: &Path, out: &str) {
    done(
        dir,
        &["harvest", "--model", "fable", "--corpus", "fable", "--hook", HOOK, "--n-tokens", "4_000", "--held-out", "0.2", "--out", out],
    );
}

fn train(dir: &Path, shards: &str, out: &str) {
    done(dir, &["train", "--shards", shards, "--d-sae", "128", "--k", "4,8", "--batch", "256", "--n-tokens", "8_000", "--out", out]);
}

#[test]
fn the_path_from_corpus_to_charts() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    harvest(dir, "shards");
    train(dir, "shards", "runs");
    let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();

    let shards = parse(&done(dir, &["inspect", "shards", "--json", "--verify"]));
    assert_eq!(shards["train_rows"].as_u64().unwrap() + shards["held_out_rows"].as_u64().unwrap(), 4000);
    assert_eq!(parse(&done(dir, &["inspect", "runs/k4-d128-s0", "--json"]))["activation"]["k"], 4);

    let score = parse(&done(dir, &["score", "--dictionary", "runs/k8-d128-s0", "--shards", "shards", "--model", "fable", "--json"]));
    assert_eq!(score["split"], "held-out");
    assert!(score["metrics"]["fvu"].as_f64().unwrap() < score["baselines"]["random"]["fvu"].as_f64().unwrap());
    assert!(score["metrics"]["ce_loss_score"].as_f64().unwrap() <= 1.0);
    done(dir, &["score", "--dictionary", "runs/k4-d128-s0", "--shards", "shards", "--no-baselines"]);

    let codes = parse(&done(dir, &["encode", "--dictionary", "runs/k8-d128-s0", "--shards", "shards", "--out", "codes", "--json"]));
    assert_eq!(codes["rows"], 4000);
    let omp = ["encode", "--dictionary", "runs/k8-d128-s0", "--shards", "shards", "--activation", "omp:3", "--out", "omp", "--json"];
    assert!(parse(&done(dir, &omp))["l0"].as_f64().unwrap() <= 3.0);
    let info = parse(&std::fs::read_to_string(dir.join("omp/codes.json")).unwrap());
    assert_eq!((&info["activation"]["kind"], &info["activation"]["steps"]), (&"orthogonal_pursuit".into(), &3.into()));
    let plots = parse(&done(dir, &["plot", "--from", "runs", "--out", "plots", "--json"]));
    let files = plots["files"].as_array().unwrap();
    assert_eq!(files.len(), 8, "four charts as SVG and PNG");
    assert!(files.iter().all(|f| dir.join(f.as_str().unwrap()).metadata().unwrap().len() > 1000));

    let slice = ["plot", "--from", "runs/k4-d128-s0", "--chart", "slice", "--plane", "latents:1,2", "--out", "plots", "--json"];
    let slice = parse(&done(dir, &slice));
    assert!(slice["slice"].as_str().unwrap().contains(" cells"), "{slice}");
    let pca = ["plot", "--from", "runs/k4-d128-s0", "--chart", "slice", "--plane", "pca", "--shards", "shards", "--out", "pca", "--json"];
    assert_eq!(parse(&done(dir, &pca))["files"].as_array().unwrap().len(), 2);

    // The run file beside a dictionary runs as it is, to the same bytes.
    done(dir, &["train", "--config", "runs/k4-d128-s0/config.toml", "--out", "again"]);
    let bytes = |folder: &str| std::fs::read(dir.join(folder).join("dictionary.safetensors")).unwrap();
    assert!(bytes("again") == bytes("runs/k4-d128-s0"));
    // How things are computed is no part of a run, and changes no byte of it.
    let again = ["train", "--config", "runs/k4-d128-s0/config.toml", "--set", "kernels.screen=int8", "--out", "again"];
    done(dir, &[&again[..], &["--resume"]].concat());
    done(dir, &[&again[..], &["--overwrite"]].concat());
    assert!(bytes("again") == bytes("runs/k4-d128-s0"));
    assert_eq!(codes["counts"]["rows"], 4000);
    for screen in ["off", "bf16", "int8"] {
        let set = format!("kernels.screen={screen}");
        done(dir, &["encode", "--dictionary", "runs/k8-d128-s0", "--shards", "shards", "--out", screen, "--set", &set]);
        let file = |folder: &str| std::fs::read(dir.join(folder).join("codes.parquet")).unwrap();
        assert!(file(screen) == file("codes"), "{screen} changes codes");
    }

    // Requirements: 0 when they hold, 1 (after the report) when not, 2 when they make no sense.
    let with = |r: &str| lapidary(dir, &["score", "--dictionary", "again", "--shards", "shards", "--no-baselines", "--require", r]);
    assert_eq!(with("fvu<5").status.code(), Some(0));
    let missed = with("fvu<0");
    assert_eq!(missed.status.code(), Some(1));
    assert!(!missed.stdout.is_empty() && String::from_utf8_lossy(&missed.stderr).contains("fvu"));
    assert_eq!(with("beauty<1").status.code(), Some(2));
}

#[test]
fn a_dictionary_straight_from_a_host() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let base = ["train", "--model", "fable", "--corpus", "fable", "--hook", HOOK, "--d-sae", "96", "--batch", "256", "--n-tokens", "6_000"];
    let with = |extra: &[&'static str]| base.iter().chain(extra).copied().collect::<Vec<_>>();
    let read = |folder: &str, file: &str| std::fs::read(dir.join(folder).join(file)).unwrap();
    let same = |a: &str, b: &str| {
        let files = ["dictionary.json", "dictionary.safetensors", "log.jsonl", "log.parquet", "config.toml"];
        assert!(files.iter().all(|f| read(a, f) == read(b, f)), "{a} and {b} differ");
    };
    let json = done(dir, &with(&["--k", "4,8", "--held-out", "0.2", "--context", "64", "--out", "runs", "--json", "--threads", "2"]));
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((report["members"].as_array().unwrap().len(), report["steps"].as_u64()), (2, Some(24)));
    assert!(report["forward"]["seconds"].as_f64().unwrap() > 0.0);
    // The run file beside a dictionary runs as it is; a run file with both sources leaves the choice to flags.
    done(dir, &["train", "--config", "runs/k8-d96-s0/config.toml", "--out", "again", "--threads", "1"]);
    same("again", "runs/k8-d96-s0");
    let told: serde_json::Value = serde_json::from_slice(&read("again", "dictionary.json")).unwrap();
    let stream = &told["provenance"]["stream"];
    assert_eq!(stream["config"]["harvest"]["context"], 64);
    assert_eq!(stream["counts"]["masked"]["special"], stream["counts"]["documents"]);
    assert_eq!(told["provenance"]["host"]["name"], "fable");
    // The same split of the same corpus: rows that were never trained on.
    let shards = ["--held-out", "0.2", "--context", "64", "--n-tokens", "3000", "--out", "shards"];
    done(dir, &[&["harvest", "--model", "fable", "--corpus", "fable", "--hook", HOOK], &shards[..]].concat());
    let spliced = |extra: &[&'static str]| {
        let score = ["score", "--dictionary", "again", "--shards", "shards", "--no-baselines", "--model", "fable", "--json"];
        let text = done(dir, &[&score[..], extra].concat());
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["metrics"]["ce_loss_score"].as_f64().unwrap()
    };
    let score = spliced(&[]);
    assert!(score > 0.3, "{score}");
    assert!((score - spliced(&["--batch-tokens", "64"])).abs() < 1e-4, "how contexts share passes does not show");
    assert!((score - spliced(&["--dtype", "bf16"])).abs() > 0.0, "another precision does");
    done(dir, &with(&["--k", "4", "--dtype", "bf16", "--batch-tokens", "100", "--keep", "special,outlier", "--out", "bf16"]));
    let told: serde_json::Value = serde_json::from_slice(&read("bf16", "dictionary.json")).unwrap();
    assert_eq!(told["provenance"]["host"]["dtype"], "bf16");
    assert_eq!(told["provenance"]["stream"]["counts"]["masked"]["special"], 0);

    // Packed contexts, through every stage.
    done(dir, &with(&["--k", "8", "--pack", "--held-out", "0.2", "--out", "packed"]));
    let packed = ["--pack", "--held-out", "0.2", "--n-tokens", "3000", "--out", "packed-shards"];
    done(dir, &[&["harvest", "--model", "fable", "--corpus", "fable", "--hook", HOOK], &packed[..]].concat());
    let score = ["score", "--dictionary", "packed", "--shards", "packed-shards", "--no-baselines", "--model", "fable", "--json"];
    let score: serde_json::Value = serde_json::from_str(&done(dir, &score)).unwrap();
    assert!(score["metrics"]["ce_loss_score"].as_f64().unwrap() > 0.3, "{score}");

    std::fs::write(dir.join("both.toml"), "[shards]\ndir = \"shards\"\n[host]\nmodel = \"fable\"\n[corpus]\nsource = \"fable\"\n").unwrap();
    std::fs::write(dir.join("tiny.u16"), [1u8, 0, 20, 0, 21, 0]).unwrap();
    let cases: Vec<(Vec<&str>, &str)> = vec![
        (vec!["train", "--out", "x"], "--model"),
        (with(&["--shards", "shards", "--out", "x"]), "--shards, or --model"),
        (vec!["train", "--config", "both.toml", "--out", "x"], "--shards DIR"),
        (vec!["train", "--shards", "shards", "--context", "64", "--out", "x"], "--context"),
        (vec!["train", "--model", "fable", "--hook", HOOK, "--n-tokens", "9", "--out", "x"], "--corpus"),
        (vec!["train", "--corpus", "fable", "--hook", HOOK, "--n-tokens", "9", "--out", "x"], "--model"),
        (vec!["train", "--model", "fable", "--corpus", "fable", "--n-tokens", "9", "--out", "x"], HOOK),
        (vec!["train", "--model", "fable", "--corpus", "fable", "--hook", HOOK, "--out", "x"], "--n-tokens"),
        (with(&["--dtype", "f16", "--out", "x"]), "f32 or bf16"),
        (with(&["--batch-tokens", "0", "--out", "x"]), "2048"),
        (with(&["--k", "97", "--out", "x"]), "between 1 and 96"),
        (with(&["--k", "4", "--out", "again", "--resume"]), "another --out"),
        (
            vec![
                "train",
                "--model",
                "fable",
                "--corpus",
                "tiny.u16",
                "--held-out",
                "0.999",
                "--hook",
                HOOK,
                "--n-tokens",
                "9",
                "--out",
                "x",
            ],
            "held out",
        ),
    ];
    for (line, remedy) in cases {
        let (code, message) = refused(dir, &line);
        assert_eq!(code, 2, "{line:?}: {message}");
        assert!(message.contains("help:") && message.contains(remedy), "{line:?}: {message}");
    }
    assert!(!dir.join("x/dictionary.json").exists());
}

#[test]
fn threads_do_not_change_a_byte() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut all = Vec::new();
    for n in ["1", "2"] {
        let (shards, runs) = (format!("shards{n}"), format!("runs{n}"));
        done(
            dir,
            &["harvest", "--model", "fable", "--corpus", "fable", "--hook", HOOK, "--n-tokens", "3000", "--out", &shards, "--threads", n],
        );
        done(
            dir,
            &[
                "train",
                "--shards",
                &shards,
                "--d-sae",
                "96",
                "--k",
                "6",
                "--batch",
                "200",
                "--n-tokens",
                "5000",
                "--out",
                &runs,
                "--threads",
                n,
            ],
        );
        let read = |folder: &str, file: &str| std::fs::read(dir.join(folder).join(file)).unwrap();
        all.push([
            read(&shards, "manifest.json"),
            read(&shards, "train-00000.parquet"),
            read(&runs, "dictionary.safetensors"),
            read(&runs, "log.jsonl"),
        ]);
    }
    assert!(all[0] == all[1]);
}

#[test]
fn wrong_requests_end_in_code_2_with_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    harvest(dir, "shards");
    train(dir, "shards", "runs");
    let base = ["harvest", "--model", "fable", "--corpus", "fable", "--n-tokens", "100", "--out", "x"];
    let with = |extra: &[&'static str]| base.iter().chain(extra).copied().collect::<Vec<_>>();
    let cases: Vec<(Vec<&str>, &str)> = vec![
        (with(&["--hook", "blocks.9.hook_resid_post"]), "it has"),
        (with(&["--hook", "nonsense"]), "TransformerLens"),
        (with(&[]), "hook"),
        (with(&["--hook", HOOK, "--set", "harvest.contxt=9"]), "did you mean `context`"),
        (with(&["--hook", HOOK, "--context", "1000"]), "1 to 128"),
        (vec!["harvest", "--model", "nowhere", "--corpus", "fable", "--hook", HOOK, "--n-tokens", "9", "--out", "x"], "fable"),
        (vec!["harvest", "--model", "fable", "--corpus", "missing.txt", "--hook", HOOK, "--out", "x"], "missing.txt"),
        (vec!["train", "--shards", "shards", "--d-sae", "8", "--k", "9", "--out", "x"], "choose k between 1 and 8"),
        (vec!["train", "--shards", "shards", "--hook", "blocks.0.hook_resid_post", "--out", "x"], HOOK),
        (vec!["train", "--shards", "shards", "--arch", "mystery", "--out", "x"], "topk"),
        (vec!["train", "--shards", "shards", "--set", "kernels.screen=int9", "--out", "x"], "did you mean `int8`"),
        (vec!["encode", "--dictionary", "runs/k4-d128-s0", "--shards", "shards", "--set", "kernel.screen=off", "--out", "x"], "kernels"),
        (vec!["train", "--shards", "shards", "--set", "train.lr=-1", "--out", "x"], "positive rate"),
        (vec!["train", "--shards", "shards", "--arch", "mp", "--set", "sae.tied=false", "--out", "x"], "untied variant"),
        (vec!["score", "--dictionary", "runs/k4-d128-s0", "--shards", "shards", "--activation", "omp:4"], "--out DIR"),
        (vec!["encode", "--dictionary", "runs/k4-d128-s0", "--shards", "shards", "--activation", "op:4", "--out", "x"], "omp:8"),
        (vec!["train", "--shards", "shards", "--k", "4", "--out", "runs"], "--resume"),
        (vec!["train", "--shards", "shards", "--d-sae", "128", "--k", "5,6", "--seed", "0,0", "--out", "x"], "once"),
        (vec!["score", "--dictionary", "runs/k4-d128-s0", "--shards", "shards", "--device", "cuda"], "--device cpu"),
        (vec!["plot", "--from", "runs", "--chart", "pie", "--out", "x"], "training"),
        (vec!["plot", "--from", "runs", "--plane", "pca", "--out", "x"], "--chart slice"),
        (vec!["plot", "--from", "runs/k4-d128-s0", "--chart", "slice", "--plane", "latents:1,128", "--out", "x"], "below 128"),
        (vec!["inspect", "runs"], "dictionary.json"),
        (vec!["train", "--shards", "shards", "--batch", "1", "--out", "x"], "at least 2 rows"),
        (vec!["score", "--dictionary", "runs/k4-d128-s0", "--shards", "shards", "--model", "fable", "--corpus", "other.txt"], "same files"),
        (vec!["train", "--config", "runs/k4-d128-s0/config.toml", "--set", "shards.id=other", "--out", "x"], "what is there now"),
    ];
    std::fs::write(dir.join("other.txt"), "another text").unwrap();
    for (line, remedy) in cases {
        let (code, message) = refused(dir, &line);
        assert_eq!(code, 2, "{line:?}: {message}");
        assert!(message.contains("help:") && message.contains(remedy), "{line:?}: {message}");
    }
    assert!(!dir.join("x/manifest.json").exists() && !dir.join("x/dictionary.json").exists());
}

#[test]
fn damage_ends_in_code_3_and_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    harvest(dir, "shards");
    train(dir, "shards", "runs");
    let flip = |file: &str, at: usize| {
        let path = dir.join(file);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[at] ^= 0x40;
        std::fs::write(&path, bytes).unwrap();
    };
    flip("runs/k4-d128-s0/dictionary.safetensors", 5000);
    let (code, message) = refused(dir, &["score", "--dictionary", "runs/k4-d128-s0", "--shards", "shards"]);
    assert!(code == 3 && message.contains("dictionary.safetensors") && message.contains("help:"), "{code} {message}");
    flip("shards/train-00000.parquet", 20_000);
    let (code, message) = refused(dir, &["train", "--shards", "shards", "--d-sae", "64", "--k", "4", "--out", "y"]);
    assert!(code == 3 && message.contains("train-00000.parquet"), "{code} {message}");
}

#[test]
fn help_teaches_and_settings_round_trip() {
    let dir = tempfile::tempdir().unwrap();
    for verb in ["demo", "harvest", "ingest", "train", "encode", "score", "plot", "inspect", "config"] {
        let help = done(dir.path(), &[verb, "--help"]);
        assert!(help.contains("Example"), "`{verb} --help` shows no example");
    }
    let help = done(dir.path(), &["plot", "--help"]);
    assert!(lapidary::plot::ALL.iter().all(|c| help.contains(c.id()) && help.contains(c.title())), "{help}");
    std::fs::write(dir.path().join("run.toml"), done(dir.path(), &["config", "--set", "train.batch=77"])).unwrap();
    let again = done(dir.path(), &["config", "--config", "run.toml", "--json"]);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&again).unwrap()["train"]["batch"], 77);
}

#[test]
fn a_step_is_timed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let small = ["bench", "step", "--d", "16", "--d-sae", "64", "--k", "4", "--batch", "32", "--steps", "2"];
    let with = |extra: &[&'static str]| small.iter().chain(extra).copied().collect::<Vec<_>>();
    let report: serde_json::Value = serde_json::from_str(&done(dir, &with(&["--baselines", "--json", "--threads", "1"]))).unwrap();
    assert_eq!((&report["n"], &report["d"], &report["d_sae"], &report["k"]), (&32.into(), &16.into(), &64.into(), &4.into()));
    assert_eq!((&report["arch"], &report["threads"]), (&"topk".into(), &1.into()));
    let stages = report["stages"].as_array().unwrap();
    let names: Vec<&str> = stages.iter().map(|s| s["stage"].as_str().unwrap()).collect();
    assert_eq!(names, ["encode", "step", "auxk", "dense", "sorted"]);
    for stage in stages {
        let (median, min) = (stage["median_wall_ms"].as_f64().unwrap(), stage["min_wall_ms"].as_f64().unwrap());
        assert!(min > 0.0 && min <= median && stage["tokens_per_s"].as_f64().unwrap() > 0.0 && stage["samples"] == 2, "{stage}");
    }
    // Encoder, decoder and both biases, thrice: parameters and two moments.
    assert_eq!(report["memory"]["state_bytes"], 3 * 4 * (2 * 64 * 16 + 64 + 16));
    let text = done(dir, &with(&["--aux-dead", "0", "--arch", "mp"]));
    assert!(text.contains("encode") && !text.contains("auxk"), "{text}");

    let quality: serde_json::Value = serde_json::from_str(&done(dir, &with(&["--fvu-tokens", "6_400", "--lr", "3e-3", "--json"]))).unwrap();
    let fvu = quality["quality"]["fvu"].as_f64().unwrap();
    assert!(quality["quality"]["held_out_rows"] == 8192 && fvu > 0.0 && fvu < 1.0, "{quality}");

    assert_eq!(refused(dir, &with(&["--screen", "sieve"])).0, 2);
    assert_eq!(refused(dir, &with(&["--arch", "mp", "--baselines"])).0, 2);
    assert_eq!(refused(dir, &["bench", "step", "--from", "nowhere.npy"]).0, 2);
}
