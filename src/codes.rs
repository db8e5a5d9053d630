//! Sparse codes: which latents fire on each row, and how strongly. One layout for kernels, files and metrics.
//!
//! Not for: choosing them (`kernels`) or reconstructing from them (`kernels::sparse_decode`).

use candle_core::{Device, Tensor};

use crate::error::Result;

/// Marks a slot of a padded row that holds no latent: fewer than k pre-activations were positive.
pub const PAD: u32 = u32::MAX;

/// Codes of some rows over a dictionary, compressed by row. Within a row, entries go by value descending, then index ascending.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Codes {
    /// Number of latents in the dictionary.
    pub d_sae: usize,
    /// `indptr[r]..indptr[r + 1]` are row r's entries; length `n_rows + 1`.
    pub indptr: Vec<usize>,
    /// Latent of each entry.
    pub indices: Vec<u32>,
    /// Value of each entry, not zero.
    pub values: Vec<f32>,
}

impl Codes {
    /// No rows yet.
    pub fn new(d_sae: usize) -> Self {
        Self { d_sae, indptr: vec![0], indices: Vec::new(), values: Vec::new() }
    }

    /// From padded rows of width `k`: pads and zeros are dropped.
    pub fn from_padded(d_sae: usize, k: usize, indices: &[u32], values: &[f32]) -> Self {
        let mut codes = Self::new(d_sae);
        for (row_indices, row_values) in indices.chunks_exact(k).zip(values.chunks_exact(k)) {
            codes.push_row(row_indices.iter().copied().zip(row_values.iter().copied()).filter(|&(j, v)| j != PAD && v != 0.0));
        }
        codes
    }

    /// Appends one row; entries must come in the row order of the type.
    pub fn push_row(&mut self, entries: impl Iterator<Item = (u32, f32)>) {
        for (j, v) in entries {
            self.indices.push(j);
            self.values.push(v);
        }
        self.indptr.push(self.indices.len());
    }

    /// Every value through `f` (latent, value); entries that are not above 0 then are dropped, and rows are put in order again.
    pub fn mapped(&self, f: impl Fn(usize, f32) -> f32) -> Self {
        let mut mapped = Self::new(self.d_sae);
        for r in 0..self.n_rows() {
            let (indices, values) = self.row(r);
            let mut row: Vec<(u32, f32)> = indices.iter().zip(values).map(|(&j, &v)| (j, f(j as usize, v))).filter(|e| e.1 > 0.0).collect();
            row.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            mapped.push_row(row.into_iter());
        }
        mapped
    }

    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.indptr.len() - 1
    }

    /// Latents and values of row `r`.
    pub fn row(&self, r: usize) -> (&[u32], &[f32]) {
        let span = self.indptr[r]..self.indptr[r + 1];
        (&self.indices[span.clone()], &self.values[span])
    }

    /// Appends all rows of `other`.
    pub fn extend(&mut self, other: &Codes) {
        let base = self.indices.len();
        self.indices.extend_from_slice(&other.indices);
        self.values.extend_from_slice(&other.values);
        self.indptr.extend(other.indptr[1..].iter().map(|p| p + base));
    }

    /// Dense `[n_rows, d_sae]`, f32, for analysis of a few thousand rows.
    pub fn to_array(&self) -> ndarray::Array2<f32> {
        let mut dense = ndarray::Array2::zeros((self.n_rows(), self.d_sae));
        for r in 0..self.n_rows() {
            let (indices, values) = self.row(r);
            indices.iter().zip(values).for_each(|(&j, &v)| dense[[r, j as usize]] = v);
        }
        dense
    }

    /// Dense `[n_rows, d_sae]`, f32. For small things and tests.
    pub fn to_dense(&self) -> Result<Tensor> {
        let mut dense = vec![0f32; self.n_rows() * self.d_sae];
        for r in 0..self.n_rows() {
            let (indices, values) = self.row(r);
            for (&j, &v) in indices.iter().zip(values) {
                dense[r * self.d_sae + j as usize] = v;
            }
        }
        Ok(Tensor::from_vec(dense, (self.n_rows(), self.d_sae), &Device::Cpu)?)
    }
}
