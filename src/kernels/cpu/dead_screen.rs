//! Which dead latents may be among the k largest of each row of a block. Here k is a good part of them, so the k-th lies where values are
//! dense: bytes would let twice as many pass as are wanted, bf16 lets a few percent more pass.
//!
//! All rows of a block are worked on at once, a lane per row.

use rayon::prelude::*;

use super::aligned::Aligned;
use super::dispatch::dispatched;
use super::encode::bound::{of_bias, LatentBounds, RowBound};
use super::encode::exact::norms;
use super::encode::gate::RowTerms;
use super::encode::{bf16, product, Isa, Screen, BLOCK};

/// Rows from which rounding the latents pays.
const ROWS_FOR_ROUNDING: usize = 256;
/// Latents that are rounded by one task: a multiple of the kernel's group.
const PANEL: usize = 20 * bf16::GROUP;
/// Halvings of the interval that the k-th lies in.
const STEPS: usize = 10;
/// The least value that can be selected.
const LEAST: f32 = f32::from_bits(1);

/// The latents as they are screened.
pub(super) struct DeadScreen<'a> {
    isa: Isa,
    w: &'a Aligned,
    bias: &'a [f32],
    prepared: Prepared,
    /// Is any latent beyond what the bound holds for?
    wild: bool,
}

enum Prepared {
    F32(LatentBounds),
    Bf16(Vec<bf16::Panel>),
}

/// A block of rows while it is screened.
#[derive(Default)]
pub(super) struct Screened {
    rounded: bf16::Rows,
    norms: Vec<f32>,
    terms: RowTerms,
    /// Per row: what may be among its k largest, ascending.
    pub lists: Vec<Vec<u32>>,
    /// Per row: does the bound not hold? Then its list is empty.
    pub whole: Vec<bool>,
}

/// What the bound takes from a latent.
#[derive(Clone, Copy)]
struct LatentTerms {
    bias: f32,
    a: f32,
    t: f32,
    slack: f32,
}

impl LatentTerms {
    fn of(bounds: &LatentBounds, i: usize, bias: f32) -> Self {
        Self { bias, a: bounds.a[i], t: bounds.t.get(i).copied().unwrap_or(0.0), slack: of_bias(bias) }
    }
}

/// How far the product with a row can be from the score.
#[inline(always)]
fn error(rows: &RowTerms, latent: &LatentTerms, q: usize) -> f32 {
    rows.slope[q] * latent.a + rows.second[q] * latent.t + (rows.floor[q] + latent.slack)
}

#[inline(always)]
fn lower_body(rows: &RowTerms, latent: &LatentTerms, pre: &[f32; BLOCK], low: &mut [f32; BLOCK]) {
    for q in 0..BLOCK {
        low[q] = (pre[q] + latent.bias) - error(rows, latent, q);
    }
}

/// A bit for each row whose threshold the upper bound reaches.
#[inline(always)]
fn reach_body(rows: &RowTerms, latent: &LatentTerms, low: &[f32; BLOCK]) -> u64 {
    let mut mask = 0;
    for (q, low) in low.iter().enumerate() {
        mask |= u64::from(low + 2.0 * error(rows, latent, q) >= rows.threshold[q]) << q;
    }
    mask
}

/// [`reach_body`] with masks in registers: compilers make bits one by one. A product may be fused: the bound has room for a rounding.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn reach_avx512(rows: &RowTerms, latent: &LatentTerms, low: &[f32; BLOCK]) -> u64 {
    use std::arch::x86_64::{_mm512_add_ps, _mm512_cmp_ps_mask, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _CMP_GE_OQ};
    let (a, t, slack, two) = (_mm512_set1_ps(latent.a), _mm512_set1_ps(latent.t), _mm512_set1_ps(latent.slack), _mm512_set1_ps(2.0));
    let mut mask = 0;
    for l in 0..BLOCK / 16 {
        // SAFETY: all arrays have BLOCK elements, and 16 l + 16 <= BLOCK.
        let load = |of: &[f32; BLOCK]| unsafe { _mm512_loadu_ps(of.as_ptr().add(16 * l)) };
        let e = _mm512_fmadd_ps(load(&rows.slope), a, _mm512_add_ps(load(&rows.floor), slack));
        let e = _mm512_fmadd_ps(load(&rows.second), t, e);
        let high = _mm512_fmadd_ps(two, e, load(low));
        mask |= u64::from(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(high, load(&rows.threshold))) << (16 * l);
    }
    mask
}

