//! What goes wrong in practice, met through the binary: each ends in code 2 or 3 with a sentence and a remedy, and leaves nothing that
//! looks whole. (Requests that are merely wrong are in `cli.rs`; a hub that misbehaves is in `hub.rs`.)

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lapidary::rng::Rng;
use serde_json::{json, Value};

const HOOK: &str = "blocks.1.hook_resid_post";

fn lapidary(dir: &Path, line: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lapidary")).args(line).env("HF_HUB_OFFLINE", "1").current_dir(dir).output().unwrap()
}

fn done(dir: &Path, line: &[&str]) {
    let out = lapidary(dir, line);
    assert!(out.status.success(), "{line:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// The run must end in `code`, say `says` and a remedy on stderr, and print no result.
fn refused(dir: &Path, line: &[&str], code: i32, says: &str) {
    let out = lapidary(dir, line);
    let message = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "{line:?}: {message}");
    assert!(out.stdout.is_empty(), "{line:?} printed a result");
    assert!(message.contains(says), "{line:?} does not say `{says}`: {message}");
    assert!(message.contains("error: ") && message.contains("help: "), "{line:?}: {message}");
    assert!(!message.contains("panicked"), "{message}");
}

/// Nothing in `dir/out` may pass for a finished artefact.
fn nothing_whole(dir: &Path, out: &str) {
    for name in ["manifest.json", "dictionary.json", "score.json", "codes.json"] {
        assert!(!dir.join(out).join(name).exists(), "{out}/{name} is there");
    }
}

fn shards(dir: &Path, out: &str, seed: &str) {
    let corpus = format!("corpus.seed={seed}");
    let line =
        ["harvest", "--model", "fable", "--corpus", "fable", "--hook", HOOK, "--n-tokens", "3000", "--held-out", "0.2", "--set", &corpus];
    done(dir, &[&line[..], &["--out", out]].concat());
}

const TRAIN: [&str; 9] = ["train", "--d-sae", "64", "--k", "4", "--batch", "250", "--n-tokens", "5000"];

fn train<'a>(shards: &'a str, out: &'a str) -> Vec<&'a str> {
    [&TRAIN[..], &["--shards", shards, "--out", out]].concat()
}

/// A model folder of this repository, copied so that it can be spoilt.
fn model(dir: &Path, name: &str) -> PathBuf {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/hosts").join(name);
    let to = dir.join(name);
    fs::create_dir_all(&to).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(from.join(file), to.join(file)).unwrap();
    }
    to
}

fn set(model: &Path, key: &str, value: Value) {
    let path = model.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config[key] = value;
    fs::write(path, config.to_string()).unwrap();
}

/// A stream of token ids below `vocab`.
fn tokens(dir: &Path, name: &str, n: usize, vocab: u64) {
    let mut rng = Rng::stream(1, name, 0);
    let bytes: Vec<u8> = (0..n).flat_map(|_| (rng.below(vocab) as u16).to_le_bytes()).collect();
    fs::write(dir.join(name), bytes).unwrap();
}

#[test]
fn models_that_cannot_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    tokens(dir, "ids.u16", 2000, 37);
    let harvest = |model: &str, code: i32, says: &str| {
        let line = ["harvest", "--model", model, "--corpus", "ids.u16", "--hook", HOOK, "--context", "16", "--out", "x"];
        refused(dir, &line, code, says);
        nothing_whole(dir, "x");
    };
    let path = model(dir, "llama-bias").join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 100]).unwrap();
    harvest("llama-bias", 3, "truncated");
    fs::write(&path, &whole[..5]).unwrap();
    harvest("llama-bias", 3, "5 bytes");
    // A header that claims nearly all of memory, and one that points outside the file.
    fs::write(&path, [&(u64::MAX - 7).to_le_bytes(), &whole[8..]].concat()).unwrap();
    harvest("llama-bias", 3, "header");
    let text = String::from_utf8_lossy(&whole[8..]).replacen("\"data_offsets\":[0,", "\"data_offsets\":[9223372036854775807,", 1);
    fs::write(&path, [&whole[..8], text.as_bytes()].concat()).unwrap();
    harvest("llama-bias", 3, "model.safetensors");
    fs::write(&path, "<html>404</html>").unwrap();
    harvest("llama-bias", 3, "error page");
    fs::remove_file(&path).unwrap();
    harvest("llama-bias", 2, "model.safetensors");

    let other = model(dir, "qwen3");
    fs::write(other.join("config.json"), "{\"model_type\": ").unwrap();
    harvest("qwen3", 3, "not valid JSON");
    fs::remove_file(other.join("config.json")).unwrap();
    harvest("qwen3", 2, "config.json");
    let other = model(dir, "gemma2");
    set(&other, "model_type", json!("mamba2"));
    harvest("gemma2", 2, "gpt2, gpt_neox, llama, mistral, qwen2, qwen3, gemma, gemma2");
    set(&other, "model_type", json!("gemma2"));
    set(&other, "hidden_size", json!(24));
    harvest("gemma2", 3, "config.json asks for");
    // Text needs a tokenizer.
    model(dir, "mistral-full");
    fs::write(dir.join("text.txt"), "Some words.").unwrap();
    let line = ["harvest", "--model", "mistral-full", "--corpus", "text.txt", "--hook", HOOK, "--out", "x"];
    refused(dir, &line, 2, "tokenizer.json");
    // A hook point of another architecture: parallel blocks have no middle.
    model(dir, "gpt-neox-odd");
    let line = ["harvest", "--model", "gpt-neox-odd", "--corpus", "ids.u16", "--hook", "blocks.0.hook_resid_mid", "--out", "x"];
    refused(dir, &line, 2, "hook_resid_pre");
    nothing_whole(dir, "x");
}

