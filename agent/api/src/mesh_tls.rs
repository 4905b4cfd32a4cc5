//! `heddle.dev/v1alpha1 MeshTLS`: what ports of a namespace's or of selected pods take (FEATURES B3).
//!
//! Of a rejected object so much is left that its targets are strict: a typing error must not open a port.

use std::collections::BTreeMap;
use std::sync::Arc;

use heddle_model::workload::{Labels, has_labels};
use heddle_model::{MtlsMode, MtlsModes, Timestamp};

use crate::mesh::MTLS_MODES;
use crate::meta::{self, ObjectMeta};
use crate::node::{Node, Value};
use crate::pod::KnownLabels;
use crate::problem::Problems;
use crate::schema;
use crate::selector::{self, SelectorFields, only};

/// Most entries of `spec.ports`.
pub const PORTS_MAX: usize = 128;

/// A MeshTLS.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MeshTlsFields {
    /// `apiVersion`.
    pub api_version: String,
    /// `kind`.
    pub kind: String,
    /// `metadata`.
    pub metadata: ObjectMeta,
    /// `spec`.
    pub spec: MeshTlsSpec,
}

/// `spec` of a MeshTLS.
#[derive(Debug, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MeshTlsSpec {
    /// Which pods of the namespace; all without it.
    pub selector: SelectorFields,
    /// `Strict`, `Permissive` or `Disabled`: mode of the ports that `ports` does not name.
    #[schemars(extend("enum" = schema::words(&MTLS_MODES)))]
    pub mode: Option<String>,
    /// Modes of single target ports, each port once.
    #[schemars(length(max = PORTS_MAX))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["port"]))]
    pub ports: Vec<PortFields>,
}

/// An item of `spec.ports`.
#[derive(Debug, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortFields {
    /// Target port, which the container listens on.
    #[schemars(range(min = 1, max = u16::MAX))]
    pub port: i64,
    /// `Strict`, `Permissive` or `Disabled`.
    #[schemars(extend("enum" = schema::words(&MTLS_MODES)))]
    pub mode: String,
}

/// A MeshTLS as the mesh sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshTls {
    /// Namespace: it speaks for pods there only.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// `metadata.creationTimestamp`.
    pub created: Option<Timestamp>,
    /// Which pods.
    pub selector: Selector,
    /// What it says of them.
    pub says: Says,
}

/// Which pods of its namespace a MeshTLS speaks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// All of them.
    Namespace,
    /// Those with these labels; at least one.
    Labels(Labels),
    /// Nobody can tell, as the object is invalid. It might have been any: all of them, with the weight of one that selects.
    Unreadable,
}

/// What a MeshTLS says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Says {
    /// Modes.
    Modes {
        /// `spec.mode`.
        mode: Option<MtlsMode>,
        /// `spec.ports`, in their order, each port once.
        ports: Vec<(u16, MtlsMode)>,
    },
    /// The object was rejected: every port of its targets is strict (DESIGN §7).
    Rejected,
}

impl Selector {
    /// Whether a pod of the object's namespace is meant.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        match self {
            Self::Namespace | Self::Unreadable => true,
            Self::Labels(wanted) => wanted.iter().all(|(key, value)| labels.get(key) == Some(value)),
        }
    }

    /// The same of a pod whose labels may not all be known; `None`: it depends on those that are not.
    #[must_use]
    pub fn selects(&self, pod: KnownLabels<'_>) -> Option<bool> {
        match self {
            Self::Labels(wanted) if !pod.are_all => has_labels(wanted, pod.labels),
            _ => Some(self.matches(pod.labels)),
        }
    }

    /// Whether it outweighs what is said for the whole namespace.
    #[must_use]
    pub const fn selects_workloads(&self) -> bool {
        !matches!(self, Self::Namespace)
    }
}

/// That one object's word is not in force for a pod, as another of the same level is stricter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Overruled {
    /// Whose.
    pub name: Arc<str>,
    /// Path of the field.
    pub field: String,
    /// What it says.
    pub mode: MtlsMode,
    /// Who is stricter.
    pub by: Arc<str>,
    /// What that one says.
    pub stricter: MtlsMode,
}

/// The modes of a pod for which `objects` speak (in any order), and whose word is not in force.
///
/// The order of weight: a selecting object's port, a selecting object's mode, a namespace-wide one's port, its mode.
/// Of several of one weight the strictest counts.
#[must_use]
pub fn resolve<'a>(objects: impl Iterator<Item = &'a MeshTls> + Clone) -> (MtlsModes, Vec<Overruled>) {
    let mut overruled = Vec::new();
    let mut level = |selecting: bool| {
        Level::of(objects.clone().filter(|o| o.selector.selects_workloads() == selecting), &mut overruled)
    };
    let (workload, namespace) = (level(true), level(false));
    let mut ports = workload.ports;
    if workload.mode.is_none() {
        for (port, mode) in namespace.ports {
            ports.entry(port).or_insert(mode);
        }
    }
    let mode = workload.mode.or(namespace.mode);
    // What is said twice is kept once, so that saying it changes nothing.
    ports.retain(|_, of_port| Some(*of_port) != mode);
    (MtlsModes { mode, ports }, overruled)
}

impl MeshTls {
    /// Whether it makes any port strict.
    #[must_use]
    pub fn is_strict(&self) -> bool {
        self.says == Says::Rejected || words(self).any(|(_, _, mode, _)| mode == MtlsMode::Strict)
    }
}

/// The joint word of objects of one weight.
#[derive(Default)]
struct Level {
    mode: Option<MtlsMode>,
    ports: BTreeMap<u16, MtlsMode>,
}

