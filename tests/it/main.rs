//! The one integration binary. Each module tests one seam; `support` finds the optional material beside the checkout.
#![allow(clippy::unwrap_used)] // a test that cannot go on should stop where it stands

mod allocation;
mod bad_input;
mod claims;
mod cli;
mod convert;
mod corpus;
mod dashboard;
mod fable;
mod features;
mod formats;
mod formats_pt;
mod harvest;
mod hostile;
mod hosts;
#[cfg(feature = "hub")]
mod hub;
mod ingest;
mod layering;
mod outliers;
mod planted;
mod pursuit;
mod score;
mod shards;
mod steer;
mod stream;
#[cfg(feature = "hub")]
mod stub;
mod support;
mod synthetic;
