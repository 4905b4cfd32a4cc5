//! Connections to HTTP/2 servers, and what either side may do to one: leave it, stall it, flood it, or vanish.

use std::net::TcpListener as StdListener;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use bytes::Bytes;
use heddle_model::PodUid;
use http::{Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::http2::{PREFACE, call, client, data, frame, get, h2_pod, keep_going, next, server};
use super::mesh::CALLED;
use super::support::*;
use crate::Config;

fn post(path: &str) -> Request<()> {
    Request::post(format!("http://web{path}")).body(()).unwrap()
}

/// Answers every stream with an empty 200.
fn serve_all(listener: TcpListener) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut server = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((_, mut respond))) = server.accept().await {
                respond.send_response(Response::new(()), true).unwrap();
            }
        }
    })
}

/// A server's side of a connection, frame by frame: the preface is read, SETTINGS are sent.
async fn raw_server(listener: &TcpListener) -> TcpStream {
    let mut stream = soon(listener.accept()).await.unwrap().0;
    let mut preface = [0; PREFACE.len()];
    soon(stream.read_exact(&mut preface)).await.unwrap();
    soon(stream.write_all(&frame(4, 0, 0, &[]))).await.unwrap();
    stream
}

/// Reads frames up to one of `kind`; its flags and payload.
async fn frame_of(stream: &mut TcpStream, kind: u8) -> (u8, Vec<u8>) {
    loop {
        let mut head = [0; 9];
        soon(stream.read_exact(&mut head)).await.unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        soon(stream.read_exact(&mut payload)).await.unwrap();
        if head[3] == kind {
            return (head[4], payload);
        }
    }
}

const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;

#[tokio::test]
async fn a_connection_that_said_goaway_gets_no_new_stream() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = h2_pod(&mesh, &[addr]).await;
    let mut client = client(vip).await;
    let (long, _) = client.send_request(get("/long"), true).unwrap();
    let mut leaving = server(&listener).await;
    let (_, mut respond) = next(&mut leaving).await;
    let mut told = respond.send_response(Response::new(()), false).unwrap();
    leaving.graceful_shutdown();
    let mut pings = leaving.ping_pong().unwrap();
    let leaving = keep_going(leaving);
    let mut long = soon(long).await.unwrap().into_body();
    // Its second GOAWAY, which names the last stream, comes a round trip later, and is read another one later.
    for _ in 0..3 {
        soon(pings.ping(h2::Ping::opaque())).await.unwrap();
    }
    let serving = serve_all(listener);
    for n in 0..3 {
        let (response, _) = client.send_request(get(&format!("/{n}")), true).unwrap();
        assert_eq!(soon(response).await.unwrap().status(), 200, "{n}");
    }
    assert_eq!(mesh.sockets.taken.load(SeqCst), 2, "one connection for all that came later");
    told.send_data("end".into(), true).unwrap();
    assert_eq!(data(&mut long).await, "end");
    let records = mesh.records(4).await;
    assert!(records.iter().all(|r| r["reason"] == "completed" && r["attempts"].as_u64().unwrap() <= 1), "{records:?}");
    soon(leaving).await.unwrap();
    serving.abort();
}

#[tokio::test]
async fn what_a_server_did_not_look_at_is_sent_again() {
    // Whether a byte of the body was sent: it is kept for another attempt.
    for body in ["", "x"] {
        let mesh = Mesh::new(1);
        let (listener, addr) = backend().await;
        let vip = h2_pod(&mesh, &[addr]).await;
        let mut client = client(vip).await;
        let (response, mut sink) = client.send_request(post("/"), false).unwrap();
        let mut leaving = raw_server(&listener).await;
        if !body.is_empty() {
            sink.send_data(body.into(), false).unwrap();
            frame_of(&mut leaving, 0).await;
        } else {
            frame_of(&mut leaving, HEADERS).await;
        }
        soon(leaving.write_all(&frame(GOAWAY, 0, 0, &[0; 8]))).await.unwrap();
        let serving = serve_all(listener);
        assert_eq!(soon(response).await.unwrap().status(), 200, "with body {body:?}");
        let record = &mesh.records(1).await[0];
        assert_eq!(record["attempts"], 2, "{record}");
        serving.abort();
    }
}

