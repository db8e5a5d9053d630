//! A hub to ask: revisions become commits.

use std::sync::Arc;

use super::cache::{Repo, RepoKind};
use super::http::{quoted, Failure, Http, Kind, Patience};
use super::spec::is_commit;
use super::HubOptions;
use crate::error::{Error, Result};
use crate::progress::Progress;

/// A hub and its cache. Cheap to clone.
#[derive(Clone)]
pub struct Hub {
    http: Arc<Http>,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("options", self.http.options()).finish_non_exhaustive()
    }
}

impl Hub {
    /// Nothing is sent yet. `progress` hears of downloads and waits, from whichever thread they happen on, and can stop them.
    ///
    /// # Errors
    /// An endpoint or proxy that is no URL, a token that is none.
    pub fn new(options: HubOptions, progress: Arc<dyn Progress + Send + Sync>) -> Result<Self> {
        let endpoint = options.endpoint.trim_end_matches('/').to_string();
        Ok(Self { http: Arc::new(Http::new(HubOptions { endpoint, ..options }, progress)?) })
    }

    pub(super) fn http(&self) -> &Http {
        &self.http
    }

    pub(super) fn repo(&self, kind: RepoKind, id: &str) -> Repo {
        Repo::new(kind, id, &self.http.options().cache_dir)
    }

    /// Address of a file.
    pub(super) fn file_url(&self, repo: &Repo, revision: &str, file: &str) -> String {
        let kind = if repo.kind == RepoKind::Dataset { "datasets/" } else { "" };
        format!("{}/{kind}{}/resolve/{}/{}", self.http.options().endpoint, repo.id, quoted(revision, false), quoted(file, true))
    }

    /// The commit that a revision stands for; `None` where the repository has no such revision, if `optional`.
    pub(super) fn commit(&self, repo: &Repo, revision: &str, optional: bool) -> Result<Option<String>> {
        if is_commit(revision) {
            return Ok(Some(revision.to_string()));
        }
        let known = repo.known_commit(revision);
        if self.http.options().offline {
            return match known {
                None if !optional => Err(self.not_cached(repo, revision, None)),
                known => Ok(known),
            };
        }
        match self.ask_commit(repo, revision) {
            Ok(commit) => {
                repo.remember_commit(revision, &commit)?;
                Ok(Some(commit))
            }
            Err(f) if matches!(f.kind, Kind::Unreachable | Kind::Busy) && known.is_some() => {
                self.http.progress().warn(&format!(
                    "{} ({}); going on with {revision} of {} as it is in the cache",
                    f.problem,
                    f.url,
                    repo.label()
                ));
                Ok(known)
            }
            Err(f) if f.kind == Kind::Missing && optional && f.code != "RepoNotFound" => Ok(None),
            // The cache knows another revision that will do.
            Err(f) if matches!(f.kind, Kind::Unreachable | Kind::Busy) && optional && repo.known_commit("main").is_some() => Ok(None),
            Err(f) => Err(f.into_error(&format!("{} at revision {revision}", repo.label()))),
        }
    }

    fn ask_commit(&self, repo: &Repo, revision: &str) -> Result<String, Failure> {
        let base = format!("{}/api/{}/{}", self.http.options().endpoint, repo.api_kind(), repo.id);
        let url = format!("{base}/revision/{}", quoted(revision, false));
        let given = self.http.json(&url, Patience::Lookup).and_then(|(value, _)| {
            let sha = value["sha"].as_str().filter(|sha| is_commit(sha)).map(str::to_string);
            sha.ok_or_else(|| Failure::new(Kind::Wrong, &url, format!("the commit of {revision} would be {}", value["sha"])))
        });
        let given = match given {
            Ok(commit) => commit,
            // A mirror may serve files alone; each tells its commit.
            Err(f) if f.kind == Kind::Wrong || (f.kind == Kind::Missing && f.code.is_empty()) => {
                let files: &[&str] = match repo.kind {
                    RepoKind::Model => &["config.json"],
                    RepoKind::Dataset => &["README.md", ".gitattributes"],
                };
                let mut told = None;
                for file in files {
                    let reply = self.http.head(&self.file_url(repo, revision, file), Patience::Lookup)?;
                    if matches!(reply.status, 401 | 403) {
                        super::http::check_status(reply, 200)?;
                        continue;
                    }
                    told = told.or(reply.header("x-repo-commit").map(str::to_string));
                }
                told.ok_or(f)?
            }
            Err(f) => return Err(f),
        };
        if is_commit(&given) {
            Ok(given)
        } else {
            Err(Failure::new(Kind::Wrong, &url, format!("the commit of {revision} would be {given:?}")))
        }
    }

    /// What is missing when only the cache may be used.
    pub(super) fn not_cached(&self, repo: &Repo, revision: &str, file: Option<&str>) -> Error {
        let what = file.map(|f| format!("{f} of ")).unwrap_or_default();
        Error::request(
            format!(
                "{what}{} at revision {revision} is not in the cache {}, and HF_HUB_OFFLINE allows no request",
                repo.label(),
                self.http.options().cache_dir.display()
            ),
            "unset HF_HUB_OFFLINE to fetch it, or point HF_HOME to a cache that has it",
        )
    }
}
