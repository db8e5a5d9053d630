//! NumPy's `.npz`: a zip of `.npy` files.

use std::io::Write;
use std::path::Path;

use super::array::Array;
use super::zip::{Zip, ZipWriter};
use super::{npy, pt};
use crate::error::Result;

/// An opened archive.
#[derive(Debug)]
pub struct NpzFile<'a> {
    zip: Zip<'a>,
}

impl<'a> NpzFile<'a> {
    /// Reads the directory; arrays are read by [`array`](Self::array). `path` is for messages.
    ///
    /// # Errors
    /// A damaged archive.
    pub fn new(bytes: &'a [u8], path: &Path) -> Result<Self> {
        Ok(Self { zip: Zip::new(bytes, path)? })
    }

    /// Names of the arrays, without `.npy`, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.zip.names().map(|n| n.strip_suffix(".npy").unwrap_or(n))
    }

    /// An array by its name.
    ///
    /// # Errors
    /// No such array; one that is damaged or not of numbers.
    pub fn array(&self, name: &str) -> Result<Array> {
        npy::read(&self.zip.read(&format!("{name}.npy"))?, &self.zip.path().join(name))
    }
}

/// Writes an archive, uncompressed, as `numpy.savez` does.
///
/// # Errors
/// What the output says.
pub fn write<W: Write>(out: W, arrays: &[(&str, Array)]) -> std::io::Result<W> {
    let mut zip = ZipWriter::new(out);
    for (name, array) in arrays {
        zip.add(&format!("{name}.npy"), &npy::write(array))?;
    }
    zip.finish()
}

/// [`write()`] into a file, which appears whole or not at all.
///
/// # Errors
/// I/O errors, with the path.
pub fn save(path: &Path, arrays: &[(&str, Array)]) -> Result<()> {
    pt::save_with(path, |out| write(out, arrays).map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_come_back_by_name() {
        let a = Array::from_f32(vec![2, 2], &[1.0, 2.0, 3.0, 4.0]).unwrap();
        let b = Array::from_i64(vec![], &[7]).unwrap();
        let bytes = write(Vec::new(), &[("W_enc", a.clone()), ("k", b.clone())]).unwrap();
        let npz = NpzFile::new(&bytes, Path::new("x.npz")).unwrap();
        assert_eq!(npz.names().collect::<Vec<_>>(), ["W_enc", "k"]);
        assert_eq!((npz.array("W_enc").unwrap(), npz.array("k").unwrap()), (a, b));
        assert!(npz.array("missing").unwrap_err().to_string().contains("missing"));
    }
}
