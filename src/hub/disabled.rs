//! The hub in a build without it: the same names, and an error that says how to get it.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::{DatasetSpec, FolderSpec, HubOptions, ModelSpec, Snapshot};
use crate::error::{Error, Result};
use crate::progress::Progress;

/// The hub that this build has not got: no value of it exists.
#[derive(Debug, Clone)]
pub struct Hub(Infallible);

/// A dataset of the hub that this build has not got.
#[derive(Debug, Clone)]
pub struct Dataset(Infallible);

impl Hub {
    /// Refuses.
    ///
    /// # Errors
    /// Always.
    pub fn new(_options: HubOptions, _progress: Arc<dyn Progress + Send + Sync>) -> Result<Self> {
        Err(Error::Unsupported {
            by: "this build".into(),
            what: "models and datasets of the hub".into(),
            instead: "build with `--features hub`, or download the files and name their folder".into(),
        })
    }

    /// Never runs.
    ///
    /// # Errors
    /// Never.
    pub fn model(&self, _spec: &ModelSpec) -> Result<Snapshot> {
        match self.0 {}
    }

    /// Never runs.
    ///
    /// # Errors
    /// Never.
    pub fn weights(&self, _snapshot: &Snapshot) -> Result<()> {
        match self.0 {}
    }

    /// Never runs.
    ///
    /// # Errors
    /// Never.
    pub fn weights_folder(&self, _spec: &FolderSpec) -> Result<Snapshot> {
        match self.0 {}
    }

    /// Never runs.
    ///
    /// # Errors
    /// Never.
    pub fn dataset(&self, _spec: &DatasetSpec, _config: Option<&str>, _extensions: &[&[&str]]) -> Result<Dataset> {
        match self.0 {}
    }
}

impl Dataset {
    /// Never runs.
    pub fn names(&self) -> Vec<&Path> {
        match self.0 {}
    }

    /// Never runs.
    pub fn pinned(&self) -> String {
        match self.0 {}
    }

    /// Never runs.
    pub fn config(&self) -> &str {
        match self.0 {}
    }

    /// Never runs.
    ///
    /// # Errors
    /// Never.
    pub fn fetch(&self, _file: usize) -> Result<PathBuf> {
        match self.0 {}
    }

    /// Never runs.
    pub fn provenance(&self) -> Value {
        match self.0 {}
    }
}
