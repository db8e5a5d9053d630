//! Models one can look inside: a Hugging Face folder becomes a [`HostModel`] whose forward pass offers every hook point to a
//! [`Tap`], which looks (capture) or replaces (splice, steer, ablate).
//!
//! ```text
//! config.json --config.rs--> family/NAME.rs --> spec.rs, rope.rs (what to compute) ----+
//! *.safetensors --weights.rs--> family/NAME.rs (names, layouts) --> layers.rs (parameters) --+--> decoder.rs (the forward)
//! ```
//!
//! One decoder serves every family: a family file only says how its configuration and its tensor names map to the specification.
//! Not for: tokenizers (`corpus`), where activations go (`harvest`), or anything that knows what a dictionary is.

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::hook::HookPoint;

mod builtin;
mod config;
mod cpu;
mod decoder;
mod family;
mod layers;
mod math;
mod rope;
mod spec;
mod tap;
mod weights;

pub use tap::{Ablate, Capture, NoTap, Pair, Splice, Steer, Tap};

/// A batch of token ids.
#[derive(Debug, Clone)]
pub struct Tokens {
    /// Token ids, `[b, t]`, u32. Positions are 0..t whatever the mask says.
    pub ids: Tensor,
    /// `[b, t]`, u8: 1 = a real token, 0 = padding that no position may attend to. `None` = all real.
    pub mask: Option<Tensor>,
}

impl Tokens {
    /// A batch of rows of equal length without padding.
    ///
    /// # Errors
    /// When there is no row, a row is empty, or the lengths differ.
    pub fn new(rows: &[Vec<u32>], device: &Device) -> Result<Self> {
        let t = rows.first().map_or(0, Vec::len);
        if t == 0 || rows.iter().any(|row| row.len() != t) {
            return Err(Error::request(
                format!("a batch of {} rows that are empty or of different lengths", rows.len()),
                "pass at least one row, all of the same length, or pad them with `Tokens::padded`",
            ));
        }
        let flat: Vec<u32> = rows.concat();
        Ok(Self { ids: Tensor::from_vec(flat, (rows.len(), t), device)?, mask: None })
    }

    /// A batch of rows of any lengths, padded on the right with `pad` and masked there. Real positions of a causal model do not
    /// notice.
    ///
    /// # Errors
    /// When there is no row or all rows are empty.
    pub fn padded(rows: &[Vec<u32>], pad: u32, device: &Device) -> Result<Self> {
        let t = rows.iter().map(Vec::len).max().unwrap_or(0);
        if t == 0 {
            return Err(Error::request("a batch without a single token", "pass at least one row with one token"));
        }
        let (mut ids, mut mask) = (Vec::with_capacity(rows.len() * t), Vec::with_capacity(rows.len() * t));
        for row in rows {
            ids.extend(row.iter().copied().chain(std::iter::repeat_n(pad, t - row.len())));
            mask.extend((0..t).map(|i| u8::from(i < row.len())));
        }
        let shape = (rows.len(), t);
        let mask = if mask.contains(&0) { Some(Tensor::from_vec(mask, shape, device)?) } else { None };
        Ok(Self { ids: Tensor::from_vec(ids, shape, device)?, mask })
    }
}

/// The name of an architecture family. (An alias, so that serde does not take the field for something borrowed from its input.)
pub type FamilyName = &'static str;

/// What a host is: shapes, and the provenance that every artefact made from it carries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostInfo {
    /// Folder name, or the name of the built-in host.
    pub name: String,
    /// Architecture family, as in [`supported_families`].
    #[serde(deserialize_with = "family_name")]
    pub family: FamilyName,
    /// Number of blocks.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Number of query heads.
    pub n_heads: usize,
    /// Width of one head.
    pub d_head: usize,
    /// Number of MLP neurons of a block.
    pub d_mlp: usize,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Longest context, in tokens.
    pub n_context: usize,
    /// What the forward computes in: "f32" or "bf16".
    pub dtype: String,
    /// Number of parameters in use; a tied head counts once.
    pub n_params: u64,
    /// SHA-256 of the weights file; for a sharded model, of the shards one after the other in name order.
    pub weights_sha256: String,
    /// First token of a document, if the model has one.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a document.
    pub eos_token_ids: Vec<u32>,
    /// Keys of config.json that nothing here reads and that are not known to be harmless. Options known to change a number are
    /// refused instead; these are only unknown, so they are told.
    #[serde(default)]
    pub unread_config: Vec<String>,
    /// Where it was fetched from, for a model of the hub.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

/// A model of the hub at a commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Its id there.
    pub hub_id: String,
    /// The commit, 40 hex digits.
    pub revision: String,
}

fn family_name<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<&'static str, D::Error> {
    let given = String::deserialize(deserializer)?;
    let known = || family::ALL.iter().map(|f| f.name).find(|&name| name == given);
    known().ok_or_else(|| serde::de::Error::custom(format!("unknown host family `{given}`, expected one of {}", supported_families())))
}

/// A model whose forward pass can be looked into and changed.
pub trait HostModel: Send + Sync {
    /// Shapes and provenance.
    fn info(&self) -> &HostInfo;

    /// Every hook point, in the order a forward pass reaches them.
    fn hook_points(&self) -> Vec<HookPoint>;

    /// Width of the activation at `at`.
    ///
    /// # Errors
    /// [`Error::UnknownHookPoint`], listing what exists.
    fn width(&self, at: &HookPoint) -> Result<usize>;

