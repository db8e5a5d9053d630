//! `config.json` as a family file reads it: typed keys with errors that name them, both spellings of the two styles in use
//! (`rope_theta`, `rope_scaling`, `torch_dtype`, and transformers 5's `rope_parameters`, `dtype`), and a record of what was read.
//!
//! An option that changes a number and that nothing here implements is refused, never skipped: a family lists such options with
//! the value at which they do nothing ([`Config::refuse_unless`]). What is left over is told ([`Config::unread`]).

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// No real model has more blocks; a hostile file must not make us allocate for them.
pub(super) const MAX_LAYERS: usize = 4096;
/// Bound of every other size, so that products of three of them stay within `u64`.
const MAX_SIZE: u64 = 1 << 31;

/// Keys that change no number of a forward pass at inference.
const HARMLESS: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "_num_labels",
    "architectures",
    "attention_dropout",
    "attn_pdrop",
    "auto_map",
    "bos_token_id",
    "cache_implementation",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "decoder_start_token_id",
    "dtype",
    "embd_pdrop",
    "embedding_dropout",
    "eos_token_id",
    "finetuning_task",
    "gradient_checkpointing",
    "hidden_dropout",
    "id2label",
    "initializer_range",
    "is_decoder",
    "is_encoder_decoder",
    "is_llama_config",
    "max_window_layers",
    "label2id",
    "model_type",
    "n_ctx",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "reorder_and_upcast_attn",
    "resid_pdrop",
    "residual_dropout",
    "return_dict",
    "sep_token_id",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "task_specific_params",
    "tie_encoder_decoder",
    "tokenizer_class",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
    "use_return_dict",
];

/// Options of some family that change numbers, and that no family implements unless it reads them itself.
const CHANGES_NUMBERS: &[&str] = &[
    "add_cross_attention",
    "alibi",
    "attention_multiplier",
    "attn_logit_softcapping",
    "clip_qkv",
    "cross_attention_hidden_size",
    "embedding_multiplier",
    "final_logit_softcapping",
    "layer_types",
    "lm_head_bias",
    "logit_scale",
    "logits_scaling",
    "no_rope_layers",
    "num_experts",
    "num_local_experts",
    "partial_rotary_factor",
    "quantization",
    "quantization_config",
    "query_pre_attn_scalar",
    "residual_multiplier",
    "rope_interleaved",
    "rotary_pct",
    "sliding_window",
    "rope_local_base_freq",
    "sliding_window_pattern",
    "use_bidirectional_attention",
    "use_mrope",
    "use_qk_norm",
    "use_sliding_window",
];

/// A parsed `config.json`.
pub(super) struct Config {
    path: PathBuf,
    map: Map<String, Value>,
    read: RefCell<BTreeSet<String>>,
}

impl Config {
    /// Parses the bytes of a `config.json`; `path` is for messages.
    pub fn parse(path: &Path, json: &[u8]) -> Result<Self> {
        let help = "it should be the config.json of a Hugging Face model folder";
        let value: Value =
            serde_json::from_slice(json).map_err(|e| Error::format("config.json", path, format!("not valid JSON: {e}"), help))?;
        let Value::Object(map) = value else {
            return Err(Error::format("config.json", path, "not a JSON object", help));
        };
        Ok(Self { path: path.to_path_buf(), map, read: RefCell::default() })
    }

    /// Where it came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Is the key there, and null?
    pub fn is_null(&self, key: &str) -> bool {
        self.read.borrow_mut().insert(key.to_string());
        self.map.get(key).is_some_and(Value::is_null)
    }

