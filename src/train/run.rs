//! The loop: one pass over the rows, every member of the sweep learning from each batch.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{ArrayRef, Float64Array, StringArray, UInt64Array};
use candle_core::{Device, Tensor};
use serde::Serialize;

use super::checkpoint::{self, Loaded, MemberState, State};
use super::log::{self, LogFile, LogRecord, Window};
use super::remote::Remote;
use super::source::{normalised, Cursor, Forward, SourceReport};
use super::{pam, scale_for, Optimizer, Permuted, RowSource, Schedule, TrainConfig};
use crate::artefact;
pub use crate::artefact::Mode;
use crate::dictionary::{Dictionary, Provenance};
use crate::error::{Error, Result};
use crate::kernels::Gradient;
use crate::progress::Progress;
use crate::sae::{self, Learner, SaeConfig, Start};

/// One dictionary to be: its folder, its settings, resolved.
#[derive(Debug, Clone)]
pub struct Member {
    /// For legends and folders.
    pub name: String,
    /// Where its artefact goes.
    pub dir: PathBuf,
    /// The learner's settings.
    pub sae: SaeConfig,
    /// The loop's settings; `batch`, `n_tokens` and `data_seed` are shared by a sweep.
    pub train: TrainConfig,
    /// The resolved run file, saved as `config.toml`.
    pub config_toml: String,
    /// Hook, host and shards, copied into the dictionary.
    pub provenance: Provenance,
    /// What it starts from, and who looks at that.
    pub beginning: Beginning,
    /// Where it learns: the CPU, or a GPU.
    pub device: Device,
}

/// A member before its first step. The default starts from its seed, unseen.
#[derive(Clone, Default)]
pub struct Beginning {
    /// A trained dictionary of the same size, for fine-tuning (`init_from` of the settings names its folder).
    pub from: Option<Arc<Dictionary>>,
    /// Sees the atoms; what it says is kept as `at_start` in the dictionary's notes.
    pub look: Option<Look>,
}

/// What looks at atoms `[d_sae, d_in]`, f32, before the first step.
pub type Look = Arc<dyn Fn(&Tensor) -> Result<serde_json::Value> + Send + Sync>;

impl fmt::Debug for Beginning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Beginning").field("from", &self.from.is_some()).field("look", &self.look.is_some()).finish()
    }
}

/// What came of a run.
#[derive(Debug, Clone, Serialize)]
pub struct TrainReport {
    /// The dictionaries.
    pub members: Vec<TrainedMember>,
    /// Optimiser steps of each.
    pub steps: u64,
    /// Rows seen by each.
    pub tokens: u64,
    /// Wall clock of this process's share of the run.
    pub seconds: f64,
    /// Rows per second of that share, all members together counting once.
    pub tokens_per_s: f64,
    /// What of it the host did; absent where the rows came from shards.
    pub forward: Option<Forward>,
    /// Was everything there already?
    pub was_complete: bool,
}

/// One trained dictionary.
#[derive(Debug, Clone, Serialize)]
pub struct TrainedMember {
    /// Its name.
    pub name: String,
    /// Its folder.
    pub dictionary: PathBuf,
    /// Number of latents.
    pub d_sae: usize,
    /// Peak learning rate.
    pub lr: f64,
    /// Its seed.
    pub seed: u64,
    /// The log's last line.
    pub last: LogRecord,
}

