//! `lapidary train`: shards to dictionaries.

use std::path::PathBuf;

use lapidary::artefact::Mode;
use lapidary::config::{to_toml, RunConfig, ShardsConfig};
use lapidary::dictionary::Provenance;
use lapidary::sae::SaeConfig;
use lapidary::shard::{Shards, ShuffleConfig, Split};
use lapidary::train::{self, scale_for, Member, TrainConfig, TrainReport};
use lapidary::{Error, Progress, Result};

use super::output::Output;
use super::settings::{count, List, OutMode, Settings};

/// Train dictionaries on harvested shards.
///
/// Comma lists make a sweep: every combination is trained from one pass over the shards, each into its own folder.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  lapidary train --shards shards --d-sae 4096 --k 32 --out runs/k32
  lapidary train --shards shards --hook blocks.2.hook_resid_post --k 8,16,32 --seed 0,1,2 --n-tokens 1_000_000 --out runs/sweep
  lapidary train --shards shards --config run.toml --set train.clip_norm=0 --out runs/x
A killed run goes on with the same command and --resume, to the same bytes.")]
pub struct Args {
    /// Folder of shards [default: shards.dir of --config].
    #[arg(long, value_name = "DIR")]
    pub shards: Option<PathBuf>,
    /// Which column of the shards; may be left out when there is only one.
    #[arg(long, value_name = "POINT")]
    pub hook: Option<String>,
    /// Learner: topk.
    #[arg(long, value_name = "NAME")]
    pub arch: Option<String>,
    /// Number of latents [default: 16 x width].
    #[arg(long, value_name = "N[,N...]")]
    pub d_sae: Option<List<usize>>,
    /// Active latents per row [default: 32].
    #[arg(long, value_name = "N[,N...]")]
    pub k: Option<List<usize>>,
    /// Rows to train on; epochs wrap [default: one pass].
    #[arg(long, value_name = "N", value_parser = count)]
    pub n_tokens: Option<u64>,
    /// Rows per step [default: 4096].
    #[arg(long, value_name = "N", value_parser = count)]
    pub batch: Option<u64>,
    /// Peak learning rate [default: 2e-4 / sqrt(d_sae / 2^14)].
    #[arg(long, value_name = "X[,X...]")]
    pub lr: Option<List<f64>>,
    /// Seeds of initialisation; the first also orders the rows, for all members of a sweep [default: 0].
    #[arg(long, value_name = "N[,N...]")]
    pub seed: Option<List<u64>>,
    /// Folder of the dictionary; of a sweep, the folder of its members.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    #[command(flatten)]
    pub mode: OutMode,
    #[command(flatten)]
    pub settings: Settings,
}

/// d_sae, k, lr and seed of one member, where a flag names them.
type Combination = (Option<usize>, Option<usize>, Option<f64>, Option<u64>);

/// Every combination of the lists, each `None` standing for the setting as it is.
fn combinations(args: &Args) -> Vec<Combination> {
    fn options<T: Copy>(list: &Option<List<T>>) -> Vec<Option<T>> {
        list.as_ref().map_or(vec![None], |l| l.0.iter().copied().map(Some).collect())
    }
    let mut all = Vec::new();
    for d_sae in options(&args.d_sae) {
        for k in options(&args.k) {
            for lr in options(&args.lr) {
                for seed in options(&args.seed) {
                    all.push((d_sae, k, lr, seed));
                }
            }
        }
    }
    all
}

