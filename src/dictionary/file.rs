//! The dictionary on disk: `dictionary.json` + `dictionary.safetensors` in a folder. docs/dictionary.md is the specification.
//!
//! The JSON names the hash of the safetensors, and is renamed into place last: a folder with a `dictionary.json` is whole.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Activation, Dictionary, InputTransform, Provenance, RowNorm};
use crate::artefact;
use crate::error::{Error, Result};
use crate::kernels::Coder;

/// The version this code writes; it reads no other.
pub const FORMAT_VERSION: u32 = 1;
/// The `kind` of `dictionary.json`.
pub const KIND: &str = "lapidary-dictionary";

const JSON: &str = "dictionary.json";
const WEIGHTS: &str = "dictionary.safetensors";

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    kind: String,
    version: u32,
    d_in: usize,
    d_out: usize,
    d_sae: usize,
    activation: Activation,
    /// Does the encoder subtract b_dec?
    centred: bool,
    /// Scale of the input transform; its shift is a tensor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    input_scale: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    row_norm: Option<RowNorm>,
    /// Bound of codes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    softcap: Option<f32>,
    weights_sha256: String,
    provenance: Provenance,
}

impl Dictionary {
    /// Writes the two files into `dir`, which is made if it is not there. Other files in it are left alone.
    ///
    /// # Errors
    /// I/O errors; shapes that do not agree.
    pub fn save(&self, dir: &Path) -> Result<()> {
        self.check()?;
        fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
        let mut tensors: Vec<(&str, &Tensor)> =
            vec![("w_enc", &self.coder.w_enc), ("b_enc", &self.coder.b_enc), ("w_dec", &self.coder.w_dec), ("b_dec", &self.coder.b_dec)];
        let optional = [
            ("selection_scale", self.selection_scale.as_ref()),
            ("threshold", self.thresholds.as_ref()),
            ("magnitude_gain", self.magnitude.as_ref().map(|m| &m.0)),
            ("magnitude_bias", self.magnitude.as_ref().map(|m| &m.1)),
            ("input_shift", self.input_transform.as_ref().map(|t| &t.shift)),
            ("w_skip", self.skip.as_ref()),
        ];
        tensors.extend(optional.into_iter().filter_map(|(name, t)| Some((name, t?))));
        let tensors: Vec<(String, Tensor)> = tensors
            .into_iter()
            .map(|(name, t)| Ok((name.to_string(), t.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?)))
            .collect::<Result<_>>()?;
        let bytes = safetensors::serialize(tensors.iter().map(|(n, t)| (n.as_str(), t)), None)
            .map_err(|e| Error::format("dictionary", dir.join(WEIGHTS), e.to_string(), "report this: a fresh dictionary must serialise"))?;
        let header = Header {
            kind: KIND.into(),
            version: FORMAT_VERSION,
            d_in: self.d_in(),
            d_out: self.d_out(),
            d_sae: self.d_sae(),
            activation: self.activation.clone(),
            centred: self.centred,
            input_scale: self.input_transform.as_ref().map(|t| t.scale),
            row_norm: self.row_norm,
            softcap: self.softcap,
            weights_sha256: format!("{:x}", Sha256::digest(&bytes)),
            provenance: self.provenance.clone(),
        };
        let mut json = serde_json::to_vec_pretty(&header).expect("a header is plain data with string keys");
        json.push(b'\n');
        artefact::write(dir, WEIGHTS, &bytes)?;
        artefact::write(dir, JSON, &json)
    }

    /// Reads a dictionary's folder onto the CPU, checking version, shapes and the hash of the weights.
    ///
    /// # Errors
    /// Missing or damaged files, another version, shapes that do not agree, NaN in the weights.
    pub fn load(dir: &Path) -> Result<Self> {
        let json_path = dir.join(JSON);
        let json = fs::read(&json_path).map_err(|e| Error::io("read", &json_path, e))?;
        let bad = |problem: String, help: &str| Error::format("dictionary", &json_path, problem, help);
        let value: serde_json::Value = serde_json::from_slice(&json).map_err(|e| bad(e.to_string(), "train or import it again"))?;
        if value["kind"] != KIND {
            return Err(bad(format!("its kind is {}, not \"{KIND}\"", value["kind"]), "point to the folder of a Lapidary dictionary"));
        }
        if value["version"] != FORMAT_VERSION {
            return Err(bad(
                format!("its format version is {}, this build reads {FORMAT_VERSION}", value["version"]),
                "use the version of Lapidary that wrote it, or train it again",
            ));
        }
        let header: Header = serde_path_to_error::deserialize(value).map_err(|e| bad(e.to_string(), "train or import it again"))?;
        let path = dir.join(WEIGHTS);
        let bytes = fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
        let damaged = |problem: String| {
            Error::format("dictionary", &path, problem, "the file changed after it was written: train or import it again")
        };
        let sha256 = format!("{:x}", Sha256::digest(&bytes));
        if sha256 != header.weights_sha256 {
            return Err(damaged(format!("its sha256 is {sha256}, dictionary.json says {}", header.weights_sha256)));
        }
        let mut tensors: HashMap<String, Tensor> =
            candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).map_err(|e| damaged(e.to_string()))?;
        let mut take = |name: &str| tensors.remove(name);
        let mut need = |name: &str| take(name).ok_or_else(|| damaged(format!("tensor `{name}` is missing")));
        let coder = Coder { w_enc: need("w_enc")?, b_enc: need("b_enc")?, w_dec: need("w_dec")?, b_dec: need("b_dec")? };
        let selection_scale = take("selection_scale");
        let thresholds = take("threshold");
        let magnitude = match (take("magnitude_gain"), take("magnitude_bias")) {
            (Some(gain), Some(bias)) => Some((gain, bias)),
            (None, None) => None,
            _ => return Err(damaged("gain and bias of magnitudes must come together".into())),
        };
        let input_transform = match (take("input_shift"), header.input_scale) {
            (Some(shift), Some(scale)) => Some(InputTransform { shift, scale }),
            (None, None) => None,
            _ => return Err(damaged("input shift and scale must come together".into())),
        };
        let skip = take("w_skip");
        if let Some(name) = tensors.keys().min() {
            return Err(damaged(format!("tensor `{name}` is unknown to this version")));
        }
        let dictionary = Self {
            coder,
            activation: header.activation,
            centred: header.centred,
            selection_scale,
            thresholds,
            magnitude,
            softcap: header.softcap,
            input_transform,
            row_norm: header.row_norm,
            skip,
            provenance: header.provenance,
            prepared: OnceLock::new(),
            elsewhere: None,
        };
        dictionary.check()?;
        let found = (dictionary.d_in(), dictionary.d_out(), dictionary.d_sae());
        if found != (header.d_in, header.d_out, header.d_sae) {
            return Err(damaged(format!(
                "d_in, d_out, d_sae are {found:?}, dictionary.json says {:?}",
                (header.d_in, header.d_out, header.d_sae)
            )));
        }
        for (name, t) in [
            ("w_enc", &dictionary.coder.w_enc),
            ("b_enc", &dictionary.coder.b_enc),
            ("w_dec", &dictionary.coder.w_dec),
            ("b_dec", &dictionary.coder.b_dec),
        ] {
            // A sum is NaN or infinite when any part is (or when finite weights overflow it, which is as useless).
            if !t.abs()?.sum_all()?.to_scalar::<f32>()?.is_finite() {
                return Err(damaged(format!("`{name}` holds NaN or infinity")));
            }
        }
        Ok(dictionary)
    }
}
