//! What became of routes and TrafficPolicies, in the Gateway API's conditions and reasons.
//!
//! Computed when it is asked for, from the same functions that tables are made with: nothing here can differ from what is in force.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::attachment::{Clients, Settled, Unattached, clients_of, is_usable, ports_of, settle};
use super::tables::refs_of;
use super::{
    BackendProblem, BackendRef, ParentRef, ParentTarget, PathMatch, Route, RouteKey, Rule, TrafficPolicy, TrafficTarget,
};
use crate::service::{Service, ServiceKey};
use crate::snapshot::Snapshot;

/// What became of a route at one of its parents. That of a [`ParentTarget::Other`] is for people to read: its status is another controller's
/// to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteStatus {
    /// Which route.
    pub route: RouteKey,
    /// `observedGeneration`.
    pub generation: i64,
    /// Which of its parents.
    pub parent: ParentRef,
    /// `Accepted`, `ResolvedRefs`, `Programmed`, and `PartiallyInvalid` where it is true: of a route that is accepted and has rules that are not.
    pub conditions: Vec<Condition>,
}

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// `type`.
    pub kind: &'static str,
    /// `status`: `None` is `Unknown`.
    pub status: Option<bool>,
    /// `reason`.
    pub reason: &'static str,
    /// `message`: the field and why.
    pub message: String,
}

/// What became of a TrafficPolicy at one of its targets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrafficStatus {
    /// Which policy.
    pub policy: ServiceKey,
    /// Which target.
    pub target: TrafficTarget,
    /// What became of it.
    pub outcome: TrafficOutcome,
}

/// What became of a TrafficPolicy at one of its targets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrafficOutcome {
    /// It is in force.
    Accepted,
    /// An older policy has the target, this one.
    Conflicted(ServiceKey),
    /// No such object, or no such rule in it: it is in force once there is.
    TargetNotFound,
    /// It cannot be read, as `field: message`.
    Invalid(Arc<str>),
}

/// Most host names that one message lists.
const NAMES_TOLD: usize = 8;

/// Routes of each Service, worked out once for all that are attached to it.
type Known<'a> = HashMap<&'a ServiceKey, BTreeMap<(Clients, u16), Settled<'a>>>;

impl Snapshot {
    /// What became of every route at every parent, by kind, namespace and name.
    #[must_use]
    pub fn route_statuses(&self) -> Vec<RouteStatus> {
        let mut routes: Vec<&Arc<Route>> = self.routes().collect();
        routes.sort_by(|a, b| a.key.cmp(&b.key));
        let mut known = Known::new();
        let of_parent = |(route, at)| self.route_status(route, at, &mut known);
        routes
            .into_iter()
            .flat_map(|route| (0..route.parents.len()).map(move |at| (&**route, at)))
            .map(of_parent)
            .collect()
    }

