//! How far a product of the screen can be from the score: |p + b - s| <= E, so that nothing outside the bound needs a second look.
//!
//! With u = 2^-24, x_q and w_q the rounded operands, dx = x - x_q and dw = w - w_q:
//!
//! ```text
//! f32:   E = (d + 64) u |x| |w| + slack
//! bf16:  E = |dx| |w| + |x_q| |dw| + (d + 64) u |x_q| |w_q| + slack
//! int8:  E = |dx| |w| + |x_q| |dw| + 64 u |x_q| |w_q| + slack
//! ```
//!
//! (Cauchy-Schwarz; at most d + a few roundings of a sum, whatever its order, fused or not; sums of bytes are exact.) The slack covers the bias' own rounding, that
//! of the bound's arithmetic, and products that are flushed to 0.

/// Half a unit in the last place of 1.
const U: f64 = 1.0 / (1u64 << 24) as f64;
/// More than any number of flushed products adds up to.
const TINY: f32 = 1e-30;
/// Norms from here on could overflow in f32: such a row is scored whole.
const WILD: f32 = 1e18;

/// A row's share of the bound: `E = slope * a + second * t + floor`, with the latent's `a` and `t`.
#[derive(Debug, Clone, Copy, Default)]
pub struct RowBound {
    /// Multiplies the latent's norm.
    pub slope: f32,
    /// Multiplies the latent's rounding.
    pub second: f32,
    /// Added.
    pub floor: f32,
    /// Is the row beyond what the bound holds for?
    pub wild: bool,
}

/// Those of a panel of latents.
#[derive(Debug, Default)]
pub struct LatentBounds {
    /// Norms.
    pub a: Vec<f32>,
    /// Norms of what rounding took, and of what a sum may lose; 0 for f32.
    pub t: Vec<f32>,
    /// Is any latent beyond what the bound holds for?
    pub wild: bool,
}

fn gamma(d: usize) -> f64 {
    (d + 64) as f64 * U
}

fn up(v: f64) -> f32 {
    super::exact::above(v)
}

impl RowBound {
    /// For an f32 screen, from the row's norm.
    pub fn f32(norm: f32, d: usize) -> Self {
        Self { slope: up(gamma(d) * f64::from(norm)), second: 0.0, floor: floor(norm), wild: wild(norm) }
    }

    /// For a screen of rounded operands: norms of the row, of its rounded form and of their difference.
    pub fn rounded(norm: f32, rounded: f32, rest: f32) -> Self {
        Self { slope: up(f64::from(rest) + 64.0 * U * f64::from(norm)), second: rounded, floor: floor(norm), wild: wild(norm) }
    }
}

impl LatentBounds {
    /// For an f32 screen.
    pub fn f32(norms: Vec<f32>, bias: &[f32]) -> Self {
        let wild = norms.iter().chain(bias).any(|v| wild(*v));
        Self { t: Vec::new(), a: norms, wild }
    }

    /// For a screen of rounded operands: norms of the latents, of their rounded forms and of the differences; `roundings` of a sum.
    pub fn rounded(norms: Vec<f32>, rounded: &[f32], rest: &[f32], bias: &[f32], roundings: usize) -> Self {
        let t = rounded.iter().zip(rest).map(|(&r, &dw)| up(f64::from(dw) + gamma(roundings) * f64::from(r))).collect();
        Self { t, ..Self::f32(norms, bias) }
    }
}

/// The bias' share of the slack.
pub fn of_bias(bias: f32) -> f32 {
    bias.abs() * (16.0 * U) as f32
}

fn floor(norm: f32) -> f32 {
    if norm == 0.0 {
        0.0
    } else {
        TINY
    }
}

/// NaN and infinity included.
fn wild(v: f32) -> bool {
    v.is_nan() || v.abs() >= WILD
}
