//! What the debug API shows of routes: what became of each and of the TrafficPolicies, and how Service ports and their endpoints are used.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use heddle_model::balance::Weight;
use heddle_model::routing::{
    Backend, Condition, ParentRef, ParentTarget, Route, RouteKey, Rule, TrafficOutcome, TrafficTarget,
};
use heddle_model::traffic::{Algorithm, Balance, Limits};
use heddle_model::{Endpoint, Service, ServiceKey, ServicePort, Snapshot};
use heddle_proto::debug::v1;
use heddle_proxy::explain::{conditions, filters, target};
use heddle_proxy::{CircuitUsage, Ejected, EndpointUsage, PortUsage, Resource, Usage, limit};

/// Every route and TrafficPolicy, or those of a namespace, by kind, namespace and name.
pub fn routes(snapshot: &Snapshot, namespace: Option<&str>) -> v1::Routes {
    let is_asked = |of: &str| namespace.is_none_or(|namespace| namespace == of);
    let mut parents: BTreeMap<RouteKey, Vec<v1::RouteParent>> = BTreeMap::new();
    for status in snapshot.route_statuses() {
        let conditions = status.conditions.into_iter().map(condition).collect();
        let parent = v1::RouteParent { parent: parent(&status.parent), conditions };
        parents.entry(status.route).or_default().push(parent);
    }
    let mut all: Vec<&Arc<Route>> = snapshot.routes().filter(|route| is_asked(&route.key.namespace)).collect();
    all.sort_by(|a, b| a.key.cmp(&b.key));
    let view = |route: &&Arc<Route>| v1::Route {
        kind: route.key.kind.as_str().to_owned(),
        namespace: route.key.namespace.to_string(),
        name: route.key.name.to_string(),
        hostnames: route.hostnames.iter().map(ToString::to_string).collect(),
        parents: parents.remove(&route.key).unwrap_or_default(),
        rules: route.rules.iter().map(|rule| self::rule(rule)).collect(),
    };
    let routes = all.iter().map(view).collect();
    let mut policies: BTreeMap<ServiceKey, Vec<v1::TrafficTarget>> = BTreeMap::new();
    let asked = snapshot.traffic_policies().filter(|policy| is_asked(&policy.key.0));
    policies.extend(asked.map(|policy| (policy.key.clone(), Vec::new())));
    for status in snapshot.traffic_statuses() {
        if let Some(targets) = policies.get_mut(&status.policy) {
            targets.push(of_target(&status.target, &status.outcome));
        }
    }
    let policy = |((namespace, name), targets): (ServiceKey, _)| v1::TrafficPolicy {
        namespace: namespace.to_string(),
        name: name.to_string(),
        targets,
    };
    v1::Routes { routes, traffic_policies: policies.into_iter().map(policy).collect() }
}

fn condition(of: Condition) -> v1::Condition {
    let status = match of.status {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    };
    let (kind, reason) = (of.kind.to_owned(), of.reason.to_owned());
    v1::Condition { r#type: kind, status: status.to_owned(), reason, message: of.message }
}

fn parent(of: &ParentRef) -> String {
    let mut text = match &of.target {
        ParentTarget::Service((namespace, name)) => format!("Service {namespace}/{name}"),
        ParentTarget::Other(what) => what.to_string(),
    };
    text.extend(of.port.map(|port| format!(":{port}")));
    text.extend(of.section.as_ref().map(|section| format!(" ({section})")));
    text
}

fn rule(rule: &Rule) -> v1::RouteRule {
    let sum: u64 = rule.backends.iter().map(|backend| u64::from(backend.weight)).sum();
    let backend = |backend: &Backend| v1::RouteBackend {
        to: target(&backend.to),
        weight: backend.weight,
        percent: percent(backend.weight, sum),
        filters: filters(&backend.filters),
    };
    v1::RouteRule {
        index: rule.id.index,
        name: rule.id.name.as_deref().unwrap_or_default().to_owned(),
        matches: rule.matches.iter().map(conditions).collect(),
        filters: filters(&rule.filters),
        backends: rule.backends.iter().map(backend).collect(),
        invalid: rule.invalid.as_deref().unwrap_or_default().to_owned(),
    }
}

/// A part of a sum, to a hundredth.
pub fn percent(weight: u32, sum: u64) -> f64 {
    if sum == 0 { 0.0 } else { (f64::from(weight) * 10_000.0 / sum as f64).round() / 100.0 }
}

fn of_target(target: &TrafficTarget, outcome: &TrafficOutcome) -> v1::TrafficTarget {
    let target = match target {
        TrafficTarget::Service((_, name)) => format!("Service {name}"),
        TrafficTarget::Route { route, rule } => {
            let rule = rule.as_ref().map(|rule| format!("/{rule}")).unwrap_or_default();
            format!("{} {}{rule}", route.kind.as_str(), route.name)
        }
    };
    let (outcome, message) = match outcome {
        TrafficOutcome::Accepted => ("Accepted", String::new()),
        TrafficOutcome::Conflicted((namespace, name)) => {
            ("Conflicted", format!("TrafficPolicy {namespace}/{name}, which is older, has the target"))
        }
        TrafficOutcome::TargetNotFound => {
            ("TargetNotFound", "there is no such object, or no such rule in it".to_owned())
        }
        TrafficOutcome::Invalid(why) => ("Invalid", why.to_string()),
    };
    v1::TrafficTarget { target, outcome: outcome.to_owned(), message }
}

/// Every Service port, or those of a namespace, and how it is used.
pub fn endpoints(
    snapshot: &Snapshot,
    namespace: Option<&str>,
    usage: impl Fn(&ServiceKey, u16) -> Option<PortUsage>,
) -> v1::Endpoints {
    let mut services: Vec<_> = snapshot.services().filter(|s| namespace.is_none_or(|n| *s.namespace == *n)).collect();
    services.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    let ports = services.into_iter().flat_map(|service| service.ports.iter().map(move |port| (service, port)));
    let view = |(service, port): (&Arc<Service>, _)| of_port(snapshot, service, port, &usage);
    v1::Endpoints { ports: ports.map(view).collect() }
}

fn of_port(
    snapshot: &Snapshot,
    service: &Service,
    port: &ServicePort,
    usage: &impl Fn(&ServiceKey, u16) -> Option<PortUsage>,
) -> v1::EndpointPort {
    let key = service.key();
    let (used, traffic) = (usage(&key, port.port), snapshot.traffic(&key));
    let limits = &traffic.circuit;
    let endpoint = |e: &Endpoint| {
        let used = used.as_ref().and_then(|used| used.endpoints.iter().find(|one| one.addr == e.addr));
        let (standing, ejected_seconds) = used.map_or(("", 0.0), standing);
        v1::EndpointUse {
            address: e.addr.to_string(),
            pod: e.workload.as_ref().map(|w| format!("{}/{}", w.namespace, w.name)).unwrap_or_default(),
            node: e.node.to_string(),
            state: state(e).to_owned(),
            standing: standing.to_owned(),
            ejected_seconds,
            share: used.map_or(0.0, |used| share(used, &traffic.balance)),
            latency_seconds: used
                .and_then(|used| latency(used, &traffic.balance))
                .map_or(0.0, |time| time.as_secs_f64()),
            places: used.map(|used| places(&used.circuit, &limits.endpoint)).unwrap_or_default(),
        }
    };
    let budget = used.as_ref().map(|used| used.budget);
    v1::EndpointPort {
        namespace: service.namespace.to_string(),
        service: service.name.to_string(),
        port: port.port.into(),
        name: port.name.to_string(),
        used: used.is_some(),
        places: used.as_ref().map(|used| places(&used.circuit, &limits.service)).unwrap_or_default(),
        requests: budget.map_or(0, |budget| budget.requests),
        retries: budget.map_or(0, |budget| budget.retries),
        retries_refused: budget.map_or(0, |budget| budget.refused),
        endpoints: port.endpoints.iter().map(endpoint).collect(),
    }
}

const fn state(endpoint: &Endpoint) -> &'static str {
    match (endpoint.ready, endpoint.serving, endpoint.terminating) {
        (true, ..) => "ready",
        (false, true, true) => "serving",
        (false, _, true) => "terminating",
        (false, _, false) => "not ready",
    }
}

