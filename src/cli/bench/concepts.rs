//! `lapidary bench concepts`.

use std::path::PathBuf;

use lapidary::claims::concepts::{self, ConceptSettings, ConceptsReport};
use lapidary::{artefact, Error, Progress, Result};

use crate::cli::output::Output;
use crate::cli::settings::List;

/// Known concepts in the built-in host: what single latents recover beside controls, what silencing them does, what they absorb.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  lapidary bench concepts --out concepts                    three seeds; minutes
  lapidary bench concepts --seeds 0 --d-sae 1024 --k 8
docs/concepts.md has a run.")]
pub struct Args {
    /// Seeds of initialisation, row order and drawn controls.
    #[arg(long, visible_alias = "seed", value_name = "N[,N...]", default_value = "0,1,2")]
    pub seeds: List<u64>,
    /// Latents of each dictionary.
    #[arg(long, value_name = "N", default_value_t = ConceptSettings::default().d_sae)]
    pub d_sae: usize,
    /// Active latents per row.
    #[arg(long, value_name = "K", default_value_t = ConceptSettings::default().k)]
    pub k: usize,
    /// Folder for concepts.json and concepts.md; files of those names in it are replaced.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// A file for the page alone; it is replaced.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Share of the tokens to run, for trying the command: below 1 nothing is shown.
    #[arg(long, value_name = "SHARE", hide = true, default_value_t = 1.0)]
    pub quick: f64,
}

/// Runs; nothing is written before all is known.
pub fn run(args: &Args, output: &Output) -> Result<ConceptsReport> {
    let page = args.report.as_ref().map(|path| {
        let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(std::path::Path::new("."));
        (dir, path.file_name().unwrap_or_default().to_string_lossy().into_owned())
    });
    // A folder that cannot be made is a reason not to begin.
    for dir in args.out.iter().map(PathBuf::as_path).chain(page.iter().map(|p| p.0)) {
        std::fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
    }
    let settings =
        ConceptSettings { seeds: args.seeds.0.clone(), d_sae: args.d_sae, k: args.k, share: args.quick, ..ConceptSettings::default() };
    let report = concepts::run(&settings, output)?;
    if let Some(out) = &args.out {
        let files = report.save(out)?;
        output.note(&format!("wrote {} files to {}", files.len(), out.display()));
    }
    if let Some((dir, name)) = page {
        artefact::write(dir, &name, report.markdown().as_bytes())?;
    }
    Ok(report)
}
