//! Safetensors files as a source of named parameters: memory-mapped, header checked before anything is read, converted to the
//! dtype of the run, and hashed for provenance.
//!
//! Not for: knowing which tensors a family needs, or their layout.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, SafeTensorError};
use safetensors::SafeTensors;
use sha2::{Digest, Sha256};

use super::LoadOptions;
use crate::error::{Error, Result};

const FORMAT: &str = "safetensors file";

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
    /// What the parameters are converted to.
    pub dtype: DType,
    /// Where they go.
    pub device: Device,
}

impl<'a> Weights<'a> {
    /// Maps `model.safetensors`, or the shards of `model.safetensors.index.json`.
    pub fn open(dir: &Path, options: &LoadOptions) -> Result<Self> {
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
        let mut weights = Self::empty(options)?;
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
        Ok(weights)
    }

    /// One safetensors file in memory.
    pub fn from_bytes(name: &str, bytes: &'a [u8], options: &LoadOptions) -> Result<Self> {
        let mut weights = Self::empty(options)?;
        weights.add(PathBuf::from(name), Bytes::Borrowed(bytes))?;
        Ok(weights)
    }

    fn empty(options: &LoadOptions) -> Result<Self> {
        let dtype = options.dtype.unwrap_or(DType::F32);
        if !matches!(dtype, DType::F32 | DType::BF16) {
            return Err(Error::config("host.dtype", format!("hosts do not compute in {dtype:?}"), "use f32 or bf16"));
        }
        Ok(Self { files: Vec::new(), entries: BTreeMap::new(), read: Mutex::default(), dtype, device: options.device.clone() })
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

    /// The entry called `prefix` + `name`, or `name` alone: hub files of the base model leave the prefix out.
    fn find(&self, prefix: &str, name: &str) -> Option<(String, &Entry)> {
        [format!("{prefix}{name}"), name.to_string()].into_iter().find_map(|full| self.entries.get(&full).map(|e| (full, e)))
    }

    /// Is there such a tensor?
    pub fn has(&self, prefix: &str, name: &str) -> bool {
        self.find(prefix, name).is_some()
    }

    /// Are two tensors the same bytes?
    pub fn same(&self, a: (&str, &str), b: (&str, &str)) -> bool {
        match (self.find(a.0, a.1), self.find(b.0, b.1)) {
            (Some((_, a)), Some((_, b))) => a.dtype == b.dtype && a.shape == b.shape && self.raw(a) == self.raw(b),
            _ => false,
        }
    }

    fn raw(&self, entry: &Entry) -> &[u8] {
        &self.files[entry.file].1.all()[entry.range.0..entry.range.1]
    }

    /// A tensor of the given shape, in the dtype and on the device of the run.
    ///
    /// # Errors
    /// When it is missing, has another shape, or is not floating point; the message names it.
    pub fn get(&self, prefix: &str, name: &str, shape: &[usize]) -> Result<Tensor> {
        let Some((full, entry)) = self.find(prefix, name) else {
            let near = self.entries.keys().take(3).cloned().collect::<Vec<_>>().join(", ");
            return Err(Error::Format {
                format: FORMAT,
                path: PathBuf::from(self.label()),
                problem: format!("tensor `{prefix}{name}` {shape:?} is missing (it holds {} tensors: {near}, ...)", self.len()),
                help: "the file does not fit its config.json, or the download is incomplete".into(),
            });
        };
        let path = &self.files[entry.file].0;
        if entry.shape != shape {
            let problem = format!("tensor `{full}` has shape {:?}, config.json asks for {shape:?}", entry.shape);
            return Err(Error::format(FORMAT, path, problem, "take the config.json and the weights from the same model"));
        }
        let dtype = match entry.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            Dtype::F64 => DType::F64,
            other => {
                let problem = format!("tensor `{full}` is stored as {other:?}");
                return Err(Error::format(FORMAT, path, problem, "only f32, f16, bf16 and f64 weights are read; quantised models are not"));
            }
        };
        self.read.lock().unwrap_or_else(PoisonError::into_inner).insert(full);
        Ok(Tensor::from_raw_buffer(self.raw(entry), dtype, shape, &self.device)?.to_dtype(self.dtype)?)
    }

    /// Refuses a file whose blocks hold parameters that nothing read: more blocks than the config says, biases it denies, a norm of a
    /// related architecture. Buffers of old versions are no parameters; what stands outside the blocks is somebody else's head.
    pub fn refuse_unread(&self, prefix: &str, blocks: &str) -> Result<()> {
        const BUFFERS: &[&str] = &[".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias"];
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let (inside, bare) = (format!("{prefix}{blocks}."), format!("{blocks}."));
        let left: Vec<&String> = (self.entries.keys())
            .filter(|name| (name.starts_with(&inside) || name.starts_with(&bare)) && !read.contains(*name))
            .filter(|name| !BUFFERS.iter().any(|buffer| name.ends_with(buffer)))
            .collect();
        let Some(first) = left.first() else { return Ok(()) };
        let problem = format!("{} tensors of its blocks fit nothing in config.json, the first is `{first}`", left.len());
        Err(Error::format(FORMAT, self.label(), problem, "take the config.json and the weights from the same model"))
    }

    /// SHA-256 of the files, one after the other in name order, as 64 hex digits.
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        for (_, bytes) in &self.files {
            hash.update(bytes.all());
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
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
