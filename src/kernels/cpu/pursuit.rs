//! Matching pursuit over blocks of rows. With the Gram matrix a row's inner products stay in cache and each step is one pass over
//! them, fused with the search for the next atom; without it each step is one fused product and search for all live rows of a block.
//!
//! A step's coefficient is always the inner product with the residual itself, and inner products are computed anew from the residual
//! every [`REFRESH`] steps: rounding can swap two atoms that are equal to f32, and nothing else.

use std::cell::RefCell;

use candle_core::Tensor;
use rayon::prelude::*;

use super::dispatch::dispatched;
use super::encode::{panels, to_vec, transpose, BLOCK};
use super::storage::with_slices;
use super::vector::{axpy, dot, sq_norm};
use crate::codes::PAD;
use crate::error::Result;
use crate::kernels::{Pick, PursuitPath, PursuitRule};

/// Steps between fresh inner products.
const REFRESH: usize = 32;
/// Elements per search chunk.
const CHUNK: usize = 512;
const LANES: usize = 16;

thread_local! {
    static PRODUCTS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// One row on its way.
pub(super) struct Row<'a> {
    pub residual: &'a mut [f32],
    pub indices: &'a mut [u32],
    pub values: &'a mut [f32],
    pub taken: usize,
    pub live: bool,
    /// The squared norm below which the row ends; 0 for never.
    floor: f32,
}

impl<'a> Row<'a> {
    pub fn new(residual: &'a mut [f32], indices: &'a mut [u32], values: &'a mut [f32], rule: &PursuitRule) -> Self {
        let size = if rule.relative { sq_norm(residual) } else { 1.0 };
        Self { floor: rule.tolerance * rule.tolerance * size, residual, indices, values, taken: 0, live: true }
    }

    /// Takes one step; the coefficient, if the row goes on.
    fn take(&mut self, j: usize, atom: &[f32], rule: &PursuitRule) -> Option<f32> {
        let v = dot(self.residual, atom);
        let moves = match rule.pick {
            Pick::NonNeg => v > 0.0,
            // A step of 0 would only repeat itself, NaN spread.
            Pick::Max | Pick::Signed => v != 0.0 && !v.is_nan(),
        };
        if !moves {
            self.live = false;
            return None;
        }
        axpy(-v, atom, self.residual);
        let repeated = rule.stop_on_repeat && self.indices[..self.taken].contains(&(j as u32));
        self.indices[self.taken] = j as u32;
        self.values[self.taken] = v;
        self.taken += 1;
        self.live = self.taken < rule.steps && !repeated && !self.is_small();
        self.live.then_some(v)
    }

    pub fn is_small(&self) -> bool {
        self.floor > 0.0 && sq_norm(self.residual) < self.floor
    }
}

/// See [`crate::kernels::pursuit`].
pub fn pursuit(x: &Tensor, atoms: &Tensor, gram: Option<&Tensor>, rule: &PursuitRule) -> Result<PursuitPath> {
    let tensors: Vec<&Tensor> = std::iter::once(atoms).chain(gram).collect();
    with_slices(&tensors, |slices: &[&[f32]]| match slices {
        [atoms, gram] => over_blocks(x, rule, |rows, d| by_gram(rows, d, atoms, gram, rule)),
        [atoms] => over_blocks(x, rule, |rows, d| by_atoms(rows, d, atoms, rule)),
        _ => unreachable!("one or two tensors went in"),
    })?
}

