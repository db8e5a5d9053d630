//! Fetching one folder (or file) of a repository that holds many: dictionaries lie a folder per hook point.

use std::collections::{BTreeMap, BTreeSet};

use super::cache::RepoKind;
use super::enabled::Hub;
use super::spec::FolderSpec;
use super::Snapshot;
use crate::error::{Error, Result};

/// Files of weights, by their ends; what lies beside and is no dictionary, by its beginning.
const WEIGHTS: [&str; 4] = [".safetensors", ".npz", ".pt", ".pth"];
const BESIDE: [&str; 6] = ["sparsity", "optimizer", "lr_scheduler", "activation", "state", "rank_"];
/// More names than this are not listed.
const SHOWN: usize = 40;

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

fn is_weights(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    WEIGHTS.iter().any(|end| name.ends_with(end)) && !BESIDE.iter().any(|start| name.starts_with(start))
}

impl Hub {
    /// The weights that `spec` names, with the JSON beside them. The snapshot's `dir` is where they lie on this machine, file or folder.
    ///
    /// # Errors
    /// No such repository, revision or folder; several folders (or files) of weights below it: the message lists them; a server that
    /// keeps no lists; and as [`Hub::model`].
    pub fn weights_folder(&self, spec: &FolderSpec) -> Result<Snapshot> {
        let repo = self.repo(RepoKind::Model, &spec.id);
        let revision = spec.revision.as_deref().unwrap_or("main");
        let Some(commit) = self.commit(&repo, revision, false)? else { return Err(self.not_cached(&repo, revision, None)) };
        let Some(files) = self.listing(&repo, &commit).map_err(|f| f.into_error(&repo.label()))? else {
            return Err(Error::request(
                format!("the files of {} are not listed, neither by the server nor in the cache", repo.label()),
                "download the folder and name it",
            ));
        };
        let path = spec.path.as_str();
        let below = |name: &str| path.is_empty() || name == path || name.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'));
        let mut folders: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for name in files.keys().filter(|name| below(name) && is_weights(name)) {
            folders.entry(parent(name)).or_default().push(name);
        }
        let choices: BTreeSet<&str> = match folders.len() {
            1 => folders.values().flatten().copied().collect(),
            _ => folders.keys().copied().collect(),
        };
        let whole = || if path.is_empty() { repo.label() } else { format!("{path} of {}", repo.label()) };
        match choices.len() {
            0 => Err(Error::request(format!("{} at commit {commit} has no weights", whole()), "name a folder of it: org/name/folder")),
            1 => {
                let weights = *folders.values().flatten().next().expect("one choice is one file");
                let folder = parent(weights);
                // Older layouts keep their configuration one folder up.
                let up = folder.strip_suffix("checkpoints").map(|f| f.trim_end_matches('/'));
                let beside = |name: &str| parent(name) == folder || up == Some(parent(name));
                for name in files.keys().filter(|n| n.as_str() == weights || (beside(n) && n.ends_with(".json"))) {
                    self.file(&repo, &commit, name, files.get(name))?;
                }
                let dir = match (path == weights, up) {
                    (true, _) => repo.pointer(&commit, weights),
                    (_, Some(up)) => repo.pointer(&commit, up),
                    _ => repo.pointer(&commit, folder),
                };
                Ok(Snapshot { id: spec.id.clone(), commit, dir })
            }
            n => {
                let mut lines: Vec<String> = choices.iter().take(SHOWN).map(|c| format!("    {}/{c}", spec.id)).collect();
                if n > SHOWN {
                    lines.push(format!("    and {} more", n - SHOWN));
                }
                Err(Error::request(format!("{} holds {n} dictionaries:\n{}", whole(), lines.join("\n")), "name one of them"))
            }
        }
    }
}
