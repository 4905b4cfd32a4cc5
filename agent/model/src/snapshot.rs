//! The immutable state readers see, and the delta a source publishes.
//!
//! Sharded maps of `Arc`s: a change of one endpoint copies one Service and one shard, not the cluster. The state is a
//! function of the objects in it: conflicts over an address are settled by the objects' own fields, never by arrival.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::addr::{Family, OriginalDst};
use crate::balance;
use crate::claims::{Claim, Claims};
use crate::invalid::InvalidObject;
use crate::mesh::{MeshConfig, OutboundPolicy};
use crate::policies::{Policies, PolicyDelta};
use crate::resolve::{Candidates, Refusal, Resolution};
use crate::routing::{BackendFailure, Routing, RoutingDelta};
use crate::service::{Endpoint, Service, ServiceKey, ServicePort};
use crate::sharded::Sharded;
use crate::workload::{PodUid, Workload};

/// Everything the agent knows at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Counts publications; 0 is the empty snapshot before the first load.
    pub generation: u64,
    /// This node's name. Set it before the first [`Self::apply`]: `internalTrafficPolicy: Local` is decided there.
    pub node: Arc<str>,
    /// Mesh-wide settings.
    pub mesh: Arc<MeshConfig>,
    /// Objects that were rejected, ordered by origin and line.
    pub invalid: Arc<[InvalidObject]>,
    /// Parts of accepted objects that have no effect, in the same order and shape.
    pub warnings: Arc<[InvalidObject]>,
    /// Counts the publications that may have changed what a policy decides.
    pub policy_generation: u64,
    pub(crate) policies: Policies,
    pub(crate) routing: Routing,
    workloads: Sharded<PodUid, Arc<Workload>>,
    owners: Sharded<IpAddr, Claims<Arc<Workload>>>,
    services: Sharded<ServiceKey, Arc<Entry>>,
    vips: Sharded<IpAddr, Claims<VipClaim>>,
    /// The Services that have an endpoint at an address, in order.
    users: Sharded<IpAddr, Arc<[ServiceKey]>>,
}

/// One batch of changes: desired state by key, `None` removes. Of two entries with one key the later counts.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    /// Pods by uid.
    pub workloads: Vec<(PodUid, Option<Workload>)>,
    /// Services by `(namespace, name)`. [`Snapshot::apply`] links each endpoint to the pod that owns its address, and
    /// keeps the links true as pods change. A link to a host-network pod, which owns no address, is the source's own
    /// affair: it sets it, and sends the Service again when that pod changes.
    pub services: Vec<(ServiceKey, Option<Service>)>,
    /// Policies, and what they select.
    pub policies: PolicyDelta,
    /// Routes, and how requests to Services are carried.
    pub routing: RoutingDelta,
    /// Mesh settings, if changed.
    pub mesh: Option<MeshConfig>,
    /// The whole list of rejected objects, if changed.
    pub invalid: Option<Vec<InvalidObject>>,
    /// The whole list of warnings, if changed.
    pub warnings: Option<Vec<InvalidObject>>,
}

impl Delta {
    /// Whether applying it would change nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let lists = self.invalid.is_some() || self.warnings.is_some();
        self.workloads.is_empty()
            && self.services.is_empty()
            && self.policies.is_empty()
            && self.routing.is_empty()
            && self.mesh.is_none()
            && !lists
    }
}

/// A Service with what the hot path would otherwise compute for every connection.
#[derive(Debug, PartialEq)]
struct Entry {
    service: Arc<Service>,
    /// In the order of `service.ports`.
    choices: Box<[PortChoices]>,
}

/// The endpoints to choose from, by the family of the address that was called.
#[derive(Debug, PartialEq)]
struct PortChoices {
    v4: Result<Candidates, Refusal>,
    v6: Result<Candidates, Refusal>,
}

/// One Service's claim to one address.
#[derive(Clone, Debug, PartialEq)]
struct VipClaim {
    /// By `clusterIPs`, which the API server gives out once, not by an address anyone may write into `externalIPs`.
    by_cluster_ip: bool,
    entry: Arc<Entry>,
}

impl Snapshot {
    /// The empty snapshot of a node.
    #[must_use]
    pub fn new(node: &str) -> Self {
        Self { node: node.into(), ..Self::default() }
    }

