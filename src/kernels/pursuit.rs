//! Pursuits: a row is taken apart atom by atom, each step fed by what the steps before left over.
//!
//! ```text
//! r_0 = x;   for t in 1..=T:  p = D r_{t-1},  j = pick(p),  v = p_j,  r_t = r_{t-1} - v D_j
//! ```
//!
//! With unit atoms r_t is orthogonal to the atom of step t, and `|r_t|^2 = |r_{t-1}|^2 - v^2`: more steps never make it worse, whatever
//! the dictionary. Matching pursuit may take an atom again (its coefficients add); the orthogonal form refits all coefficients of the
//! support by least squares after each step, and never does.

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::{cpu, cuda, unsupported, Adam, Coder, Columns, Measured, Moments, Selection, SparseGrad};
use crate::codes::{Codes, PAD};
use crate::error::{Error, Result};

/// Which atom a step takes, given the inner products p of the residual with all atoms. Ties go to the lowest index; NaN never wins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pick {
    /// The largest positive p; the row ends when there is none. Codes are positive (SAELens).
    #[default]
    NonNeg,
    /// The largest p, with its sign: negative where all are (overcomplete). Differs from `NonNeg` only on such rows.
    Max,
    /// The largest |p|, with p's sign: classical matching pursuit.
    Signed,
}

/// When a pursuit takes which step, and when it ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PursuitRule {
    /// Steps at most, T.
    pub steps: usize,
    /// Which atom.
    pub pick: Pick,
    /// A row ends when `|r_t|` falls below this, looked at after each step (so that every row takes one); 0 never ends a row.
    pub tolerance: f32,
    /// Is the tolerance a share of the row's own norm? Otherwise it is in units of x.
    pub relative: bool,
    /// Does a row end with the step that takes an atom again? That step still counts. The orthogonal form never takes one again.
    pub stop_on_repeat: bool,
}

/// What a pursuit did to each row, in the order of its steps.
#[derive(Debug, Clone)]
pub struct PursuitPath {
    /// Atom of each step, `[n, steps]`, u32, padded with [`PAD`] from where the row ended. An atom may come again.
    pub indices: Tensor,
    /// Coefficient of each step, `[n, steps]`, f32, padded with 0.
    pub values: Tensor,
    /// What is left, r_T, `[n, d]`, f32.
    pub residual: Tensor,
}

impl PursuitPath {
    /// As codes over `d_sae` latents: coefficients of an atom that came again are added (in f32, by step). With `scale`, `[d_sae]`,
    /// each code is multiplied by its latent's factor.
    ///
    /// # Errors
    /// When the tensors cannot be read back to the host.
    pub fn to_codes(&self, d_sae: usize, scale: Option<&[f32]>) -> Result<Codes> {
        let (_, steps) = self.indices.dims2()?;
        let indices = self.indices.flatten_all()?.to_vec1::<u32>()?;
        let values = self.values.flatten_all()?.to_vec1::<f32>()?;
        let mut codes = Codes::new(d_sae);
        let mut row: Vec<(u32, f32)> = Vec::with_capacity(steps);
        for (indices, values) in indices.chunks_exact(steps).zip(values.chunks_exact(steps)) {
            row.clear();
            for (&j, &v) in indices.iter().zip(values).take_while(|(&j, _)| j != PAD) {
                match row.iter_mut().find(|(i, _)| *i == j) {
                    Some((_, sum)) => *sum += v,
                    None => row.push((j, v)),
                }
            }
            if let Some(scale) = scale {
                row.iter_mut().for_each(|(j, v)| *v *= scale[*j as usize]);
            }
            row.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            codes.push_row(row.iter().copied().filter(|&(_, v)| v != 0.0));
        }
        Ok(codes)
    }
}

