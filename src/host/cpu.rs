//! The decoder's operations on f32 rows in memory, in parallel over fixed tiles: what candle computes in several passes is done in one.
//!
//! Every tile is computed by one thread from start to end and the tiles depend on the shapes alone, so the bytes do not depend on the
//! number of threads. The obvious version of each operation is in `layers.rs`; tests hold the two together.

use std::ops::Deref;

use candle_core::{CpuStorage, Device, Layout, Storage, Tensor};
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::math::{self, widest};
use super::spec::{Activation, AttentionSpec, NormKind, NormSpec};
use crate::error::Result;

/// Rows and columns of a tile of a matrix product: each tile packs its operands anew, so wide tiles cost less; narrow ones feed more
/// cores, so they are taken where wide ones would be few.
const TILE_ROWS: usize = 512;
const TILE_COLS: [usize; 2] = [512, 256];
const FEW_TILES: usize = 8;
/// Queries of one attention tile. Half of a tile's last square of scores is masked, so smaller wastes less and packs more.
const TILE_QUERIES: usize = 64;
/// Rows of a tile of an elementwise operation.
const FEW_ROWS: usize = 16;

/// Read access to a tensor in memory.
pub(super) struct View<'a, G> {
    guard: G,
    layout: &'a Layout,
}

/// Of a tensor in memory, which the caller's device says.
pub(super) fn view(x: &Tensor) -> View<'_, impl Deref<Target = Storage> + '_> {
    let (guard, layout) = x.storage_and_layout();
    View { guard, layout }
}

impl<G: Deref<Target = Storage>> View<'_, G> {
    /// All elements from the tensor's first on.
    fn tail(&self) -> Result<&[f32]> {
        match &*self.guard {
            Storage::Cpu(CpuStorage::F32(values)) => Ok(&values[self.layout.start_offset()..]),
            _ => Err(candle_core::Error::Msg("the fused host operations need f32 tensors in memory".into()).into()),
        }
    }

    /// The elements of a contiguous tensor.
    pub fn slice(&self) -> Result<&[f32]> {
        if !self.layout.is_contiguous() {
            return Err(candle_core::Error::Msg("the fused host operations need contiguous tensors".into()).into());
        }
        Ok(&self.tail()?[..self.layout.shape().elem_count()])
    }

    /// A matrix with any strides, in f32 or half precision.
    fn weight(&self) -> Result<Weight<'_>> {
        let start = self.layout.start_offset();
        let (rows, cols) = self.layout.shape().dims2()?;
        let (row_stride, col_stride) = (self.layout.stride()[0], self.layout.stride()[1]);
        Ok(match &*self.guard {
            Storage::Cpu(CpuStorage::F32(data)) => Weight::Full(Matrix { data: &data[start..], rows, cols, row_stride, col_stride }),
            Storage::Cpu(CpuStorage::BF16(data)) => Weight::Brain(Matrix { data: &data[start..], rows, cols, row_stride, col_stride }),
            Storage::Cpu(CpuStorage::F16(data)) => Weight::Half(Matrix { data: &data[start..], rows, cols, row_stride, col_stride }),
            _ => return Err(candle_core::Error::Msg("the fused host operations need weights of f32, bf16 or f16 in memory".into()).into()),
        })
    }
}

