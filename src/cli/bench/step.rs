//! `lapidary bench step`.

use std::io::{BufRead, Write};
use std::path::PathBuf;

use lapidary::bench::{BenchRows, Sample, Stage, StepBench, StepConfig, StepReport};
use lapidary::kernels::{set_screen, Screen};
use lapidary::{Error, Progress, Result};
use serde_json::{json, Value};

use crate::cli::output::Output;
use crate::cli::settings::{count, Settings};

/// Rows held out of --fvu-tokens' training, as the scripts of benches/peers hold them out.
const HELD_OUT: usize = 8192;
/// Seeded rows that --fvu-tokens trains on when no file is named.
const SEEDED: u64 = 200_000;

/// What an encode and a training step cost on this machine: wall and CPU time, tokens per second, memory.
///
/// Trains a dictionary as `train` would, on seeded rows or on those of --from in their order, and times batches one by one: `encode`
/// (the codes alone; of mp the pursuit), `step` (rows normalised, loss, sparse gradient, clipping, Adam), and `auxk` (the same with
/// --aux-dead of the latents dead). Stages take turns, so that a machine that slows down slows all of them. Read medians, and on a
/// machine with other work the CPU times.
///
/// --fvu-tokens N asks how good instead: N rows in file order at the constant --lr, then FVU on the last 8192 rows of --from (of
/// shards: of their held-out split). benches/README.md has the method, other libraries beside ours, and a table.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  lapidary bench step                                                  d 512, 8192 latents, k 32, batches of 2048
  lapidary bench step --d 768 --d-sae 24576 --batch 4096 --threads 1 --json
  lapidary bench step --baselines --screen off                         the encode against dense products, unscreened
  lapidary bench step --arch mp --batch 1024                           matching pursuit
  lapidary bench step --from acts.npy --fvu-tokens 204_800 --lr 1e-3   held-out FVU after so many rows
  lapidary bench step --from shards --arch batch-topk --set sae.aux_k.coef=0")]
pub struct Args {
    /// Width of seeded rows [default: 512]; rows of --from have their own.
    #[arg(long, value_name = "N", conflicts_with = "from")]
    pub d: Option<usize>,
    /// Number of latents [default: 16 x width].
    #[arg(long, value_name = "N", value_parser = count)]
    pub d_sae: Option<u64>,
    /// Codes per row [default: 32].
    #[arg(long, value_name = "N")]
    pub k: Option<u32>,
    /// Rows of a batch [default: 2048].
    #[arg(long, value_name = "N", value_parser = count)]
    pub batch: Option<u64>,
    /// Learner: topk, batch-topk, matryoshka, msae, mp, jump-relu, gated, relu [default: topk].
    #[arg(long, value_name = "NAME")]
    pub arch: Option<String>,
    /// Timed batches of each stage; two more before them are thrown away.
    #[arg(long, value_name = "N", default_value_t = 9)]
    pub steps: usize,
    /// Share of the latents that are dead in the stage `auxk`; 0 leaves the stage out.
    #[arg(long, value_name = "SHARE", default_value_t = 0.25)]
    pub aux_dead: f64,
    /// Time the encode's selection by dense product and quickselect (`dense`) and by dense product and sort (`sorted`) too; topk only.
    #[arg(long)]
    pub baselines: bool,
    /// What screens an encode, as kernels.screen has it: auto, off, bf16, ... It decides the time and nothing else.
    #[arg(long, value_name = "NAME")]
    pub screen: Option<String>,
    /// Rows from a file (.npy, .safetensors, .parquet) or a folder of shards [default: seeded rows].
    #[arg(long, value_name = "FILE|DIR")]
    pub from: Option<PathBuf>,
    /// Which tensor of the file, or column of the shards; may be left out when there is only one.
    #[arg(long, value_name = "NAME", visible_alias = "hook", requires = "from")]
    pub tensor: Option<String>,
    /// Learning rate, constant [default: 1e-3].
    #[arg(long, value_name = "X")]
    pub lr: Option<f64>,
    /// Seed of initialisation and of seeded rows [default: 0].
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Train on N rows, and report the held-out FVU instead of times.
    #[arg(long, value_name = "N", value_parser = count)]
    pub fvu_tokens: Option<u64>,
    /// Save the dictionary that --fvu-tokens starts from, for other programs to start from too.
    #[arg(long, value_name = "DIR", requires = "fvu_tokens")]
    pub start_out: Option<PathBuf>,
    /// Answer requests on stdin, one stage per line, with JSON lines: for scripts that alternate between programs.
    #[arg(long, hide = true)]
    pub serve: bool,
    #[command(flatten)]
    pub settings: Settings,
}

