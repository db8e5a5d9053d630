//! Writes shards: rows are buffered per split up to a row group, a shard is sealed as a pair of files (train, held-out).
//!
//! A file appears under its name only when it is whole: it is written as `NAME.partial`, synced, renamed, and the folder synced.
//! The manifest is the caller's: it alone knows where the rows came from.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, FixedSizeListArray, StringArray, UInt16Array, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, Field, SchemaRef};
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use parquet::arrow::add_encoded_arrow_schema_to_metadata;
use parquet::arrow::arrow_writer::{compute_leaves, ArrowRowGroupWriterFactory};
use parquet::arrow::ArrowSchemaConverter;
use parquet::errors::ParquetError;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::writer::SerializedFileWriter;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::crc::crc32;
use super::manifest::{sync_dir, ColumnEntry, RowCounts, ShardEntry};
use super::schema::{arrow_schema, properties, N_ID_COLUMNS};
use super::{page, Column, Dtype, Rows, Split};
use crate::artefact;
use crate::error::{Error, Result};

/// How to lay out the files.
#[derive(Debug, Clone, Default)]
pub struct WriterOptions {
    /// Rows per row group; `None`: about 4 MiB of the widest column, between 256 and 8192.
    pub row_group_rows: Option<usize>,
    /// [`Manifest::id`](super::Manifest::id), repeated in every file.
    pub harvest_id: String,
}

impl WriterOptions {
    /// The rows per row group that these options mean for `columns`.
    pub fn resolve_row_group_rows(&self, columns: &[Column]) -> usize {
        const TARGET_BYTES: usize = 4 << 20;
        let widest = columns.iter().map(|c| c.width * c.dtype.bytes()).max().unwrap_or(1).max(1);
        // A power of two, so that neighbouring widths give comparable files.
        let auto = (TARGET_BYTES / widest).clamp(256, 8192);
        self.row_group_rows.unwrap_or(1 << auto.ilog2()).max(1)
    }
}

/// Running figures of one column's train rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Sums {
    n: u64,
    sum: Vec<f64>,
    sum_sq: f64,
}

/// All that a writer needs to go on after its last sealed shard. JSON with exact floats round-trips it bit for bit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WriterState {
    next_shard: usize,
    rows: RowCounts,
    sums: Vec<Sums>,
    entries: Vec<ShardEntry>,
}

/// Writes the shards of one folder.
pub struct ShardWriter {
    dir: PathBuf,
    columns: Vec<Column>,
    schema: SchemaRef,
    row_group_rows: usize,
    harvest_id: String,
    state: WriterState,
    /// One per split: `Split::ALL` order.
    open: [OpenFile; 2],
}

/// The file being written for one split, and the rows that wait for its next row group.
#[derive(Default)]
struct OpenFile {
    file: Option<Sink>,
    rows: u64,
    doc_id: Vec<u64>,
    position: Vec<u32>,
    token_id: Vec<Option<u32>>,
    /// Little-endian values per column.
    values: Vec<Vec<u8>>,
}

struct Sink {
    partial: PathBuf,
    writer: SerializedFileWriter<HashingFile>,
    factory: ArrowRowGroupWriterFactory,
}

/// A file that is hashed as it is written.
struct HashingFile {
    file: File,
    hash: Sha256,
}

impl Write for HashingFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.hash.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

impl ShardWriter {
    /// A writer into `dir`, which is created if needed. Nothing is written before the first row group is full.
    ///
    /// # Errors
    /// When there is no column, a width is 0, or two columns share a name; when the folder cannot be made.
    pub fn create(dir: &Path, columns: Vec<Column>, options: &WriterOptions) -> Result<Self> {
        let sums = columns.iter().map(|c| Sums { n: 0, sum: vec![0.0; c.width], sum_sq: 0.0 }).collect();
        let state = WriterState { next_shard: 0, rows: RowCounts::default(), sums, entries: Vec::new() };
        Self::resume(dir, columns, options, state)
    }

