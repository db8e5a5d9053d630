//! Products of a block of rows with panels of a matrix, one panel at a time, in cache.
//!
//! The panel is the left operand and the destination is token-contiguous: measured faster than the natural orientation, which repacks the
//! big matrix for every block of rows.

use std::cell::RefCell;

/// Rows per block.
pub const BLOCK: usize = 64;
/// Latents per panel: 1020 x 64 f32 is 255 KiB, which stays in the second-level cache; a multiple of the bf16 kernel's 6.
pub const PANEL: usize = 1020;

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Calls `visit(first_latent, pre)` for each panel, `pre` `[panel][rows]`: products without bias, which `visit` may write over.
pub fn panels(x: &[f32], rows: usize, d: usize, w: &[f32], d_sae: usize, mut visit: impl FnMut(usize, &mut [f32])) {
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.resize(PANEL * BLOCK, 0.0);
        for first in (0..d_sae).step_by(PANEL) {
            let m = PANEL.min(d_sae - first);
            product(x, rows, d, &w[first * d..(first + m) * d], rows, scratch);
            visit(first, &mut scratch[..m * rows]);
        }
    });
}

/// `dst[j][q] = <w_j, x_q>` with rows of `dst` `stride` apart; `w` `[m, d]`, `x` `[rows, d]`, `rows <= stride`.
pub fn product(x: &[f32], rows: usize, d: usize, w: &[f32], stride: usize, dst: &mut [f32]) {
    let m = w.len() / d;
    assert!(rows <= stride && m * stride <= dst.len() && rows * d <= x.len());
    // SAFETY: dst covers m x rows with strides (stride, 1), as asserted; lhs is the [m, d] matrix `w`; rhs covers the [rows, d] matrix
    // `x`, read transposed. dst is not read.
    unsafe {
        gemm::gemm(
            m,
            rows,
            d,
            dst.as_mut_ptr(),
            1,
            stride as isize,
            false,
            w.as_ptr(),
            1,
            d as isize,
            x.as_ptr(),
            d as isize,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// `[panel][n]` into columns `first..` of `[n][m]`.
pub fn transpose(pre: &[f32], n: usize, out: &mut [f32], m: usize, first: usize) {
    const TILE: usize = 16;
    for (t, tile) in pre.chunks(TILE * n).enumerate() {
        let from = first + t * TILE;
        for (q, row) in out.chunks_exact_mut(m).enumerate().take(n) {
            for (o, line) in row[from..].iter_mut().zip(tile.chunks_exact(n)) {
                *o = line[q];
            }
        }
    }
}
