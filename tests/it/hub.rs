//! The hub, against a stub of it: found, checked, pinned, retried, refused; nothing broken stays in the cache; the token stays home.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lapidary::corpus::{fable, Content, Corpus, CorpusConfig};
use lapidary::host::{self, LoadOptions, Origin};
use lapidary::hub::{DatasetSpec, FolderSpec, Hub, HubOptions, ModelSpec, Snapshot};
use lapidary::{Error, Progress, Result};

use crate::stub::{commit, sha256, Reply, Stub};

/// Remembers what it is told.
#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Progress for Heard {
    fn warn(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_string());
    }
}

fn options(stub: &Stub, cache: &Path) -> HubOptions {
    HubOptions {
        endpoint: stub.url.clone(),
        base_wait: Duration::from_millis(1),
        timeout: Duration::from_millis(500),
        ..HubOptions::new(cache)
    }
}

fn hub(stub: &Stub, cache: &Path) -> Hub {
    Hub::new(options(stub, cache), Arc::new(Heard::default())).unwrap()
}

fn fetch(hub: &Hub, id: &str) -> Result<Snapshot> {
    let snapshot = hub.model(&ModelSpec::parse(id)?)?;
    hub.weights(&snapshot)?;
    Ok(snapshot)
}

/// The built-in host's files.
fn tiny() -> Vec<(&'static str, Vec<u8>)> {
    let read = |name: &str| std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("datasets/fable").join(name)).unwrap();
    let names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    names.into_iter().map(|n| (n, read(n))).chain([("README.md", b"a model".to_vec())]).collect()
}

fn model_stub() -> Stub {
    let stub = Stub::start();
    stub.push("acme/tiny", "main", 1, &tiny());
    stub
}

/// Stories `from..to` as JSON lines.
fn stories(from: u64, to: u64) -> Vec<u8> {
    (from..to).flat_map(|i| format!("{}\n", serde_json::json!({ "text": fable::text(&fable::story(7, i)), "n": i })).into_bytes()).collect()
}

/// Every file of a cache that a reader would take for a model's or dataset's.
fn snapshots(cache: &Path) -> Vec<PathBuf> {
    let found = glob::glob(&cache.join("*/snapshots/*/**/*").to_string_lossy()).unwrap();
    found.map(|p| p.unwrap()).filter(|p| !p.is_dir()).collect()
}

#[test]
fn a_model_is_fetched_once_pinned_and_laid_out_as_python_does() {
    let (stub, dir) = (model_stub(), tempfile::tempdir().unwrap());
    let hub = hub(&stub, dir.path());
    let snapshot = fetch(&hub, "acme/tiny").unwrap();
    let root = dir.path().join("models--acme--tiny");
    assert_eq!(snapshot, Snapshot { id: "acme/tiny".into(), commit: commit(1), dir: root.join("snapshots").join(commit(1)) });
    assert_eq!(std::fs::read_to_string(root.join("refs/main")).unwrap(), commit(1));
    let weights = sha256(&tiny()[1].1);
    assert_eq!(std::fs::read(root.join("blobs").join(&weights)).unwrap(), tiny()[1].1);
    #[cfg(unix)]
    assert_eq!(std::fs::read_link(snapshot.dir.join("model.safetensors")).unwrap(), Path::new("../../blobs").join(&weights));
    assert!(!snapshot.dir.join("README.md").exists(), "only what a host needs");

    let origin = Origin { hub_id: snapshot.id.clone(), revision: snapshot.commit.clone() };
    let host = host::load_fetched(&snapshot.dir, origin.clone(), &LoadOptions::default()).unwrap();
    assert_eq!((host.info().name.as_str(), host.info().origin.as_ref()), ("acme/tiny", Some(&origin)));
    let json = serde_json::to_value(host.info()).unwrap();
    assert_eq!((&json["hub_id"], &json["revision"]), (&"acme/tiny".into(), &commit(1).into()));
    assert_eq!(serde_json::from_value::<host::HostInfo>(json).unwrap(), *host.info());

    // Once more: the revision is looked up, and that is all. At a commit: nothing is asked.
    stub.asked();
    fetch(&hub, "acme/tiny").unwrap();
    assert_eq!(stub.asked(), ["GET /api/models/acme/tiny/revision/main"]);
    fetch(&hub, &format!("acme/tiny@{}", commit(1))).unwrap();
    assert!(stub.asked().is_empty());

    // The branch moves: only what is new is fetched.
    let mut files = tiny();
    files[3].1.push(b'\n');
    stub.push("acme/tiny", "main", 2, &files);
    assert_eq!(fetch(&hub, "acme/tiny").unwrap().commit, commit(2));
    let got: Vec<String> = stub.asked().into_iter().filter(|a| a.starts_with("GET /acme")).collect();
    assert_eq!(got, [format!("GET /acme/tiny/resolve/{}/tokenizer_config.json", commit(2))]);
    assert_eq!(fetch(&hub, &format!("acme/tiny@{}", commit(1))).unwrap().commit, commit(1));
}

