//! [`Tensors`] out of PyTorch and NumPy archives, and what is no tensor beside them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Tensor;

use super::container::npz::NpzFile;
use super::container::pickle::Value;
use super::container::pt::{Item, PtFile};
use super::container::{self, Bytes};
use super::tensors::{self, Data, Tensors};
use crate::error::Result;

/// What a `.pt` file holds beside its tensors, by name.
pub(super) type Plain = BTreeMap<String, Value>;

fn numbers(array: container::Array) -> tensors::Array {
    let data = match array.to_i64() {
        Some(whole) => Data::Int(whole),
        None => Data::Float(array.to_f32()),
    };
    tensors::Array { shape: array.shape, data }
}

/// All of a `.pt` file: its tensors, and the plain values among them.
///
/// # Errors
/// A file that is none, or is damaged; NaN or infinity.
pub(super) fn read_pt(format: &'static str, path: &Path) -> Result<(Tensors, Plain)> {
    let bytes = Bytes::open(path)?;
    let pt = PtFile::new(&bytes, path)?;
    let (mut all, mut plain) = (Tensors::new(format, path), Plain::new());
    for (name, value) in pt.entries()? {
        if PtFile::is_tensor(value) {
            all.insert(name, numbers(pt.array(name, value)?))?;
        } else {
            plain.insert(name.to_string(), value.clone());
        }
    }
    Ok((all, plain))
}

/// Names in a `.pt` file, tensors and others; `None` where it cannot be read. For [`find`](super::Format::find).
pub(super) fn pt_names(path: &Path) -> Option<Vec<String>> {
    let bytes = Bytes::open(path).ok()?;
    let pt = PtFile::new(&bytes, path).ok()?;
    Some(pt.entries().ok()?.into_iter().map(|(name, _)| name.to_string()).collect())
}

/// All of a `.npz` file. `rename` maps the file's names.
///
/// # Errors
/// A file that is none, or is damaged; NaN or infinity.
pub(super) fn read_npz(format: &'static str, path: &Path, rename: impl Fn(&str) -> String) -> Result<Tensors> {
    let bytes = Bytes::open(path)?;
    let npz = NpzFile::new(&bytes, path)?;
    let mut all = Tensors::new(format, path);
    for name in npz.names() {
        all.insert(rename(name), numbers(npz.array(name)?))?;
    }
    Ok(all)
}

/// Names of the arrays of a `.npz` file; `None` where it cannot be read. For [`find`](super::Format::find).
pub(super) fn npz_names(path: &Path) -> Option<Vec<String>> {
    let bytes = Bytes::open(path).ok()?;
    Some(NpzFile::new(&bytes, path).ok()?.names().map(str::to_string).collect())
}

/// A tensor to be written into a `.pt` file.
///
/// # Errors
/// A tensor that cannot be read.
pub(super) fn item(tensor: &Tensor) -> Result<Item> {
    Ok(Item::Tensor(container::Array::from_tensor(tensor)?))
}

/// Does the name of a file end so?
pub(super) fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    path.extension().is_some_and(|e| extensions.iter().any(|x| e.eq_ignore_ascii_case(x)))
}

/// `at` if it is a file with one of these extensions, or such files directly in it, in the order of their names.
pub(super) fn files(at: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let fits = |p: &Path| has_extension(p, extensions) && p.is_file();
    if !at.is_dir() {
        return if fits(at) { vec![at.to_path_buf()] } else { Vec::new() };
    }
    let mut found: Vec<PathBuf> = std::fs::read_dir(at).into_iter().flatten().flatten().map(|e| e.path()).filter(|p| fits(p)).collect();
    found.sort();
    found
}
