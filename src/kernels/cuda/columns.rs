//! Launches of `kernels/columns.cu`: codes by latent, in buffers that are made once.

use super::engine::{Arg, Buffer, Engine, Grid};
use crate::error::{Error, Result};

/// Latents per block of the scan (`SCAN_BLOCK` there).
const SCAN_BLOCK: usize = 1024;

/// Codes by row, on the device.
#[derive(Debug, Clone, Copy)]
pub struct RowCodes {
    /// Rows.
    pub n: usize,
    /// `[n + 1]` u32: where each row's entries begin; 0 where rows are padded to `k` entries each.
    pub starts: u64,
    /// Entries of a padded row.
    pub k: usize,
    /// Entries that there is room for.
    pub capacity: usize,
    /// u32, `[capacity]`; those from the number of latents on (PAD) are no entries.
    pub indices: u64,
    /// f32, `[capacity]`.
    pub values: u64,
}

impl RowCodes {
    /// Rows of `k` entries.
    pub fn padded(n: usize, k: usize, indices: u64, values: u64) -> Self {
        Self { n, starts: 0, k, capacity: n * k, indices, values }
    }

    /// Rows of any length, `capacity` entries at most.
    pub fn ragged(n: usize, capacity: usize, starts: u64, indices: u64, values: u64) -> Self {
        Self { n, starts, k: 0, capacity, indices, values }
    }

    /// The arguments `ends, k, capacity, indices` of kernels.
    pub(super) fn args(&self) -> [Arg; 4] {
        [Arg::Ptr(self.starts), (self.k as u32).into(), (self.capacity as u32).into(), Arg::Ptr(self.indices)]
    }
}

/// What codes by latent need room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ColumnsShape {
    /// Latents.
    pub d_sae: usize,
    /// Rows.
    pub n: usize,
    /// Entries.
    pub capacity: usize,
    /// Latents with more entries than this are cut into segments of so many.
    pub segment: usize,
}

impl ColumnsShape {
    /// With segments as short as `bytes` allow for the sums of all of them, rows of `width` elements in all (of decoder and encoder).
    pub fn new(d_sae: usize, n: usize, capacity: usize, width: usize, bytes: usize) -> Self {
        let mut shape = Self { d_sae, n, capacity, segment: 256 };
        while shape.max_segments() * width * 4 > bytes {
            shape.segment *= 2;
        }
        shape
    }

    /// Segments that there are at most: latents with more than a segment's entries have `ceil(entries / segment)` each.
    pub fn max_segments(&self) -> usize {
        if self.segment >= self.n {
            return 0;
        }
        (self.capacity / self.segment + self.capacity / (self.segment + 1)).min(self.d_sae.saturating_mul(self.n.div_ceil(self.segment)))
    }
}

/// Codes by latent on the device; within a latent, rows ascend.
#[derive(Debug)]
pub struct DeviceColumns {
    /// Its sizes.
    pub shape: ColumnsShape,
    /// `[d_sae + 1]` u32: where each latent's entries begin.
    pub starts: Buffer,
    /// Row of each entry, u32.
    pub rows: Buffer,
    /// Value of each entry, f32.
    pub values: Buffer,
    /// `[d_sae + 1]` u32: the first segment of each latent.
    pub segments: Buffer,
    /// The latent of each segment, u32.
    pub owners: Buffer,
    counts: Buffer,
    sums: Buffer,
    entries: Buffer,
}

impl DeviceColumns {
    /// Room for codes.
    ///
    /// # Errors
    /// More entries than 32 bits count, memory that cannot be had.
    pub fn new(engine: &dyn Engine, shape: ColumnsShape) -> Result<Self> {
        let ColumnsShape { d_sae, capacity, .. } = shape;
        if capacity >= u32::MAX as usize || d_sae >= u32::MAX as usize {
            return Err(Error::config(
                "train.batch",
                format!("{capacity} codes of {d_sae} latents are too many"),
                "choose smaller batches",
            ));
        }
        let words = |n: usize| engine.alloc(4 * n.max(1));
        Ok(Self {
            shape,
            starts: words(d_sae + 1)?,
            rows: words(capacity)?,
            values: words(capacity)?,
            segments: words(d_sae + 1)?,
            owners: words(shape.max_segments())?,
            counts: words(d_sae)?,
            sums: engine.alloc(8 * (d_sae + 1).div_ceil(SCAN_BLOCK))?,
            entries: engine.alloc(8 * capacity.max(1))?,
        })
    }

    /// Sorts `codes`.
    ///
    /// # Errors
    /// A launch that fails.
    pub fn build(&self, engine: &dyn Engine, codes: &RowCodes) -> Result<()> {
        let ColumnsShape { d_sae, segment, .. } = self.shape;
        let (n, m, segment): (Arg, Arg, Arg) = ((codes.n as u32).into(), (d_sae as u32).into(), (segment as u32).into());
        let [ends, k, capacity, indices] = codes.args();
        let blocks = (d_sae + 1).div_ceil(SCAN_BLOCK);
        let counts = Arg::from(&self.counts);
        engine.zero(&self.counts)?;
        engine.launch("columns_count", Grid::warps(codes.n), &[ends, k, capacity, indices, n, m, counts])?;
        let sums = Arg::from(&self.sums);
        engine.launch("columns_sums", Grid::line(blocks, 256), &[counts, m, segment, sums])?;
        engine.launch("columns_carry", Grid::line(1, 1024), &[sums, (blocks as u32).into()])?;
        let (starts, most) = (Arg::from(&self.starts), Arg::from(self.shape.max_segments() as u32));
        let args = [counts, m, segment, sums, starts, (&self.segments).into(), (&self.owners).into(), most];
        engine.launch("columns_starts", Grid::line(blocks, 256), &args)?;
        let entries = Arg::from(&self.entries);
        let args = [ends, k, capacity, indices, Arg::Ptr(codes.values), n, m, counts, entries];
        engine.launch("columns_scatter", Grid::warps(codes.n), &args)?;
        let args = [starts, entries, n, m, (&self.rows).into(), (&self.values).into()];
        engine.launch("columns_sort", Grid::warps(d_sae), &args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_bounded() {
        // The most segments: as many latents as possible just above a segment's length, or one with all entries.
        let shape = ColumnsShape { d_sae: 100, n: 1000, capacity: 10 * 257, segment: 256 };
        assert!(shape.max_segments() >= 10 * 2);
        assert_eq!(ColumnsShape { segment: 1000, ..shape }.max_segments(), 0, "no latent has more entries than there are rows");
        assert_eq!(ColumnsShape { d_sae: 2, ..shape }.max_segments(), 8);
        for count in [257usize, 511, 512, 513, 2570] {
            assert!(count.div_ceil(256) <= ColumnsShape { n: 5000, capacity: count, ..shape }.max_segments(), "{count}");
        }
    }

    #[test]
    fn segments_grow_until_their_sums_fit() {
        let aux = ColumnsShape::new(65536, 8192, 8192 * 1152, 2 * 2304, 64 << 20);
        assert!(aux.max_segments() * 2 * 2304 * 4 <= 64 << 20, "{aux:?}");
        assert_eq!(ColumnsShape::new(65536, 8192, 8192 * 64, 2 * 2304, 128 << 20).segment, 256);
    }
}