    /// A key's value; null counts as absent.
    fn get(&self, key: &str) -> Option<&Value> {
        self.read.borrow_mut().insert(key.to_string());
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// A wrong or impossible value.
    pub fn wrong(&self, key: &str, problem: impl Into<String>, help: impl Into<String>) -> Error {
        Error::config(format!("{} of {}", key, self.path.display()), problem, help)
    }

    /// A value of a kind that is not implemented.
    pub fn unsupported(&self, key: &str, value: impl std::fmt::Display, instead: impl Into<String>) -> Error {
        Error::Unsupported { by: "a host".into(), what: format!("`{key}` = {value} ({})", self.path.display()), instead: instead.into() }
    }

    fn wrong_type(&self, key: &str, value: &Value, wanted: &str) -> Error {
        let shown: String = value.to_string().chars().take(60).collect();
        self.wrong(key, format!("is {shown}, not {wanted}"), "correct the file, or take the model's original config.json")
    }

    fn missing(&self, key: &str) -> Error {
        self.wrong(key, "is missing", "this architecture needs it; take the model's original config.json")
    }

    /// A size, 1 to 2^31.
    pub fn size_or(&self, key: &str, default: Option<usize>) -> Result<usize> {
        match self.get(key) {
            None => default.ok_or_else(|| self.missing(key)),
            Some(value) => match value.as_u64() {
                Some(n) if (1..=MAX_SIZE).contains(&n) => Ok(n as usize),
                _ => Err(self.wrong_type(key, value, "a positive whole number of sane size")),
            },
        }
    }

    /// A count, which may be 0.
    pub fn count_or(&self, key: &str, default: usize) -> Result<usize> {
        match self.get(key) {
            None => Ok(default),
            Some(value) if value.as_u64() == Some(0) => Ok(0),
            Some(_) => self.size(key),
        }
    }

    /// A size that need not be there.
    pub fn size_if(&self, key: &str) -> Result<Option<usize>> {
        match self.get(key) {
            None => Ok(None),
            Some(_) => self.size(key).map(Some),
        }
    }

    /// A size that must be there.
    pub fn size(&self, key: &str) -> Result<usize> {
        self.size_or(key, None)
    }

    /// The number of blocks.
    pub fn layers(&self, key: &str) -> Result<usize> {
        let n = self.size(key)?;
        if n > MAX_LAYERS {
            return Err(self.wrong(key, format!("is {n}, more than {MAX_LAYERS}"), "no such model is known; is the file damaged?"));
        }
        Ok(n)
    }

    /// A finite number.
    pub fn number(&self, key: &str, default: Option<f64>) -> Result<f64> {
        match self.get(key) {
            None => default.ok_or_else(|| self.missing(key)),
            Some(value) => value.as_f64().filter(|x| x.is_finite()).ok_or_else(|| self.wrong_type(key, value, "a number")),
        }
    }

    /// A finite number, if given.
    pub fn number_if(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(_) => self.number(key, None).map(Some),
        }
    }

    /// A finite number above zero; null switches off what the number scales, and an absent key means `absent`.
    pub fn positive_or_off(&self, key: &str, absent: Option<f64>) -> Result<Option<f64>> {
        match self.number_if(key)? {
            None if self.is_null(key) => Ok(None),
            None => Ok(absent),
            Some(_) => self.positive(key, None).map(Some),
        }
    }

    /// A list of finite numbers.
    pub fn numbers(&self, key: &str) -> Result<Vec<f64>> {
        let value = self.get(key).ok_or_else(|| self.missing(key))?;
        let numbers = value.as_array().and_then(|items| items.iter().map(|v| v.as_f64().filter(|x| x.is_finite())).collect());
        numbers.ok_or_else(|| self.wrong_type(key, value, "a list of numbers"))
    }

    /// A finite number above zero.
    pub fn positive(&self, key: &str, default: Option<f64>) -> Result<f64> {
        let x = self.number(key, default)?;
        if x <= 0.0 {
            return Err(self.wrong(key, format!("is {x}"), "it must be above 0"));
        }
        Ok(x)
    }

