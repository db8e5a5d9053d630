//! How wide a block is that holds rows in its registers (`kernels/rows.cuh`), and which variant of a kernel reads them. Pure.

use crate::error::{Error, Result};

/// Elements of a row that a thread owns at most.
const ITEMS: usize = 8;
/// Threads of a block at most, and of one whose rows are read element by element (their addresses take registers).
const THREADS: [usize; 2] = [1024, 896];
/// Neighbouring elements that a thread reads at once where rows allow it.
pub const RUN: usize = 4;

/// How rows that are gathered lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Four bytes each.
    F32,
    /// Two bytes each.
    Bf16,
}

impl Kind {
    /// One of four names: f32, bf16, and the same for rows that are not aligned.
    pub fn pick(self, odd: bool, names: [&'static str; 4]) -> &'static str {
        names[usize::from(self == Self::Bf16) + 2 * usize::from(odd)]
    }
}

/// A block for rows of some width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// Its threads, whole warps.
    pub threads: u32,
    /// Are elements read one by one?
    pub odd: bool,
}

/// The block for rows of `widths`, read `run` elements at a time where widths and `addresses` allow it (16 bytes of f32 at most).
///
/// # Errors
/// Rows that no block can hold.
pub fn block(widths: &[usize], run: usize, addresses: &[u64]) -> Result<Block> {
    let odd = widths.iter().any(|d| d % run != 0) || addresses.iter().any(|a| a % 16 != 0);
    let run = if odd { 1 } else { run };
    let d = widths.iter().copied().max().unwrap_or_default();
    let runs = d.div_ceil(run).max(1);
    let fewest = runs.div_ceil(ITEMS / run).div_ceil(32) * 32;
    let most = THREADS[usize::from(odd)];
    if fewest > most {
        return Err(Error::Unsupported {
            by: "the CUDA kernels".into(),
            what: format!("rows of {d} elements, more than {}", ITEMS * most),
            instead: "train on the CPU".into(),
        });
    }
    // Few threads idle in the last round, then few threads.
    let idle = |threads: usize| (runs.div_ceil(threads) * threads, threads);
    let threads = (fewest..=most).step_by(32).min_by_key(|&t| idle(t)).unwrap_or(fewest);
    Ok(Block { threads: threads as u32, odd })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_hold_their_rows_and_waste_little() {
        for (d, run, threads) in [(64, 4, 32), (128, 4, 32), (768, 4, 96), (2304, 4, 288), (4096, 4, 512), (8192, 4, 1024), (768, 8, 96)] {
            assert_eq!(block(&[d], run, &[256]).unwrap(), Block { threads, odd: false }, "{d}");
        }
        for d in 1..3000 {
            for run in [4, 8] {
                let b = block(&[d], run, &[]).unwrap();
                assert_eq!(b.odd, d % run != 0);
                assert!(b.threads.is_multiple_of(32) && b.threads as usize * ITEMS >= d, "{d}: {b:?}");
            }
        }
        assert!(block(&[8193], 4, &[]).is_err() && block(&[7170], 4, &[]).is_err());
    }

    #[test]
    fn rows_that_are_not_aligned_are_read_one_by_one() {
        assert!(block(&[64], 4, &[16, 8]).unwrap().odd);
        assert!(block(&[64, 30], 4, &[16]).unwrap().odd);
        assert_eq!(Kind::Bf16.pick(true, ["a", "b", "c", "d"]), "d");
        assert_eq!(Kind::F32.pick(false, ["a", "b", "c", "d"]), "a");
    }
}
