//! Flags of the verbs that read a text of one's own: texts, host, dictionary.

use std::io::Read;
use std::path::PathBuf;

use candle_core::Device;
use lapidary::corpus::{Kind, Tokenizer};
use lapidary::features::labels_of;
use lapidary::host::{HostModel, LoadOptions};
use lapidary::trace::Reading;
use lapidary::{Dictionary, Error, HookPoint, Result};

use super::host::dtype;
use super::hub::Model;
use super::output::Output;

/// A dictionary, the host that it looks into, and texts.
#[derive(Debug, Clone, clap::Args)]
pub struct PromptFlags {
    /// Folder of the dictionary.
    #[arg(long, value_name = "DIR")]
    pub dictionary: PathBuf,
    /// The host: a Hugging Face folder, a model of the hub (ID or ID@REVISION), or `fable`.
    #[arg(long, value_name = "DIR|ID")]
    pub model: String,
    /// Where to look [default: the hook point that the dictionary was trained on].
    #[arg(long, value_name = "POINT")]
    pub hook: Option<String>,
    /// A text; - reads one from stdin; may be repeated.
    #[arg(long, value_name = "TEXT", required_unless_present = "text_file", allow_hyphen_values = true)]
    pub text: Vec<String>,
    /// A file with one text; may be repeated.
    #[arg(long, value_name = "FILE")]
    pub text_file: Vec<PathBuf>,
    /// Does a text begin with BOS? tokenizer, always or never.
    #[arg(long, value_name = "RULE", default_value = "tokenizer", value_parser = ["tokenizer", "always", "never"])]
    pub bos: String,
    /// Masking rules to switch off: special, first.
    #[arg(long, value_name = "RULE,...", value_delimiter = ',', value_parser = ["special", "first"])]
    pub keep: Vec<String>,
    /// Precision of the host's forward passes: f32 or bf16.
    #[arg(long, value_name = "DTYPE", default_value = "f32")]
    pub dtype: String,
    /// Folder of a feature table, for labels.
    #[arg(long, value_name = "DIR")]
    pub features: Option<PathBuf>,
}

/// All of it, opened.
pub struct Opened {
    pub dictionary: Dictionary,
    pub host: Box<dyn HostModel>,
    pub tokenizer: Tokenizer,
    pub at: HookPoint,
    pub texts: Vec<String>,
    pub reading: Reading,
    /// By latent; empty without a feature table.
    pub labels: Vec<Option<String>>,
}

impl Opened {
    /// A latent's label.
    pub fn label(&self, latent: u32) -> Option<&str> {
        self.labels.get(latent as usize)?.as_deref()
    }

    /// Refuses latents that the dictionary has not.
    pub fn check_latents(&self, latents: impl IntoIterator<Item = u32>) -> Result<()> {
        let n = self.dictionary.d_sae();
        match latents.into_iter().find(|&l| l as usize >= n) {
            None => Ok(()),
            Some(l) => Err(Error::request(format!("no latent {l} in a dictionary of {n}"), format!("latents go from 0 to {}", n - 1))),
        }
    }
}

impl PromptFlags {
    /// Opens dictionary, host and texts.
    pub fn open(&self, device: &Device, output: &Output) -> Result<Opened> {
        let dtype = dtype(&self.dtype)?;
        let texts = self.texts()?;
        let dictionary = Dictionary::load(&self.dictionary)?;
        let labels = self.features.as_deref().map(labels_of).transpose()?.unwrap_or_default();
        if !labels.is_empty() && labels.len() != dictionary.d_sae() {
            let problem = format!("the feature table has {} latents, the dictionary {}", labels.len(), dictionary.d_sae());
            return Err(Error::request(problem, "pass the features of this dictionary"));
        }
        let model = Model::find(&self.model, Some(&dictionary.provenance.host), output)?;
        let tokenizer = model
            .tokenizer(Kind::Text)?
            .ok_or_else(|| Error::request(format!("{} has no tokenizer", self.model), "put its tokenizer.json beside the model"))?;
        let host = model.load(&LoadOptions { dtype: Some(dtype), device: device.clone() })?;
        let own = dictionary.provenance.hook.as_str();
        let name = match &self.hook {
            Some(hook) => hook.as_str(),
            None if own.is_empty() => {
                return Err(Error::request("the dictionary does not say which hook point it reads", "pass --hook POINT"))
            }
            None => own,
        };
        let at = host.hook_point(name).map_err(|e| match (&self.hook, e) {
            (None, Error::Request { .. }) => {
                Error::request(format!("the dictionary reads `{own}`, which is no hook point"), "pass --hook POINT, one of this host's")
            }
            (_, e) => e,
        })?;
        let keep = |rule: &str| self.keep.iter().any(|k| k == rule);
        let bos = match self.bos.as_str() {
            "always" => lapidary::corpus::Bos::Always,
            "never" => lapidary::corpus::Bos::Never,
            _ => lapidary::corpus::Bos::Tokenizer,
        };
        let reading = Reading { bos, keep_special: keep("special"), keep_first: keep("first") };
        Ok(Opened { dictionary: dictionary.on(device)?, host, tokenizer, at, texts, reading, labels })
    }

    fn texts(&self) -> Result<Vec<String>> {
        let mut texts = Vec::new();
        for text in &self.text {
            if text != "-" {
                texts.push(text.clone());
                continue;
            }
            let mut all = String::new();
            std::io::stdin().read_to_string(&mut all).map_err(|e| Error::io("read", "stdin", e))?;
            texts.push(all.trim_end_matches('\n').to_string());
        }
        for path in &self.text_file {
            let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
            texts.push(text.trim_end_matches('\n').to_string());
        }
        Ok(texts)
    }
}
