//! The CPU kernels: rayon over rows or latents, `gemm` for products, results independent of the number of threads.

pub mod batch_topk;
pub mod columns;
mod encode;
pub mod latent_update;
mod sparse_decode;
mod storage;
pub mod vector;

pub use encode::{encode_threshold, encode_topk};
pub use latent_update::{latent_update, measure};
pub use sparse_decode::{decode_codes, sparse_decode};
pub use storage::overwrite;
