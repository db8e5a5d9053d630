//! Which ridge: the one whose decoder, fitted to some rows, errs least on others. Both errors are in closed form, so no row is read again.

use super::config::PamConfig;
use super::solve::{sq_error, Decoder, Weights};
use super::statistics::Statistics;

/// The ridge chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// Its place in the grid: where the next choice begins to look.
    pub at: usize,
    /// Itself.
    pub ridge: f64,
    /// FVU of the rows that it was chosen on.
    pub fvu: f64,
}

/// The grid: geometric, in multiples of the mean diagonal entry of the gram matrix, so that neither the number of rows nor the scale of
/// codes matters.
pub fn grid(config: &PamConfig, stats: &Statistics) -> Vec<f64> {
    let (from, to, steps) = (config.ridge_from.ln(), config.ridge_to.ln(), config.ridge_steps);
    let size = stats.mean_diagonal();
    (0..steps).map(|i| size * (from + (to - from) * i as f64 / (steps - 1).max(1) as f64).exp()).collect()
}

/// Tries the whole grid, or, told where the last choice was, goes downhill from there. Equal errors: the larger ridge. `None` where no
/// ridge of the grid can be solved with.
pub fn choose(
    grid: &[f64],
    last: Option<usize>,
    weights: &Weights,
    held: &Statistics,
    mut solve: impl FnMut(&Weights) -> Option<Decoder>,
) -> Option<Choice> {
    let mut tried: Vec<Option<f64>> = vec![None; grid.len()];
    let mut error = |i: usize| {
        *tried[i].get_or_insert_with(|| {
            let found = solve(&Weights { ridge: grid[i], ..*weights }).map(|decoder| sq_error(held, &decoder));
            found.filter(|e| e.is_finite()).unwrap_or(f64::INFINITY)
        })
    };
    let mut at = match last.filter(|&at| at < grid.len()) {
        Some(at) => at,
        None => (0..grid.len()).rev().min_by(|&a, &b| error(a).total_cmp(&error(b)))?,
    };
    loop {
        let here = error(at);
        let around = [at + 1, at.wrapping_sub(1)];
        match around.into_iter().filter(|&i| i < grid.len()).find(|&i| error(i) < here || (i > at && error(i) == here && here.is_finite()))
        {
            Some(better) => at = better,
            None => break,
        }
    }
    let fvu = error(at) / held.spread();
    fvu.is_finite().then_some(Choice { at, ridge: grid[at], fvu })
}
