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
pub mod artefact;
pub mod codes;
pub mod error;
pub mod hook;
pub mod progress;
pub mod rng;

// The stages, in pipeline order.
pub mod corpus;
pub mod host;
pub mod shard;

// What training leaves behind.
pub mod dictionary;

// Learners and the loop around them.
pub mod sae;
pub mod train;

// What reads results.
pub mod encode;
pub mod plot;
pub mod score;

// Settings, composed.
pub mod config;

// The compute seam.
pub mod kernels;

pub use codes::Codes;
pub use dictionary::{Activation, Dictionary};
pub use error::{Error, Result};
pub use hook::{HookPoint, Site};
pub use progress::Progress;
