//! Connections that go round the agent to STRICT ports: opened before their pod was captured, or while a port was
//! excluded or passed for want of an agent. Found and ended by the kernel's socket diagnosis (sock_diag(7)) inside the
//! pod's network namespace.
//!
//! The agent's own sockets are told from an application's by their socket storage, which only the keeper writes; an
//! address or a mark could be anyone's.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::enrol::PodSpec;
use crate::netns::Netns;

/// Connections looked at in one pod and family, at most; the rest is found by the next look.
pub const CONNECTIONS_MAX: usize = 65_536;
/// How often a pod is looked at again after connections were ended: a list taken while sockets come and go may miss some.
const LOOKS_MAX: usize = 3;
/// The kernel answers at once; a lost answer must not hold up the keeper.
const ANSWER_MAX: Duration = Duration::from_secs(2);

const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const IPPROTO_TCP: u8 = 6;
/// `INET_DIAG_REQ_SK_BPF_STORAGES`, with `SK_DIAG_BPF_STORAGE_REQ_MAP_FD` in it; answered by `INET_DIAG_SK_BPF_STORAGES`.
const REQ_STORAGES: u16 = 2;
const REQ_MAP_FD: u16 = 1;
const STORAGES: u16 = 20;

const HEADER_LEN: usize = 16;
const ATTRIBUTE_HEADER_LEN: usize = 4;
/// `struct inet_diag_sockid`: ports and addresses in network order, interface, cookie.
const ID_LEN: usize = 48;
/// `struct inet_diag_msg`.
const MESSAGE_LEN: usize = 72;

const SYN_RECV: u8 = 3;
const LISTEN: u8 = 10;
/// Established, both FIN-WAITs, CLOSE-WAIT, LAST-ACK, CLOSING; SYN-RECV and LISTEN are asked for as well.
const OPEN: [u8; 6] = [1, 4, 5, 8, 9, 11];

/// One TCP socket of a namespace, as the kernel tells.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    family: u8,
    state: u8,
    id: [u8; ID_LEN],
    local: SocketAddr,
    remote: SocketAddr,
    /// It carries the agent's storage.
    agents: bool,
}

/// A connection that goes round the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Direct(Entry);

impl fmt::Display for Direct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} → {}", self.0.remote, self.0.local)
    }
}

#[cfg(test)]
impl Direct {
    /// An established one, for tests of reports.
    pub fn for_tests(remote: &str, local: &str) -> Self {
        let (local, remote) = (local.parse().expect("local"), remote.parse().expect("remote"));
        Self(Entry { family: 2, state: 1, id: [0; ID_LEN], local, remote, agents: false })
    }
}

/// Which connections are looked for.
#[derive(Clone, Debug)]
pub struct Look<'a> {
    /// The pod, with its STRICT ports.
    pub spec: &'a PodSpec,
    /// Every address of its namespace.
    pub own: BTreeSet<IpAddr>,
    /// Handshakes that are not complete too. They do not tell whose they are: only where the agent had none at these
    /// ports a moment ago.
    pub half_open: bool,
}

impl Look<'_> {
    /// What of these goes round the agent to a STRICT port.
    ///
    /// The kernel does not tell who opened a connection. One from outside has a local port on which the pod listens, or
    /// that is named as STRICT, or that no outgoing connection is given.
    fn among(&self, entries: &[Entry], given_out: &RangeInclusive<u16>) -> Vec<Direct> {
        let listened: BTreeSet<u16> = entries.iter().filter(|e| e.state == LISTEN).map(|e| e.local.port()).collect();
        let named = |port: &u16| !self.spec.strict && self.spec.strict_except.contains(port);
        let from_outside = |port: u16| listened.contains(&port) || named(&port) || !given_out.contains(&port);
        let is_open = |e: &Entry| OPEN.contains(&e.state) || (self.half_open && e.state == SYN_RECV);
        let is_direct = |e: &&Entry| {
            let port = e.local.port();
            let within = e.remote.ip().is_loopback() || self.own.contains(&e.remote.ip());
            is_open(e) && !e.agents && !within && self.spec.is_strict(port) && from_outside(port)
        };
        entries.iter().filter(is_direct).cloned().map(Direct).collect()
    }

    fn now(&self, agent_sockets: BorrowedFd<'_>) -> io::Result<Vec<Direct>> {
        let mut entries = dump(libc::AF_INET, agent_sockets)?;
        entries.extend(dump(libc::AF_INET6, agent_sockets)?);
        Ok(self.among(&entries, &ports_given_out()))
    }

    /// Looks.
    ///
    /// # Errors
    /// The namespace cannot be entered, or the kernel does not tell.
    pub fn list(&self, netns: &Netns, agent_sockets: BorrowedFd<'_>) -> io::Result<Vec<Direct>> {
        netns.within(|| self.now(agent_sockets))
    }

    /// Looks, and ends what is found: both ends get a reset. Says how many.
    ///
    /// # Errors
    /// As [`Look::list`], or the kernel cannot end connections (no CONFIG_INET_DIAG_DESTROY).
    pub fn end(&self, netns: &Netns, agent_sockets: BorrowedFd<'_>) -> io::Result<usize> {
        netns.within(|| {
            let mut ended = 0;
            for _ in 0..LOOKS_MAX {
                let found = self.now(agent_sockets)?;
                if found.is_empty() {
                    break;
                }
                ended += destroy(&found)?;
            }
            Ok(ended)
        })
    }
}

