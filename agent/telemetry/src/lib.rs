//! What the agent tells about itself: the one list of reasons, metric families and their labels, the access record.
//!
//! The hot path writes relaxed atomics in cells its worker owns ([`tcp`], [`proxy`]) and hands finished records to a bounded
//! queue ([`access`]); everything else happens at scrape time. Names and labels are documented in `docs/metrics.md`.
#![forbid(unsafe_code)]

pub mod access;
pub mod collect;
pub mod encode;
pub mod labels;
pub mod process;
pub mod proxy;
pub mod reason;
pub mod tcp;
pub mod time;

pub use access::{AccessLog, AccessRecord};
pub use encode::Format;
pub use labels::{PeerLabels, Reporter, ServiceLabels, TcpLabels};
pub use prometheus::{Error as RegistryError, Registry};
pub use proxy::{Direction, ProxyMetrics};
pub use reason::Reason;
pub use tcp::{TcpHandle, TcpMetrics};
