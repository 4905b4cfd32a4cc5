//! Looking at the machine from outside: descriptors, memory, listeners, eBPF objects, and what an instance left behind.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::netns::Netns;

/// The agent's ports inside a pod.
pub const AGENT_PORTS: [u16; 3] = [15001, 15006, 15008];

/// How much one process uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Open file descriptors.
    pub fds: usize,
    /// Resident memory, KiB.
    pub rss_kib: u64,
}

/// What a process uses now.
///
/// # Errors
/// It is gone.
pub fn usage(pid: u32) -> anyhow::Result<Usage> {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).with_context(|| format!("descriptors of {pid}"))?.count();
    let rss = status_field(pid, "VmRSS")?;
    let rss_kib = rss.split_whitespace().next().and_then(|n| n.parse().ok()).context("VmRSS")?;
    Ok(Usage { fds, rss_kib })
}

/// A field of `/proc/<pid>/status`.
///
/// # Errors
/// The process is gone, or there is no such field.
pub fn status_field(pid: u32, field: &str) -> anyhow::Result<String> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| path.clone())?;
    let mut values = status.lines().filter_map(|l| l.split_once(':')).filter(|(name, _)| *name == field);
    values.next().map(|(_, value)| value.trim().to_owned()).with_context(|| format!("no {field} in {path}"))
}

/// A TCP socket as the kernel's tables have it: no hook changes what they say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpSocket {
    /// Local address, IPv4 never as mapped IPv6.
    pub local: SocketAddr,
    /// Remote address; unspecified for a listener.
    pub remote: SocketAddr,
    /// Whether it listens.
    pub listens: bool,
    /// Whether it is established.
    pub established: bool,
}

/// The TCP sockets of a namespace.
///
/// # Errors
/// The namespace cannot be entered.
pub fn tcp_sockets(netns: &Netns) -> anyhow::Result<Vec<TcpSocket>> {
    let tables = netns.inside(|| {
        // thread-self: /proc/net is the view of the process's first thread.
        ["tcp", "tcp6"].map(|t| fs::read_to_string(format!("/proc/thread-self/net/{t}")).unwrap_or_default())
    })?;
    Ok(tables.iter().flat_map(|t| t.lines().skip(1)).filter_map(tcp_socket).collect())
}

/// A line of `/proc/net/tcp`.
fn tcp_socket(line: &str) -> Option<TcpSocket> {
    let mut fields = line.split_whitespace().skip(1);
    let (local, remote) = (address(fields.next()?)?, address(fields.next()?)?);
    let state = fields.next()?;
    Some(TcpSocket { local, remote, listens: state == "0A", established: state == "01" })
}

/// `0100007F:3A99`: words in the machine's byte order.
fn address(text: &str) -> Option<SocketAddr> {
    let (words, port) = text.split_once(':')?;
    let words: Option<Vec<u32>> = words
        .as_bytes()
        .chunks(8)
        .map(|c| u32::from_str_radix(std::str::from_utf8(c).ok()?, 16).ok().map(u32::from_be))
        .collect();
    let ip: IpAddr = match *words?.as_slice() {
        [v4] => Ipv4Addr::from(v4).into(),
        [a, b, c, d] => {
            Ipv6Addr::from(u128::from(a) << 96 | u128::from(b) << 64 | u128::from(c) << 32 | u128::from(d)).into()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip.to_canonical(), u16::from_str_radix(port, 16).ok()?))
}

/// Processes other than this one that hold a descriptor of one of these namespaces, as `pid name → namespace`.
#[must_use]
pub fn netns_holders(namespaces: &[&Netns]) -> Vec<String> {
    let mut found = Vec::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    for pid in pids.filter(|pid| *pid != std::process::id()) {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        for descriptor in descriptors {
            // By inode, not by the link's text: that is `net:[…]` or a path, as it was opened.
            if let Some(netns) = namespaces.iter().find(|n| n.is_at(&descriptor.path())) {
                let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                found.push(format!("process {pid} ({}) holds namespace {}", name.trim(), netns.name()));
            }
        }
    }
    found
}

/// The eBPF objects of one instance, by kernel id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BpfObjects {
    /// Programs attached or pinned.
    pub programs: BTreeSet<u64>,
    /// Maps those programs use, and pinned ones.
    pub maps: BTreeSet<u64>,
    /// Links to the cgroup or a namespace, and pinned ones.
    pub links: BTreeSet<u64>,
}

