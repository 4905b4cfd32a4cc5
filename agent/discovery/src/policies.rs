//! Which policies speak of which pods and Services, and what of that has not been given out yet.
//!
//! A policy is filed under one label that its selector wants, so that a pod meets those that may select it and not all of its namespace; a
//! change of a policy is told to the pods that it selects or selected, and of those to the ones for which it makes a difference.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use heddle_api::pod::KnownLabels;
use heddle_api::{Key, Kind};
use heddle_model::network_policy::{NetworkPolicy, Operator};
use heddle_model::policy::{Action, AuthorizationPolicy, PortAccess, Rules, Target};
use heddle_model::workload::Labels;
use heddle_model::{PodUid, PolicyDelta, PolicyKey, ServiceKey, WorkloadPolicies};

/// See the module documentation.
#[derive(Debug, Default)]
pub(crate) struct Policies {
    authorization: BySelector<AuthorizationPolicy>,
    network: BySelector<NetworkPolicy>,
    of_services: BTreeMap<ServiceKey, ByName<AuthorizationPolicy>>,
    /// What was last said of each pod of which anything is to be said.
    told: HashMap<PodUid, WorkloadPolicies>,
    changed: Changed,
}

#[derive(Debug, Default)]
struct Changed {
    authorization: BTreeMap<PolicyKey, Option<Arc<AuthorizationPolicy>>>,
    network: BTreeMap<PolicyKey, Option<Arc<NetworkPolicy>>>,
    /// Policies that came or went, by namespace.
    selecting: BTreeMap<Arc<str>, Vec<AnyPolicy>>,
    services: BTreeSet<ServiceKey>,
    namespaces: BTreeMap<Arc<str>, Option<Arc<Labels>>>,
    pods: BTreeSet<PodUid>,
}

/// One that selects pods.
#[derive(Debug)]
enum AnyPolicy {
    Authorization(Arc<AuthorizationPolicy>),
    Network(Arc<NetworkPolicy>),
}

/// What changed for a namespace.
#[derive(Debug)]
pub(crate) struct Touched {
    policies: Vec<AnyPolicy>,
}

impl Touched {
    /// Whether a pod is or may be concerned.
    pub(crate) fn concerns(&self, pod: KnownLabels<'_>) -> bool {
        self.policies.iter().any(|policy| match policy {
            AnyPolicy::Authorization(policy) => policy.selects(pod) != Some(false),
            AnyPolicy::Network(policy) => policy.selects(pod) != Some(false),
        })
    }
}

impl Policies {
    /// Sets an AuthorizationPolicy; `None` removes it.
    pub(crate) fn set_authorization(
        &mut self,
        key: &Key,
        old: Option<&Arc<AuthorizationPolicy>>,
        new: Option<&Arc<AuthorizationPolicy>>,
    ) {
        for (policy, is_present) in [(old, false), (new, true)] {
            let Some(policy) = policy else { continue };
            if let Target::Service(service) = &policy.target {
                let service = (Arc::clone(&key.namespace), Arc::clone(service));
                let of_service = self.of_services.entry(service.clone()).or_default();
                of_service.remove(&policy.name);
                if is_present {
                    of_service.insert(Arc::clone(&policy.name), Arc::clone(policy));
                }
                if of_service.is_empty() {
                    self.of_services.remove(&service);
                }
                self.changed.services.insert(service);
            } else {
                self.authorization.change(policy, is_present);
                let changed = self.changed.selecting.entry(Arc::clone(&key.namespace)).or_default();
                changed.push(AnyPolicy::Authorization(Arc::clone(policy)));
            }
        }
        self.changed.authorization.insert((Arc::clone(&key.namespace), Arc::clone(&key.name)), new.cloned());
    }

