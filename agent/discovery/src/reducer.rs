//! Objects in, delta out: joins pods with their namespaces, mTLS modes and policies, and Services with their EndpointSlices.
//!
//! Pure and incremental: a slice recomputes its Service, a namespace its pods, a MeshTLS those it selects, a pod itself. A policy recomputes what
//! applies to the pods it selects, and the pods themselves only where they exclude ports or would leave the mesh unguarded.
//! What comes out depends on the objects that are set, not on the order in which they were (but for the Mesh: a rejected one leaves the former in
//! force, DESIGN §7).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use heddle_api::mesh_tls::Overruled;
use heddle_api::pod::{self, Pod};
use heddle_api::slice::SliceEndpoint;
use heddle_api::{EndpointSlice, Key, Kind, MeshTls, Namespace, Object, Problem, mesh_tls};
use heddle_model::network_policy::NetworkPolicy;
use heddle_model::policy::AuthorizationPolicy;
use heddle_model::workload::Labels;
use heddle_model::{
    Delta, Endpoint, MeshConfig, MtlsMode, MtlsModes, PodUid, Service, ServiceKey, ServicePort, Transport, Workload,
};

use crate::overruled::Overrulings;
use crate::policies::{self, Policies};
use crate::routing::Routing;

/// The desired objects, and what of them has not been given out yet.
#[derive(Debug, Default)]
pub struct Reducer {
    objects: HashMap<Key, Arc<Object>>,
    /// Names of pods by namespace.
    pods_of: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// Pods by uid: one each, unless a file says otherwise.
    pods_by_uid: HashMap<PodUid, BTreeSet<Key>>,
    /// Names of slices by Service.
    slices_of: HashMap<ServiceKey, BTreeSet<Arc<str>>>,
    /// Services by the pods their slices name; followed for host-network pods, which own no address.
    services_of_target: HashMap<ServiceKey, BTreeSet<ServiceKey>>,
    /// Host-network pods, by namespace and name, by their addresses, which are the node's.
    hosts: HashMap<IpAddr, BTreeSet<ServiceKey>>,
    /// Names of MeshTLS objects by namespace.
    modes_of: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    overruled: Overrulings,
    policies: Policies,
    routing: Routing,
    dirty: Dirty,
    mesh_in_force: MeshConfig,
    reports: BTreeMap<Key, Vec<Report>>,
}

/// What a join found wrong with an object that was right by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What and where.
    pub problem: Problem,
    /// The object is in force, but for the part told of.
    pub warning: bool,
}

#[derive(Debug, Default)]
struct Dirty {
    uids: BTreeSet<PodUid>,
    services: BTreeSet<ServiceKey>,
    /// Namespaces where a policy may have begun or ceased to speak of a Service's endpoints.
    targets: BTreeSet<Arc<str>>,
    mesh: bool,
}

impl Reducer {
    /// Nothing desired yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets what is desired under a key; `None` removes it. An object equal to the present one changes nothing.
    pub fn set(&mut self, key: &Key, object: Option<Arc<Object>>) {
        let old = self.objects.get(key).cloned();
        if old == object {
            return;
        }
        match key.kind {
            Kind::Namespace => {
                self.touch_pods(&key.name, |_| true);
                let [before, after] = [old.as_deref(), object.as_deref()].map(namespace_labels);
                if before != after {
                    self.policies.set_namespace(&key.name, after);
                }
            }
            Kind::Pod => self.set_pod(key, old.as_deref(), object.as_deref()),
            Kind::Service => drop(self.dirty.services.insert((Arc::clone(&key.namespace), Arc::clone(&key.name)))),
            Kind::EndpointSlice => {
                self.set_slice(key, old.as_deref(), false);
                self.set_slice(key, object.as_deref(), true);
            }
            Kind::Mesh => self.dirty.mesh = true,
            Kind::MeshTls => {
                change_set(&mut self.modes_of, Arc::clone(&key.namespace), Arc::clone(&key.name), object.is_some());
                self.touch_selected(&key.namespace, old.as_deref(), object.as_deref());
            }
            Kind::AuthorizationPolicy => {
                let [old, new] = [old.as_deref(), object.as_deref()].map(authorization_policy);
                self.policies.set_authorization(key, old, new);
                self.report(key, Vec::new());
            }
            Kind::NetworkPolicy => {
                let [old, new] = [old.as_deref(), object.as_deref()].map(network_policy);
                self.policies.set_network(key, old, new);
            }
            Kind::Route(_) | Kind::ReferenceGrant | Kind::TrafficPolicy => self.routing.set(key, object.as_deref()),
        }
        match object {
            None => self.objects.remove(key),
            Some(object) => self.objects.insert(key.clone(), object),
        };
    }

