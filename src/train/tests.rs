//! The loop learns a planted dictionary, and a run that was cut anywhere ends in the same bytes.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

mod on_gpu;
mod solved;

use super::*;
use crate::dictionary::{Dictionary, Provenance};
use crate::kernels::dot;
use crate::progress::Silent;
use crate::rng::Rng;
use crate::sae::{
    BatchTopKConfig, GatedConfig, Inside, JumpReluConfig, MatryoshkaConfig, MpConfig, MsaeConfig, ReluConfig, SaeConfig, TopKConfig,
};
use crate::shard::Batch;
use crate::Progress;

const D: usize = 16;
const ATOMS: usize = 24;

/// Rows that are sparse non-negative combinations of unit atoms: the truth is known.
struct Planted {
    atoms: Vec<Vec<f32>>,
    at: u64,
    /// What makes the rows' scale this.
    scale: f64,
}

impl Planted {
    fn new() -> Self {
        let atoms = (0..ATOMS)
            .map(|j| {
                let mut rng = Rng::stream(11, "atoms", j as u64);
                let v: Vec<f32> = (0..D).map(|_| rng.normal() as f32).collect();
                let norm = dot(&v, &v).sqrt();
                v.into_iter().map(|x| x / norm).collect()
            })
            .collect();
        Self { atoms, at: 0, scale: 1.0 }
    }
}

impl RowSource for Planted {
    fn width(&self) -> usize {
        D
    }

    fn next_rows(&mut self, n: usize) -> Result<Batch> {
        let mut x = vec![0f32; n * D];
        for row in x.chunks_exact_mut(D) {
            let mut rng = Rng::stream(12, "rows", self.at);
            self.at += 1;
            for _ in 0..2 {
                let atom = &self.atoms[rng.below(ATOMS as u64) as usize];
                let size = 1.0 + rng.uniform() as f32;
                row.iter_mut().zip(atom).for_each(|(r, a)| *r += size * a);
            }
        }
        Ok(Batch { n, x, ..Default::default() })
    }

    fn cursor(&self) -> Cursor {
        Cursor { offset: self.at, ..Default::default() }
    }

    fn seek(&mut self, cursor: &Cursor) -> Result<()> {
        self.at = cursor.offset;
        Ok(())
    }

    fn epoch(&self) -> u64 {
        0
    }

    fn mean_sq_norm(&mut self) -> Result<f64> {
        Ok(D as f64 / (self.scale * self.scale))
    }
}

fn member(root: &Path, k: usize, seed: u64, n_tokens: u64, checkpoint_seconds: f64) -> Member {
    let sae = SaeConfig::TopK(TopKConfig { d_sae: 32, k, ..Default::default() });
    member_of(root, sae, &format!("k{k}-s{seed}"), seed, n_tokens, checkpoint_seconds)
}

fn member_of(root: &Path, sae: SaeConfig, name: &str, seed: u64, n_tokens: u64, checkpoint_seconds: f64) -> Member {
    let sae = sae.resolve(D, n_tokens).unwrap();
    let config = TrainConfig {
        n_tokens,
        batch: 128,
        lr: 3e-3,
        seed,
        data_seed: Some(0),
        init_rows: 512,
        checkpoint_seconds,
        log_every_steps: 7,
        ..Default::default()
    };
    let train = config.resolve(32, 1).unwrap();
    let config_toml = format!("name = \"{name}\"\n");
    Member {
        dir: root.join(name),
        name: name.to_string(),
        sae,
        train,
        config_toml,
        provenance: Provenance::default(),
        beginning: Beginning::default(),
        device: candle_core::Device::Cpu,
    }
}

