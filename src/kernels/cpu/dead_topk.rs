//! AuxK's forward pass: the k largest pre-activations of each row among few latents, decoded onto an error, block by block of rows.
//!
//! Here k is large (half the width, say) and the latents are few: a screen (`dead_screen`) leaves little more than what is wanted, whose
//! f32 products say the rest. The set is the exact one: entries within the products' bound of the k-th are scored in float64. The values
//! keep their f32 rounding.

use candle_core::Tensor;
use rayon::prelude::*;

use super::aligned::{below, Aligned};
use super::columns::Columns;
use super::dead_screen::{DeadScreen, Screened};
use super::dispatch::dispatched;
use super::encode::bound::{of_bias, RowBound};
use super::encode::exact::{norms, score, Entry};
use super::encode::{screen, Isa, Screen, BLOCK};
use super::latent_grad::products;
use super::storage::with_slices;
use super::vector::{combine, sq_norm};
use crate::error::Result;
use crate::kernels::Coder;

/// Most blocks of rows that pass the latents together.
const BLOCKS: usize = 2;
/// Latents whose rows stay in the second-level cache while these rows take from them.
const PANEL: usize = 64;

/// The latents' encoders, gathered.
struct Encoders {
    w: Aligned,
    bias: Vec<f32>,
    /// The largest norm and the largest bias, for the bound.
    norm: f32,
    bias_bound: f32,
}

/// Megabytes: not kept from call to call.
#[derive(Default)]
struct Scratch {
    x: Aligned,
    error: Aligned,
    lows: Vec<[f32; BLOCK]>,
    screened: [Screened; BLOCKS],
    at: Vec<usize>,
    norms: Vec<f32>,
    /// Per row: products of its list.
    values: Vec<Vec<f32>>,
    entries: Vec<Entry>,
}

/// What a block of rows selected: per row, slots of the list of latents, ascending, with their values.
#[derive(Default)]
struct Selected {
    starts: Vec<usize>,
    slots: Vec<u32>,
    values: Vec<f32>,
    /// Per row, of what the error became.
    squares: Vec<f32>,
}

/// See [`crate::kernels::dead_topk`].
pub fn dead_topk(x: &Tensor, error: &Tensor, coder: &Coder, latents: &[u32], k: usize) -> Result<(Columns, Tensor, f64)> {
    screened_by(screen(), x, error, coder, latents, k)
}

fn screened_by(screen: Screen, x: &Tensor, error: &Tensor, coder: &Coder, latents: &[u32], k: usize) -> Result<(Columns, Tensor, f64)> {
    let (n, d) = x.dims2()?;
    let (d_sae, d_out) = coder.w_dec.dims2()?;
    let mut out: Vec<f32> = super::encode::to_vec(error)?;
    // Few rows on many threads: each of them should have some.
    let rows = BLOCK * (n.div_ceil(2 * BLOCK * rayon::current_num_threads())).clamp(1, BLOCKS);
    let blocks: Vec<Selected> = with_slices(&[x, &coder.w_enc, &coder.b_enc, &coder.w_dec], |slices: &[&[f32]]| {
        let encoders = Encoders::gather(slices[1], slices[2], latents, d);
        let atoms = Aligned::gather(slices[3], d_out, latents);
        let screen = DeadScreen::new(&encoders.w, &encoders.bias, n, screen);
        (slices[0].par_chunks(rows * d), out.par_chunks_mut(rows * d_out))
            .into_par_iter()
            .map_init(Scratch::default, |scratch, (x, error)| {
                scratch.x.fill(x, d);
                let mut selected = encoders.select(&screen, k, scratch);
                selected.decode(error, &atoms, d_out, scratch);
                selected
            })
            .collect()
    })?;
    let columns = columns(&blocks, rows, d_sae, latents);
    let square = blocks.iter().flat_map(|b| &b.squares).map(|&s| f64::from(s)).sum();
    Ok((columns, Tensor::from_vec(out, (n, d_out), x.device())?, square))
}

