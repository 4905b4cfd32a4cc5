//! A started world: builds it in order, and takes it apart whatever happened.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};

use crate::ca::{self, Ca};
use crate::cgroup::Cgroup;
use crate::id::MeshId;
use crate::netns::Netns;
use crate::node::{Node, NodePaths, binary};
use crate::objects::{Endpoint, Source};
use crate::place::Place;
use crate::pod::Pod;
use crate::probe;
use crate::server::{Serve, Server};
use crate::sweep::{BPFFS, Cleanup, sweep};
use crate::topology::{Families, MESH_LABEL, NamespacePlan, NodePlan, PodPlan, ServicePlan, Topology};

/// How long a pod may take to be enrolled at the start.
const ENROL_TIMEOUT: Duration = Duration::from_secs(10);

/// Nodes and hosts on one flat network.
///
/// A fabric namespace holds a bridge; every node's namespace holds a bridge of its own, with its pods and its uplink
/// on it. So all pods share 10.77.0.0/16 and fd77::/64, and a packet between nodes crosses three bridges. Every pod
/// has an on-link default route: connections to addresses nobody has (cluster addresses) get as far as `connect()`.
#[derive(Debug)]
pub struct Mesh {
    nodes: Vec<Node>,
    externals: Vec<External>,
    ca: Option<Ca>,
    namespaces: Mutex<Vec<NamespacePlan>>,
    services: Vec<ServicePlan>,
    source: Source,
    id: MeshId,
    is_quiet: bool,
    // The last two: what runs ends first, then namespaces and files go.
    _fabric: Netns,
    _cleanup: Cleanup,
}

/// A host outside the cluster.
#[derive(Debug)]
struct External {
    place: Place,
    servers: Vec<Server>,
}

impl Mesh {
    /// Opens a declaration.
    #[must_use]
    pub fn declare(test: &str) -> Topology {
        Topology::new(test)
    }

    /// Ends without showing what the agents said: for a program that is no test.
    #[must_use]
    pub fn quietly(mut self) -> Self {
        self.is_quiet = true;
        self
    }

    /// The id in the names of everything it made.
    #[must_use]
    pub fn id(&self) -> MeshId {
        self.id
    }

    /// Its nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node of this name.
    #[must_use]
    pub fn node(&self, name: &str) -> &Node {
        self.nodes.iter().find(|n| n.name() == name).unwrap_or_else(|| panic!("no node {name} is declared"))
    }

    /// The pod of this name.
    #[must_use]
    pub fn pod(&self, name: &str) -> &Pod {
        let mut pods = self.nodes.iter().flat_map(Node::pods);
        pods.find(|p| p.name() == name).unwrap_or_else(|| panic!("no pod {name} is declared"))
    }

    /// The node a pod is on.
    #[must_use]
    pub fn node_of(&self, pod: &Pod) -> &Node {
        self.node(pod.node_name())
    }

    /// The service of this name.
    #[must_use]
    pub fn service(&self, name: &str) -> &ServicePlan {
        self.services.iter().find(|s| s.name == name).unwrap_or_else(|| panic!("no service {name} is declared"))
    }

    /// The host outside the cluster of this name.
    #[must_use]
    pub fn external(&self, name: &str) -> &Place {
        let found = self.externals.iter().find(|e| e.place.name() == name);
        &found.unwrap_or_else(|| panic!("no external host {name} is declared")).place
    }

    /// The first server of a host outside the cluster.
    #[must_use]
    pub fn external_server(&self, name: &str) -> &Server {
        let found = self.externals.iter().find(|e| e.place.name() == name).and_then(|e| e.servers.first());
        found.unwrap_or_else(|| panic!("no server on external host {name} is declared"))
    }

    /// Its certificate authority.
    #[must_use]
    pub fn ca(&self) -> &Ca {
        let Some(ca) = &self.ca else { panic!("no certificate authority is declared: say with_ca()") };
        ca
    }

    /// The directory of YAML objects.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// A ready endpoint for a pod.
    #[must_use]
    pub fn endpoint(&self, pod: &str) -> Endpoint {
        endpoint(self.pod(pod))
    }