impl fmt::Display for TrainReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.was_complete {
            writeln!(f, "already complete; nothing was done")?;
        } else {
            write!(f, "{} steps, {} tokens, {:.1} s ({:.0} tokens/s)", self.steps, self.tokens, self.seconds, self.tokens_per_s)?;
            if let Some(forward) = &self.forward {
                let (share, padding) = (100.0 * forward.seconds / self.seconds, 100.0 * forward.padding_share);
                write!(f, ", {share:.0} % of it in the host's forward passes ({padding:.1} % padding)")?;
            }
            writeln!(f)?;
        }
        let wide = self.members.iter().map(|m| m.name.len()).max().unwrap_or(0).max(10);
        writeln!(f, "{:<wide$}  {:>7}  {:>8}  {:>9}  {:>7}  {:>6}  folder", "dictionary", "d_sae", "lr", "train FVU", "L0", "dead")?;
        for m in &self.members {
            writeln!(
                f,
                "{:<wide$}  {:>7}  {:>8.2e}  {:>9.4}  {:>7.2}  {:>6}  {}",
                m.name,
                m.d_sae,
                m.lr,
                m.last.fvu,
                m.last.l0,
                m.last.dead,
                m.dictionary.display()
            )?;
        }
        if let Some(m) = self.members.first() {
            write!(f, "train FVU: mean over the last log window; dead: silent for {} tokens", m.last.dead_after_tokens)?;
        }
        Ok(())
    }
}

/// A member while it learns.
struct Running {
    member: Member,
    learner: Box<dyn Learner>,
    optimizer: Optimizer,
    solver: Option<pam::Solver>,
    on_device: Option<Remote>,
    schedule: Schedule,
    log: LogFile,
    window: Window,
    at_start: Option<serde_json::Value>,
}

impl Running {
    /// Reads what the GPU has told so far, if it learns on one.
    fn catch_up(&mut self) -> Result<()> {
        match &mut self.on_device {
            Some(remote) => remote.catch_up(self.learner.as_mut(), &mut self.window),
            None => Ok(()),
        }
    }

    /// Brings the parameters back from the GPU, if it learns on one.
    fn bring_home(&mut self) -> Result<()> {
        match &mut self.on_device {
            Some(remote) => remote.bring_home(self.learner.as_mut(), &mut self.window, &self.optimizer),
            None => Ok(()),
        }
    }
}

