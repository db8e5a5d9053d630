//! Harvest: which rows are written, what the manifest says of them, and that no interruption changes a byte.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Mutex;
use std::time::Duration;

use candle_core::{Device, Tensor};
use lapidary::corpus::{Corpus, CorpusConfig, Tokenizer};
use lapidary::harvest::{harvest, HarvestConfig, HarvestReport, MaskRule, Mode};
use lapidary::host::{HostInfo, HostModel, Tap, Tokens};
use lapidary::progress::{Progress, Silent};
use lapidary::rng::Rng;
use lapidary::shard::{split_of, Dtype, Shards, Split};
use lapidary::{Error, HookPoint, Result, Site};

const BOS: u32 = 1;
const END: u32 = 2;
/// Its rows are a thousand times too long.
const LOUD: u32 = 7;
const NAN: u32 = 13;
const D: usize = 12;

/// A host whose activation at a token is a known function of the token, its place in the context, and the layer.
struct Fake {
    info: HostInfo,
    pause: Duration,
}

fn value(layer: usize, id: u32, at: usize, j: usize) -> f32 {
    let v = ((id as usize * 31 + at * 7 + j * 3 + layer * 11) % 97) as f32 / 16.0 - 3.0;
    match id {
        LOUD => v * 1000.0 + 500.0,
        NAN => f32::NAN,
        _ => v,
    }
}

fn fake() -> Fake {
    Fake {
        info: HostInfo {
            name: "fake".into(),
            family: "llama",
            n_layers: 3,
            d_model: D,
            n_heads: 1,
            d_head: D,
            d_mlp: D,
            vocab_size: 100,
            n_context: 64,
            dtype: "f32".into(),
            n_params: 0,
            weights_sha256: "00".into(),
            bos_token_id: Some(BOS),
            eos_token_ids: vec![END],
            unread_config: Vec::new(),
            origin: None,
        },
        pause: Duration::ZERO,
    }
}

impl HostModel for Fake {
    fn info(&self) -> &HostInfo {
        &self.info
    }

    fn hook_points(&self) -> Vec<HookPoint> {
        (0..3).map(|l| HookPoint::block(l, Site::ResidPost)).collect()
    }

    fn width(&self, at: &HookPoint) -> Result<usize> {
        if self.hook_points().contains(at) {
            return Ok(D + at.layer);
        }
        Err(Error::UnknownHookPoint { given: at.to_string(), host: "fake".into(), available: "blocks.0.hook_resid_post, ...".into() })
    }

    fn forward(&self, input: &Tokens, tap: &mut dyn Tap) -> Result<Option<Tensor>> {
        std::thread::sleep(self.pause);
        let (b, t) = input.ids.dims2()?;
        let ids = input.ids.flatten_all()?.to_vec1::<u32>()?;
        let mask = input.mask.as_ref().map(|m| m.flatten_all().and_then(|m| m.to_vec1::<u8>())).transpose()?;
        for at in self.hook_points() {
            let width = self.width(&at)?;
            let mut x = Vec::with_capacity(b * t * width);
            for (i, &id) in ids.iter().enumerate() {
                // Nobody may look at padding.
                let real = mask.as_ref().is_none_or(|m| m[i] == 1);
                x.extend((0..width).map(|j| if real { value(at.layer, id, i % t, j) } else { f32::NAN }));
            }
            if tap.wants(&at) {
                tap.visit(&at, &Tensor::from_vec(x, (b, t, width), &Device::Cpu)?)?;
            }
            if tap.last() == Some(at) {
                return Ok(None);
            }
        }
        panic!("the harvest did not stop after its last hook point");
    }

    fn hf_path(&self, _at: &HookPoint) -> Option<String> {
        None
    }
}