#[test]
fn a_server_that_only_serves_files_will_do() {
    let (stub, dir) = (model_stub(), tempfile::tempdir().unwrap());
    stub.state().api = false;
    let hub = hub(&stub, dir.path());
    let snapshot = fetch(&hub, "acme/tiny").unwrap();
    assert_eq!(snapshot.commit, commit(1));
    host::load_fetched(&snapshot.dir, Origin { hub_id: "a".into(), revision: "b".into() }, &LoadOptions::default()).unwrap();
    stub.asked();
    fetch(&hub, "acme/tiny").unwrap();
    assert!(!stub.asked().iter().any(|a| a.starts_with("GET /acme")));
}

#[test]
fn a_server_may_leave_out_etags_and_lengths_or_have_odd_ones() {
    for odd in [None, Some("\"../../a b\"")] {
        let (stub, dir) = (model_stub(), tempfile::tempdir().unwrap());
        stub.hook(move |request, mut reply| {
            if request.path.contains("/resolve/") {
                reply.headers.retain(|(n, _)| n != "ETag");
                if let Some(odd) = odd {
                    reply = reply.with("ETag", &format!("{}{odd}", request.path.len()));
                }
            }
            reply
        });
        let hub = hub(&stub, dir.path());
        for _ in 0..2 {
            let snapshot = fetch(&hub, "acme/tiny").unwrap();
            assert!(std::fs::read(snapshot.dir.join(WEIGHTS)).unwrap() == tiny()[1].1);
        }
    }
}

#[test]
fn sharded_weights_come_with_their_index_and_no_other() {
    let stub = Stub::start();
    let config = tiny().remove(0).1;
    let tensors = tiny().remove(1).1;
    let shard = |i: usize| format!("model-0000{i}-of-00002.safetensors");
    let index = serde_json::json!({ "weight_map": { "a": shard(1), "b": shard(2) } }).to_string().into_bytes();
    let files = [
        ("config.json", config.clone()),
        ("model.safetensors.index.json", index),
        ("model-00001-of-00002.safetensors", tensors.clone()),
        ("model-00002-of-00002.safetensors", tensors.clone()),
        ("pytorch_model.bin", b"pickle".to_vec()),
    ];
    stub.push("acme/big", "main", 1, &files);
    let hostile = serde_json::json!({ "weight_map": { "a": "../../../../outside.safetensors" } }).to_string().into_bytes();
    stub.push("acme/hostile", "main", 1, &[("config.json", config.clone()), ("model.safetensors.index.json", hostile)]);
    stub.push("acme/old", "main", 1, &[("config.json", config), ("pytorch_model.bin", b"pickle".to_vec())]);
    for api in [true, false] {
        stub.state().api = api;
        let dir = tempfile::tempdir().unwrap();
        let hub = hub(&stub, dir.path());
        let snapshot = fetch(&hub, "acme/big").unwrap();
        assert!((1..=2).all(|i| snapshot.dir.join(shard(i)).is_file()) && !snapshot.dir.join("pytorch_model.bin").exists());
        let e = fetch(&hub, "acme/hostile").unwrap_err().to_string();
        assert!(e.contains("outside.safetensors") && e.contains("no file of the repository"), "{e}");
        let e = fetch(&hub, "acme/old").unwrap_err();
        assert!(e.exit_code() == 2 && e.to_string().contains("save_pretrained"), "{e}");
    }
}

/// A way to misbehave: how often the hook does it, the exit code, and what the message says.
struct Bad {
    name: &'static str,
    code: u8,
    says: &'static [&'static str],
    reply: fn(&str, Reply) -> Reply,
}

const WEIGHTS: &str = "model.safetensors";

fn bad_replies() -> Vec<Bad> {
    fn on_get(request: &str, reply: Reply, bad: fn(Reply) -> Reply) -> Reply {
        if request.starts_with("GET") && request.ends_with(WEIGHTS) {
            bad(reply)
        } else {
            reply
        }
    }
    vec![
        Bad {
            name: "404",
            code: 2,
            says: &["acme/tiny", "not found", "/api/models/acme/tiny/revision/main"],
            reply: |_, _| Reply::status(404),
        },
        Bad { name: "401", code: 2, says: &["acme/tiny", "licence", "HF_TOKEN", "http://"], reply: |_, _| Reply::status(401) },
        Bad {
            name: "gated",
            code: 2,
            says: &["config.json", "licence", "HF_TOKEN", "awaiting review"],
            reply: |request, reply| match request.contains("/resolve/") {
                true => Reply::status(403).with("X-Error-Code", "GatedRepo").with("X-Error-Message", "awaiting review"),
                false => reply,
            },
        },
        Bad { name: "500", code: 3, says: &["500", "http://", "attempts"], reply: |_, _| Reply::status(500) },
        Bad {
            name: "short",
            code: 3,
            says: &["model.safetensors", "broke off after 100 of"],
            reply: |request, reply| on_get(request, reply, |r| Reply { cut: Some(100), ..r }),
        },
        Bad {
            name: "garbage of the right length",
            code: 3,
            says: &["model.safetensors", "SHA-256"],
            reply: |request, reply| on_get(request, reply, |r| Reply { body: vec![b'x'; r.body.len()], ..r }),
        },
        Bad {
            name: "garbage without a hash",
            code: 3,
            says: &["model.safetensors", "no safetensors"],
            reply: |request, reply| {
                let reply = if request.ends_with(WEIGHTS) { reply.with("ETag", "\"abc\"") } else { reply };
                on_get(request, reply, |r| Reply { body: vec![b'x'; r.body.len()], ..r })
            },
        },
        Bad {
            name: "an HTML page",
            code: 3,
            says: &["model.safetensors", "bytes were announced"],
            reply: |request, reply| on_get(request, reply, |r| r.with("Content-Type", "text/html").body("<html>try again later</html>")),
        },
        Bad {
            name: "found by HEAD alone",
            code: 3,
            says: &["model.safetensors", "HEAD found it, GET did not", "404"],
            reply: |request, reply| on_get(request, reply, |_| Reply::status(404).body("Entry not found")),
        },
        Bad {
            name: "silence",
            code: 3,
            says: &["model.safetensors", "attempts"],
            reply: |request, reply| on_get(request, reply, |r| Reply { pause: Duration::from_millis(900), ..r }),
        },
        Bad {
            name: "JSON that is none",
            code: 3,
            says: &["config.json", "no JSON"],
            reply: |request, reply| match request.starts_with("GET") && request.ends_with("/config.json") {
                true => Reply { body: vec![b'<'; reply.body.len()], ..reply },
                false => reply,
            },
        },
        Bad {
            name: "a redirect in a circle",
            code: 3,
            says: &["redirects"],
            reply: |request, reply| match request.ends_with("config.json") {
                true => Reply::status(302).with("Location", "?config.json"),
                false => reply,
            },
        },
    ]
}