/// Resolves the sweep and runs it.
pub fn run(args: &Args, output: &Output) -> Result<TrainReport> {
    let base = args.settings.layers()?.resolve()?;
    let dir = args.shards.clone().or_else(|| (!base.shards.dir.is_empty()).then(|| PathBuf::from(&base.shards.dir)));
    let dir = dir.ok_or_else(|| Error::request("no shards were named", "pass --shards DIR; `lapidary harvest` makes them"))?;
    let shards = Shards::open(&dir)?;
    let id = shards.manifest().id.clone();
    // A folder named by a flag is the user's choice; one that comes from a run file must still hold what it held.
    if args.shards.is_none() && !base.shards.id.is_empty() && base.shards.id != id {
        return Err(Error::request(
            format!("{} holds another harvest than the run file was made with", dir.display()),
            "pass --shards to train on what is there now",
        ));
    }
    let hook = args.hook.clone().or_else(|| (!base.shards.hook.is_empty()).then_some(base.shards.hook));
    let column = shards.column(hook.as_deref())?.clone();
    let sweep = combinations(args);
    let first_seed = args.seed.as_ref().and_then(|s| s.0.first().copied());
    let members = sweep
        .iter()
        .map(|&(d_sae, k, lr, seed)| {
            let mut layers = args.settings.layers()?;
            layers.put_some("sae.arch", args.arch.clone())?;
            layers.put_some("sae.d_sae", d_sae.map(|v| v as i64))?;
            layers.put_some("sae.k", k.map(|v| v as i64))?;
            layers.put_some("train.n_tokens", args.n_tokens.map(|v| v as i64))?;
            layers.put_some("train.batch", args.batch.map(|v| v as i64))?;
            layers.put_some("train.lr", lr)?;
            layers.put_some("train.seed", seed.map(|v| v as i64))?;
            layers.put("shards.dir", dir.display().to_string())?;
            layers.put("shards.hook", column.name.clone())?;
            layers.put("shards.id", id.clone())?;
            let mut config = layers.resolve()?;
            config.train.data_seed = config.train.data_seed.or(first_seed);
            member(args, &shards, column.width, config, sweep.len() > 1)
        })
        .collect::<Result<Vec<_>>>()?;
    let first = &members[0].train;
    let mean_sq_norm = shards.manifest().columns.iter().find(|c| c.column.name == column.name).map_or(f64::NAN, |c| c.mean_sq_norm);
    let scale = scale_for(mean_sq_norm, column.width)?;
    let rows = shards.rows(Some(Split::Train));
    if args.mode.mode() == Mode::Fresh {
        output.note(&format!(
            "training {} on {} ({} wide): {} steps of {} rows, {:.2} passes over {} rows",
            if members.len() == 1 { format!("`{}`", members[0].name) } else { format!("{} dictionaries", members.len()) },
            column.name,
            column.width,
            first.n_steps(),
            first.batch,
            first.n_tokens as f64 / rows as f64,
            rows,
        ));
    }
    let shuffle = ShuffleConfig { seed: first.data_seed.unwrap_or(first.seed), buffer_bytes: first.shuffle_bytes as usize };
    let mut source = shards.shuffled(&column.name, Some(Split::Train), &shuffle)?;
    train::train(members, &mut source, scale, &args.out, args.mode.mode(), output)
}

fn member(args: &Args, shards: &Shards, width: usize, config: RunConfig, in_sweep: bool) -> Result<Member> {
    let rows = shards.rows(Some(Split::Train));
    let n_tokens = if config.train.n_tokens == 0 { rows } else { config.train.n_tokens };
    let sae = config.sae.resolve(width, n_tokens)?;
    let train = config.train.resolve(sae.d_sae(), rows)?;
    let mut name = format!("{}-s{}", sae.label(), train.seed);
    if args.lr.as_ref().is_some_and(|l| l.0.len() > 1) {
        name = format!("{name}-lr{:e}", train.lr);
    }
    let manifest = shards.manifest();
    let from = serde_json::json!({ "corpus": manifest.corpus, "rows": rows, "id": manifest.id });
    let provenance = Provenance { hook: config.shards.hook.clone(), host: manifest.host.clone(), shards: from, ..Default::default() };
    // The run file beside the dictionary: `lapidary train --config` takes it as it is.
    let file = RunFile { shards: config.shards, sae: sae.clone(), train: train.clone() };
    let dir = if in_sweep { args.out.join(&name) } else { args.out.clone() };
    Ok(Member { name, dir, sae, train, config_toml: to_toml(&file)?, provenance })
}

/// The tables that `train` uses.
#[derive(serde::Serialize)]
struct RunFile {
    shards: ShardsConfig,
    sae: SaeConfig,
    train: TrainConfig,
}
