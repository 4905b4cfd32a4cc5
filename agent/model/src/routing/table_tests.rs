//! Which rule is picked, and what it costs: rows by hand.

use std::sync::Arc;

use super::super::testing::{ask, route, rule, to};
use super::*;

pub(super) fn table(kind: RouteKind, routes: &[Route]) -> Table {
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
    // What could not be read: no path, or any value.
    (&["!", "/"], &[("GET /", Some(1)), ("GET /!", Some(1))]),
    (&["! h:x=1"], &[("GET / x=1", None)]),
    (
        &["/a h:x=?", "/a", "/a q:p=?"],
        &[("GET /a x=", Some(0)), ("GET /a x=1", Some(0)), ("GET /a y=1", Some(1)), ("GET /a?p=1", Some(2))],
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

/// Matches of GRPCRoutes, each of a route of its own, the oldest first; then calls with the number of the route they match. More characters of
/// the service, of the method, more headers, the older.
const CALLS: Rows = &[
    (
        &["/", "@*/Get", "@pkg.Svc/*", "@pkg.Svc/Get", "/ h:x=1"],
        &[
            ("POST /pkg.Svc/Get", Some(3)),
            ("POST /pkg.Svc/Put", Some(2)),
            ("POST /pkg.Other/Get", Some(1)),
            ("POST /pkg.Other/Get x=1", Some(1)),
            ("POST /pkg.Other/Put", Some(0)),
            ("POST /pkg.Other/Put x=1", Some(4)),
            ("POST /pkg.Svc/Put x=1", Some(2)),
            ("POST /pkg.SvcX/Put", Some(0)),
            ("POST /pkg.svc/Get", Some(1)),
            ("POST /Get", Some(0)),
            ("POST /pkg.Svc", Some(2)),
            ("POST *", Some(0)),
        ],
    ),
    // A pattern has as many characters as it wants at least.
    (
        &["@*/Get", r"@~shop\.Stock/~.*"],
        &[("POST /shop.Stock/Get", Some(1)), ("POST /shop.Stock/Put", Some(1)), ("POST /shop.Cart/Get", Some(0))],
    ),
    (&[r"@~shop\.Stock/~.*", "@*/Get"], &[("POST /shop.Stock/Get", Some(0)), ("POST /x/Get", Some(1))]),
    (
        &["@~.*/~.*", "@~shop.*/~.*", r"@~shop\.St.*/~.*", "@~.*/Get"],
        &[
            ("POST /shop.Stock/Get", Some(2)),
            ("POST /shop.Cart/Get", Some(1)),
            ("POST /x/Get", Some(3)),
            ("POST /x/Put", Some(0)),
        ],
    ),
    // The method counts where services are alike, whichever of the two is a pattern.
    (
        &["@shop.Stock/*", "@shop.Stock/~Get.*", "@shop.Stock/~.*", "@shop.Stock/GetAll"],
        &[
            ("POST /shop.Stock/GetAll", Some(3)),
            ("POST /shop.Stock/GetOne", Some(1)),
            ("POST /shop.Stock/Put", Some(0)),
        ],
    ),
    (
        &["@shop.Stock/*", r"@~shop\.Stock/~Get.*"],
        &[("POST /shop.Stock/Get", Some(1)), ("POST /shop.Stock/Put", Some(0))],
    ),
    // No pattern comes before the name that it matches, unless it says more besides, or is as narrow and older.
    (
        &["@~[a-z]+[.][A-Z][a-z]+/~G.+", "@shop.Stock/Get"],
        &[("POST /shop.Stock/Get", Some(1)), ("POST /shop.Cart/Got", Some(0))],
    ),
    (&[r"@~shop\.Stock/~Get", "@shop.Stock/Get"], &[("POST /shop.Stock/Get", Some(0))]),
    (&["@shop.Stock/Get", r"@~shop\.Stock/~Get"], &[("POST /shop.Stock/Get", Some(0))]),
    (
        &["@shop.Stock/Get", r"@~shop\.Stock/~Get h:x=1"],
        &[("POST /shop.Stock/Get x=1", Some(1)), ("POST /shop.Stock/Get", Some(0))],
    ),
    // Headers behind services and methods, before age.
    (
        &["@shop.Stock/* h:a=1 h:b=2", "@shop.Stock/Get", "@shop.Stock/Get h:a=1", "@shop.Stock/Get h:b=2"],
        &[
            ("POST /shop.Stock/Get a=1 b=2", Some(2)),
            ("POST /shop.Stock/Get b=2", Some(3)),
            ("POST /shop.Stock/Get", Some(1)),
            ("POST /shop.Stock/Put a=1 b=2", Some(0)),
            ("POST /shop.Stock/Put a=1", None),
        ],
    ),
    // Of what is alike the older.
    (&["@shop.Stock/Get", "@shop.Stock/Get"], &[("POST /shop.Stock/Get", Some(0))]),
    (&["@~.*Stock/*", "@~shop.*k/*"], &[("POST /shop.Stock/Get", Some(0)), ("POST /shop.k/Get", Some(1))]),
    // What could not be read.
    (
        &["@shop.Stock/?", "@shop.Stock/*", "!"],
        &[("POST /shop.Stock/Get", Some(0)), ("POST /shop.Stock", Some(1)), ("POST /x/y", None)],
    ),
];

#[test]
fn calls_are_picked_by_precedence() {
    let mut count = 0;
    for (matches, requests) in CALLS {
        let name = |at: usize| char::from(b'a' + at as u8).to_string();
        let of = |(at, text): (usize, &&str)| route(RouteKind::Grpc, "shop", &name(at), at as i64, &[rule(text)]);
        let table = table(RouteKind::Grpc, &matches.iter().enumerate().map(of).collect::<Vec<_>>());
        for (request, expected) in *requests {
            count += 1;
            let request_of = ask(request);
            let found = table.pick(&request_of).map(|matched| matched.rule.id.route.name.to_string());
            assert_eq!(found, expected.map(|at| name(at as usize)), "{request} of {matches:?}");
        }
    }
    assert!(count >= 40, "{count} rows");
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
    type Of = fn(usize) -> String;
    /// Rule `n` of so many; then requests, each with what its lookup compares and tries.
    type Row = (RouteKind, Of, &'static [(&'static str, usize, usize)]);
    let rows: [Row; 9] = [
        // By paths.
        (
            RouteKind::Http,
            |n| if n % 2 == 0 { format!("/api/v{n}") } else { format!("=/api/v{n}/exact") },
            &[
                ("GET /api/v0", 3, 1),
                ("GET /api/v0/x/y/z", 4, 1),
                ("GET /api/v1/exact", 1, 1),
                ("GET /api/none", 3, 0),
                ("GET /elsewhere/a/b/c", 2, 0),
            ],
        ),
        // On one path by a header, a parameter, both a method and a header; on one exact path; on every path.
        (
            RouteKind::Http,
            |n| format!("/api h:x-tenant=t{n}"),
            &[("GET /api x-tenant=t7", 3, 1), ("GET /api x-tenant=none", 3, 0), ("GET /api", 3, 0)],
        ),
        (RouteKind::Http, |n| format!("=/api q:id={n}"), &[("GET /api?id=7", 2, 1), ("GET /api?id=x", 3, 0)]),
        (
            RouteKind::Http,
            |n| format!("/ m:{} h:x-tenant=t{} h:x-all=1", ["GET", "PUT"][n % 2], n / 2),
            &[("PUT / x-tenant=t3 x-all=1", 3, 2), ("PUT / x-tenant=t3", 3, 2), ("PUT / x-all=1", 3, 0)],
        ),
        // By two headers, none of which is in all rules.
        (
            RouteKind::Http,
            |n| format!("/api h:{}=t{n}", ["a", "b"][n % 2]),
            &[("GET /api a=t6 b=t7", 4, 1), ("GET /api b=t7", 4, 1), ("GET /api", 4, 0)],
        ),
        // Behind one pattern, which is run for the one match only whose header is there.
        (RouteKind::Http, |n| format!("~/v[0-9] h:x-tenant=t{n}"), &[("GET /v1 x-tenant=t7", 4, 1), ("GET /v1", 3, 0)]),
        // gRPC: by method alone, by service alone, by both and a header.
        (RouteKind::Grpc, |n| format!("@*/Get{n}"), &[("POST /shop.Stock/Get7", 2, 1), ("POST /shop.Stock/Put", 1, 0)]),
        (RouteKind::Grpc, |n| format!("@shop.S{n}/*"), &[("POST /shop.S7/Get", 2, 1), ("POST /shop.X/Get", 1, 0)]),
        (
            RouteKind::Grpc,
            |n| format!("@shop.Stock/Get{} h:x-tenant=t{}", n % 2, n / 2),
            &[("POST /shop.Stock/Get1 x-tenant=t3", 3, 1), ("POST /shop.Stock/Get1", 1, 0)],
        ),
    ];
    for (kind, of, requests) in rows {
        for rules in [10, 1000] {
            let texts: Vec<Rule> = (0..rules).map(|n| rule(&of(n))).collect();
            let table = table(kind, &[route(kind, "shop", "web", 1, &texts)]);
            for &(text, compared, looked) in requests {
                let mut count = Count::default();
                let asked = ask(text);
                table.find(&asked, &mut count);
                assert_eq!((count.compared, count.looked), (compared, looked), "{text} of {rules} like {}", of(0));
                let is_picked = table.pick(&asked).is_some();
                let considered = table.explain(&asked).last().is_some_and(|last| last.missed.is_none());
                assert_eq!(is_picked, considered, "{text}");
            }
        }
    }
}

#[test]
fn a_hostile_path_is_walked_no_further_than_rules_go() {
    let table = of_rules(&["/a/b", "/"]);
    let mut count = Count::default();
    table.find(&ask(&format!("GET /a/b{}", "/c".repeat(10_000))), &mut count);
    assert!(count.compared <= 4 && count.looked == 1, "{} {}", count.compared, count.looked);
}
