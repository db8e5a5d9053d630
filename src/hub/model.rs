//! Which files make a model, and in which order: the small ones first, so that an unsupported model costs no download.

use std::collections::BTreeSet;

use super::cache::{is_safe_name, Repo, RepoKind};
use super::enabled::Hub;
use super::http::Kind;
use super::listing::Files;
use super::{ModelSpec, Snapshot};
use crate::error::{Error, Result};

const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Read where they are there.
const BESIDE: [&str; 4] = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"];

impl Hub {
    /// A model's configuration and tokenizer, at the commit that its revision stands for now.
    ///
    /// # Errors
    /// No such model, revision or config.json; access refused; a server or network that fails; a cache that cannot be written.
    pub fn model(&self, spec: &ModelSpec) -> Result<Snapshot> {
        let repo = self.repo(RepoKind::Model, &spec.id);
        let revision = spec.revision.as_deref().unwrap_or("main");
        let Some(commit) = self.commit(&repo, revision, false)? else { return Err(self.not_cached(&repo, revision, None)) };
        let files = self.files_of(&repo, &commit)?;
        if !self.wanted(&repo, &commit, CONFIG, files.as_ref())? {
            return Err(no_file(
                &repo,
                &commit,
                CONFIG,
                files.as_ref(),
                "a host needs one: choose a repository in the transformers layout",
            ));
        }
        for name in BESIDE {
            self.wanted(&repo, &commit, name, files.as_ref())?;
        }
        Ok(Snapshot { id: spec.id.clone(), dir: repo.snapshot(&commit), commit })
    }

    /// Puts a model's weights beside its configuration.
    ///
    /// # Errors
    /// As [`Hub::model`]; a repository without safetensors.
    pub fn weights(&self, snapshot: &Snapshot) -> Result<()> {
        let repo = self.repo(RepoKind::Model, &snapshot.id);
        let commit = snapshot.commit.as_str();
        let files = self.files_of(&repo, commit)?;
        let indexed = files.as_ref().map_or_else(|| repo.pointer(commit, INDEX).is_file(), |f| f.contains_key(INDEX));
        let single = files.as_ref().map_or_else(|| !indexed || repo.pointer(commit, SINGLE).is_file(), |f| f.contains_key(SINGLE));
        if single && self.wanted(&repo, commit, SINGLE, files.as_ref())? {
            return Ok(());
        }
        if !self.wanted(&repo, commit, INDEX, files.as_ref())? {
            let help =
                "only safetensors are read; choose a revision that has them (many repositories have one under refs/pr/N), or convert: \
                        load it with transformers, save_pretrained(DIR), and pass DIR";
            return Err(no_file(&repo, commit, SINGLE, files.as_ref(), help));
        }
        let index = repo.pointer(commit, INDEX);
        let bad = |problem: String| Error::format("weights index", &index, problem, "choose another revision of the model");
        let json = std::fs::read(&index).map_err(|e| Error::io("read", &index, e))?;
        let json: serde_json::Value = serde_json::from_slice(&json).map_err(|e| bad(e.to_string()))?;
        let map = json["weight_map"].as_object().ok_or_else(|| bad("it has no weight_map".into()))?;
        let shards: BTreeSet<&str> = map.values().filter_map(|v| v.as_str()).collect();
        for shard in shards {
            if !is_safe_name(shard) {
                return Err(bad(format!("it names `{shard}`, which is no file of the repository")));
            }
            if !self.wanted(&repo, commit, shard, files.as_ref())? {
                return Err(no_file(&repo, commit, shard, files.as_ref(), "the repository is incomplete: choose another revision"));
            }
        }
        Ok(())
    }

    fn files_of(&self, repo: &Repo, commit: &str) -> Result<Option<Files>> {
        match self.listing(repo, commit) {
            Ok(files) => Ok(files),
            Err(f) if f.kind == Kind::Cancelled || (f.kind == Kind::Unreachable && !repo.pointer(commit, CONFIG).is_file()) => {
                Err(f.into_error(&repo.label()))
            }
            // The files can be asked for one by one; the first that is refused says more than the list.
            Err(_) => Ok(None),
        }
    }

    /// Is the file there (now)?
    fn wanted(&self, repo: &Repo, commit: &str, name: &str, files: Option<&Files>) -> Result<bool> {
        let known = match files {
            Some(files) => match files.get(name) {
                None => return Ok(false),
                known => known,
            },
            // Offline without a list: what is not in the cache is taken for not being there, but what a model cannot do without.
            None if self.http().options().offline && !repo.pointer(commit, name).is_file() => {
                return if BESIDE.contains(&name) || name == SINGLE { Ok(false) } else { Err(self.not_cached(repo, commit, Some(name))) };
            }
            None => None,
        };
        self.file(repo, commit, name, known).map(|found| found.is_some())
    }
}

fn no_file(repo: &Repo, commit: &str, name: &str, files: Option<&Files>, help: &str) -> Error {
    let has = files.map(|f| f.keys().take(12).cloned().collect::<Vec<_>>().join(", "));
    let has = has.map(|h| format!("; it has {h}")).unwrap_or_default();
    Error::request(format!("{} has no {name} at commit {commit}{has}", repo.label()), help)
}
