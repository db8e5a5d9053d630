//! What an atom says to the output: its weight on each token through the final norm and the unembedding.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::hook::HookPoint;
use crate::host::HostModel;

/// Bins of the histogram.
const BINS: usize = 40;
/// Bytes of logits that are held at once.
const BYTES: usize = 64 << 20;

/// One atom's extremes and spread.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Logits {
    /// Token and weight, highest first.
    pub top: Vec<(u32, f32)>,
    /// Token and weight, lowest first.
    pub bottom: Vec<(u32, f32)>,
    pub histogram: Vec<u32>,
    pub range: Option<(f32, f32)>,
}

/// For each atom of `w_dec` `[d_sae, d]`; `None` where what is read at `at` is not added to the residual stream.
pub(super) fn logits(host: &dyn HostModel, at: &HookPoint, w_dec: &Tensor, n: usize) -> Result<Option<Vec<Logits>>> {
    let (d_sae, _) = w_dec.dims2()?;
    let block = (BYTES / 4 / host.info().vocab_size.max(1)).clamp(1, d_sae.max(1));
    let mut all = Vec::with_capacity(d_sae);
    for first in (0..d_sae).step_by(block) {
        let atoms = w_dec.narrow(0, first, block.min(d_sae - first))?.contiguous()?;
        let Some(weights) = host.logit_weights(at, &atoms)? else { return Ok(None) };
        let vocab = weights.dim(1)?;
        let values: Vec<f32> = weights.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        all.par_extend(values.par_chunks(vocab).map(|row| summary(row, n)));
        if let Some(bad) = values.iter().position(|v| !v.is_finite()) {
            return Err(Error::NotFinite {
                what: "the logit weights".into(),
                count: values.iter().filter(|v| !v.is_finite()).count(),
                place: format!("latent {}", first + bad / vocab),
                help: "check the dictionary with `lapidary inspect`, and run the host in f32".into(),
            });
        }
    }
    Ok(Some(all))
}

fn summary(row: &[f32], n: usize) -> Logits {
    let n = n.min(row.len());
    let extremes = |sign: f32| -> Vec<(u32, f32)> {
        let mut order: Vec<u32> = (0..row.len() as u32).collect();
        let first = |a: &u32, b: &u32| (sign * row[*b as usize]).total_cmp(&(sign * row[*a as usize])).then(a.cmp(b));
        if n == 0 {
            return Vec::new();
        }
        order.select_nth_unstable_by(n - 1, first);
        order.truncate(n);
        order.sort_unstable_by(first);
        order.into_iter().map(|t| (t, row[t as usize])).collect()
    };
    let (low, high) = row.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &v| (low.min(v), high.max(v)));
    let mut histogram = vec![0; BINS];
    let scale = if high > low { BINS as f64 / (f64::from(high) - f64::from(low)) } else { 0.0 };
    for &v in row {
        let bin = ((f64::from(v) - f64::from(low)) * scale) as usize;
        histogram[bin.min(BINS - 1)] += 1;
    }
    Logits { top: extremes(1.0), bottom: extremes(-1.0), histogram, range: Some((low, high)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extremes_break_ties_by_token_and_the_histogram_holds_all() {
        let row = [0.5, -2.0, 3.0, 3.0, 0.0, -2.0, 1.0];
        let got = summary(&row, 2);
        assert_eq!(got.top, [(2, 3.0), (3, 3.0)]);
        assert_eq!(got.bottom, [(1, -2.0), (5, -2.0)]);
        assert_eq!(got.range, Some((-2.0, 3.0)));
        assert_eq!((got.histogram.iter().sum::<u32>(), got.histogram[0], got.histogram[BINS - 1]), (7, 2, 2));
        assert_eq!(summary(&[1.0; 5], 9).top.len(), 5, "more asked for than there are");
        assert_eq!(summary(&[1.0; 5], 1).histogram[0], 5);
    }
}
