//! `v1 Pod`: a workload, and how it asks to be captured.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use heddle_model::workload::{Capture, Labels, Membership, NotInMesh, StandalonePaths};
use heddle_model::{MeshConfig, MtlsMode, PodUid, Transport, Workload};
use ipnet::IpNet;
use serde::Deserialize;

use crate::meta::{self, ObjectMeta, Salvaged};
use crate::namespace::{MeshLabel, Namespace};
use crate::node::{Entry, Node, Value, shortened};
use crate::problem::{Problem, Problems};

/// A Pod, the fields we read.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodFields {
    /// `metadata`.
    pub metadata: ObjectMeta,
    /// `spec`.
    pub spec: PodSpec,
    /// `status`.
    pub status: PodStatus,
}

/// `spec` of a Pod.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// `nodeName`.
    pub node_name: String,
    /// `serviceAccountName`.
    pub service_account_name: String,
    /// `hostNetwork`.
    pub host_network: bool,
    /// `containers`.
    pub containers: Vec<ContainerFields>,
    /// `initContainers`; those that are restarted always run beside the others.
    pub init_containers: Vec<ContainerFields>,
}

/// An item of `spec.containers` or `spec.initContainers`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerFields {
    /// `ports`.
    pub ports: Vec<ContainerPortFields>,
    /// `restartPolicy`, of an init container.
    pub restart_policy: String,
}

/// An item of a container's `ports`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPortFields {
    /// `name`, empty without.
    pub name: String,
    /// `containerPort`.
    pub container_port: i64,
    /// `protocol`, TCP by default.
    pub protocol: Option<String>,
}

/// `status` of a Pod.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodStatus {
    /// `phase`.
    pub phase: String,
    /// `podIP`.
    #[serde(rename = "podIP")]
    pub pod_ip: String,
    /// `podIPs`.
    #[serde(rename = "podIPs")]
    pub pod_ips: Vec<PodIp>,
}

/// An item of `status.podIPs`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodIp {
    /// `ip`.
    pub ip: String,
}

/// A Pod before its namespace has had its say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Everything the Pod alone decides; `membership` is not decided yet, `capture` is what it asks for, `transport` is
    /// what reaches it while it is outside this mesh.
    workload: Workload,
    /// Its own label.
    mesh: MeshLabel,
    /// The object was rejected; what could be read is in `workload`.
    invalid: bool,
    /// See [`KnownLabels::are_all`].
    has_all_labels: bool,
    is_readable: bool,
}

/// Labels of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownLabels<'p> {
    /// Those that could be read.
    pub labels: &'p Labels,
    /// It has no others. Of a rejected pod some may not be known, and with them who selects it.
    pub are_all: bool,
}

impl Pod {
    /// The pod's uid.
    #[must_use]
    pub const fn uid(&self) -> &PodUid {
        &self.workload.uid
    }

    /// What the Pod alone decides: everything but membership and capture.
    #[must_use]
    pub const fn workload(&self) -> &Workload {
        &self.workload
    }

