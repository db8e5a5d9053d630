//! What a harvest or an ingestion did, as one value that the command line prints as text or JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::shard::{Manifest, RowCounts};

/// The outcome.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HarvestReport {
    /// The folder.
    pub out: PathBuf,
    /// Hook points written.
    pub hooks: Vec<String>,
    /// Documents of which a token was read.
    pub documents: u64,
    /// Tokens read, masked ones included.
    pub tokens: u64,
    /// Rows written, per split.
    pub rows: RowCounts,
    /// Rows asked for, if a number was.
    pub rows_wanted: Option<u64>,
    /// Rows not written, per rule.
    pub masked: BTreeMap<String, u64>,
    /// Shard files.
    pub files: usize,
    /// Their size in bytes.
    pub bytes: u64,
    /// Share of the forward passes that was padding; absent where this run made none.
    pub padding_share: Option<f64>,
    /// Wall-clock seconds of this run.
    pub seconds: f64,
}

impl HarvestReport {
    pub(super) fn of(manifest: &Manifest, out: &Path, rows_wanted: Option<u64>, padding_share: Option<f64>, seconds: f64) -> Self {
        Self {
            out: out.to_path_buf(),
            hooks: manifest.columns.iter().map(|c| c.column.name.clone()).collect(),
            documents: manifest.counts.documents,
            tokens: manifest.counts.tokens,
            rows: manifest.counts.rows,
            rows_wanted,
            masked: manifest.counts.masked.clone(),
            files: manifest.shards.len(),
            bytes: manifest.shards.iter().map(|s| s.bytes).sum(),
            padding_share,
            seconds,
        }
    }
}

impl fmt::Display for HarvestReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} rows for training, {} held out, of {} documents", self.rows.train, self.rows.held_out, self.documents)?;
        writeln!(f, "hook points  {}", self.hooks.join(", "))?;
        if !self.masked.is_empty() {
            let rules = self.masked.iter().map(|(rule, n)| format!("{rule} {n}")).collect::<Vec<_>>().join(", ");
            writeln!(f, "tokens read  {} (masked: {rules})", self.tokens)?;
        }
        if let Some(share) = self.padding_share {
            writeln!(f, "padding      {:.1} % of the forward passes", 100.0 * share)?;
        }
        if let Some(wanted) = self.rows_wanted.filter(|&wanted| wanted > self.rows.of(None)) {
            writeln!(f, "the corpus ended early: {wanted} rows were asked for")?;
        }
        write!(f, "{} files, {:.1} MB, in {}, {}", self.files, self.bytes as f64 / 1e6, self.out.display(), duration(self.seconds))
    }
}

/// Seconds as people say them.
pub(super) fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 60.0 => format!("{s:.1} s"),
        s if s < 3600.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}
