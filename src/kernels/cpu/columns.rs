//! A selection by latent (CSC): a counting sort, so that each latent's rows come in ascending order without comparing anything.

use crate::codes::PAD;
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
    /// Of a selection over `d_sae` latents. With `latents`, the selection's indices point into that list (a gathered subset).
    ///
    /// # Errors
    /// When the tensors cannot be read.
    pub fn new(selection: &Selection, d_sae: usize, latents: Option<&[u32]>) -> Result<Self> {
        let (_, k) = selection.indices.dims2()?;
        let indices: Vec<u32> = to_vec(&selection.indices)?;
        let values: Vec<f32> = to_vec(&selection.values)?;
        let latent = |i: u32| latents.map_or(i, |l| l[i as usize]) as usize;
        let mut starts = vec![0usize; d_sae + 1];
        for &i in indices.iter().filter(|&&i| i != PAD) {
            starts[latent(i) + 1] += 1;
        }
        for j in 0..d_sae {
            starts[j + 1] += starts[j];
        }
        let mut next = starts.clone();
        let mut columns = Self { rows: vec![0; starts[d_sae]], values: vec![0.0; starts[d_sae]], starts };
        for (entry, (&i, &v)) in indices.iter().zip(&values).enumerate() {
            if i != PAD {
                let slot = &mut next[latent(i)];
                columns.rows[*slot] = (entry / k) as u32;
                columns.values[*slot] = v;
                *slot += 1;
            }
        }
        Ok(columns)
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
