//! harvest.state.json: what a harvest needs to go on after its last sealed shard. Written atomically after each, removed at the end.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{json, Value};
use sha2::{Digest, Sha256};

use super::config::{Plan, Thresholds};
use super::timing::Timing;
use crate::corpus::{Corpus, Place, Tokenizer};
use crate::error::{Error, Result};
use crate::host::HostModel;
use crate::shard::{write_json, Column, ColumnEntry, Counts, ShardEntry, ShardWriter, WriterState};

/// Name of the file.
pub(super) const STATE_FILE: &str = "harvest.state.json";

/// What makes a harvest this one: with the same identity it gives the same bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Identity {
    pub columns: Vec<Column>,
    pub host: Value,
    pub tokenizer: Value,
    pub corpus: Value,
    pub config: Value,
}

/// Entries that may differ between two runs of the same harvest: how paths are spelled.
const SPELLING: [&str; 2] = ["config.corpus.source", "host.name"];

impl Identity {
    /// Of this harvest. Reads every file of the corpus once.
    ///
    /// # Errors
    /// When a file of the corpus cannot be read.
    pub fn of(host: &dyn HostModel, corpus: &Corpus, tokenizer: Option<&Tokenizer>, plan: &Plan) -> Result<Self> {
        Ok(Self {
            columns: plan.columns.clone(),
            host: super::to_value(host.info())?,
            tokenizer: tokenizer
                .map_or(Value::Null, |t| json!({ "sha256": t.sha256(), "bos_token_id": t.bos(), "vocab_size": t.vocab_size() })),
            corpus: corpus.provenance()?,
            config: json!({ "harvest": super::to_value(&plan.config)?, "corpus": super::to_value(corpus.config())? }),
        })
    }

    /// A hash of all of it, hex: the manifest's id.
    ///
    /// # Errors
    /// Never in practice: when it cannot be written as JSON.
    pub fn id(&self) -> Result<String> {
        let json = serde_json::to_vec(self).map_err(|e| Error::request(format!("provenance is no JSON: {e}"), "please report this bug"))?;
        Ok(Sha256::digest(&json).iter().take(16).map(|b| format!("{b:02x}")).collect())
    }

    /// Refuses to go on with what another configuration, host or corpus began.
    ///
    /// # Errors
    /// When something differs: names it, with both values.
    pub fn check_same(&self, began: &Identity, out: &Path) -> Result<()> {
        let (was, is) = (super::to_value(began)?, super::to_value(self)?);
        match difference("", &was, &is) {
            None => Ok(()),
            Some((key, was, is)) => Err(Error::request(
                format!("{} was begun with {key} = {was}, and this run has {is}", out.display()),
                "resume with the same configuration, host and corpus, or begin another folder",
            )),
        }
    }
}

/// The first entry that differs, with both values.
fn difference(at: &str, was: &Value, is: &Value) -> Option<(String, String, String)> {
    let key = |k: &str| if at.is_empty() { k.to_string() } else { format!("{at}.{k}") };
    match (was, is) {
        _ if SPELLING.contains(&at) => None,
        (Value::Object(a), Value::Object(b)) => {
            let null = Value::Null;
            let keys = a.keys().chain(b.keys().filter(|k| !a.contains_key(*k)));
            keys.filter_map(|k| difference(&key(k), a.get(k).unwrap_or(&null), b.get(k).unwrap_or(&null))).next()
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().find_map(|(i, (a, b))| difference(&key(&i.to_string()), a, b))
        }
        (a, b) if a == b => None,
        (a, b) => Some((at.to_string(), a.to_string(), b.to_string())),
    }
}

/// The part of the state that the harvesting thread knows.
pub(super) struct Parts {
    place: Place,
    counts: Counts,
    thresholds: Option<Thresholds>,
    timing: Timing,
}

/// The whole state.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct State {
    /// Format version of this file.
    version: u32,
    /// What began the harvest.
    pub identity: Identity,
    /// Next context.
    pub place: Place,
    /// Counts up to there.
    pub counts: Counts,
    /// Outlier thresholds, once decided.
    pub thresholds: Option<Thresholds>,
    /// Wall-clock so far.
    pub timing: Timing,
    /// Sums and sealed files.
    pub writer: WriterState,
    /// For the manifest, from the writer.
    #[serde(skip)]
    pub columns: Vec<ColumnEntry>,
    /// For the manifest, from the writer.
    #[serde(skip)]
    pub shards: Vec<ShardEntry>,
}

impl State {
    /// What the harvesting thread contributes.
    pub fn parts(place: Place, counts: Counts, thresholds: Option<&Thresholds>, timing: &Timing) -> Parts {
        Parts { place, counts, thresholds: thresholds.cloned(), timing: timing.clone() }
    }

    /// Together with the writer's state after a seal.
    pub fn new(parts: Parts, identity: &Identity, shards: &ShardWriter) -> Self {
        let Parts { place, counts, thresholds, timing } = parts;
        Self {
            version: 1,
            identity: identity.clone(),
            place,
            counts,
            thresholds,
            timing,
            writer: shards.state().clone(),
            columns: shards.column_entries(),
            shards: shards.entries().to_vec(),
        }
    }

    /// Writes it atomically.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        write_json(&dir.join(STATE_FILE), self)
    }

    /// Reads it.
    ///
    /// # Errors
    /// When it is damaged or of another version.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join(STATE_FILE);
        let bytes = std::fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
        let bad = |problem: String| Error::format("harvest state", &path, problem, "begin the harvest again with overwrite");
        let state: Self = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
        if state.version != 1 {
            return Err(bad(format!("its version is {}", state.version)));
        }
        Ok(state)
    }
}

/// The harvest is complete.
///
/// # Errors
/// When the file cannot be removed.
pub(super) fn remove(dir: &Path) -> Result<()> {
    let path = dir.join(STATE_FILE);
    std::fs::remove_file(&path).map_err(|e| Error::io("remove", path, e))
}