    fn route_status<'a>(&'a self, route: &'a Route, at: usize, known: &mut Known<'a>) -> RouteStatus {
        let parent = &route.parents[at];
        let (accepted, is_in_force) = self.accepted(route, at, known);
        let is_accepted = accepted.status == Some(true);
        let (reason, message) = match (is_accepted, is_in_force, route.key.kind.is_http()) {
            (true, ..) => ("Programmed", "this agent carries it out"),
            (false, true, true) => ("Invalid", "no rule can be carried out: what they match is answered 500"),
            (false, true, false) => ("Invalid", "its rule cannot be carried out: its connections are refused"),
            (false, false, _) => ("Invalid", "the route is not accepted, and has no effect here"),
        };
        let programmed = condition("Programmed", Some(is_accepted), reason, message);
        let partially = if is_accepted { partially_invalid(route) } else { None };
        let mut conditions = vec![accepted, self.resolved(route), programmed];
        conditions.extend(partially);
        RouteStatus { route: route.key.clone(), generation: route.generation, parent: parent.clone(), conditions }
    }

    /// `Accepted`, and whether the route's rules are in force: also of one that is not accepted they are where none can be carried out.
    fn accepted<'a>(&'a self, route: &'a Route, at: usize, known: &mut Known<'a>) -> (Condition, bool) {
        let refused = |reason, message: String| (condition("Accepted", Some(false), reason, message), false);
        let parent = &route.parents[at];
        let key = match &parent.target {
            ParentTarget::Service(key) => key,
            ParentTarget::Other(what) => {
                return refused("NoMatchingParent", format!("parentRefs[{at}]: {what} is not served by this agent"));
            }
        };
        let name = format!("parentRefs[{at}]: Service {}/{}", key.0, key.1);
        let service = self.service(&key.0, &key.1).map(|service| &**service);
        let ports = match ports_of(parent, service) {
            Ok(ports) => ports,
            Err(Unattached::NoService) => return refused("NoMatchingParent", format!("{name} does not exist")),
            Err(Unattached::NoPort) => {
                return refused("NoMatchingParent", format!("{name} has no port {}", named_port(parent)));
            }
            Err(Unattached::Headless) => {
                let message =
                    format!("{name} is headless: clients call its pods, and routes have nothing to hold on to");
                return refused("UnsupportedValue", message);
            }
            Err(Unattached::Rejected) => {
                let message = format!("{name} was rejected itself: correct it first");
                return (condition("Accepted", None, "Pending", message), false);
            }
        };
        if !is_usable(route) {
            let message = match route.rules.len() {
                0 => "rules: there is none".to_owned(),
                count => format!("rules: {count} of them, where this kind of route has one"),
            };
            return refused("UnsupportedValue", message);
        }
        let Some(service) = service else { return refused("NoMatchingParent", format!("{name} does not exist")) };
        let settled = known.entry(key).or_insert_with(|| settle(self.routing.attached_to(key), service));
        let clients = clients_of(route, key);
        let lost_to = |port: &u16| settled.get(&(clients.clone(), *port))?.losers.get(&route.key).map(|by| (*port, by));
        let lost: Vec<(u16, &RouteKey)> = ports.iter().filter_map(lost_to).collect();
        // `None` as soon as one of them can be carried out.
        let reasons: Option<Vec<_>> = route.rules.iter().map(|rule| rule.invalid.as_ref()).collect();
        if let Some([why, ..]) = reasons.as_deref() {
            let message = format!("{why}; no rule can be carried out");
            return (condition("Accepted", Some(false), "UnsupportedValue", message), lost.len() < ports.len());
        }
        let losses = || {
            let one = |(port, by): &(u16, &RouteKey)| {
                format!("{name} port {port} has {} {}/{} before it", by.kind.as_str(), by.namespace, by.name)
            };
            lost.iter().map(one).collect::<Vec<_>>().join("; ")
        };
        if lost.len() == ports.len() {
            return refused("Conflicted", losses());
        }
        let mut message = match &clients {
            None => "for all clients".to_owned(),
            Some(namespace) => format!("for clients in namespace {namespace}, in place of the routes of {}", key.0),
        };
        if !lost.is_empty() {
            message = format!("{message}; not everywhere: {}", losses());
        }
        let names = ports.iter().filter_map(|port| settled.get(&(clients.clone(), *port))?.lost_names.get(&route.key));
        let names: BTreeSet<&str> = names.flatten().map(|name| &**name).collect();
        if !names.is_empty() {
            let more = match names.len().saturating_sub(NAMES_TOLD) {
                0 => String::new(),
                more => format!(" (and {more} more)"),
            };
            let names: Vec<&str> = names.into_iter().take(NAMES_TOLD).collect();
            message = format!("{message}; but not for {}{more}, which an older route has", names.join(", "));
        }
        (condition("Accepted", Some(true), "Accepted", message), true)
    }

    fn resolved(&self, route: &Route) -> Condition {
        let problems = route.rules.iter().flat_map(|rule| refs_of(rule).map(move |to| (rule, to)));
        let mut problems = problems.filter_map(|(rule, to)| Some((rule.id.index, self.problem(&route.key, to)?)));
        let Some((rule, (reason, message))) = problems.next() else {
            return condition(
                "ResolvedRefs",
                Some(true),
                "ResolvedRefs",
                "every backend exists and may be referred to",
            );
        };
        let more = match problems.count() {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        condition("ResolvedRefs", Some(false), reason, format!("rules[{rule}]: {message}{more}"))
    }

    fn problem(&self, route: &RouteKey, to: &BackendRef) -> Option<(&'static str, String)> {
        let not_found = |service: &ServiceKey, port: u16| {
            let what = match self.service(&service.0, &service.1) {
                None => format!("Service {}/{} does not exist", service.0, service.1),
                Some(_) => format!("Service {}/{} has no port {port}", service.0, service.1),
            };
            ("BackendNotFound", what)
        };
        let not_permitted = |service: &ServiceKey| {
            let to = format!("Service {}/{}", service.0, service.1);
            ("RefNotPermitted", format!("{to} is in another namespace, and no ReferenceGrant there allows it"))
        };
        match to {
            // Whether it exists is not for those to know who may not refer to it.
            BackendRef::Service { service, .. } if !self.routing.permits(route, service) => {
                Some(not_permitted(service))
            }
            BackendRef::Service { service, port } => {
                let found = self.service(&service.0, &service.1);
                // Of a rejected one the ports may be unknown; its own report says what is wrong.
                let has_port = |found: &Arc<Service>| found.invalid || found.port(*port).is_some();
                (!found.is_some_and(has_port)).then(|| not_found(service, *port))
            }
            BackendRef::Invalid(BackendProblem::InvalidKind(what)) => {
                Some(("InvalidKind", format!("{what} is no Service")))
            }
            BackendRef::Invalid(BackendProblem::RefNotPermitted(service)) => Some(not_permitted(service)),
            BackendRef::Invalid(BackendProblem::UnsupportedValue(why)) => Some(("UnsupportedValue", why.to_string())),
        }
    }

    /// What became of every TrafficPolicy at every target, by namespace and name.
    #[must_use]
    pub fn traffic_statuses(&self) -> Vec<TrafficStatus> {
        let mut policies: Vec<&Arc<TrafficPolicy>> = self.traffic_policies().collect();
        policies.sort_by(|a, b| a.key.cmp(&b.key));
        let of_target = |policy: &TrafficPolicy, target: &TrafficTarget| TrafficStatus {
            policy: policy.key.clone(),
            target: target.clone(),
            outcome: self.traffic_outcome(policy, target),
        };
        policies.iter().flat_map(|policy| policy.targets.iter().map(|target| of_target(policy, target))).collect()
    }

    fn traffic_outcome(&self, policy: &TrafficPolicy, target: &TrafficTarget) -> TrafficOutcome {
        if let Err(why) = &policy.settings {
            return TrafficOutcome::Invalid(Arc::clone(why));
        }
        let exists = match target {
            TrafficTarget::Service(service) => self.service(&service.0, &service.1).is_some(),
            TrafficTarget::Route { route, rule } => self.routing.routes.get(route).is_some_and(|route| {
                rule.is_none() || route.rules.iter().any(|one| one.id.name.as_ref() == rule.as_ref())
            }),
        };
        match self.routing.policy_of(target) {
            _ if !exists => TrafficOutcome::TargetNotFound,
            Some(winner) if winner.key != policy.key => TrafficOutcome::Conflicted(winner.key.clone()),
            _ => TrafficOutcome::Accepted,
        }
    }
}