#[test]
fn corpora_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    model(dir, "olmo2");
    let harvest = |model: &str, corpus: &str, code: i32, says: &str| {
        let line = ["harvest", "--model", model, "--corpus", corpus, "--hook", HOOK, "--context", "16", "--out", "x"];
        refused(dir, &line, code, says);
        nothing_whole(dir, "x");
    };
    fs::write(dir.join("empty.txt"), "").unwrap();
    harvest("fable", "empty.txt", 2, "empty.txt");
    fs::write(dir.join("blank.txt"), "  \n<|endoftext|>\n").unwrap();
    harvest("fable", "blank.txt", 2, "corpus");
    fs::create_dir(dir.join("folder")).unwrap();
    harvest("fable", "folder", 2, "folder");
    fs::write(dir.join("folder/notes.pdf"), "%PDF").unwrap();
    harvest("fable", "folder", 2, "folder");
    harvest("fable", "nothing-*.txt", 2, "nothing-*.txt");
    fs::write(dir.join("latin.txt"), b"the caf\xe9 is open").unwrap();
    harvest("fable", "latin.txt", 3, "UTF-8");
    fs::write(dir.join("broken.jsonl"), "{\"text\": \"a\"}\n{\"text\": \n").unwrap();
    harvest("fable", "broken.jsonl", 3, "line 2");
    fs::write(dir.join("other.jsonl"), "{\"content\": \"a\"}\n").unwrap();
    harvest("fable", "other.jsonl", 3, "content");
    fs::write(dir.join("broken.parquet"), "PAR1 nothing PAR1").unwrap();
    harvest("fable", "broken.parquet", 3, "broken.parquet");
    // Token ids: a half one, one that the model has no embedding for, none.
    tokens(dir, "ids.u16", 500, 37);
    let mut ids = fs::read(dir.join("ids.u16")).unwrap();
    ids.pop();
    fs::write(dir.join("odd.u16"), &ids).unwrap();
    harvest("olmo2", "odd.u16", 3, "odd.u16");
    ids.push(9);
    fs::write(dir.join("large.u16"), &ids).unwrap();
    harvest("olmo2", "large.u16", 2, "ids below 37");
    fs::write(dir.join("none.u16"), "").unwrap();
    harvest("olmo2", "none.u16", 2, "none.u16");
}

