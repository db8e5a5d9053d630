//! The cache as `huggingface_hub` lays it out, so that either finds what the other fetched:
//!
//! ```text
//! models--org--name/refs/main                 a commit
//! models--org--name/snapshots/<commit>/FILE   a relative link to
//! models--org--name/blobs/<etag>              the file's bytes
//! .locks/models--org--name/<etag>.lock        held while one process fetches
//! ```
//!
//! Beside them `models--org--name/lapidary/<commit>.json`: the list of a commit's files, which never changes.

use std::fs;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use hf_hub::{Cache, CacheRepo, Repo as HubRepo, RepoType};
use sha2::{Digest, Sha256};

use super::spec::is_commit;
use crate::artefact;
use crate::error::{Error, Result};

/// Model or dataset?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RepoKind {
    Model,
    Dataset,
}

/// A repository, on the hub and in the cache.
#[derive(Debug)]
pub(super) struct Repo {
    pub kind: RepoKind,
    pub id: String,
    root: PathBuf,
    locks: PathBuf,
    cached: CacheRepo,
}

impl Repo {
    pub fn new(kind: RepoKind, id: &str, cache_dir: &Path) -> Self {
        let of = match kind {
            RepoKind::Model => RepoType::Model,
            RepoKind::Dataset => RepoType::Dataset,
        };
        let repo = HubRepo::new(id.to_string(), of);
        let folder = repo.folder_name();
        let cached = Cache::new(cache_dir.to_path_buf()).repo(repo);
        Self { kind, id: id.to_string(), root: cache_dir.join(&folder), locks: cache_dir.join(".locks").join(folder), cached }
    }

    /// "models" or "datasets", as the API spells it.
    pub fn api_kind(&self) -> &'static str {
        match self.kind {
            RepoKind::Model => "models",
            RepoKind::Dataset => "datasets",
        }
    }

    /// As a person calls it.
    pub fn label(&self) -> String {
        match self.kind {
            RepoKind::Model => format!("model {}", self.id),
            RepoKind::Dataset => format!("dataset {}", self.id),
        }
    }

    /// Folder with the files of a commit.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.cached.pointer_path(commit)
    }

    /// Where a file of a commit is or would be.
    pub fn pointer(&self, commit: &str, file: &str) -> PathBuf {
        self.snapshot(commit).join(file)
    }

    /// Names of the files of a commit that are here.
    pub fn cached_files(&self, commit: &str) -> Vec<String> {
        fn walk(dir: &Path, prefix: &str, found: &mut Vec<String>) {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
                let path = entry.path();
                if path.is_dir() {
                    walk(&path, &format!("{name}/"), found);
                } else if path.is_file() {
                    found.push(name);
                }
            }
        }
        let mut found = Vec::new();
        walk(&self.snapshot(commit), "", &mut found);
        found.sort();
        found
    }

    pub fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    /// The commit that a branch or tag was last seen at.
    pub fn known_commit(&self, revision: &str) -> Option<String> {
        let commit = fs::read_to_string(self.root.join("refs").join(revision)).ok()?.trim().to_string();
        is_commit(&commit).then_some(commit)
    }

    /// Remembers it.
    pub fn remember_commit(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit || self.known_commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        // The temporary file stands among the blobs: readers take every file below refs for a revision.
        let blobs = self.root.join("blobs");
        create_all(&blobs)?;
        create_all(path.parent().unwrap_or(&self.root))?;
        let mut temp = tempfile::NamedTempFile::new_in(&blobs).map_err(|e| Error::io("create a file in", &blobs, e))?;
        std::io::Write::write_all(&mut temp, commit.as_bytes()).map_err(|e| Error::io("write", &path, e))?;
        artefact::persist(temp, &path)
    }

    /// A commit's file list, as it was kept.
    pub fn known_listing(&self, commit: &str) -> Option<Vec<u8>> {
        let name = format!("{commit}.json");
        ["lapidary", "trees"].iter().find_map(|dir| fs::read(self.root.join(dir).join(&name)).ok())
    }

    pub fn remember_listing(&self, commit: &str, json: &[u8]) -> Result<()> {
        let dir = self.root.join("lapidary");
        create_all(&dir)?;
        artefact::write(&dir, &format!("{commit}.json"), json)
    }

    /// Makes `blobs` and the file's folder below the snapshot, and holds the blob's lock. Another process may hold it: then `waiting` is
    /// called every 100 ms, and ends the wait by an error.
    pub fn lock(&self, etag: &str, pointer: &Path, mut waiting: impl FnMut() -> Result<()>) -> Result<Lock> {
        create_all(&self.root.join("blobs"))?;
        create_all(pointer.parent().unwrap_or(&self.root))?;
        create_all(&self.locks)?;
        let path = self.locks.join(format!("{etag}.lock"));
        let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(|e| Error::io("open", &path, e))?;
        let held = loop {
            match file.try_lock() {
                Ok(()) => break true,
                Err(fs::TryLockError::WouldBlock) => {
                    waiting()?;
                    std::thread::sleep(std::time::Duration::from_millis(100));
                }
                Err(fs::TryLockError::Error(_)) => break false,
            }
        };
        // Where locks are not to be had, a part file of this process alone serves; it cannot be continued later.
        let part = if held { format!("{etag}.incomplete") } else { format!("{etag}.{}.incomplete", std::process::id()) };
        Ok(Lock { part: self.root.join("blobs").join(part), _file: file })
    }

    /// Puts a blob under a file's name: a relative link, or a copy where links cannot be made.
    pub fn link(&self, etag: &str, pointer: &Path) -> Result<()> {
        let blob = self.blob(etag);
        let depth = pointer.strip_prefix(&self.root).map_or(3, |p| p.components().count()) - 1;
        let target: PathBuf = std::iter::repeat_n("..", depth).chain(["blobs", etag]).collect();
        if fs::read_link(pointer).is_ok_and(|t| t == target) {
            return Ok(());
        }
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let temp = self.root.join("blobs").join(format!(".tmp-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        if symlink(&target, &temp).is_err() {
            fs::copy(&blob, &temp).map_err(|e| Error::io("copy", &blob, e))?;
        }
        fs::rename(&temp, pointer).map_err(|e| Error::io("rename into", pointer, e))
    }

    /// Takes a file that proved broken out of the cache.
    pub fn remove(&self, pointer: &Path) -> Result<()> {
        let blob = pointer.canonicalize().ok().filter(|b| b.parent().is_some_and(|p| p.ends_with("blobs")));
        for path in std::iter::once(pointer).chain(blob.as_deref()) {
            match fs::remove_file(path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("remove", path, e)),
                _ => {}
            }
        }
        Ok(())
    }
}