/// Documents that begin with BOS; some hold END in the middle, a few the loud token.
fn documents(n: usize) -> Vec<Vec<u32>> {
    let mut rng = Rng::stream(0, "test", 0);
    let ordinary = |rng: &mut Rng| 20 + rng.below(80) as u32;
    (0..n)
        .map(|d| {
            let length = 1 + rng.below(40) as usize;
            let mut ids: Vec<u32> = std::iter::once(BOS).chain((0..length).map(|_| ordinary(&mut rng))).collect();
            if d % 5 == 3 && length > 2 {
                ids[2] = if d % 2 == 0 { LOUD } else { END };
            }
            ids
        })
        .collect()
}

fn corpus(dir: &Path, documents: &[Vec<u32>]) -> Corpus {
    let path = dir.join("tokens.u16");
    std::fs::write(&path, documents.concat().iter().flat_map(|&v| (v as u16).to_le_bytes()).collect::<Vec<_>>()).unwrap();
    Corpus::open(&CorpusConfig { doc_token: Some(BOS), ..CorpusConfig::new(path.to_string_lossy()) }).unwrap()
}

fn config() -> HarvestConfig {
    HarvestConfig {
        hooks: vec!["blocks.0.resid_post".into(), "model.layers.2".into()],
        context: 16,
        batch_tokens: 100,
        held_out: 0.2,
        shard_rows: Some(500),
        row_group_rows: Some(128),
        outlier_rows: 700,
        ..HarvestConfig::default()
    }
}

fn run(corpus: &Corpus, config: &HarvestConfig, out: &Path) -> Result<HarvestReport> {
    harvest(&fake(), corpus, None, config, out, Mode::Fresh, &Silent)
}

/// (doc_id, position) -> (token, row), all splits.
fn rows(out: &Path, column: &str, split: Option<Split>) -> BTreeMap<(u64, u32), (u32, Vec<f32>)> {
    let shards = Shards::open(out).unwrap();
    shards.verify().unwrap();
    let width = shards.width(column).unwrap();
    let mut rows = BTreeMap::new();
    for split in Split::ALL.into_iter().filter(|s| split.is_none_or(|w| w == *s)) {
        let mut last = None;
        for batch in shards.scan(column, Some(split)).unwrap() {
            let batch = batch.unwrap();
            for i in 0..batch.n {
                let key = (batch.doc_id[i], batch.position[i]);
                assert!(last < Some(key), "rows ascend");
                last = Some(key);
                rows.insert(key, (batch.token_id[i], batch.x[i * width..(i + 1) * width].to_vec()));
            }
        }
    }
    rows
}

#[test]
fn every_row_is_the_hosts_and_every_token_is_accounted_for() {
    let dir = tempfile::tempdir().unwrap();
    let documents = documents(300);
    let out = dir.path().join("out");
    let report = run(&corpus(dir.path(), &documents), &config(), &out).unwrap();

    // The same by hand.
    let (mut expected, mut masked) = (BTreeMap::new(), BTreeMap::from([("special", 0), ("first", 0), ("outlier", 0), ("drop_bos", 0)]));
    for (d, ids) in documents.iter().enumerate() {
        for (position, &id) in ids.iter().enumerate() {
            let at = position % 16;
            let rule = match id {
                BOS | END => Some("special"),
                _ if at == 0 => Some("first"),
                LOUD => Some("outlier"),
                _ => None,
            };
            match rule {
                Some(rule) => *masked.get_mut(rule).unwrap() += 1,
                None => {
                    expected.insert((d as u64, position as u32), (id, at));
                }
            }
        }
    }
    assert!(masked["special"] > 300 && masked["first"] > 100 && masked["outlier"] > 10, "{masked:?}");
    for (column, layer) in [("blocks.0.hook_resid_post", 0), ("blocks.2.hook_resid_post", 2)] {
        let found = rows(&out, column, None);
        assert_eq!(found.len(), expected.len());
        for (key, (id, row)) in &found {
            let (want, at) = expected[key];
            assert_eq!(*id, want);
            let want: Vec<f32> = (0..D + layer).map(|j| value(layer, want, at, j)).collect();
            assert_eq!(*row, want, "{key:?}");
        }
    }
    let manifest = Shards::open(&out).unwrap().manifest().clone();
    let counted: BTreeMap<&str, u64> = manifest.counts.masked.iter().map(|(k, v)| (k.as_str(), *v)).collect();
    assert_eq!(counted, masked);
    assert_eq!(manifest.counts.documents, 300);
    assert_eq!(manifest.counts.tokens, documents.concat().len() as u64);
    assert_eq!(manifest.counts.rows.of(None) + counted.values().sum::<u64>(), manifest.counts.tokens);
    assert_eq!(report.rows, manifest.counts.rows);
    assert!(report.to_string().contains("held out") && serde_json::to_value(&report).is_ok());
    // Whole documents are split, by hash.
    for split in Split::ALL {
        let found = rows(&out, "blocks.0.hook_resid_post", Some(split));
        assert!(found.len() > 300);
        assert!(found.keys().all(|(d, _)| split_of(*d, 0, 0.2) == split));
    }
    let limit = manifest.masking["outlier"]["max_norm"]["blocks.0.hook_resid_post"].as_f64().unwrap();
    let median = manifest.masking["outlier"]["median_norm"]["blocks.0.hook_resid_post"].as_f64().unwrap();
    assert!((limit - 10.0 * median).abs() < 1e-9 && median > 1.0);
}

