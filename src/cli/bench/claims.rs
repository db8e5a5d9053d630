//! `lapidary bench claims`.

use std::path::PathBuf;

use lapidary::claims::{self, Report, Settings};
use lapidary::{Error, Progress, Result};

use crate::cli::output::Output;
use crate::cli::settings::List;

/// The papers' claims at toy size, each judged on every seed: holds, fails or skipped, with our numbers.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  lapidary bench claims --out claims                        all that needs no data; minutes
  lapidary bench claims --only 2a,3a --seeds 0,1,2,3,4
  lapidary bench claims --mnist mnist/ --out claims         with the claims on images
A claim that fails is marked so; the exit code is 0. docs/claims.md has a run.")]
pub struct Args {
    /// Seeds of data and initialisation.
    #[arg(long, value_name = "N[,N...]", default_value = "0,1,2")]
    pub seeds: List<u64>,
    /// Which claims, by name: 1a, 1b, 1c, 1c', 2a, 2b, 3a, 3b, 7 [default: all].
    #[arg(long, value_name = "NAME[,NAME...]", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Folder with train-images-idx3-ubyte.gz and t10k-images-idx3-ubyte.gz (a prefix such as mnist- may stand before), for 1b, 1c, 1c'.
    #[arg(long, value_name = "DIR")]
    pub mnist: Option<PathBuf>,
    /// Folder for claims.json, claims.md and the pictures; files of those names in it are replaced.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Share of the training steps to run, for trying the command: below 1 nothing is shown.
    #[arg(long, value_name = "SHARE", hide = true, default_value_t = 1.0)]
    pub quick: f64,
}

/// Runs; nothing is written before all is known.
pub fn run(args: &Args, output: &Output) -> Result<Report> {
    if let Some(out) = &args.out {
        // A folder that cannot be made is a reason not to begin.
        std::fs::create_dir_all(out).map_err(|e| Error::io("create", out, e))?;
    }
    let settings = Settings { seeds: args.seeds.0.clone(), only: args.only.clone(), mnist: args.mnist.clone(), steps: args.quick };
    let report = claims::run(&settings, output)?;
    if let Some(out) = &args.out {
        let files = report.save(out)?;
        output.note(&format!("wrote {} files to {}", files.len(), out.display()));
    }
    Ok(report)
}
