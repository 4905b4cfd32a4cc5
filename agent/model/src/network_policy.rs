//! `networking.k8s.io/v1 NetworkPolicy`, for traffic that an agent hands over on its node and no network sees (FEATURES C3).
//!
//! Only TCP is handed over, so ports of other protocols never match; a policy that names only such isolates all the same.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::policies::WorkloadPolicies;
use crate::snapshot::Snapshot;
use crate::workload::{Labels, PodUid, Workload, all_known};

/// One NetworkPolicy. Names of its fields are those of the object's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// Namespace: it isolates pods there only.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// `podSelector`: whom it isolates.
    pub pods: LabelSelector,
    /// Who may call them: rules of which one has to match; `None` where it says nothing of ingress.
    pub ingress: Option<Vec<NetworkRule>>,
    /// Whom they may call: the same for egress.
    pub egress: Option<Vec<NetworkRule>>,
    /// The object was rejected: nothing matches, both ways (DESIGN §7).
    pub is_rejected: bool,
}

/// An item of `ingress` or `egress`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkRule {
    /// `from` or `to`: one has to match; without any, everybody does.
    pub peers: Vec<NetworkPeer>,
    /// `ports` of the called pod: one has to match; `None` where every port does.
    pub ports: Option<Vec<NetworkPort>>,
}

/// An item of `from` or `to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkPeer {
    /// Pods.
    Pods {
        /// `namespaceSelector`; `None`: the policy's own namespace.
        namespaces: Option<LabelSelector>,
        /// `podSelector`; an empty one is every pod.
        pods: LabelSelector,
    },
    /// `ipBlock`.
    Block {
        /// `cidr`.
        cidr: IpNet,
        /// `except`.
        except: Vec<IpNet>,
    },
}

/// An item of `ports`; of those for TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkPort {
    /// Numbers, both included: `port` to `endPort`.
    Range(u16, u16),
    /// The number a container of the called pod gives this name.
    Named(Arc<str>),
}

/// A label selector (`metav1.LabelSelector`): everything in it has to hold; an empty one holds for everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector(pub Vec<Requirement>);

/// One requirement of a selector; `matchLabels` are those with one value `In`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The label.
    pub key: Arc<str>,
    /// What has to hold of it.
    pub operator: Operator,
}

/// `operator` with its `values`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operator {
    /// It is there and has one of these values.
    In(BTreeSet<Arc<str>>),
    /// It is not there, or has none of these values.
    NotIn(BTreeSet<Arc<str>>),
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
}

/// One end of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Party<'a> {
    /// The pod, if it is one.
    pub workload: Option<&'a Workload>,
    /// Labels of its namespace. What is not known matches a selector only that asks for nothing.
    pub namespace_labels: Option<&'a Labels>,
    /// Its address.
    pub address: IpAddr,
}

/// What NetworkPolicies say of a connection, in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkDecision<'a> {
    /// Let through.
    pub is_allowed: bool,
    /// What it follows from.
    pub why: NetworkWhy<'a>,
}

/// What a decision of NetworkPolicies follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkWhy<'a> {
    /// A pod may always talk to itself.
    Itself,
    /// No policy isolates the pod in this direction.
    NotIsolated,
    /// This rule of this policy, by its number in `ingress` or `egress`.
    Rule(&'a NetworkPolicy, usize),
    /// No rule of any matches; the first policy that isolates the pod.
    NoRule(&'a NetworkPolicy),
    /// No rule of any matches, and those of this one cannot be known: it was rejected.
    Rejected(&'a NetworkPolicy),
}

/// Whether `to` may be called. `policies`: those that select it; `port`: the one it listens on.
#[must_use]
pub fn ingress<'a>(
    policies: &'a [Arc<NetworkPolicy>],
    from: &Party<'_>,
    to: &Party<'_>,
    port: u16,
) -> NetworkDecision<'a> {
    decide(policies, |policy| policy.ingress.as_deref(), (from, to), from, (to, port))
}

/// Whether `from` may call. `policies`: those that select it; `port`: the one that `to` listens on.
#[must_use]
pub fn egress<'a>(
    policies: &'a [Arc<NetworkPolicy>],
    from: &Party<'_>,
    to: &Party<'_>,
    port: u16,
) -> NetworkDecision<'a> {
    decide(policies, |policy| policy.egress.as_deref(), (from, to), to, (to, port))
}

/// What is said of a connection between two pods at the side of the caller, and at that of the called one: both have to allow it.
#[must_use]
pub fn between<'a>(
    snapshot: &'a Snapshot,
    from: &Workload,
    from_address: IpAddr,
    to: &Workload,
    to_addr: SocketAddr,
) -> (NetworkDecision<'a>, NetworkDecision<'a>) {
    let policies = |pod: &PodUid| snapshot.policies_of(pod).map(|policies| &**policies);
    let (caller, called) = ((from, policies(&from.uid)), (to, policies(&to.uid)));
    between_those(snapshot, caller, from_address, called, to_addr)
}

