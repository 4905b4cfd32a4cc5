//! The words a test describes its world with.
//!
//! ```no_run
//! use heddle_testkit::prelude::*;
//! # fn main() -> anyhow::Result<()> {
//! let mesh = Mesh::declare("shop")
//!     .node("a").pod("client")
//!     .node("b").pod("web").serves(tcp(8080)).pod("stranger").unmeshed()
//!     .service("web").port(80, 8080).backed_by("web")
//!     .start()?;
//! # drop(mesh); Ok(()) }
//! ```
//!
//! A pod is in namespace `shop`, which is in the mesh, unless told otherwise; it is dual-stack.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::mesh::Mesh;
use crate::server::Serve;

/// The namespace of pods and services that name none.
pub const DEFAULT_NAMESPACE: &str = "shop";
/// Label that opts a namespace or pod in or out.
pub const MESH_LABEL: &str = "heddle.dev/mesh";

/// A world as declared; nothing exists until it is started.
#[derive(Clone, Debug)]
pub struct Topology {
    pub(crate) test: String,
    pub(crate) namespaces: Vec<NamespacePlan>,
    pub(crate) nodes: Vec<NodePlan>,
    pub(crate) services: Vec<ServicePlan>,
    pub(crate) externals: Vec<ExternalPlan>,
    pub(crate) apps_first: bool,
    pub(crate) ca: Option<Vec<String>>,
}

/// A Kubernetes Namespace.
#[derive(Clone, Debug, Default)]
pub struct NamespacePlan {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
}

/// A node.
#[derive(Clone, Debug)]
pub(crate) struct NodePlan {
    pub(crate) name: String,
    pub(crate) pods: Vec<PodPlan>,
    pub(crate) agent: bool,
    pub(crate) agent_arguments: Vec<String>,
}

