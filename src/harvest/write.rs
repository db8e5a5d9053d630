//! The writer's thread: encoding, hashing and writing overlap with the forward passes.

use std::path::Path;
use std::sync::mpsc::{sync_channel, Receiver, SyncSender};
use std::sync::Mutex;
use std::thread::JoinHandle;

use super::config::Plan;
use super::state::{Identity, Parts, State};
use crate::error::{Error, Result};
use crate::shard::{Rows, ShardWriter, Split, WriterOptions, WriterState};

enum Job {
    Rows(Split, Rows),
    Seal(Box<Parts>),
    Finish(Box<Parts>),
}

/// Sends work to the thread.
pub(super) struct Writer {
    /// `None` once closed.
    jobs: Option<SyncSender<Job>>,
    thread: Mutex<Option<JoinHandle<Result<Option<State>>>>>,
}

impl Writer {
    /// Starts the thread on a folder, at the beginning or after the last sealed shard.
    ///
    /// # Errors
    /// When the folder cannot be written, or the state does not fit.
    pub fn open(out: &Path, plan: &Plan, identity: Identity, state: Option<WriterState>) -> Result<Self> {
        let options = WriterOptions { row_group_rows: plan.config.row_group_rows, harvest_id: identity.id()? };
        let shards = match state {
            Some(state) => ShardWriter::resume(out, plan.columns.clone(), &options, state)?,
            None => ShardWriter::create(out, plan.columns.clone(), &options)?,
        };
        // Few jobs wait, so that a slow disk slows the host and does not fill the memory.
        let (jobs, receiver) = sync_channel(4);
        let dir = out.to_path_buf();
        let thread = std::thread::Builder::new()
            .name("harvest-writer".into())
            .spawn(move || work(shards, &dir, &identity, &receiver))
            .map_err(|e| Error::io("start a writer to", out, e))?;
        Ok(Self { jobs: Some(jobs), thread: Mutex::new(Some(thread)) })
    }

    /// Rows to append.
    ///
    /// # Errors
    /// When the thread has failed: its error.
    pub fn rows(&self, split: Split, rows: Rows) -> Result<()> {
        self.send(Job::Rows(split, rows))
    }

    /// Seals the shard and writes the state.
    ///
    /// # Errors
    /// When the thread has failed: its error.
    pub fn seal(&self, parts: Parts) -> Result<()> {
        self.send(Job::Seal(Box::new(parts)))
    }

    /// Seals the last shard, writes the state, and ends the thread.
    ///
    /// # Errors
    /// When the thread has failed: its error.
    pub fn finish(&self, parts: Parts) -> Result<State> {
        self.send(Job::Finish(Box::new(parts)))?;
        self.outcome()?.ok_or_else(|| Error::request("the writer stopped early", "this is a bug in lapidary: please report it"))
    }

    fn send(&self, job: Job) -> Result<()> {
        if self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok()) {
            return Ok(());
        }
        self.outcome().and(Err(Error::request("the writer stopped early", "this is a bug in lapidary: please report it")))
    }

    fn outcome(&self) -> Result<Option<State>> {
        let thread = self.thread.lock().map_or(None, |mut t| t.take());
        let Some(thread) = thread else { return Ok(None) };
        thread.join().unwrap_or_else(|_| Err(Error::request("the writer panicked", "this is a bug in lapidary: please report it")))
    }
}

impl Drop for Writer {
    /// A harvest that is given up returns only when nothing writes to its folder any more: the next run may begin at once.
    fn drop(&mut self) {
        self.jobs = None;
        // Whatever it says, another error is already on its way.
        let _ = self.outcome();
    }
}

fn work(mut shards: ShardWriter, dir: &Path, identity: &Identity, jobs: &Receiver<Job>) -> Result<Option<State>> {
    // The loop ends without `Finish` when the harvest was given up: then what is unsealed is dropped.
    while let Ok(job) = jobs.recv() {
        match job {
            Job::Rows(split, rows) => shards.push(split, &rows)?,
            Job::Seal(parts) => {
                shards.seal_shard()?;
                State::new(*parts, identity, &shards).save(dir)?;
            }
            Job::Finish(parts) => {
                shards.seal_shard()?;
                let state = State::new(*parts, identity, &shards);
                state.save(dir)?;
                return Ok(Some(state));
            }
        }
    }
    Ok(None)
}
