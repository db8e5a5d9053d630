//! The proof of an export: what was written is read back, and both dictionaries encode the same rows.

use std::fmt;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::Serialize;

use super::{Format, ReadOptions, WriteOptions};
use crate::codes::Codes;
use crate::dictionary::{Activation, Dictionary};
use crate::error::{Error, Result};
use crate::rng::Rng;

/// Largest difference that rounding may make, relative to the largest value where that is above 1.
pub const TOLERANCE: f64 = 1e-5;

/// Two dictionaries on the same rows.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Comparison {
    /// Rows that both encoded.
    pub rows: u64,
    /// Largest |difference| of a code, but for rows on an edge.
    pub codes: f64,
    /// Largest |difference| of a reconstruction, but for rows on an edge.
    pub reconstruction: f64,
    /// Rows where the sets of active latents differ, and only in latents within the tolerance of being, or not being, chosen.
    pub edge_rows: u64,
    /// Largest |code| and largest |reconstruction|.
    pub largest: [f64; 2],
    /// Mean active latents per row, of each.
    pub l0: [f64; 2],
    /// Fraction of variance unexplained, of each; none where output and input have different widths.
    pub fvu: [Option<f64>; 2],
    /// What was allowed, relative to the largest value where that is above 1.
    pub tolerance: f64,
}

impl Comparison {
    /// Are both the same but for rounding? One row in a hundred may be on an edge.
    pub fn holds(&self) -> bool {
        self.codes <= self.tolerance * self.largest[0].max(1.0)
            && self.reconstruction <= self.tolerance * self.largest[1].max(1.0)
            && self.edge_rows * 100 <= self.rows
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows: max |difference| {:.1e} of codes, {:.1e} of reconstructions", self.rows, self.codes, self.reconstruction)?;
        if self.edge_rows > 0 {
            write!(f, " ({} rows left out, whose choice of latents is within rounding)", self.edge_rows)?;
        }
        write!(f, "; L0 {:.3} before, {:.3} after", self.l0[0], self.l0[1])?;
        if let [Some(a), Some(b)] = self.fvu {
            write!(f, "; FVU {a:.6} before, {b:.6} after")?;
        }
        Ok(())
    }
}

/// Compares what two dictionaries make of `rows` (blocks `[n, d_in]`).
///
/// # Errors
/// Dictionaries or rows of different widths, no rows.
pub fn compare(before: &Dictionary, after: &Dictionary, rows: &[Tensor], tolerance: f64) -> Result<Comparison> {
    let mut c = Comparison { tolerance, ..Default::default() };
    let d_out = before.d_out();
    if (before.d_in(), d_out, before.d_sae()) != (after.d_in(), after.d_out(), after.d_sae()) {
        return Err(Error::request("dictionaries of different shapes cannot be compared", "compare a dictionary with its own export"));
    }
    let (mut active, mut residual, mut sums, mut squares) = ([0u64; 2], [0f64; 2], vec![0f64; d_out], 0f64);
    for x in rows {
        let both = [before.reconstruct(x)?, after.reconstruct(x)?];
        let y: Vec<Vec<f32>> = both.iter().map(|(_, y)| Ok(y.flatten_all()?.to_vec1()?)).collect::<Result<_>>()?;
        let input = x.flatten_all()?.to_vec1::<f32>()?;
        for r in 0..both[0].0.n_rows() {
            c.rows += 1;
            let span = r * d_out..(r + 1) * d_out;
            let (a, b) = (&y[0][span.clone()], &y[1][span.clone()]);
            for (side, (codes, _)) in both.iter().enumerate() {
                active[side] += codes.row(r).0.len() as u64;
            }
            if before.d_in() == d_out {
                for (i, &v) in input[span].iter().enumerate() {
                    let v = f64::from(v);
                    sums[i] += v;
                    squares += v * v;
                    residual[0] += (f64::from(a[i]) - v).powi(2);
                    residual[1] += (f64::from(b[i]) - v).powi(2);
                }
            }
            match row_difference(before, &both[0].0, &both[1].0, r, tolerance, &mut c.largest[0]) {
                None => c.edge_rows += 1,
                Some(difference) => {
                    c.codes = c.codes.max(difference);
                    for (a, b) in a.iter().zip(b) {
                        c.reconstruction = c.reconstruction.max(f64::from((a - b).abs()));
                        c.largest[1] = c.largest[1].max(f64::from(a.abs()));
                    }
                }
            }
        }
    }
    if c.rows == 0 {
        return Err(Error::request("no rows to compare dictionaries on", "choose a split that has rows"));
    }
    c.l0 = active.map(|n| n as f64 / c.rows as f64);
    if before.d_in() == d_out {
        let spread = squares - sums.iter().map(|s| s * s).sum::<f64>() / c.rows as f64;
        c.fvu = residual.map(|r| (spread > 0.0).then(|| r / spread));
    }
    Ok(c)
}