#[test]
fn every_bad_reply_ends_in_its_code_and_leaves_a_cache_that_works() {
    for bad in bad_replies() {
        let (stub, dir) = (model_stub(), tempfile::tempdir().unwrap());
        let reply = bad.reply;
        stub.hook(move |request, good| reply(&format!("{} {}", request.method, request.path), good));
        let retries = if bad.name == "silence" { 1 } else { 3 };
        let hub = Hub::new(HubOptions { retries, ..options(&stub, dir.path()) }, Arc::new(Heard::default())).unwrap();
        let error = fetch(&hub, "acme/tiny").unwrap_err();
        let text = error.to_string();
        assert_eq!(error.exit_code(), bad.code, "{}: {text}", bad.name);
        assert!(text.contains("help:") && bad.says.iter().all(|s| text.contains(s)), "{}: {text}", bad.name);
        for path in snapshots(dir.path()) {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let good = tiny().into_iter().find(|(n, _)| *n == name).unwrap().1;
            assert!(std::fs::read(&path).unwrap() == good, "{}: {name} is broken and has its name", bad.name);
        }
        stub.behave();
        let snapshot = fetch(&hub, "acme/tiny").unwrap();
        assert!(std::fs::read(snapshot.dir.join(WEIGHTS)).unwrap() == tiny()[1].1, "{}", bad.name);
        let left = glob::glob(&dir.path().join("*/blobs/*.incomplete").to_string_lossy()).unwrap().count();
        assert_eq!(left, 0, "{}", bad.name);
    }
}

#[test]
fn a_bad_body_is_asked_for_once_more() {
    let (stub, dir) = (model_stub(), tempfile::tempdir().unwrap());
    let mut first = true;
    stub.hook(move |request, reply| match request.is("GET", WEIGHTS) && std::mem::take(&mut first) {
        true => Reply { body: vec![b'x'; reply.body.len()], ..reply },
        false => reply,
    });
    fetch(&hub(&stub, dir.path()), "acme/tiny").unwrap();
    assert_eq!(stub.asked().iter().filter(|a| a.starts_with("GET") && a.ends_with(WEIGHTS)).count(), 2);
}

#[test]
fn busy_servers_are_waited_for_and_the_waits_are_told() {
    let (stub, dir) = (model_stub(), tempfile::tempdir().unwrap());
    let mut left = [429, 503, 500].into_iter();
    stub.hook(move |request, reply| match request.path.contains("/resolve/").then(|| left.next()).flatten() {
        Some(429) => Reply::status(429).with("Retry-After", "1"),
        Some(status) => Reply::status(status),
        None => reply,
    });
    let heard = Arc::new(Heard::default());
    let hub = Hub::new(options(&stub, dir.path()), heard.clone()).unwrap();
    let started = Instant::now();
    fetch(&hub, "acme/tiny").unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1), "Retry-After was not honoured");
    let heard = heard.0.lock().unwrap();
    assert!(heard.len() == 3 && heard[0].contains("429") && heard[0].contains("trying again in 1.0 s"), "{heard:?}");
}

#[test]
fn a_wait_can_be_interrupted_and_an_endless_one_is_refused() {
    struct Stop;
    impl Progress for Stop {
        fn warn(&self, _: &str) {
            STOPPED.store(true, std::sync::atomic::Ordering::Relaxed);
        }
        fn is_cancelled(&self) -> bool {
            STOPPED.load(std::sync::atomic::Ordering::Relaxed)
        }
    }
    static STOPPED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
    let (stub, dir) = (model_stub(), tempfile::tempdir().unwrap());
    stub.hook(|_, _| Reply::status(429).with("Retry-After", "300"));
    let hub = Hub::new(options(&stub, dir.path()), Arc::new(Stop)).unwrap();
    assert!(matches!(fetch(&hub, "acme/tiny"), Err(Error::Cancelled { .. })));
    stub.hook(|_, _| Reply::status(429).with("Retry-After", "86400"));
    let hub = Hub::new(options(&stub, dir.path()), Arc::new(Heard::default())).unwrap();
    assert!(fetch(&hub, "acme/tiny").unwrap_err().to_string().contains("asks to wait 86400 s"));
}

