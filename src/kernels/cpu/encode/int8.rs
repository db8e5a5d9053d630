//! The int8 screen: operands rounded to bytes with a scale per row and per latent, `vpdpbusd` for products, four times the rate of f32
//! where a core has it.
//!
//! Four coordinates are one u32. Rows are `[quads][BLOCK]`, shifted by 128 because the instruction wants unsigned bytes on that side;
//! latents are `[groups][quads][6]`, and 128 times their sum is taken off again. Sums of bytes are exact in i32.
//!
//! A massive coordinate would set the scale of its whole row. The few that there are (`outliers`) stay f32, are added on top, and count
//! as 0 in the bytes.

use super::bound::{LatentBounds, RowBound};
use super::exact::{above, norms};
use super::isa::Isa;
#[cfg(target_arch = "x86_64")]
use super::isa::Level;
use super::panels::BLOCK;

/// Latents that are worked on together: 6 x 4 registers of sums.
pub const GROUP: usize = 6;
/// Widest rows whose sums are sure to fit: 255 * 127 * d < 2^31.
pub const WIDEST: usize = 66_000;
/// Rows whose largest coordinate is below this are not worth a scale: all of them counts as lost.
const FAINT: f32 = 1e-25;

/// Most coordinates that stay f32: they cost as much as four times as many bytes.
const OUTLIERS: usize = 16;
/// A coordinate whose root mean square is this many times the median one's is an outlier.
const FAR: f64 = 3.0;
/// Rows that outliers are looked for in.
const SAMPLE: usize = 256;

/// The coordinates of `x` `[_, d]` that dwarf the others, in order.
pub fn outliers(x: &[f32], d: usize) -> Vec<usize> {
    let rows = x.len() / d;
    let mut sums = vec![0f64; d];
    for row in x.chunks_exact(d).step_by(rows.div_ceil(SAMPLE).max(1)) {
        for (sum, &v) in sums.iter_mut().zip(row) {
            *sum += f64::from(v) * f64::from(v);
        }
    }
    let mut sorted = sums.clone();
    let (_, &mut median, _) = sorted.select_nth_unstable_by(d / 2, f64::total_cmp);
    let mut far: Vec<usize> = (0..d).filter(|&c| sums[c] > FAR * FAR * median).collect();
    far.sort_by(|&a, &b| sums[b].total_cmp(&sums[a]));
    far.truncate(OUTLIERS);
    far.sort_unstable();
    far
}

/// Takes the outliers out of a row: what is left, and them one by one.
fn split(row: &[f32], outliers: &[usize], rest: &mut Vec<f32>, mut put: impl FnMut(usize, f32)) {
    rest.clear();
    rest.extend_from_slice(row);
    for (o, &c) in outliers.iter().enumerate() {
        put(o, row[c]);
        rest[c] = 0.0;
    }
}

/// A block of rows, rounded.
#[derive(Debug, Default)]
pub struct Rows {
    quads: Vec<u32>,
    /// `[outliers][BLOCK]`.
    far: Vec<f32>,
    scale: Vec<f32>,
    /// Bounds of its rows.
    pub bounds: Vec<RowBound>,
}

/// A panel of latents, rounded.
#[derive(Debug, Default)]
pub struct Panel {
    quads: Vec<u32>,
    groups: Vec<Group>,
    /// Bounds of its latents.
    pub bounds: LatentBounds,
}

/// What else belongs to a group of latents.
#[derive(Debug, Clone, Copy)]
struct Group {
    /// 128 times the sum of a latent's bytes.
    shift: [i32; GROUP],
    scale: [f32; GROUP],
    far: [[f32; GROUP]; OUTLIERS],
}

/// A rounded row: its bytes are elsewhere.
struct Rounded {
    scale: f32,
    sum: i32,
    /// Norms of the rounded row and of the rest, rounded up.
    kept: f32,
    lost: f32,
}

const LANES: usize = 16;
/// Adding it rounds to a whole number, which the lowest bits then hold.
const MAGIC: f32 = 12_582_912.0;

#[inline(always)]
fn round_row(row: &[f32], bytes: &mut [u8]) -> Rounded {
    let (whole, tail) = row.as_chunks::<LANES>();
    let mut largest = [0f32; LANES];
    for v in whole {
        for l in 0..LANES {
            largest[l] = largest[l].max(v[l].abs());
        }
    }
    let largest = largest.iter().chain(tail).fold(0f32, |m, v| m.max(v.abs()));
    let (scale, inverse) = if largest < FAINT || !largest.is_finite() { (0.0, 0.0) } else { (largest / 127.0, 127.0 / largest) };
    let scale64 = f64::from(scale);
    let (mut sums, mut kept, mut lost) = ([0i32; LANES], [0f64; LANES], [0f64; LANES]);
    let mut one = |l: usize, v: f32, byte: &mut u8| {
        let moved = v * inverse + MAGIC;
        let q = moved - MAGIC;
        *byte = moved.to_bits() as u8;
        sums[l] = sums[l].wrapping_add((moved.to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32));
        let q = f64::from(q) * scale64;
        let rest = f64::from(v) - q;
        kept[l] += q * q;
        lost[l] += rest * rest;
    };
    let (out, out_tail) = bytes.as_chunks_mut::<LANES>();
    for (v, byte) in whole.iter().zip(out.iter_mut()) {
        for l in 0..LANES {
            one(l, v[l], &mut byte[l]);
        }
    }
    for (l, (&v, byte)) in tail.iter().zip(out_tail).enumerate() {
        one(l, v, byte);
    }
    let (kept, lost): (f64, f64) = (kept.iter().sum(), lost.iter().sum());
    Rounded { scale, sum: sums.iter().fold(0, |a, &b| a.wrapping_add(b)), kept: above(kept.sqrt()), lost: above(lost.sqrt()) }
}

