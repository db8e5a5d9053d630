//! Corpus through host to shards: one pass, any number of hook points, bounded memory, resumable to the byte.
//!
//! ```text
//! reader thread: documents -> contexts -> blocks        (blocks.rs)
//! this thread:   block -> forward passes -> rows        (forward.rs), masked, split and counted (rows.rs)
//! writer thread: rows -> shards, state after each shard (write.rs, state.rs)
//! ```
//!
//! A block is a run of contexts whose size depends on the configuration alone; shards are sealed between blocks, and the state file is
//! written only then. So whatever moment the process dies, the next one goes on after the last sealed shard with the same blocks, and
//! ends with the same bytes. Wall-clock figures live in timing.parquet and nowhere else. `ingest` does the same for vectors made elsewhere.

mod blocks;
mod config;
mod folder;
mod forward;
mod ingest;
mod report;
mod rows;
mod state;
mod stream;
mod timing;
mod write;

pub use crate::artefact::Mode;
pub use config::{HarvestConfig, MaskRule, Plan};
pub use forward::passes;
pub use ingest::{ingest, scan_vectors, IngestConfig, PlantedSource, VectorBlock};
pub use report::HarvestReport;
pub use stream::{Spot, Stream};

use std::path::Path;
use std::time::Instant;

use serde_json::Value;

use crate::corpus::{Corpus, Place, Tokenizer};
use crate::error::{Error, Result};
use crate::host::HostModel;
use crate::progress::Progress;
use crate::shard::{Manifest, KIND, VERSION};

use blocks::Blocks;
use folder::Start;
use rows::{Chooser, Chosen};
use state::{Identity, State};
use timing::Timing;
use write::Writer;

/// Runs the host over the corpus and writes the activations of the chosen hook points to `out`.
///
/// Text needs the host's tokenizer; token ids need none (with one, its special tokens are masked).
///
/// # Errors
/// When the configuration does not fit the host or the corpus, the disk is too small, the folder is not empty ([`Mode::Fresh`]) or holds
/// another harvest ([`Mode::Resume`]); when something cannot be read, computed or written; [`Error::Interrupted`] when `progress` says so.
pub fn harvest(
    host: &dyn HostModel,
    corpus: &Corpus,
    tokenizer: Option<&Tokenizer>,
    config: &HarvestConfig,
    out: &Path,
    mode: Mode,
    progress: &dyn Progress,
) -> Result<HarvestReport> {
    let plan = config.check(host)?;
    let corpus = &corpus.clone().with_default_block(plan.config.context);
    let identity = Identity::of(host, corpus, tokenizer, &plan)?;
    let (identity, state) = match folder::prepare(out, mode, &identity)? {
        Start::Done(manifest) => {
            progress.note(&format!("{} is complete: nothing to do", out.display()));
            return Ok(HarvestReport::of(&manifest, out, plan.config.n_tokens, None, 0.0));
        }
        Start::Fresh => (identity, None),
        // Spellings that do not matter (the path of the corpus) stay as the harvest began with them.
        Start::Resume(state) => (state.identity.clone(), Some(*state)),
    };
    preflight(&plan, out, state.as_ref(), progress)?;

    let started = Instant::now();
    let from = state.as_ref().map_or(Place::default(), |s| s.place);
    let mut timing = state.as_ref().map_or_else(Timing::default, |s| s.timing.clone());
    let mut chooser = Chooser::new(&plan, state.as_ref().map(|s| (s.counts.clone(), s.thresholds.clone())));
    let mut shards = Sealing { writer: Writer::open(out, &plan, identity, state.map(|s| s.writer))?, plan: &plan, open_rows: 0 };
    let contexts = plan.contexts(host, tokenizer);
    let total = plan.config.n_tokens;
    progress.begin("harvest", total, "tokens");
    progress.advance(chooser.counts().rows.of(None));

    let outcome = std::thread::scope(|scope| -> Result<State> {
        let blocks = Blocks::start(scope, corpus, tokenizer, contexts, from, &plan)?;
        let mut estimate = Estimate { started, note_at: 5.0, done: 0 };
        let mut place = from;
        let mut lap = Instant::now();
        for block in blocks {
            let block = block?;
            let at = Instant::now();
            let batch = forward::run(host, &block, &plan, progress)?;
            timing.forward_seconds += at.elapsed().as_secs_f64();
            timing.forward_tokens += batch.tokens.len() as u64;
            timing.padding += batch.padding;
            estimate.tell(batch.kept() as u64, chooser.counts().rows.of(None), total, progress);
            place = block.end;
            timing.seconds += lap.elapsed().as_secs_f64();
            lap = Instant::now();
            chooser.push(batch, &timing);
            shards.take(&mut chooser)?;
            if chooser.is_full() {
                break;
            }
        }
        chooser.end();
        shards.take(&mut chooser)?;
        timing.seconds += lap.elapsed().as_secs_f64();
        let counts = chooser.counts().clone();
        timing.tokens = counts.tokens;
        shards.writer.finish(State::parts(place, counts, chooser.thresholds(), &timing))
    });
    progress.end();
    let state = outcome?;
    if state.counts.rows.of(None) == 0 {
        folder::clear(out)?;
        if state.counts.tokens == 0 {
            return Err(Error::request(
                format!("the corpus `{}` holds no token", corpus.config().source),
                "give a corpus with text or token ids in it; `lapidary harvest --help` lists the formats",
            ));
        }
        return Err(Error::request(
            format!("no row is left to write: {} tokens were read and all were masked", state.counts.tokens),
            "check the corpus; `harvest.keep` switches masking rules off",
        ));
    }
    warn(&state, &plan, progress);
    let seconds = started.elapsed().as_secs_f64();
    timing.save(out)?;
    let manifest = manifest(&state, &plan)?;
    manifest.save(out)?;
    state::remove(out)?;
    Ok(HarvestReport::of(&manifest, out, total, timing.padding_share(), seconds))
}

