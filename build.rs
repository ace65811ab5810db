//! With feature `cuda`, compiles our kernels to PTX.
#![expect(
    clippy::disallowed_methods,
    reason = "a build script is told everything by the environment"
)]

use std::ffi::OsString;
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
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    if has("CUDA") {
        if let Some(capability) = setting("CUDA_COMPUTE_CAP") {
            // candle's kernels are compiled for it; src/device/cuda.rs tells other cards.
            let capability = capability.to_string_lossy();
            println!("cargo::rustc-env=COMPILED_FOR_COMPUTE_CAPABILITY={capability}");
        }
        compile_kernels(&out);
    }
    if has("FLASH_ATTN") {
        compile_flash_attention(&out);
    }
}

/// What the environment says; cargo runs this again when it says something else.
fn setting(name: &str) -> Option<OsString> {
    println!("cargo::rerun-if-env-changed={name}");
    std::env::var_os(name)
}

/// The CUDA compiler: `NVCC`, else that of `CUDA_HOME`, else the one on the path.
fn nvcc() -> Command {
    let of_home = |home| Path::new(&home).join("bin/nvcc");
    let path = setting("NVCC").map(PathBuf::from).or_else(|| setting("CUDA_HOME").map(of_home));
    Command::new(path.unwrap_or_else(|| "nvcc".into()))
}

/// `OUT/FORMAT_PACK.ptx`, for cards of compute capability 8.0 and later: the driver
/// compiles them for the card at hand.
fn compile_kernels(out: &Path) {
    for format in FORMATS {
        for pack in PACKS {
            let mut command = nvcc();
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

/// A library of the two entry points, each with the one kernel that it needs.
fn compile_flash_attention(out: &Path) {
    let source = |name: &str| {
        let folder = setting(name).unwrap_or_else(|| {
            panic!("feature flash-attn needs {name}: tools/gpu/README.md says where it comes from")
        });
        format!("-I{}", folder.display())
    };
    let versions = [
        (
            "flash_v3",
            source("FLASH_ATTENTION_V3"),
            source("CUTLASS_OF_V3"),
            // Kernels with Hopper's own instructions run on no other card.
            vec!["-gencode=arch=compute_90a,code=sm_90a"],
        ),
        (
            "flash_v2",
            source("FLASH_ATTENTION_V2"),
            source("CUTLASS_OF_V2"),
            // Machine code for 8.x, and text for later cards but Hopper.
            vec![
                "-gencode=arch=compute_80,code=sm_80",
                "-gencode=arch=compute_80,code=compute_80",
                "-DFLASHATTENTION_DISABLE_ALIBI",
                "-DFLASHATTENTION_DISABLE_DROPOUT",
                "-DFLASHATTENTION_DISABLE_LOCAL",
                "-DFLASHATTENTION_DISABLE_SOFTCAP",
                "-DFLASHATTENTION_DISABLE_UNEVEN_K",
            ],
        ),
    ];
    let mut archive = Command::new("ar");
    archive.arg("rcs").arg(out.join("libflash.a"));
    for (name, kernels, cutlass, arguments) in versions {
        let object = out.join(format!("{name}.o"));
        let mut command = nvcc();
        command
            .args(["-c", "-std=c++17", "-O3", "--use_fast_math", "-w", "-Xcompiler", "-fPIC"])
            .args(["--expt-relaxed-constexpr", "--expt-extended-lambda"])
            // The arithmetic operators of 16-bit numbers, which the kernels use.
            .args(["-U__CUDA_NO_HALF_OPERATORS__", "-U__CUDA_NO_HALF_CONVERSIONS__"])
            .args(["-U__CUDA_NO_BFLOAT16_OPERATORS__", "-U__CUDA_NO_BFLOAT16_CONVERSIONS__"])
            .args(arguments)
            .args([kernels, cutlass])
            .arg("-o")
            .arg(&object)
            .arg(format!("src/nn/kernels/{name}.cu"));
        run(&mut command);
        archive.arg(object);
    }
    run(&mut archive);
    println!("cargo::rustc-link-search=native={}", out.display());
    println!("cargo::rustc-link-lib=static=flash");
    println!("cargo::rustc-link-lib=cudart");
    println!("cargo::rustc-link-lib=stdc++");
}

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| {
        panic!("{command:?} cannot be started ({error}); tools/gpu/README.md says where nvcc comes from")
    });
    assert!(status.success(), "{command:?} failed: {status}");
}