#[test]
fn rules_can_be_switched_off_and_the_first_row_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let documents = documents(50);
    let corpus = corpus(dir.path(), &documents);
    let all = HarvestConfig { keep: vec![MaskRule::Special, MaskRule::First, MaskRule::Outlier], ..config() };
    let report = run(&corpus, &all, &dir.path().join("all")).unwrap();
    assert_eq!(report.rows.of(None), documents.concat().len() as u64);
    let dropped = HarvestConfig { drop_bos: true, ..all };
    let report = run(&corpus, &dropped, &dir.path().join("dropped")).unwrap();
    assert_eq!((report.masked["drop_bos"], report.rows.of(None)), (50, documents.concat().len() as u64 - 50));
}

#[test]
fn n_tokens_counts_written_rows() {
    let dir = tempfile::tempdir().unwrap();
    let documents = documents(300);
    let corpus = corpus(dir.path(), &documents);
    run(&corpus, &config(), &dir.path().join("all")).unwrap();
    let all = rows(&dir.path().join("all"), "blocks.0.hook_resid_post", None);
    for n in [1, 499, 500, 501, 1234] {
        let out = dir.path().join(n.to_string());
        let report = run(&corpus, &HarvestConfig { n_tokens: Some(n), ..config() }, &out).unwrap();
        assert_eq!(report.rows.of(None), n);
        assert_eq!(report.tokens, n + report.masked.values().sum::<u64>(), "tokens up to the last row");
        assert!(rows(&out, "blocks.0.hook_resid_post", None).into_iter().eq(all.clone().into_iter().take(n as usize)));
    }
}

#[test]
fn batches_and_padding_do_not_show() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = corpus(dir.path(), &documents(120));
    let of = |batch_tokens: usize| {
        let out = dir.path().join(batch_tokens.to_string());
        run(&corpus, &HarvestConfig { batch_tokens, ..config() }, &out).unwrap();
        rows(&out, "blocks.2.hook_resid_post", None)
    };
    let one = of(1);
    assert!(one.len() > 1000 && one == of(4096) && one == of(77));
}

