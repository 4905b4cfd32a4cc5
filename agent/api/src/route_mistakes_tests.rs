//! Routes: whom a mistake harms, and that it harms nobody else.

use heddle_model::routing::*;

use super::tests::*;
use crate::object::{Object, read};

/// `field` of the first rule, where it is refused, and part of why. The rule is there and answers 500, the next is as it was.
#[test]
fn a_bad_rule_harms_itself_only_table() {
    let filter = |word: &str, field: &str, fields: &str| format!("filters: [{{type: {word}, {field}: {{{fields}}}}}]");
    let edit = |fields: &str| filter("RequestHeaderModifier", "requestHeaderModifier", fields);
    let redirect = |fields: &str| filter("RequestRedirect", "requestRedirect", fields);
    let rewrite = |fields: &str| filter("URLRewrite", "urlRewrite", fields);
    let mirror =
        |fields: &str| filter("RequestMirror", "requestMirror", &format!("backendRef: {{name: a, port: 1}}, {fields}"));
    let cors = |fields: &str| filter("CORS", "cors", fields);
    let twice = |word: &str, field: &str| {
        format!("filters: [{{type: {word}, {field}: {{}}}}, {{type: {word}, {field}: {{}}}}]")
    };
    let many = |item: &str, count: usize| vec![item; count].join(", ");
    let plain = str::to_owned;
    let f = "filters[0].";
    let prefix = "path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}";
    let table = [
        (plain("nam: a"), "nam", "unknown field `nam`"),
        (plain("name: A"), "name", "`A` is no name"),
        (plain("name: 1"), "name", "must be text"),
        (plain("sessionPersistence: {sessionName: a}"), "sessionPersistence", "not supported"),
        (plain("filters: {}"), "filters", "must be a list"),
        (
            format!(
                "filters: [{}]",
                many("{type: RequestMirror, requestMirror: {backendRef: {name: a, port: 1}}}", 17)
            ),
            "filters",
            "17 entries: at most 16",
        ),
        (plain("filters: [a]"), "filters[0]", "must be a mapping"),
        (plain("filters: [{}]"), "filters[0].type", "is missing"),
        (
            plain("filters: [{type: ExtensionRef, extensionRef: {group: a, kind: B, name: c}}]"),
            "filters[0].type",
            "`ExtensionRef` is not supported",
        ),
        (
            plain("filters: [{type: ExternalAuth, externalAuth: {}}]"),
            "filters[0].type",
            "`ExternalAuth` is not supported",
        ),
        (plain("filters: [{type: cors, cors: {}}]"), "filters[0].type", "`cors` is not supported"),
        (plain("filters: [{type: CORS}]"), "filters[0].cors", "is missing"),
        (plain("filters: [{type: CORS, cors: {}, urlRewrite: {}}]"), "filters[0].urlRewrite", "beside `type: CORS`"),
        (
            plain("filters: [{type: CORS, cors: {}, extensionRef: {}}]"),
            "filters[0].extensionRef",
            "beside `type: CORS`",
        ),
        (plain("filters: [{type: CORS, cors: {}, corse: {}}]"), "filters[0].corse", "unknown field"),
        (twice("RequestHeaderModifier", "requestHeaderModifier"), "filters[1].type", "is there twice"),
        (twice("ResponseHeaderModifier", "responseHeaderModifier"), "filters[1].type", "is there twice"),
        (twice("RequestRedirect", "requestRedirect"), "filters[1].type", "is there twice"),
        (twice("URLRewrite", "urlRewrite"), "filters[1].type", "is there twice"),
        (twice("CORS", "cors"), "filters[1].type", "is there twice"),
        (
            plain("filters: [{type: RequestRedirect, requestRedirect: {}}, {type: URLRewrite, urlRewrite: {}}]"),
            "filters",
            "one or the other",
        ),
        (redirect("") + ", backendRefs: [{name: a, port: 1}]", "backendRefs", "beside a RequestRedirect"),
        // Header modifiers.
        (edit("sett: []"), "$requestHeaderModifier.sett", "unknown field"),
        (edit("set: [{name: a}]"), "$requestHeaderModifier.set[0].value", "is missing"),
        (edit("set: [{value: a}]"), "$requestHeaderModifier.set[0].name", "is missing"),
        (edit("set: [{name: 'a b', value: a}]"), "$requestHeaderModifier.set[0].name", "no name of a header field"),
        (edit("add: [{name: ':path', value: a}]"), "$requestHeaderModifier.add[0].name", "no name of a header field"),
        (edit("add: [{name: a, value: ''}]"), "$requestHeaderModifier.add[0].value", "0 bytes"),
        (
            edit(&format!("add: [{{name: a, value: {}}}]", "v".repeat(4097))),
            "$requestHeaderModifier.add[0].value",
            "4097 bytes",
        ),
        (edit(r#"set: [{name: a, value: "a\r\nb: c"}]"#), "$requestHeaderModifier.set[0].value", "control characters"),
        (edit("set: [{name: a, value: ' a'}]"), "$requestHeaderModifier.set[0].value", "blanks at its ends"),
        (edit("set: [{name: Host, value: a}]"), "$requestHeaderModifier.set[0].name", "urlRewrite.hostname"),
        (
            edit("set: [{name: Content-Length, value: '1'}]"),
            "$requestHeaderModifier.set[0].name",
            "how a message travels",
        ),
        (edit("remove: [Transfer-Encoding]"), "$requestHeaderModifier.remove[0]", "how a message travels"),
        (edit("remove: ['']"), "$requestHeaderModifier.remove[0]", "no name of a header field"),
        (edit("remove: [x-heddle-id]"), "$requestHeaderModifier.remove[0]", "set by agents"),
        (edit(&format!("remove: [{}]", many("a", 17))), "$requestHeaderModifier.remove", "17 entries"),
        (edit(&format!("set: [{}]", many("{name: a, value: b}", 17))), "$requestHeaderModifier.set", "17 entries"),
        // Redirects and rewrites.
        (redirect("scheme: ftp"), "$requestRedirect.scheme", "`ftp` is unknown"),
        (redirect("hostname: 10.0.0.1"), "$requestRedirect.hostname", "no host name"),
        (redirect("hostname: '*.a'"), "$requestRedirect.hostname", "no host name"),
        (redirect("port: 0"), "$requestRedirect.port", "out of range"),
        (redirect("port: 65536"), "$requestRedirect.port", "out of range"),
        (redirect("statusCode: 200"), "$requestRedirect.statusCode", "none of 301"),
        (redirect("path: {}"), "$requestRedirect.path.type", "is missing"),
        (redirect("path: {type: Full}"), "$requestRedirect.path.type", "is unknown"),
        (redirect("path: {type: ReplaceFullPath}"), "$requestRedirect.path.replaceFullPath", "is missing"),
        (
            redirect("path: {type: ReplaceFullPath, replaceFullPath: /a, replacePrefixMatch: /b}"),
            "$requestRedirect.path.replacePrefixMatch",
            "beside `type: ReplaceFullPath`",
        ),
        (
            redirect("path: {type: ReplaceFullPath, replaceFullPath: ''}"),
            "$requestRedirect.path.replaceFullPath",
            "does not begin",
        ),
        (
            redirect("path: {type: ReplacePrefixMatch, replacePrefixMatch: a}"),
            "$requestRedirect.path.replacePrefixMatch",
            "does not begin",
        ),
        (redirect(prefix) + ", matches: [{path: {type: Exact, value: /a}}]", "", "exactly one match"),
        (rewrite(prefix) + ", matches: [{path: {value: /a}}, {path: {value: /b}}]", "", "exactly one match"),
        (rewrite("host: a"), "$urlRewrite.host", "unknown field"),
        (rewrite("hostname: a_b"), "$urlRewrite.hostname", "no host name"),
        (
            rewrite("path: {type: ReplaceFullPath, replaceFullPath: '/a?b=c'}"),
            "$urlRewrite.path.replaceFullPath",
            "has `?` in it",
        ),
        (
            rewrite(&format!("path: {{type: ReplaceFullPath, replaceFullPath: /{}}}", "a".repeat(1024))),
            "$urlRewrite.path.replaceFullPath",
            "longer than 1024",
        ),
        // Mirrors.
        (plain("filters: [{type: RequestMirror, requestMirror: {}}]"), "$requestMirror.backendRef", "is missing"),
        (mirror("percent: 101"), "$requestMirror.percent", "out of range"),
        (mirror("percent: -1"), "$requestMirror.percent", "out of range"),
        (mirror("percent: 1, fraction: {numerator: 1}"), "$requestMirror.fraction", "one or the other"),
        (mirror("fraction: {}"), "$requestMirror.fraction.numerator", "is missing"),
        (mirror("fraction: {numerator: 101}"), "$requestMirror.fraction.numerator", "more than `denominator`"),
        (mirror("fraction: {numerator: 1, denominator: 0}"), "$requestMirror.fraction.denominator", "out of range"),
        (mirror("fraction: {numerator: -1}"), "$requestMirror.fraction.numerator", "out of range"),
        (mirror("fraction: {numerator: 1, of: 2}"), "$requestMirror.fraction.of", "unknown field"),
        (mirror("fraction: 1"), "$requestMirror.fraction", "mapping"),
        (mirror("percent: half"), "$requestMirror.percent", "whole number"),
        // CORS.
        (cors("allowOrigins: [example.com]"), "$cors.allowOrigins[0]", "no origin"),
        (cors("allowOrigins: ['ftp://a']"), "$cors.allowOrigins[0]", "no origin"),
        (cors("allowOrigins: ['https://a/']"), "$cors.allowOrigins[0]", "no origin"),
        (cors("allowOrigins: ['https://a:0']"), "$cors.allowOrigins[0]", "no origin"),
        (cors("allowOrigins: ['https://a.*']"), "$cors.allowOrigins[0]", "no origin"),
        (cors("allowOrigins: ['*', 'https://a']"), "$cors.allowOrigins", "has `*` beside others"),
        (cors("allowMethods: [get]"), "$cors.allowMethods[0]", "no method"),
        (cors("allowMethods: ['*', GET]"), "$cors.allowMethods", "has `*` beside others"),
        (cors("allowHeaders: ['a b']"), "$cors.allowHeaders[0]", "no name of a header field"),
        (cors("allowHeaders: ['*', a]"), "$cors.allowHeaders", "has `*` beside others"),
        (cors("maxAge: 0"), "$cors.maxAge", "out of range"),
        (cors("allowCredentials: 'yes'"), "$cors.allowCredentials", "must be true or false"),
        (cors("allowOrigin: []"), "$cors.allowOrigin", "unknown field"),
        // Timeouts and retries.
        (plain("timeouts: {request: 10}"), "timeouts.request", "must be text"),
        (plain("timeouts: {request: 1.5s}"), "timeouts.request", "no duration"),
        (plain("timeouts: {backendRequest: 1d}"), "timeouts.backendRequest", "no duration"),
        (plain("timeouts: {request: 1s, backendRequest: 2s}"), "timeouts.backendRequest", "longer than `request`"),
        (plain("timeouts: {idle: 1s}"), "timeouts.idle", "unknown field"),
        (plain("retry: {attempts: -1}"), "retry.attempts", "less than none"),
        (plain("retry: {attempts: '1'}"), "retry.attempts", "whole number"),
        (plain("retry: {codes: [200]}"), "retry.codes[0]", "400 to 599"),
        (plain("retry: {codes: [600]}"), "retry.codes[0]", "400 to 599"),
        (plain("retry: {backoff: soon}"), "retry.backoff", "no duration"),
        (plain("retry: {perTryTimeout: 1s}"), "retry.perTryTimeout", "unknown field"),
        // Shares.
        (plain("backendRefs: {}"), "backendRefs", "must be a list"),
        (plain("backendRefs: [{name: a, port: 1, weight: -1}]"), "backendRefs[0].weight", "out of range"),
        (plain("backendRefs: [{name: a, port: 1, weight: 1000001}]"), "backendRefs[0].weight", "out of range"),
        (plain("backendRefs: [{name: a, port: 1, weight: '1'}]"), "backendRefs[0].weight", "whole number"),
        (format!("backendRefs: [{}]", many("{name: a, port: 1}", 17)), "backendRefs", "17 entries"),
        // One match of two: the other still answers 500.
        (plain("matches: [{path: {value: a}}, {path: {value: /b}}]"), "matches[0].path.value", "does not begin"),
    ];
    for (text, field, message) in &table {
        let (route, invalid) = http(text);
        let field = field.replacen('$', f, 1);
        let field = format!("spec.rules[0]{}{field}", if field.is_empty() { "" } else { "." });
        assert_eq!(invalid.len(), 1, "{text}: {invalid:?}");
        assert!(invalid[0].starts_with(&format!("{field}: ")) && invalid[0].contains(message), "{text}: {invalid:?}");
        assert_eq!(route.rules.len(), 2, "{text}");
        assert_eq!(route.rules[0].invalid.as_deref(), Some(&*invalid[0]), "{text}");
        assert_eq!((&route.rules[1].invalid, route.rules[1].id.index), (&None, 1), "{text}");
    }
    assert!(table.len() > 90, "{}", table.len());
}

/// Where nothing can be told of the only match of a rule no request matches it. The rule is there and invalid, and the next as it was.
#[test]
fn a_match_that_cannot_be_read_matches_nothing_table() {
    let path = |fields: &str| format!("path: {{{fields}}}");
    let long = "a".repeat(1025);
    let table = [
        (path("value: a"), ".path.value", "does not begin with `/`"),
        (path("value: ''"), ".path.value", "does not begin with `/`"),
        (path("value: /a//b"), ".path.value", "has `//` in it"),
        (path("type: Exact, value: //"), ".path.value", "has `//` in it"),
        (path("value: /a/./b"), ".path.value", "has `/./` in it"),
        (path("value: /a/../b"), ".path.value", "has `/../` in it"),
        (path("value: /a%2fb"), ".path.value", "has `%2f` in it"),
        (path("value: /a%2Fb"), ".path.value", "has `%2f` in it"),
        (path("value: '/a#b'"), ".path.value", "has `#` in it"),
        (path("value: '/a?b'"), ".path.value", "has `?` in it"),
        (path("value: /a/.."), ".path.value", "ends with `/..`"),
        (path("type: Exact, value: /a/."), ".path.value", "ends with `/.`"),
        (path("value: '/a b'"), ".path.value", "bytes that no path has"),
        (path("value: /ä"), ".path.value", "bytes that no path has"),
        (path("value: /%g0"), ".path.value", "bytes that no path has"),
        (path("value: /%4"), ".path.value", "bytes that no path has"),
        (path(&format!("value: /{long}")), ".path.value", "longer than 1024"),
        (path("type: Prefix, value: /a"), ".path.type", "`Prefix` is unknown"),
        (path("type: RegularExpression, value: '('"), ".path.value", "not a regular expression"),
        (path("type: RegularExpression, value: '(?=a)'"), ".path.value", "not a regular expression"),
        (path(&format!("type: RegularExpression, value: {long}")), ".path.value", "longer than 1024"),
        (path("val: /a"), ".path.val", "unknown field"),
        ("path: /a".into(), ".path", "must be a mapping"),
        ("method: get".into(), ".method", "`get` is unknown"),
        ("method: FOO".into(), ".method", "`FOO` is unknown"),
        ("headers: [{value: a}]".into(), ".headers[0].name", "is missing"),
        ("headers: [{name: 'a:', value: a}]".into(), ".headers[0].name", "no name of a header field"),
        ("headers: [{name: x-heddle-a, value: a}]".into(), ".headers[0].name", "set by agents"),
        ("headers: {a: b}".into(), ".headers", "must be a list"),
        ("queryParams: [{name: 'a=', value: a}]".into(), ".queryParams[0].name", "no name of a parameter"),
        ("hostname: a".into(), ".hostname", "unknown field"),
        // `/` is what a match without a path has.
        ("path: {value: /}, hostname: a".into(), ".hostname", "unknown field"),
        ("path: {value: '/a b'}, method: GET".into(), ".path.value", "bytes that no path has"),
    ];
    for (text, field, message) in table {
        let (route, invalid) = http(&format!("matches: [{{{text}}}], backendRefs: [{{name: web, port: 80}}]"));
        let field = format!("spec.rules[0].matches[0]{field}: ");
        assert!(
            invalid.len() == 1 && invalid[0].starts_with(&field) && invalid[0].contains(message),
            "{text}: {invalid:?}"
        );
        assert_unreadable(&route, &invalid);
    }
    for (text, message) in [("a", "must be a mapping"), ("matches: {}", "must be a list")] {
        let rule = if text == "a" { text.to_owned() } else { format!("{{{text}}}") };
        let (route, invalid, _) = route("HTTPRoute", &format!("{PARENT}, rules: [{rule}, {GOOD}]"));
        assert!(invalid.len() == 1 && invalid[0].contains(message), "{text}: {invalid:?}");
        assert_unreadable(&route, &invalid);
    }
}

/// Where the list of rules cannot be read nobody knows what they were about: everything is answered 500, and nothing goes where it was not to go.
#[test]
fn rules_that_are_no_list_are_about_everything_table() {
    for (kind, rules, message) in [
        ("HTTPRoute", "{}", "must be a list"),
        ("HTTPRoute", "5", "must be a list"),
        ("HTTPRoute", "[]", "is empty: at least one"),
        ("GRPCRoute", "a", "must be a list"),
    ] {
        let (route, invalid, warned) = route(kind, &format!("{PARENT}, rules: {rules}"));
        assert!(invalid.len() == 1 && invalid[0].starts_with("spec.rules: "), "{rules}: {invalid:?}");
        assert!(invalid[0].contains(message) && warned.is_empty(), "{rules}: {invalid:?} {warned:?}");
        let [rule] = &route.rules[..] else { panic!("{route:?}") };
        assert_eq!((rule.matches.len(), rule.invalid.as_deref()), (0, Some(&*invalid[0])), "{rules}");
    }
    // That there is none may be said aloud in a GRPCRoute.
    for spec in [PARENT.to_owned(), format!("{PARENT}, rules: []")] {
        let (route, invalid, warned) = route("GRPCRoute", &spec);
        assert!(route.rules.is_empty() && invalid.is_empty(), "{spec}: {invalid:?}");
        assert!(warned.iter().any(|warning| warning.contains("has no effect")), "{spec}: {warned:?}");
    }
}

/// Nothing matches the first rule, which is invalid for the one thing that is told; the second is good.
pub(super) fn assert_unreadable(route: &Route, invalid: &[String]) {
    let [bad, good] = &route.rules[..] else { panic!("{route:?}") };
    assert_eq!((bad.invalid.as_deref(), bad.id.index), (Some(&*invalid[0]), 0), "{route:?}");
    assert!(matches!(&*bad.matches, [Match { path: PathMatch::Unreadable, .. }]), "{route:?}");
    assert_eq!((&good.invalid, good.id.index), (&None, 1), "{route:?}");
}

/// `field` of a match that cannot be read, and what is left of it: what the author may have meant is answered 500 and goes nowhere else.
#[test]
fn what_can_be_read_of_a_match_is_kept_table() {
    let long = "a".repeat(4097);
    let many = |item: &str, count: usize| vec![item; count].join(", ");
    let of_path = |path: &str| Match { path: PathMatch::Prefix(arc(path)), ..Match::default() };
    let header = |value| Match { headers: [HeaderMatch { name: arc("a"), value }].into(), ..Match::default() };
    let query = |value| Match { query: [QueryMatch { name: arc("a"), value }].into(), ..Match::default() };
    let (any, b) = (ValueMatch::Present, ValueMatch::Exact(arc("b")));
    let get = Match { method: Some(arc("GET")), ..Match::default() };
    let table = [
        ("path: {value: /a, val: b}", "path.val", of_path("/a")),
        ("path: {value: /a}, method: get", "method", of_path("/a")),
        ("path: {value: /a}, hostname: a", "hostname", of_path("/a")),
        ("path: {value: /a}, headers: {a: b}", "headers", of_path("/a")),
        ("path: {value: /a}, headers: [{name: 'a:', value: b}]", "headers[0].name", of_path("/a")),
        (
            "path: {value: /a}, headers: [{name: a}]",
            "headers[0].value",
            Match { headers: header(any.clone()).headers, ..of_path("/a") },
        ),
        ("method: GET, hostname: a", "hostname", get.clone()),
        ("method: GET, headers: [{value: a}]", "headers[0].name", get),
        ("headers: [{name: a}]", "headers[0].value", header(any.clone())),
        ("headers: [{name: a, value: ''}]", "headers[0].value", header(any.clone())),
        (&format!("headers: [{{name: a, value: {long}}}]"), "headers[0].value", header(any.clone())),
        ("headers: [{name: a, type: Regex, value: b}]", "headers[0].type", header(any.clone())),
        ("headers: [{name: a, type: RegularExpression, value: '['}]", "headers[0].value", header(any.clone())),
        (&format!("headers: [{}]", many("{name: a, value: b}", 17)), "headers", header(b.clone())),
        ("headers: [{name: a, value: b}, {name: c, value: d, valeu: e}]", "headers[1].valeu", {
            let c = HeaderMatch { name: arc("c"), value: ValueMatch::Exact(arc("d")) };
            Match { headers: header(b.clone()).headers.iter().cloned().chain([c]).collect(), ..Match::default() }
        }),
        ("queryParams: [{name: a, value: ''}]", "queryParams[0].value", query(any.clone())),
        (&format!("queryParams: [{{name: a, value: {}}}]", &long[..1025]), "queryParams[0].value", query(any.clone())),
        ("queryParams: [{name: a, type: RegularExpression, value: '*'}]", "queryParams[0].value", query(any)),
        (&format!("queryParams: [{}]", many("{name: a, value: b}", 17)), "queryParams", query(b)),
    ];
    for (text, field, left) in table {
        // Beside one that can be read, and alone.
        let (route, invalid) = http(&format!("matches: [{{path: {{value: /x}}}}, {{{text}}}]"));
        assert!(
            invalid.len() == 1 && invalid[0].starts_with(&format!("spec.rules[0].matches[1].{field}: ")),
            "{invalid:?}"
        );
        assert_eq!(*route.rules[0].matches, [of_path("/x"), left.clone()], "{text}");
        let (route, invalid) = http(&format!("matches: [{{{text}}}]"));
        assert_eq!(*route.rules[0].matches, [left], "{text}");
        assert_eq!(route.rules[0].invalid.as_deref(), Some(&*invalid[0]), "{text}");
        assert_eq!((&route.rules[1].invalid, route.rules[1].id.index), (&None, 1), "{text}");
    }
    // Of a gRPC method the half.
    let call = |service, method| Match { path: PathMatch::Call(CallMatch { service, method }), ..Match::default() };
    let (exact, any) = (|text: &str| Some(ValueMatch::Exact(arc(text))), Some(ValueMatch::Present));
    for (text, field, left) in [
        ("service: a.B, method: c.d", "method", call(exact("a.B"), any.clone())),
        ("service: a/B, method: c", "service", call(any, exact("c"))),
        ("service: a.B, methd: c", "methd", call(exact("a.B"), None)),
    ] {
        let (route, invalid) = grpc(&format!("matches: [{{method: {{{text}}}}}]"));
        assert!(
            invalid.len() == 1 && invalid[0].starts_with(&format!("spec.rules[0].matches[0].method.{field}: ")),
            "{invalid:?}"
        );
        assert_eq!((&*route.rules[0].matches, route.rules[0].invalid.is_some()), (&[left][..], true), "{text}");
    }
}

/// What is wrong with one backend: its share is answered 500, and its rule works.
#[test]
fn a_bad_backend_harms_its_share_only_table() {
    let unsupported = |text: &str| BackendRef::Invalid(BackendProblem::UnsupportedValue(arc(text)));
    let table = [
        ("name: a", "port", "is missing"),
        ("name: a, port: 0", "port", "out of range"),
        ("name: a, port: http", "port", "whole number"),
        ("port: 80", "name", "is missing"),
        ("name: A, port: 80", "name", "no name of a Service"),
        ("name: a, namespace: B, port: 80", "namespace", "no name of a namespace"),
        ("name: a, port: 80, wieght: 1", "wieght", "unknown field"),
        (
            "name: a, port: 80, filters: [{type: URLRewrite, urlRewrite: {}}]",
            "filters[0].type",
            "`URLRewrite` is not supported here",
        ),
        (
            "name: a, port: 80, filters: [{type: RequestMirror, requestMirror: {backendRef: {name: b, port: 1}}}]",
            "filters[0].type",
            "not supported here",
        ),
        (
            "name: a, port: 80, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: host, value: a}]}}]",
            "filters[0].requestHeaderModifier.set[0].name",
            "urlRewrite.hostname",
        ),
    ];
    let good = service("shop", "web", 80);
    for (text, field, message) in table {
        let (route, invalid) = http(&format!("backendRefs: [{{{text}}}, {{name: web, port: 80}}]"));
        let at = format!("spec.rules[0].backendRefs[0].{field}: ");
        assert!(
            invalid.len() == 1 && invalid[0].starts_with(&at) && invalid[0].contains(message),
            "{text}: {invalid:?}"
        );
        let rule = &route.rules[0];
        assert_eq!((&rule.invalid, rule.backends.len()), (&None, 2), "{text}");
        assert_eq!((&rule.backends[0].to, &rule.backends[1].to), (&unsupported(&invalid[0]), &good), "{text}");
    }
    for (text, kind) in [
        ("group: example.com, kind: Bucket, name: a", "example.com/Bucket"),
        ("kind: Pod, name: a, port: 80", "Pod"),
        ("group: multicluster.x-k8s.io, kind: ServiceImport, name: a, port: 80", "multicluster.x-k8s.io/ServiceImport"),
    ] {
        let (route, invalid) = http(&format!("backendRefs: [{{{text}}}]"));
        assert!(invalid.len() == 1 && invalid[0].starts_with("spec.rules[0].backendRefs[0].kind: "), "{invalid:?}");
        assert_eq!(route.rules[0].backends[0].to, BackendRef::Invalid(BackendProblem::InvalidKind(arc(kind))));
        let (route, invalid) =
            http(&format!("filters: [{{type: RequestMirror, requestMirror: {{backendRef: {{{text}}}}}}}]"));
        assert_eq!((invalid.len(), &route.rules[0].invalid), (1, &None), "nobody waits for a mirror");
        assert_eq!(route.rules[0].filters.mirrors[0].to, BackendRef::Invalid(BackendProblem::InvalidKind(arc(kind))));
    }
}

/// What is wrong outside of rules makes all of them invalid.
#[test]
fn what_is_wrong_around_the_rules_harms_the_whole_route_table() {
    let rules = format!("rules: [{GOOD}]");
    let parent = |fields: &str| format!("parentRefs: [{{{fields}}}], {rules}");
    let service = "group: '', kind: Service, name: a";
    let many = |item: &str, count: usize| vec![item; count].join(", ");
    let with = |field: &str| format!("{PARENT}, {rules}, {field}");
    let table = [
        (parent("group: '', kind: Service"), "spec.parentRefs[0].name", "is missing"),
        (parent("group: '', kind: Service, name: A"), "spec.parentRefs[0].name", "no name of a Service"),
        (parent("group: '', kind: Service, name: a.b"), "spec.parentRefs[0].name", "no name of a Service"),
        (parent(&format!("{service}, namespace: a.b")), "spec.parentRefs[0].namespace", "no name of a namespace"),
        (parent(&format!("{service}, port: 0")), "spec.parentRefs[0].port", "out of range"),
        (parent(&format!("{service}, port: http")), "spec.parentRefs[0].port", "whole number"),
        (parent(&format!("{service}, sectionName: A_b")), "spec.parentRefs[0].sectionName", "no name of a port"),
        (parent(&format!("{service}, prot: 80")), "spec.parentRefs[0].prot", "unknown field"),
        (format!("parentRefs: [a], {rules}"), "spec.parentRefs[0]", "must be a mapping"),
        (format!("parentRefs: {{}}, {rules}"), "spec.parentRefs", "must be a list"),
        (format!("parentRefs: [{{{service}}}, {{{service}}}], {rules}"), "spec.parentRefs[1]", "named already"),
        (format!("parentRefs: [{{{service}}}, {{{service}, port: 1}}], {rules}"), "spec.parentRefs[1]", "each needs"),
        (
            format!("parentRefs: [{{{service}, port: 1}}, {{{service}, port: 1}}], {rules}"),
            "spec.parentRefs[1]",
            "named already",
        ),
        (with("hostnames: [10.0.0.1]"), "spec.hostnames[0]", "no host name"),
        (with("hostnames: ['*']"), "spec.hostnames[0]", "no host name"),
        (with("hostnames: ['a.*.b']"), "spec.hostnames[0]", "no host name"),
        (with("hostnames: a"), "spec.hostnames", "must be a list"),
        (with(&format!("hostnames: [{}]", many("a", 17))), "spec.hostnames", "17 entries"),
        (with("useDefaultGateways: Some"), "spec.useDefaultGateways", "is unknown"),
        (with("hostname: a"), "spec.hostname", "unknown field"),
        (format!("{PARENT}, rules: [{}]", many(GOOD, 17)), "spec.rules", "17 entries: at most 16"),
        (
            format!("{PARENT}, rules: [{}]", many(&format!("{{matches: [{}]}}", many("{path: {value: /a}}", 43)), 3)),
            "spec.rules",
            "129 matches together",
        ),
    ];
    for (text, field, message) in table {
        let (route, invalid, _) = route("HTTPRoute", &text);
        let at = format!("{field}: ");
        assert!(
            invalid.len() == 1 && invalid[0].starts_with(&at) && invalid[0].contains(message),
            "{text}: {invalid:?}"
        );
        assert!(!route.rules.is_empty(), "{text}");
        let all = route.rules.iter().all(|rule| rule.invalid.as_deref() == Some(&*invalid[0]));
        assert!(all, "{text}: {route:?}");
    }
    let two = format!("parentRefs: [{{{service}}}, {{name: B}}], {rules}");
    assert_eq!(route("HTTPRoute", &two).0.parents.len(), 1, "the other parent is told 500");
    let many_matches = format!("{PARENT}, rules: [{{matches: [{}]}}, {GOOD}]", many("{path: {value: /a}}", 65));
    let (route, invalid, _) = route("HTTPRoute", &many_matches);
    assert!(invalid.len() == 1 && invalid[0].starts_with("spec.rules[0].matches: 65 entries"), "{invalid:?}");
    assert_eq!(route.rules[1].invalid, None);
}

#[test]
fn a_rules_name_is_its_own() {
    let (route, invalid, _) =
        route("HTTPRoute", &format!("{PARENT}, rules: [{{name: a}}, {{name: a}}, {{name: b}}, {{}}]"));
    assert_eq!(invalid, ["spec.rules[1].name: `a` is the name of another rule"]);
    let marked: Vec<bool> = route.rules.iter().map(|rule| rule.invalid.is_some()).collect();
    assert_eq!(marked, [false, true, false, false]);
}

#[test]
fn regular_expressions_of_a_route_are_bounded() {
    let header = |at: usize| format!("{{type: RegularExpression, name: h{at}, value: a}}");
    let one = format!("{{headers: [{}]}}", (0..16).map(header).collect::<Vec<_>>().join(", "));
    let matches = |count: usize| vec![one.as_str(); count].join(", ");
    assert_eq!(http(&format!("matches: [{}]", matches(16))).1, Vec::<String>::new());
    let (route, invalid) =
        http(&format!("matches: [{}, {{path: {{type: RegularExpression, value: a}}}}]", matches(16)));
    assert!(invalid.len() == 1 && invalid[0].contains("more regular expressions than 256"), "{invalid:?}");
    assert_eq!((route.rules[0].matches.len(), &route.rules[1].invalid), (17, &None));
    assert_eq!(route.rules[0].matches[16].path, PathMatch::Unreadable);
}

#[test]
fn broken_text_and_metadata_harm_the_whole_route() {
    let good = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: web, namespace: shop}}\nspec:\n  {PARENT}\n  rules:\n  - {GOOD}\n"
    );
    let changes = [
        ("namespace: shop", "namespace: shop, generation: x", "metadata.generation"),
        ("namespace: shop", "namespace: shop, creationTimestamp: x", "metadata.creationTimestamp"),
        ("metadata:", "extra: 1\nmetadata:", "extra"),
        ("gateway.networking.k8s.io/v1\n", "gateway.networking.k8s.io/v1alpha2\n", "apiVersion"),
        ("rules:\n", "parentRefs: []\n  rules:\n", ""),
    ];
    for (from, to, field) in changes {
        let reading = read("f", good.replacen(from, to, 1).as_bytes());
        assert!(reading.invalid.len() == 1 && *reading.invalid[0].field == *field, "{to}: {reading:?}");
        let [item] = &reading.items[..] else { panic!("{to}: {reading:?}") };
        let Object::Route(route) = &item.object else { panic!("{reading:?}") };
        assert!(route.rules.len() == 1 && route.rules[0].invalid.is_some(), "{to}: {route:?}");
        assert_eq!(route.parents.len(), 1, "{to}");
    }
    let beta = good.replacen("k8s.io/v1", "k8s.io/v1beta1", 1);
    assert_eq!(read("f", good.as_bytes()).items, read("f", beta.as_bytes()).items);
    assert_eq!(read("f", good.replacen("name: web", "name: Web", 1).as_bytes()).items, []);
}