    /// Changes a Namespace object and writes it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn edit_namespace(&self, name: &str, change: impl FnOnce(&mut NamespacePlan)) -> anyhow::Result<()> {
        let mut all = self.namespaces.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = all.iter_mut().find(|n| n.name == name).with_context(|| format!("no namespace {name}"))?;
        change(plan);
        self.source.write_namespace(plan)
    }

    pub(crate) fn build(topology: Topology, with_heddle: bool) -> anyhow::Result<Self> {
        let test = topology.test.clone();
        Builder::new(with_heddle)?.build(topology).with_context(|| format!("building the mesh of test {test}"))
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if self.is_quiet {
            return;
        }
        // The harness shows this of failed tests only.
        for node in &self.nodes {
            eprintln!("=== node {}\n{}", node.name(), node.agent_tail());
        }
        if let Some(ca) = &self.ca {
            eprintln!("=== certificate authority\n{}", ca.tail());
        }
    }
}

struct Builder {
    id: MeshId,
    directory: PathBuf,
    source: Source,
    cgroup: Cgroup,
    podapp: PathBuf,
    heddle: Option<PathBuf>,
    fabric: Netns,
    ports: u32,
    cleanup: Cleanup,
}

impl Builder {
    fn new(with_heddle: bool) -> anyhow::Result<Self> {
        probe::need_root()?;
        let podapp = binary("podapp", "PODAPP_BIN")?;
        let heddle = with_heddle.then(|| binary("heddle", "HEDDLE_BIN")).transpose()?;
        sweep()?;
        mount_bpffs()?;
        let id = MeshId::next();
        let cleanup = Cleanup::claim(id)?;
        let directory = id.directory();
        readable(&directory)?;
        let source = Source::create(directory.join("source"))?;
        readable(source.directory())?;
        fs::create_dir(directory.join("out"))?;
        let cgroup = Cgroup::create(&id.to_string())?;
        let fabric = Netns::create(&id.name("fabric"))?;
        fabric.ip(&bridge())?;
        Ok(Self { id, directory, source, cgroup, podapp, heddle, fabric, ports: 0, cleanup })
    }

    fn build(mut self, topology: Topology) -> anyhow::Result<Mesh> {
        check(&topology)?;
        for namespace in &topology.namespaces {
            self.source.write_namespace(namespace)?;
        }
        let externals = self.externals(&topology)?;
        let ca = topology.ca.as_deref().map(|arguments| self.ca(arguments)).transpose()?;
        let mut nodes = Vec::new();
        for (number, plan) in (1..).zip(&topology.nodes) {
            nodes.push(self.node(plan, number, ca.as_ref())?);
        }
        // A port whose carrier the kernel has not reported yet (it does so once a second) drops the first packets.
        self.fabric.wait_for_bridge()?;
        for node in &nodes {
            node.netns().wait_for_bridge()?;
        }
        for service in &topology.services {
            let pods = nodes.iter().flat_map(Node::pods);
            let backends: Vec<Endpoint> =
                pods.filter(|p| service.backends.iter().any(|b| b == p.name())).map(endpoint).collect();
            self.source.write_service(service, &backends)?;
        }
        if topology.apps_first {
            start_programs(&mut nodes, &topology)?;
        }
        if let Some(ca) = &ca {
            ca.start()?;
        }
        if self.heddle.is_some() {
            start_agents(&nodes, &topology)?;
        }
        if !topology.apps_first {
            start_programs(&mut nodes, &topology)?;
        }
        Ok(Mesh {
            nodes,
            externals,
            ca,
            namespaces: Mutex::new(topology.namespaces),
            services: topology.services,
            source: self.source,
            id: self.id,
            is_quiet: false,
            _fabric: self.fabric,
            _cleanup: self.cleanup,
        })
    }

    fn place(&self, name: &str, netns: Arc<Netns>, cgroup: Cgroup, addresses: Vec<IpAddr>) -> Place {
        Place {
            name: name.to_owned(),
            netns_path: netns.path(),
            netns,
            cgroup,
            addresses,
            directory: self.directory.join("out"),
            podapp: self.podapp.clone(),
            serial: AtomicU32::new(0),
        }
    }

