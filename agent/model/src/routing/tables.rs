//! The routes, grants and TrafficPolicies of a snapshot, and the tables that follow from them. A change makes the tables of the Services anew
//! that it is about.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::{Arc, LazyLock};

use super::attachment::{Clients, settle};
use super::matching::Seniority;
use super::{
    Backend, BackendProblem, BackendRef, Mirror, ParentTarget, ReferenceGrant, Route, RouteKey, RoutingDelta, Rule,
    RuleId, Table, TrafficPolicy, TrafficTarget,
};
use crate::service::{Service, ServiceKey};
use crate::sharded::Sharded;
use crate::snapshot::Snapshot;
use crate::traffic::{RequestTraffic, ServiceTraffic};

/// Keys of objects by what they are about.
type Index<K, V> = Sharded<K, Arc<BTreeSet<V>>>;

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Routing {
    pub(super) routes: Sharded<RouteKey, Arc<Route>>,
    grants: Sharded<ServiceKey, Arc<ReferenceGrant>>,
    pub(super) policies: Sharded<ServiceKey, Arc<TrafficPolicy>>,
    /// Routes by the Services that are their parents.
    attached: Index<ServiceKey, RouteKey>,
    /// Routes by the other namespaces they refer to.
    referring: Index<Arc<str>, RouteKey>,
    /// Grants by namespace.
    granting: Index<Arc<str>, ServiceKey>,
    /// TrafficPolicies by target.
    targeting: Index<TrafficTarget, ServiceKey>,
    tables: Sharded<ServiceKey, Arc<ServiceTables>>,
    traffic: Sharded<ServiceKey, Arc<ServiceTraffic>>,
}

/// The tables of one Service by port.
#[derive(Clone, Debug, Default, PartialEq)]
struct ServiceTables {
    producer: HashMap<u16, Arc<Table>>,
    /// By the namespace of the client; they stand in the place of the producer's.
    consumers: HashMap<Arc<str>, HashMap<u16, Arc<Table>>>,
}