    /// Where a connection of a pod on this node to `dst` should go. `source` is the calling pod if known.
    ///
    /// The order: the calling pod's own address; the `clusterIPs` of Services; addresses of pods; other addresses of
    /// Services; the outside. So `externalIPs`, which any author of a Service may write, capture no pod's or
    /// Service's traffic, unlike in kube-proxy (CVE-2020-8554).
    #[must_use]
    pub fn resolve(&self, source: Option<&Workload>, dst: OriginalDst) -> Resolution {
        let addr = dst.get();
        let ip = addr.ip();
        if let Some(source) = source.filter(|s| s.owns_addresses() && s.addresses.contains(&ip))
            && let Some(workload) = self.workload(&source.uid)
        {
            return Resolution::Workload { workload: Arc::clone(workload), addr };
        }
        let claims = self.vips.get(&ip);
        if let Some(claims) = claims.filter(|c| c.best().by_cluster_ip) {
            return resolve_vip(claims, dst);
        }
        if let Some(workload) = self.workload_by_ip(ip) {
            return Resolution::Workload { workload: Arc::clone(workload), addr };
        }
        if let Some(claims) = claims {
            return resolve_vip(claims, dst);
        }
        if self.mesh.outbound_policy == OutboundPolicy::Deny && !self.is_headless_endpoint(ip) {
            return Resolution::Refused(Refusal::OutboundDenied);
        }
        Resolution::External { addr }
    }

    /// The pod that owns an address. Host-network pods own none; a finished pod owns none; of two, the newer wins.
    #[must_use]
    pub fn workload_by_ip(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.owners.get(&ip.to_canonical()).map(Claims::best)
    }

    /// The Service ports that have an endpoint at this very address and target port: what a connection that arrives
    /// there may have been meant for.
    pub fn ports_at(&self, addr: SocketAddr) -> impl Iterator<Item = &ServicePort> {
        let services = self.users_of(addr.ip()).filter(|service| !service.invalid);
        services.flat_map(|service| &service.ports).filter(move |port| leads_to(port, addr))
    }

    /// The Services that have an endpoint at this very address and target port, by namespace and name.
    pub(crate) fn services_at(&self, addr: SocketAddr) -> impl Iterator<Item = &Arc<Service>> {
        self.users_of(addr.ip()).filter(move |service| service.ports.iter().any(|port| leads_to(port, addr)))
    }

    /// The Services that have an endpoint at an address.
    fn users_of(&self, ip: IpAddr) -> impl Iterator<Item = &Arc<Service>> {
        let keys = self.users.get(&ip.to_canonical()).map_or(&[][..], |keys| keys);
        keys.iter().filter_map(|key| self.services.get(key)).map(|entry| &entry.service)
    }

    /// The port of a Service that an address and port mean, whether or not it can be called now.
    #[must_use]
    pub fn service_port(&self, dst: OriginalDst) -> Option<&ServicePort> {
        let claims = self.vips.get(&dst.get().ip())?;
        let rank = claims.best().by_cluster_ip;
        let ports = |claim: &'_ VipClaim| claim.entry.service.ports.iter().position(|p| p.port == dst.port());
        let claim = claims.iter().filter(|c| c.by_cluster_ip == rank).find(|c| ports(c).is_some())?;
        claim.entry.service.ports.get(ports(claim)?)
    }

    /// A pod by uid.
    #[must_use]
    pub fn workload(&self, uid: &PodUid) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// All pods, in no particular order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// Number of pods.
    #[must_use]
    pub const fn workload_count(&self) -> usize {
        self.workloads.len()
    }

    /// A Service by namespace and name.
    #[must_use]
    pub fn service(&self, namespace: &str, name: &str) -> Option<&Arc<Service>> {
        self.services.get(&(namespace.into(), name.into())).map(|entry| &entry.service)
    }

