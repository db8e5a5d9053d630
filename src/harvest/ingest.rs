//! Vectors made elsewhere become shards: .npy, .safetensors, .parquet, streamed in file order; or planted ones, whose features are
//! known. No rows are masked.

mod arrays;
mod parquet_lists;
mod planted;

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::{json, Value};

use super::folder::{self, Start};
use super::report::HarvestReport;
use super::state::Identity;
use super::to_value;
use crate::artefact::Mode;
use crate::corpus::file_provenance;
use crate::corpus::planted::{Planted, PlantedConfig, Truth};
use crate::error::{Error, Result};
use crate::hook::HookPoint;
use crate::progress::Progress;
use crate::shard::{split_of, Column, Counts, Dtype, Manifest, Rows, ShardWriter, Split, WriterOptions, KIND, VERSION};

/// Vectors taken at a time.
const CHUNK_ROWS: usize = 2048;

/// What to ingest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IngestConfig {
    /// The file: .npy (2-D; 3-D is documents x positions x width), .safetensors, .parquet.
    pub from: PathBuf,
    /// .safetensors: the tensor, .parquet: the list column; may be left out where there is only one.
    pub tensor: Option<String>,
    /// Name of the column in the shards: a hook point, or any name.
    pub hook: String,
    /// Stored type.
    pub dtype: Dtype,
    /// Expected fraction of documents held out; without documents every row is one.
    pub held_out: f64,
    /// Hold out the last rows of the file instead.
    pub held_out_last: Option<u64>,
    /// Seed of the split.
    pub split_seed: u64,
    /// Rows per pair of shard files.
    pub shard_rows: u64,
    /// Rows per Parquet row group; `None`: about 4 MiB.
    pub row_group_rows: Option<usize>,
    /// Instead of a file: rows with planted features.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub planted: Option<PlantedSource>,
}

/// Rows to be planted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlantedSource {
    /// Which generator, with its settings.
    pub spec: PlantedConfig,
    /// Seed of features and rows.
    pub seed: u64,
    /// How many rows.
    pub rows: u64,
}

impl Default for IngestConfig {
    fn default() -> Self {
        Self {
            from: PathBuf::new(),
            tensor: None,
            hook: String::new(),
            dtype: Dtype::F32,
            held_out: 0.05,
            held_out_last: None,
            split_seed: 0,
            shard_rows: 65_536,
            row_group_rows: None,
            planted: None,
        }
    }
}

/// Some vectors with what the file says of them.
#[derive(Debug, Default)]
struct Chunk {
    /// Row-major [n, width].
    x: Vec<f32>,
    n: usize,
    doc_id: Option<Vec<u64>>,
    position: Option<Vec<u32>>,
    token_id: Option<Vec<u32>>,
}

/// A file of vectors being read.
trait Vectors {
    fn rows(&self) -> u64;
    fn width(&self) -> usize;
    /// Up to `n` more; a chunk without rows is the end.
    fn next(&mut self, n: usize) -> Result<Chunk>;
    /// The features behind the rows, where they are known.
    fn truth(&self) -> Option<&Truth> {
        None
    }
}

/// What is read, and what the manifest says of it.
fn open(config: &IngestConfig) -> Result<(Box<dyn Vectors>, Value)> {
    if let Some(source) = &config.planted {
        if !config.from.as_os_str().is_empty() {
            let help = "name a file or plant rows, not both";
            return Err(Error::config("ingest.from", format!("is {} and planted rows are wanted", config.from.display()), help));
        }
        let planted = Planted::new(&source.spec, source.seed)?;
        let corpus = planted.provenance(source.rows)?;
        return Ok((Box::new(planted::Rows::new(planted, source.rows)), corpus));
    }
    let vectors = open_file(config)?;
    let source = file_provenance(&config.from)?;
    let corpus = json!({ "kind": "vectors", "n_files": 1, "bytes": source["bytes"], "sha256": source["sha256"], "files": [source] });
    Ok((vectors, corpus))
}

fn open_file(config: &IngestConfig) -> Result<Box<dyn Vectors>> {
    let path = &config.from;
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    let tensor = config.tensor.as_deref();
    match extension.as_str() {
        "npy" => Ok(Box::new(arrays::Array::npy(path)?)),
        "safetensors" => Ok(Box::new(arrays::Array::safetensors(path, tensor)?)),
        "parquet" => Ok(Box::new(parquet_lists::Lists::open(path, tensor)?)),
        _ => Err(Error::request(
            format!("{}: vectors are not read from such a file", path.display()),
            "give .npy, .safetensors or .parquet (from Python: numpy.save, safetensors.torch.save_file)",
        )),
    }
}

