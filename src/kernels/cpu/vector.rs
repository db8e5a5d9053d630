//! Inner loops on slices. Sums run in sixteen fixed lanes, and products are rounded before they are added, so the result depends neither
//! on threads nor on the instruction set.

use super::dispatch::dispatched;
use super::encode::Isa;

const LANES: usize = 16;

type Lanes = [f32; LANES];

/// A vector in lanes, and what is left over.
#[inline(always)]
fn lanes(a: &[f32]) -> (&[Lanes], &[f32]) {
    a.as_chunks::<LANES>()
}

/// The sum of the lanes, and of the products of what is left over.
#[inline(always)]
fn total(acc: &Lanes, x: &[f32], y: &[f32]) -> f32 {
    let mut sum = 0f32;
    for l in 0..LANES / 2 {
        sum += acc[l] + acc[l + LANES / 2];
    }
    x.iter().zip(y).fold(sum, |sum, (x, y)| sum + x * y)
}

/// `<a, b>` in f32, sixteen lanes.
#[inline]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let n = a.len().min(b.len());
    let (a, b) = (&a[..n], &b[..n]);
    #[cfg(target_arch = "x86_64")]
    if Isa::best().is_wide() {
        // SAFETY: the instructions were detected on this machine.
        return unsafe { wide::dots([a], b) }[0];
    }
    let ((wa, ra), (wb, rb)) = (lanes(a), lanes(b));
    let mut acc = [0f32; LANES];
    for (x, y) in wa.iter().zip(wb) {
        for l in 0..LANES {
            acc[l] += x[l] * y[l];
        }
    }
    total(&acc, ra, rb)
}

/// `<a_i, b>` of four, each the same bits as [`dot`]; all have `b`'s length.
#[inline]
pub fn four_dots(a: [&[f32]; 4], b: &[f32]) -> [f32; 4] {
    #[cfg(target_arch = "x86_64")]
    if Isa::best().is_wide() {
        // SAFETY: the instructions were detected on this machine.
        return unsafe { wide::dots(a, b) };
    }
    a.map(|a| dot(a, b))
}

/// Written out: compilers shuffle several sums into each other.
#[cfg(target_arch = "x86_64")]
mod wide {
    use super::{lanes, Lanes, LANES};
    use std::arch::x86_64::{__m512, _mm512_add_ps, _mm512_loadu_ps, _mm512_mul_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps};

    #[target_feature(enable = "avx512f")]
    fn load(x: &Lanes) -> __m512 {
        // SAFETY: `x` is LANES = 16 floats.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }

    /// `b` is read once, and no sum waits for another.
    #[target_feature(enable = "avx512f")]
    pub fn dots<const N: usize>(a: [&[f32]; N], b: &[f32]) -> [f32; N] {
        let (of_b, rest) = lanes(b);
        let of_a = a.map(|a| &lanes(&a[..b.len()]).0[..of_b.len()]);
        let mut acc = [_mm512_setzero_ps(); N];
        for (c, y) in of_b.iter().enumerate() {
            let y = load(y);
            for i in 0..N {
                // SAFETY: each of `of_a` was cut to the length of `of_b`. Checks would take a quarter of the loop.
                let x = load(unsafe { of_a[i].get_unchecked(c) });
                acc[i] = _mm512_add_ps(acc[i], _mm512_mul_ps(x, y));
            }
        }
        let mut of = [[0f32; LANES]; N];
        for (of, acc) in of.iter_mut().zip(acc) {
            // SAFETY: `of` has LANES = 16 elements.
            unsafe { _mm512_storeu_ps(of.as_mut_ptr(), acc) };
        }
        // Side by side: each sum is one of `total`'s.
        let mut sums = [0f32; N];
        for l in 0..LANES / 2 {
            for i in 0..N {
                sums[i] += of[i][l] + of[i][l + LANES / 2];
            }
        }
        for (sum, a) in sums.iter_mut().zip(a) {
            *sum = a[b.len() - rest.len()..b.len()].iter().zip(rest).fold(*sum, |sum, (x, y)| sum + x * y);
        }
        sums
    }

    /// Adds the rows to `REGISTERS` registers of `y`, from column `at` on.
    ///
    /// # Safety
    /// Rows of `matrix` are `y.len()` long, and all of `rows` lie in it; `at + REGISTERS * LANES <= y.len()`.
    #[target_feature(enable = "avx512f")]
    unsafe fn combine_columns<const REGISTERS: usize>(a: &[f32], scale: f32, rows: &[u32], matrix: &[f32], y: &mut [f32], at: usize) {
        let d = y.len();
        // SAFETY: as the caller promises.
        unsafe {
            let y = y.as_mut_ptr().add(at);
            let mut sums = [_mm512_setzero_ps(); REGISTERS];
            for (l, sum) in sums.iter_mut().enumerate() {
                *sum = _mm512_loadu_ps(y.add(LANES * l));
            }
            for (&r, a) in rows.iter().zip(a) {
                let row = matrix.as_ptr().add(r as usize * d + at);
                let a = _mm512_set1_ps(a * scale);
                for (l, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_add_ps(*sum, _mm512_mul_ps(a, _mm512_loadu_ps(row.add(LANES * l))));
                }
            }
            for (l, sum) in sums.iter().enumerate() {
                _mm512_storeu_ps(y.add(LANES * l), *sum);
            }
        }
    }

    /// See [`super::combine`]: `y` stays in registers, some columns at a time.
    ///
    /// # Safety
    /// All of `rows` lie in `matrix`, whose rows are `y.len()` long.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn combine(a: &[f32], scale: f32, rows: &[u32], matrix: &[f32], y: &mut [f32]) {
        let d = y.len();
        let mut at = 0;
        // SAFETY: the caller's promise, and each step's columns exist.
        unsafe {
            while d - at >= 16 * LANES {
                combine_columns::<16>(a, scale, rows, matrix, y, at);
                at += 16 * LANES;
            }
            while d - at >= 4 * LANES {
                combine_columns::<4>(a, scale, rows, matrix, y, at);
                at += 4 * LANES;
            }
            while d - at >= LANES {
                combine_columns::<1>(a, scale, rows, matrix, y, at);
                at += LANES;
            }
        }
        for (&r, a) in rows.iter().zip(a) {
            let row = &matrix[r as usize * d + at..(r as usize + 1) * d];
            y[at..].iter_mut().zip(row).for_each(|(y, x)| *y += a * scale * x);
        }
    }
}

