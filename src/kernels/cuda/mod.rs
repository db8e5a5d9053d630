//! CUDA launchers. `enabled.rs` will stand beside `disabled.rs`; the feature is named here and nowhere else.

mod disabled;

pub use disabled::*;
