//! PyTorch's `.pt` and `.pth`: a zip with a pickle of nested values and a file of raw numbers per storage.
//!
//! Reading keeps what is no tensor too (a `k`, the name of an activation): such entries may decide the meaning of a file. Tensors come
//! out contiguous and row-major, whatever their strides. Writing makes files that `torch.load(weights_only=True)` reads.
//!
//! Not for: whole modules (their pickles name classes), TorchScript, files from before PyTorch 1.6 (refused with the remedy).

use std::io::Write;
use std::path::{Path, PathBuf};

use super::array::{count, Array, Element};
use super::pickle::{self, Global, Value};
use super::zip::{Zip, ZipWriter};
use crate::error::{Error, Result};

const FORMAT: &str = "PyTorch file";

/// The most dimensions a tensor has.
const MOST_DIMS: usize = 8;

/// An opened file.
#[derive(Debug)]
pub struct PtFile<'a> {
    zip: Zip<'a>,
    /// Folder of everything in the archive, with its slash.
    root: String,
    big_endian: bool,
    /// What was saved.
    pub value: Value,
}

/// Where in a storage a tensor lies; all in elements.
#[derive(Debug, Clone, PartialEq, Eq)]
struct View {
    element: Element,
    key: String,
    /// Elements of the storage.
    held: usize,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

/// Keys that a state dict may lie under.
const INNER: [&str; 4] = ["state_dict", "model_state_dict", "model", "sae"];
/// What lies beside it in a checkpoint and has no part in the function.
const TRAINING: [&str; 12] = [
    "optimizer",
    "optimizer_state_dict",
    "scheduler",
    "scheduler_state_dict",
    "lr_scheduler",
    "lr_scheduler_state_dict",
    "epoch",
    "step",
    "global_step",
    "loss",
    "version",
    "rng_state",
];

/// First bytes of the pickled magic number that files before PyTorch 1.6 begin with.
const LEGACY: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";

/// Does `bytes` look like a PyTorch file, of whatever age?
pub fn looks_like(bytes: &[u8]) -> bool {
    bytes.starts_with(LEGACY) || (bytes.starts_with(b"PK\x03\x04") && bytes[..bytes.len().min(512)].windows(8).any(|w| w == b"data.pkl"))
}

impl<'a> PtFile<'a> {
    /// Reads directory and pickle; numbers are read by [`array`](Self::array). `path` is for messages.
    ///
    /// # Errors
    /// A damaged archive, a pickle with anything but plain values and tensors, files of old versions.
    pub fn new(bytes: &'a [u8], path: &Path) -> Result<Self> {
        let again = |what: &str| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().to_string();
            let help =
                format!("load it with PyTorch and save it again: torch.save(torch.load(\"{name}\", map_location=\"cpu\", weights_only=True), \"{name}\")");
            Error::format(FORMAT, path, what, help)
        };
        if bytes.starts_with(LEGACY) {
            return Err(again("it has the form from before PyTorch 1.6, a bare pickle"));
        }
        if bytes.first() == Some(&0x80) {
            return Err(again("it is a bare pickle, no archive with tensors"));
        }
        if bytes.get(257..262) == Some(b"ustar".as_slice()) {
            return Err(again("it has the form from before PyTorch 0.1.10, a tar archive"));
        }
        let zip = Zip::new(bytes, path)?;
        let bad = |problem: String| Error::format(FORMAT, path, problem, "save a state dict: torch.save(model.state_dict(), path)");
        let mut roots =
            zip.names().filter_map(|n| n.strip_suffix("data.pkl")).filter(|root| root.ends_with('/') && root.matches('/').count() == 1);
        let root = roots.next().ok_or_else(|| bad("the archive has no data.pkl".into()))?.to_string();
        if roots.next().is_some() {
            return Err(bad("the archive has several data.pkl".into()));
        }
        drop(roots);
        let order = format!("{root}byteorder");
        let big_endian = match zip.contains(&order).then(|| zip.read(&order)).transpose()?.as_deref() {
            // Written since PyTorch 2.1; before, as the machine was, and all were little-endian.
            None => false,
            Some(text) => match text.trim_ascii() {
                b"little" => false,
                b"big" => true,
                other => return Err(bad(format!("its byte order is {:?}", String::from_utf8_lossy(other)))),
            },
        };
        let value = pickle::read(&zip.read(&format!("{root}data.pkl"))?).map_err(bad)?;
        Ok(Self { zip, root, big_endian, value })
    }

    /// Where the file lies, for messages.
    pub fn path(&self) -> &Path {
        self.zip.path()
    }

    fn bad(&self, problem: String) -> Error {
        Error::format(FORMAT, self.path(), problem, "save a state dict of plain tensors: torch.save(model.state_dict(), path)")
    }

