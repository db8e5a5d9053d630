//! Inner loops on slices. Sums run in sixteen fixed lanes, and products are rounded before they are added, so the result depends neither
//! on threads nor on the instruction set; callers that are [`dispatched`](super::dispatch)
//! get them compiled for the machine's best.

const LANES: usize = 16;

type Lanes = [f32; LANES];

/// A vector in lanes, and what is left over.
#[inline(always)]
fn lanes(a: &[f32]) -> (&[Lanes], &[f32]) {
    a.as_chunks::<LANES>()
}

#[inline(always)]
fn add_products(acc: &mut Lanes, x: &Lanes, y: &Lanes) {
    for l in 0..LANES {
        acc[l] += x[l] * y[l];
    }
}

#[inline(always)]
fn total(acc: &Lanes, x: &[f32], y: &[f32]) -> f32 {
    let mut sum = 0f32;
    for l in 0..LANES / 2 {
        sum += acc[l] + acc[l + LANES / 2];
    }
    x.iter().zip(y).fold(sum, |sum, (x, y)| sum + x * y)
}

/// `<a, b>` in f32, sixteen lanes.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let n = a.len().min(b.len());
    let ((a, ra), (b, rb)) = (lanes(&a[..n]), lanes(&b[..n]));
    let mut acc = [0f32; LANES];
    for (x, y) in a.iter().zip(b) {
        add_products(&mut acc, x, y);
    }
    total(&acc, ra, rb)
}

/// `<a_i, b>` of four, each the same bits as [`dot`]: `b` is read once, and no sum waits for another. All have `b`'s length.
#[inline(always)]
pub fn four_dots(a: [&[f32]; 4], b: &[f32]) -> [f32; 4] {
    a.map(|a| dot(a, b))
}

/// [`four_dots`], written out: compilers shuffle the four sums into each other.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
pub fn four_dots_avx512(a: [&[f32]; 4], b: &[f32]) -> [f32; 4] {
    use std::arch::x86_64::{_mm512_add_ps, _mm512_loadu_ps, _mm512_mul_ps, _mm512_setzero_ps, _mm512_storeu_ps};
    let (lanes_of_b, rest) = lanes(b);
    let [p, q, r, s] = a.map(|a| &lanes(&a[..b.len()]).0[..lanes_of_b.len()]);
    // SAFETY: a reference to LANES = 16 floats.
    let load = |x: &Lanes| unsafe { _mm512_loadu_ps(x.as_ptr()) };
    let [mut ap, mut aq, mut ar, mut at] = [_mm512_setzero_ps(); 4];
    for (c, y) in lanes_of_b.iter().enumerate() {
        let y = load(y);
        ap = _mm512_add_ps(ap, _mm512_mul_ps(load(&p[c]), y));
        aq = _mm512_add_ps(aq, _mm512_mul_ps(load(&q[c]), y));
        ar = _mm512_add_ps(ar, _mm512_mul_ps(load(&r[c]), y));
        at = _mm512_add_ps(at, _mm512_mul_ps(load(&s[c]), y));
    }
    let mut sums = [0f32; 4];
    for ((sum, acc), a) in sums.iter_mut().zip([ap, aq, ar, at]).zip(a) {
        let mut of = [0f32; LANES];
        // SAFETY: `of` has LANES = 16 elements.
        unsafe { _mm512_storeu_ps(of.as_mut_ptr(), acc) };
        *sum = total(&of, &a[b.len() - rest.len()..], rest);
    }
    sums
}

/// Squared Euclidean norm.
#[inline(always)]
pub fn sq_norm(a: &[f32]) -> f32 {
    dot(a, a)
}

/// `y += a x`.
#[inline(always)]
pub fn axpy(a: f32, x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}

/// `y += sum_i a_i x_i`, added in order: the same bits as one [`axpy`] after the other, with `y` read and written once for four.
#[inline(always)]
pub fn add_rows<'x>(y: &mut [f32], count: usize, term: impl Fn(usize) -> (f32, &'x [f32])) {
    let fours = count / 4 * 4;
    for i in (0..fours).step_by(4) {
        let [(a, p), (b, q), (c, r), (d, s)] = [term(i), term(i + 1), term(i + 2), term(i + 3)];
        for ((((y, p), q), r), s) in y.iter_mut().zip(p).zip(q).zip(r).zip(s) {
            *y = *y + a * p + b * q + c * r + d * s;
        }
    }
    for i in fours..count {
        let (a, x) = term(i);
        axpy(a, x, y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_at_once_are_the_same_bits() {
        let vector = |seed: usize, n: usize| (0..n).map(|i| ((i * 37 + seed * 101) % 97) as f32 * 0.013 - 0.5).collect::<Vec<f32>>();
        for n in [0, 1, 15, 16, 33, 200] {
            let rows: Vec<Vec<f32>> = (0..7).map(|s| vector(s, n)).collect();
            let b = vector(9, n);
            let four = four_dots([&rows[0], &rows[1], &rows[2], &rows[3]], &b);
            (0..4).for_each(|i| assert_eq!(four[i].to_bits(), dot(&rows[i], &b).to_bits()));
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx512f") {
                // SAFETY: just detected.
                assert_eq!(unsafe { four_dots_avx512([&rows[0], &rows[1], &rows[2], &rows[3]], &b) }, four);
            }
            let (mut once, mut each) = (b.clone(), b);
            add_rows(&mut once, 7, |i| (0.1 + i as f32, &rows[i]));
            (0..7).for_each(|i| axpy(0.1 + i as f32, &rows[i], &mut each));
            assert_eq!(once, each);
        }
    }
}
