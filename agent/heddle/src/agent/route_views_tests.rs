//! What `heddle routes` and `heddle endpoints` show, and what `heddle explain` tells of routes.

use std::collections::HashSet;
use std::time::Duration;

use heddle_admin::ExplainQuery;
use heddle_model::balance::SlowStart;
use heddle_model::routing::{BackendRef, Filters, Match, PathMatch, RouteKind, RoutingDelta, RuleId, TrafficPolicy};
use heddle_model::traffic::{OutlierSettings, RequestTraffic, ServiceTraffic};
use heddle_model::workload::Membership;
use heddle_model::{Delta, PodUid, Workload};

use super::*;
use crate::agent::policy_views::{Known, explained};

fn key(name: &str) -> ServiceKey {
    ("shop".into(), name.into())
}

fn service(name: &str, ip: &str, endpoint: &str) -> Service {
    let mut service = Service::new("shop", name);
    service.vips = vec![ip.parse().unwrap()];
    service.cluster_ips = service.vips.clone();
    let mut gone = Endpoint::ready("10.0.0.9:8080".parse().unwrap());
    (gone.ready, gone.serving) = (false, false);
    let endpoints = [Endpoint::ready(endpoint.parse().unwrap()), gone].into();
    service.ports.push(ServicePort { name: "http".into(), port: 80, app_protocol: None, endpoints });
    service
}

fn route(name: &str, parent: &str, backends: &[(&str, u32)], invalid: Option<&str>) -> Arc<Route> {
    let key = RouteKey { kind: RouteKind::Http, namespace: "shop".into(), name: name.into() };
    let backend = |(name, weight): &(&str, u32)| Backend {
        to: BackendRef::Service { service: self::key(name), port: 80 },
        weight: *weight,
        filters: Filters::default(),
    };
    let rule = |index, path: &str, invalid: Option<&str>| {
        Arc::new(Rule {
            id: RuleId { route: key.clone(), index, name: None },
            matches: [Match { path: PathMatch::Prefix(path.into()), ..Match::default() }].into(),
            filters: Filters::default(),
            backends: backends.iter().map(backend).collect(),
            traffic: RequestTraffic::default(),
            invalid: invalid.map(Into::into),
        })
    };
    let parent = ParentRef { target: ParentTarget::Service(self::key(parent)), section: None, port: Some(80) };
    Arc::new(Route {
        created: None,
        generation: 1,
        parents: [parent].into(),
        hostnames: Box::default(),
        rules: [rule(0, "/a", None), rule(1, "/b", invalid)].into(),
        key,
    })
}

fn policy(name: &str, target: &str, settings: Result<ServiceTraffic, &str>) -> TrafficPolicy {
    TrafficPolicy {
        key: key(name),
        created: None,
        targets: [TrafficTarget::Service(key(target))].into(),
        settings: settings.map(Arc::new).map_err(Into::into),
    }
}

fn snapshot() -> Snapshot {
    let mut client = Workload::new("u1", "shop", "client");
    client.membership = Membership::Enabled;
    client.node = "n1".into();
    client.addresses = vec!["10.0.0.5".parse().unwrap()];
    let services = [service("web", "10.96.0.1", "10.0.0.1:8080"), service("v2", "10.96.0.2", "10.0.0.2:8080")];
    let routes = [
        route("web", "web", &[("web", 9), ("v2", 1)], Some("filters[0].type: not supported")),
        route("lost", "none", &[("gone", 1)], None),
    ];
    let balance =
        Balance { algorithm: Algorithm::PeakEwma, slow_start: Some(SlowStart::over(Duration::from_secs(60))) };
    let slow = ServiceTraffic {
        connect_timeout: Some(Duration::from_secs(7)),
        balance,
        outlier: Some(OutlierSettings::default()),
        ..ServiceTraffic::default()
    };
    let policies = [
        policy("a-slow", "v2", Ok(slow)),
        policy("b-later", "v2", Ok(ServiceTraffic::default())),
        policy("broken", "web", Err("retries.attempts: 11 is more than 10")),
        policy("nowhere", "none", Ok(ServiceTraffic::default())),
    ];
    let routing = RoutingDelta {
        routes: routes.into_iter().map(|route| (route.key.clone(), Some(route))).collect(),
        traffic: policies.into_iter().map(|policy| (policy.key.clone(), Some(Arc::new(policy)))).collect(),
        ..RoutingDelta::default()
    };
    Snapshot::new("n1").apply(Delta {
        workloads: vec![(client.uid.clone(), Some(client))],
        services: services.into_iter().map(|service| (service.key(), Some(service))).collect(),
        routing,
        ..Delta::default()
    })
}