    /// Goes on after the last sealed shard of `state`. Files that the state does not know are overwritten in time or left alone.
    ///
    /// # Errors
    /// As [`ShardWriter::create`]; also when the state belongs to other columns.
    pub fn resume(dir: &Path, columns: Vec<Column>, options: &WriterOptions, state: WriterState) -> Result<Self> {
        check_columns(&columns)?;
        if state.sums.len() != columns.len() || state.sums.iter().zip(&columns).any(|(s, c)| s.sum.len() != c.width) {
            return Err(Error::request("the saved state belongs to other columns", "resume with the configuration that began the harvest"));
        }
        std::fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
        let schema = arrow_schema(&columns);
        let row_group_rows = options.resolve_row_group_rows(&columns);
        let open = [OpenFile::for_columns(columns.len()), OpenFile::for_columns(columns.len())];
        Ok(Self { dir: dir.to_path_buf(), columns, schema, row_group_rows, harvest_id: options.harvest_id.clone(), state, open })
    }

    /// The state after the last sealed shard. Rows pushed since then are not in it.
    ///
    /// # Panics
    /// When rows are pending: seal first.
    pub fn state(&self) -> &WriterState {
        assert_eq!(self.open_rows(), 0, "ShardWriter::state with an unsealed shard");
        &self.state
    }

    /// Rows pushed since the last seal, both splits.
    pub fn open_rows(&self) -> u64 {
        self.open.iter().map(|o| o.rows).sum()
    }

    /// Rows pushed since the beginning.
    pub fn rows(&self) -> RowCounts {
        self.state.rows
    }

    /// The sealed files.
    pub fn entries(&self) -> &[ShardEntry] {
        &self.state.entries
    }

    /// The columns with the mean and mean squared norm of the train rows pushed so far.
    pub fn column_entries(&self) -> Vec<ColumnEntry> {
        self.columns
            .iter()
            .zip(&self.state.sums)
            .map(|(column, s)| {
                let n = s.n.max(1) as f64;
                let mean = s.sum.iter().map(|v| v / n).collect();
                ColumnEntry { column: column.clone(), n: s.n, mean_sq_norm: s.sum_sq / n, mean }
            })
            .collect()
    }

    /// Appends rows to a split. They must ascend by (`doc_id`, `position`) within the split over all pushes; the format says so.
    ///
    /// # Errors
    /// When lengths disagree, a value is NaN, infinite or too large for the stored type, or a file cannot be written. The writer is
    /// of no use afterwards; what was sealed before stays good.
    pub fn push(&mut self, split: Split, rows: &Rows) -> Result<()> {
        let n = rows.doc_id.len();
        check_rows(rows, n, &self.columns)?;
        let which = split as usize;
        let mut at = 0;
        while at < n {
            let open = &mut self.open[which];
            let take = (self.row_group_rows - open.doc_id.len()).min(n - at);
            let span = at..at + take;
            for (c, column) in self.columns.iter().enumerate() {
                let x = &rows.columns[c][span.start * column.width..span.end * column.width];
                let sums = (split == Split::Train).then_some(&mut self.state.sums[c]);
                append(&mut open.values[c], x, column, sums).map_err(|bad| {
                    let row = span.start + bad / column.width;
                    let place = format!("document {}, position {}, element {}", rows.doc_id[row], rows.position[row], bad % column.width);
                    not_finite(column, rows.columns[c][span.start * column.width + bad], place)
                })?;
            }
            open.doc_id.extend_from_slice(&rows.doc_id[span.clone()]);
            open.position.extend_from_slice(&rows.position[span.clone()]);
            match &rows.token_id {
                Some(ids) => open.token_id.extend(ids[span].iter().copied().map(Some)),
                None => open.token_id.extend(std::iter::repeat_n(None, take)),
            }
            open.rows += take as u64;
            self.state.rows.add(split, take as u64);
            at += take;
            if self.open[which].doc_id.len() == self.row_group_rows {
                self.write_row_group(split)?;
            }
        }
        Ok(())
    }

    /// Seals the current shard: its files get their names, and are on the disk when this returns. Returns the new entries
    /// (none when no row waits).
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn seal_shard(&mut self) -> Result<Vec<ShardEntry>> {
        if self.open_rows() == 0 {
            return Ok(Vec::new());
        }
        let mut entries = Vec::new();
        for split in Split::ALL {
            if self.open[split as usize].rows == 0 {
                continue;
            }
            if !self.open[split as usize].doc_id.is_empty() {
                self.write_row_group(split)?;
            }
            entries.push(self.seal_file(split)?);
        }
        sync_dir(&self.dir)?;
        self.state.next_shard += 1;
        self.state.entries.extend(entries.iter().cloned());
        Ok(entries)
    }