    /// Names and values of the dict that was saved, or of the dict under one of the keys that training scripts put it under
    /// (`state_dict`, `model_state_dict`, `model`, `sae`), if nothing beside it but the state of training could mean something.
    ///
    /// # Errors
    /// When a dict with string keys was not what was saved.
    pub fn entries(&self) -> Result<Vec<(&str, &Value)>> {
        let outer = self.named(&self.value)?;
        let inner = outer.iter().find(|(name, value)| INNER.contains(name) && value.dict().is_some());
        let Some((inner_name, inner)) = inner else { return Ok(outer) };
        if let Some((name, _)) = outer.iter().find(|(name, _)| name != inner_name && !TRAINING.contains(name)) {
            return Err(self.bad(format!("beside `{inner_name}` it holds `{name}`, which may belong to the dictionary")));
        }
        self.named(inner)
    }

    fn named<'v>(&self, value: &'v Value) -> Result<Vec<(&'v str, &'v Value)>> {
        let entries = value.dict().ok_or_else(|| self.bad(format!("it holds {}, no dict of tensors", value.kind())))?;
        let name = |k: &'v Value| k.text().ok_or_else(|| self.bad(format!("a key of its dict is {}, no string", k.kind())));
        entries.iter().map(|(k, v)| Ok((name(k)?, v))).collect()
    }

    /// Is `value` a tensor?
    pub fn is_tensor(value: &Value) -> bool {
        matches!(value, Value::Call(Global::RebuildTensor | Global::RebuildParameter, _))
    }

    /// The shape of a tensor, without its numbers.
    ///
    /// # Errors
    /// A value that is no tensor, or a damaged one.
    pub fn shape(&self, value: &Value) -> Result<Vec<usize>> {
        Ok(view(value).map_err(|e| self.bad(e))?.shape)
    }

    /// The numbers of a tensor, contiguous and row-major. `name` is for messages.
    ///
    /// # Errors
    /// A value that is no tensor; a tensor that goes beyond its storage or whose elements share memory; a damaged storage.
    pub fn array(&self, name: &str, value: &Value) -> Result<Array> {
        let bad = |problem: String| self.bad(format!("`{name}`: {problem}"));
        let v = view(value).map_err(bad)?;
        v.check().map_err(bad)?;
        let entry = format!("{}data/{}", self.root, v.key);
        let size = v.element.size();
        let there = self.zip.size(&entry).ok_or_else(|| bad(format!("its storage {} is missing", v.key)))?;
        if v.held.checked_mul(size) != Some(there) {
            return Err(bad(format!("its storage {} has {there} bytes, {} elements of {size} were announced", v.key, v.held)));
        }
        let storage = self.zip.read(&entry)?;
        let mut data = v.gather(&storage);
        if self.big_endian {
            data.chunks_exact_mut(size).for_each(<[u8]>::reverse);
        }
        Array::new(v.element, v.shape, data)
    }
}

/// The tensor that a value describes.
fn view(value: &Value) -> Result<View, String> {
    let (global, arguments) = match value {
        Value::Call(global, arguments) => (*global, arguments.as_slice()),
        other => return Err(format!("it is {}, no tensor", other.kind())),
    };
    if global == Global::RebuildParameter {
        return match arguments {
            [inner @ Value::Call(Global::RebuildTensor, _), ..] => view(inner),
            _ => Err("a parameter without a tensor".into()),
        };
    }
    let odd = || "a tensor in a form that is not known".to_string();
    let [Value::Persistent(storage), offset, Value::Tuple(shape), Value::Tuple(strides), ..] = arguments else { return Err(odd()) };
    let Value::Tuple(storage) = storage.as_ref() else { return Err(odd()) };
    let [Value::Text(tag), Value::Global(Global::Storage(element)), Value::Text(key), Value::Text(_), held] = storage.as_slice() else {
        return Err(odd());
    };
    let natural = |v: &Value| v.int().and_then(|v| usize::try_from(v).ok()).ok_or_else(|| "a size that is no natural number".to_string());
    let all = |values: &[Value]| values.iter().map(natural).collect::<Result<Vec<_>, _>>();
    let view = View {
        element: *element,
        key: key.clone(),
        held: natural(held)?,
        offset: natural(offset)?,
        shape: all(shape)?,
        strides: all(strides)?,
    };
    if tag != "storage" || view.shape.len() != view.strides.len() || view.shape.len() > MOST_DIMS {
        return Err(odd());
    }
    Ok(view)
}

impl View {
    /// Does it lie within its storage, each element in a place of its own? Then it is no larger than the storage.
    fn check(&self) -> Result<(), String> {
        let beyond = || {
            format!("shape {:?}, strides {:?} and offset {} go beyond its storage of {}", self.shape, self.strides, self.offset, self.held)
        };
        if count(&self.shape).ok_or_else(beyond)? == 0 {
            return Ok(());
        }
        let mut dims: Vec<(usize, usize)> = self.strides.iter().copied().zip(self.shape.iter().copied()).filter(|(_, n)| *n > 1).collect();
        dims.sort_unstable();
        // The farthest element, from the innermost dimension outwards: each must step over all that is within.
        let mut reach = 0usize;
        for (stride, n) in dims {
            if stride <= reach {
                return Err(format!("its elements share memory (shape {:?}, strides {:?})", self.shape, self.strides));
            }
            reach = (n - 1).checked_mul(stride).and_then(|far| reach.checked_add(far)).ok_or_else(beyond)?;
        }
        if self.offset.checked_add(reach).is_none_or(|last| last >= self.held) {
            return Err(beyond());
        }
        Ok(())
    }