/// Rounds a row into `bytes`, which grows to whole quads; signed bytes.
fn rounded(isa: Isa, row: &[f32], bytes: &mut Vec<u8>) -> Rounded {
    bytes.clear();
    bytes.resize(row.len().next_multiple_of(4), 0);
    let bytes = &mut bytes[..row.len()];
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx2,fma")]
        fn avx512(row: &[f32], bytes: &mut [u8]) -> Rounded {
            round_row(row, bytes)
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2(row: &[f32], bytes: &mut [u8]) -> Rounded {
            round_row(row, bytes)
        }
        // SAFETY: `isa` was detected on this machine.
        match isa.level {
            Level::Avx512 => return unsafe { avx512(row, bytes) },
            Level::Avx2 => return unsafe { avx2(row, bytes) },
            Level::Portable => {}
        }
    }
    let _ = isa;
    round_row(row, bytes)
}

impl Rows {
    /// Rounds `x` `[rows, d]`.
    pub fn fill(&mut self, isa: Isa, x: &[f32], d: usize, outliers: &[usize]) {
        self.far.clear();
        self.far.resize(outliers.len() * BLOCK, 0.0);
        self.quads.clear();
        self.quads.resize(d.div_ceil(4) * BLOCK, 0);
        self.bounds.clear();
        self.scale.clear();
        let mut of_rows = Vec::new();
        norms(isa, x, d, &mut of_rows);
        let (mut bytes, mut rest) = (Vec::new(), Vec::new());
        for (q, (row, &norm)) in x.chunks_exact(d).zip(&of_rows).enumerate() {
            split(row, outliers, &mut rest, |o, v| self.far[o * BLOCK + q] = v);
            let r = rounded(isa, &rest, &mut bytes);
            for (i, quad) in bytes.as_chunks::<4>().0.iter().enumerate() {
                // Flipping the highest bit adds 128.
                self.quads[i * BLOCK + q] = u32::from_le_bytes(*quad) ^ 0x8080_8080;
            }
            self.scale.push(r.scale);
            self.bounds.push(RowBound::rounded(norm, r.kept, r.lost));
        }
        self.scale.resize(BLOCK, 0.0);
    }
}

impl Panel {
    /// Rounds `w` `[m, d]`.
    pub fn new(isa: Isa, w: &[f32], d: usize, bias: &[f32], outliers: &[usize]) -> Self {
        let (m, n_quads) = (w.len() / d, d.div_ceil(4));
        let mut quads = vec![0; m.div_ceil(GROUP) * n_quads * GROUP];
        let none = Group { shift: [0; GROUP], scale: [0.0; GROUP], far: [[0.0; GROUP]; OUTLIERS] };
        let mut groups = vec![none; m.div_ceil(GROUP)];
        let (mut of_rows, mut kept, mut lost) = (Vec::new(), Vec::new(), Vec::new());
        norms(isa, w, d, &mut of_rows);
        let (mut bytes, mut rest) = (Vec::new(), Vec::new());
        for (j, row) in w.chunks_exact(d).enumerate() {
            let group = &mut quads[(j / GROUP) * n_quads * GROUP..][..n_quads * GROUP];
            let of_group = &mut groups[j / GROUP];
            split(row, outliers, &mut rest, |o, v| of_group.far[o][j % GROUP] = v);
            let r = rounded(isa, &rest, &mut bytes);
            for (i, quad) in bytes.as_chunks::<4>().0.iter().enumerate() {
                group[i * GROUP + j % GROUP] = u32::from_le_bytes(*quad);
            }
            of_group.shift[j % GROUP] = r.sum.wrapping_mul(128);
            of_group.scale[j % GROUP] = r.scale;
            kept.push(r.kept);
            lost.push(r.lost);
        }
        Self { quads, groups, bounds: LatentBounds::rounded(of_rows, &kept, &lost, bias, 0) }
    }
}

