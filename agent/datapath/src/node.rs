//! The node itself: what the kernel must offer, and how to free a node on which no keeper answers.

use std::fs;
use std::path::Path;

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::error::DatapathError;
use crate::kernel::{cgroup2_mount, remove_pins};
use crate::object;

/// One thing a node must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// Short name.
    pub name: &'static str,
    /// Whether it is there.
    pub ok: bool,
    /// What was found.
    pub detail: String,
    /// What to do if it is not.
    pub fix: &'static str,
}

/// Oldest kernel with everything used: the newest of it are `bpf_set_retval` (5.18) and `bpf_skc_to_mptcp_sock` (5.19).
const KERNEL_MIN: (u32, u32) = (5, 19);

/// Looks at the node. Reads only.
#[must_use]
pub fn requirements(cgroup: Option<&Path>) -> Vec<Requirement> {
    let mut found = vec![kernel_version(), programs(), btf(), jit(), bpffs(), cgroup2(cgroup), ipv6_loopback()];
    found.push(somaxconn());
    found
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn kernel_version() -> Requirement {
    let release = read("/proc/sys/kernel/osrelease");
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    Requirement {
        name: "kernel",
        ok: version >= KERNEL_MIN,
        detail: release,
        fix: "run Linux 5.19 or newer (CONFIG_BPF_SYSCALL, CONFIG_CGROUP_BPF)",
    }
}

fn programs() -> Requirement {
    let built = object::bytes();
    Requirement {
        name: "ebpf-programs",
        ok: built.is_ok(),
        detail: built.map_or_else(|error| error.to_string(), |bytes| format!("{} bytes in this binary", bytes.len())),
        fix: "run `cargo xtask build-ebpf` and build the binary again",
    }
}

fn btf() -> Requirement {
    let there = Path::new("/sys/kernel/btf/vmlinux").exists();
    Requirement {
        name: "btf",
        ok: there,
        detail: if there { "/sys/kernel/btf/vmlinux" } else { "missing" }.into(),
        fix: "use a kernel built with CONFIG_DEBUG_INFO_BTF=y (socket storage needs BTF)",
    }
}

fn jit() -> Requirement {
    let value = read("/proc/sys/net/core/bpf_jit_enable");
    Requirement {
        name: "bpf-jit",
        ok: value != "0",
        detail: if value.is_empty() {
            "net.core.bpf_jit_enable is not shown outside the host's network namespace".into()
        } else {
            format!("net.core.bpf_jit_enable = {value}")
        },
        fix: "sysctl -w net.core.bpf_jit_enable=1",
    }
}

fn bpffs() -> Requirement {
    let ok = statfs("/sys/fs/bpf").is_ok_and(|s| s.filesystem_type() == BPF_FS_MAGIC);
    Requirement {
        name: "bpffs",
        ok,
        detail: if ok { "mounted at /sys/fs/bpf" } else { "not mounted" }.into(),
        fix: "mount -t bpf bpf /sys/fs/bpf (the keeper does it when it starts)",
    }
}

fn cgroup2(cgroup: Option<&Path>) -> Requirement {
    let mount = cgroup2_mount();
    let (ok, detail) = match (&mount, cgroup) {
        (Ok(mount), Some(path)) => {
            let inside = path.canonicalize().is_ok_and(|p| p.starts_with(mount));
            (inside, format!("{} {}", path.display(), if inside { "" } else { "is not inside the cgroup2 mount" }))
        }
        (Ok(mount), None) => (true, mount.display().to_string()),
        (Err(error), _) => (false, error.to_string()),
    };
    Requirement {
        name: "cgroup2",
        ok,
        detail: detail.trim_end().to_owned(),
        fix: "mount cgroup2 (mount -t cgroup2 none /sys/fs/cgroup/unified) and give --cgroup a directory inside it",
    }
}

fn ipv6_loopback() -> Requirement {
    let value = read("/proc/sys/net/ipv6/conf/lo/disable_ipv6");
    Requirement {
        name: "ipv6-loopback",
        ok: value != "1",
        detail: if value.is_empty() { "no IPv6 in this kernel".into() } else { format!("lo.disable_ipv6 = {value}") },
        fix: "sysctl -w net.ipv6.conf.lo.disable_ipv6=0 (native IPv6 of pods is captured over ::1)",
    }
}

fn somaxconn() -> Requirement {
    let value: u64 = read("/proc/sys/net/core/somaxconn").parse().unwrap_or(0);
    Requirement {
        name: "somaxconn",
        ok: value >= 1024,
        detail: format!("net.core.somaxconn = {value}"),
        fix: "sysctl -w net.core.somaxconn=4096: new connections wait there while an agent is replaced",
    }
}

/// Frees a node whose keeper does not answer: removes every pin, and with them capture. Returns how many.
///
/// # Errors
/// A pin cannot be removed.
pub fn remove_without_keeper(run_dir: &Path, pin_dir: &Path) -> Result<usize, DatapathError> {
    let removed = remove_pins(pin_dir)?;
    for name in ["keeper.sock", "debug.sock", "keeper.lock", "keeper.json", "keeper.json.new", "keeper.json.bad"] {
        let _ = fs::remove_file(run_dir.join(name));
    }
    Ok(removed)
}
