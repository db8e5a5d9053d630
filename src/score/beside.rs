//! A dictionary over shards, scored beside baselines that nobody trained, in one call.

use super::baselines::{baselines, BaselineConfig};
use super::{score_all, LatentStats, Metrics, Ordered, ScoreConfig, ScoreReport, Scores};
use crate::dictionary::Dictionary;
use crate::error::Result;
use crate::progress::Progress;
use crate::shard::{Batch, Shards, ShuffleConfig, Shuffled, Split};

/// Rows that are read together.
const BATCH: usize = 4096;

/// The first rows of a shuffled stream, as an iterator that ends.
struct Sample {
    rows: Shuffled,
    left: usize,
}

impl Iterator for Sample {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        let n = self.left.min(BATCH);
        self.left -= n;
        (n > 0).then(|| self.rows.next_batch(n))
    }
}

/// Scores a dictionary, its prefixes (Matryoshka), its shorter pursuits (MP), and the [`baselines`] at its number of latents per row, on the rows of a split (`None` =
/// all). Baselines are made from training rows, with `seed`. Save both results where the dictionary is, and [`crate::plot::collect`]
/// finds them.
///
/// # Errors
/// As [`score_all`] and [`baselines`].
pub fn compare(
    dictionary: &Dictionary,
    shards: &Shards,
    column: &str,
    split: Option<Split>,
    seed: u64,
    progress: &dyn Progress,
) -> Result<(ScoreReport, LatentStats)> {
    let config = ScoreConfig::default();
    let nested = dictionary.prefixes().into_iter().map(|m| Ok((m, dictionary.prefix(m)?))).collect::<Result<Vec<_>>>()?;
    let mut counts = dictionary.step_counts();
    let whole = counts.pop();
    let shorter = counts.into_iter().map(|s| Ok((s, dictionary.shorter(s)?))).collect::<Result<Vec<_>>>()?;
    let parts: Vec<&Dictionary> = std::iter::once(dictionary).chain(nested.iter().chain(&shorter).map(|(_, d)| d)).collect();
    let mut prefixes = score_all(&parts, shards.scan(column, split)?, &config, progress)?;
    let own = prefixes.remove(0);
    let early = prefixes.split_off(nested.len());
    let named = |those: &[(usize, Dictionary)], scores: Vec<Scores>| -> Ordered<Metrics> {
        those.iter().zip(scores).map(|((n, _), s)| (n.to_string(), s.metrics)).collect()
    };
    let mut steps = named(&shorter, early);
    if let Some(whole) = whole {
        steps.insert(whole.to_string(), own.metrics.clone());
    }
    let k = dictionary.activation.k().unwrap_or_else(|| own.metrics.get("l0").map_or(1, |l0| l0.round().max(1.0) as usize));
    let settings = BaselineConfig { k, d_sae: dictionary.d_sae(), seed, ..Default::default() };
    let rows = shards.shuffled(column, Some(Split::Train), &ShuffleConfig { seed, ..Default::default() })?;
    let left = settings.sample_rows.min(shards.rows(Some(Split::Train)) as usize);
    let made = baselines(Sample { rows, left }, &settings, progress)?;
    let beside: Vec<&Dictionary> = made.iter().map(|(_, d)| d).collect();
    let others = score_all(&beside, shards.scan(column, split)?, &config, progress)?;
    let report = ScoreReport {
        split: split.map_or("all", Split::name).to_string(),
        rows: own.rows,
        metrics: own.metrics,
        prefixes: named(&nested, prefixes),
        steps,
        baselines: made.iter().zip(others).map(|((name, _), s)| (name.clone(), s.metrics)).collect(),
    };
    Ok((report, own.latents))
}
