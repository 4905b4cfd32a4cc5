//! `networking.k8s.io/v1 NetworkPolicy`, for traffic that an agent hands over on its node, where no network policy engine sees it (FEATURES C3).
//!
//! What it means and what is refused is as in Kubernetes 1.33 (`k8s.io/api/networking/v1`, `pkg/apis/networking/validation`): an absent field and
//! an empty list are the same there, and a rule without peers is everybody's. Unlike there a field that nobody knows is refused, as it would be
//! with `kubectl` and its strict validation. Of a rejected object so much is left that the pods it selects are isolated both ways (DESIGN §7).

use std::collections::BTreeMap;
use std::sync::Arc;

use heddle_model::network_policy::{
    LabelSelector, NetworkPeer, NetworkPolicy, NetworkPort, NetworkRule, Operator, Requirement,
};
use ipnet::IpNet;
use serde::de::IgnoredAny;

use crate::de;
use crate::meta::{self, ObjectMeta};
use crate::node::{Node, shortened};
use crate::object::Dated;
use crate::problem::Problems;
use crate::selector;
use crate::service::IntOrString;

/// Most entries of `ingress` and of `egress`.
pub const RULES_MAX: usize = 1024;
/// Most entries of any other list in a rule.
pub const LISTED_MAX: usize = 16_384;
/// Most entries of `matchExpressions`, and of the `values` of one.
pub const EXPRESSIONS_MAX: usize = 1024;

/// A NetworkPolicy.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NetworkPolicyFields {
    /// `apiVersion`.
    pub api_version: String,
    /// `kind`.
    pub kind: String,
    /// `metadata`.
    pub metadata: ObjectMeta,
    /// `spec`.
    pub spec: NetworkPolicySpec,
    /// `status`, which old API servers wrote.
    pub status: IgnoredAny,
}

/// `spec` of a NetworkPolicy.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NetworkPolicySpec {
    /// Whom it isolates; without it every pod of the namespace.
    pub pod_selector: LabelSelectorFields,
    /// `Ingress`, `Egress`; where it is empty the former, and the latter if there are egress rules.
    pub policy_types: Vec<String>,
    /// Who may call.
    pub ingress: Vec<IngressFields>,
    /// Who may be called.
    pub egress: Vec<EgressFields>,
}

/// An item of `spec.ingress`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IngressFields {
    /// Callers; everybody where it is empty.
    pub from: Vec<PeerFields>,
    /// Ports; all where it is empty.
    pub ports: Vec<PortFields>,
}

/// An item of `spec.egress`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EgressFields {
    /// Who is called; everybody where it is empty.
    pub to: Vec<PeerFields>,
    /// Ports; all where it is empty.
    pub ports: Vec<PortFields>,
}

/// An item of `from` or `to`: `ipBlock`, or one or both of the others.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PeerFields {
    /// Pods, of the policy's namespace or of those that `namespaceSelector` selects.
    pub pod_selector: Option<LabelSelectorFields>,
    /// All pods of these namespaces, or those that `podSelector` selects.
    pub namespace_selector: Option<LabelSelectorFields>,
    /// Addresses.
    pub ip_block: Option<IpBlockFields>,
}

/// `ipBlock`.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IpBlockFields {
    /// A network.
    pub cidr: String,
    /// Parts of it that are not meant.
    #[serde(default)]
    pub except: Vec<String>,
}

/// An item of `ports`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PortFields {
    /// `TCP` (default), `UDP` or `SCTP`.
    pub protocol: Option<String>,
    /// A number, or the name a container of the called pod gives one; all ports without it.
    pub port: Option<IntOrString>,
    /// The last of a range that begins at `port`.
    pub end_port: Option<i64>,
}

/// `metav1.LabelSelector`.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LabelSelectorFields {
    /// Labels with exactly these values.
    pub match_labels: BTreeMap<String, String>,
    /// What else has to hold.
    pub match_expressions: Vec<RequirementFields>,
}

