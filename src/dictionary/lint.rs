//! What looks wrong about a dictionary: of its weights alone, and on rows that it should fit.

use candle_core::Tensor;
use serde::Serialize;

use super::{Activation, Dictionary};
use crate::error::{Error, Result};

/// Two atoms (or an atom and another's negative) with a cosine above this are one.
const DUPLICATE: f32 = 0.999;
/// Multiplications spent on looking for duplicates, at most.
const BUDGET: usize = 60_000_000_000;
/// Latents listed by number.
const SHOWN: usize = 8;

/// What was found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Lint {
    /// What is probably wrong.
    pub warnings: Vec<String>,
    /// What is worth knowing.
    pub notes: Vec<String>,
    /// Smallest, median and largest norm of an atom.
    pub atom_norms: [f32; 3],
    /// Latents that cannot fire, or whose firing writes nothing.
    pub dead_rows: usize,
    /// Atoms that are another's duplicate, among those looked at.
    pub duplicates: usize,
    /// On rows, where there were some.
    pub measured: Option<Measured>,
}

/// A dictionary on rows.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// How many.
    pub rows: u64,
    /// Mean active latents.
    pub l0: f64,
    /// What it should be, where the rule or its training says.
    pub expected_l0: Option<f64>,
    /// `1 - FVU`; none where it writes another width than it reads.
    pub explained_variance: Option<f64>,
    /// The same with the other convention of b_dec, and `b_enc` as it is.
    pub explained_variance_flipped: Option<f64>,
    /// Latents that never fired.
    pub silent: usize,
}

fn list(latents: &[usize]) -> String {
    let shown: Vec<String> = latents.iter().take(SHOWN).map(usize::to_string).collect();
    let more = if latents.len() > SHOWN { ", ..." } else { "" };
    format!("{}{more}", shown.join(", "))
}

impl Dictionary {
    /// Looks at the weights, and at `rows` (blocks `[n, d_in]`) if there are any.
    ///
    /// # Errors
    /// Rows of another width; tensors that cannot be read.
    pub fn lint(&self, rows: &[Tensor]) -> Result<Lint> {
        let mut lint = Lint::default();
        self.lint_norms(&mut lint)?;
        self.lint_thresholds(&mut lint)?;
        self.lint_duplicates(&mut lint)?;
        if !rows.is_empty() {
            self.lint_rows(rows, &mut lint)?;
        }
        Ok(lint)
    }

    fn lint_norms(&self, lint: &mut Lint) -> Result<()> {
        let norms = self.atom_norms()?;
        let mut sorted = norms.clone();
        sorted.sort_unstable_by(f32::total_cmp);
        let median = sorted[sorted.len() / 2];
        lint.atom_norms = [sorted[0], median, sorted[sorted.len() - 1]];
        let encoder: Vec<f32> = self.coder.w_enc.sqr()?.sum(1)?.sqrt()?.to_vec1()?;
        let b_enc: Vec<f32> = self.coder.b_enc.to_vec1()?;
        let thresholds = self.thresholds.as_ref().map(|t| t.to_vec1::<f32>()).transpose()?;
        let bar = |j: usize| match (&self.activation, &thresholds) {
            (Activation::Threshold { threshold }, _) => *threshold,
            (_, Some(thresholds)) => thresholds[j],
            _ => 0.0,
        };
        let dead: Vec<usize> = (0..norms.len())
            .filter(|&j| {
                let mute = norms[j] <= 1e-6 * median;
                let deaf = !self.activation.is_pursuit() && encoder[j] == 0.0 && b_enc[j] <= bar(j);
                mute || deaf
            })
            .collect();
        lint.dead_rows = dead.len();
        if !dead.is_empty() {
            lint.warnings.push(format!("{} latents cannot fire, or write nothing: {}", dead.len(), list(&dead)));
        }
        if norms.iter().any(|n| (n - 1.0).abs() > 1e-3) {
            lint.notes.push(format!(
                "atoms are not of unit norm ({:.4} to {:.4}): codes of different latents are not in the same unit, and SAEBench and \
                 dashboards want them folded (--fold-norms)",
                lint.atom_norms[0], lint.atom_norms[2]
            ));
        }
        if let Activation::Pursuit { renormalise: false, .. } = self.activation {
            if norms.iter().any(|n| (n - 1.0).abs() > 1e-3) {
                lint.warnings.push("a pursuit in atoms that are not of unit norm does not converge".into());
            }
        }
        Ok(())
    }

