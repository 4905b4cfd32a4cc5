//! Which rule is picked: rows by hand, and against a reference that knows no index.

use std::cmp::Reverse;
use std::sync::Arc;

use proptest::prelude::*;

use super::super::testing::{Asked, ask, route, rule, to};
use super::super::{QueryMatch, ValueMatch};
use super::*;

fn table(kind: RouteKind, routes: &[Route]) -> Table {
    let mut routes: Vec<&Route> = routes.iter().collect();
    routes.sort_by_cached_key(|route| Seniority::of(route));
    Table::new(kind, &routes.into_iter().map(|route| (route, route.rules.to_vec())).collect::<Vec<_>>())
}

/// Each rule is a route's only one where names are given, else all are one route's.
fn of_rules(rules: &[&str]) -> Table {
    let rules: Vec<Rule> = rules.iter().map(|text| rule(text)).collect();
    table(RouteKind::Http, &[route(RouteKind::Http, "shop", "web", 1, &rules)])
}

/// Rules of one route in order; then requests with the number of the rule they match, or none.
type Rows = &'static [(&'static [&'static str], &'static [(&'static str, Option<u32>)])];

const ROWS: Rows = &[
    // Paths by whole segments.
    (
        &["/abc"],
        &[
            ("GET /abc", Some(0)),
            ("GET /abc/", Some(0)),
            ("GET /abc/def", Some(0)),
            ("GET /abc/def/ghi", Some(0)),
            ("GET /abc//def", Some(0)),
            ("GET /abcd", None),
            ("GET /ab", None),
            ("GET /", None),
            ("GET /x/abc", None),
            ("GET /ABC", None),
            ("GET *", None),
            ("GET //abc", None),
            ("GET /abc?x=/abcd", Some(0)),
        ],
    ),
    (&["/abc/"], &[("GET /abc", Some(0)), ("GET /abc/", Some(0)), ("GET /abc/d", Some(0)), ("GET /abcd", None)]),
    (
        &["/"],
        &[("GET /", Some(0)), ("GET /a/b", Some(0)), ("GET *", Some(0)), ("OPTIONS *", Some(0)), ("GET //", Some(0))],
    ),
    (&[""], &[("GET /", Some(0)), ("POST /a/b?c=d x=y", Some(0)), ("OPTIONS *", Some(0))]),
    (
        &["=/abc"],
        &[
            ("GET /abc", Some(0)),
            ("GET /abc?q=1", Some(0)),
            ("GET /abc/", None),
            ("GET /abc/d", None),
            ("GET /ab", None),
            ("GET /Abc", None),
            ("GET /", None),
        ],
    ),
    (&["=/abc/"], &[("GET /abc/", Some(0)), ("GET /abc", None)]),
    (&["=/"], &[("GET /", Some(0)), ("GET /a", None), ("GET *", None)]),
    (
        &["~/v[0-9]+/.*"],
        &[
            ("GET /v1/x", Some(0)),
            ("GET /v12/", Some(0)),
            ("GET /v1", None),
            ("GET /x/v1/x", None),
            ("GET /va/x", None),
            ("GET /v1/x?y", Some(0)),
        ],
    ),
    // Exact before prefix, longer prefixes before shorter, whatever the order of rules.
    (
        &["/", "/a", "/a/b", "=/a/b", "=/"],
        &[
            ("GET /", Some(4)),
            ("GET /x", Some(0)),
            ("GET /a", Some(1)),
            ("GET /a/", Some(1)),
            ("GET /a/c", Some(1)),
            ("GET /a/b", Some(3)),
            ("GET /a/b/", Some(2)),
            ("GET /a/b/c/d", Some(2)),
            ("GET /ab", Some(0)),
        ],
    ),
    (
        &["=/a/b", "/a/b", "/a", "/"],
        &[("GET /a/b", Some(0)), ("GET /a/b/c", Some(1)), ("GET /a/x", Some(2)), ("GET /b", Some(3))],
    ),
    (&["/a/b/c/d", "/a"], &[("GET /a/b/c", Some(1)), ("GET /a/b/c/d", Some(0)), ("GET /a/b/c/d/e", Some(0))]),
    // An exact path before anything a longer list of conditions could say.
    (
        &["/a m:GET h:x=1 h:y=2 q:z=3", "=/a"],
        &[("GET /a?z=3 x=1 y=2", Some(1)), ("GET /a/b?z=3 x=1 y=2", Some(0)), ("GET /a/b", None)],
    ),
    (&["/a m:GET h:x=1", "/a/b"], &[("GET /a/b x=1", Some(1)), ("GET /a/c x=1", Some(0))]),
    // What an exact path does not meet falls to its prefixes, and so on.
    (
        &["=/a/b h:x=1", "/a/b h:x=2", "/a h:x=3", "/"],
        &[
            ("GET /a/b x=1", Some(0)),
            ("GET /a/b x=2", Some(1)),
            ("GET /a/b x=3", Some(2)),
            ("GET /a/b x=4", Some(3)),
            ("GET /a/b", Some(3)),
        ],
    ),
    // Patterns: behind prefixes, before `/`.
    (
        &["/", "~/a/.*", "/a/b", "=/a/b/c"],
        &[
            ("GET /a/b/c", Some(3)),
            ("GET /a/b", Some(2)),
            ("GET /a/b/d", Some(2)),
            ("GET /a/x", Some(1)),
            ("GET /x", Some(0)),
            ("GET /a", Some(0)),
        ],
    ),
    (&["~/.*", "~/a"], &[("GET /a", Some(0)), ("GET /b", Some(0))]),
    (&["~/.*", "~/a m:GET"], &[("GET /a", Some(1)), ("POST /a", Some(0))]),
    (&["/ m:GET h:a=1", "~/x.*"], &[("GET /xy a=1", Some(1)), ("GET /y a=1", Some(0)), ("GET /y", None)]),
    // Methods, by their exact name.
    (
        &["/ m:GET", "/ m:POST"],
        &[("GET /", Some(0)), ("POST /", Some(1)), ("PUT /", None), ("get /", None), ("HEAD /", None)],
    ),
    (&["/", "/ m:GET"], &[("GET /x", Some(1)), ("POST /x", Some(0))]),
    (
        &["/ h:a=1 h:b=2 h:c=3 q:d=4", "/ m:GET"],
        &[("GET /?d=4 a=1 b=2 c=3", Some(1)), ("PUT /?d=4 a=1 b=2 c=3", Some(0))],
    ),
    // Headers: more of them first, before query parameters.
    (
        &["/", "/ h:a=1", "/ h:a=1 h:b=2", "/ h:b=2"],
        &[
            ("GET /", Some(0)),
            ("GET / a=1", Some(1)),
            ("GET / b=2", Some(3)),
            ("GET / a=1 b=2", Some(2)),
            ("GET / a=2 b=2", Some(3)),
            ("GET / a=2", Some(0)),
            ("GET / a=1 b=2 c=3", Some(2)),
        ],
    ),
    (&["/ q:a=1 q:b=2 q:c=3", "/ h:x=1"], &[("GET /?a=1&b=2&c=3 x=1", Some(1)), ("GET /?a=1&b=2&c=3", Some(0))]),
    (&["/ h:x=1", "/ h:x=1 q:a=1"], &[("GET /?a=1 x=1", Some(1)), ("GET /?a=2 x=1", Some(0))]),
    (&["/ h:x=~[0-9]+"], &[("GET / x=12", Some(0)), ("GET / x=a", None), ("GET / x=12a", None), ("GET /", None)]),
    (&["/ h:x=~.*"], &[("GET / x=", Some(0)), ("GET / x=1", Some(0)), ("GET / y=1", None)]),
    (&["/ h:x="], &[("GET / x=", Some(0)), ("GET /", None), ("GET / x=1", None)]),
    (&["/ h:x=a"], &[("GET / x=A", None), ("GET / x=a", Some(0))]),
    // Several lines of one field are one value.
    (
        &["/ h:x=a,b", "/ h:x=a"],
        &[
            ("GET / x=a x=b", Some(0)),
            ("GET / x=a,b", Some(0)),
            ("GET / x=a", Some(1)),
            ("GET / x=b x=a", None),
            ("GET / x=b", None),
        ],
    ),
    (&["/ h:x=,b"], &[("GET / x= x=b", Some(0)), ("GET / x=b", None)]),
    (&["/ h:x=~a,.*,c"], &[("GET / x=a x=b x=c", Some(0)), ("GET / x=a x=c", None)]),
    // Of equal names the first counts, also where matches are counted.
    (&["/ h:a=1 h:a=2"], &[("GET / a=1", Some(0)), ("GET / a=2", None), ("GET / a=1 a=2", None)]),
    (&["/ h:a=1 h:a=2 h:a=3", "/ h:a=1 h:b=2"], &[("GET / a=1 b=2", Some(1)), ("GET / a=1", Some(0))]),
    (&["/ h:a=1 h:a=2", "/ h:b=2"], &[("GET / a=1 b=2", Some(0))]),
    (&["/ q:a=1 q:a=2"], &[("GET /?a=1", Some(0)), ("GET /?a=2", None)]),
    (&["/ q:a=1 q:a=2 q:a=3", "/ q:a=1 q:b=2"], &[("GET /?a=1&b=2", Some(1))]),
    // Query parameters: the first value, without percent-encoding.
    (
        &["/ q:a=1"],
        &[
            ("GET /?a=1", Some(0)),
            ("GET /?b=2&a=1", Some(0)),
            ("GET /?a=1&a=2", Some(0)),
            ("GET /?a=2&a=1", None),
            ("GET /?A=1", None),
            ("GET /?a", None),
            ("GET /?aa=1", None),
            ("GET /?a=11", None),
            ("GET /?%61=%31", Some(0)),
            ("GET /?&&a=1", Some(0)),
            ("GET /", None),
            ("GET /?", None),
        ],
    ),
    (&["/ q:a="], &[("GET /?a", Some(0)), ("GET /?a=", Some(0)), ("GET /?b", None)]),
    (&["/ q:a=x&y"], &[("GET /?a=x%26y", Some(0)), ("GET /?a=x&y", None)]),
    (&["/ q:a=x+y"], &[("GET /?a=x+y", Some(0)), ("GET /?a=x%2By", Some(0)), ("GET /?a=x%20y", None)]),
    (&["/ q:a=%zz"], &[("GET /?a=%zz", Some(0)), ("GET /?a=%25zz", Some(0))]),
    (&["/ q:a=100%"], &[("GET /?a=100%", Some(0)), ("GET /?a=100%25", Some(0))]),
    (&["/ q:a=b=c"], &[("GET /?a=b=c", Some(0)), ("GET /?a=b", None)]),
    (&["/ q:a=~[a-c]+"], &[("GET /?a=abc", Some(0)), ("GET /?a=%61", Some(0)), ("GET /?a=abcd", None)]),
    // More parameters first.
    (&["/ q:a=1", "/ q:a=1 q:b=2"], &[("GET /?a=1&b=2", Some(1)), ("GET /?a=1", Some(0))]),
    // Ties: the first rule, the first match.
    (&["/a", "/a"], &[("GET /a", Some(0))]),
    (&["/a h:x=1", "/a h:y=1"], &[("GET /a x=1 y=1", Some(0)), ("GET /a y=1", Some(1))]),
    (&["/a h:y=1", "/a h:x=1"], &[("GET /a x=1 y=1", Some(0))]),
    // Any of a rule's matches; each has its own place in the order.
    (
        &["/a | =/b/c", "/b | =/a/x"],
        &[
            ("GET /a", Some(0)),
            ("GET /a/x", Some(1)),
            ("GET /b", Some(1)),
            ("GET /b/c", Some(0)),
            ("GET /b/c/d", Some(1)),
            ("GET /c", None),
        ],
    ),
    (
        &["/foo h:version=v2 | /v2/foo", "/"],
        &[("GET /foo version=v2", Some(0)), ("GET /v2/foo", Some(0)), ("GET /foo", Some(1))],
    ),
    // gRPC: service and method, service, method, anything.
    (
        &["/", "~/[^/]+/Get", "/pkg.Svc", "=/pkg.Svc/Get", "/ h:x=1"],
        &[
            ("POST /pkg.Svc/Get", Some(3)),
            ("POST /pkg.Svc/Put", Some(2)),
            ("POST /pkg.Other/Get", Some(1)),
            ("POST /pkg.Other/Put", Some(0)),
            ("POST /pkg.Other/Put x=1", Some(4)),
            ("POST /pkg.Svc/Put x=1", Some(2)),
            ("POST /pkg.SvcX/Put", Some(0)),
        ],
    ),
];

#[test]
fn rules_are_picked_by_precedence() {
    let mut count = 0;
    for (rules, requests) in ROWS {
        let table = of_rules(rules);
        for (request, expected) in *requests {
            count += 1;
            let request_of = ask(request);
            let found = table.pick(&request_of).map(|matched| matched.rule.id.index);
            assert_eq!(found, *expected, "{request} of {rules:?}");
        }
    }
    assert!(count >= 150, "{count} rows");
}

/// Of routes that say the same: the older, one that says its age, the first by `namespace/name` as one text.
#[test]
fn ties_go_to_the_oldest_route_and_then_by_name() {
    for (routes, expected) in [
        (&[("shop", "a", 2), ("shop", "b", 1)][..], "shop/b"),
        (&[("shop", "b", 1), ("shop", "a", 1)], "shop/a"),
        (&[("shop", "a", -1), ("shop", "b", 9)], "shop/b"),
        (&[("shop", "b", -1), ("shop", "a", -1)], "shop/a"),
        (&[("a", "z", 1), ("b", "a", 1)], "a/z"),
        (&[("a", "z", 1), ("a-b", "a", 1)], "a-b/a"),
        (&[("shop", "c", 3), ("shop", "b", 2), ("shop", "a", 2)], "shop/a"),
    ] {
        let routes: Vec<Route> =
            routes.iter().map(|(ns, name, age)| route(RouteKind::Http, ns, name, *age, &[rule("/a")])).collect();
        let table = table(RouteKind::Http, &routes);
        let asked = ask("GET /a");
        let id = &table.pick(&asked).unwrap().rule.id.route;
        assert_eq!(format!("{}/{}", id.namespace, id.name), expected);
    }
    // What is more specific comes first whatever its age.
    let old = route(RouteKind::Http, "shop", "old", 1, &[rule("/a"), rule("/b h:x=1")]);
    let new = route(RouteKind::Http, "shop", "new", 2, &[rule("/a/b"), rule("/b m:GET")]);
    let table = table(RouteKind::Http, &[old, new]);
    for (request, expected) in
        [("GET /a/b", "new"), ("GET /a", "old"), ("GET /b x=1", "new"), ("PUT /b x=1", "old"), ("GET /b", "new")]
    {
        let asked = ask(request);
        assert_eq!(&*table.pick(&asked).unwrap().rule.id.route.name, expected, "{request}");
    }
}

#[test]
fn the_length_of_the_prefix_is_told() {
    let table = of_rules(&["/", "/a/b/", "=/x/y", "~/p.*"]);
    for (path, bytes) in [("/", 0), ("/q/r", 0), ("/a/b", 4), ("/a/b/", 4), ("/a/b/c", 4), ("/x/y", 4), ("/pq", 0)] {
        let asked = ask(&format!("GET {path}"));
        assert_eq!(table.pick(&asked).map(|m| m.prefix_bytes), Some(bytes), "{path}");
    }
}

#[test]
fn connections_are_matched_by_name() {
    let named = |name: &str, age, names: &[&str]| Route {
        hostnames: names.iter().map(|name| (*name).into()).collect(),
        ..route(RouteKind::Tls, "shop", name, age, &[rule("")])
    };
    let routes = [
        named("exact", 3, &["a.example.com"]),
        named("wide", 2, &["*.com", "*.example.com"]),
        named("late", 4, &["a.example.com", "other.test"]),
        named("rest", 5, &[]),
    ];
    let all = table(RouteKind::Tls, &routes);
    for (sni, expected) in [
        (Some("a.example.com"), "exact"),
        (Some("A.Example.COM."), "exact"),
        (Some("b.example.com"), "wide"),
        (Some("x.b.example.com"), "wide"),
        (Some("example.com"), "wide"),
        (Some("com"), "rest"),
        (Some(".com"), "rest"),
        (Some("other.test"), "late"),
        (Some("unknown.test"), "rest"),
        (None, "rest"),
    ] {
        assert_eq!(all.pick_bytes(sni).map(|rule| &*rule.id.route.name), Some(expected), "{sni:?}");
    }
    let without = table(RouteKind::Tls, &routes[..3]);
    assert!(without.pick_bytes(None).is_none() && without.pick_bytes(Some("unknown.test")).is_none());
    assert!(without.has_bytes() && !without.has_http());
    let requests = of_rules(&["/"]);
    assert!(requests.has_http() && !requests.has_bytes() && requests.pick_bytes(None).is_none());
}

#[test]
fn backends_are_drawn_by_weight() {
    let of = |weights: &[u32]| Rule {
        backends: weights.iter().enumerate().map(|(port, weight)| to("shop", "b", port as u16, *weight)).collect(),
        ..rule("")
    };
    for (weights, expected) in [
        (&[][..], &[][..]),
        (&[0], &[0]),
        (&[0, 0], &[0, 0]),
        (&[1], &[1000]),
        (&[1, 0], &[1000, 0]),
        (&[0, 1], &[0, 1000]),
        (&[90, 10], &[900, 100]),
        (&[1, 1, 2], &[250, 250, 500]),
        (&[1_000_000, 0, 1_000_000], &[500, 0, 500]),
        (&[u32::MAX, u32::MAX], &[500, 500]),
    ] {
        let rule = of(weights);
        let mut drawn = vec![0; weights.len()];
        for n in 0..1000_u64 {
            // The middle of each thousandth, so that rounding decides nothing.
            if let Some(backend) = rule.draw(n * (u64::MAX / 1000) + u64::MAX / 2000) {
                drawn[rule.backends.iter().position(|b| b == backend).unwrap()] += 1;
            }
        }
        assert_eq!(drawn, expected, "{weights:?}");
        assert_eq!(rule.draw(u64::MAX).is_some(), weights.iter().any(|w| *w > 0));
    }
}

/// Counts what a lookup looks at.
#[derive(Default)]
struct Count {
    compared: usize,
    looked: usize,
}

impl Observer for Count {
    fn compared(&mut self) {
        self.compared += 1;
    }
    fn looked(&mut self, _: &Arc<Rule>, _: usize, _: Result<(), Missed>) {
        self.looked += 1;
    }
}

#[test]
fn a_lookup_costs_the_same_with_a_thousand_rules() {
    let cost = |rules: usize| {
        let texts: Vec<String> = (0..rules)
            .map(|n| match n % 2 {
                0 => format!("/api/v{n}"),
                _ => format!("=/api/v{n}/exact"),
            })
            .collect();
        let table = of_rules(&texts.iter().map(String::as_str).collect::<Vec<_>>());
        let mut costs = Vec::new();
        for path in ["/api/v0", "/api/v0/x/y/z", "/api/v1/exact", "/api/none", "/elsewhere/a/b/c"] {
            let mut count = Count::default();
            let asked = ask(&format!("GET {path}"));
            table.find(&asked, &mut count);
            costs.push((count.compared, count.looked));
        }
        costs
    };
    assert_eq!(cost(10), cost(1000));
    assert_eq!(cost(1000), [(3, 1), (4, 1), (1, 1), (3, 0), (2, 0)]);
}

#[test]
fn a_hostile_path_is_walked_no_further_than_rules_go() {
    let table = of_rules(&["/a/b", "/"]);
    let mut count = Count::default();
    table.find(&ask(&format!("GET /a/b{}", "/c".repeat(10_000))), &mut count);
    assert!(count.compared <= 4 && count.looked == 1, "{} {}", count.compared, count.looked);
}

/// The rule as the Gateway API says it, with no index: every match of every route, sorted, tried one after the other.
fn reference<'a>(routes: &'a [Route], request: &Asked) -> Option<(&'a Rule, usize)> {
    let mut all = Vec::new();
    for route in routes {
        for rule in &route.rules {
            for (at, one) in rule.matches.iter().enumerate() {
                let (class, length) = match &one.path {
                    PathMatch::Exact(_) => (0, 0),
                    PathMatch::Prefix(prefix) if prefix.is_empty() => (3, 0),
                    PathMatch::Prefix(prefix) => (1, prefix.len()),
                    PathMatch::Regex(_) => (2, 0),
                };
                let names = |names: Vec<&str>| names.iter().collect::<std::collections::HashSet<_>>().len();
                let headers = names(one.headers.iter().map(|h| &*h.name).collect());
                let query = names(one.query.iter().map(|q| &*q.name).collect());
                let age = (route.created.is_none(), route.created);
                let name = format!("{}/{}", route.key.namespace, route.key.name);
                let order = (class, Reverse(length), Reverse(one.method.is_some()), Reverse(headers), Reverse(query));
                all.push(((order, age, name, rule.id.index, at), (&**rule, at)));
            }
        }
    }
    all.sort_by(|(a, _), (b, _)| a.cmp(b));
    let meets = |one: &Match| {
        let is_path = match &one.path {
            PathMatch::Exact(path) => **path == *request.path,
            PathMatch::Prefix(prefix) => request
                .path
                .strip_prefix(&**prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || prefix.is_empty()),
            PathMatch::Regex(pattern) => pattern.matches(request.path.as_bytes()),
        };
        let value = |of: &ValueMatch, value: &str| match of {
            ValueMatch::Exact(exact) => **exact == *value,
            ValueMatch::Regex(pattern) => pattern.matches(value.as_bytes()),
        };
        let is_header = |(at, header): (usize, &super::super::HeaderMatch)| {
            let found: Vec<&str> =
                request.headers.iter().filter(|(name, _)| **name == *header.name).map(|(_, value)| &**value).collect();
            let is_repeated = one.headers[..at].iter().any(|h| h.name == header.name);
            is_repeated || !found.is_empty() && value(&header.value, &found.join(","))
        };
        let is_query = |(at, param): (usize, &QueryMatch)| {
            let query = request.query.clone().unwrap_or_default();
            let found = query.split('&').filter_map(|p| p.split_once('=')).find(|(name, _)| **name == *param.name);
            let is_repeated = one.query[..at].iter().any(|q| q.name == param.name);
            is_repeated || found.is_some_and(|(_, found)| value(&param.value, found))
        };
        is_path
            && one.method.as_ref().is_none_or(|method| **method == *request.method)
            && one.headers.iter().enumerate().all(is_header)
            && one.query.iter().enumerate().all(is_query)
    };
    all.into_iter().map(|(_, found)| found).find(|(rule, at)| meets(&rule.matches[*at]))
}

fn a_match() -> impl Strategy<Value = String> {
    let path = prop_oneof![
        Just("/"),
        Just("/a"),
        Just("/a/b"),
        Just("/a/b/c"),
        Just("/b"),
        Just("=/"),
        Just("=/a"),
        Just("=/a/b"),
        Just("=/a/"),
        Just("~/a/.*"),
        Just("~/[ab]"),
        Just("~.*"),
    ];
    let method = prop_oneof![3 => Just(""), 1 => Just(" m:GET"), 1 => Just(" m:PUT")];
    let header = prop_oneof![Just(" h:x=1"), Just(" h:x=2"), Just(" h:y=1"), Just(" h:x=~[12]"), Just(" h:z=1,2")];
    let query = prop_oneof![Just(" q:p=1"), Just(" q:p=2"), Just(" q:r=~.+")];
    let some = |of, most| prop::collection::vec(of, 0..most);
    (path, method, some(header.boxed(), 3), some(query.boxed(), 2))
        .prop_map(|(path, method, headers, query)| format!("{path}{method}{}{}", headers.concat(), query.concat()))
}

fn routes() -> impl Strategy<Value = Vec<Route>> {
    let rule_of = prop::collection::vec(a_match(), 1..3).prop_map(|texts| rule(&texts.join(" | ")));
    let one = (prop::collection::vec(rule_of, 1..5), -1..3_i64, prop_oneof![Just("a"), Just("a-b"), Just("shop")]);
    prop::collection::vec(one, 1..4).prop_map(|routes| {
        let one = |(n, (rules, age, namespace)): (usize, (Vec<Rule>, i64, &str))| {
            route(RouteKind::Http, namespace, &format!("r{n}"), age, &rules)
        };
        routes.into_iter().enumerate().map(one).collect()
    })
}

fn request() -> impl Strategy<Value = Asked> {
    let path = prop_oneof![
        Just("/"),
        Just("/a"),
        Just("/a/"),
        Just("/a/b"),
        Just("/a/b/c"),
        Just("/a/b/c/d"),
        Just("/b"),
        Just("/ab"),
        Just("*")
    ];
    let query = prop_oneof![Just(""), Just("?p=1"), Just("?p=2&r=x"), Just("?r=1&p=1"), Just("?p=2&p=1")];
    let header = prop_oneof![Just(" x=1"), Just(" x=2"), Just(" y=1"), Just(" z=1"), Just(" z=2")];
    (prop_oneof![Just("GET"), Just("PUT")], path, query, prop::collection::vec(header, 0..4))
        .prop_map(|(method, path, query, headers)| ask(&format!("{method} {path}{query}{}", headers.concat())))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_index_finds_what_the_reference_finds(routes in routes(), requests in prop::collection::vec(request(), 1..8)) {
        let table = table(RouteKind::Http, &routes);
        for request in &requests {
            let found = table.pick(request).map(|m| (m.rule.id.clone(), m.match_index));
            let expected = reference(&routes, request).map(|(rule, at)| (rule.id.clone(), at));
            prop_assert_eq!(found, expected, "{:?}", request);
        }
    }

    #[test]
    fn what_is_explained_is_what_is_picked(routes in routes(), request in request()) {
        let table = table(RouteKind::Http, &routes);
        let considered = table.explain(&request);
        let picked = table.pick(&request).map(|m| (m.rule.id.clone(), m.match_index));
        let (last, before) = match considered.split_last() {
            Some((last, before)) if last.missed.is_none() => (Some(last), before),
            _ => (None, &considered[..]),
        };
        prop_assert_eq!(last.map(|c| (c.rule.id.clone(), c.match_index)), picked);
        prop_assert!(before.iter().all(|c| c.missed.is_some()), "two are picked");
    }

    #[test]
    fn the_order_of_routes_does_not_matter(routes in routes(), request in request()) {
        let forward = Table::new(RouteKind::Http, &routes.iter().map(|r| (r, r.rules.to_vec())).collect::<Vec<_>>());
        let backward = Table::new(RouteKind::Http, &routes.iter().rev().map(|r| (r, r.rules.to_vec())).collect::<Vec<_>>());
        let picked = |table: &Table| table.pick(&request).map(|m| (m.rule.id.clone(), m.match_index));
        prop_assert_eq!(picked(&forward), picked(&backward));
    }
}
