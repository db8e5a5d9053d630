//! PAM-SGD (SplInterp, arXiv 2505.11836): a pass of gradient steps on the encoder, then the decoder that is exactly best at the codes it
//! makes, and so on. Here is the decoder's half: one pass over all training rows gathers [`Statistics`], and [`solve`] does the rest.
//! The encoder's half is [`crate::sae::PamEncoder`].
//!
//! The loop knows of it where a solve is due and whose rows a member may learn from; no row is held, and no `[rows, d_sae]` exists.

mod cholesky;
mod config;
mod ridge;
mod solve;
mod statistics;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::{json, Value};

use super::run::Member;
use super::source::{normalised, Cursor};
use super::RowSource;
use crate::error::{Error, Result};
use crate::kernels::{overwrite, Coder, Columns};
use crate::progress::Progress;
use crate::rng::Rng;
use crate::sae::{Learner, PamEncoder, Part, Per};

pub use config::PamConfig;
use solve::{Decoder, Weights};
use statistics::Statistics;

/// Rows that are encoded at once in a decoder pass.
const CHUNK: usize = 4096;

/// What a checkpoint holds of a solver.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Where in the grid the last ridge was.
    at: Option<usize>,
}

/// Solves for one member's decoder.
#[derive(Debug)]
pub struct Solver {
    config: PamConfig,
    every: u64,
    n_rows: u64,
    /// For a checkpoint.
    pub state: State,
    /// Figures of the last solve, for the dictionary.
    pub notes: Value,
}

/// Refuses members whose decoders cannot be solved for, before any work.
///
/// # Errors
/// Other variants, rows that cannot be read twice, statistics that do not fit.
pub fn check(members: &[Member], source: &dyn RowSource) -> Result<()> {
    let mut needed = 0u64;
    let mut largest = 0u64;
    let mut limit = u64::MAX;
    for member in members {
        let Some(config) = &member.train.pam else { continue };
        config.check()?;
        PamEncoder::supports(&member.sae)?;
        if source.rows_per_epoch().is_none() {
            return Err(Error::config(
                "train.pam",
                "PAM-SGD reads all training rows again for each decoder, and a stream's rows come once",
                "harvest them to shards and train from those, or leave train.pam out",
            ));
        }
        let (n, d) = (member.sae.d_sae() as u64, source.width() as u64);
        let sets = if config.chooses() { 2 } else { 1 };
        needed += sets * Statistics::bytes(n as usize, d as usize);
        // One system at a time: its matrix (blocks are small), the decoder before, the right side, the solution and a copy.
        let matrix = if n > config.block_above as u64 { 0 } else { 8 * n * n };
        largest = largest.max(matrix + 4 * 8 * n * d);
        limit = limit.min(config.max_memory_bytes);
        if needed + largest > limit {
            let gb = |bytes: u64| bytes as f64 / 1e9;
            return Err(Error::config(
                "train.pam",
                format!(
                    "solving for {n} atoms needs {:.1} GB of memory ({:.1} GB for each matrix of {n} x {n}), train.pam.max_memory_bytes allows {:.1} GB",
                    gb(needed + largest),
                    gb(8 * n * n),
                    gb(limit)
                ),
                "use a smaller sae.d_sae, train fewer members at once, say the ridge (train.pam.ridge), raise the limit, or leave train.pam out",
            ));
        }
    }
    Ok(())
}

/// The encoder's half for a member.
///
/// # Errors
/// As [`PamEncoder::new`].
pub fn encoder(member: &Member, config: &PamConfig, n_rows: u64, rows: &Tensor) -> Result<PamEncoder> {
    // F is a sum over rows, a batch's loss a mean over elements.
    let per_element = 1.0 / (n_rows as f64 * rows.dim(1)? as f64);
    PamEncoder::new(&member.sae, config.mu_enc * per_element, config.nu_enc * per_element, rows, member.train.seed)
}

impl Solver {
    /// For rows of which there are `n_rows`.
    pub fn new(config: PamConfig, n_rows: u64) -> Self {
        let every = if config.solve_every_tokens == 0 { n_rows } else { config.solve_every_tokens };
        Self { config, every: every.max(1), n_rows, state: State::default(), notes: Value::Null }
    }