impl Encoders {
    fn gather(w_enc: &[f32], b_enc: &[f32], latents: &[u32], d: usize) -> Self {
        let w = Aligned::gather(w_enc, d, latents);
        let bias: Vec<f32> = latents.iter().map(|&j| b_enc[j as usize]).collect();
        let mut all = Vec::new();
        norms(Isa::best(), w.slice(), w.width(), &mut all);
        // NaN is larger than anything here: it must reach the bound.
        let largest = |v: &[f32]| v.iter().fold(0f32, |most, &v| if v.is_nan() || v > most { v } else { most });
        let biases: Vec<f32> = bias.iter().map(|b| b.abs()).collect();
        Self { norm: largest(&all), bias_bound: largest(&biases), w, bias }
    }

    fn select(&self, screen: &DeadScreen<'_>, k: usize, scratch: &mut Scratch) -> Selected {
        let Scratch { x, lows, screened, at, norms: of_rows, values, entries, .. } = scratch;
        let d = x.width();
        for (x, screened) in x.slice().chunks(BLOCK * d).zip(&mut *screened) {
            screen.candidates(x, k, lows, screened);
        }
        self.products(x, screened, values, at);
        norms(Isa::best(), x.slice(), d, of_rows);
        let mut selected = Selected { starts: vec![0], ..Selected::default() };
        for (q, (x, &norm)) in x.slice().chunks_exact(d).zip(&*of_rows).enumerate() {
            let bound = RowBound::f32(norm, d);
            let e = bound.slope * self.norm + bound.floor + of_bias(self.bias_bound);
            let screened = &screened[q / BLOCK];
            if screened.whole[q % BLOCK] || !e.is_finite() {
                self.score_row(x, k, entries, &mut selected);
            } else {
                self.select_row(x, (&screened.lists[q % BLOCK], &values[q]), k, 2.0 * e, entries, &mut selected);
            }
            selected.starts.push(selected.slots.len());
        }
        selected
    }

    /// Pre-activations of the latents in each row's list, as f32 products round them.
    fn products(&self, x: &Aligned, screened: &[Screened], values: &mut Vec<Vec<f32>>, at: &mut Vec<usize>) {
        let rows = x.slice().len() / x.width();
        values.resize_with(rows.max(values.len()), Vec::new);
        let list = |q: usize| &screened[q / BLOCK].lists[q % BLOCK];
        (0..rows).for_each(|q| values[q].resize(list(q).len(), 0.0));
        at.clear();
        at.resize(rows, 0);
        for end in (PANEL..self.bias.len() + PANEL).step_by(PANEL) {
            for (q, (x, at)) in x.slice().chunks_exact(x.width()).zip(&mut *at).enumerate() {
                if q < PANEL {
                    self.w.prefetch(end + q);
                }
                let list = list(q);
                let span = *at..*at + below(&list[*at..], end);
                *at = span.end;
                let (list, values) = (&list[span.clone()], &mut values[q][span]);
                products(list, self.w.slice(), x, 1.0, 0.0, values);
                values.iter_mut().zip(list).for_each(|(v, &s)| *v += self.bias[s as usize]);
            }
        }
    }

    /// The k largest positive of a list of candidates; those `within` of the k-th are decided by their exact scores.
    fn select_row(&self, x: &[f32], (list, a): (&[u32], &[f32]), k: usize, within: f32, entries: &mut Vec<Entry>, out: &mut Selected) {
        let cut = kth_largest(a, k);
        let (low, high) = (cut - within, cut + within);
        let from = out.slots.len();
        keep(list, a, low, &mut out.slots, &mut out.values);
        entries.clear();
        let kept = out.slots[from..].iter().zip(&out.values[from..]);
        entries.extend(kept.filter(|(_, v)| **v <= high).map(|(&latent, _)| Entry { latent, row: 0, value: 0.0 }));
        let certain = out.slots.len() - from - entries.len();
        if entries.len() + certain <= k && low > 0.0 {
            return;
        }
        self.decide(x, k.saturating_sub(certain), entries);
        let mut decided = entries.iter().peekable();
        let mut to = from;
        for i in from..out.slots.len() {
            let (slot, v) = (out.slots[i], out.values[i]);
            let exact = decided.next_if(|e| e.latent == slot).map(|e| e.value);
            if exact.is_some() || v > high {
                // Its exact score is positive, its f32 product may not be.
                (out.slots[to], out.values[to]) = (slot, exact.filter(|_| v <= 0.0).unwrap_or(v));
                to += 1;
            }
        }
        out.slots.truncate(to);
        out.values.truncate(to);
    }

