//! `heddle policies` and `heddle explain` as people read them.

use heddle_proto::debug::v1;

use super::ExplainOptions;
use super::table::render;

/// The path of the question, with its parameters.
pub fn explain_path(options: &ExplainOptions) -> String {
    let mut path = format!("explain?pod={}&to={}", encoded(&options.pod), encoded(&options.to));
    let of_query: Vec<String> = options.query.iter().map(|param| encoded_param(param)).collect();
    let asked = match (&options.path, of_query.is_empty()) {
        (asked, true) => asked.clone(),
        (asked, false) => {
            let asked = asked.as_deref().unwrap_or("/");
            Some(format!("{asked}{}{}", if asked.contains('?') { '&' } else { '?' }, of_query.join("&")))
        }
    };
    for (name, value) in [("method", &options.method), ("path", &asked), ("sni", &options.sni)] {
        if let Some(value) = value {
            path.push_str(&format!("&{name}={}", encoded(value)));
        }
    }
    for header in &options.headers {
        path.push_str(&format!("&header={}", encoded(header)));
    }
    path
}

/// `NAME=VALUE` as it is written in a query.
fn encoded_param(param: &str) -> String {
    match param.split_once('=') {
        Some((name, value)) => format!("{}={}", encoded(name), encoded(value)),
        None => encoded(param),
    }
}

/// Percent-encoded (RFC 3986 §2.1).
pub fn encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Every step, and what comes of it; endpoints for which everything is the same are told once.
pub fn explanation(e: &v1::Explanation) -> String {
    let what = if e.request.is_empty() { "bytes that are no HTTP" } else { &e.request };
    let mut text = format!("{} calls {} ({}): {what}\n\n", e.from, e.to, e.address);
    text.push_str(&steps(&e.steps));
    if !e.reason.is_empty() {
        text.push_str(&format!("\n{}", ended(&e.reason, e.status)));
    }
    endpoints(e, 0, &mut text);
    for (place, backend) in (1..).zip(&e.backends) {
        let part = if e.backends.len() == 1 { String::new() } else { format!(": {}% of it", backend.percent) };
        text.push_str(&format!("\nbackend {}{part}\n{}", backend.name, steps(&backend.steps)));
        if !backend.reason.is_empty() {
            text.push_str(&ended(&backend.reason, backend.status));
        }
        endpoints(e, place, &mut text);
    }
    if e.more > 0 {
        text.push_str(&format!("\n… and {} more endpoints\n", e.more));
    }
    text
}

/// It reaches no endpoint.
fn ended(reason: &str, status: u32) -> String {
    match status {
        0 => format!("→ refused: {reason}\n"),
        status @ 100..400 => format!("→ answered: {reason} (HTTP {status})\n"),
        status => format!("→ refused: {reason} (HTTP {status})\n"),
    }
}

/// The endpoints of a backend (0: of none), those that fare alike together.
fn endpoints(e: &v1::Explanation, backend: u32, text: &mut String) {
    let mut told: Vec<(&v1::ExplainedEndpoint, Vec<String>)> = Vec::new();
    for endpoint in e.endpoints.iter().filter(|endpoint| endpoint.backend == backend) {
        let name = match (&*endpoint.pod, &*endpoint.node) {
            ("", _) => endpoint.address.clone(),
            (pod, "") => format!("{pod} ({})", endpoint.address),
            (pod, node) => format!("{pod} ({}, node {node})", endpoint.address),
        };
        let is_same = |other: &v1::ExplainedEndpoint| {
            let part = |e: &v1::ExplainedEndpoint| (e.transport.clone(), e.reason.clone(), e.object.clone());
            let found = |e: &v1::ExplainedEndpoint| e.steps.iter().map(|s| s.found.clone()).collect::<Vec<_>>();
            part(other) == part(endpoint) && found(other) == found(endpoint)
        };
        match told.iter_mut().find(|(other, _)| is_same(other)) {
            Some((_, names)) => names.push(name),
            None => told.push((endpoint, vec![name])),
        }
    }
    for (endpoint, names) in told {
        text.push_str(&format!("\nto {}\n", names.join(", ")));
        text.push_str(&steps(&endpoint.steps));
        text.push_str(&match (endpoint.allowed, endpoint.status) {
            (true, _) => "→ reaches the application\n".to_owned(),
            (false, 0) => format!("→ refused: {} (the connection is reset)\n", endpoint.reason),
            (false, status) => format!("→ refused: {} (HTTP {status})\n", endpoint.reason),
        });
        if !endpoint.object.is_empty() {
            text.push_str(&format!("  to change that, edit {}\n", endpoint.object));
        }
    }
}

fn steps(steps: &[v1::ExplainedStep]) -> String {
    let width = steps.iter().map(|step| step.step.len()).max().unwrap_or(0);
    let line = |step: &v1::ExplainedStep| {
        let object = if step.object.is_empty() { String::new() } else { format!("  [{}]", step.object) };
        format!("  {:width$}  {}{object}\n", step.step, step.found)
    };
    steps.iter().map(line).collect()
}