/// `line` of the rule that is there twice, and what is left: whether each rule is invalid.
#[test]
fn a_field_that_is_there_twice_harms_what_it_is_in_table() {
    let table: [(&str, &str, &[bool]); 6] = [
        ("    backendRefs: []\n", "    backendRefs: []\n    backendRefs: [{name: b, port: 1}]\n", &[true, false]),
        ("    name: first\n", "    name: first\n    name: second\n", &[true, false]),
        ("value: /a\n", "value: /a\n        value: /\n", &[true, false]),
        ("  - matches:\n", "  - matches: []\n    matches:\n", &[true, false]),
        ("  hostnames: []\n", "  hostnames: []\n  hostnames: [a]\n", &[true, true]),
        ("  rules:\n", "  rules: []\n  rules:\n", &[true]),
    ];
    let good = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: web, namespace: shop}}\nspec:\n  {PARENT}\n  \
         hostnames: []\n  rules:\n  - matches:\n    - path:\n        value: /a\n    name: first\n    backendRefs: []\n  - {GOOD}\n"
    );
    for (once, twice, left) in table {
        assert!(good.contains(once), "{once}");
        let reading = read("f", good.replacen(once, twice, 1).as_bytes());
        let [report] = &reading.invalid[..] else { panic!("{twice}: {reading:?}") };
        assert!(report.message.contains("is there twice"), "{report}");
        let of_rule = left == [true, false];
        assert_eq!(&*report.field, if of_rule { "spec.rules[0]" } else { "" }, "{twice}");
        let [item] = &reading.items[..] else { panic!("{twice}: {reading:?}") };
        let Object::Route(route) = &item.object else { panic!("{reading:?}") };
        assert_eq!(route.rules.iter().map(|rule| rule.invalid.is_some()).collect::<Vec<_>>(), left, "{twice}");
        let is_contested = twice.contains("value: /\n") || twice.contains("matches: []");
        let is_unreadable =
            route.rules.iter().any(|rule| rule.matches.iter().any(|of| of.path == PathMatch::Unreadable));
        assert_eq!(is_unreadable, is_contested, "{twice}");
        assert_eq!(route.parents.len(), 1, "{twice}");
    }
}
