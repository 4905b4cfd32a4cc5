//! Programs of other people that suites run as peers: looked for, never skipped.
//!
//! Debian's come from `cargo xtask setup`. Python's packages and Envoy live in one environment below `target/python`, which
//! `tests/testkit/python/environment.py` makes for setup, for tests and for benchmarks alike, from one list.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, ensure};

/// The packages, pinned.
const REQUIREMENTS: &str = include_str!("../python/requirements.txt");
/// What makes the environment.
const ENVIRONMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/python/environment.py");

/// A program of the system, by name.
///
/// # Errors
/// It is not installed; the error says which Debian package has it.
pub fn program(name: &str, package: &str) -> anyhow::Result<Command> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let found = std::env::split_paths(&path).chain(extra).map(|d| d.join(name)).find(|p| p.is_file());
    Ok(Command::new(found.with_context(|| {
        format!("{name} is missing: run `cargo xtask setup`, or install the Debian package {package}")
    })?))
}

/// A Python interpreter that has these PyPI packages, which the list of requirements has to name.
///
/// The environment is made on first use; tests that start together wait for the one that makes it.
///
/// # Errors
/// Python is missing, a package is not in the list, or cannot be installed.
pub fn python(packages: &[&str]) -> anyhow::Result<Command> {
    for package in packages {
        ensure!(is_required(package), "{package} is not in tests/testkit/python/requirements.txt");
    }
    static INTERPRETER: OnceLock<PathBuf> = OnceLock::new();
    Ok(Command::new(path_of("python", &INTERPRETER)?))
}

/// Envoy: the binary itself, not a script around it.
///
/// # Errors
/// Python is missing, or Envoy cannot be installed.
pub fn envoy() -> anyhow::Result<Command> {
    static ENVOY: OnceLock<PathBuf> = OnceLock::new();
    Ok(Command::new(path_of("envoy", &ENVOY)?))
}

fn is_required(package: &str) -> bool {
    REQUIREMENTS.lines().any(|line| line.split_once("==").is_some_and(|(name, _)| name == package))
}

fn path_of<'a>(word: &str, known: &'a OnceLock<PathBuf>) -> anyhow::Result<&'a PathBuf> {
    if let Some(path) = known.get() {
        return Ok(path);
    }
    // `-I`: whatever the user's variables say about Python.
    let mut command = program("python3", "python3-venv")?;
    let output = command.arg("-I").arg(ENVIRONMENT).arg(word).output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    let path = String::from_utf8(output.stdout).context("path of the Python environment")?;
    Ok(known.get_or_init(|| PathBuf::from(path.trim_end())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_requirement_is_pinned_and_only_those_can_be_asked_for() {
        let packages = REQUIREMENTS.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        for line in packages {
            let pinned =
                line.split_once("==").is_some_and(|(name, version)| !name.is_empty() && !version.contains('*'));
            assert!(pinned, "{line} names no one version");
        }
        assert!(is_required("grpcio") && !is_required("grpc") && !is_required("requests"));
        assert!(python(&["requests"]).unwrap_err().to_string().contains("requirements.txt"));
    }

    #[test]
    fn a_missing_program_is_told_with_its_package() {
        let error = program("no-such-program", "some-package").unwrap_err().to_string();
        assert!(error.contains("no-such-program") && error.contains("some-package"), "{error}");
    }
}
