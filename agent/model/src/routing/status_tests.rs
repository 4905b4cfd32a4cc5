//! What a snapshot makes of routes, grants and TrafficPolicies: whose clients get which rules, the conditions, and that history leaves no trace.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::super::testing::{ask, key, parent, route, rule, to};
use super::super::{Backend, BackendFailure, ReferenceGrant, RouteKind, RoutingDelta, Rule};
use super::*;
use crate::addr::Family;
use crate::resolve::Refusal;
use crate::service::{Endpoint, ServicePort};
use crate::time::Timestamp;
use crate::traffic::{RequestTraffic, ServiceTraffic, Timeouts};
use crate::{Delta, Snapshot};

fn service(namespace: &str, name: &str, ports: &[(&str, u16)]) -> Service {
    let port = |(name, port): &(&str, u16)| ServicePort {
        name: (*name).into(),
        port: *port,
        app_protocol: None,
        endpoints: [Endpoint::ready("10.1.0.1:8080".parse().unwrap())].into(),
    };
    Service { ports: ports.iter().map(port).collect(), ..Service::new(namespace, name) }
}

/// `shop/web` with ports `http` 80 and `admin` 9000, `shop/cart` and `other/cart` with 80.
fn services() -> Vec<Service> {
    vec![
        service("shop", "web", &[("http", 80), ("admin", 9000)]),
        service("shop", "cart", &[("http", 80)]),
        service("other", "cart", &[("http", 80)]),
    ]
}

fn of_routes(routes: &[Route]) -> RoutingDelta {
    let routes = routes.iter().map(|route| (route.key.clone(), Some(Arc::new(route.clone())))).collect();
    RoutingDelta { routes, ..RoutingDelta::default() }
}

fn services_delta(services: Vec<Service>) -> Delta {
    Delta { services: services.into_iter().map(|s| (s.key(), Some(s))).collect(), ..Delta::default() }
}

fn snapshot(routes: &[Route]) -> Snapshot {
    Snapshot::new("a").apply(Delta { routing: of_routes(routes), ..services_delta(services()) })
}

fn then(snapshot: &Snapshot, routing: RoutingDelta) -> Snapshot {
    snapshot.apply(Delta { routing, ..Delta::default() })
}

fn with_parents(mut route: Route, parents: Vec<ParentRef>) -> Route {
    route.parents = parents.into();
    route
}

fn http(namespace: &str, name: &str, age: i64, rules: &[Rule]) -> Route {
    route(RouteKind::Http, namespace, name, age, rules)
}

/// The route whose rule `GET /` of a port matches for a client.
fn picked(snapshot: &Snapshot, port: u16, client: Option<&str>) -> Option<String> {
    let table = snapshot.route_table(&key("shop", "web"), port, client)?;
    let asked = ask("GET /");
    Some(table.pick(&asked).map_or("404".to_owned(), |matched| matched.rule.id.route.name.to_string()))
}

#[test]
fn routes_of_consumers_stand_in_the_place_of_the_producers() {
    let producer = http("shop", "producer", 1, &[rule("/")]);
    let consumer = with_parents(http("other", "consumer", 1, &[rule("/x")]), vec![parent("shop", "web", Some(80))]);
    let snapshot = snapshot(&[producer, consumer]);
    for (port, client, expected) in [
        (80, None, Some("producer")),
        (80, Some("shop"), Some("producer")),
        (80, Some("third"), Some("producer")),
        (80, Some("other"), Some("404")),
        (9000, Some("other"), Some("producer")),
        (9000, None, Some("producer")),
        (81, None, None),
    ] {
        assert_eq!(picked(&snapshot, port, client).as_deref(), expected, "{port} {client:?}");
    }
    assert!(snapshot.route_table(&key("shop", "cart"), 80, None).is_none());
}