/// Some rows of a file of vectors.
#[derive(Debug, Clone, Copy)]
pub struct VectorBlock<'a> {
    /// Rows of the whole file.
    pub total: u64,
    /// Number of the block's first row.
    pub first: u64,
    /// Values per row.
    pub width: usize,
    /// Row-major `[n, width]`.
    pub x: &'a [f32],
}

/// Hands over the vectors of a file, f32, from front to back in blocks, as long as `each` wants more of them. `tensor` as in
/// [`IngestConfig`].
///
/// # Errors
/// When the file is no array of vectors, or ends early.
pub fn scan_vectors(from: &Path, tensor: Option<&str>, each: &mut dyn FnMut(VectorBlock<'_>) -> bool) -> Result<()> {
    let config = IngestConfig { from: from.to_path_buf(), tensor: tensor.map(str::to_string), ..Default::default() };
    let mut vectors = open_file(&config)?;
    let (total, width, mut first) = (vectors.rows(), vectors.width(), 0);
    loop {
        let chunk = vectors.next(CHUNK_ROWS)?;
        if chunk.n == 0 || !each(VectorBlock { total, first, width, x: &chunk.x }) {
            return Ok(());
        }
        first += chunk.n as u64;
    }
}

/// Writes the vectors of a file as shards. `Resume` begins an unfinished ingestion again: it is quick.
///
/// # Errors
/// When a key is impossible, the file is no array of vectors, a value is NaN or infinite, the folder is not as `mode` wants it, the disk
/// is too small, or something cannot be read or written.
pub fn ingest(config: &IngestConfig, out: &Path, mode: Mode, progress: &dyn Progress) -> Result<HarvestReport> {
    let started = Instant::now();
    let key = |key: &str, problem: String, help: &str| Error::config(format!("ingest.{key}"), problem, help);
    if config.hook.is_empty() {
        return Err(key("hook", "is empty".to_string(), "name the hook point that the vectors come from, or any name"));
    }
    if !(0.0..1.0).contains(&config.held_out) {
        return Err(key("held_out", format!("is {}", config.held_out), "give a fraction: 0 for none, less than 1"));
    }
    if config.shard_rows == 0 || config.row_group_rows == Some(0) {
        return Err(key("shard_rows", "is 0".to_string(), "leave it out for the default"));
    }
    if config.planted.as_ref().is_some_and(|p| p.rows == 0) {
        return Err(key("planted.rows", "is 0".to_string(), "say how many rows to plant"));
    }
    let (mut vectors, corpus) = open(config)?;
    let total = vectors.rows();
    if config.held_out_last.is_some_and(|n| n > total) {
        return Err(key("held_out_last", format!("is more than the {total} rows there are"), "hold out fewer"));
    }
    if total == 0 {
        return Err(Error::request(format!("{} has no rows", config.from.display()), "check the file"));
    }
    let mut resolved = config.clone();
    resolved.hook = config.hook.parse::<HookPoint>().map_or(config.hook.clone(), |p| p.to_string());
    let columns = vec![Column { name: resolved.hook.clone(), width: vectors.width(), dtype: config.dtype }];
    let mut options = WriterOptions { row_group_rows: config.row_group_rows, harvest_id: String::new() };
    resolved.row_group_rows = Some(options.resolve_row_group_rows(&columns));
    // The path is not what the vectors are.
    let mut written = to_value(&resolved)?;
    written["from"] = Value::from(config.from.file_name().map(|n| n.to_string_lossy().into_owned()));
    let config_value = json!({ "ingest": written });
    let identity = Identity { columns: columns.clone(), host: Value::Null, tokenizer: Value::Null, corpus, config: config_value };
    if let Start::Done(manifest) = folder::prepare(out, mode, &identity)? {
        progress.note(&format!("{} is complete: nothing to do", out.display()));
        return Ok(HarvestReport::of(&manifest, out, None, None, 0.0));
    }
    let bytes = total.saturating_mul((columns[0].width * config.dtype.bytes() + 4) as u64);
    let free = fs4::available_space(out).map_err(|e| Error::io("ask for free space of", out, e))?;
    if bytes > free {
        return Err(Error::request(
            format!("{} cannot hold the shards: {bytes} bytes are needed, {free} are free", out.display()),
            "choose a smaller dtype, or write to another disk",
        ));
    }

    options.harvest_id = identity.id()?;
    let mut writer = ShardWriter::create(out, columns, &options)?;
    let mut numbering = Numbering::default();
    let width = vectors.width();
    let mut at = 0;
    progress.begin("ingest", Some(total), "rows");
    loop {
        if progress.is_cancelled() {
            return Err(Error::Interrupted { doing: "the ingestion" });
        }
        let chunk = vectors.next(CHUNK_ROWS)?;
        if chunk.n == 0 {
            break;
        }
        let n = chunk.n as u64;
        let rows = numbering.number(chunk, at, progress);
        for (split, rows) in split(rows, at, total, &resolved, width) {
            writer.push(split, &rows)?;
        }
        at += n;
        progress.advance(n);
        if writer.open_rows() >= config.shard_rows {
            writer.seal_shard()?;
        }
    }
    progress.end();
    if at != total {
        let problem = format!("it announces {total} rows and holds {at}");
        return Err(Error::format("array", &config.from, problem, "check that it is the whole file"));
    }
    writer.seal_shard()?;
    if let Some(truth) = vectors.truth() {
        truth.save(out)?;
    }
    let counts = Counts { documents: numbering.documents, tokens: total, rows: writer.rows(), masked: Default::default() };
    let manifest = Manifest {
        kind: KIND.to_string(),
        version: VERSION,
        id: options.harvest_id,
        columns: writer.column_entries(),
        counts,
        host: identity.host,
        tokenizer: identity.tokenizer,
        corpus: identity.corpus,
        masking: Value::Null,
        config: identity.config,
        shards: writer.entries().to_vec(),
    };
    manifest.save(out)?;
    Ok(HarvestReport::of(&manifest, out, None, None, started.elapsed().as_secs_f64()))
}

/// Gives rows the ids that the file does not.
#[derive(Default)]
struct Numbering {
    documents: u64,
    last: Option<(u64, u32)>,
    told: bool,
}

impl Numbering {
    fn number(&mut self, chunk: Chunk, first_row: u64, progress: &dyn Progress) -> Rows {
        let doc_id = chunk.doc_id.unwrap_or_else(|| (first_row..first_row + chunk.n as u64).collect());
        let mut position = Vec::with_capacity(chunk.n);
        for (i, &doc) in doc_id.iter().enumerate() {
            let same = self.last.filter(|(d, _)| *d == doc);
            self.documents += u64::from(same.is_none());
            let at = match &chunk.position {
                Some(given) => given[i],
                None => same.map_or(0, |(_, p)| p.saturating_add(1)),
            };
            if self.last.is_some_and(|last| last >= (doc, at)) && !self.told {
                self.told = true;
                progress.warn("rows do not ascend by (doc_id, position): they stay in file order, and documents may be counted twice");
            }
            self.last = Some((doc, at));
            position.push(at);
        }
        Rows { doc_id, position, token_id: chunk.token_id, columns: vec![chunk.x] }
    }
}

/// Rows of each split, in order.
fn split(rows: Rows, first_row: u64, total: u64, config: &IngestConfig, width: usize) -> Vec<(Split, Rows)> {
    let of = |i: usize| match config.held_out_last {
        Some(n) if first_row + i as u64 >= total - n => Split::HeldOut,
        Some(_) => Split::Train,
        None => split_of(rows.doc_id[i], config.split_seed, config.held_out),
    };
    let splits: Vec<Split> = (0..rows.doc_id.len()).map(of).collect();
    let mut out = Vec::new();
    for split in Split::ALL {
        let chosen: Vec<usize> = splits.iter().enumerate().filter(|(_, s)| **s == split).map(|(i, _)| i).collect();
        if chosen.is_empty() {
            continue;
        }
        out.push((
            split,
            Rows {
                doc_id: chosen.iter().map(|&i| rows.doc_id[i]).collect(),
                position: chosen.iter().map(|&i| rows.position[i]).collect(),
                token_id: rows.token_id.as_ref().map(|t| chosen.iter().map(|&i| t[i]).collect()),
                columns: vec![chosen.iter().flat_map(|&i| rows.columns[0][i * width..(i + 1) * width].iter().copied()).collect()],
            },
        ));
    }
    out
}
