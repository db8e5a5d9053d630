//! What a host reads.

pub mod fable;