    fn file_name(&self, split: Split) -> String {
        format!("{}-{:05}.parquet", split.name(), self.state.next_shard)
    }

    fn open_file(&self, split: Split) -> Result<Sink> {
        let partial = self.dir.join(self.file_name(split) + ".partial");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&partial);
        let file = file.map_err(|e| Error::io("create", &partial, e))?;
        let mut props = properties(&self.columns, &self.harvest_id);
        add_encoded_arrow_schema_to_metadata(&self.schema, &mut props);
        let make = || {
            let parquet_schema = ArrowSchemaConverter::new().convert(&self.schema)?;
            let sink = HashingFile { file, hash: Sha256::new() };
            let writer = SerializedFileWriter::new(sink, parquet_schema.root_schema_ptr(), Arc::new(props))?;
            let factory = ArrowRowGroupWriterFactory::new(&writer, Arc::clone(&self.schema));
            Ok((writer, factory))
        };
        let (writer, factory) = make().map_err(|e: ParquetError| artefact::write_error(&partial, &e))?;
        Ok(Sink { partial, writer, factory })
    }

    fn write_row_group(&mut self, split: Split) -> Result<()> {
        let which = split as usize;
        if self.open[which].file.is_none() {
            self.open[which].file = Some(self.open_file(split)?);
        }
        let open = &mut self.open[which];
        let sink = open.file.as_mut().expect("opened above");
        let n = open.doc_id.len();
        let ids: [ArrayRef; N_ID_COLUMNS] = [
            Arc::new(UInt64Array::from(std::mem::take(&mut open.doc_id))),
            Arc::new(UInt32Array::from(std::mem::take(&mut open.position))),
            Arc::new(UInt32Array::from(std::mem::take(&mut open.token_id))),
            Arc::new(StringArray::from_iter_values(std::iter::repeat_n(split.name(), n))),
        ];
        let (columns, schema, values) = (&self.columns, &self.schema, &open.values);
        let write = |sink: &mut Sink| -> Result<(), ParquetError> {
            let group = sink.writer.flushed_row_groups().len();
            let mut leaves = sink.factory.create_column_writers(group)?;
            let float_leaves = leaves.split_off(N_ID_COLUMNS);
            let descr = sink.writer.schema_descr().columns().to_vec();
            // Each column is encoded alone, so the order of work cannot change the bytes.
            let encoded: Vec<_> = (float_leaves, values, columns)
                .into_par_iter()
                .enumerate()
                .map(|(c, (leaf, bytes, column))| match column.dtype {
                    Dtype::F32 | Dtype::F16 => {
                        page::encode(Arc::clone(&descr[N_ID_COLUMNS + c]), bytes, n, column.width, column.dtype).map(Encoded::Own)
                    }
                    Dtype::Bf16 => {
                        let field = schema.field(N_ID_COLUMNS + c);
                        encode_arrow(leaf, field, &bf16_array(field, bytes, column.width)?).map(Encoded::Arrow)
                    }
                })
                .collect();
            let mut row_group = sink.writer.next_row_group()?;
            for (i, (leaf, array)) in leaves.into_iter().zip(&ids).enumerate() {
                encode_arrow(leaf, schema.field(i), array)?.append_to_row_group(&mut row_group)?;
            }
            for chunk in encoded {
                match chunk? {
                    Encoded::Own((bytes, close)) => row_group.append_column(&bytes, close)?,
                    Encoded::Arrow(chunk) => chunk.append_to_row_group(&mut row_group)?,
                }
            }
            row_group.close().map(|_| ())
        };
        write(sink).map_err(|e| artefact::write_error(&sink.partial, &e))?;
        for bytes in &mut open.values {
            bytes.clear();
        }
        Ok(())
    }

    fn seal_file(&mut self, split: Split) -> Result<ShardEntry> {
        let name = self.file_name(split);
        let open = &mut self.open[split as usize];
        let Sink { partial, writer, .. } = open.file.take().expect("a split with rows has a file once its rows are flushed");
        let rows = std::mem::take(&mut open.rows);
        let groups: Vec<_> = writer.flushed_row_groups().to_vec();
        let HashingFile { mut file, hash } = writer.into_inner().map_err(|e| artefact::write_error(&partial, &e))?;
        let bytes = file.stream_position().map_err(|e| Error::io("write", &partial, e))?;
        let (crc32, footer_crc32) = checksums(&mut file, bytes, &groups).map_err(|e| Error::io("read back", &partial, e))?;
        file.sync_all().map_err(|e| Error::io("sync", &partial, e))?;
        drop(file);
        std::fs::rename(&partial, self.dir.join(&name)).map_err(|e| Error::io("rename", &partial, e))?;
        Ok(ShardEntry { file: name, split, rows, bytes, sha256: hex(&hash.finalize()), footer_crc32, crc32 })
    }
}

