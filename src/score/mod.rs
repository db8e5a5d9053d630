//! Metrics.

pub mod concepts;
