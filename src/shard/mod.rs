//! Placeholder.

/// Rows read back, one column of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// Number of rows.
    pub n: usize,
    /// Values, row-major [n, width].
    pub x: Vec<f32>,
    /// Ordinal of the document, [n].
    pub doc_id: Vec<u64>,
    /// Position in the document, [n].
    pub position: Vec<u32>,
    /// Token ids, [n]; empty when the shards hold vectors without tokens.
    pub token_id: Vec<u32>,
}
