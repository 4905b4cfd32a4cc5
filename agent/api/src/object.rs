//! A file of documents to objects: which kind each is, what it becomes, and what is reported of it.

use std::sync::Arc;

use heddle_model::network_policy::NetworkPolicy;
use heddle_model::policy::AuthorizationPolicy;
use heddle_model::routing::{ReferenceGrant, Route, TrafficPolicy};
use heddle_model::{InvalidObject, MeshConfig, Service, Timestamp};
use serde::Deserialize;

use crate::authorization_policy::{self, AuthorizationPolicyFields};
use crate::kind::{Key, Kind};
use crate::mesh::{self, MeshFields};
use crate::mesh_tls::{MeshTls, MeshTlsFields};
use crate::meta;
use crate::namespace::{Namespace, NamespaceFields};
use crate::network_policy::{self, NetworkPolicyFields};
use crate::node::{Node, Value, shortened};
use crate::pod::{Pod, PodFields};
use crate::problem::{Problem, Problems};
use crate::service::{self, ServiceFields};
use crate::slice::{EndpointSlice, SliceFields};
use crate::{de, reference_grant, route, traffic_policy, yaml};

/// What a file says.
#[derive(Debug, Default)]
pub struct Reading {
    /// Objects in the order of the file, rejected ones included as far as they could be read.
    pub items: Vec<Item>,
    /// Why objects were rejected.
    pub invalid: Vec<InvalidObject>,
    /// Parts of accepted objects that have no effect.
    pub warnings: Vec<InvalidObject>,
    /// Objects of kinds that mean nothing to us (ConfigMap, Deployment …).
    pub ignored: usize,
    /// Something was rejected of which nobody can tell which object it is: it may be one that was there before.
    pub has_unknown: bool,
}

/// One object and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// 1-based line where it starts.
    pub line: u64,
    /// The object.
    pub object: Object,
}

/// An object, converted.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// `v1 Namespace`.
    Namespace(Namespace),
    /// `v1 Pod`.
    Pod(Box<Pod>),
    /// `v1 Service`, its ports without endpoints.
    Service(Service),
    /// `discovery.k8s.io/v1 EndpointSlice`.
    EndpointSlice(EndpointSlice),
    /// `heddle.dev/v1alpha1 Mesh`; `None` if it was rejected: the former one stays in force.
    Mesh(Option<MeshConfig>),
    /// `heddle.dev/v1alpha1 MeshTLS`.
    MeshTls(MeshTls),
    /// `heddle.dev/v1alpha1 AuthorizationPolicy`.
    AuthorizationPolicy(Dated<AuthorizationPolicy>),
    /// `networking.k8s.io/v1 NetworkPolicy`.
    NetworkPolicy(Dated<NetworkPolicy>),
    /// `gateway.networking.k8s.io/v1 HTTPRoute`, `GRPCRoute`, `TLSRoute` or `TCPRoute`.
    Route(Arc<Route>),
    /// `gateway.networking.k8s.io/v1 ReferenceGrant`; there is none of one that was rejected, which grants nothing.
    ReferenceGrant(Dated<ReferenceGrant>),
    /// `heddle.dev/v1alpha1 TrafficPolicy`.
    TrafficPolicy(Arc<TrafficPolicy>),
}

/// A policy as the model has it, which does not care how old it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dated<T> {
    /// `metadata.creationTimestamp`.
    pub created: Option<Timestamp>,
    /// The policy.
    pub policy: Arc<T>,
}

impl<T> Dated<T> {
    pub(crate) fn new(created: Option<Timestamp>, policy: T) -> Self {
        Self { created, policy: Arc::new(policy) }
    }
}