/// Ports that the calling thread's namespace gives to sockets that asked for none.
fn ports_given_out() -> RangeInclusive<u16> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut ends = text.split_whitespace().filter_map(|end| end.parse().ok());
    ends.next().unwrap_or(32_768)..=ends.next().unwrap_or(60_999)
}

fn open() -> io::Result<Socket> {
    let socket =
        Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW.cloexec(), Some(Protocol::from(NETLINK_SOCK_DIAG)))?;
    socket.set_read_timeout(Some(ANSWER_MAX))?;
    Ok(socket)
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2`, then attributes.
fn request(kind: u16, flags: u16, family: u8, states: u32, id: &[u8; ID_LEN], attributes: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
    // Sequence and port: one request at a time, on a socket of its own.
    bytes.extend([0; 8]);
    bytes.extend([family, IPPROTO_TCP, 0, 0]);
    bytes.extend(states.to_ne_bytes());
    bytes.extend(id);
    bytes.extend(attributes);
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes
}

fn attribute(kind: u16, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(ATTRIBUTE_HEADER_LEN + content.len()).unwrap_or(u16::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// TCP sockets of the calling thread's namespace.
fn dump(family: i32, agent_sockets: BorrowedFd<'_>) -> io::Result<Vec<Entry>> {
    let mut socket = open()?;
    let states = OPEN.iter().chain(&[SYN_RECV, LISTEN]).fold(0, |states, state| states | 1 << state);
    let map = attribute(REQ_MAP_FD, &agent_sockets.as_raw_fd().to_ne_bytes());
    let family = u8::try_from(family).unwrap_or_default();
    let ask = request(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family, states, &[0; ID_LEN], &attribute(REQ_STORAGES, &map));
    socket.write_all(&ask)?;
    let mut entries = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = socket.read(&mut buffer)?;
        for (kind, payload) in messages(buffer.get(..length).unwrap_or_default()) {
            match kind {
                NLMSG_DONE => return error_of(payload).map(|()| entries),
                NLMSG_ERROR => {
                    return Err(error_of(payload).err().unwrap_or_else(|| io::ErrorKind::InvalidData.into()));
                }
                SOCK_DIAG_BY_FAMILY if entries.len() < CONNECTIONS_MAX => entries.extend(entry(payload)),
                _ => {}
            }
        }
    }
}

/// Ends connections; those that are gone meanwhile do not count.
fn destroy(connections: &[Direct]) -> io::Result<usize> {
    let mut socket = open()?;
    let mut buffer = [0; 4096];
    let mut ended = 0;
    for Direct(entry) in connections {
        socket.write_all(&request(SOCK_DESTROY, NLM_F_ACK, entry.family, 1 << entry.state, &entry.id, &[]))?;
        let length = socket.read(&mut buffer)?;
        let answer = messages(buffer.get(..length).unwrap_or_default()).find(|(kind, _)| *kind == NLMSG_ERROR);
        match answer.map(|(_, payload)| error_of(payload)) {
            Some(Ok(())) => ended += 1,
            Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => {}
            Some(Err(error)) => return Err(error),
            None => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
    Ok(ended)
}

/// The messages in a buffer, by kind; ends at the first that is not whole.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
        let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
        let payload = bytes.get(HEADER_LEN..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// The negative errno that a message begins with.
fn error_of(payload: &[u8]) -> io::Result<()> {
    match payload.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes)) {
        None | Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(errno.saturating_neg())),
    }
}

/// One `struct inet_diag_msg` with its attributes.
fn entry(payload: &[u8]) -> Option<Entry> {
    let (message, mut attributes) = payload.split_at_checked(MESSAGE_LEN)?;
    let (family, state) = (*message.first()?, *message.get(1)?);
    let id: [u8; ID_LEN] = *message.get(4..)?.first_chunk()?;
    let port = |at: usize| Some(u16::from_be_bytes(*id.get(at..)?.first_chunk()?));
    let ip = |at: usize| -> Option<IpAddr> {
        let bytes = id.get(at..)?;
        let ip = match i32::from(family) {
            libc::AF_INET => IpAddr::from(Ipv4Addr::from(*bytes.first_chunk::<4>()?)),
            _ => IpAddr::from(Ipv6Addr::from(*bytes.first_chunk::<16>()?)),
        };
        Some(ip.to_canonical())
    };
    let mut agents = false;
    while let Some(length) = attributes.first_chunk().map(|bytes| usize::from(u16::from_ne_bytes(*bytes))) {
        let kind = u16::from_ne_bytes(*attributes.get(2..)?.first_chunk()?) & 0x3fff;
        // Without a value in the map asked for there is no such attribute, or an empty one.
        agents |= kind == STORAGES && length > ATTRIBUTE_HEADER_LEN;
        attributes = attributes.get(length.max(ATTRIBUTE_HEADER_LEN).next_multiple_of(4)..).unwrap_or_default();
    }
    let (local, remote) = (SocketAddr::new(ip(4)?, port(0)?), SocketAddr::new(ip(20)?, port(2)?));
    Some(Entry { family, state, id, local, remote, agents })
}

#[cfg(test)]
#[path = "diag_tests.rs"]
mod tests;
