//! Claims of the papers behind the learners, tried at a size that takes minutes: `lapidary bench claims`.
//!
//! A family of claims is a file that trains through [`crate::train`], scores through [`crate::score`] on rows whose truth is known (or on
//! images), and judges assertions seed by seed. What is asserted is fixed; where one does not hold, the table says so and under which
//! condition it would. Not for: speed (`bench step`), or the papers' own sizes: these are toys that show directions.

pub mod concepts;
mod geometry;
mod images;
mod lab;
mod nested;
mod partition;
mod picture;
mod pursuit;
mod report;
mod rows;
mod scarce;
mod wrong_l0;

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::plot::Figure;
use crate::progress::Progress;

use images::Mnist;

pub use lab::{Lab, Toy};
pub use report::{Measure, Report, Row, Table, Verdict};
pub use rows::{held_out, PlantedRows, Set, Shuffled, HELD_OUT};

/// What to try.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Of data and initialisation.
    pub seeds: Vec<u64>,
    /// Names of claims; empty = all.
    pub only: Vec<String>,
    /// Folder of the MNIST image files; claims that need them are skipped without.
    pub mnist: Option<PathBuf>,
    /// Share of the training steps; below 1 the verdicts are no evidence.
    pub steps: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { seeds: vec![0, 1, 2], only: Vec::new(), mnist: None, steps: 1.0 }
    }
}

/// What a family found.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Judged assertions.
    pub rows: Vec<Row>,
    /// The figures behind them.
    pub tables: Vec<Table>,
    /// Pictures, by name.
    pub figures: Vec<(String, Figure)>,
}

/// Claims that share their training.
struct Family {
    claims: &'static [&'static str],
    /// Rough cost of a seed.
    weight: u64,
    run: Run,
}

/// How, by what it needs.
enum Run {
    /// Planted rows, which it makes itself.
    Planted(fn(&Lab<'_>) -> Result<Outcome>),
    /// MNIST; with what it asserts, for the line that says it was skipped.
    Images(&'static str, fn(&Lab<'_>, &Mnist) -> Result<Outcome>),
}

const FAMILIES: &[Family] = &[
    Family { claims: &["1a"], weight: geometry::WEIGHT, run: Run::Planted(geometry::run) },
    Family { claims: &["1b"], weight: partition::WEIGHT, run: Run::Images(partition::ASSERTION, partition::run) },
    Family { claims: &["1c"], weight: scarce::WEIGHT_FEW, run: Run::Images(scarce::FEW, scarce::few) },
    Family { claims: &["1c'"], weight: scarce::WEIGHT_FEWER, run: Run::Images(scarce::FEWER, scarce::fewer) },
    Family { claims: &["2a", "2b"], weight: nested::WEIGHT, run: Run::Planted(nested::run) },
    Family { claims: &["3a"], weight: pursuit::WEIGHT_ABSORPTION, run: Run::Planted(pursuit::absorption) },
    Family { claims: &["3b"], weight: pursuit::WEIGHT_STEPS, run: Run::Planted(pursuit::steps) },
    Family { claims: &["7"], weight: wrong_l0::WEIGHT, run: Run::Planted(wrong_l0::run) },
];

const NO_IMAGES: &str = "pass --mnist DIR, the folder of train-images-idx3-ubyte.gz and t10k-images-idx3-ubyte.gz";

/// Names of the claims, in order.
pub fn names() -> Vec<&'static str> {
    FAMILIES.iter().flat_map(|f| f.claims).copied().collect()
}

/// Tries the claims, in order.
///
/// # Errors
/// An unknown claim, no seed or one twice; what training and scoring may fail with; cancellation.
pub fn run(settings: &Settings, progress: &dyn Progress) -> Result<Report> {
    let known = names();
    if let Some(unknown) = settings.only.iter().find(|c| !known.contains(&c.as_str())) {
        return Err(Error::request(format!("no claim `{unknown}`"), format!("the claims are {}", known.join(", "))));
    }
    checked_seeds(&settings.seeds)?;
    check_share(settings.steps)?;
    let wanted = |claim: &str| settings.only.is_empty() || settings.only.iter().any(|c| c == claim);
    let families: Vec<&Family> = FAMILIES.iter().filter(|f| f.claims.iter().any(|c| wanted(c))).collect();
    let needs_images = families.iter().any(|f| matches!(f.run, Run::Images(..)));
    let mnist = match &settings.mnist {
        Some(dir) if needs_images => Some(Mnist::read(dir)?),
        _ => None,
    };
    let runs = |f: &&&Family| mnist.is_some() || matches!(f.run, Run::Planted(_));
    let total = families.iter().filter(runs).map(|f| f.weight * settings.seeds.len() as u64).sum();
    let lab = Lab::new(&settings.seeds, settings.steps, total, progress);
    let mut report = Report { seeds: settings.seeds.clone(), steps: settings.steps, ..Report::default() };
    for family in families {
        let outcome = match (&family.run, &mnist) {
            (Run::Planted(run), _) => run(&lab)?,
            (Run::Images(_, run), Some(mnist)) => run(&lab, mnist)?,
            (Run::Images(assertion, _), None) => {
                let skipped = |claim: &&'static str| Row::skipped(claim, assertion, NO_IMAGES);
                Outcome { rows: family.claims.iter().map(skipped).collect(), ..Outcome::default() }
            }
        };
        report.rows.extend(outcome.rows.into_iter().filter(|r| wanted(r.claim)));
        report.tables.extend(outcome.tables);
        report.figures.extend(outcome.figures);
    }
    lab.end();
    Ok(report)
}

/// How many seeds: each once, one at least.
fn checked_seeds(given: &[u64]) -> Result<u64> {
    let mut seeds = given.to_vec();
    seeds.sort_unstable();
    seeds.dedup();
    if seeds.is_empty() || seeds.len() != given.len() {
        return Err(Error::request(format!("{given:?} are no seeds to average over"), "give each seed once, as in 0,1,2"));
    }
    Ok(seeds.len() as u64)
}

fn check_share(share: f64) -> Result<()> {
    if share > 0.0 && share <= 1.0 {
        return Ok(());
    }
    Err(Error::request(format!("{share} is no share of the steps"), "use a number above 0, up to 1 (all)"))
}
