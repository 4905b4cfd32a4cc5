//! Routes: what is read.

use std::time::Duration;

use heddle_model::policy::Pattern;
use heddle_model::routing::{
    Backend, BackendRef, Cors, Filters, HeaderEdit, HeaderMatch, Match, Mirror, ParentRef, ParentTarget, PathMatch,
    PathRewrite, QueryMatch, Redirect, Rewrite, ValueMatch,
};
use heddle_model::traffic::{Conditions, RequestTraffic, Retries, RetryPolicy, Share, StatusSet, Timeouts};

use super::*;
use crate::object::{Object, read};

/// The route `shop/web` with this `spec`, what is wrong with it as `field: message`, and its warnings.
pub(super) fn route(kind: &str, spec: &str) -> (Arc<Route>, Vec<String>, Vec<String>) {
    let text = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: web, namespace: shop, generation: 7, \
         creationTimestamp: 2026-08-09T10:11:12Z}}\nspec: {{{spec}}}\n"
    );
    let reading = read("f.yaml", text.as_bytes());
    let told =
        |list: &[heddle_model::InvalidObject]| list.iter().map(|i| format!("{}: {}", i.field, i.message)).collect();
    let [item] = &reading.items[..] else { panic!("{text}: {reading:?}") };
    let Object::Route(route) = &item.object else { panic!("{reading:?}") };
    (Arc::clone(route), told(&reading.invalid), told(&reading.warnings))
}

pub(super) const PARENT: &str = "parentRefs: [{group: '', kind: Service, name: web, port: 80}]";
pub(super) const GOOD: &str = "{matches: [{path: {value: /good}}], backendRefs: [{name: web, port: 80}]}";

/// An HTTPRoute with a rule before a good one.
pub(super) fn http(rule: &str) -> (Arc<Route>, Vec<String>) {
    let (route, invalid, _) = route("HTTPRoute", &format!("{PARENT}, rules: [{{{rule}}}, {GOOD}]"));
    (route, invalid)
}

pub(super) fn grpc(rule: &str) -> (Arc<Route>, Vec<String>) {
    let good = "{matches: [{method: {service: good}}], backendRefs: [{name: web, port: 80}]}";
    let (route, invalid, _) = route("GRPCRoute", &format!("{PARENT}, rules: [{{{rule}}}, {good}]"));
    (route, invalid)
}

/// The first rule of a route of which nothing is wrong.
pub(super) fn rule((route, invalid): (Arc<Route>, Vec<String>)) -> Rule {
    assert_eq!(invalid, Vec::<String>::new(), "{route:?}");
    assert_eq!(route.rules.len(), 2);
    assert!(route.rules.iter().all(|rule| rule.invalid.is_none()));
    Rule::clone(&route.rules[0])
}

pub(super) fn arc(text: &str) -> Arc<str> {
    text.into()
}

pub(super) fn service(namespace: &str, name: &str, port: u16) -> BackendRef {
    BackendRef::Service { service: (arc(namespace), arc(name)), port }
}

pub(super) fn regex(text: &str) -> Pattern {
    Pattern::new(text).unwrap()
}