fn usage(service: &ServiceKey, _port: u16) -> Option<PortUsage> {
    let none = [Usage { used: 0, overflowed: 0 }; Resource::ALL.len()];
    let ejected = EndpointUsage {
        addr: "10.0.0.2:8080".parse().unwrap(),
        ejected: Ejected::For(Duration::from_secs(20)),
        age: Some(Duration::from_secs(15)),
        latency: Some(Duration::from_micros(12_500)),
        circuit: [Usage { used: 3, overflowed: 0 }; Resource::ALL.len()],
    };
    let circuit = [Usage { used: 5, overflowed: 2 }, none[1], none[2], none[3]];
    (*service == key("v2")).then(|| PortUsage {
        budget: heddle_proxy::BudgetUse { requests: 4, retries: 1, refused: 6 },
        circuit,
        endpoints: vec![ejected],
    })
}

#[test]
fn routes_are_told_with_what_became_of_them() {
    let all = routes(&snapshot(), Some("shop"));
    let names: Vec<_> = all.routes.iter().map(|route| (&*route.kind, &*route.name)).collect();
    assert_eq!(names, [("HTTPRoute", "lost"), ("HTTPRoute", "web")]);
    let of = |route: &v1::Route| -> Vec<(String, String, String)> {
        let conditions = route.parents[0].conditions.iter();
        conditions.map(|of| (of.r#type.clone(), of.status.clone(), of.reason.clone())).collect()
    };
    let row = |kind: &str, status: &str, reason: &str| (kind.to_owned(), status.to_owned(), reason.to_owned());
    assert_eq!(
        of(&all.routes[0]),
        [
            row("Accepted", "False", "NoMatchingParent"),
            row("ResolvedRefs", "False", "BackendNotFound"),
            row("Programmed", "False", "Invalid"),
        ]
    );
    assert_eq!(of(&all.routes[1])[0], row("Accepted", "True", "Accepted"));
    assert_eq!(of(&all.routes[1])[3], row("PartiallyInvalid", "True", "UnsupportedValue"));
    assert_eq!(all.routes[1].parents[0].parent, "Service shop/web:80");
    let rules: Vec<_> =
        all.routes[1].rules.iter().map(|rule| (rule.index, &*rule.matches[0], &*rule.invalid)).collect();
    assert_eq!(rules, [(0, "path /a/…", ""), (1, "path /b/…", "filters[0].type: not supported")]);
    let backends = all.routes[1].rules[0].backends.iter().map(|b| (&*b.to, b.weight, b.percent));
    assert_eq!(backends.collect::<Vec<_>>(), [("shop/web:80", 9, 90.0), ("shop/v2:80", 1, 10.0)]);
    let targets = all.traffic_policies.iter().map(|policy| (&*policy.name, &policy.targets[0]));
    let targets: Vec<_> = targets.map(|(name, of)| (name, &*of.target, &*of.outcome, &*of.message)).collect();
    assert_eq!(
        targets,
        [
            ("a-slow", "Service v2", "Accepted", ""),
            ("b-later", "Service v2", "Conflicted", "TrafficPolicy shop/a-slow, which is older, has the target"),
            ("broken", "Service web", "Invalid", "retries.attempts: 11 is more than 10"),
            ("nowhere", "Service none", "TargetNotFound", "there is no such object, or no such rule in it"),
        ]
    );
    let elsewhere = routes(&snapshot(), Some("bank"));
    assert!(elsewhere.routes.is_empty() && elsewhere.traffic_policies.is_empty());
}

#[test]
fn endpoints_are_told_with_their_use() {
    let all = endpoints(&snapshot(), None, usage);
    let [v2, web] = &all.ports[..] else { panic!("{all:?}") };
    assert_eq!((&*v2.service, v2.used, v2.requests, v2.retries, v2.retries_refused), ("v2", true, 4, 1, 6));
    let place = v2.places.iter().map(|of| (&*of.resource, of.used, of.max, of.overflowed)).collect::<Vec<_>>();
    assert_eq!(place[0], ("connections", 5, 1024, 2));
    assert_eq!(place[3], ("retries", 0, 0, 0));
    let of = |e: &v1::EndpointUse| (e.address.clone(), e.state.clone(), e.standing.clone(), e.ejected_seconds);
    let rows: Vec<_> = v2.endpoints.iter().map(of).collect();
    let row = |address: &str, state: &str, standing: &str, seconds| {
        (address.to_owned(), state.to_owned(), standing.to_owned(), seconds)
    };
    assert_eq!(rows, [row("10.0.0.2:8080", "ready", "ejected", 20.0), row("10.0.0.9:8080", "not ready", "", 0.0)]);
    let chosen = v2.endpoints.iter().map(|e| (e.share, e.latency_seconds)).collect::<Vec<_>>();
    assert_eq!(chosen, [(0.25, 0.0125), (0.0, 0.0)]);
    assert!(!web.used && web.places.is_empty() && web.endpoints.len() == 2, "{web:?}");
}

#[test]
fn a_call_is_explained_with_what_is_in_use() {
    let pods: HashSet<PodUid> = [PodUid::new("u1")].into();
    let snapshot = snapshot();
    let known = Known { snapshot: &snapshot, has_identities: false, pods: &pods, usage: &usage };
    let query = |path: &str| ExplainQuery {
        pod: "client".into(),
        to: "web:80".into(),
        path: Some(path.into()),
        ..ExplainQuery::default()
    };
    let told = explained(&known, &query("/a")).unwrap();
    let backends = told.backends.iter().map(|b| (&*b.name, b.percent)).collect::<Vec<_>>();
    assert_eq!(backends, [("shop/web:80", 90.0), ("shop/v2:80", 10.0)]);
    let found = |steps: &[v1::ExplainedStep], step: &str| -> String {
        let of = steps.iter().filter(|of| of.step == step);
        of.map(|of| format!("{} [{}]", of.found, of.object)).collect::<Vec<_>>().join("; ")
    };
    assert_eq!(found(&told.backends[0].steps, "in-use"), "no pod of this node has called it of late []");
    let in_use = found(&told.backends[1].steps, "in-use");
    assert!(in_use.contains("5 connections (2 times full)") && in_use.contains("6 refused so far"), "{in_use}");
    assert_eq!(found(&told.backends[1].steps, "timeout"), "a connection: 7s [TrafficPolicy shop/a-slow]");
    let chosen = found(&told.backends[1].steps, "endpoints");
    assert!(chosen.contains("1 endpoint to choose from; not: 10.0.0.9:8080 (not ready)"), "{chosen}");
    let ejections = found(&told.backends[1].steps, "ejections");
    assert!(ejections.starts_with("1 of 1, which is ignored: less than 50 % would be left"), "{ejections}");
    assert_eq!(found(&told.backends[0].steps, "ejections"), "");
    let endpoints: Vec<_> = told.endpoints.iter().map(|e| (&*e.address, e.backend)).collect();
    assert_eq!(endpoints, [("10.0.0.1:8080", 1), ("10.0.0.2:8080", 2)]);
    let standing = found(&told.endpoints[1].steps, "standing");
    assert!(standing.starts_with(
            "ejected for 20 s more; takes 0.25 of its share yet, as it is new; answers in 12.5ms by its average; 3 connections"
        ), "{standing}");
    // A rule that cannot be carried out, and a path that none matches.
    for (path, reason, status) in [("/b", "route_invalid", 500), ("/c", "route_not_found", 404)] {
        let told = explained(&known, &query(path)).unwrap();
        assert_eq!((&*told.reason, told.status, told.backends.len()), (reason, status, 0), "{path}");
    }
    let both = ExplainQuery { sni: Some("db".into()), ..query("/a") };
    assert!(explained(&known, &both).unwrap_err().to_string().contains("sni"));
}
