//! Network namespaces: made with `ip`, entered with `setns`.
//!
//! `ip netns exec` is never used: it hides the cgroup2 mount from what it starts.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use nix::sched::{CloneFlags, setns};

use crate::wait::wait_until;

/// Where `ip netns add` mounts namespaces.
pub(crate) const NETNS_DIR: &str = "/run/netns";

/// The kernel reports carriers at least once a second.
const FORWARDING_MAX: Duration = Duration::from_secs(5);

/// A named network namespace.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
    inode: u64,
    device: u64,
}

impl Netns {
    /// Makes a namespace with its loopback up and IPv6 without duplicate address detection.
    pub(crate) fn create(name: &str) -> anyhow::Result<Self> {
        ip(&["netns", "add", name])?;
        let path = Path::new(NETNS_DIR).join(name);
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        let metadata = file.metadata()?;
        let (inode, device) = (metadata.ino(), metadata.dev());
        let netns = Self { name: name.to_owned(), file, inode, device };
        netns.inside(|| {
            for (key, value) in [
                ("ipv6/conf/all/disable_ipv6", "0"),
                ("ipv6/conf/default/accept_dad", "0"),
                ("ipv6/conf/all/accept_dad", "0"),
                ("ipv4/tcp_fastopen", "3"),
                // Tests open many connections from few addresses.
                ("ipv4/ip_local_port_range", "20000 60999"),
                ("ipv4/tcp_tw_reuse", "1"),
            ] {
                let path = format!("/proc/sys/net/{key}");
                std::fs::write(&path, value).with_context(|| format!("write {value:?} to {path}"))?;
            }
            anyhow::Ok(())
        })??;
        netns.ip(&["link set lo up".to_owned()])?;
        Ok(netns)
    }

    /// The name `ip netns` knows.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(&self.name)
    }

    /// The inode that identifies it to bpftool.
    #[must_use]
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Whether a path of `/proc/<pid>/fd` leads to this namespace, however it was opened.
    pub(crate) fn is_at(&self, path: &Path) -> bool {
        std::fs::metadata(path).is_ok_and(|m| (m.ino(), m.dev()) == (self.inode, self.device))
    }

    /// Runs `work` on a thread of its own inside the namespace. `/proc/thread-self/net` and `/proc/sys/net` are the
    /// namespace's there.
    ///
    /// # Errors
    /// The namespace cannot be entered, or `work` panicked.
    pub fn inside<R: Send>(&self, work: impl FnOnce() -> R + Send) -> anyhow::Result<R> {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)
                        .with_context(|| format!("enter network namespace {}", self.name))?;
                    Ok(work())
                })
                .join()
                .map_err(|_| anyhow!("the thread in network namespace {} panicked", self.name))?
        })
    }

    /// Runs a batch of `ip` commands in the namespace.
    /// Waits until every port of the bridge `br0` forwards.
    pub(crate) fn wait_for_bridge(&self) -> anyhow::Result<()> {
        let arguments = ["-n", &self.name, "-j", "-d", "link", "show", "master", "br0"];
        wait_until(&format!("the bridge of {} forwards", self.name), FORWARDING_MAX, || {
            let Ok(output) = Command::new("ip").args(arguments).output() else {
                return false;
            };
            let ports: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap_or_default();
            ports.iter().all(|port| port["linkinfo"]["info_slave_data"]["state"] == "forwarding")
        })
    }

    pub(crate) fn ip(&self, commands: &[String]) -> anyhow::Result<()> {
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("start ip (Debian package iproute2)")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(commands.join("\n").as_bytes())?;
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!("ip -n {}: {}\n{}", self.name, String::from_utf8_lossy(&output.stderr).trim(), commands.join("\n"));
        }
        Ok(())
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Deletes a namespace by name; one that is gone is fine.
pub(crate) fn delete(name: &str) -> anyhow::Result<()> {
    match ip(&["netns", "delete", name]) {
        Err(_) if !Path::new(NETNS_DIR).join(name).exists() => Ok(()),
        other => other,
    }
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip").args(arguments).output().context("start ip (Debian package iproute2)")?;
    if !output.status.success() {
        bail!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
