//! Geometry of the weights: how close atoms come to each other, and encoders to their atoms. No row is needed.

use candle_core::Tensor;
use rayon::prelude::*;

use super::{Definition, Kind, LatentStats, Metric};
use crate::dictionary::Dictionary;
use crate::error::Result;

/// Coherence of the decoder, agreement of encoder and decoder.
pub const KIND: Kind = Kind {
    definitions: &[
        Definition {
            id: "decoder_coherence",
            unit: "cosine",
            formula: "mean over atoms of max |cos| to another atom",
            whose: "SAEBench (average max decoder cosine, there without the absolute value)",
        },
        Definition {
            id: "decoder_coherence_max",
            unit: "cosine",
            formula: "max |cos| of two different atoms",
            whose: "mutual coherence of a frame",
        },
        Definition {
            id: "enc_dec_cosine",
            unit: "cosine",
            formula: "mean over latents of cos(w_enc row, w_dec row)",
            whose: "SAELens, SAEBench",
        },
    ],
    new: || Box::new(Decoder),
};

struct Decoder;

impl Metric for Decoder {
    fn values(&self, latents: &LatentStats) -> Vec<f64> {
        let n = latents.len() as f64;
        let sum: f64 = latents.max_cos.iter().map(|&c| f64::from(c)).sum();
        let max = latents.max_cos.iter().copied().fold(0.0, f32::max);
        vec![sum / n, f64::from(max), latents.enc_dec_cos.iter().sum::<f64>() / n]
    }
}

/// Atoms of a block; one product of two blocks is all that is ever stored of the `[d_sae, d_sae]` cosines.
const BLOCK: usize = 256;

/// Largest |cosine| of each row of `w` `[n, d]` to another row, `[n]`; 0 for a row of zero norm and for a lone row.
///
/// # Errors
/// When the tensor cannot be read.
pub fn max_cosines(w: &Tensor) -> Result<Vec<f32>> {
    let (n, d) = w.dims2()?;
    let mut unit: Vec<f32> = w.flatten_all()?.to_vec1()?;
    unit.par_chunks_mut(d).for_each(|row| {
        let norm = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        let scale = if norm > 0.0 { 1.0 / norm } else { 0.0 };
        row.iter_mut().for_each(|v| *v = (f64::from(*v) * scale) as f32);
    });
    let blocks = n.div_ceil(BLOCK);
    // A maximum does not care in which order it is taken, so folding as rayon splits is safe.
    let longest = |mut a: Vec<f32>, b: Vec<f32>| {
        a.iter_mut().zip(b).for_each(|(a, b)| *a = a.max(b));
        a
    };
    Ok((0..blocks)
        .into_par_iter()
        .fold(
            || (vec![0f32; n], vec![0f32; BLOCK * BLOCK]),
            |(mut best, mut tile), i| {
                let rows = i * BLOCK..(i * BLOCK + BLOCK).min(n);
                for j in i..blocks {
                    let columns = j * BLOCK..(j * BLOCK + BLOCK).min(n);
                    products(&unit[rows.start * d..rows.end * d], &unit[columns.start * d..columns.end * d], d, &mut tile);
                    for (p, line) in rows.clone().zip(tile.chunks(columns.len())) {
                        for (q, cos) in columns.clone().zip(line) {
                            if p != q {
                                best[p] = best[p].max(cos.abs());
                                best[q] = best[q].max(cos.abs());
                            }
                        }
                    }
                }
                (best, tile)
            },
        )
        .map(|(best, _)| best)
        .reduce(|| vec![0f32; n], longest)
        .into_iter()
        .map(|c| c.min(1.0))
        .collect())
}

/// `a b^T` of row-major `[m, d]` and `[n, d]` into `out`, row-major `[m, n]`.
pub(super) fn products(a: &[f32], b: &[f32], d: usize, out: &mut [f32]) {
    let (m, n) = (a.len() / d, b.len() / d);
    assert!(out.len() >= m * n, "the caller's tile holds every product");
    // SAFETY: dst covers m x n with strides (n, 1) inside `out` (asserted); lhs covers the [m, d] rows of `a`; rhs covers the [n, d]
    // rows of `b`, read transposed. dst is not read.
    unsafe {
        gemm::gemm(
            m,
            n,
            d,
            out.as_mut_ptr(),
            1,
            n as isize,
            false,
            a.as_ptr(),
            1,
            d as isize,
            b.as_ptr(),
            d as isize,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// Cosine of each encoder row with its atom, `[d_sae]`; 0 where a norm is 0, NaN where the widths differ.
///
/// # Errors
/// When the tensors cannot be read.
pub fn encoder_cosines(dictionary: &Dictionary) -> Result<Vec<f64>> {
    let d = dictionary.d_in();
    if d != dictionary.d_out() {
        return Ok(vec![f64::NAN; dictionary.d_sae()]);
    }
    let enc: Vec<f32> = dictionary.coder.w_enc.flatten_all()?.to_vec1()?;
    let dec: Vec<f32> = dictionary.coder.w_dec.flatten_all()?.to_vec1()?;
    Ok(enc
        .par_chunks(d)
        .zip(dec.par_chunks(d))
        .map(|(e, w)| {
            let (mut dot, mut ee, mut ww) = (0f64, 0f64, 0f64);
            for (&e, &w) in e.iter().zip(w) {
                let (e, w) = (f64::from(e), f64::from(w));
                dot += e * w;
                ee += e * e;
                ww += w * w;
            }
            let norms = (ee * ww).sqrt();
            if norms > 0.0 {
                dot / norms
            } else {
                0.0
            }
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use candle_core::Device;

    #[test]
    fn blockwise_cosines_equal_the_obvious_ones() {
        // More atoms than a block and not a multiple of it; atom 5 is a negated copy of atom 400, atom 7 is zero.
        let (n, d) = (601, 7);
        let mut rng = Rng::stream(2, "test", 0);
        let mut w: Vec<f32> = (0..n * d).map(|_| rng.normal() as f32).collect();
        for c in 0..d {
            w[5 * d + c] = -3.0 * w[400 * d + c];
            w[7 * d + c] = 0.0;
        }
        let got = max_cosines(&Tensor::from_vec(w.clone(), (n, d), &Device::Cpu).unwrap()).unwrap();
        let row = |i: usize| &w[i * d..(i + 1) * d];
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        for (i, &got) in got.iter().enumerate() {
            let mut want = 0f64;
            for j in (0..n).filter(|&j| j != i) {
                let norms = (dot(row(i), row(i)) * dot(row(j), row(j))).sqrt();
                want = want.max(if norms > 0.0 { dot(row(i), row(j)).abs() / norms } else { 0.0 });
            }
            assert!((f64::from(got) - want).abs() < 1e-5, "{i}: {got} {want}");
        }
        assert!(got[5] > 0.99999 && got[400] > 0.99999 && got[7] == 0.0);
    }

    #[test]
    fn a_lone_atom_has_no_neighbour() {
        assert_eq!(max_cosines(&Tensor::ones((1, 4), candle_core::DType::F32, &Device::Cpu).unwrap()).unwrap(), [0.0]);
    }
}