/// Asks for `row` to be in the second-level cache soon.
#[inline(always)]
pub fn prefetch(row: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    for line in row.chunks(LANES) {
        use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T1};
        // SAFETY: it is part of every x86-64, and a hint alone.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = row;
}

/// Squared Euclidean norm.
#[inline]
pub fn sq_norm(a: &[f32]) -> f32 {
    dot(a, a)
}

#[inline(always)]
fn axpy_body(a: f32, x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}

dispatched! {
    /// `y += a x`.
    pub fn axpy(a: f32, x: &[f32], y: &mut [f32]) = axpy_body
}

/// `y += sum_i scale a_i matrix[rows_i]`, added in order: the same bits as one [`axpy`] after the other; `matrix` `[_, y.len()]`.
pub fn combine(a: &[f32], scale: f32, rows: &[u32], matrix: &[f32], y: &mut [f32]) {
    let d = y.len();
    assert!(rows.len() <= a.len() && rows.iter().all(|&r| (r as usize + 1) * d <= matrix.len()), "rows lie in the matrix");
    #[cfg(target_arch = "x86_64")]
    if Isa::best().is_wide() {
        // SAFETY: the instructions were detected on this machine; the rows were just checked.
        return unsafe { wide::combine(a, scale, rows, matrix, y) };
    }
    for (&r, a) in rows.iter().zip(a) {
        axpy(a * scale, &matrix[r as usize * d..(r as usize + 1) * d], y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_at_once_are_the_same_bits() {
        let vector = |seed: usize, n: usize| (0..n).map(|i| ((i * 37 + seed * 101) % 97) as f32 * 0.013 - 0.5).collect::<Vec<f32>>();
        for n in [0, 1, 15, 16, 33, 200, 345] {
            let rows: Vec<Vec<f32>> = (0..7).map(|s| vector(s, n)).collect();
            let b = vector(9, n);
            let four = four_dots([&rows[0], &rows[1], &rows[2], &rows[3]], &b);
            for (row, four) in rows.iter().zip(four) {
                let mut acc = [0f32; LANES];
                let whole = n / LANES * LANES;
                (0..whole).for_each(|i| acc[i % LANES] += row[i] * b[i]);
                assert_eq!(dot(row, &b).to_bits(), total(&acc, &row[whole..], &b[whole..]).to_bits());
                assert_eq!(four.to_bits(), dot(row, &b).to_bits());
            }
            let (mut once, mut each) = (b.clone(), b);
            let a: Vec<f32> = (0..7).map(|i| 0.1 + i as f32).collect();
            combine(&a, 1.0, &[0, 1, 2, 3, 4, 5, 6], &rows.concat(), &mut once);
            (0..7).for_each(|i| axpy(a[i], &rows[i], &mut each));
            assert_eq!(once, each);
        }
    }
}
