//! Loading and adopting: pins first, then what is missing, then this binary's programs into the existing links.
//!
//! A keeper restart swaps programs inside living links (BPF_LINK_UPDATE): no connection in between goes uncaptured.
//! The kernel would accept a program of another attach point on a link, so name and attach type are checked here.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, Program, SkLookup};
use aya::{Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use heddle_abi::{ABI_VERSION, agent_role, names};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::maps::Maps;
use super::{Kernel, KernelConfig};
use crate::error::DatapathError;
use crate::{netns, object, sys};

/// Programs that attach to the cgroup, with the pin name of their link.
const CGROUP_PROGRAMS: [&str; 9] = [
    "heddle_bind4",
    "heddle_bind6",
    "heddle_sockops",
    "heddle_peer4",
    "heddle_peer6",
    "heddle_sock4",
    "heddle_sock6",
    // Last: from here on connections are captured, and everything they need is attached.
    "heddle_connect4",
    "heddle_connect6",
];
const LOOKUP_PROGRAM: &str = "heddle_lookup";

pub(super) fn maps_dir(pin_dir: &Path) -> PathBuf {
    pin_dir.join("maps")
}

pub(super) fn links_dir(pin_dir: &Path) -> PathBuf {
    pin_dir.join("links")
}

pub(super) fn open(config: KernelConfig) -> Result<Kernel, DatapathError> {
    let object = object::bytes()?;
    let (maps_dir, links_dir) = (maps_dir(&config.pin_dir), links_dir(&config.pin_dir));
    mount_bpffs(&config.pin_dir)?;
    for dir in [&maps_dir, &links_dir] {
        fs::create_dir_all(dir).map_err(DatapathError::io(format!("create {}", dir.display())))?;
    }
    check_abi(&config.pin_dir)?;

    let mut loader = EbpfLoader::new();
    // No kernel BTF: the programs need no relocations, and parsing it costs memory that a keeper would never give back.
    loader.btf(None);
    for name in names::ALL {
        loader.map_pin_path(name, maps_dir.join(name));
    }
    let mut ebpf = loader.load(object).map_err(DatapathError::kernel("load the eBPF object"))?;
    let logger = match EbpfLogger::init_with_logger(&mut ebpf, ToTracing) {
        Ok(logger) => Some(logger),
        Err(error) => {
            tracing::warn!(%error, "messages of the eBPF programs will not be logged");
            None
        }
    };
    let mut maps = Maps::open(&maps_dir)?;
    maps.write_meta()?;

    let cgroup = fs::File::open(&config.cgroup)
        .map_err(DatapathError::io(format!("open cgroup {}", config.cgroup.display())))?;
    for name in CGROUP_PROGRAMS {
        attach_to_cgroup(&mut ebpf, name, &cgroup, &links_dir.join(name))?;
    }
    let lookup = take_lookup(&mut ebpf)?;
    for cookie in lookup_cookies(&config.pin_dir) {
        let pin = links_dir.join(format!("lookup-{cookie}"));
        let link = sys::open_pin(&pin, 0).map_err(DatapathError::io(format!("open {}", pin.display())))?;
        let program = lookup.fd().map_err(DatapathError::kernel(LOOKUP_PROGRAM))?;
        if let Err(error) = sys::link_update(link.as_fd(), program.as_fd()) {
            // Only of a namespace that is gone: a living pod would lose inbound capture.
            if error.raw_os_error() != Some(libc::ENOLINK) {
                return Err(DatapathError::io(format!("replace the program of {}", pin.display()))(error));
            }
            tracing::info!(pin = %pin.display(), "dropping the sk_lookup link of a namespace that is gone");
            let _ = fs::remove_file(&pin);
        }
    }
    join_cgroup(&config.cgroup)?;
    self_test(&mut maps, &config.cgroup)?;
    Ok(Kernel { config, maps, lookup, logger })
}

fn mount_bpffs(pin_dir: &Path) -> Result<(), DatapathError> {
    let root = Path::new("/sys/fs/bpf");
    if !pin_dir.starts_with(root) {
        return Err(DatapathError::Kernel {
            what: format!("pin directory {}", pin_dir.display()),
            cause: "must be below /sys/fs/bpf".into(),
        });
    }
    let is_bpffs = statfs(root).is_ok_and(|s| s.filesystem_type() == BPF_FS_MAGIC);
    if is_bpffs {
        return Ok(());
    }
    fs::create_dir_all(root).map_err(DatapathError::io("create /sys/fs/bpf"))?;
    mount(Some("bpf"), root, Some("bpf"), MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, Some("mode=0700"))
        .map_err(DatapathError::errno("mount bpffs at /sys/fs/bpf"))
}

fn check_abi(pin_dir: &Path) -> Result<(), DatapathError> {
    let maps = maps_dir(pin_dir);
    let has_pins = fs::read_dir(&maps).is_ok_and(|mut entries| entries.next().is_some());
    if !has_pins {
        return Ok(());
    }
    let found = Maps::read_abi_version(&maps).unwrap_or(0);
    // 0: a keeper died between pinning the first map and writing the version; nothing was attached by then.
    if found == 0 && fs::read_dir(links_dir(pin_dir)).is_ok_and(|mut entries| entries.next().is_none()) {
        return fs::remove_dir_all(&maps)
            .and_then(|()| fs::create_dir_all(&maps))
            .map_err(DatapathError::io(format!("remove half-made pins under {}", maps.display())));
    }
    if found != ABI_VERSION {
        return Err(DatapathError::AbiVersion { dir: pin_dir.to_owned(), found, ours: ABI_VERSION });
    }
    Ok(())
}

fn attach_to_cgroup(ebpf: &mut Ebpf, name: &str, cgroup: &fs::File, pin: &Path) -> Result<(), DatapathError> {
    let kernel = |what: &str| DatapathError::kernel(format!("{what} {name}"));
    let program = ebpf.program_mut(name).ok_or_else(|| missing(name))?;
    match program {
        Program::CgroupSockAddr(p) => p.load().map_err(kernel("load"))?,
        Program::SockOps(p) => p.load().map_err(DatapathError::kernel(format!("load {name}")))?,
        _ => return Err(missing(name)),
    }
    if let Ok(link) = sys::open_pin(pin, 0) {
        let target = sys::link_info(link.as_fd()).map_err(DatapathError::io(format!("ask about {}", pin.display())))?;
        let inode = cgroup.metadata().map_err(DatapathError::io("stat the cgroup"))?.ino();
        if target.target == inode {
            let fd = program.fd().map_err(DatapathError::kernel(format!("fd of {name}")))?;
            return replace(link.as_fd(), fd.as_fd(), name, pin);
        }
        tracing::info!(pin = %pin.display(), "attached to another cgroup before: attaching anew");
        fs::remove_file(pin).map_err(DatapathError::io(format!("remove {}", pin.display())))?;
    }
    let link: FdLink = match program {
        Program::CgroupSockAddr(p) => {
            let id =
                p.attach(cgroup, CgroupAttachMode::Single).map_err(DatapathError::kernel(format!("attach {name}")))?;
            let link = p.take_link(id).map_err(DatapathError::kernel(format!("link of {name}")))?;
            link.try_into().map_err(DatapathError::kernel(format!("link of {name}")))?
        }
        Program::SockOps(p) => {
            let id =
                p.attach(cgroup, CgroupAttachMode::Single).map_err(DatapathError::kernel(format!("attach {name}")))?;
            let link = p.take_link(id).map_err(DatapathError::kernel(format!("link of {name}")))?;
            link.try_into().map_err(DatapathError::kernel(format!("link of {name}")))?
        }
        _ => return Err(missing(name)),
    };
    link.pin(pin).map_err(DatapathError::kernel(format!("pin {}", pin.display())))?;
    Ok(())
}

/// Puts a program into a living link and reads back that it is there.
fn replace(link: BorrowedFd<'_>, program: BorrowedFd<'_>, name: &str, pin: &Path) -> Result<(), DatapathError> {
    let what = || format!("replace the program of {}", pin.display());
    let before = sys::link_info(link).map_err(DatapathError::io(what()))?;
    if let Some(old) = program_name(before.prog_id)
        && old != kernel_name(name)
    {
        return Err(DatapathError::Kernel { what: what(), cause: format!("the link carries `{old}`, not `{name}`") });
    }
    sys::link_update(link, program).map_err(DatapathError::io(what()))?;
    let after = sys::link_info(link).map_err(DatapathError::io(what()))?;
    if after.attach_type != before.attach_type || program_name(after.prog_id).is_some_and(|n| n != kernel_name(name)) {
        return Err(DatapathError::Kernel { what: what(), cause: "the kernel attached something else".into() });
    }
    Ok(())
}

/// The kernel keeps 15 characters.
fn kernel_name(name: &str) -> &str {
    &name[..name.len().min(15)]
}

fn program_name(id: u32) -> Option<String> {
    aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .find(|p| p.id() == id)
        .and_then(|p| p.name_as_str().map(ToOwned::to_owned))
}

fn take_lookup(ebpf: &mut Ebpf) -> Result<SkLookup, DatapathError> {
    let program = ebpf.program_mut(LOOKUP_PROGRAM).ok_or_else(|| missing(LOOKUP_PROGRAM))?;
    let Program::SkLookup(program) = program else {
        return Err(missing(LOOKUP_PROGRAM));
    };
    program.load().map_err(DatapathError::kernel(format!("load {LOOKUP_PROGRAM}")))?;
    let info = program.info().map_err(DatapathError::kernel(LOOKUP_PROGRAM))?;
    // A handle of its own, so that the loader with its ELF and BTF can be dropped.
    let pin = PathBuf::from("/sys/fs/bpf").join(format!("heddle-lookup-{}-{}", std::process::id(), info.id()));
    program.pin(&pin).map_err(DatapathError::kernel(format!("pin {}", pin.display())))?;
    let taken = SkLookup::from_pin(&pin).map_err(DatapathError::kernel(format!("open {}", pin.display())));
    let _ = fs::remove_file(&pin);
    taken
}

fn missing(name: &str) -> DatapathError {
    DatapathError::Kernel { what: "eBPF object".into(), cause: format!("has no program `{name}` of the expected kind") }
}

/// Hooks follow the cgroup in which a socket was made: the keeper's sockets must be made below the attach point.
fn join_cgroup(cgroup: &Path) -> Result<(), DatapathError> {
    if is_inside(cgroup)? {
        return Ok(());
    }
    let home = cgroup.join("heddle-keeper");
    fs::create_dir_all(&home).map_err(DatapathError::io(format!("create {}", home.display())))?;
    let procs = home.join("cgroup.procs");
    fs::write(&procs, "0").map_err(DatapathError::io(format!("move the keeper into {}", home.display())))?;
    tracing::info!(cgroup = %home.display(), "moved the keeper below the attach point");
    Ok(())
}

fn is_inside(cgroup: &Path) -> Result<bool, DatapathError> {
    let own = fs::read_to_string("/proc/self/cgroup").map_err(DatapathError::io("read /proc/self/cgroup"))?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").trim_start_matches('/').to_owned();
    let own = super::cgroup2_mount()?.join(own);
    let cgroup = cgroup.canonicalize().map_err(DatapathError::io(format!("cgroup {}", cgroup.display())))?;
    Ok(own.starts_with(&cgroup))
}

/// Proves on a socket of this process that the hooks run for it.
fn self_test(maps: &mut Maps, cgroup: &Path) -> Result<(), DatapathError> {
    let what = "self-test socket";
    let socket = netns::agent_socket(false).map_err(DatapathError::io(what))?;
    maps.mark(&socket, agent_role::SELF_TEST)?;
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    socket.bind(&local.into()).map_err(DatapathError::io(what))?;
    let name = socket.local_addr().map_err(DatapathError::io(what))?.as_socket();
    if name.map(|n| n.ip()) == Some(IpAddr::V4(heddle_abi::SELF_TEST.into())) {
        return Ok(());
    }
    Err(DatapathError::HooksDoNotRun { cgroup: cgroup.to_owned() })
}

/// One attached program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramInfo {
    /// Name in the kernel.
    pub name: String,
    /// Kernel id.
    pub id: u32,
    /// Tag: hash of the instructions.
    pub tag: String,
    /// Pin of the link, relative to the pin directory.
    pub link: String,
}

