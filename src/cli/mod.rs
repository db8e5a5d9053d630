//! The command line. clap lives here and nowhere else; a verb is a file with `Args` and `run`, which returns a report.

mod bench;
mod config;
mod convert;
mod dashboard;
mod demo;
mod encode;
mod features;
mod harvest;
mod host;
mod hub;
mod ingest;
mod inspect;
mod output;
mod plot;
mod prompt;
mod score;
mod settings;
mod shell;
mod splice;
mod steer;
mod trace;
mod train;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lapidary::{Error, Result};

use output::Output;

/// Sparse-autoencoder interpretability: harvest activations, train dictionaries, score and plot them.
///
/// Start with `lapidary demo`: the whole pipeline in minutes, offline, on the built-in host.
#[derive(Debug, Parser)]
#[command(name = "lapidary", version, about, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    common: Common,
}

/// Flags that every verb takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Common {
    /// Print one JSON document on stdout instead of text.
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub json: bool,
    /// Threads to compute with; the results are the same bytes for any number [default: all cores].
    #[arg(long, global = true, value_name = "N", help_heading = "Everywhere")]
    pub threads: Option<usize>,
    /// cpu, cuda or cuda:N.
    #[arg(long, global = true, default_value = "cpu", help_heading = "Everywhere")]
    pub device: String,
    /// No progress, no notes; warnings and errors stay.
    #[arg(long, short, global = true, help_heading = "Everywhere")]
    pub quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Demo(demo::Args),
    Harvest(harvest::Args),
    Ingest(ingest::Args),
    Train(Box<train::Args>),
    Encode(encode::Args),
    Score(score::Args),
    Features(features::Args),
    Plot(plot::Args),
    Trace(Box<trace::Args>),
    Steer(Box<steer::Args>),
    Dashboard(dashboard::Args),
    Export(Box<convert::ExportArgs>),
    Import(convert::ImportArgs),
    Convert(convert::ConvertArgs),
    Bench(bench::Args),
    Inspect(inspect::Args),
    Config(config::Args),
    Completions(shell::CompletionsArgs),
    Man(shell::ManArgs),
}

/// Parses, runs, prints, and returns the exit code: 0 done, 1 a stated requirement failed, 2 the request is wrong, 3 the run failed.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(n) = cli.common.threads {
        if n == 0 {
            eprintln!("error: --threads 0 computes nothing\n  help: use 1 or more");
            return ExitCode::from(2);
        }
        // rayon's global pool and candle's matrix products both read this when first used, which is after this line.
        std::env::set_var("RAYON_NUM_THREADS", n.to_string());
    }
    let output = Output::new(&cli.common);
    match run(&cli, &output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output.clear();
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(cli: &Cli, output: &Output) -> Result<()> {
    let device = lapidary::kernels::device(&cli.common.device)?;
    let on_cpu = match &cli.verb {
        Verb::Ingest(_) => Some("ingest"),
        Verb::Plot(_) => Some("plot"),
        Verb::Dashboard(_) => Some("dashboard"),
        Verb::Export(_) => Some("export"),
        Verb::Import(_) => Some("import"),
        Verb::Convert(_) => Some("convert"),
        Verb::Bench(_) => Some("bench"),
        Verb::Completions(_) => Some("completions"),
        Verb::Man(_) => Some("man"),
        Verb::Config(_) => Some("config"),
        _ => None,
    };
    if let (Some(verb), false) = (on_cpu, device.is_cpu()) {
        return Err(Error::request(format!("`{verb}` works on the CPU alone"), "leave --device out"));
    }
    match &cli.verb {
        Verb::Demo(args) => output.report(&demo::run(args, &device, output)?),
        Verb::Harvest(args) => output.report(&harvest::run(args, &device, output)?),
        Verb::Ingest(args) => output.report(&ingest::run(args, output)?),
        Verb::Train(args) => output.report(&train::run(args, &device, output)?),
        Verb::Encode(args) => output.report(&encode::run(args, &device, output)?),
        Verb::Score(args) => {
            let (report, requirements) = score::run(args, &device, output)?;
            output.report(&report)?;
            requirements
        }
        Verb::Features(args) => output.report(&features::run(args, &device, output)?),
        Verb::Plot(args) => output.report(&plot::run(args)?),
        Verb::Trace(args) => output.report(&trace::run(args, &device, output)?),
        Verb::Steer(args) => output.report(&steer::run(args, &device, output)?),
        Verb::Dashboard(args) => output.report(&dashboard::run(args, output)?),
        Verb::Export(args) => {
            let (report, equal) = convert::export(args, output)?;
            output.report(&report)?;
            equal
        }
        Verb::Import(args) => output.report(&convert::import(args, output)?),
        Verb::Convert(args) => {
            let (report, equal) = convert::convert(args, output)?;
            output.report(&report)?;
            equal
        }
        Verb::Bench(args) => bench::run(args, output),
        Verb::Inspect(args) => output.report(&inspect::run(args, &device, output)?),
        Verb::Config(args) => output.report(&config::run(args)?),
        Verb::Completions(args) => shell::completions(args),
        Verb::Man(args) => shell::man(args),
    }
}