#[test]
fn the_token_goes_to_the_endpoint_and_nowhere_else() {
    let (stub, other, dir) = (model_stub(), model_stub(), tempfile::tempdir().unwrap());
    let elsewhere = other.url.clone();
    stub.hook(move |request, reply| match request.path.contains("/resolve/") {
        // As for large files: the hub says all about it and sends the client to where it lies.
        true if request.path.ends_with(WEIGHTS) => Reply::status(302)
            .with("Location", &format!("{elsewhere}{}", request.path))
            .with("X-Linked-ETag", &format!("\"{}\"", sha256(&reply.body)))
            .with("X-Linked-Size", &reply.body.len().to_string())
            .with("X-Repo-Commit", &commit(1)),
        // As for renamed repositories: a relative redirect to another path of the hub.
        true if !request.path.starts_with("/moved") => Reply::status(307).with("Location", &format!("/moved{}", request.path)),
        true => reply.status_ok(request.path.rsplit('/').next().unwrap()),
        false => reply,
    });
    let heard = Arc::new(Heard::default());
    let hub = Hub::new(HubOptions { token: Some("hf_secret".into()), ..options(&stub, dir.path()) }, heard).unwrap();
    let snapshot = fetch(&hub, "acme/tiny").unwrap();
    assert!(std::fs::read(snapshot.dir.join(WEIGHTS)).unwrap() == tiny()[1].1);
    let sent = |stub: &Stub| stub.state().log.iter().map(|r| r.headers.get("authorization").cloned()).collect::<Vec<_>>();
    assert!(sent(&stub).iter().all(|a| a.as_deref() == Some("Bearer hf_secret")), "{:?}", sent(&stub));
    assert!(!sent(&other).is_empty() && sent(&other).iter().all(Option::is_none), "{:?}", sent(&other));
    for file in glob::glob(&dir.path().join("**/*").to_string_lossy()).unwrap().flatten().filter(|p| p.is_file()) {
        let bytes = std::fs::read(&file).unwrap();
        assert!(!bytes.windows(9).any(|w| w == b"hf_secret"), "{}", file.display());
    }
}

trait StatusOk {
    fn status_ok(self, name: &str) -> Reply;
}

impl StatusOk for Reply {
    /// The model's file of that name.
    fn status_ok(self, name: &str) -> Reply {
        let bytes = tiny().into_iter().find(|(n, _)| *n == name).unwrap().1;
        Reply::status(200).with("ETag", &format!("\"{}\"", &sha256(&bytes)[..40])).with("X-Repo-Commit", &commit(1)).body(bytes)
    }
}

#[test]
fn a_damaged_cache_is_found_and_mended() {
    let (stub, dir) = (model_stub(), tempfile::tempdir().unwrap());
    let hub = hub(&stub, dir.path());
    let snapshot = fetch(&hub, "acme/tiny").unwrap();
    let weights = snapshot.dir.join(WEIGHTS).canonicalize().unwrap();
    let good = std::fs::read(&weights).unwrap();
    let mut scrambled = good.clone();
    scrambled[..64].fill(b'x');
    for damage in [&good[..good.len() - 1], &scrambled, b"<html>"] {
        std::fs::write(&weights, damage).unwrap();
        // An earlier commit's list is not needed to notice it.
        for api in [true, false] {
            stub.state().api = api;
            fetch(&hub, "acme/tiny").unwrap();
            assert!(std::fs::read(snapshot.dir.join(WEIGHTS)).unwrap() == good);
        }
    }
    std::fs::write(&weights, b"short").unwrap();
    let offline = Hub::new(HubOptions { offline: true, ..options(&stub, dir.path()) }, Arc::new(Heard::default())).unwrap();
    let e = fetch(&offline, "acme/tiny").unwrap_err().to_string();
    assert!(e.contains("model.safetensors") && e.contains("HF_HUB_OFFLINE"), "{e}");
}

#[test]
fn a_download_that_broke_off_goes_on_where_the_server_can() {
    for ranges in [true, false] {
        let (stub, dir) = (model_stub(), tempfile::tempdir().unwrap());
        stub.state().ranges = ranges;
        // Each connection gives a quarter.
        let quarter = tiny()[1].1.len() / 4 + 1;
        stub.hook(move |request, reply| match request.is("GET", WEIGHTS) && ranges {
            true => Reply { cut: Some(quarter), ..reply },
            false => reply,
        });
        let hub = hub(&stub, dir.path());
        let blobs = dir.path().join("models--acme--tiny/blobs");
        if !ranges {
            std::fs::create_dir_all(&blobs).unwrap();
            std::fs::write(blobs.join(format!("{}.incomplete", sha256(&tiny()[1].1))), &tiny()[1].1[..1000]).unwrap();
        }
        let snapshot = fetch(&hub, "acme/tiny").unwrap();
        assert!(std::fs::read(snapshot.dir.join(WEIGHTS)).unwrap() == tiny()[1].1);
        let from: Vec<Option<String>> =
            stub.state().log.iter().filter(|r| r.is("GET", WEIGHTS)).map(|r| r.headers.get("range").cloned()).collect();
        if ranges {
            assert_eq!(from.len(), 4, "{from:?}");
            assert_eq!(from[1], Some(format!("bytes={quarter}-")));
        } else {
            assert_eq!(from, [Some("bytes=1000-".to_string())], "the server sent all of it");
        }
    }
    // What was left by something else is not continued into a whole.
    let (stub, dir) = (model_stub(), tempfile::tempdir().unwrap());
    stub.state().ranges = true;
    let blobs = dir.path().join("models--acme--tiny/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(blobs.join(format!("{}.incomplete", sha256(&tiny()[1].1))), b"something else").unwrap();
    let snapshot = fetch(&hub(&stub, dir.path()), "acme/tiny").unwrap();
    assert!(std::fs::read(snapshot.dir.join(WEIGHTS)).unwrap() == tiny()[1].1);
}

#[test]
fn two_at_once_fetch_each_file_once() {
    let (stub, dir) = (model_stub(), tempfile::tempdir().unwrap());
    stub.hook(|_, reply| Reply { pause: Duration::from_millis(20), ..reply });
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| fetch(&hub(&stub, dir.path()), "acme/tiny").unwrap());
        }
    });
    assert_eq!(stub.asked().iter().filter(|a| a.starts_with("GET /acme") && a.ends_with(WEIGHTS)).count(), 1);
}

