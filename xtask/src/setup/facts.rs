//! What a machine has, found by looking: no action here changes anything.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use super::install::python_environment;
use super::plan::{Group, packages, programs};
use crate::ebpf::BpfCompiler;
use crate::tools;

/// The looked-at machine. The default is one that has nothing.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    pub(super) programs: BTreeSet<&'static str>,
    /// Installed Debian packages, of those that could matter.
    pub(super) packages: BTreeSet<String>,
    pub(super) has_bpf_core: bool,
    pub(super) bpf_linker: Option<(u32, u32, u32)>,
    pub(super) has_nextest: bool,
    pub(super) has_python_venv: bool,
    pub(super) has_python_peers: bool,
    pub(super) has_apt: bool,
    pub(super) is_root: bool,
}

impl Facts {
    /// Looks for everything that matters to `groups`.
    pub fn gather(groups: &[Group]) -> Facts {
        let for_building = groups.contains(&Group::Build);
        let for_peers = for_building || groups.contains(&Group::Bench);
        Facts {
            programs: programs(groups).filter(|name| tools::find(name).is_some()).collect(),
            packages: installed(packages(groups)),
            has_bpf_core: for_building && BpfCompiler::installed().is_some(),
            bpf_linker: tools::find("bpf-linker")
                .and_then(|linker| first_version(Command::new(linker).arg("--version"))),
            has_nextest: tools::find("cargo-nextest")
                .is_some_and(|nextest| succeeds(Command::new(nextest).args(["nextest", "--version"]))),
            has_python_venv: for_peers && succeeds(Command::new("python3").args(["-c", "import venv, ensurepip"])),
            has_python_peers: for_peers && succeeds(&mut python_environment("check")),
            has_apt: tools::find("apt-get").is_some(),
            is_root: tools::is_root(),
        }
    }
}

/// Those of `names` that dpkg has installed; none where there is no dpkg.
fn installed(names: impl Iterator<Item = &'static str>) -> BTreeSet<String> {
    let query = Command::new("dpkg-query")
        .args(["--show", "--showformat", "${Package} ${db:Status-Status}\n"])
        .args(names)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    // dpkg-query fails if one name is unknown to it, yet lists the others.
    let text = query.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().filter_map(|line| line.strip_suffix(" installed")).map(String::from).collect()
}

fn succeeds(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

fn first_version(command: &mut Command) -> Option<(u32, u32, u32)> {
    tools::output(command).ok()?.split_whitespace().find_map(version)
}

fn version(word: &str) -> Option<(u32, u32, u32)> {
    let mut parts = word.trim_start_matches('v').split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_the_usual_line() {
        let read = |line: &str| line.split_whitespace().find_map(version);
        assert_eq!(read("bpf-linker 0.13.0"), Some((0, 13, 0)));
        assert_eq!(read("tool v1.2.3 (abc)"), Some((1, 2, 3)));
        assert_eq!(read("bpf-linker"), None);
    }

    #[test]
    fn a_broken_program_has_no_version() {
        assert_eq!(first_version(Command::new("sh").args(["-c", "echo 1.2.3; exit 127"])), None);
        assert_eq!(first_version(Command::new("sh").args(["-c", "echo tool 1.2.3"])), Some((1, 2, 3)));
    }
}