    fn lint_thresholds(&self, lint: &mut Lint) -> Result<()> {
        let thresholds = match (&self.activation, &self.thresholds) {
            (Activation::Threshold { threshold }, _) => vec![*threshold],
            (_, Some(t)) => t.to_vec1::<f32>()?,
            _ => return Ok(()),
        };
        let mut sorted = thresholds.clone();
        sorted.sort_unstable_by(f32::total_cmp);
        let (low, median, high) = (sorted[0], sorted[sorted.len() / 2], sorted[sorted.len() - 1]);
        if !(low.is_finite() && high.is_finite()) {
            lint.warnings.push("a threshold is NaN or infinite".into());
        }
        if low < 0.0 {
            lint.warnings.push(format!("thresholds go down to {low}: codes below 0 would pass"));
        }
        if high == 0.0 {
            lint.notes.push("all thresholds are 0: codes are those of a relu".into());
        } else if thresholds.len() > 1 {
            lint.notes.push(format!("thresholds {low:.4} to {high:.4}, median {median:.4}"));
            if high > 100.0 * median.max(f32::MIN_POSITIVE) {
                lint.warnings
                    .push(format!("the largest threshold, {high}, is {:.0} times the median", high / median.max(f32::MIN_POSITIVE)));
            }
        }
        Ok(())
    }

    fn lint_duplicates(&self, lint: &mut Lint) -> Result<()> {
        let (f, d) = self.coder.w_dec.dims2()?;
        let norms = self.coder.w_dec.sqr()?.sum_keepdim(1)?.sqrt()?.maximum(1e-12)?;
        let unit = self.coder.w_dec.broadcast_div(&norms)?;
        let looked = f.min((BUDGET / f.saturating_mul(d).max(1)).max(1));
        let mut found = Vec::new();
        let block = 512;
        for from in (0..looked).step_by(block) {
            let n = block.min(looked - from);
            let cosines = unit.narrow(0, from, n)?.matmul(&unit.t()?)?.flatten_all()?.to_vec1::<f32>()?;
            for (i, row) in cosines.chunks_exact(f).enumerate() {
                // An atom is the duplicate of an earlier one.
                if row[..from + i].iter().any(|c| *c > DUPLICATE) {
                    found.push(from + i);
                }
            }
        }
        lint.duplicates = found.len();
        if !found.is_empty() {
            lint.warnings.push(format!(
                "{} atoms point where an earlier one does (cosine above {DUPLICATE}): {}",
                found.len(),
                list(&found)
            ));
        }
        if looked < f {
            lint.notes.push(format!("duplicates were looked for among the first {looked} atoms"));
        }
        Ok(())
    }

