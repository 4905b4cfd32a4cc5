//! Names of everything one mesh creates on the machine, made so that a later process can tell whose they were.
//!
//! Every name starts with `heddle-test-<pid>-<n>`: `pid` is the test process, `n` counts its meshes.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};

/// What every name starts with.
const PREFIX: &str = "heddle-test-";

/// One mesh of one test process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MeshId {
    pid: u32,
    serial: u32,
}

impl MeshId {
    /// The next id of this process.
    pub(crate) fn next() -> Self {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        Self { pid: std::process::id(), serial: SERIAL.fetch_add(1, Ordering::Relaxed) }
    }

    /// An id of another process, to plant leftovers in a test of the sweep.
    #[must_use]
    pub const fn of(pid: u32, serial: u32) -> Self {
        Self { pid, serial }
    }

    /// The test process.
    #[must_use]
    pub const fn pid(self) -> u32 {
        self.pid
    }

    /// The id in a name that starts with one, whatever follows.
    #[must_use]
    pub fn in_name(name: &str) -> Option<Self> {
        let rest = name.strip_prefix(PREFIX)?;
        let mut parts = rest.splitn(3, '-');
        Some(Self { pid: number(parts.next()?)?, serial: number(parts.next()?)? })
    }

    /// Name of a network namespace, a pin directory or a BPF object of this mesh.
    #[must_use]
    pub fn name(self, part: &str) -> String {
        format!("{self}-{part}")
    }

    /// The mesh's directory for files.
    #[must_use]
    pub fn directory(self) -> PathBuf {
        Path::new("/tmp").join(self.to_string())
    }
}

impl fmt::Display for MeshId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}-{}", self.pid, self.serial)
    }
}

fn number(text: &str) -> Option<u32> {
    u32::from_str(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_its_mesh() {
        let id = MeshId::of(4711, 2);
        for name in [id.to_string(), id.name("a"), id.name("pod-web-1")] {
            assert_eq!(MeshId::in_name(&name), Some(id), "{name}");
        }
        for name in ["heddle-test-", "heddle-test-x-1", "heddle-test-1", "heddle-testkit-1-1", "web"] {
            assert_eq!(MeshId::in_name(name), None, "{name}");
        }
    }
}