#[test]
fn every_field_of_an_http_rule_is_read() {
    let text = r#"
        name: first,
        matches: [
          {path: {type: Exact, value: /a%20b}, method: POST, headers: [{name: X-A, value: "1"}, {name: x-a, value: "2"},
            {type: RegularExpression, name: b, value: "x|y"}], queryParams: [{name: Q, value: v}, {name: Q, value: w},
            {name: q, type: RegularExpression, value: ".*"}]},
          {path: {value: /p/}}, {path: {type: RegularExpression, value: "/v[0-9]+"}}, {path: {value: /}}, {}],
        filters: [
          {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: A, value: x}, {name: a, value: y}],
            add: [{name: b, value: "1 2"}], remove: [C, c, d]}},
          {type: ResponseHeaderModifier, responseHeaderModifier: {}},
          {type: URLRewrite, urlRewrite: {hostname: Other.example.com, path: {type: ReplaceFullPath, replaceFullPath: /full}}},
          {type: RequestMirror, requestMirror: {backendRef: {name: copy, port: 81}, percent: 5}},
          {type: RequestMirror, requestMirror: {backendRef: {name: copy, namespace: other, port: 81}, fraction: {numerator: 1, denominator: 1000}}},
          {type: RequestMirror, requestMirror: {backendRef: {name: copy, port: 82}}},
          {type: CORS, cors: {allowOrigins: ["https://*.Example.com", "http://a:8080", "https://*"], allowCredentials: true,
            allowMethods: [GET, PUT], allowHeaders: [X-A], exposeHeaders: [X-B, "*"], maxAge: 60}}],
        backendRefs: [
          {name: web, port: 80, weight: 3, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [z]}}]},
          {group: "", kind: Service, namespace: other, name: web, port: 81}, {name: old, port: 80, weight: 0}],
        timeouts: {request: 10s, backendRequest: 2s},
        retry: {codes: [503, 429], attempts: 3, backoff: 100ms}"#;
    let rule = rule(http(text));
    assert_eq!((rule.id.index, rule.id.name.as_deref(), &*rule.id.route.name), (0, Some("first"), "web"));
    let header = |name: &str, value| HeaderMatch { name: arc(name), value };
    let query = |name: &str, value| QueryMatch { name: arc(name), value };
    let exact = |text: &str| ValueMatch::Exact(arc(text));
    let first = Match {
        path: PathMatch::Exact(arc("/a%20b")),
        method: Some(arc("POST")),
        headers: Box::new([header("x-a", exact("1")), header("b", ValueMatch::Regex(regex("x|y")))]),
        query: Box::new([query("Q", exact("v")), query("q", ValueMatch::Regex(regex(".*")))]),
    };
    let of_path = |path| Match { path, ..Match::default() };
    let paths =
        [PathMatch::Prefix(arc("/p")), PathMatch::Regex(regex("/v[0-9]+")), PathMatch::default(), PathMatch::default()];
    assert_eq!(rule.matches[0], first);
    assert_eq!(rule.matches[1..], paths.map(of_path));
    let pair = |name: &str, value: &str| (arc(name), arc(value));
    let remove = |names: &[&str]| names.iter().map(|name| arc(name)).collect();
    let filters = Filters {
        request_headers: Some(HeaderEdit {
            set: Box::new([pair("a", "x")]),
            add: Box::new([pair("b", "1 2")]),
            remove: remove(&["c", "d"]),
        }),
        response_headers: Some(HeaderEdit::default()),
        redirect: None,
        rewrite: Some(Rewrite {
            hostname: Some(arc("other.example.com")),
            path: Some(PathRewrite::Full(arc("/full"))),
        }),
        mirrors: Box::new([
            Mirror { to: service("shop", "copy", 81), share: Share::of(5, 100) },
            Mirror { to: service("other", "copy", 81), share: Share::of(1, 1000) },
            Mirror { to: service("shop", "copy", 82), share: Share::ALL },
        ]),
        cors: Some(Cors {
            allow_origins: ["https://*.example.com", "http://a:8080", "https://*"].map(arc).into(),
            allow_methods: ["GET", "PUT"].map(arc).into(),
            allow_headers: ["x-a"].map(arc).into(),
            expose_headers: ["X-B", "*"].map(arc).into(),
            allow_credentials: true,
            max_age: Duration::from_secs(60),
        }),
    };
    assert_eq!(rule.filters, filters);
    let own = HeaderEdit { remove: remove(&["z"]), ..HeaderEdit::default() };
    let own = Filters { request_headers: Some(own), ..Filters::default() };
    let backend = |to, weight, filters| Backend { to, weight, filters };
    let backends = [
        backend(service("shop", "web", 80), 3, own),
        backend(service("other", "web", 81), 1, Filters::default()),
        backend(service("shop", "old", 80), 0, Filters::default()),
    ];
    assert_eq!(*rule.backends, backends);
    let timeouts = Timeouts {
        request: Some(Duration::from_secs(10)),
        backend_request: Some(Duration::from_secs(2)),
        ..Timeouts::default()
    };
    assert_eq!(rule.traffic.timeouts, timeouts);
    let retry = rule.traffic.retry.unwrap();
    assert_eq!(
        (retry.retries_max, retry.backoff.least, retry.backoff.base, retry.backoff.max),
        (3, Duration::from_millis(100), Duration::from_millis(100), Duration::from_secs(1))
    );
    assert_eq!(retry.idempotent.statuses, StatusSet::from_iter([503, 429]));
    assert_eq!(retry.other, Conditions::untouched(), "the spec's codes are no leave to do twice what may be done once");
}