/// A pod: its object, and the programs that run in it.
#[derive(Clone, Debug)]
pub struct PodPlan {
    /// `metadata.name`, unique in the mesh.
    pub name: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`, without the stand-alone ones.
    pub annotations: BTreeMap<String, String>,
    /// Which addresses it has.
    pub families: Families,
    /// `spec.hostNetwork`: it lives in the node's network namespace.
    pub host_network: bool,
    /// Whether the mesh waits at its start until the pod is enrolled.
    pub expects_enrolment: bool,
    pub(crate) serves: Vec<Serve>,
}

/// Address families of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4 and IPv6.
    Dual,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
}

/// A Kubernetes Service with its EndpointSlices.
#[derive(Clone, Debug)]
pub struct ServicePlan {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `clusterIP: None`.
    pub headless: bool,
    /// `(port, targetPort)`.
    pub ports: Vec<(u16, u16)>,
    /// Names of the pods behind it.
    pub backends: Vec<String>,
    /// More fields of `spec`.
    pub spec: serde_json::Map<String, serde_json::Value>,
    /// Its place in the range of cluster addresses.
    pub(crate) number: u16,
}

/// A host outside the cluster.
#[derive(Clone, Debug)]
pub(crate) struct ExternalPlan {
    pub(crate) name: String,
    pub(crate) serves: Vec<Serve>,
}

impl ServicePlan {
    /// Its IPv4 cluster address.
    #[must_use]
    pub fn cluster_v4(&self) -> IpAddr {
        Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 0, 0)) + u32::from(self.number)).into()
    }

    /// Its IPv6 cluster address.
    #[must_use]
    pub fn cluster_v6(&self) -> IpAddr {
        Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, self.number).into()
    }
}

/// Words that can follow any other: they open a new thing.
pub trait Declare: Sized {
    /// The whole declaration.
    fn topology(self) -> Topology;

    /// Opens a namespace, which is not in the mesh unless told so.
    fn namespace(self, name: &str) -> NamespaceWords {
        let mut topology = self.topology();
        topology.namespaces.push(NamespacePlan { name: name.to_owned(), ..NamespacePlan::default() });
        NamespaceWords(topology)
    }

    /// Opens a node with a keeper and an agent.
    fn node(self, name: &str) -> NodeWords {
        let mut topology = self.topology();
        let name = name.to_owned();
        topology.nodes.push(NodePlan { name, pods: Vec::new(), agent: true, agent_arguments: Vec::new() });
        NodeWords(topology)
    }

    /// Opens a service.
    fn service(self, name: &str) -> ServiceWords {
        let mut topology = self.topology();
        let number = 10 + u16::try_from(topology.services.len()).unwrap_or(u16::MAX - 10);
        topology.services.push(ServicePlan {
            name: name.to_owned(),
            namespace: DEFAULT_NAMESPACE.to_owned(),
            headless: false,
            ports: Vec::new(),
            backends: Vec::new(),
            spec: serde_json::Map::new(),
            number,
        });
        ServiceWords(topology)
    }

    /// Opens a host outside the cluster, reachable over the fabric.
    fn external(self, name: &str) -> ExternalWords {
        let mut topology = self.topology();
        topology.externals.push(ExternalPlan { name: name.to_owned(), serves: Vec::new() });
        ExternalWords(topology)
    }

    /// The pods' programs start before the agents, so that their listeners exist when the pods are enrolled.
    fn programs_before_agents(self) -> Topology {
        Topology { apps_first: true, ..self.topology() }
    }

    /// Pods of the first namespace may opt out, and exclude ports, although a mode or a policy guards them.
    fn allow_opting_out(self) -> Topology {
        let mut topology = self.topology();
        if let Some(first) = topology.namespaces.first_mut() {
            first.annotations.insert("heddle.dev/allow-exclusions".to_owned(), "true".to_owned());
        }
        topology
    }

    /// Has a certificate authority, and agents that get identities from it.
    fn with_ca(self) -> Topology {
        self.with_ca_made(&[])
    }

    /// The same, with more arguments for `heddle ca init`.
    fn with_ca_made(self, arguments: &[&str]) -> Topology {
        let arguments = arguments.iter().map(|a| (*a).to_owned()).collect();
        Topology { ca: Some(arguments), ..self.topology() }
    }

    /// Builds it: network, programs, keepers and agents; returns when every meshed pod is enrolled.
    ///
    /// # Errors
    /// Not root, no `heddle` binary, or a part did not come up; the error shows its output.
    fn start(self) -> anyhow::Result<Mesh> {
        Mesh::build(self.topology(), true)
    }

    /// Builds the network and the programs only: no agent, no keeper, no eBPF.
    ///
    /// # Errors
    /// Not root, or a part did not come up.
    fn start_without_heddle(self) -> anyhow::Result<Mesh> {
        Mesh::build(self.topology(), false)
    }
}

/// The words after [`Declare::namespace`].
#[derive(Clone, Debug)]
pub struct NamespaceWords(Topology);
/// The words after [`Declare::node`].
#[derive(Clone, Debug)]
pub struct NodeWords(Topology);
/// The words after [`NodeWords::pod`].
#[derive(Clone, Debug)]
pub struct PodWords(Topology);
/// The words after [`Declare::service`].
#[derive(Clone, Debug)]
pub struct ServiceWords(Topology);
/// The words after [`Declare::external`].
#[derive(Clone, Debug)]
pub struct ExternalWords(Topology);

macro_rules! declare {
    ($($words:ty),*) => {$(
        impl Declare for $words {
            fn topology(self) -> Topology { self.0 }
        }
    )*};
}
declare!(NamespaceWords, NodeWords, PodWords, ServiceWords, ExternalWords);

impl Declare for Topology {
    fn topology(self) -> Topology {
        self
    }
}

impl Topology {
    pub(crate) fn new(test: &str) -> Self {
        let mut shop = NamespacePlan { name: DEFAULT_NAMESPACE.to_owned(), ..NamespacePlan::default() };
        shop.labels.insert(MESH_LABEL.to_owned(), "enabled".to_owned());
        Self {
            test: test.to_owned(),
            namespaces: vec![shop],
            nodes: Vec::new(),
            services: Vec::new(),
            externals: Vec::new(),
            apps_first: false,
            ca: None,
        }
    }
}

/// The last of a list that a constructor of the words has just pushed to.
fn last<T>(list: &mut [T]) -> &mut T {
    let Some(last) = list.last_mut() else { unreachable!("words exist only after their thing was opened") };
    last
}

impl NamespaceWords {
    fn plan(&mut self) -> &mut NamespacePlan {
        last(&mut self.0.namespaces)
    }

    /// Opts it in.
    #[must_use]
    pub fn meshed(mut self) -> Self {
        self.plan().labels.insert(MESH_LABEL.to_owned(), "enabled".to_owned());
        self
    }

    /// Adds an annotation.
    #[must_use]
    pub fn annotated(mut self, key: &str, value: &str) -> Self {
        self.plan().annotations.insert(key.to_owned(), value.to_owned());
        self
    }
}

/// Opens a pod on the last node of a declaration.
fn open_pod(mut topology: Topology, name: &str) -> PodWords {
    last(&mut topology.nodes).pods.push(PodPlan {
        name: name.to_owned(),
        namespace: DEFAULT_NAMESPACE.to_owned(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        families: Families::Dual,
        host_network: false,
        expects_enrolment: true,
        serves: Vec::new(),
    });
    PodWords(topology)
}

impl NodeWords {
    fn plan(&mut self) -> &mut NodePlan {
        last(&mut self.0.nodes)
    }

    /// Opens a pod on this node.
    #[must_use]
    pub fn pod(self, name: &str) -> PodWords {
        open_pod(self.0, name)
    }

    /// No keeper and no agent run here.
    #[must_use]
    pub fn without_agent(mut self) -> Self {
        self.plan().agent = false;
        self
    }

    /// More arguments for `heddle agent`.
    #[must_use]
    pub fn agent_arguments(mut self, arguments: &[&str]) -> Self {
        self.plan().agent_arguments.extend(arguments.iter().map(|a| (*a).to_owned()));
        self
    }
}

impl PodWords {
    fn plan(&mut self) -> &mut PodPlan {
        last(&mut last(&mut self.0.nodes).pods)
    }

    /// Opens another pod on the same node.
    #[must_use]
    pub fn pod(self, name: &str) -> PodWords {
        open_pod(self.0, name)
    }

    /// Puts it in another namespace.
    #[must_use]
    pub fn in_namespace(mut self, name: &str) -> Self {
        self.plan().namespace = name.to_owned();
        self
    }

    /// Opts it out by its own label.
    #[must_use]
    pub fn unmeshed(self) -> Self {
        self.labelled(MESH_LABEL, "disabled")
    }

    /// Adds a label.
    #[must_use]
    pub fn labelled(mut self, key: &str, value: &str) -> Self {
        self.plan().labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Adds an annotation.
    #[must_use]
    pub fn annotated(mut self, key: &str, value: &str) -> Self {
        self.plan().annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Runs a server in it from the start.
    #[must_use]
    pub fn serves(mut self, serve: Serve) -> Self {
        self.plan().serves.push(serve);
        self
    }

    /// Gives it addresses of one family only.
    #[must_use]
    pub fn with_families(mut self, families: Families) -> Self {
        self.plan().families = families;
        self
    }

    /// Puts it in the node's network namespace.
    #[must_use]
    pub fn on_host_network(mut self) -> Self {
        self.plan().host_network = true;
        self
    }

    /// The test expects that it cannot be enrolled: the start does not wait for it.
    #[must_use]
    pub fn not_enrollable(mut self) -> Self {
        self.plan().expects_enrolment = false;
        self
    }
}

impl ServiceWords {
    fn plan(&mut self) -> &mut ServicePlan {
        last(&mut self.0.services)
    }

    /// Puts it in another namespace.
    #[must_use]
    pub fn in_namespace(mut self, name: &str) -> Self {
        self.plan().namespace = name.to_owned();
        self
    }

    /// Adds a port.
    #[must_use]
    pub fn port(mut self, port: u16, target_port: u16) -> Self {
        self.plan().ports.push((port, target_port));
        self
    }

    /// Adds a ready endpoint.
    #[must_use]
    pub fn backed_by(mut self, pod: &str) -> Self {
        self.plan().backends.push(pod.to_owned());
        self
    }

    /// `clusterIP: None`.
    #[must_use]
    pub fn headless(mut self) -> Self {
        self.plan().headless = true;
        self
    }

    /// Sets another field of `spec`.
    #[must_use]
    pub fn with(mut self, field: &str, value: impl Into<serde_json::Value>) -> Self {
        self.plan().spec.insert(field.to_owned(), value.into());
        self
    }
}

impl ExternalWords {
    /// Runs a server on it from the start.
    #[must_use]
    pub fn serves(mut self, serve: Serve) -> Self {
        last(&mut self.0.externals).serves.push(serve);
        self
    }
}
