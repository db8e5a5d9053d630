//! The one integration binary. Each module tests one seam; `support` finds the optional material beside the checkout.

mod corpus;
mod fable;
mod harvest;
mod hosts;
mod ingest;
mod layering;
mod score;
mod shards;
mod support;
