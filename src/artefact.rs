//! Output folders and files: started fresh, resumed or replaced, and never left half-written looking whole.

use std::fs;
use std::io::Write;
use std::path::Path;

use crate::error::{Error, Result};

/// What to do with an output folder that already holds something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Refuse it.
    #[default]
    Fresh,
    /// Go on where it stopped.
    Resume,
    /// Remove what an earlier run left there, and start again.
    Overwrite,
}

/// Is there anything in `dir`? A missing folder is empty, and what a killed process was just writing does not count.
///
/// # Errors
/// A folder that cannot be listed, or a file in its place.
pub fn is_empty(dir: &Path) -> Result<bool> {
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.all(|e| e.is_ok_and(|e| is_leftover(&e.file_name())))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(e) => Err(Error::io("list", dir, e)),
    }
}

/// Temporary files have this prefix until they are renamed.
const LEFTOVER: &str = ".tmp";

fn is_leftover(name: &std::ffi::OsStr) -> bool {
    name.to_string_lossy().starts_with(LEFTOVER)
}

/// Removes temporary files that a killed process left in `dir`.
///
/// # Errors
/// A folder that cannot be listed, a file that cannot be removed.
pub fn remove_leftovers(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(|e| Error::io("list", dir, e))? {
        let entry = entry.map_err(|e| Error::io("list", dir, e))?;
        if is_leftover(&entry.file_name()) && entry.path().is_file() {
            fs::remove_file(entry.path()).map_err(|e| Error::io("remove", entry.path(), e))?;
        }
    }
    Ok(())
}

/// Writes `dir/name` through a temporary file, synced and renamed: it appears whole or not at all.
///
/// # Errors
/// I/O errors, with the path.
pub fn write(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = dir.join(name);
    let mut temp = tempfile::NamedTempFile::new_in(dir).map_err(|e| Error::io("create a file in", dir, e))?;
    temp.write_all(bytes).map_err(|e| Error::io("write", &path, e))?;
    persist(temp, &path)
}

/// Syncs a temporary file and renames it to `path`, then syncs the folder so that the name survives a power cut too.
///
/// # Errors
/// I/O errors, with the path.
pub fn persist(temp: tempfile::NamedTempFile, path: &Path) -> Result<()> {
    temp.as_file().sync_all().map_err(|e| Error::io("sync", path, e))?;
    // Temporary files are private; artefacts are as readable as any file the user makes.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        temp.as_file().set_permissions(fs::Permissions::from_mode(0o644)).map_err(|e| Error::io("set the permissions of", path, e))?;
    }
    temp.persist(path).map_err(|e| Error::io("rename into", path, e.error))?;
    #[cfg(unix)]
    if let Some(dir) = path.parent() {
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        fs::File::open(dir).and_then(|d| d.sync_all()).map_err(|e| Error::io("sync", dir, e))?;
    }
    Ok(())
}

/// The error of writing `path` through a library: the system's, found inside, so that a full disk is called a full disk.
pub fn write_error(path: &Path, error: &(dyn std::error::Error + 'static)) -> Error {
    let mut inner = Some(error);
    while let Some(e) = inner {
        if let Some(io) = e.downcast_ref::<std::io::Error>() {
            return Error::io("write", path, std::io::Error::new(io.kind(), io.to_string()));
        }
        inner = e.source();
    }
    Error::io("write", path, std::io::Error::other(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_replaces_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        assert!(is_empty(dir.path()).unwrap() && is_empty(&dir.path().join("missing")).unwrap());
        write(dir.path(), "a", b"one").unwrap();
        write(dir.path(), "a", b"two").unwrap();
        assert_eq!(fs::read(dir.path().join("a")).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(!is_empty(dir.path()).unwrap());
    }

    #[test]
    fn a_full_disk_is_found_inside_a_librarys_error() {
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let error = parquet::errors::ParquetError::External(Box::new(full));
        assert!(write_error(Path::new("a.parquet"), &error).to_string().contains("free some disk space"));
        let other = parquet::errors::ParquetError::General("odd".into());
        assert!(write_error(Path::new("a.parquet"), &other).to_string().contains("cannot write a.parquet"));
    }
}
