//! A workload: one pod, with the names telemetry and policy know it by.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::mesh::{MeshConfig, MtlsMode, MtlsModes};
use crate::time::Timestamp;

/// `metadata.uid` of a Pod; in stand-alone mode `namespace/name` where the file gives no uid.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodUid(Arc<str>);

impl PodUid {
    /// Wraps a uid.
    #[must_use]
    pub fn new(uid: &str) -> Self {
        Self(uid.into())
    }

    /// The uid as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Pod uid.
    pub uid: PodUid,
    /// Pod namespace.
    pub namespace: Arc<str>,
    /// Pod name.
    pub name: Arc<str>,
    /// Name of the owning workload (Deployment, StatefulSet …): `heddle.dev/workload-name` label if set, else the pod's
    /// name without the ReplicaSet/pod hash suffixes it carries (`pod-template-hash` label, generated suffix), else its name.
    pub workload_name: Arc<str>,
    /// `spec.serviceAccountName`, `default` if absent.
    pub service_account: Arc<str>,
    /// `spec.nodeName`; empty while unscheduled.
    pub node: Arc<str>,
    /// `status.podIPs`, canonical (never v4-mapped).
    pub addresses: Vec<IpAddr>,
    /// `spec.hostNetwork`: never captured.
    pub host_network: bool,
    /// `app.kubernetes.io/name`, else `app`, else empty.
    pub app: Arc<str>,
    /// `app.kubernetes.io/version`, else `version`, else empty.
    pub version: Arc<str>,
    /// `metadata.labels`.
    pub labels: Arc<Labels>,
    /// TCP ports its containers name: name and number, in the order of the containers. A name may stand there twice.
    pub named_ports: Arc<[(Arc<str>, u16)]>,
    /// `topology.kubernetes.io/zone` as far as known, else empty.
    pub zone: Arc<str>,
    /// Being deleted (`metadata.deletionTimestamp`).
    pub terminating: bool,
    /// All its processes ended (`status.phase` Succeeded or Failed): it owns its addresses no more.
    pub finished: bool,
    /// `metadata.creationTimestamp`, which settles conflicts over an address: the newest pod wins.
    pub created: Option<Timestamp>,
    /// Whether it is in the mesh and why (FEATURES A1).
    pub membership: Membership,
    /// How to capture it; only for pods in the mesh.
    pub capture: Capture,
    /// What others reach it by, if its ports take mTLS.
    pub transport: Transport,
    /// What its ports take, as `MeshTLS` objects say.
    pub mtls: MtlsModes,
    /// Where its namespaces are in stand-alone mode.
    pub standalone: Option<StandalonePaths>,
}

/// What a workload is reached by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// Its own port, as it is: it is in no mesh.
    #[default]
    Plain,
    /// HBONE on port 15008 (Istio's ambient mesh).
    Hbone,
    /// TLS with ALPN `heddle/h2` on its own port: an agent of this mesh accepts for it.
    Heddle,
}

impl Transport {
    /// Stable word for CLI, log and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Hbone => "hbone",
            Self::Heddle => "heddle",
        }
    }
}

/// In or out of the mesh, with the reason an operator sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Membership {
    /// Captured: namespace label or pod label says so, or what guards the pod does not let it out for a mistake or by its own wish.
    Enabled,
    /// Not captured; why.
    Disabled(NotInMesh),
}

/// Why a pod is not captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotInMesh {
    /// Neither its namespace nor the pod has `heddle.dev/mesh: enabled`.
    NotLabelled,
    /// The pod has `heddle.dev/mesh: disabled`. Where something guards it that counts only if its namespace allows it.
    PodOptedOut,
    /// `spec.hostNetwork: true` shares the node's network namespace.
    HostNetwork,
    /// The label has a value that is neither `enabled` nor `disabled`, see `Snapshot::invalid`, and nothing guards the pod.
    InvalidLabel,
    /// The Pod object was rejected, see `Snapshot::invalid`, and nothing guards the pod.
    InvalidObject,
}