#[test]
fn parents_mean_ports_by_number_and_by_name() {
    let section = |name: &str, port| ParentRef { section: Some(name.into()), ..parent("shop", "web", port) };
    for (of, on_80, on_9000) in [
        (parent("shop", "web", None), true, true),
        (parent("shop", "web", Some(80)), true, false),
        (parent("shop", "web", Some(81)), false, false),
        (section("admin", None), false, true),
        (section("admin", Some(9000)), false, true),
        (section("admin", Some(80)), false, false),
        (section("none", None), false, false),
        (parent("shop", "none", None), false, false),
        (parent("shop", "cart", None), false, false),
    ] {
        let snapshot = snapshot(&[with_parents(http("shop", "r", 1, &[rule("/")]), vec![of.clone()])]);
        let found = (picked(&snapshot, 80, None).is_some(), picked(&snapshot, 9000, None).is_some());
        assert_eq!(found, (on_80, on_9000), "{of:?}");
    }
}

fn of<'a>(snapshot: &'a [RouteStatus], name: &str, kind: &str) -> Option<(Option<bool>, &'static str, &'a str)> {
    let status = snapshot.iter().find(|status| *status.route.name == *name)?;
    let condition = status.conditions.iter().find(|condition| condition.kind == kind)?;
    Some((condition.status, condition.reason, &condition.message))
}