    /// All services, in no particular order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values().map(|entry| &entry.service)
    }

    /// The Service an endpoint stands behind, with its service port, for telemetry at the called side: of several the
    /// first by namespace and name, as nothing on the wire says which was meant.
    #[must_use]
    pub fn service_of_endpoint(&self, addr: SocketAddr) -> Option<(&Arc<Service>, u16)> {
        let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
        self.users_of(addr.ip()).find_map(|service| {
            let port = service.ports.iter().find(|port| leads_to(port, addr))?;
            Some((service, port.port))
        })
    }

    /// Number of services.
    #[must_use]
    pub const fn service_count(&self) -> usize {
        self.services.len()
    }

    /// The snapshot after `delta`; shares everything the delta does not touch.
    #[must_use]
    pub fn apply(&self, delta: Delta) -> Self {
        let mut next = self.clone();
        next.generation += 1;
        if let Some(mesh) = delta.mesh {
            next.mesh = Arc::new(mesh);
        }
        if let Some(invalid) = delta.invalid {
            next.invalid = in_order(invalid);
        }
        if let Some(warnings) = delta.warnings {
            next.warnings = in_order(warnings);
        }
        let is_of_policies = !delta.policies.is_empty();
        next.policies.apply(delta.policies);
        let is_of_pods = !delta.workloads.is_empty() && next.policies.depend_on_pods();
        let is_of_services = !delta.services.is_empty() && next.policies.depend_on_services();
        if is_of_policies || is_of_pods || is_of_services {
            next.policy_generation += 1;
        }
        // Pods first: endpoints link to them.
        let mut moved = BTreeSet::new();
        for (uid, workload) in delta.workloads {
            next.set_workload(uid, workload.map(Arc::new), &mut moved);
        }
        let mut stale: BTreeSet<ServiceKey> =
            moved.iter().filter_map(|ip| next.users.get(ip)).flat_map(|users| users.iter().cloned()).collect();
        let mut reshaped = BTreeSet::new();
        for (key, service) in delta.services {
            stale.remove(&key);
            let old = next.services.get(&key).map(|entry| &*entry.service);
            if !have_routes_alike(old, service.as_ref()) {
                reshaped.insert(key.clone());
            }
            next.set_service(key, service);
        }
        for key in stale {
            let service = next.services.get(&key).map(|entry| Service::clone(&entry.service));
            next.set_service(key, service);
        }
        let services = &next.services;
        next.routing.apply(delta.routing, reshaped, |key| services.get(key).map(|entry| &*entry.service));
        next
    }

    /// Where a backend of a rule leads: the endpoints of a port of a Service for a client of `family`; where it has none of this family, those
    /// of the other, as the proxy between the two may call either.
    ///
    /// # Errors
    /// [`BackendFailure`].
    pub fn backend(
        &self,
        service: &ServiceKey,
        port: u16,
        family: Family,
    ) -> Result<(Arc<Service>, usize, Candidates), BackendFailure> {
        let entry = self.services.get(service).ok_or(BackendFailure::NotFound)?;
        if entry.service.invalid {
            return Err(BackendFailure::Refused(Refusal::InvalidObject));
        }
        let index = entry.service.ports.iter().position(|p| p.port == port).ok_or(BackendFailure::NotFound)?;
        let choices = entry.choices.get(index).ok_or(BackendFailure::NotFound)?;
        let (of_family, of_other) = match family {
            Family::V4 => (&choices.v4, &choices.v6),
            Family::V6 => (&choices.v6, &choices.v4),
        };
        match (of_family, of_other) {
            (Ok(candidates), _) | (Err(_), Ok(candidates)) => {
                Ok((Arc::clone(&entry.service), index, candidates.clone()))
            }
            (Err(refusal), Err(_)) => Err(BackendFailure::Refused(*refusal)),
        }
    }

    /// Whether two snapshots hold the same objects and would decide the same, however they came about.
    #[must_use]
    pub fn same_state(&self, other: &Self) -> bool {
        self.node == other.node
            && self.mesh == other.mesh
            && self.invalid == other.invalid
            && self.warnings == other.warnings
            && self.policies == other.policies
            && self.workloads == other.workloads
            && self.owners == other.owners
            && self.services == other.services
            && self.vips == other.vips
            && self.users == other.users
            && self.routing == other.routing
    }

    fn set_workload(&mut self, uid: PodUid, workload: Option<Arc<Workload>>, moved: &mut BTreeSet<IpAddr>) {
        if let Some(old) = self.workloads.get(&uid).cloned() {
            // What refers to it goes on doing so.
            if workload.as_ref() == Some(&old) {
                return;
            }
            for ip in owned(&old) {
                withdraw(&mut self.owners, ip, &old);
                moved.insert(ip);
            }
        }
        match workload {
            None => self.workloads.remove(&uid),
            Some(new) => {
                for ip in owned(&new) {
                    stake(&mut self.owners, ip, Arc::clone(&new));
                    moved.insert(ip);
                }
                self.workloads.insert(uid, new);
            }
        }
    }

    fn set_service(&mut self, key: ServiceKey, service: Option<Service>) {
        let old = self.services.get(&key).cloned();
        let new = service.map(|service| Arc::new(self.entry(service)));
        if let Some(old) = &old {
            for &ip in &old.service.vips {
                withdraw(&mut self.vips, ip, &VipClaim::new(ip, old));
            }
        }
        if let Some(new) = &new {
            for &ip in &new.service.vips {
                stake(&mut self.vips, ip, VipClaim::new(ip, new));
            }
        }
        // Only what differs: a Service of a thousand endpoints that loses one touches one address.
        let before = old.as_ref().map(|entry| endpoint_addresses(&entry.service)).unwrap_or_default();
        let after = new.as_ref().map(|entry| endpoint_addresses(&entry.service)).unwrap_or_default();
        for ip in before.difference(&after) {
            self.set_users(*ip, |users| users.retain(|user| *user != key));
        }
        for ip in after.difference(&before) {
            self.set_users(*ip, |users| {
                users.push(key.clone());
                users.sort();
            });
        }
        match new {
            None => self.services.remove(&key),
            Some(new) => self.services.insert(key, new),
        }
    }

    fn set_users(&mut self, ip: IpAddr, change: impl FnOnce(&mut Vec<ServiceKey>)) {
        let mut users = self.users.get(&ip).map(|users| users.to_vec()).unwrap_or_default();
        change(&mut users);
        if users.is_empty() {
            self.users.remove(&ip);
        } else {
            self.users.insert(ip, users.into());
        }
    }

    /// Whether a headless Service names the address: then somebody knows it, and names are how clients get to it.
    fn is_headless_endpoint(&self, ip: IpAddr) -> bool {
        let service = |key: &ServiceKey| self.services.get(key).map(|entry| &entry.service);
        self.users.get(&ip).is_some_and(|users| users.iter().filter_map(service).any(|s| s.headless && !s.invalid))
    }

    /// Normalises a Service (addresses canonical and once, endpoints by address) and decides its candidates.
    fn entry(&self, mut service: Service) -> Entry {
        for list in [&mut service.vips, &mut service.cluster_ips] {
            list.iter_mut().for_each(|ip| *ip = ip.to_canonical());
            let mut seen = std::collections::HashSet::new();
            list.retain(|ip| seen.insert(*ip));
        }
        service.ports.iter_mut().for_each(|port| self.normalise(port));
        let service = Arc::new(service);
        let choose = |index, family| balance::candidates(&service, index, family, &self.node);
        let choices = (0..service.ports.len())
            .map(|index| PortChoices { v4: choose(index, Family::V4), v6: choose(index, Family::V6) })
            .collect();
        Entry { service, choices }
    }

    fn normalise(&self, port: &mut ServicePort) {
        let strictly_ascending = port.endpoints.is_sorted_by(|a, b| a.addr < b.addr);
        if !strictly_ascending {
            let mut endpoints = port.endpoints.to_vec();
            // Stable: of two with one address the source's first counts.
            endpoints.sort_by_key(|e| e.addr);
            endpoints.dedup_by_key(|e| e.addr);
            port.endpoints = endpoints.into();
        }
        // Every link is to the snapshot's own allocation of the pod.
        let link = |endpoint: &Endpoint| match (self.workload_by_ip(endpoint.addr.ip()), &endpoint.workload) {
            (Some(owner), _) => Some(Arc::clone(owner)),
            (None, Some(given)) if given.host_network => {
                Some(self.workload(&given.uid).filter(|own| *own == given).unwrap_or(given).clone())
            }
            (None, _) => None,
        };
        let linked = |endpoint: &Endpoint| match (&endpoint.workload, link(endpoint)) {
            (Some(is), Some(should)) => Arc::ptr_eq(is, &should),
            (is, should) => is.is_none() && should.is_none(),
        };
        if !port.endpoints.iter().all(linked) {
            for endpoint in Arc::make_mut(&mut port.endpoints) {
                endpoint.workload = link(endpoint);
            }
        }
    }
}