    /// True or false.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong_type(key, value, "true or false")),
        }
    }

    /// A text, if given.
    pub fn string(&self, key: &str) -> Result<Option<String>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => value.as_str().map(|s| Some(s.to_string())).ok_or_else(|| self.wrong_type(key, value, "a text")),
        }
    }

    /// A list of texts; empty if absent.
    pub fn strings(&self, key: &str) -> Result<Vec<String>> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let texts = value.as_array().and_then(|items| items.iter().map(|v| v.as_str().map(str::to_string)).collect());
        texts.ok_or_else(|| self.wrong_type(key, value, "a list of texts"))
    }

    /// A token id, or a list of them; `absent` if the key is not there, none if it is null.
    pub fn token_ids_or(&self, key: &str, absent: Option<u32>) -> Result<Vec<u32>> {
        if self.map.contains_key(key) {
            self.token_ids(key)
        } else {
            Ok(absent.into_iter().collect())
        }
    }

    /// A token id, or a list of them; empty if absent.
    pub fn token_ids(&self, key: &str) -> Result<Vec<u32>> {
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => items.iter().map(|v| id(v).ok_or_else(|| self.wrong_type(key, v, "a token id"))).collect(),
            // Some files say -1 for "none".
            Some(value) if value.as_i64() == Some(-1) => Ok(Vec::new()),
            Some(value) => id(value).map(|n| vec![n]).ok_or_else(|| self.wrong_type(key, value, "a token id")),
        }
    }

    /// Refuses an option that is not implemented, unless it is absent or has the value at which it does nothing.
    pub fn refuse_unless(&self, key: &str, neutral: &Value) -> Result<()> {
        match self.get(key) {
            Some(value) if value != neutral && !same_number(value, neutral) => {
                Err(self.unsupported(key, value, format!("only {neutral} is implemented for this architecture")))
            }
            _ => Ok(()),
        }
    }

    /// A table within, if given.
    pub fn table(&self, key: &str) -> Result<Option<Self>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self { path: self.path.clone(), map: map.clone(), read: RefCell::default() })),
            Some(value) => Err(self.wrong_type(key, value, "a table")),
        }
    }

    /// Is there no key at all?
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// A table of the same file without a key.
    pub fn empty(&self) -> Self {
        Self { path: self.path.clone(), map: Map::new(), read: RefCell::default() }
    }

    /// The number of positions a query sees where attention is windowed: `absent` if the key is not there, none if it is null.
    pub fn window(&self, key: &str, absent: Option<usize>) -> Result<Option<usize>> {
        if self.is_null(key) {
            return Ok(None);
        }
        match self.size_if(key)? {
            None => Ok(absent),
            given => Ok(given),
        }
    }

    /// Which layers have windowed attention: from `layer_types`, else by `otherwise`.
    pub fn windowed_layers(&self, n_layers: usize, otherwise: impl Fn(usize) -> bool) -> Result<Vec<bool>> {
        let kinds = self.strings("layer_types")?;
        if kinds.is_empty() {
            return Ok((0..n_layers).map(otherwise).collect());
        }
        if kinds.len() != n_layers {
            let problem = format!("names {} layers of {n_layers}", kinds.len());
            return Err(self.wrong("layer_types", problem, "correct the file, or take the model's original config.json"));
        }
        let is_windowed = |kind: &String| match kind.as_str() {
            "sliding_attention" => Ok(true),
            "full_attention" => Ok(false),
            other => Err(self.unsupported("layer_types", other, "layers of full_attention and sliding_attention are supported")),
        };
        kinds.iter().map(is_windowed).collect()
    }

    /// Refuses every option known to change numbers that the family did not read, when it is switched on.
    pub fn refuse_the_rest(&self, family: &str) -> Result<()> {
        for &key in CHANGES_NUMBERS {
            let is_off = |v: &Value| match v {
                Value::Null | Value::Bool(false) => true,
                Value::Array(kinds) => kinds.iter().all(|kind| kind == "full_attention"), // `layer_types`
                other => other.as_f64() == Some(0.0),
            };
            if key == "sliding_window" && self.map.get("use_sliding_window") == Some(&Value::Bool(false)) {
                continue;
            }
            let value = self.map.get(key).filter(|v| !is_off(v) && !self.read.borrow().contains(key));
            if let Some(value) = value {
                let shown: String = value.to_string().chars().take(60).collect();
                return Err(self.unsupported(key, shown, format!("family {family} implements no such option; load a model without it")));
            }
        }
        Ok(())
    }

    /// Keys with a value that nothing read and that are not known to be harmless, in order.
    pub fn unread(&self) -> Vec<String> {
        let read = self.read.borrow();
        let left = self.map.iter().filter(|(key, value)| !value.is_null() && !read.contains(*key) && !HARMLESS.contains(&key.as_str()));
        left.map(|(key, _)| key.clone()).filter(|key| !CHANGES_NUMBERS.contains(&key.as_str())).collect()
    }
}

fn same_number(a: &Value, b: &Value) -> bool {
    matches!((a.as_f64(), b.as_f64()), (Some(a), Some(b)) if a == b)
}
