//! `lapidary features`: the feature table and its examples.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::Device;
use lapidary::corpus::Kind;
use lapidary::features::{read_labels, write_features, FeaturesReport, Inputs};
use lapidary::host::LoadOptions;
use lapidary::{artefact, Error, Progress, Result};

use super::host::dtype;
use super::hub::Model;
use super::output::Output;
use super::settings::{count, Reading, Settings, SplitChoice};

/// Describe each latent: density, values, output tokens, neighbours, and examples in context, as two Parquet tables.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  lapidary features --dictionary runs/k32 --shards shards --model hf-folder --out runs/k32-features
  lapidary features --dictionary runs/k32 --shards shards --split held-out --n-tokens 1_000_000 --out features
  lapidary dashboard --features runs/k32-features --out k32.html                       look at them
  duckdb -c \"select latent, label, density, top_tokens[1:4] from 'runs/k32-features/features.parquet' order by max desc limit 20\"
Without --model there are no output tokens, and tokens stand as their ids. docs/features.md lists the columns.")]
pub struct Args {
    #[command(flatten)]
    pub reading: Reading,
    /// The host, for output tokens and tokens as text: a Hugging Face folder, a model of the hub, or `fable` [default: `fable`, where
    /// the shards are of the built-in host].
    #[arg(long, value_name = "DIR|ID")]
    pub model: Option<String>,
    /// Which rows to look at.
    #[arg(long, value_enum, default_value_t = SplitChoice::All)]
    pub split: SplitChoice,
    /// Rows to look at, at most [default: all].
    #[arg(long, value_name = "N", value_parser = count)]
    pub n_tokens: Option<u64>,
    /// Examples of the largest values, per latent [default: 20].
    #[arg(long, value_name = "N", value_parser = count, help_heading = "Examples")]
    pub top: Option<u64>,
    /// Bands of the active rows by value, each with examples of its own [default: 5].
    #[arg(long, value_name = "N", value_parser = count, help_heading = "Examples")]
    pub bands: Option<u64>,
    /// Examples per band [default: 4].
    #[arg(long, value_name = "N", value_parser = count, help_heading = "Examples")]
    pub per_band: Option<u64>,
    /// Stretches of text at random, per latent [default: 4].
    #[arg(long, value_name = "N", value_parser = count, help_heading = "Examples")]
    pub random: Option<u64>,
    /// Tokens shown before the chosen one [default: 20].
    #[arg(long, value_name = "N", value_parser = count, help_heading = "Examples")]
    pub before: Option<u64>,
    /// Tokens shown after it [default: 11].
    #[arg(long, value_name = "N", value_parser = count, help_heading = "Examples")]
    pub after: Option<u64>,
    /// Top and bottom output tokens, per latent [default: 10].
    #[arg(long, value_name = "N", value_parser = count)]
    pub logits: Option<u64>,
    /// Nearest atoms and co-active latents, per latent [default: 10].
    #[arg(long, value_name = "N", value_parser = count)]
    pub neighbours: Option<u64>,
    /// Labels that win over those made here: a JSON object {\"12\": \"label\"}, or lines of latent, tab, label.
    #[arg(long, value_name = "FILE")]
    pub labels: Option<PathBuf>,
    /// Seed of what is drawn at random [default: 0].
    #[arg(long, value_name = "N", value_parser = count)]
    pub seed: Option<u64>,
    /// Folder for features.parquet, examples.parquet and features.json.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Replace what is in --out.
    #[arg(long)]
    pub overwrite: bool,
}

impl Args {
    /// With every default.
    pub fn new(dictionary: &Path, shards: &Path, out: PathBuf) -> Self {
        Self {
            reading: Reading {
                dictionary: dictionary.to_path_buf(),
                shards: shards.to_path_buf(),
                hook: None,
                activation: None,
                settings: Settings::default(),
            },
            model: None,
            split: SplitChoice::All,
            n_tokens: None,
            top: None,
            bands: None,
            per_band: None,
            random: None,
            before: None,
            after: None,
            logits: None,
            neighbours: None,
            labels: None,
            seed: None,
            out,
            overwrite: false,
        }
    }
}

/// Makes the tables.
pub fn run(args: &Args, device: &Device, output: &Output) -> Result<FeaturesReport> {
    if !args.overwrite && !artefact::is_empty(&args.out)? {
        return Err(Error::OutputNotEmpty { path: args.out.clone() });
    }
    let (dictionary, shards, column) = args.reading.open(device)?;
    let labels = match &args.labels {
        Some(path) => read_labels(path, dictionary.d_sae())?,
        None => HashMap::new(),
    };
    let manifest = shards.manifest();
    let built_in = ["fable", "fable-random"].into_iter().find(|name| manifest.host["name"] == *name).map(str::to_string);
    let files = match args.model.clone().or(built_in) {
        Some(model) => Some(Model::find(&model, Some(&manifest.host), output)?),
        None => None,
    };
    let (host, tokenizer) = match &files {
        None => {
            output.note("no --model: no output tokens, and tokens stand as their ids");
            (None, None)
        }
        Some(files) => {
            let precision = dtype(manifest.host["dtype"].as_str().unwrap_or("f32"))?;
            let host = files.load(&LoadOptions { dtype: Some(precision), device: device.clone() })?;
            if manifest.host["weights_sha256"].as_str().is_some_and(|sha| sha != host.info().weights_sha256) {
                return Err(Error::request(
                    format!("{} has other weights than the host of these shards ({})", host.info().name, manifest.host["name"]),
                    "pass the host that the shards were harvested from",
                ));
            }
            (Some(host), files.tokenizer(Kind::Tokens)?)
        }
    };
    let mut layers = args.reading.settings.layers()?;
    let flags = [
        ("n_tokens", args.n_tokens),
        ("top", args.top),
        ("bands", args.bands),
        ("per_band", args.per_band),
        ("random", args.random),
        ("before", args.before),
        ("after", args.after),
        ("logits", args.logits),
        ("neighbours", args.neighbours),
        ("seed", args.seed),
    ];
    for (key, value) in flags {
        layers.put_some(&format!("features.{key}"), value.map(|v| v as i64))?;
    }
    let config = layers.resolve()?.features;
    let folder = args.reading.dictionary.canonicalize().unwrap_or_else(|_| args.reading.dictionary.clone());
    let inputs = Inputs {
        dictionary: &dictionary,
        name: folder.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned()),
        shards: &shards,
        column: &column,
        split: args.split.split(),
        host: host.as_deref(),
        tokenizer: tokenizer.as_ref(),
        labels,
    };
    write_features(&inputs, &config, &args.out, output)
}
