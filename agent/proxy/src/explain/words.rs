//! Rules and TrafficPolicies in few words, and which object each setting follows from.

use std::fmt::Write as _;
use std::time::Duration;

use heddle_model::routing::{
    BackendProblem, BackendRef, CallMatch, Filters, HeaderEdit, Match, Missed, PathMatch, PathRewrite, Redirect,
    RouteKey, Rule, ValueMatch,
};
use heddle_model::traffic::{
    Abort, CircuitLimits, Conditions, Faults, Limits, NEVER, OutlierSettings, RequestTraffic, RetryPolicy,
    ServiceTraffic, Share,
};
use heddle_model::{ServiceKey, Snapshot};

use super::Step;

/// `HTTPRoute shop/web`.
pub(super) fn route_name(key: &RouteKey) -> String {
    format!("{} {}/{}", key.kind.as_str(), key.namespace, key.name)
}

/// `rule 2 (canary)`.
pub(super) fn rule_place(rule: &Rule) -> String {
    let name = rule.id.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    format!("rule {}{name}", rule.id.index)
}

/// All conditions of a match.
#[must_use]
pub fn conditions(of: &Match) -> String {
    let mut parts = vec![match &of.path {
        PathMatch::Exact(path) => format!("path {path}"),
        PathMatch::Prefix(path) if path.is_empty() => "any path".to_owned(),
        PathMatch::Prefix(path) => format!("path {path}/…"),
        PathMatch::Regex(pattern) => format!("path ~ {pattern:?}"),
        PathMatch::Call(call) => self::call(call),
        PathMatch::Unreadable => "nothing that can be read".to_owned(),
    }];
    parts.extend(of.method.as_ref().map(|method| format!("method {method}")));
    parts.extend(of.headers.iter().map(|header| format!("header {}{}", header.name, value(&header.value))));
    parts.extend(of.query.iter().map(|param| format!("query {}{}", param.name, value(&param.value))));
    parts.join(", ")
}

fn value(of: &ValueMatch) -> String {
    match of {
        ValueMatch::Exact(text) => format!(": {text}"),
        ValueMatch::Regex(pattern) => format!(" ~ {pattern:?}"),
        ValueMatch::Present => " (any: what is written cannot be read)".to_owned(),
    }
}

fn call(of: &CallMatch) -> String {
    let part = |what: &str, of: &Option<ValueMatch>| of.as_ref().map(|of| format!("{what}{}", value(of)));
    let parts: Vec<String> =
        [part("gRPC service", &of.service), part("gRPC method", &of.method)].into_iter().flatten().collect();
    parts.join(", ")
}

/// The condition that failed.
pub(super) fn missed(rule: &Rule, match_index: usize, missed: Missed) -> String {
    let of = rule.matches.get(match_index);
    let named = |what: &str, name: Option<&str>| format!("{what} {}", name.unwrap_or("?"));
    match missed {
        Missed::Method => named("method", of.and_then(|of| of.method.as_deref())),
        Missed::Header(at) => named("header", of.and_then(|of| of.headers.get(at)).map(|header| &*header.name)),
        Missed::Query(at) => named("query", of.and_then(|of| of.query.get(at)).map(|param| &*param.name)),
    }
}

/// What filters do, each in one text.
#[must_use]
pub fn filters(filters: &Filters) -> Vec<String> {
    let mut all = Vec::new();
    all.extend(filters.cors.as_ref().map(|cors| format!("CORS for {}", cors.allow_origins.join(", "))));
    all.extend(filters.redirect.as_ref().map(redirect));
    if let Some(rewrite) = &filters.rewrite {
        all.extend(rewrite.path.as_ref().map(|path| format!("rewrite {}", path_rewrite(path))));
        all.extend(rewrite.hostname.as_ref().map(|host| format!("rewrite host to {host}")));
    }
    all.extend(filters.request_headers.as_ref().map(|edit| format!("request headers: {}", header_edit(edit))));
    all.extend(filters.response_headers.as_ref().map(|edit| format!("response headers: {}", header_edit(edit))));
    all.extend(
        filters.mirrors.iter().map(|mirror| format!("mirror {} to {}", share(mirror.share), target(&mirror.to))),
    );
    all
}