    /// Its elements in row-major order, from a storage that `check` holds against.
    fn gather(&self, storage: &[u8]) -> Vec<u8> {
        let size = self.element.size();
        let n = count(&self.shape).expect("it was checked");
        let mut dense = vec![1usize; self.shape.len()];
        for i in (1..self.shape.len()).rev() {
            dense[i - 1] = dense[i] * self.shape[i].max(1);
        }
        let is_dense = self.strides.iter().zip(&dense).zip(&self.shape).all(|((s, d), n)| *n <= 1 || s == d);
        if n == 0 {
            return Vec::new();
        }
        if is_dense {
            return storage[self.offset * size..(self.offset + n) * size].to_vec();
        }
        let mut data = Vec::with_capacity(n * size);
        let mut index = vec![0usize; self.shape.len()];
        let mut at = self.offset;
        for _ in 0..n {
            data.extend_from_slice(&storage[at * size..(at + 1) * size]);
            for i in (0..index.len()).rev() {
                index[i] += 1;
                at += self.strides[i];
                if index[i] < self.shape[i] {
                    break;
                }
                at -= index[i] * self.strides[i];
                index[i] = 0;
            }
        }
        data
    }
}

/// What a file to be written holds under a name.
#[derive(Debug, Clone)]
pub enum Item {
    /// A tensor.
    Tensor(Array),
    /// A plain value: nothing of it may be a tensor.
    Plain(Value),
}

fn torch_value(array: &Array, key: usize) -> Value {
    let int = |v: usize| Value::Int(v as i64);
    let mut strides = vec![1usize; array.shape.len()];
    for i in (1..strides.len()).rev() {
        strides[i - 1] = strides[i] * array.shape[i];
    }
    let text = |t: &str| Value::Text(t.to_string());
    let storage =
        vec![text("storage"), Value::Global(Global::Storage(array.element)), text(&key.to_string()), text("cpu"), int(array.len())];
    let sizes = |v: &[usize]| Value::Tuple(v.iter().map(|&v| int(v)).collect());
    let arguments = vec![
        Value::Persistent(Box::new(Value::Tuple(storage))),
        int(0),
        sizes(&array.shape),
        sizes(&strides),
        Value::Bool(false),
        Value::Call(Global::OrderedDict, Vec::new()),
    ];
    Value::Call(Global::RebuildTensor, arguments)
}

/// Writes a dict of `items`, as `torch.save` would into a file whose stem is `root`.
///
/// # Errors
/// What the output says.
pub fn write<W: Write>(out: W, root: &str, items: &[(&str, Item)]) -> std::io::Result<W> {
    let mut entries = Vec::new();
    let mut arrays = Vec::new();
    for (name, item) in items {
        let value = match item {
            Item::Plain(value) => value.clone(),
            Item::Tensor(array) => {
                arrays.push(array);
                torch_value(array, arrays.len() - 1)
            }
        };
        entries.push((Value::Text((*name).to_string()), value));
    }
    let mut zip = ZipWriter::new(out);
    zip.add(&format!("{root}/data.pkl"), &pickle::write(&Value::Dict(entries)))?;
    zip.add(&format!("{root}/byteorder"), b"little")?;
    for (i, array) in arrays.iter().enumerate() {
        zip.add(&format!("{root}/data/{i}"), array.bytes())?;
    }
    zip.add(&format!("{root}/version"), b"3\n")?;
    zip.finish()
}

/// [`write()`] into a file, which appears whole or not at all; the archive's root is the file's stem.
///
/// # Errors
/// I/O errors, with the path.
pub fn save(path: &Path, items: &[(&str, Item)]) -> Result<()> {
    let root = path.file_stem().unwrap_or_default().to_string_lossy().to_string();
    save_with(path, |out| write(out, &root, items).map(drop))
}

/// Writes `path` through a temporary file.
pub(super) fn save_with(path: &Path, write: impl FnOnce(&mut std::io::BufWriter<&std::fs::File>) -> std::io::Result<()>) -> Result<()> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let temp = tempfile::NamedTempFile::new_in(&dir).map_err(|e| Error::io("create a file in", &dir, e))?;
    let mut out = std::io::BufWriter::new(temp.as_file());
    write(&mut out).and_then(|()| out.flush()).map_err(|e| Error::io("write", path, e))?;
    drop(out);
    crate::artefact::persist(temp, path)
}

#[cfg(test)]
mod tests;
