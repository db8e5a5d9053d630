//! Rows to measure on: seeded ones, or those of a file or of shards, in file order.

use std::path::Path;

use crate::corpus::planted::{Planted, PlantedConfig, ZipfConfig};
use crate::error::{Error, Result};
use crate::harvest::{scan_vectors, VectorBlock};
use crate::shard::{Shards, Split};

/// Features that fire on a seeded row, in the mean.
const L0: f64 = 24.0;

/// Training rows, held-out rows, and where they come from.
#[derive(Debug, Clone)]
pub struct BenchRows {
    /// Width of a row.
    pub width: usize,
    /// Row-major `[n, width]`, f32.
    pub train: Vec<f32>,
    /// Row-major `[m, width]`, f32; empty when none were asked for.
    pub held_out: Vec<f32>,
    /// What they are, in words.
    pub source: String,
}

impl BenchRows {
    /// Number of training rows.
    pub fn n_train(&self) -> usize {
        self.train.len() / self.width
    }

    /// Seeded rows in superposition: `4 width` directions with Zipf frequencies, 24 of them on a row, noise a tenth of the variance.
    ///
    /// # Errors
    /// An impossible width.
    pub fn seeded(width: usize, n_train: usize, n_held_out: usize, seed: u64) -> Result<Self> {
        let l0 = L0.min(width as f64);
        // Each active direction brings a square of about 1.3^2; a tenth of it again is noise.
        let noise = (0.1 * l0 * 1.69 / width as f64).sqrt();
        let spec = ZipfConfig { d_in: width, n_features: 4 * width, l0, noise, decorrelate_rounds: 0, ..Default::default() };
        let planted = Planted::new(&PlantedConfig::Zipf(spec), seed)?;
        let end = n_train as u64;
        let source = format!("seeded rows (planted:zipf, seed {seed})");
        let (train, held_out) = (planted.rows(0..end).x, planted.rows(end..end + n_held_out as u64).x);
        Ok(Self { width, train, held_out, source })
    }

    /// The first `n_train` rows of a file (.npy, .safetensors, .parquet; `column` names its tensor) or folder of shards (its column), fewer
    /// if it has fewer; and the last `n_held_out`, which are then not among them: of the file, or of the shards' held-out split.
    ///
    /// # Errors
    /// What cannot be read, or has too few rows.
    pub fn of_path(path: &Path, column: Option<&str>, n_train: usize, n_held_out: usize) -> Result<Self> {
        let mut rows = Self { width: 0, train: Vec::new(), held_out: Vec::new(), source: path.display().to_string() };
        if path.is_dir() {
            let shards = Shards::open(path)?;
            let column = shards.column(column)?.clone();
            rows.width = column.width;
            rows.train = first(&shards, &column.name, Split::Train, 0, n_train)?;
            let skip = shards.rows(Some(Split::HeldOut)).saturating_sub(n_held_out as u64) as usize;
            rows.held_out = first(&shards, &column.name, Split::HeldOut, skip, n_held_out)?;
        } else {
            scan_vectors(path, column, &mut |VectorBlock { total, first, width, x }| {
                rows.width = width;
                let end = total.saturating_sub(n_held_out as u64);
                let trained = end.min(n_train as u64).saturating_sub(first) as usize * width;
                rows.train.extend_from_slice(&x[..trained.min(x.len())]);
                if n_held_out > 0 {
                    let held_out = end.saturating_sub(first) as usize * width;
                    rows.held_out.extend_from_slice(&x[held_out.min(x.len())..]);
                }
                // Without held-out rows there is no need to read to the end.
                n_held_out > 0 || rows.train.len() < n_train.saturating_mul(width)
            })?;
        }
        if rows.train.is_empty() || rows.held_out.len() < n_held_out * rows.width {
            return Err(Error::request(
                format!(
                    "{} has {} rows to train on and {} to hold out",
                    path.display(),
                    rows.train.len() / rows.width.max(1),
                    rows.held_out.len() / rows.width.max(1)
                ),
                format!("give more rows: {n_held_out} are held out"),
            ));
        }
        Ok(rows)
    }
}

/// Rows `skip..skip + n` of a split, as far as there are any.
fn first(shards: &Shards, column: &str, split: Split, skip: usize, n: usize) -> Result<Vec<f32>> {
    let (mut x, mut at) = (Vec::new(), 0);
    if n == 0 {
        return Ok(x);
    }
    for batch in shards.scan(column, Some(split))? {
        let batch = batch?;
        let width = batch.x.len() / batch.n.max(1);
        let (from, to) = (skip.saturating_sub(at).min(batch.n), (skip + n).saturating_sub(at).min(batch.n));
        x.extend_from_slice(&batch.x[from * width..to.max(from) * width]);
        at += batch.n;
        if at >= skip + n {
            break;
        }
    }
    Ok(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn npy(dir: &Path, rows: usize, width: usize) -> std::path::PathBuf {
        let mut dict = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {width}), }}");
        dict.push_str(&" ".repeat((64 - (10 + dict.len() + 1) % 64) % 64));
        dict.push('\n');
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((dict.len() as u16).to_le_bytes());
        bytes.extend(dict.as_bytes());
        (0..rows * width).for_each(|i| bytes.extend((i as f32).to_le_bytes()));
        let path = dir.join("x.npy");
        std::fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn the_ends_of_a_file_are_kept_apart() {
        let dir = tempfile::tempdir().unwrap();
        // More than one block of reading.
        let path = npy(dir.path(), 5000, 2);
        let rows = BenchRows::of_path(&path, None, 3000, 1500).unwrap();
        assert_eq!((rows.width, rows.n_train(), rows.held_out.len()), (2, 3000, 3000));
        assert_eq!((rows.train[5999], rows.held_out[0], rows.held_out[2999]), (5999.0, 7000.0, 9999.0));
        // What is held out is not trained on, however much is asked for.
        assert_eq!(BenchRows::of_path(&path, None, 9000, 1500).unwrap().n_train(), 3500);
        assert_eq!(BenchRows::of_path(&path, None, 9000, 0).unwrap().n_train(), 5000);
        assert!(BenchRows::of_path(&path, None, 10, 5001).is_err());
    }

    #[test]
    fn seeded_rows_are_the_same_rows() {
        let (a, b) = (BenchRows::seeded(8, 30, 4, 1).unwrap(), BenchRows::seeded(8, 30, 4, 1).unwrap());
        assert_eq!((a.train.len(), a.held_out.len(), &a.train), (240, 32, &b.train));
    }
}
