//! What the fused encode is compared with: the dense product, then a selection per row. Values are those of the f32 product, so that
//! near-ties may fall otherwise than by the exact definition.

use candle_core::{Storage, Tensor, D};
use rayon::prelude::*;

use crate::codes::PAD;
use crate::error::{Error, Result};
use crate::kernels::Selection;

/// Dense product (candle's, by the `gemm` crate), then bias, ReLU and quickselect of each row, rows in parallel: a good way without a
/// fused kernel. Shapes and order as in [`crate::kernels::encode_topk`].
///
/// # Errors
/// Mismatched widths, tensors that are not on the CPU.
pub fn dense_topk(x: &Tensor, w_enc: &Tensor, b_enc: &Tensor, k: usize) -> Result<Selection> {
    let (n, m) = (x.dim(0)?, w_enc.dim(0)?);
    let k = k.clamp(1, m);
    let products = x.matmul(&w_enc.t()?)?.contiguous()?;
    let bias: Vec<f32> = b_enc.to_vec1()?;
    let (mut indices, mut values) = (vec![PAD; n * k], vec![0f32; n * k]);
    let (storage, layout) = products.storage_and_layout();
    let Storage::Cpu(cpu) = &*storage else { return Err(Error::request("the baseline runs on the CPU", "pass CPU tensors")) };
    let products = &cpu.as_slice::<f32>()?[layout.start_offset()..];
    let rows = (products.par_chunks_exact(m), indices.par_chunks_mut(k), values.par_chunks_mut(k));
    rows.into_par_iter().for_each_init(Vec::new, |keys: &mut Vec<u64>, (row, indices, values)| {
        keys.clear();
        // Positive f32 sort as their bits; the complement of the index puts the lowest first among equals.
        let positive = (0u32..).zip(row.iter().zip(&bias)).map(|(j, (p, b))| (j, p + b)).filter(|e| e.1 > 0.0);
        keys.extend(positive.map(|(j, v)| u64::from(v.to_bits()) << 32 | u64::from(!j)));
        if keys.len() > k {
            keys.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
            keys.truncate(k);
        }
        keys.sort_unstable_by(|a, b| b.cmp(a));
        for ((key, j), v) in keys.iter().zip(indices).zip(values) {
            (*j, *v) = (!(*key as u32), f32::from_bits((key >> 32) as u32));
        }
    });
    Ok(Selection { indices: Tensor::from_vec(indices, (n, k), x.device())?, values: Tensor::from_vec(values, (n, k), x.device())? })
}

/// The same with candle's operations alone: dense product, ReLU, `arg_sort`, the first k. Rows with fewer than k positives are not padded.
///
/// # Errors
/// Mismatched widths.
pub fn sorted_topk(x: &Tensor, w_enc: &Tensor, b_enc: &Tensor, k: usize) -> Result<Selection> {
    let pre = x.matmul(&w_enc.t()?)?.broadcast_add(b_enc)?.relu()?;
    let indices = pre.arg_sort_last_dim(false)?.narrow(D::Minus1, 0, k)?.contiguous()?;
    let values = pre.gather(&indices, D::Minus1)?;
    Ok(Selection { indices, values })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::encode_topk;
    use crate::rng::Rng;
    use candle_core::Device;

    #[test]
    fn the_baselines_select_what_the_kernel_selects() {
        let mut rng = Rng::stream(3, "test", 0);
        // Small whole numbers: f32 sums are exact, and there are ties.
        let mut whole = |shape: (usize, usize)| {
            let data: Vec<f32> = (0..shape.0 * shape.1).map(|_| rng.below(7) as f32 - 3.0).collect();
            Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
        };
        let (x, w) = (whole((70, 12)), whole((90, 12)));
        let b = whole((1, 90)).flatten_all().unwrap();
        let want = encode_topk(&x, &w, &b, 5, None).unwrap();
        let dense = dense_topk(&x, &w, &b, 5).unwrap();
        let lists = |s: &Selection| (s.indices.to_vec2::<u32>().unwrap(), s.values.to_vec2::<f32>().unwrap());
        assert_eq!(lists(&dense), lists(&want));
        assert_eq!(lists(&sorted_topk(&x, &w, &b, 5).unwrap()).1, lists(&want).1);
    }
}
