//! Gemma Scope: `params.npz`, JumpReLU. (Gemma Scope 2 is safetensors, and another file.)
//!
//! ```text
//! h = x W_enc + b_enc;   z = relu(h) where h > threshold;   y = z W_dec + b_dec            W_enc [d, F], W_dec [F, d]
//! ```
//!
//! `b_dec` is not subtracted from the input. Hook point and host are told by the repository and the folders alone.

use std::path::{Path, PathBuf};

use candle_core::Tensor;
use serde_json::json;

use super::archive::{files, npz_names, read_npz};
use super::container::{npz, Array};
use super::fit::{fit, Holds};
use super::foreign::{Foreign, Source};
use super::saelens::with_thresholds;
use super::{Format, ReadOptions, WriteOptions, Written};
use crate::dictionary::{Activation, Dictionary, Provenance};
use crate::error::{Error, Result};
use crate::hook::{HookPoint, Site};
use crate::kernels::Coder;

/// The dialect.
pub(super) struct GemmaScope;

const ID: &str = "gemma-scope";
const NAME: &str = "Gemma Scope dictionary";
const FILE: &str = "params.npz";

impl Format for GemmaScope {
    fn id(&self) -> &'static str {
        ID
    }

    fn title(&self) -> &'static str {
        "Gemma Scope"
    }

    fn find(&self, at: &Path) -> Vec<PathBuf> {
        let is_ours = |path: &PathBuf| match npz_names(path) {
            Some(names) => ["W_enc", "W_dec", "threshold"].iter().all(|n| names.iter().any(|m| m.eq_ignore_ascii_case(n))),
            // A file that is named and cannot be read is claimed, so that reading it says why.
            None => path == at,
        };
        files(at, &["npz"]).into_iter().filter(is_ours).collect()
    }

    fn read(&self, at: &Path, _: &ReadOptions) -> Result<Foreign> {
        // Some files say `w_enc`.
        let mut t = read_npz(NAME, at, |name| name.to_lowercase())?;
        let coder =
            Coder { w_enc: t.transposed("w_enc")?, b_enc: t.vector("b_enc")?, w_dec: t.matrix("w_dec")?, b_dec: t.vector("b_dec")? };
        let thresholds = t.vector("threshold")?.to_vec1::<f32>()?;
        t.finish()?;
        let dictionary = Dictionary::new(coder, Activation::Relu, false, Provenance::default())?;
        let (dictionary, activation) = with_thresholds(dictionary, &thresholds)?;
        let dictionary = dictionary.with_activation(activation)?;
        let (hook, host) = named(at);
        let folder = at.parent().and_then(Path::file_name).map(|n| n.to_string_lossy().into_owned());
        let source =
            Source { format: ID, files: vec![at.to_path_buf()], config: json!({ "folder": folder }), hook, host, ..Default::default() };
        Foreign::new(dictionary, source, Vec::new())
    }

    fn write(&self, dictionary: &Dictionary, out: &Path, _: &WriteOptions) -> Result<Written> {
        let mut notes = Vec::new();
        let d = fit(dictionary, self.title(), Holds { centred: Some(false), ..Default::default() }, &mut notes)?;
        let thresholds = match (&d.activation, &d.thresholds) {
            (Activation::Relu, _) => Tensor::zeros(d.d_sae(), candle_core::DType::F32, d.device())?,
            (Activation::Threshold { threshold }, _) => Tensor::full(*threshold, d.d_sae(), d.device())?,
            (Activation::JumpRelu, Some(thresholds)) => thresholds.clone(),
            (other, _) => {
                return Err(Error::Unsupported {
                    by: self.title().into(),
                    what: format!("the activation {other:?}: it knows thresholds alone"),
                    instead: "export to saelens, or make it a threshold dictionary with --activation threshold:X (which changes its codes)"
                        .into(),
                })
            }
        };
        let array = Array::from_tensor;
        let arrays = [
            ("W_enc", array(&d.coder.w_enc.t()?)?),
            ("W_dec", array(&d.coder.w_dec)?),
            ("b_enc", array(&d.coder.b_enc)?),
            ("b_dec", array(&d.coder.b_dec)?),
            ("threshold", array(&thresholds)?),
        ];
        let path = out.join(FILE);
        npz::save(&path, &arrays)?;
        notes.push(
            "hook point and host are not in the file: Gemma Scope tells them by repository and folder (layer_12/width_16k/average_l0_82)"
                .into(),
        );
        Ok(Written { path, notes })
    }
}

/// Hook point and host by `gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82/params.npz`, where the folders are those of the hub.
fn named(path: &Path) -> (String, Option<String>) {
    let parts: Vec<&str> = path.iter().filter_map(|p| p.to_str()).collect();
    let layer = parts.iter().rev().find_map(|p| p.strip_prefix("layer_")?.parse().ok());
    let repository = parts.iter().rev().find_map(|p| p.rsplit("--").next().filter(|name| name.starts_with("gemma-scope-")));
    let Some(words) = repository.map(|r| r.split('-').skip(2).collect::<Vec<_>>()) else { return (String::new(), None) };
    let site = words.iter().find_map(|word| match *word {
        "res" => Some(Site::ResidPost),
        "mlp" => Some(Site::MlpOut),
        "att" => Some(Site::AttnZ),
        _ => None,
    });
    let hook = layer.zip(site).map(|(layer, site)| HookPoint::block(layer, site).to_string()).unwrap_or_default();
    let host = match words.as_slice() {
        [size, "it", ..] => Some(format!("google/gemma-2-{size}-it")),
        [size, "pt", ..] => Some(format!("google/gemma-2-{size}")),
        _ => None,
    };
    (hook, host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hubs_folders_name_hook_point_and_host() {
        let at = |p: &str| named(Path::new(p));
        let (hook, host) = at("x/models--google--gemma-scope-2b-pt-res/snapshots/abc/layer_12/width_16k/average_l0_82/params.npz");
        assert_eq!((hook.as_str(), host.as_deref()), ("blocks.12.hook_resid_post", Some("google/gemma-2-2b")));
        let (hook, host) = at("gemma-scope-9b-it-att/layer_3/width_16k/params.npz");
        assert_eq!((hook.as_str(), host.as_deref()), ("blocks.3.attn.hook_z", Some("google/gemma-2-9b-it")));
        assert_eq!(at("layer_3/params.npz"), (String::new(), None));
    }
}
