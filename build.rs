//! What is not Rust: the kernels for GPUs (feature `cuda`), and the simulator that runs them on a CPU (feature `simulator`).

#[path = "build/cuda.rs"]
mod cuda;
#[cfg(feature = "simulator")]
#[path = "build/simulator.rs"]
mod simulator;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    #[cfg(feature = "simulator")]
    simulator::build();
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some() {
        cuda::build();
    }
}
