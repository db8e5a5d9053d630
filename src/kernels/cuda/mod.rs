//! CUDA launchers. `enabled.rs` will stand beside `disabled.rs`; the feature is named here and nowhere else.

#[allow(dead_code)]
mod columns;
#[allow(dead_code)]
mod decode;
mod disabled;
#[allow(dead_code)]
mod engine;
#[allow(dead_code)]
mod reduce;
#[allow(dead_code)]
mod rows;
#[allow(dead_code)]
mod update;

#[cfg(test)]
mod trial;

pub use disabled::*;
