//! Where training rows come from: shards today, a streaming host by the same trait.

use candle_core::{Device, Tensor};

use crate::error::{Error, Result};
use crate::shard::{Batch, Cursor, Shuffled};

/// An endless, seeded, seekable stream of rows.
pub trait RowSource {
    /// Width of a row.
    fn width(&self) -> usize;
    /// The next `n` rows; epochs wrap.
    ///
    /// # Errors
    /// Damaged or vanished shards.
    fn next_rows(&mut self, n: usize) -> Result<Batch>;
    /// Where the next row comes from.
    fn cursor(&self) -> Cursor;
    /// Goes back (or ahead) to a cursor.
    ///
    /// # Errors
    /// A cursor of other data.
    fn seek(&mut self, cursor: &Cursor) -> Result<()>;
    /// Passes over the data that are complete.
    fn epoch(&self) -> u64;
}

impl RowSource for Shuffled {
    fn width(&self) -> usize {
        Shuffled::width(self)
    }

    fn next_rows(&mut self, n: usize) -> Result<Batch> {
        self.next_batch(n)
    }

    fn cursor(&self) -> Cursor {
        Shuffled::cursor(self)
    }

    fn seek(&mut self, cursor: &Cursor) -> Result<()> {
        Shuffled::seek(self, cursor)
    }

    fn epoch(&self) -> u64 {
        Shuffled::epoch(self)
    }
}

/// The batch's rows times `scale`, `[n, width]`, and their summed squared distance from their mean (the batch's FVU denominator).
///
/// # Errors
/// NaN or infinity, with the row's place.
pub fn normalised(batch: Batch, width: usize, scale: f64) -> Result<(Tensor, f64)> {
    let Batch { n, mut x, doc_id, position, .. } = batch;
    let scale = scale as f32;
    let mut mean = vec![0f64; width];
    for (r, row) in x.chunks_exact_mut(width).enumerate() {
        let mut check = 0f32;
        for (v, m) in row.iter_mut().zip(&mut mean) {
            *v *= scale;
            check += *v * 0.0; // stays 0 unless the value is NaN or infinite
            *m += f64::from(*v);
        }
        if check != 0.0 {
            let count = row.iter().filter(|v| !v.is_finite()).count();
            let place = format!("document {}, position {}", doc_id.get(r).copied().unwrap_or(0), position.get(r).copied().unwrap_or(0));
            return Err(Error::NotFinite {
                what: "a training row".into(),
                count,
                place,
                help: "harvest again in f32, or drop that document".into(),
            });
        }
    }
    mean.iter_mut().for_each(|m| *m /= n as f64);
    let mut spread = 0f64;
    for row in x.chunks_exact(width) {
        for (v, m) in row.iter().zip(&mean) {
            spread += (f64::from(*v) - m).powi(2);
        }
    }
    Ok((Tensor::from_vec(x, (n, width), &Device::Cpu)?, spread))
}