    /// `metadata.labels`.
    #[must_use]
    pub fn labels(&self) -> KnownLabels<'_> {
        KnownLabels { labels: &self.workload.labels, are_all: self.has_all_labels }
    }

    /// Whether everything could be read that says where it is and who selects it. Where that is not so, what it said before is better.
    #[must_use]
    pub const fn is_readable(&self) -> bool {
        self.is_readable
    }

    /// The workload under its namespace (FEATURES A1, A6), and what it asked for that has no effect.
    ///
    /// `guard` says what guards the pod, if anything does: then neither a mistake nor its own wish takes it out of the mesh. Called only if
    /// [`Self::hinges_on_guard`].
    #[must_use]
    pub fn in_namespace(
        &self,
        namespace: Option<&Namespace>,
        guard: impl FnOnce() -> Option<String>,
    ) -> (Workload, Vec<Problem>) {
        let namespace = self.own_or_absent(namespace);
        let mut warnings = Vec::new();
        let mut workload = self.workload.clone();
        workload.membership = match self.place(&namespace) {
            Place::In => Membership::Enabled,
            Place::Out(why) => Membership::Disabled(why),
            Place::OutUnguarded(why) => match guard() {
                None => Membership::Disabled(why),
                Some(guard) => {
                    // A mistake has been told of where it was read.
                    warnings.extend((why == NotInMesh::PodOptedOut).then(|| refused_opt_out(&guard)));
                    Membership::Enabled
                }
            },
        };
        let asked = std::mem::take(&mut workload.capture);
        if workload.membership == Membership::Enabled {
            if namespace.allow_exclusions {
                workload.capture = asked;
            } else {
                warnings.extend(refused(&asked));
            }
            workload.capture.failure_policy = namespace.failure_policy;
            workload.transport = Transport::Heddle;
        }
        (workload, warnings)
    }

    /// Whether the pod is in the mesh only if something guards it.
    #[must_use]
    pub fn hinges_on_guard(&self, namespace: Option<&Namespace>) -> bool {
        matches!(self.place(&self.own_or_absent(namespace)), Place::OutUnguarded(_))
    }

    fn own_or_absent<'n>(&self, namespace: Option<&'n Namespace>) -> Cow<'n, Namespace> {
        namespace.map_or_else(|| Cow::Owned(Namespace::absent(&self.workload.namespace)), Cow::Borrowed)
    }

    fn place(&self, namespace: &Namespace) -> Place {
        let place = match (self.mesh, namespace.mesh) {
            (MeshLabel::Disabled, MeshLabel::Enabled | MeshLabel::Invalid) if !namespace.allow_exclusions => {
                Place::OutUnguarded(NotInMesh::PodOptedOut)
            }
            (MeshLabel::Disabled, _) => Place::Out(NotInMesh::PodOptedOut),
            (MeshLabel::Invalid, _) | (MeshLabel::Unset, MeshLabel::Invalid) => {
                Place::OutUnguarded(NotInMesh::InvalidLabel)
            }
            (MeshLabel::Unset, MeshLabel::Unset | MeshLabel::Disabled) => Place::Out(NotInMesh::NotLabelled),
            (MeshLabel::Enabled, _) | (MeshLabel::Unset, MeshLabel::Enabled) if self.invalid => {
                Place::OutUnguarded(NotInMesh::InvalidObject)
            }
            (MeshLabel::Enabled, _) | (MeshLabel::Unset, MeshLabel::Enabled) => Place::In,
        };
        match place {
            Place::In if self.workload.host_network => Place::Out(NotInMesh::HostNetwork),
            Place::OutUnguarded(why) if self.workload.host_network => Place::Out(why),
            place => place,
        }
    }

    pub(crate) fn convert(namespace: &str, fields: &PodFields, problems: &mut Problems) -> Self {
        let PodFields { metadata: meta, spec, status } = fields;
        let mut labels = meta.labels.clone();
        if !meta.check_labels(problems) {
            labels.retain(|_, value| meta::is_label_value(value));
        }
        let has_all_labels = labels.len() == meta.labels.len();
        let uid = meta.uid.as_deref().filter(|uid| !uid.is_empty());
        let uid = uid.map_or_else(|| format!("{namespace}/{}", meta.name), str::to_owned);
        let mut workload = Workload::new(&uid, namespace, &meta.name);
        workload.workload_name = owner(meta);
        workload.app = meta.first_label(&["app.kubernetes.io/name", "app"]);
        workload.version = meta.first_label(&["app.kubernetes.io/version", "version"]);
        workload.labels = Arc::new(labels);
        workload.named_ports = named_ports(spec, problems);
        workload.zone = meta.first_label(&["topology.kubernetes.io/zone"]);
        workload.created = meta.created(problems);
        workload.terminating = meta.deletion_timestamp.is_some();
        workload.node = spec.node_name.as_str().into();
        workload.host_network = spec.host_network;
        workload.finished = matches!(status.phase.as_str(), "Succeeded" | "Failed");
        if !spec.service_account_name.is_empty() {
            if !meta::is_dns_subdomain(&spec.service_account_name) {
                let message = format!("`{}` is no name of a ServiceAccount", shortened(&spec.service_account_name));
                problems.error("spec.serviceAccountName", message);
            }
            workload.service_account = spec.service_account_name.as_str().into();
        }
        let mut addresses = BTreeSet::new();
        let listed = status.pod_ips.iter().enumerate().map(|(i, p)| (format!("status.podIPs[{i}].ip"), p.ip.as_str()));
        let single = std::iter::once(("status.podIP".to_owned(), status.pod_ip.as_str()));
        for (field, text) in listed.chain(single).filter(|(_, text)| !text.is_empty()) {
            if let Some(ip) = meta::address(problems, field, text)
                && addresses.insert(ip)
            {
                workload.addresses.push(ip);
            }
        }
        workload.transport = foreign_transport(meta, spec);
        workload.capture = asked(meta, problems);
        let annotation = |key: &str| meta.annotations.get(key).map(String::as_str);
        workload.standalone = standalone(annotation, problems);
        let is_readable = problems.errors.is_empty();
        let mesh = MeshLabel::read(meta, problems);
        Self { workload, mesh, invalid: !problems.errors.is_empty(), has_all_labels, is_readable }
    }

    /// What can be known of a Pod that was rejected before its fields were: enough to list it, and to hold it in the mesh.
    pub(crate) fn salvage(namespace: &str, name: &str, root: &Node<'_>, is_whole: bool) -> Self {
        let text = |path: &[&str]| root.at(path).and_then(Node::text).unwrap_or_default();
        let uid = Some(text(&["metadata", "uid"])).filter(|uid| !uid.is_empty());
        let uid = uid.map_or_else(|| format!("{namespace}/{name}"), str::to_owned);
        let mut workload = Workload::new(&uid, namespace, name);
        workload.node = text(&["spec", "nodeName"]).into();
        workload.host_network = root.at(&["spec", "hostNetwork"]).is_some_and(|n| n.value == Value::Bool(true));
        workload.finished = matches!(text(&["status", "phase"]), "Succeeded" | "Failed");
        let listed = root.at(&["status", "podIPs"]).map_or(&[][..], Node::items);
        let listed = listed.iter().filter_map(|item| item.get("ip")).filter_map(Node::text);
        for text in listed.chain([text(&["status", "podIP"])]) {
            if let Some(ip) = meta::address(&mut Problems::default(), "", text)
                && !workload.addresses.contains(&ip)
            {
                workload.addresses.push(ip);
            }
        }
        if root.at(&["spec", "serviceAccountName"]).is_some() || !is_whole {
            // Nobody's identity, where it cannot be read.
            let account = root.get("spec").and_then(|spec| spec.legible("serviceAccountName"));
            workload.service_account = account.filter(|name| meta::is_dns_subdomain(name)).unwrap_or_default().into();
        }
        let (labels, has_all_labels) = salvaged_labels(root, is_whole);
        workload.labels = Arc::new(labels);
        if let Salvaged::Node(annotations) = meta::salvaged(root, "annotations") {
            workload.standalone = standalone(|key| annotations.legible(key), &mut Problems::default());
        }
        let mesh = MeshLabel::salvage(root, is_whole);
        Self { workload, mesh, invalid: true, has_all_labels, is_readable: false }
    }
}

