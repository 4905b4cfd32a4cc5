//! HTTP/1 through the proxy, byte by byte: the test plays the client and the server. How exchanges end is in `http1_ends`.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use heddle_model::Service;
use heddle_model::mesh::PodLimits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::support::*;

/// A pod whose Service port is declared `http`.
pub async fn http_pod(mesh: &Mesh, endpoints: &[SocketAddr]) -> SocketAddr {
    mesh.pod_calling("web", endpoints, declare_http).await
}

pub fn declare_http(service: &mut Service) {
    service.ports[0].name = "http".into();
}

pub async fn say(stream: &mut TcpStream, text: &str) {
    soon(stream.write_all(text.as_bytes())).await.unwrap();
}

/// Reads until the text so far ends with `end`.
pub async fn until_text(stream: &mut TcpStream, end: &str) -> String {
    let mut got = Vec::new();
    while !got.ends_with(end.as_bytes()) {
        let byte = soon(stream.read_u8()).await;
        got.push(byte.unwrap_or_else(|e| panic!("{e} after {:?}", String::from_utf8_lossy(&got))));
    }
    String::from_utf8(got).unwrap()
}

pub async fn head(stream: &mut TcpStream) -> String {
    until_text(stream, "\r\n\r\n").await
}

pub async fn accept(listener: &TcpListener) -> TcpStream {
    soon(listener.accept()).await.unwrap().0
}

pub const GET: &str = "GET /a HTTP/1.1\r\nHost: web\r\n\r\n";
pub const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// As Envoy carries gRPC over HTTP/1.1: chunks and trailers.
#[tokio::test]
async fn grpc_over_http1_is_recorded_with_its_status() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = http_pod(&mesh, &[addr]).await;
    let mut client = connect(vip).await;
    let call = "POST /shop.Cart/Buy HTTP/1.1\r\nHost: web\r\nContent-Type: application/grpc\r\nTE: trailers\r\nConnection: TE\r\n\
        Content-Length: 5\r\n\r\n\0\0\0\0\0";
    say(&mut client, call).await;
    let mut server = accept(&listener).await;
    until_text(&mut server, "\0\0\0\0\0").await;
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/grpc\r\nTransfer-Encoding: chunked\r\n\r\n";
    let tail = "0\r\ngrpc-status: 7\r\n\r\n";
    say(&mut server, &format!("{head}5\r\n\0\0\0\0\0\r\n{tail}")).await;
    until_text(&mut client, tail).await;
    // A response of nothing but trailers has them in its head.
    say(&mut client, call).await;
    until_text(&mut server, "\0\0\0\0\0").await;
    say(
        &mut server,
        "HTTP/1.1 200 OK\r\nContent-Type: application/grpc\r\ngrpc-status: 99\r\nContent-Length: 0\r\n\r\n",
    )
    .await;
    until_text(&mut client, "\r\n\r\n").await;
    let records = mesh.records(2).await;
    let statuses: Vec<_> = records.iter().map(|r| r["grpc_status"].as_u64()).collect();
    assert_eq!(statuses, [Some(7), Some(2)], "{records:?}");
}

#[tokio::test]
async fn connections_are_kept_on_both_sides_and_shared_between_clients() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = http_pod(&mesh, &[addr]).await;
    let mut client = connect(vip).await;
    say(&mut client, GET).await;
    let mut server = accept(&listener).await;
    for n in 0..3 {
        if n > 0 {
            say(&mut client, GET).await;
        }
        assert_eq!(head(&mut server).await, GET, "the request as it was sent");
        say(&mut server, OK).await;
        assert_eq!(until_text(&mut client, "ok").await, OK);
    }
    // Another client of the same pod gets the same connection, which is idle now.
    mesh.records(3).await;
    let mut other = connect(vip).await;
    say(&mut other, GET).await;
    assert_eq!(head(&mut server).await, GET);
    say(&mut server, OK).await;
    assert_eq!(until_text(&mut other, "ok").await, OK);
    let records = mesh.records(4).await;
    for record in &records {
        assert_eq!(
            (&record["reason"], &record["status"], &record["path"]),
            (&"completed".into(), &200.into(), &"/a".into())
        );
        assert_eq!((&record["method"], &record["authority"]), (&"GET".into(), &"web".into()));
        assert_eq!((&record["bytes_sent"], &record["protocol"]), (&2.into(), &"HTTP/1.1".into()));
    }
    assert!(records.iter().all(|record| record["attempts"] == 1), "{records:?}");
    assert_eq!(mesh.sockets.taken.load(SeqCst), 1, "one dial for all");
    drop((client, other));
    mesh.is_empty().await;
    assert_eq!(mesh.records(4).await.len(), 4, "a connection of requests has no record of its own");
}

