//! Directories of the cgroup2 hierarchy: they decide which eBPF programs a program's sockets meet, and they list
//! every process a mesh has started, also those it did not start itself.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};

use crate::wait::wait_until;

/// How long killed processes may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// A cgroup2 directory.
#[derive(Clone, Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Where cgroup2 is mounted on this machine.
    ///
    /// # Errors
    /// It is not mounted.
    pub fn root() -> anyhow::Result<PathBuf> {
        let mounts = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
        let mount = mounts.lines().map(|l| l.split(' ')).find_map(|mut f| {
            let path = f.nth(1)?;
            (f.next()? == "cgroup2").then(|| PathBuf::from(path))
        });
        mount.context("cgroup2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup")
    }

    /// Makes a directory below the root, its parents too.
    pub(crate) fn create(below_root: &str) -> anyhow::Result<Self> {
        let path = Self::root()?.join(below_root);
        fs::create_dir_all(&path).with_context(|| format!("make cgroup {}", path.display()))?;
        Ok(Self { path })
    }

    /// A directory that may exist.
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Makes a directory in this one.
    pub(crate) fn child(&self, name: &str) -> anyhow::Result<Self> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).with_context(|| format!("make cgroup {}", path.display()))?;
        Ok(Self { path })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `cgroup.procs`, open for a process that wants to join by writing `0`.
    pub(crate) fn procs_for_joining(&self) -> anyhow::Result<File> {
        let path = self.path.join("cgroup.procs");
        OpenOptions::new().write(true).open(&path).with_context(|| format!("open {}", path.display()))
    }

    /// Processes in this directory and below.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        let mut found = Vec::new();
        for directory in self.tree() {
            let procs = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            found.extend(procs.lines().filter_map(|l| l.parse::<u32>().ok()));
        }
        found
    }

    /// Kills every process in it and removes it with everything below. One that is gone is fine.
    pub(crate) fn destroy(&self) -> anyhow::Result<()> {
        if !self.path.exists() {
            return Ok(());
        }
        // cgroup.kill takes the whole tree at once, so that nothing can fork past it.
        fs::write(self.path.join("cgroup.kill"), "1")
            .with_context(|| format!("kill cgroup {}", self.path.display()))?;
        wait_until(&format!("processes of {} end", self.path.display()), KILL_TIMEOUT, || self.processes().is_empty())?;
        let mut last = None;
        let removed = wait_until(&format!("removal of {}", self.path.display()), KILL_TIMEOUT, || {
            for directory in self.tree().iter().rev() {
                last = fs::remove_dir(directory).err();
            }
            !self.path.exists()
        });
        match removed {
            Err(error) => bail!("{error}: {last:?}"),
            Ok(()) => Ok(()),
        }
    }

    /// This directory and all below, parents before children.
    fn tree(&self) -> Vec<PathBuf> {
        let mut found = vec![self.path.clone()];
        let mut next = 0;
        while let Some(directory) = found.get(next).cloned() {
            next += 1;
            let children = fs::read_dir(directory).into_iter().flatten().flatten();
            found.extend(children.filter(|c| c.file_type().is_ok_and(|t| t.is_dir())).map(|c| c.path()));
        }
        found
    }
}
