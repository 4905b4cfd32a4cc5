//! Which rule is picked, against a reference that knows no index, and whatever the order of routes.

use std::cmp::Reverse;

use proptest::prelude::*;

use super::super::testing::{Asked, ask, route, rule};
use super::super::{QueryMatch, ValueMatch};
use super::tests::table;
use super::*;

/// The characters that a text has at least, of the patterns of [`a_call`].
fn chars(of: &Option<ValueMatch>) -> usize {
    match of {
        None => 0,
        Some(ValueMatch::Exact(text)) => text.len(),
        Some(ValueMatch::Present) => 1,
        Some(ValueMatch::Regex(pattern)) => match format!("{pattern:?}").trim_matches('"') {
            ".*" => 0,
            "p.[AB]" => 3,
            "Get|Put.*" => 3,
            other => panic!("{other}"),
        },
    }
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
                    PathMatch::Regex(_) | PathMatch::Call(_) | PathMatch::Unreadable => (2, 0),
                };
                // Of calls the order is one: service, method, headers.
                let (class, length, method) = match &one.path {
                    _ if route.key.kind == RouteKind::Http => (class, length, 0),
                    PathMatch::Call(call) => (0, chars(&call.service), chars(&call.method)),
                    _ => (0, 0, 0),
                };
                let names = |names: Vec<&str>| names.iter().collect::<std::collections::HashSet<_>>().len();
                let headers = names(one.headers.iter().map(|h| &*h.name).collect());
                let query = names(one.query.iter().map(|q| &*q.name).collect());
                let age = (route.created.is_none(), route.created);
                let name = format!("{}/{}", route.key.namespace, route.key.name);
                let conditions = (Reverse(one.method.is_some()), Reverse(headers), Reverse(query));
                let order = (class, Reverse(length), Reverse(method), conditions);
                all.push(((order, age, name, rule.id.index, at), (&**rule, at)));
            }
        }
    }
    all.sort_by(|(a, _), (b, _)| a.cmp(b));
    let value = |of: &ValueMatch, value: &str| match of {
        ValueMatch::Exact(exact) => **exact == *value,
        ValueMatch::Regex(pattern) => pattern.matches(value.as_bytes()),
        ValueMatch::Present => true,
    };
    let meets = |one: &Match| {
        let is_path = match &one.path {
            PathMatch::Exact(path) => **path == *request.path,
            PathMatch::Prefix(prefix) => request
                .path
                .strip_prefix(&**prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || prefix.is_empty()),
            PathMatch::Regex(pattern) => pattern.matches(request.path.as_bytes()),
            PathMatch::Call(call) => {
                let parts: Vec<&str> = request.path.splitn(3, '/').collect();
                let is_of = |of: &Option<ValueMatch>, at: usize| {
                    of.as_ref().is_none_or(|of| parts.get(at).is_some_and(|part| value(of, part)))
                };
                request.path.starts_with('/') && is_of(&call.service, 1) && is_of(&call.method, 2)
            }
            PathMatch::Unreadable => false,
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

/// What a match asks besides its path: texts of few names, so that many stand beside each other under each.
fn conditions() -> impl Strategy<Value = String> {
    let method = prop_oneof![3 => Just(""), 1 => Just(" m:GET"), 1 => Just(" m:PUT")];
    let header = prop_oneof![
        Just(" h:x=1"),
        Just(" h:x=2"),
        Just(" h:x=3"),
        Just(" h:y=1"),
        Just(" h:y=2"),
        Just(" h:x=~[12]"),
        Just(" h:z=1,2"),
        Just(" h:y=?")
    ];
    let query = prop_oneof![Just(" q:p=1"), Just(" q:p=2"), Just(" q:r=x"), Just(" q:r=~.+")];
    let some = |of, most| prop::collection::vec(of, 0..most);
    (method, some(header.boxed(), 3), some(query.boxed(), 2))
        .prop_map(|(method, headers, query)| format!("{method}{}{}", headers.concat(), query.concat()))
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
        Just("!"),
    ];
    (path, conditions()).prop_map(|(path, conditions)| format!("{path}{conditions}"))
}

/// Few paths, so that many matches are told apart by their conditions alone.
fn a_crowded_match() -> impl Strategy<Value = String> {
    let path = prop_oneof![Just("/a"), Just("=/a/b"), Just("~/[ab]"), Just("/")];
    (path, conditions()).prop_map(|(path, conditions)| format!("{path}{conditions}"))
}

fn a_call() -> impl Strategy<Value = String> {
    let service =
        prop_oneof![Just("*"), Just("p.A"), Just("p.B"), Just("p.C"), Just("~p.[AB]"), Just("~.*"), Just("?")];
    let method =
        prop_oneof![Just("*"), Just("Get"), Just("Put"), Just("PutAll"), Just("~Get|Put.*"), Just("~.*"), Just("?")];
    let path = prop_oneof![
        8 => (service, method).prop_map(|(service, method)| match (service, method) {
            ("*", "*") => "/".to_owned(),
            (service, method) => format!("@{service}/{method}"),
        }),
        1 => Just("!".to_owned()),
    ];
    (path, conditions()).prop_map(|(path, conditions)| format!("{path}{conditions}"))
}

fn routes_of(
    kind: RouteKind,
    one: impl Strategy<Value = String> + 'static,
    rules_max: usize,
) -> impl Strategy<Value = Vec<Route>> {
    let rule_of = prop::collection::vec(one, 1..3).prop_map(|texts| rule(&texts.join(" | ")));
    let one =
        (prop::collection::vec(rule_of, 1..rules_max), -1..3_i64, prop_oneof![Just("a"), Just("a-b"), Just("shop")]);
    prop::collection::vec(one, 1..4).prop_map(move |routes| {
        let one = |(n, (rules, age, namespace)): (usize, (Vec<Rule>, i64, &str))| {
            route(kind, namespace, &format!("r{n}"), age, &rules)
        };
        routes.into_iter().enumerate().map(one).collect()
    })
}

/// Of either kind, with few matches of each path or many.
fn routes() -> impl Strategy<Value = Vec<Route>> {
    prop_oneof![
        routes_of(RouteKind::Http, a_match(), 5),
        routes_of(RouteKind::Http, a_crowded_match(), 17),
        routes_of(RouteKind::Grpc, a_call(), 17),
    ]
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
        Just("*"),
        Just("/p.A/Get"),
        Just("/p.B/Put"),
        Just("/p.C/PutAll"),
        Just("/p.A"),
        Just("/p.A/x/y"),
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
        let table = table(routes[0].key.kind, &routes);
        for request in &requests {
            let found = table.pick(request).map(|m| (m.rule.id.clone(), m.match_index));
            let expected = reference(&routes, request).map(|(rule, at)| (rule.id.clone(), at));
            prop_assert_eq!(found, expected, "{:?}", request);
        }
    }

    #[test]
    fn what_is_explained_is_what_is_picked(routes in routes(), request in request()) {
        let table = table(routes[0].key.kind, &routes);
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
        let kind = routes[0].key.kind;
        let forward = Table::new(kind, &routes.iter().map(|r| (r, r.rules.to_vec())).collect::<Vec<_>>());
        let backward = Table::new(kind, &routes.iter().rev().map(|r| (r, r.rules.to_vec())).collect::<Vec<_>>());
        let picked = |table: &Table| table.pick(&request).map(|m| (m.rule.id.clone(), m.match_index));
        prop_assert_eq!(picked(&forward), picked(&backward));
    }
}
