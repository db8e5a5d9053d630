//! Lapidary cuts the hidden states of a neural network (the *host model*) into a dictionary of sparse, nameable features.
//!
//! ```text
//! corpus -> host -> harvest -> shard (Parquet) -> sae + train -> dictionary -> encode (Parquet) -> score
//!                                                                               -> plot
//! ```
//!
//! The modules below stand in that order. The library prints nothing and reads no environment: progress is events
//! ([`Progress`]), errors are sentences with a remedy ([`enum@Error`]), and the command line is a thin shell over this API.

// The foundation: used by every stage, uses none.
pub mod codes;
pub mod error;
pub mod hook;
pub mod progress;
pub mod rng;

// The stages, in pipeline order.
pub mod corpus;
pub mod harvest;
pub mod host;
pub mod shard;

pub use codes::Codes;
pub use error::{Error, Result};
pub use hook::{HookPoint, Site};
pub use progress::Progress;