/// Whether routes are attached to both Services in one way: endpoints do not count.
fn have_routes_alike(old: Option<&Service>, new: Option<&Service>) -> bool {
    match (old, new) {
        (Some(old), Some(new)) => {
            let ports =
                |service: &Service| -> Vec<_> { service.ports.iter().map(|p| (p.name.clone(), p.port)).collect() };
            (old.headless, old.invalid) == (new.headless, new.invalid) && ports(old) == ports(new)
        }
        (old, new) => old.is_none() && new.is_none(),
    }
}

/// Whether a port has an endpoint at this very address.
fn leads_to(port: &ServicePort, addr: SocketAddr) -> bool {
    port.endpoints.binary_search_by_key(&addr, |e| e.addr).is_ok()
}

fn in_order(mut reports: Vec<InvalidObject>) -> Arc<[InvalidObject]> {
    let place = |r: &InvalidObject| (Arc::clone(&r.origin), r.line, Arc::clone(&r.field), Arc::clone(&r.message));
    reports.sort_by_cached_key(place);
    reports.into()
}

fn resolve_vip(claims: &Claims<VipClaim>, dst: OriginalDst) -> Resolution {
    let port = dst.port();
    let rank = claims.best().by_cluster_ip;
    let mut unreadable = false;
    for claim in claims.iter().filter(|c| c.by_cluster_ip == rank) {
        let service = &claim.entry.service;
        let index = service.ports.iter().position(|p| p.port == port);
        if service.invalid {
            if let Some(port_index) = index {
                let refusal = Refusal::InvalidObject;
                return Resolution::Unserved { service: Arc::clone(service), port_index, refusal };
            }
            // Which ports it meant is not known: those that no neighbour on a shared address has.
            unreadable = true;
            continue;
        }
        let Some((port_index, choices)) = index.and_then(|i| claim.entry.choices.get(i).map(|c| (i, c))) else {
            continue;
        };
        let choice = match Family::of(dst.get().ip()) {
            Family::V4 => &choices.v4,
            Family::V6 => &choices.v6,
        };
        return match choice {
            Ok(candidates) => {
                Resolution::Service { service: Arc::clone(service), port_index, candidates: candidates.clone() }
            }
            Err(refusal) => Resolution::Unserved { service: Arc::clone(service), port_index, refusal: *refusal },
        };
    }
    Resolution::Refused(if unreadable { Refusal::InvalidObject } else { Refusal::NoSuchServicePort })
}

