//! `lapidary encode`: a dictionary over shards, as sparse Parquet codes.

use std::path::PathBuf;

use lapidary::encode::{encode, EncodeReport};
use lapidary::Result;

use super::output::Output;
use super::settings::{Reading, SplitChoice};

/// Encode shards with a dictionary: which latents fire on each row, and how strongly.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  lapidary encode --dictionary runs/k32 --shards shards --split held-out --out codes
  duckdb -c \"select doc_id, position, len(indices) as l0 from 'codes/codes.parquet' limit 5\"")]
pub struct Args {
    #[command(flatten)]
    pub reading: Reading,
    /// Which rows.
    #[arg(long, value_enum, default_value_t = SplitChoice::All)]
    pub split: SplitChoice,
    /// Folder for codes.parquet and codes.json.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Replace what is in --out.
    #[arg(long)]
    pub overwrite: bool,
}

/// Encodes.
pub fn run(args: &Args, output: &Output) -> Result<EncodeReport> {
    let (dictionary, shards, column) = args.reading.open()?;
    encode(&dictionary, &shards, &column, args.split.split(), &args.out, args.overwrite, output)
}
