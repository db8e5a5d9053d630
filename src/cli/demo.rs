//! `lapidary demo`: the whole pipeline on the built-in host, offline: harvest, a sweep, scores, concept recovery with controls,
//! a feature table with its dashboard, plots.
//!
//! It calls the verbs themselves, so what it does can be typed: each step prints its command line.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::Device;
use lapidary::claims::concepts::{Ground, Recoveries, Sources};
use lapidary::host::{self, LoadOptions};
use lapidary::score::{figure, ScoreReport};
use lapidary::shard::Shards;
use lapidary::{Dictionary, Error, Progress, Result};
use serde::Serialize;

use super::host::HostFlags;
use super::output::Output;
use super::settings::{List, OutMode, Reading, Settings, SplitChoice};
use super::{dashboard, features, harvest, plot, score, splice, train};

/// The hook point that the demo looks into.
const HOOK: &str = "blocks.2.hook_resid_post";
const EMBED: &str = "hook_embed";
const MLP: &str = "blocks.2.mlp.hook_post";
const KS: [usize; 3] = [4, 8, 16];
/// The member of the sweep whose features are examined.
const K: usize = 8;
const D_SAE: usize = 512;

/// Run the whole pipeline in minutes, offline, on the built-in host: what a first look at Lapidary should be.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  lapidary demo
writes runs/demo-1, runs/demo-2, ... and ends by saying what is where and what to try next.")]
pub struct Args {
    /// Folder for everything [default: a fresh runs/demo-N].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Seed of initialisation and row order.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

/// What the demo found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Where everything is.
    pub out: PathBuf,
    /// The dictionary whose features were examined.
    pub dictionary: PathBuf,
    /// Wall clock.
    pub seconds: f64,
    /// The sweep's scores, by member.
    pub scores: Vec<Scored>,
    /// Concept recovery, by representation.
    pub concepts: Recoveries,
}

/// A dictionary and its scores.
#[derive(Debug, Serialize)]
pub struct Scored {
    /// Its folder's name.
    pub name: String,
    /// Its scores, baselines included.
    #[serde(flatten)]
    pub report: ScoreReport,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\nReconstruction of {HOOK}, held-out rows ({} of them); baselines at the same L0",
            self.scores.first().map_or(0, |s| s.report.rows)
        )?;
        writeln!(f, "{:<22} {:>7} {:>8} {:>8} {:>8} {:>13} {:>10}", "", "L0", "FVU", "cosine", "dead", "CE recovered", "KL recov.")?;
        for scored in &self.scores {
            row(f, &scored.name, &scored.report.metrics)?;
            for (name, metrics) in scored.report.baselines.iter() {
                row(f, &format!("  {name}"), metrics)?;
            }
        }
        writeln!(f, "\n{}", self.concepts)?;
        let out = self.out.display();
        writeln!(f, "{:.0} s in all. Where everything is:", self.seconds)?;
        writeln!(f, "  {out}/dashboard.html      every latent: open it in a browser")?;
        writeln!(f, "  {out}/features            the same as tables (Parquet), docs/features.md")?;
        writeln!(f, "  {out}/shards              activations (Parquet), docs/shards.md")?;
        writeln!(f, "  {out}/sweep/*             dictionaries, logs, scores")?;
        writeln!(f, "  {out}/plots               training curves, densities, FVU against L0, concept recovery (SVG and PNG)")?;
        writeln!(f, "  {out}/concepts.json       every concept under every representation")?;
        writeln!(f, "Try next:")?;
        writeln!(f, "  lapidary inspect fable")?;
        writeln!(f, "  lapidary train --shards {out}/shards --hook {HOOK} --d-sae 2048 --k 8,32 --n-tokens 1_000_000 --out runs/mine")?;
        let dictionary = self.dictionary.display();
        writeln!(f, "  lapidary trace --dictionary {dictionary} --features {out}/features --model fable --text 'one day , a girl named zoe likes a kite .'")?;
        writeln!(f, "  lapidary steer --dictionary {dictionary} --model fable --latent 12=+20 --text 'one day , a girl'")?;
        write!(f, "  lapidary encode --dictionary {dictionary} --shards {out}/shards --split held-out --out runs/codes")
    }
}

fn row(f: &mut fmt::Formatter<'_>, name: &str, metrics: &lapidary::score::Metrics) -> fmt::Result {
    let cell = |id: &str| metrics.get(id).map_or("-".to_string(), |&v| figure(v));
    let (l0, fvu, cosine, dead) = (cell("l0"), cell("fvu"), cell("cosine"), cell("dead_fraction"));
    writeln!(f, "{name:<22} {l0:>7} {fvu:>8} {cosine:>8} {dead:>8} {:>13} {:>10}", cell("ce_loss_score"), cell("kl_score"))
}