#[tokio::test]
async fn an_idle_connection_holds_no_buffer() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = http_pod(&mesh, &[addr]).await;
    let mut client = connect(vip).await;
    say(&mut client, GET).await;
    let mut server = accept(&listener).await;
    head(&mut server).await;
    say(&mut server, OK).await;
    until_text(&mut client, "ok").await;
    until("the buffers to come back", || mesh.metrics.buffer_lent() == 0).await;
    assert_eq!(mesh.proxy.registry().list(10, |_| true).await.total, 1);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = http_pod(&mesh, &[addr]).await;
    let mut client = connect(vip).await;
    let all: String = (0..20).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: web\r\n\r\n")).collect();
    say(&mut client, &all).await;
    let mut server = accept(&listener).await;
    for n in 0..20 {
        assert!(head(&mut server).await.starts_with(&format!("GET /{n} ")));
        say(&mut server, &format!("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n{n:04}")).await;
    }
    for n in 0..20 {
        until_text(&mut client, &format!("\r\n\r\n{n:04}")).await;
    }
}

#[tokio::test]
async fn chunks_and_trailers_pass_both_ways() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = http_pod(&mesh, &[addr]).await;
    let mut client = connect(vip).await;
    let post = "POST /up HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\nTrailer: Sum\r\n\r\n";
    say(&mut client, post).await;
    let mut server = accept(&listener).await;
    assert_eq!(head(&mut server).await, post);
    // Each chunk goes on as it comes, framing cut anywhere.
    for part in ["5\r\nhe", "llo\r", "\n3;x=y\r\n wo\r\n2\r\nrl\r\n"] {
        say(&mut client, part).await;
    }
    until_text(&mut server, "rl\r\n").await;
    say(&mut client, "0\r\nSum: 1\r\n\r\n").await;
    assert_eq!(until_text(&mut server, "\r\n\r\n").await, "0\r\nSum: 1\r\n\r\n");
    let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwell\r\n0\r\nDone: yes\r\n\r\n";
    say(&mut server, answer).await;
    assert_eq!(until_text(&mut client, "Done: yes\r\n\r\n").await, answer);
    let record = &mesh.records(1).await[0];
    assert_eq!((&record["bytes_received"], &record["bytes_sent"]), (&10.into(), &4.into()), "bodies without framing");
}

#[tokio::test]
async fn a_response_without_a_body_leaves_the_connection_in_step() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = http_pod(&mesh, &[addr]).await;
    let mut client = connect(vip).await;
    say(&mut client, "HEAD /a HTTP/1.1\r\nHost: web\r\n\r\n").await;
    let mut server = accept(&listener).await;
    for (status, next) in [
        ("200 OK\r\nContent-Length: 500", "GET /b HTTP/1.1\r\nHost: web\r\n\r\n"),
        ("204 No Content", "GET /c HTTP/1.1\r\nHost: web\r\n\r\n"),
        ("304 Not Modified\r\nContent-Length: 500", GET),
        ("200 OK\r\nContent-Length: 0", ""),
    ] {
        head(&mut server).await;
        let answer = format!("HTTP/1.1 {status}\r\n\r\n");
        say(&mut server, &answer).await;
        assert_eq!(head(&mut client).await, answer);
        say(&mut client, next).await;
    }
}

