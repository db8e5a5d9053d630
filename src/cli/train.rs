//! `lapidary train`: rows to dictionaries, from shards or straight from a host.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Device;
use lapidary::artefact::Mode;
use lapidary::config::{to_toml, HostConfig, Layers, RunConfig, ShardsConfig};
use lapidary::corpus::planted::Planted;
use lapidary::corpus::CorpusConfig;
use lapidary::dictionary::Provenance;
use lapidary::harvest::{Began, HarvestConfig, Stream};
use lapidary::sae::SaeConfig;
use lapidary::score::planted::{mcc, mcc_null};
use lapidary::shard::{Shards, ShuffleConfig, Split};
use lapidary::stream::{MixConfig, Streamed};
use lapidary::train::{self, Beginning, Look, Member, RowSource, TrainConfig, TrainReport};
use lapidary::{Dictionary, Error, Progress, Result};

use super::host::{self, HostFlags, Opened};
use super::output::Output;
use super::settings::{count, List, OutMode, Settings};

/// Train dictionaries on harvested shards, or on a host's activations as they come.
///
/// Comma lists make a sweep: every combination is trained from one pass over the rows, each into its own folder.
///
/// With --shards rows are read from disk, any number of times. With --model and --corpus the host runs while the dictionary learns,
/// and nothing is written but the dictionary: rows pass through a mixing buffer (train.shuffle_bytes, 512 MiB by default), which is
/// filled, shuffled, trained on and filled again. Masking and held-out documents are those of `harvest`: harvest the same corpus with
/// the same --held-out (a part of it will do) for rows to `score` on.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  lapidary train --shards shards --d-sae 4096 --k 32 --out runs/k32
  lapidary train --shards shards --hook blocks.2.hook_resid_post --k 8,16,32 --seed 0,1,2 --n-tokens 1_000_000 --out runs/sweep
  lapidary train --shards shards --arch matryoshka --k 32 --set sae.prefixes=[512,2048,8192] --d-sae 8192 --out runs/nested
  lapidary train --shards shards --k 16 --pam --n-tokens 100_000 --set train.pam.ridge=10 --out runs/solved
  lapidary train --shards shards --config run.toml --set train.clip_norm=0 --out runs/x
  lapidary train --shards more --init-from runs/k32 --lr 5e-5 --out runs/k32-tuned
  lapidary train --model hf-folder --corpus texts/ --hook blocks.6.hook_resid_post --context 256 \\
                 --d-sae 16384 --k 32 --n-tokens 50_000_000 --out runs/streamed
