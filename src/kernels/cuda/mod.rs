//! CUDA: launches planned against [`engine::Engine`], and the seam's functions over them. Features are named here and nowhere else.

#[cfg(feature = "cuda")]
mod device;
#[cfg(not(feature = "cuda"))]
mod disabled;
#[cfg(feature = "cuda")]
mod enabled;
#[cfg(any(feature = "cuda", feature = "simulator"))]
mod encode;
#[cfg(any(feature = "cuda", feature = "simulator"))]
mod engine;
#[cfg(any(feature = "cuda", feature = "simulator"))]
mod seam;

#[cfg(not(feature = "cuda"))]
pub use disabled::*;
#[cfg(feature = "cuda")]
pub use enabled::*;