#[tokio::test]
async fn interim_responses_pass_at_once() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = http_pod(&mesh, &[addr]).await;
    let mut client = connect(vip).await;
    say(&mut client, "PUT /a HTTP/1.1\r\nHost: web\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").await;
    let mut server = accept(&listener).await;
    assert!(head(&mut server).await.contains("Expect: 100-continue"));
    say(&mut server, "HTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(head(&mut client).await, "HTTP/1.1 100 Continue\r\n\r\n");
    say(&mut client, "body").await;
    until_text(&mut server, "body").await;
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: </x.css>; rel=preload\r\n\r\n";
    say(&mut server, hints).await;
    assert_eq!(head(&mut client).await, hints);
    say(&mut server, OK).await;
    assert_eq!(until_text(&mut client, "ok").await, OK);
    // The connection is in step.
    say(&mut client, GET).await;
    head(&mut server).await;
    say(&mut server, OK).await;
    until_text(&mut client, "ok").await;
}

#[tokio::test]
async fn an_upgrade_becomes_a_tunnel() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = http_pod(&mesh, &[addr]).await;
    let mut client = connect(vip).await;
    let ask = "GET /chat HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    say(&mut client, ask).await;
    let mut server = accept(&listener).await;
    let asked = head(&mut server).await;
    assert!(asked.contains("Upgrade: websocket") && asked.contains("Connection: Upgrade"), "{asked}");
    let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    // The first bytes of the new protocol come with the head.
    say(&mut server, &format!("{switch}hello")).await;
    assert_eq!(until_text(&mut client, "hello").await, format!("{switch}hello"));
    passes(&mut client, &mut server, &pattern(100_000)).await;
    passes(&mut server, &mut client, &pattern(100_000)).await;
    soon(client.shutdown()).await.unwrap();
    assert_eq!(rest(&mut server).await, b"");
    passes(&mut server, &mut client, b"bye").await;
    soon(server.shutdown()).await.unwrap();
    assert_eq!(rest(&mut client).await, b"");
    let record = &mesh.records(1).await[0];
    assert_eq!((&record["status"], &record["reason"]), (&101.into(), &"completed".into()));
    assert_eq!((&record["bytes_received"], &record["bytes_sent"]), (&100_000.into(), &100_008.into()));
    mesh.is_empty().await;
}

#[tokio::test]
async fn a_request_that_is_cut_has_one_record_with_what_it_carried() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = http_pod(&mesh, &[addr]).await;
    let mut client = connect(vip).await;
    say(&mut client, GET).await;
    let mut server = accept(&listener).await;
    head(&mut server).await;
    let registry = mesh.proxy.registry();
    assert_eq!(registry.close(heddle_telemetry::Reason::ClosedByOperator, |_| true).await, 1);
    is_reset(&mut client).await;
    mesh.records(1).await;
    let mut client = connect(vip).await;
    say(&mut client, "CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n").await;
    let mut server = accept(&listener).await;
    head(&mut server).await;
    say(&mut server, "HTTP/1.1 200 OK\r\n\r\nhello").await;
    until_text(&mut client, "hello").await;
    passes(&mut client, &mut server, &pattern(1000)).await;
    assert_eq!(registry.close(heddle_telemetry::Reason::PolicyClosed, |_| true).await, 1);
    is_reset(&mut client).await;
    mesh.is_empty().await;
    let records = mesh.records(2).await;
    let told: Vec<_> = records.iter().map(|r| (&r["reason"], &r["bytes_received"], &r["bytes_sent"])).collect();
    let (no, all, ahead) = (0.into(), 1000.into(), 5.into());
    assert_eq!(told, [(&"closed_by_operator".into(), &no, &no), (&"policy_closed".into(), &all, &ahead)]);
    assert!(records.iter().all(|r| r.get("method").is_some()), "{records:?}");
}

#[tokio::test]
async fn connect_becomes_a_tunnel() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = http_pod(&mesh, &[addr]).await;
    let mut client = connect(vip).await;
    say(&mut client, "CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n").await;
    let mut server = accept(&listener).await;
    assert!(head(&mut server).await.starts_with("CONNECT db:5432 HTTP/1.1\r\n"));
    say(&mut server, "HTTP/1.1 200 Connection established\r\n\r\n").await;
    head(&mut client).await;
    passes(&mut client, &mut server, b"\0binary").await;
    reset(client);
    is_reset(&mut server).await;
    assert_eq!(mesh.only_reason().await, "downstream_reset");
}

