//! `explain` and the data plane: on random routes and requests, what is explained is what happens; and what is said of it.

use std::collections::{BTreeSet, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use heddle_model::routing::{
    Filters, HeaderMatch, Match, PathMatch, PathRewrite, QueryMatch, Redirect, Rewrite, RouteKey, RouteKind,
    RoutingDelta, Rule, TrafficPolicy, TrafficTarget, ValueMatch,
};
use heddle_model::traffic::{Abort, Faults, RequestTraffic, RetryPolicy, ServiceTraffic, Share, Timeouts};
use heddle_model::workload::Membership;
use heddle_model::{Delta, OriginalDst, PodUid};
use http::{HeaderMap, HeaderValue, Method, Uri};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config as RunnerConfig, TestRunner};

use super::routing::*;
use super::support::*;
use crate::explain::{Asked, Explanation, Here, Question, explain};

/// Rounds: each a set of rules, held against each of some requests.
const ROUNDS: usize = 150;
const REQUESTS: usize = 6;

fn some_match() -> impl Strategy<Value = Match> {
    let path = prop_oneof![
        3 => Just(PathMatch::default()),
        3 => Just(PathMatch::Prefix("/a".into())),
        1 => Just(PathMatch::Prefix("/a/b".into())),
        2 => Just(PathMatch::Exact("/a/b".into())),
    ];
    let exact = |text: &str| ValueMatch::Exact(text.into());
    let header = HeaderMatch { name: "x-role".into(), value: exact("tester") };
    let param = QueryMatch { name: "v".into(), value: exact("2") };
    (path, prop::bool::weighted(0.3), prop::bool::weighted(0.3), prop::bool::weighted(0.3)).prop_map(
        move |(path, has_method, has_header, has_query)| Match {
            path,
            method: has_method.then(|| "DELETE".into()),
            headers: if has_header { [header.clone()].into() } else { Box::default() },
            query: if has_query { [param.clone()].into() } else { Box::default() },
        },
    )
}

fn some_filters() -> impl Strategy<Value = Filters> {
    let redirect = Redirect {
        scheme: None,
        hostname: None,
        path: Some(PathRewrite::Full("/new".into())),
        port: None,
        status: 301,
    };
    let rewrite = Rewrite { hostname: Some("other".into()), path: Some(PathRewrite::Prefix("/x".into())) };
    prop_oneof![
        6 => Just(Filters::default()),
        1 => Just(Filters { redirect: Some(redirect), ..Filters::default() }),
        1 => Just(Filters { rewrite: Some(rewrite), ..Filters::default() }),
    ]
}

fn some_rule() -> impl Strategy<Value = Rule> {
    let backend = (prop_oneof![4 => Just("one"), 4 => Just("two"), 1 => Just("gone"), 1 => Just("empty")], 0_u32..3);
    let (matches, backends) = (vec(some_match(), 0..3), vec(backend, 0..3));
    let rest = (prop::bool::weighted(0.1), prop::bool::weighted(0.1));
    (matches, some_filters(), backends, rest).prop_map(|(matches, filters, backends, (is_invalid, is_faulty))| {
        let abort = Faults { abort: Some((Share::ALL, Abort::Http(418))), ..Faults::default() };
        let faults = is_faulty.then(|| Arc::new(abort));
        Rule {
            matches: matches.into(),
            filters,
            traffic: RequestTraffic { faults, ..RequestTraffic::default() },
            invalid: is_invalid.then(|| "filters: broken".into()),
            ..rule("/", &backends)
        }
    })
}

fn some_request() -> impl Strategy<Value = (&'static str, &'static str, bool)> {
    let method = prop_oneof![Just("GET"), Just("DELETE")];
    let path = prop_oneof![
        Just("/"),
        Just("/a"),
        Just("/a/b"),
        Just("/a/b/"),
        Just("/ab"),
        Just("/a?v=2"),
        Just("/a/b?v=1&v=2"),
        Just("/c?v=2"),
    ];
    (method, path, prop::bool::ANY)
}

/// Makes the caller a pod that is captured.
fn enrol(mesh: &Mesh) {
    let mut caller = mesh.snapshot().workload(&PodUid::new("web")).unwrap().as_ref().clone();
    caller.membership = Membership::Enabled;
    mesh.apply(Delta { workloads: vec![(caller.uid.clone(), Some(caller))], ..Delta::default() });
}

