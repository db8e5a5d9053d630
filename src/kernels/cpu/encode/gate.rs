//! Which rows of a block a latent may matter to: those where the screen's value plus its bound reaches the row's threshold.

use super::isa::Isa;
#[cfg(target_arch = "x86_64")]
use super::isa::Level;
use super::panels::BLOCK;

/// What the gate knows of the rows of a block; unused places have an infinite threshold.
#[derive(Debug)]
pub struct RowTerms {
    /// See [`super::bound::RowBound`].
    pub slope: [f32; BLOCK],
    /// See there.
    pub second: [f32; BLOCK],
    /// See there.
    pub floor: [f32; BLOCK],
    /// An upper bound below this cannot be selected.
    pub threshold: [f32; BLOCK],
    /// A bit for each place in use.
    pub live: u64,
}

impl Default for RowTerms {
    fn default() -> Self {
        let zero = [0.0; BLOCK];
        Self { slope: zero, second: zero, floor: zero, threshold: [f32::INFINITY; BLOCK], live: 0 }
    }
}

/// What it knows of the latent.
#[derive(Debug, Clone, Copy)]
pub struct LatentTerms {
    /// Added to the screen's value.
    pub bias: f32,
    /// See [`super::bound::LatentBounds`].
    pub a: f32,
    /// See there.
    pub t: f32,
    /// Multiplies the score when rows rank latents; 1 otherwise.
    pub rank: f32,
    /// Replaces the rows' thresholds where a latent has its own.
    pub threshold: Option<f32>,
}

/// Bounds of the scores of a latent, times its rank.
struct Bounds {
    low: [f32; BLOCK],
    high: [f32; BLOCK],
}

impl Default for Bounds {
    fn default() -> Self {
        Self { low: [0.0; BLOCK], high: [0.0; BLOCK] }
    }
}

/// How much a bound gives way for the rounding of its product with the rank.
fn slack_of_rank(rank: f32) -> f32 {
    if rank == 1.0 {
        0.0
    } else {
        1e-6
    }
}

