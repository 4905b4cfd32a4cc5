//! From a Service's address to one of its endpoints (FEATURES A8, J4, demands 9 and 10).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use heddle_testkit::prelude::*;
use heddle_tests_netns::{Carried, SOON, assert_carried, both_families, wait_logged, wait_reason};
use serde_json::json;

fn cluster(mesh: &Mesh, service: &str) -> [std::net::IpAddr; 2] {
    let service = mesh.service(service);
    [service.cluster_v4(), service.cluster_v6()]
}

/// How many connections each pod's first server has accepted.
fn accepted(mesh: &Mesh, pods: &[&str]) -> Result<BTreeMap<String, usize>> {
    pods.iter().map(|p| Ok(((*p).to_owned(), mesh.pod(p).server(0).accepted()?.len()))).collect()
}

#[test]
fn a_cluster_address_leads_to_the_target_port() -> Result<()> {
    let mesh = Mesh::declare("cluster_ip")
        .node("a")
        .pod("client")
        .node("b")
        .pod("web")
        .serves(tcp(8080))
        .serves(tcp(9090).server_first("metrics"))
        .service("web")
        .port(80, 8080)
        .port(90, 9090)
        .backed_by("web")
        .start()?;
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    for ip in cluster(&mesh, "web") {
        assert_carried(client, web, &dial(ip, 80), 8080, Carried::BothSides)?;
        let seen = client.connect(&dial(ip, 80))?;
        seen.assert_succeeded()?;
        assert_eq!(
            seen.one()?.peer,
            Some(SocketAddr::new(ip, 80)),
            "the client called the Service and sees the Service"
        );
        client.connect(&dial(ip, 90).expect("metrics"))?.assert_succeeded()?;
        client.connect(&dial(ip, 91))?.assert_refused()?;
        // The target port is no port of the Service.
        client.connect(&dial(ip, 8080))?.assert_refused()?;
    }
    assert_carried(client, web, &dial(mesh.service("web").cluster_v4(), 80).v4_mapped(), 8080, Carried::BothSides)?;
    wait_reason(mesh.node("a"), "no_such_service_port")?;
    wait_logged(mesh.node("a"), "the Service and its pod", |r| {
        r["destination_service"] == "web.shop.svc.cluster.local:80" && r["destination_pod"] == "web"
    })?;
    // The called side names the Service too, from its endpoints.
    wait_logged(mesh.node("b"), "the Service", |r| {
        r["reporter"] == "destination" && r["destination_service"] == "web.shop.svc.cluster.local:80"
    })?;
    let services = mesh.node("a").json(&["services"])?;
    ensure!(services.to_string().contains("web"), "{services}");
    Ok(())
}

#[test]
fn a_headless_services_pods_are_called_by_their_addresses() -> Result<()> {
    let mesh = Mesh::declare("headless")
        .node("a")
        .pod("client")
        .pod("db-0")
        .serves(tcp(5432))
        .node("b")
        .pod("db-1")
        .serves(tcp(5432))
        .service("db")
        .headless()
        .port(5432, 5432)
        .backed_by("db-0")
        .backed_by("db-1")
        .start()?;
    let client = mesh.pod("client");
    for name in ["db-0", "db-1"] {
        let db = mesh.pod(name);
        for ip in both_families(db) {
            let before = db.server(0).accepted()?.len();
            assert_carried(client, db, &dial(ip, 5432), 5432, Carried::BothSides)?;
            assert_eq!(db.server(0).accepted()?.len(), before + 1, "the pod that was called, no other");
        }
    }
    Ok(())
}

#[test]
fn a_pod_may_call_itself_through_its_service() -> Result<()> {
    let mesh = Mesh::declare("hairpin")
        .node("a")
        .pod("web")
        .serves(tcp(8080))
        .service("web")
        .port(80, 8080)
        .backed_by("web")
        .start()?;
    let web = mesh.pod("web");
    for (ip, own) in cluster(&mesh, "web").into_iter().zip(both_families(web)) {
        let seen = web.connect(&dial(ip, 80).bytes(100_000))?;
        seen.assert_succeeded()?;
        let seen = seen.one()?;
        assert_eq!(seen.peer, Some(SocketAddr::new(ip, 80)));
        let accepted = web.server(0).wait_accepted(1)?;
        let last = accepted.last().map(|a| a.accept);
        assert_eq!(last.map(|a| a.ip().to_canonical()), Some(own), "its own address, as the client's");
        assert_eq!(last.map(|a| a.port()), seen.local.map(|a| a.port()), "and its client socket's port");
    }
    Ok(())
}