#[test]
fn conditions_say_what_became_of_a_parent() {
    let mut headless = service("shop", "headless", &[("http", 80)]);
    headless.headless = true;
    let mut rejected = service("shop", "rejected", &[("http", 80)]);
    rejected.invalid = true;
    let gateway = ParentRef { target: ParentTarget::Other("Gateway/shop/edge".into()), section: None, port: None };
    let none = |_: &mut Route| {};
    let broken = |route: &mut Route| {
        let rules = route
            .rules
            .iter()
            .map(|rule| Rule { invalid: Some("spec.rules[0].filters[0]: no".into()), ..Rule::clone(rule) });
        route.rules = rules.map(Arc::new).collect();
    };
    let empty = |route: &mut Route| route.rules = Box::default();
    type Change<'a> = &'a dyn Fn(&mut Route);
    let rows: [(ParentRef, Change<'_>, Option<bool>, &str, &str); 9] = [
        (parent("shop", "web", None), &none, Some(true), "Accepted", "for all clients"),
        (
            parent("shop", "gone", None),
            &none,
            Some(false),
            "NoMatchingParent",
            "parentRefs[0]: Service shop/gone does not exist",
        ),
        (parent("shop", "web", Some(81)), &none, Some(false), "NoMatchingParent", "has no port 81"),
        (parent("shop", "headless", None), &none, Some(false), "UnsupportedValue", "is headless"),
        (parent("shop", "rejected", None), &none, None, "Pending", "was rejected"),
        (gateway, &none, Some(false), "NoMatchingParent", "Gateway/shop/edge"),
        (
            parent("shop", "web", None),
            &broken,
            Some(false),
            "UnsupportedValue",
            "spec.rules[0].filters[0]: no; no rule",
        ),
        (parent("shop", "web", None), &empty, Some(false), "UnsupportedValue", "rules: there is none"),
        (parent("other", "cart", None), &none, Some(true), "Accepted", "for clients in namespace shop"),
    ];
    for (parent, change, status, reason, message) in rows {
        let mut route = with_parents(http("shop", "r", 1, &[rule("/")]), vec![parent.clone()]);
        change(&mut route);
        let snapshot = snapshot(&[route]).apply(services_delta(vec![headless.clone(), rejected.clone()]));
        let statuses = snapshot.route_statuses();
        let found = of(&statuses, "r", "Accepted").unwrap();
        assert_eq!((found.0, found.1), (status, reason), "{parent:?}: {}", found.2);
        assert!(found.2.contains(message), "{}", found.2);
        let programmed = of(&statuses, "r", "Programmed").unwrap();
        assert_eq!(programmed.0, Some(status == Some(true)), "{parent:?}");
        // What it says of requests is what becomes of them.
        let table = snapshot.route_table(&key("shop", "web"), 80, None);
        let picked = table.and_then(|table| table.pick(&ask("GET /")).map(|matched| matched.rule.invalid.is_some()));
        let said = if programmed.2.contains("answered 500") {
            Some(true)
        } else {
            Some(false).filter(|_| status == Some(true))
        };
        assert_eq!(
            picked,
            said.filter(|_| matches!(&parent.target, ParentTarget::Service(of) if *of == key("shop", "web")))
        );
        assert_eq!(programmed.2.contains("no effect"), status != Some(true) && said.is_none(), "{}", programmed.2);
    }
}

#[test]
fn a_route_without_rules_takes_a_port_from_nobody() {
    let [http, grpc] = [RouteKind::Http, RouteKind::Grpc]
        .map(|kind| move |name: &str, rules: &[Rule]| route(kind, "shop", name, 1, rules));
    for empty in [grpc("empty", &[]), http("empty", &[])] {
        let snapshot = snapshot(&[empty.clone(), http("full", &[rule("/a")])]);
        let statuses = snapshot.route_statuses();
        assert_eq!(of(&statuses, "full", "Accepted").unwrap().0, Some(true), "{empty:?}");
        assert_eq!(of(&statuses, "empty", "Accepted").unwrap().1, "UnsupportedValue");
        let table = snapshot.route_table(&key("shop", "web"), 80, None).unwrap();
        assert!(table.kind() == Some(RouteKind::Http) && table.pick(&ask("GET /a")).is_some(), "{empty:?}");
        assert!(self::snapshot(&[empty]).route_table(&key("shop", "web"), 80, None).is_none());
    }
}

#[test]
fn of_kinds_that_exclude_each_other_the_more_specific_counts() {
    let kinds = [RouteKind::Grpc, RouteKind::Http, RouteKind::Tls, RouteKind::Tcp];
    for (at, better) in kinds.iter().enumerate() {
        for worse in &kinds[at + 1..] {
            let routes =
                [route(*better, "shop", "better", 9, &[rule("")]), route(*worse, "shop", "worse", 1, &[rule("")])];
            let snapshot = snapshot(&routes);
            let statuses = snapshot.route_statuses();
            assert_eq!(of(&statuses, "better", "Accepted").unwrap().1, "Accepted", "{better:?} {worse:?}");
            let (status, reason, message) = of(&statuses, "worse", "Accepted").unwrap();
            assert_eq!((status, reason), (Some(false), "Conflicted"), "{better:?} {worse:?}");
            assert!(message.contains("shop/better"), "{message}");
            let table = snapshot.route_table(&key("shop", "web"), 80, None).unwrap();
            assert_eq!(table.kind(), Some(*better));
            assert!(table.rules().all(|rule| *rule.id.route.name == *"better"));
        }
    }
    // The oldest TCPRoute has the port; a TLSRoute loses only if it has no name left.
    let tcp = |name, age| route(RouteKind::Tcp, "shop", name, age, &[rule("")]);
    let statuses = snapshot(&[tcp("young", 2), tcp("old", 1)]).route_statuses();
    assert_eq!(of(&statuses, "old", "Accepted").unwrap().1, "Accepted");
    assert_eq!(of(&statuses, "young", "Accepted").unwrap().1, "Conflicted");
    let tls = |name, age, names: &[&str]| Route {
        hostnames: names.iter().map(|name| (*name).into()).collect(),
        ..route(RouteKind::Tls, "shop", name, age, &[rule("")])
    };
    let routes = [tls("a", 1, &["x.test", "y.test"]), tls("b", 2, &["x.test"]), tls("c", 3, &["y.test", "z.test"])];
    let statuses = snapshot(&routes).route_statuses();
    let reasons = ["a", "b", "c"].map(|name| of(&statuses, name, "Accepted").unwrap().1);
    assert_eq!(reasons, ["Accepted", "Conflicted", "Accepted"]);
    assert!(of(&statuses, "b", "Accepted").unwrap().2.contains("shop/a"));
    // What it has not got it is told.
    let accepted = |name| of(&statuses, name, "Accepted").unwrap().2;
    assert_eq!(accepted("c"), "for all clients; but not for y.test, which an older route has");
    assert_eq!(accepted("a"), "for all clients");
    let twice = snapshot(&[tls("a", 1, &["x.test", "x.test"])]).route_statuses();
    assert_eq!(of(&twice, "a", "Accepted").unwrap().2, "for all clients", "nobody is older than oneself");
    let many: Vec<String> = (0..10).map(|n| format!("n{n}.test")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let all = [many.as_slice(), &["own.test"]].concat();
    let statuses = snapshot(&[tls("a", 1, &many), tls("b", 2, &all)]).route_statuses();
    let told = of(&statuses, "b", "Accepted").unwrap().2;
    assert!(told.contains("n7.test (and 2 more), which") && !told.contains("n8.test"), "{told}");
    // A route about connections has one rule.
    let two = route(RouteKind::Tcp, "shop", "two", 1, &[rule(""), rule("")]);
    let snapshot = snapshot(&[two]);
    assert_eq!(of(&snapshot.route_statuses(), "two", "Accepted").unwrap().1, "UnsupportedValue");
    assert!(snapshot.route_table(&key("shop", "web"), 80, None).is_none());
}

fn grant(name: &str, from: (RouteKind, &str), to: Option<&str>) -> ReferenceGrant {
    let to = to.map(Arc::from);
    ReferenceGrant { key: key("other", name), from: [(from.0, from.1.into())].into(), to: [to].into() }
}

#[test]
fn references_to_other_namespaces_need_a_grant() {
    let rule = Rule { backends: [to("other", "cart", 80, 1)].into(), ..rule("/") };
    let without = snapshot(&[http("shop", "r", 1, &[rule])]);
    let backend = |snapshot: &Snapshot| {
        let asked = ask("GET /");
        let table = snapshot.route_table(&key("shop", "web"), 80, None).unwrap();
        table.pick(&asked).unwrap().rule.backends[0].to.clone()
    };
    let resolved =
        |snapshot: &Snapshot| of(&snapshot.route_statuses(), "r", "ResolvedRefs").map(|c| (c.0, c.1)).unwrap();
    let refused = BackendRef::Invalid(BackendProblem::RefNotPermitted(key("other", "cart")));
    assert_eq!((backend(&without), resolved(&without)), (refused.clone(), (Some(false), "RefNotPermitted")));
    for (from, to, is_granted) in [
        ((RouteKind::Http, "shop"), None, true),
        ((RouteKind::Http, "shop"), Some("cart"), true),
        ((RouteKind::Http, "shop"), Some("web"), false),
        ((RouteKind::Grpc, "shop"), None, false),
        ((RouteKind::Http, "other"), None, false),
    ] {
        let grants = |grant: Option<ReferenceGrant>| RoutingDelta {
            grants: vec![(key("other", "g"), grant.map(Arc::new))],
            ..RoutingDelta::default()
        };
        let with = then(&without, grants(Some(grant("g", from, to))));
        assert_eq!(backend(&with) != refused, is_granted, "{from:?} {to:?}");
        assert_eq!(resolved(&with).0, Some(is_granted), "{from:?} {to:?}");
        let again = then(&with, grants(None));
        assert!(again.same_state(&without), "{from:?} {to:?}");
    }
}

#[test]
fn references_that_lead_nowhere_are_reported() {
    let invalid = |problem| Backend { to: BackendRef::Invalid(problem), ..to("shop", "cart", 80, 1) };
    for (backend, expected) in [
        (to("shop", "cart", 80, 1), "ResolvedRefs"),
        (to("shop", "cart", 81, 1), "BackendNotFound"),
        (to("shop", "none", 80, 1), "BackendNotFound"),
        (to("other", "cart", 80, 1), "RefNotPermitted"),
        (to("other", "none", 80, 1), "RefNotPermitted"),
        (invalid(BackendProblem::InvalidKind("Bucket/shop/b".into())), "InvalidKind"),
        (invalid(BackendProblem::UnsupportedValue("no".into())), "UnsupportedValue"),
    ] {
        let rules = [rule("/x"), Rule { backends: [backend.clone()].into(), ..rule("/") }];
        let statuses = snapshot(&[http("shop", "r", 1, &rules)]).route_statuses();
        let (status, reason, message) = of(&statuses, "r", "ResolvedRefs").unwrap();
        assert_eq!((status, reason), (Some(expected == "ResolvedRefs"), expected), "{backend:?}");
        assert!(status == Some(true) || message.starts_with("rules[1]: "), "{message}");
        assert_eq!(of(&statuses, "r", "Accepted").unwrap().0, Some(true));
    }
}

#[test]
fn rules_that_cannot_be_carried_out_harm_no_others() {
    let bad =
        |at: usize, path: &str| Rule { invalid: Some(format!("spec.rules[{at}].retry: no").into()), ..rule(path) };
    let partially = |snapshot: &Snapshot, name: &str| {
        let statuses = snapshot.route_statuses();
        of(&statuses, name, "PartiallyInvalid").map(|(status, reason, message)| {
            assert_eq!((status, reason), (Some(true), "UnsupportedValue"));
            message.to_owned()
        })
    };
    let dropped = |at: usize| format!("Dropped Rule {at}: spec.rules[{at}].retry: no; ");
    let answered = "what it matches is answered 500";
    for (rules, expected) in [
        (vec![rule("/a"), rule("/b")], None),
        (vec![rule("/a"), bad(1, "/b")], Some(format!("{}{answered}", dropped(1)))),
        (vec![bad(0, ""), rule("/b")], Some(format!("{}{answered}", dropped(0)))),
        (vec![bad(0, "!"), rule("/b")], Some(format!("{}nothing matches it", dropped(0)))),
        (
            vec![bad(0, "!"), rule("/b"), bad(2, "! | /c")],
            Some(format!("{}nothing matches it. {}{answered}", dropped(0), dropped(2))),
        ),
        // It is not set of a route that is invalid as a whole, or not accepted.
        (vec![bad(0, "/a"), bad(1, "/b")], None),
    ] {
        let route = http("shop", "r", 1, &rules);
        let good = snapshot(std::slice::from_ref(&route));
        assert_eq!(partially(&good, "r"), expected, "{rules:?}");
        let lost = |parents: Vec<ParentRef>| snapshot(&[with_parents(route.clone(), parents)]);
        assert_eq!(partially(&lost(vec![parent("shop", "none", None)]), "r"), None);
        assert_eq!(partially(&lost(vec![parent("shop", "web", Some(81))]), "r"), None);
        let grpc = super::super::testing::route(RouteKind::Grpc, "shop", "grpc", 1, &[rule("/")]);
        let conflicted = snapshot(&[route.clone(), grpc]);
        assert_eq!(of(&conflicted.route_statuses(), "r", "Accepted").unwrap().0, Some(false));
        assert_eq!(partially(&conflicted, "r"), None);
    }
    let broken = snapshot(&[http("shop", "r", 1, &[rule("/a"), bad(1, "/b"), bad(2, "!")])]);
    let table = broken.route_table(&key("shop", "web"), 80, None).unwrap();
    for (request, expected) in [("GET /a", Some(false)), ("GET /b", Some(true)), ("GET /c", None)] {
        let asked = ask(request);
        assert_eq!(table.pick(&asked).map(|matched| matched.rule.invalid.is_some()), expected, "{request}");
    }
}

#[test]
fn backends_are_found_or_said_why_not() {
    let mut six = service("shop", "six", &[("http", 80)]);
    six.ports[0].endpoints = [Endpoint::ready("[fd00::1]:8080".parse().unwrap())].into();
    let mut both = service("shop", "both", &[("http", 80)]);
    let addresses = ["10.1.0.9:8080", "[fd00::9]:8080"];
    both.ports[0].endpoints = addresses.map(|address| Endpoint::ready(address.parse().unwrap())).into();
    let mut empty = service("shop", "empty", &[("http", 80)]);
    empty.ports[0].endpoints = [].into();
    let mut rejected = service("shop", "rejected", &[]);
    rejected.invalid = true;
    let snapshot = Snapshot::new("a").apply(services_delta(vec![six, both, empty, rejected]));
    let of = |name: &str, port, family| {
        let found = snapshot.backend(&key("shop", name), port, family);
        found.map(|(service, index, candidates)| {
            assert_eq!((&*service.name, index), (name, 0));
            candidates.iter().map(|endpoint| endpoint.addr.to_string()).collect::<Vec<_>>().join(" ")
        })
    };
    for family in [Family::V4, Family::V6] {
        assert_eq!(of("six", 80, family), Ok("[fd00::1]:8080".to_owned()));
        assert_eq!(of("six", 81, family), Err(BackendFailure::NotFound));
        assert_eq!(of("none", 80, family), Err(BackendFailure::NotFound));
        assert_eq!(of("empty", 80, family), Err(BackendFailure::Refused(Refusal::NoReadyEndpoint)));
        assert_eq!(of("rejected", 80, family), Err(BackendFailure::Refused(Refusal::InvalidObject)));
    }
    assert_eq!(of("both", 80, Family::V4), Ok("10.1.0.9:8080".to_owned()));
    assert_eq!(of("both", 80, Family::V6), Ok("[fd00::9]:8080".to_owned()));
}

fn seconds(request: Option<u64>, idle: Option<u64>, stream: Option<u64>) -> RequestTraffic {
    let of = |seconds: Option<u64>| seconds.map(Duration::from_secs);
    let timeouts = Timeouts { request: of(request), idle: of(idle), stream: of(stream), backend_request: None };
    RequestTraffic { timeouts, ..RequestTraffic::default() }
}

fn policy(name: &str, age: i64, targets: &[TrafficTarget], request: RequestTraffic) -> TrafficPolicy {
    let settings = Ok(Arc::new(ServiceTraffic { request, ..ServiceTraffic::default() }));
    TrafficPolicy {
        key: key("shop", name),
        created: (age >= 0).then(|| Timestamp::from_unix(age)),
        targets: targets.into(),
        settings,
    }
}

fn policies(policies: &[TrafficPolicy]) -> RoutingDelta {
    let traffic = policies.iter().map(|policy| (policy.key.clone(), Some(Arc::new(policy.clone())))).collect();
    RoutingDelta { traffic, ..RoutingDelta::default() }
}

fn target_of_route(rule: Option<&str>) -> TrafficTarget {
    TrafficTarget::Route { route: http("shop", "r", 1, &[]).key, rule: rule.map(Into::into) }
}

#[test]
fn what_a_rule_says_itself_comes_before_its_policy_and_its_routes() {
    let mut named = rule("/");
    named.id.name = Some("main".into());
    named.traffic = seconds(Some(1), None, None);
    let before = snapshot(&[http("shop", "r", 1, &[named, rule("/b")])]);
    let after = then(
        &before,
        policies(&[
            policy("on-route", 1, &[target_of_route(None)], seconds(Some(3), Some(3), Some(3))),
            policy("on-rule", 2, &[target_of_route(Some("main"))], seconds(Some(2), Some(2), None)),
        ]),
    );
    let traffic = |snapshot: &Snapshot, path: &str| {
        let asked = ask(path);
        let table = snapshot.route_table(&key("shop", "web"), 80, None).unwrap();
        table.pick(&asked).unwrap().rule.traffic.clone()
    };
    assert_eq!(traffic(&after, "GET /"), seconds(Some(1), Some(2), Some(3)));
    assert_eq!(traffic(&after, "GET /b"), seconds(Some(3), Some(3), Some(3)));
    let gone = RoutingDelta {
        traffic: vec![(key("shop", "on-route"), None), (key("shop", "on-rule"), None)],
        ..RoutingDelta::default()
    };
    assert_eq!(traffic(&then(&after, gone.clone()), "GET /"), seconds(Some(1), None, None));
    assert!(then(&after, gone).same_state(&before));
}

#[test]
fn of_policies_with_one_target_the_oldest_that_can_be_read_counts() {
    let web = TrafficTarget::Service(key("shop", "web"));
    let one = std::slice::from_ref(&web);
    let mut broken = policy("broken", 0, one, RequestTraffic::default());
    broken.settings = Err("retry: no".into());
    let before = snapshot(&[]);
    assert_eq!(**before.traffic(&key("shop", "web")), ServiceTraffic::default());
    let all = [
        policy("b-old", 1, one, seconds(Some(1), None, None)),
        policy("a-young", 2, one, seconds(Some(2), None, None)),
        policy("ageless", -1, one, seconds(Some(3), None, None)),
        broken,
        policy(
            "lost",
            1,
            &[TrafficTarget::Service(key("shop", "none")), target_of_route(None)],
            seconds(None, None, None),
        ),
    ];
    let snapshot = then(&before, policies(&all));
    assert_eq!(snapshot.traffic(&key("shop", "web")).request, seconds(Some(1), None, None));
    let outcomes: Vec<_> = snapshot.traffic_statuses().into_iter().map(|s| (s.policy.1, s.outcome)).collect();
    let lost_to_old = TrafficOutcome::Conflicted(key("shop", "b-old"));
    assert_eq!(
        outcomes,
        [
            ("a-young".into(), lost_to_old.clone()),
            ("ageless".into(), lost_to_old),
            ("b-old".into(), TrafficOutcome::Accepted),
            ("broken".into(), TrafficOutcome::Invalid("retry: no".into())),
            ("lost".into(), TrafficOutcome::TargetNotFound),
            ("lost".into(), TrafficOutcome::TargetNotFound),
        ]
    );
    let without_oldest = RoutingDelta { traffic: vec![(key("shop", "b-old"), None)], ..RoutingDelta::default() };
    let snapshot = then(&snapshot, without_oldest);
    assert_eq!(snapshot.traffic(&key("shop", "web")).request, seconds(Some(2), None, None));
}

#[test]
fn an_endpoint_that_changes_touches_no_table() {
    let before = snapshot(&[http("shop", "r", 1, &[rule("/")])]);
    let mut web = services().remove(0);
    web.ports[0].endpoints = [].into();
    let after = before.apply(services_delta(vec![web.clone()]));
    let table = |snapshot: &Snapshot| snapshot.route_table(&key("shop", "web"), 80, None).cloned();
    assert!(Arc::ptr_eq(&table(&before).unwrap(), &table(&after).unwrap()));
    web.ports.remove(0);
    assert!(table(&after.apply(services_delta(vec![web]))).is_none());
}

/// One object that comes or goes.
#[derive(Clone, Debug)]
enum Change {
    Route(usize, Option<Route>),
    Grant(usize, Option<ReferenceGrant>),
    Policy(usize, Option<TrafficPolicy>),
    Service(usize, bool),
}

fn change() -> impl Strategy<Value = Change> {
    let kind = prop_oneof![4 => Just(RouteKind::Http), 1 => Just(RouteKind::Grpc), 1 => Just(RouteKind::Tls), 1 => Just(RouteKind::Tcp)];
    let backend = prop_oneof![Just(to("shop", "cart", 80, 1)), Just(to("other", "cart", 80, 1))];
    let parents = prop_oneof![
        Just(vec![parent("shop", "web", None)]),
        Just(vec![parent("shop", "web", Some(80)), parent("shop", "cart", None)]),
        Just(vec![parent("shop", "web", Some(9000)), parent("shop", "web", None)]),
        Just(vec![]),
    ];
    let of_route = (0..5_usize, kind, 0..3_i64, backend, parents, any::<bool>()).prop_map(
        |(n, kind, age, backend, parents, is_there)| {
            let mut rule = Rule { backends: [backend].into(), ..rule(["/", "/a", "=/a"][n % 3]) };
            rule.id.name = Some("main".into());
            // A key has one kind.
            let kind = if n == 0 { kind } else { RouteKind::Http };
            let route = with_parents(route(kind, ["shop", "other"][n % 2], &format!("r{n}"), age, &[rule]), parents);
            Change::Route(n, is_there.then_some(route))
        },
    );
    let of_grant = (0..2_usize, prop_oneof![Just(RouteKind::Http), Just(RouteKind::Grpc)], any::<bool>()).prop_map(
        |(n, kind, is_there)| {
            Change::Grant(n, is_there.then(|| grant(&format!("g{n}"), (kind, "shop"), [None, Some("cart")][n])))
        },
    );
    let of_policy = (0..3_usize, 0..3_i64, any::<bool>(), any::<bool>()).prop_map(|(n, age, of_service, is_there)| {
        let route = RouteKey { kind: RouteKind::Http, namespace: "shop".into(), name: "r2".into() };
        let targets = match of_service {
            true => vec![TrafficTarget::Service(key("shop", "web"))],
            false => vec![TrafficTarget::Route { route, rule: (n == 1).then(|| "main".into()) }],
        };
        let policy = policy(&format!("p{n}"), age, &targets, seconds(Some(n as u64 + 1), None, None));
        Change::Policy(n, is_there.then_some(policy))
    });
    let of_service = (0..3_usize, any::<bool>()).prop_map(|(n, is_there)| Change::Service(n, is_there));
    prop_oneof![4 => of_route, 1 => of_grant, 2 => of_policy, 2 => of_service]
}

/// Every route of a number has one key for each kind; one of another kind takes the place of the others.
fn add(delta: &mut Delta, change: &Change) {
    match change {
        Change::Route(n, route) => {
            for kind in [RouteKind::Http, RouteKind::Grpc, RouteKind::Tls, RouteKind::Tcp] {
                let key = RouteKey { kind, namespace: ["shop", "other"][n % 2].into(), name: format!("r{n}").into() };
                let route = route.as_ref().filter(|route| route.key == key).cloned();
                delta.routing.routes.push((key, route.map(Arc::new)));
            }
        }
        Change::Grant(n, grant) => {
            delta.routing.grants.push((key("other", &format!("g{n}")), grant.clone().map(Arc::new)));
        }
        Change::Policy(n, policy) => {
            delta.routing.traffic.push((key("shop", &format!("p{n}")), policy.clone().map(Arc::new)));
        }
        Change::Service(n, is_there) => {
            let service = services().remove(*n);
            delta.services.push((service.key(), is_there.then_some(service)));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn history_leaves_no_trace(changes in prop::collection::vec(change(), 1..24), batch in 1..4_usize) {
        let mut step = Snapshot::new("a");
        for some in changes.chunks(batch) {
            let mut delta = Delta::default();
            some.iter().for_each(|change| add(&mut delta, change));
            step = step.apply(delta);
        }
        let mut last = BTreeMap::new();
        for change in &changes {
            let key = match change {
                Change::Route(n, _) => (0, *n),
                Change::Grant(n, _) => (1, *n),
                Change::Policy(n, _) => (2, *n),
                Change::Service(n, _) => (3, *n),
            };
            last.insert(key, change.clone());
        }
        for is_reversed in [false, true] {
            let mut delta = Delta::default();
            let mut objects: Vec<&Change> = last.values().collect();
            if is_reversed {
                objects.reverse();
            }
            objects.into_iter().for_each(|change| add(&mut delta, change));
            let fresh = Snapshot::new("a").apply(delta);
            prop_assert!(fresh.same_state(&step));
            prop_assert_eq!(fresh.route_statuses(), step.route_statuses());
            prop_assert_eq!(fresh.traffic_statuses(), step.traffic_statuses());
        }
    }

    #[test]
    fn what_is_accepted_is_in_a_table_and_nothing_else(changes in prop::collection::vec(change(), 1..16)) {
        let mut delta = services_delta(services());
        changes.iter().for_each(|change| add(&mut delta, change));
        let snapshot = Snapshot::new("a").apply(delta);
        let mut accepted: Vec<RouteKey> = Vec::new();
        for status in snapshot.route_statuses() {
            if status.conditions[0].status == Some(true) {
                accepted.push(status.route);
            }
        }
        let mut in_force: Vec<RouteKey> = Vec::new();
        for service in snapshot.services() {
            for port in &service.ports {
                for client in [None, Some("other"), Some("shop")] {
                    let table = snapshot.route_table(&service.key(), port.port, client);
                    in_force.extend(table.into_iter().flat_map(|table| table.rules().map(|rule| rule.id.route.clone())));
                }
            }
        }
        [&mut accepted, &mut in_force].into_iter().for_each(|list| {
            list.sort();
            list.dedup();
        });
        prop_assert_eq!(accepted, in_force);
    }
}