impl NotInMesh {
    /// Stable word for CLI and log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotLabelled => "not_labelled",
            Self::PodOptedOut => "pod_opted_out",
            Self::HostNetwork => "host_network",
            Self::InvalidLabel => "invalid_label",
            Self::InvalidObject => "invalid_object",
        }
    }
}

/// What happens to a namespace's connections while no agent runs (FEATURES A9).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FailurePolicy {
    /// Connections wait in the backlog, then are refused.
    #[default]
    Closed,
    /// Outbound passes untouched; inbound passes except to STRICT ports.
    Open,
}

/// How one pod is captured (FEATURES A6, A9). Exclusions are here only if the namespace allows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capture {
    /// Namespace annotation `heddle.dev/failure-policy`.
    pub failure_policy: FailurePolicy,
    /// Pod annotation `heddle.dev/exclude-outbound-cidrs`.
    pub exclude_outbound_cidrs: Vec<IpNet>,
    /// Pod annotation `heddle.dev/exclude-outbound-ports`.
    pub exclude_outbound_ports: Vec<u16>,
    /// Pod annotation `heddle.dev/exclude-inbound-ports`.
    pub exclude_inbound_ports: Vec<u16>,
    /// Pod annotation `heddle.dev/opaque-ports`: never parsed as HTTP.
    pub opaque_ports: Vec<u16>,
}

/// Annotations `standalone.heddle.dev/netns` and `/cgroup`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandalonePaths {
    /// Path of the network namespace, e.g. `/run/netns/web`.
    pub netns: Arc<str>,
    /// Path of the cgroup2 directory, if given.
    pub cgroup: Option<Arc<str>>,
}

impl Workload {
    /// A pod outside the mesh with these names, no address and every other field at its default.
    #[must_use]
    pub fn new(uid: &str, namespace: &str, name: &str) -> Self {
        Self {
            uid: PodUid::new(uid),
            namespace: namespace.into(),
            name: name.into(),
            workload_name: name.into(),
            service_account: "default".into(),
            node: Arc::default(),
            addresses: Vec::new(),
            host_network: false,
            app: Arc::default(),
            version: Arc::default(),
            labels: Arc::default(),
            named_ports: Arc::default(),
            zone: Arc::default(),
            terminating: false,
            finished: false,
            created: None,
            membership: Membership::Disabled(NotInMesh::NotLabelled),
            capture: Capture::default(),
            transport: Transport::Plain,
            mtls: MtlsModes::default(),
            standalone: None,
        }
    }

    /// Whether `addresses` are this pod's own: a host-network pod's are the node's, a finished pod's may be anyone's.
    #[must_use]
    pub const fn owns_addresses(&self) -> bool {
        !self.host_network && !self.finished
    }

    /// What a caller in the mesh reaches this target port by: plain where the port's mode says so.
    #[must_use]
    pub fn transport_to(&self, port: u16, mesh: &MeshConfig) -> Transport {
        if self.mtls.of(port, mesh) == MtlsMode::Disabled { Transport::Plain } else { self.transport }
    }

    /// Whether capture is wanted for this pod: in the mesh, and not finished.
    #[must_use]
    pub fn wants_capture(&self) -> bool {
        self.membership == Membership::Enabled && !self.finished
    }
}

/// Labels as written in `metadata.labels`.
pub type Labels = BTreeMap<String, String>;

/// Whether a pod has all of these labels, of whose own some may not be known; `None`: it depends on those.
#[must_use]
pub fn has_labels(wanted: &Labels, known: &Labels) -> Option<bool> {
    let of_one = |(key, value): (&String, &String)| known.get(key).map(|known| known == value);
    all_known(wanted.iter().map(of_one))
}

/// Whether all hold, of which each may not be known.
pub(crate) fn all_known(each: impl IntoIterator<Item = Option<bool>>) -> Option<bool> {
    let mut all = Some(true);
    for one in each {
        match one {
            Some(true) => {}
            Some(false) => return Some(false),
            None => all = None,
        }
    }
    all
}
