//! The CPU kernels: rayon over rows or latents, `gemm` for products, results independent of the number of threads.

pub mod batch_topk;
pub mod columns;
mod encode;
mod gram;
pub mod latent_update;
mod orthogonal;
mod pursuit;
mod pursuit_grad;
mod sparse_decode;
mod storage;
pub mod vector;

pub use encode::{encode_counts, encode_threshold, encode_topk, screen, set_screen, EncodeCounts, Screen};
pub use gram::fill_gram;
pub use latent_update::{latent_update, measure};
pub use orthogonal::orthogonal_pursuit;
pub use pursuit::pursuit;
pub use pursuit_grad::{pursuit_backward, pursuit_measure, pursuit_update};
pub use sparse_decode::{decode_codes, sparse_decode};
pub use storage::overwrite;