A killed run goes on with the same command and --resume, to the same bytes.")]
pub struct Args {
    /// Folder of shards [default: shards.dir of --config].
    #[arg(long, value_name = "DIR")]
    pub shards: Option<PathBuf>,
    #[command(flatten)]
    pub host: HostFlags,
    /// Precision of the host's forward pass: f32 or bf16 [default: f32].
    #[arg(long, visible_alias = "host-dtype", value_name = "DTYPE", help_heading = "Host and corpus")]
    pub dtype: Option<String>,
    /// Which column of the shards (may be left out when there is only one), or where to read in the host.
    #[arg(long, value_name = "POINT")]
    pub hook: Option<String>,
    /// Learner: topk, batch-topk, matryoshka (nested prefixes), msae (nested k), mp, jump-relu, gated, relu; docs/variants.md says which is
    /// for what, and `lapidary config --arch NAME` shows its keys.
    #[arg(long, value_name = "NAME")]
    pub arch: Option<String>,
    /// Number of latents [default: 16 x width].
    #[arg(long, value_name = "N[,N...]")]
    pub d_sae: Option<List<usize>>,
    /// Active latents per row [default: 32]; of msae the smallest level.
    #[arg(long, value_name = "N[,N...]")]
    pub k: Option<List<usize>>,
    /// Active latents per row that jump-relu aims at [default: 32].
    #[arg(long, value_name = "X[,X...]")]
    pub target_l0: Option<List<f64>>,
    /// Weight of the L1 penalty of relu and gated [default: 5].
    #[arg(long, value_name = "X[,X...]")]
    pub l1: Option<List<f64>>,
    /// Folder of a dictionary to fine-tune: its atoms, encoder and thresholds are the start. Learner and sizes are its own unless
    /// said otherwise; another learner takes over what it can use.
    #[arg(long, value_name = "DIR")]
    pub init_from: Option<PathBuf>,
    /// Solve for the decoder after each pass instead of training it (PAM-SGD: topk and relu, from shards); docs/variant-pam.md,
    /// keys under train.pam.
    #[arg(long)]
    pub pam: bool,
    /// Rows to train on; epochs wrap [default: one pass over the shards].
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

/// One member's settings, where a flag names them.
#[derive(Debug, Clone, Default)]
struct Combination {
    d_sae: Option<usize>,
    k: Option<usize>,
    target_l0: Option<f64>,
    l1: Option<f64>,
    lr: Option<f64>,
    seed: Option<u64>,
}

/// Every combination of the lists, each `None` standing for the setting as it is.
fn combinations(args: &Args) -> Vec<Combination> {
    /// Every combination so far with every value of a list.
    fn times<T: Copy>(all: Vec<Combination>, list: &Option<List<T>>, put: impl Fn(&mut Combination, T)) -> Vec<Combination> {
        let Some(list) = list else { return all };
        let with = |c: &Combination, value: T| {
            let mut c = c.clone();
            put(&mut c, value);
            c
        };
        all.iter().flat_map(|c| list.0.iter().map(|&value| with(c, value)).collect::<Vec<_>>()).collect()
    }
    let all = vec![Combination::default()];
    let all = times(all, &args.d_sae, |c, v| c.d_sae = Some(v));
    let all = times(all, &args.k, |c, v| c.k = Some(v));
    let all = times(all, &args.target_l0, |c, v| c.target_l0 = Some(v));
    let all = times(all, &args.l1, |c, v| c.l1 = Some(v));
    let all = times(all, &args.lr, |c, v| c.lr = Some(v));
    times(all, &args.seed, |c, v| c.seed = Some(v))
}

/// The settings without the sweep's, the dictionary to start from, and where to learn.
struct Base {
    layers: Layers,
    from: Option<Arc<Dictionary>>,
    device: Device,
}

impl Base {
    /// File, `--set` and the learner, which decides which keys there are; below them the settings of the dictionary to start from.
    fn new(args: &Args, device: &Device) -> Result<Self> {
        let device = device.clone();
        let mut layers = args.settings.layers()?;
        layers.put_some("sae.arch", args.arch.clone())?;
        if args.pam && !layers.has("train.pam") {
            layers.put("train.pam", toml::Table::new())?;
        }
        layers.put_some("train.init_from", args.init_from.as_ref().map(|dir| dir.display().to_string()))?;
        let from = match layers.resolve()?.train.init_from.as_str() {
            "" => return Ok(Self { layers, from: None, device }),
            dir => Dictionary::load(Path::new(dir))?,
        };
        if layers.has("sae.arch") {
            // Another learner has other keys; its size is the dictionary's all the same.
            layers.put_below("sae", serde_json::json!({ "d_sae": from.d_sae() }))?;
        } else {
            layers.put_below("sae", SaeConfig::like(&from))?;
        }
        Ok(Self { layers, from: Some(Arc::new(from)), device })
    }
}

/// Resolves the sweep and runs it.
pub fn run(args: &Args, device: &Device, output: &Output) -> Result<TrainReport> {
    let base = Base::new(args, device)?;
    let config = base.layers.resolve()?;
    match from(args, &config)? {
        From::Shards(dir) => from_shards(args, &base, &config, &dir, output),
        From::Host => from_host(args, &base, device, output),
    }
}

/// Where the rows come from.
enum From {
    Shards(PathBuf),
    Host,
}

/// Flags decide before the run file does.
fn from(args: &Args, config: &RunConfig) -> Result<From> {
    let host_named = args.host.model.is_some() || args.host.corpus.is_some();
    let host_flag = args.host.given().or(args.dtype.as_ref().map(|_| "--dtype"));
    match (&args.shards, host_named) {
        (Some(_), true) => Err(Error::request(
            "--shards and --model/--corpus both say where the rows come from",
            "pass --shards, or --model with --corpus",
        )),
        (Some(dir), false) => Ok(From::Shards(dir.clone())),
        (None, true) => Ok(From::Host),
        (None, false) => match (!config.shards.dir.is_empty(), !config.host.model.is_empty() || !config.corpus.source.is_empty()) {
            (true, true) => Err(Error::request(
                "the run file names shards and a host",
                "say which to train from: --shards DIR, or --model with --corpus",
            )),
            (true, false) => Ok(From::Shards(PathBuf::from(&config.shards.dir))),
            (false, true) => Ok(From::Host),
            (false, false) => Err(Error::request(
                "nothing to train on was named",
                "pass --shards DIR (`lapidary harvest` makes them), or --model with --corpus to train straight from a host",
            )),
        },
    }
    .and_then(|from| match (from, host_flag) {
        (From::Shards(_), Some(flag)) => Err(Error::request(
            format!("{flag} says how a host runs, and the rows come from shards"),
            "leave it out, or harvest again with it",
        )),
        (from, _) => Ok(from),
    })
}

fn from_shards(args: &Args, base: &Base, config: &RunConfig, dir: &Path, output: &Output) -> Result<TrainReport> {
    let shards = Shards::open(dir)?;
    let id = shards.manifest().id.clone();
    // A folder named by a flag is the user's choice; one that comes from a run file must still hold what it held.
    if args.shards.is_none() && !config.shards.id.is_empty() && config.shards.id != id {
        return Err(Error::request(
            format!("{} holds another harvest than the run file was made with", dir.display()),
            "pass --shards to train on what is there now",
        ));
    }
    let hook = args.hook.as_deref().or((!config.shards.hook.is_empty()).then_some(config.shards.hook.as_str()));
    let column = shards.column(hook)?.clone();
    let rows = shards.rows(Some(Split::Train));
    let manifest = shards.manifest();
    let from = serde_json::json!({ "corpus": manifest.corpus, "rows": rows, "id": manifest.id });
    let provenance = Provenance { hook: column.name.clone(), host: manifest.host.clone(), shards: from, ..Default::default() };
    let table = ShardsConfig { dir: dir.display().to_string(), hook: column.name.clone(), id };
    let look = look(Planted::of_corpus(&manifest.corpus, shards.dir())?, output);
    let members = members(args, base, column.width, rows, &provenance, look, |sae, train| {
        to_toml(&ShardsFile { shards: table.clone(), sae: sae.clone(), train: train.clone() })
    })?;
    let first = &members[0].train;
    let passes = first.n_tokens as f64 / rows as f64;
    let shuffle = ShuffleConfig { seed: first.data_seed.unwrap_or(first.seed), buffer_bytes: first.shuffle_bytes as usize };
    let mut source = shards.shuffled(&column.name, Some(Split::Train), &shuffle)?;
    start(args, members, &mut source, &column.name, &format!("{passes:.2} passes over {rows} rows"), output)
}

fn from_host(args: &Args, base: &Base, device: &Device, output: &Output) -> Result<TrainReport> {
    let mut layers = base.layers.clone();
    args.host.put(&mut layers)?;
    layers.put_some("host.dtype", args.dtype.clone())?;
    if let Some(hook) = &args.hook {
        layers.put("harvest.hooks", vec![hook.clone()])?;
    }
    layers.put_some("train.n_tokens", args.n_tokens.map(|v| v as i64))?;
    let mut config = layers.resolve()?;
    if config.train.n_tokens == 0 {
        return Err(Error::request(
            "how long a stream is, is not known before it is read",
            "say how many rows to train on with --n-tokens",
        ));
    }
    let began = if args.mode.mode() == Mode::Resume { began(&args.out)? } else { None };
    let Opened { host, corpus, tokenizer } = host::open(&layers, &mut config, began.as_ref(), device, output)?;
    let stream = Stream::new(host.as_ref(), &corpus, tokenizer.as_ref(), &config.harvest)?;
    let (hook, width) = (stream.column().name.clone(), stream.column().width);
    let provenance = Provenance { hook: hook.clone(), host: stream.host().clone(), ..Default::default() };
    let members = members(args, base, width, config.train.n_tokens, &provenance, None, |sae, train| {
        let (host, corpus, harvest) = (config.host.clone(), corpus.config().clone(), stream.config().clone());
        to_toml(&HostFile { host, corpus, harvest, sae: sae.clone(), train: train.clone() })
    })?;
    let first = &members[0].train;
    let n_rows = first.n_steps() * first.batch as u64;
    let mix = MixConfig { seed: first.data_seed.unwrap_or(first.seed), buffer_bytes: first.shuffle_bytes, n_rows };
    let mut source = Streamed::new(stream, mix, output)?;
    let rows = source.window_rows();
    let from = format!(
        "{} reads {}, {rows} rows at a time are mixed ({:.0} MB)",
        config.host.model,
        config.corpus.source,
        source.window_bytes() as f64 / 1e6
    );
    start(args, members, &mut source, &hook, &from, output)
}

/// The host and corpus of the run in `out`, from the run file that it keeps beside its (first) dictionary.
fn began(out: &Path) -> Result<Option<Began>> {
    let inside = std::fs::read_dir(out).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path().join("config.toml")));
    let Some(file) = std::iter::once(out.join("config.toml")).chain(inside).find(|path| path.is_file()) else { return Ok(None) };
    let config = Layers::new(Some(&file))?.resolve()?;
    let (id, revision) = config.host.model.rsplit_once('@').unwrap_or_default();
    let host = serde_json::json!({ "hub_id": id, "revision": revision });
    Ok(Some(Began { host, source: config.corpus.source }))
}

