//! Models and datasets by hub id: found, fetched, checked, and kept in the cache that Python's `huggingface_hub` uses.
//!
//! ```text
//! id@revision --> commit (resolve.rs) --> list of files (listing.rs) --> which ones (model.rs, dataset.rs, folder.rs)
//!             --> each file: cache.rs, else HEAD + GET (http.rs, download.rs), checked (verify.rs)
//! ```
//!
//! A revision is resolved to a commit first and everything is read at that commit. Nothing is put under its final name in the cache
//! before its status, size, hash (where the hub gives one) and form are checked, and what is found there broken is fetched again.
//! Only hf-hub's cache paths are used: its downloads check neither status nor length.
//!
//! Not for: what a model's files mean (`host`), how documents are cut (`corpus`), or the environment: [`HubOptions`] are filled by
//! whoever calls.

mod spec;

#[cfg(feature = "hub")]
mod cache;
#[cfg(feature = "hub")]
mod dataset;
#[cfg(not(feature = "hub"))]
mod disabled;
#[cfg(feature = "hub")]
mod download;
#[cfg(feature = "hub")]
mod enabled;
#[cfg(feature = "hub")]
mod folder;
#[cfg(feature = "hub")]
mod http;
#[cfg(feature = "hub")]
mod listing;
#[cfg(feature = "hub")]
mod model;
#[cfg(feature = "hub")]
mod splits;
#[cfg(feature = "hub")]
mod verify;

#[cfg(not(feature = "hub"))]
pub use disabled::{Dataset, Hub};
pub use spec::{is_commit, DatasetSpec, FolderSpec, ModelSpec};
#[cfg(feature = "hub")]
pub use {dataset::Dataset, enabled::Hub};

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// The public hub.
pub const ENDPOINT: &str = "https://huggingface.co";

/// Where the hub is, where its cache lies, and how patient to be.
#[derive(Clone, PartialEq)]
pub struct HubOptions {
    /// Address of the hub, without a slash at the end.
    pub endpoint: String,
    /// Folder of the cache, as `huggingface_hub` lays it out.
    pub cache_dir: PathBuf,
    /// Sent to the endpoint and to nobody else; never shown or written.
    pub token: Option<String>,
    /// Use the cache alone; send nothing.
    pub offline: bool,
    /// How often a request is sent again after 429, 5xx, or a connection that fails.
    pub retries: u32,
    /// Wait before the first of them; it doubles each time. A server's Retry-After wins.
    pub base_wait: Duration,
    /// A connection that is silent for so long is given up.
    pub timeout: Duration,
    /// Address of an HTTP proxy.
    pub proxy: Option<String>,
    /// Hosts that are reached without it: names, suffixes such as `.example.org`, or `*`.
    pub no_proxy: Vec<String>,
}

impl HubOptions {
    /// The public hub with a cache at `cache_dir`, without a token.
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        Self {
            endpoint: ENDPOINT.to_string(),
            cache_dir: cache_dir.into(),
            token: None,
            offline: false,
            retries: 5,
            base_wait: Duration::from_millis(500),
            timeout: Duration::from_secs(30),
            proxy: None,
            no_proxy: Vec::new(),
        }
    }
}

impl fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubOptions")
            .field("endpoint", &self.endpoint)
            .field("cache_dir", &self.cache_dir)
            .field("token", &self.token.as_ref().map(|_| "(hidden)"))
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

/// A model's files on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Hub id.
    pub id: String,
    /// The commit that every file is of, 40 hex digits.
    pub commit: String,
    /// Folder with the files.
    pub dir: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_not_shown() {
        let options = HubOptions { token: Some("hf_secret".into()), ..HubOptions::new("x") };
        let shown = format!("{options:?}");
        assert!(!shown.contains("secret") && shown.contains("hidden"), "{shown}");
    }
}
