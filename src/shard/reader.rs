//! Reads shards. Every column chunk is read once, checked against the manifest's CRC-32, and decoded from memory.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{sync_channel, Receiver};
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Field, Float16Type, Float32Type, UInt16Type, UInt32Type, UInt64Type};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::arrow::ProjectionMask;
use parquet::errors::ParquetError;
use sha2::{Digest, Sha256};

use super::chunk::Chunks;
use super::crc::crc32;
use super::manifest::{Manifest, ShardEntry};
use super::schema::{arrow_schema, DTYPE_KEY, HARVEST_KEY, N_ID_COLUMNS};
use super::shuffle::{Sample, ShuffleConfig, Shuffled};
use super::writer::{hex, read_footer};
use super::{page, Batch, Column, Dtype, Split};
use crate::error::{Error, Result};
use crate::hook::HookPoint;

const HELP: &str = "the shard is damaged or incomplete: restore it from a copy, or make the shards again";

/// A folder of shards, opened: every file's size, footer, schema and row count agree with the manifest.
#[derive(Debug, Clone)]
pub struct Shards {
    dir: PathBuf,
    manifest: Arc<Manifest>,
    files: Arc<Vec<ShardFile>>,
}

/// One Parquet file of the folder.
#[derive(Debug)]
pub(super) struct ShardFile {
    path: PathBuf,
    split: Split,
    bytes: u64,
    metadata: ArrowReaderMetadata,
    /// Per row group and leaf; empty when the manifest has none.
    crc32: Vec<Vec<u32>>,
}

/// A row group somewhere in the folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Group {
    /// Index into the files.
    pub file: usize,
    /// Row group in the file.
    pub group: usize,
    /// Its rows.
    pub rows: usize,
}

impl Shards {
    /// Opens a folder that `harvest` or `ingest` wrote. Reads the manifest and every footer, no data.
    ///
    /// # Errors
    /// When the folder has no (readable) manifest, or a file is missing or does not agree with it.
    pub fn open(dir: &Path) -> Result<Self> {
        let manifest = Manifest::load(dir)?;
        let columns: Vec<Column> = manifest.columns.iter().map(|c| c.column.clone()).collect();
        let files = manifest.shards.iter().map(|entry| ShardFile::open(dir, entry, &manifest, &columns)).collect::<Result<Vec<_>>>()?;
        let of = |split| files.iter().filter(|f| f.split == split).map(|f| f.rows()).sum::<u64>();
        let (train, held_out) = (of(Split::Train), of(Split::HeldOut));
        if train != manifest.counts.rows.train || held_out != manifest.counts.rows.held_out {
            let counts = manifest.counts.rows;
            return Err(Error::format(
                "shard manifest",
                dir.join(super::MANIFEST_FILE),
                format!("it counts {} + {} rows, its shards hold {train} + {held_out}", counts.train, counts.held_out),
                HELP,
            ));
        }
        Ok(Self { dir: dir.to_path_buf(), manifest: Arc::new(manifest), files: Arc::new(files) })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Rows of a split, or of both.
    pub fn rows(&self, split: Option<Split>) -> u64 {
        self.manifest.counts.rows.of(split)
    }

    /// The columns, in file order.
    pub fn columns(&self) -> impl Iterator<Item = &Column> {
        self.manifest.columns.iter().map(|c| &c.column)
    }

    /// Finds a column by its name; other spellings of a hook point are understood. `None` means the only column.
    ///
    /// # Errors
    /// When there is none of that name, or `None` is given and there are several.
    pub fn column(&self, name: Option<&str>) -> Result<&Column> {
        let names = || self.columns().map(|c| c.name.as_str()).collect::<Vec<_>>().join(", ");
        let Some(name) = name else {
            return match self.manifest.columns.as_slice() {
                [only] => Ok(&only.column),
                many => Err(Error::request(
                    format!("{} holds {} hook points and none is named", self.dir.display(), many.len()),
                    format!("name one of {}", names()),
                )),
            };
        };
        let canonical = name.parse::<HookPoint>().map(|p| p.to_string());
        self.columns()
            .find(|c| c.name == name)
            .or_else(|| canonical.ok().and_then(|canonical| self.columns().find(|c| c.name == canonical)))
            .ok_or_else(|| Error::UnknownHookPoint { given: name.to_string(), host: self.dir.display().to_string(), available: names() })
    }

    /// Width of a column.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn width(&self, column: &str) -> Result<usize> {
        Ok(self.column(Some(column))?.width)
    }