impl Level {
    fn of<'a>(objects: impl Iterator<Item = &'a MeshTls> + Clone, overruled: &mut Vec<Overruled>) -> Self {
        let rejected = objects.clone().filter(|o| o.says == Says::Rejected).map(|o| &o.name).min();
        // The strictest word on each subject (`None`: all other ports), and whose it is.
        let mut strictest: BTreeMap<Option<u16>, (MtlsMode, &Arc<str>)> = BTreeMap::new();
        for (object, subject, mode, _) in objects.clone().flat_map(words) {
            let word = match rejected {
                Some(rejected) => (MtlsMode::Strict, rejected),
                None => (mode, &object.name),
            };
            let best = strictest.entry(subject).or_insert(word);
            *best = word.min(*best);
        }
        for (object, subject, mode, field) in objects.flat_map(words) {
            if let Some((stricter, by)) = strictest.get(&subject).filter(|(stricter, _)| *stricter < mode) {
                let (name, by) = (Arc::clone(&object.name), Arc::clone(by));
                overruled.push(Overruled { name, field, mode, by, stricter: *stricter });
            }
        }
        if rejected.is_some() {
            return Self { mode: Some(MtlsMode::Strict), ports: BTreeMap::new() };
        }
        let mut level = Self::default();
        for (subject, (mode, _)) in strictest {
            match subject {
                Some(port) => _ = level.ports.insert(port, mode),
                None => level.mode = Some(mode),
            }
        }
        level
    }
}

/// Everything an object says: subject, mode and field.
fn words(object: &MeshTls) -> impl Iterator<Item = (&MeshTls, Option<u16>, MtlsMode, String)> {
    let (mode, ports) = match &object.says {
        Says::Modes { mode, ports } => (*mode, ports.as_slice()),
        Says::Rejected => (None, [].as_slice()),
    };
    let of_ports = ports
        .iter()
        .enumerate()
        .map(move |(index, (port, mode))| (object, Some(*port), *mode, format!("spec.ports[{index}].mode")));
    mode.map(|mode| (object, None, mode, "spec.mode".to_owned())).into_iter().chain(of_ports)
}

impl MeshTls {
    pub(crate) fn convert(namespace: &str, fields: &MeshTlsFields, root: &Node<'_>, problems: &mut Problems) -> Self {
        let MeshTlsFields { metadata, spec, .. } = fields;
        let mode = spec.mode.as_deref().and_then(|text| meta::one_of(problems, "spec.mode", text, &MTLS_MODES));
        if spec.ports.len() > PORTS_MAX {
            problems.error("spec.ports", format!("{} entries: at most {PORTS_MAX}", spec.ports.len()));
        }
        let mut ports = Vec::new();
        for (index, item) in spec.ports.iter().enumerate().take(PORTS_MAX) {
            let path = format!("spec.ports[{index}]");
            let port = meta::port(problems, format!("{path}.port"), item.port);
            let mode = meta::one_of(problems, &format!("{path}.mode"), &item.mode, &MTLS_MODES);
            let (Some(port), Some(mode)) = (port, mode) else { continue };
            if ports.iter().any(|(other, _)| *other == port) {
                problems.error(format!("{path}.port"), format!("{port} is listed already: name each port once"));
            }
            ports.push((port, mode));
        }
        let selector = selected(&spec.selector.match_labels, root, problems);
        if spec.mode.is_none() && spec.ports.is_empty() {
            problems.warn("spec", "has neither `mode` nor `ports`: it has no effect");
        }
        let created = metadata.created(problems);
        let says = if problems.errors.is_empty() { Says::Modes { mode, ports } } else { Says::Rejected };
        Self { namespace: namespace.into(), name: metadata.name.as_str().into(), created, selector, says }
    }

    /// What is left of one that was rejected before its fields were: its targets are strict.
    pub(crate) fn salvage(namespace: &str, name: &str, root: &Node<'_>) -> Self {
        let selector = salvaged_selector(root);
        Self { namespace: namespace.into(), name: name.into(), created: None, selector, says: Says::Rejected }
    }
}

/// The selector of an object whose fields could be read.
fn selected(labels: &Labels, root: &Node<'_>, problems: &mut Problems) -> Selector {
    let before = problems.errors.len();
    let node = root.at(&["spec", "selector", "matchLabels"]);
    selector::check(labels, node, "spec.selector.matchLabels", problems);
    if problems.errors.len() > before { Selector::Unreadable } else { selector_of(labels) }
}

fn selector_of(labels: &Labels) -> Selector {
    if labels.is_empty() { Selector::Namespace } else { Selector::Labels(labels.clone()) }
}

/// The selector, if every part of it can be read.
fn salvaged_selector(root: &Node<'_>) -> Selector {
    let present = |node: &&Node<'_>| node.value != Value::Null;
    let Value::Mapping(fields) = &root.value else { return Selector::Unreadable };
    if root.is_contested("spec") || root.get("spec").is_some_and(|spec| spec.is_contested("selector")) {
        return Selector::Unreadable;
    }
    let Some(spec) = fields.iter().find(|field| field.key == "spec").map(|f| &f.node).filter(present) else {
        return if only(root, META) { Selector::Namespace } else { Selector::Unreadable };
    };
    let Some(of_spec) = spec.get("selector").filter(present) else {
        // A field that nobody knows may be a selector misspelt.
        return if only(spec, &["selector", "mode", "ports"]) { Selector::Namespace } else { Selector::Unreadable };
    };
    selector::salvaged(of_spec).map_or(Selector::Unreadable, |labels| selector_of(&labels))
}

/// The fields of an object without `spec`.
const META: &[&str] = &["apiVersion", "kind", "metadata", "spec"];

#[cfg(test)]
#[path = "mesh_tls_tests.rs"]
mod tests;
