//! OpenAI's `sparse_autoencoder`: one `.pt` file, with the activation's name among the tensors.
//!
//! ```text
//! u = layer_norm(x) where the activation is TopK, else x
//! z = act((u - pre_bias) encoder.weight^T + latent_bias);   y = z decoder.weight^T + pre_bias, with the layer norm undone
//! ```
//!
//! `encoder.weight` is `[F, d]`, `decoder.weight` `[d, F]`. That top-k comes with a layer norm and ReLU without one is how their loader
//! decides it.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::archive::{files, has_extension, item, pt_names, read_pt};
use super::container::pickle::Value;
use super::container::pt::{self, Item};
use super::container::Array;
use super::fit::{fit, Holds};
use super::foreign::{own_config, Foreign, Source};
use super::{Format, ReadOptions, WriteOptions, Written};
use crate::dictionary::{Activation, Dictionary, Provenance, RowNorm};
use crate::error::{Error, Result};
use crate::hook::{HookPoint, Site};
use crate::kernels::Coder;

/// The dialect.
pub(super) struct OpenAi;

const ID: &str = "openai";
const NAME: &str = "OpenAI dictionary";
const EXTENSIONS: &[&str] = &["pt", "pth"];
/// Running figures of their training, which no code depends on.
const STATISTICS: [&str; 3] = ["stats_last_nonzero", "latents_activation_frequency", "latents_mean_square"];

fn is_ours(names: &[String]) -> bool {
    ["pre_bias", "latent_bias"].iter().all(|n| names.iter().any(|m| m == n))
}