#[test]
fn what_is_around_the_rules_is_read() {
    let parents = "parentRefs: [{group: '', kind: Service, name: web}, {group: core, kind: Service, namespace: other, name: api, port: 80, \
                   sectionName: http}, {name: gw}, {kind: Gateway, name: gw2, namespace: edge, sectionName: a.b}]";
    let (route, invalid, warnings) =
        route("HTTPRoute", &format!("{parents}, hostnames: [A.example.com, '*.b.c'], rules: [{GOOD}]"));
    assert_eq!((invalid, warnings), (vec![], vec![]));
    assert_eq!(
        (&*route.key.namespace, &*route.key.name, route.key.kind, route.generation),
        ("shop", "web", RouteKind::Http, 7)
    );
    assert_eq!(route.created.map(heddle_model::Timestamp::unix), Some(1_786_270_272));
    let of_service = |namespace: &str, name: &str| ParentTarget::Service((arc(namespace), arc(name)));
    let parent = |target, section: Option<&str>, port| ParentRef { target, section: section.map(arc), port };
    let expected = [
        parent(of_service("shop", "web"), None, None),
        parent(of_service("other", "api"), Some("http"), Some(80)),
        parent(ParentTarget::Other(arc("Gateway/shop/gw")), None, None),
        parent(ParentTarget::Other(arc("Gateway/edge/gw2")), Some("a.b"), None),
    ];
    assert_eq!(*route.parents, expected);
    assert_eq!(*route.hostnames, ["a.example.com", "*.b.c"].map(arc));
}

#[test]
fn a_route_without_rules_has_those_of_its_kind() {
    let (http, invalid, warnings) = route("HTTPRoute", PARENT);
    assert_eq!((http.rules.len(), http.rules[0].matches.len(), http.rules[0].backends.len()), (1, 0, 0));
    assert_eq!((invalid.len(), warnings.len()), (0, 1), "{warnings:?}");
    let (grpc, invalid, warnings) = route("GRPCRoute", PARENT);
    assert_eq!((grpc.rules.len(), invalid.len(), warnings.len()), (0, 0, 1));
    for kind in ["TCPRoute", "TLSRoute"] {
        let (route, invalid, _) = route(kind, PARENT);
        assert_eq!((route.rules.len(), invalid), (0, vec!["spec.rules: is missing: exactly one".to_owned()]), "{kind}");
    }
    let (_, invalid, warnings) = route("HTTPRoute", &format!("rules: [{GOOD}], useDefaultGateways: All"));
    assert_eq!((invalid.len(), warnings.len()), (0, 2), "{warnings:?}");
}

#[test]
fn accepted_rules_table() {
    let redirect = |fields: &str| format!("filters: [{{type: RequestRedirect, requestRedirect: {{{fields}}}}}]");
    let table = [
        String::new(),
        "matches: []".into(),
        "matches: null".into(),
        "name: a.b-c".into(),
        "backendRefs: []".into(),
        "filters: []".into(),
        redirect(""),
        redirect("statusCode: 308, scheme: https, port: 8443, hostname: a.b"),
        redirect("path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}") + ", matches: [{path: {value: /a}}]",
        redirect("path: {type: ReplacePrefixMatch, replacePrefixMatch: ''}"),
        "filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]".into(),
        "matches: [{path: {type: Exact, value: /a;v=1/b@c}}]".into(),
        "matches: [{path: {value: /.well-known/x..y}}]".into(),
        "matches: [{path: {type: RegularExpression, value: ''}}]".into(),
        "timeouts: {}".into(),
        "timeouts: {request: 0s, backendRequest: 1h}".into(),
        "timeouts: {request: 1s, backendRequest: 0s}".into(),
        "timeouts: {request: 1s, backendRequest: 1s}".into(),
        "retry: {}".into(),
        "retry: {codes: [400, 599], attempts: 10}".into(),
        "backendRefs: [{name: web, port: 65535, weight: 1000000}]".into(),
        "filters: [{type: CORS, cors: {}}]".into(),
        "filters: [{type: CORS, cors: {allowOrigins: ['*'], allowMethods: ['*'], allowHeaders: ['*']}}]".into(),
        "filters: [{type: RequestMirror, requestMirror: {backendRef: {name: a, port: 1}, fraction: {numerator: 100}}}]"
            .into(),
    ];
    for text in table {
        rule(http(&text));
    }
}

