//! Named arrays out of a container (safetensors here; `.pt` and `.npz` fill the same type), taken one by one: what nobody took is an error.
//! And JSON beside them.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::artefact;
use crate::error::{Error, Result};

/// No configuration is larger than this, in bytes.
const JSON_MAX: u64 = 16 << 20;

/// The numbers of an array, row-major and contiguous.
#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    /// f16, bf16, f32 and f64 are all read as f32.
    Float(Vec<f32>),
    /// Integers and booleans.
    Int(Vec<i64>),
}

/// An array.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// Empty for a scalar.
    pub shape: Vec<usize>,
    /// As many numbers as the shape says.
    pub data: Data,
}

/// The arrays of one file.
#[derive(Debug, Clone)]
pub struct Tensors {
    format: &'static str,
    path: PathBuf,
    arrays: BTreeMap<String, Array>,
}

impl Tensors {
    /// None yet; `format` in a person's words ("SAELens dictionary") and `path` are for messages.
    pub fn new(format: &'static str, path: &Path) -> Self {
        Self { format, path: path.to_path_buf(), arrays: BTreeMap::new() }
    }

    /// All of a safetensors file.
    ///
    /// # Errors
    /// A file that is no safetensors file (sizes are checked against it before anything is allocated), a dtype that holds no numbers of
    /// ours, NaN or infinity.
    pub fn safetensors(format: &'static str, path: &Path) -> Result<Self> {
        let bytes = fs::read(path).map_err(|e| Error::io("read", path, e))?;
        Self::safetensors_of(format, path, &bytes)
    }

    /// [`Tensors::safetensors`] of bytes that were read already.
    ///
    /// # Errors
    /// As there.
    pub fn safetensors_of(format: &'static str, path: &Path, bytes: &[u8]) -> Result<Self> {
        let mut all = Self::new(format, path);
        let file = SafeTensors::deserialize(bytes).map_err(|e| all.damaged(format!("it is no whole safetensors file ({e})")))?;
        for (name, view) in file.tensors() {
            let data = match read_numbers(view.dtype(), view.data()) {
                Some(data) => data,
                None => return Err(all.damaged(format!("tensor `{name}` has the dtype {:?}", view.dtype()))),
            };
            all.insert(name, Array { shape: view.shape().to_vec(), data })?;
        }
        Ok(all)
    }

    /// Adds an array.
    ///
    /// # Errors
    /// A name that is there already, another number of values than the shape says, NaN or infinity.
    pub fn insert(&mut self, name: impl Into<String>, array: Array) -> Result<()> {
        let name = name.into();
        let expected = array.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let found = match &array.data {
            Data::Float(v) => v.len(),
            Data::Int(v) => v.len(),
        };
        if expected != Some(found) {
            return Err(self.damaged(format!("tensor `{name}` of shape {:?} has {found} values", array.shape)));
        }
        if let Data::Float(v) = &array.data {
            if let Some(first) = v.iter().position(|v| !v.is_finite()) {
                return Err(Error::NotFinite {
                    what: format!("tensor `{name}` of {}", self.path.display()),
                    count: v.iter().filter(|v| !v.is_finite()).count(),
                    place: format!("value {first}"),
                    help: "weights must be finite: fetch or save the dictionary again".into(),
                });
            }
        }
        if self.arrays.contains_key(&name) {
            return Err(self.damaged(format!("it has two tensors `{name}`")));
        }
        self.arrays.insert(name, array);
        Ok(())
    }

    /// An error about this file.
    pub fn damaged(&self, problem: impl Into<String>) -> Error {
        Error::format(self.format, &self.path, problem, "fetch or save the dictionary again; docs/formats.md has each dialect's layout")
    }

