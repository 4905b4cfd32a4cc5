//! Removing what a mesh has made, also when its test process was killed before it could.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::Context;

use crate::cgroup::Cgroup;
use crate::id::MeshId;
use crate::netns;

/// Where bpffs is mounted.
pub(crate) const BPFFS: &str = "/sys/fs/bpf";
/// In a mesh's directory: when its test process started, so that a reused pid is not taken for it.
const OWNER_FILE: &str = "owner";

/// Removes a mesh at the end of its test, also when that panics.
#[derive(Debug)]
pub(crate) struct Cleanup {
    id: MeshId,
}

impl Cleanup {
    /// Claims the id: makes the mesh's directory and marks it as this process's.
    pub(crate) fn claim(id: MeshId) -> anyhow::Result<Self> {
        let directory = id.directory();
        fs::create_dir(&directory).with_context(|| format!("make {}", directory.display()))?;
        let cleanup = Self { id };
        fs::write(directory.join(OWNER_FILE), start_time(id.pid()).unwrap_or_default())?;
        Ok(cleanup)
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        if std::env::var_os("HEDDLE_TEST_KEEP").is_some() {
            eprintln!("HEDDLE_TEST_KEEP is set: {} stays; the next test that starts removes it", self.id);
            return;
        }
        for problem in remove(self.id) {
            eprintln!("cleaning up {}: {problem:#}", self.id);
        }
    }
}

/// Removes the meshes of test processes that are gone. Returns what it removed.
///
/// # Errors
/// The machine's names cannot be listed.
pub fn sweep() -> anyhow::Result<Vec<MeshId>> {
    let mut dead = Vec::new();
    for id in known()?.into_iter().filter(|id| !is_alive(*id)) {
        // Another test may be sweeping the same one: what is gone is gone.
        for problem in remove(id) {
            eprintln!("sweeping {id}: {problem:#}");
        }
        dead.push(id);
    }
    Ok(dead)
}

/// Every mesh of which something exists on this machine.
///
/// # Errors
/// The machine's names cannot be listed.
pub fn known() -> anyhow::Result<BTreeSet<MeshId>> {
    let cgroups = Cgroup::root()?;
    let places = [Path::new("/tmp"), Path::new(netns::NETNS_DIR), Path::new(BPFFS), &cgroups];
    Ok(places.into_iter().flat_map(names).filter_map(|name| MeshId::in_name(&name)).collect())
}

/// What is left of one mesh: network namespaces, cgroups, pins, files.
///
/// # Errors
/// The machine's names cannot be listed.
pub fn traces(id: MeshId) -> anyhow::Result<Vec<String>> {
    let cgroups = Cgroup::root()?;
    let places = [Path::new("/tmp"), Path::new(netns::NETNS_DIR), Path::new(BPFFS), &cgroups];
    let mine = |place: &Path| {
        let place = place.to_owned();
        names(&place).into_iter().filter(move |n| MeshId::in_name(n) == Some(id)).map(move |n| place.join(n))
    };
    Ok(places.into_iter().flat_map(mine).map(|p| p.display().to_string()).collect())
}

/// Removes everything with the mesh's name; what cannot be removed is returned and does not stop the rest.
fn remove(id: MeshId) -> Vec<anyhow::Error> {
    let mut problems = Vec::new();
    let mut note = |result: anyhow::Result<()>| problems.extend(result.err());
    note(Cgroup::root().and_then(|root| Cgroup::at(root.join(id.to_string())).destroy()));
    for directory in [BPFFS, netns::NETNS_DIR] {
        for name in names(Path::new(directory)).into_iter().filter(|n| MeshId::in_name(n) == Some(id)) {
            note(if directory == BPFFS { remove_tree(&Path::new(BPFFS).join(name)) } else { netns::delete(&name) });
        }
    }
    note(remove_tree(&id.directory()));
    problems
}

fn remove_tree(path: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().into_string().ok()).collect()
}

fn is_alive(id: MeshId) -> bool {
    let Some(now) = start_time(id.pid()) else { return false };
    match fs::read_to_string(id.directory().join(OWNER_FILE)) {
        Ok(then) if !then.is_empty() => then == now,
        _ => true,
    }
}

/// Field 22 of `/proc/<pid>/stat`; `None` if there is no such process.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name may hold spaces and parentheses; the fields after the last one do not.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19).map(str::to_owned)
}
