//! Which rows of a block a latent may matter to: those where the screen's value plus its bound reaches the row's threshold.

use super::isa::{Isa, Level};
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
}

impl Default for RowTerms {
    fn default() -> Self {
        let zero = [0.0; BLOCK];
        Self { slope: zero, second: zero, floor: zero, threshold: [f32::INFINITY; BLOCK] }
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

impl LatentTerms {
    /// Bounds of the score on row `q`, times the rank.
    #[inline(always)]
    pub fn bounds(&self, rows: &RowTerms, pre: f32, q: usize) -> (f32, f32) {
        let v = pre + self.bias;
        let e = rows.slope[q] * self.a + rows.second[q] * self.t + rows.floor[q] + super::bound::of_bias(self.bias);
        let (low, high) = ((v - e) * self.rank, (v + e) * self.rank);
        if self.rank == 1.0 {
            return (low, high);
        }
        // The product with the rank is rounded too.
        (low - low.abs() * 1e-6, high + high.abs() * 1e-6)
    }
}

#[inline(always)]
fn sweep(rows: &RowTerms, latent: &LatentTerms, pre: &[f32; BLOCK]) -> u64 {
    let (slack, own) = (super::bound::of_bias(latent.bias), latent.threshold);
    let rank_up = if latent.rank == 1.0 { 1.0 } else { latent.rank * (1.0 + 2e-6) };
    // First whether any row passes at all, without a branch: most latents matter to none.
    let mut any = false;
    let bias = latent.bias + slack;
    let passes = |q: usize, pre: f32| {
        let e = rows.slope[q] * latent.a + rows.second[q] * latent.t + rows.floor[q];
        (pre + bias + e) * rank_up >= own.unwrap_or(rows.threshold[q])
    };
    for (q, &pre) in pre.iter().enumerate() {
        any |= passes(q, pre);
    }
    if !any {
        return 0;
    }
    pre.iter().enumerate().fold(0, |mask, (q, &pre)| mask | u64::from(passes(q, pre)) << q)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[inline]
fn sweep_avx512(rows: &RowTerms, latent: &LatentTerms, pre: &[f32; BLOCK]) -> u64 {
    use std::arch::x86_64::{
        _mm512_add_ps, _mm512_cmp_ps_mask, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mul_ps, _mm512_set1_ps, _CMP_GE_OQ,
    };
    let rank_up = if latent.rank == 1.0 { 1.0 } else { latent.rank * (1.0 + 2e-6) };
    let bias = _mm512_set1_ps(latent.bias + super::bound::of_bias(latent.bias));
    let (a, t, rank) = (_mm512_set1_ps(latent.a), _mm512_set1_ps(latent.t), _mm512_set1_ps(rank_up));
    let mut mask = 0;
    for l in 0..BLOCK / 16 {
        // SAFETY: all arrays have BLOCK elements, and 16 l + 16 <= BLOCK.
        let load = |of: &[f32; BLOCK]| unsafe { _mm512_loadu_ps(of.as_ptr().add(16 * l)) };
        let e = _mm512_fmadd_ps(load(&rows.second), t, _mm512_fmadd_ps(load(&rows.slope), a, load(&rows.floor)));
        let high = _mm512_mul_ps(_mm512_add_ps(_mm512_add_ps(load(pre), bias), e), rank);
        let threshold = latent.threshold.map_or_else(|| load(&rows.threshold), |t| _mm512_set1_ps(t));
        mask |= u64::from(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(high, threshold)) << (16 * l);
    }
    mask
}

/// A bit for each row that passes. NaN never does.
#[inline]
pub fn pass(isa: Isa, rows: &RowTerms, latent: &LatentTerms, pre: &[f32; BLOCK]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        fn avx2(rows: &RowTerms, latent: &LatentTerms, pre: &[f32; BLOCK]) -> u64 {
            sweep(rows, latent, pre)
        }
        // SAFETY: `isa` was detected on this machine.
        match isa.level {
            Level::Avx512 => return unsafe { sweep_avx512(rows, latent, pre) },
            Level::Avx2 => return unsafe { avx2(rows, latent, pre) },
            Level::Portable => {}
        }
    }
    let _ = isa;
    sweep(rows, latent, pre)
}