    /// The rows of a column in file order, one batch per row group, read ahead on another thread.
    ///
    /// # Errors
    /// When there is no such column. Errors of reading come from the iterator, which ends after one.
    pub fn scan(&self, column: &str, split: Option<Split>) -> Result<Scan> {
        let column = self.column_index(column)?;
        let (shards, groups) = (self.clone(), self.groups(split));
        // Two batches wait at most; a dropped receiver ends the thread at its next send.
        let (sender, receiver) = sync_channel(2);
        let work = move || {
            for group in groups {
                let batch = shards.read_group(group, column);
                let failed = batch.is_err();
                if sender.send(batch).is_err() || failed {
                    return;
                }
            }
        };
        std::thread::Builder::new().name("shard-scan".into()).spawn(work).map_err(|e| Error::io("start a reader for", &self.dir, e))?;
        Ok(Scan { receiver })
    }

    /// The first `n` rows of a column in file order, fewer where there are no more. For looking at and analysis in memory.
    ///
    /// # Errors
    /// When there is no such column; damaged files.
    pub fn first_rows(&self, column: &str, split: Option<Split>, n: usize) -> Result<Batch> {
        let width = self.width(column)?;
        let mut first = Batch::default();
        for batch in self.scan(column, split)? {
            let batch = batch?;
            let take = batch.n.min(n - first.n);
            first.n += take;
            first.x.extend_from_slice(&batch.x[..take * width]);
            first.doc_id.extend_from_slice(&batch.doc_id[..take]);
            first.position.extend_from_slice(&batch.position[..take]);
            first.token_id.extend_from_slice(&batch.token_id[..take.min(batch.token_id.len())]);
            if first.n == n {
                break;
            }
        }
        Ok(first)
    }

    /// Endless shuffled rows of a column: see [`Shuffled`].
    ///
    /// # Errors
    /// When there is no such column, or no rows in the split.
    pub fn shuffled(&self, column: &str, split: Option<Split>, config: &ShuffleConfig) -> Result<Shuffled> {
        let index = self.column_index(column)?;
        Shuffled::new(self.clone(), index, split, config)
    }

    /// The first `n` training rows (or all, if there are fewer) of a column in an order that `seed` shuffles.
    ///
    /// # Errors
    /// As [`Shards::shuffled`].
    pub fn sample(&self, column: &str, seed: u64, n: usize) -> Result<Sample> {
        let left = n.min(self.rows(Some(Split::Train)) as usize);
        Ok(Sample { rows: self.shuffled(column, Some(Split::Train), &ShuffleConfig { seed, ..Default::default() })?, left })
    }

    /// Hashes every file and compares with the manifest: slower and stronger than the checks made while reading.
    ///
    /// # Errors
    /// At the first file that differs.
    pub fn verify(&self) -> Result<()> {
        for entry in &self.manifest.shards {
            let path = self.dir.join(&entry.file);
            let mut file = File::open(&path).map_err(|e| Error::io("open", &path, e))?;
            let mut hash = Sha256::new();
            std::io::copy(&mut file, &mut hash).map_err(|e| Error::io("read", &path, e))?;
            let found = hex(&hash.finalize());
            if found != entry.sha256 {
                return Err(Error::format("shard", &path, format!("sha256 is {found}, the manifest says {}", entry.sha256), HELP));
            }
        }
        Ok(())
    }

    pub(super) fn column_index(&self, name: &str) -> Result<usize> {
        let found = self.column(Some(name))?.name.clone();
        Ok(self.columns().position(|c| c.name == found).expect("found by name just now"))
    }

    /// Row groups of a split in file order.
    pub(super) fn groups(&self, split: Option<Split>) -> Vec<Group> {
        let mut groups = Vec::new();
        for (file, shard) in self.files.iter().enumerate().filter(|(_, f)| split.is_none_or(|s| s == f.split)) {
            for (group, metadata) in shard.metadata.metadata().row_groups().iter().enumerate() {
                groups.push(Group { file, group, rows: metadata.num_rows() as usize });
            }
        }
        groups
    }

    /// Reads one row group of the column with this index.
    fn read_group(&self, at: Group, column: usize) -> Result<Batch> {
        let mut batch = Batch::default();
        self.append_group(at, column, &mut batch)?;
        Ok(batch)
    }

