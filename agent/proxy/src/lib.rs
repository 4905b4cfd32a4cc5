//! The data plane: accepts what eBPF captured, finds out where it was meant to go, dials, and carries the bytes.
//!
//! A connection's life, one module per phase: accepted ([`mod@accept`]) → entry in the [`registry`] → [`budget`] of its pod →
//! resolved ([`outbound`] or [`inbound`], [`route`]) → told by its protocol ([`protocol`]) → dialled ([`dial`]) and carried: as bytes
//! ([`copy`]) or as requests ([`mod@http`]) → closed as clean as it ended, logged and counted once ([`task`]). Each [`worker`] is one thread with its own runtime, listeners, buffers and registry; the
//! hot path shares nothing. This room knows no eBPF and no keeper: sockets come through [`SocketSource`].
#![forbid(unsafe_code)]

mod accept;
mod affinity;
mod authz;
mod budget;
mod buffers;
mod config;
mod copy;
mod dial;
mod drain;
pub mod explain;
mod hash;
mod http;
mod inbound;
mod labels;
#[doc(hidden)]
pub mod measure;
mod mesh;
mod outbound;
mod protocol;
mod proxy;
mod registry;
mod route;
mod sockets;
mod task;
mod upstreams;
mod worker;

#[cfg(test)]
mod tests;

pub use budget::PodUsage;
pub use config::Config;
pub use drain::DrainReport;
pub use heddle_http::breaker::{Resource, Usage, limit};
pub use heddle_http::retry::BudgetUse;
pub use proxy::{Identity, Proxy, ProxyError, Telemetry};
pub use registry::{ConnectionList, ConnectionView, Registry, State};
pub use sockets::{PodListeners, ShardListeners, SocketError, SocketFuture, SocketSource};
pub use upstreams::{CircuitUsage, Ejected, EndpointUsage, PortUsage};