/// Trains all members from one pass over `source`, whose rows are scaled to mean squared norm `d_in` (see [`super::scale_for`]); `root`
/// holds the checkpoint.
///
/// # Errors
/// Impossible sweeps, damaged data, divergence (named by step; nothing of the bad step is applied), interruption.
pub fn train(members: Vec<Member>, source: &mut dyn RowSource, root: &Path, mode: Mode, progress: &dyn Progress) -> Result<TrainReport> {
    let shared = shared_settings(&members)?;
    pam::check(&members, source)?;
    prepare(&members, root, mode)?;
    if mode == Mode::Resume && members.iter().all(|m| m.dir.join("dictionary.json").is_file()) && !checkpoint::exists(root) {
        return complete_report(&members, &shared);
    }
    let started = Instant::now();
    let mut permuted;
    let source: &mut dyn RowSource = if shared.permute_columns {
        permuted = Permuted::new(source, shared.data_seed.unwrap_or(shared.seed));
        &mut permuted
    } else {
        source
    };
    let d_in = source.width();
    let resumed = if mode == Mode::Resume && checkpoint::exists(root) { Some(Loaded::read(root)?) } else { None };
    if let Some(loaded) = resumed.as_ref().filter(|l| l.state.members.len() != members.len()) {
        let names: Vec<&str> = loaded.state.members.iter().map(|m| m.name.as_str()).collect();
        return Err(Error::request(
            format!("the checkpoint in {} is of {}, this command trains {} dictionaries", root.display(), names.join(", "), members.len()),
            "resume with the sweep that was started, or choose another --out",
        ));
    }
    let start = resumed.as_ref().map_or_else(Cursor::default, |r| r.state.cursor.clone());
    source.seek(&start)?;
    let scale = scale_for(source.mean_sq_norm()?, d_in)?;
    // A checkpoint overwrites all that rows decide: then one row is enough, and it is at hand, whatever the window.
    let n_initial = if resumed.is_some() { 1 } else { shared.init_rows.min(shared.n_tokens as usize).max(1) };
    let rows = initial_rows(source, n_initial, d_in, scale)?;
    source.seek(&start)?;
    for member in &members {
        // It says that the rest is whole, which from here on it is not.
        remove(&member.dir.join("dictionary.json"))?;
    }
    let n_rows = source.rows_per_epoch().unwrap_or(shared.n_tokens);
    let mut running = Vec::with_capacity(members.len());
    for (i, member) in members.into_iter().enumerate() {
        let (mut learner, mut solver): (Box<dyn Learner>, _) = match &member.train.pam {
            None => (sae::build(&member.sae, &rows, member.train.seed)?, None),
            Some(c) => (Box::new(pam::encoder(&member, c, n_rows, &rows)?), Some(pam::Solver::new(c.clone(), n_rows))),
        };
        if let Some(dictionary) = &member.beginning.from {
            learner.adopt(&Start::new(dictionary, scale)?, &rows)?;
        }
        // Before a checkpoint comes back: what is there now does not depend on it.
        let at_start = member.beginning.look.as_ref().map(|look| look(&learner.coder().w_dec)).transpose()?;
        let mut optimizer = Optimizer::new(&member.train, learner.as_ref())?;
        let (mut window, mut log_len) = (Window::default(), 0);
        if let Some(loaded) = &resumed {
            let state = loaded.state.members.get(i).filter(|s| s.name == member.name).ok_or_else(|| {
                Error::request(format!("the checkpoint has no member `{}`", member.name), "resume with the sweep that was started")
            })?;
            loaded.restore(&member.name, learner.as_mut(), &mut optimizer)?;
            learner.restore(&state.learner);
            if let (Some(solver), Some(state)) = (&mut solver, &state.solver) {
                solver.state = state.clone();
            }
            (window, log_len) = (state.window.clone(), state.log_len);
        }
        let on_device = Remote::new(&member, learner.as_ref(), &optimizer)?;
        artefact::write(&member.dir, "config.toml", member.config_toml.as_bytes())?;
        let log = LogFile::open(&member.dir, log_len)?;
        running.push(Running {
            schedule: Schedule::new(&member.train),
            member,
            learner,
            optimizer,
            solver,
            on_device,
            log,
            window,
            at_start,
        });
    }
    // The rows that learners started from are also those that they calibrate thresholds on; nobody else needs them any more.
    let rows = if running.iter().any(|r| r.learner.calibrates()) { rows } else { rows.narrow(0, 0, 1)?.copy()? };
    let first_step = resumed.as_ref().map_or(0, |r| r.state.step);
    drop(resumed);

    let (n_steps, batch) = (shared.n_steps(), shared.batch as u64);
    progress.begin("train", Some(n_steps * batch), "tokens");
    progress.advance(first_step * batch);
    let mut last_save = Instant::now();
    let mut epoch = source.epoch();
    for step in first_step + 1..=n_steps {
        let before = source.cursor();
        solve(&mut running, source, scale, root, step - 1, &before, progress, |s| s.due(step, batch))?;
        let rows = match source.next_rows(shared.batch) {
            Err(Error::Interrupted { .. }) => {
                save(root, step - 1, before, &mut running)?;
                return Err(Error::Interrupted { doing: "training" });
            }
            rows => rows?,
        };
        let docs = rows.doc_id.clone();
        let (x, spread) = normalised(rows, d_in, scale)?;
        epoch = source.epoch();
        for r in &mut running {
            learn(r, &x, spread, &docs, step)?;
            // Counted from the end, so that the last line is a full window's mean: it is the one that people read. That one waits for the
            // last decoders.
            if step < n_steps && (n_steps - step).is_multiple_of(r.member.train.log_every_steps) {
                log_line(r, step, epoch)?;
            }
        }
        progress.advance(batch);
        if step % 16 == 0 {
            running[0].catch_up()?;
            progress.status(&format!("fvu {:.4}", running[0].window.fvu()));
        }
        let stop = progress.is_cancelled();
        if step < n_steps && (stop || last_save.elapsed().as_secs_f64() >= shared.checkpoint_seconds) {
            save(root, step, source.cursor(), &mut running)?;
            last_save = Instant::now();
        }
        if stop && step < n_steps {
            return Err(Error::Interrupted { doing: "training" });
        }
    }
    let end = source.cursor();
    solve(&mut running, source, scale, root, n_steps, &end, progress, |_| true)?;
    for r in &mut running {
        log_line(r, n_steps, epoch)?;
        r.bring_home()?;
    }
    progress.end();
    let seconds = started.elapsed().as_secs_f64();
    let told = source.report()?;
    for r in &running {
        finish(r, scale, &rows, n_steps, seconds, &told)?;
    }
    checkpoint::remove(root)?;
    let tokens = n_steps * batch;
    let here = (n_steps - first_step) * batch;
    Ok(TrainReport {
        members: running.iter().map(|r| trained(&r.member)).collect::<Result<_>>()?,
        steps: n_steps,
        tokens,
        seconds,
        tokens_per_s: here as f64 / seconds,
        forward: told.forward,
        was_complete: false,
    })
}

