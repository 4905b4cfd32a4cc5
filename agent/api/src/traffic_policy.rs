//! `heddle.dev/v1alpha1 TrafficPolicy`: how requests to a Service, or of a route, are carried (FEATURES E).
//!
//! One that is wrong in any part says nothing at all: its targets keep the defaults, and it is reported. What it says must then be what its author
//! meant: a field that nobody knows, one without a value, and one that is no business of its target are refused.

mod faults;
mod outlier;
mod settings;
mod share;

use std::sync::Arc;
use std::time::Duration;

use heddle_model::routing::{RouteKey, RouteKind, TrafficPolicy, TrafficTarget};
use heddle_model::traffic::{RequestTraffic, ServiceTraffic};

pub use faults::{AbortFields, DelayFields, FaultsFields, HeaderFields};
pub use outlier::{OutlierFields, SuccessRateFields};
pub use settings::{
    BackoffFields, BudgetFields, CircuitFields, LimitsFields, LoadBalancingFields, RetriesFields, SlowStartFields,
    TimeoutsFields,
};
pub use share::FractionFields;
pub(crate) use share::share;

use crate::duration;
use crate::meta::{self, ObjectMeta};
use crate::node::{self, Node, shortened};
use crate::place::Place;
use crate::problem::{Problem, Problems};
use crate::route::GROUP;

/// Most entries of `spec.targetRefs`.
pub const TARGETS_MAX: usize = 16;
/// Greatest `spec.retries.attempts`.
pub const ATTEMPTS_MAX: i64 = 10;

/// `spec` of a TrafficPolicy.
#[derive(Debug, Default, serde::Deserialize, schemars::JsonSchema)]
#[schemars(extend("required" = ["targetRefs"]))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TrafficPolicySpec {
    /// What it is about, in its own namespace: Services, or routes and rules of them. For routes only `retries`, `timeouts` but for `connect`, and
    /// `faults`.
    #[schemars(length(min = 1, max = TARGETS_MAX))]
    pub target_refs: Option<Vec<TargetRefFields>>,
    /// When and how often a request is tried again.
    pub retries: Option<RetriesFields>,
    /// How many retries of all requests to the Service together.
    pub retry_budget: Option<BudgetFields>,
    /// How long requests may take.
    pub timeouts: Option<TimeoutsFields>,
    /// How much of the Service may be in use at once.
    pub circuit_breaker: Option<CircuitFields>,
    /// Which endpoints are left out for a while; without it none is.
    pub outlier_detection: Option<OutlierFields>,
    /// How an endpoint is chosen.
    pub load_balancing: Option<LoadBalancingFields>,
    /// Faults to inject, at the client's side.
    pub faults: Option<FaultsFields>,
}

/// An item of `spec.targetRefs`.
#[derive(Debug, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRefFields {
    /// API group; that of the kind without it.
    #[serde(default)]
    #[schemars(extend("enum" = ["", GROUP]))]
    pub group: Option<String>,
    /// `Service`, `HTTPRoute` or `GRPCRoute`.
    #[schemars(extend("enum" = schema_kinds()))]
    pub kind: String,
    /// Its name.
    #[schemars(length(min = 1, max = meta::SUBDOMAIN_BYTES_MAX))]
    pub name: String,
    /// Of a route: the name of one rule.
    #[serde(default)]
    #[schemars(length(min = 1, max = meta::SUBDOMAIN_BYTES_MAX))]
    pub section_name: Option<String>,
}

const KINDS: [(&str, Option<RouteKind>); 3] =
    [("Service", None), ("HTTPRoute", Some(RouteKind::Http)), ("GRPCRoute", Some(RouteKind::Grpc))];

fn schema_kinds() -> Vec<&'static str> {
    crate::schema::words(&KINDS)
}

