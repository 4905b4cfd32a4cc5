//! The Istio standard label set, and how a workload or Service fills it.
//!
//! Empty values are exposed as `unknown`, as Istio does, so that its dashboards and Kiali read our series.

use std::sync::Arc;

use heddle_model::{MeshConfig, Service, Workload};

/// What Istio writes where it does not know.
pub const UNKNOWN: &str = "unknown";
/// `destination_service_name` of traffic to addresses nobody knows; the word Istio and Kiali use.
pub const PASSTHROUGH: &str = "PassthroughCluster";
/// Value of every name label in the series that collects what is beyond the cardinality limit.
pub const OVERFLOW: &str = "overflow";

/// The label names of every `istio_tcp_*` family, in exposition order.
pub const TCP_LABEL_NAMES: [&str; 23] = [
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_service",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_service_name",
    "destination_service_namespace",
    "destination_cluster",
    "request_protocol",
    "response_flags",
    "connection_security_policy",
];

/// The label names of every `istio_request*` family, in exposition order.
pub const HTTP_LABEL_NAMES: [&str; 25] = {
    let mut names = [""; 25];
    let mut i = 0;
    while i < TCP_LABEL_NAMES.len() {
        names[i] = TCP_LABEL_NAMES[i];
        i += 1;
    }
    names[23] = "response_code";
    names[24] = "grpc_response_status";
    names
};

/// Which side's agent saw the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reporter {
    /// The agent of the calling pod.
    Source,
    /// The agent of the called pod.
    Destination,
}

/// One side of a connection. Empty strings mean unknown.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PeerLabels {
    /// Owning workload.
    pub workload: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// `app`.
    pub app: Arc<str>,
    /// `version`.
    pub version: Arc<str>,
    /// Cluster name.
    pub cluster: Arc<str>,
    /// SPIFFE identity, if the peer proved one.
    pub principal: Arc<str>,
}

/// The destination Service. Empty strings mean unknown.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceLabels {
    /// `name.namespace.svc.<cluster domain>`.
    pub host: Arc<str>,
    /// Service name.
    pub name: Arc<str>,
    /// Service namespace.
    pub namespace: Arc<str>,
}

/// The full label set of one `istio_tcp_*` series.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TcpLabels {
    /// Which side reports.
    pub reporter: Reporter,
    /// Caller.
    pub source: PeerLabels,
    /// Called.
    pub destination: PeerLabels,
    /// Service the caller meant.
    pub service: ServiceLabels,
    /// Envoy response flags, `-` while all is well.
    pub response_flags: &'static str,
    /// `mutual_tls`, `none`, or empty (unknown: what a source reporter says, as in Istio).
    pub security: &'static str,
}

/// The full label set of one `istio_request*` series.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HttpLabels {
    /// What every request of the connection to this destination has in common.
    pub peers: TcpLabels,
    /// Whether it is gRPC: `request_protocol` is `grpc`, else `http`.
    pub grpc: bool,
    /// Status of the response; 0 if there was none.
    pub response_code: u16,
    /// gRPC status, 0 to 16, where one was sent.
    pub grpc_status: Option<u8>,
}

impl Reporter {
    /// `source` or `destination`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

impl PeerLabels {
    /// A peer nobody knows.
    #[must_use]
    pub fn unknown() -> Self {
        let empty: Arc<str> = "".into();
        Self {
            workload: empty.clone(),
            namespace: empty.clone(),
            app: empty.clone(),
            version: empty.clone(),
            cluster: empty.clone(),
            principal: empty,
        }
    }

    /// The labels of a pod of this mesh.
    #[must_use]
    pub fn of(workload: &Workload, mesh: &MeshConfig) -> Self {
        Self {
            workload: workload.workload_name.clone(),
            namespace: workload.namespace.clone(),
            app: workload.app.clone(),
            version: workload.version.clone(),
            cluster: mesh.cluster_name.clone(),
            principal: "".into(),
        }
    }

