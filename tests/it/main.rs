//! The one integration binary. Each module tests one seam; `support` finds the optional material beside the checkout.

mod harvest;
mod ingest;
mod shards;
mod support;
