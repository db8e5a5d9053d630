//! Scores as they are defined: a float64 sum of products, plus the bias, rounded once to f32.
//!
//! Products of f32 are exact in f64, and the sum runs in fixed lanes, so every machine gets the same bits.

use super::isa::Isa;

/// One candidate: a latent for a row of the block, with its score once that is known.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// The latent.
    pub latent: u32,
    /// Row of the block.
    pub row: u32,
    /// Its score; 0 before.
    pub value: f32,
}

const LANES: usize = 32;

/// `<a, b>` in f64.
#[inline(always)]
fn dot<const FUSED: bool>(a: &[f32], b: &[f32]) -> f64 {
    let mut acc = [0f64; LANES];
    let (ca, ra) = a.as_chunks::<LANES>();
    let (cb, rb) = b.as_chunks::<LANES>();
    // Fused or not: the product is exact, so there is one rounding either way.
    let add = |acc: f64, x: f32, y: f32| {
        let (x, y) = (f64::from(x), f64::from(y));
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

#[inline(always)]
fn score_all<const FUSED: bool>(x: &[f32], d: usize, w: &[f32], bias: &[f32], entries: &mut [Entry]) {
    for e in entries {
        let (j, q) = (e.latent as usize, e.row as usize);
        let sum = dot::<FUSED>(&x[q * d..(q + 1) * d], &w[j * d..(j + 1) * d]);
        e.value = (sum + f64::from(bias[j])) as f32;
    }
}

/// Fills in the scores of `entries`: rows `x` `[_, d]`, latents `w` `[d_sae, d]`. In order of latents they read `w` once.
pub fn score(isa: Isa, x: &[f32], d: usize, w: &[f32], bias: &[f32], entries: &mut [Entry]) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f")]
        fn avx512(x: &[f32], d: usize, w: &[f32], bias: &[f32], entries: &mut [Entry]) {
            score_all::<true>(x, d, w, bias, entries);
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2(x: &[f32], d: usize, w: &[f32], bias: &[f32], entries: &mut [Entry]) {
            score_all::<true>(x, d, w, bias, entries);
        }
        // SAFETY: `isa` was detected on this machine.
        match isa {
            Isa::Avx512 | Isa::Avx512Bf16 => return unsafe { avx512(x, d, w, bias, entries) },
            Isa::Avx2 => return unsafe { avx2(x, d, w, bias, entries) },
            Isa::Portable => {}
        }
    }
    let _ = isa;
    score_all::<false>(x, d, w, bias, entries);
}

#[inline(always)]
fn norm_of<const FUSED: bool>(a: &[f32]) -> f64 {
    dot::<FUSED>(a, a).sqrt()
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
        match isa {
            Isa::Avx512 | Isa::Avx512Bf16 => return unsafe { avx512(m, d, out) },
            Isa::Avx2 => return unsafe { avx2(m, d, out) },
            Isa::Portable => {}
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