impl BpfObjects {
    /// Objects attached to the cgroup or to a namespace, or pinned below `pins`. Needs bpftool.
    ///
    /// # Errors
    /// bpftool is missing or failed.
    pub fn of(cgroup: &Path, namespaces: &[&Netns], pins: &Path) -> anyhow::Result<Self> {
        let cgroup_id = fs::metadata(cgroup).with_context(|| cgroup.display().to_string())?.ino();
        let mut found = Self::default();
        for link in bpftool("link")? {
            let attached = link["cgroup_id"].as_u64() == Some(cgroup_id)
                || namespaces.iter().any(|n| link["netns_ino"].as_u64() == Some(n.inode()));
            if attached || pinned_below(&link, pins) {
                found.links.extend(link["id"].as_u64());
                found.programs.extend(link["prog_id"].as_u64());
            }
        }
        for program in bpftool("prog")? {
            let id = program["id"].as_u64();
            if id.is_some_and(|id| found.programs.contains(&id)) || pinned_below(&program, pins) {
                found.programs.extend(id);
                found.maps.extend(program["map_ids"].as_array().into_iter().flatten().filter_map(Value::as_u64));
            }
        }
        let maps = bpftool("map")?;
        found.maps.extend(maps.iter().filter(|m| pinned_below(m, pins)).filter_map(|m| m["id"].as_u64()));
        Ok(found)
    }

    /// Which of these still exist.
    ///
    /// # Errors
    /// bpftool is missing or failed.
    pub fn alive(&self) -> anyhow::Result<Vec<String>> {
        let mut alive = Vec::new();
        for (kind, ids) in [("prog", &self.programs), ("map", &self.maps), ("link", &self.links)] {
            for object in bpftool(kind)?.iter().filter(|o| o["id"].as_u64().is_some_and(|id| ids.contains(&id))) {
                alive.push(format!("bpf {kind} {} {}", object["id"], object["name"].as_str().unwrap_or_default()));
            }
        }
        Ok(alive)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.programs.is_empty() && self.maps.is_empty() && self.links.is_empty()
    }
}

fn pinned_below(object: &Value, pins: &Path) -> bool {
    let paths = object["pinned"].as_array().into_iter().flatten().filter_map(Value::as_str);
    paths.into_iter().any(|p| Path::new(p).starts_with(pins))
}

/// `bpftool -j -f <kind> show`: every object of the machine, with its pins.
fn bpftool(kind: &str) -> anyhow::Result<Vec<Value>> {
    // An object that vanishes while bpftool lists (another test's) makes it fail: try again.
    let mut error = String::new();
    for _ in 0..5 {
        let output = Command::new("bpftool")
            .args(["-j", "-f", kind, "show"])
            .output()
            .context("start bpftool (apt: bpftool)")?;
        if output.status.success() {
            let text = String::from_utf8_lossy(&output.stdout);
            return if text.trim().is_empty() { Ok(Vec::new()) } else { Ok(serde_json::from_str(&text)?) };
        }
        error = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    }
    anyhow::bail!("bpftool {kind} show: {error}")
}

/// Every file below a directory; empty if it is not there.
///
/// # Errors
/// A directory cannot be read.
pub fn files_below(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let (mut found, mut open) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(next) = open.pop() {
        if !next.exists() {
            continue;
        }
        for entry in fs::read_dir(&next).with_context(|| next.display().to_string())? {
            let entry = entry?;
            if entry.file_type()?.is_dir() { open.push(entry.path()) } else { found.push(entry.path()) }
        }
    }
    Ok(found)
}

/// Fails with a clear message unless the process runs as root.
///
/// # Errors
/// It does not.
pub fn need_root() -> anyhow::Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "this test makes network namespaces, cgroups and eBPF programs: run it as root (sudo -E cargo xtask test)"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_proc_net_tcp() {
        let v4 = "   0: 0100007F:3A99 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100";
        let socket = tcp_socket(v4).unwrap();
        assert_eq!((socket.local, socket.listens), ("127.0.0.1:15001".parse().unwrap(), true));
        let v6 = "   1: 00000000000000000000000001000000:1F90 0000000000000000FFFF00000100007F:3A99 01 0:0 0:0 0 0 0 2";
        let socket = tcp_socket(v6).unwrap();
        assert_eq!(socket.local, "[::1]:8080".parse().unwrap());
        assert_eq!((socket.remote, socket.established), ("127.0.0.1:15001".parse().unwrap(), true));
    }
}
