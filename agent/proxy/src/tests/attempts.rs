//! How often a request is tried, where, and how long an attempt may take: what policies say, and what holds without.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use heddle_model::Delta;
use heddle_model::traffic::{
    Backoff, BudgetLimits, CircuitLimits, Conditions, GrpcCodes, Limits, OutlierSettings, RequestTraffic, RetryPolicy,
    ServiceTraffic, StatusSet, Timeouts,
};
use heddle_telemetry::Event;
use http::Response;

use super::http1::{accept, declare_http, head, say, until_text};
use super::http2::{call, client, data, server};
use super::mesh::{Ca, Node, REQUEST, pod, read_until};
use super::resilience::{count, ejecting, failing, plenty, retries, timed, traffic, trailers};
use super::routing::*;
use super::support::*;
use crate::mesh::CONNECT_HANDSHAKE_TIMEOUT;

/// Retries of every failure, so often.
fn tried(retries_max: u32, backoff: Backoff) -> ServiceTraffic {
    traffic(RetryPolicy { retries_max, backoff, ..retries() })
}

const AT_ONCE: Backoff =
    Backoff { least: Duration::ZERO, base: Duration::from_millis(1), max: Duration::from_millis(1) };

/// One that comes back is worth another attempt where a policy says so; without one its refusal is final.
#[tokio::test]
async fn a_policy_says_how_often_the_only_endpoint_is_tried() {
    let mesh = Mesh::new(1);
    // Bound, and not listening yet.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = socket.local_addr().unwrap();
    let vip = scene(&mesh, &[addr], &[]).await;
    assert_eq!(Caller::new(vip).await.get("/").await.status, 503);
    assert_eq!(mesh.records(1).await[0]["attempts"], 1);
    let slowly = Backoff { least: Duration::from_millis(50), ..AT_ONCE };
    mesh.traffic("web", tried(200, slowly));
    let restarting = async {
        until("attempts in vain", || count(&mesh, Event::Retry, "retried") >= 2).await;
        let listener = socket.listen(8).unwrap();
        let mut stream = accept(&listener).await;
        head(&mut stream).await;
        say(&mut stream, &ok("back")).await;
    };
    let (got, ()) = tokio::join!(async { Caller::new(vip).await.get("/").await }, restarting);
    assert_eq!((got.status, got.body.as_str()), (200, "back"));
    // And no more often than it says.
    mesh.traffic("web", tried(4, AT_ONCE));
    let (retried, reached) = (count(&mesh, Event::Retry, "retried"), count(&mesh, Event::Retry, "limit_reached"));
    let gone = Caller::new(vip).await.get("/").await;
    assert_eq!(gone.status, 503, "{}", gone.head);
    let now = (count(&mesh, Event::Retry, "retried"), count(&mesh, Event::Retry, "limit_reached"));
    assert_eq!(now, (retried + 4, reached + 1));
    assert_eq!(mesh.records(3).await.last().unwrap()["attempts"], 5);
}

#[tokio::test]
async fn retries_reach_the_one_endpoint_of_many_that_is_there() {
    let mesh = Mesh::new(1);
    let good = Origin::named("good").await;
    let mut all = vec![good.addr];
    for _ in 0..5 {
        all.push(dead_address().await);
    }
    let vip = scene(&mesh, &all, &[]).await;
    mesh.traffic("web", tried(10, AT_ONCE));
    for _ in 0..10 {
        assert_eq!(Caller::new(vip).await.get("/").await.body, "good");
    }
}

