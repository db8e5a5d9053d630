//! Which screen looks first, and the walk of rows over the panels of the encoder.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, AtomicU8, Ordering};
use std::sync::OnceLock;

use rayon::prelude::*;

use super::bound::{LatentBounds, RowBound};
use super::exact::norms;
use super::gate::{offer, LatentTerms, RowTerms};
use super::isa::Isa;
use super::panels::{product, BLOCK, PANEL};
use super::{bf16, int8};

/// What computes the products that decide which latents are worth an exact score. The results are the same bytes with any of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Screen {
    /// The fastest one for the shape on this machine.
    Auto,
    /// f32.
    Off,
    /// bf16, in software where the machine has no such instruction.
    Bf16,
    /// Bytes, in software where the machine has no such instruction.
    Int8,
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
        3 => Screen::Int8,
        _ => Screen::Auto,
    }
}

/// What screens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Products as they are.
    F32,
    /// Operands rounded to bf16.
    Bf16,
    /// Operands rounded to bytes.
    Int8,
}

/// A panel as its screen needs it.
enum Prepared {
    F32(LatentBounds),
    Bf16(bf16::Panel),
    Int8(int8::Panel),
}

/// An encoder during one call.
pub struct Encoder<'a> {
    pub w: &'a [f32],
    pub bias: &'a [f32],
    pub d: usize,
    pub isa: Isa,
    mode: Mode,
    outliers: Vec<usize>,
    /// Latents per panel.
    panel: usize,
    panels: Vec<OnceLock<Prepared>>,
    /// Bits of the largest norm of a latent in the panels made so far.
    longest: AtomicU32,
}

/// Rows of one block as the screen needs them, and what the gate knows of them.
#[derive(Default)]
struct Block {
    bf16: bf16::Rows,
    int8: int8::Rows,
    terms: RowTerms,
}

#[derive(Default)]
struct Scratch {
    products: Vec<f32>,
    blocks: Vec<Block>,
    norms: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// A panel of rounded latents takes about half of a second-level cache.
const PANEL_BYTES: usize = 384 << 10;

impl<'a> Encoder<'a> {
    /// `w` `[d_sae, d]`, for rows like `x`.
    pub fn new(isa: Isa, mode: Mode, w: &'a [f32], bias: &'a [f32], x: &[f32], d: usize) -> Self {
        let mode = if mode == Mode::Int8 && d > int8::WIDEST { Mode::Bf16 } else { mode };
        let outliers = if mode == Mode::Int8 { int8::outliers(x, d) } else { Vec::new() };
        let group = bf16::GROUP;
        let panel = match mode {
            Mode::F32 => PANEL,
            Mode::Bf16 => (PANEL_BYTES / (2 * d) / group).clamp(8, PANEL / group) * group,
            Mode::Int8 => (PANEL_BYTES / d / group).clamp(8, PANEL / group) * group,
        };
        let panels = (0..bias.len().div_ceil(panel)).map(|_| OnceLock::new()).collect();
        Self { w, bias, d, isa, mode, outliers, panel, panels, longest: AtomicU32::new(0) }
    }

    /// What screens.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Makes all panels now rather than as they are come to.
    pub fn prepare(&self) {
        (0..self.panels.len()).into_par_iter().for_each(|panel| {
            self.prepared(panel);
        });
    }

    fn prepared(&self, panel: usize) -> &Prepared {
        self.panels[panel].get_or_init(|| {
            let first = panel * self.panel;
            let bias = &self.bias[first..self.bias.len().min(first + self.panel)];
            let w = &self.w[first * self.d..(first + bias.len()) * self.d];
            let prepared = match self.mode {
                Mode::Bf16 => Prepared::Bf16(bf16::Panel::new(self.isa, w, self.d, bias)),
                Mode::Int8 => Prepared::Int8(int8::Panel::new(self.isa, w, self.d, bias, &self.outliers)),
                Mode::F32 => {
                    let mut of_rows = Vec::with_capacity(bias.len());
                    norms(self.isa, w, self.d, &mut of_rows);
                    Prepared::F32(LatentBounds::f32(of_rows, bias))
                }
            };
            let (Prepared::F32(bounds) | Prepared::Bf16(bf16::Panel { bounds, .. }) | Prepared::Int8(int8::Panel { bounds, .. })) =
                &prepared;
            let longest = bounds.a.iter().copied().fold(0f32, f32::max);
            // Norms are not negative: their bits are ordered.
            self.longest.fetch_max(longest.to_bits(), Ordering::Relaxed);
            prepared
        })
    }

