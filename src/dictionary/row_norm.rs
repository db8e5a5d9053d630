//! Normalisations that act on each row by itself before encoding, and are undone after decoding. No learner of ours makes one:
//! they belong to imported dictionaries.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::error::Result;

/// What is added to a row's standard deviation before dividing by it.
const EPSILON: f64 = 1e-5;

/// How a row is normalised. With d its width:
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowNorm {
    /// `u = (x - mean) / (sd + 1e-5)`, the standard deviation with d - 1; undone as `y sd + mean`, without the 1e-5 (SAELens, OpenAI).
    LayerNorm,
    /// `u = x sqrt(d) / |x|`; undone as `y |x| / sqrt(d)`. A row of zeros stays zeros.
    ConstantNorm,
}

/// What was done to each row: enough to undo it.
pub(super) struct Normed {
    /// The normalised rows, `[n, d]`, f32.
    pub u: Tensor,
    /// Added to a reconstruction at last, `[n, 1]`, f32.
    pub shift: Tensor,
    /// Multiplied before, `[n, 1]`, f32.
    pub scale: Tensor,
}

impl RowNorm {
    /// Normalises `x` `[n, d]`, f32. Statistics are f64.
    pub(super) fn apply(self, x: &Tensor) -> Result<Normed> {
        let (n, d) = x.dims2()?;
        let rows = x.to_dtype(candle_core::DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let (mut u, mut shifts, mut scales) = (Vec::with_capacity(n * d), Vec::with_capacity(n), Vec::with_capacity(n));
        for row in rows.chunks_exact(d.max(1)) {
            let (shift, into, back) = self.of_row(row);
            u.extend(row.iter().map(|&v| ((f64::from(v) - shift) * into) as f32));
            shifts.push(shift as f32);
            scales.push(back as f32);
        }
        let device = x.device();
        Ok(Normed {
            u: Tensor::from_vec(u, (n, d), device)?,
            shift: Tensor::from_vec(shifts, (n, 1), device)?,
            scale: Tensor::from_vec(scales, (n, 1), device)?,
        })
    }

    /// Shift, factor on the way in, factor on the way back.
    fn of_row(self, row: &[f32]) -> (f64, f64, f64) {
        let d = row.len() as f64;
        match self {
            Self::LayerNorm => {
                let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / d;
                let sum: f64 = row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum();
                let sd = (sum / (d - 1.0).max(1.0)).sqrt();
                (mean, 1.0 / (sd + EPSILON), sd)
            }
            Self::ConstantNorm => {
                let norm = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
                let into = if norm > 0.0 { d.sqrt() / norm } else { 0.0 };
                (0.0, into, norm / d.sqrt())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn each_is_undone() {
        let x = Tensor::new(&[[1f32, 2., 4., 9.], [-3., 0., 0.5, 2.], [0., 0., 0., 0.]], &Device::Cpu).unwrap();
        for norm in [RowNorm::LayerNorm, RowNorm::ConstantNorm] {
            let n = norm.apply(&x).unwrap();
            let back = n.u.broadcast_mul(&n.scale).unwrap().broadcast_add(&n.shift).unwrap();
            let off = (back - &x).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            // Layer norm divides by sd + 1e-5 and multiplies by sd.
            assert!(off < 1e-4, "{norm:?}: {off}");
        }
        let n = RowNorm::ConstantNorm.apply(&x).unwrap();
        let first = n.u.get(0).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        assert!((first - 4.0).abs() < 1e-5);
        let n = RowNorm::LayerNorm.apply(&x).unwrap();
        let row = n.u.get(0).unwrap().to_vec1::<f32>().unwrap();
        // mean 4, sd sqrt(38 / 3) = 3.559026
        assert!((row[0] - (1.0 - 4.0) / (3.559_026 + 1e-5)).abs() < 1e-6, "{row:?}");
    }
}