/// An endpoint that failed once is a better bet than one that is ejected.
#[tokio::test]
async fn a_retry_goes_to_who_serves_and_to_nobody_ejected() {
    let mesh = Mesh::new(1);
    let turns = AtomicUsize::new(0);
    let flaky =
        Origin::start(
            move |_| {
                if turns.fetch_add(1, SeqCst).is_multiple_of(2) { status(503, "no") } else { ok("flaky") }
            },
        )
        .await;
    let bad = failing(usize::MAX, 500).await;
    let vip = scene(&mesh, &[flaky.addr, bad.addr], &[]).await;
    let outlier = OutlierSettings { success_rate: None, panic_percent: 0, ..OutlierSettings::default() };
    let statuses = StatusSet::GATEWAY_ERROR;
    let idempotent = Conditions { statuses, ..Conditions::untouched() };
    let policy = RetryPolicy { idempotent, retries_max: 1, ..retries() };
    mesh.traffic("web", ServiceTraffic { outlier: Some(outlier), ..traffic(policy) });
    let mut caller = Caller::new(vip).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while count(&mesh, Event::Ejection, "consecutive_5xx") == 0 {
        caller.get("/").await;
        assert!(Instant::now() < deadline, "it is not ejected");
    }
    let before = bad.requests();
    for _ in 0..20 {
        caller.get("/").await;
    }
    let saved = caller.get("/").await;
    assert_eq!((saved.status, bad.requests()), (200, before));
}

/// The endpoint's own limit of retries: with none, a retry finds no place anywhere.
#[tokio::test]
async fn an_endpoint_has_places_for_retries_of_its_own() {
    let mesh = Mesh::new(1);
    let bad = failing(usize::MAX, 503).await;
    let vip = scene(&mesh, &[bad.addr], &[]).await;
    for (retries_max, expected, requests) in [(None, "", 3), (Some(0), "upstream_overflow", 1)] {
        let endpoint = Limits { retries_max, ..Limits::default() };
        let circuit = CircuitLimits { endpoint, ..CircuitLimits::default() };
        mesh.traffic("web", ServiceTraffic { circuit, ..tried(2, AT_ONCE) });
        let before = bad.requests();
        let got = Caller::new(vip).await.get("/").await;
        assert_eq!((got.status, got.reason(), bad.requests() - before), (503, expected, requests));
    }
    assert!(count(&mesh, Event::Overflow, "retries") > 0);
    // Retries of the Service have a limit as well: then what came is what the client gets.
    let service = Limits { retries_max: Some(0), ..Limits::default() };
    let circuit = CircuitLimits { service, ..CircuitLimits::default() };
    mesh.traffic("web", ServiceTraffic { circuit, ..tried(2, AT_ONCE) });
    let counts = || (count(&mesh, Event::Overflow, "retries"), count(&mesh, Event::Retry, "upstream_overflow"));
    let before = counts();
    let got = Caller::new(vip).await.get("/").await;
    assert_eq!((got.status, got.reason(), got.body.as_str()), (503, "", "no"));
    assert_eq!(counts(), (before.0 + 1, before.1 + 1));
    // A budget that is used up is no limit of the breaker.
    let budget = BudgetLimits { percent: 0, floor_per_second: 0, saved_max: 0 };
    mesh.traffic("web", ServiceTraffic { budget, ..tried(2, AT_ONCE) });
    let before = counts();
    assert_eq!(Caller::new(vip).await.get("/").await.status, 503);
    assert_eq!((counts(), count(&mesh, Event::Retry, "budget_exhausted")), (before, 1));
}