/// The labels of a rejected Pod that can be read, and whether those are all.
fn salvaged_labels(root: &Node<'_>, is_whole: bool) -> (Labels, bool) {
    let labels = match meta::salvaged(root, "labels") {
        Salvaged::Absent => return (Labels::new(), is_whole),
        Salvaged::Illegible => return (Labels::new(), false),
        Salvaged::Node(labels) => labels,
    };
    let Value::Mapping(entries) = &labels.value else { return (Labels::new(), false) };
    let legible = |entry: &Entry<'_>| {
        let value = entry.node.text().filter(|value| meta::is_label_value(value) && !entry.is_contested)?;
        Some((entry.key.to_string(), value.to_owned()))
    };
    let known: Labels = entries.iter().filter_map(legible).collect();
    let are_all = is_whole && known.len() == entries.len();
    (known, are_all)
}

/// What a pod's label and its namespace's make of it.
enum Place {
    /// In the mesh.
    In,
    /// Outside, whatever guards it.
    Out(NotInMesh),
    /// Outside by a mistake, or by a wish that its namespace does not allow: only where nothing guards it.
    OutUnguarded(NotInMesh),
}

/// TCP ports with a name, for NetworkPolicies. A number that is none is a warning: nobody listens there.
fn named_ports(spec: &PodSpec, problems: &mut Problems) -> Arc<[(Arc<str>, u16)]> {
    let mut named = Vec::new();
    let containers = spec.containers.iter().enumerate().map(|at| ("containers", at));
    let sidecars = spec.init_containers.iter().enumerate().filter(|(_, c)| c.restart_policy == "Always");
    for (list, (index, container)) in containers.chain(sidecars.map(|at| ("initContainers", at))) {
        for (at, port) in container.ports.iter().enumerate().filter(|(_, port)| !port.name.is_empty()) {
            if port.protocol.as_deref().is_some_and(|protocol| protocol != "TCP") {
                continue;
            }
            match u16::try_from(port.container_port) {
                Ok(number) if number > 0 => named.push((port.name.as_str().into(), number)),
                _ => {
                    let field = format!("spec.{list}[{index}].ports[{at}].containerPort");
                    problems.warn(
                        field,
                        format!("{} is no port, so `{}` names none", port.container_port, shortened(&port.name)),
                    );
                }
            }
        }
    }
    named.into()
}

