//! CUDA: launches planned against [`engine::Engine`], and the seam's functions over them. Features are named here and nowhere else.

#[cfg(feature = "cuda")]
mod device;
#[cfg(not(feature = "cuda"))]
mod disabled;
#[cfg(feature = "cuda")]
mod enabled;
#[cfg(not(any(feature = "cuda", all(test, feature = "simulator"))))]
mod nowhere;
// What needs something to run kernels on: a GPU, or the simulator.
#[cfg(any(feature = "cuda", all(test, feature = "simulator")))]
mod batch;
#[cfg(any(feature = "cuda", all(test, feature = "simulator")))]
mod columns;
#[cfg(any(feature = "cuda", all(test, feature = "simulator")))]
mod decode;
#[cfg(any(feature = "cuda", all(test, feature = "simulator")))]
mod encode;
#[cfg(any(feature = "cuda", all(test, feature = "simulator")))]
mod engine;
#[cfg(any(feature = "cuda", all(test, feature = "simulator")))]
mod fused;
#[cfg(any(feature = "cuda", all(test, feature = "simulator")))]
mod on_gpu;
#[cfg(any(feature = "cuda", all(test, feature = "simulator")))]
mod pursuit;
#[cfg(any(feature = "cuda", all(test, feature = "simulator")))]
mod reduce;
#[cfg(any(feature = "cuda", all(test, feature = "simulator")))]
mod resident;
#[cfg(any(feature = "cuda", all(test, feature = "simulator")))]
mod rows;
#[cfg(any(feature = "cuda", all(test, feature = "simulator")))]
mod seam;
#[cfg(all(test, feature = "simulator"))]
mod simulator;
#[cfg(all(test, feature = "simulator"))]
mod tests;
#[cfg(any(feature = "cuda", all(test, feature = "simulator")))]
mod update;

#[cfg(not(feature = "cuda"))]
pub use disabled::*;
#[cfg(feature = "cuda")]
pub use enabled::*;
#[cfg(not(any(feature = "cuda", all(test, feature = "simulator"))))]
pub use nowhere::OnGpu;
#[cfg(any(feature = "cuda", all(test, feature = "simulator")))]
pub use on_gpu::OnGpu;

#[cfg(all(test, feature = "simulator", not(feature = "cuda")))]
fn opened(_: &candle_core::Device) -> crate::error::Result<engine::Shared> {
    absent()
}

#[cfg(all(test, feature = "simulator"))]
fn simulated(schedule: u32) -> Option<engine::Shared> {
    Some(std::sync::Arc::new(simulator::Simulator::new(schedule)))
}

#[cfg(all(test, feature = "cuda", not(feature = "simulator")))]
fn simulated(_: u32) -> Option<engine::Shared> {
    None
}