/// The same for pods with the policies that select them: one whose object is gone keeps those it had.
#[must_use]
pub fn between_those<'a>(
    snapshot: &Snapshot,
    (from, of_caller): (&Workload, Option<&'a WorkloadPolicies>),
    from_address: IpAddr,
    (to, of_called): (&Workload, Option<&'a WorkloadPolicies>),
    to_addr: SocketAddr,
) -> (NetworkDecision<'a>, NetworkDecision<'a>) {
    let party = |workload, address| Party::of(snapshot, workload, address);
    let (caller, called) = (party(from, from_address), party(to, to_addr.ip()));
    let network = |policies: Option<&'a WorkloadPolicies>| policies.map_or(&[][..], |policies| &policies.network);
    (
        egress(network(of_caller), &caller, &called, to_addr.port()),
        ingress(network(of_called), &caller, &called, to_addr.port()),
    )
}

fn decide<'a>(
    policies: &'a [Arc<NetworkPolicy>],
    rules: impl Fn(&'a NetworkPolicy) -> Option<&'a [NetworkRule]>,
    ends: (&Party<'_>, &Party<'_>),
    peer: &Party<'_>,
    (called, port): (&Party<'_>, u16),
) -> NetworkDecision<'a> {
    if ends.0.is(ends.1) {
        return NetworkDecision { is_allowed: true, why: NetworkWhy::Itself };
    }
    let mut why = NetworkWhy::NotIsolated;
    for policy in policies {
        let rules = if policy.is_rejected { Some(&[][..]) } else { rules(policy) };
        let Some(rules) = rules else { continue };
        let is_matching = |rule: &NetworkRule| rule.matches(&policy.namespace, peer, (called, port));
        if let Some(rule) = rules.iter().position(is_matching) {
            return NetworkDecision { is_allowed: true, why: NetworkWhy::Rule(policy, rule) };
        }
        why = match why {
            NetworkWhy::Rejected(_) => why,
            _ if policy.is_rejected => NetworkWhy::Rejected(policy),
            NetworkWhy::NotIsolated => NetworkWhy::NoRule(policy),
            _ => why,
        };
    }
    NetworkDecision { is_allowed: why == NetworkWhy::NotIsolated, why }
}

impl<'a> Party<'a> {
    /// A pod at one of its addresses.
    #[must_use]
    pub fn of(snapshot: &'a Snapshot, workload: &'a Workload, address: IpAddr) -> Self {
        let namespace_labels = snapshot.namespace_labels(&workload.namespace).map(|labels| &**labels);
        Self { workload: Some(workload), namespace_labels, address }
    }

    /// The pod that can be selected. One in the node's network is not told from the node, and none is where all of it has ended.
    fn pod(&self) -> Option<&'a Workload> {
        self.workload.filter(|workload| workload.owns_addresses())
    }

    /// Whether both are the same pod, or meet where only one pod is.
    fn is(&self, other: &Self) -> bool {
        let is_one = self.workload.zip(other.workload).is_some_and(|(a, b)| a.uid == b.uid);
        is_one || [self, other].iter().any(|party| party.address.to_canonical().is_loopback())
    }
}

impl NetworkRule {
    fn matches(&self, namespace: &str, peer: &Party<'_>, (called, port): (&Party<'_>, u16)) -> bool {
        (self.peers.is_empty() || self.peers.iter().any(|item| item.matches(namespace, peer)))
            && self.ports.as_ref().is_none_or(|ports| ports.iter().any(|item| item.matches(called, port)))
    }
}

impl NetworkPeer {
    fn matches(&self, namespace: &str, peer: &Party<'_>) -> bool {
        match self {
            Self::Pods { namespaces, pods } => peer.pod().is_some_and(|pod| {
                let is_of_namespace = match (namespaces, peer.namespace_labels) {
                    (None, _) => *pod.namespace == *namespace,
                    (Some(selector), Some(labels)) => selector.matches(labels),
                    (Some(selector), None) => selector.0.is_empty(),
                };
                is_of_namespace && pods.matches(&pod.labels)
            }),
            Self::Block { cidr, except } => {
                let address = peer.address.to_canonical();
                cidr.contains(&address) && !except.iter().any(|net| net.contains(&address))
            }
        }
    }
}

impl NetworkPort {
    fn matches(&self, called: &Party<'_>, port: u16) -> bool {
        match self {
            Self::Range(first, last) => (*first..=*last).contains(&port),
            Self::Named(wanted) => called
                .pod()
                .is_some_and(|pod| pod.named_ports.iter().any(|(name, number)| name == wanted && *number == port)),
        }
    }
}

impl LabelSelector {
    /// Whether all of it holds for these labels.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| requirement.holds(labels))
    }

    /// The same of a pod of whose labels these are known and others may not be; `None`: it depends on those.
    #[must_use]
    pub fn matches_knowing(&self, known: &Labels) -> Option<bool> {
        let is_known = |requirement: &&Requirement| known.contains_key(&*requirement.key);
        all_known(self.0.iter().map(|requirement| Some(requirement).filter(is_known).map(|r| r.holds(known))))
    }
}

impl Requirement {
    fn holds(&self, labels: &Labels) -> bool {
        let value = labels.get(&*self.key).map(String::as_str);
        match &self.operator {
            Operator::In(values) => value.is_some_and(|value| values.contains(value)),
            Operator::NotIn(values) => !value.is_some_and(|value| values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

#[cfg(test)]
#[path = "network_policy_tests.rs"]
mod tests;
