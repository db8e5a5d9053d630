//! Unit atoms in directions drawn uniformly: what a dictionary of this size does before it has learned anything.

use rayon::prelude::*;

use super::{normalise, BaselineConfig, Sample};
use crate::error::Result;
use crate::rng::Rng;

/// `[d_sae, d]`; each atom has its own stream, so threads do not matter.
pub fn atoms(sample: &Sample, config: &BaselineConfig) -> Result<Vec<f32>> {
    let mut atoms = vec![0f32; config.d_sae * sample.d];
    atoms.par_chunks_mut(sample.d).enumerate().for_each(|(i, atom)| {
        let mut rng = Rng::stream(config.seed, "baseline random", i as u64);
        atom.iter_mut().for_each(|v| *v = rng.normal() as f32);
        normalise(atom);
    });
    Ok(atoms)
}
