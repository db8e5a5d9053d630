//! Launches of `kernels/reduce.cu`: sums of fixed shape, with the room that their first stages need.

use super::engine::{Arg, Buffer, Engine, Grid};
use super::rows::Kind;
use crate::error::Result;

/// Numbers that a block of the first stage sums.
const PER_BLOCK: usize = 4096;
/// Columns are summed in at most so many parts.
const CHUNKS: usize = 512;

/// Rows per part, and parts, of column sums over `n` rows; fixed, so that sums do not depend on what runs first.
pub(super) fn chunks(n: usize) -> (usize, usize) {
    let per = n.div_ceil(CHUNKS).max(64);
    (per, n.div_ceil(per).max(1))
}

/// A matrix on the device.
#[derive(Debug, Clone, Copy)]
pub struct Matrix {
    /// Where it begins.
    pub at: u64,
    /// Its elements.
    pub kind: Kind,
    /// Its rows.
    pub n: usize,
    /// Its columns.
    pub d: usize,
}

/// Where column sums go: `base + factor sums`.
#[derive(Debug, Clone, Copy)]
pub struct ColumnSums {
    /// A weight per row, f32 `[n]`, or 0.
    pub weights: u64,
    /// Times this.
    pub factor: f32,
    /// f64 `[d]`, or 0.
    pub base: u64,
    /// f64 `[d]`, or 0.
    pub total: u64,
    /// f32 `[d]`, or 0.
    pub rounded: u64,
}

/// Sums, and room for their first stages.
#[derive(Debug)]
pub struct Reduce {
    partials: Buffer,
    columns: Buffer,
}

impl Reduce {
    /// Room for sums of `count` numbers and for column sums of up to `n` rows of up to `d`.
    ///
    /// # Errors
    /// Memory that cannot be had.
    pub fn new(engine: &dyn Engine, count: usize, n: usize, d: usize) -> Result<Self> {
        let partials = engine.alloc(8 * count.div_ceil(PER_BLOCK).max(1))?;
        Ok(Self { partials, columns: engine.alloc(8 * d.max(1) * n.div_ceil(64).clamp(1, CHUNKS))? })
    }

    /// The first stage of [`Reduce::sum`]: parts of the sum of `count` f64 at `x`, and how many they are.
    ///
    /// # Errors
    /// A launch that fails.
    pub fn parts(&self, engine: &dyn Engine, x: u64, count: usize) -> Result<(&Buffer, usize)> {
        let blocks = count.div_ceil(PER_BLOCK).max(1);
        let args = [Arg::Ptr(x), (count as u64).into(), (PER_BLOCK as u64).into(), 1f32.into(), 0u32.into(), (&self.partials).into()];
        engine.launch("sum_f64", Grid::line(blocks, 256), &args)?;
        Ok((&self.partials, blocks))
    }

    /// `out (+)= factor sum x` over `count` f64; `add` keeps what is there.
    ///
    /// # Errors
    /// A launch that fails.
    pub fn sum(&self, engine: &dyn Engine, x: u64, count: usize, factor: f32, add: bool, out: u64) -> Result<()> {
        let (parts, blocks) = self.parts(engine, x, count)?;
        let all = (blocks as u64).into();
        engine.launch("sum_f64", Grid::line(1, 256), &[parts.into(), all, all, factor.into(), u32::from(add).into(), Arg::Ptr(out)])
    }

    /// Sums of the columns of `x`.
    ///
    /// # Errors
    /// A launch that fails.
    pub fn columns(&self, engine: &dyn Engine, x: &Matrix, to: &ColumnSums) -> Result<()> {
        let (per, count) = chunks(x.n);
        let (n, d): (Arg, Arg) = ((x.n as u32).into(), (x.d as u32).into());
        let kernel = if x.kind == Kind::F32 { "column_partials_f32" } else { "column_partials_bf16" };
        let grid = Grid { blocks: [x.d.div_ceil(128).max(1) as u32, count as u32], threads: 128, shared: 0 };
        let partials = Arg::from(&self.columns);
        engine.launch(kernel, grid, &[Arg::Ptr(x.at), Arg::Ptr(to.weights), n, d, (per as u32).into(), partials])?;
        let ends = [to.base, to.total, to.rounded].map(Arg::Ptr);
        let args = [partials, (count as u32).into(), d, to.factor.into(), ends[0], ends[1], ends[2]];
        engine.launch("column_finish", Grid::line(x.d.div_ceil(32), 256), &args)
    }

    /// `out =` the summed squared distance of the rows of `x` (f32) from their mean. `sums` f64 `[d]` and `squares` f64 `[n]` are scratch.
    ///
    /// # Errors
    /// A launch that fails.
    pub fn spread(&self, engine: &dyn Engine, x: &Matrix, sums: &Buffer, squares: &Buffer, out: u64) -> Result<()> {
        let to = ColumnSums { weights: 0, factor: 1.0, base: 0, total: sums.address, rounded: 0 };
        self.columns(engine, x, &to)?;
        let args = [Arg::Ptr(x.at), sums.into(), (x.n as u32).into(), (x.d as u32).into(), squares.into()];
        engine.launch("spread_rows", Grid::warps(x.n), &args)?;
        self.sum(engine, squares.address, x.n, 1.0, false, out)
    }
}

/// AuxK's factors from its `spread` and `square` (f64 on the device): `scale` f32, `2 coef / spread`, and `loss` f64; 0 without spread.
///
/// # Errors
/// A launch that fails.
pub fn aux_scale(engine: &dyn Engine, spread: u64, square: u64, coef: f32, scale: u64, loss: u64) -> Result<()> {
    engine.launch("aux_scale", Grid::line(1, 1), &[Arg::Ptr(spread), Arg::Ptr(square), coef.into(), Arg::Ptr(scale), Arg::Ptr(loss)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_all_rows() {
        for n in [1, 63, 64, 65, 8192, 65536, 1 << 20, (1 << 20) + 1] {
            let (per, count) = chunks(n);
            assert!(per * count >= n && per * (count - 1) < n && count <= n.div_ceil(64).min(CHUNKS), "{n}");
        }
    }
}