#[tokio::test]
async fn a_request_on_a_stale_connection_is_sent_again_if_that_does_no_harm() {
    for (request, status) in [(get("/"), 200), (post("/"), 502)] {
        let mesh = Mesh::new(1);
        let (listener, addr) = backend().await;
        let vip = h2_pod(&mesh, &[addr]).await;
        let mut client = client(vip).await;
        let (first, _) = client.send_request(get("/first"), true).unwrap();
        let mut restarting = server(&listener).await;
        next(&mut restarting).await.1.send_response(Response::new(()), true).unwrap();
        let _ = tokio::time::timeout(Duration::from_millis(100), restarting.accept()).await;
        assert_eq!(soon(first).await.unwrap().status(), 200);
        let (second, _) = client.send_request(request, true).unwrap();
        drop((next(&mut restarting).await, restarting));
        let serving = serve_all(listener);
        assert_eq!(soon(second).await.unwrap().status(), status);
        serving.abort();
    }
}

#[tokio::test]
async fn a_new_connection_that_breaks_is_not_dialled_for_ever() {
    let mesh = Mesh::new(1);
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    static ACCEPTED: AtomicUsize = AtomicUsize::new(0);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
            drop(stream);
            ACCEPTED.fetch_add(1, SeqCst);
        }
    });
    let vip = h2_pod(&mesh, &[addr]).await;
    let mut client = client(vip).await;
    for n in 0..100 {
        let before = ACCEPTED.load(SeqCst);
        let response = soon(client.send_request(get("/"), true).unwrap().0).await.unwrap();
        assert!(matches!(response.status().as_u16(), 502 | 503), "{n}: {response:?}");
        assert!(ACCEPTED.load(SeqCst) - before <= 4, "{n}: more dials than attempts");
    }
    let records = mesh.records(100).await;
    assert!(records.iter().all(|r| r["attempts"].as_u64().unwrap() <= 3), "{records:?}");
}

#[tokio::test]
async fn who_waits_for_a_dial_is_told_though_the_pod_left() {
    let mesh = Mesh::with(Config { workers: 1, socket_wait: PATIENCE, ..Config::default() });
    let (listener, addr) = backend().await;
    let vip = h2_pod(&mesh, &[addr]).await;
    mesh.sockets.closed.store(true, SeqCst);
    let mut client = client(vip).await;
    let (one, _) = client.send_request(get("/1"), true).unwrap();
    let (two, _) = client.send_request(get("/2"), true).unwrap();
    let registry = mesh.proxy.registry();
    while registry.list(1, |c| c.requests == 2).await.total == 0 {
        tokio::task::yield_now().await;
    }
    mesh.proxy.detach(&PodUid::new("web")).await;
    mesh.sockets.closed.store(false, SeqCst);
    mesh.sockets.opened.notify_waiters();
    let serving = serve_all(listener);
    assert_eq!(soon(one).await.unwrap().status(), 200);
    assert_eq!(soon(two).await.unwrap().status(), 200);
    assert_eq!(mesh.sockets.taken.load(SeqCst), 1, "one dial for both");
    serving.abort();
}

