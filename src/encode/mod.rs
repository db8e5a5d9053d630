//! A dictionary over shards: sparse codes as Parquet, one row per activation.
//!
//! `codes.parquet`: `doc_id` u64, `position` u32, `token_id` u32 (null for vectors), `split` string, `indices` list of u32,
//! `values` list of f32 (by value descending, then index). `codes.json` says what made it. docs/codes.md is the specification.

use std::fmt;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Array, ListArray, RecordBatch, StringArray, UInt32Array, UInt64Array};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, Schema};
use candle_core::Tensor;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use serde::Serialize;

use crate::artefact;
use crate::codes::Codes;
use crate::dictionary::Dictionary;
use crate::error::{Error, Result};
use crate::kernels::{encode_counts, EncodeCounts};
use crate::progress::Progress;
use crate::shard::{Batch, Shards, Split};

/// Version of `codes.parquet`'s layout.
pub const FORMAT_VERSION: u32 = 1;

/// What an encoding came to.
#[derive(Debug, Clone, Serialize)]
pub struct EncodeReport {
    /// The folder.
    pub out: PathBuf,
    /// Rows encoded.
    pub rows: u64,
    /// Mean active latents per row.
    pub l0: f64,
    /// Wall clock.
    pub seconds: f64,
    /// What exactness took; it depends on the screen, and nothing else does.
    pub counts: EncodeCounts,
}

impl fmt::Display for EncodeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} rows, mean L0 {:.2}, {:.1} s ({:.0} rows/s)\n{}",
            self.rows,
            self.l0,
            self.seconds,
            self.rows as f64 / self.seconds.max(1e-9),
            self.out.join("codes.parquet").display()
        )
    }
}

fn schema() -> Arc<Schema> {
    let list = |item: DataType| DataType::List(Arc::new(Field::new("item", item, false)));
    Arc::new(Schema::new(vec![
        Field::new("doc_id", DataType::UInt64, false),
        Field::new("position", DataType::UInt32, false),
        Field::new("token_id", DataType::UInt32, true),
        Field::new("split", DataType::Utf8, false),
        Field::new("indices", list(DataType::UInt32), false),
        Field::new("values", list(DataType::Float32), false),
    ]))
}

fn record(batch: &Batch, codes: &Codes, split: &str) -> std::result::Result<RecordBatch, arrow::error::ArrowError> {
    let offsets = OffsetBuffer::new(ScalarBuffer::from(codes.indptr.iter().map(|&p| p as i32).collect::<Vec<_>>()));
    let list = |item: DataType, values: ArrayRef| {
        Arc::new(ListArray::new(Arc::new(Field::new("item", item, false)), offsets.clone(), values, None)) as ArrayRef
    };
    let token_id = if batch.token_id.is_empty() { UInt32Array::new_null(batch.n) } else { UInt32Array::from(batch.token_id.clone()) };
    RecordBatch::try_new(
        schema(),
        vec![
            Arc::new(UInt64Array::from(batch.doc_id.clone())),
            Arc::new(UInt32Array::from(batch.position.clone())),
            Arc::new(token_id),
            Arc::new(StringArray::from_iter_values(std::iter::repeat_n(split, batch.n))),
            list(DataType::UInt32, Arc::new(UInt32Array::from(codes.indices.clone()))),
            list(DataType::Float32, Arc::new(Float32Array::from(codes.values.clone()))),
        ],
    )
}

/// A `codes.parquet` being written.
struct Writer {
    path: PathBuf,
    writer: ArrowWriter<tempfile::NamedTempFile>,
    started: std::time::Instant,
    before: EncodeCounts,
    rows: u64,
    active: u64,
}

impl Writer {
    fn create(out: &Path, overwrite: bool) -> Result<Self> {
        if !overwrite && !artefact::is_empty(out)? {
            return Err(Error::OutputNotEmpty { path: out.to_path_buf() });
        }
        fs::create_dir_all(out).map_err(|e| Error::io("create", out, e))?;
        artefact::remove_leftovers(out)?;
        let (started, before) = (std::time::Instant::now(), encode_counts());
        let path = out.join("codes.parquet");
        let temp = tempfile::NamedTempFile::new_in(out).map_err(|e| Error::io("create a file in", out, e))?;
        let properties = WriterProperties::builder()
            .set_created_by(format!("lapidary {}", env!("CARGO_PKG_VERSION")))
            .set_compression(parquet::basic::Compression::SNAPPY)
            .set_max_row_group_row_count(Some(65_536))
            .build();
        let writer = ArrowWriter::try_new(temp, schema(), Some(properties)).map_err(|e| artefact::write_error(&path, &e))?;
        Ok(Self { path, writer, started, before, rows: 0, active: 0 })
    }

