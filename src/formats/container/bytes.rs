//! The bytes of a file, mapped rather than copied.

use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

use crate::error::{Error, Result};

/// A file's bytes.
#[derive(Debug)]
pub enum Bytes {
    /// Mapped from a file.
    Mapped(Mmap),
    /// In memory.
    Owned(Vec<u8>),
}

impl Bytes {
    /// Maps a file.
    ///
    /// # Errors
    /// A path that cannot be opened, or that is no file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let about = file.metadata().map_err(|e| Error::io("look at", path, e))?;
        if !about.is_file() {
            return Err(Error::request(format!("{} is no file", path.display()), "name a file"));
        }
        if about.len() == 0 {
            return Ok(Self::Owned(Vec::new()));
        }
        // SAFETY: the map is only read. As with every memory map, a file that another process truncates meanwhile ends this one.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io("map", path, e))?;
        Ok(Self::Mapped(map))
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}