#[tokio::test]
async fn streams_that_wait_for_a_dial_share_its_failure() {
    const TIMEOUT: Duration = Duration::from_millis(400);
    const STREAMS: u32 = 40;
    let mesh = Mesh::with(Config { workers: 1, connect_timeout: TIMEOUT, socket_wait: PATIENCE, ..Config::default() });
    // The pod's application, which nobody hears from: its listener goes away, and one with a full queue takes its place.
    mesh.sockets.closed.store(true, SeqCst);
    let listener = StdListener::bind((CALLED.as_str(), 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    mesh.attach("a", vec![], vec![listener]).await;
    let stream = connect(addr).await;
    let registry = mesh.proxy.registry();
    while registry.list(1, |_| true).await.total == 0 {
        tokio::task::yield_now().await;
    }
    mesh.proxy.detach(&PodUid::new("a")).await;
    let silent = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    silent.set_reuse_address(true).unwrap();
    until("the address to be free", || silent.bind(&addr.into()).is_ok()).await;
    silent.listen(0).unwrap();
    let mut queued = Vec::new();
    while let Ok(Ok(stream)) = tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(addr)).await {
        queued.push(stream);
    }
    let (mut sender, connection) = soon(h2::client::handshake(stream)).await.unwrap();
    tokio::spawn(connection);
    tokio::time::sleep(Duration::from_millis(100)).await;
    mesh.sockets.closed.store(false, SeqCst);
    mesh.sockets.opened.notify_waiters();
    let start = Instant::now();
    let asked: Vec<_> =
        (0..STREAMS).map(|n| tokio::spawn(sender.send_request(get(&format!("/{n}")), true).unwrap().0)).collect();
    for response in asked {
        assert_eq!(soon(response).await.unwrap().unwrap().status(), 504);
    }
    // The first is told what detection's dials came to; three rounds more for all others together.
    assert!(start.elapsed() < TIMEOUT * STREAMS, "{:?}: they took turns", start.elapsed());
    drop((silent, queued));
}

/// A client whose upload is stuck in a connection whose server does not read.
async fn stuck(mesh: &Mesh) -> (h2::client::SendRequest<Bytes>, TcpStream) {
    let (listener, addr) = backend().await;
    let vip = h2_pod(mesh, &[addr]).await;
    let mut client = client(vip).await;
    let (response, mut sink) = client.send_request(post("/"), false).unwrap();
    let mut server = raw_server(&listener).await;
    let window =
        [frame(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]), frame(8, 0, 0, &0x7fff_0000u32.to_be_bytes())];
    soon(server.write_all(&window.concat())).await.unwrap();
    sink.reserve_capacity(1 << 16);
    let mut has_answered = false;
    loop {
        match tokio::time::timeout(Duration::from_secs(1), std::future::poll_fn(|cx| sink.poll_capacity(cx))).await {
            Ok(count) => {
                sink.send_data(vec![0; count.unwrap().unwrap()].into(), false).unwrap();
                sink.reserve_capacity(1 << 16);
                has_answered = false;
            }
            // It is the server that takes no more, not an agent that had no time: that answers, and still takes none.
            Err(_) if has_answered => break,
            Err(_) => has_answered = mesh.proxy.registry().list(1, |_| true).await.total > 0,
        }
    }
    drop((response, sink));
    mesh.records(1).await;
    (client, server)
}

#[tokio::test]
async fn a_connection_nobody_uses_ends_though_its_server_does_not_read() {
    let mesh = Mesh::new(1);
    let (client, server) = stuck(&mesh).await;
    drop(client);
    // What the server does not take is held, and charged, until the connection to it ends.
    until("the client's end", || mesh.proxy.pods().iter().all(|p| p.connections == 0 && p.requests == 0)).await;
    mesh.proxy.detach(&PodUid::new("web")).await;
    until("a reset", || server.take_error().unwrap().is_some()).await;
    mesh.is_empty().await;
}

#[tokio::test]
async fn a_stuck_connection_without_a_stream_is_not_kept() {
    let mesh = Mesh::new(1);
    let (client, server) = stuck(&mesh).await;
    drop(client);
    // Long before the pool's idle timeout: it costs its pod budget.
    mesh.is_empty().await;
    until("a reset", || server.take_error().unwrap().is_some()).await;
}

