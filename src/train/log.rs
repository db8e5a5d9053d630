//! The training log: a line of JSON per entry, flushed as it is written, and the same as Parquet at the end. No wall-clock values:
//! those live in `timing.parquet`, so that the log is the same bytes for the same run.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, RecordBatch, UInt64Array};
use parquet::arrow::ArrowWriter;
use serde::{Deserialize, Serialize};

use crate::artefact;
use crate::error::{Error, Result};
use crate::sae::Per;

/// Columns of `log.parquet`, which are the keys of a line of `log.jsonl`.
pub const LOG_COLUMNS: &[&str] =
    &["step", "tokens", "epoch", "lr", "loss", "fvu", "l0", "dead", "dead_after_tokens", "aux_loss", "grad_norm"];

/// One entry: means over the steps since the one before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogRecord {
    /// Optimiser steps done.
    pub step: u64,
    /// Rows seen.
    pub tokens: u64,
    /// Complete passes over the training rows.
    pub epoch: u64,
    /// Learning rate of this step.
    pub lr: f64,
    /// Mean loss.
    pub loss: f64,
    /// Sum of squared errors over sum of squared deviations from each batch's mean. Rows that are all alike have no variance: then it
    /// is not finite, which JSON spells null.
    #[serde(deserialize_with = "null_as_nan")]
    pub fvu: f64,
    /// Mean active latents per row.
    pub l0: f64,
    /// Latents silent for `dead_after_tokens` or more.
    pub dead: u64,
    /// What "dead" means here.
    pub dead_after_tokens: u64,
    /// Mean auxiliary loss over the steps in which it was active; absent when it never was.
    pub aux_loss: Option<f64>,
    /// Mean norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Figures of the variant by name: `fvu_256` of a prefix, `l1`, ... A column `parts.NAME` each in `log.parquet`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parts: BTreeMap<String, Option<f64>>,
}

fn null_as_nan<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// Sums since the last entry; part of a checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Window {
    steps: u64,
    rows: u64,
    loss: f64,
    sq_error: f64,
    spread: f64,
    active: u64,
    aux: f64,
    aux_steps: u64,
    grad_norm: f64,
    #[serde(default)]
    parts: BTreeMap<String, (f64, Per)>,
}

impl Window {
    /// Adds one step.
    pub fn add(&mut self, rows: u64, step: &crate::sae::Figures, spread: f64, grad_norm: f64) {
        self.steps += 1;
        self.rows += rows;
        self.loss += step.loss;
        self.sq_error += step.sq_error;
        self.spread += spread;
        self.active += step.n_active;
        if let Some(aux) = step.aux_loss {
            self.aux += aux;
            self.aux_steps += 1;
        }
        self.grad_norm += grad_norm;
        for part in &step.parts {
            let sum = self.parts.entry(part.name.clone()).or_insert((0.0, part.per));
            sum.0 = if part.per == Per::Last { part.value } else { sum.0 + part.value };
        }
    }

    /// Adds figures that belong to no step.
    pub fn put(&mut self, parts: &[crate::sae::Part]) {
        for part in parts {
            self.parts.insert(part.name.clone(), (part.value, part.per));
        }
    }

    /// FVU so far.
    pub fn fvu(&self) -> f64 {
        self.sq_error / self.spread
    }

    /// Closes the window.
    pub fn take(&mut self, step: u64, tokens: u64, epoch: u64, lr: f64, silence: &crate::sae::Silence) -> LogRecord {
        let w = std::mem::take(self);
        let steps = w.steps as f64;
        LogRecord {
            step,
            tokens,
            epoch,
            lr,
            loss: w.loss / steps,
            fvu: w.fvu(),
            l0: w.active as f64 / w.rows as f64,
            dead: silence.n_dead() as u64,
            dead_after_tokens: silence.dead_after_tokens,
            aux_loss: (w.aux_steps > 0).then(|| w.aux / w.aux_steps as f64),
            grad_norm: w.grad_norm / steps,
            parts: (w.parts.iter())
                .map(|(name, &(sum, per))| {
                    let value = match per {
                        Per::Spread => sum / w.spread,
                        Per::Row => sum / w.rows as f64,
                        Per::Step => sum / steps,
                        Per::Last => sum,
                    };
                    (name.clone(), value.is_finite().then_some(value))
                })
                .collect(),
        }
    }
}