    /// What follows from everything set since the last call.
    #[must_use]
    pub fn delta(&mut self) -> Delta {
        let mut delta = Delta::default();
        // First, as its mode decides what pods may exclude.
        if std::mem::take(&mut self.dirty.mesh) {
            delta.mesh = self.next_mesh();
        }
        self.touch_targets();
        let dirty = std::mem::take(&mut self.dirty);
        for uid in dirty.uids {
            let workload = self.join_pod(&uid);
            delta.workloads.push((uid, workload));
        }
        for key in dirty.services {
            let service = self.join_service(&key);
            delta.services.push((key, service));
        }
        delta.routing = self.routing.take();
        let (objects, pods_by_uid) = (&self.objects, &self.pods_by_uid);
        delta.policies = self.policies.delta(|uid| {
            let pod = pods_by_uid.get(uid).and_then(BTreeSet::first)?;
            match objects.get(pod)?.as_ref() {
                Object::Pod(pod) => Some((&pod.workload().namespace, pod.labels())),
                _ => None,
            }
        });
        delta
    }

    /// Number of objects set.
    #[must_use]
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// The object under a key.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<&Arc<Object>> {
        self.objects.get(key)
    }

    /// Everything the joins found wrong, by object.
    pub fn reports(&self) -> impl Iterator<Item = (&Key, &Report)> {
        let joined = self.reports.iter().flat_map(|(key, list)| list.iter().map(move |report| (key, report)));
        joined.chain(self.overruled.reports())
    }

    fn set_pod(&mut self, key: &Key, old: Option<&Object>, new: Option<&Object>) {
        let names = self.pods_of.entry(Arc::clone(&key.namespace)).or_default();
        if new.is_some() {
            names.insert(Arc::clone(&key.name));
        } else {
            names.remove(&key.name);
        }
        if names.is_empty() {
            self.pods_of.remove(&key.namespace);
        }
        for (object, present) in [(old, false), (new, true)] {
            let Some(Object::Pod(pod)) = object else { continue };
            change_set(&mut self.pods_by_uid, pod.uid().clone(), key.clone(), present);
            for ip in pod.workload().addresses.iter().filter(|_| pod.workload().host_network) {
                let host = (Arc::clone(&key.namespace), Arc::clone(&key.name));
                change_set(&mut self.hosts, *ip, host, present);
            }
            self.touch_pod(pod);
        }
        if new.is_none() {
            self.report(key, Vec::new());
        }
    }

    fn touch_pod(&mut self, pod: &Pod) {
        let workload = pod.workload();
        self.dirty.uids.insert(workload.uid.clone());
        self.policies.touch(&workload.uid);
        // A pod that owns the address of a host-network one takes its endpoints, and leaves them when it goes.
        let hosts = workload.addresses.iter().filter_map(|ip| self.hosts.get(ip)).flatten();
        let own = (Arc::clone(&workload.namespace), Arc::clone(&workload.name));
        for target in hosts.chain([&own].into_iter().filter(|_| workload.host_network)) {
            self.dirty.services.extend(self.services_of_target.get(target).into_iter().flatten().cloned());
        }
    }

    /// Touches the pods of a namespace that `which` chooses.
    fn touch_pods(&mut self, namespace: &Arc<str>, which: impl Fn(&Pod) -> bool) {
        for name in self.pods_of.get(namespace).cloned().unwrap_or_default() {
            let pod = Key { kind: Kind::Pod, namespace: Arc::clone(namespace), name };
            if let Some(Object::Pod(pod)) = self.objects.get(&pod).cloned().as_deref()
                && which(pod)
            {
                self.touch_pod(pod);
            }
        }
    }

    /// Touches the pods of a namespace for which it matters what guards them.
    fn touch_going_round(&mut self, namespace: &Arc<str>) {
        let of_namespace = self.namespace(namespace).cloned();
        self.touch_pods(namespace, |pod| goes_round(pod, of_namespace.as_ref()));
    }

    /// Touches the pods for which a MeshTLS speaks or spoke, or may.
    fn touch_selected(&mut self, namespace: &Arc<str>, old: Option<&Object>, new: Option<&Object>) {
        let modes = |object: Option<&Object>| match object {
            Some(Object::MeshTls(modes)) => Some(modes.selector.clone()),
            _ => None,
        };
        let selectors = [modes(old), modes(new)];
        let concerns = |pod: &Pod| selectors.iter().flatten().any(|s| s.selects(pod.labels()) != Some(false));
        self.touch_pods(namespace, concerns);
    }

    /// Touches what changed policies speak or spoke of, and tells of those whose Service there is not.
    fn touch_targets(&mut self) {
        for (namespace, touched) in self.policies.take_touched() {
            for name in self.pods_of.get(&namespace).cloned().unwrap_or_default() {
                let pod = Key { kind: Kind::Pod, namespace: Arc::clone(&namespace), name };
                let Some(object) = self.objects.get(&pod).cloned() else { continue };
                let Object::Pod(pod) = object.as_ref() else { continue };
                if self.dirty.uids.contains(pod.uid()) || !touched.concerns(pod.labels()) {
                    continue;
                }
                if goes_round(pod, self.namespace(&namespace)) {
                    self.touch_pod(pod);
                } else {
                    self.policies.touch(pod.uid());
                }
            }
        }
        let services: BTreeSet<_> = self.policies.changed_services().chain(&self.dirty.services).cloned().collect();
        for service in services.iter().filter(|service| self.policies.speak_of(service)).cloned().collect::<Vec<_>>() {
            self.report_target(&service);
        }
        self.dirty.targets.extend(self.policies.changed_services().map(|(namespace, _)| Arc::clone(namespace)));
        for namespace in std::mem::take(&mut self.dirty.targets) {
            self.touch_going_round(&namespace);
        }
    }

    /// Tells of the policies of a Service whether it is there.
    fn report_target(&mut self, target: &ServiceKey) {
        let (namespace, service) = target;
        let key = |kind, name: &Arc<str>| Key { kind, namespace: Arc::clone(namespace), name: Arc::clone(name) };
        let is_there = self.objects.contains_key(&key(Kind::Service, service));
        let message = format!("Service {namespace}/{service} does not exist: no effect until it does");
        let problem = Problem { field: "spec.targetRefs[0].name".to_owned(), line: 0, message };
        let report = Report { problem, warning: true };
        let policies = self.policies.of_service(target);
        let policies: Vec<_> = policies.map(|policy| key(Kind::AuthorizationPolicy, &policy.name)).collect();
        for policy in policies {
            self.report(&policy, if is_there { Vec::new() } else { vec![report.clone()] });
        }
    }

    fn set_slice(&mut self, key: &Key, object: Option<&Object>, present: bool) {
        let Some(Object::EndpointSlice(slice)) = object else { return };
        let service = (Arc::clone(&slice.namespace), Arc::clone(&slice.service));
        self.dirty.services.insert(service.clone());
        if self.policies.speak_of(&service) {
            self.dirty.targets.insert(Arc::clone(&service.0));
        }
        change_set(&mut self.slices_of, service.clone(), Arc::clone(&key.name), present);
        for target in slice.endpoints.iter().filter_map(|endpoint| endpoint.pod.clone()) {
            // Another slice of the Service may name the pod too: the entry then stays until that one goes.
            let elsewhere = !present
                && self.slices(&service).any(|other| {
                    other.name != key.name && other.endpoints.iter().any(|e| e.pod.as_ref() == Some(&target))
                });
            if !elsewhere {
                change_set(&mut self.services_of_target, target, service.clone(), present);
            }
        }
    }

    /// The workload with a uid: of several pods that claim it, the first by namespace and name.
    fn join_pod(&mut self, uid: &PodUid) -> Option<Workload> {
        let mut claimants = self.pods_by_uid.get(uid).cloned().unwrap_or_default().into_iter();
        let Some(first) = claimants.next() else {
            self.overruled.set(uid, &Arc::default(), Vec::new());
            return None;
        };
        for loser in claimants {
            let message = format!("`{uid}` is already the uid of Pod {}: this one is not used", first.object());
            let problem = Problem { field: "metadata.uid".to_owned(), line: 0, message };
            self.report(&loser, vec![Report { problem, warning: false }]);
        }
        let (workload, warnings, overruled) = self.workload(self.pod(&first)?);
        let reports = warnings.into_iter().map(|problem| Report { problem, warning: true }).collect();
        self.report(&first, reports);
        self.overruled.set(uid, &first.namespace, overruled);
        Some(workload)
    }

    /// A pod with its namespace's and its modes' say, and what of all that is not in force.
    fn workload(&self, pod: &Pod) -> (Workload, Vec<Problem>, Vec<Overruled>) {
        let namespace = &pod.workload().namespace;
        let (modes, mut overruled) = self.modes_of_pod(pod);
        let guard = || self.guard(pod, &modes);
        let (mut workload, mut warnings) = pod.in_namespace(self.namespace(namespace), guard);
        if workload.transport == Transport::Plain {
            // Nobody takes mTLS for it.
            overruled.clear();
        } else {
            workload.mtls = modes;
        }
        if !workload.capture.exclude_inbound_ports.is_empty() {
            let of_pod = self.policies.of_pod(namespace, pod.labels());
            let guarded = |port| policies::guard(&of_pod, self.policies_of_endpoint(pod, Some(port)), port);
            warnings.extend(pod::keep_captured(&mut workload, &self.mesh_in_force, guarded));
        }
        (workload, warnings, overruled)
    }

    /// The modes of a pod's ports, and whose word is not in force. Where nobody can tell whether an object speaks for it, a strict one does.
    fn modes_of_pod(&self, pod: &Pod) -> (MtlsModes, Vec<Overruled>) {
        let speaks = |modes: &MeshTls| modes.selector.selects(pod.labels());
        let all = self.modes(&pod.workload().namespace);
        let (modes, overruled) = mesh_tls::resolve(all.clone().filter(|modes| speaks(modes) == Some(true)));
        if all.filter(|modes| speaks(modes).is_none()).any(MeshTls::is_strict) {
            return (MtlsModes { mode: Some(MtlsMode::Strict), ports: BTreeMap::new() }, overruled);
        }
        (modes, overruled)
    }

    /// What guards a pod with these modes, named for a report: a port that is STRICT, or a policy.
    fn guard(&self, pod: &Pod, modes: &MtlsModes) -> Option<String> {
        if modes.any_strict(&self.mesh_in_force) {
            return Some("the mTLS mode of its ports, or of one, is `Strict`".to_owned());
        }
        let of_pod = self.policies.of_pod(&pod.workload().namespace, pod.labels());
        policies::guard_of_any(&of_pod, self.policies_of_endpoint(pod, None))
    }

    /// The AuthorizationPolicies of the Services that may lead to a port of a pod, or to any: in doubt they do.
    fn policies_of_endpoint(&self, pod: &Pod, port: Option<u16>) -> impl Iterator<Item = &Arc<AuthorizationPolicy>> {
        let workload = pod.workload();
        let is_pod = |endpoint: &SliceEndpoint| {
            let is_named =
                endpoint.pod.as_ref().is_some_and(|(ns, name)| (ns, name) == (&workload.namespace, &workload.name));
            is_named || workload.addresses.contains(&endpoint.ip)
        };
        let leads_to = move |slice: &EndpointSlice| {
            slice.ports.iter().any(|(_, target)| port.is_none_or(|port| *target == port))
                && slice.endpoints.iter().any(is_pod)
        };
        let services = self.policies.services_in(&workload.namespace);
        let services = services.filter(move |service| self.slices(service).any(leads_to));
        services.flat_map(|service| self.policies.of_service(service))
    }

    fn join_service(&self, key: &ServiceKey) -> Option<Service> {
        let object = Key { kind: Kind::Service, namespace: Arc::clone(&key.0), name: Arc::clone(&key.1) };
        let Object::Service(service) = self.objects.get(&object)?.as_ref() else { return None };
        let mut service = service.clone();
        if service.invalid {
            // It is refused whatever its endpoints are, but where it leads its policies must hold on: also by ports that could not be read.
            let known: BTreeSet<_> = service.ports.iter().map(|port| Arc::clone(&port.name)).collect();
            let all = self.slices(key).flat_map(|slice| slice.ports.iter().map(|(name, _)| Arc::clone(name)));
            let unread: BTreeSet<_> = all.filter(|name| !known.contains(name)).collect();
            let port = |name| ServicePort { name, port: 0, app_protocol: None, endpoints: Arc::default() };
            service.ports.extend(unread.into_iter().map(port));
        }
        for port in &mut service.ports {
            let mut endpoints: Vec<Endpoint> = Vec::new();
            for slice in self.slices(key) {
                let Some((_, target)) = slice.ports.iter().find(|(name, _)| *name == port.name) else { continue };
                endpoints.extend(slice.endpoints.iter().map(|endpoint| Endpoint {
                    workload: self.host_network_pod(endpoint),
                    ..endpoint.on_port(*target)
                }));
            }
            // Slices may overlap while they are rewritten: the better word on an address counts, then the first slice's.
            endpoints.sort_by_key(|e| (e.addr, !e.ready, !e.serving));
            endpoints.dedup_by_key(|e| e.addr);
            port.endpoints = endpoints.into();
        }
        Some(service)
    }

    /// The host-network pod an endpoint names, if the address is its. All other links are made by address.
    fn host_network_pod(&self, endpoint: &SliceEndpoint) -> Option<Arc<Workload>> {
        let (namespace, name) = endpoint.pod.as_ref()?;
        let key = Key { kind: Kind::Pod, namespace: Arc::clone(namespace), name: Arc::clone(name) };
        let pod = self.pod(&key).filter(|pod| pod.workload().host_network)?;
        let holds = pod.workload().addresses.contains(&endpoint.ip) && !pod.workload().finished;
        holds.then(|| Arc::new(self.workload(pod).0))
    }

    fn next_mesh(&mut self) -> Option<MeshConfig> {
        let key = Key { kind: Kind::Mesh, namespace: Arc::default(), name: heddle_api::mesh::NAME.into() };
        let next = match self.objects.get(&key).map(Arc::as_ref) {
            Some(Object::Mesh(Some(config))) => config.clone(),
            // Rejected: the former stays in force, and the report says so.
            Some(_) => {
                let message = "the Mesh is rejected: the settings before it stay in force".to_owned();
                let problem = Problem { field: String::new(), line: 0, message };
                self.report(&key, vec![Report { problem, warning: false }]);
                return None;
            }
            None => MeshConfig::default(),
        };
        self.report(&key, Vec::new());
        let changed = next != self.mesh_in_force;
        if next.mtls != self.mesh_in_force.mtls {
            for namespace in self.pods_of.keys().cloned().collect::<Vec<_>>() {
                self.touch_going_round(&namespace);
            }
        }
        self.mesh_in_force.clone_from(&next);
        changed.then_some(next)
    }

    fn pod(&self, key: &Key) -> Option<&Pod> {
        match self.objects.get(key)?.as_ref() {
            Object::Pod(pod) => Some(pod),
            _ => None,
        }
    }

    fn namespace(&self, name: &Arc<str>) -> Option<&Namespace> {
        let key = Key { kind: Kind::Namespace, namespace: Arc::default(), name: Arc::clone(name) };
        match self.objects.get(&key)?.as_ref() {
            Object::Namespace(namespace) => Some(namespace),
            _ => None,
        }
    }

    fn modes(&self, namespace: &Arc<str>) -> impl Iterator<Item = &MeshTls> + Clone {
        self.modes_of.get(namespace).into_iter().flatten().filter_map(|name| {
            let key = Key { kind: Kind::MeshTls, namespace: Arc::clone(namespace), name: Arc::clone(name) };
            match self.objects.get(&key)?.as_ref() {
                Object::MeshTls(modes) => Some(modes),
                _ => None,
            }
        })
    }

    fn slices(&self, service: &ServiceKey) -> impl Iterator<Item = &EndpointSlice> {
        self.slices_of.get(service).into_iter().flatten().filter_map(|name| {
            let key = Key { kind: Kind::EndpointSlice, namespace: Arc::clone(&service.0), name: Arc::clone(name) };
            match self.objects.get(&key)?.as_ref() {
                Object::EndpointSlice(slice) => Some(slice),
                _ => None,
            }
        })
    }

    fn report(&mut self, key: &Key, reports: Vec<Report>) {
        if reports.is_empty() {
            self.reports.remove(key);
        } else {
            self.reports.insert(key.clone(), reports);
        }
    }
}

