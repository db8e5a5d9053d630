//! `manifest.json`: what a folder of shards holds and where it came from. Specified in `docs/shards.md`.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Column, Split};
use crate::error::{Error, Result};

/// The value of `kind` in every shard manifest.
pub const KIND: &str = "lapidary-shards";
/// The format's version. Readers refuse a greater one.
pub const VERSION: u32 = 1;
/// Name of the manifest in its folder.
pub const MANIFEST_FILE: &str = "manifest.json";

/// A column with what is known of its train rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ColumnEntry {
    /// Name, width and stored type.
    #[serde(flatten)]
    pub column: Column,
    /// Train rows behind the two figures below.
    pub n: u64,
    /// Mean squared Euclidean norm of the train rows as stored; 0 when there are none.
    pub mean_sq_norm: f64,
    /// Mean train row as stored, `[width]`.
    pub mean: Vec<f64>,
}

/// Rows per split.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RowCounts {
    /// Rows in the train split.
    pub train: u64,
    /// Rows in the held-out split.
    pub held_out: u64,
}

impl RowCounts {
    /// Rows of one split, or of both.
    pub fn of(&self, split: Option<Split>) -> u64 {
        match split {
            Some(Split::Train) => self.train,
            Some(Split::HeldOut) => self.held_out,
            None => self.train + self.held_out,
        }
    }

    /// Adds rows to a split.
    pub fn add(&mut self, split: Split, rows: u64) {
        match split {
            Split::Train => self.train += rows,
            Split::HeldOut => self.held_out += rows,
        }
    }
}

/// What was read and what was written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Documents of which at least one token was read.
    pub documents: u64,
    /// Tokens (or vectors) that went through the host, masked ones included.
    pub tokens: u64,
    /// Rows written.
    pub rows: RowCounts,
    /// Rows not written, by rule; a row is counted under the first rule that masks it.
    pub masked: BTreeMap<String, u64>,
}

/// One Parquet file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardEntry {
    /// File name in the manifest's folder.
    pub file: String,
    /// Split of all its rows.
    pub split: Split,
    /// Rows.
    pub rows: u64,
    /// File size in bytes.
    pub bytes: u64,
    /// SHA-256 of the file, hex.
    pub sha256: String,
    /// CRC-32 of the footer, hex: the file's last 8 bytes and the metadata before them. Empty means unchecked.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub footer_crc32: String,
    /// Per row group, the CRC-32 of each leaf column's chunk, hex, separated by spaces. Empty means unchecked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub crc32: Vec<String>,
}

/// The manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Always [`KIND`].
    pub kind: String,
    /// Format version, [`VERSION`] when written here.
    pub version: u32,
    /// Identifies the harvest: every shard file names it too, so that files of two harvests cannot mix unnoticed.
    pub id: String,
    /// Columns after `doc_id`, `position`, `token_id`, `split`, in file order.
    pub columns: Vec<ColumnEntry>,
    /// Figures of the whole.
    pub counts: Counts,
    /// The host model, null for ingested vectors.
    pub host: Value,
    /// The tokenizer, null where none was used.
    pub tokenizer: Value,
    /// Where the documents or vectors came from.
    pub corpus: Value,
    /// Masking rules with the thresholds found.
    pub masking: Value,
    /// The configuration as resolved: with it and the inputs the harvest can be made again.
    pub config: Value,
    /// The files, in order of writing.
    pub shards: Vec<ShardEntry>,
}

impl Manifest {
    /// Reads `dir/manifest.json`.
    ///
    /// # Errors
    /// When there is none, it is no shard manifest, or its version is greater than [`VERSION`].
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST_FILE);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let unfinished = dir.join("harvest.state.json").exists();
                let (problem, help) = if unfinished {
                    ("the harvest in it is unfinished", "finish it with `harvest --resume`, same configuration")
                } else {
                    ("it has no manifest.json", "give the folder that `harvest` or `ingest` wrote")
                };
                return Err(Error::request(format!("{} is no folder of shards: {problem}", dir.display()), help));
            }
            Err(e) => return Err(Error::io("read", &path, e)),
        };
        let again = "make the shards again, or restore manifest.json from a copy";
        let head: Value =
            serde_json::from_slice(&text).map_err(|e| Error::format("shard manifest", &path, format!("it is not JSON: {e}"), again))?;
        if head.get("kind").and_then(Value::as_str) != Some(KIND) {
            let kind = head.get("kind").map_or("missing".to_string(), Value::to_string);
            return Err(Error::format("shard manifest", &path, format!("its kind is {kind}, not \"{KIND}\""), "give a folder of shards"));
        }
        match head.get("version").and_then(Value::as_u64) {
            Some(v) if v >= 1 && v <= u64::from(VERSION) => {}
            v => {
                let v = v.map_or("missing".to_string(), |v| v.to_string());
                return Err(Error::format(
                    "shard manifest",
                    &path,
                    format!("its version is {v}; this program reads 1 to {VERSION}"),
                    "use a newer lapidary, or make the shards again",
                ));
            }
        }
        serde_json::from_value(head).map_err(|e| Error::format("shard manifest", &path, e.to_string(), again))
    }

    /// Writes `dir/manifest.json` atomically.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        write_json(&dir.join(MANIFEST_FILE), self)
    }
}

/// Writes pretty JSON: temporary file beside the target, fsync, rename, fsync of the folder.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|e| Error::format("JSON document", path, e.to_string(), "this is a bug in lapidary: please report it"))?;
    text.push(b'\n');
    let partial = path.with_extension("json.partial");
    let write = || {
        let mut file = std::fs::File::create(&partial)?;
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::rename(&partial, path)
    };
    write().map_err(|e| Error::io("write", path, e))?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// Makes a rename durable. Folders cannot be opened as files everywhere; where they cannot, there is nothing to do.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    #[cfg(unix)]
    std::fs::File::open(dir).and_then(|d| d.sync_all()).map_err(|e| Error::io("sync", dir, e))?;
    #[cfg(not(unix))]
    let _ = dir;
    Ok(())
}