#[test]
fn packed_documents_fill_contexts_and_keep_their_split() {
    let dir = tempfile::tempdir().unwrap();
    let documents = documents(300);
    let corpus = corpus(dir.path(), &documents);
    let packed = HarvestConfig { pack: true, context: 32, ..config() };
    let out = dir.path().join("packed");
    let report = run(&corpus, &packed, &out).unwrap();
    assert!(report.padding_share.unwrap() < 0.05, "{report:?}");
    let manifest = Shards::open(&out).unwrap().manifest().clone();
    assert_eq!((manifest.counts.tokens, manifest.counts.documents), (documents.concat().len() as u64, 300));
    assert_eq!(manifest.config["harvest"]["pack"], true);
    // By hand: the documents of a split one after the other, cut every 32 tokens.
    let mut expected = BTreeMap::new();
    for split in Split::ALL {
        let ids = documents.iter().enumerate().filter(|(d, _)| split_of(*d as u64, 0, 0.2) == split);
        let tokens = ids.flat_map(|(d, ids)| ids.iter().enumerate().map(move |(p, &id)| (d as u64, p as u32, id)));
        for (i, (d, p, id)) in tokens.enumerate() {
            if ![BOS, END, LOUD].contains(&id) && i % 32 != 0 {
                expected.insert((d, p), (id, i % 32));
            }
        }
    }
    let found = rows(&out, "blocks.2.hook_resid_post", None);
    assert_eq!(found.len(), expected.len());
    for (key, (id, row)) in &found {
        let (want, at) = expected[key];
        assert!(*id == want && *row == (0..D + 2).map(|j| value(2, want, at, j)).collect::<Vec<f32>>(), "{key:?}");
    }
}

/// Stops at the k-th question.
struct StopAt(usize, AtomicUsize);

impl Progress for StopAt {
    fn is_cancelled(&self) -> bool {
        self.1.fetch_add(1, Ordering::Relaxed) == self.0
    }
}

/// Every file but timing.parquet.
fn artefacts(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    entries.filter(|p| !p.ends_with("timing.parquet")).map(|p| (p.file_name().unwrap().into(), std::fs::read(&p).unwrap())).collect()
}

#[test]
fn an_interrupted_harvest_ends_with_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = corpus(dir.path(), &documents(200));
    for (name, config) in [
        ("cut", HarvestConfig { n_tokens: Some(3210), dtype: Dtype::F16, ..config() }),
        ("whole", HarvestConfig { keep: vec![MaskRule::Outlier], dtype: Dtype::Bf16, ..config() }),
        ("packed", HarvestConfig { pack: true, ..config() }),
    ] {
        let whole = dir.path().join(name);
        run(&corpus, &config, &whole).unwrap();
        let expected = artefacts(&whole);
        assert!(expected.len() > 8 && expected.contains_key(Path::new("manifest.json")), "{:?}", expected.keys());
        let mut interrupted = 0;
        for k in (0..60).step_by(5) {
            let out = dir.path().join(format!("{name}-{k}"));
            let stop = StopAt(k, AtomicUsize::new(0));
            match harvest(&fake(), &corpus, None, &config, &out, Mode::Fresh, &stop) {
                Err(Error::Interrupted { .. }) => interrupted += 1,
                other => assert!(other.is_ok(), "{other:?}"),
            }
            // A second interruption on the way.
            let stop = StopAt(k / 2 + 1, AtomicUsize::new(0));
            let _ = harvest(&fake(), &corpus, None, &config, &out, Mode::Resume, &stop);
            harvest(&fake(), &corpus, None, &config, &out, Mode::Resume, &Silent).unwrap();
            assert!(artefacts(&out) == expected, "interrupted at {k}");
        }
        assert!(interrupted > 6, "{interrupted}");
    }
}

/// Runs in a process of its own, which `kill_nine` ends.
#[test]
#[ignore = "the child of kill_nine"]
fn child() {
    let Some(dir) = std::env::var_os("LAPIDARY_TEST_DIR").map(PathBuf::from) else { return };
    let corpus =
        Corpus::open(&CorpusConfig { doc_token: Some(BOS), ..CorpusConfig::new(dir.join("tokens.u16").to_string_lossy()) }).unwrap();
    let host = Fake { pause: Duration::from_millis(4), ..fake() };
    harvest(&host, &corpus, None, &config(), &dir.join("out"), Mode::Resume, &Silent).unwrap();
}