/// What reaches the pod if this mesh does not capture it. Istio sets its annotation once it has redirected the pod.
fn foreign_transport(meta: &ObjectMeta, spec: &PodSpec) -> Transport {
    let redirected = meta.annotations.get(meta::ISTIO_REDIRECTION).is_some_and(|text| text == "enabled");
    if redirected && !spec.host_network { Transport::Hbone } else { Transport::Plain }
}

/// The exclusion annotations. A bad value is a warning: the pod stays captured, without that exclusion.
fn asked(meta: &ObjectMeta, problems: &mut Problems) -> Capture {
    let cidr = |item: &str| {
        let cidr: Option<IpNet> = item.parse().ok().or_else(|| item.parse::<IpAddr>().ok().map(IpNet::from));
        cidr.map(|cidr| cidr.trunc()).ok_or("no CIDR such as `10.0.0.0/8`")
    };
    let port = |item: &str| {
        let port: Option<u16> = item.parse().ok().filter(|port| *port > 0);
        port.ok_or("no port: 1 to 65535")
    };
    Capture {
        exclude_outbound_cidrs: list(meta, meta::EXCLUDE_OUTBOUND_CIDRS, problems, cidr),
        exclude_outbound_ports: list(meta, meta::EXCLUDE_OUTBOUND_PORTS, problems, port),
        exclude_inbound_ports: list(meta, meta::EXCLUDE_INBOUND_PORTS, problems, port),
        opaque_ports: list(meta, meta::OPAQUE_PORTS, problems, port),
        ..Capture::default()
    }
}

/// A comma-separated annotation, sorted and each value once; the bad values of it are left out and warned of.
fn list<T: Ord>(
    meta: &ObjectMeta,
    key: &str,
    problems: &mut Problems,
    parse: impl Fn(&str) -> Result<T, &'static str>,
) -> Vec<T> {
    let text = meta.annotations.get(key).map_or("", String::as_str);
    let mut values = BTreeSet::new();
    for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        match parse(item) {
            Ok(value) => drop(values.insert(value)),
            Err(why) => {
                let message = format!("`{}` is {why}; it is not excluded", shortened(item));
                problems.warn(meta::annotation_path(key), message);
            }
        }
    }
    values.into_iter().collect()
}

/// Takes those ports out of the inbound exclusions to which nothing may go round the agent (FEATURES A6), and says so: STRICT ones, and those
/// that `guarded` gives a reason for. To be called when the workload's modes are known.
#[must_use]
pub fn keep_captured(
    workload: &mut Workload,
    mesh: &MeshConfig,
    guarded: impl Fn(u16) -> Option<String>,
) -> Vec<Problem> {
    let mut kept: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut excluded = std::mem::take(&mut workload.capture.exclude_inbound_ports);
    excluded.retain(|port| {
        let is_strict = workload.mtls.of(*port, mesh) == MtlsMode::Strict;
        let why = if is_strict { Some("its mTLS mode is `Strict`".to_owned()) } else { guarded(*port) };
        let Some(why) = why else { return true };
        kept.entry(why).or_default().push(port.to_string());
        false
    });
    workload.capture.exclude_inbound_ports = excluded;
    let problem = |(why, ports): (String, Vec<String>)| {
        let ports = ports.join(", ");
        let message = format!("port {ports} stays captured: {why}, and nothing goes round the agent to such a port");
        Problem::new(meta::annotation_path(meta::EXCLUDE_INBOUND_PORTS), message)
    };
    kept.into_iter().map(problem).collect()
}

