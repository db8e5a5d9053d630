//! `lapidary score`: a dictionary's metrics on held-out rows, baselines beside.

use std::path::PathBuf;

use candle_core::Device;
use lapidary::score::{self, Requirement, ScoreReport};
use lapidary::{Dictionary, Error, Result};

use super::output::Output;
use super::settings::{Reading, SplitChoice};
use super::splice;

/// Score a dictionary on rows it was not trained on, with baselines at the same number of active latents beside it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  lapidary score --dictionary runs/k32 --shards shards
  lapidary score --dictionary runs/k32 --shards shards --model hf-folder --corpus text/   adds CE and KL recovered
  lapidary score --dictionary runs/k32 --shards shards --require 'fvu<0.2' --require 'dead_fraction<=0.1'
  lapidary score --dictionary runs/k32 --shards shards --activation omp:32 --out omp      the same atoms, another encoder
Exit code 1 when a --require does not hold. docs/metrics.md gives each formula, and which tool means which by a name.")]
pub struct Args {
    #[command(flatten)]
    pub reading: Reading,
    /// Which rows.
    #[arg(long, value_enum, default_value_t = SplitChoice::HeldOut)]
    pub split: SplitChoice,
    #[command(flatten)]
    pub splice: splice::Args,
    /// A requirement such as 'fvu<0.2' or 'l0<=32'; may be repeated.
    #[arg(long, value_name = "METRIC<X")]
    pub require: Vec<String>,
    /// Skip the baselines.
    #[arg(long)]
    pub no_baselines: bool,
    /// Seed of the baselines.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Folder for score.json and latents.parquet [default: the dictionary's].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// Scores; the second value says whether the requirements hold (it is returned after the report is printed).
pub fn run(args: &Args, device: &Device, output: &Output) -> Result<(ScoreReport, Result<()>)> {
    let requirements = args.require.iter().map(|r| Requirement::parse(r)).collect::<Result<Vec<_>>>()?;
    if args.reading.activation.is_some() && args.out.is_none() {
        return Err(Error::request(
            "scores with another activation would replace the dictionary's own",
            "name a folder for them with --out DIR",
        ));
    }
    let (dictionary, shards, column) = args.reading.open(device)?;
    let split = args.split.split();
    let baselines_from = (!args.no_baselines).then_some(args.seed);
    let mut compared = score::compare(&dictionary, &shards, &column, split, baselines_from, output)?;
    let report = &mut compared.report;
    if args.splice.model.is_some() {
        let all: Vec<&Dictionary> = std::iter::once(&dictionary).chain(compared.baselines.iter().map(|(_, d)| d)).collect();
        let recovered = splice::recovered(&args.splice, &shards, &column, &all, split, device, output)?;
        for (metrics, more) in std::iter::once(&mut report.metrics).chain(report.baselines.values_mut()).zip(recovered) {
            metrics.extend(more);
        }
    }
    let out = args.out.as_ref().unwrap_or(&args.reading.dictionary);
    report.save(out)?;
    compared.latents.save(out)?;
    let met = Requirement::check_all(&requirements, &report.metrics);
    Ok((compared.report, met))
}