fn start(args: &Args, members: Vec<Member>, source: &mut dyn RowSource, hook: &str, from: &str, output: &Output) -> Result<TrainReport> {
    let first = &members[0].train;
    if args.mode.mode() == Mode::Fresh {
        let what = if members.len() == 1 { format!("`{}`", members[0].name) } else { format!("{} dictionaries", members.len()) };
        let (steps, batch) = (first.n_steps(), first.batch);
        output.note(&format!("training {what} on {hook} ({} wide): {steps} steps of {batch} rows, {from}", source.width()));
    }
    train::train(members, source, &args.out, args.mode.mode(), output)
}

/// How close atoms are to the planted features before training, beside what chance gives: far above it, the start has seen the truth
/// (one seed for data and initialisation, say).
fn look(planted: Option<Planted>, output: &Output) -> Option<Look> {
    let truth = planted?.truth().clone();
    let output = output.second();
    Some(Arc::new(move |atoms| {
        let (n, d) = atoms.dims2()?;
        let (found, chance) = (mcc(atoms, &truth)?.mcc, mcc_null(d, n, truth.len(), 0).mcc);
        output.note(&format!("atoms at the start: MCC {found:.3} with the planted features, {chance:.3} by chance"));
        Ok(serde_json::json!({ "mcc": found, "mcc_null": chance }))
    }))
}

