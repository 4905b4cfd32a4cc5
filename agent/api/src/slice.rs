//! `discovery.k8s.io/v1 EndpointSlice`: addresses behind a Service, written by Kubernetes or by hand.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use heddle_model::{Endpoint, Family, Timestamp};
use serde::Deserialize;

use crate::meta::{self, ObjectMeta};
use crate::node::shortened;
use crate::problem::Problems;

/// The label that says whose endpoints they are.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// An EndpointSlice, the fields we read.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SliceFields {
    /// `metadata`.
    pub metadata: ObjectMeta,
    /// `addressType`.
    pub address_type: String,
    /// `endpoints`.
    pub endpoints: Vec<EndpointFields>,
    /// `ports`.
    pub ports: Vec<SlicePortFields>,
}

/// An item of `endpoints`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointFields {
    /// `addresses`: interchangeable; the first is used, as kube-proxy does.
    pub addresses: Vec<String>,
    /// `conditions`.
    pub conditions: Conditions,
    /// `nodeName`.
    pub node_name: String,
    /// `zone`.
    pub zone: String,
    /// `targetRef`.
    pub target_ref: TargetRef,
}

/// `conditions` of an endpoint.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Conditions {
    /// `ready`.
    pub ready: Option<bool>,
    /// `serving`.
    pub serving: Option<bool>,
    /// `terminating`.
    pub terminating: Option<bool>,
}

/// `targetRef` of an endpoint.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct TargetRef {
    /// `kind`.
    pub kind: String,
    /// `namespace`.
    pub namespace: String,
    /// `name`.
    pub name: String,
}

/// An item of `ports`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct SlicePortFields {
    /// `name`.
    pub name: String,
    /// `port`; absent means all ports, which no Service port can use.
    pub port: Option<i64>,
    /// `protocol`.
    pub protocol: Option<String>,
}

/// An EndpointSlice as the mesh sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace, also the Service's.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Label `kubernetes.io/service-name`.
    pub service: Arc<str>,
    /// TCP target ports by the name of the Service port.
    pub ports: Vec<(Arc<str>, u16)>,
    /// Addresses.
    pub endpoints: Vec<SliceEndpoint>,
    /// `metadata.creationTimestamp`.
    pub created: Option<Timestamp>,
}

/// One address of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Address, canonical.
    pub ip: IpAddr,
    /// `nodeName`.
    pub node: Arc<str>,
    /// `zone`.
    pub zone: Arc<str>,
    /// `conditions.ready`, absent means true.
    pub ready: bool,
    /// `conditions.serving`, absent means `ready`.
    pub serving: bool,
    /// `conditions.terminating`, absent means false.
    pub terminating: bool,
    /// `targetRef`, if it is a Pod: `(namespace, name)`.
    pub pod: Option<(Arc<str>, Arc<str>)>,
}

impl SliceEndpoint {
    /// This address on one target port.
    #[must_use]
    pub fn on_port(&self, port: u16) -> Endpoint {
        Endpoint {
            addr: SocketAddr::new(self.ip, port),
            workload: None,
            node: Arc::clone(&self.node),
            zone: Arc::clone(&self.zone),
            ready: self.ready,
            serving: self.serving,
            terminating: self.terminating,
        }
    }
}

impl EndpointSlice {
    /// Converts a slice; `None` for one of names instead of addresses, which is warned of.
    pub(crate) fn convert(namespace: &str, fields: &SliceFields, problems: &mut Problems) -> Option<Self> {
        let meta = &fields.metadata;
        let words = [("IPv4", Some(Family::V4)), ("IPv6", Some(Family::V6)), ("FQDN", None)];
        let family = match meta::one_of(problems, "addressType", &fields.address_type, &words)? {
            Some(family) => family,
            None => {
                problems.warn("addressType", "FQDN is not supported: its endpoints are left out");
                return None;
            }
        };
        let service = meta.label(SERVICE_NAME);
        if service.is_empty() {
            problems.warn("metadata.labels", format!("has no effect without the label {SERVICE_NAME}"));
        }
        let mut ports: Vec<(Arc<str>, u16)> = Vec::new();
        for (i, item) in fields.ports.iter().enumerate() {
            let field = |name: &str| format!("ports[{i}].{name}");
            let words = [("TCP", true), ("UDP", false), ("SCTP", false)];
            let protocol = item.protocol.as_deref().unwrap_or("TCP");
            let tcp = meta::one_of(problems, &field("protocol"), protocol, &words) == Some(true);
            let port = item.port.and_then(|number| meta::port(problems, field("port"), number));
            if let (true, Some(port)) = (tcp, port) {
                if ports.iter().any(|(name, _)| **name == *item.name) {
                    problems.error(field("name"), format!("`{}` is there twice: names differ", shortened(&item.name)));
                }
                ports.push((item.name.as_str().into(), port));
            }
        }
        let endpoints = fields.endpoints.iter().enumerate();
        let endpoints = endpoints.filter_map(|(i, item)| endpoint(namespace, i, item, family, problems)).collect();
        Some(Self {
            namespace: namespace.into(),
            name: meta.name.as_str().into(),
            service: service.into(),
            ports,
            endpoints,
            created: meta.created(problems),
        })
    }
}

fn endpoint(
    namespace: &str,
    index: usize,
    item: &EndpointFields,
    family: Family,
    problems: &mut Problems,
) -> Option<SliceEndpoint> {
    let Some(first) = item.addresses.first() else {
        problems.error(format!("endpoints[{index}].addresses"), "is empty: one address at least");
        return None;
    };
    let field = format!("endpoints[{index}].addresses[0]");
    let ip = meta::address(problems, field.as_str(), first)?;
    if Family::of(ip) != family {
        problems.error(field, format!("{ip} is not of the slice's addressType"));
        return None;
    }
    let Conditions { ready, serving, terminating } = item.conditions;
    let ready = ready.unwrap_or(true);
    let target = &item.target_ref;
    let target_namespace = if target.namespace.is_empty() { namespace } else { &target.namespace };
    Some(SliceEndpoint {
        ip,
        node: item.node_name.as_str().into(),
        zone: item.zone.as_str().into(),
        ready,
        serving: serving.unwrap_or(ready),
        terminating: terminating.unwrap_or(false),
        pod: (target.kind == "Pod").then(|| (target_namespace.into(), target.name.as_str().into())),
    })
}

#[cfg(test)]
#[path = "slice_tests.rs"]
mod tests;