impl Format for OpenAi {
    fn id(&self) -> &'static str {
        ID
    }

    fn title(&self) -> &'static str {
        "OpenAI sparse_autoencoder (2024-06)"
    }

    fn find(&self, at: &Path) -> Vec<PathBuf> {
        // A `.pt` file that is named, belongs to nobody else and cannot be read is claimed here, so that reading it says why.
        let unreadable = |path: &Path| path == at && !at.with_file_name("config.json").exists() && pt_names(path).is_none();
        let mine = |path: &PathBuf| unreadable(path) || pt_names(path).is_some_and(|names| is_ours(&names));
        files(at, EXTENSIONS).into_iter().filter(mine).collect()
    }

    fn read(&self, at: &Path, options: &ReadOptions) -> Result<Foreign> {
        let (mut t, mut plain) = read_pt(NAME, at)?;
        let coder = Coder {
            w_enc: t.matrix("encoder.weight")?,
            b_enc: t.vector("latent_bias")?,
            w_dec: t.transposed("decoder.weight")?,
            b_dec: t.vector("pre_bias")?,
        };
        let mut notes = Vec::new();
        let statistics = STATISTICS.map(|name| t.take(name));
        if statistics.iter().any(Option::is_some) {
            notes.push("running figures of their training (last firing, frequencies, mean squares) are left behind".into());
        }
        let name = plain.remove("activation").unwrap_or(Value::Text("ReLU".into()));
        let state = plain.remove("activation_state_dict").unwrap_or(Value::Dict(Vec::new()));
        if let Some((name, value)) = plain.iter().next() {
            return Err(t.damaged(format!("its entry `{name}` ({}) is not known", value.kind())));
        }
        let refuse = |what: String| Err(Error::Unsupported { by: "a dictionary".into(), what, instead: "TopK and ReLU are read".into() });
        let (activation, config) = match name.text() {
            Some("TopK") => {
                let k = state.get("k").and_then(Value::int).and_then(|k| usize::try_from(k).ok());
                let k = k.ok_or_else(|| t.damaged("its activation is TopK, and its state has no k"))?;
                let post = state.get("postact_fn").and_then(Value::text).unwrap_or("ReLU");
                if post != "ReLU" {
                    return refuse(format!("top-k codes through `{post}`, which may be negative, of {}", at.display()));
                }
                (Activation::TopK { k }, json!({ "activation": "TopK", "k": k, "postact_fn": post }))
            }
            Some("ReLU") => (Activation::Relu, json!({ "activation": "ReLU" })),
            other => return refuse(format!("the activation `{}` of {}", other.unwrap_or("?"), at.display())),
        };
        if let (Some(asked), Some(k)) = (options.k, activation.k()) {
            if asked != k {
                return Err(Error::request(format!("k is {k} in {}, not {asked}", at.display()), "leave the k out"));
            }
        }
        t.finish()?;
        let normed = activation.k().is_some();
        let mut dictionary = Dictionary::new(coder, activation.clone(), true, Provenance::default())?;
        dictionary.row_norm = normed.then_some(RowNorm::LayerNorm);
        let dictionary = dictionary.with_activation(activation)?;
        let source = Source { format: ID, files: vec![at.to_path_buf()], config, hook: hook_of(at), ..Default::default() };
        Foreign::new(dictionary, source, notes)
    }

    fn write(&self, dictionary: &Dictionary, out: &Path, _: &WriteOptions) -> Result<Written> {
        let refuse = |what: String, instead: &str| Err(Error::Unsupported { by: self.title().into(), what, instead: instead.into() });
        let mut notes = Vec::new();
        let (name, state) = match (&dictionary.activation, dictionary.row_norm) {
            (Activation::TopK { k }, Some(RowNorm::LayerNorm)) => {
                let text = |t: &str| Value::Text(t.into());
                ("TopK", vec![(text("k"), Value::Int(*k as i64)), (text("postact_fn"), text("ReLU"))])
            }
            (Activation::Relu, None) => ("ReLU", Vec::new()),
            (Activation::TopK { .. }, _) => {
                return refuse(
                    "top-k codes of rows without a layer norm: its reader puts one before every top-k".into(),
                    "export to saelens",
                )
            }
            (Activation::Relu, _) => return refuse("ReLU codes of normed rows: its reader has no norm there".into(), "export to saelens"),
            (other, _) => return refuse(format!("the activation {other:?}: it knows TopK and ReLU"), "export to saelens"),
        };
        let holds = Holds { centred: Some(true), row_norm: true, ..Default::default() };
        let d = fit(dictionary, self.title(), holds, &mut notes)?;
        let (c, n) = (&d.coder, d.d_sae());
        let items = [
            ("pre_bias", item(&c.b_dec)?),
            ("latent_bias", item(&c.b_enc)?),
            ("stats_last_nonzero", Item::Tensor(Array::from_i64(vec![n], &vec![0; n])?)),
            ("latents_activation_frequency", Item::Tensor(Array::from_i64(vec![n], &vec![1; n])?)),
            ("latents_mean_square", Item::Tensor(Array::from_f32(vec![n], &vec![0.0; n])?)),
            ("encoder.weight", item(&c.w_enc)?),
            ("decoder.weight", item(&c.w_dec.t()?)?),
            ("activation", Item::Plain(Value::Text(name.into()))),
            ("activation_state_dict", Item::Plain(Value::Dict(state))),
        ];
        // Theirs are `<layer>.pt`.
        let layer = d.provenance.hook.parse::<HookPoint>().map(|p| p.layer.to_string());
        let path = out.join(format!("{}.pt", layer.unwrap_or_else(|_| "autoencoder".into())));
        pt::save(&path, &items)?;
        notes.push("hook point and host are not in the file: OpenAI tells them by its folder and name".into());
        if own_config(dictionary, ID).is_some() {
            notes.push("running figures of training (last firing, frequencies, mean squares) are written as none".into());
        }
        Ok(Written { path, notes })
    }
}

/// `resid_post_mlp_v5_32k/autoencoders/8.pt`: the location and the layer.
fn hook_of(path: &Path) -> String {
    let layer = path.file_stem().and_then(|s| s.to_str()).and_then(|s| s.parse().ok()).filter(|_| has_extension(path, EXTENSIONS));
    let folders = path.ancestors().skip(1).take(2).filter_map(|p| p.file_name()?.to_str().map(str::to_string));
    let site = folders.into_iter().find_map(|folder| {
        let sites = [
            ("resid_delta_attn", Site::AttnOut),
            ("resid_delta_mlp", Site::MlpOut),
            ("resid_post_attn", Site::ResidMid),
            ("resid_post_mlp", Site::ResidPost),
            ("mlp_post_act", Site::MlpPost),
        ];
        sites.iter().find(|(name, _)| folder.starts_with(name)).map(|(_, site)| *site)
    });
    match (layer, site) {
        (Some(layer), Some(site)) => HookPoint::block(layer, site).to_string(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn their_folders_name_the_hook_point() {
        assert_eq!(hook_of(Path::new("a/resid_post_mlp_v5_32k/autoencoders/8.pt")), "blocks.8.hook_resid_post");
        assert_eq!(hook_of(Path::new("resid_delta_attn_v5_128k/autoencoders/0.pt")), "blocks.0.hook_attn_out");
        assert_eq!(hook_of(Path::new("x/5.pt")), "");
    }
}
