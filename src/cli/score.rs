//! `lapidary score`: a dictionary's metrics on held-out rows, baselines beside.

use std::path::PathBuf;

use candle_core::Device;
use lapidary::corpus::planted::Planted;
use lapidary::score::{self, baselines, Metrics, Ordered, Requirement, ScoreConfig, ScoreReport};
use lapidary::shard::{Batch, Shards, ShuffleConfig, Shuffled, Split};
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

/// The first rows of a shuffled stream, as an iterator that ends.
pub struct Sample {
    rows: Shuffled,
    left: usize,
}

impl Sample {
    /// `n` training rows of a column in seeded order.
    pub fn new(shards: &Shards, column: &str, seed: u64, n: usize) -> Result<Self> {
        let n = n.min(shards.rows(Some(Split::Train)) as usize);
        Ok(Self { rows: shards.shuffled(column, Some(Split::Train), &ShuffleConfig { seed, ..Default::default() })?, left: n })
    }
}

impl Iterator for Sample {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        let n = self.left.min(4096);
        self.left -= n;
        (n > 0).then(|| self.rows.next_batch(n))
    }
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
    if shards.rows(split) == 0 {
        return Err(Error::request(
            format!("{} holds no such rows", args.reading.shards.display()),
            "harvest with --held-out above 0, or score with --split all",
        ));
    }
    let config = ScoreConfig::default();
    // Rows whose features are known are scored against them too.
    let truth = Planted::of_corpus(&shards.manifest().corpus, shards.dir())?;
    let stream = shards.scan(&column, split)?;
    let nested: Vec<(usize, Dictionary)> =
        dictionary.prefixes().into_iter().map(|m| Ok((m, dictionary.prefix(m)?))).collect::<Result<_>>()?;
    let counts = dictionary.step_counts();
    let k = counts.last().copied();
    let shorter: Vec<(usize, Dictionary)> =
        counts.into_iter().filter(|&s| Some(s) != k).map(|s| Ok((s, dictionary.shorter(s)?))).collect::<Result<_>>()?;
    let whole_and_parts: Vec<&Dictionary> = std::iter::once(&dictionary).chain(nested.iter().chain(&shorter).map(|(_, d)| d)).collect();
    let mut parts = score::score_planted(&whole_and_parts, stream, &config, truth.as_ref(), output)?;
    let mut scores = parts.remove(0);
    let own = scores.metrics.clone();
    let mut beside = Vec::new();
    if !args.no_baselines {
        let k = dictionary.activation.k().unwrap_or_else(|| scores.metrics.get("l0").map_or(1, |l0| l0.round().max(1.0) as usize));
        let settings = baselines::BaselineConfig { k, d_sae: dictionary.d_sae(), seed: args.seed, ..Default::default() };
        beside = baselines::baselines(Sample::new(&shards, &column, args.seed, settings.sample_rows)?, &settings, output)?;
    }
    let refs: Vec<&Dictionary> = beside.iter().map(|(_, d)| d).collect();
    let mut others = match refs.is_empty() {
        true => Vec::new(),
        false => score::score_planted(&refs, shards.scan(&column, split)?, &config, truth.as_ref(), output)?,
    };
    if args.splice.model.is_some() {
        let all: Vec<&Dictionary> = std::iter::once(&dictionary).chain(refs.iter().copied()).collect();
        let recovered = splice::recovered(&args.splice, &shards, &column, &all, split, device, output)?;
        for (scores, metrics) in std::iter::once(&mut scores).chain(&mut others).zip(recovered) {
            scores.metrics.extend(metrics);
        }
    }
    let early = parts.split_off(nested.len());
    let named = |those: &[(usize, Dictionary)], parts: Vec<score::Scores>| -> Ordered<Metrics> {
        those.iter().zip(parts).map(|((n, _), part)| (n.to_string(), part.metrics)).collect()
    };
    let (prefixes, mut steps) = (named(&nested, parts), named(&shorter, early));
    if let Some(k) = k {
        // Without what splicing adds: the shorter ones have no such figures.
        steps.insert(k.to_string(), own);
    }
    let report = ScoreReport {
        split: args.split.split().map_or("all", Split::name).to_string(),
        rows: scores.rows,
        metrics: scores.metrics.clone(),
        prefixes,
        steps,
        baselines: beside.iter().zip(others).map(|((name, _), s)| (name.clone(), s.metrics)).collect(),
    };
    let out = args.out.as_ref().unwrap_or(&args.reading.dictionary);
    report.save(out)?;
    scores.latents.save(out)?;
    let met = Requirement::check_all(&requirements, &report.metrics);
    Ok((report, met))
}