#[test]
fn a_limit_of_zero_is_said_to_be_none() {
    let of = |text: &str| rule(http(&format!("timeouts: {{{text}}}"))).traffic.timeouts;
    assert_eq!(of("request: 0s").request, Some(crate::NEVER), "silence would leave the word to a TrafficPolicy");
    assert_eq!(of("backendRequest: 0s").backend_request, Some(crate::NEVER));
    assert_eq!(of(""), Timeouts::default());
    let silent = rule(http(""));
    assert_eq!(silent.traffic, RequestTraffic::default());
    let told = rule(http("retry: {}")).traffic.retry.as_deref().cloned().unwrap();
    assert_eq!(RetryPolicy { said: None, ..told.clone() }, RetryPolicy::default());
    assert_eq!(told.said.as_deref(), Some(&Retries::default()), "silence leaves the word to a TrafficPolicy");
}

/// None is a number too, and more than the agent does is as many as it does.
#[test]
fn retries_are_bounded_and_no_mistake_table() {
    for (attempts, expected, warning) in [
        ("0", 0, ""),
        ("1", 1, ""),
        ("10", 10, ""),
        ("11", 10, "spec.rules[0].retry.attempts: 11 is more than the agent does for one request: 10 count"),
        ("9223372036854775807", 10, "spec.rules[0].retry.attempts: 9223372036854775807 is more than"),
    ] {
        let rules = format!("rules: [{{retry: {{attempts: {attempts}}}}}]");
        let (route, invalid, warnings) = route("HTTPRoute", &format!("{PARENT}, {rules}"));
        assert_eq!((invalid, &route.rules[0].invalid), (vec![], &None), "{attempts}");
        assert_eq!(route.rules[0].traffic.retry.as_ref().unwrap().retries_max, expected, "{attempts}");
        assert_eq!(warnings.is_empty(), warning.is_empty(), "{warnings:?}");
        assert!(warnings.iter().all(|told| told.starts_with(warning)), "{warnings:?}");
    }
}

#[test]
fn a_redirect_is_read() {
    let text = "filters: [{type: RequestRedirect, requestRedirect: {scheme: https, hostname: A.b, port: 8443, statusCode: 301, \
                path: {type: ReplacePrefixMatch, replacePrefixMatch: /x}}}], matches: [{path: {value: /a}}]";
    let expected = Redirect {
        scheme: Some(arc("https")),
        hostname: Some(arc("a.b")),
        path: Some(PathRewrite::Prefix(arc("/x"))),
        port: Some(8443),
        status: 301,
    };
    assert_eq!(rule(http(text)).filters.redirect, Some(expected));
    let bare = rule(http("filters: [{type: RequestRedirect, requestRedirect: {}}]")).filters.redirect;
    assert_eq!(bare, Some(Redirect { scheme: None, hostname: None, path: None, port: None, status: 302 }));
}

/// What users copy must be right.
#[test]
fn the_examples_in_the_documentation_are_accepted() {
    let text = include_str!("../../../docs/routing.md");
    let mut kinds = Vec::new();
    for example in text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()) {
        let reading = read("routing.md", example.as_bytes());
        assert_eq!((reading.invalid, reading.warnings), (vec![], vec![]), "{example}");
        kinds.extend(reading.items.iter().map(|item| item.object.key().kind.as_str()));
    }
    assert_eq!(kinds, ["HTTPRoute", "HTTPRoute", "HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "ReferenceGrant"]);
}