    /// Is the decoder solved for before `step` (from 1)?
    pub fn due(&self, step: u64, batch: u64) -> bool {
        match step {
            0 => false,
            1 => self.config.initial_solve,
            _ => (step - 1) * batch / self.every > (step - 2) * batch / self.every,
        }
    }

    /// Does a document choose the ridge instead of teaching the encoder?
    fn holds(&self, doc: u64) -> bool {
        self.config.chooses() && Rng::stream(0, "validation", doc).uniform() < self.config.validation_fraction
    }

    /// Which rows of a batch teach the encoder.
    fn teaches(&self, n: usize, docs: &[u64]) -> Result<Vec<bool>> {
        if !self.config.chooses() {
            return Ok(vec![true; n]);
        }
        if docs.len() != n {
            return Err(Error::request(
                "the ridge cannot be chosen on validation documents: the rows have no document ids",
                "say the ridge with train.pam.ridge",
            ));
        }
        // Neighbours are often of one document.
        let mut last = (docs.first().copied().unwrap_or_default(), None);
        Ok(docs
            .iter()
            .map(|&doc| match last {
                (same, Some(teaches)) if same == doc => teaches,
                _ => {
                    let teaches = !self.holds(doc);
                    last = (doc, Some(teaches));
                    teaches
                }
            })
            .collect())
    }

    /// The rows of `x` `[n, d]` that teach the encoder, and their summed squared distance from their mean (`spread` when that is all).
    ///
    /// # Errors
    /// A batch without any.
    pub fn taught(&self, x: &Tensor, docs: &[u64], spread: f64) -> Result<(Tensor, f64)> {
        let (n, d) = x.dims2()?;
        let teaches = self.teaches(n, docs)?;
        let kept = teaches.iter().filter(|&&t| t).count();
        if kept == n {
            return Ok((x.clone(), spread));
        }
        if kept < 2 {
            return Err(Error::request(
                format!("a batch of {n} rows is all validation documents, which choose the ridge"),
                "use a larger train.batch or a smaller train.pam.validation_fraction, or say the ridge with train.pam.ridge",
            ));
        }
        let data = x.flatten_all()?.to_vec1::<f32>()?;
        let rows: Vec<f32> = data.chunks_exact(d).zip(&teaches).filter(|(_, &t)| t).flat_map(|(row, _)| row.iter().copied()).collect();
        let batch = crate::shard::Batch { n: kept, x: rows, ..Default::default() };
        normalised(batch, d, 1.0)
    }
}

/// A member as a decoder pass sees it.
pub struct Solved<'a> {
    /// Its solver.
    pub solver: &'a mut Solver,
    /// Its coder: atoms and bias are replaced.
    pub learner: &'a mut dyn Learner,
}

