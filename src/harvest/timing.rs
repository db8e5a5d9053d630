//! timing.parquet: how long each stage took. The one artefact that differs between two runs.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, RecordBatch, StringArray, UInt64Array};
use parquet::arrow::ArrowWriter;
use serde::{Deserialize, Serialize};

use crate::artefact;
use crate::error::Result;

/// Name of the file.
pub(super) const TIMING_FILE: &str = "timing.parquet";

/// Wall-clock seconds, over all runs that made one harvest.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Timing {
    /// In the host's forward passes, with gathering rows.
    pub forward_seconds: f64,
    /// In the whole loop.
    pub seconds: f64,
    /// Tokens that were counted.
    pub tokens: u64,
    /// Tokens that went through the host; the last block may hold more than were wanted.
    #[serde(default)]
    pub forward_tokens: u64,
    /// Places of the forward passes that held no token: contexts of unlike length shared a pass.
    #[serde(default)]
    pub padding: u64,
}

impl Timing {
    /// The share of the forward passes that was padding; `None` where no pass was run.
    pub fn padding_share(&self) -> Option<f64> {
        let places = self.forward_tokens + self.padding;
        (places > 0).then(|| self.padding as f64 / places as f64)
    }

    /// Writes the table: stage, seconds, tokens, tokens_per_s, padding (tokens).
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let stages = [("forward", self.forward_seconds, self.forward_tokens, self.padding), ("harvest", self.seconds, self.tokens, 0)];
        let rate = |seconds: f64, tokens: u64| if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 };
        let columns: [(&str, ArrayRef); 5] = [
            ("stage", Arc::new(StringArray::from_iter_values(stages.iter().map(|s| s.0)))),
            ("seconds", Arc::new(Float64Array::from_iter_values(stages.iter().map(|s| s.1)))),
            ("tokens", Arc::new(UInt64Array::from_iter_values(stages.iter().map(|s| s.2)))),
            ("tokens_per_s", Arc::new(Float64Array::from_iter_values(stages.iter().map(|s| rate(s.1, s.2))))),
            ("padding", Arc::new(UInt64Array::from_iter_values(stages.iter().map(|s| s.3)))),
        ];
        let path = dir.join(TIMING_FILE);
        let partial = dir.join(format!("{TIMING_FILE}.partial"));
        let write = || -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>> {
            let batch = RecordBatch::try_from_iter(columns)?;
            let mut writer = ArrowWriter::try_new(std::fs::File::create(&partial)?, batch.schema(), None)?;
            writer.write(&batch)?;
            writer.into_inner()?.sync_all()?;
            Ok(std::fs::rename(&partial, &path)?)
        };
        write().map_err(|e| artefact::write_error(&path, &*e))
    }
}