    /// Sets a NetworkPolicy; `None` removes it.
    pub(crate) fn set_network(
        &mut self,
        key: &Key,
        old: Option<&Arc<NetworkPolicy>>,
        new: Option<&Arc<NetworkPolicy>>,
    ) {
        for (policy, is_present) in [(old, false), (new, true)] {
            let Some(policy) = policy else { continue };
            self.network.change(policy, is_present);
            let changed = self.changed.selecting.entry(Arc::clone(&key.namespace)).or_default();
            changed.push(AnyPolicy::Network(Arc::clone(policy)));
        }
        self.changed.network.insert((Arc::clone(&key.namespace), Arc::clone(&key.name)), new.cloned());
    }

    /// Sets the labels of a namespace, which selectors of peers ask for; `None` where they are not known.
    pub(crate) fn set_namespace(&mut self, name: &Arc<str>, labels: Option<Arc<Labels>>) {
        self.changed.namespaces.insert(Arc::clone(name), labels);
    }

    /// What a pod is subject to has to be found anew.
    pub(crate) fn touch(&mut self, uid: &PodUid) {
        self.changed.pods.insert(uid.clone());
    }

    /// What changed since it was asked last for all pods of a namespace.
    pub(crate) fn take_touched(&mut self) -> impl Iterator<Item = (Arc<str>, Touched)> + use<> {
        std::mem::take(&mut self.changed.selecting).into_iter().map(|(name, policies)| (name, Touched { policies }))
    }

    /// Services of which policies speak or spoke that changed.
    pub(crate) fn changed_services(&self) -> impl Iterator<Item = &ServiceKey> {
        self.changed.services.iter()
    }

    /// What speaks of a pod by itself. Where nobody can tell, as not all its labels are known, a policy speaks of it as a rejected one does.
    pub(crate) fn of_pod(&self, namespace: &Arc<str>, pod: KnownLabels<'_>) -> WorkloadPolicies {
        WorkloadPolicies {
            authorization: self.authorization.of(namespace, pod),
            network: self.network.of(namespace, pod),
        }
    }

    /// Whether any policy speaks of a Service.
    pub(crate) fn speak_of(&self, service: &ServiceKey) -> bool {
        self.of_services.contains_key(service)
    }

    /// The AuthorizationPolicies of a Service, by name.
    pub(crate) fn of_service(&self, service: &ServiceKey) -> impl Iterator<Item = &Arc<AuthorizationPolicy>> {
        self.of_services.get(service).into_iter().flat_map(BTreeMap::values)
    }

    /// The Services of a namespace of which policies speak.
    pub(crate) fn services_in(&self, namespace: &Arc<str>) -> impl Iterator<Item = &ServiceKey> {
        let from = (Arc::clone(namespace), Arc::default());
        self.of_services.range(from..).map(|(service, _)| service).take_while(move |(other, _)| other == namespace)
    }

    /// What is to be given out since the last time. `pod` says namespace and labels of a pod, if there still is one.
    pub(crate) fn delta<'p>(
        &mut self,
        pod: impl Fn(&PodUid) -> Option<(&'p Arc<str>, KnownLabels<'p>)>,
    ) -> PolicyDelta {
        let changed = std::mem::take(&mut self.changed);
        let mut delta = PolicyDelta {
            authorization: changed.authorization.into_iter().collect(),
            network: changed.network.into_iter().collect(),
            namespaces: changed.namespaces.into_iter().collect(),
            ..PolicyDelta::default()
        };
        for service in changed.services {
            let policies: Vec<_> = self.of_service(&service).cloned().collect();
            delta.services.push((service, Some(policies).filter(|policies| !policies.is_empty())));
        }
        for uid in changed.pods {
            let policies = pod(&uid).map(|(namespace, labels)| self.of_pod(namespace, labels)).unwrap_or_default();
            if self.told.get(&uid).map_or(policies.is_empty(), |told| *told == policies) {
                continue;
            }
            let policies = Some(policies).filter(|policies| !policies.is_empty());
            match &policies {
                Some(policies) => drop(self.told.insert(uid.clone(), policies.clone())),
                None => drop(self.told.remove(&uid)),
            }
            delta.workloads.push((uid, policies));
        }
        delta
    }

    /// Everything remembered.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.authorization.namespaces.len() + self.network.namespaces.len() + self.of_services.len() + self.told.len()
    }
}