/// A bit for each row that passes, and bounds for all of them.
#[inline(always)]
fn sweep(rows: &RowTerms, latent: &LatentTerms, pre: &[f32; BLOCK], bounds: &mut Bounds) -> u64 {
    let (slack, own, extra) = (super::bound::of_bias(latent.bias), latent.threshold, slack_of_rank(latent.rank));
    let mut any = false;
    for (q, &pre) in pre.iter().enumerate() {
        let e = rows.slope[q] * latent.a + rows.second[q] * latent.t + (rows.floor[q] + slack);
        let v = pre + latent.bias;
        let (low, high) = ((v - e) * latent.rank, (v + e) * latent.rank);
        bounds.low[q] = low - low.abs() * extra;
        bounds.high[q] = high + high.abs() * extra;
        any |= bounds.high[q] >= own.unwrap_or(rows.threshold[q]);
    }
    // Most latents matter to no row.
    if !any {
        return 0;
    }
    bounds.high.iter().enumerate().fold(0, |mask, (q, &high)| mask | u64::from(high >= own.unwrap_or(rows.threshold[q])) << q)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
fn sweep_avx512(rows: &RowTerms, latent: &LatentTerms, pre: &[f32; BLOCK], bounds: &mut Bounds) -> u64 {
    use std::arch::x86_64::{
        _mm512_abs_ps, _mm512_add_ps, _mm512_cmp_ps_mask, _mm512_fmadd_ps, _mm512_fnmadd_ps, _mm512_loadu_ps, _mm512_mul_ps,
        _mm512_set1_ps, _mm512_storeu_ps, _mm512_sub_ps, _CMP_GE_OQ,
    };
    let (bias, slack) = (_mm512_set1_ps(latent.bias), _mm512_set1_ps(super::bound::of_bias(latent.bias)));
    let (a, t) = (_mm512_set1_ps(latent.a), _mm512_set1_ps(latent.t));
    let mut mask = 0;
    for l in 0..BLOCK / 16 {
        // SAFETY: all arrays have BLOCK elements, and 16 l + 16 <= BLOCK.
        let load = |of: &[f32; BLOCK]| unsafe { _mm512_loadu_ps(of.as_ptr().add(16 * l)) };
        let e = _mm512_fmadd_ps(load(&rows.slope), a, _mm512_add_ps(load(&rows.floor), slack));
        let e = _mm512_fmadd_ps(load(&rows.second), t, e);
        let v = _mm512_add_ps(load(pre), bias);
        let (mut low, mut high) = (_mm512_sub_ps(v, e), _mm512_add_ps(v, e));
        if latent.rank != 1.0 {
            let (rank, extra) = (_mm512_set1_ps(latent.rank), _mm512_set1_ps(slack_of_rank(latent.rank)));
            (low, high) = (_mm512_mul_ps(low, rank), _mm512_mul_ps(high, rank));
            low = _mm512_fnmadd_ps(_mm512_abs_ps(low), extra, low);
            high = _mm512_fmadd_ps(_mm512_abs_ps(high), extra, high);
        }
        let threshold = latent.threshold.map_or_else(|| load(&rows.threshold), |t| _mm512_set1_ps(t));
        mask |= u64::from(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(high, threshold)) << (16 * l);
        // SAFETY: as above.
        unsafe {
            _mm512_storeu_ps(bounds.low.as_mut_ptr().add(16 * l), low);
            _mm512_storeu_ps(bounds.high.as_mut_ptr().add(16 * l), high);
        }
    }
    mask
}

/// Shows `keep(line, row, low, high)` what passes of some latents' products, in order; NaN never does. `keep` may raise the row's threshold.
#[inline]
pub fn offer(
    isa: Isa,
    rows: &mut RowTerms,
    lines: &[[f32; BLOCK]],
    latent: impl Fn(usize) -> LatentTerms,
    keep: &mut impl FnMut(usize, usize, f32, f32) -> Option<f32>,
) {
    #[inline(always)]
    fn each(
        rows: &mut RowTerms,
        lines: &[[f32; BLOCK]],
        latent: impl Fn(usize) -> LatentTerms,
        keep: &mut impl FnMut(usize, usize, f32, f32) -> Option<f32>,
        sweep: impl Fn(&RowTerms, &LatentTerms, &[f32; BLOCK], &mut Bounds) -> u64,
    ) {
        let mut bounds = Bounds::default();
        for (i, pre) in lines.iter().enumerate() {
            let mut mask = sweep(rows, &latent(i), pre, &mut bounds) & rows.live;
            while mask != 0 {
                let q = mask.trailing_zeros() as usize;
                mask &= mask - 1;
                if let Some(threshold) = keep(i, q, bounds.low[q], bounds.high[q]) {
                    rows.threshold[q] = threshold;
                }
            }
        }
    }
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f")]
        fn avx512(
            rows: &mut RowTerms,
            lines: &[[f32; BLOCK]],
            latent: impl Fn(usize) -> LatentTerms,
            keep: &mut impl FnMut(usize, usize, f32, f32) -> Option<f32>,
        ) {
            each(rows, lines, latent, keep, |rows, latent, pre, bounds| sweep_avx512(rows, latent, pre, bounds));
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2(
            rows: &mut RowTerms,
            lines: &[[f32; BLOCK]],
            latent: impl Fn(usize) -> LatentTerms,
            keep: &mut impl FnMut(usize, usize, f32, f32) -> Option<f32>,
        ) {
            each(rows, lines, latent, keep, sweep);
        }
        // SAFETY: `isa` was detected on this machine.
        match isa.level {
            Level::Avx512 => return unsafe { avx512(rows, lines, latent, keep) },
            Level::Avx2 => return unsafe { avx2(rows, lines, latent, keep) },
            Level::Portable => {}
        }
    }
    let _ = isa;
    each(rows, lines, latent, keep, sweep);
}
