//! Dense arrays: .npy and .safetensors, read from front to back.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use safetensors::tensor::Metadata;
use safetensors::Dtype as Stored;

use super::{Chunk, Vectors};
use crate::corpus::npy;
use crate::error::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element {
    F16,
    Bf16,
    F32,
    F64,
}

impl Element {
    fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }
}

/// An array being read.
pub(super) struct Array {
    path: PathBuf,
    input: BufReader<File>,
    element: Element,
    rows: u64,
    width: usize,
    /// Rows per document, where the array says so.
    per_document: Option<u64>,
    at: u64,
}

impl Array {
    pub(super) fn npy(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let bytes = file.metadata().map_err(|e| Error::io("read", path, e))?.len();
        let mut input = BufReader::with_capacity(1 << 20, file);
        let header = npy::header(&mut input, path)?;
        let element = match header.dtype.as_str() {
            "f2" => Element::F16,
            "f4" => Element::F32,
            "f8" => Element::F64,
            other => return Err(not_floats(path, other)),
        };
        let array = Self::shaped(path, input, element, &header.shape)?;
        array.check_size(bytes.saturating_sub(header.data_at))?;
        Ok(array)
    }

    pub(super) fn safetensors(path: &Path, name: Option<&str>) -> Result<Self> {
        let mut file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let bytes = file.metadata().map_err(|e| Error::io("read", path, e))?.len();
        let bad = |problem: String| Error::format("safetensors file", path, problem, "save it again with safetensors");
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(|_| bad("it has no header".to_string()))?;
        let n = u64::from_le_bytes(length);
        if n > 100 << 20 || n > bytes {
            return Err(bad(format!("its header claims {n} bytes")));
        }
        let mut head = vec![0; n as usize];
        file.read_exact(&mut head).map_err(|_| bad("it ends inside its header".to_string()))?;
        let metadata: Metadata = serde_json::from_slice(&head).map_err(|e| bad(e.to_string()))?;
        let tensors = metadata.tensors();
        let mut names: Vec<&String> = tensors.keys().collect();
        names.sort();
        let list = || names.iter().map(|n| format!("{n} {:?}", tensors[*n].shape)).collect::<Vec<_>>().join(", ");
        let info = match (name, names.as_slice()) {
            (Some(name), _) => tensors.get(name).copied(),
            (None, [only]) => Some(tensors[*only]),
            (None, _) => None,
        };
        let Some(info) = info else {
            let problem = match name {
                Some(name) => format!("{} has no tensor `{name}`", path.display()),
                None => format!("{} has {} tensors and none is named", path.display(), names.len()),
            };
            return Err(Error::request(problem, format!("set ingest.tensor to one of: {}", list())));
        };
        let element = match info.dtype {
            Stored::F16 => Element::F16,
            Stored::BF16 => Element::Bf16,
            Stored::F32 => Element::F32,
            Stored::F64 => Element::F64,
            other => return Err(not_floats(path, &format!("{other:?}"))),
        };
        let start = 8 + n + info.data_offsets.0 as u64;
        file.seek(SeekFrom::Start(start)).map_err(|e| Error::io("seek in", path, e))?;
        let shape: Vec<u64> = info.shape.iter().map(|&d| d as u64).collect();
        let array = Self::shaped(path, BufReader::with_capacity(1 << 20, file), element, &shape)?;
        array.check_size((info.data_offsets.1 - info.data_offsets.0) as u64)?;
        if start + (info.data_offsets.1 - info.data_offsets.0) as u64 > bytes {
            return Err(bad("it ends inside the tensor".to_string()));
        }
        Ok(array)
    }

    fn shaped(path: &Path, input: BufReader<File>, element: Element, shape: &[u64]) -> Result<Self> {
        let (rows, width, per_document) = match *shape {
            [rows, width] if width > 0 => (rows, width, None),
            [documents, positions, width] if width > 0 && positions > 0 => (documents.saturating_mul(positions), width, Some(positions)),
            _ => {
                return Err(Error::format(
                    "array of vectors",
                    path,
                    format!("its shape is {shape:?}"),
                    "save [rows, width], or [documents, positions, width]",
                ))
            }
        };
        Ok(Self { path: path.to_path_buf(), input, element, rows, width: width as usize, per_document, at: 0 })
    }

    fn check_size(&self, found: u64) -> Result<()> {
        let expected = self.rows.checked_mul(self.width as u64).and_then(|n| n.checked_mul(self.element.bytes() as u64));
        if expected == Some(found) {
            return Ok(());
        }
        let problem = format!("{} rows of {} values do not take {found} bytes", self.rows, self.width);
        Err(Error::format("array of vectors", &self.path, problem, "check that it is the whole file"))
    }
}

fn not_floats(path: &Path, found: &str) -> Error {
    Error::format("array of vectors", path, format!("its elements are `{found}`"), "save it as float16, float32 or float64")
}

impl Vectors for Array {
    fn rows(&self) -> u64 {
        self.rows
    }

    fn width(&self) -> usize {
        self.width
    }

    fn next(&mut self, n: usize) -> Result<Chunk> {
        let n = (n as u64).min(self.rows - self.at) as usize;
        let mut bytes = vec![0; n * self.width * self.element.bytes()];
        self.input.read_exact(&mut bytes).map_err(|e| Error::io("read", &self.path, e))?;
        let x: Vec<f32> = match self.element {
            Element::F16 => bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Element::Bf16 => bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Element::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Element::F64 => {
                let f64_at = |b: &[u8]| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
                bytes.chunks_exact(8).map(|b| f64_at(b) as f32).collect()
            }
        };
        let span = self.at..self.at + n as u64;
        let (doc_id, position) = match self.per_document {
            Some(per) => (Some(span.clone().map(|row| row / per).collect()), Some(span.map(|row| (row % per) as u32).collect())),
            None => (None, None),
        };
        self.at += n as u64;
        Ok(Chunk { x, n, doc_id, position, token_id: None })
    }
}
