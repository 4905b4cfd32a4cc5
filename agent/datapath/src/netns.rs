//! A pod's network namespace: opened once, held as an fd, entered by a thread of its own for each piece of work.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{FsType, fstatfs};
use socket2::{Domain, Protocol, Socket, Type};

use crate::error::DatapathError;
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
}

impl Netns {
    /// Opens `path` (`/run/netns/…`, `/proc/<pid>/ns/net`).
    ///
    /// # Errors
    /// Not there, not a network namespace, or the node's own one.
    pub fn open(path: &Path) -> Result<Self, DatapathError> {
        let what = || format!("network namespace {}", path.display());
        let file = File::open(path).map_err(DatapathError::io(what()))?;
        let kind = fstatfs(&file).map_err(DatapathError::errno(what()))?.filesystem_type();
        if kind != NSFS_MAGIC {
            return Err(refused(what(), "not a namespace file"));
        }
        let own = std::fs::metadata("/proc/self/ns/net").map_err(DatapathError::io("own network namespace"))?;
        let meta = file.metadata().map_err(DatapathError::io(what()))?;
        if (meta.dev(), meta.ino()) == (own.dev(), own.ino()) {
            return Err(refused(
                what(),
                "this is the node's own network namespace: host-network pods are not captured",
            ));
        }
        let cookie = within(&file, || sys::netns_cookie(Socket::new(Domain::IPV4, Type::STREAM, None)?))
            .map_err(DatapathError::io(what()))?;
        Ok(Self { file, cookie })
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

fn refused(what: String, why: &str) -> DatapathError {
    DatapathError::Io { what, source: io::Error::new(io::ErrorKind::InvalidInput, why.to_owned()) }
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

/// Whether a port is free on every address of the namespace: an application that already listens there would go on
/// getting connections of its own.
///
/// # Errors
/// `AddrInUse` if it is not.
pub fn probe_port_free(ipv6: bool, port: u16, mark: impl FnOnce(&Socket) -> io::Result<()>) -> io::Result<()> {
    let socket = agent_socket(ipv6)?;
    mark(&socket)?;
    socket.set_reuse_address(true)?;
    let ip = if ipv6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
    if ipv6 {
        socket.set_only_v6(true)?;
    }
    socket.bind(&SocketAddr::new(ip, port).into())
}