fn refused_opt_out(guard: &str) -> Problem {
    let message = format!(
        "`disabled` has no effect: {guard}, and the namespace does not allow it (annotate the Namespace with {}: \"true\")",
        meta::ALLOW_EXCLUSIONS
    );
    Problem::new(meta::label_path(meta::MESH_LABEL), message)
}

fn refused(asked: &Capture) -> impl Iterator<Item = Problem> {
    let asked = [
        (!asked.exclude_outbound_cidrs.is_empty(), meta::EXCLUDE_OUTBOUND_CIDRS),
        (!asked.exclude_outbound_ports.is_empty(), meta::EXCLUDE_OUTBOUND_PORTS),
        (!asked.exclude_inbound_ports.is_empty(), meta::EXCLUDE_INBOUND_PORTS),
        (!asked.opaque_ports.is_empty(), meta::OPAQUE_PORTS),
    ];
    asked.into_iter().filter(|(asked, _)| *asked).map(|(_, key)| {
        let message = format!(
            "has no effect: the namespace does not allow it (annotate the Namespace with {}: \"true\")",
            meta::ALLOW_EXCLUSIONS
        );
        Problem::new(meta::annotation_path(key), message)
    })
}

fn standalone<'a>(annotation: impl Fn(&str) -> Option<&'a str>, problems: &mut Problems) -> Option<StandalonePaths> {
    let mut path = |key: &str| {
        let text = annotation(key)?;
        if !text.starts_with('/') || text.contains('\0') || text.split('/').any(|part| part == "..") {
            let message = format!("`{}` is no absolute path without `..`", shortened(text));
            problems.error(meta::annotation_path(key), message);
            return None;
        }
        Some(Arc::<str>::from(text))
    };
    let (netns, cgroup) = (path(meta::STANDALONE_NETNS), path(meta::STANDALONE_CGROUP));
    match (netns, cgroup) {
        (Some(netns), cgroup) => Some(StandalonePaths { netns, cgroup }),
        (None, Some(_)) => {
            let message = format!("needs {} beside it", meta::STANDALONE_NETNS);
            problems.error(meta::annotation_path(meta::STANDALONE_CGROUP), message);
            None
        }
        (None, None) => None,
    }
}

/// Name of the owning workload, as people know it: see `Workload::workload_name`.
fn owner(meta: &ObjectMeta) -> Arc<str> {
    let explicit = meta.label("heddle.dev/workload-name");
    if !explicit.is_empty() {
        return explicit.into();
    }
    let hash = meta.label("pod-template-hash");
    let without_hash = |name: &str| -> Option<Arc<str>> {
        let rest = name.strip_suffix(hash)?.strip_suffix('-')?;
        (!hash.is_empty() && !rest.is_empty()).then(|| rest.into())
    };
    if let Some(owner) = meta.owner_references.iter().find(|o| o.controller && !o.name.is_empty()) {
        let deployment = (owner.kind == "ReplicaSet").then(|| without_hash(&owner.name)).flatten();
        return deployment.unwrap_or_else(|| owner.name.as_str().into());
    }
    let generated = meta.name.rsplit_once('-').map(|(rest, _suffix)| rest);
    if let Some(deployment) = generated.and_then(without_hash) {
        return deployment;
    }
    let job = meta.first_label(&["batch.kubernetes.io/job-name", "job-name"]);
    if !job.is_empty() {
        return job;
    }
    let stateful = !meta.label("statefulset.kubernetes.io/pod-name").is_empty();
    match generated {
        Some(set) if stateful => set.into(),
        _ => meta.name.as_str().into(),
    }
}

#[cfg(test)]
#[path = "pod_tests.rs"]
mod tests;
