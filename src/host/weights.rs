//! Safetensors files as a source of named parameters: memory-mapped, header checked before anything is read, and hashed for provenance.
//!
//! Loading holds one copy of the weights and a few MiB: a tensor is copied in pieces straight to where it stays, and the pages of the
//! map are let go piece by piece. On the CPU, bf16 and f16 files stay as they are in memory and are widened as they are used, which
//! changes no number.
//!
//! Not for: knowing which tensors a family needs.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, SafeTensorError};
use safetensors::SafeTensors;
use sha2::{Digest, Sha256};

use super::family::Family;
use super::layers::Norm;
use super::spec::Names;
use super::LoadOptions;
use crate::error::{Error, Result};

const FORMAT: &str = "safetensors file";
/// How much of a file is copied before its pages are let go.
const PIECE_BYTES: usize = 2 << 20;

/// The bytes of one file.
enum Bytes<'a> {
    Mapped(Mmap),
    Borrowed(&'a [u8]),
}

impl Bytes<'_> {
    fn all(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Borrowed(bytes) => bytes,
        }
    }

    /// Says that a range has been read. A map's pages then stop counting as this process's memory; reading them again is still right.
    fn done_with(&self, range: std::ops::Range<usize>) {
        #[cfg(unix)]
        if let Self::Mapped(map) = self {
            const PAGE: usize = 4096;
            // The kernel maps pages around those that are touched: they go too. Whoever reads the neighbours gets them again.
            const AROUND: usize = 256 << 10;
            let from = range.start.saturating_sub(AROUND) / PAGE * PAGE;
            let to = (range.end + AROUND).min(map.len());
            if from < to {
                // SAFETY: the map is shared with its file and only ever read, so pages come back as they were. Failure costs memory only.
                let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, from, to - from) };
            }
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

/// One tensor of those that [`Weights::stacked`] puts together.
pub(super) struct Part {
    name: String,
    rows: usize,
    /// Row of the file that each row comes from; none: in the file's order.
    order: Option<Vec<usize>>,
}

impl Part {
    /// All rows of a tensor.
    pub fn new(name: String, rows: usize) -> Self {
        Self { name, rows, order: None }
    }

    /// All rows of a tensor in another order.
    pub fn reordered(name: String, order: Vec<usize>) -> Self {
        Self { name, rows: order.len(), order: Some(order) }
    }
}

/// Where one tensor lies.
struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Byte range in its file, checked.
    range: (usize, usize),
}

/// All tensors of a model.
pub(super) struct Weights<'a> {
    files: Vec<(PathBuf, Bytes<'a>)>,
    entries: BTreeMap<String, Entry>,
    /// Names given out so far.
    read: Mutex<BTreeSet<String>>,
    /// The family's names.
    pub names: Names,
    /// What the files put before them.
    prefix: String,
    norm_offset: f64,
    /// What the run computes in.
    pub dtype: DType,
    /// Where they go.
    pub device: Device,
}

