//! `heddle.dev/v1alpha1 Mesh`, name `default`: settings of the whole mesh. A field of a feature that is not built yet
//! is refused, so that nobody believes it to be in force.

use heddle_model::mesh::OutboundPolicy;
use heddle_model::{MeshConfig, MtlsMode, SameNode};
use serde::de::{self, Deserialize, Deserializer};

use crate::meta::{self, ObjectMeta};
use crate::node::shortened;
use crate::problem::Problems;
use crate::schema;

/// The only name a Mesh may have.
pub const NAME: &str = "default";
/// Greatest `spec.limits.connectionsMax`.
pub const CONNECTIONS_MAX: i64 = 1_000_000;
/// Greatest `spec.limits.requestsMax`.
pub const REQUESTS_MAX: i64 = 1_000_000;
/// Longest `spec.trustDomain` and `spec.clusterName`, in bytes.
const TRUST_DOMAIN_BYTES_MAX: usize = 255;
const CLUSTER_NAME_BYTES_MAX: usize = 253;
/// Least and greatest `spec.limits.bufferedBytesMax`.
pub const BUFFERED_BYTES_RANGE: std::ops::RangeInclusive<i64> = 65_536..=(64 << 30);

/// A Mesh.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshFields {
    /// `apiVersion`.
    #[serde(default)]
    pub api_version: String,
    /// `kind`.
    #[serde(default)]
    pub kind: String,
    /// `metadata`.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// `spec`.
    #[serde(default)]
    pub spec: MeshSpec,
}

/// `spec` of a Mesh.
#[derive(Debug, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MeshSpec {
    /// SPIFFE trust domain, default `cluster.local`.
    #[schemars(length(min = 1, max = TRUST_DOMAIN_BYTES_MAX))]
    #[schemars(extend("default" = &*MeshConfig::default().trust_domain))]
    pub trust_domain: Option<String>,
    /// DNS suffix of Services, default `cluster.local`.
    #[schemars(length(min = 1, max = meta::SUBDOMAIN_BYTES_MAX))]
    #[schemars(extend("default" = &*MeshConfig::default().cluster_domain))]
    pub cluster_domain: Option<String>,
    /// Name of the cluster in telemetry, default `Kubernetes`.
    #[schemars(length(min = 1, max = CLUSTER_NAME_BYTES_MAX))]
    #[schemars(extend("default" = &*MeshConfig::default().cluster_name))]
    pub cluster_name: Option<String>,
    /// `Allow` (default) or `Deny`: connections to addresses nobody knows.
    #[schemars(extend("enum" = schema::words(&OUTBOUND_POLICIES)))]
    #[schemars(extend("default" = schema::word(&OUTBOUND_POLICIES, MeshConfig::default().outbound_policy)))]
    pub outbound_policy: Option<String>,
    /// Per-pod budgets.
    pub limits: LimitsFields,
    /// mTLS where no `MeshTLS` says otherwise.
    pub mtls: MtlsFields,
    /// `Auto` (default), `Handover` or `Wire`: how requests between pods of one node travel.
    #[schemars(extend("enum" = schema::words(&SAME_NODES)))]
    #[schemars(extend("default" = schema::word(&SAME_NODES, MeshConfig::default().same_node)))]
    pub same_node: Option<String>,
    /// Metrics, logs and traces: with telemetry's own issue.
    #[schemars(skip)]
    pub telemetry: Option<NotYet>,
}

/// `spec.limits` of a Mesh.
#[derive(Debug, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LimitsFields {
    /// Open connections of one pod, default 10,240.
    #[schemars(range(min = 1, max = CONNECTIONS_MAX))]
    #[schemars(extend("default" = MeshConfig::default().limits.connections_max))]
    pub connections_max: Option<i64>,
    /// Bytes buffered for one pod, default 16 MiB.
    #[schemars(range(min = *BUFFERED_BYTES_RANGE.start(), max = *BUFFERED_BYTES_RANGE.end()))]
    #[schemars(extend("default" = MeshConfig::default().limits.buffered_bytes_max))]
    pub buffered_bytes_max: Option<i64>,
    /// HTTP requests of one pod in flight, default 10,240.
    #[schemars(range(min = 1, max = REQUESTS_MAX))]
    #[schemars(extend("default" = MeshConfig::default().limits.requests_max))]
    pub requests_max: Option<i64>,
}

