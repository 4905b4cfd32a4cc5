//! Routes, grants and TrafficPolicies: what is given out of them, once, and that it is a function of the objects.

use std::collections::BTreeMap;
use std::sync::Arc;

use heddle_api::{Key, Kind, Object};
use heddle_model::routing::{RouteKind, RoutingDelta};
use proptest::prelude::*;

use super::Reducer;
use super::tests::objects;

fn route(kind: &str, name: &str, port: u16) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{parentRefs: [{{group: '', kind: Service, name: web}}], rules: [{{backendRefs: [{{name: web, port: {port}}}]}}]}}\n"
    )
}

fn grant(to: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: shop}}\n\
         spec: {{from: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: a}}], to: [{{group: '', kind: {to}}}]}}\n"
    )
}

fn traffic(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: heddle.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{targetRefs: [{{kind: Service, name: web}}], {spec}}}\n"
    )
}

fn key(kind: Kind, name: &str) -> Key {
    Key { kind, namespace: "shop".into(), name: name.into() }
}

/// `kind name` of what is set, `-kind name` of what is removed.
fn told(delta: &RoutingDelta) -> Vec<String> {
    let sign = |is_set: bool| if is_set { "" } else { "-" };
    let routes =
        delta.routes.iter().map(|(key, of)| format!("{}{} {}", sign(of.is_some()), key.kind.as_str(), key.name));
    let grants = delta.grants.iter().map(|(key, of)| format!("{}grant {}", sign(of.is_some()), key.1));
    let traffic = delta.traffic.iter().map(|(key, of)| format!("{}traffic {}", sign(of.is_some()), key.1));
    routes.chain(grants).chain(traffic).collect()
}

fn set(reducer: &mut Reducer, yaml: &str) {
    objects(yaml).into_iter().for_each(|(key, object)| reducer.set(&key, Some(object)));
}

fn publish(reducer: &mut Reducer) -> Vec<String> {
    let delta = reducer.delta();
    let told = told(&delta.routing);
    assert_eq!(delta.is_empty(), told.is_empty(), "nothing else depends on them");
    told
}

#[test]
fn every_kind_is_given_out_once_and_taken_back() {
    let mut reducer = Reducer::new();
    let kinds = ["HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute"].map(|kind| route(kind, "web", 80));
    let all = [kinds.join("---\n"), grant("Service"), traffic("t", "retries: {}")].join("---\n");
    set(&mut reducer, &all);
    assert_eq!(reducer.len(), 6);
    assert_eq!(
        publish(&mut reducer),
        ["HTTPRoute web", "GRPCRoute web", "TLSRoute web", "TCPRoute web", "grant g", "traffic t"]
    );
    assert_eq!(publish(&mut reducer), Vec::<String>::new());
    set(&mut reducer, &all);
    assert_eq!(publish(&mut reducer), Vec::<String>::new(), "equal objects change nothing");
    set(&mut reducer, &route("HTTPRoute", "web", 81));
    set(&mut reducer, &traffic("t", "retries: {attempts: 1}"));
    let delta = reducer.delta().routing;
    assert_eq!(told(&delta), ["HTTPRoute web", "traffic t"], "one batch");
    let attempts = delta.traffic[0].1.as_ref().and_then(|policy| policy.settings.clone().ok()?.request.retry.clone());
    assert_eq!(attempts.map(|retry| retry.retries_max), Some(1));
    for (kind, name) in [
        (Kind::Route(RouteKind::Http), "web"),
        (Kind::Route(RouteKind::Tcp), "web"),
        (Kind::ReferenceGrant, "g"),
        (Kind::TrafficPolicy, "t"),
    ] {
        reducer.set(&key(kind, name), None);
        reducer.set(&key(kind, "never-there"), None);
    }
    assert_eq!(publish(&mut reducer), ["-HTTPRoute web", "-TCPRoute web", "-grant g", "-traffic t"]);
    assert_eq!(reducer.len(), 2);
}

