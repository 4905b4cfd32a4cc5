//! What the agent tells about itself: the one list of reasons, metric families and their labels, the access record.
//!
//! The hot path writes relaxed atomics in cells its worker owns ([`tcp`], [`proxy`]) and hands finished records to a bounded
//! queue ([`access`]); everything else happens at scrape time. Names and labels are documented in `docs/metrics.md`.
#![forbid(unsafe_code)]

pub mod access;
pub mod collect;
pub mod encode;
pub mod http;
pub mod labels;
pub mod policy;
pub mod process;
pub mod proxy;
pub mod reason;
pub mod series;
pub mod tcp;
pub mod time;
pub mod upstream;
pub mod via;

pub use access::{AccessLog, AccessRecord, HttpFields, PolicyFields};
pub use encode::Format;
pub use http::{HttpHandle, HttpMetrics, RequestSample};
pub use labels::{HttpLabels, PeerLabels, Reporter, ServiceLabels, TcpLabels};
pub use policy::{PolicyHandle, PolicyLabels, PolicyMetrics, PolicyVerdict};
pub use prometheus::{Error as RegistryError, Registry};
pub use proxy::{Direction, ProxyMetrics};
pub use reason::Reason;
pub use tcp::{TcpHandle, TcpMetrics};
pub use upstream::{Event, UpstreamMetrics};
pub use via::Via;

/// Every family this room declares. Rooms with families of their own declare them as [`collect::FamilyDesc`] too.
#[must_use]
pub fn families() -> Vec<collect::FamilyDesc> {
    let own: [&[collect::FamilyDesc]; 8] = [
        &tcp::FAMILIES,
        &http::FAMILIES,
        &series::FAMILIES,
        &proxy::FAMILIES,
        &policy::FAMILIES,
        &upstream::FAMILIES,
        &access::FAMILIES,
        &process::FAMILIES,
    ];
    own.concat()
}
