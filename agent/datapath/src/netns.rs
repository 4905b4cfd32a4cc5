//! A pod's network namespace: opened once, held as an fd, entered by a thread of its own for each piece of work.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{FsType, fstatfs};
use socket2::{Domain, Protocol, Socket, Type};

use crate::sys;

/// `NSFS_MAGIC` of linux/magic.h.
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);
/// Waiting connections per listener while an agent is replaced; the pod's `somaxconn` may lower it.
pub const BACKLOG: i32 = 4096;

/// An open network namespace.
#[derive(Debug)]
pub struct Netns {
    file: File,
    cookie: u64,
    identity: Identity,
}

/// Device and inode of a namespace: its own as long as somebody holds it open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity(u64, u64);

/// Why a namespace could not be opened.
#[derive(Debug)]
pub enum OpenError {
    /// There is none at the path: the pod is gone.
    Gone(String),
    /// It cannot be told: out of descriptors, not a namespace, not ours to take.
    Other(String),
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Gone(why) | Self::Other(why) => f.write_str(why),
        }
    }
}

/// A path that was looked at: an open namespace, not entered yet.
#[derive(Debug)]
pub struct Found {
    file: File,
    identity: Identity,
    what: String,
}

impl Found {
    /// Which namespace it is.
    #[must_use]
    pub const fn identity(&self) -> Identity {
        self.identity
    }

    /// Enters it once for its cookie.
    ///
    /// # Errors
    /// It cannot be entered.
    pub fn open(self) -> Result<Netns, OpenError> {
        let cookie = within(&self.file, || sys::netns_cookie(Socket::new(Domain::IPV4, Type::STREAM, None)?))
            .map_err(|error| OpenError::Other(format!("{}: {error}", self.what)))?;
        Ok(Netns { file: self.file, cookie, identity: self.identity })
    }
}

impl Netns {
    /// Looks at `path` (`/run/netns/…`, `/proc/<pid>/ns/net`). Opens nothing but namespaces: a path that is something
    /// else (a device, a pipe that would block) is only looked at.
    ///
    /// # Errors
    /// Not there, not a network namespace, or the node's own one.
    pub fn find(path: &Path) -> Result<Found, OpenError> {
        let what = format!("network namespace {}", path.display());
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => OpenError::Gone(format!("{what}: {error}")),
            _ => OpenError::Other(format!("{what}: {error}")),
        };
        let handle = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path).map_err(failed)?;
        let kind = fstatfs(&handle).map_err(|errno| failed(errno.into()))?.filesystem_type();
        if kind != NSFS_MAGIC {
            return Err(OpenError::Other(format!("{what}: not a namespace file")));
        }
        let own = std::fs::metadata("/proc/self/ns/net").map_err(failed)?;
        let meta = handle.metadata().map_err(failed)?;
        if (meta.dev(), meta.ino()) == (own.dev(), own.ino()) {
            return Err(OpenError::Other(format!(
                "{what}: this is the node's own network namespace: host-network pods are not captured"
            )));
        }
        let file = File::open(format!("/proc/self/fd/{}", handle.as_raw_fd())).map_err(failed)?;
        Ok(Found { file, identity: Identity(meta.dev(), meta.ino()), what })
    }

    /// Finds and opens.
    ///
    /// # Errors
    /// As [`Netns::find`] and [`Found::open`].
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Self::find(path)?.open()
    }

    /// Which namespace it is.
    #[must_use]
    pub const fn identity(&self) -> Identity {
        self.identity
    }

    /// Addresses of its interfaces, loopback and link-local ones left out.
    ///
    /// # Errors
    /// It cannot be entered.
    pub fn addresses(&self) -> io::Result<Vec<IpAddr>> {
        self.within(|| {
            let usable = |ip: &IpAddr| match ip {
                IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_unspecified(),
                IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unspecified() && !v6.is_unicast_link_local(),
            };
            let address = |interface: nix::ifaddrs::InterfaceAddress| {
                let storage = interface.address?;
                let v4 = storage.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
                v4.or_else(|| storage.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
            };
            Ok(nix::ifaddrs::getifaddrs()?.filter_map(address).filter(usable).collect())
        })
    }

    /// The kernel's never-reused number of this namespace.
    #[must_use]
    pub const fn cookie(&self) -> u64 {
        self.cookie
    }

    /// The namespace file, to attach to.
    #[must_use]
    pub const fn file(&self) -> &File {
        &self.file
    }

    /// Runs `work` on a thread inside this namespace.
    ///
    /// # Errors
    /// The namespace cannot be entered, or what `work` returns.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        within(&self.file, work)
    }
}

