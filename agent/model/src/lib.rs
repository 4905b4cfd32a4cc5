//! Pure data and pure decisions: what exists (workloads, services, endpoints) and what follows from it
//! (which Service an address belongs to, which endpoint to take), always with the reason.
//!
//! No I/O, no async, no clocks, no Kubernetes types: time, randomness and load come in as arguments.
#![forbid(unsafe_code)]

pub mod addr;
pub mod balance;
pub mod invalid;
pub mod mesh;
pub mod resolve;
pub mod service;
pub mod snapshot;
pub mod workload;

pub use addr::{ClientAddr, Family, OriginalDst};
pub use invalid::InvalidObject;
pub use mesh::MeshConfig;
pub use resolve::{Refusal, Resolution};
pub use service::{Endpoint, Service, ServicePort};
pub use snapshot::{Delta, Snapshot};
pub use workload::{PodUid, Workload};