/// A blob's lock, and where its bytes are collected.
pub(super) struct Lock {
    pub part: PathBuf,
    _file: fs::File,
}

#[cfg(unix)]
fn symlink(target: &Path, at: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, at)
}

#[cfg(windows)]
fn symlink(target: &Path, at: &Path) -> std::io::Result<()> {
    std::os::windows::fs::symlink_file(target, at)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_target: &Path, _at: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

pub(super) fn create_all(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))
}

/// An ETag as the name of a blob: without quotes and the weak mark, as Python does it. What is no file name is hashed, and marked so that
/// the name is not taken for the hash of the content.
pub(super) fn blob_name(etag: &str) -> String {
    let bare = etag.trim().trim_start_matches("W/").trim_matches('"');
    let plain = !bare.is_empty() && bare.len() <= 128 && !bare.starts_with('.');
    if plain && bare.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        return bare.to_string();
    }
    let hash: String = Sha256::digest(bare.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
    format!("etag-{hash}")
}

/// May a file be called so? Names come from servers and index files.
pub(super) fn is_safe_name(name: &str) -> bool {
    !name.is_empty()
        && !name.contains(['\\', ':', '\0'])
        && !name.starts_with('/')
        && Path::new(name).components().all(|c| matches!(c, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_servers_send_stay_in_the_folder() {
        for good in ["config.json", "data/train-0.parquet", "a..b"] {
            assert!(is_safe_name(good), "{good}");
        }
        for bad in ["", "../x", "a/../../x", "/etc/passwd", "c:\\x", "a\\b", "./x/.."] {
            assert!(!is_safe_name(bad), "{bad}");
        }
        assert_eq!(blob_name("W/\"abc\""), "abc");
        assert!(["\"../../x\"", "", "a/b", ".x"].iter().all(|e| is_safe_name(&blob_name(e)) && blob_name(e).len() == 69));
    }

    #[test]
    fn links_are_relative_refs_are_nested_and_both_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let repo = Repo::new(RepoKind::Dataset, "o/n", dir.path());
        let (a, b) = ("a".repeat(40), "b".repeat(40));
        for commit in [&a, &b] {
            repo.remember_commit("refs/convert/parquet", commit).unwrap();
            assert_eq!(repo.known_commit("refs/convert/parquet").as_ref(), Some(commit));
        }
        let root = dir.path().join("datasets--o--n");
        assert!(root.join("refs/refs/convert/parquet").is_file());
        let pointer = repo.pointer(&a, "data/x.txt");
        let _lock = repo.lock("e1", &pointer, || Ok(())).unwrap();
        fs::write(repo.blob("e1"), "one").unwrap();
        fs::write(repo.blob("e2"), "two").unwrap();
        for (etag, text) in [("e1", "one"), ("e2", "two")] {
            repo.link(etag, &pointer).unwrap();
            assert_eq!(fs::read_to_string(&pointer).unwrap(), text);
        }
        #[cfg(unix)]
        assert_eq!(fs::read_link(&pointer).unwrap(), Path::new("../../../blobs/e2"));
        repo.remove(&pointer).unwrap();
        assert!(!pointer.exists() && !repo.blob("e2").exists() && repo.blob("e1").exists());
    }
}