fn reach(rows: &RowTerms, latent: &LatentTerms, low: &[f32; BLOCK]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if Isa::best().is_wide() {
        // SAFETY: the instructions were detected on this machine.
        return unsafe { reach_avx512(rows, latent, low) };
    }
    reach_body(rows, latent, low)
}

/// How many of each row's values reach `least`.
#[inline(always)]
fn count_body(lows: &[[f32; BLOCK]], least: &[f32; BLOCK], counts: &mut [u32; BLOCK]) {
    let mut sums = [0u32; BLOCK];
    for low in lows {
        for q in 0..BLOCK {
            sums[q] += u32::from(low[q] >= least[q]);
        }
    }
    *counts = sums;
}

#[inline(always)]
fn largest_body(lows: &[[f32; BLOCK]], largest: &mut [f32; BLOCK]) {
    for low in lows {
        for q in 0..BLOCK {
            largest[q] = if low[q] > largest[q] { low[q] } else { largest[q] };
        }
    }
}

dispatched! { fn lower(rows: &RowTerms, latent: &LatentTerms, pre: &[f32; BLOCK], low: &mut [f32; BLOCK]) = lower_body }
dispatched! { fn count(lows: &[[f32; BLOCK]], least: &[f32; BLOCK], counts: &mut [u32; BLOCK]) = count_body }
dispatched! { fn largest(lows: &[[f32; BLOCK]], largest: &mut [f32; BLOCK]) = largest_body }

impl<'a> DeadScreen<'a> {
    /// For `n` rows; `w` `[latents, width]`.
    pub fn new(w: &'a Aligned, bias: &'a [f32], n: usize, chosen: Screen) -> Self {
        let (isa, d) = (Isa::best(), w.width());
        let round = match chosen {
            Screen::Off => false,
            Screen::Bf16 => true,
            Screen::Auto | Screen::Int8 => isa.bf16 && n >= ROWS_FOR_ROUNDING,
        };
        let prepared = if round {
            let panels = w.slice().par_chunks(PANEL * d).zip(bias.par_chunks(PANEL));
            Prepared::Bf16(panels.map(|(w, bias)| bf16::Panel::new(isa, w, d, bias)).collect())
        } else {
            let mut of_latents = Vec::new();
            norms(isa, w.slice(), d, &mut of_latents);
            Prepared::F32(LatentBounds::f32(of_latents, bias))
        };
        let wild = match &prepared {
            Prepared::F32(bounds) => bounds.wild,
            Prepared::Bf16(panels) => panels.iter().any(|p| p.bounds.wild),
        };
        Self { isa, w, bias, prepared, wild }
    }

    /// Fills in the lists of rows `x` `[rows, width]`, `rows` at most a block; `lows` becomes lower bounds of the scores, `[latents]`.
    pub fn candidates(&self, x: &[f32], k: usize, lows: &mut Vec<[f32; BLOCK]>, to: &mut Screened) {
        let rows = x.len() / self.w.width();
        to.lists.resize_with(BLOCK, Vec::new);
        to.lists.iter_mut().for_each(Vec::clear);
        lows.resize(self.bias.len(), [0.0; BLOCK]);
        self.bounds_of_rows(x, rows, to);
        if to.terms.live == 0 {
            return;
        }
        self.lows(x, rows, to, lows);
        thresholds(lows, k, &mut to.terms);
        self.each_latent(|j, latent| {
            let mut mask = reach(&to.terms, latent, &lows[j]) & to.terms.live;
            while mask != 0 {
                to.lists[mask.trailing_zeros() as usize].push(j as u32);
                mask &= mask - 1;
            }
        });
    }

