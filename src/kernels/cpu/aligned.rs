//! Rows that begin on cache lines. Allocators leave large vectors a few bytes off, and then every 64-byte load touches two lines: where a
//! row is read many times, copying it first pays.

use rayon::prelude::*;

use super::vector::prefetch;

const LANES: usize = 16;

/// How many of `ascending` are below `end`: a few, so that looking at them in order costs less than bisecting.
pub(super) fn below(ascending: &[u32], end: usize) -> usize {
    ascending.iter().take_while(|&&i| (i as usize) < end).count()
}

/// A cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

/// A matrix whose rows are whole lines, filled up with zeros.
#[derive(Debug, Default)]
pub(super) struct Aligned {
    lines: Vec<Line>,
    width: usize,
}

/// How wide rows of `d` become.
pub(super) fn padded(d: usize) -> usize {
    d.next_multiple_of(LANES)
}

impl Aligned {
    /// `rows` rows of zeros, `d` wide or somewhat wider.
    pub fn zeros(rows: usize, d: usize) -> Self {
        let width = padded(d);
        Self { lines: vec![Line([0.0; LANES]); rows * width / LANES], width }
    }

    /// Rows `of` of `m` `[_, d]`.
    pub fn gather(m: &[f32], d: usize, of: &[u32]) -> Self {
        let mut all = Self::zeros(of.len(), d);
        let width = all.width;
        all.slice_mut()
            .par_chunks_mut(width)
            .zip(of)
            .for_each(|(to, &j)| to[..d].copy_from_slice(&m[j as usize * d..(j as usize + 1) * d]));
        all
    }

    /// All rows of `m` `[_, d]`.
    pub fn copy(m: &[f32], d: usize) -> Self {
        let mut all = Self::zeros(m.len() / d, d);
        let width = all.width;
        all.slice_mut().par_chunks_mut(width).zip(m.par_chunks_exact(d)).for_each(|(to, row)| to[..d].copy_from_slice(row));
        all
    }

    /// Becomes `rows` rows of zeros, in the memory that it has.
    pub fn reset(&mut self, rows: usize, d: usize) {
        self.width = padded(d);
        self.lines.clear();
        self.lines.resize(rows * self.width / LANES, Line([0.0; LANES]));
    }

    /// Becomes rows `of` of `m` `[_, d]`, on this thread, in the memory that it has.
    pub fn gather_from(&mut self, m: &[f32], d: usize, of: &[u32]) {
        self.reset(of.len(), d);
        let width = self.width;
        self.slice_mut()
            .chunks_exact_mut(width)
            .zip(of)
            .for_each(|(to, &j)| to[..d].copy_from_slice(&m[j as usize * d..(j as usize + 1) * d]));
    }

    /// Writes the rows to `to` `[rows, d]`.
    pub fn copy_to(&self, to: &mut [f32], d: usize) {
        to.chunks_exact_mut(d).zip(self.slice().chunks_exact(self.width)).for_each(|(to, row)| to.copy_from_slice(&row[..d]));
    }

    /// Becomes a copy of `m` `[_, d]`, on this thread, in the memory that it has.
    pub fn fill(&mut self, m: &[f32], d: usize) {
        self.reset(m.len() / d, d);
        let width = self.width;
        self.slice_mut().chunks_exact_mut(width).zip(m.chunks_exact(d)).for_each(|(to, row)| to[..d].copy_from_slice(row));
    }

    /// Width of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Asks for row `i` to be in the second-level cache soon; nothing where there is no such row.
    pub fn prefetch(&self, i: usize) {
        if let Some(row) = self.slice().get(i * self.width..(i + 1) * self.width) {
            prefetch(row);
        }
    }

    /// `[rows, width]`.
    pub fn slice(&self) -> &[f32] {
        // SAFETY: a line is LANES floats and nothing else.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * LANES) }
    }

    /// `[rows, width]`.
    pub fn slice_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.lines.len() * LANES) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_begin_on_lines_and_end_in_zeros() {
        let m: Vec<f32> = (0..15).map(|v| v as f32).collect();
        let rows = Aligned::gather(&m, 5, &[2, 0]);
        assert!((rows.slice().as_ptr() as usize).is_multiple_of(64));
        assert_eq!(rows.slice()[..6], [10.0, 11.0, 12.0, 13.0, 14.0, 0.0]);
        assert_eq!(rows.slice()[rows.width()..rows.width() + 5], [0.0, 1.0, 2.0, 3.0, 4.0]);
        let mut again = Aligned::zeros(9, 40);
        again.fill(&m, 5);
        assert_eq!(again.slice(), Aligned::copy(&m, 5).slice());
    }
}
