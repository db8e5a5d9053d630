//! `lapidary harvest`: corpus through host to shards.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use lapidary::artefact::Mode;
use lapidary::harvest::{began, harvest, HarvestReport};
use lapidary::host::LoadOptions;
use lapidary::{Error, Result};

use super::hub::{self, Model};
use super::output::Output;
use super::settings::{count, OutMode, Settings};

/// Stream the hidden states of a host model into Parquet shards.
///
/// One pass over the corpus serves any number of hook points. Rows of special tokens, of first tokens without BOS, and of outliers are
/// not written, and counted in the manifest. Killed or interrupted, the same command with --resume ends in the same bytes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  lapidary harvest --model fable --corpus fable --hook blocks.2.hook_resid_post --n-tokens 200_000 --context 128 --out shards
  lapidary harvest --model path/to/hf-folder --corpus wiki.txt --hook blocks.6.hook_resid_post --hook blocks.6.hook_mlp_out \\
                   --context 256 --dtype f16 --out shards
  lapidary harvest --model openai-community/gpt2 --corpus hf:roneneldan/TinyStories:validation --hook blocks.6.hook_resid_post --out shards
  lapidary harvest --model stories --corpus tokens.u16 --doc-token 1 --drop-bos --hook 'blocks.2.hook_resid_post' --out shards
`lapidary inspect MODEL` lists the hook points. docs/shards.md describes the files.")]
pub struct Args {
    /// A Hugging Face folder (config.json, safetensors, tokenizer.json); a model of the hub, ID or ID@REVISION (HF_HOME, HF_ENDPOINT,
    /// HF_TOKEN and HF_HUB_OFFLINE are honoured); or `fable`, the built-in host.
    #[arg(long, value_name = "DIR|ID")]
    pub model: Option<String>,
    /// Where to read, in TransformerLens or Hugging Face spelling; may be repeated.
    #[arg(long, value_name = "POINT")]
    pub hook: Vec<String>,
    /// Text (.txt, .jsonl, .parquet) or token ids (.u16, .u32, .npy): a file, a folder or a glob; hf:ID[@REVISION][:SPLIT] is a dataset
    /// of the hub, fetched file by file as it is read; `fable` is the built-in language.
    #[arg(long, value_name = "PATH|hf:ID")]
    pub corpus: Option<String>,
    /// Configuration (subset) of a hub dataset that has several.
    #[arg(long, value_name = "NAME")]
    pub corpus_config: Option<String>,
    /// Rows to write [default: the whole corpus].
    #[arg(long, value_name = "N", value_parser = count)]
    pub n_tokens: Option<u64>,
    /// Most tokens the host sees at once [default: 128].
    #[arg(long, value_name = "N", value_parser = count)]
    pub context: Option<u64>,
    /// Most tokens of one forward pass, padding included [default: 2048].
    #[arg(long, value_name = "N", value_parser = count)]
    pub batch_tokens: Option<u64>,
    /// How activations are stored: f32, f16 or bf16 [default: f32].
    #[arg(long, value_name = "DTYPE")]
    pub dtype: Option<String>,
    /// Precision of the forward pass: f32 or bf16 [default: f32].
    #[arg(long, value_name = "DTYPE")]
    pub host_dtype: Option<String>,
    /// Fraction of documents kept from training; 0 for no split [default: 0.05].
    #[arg(long, value_name = "X")]
    pub held_out: Option<f64>,
    /// Does a text begin with BOS? tokenizer, always or never [default: tokenizer].
    #[arg(long, value_name = "RULE")]
    pub bos: Option<String>,
    /// Do not write the first row of token-id documents.
    #[arg(long)]
    pub drop_bos: bool,
    /// Masking rules to switch off: special, first, outlier.
    #[arg(long, value_name = "RULE,...", value_delimiter = ',')]
    pub keep: Vec<String>,
    /// What separates documents in text files [default: <|endoftext|>].
    #[arg(long, value_name = "TEXT")]
    pub doc_separator: Option<String>,
    /// Token id that begins a document in a token stream.
    #[arg(long, value_name = "ID", value_parser = count)]
    pub doc_token: Option<u64>,
    /// Field of .jsonl and .parquet records [default: text].
    #[arg(long, value_name = "NAME")]
    pub text_field: Option<String>,
    /// Folder of the shards.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    #[command(flatten)]
    pub mode: OutMode,
    #[command(flatten)]
    pub settings: Settings,
}