    /// The k largest positive of all latents, by exact scores alone.
    fn score_row(&self, x: &[f32], k: usize, entries: &mut Vec<Entry>, out: &mut Selected) {
        entries.clear();
        entries.extend((0..self.bias.len() as u32).map(|latent| Entry { latent, row: 0, value: 0.0 }));
        self.decide(x, k, entries);
        out.slots.extend(entries.iter().map(|e| e.latent));
        out.values.extend(entries.iter().map(|e| e.value));
    }

    /// Leaves the k entries with the largest positive exact scores, ascending by latent.
    fn decide(&self, x: &[f32], k: usize, entries: &mut Vec<Entry>) {
        score(Isa::best(), x, x.len(), self.w.slice(), &self.bias, entries);
        entries.retain(|e| e.value > 0.0);
        entries.sort_unstable_by(|a, b| b.value.total_cmp(&a.value).then(a.latent.cmp(&b.latent)));
        entries.truncate(k);
        entries.sort_unstable_by_key(|e| e.latent);
    }
}

/// The k-th largest of `a`; 0 where fewer are positive. Bisection over the bits, which are ordered as positive values are: a pass over a row
/// in cache costs less than moving its elements.
#[inline(always)]
fn kth_largest_body(a: &[f32], k: usize) -> f32 {
    // At least k reach `low`, fewer reach `high`. NaN reaches neither; its row is scored whole.
    let (mut low, mut high) = (0u32, f32::INFINITY.to_bits() + 1);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        let least = f32::from_bits(middle);
        let reach: u32 = a.iter().map(|&v| u32::from(v >= least)).sum();
        if reach as usize >= k {
            low = middle;
            if reach as usize == k {
                // The smallest of these k is it.
                return a.iter().filter(|v| **v >= least).fold(f32::INFINITY, |small, &v| small.min(v));
            }
        } else {
            high = middle;
        }
    }
    f32::from_bits(low)
}

/// Appends what of a list reaches `cut`.
#[inline(always)]
fn keep_body(list: &[u32], a: &[f32], cut: f32, slots: &mut Vec<u32>, values: &mut Vec<f32>) {
    let mut at = slots.len();
    slots.resize(at + a.len(), 0);
    values.resize(at + a.len(), 0.0);
    for (&slot, &v) in list.iter().zip(a) {
        (slots[at], values[at]) = (slot, v);
        at += usize::from(v >= cut);
    }
    slots.truncate(at);
    values.truncate(at);
}

dispatched! { fn kth_largest(a: &[f32], k: usize) -> f32 = kth_largest_body }
dispatched! { fn keep(list: &[u32], a: &[f32], cut: f32, slots: &mut Vec<u32>, values: &mut Vec<f32>) = keep_body }

impl Selected {
    /// Adds the selected atoms to the rows of `error`, and notes their squares.
    fn decode(&mut self, error: &mut [f32], atoms: &Aligned, d: usize, scratch: &mut Scratch) {
        let Scratch { error: sums, at, .. } = scratch;
        sums.fill(error, d);
        let (width, m) = (atoms.width(), atoms.slice().len() / atoms.width());
        at.clone_from(&self.starts);
        for end in (PANEL..m + PANEL).step_by(PANEL) {
            for (q, y) in sums.slice_mut().chunks_exact_mut(width).enumerate() {
                if q < PANEL {
                    atoms.prefetch(end + q);
                }
                let rest = &self.slots[at[q]..self.starts[q + 1]];
                let span = at[q]..at[q] + below(rest, end);
                at[q] = span.end;
                combine(&self.values[span.clone()], 1.0, &self.slots[span], atoms.slice(), y);
            }
        }
        sums.copy_to(error, d);
        self.squares.extend(error.chunks_exact(d).map(sq_norm));
    }
}

