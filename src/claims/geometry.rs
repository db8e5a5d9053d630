//! 1a: the cells of a trained TopK SAE are those of a power diagram (Budd et al., arXiv 2505.11836), checked on points: the codes are those
//! of `Dictionary::encode`, the distances are f64.

use rayon::prelude::*;

use super::lab::{Lab, Toy};
use super::report::{Row, Table};
use super::rows::{held_out, PlantedRows};
use super::Outcome;
use crate::corpus::planted::{Planted, PlantedConfig};
use crate::dictionary::{Activation, Dictionary, PowerDiagram};
use crate::error::Result;
use crate::sae::{SaeConfig, TopKConfig};
use crate::shard::Batch;

/// Points of each form.
const POINTS: u64 = 4096;
/// Latents and k of the K-th order form, and of the form over subsets, whose 2,925 subsets are all tried.
const WIDE: (usize, usize) = (256, 8);
const NARROW: (usize, usize) = (24, 3);

/// Weight of a seed in the progress.
pub const WEIGHT: u64 = 3;

/// Trains two dictionaries per seed and compares.
pub fn run(lab: &Lab<'_>) -> Result<Outcome> {
    let toy = Toy { steps: 500, warmup: 50, ..Toy::default() };
    let mut table = Table::new(
        &["1a"],
        format!("TopK SAEs trained {} steps of 256 rows on Zipf superposition: points of {POINTS} whose active latents are those of the nearest \
         sites; latents per point", lab.steps(toy.steps)),
    );
    let learner = |(d_sae, k): (usize, usize)| SaeConfig::TopK(TopKConfig { d_sae, k, ..Default::default() });
    // A k that leaves fewer than k positive pre-activations on many points, so that the dummies matter.
    let forms = ["K-th order, 256 latents, k = 8", "K-th order, 256 latents, read at k = 128", "over subsets, 24 latents, k = 3"];
    for &seed in lab.seeds {
        lab.status(&format!("1a: seed {seed}"));
        let planted = Planted::new(&PlantedConfig::Zipf(Default::default()), seed)?;
        let (trained, _) = lab.train(&mut PlantedRows::new(&planted), seed, &toy, &[learner(WIDE), learner(NARROW)])?;
        let rows = held_out(&planted, POINTS);
        let many = trained[0].clone().with_activation(Activation::TopK { k: WIDE.0 / 2 })?;
        for ((form, dictionary), by_subsets) in forms.iter().zip([&trained[0], &many, &trained[1]]).zip([false, false, true]) {
            let (agree, active) = agreement(dictionary, &rows, by_subsets)?;
            table.add(form, "agree", agree as f64);
            table.add(form, "active", active);
        }
        lab.finished(&format!("1a: seed {seed}"), WEIGHT);
    }
    let row = |(form, condition): (&&str, &str)| {
        let agree = table.get(form, "agree");
        let held: Vec<bool> = agree.values.iter().map(|a| *a == POINTS as f64).collect();
        let worst = agree.values.iter().copied().fold(f64::INFINITY, f64::min);
        let assertion = format!("active latents = nearest sites of the power diagram ({form})");
        Row::judged("1a", &assertion, "100 % of points", format!("{worst} of {POINTS} points (worst seed)"), &held, condition)
    };
    let conditions =
        ["", "fewer than k are positive: K dummy sites stand for ReLU", "first-order diagram of all subsets, dummies included"];
    Ok(Outcome { rows: forms.iter().zip(conditions).map(row).collect(), tables: vec![table], figures: Vec::new() })
}

/// Points whose codes are the latents of their cell, and active latents per point.
fn agreement(dictionary: &Dictionary, rows: &Batch, by_subsets: bool) -> Result<(usize, f64)> {
    let d = dictionary.d_in();
    let x = candle_core::Tensor::from_slice(&rows.x, (rows.n, d), dictionary.device())?;
    let codes = dictionary.encode(&x)?;
    let diagram = PowerDiagram::of(dictionary)?;
    let subsets = if by_subsets { Some(diagram.subsets()?) } else { None };
    let agrees = |(r, x): (usize, &[f32])| {
        let x: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
        let mut fired = codes.row(r).0.to_vec();
        fired.sort_unstable();
        match &subsets {
            Some(subsets) => subsets.cell(&x) == fired,
            None => diagram.cell(&x).0 == fired,
        }
    };
    let agree = rows.x.par_chunks_exact(d).enumerate().filter(|p| agrees((p.0, p.1))).count();
    Ok((agree, codes.indices.len() as f64 / rows.n as f64))
}