impl Drop for ShardWriter {
    fn drop(&mut self) {
        for sink in self.open.iter_mut().filter_map(|o| o.file.take()) {
            // Best effort: a leftover is overwritten by the next run and never taken for a shard.
            let _ = std::fs::remove_file(&sink.partial);
        }
    }
}

impl OpenFile {
    fn for_columns(n: usize) -> Self {
        Self { values: vec![Vec::new(); n], ..Self::default() }
    }
}

enum Encoded {
    Own((bytes::Bytes, parquet::column::writer::ColumnCloseResult)),
    Arrow(parquet::arrow::arrow_writer::ArrowColumnChunk),
}

fn encode_arrow(
    mut writer: parquet::arrow::arrow_writer::ArrowColumnWriter,
    field: &Field,
    array: &ArrayRef,
) -> Result<parquet::arrow::arrow_writer::ArrowColumnChunk, ParquetError> {
    for leaf in compute_leaves(field, array)? {
        writer.write(&leaf)?;
    }
    writer.close()
}

fn bf16_array(field: &Field, bytes: &[u8], width: usize) -> Result<ArrayRef, ParquetError> {
    let DataType::FixedSizeList(item, _) = field.data_type() else {
        return Err(ParquetError::General("a hook point's column is no list".to_string()));
    };
    let values: Vec<u16> = bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
    let list = FixedSizeListArray::try_new(Arc::clone(item), width as i32, Arc::new(UInt16Array::from(values)), None)?;
    Ok(Arc::new(list))
}

/// CRC-32 of every column chunk, one line per row group, and of the footer; from the file itself: what is checked later is what lies
/// there now.
fn checksums(file: &mut File, length: u64, row_groups: &[RowGroupMetaData]) -> std::io::Result<(Vec<String>, String)> {
    let mut buffer = Vec::new();
    let mut lines = Vec::with_capacity(row_groups.len());
    for group in row_groups {
        let mut line = String::new();
        for chunk in group.columns() {
            let (start, length) = chunk.byte_range();
            buffer.resize(length as usize, 0);
            file.seek(SeekFrom::Start(start))?;
            file.read_exact(&mut buffer)?;
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(&format!("{:08x}", crc32(&buffer)));
        }
        lines.push(line);
    }
    let footer = read_footer(file, length)?;
    Ok((lines, format!("{:08x}", crc32(&footer))))
}