/// Reads or makes the rows, builds the learner.
fn prepare(args: &Args) -> Result<StepBench> {
    if let Some(name) = &args.screen {
        set_screen(screen(name)?);
    }
    let mut layers = args.settings.layers()?;
    layers.put_some("sae.arch", args.arch.clone())?;
    layers.put_some("sae.d_sae", args.d_sae.map(|n| n as i64))?;
    layers.put_some("sae.k", args.k)?;
    layers.put_some("train.batch", args.batch.map(|n| n as i64))?;
    layers.put_some("train.lr", args.lr)?;
    layers.put_some("train.seed", args.seed.map(|n| n as i64))?;
    // AuxK's and the penalties' delays follow from the length of a run: without one, that of a long run.
    layers.put("train.n_tokens", args.fvu_tokens.unwrap_or(1 << 30) as i64)?;
    layers.put_below("train", json!({ "batch": 2048, "lr": 1e-3 }))?;
    let run = layers.resolve()?;
    let (warmup, batch) = (2, run.train.batch as u64);
    let (n_train, n_held_out) = match args.fvu_tokens {
        Some(tokens) => (tokens.max(batch), HELD_OUT),
        // Enough that a stage meets other rows each time.
        None => ((args.steps + warmup) as u64 * batch, 0),
    };
    let rows = match &args.from {
        Some(path) => BenchRows::of_path(path, args.tensor.as_deref(), n_train as usize, n_held_out)?,
        None => {
            let n_train = if args.fvu_tokens.is_some() { n_train.min(SEEDED) } else { n_train };
            BenchRows::seeded(args.d.unwrap_or(512), n_train as usize, n_held_out, run.train.seed)?
        }
    };
    let latents_die = args.fvu_tokens.is_some();
    let config = StepConfig { sae: run.sae, train: run.train, steps: args.steps.max(1), warmup, aux_dead: args.aux_dead, latents_die };
    StepBench::new(config, rows)
}

fn screen(name: &str) -> Result<Screen> {
    serde_json::from_value(name.into()).map_err(|e| {
        let known = e.to_string().split("expected ").nth(1).unwrap_or("another").replace('`', "");
        Error::request(format!("`{name}` is no screen"), format!("pass {known}"))
    })
}

/// Measures.
pub fn run(args: &Args, output: &Output) -> Result<StepReport> {
    let mut bench = prepare(args)?;
    if let Some(tokens) = args.fvu_tokens {
        if let Some(dir) = &args.start_out {
            bench.dictionary()?.save(dir)?;
        }
        output.note(&format!("training on {tokens} rows"));
        let quality = bench.quality(tokens)?;
        return Ok(bench.report(Vec::new(), None, Some(quality)));
    }
    let mut stages = vec![Stage::Encode, Stage::Step];
    if args.aux_dead > 0.0 {
        stages.push(Stage::AuxK);
    }
    if args.baselines {
        stages.extend([Stage::Dense, Stage::Sorted]);
    }
    let stages = bench.stages(&stages)?;
    let memory = bench.memory()?;
    Ok(bench.report(stages, Some(memory), None))
}

/// `encode`, `step`, `auxk`, `dense` and `sorted` are timed once each; `screen NAME` changes the screen; `memory` measures a step's.
/// Every line is answered by one.
pub fn serve(args: &Args) -> Result<()> {
    let mut bench = prepare(args)?;
    let say = |answer: Value| {
        let mut out = std::io::stdout().lock();
        // A reader that is gone will also close stdin.
        let _ = writeln!(out, "{answer}").and_then(|()| out.flush());
    };
    say(json!({ "ready": bench.report(Vec::new(), None, None) }));
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|e| Error::io("read", "stdin", e))?;
        let mut words = line.split_whitespace();
        let answer = match (words.next(), words.next()) {
            (None, _) => continue,
            (Some("quit"), _) => break,
            (Some("screen"), Some(name)) => screen(name).map(|s| {
                set_screen(s);
                json!({ "screen": name })
            }),
            (Some("memory"), _) => bench.memory().map(|m| json!(m)),
            (Some(word), _) => match Stage::ALL.into_iter().find(|s| s.name() == word) {
                Some(stage) => bench.sample(stage).map(|Sample { wall_ms, cpu_ms }| json!({ "wall_ms": wall_ms, "cpu_ms": cpu_ms })),
                None => Err(Error::request(format!("`{word}` is nothing to time"), "send encode, step, auxk, dense, sorted or memory")),
            },
        };
        say(answer.unwrap_or_else(|e| json!({ "error": e.to_string() })));
    }
    Ok(())
}