pub(super) fn programs(config: &KernelConfig) -> Result<Vec<ProgramInfo>, DatapathError> {
    let loaded: BTreeMap<u32, (String, u64)> = aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .map(|p| (p.id(), (p.name_as_str().unwrap_or_default().to_owned(), p.tag())))
        .collect();
    let dir = links_dir(&config.pin_dir);
    let mut programs = Vec::new();
    for entry in fs::read_dir(&dir).map_err(DatapathError::io(format!("read {}", dir.display())))?.flatten() {
        let path = entry.path();
        let link = sys::open_pin(&path, 0).map_err(DatapathError::io(format!("open {}", path.display())))?;
        let info = sys::link_info(link.as_fd()).map_err(DatapathError::io(format!("ask about {}", path.display())))?;
        let (name, tag) = loaded.get(&info.prog_id).cloned().unwrap_or_default();
        let link = format!("links/{}", entry.file_name().to_string_lossy());
        programs.push(ProgramInfo { name, id: info.prog_id, tag: format!("{tag:016x}"), link });
    }
    programs.sort_by(|a, b| a.link.cmp(&b.link));
    Ok(programs)
}

pub(super) fn lookup_cookies(pin_dir: &Path) -> Vec<u64> {
    let Ok(entries) = fs::read_dir(links_dir(pin_dir)) else {
        return Vec::new();
    };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.strip_prefix("lookup-")?.parse().ok()).collect()
}

