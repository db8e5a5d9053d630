//! Goodfire: a `.pth` or `.pt` file of two linear layers with ReLU between. Read only.
//!
//! ```text
//! z = relu(x encoder_linear.weight^T + encoder_linear.bias);   y = z decoder_linear.weight^T + decoder_linear.bias
//! ```

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::archive::{files, pt_names, read_pt};
use super::foreign::{Foreign, Source};
use super::{Format, ReadOptions};
use crate::dictionary::{Activation, Dictionary, Provenance};
use crate::error::Result;
use crate::hook::{HookPoint, Site};
use crate::kernels::Coder;

/// The dialect.
pub(super) struct Goodfire;

const ID: &str = "goodfire";
const NAME: &str = "Goodfire dictionary";

impl Format for Goodfire {
    fn id(&self) -> &'static str {
        ID
    }

    fn title(&self) -> &'static str {
        "Goodfire"
    }

    fn find(&self, at: &Path) -> Vec<PathBuf> {
        let is_ours = |path: &PathBuf| pt_names(path).is_some_and(|names| names.iter().any(|n| n == "encoder_linear.weight"));
        files(at, &["pt", "pth"]).into_iter().filter(is_ours).collect()
    }

    fn read(&self, at: &Path, _: &ReadOptions) -> Result<Foreign> {
        let (mut t, plain) = read_pt(NAME, at)?;
        if let Some((name, value)) = plain.iter().next() {
            return Err(t.damaged(format!("its entry `{name}` ({}) is not known", value.kind())));
        }
        let coder = Coder {
            w_enc: t.matrix("encoder_linear.weight")?,
            b_enc: t.vector("encoder_linear.bias")?,
            w_dec: t.transposed("decoder_linear.weight")?,
            b_dec: t.vector("decoder_linear.bias")?,
        };
        t.finish()?;
        let dictionary = Dictionary::new(coder, Activation::Relu, false, Provenance::default())?;
        let source = Source { format: ID, files: vec![at.to_path_buf()], config: Value::Null, hook: hook_of(at), ..Default::default() };
        Foreign::new(dictionary, source, Vec::new())
    }

    fn writes(&self) -> bool {
        false
    }
}

/// `Llama-3.1-8B-Instruct-SAE-l19.pth`: the layer whose output it reads.
fn hook_of(path: &Path) -> String {
    let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
    let layer = stem.rsplit('-').next().and_then(|last| last.strip_prefix('l')?.parse().ok());
    layer.map(|layer| HookPoint::block(layer, Site::ResidPost).to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_name_has_the_layer() {
        assert_eq!(hook_of(Path::new("a/Llama-3.1-8B-Instruct-SAE-l19.pth")), "blocks.19.hook_resid_post");
        assert_eq!(hook_of(Path::new("a/sae.pth")), "");
    }
}
