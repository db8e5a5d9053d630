//! Launches of `kernels/batch.cu`: the largest codes of a batch, out of sorted rows. Not for finding the rows' codes (`encode`).

use super::encode::numbers;
use super::engine::{Arg, Buffer, Engine, Grid, NULL};
use crate::error::Result;

/// Shift and width of each digit of the search.
const DIGITS: [(u32, u32); 3] = [(21, 11), (10, 11), (0, 10)];

/// A batch selection: its search, and the codes it found, row after row.
#[derive(Debug)]
pub struct BatchChoice {
    search: Buffer,
    histogram: Buffer,
    found: Buffer,
    guess: Buffer,
    starts: Buffer,
    indices: Buffer,
    values: Buffer,
    guessed: bool,
}

impl BatchChoice {
    /// For `n` rows and up to `capacity` codes.
    ///
    /// # Errors
    /// No memory on the device.
    pub fn new(engine: &dyn Engine, n: usize, capacity: usize) -> Result<Self> {
        let histogram = engine.alloc(4 * 2048)?;
        engine.zero(&histogram)?;
        Ok(Self {
            search: engine.alloc(16)?,
            histogram,
            found: engine.alloc(16)?,
            guess: engine.alloc(4)?,
            starts: engine.alloc(4 * (n + 1))?,
            indices: engine.alloc(4 * capacity.max(1))?,
            values: engine.alloc(4 * capacity.max(1))?,
            guessed: false,
        })
    }

    /// Points to a value that the next batch's codes are believed to exceed; null at first.
    pub fn guess(&self) -> Arg {
        if self.guessed {
            (&self.guess).into()
        } else {
            NULL
        }
    }

    /// Where the smallest code that was kept is, f32; infinity where none was.
    pub fn smallest(&self) -> u64 {
        self.found.address
    }

    /// `[n + 1]` u32: where each row's codes begin.
    pub fn starts(&self) -> u64 {
        self.starts.address
    }

    /// Their latents.
    pub fn indices(&self) -> u64 {
        self.indices.address
    }

    /// Their values.
    pub fn values(&self) -> u64 {
        self.values.address
    }

    /// The `total` largest of sorted rows `[n, width]`. False where rows may have had more than they hold, or the guess held some back: then
    /// nothing is chosen. Waits for the answer.
    ///
    /// # Errors
    /// A launch that fails.
    #[allow(clippy::too_many_arguments)]
    pub fn choose(
        &mut self,
        engine: &dyn Engine,
        (values, indices, lengths): (&Buffer, &Buffer, &Buffer),
        n: usize,
        width: usize,
        total: usize,
        d_sae: usize,
    ) -> Result<bool> {
        let (rows, wide) = (Arg::from(n as u32), Arg::from(width as u32));
        let search = Arg::from(&self.search);
        engine.zero(&self.found)?;
        engine.launch("batch_start", Grid::line(1, 32), &[search, (total as u32).into()])?;
        for (shift, bits) in DIGITS {
            let histogram = Arg::from(&self.histogram);
            let args = [values.into(), lengths.into(), rows, wide, search, shift.into(), bits.into(), histogram];
            engine.launch("batch_histogram", Grid::line(n.div_ceil(8).min(1024), 256), &args)?;
            engine.launch("batch_pick", Grid::line(1, 32), &[histogram, search, shift.into(), bits.into()])?;
        }
        let (starts, found) = (Arg::from(&self.starts), Arg::from(&self.found));
        let args = [values.into(), lengths.into(), rows, wide, search, self.guess(), (d_sae as u32).into(), starts, found];
        engine.launch("batch_rows", Grid::line(1, 1024), &args)?;
        let [_, _, too_few, cut] = numbers(engine, &self.found, 4)?[..] else { unreachable!("four were asked for") };
        if too_few > 0 || cut > 0 {
            return Ok(false);
        }
        let args = [values.into(), indices.into(), rows, wide, starts, (&self.values).into(), (&self.indices).into()];
        engine.launch("batch_emit", Grid::warps(n), &args)?;
        self.next(engine)?;
        Ok(true)
    }

    /// Takes codes that the host found: (row, latent, value), the largest first.
    ///
    /// # Errors
    /// A copy that fails.
    pub fn replace(&mut self, engine: &dyn Engine, n: usize, total: usize, mut entries: Vec<(u32, u32, f32)>) -> Result<()> {
        entries.truncate(total);
        let smallest = entries.last().map_or(f32::INFINITY, |e| e.2);
        // Stable: within a row they stay in order.
        entries.sort_by_key(|e| e.0);
        let mut starts = vec![0u32; n + 1];
        for e in &entries {
            starts[e.0 as usize + 1] += 1;
        }
        for r in 0..n {
            starts[r + 1] += starts[r];
        }
        let put = |words: Vec<u32>, to: &Buffer| engine.upload(&words.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>(), to);
        put(starts, &self.starts)?;
        put(entries.iter().map(|e| e.1).collect(), &self.indices)?;
        put(entries.iter().map(|e| e.2.to_bits()).collect(), &self.values)?;
        put(vec![smallest.to_bits(), entries.len() as u32, 0, 0], &self.found)?;
        self.next(engine)
    }

    fn next(&mut self, engine: &dyn Engine) -> Result<()> {
        self.guessed = true;
        engine.launch("batch_guess", Grid::line(1, 32), &[(&self.found).into(), (&self.guess).into()])
    }
}