impl Routing {
    /// `reshaped` are the Services that came, went, or have other ports than before.
    pub(crate) fn apply<'a>(
        &mut self,
        delta: RoutingDelta,
        reshaped: BTreeSet<ServiceKey>,
        service: impl Fn(&ServiceKey) -> Option<&'a Service>,
    ) {
        let mut stale = reshaped;
        for (key, route) in delta.routes {
            self.set_route(key, route, &mut stale);
        }
        for (key, grant) in delta.grants {
            self.set_grant(key, grant, &mut stale);
        }
        for (key, policy) in delta.traffic {
            self.set_policy(key, policy, &mut stale);
        }
        for key in stale {
            let tables = service(&key).and_then(|service| self.tables_of(&key, service));
            match tables {
                None => self.tables.remove(&key),
                // What is equal stays what it was.
                Some(new) if self.tables.get(&key).is_some_and(|old| **old == new) => {}
                Some(new) => self.tables.insert(key, Arc::new(new)),
            }
        }
    }

    fn set_route(&mut self, key: RouteKey, new: Option<Arc<Route>>, stale: &mut BTreeSet<ServiceKey>) {
        let old = self.routes.get(&key).cloned();
        if old == new {
            return;
        }
        if let Some(old) = old {
            for service in parents_of(&old) {
                leave(&mut self.attached, service, &key);
                stale.insert(service.clone());
            }
            for namespace in foreign_namespaces(&old) {
                leave(&mut self.referring, namespace, &key);
            }
        }
        match new {
            None => self.routes.remove(&key),
            Some(new) => {
                for service in parents_of(&new) {
                    join(&mut self.attached, service, &key);
                    stale.insert(service.clone());
                }
                for namespace in foreign_namespaces(&new) {
                    join(&mut self.referring, namespace, &key);
                }
                self.routes.insert(key, new);
            }
        }
    }

    fn set_grant(&mut self, key: ServiceKey, new: Option<Arc<ReferenceGrant>>, stale: &mut BTreeSet<ServiceKey>) {
        if self.grants.get(&key) == new.as_ref() {
            return;
        }
        match new {
            None => {
                leave(&mut self.granting, &key.0, &key);
                self.grants.remove(&key);
            }
            Some(new) => {
                join(&mut self.granting, &key.0, &key);
                self.grants.insert(key.clone(), new);
            }
        }
        let referring = self.referring.get(&key.0).into_iter().flat_map(|routes| routes.iter());
        for route in referring.filter_map(|route| self.routes.get(route)) {
            stale.extend(parents_of(route).cloned());
        }
    }

    fn set_policy(&mut self, key: ServiceKey, new: Option<Arc<TrafficPolicy>>, stale: &mut BTreeSet<ServiceKey>) {
        let old = self.policies.get(&key).cloned();
        if old == new {
            return;
        }
        let mut targets = Vec::new();
        if let Some(old) = old {
            old.targets.iter().for_each(|target| leave(&mut self.targeting, target, &key));
            targets.extend(old.targets.iter().cloned());
        }
        match new {
            None => self.policies.remove(&key),
            Some(new) => {
                new.targets.iter().for_each(|target| join(&mut self.targeting, target, &key));
                targets.extend(new.targets.iter().cloned());
                self.policies.insert(key, new);
            }
        }
        for target in targets {
            match &target {
                TrafficTarget::Service(service) => match self.in_force(&target).cloned() {
                    None => self.traffic.remove(service),
                    Some(traffic) => self.traffic.insert(service.clone(), traffic),
                },
                TrafficTarget::Route { route, .. } => {
                    stale.extend(self.routes.get(route).into_iter().flat_map(|route| parents_of(route).cloned()));
                }
            }
        }
    }

    /// The policy that holds for a target: the oldest of those that can be read.
    pub(super) fn policy_of(&self, target: &TrafficTarget) -> Option<&Arc<TrafficPolicy>> {
        let keys = self.targeting.get(target)?;
        let readable = keys.iter().filter_map(|key| self.policies.get(key)).filter(|policy| policy.settings.is_ok());
        readable.min_by_key(|policy| Seniority::new(policy.created, &policy.key.0, &policy.key.1))
    }

    fn in_force(&self, target: &TrafficTarget) -> Option<&Arc<ServiceTraffic>> {
        self.policy_of(target)?.settings.as_ref().ok()
    }

    /// The routes that name a Service as a parent.
    pub(super) fn attached_to(&self, service: &ServiceKey) -> impl Iterator<Item = &Route> {
        let keys = self.attached.get(service).into_iter().flat_map(|keys| keys.iter());
        keys.filter_map(|key| self.routes.get(key)).map(|route| &**route)
    }

    fn tables_of(&self, key: &ServiceKey, service: &Service) -> Option<ServiceTables> {
        let mut tables = ServiceTables::default();
        let settled = settle(self.attached_to(key), service);
        if settled.is_empty() {
            return None;
        }
        // A route that is attached to several ports is worked out once.
        let mut in_force: HashMap<&RouteKey, Vec<Arc<Rule>>> = HashMap::new();
        for ((clients, port), of_port) in &settled {
            let mut routes: Vec<(&Route, Vec<Arc<Rule>>)> = Vec::new();
            for &route in &of_port.winners {
                let rules = in_force.entry(&route.key).or_insert_with(|| self.rules_in_force(route));
                routes.push((route, rules.clone()));
            }
            let table = Arc::new(Table::new(of_port.kind, &routes));
            tables.of_clients(clients).insert(*port, table);
        }
        Some(tables)
    }

    /// A route's rules with grants and TrafficPolicies applied.
    fn rules_in_force(&self, route: &Route) -> Vec<Arc<Rule>> {
        let rule = |rule: &Arc<Rule>| {
            let said = self.policies_of(&rule.id).filter_map(|policy| policy.settings.as_ref().ok());
            let traffic = said.fold(rule.traffic.clone(), |traffic, settings| traffic.or(&settings.request));
            self.rule_in_force(&route.key, rule, traffic)
        };
        route.rules.iter().map(rule).collect()
    }

    /// The policies that hold for a rule: of two that speak of the same the first counts.
    fn policies_of(&self, rule: &RuleId) -> impl Iterator<Item = &Arc<TrafficPolicy>> {
        let target = |name: Option<Arc<str>>| TrafficTarget::Route { route: rule.route.clone(), rule: name };
        let of_rule = rule.name.as_ref().and_then(|name| self.policy_of(&target(Some(Arc::clone(name)))));
        [of_rule, self.policy_of(&target(None))].into_iter().flatten()
    }

    fn rule_in_force(&self, route: &RouteKey, rule: &Arc<Rule>, traffic: RequestTraffic) -> Arc<Rule> {
        let is_refused =
            |to: &BackendRef| matches!(to, BackendRef::Service { service, .. } if !self.permits(route, service));
        if rule.traffic == traffic && !refs_of(rule).any(is_refused) {
            return Arc::clone(rule);
        }
        let granted = |to: &BackendRef| match to {
            BackendRef::Service { service, .. } if is_refused(to) => {
                BackendRef::Invalid(BackendProblem::RefNotPermitted(service.clone()))
            }
            to => to.clone(),
        };
        let mut rule = Rule::clone(rule);
        rule.traffic = traffic;
        rule.backends = rule.backends.iter().map(|b| Backend { to: granted(&b.to), ..b.clone() }).collect();
        rule.filters.mirrors =
            rule.filters.mirrors.iter().map(|m| Mirror { to: granted(&m.to), ..m.clone() }).collect();
        Arc::new(rule)
    }

    /// Whether a route may refer to a Service: to those of its own namespace always.
    pub(super) fn permits(&self, route: &RouteKey, service: &ServiceKey) -> bool {
        let grants = self.granting.get(&service.0).into_iter().flat_map(|keys| keys.iter());
        route.namespace == service.0
            || grants.filter_map(|key| self.grants.get(key)).any(|grant| {
                let is_from = |(kind, namespace): &(_, Arc<str>)| *kind == route.kind && *namespace == route.namespace;
                let is_to = |name: &Option<Arc<str>>| name.as_ref().is_none_or(|name| *name == service.1);
                grant.from.iter().any(is_from) && grant.to.iter().any(is_to)
            })
    }
}