/// Every learner, at two latents per row or a penalty that comes near it.
fn learners() -> Vec<SaeConfig> {
    vec![
        SaeConfig::TopK(TopKConfig { d_sae: 32, k: 2, ..Default::default() }),
        SaeConfig::BatchTopK(BatchTopKConfig { d_sae: 32, k: 2, ..Default::default() }),
        SaeConfig::Matryoshka(MatryoshkaConfig { d_sae: 32, k: 2, prefixes: vec![8, 24, 32], save_prefixes: true, ..Default::default() }),
        SaeConfig::Matryoshka(MatryoshkaConfig { d_sae: 32, k: 2, sampled: 3, inside: Inside::Topk, ..Default::default() }),
        SaeConfig::Msae(MsaeConfig { d_sae: 32, levels: vec![2, 4, 8], ..Default::default() }),
        SaeConfig::JumpRelu(JumpReluConfig { d_sae: 32, target_l0: 2.0, ..Default::default() }),
        SaeConfig::Gated(GatedConfig { d_sae: 32, l1: 1.0, ..Default::default() }),
        SaeConfig::Relu(ReluConfig { d_sae: 32, l1: 0.5, ..Default::default() }),
    ]
}

/// Mean over true atoms of the best |cosine| with a learned one.
fn recovery(d: &Dictionary, truth: &[Vec<f32>]) -> f32 {
    let rows = d.coder.w_dec.to_vec2::<f32>().unwrap();
    truth.iter().map(|t| rows.iter().map(|r| dot(r, t).abs()).fold(0.0, f32::max)).sum::<f32>() / truth.len() as f32
}

#[test]
fn a_planted_dictionary_is_learned() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = Planted::new();
    let before = {
        let m = member(dir.path(), 2, 0, 1280, 1e9);
        let x = candle_core::Tensor::from_vec(source.next_rows(512).unwrap().x, (512, D), &candle_core::Device::Cpu).unwrap();
        recovery(&crate::sae::build(&m.sae, &x, 0).unwrap().finish(1.0, &x).unwrap(), &source.atoms)
    };
    let report = train(vec![member(dir.path(), 2, 0, 300_000, 1e9)], &mut source, dir.path(), Mode::Fresh, &Silent).unwrap();
    let found = recovery(&Dictionary::load(&report.members[0].dictionary).unwrap(), &source.atoms);
    assert!(found > 0.95 && found > before + 0.2, "{before} -> {found}, {:?}", report.members[0].last);
    assert!(report.members[0].last.fvu < 0.1);
    assert!(report.members[0].last.l0 <= 2.0);
    assert!(train(vec![member(dir.path(), 2, 0, 1280, 1e9)], &mut source, dir.path(), Mode::Fresh, &Silent).is_err(), "folder in use");
}

#[test]
fn every_learner_finds_the_planted_atoms_and_keeps_to_its_sparsity() {
    let dir = tempfile::tempdir().unwrap();
    let members: Vec<Member> = (learners().into_iter().enumerate())
        .map(|(i, sae)| {
            let name = format!("{i}-{}", sae.arch());
            member_of(dir.path(), sae, &name, 0, 400_000, 1e9)
        })
        .collect();
    let mut source = Planted::new();
    let report = train(members, &mut source, dir.path(), Mode::Fresh, &Silent).unwrap();
    for member in &report.members {
        let dictionary = Dictionary::load(&member.dictionary).unwrap();
        let found = recovery(&dictionary, &source.atoms);
        println!("{}: {found:.3}, fvu {:.4}, l0 {:.2}, {:?}", member.name, member.last.fvu, member.last.l0, member.last.parts);
        assert!(found > 0.9, "{}: {found}", member.name);
        assert!(member.last.fvu < 0.15 && member.last.l0 < 8.1, "{}: {:?}", member.name, member.last);
        // Rows that it has not seen: as sparse as in training.
        source.seek(&Cursor { offset: 1 << 40, ..Default::default() }).unwrap();
        let x = candle_core::Tensor::from_vec(source.next_rows(4000).unwrap().x, (4000, D), &candle_core::Device::Cpu).unwrap();
        let l0 = dictionary.encode(&x).unwrap().indices.len() as f64 / 4000.0;
        assert!((l0 - member.last.l0).abs() < 0.25 * member.last.l0, "{}: {l0} held out, {} in training", member.name, member.last.l0);
    }
    let prefixed = &report.members[2];
    let prefix = Dictionary::load(&prefixed.dictionary.join("prefix-24")).unwrap();
    assert_eq!(prefix.d_sae(), 24);
    let parts: Vec<&str> = prefixed.last.parts.keys().map(String::as_str).collect();
    assert_eq!(parts, ["dead_24", "dead_8", "fvu_24", "fvu_8", "l0_24", "l0_8"]);
    assert!(prefixed.last.parts["fvu_8"] > prefixed.last.parts["fvu_24"]);
}

