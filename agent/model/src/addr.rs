//! Addresses that must not be mixed up: who called, and whom they meant.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// The address and port the application gave to `connect()`, before capture changed anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OriginalDst(SocketAddr);

/// The address of the client a server should see: never the agent's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientAddr(SocketAddr);

/// Which of the two IP families a socket speaks on the wire. A v4-mapped address is [`Family::V4`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl OriginalDst {
    /// Wraps an address, turning a v4-mapped IPv6 address (`::ffff:a.b.c.d`) into plain IPv4.
    #[must_use]
    pub fn new(addr: SocketAddr) -> Self {
        Self(canonical(addr))
    }

    /// The address and port.
    #[must_use]
    pub const fn get(self) -> SocketAddr {
        self.0
    }

    /// The port alone: a *service port* when the address is a Service's, else a *target port*.
    #[must_use]
    pub const fn port(self) -> u16 {
        self.0.port()
    }
}

impl ClientAddr {
    /// Wraps an address, turning a v4-mapped IPv6 address into plain IPv4.
    #[must_use]
    pub fn new(addr: SocketAddr) -> Self {
        Self(canonical(addr))
    }

    /// The address and port.
    #[must_use]
    pub const fn get(self) -> SocketAddr {
        self.0
    }
}

impl Family {
    /// The family of an address; v4-mapped counts as IPv4.
    #[must_use]
    pub fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

impl fmt::Display for OriginalDst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ClientAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