fn owned(workload: &Workload) -> impl Iterator<Item = IpAddr> {
    let addresses = if workload.owns_addresses() { workload.addresses.as_slice() } else { &[] };
    addresses.iter().map(IpAddr::to_canonical)
}

fn endpoint_addresses(service: &Service) -> BTreeSet<IpAddr> {
    service.ports.iter().flat_map(|p| p.endpoints.iter()).map(|e| e.addr.ip().to_canonical()).collect()
}

fn stake<T: Claim>(index: &mut Sharded<IpAddr, Claims<T>>, ip: IpAddr, claim: T) {
    let claims = match index.get(&ip) {
        None => Claims::of(claim),
        Some(claims) => claims.with(claim),
    };
    index.insert(ip, claims);
}

fn withdraw<T: Claim>(index: &mut Sharded<IpAddr, Claims<T>>, ip: IpAddr, claim: &T) {
    let Some(claims) = index.get(&ip) else { return };
    match claims.without(claim) {
        None => index.remove(&ip),
        Some(rest) => index.insert(ip, rest),
    }
}

impl VipClaim {
    fn new(ip: IpAddr, entry: &Arc<Entry>) -> Self {
        Self { by_cluster_ip: entry.service.cluster_ips.contains(&ip), entry: Arc::clone(entry) }
    }
}

/// The newest pod, by creation time; a pod without one counts as older; ties go to the first by namespace, name, uid.
impl Claim for Arc<Workload> {
    type Rank<'a> = (std::cmp::Reverse<Option<crate::Timestamp>>, &'a str, &'a str, &'a str);

    fn rank(&self) -> Self::Rank<'_> {
        (std::cmp::Reverse(self.created), &self.namespace, &self.name, self.uid.as_str())
    }
}

/// `clusterIPs` before external addresses, then the oldest Service; one without a creation time counts as younger;
/// ties go to the first by namespace, name.
impl Claim for VipClaim {
    type Rank<'a> = (bool, bool, Option<crate::Timestamp>, &'a str, &'a str);

    fn rank(&self) -> Self::Rank<'_> {
        let service = &self.entry.service;
        (!self.by_cluster_ip, service.created.is_none(), service.created, &service.namespace, &service.name)
    }
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