#[test]
fn offline_the_cache_serves_or_says_what_it_lacks() {
    let (stub, dir) = (model_stub(), tempfile::tempdir().unwrap());
    stub.push("datasets/acme/stories", "main", 3, &[("a.jsonl", stories(0, 2)), ("b.jsonl", stories(2, 4))]);
    let offline = || Hub::new(HubOptions { offline: true, ..options(&stub, dir.path()) }, Arc::new(Heard::default())).unwrap();
    let e = fetch(&offline(), "acme/tiny").unwrap_err();
    assert!(e.exit_code() == 2 && e.to_string().contains("model acme/tiny at revision main is not in the cache"), "{e}");
    let config = CorpusConfig::new("hf:acme/stories");
    let online = hub(&stub, dir.path());
    let snapshot = fetch(&online, "acme/tiny").unwrap();
    let provenance = Corpus::open_from(&config, &online).unwrap().provenance().unwrap();
    Corpus::open_from(&config, &online).unwrap().documents().unwrap().next().unwrap().unwrap();
    stub.asked();
    assert_eq!(fetch(&offline(), "acme/tiny").unwrap(), snapshot);
    let corpus = Corpus::open_from(&config, &offline()).unwrap();
    assert_eq!(corpus.provenance().unwrap(), provenance, "the list is kept");
    let all: Vec<_> = corpus.documents().unwrap().collect();
    assert_eq!(all.iter().filter(|d| d.is_ok()).count(), 2);
    let e = all.into_iter().find_map(Result::err).unwrap().to_string();
    assert!(e.contains("b.jsonl of dataset acme/stories") && e.contains("HF_HUB_OFFLINE"), "{e}");
    assert!(stub.asked().is_empty(), "offline means offline");

    // A server that is gone is not the end either, where the cache knows the revision.
    let heard = Arc::new(Heard::default());
    let gone = HubOptions { endpoint: "http://127.0.0.1:1".into(), ..options(&stub, dir.path()) };
    let hub = Hub::new(gone, heard.clone()).unwrap();
    assert_eq!(fetch(&hub, "acme/tiny").unwrap(), snapshot);
    assert!(heard.0.lock().unwrap().iter().any(|w| w.contains("as it is in the cache")));
    let corpus = Corpus::open_from(&config, &hub).unwrap();
    assert_eq!(texts(&corpus, 2).len(), 2, "though nobody knows whether there is a conversion");
    let e = fetch(&hub, "acme/other").unwrap_err();
    assert!(e.exit_code() == 3 && e.to_string().contains("HF_ENDPOINT"), "{e}");
}

#[test]
fn one_folder_of_dictionaries_is_fetched_and_several_are_listed() {
    let stub = Stub::start();
    let weights = tiny().into_iter().find(|(name, _)| *name == "model.safetensors").unwrap().1;
    let json = || b"{\"k\": 3}".to_vec();
    stub.push(
        "acme/saes",
        "main",
        1,
        &[
            ("README.md", b"dictionaries".to_vec()),
            ("layers.1/cfg.json", json()),
            ("layers.1/sae.safetensors", weights.clone()),
            ("layers.1/optimizer_0.pt", b"not wanted".to_vec()),
            ("layers.2/cfg.json", json()),
            ("layers.2/sae.safetensors", weights.clone()),
            ("old/hyperparams.json", json()),
            ("old/checkpoints/final.safetensors", weights.clone()),
        ],
    );
    let cache = tempfile::tempdir().unwrap();
    let hub = hub(&stub, cache.path());
    let fetch = |text: &str| hub.weights_folder(&FolderSpec::parse(text)?).map(|s| s.dir);
    let found = fetch("acme/saes/layers.1").unwrap();
    assert_eq!(std::fs::read(found.join("sae.safetensors")).unwrap(), weights);
    assert!(found.join("cfg.json").is_file() && !found.join("optimizer_0.pt").exists());
    assert!(!found.parent().unwrap().join("layers.2").exists(), "the other folder was not asked for");
    let old = fetch("acme/saes/old").unwrap();
    assert!(old.join("hyperparams.json").is_file() && old.join("checkpoints/final.safetensors").is_file());
    let file = fetch("acme/saes@main/layers.2/sae.safetensors").unwrap();
    assert!(file.is_file() && file.with_file_name("cfg.json").is_file());

    let several = fetch("acme/saes").unwrap_err();
    assert!(several.exit_code() == 2 && several.to_string().contains("acme/saes/layers.2"), "{several}");
    assert_eq!(fetch("acme/saes/layers.9").unwrap_err().exit_code(), 2);
}

