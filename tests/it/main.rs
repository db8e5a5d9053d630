//! The one integration binary. Each module tests one seam; `support` finds the optional material beside the checkout.

// Helpers of tests, too, may stop a test.
#![allow(clippy::unwrap_used)]

mod corpus;
mod fable;
mod harvest;
mod hosts;
mod ingest;
mod layering;
mod score;
mod shards;
mod support;
