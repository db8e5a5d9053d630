//! Training straight from a host: the rows are a harvest's, mixed, endless, and found again by a cursor; an interrupted run ends in the
//! same bytes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Mutex;

use lapidary::corpus::Corpus;
use lapidary::dictionary::Provenance;
use lapidary::harvest::{harvest, HarvestConfig, Mode, Stream};
use lapidary::host::HostModel;
use lapidary::progress::{Progress, Silent};
use lapidary::sae::{SaeConfig, TopKConfig};
use lapidary::shard::{split_of, Batch, Shards, ShuffleConfig, Split};
use lapidary::stream::{MixConfig, Streamed};
use lapidary::train::{train, Cursor, Member, RowSource, TrainConfig};
use lapidary::{Dictionary, Error, Result};

use super::outliers::{config, corpus, documents, planted, HOOK, NAN};
use crate::support::concat;

/// Bytes of a row of the planted host: 24 values and its ids.
const ROW: u64 = 4 * 24 + 20;

fn streamed<'a>(host: &'a dyn HostModel, corpus: &Corpus, window: u64, n_rows: u64, progress: &'a dyn Progress) -> Streamed<'a> {
    let stream = Stream::new(host, corpus, None, &config()).unwrap();
    Streamed::new(stream, MixConfig { seed: 4, buffer_bytes: window * ROW, n_rows }, progress).unwrap()
}

type Rows = BTreeMap<(u64, u32), Vec<u32>>;

/// By document and position, values as bits; a row that comes twice is an error.
fn keyed(batch: &Batch) -> Rows {
    let width = batch.x.len() / batch.n;
    let mut rows = Rows::new();
    for (i, row) in batch.x.chunks_exact(width).enumerate() {
        let bits = row.iter().map(|v| v.to_bits()).collect();
        assert!(rows.insert((batch.doc_id[i], batch.position[i]), bits).is_none(), "a row came twice");
    }
    rows
}

/// The training rows of a harvest with the same configuration.
fn harvested(host: &dyn HostModel, corpus: &Corpus, out: &Path) -> Batch {
    harvest(host, corpus, None, &config(), out, Mode::Fresh, &Silent).unwrap();
    concat(Shards::open(out).unwrap().scan(HOOK, Some(Split::Train)).unwrap().map(Result::unwrap))
}

#[test]
fn every_epoch_hands_out_the_harvests_training_rows_once() {
    let dir = tempfile::tempdir().unwrap();
    let host = planted(Some(1), false);
    let corpus = corpus(dir.path(), &documents(300, 1), 1);
    let all = harvested(host.as_ref(), &corpus, &dir.path().join("shards"));
    let want = keyed(&all);
    assert!(all.doc_id.iter().all(|&d| split_of(d, 0, 0.2) == Split::Train));
    // The whole corpus at once, a few windows, and windows of one block.
    for window in [1_000_000, 2500, 1] {
        let ears = Ears::default();
        let mut source = streamed(host.as_ref(), &corpus, window, 1_000_000, &ears);
        let mut orders = Vec::new();
        for epoch in 0..3 {
            assert_eq!(source.epoch(), epoch);
            let mut got = Batch::default();
            while got.n < all.n {
                let next = source.next_rows(97.min(all.n - got.n)).unwrap();
                got = concat([got, next].into_iter());
            }
            assert!(keyed(&got) == want, "window {window}, epoch {epoch}");
            orders.push(got.doc_id.clone());
            // Neighbours in a batch come from all over the window.
            let near = got.doc_id.windows(2).filter(|p| p[0].abs_diff(p[1]) <= 1).count();
            let allowed = if window == 1_000_000 { all.n / 30 } else { all.n / 4 };
            assert!(near < allowed, "window {window}: {near} of {}", all.n);
        }
        assert!(orders[0] != orders[1] && orders[1] != orders[2], "another order in each epoch");
        let told = ears.0.lock().unwrap().join("\n");
        assert_eq!(told.matches("reading it again").count(), 1, "{told}");
        // The scale is that of the first window; of the whole corpus if it fits.
        let exact = all.x.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / all.n as f64;
        let norm = source.mean_sq_norm().unwrap();
        assert!((norm / exact - 1.0).abs() < if window == 1_000_000 { 1e-12 } else { 0.1 }, "{norm} {exact}");
        let report = source.report().unwrap();
        assert_eq!(report.stream["counts"], serde_json::json!(Shards::open(&dir.path().join("shards")).unwrap().manifest().counts));
        // Read once where it fits, thrice where it does not.
        let passes = report.forward.unwrap().tokens as f64 / report.stream["counts"]["tokens"].as_f64().unwrap();
        assert_eq!(passes, if window == 1_000_000 { 1.0 } else { 3.0 });
    }
    // Windows are of like size: 3000 rows do not make one of 2500 and one of 500.
    assert_eq!(streamed(host.as_ref(), &corpus, 2500, 3000, &Silent).window_rows(), 1500);
    // A number of rows in the harvest's configuration ends the corpus there.
    let part = HarvestConfig { n_tokens: Some(1000), ..config() };
    let stream = Stream::new(host.as_ref(), &corpus, None, &part).unwrap();
    let mut source = Streamed::new(stream, MixConfig { seed: 0, buffer_bytes: 1 << 20, n_rows: 5000 }, &Silent).unwrap();
    source.next_rows(1001).unwrap();
    let counts = &source.report().unwrap().stream["counts"]["rows"];
    assert_eq!((source.epoch(), counts["train"].as_u64().unwrap() + counts["held-out"].as_u64().unwrap()), (1, 1000));
}

