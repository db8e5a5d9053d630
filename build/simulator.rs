//! kernels/sim/all.cpp, by the C++ compiler at hand. With `LAPIDARY_SANITIZE=1` in the environment, under the address and undefined-behaviour
//! sanitizers of gcc; with `LAPIDARY_SANITIZE=races`, with every access of a kernel told to the simulator (races.hpp).

use std::path::Path;
use std::process::Command;

pub fn build() {
    println!("cargo:rerun-if-changed=kernels");
    println!("cargo:rerun-if-env-changed=LAPIDARY_SANITIZE");
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").file("kernels/sim/all.cpp").include("kernels");
    build.warnings(true).extra_warnings(true).opt_level(2).pic(true);
    // No fused multiply-add, where the machine would have one: one result everywhere. Locals that nobody set are no zeroes.
    build.flag("-ffp-contract=off").flag_if_supported("-Wno-psabi").flag_if_supported("-ftrivial-auto-var-init=pattern");
    match std::env::var("LAPIDARY_SANITIZE").as_deref() {
        Ok("1") => sanitize(&mut build),
        Ok("races") => watch(&mut build),
        _ => {}
    }
    build.compile("lapidary_sim");
}

/// The calls that gcc inserts for its thread sanitizer, and a simulator that answers them in place of that one's runtime.
fn watch(build: &mut cc::Build) {
    build.debug(true).define("LAPIDARY_RACES", "1").flag("-fsanitize=thread");
    for parameter in ["tsan-instrument-func-entry-exit=0", "tsan-distinguish-volatile=1"] {
        build.flag("--param").flag(parameter);
    }
}

/// Findings become errors of a launch (`-fsanitize-recover`; launch.hpp).
fn sanitize(build: &mut cc::Build) {
    build.debug(true).flag("-fno-omit-frame-pointer");
    build.flag("-fsanitize=address,undefined").flag("-fsanitize-recover=address,undefined");
    build.flag("-fsanitize-sections=lapidary_shared");
    // In whole, or `malloc` would stay the C library's; the runtime as a shared library would have to come before that one.
    println!("cargo:rustc-link-arg=-Wl,--whole-archive");
    println!("cargo:rustc-link-arg={}", runtime(build, "libasan.a"));
    println!("cargo:rustc-link-arg=-Wl,--no-whole-archive");
    println!("cargo:rustc-link-arg={}", runtime(build, "libubsan.a"));
    for library in ["-lstdc++", "-lpthread", "-ldl", "-lrt", "-lm"] {
        println!("cargo:rustc-link-arg={library}");
    }
}

fn runtime(build: &cc::Build, name: &str) -> String {
    let said = Command::new(build.get_compiler().path()).arg(format!("-print-file-name={name}")).output();
    let path = said.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_string()).unwrap_or_default();
    // A compiler without it prints the bare name.
    if !Path::new(&path).is_absolute() {
        println!("cargo:warning=LAPIDARY_SANITIZE=1 needs gcc with {name}");
        std::process::exit(1);
    }
    path
}
