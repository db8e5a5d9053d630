//! CUDA: launches planned against [`engine::Engine`], and the seam's functions over them. Features are named here and nowhere else.

#[cfg(feature = "cuda")]
mod device;
#[cfg(not(feature = "cuda"))]
mod disabled;
#[cfg(feature = "cuda")]
mod enabled;

/// Modules that need something to run kernels on: a GPU, or the simulator.
macro_rules! planned {
    ($($name:ident),*) => {
        $(
            #[cfg(any(feature = "cuda", feature = "simulator"))]
            mod $name;
        )*
    };
}

planned!(batch, columns, decode, encode, engine, reduce, resident, rows, seam, update);

#[cfg(not(feature = "cuda"))]
pub use disabled::*;
#[cfg(feature = "cuda")]
pub use enabled::*;