    fn externals(&mut self, topology: &Topology) -> anyhow::Result<Vec<External>> {
        let mut made = Vec::new();
        for (number, plan) in (10..).zip(&topology.externals) {
            let addresses: Vec<IpAddr> = vec![
                Ipv4Addr::new(203, 0, 113, number).into(),
                Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into()).into(),
            ];
            let place = self.outside(&plan.name, addresses)?;
            let servers = plan.serves.iter().map(|s: &Serve| place.serve(s)).collect::<anyhow::Result<_>>()?;
            made.push(External { place, servers });
        }
        Ok(made)
    }

    fn ca(&mut self, init_arguments: &[String]) -> anyhow::Result<Ca> {
        let heddle = self.heddle.clone().context("a certificate authority needs the heddle binary: say start()")?;
        let place = self.outside("ca", ca::addresses())?;
        Ca::create(place, &heddle, &self.directory, self.source.directory(), init_arguments)
    }

    /// A host on the fabric.
    fn outside(&mut self, name: &str, addresses: Vec<IpAddr>) -> anyhow::Result<Place> {
        let netns = Arc::new(Netns::create(&self.id.name(&format!("external-{name}")))?);
        wire(&mut self.ports, &netns, "eth0", &self.fabric)?;
        netns.ip(&addressing("eth0", &addresses, 24))?;
        let cgroup = self.cgroup.child("external")?.child(name)?;
        Ok(self.place(name, netns, cgroup, addresses))
    }

    fn node(&mut self, plan: &NodePlan, number: u8, ca: Option<&Ca>) -> anyhow::Result<Node> {
        let netns = Arc::new(Netns::create(&self.id.name(&plan.name))?);
        netns.ip(&bridge())?;
        wire(&mut self.ports, &netns, "uplink", &self.fabric)?;
        netns.ip(&["link set uplink master br0 up".to_owned()])?;
        let addresses = addresses(Families::Dual, number, 1);
        netns.ip(&addressing("br0", &addresses, 16))?;
        let cgroup = self.cgroup.child(&plan.name)?;
        let host = self.place(&plan.name, Arc::clone(&netns), cgroup.child("host")?, addresses.clone());
        let name = format!("{}-heddle", plan.name);
        let heddle_place = self.place(&name, Arc::clone(&netns), cgroup.child("agent")?, addresses);
        let run = self.directory.join(&plan.name);
        fs::create_dir(&run)?;
        readable(&run)?;
        let mut pods = Vec::new();
        for (place, pod) in (10..).zip(&plan.pods) {
            pods.push(self.pod(pod, &plan.name, number, place, &netns, &cgroup)?);
        }
        let paths = NodePaths {
            heddle: self.heddle.clone().unwrap_or_default(),
            run,
            pins: Path::new(BPFFS).join(self.id.name(&plan.name)),
            source: self.source.directory().to_owned(),
        };
        let (agent, keeper) = (Mutex::new(None), Mutex::new(None));
        let mut agent_arguments = plan.agent_arguments.clone();
        if let Some(ca) = ca {
            agent_arguments.extend(ca.admit(&plan.name, &self.directory)?);
        }
        Ok(Node { host, pods, cgroup, heddle_place, paths, agent_arguments, agent, keeper })
    }

    fn pod(
        &mut self,
        plan: &PodPlan,
        node: &str,
        number: u8,
        place: u8,
        node_netns: &Arc<Netns>,
        node_cgroup: &Cgroup,
    ) -> anyhow::Result<Pod> {
        let cgroup = node_cgroup.child(&format!("pod-{}", plan.name))?;
        let (netns, addresses) = if plan.host_network {
            (Arc::clone(node_netns), addresses(Families::Dual, number, 1))
        } else {
            let netns = Arc::new(Netns::create(&self.id.name(&format!("pod-{}", plan.name)))?);
            wire(&mut self.ports, &netns, "eth0", node_netns)?;
            let addresses = addresses(plan.families, number, place);
            netns.ip(&addressing("eth0", &addresses, 16))?;
            (netns, addresses)
        };
        let place = self.place(&plan.name, netns, cgroup, addresses);
        let plan_cell = Mutex::new(plan.clone());
        let source = self.source.clone();
        let pod = Pod { place, plan: plan_cell, node: node.to_owned(), source, servers: Vec::new() };
        pod.edit(|_| ())?;
        Ok(pod)
    }
}

/// Joins an interface of one namespace to the bridge of another; `ports` numbers the bridge's ends.
fn wire(ports: &mut u32, inner: &Netns, interface: &str, outer: &Netns) -> anyhow::Result<()> {
    *ports += 1;
    outer.ip(&[
        format!("link add port{ports} type veth peer name {interface} netns {}", inner.name()),
        format!("link set port{ports} master br0 up"),
    ])
}

