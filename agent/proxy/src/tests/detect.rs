//! Which protocol a connection speaks where its port does not say.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use heddle_model::{Delta, Workload};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::*;

const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: web\r\n\r\n";

async fn undeclared(mesh: &Mesh, endpoints: &[std::net::SocketAddr]) -> std::net::SocketAddr {
    mesh.pod_calling("web", endpoints, |s| s.ports[0].name = "".into()).await
}

#[tokio::test]
async fn a_server_that_speaks_first_is_not_kept_waiting() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = undeclared(&mesh, &[addr]).await;
    let mut client = connect(vip).await;
    let (mut server, _) = soon(listener.accept()).await.unwrap();
    passes(&mut server, &mut client, b"220 ready\r\n").await;
    // From here on it is opaque, whatever the client says.
    passes(&mut client, &mut server, GET).await;
    passes(&mut server, &mut client, b"not HTTP at all").await;
    drop((client, server));
    let record = &mesh.records(1).await[0];
    assert!(record.get("method").is_none() && record["reason"] == "completed", "{record}");
}

#[tokio::test]
async fn a_silent_client_holds_one_upstream_connection() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = undeclared(&mesh, &[addr]).await;
    let client = connect(vip).await;
    let (mut server, _) = soon(listener.accept()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(mesh.sockets.taken.load(SeqCst), 1);
    assert_eq!(mesh.metrics.buffer_lent(), 0);
    drop(client);
    assert_eq!(rest(&mut server).await, b"", "its end is the server's to see");
    drop(server);
    assert_eq!(mesh.only_reason().await, "completed");
}

#[tokio::test]
async fn a_reset_before_the_first_byte_is_a_reset() {
    // A server's reset may overtake the agent's own notice that it is connected.
    for (from_client, reasons) in
        [(true, &["downstream_reset"][..]), (false, &["upstream_reset", "upstream_connect_refused"])]
    {
        let mesh = Mesh::new(1);
        let (listener, addr) = backend().await;
        let vip = undeclared(&mesh, &[addr]).await;
        let client = connect(vip).await;
        let (server, _) = soon(listener.accept()).await.unwrap();
        let (first, mut second) = if from_client { (client, server) } else { (server, client) };
        reset(first);
        is_reset(&mut second).await;
        let reason = mesh.only_reason().await;
        assert!(reasons.contains(&&*reason), "{reason}");
    }
}

#[tokio::test]
async fn what_a_client_says_first_decides() {
    let tls = b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03";
    for (bytes, http) in [(GET, true), (&b"*1\r\n$4\r\nPING\r\n"[..], false), (tls, false), (b"EHLO there\r\n", false)]
    {
        let mesh = Mesh::new(1);
        let (listener, addr) = backend().await;
        let vip = undeclared(&mesh, &[addr]).await;
        let mut client = connect(vip).await;
        passes(&mut client, &mut soon(listener.accept()).await.unwrap().0, bytes).await;
        drop(client);
        let record = &mesh.records(1).await[0];
        assert_eq!(record.get("method").is_some(), http, "{record}");
    }
}

#[tokio::test]
async fn the_connection_dialled_meanwhile_serves_the_request() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = undeclared(&mesh, &[addr]).await;
    let mut client = connect(vip).await;
    let (mut server, _) = soon(listener.accept()).await.unwrap();
    for part in GET.chunks(3) {
        soon(client.write_all(part)).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut got = vec![0; GET.len()];
    soon(server.read_exact(&mut got)).await.unwrap();
    assert_eq!(got, GET);
    assert_eq!(mesh.sockets.taken.load(SeqCst), 1);
}

#[tokio::test]
async fn a_dial_in_vain_goes_to_the_pool() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = undeclared(&mesh, &[addr]).await;
    let mut client = connect(vip).await;
    let (mut server, _) = soon(listener.accept()).await.unwrap();
    soon(client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")).await.unwrap();
    assert!(rest(&mut client).await.starts_with(b"HTTP/1.1 400 "));
    drop(client);
    mesh.records(1).await;
    let mut declared = connect(mesh.pod_calling("other", &[addr], |s| s.ports[0].name = "http".into()).await).await;
    // Another pod's: not this one's connection.
    soon(declared.write_all(GET)).await.unwrap();
    let (mut second, _) = soon(listener.accept()).await.unwrap();
    let mut got = vec![0; GET.len()];
    soon(second.read_exact(&mut got)).await.unwrap();
    // The same pod's next request, once its port is known to be HTTP, takes it.
    let mut service = service("web", vip, &[addr]);
    service.ports[0].name = "http".into();
    mesh.apply(Delta { services: vec![(service.key(), Some(service))], ..Delta::default() });
    let mut client = connect(vip).await;
    passes(&mut client, &mut server, GET).await;
}

#[tokio::test]
async fn opaque_ports_of_a_pod_are_never_parsed() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = mesh.pod_calling("web", &[addr], |s| s.ports[0].name = "http".into()).await;
    let mut db = Workload::new("db", "shop", "db");
    db.addresses = vec![addr.ip()];
    db.capture.opaque_ports = vec![addr.port()];
    mesh.apply(Delta { workloads: vec![(db.uid.clone(), Some(db))], ..Delta::default() });
    let mut client = connect(vip).await;
    let (mut server, _) = soon(listener.accept()).await.unwrap();
    passes(&mut client, &mut server, b"GET / HTTP/1.1\nhost: lenient\n\n").await;
    drop((client, server));
    assert!(mesh.records(1).await[0].get("method").is_none());
}

#[tokio::test]
async fn a_service_without_an_endpoint_says_so_in_http_where_its_port_is_http() {
    let mesh = Mesh::new(1);
    let vip = mesh.pod_calling("cart", &[], |s| s.ports[0].name = "http".into()).await;
    let mut client = connect(vip).await;
    soon(client.write_all(GET)).await.unwrap();
    let mut head = vec![0; 12];
    soon(client.read_exact(&mut head)).await.unwrap();
    assert_eq!(head, b"HTTP/1.1 503");
    let record = &mesh.records(1).await[0];
    assert_eq!(record["reason"], "no_ready_endpoint", "{record}");
    assert_eq!((&record["status"], &record["method"]), (&503.into(), &"GET".into()), "{record}");
    let host = format!("cart.shop.svc.cluster.local:{}", vip.port());
    assert_eq!(record["destination_service"], host, "{record}");

    // The connection is kept, and its next request finds the endpoint that came meanwhile.
    let (listener, addr) = backend().await;
    let mut service = service("cart", vip, &[addr]);
    service.ports[0].name = "http".into();
    mesh.apply(Delta { services: vec![(service.key(), Some(service))], ..Delta::default() });
    soon(client.write_all(GET)).await.unwrap();
    let (mut server, _) = soon(listener.accept()).await.unwrap();
    let mut got = vec![0; GET.len()];
    soon(server.read_exact(&mut got)).await.unwrap();
    assert_eq!(got, GET);
}

#[tokio::test]
async fn a_service_without_an_endpoint_is_refused_where_its_port_says_nothing_of_http() {
    for name in ["", "tcp", "tls"] {
        let mesh = Mesh::new(1);
        is_refused(mesh.pod_calling("cart", &[], |s| s.ports[0].name = name.into()).await).await;
        let record = &mesh.records(1).await[0];
        assert_eq!(record["reason"], "no_ready_endpoint", "{record}");
        assert!(record["destination_service"].as_str().unwrap().starts_with("cart.shop."), "{record}");
    }
}