    /// Codes of a batch whose rows are `x` `[n, d_in]`.
    fn push(&mut self, batch: &Batch, codes: &Codes, split: &str) -> Result<()> {
        let bad = |e: &(dyn std::error::Error + 'static)| artefact::write_error(&self.path, e);
        let record = record(batch, codes, split).map_err(|e| bad(&e))?;
        self.writer.write(&record).map_err(|e| bad(&e))?;
        self.rows += batch.n as u64;
        self.active += codes.indices.len() as u64;
        Ok(())
    }

    fn finish(self, dictionary: &Dictionary, out: &Path, column: &str, split: &str) -> Result<EncodeReport> {
        let bad = |e: &(dyn std::error::Error + 'static)| artefact::write_error(&self.path, e);
        artefact::persist(self.writer.into_inner().map_err(|e| bad(&e))?, &self.path)?;
        let (rows, active) = (self.rows, self.active);
        let info = serde_json::json!({
            "kind": "lapidary-codes", "version": FORMAT_VERSION, "rows": rows, "active": active, "d_sae": dictionary.d_sae(),
            "column": column, "split": split, "activation": dictionary.activation,
            "dictionary": dictionary.provenance,
        });
        let mut json = serde_json::to_vec_pretty(&info).expect("plain JSON");
        json.push(b'\n');
        artefact::write(out, "codes.json", &json)?;
        Ok(EncodeReport {
            out: out.to_path_buf(),
            rows,
            l0: active as f64 / rows.max(1) as f64,
            seconds: self.started.elapsed().as_secs_f64(),
            counts: encode_counts().since(self.before),
        })
    }
}

/// Encodes the rows of `column`, in file order; `split` `None` means all rows, train first.
///
/// # Errors
/// Another width, damaged shards, a folder in use, a full disk.
pub fn encode(
    dictionary: &Dictionary,
    shards: &Shards,
    column: &str,
    split: Option<Split>,
    out: &Path,
    overwrite: bool,
    progress: &dyn Progress,
) -> Result<EncodeReport> {
    let mut writer = Writer::create(out, overwrite)?;
    progress.begin("encode", Some(shards.rows(split)), "rows");
    let splits = split.map_or(vec![Split::Train, Split::HeldOut], |s| vec![s]);
    for split in splits {
        for batch in shards.scan(column, Some(split))? {
            let mut batch = batch?;
            let x = Tensor::from_vec(std::mem::take(&mut batch.x), (batch.n, dictionary.d_in()), dictionary.device())?;
            writer.push(&batch, &dictionary.encode(&x)?, split.name())?;
            progress.advance(batch.n as u64);
            if progress.is_cancelled() {
                return Err(Error::Interrupted { doing: "encoding" });
            }
        }
    }
    progress.end();
    writer.finish(dictionary, out, column, split.map_or("all", Split::name))
}

/// Encodes vectors that are in no shards, handed over block by block; row i of all is `doc_id` i at position 0.
pub struct VectorEncoder<'a> {
    dictionary: &'a Dictionary,
    out: PathBuf,
    writer: Writer,
    reconstruction: Option<(PathBuf, std::io::BufWriter<tempfile::NamedTempFile>)>,
}

impl<'a> VectorEncoder<'a> {
    /// Opens the outputs. `reconstruct`: also write `reconstruction.npy`, `[rows, d_out]`, f32; it needs to know how many `rows` come.
    ///
    /// # Errors
    /// A folder in use, one that cannot be made.
    pub fn create(dictionary: &'a Dictionary, rows: u64, reconstruct: bool, out: &Path, overwrite: bool) -> Result<Self> {
        let writer = Writer::create(out, overwrite)?;
        let reconstruction = if reconstruct {
            let path = out.join("reconstruction.npy");
            let temp = tempfile::NamedTempFile::new_in(out).map_err(|e| Error::io("create a file in", out, e))?;
            let mut file = std::io::BufWriter::new(temp);
            let header = npy_header(rows, dictionary.d_out());
            file.write_all(&header).map_err(|e| Error::io("write", &path, e))?;
            Some((path, file))
        } else {
            None
        };
        Ok(Self { dictionary, out: out.to_path_buf(), writer, reconstruction })
    }

    /// The next rows, `[n, d_in]`, row-major.
    ///
    /// # Errors
    /// Another width, a full disk.
    pub fn push(&mut self, x: &[f32], width: usize) -> Result<()> {
        let n = x.len() / width.max(1);
        let x = Tensor::from_slice(x, (n, width), self.dictionary.device())?;
        let codes = self.dictionary.encode(&x)?;
        let first = self.writer.rows;
        let batch = Batch { n, doc_id: (first..first + n as u64).collect(), position: vec![0; n], ..Default::default() };
        self.writer.push(&batch, &codes, "all")?;
        if let Some((path, file)) = &mut self.reconstruction {
            let y = self.dictionary.decode(&codes, Some(&x))?.flatten_all()?.to_vec1::<f32>()?;
            let bytes: Vec<u8> = y.iter().flat_map(|v| v.to_le_bytes()).collect();
            file.write_all(&bytes).map_err(|e| Error::io("write", &*path, e))?;
        }
        Ok(())
    }

    /// Closes the files. `source`: what the rows are, for `codes.json`.
    ///
    /// # Errors
    /// I/O errors.
    pub fn finish(self, source: &str) -> Result<EncodeReport> {
        if let Some((path, file)) = self.reconstruction {
            let temp = file.into_inner().map_err(|e| Error::io("write", &path, e.into_error()))?;
            artefact::persist(temp, &path)?;
        }
        self.writer.finish(self.dictionary, &self.out, source, "all")
    }
}

/// Header of an f32 matrix as numpy writes it: version 1.0, padded to 64 bytes.
fn npy_header(rows: u64, columns: usize) -> Vec<u8> {
    let mut text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {columns}), }}");
    let padding = (64 - (10 + text.len() + 1) % 64) % 64;
    text.push_str(&" ".repeat(padding));
    text.push('\n');
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend_from_slice(&(text.len() as u16).to_le_bytes());
    header.extend_from_slice(text.as_bytes());
    header
}