/// Converts a policy; if something is wrong, also from before, what is left is whom it was meant for.
pub(crate) fn convert(namespace: &str, name: &str, root: &Node<'_>, problems: &mut Problems) -> TrafficPolicy {
    let place = Place::new(root, "");
    let is_object = place.is_mapping_of(&["apiVersion", "kind", "metadata", "spec"], problems);
    let metadata = place.get("metadata").filter(|_| is_object);
    let metadata: ObjectMeta = metadata.and_then(|place| place.value(problems)).unwrap_or_default();
    let created = metadata.created(problems);
    let spec = place.get("spec");
    if spec.is_none() {
        problems.error("spec", "is missing");
    }
    if let Some(node) = root.get("spec") {
        node::refuse_nulls(node, &mut "spec".to_owned(), problems);
    }
    let fields: Option<TrafficPolicySpec> = spec.as_ref().and_then(|spec| spec.value(problems));
    // Of one whose fields cannot be read as a whole the trouble is told already.
    let mut untold = Problems::default();
    let of_targets = if fields.is_some() { &mut *problems } else { &mut untold };
    let targets = spec.map_or_else(Vec::new, |spec| targets(namespace, &spec, of_targets));
    let mut traffic = ServiceTraffic::default();
    if let Some(fields) = &fields {
        traffic = self::traffic(fields, problems);
        if targets.iter().any(|target| matches!(target, TrafficTarget::Route { .. })) {
            refuse_what_is_of_services(fields, problems);
        }
    }
    let settings = match problems.errors.first().map(Problem::told) {
        Some(first) => Err(first.into()),
        None => {
            if traffic == ServiceTraffic::default() {
                problems.warn("spec", "says nothing but the defaults: it has no effect beside others");
            }
            traffic.origin = Some(format!("{namespace}/{name}").into());
            Ok(Arc::new(traffic))
        }
    };
    TrafficPolicy { key: (namespace.into(), name.into()), created, targets: targets.into(), settings }
}

fn traffic(fields: &TrafficPolicySpec, problems: &mut Problems) -> ServiceTraffic {
    let retry = fields.retries.as_ref().map(|fields| Arc::new(fields.convert("spec.retries", problems)));
    let timeouts = fields.timeouts.as_ref().map(|fields| fields.convert("spec.timeouts", problems)).unwrap_or_default();
    let faults = fields.faults.as_ref().map(|fields| Arc::new(fields.convert("spec.faults", problems)));
    let (timeouts, connect_timeout) = timeouts;
    let budget = fields.retry_budget.as_ref().map(|fields| fields.convert("spec.retryBudget", problems));
    let circuit = fields.circuit_breaker.as_ref().map(|fields| fields.convert("spec.circuitBreaker", problems));
    let outlier = fields.outlier_detection.as_ref().map(|fields| fields.convert("spec.outlierDetection", problems));
    let balance = fields.load_balancing.as_ref().map(|fields| fields.convert("spec.loadBalancing", problems));
    ServiceTraffic {
        origin: None,
        request: RequestTraffic { retry, timeouts, faults },
        budget: budget.unwrap_or_default(),
        circuit: circuit.unwrap_or_default(),
        outlier,
        balance: balance.unwrap_or_default(),
        connect_timeout,
    }
}

fn refuse_what_is_of_services(fields: &TrafficPolicySpec, problems: &mut Problems) {
    let connect = fields.timeouts.as_ref().and_then(|timeouts| timeouts.connect.as_ref());
    for (field, is_there) in [
        ("spec.retryBudget", fields.retry_budget.is_some()),
        ("spec.timeouts.connect", connect.is_some()),
        ("spec.circuitBreaker", fields.circuit_breaker.is_some()),
        ("spec.outlierDetection", fields.outlier_detection.is_some()),
        ("spec.loadBalancing", fields.load_balancing.is_some()),
    ] {
        if is_there {
            problems.error(
                field,
                "is of Services, and `spec.targetRefs` names a route: put it into a policy for the Service",
            );
        }
    }
}

