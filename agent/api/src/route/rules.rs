//! The rules of routes of each kind, one by one.

use std::sync::Arc;

use heddle_model::routing::{Filters, Match, PathMatch, Rule, RuleId};
use heddle_model::traffic::{Backoff, RequestTraffic, Retries, RetryPolicy, Timeouts};

use super::{Reader, backends, filters, matches};
use crate::duration::{self, NEVER};
use crate::meta;
use crate::node::shortened;
use crate::place::Place;
use crate::problem::Problems;
use crate::traffic_policy::ATTEMPTS_MAX;

/// One of an HTTPRoute.
pub(super) fn http(reader: &mut Reader<'_>, id: RuleId, place: &Place<'_>, problems: &mut Problems) -> Rule {
    let known = ["name", "matches", "filters", "backendRefs", "timeouts", "retry", "sessionPersistence"];
    let is_rule = place.is_mapping_of(&known, problems);
    refuse_persistence(place, problems);
    let matches = match is_rule {
        true => matches::convert(reader, place, problems, matches::http),
        false => matches::unreadable(),
    };
    let filters = filters::of_http(reader, place, problems);
    if filters::replaces_prefix(&filters) {
        let is_prefix = match &*matches {
            [] => true,
            [only] => matches!(only.path, PathMatch::Prefix(_) | PathMatch::Unreadable),
            _ => false,
        };
        if !is_prefix {
            let message = "has a filter with `replacePrefixMatch`: then exactly one match, of a PathPrefix, is needed";
            problems.error(place.path(), message);
        }
    }
    let traffic = RequestTraffic { retry: retry(place, problems), timeouts: timeouts(place, problems), faults: None };
    let backends = backends::convert(reader, place, true, problems);
    Rule { id, matches, filters, backends, traffic, invalid: None }
}

/// One of a GRPCRoute.
pub(super) fn grpc(reader: &mut Reader<'_>, id: RuleId, place: &Place<'_>, problems: &mut Problems) -> Rule {
    let known = ["name", "matches", "filters", "backendRefs", "sessionPersistence"];
    let is_rule = place.is_mapping_of(&known, problems);
    refuse_persistence(place, problems);
    let matches = match is_rule {
        true => matches::convert(reader, place, problems, matches::grpc),
        false => matches::unreadable(),
    };
    let filters = filters::of_grpc(reader, place, problems);
    let backends = backends::convert(reader, place, true, problems);
    Rule { id, matches, filters, backends, traffic: RequestTraffic::default(), invalid: None }
}

/// The one of a TLSRoute or TCPRoute.
pub(super) fn bytes(reader: &mut Reader<'_>, id: RuleId, place: &Place<'_>, problems: &mut Problems) -> Rule {
    let is_rule = place.is_mapping_of(&["name", "backendRefs"], problems);
    let backends = backends::convert(reader, place, false, problems);
    if is_rule && place.count("backendRefs") == 0 {
        problems.error(place.at("backendRefs"), "is missing: connections lead nowhere without");
    }
    let (matches, filters, traffic) = (Box::<[Match]>::default(), Filters::default(), RequestTraffic::default());
    Rule { id, matches, filters, backends, traffic, invalid: None }
}

/// The `name` of a rule, if it is one.
pub(super) fn name(place: &Place<'_>, problems: &mut Problems) -> Option<Arc<str>> {
    let name: String = place.field("name", problems)?;
    if !meta::is_dns_subdomain(&name) {
        problems.error(
            place.at("name"),
            format!("`{}` is no name: lower-case letters, digits, `-`, `.`", shortened(&name)),
        );
        return None;
    }
    Some(name.into())
}

fn refuse_persistence(place: &Place<'_>, problems: &mut Problems) {
    if place.get("sessionPersistence").is_some() {
        problems.error(place.at("sessionPersistence"), "is not supported: remove it");
    }
}

fn timeouts(place: &Place<'_>, problems: &mut Problems) -> Timeouts {
    let Some(place) = place.get("timeouts") else { return Timeouts::default() };
    place.is_mapping_of(&["request", "backendRequest"], problems);
    let mut limit = |key: &str| {
        let limit = time(&place, key, problems)?;
        Some(if limit.is_zero() { NEVER } else { limit })
    };
    let (request, backend_request) = (limit("request"), limit("backendRequest"));
    if let (Some(request), Some(backend_request)) = (request, backend_request)
        && backend_request > request
        // One attempt without limit of its own ends with the request.
        && backend_request != NEVER
    {
        problems.error(place.at("backendRequest"), "is longer than `request`");
    }
    Timeouts { request, backend_request, ..Timeouts::default() }
}

/// `retry` of GEP-1731. What it does not say is as TrafficPolicies say, or their default.
fn retry(place: &Place<'_>, problems: &mut Problems) -> Option<Arc<RetryPolicy>> {
    let place = place.get("retry")?;
    place.is_mapping_of(&["codes", "attempts", "backoff"], problems);
    let mut said = Retries::default();
    let mut codes = Vec::new();
    for item in place.items("codes", 200, problems) {
        match item.value::<i64>(problems) {
            Some(code @ 400..=599) => codes.extend(u16::try_from(code)),
            Some(code) => problems.error(item.path(), format!("{code} is no error: 400 to 599")),
            None => {}
        }
    }
    if !codes.is_empty() {
        said.statuses = Some(codes.into_iter().collect());
    }
    said.retries_max = attempts(&place, problems);
    if let Some(base) = time(&place, "backoff", problems) {
        let max = Backoff::default().max.max(base.saturating_mul(10));
        (said.least, said.base, said.max) = (Some(base), Some(base), Some(max));
    }
    Some(Arc::new(said.policy()))
}

/// `attempts`: 0 is none. The API knows no maximum, so that more than ours is no mistake of the author's: it is as many as there may be, and told.
fn attempts(place: &Place<'_>, problems: &mut Problems) -> Option<u32> {
    let attempts: i64 = place.field("attempts", problems)?;
    let at = place.at("attempts");
    if attempts < 0 {
        problems.error(at, format!("{attempts} is less than none: 0 or more"));
        return None;
    }
    if attempts > ATTEMPTS_MAX {
        problems.warn(at, format!("{attempts} is more than the agent does for one request: {ATTEMPTS_MAX} count"));
    }
    u32::try_from(attempts.min(ATTEMPTS_MAX)).ok()
}

fn time(place: &Place<'_>, key: &str, problems: &mut Problems) -> Option<std::time::Duration> {
    let text: String = place.field(key, problems)?;
    duration::parse(&text).map_err(|message| problems.error(place.at(key), message)).ok()
}
