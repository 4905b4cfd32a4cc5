//! The Gateway API's HTTPRoute, GRPCRoute, TLSRoute and TCPRoute: where requests to a Service lead (FEATURES D1, D2).
//!
//! A bad rule harms its own matches: it is marked invalid and answered 500, the others work. It stays in its place also where a match of it cannot
//! be read, of which the rest is kept: what it may be about is answered 500, and nothing if nothing is left. What is wrong outside of rules makes every rule invalid, so that the route's parents, as far as they can be read, answer 500 for what it was about, and
//! never send it elsewhere (DESIGN §7). Nothing is left out silently: a field that nobody knows is refused like a wrong one.

mod backends;
pub(crate) mod fields;
mod filters;
mod matches;
mod parents;
mod rules;

use std::sync::Arc;

use heddle_model::policy::Pattern;
use heddle_model::routing::{Route, RouteKey, RouteKind, Rule, RuleId};

use crate::meta::ObjectMeta;
use crate::node::{Node, shortened};
use crate::place::Place;
use crate::problem::{Problem, Problems};

/// The API group of routes.
pub const GROUP: &str = "gateway.networking.k8s.io";

/// Most regular expressions in a route.
pub const REGEXES_MAX: usize = 256;
/// Most rules of an HTTPRoute or GRPCRoute.
const RULES_MAX: usize = 16;
/// Most matches of all rules together.
const MATCHES_MAX: usize = 128;
const HOSTNAMES_MAX: usize = 16;
const TLS_HOSTNAMES_MAX: usize = 1024;

/// What the parts of one route share while it is read.
struct Reader<'a> {
    /// The route's.
    namespace: &'a str,
    regexes: usize,
    /// What is told of fields that are there more than once, in all of its object.
    duplicates: Vec<String>,
    /// What is wrong with single backends, and harms nothing else.
    of_backends: Problems,
}

/// Converts a route; if something is wrong already, its rules are all invalid.
pub(crate) fn convert(kind: RouteKind, namespace: &str, name: &str, root: &Node<'_>, problems: &mut Problems) -> Route {
    let key = RouteKey { kind, namespace: namespace.into(), name: name.into() };
    let mut of_rules = Problems::default();
    let root = Place::new(root, "");
    let duplicates = root.duplicates();
    let is_object = root.is_mapping_of(&["apiVersion", "kind", "metadata", "spec", "status"], problems);
    let metadata = root.get("metadata").filter(|_| is_object);
    let fields: ObjectMeta = metadata.as_ref().and_then(|place| place.value(problems)).unwrap_or_default();
    let created = fields.created(problems);
    let generation = metadata.and_then(|place| place.field("generation", problems)).unwrap_or_default();
    let mut route =
        Route { key, created, generation, parents: Box::default(), hostnames: Box::default(), rules: Box::default() };
    if let Some(spec) = root.get("spec") {
        read_spec(&mut route, &spec, duplicates, &mut of_rules, problems);
    } else {
        problems.error("spec", "is missing");
    }
    if let Some(first) = problems.errors.first().map(Problem::told) {
        let invalid = |rule: &Arc<Rule>| {
            let invalid = rule.invalid.clone().or_else(|| Some(first.as_str().into()));
            Arc::new(Rule { invalid, ..Rule::clone(rule) })
        };
        route.rules = route.rules.iter().map(invalid).collect();
    }
    problems.errors.append(&mut of_rules.errors);
    route
}

fn read_spec(
    route: &mut Route,
    spec: &Place<'_>,
    duplicates: Vec<String>,
    of_rules: &mut Problems,
    problems: &mut Problems,
) {
    let known: &[&str] = match route.key.kind {
        RouteKind::Tcp => &["parentRefs", "rules", "useDefaultGateways"],
        _ => &["parentRefs", "hostnames", "rules", "useDefaultGateways"],
    };
    if !spec.is_mapping_of(known, problems) {
        return;
    }
    let namespace = Arc::clone(&route.key.namespace);
    route.parents = parents::convert(&namespace, spec, problems);
    if spec.count("parentRefs") == 0 {
        problems.warn("spec.parentRefs", "names no parent: the route has no effect");
    }
    if let Some(scope) = spec.field::<String>("useDefaultGateways", problems) {
        match scope.as_str() {
            "None" => {}
            "All" => problems.warn("spec.useDefaultGateways", "has no effect: this agent serves no Gateways"),
            scope => {
                problems.error("spec.useDefaultGateways", format!("`{}` is unknown: `All` or `None`", shortened(scope)))
            }
        }
    }
    let hostnames_max = if route.key.kind == RouteKind::Tls { TLS_HOSTNAMES_MAX } else { HOSTNAMES_MAX };
    if route.key.kind != RouteKind::Tcp {
        route.hostnames = parents::hostnames(spec, hostnames_max, problems);
    }
    let rules_max = if matches!(route.key.kind, RouteKind::Http | RouteKind::Grpc) { RULES_MAX } else { 1 };
    let before = problems.errors.len();
    let places = spec.items("rules", rules_max, problems);
    let is_unreadable = problems.errors.len() > before || spec.is_contested("rules");
    let total: usize = places.iter().map(|place| place.count("matches")).sum();
    if total > MATCHES_MAX {
        problems.error("spec.rules", format!("{total} matches together: at most {MATCHES_MAX}"));
    }
    if places.is_empty() {
        let absence = match spec.get("rules") {
            _ if is_unreadable => Absence::Unreadable,
            None => Absence::Missing,
            Some(_) => Absence::Empty,
        };
        read_absent_rules(route, absence, problems);
        return;
    }
    let reader = Reader { namespace: &namespace, regexes: 0, duplicates, of_backends: Problems::default() };
    route.rules = read_rules(route, &places, reader, of_rules, problems);
}

