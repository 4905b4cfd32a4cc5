//! Choosing and reaching endpoints: failure, silence, affinity, refusals.

use std::net::TcpListener as StdListener;
use std::time::{Duration, Instant};

use heddle_model::mesh::OutboundPolicy;
use heddle_model::{Delta, MeshConfig};
use heddle_telemetry::Reason;
use tokio::io::AsyncWriteExt;

use super::support::*;
use crate::Config;

#[tokio::test]
async fn a_dead_endpoint_is_passed_over() {
    let mesh = Mesh::new(1);
    let (listener, alive) = backend().await;
    let vip = mesh.pod("a", &[dead_address().await, alive]).await;
    for _ in 0..20 {
        let mut client = connect(vip).await;
        let (mut server, _) = soon(listener.accept()).await.unwrap();
        passes(&mut client, &mut server, b"hello").await;
    }
    let records = mesh.records(20).await;
    assert!(records.iter().all(|r| r["upstream_address"] == alive.to_string()), "{records:?}");
    assert!(records.iter().any(|r| r["attempts"] == 2), "the dead one was never drawn in 20 connections");
    assert!(mesh.metrics.dial_failures(Reason::UpstreamConnectRefused) > 0);
    mesh.is_empty().await;
}

#[tokio::test]
async fn with_every_endpoint_dead_the_application_learns_at_once() {
    let mesh = Mesh::with(Config { connect_timeout: PATIENCE, ..Config::default() });
    let vip = mesh.pod("a", &[dead_address().await, dead_address().await]).await;
    let start = Instant::now();
    is_refused(vip).await;
    assert!(start.elapsed() < PATIENCE / 4, "waited {:?} although everyone refused", start.elapsed());
    let record = &mesh.records(1).await[0];
    assert_eq!((&record["reason"], &record["attempts"]), (&"upstream_connect_refused".into(), &2.into()));
    assert_eq!(record["response_flags"], "UF");
    mesh.is_empty().await;
}

#[tokio::test]
async fn silence_is_bounded_and_another_endpoint_is_tried() {
    let mesh = Mesh::with(Config { connect_timeout: Duration::from_millis(100), ..Config::default() });
    let (_full, _waiting, silent) = silent_address().await;
    let vip = mesh.pod("only", &[silent]).await;
    is_refused(vip).await;
    let record = &mesh.records(1).await[0];
    assert_eq!((&record["reason"], &record["attempts"]), (&"upstream_connect_timeout".into(), &3.into()));

    let (listener, alive) = backend().await;
    let vip = mesh.pod("two", &[silent, alive]).await;
    for _ in 0..10 {
        let mut client = connect(vip).await;
        let (mut server, _) = soon(listener.accept()).await.unwrap();
        passes(&mut client, &mut server, b"hello").await;
    }
}

#[tokio::test]
async fn a_client_that_resets_ends_the_dial() {
    let mesh = Mesh::with(Config { connect_timeout: PATIENCE * 10, ..Config::default() });
    let (_full, _waiting, silent) = silent_address().await;
    let vip = mesh.pod("a", &[silent]).await;
    let mut client = connect(vip).await;
    soon(client.write_all(b"early bytes")).await.unwrap();
    let registry = mesh.proxy.registry();
    while registry.list(1, |c| c.state == crate::State::Dialling).await.total == 0 {
        tokio::task::yield_now().await;
    }
    reset(client);
    assert_eq!(mesh.only_reason().await, "downstream_reset");
    mesh.is_empty().await;
}

#[tokio::test]
async fn a_client_that_ends_its_direction_while_dialling_still_gets_its_answer() {
    let mesh = Mesh::with(Config { socket_wait: PATIENCE, ..Config::default() });
    mesh.sockets.closed.store(true, std::sync::atomic::Ordering::SeqCst);
    let (listener, addr) = backend().await;
    let vip = mesh.pod("a", &[addr]).await;
    let mut client = connect(vip).await;
    soon(client.write_all(b"request")).await.unwrap();
    soon(client.shutdown()).await.unwrap();
    mesh.sockets.closed.store(false, std::sync::atomic::Ordering::SeqCst);
    mesh.sockets.opened.notify_waiters();
    let (mut server, _) = soon(listener.accept()).await.unwrap();
    assert_eq!(rest(&mut server).await, b"request");
    soon(server.write_all(b"answer")).await.unwrap();
    drop(server);
    assert_eq!(rest(&mut client).await, b"answer");
    assert_eq!(mesh.only_reason().await, "completed");
}