fn redirect(redirect: &Redirect) -> String {
    let mut text = format!("redirect {}", redirect.status);
    let parts = [
        redirect.scheme.as_ref().map(|scheme| format!("scheme {scheme}")),
        redirect.hostname.as_ref().map(|host| format!("host {host}")),
        redirect.port.map(|port| format!("port {port}")),
        redirect.path.as_ref().map(path_rewrite),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if !parts.is_empty() {
        let _ = write!(text, " to {}", parts.join(", "));
    }
    text
}

fn path_rewrite(path: &PathRewrite) -> String {
    match path {
        PathRewrite::Full(path) => format!("path to {path}"),
        PathRewrite::Prefix(prefix) => format!("prefix to {prefix}"),
    }
}

fn header_edit(edit: &HeaderEdit) -> String {
    let pairs = |word: &'static str| move |(name, value): &(_, _)| format!("{word} {name}: {value}");
    let set = edit.set.iter().map(pairs("set"));
    let add = edit.add.iter().map(pairs("add"));
    set.chain(add).chain(edit.remove.iter().map(|name| format!("remove {name}"))).collect::<Vec<_>>().join("; ")
}

/// What a reference names, or why it names nothing.
#[must_use]
pub fn target(to: &BackendRef) -> String {
    match to {
        BackendRef::Service { service, port } => format!("{}/{}:{port}", service.0, service.1),
        BackendRef::Invalid(BackendProblem::InvalidKind(what)) => format!("{what} (no Service)"),
        BackendRef::Invalid(BackendProblem::RefNotPermitted((namespace, name))) => {
            format!("{namespace}/{name} (no ReferenceGrant allows it)")
        }
        BackendRef::Invalid(BackendProblem::UnsupportedValue(why)) => format!("none: {why}"),
    }
}

/// `12.5%`, or `1 of 10000000` where percents do not say it.
fn share(share: Share) -> String {
    let (numerator, denominator) = share.parts();
    let exact = u64::from(numerator) * 1_000_000;
    if exact % u64::from(denominator) == 0 {
        return format!("{}%", (exact / u64::from(denominator)) as f64 / 10_000.0);
    }
    format!("{numerator} of {denominator}")
}

/// What holds for requests to a Service, and from which object; `request` is what is in force for those of this rule, or of no rule. Without it
/// only what concerns connections.
pub(super) fn traffic(
    snapshot: &Snapshot,
    rule: Option<&Rule>,
    service: &ServiceKey,
    request: Option<&RequestTraffic>,
) -> Vec<Step> {
    let of_service = snapshot.traffic(service);
    let origin = snapshot.traffic_policy(service).map(|policy| policy_name(&policy.key)).unwrap_or_default();
    let mut steps = Vec::new();
    if let Some(request) = request {
        let layers = layers(snapshot, rule, &of_service.request, &origin);
        let from = |says: &Says| {
            let layer = layers.iter().find(|(_, traffic)| says(traffic));
            layer.map(|(object, _)| object.clone()).unwrap_or_default()
        };
        of_request(request, &from, &mut steps);
    }
    of_all(of_service, &origin, request.is_some(), &mut steps);
    steps
}

/// Whether somebody says something of a setting.
type Says = dyn Fn(&RequestTraffic) -> bool;

/// Who may say something about a request, the one that counts first.
fn layers(
    snapshot: &Snapshot,
    rule: Option<&Rule>,
    of_service: &RequestTraffic,
    origin: &str,
) -> Vec<(String, RequestTraffic)> {
    let mut layers = Vec::new();
    if let Some(rule) = rule {
        let written = snapshot.route(&rule.id.route).and_then(|route| route.rules.get(rule.id.index as usize));
        layers.extend(written.map(|written| (route_name(&rule.id.route), written.traffic.clone())));
        for policy in snapshot.traffic_policies_of(&rule.id) {
            let settings = policy.settings.as_ref().ok();
            layers.extend(settings.map(|settings| (policy_name(&policy.key), settings.request.clone())));
        }
    }
    layers.push((origin.to_owned(), of_service.clone()));
    layers
}

fn of_request(traffic: &RequestTraffic, from: &dyn Fn(&Says) -> String, steps: &mut Vec<Step>) {
    let mut say = |step, found: String, object| steps.push(Step::new(step, found, object));
    match &traffic.retry {
        Some(policy) => say("retries", retries(policy), from(&|traffic| traffic.retry.is_some())),
        None => say("retries", retries(&RetryPolicy::untold()), String::new()),
    }
    let times = traffic.timeouts;
    let mut timeout = |what: &str, time: Option<Duration>, says: &Says| {
        if let Some(time) = time {
            let time = if time >= NEVER { "no limit".to_owned() } else { format!("{time:?}") };
            say("timeout", format!("{what}: {time}"), from(says));
        }
    };
    timeout("the whole request", times.request, &|traffic| traffic.timeouts.request.is_some());
    timeout("each attempt", times.backend_request, &|traffic| traffic.timeouts.backend_request.is_some());
    timeout("without a byte", times.idle, &|traffic| traffic.timeouts.idle.is_some());
    timeout("the whole stream", times.stream, &|traffic| traffic.timeouts.stream.is_some());
    if let Some(injected) = &traffic.faults {
        say("faults", faults(injected), from(&|traffic| traffic.faults.is_some()));
    }
}

fn of_all(traffic: &ServiceTraffic, origin: &str, is_http: bool, steps: &mut Vec<Step>) {
    let mut say = |step, found: String| steps.push(Step::new(step, found, origin));
    if is_http {
        let budget = &traffic.budget;
        let text =
            format!("retries up to {}% of the requests, {}/s in any case", budget.percent, budget.floor_per_second);
        say("budget", text);
    }
    say("circuit", circuit(&traffic.circuit));
    if let Some(settings) = &traffic.outlier {
        say("outlier", outlier(settings));
    }
    let slow_start = traffic.balance.slow_start.map(|slow| format!(", new endpoints warm up for {:?}", slow.window));
    say("balance", format!("{}{}", traffic.balance.algorithm.as_str(), slow_start.unwrap_or_default()));
    if let Some(time) = traffic.connect_timeout {
        say("timeout", format!("a connection: {time:?}"));
    }
}

fn retries(policy: &RetryPolicy) -> String {
    if policy.retries_max == 0 {
        return "none".to_owned();
    }
    let per_try = policy.per_try_timeout.map(|time| format!(", each attempt at most {time:?}")).unwrap_or_default();
    let least = policy.backoff.least;
    let least = if least.is_zero() { String::new() } else { format!("{least:?} and ") };
    format!(
        "at most {}{per_try}; idempotent requests after {}; others after {}; waits {least}up to {:?}, at last {:?}",
        policy.retries_max,
        after(&policy.idempotent),
        after(&policy.other),
        policy.backoff.base,
        policy.backoff.max,
    )
}

fn after(conditions: &Conditions) -> String {
    let words = [
        (conditions.connect_failure, "connect-failure"),
        (conditions.refused_stream, "refused-stream"),
        (conditions.reset_before_response, "reset"),
        (conditions.per_try_timeout, "per-try-timeout"),
    ];
    let mut all: Vec<String> = words.into_iter().filter(|(is, _)| *is).map(|(_, word)| word.to_owned()).collect();
    all.extend(ranges((400..=599).filter(|status| conditions.statuses.contains(*status))));
    let codes: Vec<String> = ranges((1..=16_u16).filter(|code| conditions.grpc_codes.contains(*code as u8))).collect();
    if !codes.is_empty() {
        all.push(format!("gRPC {}", codes.join(" ")));
    }
    all.extend(conditions.headers.iter().map(|name| format!("header {name}")));
    if all.is_empty() { "nothing".to_owned() } else { all.join(", ") }
}

/// `502-504`.
fn ranges(numbers: impl Iterator<Item = u16>) -> impl Iterator<Item = String> {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    ranges.into_iter().map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
}

fn faults(faults: &Faults) -> String {
    let mut all = Vec::new();
    all.extend(faults.delay.map(|(part, time)| format!("{} wait {time:?}", share(part))));
    all.extend(faults.abort.map(|(part, abort)| match abort {
        Abort::Http(status) => format!("{} are answered {status}", share(part)),
        Abort::Grpc(code) => format!("{} are answered with the gRPC code {code}", share(part)),
    }));
    let matches: Vec<_> = faults.matches.iter().map(|of| format!("header {}{}", of.name, value(&of.value))).collect();
    let of = if matches.is_empty() { String::new() } else { format!(" (of those with {})", matches.join(", ")) };
    format!("{}{of}", all.join(", "))
}

fn circuit(limits: &CircuitLimits) -> String {
    let one = |of: &Limits| {
        let retries = of.retries_max.map(|max| format!(", {max} retries")).unwrap_or_default();
        format!("{} connections, {} waiting, {} requests{retries}", of.connections_max, of.pending_max, of.requests_max)
    };
    format!("at most {}; each endpoint {}", one(&limits.service), one(&limits.endpoint))
}

fn outlier(settings: &OutlierSettings) -> String {
    let rows = [
        (settings.consecutive_5xx, "5xx"),
        (settings.consecutive_gateway, "gateway errors"),
        (settings.consecutive_local, "local failures"),
    ];
    let mut after: Vec<String> =
        rows.into_iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    after.extend(
        settings.success_rate.map(|rate| format!("a success rate {} deviations below the mean", rate.stdev_factor)),
    );
    format!(
        "ejects after {} for {:?} and more; at most {}% at once, and none with less than {}% left",
        after.join(", "),
        settings.ejection_base,
        settings.ejected_percent_max,
        settings.panic_percent,
    )
}

fn policy_name((namespace, name): &ServiceKey) -> String {
    format!("TrafficPolicy {namespace}/{name}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use heddle_model::traffic::{GrpcCodes, StatusSet};

    #[test]
    fn conditions_of_retries_are_told() {
        let table = [
            (Conditions::default(), "nothing"),
            (Conditions::untouched(), "connect-failure, refused-stream"),
            (Conditions { statuses: StatusSet::SERVER_ERROR, ..Conditions::default() }, "500-599"),
            (
                Conditions {
                    statuses: [429, 502, 503, 504].into_iter().collect(),
                    grpc_codes: GrpcCodes::UNAVAILABLE.with(4),
                    headers: ["x-again".into()].into(),
                    ..Conditions::default()
                },
                "429, 502-504, gRPC 4 14, header x-again",
            ),
        ];
        for (of, text) in table {
            assert_eq!(after(&of), text);
        }
    }

    #[test]
    fn shares_are_told_in_percent() {
        for (of, text) in [
            (Share::ALL, "100%"),
            (Share::of(0, 7), "0%"),
            (Share::of(1, 8), "12.5%"),
            (Share::of(1, 1_000_000), "0.0001%"),
            (Share::of(1, 3), "1 of 3"),
            (Share::of(2, 20_000_000), "1 of 10000000"),
        ] {
            assert_eq!(share(of), text);
        }
    }
}
