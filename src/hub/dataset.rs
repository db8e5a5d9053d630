//! A split of a dataset: its files are listed at once and fetched one by one, when they are read.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{json, Value};
use sha2::{Digest, Sha256};

use super::cache::{Repo, RepoKind};
use super::enabled::Hub;
use super::http::{Failure, Kind};
use super::listing::{Entry, Files};
use super::splits::{choose, place, Placed, Unmet};
use super::DatasetSpec;
use crate::error::{Error, Result};

/// The branch to which the hub converts datasets.
const CONVERTED: &str = "refs/convert/parquet";
/// Where no split is named.
const SPLIT: &str = "train";
/// More files than this are listed by one hash.
const MOST_LISTED: usize = 100;

/// A split of a dataset at a commit. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Dataset {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    hub: Hub,
    repo: Repo,
    commit: String,
    config: String,
    split: String,
    files: Vec<(String, Entry)>,
}

impl Hub {
    /// The files of a split, none fetched yet. `config`: the dataset's configuration, where it has several. `endings`: endings of file
    /// names, most welcome group first; only files of the first group that there are any of are taken.
    ///
    /// # Errors
    /// No such dataset, revision, configuration or split (those that exist are named), no file with such an ending; access refused; a
    /// server or network that fails.
    pub fn dataset(&self, spec: &DatasetSpec, config: Option<&str>, endings: &[&[&str]]) -> Result<Dataset> {
        let repo = self.repo(RepoKind::Dataset, &spec.id);
        // The conversion is one-to-one and in one layout; a revision that was named is taken as it is.
        let revisions: &[&str] = match &spec.revision {
            Some(revision) => &[revision.as_str()],
            None => &[CONVERTED, "main"],
        };
        let mut seen = Vec::new();
        for (i, revision) in revisions.iter().enumerate() {
            let last = i + 1 == revisions.len();
            let Some(commit) = self.commit(&repo, revision, !last)? else { continue };
            let files = self.split_files(&repo, &commit)?;
            let placed = place(files.keys().map(String::as_str), endings);
            if placed.is_empty() {
                seen = files.into_keys().collect();
                continue;
            }
            return self.chosen(repo, commit, placed, config, spec.split.as_deref().unwrap_or(SPLIT), &files);
        }
        let shown = if seen.is_empty() { "nothing".into() } else { seen.iter().take(12).cloned().collect::<Vec<_>>().join(", ") };
        let wanted = endings.concat().join(", ");
        Err(Error::request(
            format!("{} has no file that ends in {wanted}; it has {shown}", repo.label()),
            "choose another revision (hf:ID@revision), or download and unpack its files and name their folder",
        ))
    }

    fn split_files(&self, repo: &Repo, commit: &str) -> Result<Files> {
        match self.listing(repo, commit) {
            Ok(Some(files)) => Ok(files),
            Ok(None) if self.http().options().offline && repo.snapshot(commit).is_dir() => {
                self.http().progress().warn(&format!(
                    "the list of files of {} is not in the cache: taking the files that are for all there are",
                    repo.label()
                ));
                Ok(repo.cached_files(commit).into_iter().map(|name| (name, Entry::default())).collect())
            }
            Ok(None) if self.http().options().offline => Err(self.not_cached(repo, commit, Some("the list of files"))),
            Ok(None) => {
                let url = format!("{}/api/datasets/{}/tree/{commit}", self.http().options().endpoint, repo.id);
                Err(Failure::new(Kind::Missing, &url, "the server keeps no list of its files").into_error(&repo.label()))
            }
            Err(f) => Err(f.into_error(&repo.label())),
        }
    }

    fn chosen(&self, repo: Repo, commit: String, placed: Vec<Placed>, config: Option<&str>, split: &str, files: &Files) -> Result<Dataset> {
        let (config, chosen) = choose(placed, config, split).map_err(|unmet| match unmet {
            Unmet::Config(known) => {
                let problem = match config {
                    Some(config) => format!("{} has no configuration `{config}`", repo.label()),
                    None => format!("{} has several configurations", repo.label()),
                };
                Error::config("corpus.config", problem, format!("choose one of {}", known.join(", ")))
            }
            Unmet::Split(known) => Error::config(
                "corpus.source",
                format!("{} has no split `{split}`", repo.label()),
                format!("write hf:{}:SPLIT with one of {}", repo.id, known.join(", ")),
            ),
        })?;
        if chosen.iter().any(|p| p.partial) {
            self.http().progress().warn(&format!(
                "the hub converted only the beginning of {} ({split}); name a revision, as in hf:{}@main, to read its own files",
                repo.label(),
                repo.id
            ));
        }
        let files = chosen.into_iter().map(|p| (p.name.clone(), files.get(&p.name).cloned().unwrap_or_default())).collect();
        let inner = Inner { hub: self.clone(), repo, commit, config, split: split.to_string(), files };
        Ok(Dataset { inner: Arc::new(inner) })
    }
}

impl Dataset {
    /// The files' paths in the repository, in the order they are read: by name.
    pub fn names(&self) -> Vec<&Path> {
        self.inner.files.iter().map(|(name, _)| Path::new(name.as_str())).collect()
    }

    /// The source with its commit and split written out: it names the same files for ever.
    pub fn pinned(&self) -> String {
        format!("hf:{}@{}:{}", self.inner.repo.id, self.inner.commit, self.inner.split)
    }

    /// The configuration that was chosen; `default` where the names of the files tell none.
    pub fn config(&self) -> &str {
        &self.inner.config
    }

    /// A file's place on this machine; fetches it when it is not in the cache.
    ///
    /// # Errors
    /// A server or network that fails; a body that is not what the hub announced; a cache that cannot be written.
    pub fn fetch(&self, file: usize) -> Result<PathBuf> {
        let Inner { hub, repo, commit, files, .. } = self.inner.as_ref();
        let (name, known) = &files[file];
        hub.file(repo, commit, name, Some(known))?.ok_or_else(|| {
            let url = hub.file_url(repo, commit, name);
            Failure::new(Kind::Wrong, &url, "it is in the list of files, and the server has it not").into_error(&repo.label())
        })
    }

    /// Id, commit, configuration, split, and the files as the hub lists them: names, sizes, hashes. Nothing is fetched for it.
    pub fn provenance(&self) -> Value {
        let Inner { repo, commit, config, split, files, .. } = self.inner.as_ref();
        let hash = |e: &Entry| e.lfs_sha256.clone().map(|h| format!("sha256:{h}")).or(e.blob_id.clone().map(|h| format!("git:{h}")));
        let mut all = Sha256::new();
        for (name, entry) in files {
            all.update(format!("{name}\0{}\n", hash(entry).unwrap_or_default()));
        }
        let all: String = all.finalize().iter().map(|b| format!("{b:02x}")).collect();
        let mut value = json!({
            "hub": repo.id, "revision": commit, "config": config, "split": split,
            "n_files": files.len(), "bytes": files.iter().map(|(_, e)| e.size).sum::<Option<u64>>(), "listing_sha256": all,
        });
        if files.len() <= MOST_LISTED {
            let list = files.iter().map(|(name, e)| json!({ "name": name, "bytes": e.size, "hash": hash(e) }));
            value["files"] = Value::Array(list.collect());
        }
        value
    }
}