/// The footer of a Parquet file of `length` bytes: metadata, its length, magic number.
pub(super) fn read_footer(file: &mut File, length: u64) -> std::io::Result<Vec<u8>> {
    let mut tail = [0; 8];
    file.seek(SeekFrom::Start(length.saturating_sub(8)))?;
    file.read_exact(&mut tail)?;
    let footer = 8 + u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]));
    // A damaged length must not make us allocate what the file cannot hold.
    let mut bytes = vec![0; footer.min(length) as usize];
    file.seek(SeekFrom::Start(length - footer.min(length)))?;
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Rounds `x` to the stored type, appends its bytes, and adds the rounded rows to `sums`. Returns the index of the first value that
/// is not finite once rounded, with nothing appended or added.
fn append(out: &mut Vec<u8>, x: &[f32], column: &Column, sums: Option<&mut Sums>) -> Result<(), usize> {
    let finite = |v: &[f32]| v.iter().position(|v| !v.is_finite()).map_or(Ok(()), Err);
    let mut rounded = Vec::new();
    let stored: &[f32] = match column.dtype {
        Dtype::F32 => x,
        Dtype::F16 | Dtype::Bf16 => {
            rounded.resize(x.len(), 0.0);
            &rounded
        }
    };
    match column.dtype {
        Dtype::F32 => {
            finite(stored)?;
            out.reserve(x.len() * 4);
            out.extend(x.iter().flat_map(|v| v.to_le_bytes()));
        }
        Dtype::F16 => {
            let mut bits = vec![0u16; x.len()];
            bits.reinterpret_cast_mut::<half::f16>().convert_from_f32_slice(x);
            bits.reinterpret_cast::<half::f16>().convert_to_f32_slice(&mut rounded);
            finite(&rounded)?;
            out.extend(bits.iter().flat_map(|v| v.to_le_bytes()));
        }
        Dtype::Bf16 => {
            let mut bits = vec![0u16; x.len()];
            bits.reinterpret_cast_mut::<half::bf16>().convert_from_f32_slice(x);
            bits.reinterpret_cast::<half::bf16>().convert_to_f32_slice(&mut rounded);
            finite(&rounded)?;
            out.extend(bits.iter().flat_map(|v| v.to_le_bytes()));
        }
    }
    let stored: &[f32] = if column.dtype == Dtype::F32 { x } else { &rounded };
    if let Some(sums) = sums {
        for row in stored.chunks_exact(column.width) {
            sums.add(row);
        }
    }
    Ok(())
}

impl Sums {
    /// Adds one row. The order of additions is fixed: rows in order, eight interleaved partial sums for the norm.
    fn add(&mut self, row: &[f32]) {
        for (s, &v) in self.sum.iter_mut().zip(row) {
            *s += f64::from(v);
        }
        let mut lanes = [0f64; 8];
        let mut eights = row.chunks_exact(8);
        for eight in &mut eights {
            for (lane, &v) in lanes.iter_mut().zip(eight) {
                *lane += f64::from(v) * f64::from(v);
            }
        }
        for (lane, &v) in lanes.iter_mut().zip(eights.remainder()) {
            *lane += f64::from(v) * f64::from(v);
        }
        self.sum_sq += lanes.iter().sum::<f64>();
        self.n += 1;
    }
}

fn check_columns(columns: &[Column]) -> Result<()> {
    if columns.is_empty() {
        return Err(Error::config("harvest.hooks", "no hook point is named", "name at least one, such as blocks.3.hook_resid_post"));
    }
    for (i, column) in columns.iter().enumerate() {
        let reserved = ["doc_id", "position", "token_id", "split"].contains(&column.name.as_str());
        if reserved || column.name.is_empty() || columns[..i].iter().any(|c| c.name == column.name) {
            return Err(Error::request(
                format!("`{}` cannot be a column: the name is empty, reserved or used twice", column.name),
                "name each hook point once; doc_id, position, token_id and split are taken",
            ));
        }
        if column.width == 0 {
            return Err(Error::request(format!("`{}` has width 0", column.name), "check the vectors: each must have at least one value"));
        }
    }
    Ok(())
}

fn check_rows(rows: &Rows, n: usize, columns: &[Column]) -> Result<()> {
    let ids = rows.position.len() == n && rows.token_id.as_ref().is_none_or(|t| t.len() == n);
    if !ids || rows.columns.len() != columns.len() {
        return Err(Error::request(
            format!("rows of {} columns with id columns of unequal length pushed to {} columns", rows.columns.len(), columns.len()),
            "give every row a doc_id and a position, and every column its values",
        ));
    }
    for (values, column) in rows.columns.iter().zip(columns) {
        if values.len() != n * column.width {
            return Err(Error::Width {
                what: format!("a block of `{}` with {n} rows", column.name),
                expected: n * column.width,
                got: values.len(),
                help: "give row-major [n, width] values".to_string(),
            });
        }
    }
    Ok(())
}

fn not_finite(column: &Column, value: f32, place: String) -> Error {
    let help = if value.is_finite() {
        format!("{value:e} does not fit into {}: use dtype bf16 or f32", column.dtype.name())
    } else {
        "the host or the file produced it: check the weights and the dtype of the host (f16 overflows, f32 does not)".to_string()
    };
    Error::NotFinite { what: format!("`{}`", column.name), count: 1, place, help }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

impl WriterState {
    /// Names of the sealed files.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|e| e.file.as_str())
    }
}