    /// Runs the model over a batch, offering each hook point to the tap. Returns logits, `[b, t, vocab]`, f32; `None` when the tap
    /// let the pass stop early.
    ///
    /// # Errors
    /// When ids or mask do not fit the model, when the tap's last hook point does not exist, or when the tap fails.
    fn forward(&self, input: &Tokens, tap: &mut dyn Tap) -> Result<Option<Tensor>>;

    /// Weight of directions `[m, width]` at `at` on each output token, `[m, vocab]`, f32: the path from the residual stream through the
    /// final norm and the unembedding, with the norm's division left out (it depends on the row) and its centring and gain kept. `None`
    /// where the activation at `at` is not added to the residual stream, or the host has no unembedding.
    ///
    /// # Errors
    /// A hook point that does not exist, directions of another width.
    fn logit_weights(&self, _at: &HookPoint, _directions: &Tensor) -> Result<Option<Tensor>> {
        Ok(None)
    }

    /// The Hugging Face module whose output `at` is, where there is one.
    fn hf_path(&self, at: &HookPoint) -> Option<String>;

    /// The hook point of a name: a Hugging Face module path of this model, or any spelling that [`HookPoint`] understands.
    ///
    /// # Errors
    /// [`Error::UnknownHookPoint`], listing what exists.
    fn hook_point(&self, name: &str) -> Result<HookPoint> {
        if let Some(at) = self.hook_points().into_iter().find(|at| self.hf_path(at).as_deref() == Some(name)) {
            return Ok(at);
        }
        let at: HookPoint = name.parse()?;
        self.width(&at)?;
        Ok(at)
    }
}

/// How to load a host.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// What to compute in: f32 or bf16. `None` = f32, whatever the file stores.
    pub dtype: Option<DType>,
    /// Where to compute.
    pub device: Device,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { dtype: None, device: Device::Cpu }
    }
}

/// The supported architecture families, for messages.
pub fn supported_families() -> String {
    family::names()
}

/// Loads a model from a folder with `config.json` and `model.safetensors` (or `model.safetensors.index.json` and its shards).
/// The word `fable` is the built-in host, `fable-random` its shape with random weights; a folder of that name is `./fable`.
///
/// # Errors
/// When a file is missing or damaged, the architecture is not supported, or the configuration asks for something that is not
/// implemented. Every message names the file and the way out.
pub fn load(path: &str, options: &LoadOptions) -> Result<Box<dyn HostModel>> {
    if path == builtin::FABLE {
        return builtin::fable(options);
    }
    if path == builtin::FABLE_RANDOM {
        return builtin::fable_random(options);
    }
    let dir = std::path::Path::new(path);
    if !dir.is_dir() {
        return Err(Error::request(
            format!("no model folder at `{path}`"),
            "pass a folder with config.json and model.safetensors, or the word `fable` for the built-in host",
        ));
    }
    let name = dir.canonicalize().ok().and_then(|full| full.file_name().map(|n| n.to_string_lossy().into_owned()));
    load_folder(dir, name.unwrap_or_else(|| path.to_string()), None, options)
}

/// Loads a model of the hub from the folder it was fetched to; its name is its id.
///
/// # Errors
/// As [`load`].
pub fn load_fetched(dir: &std::path::Path, origin: Origin, options: &LoadOptions) -> Result<Box<dyn HostModel>> {
    load_folder(dir, origin.hub_id.clone(), Some(origin), options)
}

/// Is the model in a folder one that can be loaded, as far as its config.json tells?
///
/// # Errors
/// When it is not: as [`load`], without reading weights.
pub fn check_config(dir: &std::path::Path) -> Result<()> {
    let config = read_config(dir)?;
    spec_of(family::of(&config)?, &config).map(|_| ())
}

fn read_config(dir: &std::path::Path) -> Result<config::Config> {
    let path = dir.join("config.json");
    let json = std::fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
    config::Config::parse(&path, &json)
}

fn load_folder(dir: &std::path::Path, name: String, origin: Option<Origin>, options: &LoadOptions) -> Result<Box<dyn HostModel>> {
    let config = read_config(dir)?;
    let family = family::of(&config)?; // before the weights are mapped: a wrong architecture fails in the first millisecond
    let weights = weights::Weights::open(dir, family, options)?;
    build(name, family, &config, &weights, origin)
}

/// Loads a model from memory: the bytes of a `config.json` and of one safetensors file.
///
/// # Errors
/// As [`load`].
pub fn load_bytes(name: &str, config_json: &[u8], weights: &[u8], options: &LoadOptions) -> Result<Box<dyn HostModel>> {
    let config = config::Config::parse(std::path::Path::new(name), config_json)?;
    let family = family::of(&config)?;
    let weights = weights::Weights::from_bytes(name, weights, family, options)?;
    build(name.to_string(), family, &config, &weights, None)
}

/// What the configuration says to compute, and its keys that nothing read.
fn spec_of(family: &family::Family, config: &config::Config) -> Result<(spec::Spec, Vec<String>)> {
    let Some(table) = family.within else { return Ok(((family.spec)(config)?, config.unread())) };
    config.refuse_unless("quantization_config", &serde_json::Value::Null)?;
    let within = config.table(table)?.ok_or_else(|| config.wrong(table, "is missing", "it describes the language model"))?;
    Ok(((family.spec)(&within)?, within.unread()))
}

fn build(
    name: String,
    family: &'static family::Family,
    config: &config::Config,
    weights: &weights::Weights,
    origin: Option<Origin>,
) -> Result<Box<dyn HostModel>> {
    let (spec, unread) = spec_of(family, config)?;
    let mut host = decoder::Decoder::load(name, family, spec, unread, weights)?;
    host.info.origin = origin;
    Ok(Box::new(host))
}
