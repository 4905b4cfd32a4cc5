//! Which protocol a connection speaks where its port does not say.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use heddle_model::{Delta, Workload};
use heddle_telemetry::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::support::*;

/// As in `protocol`: for a first word where a dial failed, and for the rest of a ClientHello.
const UNTOLD_GRACE: Duration = Duration::from_millis(100);
const HELLO_WAIT_MAX: Duration = Duration::from_millis(500);

const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: web\r\n\r\n";

/// Connects and asks, once `ready`; the beginning of the answer. Where nothing says that it is HTTP the agent gives a client little time, and a
/// machine that stood still meanwhile proves nothing: then it is asked again.
async fn answer_at_once(vip: std::net::SocketAddr, ready: impl AsyncFn()) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (began, mut got) = (Instant::now(), [0; 512]);
        let asked = async {
            let mut client = TcpStream::connect(vip).await?;
            ready().await;
            client.write_all(GET).await?;
            client.read(&mut got).await
        };
        match soon(asked).await {
            Ok(count) if count > 0 => return String::from_utf8_lossy(&got[..count]).into_owned(),
            ended => {
                assert!(began.elapsed() >= UNTOLD_GRACE && Instant::now() < deadline, "{ended:?} instead of an answer")
            }
        }
    }
}

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
async fn what_a_client_began_to_say_is_not_lost_when_its_server_speaks_first() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = undeclared(&mesh, &[addr]).await;
    let mut client = connect(vip).await;
    let (mut server, _) = soon(listener.accept()).await.unwrap();
    soon(client.write_all(b"PRI")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    passes(&mut server, &mut client, b"220 ready\r\n").await;
    let mut got = [0; 3];
    soon(server.read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"PRI");
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
async fn first_bytes_may_come_one_by_one() {
    for (name, first) in
        [("", GET), ("", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), ("http", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")]
    {
        let mesh = Mesh::new(1);
        let (listener, addr) = backend().await;
        let vip = mesh.pod_calling("web", &[addr], |s| s.ports[0].name = name.into()).await;
        let mut client = connect(vip).await;
        for part in first.chunks(5) {
            soon(client.write_all(part)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if first != GET {
            // An empty SETTINGS frame: an HTTP/2 server answers with its own, and nobody else would.
            soon(client.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0])).await.unwrap();
            let mut got = [0; 9];
            soon(client.read_exact(&mut got)).await.unwrap();
            assert_eq!(got[3], 4, "{name:?}: {got:?}");
            continue;
        }
        drop(client);
        drop(soon(listener.accept()).await);
        assert!(mesh.records(1).await[0].get("method").is_some(), "{name:?}");
    }
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
async fn a_dial_that_fails_before_the_client_spoke_is_told_to_a_request_that_comes_at_once() {
    let mesh = Mesh::new(1);
    let vip = undeclared(&mesh, &[dead_address().await]).await;
    let failures = || mesh.metrics.dial_failures(Reason::UpstreamConnectRefused);
    let before = AtomicU64::new(0);
    let got = answer_at_once(vip, async || {
        until("the dial to fail", || failures() > before.load(SeqCst)).await;
        before.store(failures(), SeqCst);
    })
    .await;
    assert!(got.starts_with("HTTP/1.1 503 ") && got.contains("x-heddle-reason: upstream_connect_refused"), "{got}");
    // A client that says nothing, or nothing that could be answered, is reset, and soon.
    let silent = Instant::now();
    is_refused(vip).await;
    assert!(silent.elapsed() < PATIENCE / 4, "{:?}", silent.elapsed());
    // Whoever is late with it hears of the reset when he writes.
    let talking = async {
        let mut other = TcpStream::connect(vip).await?;
        other.write_all(b"*1\r\n$4\r\nPING\r\n").await?;
        other.read(&mut [0; 1]).await
    };
    let error = soon(talking).await.expect_err("a clean end instead of a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    let records = mesh.records(3).await;
    assert!(records.iter().all(|r| r["reason"] == "upstream_connect_refused"), "{records:?}");
    assert_eq!(records.iter().filter(|r| r["status"] == 503).count(), 1);
}

#[tokio::test]
async fn a_service_without_endpoints_answers_requests() {
    let mesh = Mesh::new(1);
    // Where the port says HTTP the client has all the time it wants to ask.
    for (name, wait) in [("", Duration::ZERO), ("http", UNTOLD_GRACE * 3)] {
        let vip = mesh.pod_calling("web", &[], |s| s.ports[0].name = name.into()).await;
        let got = answer_at_once(vip, async || tokio::time::sleep(wait).await).await;
        assert!(got.starts_with("HTTP/1.1 503 ") && got.contains("x-heddle-reason: no_ready_endpoint"), "{got}");
    }
}

/// A ClientHello for `name`, with GREASE (RFC 8701) and what a browser sends around it.
pub fn hello(name: &str) -> Vec<u8> {
    let vector = |bytes: &[u8]| [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat();
    let extension = |kind: u16, data: &[u8]| [&kind.to_be_bytes()[..], &vector(data)].concat();
    let mut extensions = extension(0x3a3a, &[]);
    if !name.is_empty() {
        extensions.extend(extension(0, &vector(&[&[0][..], &vector(name.as_bytes())].concat())));
    }
    extensions.extend(extension(16, &vector(b"\x02\x7a\x7a\x02h2")));
    extensions.extend(extension(51, &vector(&[&[0x1a, 0x1a][..], &vector(&[7; 1216])].concat())));
    extensions.extend(extension(0xcaca, &[0]));
    let body = [&[3, 3][..], &[9; 32], &[0], &vector(&[0x2a, 0x2a, 0x13, 1]), &[1, 0], &vector(&extensions)].concat();
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    let message = [&[1][..], &length[1..], &body].concat();
    [&[0x16, 3, 1][..], &vector(&message)].concat()
}

#[tokio::test]
async fn the_name_a_tls_client_asks_for_is_told_and_its_bytes_are_passed_on() {
    for port in ["", "https"] {
        for (hello, cut, sni) in [
            (hello("Shop.Example"), 0, "shop.example"),
            (hello("shop.example"), 1, "shop.example"),
            (hello("shop.example"), 700, "shop.example"),
            (hello(""), 0, ""),
            // A name that is none, and no hello at all behind a record header.
            (hello("shop example"), 0, ""),
            ([&b"\x16\x03\x01\x00\x10\x01\x00\x00\x05"[..], &[0xff; 11]].concat(), 0, ""),
        ] {
            // Of a hello whose rest came too late, on a machine that stood still, there is nothing to tell: once more.
            while !is_told(port, &hello, cut, sni).await {}
        }
    }
}

/// A hello cut in two is passed on, and its name is told; false if its rest was late.
async fn is_told(port: &str, hello: &[u8], cut: usize, sni: &str) -> bool {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = mesh.pod_calling("web", &[addr], |s| s.ports[0].name = port.into()).await;
    let mut client = connect(vip).await;
    let began = Instant::now();
    soon(client.write_all(&hello[..cut])).await.unwrap();
    let (mut server, _) = soon(listener.accept()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    soon(client.write_all(&hello[cut..])).await.unwrap();
    let is_late = began.elapsed() >= HELLO_WAIT_MAX;
    let mut got = vec![0; hello.len()];
    soon(server.read_exact(&mut got)).await.unwrap();
    assert!(got == hello, "passed on as it came");
    passes(&mut server, &mut client, b"\x16\x03\x03").await;
    let list = mesh.proxy.registry().list(10, |_| true).await;
    let told = list.connections[0].sni.as_deref().unwrap_or_default();
    assert!(told == sni || is_late, "{port:?} cut at {cut}: {told}");
    drop((client, server));
    let record = &mesh.records(1).await[0];
    assert_eq!(record.get("sni").map_or("", |s| s.as_str().unwrap()), told);
    told == sni
}

#[tokio::test]
async fn a_hello_that_never_ends_is_not_waited_for() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = undeclared(&mesh, &[addr]).await;
    // A server that speaks all the same is heard at once; and the part that came goes on by itself after a while.
    let (hello, deadline) = (hello("shop.example"), Instant::now() + PATIENCE);
    let mut got = vec![0; 200];
    // At once, unless the machine stood still.
    loop {
        let mut client = connect(vip).await;
        soon(client.write_all(&hello[..200])).await.unwrap();
        let (mut server, _) = soon(listener.accept()).await.unwrap();
        let start = Instant::now();
        passes(&mut server, &mut client, b"\x15\x03\x03\x00\x02\x02\x28").await;
        let heard = start.elapsed();
        soon(server.read_exact(&mut got)).await.unwrap();
        if heard < HELLO_WAIT_MAX * 4 / 5 {
            break;
        }
        assert!(Instant::now() < deadline, "{heard:?}");
    }
    let mut client = connect(vip).await;
    soon(client.write_all(&hello[..200])).await.unwrap();
    let (mut server, _) = soon(listener.accept()).await.unwrap();
    soon(server.read_exact(&mut got)).await.unwrap();
    assert!(got == hello[..200]);
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