/// The policy for which connections to a port of a pod must not go round the agent, named for a report: one in force that may speak of the
/// port, or one that isolates the pod. `of_services`: those of the Services that lead to the port.
pub(crate) fn guard<'a>(
    of_pod: &'a WorkloadPolicies,
    of_services: impl Iterator<Item = &'a Arc<AuthorizationPolicy>>,
    port: u16,
) -> Option<String> {
    let in_force = of_pod.authorization.iter().chain(of_services).filter(|policy| is_in_force(policy));
    let access = PortAccess::new(in_force, port);
    access.policies().first().map(|policy| speaks(policy, "it")).or_else(|| isolating(of_pod))
}

/// The policy for which a pod must not leave the mesh, named for a report: as [`guard`], for any of its ports.
pub(crate) fn guard_of_any<'a>(
    of_pod: &'a WorkloadPolicies,
    of_services: impl Iterator<Item = &'a Arc<AuthorizationPolicy>>,
) -> Option<String> {
    let all = of_pod.authorization.iter().chain(of_services);
    // One without rules lets nobody in, or decides nothing.
    let decides =
        |policy: &AuthorizationPolicy| policy.action == Action::Allow || policy.rules != Rules::Any(Vec::new());
    let first = all.filter(|policy| is_in_force(policy) && decides(policy)).min_by_key(|policy| &policy.name);
    first.map(|policy| speaks(policy, "the pod")).or_else(|| isolating(of_pod))
}

fn is_in_force(policy: &AuthorizationPolicy) -> bool {
    policy.action != Action::Audit && !policy.dry_run
}

fn speaks(policy: &AuthorizationPolicy, of: &str) -> String {
    format!("{} {}/{} speaks of {of}", Kind::AuthorizationPolicy.as_str(), policy.namespace, policy.name)
}

fn isolating(of_pod: &WorkloadPolicies) -> Option<String> {
    let isolating = of_pod.network.iter().find(|policy| policy.is_rejected || policy.ingress.is_some())?;
    Some(format!("{} {}/{} isolates the pod", Kind::NetworkPolicy.as_str(), isolating.namespace, isolating.name))
}

/// A policy that selects pods of its namespace.
trait Selecting: Clone {
    fn place(&self) -> (&Arc<str>, &Arc<str>);
    /// Whether a pod is selected; `None` where that depends on labels that are not known.
    fn selects(&self, pod: KnownLabels<'_>) -> Option<bool>;
    /// Makes of it what it would be, had it been rejected.
    fn reject(&mut self);
    /// A label, of whose values a pod must have one to be selected.
    fn wanted(&self) -> Option<(&str, Vec<&str>)>;
}

impl Selecting for AuthorizationPolicy {
    fn place(&self) -> (&Arc<str>, &Arc<str>) {
        (&self.namespace, &self.name)
    }

    fn selects(&self, pod: KnownLabels<'_>) -> Option<bool> {
        if pod.are_all { Some(self.target.selects(pod.labels)) } else { self.target.selects_knowing(pod.labels) }
    }

    fn reject(&mut self) {
        self.rules = Rules::Rejected;
    }

    fn wanted(&self) -> Option<(&str, Vec<&str>)> {
        match &self.target {
            Target::Labels(labels) => labels.iter().next().map(|(key, value)| (key.as_str(), vec![value.as_str()])),
            Target::Namespace | Target::Service(_) | Target::Unreadable => None,
        }
    }
}

impl Selecting for NetworkPolicy {
    fn place(&self) -> (&Arc<str>, &Arc<str>) {
        (&self.namespace, &self.name)
    }

