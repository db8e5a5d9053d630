//! Placeholder.
/// Rows.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /** n */
    pub n: usize,
    /** x */
    pub x: Vec<f32>,
    /** d */
    pub doc_id: Vec<u64>,
    /** p */
    pub position: Vec<u32>,
    /** t */
    pub token_id: Vec<u32>,
}
/// c
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Cursor {
    /** e */
    pub epoch: u64,
    /** w */
    pub window: u64,
    /** o */
    pub offset: u64,
}
/// s
#[derive(Debug)]
pub struct Shuffled;
impl Shuffled {
    /** w */
    pub fn width(&self) -> usize {
        0
    }
    /** w */
    pub fn next_batch(&mut self, _n: usize) -> crate::Result<Batch> {
        unimplemented!()
    }
    /** w */
    pub fn cursor(&self) -> Cursor {
        unimplemented!()
    }
    /** w */
    pub fn seek(&mut self, _c: &Cursor) -> crate::Result<()> {
        unimplemented!()
    }
    /** w */
    pub fn epoch(&self) -> u64 {
        0
    }
}