    /// Names that are left, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.arrays.keys().map(String::as_str)
    }

    /// Is it there?
    pub fn has(&self, name: &str) -> bool {
        self.arrays.contains_key(name)
    }

    /// Its shape, if it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.arrays.get(name).map(|a| a.shape.as_slice())
    }

    /// Gives another name to an array, if it is there.
    pub fn rename(&mut self, from: &str, to: &str) {
        if let Some(array) = self.arrays.remove(from) {
            self.arrays.insert(to.into(), array);
        }
    }

    /// Takes an array, if it is there.
    pub fn take(&mut self, name: &str) -> Option<Array> {
        self.arrays.remove(name)
    }

    fn need(&mut self, name: &str) -> Result<Array> {
        self.take(name).ok_or_else(|| {
            let has: Vec<String> = self.arrays.iter().take(20).map(|(n, a)| format!("{n} {:?}", a.shape)).collect();
            self.damaged(format!("tensor `{name}` is missing; it has {}", if has.is_empty() { "no other".into() } else { has.join(", ") }))
        })
    }

    fn floats(&self, name: &str, array: Array, rank: usize) -> Result<(Vec<usize>, Vec<f32>)> {
        match array.data {
            Data::Float(v) if array.shape.len() == rank => Ok((array.shape, v)),
            Data::Float(_) => Err(self.damaged(format!("tensor `{name}` has the shape {:?}", array.shape))),
            Data::Int(_) => Err(self.damaged(format!("tensor `{name}` holds integers"))),
        }
    }

    /// Takes a matrix, `[rows, columns]`, f32.
    ///
    /// # Errors
    /// It is not there, or no matrix of floats, or empty.
    pub fn matrix(&mut self, name: &str) -> Result<Tensor> {
        let array = self.need(name)?;
        let (shape, data) = self.floats(name, array, 2)?;
        if data.is_empty() {
            return Err(self.damaged(format!("tensor `{name}` is empty, {shape:?}")));
        }
        Ok(Tensor::from_vec(data, shape, &Device::Cpu)?)
    }

    /// Takes a matrix that lies the other way round: stored `[columns, rows]`, returned `[rows, columns]` and contiguous.
    ///
    /// # Errors
    /// As [`Tensors::matrix`].
    pub fn transposed(&mut self, name: &str) -> Result<Tensor> {
        Ok(self.matrix(name)?.t()?.contiguous()?)
    }

    /// Takes a vector, `[n]`, f32.
    ///
    /// # Errors
    /// It is not there, or no vector of floats.
    pub fn vector(&mut self, name: &str) -> Result<Tensor> {
        let array = self.need(name)?;
        let (shape, data) = self.floats(name, array, 1)?;
        Ok(Tensor::from_vec(data, shape, &Device::Cpu)?)
    }

    /// Takes a number (a scalar, or one element of any rank), if it is there.
    ///
    /// # Errors
    /// More than one element.
    pub fn number(&mut self, name: &str) -> Result<Option<f64>> {
        let Some(array) = self.take(name) else { return Ok(None) };
        match &array.data {
            Data::Float(v) if v.len() == 1 => Ok(Some(f64::from(v[0]))),
            Data::Int(v) if v.len() == 1 => Ok(Some(v[0] as f64)),
            _ => Err(self.damaged(format!("tensor `{name}` has the shape {:?} and should be one number", array.shape))),
        }
    }

    /// Takes a list of whole numbers, if it is there.
    ///
    /// # Errors
    /// Floats, or another rank.
    pub fn integers(&mut self, name: &str) -> Result<Option<Vec<i64>>> {
        let Some(array) = self.take(name) else { return Ok(None) };
        match array.data {
            Data::Int(v) if array.shape.len() == 1 => Ok(Some(v)),
            _ => Err(self.damaged(format!("tensor `{name}` of shape {:?} is no list of whole numbers", array.shape))),
        }
    }

    /// Nothing may be left.
    ///
    /// # Errors
    /// The first tensor that nobody took.
    pub fn finish(self) -> Result<()> {
        match self.arrays.iter().next() {
            None => Ok(()),
            Some((name, array)) => Err(Error::Unsupported {
                by: "a dictionary".into(),
                what: format!("tensor `{name}` {:?} of {}, which this dialect does not know", array.shape, self.path.display()),
                instead:
                    "name the format with --format if another was meant; a tensor is never dropped, for that would change the function"
                        .into(),
            }),
        }
    }
}

fn read_numbers(dtype: Dtype, bytes: &[u8]) -> Option<Data> {
    fn each<const N: usize, T>(bytes: &[u8], f: impl Fn([u8; N]) -> T) -> Vec<T> {
        bytes.chunks_exact(N).map(|b| f(b.try_into().expect("a chunk of N bytes"))).collect()
    }
    Some(match dtype {
        Dtype::F32 => Data::Float(each(bytes, f32::from_le_bytes)),
        Dtype::F64 => Data::Float(each(bytes, |b| f64::from_le_bytes(b) as f32)),
        Dtype::F16 => Data::Float(each(bytes, |b| f16::from_le_bytes(b).to_f32())),
        Dtype::BF16 => Data::Float(each(bytes, |b| bf16::from_le_bytes(b).to_f32())),
        Dtype::I64 => Data::Int(each(bytes, i64::from_le_bytes)),
        Dtype::I32 => Data::Int(each(bytes, |b| i32::from_le_bytes(b).into())),
        Dtype::I16 => Data::Int(each(bytes, |b| i16::from_le_bytes(b).into())),
        Dtype::I8 => Data::Int(each(bytes, |b| i8::from_le_bytes(b).into())),
        Dtype::U8 | Dtype::BOOL => Data::Int(bytes.iter().map(|&b| b.into()).collect()),
        Dtype::U16 => Data::Int(each(bytes, |b| u16::from_le_bytes(b).into())),
        Dtype::U32 => Data::Int(each(bytes, |b| u32::from_le_bytes(b).into())),
        _ => return None,
    })
}