impl ServiceTables {
    fn of_clients(&mut self, clients: &Clients) -> &mut HashMap<u16, Arc<Table>> {
        match clients {
            None => &mut self.producer,
            Some(namespace) => self.consumers.entry(Arc::clone(namespace)).or_default(),
        }
    }
}

/// The Services a route names as its parents.
fn parents_of(route: &Route) -> impl Iterator<Item = &ServiceKey> {
    route.parents.iter().filter_map(|parent| match &parent.target {
        ParentTarget::Service(service) => Some(service),
        ParentTarget::Other(_) => None,
    })
}

/// What a rule refers to.
pub(super) fn refs_of(rule: &Rule) -> impl Iterator<Item = &BackendRef> {
    let mirrors = rule.filters.mirrors.iter().map(|mirror| &mirror.to);
    rule.backends.iter().map(|backend| &backend.to).chain(mirrors)
}

fn foreign_namespaces(route: &Route) -> BTreeSet<&Arc<str>> {
    let refs = route.rules.iter().flat_map(|rule| refs_of(rule));
    let namespaces = refs.filter_map(|to| match to {
        BackendRef::Service { service, .. } => Some(&service.0),
        BackendRef::Invalid(_) => None,
    });
    namespaces.filter(|namespace| **namespace != route.key.namespace).collect()
}

fn join<K: Hash + Eq + Clone, V: Ord + Clone>(index: &mut Index<K, V>, of: &K, key: &V) {
    Arc::make_mut(index.get_or_default(of.clone())).insert(key.clone());
}

fn leave<K: Hash + Eq + Clone, V: Ord + Clone>(index: &mut Index<K, V>, of: &K, key: &V) {
    if index.get(of).is_none() {
        return;
    }
    let keys = Arc::make_mut(index.get_or_default(of.clone()));
    keys.remove(key);
    if keys.is_empty() {
        index.remove(of);
    }
}

impl Snapshot {
    /// The routes of a Service port for clients of a namespace: those of that namespace, if it has any for the port, else the Service's own.
    /// `None` where there are neither: requests go to the Service itself.
    #[must_use]
    pub fn route_table(&self, service: &ServiceKey, port: u16, client_namespace: Option<&str>) -> Option<&Arc<Table>> {
        let tables = self.routing.tables.get(service)?;
        let of_client = client_namespace.and_then(|namespace| tables.consumers.get(namespace)?.get(&port));
        of_client.or_else(|| tables.producer.get(&port))
    }

    /// How requests to a Service are carried: what its TrafficPolicy says, or the defaults.
    #[must_use]
    pub fn traffic(&self, service: &ServiceKey) -> &Arc<ServiceTraffic> {
        static DEFAULT: LazyLock<Arc<ServiceTraffic>> = LazyLock::new(Arc::default);
        self.routing.traffic.get(service).unwrap_or(&DEFAULT)
    }

    /// The TrafficPolicy in force for a Service.
    #[must_use]
    pub fn traffic_policy(&self, service: &ServiceKey) -> Option<&Arc<TrafficPolicy>> {
        self.routing.policy_of(&TrafficTarget::Service(service.clone()))
    }

    /// The TrafficPolicies in force for a rule besides its Service's: of two that speak of the same the first counts. What the rule says itself
    /// counts before them.
    pub fn traffic_policies_of(&self, rule: &RuleId) -> impl Iterator<Item = &Arc<TrafficPolicy>> {
        self.routing.policies_of(rule)
    }

    /// A route.
    #[must_use]
    pub fn route(&self, key: &RouteKey) -> Option<&Arc<Route>> {
        self.routing.routes.get(key)
    }

    /// All routes, in no particular order.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.routing.routes.values()
    }

    /// All TrafficPolicies, in no particular order.
    pub fn traffic_policies(&self) -> impl Iterator<Item = &Arc<TrafficPolicy>> {
        self.routing.policies.values()
    }
}