/// Solves for the decoders that are due. The source is back at `here` afterwards; where the work is interrupted, nothing is solved for yet
/// and the checkpoint says so.
#[allow(clippy::too_many_arguments)]
fn solve(
    running: &mut [Running],
    source: &mut dyn RowSource,
    scale: f64,
    root: &Path,
    steps_done: u64,
    here: &Cursor,
    progress: &dyn Progress,
    due: impl Fn(&pam::Solver) -> bool,
) -> Result<()> {
    let mut windows = Vec::new();
    let mut members = Vec::new();
    for r in running.iter_mut() {
        if let Some(solver) = r.solver.as_mut().filter(|s| due(s)) {
            members.push(pam::Solved { solver, learner: r.learner.as_mut() });
            windows.push(&mut r.window);
        }
    }
    if members.is_empty() {
        return Ok(());
    }
    match pam::pass(source, scale, &mut members, progress) {
        Err(Error::Interrupted { doing }) => {
            save(root, steps_done, here.clone(), running)?;
            return Err(Error::Interrupted { doing });
        }
        parts => windows.into_iter().zip(parts?).for_each(|(window, parts)| window.put(&parts)),
    }
    source.seek(here)
}

/// One member's step: loss, then the update.
fn learn(r: &mut Running, x: &Tensor, spread: f64, docs: &[u64], step: u64) -> Result<()> {
    let lr = r.schedule.lr(step);
    if let Some(remote) = &mut r.on_device {
        remote.learn(r.learner.as_mut(), &mut r.optimizer, &mut r.window, x, (step, lr, spread))?;
        return Ok(());
    }
    let (x, spread) = match &r.solver {
        Some(solver) => solver.taught(x, docs, spread)?,
        None => (x.clone(), spread),
    };
    let mut made = r.learner.step(&x)?;
    if let (true, Gradient::Sparse(grad)) = (r.member.train.freeze_decoder, &mut made.grad) {
        grad.terms.iter_mut().for_each(|term| term.role.decoder = false);
    }
    if !made.loss.is_finite() {
        return Err(Error::Diverged { step, loss: made.loss, lr });
    }
    let norm = r.optimizer.apply(r.learner.as_ref(), &made.grad, lr)?;
    if !norm.is_finite() {
        return Err(Error::Diverged { step, loss: norm, lr });
    }
    r.window.add(x.dim(0)? as u64, &made.figures(), spread, norm);
    Ok(())
}

/// Closes a member's log window.
fn log_line(r: &mut Running, step: u64, epoch: u64) -> Result<()> {
    r.catch_up()?;
    let tokens = step * r.member.train.batch as u64;
    let record = r.window.take(step, tokens, epoch, r.schedule.lr(step), r.learner.silence());
    r.log.write(&record)
}

fn save(root: &Path, step: u64, cursor: Cursor, running: &mut [Running]) -> Result<()> {
    for r in running.iter_mut() {
        r.bring_home()?;
    }
    let members = running
        .iter()
        .map(|r| {
            r.log.sync()?;
            Ok(MemberState {
                name: r.member.name.clone(),
                log_len: r.log.len,
                window: r.window.clone(),
                learner: r.learner.state(),
                solver: r.solver.as_ref().map(|s| s.state.clone()),
            })
        })
        .collect::<Result<_>>()?;
    let state = State::new(step, cursor, members);
    checkpoint::save(root, &state, running.iter().map(|r| (r.member.name.as_str(), r.learner.as_ref(), &r.optimizer)))
}