/// Pods named in one row.
const PODS_SHOWN: usize = 3;

/// Policies, whom they are in force for, and how often they decided.
pub fn policies(p: &v1::Policies) -> String {
    let rows: Vec<_> = p
        .policies
        .iter()
        .map(|policy| {
            let state = match (policy.rejected, policy.dry_run, policy.selected) {
                (true, ..) => "rejected",
                (_, true, _) => "tried",
                (.., 0) => "no pod",
                _ => "in force",
            };
            let shown: Vec<_> = policy.workloads.iter().take(PODS_SHOWN).map(String::as_str).collect();
            let more = policy.workloads.len().saturating_sub(PODS_SHOWN);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            vec![
                policy.namespace.clone(),
                policy.name.clone(),
                policy.kind.clone(),
                policy.action.clone(),
                policy.target.clone(),
                state.to_owned(),
                policy.selected.to_string(),
                format!("{}{more}", shown.join(",")),
                policy.allowed.to_string(),
                policy.denied.to_string(),
                policy.would_deny.to_string(),
                policy.audited.to_string(),
            ]
        })
        .collect();
    let headings = [
        "NAMESPACE",
        "NAME",
        "KIND",
        "ACTION",
        "TARGET",
        "STATE",
        "PODS",
        "IN FORCE HERE FOR",
        "ALLOWED",
        "DENIED",
        "WOULD DENY",
        "AUDITED",
    ];
    let mut text = render(&headings, &rows);
    if p.denied_by_none > 0 {
        text.push_str(&format!("\n{} denied because no Allow rule matched\n", p.denied_by_none));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_that_fare_alike_are_told_once() {
        let endpoint = |pod: &str, reason: &str| v1::ExplainedEndpoint {
            address: "10.0.0.1:80".into(),
            pod: pod.into(),
            allowed: reason.is_empty(),
            reason: reason.into(),
            status: if reason.is_empty() { 0 } else { 403 },
            object: "AuthorizationPolicy shop/web".into(),
            steps: vec![v1::ExplainedStep { step: "decision".into(), found: "so".into(), object: String::new() }],
            ..v1::ExplainedEndpoint::default()
        };
        let endpoints = vec![endpoint("shop/a", ""), endpoint("shop/b", ""), endpoint("shop/c", "policy_denied")];
        let text = explanation(&v1::Explanation { endpoints, ..v1::Explanation::default() });
        assert!(text.contains("to shop/a (10.0.0.1:80), shop/b (10.0.0.1:80)\n  decision  so\n→ reaches"), "{text}");
        assert!(text.contains("→ refused: policy_denied (HTTP 403)\n  to change that, edit Auth"), "{text}");
    }

    #[test]
    fn backends_are_told_with_their_part() {
        let step =
            |found: &str| v1::ExplainedStep { step: "balance".into(), found: found.into(), object: String::new() };
        let backend = |name: &str, percent, reason: &str, status| v1::ExplainedBackend {
            name: name.into(),
            percent,
            steps: vec![step("Random")],
            reason: reason.into(),
            status,
            ..v1::ExplainedBackend::default()
        };
        let endpoint = |backend| v1::ExplainedEndpoint {
            address: "10.0.0.1:80".into(),
            allowed: true,
            backend,
            ..v1::ExplainedEndpoint::default()
        };
        let backends = vec![backend("shop/v1:80", 90.0, "", 0), backend("shop/gone:80", 10.0, "backend_invalid", 500)];
        let text =
            explanation(&v1::Explanation { backends, endpoints: vec![endpoint(1)], ..v1::Explanation::default() });
        let expected = "\nbackend shop/v1:80: 90% of it\n  balance  Random\n\nto 10.0.0.1:80\n→ reaches the application\n\
                        \nbackend shop/gone:80: 10% of it\n  balance  Random\n→ refused: backend_invalid (HTTP 500)\n";
        assert!(text.ends_with(expected), "{text}");
        let redirected = v1::Explanation { reason: "redirected".into(), status: 301, ..v1::Explanation::default() };
        assert!(explanation(&redirected).ends_with("→ answered: redirected (HTTP 301)\n"));
    }

    #[test]
    fn parameters_are_encoded() {
        let options = ExplainOptions {
            pod: "shop/a".into(),
            to: "web:80".into(),
            method: None,
            path: Some("/a b?c=d&e".into()),
            headers: vec!["x: 1".into()],
            query: vec!["v=1 2".into()],
            sni: None,
            options: super::super::QueryOptions { output: super::super::Output::Table, run_dir: "/x".into() },
        };
        let path = "explain?pod=shop%2Fa&to=web%3A80&path=%2Fa%20b%3Fc%3Dd%26e%26v%3D1%25202&header=x%3A%201";
        assert_eq!(explain_path(&options), path);
    }
}