/// `spec.mtls` of a Mesh.
#[derive(Debug, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MtlsFields {
    /// `Strict`, `Permissive` (default) or `Disabled`.
    #[schemars(extend("enum" = schema::words(&MTLS_MODES)))]
    #[schemars(extend("default" = schema::word(&MTLS_MODES, MeshConfig::default().mtls)))]
    pub mode: Option<String>,
}

/// The words of an mTLS mode.
pub(crate) const MTLS_MODES: [(&str, MtlsMode); 3] =
    [("Strict", MtlsMode::Strict), ("Permissive", MtlsMode::Permissive), ("Disabled", MtlsMode::Disabled)];

const OUTBOUND_POLICIES: [(&str, OutboundPolicy); 2] =
    [("Allow", OutboundPolicy::Allow), ("Deny", OutboundPolicy::Deny)];
const SAME_NODES: [(&str, SameNode); 3] =
    [("Auto", SameNode::Auto), ("Handover", SameNode::Handover), ("Wire", SameNode::Wire)];

/// A field of a feature to come: any value is refused.
#[derive(Debug)]
pub enum NotYet {}

impl<'de> Deserialize<'de> for NotYet {
    fn deserialize<D: Deserializer<'de>>(_deserializer: D) -> Result<Self, D::Error> {
        Err(de::Error::custom("is not supported yet: remove it"))
    }
}

/// Converts the Mesh; what has an error keeps its default, and the caller keeps the former Mesh.
pub(crate) fn convert(fields: &MeshFields, problems: &mut Problems) -> MeshConfig {
    let spec = &fields.spec;
    let mut config = MeshConfig::default();
    let trust_domain = |text: &str| {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        text.len() <= TRUST_DOMAIN_BYTES_MAX && text.bytes().all(allowed)
    };
    let name = |text: &str| {
        text.len() <= CLUSTER_NAME_BYTES_MAX
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
    };
    let mut text = |field: &str, value: &Option<String>, right: &dyn Fn(&str) -> bool, wanted: &str| {
        let value = value.as_deref()?;
        if value.is_empty() || !right(value) {
            problems.error(field, format!("`{}` is no {wanted}", shortened(value)));
            return None;
        }
        Some(value.into())
    };
    let wanted = "SPIFFE trust domain: lower-case letters, digits, `.`, `-`, `_`";
    if let Some(value) = text("spec.trustDomain", &spec.trust_domain, &trust_domain, wanted) {
        config.trust_domain = value;
    }
    if let Some(value) = text("spec.clusterDomain", &spec.cluster_domain, &meta::is_dns_subdomain, "DNS domain") {
        config.cluster_domain = value;
    }
    let wanted = "cluster name: letters, digits, `.`, `-`, `_`";
    if let Some(value) = text("spec.clusterName", &spec.cluster_name, &name, wanted) {
        config.cluster_name = value;
    }
    if let Some(policy) = &spec.outbound_policy
        && let Some(policy) = meta::one_of(problems, "spec.outboundPolicy", policy, &OUTBOUND_POLICIES)
    {
        config.outbound_policy = policy;
    }
    if let Some(mode) = &spec.mtls.mode
        && let Some(mode) = meta::one_of(problems, "spec.mtls.mode", mode, &MTLS_MODES)
    {
        config.mtls = mode;
    }
    if let Some(way) = &spec.same_node
        && let Some(way) = meta::one_of(problems, "spec.sameNode", way, &SAME_NODES)
    {
        config.same_node = way;
    }
    let mut limit = |field: &str, value: Option<i64>, range: std::ops::RangeInclusive<i64>| {
        let value = value?;
        if !range.contains(&value) {
            problems.error(field, format!("{value} is out of range: {} to {}", range.start(), range.end()));
            return None;
        }
        Some(value)
    };
    let connections = limit("spec.limits.connectionsMax", spec.limits.connections_max, 1..=CONNECTIONS_MAX);
    if let Some(max) = connections.and_then(|max| u32::try_from(max).ok()) {
        config.limits.connections_max = max;
    }
    let buffered = limit("spec.limits.bufferedBytesMax", spec.limits.buffered_bytes_max, BUFFERED_BYTES_RANGE);
    if let Some(max) = buffered.and_then(|max| u64::try_from(max).ok()) {
        config.limits.buffered_bytes_max = max;
    }
    let requests = limit("spec.limits.requestsMax", spec.limits.requests_max, 1..=REQUESTS_MAX);
    if let Some(max) = requests.and_then(|max| u32::try_from(max).ok()) {
        config.limits.requests_max = max;
    }
    config
}

#[cfg(test)]
#[path = "mesh_tests.rs"]
mod tests;