    /// Appends one row group of the column with this index.
    pub(super) fn append_group(&self, at: Group, column: usize, out: &mut Batch) -> Result<()> {
        let file = &self.files[at.file];
        let spec = &self.manifest.columns[column].column;
        let leaf = N_ID_COLUMNS + column;
        let leaves = [0, 1, 2, leaf];
        let chunks = Arc::new(file.read_chunks(at.group, &leaves)?);
        let parquet = |e: ParquetError| Error::format("shard", &file.path, e.to_string(), HELP);
        let (had, had_tokens) = (out.n, out.token_id.len());
        out.x.reserve(at.rows * spec.width);
        let chunk_metadata = file.metadata.metadata().row_group(at.group).column(leaf);
        let fast = page::decode(&chunks, chunk_metadata, at.rows, spec.width, spec.dtype, &mut out.x).map_err(parquet)?;
        let general = if fast.is_some() { &leaves[..3] } else { &leaves[..] };
        for batch in file.arrow_batches(chunks, at.group, general, at.rows).map_err(parquet)? {
            let batch = batch.map_err(|e| Error::format("shard", &file.path, e.to_string(), HELP))?;
            append_arrow(out, &batch, spec)
                .map_err(|problem| Error::format("shard", &file.path, format!("row group {}: {problem}", at.group), HELP))?;
        }
        // All rows of a folder have token ids, or none has.
        let tokens = out.token_id.len();
        if out.n - had != at.rows || out.x.len() != out.n * spec.width || !(tokens == out.n || (tokens == 0 && had_tokens == 0)) {
            let found = (out.n - had, out.x.len(), tokens);
            let problem = format!("row group {}: rows, values and token ids are {found:?} with {had} rows before it", at.group);
            return Err(Error::format("shard", &file.path, problem, HELP));
        }
        Ok(())
    }
}

impl ShardFile {
    fn open(dir: &Path, entry: &ShardEntry, manifest: &Manifest, columns: &[Column]) -> Result<Self> {
        let path = dir.join(&entry.file);
        let bad = |problem: String| Error::format("shard", &path, problem, HELP);
        if Path::new(&entry.file).components().count() != 1 {
            return Err(bad("the manifest names a file outside its folder".to_string()));
        }
        let mut file = File::open(&path).map_err(|e| Error::io("open", &path, e))?;
        let bytes = file.metadata().map_err(|e| Error::io("read", &path, e))?.len();
        if bytes != entry.bytes {
            return Err(bad(format!("it has {bytes} bytes, the manifest says {}", entry.bytes)));
        }
        let metadata = ArrowReaderMetadata::load(&file, ArrowReaderOptions::new()).map_err(|e| bad(e.to_string()))?;
        let footer = metadata.metadata().file_metadata();
        let id = footer.key_value_metadata().and_then(|kv| kv.iter().find(|kv| kv.key == HARVEST_KEY)).and_then(|kv| kv.value.as_deref());
        if id != Some(manifest.id.as_str()) {
            return Err(bad(format!("it belongs to harvest {}, the manifest is of {}", id.unwrap_or("(unnamed)"), manifest.id)));
        }
        // After the id: a file of another harvest is told as that, not as damage.
        if !entry.footer_crc32.is_empty() {
            let found = format!("{:08x}", crc32(&read_footer(&mut file, bytes).map_err(|e| Error::io("read", &path, e))?));
            if found != entry.footer_crc32 {
                return Err(bad(format!("the footer's CRC-32 is {found}, the manifest says {}", entry.footer_crc32)));
            }
        }
        if footer.num_rows() != entry.rows as i64 {
            return Err(bad(format!("it has {} rows, the manifest says {}", footer.num_rows(), entry.rows)));
        }
        let expected = arrow_schema(columns);
        let agrees = |f: &Field, w: &Field| {
            let dtype = |f: &Field| f.metadata().get(DTYPE_KEY).cloned();
            f.name() == w.name() && f.data_type() == w.data_type() && f.is_nullable() == w.is_nullable() && dtype(f) == dtype(w)
        };
        if let Some((found, wanted)) = metadata.schema().fields().iter().zip(expected.fields()).find(|(f, w)| !agrees(f, w)) {
            return Err(bad(format!(
                "its column `{}` is {}, `{}` {} expected",
                found.name(),
                found.data_type(),
                wanted.name(),
                wanted.data_type()
            )));
        }
        if metadata.schema().fields().len() != expected.fields().len() {
            return Err(bad(format!("it has {} columns, {} expected", metadata.schema().fields().len(), expected.fields().len())));
        }
        let mut crc32 = Vec::new();
        for line in &entry.crc32 {
            let sums = line.split(' ').map(|v| u32::from_str_radix(v, 16)).collect::<Result<Vec<_>, _>>();
            let sums = sums.ok().filter(|s| s.len() == expected.fields().len());
            crc32.push(sums.ok_or_else(|| bad(format!("the manifest's crc32 line `{line}` is not one number per column")))?);
        }
        if !crc32.is_empty() && crc32.len() != metadata.metadata().num_row_groups() {
            let found = metadata.metadata().num_row_groups();
            return Err(bad(format!("it has {found} row groups, the manifest has checksums of {}", crc32.len())));
        }
        Ok(Self { path, split: entry.split, bytes, metadata, crc32 })
    }

    fn rows(&self) -> u64 {
        self.metadata.metadata().file_metadata().num_rows() as u64
    }