fn condition(kind: &'static str, status: Option<bool>, reason: &'static str, message: impl Into<String>) -> Condition {
    Condition { kind, status, reason, message: message.into() }
}

/// Some rules cannot be carried out, and answer 500; the others are in force. How the message begins is the API's word.
fn partially_invalid(route: &Route) -> Option<Condition> {
    let dropped = |rule: &Arc<Rule>| {
        let is_matched = rule.matches.is_empty() || rule.matches.iter().any(|of| of.path != PathMatch::Unreadable);
        let what = if is_matched { "what it matches is answered 500" } else { "nothing matches it" };
        Some(format!("Dropped Rule {}: {}; {what}", rule.id.index, rule.invalid.as_ref()?))
    };
    let messages: Vec<String> = route.rules.iter().filter_map(dropped).collect();
    let is_partial = !messages.is_empty() && messages.len() < route.rules.len();
    is_partial.then(|| condition("PartiallyInvalid", Some(true), "UnsupportedValue", messages.join(". ")))
}

fn named_port(parent: &ParentRef) -> String {
    match (parent.port, &parent.section) {
        (Some(port), Some(name)) => format!("{port} named {name}"),
        (Some(port), None) => port.to_string(),
        (None, Some(name)) => format!("named {name}"),
        (None, None) => "at all".to_owned(),
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