impl Object {
    /// Kind, namespace and name.
    #[must_use]
    pub fn key(&self) -> Key {
        let (kind, namespace, name) = match self {
            Self::Namespace(o) => (Kind::Namespace, Arc::default(), Arc::clone(&o.name)),
            Self::Pod(o) => (Kind::Pod, Arc::clone(&o.workload().namespace), Arc::clone(&o.workload().name)),
            Self::Service(o) => (Kind::Service, Arc::clone(&o.namespace), Arc::clone(&o.name)),
            Self::EndpointSlice(o) => (Kind::EndpointSlice, Arc::clone(&o.namespace), Arc::clone(&o.name)),
            Self::Mesh(_) => (Kind::Mesh, Arc::default(), mesh::NAME.into()),
            Self::MeshTls(o) => (Kind::MeshTls, Arc::clone(&o.namespace), Arc::clone(&o.name)),
            Self::AuthorizationPolicy(Dated { policy, .. }) => {
                (Kind::AuthorizationPolicy, Arc::clone(&policy.namespace), Arc::clone(&policy.name))
            }
            Self::NetworkPolicy(Dated { policy, .. }) => {
                (Kind::NetworkPolicy, Arc::clone(&policy.namespace), Arc::clone(&policy.name))
            }
            Self::Route(o) => (Kind::Route(o.key.kind), Arc::clone(&o.key.namespace), Arc::clone(&o.key.name)),
            Self::ReferenceGrant(Dated { policy, .. }) => {
                (Kind::ReferenceGrant, Arc::clone(&policy.key.0), Arc::clone(&policy.key.1))
            }
            Self::TrafficPolicy(o) => (Kind::TrafficPolicy, Arc::clone(&o.key.0), Arc::clone(&o.key.1)),
        };
        Key { kind, namespace, name }
    }

    /// Whether it says where it belongs and whom it is. Where a Pod or a Namespace does not, what it said before is better; of all others so much is
    /// left that they deny.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        match self {
            Self::Namespace(o) => o.is_readable,
            Self::Pod(o) => o.is_readable(),
            _ => true,
        }
    }

    /// `metadata.creationTimestamp`.
    #[must_use]
    pub fn created(&self) -> Option<Timestamp> {
        match self {
            Self::Namespace(o) => o.created,
            Self::Pod(o) => o.workload().created,
            Self::Service(o) => o.created,
            Self::EndpointSlice(o) => o.created,
            Self::Mesh(_) => None,
            Self::MeshTls(o) => o.created,
            Self::AuthorizationPolicy(o) => o.created,
            Self::NetworkPolicy(o) => o.created,
            Self::Route(o) => o.created,
            Self::ReferenceGrant(o) => o.created,
            Self::TrafficPolicy(o) => o.created,
        }
    }
}

/// Reads the objects of one file. `origin` is the name reports give it. Never fails as a whole: what cannot be read is
/// in the report, and everything else is in the items.
#[must_use]
pub fn read(origin: &str, bytes: &[u8]) -> Reading {
    let mut reader = Reader { origin: origin.into(), reading: Reading::default(), untold: 0 };
    if bytes.len() as u64 > yaml::FILE_BYTES_MAX {
        reader.reject(0, "", "", &[Problem::new("", format!("longer than {} bytes: split it", yaml::FILE_BYTES_MAX))]);
        reader.reading.has_unknown = true;
        return reader.reading;
    }
    let bad_lines = lines_of_bad_bytes(bytes);
    for mut document in yaml::documents(&String::from_utf8_lossy(bytes)) {
        let next = bad_lines.partition_point(|&line| line < document.line);
        if let Some(&line) = bad_lines.get(next).filter(|&&line| line < document.end) {
            document.problems.push(Problem { line, ..Problem::new("", "not UTF-8 text") });
        }
        reader.document(&document);
    }
    reader.finish()
}

/// The lines with bytes that are no UTF-8, in order.
fn lines_of_bad_bytes(bytes: &[u8]) -> Vec<u64> {
    let mut lines = Vec::new();
    let mut line = 1;
    for chunk in bytes.utf8_chunks() {
        line += chunk.valid().bytes().filter(|byte| *byte == b'\n').count() as u64;
        if !chunk.invalid().is_empty() && lines.last() != Some(&line) {
            lines.push(line);
        }
    }
    lines
}

