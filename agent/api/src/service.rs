//! `v1 Service`: addresses and ports; its endpoints come from EndpointSlices.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use heddle_model::{Service, ServicePort};
use serde::de::{self, Deserialize, Deserializer, Visitor};

use crate::meta::{self, ObjectMeta};
use crate::node::{Node, Value, shortened};
use crate::problem::Problems;

/// A Service, the fields we read.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct ServiceFields {
    /// `metadata`.
    pub metadata: ObjectMeta,
    /// `spec`.
    pub spec: ServiceSpec,
    /// `status`.
    pub status: ServiceStatus,
}

/// `spec` of a Service.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// `type`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// `clusterIP`.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: String,
    /// `clusterIPs`.
    #[serde(rename = "clusterIPs")]
    pub cluster_ips: Vec<String>,
    /// `externalIPs`.
    #[serde(rename = "externalIPs")]
    pub external_ips: Vec<String>,
    /// `ports`.
    pub ports: Vec<PortFields>,
    /// `sessionAffinity`.
    pub session_affinity: Option<String>,
    /// `sessionAffinityConfig`.
    pub session_affinity_config: SessionAffinityConfig,
    /// `internalTrafficPolicy`.
    pub internal_traffic_policy: Option<String>,
    /// `publishNotReadyAddresses`.
    pub publish_not_ready_addresses: bool,
}

/// An item of `spec.ports`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PortFields {
    /// `name`.
    pub name: String,
    /// `port`.
    pub port: Option<i64>,
    /// `protocol`.
    pub protocol: Option<String>,
    /// `targetPort`; which port it means is in the EndpointSlices.
    pub target_port: Option<IntOrString>,
    /// `appProtocol`.
    pub app_protocol: Option<String>,
}

/// `spec.sessionAffinityConfig`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct SessionAffinityConfig {
    /// `clientIP`.
    #[serde(rename = "clientIP")]
    pub client_ip: ClientIpConfig,
}

/// `spec.sessionAffinityConfig.clientIP`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientIpConfig {
    /// `timeoutSeconds`.
    pub timeout_seconds: Option<i64>,
}

/// `status` of a Service.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatus {
    /// `loadBalancer`.
    pub load_balancer: LoadBalancerStatus,
}

/// `status.loadBalancer`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct LoadBalancerStatus {
    /// `ingress`.
    pub ingress: Vec<LoadBalancerIngress>,
}

/// An item of `status.loadBalancer.ingress`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancerIngress {
    /// `ip`.
    pub ip: String,
    /// `ipMode`: `VIP` (default) or `Proxy`, where the load balancer wants to see the traffic itself.
    pub ip_mode: Option<String>,
}

/// A number or a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IntOrString {
    /// A port number.
    Int(i64),
    /// The name of a container port.
    String(String),
}