#[tokio::test]
async fn what_is_meant_for_a_tunnel_is_no_request() {
    let optimist = "CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\nGET /evil HTTP/1.1\r\nHost: a\r\n\r\n";
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = http_pod(&mesh, &[addr]).await;
    let mut client = connect(vip).await;
    say(&mut client, optimist).await;
    let mut server = accept(&listener).await;
    head(&mut server).await;
    say(&mut server, "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").await;
    let told = String::from_utf8(rest(&mut client).await).unwrap();
    assert!(told.starts_with("HTTP/1.1 403 ") && told.contains("Connection: close\r\n"), "{told}");
    drop(client);
    assert_eq!(mesh.records(1).await.len(), 1);
    // Nor behind an answer of the agent's own.
    let vip = http_pod(&mesh, &[dead_address().await]).await;
    let mut client = connect(vip).await;
    say(&mut client, optimist).await;
    let told = String::from_utf8(rest(&mut client).await).unwrap();
    assert!(told.starts_with("HTTP/1.1 503 ") && told.matches("HTTP/1.1").count() == 1, "{told}");
    assert_eq!(mesh.records(2).await.len(), 2);
}

#[tokio::test]
async fn a_slow_reader_stops_its_server_and_holds_one_buffer() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = http_pod(&mesh, &[addr]).await;
    let mut client = connect(vip).await;
    say(&mut client, GET).await;
    let mut server = accept(&listener).await;
    head(&mut server).await;
    let length = 64 << 20;
    say(&mut server, &format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n")).await;
    let body = pattern(1 << 20);
    let writing = tokio::spawn(async move {
        for _ in 0..64 {
            server.write_all(&body).await.unwrap();
        }
        server
    });
    head(&mut client).await;
    // Nobody reads: the writer gets stuck, and the agent holds one buffer, not 64 MiB.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!writing.is_finished(), "64 MiB went somewhere");
    assert!(mesh.metrics.buffer_lent() <= 256 << 10, "{}", mesh.metrics.buffer_lent());
    let mut left = length;
    let mut buffer = vec![0; 1 << 20];
    while left > 0 {
        left -= soon(client.read(&mut buffer)).await.unwrap();
    }
    soon(writing).await.unwrap();
    assert_eq!(mesh.records(1).await[0]["bytes_sent"], length);
}

#[tokio::test]
async fn without_budget_requests_go_on_in_small_buffers() {
    let mesh = Mesh::new(1);
    mesh.limits(PodLimits { buffered_bytes_max: 0, ..PodLimits::default() });
    let (listener, addr) = backend().await;
    let vip = http_pod(&mesh, &[addr]).await;
    let mut client = connect(vip).await;
    let body = pattern(100_000);
    say(&mut client, "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n").await;
    let mut server = accept(&listener).await;
    head(&mut server).await;
    passes(&mut client, &mut server, &body).await;
    say(&mut server, "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n").await;
    head(&mut client).await;
    passes(&mut server, &mut client, &body).await;
    assert!(mesh.metrics.budget_exceeded(heddle_telemetry::Reason::PodBufferedBytesMax) > 0);
}

#[tokio::test]
async fn requests_over_the_pods_budget_are_answered_and_others_are_not_disturbed() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let (vip, quiet) = (http_pod(&mesh, &[addr]).await, mesh.pod_calling("quiet", &[addr], declare_http).await);
    mesh.limits(PodLimits { requests_max: 1, ..PodLimits::default() });
    let (mut first, mut second, mut other) = (connect(vip).await, connect(vip).await, connect(quiet).await);
    say(&mut first, GET).await;
    let mut server = accept(&listener).await;
    head(&mut server).await;
    for _ in 0..2 {
        say(&mut second, GET).await;
        let got = head(&mut second).await;
        assert!(got.starts_with("HTTP/1.1 503 ") && got.contains("x-heddle-reason: pod_requests_max"), "{got}");
        assert!(!got.contains("close"), "a request without a body costs no connection: {got}");
        until_text(&mut second, ".").await;
    }
    say(&mut other, GET).await;
    let mut of_other = accept(&listener).await;
    head(&mut of_other).await;
    let usage = mesh.proxy.pods();
    let of = |name: &str| usage.iter().find(|p| p.uid.as_str() == name).unwrap();
    assert_eq!((of("web").requests, of("web").requests_refused), (1, 2));
    assert_eq!((of("quiet").requests, of("quiet").requests_refused), (1, 0));
    assert_eq!(mesh.metrics.budget_exceeded(heddle_telemetry::Reason::PodRequestsMax), 2);
    // The place comes back with the response.
    say(&mut server, OK).await;
    until_text(&mut first, "ok").await;
    mesh.records(3).await;
    say(&mut second, GET).await;
    head(&mut server).await;
    // And with a client that leaves.
    drop(second);
    is_reset(&mut server).await;
    drop((first, other));
    mesh.is_empty().await;
}