fn explained(mesh: &Mesh, vip: SocketAddr, asked: Option<&Asked>, sni: Option<&str>) -> Explanation {
    let snapshot = mesh.snapshot();
    let pods: HashSet<PodUid> = [PodUid::new("web")].into();
    let here = Here { has_identities: false, pods: &pods };
    let from = snapshot.workload(&PodUid::new("web")).unwrap();
    explain(&snapshot, &here, &Question { from, to: OriginalDst::new(vip), request: asked, sni })
}

fn asked(method: &str, path: &str, is_tester: bool) -> Asked {
    let mut headers = HeaderMap::new();
    if is_tester {
        headers.append("x-role", HeaderValue::from_static("tester"));
    }
    let uri: Uri = format!("http://web{path}").parse().unwrap();
    Asked { method: method.parse::<Method>().unwrap(), uri, headers }
}

/// Everything that may happen: status, and what the application or the mesh says.
fn possible(told: &Explanation, named: impl Fn(SocketAddr) -> String) -> BTreeSet<(u16, String)> {
    if let Some(reason) = told.refusal {
        return [(told.status.unwrap(), reason.as_str().to_owned())].into();
    }
    let drawn = told.backends.iter().enumerate().filter(|(_, backend)| backend.weight > 0);
    drawn
        .flat_map(|(place, backend)| {
            let endpoints = told.endpoints.iter().filter(move |endpoint| endpoint.backend == Some(place));
            let answers: Vec<_> = match backend.outcome {
                Err(reason) => vec![(backend.status.unwrap(), reason.as_str().to_owned())],
                Ok(()) => endpoints.map(|endpoint| (200, named(endpoint.addr))).collect(),
            };
            assert!(!answers.is_empty(), "{backend:?}");
            answers
        })
        .collect()
}

#[tokio::test]
async fn what_is_explained_of_routes_is_what_happens() {
    let mesh = Mesh::new(1);
    let (own, one, two) = (Origin::named("own").await, Origin::named("one").await, Origin::named("two").await);
    let vip = scene(&mesh, &[own.addr], &[("one", &[one.addr]), ("two", &[two.addr]), ("empty", &[])]).await;
    enrol(&mesh);
    let named =
        |addr| [(&own, "own"), (&one, "one"), (&two, "two")].iter().find(|o| o.0.addr == addr).unwrap().1.into();
    let seed = proptest::test_runner::RngSeed::Fixed(fastrand::u64(..));
    let mut runner = TestRunner::new(RunnerConfig { rng_seed: seed, ..RunnerConfig::default() });
    let mut seen = BTreeSet::new();
    for round in 0..ROUNDS {
        let rules = vec(some_rule(), 0..4).new_tree(&mut runner).unwrap().current();
        mesh.route(route("r", rules.clone()));
        let mut caller = Caller::new(vip).await;
        for (method, path, is_tester) in vec(some_request(), REQUESTS).new_tree(&mut runner).unwrap().current() {
            let told = explained(&mesh, vip, Some(&asked(method, path, is_tester)), None);
            let expected = possible(&told, named);
            let role = if is_tester { "x-role: tester\r\n" } else { "" };
            let got = caller.ask(&format!("{method} {path} HTTP/1.1\r\nHost: web\r\n{role}\r\n")).await;
            let happened =
                (got.status, if got.reason().is_empty() { got.body.clone() } else { got.reason().to_owned() });
            let context = || format!("{seed:?} round {round} {method} {path} {is_tester}\n{rules:#?}\n{told:#?}");
            assert!(expected.contains(&happened), "{happened:?} is none of {expected:?}\n{}", context());
            seen.insert(happened);
        }
    }
    let statuses: BTreeSet<u16> = seen.iter().map(|(status, _)| *status).collect();
    assert!(statuses.is_superset(&[200, 301, 404, 418, 500, 503].into()), "{seen:?} proves little");
}

fn texts(told: &Explanation) -> String {
    let of_backends = told.backends.iter().flat_map(|backend| &backend.steps);
    let steps = told.steps.iter().chain(of_backends);
    steps.map(|step| format!("{}: {} [{}]\n", step.step, step.found, step.object)).collect()
}