/// Reads all training rows once, scaled by `scale`, and solves for the decoder of each member; figures for the log come back, member by
/// member. The source is left elsewhere.
///
/// # Errors
/// [`Error::Interrupted`], before anything changed; damaged data; systems that cannot be solved.
pub fn pass(source: &mut dyn RowSource, scale: f64, members: &mut [Solved<'_>], progress: &dyn Progress) -> Result<Vec<Vec<Part>>> {
    let d = source.width();
    let n_rows = members.first().map_or(0, |m| m.solver.n_rows);
    let mut sums: Vec<(Statistics, Option<Statistics>)> = members
        .iter()
        .map(|m| {
            let new = || Statistics::new(m.learner.coder().b_enc.elem_count(), d);
            (new(), m.solver.config.chooses().then(new))
        })
        .collect();
    progress.begin("decoder", Some(n_rows), "rows");
    source.seek(&Cursor::default())?;
    let mut left = n_rows;
    while left > 0 {
        let n = CHUNK.min(left as usize);
        let batch = source.next_rows(n)?;
        let docs = batch.doc_id.clone();
        let (x, _) = normalised(batch, d, scale)?;
        let data = x.flatten_all()?.to_vec1::<f32>()?;
        for (m, (taught, held)) in members.iter().zip(&mut sums) {
            let codes = m.learner.codes(&x)?;
            let columns = Columns::of_codes(&codes);
            let teaches = m.solver.teaches(n, &docs)?;
            taught.add(&data, &codes, &columns, &teaches);
            if let Some(held) = held {
                let holds: Vec<bool> = teaches.iter().map(|t| !t).collect();
                held.add(&data, &codes, &columns, &holds);
            }
        }
        left -= n as u64;
        progress.advance(n as u64);
        if progress.is_cancelled() && left > 0 {
            return Err(Error::Interrupted { doing: "training" });
        }
    }
    progress.status("solving");
    let parts = members.iter_mut().zip(sums).map(|(m, (taught, held))| m.solver.solve(m.learner, taught, held)).collect();
    progress.end();
    parts
}

impl Solver {
    /// Replaces the learner's decoder by the best one.
    fn solve(&mut self, learner: &mut dyn Learner, taught: Statistics, held: Option<Statistics>) -> Result<Vec<Part>> {
        let c = &self.config;
        let before = decoder(learner.coder())?;
        let mut weights = Weights { ridge: c.ridge, beta: c.beta, mu: c.mu_dec, nu: c.nu_dec };
        let mut stats = taught;
        let mut validation = None;
        let fit = |stats: &Statistics, w: &Weights, start: &Decoder| {
            if stats.n > c.block_above {
                solve::by_blocks(stats, w, &before, start, c.block_sweeps)
            } else {
                solve::exact(stats, w, &before)
            }
        };
        if let Some(held) = held {
            if held.rows < 2 || stats.rows < 2 {
                return Err(Error::request(
                    format!("{} of {} rows are validation documents: the ridge cannot be chosen", held.rows, held.rows + stats.rows),
                    "say the ridge with train.pam.ridge, or change train.pam.validation_fraction",
                ));
            }
            let grid = ridge::grid(c, &stats);
            let mut start = before.clone();
            let choice = ridge::choose(&grid, self.state.at, &weights, &held, |w| {
                let found = fit(&stats, w, &start)?;
                if stats.n > c.block_above {
                    start.clone_from(&found);
                }
                Some(found)
            });
            let choice = choice.ok_or_else(|| singular(grid.last().copied().unwrap_or_default()))?;
            (self.state.at, weights.ridge, validation) = (Some(choice.at), choice.ridge, Some(choice.fvu));
            stats.merge(&held);
        }
        let mut after = fit(&stats, &weights, &before).ok_or_else(|| singular(weights.ridge))?;
        // An atom that no row uses is left alone: the ridge would only make it vanish, and nothing could ever use it again.
        let mut unused = 0u64;
        for j in (0..stats.n).filter(|&j| !stats.fired(j)) {
            let atom = j * stats.d..(j + 1) * stats.d;
            after.atoms[atom.clone()].copy_from_slice(&before.atoms[atom]);
            unused += 1;
        }
        let per_element = 1.0 / (stats.rows as f64 * stats.d as f64);
        let objective_before = per_element * solve::objective(&stats, &weights, &before);
        let objective = per_element * solve::objective(&stats, &weights, &after);
        let fvu = solve::sq_error(&stats, &after) / stats.spread();
        put(learner.coder(), &after)?;
        learner.solved()?;
        self.notes = json!({
            "ridge": weights.ridge, "validation_fvu": validation, "solved_fvu": fvu, "objective": objective, "unused": unused, "rows": stats.rows,
        });
        let figures = [
            ("ridge", Some(weights.ridge)),
            ("validation_fvu", validation),
            ("solved_fvu", Some(fvu)),
            ("objective_before", Some(objective_before)),
            ("objective", Some(objective)),
            ("unused", Some(unused as f64)),
        ];
        Ok(figures.into_iter().filter_map(|(name, value)| Some(Part { name: name.into(), value: value?, per: Per::Last })).collect())
    }
}

fn singular(ridge: f64) -> Error {
    Error::config("train.pam.ridge", format!("the decoder's equations cannot be solved with a ridge of {ridge:e}"), "use a larger one")
}

fn decoder(coder: &Coder) -> Result<Decoder> {
    let read = |t: &Tensor| -> Result<Vec<f64>> { Ok(t.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f64::from).collect()) };
    Ok(Decoder { atoms: read(&coder.w_dec)?, bias: read(&coder.b_dec)? })
}

fn put(coder: &Coder, decoder: &Decoder) -> Result<()> {
    let narrow = |v: &[f64]| v.iter().map(|&v| v as f32).collect::<Vec<_>>();
    overwrite(&coder.w_dec, &narrow(&decoder.atoms))?;
    overwrite(&coder.b_dec, &narrow(&decoder.bias))
}

#[cfg(test)]
mod tests;