#[test]
fn connections_spread_over_the_ready_endpoints_and_follow_changes() -> Result<()> {
    let mesh = Mesh::declare("balance")
        .node("a")
        .pod("client")
        .pod("one")
        .serves(tcp(8080))
        .node("b")
        .pod("two")
        .serves(tcp(8080))
        .pod("three")
        .serves(tcp(8080))
        .service("web")
        .port(80, 8080)
        .backed_by("one")
        .backed_by("two")
        .backed_by("three")
        .start()?;
    let pods = ["one", "two", "three"];
    let (client, plan) = (mesh.pod("client"), mesh.service("web"));
    let calls = dial(plan.cluster_v4(), 80).many(4, 30);
    client.connect(&calls)?.assert_succeeded()?;
    let spread = accepted(&mesh, &pods)?;
    ensure!(spread.values().all(|n| *n >= 15), "120 connections over three equal endpoints: {spread:?}");

    // One is not ready, one terminates: all goes to the third, within a second of the change, without a failure.
    let mut endpoints: Vec<_> = pods.iter().map(|p| mesh.endpoint(p)).collect();
    (endpoints[0].ready, endpoints[0].serving) = (false, false);
    (endpoints[1].ready, endpoints[1].terminating) = (false, true);
    mesh.source().write_service(plan, &endpoints)?;
    let deadline = Duration::from_secs(1);
    let mut last = BTreeMap::new();
    wait_until("the change is in force", deadline, || {
        let before = accepted(&mesh, &pods).unwrap_or_default();
        let good = client.connect(&dial(plan.cluster_v4(), 80).many(1, 6)).is_ok_and(|o| o.assert_succeeded().is_ok());
        last = accepted(&mesh, &pods).unwrap_or_default();
        good && last["three"] == before["three"] + 6
    })?;
    client.connect(&calls)?.assert_succeeded()?;
    let now = accepted(&mesh, &pods)?;
    assert_eq!((now["one"], now["two"]), (last["one"], last["two"]), "only the ready endpoint: {now:?}");

    // Only the terminating one is left: it still serves, and is better than nothing (Kubernetes' own rule).
    endpoints.remove(2);
    mesh.source().write_service(plan, &endpoints)?;
    wait_until("the terminating endpoint is used", deadline, || {
        let before = accepted(&mesh, &pods).unwrap_or_default();
        client.connect(&dial(plan.cluster_v4(), 80)).is_ok_and(|o| o.assert_succeeded().is_ok())
            && accepted(&mesh, &pods).is_ok_and(|n| n["two"] == before["two"] + 1)
    })?;
    mesh.source().write_service(plan, &[])?;
    wait_until("no endpoint: refused", deadline, || {
        client.connect(&dial(plan.cluster_v4(), 80)).is_ok_and(|o| o.assert_refused().is_ok())
    })?;
    wait_reason(mesh.node("a"), "no_ready_endpoint")?;
    Ok(())
}

#[test]
fn a_failed_connect_tries_another_endpoint() -> Result<()> {
    let mesh = Mesh::declare("retry")
        .node("a")
        .pod("client")
        .node("b")
        .without_agent()
        .pod("dead")
        .serves(tcp(1))
        .pod("alive")
        .serves(tcp(8080))
        .service("web")
        .port(80, 8080)
        .backed_by("dead")
        .backed_by("alive")
        .start()?;
    let client = mesh.pod("client");
    refused_but(
        "positive control of the dead endpoint: it refuses port 8080",
        || client.connect(&dial(mesh.pod("dead").v4(), 8080)),
        || client.connect(&dial(mesh.pod("dead").v4(), 1)),
    )?;
    for ip in cluster(&mesh, "web") {
        client.connect(&dial(ip, 80).many(4, 10))?.assert_succeeded()?;
    }
    wait_logged(mesh.node("a"), "positive control: one that took two attempts", |r| r["attempts"].as_u64() > Some(1))?;
    Ok(())
}

#[test]
fn service_fields_are_obeyed() -> Result<()> {
    let mesh = Mesh::declare("fields")
        .external("legacy")
        .serves(tcp(8080))
        .node("a")
        .pod("client")
        .pod("near")
        .serves(tcp(8080))
        .node("b")
        .pod("far")
        .serves(tcp(8080))
        .service("sticky")
        .port(80, 8080)
        .backed_by("near")
        .backed_by("far")
        .with("sessionAffinity", "ClientIP")
        .service("local")
        .port(80, 8080)
        .backed_by("near")
        .backed_by("far")
        .with("internalTrafficPolicy", "Local")
        .service("remote")
        .port(80, 8080)
        .backed_by("far")
        .with("internalTrafficPolicy", "Local")
        .service("unready")
        .port(80, 8080)
        .backed_by("far")
        .with("publishNotReadyAddresses", true)
        .service("hand-made")
        .port(80, 8080)
        .start()?;
    let client = mesh.pod("client");
    let calls = |service: &str| client.connect(&dial(mesh.service(service).cluster_v4(), 80).many(1, 20));
    let delta = |before: &BTreeMap<String, usize>| -> Result<(usize, usize)> {
        let now = accepted(&mesh, &["near", "far"])?;
        Ok((now["near"] - before["near"], now["far"] - before["far"]))
    };
    let before = accepted(&mesh, &["near", "far"])?;
    calls("sticky")?.assert_succeeded()?;
    let split = delta(&before)?;
    ensure!(split == (20, 0) || split == (0, 20), "sessionAffinity: ClientIP: {split:?}");

    let before = accepted(&mesh, &["near", "far"])?;
    calls("local")?.assert_succeeded()?;
    assert_eq!(delta(&before)?, (20, 0), "internalTrafficPolicy: Local");
    calls("remote")?.assert_refused()?;
    wait_reason(mesh.node("a"), "no_local_endpoint")?;

    let mut endpoint = mesh.endpoint("far");
    (endpoint.ready, endpoint.serving) = (false, false);
    mesh.source().write_service(mesh.service("unready"), std::slice::from_ref(&endpoint))?;
    calls("unready")?.assert_succeeded()?;

    // An EndpointSlice written by hand, for a host that is no pod.
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "hand-made-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "hand-made"}},
        "addressType": "IPv4",
        "ports": [{"name": "port-80", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": [mesh.external("legacy").v4()]}],
    });
    mesh.source().write("hand-made.yaml", &[slice])?;
    wait_until("the hand-made slice is in force", SOON, || {
        calls("hand-made").is_ok_and(|o| o.assert_succeeded().is_ok())
    })?;
    ensure!(mesh.external_server("legacy").accepted()?.len() >= 20);
    Ok(())
}

