//! The immutable state readers see, and the delta a source publishes.
//!
//! Sharded maps of `Arc`s: a change of one endpoint copies one Service and one shard, not the cluster.

use std::net::IpAddr;
use std::sync::Arc;

use crate::addr::OriginalDst;
use crate::invalid::InvalidObject;
use crate::mesh::MeshConfig;
use crate::resolve::Resolution;
use crate::service::Service;
use crate::workload::{PodUid, Workload};

/// Everything the agent knows at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Counts publications; 0 is the empty snapshot before the first load.
    pub generation: u64,
    /// This node's name.
    pub node: Arc<str>,
    /// Mesh-wide settings.
    pub mesh: Arc<MeshConfig>,
    /// Objects that were rejected, ordered by origin and line.
    pub invalid: Arc<[InvalidObject]>,
}

/// One batch of changes: desired state by key, `None` removes.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    /// Pods by uid.
    pub workloads: Vec<(PodUid, Option<Workload>)>,
    /// Services by `(namespace, name)`.
    pub services: Vec<((Arc<str>, Arc<str>), Option<Service>)>,
    /// Mesh settings, if changed.
    pub mesh: Option<MeshConfig>,
    /// The whole list of rejected objects, if changed.
    pub invalid: Option<Vec<InvalidObject>>,
}

impl Snapshot {
    /// The pod that owns an address. Host-network pods own none; a finished pod owns none; of two, the newer wins.
    #[must_use]
    pub fn workload_by_ip(&self, _ip: IpAddr) -> Option<&Arc<Workload>> {
        None
    }

    /// A pod by uid.
    #[must_use]
    pub fn workload(&self, _uid: &PodUid) -> Option<&Arc<Workload>> {
        None
    }

    /// All pods, in no particular order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        std::iter::empty()
    }

    /// All services, in no particular order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        std::iter::empty()
    }

    /// Where a connection of a pod on this node to `dst` should go. `source` is the calling pod if known.
    #[must_use]
    pub fn resolve(&self, _source: Option<&Workload>, dst: OriginalDst) -> Resolution {
        Resolution::External { addr: dst.get() }
    }

    /// The snapshot after `delta`; shares everything the delta does not touch.
    #[must_use]
    pub fn apply(&self, _delta: Delta) -> Self {
        self.clone()
    }
}