#[tokio::test]
async fn rules_and_settings_are_told_with_their_objects() {
    let mesh = Mesh::new(1);
    let (one, two) = (Origin::named("one").await, Origin::named("two").await);
    let vip = scene(&mesh, &[], &[("one", &[one.addr]), ("two", &[two.addr])]).await;
    enrol(&mesh);
    let header = HeaderMatch { name: "x-role".into(), value: ValueMatch::Exact("tester".into()) };
    let mut testers = rule("/a", &[("two", 1)]);
    testers.matches[0].headers = [header].into();
    let mut shared = rule("/a", &[("one", 3), ("two", 1)]);
    shared.id.name = Some("shared".into());
    shared.traffic.timeouts.request = Some(std::time::Duration::from_secs(3));
    mesh.route(route("r", vec![testers, shared]));
    let retry = |retries_max| Some(Arc::new(RetryPolicy { retries_max, ..RetryPolicy::default() }));
    let idle = Timeouts { idle: Some(std::time::Duration::from_secs(9)), ..Timeouts::default() };
    let of_one = RequestTraffic { retry: retry(7), timeouts: idle, faults: None };
    mesh.traffic("one", ServiceTraffic { request: of_one, ..ServiceTraffic::default() });
    let key = RouteKey { kind: RouteKind::Http, namespace: "shop".into(), name: "r".into() };
    let request = RequestTraffic { retry: retry(4), ..RequestTraffic::default() };
    let policy = TrafficPolicy {
        key: super::routing::key("of-rule"),
        created: None,
        targets: [TrafficTarget::Route { route: key, rule: Some("shared".into()) }].into(),
        settings: Ok(Arc::new(ServiceTraffic { request, ..ServiceTraffic::default() })),
    };
    let traffic = vec![(policy.key.clone(), Some(Arc::new(policy)))];
    mesh.apply(Delta { routing: RoutingDelta { traffic, ..RoutingDelta::default() }, ..Delta::default() });
    let told = explained(&mesh, vip, Some(&asked("GET", "/a", false)), None);
    let text = texts(&told);
    for line in [
        "routes: HTTPRoutes: those of the Service's namespace, shop [Service shop/web]",
        "rule: rule 0: path /a/…, header x-role: tester: does not match (header x-role) [HTTPRoute shop/r]",
        "rule: rule 1 (shared): path /a/…: is picked [HTTPRoute shop/r]",
        "timeout: the whole request: 3s [HTTPRoute shop/r]",
        "timeout: without a byte: 9s [TrafficPolicy shop/one]",
        "endpoints: 1 endpoint to choose from [Service shop/two]",
    ] {
        assert!(text.contains(line), "no {line:?} in\n{text}");
    }
    // The rule's policy before the Service's.
    assert!(text.contains("retries: at most 4;") && !text.contains("at most 7"), "{text}");
    let retries = told.backends.iter().flat_map(|backend| &backend.steps).filter(|step| step.step == "retries");
    assert!(retries.map(|step| &*step.object).eq(["TrafficPolicy shop/of-rule"; 2]));
    let shares: Vec<_> = told.backends.iter().map(|b| (&*b.name, b.weight, b.sum)).collect();
    assert_eq!(shares, [("shop/one:80", 3, 4), ("shop/two:80", 1, 4)]);
    // Bytes that are no HTTP.
    let told = explained(&mesh, vip, None, None);
    assert_eq!((told.refusal.map(|reason| reason.as_str()), told.status), (Some("request_malformed"), Some(400)));
}

#[tokio::test]
async fn rules_about_connections_are_told() {
    let mesh = Mesh::new(1);
    let (own, one) = (Origin::named("own").await, Origin::named("one").await);
    let vip = mesh.pod("web", &[own.addr]).await;
    let service = backend_service("one", &[one.addr]);
    mesh.apply(Delta { services: vec![(service.key(), Some(service))], ..Delta::default() });
    enrol(&mesh);
    let told = explained(&mesh, vip, None, None);
    assert_eq!(
        told.backends.iter().map(|b| (&*b.name, b.outcome)).collect::<Vec<_>>(),
        [(&*format!("shop/web:{}", vip.port()), Ok(()))]
    );
    let mut of_names = route("db", vec![Rule { matches: Box::default(), ..rule("/", &[("one", 1)]) }]);
    of_names.hostnames = ["db.example".into()].into();
    of_names.key.kind = RouteKind::Tls;
    of_names.rules = of_names
        .rules
        .iter()
        .map(|rule| {
            let mut rule = rule.as_ref().clone();
            rule.id.route.kind = RouteKind::Tls;
            Arc::new(rule)
        })
        .collect();
    mesh.route(of_names);
    for (sni, leads) in [(Some("db.example"), true), (Some("other.example"), false), (None, false)] {
        let told = explained(&mesh, vip, None, sni);
        let backends: Vec<_> = told.backends.iter().map(|backend| &*backend.name).collect();
        let expected: &[&str] = if leads { &["shop/one:80"] } else { &[] };
        assert_eq!(backends, expected, "{sni:?} {told:?}");
        let refusal = told.refusal.map(|reason| reason.as_str());
        assert_eq!((refusal, told.status), (if leads { None } else { Some("route_not_found") }, None));
    }
}