/// Everything of a member but `dictionary.json` first: that file says that the rest is whole.
fn finish(r: &Running, scale: f64, rows: &Tensor, steps: u64, seconds: f64, told: &SourceReport) -> Result<()> {
    let dir = &r.member.dir;
    log::to_parquet(dir)?;
    let tokens = steps * r.member.train.batch as u64;
    let mut stages = vec![("train", seconds, tokens)];
    stages.extend(told.forward.map(|f| ("forward", f.seconds, f.tokens)));
    let columns: Vec<(&str, ArrayRef, bool)> = vec![
        ("stage", Arc::new(StringArray::from_iter_values(stages.iter().map(|s| s.0))), false),
        ("tokens", Arc::new(UInt64Array::from_iter_values(stages.iter().map(|s| s.2))), false),
        ("seconds", Arc::new(Float64Array::from_iter_values(stages.iter().map(|s| s.1))), false),
        ("tokens_per_s", Arc::new(Float64Array::from_iter_values(stages.iter().map(|s| s.2 as f64 / s.1.max(1e-9)))), false),
    ];
    log::write_table(&dir.join("timing.parquet"), columns.into_iter())?;
    let mut dictionary = r.learner.finish(scale, rows)?;
    let silence = r.learner.silence();
    let mut notes = serde_json::json!({
        "tokens": tokens, "steps": steps, "scale": scale,
        "dead": silence.n_dead(), "dead_after_tokens": silence.dead_after_tokens,
    });
    if let Some(at_start) = &r.at_start {
        notes["at_start"] = at_start.clone();
    }
    if let Some(solver) = &r.solver {
        notes["pam"] = solver.notes.clone();
    }
    if let (Some(notes), Some(own)) = (notes.as_object_mut(), dictionary.provenance.notes.as_object()) {
        notes.extend(own.clone());
    }
    dictionary.provenance = Provenance {
        made_by: dictionary.provenance.made_by.clone(),
        lapidary: env!("CARGO_PKG_VERSION").into(),
        config: serde_json::json!({ "sae": r.member.sae, "train": r.member.train }),
        notes,
        stream: told.stream.clone(),
        ..r.member.provenance.clone()
    };
    for (name, part) in r.learner.beside(&dictionary)? {
        part.save(&dir.join(name))?;
    }
    dictionary.save(dir)
}

fn trained(member: &Member) -> Result<TrainedMember> {
    let last = log::read(&member.dir)?
        .pop()
        .ok_or_else(|| Error::format("training log", member.dir.join("log.jsonl"), "it is empty", "train again with --overwrite"))?;
    Ok(TrainedMember {
        name: member.name.clone(),
        dictionary: member.dir.clone(),
        d_sae: member.sae.d_sae(),
        lr: member.train.lr,
        seed: member.train.seed,
        last,
    })
}

fn complete_report(members: &[Member], shared: &TrainConfig) -> Result<TrainReport> {
    Ok(TrainReport {
        members: members.iter().map(trained).collect::<Result<_>>()?,
        steps: shared.n_steps(),
        tokens: shared.n_steps() * shared.batch as u64,
        seconds: 0.0,
        tokens_per_s: 0.0,
        forward: None,
        was_complete: true,
    })
}

