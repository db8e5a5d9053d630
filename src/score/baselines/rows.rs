//! Training rows as atoms: their directions from the mean, drawn at random. What a dictionary does by remembering what it was shown.

use super::{normalise, BaselineConfig, Sample};
use crate::error::Result;
use crate::rng::Rng;

/// `[min(d_sae, n), d]` at most; a row that is the mean gives no direction.
pub fn atoms(sample: &Sample, config: &BaselineConfig) -> Result<Vec<f32>> {
    let mut order: Vec<usize> = (0..sample.n).collect();
    Rng::stream(config.seed, "baseline rows", 0).shuffle(&mut order);
    let mut atoms = Vec::new();
    for r in order {
        let mut row = sample.row(r).to_vec();
        if normalise(&mut row) {
            atoms.extend(row);
        }
        if atoms.len() == config.d_sae * sample.d {
            break;
        }
    }
    Ok(atoms)
}
