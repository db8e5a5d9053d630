//! CUDA launchers. `enabled.rs` will stand beside `disabled.rs`; the features are named here and nowhere else.

// Planned here, and not yet called outside tests.
macro_rules! launchers {
    ($($name:ident),*) => {
        $(
            #[cfg(any(test, feature = "cuda"))]
            #[allow(dead_code)]
            mod $name;
        )*
    };
}

launchers!(columns, decode, engine, reduce, rows, update);

mod disabled;
#[cfg(all(test, feature = "simulator"))]
mod simulator;
#[cfg(all(test, feature = "simulator"))]
mod tests;

pub use disabled::*;
