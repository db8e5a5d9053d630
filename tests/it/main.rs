//! The one integration binary. Each module tests one seam; `support` finds the optional material beside the checkout.

mod corpus;
mod harvest;
mod hosts;
mod ingest;
mod layering;
mod shards;
mod support;