/// The weight of a product, `[in, out]`.
enum Weight<'a> {
    Full(Matrix<'a>),
    Brain(Matrix<'a, half::bf16>),
    Half(Matrix<'a, half::f16>),
}

impl Weight<'_> {
    fn shape(&self) -> (usize, usize) {
        match self {
            Self::Full(m) => (m.rows, m.cols),
            Self::Brain(m) => (m.rows, m.cols),
            Self::Half(m) => (m.rows, m.cols),
        }
    }

    /// Columns `col..col + cols`, widened into `scratch` if they are in half precision.
    fn columns<'s>(&'s self, col: usize, cols: usize, scratch: &'s mut Vec<f32>) -> Matrix<'s> {
        match self {
            Self::Full(m) => m.window(0, m.rows, col, cols),
            Self::Brain(m) => m.window(0, m.rows, col, cols).widened(scratch, |half, wide| half.convert_to_f32_slice(wide)),
            Self::Half(m) => m.window(0, m.rows, col, cols).widened(scratch, |half, wide| half.convert_to_f32_slice(wide)),
        }
    }
}

/// A matrix in a slice.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a, T = f32> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a, T: Copy> Matrix<'a, T> {
    fn transposed(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// `rows` x `cols` elements from (`row`, `col`) on.
    fn window(self, row: usize, rows: usize, col: usize, cols: usize) -> Self {
        assert!(row + rows <= self.rows && col + cols <= self.cols, "window outside its matrix");
        Self { data: &self.data[row * self.row_stride + col * self.col_stride..], rows, cols, ..self }
    }

    /// A copy in f32, along whichever dimension lies together.
    fn widened(self, scratch: &mut Vec<f32>, widen: impl Fn(&[T], &mut [f32])) -> Matrix<'_> {
        if self.row_stride == 1 && self.col_stride != 1 {
            return self.transposed().widened(scratch, widen).transposed();
        }
        assert!(self.col_stride == 1 || self.cols == 1, "a weight whose elements lie apart");
        scratch.resize(self.rows * self.cols, 0.0);
        for (r, row) in scratch.chunks_exact_mut(self.cols).enumerate() {
            widen(&self.data[r * self.row_stride..][..self.cols], row);
        }
        Matrix::strided(scratch, self.rows, self.cols, self.cols)
    }
}

