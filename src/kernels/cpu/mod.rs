//! The CPU kernels: rayon over rows or latents, `gemm` for products, results independent of the number of threads.

pub mod adam;
mod aligned;
pub mod batch_topk;
pub mod columns;
mod dead_screen;
mod dead_topk;
mod dispatch;
mod encode;
mod gram;
mod latent_grad;
pub mod latent_update;
mod orthogonal;
mod pursuit;
mod pursuit_grad;
mod rows;
mod sparse_decode;
pub mod storage;
mod summed;
pub mod vector;

pub use dead_topk::dead_topk;
pub use encode::{encode_counts, encode_threshold, encode_topk, screen, set_screen, EncodeCounts, Screen};
pub use gram::fill_gram;
pub use latent_update::{latent_update, measure};
pub use orthogonal::orthogonal_pursuit;
pub use pursuit::pursuit;
pub use pursuit_grad::{pursuit_backward, pursuit_measure, pursuit_update};
pub use rows::{column_sums, spread};
pub use sparse_decode::{decode_codes, decode_codes_onto, sparse_decode, sparse_decode_onto};
pub use storage::overwrite;
pub use summed::summed;