/// A pursuit with its gradient, as the optimiser needs it: O(n (T + d)) numbers, no matrix of the dictionary's size.
#[derive(Debug, Clone)]
pub struct Tape {
    /// The steps. Indices are latents of the whole dictionary.
    pub path: PursuitPath,
    /// Gradient of the loss with respect to the residual r_T, `[n, d]`, f32.
    pub grad: Tensor,
    /// Gradient with respect to each step's coefficient, `[n, steps]`, f32 (0 where the row had ended).
    pub dv: Tensor,
    /// The steps by latent: `rows` holds `row * steps + step`.
    pub columns: Columns,
}

impl Tape {
    /// The exact gradient of a loss through the unrolled steps, of which the choice of atoms carries none:
    ///
    /// ```text
    /// g = dL/dr_T;  for t = T..1:  dv_t = -<g, D_j>;  dL/dD_j += dv_t r_{t-1} - v_t g;  g += dv_t D_j
    /// ```
    ///
    /// Returns the tape and the gradient with respect to the pursuit's input, `[n, d]`, f32.
    ///
    /// # Errors
    /// Mismatched widths.
    pub fn new(atoms: &Tensor, path: PursuitPath, grad: Tensor) -> Result<(Self, Tensor)> {
        let (dv, input) = dispatch!(atoms.device(), pursuit_backward(atoms, &path, &grad))?;
        let (n, steps) = path.indices.dims2()?;
        // One "row" per step of a row: the columns then tell them apart.
        let flat = Selection { indices: path.indices.reshape((n * steps, 1))?, values: path.values.reshape((n * steps, 1))? };
        let columns = Columns::new(&flat, atoms.dim(0)?)?;
        Ok((Self { path, grad, dv, columns }, input))
    }

    /// Distinct atoms, summed over rows.
    pub fn n_active(&self) -> Result<u64> {
        let (_, steps) = self.path.indices.dims2()?;
        let row = |e: u32| e as usize / steps;
        let mut active = 0;
        for j in 0..self.columns.starts.len() - 1 {
            let (entries, _) = self.columns.column(j);
            active +=
                entries.iter().zip(entries.iter().skip(1)).filter(|(&a, &b)| row(a) != row(b)).count() + usize::from(!entries.is_empty());
        }
        Ok(active as u64)
    }
}

/// The gradient of a loss on pursuits with respect to the atoms ([`Coder::w_dec`]) and `b_dec`; a pursuit has no encoder.
#[derive(Debug, Clone)]
pub struct PursuitGrad {
    /// The pursuits.
    pub tapes: Vec<Tape>,
    /// One direction, `[d]`, f32, that is part of the gradient of each of the listed latents (the revival of dead ones).
    pub shared: Option<(Vec<u32>, Tensor)>,
    /// The whole gradient of `b_dec`, `[d]`, f32.
    pub b_dec: Tensor,
}

/// A learner's gradient: what the optimiser applies without knowing the variant.
#[derive(Debug, Clone)]
pub enum Gradient {
    /// Of selected latents of an encoder.
    Sparse(SparseGrad),
    /// Of pursuits.
    Pursuit(PursuitGrad),
}

impl From<SparseGrad> for Gradient {
    fn from(grad: SparseGrad) -> Self {
        Self::Sparse(grad)
    }
}

impl Gradient {
    /// See [`super::measure`].
    ///
    /// # Errors
    /// Tensors of another device or dtype.
    pub fn measure(&self, coder: &Coder, unit_norm: bool) -> Result<Measured> {
        match self {
            Self::Sparse(grad) => super::measure(coder, grad, unit_norm),
            Self::Pursuit(grad) => dispatch!(coder.w_dec.device(), pursuit_measure(coder, grad, unit_norm)),
        }
    }

    /// See [`super::latent_update`].
    ///
    /// # Errors
    /// Tensors of another device or dtype.
    pub fn update(&self, coder: &Coder, moments: &Moments, measured: &Measured, adam: &Adam, unit_norm: bool) -> Result<()> {
        match self {
            Self::Sparse(grad) => super::latent_update(coder, moments, grad, measured, adam, unit_norm),
            Self::Pursuit(grad) => dispatch!(coder.w_dec.device(), pursuit_update(coder, moments, grad, measured, adam, unit_norm)),
        }
    }
}