/// Most reports on one file, rejections and warnings each; the rest is counted.
pub const REPORTS_MAX: usize = 1_000;

struct Reader {
    origin: Arc<str>,
    reading: Reading,
    /// Reports beyond [`REPORTS_MAX`].
    untold: usize,
}

/// What a document says it is.
struct Identity<'n> {
    kind: &'n str,
    api_version: &'n str,
    namespace: &'n str,
    name: &'n str,
}

/// What to do with a kind.
enum Known {
    Read(Kind),
    List,
    /// Kubernetes has it, and it means nothing to us.
    Ignored,
    /// It would mean something to a mesh, and does not yet.
    NotYet,
    Unknown(String),
}

impl Reader {
    fn finish(mut self) -> Reading {
        if self.untold > 0 {
            let message = format!("{} more reports on this file are left out", self.untold);
            self.reading.invalid.push(self.told(0, "", "", &Problem::new("", message)));
        }
        self.reading
    }

    fn document(&mut self, document: &yaml::Document<'_>) {
        let Some(root) = &document.root else {
            self.reject(document.line, "", "", &document.problems);
            self.reading.has_unknown |= !document.problems.is_empty();
            return;
        };
        if root.value == Value::Null && document.problems.is_empty() {
            return;
        }
        self.object(root, document.line.max(root.line), &document.problems, true);
    }

    fn object(&mut self, root: &Node<'_>, line: u64, broken: &[Problem], lists: bool) {
        let text = |path: &[&str]| root.at(path).and_then(Node::text).unwrap_or_default();
        let id = Identity {
            kind: text(&["kind"]),
            api_version: text(&["apiVersion"]),
            namespace: text(&["metadata", "namespace"]),
            name: text(&["metadata", "name"]),
        };
        let known = known(&id, root);
        self.reading.has_unknown |= matches!(known, Known::Unknown(_));
        match known {
            Known::Read(kind) => self.known(kind, &id, root, line, broken),
            Known::List if lists => self.list(root, broken),
            Known::List if !lists => {
                let problem = Problem { line, ..Problem::new("kind", "a List inside a List is not read") };
                self.reject(line, id.kind, id.name, &[problem]);
            }
            Known::Ignored if broken.is_empty() => self.reading.ignored += 1,
            Known::NotYet if broken.is_empty() => {
                let message = format!("{} {} is not supported yet: it has no effect", id.api_version, id.kind);
                let problem = Problem { line, ..Problem::new("", message) };
                self.report(line, id.kind, &name_of(id.namespace, id.name), &[problem], true);
            }
            Known::Unknown(message) if broken.is_empty() => {
                let field = if id.kind.is_empty() { "kind" } else { "" };
                let problem = Problem { line, ..Problem::new(field, message) };
                self.reject(line, id.kind, &name_of(id.namespace, id.name), &[problem]);
            }
            _ => self.reject(line, id.kind, &name_of(id.namespace, id.name), broken),
        }
    }

