//! The data plane: accepts what eBPF captured, finds out where it was meant to go, dials, and carries the bytes.
//!
//! A connection's life, one module per phase: accepted ([`mod@accept`]) → entry in the [`registry`] → [`budget`] of its pod →
//! resolved and dialled ([`outbound`] or [`inbound`], by [`dial`]) → carried ([`copy`]) → closed as clean as it ended, logged
//! and counted once ([`task`]). Each [`worker`] is one thread with its own runtime, listeners, buffers and registry; the
//! hot path shares nothing. This room knows no eBPF and no keeper: sockets come through [`SocketSource`].
#![forbid(unsafe_code)]

mod accept;
mod affinity;
mod budget;
mod buffers;
mod config;
mod copy;
mod dial;
mod drain;
mod inbound;
mod labels;
mod outbound;
mod proxy;
mod registry;
mod sockets;
mod task;
mod worker;

#[cfg(test)]
mod tests;

pub use budget::PodUsage;
pub use config::Config;
pub use drain::DrainReport;
pub use proxy::{Proxy, ProxyError, Telemetry};
pub use registry::{ConnectionList, ConnectionView, Registry, State};
pub use sockets::{PodListeners, ShardListeners, SocketError, SocketFuture, SocketSource};