    /// Could f32 products of this row put `kept` and `rejected`, two scores, the other way round?
    pub fn near(&self, row: &[f32], kept: f32, rejected: f32, norms: &mut Vec<f32>) -> bool {
        let gap = kept - rejected;
        if gap > kept * 0.1 {
            return false;
        }
        super::exact::norms(self.isa, row, self.d, norms);
        let longest = f32::from_bits(self.longest.load(Ordering::Relaxed));
        gap <= 2.0 * RowBound::f32(norms[0], self.d).slope * longest
    }

    fn fill(&self, block: &mut Block, x: &[f32], of_rows: &mut Vec<f32>, whole: &mut [bool]) {
        let bounds: &[RowBound] = match self.mode {
            Mode::Bf16 => {
                block.bf16.fill(self.isa, x, self.d);
                &block.bf16.bounds
            }
            Mode::Int8 => {
                block.int8.fill(self.isa, x, self.d, &self.outliers);
                &block.int8.bounds
            }
            Mode::F32 => {
                norms(self.isa, x, self.d, of_rows);
                &of_rows.iter().map(|&norm| RowBound::f32(norm, self.d)).collect::<Vec<_>>()
            }
        };
        let mut terms = RowTerms::default();
        for (q, bound) in bounds.iter().enumerate() {
            if bound.wild {
                whole[q] = true;
                continue;
            }
            terms.live |= 1 << q;
            (terms.slope[q], terms.second[q], terms.floor[q]) = (bound.slope, bound.second, bound.floor);
            terms.threshold[q] = f32::from_bits(1);
        }
        block.terms = terms;
    }

    /// Walks rows `x` `[rows, d]` over all latents in order; `keep(latent, row, low, high)` sees bounds of the scores that may pass, times
    /// `rank`, and may raise the row's threshold. Also tells which rows must be scored whole: their bound does not hold.
    pub fn walk(
        &self,
        x: &[f32],
        rank: impl Fn(usize) -> f32,
        threshold: impl Fn(usize) -> Option<f32>,
        mut keep: impl FnMut(u32, usize, f32, f32) -> Option<f32>,
    ) -> Vec<bool> {
        let rows = x.len() / self.d;
        let mut whole = vec![false; rows];
        // Taken out, so that what `keep` calls may encode too.
        let mut scratch = SCRATCH.take();
        scratch.blocks.resize_with(rows.div_ceil(BLOCK).max(scratch.blocks.len()), Block::default);
        for ((x, whole), block) in x.chunks(BLOCK * self.d).zip(whole.chunks_mut(BLOCK)).zip(&mut scratch.blocks) {
            self.fill(block, x, &mut scratch.norms, whole);
        }
        scratch.products.resize(PANEL * BLOCK, 0.0);
        'panels: for panel in 0..self.panels.len() {
            let first = panel * self.panel;
            let m = self.panel.min(self.bias.len() - first);
            let prepared = self.prepared(panel);
            for (b, (x, block)) in x.chunks(BLOCK * self.d).zip(&mut scratch.blocks).enumerate() {
                let Block { bf16, int8, terms } = block;
                let mut look = |bounds: &LatentBounds, start: usize, lines: &[[f32; BLOCK]]| {
                    let latent = |i: usize| {
                        let (i, j) = (start + i, first + start + i);
                        let t = bounds.t.get(i).copied().unwrap_or(0.0);
                        LatentTerms { bias: self.bias[j], a: bounds.a[i], t, rank: rank(j), threshold: threshold(j) }
                    };
                    offer(self.isa, terms, lines, latent, &mut |i, q, low, high| {
                        keep((first + start + i) as u32, b * BLOCK + q, low, high)
                    });
                };
                let wild = match prepared {
                    Prepared::F32(bounds) => {
                        let w = &self.w[first * self.d..(first + m) * self.d];
                        product(x, x.len() / self.d, self.d, w, BLOCK, &mut scratch.products);
                        look(bounds, 0, &scratch.products.as_chunks::<BLOCK>().0[..m]);
                        bounds.wild
                    }
                    Prepared::Bf16(panel) => {
                        bf16::screen(self.isa, bf16, panel, m, |i, lines| look(&panel.bounds, i, lines));
                        panel.bounds.wild
                    }
                    Prepared::Int8(panel) => {
                        int8::screen(self.isa, int8, panel, m, |i, lines| look(&panel.bounds, i, lines));
                        panel.bounds.wild
                    }
                };
                if wild {
                    whole.fill(true);
                    break 'panels;
                }
            }
        }
        SCRATCH.set(scratch);
        whole
    }
}