    fn known(&mut self, kind: Kind, id: &Identity<'_>, root: &Node<'_>, line: u64, broken: &[Problem]) {
        let namespace = match (kind.namespaced(), id.namespace) {
            (false, _) => "",
            (true, "") => meta::DEFAULT_NAMESPACE,
            (true, namespace) => namespace,
        };
        let object = name_of(namespace, id.name);
        let mut problems = Problems { errors: broken.to_vec(), ..Problems::default() };
        let named = check_identity(kind, namespace, id, &mut problems);
        let has_strange_metadata = kind.guards() && !check_metadata(root, &mut problems);
        let converted = match (named, kind) {
            // What is misspelt may be the namespace: nobody can tell whom it was meant for.
            _ if has_strange_metadata && id.namespace.is_empty() => None,
            // These tell their own parts apart, and those from what was wrong before.
            (true, Kind::Route(_) | Kind::TrafficPolicy) => convert(kind, namespace, root, &mut problems),
            (true, _) if problems.errors.is_empty() => convert(kind, namespace, root, &mut problems),
            (true, _) => salvage(kind, namespace, id.name, root, broken.is_empty()),
            // Its addresses are refused under a name that no Service can have.
            (false, Kind::Service) => {
                let namespace =
                    Some(namespace).filter(|text| meta::is_dns_label(text)).unwrap_or(meta::DEFAULT_NAMESPACE);
                let unnamed = service::salvage(namespace, &format!("{}:{line}", self.origin), root);
                (!unnamed.vips.is_empty()).then_some(Object::Service(unnamed))
            }
            // It was meant for somebody, and a name is all that is wrong with it: its targets are strict, or denied.
            (false, Kind::MeshTls | Kind::AuthorizationPolicy | Kind::NetworkPolicy)
                if meta::is_dns_label(namespace) =>
            {
                salvage(kind, namespace, &format!("{}:{line}", self.origin), root, broken.is_empty())
            }
            (false, _) => None,
        };
        self.reading.has_unknown |= converted.is_none() && (!named || has_strange_metadata);
        problems.locate(root);
        self.report(line, kind.as_str(), &object, &problems.errors, false);
        self.report(line, kind.as_str(), &object, &problems.warnings, true);
        self.reading.items.extend(converted.map(|object| Item { line, object }));
    }

    /// Every item by itself; what is wrong on an item's lines is that item's trouble alone.
    fn list(&mut self, root: &Node<'_>, broken: &[Problem]) {
        let items = root.get("items").map_or(&[][..], Node::items);
        let before = items.first().map_or(u64::MAX, |item| item.line);
        let of_list: Vec<Problem> = broken.iter().filter(|p| p.line < before).cloned().collect();
        self.reject(root.line, "List", "", &of_list);
        // Behind a syntax error there may have been more of them.
        self.reading.has_unknown |= !broken.is_empty();
        let mut starts: Vec<u64> = items.iter().map(|item| item.line).collect();
        starts.dedup();
        for item in items {
            let after = starts.get(starts.partition_point(|&start| start <= item.line)).copied().unwrap_or(u64::MAX);
            let own: Vec<Problem> = broken.iter().filter(|p| (item.line..after).contains(&p.line)).cloned().collect();
            self.object(item, item.line, &own, false);
        }
    }

    fn reject(&mut self, line: u64, kind: &str, object: &str, problems: &[Problem]) {
        self.report(line, kind, object, problems, false);
    }

    fn report(&mut self, line: u64, kind: &str, object: &str, problems: &[Problem], warning: bool) {
        for problem in problems {
            let told = self.told(line, kind, object, problem);
            let list = if warning { &mut self.reading.warnings } else { &mut self.reading.invalid };
            if list.len() < REPORTS_MAX {
                list.push(told);
            } else {
                self.untold += 1;
            }
        }
    }

    fn told(&self, line: u64, kind: &str, object: &str, problem: &Problem) -> InvalidObject {
        InvalidObject {
            origin: Arc::clone(&self.origin),
            line: if problem.line == 0 { line } else { problem.line },
            kind: shortened(kind).as_ref().into(),
            object: shortened(object).as_ref().into(),
            field: problem.field.as_str().into(),
            message: problem.message.as_str().into(),
        }
    }
}