#[tokio::test]
async fn a_connection_tells_its_requests_and_the_bytes_of_their_bodies_while_it_lives() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = http_pod(&mesh, &[addr]).await;
    let mut client = connect(vip).await;
    let told = || async {
        let list = mesh.proxy.registry().list(10, |_| true).await;
        let view = &list.connections[0];
        (view.requests, view.bytes_received, view.bytes_sent)
    };
    say(&mut client, GET).await;
    let mut server = accept(&listener).await;
    head(&mut server).await;
    say(&mut server, OK).await;
    until_text(&mut client, "ok").await;
    say(&mut client, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf").await;
    until_text(&mut server, "half").await;
    assert_eq!(told().await, (2, 4, 2), "the second request is under way");
    say(&mut server, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun").await;
    until_text(&mut client, "begun").await;
    assert_eq!(told().await, (2, 4, 7));
}

#[tokio::test]
async fn each_request_is_balanced() {
    let mesh = Mesh::new(1);
    let mut addrs = Vec::new();
    for _ in 0..2 {
        let (listener, addr) = backend().await;
        addrs.push(addr);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut buffer = [0; 1024];
                    while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {
                        stream.write_all(OK.as_bytes()).await.unwrap();
                    }
                });
            }
        });
    }
    let vip = http_pod(&mesh, &addrs).await;
    let mut client = connect(vip).await;
    for _ in 0..60 {
        say(&mut client, GET).await;
        until_text(&mut client, "ok").await;
    }
    let records = mesh.records(60).await;
    for addr in addrs {
        let served = records.iter().filter(|r| r["upstream_address"] == addr.to_string()).count();
        assert!(served >= 10, "{addr} served {served} of 60 requests of one connection");
    }
}

#[tokio::test]
async fn requests_are_counted_as_istio_counts_them() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = http_pod(&mesh, &[addr]).await;
    let mut client = connect(vip).await;
    say(
        &mut client,
        "POST / HTTP/1.1\r\nHost: a\r\nUser-Agent: me\r\nX-Request-Id: r1\r\nContent-Length: 3\r\n\r\nabc",
    )
    .await;
    let mut server = accept(&listener).await;
    head(&mut server).await;
    say(&mut server, OK).await;
    until_text(&mut client, "ok").await;
    let record = &mesh.records(1).await[0];
    assert_eq!((&record["user_agent"], &record["request_id"]), (&"me".into(), &"r1".into()));
    assert_eq!(record["upstream_address"], addr.to_string());
    let registry = heddle_telemetry::Registry::new();
    registry.register(mesh.http.collector()).unwrap();
    registry.register(mesh.tcp.collector()).unwrap();
    let text = heddle_telemetry::encode::encode(&registry.gather(), heddle_telemetry::Format::Text);
    let line =
        |start: &str| text.lines().find(|l| l.starts_with(start)).unwrap_or_else(|| panic!("{start} in\n{text}"));
    let total = line("istio_requests_total{");
    assert!(total.ends_with(" 1"), "{total}");
    for label in [
        "reporter=\"source\"",
        "source_workload=\"web\"",
        "destination_service=\"web.shop.svc.cluster.local\"",
        "request_protocol=\"http\"",
        "response_code=\"200\"",
        "response_flags=\"-\"",
    ] {
        assert!(total.contains(label), "{label} missing in {total}");
    }
    assert!(line("istio_request_bytes_sum{").ends_with(" 3"));
    assert!(line("istio_response_bytes_sum{").ends_with(" 2"));
    assert!(line("istio_request_duration_milliseconds_count{").ends_with(" 1"));
    assert!(!text.contains("istio_tcp_connections_opened_total{"), "HTTP is not counted as TCP:\n{text}");
}
