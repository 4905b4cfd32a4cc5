//! `build-ebpf`: compiles `ebpf-programs/programs` for the kernel's virtual machine into `target/ebpf/heddle-ebpf.o`.
//!
//! Two compilers can do it, see [`BpfCompiler`]. The object is replaced only when its bytes changed, so that the agent,
//! which embeds it, is not rebuilt for nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::progress::Step;
use crate::tools;

const TARGET: &str = "bpfel-unknown-none";
/// The newest LLVM whose bitcode our bpf-linker reads.
pub const LLVM_MAJOR: u32 = 22;

/// A compiler that has, or can build, the `core` library for the BPF target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BpfCompiler {
    /// A rustup nightly with `rust-src`, which builds `core` on the way.
    Nightly,
    /// Debian's `rustc-web`, which ships `core` for BPF ready-made in `libstd-rust-web-dev-bpf`.
    Debian,
}

impl BpfCompiler {
    /// The compiler this machine has, the nightly first.
    pub fn installed() -> Option<BpfCompiler> {
        let sysroot_has = |rustc: &mut Command, path: &str| {
            tools::output(rustc.args(["--print", "sysroot"]))
                .is_ok_and(|sysroot| Path::new(sysroot.trim()).join("lib/rustlib").join(path).exists())
        };
        if sysroot_has(&mut nightly("rustc"), "src/rust/library/core")
            && tools::output(nightly("rustc").arg("-vV")).is_ok_and(|text| is_readable_by_linker(&text))
        {
            return Some(BpfCompiler::Nightly);
        }
        sysroot_has(&mut Command::new(DEBIAN_RUSTC), TARGET).then_some(BpfCompiler::Debian)
    }
}

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// A tool of rustup's nightly, if rustup has one: never downloads it.
fn nightly(tool: &str) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", tool]).env("RUSTUP_AUTO_INSTALL", "0");
    command
}

/// A linker older than the compiler's LLVM fails with "invalid record" deep in a build; better not to start.
fn is_readable_by_linker(version_text: &str) -> bool {
    let major = version_text
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: ")?.split('.').next()?.parse::<u32>().ok());
    major.is_some_and(|major| major <= LLVM_MAJOR)
}

/// Where the agent's build script looks for the object.
fn object() -> PathBuf {
    tools::repository().join("target/ebpf/heddle-ebpf.o")
}

/// Builds the programs; the path of the object.
pub fn build() -> Result<PathBuf> {
    let Some(linker) = tools::find("bpf-linker") else {
        bail!("bpf-linker is not installed: run `cargo xtask setup`");
    };
    let Some(compiler) = BpfCompiler::installed() else {
        bail!("no Rust compiler with `core` for {TARGET} is installed: run `cargo xtask setup`");
    };
    let target = tools::repository().join("target/ebpf-build");
    Step::run("building the eBPF programs", |step| step.command(&mut compile(compiler, &linker, &target)))?;

    let built = target.join(TARGET).join("release/heddle-ebpf");
    let bytes = fs::read(&built).with_context(|| format!("the build left no object at {}", built.display()))?;
    if !bytes.starts_with(b"\x7fELF") {
        bail!("{} is not an ELF object: was it linked with bpf-linker?", built.display());
    }
    replace_if_changed(&object(), &bytes)?;
    Ok(object())
}

/// The cargo call, free of whatever toolchain and flags the caller's own build was given.
fn compile(compiler: BpfCompiler, linker: &Path, target: &Path) -> Command {
    let programs = tools::repository().join("ebpf-programs/programs");
    let mut command = tools::cargo();
    for name in
        ["RUSTUP_TOOLCHAIN", "RUSTC", "RUSTC_WRAPPER", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET"]
    {
        command.env_remove(name);
    }
    match compiler {
        BpfCompiler::Nightly => {
            command.args(["+nightly", "build", "-Z", "build-std=core"]).env("RUSTUP_AUTO_INSTALL", "0");
        }
        BpfCompiler::Debian => {
            // RUSTC_BOOTSTRAP: the programs use unstable language features that this stable compiler contains.
            command.arg("build").env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
        }
    }
    command
        .args(["--release", "--locked", "--target", TARGET, "--bin", "heddle-ebpf", "--target-dir"])
        .arg(target)
        .current_dir(programs)
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker)
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_RUSTFLAGS", "-C link-arg=--btf -C debuginfo=2");
    command
}

/// Writes by rename, so that a build reading the object never sees half of it.
fn replace_if_changed(path: &Path, bytes: &[u8]) -> Result<bool> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(false);
    }
    let folder = path.parent().context("the object's path has no folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let new = path.with_extension("o.new");
    fs::write(&new, bytes).with_context(|| format!("cannot write {}", new.display()))?;
    fs::rename(&new, path).with_context(|| format!("cannot replace {}", path.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(command: &Command, name: &str) -> Option<String> {
        let value = command.get_envs().find(|(key, _)| *key == name)?.1?;
        Some(value.to_string_lossy().into_owned())
    }

    #[test]
    fn a_compiler_newer_than_the_linker_is_not_chosen() {
        assert!(is_readable_by_linker("rustc 1.97.0-nightly\nLLVM version: 22.1.4\n"));
        assert!(is_readable_by_linker("LLVM version: 21.1.0"));
        assert!(!is_readable_by_linker("LLVM version: 23.0.0"));
        assert!(!is_readable_by_linker("rustc 1.97.0-nightly"));
    }

    #[test]
    fn each_compiler_is_called_its_own_way_and_both_with_the_bpf_linker() {
        let linker = Path::new("/opt/bpf-linker");
        let debian = compile(BpfCompiler::Debian, linker, Path::new("/t"));
        assert_eq!(environment(&debian, "RUSTC").as_deref(), Some(DEBIAN_RUSTC));
        assert_eq!(environment(&debian, "RUSTC_BOOTSTRAP").as_deref(), Some("1"));
        assert!(!tools::display(&debian).contains("build-std"));
        let nightly = compile(BpfCompiler::Nightly, linker, Path::new("/t"));
        assert_eq!(environment(&nightly, "RUSTC"), None);
        assert!(tools::display(&nightly).starts_with("cargo +nightly build -Z build-std=core"));
        for command in [debian, nightly] {
            assert_eq!(
                environment(&command, "CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER").as_deref(),
                Some("/opt/bpf-linker")
            );
            assert!(
                command.get_envs().any(|(key, value)| key == "RUSTFLAGS" && value.is_none()),
                "inherited flags are dropped"
            );
        }
    }

    #[test]
    fn an_unchanged_object_keeps_its_modification_time() {
        let folder = tools::target().join("xtask/ebpf-test");
        let path = folder.join("object.o");
        let _ = fs::remove_dir_all(&folder);
        assert!(replace_if_changed(&path, b"one").unwrap());
        let first = fs::metadata(&path).unwrap().modified().unwrap();
        assert!(!replace_if_changed(&path, b"one").unwrap());
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), first);
        assert!(replace_if_changed(&path, b"two").unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"two");
    }
}
