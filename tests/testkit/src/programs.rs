//! Programs of other people that suites run as peers: looked for, never skipped.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use nix::fcntl::{Flock, FlockArg};

/// A program of the system, by name.
///
/// # Errors
/// It is not installed; the error says which Debian package has it.
pub fn program(name: &str, package: &str) -> anyhow::Result<Command> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let found = std::env::split_paths(&path).chain(extra).map(|d| d.join(name)).find(|p| p.is_file());
    Ok(Command::new(found.with_context(|| format!("{name} is missing: apt-get install {package}"))?))
}

/// A Python interpreter with these PyPI packages, in a virtual environment below the workspace's `target`, made on first use.
///
/// # Errors
/// Python is missing, or a package cannot be installed.
pub fn python(packages: &[&str]) -> anyhow::Result<Command> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/python");
    fs::create_dir_all(&directory)?;
    // Two tests that start together must not make it twice.
    let lock = File::options().create(true).truncate(false).write(true).open(directory.join("lock"))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error).context("lock")?;
    let environment = directory.join("venv");
    let python = environment.join("bin/python");
    if !python.is_file() {
        run(program("python3", "python3-venv")?.arg("-m").arg("venv").arg(&environment))?;
    }
    for package in packages {
        let done = directory.join(format!("{package}.installed"));
        if !done.is_file() {
            run(Command::new(&python).args(["-m", "pip", "install", "--quiet", package]))?;
            fs::write(done, "")?;
        }
    }
    Ok(Command::new(python))
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