impl<'de> Deserialize<'de> for IntOrString {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = IntOrString;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a port number or name")
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<IntOrString, E> {
                Ok(IntOrString::Int(value))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<IntOrString, E> {
                Ok(IntOrString::Int(i64::try_from(value).unwrap_or(i64::MAX)))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<IntOrString, E> {
                Ok(IntOrString::String(value.to_owned()))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// `sessionAffinityConfig.clientIP.timeoutSeconds` where it is not given.
const AFFINITY_DEFAULT_SECONDS: i64 = 10_800;
const AFFINITY_MAX_SECONDS: i64 = 86_400;

/// Converts a Service. With errors it comes out `invalid`, with the addresses and ports that could be read.
pub(crate) fn convert(namespace: &str, fields: &ServiceFields, problems: &mut Problems) -> Service {
    let ServiceFields { metadata: meta, spec, status } = fields;
    let mut service = Service::new(namespace, &meta.name);
    service.created = meta.created(problems);
    let kinds = [("ClusterIP", true), ("NodePort", true), ("LoadBalancer", true), ("ExternalName", false)];
    let has_addresses =
        spec.kind.as_deref().and_then(|kind| meta::one_of(problems, "spec.type", kind, &kinds)).unwrap_or(true);
    if has_addresses {
        addresses(spec, status, &mut service, problems);
        service.ports = ports(&spec.ports, problems);
        let words = [("None", false), ("ClientIP", true)];
        let affinity = spec.session_affinity.as_deref();
        if affinity.and_then(|text| meta::one_of(problems, "spec.sessionAffinity", text, &words)) == Some(true) {
            service.session_affinity = affinity_timeout(spec, problems);
        }
        let words = [("Cluster", false), ("Local", true)];
        let policy = spec.internal_traffic_policy.as_deref();
        service.internal_local =
            policy.and_then(|text| meta::one_of(problems, "spec.internalTrafficPolicy", text, &words)).unwrap_or(false);
        service.publish_not_ready = spec.publish_not_ready_addresses;
    }
    service.invalid = !problems.errors.is_empty();
    service
}

/// What can be known of a Service that was rejected before its fields were: the addresses and ports it must refuse.
pub(crate) fn salvage(namespace: &str, name: &str, root: &Node<'_>) -> Service {
    let mut service = Service { invalid: true, ..Service::new(namespace, name) };
    let parse = |node: &Node<'_>| meta::address(&mut Problems::default(), "", node.text()?);
    let spec = |key| root.at(&["spec", key]);
    let listed = |key| spec(key).map_or(&[][..], Node::items);
    service.cluster_ips = listed("clusterIPs").iter().chain(spec("clusterIP")).filter_map(parse).collect();
    let ingress = root.at(&["status", "loadBalancer", "ingress"]).map_or(&[][..], Node::items);
    let ingress = ingress.iter().filter(|item| item.get("ipMode").and_then(Node::text) != Some("Proxy"));
    let others = listed("externalIPs").iter().chain(ingress.filter_map(|item| item.get("ip"))).filter_map(parse);
    service.vips = service.cluster_ips.iter().copied().chain(others).collect();
    for item in listed("ports") {
        let Some(Value::Integer(number)) = item.get("port").map(|node| &node.value) else { continue };
        if let Some(port) = u16::try_from(*number).ok().filter(|port| *port > 0) {
            service.ports.push(empty_port("", port, None));
        }
    }
    service
}

fn addresses(spec: &ServiceSpec, status: &ServiceStatus, service: &mut Service, problems: &mut Problems) {
    let given: Vec<(String, &str)> = if spec.cluster_ips.is_empty() {
        vec![("spec.clusterIP".to_owned(), spec.cluster_ip.as_str())]
    } else {
        let numbered = spec.cluster_ips.iter().enumerate();
        numbered.map(|(i, ip)| (format!("spec.clusterIPs[{i}]"), ip.as_str())).collect()
    };
    service.headless = given.iter().any(|(_, text)| *text == "None");
    for (field, text) in given.into_iter().filter(|(_, text)| !matches!(*text, "" | "None")) {
        service.cluster_ips.extend(meta::address(problems, field, text));
    }
    if service.headless && !service.cluster_ips.is_empty() {
        problems.error("spec.clusterIPs", "`None` beside an address: one or the other");
    }
    let external = spec.external_ips.iter().enumerate();
    let external = external.map(|(i, ip)| (format!("spec.externalIPs[{i}]"), ip.as_str()));
    let ingress = status.load_balancer.ingress.iter().enumerate();
    let ingress = ingress.filter(|(_, item)| !item.ip.is_empty() && item.ip_mode.as_deref() != Some("Proxy"));
    let ingress = ingress.map(|(i, item)| (format!("status.loadBalancer.ingress[{i}].ip"), item.ip.as_str()));
    let others: Vec<IpAddr> =
        external.chain(ingress).filter_map(|(field, text)| meta::address(problems, field, text)).collect();
    service.vips = service.cluster_ips.iter().copied().chain(others).collect();
}

fn ports(fields: &[PortFields], problems: &mut Problems) -> Vec<ServicePort> {
    let mut by_name: BTreeMap<&str, usize> = BTreeMap::new();
    let mut by_number: BTreeMap<(&str, i64), usize> = BTreeMap::new();
    let mut ports = Vec::new();
    for (i, item) in fields.iter().enumerate() {
        let field = |name: &str| format!("spec.ports[{i}].{name}");
        let Some(number) = item.port else {
            problems.error(field("port"), "is missing: the port of the Service, 1 to 65535");
            continue;
        };
        let protocol = item.protocol.as_deref().unwrap_or("TCP");
        let words = [("TCP", true), ("UDP", false), ("SCTP", false)];
        let tcp = meta::one_of(problems, &field("protocol"), protocol, &words);
        let port = meta::port(problems, field("port"), number);
        if let Some(IntOrString::Int(target)) = item.target_port {
            meta::port(problems, field("targetPort"), target);
        }
        if let Some(other) = by_number.insert((protocol, number), i) {
            problems.error(field("port"), format!("{protocol} {number} is already spec.ports[{other}]: keep one"));
        }
        if item.name.is_empty() && fields.len() > 1 {
            problems.error(field("name"), "is missing: several ports need a name each");
        } else if !item.name.is_empty() && !meta::is_dns_label(&item.name) {
            let message = format!("`{}` is no port name: lower-case letters, digits and `-`", shortened(&item.name));
            problems.error(field("name"), message);
        } else if let Some(other) = by_name.insert(&item.name, i)
            && !item.name.is_empty()
        {
            problems.error(field("name"), format!("`{}` is already spec.ports[{other}]: names differ", item.name));
        }
        if let (Some(true), Some(port)) = (tcp, port) {
            ports.push(empty_port(&item.name, port, item.app_protocol.as_deref()));
        }
    }
    ports
}

fn empty_port(name: &str, port: u16, app_protocol: Option<&str>) -> ServicePort {
    ServicePort {
        name: name.into(),
        port,
        app_protocol: app_protocol.filter(|text| !text.is_empty()).map(Arc::from),
        endpoints: Arc::default(),
    }
}

fn affinity_timeout(spec: &ServiceSpec, problems: &mut Problems) -> Option<Duration> {
    let seconds = spec.session_affinity_config.client_ip.timeout_seconds.unwrap_or(AFFINITY_DEFAULT_SECONDS);
    match u64::try_from(seconds) {
        Ok(timeout) if (1..=AFFINITY_MAX_SECONDS).contains(&seconds) => Some(Duration::from_secs(timeout)),
        _ => {
            let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
            problems.error(field, format!("{seconds} is out of range: 1 to {AFFINITY_MAX_SECONDS}"));
            None
        }
    }
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
