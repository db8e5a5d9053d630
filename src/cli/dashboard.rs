//! `lapidary dashboard`: the feature table as pages that open from disk.

use std::fmt;
use std::path::PathBuf;

use lapidary::dashboard::{self, Curve, Extra, Written, ONE_FILE};
use lapidary::features::{Examples, FeatureTable};
use lapidary::score::thousands;
use lapidary::train::{read_log, LogRecord};
use lapidary::{Progress, Result};
use serde::Serialize;

use super::output::Output;

/// Make static HTML of a feature table: a list to search, a page per latent, a map, the run's figures. Opens from disk, no network.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  lapidary features  --dictionary runs/k32 --shards shards --model fable --out features
  lapidary dashboard --dictionary runs/k32 --features features --out dashboard.html
  lapidary dashboard --features features --out site                  a folder: for more than 2,000 latents
Then open the file in a browser; ? lists the keys, and addresses such as dashboard.html#/latent/12 can be passed on.")]
pub struct Args {
    /// Folder of the feature table.
    #[arg(long, value_name = "DIR")]
    pub features: PathBuf,
    /// Folder of the dictionary: adds its scores, training curves and provenance.
    #[arg(long, value_name = "DIR")]
    pub dictionary: Option<PathBuf>,
    /// A name that ends in .html: one file with everything. Any other: a folder with index.html, read piece by piece.
    #[arg(long, value_name = "FILE.html|DIR")]
    pub out: PathBuf,
    /// Heading [default: the dictionary's name and hook point].
    #[arg(long, value_name = "TEXT")]
    pub title: Option<String>,
    /// Replace the page that is there.
    #[arg(long)]
    pub overwrite: bool,
}

/// The page.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What was written.
    #[serde(flatten)]
    pub written: Written,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Written { page, latents, files, bytes } = &self.written;
        let files = if *files == 1 { "one file".to_string() } else { format!("{files} files") };
        write!(
            f,
            "{}: {} latents, {files}, {:.1} MB\n  open it in a browser; ? lists the keys",
            page.display(),
            thousands(*latents as u64),
            *bytes as f64 / 1e6
        )
    }
}

/// Writes the page.
pub fn run(args: &Args, output: &Output) -> Result<Report> {
    let table = FeatureTable::load(&args.features)?;
    let examples = Examples::load(&args.features)?;
    let mut extra = match &args.dictionary {
        Some(dir) => Extra { curves: curves(dir)?, ..Extra::of_dictionary(dir)? },
        None => Extra::default(),
    };
    extra.title = args.title.clone();
    extra.features = Some(args.features.display().to_string());
    let written = dashboard::write(&table, &examples, &extra, &args.out, args.overwrite)?;
    if written.files == 1 && written.latents > ONE_FILE {
        output.note("this many latents open faster as a folder: give --out a name without .html");
    }
    Ok(Report { written })
}

/// Loss, FVU, L0 and dead latents over the tokens seen, if the training log is there.
fn curves(dir: &std::path::Path) -> Result<Vec<Curve>> {
    if !dir.join("log.jsonl").exists() {
        return Ok(Vec::new());
    }
    let records = read_log(dir)?;
    let curve = |name: &str, unit: &str, value: fn(&LogRecord) -> f64| {
        let points: Vec<_> = records.iter().map(|r| (r.tokens as f64, value(r))).filter(|(_, y)| y.is_finite()).collect();
        // A few hundred points draw the same line.
        let step = points.len().div_ceil(400).max(1);
        let (x, y) = points.iter().step_by(step).copied().unzip();
        Curve { name: name.into(), unit: unit.into(), x, y }
    };
    Ok(vec![
        curve("Training FVU", "share of variance", |r| r.fvu),
        curve("Training L0", "latents per row", |r| r.l0),
        curve("Dead latents", "latents", |r| r.dead as f64),
    ])
}