#[test]
fn a_flipped_byte_in_a_shard_is_found_or_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    shards(dir, "shards", "0");
    done(dir, &train("shards", "good"));
    let good = fs::read(dir.join("good/dictionary.safetensors")).unwrap();
    let path = dir.join("shards/train-00000.parquet");
    let whole = fs::read(&path).unwrap();
    let mut rng = Rng::stream(3, "flips", 0);
    let mut found = 0;
    // Anywhere, and more often where the footer says how to read the rest.
    for i in 0..24 {
        let n = whole.len() as u64;
        let at = (if i % 2 == 0 { rng.below(n) } else { n - 1 - rng.below(3000) }) as usize;
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << rng.below(8);
        fs::write(&path, bytes).unwrap();
        let out = lapidary(dir, &train("shards", "bad"));
        let message = String::from_utf8_lossy(&out.stderr);
        match out.status.code() {
            Some(0) => assert!(fs::read(dir.join("bad/dictionary.safetensors")).unwrap() == good, "byte {at} changed the result"),
            code => {
                assert_eq!(code, Some(3), "byte {at}: {message}");
                assert!(message.contains("train-00000.parquet") && message.contains("help: "), "byte {at}: {message}");
                assert!(!dir.join("bad/dictionary.json").exists());
                found += 1;
            }
        }
        fs::remove_dir_all(dir.join("bad")).ok();
        // Whatever it is, `inspect --verify` hashes every byte.
        refused(dir, &["inspect", "shards", "--verify"], 3, "train-00000.parquet");
    }
    assert!(found >= 12, "{found}");
    fs::write(&path, &whole[..whole.len() - 30]).unwrap();
    refused(dir, &train("shards", "x"), 3, "train-00000.parquet");
    fs::remove_file(&path).unwrap();
    refused(dir, &train("shards", "x"), 2, "train-00000.parquet");
    fs::remove_file(dir.join("shards/manifest.json")).unwrap();
    refused(dir, &train("shards", "x"), 2, "manifest.json");
    nothing_whole(dir, "x");
}

#[test]
fn artefacts_that_do_not_belong_together() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    shards(dir, "one", "0");
    shards(dir, "two", "1");
    done(dir, &train("one", "dictionary"));
    // A shard of another harvest in the folder.
    let own = fs::read(dir.join("two/train-00000.parquet")).unwrap();
    fs::copy(dir.join("one/train-00000.parquet"), dir.join("two/train-00000.parquet")).unwrap();
    refused(dir, &train("two", "x"), 3, "train-00000.parquet");
    fs::write(dir.join("two/train-00000.parquet"), own).unwrap();
    // Vectors of another width.
    let rows: Vec<u8> = (0..400 * 6).flat_map(|i| (i as f32).sin().to_le_bytes()).collect();
    let header = format!("{{\"x\":{{\"dtype\":\"F32\",\"shape\":[400,6],\"data_offsets\":[0,{}]}}}}", rows.len());
    let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &rows].concat();
    fs::write(dir.join("six.safetensors"), file).unwrap();
    done(dir, &["ingest", "--from", "six.safetensors", "--tensor", "x", "--hook", HOOK, "--held-out-last", "100", "--out", "six"]);
    refused(dir, &["score", "--dictionary", "dictionary", "--shards", "six"], 2, "wide");
    refused(dir, &["encode", "--dictionary", "dictionary", "--shards", "six", "--out", "x"], 2, "wide");
    // A dictionary of a later version, one without its weights, one whose numbers are none.
    let json_path = dir.join("dictionary/dictionary.json");
    let text = fs::read_to_string(&json_path).unwrap();
    let mut value: Value = serde_json::from_str(&text).unwrap();
    value["version"] = json!(99);
    fs::write(&json_path, value.to_string()).unwrap();
    refused(dir, &["score", "--dictionary", "dictionary", "--shards", "one"], 3, "version is 99");
    fs::write(&json_path, &text[..text.len() / 2]).unwrap();
    refused(dir, &["score", "--dictionary", "dictionary", "--shards", "one"], 3, "dictionary.json");
    fs::write(&json_path, &text).unwrap();
    fs::remove_file(dir.join("dictionary/dictionary.safetensors")).unwrap();
    refused(dir, &["score", "--dictionary", "dictionary", "--shards", "one"], 2, "dictionary.safetensors");
    // A folder in use stays as it is.
    let before = fs::read(dir.join("one/manifest.json")).unwrap();
    let line = ["harvest", "--model", "fable", "--corpus", "fable", "--hook", HOOK, "--n-tokens", "100", "--out", "one"];
    refused(dir, &line, 2, "not empty");
    assert_eq!(fs::read(dir.join("one/manifest.json")).unwrap(), before);
    nothing_whole(dir, "x");
}

