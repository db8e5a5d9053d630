//! `lapidary ingest`: vectors made elsewhere become shards.

use std::path::PathBuf;

use lapidary::harvest::{ingest, HarvestReport, IngestConfig};
use lapidary::shard::Dtype;
use lapidary::{Error, Result};

use super::output::Output;
use super::settings::{count, OutMode};

/// Turn vectors made elsewhere (.npy, .safetensors, .parquet) into shards.
///
/// Rows keep the file's order. A .parquet file may carry doc_id, position and token_id columns; without doc_id every row is a document.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  lapidary ingest --from acts.npy --hook blocks.6.hook_resid_post --held-out-last 8192 --out shards
  lapidary ingest --from acts.safetensors --tensor acts --hook mine --out shards")]
pub struct Args {
    /// The file.
    #[arg(long, value_name = "FILE")]
    pub from: PathBuf,
    /// Tensor of a .safetensors, list column of a .parquet; may be left out when there is only one.
    #[arg(long, value_name = "NAME")]
    pub tensor: Option<String>,
    /// Name of the column: the hook point the vectors come from, or any name.
    #[arg(long, value_name = "NAME")]
    pub hook: String,
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
    let config = IngestConfig {
        from: args.from.clone(),
        tensor: args.tensor.clone(),
        hook: args.hook.clone(),
        dtype,
        held_out: args.held_out,
        held_out_last: args.held_out_last,
        ..Default::default()
    };
    ingest(&config, &args.out, args.mode.mode(), output)
}