#[test]
fn a_bad_rule_is_given_out_marked_and_the_rest_of_its_route_works() {
    let mut reducer = Reducer::new();
    let good = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: web, namespace: shop}\n\
                spec: {parentRefs: [{group: '', kind: Service, name: web}], rules: [{}, {matches: [{path: {value: /a}}]}]}\n";
    let bad = good.replace("rules: [{}", "rules: [{sessionPersistence: {}}");
    let reading = heddle_api::read("f", bad.as_bytes());
    let fields: Vec<&str> = reading.invalid.iter().map(|report| &*report.field).collect();
    assert_eq!(fields, ["spec.rules[0].sessionPersistence"]);
    set(&mut reducer, &bad);
    let invalid = |reducer: &mut Reducer| {
        let delta = reducer.delta().routing;
        let [(_, Some(route))] = &delta.routes[..] else { panic!("{delta:?}") };
        route.rules.iter().map(|rule| rule.invalid.is_some()).collect::<Vec<_>>()
    };
    assert_eq!(invalid(&mut reducer), [true, false]);
    set(&mut reducer, good);
    assert_eq!(invalid(&mut reducer), [false, false]);
}

#[test]
fn a_bad_policy_is_given_out_with_its_reason_and_a_bad_grant_not_at_all() {
    let mut reducer = Reducer::new();
    set(&mut reducer, &traffic("t", "retires: {}"));
    let delta = reducer.delta().routing;
    let [(_, Some(policy))] = &delta.traffic[..] else { panic!("{delta:?}") };
    assert!(policy.settings.as_ref().is_err_and(|why| why.starts_with("spec.retires: unknown field")), "{policy:?}");
    assert_eq!(policy.targets.len(), 1);
    set(&mut reducer, &grant("Service, nmae: web"));
    assert_eq!(publish(&mut reducer), Vec::<String>::new());
}

fn some_step() -> impl Strategy<Value = (Key, Option<Arc<Object>>)> {
    let object = (0..3_usize, 0..3_u16).prop_map(|(which, value)| match which {
        0 => route("HTTPRoute", "web", 80 + value),
        1 => traffic("web", &format!("retries: {{attempts: {}}}", 9 + value)),
        _ => grant(["Service", "Secret", "Service, name: web"][usize::from(value)]),
    });
    (object, any::<bool>()).prop_map(|(yaml, is_set)| {
        let (key, object) = objects(&yaml).remove(0);
        (key, Some(object).filter(|_| is_set))
    })
}

proptest! {
    /// However they were batched: what was given out, put together, is what is there.
    #[test]
    fn what_is_given_out_is_what_is_there(steps in proptest::collection::vec((some_step(), any::<bool>()), 0..40)) {
        let mut reducer = Reducer::new();
        let (mut present, mut given) = (BTreeMap::new(), BTreeMap::new());
        let mut take = |reducer: &mut Reducer| {
            let delta = reducer.delta().routing;
            for (key, of) in delta.routes {
                given.insert(format!("route {}", key.name), of.map(|of| format!("{of:?}")));
            }
            for (key, of) in delta.grants {
                given.insert(format!("grant {}", key.1), of.map(|of| format!("{of:?}")));
            }
            for (key, of) in delta.traffic {
                given.insert(format!("traffic {}", key.1), of.map(|of| format!("{of:?}")));
            }
            given.retain(|_, of| of.is_some());
            given.clone()
        };
        for ((key, object), is_end) in steps {
            reducer.set(&key, object.clone());
            let (word, text) = match object.as_deref() {
                Some(Object::Route(of)) => ("route", Some(format!("{of:?}"))),
                Some(Object::ReferenceGrant(of)) => ("grant", Some(format!("{:?}", of.policy))),
                Some(Object::TrafficPolicy(of)) => ("traffic", Some(format!("{of:?}"))),
                _ => (if key.kind == Kind::ReferenceGrant { "grant" } else if key.kind == Kind::TrafficPolicy { "traffic" } else { "route" }, None),
            };
            present.insert(format!("{word} {}", key.name), text);
            if is_end {
                take(&mut reducer);
            }
        }
        present.retain(|_, of| of.is_some());
        prop_assert_eq!(take(&mut reducer), present);
    }
}
