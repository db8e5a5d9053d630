//! Launches of `kernels/decode.cu`: reconstructions, errors and their squares.

use super::columns::RowCodes;
use super::engine::{Arg, Engine, Grid};
use super::reduce::Matrix;
use super::rows::{block, Kind};
use crate::error::Result;

/// What the sum of atoms is added to.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(test), allow(dead_code))]
pub enum Base {
    /// Nothing.
    Nothing,
    /// The same for each row, f32 `[d]`.
    Shared(u64),
    /// A matrix of rows, f32 `[n, d]`.
    Rows(u64),
}

/// Where decoded rows go; 0 stands for nowhere.
#[derive(Debug, Clone, Copy, Default)]
pub struct Decoded {
    /// f32 `[n, d]`; may be the base.
    pub full: u64,
    /// bf16 `[n, d]`.
    pub half: u64,
    /// Sums of squares of the rows, f64 `[n]`.
    pub squares: u64,
}

/// `factor base + sum_j v_j W_j` over entries of latents `latents`, in the entries' order. `w` is the decoder or its shadow.
///
/// # Errors
/// Rows that no block can hold, a launch that fails.
pub fn decode(
    engine: &dyn Engine,
    w: &Matrix,
    (base, factor): (Base, f32),
    codes: &RowCodes,
    latents: std::ops::Range<usize>,
    to: &Decoded,
) -> Result<()> {
    let (at, stride) = match base {
        Base::Nothing => (0, 0),
        Base::Shared(at) => (at, 0),
        Base::Rows(at) => (at, w.d as u64),
    };
    let shape = block(&[w.d], if w.kind == Kind::Bf16 { 8 } else { 4 }, &[w.at, at, to.full, to.half])?;
    let kernel = w.kind.pick(shape.odd, ["decode_f32", "decode_bf16", "decode_f32_odd", "decode_bf16_odd"]);
    let [ends, k, capacity, indices] = codes.args();
    let [from, end, d] = [latents.start, latents.end.min(w.n), w.d].map(|v| Arg::from(v as u32));
    let [out, half, squares] = [to.full, to.half, to.squares].map(Arg::Ptr);
    let (weights, base, values) = (Arg::Ptr(w.at), Arg::Ptr(at), Arg::Ptr(codes.values));
    let args = [weights, base, stride.into(), factor.into(), ends, k, capacity, indices, values, from, end, d, out, half, squares];
    engine.launch(kernel, Grid::line(codes.n, shape.threads), &args)
}

/// The errors after each prefix of the latents that ends at one of `ends`, one after the other: f32 `[prefixes, n, d]` at `errors`, each
/// row's squares f64 `[prefixes, n]` at `squares`. `base` is what the rows should have been, f32 `[n, d]`.
///
/// # Errors
/// As [`decode`].
pub fn nested(engine: &dyn Engine, w: &Matrix, base: u64, codes: &RowCodes, ends: &[usize], errors: u64, squares: u64) -> Result<()> {
    let (mut from, mut before) = (0, (Base::Rows(base), -1.0));
    for (p, &to) in ends.iter().enumerate() {
        let full = errors + (4 * p * codes.n * w.d) as u64;
        decode(engine, w, before, codes, from..to, &Decoded { full, half: 0, squares: squares + (8 * p * codes.n) as u64 })?;
        (from, before) = (to, (Base::Rows(full), 1.0));
    }
    Ok(())
}

/// The sums of `errors` f32 `[groups, n, d]` from each group on: in place, or rounded to bf16 at `half` where that is not 0.
///
/// # Errors
/// A launch that fails.
pub fn suffix_sums(engine: &dyn Engine, errors: u64, groups: usize, count: usize, half: u64) -> Result<()> {
    let args = [Arg::Ptr(errors), (groups as u32).into(), (count as u64).into(), Arg::Ptr(half)];
    engine.launch("suffix_sums", Grid::threads(count), &args)
}