    fn bounds_of_rows(&self, x: &[f32], rows: usize, to: &mut Screened) {
        let d = self.w.width();
        let bounds: &[RowBound] = match self.prepared {
            Prepared::Bf16(_) => {
                to.rounded.fill(self.isa, x, d);
                &to.rounded.bounds
            }
            Prepared::F32(_) => {
                norms(self.isa, x, d, &mut to.norms);
                &to.norms.iter().map(|&norm| RowBound::f32(norm, d)).collect::<Vec<_>>()
            }
        };
        to.terms = RowTerms::default();
        to.whole.clear();
        to.whole.resize(rows, self.wild);
        for (q, bound) in bounds.iter().enumerate().take(rows) {
            to.whole[q] |= bound.wild;
            if !to.whole[q] {
                to.terms.live |= 1 << q;
                (to.terms.slope[q], to.terms.second[q], to.terms.floor[q]) = (bound.slope, bound.second, bound.floor);
            }
        }
    }

    fn lows(&self, x: &[f32], rows: usize, to: &Screened, lows: &mut [[f32; BLOCK]]) {
        let Screened { rounded, terms, .. } = to;
        match &self.prepared {
            Prepared::Bf16(panels) => {
                for ((panel, lows), bias) in panels.iter().zip(lows.chunks_mut(PANEL)).zip(self.bias.chunks(PANEL)) {
                    bf16::screen(self.isa, rounded, panel, lows.len(), |first, lines| {
                        for (i, line) in (first..).zip(lines) {
                            lower(terms, &LatentTerms::of(&panel.bounds, i, bias[i]), line, &mut lows[i]);
                        }
                    });
                }
            }
            Prepared::F32(bounds) => {
                product(x, rows, self.w.width(), self.w.slice(), BLOCK, lows.as_flattened_mut());
                for (i, low) in lows.iter_mut().enumerate() {
                    let pre = *low;
                    lower(terms, &LatentTerms::of(bounds, i, self.bias[i]), &pre, low);
                }
            }
        }
    }

    fn each_latent(&self, mut f: impl FnMut(usize, &LatentTerms)) {
        match &self.prepared {
            Prepared::F32(bounds) => (0..self.bias.len()).for_each(|j| f(j, &LatentTerms::of(bounds, j, self.bias[j]))),
            Prepared::Bf16(panels) => {
                (0..self.bias.len()).for_each(|j| f(j, &LatentTerms::of(&panels[j / PANEL].bounds, j % PANEL, self.bias[j])));
            }
        }
    }
}

/// Raises each live row's threshold to a value that the lower bounds of k latents reach, near the largest such; [`LEAST`] where fewer than
/// k are sure to be positive.
fn thresholds(lows: &[[f32; BLOCK]], k: usize, terms: &mut RowTerms) {
    let mut low = [LEAST; BLOCK];
    let mut high = [LEAST; BLOCK];
    largest(lows, &mut high);
    let (mut middle, mut counts) = ([0f32; BLOCK], [0u32; BLOCK]);
    for _ in 0..STEPS {
        for q in 0..BLOCK {
            middle[q] = low[q] + (high[q] - low[q]) * 0.5;
        }
        count(lows, &middle, &mut counts);
        for q in 0..BLOCK {
            if counts[q] as usize >= k {
                low[q] = middle[q];
            } else {
                high[q] = middle[q];
            }
        }
    }
    for q in (0..BLOCK).filter(|q| terms.live >> q & 1 == 1) {
        terms.threshold[q] = low[q];
    }
}