/// Whether connections would go round the agent to a pod, or to a port of it, were it not for what guards it.
fn goes_round(pod: &Pod, namespace: Option<&Namespace>) -> bool {
    !pod.workload().capture.exclude_inbound_ports.is_empty() || pod.hinges_on_guard(namespace)
}

fn namespace_labels(object: Option<&Object>) -> Option<Arc<Labels>> {
    match object {
        Some(Object::Namespace(namespace)) => namespace.labels.clone(),
        _ => None,
    }
}

fn authorization_policy(object: Option<&Object>) -> Option<&Arc<AuthorizationPolicy>> {
    match object {
        Some(Object::AuthorizationPolicy(dated)) => Some(&dated.policy),
        _ => None,
    }
}

fn network_policy(object: Option<&Object>) -> Option<&Arc<NetworkPolicy>> {
    match object {
        Some(Object::NetworkPolicy(dated)) => Some(&dated.policy),
        _ => None,
    }
}

fn change_set<K: std::hash::Hash + Eq, V: Ord>(map: &mut HashMap<K, BTreeSet<V>>, key: K, value: V, present: bool) {
    if present {
        map.entry(key).or_default().insert(value);
    } else if let Some(set) = map.get_mut(&key) {
        set.remove(&value);
        if set.is_empty() {
            map.remove(&key);
        }
    }
}

#[cfg(test)]
#[path = "reducer_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "reducer_guard_tests.rs"]
mod guard_tests;

#[cfg(test)]
#[path = "reducer_mtls_tests.rs"]
mod mtls_tests;

#[cfg(test)]
#[path = "reducer_policies_tests.rs"]
mod policies_tests;

#[cfg(test)]
#[path = "reducer_routing_tests.rs"]
mod routing_tests;