/// The settings that one pass over the rows forces on all members.
fn shared_settings(members: &[Member]) -> Result<TrainConfig> {
    let first = members.first().ok_or_else(|| Error::request("there is nothing to train", "give at least one k, width and seed"))?;
    for m in members {
        let (a, b) = (&first.train, &m.train);
        let rows = |t: &TrainConfig| (t.batch, t.n_tokens, t.data_seed, t.init_rows, t.permute_columns);
        if rows(a) != rows(b) {
            return Err(Error::request(
                format!("`{}` and `{}` do not share batch, n_tokens, data_seed, init_rows and permute_columns", first.name, m.name),
                "one pass over the rows trains members that see the same batches; run them apart",
            ));
        }
    }
    if let Some(m) = members.iter().find(|m| m.train.freeze_decoder && matches!(m.sae, SaeConfig::Mp(_))) {
        return Err(Error::config(
            "train.freeze_decoder",
            format!("`{}` pursues with its decoder's atoms: frozen, nothing would learn", m.name),
            "leave it out, or freeze the decoder of a variant with an encoder, such as topk",
        ));
    }
    if let Some(m) = members.iter().find(|m| m.train.freeze_decoder && m.train.pam.is_some()) {
        return Err(Error::config(
            "train.freeze_decoder",
            format!("PAM-SGD solves for the decoder of `{}`, which is to stay as it started", m.name),
            "leave one of the two out",
        ));
    }
    let mut names: Vec<&str> = members.iter().map(|m| m.name.as_str()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|p| p[0] == p[1]) {
        return Err(Error::request(format!("two members of the sweep are called `{}`", pair[0]), "give each value of the sweep once"));
    }
    Ok(first.train.clone())
}

/// Makes the folders, or refuses them.
fn prepare(members: &[Member], root: &Path, mode: Mode) -> Result<()> {
    match mode {
        Mode::Fresh if !artefact::is_empty(root)? => return Err(Error::OutputNotEmpty { path: root.to_path_buf() }),
        Mode::Fresh => {}
        Mode::Overwrite => {
            clear(root)?;
            for dir in members.iter().map(|m| m.dir.clone()).chain(earlier_members(root)?) {
                clear(&dir)?;
            }
        }
        Mode::Resume => {
            for member in members {
                let path = member.dir.join("config.toml");
                let Ok(found) = fs::read_to_string(&path) else { continue };
                if found != member.config_toml {
                    let differing = found.lines().zip(member.config_toml.lines()).find(|(a, b)| a != b);
                    let (was, now) = differing.unwrap_or(("(its length)", "(another length)"));
                    return Err(Error::request(
                        format!("{} was started with `{was}`, this command says `{now}`", path.display()),
                        "resume with the settings that started the run, or choose another --out",
                    ));
                }
            }
        }
    }
    for dir in members.iter().map(|m| m.dir.as_path()).chain([root]) {
        fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
        artefact::remove_leftovers(dir)?;
    }
    Ok(())
}

/// What a run, and scoring it, leave in a folder; nothing else there is ever removed.
const FILES: &[&str] = &[
    "dictionary.json",
    "dictionary.safetensors",
    "config.toml",
    "log.jsonl",
    "log.parquet",
    "timing.parquet",
    "score.json",
    "latents.parquet",
    "checkpoint.safetensors",
];

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}

/// Removes what an earlier run left in `dir`, and the folder if nothing else is in it.
fn clear(dir: &Path) -> Result<()> {
    for name in FILES {
        remove(&dir.join(name))?;
    }
    let _ = fs::remove_dir(dir);
    Ok(())
}

/// Folders of an earlier sweep below `root`: those with a run file and a log.
fn earlier_members(root: &Path) -> Result<Vec<PathBuf>> {
    if !root.is_dir() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(root).map_err(|e| Error::io("list", root, e))?;
    let mut found: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    found.retain(|dir| dir.join("config.toml").is_file() && dir.join("log.jsonl").is_file());
    found.sort();
    Ok(found)
}

/// The next `n` rows of the source, normalised, for initialisation; the caller seeks back.
fn initial_rows(source: &mut dyn RowSource, n: usize, d_in: usize, scale: f64) -> Result<Tensor> {
    let (mut left, mut parts) = (n, Vec::new());
    while left > 0 {
        let n = left.min(4096);
        parts.push(normalised(source.next_rows(n)?, d_in, scale)?.0);
        left -= n;
    }
    Ok(Tensor::cat(&parts, 0)?.to_device(&Device::Cpu)?)
}