/// Rows on their way into shards, which are sealed between blocks.
struct Sealing<'a> {
    writer: Writer,
    plan: &'a Plan,
    /// Rows handed to the writer since the last seal.
    open_rows: u64,
}

impl Sealing<'_> {
    /// Hands over what the chooser has ready.
    fn take(&mut self, chooser: &mut Chooser) -> Result<()> {
        while let Some(Chosen { rows, end, counts, timing }) = chooser.pop() {
            for (split, rows) in rows::splits().into_iter().zip(rows) {
                if !rows.doc_id.is_empty() {
                    self.open_rows += rows.doc_id.len() as u64;
                    self.writer.rows(split, rows)?;
                }
            }
            if self.open_rows >= self.plan.config.shard_rows.unwrap_or(u64::MAX) {
                self.open_rows = 0;
                let timing = Timing { tokens: counts.tokens, ..timing };
                self.writer.seal(State::parts(end, counts, chooser.thresholds(), &timing))?;
            }
        }
        Ok(())
    }
}

/// What an interrupted or finished harvest in a folder was begun with.
#[derive(Debug, Clone, PartialEq)]
pub struct Began {
    /// Its host, as manifests have it.
    pub host: Value,
    /// Its corpus (`corpus.source`), hub datasets with their commit.
    pub source: String,
}

/// Reads it; `None` when nothing was sealed in the folder yet.
///
/// # Errors
/// When the folder holds a state or a manifest that cannot be read.
pub fn began(out: &Path) -> Result<Option<Began>> {
    let (host, config) = if out.join(state::STATE_FILE).exists() {
        let identity = State::load(out)?.identity;
        (identity.host, identity.config)
    } else if out.join(crate::shard::MANIFEST_FILE).exists() {
        let manifest = Manifest::load(out)?;
        (manifest.host, manifest.config)
    } else {
        return Ok(None);
    };
    Ok(Some(Began { source: config["corpus"]["source"].as_str().unwrap_or_default().to_string(), host }))
}

fn manifest(state: &State, plan: &Plan) -> Result<Manifest> {
    let identity = &state.identity;
    Ok(Manifest {
        kind: KIND.to_string(),
        version: VERSION,
        id: identity.id()?,
        columns: state.columns.clone(),
        counts: state.counts.clone(),
        host: identity.host.clone(),
        tokenizer: identity.tokenizer.clone(),
        corpus: identity.corpus.clone(),
        masking: plan.masking(state.thresholds.as_ref()),
        config: identity.config.clone(),
        shards: state.shards.clone(),
    })
}

/// One line on what will be written, and a refusal where it cannot fit.
fn preflight(plan: &Plan, out: &Path, state: Option<&State>, progress: &dyn Progress) -> Result<()> {
    let Some(n_tokens) = plan.config.n_tokens else { return Ok(()) };
    let left = n_tokens.saturating_sub(state.map_or(0, |s| s.counts.rows.of(None)));
    let bytes = left.saturating_mul(plan.row_bytes() as u64);
    let free = fs4::available_space(out).map_err(|e| Error::io("ask for free space of", out, e))?;
    let (gigabytes, free_gigabytes) = (bytes as f64 / 1e9, free as f64 / 1e9);
    let what = format!(
        "{left} rows x {} hook point{} in {}: {gigabytes:.2} GB, {free_gigabytes:.1} GB free",
        plan.columns.len(),
        if plan.columns.len() == 1 { "" } else { "s" },
        plan.config.dtype.name(),
    );
    if bytes > free {
        return Err(Error::request(
            format!("{} cannot hold the harvest: {what}", out.display()),
            "harvest fewer tokens or hook points, a smaller dtype, or write to another disk",
        ));
    }
    progress.note(&what);
    Ok(())
}

fn warn(state: &State, plan: &Plan, progress: &dyn Progress) {
    let rows = state.counts.rows;
    if let Some(wanted) = plan.config.n_tokens.filter(|&wanted| rows.of(None) < wanted) {
        progress.warn(&format!("the corpus ended after {} rows; {wanted} were asked for", rows.of(None)));
    }
    if plan.config.held_out > 0.0 && (rows.train == 0 || rows.held_out == 0) {
        let empty = if rows.train == 0 { "train" } else { "held-out" };
        progress.warn(&format!(
            "no row fell into the {empty} split: whole documents are split, and the harvest read {} of them. A separator that cuts the \
             corpus into more documents (`corpus.doc_separator`, `corpus.doc_token`) helps",
            state.counts.documents
        ));
    }
}

/// Says once, after the first batches, how long the rest will take.
struct Estimate {
    started: Instant,
    note_at: f64,
    done: u64,
}

impl Estimate {
    fn tell(&mut self, rows: u64, written: u64, total: Option<u64>, progress: &dyn Progress) {
        self.done += rows;
        let seconds = self.started.elapsed().as_secs_f64();
        let rate = self.done as f64 / seconds.max(1e-9);
        progress.status(&format!("{rate:.0} tokens/s"));
        if let Some(total) = total.filter(|_| seconds >= self.note_at) {
            self.note_at = f64::INFINITY;
            let left = total.saturating_sub(written + rows) as f64 / rate;
            progress.note(&format!("about {} to go at {rate:.0} tokens/s", report::duration(left)));
        }
    }
}

fn to_value(value: &impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(value).map_err(|e| Error::request(format!("provenance cannot be written as JSON: {e}"), "please report this bug"))
}
