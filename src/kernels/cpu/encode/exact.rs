//! Scores as they are defined: a float64 sum of products, plus the bias, rounded once to f32.
//!
//! Products of f32 are exact in f64, and the sum runs in fixed lanes, so every machine gets the same bits.

use super::isa::Isa;
#[cfg(target_arch = "x86_64")]
use super::isa::Level;

/// One candidate: a latent for a row, with its score once that is known.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// The latent.
    pub latent: u32,
    /// The row.
    pub row: u32,
    /// Its score; 0 before.
    pub value: f32,
}

const LANES: usize = 32;

/// `<a, b>` in f64.
#[inline(always)]
fn dot<const FUSED: bool, T: Copy + Into<f64>>(a: &[f32], b: &[T]) -> f64 {
    let mut acc = [0f64; LANES];
    let (ca, ra) = a.as_chunks::<LANES>();
    let (cb, rb) = b.as_chunks::<LANES>();
    // Fused or not: the product is exact, so there is one rounding either way.
    let add = |acc: f64, x: f32, y: T| {
        let (x, y) = (f64::from(x), y.into());
        if FUSED {
            x.mul_add(y, acc)
        } else {
            acc + x * y
        }
    };
    for (x, y) in ca.iter().zip(cb) {
        for l in 0..LANES {
            acc[l] = add(acc[l], x[l], y[l]);
        }
    }
    for ((acc, &x), &y) in acc.iter_mut().zip(ra).zip(rb) {
        *acc = add(*acc, x, y);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            acc[l] += acc[l + width];
        }
        width /= 2;
    }
    acc[0]
}

/// Entries of one latent follow each other: its row is widened once for all of them.
#[inline(always)]
fn score_all<const FUSED: bool>(x: &[f32], d: usize, w: &[f32], bias: &[f32], entries: &mut [Entry]) {
    let mut wide: Vec<f64> = Vec::with_capacity(d);
    for run in entries.chunk_by_mut(|a, b| a.latent == b.latent) {
        let j = run[0].latent as usize;
        let w = &w[j * d..(j + 1) * d];
        wide.clear();
        wide.extend(w.iter().map(|&v| f64::from(v)));
        for e in run {
            let q = e.row as usize;
            let sum = dot::<FUSED, f64>(&x[q * d..(q + 1) * d], &wide);
            e.value = (sum + f64::from(bias[j])) as f32;
        }
    }
}