#[test]
fn kill_nine() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = corpus(dir.path(), &documents(300));
    run(&corpus, &config(), &dir.path().join("whole")).unwrap();
    let start = || {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "harvest::child", "--ignored"]).env("LAPIDARY_TEST_DIR", dir.path());
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap()
    };
    let mut rng = Rng::stream(0, "kill", 0);
    for _ in 0..12 {
        let mut child = start();
        std::thread::sleep(Duration::from_millis(10 + rng.below(200)));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(start().wait().unwrap().success());
    assert!(artefacts(&dir.path().join("out")) == artefacts(&dir.path().join("whole")));
}

#[test]
fn folders_are_guarded() {
    let dir = tempfile::tempdir().unwrap();
    let corpus = corpus(dir.path(), &documents(60));
    let out = dir.path().join("out");
    run(&corpus, &config(), &out).unwrap();
    let before = artefacts(&out);
    let again = |config: &HarvestConfig, mode| harvest(&fake(), &corpus, None, config, &out, mode, &Silent);
    assert!(matches!(again(&config(), Mode::Fresh), Err(Error::OutputNotEmpty { .. })));
    assert_eq!(again(&config(), Mode::Resume).unwrap().rows.of(None), Shards::open(&out).unwrap().rows(None), "it is complete");
    let other = HarvestConfig { context: 32, ..config() };
    let e = again(&other, Mode::Resume).unwrap_err().to_string();
    assert!(e.contains("config.harvest.context = 16, and this run has 32"), "{e}");
    std::fs::write(out.join("thesis.txt"), "precious").unwrap();
    let e = again(&other, Mode::Overwrite).unwrap_err().to_string();
    assert!(e.contains("thesis.txt"), "{e}");
    std::fs::remove_file(out.join("thesis.txt")).unwrap();
    assert!(artefacts(&out) == before);
    again(&other, Mode::Overwrite).unwrap();
    assert_eq!(Shards::open(&out).unwrap().manifest().config["harvest"]["context"], 32);
    // Begun with one corpus, resumed with another.
    let part = dir.path().join("part");
    let corpus = super::harvest::corpus(dir.path(), &documents(400));
    let stop = StopAt(60, AtomicUsize::new(0));
    assert!(harvest(&fake(), &corpus, None, &config(), &part, Mode::Fresh, &stop).is_err());
    assert!(part.join("harvest.state.json").exists());
    assert!(Shards::open(&part).unwrap_err().to_string().contains("unfinished"));
    let changed = super::harvest::corpus(dir.path(), &documents(401));
    let e = harvest(&fake(), &changed, None, &config(), &part, Mode::Resume, &Silent).unwrap_err().to_string();
    assert!(e.contains("begun with corpus.bytes"), "{e}");
}

/// Keeps what it is told.
#[derive(Default)]
struct Ears(Mutex<Vec<String>>);

impl Progress for Ears {
    fn warn(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_string());
    }
    fn note(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_string());
    }
}