/// Runs it.
pub fn run(args: &Args, device: &Device, output: &Output) -> Result<Report> {
    let started = Instant::now();
    let out = match &args.out {
        Some(out) if !lapidary::artefact::is_empty(out)? => return Err(Error::OutputNotEmpty { path: out.clone() }),
        Some(out) => out.clone(),
        None => fresh("runs/demo")?,
    };
    let info = host::load("fable", &LoadOptions { dtype: None, device: device.clone() })?.info().clone();
    output.note(&format!(
        "host `fable`: {} blocks, d_model {}, {} parameters; everything goes to {}",
        info.n_layers,
        info.d_model,
        info.n_params,
        out.display()
    ));

    let shards = out.join("shards");
    harvested("fable", &[HOOK, EMBED, MLP], 400_000, &shards, device, output)?;
    let random = out.join("controls/random-shards");
    harvested("fable-random", &[HOOK], 200_000, &random, device, output)?;

    let sweep = out.join("sweep");
    let members = trained(&shards, HOOK, &KS, 1_200_000, args.seed, &sweep, output)?;
    let embed = out.join("controls/embed");
    trained(&shards, EMBED, &[K], 400_000, args.seed, &embed, output)?;
    let on_random = out.join("controls/random");
    trained(&random, HOOK, &[K], 400_000, args.seed, &on_random, output)?;

    let mut scores = Vec::new();
    for member in &members {
        scores.push(scored(&member.dictionary, &member.name, &shards, device, output)?);
    }
    let dictionary = sweep.join(format!("k{K}-d{D_SAE}-s{}", args.seed));
    let (features, dashboard) = (out.join("features"), out.join("dashboard.html"));
    output.note(&format!(
        "\n$ lapidary features --dictionary {} --shards {} --out {}",
        dictionary.display(),
        shards.display(),
        features.display()
    ));
    output.note(&features::run(&features::Args::new(&dictionary, &shards, features.clone()), device, output)?.to_string());
    output.note(&format!(
        "\n$ lapidary dashboard --dictionary {} --features {} --out {}",
        dictionary.display(),
        features.display(),
        dashboard.display()
    ));
    let page = dashboard::Args { features, dictionary: Some(dictionary.clone()), out: dashboard.clone(), title: None, overwrite: false };
    output.note(&dashboard::run(&page, output)?.to_string());
    output.note("\nconcept recovery on held-out stories");
    let (shards, random) = (Shards::open(&shards)?, Shards::open(&random)?);
    let ground = Ground::new(&Sources { shards: &shards, hook: HOOK, mlp: MLP, embed: EMBED, random_shards: &random }, output)?;
    let load = |dir: &Path| Dictionary::load(dir);
    let concepts = ground.recover(&load(&dictionary)?, &load(&embed)?, &load(&on_random)?)?;
    concepts.save(&out)?;
    plot::run(&plot::Args::new(sweep, &[], out.join("plots")))?;
    plot::run(&plot::Args::new(out.clone(), &["recovery"], out.join("plots")))?;
    Ok(Report { out, dictionary, seconds: started.elapsed().as_secs_f64(), scores, concepts })
}

/// The first `stem-N` that is not there yet.
fn fresh(stem: &str) -> Result<PathBuf> {
    for n in 1.. {
        let path = PathBuf::from(format!("{stem}-{n}"));
        if !path.exists() {
            return Ok(path);
        }
    }
    unreachable!("there are more numbers than folders")
}

fn harvested(model: &str, hooks: &[&str], n_tokens: u64, out: &Path, device: &Device, output: &Output) -> Result<()> {
    let flags: String = hooks.iter().map(|h| format!(" --hook {h}")).collect();
    output.note(&format!(
        "\n$ lapidary harvest --model {model} --corpus fable{flags} --n-tokens {n_tokens} --context 128 --held-out 0.2 --out {}",
        out.display()
    ));
    let args = harvest::Args::for_demo(model, "fable", hooks, n_tokens, 128, 0.2, out);
    let report = harvest::run(&args, device, output)?;
    output.note(&report.to_string());
    Ok(())
}

fn trained(
    shards: &Path,
    hook: &str,
    ks: &[usize],
    n_tokens: u64,
    seed: u64,
    out: &Path,
    output: &Output,
) -> Result<Vec<lapidary::train::TrainedMember>> {
    let k = ks.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    output.note(&format!(
        "\n$ lapidary train --shards {} --hook {hook} --d-sae {D_SAE} --k {k} --n-tokens {n_tokens} --batch 1024 --lr 2e-3 --seed {seed} --out {}",
        shards.display(),
        out.display()
    ));
    let args = train::Args {
        pam: false,
        l1: None,
        target_l0: None,
        shards: Some(shards.to_path_buf()),
        host: HostFlags::default(),
        dtype: None,
        hook: Some(hook.to_string()),
        init_from: None,
        arch: None,
        d_sae: Some(List(vec![D_SAE])),
        k: Some(List(ks.to_vec())),
        n_tokens: Some(n_tokens),
        batch: Some(1024),
        lr: Some(List(vec![2e-3])),
        seed: Some(List(vec![seed])),
        out: out.to_path_buf(),
        mode: OutMode::default(),
        settings: Settings::default(),
    };
    let report = train::run(&args, &Device::Cpu, output)?;
    output.note(&report.to_string());
    Ok(report.members)
}

fn scored(dictionary: &Path, name: &str, shards: &Path, device: &Device, output: &Output) -> Result<Scored> {
    output.note(&format!(
        "\n$ lapidary score --dictionary {} --shards {} --model fable --splice-tokens 10_000",
        dictionary.display(),
        shards.display()
    ));
    let args = score::Args {
        reading: Reading {
            dictionary: dictionary.to_path_buf(),
            shards: shards.to_path_buf(),
            hook: None,
            activation: None,
            settings: Settings::default(),
        },
        split: SplitChoice::HeldOut,
        splice: splice::Args { model: Some("fable".into()), corpus: None, splice_tokens: 10_000, dtype: None, batch_tokens: None },
        require: Vec::new(),
        no_baselines: false,
        seed: 0,
        out: None,
    };
    let (report, _) = score::run(&args, device, output)?;
    Ok(Scored { name: name.to_string(), report })
}