/// `log.jsonl` while it grows.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
    /// Bytes written so far; a checkpoint remembers it.
    pub len: u64,
}

impl LogFile {
    /// Opens `dir/log.jsonl`, cut to its first `len` bytes.
    pub fn open(dir: &Path, len: u64) -> Result<Self> {
        let path = dir.join("log.jsonl");
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(|e| Error::io("open", &path, e))?;
        file.set_len(len).map_err(|e| Error::io("cut", &path, e))?;
        Ok(Self { path, file, len })
    }

    /// Appends a line and flushes it.
    pub fn write(&mut self, record: &LogRecord) -> Result<()> {
        let mut line = serde_json::to_vec(record).expect("a record is plain numbers");
        line.push(b'\n');
        self.file.write_all(&line).and_then(|()| self.file.flush()).map_err(|e| Error::io("write", &self.path, e))?;
        self.len += line.len() as u64;
        Ok(())
    }

    /// Makes sure that what was written survives a power cut, before a checkpoint relies on it.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|e| Error::io("sync", &self.path, e))
    }
}

/// Reads `log.jsonl` back.
pub fn read(dir: &Path) -> Result<Vec<LogRecord>> {
    let path = dir.join("log.jsonl");
    let file = File::open(&path).map_err(|e| Error::io("open", &path, e))?;
    BufReader::new(file)
        .lines()
        .map(|line| {
            let line = line.map_err(|e| Error::io("read", &path, e))?;
            serde_json::from_str(&line).map_err(|e| Error::format("training log", &path, e.to_string(), "train again"))
        })
        .collect()
}

/// Writes `dir/log.parquet` from `dir/log.jsonl`.
pub fn to_parquet(dir: &Path) -> Result<()> {
    let records = read(dir)?;
    let u = |f: fn(&LogRecord) -> u64| Arc::new(UInt64Array::from_iter_values(records.iter().map(f))) as ArrayRef;
    let f = |f: fn(&LogRecord) -> f64| Arc::new(Float64Array::from_iter_values(records.iter().map(f))) as ArrayRef;
    let aux = Arc::new(Float64Array::from_iter(records.iter().map(|r| r.aux_loss))) as ArrayRef;
    let columns: Vec<ArrayRef> = vec![
        u(|r| r.step),
        u(|r| r.tokens),
        u(|r| r.epoch),
        f(|r| r.lr),
        f(|r| r.loss),
        f(|r| r.fvu),
        f(|r| r.l0),
        u(|r| r.dead),
        u(|r| r.dead_after_tokens),
        aux,
        f(|r| r.grad_norm),
    ];
    let names: BTreeSet<&String> = records.iter().flat_map(|r| r.parts.keys()).collect();
    let parts: Vec<(String, ArrayRef)> = names
        .into_iter()
        .map(|name| {
            let values = records.iter().map(|r| r.parts.get(name).copied().flatten());
            (format!("parts.{name}"), Arc::new(Float64Array::from_iter(values)) as ArrayRef)
        })
        .collect();
    let fields = LOG_COLUMNS.iter().zip(columns).map(|(name, column)| (*name, column, *name == "aux_loss"));
    let parts = parts.iter().map(|(name, column)| (name.as_str(), column.clone(), true));
    write_table(&dir.join("log.parquet"), fields.chain(parts))
}

/// Writes named columns as one Parquet file, atomically.
pub fn write_table<'a>(path: &Path, columns: impl Iterator<Item = (&'a str, ArrayRef, bool)>) -> Result<()> {
    let batch = RecordBatch::try_from_iter_with_nullable(columns).map_err(|e| artefact::write_error(path, &e))?;
    let dir = path.parent().unwrap_or(Path::new("."));
    let temp = tempfile::NamedTempFile::new_in(dir).map_err(|e| Error::io("create a file in", dir, e))?;
    let mut writer = ArrowWriter::try_new(temp, batch.schema(), None).map_err(|e| artefact::write_error(path, &e))?;
    writer.write(&batch).map_err(|e| artefact::write_error(path, &e))?;
    let temp = writer.into_inner().map_err(|e| artefact::write_error(path, &e))?;
    artefact::persist(temp, path)
}
