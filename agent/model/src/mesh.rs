//! Mesh-wide settings: the `Mesh` object named `default`.

use std::sync::Arc;

/// Settings of the whole mesh. Fields arrive with the features that read them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshConfig {
    /// SPIFFE trust domain, default `cluster.local`.
    pub trust_domain: Arc<str>,
    /// DNS suffix of Services in telemetry, default `cluster.local`.
    pub cluster_domain: Arc<str>,
    /// Name of this cluster in telemetry (`source_cluster`), default `Kubernetes`.
    pub cluster_name: Arc<str>,
    /// What happens to connections to destinations nobody knows, default [`OutboundPolicy::Allow`].
    pub outbound_policy: OutboundPolicy,
    /// Per-pod budgets.
    pub limits: PodLimits,
}

/// Whether pods may call addresses that belong to no workload or Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutboundPolicy {
    /// Passed through to the original address.
    #[default]
    Allow,
    /// Refused with a reason.
    Deny,
}

/// Budgets of one pod (FEATURES K1), from the first read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodLimits {
    /// Open connections through the agent, both directions together. Default 10,240.
    pub connections_max: u32,
    /// Bytes the agent holds for the pod in buffers. Default 16 MiB.
    pub buffered_bytes_max: u64,
    /// HTTP requests in flight, both directions together, tunnels and open gRPC streams included. Default 10,240.
    pub requests_max: u32,
}

impl Default for PodLimits {
    fn default() -> Self {
        Self { connections_max: 10_240, buffered_bytes_max: 16 << 20, requests_max: 10_240 }
    }
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".into(),
            cluster_domain: "cluster.local".into(),
            cluster_name: "Kubernetes".into(),
            outbound_policy: OutboundPolicy::default(),
            limits: PodLimits::default(),
        }
    }
}