/// A thread that entered a namespace never leaves it alive: no other work can end up there by mistake.
fn within<T: Send>(file: &File, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, || {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET)?;
            work()
        })?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread inside the namespace panicked")))
    })
}

/// A TCP socket of the agent, in the calling thread's namespace: non-blocking, close-on-exec, TCP_NODELAY, and with
/// SO_LINGER 0, so that a killed agent resets its connections instead of ending them as if they were complete.
/// Connections accepted from it inherit all of that.
///
/// # Errors
/// The socket cannot be made.
pub fn agent_socket(ipv6: bool) -> io::Result<Socket> {
    let domain = if ipv6 { Domain::IPV6 } else { Domain::IPV4 };
    let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket)
}

/// Binds and listens on loopback as one member of an SO_REUSEPORT group. `mark` makes the socket known as the agent's
/// before it binds, else the bind hook would refuse it.
///
/// # Errors
/// The port is taken by an application, or the family is not there.
pub fn listen(ipv6: bool, port: u16, mark: impl FnOnce(&Socket) -> io::Result<()>) -> io::Result<Socket> {
    let socket = agent_socket(ipv6)?;
    mark(&socket)?;
    socket.set_reuse_port(true)?;
    // With the connections of a former enrolment still open or in TIME_WAIT, the port can be had again.
    socket.set_reuse_address(true)?;
    let ip = if ipv6 { IpAddr::V6(Ipv6Addr::LOCALHOST) } else { IpAddr::V4(Ipv4Addr::LOCALHOST) };
    if ipv6 {
        socket.set_only_v6(true)?;
    }
    socket.bind(&SocketAddr::new(ip, port).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Whether a socket is what [`listen`] makes.
#[must_use]
pub fn listens(socket: &Socket, ipv6: bool, port: u16) -> bool {
    let ip = if ipv6 { IpAddr::V6(Ipv6Addr::LOCALHOST) } else { IpAddr::V4(Ipv4Addr::LOCALHOST) };
    socket.is_listener().unwrap_or(false)
        && socket.local_addr().ok().and_then(|address| address.as_socket()) == Some(SocketAddr::new(ip, port))
}

/// What to look for before the first listener of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Any socket bound to the port, listening or not: one that was bound before could join the agent's group later.
    AnySocket,
    /// Listening ones: connections of a former enrolment may still be open, and are bound to the port.
    Listeners,
    /// Nothing: the pod is enrolled, and nobody but the agent could bind since.
    Nothing,
}

/// Whether a port is free on every address of the namespace: an application that already listens there would go on
/// getting connections of its own.
///
/// # Errors
/// `AddrInUse` if it is not.
pub fn probe_port_free(
    probe: Probe,
    ipv6: bool,
    port: u16,
    mark: impl FnOnce(&Socket) -> io::Result<()>,
) -> io::Result<()> {
    if probe == Probe::Nothing {
        return Ok(());
    }
    let socket = agent_socket(ipv6)?;
    mark(&socket)?;
    socket.set_reuse_address(probe == Probe::Listeners)?;
    let ip = if ipv6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
    if ipv6 {
        socket.set_only_v6(true)?;
    }
    socket.bind(&SocketAddr::new(ip, port).into())
}