impl<'a> Matrix<'a> {
    /// Row-major, `rows` x `cols` of a wider row.
    fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// Does every element lie in `data`?
    fn is_inside(&self) -> bool {
        self.rows > 0 && self.cols > 0 && (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride < self.data.len()
    }
}

/// Where a product goes: row-major, one tile of a wider buffer.
#[derive(Clone, Copy)]
struct Out(*mut f32);
// SAFETY: the tiles written through it are disjoint (see `linear` and `attention`).
unsafe impl Send for Out {}
// SAFETY: as above.
unsafe impl Sync for Out {}

/// `out[r, c] = scale * sum_k a[r, k] b[k, c]`, on this thread. `out` has rows `out_stride` apart and is not read.
///
/// # Safety
/// `out` must be writable for `(a.rows - 1) * out_stride + b.cols` elements that nobody else touches meanwhile.
unsafe fn product(out: *mut f32, out_stride: usize, a: Matrix, b: Matrix, scale: f32) {
    assert!(a.cols == b.rows && a.is_inside() && b.is_inside(), "matrix product of shapes that do not fit");
    // SAFETY: both operands lie inside their slices (asserted), the caller vouches for `out`.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            out,
            1,
            out_stride as isize,
            false,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            0.0,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

impl Out {
    /// A pointer into the buffer. (A method, so that closures capture the wrapper and not the bare pointer in it.)
    fn at(self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}

/// What happens to a finished row of a product, while it is in cache.
#[derive(Clone, Copy)]
pub(super) struct Finish {
    pub activation: Option<Activation>,
    /// Round to bf16 (after the bias and after the activation).
    pub round: bool,
}

/// `x w + bias`, `x`: `[n, k]` row-major, `w`: `[k, m]`, then `finish`. Returns `[n, m]`.
pub(super) fn linear<G: Deref<Target = Storage>>(x: &[f32], w: &View<'_, G>, bias: Option<&[f32]>, finish: Finish) -> Result<Vec<f32>> {
    let w = w.weight()?;
    let (k, m) = w.shape();
    let n = x.len() / k;
    let x = Matrix::strided(x, n, k, k);
    let mut out: Vec<f32> = Vec::with_capacity(n * m);
    let target = Out(out.as_mut_ptr());
    let row_tiles = n.div_ceil(TILE_ROWS);
    let [wide, narrow] = TILE_COLS;
    let tile_cols = if row_tiles * m.div_ceil(wide) >= FEW_TILES { wide } else { narrow };
    let col_tiles = m.div_ceil(tile_cols);
    (0..row_tiles * col_tiles).into_par_iter().for_each_init(Vec::new, |scratch, tile| {
        let (row, col) = (tile / col_tiles * TILE_ROWS, tile % col_tiles * tile_cols);
        let (rows, cols) = (TILE_ROWS.min(n - row), tile_cols.min(m - col));
        // SAFETY: the tile lies inside the `n * m` elements reserved, tiles do not overlap, and `product` writes all of it before
        // the rows below are read.
        unsafe {
            let first = target.at(row * m + col);
            product(first, m, x.window(row, rows, 0, k), w.columns(col, cols, scratch), 1.0);
            for r in 0..rows {
                finish_row(std::slice::from_raw_parts_mut(first.add(r * m), cols), bias.map(|b| &b[col..col + cols]), finish);
            }
        }
    });
    // SAFETY: the tiles cover all `n * m` elements.
    unsafe { out.set_len(n * m) };
    Ok(out)
}

fn finish_row(row: &mut [f32], bias: Option<&[f32]>, finish: Finish) {
    if let Some(bias) = bias {
        row.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
    }
    if finish.round {
        round(row);
    }
    if let Some(activation) = finish.activation {
        activate(row, activation);
        if finish.round {
            round(row);
        }
    }
}

widest! {
    fn round(row: &mut [f32]) {
        for x in row {
            *x = math::round_to_bf16(*x);
        }
    }
}

widest! {
    fn activate(row: &mut [f32], activation: Activation) {
        match activation {
            Activation::Gelu => row.iter_mut().for_each(|x| *x = math::gelu(*x)),
            Activation::GeluNew => row.iter_mut().for_each(|x| *x = math::gelu_new(*x)),
            Activation::Silu => row.iter_mut().for_each(|x| *x = math::silu(*x)),
            Activation::Relu => row.iter_mut().for_each(|x| *x = if *x < 0.0 { 0.0 } else { *x }),
            Activation::Relu2 => row.iter_mut().for_each(|x| *x = if *x < 0.0 { 0.0 } else { *x * *x }),
            Activation::QuickGelu => row.iter_mut().for_each(|x| *x = math::quick_gelu(*x)),
        }
    }
}

/// `act(gate) * up` from rows that hold gate then up, `[n, 2 d]`. Returns `[n, d]`.
pub(super) fn gate(both: &[f32], d: usize, activation: Activation, rounds: bool) -> Vec<f32> {
    let mut out = vec![0f32; both.len() / 2];
    out.par_chunks_mut(d * FEW_ROWS).zip(both.par_chunks(2 * d * FEW_ROWS)).for_each(|(out, both)| {
        for (row, both) in out.chunks_exact_mut(d).zip(both.chunks_exact(2 * d)) {
            let (gate, up) = both.split_at(d);
            row.copy_from_slice(gate);
            finish_row(row, None, Finish { activation: Some(activation), round: rounds });
            row.iter_mut().zip(up).for_each(|(x, u)| *x *= u);
            if rounds {
                round(row);
            }
        }
    });
    out
}

/// A norm of each row of `x`, `[n, d]`. The mean is taken out before squaring, so a large common offset does not cancel digits away.
pub(super) fn norm(x: &[f32], spec: NormSpec, weight: &[f32], bias: Option<&[f32]>, rounds: bool) -> Vec<f32> {
    let d = weight.len();
    let mut out = vec![0f32; x.len()];
    out.par_chunks_mut(d * FEW_ROWS).zip(x.par_chunks(d * FEW_ROWS)).for_each(|(out, x)| {
        for (row, x) in out.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
            row.copy_from_slice(x);
            norm_row(row, spec, weight, bias, rounds);
        }
    });
    out
}

fn norm_row(row: &mut [f32], spec: NormSpec, weight: &[f32], bias: Option<&[f32]>, rounds: bool) {
    let n = row.len() as f32;
    let mean = match spec.kind {
        NormKind::Layer => math::sum(row) / n,
        NormKind::Rms | NormKind::RmsLate => 0.0,
    };
    let scale = 1.0 / (math::sum_squares(row, mean) / n + spec.eps as f32).sqrt();
    row.iter_mut().for_each(|x| *x = (*x - mean) * scale);
    if rounds && spec.kind == NormKind::Rms {
        round(row);
    }
    row.iter_mut().zip(weight).for_each(|(y, w)| *y *= w);
    finish_row(row, bias, Finish { activation: None, round: rounds });
}

/// Norms of queries and keys, in place; `qkv` as in [`attention`]. A weight as wide as a head is each head's, a wider one all heads'.
pub(super) fn qk_norm(qkv: &mut [f32], spec: &AttentionSpec, q: &[f32], k: &[f32], rounds: bool) {
    let (n_q, n_kv) = (spec.n_heads * spec.d_head, spec.n_kv_heads * spec.d_head);
    qkv.par_chunks_mut((n_q + 2 * n_kv) * FEW_ROWS).for_each(|rows| {
        for row in rows.chunks_exact_mut(n_q + 2 * n_kv) {
            let (queries, rest) = row.split_at_mut(n_q);
            for (part, weight) in [(queries, q), (&mut rest[..n_kv], k)] {
                part.chunks_exact_mut(weight.len()).for_each(|head| norm_row(head, spec.norm, weight, None, rounds));
            }
        }
    });
}

/// `cap * tanh(x / cap)`.
pub(super) fn softcap(x: &[f32], cap: f32) -> Vec<f32> {
    let mut out = x.to_vec();
    out.par_chunks_mut(1 << 14).for_each(|chunk| soften(chunk, cap));
    out
}

/// `a + b`.
pub(super) fn add(a: &[f32], b: &[f32], rounds: bool) -> Vec<f32> {
    const CHUNK: usize = 1 << 14;
    let mut out = vec![0f32; a.len()];
    out.par_chunks_mut(CHUNK).zip(a.par_chunks(CHUNK)).zip(b.par_chunks(CHUNK)).for_each(|((out, a), b)| {
        out.iter_mut().zip(a.iter().zip(b)).for_each(|(y, (a, b))| *y = a + b);
        if rounds {
            round(out);
        }
    });
    out
}

/// Rotates the first `2 * half` dimensions of each query and key head, in place. `qkv` as in [`attention`]; `cos`, `sin`: `[t, half]`.
pub(super) fn rope(qkv: &mut [f32], spec: &AttentionSpec, cos: &[f32], sin: &[f32], half: usize, rounds: bool) {
    let (t, d) = (cos.len() / half, spec.d_head);
    let rotated = (spec.n_heads + spec.n_kv_heads) * d;
    qkv.par_chunks_mut(rotated + spec.n_kv_heads * d).enumerate().for_each(|(row, qkv)| {
        let at = row % t * half;
        let (cos, sin) = (&cos[at..at + half], &sin[at..at + half]);
        for head in qkv[..rotated].chunks_exact_mut(d) {
            let (first, second) = head[..2 * half].split_at_mut(half);
            for (((a, b), c), s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
            }
        }
        if rounds {
            round(&mut qkv[..rotated]);
        }
    });
}

/// Causal attention. `qkv`: `[b * t, (n_heads + 2 n_kv_heads) * d_head]`, rows q | k | v; `mask`: `[b * t]`, 0 = a key nobody sees.
/// Returns z, `[b * t, n_heads * d_head]`.
///
/// A query none of whose keys may be seen (it is padding itself) gets the mean of all values, as in Hugging Face's eager attention,
/// where all scores are then the same lowest number.
pub(super) fn attention(qkv: &[f32], t: usize, spec: &AttentionSpec, mask: Option<&[u8]>) -> Vec<f32> {
    let d = spec.d_head;
    let (z_width, kv_width) = (spec.n_heads * d, spec.n_kv_heads * d);
    let width = z_width + 2 * kv_width;
    let group = spec.n_heads / spec.n_kv_heads;
    let n = qkv.len() / width;
    let mut z = vec![0f32; n * z_width];
    let tiles: Vec<(usize, usize, &mut [f32])> = z
        .chunks_mut(t * z_width)
        .enumerate()
        .flat_map(|(i, rows)| rows.chunks_mut(TILE_QUERIES * z_width).enumerate().map(move |(j, tile)| (i, j * TILE_QUERIES, tile)))
        .collect();
    // The last tiles of a row have the most keys: they go first.
    tiles.into_par_iter().rev().for_each(|(i, from, z)| {
        let queries = z.len() / z_width;
        let to = from + queries; // keys from here on are in the future of every query
        let start = spec.window.map_or(0, |w| (from + 1).saturating_sub(w));
        let rows = Matrix::strided(&qkv[i * t * width..(i + 1) * t * width], t, width, width);
        let mask = mask.map(|m| &m[i * t..(i + 1) * t]);
        let keys = to - start;
        let mut scores = vec![0f32; queries * keys];
        for head in 0..spec.n_heads {
            let q = rows.window(from, queries, head * d, d);
            let k = rows.window(start, keys, z_width + head / group * d, d);
            let v_col = z_width + kv_width + head / group * d;
            // SAFETY: `scores` has `queries` rows of `keys`.
            unsafe { product(scores.as_mut_ptr(), keys, q, k.transposed(), spec.scale as f32) };
            let mut unseeing = Vec::new();
            for (r, row) in scores.chunks_exact_mut(keys).enumerate() {
                let low = spec.window.map_or(start, |w| (from + r + 1).saturating_sub(w).max(start));
                let seen = low - start..from + r + 1 - start;
                row[..seen.start].fill(0.0);
                row[seen.end..].fill(0.0);
                if !weigh(&mut row[seen], spec.softcap, mask.map(|m| &m[low..from + r + 1])) {
                    unseeing.push(r);
                }
            }
            let p = Matrix::strided(&scores, queries, keys, keys);
            // SAFETY: `z` has `queries` rows of `z_width`, of which head `head` owns columns `head * d..head * d + d`.
            unsafe { product(z.as_mut_ptr().add(head * d), z_width, p, rows.window(start, keys, v_col, d), 1.0) };
            for r in unseeing {
                let z = &mut z[r * z_width + head * d..][..d];
                z.fill(0.0);
                for key in rows.data.chunks_exact(width) {
                    z.iter_mut().zip(&key[v_col..v_col + d]).for_each(|(z, v)| *z += v / t as f32);
                }
            }
        }
    });
    z
}

/// Scores of the keys in sight become weights, in place. False when the mask hides all of them.
fn weigh(row: &mut [f32], softcap: Option<f64>, mask: Option<&[u8]>) -> bool {
    if let Some(cap) = softcap {
        soften(row, cap as f32);
    }
    let Some(mask) = mask else {
        math::softmax(row);
        return true;
    };
    if mask.iter().all(|&m| m == 0) {
        row.fill(0.0);
        return false;
    }
    row.iter_mut().zip(mask).filter(|(_, &m)| m == 0).for_each(|(x, _)| *x = f32::NEG_INFINITY);
    math::softmax(row);
    // Exactly zero: `math::exp` does not go below 1e-38.
    row.iter_mut().zip(mask).filter(|(_, &m)| m == 0).for_each(|(x, _)| *x = 0.0);
    true
}

widest! {
    fn soften(row: &mut [f32], cap: f32) {
        for x in row {
            *x = cap * math::tanh(*x / cap);
        }
    }
}

/// Every value rounded to bf16.
pub(super) fn rounded(mut x: Vec<f32>) -> Vec<f32> {
    x.par_chunks_mut(1 << 14).for_each(round);
    x
}

/// Rows as a tensor, `[n, width]`, without a copy.
pub(super) fn tensor(rows: Vec<f32>, width: usize) -> Result<Tensor> {
    let n = rows.len() / width;
    Ok(Tensor::from_vec(rows, (n, width), &Device::Cpu)?)
}
