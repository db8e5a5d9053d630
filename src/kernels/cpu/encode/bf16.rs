//! The bf16 screen: operands rounded to bf16, `vdpbf16ps` for products, twice the rate of f32 where a core has it.
//!
//! Pairs of coordinates are one u32. Rows are `[pairs][BLOCK]`, latents `[groups][pairs][6]`, so that both are read in order.

use super::bound::{LatentBounds, RowBound};
use super::exact::{above, norms};
use super::isa::Isa;
#[cfg(target_arch = "x86_64")]
use super::isa::Level;
use super::panels::BLOCK;

/// Latents that are worked on together: 6 x 4 registers of sums.
pub const GROUP: usize = 6;

/// A block of rows, rounded.
#[derive(Debug, Default)]
pub struct Rows {
    /// `[pairs][BLOCK]`.
    pub pairs: Vec<u32>,
    /// Bounds of its rows.
    pub bounds: Vec<RowBound>,
}

/// A panel of latents, rounded.
#[derive(Debug, Default)]
pub struct Panel {
    /// `[groups][pairs][GROUP]`; the last group is filled up with zeros.
    pub pairs: Vec<u32>,
    /// Bounds of its latents.
    pub bounds: LatentBounds,
}

/// The nearest bf16, ties to even, as the upper half of an f32's bits. NaN may become anything: its row is scored whole.
#[inline(always)]
fn round(v: f32) -> u32 {
    let bits = v.to_bits();
    let half = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    // The instruction takes denormals for 0: so do the norms.
    if half & 0x7f80 == 0 {
        0
    } else {
        half
    }
}

#[inline(always)]
fn widen(half: u32) -> f32 {
    f32::from_bits(half << 16)
}

const LANES: usize = 16;

/// Rounds a row; squared norms of the rounded row and of what rounding took (exact differences, f64 sums).
#[inline(always)]
fn round_row(row: &[f32], halves: &mut [u32]) -> (f64, f64) {
    let (mut kept, mut lost) = ([0f64; LANES], [0f64; LANES]);
    let mut one = |l: usize, v: f32, half: &mut u32| {
        *half = round(v);
        let q = widen(*half);
        let (q64, rest) = (f64::from(q), f64::from(v - q));
        kept[l] += q64 * q64;
        lost[l] += rest * rest;
    };
    let (whole, tail) = row.as_chunks::<LANES>();
    let (out, out_tail) = halves.as_chunks_mut::<LANES>();
    for (v, half) in whole.iter().zip(out.iter_mut()) {
        for l in 0..LANES {
            one(l, v[l], &mut half[l]);
        }
    }
    for (l, (&v, half)) in tail.iter().zip(out_tail).enumerate() {
        one(l, v, half);
    }
    (kept.iter().sum(), lost.iter().sum())
}

/// Norms of the rounded row and of the rest, rounded up; `put(pair, bits)` gets the pairs.
fn rounded(isa: Isa, row: &[f32], halves: &mut Vec<u32>, mut put: impl FnMut(usize, u32)) -> (f32, f32) {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    fn avx512(row: &[f32], halves: &mut [u32]) -> (f64, f64) {
        round_row(row, halves)
    }
    halves.clear();
    halves.resize(row.len().next_multiple_of(2), 0);
    let (kept, lost) = match isa.level {
        // SAFETY: `isa` was detected on this machine.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { avx512(row, &mut halves[..row.len()]) },
        _ => round_row(row, &mut halves[..row.len()]),
    };
    halves.as_chunks::<2>().0.iter().enumerate().for_each(|(i, [low, high])| put(i, low | high << 16));
    (above(kept.sqrt()), above(lost.sqrt()))
}

impl Rows {
    /// Rounds `x` `[rows, d]`.
    pub fn fill(&mut self, isa: Isa, x: &[f32], d: usize) {
        self.pairs.clear();
        self.pairs.resize(d.div_ceil(2) * BLOCK, 0);
        self.bounds.clear();
        let mut of_rows = Vec::new();
        norms(isa, x, d, &mut of_rows);
        let mut halves = Vec::new();
        for (q, (row, &norm)) in x.chunks_exact(d).zip(&of_rows).enumerate() {
            let (kept, lost) = rounded(isa, row, &mut halves, |i, bits| self.pairs[i * BLOCK + q] = bits);
            self.bounds.push(RowBound::rounded(norm, kept, lost));
        }
    }
}

