//! The few transcendental functions of a transformer, f32, written so that the compiler can vectorise them.
//!
//! Plain Rust without fused multiply-add: every instruction set gives the same bits, so the wide versions (`widest!`) only change the
//! speed. Errors against f64 are a few units in the last place (tests). NaN stays NaN.

/// Defines `$name` as `$body` compiled for the widest vectors this CPU has; the bits do not depend on which.
macro_rules! widest {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn plain($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    plain($($arg),*)
                }
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    plain($($arg),*)
                }
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    // SAFETY: the features were just detected.
                    return unsafe { avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the feature was just detected.
                    return unsafe { avx2($($arg),*) };
                }
            }
            plain($($arg),*)
        }
    };
}
pub(super) use widest;

/// Partial sums are kept in this many lanes, whatever the vector width, so that the order of additions is fixed.
pub(super) const LANES: usize = 16;

/// e^x. Below -87 it stays at e^-87 (1.6e-38, nothing beside the 1 of a softmax's maximum); above 88 it is infinite.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // x = n ln 2 + r with |r| <= ln 2 / 2; adding and subtracting 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts; the first has few enough bits that n * LN2_HIGH is exact.
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Written so that NaN compares false and passes.
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.8 { 88.8 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    // Taylor to r^7: the first term left out is below 6e-9 for |r| <= 0.3466.
    let p = 1.0 / 5040.0;
    let p = p * r + 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = (p * r) * r + r + 1.0;
    let scale = f32::from_bits(shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    p * scale
}

/// tanh x, for softcaps: small where |x| is small to an absolute error of 1e-7.
#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

/// x * sigmoid(x).
#[inline(always)]
pub(super) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// The tanh form of gelu: 0.5 x (1 + tanh u) = x * sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3).
#[inline(always)]
pub(super) fn gelu_new(x: f32) -> f32 {
    const TWICE_SQRT_2_OVER_PI: f32 = std::f32::consts::SQRT_2 * std::f32::consts::FRAC_2_SQRT_PI;
    x / (1.0 + exp(-TWICE_SQRT_2_OVER_PI * (x + 0.044_715 * (x * x * x))))
}

/// x * sigmoid(1.702 x).
#[inline(always)]
pub(super) fn quick_gelu(x: f32) -> f32 {
    x / (1.0 + exp(-1.702 * x))
}

/// Gelu with the error function: x * Phi(x), where Phi(-|x|) = exp(-x^2 / 2) * p(t), t = 1 / (1 + 0.26 |x|). Small values are as
/// accurate as large ones, which 1 + erf is not.
#[inline(always)]
pub(super) fn gelu(x: f32) -> f32 {
    // A minimax fit of 0.5 erfcx(|x| / sqrt 2) / t over 0 <= |x| <= 14, relative error 2.5e-8.
    const P: [f32; 9] =
        [0.103_759_06, 0.103_016_75, 0.103_030_26, 0.051_027_663, 0.160_947_89, -0.150_948_51, 0.251_491_28, -0.152_828_8, 0.030_504_875];
    let t = 1.0 / (1.0 + 0.26 * x.abs());
    let mut p = P[8];
    p = p * t + P[7];
    p = p * t + P[6];
    p = p * t + P[5];
    p = p * t + P[4];
    p = p * t + P[3];
    p = p * t + P[2];
    p = p * t + P[1];
    p = p * t + P[0];
    let tail = x * (exp(-0.5 * x * x) * (p * t));
    if x < 0.0 {
        tail
    } else {
        x - tail
    }
}

/// Rounds to the nearest bf16 value (ties to even), kept as f32.
#[inline(always)]
pub(super) fn round_to_bf16(x: f32) -> f32 {
    half::bf16::from_f32(x).to_f32()
}

widest! {
    /// Sum of `xs`, in a fixed order.
    pub(super) fn sum(xs: &[f32]) -> f32 {
        let mut lanes = [0f32; LANES];
        let chunks = xs.chunks_exact(LANES);
        let rest = chunks.remainder();
        for chunk in chunks {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                *lane += x;
            }
        }
        for (lane, x) in lanes.iter_mut().zip(rest) {
            *lane += x;
        }
        fold(lanes)
    }
}

widest! {
    /// Sum of `(x - centre)^2`, in a fixed order.
    pub(super) fn sum_squares(xs: &[f32], centre: f32) -> f32 {
        let mut lanes = [0f32; LANES];
        let chunks = xs.chunks_exact(LANES);
        let rest = chunks.remainder();
        for chunk in chunks {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                *lane += (x - centre) * (x - centre);
            }
        }
        for (lane, x) in lanes.iter_mut().zip(rest) {
            *lane += (x - centre) * (x - centre);
        }
        fold(lanes)
    }
}