    fn selects(&self, pod: KnownLabels<'_>) -> Option<bool> {
        if pod.are_all { Some(self.pods.matches(pod.labels)) } else { self.pods.matches_knowing(pod.labels) }
    }

    fn reject(&mut self) {
        self.is_rejected = true;
    }

    fn wanted(&self) -> Option<(&str, Vec<&str>)> {
        self.pods.0.iter().find_map(|requirement| match &requirement.operator {
            Operator::In(values) => Some((&*requirement.key, values.iter().map(|value| &**value).collect())),
            Operator::NotIn(_) | Operator::Exists | Operator::DoesNotExist => None,
        })
    }
}

type ByName<P> = BTreeMap<Arc<str>, Arc<P>>;

#[derive(Debug)]
struct BySelector<P> {
    namespaces: HashMap<Arc<str>, Filed<P>>,
}

#[derive(Debug)]
struct Filed<P> {
    /// Those that want a label, under it and each of the values they want.
    labels: HashMap<(String, String), ByName<P>>,
    others: ByName<P>,
}

impl<P> Default for BySelector<P> {
    fn default() -> Self {
        Self { namespaces: HashMap::new() }
    }
}

impl<P> Default for Filed<P> {
    fn default() -> Self {
        Self { labels: HashMap::new(), others: BTreeMap::new() }
    }
}

impl<P: Selecting> BySelector<P> {
    fn change(&mut self, policy: &Arc<P>, is_present: bool) {
        let (namespace, name) = policy.place();
        let filed = self.namespaces.entry(Arc::clone(namespace)).or_default();
        match policy.wanted() {
            Some((key, values)) => {
                for value in values {
                    change(&mut filed.labels, (key.to_owned(), value.to_owned()), policy, is_present);
                }
            }
            None if is_present => drop(filed.others.insert(Arc::clone(name), Arc::clone(policy))),
            None => drop(filed.others.remove(name)),
        }
        if filed.labels.is_empty() && filed.others.is_empty() {
            self.namespaces.remove(namespace);
        }
    }

    /// Those that select a pod of a namespace, or may, by name.
    fn of(&self, namespace: &Arc<str>, pod: KnownLabels<'_>) -> Vec<Arc<P>> {
        let Some(filed) = self.namespaces.get(namespace) else { return Vec::new() };
        let at = |(key, value): (&String, &String)| filed.labels.get(&(key.clone(), value.clone()));
        let by_label: Vec<_> =
            if pod.are_all { pod.labels.iter().filter_map(at).collect() } else { filed.labels.values().collect() };
        let candidates = by_label.into_iter().chain([&filed.others]).flatten().map(|(_, policy)| policy);
        let mut selecting: Vec<_> = candidates.filter_map(|policy| applied(policy, pod)).collect();
        selecting.sort_by(|a, b| a.place().cmp(&b.place()));
        // It is filed under one label only, but under each value that it wants of that.
        selecting.dedup_by(|a, b| a.place() == b.place());
        selecting
    }
}

/// A policy as it speaks of a pod, if it does or may.
fn applied<P: Selecting>(policy: &Arc<P>, pod: KnownLabels<'_>) -> Option<Arc<P>> {
    match policy.selects(pod) {
        Some(true) => Some(Arc::clone(policy)),
        Some(false) => None,
        None => {
            let mut rejected = P::clone(policy);
            rejected.reject();
            Some(Arc::new(rejected))
        }
    }
}

fn change<K: std::hash::Hash + Eq, P: Selecting>(
    map: &mut HashMap<K, ByName<P>>,
    key: K,
    policy: &Arc<P>,
    is_present: bool,
) {
    let name = policy.place().1;
    if is_present {
        map.entry(key).or_default().insert(Arc::clone(name), Arc::clone(policy));
    } else if let Some(by_name) = map.get_mut(&key) {
        by_name.remove(name);
        if by_name.is_empty() {
            map.remove(&key);
        }
    }
}