impl Panel {
    /// Rounds `w` `[m, d]`.
    pub fn new(isa: Isa, w: &[f32], d: usize, bias: &[f32]) -> Self {
        let (m, n_pairs) = (w.len() / d, d.div_ceil(2));
        let mut pairs = vec![0; m.div_ceil(GROUP) * n_pairs * GROUP];
        let (mut of_rows, mut kept, mut lost) = (Vec::new(), Vec::new(), Vec::new());
        norms(isa, w, d, &mut of_rows);
        let mut halves = Vec::new();
        for (j, row) in w.chunks_exact(d).enumerate() {
            let group = &mut pairs[(j / GROUP) * n_pairs * GROUP..][..n_pairs * GROUP];
            let (k, l) = rounded(isa, row, &mut halves, |i, bits| group[i * GROUP + j % GROUP] = bits);
            kept.push(k);
            lost.push(l);
        }
        Self { pairs, bounds: LatentBounds::rounded(of_rows, &kept, &lost, bias, d) }
    }
}

/// Products of a group of latents with a block of rows.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn group_avx512(rows: &[u32], latents: &[u32], out: &mut [[f32; BLOCK]; GROUP]) {
    use std::arch::x86_64::{
        __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps,
    };
    const REGISTERS: usize = BLOCK / 16;
    /// The same bits, read as bf16.
    fn halves(v: __m512i) -> __m512bh {
        // SAFETY: both are 64 bytes without invalid values.
        unsafe { std::mem::transmute(v) }
    }
    let mut acc = [[_mm512_setzero_ps(); REGISTERS]; GROUP];
    for (x, w) in rows.chunks_exact(BLOCK).zip(latents.chunks_exact(GROUP)) {
        let mut v = [halves(_mm512_set1_epi32(0)); REGISTERS];
        for (l, v) in v.iter_mut().enumerate() {
            // SAFETY: `x` has BLOCK elements.
            *v = halves(unsafe { _mm512_loadu_si512(x.as_ptr().add(16 * l).cast()) });
        }
        for g in 0..GROUP {
            let b = halves(_mm512_set1_epi32(w[g] as i32));
            for l in 0..REGISTERS {
                acc[g][l] = _mm512_dpbf16_ps(acc[g][l], b, v[l]);
            }
        }
    }
    for (line, acc) in out.iter_mut().zip(&acc) {
        for (l, sum) in acc.iter().enumerate() {
            // SAFETY: `line` has BLOCK elements.
            unsafe { _mm512_storeu_ps(line.as_mut_ptr().add(16 * l), *sum) };
        }
    }
}

/// Calls `visit(first latent of the panel, products)` for the `m` latents, some at a time, in order.
pub fn screen(isa: Isa, rows: &Rows, panel: &Panel, m: usize, mut visit: impl FnMut(usize, &[[f32; BLOCK]])) {
    let mut out = [[0f32; BLOCK]; GROUP];
    let per_group = rows.pairs.len() / BLOCK * GROUP;
    for (g, latents) in panel.pairs.chunks_exact(per_group).enumerate() {
        #[cfg(target_arch = "x86_64")]
        if isa.bf16 {
            // SAFETY: `isa` was detected on this machine.
            unsafe { group_avx512(&rows.pairs, latents, &mut out) };
        } else {
            group_portable(&rows.pairs, latents, &mut out);
        }
        #[cfg(not(target_arch = "x86_64"))]
        group_portable(&rows.pairs, latents, &mut out);
        visit(g * GROUP, &out[..GROUP.min(m - g * GROUP)]);
    }
    let _ = isa;
}

/// The same products without the instruction: for tests of the bound everywhere, never the faster choice.
fn group_portable(rows: &[u32], latents: &[u32], out: &mut [[f32; BLOCK]; GROUP]) {
    *out = [[0.0; BLOCK]; GROUP];
    for (x, w) in rows.chunks_exact(BLOCK).zip(latents.chunks_exact(GROUP)) {
        for (line, &w) in out.iter_mut().zip(w) {
            let (low, high) = (widen(w & 0xffff), widen(w >> 16));
            for (sum, &x) in line.iter_mut().zip(x) {
                *sum += widen(x >> 16) * high;
                *sum += widen(x & 0xffff) * low;
            }
        }
    }
}
