//! Where learners start: unit atoms from the "init" stream, a geometric median for `b_dec`, and one gain for the tied encoder.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::aux_k::sum_sq;
use crate::error::Result;
use crate::kernels::{encode_topk, sparse_decode, Coder};
use crate::rng::Rng;

/// `[d_sae, d]` rows uniform on the unit sphere.
pub fn unit_rows(d_sae: usize, d: usize, seed: u64) -> Result<Tensor> {
    let mut data = vec![0f32; d_sae * d];
    // A stream per row: the same rows whatever the number of threads, and a wider dictionary starts with a narrower one's rows.
    data.par_chunks_mut(d).enumerate().for_each(|(j, row)| {
        let mut rng = Rng::stream(seed, "init", j as u64);
        let mut norm = 0f64;
        for v in row.iter_mut() {
            let z = rng.normal();
            norm += z * z;
            *v = z as f32;
        }
        let norm = norm.sqrt().max(f64::MIN_POSITIVE);
        row.iter_mut().for_each(|v| *v = (f64::from(*v) / norm) as f32);
    });
    Ok(Tensor::from_vec(data, (d_sae, d), &Device::Cpu)?)
}

/// The geometric median of rows `[m, d]` (Weiszfeld's iteration from the mean, in f64), `[d]`: the point of least summed distance,
/// which outliers pull less than they pull the mean.
///
/// # Errors
/// When the tensor cannot be read.
pub fn geometric_median(rows: &Tensor) -> Result<Tensor> {
    let (m, d) = rows.dims2()?;
    let data = rows.flatten_all()?.to_vec1::<f32>()?;
    let mut median = vec![0f64; d];
    for row in data.chunks_exact(d) {
        for (c, v) in median.iter_mut().zip(row) {
            *c += f64::from(*v) / m as f64;
        }
    }
    for _ in 0..100 {
        let weights: Vec<f64> = data
            .par_chunks_exact(d)
            .map(|row| {
                let sq: f64 = row.iter().zip(&median).map(|(v, c)| (f64::from(*v) - c).powi(2)).sum();
                1.0 / sq.sqrt().max(1e-10)
            })
            .collect();
        let total: f64 = weights.iter().sum();
        let mut next = vec![0f64; d];
        for (row, w) in data.chunks_exact(d).zip(&weights) {
            for (c, v) in next.iter_mut().zip(row) {
                *c += w / total * f64::from(*v);
            }
        }
        let moved: f64 = next.iter().zip(&median).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
        let size: f64 = next.iter().map(|v| v * v).sum::<f64>().sqrt();
        median = next;
        if moved <= 1e-6 * size.max(1e-12) {
            break;
        }
    }
    Ok(Tensor::from_vec(median.into_iter().map(|v| v as f32).collect::<Vec<_>>(), d, rows.device())?)
}

/// Tied start: unit atoms, `w_enc = gain * w_dec`, `b_enc = 0`, `b_dec` the geometric median.
///
/// The gain is the least-squares factor between the rows and their top-k reconstruction: with gain 1 the k selected atoms overlap
/// and overshoot, which costs the first part of a run to undo (at d 512, d_sae 8192 the whole of FVU .518 against .576).
pub fn tied_topk(d_sae: usize, k: usize, rows: &Tensor, seed: u64) -> Result<Coder> {
    let (_, d) = rows.dims2()?;
    let w_dec = unit_rows(d_sae, d, seed)?;
    let b_dec = geometric_median(rows)?;
    let b_enc = Tensor::zeros(d_sae, candle_core::DType::F32, rows.device())?;
    let centred = rows.broadcast_sub(&b_dec)?;
    let selection = encode_topk(&centred, &w_dec, &b_enc, k, None)?;
    let xhat = sparse_decode(&selection, &w_dec, None)?;
    let (cross, square) = (inner(&centred, &xhat)?, sum_sq(&xhat)?);
    let gain = if square > 0.0 && cross > 0.0 { cross / square } else { 1.0 };
    Ok(Coder { w_enc: (&w_dec * gain)?, b_enc, w_dec, b_dec })
}

fn inner(a: &Tensor, b: &Tensor) -> Result<f64> {
    let (_, d) = a.dims2()?;
    let (a, b) = (a.flatten_all()?.to_vec1::<f32>()?, b.flatten_all()?.to_vec1::<f32>()?);
    Ok(a.chunks_exact(d).zip(b.chunks_exact(d)).map(|(x, y)| f64::from(crate::kernels::dot(x, y))).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_geometric_median_shrugs_off_an_outlier() {
        let mut data = vec![0f32; 2 * 101];
        for i in 0..100 {
            data[2 * i] = (i % 10) as f32 * 0.01;
            data[2 * i + 1] = 1.0;
        }
        data[200] = 1e6;
        let median = geometric_median(&Tensor::from_vec(data, (101, 2), &Device::Cpu).unwrap()).unwrap().to_vec1::<f32>().unwrap();
        assert!((median[0] - 0.045).abs() < 0.02 && (median[1] - 1.0).abs() < 0.02, "{median:?}");
    }

    #[test]
    fn rows_are_unit_and_prefixes_agree() {
        let (a, b) = (unit_rows(10, 7, 3).unwrap(), unit_rows(20, 7, 3).unwrap());
        assert_eq!(a.to_vec2::<f32>().unwrap(), b.narrow(0, 0, 10).unwrap().to_vec2::<f32>().unwrap());
        for n in b.sqr().unwrap().sum(1).unwrap().to_vec1::<f32>().unwrap() {
            assert!((n - 1.0).abs() < 1e-5);
        }
    }
}
