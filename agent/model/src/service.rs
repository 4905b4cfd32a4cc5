//! Services and their endpoints, already joined: what a connection needs to know once it found the Service.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::time::Timestamp;
use crate::workload::Workload;

/// `(namespace, name)` of a Service.
pub type ServiceKey = (Arc<str>, Arc<str>);

/// One Kubernetes Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Every address that means this Service: `clusterIPs` (none if headless), `externalIPs`, `status.loadBalancer` IPs.
    pub vips: Vec<IpAddr>,
    /// The `clusterIPs` among `vips`. They are this Service's alone, so they win over another Service's external addresses.
    pub cluster_ips: Vec<IpAddr>,
    /// `metadata.creationTimestamp`, which settles conflicts over external addresses: the oldest Service wins.
    pub created: Option<Timestamp>,
    /// The object was rejected (see [`crate::InvalidObject`]): its addresses are known and refuse every connection.
    /// `ports` are then those that could be read, without endpoints.
    pub invalid: bool,
    /// `clusterIP: None`.
    pub headless: bool,
    /// Ports with their endpoints.
    pub ports: Vec<ServicePort>,
    /// `sessionAffinity: ClientIP` with its timeout (default 10,800 s).
    pub session_affinity: Option<Duration>,
    /// `internalTrafficPolicy: Local`: only endpoints on the client's node.
    pub internal_local: bool,
    /// `publishNotReadyAddresses`: readiness does not matter.
    pub publish_not_ready: bool,
}

/// One TCP port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// `ports[].name`, empty if unnamed.
    pub name: Arc<str>,
    /// `ports[].port`: the service port.
    pub port: u16,
    /// `ports[].appProtocol`.
    pub app_protocol: Option<Arc<str>>,
    /// Endpoints from the Service's EndpointSlices (matched by port name), in a stable order (by address).
    pub endpoints: Arc<[Endpoint]>,
}

/// One address of an EndpointSlice, for one port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Address and target port.
    pub addr: SocketAddr,
    /// The pod behind the address, if it is one we know.
    pub workload: Option<Arc<Workload>>,
    /// `nodeName`, empty if unknown.
    pub node: Arc<str>,
    /// `zone`, empty if unknown.
    pub zone: Arc<str>,
    /// `conditions.ready` (absent means true).
    pub ready: bool,
    /// `conditions.serving` (absent means `ready`).
    pub serving: bool,
    /// `conditions.terminating` (absent means false).
    pub terminating: bool,
}

impl Service {
    /// A Service with this name and nothing else.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            vips: Vec::new(),
            cluster_ips: Vec::new(),
            created: None,
            invalid: false,
            headless: false,
            ports: Vec::new(),
            session_affinity: None,
            internal_local: false,
            publish_not_ready: false,
        }
    }

    /// The key of a Service in a [`crate::Delta`] and in [`crate::Snapshot::service`].
    #[must_use]
    pub fn key(&self) -> ServiceKey {
        (Arc::clone(&self.namespace), Arc::clone(&self.name))
    }

    /// `name.namespace.svc.<cluster domain>`, the value of `destination_service`.
    #[must_use]
    pub fn host(&self, cluster_domain: &str) -> String {
        format!("{}.{}.svc.{cluster_domain}", self.name, self.namespace)
    }

    /// The port entry for a service port.
    #[must_use]
    pub fn port(&self, port: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|p| p.port == port)
    }
}

impl Endpoint {
    /// A ready endpoint of which only the address is known.
    #[must_use]
    pub fn ready(addr: SocketAddr) -> Self {
        Self {
            addr,
            workload: None,
            node: Arc::default(),
            zone: Arc::default(),
            ready: true,
            serving: true,
            terminating: false,
        }
    }
}
