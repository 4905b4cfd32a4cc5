//! What the eBPF programs and user space agree on: map names, keys, values, constants, and the version of it all.
//!
//! Every type here is plain old data with explicit padding; its layout is proved at compile time below. IP addresses
//! are always 16 bytes in network order, IPv4 in its v4-mapped form, so that there is one kind of key. Ports are in
//! host order. Change a layout, a name or a meaning: raise [`ABI_VERSION`].
#![no_std]
#![forbid(unsafe_code)]

pub mod addr;
pub mod counter;
pub mod heartbeat;

pub use addr::{Ip, SocketAddress};
pub use counter::Counter;
pub use heartbeat::Heartbeat;

/// Version of everything in this crate, stored in the pinned [`names::META`] map.
pub const ABI_VERSION: u32 = 3;

/// Outbound listener, on loopback inside each enrolled pod's network namespace.
pub const OUTBOUND_PORT: u16 = 15001;
/// Inbound listener, likewise.
pub const INBOUND_PORT: u16 = 15006;
/// HBONE listener, likewise.
pub const HBONE_PORT: u16 = 15008;

/// Whether a port belongs to the agent in every enrolled pod: never an application's, from any direction.
#[must_use]
#[inline(always)]
pub const fn is_agent_port(port: u16) -> bool {
    port == OUTBOUND_PORT || port == INBOUND_PORT || port == HBONE_PORT
}

/// Enrolled pods on one node, at most.
pub const PODS_MAX: usize = 1024;
/// Addresses of enrolled pods on one node, at most.
pub const POD_ADDRESSES_MAX: usize = 4096;
/// Inbound and HBONE listeners of them, at most.
pub const LISTENERS_MAX: usize = 65_536;
/// Connections between "established on the connecting side" and "established on the accepting side", at most.
pub const RECORDS_MAX: usize = 65_536;
/// Excluded `(pod, port)` pairs on one node, at most.
pub const EXCLUDED_PORTS_MAX: usize = 16_384;
/// Excluded `(pod, CIDR)` pairs on one node, at most.
pub const EXCLUDED_CIDRS_MAX: usize = 16_384;
/// `(pod, port)` pairs on one node whose port is STRICT where its pod's others are not, or the other way round, at most.
pub const PORT_MODES_MAX: usize = 16_384;

/// Names of maps, as pinned and as shown by `bpftool` (15 characters at most).
pub mod names {
    /// Array\[1\] of [`super::Meta`].
    pub const META: &str = "HEDDLE_META";
    /// Hash: netns cookie → [`super::Pod`].
    pub const PODS: &str = "HEDDLE_PODS";
    /// Hash: [`super::Ip`] → [`super::PodAddress`].
    pub const ADDRESSES: &str = "HEDDLE_ADDRS";
    /// Socket hash: [`super::ListenerKey`] → inbound or HBONE listener.
    pub const LISTENERS: &str = "HEDDLE_LISTEN";
    /// Hash: [`super::RecordKey`] → [`super::Record`].
    pub const RECORDS: &str = "HEDDLE_RECORDS";
    /// Socket storage of the agent's own sockets, inherited by accepted ones: [`super::AgentSocket`].
    pub const AGENT_SOCKETS: &str = "HEDDLE_AGENT_SK";
    /// Socket storage of applications' sockets: [`super::AppSocket`].
    pub const APP_SOCKETS: &str = "HEDDLE_APP_SK";
    /// Hash: [`super::ExcludedPort`] → 1 (u32).
    pub const EXCLUDED_PORTS: &str = "HEDDLE_XPORTS";
    /// LPM trie: [`super::ExcludedCidr`] → 1 (u32).
    pub const EXCLUDED_CIDRS: &str = "HEDDLE_XCIDRS";
    /// Hash: [`super::PodPort`] → [`super::port_mode`] (u32).
    pub const PORT_MODES: &str = "HEDDLE_MODES";
    /// Array\[1\] of [`super::Heartbeat`].
    pub const HEARTBEAT: &str = "HEDDLE_BEAT";
    /// Per-CPU array of u64, indexed by [`super::Counter`].
    pub const COUNTERS: &str = "HEDDLE_COUNTS";
    /// All maps that are pinned.
    pub const ALL: [&str; 12] = [
        META,
        PODS,
        ADDRESSES,
        LISTENERS,
        RECORDS,
        AGENT_SOCKETS,
        APP_SOCKETS,
        EXCLUDED_PORTS,
        EXCLUDED_CIDRS,
        PORT_MODES,
        HEARTBEAT,
        COUNTERS,
    ];
}