/// Removes every pin under a directory: programs, links and maps go with the last fd. Order: capture ends first.
///
/// # Errors
/// A pin cannot be removed.
pub fn remove_pins(pin_dir: &Path) -> Result<usize, DatapathError> {
    let mut removed = 0;
    let links = links_dir(pin_dir);
    let mut pins: Vec<PathBuf> = Vec::new();
    for name in CGROUP_PROGRAMS.iter().rev() {
        pins.push(links.join(name));
    }
    for dir in [links.clone(), maps_dir(pin_dir)] {
        if let Ok(entries) = fs::read_dir(&dir) {
            pins.extend(entries.flatten().map(|entry| entry.path()));
        }
    }
    for pin in pins {
        match fs::remove_file(&pin) {
            Ok(()) => removed += 1,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(DatapathError::Io { what: format!("remove {}", pin.display()), source: error });
            }
        }
    }
    for dir in [links, maps_dir(pin_dir), pin_dir.to_owned()] {
        match fs::remove_dir(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(DatapathError::Io { what: format!("remove {}", dir.display()), source: error });
            }
            _ => {}
        }
    }
    Ok(removed)
}

/// Messages of the eBPF programs, as tracing events.
pub struct ToTracing;

impl log::Log for ToTracing {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        match record.level() {
            log::Level::Error => tracing::error!(target: "heddle_ebpf", "{}", record.args()),
            log::Level::Warn => tracing::warn!(target: "heddle_ebpf", "{}", record.args()),
            log::Level::Info => tracing::info!(target: "heddle_ebpf", "{}", record.args()),
            log::Level::Debug | log::Level::Trace => tracing::debug!(target: "heddle_ebpf", "{}", record.args()),
        }
    }

    fn flush(&self) {}
}
