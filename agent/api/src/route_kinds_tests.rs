//! Routes of gRPC calls and of bytes, and grants.

use heddle_model::policy::Pattern;
use heddle_model::routing::{CallMatch, HeaderMatch, Match, PathMatch, ReferenceGrant, ValueMatch};

use super::mistakes_tests::assert_unreadable;
use super::tests::{PARENT, arc, grpc, route, rule, service};
use super::*;
use crate::object::{Object, read};

#[test]
fn grpc_methods_table() {
    let exact = |text: &str| Some(ValueMatch::Exact(arc(text)));
    let regex = |text: &str| Some(ValueMatch::Regex(Pattern::new(text).unwrap()));
    for (text, service, method) in [
        ("service: a.B, method: C", exact("a.B"), exact("C")),
        ("service: .a.B", exact(".a.B"), None),
        ("method: C_1", None, exact("C_1")),
        ("type: Exact, method: C_1", None, exact("C_1")),
        ("type: RegularExpression, service: 'a|b', method: c", regex("a|b"), regex("c")),
        ("type: RegularExpression, service: '^a.*$'", regex("^a.*$"), None),
        ("type: RegularExpression, method: ''", None, regex("")),
        (r#"type: RegularExpression, method: "(?x)#\nb""#, None, regex("(?x)#\nb")),
    ] {
        let found = rule(grpc(&format!("matches: [{{method: {{{text}}}}}]")));
        assert_eq!(found.matches[0].path, PathMatch::Call(CallMatch { service, method }), "{text}");
    }
    assert_eq!(rule(grpc("matches: [{}]")).matches[0], Match::default());
    let header =
        rule(grpc("matches: [{headers: [{name: A, value: b}, {name: a, value: c}]}]")).matches[0].headers.clone();
    assert_eq!(*header, [HeaderMatch { name: arc("a"), value: ValueMatch::Exact(arc("b")) }]);
}

#[test]
fn refused_of_grpc_table() {
    let method = |fields: &str| format!("matches: [{{method: {{{fields}}}}}]");
    let at = "matches[0].method";
    let table = [
        (method(""), at.to_owned(), "says nothing"),
        (method("type: RegularExpression"), at.to_owned(), "says nothing"),
        (method("service: ''"), format!("{at}.service"), "no name of a gRPC service"),
        (method("service: a/b"), format!("{at}.service"), "no name of a gRPC service"),
        (method("service: a..b"), format!("{at}.service"), "no name of a gRPC service"),
        (method("service: 1a"), format!("{at}.service"), "no name of a gRPC service"),
        (method("method: a.b"), format!("{at}.method"), "no name of a gRPC method"),
        (method("method: ''"), format!("{at}.method"), "no name of a gRPC method"),
        (method("type: Prefix, service: a"), format!("{at}.type"), "is unknown"),
        (method(&format!("service: {}", "a".repeat(1025))), format!("{at}.service"), "longer than 1024"),
        (method("type: RegularExpression, service: '('"), format!("{at}.service"), "not a regular expression"),
        (method("type: RegularExpression, service: 'a)(b'"), format!("{at}.service"), "not a regular expression"),
        (method("type: RegularExpression, service: '(?x)a#'"), format!("{at}.service"), "not a regular expression"),
        (method("service: a, name: a"), format!("{at}.name"), "unknown field"),
        ("matches: [{path: {value: /a}}]".into(), "matches[0].path".into(), "unknown field"),
        ("matches: [{headers: [{name: a, value: ''}]}]".into(), "matches[0].headers[0].value".into(), "0 bytes"),
    ];
    for (text, field, message) in table {
        let (route, invalid) = grpc(&text);
        let at = format!("spec.rules[0].{field}: ");
        assert!(
            invalid.len() == 1 && invalid[0].starts_with(&at) && invalid[0].contains(message),
            "{text}: {invalid:?}"
        );
        assert!(route.rules[0].invalid.is_some() && route.rules[1].invalid.is_none(), "{text}");
        let is_halved = text.contains("name: a}") && text.contains("service: a,");
        if !is_halved && !text.contains("headers") {
            assert_unreadable(&route, &invalid);
        }
    }
    for (text, field, message) in [
        ("timeouts: {request: 1s}", "timeouts", "unknown field"),
        ("retry: {}", "retry", "unknown field"),
        ("sessionPersistence: {}", "sessionPersistence", "not supported"),
        ("filters: [{type: URLRewrite, urlRewrite: {}}]", "filters[0].type", "not supported here"),
        ("filters: [{type: CORS, cors: {}}]", "filters[0].type", "not supported here"),
        ("filters: [{type: RequestRedirect, requestRedirect: {}}]", "filters[0].type", "not supported here"),
        ("filters: [{type: ExtensionRef, extensionRef: {}}]", "filters[0].type", "not supported here"),
    ] {
        let (route, invalid) = grpc(text);
        let at = format!("spec.rules[0].{field}: ");
        assert!(
            invalid.len() == 1 && invalid[0].starts_with(&at) && invalid[0].contains(message),
            "{text}: {invalid:?}"
        );
        assert_eq!(route.rules.iter().map(|rule| rule.invalid.is_some()).collect::<Vec<_>>(), [true, false], "{text}");
    }
}

#[test]
fn routes_of_bytes_table() {
    let backends = "backendRefs: [{name: web, port: 80, weight: 2}, {name: b, namespace: other, port: 81}]";
    let (tls, invalid, _) =
        route("TLSRoute", &format!("{PARENT}, hostnames: [a.b, '*.C'], rules: [{{name: x, {backends}}}]"));
    assert_eq!(invalid, Vec::<String>::new());
    assert_eq!((&*tls.hostnames, tls.rules[0].id.name.as_deref()), (&["a.b", "*.c"].map(arc)[..], Some("x")));
    let (tcp, invalid, _) = route("TCPRoute", &format!("{PARENT}, rules: [{{{backends}}}]"));
    assert_eq!(invalid, Vec::<String>::new());
    assert_eq!(
        (&tcp.rules[0].backends, tcp.rules[0].backends[1].to.clone()),
        (&tls.rules[0].backends, service("other", "b", 81))
    );
    let table = [
        ("TLSRoute", format!("rules: [{{{backends}, matches: []}}]"), "spec.rules[0].matches", "unknown field"),
        ("TLSRoute", format!("hostnames: [1.2.3.4], rules: [{{{backends}}}]"), "spec.hostnames[0]", "no host name"),
        ("TLSRoute", "rules: [{backendRefs: []}]".into(), "spec.rules[0].backendRefs", "is missing"),
        ("TCPRoute", "rules: [{}]".into(), "spec.rules[0].backendRefs", "is missing"),
        ("TCPRoute", "rules: []".into(), "spec.rules", "exactly one"),
        ("TCPRoute", format!("rules: [{{{backends}}}, {{{backends}}}]"), "spec.rules", "2 entries: at most 1"),
        ("TCPRoute", format!("hostnames: [a], rules: [{{{backends}}}]"), "spec.hostnames", "unknown field"),
        (
            "TCPRoute",
            "rules: [{backendRefs: [{name: a, port: 1, filters: []}]}]".into(),
            "spec.rules[0].backendRefs[0].filters",
            "unknown field",
        ),
        (
            "TCPRoute",
            "rules: [{filters: [], backendRefs: [{name: a, port: 1}]}]".into(),
            "spec.rules[0].filters",
            "unknown field",
        ),
    ];
    for (kind, text, field, message) in table {
        let (_, invalid, _) = route(kind, &format!("{PARENT}, {text}"));
        let at = format!("{field}: ");
        assert!(
            invalid.len() == 1 && invalid[0].starts_with(&at) && invalid[0].contains(message),
            "{text}: {invalid:?}"
        );
    }
    // A route whose names cannot be read is not about all.
    let long = "a".repeat(300);
    for (names, kept) in [
        ("[db_1.example]", vec!["db_1.example"]),
        ("[1.2.3.4, a.b]", vec!["1.2.3.4", "a.b"]),
        ("[[a]]", vec!["?"]),
        ("a.b", vec!["?"]),
        ("[]", vec![]),
        (&format!("[{long}]"), vec!["…"]),
    ] {
        let (tls, invalid, _) = route("TLSRoute", &format!("{PARENT}, hostnames: {names}, rules: [{{{backends}}}]"));
        assert_eq!(invalid.is_empty(), names == "[]", "{names}: {invalid:?}");
        assert_eq!(tls.rules[0].invalid.is_some(), names != "[]", "{names}");
        let is_kept = |(name, kept): (&std::sync::Arc<str>, &&str)| name.ends_with(kept);
        assert!(
            tls.hostnames.len() == kept.len() && tls.hostnames.iter().zip(&kept).all(is_kept),
            "{:?}",
            tls.hostnames
        );
    }
    for version in ["v1alpha2", "v1alpha3", "v1"] {
        for kind in ["TLSRoute", "TCPRoute"] {
            let text = format!(
                "apiVersion: gateway.networking.k8s.io/{version}\nkind: {kind}\nmetadata: {{name: a}}\nspec: {{{PARENT}, rules: [{{{backends}}}]}}\n"
            );
            let is_known = (kind, version) != ("TCPRoute", "v1alpha3");
            assert_eq!(read("f", text.as_bytes()).invalid.is_empty(), is_known, "{kind} {version}");
        }
    }
}

fn grant(spec: &str) -> (Option<ReferenceGrant>, Vec<String>) {
    let text = format!(
        "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: shop}}\nspec: {{{spec}}}\n"
    );
    let reading = read("f", text.as_bytes());
    let grant = reading.items.iter().find_map(|item| match &item.object {
        Object::ReferenceGrant(grant) => Some(ReferenceGrant::clone(&grant.policy)),
        _ => None,
    });
    (grant, reading.invalid.iter().map(|i| format!("{}: {}", i.field, i.message)).collect())
}

#[test]
fn grants_are_read_whole_or_grant_nothing_table() {
    let of = "group: gateway.networking.k8s.io";
    let (found, invalid) = grant(&format!(
        "from: [{{{of}, kind: HTTPRoute, namespace: a}}, {{{of}, kind: TCPRoute, namespace: b}}, {{{of}, kind: Gateway, namespace: c}}, \
         {{group: x, kind: HTTPRoute, namespace: d}}], to: [{{group: '', kind: Service, name: web}}, {{group: '', kind: Service}}, \
         {{group: '', kind: Secret}}]"
    ));
    assert_eq!(invalid, Vec::<String>::new());
    let found = found.unwrap();
    assert_eq!(found.key, (arc("shop"), arc("g")));
    assert_eq!(*found.from, [(RouteKind::Http, arc("a")), (RouteKind::Tcp, arc("b"))]);
    assert_eq!(*found.to, [Some(arc("web")), None]);
    let from = format!("from: [{{{of}, kind: HTTPRoute, namespace: a}}]");
    let to = "to: [{group: '', kind: Service}]";
    let many = |item: &str| vec![item; 17].join(", ");
    let table = [
        (from.clone(), "spec.to", "is missing"),
        (to.to_owned(), "spec.from", "is missing"),
        (format!("{from}, to: []"), "spec.to", "is missing"),
        (format!("{from}, {to}, also: 1"), "spec.also", "unknown field"),
        (format!("{from}, to: [{{kind: Service}}]"), "spec.to[0].group", "is missing"),
        (format!("{from}, to: [{{group: ''}}]"), "spec.to[0].kind", "is missing"),
        (format!("{from}, to: [{{group: '', kind: Service, nam: web}}]"), "spec.to[0].nam", "unknown field"),
        (format!("{from}, to: [{{group: '', kind: Service, name: A_b}}]"), "spec.to[0].name", "no name"),
        (format!("{from}, to: [{}]", many("{group: '', kind: Service}")), "spec.to", "17 entries"),
        (format!("from: [{{{of}, kind: HTTPRoute}}], {to}"), "spec.from[0].namespace", "is missing"),
        (
            format!("from: [{{{of}, kind: HTTPRoute, namespace: '*'}}], {to}"),
            "spec.from[0].namespace",
            "no name of a namespace",
        ),
        (format!("from: [{{kind: HTTPRoute, namespace: a}}], {to}"), "spec.from[0].group", "is missing"),
        (format!("from: [a], {to}"), "spec.from[0]", "must be a mapping"),
    ];
    for (text, field, message) in table {
        let (found, invalid) = grant(&text);
        assert_eq!(found, None, "{text}");
        let at = format!("{field}: ");
        assert!(invalid.iter().any(|told| told.starts_with(&at) && told.contains(message)), "{text}: {invalid:?}");
    }
}