/// Those that can be read; what is wrong with the others is told.
fn targets(namespace: &str, spec: &Place<'_>, problems: &mut Problems) -> Vec<TrafficTarget> {
    if spec.count("targetRefs") == 0 {
        problems.error("spec.targetRefs", "names nothing: one target is needed at least");
    }
    let mut targets: Vec<TrafficTarget> = Vec::new();
    for place in spec.items("targetRefs", TARGETS_MAX, problems) {
        let Some(target) = target(namespace, &place, problems) else { continue };
        if targets.contains(&target) {
            problems.error(place.path(), "names what is named already");
        } else {
            targets.push(target);
        }
    }
    targets
}

fn target(namespace: &str, place: &Place<'_>, problems: &mut Problems) -> Option<TrafficTarget> {
    let before = problems.errors.len();
    let TargetRefFields { group, kind, name, section_name } = place.value(problems)?;
    let kind = meta::one_of(problems, &place.at("kind"), &kind, &KINDS)?;
    let of_kind = if kind.is_some() { GROUP } else { "" };
    if let Some(group) = group.filter(|group| group != of_kind) {
        problems.error(place.at("group"), format!("`{}` is not the group of the kind: `{of_kind}`", shortened(&group)));
    }
    let is_name = if kind.is_some() { meta::is_dns_subdomain(&name) } else { meta::is_dns_label(&name) };
    if !is_name {
        problems.error(place.at("name"), format!("`{}` is no name of one", shortened(&name)));
    }
    match (&section_name, kind) {
        (Some(_), None) => {
            problems.error(place.at("sectionName"), "is of routes: a policy is about all ports of a Service");
        }
        (Some(section), Some(_)) if !meta::is_dns_subdomain(section) => {
            problems.error(place.at("sectionName"), format!("`{}` is no name of a rule", shortened(section)));
        }
        _ => {}
    }
    if problems.errors.len() > before {
        return None;
    }
    let (namespace, name): (Arc<str>, Arc<str>) = (namespace.into(), name.into());
    Some(match kind {
        None => TrafficTarget::Service((namespace, name)),
        Some(kind) => {
            TrafficTarget::Route { route: RouteKey { kind, namespace, name }, rule: section_name.map(Arc::from) }
        }
    })
}

/// A time in the field at `path`, if it is there and right.
fn time(path: &str, field: &str, text: &Option<String>, problems: &mut Problems) -> Option<Duration> {
    let read = duration::parse(text.as_deref()?);
    read.map_err(|message| problems.error(format!("{path}.{field}"), message)).ok()
}

/// The same of one that may not be nothing.
fn some_time(path: &str, field: &str, text: &Option<String>, problems: &mut Problems) -> Option<Duration> {
    let found = time(path, field, text, problems)?;
    if found.is_zero() {
        problems.error(format!("{path}.{field}"), "is no time at all: `1ms` is the least");
        return None;
    }
    Some(found)
}

/// A whole number in the field at `path`, if it is there and in the range.
fn number<T: TryFrom<i64>>(
    path: &str,
    field: &str,
    number: Option<i64>,
    range: std::ops::RangeInclusive<i64>,
    problems: &mut Problems,
) -> Option<T> {
    let number = number?;
    let converted = T::try_from(number).ok().filter(|_| range.contains(&number));
    if converted.is_none() {
        let message = format!("{number} is out of range: {} to {}", range.start(), range.end());
        problems.error(format!("{path}.{field}"), message);
    }
    converted
}

/// Any number in the field at `path`, if it is there and in the range.
fn real(
    path: &str,
    field: &str,
    number: Option<f64>,
    range: std::ops::RangeInclusive<f64>,
    problems: &mut Problems,
) -> Option<f64> {
    let number = number?;
    if !range.contains(&number) {
        let message = format!("{number} is out of range: {} to {}", range.start(), range.end());
        problems.error(format!("{path}.{field}"), message);
        return None;
    }
    Some(number)
}

#[cfg(test)]
#[path = "traffic_policy_tests.rs"]
mod tests;