/// Largest Gram matrix that is worth its memory: 1 GiB, 16,384 atoms. Above, each step meets the atoms themselves.
const GRAM_BYTES: usize = 1 << 30;

/// An empty Gram matrix for `atoms` `[d_sae, d]`, for [`fill_gram`]; `None` where it would not fit.
///
/// # Errors
/// When memory cannot be allocated.
pub fn new_gram(atoms: &Tensor) -> Result<Option<Tensor>> {
    let (m, _) = atoms.dims2()?;
    let fits = m.checked_mul(m).and_then(|e| e.checked_mul(4)).is_some_and(|bytes| bytes <= GRAM_BYTES);
    Ok(if fits { Some(Tensor::zeros((m, m), candle_core::DType::F32, atoms.device())?) } else { None })
}

/// Writes the inner products of all pairs of `atoms` `[d_sae, d]` into `gram` `[d_sae, d_sae]`, f32, in place.
///
/// # Errors
/// Mismatched shapes, another dtype.
pub fn fill_gram(atoms: &Tensor, gram: &Tensor) -> Result<()> {
    let (m, _) = atoms.dims2()?;
    check(gram, "the Gram matrix", m)?;
    dispatch!(atoms.device(), fill_gram(atoms, gram))
}

/// Matching pursuit of rows `x` `[n, d]` (minus any bias) in `atoms` `[d_sae, d]`, f32, contiguous. Atoms are used as they are: the
/// identities above hold for unit atoms. With their `gram`, steps update the inner products instead of computing them anew.
///
/// # Errors
/// Mismatched widths, no steps, another dtype.
pub fn pursuit(x: &Tensor, atoms: &Tensor, gram: Option<&Tensor>, rule: &PursuitRule) -> Result<PursuitPath> {
    check_rule(x, atoms, rule)?;
    if let Some(gram) = gram {
        check(gram, "the Gram matrix", atoms.dim(0)?)?;
    }
    dispatch!(x.device(), pursuit(x, atoms, gram, rule))
}

/// Orthogonal matching pursuit: as [`pursuit`], but after each step the coefficients of all atoms taken are refitted by least squares
/// (f64, incremental Cholesky). Refitted coefficients may be negative whatever the pick. A row also ends when nothing but rounding is
/// left, or when the next atom depends linearly on those it has.
///
/// # Errors
/// Mismatched widths, no steps, another dtype.
pub fn orthogonal_pursuit(x: &Tensor, atoms: &Tensor, rule: &PursuitRule) -> Result<PursuitPath> {
    check_rule(x, atoms, rule)?;
    dispatch!(x.device(), orthogonal_pursuit(x, atoms, rule))
}

fn check(tensor: &Tensor, what: &str, expected: usize) -> Result<()> {
    let (rows, columns) = tensor.dims2()?;
    for got in [rows, columns] {
        if got != expected {
            return Err(Error::Width { what: what.into(), expected, got, help: "it belongs to another dictionary".into() });
        }
    }
    Ok(())
}

fn check_rule(x: &Tensor, atoms: &Tensor, rule: &PursuitRule) -> Result<()> {
    let ((_, got), (_, expected)) = (x.dims2()?, atoms.dims2()?);
    if got != expected {
        let help = "pursue activations of the hook point that the dictionary was trained on".into();
        return Err(Error::Width { what: "the input".into(), expected, got, help });
    }
    if rule.steps == 0 {
        return Err(Error::config("steps", "a pursuit of 0 steps selects nothing", "use 1 step or more"));
    }
    if !(rule.tolerance.is_finite() && rule.tolerance >= 0.0) {
        return Err(Error::config("tolerance", format!("{} is no residual norm", rule.tolerance), "0 turns it off"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