/// Runs `f` on blocks of rows, in parallel, and collects the paths.
pub(super) fn over_blocks(x: &Tensor, rule: &PursuitRule, f: impl Fn(&mut [Row<'_>], usize) + Sync) -> Result<PursuitPath> {
    let (n, d) = x.dims2()?;
    let steps = rule.steps;
    let mut residual: Vec<f32> = to_vec(x)?;
    let mut indices = vec![PAD; n * steps];
    let mut values = vec![0f32; n * steps];
    (residual.par_chunks_mut(BLOCK * d), indices.par_chunks_mut(BLOCK * steps), values.par_chunks_mut(BLOCK * steps))
        .into_par_iter()
        .for_each(|(residual, indices, values)| {
            let parts = residual.chunks_exact_mut(d).zip(indices.chunks_exact_mut(steps)).zip(values.chunks_exact_mut(steps));
            let mut rows: Vec<Row<'_>> = parts.map(|((r, i), v)| Row::new(r, i, v, rule)).collect();
            f(&mut rows, d);
        });
    Ok(PursuitPath {
        indices: Tensor::from_vec(indices, (n, steps), x.device())?,
        values: Tensor::from_vec(values, (n, steps), x.device())?,
        residual: Tensor::from_vec(residual, (n, d), x.device())?,
    })
}

/// The live rows, and their residuals side by side.
pub(super) fn gather<'r, 'a>(rows: &'r mut [Row<'a>], residuals: &mut Vec<f32>) -> Vec<&'r mut Row<'a>> {
    residuals.clear();
    let live: Vec<&mut Row<'a>> = rows.iter_mut().filter(|r| r.live).collect();
    live.iter().for_each(|r| residuals.extend_from_slice(r.residual));
    live
}

/// Steps that update inner products by rows of the Gram matrix.
fn by_gram(rows: &mut [Row<'_>], d: usize, atoms: &[f32], gram: &[f32], rule: &PursuitRule) {
    let m = atoms.len() / d;
    let mut residuals = Vec::new();
    PRODUCTS.with_borrow_mut(|products| loop {
        let mut live = gather(rows, &mut residuals);
        let n = live.len();
        if n == 0 {
            break;
        }
        products.resize(n * m, 0.0);
        panels(&residuals, n, d, atoms, m, |first, pre| transpose(pre, n, products, m, first));
        for (row, p) in live.iter_mut().zip(products.chunks_exact_mut(m)) {
            let mut best = search(p, None, rule.pick);
            for step in 1..=REFRESH {
                let Some(j) = best else {
                    row.live = false;
                    break;
                };
                let Some(v) = row.take(j, &atoms[j * d..(j + 1) * d], rule) else { break };
                if step < REFRESH {
                    best = search(p, Some((v, &gram[j * m..(j + 1) * m])), rule.pick);
                }
            }
        }
    });
}

/// Steps that meet all atoms again.
fn by_atoms(rows: &mut [Row<'_>], d: usize, atoms: &[f32], rule: &PursuitRule) {
    let mut residuals = Vec::new();
    loop {
        let mut live = gather(rows, &mut residuals);
        if live.is_empty() {
            break;
        }
        let best = best_atoms(&residuals, live.len(), d, atoms, rule.pick, |_, _| {});
        for (row, best) in live.iter_mut().zip(best) {
            match best {
                Some(j) => drop(row.take(j, &atoms[j * d..(j + 1) * d], rule)),
                None => row.live = false,
            }
        }
    }
}

/// The atom that each of `n` residuals picks; `mask` may put NaN on inner products (`[panel][rows]`, from a first latent) beforehand.
pub(super) fn best_atoms(
    residuals: &[f32],
    n: usize,
    d: usize,
    atoms: &[f32],
    pick: Pick,
    mut mask: impl FnMut(usize, &mut [f32]),
) -> Vec<Option<usize>> {
    let mut best = [floor_of(pick); BLOCK];
    let mut at = vec![None; n];
    panels(residuals, n, d, atoms, atoms.len() / d, |first, pre| {
        mask(first, pre);
        if pick == Pick::Signed {
            pre.iter_mut().for_each(|p| *p = p.abs());
        }
        for (j, line) in pre.chunks_exact(n).enumerate() {
            let any = line.iter().zip(&best).fold(false, |any, (p, b)| any | (p > b));
            if any {
                for ((p, best), at) in line.iter().zip(&mut best).zip(&mut at) {
                    if p > best {
                        (*best, *at) = (*p, Some(first + j));
                    }
                }
            }
        }
    });
    at
}

/// What an inner product (or its size) must exceed to be picked.
fn floor_of(pick: Pick) -> f32 {
    match pick {
        Pick::NonNeg | Pick::Signed => 0.0,
        Pick::Max => f32::NEG_INFINITY,
    }
}

/// Subtracts `v` times a Gram row, if given, and finds the atom to pick, in one pass.
fn search(p: &mut [f32], update: Option<(f32, &[f32])>, pick: Pick) -> Option<usize> {
    match pick {
        Pick::Signed => sweep_sizes(p, update, floor_of(pick)),
        _ => sweep_values(p, update, floor_of(pick)),
    }
}

#[inline(always)]
fn size<const ABS: bool>(p: f32) -> f32 {
    if ABS {
        p.abs()
    } else {
        p
    }
}

dispatched! { fn sweep_values(p: &mut [f32], update: Option<(f32, &[f32])>, floor: f32) -> Option<usize> = sweep::<false> }
dispatched! { fn sweep_sizes(p: &mut [f32], update: Option<(f32, &[f32])>, floor: f32) -> Option<usize> = sweep::<true> }

#[inline(always)]
fn sweep<const ABS: bool>(p: &mut [f32], update: Option<(f32, &[f32])>, floor: f32) -> Option<usize> {
    let mut best = floor;
    let mut at = None;
    for (c, p) in p.chunks_mut(CHUNK).enumerate() {
        if let Some((v, gram)) = update {
            for (p, g) in p.iter_mut().zip(&gram[c * CHUNK..]) {
                *p -= v * g;
            }
        }
        // NaN fails every comparison, so lanes hold none.
        let mut lanes = [best; LANES];
        let (full, rest) = p.as_chunks::<LANES>();
        for x in full {
            for (lane, &x) in lanes.iter_mut().zip(x) {
                let x = size::<ABS>(x);
                *lane = if x > *lane { x } else { *lane };
            }
        }
        let most = lanes.iter().copied().chain(rest.iter().map(|&x| size::<ABS>(x))).fold(best, |a, x| if x > a { x } else { a });
        if most > best {
            (best, at) = (most, Some(c));
        }
    }
    // The first chunk that reached the maximum holds its lowest index.
    let c = at?;
    p[c * CHUNK..].iter().position(|&x| size::<ABS>(x) == best).map(|i| c * CHUNK + i)
}