#[tokio::test]
async fn least_request_spreads_and_avoids_the_busy_one() {
    let mesh = Mesh::new(1);
    let (first, a) = backend().await;
    let (second, b) = backend().await;
    let vip = mesh.pod("a", &[a, b]).await;
    let (mut clients, mut servers, mut at_first) = (Vec::new(), Vec::new(), 0i32);
    for _ in 0..40 {
        clients.push(connect(vip).await);
        let accepted = async {
            tokio::select! {
                s = first.accept() => (s.unwrap().0, 1),
                s = second.accept() => (s.unwrap().0, 0),
            }
        };
        let (server, was_first) = soon(accepted).await;
        servers.push(server);
        at_first += was_first;
    }
    // With two endpoints both are always drawn, so open connections stay level.
    assert_eq!(at_first, 20);
}

#[tokio::test]
async fn a_client_stays_with_its_endpoint_across_workers() {
    let mesh = Mesh::new(2);
    let mut addrs = Vec::new();
    for _ in 0..4 {
        let (listener, addr) = backend().await;
        addrs.push(addr);
        tokio::spawn(async move {
            loop {
                drop(listener.accept().await);
            }
        });
    }
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let vip = listener.local_addr().unwrap();
    let other = listener.try_clone().unwrap();
    let mut service = service("a", vip, &addrs);
    service.session_affinity = Some(Duration::from_secs(60));
    mesh.apply(Delta { services: vec![(service.key(), Some(service))], ..Delta::default() });
    let shard = |l| crate::ShardListeners { outbound: vec![l], inbound: vec![], hbone: vec![] };
    let uid = heddle_model::PodUid::new("a");
    let addresses = vec![POD_ADDRESS.parse().unwrap()];
    let pod = crate::PodListeners { uid, addresses, identity: None, shards: vec![shard(listener), shard(other)] };
    mesh.proxy.attach(pod).await.unwrap();
    for n in 0..30 {
        drop(connect(vip).await);
        mesh.records(n + 1).await;
    }
    let records = mesh.records(30).await;
    let first = records[0]["upstream_address"].as_str().unwrap();
    assert!(records.iter().all(|r| r["upstream_address"] == first), "{records:?}");
}

#[tokio::test]
async fn refusals_of_the_model_are_resets_with_the_same_word() {
    let mesh = Mesh::new(1);
    let vip = mesh.pod("a", &[]).await;
    is_refused(vip).await;
    assert_eq!(mesh.only_reason().await, "no_ready_endpoint");

    let listener = StdListener::bind("127.0.0.2:0").unwrap();
    let unknown = listener.local_addr().unwrap();
    let deny = MeshConfig { outbound_policy: OutboundPolicy::Deny, ..MeshConfig::default() };
    mesh.apply(Delta { mesh: Some(deny), ..Delta::default() });
    mesh.attach("b", vec![listener], vec![]).await;
    is_refused(unknown).await;
    assert_eq!(mesh.records(2).await[1]["reason"], "outbound_denied");
}

#[tokio::test]
async fn the_record_and_the_series_name_both_sides() {
    let mesh = Mesh::new(1);
    let (mut client, mut server) = pair(&mesh, "web").await;
    passes(&mut client, &mut server, b"12345").await;
    // Bytes count while the connection lives. The count follows the write, so the reader may be a moment ahead of it.
    let registry = heddle_telemetry::Registry::new();
    registry.register(mesh.tcp.collector()).unwrap();
    mesh.proxy.register_metrics(&registry).unwrap();
    let scrape = || heddle_telemetry::encode::encode(&registry.gather(), heddle_telemetry::Format::Text);
    until("the bytes to be counted", || scrape().contains("} 5\n")).await;
    let text = scrape();
    let line =
        |prefix: &str| text.lines().find(|l| l.starts_with(prefix)).unwrap_or_else(|| panic!("{prefix}:\n{text}"));
    let received = line("istio_tcp_received_bytes_total{");
    assert!(received.ends_with("} 5"), "{received}");
    for label in [
        "reporter=\"source\"",
        "source_workload=\"web\"",
        "source_workload_namespace=\"shop\"",
        "destination_service=\"web.shop.svc.cluster.local\"",
        "destination_service_name=\"web\"",
        "connection_security_policy=\"unknown\"",
        "response_flags=\"-\"",
    ] {
        assert!(received.contains(label), "{label} missing in {received}");
    }
    assert!(line("heddle_pod_connections{pod=\"web\"}").ends_with(" 1"));
    assert!(!line("heddle_pod_cpu_seconds_total{pod=\"web\"}").ends_with("} 0"), "polls cost nothing?");
    let view = mesh.proxy.registry().list(1, |_| true).await.connections.remove(0);
    assert_eq!(view.client.ip().to_string(), POD_ADDRESS, "the agent's loopback address leaked");
    assert_eq!((view.bytes_received, view.bytes_sent), (5, 0));
    let port = client.local_addr().unwrap().port();
    drop((client, server));
    let record = &mesh.records(1).await[0];
    assert_eq!(record["source_address"], format!("{POD_ADDRESS}:{port}"));
    assert_eq!(record["source_workload"], "web");
    assert!(record["destination_service"].as_str().unwrap().starts_with("web.shop.svc.cluster.local:"), "{record}");
}
