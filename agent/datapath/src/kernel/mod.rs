//! Programs, links and maps in the kernel: loaded or adopted from their pins, checked, and typed.

mod load;
mod maps;

pub use load::{ProgramInfo, remove_pins};
pub use maps::{Entry, INBOUND, Kv, MapInfo, Maps, OUTBOUND, excluded_cidr, ip, ip_addr, socket_address};

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::programs::SkLookup;
use aya_log::EbpfLogger;

use crate::error::DatapathError;
use crate::netns::Netns;
use crate::sys;

/// Where the datapath lives.
#[derive(Clone, Debug)]
pub struct KernelConfig {
    /// Directory on bpffs, e.g. `/sys/fs/bpf/heddle`.
    pub pin_dir: PathBuf,
    /// Cgroup the hooks attach to; covers everything below it, also what does not exist yet.
    pub cgroup: PathBuf,
}

/// The loaded datapath.
pub struct Kernel {
    config: KernelConfig,
    /// The maps.
    pub maps: Maps,
    lookup: SkLookup,
    logger: Option<EbpfLogger<load::ToTracing>>,
}

impl Kernel {
    /// Opens the pins if there are any, else creates everything; then swaps in this binary's programs.
    ///
    /// # Errors
    /// See [`DatapathError`].
    pub fn open(config: KernelConfig) -> Result<Self, DatapathError> {
        load::open(config)
    }

    /// Where it lives.
    #[must_use]
    pub const fn config(&self) -> &KernelConfig {
        &self.config
    }

    /// Hands TCP that arrives in a namespace to the agent, from now until [`Kernel::detach_lookup`], whoever holds us.
    ///
    /// # Errors
    /// The namespace has an `sk_lookup` program that refuses company, or the kernel refuses.
    pub fn attach_lookup(&mut self, netns: &Netns) -> Result<(), DatapathError> {
        let pin = self.lookup_pin(netns.cookie());
        if let Ok(link) = sys::open_pin(&pin, 0) {
            let program = self.lookup.fd().map_err(DatapathError::kernel("sk_lookup program"))?;
            return sys::link_update(link.as_fd(), program.as_fd())
                .map_err(DatapathError::io(format!("replace the program of {}", pin.display())));
        }
        let what = format!("attach sk_lookup to netns {}", netns.cookie());
        let id = self.lookup.attach(netns.file()).map_err(DatapathError::kernel(what.clone()))?;
        let link: aya::programs::links::FdLink = self.lookup.take_link(id).map_err(DatapathError::kernel(what))?.into();
        link.pin(&pin).map_err(DatapathError::kernel(format!("pin {}", pin.display())))?;
        Ok(())
    }

    /// Undoes [`Kernel::attach_lookup`]; fine if there is nothing to undo.
    ///
    /// # Errors
    /// The pin cannot be removed.
    pub fn detach_lookup(&mut self, netns_cookie: u64) -> Result<(), DatapathError> {
        let pin = self.lookup_pin(netns_cookie);
        match std::fs::remove_file(&pin) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(DatapathError::Io { what: format!("remove {}", pin.display()), source: error })
            }
            _ => Ok(()),
        }
    }

    /// Whether inbound capture is attached to a namespace.
    #[must_use]
    pub fn has_lookup(&self, netns_cookie: u64) -> bool {
        self.lookup_pin(netns_cookie).exists()
    }

    fn lookup_pin(&self, netns_cookie: u64) -> PathBuf {
        load::links_dir(&self.config.pin_dir).join(format!("lookup-{netns_cookie}"))
    }

    /// The map fds an agent gets: heartbeat, agent-socket storage, counters (read-only).
    ///
    /// # Errors
    /// A pin cannot be opened.
    pub fn agent_map_fds(&self) -> Result<Vec<OwnedFd>, DatapathError> {
        let maps = load::maps_dir(&self.config.pin_dir);
        [
            (heddle_abi::names::HEARTBEAT, 0),
            (heddle_abi::names::AGENT_SOCKETS, 0),
            (heddle_abi::names::COUNTERS, sys::BPF_F_RDONLY),
        ]
        .into_iter()
        .map(|(name, flags)| {
            let path = maps.join(name);
            sys::open_pin(&path, flags).map_err(DatapathError::io(format!("open {}", path.display())))
        })
        .collect()
    }

    /// A map of the programs, for the kernel's own use of it.
    ///
    /// # Errors
    /// The pin cannot be opened.
    pub fn pinned_map(&self, name: &str) -> Result<OwnedFd, DatapathError> {
        let path = load::maps_dir(&self.config.pin_dir).join(name);
        sys::open_pin(&path, 0).map_err(DatapathError::io(format!("open {}", path.display())))
    }

    /// Forwards what the programs logged to `log`; call it now and then.
    pub fn flush_logs(&mut self) {
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
    }

    /// What is attached, with the kernel's ids and tags.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn programs(&self) -> Result<Vec<ProgramInfo>, DatapathError> {
        load::programs(&self.config)
    }

    /// Cookies of the namespaces with inbound capture, from the pins.
    #[must_use]
    pub fn lookup_cookies(&self) -> Vec<u64> {
        load::lookup_cookies(&self.config.pin_dir)
    }
}

/// The cgroup2 mount of this machine (`/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` on hybrid hosts).
///
/// # Errors
/// There is none.
pub fn cgroup2_mount() -> Result<PathBuf, DatapathError> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").map_err(DatapathError::io("read /proc/self/mounts"))?;
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (path, kind) = (fields.nth(1)?, fields.next()?);
            (kind == "cgroup2").then(|| Path::new(path).to_owned())
        })
        .next()
        .ok_or_else(|| DatapathError::Kernel {
            what: "find the cgroup2 mount".into(),
            cause: "no cgroup2 in /proc/self/mounts: mount one, e.g. `mount -t cgroup2 none /sys/fs/cgroup/unified`"
                .into(),
        })
}