/// All entries by latent, over `d_sae`.
fn columns(blocks: &[Selected], rows_of_block: usize, d_sae: usize, latents: &[u32]) -> Columns {
    let mut counts = vec![0usize; latents.len()];
    blocks.iter().for_each(|b| b.slots.iter().for_each(|&s| counts[s as usize] += 1));
    let mut starts = vec![0usize; d_sae + 1];
    latents.iter().zip(&counts).for_each(|(&j, &c)| starts[j as usize + 1] = c);
    for j in 0..d_sae {
        starts[j + 1] += starts[j];
    }
    let total = starts[d_sae];
    let mut columns = Columns { rows: vec![0; total], values: vec![0.0; total], starts };
    // Each task fills the columns of its own latents: slots ascend within a row.
    let per_task = latents.len().div_ceil(rayon::current_num_threads()).max(1);
    let (mut rows, mut values) = (columns.rows.as_mut_slice(), columns.values.as_mut_slice());
    let mut tasks = Vec::new();
    for (first, counts) in counts.chunks(per_task).enumerate() {
        let len = counts.iter().sum();
        let ((own_rows, rest_rows), (own_values, rest_values)) = (rows.split_at_mut(len), values.split_at_mut(len));
        tasks.push((first * per_task, counts, own_rows, own_values));
        (rows, values) = (rest_rows, rest_values);
    }
    tasks.into_par_iter().for_each(|(first, counts, rows, values)| {
        let mut next: Vec<usize> = counts.iter().scan(0, |at, c| Some(std::mem::replace(at, *at + c))).collect();
        for (b, block) in blocks.iter().enumerate() {
            for (q, span) in block.starts.windows(2).enumerate() {
                let slots = &block.slots[span[0]..span[1]];
                let own = slots.partition_point(|&s| (s as usize) < first)..slots.partition_point(|&s| (s as usize) < first + counts.len());
                for i in own {
                    let at = &mut next[slots[i] as usize - first];
                    rows[*at] = (b * rows_of_block + q) as u32;
                    values[*at] = block.values[span[0] + i];
                    *at += 1;
                }
            }
        }
    });
    columns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use candle_core::Device;

    #[test]
    fn screens_and_threads_change_no_byte() {
        let mut rng = Rng::stream(5, "test", 0);
        let (n, m, d) = (300, 400, 37);
        let mut matrix = |rows: usize, scale: f32| -> Vec<f32> { (0..rows * d).map(|_| scale * rng.normal() as f32).collect() };
        let (mut w, mut x, w_dec, error) = (matrix(m, 0.2), matrix(n, 1.0), matrix(m, 0.2), matrix(n, 1.0));
        // Twins, twins but for the last bit, long latents, one of zeros; rows of zeros, huge, not numbers.
        for j in (2..m).step_by(5) {
            w.copy_within((j - 2) * d..(j - 1) * d, j * d);
            w[j * d] = if j % 2 == 0 { w[j * d].next_up() } else { w[j * d] };
        }
        w[7 * d..8 * d].iter_mut().for_each(|v| *v *= 300.0);
        w[9 * d..10 * d].fill(0.0);
        x[4 * d..5 * d].fill(0.0);
        x[5 * d..6 * d].iter_mut().for_each(|v| *v *= 1e20);
        (x[6 * d], x[70 * d + 3]) = (f32::NAN, f32::INFINITY);
        let tensor = |v: Vec<f32>| Tensor::from_vec(v.clone(), (v.len() / d, d), &Device::Cpu).unwrap();
        let bias: Vec<f32> = (0..m).map(|j| 0.01 * (j % 7) as f32 - 0.02).collect();
        let b_dec = Tensor::zeros(d, candle_core::DType::F32, &Device::Cpu).unwrap();
        let coder = Coder { w_enc: tensor(w), b_enc: Tensor::from_vec(bias, m, &Device::Cpu).unwrap(), w_dec: tensor(w_dec), b_dec };
        let (x, error) = (tensor(x), tensor(error));
        let latents: Vec<u32> = (1..m as u32).filter(|j| j % 3 != 0).collect();
        for k in [1, 18, 90, 250] {
            let of = |screen, threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let (c, sum, square) = pool.install(|| screened_by(screen, &x, &error, &coder, &latents, k)).unwrap();
                let sum = sum.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let bits = |v: Vec<f32>| v.into_iter().map(f32::to_bits).collect::<Vec<_>>();
                (c.starts, c.rows, bits(c.values), bits(sum), square.to_bits())
            };
            let one = of(Screen::Off, 1);
            assert!(one == of(Screen::Bf16, 1) && one == of(Screen::Bf16, 3) && one == of(Screen::Auto, 8), "k {k}");
        }
    }
}