#[test]
fn every_cursor_finds_its_rows_again() {
    let dir = tempfile::tempdir().unwrap();
    let host = planted(Some(1), false);
    let corpus = corpus(dir.path(), &documents(120, 1), 1);
    for (window, pack) in [(1_000_000, false), (700, false), (1, true), (1, false)] {
        let streamed = |host, corpus, window, n_rows, progress| -> Streamed<'_> {
            let stream = Stream::new(host, corpus, None, &HarvestConfig { pack, ..config() }).unwrap();
            Streamed::new(stream, MixConfig { seed: 4, buffer_bytes: window * ROW, n_rows }, progress).unwrap()
        };
        let mut source = streamed(host.as_ref(), &corpus, window, 100_000, &Silent);
        let norm = source.mean_sq_norm().unwrap();
        let mut seen = Vec::new();
        for _ in 0..40 {
            let cursor = serde_json::to_string(&source.cursor()).unwrap();
            seen.push((cursor, source.next_rows(130).unwrap(), source.epoch()));
        }
        assert!(source.epoch() > 1);
        for (cursor, rows, epoch) in seen.iter().rev().step_by(3) {
            let cursor: Cursor = serde_json::from_str(cursor).unwrap();
            // In a process of its own, and by going back.
            let mut fresh = streamed(host.as_ref(), &corpus, window, 100_000, &Silent);
            fresh.seek(&cursor).unwrap();
            assert_eq!((fresh.mean_sq_norm().unwrap(), fresh.cursor()), (norm, cursor.clone()));
            source.seek(&cursor).unwrap();
            for s in [&mut fresh, &mut source] {
                assert!(s.next_rows(130).unwrap() == *rows);
                assert_eq!(s.epoch(), *epoch);
            }
        }
    }
    // Cursors of other data are refused, both ways.
    let mut source = streamed(host.as_ref(), &corpus, 700, 100_000, &Silent);
    source.next_rows(900).unwrap();
    let cursor = source.cursor();
    let other = super::outliers::corpus(dir.path(), &documents(121, 1), 1);
    let refused = streamed(host.as_ref(), &other, 700, 100_000, &Silent).seek(&cursor).unwrap_err().to_string();
    assert!(refused.contains("not what it was"), "{refused}");
    let refused = source.seek(&Cursor { offset: 5, ..Cursor::default() }).unwrap_err().to_string();
    assert!(refused.contains("--shards"), "{refused}");
    harvest(host.as_ref(), &other, None, &config(), &dir.path().join("shards"), Mode::Fresh, &Silent).unwrap();
    let mut shards =
        Shards::open(&dir.path().join("shards")).unwrap().shuffled(HOOK, Some(Split::Train), &ShuffleConfig::default()).unwrap();
    assert!(RowSource::seek(&mut shards, &cursor).unwrap_err().to_string().contains("--model"));
    // A checkpoint from before there were streams has three numbers.
    let old: Cursor = serde_json::from_str(r#"{"epoch": 1, "window": 0, "offset": 7}"#).unwrap();
    RowSource::seek(&mut shards, &old).unwrap();
    assert_eq!(RowSource::cursor(&shards), old);
    assert_eq!(serde_json::to_string(&old).unwrap(), r#"{"epoch":1,"window":0,"offset":7}"#);
}

/// Keeps warnings.
#[derive(Default)]
struct Ears(Mutex<Vec<String>>);

impl Progress for Ears {
    fn warn(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_string());
    }
}

/// Cancels at the k-th question: between steps, or in the middle of a window's forward passes.
struct StopAfter(AtomicU64);

impl Progress for StopAfter {
    fn is_cancelled(&self) -> bool {
        self.0.fetch_sub(1, Ordering::Relaxed) == 1
    }
}

const N_ROWS: u64 = 6000;

