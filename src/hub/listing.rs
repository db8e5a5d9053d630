//! The files of a commit: sizes and hashes as the hub states them. A commit's list never changes, so it is kept beside the cache.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::cache::{is_safe_name, Repo};
use super::enabled::Hub;
use super::http::{Failure, Kind, Patience};
use crate::error::Result;

/// A list longer than this many pages is no list.
const MOST_PAGES: usize = 1000;

/// What the hub says of a file; absent where it does not say. The fields are `huggingface_hub`'s.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Git's name of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blob_id: Option<String>,
    /// Of a large file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lfs_sha256: Option<String>,
}

/// Files by path.
pub(super) type Files = BTreeMap<String, Entry>;

#[derive(Serialize, Deserialize)]
struct Kept {
    format_version: u32,
    files: Files,
}

impl Hub {
    /// The files of a commit; `None` where the server keeps no lists, or is out of reach.
    pub(super) fn listing(&self, repo: &Repo, commit: &str) -> Result<Option<Files>, Failure> {
        let kept = repo.known_listing(commit).and_then(|json| serde_json::from_slice::<Kept>(&json).ok());
        if let Some(kept) = kept.filter(|k| k.format_version == 1 && k.files.keys().all(|name| is_safe_name(name))) {
            return Ok(Some(kept.files));
        }
        if self.http().options().offline {
            return Ok(None);
        }
        let base = format!("{}/api/{}/{}", self.http().options().endpoint, repo.api_kind(), repo.id);
        let files = match self.tree(&format!("{base}/tree/{commit}?recursive=true")) {
            Ok(files) => files,
            Err(f) if f.kind == Kind::Missing => match self.http().json(&format!("{base}/revision/{commit}"), Patience::Full) {
                Ok((value, _)) => match siblings(&value) {
                    Some(files) => files,
                    None => return Ok(None),
                },
                Err(f) if f.kind == Kind::Missing => return Ok(None),
                Err(f) => return Err(f),
            },
            Err(f) => return Err(f),
        };
        if let Ok(json) = serde_json::to_vec_pretty(&Kept { format_version: 1, files: files.clone() }) {
            // A cache that cannot be written is told where a file must be.
            let _ = repo.remember_listing(commit, &json);
        }
        Ok(Some(files))
    }

    fn tree(&self, url: &str) -> Result<Files, Failure> {
        let mut files = Files::new();
        let mut next = Some(url.to_string());
        for _ in 0..MOST_PAGES {
            let Some(url) = next else { return Ok(files) };
            let (page, link) = self.http().json(&url, Patience::Full)?;
            let Some(entries) = page.as_array() else {
                return Err(Failure::new(Kind::Wrong, &url, "the list of files is no list"));
            };
            for entry in entries.iter().filter(|e| e["type"] != "directory") {
                let Some(path) = entry["path"].as_str().filter(|p| is_safe_name(p)) else {
                    return Err(Failure::new(Kind::Wrong, &url, format!("the list of files names {}", entry["path"])));
                };
                let text = |v: &Value| v.as_str().map(str::to_string);
                let size = entry["lfs"]["size"].as_u64().or(entry["size"].as_u64());
                let known = Entry { size, blob_id: text(&entry["oid"]), lfs_sha256: text(&entry["lfs"]["oid"]) };
                files.insert(path.to_string(), known);
            }
            next = link;
        }
        Err(Failure::new(Kind::Wrong, url, format!("the list of files goes on for more than {MOST_PAGES} pages")))
    }
}

/// The shorter list that comes with a revision: names, seldom more.
fn siblings(revision: &Value) -> Option<Files> {
    let list = revision.get("siblings")?.as_array()?;
    let names = list.iter().filter_map(|s| s["rfilename"].as_str()).filter(|name| is_safe_name(name));
    let files: Files = names.map(|name| (name.to_string(), Entry::default())).collect();
    (!files.is_empty()).then_some(files)
}
