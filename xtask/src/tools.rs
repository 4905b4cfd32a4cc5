//! Finding the repository and its programs, and starting them in a clean environment.

use std::env;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};

/// The repository's top folder, whatever the working directory.
pub fn repository() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let manifest = PathBuf::from(manifest);
    manifest.parent().map(Path::to_path_buf).unwrap_or(manifest)
}

/// Where cargo puts this workspace's artifacts.
pub fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => repository().join(directory),
        None => repository().join("target"),
    }
}

/// Folders in which programs are looked for: `PATH`, cargo's own, and the administrator's, which an ordinary PATH may lack.
fn program_folders() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default();
    folders.push(cargo_home().join("bin"));
    folders.extend(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from));
    folders
}

/// The full path of a program, if it is installed.
pub fn find(program: &str) -> Option<PathBuf> {
    program_folders().into_iter().map(|folder| folder.join(program)).find(|path| is_executable(path))
}

/// A regular file that somebody may execute.
pub fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

fn cargo_home() -> PathBuf {
    let home = || PathBuf::from(env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cargo");
    env::var_os("CARGO_HOME").map_or_else(home, PathBuf::from)
}

/// A cargo that does not notice it was started by another cargo: what `cargo run` tells its child about the package
/// `xtask` would otherwise reach build scripts of other packages and rebuild them for nothing.
pub fn cargo() -> Command {
    let mut command = Command::new("cargo");
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_told_by_cargo) {
            command.env_remove(&name);
        }
    }
    command.current_dir(repository());
    command
}

fn is_told_by_cargo(name: &str) -> bool {
    const PREFIXES: [&str; 4] = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CFG_"];
    const NAMES: [&str; 6] =
        ["CARGO", "CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE", "OUT_DIR", "LD_LIBRARY_PATH", "RUST_RECURSION_COUNT"];
    PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || NAMES.contains(&name)
}

/// Runs a command whose output belongs to the user; an error names it.
pub fn run(command: &mut Command) -> Result<()> {
    let status = status(command)?;
    if !status.success() {
        bail!("`{}` failed ({status})", display(command));
    }
    Ok(())
}

/// Like [`run`], for callers who pass the exit status on.
pub fn status(command: &mut Command) -> Result<ExitStatus> {
    command.status().with_context(|| format!("cannot start `{}`", display(command)))
}

/// Standard output of a command that must succeed.
pub fn output(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{}`", display(command)))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed ({}): {}", display(command), output.status, stderr.trim());
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("`{}` wrote something that is not UTF-8", display(command)))
}

/// Becomes the program, so that Ctrl-C reaches it alone and the prompt returns when it has cleaned up. Returns only if it
/// cannot be started.
pub fn become_program(command: &mut Command) -> anyhow::Error {
    let error = command.exec();
    anyhow::Error::from(error).context(format!("cannot start `{}`", display(command)))
}

/// The command as a person would type it.
pub fn display(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// A child's end as ours: its code, or 128 + the signal as a shell says it.
pub fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// Whether this process may create network namespaces and load eBPF, which here means: is root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Refuses early, with the command to type instead.
pub fn require_root(task: &str, why: &str) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    bail!("`cargo xtask {task}` must run as root: {why}. Run `sudo -E env \"PATH=$PATH\" cargo xtask {task}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_is_the_folder_of_the_workspace() {
        assert!(repository().join("Cargo.toml").is_file());
        assert!(repository().join("xtask/Cargo.toml").is_file());
    }

    #[test]
    fn only_what_cargo_tells_its_children_is_hidden_from_the_next_cargo() {
        for hidden in ["CARGO", "CARGO_PKG_NAME", "CARGO_MANIFEST_DIR", "OUT_DIR"] {
            assert!(is_told_by_cargo(hidden), "{hidden}");
        }
        for kept in ["CARGO_HOME", "CARGO_TARGET_DIR", "CARGO_NET_OFFLINE", "CARGO_BUILD_JOBS", "RUSTFLAGS", "PATH"] {
            assert!(!is_told_by_cargo(kept), "{kept}");
        }
    }

    #[test]
    fn programs_are_found_by_name_and_absent_ones_are_not() {
        assert!(find("sh").is_some());
        assert!(find("heddle-there-is-no-such-program").is_none());
    }
}
