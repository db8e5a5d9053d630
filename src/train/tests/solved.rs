//! Members whose decoders are solved for: they learn, never raise F at a solve, and end in the same bytes however they were cut.

use super::*;

/// So many of the planted rows, over and over, eight to a document.
struct Finite {
    rows: Planted,
    n: u64,
}

impl RowSource for Finite {
    fn width(&self) -> usize {
        D
    }

    fn next_rows(&mut self, n: usize) -> Result<Batch> {
        let mut batch = Batch::default();
        for _ in 0..n {
            let at = self.rows.at;
            self.rows.at = at % self.n;
            batch.x.extend(self.rows.next_rows(1)?.x);
            batch.doc_id.push(at % self.n / 8);
            self.rows.at = at + 1;
        }
        batch.n = n;
        Ok(batch)
    }

    fn cursor(&self) -> Cursor {
        self.rows.cursor()
    }

    fn seek(&mut self, cursor: &Cursor) -> Result<()> {
        self.rows.seek(cursor)
    }

    fn epoch(&self) -> u64 {
        self.rows.at / self.n
    }

    fn rows_per_epoch(&self) -> Option<u64> {
        Some(self.n)
    }

    fn mean_sq_norm(&mut self) -> Result<f64> {
        self.rows.mean_sq_norm()
    }
}

fn finite(n: u64) -> Finite {
    Finite { rows: scaled(), n }
}

/// Learners whose decoder is solved for.
fn solved(root: &Path, n_tokens: u64, seconds: f64) -> Vec<Member> {
    let topk = SaeConfig::TopK(TopKConfig { d_sae: 32, k: 2, ..Default::default() });
    let relu = SaeConfig::Relu(ReluConfig { d_sae: 32, l1: 0.5, ..Default::default() });
    let pulled = PamConfig { ridge: 3.0, mu_dec: 0.1, nu_dec: 0.2, beta: 0.1, mu_enc: 20.0, nu_enc: 10.0, ..Default::default() };
    let blocks = PamConfig { block_above: 8, solve_every_tokens: 700, initial_solve: false, ..Default::default() };
    let all = [
        ("chosen", &topk, PamConfig::default()),
        ("pulled", &topk, pulled),
        ("relu", &relu, PamConfig::default()),
        ("blocks", &topk, blocks),
    ];
    let members = all.into_iter().map(|(name, sae, pam)| {
        let mut member = member_of(root, sae.clone(), name, 1, n_tokens, seconds);
        member.train.pam = Some(pam);
        member
    });
    members.collect()
}

#[test]
fn solved_decoders_find_the_planted_atoms_and_f_never_rises_at_a_solve() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = finite(4000);
    let report = train(solved(dir.path(), 200_000, 1e9), &mut source, dir.path(), Mode::Fresh, &Silent).unwrap();
    for member in &report.members {
        let dictionary = Dictionary::load(&member.dictionary).unwrap();
        let found = recovery(&dictionary, &source.rows.atoms);
        println!("{}: {found:.3}, fvu {:.4}, l0 {:.2}, {:?}", member.name, member.last.fvu, member.last.l0, member.last.parts);
        assert!(found > 0.9, "{}: {found}", member.name);
        let part = |name: &str| member.last.parts[name].unwrap();
        // After the last solve, over all rows; and what was saved does that on rows.
        // An L1 penalty shrinks codes.
        let most = if member.name == "relu" { 0.2 } else { 0.1 };
        assert!(part("solved_fvu") < most && part("ridge") > 0.0, "{}: {:?}", member.name, member.last);
        source.seek(&Cursor::default()).unwrap();
        let x = candle_core::Tensor::from_vec(source.next_rows(4000).unwrap().x, (4000, D), &candle_core::Device::Cpu).unwrap();
        let (codes, xhat) = dictionary.reconstruct(&x).unwrap();
        let sum = |t: candle_core::Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        let fvu = sum((xhat - &x).unwrap()) / sum(x.broadcast_sub(&x.mean(0).unwrap()).unwrap());
        assert!((f64::from(fvu) - part("solved_fvu")).abs() < 1e-4, "{}: {fvu} {}", member.name, part("solved_fvu"));
        assert!(codes.indices.len() as f64 / 4000.0 < 8.0);
        assert!(dictionary.atom_norms().unwrap().iter().all(|n| (n - 1.0).abs() < 1e-4));
        let solves: Vec<LogRecord> =
            read_log(&member.dictionary).unwrap().into_iter().filter(|r| r.parts.contains_key("objective")).collect();
        assert!(solves.len() > 10);
        for r in &solves {
            let [before, after] = ["objective_before", "objective"].map(|name| r.parts[name].unwrap());
            assert!(after <= before * (1.0 + 1e-9) || member.name == "pulled", "{}, step {}: {before} -> {after}", member.name, r.step);
        }
    }
}

