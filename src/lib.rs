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

// Models and datasets by id.
pub mod hub;

// The compute seam.
pub mod kernels;

// The stages, in pipeline order.
pub mod corpus;
pub mod dashboard;
pub mod dictionary;
pub mod encode;
pub mod features;
pub mod formats;
pub mod harvest;
pub mod host;
pub mod plot;
pub mod sae;
pub mod score;
pub mod shard;
pub mod train;

// A text of one's own, looked into and changed.
pub mod steer;
pub mod trace;

// Stages joined without files between.
pub mod stream;

// What the papers claim, tried; what a step costs, timed.
pub mod bench;
pub mod claims;

// Settings, composed.
pub mod config;

// Settings and shards to dictionaries, in one call.
pub mod sweep;

// What results look like in an evcxr notebook.
#[cfg(feature = "notebook")]
pub mod notebook;

pub use codes::Codes;
pub use dictionary::{Activation, Dictionary};
pub use error::{Error, Result};
pub use hook::{HookPoint, Site};
pub use ndarray;
pub use progress::Progress;