#[test]
fn numbers_that_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let write = |name: &str, spoil: &dyn Fn(usize) -> Option<f32>| {
        let rows: Vec<u8> = (0..600 * 8).flat_map(|i| spoil(i).unwrap_or((i as f32 * 0.37).sin()).to_le_bytes()).collect();
        let header = format!("{{\"x\":{{\"dtype\":\"F32\",\"shape\":[600,8],\"data_offsets\":[0,{}]}}}}", rows.len());
        fs::write(dir.join(name), [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &rows].concat()).unwrap();
    };
    write("nan.safetensors", &|i| (i == 123 * 8 + 5).then_some(f32::NAN));
    refused(dir, &["ingest", "--from", "nan.safetensors", "--tensor", "x", "--hook", "v", "--out", "x"], 3, "123");
    write("inf.safetensors", &|i| (i == 7).then_some(f32::INFINITY));
    refused(dir, &["ingest", "--from", "inf.safetensors", "--tensor", "x", "--hook", "v", "--out", "x"], 3, "infinite");
    // All the same: no scale to train in.
    write("zero.safetensors", &|_| Some(0.0));
    done(dir, &["ingest", "--from", "zero.safetensors", "--tensor", "x", "--hook", "v", "--held-out-last", "100", "--out", "zero"]);
    refused(dir, &["train", "--shards", "zero", "--d-sae", "16", "--k", "2", "--batch", "50", "--out", "x"], 2, "zero");
    // A host whose weights hold a NaN.
    let host = model(dir, "starcoder2");
    let path = host.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let n = bytes.len();
    bytes[n - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    tokens(dir, "ids.u16", 500, 37);
    let last = "ln_final.hook_normalized";
    refused(dir, &["harvest", "--model", "starcoder2", "--corpus", "ids.u16", "--hook", last, "--context", "16", "--out", "x"], 3, "NaN");
    nothing_whole(dir, "x");
}

/// A limit on the size of files makes writes fail as a full disk does: in the middle, wherever that is.
#[cfg(unix)]
#[test]
fn writes_that_fail_leave_nothing_whole_and_can_be_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let limited = |blocks: u32, line: &[&str]| {
        // The signal that would end the process is ignored across exec; then the write itself fails.
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
        Command::new("sh").args(["-c", &script, env!("CARGO_BIN_EXE_lapidary")]).args(line).current_dir(dir).output().unwrap()
    };
    let fails = |blocks: u32, line: &[&str]| {
        let out = limited(blocks, line);
        let message = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(3), "{line:?} with {blocks} blocks: {message}");
        assert!(message.contains("cannot write") && message.contains("help: "), "{line:?}: {message}");
    };
    let base = ["harvest", "--model", "fable", "--corpus", "fable", "--hook", HOOK, "--n-tokens", "6000", "--held-out", "0.2"];
    let small = ["--set", "harvest.shard_rows=2000", "--batch-tokens", "256"];
    let harvest = |out: &'static str, more: &[&'static str]| [&base[..], &small, &["--out", out], more].concat();
    done(dir, &harvest("good", &[]));
    let files: Vec<String> = fs::read_dir(dir.join("good")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    let files: Vec<&String> = files.iter().filter(|f| f.starts_with("train-") || f.starts_with("held-out-")).collect();
    assert!(files.len() >= 4, "{files:?}");
    // From one block of 512 bytes up to most of a shard.
    for blocks in [1, 20, 300] {
        fails(blocks, &harvest("bad", &[]));
        nothing_whole(dir, "bad");
        refused(dir, &train("bad", "x"), 2, "manifest.json");
        done(dir, &harvest("bad", &["--resume"]));
        for file in files.iter().map(|f| f.as_str()).chain(["manifest.json"]) {
            assert!(fs::read(dir.join("bad").join(file)).unwrap() == fs::read(dir.join("good").join(file)).unwrap(), "{file}");
        }
        fs::remove_dir_all(dir.join("bad")).unwrap();
    }
    done(dir, &train("good", "dictionary"));
    for blocks in [1, 40] {
        fails(blocks, &train("good", "half"));
        nothing_whole(dir, "half");
        refused(dir, &["score", "--dictionary", "half", "--shards", "good"], 2, "dictionary.json");
        done(dir, &[&train("good", "half")[..], &["--resume"]].concat());
        for file in ["dictionary.safetensors", "log.jsonl", "log.parquet"] {
            let read = |run: &str| fs::read(dir.join(run).join(file)).unwrap();
            assert!(read("half") == read("dictionary"), "{file} after {blocks} blocks");
        }
        fs::remove_dir_all(dir.join("half")).unwrap();
    }
    fails(1, &["encode", "--dictionary", "dictionary", "--shards", "good", "--out", "codes"]);
    nothing_whole(dir, "codes");
    fs::create_dir(dir.join("scores")).unwrap();
    fails(1, &["score", "--dictionary", "dictionary", "--shards", "good", "--no-baselines", "--out", "scores"]);
    nothing_whole(dir, "scores");
    // Folders that cannot be written to at all.
    fs::write(dir.join("file"), "in the way").unwrap();
    let out = lapidary(dir, &train("good", "file/below"));
    assert_eq!(out.status.code(), Some(3), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(String::from_utf8_lossy(&out.stderr).contains("file/below"));
}
