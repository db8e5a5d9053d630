//! The file formats that dialects stand on: zip, pickle, PyTorch's `.pt`, NumPy's `.npy` and `.npz`.
//!
//! Files come from strangers. Nothing here runs anything, and no number in a file is believed before it is checked against the bytes that
//! are there: what a reader allocates is bounded by the file's length ([`zip::MOST_INFLATED`] times it where entries are compressed).
//!
//! Knows nothing of dictionaries: tensor names and what they mean are the dialects'.

mod array;
mod bytes;
pub mod npy;
pub mod npz;
pub mod pickle;
pub mod pt;
pub mod zip;

pub use array::{Array, Element};
pub use bytes::Bytes;