fn standing(used: &EndpointUsage) -> (&'static str, f64) {
    match used.ejected {
        Ejected::No => ("serving", 0.0),
        Ejected::For(time) => ("ejected", time.as_secs_f64()),
        Ejected::Probed => ("probed", 0.0),
    }
}

/// How much of a full share a new endpoint takes, to a hundredth.
fn share(used: &EndpointUsage, balance: &Balance) -> f64 {
    (f64::from(balance.weight(used.age).get()) * 100.0 / f64::from(Weight::FULL.get())).round() / 100.0
}

/// The latency that an endpoint is chosen by, where it is.
fn latency(used: &EndpointUsage, balance: &Balance) -> Option<Duration> {
    used.latency.filter(|_| balance.algorithm == Algorithm::PeakEwma)
}

fn places(usage: &CircuitUsage, limits: &Limits) -> Vec<v1::Places> {
    let place = |(resource, usage): (Resource, &Usage)| v1::Places {
        resource: resource.as_str().to_owned(),
        used: usage.used,
        max: match limit(limits, resource) {
            u32::MAX => 0,
            max => max,
        },
        overflowed: usage.overflowed,
    };
    Resource::ALL.iter().copied().zip(usage).map(place).collect()
}

/// What is in use of a port, in one sentence.
pub fn port_in_words(usage: Option<&PortUsage>) -> String {
    match usage {
        None => "no pod of this node has called it of late".to_owned(),
        Some(PortUsage { budget, circuit, .. }) => {
            let refused =
                if budget.refused > 0 { format!(", {} refused so far", budget.refused) } else { String::new() };
            format!("{}; the budget counts {} retries{refused}", in_words(circuit), budget.retries)
        }
    }
}

/// What is known of an endpoint, in one sentence.
pub fn endpoint_in_words(usage: &EndpointUsage, balance: &Balance) -> String {
    let standing = match usage.ejected {
        Ejected::No => "serves".to_owned(),
        Ejected::For(time) => format!("ejected for {:.0} s more", time.as_secs_f64()),
        Ejected::Probed => "was ejected; the next request decides".to_owned(),
    };
    let share = share(usage, balance);
    let starts = if share < 1.0 { format!("; takes {share} of its share yet, as it is new") } else { String::new() };
    let latency = latency(usage, balance).map(|time| format!("; answers in {time:.1?} by its average"));
    format!("{standing}{starts}{}; {}", latency.unwrap_or_default(), in_words(&usage.circuit))
}

fn in_words(circuit: &CircuitUsage) -> String {
    let one = |(resource, usage): (Resource, &Usage)| {
        let over = if usage.overflowed > 0 { format!(" ({} times full)", usage.overflowed) } else { String::new() };
        format!("{} {resource}{over}", usage.used)
    };
    Resource::ALL.iter().copied().zip(circuit).map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
#[path = "route_views_tests.rs"]
mod tests;