fn texts(corpus: &Corpus, n: usize) -> Vec<String> {
    let text = |d: Content| match d {
        Content::Text(t) => t,
        Content::Tokens(_) => unreachable!("text"),
    };
    corpus.documents().unwrap().take(n).map(|d| text(d.unwrap().content)).collect()
}

#[test]
fn a_dataset_is_listed_over_pages_and_fetched_file_by_file() {
    let (stub, dir) = (Stub::start(), tempfile::tempdir().unwrap());
    let names: Vec<String> = (0..7).map(|i| format!("train/part{i}.jsonl")).collect();
    let mut files: Vec<(&str, Vec<u8>)> =
        names.iter().enumerate().map(|(i, n)| (n.as_str(), stories(2 * i as u64, 2 * i as u64 + 2))).collect();
    files.push(("test.jsonl", stories(100, 101)));
    files.push(("README.md", b"x".to_vec()));
    stub.push("datasets/acme/stories", "main", 1, &files);
    stub.state().page = 2;
    let hub = hub(&stub, dir.path());
    let corpus = Corpus::open_from(&CorpusConfig::new("hf:acme/stories"), &hub).unwrap();
    assert_eq!(corpus.config().source, format!("hf:acme/stories@{}:train", commit(1)));
    let asked = stub.asked();
    assert_eq!(asked.iter().filter(|a| a.contains("/tree/")).count(), 5, "{asked:?}");
    assert!(!asked.iter().any(|a| a.contains("/resolve/")), "nothing is fetched before it is read");
    let provenance = corpus.provenance().unwrap();
    assert_eq!((&provenance["hub"], &provenance["revision"]), (&"acme/stories".into(), &commit(1).into()));
    assert_eq!((provenance["n_files"].as_u64(), &provenance["files"][6]["name"]), (Some(7), &"train/part6.jsonl".into()));
    assert_eq!(texts(&corpus, 3).len(), 3);
    let fetched: Vec<String> = stub.asked().into_iter().filter(|a| a.starts_with("GET") && a.contains("/resolve/")).collect();
    assert_eq!(fetched.len(), 2, "two files hold three documents: {fetched:?}");
    assert_eq!(texts(&corpus, 99).len(), 14);
    let expected: Vec<String> = (0..14).map(|i| fable::text(&fable::story(7, i))).collect();
    assert_eq!(texts(&corpus, 99), expected);
    let test = Corpus::open_from(&CorpusConfig::new("hf:acme/stories:test"), &hub).unwrap();
    assert_eq!(texts(&test, 99), [fable::text(&fable::story(7, 100))]);

    let e = Corpus::open_from(&CorpusConfig::new("hf:acme/stories:dev"), &hub).unwrap_err();
    assert!(e.exit_code() == 2 && e.to_string().contains("one of test, train"), "{e}");
    let e = Corpus::open_from(&CorpusConfig { config: Some("fr".into()), ..CorpusConfig::new("hf:acme/stories") }, &hub).unwrap_err();
    assert!(e.to_string().contains("no configuration `fr`") && e.to_string().contains("default"), "{e}");
    let field = CorpusConfig { text_field: "body".into(), ..CorpusConfig::new("hf:acme/stories") };
    let e = Corpus::open_from(&field, &hub).unwrap().documents().unwrap().next().unwrap().unwrap_err().to_string();
    assert!(e.contains("no field `body`; it has: text, n"), "{e}");
    let e = Corpus::open_from(&CorpusConfig::new("hf:acme/nothing"), &hub).unwrap_err();
    assert!(e.exit_code() == 2 && e.to_string().contains("dataset acme/nothing"), "{e}");
}

#[test]
fn the_hubs_own_conversion_comes_first() {
    let (stub, dir) = (Stub::start(), tempfile::tempdir().unwrap());
    let table = |from: u64| {
        let text: Vec<String> = (from..from + 3).map(|i| fable::text(&fable::story(7, i))).collect();
        let column: arrow::array::ArrayRef = Arc::new(arrow::array::StringArray::from(text));
        let batch = arrow::array::RecordBatch::try_from_iter([("text", column)]).unwrap();
        let mut bytes = Vec::new();
        let mut writer = parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        bytes
    };
    stub.push("datasets/acme/two", "main", 1, &[("train.jsonl", stories(50, 52))]);
    let converted = [("en/train/0000.parquet", table(0)), ("en/train/0001.parquet", table(3)), ("fr/partial-train/0000.parquet", table(6))];
    stub.push("datasets/acme/two", "refs/convert/parquet", 2, &converted);
    let heard = Arc::new(Heard::default());
    let hub = Hub::new(options(&stub, dir.path()), heard.clone()).unwrap();
    let open = |source: &str, config: Option<&str>| {
        Corpus::open_from(&CorpusConfig { config: config.map(str::to_string), ..CorpusConfig::new(source) }, &hub)
    };
    let e = open("hf:acme/two", None).unwrap_err().to_string();
    assert!(e.contains("several configurations") && e.contains("en, fr"), "{e}");
    let en = open("hf:acme/two", Some("en")).unwrap();
    assert_eq!(texts(&en, 99), (0..6).map(|i| fable::text(&fable::story(7, i))).collect::<Vec<_>>());
    assert_eq!(en.provenance().unwrap()["revision"], commit(2).as_str());
    assert!(dir.path().join("datasets--acme--two/refs/refs/convert/parquet").is_file());
    open("hf:acme/two", Some("fr")).unwrap();
    assert!(heard.0.lock().unwrap().iter().any(|w| w.contains("only the beginning")));
    // A revision that is named is taken as it is.
    assert_eq!(texts(&open("hf:acme/two@main", None).unwrap(), 99).len(), 2);
    let spec = DatasetSpec::parse(&open("hf:acme/two", Some("en")).unwrap().config().source).unwrap();
    assert_eq!(spec.revision, Some(commit(2)));
}