/// Products of a group of latents with a block of rows.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
fn group_avx512(rows: &Rows, latents: &[u32], group: &Group, out: &mut [[f32; BLOCK]; GROUP]) {
    use std::arch::x86_64::{
        _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mul_ps, _mm512_set1_epi32,
        _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_storeu_ps, _mm512_sub_epi32,
    };
    const REGISTERS: usize = BLOCK / 16;
    assert!(rows.scale.len() == BLOCK);
    let mut acc = [[_mm512_setzero_si512(); REGISTERS]; GROUP];
    for (x, w) in rows.quads.chunks_exact(BLOCK).zip(latents.chunks_exact(GROUP)) {
        let mut v = [_mm512_setzero_si512(); REGISTERS];
        for (l, v) in v.iter_mut().enumerate() {
            // SAFETY: `x` has BLOCK elements.
            *v = unsafe { _mm512_loadu_si512(x.as_ptr().add(16 * l).cast()) };
        }
        for g in 0..GROUP {
            let b = _mm512_set1_epi32(w[g] as i32);
            for l in 0..REGISTERS {
                acc[g][l] = _mm512_dpbusd_epi32(acc[g][l], v[l], b);
            }
        }
    }
    let mut products = [[_mm512_setzero_ps(); REGISTERS]; GROUP];
    for l in 0..REGISTERS {
        // SAFETY: it has BLOCK elements.
        let scale = unsafe { _mm512_loadu_ps(rows.scale.as_ptr().add(16 * l)) };
        for g in 0..GROUP {
            let sum = _mm512_cvtepi32_ps(_mm512_sub_epi32(acc[g][l], _mm512_set1_epi32(group.shift[g])));
            products[g][l] = _mm512_mul_ps(_mm512_mul_ps(sum, scale), _mm512_set1_ps(group.scale[g]));
        }
    }
    for (x, w) in rows.far.chunks_exact(BLOCK).zip(&group.far) {
        let mut v = [_mm512_setzero_ps(); REGISTERS];
        for (l, v) in v.iter_mut().enumerate() {
            // SAFETY: `x` has BLOCK elements.
            *v = unsafe { _mm512_loadu_ps(x.as_ptr().add(16 * l)) };
        }
        for g in 0..GROUP {
            let b = _mm512_set1_ps(w[g]);
            for l in 0..REGISTERS {
                products[g][l] = _mm512_fmadd_ps(v[l], b, products[g][l]);
            }
        }
    }
    for (line, products) in out.iter_mut().zip(&products) {
        for (l, product) in products.iter().enumerate() {
            // SAFETY: `line` has BLOCK elements.
            unsafe { _mm512_storeu_ps(line.as_mut_ptr().add(16 * l), *product) };
        }
    }
}

/// The same products without the instruction: for tests of the bound everywhere, never the faster choice.
#[inline(always)]
fn group_any(rows: &Rows, latents: &[u32], group: &Group, out: &mut [[f32; BLOCK]; GROUP]) {
    let mut acc = [[0i32; BLOCK]; GROUP];
    for (x, w) in rows.quads.chunks_exact(BLOCK).zip(latents.chunks_exact(GROUP)) {
        for (line, &w) in acc.iter_mut().zip(w) {
            let w = w.to_le_bytes().map(|b| i32::from(b as i8));
            for (sum, &x) in line.iter_mut().zip(x) {
                let x = x.to_le_bytes().map(i32::from);
                *sum += x[0] * w[0] + x[1] * w[1] + x[2] * w[2] + x[3] * w[3];
            }
        }
    }
    for (g, line) in out.iter_mut().enumerate() {
        for (q, product) in line.iter_mut().enumerate() {
            *product = acc[g][q].wrapping_sub(group.shift[g]) as f32 * rows.scale[q] * group.scale[g];
        }
    }
    for (x, w) in rows.far.chunks_exact(BLOCK).zip(&group.far) {
        for (line, &w) in out.iter_mut().zip(w) {
            line.iter_mut().zip(x).for_each(|(product, &x)| *product += x * w);
        }
    }
}

/// Calls `visit(first latent of the panel, products)` for the `m` latents, some at a time, in order.
pub fn screen(isa: Isa, rows: &Rows, panel: &Panel, m: usize, mut visit: impl FnMut(usize, &[[f32; BLOCK]])) {
    let mut out = [[0f32; BLOCK]; GROUP];
    let per_group = rows.quads.len() / BLOCK * GROUP;
    for (g, (latents, group)) in panel.quads.chunks_exact(per_group).zip(&panel.groups).enumerate() {
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx2,fma")]
            fn avx2(rows: &Rows, latents: &[u32], group: &Group, out: &mut [[f32; BLOCK]; GROUP]) {
                group_any(rows, latents, group, out);
            }
            // SAFETY: `isa` was detected on this machine.
            match (isa.vnni, isa.level) {
                (true, _) => unsafe { group_avx512(rows, latents, group, &mut out) },
                (_, Level::Avx512 | Level::Avx2) => unsafe { avx2(rows, latents, group, &mut out) },
                _ => group_any(rows, latents, group, &mut out),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        group_any(rows, latents, group, &mut out);
        visit(g * GROUP, &out[..GROUP.min(m - g * GROUP)]);
    }
    let _ = isa;
}