widest! {
    /// Softmax of `xs` in place: exp(x - max) over its sum. An empty row stays empty; NaN anywhere makes the row NaN.
    pub(super) fn softmax(xs: &mut [f32]) {
        let mut tops = [f32::NEG_INFINITY; LANES];
        let chunks = xs.chunks_exact(LANES);
        let rest = chunks.remainder();
        for chunk in chunks {
            for (top, &x) in tops.iter_mut().zip(chunk) {
                *top = if x > *top { x } else { *top };
            }
        }
        for (top, &x) in tops.iter_mut().zip(rest) {
            *top = if x > *top { x } else { *top };
        }
        let max = tops.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
        let mut lanes = [0f32; LANES];
        let mut chunks = xs.chunks_exact_mut(LANES);
        for chunk in &mut chunks {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                *x = exp(*x - max);
                *lane += *x;
            }
        }
        for (lane, x) in lanes.iter_mut().zip(chunks.into_remainder()) {
            *x = exp(*x - max);
            *lane += *x;
        }
        let total = fold(lanes);
        for x in xs {
            *x /= total;
        }
    }
}

/// Adds the lanes in pairs, a fixed tree.
#[inline(always)]
fn fold(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Largest error of `f` against `exact` over a grid, relative to max(1, |exact|) for `floor = 1`.
    fn worst(from: f64, to: f64, floor: f64, f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64) -> f64 {
        let n = 200_001;
        (0..n)
            .map(|i| (from + (to - from) * f64::from(i) / f64::from(n - 1)) as f32)
            .map(|x| {
                let want = exact(f64::from(x));
                (f64::from(f(x)) - want).abs() / want.abs().max(floor)
            })
            .fold(0.0, f64::max)
    }

    #[test]
    fn transcendentals_are_right_to_a_few_units_in_the_last_place() {
        assert!(worst(-86.9, 88.0, 0.0, exp, f64::exp) < 2.5e-7);
        assert!(worst(-20.0, 20.0, 1.0, tanh, f64::tanh) < 2e-7);
        assert!(worst(-20.0, 20.0, 1e-3, silu, |x| x / (1.0 + (-x).exp())) < 5e-7);
        let exact = |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh());
        assert!(worst(-8.0, 8.0, 1e-3, gelu_new, exact) < 2e-6);
        let exact = |x: f64| 0.5 * x * (candle_core::cpu::erf::erf_f64(x * std::f64::consts::FRAC_1_SQRT_2) + 1.0);
        assert!(worst(-4.5, 8.0, 1e-3, gelu, exact) < 2e-6);
        // Far out 1 + erf has no digits left. Phi(-6) = 9.86587645037698e-10.
        assert!((f64::from(gelu(-6.0)) / (-6.0 * 9.865_876_450_376_98e-10) - 1.0).abs() < 1e-5);
        // Gelu at 1: 0.5 (1 + erf(1/sqrt 2)) = 0.8413447460685429.
        assert!((gelu(1.0) - 0.841_344_7).abs() < 2e-7 && (gelu_new(1.0) - 0.841_192).abs() < 1e-6);
    }

    #[test]
    fn extremes_do_not_hide() {
        for f in [exp, tanh, silu, gelu_new, gelu] {
            assert!(f(f32::NAN).is_nan());
        }
        assert_eq!(exp(200.0), f32::INFINITY);
        assert_eq!((silu(-1e30), gelu_new(-1e10), gelu_new(50.0)), (0.0, 0.0, 50.0));
        let mut row = [0.0, f32::NAN, 1.0];
        softmax(&mut row);
        assert!(row.iter().all(|x| x.is_nan()));
    }

    #[test]
    fn sums_and_softmax_agree_with_f64() {
        let mut rng = crate::rng::Rng::stream(1, "math", 0);
        for n in [1, 5, 16, 37, 256] {
            let xs: Vec<f32> = (0..n).map(|_| rng.normal() as f32 * 3.0).collect();
            let exact: f64 = xs.iter().map(|&x| f64::from(x)).sum();
            assert!((f64::from(sum(&xs)) - exact).abs() < 1e-4);
            let squares: f64 = xs.iter().map(|&x| (f64::from(x) - 0.5).powi(2)).sum();
            assert!((f64::from(sum_squares(&xs, 0.5)) - squares).abs() < 1e-5 * (1.0 + squares));
            let total: f64 = xs.iter().map(|&x| f64::from(x).exp()).sum();
            let mut p = xs.clone();
            softmax(&mut p);
            for (x, p) in xs.iter().zip(&p) {
                assert!((f64::from(*p) - f64::from(*x).exp() / total).abs() < 1e-6);
            }
        }
    }
}
