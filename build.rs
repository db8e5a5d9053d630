//! What is not Rust: the kernels' simulator (feature `simulator`) and the kernels themselves (feature `cuda`). Without these, nothing.

#[cfg(feature = "simulator")]
#[path = "build/simulator.rs"]
mod simulator;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    #[cfg(feature = "simulator")]
    simulator::build();
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some() {
        cuda();
    }
}

/// kernels/*.cu -> a fatbin.
fn cuda() {}