#[tokio::test]
async fn a_drain_ends_goodbyes_too() {
    let mesh = Mesh::new(1);
    let (client, server) = stuck(&mesh).await;
    drop(client);
    // What the server does not take is held, and charged, until the connection to it ends.
    until("the client's end", || mesh.proxy.pods().iter().all(|p| p.connections == 0 && p.requests == 0)).await;
    let start = Instant::now();
    mesh.proxy.drain(start + Duration::from_secs(1)).await;
    assert!(start.elapsed() >= Duration::from_millis(900), "the goodbye had its time: {:?}", start.elapsed());
    until("a reset", || server.take_error().unwrap().is_some()).await;
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_connection_is_idle_from_its_last_streams_end() {
    let idle = Duration::from_secs(5);
    let mesh = Mesh::with(Config { workers: 1, pool_idle_timeout: idle, ..Config::default() });
    let (listener, addr) = backend().await;
    let vip = h2_pod(&mesh, &[addr]).await;
    let mut client = client(vip).await;
    let (response, _) = client.send_request(get("/long"), true).unwrap();
    let mut server = server(&listener).await;
    let (_, mut respond) = next(&mut server).await;
    let serving = tokio::spawn(async move {
        while let Some(Ok((_, mut respond))) = server.accept().await {
            respond.send_response(Response::new(()), true).unwrap();
        }
    });
    tokio::time::sleep(idle + Duration::from_secs(2)).await;
    respond.send_response(Response::new(()), true).unwrap();
    soon(response).await.unwrap();
    // A sweep passes, but far from all of the time.
    tokio::time::sleep(Duration::from_millis(1300)).await;
    soon(client.send_request(get("/next"), true).unwrap().0).await.unwrap();
    assert_eq!(mesh.sockets.taken.load(SeqCst), 1);
    soon(serving).await.unwrap();
    assert!(mesh.records(2).await.iter().all(|r| r["reason"] == "completed"), "and then it is let go");
}

#[tokio::test]
async fn a_server_that_vanished_is_found() {
    let second = Duration::from_secs(1);
    let answers_within = second * 3;
    let config =
        Config { workers: 1, upstream_silence_max: second, upstream_ping_timeout: answers_within, ..Config::default() };
    let mesh = Mesh::with(config);
    let (listener, addr) = backend().await;
    let vip = h2_pod(&mesh, &[addr]).await;
    let mut client = client(vip).await;
    let (response, _) = client.send_request(call("Watch"), true).unwrap();
    let mut server = raw_server(&listener).await;
    let (_, payload) = frame_of(&mut server, PING).await;
    soon(server.write_all(&frame(PING, 1, 0, &payload))).await.unwrap();
    let mut response = tokio::spawn(response);
    assert!(
        tokio::time::timeout(answers_within + second * 3, &mut response).await.is_err(),
        "it is there, and silent for as long as it likes"
    );
    // :status 200, and a byte: it worked, so it may be asked again, and does not answer.
    soon(server.write_all(&[frame(HEADERS, 4, 1, &[0x88]), frame(0, 0, 1, &[0])].concat())).await.unwrap();
    let mut body = soon(response).await.unwrap().unwrap().into_body();
    data(&mut body).await;
    assert!(soon(body.data()).await.unwrap().is_err());
    assert_eq!(mesh.only_reason().await, "upstream_lost");
}

#[tokio::test]
async fn floods_of_a_server_end_its_connection() {
    for (what, flood) in [
        ("ping", frame(PING, 0, 0, &[0; 8])),
        ("settings", frame(SETTINGS, 0, 0, &[])),
        ("window", frame(8, 0, 0, &[0, 0, 0, 1])),
    ] {
        let mesh = Mesh::new(1);
        let (listener, addr) = backend().await;
        let vip = h2_pod(&mesh, &[addr]).await;
        let mut client = client(vip).await;
        let (response, _) = client.send_request(get("/"), true).unwrap();
        let server = raw_server(&listener).await;
        let (mut read, mut write) = server.into_split();
        let reading = tokio::spawn(async move { while read.read(&mut [0; 4096]).await.is_ok_and(|n| n > 0) {} });
        let _ = soon(write.write_all(&flood.repeat(20_000))).await;
        assert_eq!(soon(response).await.unwrap().status(), 502, "{what}");
        assert_eq!(mesh.only_reason().await, "response_abuse", "{what}");
        reading.abort();
    }
}

/// Asks `vip` frame by frame: the request's header block by static table and literals, and more if it is to be refused.
fn request(stream: u32, more: &[u8]) -> Vec<u8> {
    frame(HEADERS, 5, stream, &[b"\x82\x86\x84\x01\x03web", more].concat())
}

#[tokio::test]
async fn abuse_behind_an_honest_request_is_told_once() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = h2_pod(&mesh, &[addr]).await;
    let serving = serve_all(listener);
    let mut client = connect(vip).await;
    soon(client.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[]), &request(1, b"")].concat())).await.unwrap();
    mesh.records(1).await;
    let (mut read, mut write) = client.into_split();
    let reading = tokio::spawn(async move { while read.read(&mut [0; 4096]).await.is_ok_and(|n| n > 0) {} });
    let _ = soon(write.write_all(&frame(PING, 0, 0, &[0; 8]).repeat(5000))).await;
    until("the end", || mesh.proxy.pods()[0].connections == 0).await;
    let reasons: Vec<_> = mesh.records(2).await.iter().map(|r| r["reason"].clone()).collect();
    assert_eq!(reasons, ["completed", "request_abuse"]);
    serving.abort();
    reading.abort();
}

#[tokio::test]
async fn heads_over_the_limits_are_answered_and_recorded() {
    let mesh = Mesh::new(1);
    let vip = h2_pod(&mesh, &[dead_address().await]).await;
    let mut client = client(vip).await;
    let many = (0..101).fold(Request::get("http://web/"), |request, n| request.header(format!("a{n}"), "x"));
    let large = Request::get("http://web/").header("a", "x".repeat(40_000)).header("b", "y".repeat(40_000));
    let long = Request::get(format!("http://web/{}", "x".repeat(17_000)));
    for (n, (request, status, detail)) in
        [(many, 431, "too_many_fields"), (large, 431, "head_too_large"), (long, 414, "target_too_long")]
            .into_iter()
            .enumerate()
    {
        let response = soon(client.send_request(request.body(()).unwrap(), true).unwrap().0).await.unwrap();
        let record = &mesh.records(n + 1).await[n];
        assert_eq!((response.status().as_u16(), &record["detail"]), (status, &detail.into()), "{record}");
        assert_eq!(response.headers()["x-heddle-reason"].to_str().unwrap(), record["reason"]);
    }
}

