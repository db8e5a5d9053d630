//! Column chunks in memory, served to the Parquet decoders at their file offsets: each is read once, checked, then decoded.

use bytes::{Buf, Bytes};
use parquet::errors::{ParquetError, Result};
use parquet::file::reader::{ChunkReader, Length};

/// Some byte ranges of a file.
pub(super) struct Chunks {
    /// Length of the file.
    pub len: u64,
    /// Offset in the file and bytes of each range.
    pub ranges: Vec<(u64, Bytes)>,
}

impl Chunks {
    fn from(&self, start: u64) -> Result<Bytes> {
        self.ranges
            .iter()
            .find(|(at, bytes)| start >= *at && start < at + bytes.len() as u64)
            .map(|(at, bytes)| bytes.slice((start - at) as usize..))
            .ok_or_else(|| ParquetError::General(format!("offset {start} lies outside the column chunks")))
    }
}

impl Length for Chunks {
    fn len(&self) -> u64 {
        self.len
    }
}

impl ChunkReader for Chunks {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        Ok(self.from(start)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        let bytes = self.from(start)?;
        if bytes.len() < length {
            return Err(ParquetError::EOF(format!("{length} bytes wanted at {start}, the column chunk has {}", bytes.len())));
        }
        Ok(bytes.slice(..length))
    }
}
