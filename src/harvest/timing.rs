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
    /// Tokens that went through.
    pub tokens: u64,
}

impl Timing {
    /// Writes the table: stage, seconds, tokens, tokens_per_s.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let stages = [("forward", self.forward_seconds), ("harvest", self.seconds)];
        let rate = |seconds: f64| if seconds > 0.0 { self.tokens as f64 / seconds } else { 0.0 };
        let columns: [(&str, ArrayRef); 4] = [
            ("stage", Arc::new(StringArray::from_iter_values(stages.iter().map(|s| s.0)))),
            ("seconds", Arc::new(Float64Array::from_iter_values(stages.iter().map(|s| s.1)))),
            ("tokens", Arc::new(UInt64Array::from_value(self.tokens, stages.len()))),
            ("tokens_per_s", Arc::new(Float64Array::from_iter_values(stages.iter().map(|s| rate(s.1))))),
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
