//! Flags that say what a host reads and how, shared by the verbs that run one over a corpus.

use candle_core::{DType, Device};
use lapidary::config::{Layers, RunConfig};
use lapidary::corpus::{Corpus, Tokenizer};
use lapidary::harvest::Began;
use lapidary::host::{HostModel, LoadOptions};
use lapidary::{Error, Result};

use super::hub::{self, Model};
use super::output::Output;
use super::settings::count;

/// A host over a corpus.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct HostFlags {
    /// A Hugging Face folder (config.json, safetensors, tokenizer.json); a model of the hub, ID or ID@REVISION (HF_HOME, HF_ENDPOINT,
    /// HF_TOKEN and HF_HUB_OFFLINE are honoured); or `fable`, the built-in host.
    #[arg(long, value_name = "DIR|ID", help_heading = "Host and corpus")]
    pub model: Option<String>,
    /// Text (.txt, .jsonl, .parquet) or token ids (.u16, .u32, .npy): a file, a folder or a glob; hf:ID[@REVISION][:SPLIT] is a dataset
    /// of the hub, fetched file by file as it is read; `fable` is the built-in language.
    #[arg(long, value_name = "PATH|hf:ID", help_heading = "Host and corpus")]
    pub corpus: Option<String>,
    /// Configuration (subset) of a hub dataset that has several.
    #[arg(long, value_name = "NAME", help_heading = "Host and corpus")]
    pub corpus_config: Option<String>,
    /// Most tokens the host sees at once [default: 128].
    #[arg(long, value_name = "N", value_parser = count, help_heading = "Host and corpus")]
    pub context: Option<u64>,
    /// Most tokens of one forward pass, padding included; contexts of like length share one [default: 2048].
    #[arg(long, value_name = "N", value_parser = count, help_heading = "Host and corpus")]
    pub batch_tokens: Option<u64>,
    /// Fill each context with as many documents as it takes; they attend to each other, as in most other tools.
    #[arg(long, help_heading = "Host and corpus")]
    pub pack: bool,
    /// Fraction of documents kept from training; 0 for no split [default: 0.05].
    #[arg(long, value_name = "X", help_heading = "Host and corpus")]
    pub held_out: Option<f64>,
    /// Does a text begin with BOS? tokenizer, always or never [default: tokenizer].
    #[arg(long, value_name = "RULE", help_heading = "Host and corpus")]
    pub bos: Option<String>,
    /// Leave out the first row of token-id documents.
    #[arg(long, help_heading = "Host and corpus")]
    pub drop_bos: bool,
    /// Masking rules to switch off: special, first, outlier.
    #[arg(long, value_name = "RULE,...", value_delimiter = ',', help_heading = "Host and corpus")]
    pub keep: Vec<String>,
    /// What separates documents in text files [default: <|endoftext|>].
    #[arg(long, value_name = "TEXT", help_heading = "Host and corpus")]
    pub doc_separator: Option<String>,
    /// Token id that begins a document in a token stream.
    #[arg(long, value_name = "ID", value_parser = count, help_heading = "Host and corpus")]
    pub doc_token: Option<u64>,
    /// Field of .jsonl and .parquet records [default: text].
    #[arg(long, value_name = "NAME", help_heading = "Host and corpus")]
    pub text_field: Option<String>,
}

impl HostFlags {
    /// On top of file and `--set`.
    pub fn put(&self, layers: &mut Layers) -> Result<()> {
        layers.put_some("host.model", self.model.clone())?;
        layers.put_some("corpus.source", self.corpus.clone())?;
        layers.put_some("corpus.config", self.corpus_config.clone())?;
        layers.put_some("corpus.doc_separator", self.doc_separator.clone())?;
        layers.put_some("corpus.doc_token", self.doc_token.map(|v| v as i64))?;
        layers.put_some("corpus.text_field", self.text_field.clone())?;
        layers.put_some("harvest.context", self.context.map(|v| v as i64))?;
        layers.put_some("harvest.batch_tokens", self.batch_tokens.map(|v| v as i64))?;
        layers.put_some("harvest.held_out", self.held_out)?;
        layers.put_some("harvest.bos", self.bos.clone())?;
        if self.pack {
            layers.put("harvest.pack", true)?;
        }
        if self.drop_bos {
            layers.put("harvest.drop_bos", true)?;
        }
        if !self.keep.is_empty() {
            layers.put("harvest.keep", self.keep.clone())?;
        }
        Ok(())
    }

    /// The first flag that was given, for messages.
    pub fn given(&self) -> Option<&'static str> {
        let flags = [
            ("--model", self.model.is_some()),
            ("--corpus", self.corpus.is_some()),
            ("--corpus-config", self.corpus_config.is_some()),
            ("--context", self.context.is_some()),
            ("--batch-tokens", self.batch_tokens.is_some()),
            ("--pack", self.pack),
            ("--held-out", self.held_out.is_some()),
            ("--bos", self.bos.is_some()),
            ("--drop-bos", self.drop_bos),
            ("--keep", !self.keep.is_empty()),
            ("--doc-separator", self.doc_separator.is_some()),
            ("--doc-token", self.doc_token.is_some()),
            ("--text-field", self.text_field.is_some()),
        ];
        flags.into_iter().find_map(|(name, given)| given.then_some(name))
    }
}

/// A host and what it reads, opened.
pub struct Opened {
    /// The host.
    pub host: Box<dyn HostModel>,
    /// What it reads.
    pub corpus: Corpus,
    /// Its tokenizer, where there is one.
    pub tokenizer: Option<Tokenizer>,
}

/// Opens host and corpus, fetching what the hub has. A context that no layer names follows a host whose own is shorter; a hub's model
/// and dataset are written into the configuration with the commits that were found, so that its file runs again on the same. `began`: what
/// an earlier run, now resumed, recorded; its revisions stay what they were.
pub fn open(layers: &Layers, config: &mut RunConfig, began: Option<&Began>, device: &Device, output: &Output) -> Result<Opened> {
    if config.host.model.is_empty() {
        return Err(Error::request("no host was named", "pass --model DIR or --model ID, or --model fable for the built-in host"));
    }
    if config.corpus.source.is_empty() {
        return Err(Error::request(
            "no corpus was named",
            "pass --corpus PATH (text or token ids), or --corpus fable for the built-in language",
        ));
    }
    let dtype = dtype(&config.host.dtype)?;
    let corpus = hub::corpus(&config.corpus, began.map(|b| b.source.as_str()), output)?;
    let model = Model::find(&config.host.model, began.map(|b| &b.host), output)?;
    let tokenizer = model.tokenizer(corpus.kind())?;
    let host = model.load(&LoadOptions { dtype: Some(dtype), device: device.clone() })?;
    if !layers.has("harvest.context") {
        config.harvest.context = config.harvest.context.min(host.info().n_context);
    }
    if let Some(origin) = &host.info().origin {
        config.host.model = format!("{}@{}", origin.hub_id, origin.revision);
    }
    Ok(Opened { host, corpus, tokenizer })
}

/// The precision of a forward pass.
pub fn dtype(name: &str) -> Result<DType> {
    match name {
        "f32" => Ok(DType::F32),
        "bf16" => Ok(DType::BF16),
        other => Err(Error::config("host.dtype", format!("`{other}` will not do"), "a forward pass is computed in f32 or bf16")),
    }
}