/// Names of the tensors of a safetensors file, from its header alone; `None` where it is none. For [`find`](super::Format::find).
pub fn safetensors_names(path: &Path) -> Option<Vec<String>> {
    use std::io::Read;
    let mut file = fs::File::open(path).ok()?;
    let size = file.metadata().ok()?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).ok()?;
    let n = u64::from_le_bytes(length);
    if n > size.saturating_sub(8) || n > 100 << 20 {
        return None;
    }
    let mut header = vec![0; n as usize];
    file.read_exact(&mut header).ok()?;
    let header: Value = serde_json::from_slice(&header).ok()?;
    Some(header.as_object()?.keys().filter(|k| *k != "__metadata__").cloned().collect())
}

/// Writes `dir/name` in one go, f32, tensors in the order of their names, without `__metadata__`.
///
/// # Errors
/// I/O errors, tensors that cannot be read.
pub fn write_safetensors(dir: &Path, name: &str, tensors: &[(&str, Tensor)]) -> Result<()> {
    write_safetensors_with(dir, name, tensors, None)
}

/// [`write_safetensors`] with `__metadata__`.
///
/// # Errors
/// As there.
pub fn write_safetensors_with(dir: &Path, name: &str, tensors: &[(&str, Tensor)], metadata: Option<HashMap<String, String>>) -> Result<()> {
    let tensors: Vec<(&str, Tensor)> = tensors
        .iter()
        .map(|(name, t)| Ok((*name, t.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?)))
        .collect::<Result<_>>()?;
    let bytes = safetensors::serialize(tensors.iter().map(|(n, t)| (*n, t)), metadata)
        .map_err(|e| Error::format("dictionary", dir.join(name), e.to_string(), "report this: fresh tensors must serialise"))?;
    artefact::write(dir, name, &bytes)
}

/// A JSON object from a file of bounded size.
///
/// # Errors
/// I/O errors; not JSON, or no object.
pub fn read_json(format: &'static str, path: &Path) -> Result<Value> {
    let damaged = |problem: String| Error::format(format, path, problem, "fetch or save the dictionary again");
    let size = fs::metadata(path).map_err(|e| Error::io("read", path, e))?.len();
    if size > JSON_MAX {
        return Err(damaged(format!("{size} bytes of JSON are no configuration")));
    }
    let text = fs::read(path).map_err(|e| Error::io("read", path, e))?;
    let value: Value = serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
    if !value.is_object() {
        return Err(damaged("it holds no JSON object".into()));
    }
    Ok(value)
}

/// Keys of a configuration as a typed value; the others stay for provenance.
///
/// # Errors
/// A key of another type, a missing one: with its path.
pub fn typed<T: serde::de::DeserializeOwned>(format: &'static str, path: &Path, value: &Value) -> Result<T> {
    serde_path_to_error::deserialize(value)
        .map_err(|e| Error::format(format, path, format!("`{}`: {}", e.path(), e.inner()), "fetch or save the dictionary again"))
}

/// A JSON object of a file, if it is one. For [`find`](super::Format::find).
pub fn peek_json(path: &Path) -> Option<Value> {
    path.is_file().then(|| read_json("dictionary", path).ok()).flatten()
}

/// Writes JSON with a line end.
///
/// # Errors
/// I/O errors.
pub fn write_json(dir: &Path, name: &str, value: &Value, pretty: bool) -> Result<()> {
    let text = if pretty {
        let mut bytes = Vec::new();
        let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, serde_json::ser::PrettyFormatter::with_indent(b"    "));
        serde::Serialize::serialize(value, &mut serializer).expect("a JSON value serialises");
        bytes
    } else {
        serde_json::to_vec(value).expect("a JSON value serialises")
    };
    artefact::write(dir, name, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_takes_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let t = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
        write_safetensors(dir.path(), "a.safetensors", &[("w", t(&[2, 3])), ("b", t(&[2]))]).unwrap();
        let path = dir.path().join("a.safetensors");
        assert_eq!(safetensors_names(&path).unwrap().len(), 2);
        let mut all = Tensors::safetensors("test", &path).unwrap();
        assert_eq!(all.transposed("w").unwrap().dims(), [3, 2]);
        assert!(all.matrix("w").unwrap_err().to_string().contains("`w` is missing; it has b [2]"));
        assert!(all.clone().finish().unwrap_err().to_string().contains("tensor `b` [2]"));
        all.vector("b").unwrap();
        all.finish().unwrap();
    }

    #[test]
    fn nan_and_lies_about_sizes_are_refused() {
        let mut all = Tensors::new("test", Path::new("x"));
        let nan = Array { shape: vec![2], data: Data::Float(vec![1.0, f32::NAN]) };
        assert!(all.insert("w", nan).unwrap_err().to_string().contains("NaN"));
        let short = Array { shape: vec![usize::MAX, 2], data: Data::Float(vec![1.0]) };
        assert!(all.insert("w", short).is_err());
        // A header that claims more than the file has.
        let header = br#"{"w":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header);
        assert!(Tensors::safetensors_of("test", Path::new("x"), &bytes).is_err());
    }
}