#[test]
fn every_learner_goes_on_exactly_where_it_was_cut() {
    let sweep = |root: &Path, seconds| -> Vec<Member> {
        let named = learners().into_iter().enumerate().map(|(i, sae)| (format!("{i}-{}", sae.arch()), sae));
        named.map(|(name, sae)| member_of(root, sae, &name, 1, 4000, seconds)).collect()
    };
    let (whole, cut) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    train(sweep(whole.path(), 1e9), &mut scaled(), whole.path(), Mode::Fresh, &Silent).unwrap();
    let mut mode = Mode::Fresh;
    while let Err(e) = train(sweep(cut.path(), 0.0), &mut scaled(), cut.path(), mode, &StopAfter(AtomicU64::new(7))) {
        assert!(matches!(e, Error::Interrupted { .. }), "{e}");
        mode = Mode::Resume;
    }
    assert_eq!(mode, Mode::Resume);
    for member in sweep(whole.path(), 1e9) {
        for file in ["dictionary.safetensors", "log.jsonl", "log.parquet"] {
            let read = |root: &Path| std::fs::read(root.join(&member.name).join(file)).unwrap();
            assert!(read(whole.path()) == read(cut.path()), "{}/{file} differs", member.name);
        }
    }
}

/// Fine-tuning, a frozen decoder, and rows without structure.
fn controls(root: &Path, from: &Arc<Dictionary>, seconds: f64) -> Vec<Member> {
    let mut members: Vec<Member> = (learners().into_iter().take(2))
        .flat_map(|sae| ["tuned", "frozen"].map(|name| member_of(root, sae.clone(), &format!("{name}-{}", sae.arch()), 1, 4000, seconds)))
        .collect();
    for m in &mut members {
        if m.name.starts_with("tuned") {
            m.beginning.from = Some(from.clone());
        }
        m.train.freeze_decoder = m.name.starts_with("frozen");
        m.beginning.look = Some(Arc::new(|atoms| Ok(serde_json::json!(atoms.dim(0)?))));
    }
    members
}

