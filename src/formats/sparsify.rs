//! sparsify (EleutherAI): `cfg.json` + `sae.safetensors`, in a folder named after the module that it reads.
//!
//! ```text
//! u = x - b_dec, or x where `transcode`;   z = top-k of relu(u encoder.weight^T + encoder.bias);   y = z W_dec + b_dec (+ x W_skip^T)
//! ```
//!
//! `num_latents` 0 means `d_in * expansion_factor`. The bias conventions are the opposite of what SAELens' own reader of these files
//! assumes (it reads them wrongly).

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::json;

use super::fit::{fit, Holds};
use super::foreign::{own_config, Foreign, Source};
use super::names::{hook_of, module_of};
use super::tensors::{peek_json, read_json, safetensors_names, typed, write_json, write_safetensors, Tensors};
use super::{Format, ReadOptions, WriteOptions, Written};
use crate::dictionary::{Activation, Dictionary, Provenance};
use crate::error::{Error, Result};
use crate::kernels::Coder;

/// The dialect.
pub(super) struct Sparsify;

const ID: &str = "sparsify";
const NAME: &str = "sparsify dictionary";
const CONFIG: &str = "cfg.json";
const WEIGHTS: &str = "sae.safetensors";

/// The keys that decide the function; the others are kept in the provenance.
#[derive(Debug, Deserialize)]
struct Config {
    #[serde(default = "topk")]
    activation: String,
    #[serde(default)]
    expansion_factor: usize,
    #[serde(default)]
    num_latents: usize,
    k: usize,
    #[serde(default)]
    skip_connection: bool,
    #[serde(default)]
    transcode: bool,
    d_in: usize,
}

fn topk() -> String {
    "topk".into()
}

impl Format for Sparsify {
    fn id(&self) -> &'static str {
        ID
    }

    fn title(&self) -> &'static str {
        "sparsify 1.3.3"
    }

    fn find(&self, at: &Path) -> Vec<PathBuf> {
        let folder = match at.file_name() {
            Some(name) if at.is_file() && name == WEIGHTS => at.parent().unwrap_or(at),
            _ => at,
        };
        let is_ours = peek_json(&folder.join(CONFIG)).is_some_and(|c| c["k"].is_number() && c.get("architecture").is_none())
            && safetensors_names(&folder.join(WEIGHTS)).is_some_and(|names| names.iter().any(|n| n == "encoder.weight"));
        if is_ours {
            vec![folder.to_path_buf()]
        } else {
            Vec::new()
        }
    }

    fn read(&self, at: &Path, _: &ReadOptions) -> Result<Foreign> {
        let (json_path, path) = (at.join(CONFIG), at.join(WEIGHTS));
        let config = read_json(NAME, &json_path)?;
        let c: Config = typed(NAME, &json_path, &config)?;
        if c.activation != "topk" {
            return Err(Error::Unsupported {
                by: "a dictionary".into(),
                what: format!("the activation `{}` of {}", c.activation, json_path.display()),
                instead: "only topk has a counterpart here (groupmax takes one latent of each of k groups)".into(),
            });
        }
        let mut t = Tensors::safetensors(NAME, &path)?;
        let coder = Coder {
            w_enc: t.matrix("encoder.weight")?,
            b_enc: t.vector("encoder.bias")?,
            w_dec: t.matrix("W_dec")?,
            b_dec: t.vector("b_dec")?,
        };
        let d_sae = if c.num_latents > 0 { c.num_latents } else { c.d_in.saturating_mul(c.expansion_factor) };
        if coder.w_enc.dims() != [d_sae, c.d_in] {
            let found = coder.w_enc.dims();
            return Err(t.damaged(format!("`encoder.weight` is {found:?}, {CONFIG} says {d_sae} latents over {}", c.d_in)));
        }
        let skip = if c.skip_connection { Some(t.matrix("W_skip")?) } else { None };
        t.finish()?;
        let mut dictionary = Dictionary::new(coder, Activation::TopK { k: c.k }, !c.transcode, Provenance::default())?;
        dictionary.skip = skip;
        dictionary.check()?;
        let folder = at.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let source = Source { format: ID, files: vec![json_path, path], config, hook: hook_of(&folder), ..Default::default() };
        Foreign::new(dictionary, source, Vec::new())
    }

    fn write(&self, dictionary: &Dictionary, out: &Path, _: &WriteOptions) -> Result<Written> {
        let mut notes = Vec::new();
        let Activation::TopK { k } = dictionary.activation else {
            return Err(Error::Unsupported {
                by: self.title().into(),
                what: format!("the activation {:?}: it knows top-k alone", dictionary.activation),
                instead: "export to saelens, or make it a top-k dictionary with --activation topk:K (which changes its codes)".into(),
            });
        };
        // A transcoder is said to be one; any other dictionary gets the form with b_dec subtracted.
        let was = own_config(dictionary, ID).is_some_and(|c| c["transcode"] == true);
        let transcode = !dictionary.centred && (was || dictionary.skip.is_some());
        let holds = Holds { centred: Some(!transcode), skip: true, ..Default::default() };
        let d = fit(dictionary, self.title(), holds, &mut notes)?;
        let c = &d.coder;
        let mut tensors = vec![
            ("encoder.weight", c.w_enc.clone()),
            ("encoder.bias", c.b_enc.clone()),
            ("W_dec", c.w_dec.clone()),
            ("b_dec", c.b_dec.clone()),
        ];
        tensors.extend(d.skip.clone().map(|skip| ("W_skip", skip)));
        let unit = d.atom_norms()?.iter().all(|n| (n - 1.0).abs() < 1e-4);
        let config = json!({
            "activation": "topk", "expansion_factor": (d.d_sae() / d.d_in()).max(1), "normalize_decoder": unit, "num_latents": d.d_sae(),
            "k": k, "multi_topk": false, "skip_connection": d.skip.is_some(), "transcode": transcode, "d_in": d.d_in(),
        });
        write_safetensors(out, WEIGHTS, &tensors)?;
        write_json(out, CONFIG, &config, false)?;
        let module = module_of(&d.provenance.hook);
        notes.push(match module {
            Some(module) => {
                format!("sparsify finds a dictionary by its folder: call it `{module}`; hook point and host are not in the files")
            }
            None => "hook point and host are not in the files: sparsify tells them by the folder's name".into(),
        });
        Ok(Written { path: out.to_path_buf(), notes })
    }
}