/// What the pins under a directory are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Meta {
    /// [`ABI_VERSION`] of the keeper that made the pins.
    pub abi_version: u32,
    /// Zero.
    pub reserved: u32,
}

/// One enrolled pod, found by the cookie of its network namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Pod {
    /// Bits of [`pod_flags`].
    pub flags: u32,
    /// The pod's IPv4 address in network order; 0 if it has none.
    pub ip4: u32,
    /// The pod's IPv6 address; all zero if it has none.
    pub ip6: Ip,
}

/// Bits of [`Pod::flags`] and [`PodAddress::flags`].
pub mod pod_flags {
    /// `heddle.dev/failure-policy: Open`.
    pub const FAIL_OPEN: u32 = 1;
    /// The pod has excluded outbound ports: look into `EXCLUDED_PORTS`.
    pub const EXCLUDES_OUTBOUND_PORTS: u32 = 1 << 1;
    /// The pod has excluded outbound CIDRs: look into `EXCLUDED_CIDRS`.
    pub const EXCLUDES_CIDRS: u32 = 1 << 2;
    /// The pod has excluded inbound ports: look into `EXCLUDED_PORTS`.
    pub const EXCLUDES_INBOUND_PORTS: u32 = 1 << 3;
    /// There is no IPv6 listener in this pod (no `::1`): native IPv6 connects are refused, or pass if [`FAIL_OPEN`].
    pub const NO_IPV6_LISTENER: u32 = 1 << 4;
    /// The agent has identities and serves HBONE: 15008 from outside goes to its listener. Else it is refused, like every agent port.
    pub const HBONE: u32 = 1 << 5;
    /// Ports without an entry in `PORT_MODES` are STRICT: closed from outside while no agent runs, even if [`FAIL_OPEN`].
    pub const STRICT: u32 = 1 << 6;
}

/// One address of an enrolled pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PodAddress {
    /// Cookie of the pod's network namespace.
    pub netns_cookie: u64,
    /// Bits of [`pod_flags`].
    pub flags: u32,
    /// Listeners of each [`ListenerKey::port`] to choose from, at least 1: one per worker shard.
    pub shards: u32,
}

/// One listener of a pod for connections from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ListenerKey {
    /// The pod's address that is called.
    pub ip: Ip,
    /// [`INBOUND_PORT`] or [`HBONE_PORT`]: which of the agent's listeners.
    pub port: u32,
    /// Less than [`PodAddress::shards`].
    pub shard: u32,
}

/// A connection as its connecting side sees it, inside one network namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RecordKey {
    /// Cookie of the network namespace: the same addresses exist in many.
    pub netns_cookie: u64,
    /// Address of the connecting side.
    pub source: SocketAddress,
    /// Address of the accepting side.
    pub destination: SocketAddress,
}

/// What the accepting side must learn about the connection: consumed once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Record {
    /// Original destination (capture) or true client (agent → application), as [`Record::kind`] says.
    pub address: SocketAddress,
    /// [`record_kind`].
    pub kind: u32,
}

/// Values of [`Record::kind`].
pub mod record_kind {
    /// `address` is the original destination of a captured connection.
    pub const ORIGINAL_DESTINATION: u32 = 1;
    /// `address` is the true client of a connection the agent makes to the application.
    pub const TRUE_CLIENT: u32 = 2;
}

/// Storage of a socket that belongs to the agent. Written by the keeper through the socket's fd; an application cannot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct AgentSocket {
    /// [`agent_role`].
    pub role: u32,
    /// Bits of [`agent_flags`].
    pub flags: u32,
    /// Accepted from the outbound listener: the original destination. Upstream: the true client to publish.
    pub address: SocketAddress,
}

/// Values of [`AgentSocket::role`].
pub mod agent_role {
    /// The outbound listener, and (inherited) the connections accepted from it.
    pub const OUTBOUND: u32 = 1;
    /// The inbound listener, and (inherited) the connections accepted from it.
    pub const INBOUND: u32 = 2;
    /// A socket the agent dials with.
    pub const UPSTREAM: u32 = 3;
    /// Asks the hooks to show that they run for the keeper's sockets: `getsockname` answers [`super::SELF_TEST`].
    pub const SELF_TEST: u32 = 4;
    /// The HBONE listener, and (inherited) the connections accepted from it.
    pub const HBONE: u32 = 5;
}