#[test]
fn solved_decoders_come_back_to_the_same_bytes_on_any_number_of_threads() {
    let whole = tempfile::tempdir().unwrap();
    let together = |root: &Path, seconds| {
        // One that learns its decoder takes part: it must not notice.
        let mut members = solved(root, 5000, seconds);
        members.push(member_of(root, SaeConfig::TopK(TopKConfig { d_sae: 32, k: 2, ..Default::default() }), "learned", 1, 5000, seconds));
        members
    };
    train(together(whole.path(), 1e9), &mut finite(1500), whole.path(), Mode::Fresh, &Silent).unwrap();
    let cut = tempfile::tempdir().unwrap();
    let (mut mode, mut threads) = (Mode::Fresh, 1);
    loop {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        match pool.install(|| train(together(cut.path(), 0.0), &mut finite(1500), cut.path(), mode, &StopAfter(AtomicU64::new(6)))) {
            Ok(_) => break,
            Err(e) => assert!(matches!(e, Error::Interrupted { .. }), "{e}"),
        }
        (mode, threads) = (Mode::Resume, threads % 3 + 1);
    }
    assert_eq!(mode, Mode::Resume);
    for member in together(whole.path(), 1e9) {
        for file in ["dictionary.safetensors", "log.jsonl", "log.parquet"] {
            let read = |root: &Path| std::fs::read(root.join(&member.name).join(file)).unwrap();
            assert!(read(whole.path()) == read(cut.path()), "{}/{file} differs", member.name);
        }
    }
    let alone = tempfile::tempdir().unwrap();
    let learned = together(alone.path(), 1e9).pop().unwrap();
    train(vec![learned], &mut finite(1500), alone.path(), Mode::Fresh, &Silent).unwrap();
    let log = |root: &Path| std::fs::read(root.join("learned/log.jsonl")).unwrap();
    assert!(log(alone.path()) == log(whole.path()));
}

#[test]
fn decoders_that_cannot_be_solved_for_are_refused_before_any_work() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |change: &dyn Fn(&mut Member), source: &mut dyn RowSource| {
        let mut member = solved(dir.path(), 2000, 1e9).remove(0);
        change(&mut member);
        let error = train(vec![member], source, dir.path(), Mode::Fresh, &Silent).unwrap_err();
        assert_eq!((error.exit_code(), std::fs::read_dir(dir.path()).unwrap().count()), (2, 0), "{error}");
        error.to_string()
    };
    let other = refused(&|m| m.sae = SaeConfig::Gated(GatedConfig { d_sae: 32, l1: 1.0, ..Default::default() }), &mut finite(1500));
    assert!(other.contains("gated") && other.contains("arch = \"topk\" or \"relu\""), "{other}");
    let large = refused(
        &|m| m.sae = SaeConfig::TopK(TopKConfig { d_sae: 65_536, k: 2, ..Default::default() }).resolve(D, 2000).unwrap(),
        &mut finite(1500),
    );
    assert!(large.contains("34.4 GB for each") && large.contains("max_memory_bytes"), "{large}");
    assert!(refused(&|_| {}, &mut Planted::new()).contains("harvest"));
    let settings = |change: fn(&mut PamConfig)| {
        let mut pam = PamConfig::default();
        change(&mut pam);
        TrainConfig { pam: Some(pam), ..Default::default() }.resolve(64, 1000).unwrap_err().to_string()
    };
    assert!(settings(|p| p.mu_dec = -1.0).contains("train.pam.mu_dec"));
    assert!(settings(|p| p.ridge_from = 0.0).contains("train.pam.ridge_from"));
    assert!(settings(|p| p.validation_fraction = 1.0).contains("train.pam.ridge"));
    assert!(settings(|p| p.block_sweeps = 0).contains("train.pam.block_sweeps"));
}
