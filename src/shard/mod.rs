//! Activations on disk: Parquet shards, one row per token or vector, with a manifest. The format is specified in `docs/shards.md`.
//!
//! [`ShardWriter`] writes, [`Shards`] reads: in file order ([`Shards::scan`]) or shuffled in bounded memory, exactly resumable
//! ([`Shards::shuffled`]). Knows nothing of models, corpora or training: provenance travels through as JSON values.

mod chunk;
mod crc;
mod manifest;
mod page;
mod reader;
mod schema;
mod shuffle;
mod writer;

pub(crate) use manifest::write_json;
pub use manifest::{ColumnEntry, Counts, Manifest, RowCounts, ShardEntry, KIND, MANIFEST_FILE, VERSION};
pub use reader::{Scan, Shards};
pub use shuffle::{Cursor, Sample, ShuffleConfig, Shuffled};
pub use writer::{ShardWriter, WriterOptions, WriterState};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::rng::hash64;

/// Which part of the data a row belongs to. Whole documents go to one split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// Rows that dictionaries learn from.
    Train,
    /// Rows kept for scoring.
    HeldOut,
}

impl Split {
    /// Both, in the order in which a shard pair is listed.
    pub const ALL: [Split; 2] = [Split::Train, Split::HeldOut];

    /// `train` or `held-out`: the column `split`, and the start of the file name.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::HeldOut => "held-out",
        }
    }
}

/// The split of a document: a hash of its number, so that it depends on nothing else in the corpus. `held_out` is the expected
/// fraction of documents held out; 0 holds out none.
pub fn split_of(doc_id: u64, seed: u64, held_out: f64) -> Split {
    let uniform = (hash64(seed, doc_id) >> 11) as f64 / (1u64 << 53) as f64;
    if uniform < held_out {
        Split::HeldOut
    } else {
        Split::Train
    }
}

/// How a hook point's values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 4 bytes, exact.
    #[default]
    F32,
    /// 2 bytes, up to 65504: some residual streams overflow it, which is an error and never a silent infinity.
    F16,
    /// 2 bytes in memory with the range of f32; stored as `u16`, because Arrow has no such type.
    Bf16,
}

impl Dtype {
    /// `f32`, `f16` or `bf16`.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
        }
    }

    /// Bytes per value before any encoding.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }
}

/// One hook point as a column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Column {
    /// The hook point, spelled as in TransformerLens; free for ingested vectors.
    pub name: String,
    /// Values per row.
    pub width: usize,
    /// Stored type.
    pub dtype: Dtype,
}

/// Rows on their way to disk.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rows {
    /// Ordinal of the document in the corpus, `[n]`.
    pub doc_id: Vec<u64>,
    /// Position in the document, from 0, `[n]`.
    pub position: Vec<u32>,
    /// Token at that position, `[n]`; `None` for vectors.
    pub token_id: Option<Vec<u32>>,
    /// One row-major `[n, width]` block per column, in the writer's column order.
    pub columns: Vec<Vec<f32>>,
}

/// Rows read back, one column of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// Number of rows.
    pub n: usize,
    /// Values, row-major `[n, width]`.
    pub x: Vec<f32>,
    /// Ordinal of the document, `[n]`.
    pub doc_id: Vec<u64>,
    /// Position in the document, `[n]`.
    pub position: Vec<u32>,
    /// Token ids, `[n]`; empty when the shards hold vectors without tokens.
    pub token_id: Vec<u32>,
}

impl Batch {
    /// The values, `[n, width]`, f32, for analysis with ndarray.
    pub fn to_array(&self) -> ndarray::Array2<f32> {
        let width = self.x.len().checked_div(self.n).unwrap_or(0);
        ndarray::Array2::from_shape_vec((self.n, width), self.x.clone()).expect("a batch holds n rows of one width")
    }

    /// The values, `[n, width]`, f32, on the CPU, for a dictionary to encode.
    ///
    /// # Errors
    /// When there is no row.
    pub fn to_tensor(&self) -> Result<Tensor> {
        if self.n == 0 {
            return Err(Error::request("there is no row here", "choose a split that has rows"));
        }
        Ok(Tensor::from_slice(&self.x, (self.n, self.x.len() / self.n), &Device::Cpu)?)
    }
}
