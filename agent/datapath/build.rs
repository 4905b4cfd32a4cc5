//! Embeds the eBPF object that `cargo xtask build-ebpf` made; without it a stub, so that `cargo check`, clippy and the
//! pure tests need no eBPF toolchain. A binary with the stub refuses to start a keeper.

use std::path::PathBuf;
use std::{env, fs};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../..");
    let object = env::var("HEDDLE_EBPF_OBJECT").map_or_else(|_| root.join("target/ebpf/heddle-ebpf.o"), PathBuf::from);
    println!("cargo:rerun-if-env-changed=HEDDLE_EBPF_OBJECT");
    println!("cargo:rerun-if-changed={}", object.display());
    let embedded = PathBuf::from(env::var("OUT_DIR")?).join("heddle-ebpf.o");
    if object.exists() {
        fs::copy(&object, &embedded)?;
    } else {
        fs::write(&embedded, [])?;
    }
    Ok(())
}
