//! What is known of planted rows: the features, and how they hang together.

use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};

use crate::artefact;
use crate::error::{Error, Result};

/// File with the truth beside planted shards: `features` `[G, d]`, `bias` `[d]`, `parents` `[G]` (-1 for none), `firing` `[G]`.
pub const TRUTH_FILE: &str = "truth.safetensors";

/// Features, their parents and frequencies.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Truth {
    /// Width.
    pub d: usize,
    /// Unit directions, row-major `[G, d]`.
    pub features: Vec<f32>,
    /// Added to every row, `[d]`.
    pub bias: Vec<f32>,
    /// Parent of each feature, `[G]`: it fires only with it. `None` for roots.
    pub parents: Vec<Option<u32>>,
    /// Probability that a feature fires, `[G]`; exact but for `synth`, whose correlations move children a little.
    pub firing: Vec<f64>,
}

impl Truth {
    /// Number of features G.
    pub fn len(&self) -> usize {
        self.parents.len()
    }

    /// Is there no feature?
    pub fn is_empty(&self) -> bool {
        self.parents.is_empty()
    }

    /// Direction of feature `g`, `[d]`.
    pub fn feature(&self, g: usize) -> &[f32] {
        &self.features[g * self.d..(g + 1) * self.d]
    }

    /// Expected number of features on a row.
    pub fn l0(&self) -> f64 {
        self.firing.iter().sum()
    }

    /// Has any feature a parent?
    pub fn has_hierarchy(&self) -> bool {
        self.parents.iter().any(Option::is_some)
    }

    /// Level of each feature, `[G]`: 0 for roots, one more than the parent's for others.
    pub fn levels(&self) -> Vec<u32> {
        // Walks up: parents may stand after their children.
        self.parents.iter().map(|parent| std::iter::successors(*parent, |&g| self.parents[g as usize]).count() as u32).collect()
    }

    fn to_bytes(&self) -> Result<Vec<u8>> {
        let floats = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let parents: Vec<u8> = self.parents.iter().flat_map(|p| p.map_or(-1, i64::from).to_le_bytes()).collect();
        let firing: Vec<u8> = self.firing.iter().flat_map(|p| p.to_le_bytes()).collect();
        let (features, bias) = (floats(&self.features), floats(&self.bias));
        let view = |dtype, shape: Vec<usize>, data| {
            TensorView::new(dtype, shape, data)
                .map_err(|e| Error::request(format!("the truth cannot be serialised: {e}"), "report this: its shapes are its own"))
        };
        let n = self.len();
        let tensors = [
            ("bias", view(Dtype::F32, vec![self.d], &bias)?),
            ("features", view(Dtype::F32, vec![n, self.d], &features)?),
            ("firing", view(Dtype::F64, vec![n], &firing)?),
            ("parents", view(Dtype::I64, vec![n], &parents)?),
        ];
        safetensors::serialize(tensors, None)
            .map_err(|e| Error::request(format!("the truth cannot be serialised: {e}"), "report this: its shapes are its own"))
    }

    /// SHA-256 of [`TRUTH_FILE`], hex.
    ///
    /// # Errors
    /// Never in practice: the shapes agree.
    pub fn sha256(&self) -> Result<String> {
        Ok(format!("{:x}", Sha256::digest(self.to_bytes()?)))
    }

    /// Writes [`TRUTH_FILE`] into `dir`.
    ///
    /// # Errors
    /// I/O errors.
    pub fn save(&self, dir: &Path) -> Result<()> {
        artefact::write(dir, TRUTH_FILE, &self.to_bytes()?)
    }

    /// Takes the directions from a file with this hash; false (and nothing taken) when there is none such.
    pub(super) fn read_directions(&mut self, path: &Path, sha256: &str) -> bool {
        let Ok(bytes) = std::fs::read(path) else { return false };
        if format!("{:x}", Sha256::digest(&bytes)) != sha256 {
            return false;
        }
        let Ok(file) = SafeTensors::deserialize(&bytes) else { return false };
        let Ok(view) = file.tensor("features") else { return false };
        if view.dtype() != Dtype::F32 || view.shape() != [self.len(), self.d] {
            return false;
        }
        self.features = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        true
    }
}
