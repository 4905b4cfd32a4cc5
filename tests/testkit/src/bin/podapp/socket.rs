//! Making TCP sockets with the options an application may have set.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use clap::Args;
use heddle_testkit::report::End;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Options of a client's socket.
#[derive(Args, Clone, Debug)]
pub struct SocketOptions {
    /// Non-blocking `connect()`, completion by `poll()`.
    #[arg(long, conflicts_with = "epoll")]
    pub nonblocking: bool,
    /// Non-blocking `connect()`, completion by edge-triggered epoll.
    #[arg(long)]
    pub epoll: bool,
    /// Source address to bind, port 0 for any.
    #[arg(long)]
    pub bind: Option<SocketAddr>,
    /// Add the connection's number to the port of `--bind`.
    #[arg(long, requires = "bind")]
    pub bind_consecutive: bool,
    /// An MPTCP socket.
    #[arg(long)]
    pub mptcp: bool,
    /// TCP_FASTOPEN_CONNECT: `connect()` returns at once, the first write sends the SYN.
    #[arg(long)]
    pub tfo: bool,
    /// `sendto(MSG_FASTOPEN)` in place of `connect()`.
    #[arg(long, conflicts_with = "tfo")]
    pub msg_fastopen: bool,
    /// An IPv6 socket connecting to `::ffff:a.b.c.d`.
    #[arg(long)]
    pub v4_mapped: bool,
    /// SO_BINDTODEVICE.
    #[arg(long)]
    pub bindtodevice: Option<String>,
    /// Limit for `connect()` and for every read and write.
    #[arg(long, default_value_t = 5_000)]
    pub timeout_ms: u64,
}

impl SocketOptions {
    /// The limit for one operation.
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    /// Opens connection number `index` to `to`. `first` is what `MSG_FASTOPEN` sends with the SYN; how much of it went is returned.
    pub fn connect(&self, to: SocketAddr, first: &[u8], index: u64) -> io::Result<(Socket, usize)> {
        let to = if self.v4_mapped { mapped(to) } else { to };
        let protocol = if self.mptcp { Protocol::MPTCP } else { Protocol::TCP };
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(protocol))?;
        if self.v4_mapped {
            socket.set_only_v6(false)?;
        }
        if let Some(mut source) = self.bind {
            if self.bind_consecutive {
                source.set_port(source.port().wrapping_add(index as u16));
            }
            socket.set_reuse_address(true)?;
            socket.bind(&SockAddr::from(if self.v4_mapped { mapped(source) } else { source }))?;
        }
        if let Some(device) = &self.bindtodevice {
            socket.bind_device(Some(device.as_bytes()))?;
        }
        if self.tfo {
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::TcpFastOpenConnect, &true)?;
        }
        socket.set_read_timeout(Some(self.timeout()))?;
        // A blocking connect() obeys the send timeout and ends in EINPROGRESS.
        socket.set_write_timeout(Some(self.timeout()))?;
        let address = SockAddr::from(to);
        let mut sent = 0;
        if self.msg_fastopen {
            sent = socket.send_to_with_flags(first, &address, libc::MSG_FASTOPEN)?;
        } else if self.nonblocking || self.epoll {
            socket.set_nonblocking(true)?;
            match socket.connect(&address) {
                Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {
                    if self.epoll {
                        self.await_epoll(&socket)?
                    } else {
                        self.await_poll(&socket)?
                    }
                    if let Some(error) = socket.take_error()? {
                        return Err(error);
                    }
                }
                other => other?,
            }
            socket.set_nonblocking(false)?;
        } else {
            socket.connect(&address)?;
        }
        Ok((socket, sent))
    }

    fn await_poll(&self, socket: &Socket) -> io::Result<()> {
        use std::os::fd::AsFd;
        let limit = PollTimeout::try_from(self.timeout()).unwrap_or(PollTimeout::MAX);
        let mut set = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
        if poll(&mut set, limit)? == 0 { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }

    fn await_epoll(&self, socket: &Socket) -> io::Result<()> {
        use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
        let limit = PollTimeout::try_from(self.timeout()).unwrap_or(PollTimeout::MAX);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        epoll.add(socket, EpollEvent::new(flags, u64::try_from(socket.as_raw_fd()).unwrap_or(0)))?;
        let mut events = [EpollEvent::empty()];
        if epoll.wait(&mut events, limit)? == 0 { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }
}

/// The IPv4 address as `::ffff:a.b.c.d`; IPv6 stays.
pub fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

/// Opens a listener.
pub fn listen(address: SocketAddr, mptcp: bool, tfo: bool, reuseport: bool, v6only: bool) -> io::Result<Socket> {
    let protocol = if mptcp { Protocol::MPTCP } else { Protocol::TCP };
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(protocol))?;
    socket.set_reuse_address(true)?;
    if reuseport {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(v6only)?;
    }
    socket.bind(&address.into())?;
    if tfo {
        set_fastopen_queue(&socket, 64)?;
    }
    socket.listen(4096)?;
    Ok(socket)
}

fn set_fastopen_queue(socket: &Socket, length: libc::c_int) -> io::Result<()> {
    // SAFETY: the option value is a c_int that outlives the call, and its size is passed with it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_FASTOPEN,
            std::ptr::from_ref(&length).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Closes with a reset.
pub fn reset(socket: Socket) {
    let _ = socket.set_linger(Some(Duration::ZERO));
}

/// The name of an errno; `TIMEOUT` for a limit of our own.
pub fn error_name(error: &io::Error) -> String {
    if matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
        && error.raw_os_error() != Some(libc::ETIMEDOUT)
        || error.raw_os_error() == Some(libc::EINPROGRESS)
    {
        return "TIMEOUT".to_owned();
    }
    error.raw_os_error().map_or_else(|| error.to_string(), |code| format!("{:?}", Errno::from_raw(code)))
}

/// How an I/O error ends a connection.
pub fn end_of(error: &io::Error) -> End {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => End::Reset,
        io::ErrorKind::WouldBlock => End::Timeout,
        _ => match error_name(error).as_str() {
            "TIMEOUT" => End::Timeout,
            name => End::Error(name.to_owned()),
        },
    }
}

/// The wildcard address: `*:8080` is `[::]:8080`.
pub fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    let text =
        text.strip_prefix("*:").map_or_else(|| text.to_owned(), |port| format!("[{}]:{port}", Ipv6Addr::UNSPECIFIED));
    let text = text.replacen("localhost", &Ipv4Addr::LOCALHOST.to_string(), 1);
    text.parse().map_err(|e| format!("{text:?} is no ADDRESS:PORT: {e}"))
}

/// `getpeername()` and `getsockname()`.
pub fn names(socket: &Socket) -> (Option<SocketAddr>, Option<SocketAddr>) {
    let address = |a: io::Result<SockAddr>| a.ok().and_then(|a| a.as_socket());
    (address(socket.peer_addr()), address(socket.local_addr()))
}