#[test]
fn fine_tuning_goes_on_from_the_dictionary_and_a_frozen_decoder_stays() {
    let dir = tempfile::tempdir().unwrap();
    let report = train(vec![member(dir.path(), 2, 0, 60_000, 1e9)], &mut scaled(), dir.path(), Mode::Fresh, &Silent).unwrap();
    let from = Arc::new(Dictionary::load(&report.members[0].dictionary).unwrap());
    let (whole, cut) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    train(controls(whole.path(), &from, 1e9), &mut scaled(), whole.path(), Mode::Fresh, &Silent).unwrap();
    for m in controls(whole.path(), &from, 1e9) {
        let first = &read_log(&m.dir).unwrap()[0];
        let dictionary = Dictionary::load(&m.dir).unwrap();
        assert_eq!(dictionary.provenance.notes["at_start"], 32);
        if m.name.starts_with("tuned") {
            assert!(first.fvu < 2.0 * report.members[0].last.fvu, "{}: {} after {}", m.name, first.fvu, report.members[0].last.fvu);
        } else {
            assert!(first.fvu > 2.0 * report.members[0].last.fvu, "{}: {}", m.name, first.fvu);
            let start = crate::sae::build(
                &m.sae,
                &candle_core::Tensor::ones((4, D), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap(),
                1,
            );
            let off = (&start.unwrap().coder().w_dec - &dictionary.coder.w_dec).unwrap().abs().unwrap();
            assert!(off.flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap() < 1e-6, "{}", m.name);
        }
    }
    let mut mode = Mode::Fresh;
    while let Err(e) = train(controls(cut.path(), &from, 0.0), &mut scaled(), cut.path(), mode, &StopAfter(AtomicU64::new(9))) {
        assert!(matches!(e, Error::Interrupted { .. }), "{e}");
        mode = Mode::Resume;
    }
    for m in controls(whole.path(), &from, 1e9) {
        let read = |root: &Path| std::fs::read(root.join(&m.name).join("dictionary.safetensors")).unwrap();
        assert!(read(whole.path()) == read(cut.path()), "{} differs", m.name);
    }
    // Nothing of a pursuit is left to learn.
    let mut m = mp_member(dir.path(), 2, 1280, 1e9);
    m.train.freeze_decoder = true;
    assert!(train(vec![m], &mut scaled(), dir.path(), Mode::Fresh, &Silent).unwrap_err().to_string().contains("freeze_decoder"));
}

#[test]
fn permuted_coordinates_keep_their_values_and_lose_what_they_share() {
    let (mut plain, mut inner) = (scaled(), scaled());
    let mut permuted = Permuted::new(&mut inner, 3);
    permuted.seek(&Cursor { offset: 100, ..Default::default() }).unwrap();
    let skipped = permuted.next_rows(64).unwrap().x;
    permuted.seek(&Cursor::default()).unwrap();
    let (a, b) = (plain.next_rows(100).unwrap().x, permuted.next_rows(100).unwrap().x);
    assert_eq!(permuted.next_rows(64).unwrap().x, skipped, "a place has its permutation");
    let column = |x: &[f32], c: usize| x.iter().skip(c).step_by(D).map(|v| v.to_bits()).collect::<Vec<_>>();
    let sorted = |mut v: Vec<u32>| {
        v.sort_unstable();
        v
    };
    assert!((0..D).all(|c| column(&a, c) != column(&b, c) && sorted(column(&a, c)) == sorted(column(&b, c))));

    let dir = tempfile::tempdir().unwrap();
    let fvu = |permute: bool| {
        let mut m = member(&dir.path().join(format!("{permute}")), 2, 0, 100_000, 1e9);
        m.train.permute_columns = permute;
        let root = m.dir.clone();
        train(vec![m], &mut scaled(), &root, Mode::Fresh, &Silent).unwrap().members[0].last.fvu
    };
    let (real, without) = (fvu(false), fvu(true));
    assert!(without > 2.0 * real, "{real} with structure, {without} without");
}

/// Cancels after so many batches.
struct StopAfter(AtomicU64);

impl Progress for StopAfter {
    fn is_cancelled(&self) -> bool {
        self.0.fetch_sub(1, Ordering::Relaxed) <= 1
    }
}

fn bytes_of(root: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for member in ["k2-s0", "k3-s1"] {
        for file in ["dictionary.json", "dictionary.safetensors", "config.toml", "log.jsonl", "log.parquet"] {
            all.push((format!("{member}/{file}"), std::fs::read(root.join(member).join(file)).unwrap()));
        }
    }
    all
}

fn scaled() -> Planted {
    Planted { scale: 1.5, ..Planted::new() }
}

#[test]
fn an_interrupted_sweep_ends_in_the_same_bytes() {
    let sweep = |root: &Path, seconds| vec![member(root, 2, 0, 6000, seconds), member(root, 3, 1, 6000, seconds)];
    let whole = tempfile::tempdir().unwrap();
    train(sweep(whole.path(), 1e9), &mut scaled(), whole.path(), Mode::Fresh, &Silent).unwrap();
    let want = bytes_of(whole.path());

    let cut = tempfile::tempdir().unwrap();
    let mut mode = Mode::Fresh;
    let mut stops = 0;
    loop {
        // Checkpoints after every step (0 seconds), interruptions every few.
        match train(sweep(cut.path(), 0.0), &mut scaled(), cut.path(), mode, &StopAfter(AtomicU64::new(5))) {
            Ok(_) => break,
            Err(Error::Interrupted { .. }) => stops += 1,
            Err(e) => panic!("{e}"),
        }
        mode = Mode::Resume;
    }
    assert!(stops > 5);
    for ((name, a), (_, b)) in want.iter().zip(bytes_of(cut.path())) {
        // The checkpoint interval is part of the resolved configuration, which dictionary.json carries.
        if name.ends_with("dictionary.json") {
            let strip = |bytes: &[u8]| {
                String::from_utf8(bytes.to_vec()).unwrap().lines().filter(|l| !l.contains("checkpoint_seconds")).collect::<String>()
            };
            assert_eq!(strip(a), strip(&b));
        } else {
            assert!(*a == b, "{name} differs");
        }
    }
    // A sweep resumes whole: leaving a member out would lose its state.
    let half = tempfile::tempdir().unwrap();
    let stopped = train(sweep(half.path(), 0.0), &mut scaled(), half.path(), Mode::Fresh, &StopAfter(AtomicU64::new(5)));
    assert!(matches!(stopped, Err(Error::Interrupted { .. })));
    let fewer = sweep(half.path(), 0.0).into_iter().take(1).collect();
    let error = train(fewer, &mut scaled(), half.path(), Mode::Resume, &Silent).unwrap_err();
    assert!(error.to_string().contains("k3-s1"), "{error}");
    // Overwriting with a smaller sweep leaves nothing of the larger one.
    train(sweep(half.path(), 1e9).into_iter().take(1).collect(), &mut scaled(), half.path(), Mode::Overwrite, &Silent).unwrap();
    assert!(half.path().join("k2-s0").is_dir() && !half.path().join("k3-s1").exists());
    // Complete: resuming does nothing.
    assert!(train(sweep(cut.path(), 0.0), &mut scaled(), cut.path(), Mode::Resume, &Silent).unwrap().was_complete);
}

#[test]
fn bad_rows_and_divergence_stop_the_run() {
    struct Bad(Planted);
    impl RowSource for Bad {
        fn width(&self) -> usize {
            D
        }
        fn next_rows(&mut self, n: usize) -> Result<Batch> {
            let mut batch = self.0.next_rows(n)?;
            if self.0.at > 2000 {
                batch.x[5 * D + 3] = f32::NAN;
            }
            batch.doc_id = (0..n as u64).collect();
            batch.position = vec![9; n];
            Ok(batch)
        }
        fn cursor(&self) -> Cursor {
            self.0.cursor()
        }
        fn seek(&mut self, cursor: &Cursor) -> Result<()> {
            self.0.seek(cursor)
        }
        fn epoch(&self) -> u64 {
            0
        }
        fn mean_sq_norm(&mut self) -> Result<f64> {
            self.0.mean_sq_norm()
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let error = train(vec![member(dir.path(), 2, 0, 6000, 1e9)], &mut Bad(Planted::new()), dir.path(), Mode::Fresh, &Silent).unwrap_err();
    assert!(error.to_string().contains("document 5, position 9"), "{error}");
    assert!(!dir.path().join("k2-s0/dictionary.json").exists());

    let dir = tempfile::tempdir().unwrap();
    let mut m = member(dir.path(), 2, 0, 20_000, 1e9);
    m.train.lr = 1e30;
    m.train.warmup_fraction = 0.0;
    let error = train(vec![m], &mut Planted::new(), dir.path(), Mode::Fresh, &Silent).unwrap_err();
    assert!(error.to_string().contains("at step") && error.exit_code() == 3, "{error}");
}

#[test]
fn impossible_settings_name_their_key() {
    let refused = |c: TrainConfig| c.resolve(64, 1000).unwrap_err().to_string();
    assert!(refused(TrainConfig { batch: 0, ..Default::default() }).contains("train.batch"));
    assert!(refused(TrainConfig { warmup_fraction: 0.9, decay_fraction: 0.3, ..Default::default() }).contains("together at most 1"));
    assert!(refused(TrainConfig { lr: f64::NAN, ..Default::default() }).contains("train.lr"));
    let c = TrainConfig::default().resolve(16384, 1000).unwrap();
    assert_eq!((c.lr, c.n_tokens, c.n_steps()), (2e-4, 1000, 1));
    let error = SaeConfig::TopK(TopKConfig { d_sae: 8, k: 9, ..Default::default() }).resolve(4, 10).unwrap_err();
    assert!(error.to_string().contains("choose k between 1 and 8"), "{error}");
}

fn mp_member(root: &Path, k: usize, n_tokens: u64, checkpoint_seconds: f64) -> Member {
    let sae = SaeConfig::Mp(MpConfig { d_sae: 32, k, ..Default::default() }).resolve(D, n_tokens).unwrap();
    Member { sae, ..member(root, k, 0, n_tokens, checkpoint_seconds) }
}

#[test]
fn matching_pursuit_learns_honours_its_steps_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = Planted::new();
    let report = train(vec![mp_member(dir.path(), 3, 300_000, 1e9)], &mut source, dir.path(), Mode::Fresh, &Silent).unwrap();
    let last = &report.members[0].last;
    let d = Dictionary::load(&report.members[0].dictionary).unwrap();
    let found = recovery(&d, &source.atoms);
    assert!(found > 0.95, "{found}, {last:?}");
    assert!(last.fvu < 0.1 && last.l0 <= 3.0, "{last:?}");
    let n = 500;
    let x = candle_core::Tensor::from_vec(source.next_rows(n).unwrap().x, (n, D), &candle_core::Device::Cpu).unwrap();
    let codes = d.encode(&x).unwrap();
    assert!((0..n).all(|r| codes.row(r).0.len() <= 3 && codes.row(r).1.iter().all(|&v| v > 0.0)));
    d.save(&dir.path().join("again")).unwrap();
    assert_eq!(Dictionary::load(&dir.path().join("again")).unwrap().encode(&x).unwrap(), codes);
}

#[test]
fn interrupted_matching_pursuit_ends_in_the_same_bytes() {
    // Dead after 300 tokens: the auxiliary pursuit takes part.
    let one = |root: &Path, seconds| {
        let mut m = mp_member(root, 2, 4000, seconds);
        if let SaeConfig::Mp(c) = &mut m.sae {
            c.aux_k.dead_after_tokens = 300;
        }
        vec![m]
    };
    let files = ["dictionary.safetensors", "log.jsonl", "log.parquet"];
    let bytes = |root: &Path| files.map(|f| std::fs::read(root.join("k2-s0").join(f)).unwrap());
    let whole = tempfile::tempdir().unwrap();
    train(one(whole.path(), 1e9), &mut scaled(), whole.path(), Mode::Fresh, &Silent).unwrap();
    let cut = tempfile::tempdir().unwrap();
    let mut mode = Mode::Fresh;
    let mut stops = 0;
    while let Err(e) = train(one(cut.path(), 0.0), &mut scaled(), cut.path(), mode, &StopAfter(AtomicU64::new(5))) {
        assert!(matches!(e, Error::Interrupted { .. }), "{e}");
        (mode, stops) = (Mode::Resume, stops + 1);
    }
    assert!(stops > 3);
    assert!(bytes(whole.path()) == bytes(cut.path()));
}
