//! A dictionary over shards, scored beside its parts and beside baselines that nobody trained, in one call.

use super::baselines::{baselines, BaselineConfig};
use super::{score_planted, LatentStats, Metrics, Ordered, ScoreConfig, ScoreReport, Scores};
use crate::corpus::planted::Planted;
use crate::dictionary::Dictionary;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::shard::{Shards, Split};

/// What scoring a dictionary beside others gives.
#[derive(Debug, Clone)]
pub struct Compared {
    /// The figures.
    pub report: ScoreReport,
    /// The table of its latents.
    pub latents: LatentStats,
    /// The baselines, in the order of the report.
    pub baselines: Vec<(String, Dictionary)>,
}

/// Scores a dictionary, its prefixes (Matryoshka), its shorter runs (a pursuit), and, where `baselines_from` is a seed, the
/// [`baselines`] at its number of latents per row, made from training rows, on the rows of a split (`None` = all). Rows that were planted
/// are scored against the truth too. Save report and latents where the dictionary is, and [`crate::plot::collect`] finds them.
///
/// # Errors
/// A split without rows; as [`score_planted`] and [`baselines`].
pub fn compare(
    dictionary: &Dictionary,
    shards: &Shards,
    column: &str,
    split: Option<Split>,
    baselines_from: Option<u64>,
    progress: &dyn Progress,
) -> Result<Compared> {
    if shards.rows(split) == 0 {
        return Err(Error::request(
            format!("{} holds no such rows", shards.dir().display()),
            "harvest with --held-out above 0, or score with --split all",
        ));
    }
    let config = ScoreConfig::default();
    let truth = Planted::of_corpus(&shards.manifest().corpus, shards.dir())?;
    let nested: Vec<(usize, Dictionary)> =
        dictionary.prefixes().into_iter().map(|m| Ok((m, dictionary.prefix(m)?))).collect::<Result<_>>()?;
    let counts = dictionary.step_counts();
    let k = counts.last().copied();
    let shorter: Vec<(usize, Dictionary)> =
        counts.into_iter().filter(|&s| Some(s) != k).map(|s| Ok((s, dictionary.shorter(s)?))).collect::<Result<_>>()?;
    let whole_and_parts: Vec<&Dictionary> = std::iter::once(dictionary).chain(nested.iter().chain(&shorter).map(|(_, d)| d)).collect();
    let mut parts = score_planted(&whole_and_parts, shards.scan(column, split)?, &config, truth.as_ref(), progress)?;
    let own = parts.remove(0);
    let early = parts.split_off(nested.len());
    let named = |those: &[(usize, Dictionary)], parts: Vec<Scores>| -> Ordered<Metrics> {
        those.iter().zip(parts).map(|((n, _), part)| (n.to_string(), part.metrics)).collect()
    };
    let (prefixes, mut steps) = (named(&nested, parts), named(&shorter, early));
    if let Some(k) = k {
        steps.insert(k.to_string(), own.metrics.clone());
    }
    let mut made = Vec::new();
    if let Some(seed) = baselines_from {
        let k = dictionary.activation.k().unwrap_or_else(|| own.metrics.get("l0").map_or(1, |l0| l0.round().max(1.0) as usize));
        let settings = BaselineConfig { k, d_sae: dictionary.d_sae(), seed, ..Default::default() };
        made = baselines(shards.sample(column, seed, settings.sample_rows)?, &settings, progress)?;
    }
    let refs: Vec<&Dictionary> = made.iter().map(|(_, d)| d).collect();
    let others = match refs.is_empty() {
        true => Vec::new(),
        false => score_planted(&refs, shards.scan(column, split)?, &config, truth.as_ref(), progress)?,
    };
    let report = ScoreReport {
        split: split.map_or("all", Split::name).to_string(),
        rows: own.rows,
        metrics: own.metrics,
        prefixes,
        steps,
        baselines: made.iter().zip(others).map(|((name, _), s)| (name.clone(), s.metrics)).collect(),
    };
    Ok(Compared { report, latents: own.latents, baselines: made })
}