fn lapidary(dir: &Path, stub: &Stub, line: &[&str]) -> Output {
    command(dir, stub, line).output().unwrap()
}

fn command(dir: &Path, stub: &Stub, line: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapidary"));
    for (name, _) in std::env::vars().filter(|(n, _)| n.starts_with("HF_") || n.to_uppercase().ends_with("_PROXY")) {
        command.env_remove(name);
    }
    command.env("HF_ENDPOINT", &stub.url).env("HF_HOME", dir.join("home")).env("LAPIDARY_HUB_WAIT_MS", "1");
    command.env("HF_TOKEN", "hf_secret").current_dir(dir).args(line);
    command
}

/// What both runs of a harvest from the hub have in common.
const HARVEST: [&str; 17] = [
    "harvest",
    "--hook",
    "blocks.1.hook_resid_post",
    "--context",
    "64",
    "--batch-tokens",
    "256",
    "--held-out",
    "0.2",
    "--set",
    "harvest.outlier_rows=100",
    "--set",
    "harvest.shard_rows=1000",
    "--n-tokens",
    "20000",
    "--doc-separator",
    "",
];

fn harvest<'a>(model: &'a str, corpus: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    HARVEST.iter().copied().chain(["--model", model, "--corpus", corpus, "--out", out]).chain(more.iter().copied()).collect()
}

#[test]
fn a_harvest_from_the_hub_goes_on_after_a_kill_with_what_it_began_with() {
    let (stub, dir) = (model_stub(), tempfile::tempdir().unwrap());
    let dir = dir.path();
    stub.push("datasets/acme/stories", "main", 3, &[("train-1.jsonl", stories(0, 150)), ("train-2.jsonl", stories(150, 300))]);
    // The second file does not come; what was read before it is sealed meanwhile.
    stub.hook(|request, reply| match request.is("GET", "train-2.jsonl") {
        true => Reply { pause: Duration::from_secs(20), ..reply },
        false => reply,
    });
    let line = harvest("acme/tiny", "hf:acme/stories", "killed", &[]);
    let mut child = command(dir, &stub, &line).stderr(std::process::Stdio::null()).spawn().unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    while !dir.join("killed/harvest.state.json").exists() && Instant::now() < until && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(child.try_wait().unwrap().is_none(), "it ended before it was killed");
    child.kill().unwrap();
    child.wait().unwrap();
    stub.behave();

    // Both branches move on.
    let mut other = tiny();
    let n = other[1].1.len();
    other[1].1[n - 1] ^= 1;
    stub.push("acme/tiny", "main", 2, &other);
    stub.push("datasets/acme/stories", "main", 4, &[("train-0.jsonl", stories(500, 600))]);
    let out = lapidary(dir, &stub, &harvest("acme/tiny", "hf:acme/stories", "killed", &["--resume"]));
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let (model, corpus) = (format!("acme/tiny@{}", commit(1)), format!("hf:acme/stories@{}", commit(3)));
    let out = lapidary(dir, &stub, &harvest(&model, &corpus, "whole", &[]));
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));

    let files = |folder: &str| {
        let mut names: Vec<_> = std::fs::read_dir(dir.join(folder)).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.retain(|n| n != "timing.parquet");
        names.sort();
        names.into_iter().map(|n| (std::fs::read(dir.join(folder).join(&n)).unwrap(), n)).collect::<Vec<_>>()
    };
    let (killed, whole) = (files("killed"), files("whole"));
    assert!(killed.len() > 4 && killed == whole, "the same bytes as without the kill");
    let manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(dir.join("killed/manifest.json")).unwrap()).unwrap();
    assert_eq!((&manifest["host"]["hub_id"], &manifest["host"]["revision"]), (&"acme/tiny".into(), &commit(1).into()));
    assert_eq!((&manifest["corpus"]["hub"], &manifest["corpus"]["revision"]), (&"acme/stories".into(), &commit(3).into()));
    assert_eq!(manifest["corpus"]["files"][1]["name"], "train-2.jsonl");
    assert!(!manifest.to_string().contains("hf_secret"));

    // Anything else is another harvest.
    let moved = format!("acme/tiny@{}", commit(2));
    let out = lapidary(dir, &stub, &harvest(&moved, "hf:acme/stories", "killed", &["--resume"]));
    assert_eq!(out.status.code(), Some(2), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(String::from_utf8_lossy(&out.stderr).contains("was begun with host."));

    // A splice finds model and corpus by what the manifest pins, not by where the branches are.
    let train = ["train", "--shards", "killed", "--d-sae", "64", "--k", "4", "--batch", "128", "--n-tokens", "2000", "--out", "sae"];
    assert!(lapidary(dir, &stub, &train).status.success());
    let score = ["score", "--dictionary", "sae", "--shards", "killed", "--model", "acme/tiny", "--no-baselines", "--splice-tokens", "500"];
    for more in [&[][..], &["--corpus", "hf:acme/stories"]] {
        let line: Vec<&str> = score.iter().chain(more).copied().collect();
        let out = lapidary(dir, &stub, &line);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        assert!(String::from_utf8_lossy(&out.stdout).contains("ce_loss_score"));
    }
}

