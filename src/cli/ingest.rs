//! `lapidary ingest`: vectors made elsewhere, or planted ones, become shards.

use std::path::PathBuf;

use lapidary::corpus::planted::{PlantedConfig, HOOK};
use lapidary::harvest::{ingest, HarvestReport, IngestConfig, PlantedSource};
use lapidary::shard::Dtype;
use lapidary::{Error, Result};

use super::output::Output;
use super::settings::{count, OutMode};

/// Turn vectors made elsewhere (.npy, .safetensors, .parquet), or planted ones whose features are known, into shards.
///
/// Rows keep the file's order. A .parquet file may carry doc_id, position and token_id columns; without doc_id every row is a document.
///
/// planted:KIND plants --n-tokens rows with a generator (zipf, hierarchy, tree, synth: docs/planted.md); `score` then compares a
/// dictionary with the features. Settings: planted:KIND?key=value,key=value, or --set, or planted:FILE.toml with `kind` and the keys.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  lapidary ingest --from acts.npy --hook blocks.6.hook_resid_post --held-out-last 8192 --out shards
  lapidary ingest --from acts.safetensors --tensor acts --hook mine --out shards
  lapidary ingest --from planted:zipf --n-tokens 1_000_000 --seed 1 --out shards
  lapidary ingest --from 'planted:hierarchy?sibling_correlation=0.3,child_mean=1' --n-tokens 200_000 --held-out-last 10_000 --out shards")]
pub struct Args {
    /// The file, or planted:KIND.
    #[arg(long, value_name = "FILE|planted:KIND")]
    pub from: PathBuf,
    /// Planted rows: how many.
    #[arg(long, value_name = "N", value_parser = count)]
    pub n_tokens: Option<u64>,
    /// Planted rows: seed of features and rows.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Planted rows: a setting of the generator, as in --set l0=6; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Tensor of a .safetensors, list column of a .parquet; may be left out when there is only one.
    #[arg(long, value_name = "NAME")]
    pub tensor: Option<String>,
    /// Name of the column: the hook point the vectors come from, or any name [planted rows: planted].
    #[arg(long, value_name = "NAME")]
    pub hook: Option<String>,
    /// How vectors are stored: f32, f16 or bf16.
    #[arg(long, value_name = "DTYPE", default_value = "f32")]
    pub dtype: String,
    /// Fraction of documents kept from training; 0 for no split.
    #[arg(long, value_name = "X", default_value_t = 0.05)]
    pub held_out: f64,
    /// Hold out the last N rows of the file instead.
    #[arg(long, value_name = "N", value_parser = count, conflicts_with = "held_out")]
    pub held_out_last: Option<u64>,
    /// Folder of the shards.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    #[command(flatten)]
    pub mode: OutMode,
}

/// Ingests.
pub fn run(args: &Args, output: &Output) -> Result<HarvestReport> {
    let dtype = [Dtype::F32, Dtype::F16, Dtype::Bf16].into_iter().find(|d| d.name() == args.dtype);
    let dtype = dtype.ok_or_else(|| Error::config("dtype", format!("`{}` will not do", args.dtype), "write f32, f16 or bf16"))?;
    let planted = planted(args)?;
    let hook = match (&args.hook, &planted) {
        (Some(hook), _) => hook.clone(),
        (None, Some(_)) => HOOK.to_string(),
        (None, None) => {
            return Err(Error::request("the column has no name", "pass --hook: the hook point the vectors come from, or any name"));
        }
    };
    let config = IngestConfig {
        from: if planted.is_some() { PathBuf::new() } else { args.from.clone() },
        tensor: args.tensor.clone(),
        hook,
        dtype,
        held_out: args.held_out,
        held_out_last: args.held_out_last,
        planted,
        ..Default::default()
    };
    ingest(&config, &args.out, args.mode.mode(), output)
}

/// What `planted:...` asks for; `None` when a file is named.
fn planted(args: &Args) -> Result<Option<PlantedSource>> {
    let Some(text) = args.from.to_str().and_then(|f| f.strip_prefix("planted:")) else {
        let flag = match (args.n_tokens, args.seed, args.sets.first()) {
            (Some(_), ..) => "--n-tokens",
            (_, Some(_), _) => "--seed",
            (.., Some(_)) => "--set",
            _ => return Ok(None),
        };
        return Err(Error::request(format!("{flag} means nothing for a file"), "leave it out: it is for --from planted:KIND"));
    };
    if args.tensor.is_some() {
        return Err(Error::request("--tensor means nothing for planted rows", "leave it out"));
    }
    let rows = args.n_tokens.ok_or_else(|| Error::request("planted rows have no end", "pass --n-tokens: how many to plant"))?;
    let (source, settings) = text.split_once('?').unwrap_or((text, ""));
    let mut table = toml::Table::new();
    if source.ends_with(".toml") {
        let written = std::fs::read_to_string(source).map_err(|e| Error::io("read", source, e))?;
        table = written.parse().map_err(|e: toml::de::Error| {
            Error::request(
                format!("{source}: not a readable spec: {}", e.message()),
                "write `kind = \"zipf\"` and the generator's keys, as TOML",
            )
        })?;
    } else {
        table.insert("kind".into(), source.into());
    }
    let settings = settings.split(',').filter(|s| !s.trim().is_empty()).chain(args.sets.iter().map(String::as_str));
    Ok(Some(PlantedSource { spec: PlantedConfig::with(table, settings)?, seed: args.seed.unwrap_or(0), rows }))
}