impl Args {
    /// What the demo asks for.
    pub fn for_demo(model: &str, corpus: &str, hooks: &[&str], n_tokens: u64, context: u64, held_out: f64, out: &Path) -> Self {
        Self {
            model: Some(model.to_string()),
            hook: hooks.iter().map(|h| (*h).to_string()).collect(),
            corpus: Some(corpus.to_string()),
            corpus_config: None,
            n_tokens: Some(n_tokens),
            context: Some(context),
            batch_tokens: None,
            dtype: None,
            host_dtype: None,
            held_out: Some(held_out),
            bos: None,
            drop_bos: false,
            keep: Vec::new(),
            doc_separator: None,
            doc_token: None,
            text_field: None,
            out: out.to_path_buf(),
            mode: OutMode::default(),
            settings: Settings::default(),
        }
    }
}

/// Harvests.
pub fn run(args: &Args, device: &Device, output: &Output) -> Result<HarvestReport> {
    let mut layers = args.settings.layers()?;
    layers.put_some("host.model", args.model.clone())?;
    layers.put_some("host.dtype", args.host_dtype.clone())?;
    layers.put_some("corpus.source", args.corpus.clone())?;
    layers.put_some("corpus.config", args.corpus_config.clone())?;
    layers.put_some("corpus.doc_separator", args.doc_separator.clone())?;
    layers.put_some("corpus.doc_token", args.doc_token.map(|v| v as i64))?;
    layers.put_some("corpus.text_field", args.text_field.clone())?;
    if !args.hook.is_empty() {
        layers.put("harvest.hooks", args.hook.clone())?;
    }
    layers.put_some("harvest.n_tokens", args.n_tokens.map(|v| v as i64))?;
    layers.put_some("harvest.context", args.context.map(|v| v as i64))?;
    layers.put_some("harvest.batch_tokens", args.batch_tokens.map(|v| v as i64))?;
    layers.put_some("harvest.dtype", args.dtype.clone())?;
    layers.put_some("harvest.held_out", args.held_out)?;
    layers.put_some("harvest.bos", args.bos.clone())?;
    if args.drop_bos {
        layers.put("harvest.drop_bos", true)?;
    }
    if !args.keep.is_empty() {
        layers.put("harvest.keep", args.keep.clone())?;
    }
    let mut config = layers.resolve()?;
    if config.host.model.is_empty() {
        return Err(Error::request("no host was named", "pass --model DIR or --model ID, or --model fable for the built-in host"));
    }
    if config.corpus.source.is_empty() {
        return Err(Error::request(
            "no corpus was named",
            "pass --corpus PATH (text or token ids), or --corpus fable for the built-in language",
        ));
    }
    if config.corpus.source == "fable" && config.harvest.n_tokens.is_none() {
        return Err(Error::request("the built-in language never ends", "say how many rows to write with --n-tokens"));
    }
    let dtype = match config.host.dtype.as_str() {
        "f32" => DType::F32,
        "bf16" => DType::BF16,
        other => return Err(Error::config("host.dtype", format!("`{other}` will not do"), "write f32 or bf16")),
    };
    // A harvest goes on with the revisions it began with, wherever their branches are now.
    let began = if args.mode.mode() == Mode::Resume { began(&args.out)? } else { None };
    let corpus = hub::corpus(&config.corpus, began.as_ref().map(|b| b.source.as_str()), output)?;
    let model = Model::find(&config.host.model, began.as_ref().map(|b| &b.host), output)?;
    let tokenizer = model.tokenizer(corpus.kind())?;
    let host = model.load(&LoadOptions { dtype: Some(dtype), device: device.clone() })?;
    // A context that no one asked for follows the host, when the host's own is shorter.
    if !layers.has("harvest.context") {
        config.harvest.context = config.harvest.context.min(host.info().n_context);
    }
    harvest(host.as_ref(), &corpus, tokenizer.as_ref(), &config.harvest, &args.out, args.mode.mode(), output)
}