/// Bits of [`AgentSocket::flags`].
pub mod agent_flags {
    /// `address` is set.
    pub const HAS_ADDRESS: u32 = 1;
    /// The record for this upstream socket did not fit: `getsockname` answers port 0, the agent must give the connection up.
    pub const RECORD_LOST: u32 = 1 << 1;
}

/// What `getsockname` says on a socket with role [`agent_role::SELF_TEST`] (TEST-NET-1, RFC 5737), network order.
pub const SELF_TEST: [u8; 4] = [192, 0, 2, 86];

/// Storage of an application's socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct AppSocket {
    /// [`app_kind`].
    pub kind: u32,
    /// What `getpeername` says.
    pub peer: SocketAddress,
    /// Captured: the pod's address of the same family, for `getsockname` on a socket that did not bind.
    pub own: Ip,
}

/// Values of [`AppSocket::kind`].
pub mod app_kind {
    /// Nothing special: the socket was captured once and is used otherwise now.
    pub const NONE: u32 = 0;
    /// Captured on `connect()`: `peer` is the original destination.
    pub const CAPTURED: u32 = 1;
    /// Accepted from the agent: `peer` is the true client.
    pub const ACCEPTED: u32 = 2;
}

/// A port left out of capture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ExcludedPort {
    /// Cookie of the pod's network namespace.
    pub netns_cookie: u64,
    /// [`direction`].
    pub direction: u32,
    /// The port.
    pub port: u32,
}

/// Values of [`ExcludedPort::direction`].
pub mod direction {
    /// Destination port of the pod's own connections.
    pub const OUTBOUND: u32 = 1;
    /// Port of the pod that others connect to.
    pub const INBOUND: u32 = 2;
}

/// One port of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PodPort {
    /// Cookie of the pod's network namespace.
    pub netns_cookie: u64,
    /// The port.
    pub port: u32,
    /// Zero.
    pub reserved: u32,
}

/// What is said of a [`PodPort`], whatever holds for its pod: so each entry is right while others are being written.
pub mod port_mode {
    /// Authenticated connections only: nothing passes while no agent runs.
    pub const STRICT: u32 = 1;
    /// Passes while no agent runs, if the pod's failure policy is Open.
    pub const LENIENT: u32 = 2;
}

/// Data of an LPM key: the first 96 bits (always matched whole) say whose exclusion it is, and of which family: `::/0`
/// must not cover IPv4, whose addresses are v4-mapped here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, packed)]
pub struct ExcludedCidr {
    /// Cookie of the pod's network namespace.
    pub netns_cookie: u64,
    /// 4 or 6.
    pub family: u32,
    /// Network address, v4-mapped for IPv4 (add 96 to its prefix length).
    pub network: [u8; 16],
}

/// Bits of [`ExcludedCidr`] before the address.
pub const EXCLUDED_CIDR_PREFIX_BITS: u32 = 96;

const _: () = {
    assert!(size_of::<Ip>() == 16 && align_of::<Ip>() == 4);
    assert!(size_of::<SocketAddress>() == 20 && align_of::<SocketAddress>() == 4);
    assert!(size_of::<Meta>() == 8);
    assert!(size_of::<Pod>() == 24 && align_of::<Pod>() == 4);
    assert!(size_of::<PodAddress>() == 16 && align_of::<PodAddress>() == 8);
    assert!(size_of::<ListenerKey>() == 24 && align_of::<ListenerKey>() == 4);
    assert!(size_of::<RecordKey>() == 48 && align_of::<RecordKey>() == 8);
    assert!(core::mem::offset_of!(RecordKey, source) == 8 && core::mem::offset_of!(RecordKey, destination) == 28);
    assert!(size_of::<Record>() == 24 && core::mem::offset_of!(Record, kind) == 20);
    assert!(size_of::<AgentSocket>() == 28 && core::mem::offset_of!(AgentSocket, address) == 8);
    assert!(size_of::<AppSocket>() == 40 && core::mem::offset_of!(AppSocket, peer) == 4);
    assert!(size_of::<ExcludedPort>() == 16);
    assert!(size_of::<PodPort>() == 16 && align_of::<PodPort>() == 8);
    assert!(size_of::<ExcludedCidr>() == 28 && align_of::<ExcludedCidr>() == 1);
    assert!(size_of::<Heartbeat>() == 16 && align_of::<Heartbeat>() == 8);
};