/// Why there are no rules to read.
#[derive(Clone, Copy)]
enum Absence {
    Missing,
    /// `[]`.
    Empty,
    /// No list, or there twice: told already.
    Unreadable,
}

fn read_absent_rules(route: &mut Route, absence: Absence, problems: &mut Problems) {
    match (route.key.kind, absence) {
        // The default of the field: every path, and no backend.
        (RouteKind::Http, Absence::Missing) => {
            route.rules = every_request(route);
            problems.warn("spec.rules", "is missing: every request is answered 500");
        }
        (RouteKind::Http, Absence::Empty) => {
            route.rules = every_request(route);
            problems.error("spec.rules", "is empty: at least one, or leave it out");
        }
        // Nobody knows what they were about: so they are about everything.
        (RouteKind::Http | RouteKind::Grpc, Absence::Unreadable) => route.rules = every_request(route),
        (RouteKind::Grpc, Absence::Missing | Absence::Empty) => {
            problems.warn("spec.rules", "is missing: the route has no effect");
        }
        (RouteKind::Tls | RouteKind::Tcp, Absence::Missing | Absence::Empty) => {
            problems.error("spec.rules", "is missing: exactly one");
        }
        (RouteKind::Tls | RouteKind::Tcp, Absence::Unreadable) => {}
    }
}

/// One rule, which every request matches and no backend serves.
fn every_request(route: &Route) -> Box<[Arc<Rule>]> {
    Box::new([Arc::new(Rule {
        id: RuleId { route: route.key.clone(), index: 0, name: None },
        matches: Box::default(),
        filters: heddle_model::routing::Filters::default(),
        backends: Box::default(),
        traffic: heddle_model::traffic::RequestTraffic::default(),
        invalid: None,
    })])
}

fn read_rules(
    route: &Route,
    places: &[Place<'_>],
    mut reader: Reader<'_>,
    of_rules: &mut Problems,
    problems: &mut Problems,
) -> Box<[Arc<Rule>]> {
    let mut names: Vec<Arc<str>> = Vec::new();
    let mut rules = Vec::new();
    let mut matches = 0;
    for (index, place) in (0..).zip(places) {
        // Beyond the limit nothing more is compiled; that there is more is told.
        matches += place.count("matches");
        if matches > MATCHES_MAX {
            break;
        }
        let mut own = Problems { errors: reader.duplicates_of(place, problems), ..Problems::default() };
        let name = rules::name(place, &mut own);
        if let Some(name) = &name {
            if names.contains(name) {
                own.error(place.at("name"), format!("`{name}` is the name of another rule"));
            }
            names.push(Arc::clone(name));
        }
        let id = RuleId { route: route.key.clone(), index, name };
        let read = match route.key.kind {
            RouteKind::Http => rules::http,
            RouteKind::Grpc => rules::grpc,
            RouteKind::Tls | RouteKind::Tcp => rules::bytes,
        };
        let rule = read(&mut reader, id, place, &mut own);
        let invalid = own.errors.first().map(|problem| problem.told().into());
        rules.push(Arc::new(Rule { invalid, ..rule }));
        of_rules.errors.append(&mut own.errors);
        problems.warnings.append(&mut own.warnings);
    }
    of_rules.errors.append(&mut reader.of_backends.errors);
    rules.into()
}

impl Reader<'_> {
    /// What was told of fields that are there more than once, if they are in this rule and nowhere else: its trouble alone.
    fn duplicates_of(&self, place: &Place<'_>, problems: &mut Problems) -> Vec<Problem> {
        let own = place.duplicates();
        if own.is_empty() {
            return Vec::new();
        }
        let count = |all: &[String], message: &str| all.iter().filter(|other| *other == message).count();
        let is_own = |problem: &Problem| match count(&own, &problem.message) {
            0 => false,
            here => here == count(&self.duplicates, &problem.message),
        };
        let (here, elsewhere) = std::mem::take(&mut problems.errors).into_iter().partition::<Vec<_>, _>(is_own);
        problems.errors = elsewhere;
        here.into_iter().map(|problem| Problem { field: place.path().to_owned(), ..problem }).collect()
    }

    /// A regular expression, of which a route may have so many.
    fn pattern(&mut self, at: &str, text: &str, problems: &mut Problems) -> Option<Pattern> {
        self.regexes += 1;
        if self.regexes > REGEXES_MAX {
            problems.error(at, format!("more regular expressions than {REGEXES_MAX} in one route"));
            return None;
        }
        Pattern::new(text).map_err(|error| problems.error(at, format!("`{}`: {error}", shortened(text)))).ok()
    }
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "route_mistakes_tests.rs"]
mod mistakes_tests;

#[cfg(test)]
#[path = "route_kinds_tests.rs"]
mod kinds_tests;