/// A latent and its code.
type Entry = (u32, f32);

/// Largest difference of a row's codes; `None` when the sets differ in latents on the edge of being chosen alone.
fn row_difference(d: &Dictionary, a: &Codes, b: &Codes, r: usize, tolerance: f64, largest: &mut f64) -> Option<f64> {
    let sorted = |codes: &Codes| {
        let (indices, values) = codes.row(r);
        let mut row: Vec<Entry> = indices.iter().copied().zip(values.iter().copied()).collect();
        row.sort_unstable_by_key(|e| e.0);
        row
    };
    let (a, b) = (sorted(a), sorted(b));
    let scale = a.iter().map(|e| f64::from(e.1.abs())).fold(0.0, f64::max);
    *largest = largest.max(scale);
    let (mut i, mut j, mut worst) = (0, 0, 0f64);
    let (mut lost, mut gained) = (Vec::<Entry>::new(), Vec::<Entry>::new());
    while i < a.len() || j < b.len() {
        match (a.get(i), b.get(j)) {
            (Some(x), Some(y)) if x.0 == y.0 => {
                worst = worst.max(f64::from((x.1 - y.1).abs()));
                (i, j) = (i + 1, j + 1);
            }
            (Some(x), y) if y.is_none_or(|y| x.0 < y.0) => {
                lost.push(*x);
                i += 1;
            }
            (_, Some(y)) => {
                gained.push(*y);
                j += 1;
            }
            _ => break,
        }
    }
    if lost.is_empty() && gained.is_empty() {
        return Some(worst);
    }
    let near = tolerance * scale.max(1.0);
    let on_edge = if lost.len() == gained.len() && !d.activation.is_pursuit() {
        let strength = |row: &mut Vec<Entry>| {
            row.sort_unstable_by(|x, y| y.1.abs().total_cmp(&x.1.abs()));
        };
        strength(&mut lost);
        strength(&mut gained);
        lost.iter().zip(&gained).all(|(x, y)| f64::from((x.1.abs() - y.1.abs()).abs()) <= near)
    } else {
        let bar = thresholds(d);
        lost.iter().chain(&gained).all(|&(l, v)| bar.as_ref().is_some_and(|bar| f64::from(v) - bar(l as usize) <= near))
    };
    if on_edge && worst <= near {
        return None;
    }
    let missing = lost.iter().chain(&gained).map(|e| f64::from(e.1.abs())).fold(0.0, f64::max);
    Some(worst.max(missing))
}

/// What a latent's code must be above.
fn thresholds(d: &Dictionary) -> Option<Box<dyn Fn(usize) -> f64>> {
    match &d.activation {
        Activation::Relu => Some(Box::new(|_| 0.0)),
        Activation::Threshold { threshold } => {
            let t = f64::from(*threshold);
            Some(Box::new(move |_| t))
        }
        Activation::JumpRelu => {
            let all = d.thresholds.as_ref()?.to_vec1::<f32>().ok()?;
            Some(Box::new(move |l| f64::from(all[l])))
        }
        _ => None,
    }
}

/// Rows on which a dictionary's latents fire, made of its own atoms: `n` rows `[n, d_in]`, the same for the same seed. Sums of some atoms
/// with positive coefficients and noise, so large that latents pass their thresholds.
///
/// # Errors
/// Tensors that cannot be read.
pub fn made_rows(d: &Dictionary, n: usize, seed: u64) -> Result<Tensor> {
    let (f, width) = (d.d_sae(), d.d_in());
    let from = if d.d_out() == width { &d.coder.w_dec } else { &d.coder.w_enc };
    let atoms = from.flatten_all()?.to_vec1::<f32>()?;
    let b_dec = if d.d_out() == width { d.coder.b_dec.to_vec1::<f32>()? } else { vec![0.0; width] };
    let (scale, shift) = match &d.input_transform {
        Some(t) => (t.scale, t.shift.to_vec1::<f32>()?),
        None => (1.0, vec![0.0; width]),
    };
    let mut strength = 1.0;
    loop {
        let mut rng = Rng::stream(seed, "export rows", 0);
        let mut rows = Vec::with_capacity(n * width);
        for _ in 0..n {
            let mut u: Vec<f64> = b_dec.iter().map(|&b| f64::from(b) + 0.1 * strength * rng.normal() / (width as f64).sqrt()).collect();
            for _ in 0..8.min(f) {
                let j = rng.below(f as u64) as usize;
                let atom = &atoms[j * width..(j + 1) * width];
                let norm = atom.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt().max(1e-12);
                let by = strength * (0.5 + rng.normal().abs()) / norm;
                u.iter_mut().zip(atom).for_each(|(u, &v)| *u += by * f64::from(v));
            }
            rows.extend(u.iter().zip(&shift).map(|(u, &s)| (u / scale + f64::from(s)) as f32));
        }
        let rows = Tensor::from_vec(rows, (n, width), &Device::Cpu)?;
        // Far above any threshold seen, or latents that never fire: what is had must do.
        if strength > 1e4 || d.encode(&rows)?.indices.len() >= n {
            return Ok(rows);
        }
        strength *= 4.0;
    }
}

