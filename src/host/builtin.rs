//! The built-in host: a small trained model carried in the binary, so that everything can be tried without a download.
//!
//! Not for: how it is trained (its recipe is an example) or the language it speaks (`corpus::fable`).

use super::{HostModel, LoadOptions};
use crate::error::{Error, Result};

/// The name under which it is loaded.
pub(super) const FABLE: &str = "fable";

/// The built-in host from its embedded bytes.
///
/// To switch it on once `datasets/fable/` exists, the body becomes
/// `super::load_bytes(FABLE, include_bytes!("../../datasets/fable/config.json"), include_bytes!("../../datasets/fable/model.safetensors"), options)`.
pub(super) fn fable(_options: &LoadOptions) -> Result<Box<dyn HostModel>> {
    Err(Error::request("this build carries no built-in host", "pass a folder with config.json and model.safetensors"))
}
