//! Inner products of all pairs of atoms: the upper blocks are computed, the lower ones copied.

use candle_core::Tensor;
use rayon::prelude::*;

use super::storage::{with_slice, with_slices_mut};
use crate::error::Result;

/// Atoms per block: two blocks of atoms and one of results stay in the second-level cache.
const BLOCK: usize = 256;
/// Side of the tiles in which a block is transposed.
const TILE: usize = 16;

/// The matrix, reachable from several threads; each touches its own blocks.
#[derive(Clone, Copy)]
struct Shared(*mut f32);
// SAFETY: `fill_gram` hands every element to exactly one task.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

impl Shared {
    fn at(&self, offset: usize) -> *mut f32 {
        // SAFETY: callers stay inside the matrix.
        unsafe { self.0.add(offset) }
    }
}

/// See [`crate::kernels::fill_gram`].
pub fn fill_gram(atoms: &Tensor, gram: &Tensor) -> Result<()> {
    let (m, d) = atoms.dims2()?;
    let blocks = m.div_ceil(BLOCK);
    let pairs: Vec<(usize, usize)> = (0..blocks).flat_map(|i| (i..blocks).map(move |j| (i * BLOCK, j * BLOCK))).collect();
    with_slice(atoms, |w: &[f32]| {
        with_slices_mut(&[gram], &mut |slices| {
            let out = Shared(slices[0].as_mut_ptr());
            pairs.par_iter().for_each(|&(i, j)| {
                let (rows, columns) = (BLOCK.min(m - i), BLOCK.min(m - j));
                // SAFETY: dst covers rows i.., columns j.. of the [m, m] matrix, which only this task touches; lhs covers rows
                // i..i + rows of the [m, d] matrix `w`; rhs its rows j..j + columns, read transposed. dst is not read.
                unsafe {
                    gemm::gemm(
                        rows,
                        columns,
                        d,
                        out.at(i * m + j),
                        1,
                        m as isize,
                        false,
                        w[i * d..].as_ptr(),
                        1,
                        d as isize,
                        w[j * d..].as_ptr(),
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
                if i != j {
                    mirror(out, m, i..i + rows, j..j + columns);
                }
            });
        })
    })?
}

/// Copies block (rows, columns) to (columns, rows), which belongs to the same task and does not overlap.
fn mirror(out: Shared, m: usize, rows: std::ops::Range<usize>, columns: std::ops::Range<usize>) {
    for i in rows.clone().step_by(TILE) {
        for j in columns.clone().step_by(TILE) {
            for b in j..(j + TILE).min(columns.end) {
                for a in i..(i + TILE).min(rows.end) {
                    // SAFETY: both places are inside the matrix and belong to the calling task.
                    unsafe { *out.at(b * m + a) = *out.at(a * m + b) };
                }
            }
        }
    }
}
