//! `lapidary harvest`: corpus through host to shards.

use std::path::{Path, PathBuf};

use candle_core::Device;
use lapidary::artefact::Mode;
use lapidary::harvest::{began, harvest, HarvestReport};
use lapidary::{Error, Result};

use super::host::{self, HostFlags, Opened};
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
    #[command(flatten)]
    pub host: HostFlags,
    /// Where to read, in TransformerLens or Hugging Face spelling; may be repeated.
    #[arg(long, value_name = "POINT")]
    pub hook: Vec<String>,
    /// Rows to write [default: the whole corpus].
    #[arg(long, value_name = "N", value_parser = count)]
    pub n_tokens: Option<u64>,
    /// How activations are stored: f32, f16 or bf16 [default: f32].
    #[arg(long, value_name = "DTYPE")]
    pub dtype: Option<String>,
    /// Precision of the forward pass: f32 or bf16 [default: f32].
    #[arg(long, value_name = "DTYPE")]
    pub host_dtype: Option<String>,
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
        let host = HostFlags {
            model: Some(model.to_string()),
            corpus: Some(corpus.to_string()),
            context: Some(context),
            held_out: Some(held_out),
            ..HostFlags::default()
        };
        Self {
            host,
            hook: hooks.iter().map(|h| (*h).to_string()).collect(),
            n_tokens: Some(n_tokens),
            dtype: None,
            host_dtype: None,
            out: out.to_path_buf(),
            mode: OutMode::default(),
            settings: Settings::default(),
        }
    }
}

/// Harvests.
pub fn run(args: &Args, device: &Device, output: &Output) -> Result<HarvestReport> {
    let mut layers = args.settings.layers()?;
    args.host.put(&mut layers)?;
    layers.put_some("host.dtype", args.host_dtype.clone())?;
    if !args.hook.is_empty() {
        layers.put("harvest.hooks", args.hook.clone())?;
    }
    layers.put_some("harvest.n_tokens", args.n_tokens.map(|v| v as i64))?;
    layers.put_some("harvest.dtype", args.dtype.clone())?;
    let mut config = layers.resolve()?;
    if config.corpus.source == "fable" && config.harvest.n_tokens.is_none() {
        return Err(Error::request("the built-in language never ends", "say how many rows to write with --n-tokens"));
    }
    // A harvest goes on with the revisions it began with, wherever their branches are now.
    let began = if args.mode.mode() == Mode::Resume { began(&args.out)? } else { None };
    let Opened { host, corpus, tokenizer } = host::open(&layers, &mut config, began.as_ref(), device, output)?;
    harvest(host.as_ref(), &corpus, tokenizer.as_ref(), &config.harvest, &args.out, args.mode.mode(), output)
}