    /// Istio's canonical service: `app`, else the workload's name.
    fn canonical_service(&self) -> &str {
        if self.app.is_empty() { &self.workload } else { &self.app }
    }

    /// Istio's canonical revision: `version`, else `latest` for a known workload.
    fn canonical_revision(&self) -> &str {
        if !self.version.is_empty() {
            &self.version
        } else if self.workload.is_empty() {
            ""
        } else {
            "latest"
        }
    }
}

impl ServiceLabels {
    /// No Service known.
    #[must_use]
    pub fn unknown() -> Self {
        let empty: Arc<str> = "".into();
        Self { host: empty.clone(), name: empty.clone(), namespace: empty }
    }

    /// Traffic passed through to an address nobody knows.
    #[must_use]
    pub fn passthrough() -> Self {
        Self { name: PASSTHROUGH.into(), ..Self::unknown() }
    }

    /// The labels of a Service.
    #[must_use]
    pub fn of(service: &Service, mesh: &MeshConfig) -> Self {
        Self {
            host: service.host(&mesh.cluster_domain).into(),
            name: service.name.clone(),
            namespace: service.namespace.clone(),
        }
    }
}

impl TcpLabels {
    /// The series that collects everything beyond the cardinality limit.
    #[must_use]
    pub fn overflow() -> Self {
        let overflow: Arc<str> = OVERFLOW.into();
        let peer = PeerLabels { workload: overflow.clone(), namespace: overflow.clone(), ..PeerLabels::unknown() };
        Self {
            reporter: Reporter::Source,
            source: peer.clone(),
            destination: peer,
            service: ServiceLabels { host: overflow.clone(), name: overflow.clone(), namespace: overflow },
            response_flags: "-",
            security: "",
        }
    }

    /// The same connection with other response flags.
    #[must_use]
    pub fn with_flags(&self, response_flags: &'static str) -> Self {
        Self { response_flags, ..self.clone() }
    }

    /// Values in the order of [`TCP_LABEL_NAMES`].
    #[must_use]
    pub fn values(&self) -> [&str; TCP_LABEL_NAMES.len()] {
        self.values_for("tcp")
    }

    fn values_for<'a>(&'a self, protocol: &'a str) -> [&'a str; TCP_LABEL_NAMES.len()] {
        let (s, d, service) = (&self.source, &self.destination, &self.service);
        let mut values = [
            self.reporter.as_str(),
            &s.workload,
            s.canonical_service(),
            s.canonical_revision(),
            &s.namespace,
            &s.principal,
            &s.app,
            &s.version,
            &s.cluster,
            &d.workload,
            &d.namespace,
            &d.principal,
            &d.app,
            &d.version,
            &service.host,
            d.canonical_service(),
            d.canonical_revision(),
            &service.name,
            &service.namespace,
            &d.cluster,
            protocol,
            self.response_flags,
            self.security,
        ];
        for value in &mut values {
            if value.is_empty() {
                *value = UNKNOWN;
            }
        }
        values
    }
}

impl HttpLabels {
    /// The series that collects everything beyond the cardinality limit.
    #[must_use]
    pub fn overflow() -> Self {
        Self { peers: TcpLabels::overflow(), grpc: false, response_code: 0, grpc_status: None }
    }

    /// Values in the order of [`HTTP_LABEL_NAMES`]; `numbers` is room for those that are numbers.
    #[must_use]
    pub fn values<'a>(&'a self, numbers: &'a mut [String; 2]) -> [&'a str; HTTP_LABEL_NAMES.len()] {
        // As in Istio: a response that never came is 0, and what is not gRPC has no gRPC status.
        *numbers = [self.response_code.to_string(), self.grpc_status.map(|s| s.to_string()).unwrap_or_default()];
        let mut values = [""; HTTP_LABEL_NAMES.len()];
        let peers = self.peers.values_for(if self.grpc { "grpc" } else { "http" });
        values[..peers.len()].copy_from_slice(&peers);
        [values[peers.len()], values[peers.len() + 1]] = [&numbers[0], &numbers[1]];
        values
    }
}