/// The sweep's members; `file` writes the run file beside a dictionary, which `lapidary train --config` takes as it is.
fn members(
    args: &Args,
    base: &Base,
    width: usize,
    rows: u64,
    provenance: &Provenance,
    look: Option<Look>,
    file: impl Fn(&SaeConfig, &TrainConfig) -> Result<String>,
) -> Result<Vec<Member>> {
    let sweep = combinations(args);
    let first_seed = args.seed.as_ref().and_then(|s| s.0.first().copied());
    let member = |c: &Combination| -> Result<Member> {
        let mut layers = base.layers.clone();
        layers.put_some("sae.d_sae", c.d_sae.map(|v| v as i64))?;
        layers.put_some("sae.k", c.k.map(|v| v as i64))?;
        layers.put_some("sae.target_l0", c.target_l0)?;
        layers.put_some("sae.l1", c.l1)?;
        layers.put_some("train.n_tokens", args.n_tokens.map(|v| v as i64))?;
        layers.put_some("train.batch", args.batch.map(|v| v as i64))?;
        layers.put_some("train.lr", c.lr)?;
        layers.put_some("train.seed", c.seed.map(|v| v as i64))?;
        let mut config = layers.resolve()?;
        config.train.data_seed = config.train.data_seed.or(first_seed);
        let n_tokens = if config.train.n_tokens == 0 { rows } else { config.train.n_tokens };
        let sae = config.sae.resolve(width, n_tokens)?;
        let train = config.train.resolve(sae.d_sae(), rows)?;
        let mode = if train.pam.is_some() { "pam-" } else { "" };
        let mut name = format!("{mode}{}-s{}", sae.label(), train.seed);
        if args.lr.as_ref().is_some_and(|l| l.0.len() > 1) {
            name = format!("{name}-lr{:e}", train.lr);
        }
        let dir = if sweep.len() > 1 { args.out.join(&name) } else { args.out.clone() };
        let config_toml = file(&sae, &train)?;
        let beginning = Beginning { from: base.from.clone(), look: look.clone() };
        Ok(Member { name, dir, sae, train, config_toml, provenance: provenance.clone(), beginning, device: base.device.clone() })
    };
    sweep.iter().map(member).collect()
}

/// The tables of a run from shards.
#[derive(serde::Serialize)]
struct ShardsFile {
    shards: ShardsConfig,
    sae: SaeConfig,
    train: TrainConfig,
}

/// The tables of a run from a host.
#[derive(serde::Serialize)]
struct HostFile {
    host: HostConfig,
    corpus: CorpusConfig,
    harvest: HarvestConfig,
    sae: SaeConfig,
    train: TrainConfig,
}
