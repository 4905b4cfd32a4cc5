//! Pure data and pure decisions: what exists (workloads, services, endpoints) and what follows from it
//! (which Service an address belongs to, which endpoint to take), always with the reason.
//!
//! No I/O, no async, no clocks, no Kubernetes types: time, randomness and load come in as arguments.
#![forbid(unsafe_code)]

pub mod addr;
pub mod balance;
mod claims;
pub mod invalid;
pub mod mesh;
pub mod network_policy;
mod policies;
pub mod policy;
pub mod resolve;
pub mod routing;
pub mod service;
mod sharded;
pub mod snapshot;
pub mod time;
pub mod traffic;
pub mod workload;

pub use addr::{ClientAddr, Family, OriginalDst};
pub use invalid::InvalidObject;
pub use mesh::{MeshConfig, MtlsMode, MtlsModes, SameNode};
pub use policies::{PolicyDelta, PolicyKey, WorkloadPolicies};
pub use resolve::{Candidates, Class, Refusal, Resolution};
pub use service::{Endpoint, Service, ServiceKey, ServicePort};
pub use snapshot::{Delta, Snapshot};
pub use time::Timestamp;
pub use workload::{PodUid, Transport, Workload};