/// Where an export went, and that it is the same dictionary.
#[derive(Debug, Clone, Serialize)]
pub struct Exported {
    /// The dialect.
    pub format: &'static str,
    /// What other tools take: the folder, or the file in it.
    pub path: PathBuf,
    /// What the dialect does not carry, or carries in another form.
    pub notes: Vec<String>,
    /// Both on the same rows.
    pub proof: Comparison,
}

/// Writes `dictionary` into `out`, reads it back and compares both on `rows`. An export beyond `tolerance` is returned too: ask
/// [`Comparison::holds`].
///
/// # Errors
/// What the dialect cannot hold; I/O errors; an output that does not read back.
pub fn export(
    dictionary: &Dictionary,
    format: &'static dyn Format,
    out: &Path,
    options: &WriteOptions,
    rows: &[Tensor],
    tolerance: f64,
) -> Result<Exported> {
    std::fs::create_dir_all(out).map_err(|e| Error::io("create", out, e))?;
    let written = format.write(dictionary, out, options)?;
    let mut read = ReadOptions { k: dictionary.activation.k(), ..Default::default() };
    if let Activation::Threshold { threshold } = dictionary.activation {
        read.threshold = Some(threshold);
    }
    let back = format.read(&written.path, &read)?;
    let proof = compare(dictionary, &back.dictionary, rows, tolerance)?;
    Ok(Exported { format: format.id(), path: written.path, notes: written.notes, proof })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dictionary::Provenance;
    use crate::kernels::Coder;

    fn sample(activation: &str) -> Dictionary {
        let mut rng = Rng::stream(3, "test", 0);
        let mut random = |shape: &[usize]| {
            let n = shape.iter().product();
            Tensor::from_vec((0..n).map(|_| rng.normal() as f32).collect::<Vec<_>>(), shape, &Device::Cpu).unwrap()
        };
        let coder = Coder { w_enc: random(&[24, 8]), b_enc: random(&[24]), w_dec: random(&[24, 8]), b_dec: random(&[8]) };
        Dictionary::new(coder, activation.parse().unwrap(), true, Provenance::default()).unwrap()
    }

    #[test]
    fn a_dictionary_equals_itself_and_no_other() {
        let d = sample("threshold:3");
        let rows = [made_rows(&d, 200, 1).unwrap()];
        let same = compare(&d, &d, &rows, TOLERANCE).unwrap();
        assert!(same.holds() && same.codes == 0.0 && same.l0[0] >= 1.0 && same.fvu[0] == same.fvu[1], "{same}");

        let mut other = d.clone();
        other.coder.b_dec = (&other.coder.b_dec + 1e-3).unwrap();
        assert!(!compare(&d, &other, &rows, TOLERANCE).unwrap().holds());
        let other = d.clone().with_activation("threshold:3.01".parse().unwrap()).unwrap();
        let c = compare(&d, &other, &rows, TOLERANCE).unwrap();
        assert!(!c.holds() && c.l0[0] > c.l0[1], "{c}");
    }

    #[test]
    fn a_choice_within_rounding_is_an_edge() {
        // Two latents with the same encoder: which of them fires is rounding's choice.
        let mut d = sample("topk:1");
        let w = d.coder.w_enc.narrow(0, 0, 1).unwrap().repeat((24, 1)).unwrap();
        let flat: Vec<f32> = (0..24).map(|i| 1.0 + if i == 3 { 1e-4 } else { 0.0 }).collect();
        d.coder.w_enc = w;
        d.coder.b_enc = Tensor::from_vec(flat, 24, &Device::Cpu).unwrap();
        let mut other = d.clone();
        other.coder.b_enc = Tensor::ones(24, candle_core::DType::F32, &Device::Cpu).unwrap();
        let rows = [made_rows(&d, 50, 1).unwrap()];
        let c = compare(&d, &other, &rows, 1e-3).unwrap();
        assert!(c.edge_rows > 0 && c.codes < 1e-3 && !c.holds(), "{c}");
    }
}