    fn lint_rows(&self, rows: &[Tensor], lint: &mut Lint) -> Result<()> {
        let mut flipped = self.clone();
        flipped.centred = !self.centred;
        let may_flip = !self.activation.is_pursuit() && self.d_in() == self.d_out();
        let (mut n, mut active, mut fired) = (0u64, 0u64, vec![false; self.d_sae()]);
        let (mut residual, mut other, mut squares, mut sums) = (0f64, 0f64, 0f64, vec![0f64; self.d_in()]);
        let off = |a: &Tensor, b: &Tensor| -> Result<f64> {
            let rows = (a - b)?.flatten_all()?.to_vec1::<f32>()?;
            Ok(rows.iter().map(|v| f64::from(*v).powi(2)).sum())
        };
        for x in rows {
            let (codes, xhat) = self.reconstruct(x)?;
            n += codes.n_rows() as u64;
            active += codes.indices.len() as u64;
            codes.indices.iter().for_each(|&j| fired[j as usize] = true);
            if self.d_in() == self.d_out() {
                residual += off(&xhat, x)?;
                if may_flip {
                    other += off(&flipped.reconstruct(x)?.1, x)?;
                }
                for row in x.to_vec2::<f32>()? {
                    for (s, v) in sums.iter_mut().zip(row) {
                        let v = f64::from(v);
                        *s += v;
                        squares += v * v;
                    }
                }
            }
        }
        if n == 0 {
            return Err(Error::request("no rows to look at", "choose a split that has rows"));
        }
        let spread = squares - sums.iter().map(|s| s * s).sum::<f64>() / n as f64;
        let ev = (self.d_in() == self.d_out() && spread > 0.0).then(|| 1.0 - residual / spread);
        let ev_flipped = (may_flip && spread > 0.0).then(|| 1.0 - other / spread);
        let l0 = active as f64 / n as f64;
        let notes = &self.provenance.notes;
        let expected_l0 = self.activation.k().map(|k| k as f64).or(notes["mean_k"].as_f64()).or(notes["k"].as_f64());
        let silent = fired.iter().filter(|f| !**f).count();
        if let Some(ev) = ev.filter(|ev| *ev < 0.0) {
            lint.warnings.push(format!(
                "explained variance {ev:.4} is below 0: the mean would do better. Are these rows of its hook point, in its units?"
            ));
        }
        if let (Some(ev), Some(flip)) = (ev, ev_flipped) {
            // Of two that are both hopeless, the better one says nothing.
            if flip > 0.0 && 1.0 - flip < 0.9 * (1.0 - ev) {
                let (now, then) = if self.centred { ("subtracts", "does not") } else { ("does not subtract", "does") };
                lint.warnings.push(format!(
                    "explained variance is {ev:.4} with an encoder that {now} b_dec, and {flip:.4} with one that {then}: was it imported with \
                     the wrong convention?"
                ));
            }
        }
        if let Some(expected) = expected_l0.filter(|k| (l0 - k).abs() > 0.2 * k) {
            lint.warnings.push(format!("L0 is {l0:.2} on these rows, {expected:.2} was meant: the threshold or the rows' scale is off"));
        }
        if silent > 0 {
            lint.notes.push(format!("{silent} of {} latents never fired on {n} rows", self.d_sae()));
        }
        lint.measured = Some(Measured { rows: n, l0, expected_l0, explained_variance: ev, explained_variance_flipped: ev_flipped, silent });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::dictionary::Provenance;
    use crate::kernels::Coder;
    use crate::rng::Rng;

    fn random(rng: &mut Rng, shape: &[usize]) -> Tensor {
        let n = shape.iter().product();
        Tensor::from_vec((0..n).map(|_| rng.normal() as f32).collect::<Vec<_>>(), shape, &Device::Cpu).unwrap()
    }

    /// An orthonormal dictionary of 8 atoms in 8 dimensions around a far mean: with the right convention it is perfect.
    fn perfect() -> (Dictionary, Vec<Tensor>) {
        let eye = Tensor::eye(8, candle_core::DType::F32, &Device::Cpu).unwrap();
        let b_dec = (Tensor::ones(8, candle_core::DType::F32, &Device::Cpu).unwrap() * 5.0).unwrap();
        let coder =
            Coder { w_enc: eye.clone(), b_enc: Tensor::zeros(8, candle_core::DType::F32, &Device::Cpu).unwrap(), w_dec: eye, b_dec };
        let d = Dictionary::new(coder, Activation::Relu, true, Provenance::default()).unwrap();
        let x = (random(&mut Rng::stream(1, "test", 0), &[200, 8]).abs().unwrap() + 5.0).unwrap();
        (d, vec![x])
    }

    #[test]
    fn a_good_dictionary_has_no_warnings_and_the_wrong_convention_one() {
        let (d, rows) = perfect();
        let lint = d.lint(&rows).unwrap();
        assert!(lint.warnings.is_empty(), "{:?}", lint.warnings);
        assert!(lint.measured.unwrap().explained_variance.unwrap() > 0.9999);
        let mut wrong = d.clone();
        wrong.centred = false;
        let warnings = wrong.lint(&rows).unwrap().warnings;
        assert!(warnings.iter().any(|w| w.contains("convention")) && warnings.iter().any(|w| w.contains("below 0")), "{warnings:?}");
    }

    #[test]
    fn duplicates_and_dead_rows_are_counted() {
        let (mut d, _) = perfect();
        let mut atoms = d.coder.w_dec.to_vec2::<f32>().unwrap();
        atoms[5] = atoms[2].iter().map(|v| 3.0 * v).collect();
        atoms[7] = vec![0.0; 8];
        d.coder.w_dec = Tensor::new(atoms, &Device::Cpu).unwrap();
        let lint = d.lint(&[]).unwrap();
        assert_eq!((lint.duplicates, lint.dead_rows), (1, 1));
        assert_eq!(lint.warnings.len(), 2, "{:?}", lint.warnings);
        assert!(lint.notes[0].contains("not of unit norm"));
    }
}