fn known(id: &Identity<'_>, root: &Node<'_>) -> Known {
    if !matches!(root.value, Value::Mapping(_)) {
        return Known::Unknown(format!("must be an object with apiVersion and kind, not {}", root.described()));
    }
    if id.kind.is_empty() {
        return Known::Unknown("is missing: say which kind of object this is".to_owned());
    }
    if let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.as_str() == id.kind) {
        // A Knative Service is not a Kubernetes Service.
        let same_group = group(id.api_version) == group(kind.api_version());
        if same_group || id.api_version.is_empty() {
            return Known::Read(kind);
        }
    }
    match group(id.api_version) {
        "" if id.kind == "List" => Known::List,
        "" if CORE_KINDS.contains(&id.kind) => Known::Ignored,
        "" | "discovery.k8s.io" | "heddle.dev" => {
            let kinds: Vec<String> = Kind::ALL.iter().map(|k| format!("{} {}", k.api_version(), k.as_str())).collect();
            let (version, kind) = (shortened(id.api_version), shortened(id.kind));
            Known::Unknown(format!("unknown kind `{version} {kind}`: read are {} and v1 List", kinds.join(", ")))
        }
        "gateway.networking.k8s.io" => Known::NotYet,
        "networking.k8s.io" if NETWORKING_KINDS.contains(&id.kind) => Known::Ignored,
        "networking.k8s.io" => {
            let (version, kind) = (shortened(id.api_version), shortened(id.kind));
            Known::Unknown(format!("unknown kind `{version} {kind}`: read of that group is NetworkPolicy"))
        }
        // Of another group, or of ours misspelt: whoever wrote it thinks that it guards something.
        _ if Kind::ALL.iter().any(|kind| kind.guards() && kind.as_str() == id.kind) => Known::NotYet,
        _ => Known::Ignored,
    }
}

/// Kinds of `networking.k8s.io` that mean nothing to us.
const NETWORKING_KINDS: [&str; 4] = ["Ingress", "IngressClass", "IPAddress", "ServiceCIDR"];

/// Kinds of the core group that files may hold and that mean nothing to us.
const CORE_KINDS: [&str; 14] = [
    "Binding",
    "ComponentStatus",
    "ConfigMap",
    "Endpoints",
    "Event",
    "LimitRange",
    "Node",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "PodTemplate",
    "ReplicationController",
    "ResourceQuota",
    "Secret",
    "ServiceAccount",
];

fn group(api_version: &str) -> &str {
    api_version.rsplit_once('/').map_or("", |(group, _version)| group)
}

/// Checks what the object calls itself; false if the name cannot be used.
fn check_identity(kind: Kind, namespace: &str, id: &Identity<'_>, problems: &mut Problems) -> bool {
    if !kind.api_versions().contains(&id.api_version) {
        let message = format!("`{}` is not read: {}", shortened(id.api_version), kind.api_versions().join(" or "));
        problems.error("apiVersion", message);
    }
    let right = match kind {
        Kind::Namespace | Kind::Service => meta::is_dns_label(id.name),
        Kind::Mesh => id.name == mesh::NAME,
        _ => meta::is_dns_subdomain(id.name),
    };
    if id.name.is_empty() {
        problems.error("metadata.name", "is missing");
    } else if !right && kind == Kind::Mesh {
        let message = format!("`{}` has no effect: the Mesh is named `{}`", shortened(id.name), mesh::NAME);
        problems.error("metadata.name", message);
    } else if !right {
        problems
            .error("metadata.name", format!("`{}` is no name: lower-case letters, digits, `-`", shortened(id.name)));
    }
    let homed = !kind.namespaced() || meta::is_dns_label(namespace);
    if !homed {
        problems.error("metadata.namespace", format!("`{}` is no name of a namespace", shortened(namespace)));
    }
    right && homed
}