impl<'a> Weights<'a> {
    /// Maps `model.safetensors`, or the shards of `model.safetensors.index.json`.
    pub fn open(dir: &Path, family: &Family, options: &LoadOptions) -> Result<Self> {
        let single = dir.join("model.safetensors");
        let index = dir.join("model.safetensors.index.json");
        let (paths, wanted) = if single.is_file() {
            (vec![single], None)
        } else if index.is_file() {
            let map = read_index(&index)?;
            let files: BTreeSet<&String> = map.values().collect();
            (files.into_iter().map(|f| dir.join(f)).collect(), Some((index, map)))
        } else {
            return Err(Error::request(
                format!("no model.safetensors or model.safetensors.index.json in {}", dir.display()),
                "pass a folder with safetensors weights; a pytorch_model.bin must be converted first (save_pretrained of transformers does)",
            ));
        };
        let mut weights = Self::empty(family, options)?;
        for path in paths {
            let file = std::fs::File::open(&path).map_err(|e| Error::io("open", &path, e))?;
            // SAFETY: the map is only read. As with every memory map, a file that another process truncates meanwhile ends this one;
            // safetensors files are replaced by rename, not written in place.
            let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io("map", &path, e))?;
            weights.add(path, Bytes::Mapped(map))?;
        }
        if let Some((index, map)) = wanted {
            for (name, shard) in map {
                let found = weights.entries.get(&name).map(|e| weights.files[e.file].0.ends_with(&shard));
                if found != Some(true) {
                    let problem = format!("it places tensor `{name}` in {shard}, which does not hold it");
                    return Err(Error::format("weights index", index, problem, "download the folder again"));
                }
            }
        }
        Ok(weights.with_prefix())
    }

    /// One safetensors file in memory.
    pub fn from_bytes(name: &str, bytes: &'a [u8], family: &Family, options: &LoadOptions) -> Result<Self> {
        let mut weights = Self::empty(family, options)?;
        weights.add(PathBuf::from(name), Bytes::Borrowed(bytes))?;
        Ok(weights.with_prefix())
    }

    /// Finds which spelling of the prefix the files use. Files of the base model, without a head, leave it out.
    fn with_prefix(mut self) -> Self {
        let names = self.names;
        let spellings = std::iter::once(names.prefix).chain(names.old_prefixes.iter().copied()).chain(["", "model."]);
        let found = spellings.into_iter().find(|prefix| self.entries.contains_key(&format!("{prefix}{}.weight", names.embed)));
        self.prefix = found.unwrap_or(names.prefix).to_string();
        self
    }

    fn empty(family: &Family, options: &LoadOptions) -> Result<Self> {
        let dtype = options.dtype.unwrap_or(DType::F32);
        if !matches!(dtype, DType::F32 | DType::BF16) {
            return Err(Error::config("host.dtype", format!("hosts do not compute in {dtype:?}"), "use f32 or bf16"));
        }
        Ok(Self {
            files: Vec::new(),
            entries: BTreeMap::new(),
            read: Mutex::default(),
            names: family.names,
            prefix: String::new(),
            norm_offset: family.norm_offset,
            dtype,
            device: options.device.clone(),
        })
    }

    fn add(&mut self, path: PathBuf, bytes: Bytes<'a>) -> Result<()> {
        let file = self.files.len();
        // `read_metadata` checks the header's length, that shapes and dtypes account for every byte, and that nothing overlaps.
        let (header, metadata) = SafeTensors::read_metadata(bytes.all()).map_err(|e| damaged(&path, bytes.all().len(), &e))?;
        let start = 8 + header; // the data follows the header and its 8-byte length
        for (name, info) in metadata.tensors() {
            let range = (start + info.data_offsets.0, start + info.data_offsets.1);
            let entry = Entry { file, dtype: info.dtype, shape: info.shape.clone(), range };
            if let Some(other) = self.entries.insert(name.clone(), entry) {
                let problem = format!("tensor `{name}` is also in {}", self.files[other.file].0.display());
                return Err(Error::format(FORMAT, path, problem, "remove the file that does not belong to the model"));
            }
        }
        self.files.push((path, bytes));
        Ok(())
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The files, for messages.
    pub fn label(&self) -> String {
        let first = self.files.first().map(|(path, _)| path.display().to_string()).unwrap_or_default();
        if self.files.len() > 1 {
            format!("{first} and {} more files", self.files.len() - 1)
        } else {
            first
        }
    }

    /// The full name of the head's weight, if the files have one: beside the rest of the model, or below the same prefix's first part.
    pub fn head(&self) -> Option<String> {
        let beside = self.prefix.split_once('.').map_or_else(String::new, |(first, _)| format!("{first}."));
        [String::new(), beside].iter().map(|p| format!("{p}{}", self.names.head)).find(|name| self.entries.contains_key(name))
    }

    /// The full name of a tensor of the model without its head.
    pub fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Are two tensors, by their full names, the same bytes?
    pub fn same(&self, a: &str, b: &str) -> bool {
        let (Some(a), Some(b)) = (self.entries.get(a), self.entries.get(b)) else { return false };
        let n = a.range.1 - a.range.0;
        let equal = |at: usize| {
            let piece = |e: &Entry| {
                let range = e.range.0 + at..e.range.0 + (at + PIECE_BYTES).min(n);
                (&self.files[e.file].1, range)
            };
            let ((left, from), (right, to)) = (piece(a), piece(b));
            let equal = left.all()[from.clone()] == right.all()[to.clone()];
            left.done_with(from);
            right.done_with(to);
            equal
        };
        a.dtype == b.dtype && a.shape == b.shape && (0..n).step_by(PIECE_BYTES).all(equal)
    }

    /// The entry of a tensor by its full name, checked.
    fn entry(&self, full: &str, shape: &[usize]) -> Result<&Entry> {
        let Some(entry) = self.entries.get(full) else {
            let near = self.entries.keys().take(3).cloned().collect::<Vec<_>>().join(", ");
            return Err(Error::Format {
                format: FORMAT,
                path: PathBuf::from(self.label()),
                problem: format!("tensor `{full}` {shape:?} is missing (it holds {} tensors: {near}, ...)", self.len()),
                help: "the file does not fit its config.json, or the download is incomplete".into(),
            });
        };
        let path = &self.files[entry.file].0;
        if entry.shape != shape {
            let problem = format!("tensor `{full}` has shape {:?}, config.json asks for {shape:?}", entry.shape);
            return Err(Error::format(FORMAT, path, problem, "take the config.json and the weights from the same model"));
        }
        if !matches!(entry.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64) {
            let problem = format!("tensor `{full}` is stored as {:?}", entry.dtype);
            return Err(Error::format(FORMAT, path, problem, "only f32, f16, bf16 and f64 weights are read; quantised models are not"));
        }
        self.read.lock().unwrap_or_else(PoisonError::into_inner).insert(full.to_string());
        Ok(entry)
    }

    /// Tensors of the model below one another: `[rows, from]`, or `[rows]` without `from`. Half precision stays half on the CPU.
    ///
    /// # Errors
    /// When one is missing, has another shape, or is not floating point; the message names it.
    pub fn stacked(&self, parts: &[Part], from: Option<usize>) -> Result<Tensor> {
        let named: Vec<Part> = parts.iter().map(|p| Part { name: self.full(&p.name), rows: p.rows, order: p.order.clone() }).collect();
        self.stacked_by_full_name(&named, from)
    }

    /// A tensor by its full name, `[rows, from]`.
    ///
    /// # Errors
    /// As [`Weights::stacked`].
    pub fn by_full_name(&self, full: &str, rows: usize, from: usize) -> Result<Tensor> {
        self.stacked_by_full_name(&[Part::new(full.to_string(), rows)], Some(from))
    }

    /// A norm's parameters, f32 with the family's offset added.
    ///
    /// # Errors
    /// As [`Weights::stacked`].
    pub fn norm(&self, name: &str, width: usize, bias: bool) -> Result<Norm> {
        // Rounded to the run's dtype first: that is what the model holds.
        let get =
            |suffix: &str| self.stacked(&[Part::new(format!("{name}.{suffix}"), width)], None)?.to_dtype(DType::F32).map_err(Error::from);
        let weight = get("weight")?;
        let weight = if self.norm_offset == 0.0 { weight } else { (weight + self.norm_offset)? };
        Ok(Norm { weight, bias: if bias { Some(get("bias")?) } else { None } })
    }

    fn stacked_by_full_name(&self, parts: &[Part], from: Option<usize>) -> Result<Tensor> {
        let shape_of = |rows: usize| from.map_or_else(|| vec![rows], |from| vec![rows, from]);
        let entries = parts.iter().map(|p| self.entry(&p.name, &shape_of(p.rows))).collect::<Result<Vec<_>>>()?;
        let all = |dtype: Dtype| entries.iter().all(|e| e.dtype == dtype);
        let shape = shape_of(parts.iter().map(|p| p.rows).sum());
        let sources: Vec<(&Part, &Entry)> = parts.iter().zip(entries.iter().copied()).collect();
        if self.dtype == DType::BF16 || (self.device.is_cpu() && all(Dtype::BF16)) {
            self.gather::<bf16>(&sources, &shape, bf16::from_f32)
        } else if self.device.is_cpu() && all(Dtype::F16) {
            self.gather::<f16>(&sources, &shape, f16::from_f32)
        } else {
            self.gather::<f32>(&sources, &shape, |x| x)
        }
    }

    fn gather<T: WithDType>(&self, sources: &[(&Part, &Entry)], shape: &[usize], narrow: fn(f32) -> T) -> Result<Tensor> {
        let mut values: Vec<T> = Vec::with_capacity(shape.iter().product());
        let width: usize = shape[1..].iter().product();
        for (part, entry) in sources {
            let bytes = &self.files[entry.file].1;
            let row_bytes = width * entry.dtype.bitsize() / 8;
            let mut copy = |rows: std::ops::Range<usize>| {
                let range = entry.range.0 + rows.start * row_bytes..entry.range.0 + rows.end * row_bytes;
                append(&mut values, &bytes.all()[range.clone()], entry.dtype, narrow);
                range
            };
            match &part.order {
                None => {
                    let step = (PIECE_BYTES / row_bytes.max(1)).max(1);
                    for row in (0..part.rows).step_by(step) {
                        bytes.done_with(copy(row..(row + step).min(part.rows)));
                    }
                }
                Some(order) => {
                    for &row in order {
                        copy(row..row + 1);
                    }
                    bytes.done_with(entry.range.0..entry.range.1);
                }
            }
        }
        Ok(Tensor::from_vec(values, shape, &self.device)?)
    }

    /// Refuses a file whose blocks hold parameters that nothing read: more blocks than the config says, biases it denies, a norm of a
    /// related architecture. Buffers of old versions are no parameters; what stands outside the blocks is somebody else's head.
    pub fn refuse_unread(&self) -> Result<()> {
        const BUFFERS: &[&str] = &[
            ".rotary_emb.inv_freq",
            ".rotary_emb.cos_cached",
            ".rotary_emb.sin_cached",
            ".attn.bias",
            ".attn.masked_bias",
            ".attention.bias",
            ".attention.masked_bias",
        ];
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let inside = self.full(&format!("{}.", self.names.blocks));
        let left: Vec<&String> = (self.entries.keys())
            .filter(|name| name.starts_with(&inside) && !read.contains(*name))
            .filter(|name| !BUFFERS.iter().any(|buffer| name.ends_with(buffer)))
            .collect();
        let Some(first) = left.first() else { return Ok(()) };
        let problem = format!("{} tensors of its blocks fit nothing in config.json, the first is `{first}`", left.len());
        Err(Error::format(FORMAT, self.label(), problem, "take the config.json and the weights from the same model"))
    }

    /// SHA-256 of the files, one after the other in name order, as 64 hex digits. Files are read, not mapped: a map's pages would count
    /// as memory.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn sha256(&self) -> Result<String> {
        let mut hash = Sha256::new();
        let mut buffer = vec![0u8; 1 << 20];
        for (path, bytes) in &self.files {
            match bytes {
                Bytes::Borrowed(bytes) => hash.update(bytes),
                Bytes::Mapped(_) => {
                    let mut file = std::fs::File::open(path).map_err(|e| Error::io("open", path, e))?;
                    loop {
                        match file.read(&mut buffer).map_err(|e| Error::io("read", path, e))? {
                            0 => break,
                            n => hash.update(&buffer[..n]),
                        }
                    }
                }
            }
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// Appends little-endian values of a dtype that [`Weights::entry`] lets through.
fn append<T: WithDType>(values: &mut Vec<T>, bytes: &[u8], dtype: Dtype, narrow: fn(f32) -> T) {
    let two = |c: &[u8]| [c[0], c[1]];
    match dtype {
        Dtype::F32 => values.extend(bytes.chunks_exact(4).map(|c| narrow(f32::from_le_bytes([c[0], c[1], c[2], c[3]])))),
        Dtype::BF16 => values.extend(bytes.chunks_exact(2).map(|c| narrow(bf16::from_le_bytes(two(c)).to_f32()))),
        Dtype::F16 => values.extend(bytes.chunks_exact(2).map(|c| narrow(f16::from_le_bytes(two(c)).to_f32()))),
        _ => values
            .extend(bytes.chunks_exact(8).map(|c| narrow(f64::from_le_bytes([c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]]) as f32))),
    }
}

/// Tensor name to shard name.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    let help = "download the folder again";
    let index: Index = serde_json::from_slice(&bytes).map_err(|e| Error::format("weights index", path, e.to_string(), help))?;
    if index.weight_map.is_empty() {
        return Err(Error::format("weights index", path, "its weight_map is empty", help));
    }
    // A shard is a file beside the index and nowhere else.
    if let Some(name) = index.weight_map.values().find(|n| Path::new(n).file_name() != Some(n.as_ref())) {
        return Err(Error::format("weights index", path, format!("`{name}` is not a plain file name"), help));
    }
    Ok(index.weight_map)
}

/// What is wrong with a file, in words.
fn damaged(path: &Path, len: usize, error: &SafeTensorError) -> Error {
    let problem = match error {
        SafeTensorError::HeaderTooSmall => format!("it has only {len} bytes"),
        SafeTensorError::HeaderTooLarge => "its header claims more than 100 MB".into(),
        SafeTensorError::InvalidHeaderLength => format!("its header is longer than the file ({len} bytes)"),
        SafeTensorError::MetadataIncompleteBuffer => format!("its tensors do not end where the file does ({len} bytes): truncated?"),
        SafeTensorError::InvalidOffset(name) => format!("tensor `{name}` overlaps its neighbour or leaves a gap"),
        SafeTensorError::TensorInvalidInfo => "a tensor's shape and dtype do not match its size".into(),
        SafeTensorError::ValidationOverflow => "a tensor's size overflows".into(),
        SafeTensorError::InvalidHeader(_) | SafeTensorError::InvalidHeaderDeserialization(_) => {
            format!("its header cannot be read ({error})")
        }
        other => other.to_string(),
    };
    Error::format(
        FORMAT,
        path,
        problem,
        "download or export it again; a Git LFS pointer or an error page saved under this name looks like this too",
    )
}
