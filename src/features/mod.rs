//! What each latent means, as a table: statistics, output tokens, neighbours, examples in context.
//!
//! `features.parquet` has a row per latent ([`Feature`]), `examples.parquet` the contexts ([`Example`]), `features.json` says what they
//! are of ([`FeaturesInfo`]). docs/features.md is the specification. Not for: metrics of the whole dictionary (`score`) or pages (`dashboard`).

mod config;
mod examples;
mod parquet;
mod table;

pub use config::FeaturesConfig;
pub use examples::{Example, Examples, Group, EXAMPLES_FILE};
pub use table::{Feature, FeatureTable, FeaturesInfo, Source, FEATURES_FILE, INFO_FILE, KIND, VERSION};