/// Fields of `metadata` that Kubernetes knows (`metav1.ObjectMeta`).
const METADATA: [&str; 15] = [
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "labels",
    "managedFields",
    "name",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// Whether `metadata` has no field but those; a misspelt namespace would put an object in force somewhere else.
fn check_metadata(root: &Node<'_>, problems: &mut Problems) -> bool {
    let Some(Node { value: Value::Mapping(entries), .. }) = root.get("metadata") else { return true };
    let strange = entries.iter().filter(|entry| !METADATA.contains(&entry.key.as_ref()));
    let before = problems.errors.len();
    for entry in strange {
        let mut field = "metadata".to_owned();
        crate::node::join(&mut field, &entry.key);
        problems.error(field, format!("unknown field `{}`", shortened(&entry.key)));
    }
    problems.errors.len() == before
}

fn convert(kind: Kind, namespace: &str, root: &Node<'_>, problems: &mut Problems) -> Option<Object> {
    fn fields<'n, T: Deserialize<'n>>(root: &'n Node<'_>, problems: &mut Problems) -> Option<T> {
        de::from_node(root).map_err(|problem| problems.errors.push(problem)).ok()
    }
    let name = root.at(&["metadata", "name"]).and_then(Node::text).unwrap_or_default();
    let converted = match kind {
        Kind::Namespace => fields::<NamespaceFields>(root, problems)
            .map(|fields| Object::Namespace(Namespace::convert(&fields, problems))),
        Kind::Pod => fields::<PodFields>(root, problems)
            .map(|fields| Object::Pod(Box::new(Pod::convert(namespace, &fields, problems)))),
        Kind::Service => fields::<ServiceFields>(root, problems)
            .map(|fields| Object::Service(service::convert(namespace, &fields, problems))),
        Kind::EndpointSlice => {
            let slice =
                fields::<SliceFields>(root, problems).and_then(|f| EndpointSlice::convert(namespace, &f, problems));
            return slice.filter(|_| problems.errors.is_empty()).map(Object::EndpointSlice);
        }
        Kind::Mesh => {
            let config = fields::<MeshFields>(root, problems).map(|fields| mesh::convert(&fields, problems));
            return Some(Object::Mesh(config.filter(|_| problems.errors.is_empty())));
        }
        Kind::MeshTls => fields::<MeshTlsFields>(root, problems)
            .map(|fields| Object::MeshTls(MeshTls::convert(namespace, &fields, root, problems))),
        Kind::AuthorizationPolicy => fields::<AuthorizationPolicyFields>(root, problems).map(|fields| {
            Object::AuthorizationPolicy(authorization_policy::convert(namespace, &fields, root, problems))
        }),
        Kind::NetworkPolicy => fields::<NetworkPolicyFields>(root, problems)
            .map(|fields| Object::NetworkPolicy(network_policy::convert(namespace, &fields, root, problems))),
        Kind::Route(kind) => Some(Object::Route(Arc::new(route::convert(kind, namespace, name, root, problems)))),
        Kind::ReferenceGrant => {
            return reference_grant::convert(namespace, name, root, problems).map(Object::ReferenceGrant);
        }
        Kind::TrafficPolicy => {
            Some(Object::TrafficPolicy(Arc::new(traffic_policy::convert(namespace, name, root, problems))))
        }
    };
    converted.or_else(|| salvage(kind, namespace, name, root, true))
}

/// What is left of an object whose fields could not be read; of its tree something may be missing unless it `is_whole`. Of a slice nothing: only
/// its endpoints are missing.
fn salvage(kind: Kind, namespace: &str, name: &str, root: &Node<'_>, is_whole: bool) -> Option<Object> {
    match kind {
        Kind::Namespace => Some(Object::Namespace(Namespace::salvage(name, root, is_whole))),
        Kind::Pod => Some(Object::Pod(Box::new(Pod::salvage(namespace, name, root, is_whole)))),
        Kind::Service => Some(Object::Service(service::salvage(namespace, name, root))),
        // Of a grant nothing: it grants nothing. Routes and TrafficPolicies are salvaged where they are converted.
        Kind::EndpointSlice | Kind::ReferenceGrant | Kind::Route(_) | Kind::TrafficPolicy => None,
        Kind::Mesh => Some(Object::Mesh(None)),
        Kind::MeshTls => Some(Object::MeshTls(MeshTls::salvage(namespace, name, root))),
        Kind::AuthorizationPolicy => {
            let policy = authorization_policy::salvage(namespace, name, root);
            Some(Object::AuthorizationPolicy(Dated::new(None, policy)))
        }
        Kind::NetworkPolicy => {
            let policy = network_policy::salvage(namespace, name, root);
            Some(Object::NetworkPolicy(Dated::new(None, policy)))
        }
    }
}

pub(crate) fn name_of(namespace: &str, name: &str) -> String {
    match (namespace, name) {
        (_, "") => String::new(),
        ("", name) => name.to_owned(),
        (namespace, name) => format!("{namespace}/{name}"),
    }
}

#[cfg(test)]
#[path = "object_tests.rs"]
mod tests;
