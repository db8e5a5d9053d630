//! The largest pre-activations of a whole batch, through [`encode_threshold`](crate::kernels::encode_threshold): a guess below the cut
//! keeps few candidates, an exact selection does the rest, and a guess that was too high costs another pass, never another result.

use candle_core::Tensor;

use crate::codes::Codes;
use crate::error::Result;
use crate::kernels::{encode_threshold, pre_activations};

/// Rows whose dense pre-activations give the first guess.
const SAMPLE_ROWS: usize = 32;

/// See [`crate::kernels::encode_batch_topk`].
pub fn encode_batch_topk(x: &Tensor, w_enc: &Tensor, b_enc: &Tensor, total: usize, guess: Option<f32>) -> Result<(Codes, f32)> {
    let n = x.dim(0)?;
    let mut t = match guess {
        Some(guess) => guess.max(0.0),
        None => {
            let rows = n.min(SAMPLE_ROWS);
            let mut values: Vec<f32> = pre_activations(&x.narrow(0, 0, rows)?, w_enc, b_enc)?.flatten_all()?.to_vec1()?;
            values.retain(|v| *v > 0.0);
            0.8 * nth_largest(&mut values, (total * rows).div_ceil(n.max(1)).max(1)).unwrap_or(0.0)
        }
    };
    let d_sae = b_enc.dims1()?;
    let codes = loop {
        let codes = encode_threshold(x, w_enc, b_enc, &Tensor::full(t, d_sae, x.device())?)?;
        if codes.values.len() >= total || t == 0.0 {
            break codes;
        }
        t = if t < 1e-6 { 0.0 } else { t * 0.5 };
    };
    if codes.values.len() <= total {
        let smallest = codes.values.iter().copied().fold(f32::INFINITY, f32::min);
        return Ok((codes, smallest));
    }
    // Larger value first, then the earlier row, then the lower latent: within equal values that is the order of the entries.
    let key = |(entry, v): (usize, &f32)| u64::from(v.to_bits()) << 32 | u64::from(!(entry as u32));
    let mut keys: Vec<u64> = codes.values.iter().enumerate().map(key).collect();
    let (_, &mut cut, _) = keys.select_nth_unstable_by(total - 1, |a, b| b.cmp(a));
    let mut kept = Codes::new(d_sae);
    for r in 0..n {
        let first = codes.indptr[r];
        let (indices, values) = codes.row(r);
        let row = indices.iter().zip(values).enumerate().filter(|(i, (_, v))| key((first + i, v)) >= cut);
        kept.push_row(row.map(|(_, (&j, &v))| (j, v)));
    }
    Ok((kept, f32::from_bits((cut >> 32) as u32)))
}

/// The `n`-th largest of some values, from 1; none if there are fewer.
pub fn nth_largest(values: &mut [f32], n: usize) -> Option<f32> {
    if n == 0 || n > values.len() {
        return None;
    }
    Some(*values.select_nth_unstable_by(n - 1, |a, b| b.total_cmp(a)).1)
}