#[tokio::test]
async fn what_is_refused_unread_is_recorded() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = h2_pod(&mesh, &[addr]).await;
    let serving = serve_all(listener);
    let mut client = connect(vip).await;
    // `te: gzip`, then one without fault.
    let wire = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &request(1, b"\x00\x02te\x04gzip"), &request(3, b"")].concat();
    soon(client.write_all(&wire)).await.unwrap();
    frame_of(&mut client, 3).await;
    let mut records = mesh.records(2).await;
    records.sort_by_key(|r| r["status"].as_u64());
    let told = |r: &serde_json::Value| (r["reason"].clone(), r["detail"].clone(), r["status"].clone());
    assert_eq!(told(&records[0]), ("request_malformed".into(), "stream_refused".into(), 0.into()));
    assert_eq!(records[1]["reason"], "completed");
    serving.abort();
}

#[tokio::test]
async fn a_client_that_does_not_finish_what_it_began_is_out_of_time() {
    let unfinished = frame(HEADERS, 0, 1, b"\x82\x86");
    let settings = frame(SETTINGS, 0, 0, &[]);
    for (what, sent) in [
        ("a greeting", vec![]),
        ("a head", [&settings[..], &unfinished].concat()),
        ("a frame", [&settings, &unfinished[..10]].concat()),
    ] {
        let mesh = Mesh::with(Config { workers: 1, request_head_timeout: Duration::from_secs(1), ..Config::default() });
        let vip = h2_pod(&mesh, &[dead_address().await]).await;
        let mut client = connect(vip).await;
        soon(client.write_all(&[PREFACE, &sent].concat())).await.unwrap();
        let start = Instant::now();
        assert_eq!(mesh.only_reason().await, "request_timeout", "{what}");
        assert!(start.elapsed() < Duration::from_secs(5), "{what}: {:?}", start.elapsed());
    }
}

#[tokio::test]
async fn a_body_that_stands_still_is_out_of_time_unless_it_may() {
    // Far more than a drip waits for the next one.
    let (idle, drip) = (Duration::from_secs(3), Duration::from_millis(250));
    let mesh = Mesh::with(Config { workers: 1, request_body_idle_timeout: idle, ..Config::default() });
    let (listener, addr) = backend().await;
    let vip = h2_pod(&mesh, &[addr]).await;
    let mut client = client(vip).await;
    let (stuck, mut body) = client.send_request(post("/stuck"), false).unwrap();
    let (slow, mut drips) = client.send_request(post("/slow"), false).unwrap();
    let (silent, _call) = client.send_request(call("Chat"), false).unwrap();
    let mut server = server(&listener).await;
    let mut asked = Vec::new();
    for _ in 0..3 {
        asked.push(next(&mut server).await);
    }
    let serving = keep_going(server);
    body.send_data("x".into(), false).unwrap();
    let start = Instant::now();
    let mut stuck = std::pin::pin!(soon(stuck));
    let answer = loop {
        tokio::select! {
            answer = &mut stuck => break answer.unwrap(),
            () = tokio::time::sleep(drip) => drips.send_data("x".into(), false).unwrap(),
        }
    };
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["x-heddle-reason"]),
        (408, &"request_timeout".parse().unwrap())
    );
    assert!(start.elapsed() >= idle, "{:?}", start.elapsed());
    for _ in 0..10 {
        tokio::time::sleep(drip).await;
        drips.send_data("x".into(), false).unwrap();
    }
    for (request, mut respond) in asked {
        match request.uri().path() {
            "/stuck" => assert!(soon(std::future::poll_fn(|cx| respond.poll_reset(cx))).await.is_ok(), "cancelled"),
            _ => drop(respond.send_response(Response::new(()), true).unwrap()),
        }
    }
    assert_eq!(soon(slow).await.unwrap().status(), 200);
    assert_eq!(soon(silent).await.unwrap().status(), 200, "a call may be silent");
    serving.abort();
}