#[test]
fn a_broken_object_harms_only_itself_and_is_named() -> Result<()> {
    let mesh = Mesh::declare("broken")
        .node("a")
        .pod("client")
        .node("b")
        .pod("web")
        .serves(tcp(8080))
        .pod("other")
        .serves(tcp(8080))
        .service("web")
        .port(80, 8080)
        .backed_by("web")
        .service("other")
        .port(80, 8080)
        .backed_by("other")
        .start()?;
    let client = mesh.pod("client");
    let [web, other] = ["web", "other"].map(|s| dial(mesh.service(s).cluster_v4(), 80));
    client.connect(&web)?.assert_succeeded()?;
    let node = mesh.node("a");
    let named = |what: &str| {
        wait_until(&format!("heddle check names {what}"), SOON, || {
            // `check` may well exit with 1 while something is wrong.
            node.heddle(&["check", "-o", "json"]).is_ok_and(|a| a.stdout.contains(what))
        })
    };

    // Not YAML at all.
    mesh.source().write_text("garbage.yaml", "kind: Service\n  metadata: [unclosed\n")?;
    named("garbage.yaml")?;
    client.connect(&web)?.assert_succeeded()?;

    // A Service with a port that is none: its own address is refused, its neighbours work.
    let bad = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {
            "clusterIP": mesh.service("web").cluster_v4(),
            "ports": [{"name": "port-80", "port": 70_000, "targetPort": 8080, "protocol": "TCP"}],
        },
    });
    mesh.source().write("service-shop-web.yaml", &[bad])?;
    named("service-shop-web.yaml")?;
    named("spec.ports")?;
    wait_until("the broken Service is refused", SOON, || {
        client.connect(&web).is_ok_and(|o| o.assert_refused().is_ok())
    })?;
    client.connect(&other)?.assert_succeeded()?;
    client.connect(&dial(mesh.pod("web").v4(), 8080))?.assert_succeeded()?;

    // Mended, it works again.
    mesh.source().write_service(mesh.service("web"), &[mesh.endpoint("web")])?;
    mesh.source().remove("garbage.yaml")?;
    wait_until("the mended Service works", SOON, || client.connect(&web).is_ok_and(|o| o.assert_succeeded().is_ok()))
}

#[test]
fn objects_that_appear_and_go_are_seen_at_once() -> Result<()> {
    let mesh = Mesh::declare("reload")
        .node("a")
        .pod("client")
        .node("b")
        .pod("web")
        .serves(tcp(8080))
        .service("web")
        .port(80, 8080)
        .backed_by("web")
        .start()?;
    let (client, plan) = (mesh.pod("client"), mesh.service("web").clone());
    let call = dial(plan.cluster_v4(), 80);
    client.connect(&call)?.assert_succeeded()?;
    // Another port, by one rename, under load: a connection finds the former state or the new one, nothing between.
    let load = client.start_client(&call.clone().rate(50, Duration::from_secs(2)))?;
    for _ in 0..10 {
        let mut two = plan.clone();
        two.ports.push((81, 8080));
        mesh.source().write_service(&two, &[mesh.endpoint("web")])?;
        wait_until("the new port works", Duration::from_secs(1), || {
            client.connect(&dial(plan.cluster_v4(), 81)).is_ok_and(|o| o.assert_succeeded().is_ok())
        })?;
        mesh.source().write_service(&plan, &[mesh.endpoint("web")])?;
        wait_until("the port is gone", Duration::from_secs(1), || {
            client.connect(&dial(plan.cluster_v4(), 81)).is_ok_and(|o| o.assert_refused().is_ok())
        })?;
    }
    load.finish()?.assert_succeeded()?;
    mesh.source().remove("service-shop-web.yaml")?;
    // An address nobody has is external: nothing answers there.
    let call = call.within(Duration::from_millis(500));
    wait_until("the Service is gone", SOON, || client.connect(&call).is_ok_and(|o| o.assert_succeeded().is_err()))
}
