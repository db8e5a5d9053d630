//! Launches of the fused encodes (`kernels/encode_hopper.cu`, `encode_ampere.cu`): scores that are never stored, bf16 in, exact top-k of f32
//! sums out, as lists that `finish` sorts. Not for exactness against float64 (`encode::certified`).

use super::super::resident::DeviceEncode;
use super::encode::{finish, Lists};
use super::engine::{Arg, Buffer, Engine, Grid, TileMap};
use crate::error::Result;

/// Which of the kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernel {
    /// sm_90a: copy engine and products by a warpgroup.
    Hopper,
    /// sm_80 and later: products by a warp.
    Ampere,
    /// The same in less shared memory.
    AmpereSmall,
}

impl Kernel {
    /// Tile of latents, lists per row and split, threads, shared memory, and what a tile may add to a list.
    fn shape(self) -> (usize, usize, u32, usize, usize) {
        match self {
            Self::Hopper => (256, 4, 384, 200_704, 65),
            Self::Ampere => (128, 8, 128, 99_328, 17),
            Self::AmpereSmall => (128, 8, 128, 66_560, 17),
        }
    }
}

/// Rows of a block.
const ROWS: usize = 128;

/// Latents per row that the kernels were written for.
const MOST: usize = 512;

/// Matrices of one step, and where it is done.
#[derive(Debug)]
pub struct Fused {
    kernel: Kernel,
    splits: usize,
    operands: [Arg; 2],
    bounds: Buffer,
    lists: Lists,
}

/// How many blocks share the latents of the same rows: the number that needs the fewest rounds of tiles, the smallest of equal ones.
fn splits(row_blocks: usize, tiles: usize, multiprocessors: usize) -> usize {
    let rounds = |s: usize| (row_blocks * s).div_ceil(multiprocessors.max(1)) * tiles.div_ceil(s);
    (1..=tiles.clamp(1, 16)).min_by_key(|&s| (rounds(s), s)).unwrap_or(1)
}

impl Fused {
    /// For x `[n, d]` and W `[d_sae, d]`, bf16; `None` where no fused kernel fits, or another was asked for.
    ///
    /// # Errors
    /// No memory on the device.
    pub fn new(
        engine: &dyn Engine,
        wanted: DeviceEncode,
        (x, w): (&Buffer, &Buffer),
        (n, d_sae, d): (usize, usize, usize),
        k: usize,
    ) -> Result<Option<Self>> {
        let kernel = match (wanted, engine.capability()) {
            (DeviceEncode::Hopper, _) | (DeviceEncode::Auto, 90..=99) => Kernel::Hopper,
            (DeviceEncode::Auto, 86..=89) => Kernel::AmpereSmall,
            (DeviceEncode::Ampere, _) | (DeviceEncode::Auto, 80..=89) => Kernel::Ampere,
            _ => return Ok(None),
        };
        let (tile, per_split, _, _, adds) = kernel.shape();
        let splits = splits(n.div_ceil(ROWS), d_sae.div_ceil(tile), engine.multiprocessors());
        let (lists_per_row, cap) = (per_split * splits, (k + k / 10 + adds).next_multiple_of(8));
        // Offsets into the lists are 32 bits.
        if d % 8 != 0 || k > MOST || 8 * n * lists_per_row * cap >= 1 << 32 {
            return Ok(None);
        }
        let operands = match kernel {
            Kernel::Hopper => {
                let map = |address, rows: usize| {
                    engine.map(&TileMap { address, columns: d as u64, rows: rows as u64, stride: 2 * d as u64, box_: [64, 128] })
                };
                [Arg::Map(map(x.address, n)?), Arg::Map(map(w.address, d_sae)?)]
            }
            _ => [x.into(), w.into()],
        };
        let lists = Lists { lists_per_row, ..Lists::new(engine, n * lists_per_row, cap)? };
        Ok(Some(Self { kernel, splits, operands, bounds: engine.alloc(4 * n)?, lists }))
    }

    /// The k largest positive scores of each row, sorted: `values` and `indices` `[n, k]`, `lengths` `[n]`.
    ///
    /// # Errors
    /// A launch that fails.
    #[allow(clippy::too_many_arguments)]
    pub fn encode(
        &self,
        engine: &dyn Engine,
        bias: u64,
        (n, d_sae, d): (usize, usize, usize),
        k: usize,
        values: &Buffer,
        indices: &Buffer,
        lengths: &Buffer,
    ) -> Result<()> {
        let (_, _, threads, shared, _) = self.kernel.shape();
        let name = match self.kernel {
            Kernel::Hopper => "encode_hopper",
            Kernel::Ampere => "encode_ampere",
            Kernel::AmpereSmall => "encode_ampere_small",
        };
        engine.zero(&self.bounds)?;
        let [x, w] = self.operands;
        let sizes = [n, d_sae, d, k, 1].map(|v| Arg::from(v as u32));
        let to = [(&self.bounds).into(), (&self.lists.entries).into(), (&self.lists.counts).into(), (self.lists.cap as u32).into()];
        let args = [&[x, w, Arg::Ptr(bias)][..], &sizes, &to].concat();
        let grid = Grid { blocks: [n.div_ceil(ROWS) as u32, self.splits as u32], threads, shared: shared as u32 };
        engine.launch(name, grid, &args)?;
        finish(engine, &self.lists, n, k, values, indices, lengths)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_fill_the_multiprocessors() {
        // 65,536 latents in tiles of 256, 132 multiprocessors.
        for (n, want) in [(4096, 4), (8192, 2), (16384, 1)] {
            assert_eq!(splits(n / ROWS, 256, 132), want, "{n} rows");
        }
        assert!(splits(1, 256, 132) == 16 && splits(1, 3, 132) == 3 && splits(1, 1, 132) == 1);
    }
}
