//! With feature `cuda`, compiles our kernels to PTX.
#![expect(
    clippy::disallowed_methods,
    reason = "a build script is told everything by the environment"
)]

use std::path::{Path, PathBuf};
use std::process::Command;

/// The kernels are compiled once for each number format and number of numbers
/// that a thread moves at once.
const FORMATS: [&str; 3] = ["bf16", "f16", "f32"];
const PACKS: [usize; 2] = [1, 4];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/nn/kernels");
    let has = |feature: &str| std::env::var_os(format!("CARGO_FEATURE_{feature}")).is_some();
    if has("CUDA") {
        let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo says where"));
        compile_kernels(&out);
    }
}

/// The CUDA compiler: `NVCC`, else that of `CUDA_HOME`, else the one on the path.
fn nvcc() -> PathBuf {
    println!("cargo::rerun-if-env-changed=NVCC");
    println!("cargo::rerun-if-env-changed=CUDA_HOME");
    let of_home = |home| Path::new(&home).join("bin/nvcc");
    std::env::var_os("NVCC")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("CUDA_HOME").map(of_home))
        .unwrap_or_else(|| "nvcc".into())
}

/// `OUT/FORMAT_PACK.ptx`, for cards of compute capability 8.0 and later: the driver
/// compiles them for the card at hand.
fn compile_kernels(out: &Path) {
    for format in FORMATS {
        for pack in PACKS {
            let mut command = Command::new(nvcc());
            command
                .args(["-ptx", "-O3", "-arch=compute_80"])
                .arg(format!("-DNUMBER_{}", format.to_uppercase()))
                .arg(format!("-DPACK={pack}"))
                .arg("-o")
                .arg(out.join(format!("{format}_{pack}.ptx")))
                .arg("src/nn/kernels/all.cu");
            run(&mut command);
        }
    }
}

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| {
        panic!("{command:?} cannot be started ({error}); tools/gpu/README.md says where nvcc comes from")
    });
    assert!(status.success(), "{command:?} failed: {status}");
}