/// Refuses a declaration that would fail later with an unclear message.
fn check(topology: &Topology) -> anyhow::Result<()> {
    let mut names = std::collections::BTreeSet::new();
    for pod in topology.nodes.iter().flat_map(|n| &n.pods) {
        ensure!(names.insert(&pod.name), "two pods are called {}", pod.name);
        let known = topology.namespaces.iter().any(|n| n.name == pod.namespace);
        ensure!(known, "namespace {} of pod {} is not declared", pod.namespace, pod.name);
    }
    for service in &topology.services {
        for backend in &service.backends {
            ensure!(names.contains(backend), "service {} is backed by {backend}, which is no pod", service.name);
        }
    }
    Ok(())
}

fn start_agents(nodes: &[Node], topology: &Topology) -> anyhow::Result<()> {
    let planned = nodes.iter().zip(&topology.nodes).filter(|(_, plan)| plan.agent).map(|(node, _)| node);
    for node in planned {
        node.start_agent()?;
        for pod in node.pods().iter().filter(|p| expects_enrolment(&p.plan(), topology)) {
            node.wait_enrolled(pod, ENROL_TIMEOUT)?;
            if topology.ca.is_some() {
                node.wait_certified(pod, ENROL_TIMEOUT)?;
            }
        }
    }
    Ok(())
}

/// FEATURES A1, as the test's author means it; the agent decides on its own.
fn expects_enrolment(pod: &PodPlan, topology: &Topology) -> bool {
    let namespace = topology.namespaces.iter().rfind(|n| n.name == pod.namespace);
    let label = pod.labels.get(MESH_LABEL).or_else(|| namespace.and_then(|n| n.labels.get(MESH_LABEL)));
    pod.expects_enrolment && !pod.host_network && label.is_some_and(|l| l == "enabled")
}

fn start_programs(nodes: &mut [Node], topology: &Topology) -> anyhow::Result<()> {
    for (node, plan) in nodes.iter_mut().zip(&topology.nodes) {
        for (pod, plan) in node.pods.iter_mut().zip(&plan.pods) {
            pod.servers = plan.serves.iter().map(|s| pod.place.serve(s)).collect::<anyhow::Result<_>>()?;
        }
    }
    Ok(())
}

fn endpoint(pod: &Pod) -> Endpoint {
    Endpoint {
        pod: pod.name().to_owned(),
        namespace: pod.namespace(),
        node: pod.node_name().to_owned(),
        addresses: pod.addresses().to_vec(),
        ready: true,
        serving: true,
        terminating: false,
    }
}

fn addresses(families: Families, node: u8, place: u8) -> Vec<IpAddr> {
    let v4 = IpAddr::from(Ipv4Addr::new(10, 77, node, place));
    let v6 = IpAddr::from(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, node.into(), place.into()));
    match families {
        Families::Dual => vec![v4, v6],
        Families::V4 => vec![v4],
        Families::V6 => vec![v6],
    }
}

/// Snooping is off: without a querier it would drop neighbour solicitations.
fn bridge() -> Vec<String> {
    vec!["link add br0 type bridge mcast_snooping 0 forward_delay 0".to_owned(), "link set br0 up".to_owned()]
}

fn addressing(interface: &str, addresses: &[IpAddr], prefix_v4: u8) -> Vec<String> {
    let mut commands = vec![format!("link set {interface} up")];
    for address in addresses {
        match address {
            IpAddr::V4(v4) => {
                commands.push(format!("addr add {v4}/{prefix_v4} dev {interface}"));
                commands.push(format!("route add default dev {interface}"));
            }
            IpAddr::V6(v6) => {
                commands.push(format!("addr add {v6}/64 dev {interface} nodad"));
                commands.push(format!("route add ::/0 dev {interface}"));
            }
        }
    }
    commands
}

/// Open to the agent's user, who has no rights but those of others.
fn readable(directory: &Path) -> anyhow::Result<()> {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).context("permissions")
}

fn mount_bpffs() -> anyhow::Result<()> {
    let mounted = || {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        mounts.lines().any(|l| l.split(' ').nth(1) == Some(BPFFS) && l.split(' ').nth(2) == Some("bpf"))
    };
    // Two tests that start together must not mount it twice, one over the other.
    let file = fs::File::options().create(true).truncate(false).write(true).open("/tmp/heddle-test.lock")?;
    let _lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error).context("lock")?;
    if mounted() {
        return Ok(());
    }
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("mount bpf at {BPFFS}"))
}
