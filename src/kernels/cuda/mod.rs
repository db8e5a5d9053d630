//! CUDA launchers. `enabled.rs` will stand beside `disabled.rs`; the features are named here and nowhere else.

mod disabled;
#[cfg(all(test, feature = "simulator"))]
mod engine;
#[cfg(all(test, feature = "simulator"))]
mod simulator;
#[cfg(all(test, feature = "simulator"))]
mod tests;

pub use disabled::*;
