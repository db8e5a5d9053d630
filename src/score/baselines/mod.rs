//! Dictionaries that nobody trained, at the same number of latents per row: what a score must be compared with.
//!
//! * `random`: unit atoms in random directions, as many as the dictionary has.
//! * `rows`: directions from the mean to random training rows, as many where there are so many.
//! * `pca`: plus and minus each principal axis of the training rows.
//! * `kmeans`: directions from the mean to the centroids of the training rows.
//!
//! All subtract the mean of the training rows, encode with their own atoms, and keep the k largest ([`Activation::TopK`]). Atoms that
//! are not orthogonal overshoot when several are added, so all but `pca` have one number fitted: an encoder gain, the one that
//! minimises the squared error on the training rows. The axes of `pca` are orthonormal: their best gain is 1.
//!
//! Same rows, same seed, same bytes, whatever the number of threads. Not for: trained comparisons
//! (`freeze_decoder` and `permute_columns` of `train` make those).

mod kmeans;
mod pca;
mod random;
mod rows;

pub(crate) use pca::eigenvectors;

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Moments;
use crate::dictionary::{Activation, Dictionary, Provenance};
use crate::error::{Error, Result};
use crate::kernels::Coder;
use crate::progress::Progress;
use crate::shard::Batch;

/// How to make baselines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BaselineConfig {
    /// Latents per row: that of the dictionary they stand beside (its mean L0, rounded, when that is not fixed).
    pub k: usize,
    /// Latents of that dictionary.
    pub d_sae: usize,
    /// Of the random atoms and of k-means.
    pub seed: u64,
    /// At most this many training rows are read.
    pub sample_rows: usize,
    /// At most this many centroids: `min(d_sae, max_centroids)`.
    pub max_centroids: usize,
    /// Lloyd iterations at most; fewer when hardly a row changes its centroid.
    pub lloyd_iterations: usize,
}

impl Default for BaselineConfig {
    fn default() -> Self {
        Self { k: 32, d_sae: 16_384, seed: 0, sample_rows: 32_768, max_centroids: 1024, lloyd_iterations: 10 }
    }
}

/// Training rows, centred.
struct Sample {
    n: usize,
    d: usize,
    /// `[n, d]`, minus the mean.
    centred: Vec<f32>,
    /// `[d]`.
    mean: Vec<f32>,
}

/// Makes the baselines from the first `sample_rows` training rows of a stream (pass a shuffled one): `random`, `pca`, `kmeans`, `rows`.
///
/// # Errors
/// A stream that fails, or has no two different rows; k out of range.
pub fn baselines(
    train: impl IntoIterator<Item = Result<Batch>>,
    config: &BaselineConfig,
    progress: &dyn Progress,
) -> Result<Vec<(String, Dictionary)>> {
    if config.k == 0 || config.k > config.d_sae {
        return Err(Error::config(
            "k",
            format!("{} of {} latents cannot be selected", config.k, config.d_sae),
            format!("choose k between 1 and {}", config.d_sae),
        ));
    }
    let sample = Sample::read(train, config.sample_rows)?;
    let makers: [(&str, Maker); 4] = [("random", random::atoms), ("pca", pca::atoms), ("kmeans", kmeans::atoms), ("rows", rows::atoms)];
    progress.begin("baselines", Some(makers.len() as u64), "dictionaries");
    let mut made = Vec::new();
    for (name, atoms) in makers {
        if progress.is_cancelled() {
            return Err(Error::Cancelled { doing: "making baselines" });
        }
        progress.status(name);
        made.push((name.to_string(), sample.dictionary(name, atoms(&sample, config)?, config)?));
        progress.advance(1);
    }
    progress.end();
    Ok(made)
}

/// Unit atoms, row-major `[n_atoms, d]`.
type Maker = fn(&Sample, &BaselineConfig) -> Result<Vec<f32>>;