/// [`score_all`] with 512-bit registers: the same lanes, sums and order, so the same bits.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn score_avx512(x: &[f32], d: usize, w: &[f32], bias: &[f32], entries: &mut [Entry]) {
    use std::arch::x86_64::{
        _mm256_add_pd, _mm256_castpd256_pd128, _mm256_extractf128_pd, _mm256_loadu_ps, _mm512_add_pd, _mm512_castpd512_pd256,
        _mm512_cvtps_pd, _mm512_extractf64x4_pd, _mm512_fmadd_pd, _mm512_loadu_pd, _mm512_setzero_pd, _mm_add_pd, _mm_cvtsd_f64,
        _mm_prefetch, _mm_unpackhi_pd, _MM_HINT_T0,
    };
    let padded = d.next_multiple_of(LANES);
    let mut wide = vec![0f64; padded];
    let mut tail = [0f32; LANES];
    let whole = d / LANES * LANES;
    let mut ahead: Vec<u32> = entries.chunk_by(|a, b| a.latent == b.latent).map(|run| run[0].latent).collect();
    ahead.push(0);
    for (run, &next) in entries.chunk_by_mut(|a, b| a.latent == b.latent).zip(&ahead[1..]) {
        let j = run[0].latent as usize;
        for line in w[next as usize * d..][..d].chunks(16) {
            _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast());
        }
        wide.iter_mut().zip(&w[j * d..(j + 1) * d]).for_each(|(wide, &v)| *wide = f64::from(v));
        for e in run {
            let row = &x[e.row as usize * d..(e.row as usize + 1) * d];
            let mut acc = [_mm512_setzero_pd(); 4];
            let mut add = |x: &[f32; LANES], w: &[f64; LANES]| {
                for (l, acc) in acc.iter_mut().enumerate() {
                    // SAFETY: both have LANES = 4 x 8 elements.
                    let (x, w) = unsafe { (_mm256_loadu_ps(x.as_ptr().add(8 * l)), _mm512_loadu_pd(w.as_ptr().add(8 * l))) };
                    *acc = _mm512_fmadd_pd(_mm512_cvtps_pd(x), w, *acc);
                }
            };
            let (parts, _) = wide.as_chunks::<LANES>();
            for (x, w) in row.as_chunks::<LANES>().0.iter().zip(parts) {
                add(x, w);
            }
            if whole < d {
                // Zeros add nothing: 0 + 0 is 0, and a sum is never -0 here.
                tail[..d - whole].copy_from_slice(&row[whole..]);
                add(&tail, &parts[whole / LANES]);
            }
            let sum = _mm512_add_pd(_mm512_add_pd(acc[0], acc[2]), _mm512_add_pd(acc[1], acc[3]));
            let sum = _mm256_add_pd(_mm512_castpd512_pd256(sum), _mm512_extractf64x4_pd::<1>(sum));
            let sum = _mm_add_pd(_mm256_castpd256_pd128(sum), _mm256_extractf128_pd::<1>(sum));
            let sum = _mm_cvtsd_f64(_mm_add_pd(sum, _mm_unpackhi_pd(sum, sum)));
            e.value = (sum + f64::from(bias[j])) as f32;
        }
    }
}

/// Fills in the scores of `entries`: rows `x` `[_, d]`, latents `w` `[d_sae, d]`. In order of latents they read `w` once.
pub fn score(isa: Isa, x: &[f32], d: usize, w: &[f32], bias: &[f32], entries: &mut [Entry]) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        fn avx2(x: &[f32], d: usize, w: &[f32], bias: &[f32], entries: &mut [Entry]) {
            score_all::<true>(x, d, w, bias, entries);
        }
        // SAFETY: `isa` was detected on this machine.
        match isa.level {
            Level::Avx512 => return unsafe { score_avx512(x, d, w, bias, entries) },
            Level::Avx2 => return unsafe { avx2(x, d, w, bias, entries) },
            Level::Portable => {}
        }
    }
    let _ = isa;
    score_all::<false>(x, d, w, bias, entries);
}

#[inline(always)]
fn norm_of<const FUSED: bool>(a: &[f32]) -> f64 {
    dot::<FUSED, f32>(a, a).sqrt()
}

/// Norms of rows of `m` `[_, d]`, each rounded up; infinite or NaN where a row is.
pub fn norms(isa: Isa, m: &[f32], d: usize, out: &mut Vec<f32>) {
    out.clear();
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f")]
        fn avx512(m: &[f32], d: usize, out: &mut Vec<f32>) {
            out.extend(m.chunks_exact(d).map(|row| above(norm_of::<true>(row))));
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2(m: &[f32], d: usize, out: &mut Vec<f32>) {
            out.extend(m.chunks_exact(d).map(|row| above(norm_of::<true>(row))));
        }
        // SAFETY: `isa` was detected on this machine.
        match isa.level {
            Level::Avx512 => return unsafe { avx512(m, d, out) },
            Level::Avx2 => return unsafe { avx2(m, d, out) },
            Level::Portable => {}
        }
    }
    let _ = isa;
    out.extend(m.chunks_exact(d).map(|row| above(norm_of::<false>(row))));
}

/// A float above `v`, by more than a sum of any length here can be off; 0 stays 0.
pub fn above(v: f64) -> f32 {
    if v == 0.0 {
        0.0
    } else {
        (v as f32).next_up()
    }
}