fn sweep(root: &Path) -> Vec<Member> {
    let member = |k: usize, seed: u64| {
        let sae = SaeConfig::TopK(TopKConfig { d_sae: 48, k, ..Default::default() }).resolve(24, N_ROWS).unwrap();
        let config = TrainConfig { n_tokens: N_ROWS, batch: 100, lr: 3e-3, seed, data_seed: Some(0), init_rows: 512, ..Default::default() };
        let train = TrainConfig { checkpoint_seconds: 0.0, log_every_steps: 7, ..config }.resolve(48, 1).unwrap();
        let name = format!("k{k}");
        Member {
            dir: root.join(&name),
            name,
            sae,
            train,
            config_toml: format!("k = {k}\n"),
            provenance: Provenance::default(),
            beginning: Default::default(),
            device: candle_core::Device::Cpu,
        }
    };
    vec![member(2, 0), member(4, 1)]
}

fn bytes_of(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = ["dictionary.json", "dictionary.safetensors", "config.toml", "log.jsonl", "log.parquet"];
    let all = ["k2", "k4"].iter().flat_map(|member| files.iter().map(move |file| format!("{member}/{file}")));
    all.map(|name| (name.clone(), std::fs::read(root.join(&name)).unwrap())).collect()
}

#[test]
fn an_interrupted_streaming_sweep_ends_in_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let host = planted(Some(1), false);
    // Shorter than the run: it wraps. The windows do not divide it.
    let corpus = corpus(dir.path(), &documents(150, 1), 1);
    let run = |root: &Path, mode, progress: &dyn Progress| -> Result<()> {
        train(sweep(root), &mut streamed(host.as_ref(), &corpus, 1100, N_ROWS, progress), root, mode, progress).map(|_| ())
    };
    let whole = dir.path().join("whole");
    run(&whole, Mode::Fresh, &Silent).unwrap();
    let want = bytes_of(&whole);
    let dictionary = Dictionary::load(&whole.join("k2")).unwrap();
    let (stream, notes) = (&dictionary.provenance.stream, &dictionary.provenance.notes);
    assert!(stream["counts"]["masked"]["outlier"].as_u64().unwrap() > 20 && stream["masking"]["outlier"]["rows"] == 500, "{stream}");
    assert!(stream["scale_rows"].as_u64().unwrap() >= 1000 && notes["scale"].as_f64().unwrap() > 0.0);
    let mut in_the_middle = 0;
    for k in [1, 2, 9, 23, 40, 41, 57, 78, 90] {
        let cut = dir.path().join(format!("cut-{k}"));
        let (mut mode, mut stops) = (Mode::Fresh, 0);
        loop {
            match run(&cut, mode, &StopAfter(AtomicU64::new(k + stops))) {
                Ok(()) => break,
                Err(Error::Interrupted { doing: "training" }) => stops += 1,
                Err(e) => panic!("{e}"),
            }
            mode = Mode::Resume;
        }
        in_the_middle += u64::from(stops > 1);
        assert!(bytes_of(&cut) == want, "stopped at question {k}, {stops} times");
    }
    assert!(in_the_middle > 4, "{in_the_middle}");
    let again = train(sweep(&whole), &mut streamed(host.as_ref(), &corpus, 1100, N_ROWS, &Silent), &whole, Mode::Resume, &Silent).unwrap();
    assert!(again.was_complete && bytes_of(&whole) == want);
}

#[test]
fn what_cannot_be_streamed_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let host = planted(Some(1), false);
    let first = |documents: &[Vec<u32>]| {
        let corpus = corpus(dir.path(), documents, 1);
        streamed(host.as_ref(), &corpus, 1000, 1000, &Silent).next_rows(10).map(|b| b.n)
    };
    let e = first(&[vec![1], vec![1, 1]]).unwrap_err();
    assert!(e.exit_code() == 2 && e.to_string().contains("3 tokens were read, and all were masked"), "{e}");
    let e = first(&[vec![1, 20, 21], vec![1, 22, NAN]]).unwrap_err();
    assert!(matches!(&e, Error::NotFinite { place, .. } if place.starts_with("document 1, ")), "{e}");
    // Far more rows are wanted than there are: they come again and again.
    let few = [vec![1, 20, 21], vec![1, 22, 23], vec![1, 24], vec![1, 25]];
    assert_eq!(first(&few).unwrap(), 10);
    let corpus = corpus(dir.path(), &documents(5, 1), 1);
    let two = HarvestConfig { hooks: vec![HOOK.into(), "blocks.0.hook_resid_post".into()], ..config() };
    let e = Stream::new(host.as_ref(), &corpus, None, &two).err().unwrap().to_string();
    assert!(e.contains("harvest.hooks") && e.contains("2 hook points"), "{e}");
}