impl Sample {
    fn read(train: impl IntoIterator<Item = Result<Batch>>, limit: usize) -> Result<Self> {
        let (mut x, mut d) = (Vec::new(), 0);
        for batch in train {
            let batch = batch?;
            if batch.n == 0 {
                continue;
            }
            d = batch.x.len() / batch.n;
            let wanted = (limit - x.len() / d).min(batch.n);
            x.extend_from_slice(&batch.x[..wanted * d]);
            if x.len() / d >= limit {
                break;
            }
        }
        if let Some(first) = x.iter().position(|v: &f32| !v.is_finite()) {
            return Err(Error::NotFinite {
                what: "the training rows".into(),
                count: x.iter().filter(|v| !v.is_finite()).count(),
                place: format!("row {}", first / d),
                help: "harvest them again in f32 (f16 overflows at 65504), or drop the damaged shard".into(),
            });
        }
        let n = x.len().checked_div(d).unwrap_or(0);
        let moments = Moments::of(n, d, |r, c| f64::from(x[r * d + c]));
        if moments.total() <= 0.0 {
            return Err(Error::request(
                format!("baselines need at least two different training rows, there are {n} rows"),
                "harvest more tokens, or score without baselines",
            ));
        }
        for row in x.chunks_exact_mut(d) {
            row.iter_mut().zip(&moments.mean).for_each(|(v, m)| *v = (f64::from(*v) - m) as f32);
        }
        Ok(Self { n, d, centred: x, mean: moments.mean.iter().map(|&m| m as f32).collect() })
    }

    fn row(&self, r: usize) -> &[f32] {
        &self.centred[r * self.d..(r + 1) * self.d]
    }

    fn dictionary(&self, name: &str, atoms: Vec<f32>, config: &BaselineConfig) -> Result<Dictionary> {
        let n_atoms = atoms.len() / self.d;
        let k = config.k.min(n_atoms);
        let device = Device::Cpu;
        let w_dec = Tensor::from_vec(atoms, (n_atoms, self.d), &device)?;
        let coder = Coder {
            w_enc: w_dec.clone(),
            b_enc: Tensor::zeros(n_atoms, candle_core::DType::F32, &device)?,
            w_dec: w_dec.clone(),
            b_dec: Tensor::from_slice(&self.mean, self.d, &device)?,
        };
        let notes = json!({ "k": k, "atoms": n_atoms, "train_rows": self.n, "seed": config.seed });
        let provenance =
            Provenance { made_by: format!("baseline {name}"), lapidary: env!("CARGO_PKG_VERSION").into(), notes, ..Provenance::default() };
        let mut dictionary = Dictionary::new(coder, Activation::TopK { k }, true, provenance)?;
        if name != "pca" {
            let gain = self.gain(&dictionary)?;
            dictionary.coder.w_enc = (w_dec * gain)?;
            dictionary.provenance.notes["encoder_gain"] = json!(gain);
        }
        Ok(dictionary)
    }

    /// The encoder gain of the smallest squared error on the sample. Scaling the encoder changes no selection, so the reconstruction
    /// is `mean + g y` with `y` that of gain 1, and `g = sum <x - mean, y> / sum ||y||^2` exactly.
    fn gain(&self, dictionary: &Dictionary) -> Result<f64> {
        /// Rows decoded at a time.
        const ROWS: usize = 4096;
        let (mut dot, mut norm) = (0f64, 0f64);
        for rows in self.centred.chunks(ROWS * self.d) {
            let x: Vec<f32> = rows.chunks_exact(self.d).flat_map(|row| row.iter().zip(&self.mean).map(|(v, m)| v + m)).collect();
            let (_, x_hat) = dictionary.reconstruct(&Tensor::from_vec(x, (rows.len() / self.d, self.d), &Device::Cpu)?)?;
            let y: Vec<f32> = x_hat.broadcast_sub(&dictionary.coder.b_dec)?.flatten_all()?.to_vec1()?;
            let sums: Vec<(f64, f64)> = rows
                .par_chunks(self.d)
                .zip(y.par_chunks(self.d))
                .map(|(x, y)| {
                    x.iter().zip(y).fold((0.0, 0.0), |(dot, norm), (&x, &y)| {
                        let (x, y) = (f64::from(x), f64::from(y));
                        (dot + x * y, norm + y * y)
                    })
                })
                .collect();
            for (d, n) in sums {
                dot += d;
                norm += n;
            }
        }
        // No row with a positive code (a sample of two rows, say): every gain is as good.
        Ok(if norm > 0.0 { dot / norm } else { 1.0 })
    }
}

/// Scales a row to norm 1; false for a row of zero norm.
fn normalise(row: &mut [f32]) -> bool {
    let norm = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    if norm > 0.0 {
        row.iter_mut().for_each(|v| *v = (f64::from(*v) / norm) as f32);
    }
    norm > 0.0
}

#[cfg(test)]
mod tests;
