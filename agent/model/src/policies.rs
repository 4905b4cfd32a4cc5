//! The policies of a snapshot, by the pods and Services they speak of: what is asked about one pod does not depend on how many others there
//! are.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::network_policy::NetworkPolicy;
use crate::policy::{AuthorizationPolicy, PortAccess};
use crate::service::{Service, ServiceKey};
use crate::sharded::Sharded;
use crate::snapshot::Snapshot;
use crate::workload::{Labels, PodUid};

/// Namespace and name of a policy.
pub type PolicyKey = (Arc<str>, Arc<str>);

/// The policies that select a pod, by namespace and name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkloadPolicies {
    /// Those that speak of its ports, but for those whose target is a Service.
    pub authorization: Vec<Arc<AuthorizationPolicy>>,
    /// Those that isolate it.
    pub network: Vec<Arc<NetworkPolicy>>,
}

impl WorkloadPolicies {
    /// Whether none does.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.authorization.is_empty() && self.network.is_empty()
    }
}

/// Changes of policies: desired state by key, `None` removes. Of two entries with one key the later counts.
#[derive(Clone, Debug, Default)]
pub struct PolicyDelta {
    /// AuthorizationPolicies.
    pub authorization: Vec<(PolicyKey, Option<Arc<AuthorizationPolicy>>)>,
    /// NetworkPolicies.
    pub network: Vec<(PolicyKey, Option<Arc<NetworkPolicy>>)>,
    /// What selects a pod.
    pub workloads: Vec<(PodUid, Option<WorkloadPolicies>)>,
    /// AuthorizationPolicies whose target is a Service.
    pub services: Vec<(ServiceKey, Option<Vec<Arc<AuthorizationPolicy>>>)>,
    /// Labels of namespaces.
    pub namespaces: Vec<(Arc<str>, Option<Arc<Labels>>)>,
}

impl PolicyDelta {
    /// Whether applying it would change nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.authorization.is_empty()
            && self.network.is_empty()
            && self.workloads.is_empty()
            && self.services.is_empty()
            && self.namespaces.is_empty()
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Policies {
    authorization: Sharded<PolicyKey, Arc<AuthorizationPolicy>>,
    network: Sharded<PolicyKey, Arc<NetworkPolicy>>,
    workloads: Sharded<PodUid, Arc<WorkloadPolicies>>,
    services: Sharded<ServiceKey, Arc<[Arc<AuthorizationPolicy>]>>,
    namespaces: Sharded<Arc<str>, Arc<Labels>>,
}

impl Policies {
    pub(crate) fn apply(&mut self, delta: PolicyDelta) {
        set(&mut self.authorization, delta.authorization);
        set(&mut self.network, delta.network);
        set(
            &mut self.workloads,
            delta.workloads.into_iter().map(|(uid, of)| (uid, of.filter(|p| !p.is_empty()).map(Arc::new))),
        );
        let services = delta.services.into_iter();
        set(&mut self.services, services.map(|(key, of)| (key, of.filter(|list| !list.is_empty()).map(Arc::from))));
        set(&mut self.namespaces, delta.namespaces);
    }

    /// Whether a decision may depend on pods besides by what selects them: on labels of peers, or on who owns an address.
    pub(crate) fn depend_on_pods(&self) -> bool {
        self.network.len() > 0 || self.depend_on_services()
    }

    /// Whether a decision may depend on where Services lead.
    pub(crate) fn depend_on_services(&self) -> bool {
        self.services.len() > 0
    }
}

fn set<K: std::hash::Hash + Eq + Clone, V: Clone>(
    map: &mut Sharded<K, V>,
    entries: impl IntoIterator<Item = (K, Option<V>)>,
) {
    for (key, value) in entries {
        match value {
            Some(value) => map.insert(key, value),
            None => map.remove(&key),
        }
    }
}

impl Snapshot {
    /// What applies to connections to an address of a pod: the policies that select the pod, and those of the Services that lead to this very
    /// address and port.
    #[must_use]
    pub fn port_access(&self, pod: &PodUid, addr: SocketAddr) -> PortAccess {
        let namespace = self.workload(pod).map_or("", |pod| &pod.namespace);
        self.port_access_of(self.policies_of(pod).map(|policies| &**policies), namespace, addr)
    }

    /// The same for a pod of a namespace that these policies select: one whose object is gone keeps those it had.
    #[must_use]
    pub fn port_access_of(&self, of_pod: Option<&WorkloadPolicies>, namespace: &str, addr: SocketAddr) -> PortAccess {
        let of_pod = of_pod.map_or(&[][..], |policies| &policies.authorization);
        if self.policies.services.len() == 0 {
            return PortAccess::new(of_pod, addr.port());
        }
        // Anyone may write the address of another namespace's pod into an EndpointSlice; a policy speaks for its own namespace only.
        let is_own = |service: &&Arc<Service>| *service.namespace == *namespace;
        let services = self.services_at(addr).filter(is_own);
        let of_services = services.filter_map(|service| self.policies.services.get(&service.key()));
        let of_services: Vec<_> = of_services.flat_map(|list| list.iter()).collect();
        PortAccess::new(of_pod.iter().chain(of_services), addr.port())
    }

    /// The policies that select a pod, but for AuthorizationPolicies whose target is a Service.
    #[must_use]
    pub fn policies_of(&self, pod: &PodUid) -> Option<&Arc<WorkloadPolicies>> {
        self.policies.workloads.get(pod)
    }

    /// The AuthorizationPolicies whose target is a Service.
    #[must_use]
    pub fn policies_of_service(&self, service: &ServiceKey) -> &[Arc<AuthorizationPolicy>] {
        self.policies.services.get(service).map_or(&[], |list| list)
    }

    /// All AuthorizationPolicies, in no particular order.
    pub fn authorization_policies(&self) -> impl Iterator<Item = &Arc<AuthorizationPolicy>> {
        self.policies.authorization.values()
    }

    /// All NetworkPolicies, in no particular order.
    pub fn network_policies(&self) -> impl Iterator<Item = &Arc<NetworkPolicy>> {
        self.policies.network.values()
    }

    /// The labels of a namespace, if it is known.
    #[must_use]
    pub fn namespace_labels(&self, namespace: &str) -> Option<&Arc<Labels>> {
        self.policies.namespaces.get(&Arc::from(namespace))
    }
}