#[test]
fn trouble_is_told_in_the_users_words() {
    let dir = tempfile::tempdir().unwrap();
    let one = corpus(dir.path(), &[vec![BOS, 30, 31, 32]]);
    let ears = Ears::default();
    let asked = HarvestConfig { n_tokens: Some(100), ..config() };
    harvest(&fake(), &one, None, &asked, &dir.path().join("short"), Mode::Fresh, &ears).unwrap();
    let told = ears.0.lock().unwrap().join("\n");
    assert!(told.contains("ended after 3 rows; 100 were asked for"), "{told}");
    assert!(told.contains("no row fell into the") && told.contains("GB free"), "{told}");

    let e = run(&corpus(dir.path(), &[vec![BOS, 30, 31], vec![BOS, 40, NAN]]), &config(), &dir.path().join("nan")).unwrap_err();
    assert!(matches!(e, Error::NotFinite { .. }), "{e}");
    let e = e.to_string();
    assert!(e.contains("blocks.0.hook_resid_post") && e.contains("document 1, position 2"), "{e}");
    let e = run(&corpus(dir.path(), &[vec![BOS, 30, 100]]), &config(), &dir.path().join("vocab")).unwrap_err().to_string();
    assert!(e.contains("token id 100"), "{e}");
    let e = run(&corpus(dir.path(), &[vec![BOS], vec![BOS, END]]), &config(), &dir.path().join("none")).unwrap_err().to_string();
    assert!(e.contains("all were masked"), "{e}");

    let ok = corpus(dir.path(), &documents(5));
    let refused = |config: HarvestConfig| run(&ok, &config, &dir.path().join("refused")).unwrap_err();
    assert!(matches!(refused(HarvestConfig { hooks: vec!["blocks.9.resid_post".into()], ..config() }), Error::UnknownHookPoint { .. }));
    for (key, config) in [
        ("harvest.hooks", HarvestConfig { hooks: vec![], ..config() }),
        ("harvest.context", HarvestConfig { context: 65, ..config() }),
        ("harvest.held_out", HarvestConfig { held_out: 1.0, ..config() }),
        ("harvest.outlier_factor", HarvestConfig { outlier_factor: 0.5, ..config() }),
        ("harvest.n_tokens", HarvestConfig { n_tokens: Some(0), ..config() }),
    ] {
        let e = refused(config);
        assert!(matches!(&e, Error::Config { key: k, .. } if k == key), "{e}");
    }
    let e = refused(HarvestConfig { n_tokens: Some(1 << 50), ..config() }).to_string();
    assert!(e.contains("cannot hold the harvest") && e.contains("GB free"), "{e}");
    assert!(serde_json::from_str::<HarvestConfig>(r#"{"hook": "x"}"#).unwrap_err().to_string().contains("unknown field `hook`"));
}

#[test]
fn text_goes_through_the_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = br#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{"id":1,"content":"<s>","single_word":false,
        "lstrip":false,"rstrip":false,"normalized":false,"special":true}],"normalizer":null,"pre_tokenizer":{"type":"WhitespaceSplit"},
        "post_processor":null,"decoder":null,"model":{"type":"WordLevel","vocab":{"<unk>":0,"<s>":1,"a":20,"b":21,"c":22},"unk_token":"<unk>"}}"#;
    let tokenizer = Tokenizer::from_bytes(tokenizer, Some(br#"{"bos_token":"<s>"}"#), None).unwrap();
    std::fs::create_dir(dir.path().join("texts")).unwrap();
    std::fs::write(dir.path().join("texts/2.txt"), "c a").unwrap();
    std::fs::write(dir.path().join("texts/1.txt"), "a b c\n<|endoftext|>\nb b").unwrap();
    let corpus = Corpus::open(&CorpusConfig::new(dir.path().join("texts").to_string_lossy())).unwrap();
    let config = HarvestConfig { hooks: vec!["blocks.1.resid_post".into()], held_out: 0.0, ..HarvestConfig::default() };
    let config = HarvestConfig { context: 8, ..config };
    let ids = |config: &HarvestConfig, name: &str| {
        harvest(&fake(), &corpus, Some(&tokenizer), config, &dir.path().join(name), Mode::Fresh, &Silent).unwrap();
        rows(&dir.path().join(name), "blocks.1.hook_resid_post", None).into_iter().map(|(key, (id, _))| (key, id)).collect::<Vec<_>>()
    };
    // Without BOS the first token of each document is masked; with it, only BOS is.
    assert_eq!(ids(&config, "none"), [((0, 1), 21), ((0, 2), 22), ((1, 1), 21), ((2, 1), 20)]);
    let always = HarvestConfig { bos: lapidary::corpus::Bos::Always, ..config };
    let all = [((0, 1), 20), ((0, 2), 21), ((0, 3), 22), ((1, 1), 21), ((1, 2), 21), ((2, 1), 22), ((2, 2), 20)];
    assert_eq!(ids(&always, "bos"), all);
    let e = run(&corpus, &always, &dir.path().join("without")).unwrap_err().to_string();
    assert!(e.contains("no tokenizer"), "{e}");
}
