//! Mesh-wide settings: the `Mesh` object named `default`.

use std::collections::BTreeMap;
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
    /// mTLS mode of ports for which no `MeshTLS` says another, default [`MtlsMode::Permissive`].
    pub mtls: MtlsMode,
    /// How requests between pods of one node travel, default [`SameNode::Auto`].
    pub same_node: SameNode,
}

/// What a port takes (FEATURES B3). The words are those of the `MeshTLS` object's `mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MtlsMode {
    /// Authenticated connections of the mesh only; everything else is refused.
    Strict,
    /// Both; callers in the mesh still use mTLS.
    #[default]
    Permissive,
    /// Plain text only: callers in the mesh do not use mTLS.
    Disabled,
}

impl MtlsMode {
    /// The word users write.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "Strict",
            Self::Permissive => "Permissive",
            Self::Disabled => "Disabled",
        }
    }
}

/// mTLS modes of one workload, as its `MeshTLS` objects say. What they leave open the mesh's default decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MtlsModes {
    /// Of every port that is not in `ports`.
    pub mode: Option<MtlsMode>,
    /// Of single target ports.
    pub ports: BTreeMap<u16, MtlsMode>,
}

impl MtlsModes {
    /// The mode of a target port.
    #[must_use]
    pub fn of(&self, port: u16, mesh: &MeshConfig) -> MtlsMode {
        self.ports.get(&port).copied().or(self.mode).unwrap_or(mesh.mtls)
    }

    /// Whether any target port is [`MtlsMode::Strict`].
    #[must_use]
    pub fn any_strict(&self, mesh: &MeshConfig) -> bool {
        let all = self.mode.unwrap_or(mesh.mtls);
        std::iter::once(&all).chain(self.ports.values()).any(|mode| *mode == MtlsMode::Strict)
    }
}

/// How requests between pods of one node travel (FEATURES B8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SameNode {
    /// Handed over where the agent can decide everything that the CNI would. Today always: of the CNI's policies it is told
    /// `NetworkPolicy` alone, and that one it decides itself.
    #[default]
    Auto,
    /// Handed over inside the agent: no TLS, no packet between the pods.
    Handover,
    /// As between nodes.
    Wire,
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
            mtls: MtlsMode::default(),
            same_node: SameNode::default(),
        }
    }
}
