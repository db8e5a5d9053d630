//! `lapidary config`: the settings as they would be, every default shown.

use std::fmt;

use lapidary::config::{to_toml, RunConfig};
use lapidary::Result;
use serde::Serialize;

use super::settings::Settings;

/// Show the resolved settings, every default included, as a run file.
///
/// Zeros that stand for something ("0 stands for one pass over the rows") are filled in when a stage starts; the file saved beside
/// each artefact has them as numbers.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  lapidary config > run.toml                    a run file to edit
  lapidary config --arch topk --pam             with the keys of PAM-SGD
  lapidary config --set sae.k=64 --set train.batch=8192
Precedence: defaults < --config FILE < --set KEY=VALUE < flags.")]
pub struct Args {
    /// Learner: topk, batch-topk, matryoshka, msae, mp, jump-relu, gated or relu [default: topk].
    #[arg(long, value_name = "NAME")]
    pub arch: Option<String>,
    /// Show the keys of PAM-SGD too (`[train.pam]`), which topk and relu can be trained by.
    #[arg(long)]
    pub pam: bool,
    #[command(flatten)]
    pub settings: Settings,
}

/// The settings; text is TOML.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Report(RunConfig);

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(to_toml(&self.0).map_err(|_| fmt::Error)?.trim_end())
    }
}

/// Resolves.
pub fn run(args: &Args) -> Result<Report> {
    let mut layers = args.settings.layers()?;
    layers.put_some("sae.arch", args.arch.clone())?;
    if args.pam && !layers.has("train.pam") {
        layers.put("train.pam", toml::Table::new())?;
    }
    Ok(Report(layers.resolve()?))
}
