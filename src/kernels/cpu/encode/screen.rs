//! Which screen looks first, and the walk of a block of rows over the panels of the encoder.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::OnceLock;

use super::bf16;
use super::bound::{LatentBounds, RowBound};
use super::exact::norms;
use super::gate::{pass, LatentTerms, RowTerms};
use super::isa::Isa;
use super::panels::{product, BLOCK, PANEL};

/// What computes the products that decide which latents are worth an exact score. The results are the same bytes with any of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Screen {
    /// bf16 where the machine has its dot products and there are rows enough to pay for the rounding, else f32.
    Auto,
    /// f32.
    Off,
    /// bf16, in software where the machine has no such instruction.
    Bf16,
}

static CHOSEN: AtomicU8 = AtomicU8::new(0);

/// Sets the screen of this process.
pub fn set_screen(screen: Screen) {
    CHOSEN.store(screen as u8, Ordering::Relaxed);
}

/// The screen of this process.
pub fn screen() -> Screen {
    match CHOSEN.load(Ordering::Relaxed) {
        1 => Screen::Off,
        2 => Screen::Bf16,
        _ => Screen::Auto,
    }
}

/// Rows from which rounding the encoder pays.
const ROWS_FOR_BF16: usize = 256;

/// A panel as its screen needs it.
enum Prepared {
    F32(LatentBounds),
    Bf16(bf16::Panel),
}

/// An encoder during one call.
pub struct Encoder<'a> {
    pub w: &'a [f32],
    pub bias: &'a [f32],
    pub d: usize,
    isa: Isa,
    bf16: bool,
    panels: Vec<OnceLock<Prepared>>,
}

#[derive(Default)]
struct Scratch {
    products: Vec<f32>,
    rows: bf16::Rows,
    norms: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl<'a> Encoder<'a> {
    /// `w` `[d_sae, d]`, for a call with `n` rows.
    pub fn new(w: &'a [f32], bias: &'a [f32], d: usize, n: usize) -> Self {
        let isa = Isa::best();
        let bf16 = match screen() {
            Screen::Auto => isa == Isa::Avx512Bf16 && n >= ROWS_FOR_BF16,
            Screen::Off => false,
            Screen::Bf16 => true,
        };
        let panels = (0..bias.len().div_ceil(PANEL)).map(|_| OnceLock::new()).collect();
        Self { w, bias, d, isa, bf16, panels }
    }

    fn prepared(&self, panel: usize) -> &Prepared {
        self.panels[panel].get_or_init(|| {
            let first = panel * PANEL;
            let bias = &self.bias[first..self.bias.len().min(first + PANEL)];
            let w = &self.w[first * self.d..(first + bias.len()) * self.d];
            if self.bf16 {
                return Prepared::Bf16(bf16::Panel::new(self.isa, w, self.d, bias));
            }
            let mut of_rows = Vec::with_capacity(bias.len());
            norms(self.isa, w, self.d, &mut of_rows);
            Prepared::F32(LatentBounds::f32(of_rows, bias))
        })
    }

    /// Walks rows `x` `[rows <= BLOCK, d]` over all latents in order; `keep(terms, latent's terms, latent, row, product)` sees those that
    /// may pass, and may raise `terms.threshold`. Also tells which rows must be scored whole: their bound does not hold.
    pub fn walk(
        &self,
        x: &[f32],
        rank: impl Fn(usize) -> f32,
        threshold: impl Fn(usize) -> Option<f32>,
        mut keep: impl FnMut(&mut RowTerms, &LatentTerms, u32, usize, f32),
    ) -> Vec<bool> {
        let rows = x.len() / self.d;
        let mut terms = RowTerms::default();
        let mut whole = vec![false; rows];
        // Taken out, so that what `keep` calls may encode too.
        let mut scratch = SCRATCH.take();
        let bounds: Vec<RowBound> = if self.bf16 {
            scratch.rows.fill(self.isa, x, self.d);
            scratch.rows.bounds.clone()
        } else {
            norms(self.isa, x, self.d, &mut scratch.norms);
            scratch.norms.iter().map(|&norm| RowBound::f32(norm, self.d)).collect()
        };
        let mut live = 0u64;
        for (q, bound) in bounds.iter().enumerate() {
            if bound.wild {
                whole[q] = true;
                continue;
            }
            live |= 1 << q;
            (terms.slope[q], terms.second[q], terms.floor[q]) = (bound.slope, bound.second, bound.floor);
            terms.threshold[q] = f32::from_bits(1);
        }
        scratch.products.resize(PANEL * BLOCK, 0.0);
        for panel in 0..self.panels.len() {
            let first = panel * PANEL;
            let m = PANEL.min(self.bias.len() - first);
            let mut look = |bounds: &LatentBounds, i: usize, pre: &[f32; BLOCK]| {
                let j = first + i;
                let t = bounds.t.get(i).copied().unwrap_or(0.0);
                let latent = LatentTerms { bias: self.bias[j], a: bounds.a[i], t, rank: rank(j), threshold: threshold(j) };
                let mut mask = pass(self.isa, &terms, &latent, pre) & live;
                while mask != 0 {
                    let q = mask.trailing_zeros() as usize;
                    mask &= mask - 1;
                    keep(&mut terms, &latent, j as u32, q, pre[q]);
                }
            };
            let wild = match self.prepared(panel) {
                Prepared::F32(bounds) => {
                    let w = &self.w[first * self.d..(first + m) * self.d];
                    product(x, rows, self.d, w, BLOCK, &mut scratch.products);
                    let (lines, _) = scratch.products.as_chunks::<BLOCK>();
                    lines.iter().take(m).enumerate().for_each(|(i, pre)| look(bounds, i, pre));
                    bounds.wild
                }
                Prepared::Bf16(panel) => {
                    bf16::screen(self.isa, &scratch.rows, panel, m, |i, pre| look(&panel.bounds, i, pre));
                    panel.bounds.wild
                }
            };
            if wild {
                whole.fill(true);
                break;
            }
        }
        SCRATCH.set(scratch);
        whole
    }
}
