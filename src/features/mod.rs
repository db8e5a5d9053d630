//! What each latent means, as a table: statistics, output tokens, neighbours, examples in context.
//!
//! ```text
//! shards --scan.rs--> tally.rs per latent (spread.rs, window.rs) ---+
//! atoms  --nearest.rs, atlas.rs; host --logits.rs------------------+--> run.rs --> table.rs, examples.rs (Parquet)
//! codes  --coactive.rs, concepts.rs--------------------------------+
//! ```
//!
//! `features.parquet` has a row per latent ([`Feature`]), `examples.parquet` the contexts ([`Example`]), `features.json` says what they
//! are of ([`FeaturesInfo`]). docs/features.md is the specification. Not for: metrics of the whole dictionary (`score`) or pages (`dashboard`).

mod atlas;
mod coactive;
mod concepts;
mod config;
mod examples;
mod label;
mod logits;
mod nearest;
mod parquet;
mod run;
mod scan;
mod spread;
mod table;
mod tally;
mod window;

pub use config::FeaturesConfig;
pub use examples::{Example, Examples, Group, EXAMPLES_FILE};
pub use label::{labels_of, read_labels};
pub use run::{features, write_features, FeaturesReport, Inputs, QUANTILES};
pub use table::{Feature, FeatureTable, FeaturesInfo, Source, FEATURES_FILE, INFO_FILE, KIND, VERSION};

#[cfg(test)]
mod tests;
