//! `heddle routes` and `heddle endpoints` as people read them.

use heddle_proto::debug::v1;

use super::table::render;

/// Every route with its parents and rules, then the TrafficPolicies.
pub fn routes(r: &v1::Routes) -> String {
    let mut text = String::new();
    for route in &r.routes {
        text.push_str(&format!("{} {}/{}\n", route.kind, route.namespace, route.name));
        if !route.hostnames.is_empty() {
            text.push_str(&format!("  for the server names {}\n", route.hostnames.join(", ")));
        }
        for parent in &route.parents {
            text.push_str(&format!("  {}\n", parent.parent));
            for of in &parent.conditions {
                let word = format!("{}={}", of.r#type, of.status);
                let reason = if of.reason == of.r#type { String::new() } else { format!("{}: ", of.reason) };
                text.push_str(&format!("    {word:23} {reason}{}\n", of.message));
            }
        }
        if route.parents.is_empty() {
            text.push_str("  without parents: it has no effect\n");
        }
        route.rules.iter().for_each(|one| text.push_str(&rule(one)));
        text.push('\n');
    }
    let rows: Vec<Vec<String>> = r
        .traffic_policies
        .iter()
        .flat_map(|policy| {
            policy.targets.iter().map(|of| {
                let (target, outcome) = (of.target.clone(), of.outcome.clone());
                vec![policy.namespace.clone(), policy.name.clone(), target, outcome, of.message.clone()]
            })
        })
        .collect();
    text.push_str(&render(&["NAMESPACE", "TRAFFIC POLICY", "TARGET", "STATE", "WHY"], &rows));
    text
}

fn rule(rule: &v1::RouteRule) -> String {
    let name = if rule.name.is_empty() { String::new() } else { format!(" ({})", rule.name) };
    let mut text = format!("  rule {}{name}\n", rule.index);
    let mut line = |word: &str, what: &str| text.push_str(&format!("    {word:8} {what}\n"));
    rule.matches.iter().for_each(|of| line("match", of));
    rule.filters.iter().for_each(|filter| line("filter", filter));
    for backend in &rule.backends {
        let filters: String = backend.filters.iter().map(|filter| format!("; {filter}")).collect();
        line("to", &format!("{} weight {} ({}%){filters}", backend.to, backend.weight, backend.percent));
    }
    if !rule.invalid.is_empty() {
        line("INVALID", &format!("{}: answered 500", rule.invalid));
    }
    text
}

/// One row for each Service port, and one for each of its endpoints.
pub fn endpoints(e: &v1::Endpoints) -> String {
    let mut rows = Vec::new();
    for port in &e.ports {
        let place = if port.name.is_empty() { port.port.to_string() } else { format!("{}/{}", port.port, port.name) };
        let state = if port.used { "in use here" } else { "not called from here" };
        let retries =
            if port.used { format!("{} ({} refused)", port.retries, port.retries_refused) } else { String::new() };
        let mut row = vec![port.namespace.clone(), port.service.clone(), place.clone(), String::new(), String::new()];
        row.push(state.to_owned());
        row.extend(PLACES.map(|resource| places(&port.places, resource)));
        row.push(retries);
        rows.push(row);
        for endpoint in &port.endpoints {
            let standing = match &*endpoint.standing {
                "ejected" => format!(", ejected for {:.0} s more", endpoint.ejected_seconds),
                "probed" => ", was ejected: the next request decides".to_owned(),
                _ => String::new(),
            };
            let standing = format!("{standing}{}", chosen_by(endpoint));
            let mut row = vec![port.namespace.clone(), port.service.clone(), place.clone()];
            row.extend([endpoint.address.clone(), endpoint.pod.clone(), format!("{}{standing}", endpoint.state)]);
            row.extend(PLACES.map(|resource| places(&endpoint.places, resource)));
            row.push(String::new());
            rows.push(row);
        }
    }
    let headings =
        ["NAMESPACE", "SERVICE", "PORT", "ENDPOINT", "POD", "STATE", "CONNECTIONS", "WAITING", "REQUESTS", "RETRIES"];
    render(&headings, &rows)
}

/// What else than its load an endpoint is chosen by.
fn chosen_by(endpoint: &v1::EndpointUse) -> String {
    let mut text = String::new();
    if endpoint.share > 0.0 && endpoint.share < 1.0 {
        text = format!(", new: takes {} of its share", endpoint.share);
    }
    if endpoint.latency_seconds > 0.0 {
        text.push_str(&format!(", answers in {:.1} ms", endpoint.latency_seconds * 1e3));
    }
    text
}

const PLACES: [&str; 3] = ["connections", "pending", "requests"];

/// `3/1024`, and how often it was not enough.
fn places(places: &[v1::Places], resource: &str) -> String {
    let Some(of) = places.iter().find(|of| of.resource == resource) else { return String::new() };
    let over = if of.overflowed > 0 { format!(", full {} times", of.overflowed) } else { String::new() };
    format!("{}/{}{over}", of.used, of.max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_route_is_told() {
        let condition = |kind: &str, status: &str, reason: &str, message: &str| v1::Condition {
            r#type: kind.into(),
            status: status.into(),
            reason: reason.into(),
            message: message.into(),
        };
        let conditions = vec![
            condition("Accepted", "True", "Accepted", "for all clients"),
            condition("ResolvedRefs", "False", "BackendNotFound", "rules[0]: Service shop/gone does not exist"),
        ];
        let backend = v1::RouteBackend { to: "shop/gone:80".into(), weight: 9, percent: 90.0, filters: vec![] };
        let rule = v1::RouteRule {
            name: "canary".into(),
            matches: vec!["path /a/…".into()],
            backends: vec![backend],
            invalid: "filters[0].type: not supported".into(),
            ..v1::RouteRule::default()
        };
        let route = v1::Route {
            kind: "HTTPRoute".into(),
            namespace: "shop".into(),
            name: "web".into(),
            parents: vec![v1::RouteParent { parent: "Service shop/web:80".into(), conditions }],
            rules: vec![rule],
            ..v1::Route::default()
        };
        let target = v1::TrafficTarget {
            target: "Service web".into(),
            outcome: "Invalid".into(),
            message: "retries.attempts: 11 is more than 10".into(),
        };
        let policy = v1::TrafficPolicy { namespace: "shop".into(), name: "slow".into(), targets: vec![target] };
        let text = routes(&v1::Routes { routes: vec![route], traffic_policies: vec![policy] });
        for line in [
            "HTTPRoute shop/web\n  Service shop/web:80\n    Accepted=True           for all clients\n",
            "    ResolvedRefs=False      BackendNotFound: rules[0]: Service shop/gone does not exist\n",
            "  rule 0 (canary)\n    match    path /a/…\n    to       shop/gone:80 weight 9 (90%)\n",
            "    INVALID  filters[0].type: not supported: answered 500\n",
            "shop       slow            Service web  Invalid  retries.attempts: 11 is more than 10\n",
        ] {
            assert!(text.contains(line), "no {line:?} in\n{text}");
        }
    }

    #[test]
    fn ejected_endpoints_and_full_circuits_are_told() {
        let places = |used| v1::Places { resource: "requests".into(), used, max: 8, overflowed: u64::from(used) };
        let ejected = v1::EndpointUse {
            address: "10.0.0.1:80".into(),
            state: "ready".into(),
            standing: "ejected".into(),
            ejected_seconds: 12.4,
            share: 0.25,
            latency_seconds: 0.0312,
            places: vec![places(0)],
            ..v1::EndpointUse::default()
        };
        let port = v1::EndpointPort {
            namespace: "shop".into(),
            service: "web".into(),
            port: 80,
            used: true,
            places: vec![places(8)],
            endpoints: vec![ejected],
            ..v1::EndpointPort::default()
        };
        let text = endpoints(&v1::Endpoints { ports: vec![port] });
        assert!(text.contains("in use here") && text.contains("8/8, full 8 times"), "{text}");
        assert!(
            text.contains("ready, ejected for 12 s more, new: takes 0.25 of its share, answers in 31.2 ms")
                && text.contains("0/8"),
            "{text}"
        );
    }
}
