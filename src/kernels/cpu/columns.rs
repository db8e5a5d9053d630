//! A selection by latent (CSC): a counting sort, so that each latent's rows come in ascending order without comparing anything.

use crate::codes::{Codes, PAD};
use crate::error::Result;
use crate::kernels::Selection;

use super::encode::to_vec;

/// Entries of a batch's codes, by latent; within a latent, rows ascend.
#[derive(Debug, Clone)]
pub struct Columns {
    /// `starts[j]..starts[j + 1]` are latent j's entries; length `d_sae + 1`.
    pub starts: Vec<usize>,
    /// Row of each entry.
    pub rows: Vec<u32>,
    /// Value of each entry.
    pub values: Vec<f32>,
}

impl Columns {
    /// Of a selection over `d_sae` latents.
    ///
    /// # Errors
    /// When the tensors cannot be read.
    pub fn new(selection: &Selection, d_sae: usize) -> Result<Self> {
        let (_, k) = selection.indices.dims2()?;
        let indices: Vec<u32> = to_vec(&selection.indices)?;
        let values: Vec<f32> = to_vec(&selection.values)?;
        let entries = indices.iter().zip(&values).enumerate().filter(|(_, (&i, _))| i != PAD);
        Ok(Self::sorted(d_sae, entries.map(|(entry, (&i, &v))| ((entry / k) as u32, i as usize, v))))
    }

    /// Of codes.
    pub fn of_codes(codes: &Codes) -> Self {
        let rows = (0..codes.n_rows()).flat_map(|r| {
            let (indices, values) = codes.row(r);
            indices.iter().zip(values).map(move |(&j, &v)| (r as u32, j as usize, v))
        });
        Self::sorted(codes.d_sae, rows)
    }

    /// A counting sort of entries (row, latent, value) whose rows ascend.
    fn sorted(d_sae: usize, entries: impl Iterator<Item = (u32, usize, f32)> + Clone) -> Self {
        let mut starts = vec![0usize; d_sae + 1];
        for (_, j, _) in entries.clone() {
            starts[j + 1] += 1;
        }
        for j in 0..d_sae {
            starts[j + 1] += starts[j];
        }
        let mut next = starts.clone();
        let mut columns = Self { rows: vec![0; starts[d_sae]], values: vec![0.0; starts[d_sae]], starts };
        for (r, j, v) in entries {
            let slot = &mut next[j];
            columns.rows[*slot] = r;
            columns.values[*slot] = v;
            *slot += 1;
        }
        columns
    }

    /// As codes of `n` rows.
    pub fn to_codes(&self, n: usize) -> Codes {
        let d_sae = self.starts.len() - 1;
        let mut rows: Vec<Vec<(u32, f32)>> = vec![Vec::new(); n];
        for j in 0..d_sae {
            let (of, values) = self.column(j);
            of.iter().zip(values).for_each(|(&r, &v)| rows[r as usize].push((j as u32, v)));
        }
        let mut codes = Codes::new(d_sae);
        for mut row in rows {
            row.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            codes.push_row(row.into_iter());
        }
        codes
    }

    /// The entries of latents `from..to` alone, over the same latents.
    pub fn range(&self, from: usize, to: usize) -> Self {
        let (first, last) = (self.starts[from], self.starts[to]);
        Self {
            starts: self.starts.iter().map(|s| s.clamp(&first, &last) - first).collect(),
            rows: self.rows[first..last].to_vec(),
            values: self.values[first..last].to_vec(),
        }
    }

    /// The entries for which `keep` says so, by latent and value.
    pub fn filtered(&self, keep: impl Fn(usize, f32) -> bool) -> Self {
        let mut kept = Self { starts: vec![0], rows: Vec::new(), values: Vec::new() };
        for j in 0..self.starts.len() - 1 {
            let (rows, values) = self.column(j);
            for (&r, &v) in rows.iter().zip(values).filter(|(_, &v)| keep(j, v)) {
                kept.rows.push(r);
                kept.values.push(v);
            }
            kept.starts.push(kept.rows.len());
        }
        kept
    }

    /// Rows and values of latent `j`.
    pub fn column(&self, j: usize) -> (&[u32], &[f32]) {
        let span = self.starts[j]..self.starts[j + 1];
        (&self.rows[span.clone()], &self.values[span])
    }

    /// On how many rows latent `j` fires.
    pub fn count(&self, j: usize) -> usize {
        self.starts[j + 1] - self.starts[j]
    }
}
