//! `networking.k8s.io/v1 NetworkPolicy`, for traffic that an agent hands over on its node and no network sees (FEATURES C3).
//!
//! Only TCP is handed over, so ports of other protocols never match; a policy that names only such isolates all the same.

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::IpNet;

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