#[test]
fn the_command_line_ends_in_the_right_code_names_the_url_and_recovers() {
    let (stub, dir) = (model_stub(), tempfile::tempdir().unwrap());
    let dir = dir.path();
    stub.push("datasets/acme/stories", "main", 3, &[("train.jsonl", stories(0, 40))]);
    let run = |model: &str, corpus: &str| {
        let out = lapidary(dir, &stub, &harvest(model, corpus, "out", &["--overwrite"]));
        (out.status.code().unwrap(), String::from_utf8(out.stderr).unwrap())
    };
    let url = stub.url.clone();
    for (model, corpus, says) in [
        ("acme/none", "hf:acme/stories", "acme/none"),
        ("nowhere", "hf:acme/stories", "fable"),
        ("acme/tiny@v9", "hf:acme/stories", "v9"),
        ("acme/tiny", "hf:acme/none", "acme/none"),
        ("acme/tiny", "hf:acme/stories:test", "one of train"),
        ("acme/tiny", "hf:acme/stories@v9", "v9"),
    ] {
        let (code, text) = run(model, corpus);
        assert!(code == 2 && text.contains(says) && text.contains("help:"), "{model} {corpus}: {code} {text}");
    }
    // What cannot be loaded is told before its weights are fetched.
    let strange = [("config.json", br#"{"model_type": "strange"}"#.to_vec()), tiny().remove(1)];
    stub.push("acme/strange", "main", 1, &strange);
    stub.asked();
    let (code, text) = run("acme/strange", "hf:acme/stories");
    assert!(code == 2 && text.contains("strange") && text.contains("the supported families"), "{text}");
    assert!(!stub.asked().iter().any(|a| a.ends_with(WEIGHTS)));
    for bad in bad_replies().into_iter().filter(|b| b.name != "silence") {
        let reply = bad.reply;
        stub.hook(move |request, good| match request.path.contains("/acme/tiny/") {
            true => reply(&format!("{} {}", request.method, request.path), good),
            false => good,
        });
        let home = dir.join("home");
        if home.exists() {
            std::fs::remove_dir_all(&home).unwrap();
        }
        let (code, text) = run("acme/tiny", "hf:acme/stories");
        assert!(code == i32::from(bad.code) && text.contains(&url) && text.contains("help:"), "{}: {code} {text}", bad.name);
        assert!(!text.contains("hf_secret") && !dir.join("out/manifest.json").exists());
        stub.behave();
        let (code, text) = run("acme/tiny", "hf:acme/stories");
        assert_eq!(code, 0, "{}: {text}", bad.name);
        std::fs::remove_dir_all(dir.join("out")).unwrap();
    }
    let inspected = lapidary(dir, &stub, &["inspect", "acme/tiny", "--json"]);
    assert!(String::from_utf8_lossy(&inspected.stdout).contains(&commit(1)));
    // A data file that fails in the middle of a harvest ends it with 3, and --resume goes on.
    let home = dir.join("home/hub/datasets--acme--stories");
    std::fs::remove_dir_all(home).unwrap();
    stub.hook(|request, reply| match request.is("GET", "train.jsonl") {
        true => Reply { cut: Some(10), ..reply },
        false => reply,
    });
    let (code, text) = run("acme/tiny", "hf:acme/stories");
    assert!(code == 3 && text.contains("train.jsonl") && text.contains("broke off"), "{text}");
    stub.behave();
    let out = lapidary(dir, &stub, &harvest("acme/tiny", "hf:acme/stories", "out", &["--resume"]));
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    // Bytes that decayed behind the cache's back.
    let weights = dir.join("home/hub/models--acme--tiny/blobs").join(sha256(&tiny()[1].1));
    let mut bytes = std::fs::read(&weights).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&weights, &bytes).unwrap();
    let (code, text) = run("acme/tiny", "hf:acme/stories");
    assert!(code == 3 && text.contains("SHA-256") && text.contains("delete it"), "{text}");
    std::fs::remove_file(&weights).unwrap();
    assert_eq!(run("acme/tiny", "hf:acme/stories").0, 0);
    // Offline from here on.
    let line = harvest("acme/tiny", "hf:acme/stories", "offline", &[]);
    stub.asked();
    let out = command(dir, &stub, &line).env("HF_HUB_OFFLINE", "1").output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(stub.asked().is_empty());
    let line = harvest("acme/other", "hf:acme/stories", "offline2", &[]);
    let out = command(dir, &stub, &line).env("HF_HUB_OFFLINE", "on").output().unwrap();
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.code() == Some(2) && text.contains("acme/other") && text.contains("HF_HUB_OFFLINE"), "{text}");
}
