//! `lapidary plot`: charts of what runs left behind.

use std::fmt;
use std::path::PathBuf;

use lapidary::{plot, Result};
use serde::Serialize;

/// Draw charts from runs: training curves, firing density, FVU against L0.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  lapidary plot --from runs/sweep --out plots
  lapidary plot --from runs --chart frontier --out plots
Every folder below --from with a log.parquet, score.json or latents.parquet takes part.")]
pub struct Args {
    /// Folder of runs; searched through.
    #[arg(long, value_name = "DIR")]
    pub from: PathBuf,
    /// Which charts; may be repeated [default: all that there is data for].
    #[arg(long, value_name = "NAME")]
    pub chart: Vec<String>,
    /// Folder for SVG and PNG files.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// The files drawn.
#[derive(Debug, Serialize)]
pub struct Report {
    /// SVG and PNG.
    pub files: Vec<PathBuf>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.files.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join("\n"))
    }
}

/// Draws.
pub fn run(args: &Args) -> Result<Report> {
    Ok(Report { files: plot::draw_all(&plot::collect(&args.from)?, &args.chart, &args.out)? })
}