    /// Reads and checks the chunks of some leaves of a row group.
    fn read_chunks(&self, group: usize, leaves: &[usize]) -> Result<Chunks> {
        let mut file = File::open(&self.path).map_err(|e| Error::io("open", &self.path, e))?;
        let mut ranges = Vec::with_capacity(leaves.len());
        for &leaf in leaves {
            let (start, length) = self.metadata.metadata().row_group(group).column(leaf).byte_range();
            // A damaged footer must not make us allocate what the file cannot hold.
            if start.checked_add(length).is_none_or(|end| end > self.bytes) {
                return Err(Error::format("shard", &self.path, format!("row group {group} points outside the file"), HELP));
            }
            let mut bytes = vec![0; length as usize];
            file.seek(SeekFrom::Start(start)).map_err(|e| Error::io("read", &self.path, e))?;
            file.read_exact(&mut bytes).map_err(|e| Error::io("read", &self.path, e))?;
            if let Some(&expected) = self.crc32.get(group).and_then(|sums| sums.get(leaf)) {
                let found = crc32(&bytes);
                if found != expected {
                    let name = self.metadata.parquet_schema().column(leaf).path().parts()[0].clone();
                    let problem = format!("row group {group}, column `{name}`: CRC-32 is {found:08x}, the manifest says {expected:08x}");
                    return Err(Error::format("shard", &self.path, problem, HELP));
                }
            }
            ranges.push((start, bytes.into()));
        }
        Ok(Chunks { len: self.bytes, ranges })
    }

    fn arrow_batches(
        &self,
        chunks: Arc<Chunks>,
        group: usize,
        leaves: &[usize],
        batch_rows: usize,
    ) -> Result<parquet::arrow::arrow_reader::ParquetRecordBatchReader, ParquetError> {
        // The builder wants the reader by value; ranges are reference-counted.
        let chunks = Chunks { len: chunks.len, ranges: chunks.ranges.clone() };
        let mask = ProjectionMask::leaves(self.metadata.parquet_schema(), leaves.iter().copied());
        ParquetRecordBatchReaderBuilder::new_with_metadata(chunks, self.metadata.clone())
            .with_row_groups(vec![group])
            .with_projection(mask)
            .with_batch_size(batch_rows.max(1))
            .build()
    }
}

/// Appends the id columns, and the values if the batch has them.
fn append_arrow(out: &mut Batch, batch: &RecordBatch, spec: &Column) -> Result<(), String> {
    let column = |name: &str| batch.column_by_name(name).ok_or_else(|| format!("no column `{name}`"));
    let null_free = |name: &str| column(name).and_then(|c| if c.null_count() == 0 { Ok(c) } else { Err(format!("nulls in `{name}`")) });
    let wrong = |name: &str| format!("column `{name}` has another type than its schema says");
    out.doc_id.extend_from_slice(null_free("doc_id")?.as_primitive_opt::<UInt64Type>().ok_or_else(|| wrong("doc_id"))?.values());
    out.position.extend_from_slice(null_free("position")?.as_primitive_opt::<UInt32Type>().ok_or_else(|| wrong("position"))?.values());
    let tokens = column("token_id")?.as_primitive_opt::<UInt32Type>().ok_or_else(|| wrong("token_id"))?;
    match tokens.null_count() {
        0 => out.token_id.extend_from_slice(tokens.values()),
        n if n == tokens.len() => {}
        n => return Err(format!("{n} of {} token ids are null; all or none must be", tokens.len())),
    }
    out.n += batch.num_rows();
    let Some(list) = batch.column_by_name(&spec.name) else { return Ok(()) };
    let list = list.as_fixed_size_list_opt().filter(|l| l.null_count() == 0).ok_or_else(|| wrong(&spec.name))?;
    let from = list.value_offset_at(0);
    let span = from..from + list.len() * spec.width;
    let values = list.values();
    if values.null_count() != 0 {
        return Err(format!("nulls in `{}`", spec.name));
    }
    match (spec.dtype, values.data_type()) {
        (Dtype::F32, DataType::Float32) => out.x.extend_from_slice(&values.as_primitive::<Float32Type>().values()[span]),
        (Dtype::F16, DataType::Float16) => out.x.extend(values.as_primitive::<Float16Type>().values()[span].iter().map(|v| v.to_f32())),
        (Dtype::Bf16, DataType::UInt16) => {
            out.x.extend(values.as_primitive::<UInt16Type>().values()[span].iter().map(|&v| f32::from_bits(u32::from(v) << 16)));
        }
        _ => return Err(wrong(&spec.name)),
    }
    Ok(())
}

/// Rows in file order: see [`Shards::scan`].
pub struct Scan {
    receiver: Receiver<Result<Batch>>,
}

impl Iterator for Scan {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.receiver.recv().ok()
    }
}