/// An item of `matchExpressions`.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequirementFields {
    /// The label.
    pub key: String,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`.
    pub operator: String,
    /// Of `In` and `NotIn`.
    #[serde(default)]
    pub values: Vec<String>,
}

pub(crate) fn convert(
    namespace: &str,
    fields: &NetworkPolicyFields,
    root: &Node<'_>,
    problems: &mut Problems,
) -> Dated<NetworkPolicy> {
    let NetworkPolicyFields { metadata, spec, .. } = fields;
    let created = metadata.created(problems);
    let path = "spec.podSelector";
    let pods = spec.pod_selector.convert(root.at(&["spec", "podSelector"]), path, problems);
    let (has_ingress, has_egress) = policy_types(spec, problems);
    let node = |field: &str| root.at(&["spec", field]);
    let ingress: Vec<_> = spec.ingress.iter().map(|rule| ("from", &rule.from, &rule.ports)).collect();
    let egress: Vec<_> = spec.egress.iter().map(|rule| ("to", &rule.to, &rule.ports)).collect();
    // Checked also where `policyTypes` takes the effect from them.
    let ingress = rules("spec.ingress", &ingress, node("ingress"), problems);
    let egress = rules("spec.egress", &egress, node("egress"), problems);
    if !problems.errors.is_empty() {
        return Dated::new(created, salvage(namespace, &metadata.name, root));
    }
    let policy = NetworkPolicy {
        namespace: namespace.into(),
        name: metadata.name.as_str().into(),
        pods,
        ingress: has_ingress.then_some(ingress),
        egress: has_egress.then_some(egress),
        is_rejected: false,
    };
    Dated::new(created, policy)
}

/// What is left of one that was rejected: the pods it selects are isolated both ways, all of the namespace if nobody can tell which.
pub(crate) fn salvage(namespace: &str, name: &str, root: &Node<'_>) -> NetworkPolicy {
    // Of two selectors, or two values in one, nobody can say which was meant.
    let spec = root.get("spec").filter(|spec| !root.is_contested("spec") && !spec.is_contested("podSelector"));
    let selector = spec.and_then(|spec| spec.get("podSelector")).filter(|node| node.duplicates().is_empty());
    let pods = selector.and_then(|node| {
        let fields: LabelSelectorFields = de::from_node(node).ok()?;
        let mut problems = Problems::default();
        let pods = fields.convert(Some(node), "", &mut problems);
        problems.errors.is_empty().then_some(pods)
    });
    NetworkPolicy {
        namespace: namespace.into(),
        name: name.into(),
        pods: pods.unwrap_or_default(),
        ingress: Some(Vec::new()),
        egress: Some(Vec::new()),
        is_rejected: true,
    }
}

/// Whether it speaks of ingress, and of egress (`SetDefaults_NetworkPolicy`).
fn policy_types(spec: &NetworkPolicySpec, problems: &mut Problems) -> (bool, bool) {
    let types = &spec.policy_types;
    if types.is_empty() {
        return (true, !spec.egress.is_empty());
    }
    if types.len() > 2 {
        problems.error("spec.policyTypes", format!("{} entries: `Ingress` and `Egress` are all", types.len()));
    }
    let words = [("Ingress", (true, false)), ("Egress", (false, true))];
    let mut all = (false, false);
    for (index, text) in types.iter().enumerate().take(2) {
        if let Some((ingress, egress)) = meta::one_of(problems, &format!("spec.policyTypes[{index}]"), text, &words) {
            all = (all.0 || ingress, all.1 || egress);
        }
    }
    all
}

/// `ingress` or `egress`, each rule as the name of its peers' field, its peers and its ports.
fn rules(
    path: &str,
    rules: &[(&str, &Vec<PeerFields>, &Vec<PortFields>)],
    node: Option<&Node<'_>>,
    problems: &mut Problems,
) -> Vec<NetworkRule> {
    bounded(rules.len(), RULES_MAX, path, problems);
    let mut converted = Vec::new();
    for (index, (field, peers, ports)) in rules.iter().enumerate().take(RULES_MAX) {
        let node = node.and_then(|node| node.items().get(index)?.get(field));
        let peers = listed(&format!("{path}[{index}].{field}"), peers, problems, |at, path, item, problems| {
            peer(path, item, node.and_then(|node| node.items().get(at)), problems)
        });
        let has_ports = !ports.is_empty();
        let ports = listed(&format!("{path}[{index}].ports"), ports, problems, |_, path, item, problems| {
            port(path, item, problems)
        });
        converted.push(NetworkRule { peers, ports: has_ports.then_some(ports) });
    }
    converted
}

fn listed<F, T>(
    path: &str,
    items: &[F],
    problems: &mut Problems,
    convert: impl Fn(usize, &str, &F, &mut Problems) -> Option<T>,
) -> Vec<T> {
    bounded(items.len(), LISTED_MAX, path, problems);
    let numbered = items.iter().enumerate().take(LISTED_MAX);
    numbered.filter_map(|(index, item)| convert(index, &format!("{path}[{index}]"), item, problems)).collect()
}

fn peer(path: &str, peer: &PeerFields, node: Option<&Node<'_>>, problems: &mut Problems) -> Option<NetworkPeer> {
    let PeerFields { pod_selector, namespace_selector, ip_block } = peer;
    let selector = |field: &str, selector: &Option<LabelSelectorFields>, problems: &mut Problems| {
        let node = node.and_then(|node| node.get(field));
        selector.as_ref().map(|selector| selector.convert(node, &format!("{path}.{field}"), problems))
    };
    let pods = selector("podSelector", pod_selector, problems);
    let namespaces = selector("namespaceSelector", namespace_selector, problems);
    match (pods, namespaces, ip_block) {
        (None, None, Some(block)) => ip_block_of(&format!("{path}.ipBlock"), block, problems),
        (_, _, Some(_)) => {
            problems.error(format!("{path}.ipBlock"), "beside a selector: one or the other, or an entry for each");
            None
        }
        (None, None, None) => {
            let message = "says nothing: one of `podSelector`, `namespaceSelector`, `ipBlock` is needed";
            problems.error(path, message);
            None
        }
        (pods, namespaces, None) => Some(NetworkPeer::Pods { namespaces, pods: pods.unwrap_or_default() }),
    }
}

fn ip_block_of(path: &str, block: &IpBlockFields, problems: &mut Problems) -> Option<NetworkPeer> {
    let cidr = cidr(&format!("{path}.cidr"), &block.cidr, problems);
    let except = listed(&format!("{path}.except"), &block.except, problems, |_, path, text, problems| {
        let part = self::cidr(path, text, problems)?;
        let within = cidr.is_none_or(|cidr| cidr.contains(&part) && cidr != part);
        if !within {
            problems.error(path, format!("`{}` is no part of `{}`", shortened(text), shortened(&block.cidr)));
        }
        Some(part)
    });
    Some(NetworkPeer::Block { cidr: cidr?, except })
}

fn cidr(path: &str, text: &str, problems: &mut Problems) -> Option<IpNet> {
    match text.parse() {
        Ok(net) => Some(meta::canonical(net)),
        Err(_) => {
            problems.error(path, format!("`{}` is no network such as `10.0.0.0/8`", shortened(text)));
            None
        }
    }
}

/// A port for TCP; of other protocols it is checked, and then there is none.
fn port(path: &str, fields: &PortFields, problems: &mut Problems) -> Option<NetworkPort> {
    let at = |field: &str| format!("{path}.{field}");
    let words = [("TCP", true), ("UDP", false), ("SCTP", false)];
    let protocol = fields.protocol.as_deref().unwrap_or("TCP");
    let is_tcp = meta::one_of(problems, &at("protocol"), protocol, &words)?;
    let port = match (&fields.port, fields.end_port) {
        (None, None) => NetworkPort::Range(1, u16::MAX),
        (Some(IntOrString::Int(number)), end) => {
            let first = meta::port(problems, at("port"), *number)?;
            let last = end.map_or(Some(first), |end| meta::port(problems, at("endPort"), end))?;
            if last < first {
                problems.error(at("endPort"), format!("{last} is before `port`, {first}"));
                return None;
            }
            NetworkPort::Range(first, last)
        }
        (_, Some(_)) => {
            problems.error(at("endPort"), "needs a number as `port`, where the range begins");
            return None;
        }
        (Some(IntOrString::String(name)), None) => {
            if !meta::is_port_name(name) {
                let message = "no name of a port: at most 15 lower-case letters, digits, `-`, one letter at least";
                problems.error(at("port"), format!("`{}` is {message}", shortened(name)));
                return None;
            }
            NetworkPort::Named(name.as_str().into())
        }
    };
    is_tcp.then_some(port)
}

impl LabelSelectorFields {
    /// The selector at `path`, whose node is `node`; what is wrong with it is told.
    pub(crate) fn convert(&self, node: Option<&Node<'_>>, path: &str, problems: &mut Problems) -> LabelSelector {
        let labels = node.and_then(|node| node.get("matchLabels"));
        selector::check(&self.match_labels, labels, &format!("{path}.matchLabels"), problems);
        let text = |text: &String| Arc::<str>::from(text.as_str());
        let label = |(key, value): (&String, &String)| Requirement {
            key: text(key),
            operator: Operator::In([text(value)].into_iter().collect()),
        };
        let mut requirements: Vec<Requirement> = self.match_labels.iter().map(label).collect();
        let path = format!("{path}.matchExpressions");
        bounded(self.match_expressions.len(), EXPRESSIONS_MAX, &path, problems);
        for (index, item) in self.match_expressions.iter().enumerate().take(EXPRESSIONS_MAX) {
            requirements.extend(item.convert(&format!("{path}[{index}]"), problems));
        }
        LabelSelector(requirements)
    }
}

impl RequirementFields {
    fn convert(&self, path: &str, problems: &mut Problems) -> Option<Requirement> {
        let before = problems.errors.len();
        let Self { key, operator, values } = self;
        if !meta::is_label_key(key) {
            problems.error(format!("{path}.key"), format!("`{}` is no name of a label", shortened(key)));
        }
        let at = format!("{path}.values");
        bounded(values.len(), EXPRESSIONS_MAX, &at, problems);
        for (index, value) in values.iter().enumerate().filter(|(_, value)| !meta::is_label_value(value)) {
            problems.error(format!("{at}[{index}]"), format!("`{}` is no label value", shortened(value)));
        }
        let words = [("In", true), ("NotIn", true), ("Exists", false), ("DoesNotExist", false)];
        match (meta::one_of(problems, &format!("{path}.operator"), operator, &words)?, values.is_empty()) {
            (true, true) => problems.error(at, format!("`{operator}` needs values: one at least")),
            (false, false) => problems.error(at, format!("`{operator}` takes no values: leave them out")),
            _ => {}
        }
        if problems.errors.len() > before {
            return None;
        }
        let values = values.iter().map(|value| Arc::from(value.as_str())).collect();
        let operator = match operator.as_str() {
            "In" => Operator::In(values),
            "NotIn" => Operator::NotIn(values),
            "Exists" => Operator::Exists,
            _ => Operator::DoesNotExist,
        };
        Some(Requirement { key: key.as_str().into(), operator })
    }
}

fn bounded(count: usize, max: usize, path: &str, problems: &mut Problems) {
    if count > max {
        problems.error(path, format!("{count} entries: at most {max}"));
    }
}

#[cfg(test)]
#[path = "network_policy_tests.rs"]
mod tests;