/// `backendRequest` covers the response to its end, a try only its head.
#[tokio::test]
async fn the_time_of_a_backend_ends_with_its_response() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = scene(&mesh, &[addr], &[]).await;
    let soon = Some(Duration::from_secs(1));
    let slow = |mut stream: tokio::net::TcpStream| async move {
        head(&mut stream).await;
        say(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf").await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        say(&mut stream, "rest").await;
    };
    mesh.traffic("web", traffic(RetryPolicy { per_try_timeout: soon, ..retries() }));
    let mut client = connect(vip).await;
    say(&mut client, "GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
    let serving = tokio::spawn(slow(accept(&listener).await));
    until_text(&mut client, "halfrest").await;
    serving.await.unwrap();
    mesh.traffic("web", timed(Timeouts { backend_request: soon, ..Timeouts::default() }));
    let mut client = connect(vip).await;
    say(&mut client, "GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
    let serving = tokio::spawn(slow(accept(&listener).await));
    until_text(&mut client, "half").await;
    is_reset(&mut client).await;
    assert_eq!(mesh.records(2).await[1]["reason"], "response_timeout");
    serving.abort();
}

/// A server of the mesh that accepts and never greets: the attempt's time is over, and another endpoint is tried.
#[tokio::test]
async fn an_attempt_ends_in_time_while_it_shakes_hands() {
    let silent = std::net::TcpListener::bind("127.0.0.2:0").unwrap();
    let called = silent.local_addr().unwrap();
    let node = Node::new(&Ca::new());
    let vip = node.caller(called, declare_http).await;
    node.knows(vec![pod("server", "127.0.0.2")]);
    let soon = Some(Duration::from_millis(200));
    for (traffic, reason) in [
        (ServiceTraffic { connect_timeout: soon, ..ServiceTraffic::default() }, "upstream_connect_timeout"),
        (timed(Timeouts { backend_request: soon, ..Timeouts::default() }), "response_timeout"),
        (tried_for(soon), "response_timeout"),
    ] {
        node.mesh.traffic("web", traffic);
        let began = Instant::now();
        let mut client = connect(vip).await;
        say(&mut client, std::str::from_utf8(REQUEST).unwrap()).await;
        let head = read_until(&mut client, b"\r\n\r\n").await;
        assert!(head.contains(&format!("x-heddle-reason: {reason}")), "{head}");
        assert!(began.elapsed() < CONNECT_HANDSHAKE_TIMEOUT, "{reason}: {:?}", began.elapsed());
    }
}

/// The head of a unary call that takes long is the client's once the time of a try is over, and the call goes on: its time was for the head.
#[tokio::test]
async fn a_head_that_came_in_time_is_held_no_longer_than_a_try_takes() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = mesh.pod_calling("web", &[addr], |s| s.ports[0].name = "grpc".into()).await;
    let other = Conditions { grpc_codes: GrpcCodes::UNAVAILABLE, per_try_timeout: true, ..Conditions::untouched() };
    let policy = RetryPolicy { other, per_try_timeout: Some(Duration::from_millis(200)), ..retries() };
    let timed = traffic(policy.clone());
    mesh.traffic("web", timed.clone());
    let (heard, mut hears) = tokio::sync::mpsc::channel(1);
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let serving = tokio::spawn(async move {
        let mut server = server(&listener).await;
        while let Some(Ok((_, mut respond))) = server.accept().await {
            let answer = async {
                let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
                let mut sink = respond.send_response(head, false).unwrap();
                match hears.recv().await {
                    Some("0") => {
                        sink.send_data("\0\0\0\0\x02ok".into(), false).unwrap();
                        sink.send_trailers(trailers("0")).unwrap();
                    }
                    Some(code) => sink.send_trailers(trailers(code)).unwrap(),
                    None => {}
                }
            };
            counted.fetch_add(1, SeqCst);
            tokio::select! { () = answer => {}, _ = server.accept() => panic!("another stream") }
        }
    });
    let mut client = client(vip).await;
    for code in ["0", "14"] {
        let began = Instant::now();
        let (response, _) = client.send_request(call("Buy"), true).unwrap();
        // The server says no more before its head is heard.
        let mut body = soon(response).await.unwrap().into_body();
        assert!(began.elapsed() >= Duration::from_millis(200), "{:?}", began.elapsed());
        heard.send(code).await.unwrap();
        if code == "0" {
            assert_eq!(data(&mut body).await, "\0\0\0\0\x02ok");
        }
        assert!(soon(body.data()).await.is_none());
        assert_eq!(soon(body.trailers()).await.unwrap().unwrap()["grpc-status"], code);
    }
    assert_eq!((calls.load(SeqCst), count(&mesh, Event::Retry, "retried")), (2, 0));
    // Without a time for a try the head of a call that goes on is not held for ever either.
    mesh.traffic("web", traffic(RetryPolicy { per_try_timeout: None, ..policy }));
    let (response, _) = client.send_request(call("Watch"), true).unwrap();
    let mut body = soon(response).await.unwrap().into_body();
    heard.send("0").await.unwrap();
    assert_eq!(data(&mut body).await, "\0\0\0\0\x02ok");
    assert!(soon(body.data()).await.is_none());
    // The time of the whole call is another.
    let timeouts = Timeouts { request: Some(Duration::from_millis(1500)), ..Timeouts::default() };
    let request = RequestTraffic { timeouts, ..timed.request.clone() };
    mesh.traffic("web", ServiceTraffic { request, ..timed });
    let (response, _) = client.send_request(call("Buy"), true).unwrap();
    let mut body = soon(response).await.unwrap().into_body();
    assert!(soon(body.data()).await.unwrap().is_err());
    assert_eq!(mesh.records(4).await[3]["reason"], "route_timeout");
    serving.abort();
}

/// Who is dead is found out also where no request waits for as long as connecting may take, whoever says so.
#[tokio::test]
async fn a_time_that_is_over_while_connecting_counts_against_the_endpoint() {
    let soon = Some(Duration::from_millis(100));
    for what in ["request", "backendRequest", "idle", "grpc-timeout", "request, HTTP/2", "request, HTTP/2 both"] {
        let mesh = Mesh::new(1);
        let (_full, _waiting, silent) = silent_address().await;
        let is_http2 = what == "grpc-timeout" || what.ends_with("both");
        let protocol = if is_http2 { "kubernetes.io/h2c" } else { "http1" };
        let declare = |service: &mut heddle_model::Service| service.ports[0].app_protocol = Some(protocol.into());
        let vip = mesh.pod_calling("web", &[silent], declare).await;
        let timeouts = match what {
            "grpc-timeout" => Timeouts::default(),
            "backendRequest" => Timeouts { backend_request: soon, ..Timeouts::default() },
            "idle" => Timeouts { idle: soon, ..Timeouts::default() },
            _ => Timeouts { request: soon, ..Timeouts::default() },
        };
        mesh.traffic("web", ServiceTraffic { request: timed(timeouts).request, ..ejecting(Duration::from_secs(30)) });
        for n in 0..5 {
            // What is an attempt's time is followed by others.
            let is_early = what != "backendRequest";
            assert!(!is_early || count(&mesh, Event::Ejection, "consecutive_local") == 0, "{what}: before request {n}");
            if what.contains("HTTP/2") || what == "grpc-timeout" {
                let mut client = client(vip).await;
                let request = if what == "grpc-timeout" {
                    let mut request = call("Buy");
                    request.headers_mut().insert("grpc-timeout", "100m".parse().unwrap());
                    request
                } else {
                    super::http2::get("/")
                };
                let (response, _) = client.send_request(request, true).unwrap();
                super::support::soon(response).await.unwrap();
            } else {
                assert!(Caller::new(vip).await.get("/").await.status >= 503, "{what}");
            }
        }
        assert_eq!(count(&mesh, Event::Ejection, "consecutive_local"), 1, "{what}");
    }
}

/// A client that leaves while its request waits for a connection says nothing about the endpoint.
#[tokio::test]
async fn a_client_that_leaves_while_connecting_counts_against_nobody() {
    let mesh = Mesh::with(crate::Config { connect_timeout: Duration::from_secs(30), ..crate::Config::default() });
    let (_full, _waiting, silent) = silent_address().await;
    let vip = scene(&mesh, &[silent], &[]).await;
    mesh.traffic("web", ejecting(Duration::from_secs(30)));
    for n in 1..=12 {
        let began = Instant::now();
        let is_under_way = || mesh.sockets.taken.load(SeqCst) == n && began.elapsed() > Duration::from_millis(40);
        if n % 2 == 0 {
            let mut client = client(vip).await;
            let (response, _) = client.send_request(super::http2::get("/"), true).unwrap();
            until("its connection to be under way", is_under_way).await;
            drop(response);
            until("it to be given up", || mesh.proxy.pods()[0].requests == 0).await;
        } else {
            let mut client = connect(vip).await;
            say(&mut client, "GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
            until("its connection to be under way", is_under_way).await;
            reset(client);
            until("it to be given up", || mesh.proxy.pods()[0].requests == 0).await;
        }
    }
    assert_eq!(mesh.records(12).await.len(), 12);
    assert_eq!(count(&mesh, Event::Ejection, "consecutive_local"), 0);
}

/// Whoever leaves while its request waits for another attempt is noticed at once, and there is none.
#[tokio::test]
async fn a_client_that_leaves_between_attempts_ends_its_request() {
    let patiently = Backoff { least: 3 * PATIENCE, ..AT_ONCE };
    for (protocol, is_dead) in [("http1", true), ("http1", false), ("kubernetes.io/h2c", true)] {
        for how in ["ends", "resets", "resets its stream", "ends its streams"] {
            let mesh = Mesh::new(1);
            let bad = failing(usize::MAX, 503).await;
            let addr = if is_dead { dead_address().await } else { bad.addr };
            let declare = |service: &mut heddle_model::Service| service.ports[0].app_protocol = Some(protocol.into());
            let vip = mesh.pod_calling("web", &[addr], declare).await;
            mesh.traffic("web", tried(5, patiently));
            let is_waiting = || count(&mesh, Event::Retry, "retried") == 1;
            if how.contains("stream") {
                let mut client = client(vip).await;
                let (response, _) = client.send_request(super::http2::get("/"), true).unwrap();
                until("it to wait", is_waiting).await;
                drop(response);
                if how == "ends its streams" {
                    drop(client);
                }
            } else {
                let mut client = connect(vip).await;
                say(&mut client, "GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
                until("it to wait", is_waiting).await;
                if how == "resets" {
                    reset(client);
                }
            }
            let reason = mesh.only_reason().await;
            let expected = if how == "resets" { "downstream_reset" } else { "request_cancelled" };
            assert_eq!(reason, expected, "{protocol}, dead {is_dead}: {how}");
            assert_eq!(mesh.sockets.taken.load(SeqCst), 1, "{protocol}, dead {is_dead}: {how}");
        }
    }
}

/// What follows a request meanwhile is no leaving, and is answered in its turn.
#[tokio::test]
async fn what_is_sent_behind_a_request_waits_for_its_attempts() {
    let mesh = Mesh::new(1);
    let origin = failing(1, 503).await;
    let vip = scene(&mesh, &[origin.addr], &[]).await;
    mesh.traffic("web", tried(2, Backoff { least: Duration::from_millis(200), ..AT_ONCE }));
    let mut caller = Caller::new(vip).await;
    caller.send("PUT /a HTTP/1.1\r\nHost: web\r\nContent-Length: 3\r\n\r\none").await;
    until("it to wait", || count(&mesh, Event::Retry, "retried") == 1).await;
    caller.send("PUT /b HTTP/1.1\r\nHost: web\r\nContent-Length: 3\r\n\r\ntwo").await;
    for expected in ["one", "two"] {
        assert_eq!(caller.answer().await.body, expected);
    }
}

fn tried_for(per_try_timeout: Option<Duration>) -> ServiceTraffic {
    let policy = RetryPolicy { per_try_timeout, retries_max: 1, ..retries() };
    let request = RequestTraffic { retry: Some(Arc::new(policy)), ..RequestTraffic::default() };
    ServiceTraffic { request, budget: plenty(), ..ServiceTraffic::default() }
}

/// Of four endpoints two are not ready: of the two that may be called one may be ejected.
#[tokio::test]
async fn endpoints_that_are_not_ready_are_no_reserve() {
    let mesh = Mesh::new(1);
    let mut all: Vec<SocketAddr> = Vec::new();
    for _ in 0..4 {
        all.push(failing(usize::MAX, 500).await.addr);
    }
    let vip = scene(&mesh, &all, &[]).await;
    let mut service = service("web", vip, &all);
    declare_http(&mut service);
    let mut endpoints = service.ports[0].endpoints.to_vec();
    endpoints.iter_mut().skip(2).for_each(|endpoint| endpoint.ready = false);
    service.ports[0].endpoints = endpoints.into();
    mesh.apply(Delta { services: vec![(service.key(), Some(service))], ..Delta::default() });
    let outlier = OutlierSettings { success_rate: None, panic_percent: 0, ..OutlierSettings::default() };
    mesh.traffic("web", ServiceTraffic { outlier: Some(outlier), ..ServiceTraffic::default() });
    let mut caller = Caller::new(vip).await;
    for _ in 0..60 {
        assert_eq!(caller.get("/").await.status, 500);
    }
    assert_eq!(count(&mesh, Event::Ejection, "consecutive_5xx"), 1);
    assert!(count(&mesh, Event::Ejection, "capped") > 0);
}
