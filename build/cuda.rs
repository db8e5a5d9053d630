//! Feature `cuda`: all of kernels/ as one fatbin, which the library embeds.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Chips to compile for, where LAPIDARY_CUDA_ARCHS does not say: A100, H100 and H200. The lowest is there as PTX too, which drivers compile
/// for every newer chip.
const ARCHS: &str = "80,90a";

/// Writes OUT_DIR/kernels.fatbin.
pub fn build() {
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", "LAPIDARY_CUDA_ARCHS"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    println!("cargo:rerun-if-changed=kernels");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("kernels.fatbin");
    if env::var_os("DOCS_RS").is_some() {
        // Documentation needs the file to exist and nothing in it.
        std::fs::write(out, []).expect("OUT_DIR can be written");
        return;
    }
    let archs = env::var("LAPIDARY_CUDA_ARCHS").unwrap_or_else(|_| ARCHS.into());
    let archs: Vec<&str> = archs.split(',').map(str::trim).filter(|a| !a.is_empty()).collect();
    let plain = |arch: &&str| arch.trim_end_matches(|c: char| c.is_ascii_alphabetic()).parse::<u32>().ok();
    let Some(lowest) = archs.iter().filter_map(plain).min() else {
        stop("LAPIDARY_CUDA_ARCHS names no chip", "write compute capabilities such as 80,90a, or leave it out");
    };
    let nvcc = nvcc();
    let mut command = Command::new(&nvcc);
    command.args(["-O3", "-std=c++17", "--fatbin", "--compress-mode=size", "-I", "kernels"]);
    for arch in &archs {
        command.arg(format!("-gencode=arch=compute_{arch},code=sm_{arch}"));
    }
    command.arg(format!("-gencode=arch=compute_{lowest},code=compute_{lowest}"));
    command.arg("-o").arg(&out).arg("kernels/all.cu");
    let done = command.output();
    match done {
        Ok(done) if done.status.success() => {}
        Ok(done) => {
            let said = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
            stop(
                &format!("{} failed:\n{said}", nvcc.display()),
                "kernels/ needs CUDA 12.8 or newer (13.0 is what it is tested with) and a g++ that this nvcc accepts; scripts/cuda-toolkit.sh \
                 installs a toolkit without root",
            )
        }
        Err(e) => stop(&format!("{} cannot be run: {e}", nvcc.display()), "set NVCC to a CUDA compiler"),
    }
}

fn nvcc() -> PathBuf {
    if let Some(nvcc) = env::var_os("NVCC") {
        return nvcc.into();
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(|home| Path::new(&home).join("bin"));
    let paths: Vec<PathBuf> = env::var_os("PATH").map(|p| env::split_paths(&p).collect()).unwrap_or_default();
    let found =
        paths.into_iter().chain(homes).chain([PathBuf::from("/usr/local/cuda/bin")]).map(|bin| bin.join("nvcc")).find(|p| p.is_file());
    found.unwrap_or_else(|| {
        stop(
            "the feature `cuda` needs NVIDIA's compiler, and no nvcc is on PATH, in CUDA_HOME or in /usr/local/cuda",
            "run `scripts/cuda-toolkit.sh DIR` and `source DIR/env.sh`, or set NVCC; without the feature no toolkit is needed",
        )
    })
}

fn stop(problem: &str, help: &str) -> ! {
    eprintln!("error: {problem}\n  help: {help}");
    std::process::exit(1);
}
