//! Retries, timeouts, circuit breaking, outlier ejection and balancing, against servers that fail on purpose.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use heddle_model::routing::Rule;
use heddle_model::traffic::{
    Algorithm, Backoff, Balance, BudgetLimits, CircuitLimits, Conditions, GrpcCodes, Limits, OutlierSettings,
    RequestTraffic, RetryPolicy, ServiceTraffic, StatusSet, Timeouts,
};
use heddle_telemetry::Event;
use http::{HeaderMap, Response};

use super::http1::{accept, head, say, until_text};
use super::http2::{call, client, data, next, server};
use super::routing::*;
use super::support::*;

const FAST: Backoff = Backoff { least: Duration::ZERO, base: Duration::from_millis(1), max: Duration::from_millis(5) };

/// Retries as a policy that names none of it has them, but soon.
pub(super) fn retries() -> RetryPolicy {
    RetryPolicy { backoff: FAST, ..RetryPolicy::default() }
}

/// A budget that stops nobody.
pub(super) fn plenty() -> BudgetLimits {
    BudgetLimits { percent: 100, floor_per_second: 1000, saved_max: 1000 }
}

pub(super) fn traffic(retry: RetryPolicy) -> ServiceTraffic {
    let request = RequestTraffic { retry: Some(Arc::new(retry)), ..RequestTraffic::default() };
    ServiceTraffic { request, budget: plenty(), ..ServiceTraffic::default() }
}

pub(super) fn timed(timeouts: Timeouts) -> ServiceTraffic {
    let request = RequestTraffic { timeouts, ..RequestTraffic::default() };
    ServiceTraffic { request, ..ServiceTraffic::default() }
}

pub(super) fn count(mesh: &Mesh, event: Event, word: &str) -> u64 {
    let counts = mesh.upstream.counts();
    counts.iter().filter(|(labels, _)| labels.event == event && labels.word == word).map(|(_, count)| count).sum()
}

/// Answers `status` to the first `failures` requests, and 200 to those behind.
pub(super) async fn failing(failures: usize, status: u16) -> Origin {
    let left = AtomicUsize::new(failures);
    Origin::start(move |request| {
        let fails = left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
        if fails { self::status(status, "no") } else { ok(request.rsplit("\r\n").next().unwrap()) }
    })
    .await
}

#[tokio::test]
async fn a_retry_saves_a_request_its_body_and_its_headers() {
    let mesh = Mesh::new(1);
    let origin = failing(2, 503).await;
    let vip = scene(&mesh, &[origin.addr], &[]).await;
    let mut caller = Caller::new(vip).await;
    assert_eq!(caller.get("/").await.status, 503, "without a policy what a server says is passed on");
    mesh.traffic("web", traffic(retries()));
    let put = "PUT /x HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\n\r\nbody";
    let got = caller.ask(put).await;
    assert_eq!((got.status, got.body.as_str()), (200, "body"));
    assert_eq!(origin.requests(), 3);
    assert_eq!(count(&mesh, Event::Retry, "retried"), 1);
}

/// Chunks that came before the first answer, and those behind it, in the second attempt alike.
#[tokio::test]
async fn a_body_in_chunks_is_sent_again_whole() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = scene(&mesh, &[addr], &[]).await;
    mesh.traffic("web", traffic(retries()));
    let mut caller = Caller::new(vip).await;
    caller.send("PUT /x HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
    let mut first = accept(&listener).await;
    until_text(&mut first, "abc\r\n").await;
    caller.send("1\r\nZ\r\n").await;
    until_text(&mut first, "Z\r\n").await;
    reset(first);
    let mut second = accept(&listener).await;
    let got = until_text(&mut second, "Z\r\n").await;
    assert!(got.starts_with("PUT /x ") && got.ends_with("\r\n\r\n3\r\nabc\r\n1\r\nZ\r\n"), "{got}");
    caller.send("2\r\nef\r\n0\r\n\r\n").await;
    until_text(&mut second, "2\r\nef\r\n0\r\n\r\n").await;
    say(&mut second, &ok("whole")).await;
    assert_eq!(caller.answer().await.body, "whole");
}

#[tokio::test]
async fn what_is_not_idempotent_or_too_long_is_not_sent_twice() {
    let mesh = Mesh::new(1);
    let origin = failing(usize::MAX, 503).await;
    let vip = scene(&mesh, &[origin.addr], &[]).await;
    mesh.traffic("web", traffic(retries()));
    let mut caller = Caller::new(vip).await;
    let long = "x".repeat(70_000);
    for (request, attempts, word) in [
        ("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 0\r\n\r\n".to_owned(), 1, "not_idempotent"),
        ("GET / HTTP/1.1\r\nHost: web\r\n\r\n".to_owned(), 3, "limit_reached"),
        (format!("PUT / HTTP/1.1\r\nHost: web\r\nContent-Length: 70000\r\n\r\n{long}"), 1, "body_not_replayable"),
    ] {
        let (before, counted) = (origin.requests(), count(&mesh, Event::Retry, word));
        assert_eq!(caller.ask(&request).await.status, 503);
        assert_eq!(origin.requests() - before, attempts, "{word}");
        assert_eq!(count(&mesh, Event::Retry, word) - counted, 1, "{word}");
    }
    // A status that is not named is passed on.
    let policy = RetryPolicy {
        idempotent: Conditions { statuses: StatusSet::NONE.with(500), ..Conditions::default() },
        ..retries()
    };
    mesh.traffic("web", traffic(policy));
    let before = origin.requests();
    assert_eq!(caller.get("/").await.status, 503);
    assert_eq!(origin.requests() - before, 1);
}

#[tokio::test]
async fn another_endpoint_is_tried_first() {
    let mesh = Mesh::new(1);
    let (bad, good) = (failing(usize::MAX, 503).await, Origin::named("good").await);
    let dead = dead_address().await;
    let vip = scene(&mesh, &[bad.addr, good.addr, dead], &[]).await;
    mesh.traffic("web", traffic(retries()));
    let mut caller = Caller::new(vip).await;
    for _ in 0..30 {
        assert_eq!(caller.get("/").await.body, "good");
    }
    assert_eq!(good.requests(), 30);
    assert!(bad.requests() <= 30, "never twice for one request: {}", bad.requests());
}

#[tokio::test]
async fn a_reset_before_the_response_is_retried_and_none_behind_its_first_byte() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = scene(&mesh, &[addr], &[]).await;
    mesh.traffic("web", traffic(retries()));
    let mut caller = Caller::new(vip).await;
    caller.send("GET /a HTTP/1.1\r\nHost: web\r\n\r\n").await;
    let mut first = accept(&listener).await;
    head(&mut first).await;
    reset(first);
    let mut second = accept(&listener).await;
    assert!(head(&mut second).await.starts_with("GET /a "));
    say(&mut second, &ok("saved")).await;
    assert_eq!(caller.answer().await.body, "saved");
    // Half a head was nothing for the client yet; half a body was.
    caller.send("GET /b HTTP/1.1\r\nHost: web\r\n\r\n").await;
    head(&mut second).await;
    say(&mut second, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await;
    drop(second);
    let mut client = connect(vip).await;
    say(&mut client, "GET /c HTTP/1.1\r\nHost: web\r\n\r\n").await;
    let mut third = accept(&listener).await;
    assert!(head(&mut third).await.starts_with("GET /c "), "/b is not sent again");
}

#[tokio::test]
async fn retry_after_and_pushback_are_honoured() {
    let mesh = Mesh::new(1);
    let late = Origin::start(|_| "HTTP/1.1 503 No\r\nRetry-After: 60\r\nContent-Length: 0\r\n\r\n".to_owned()).await;
    let vip = scene(&mesh, &[late.addr], &[]).await;
    mesh.traffic("web", traffic(retries()));
    let mut caller = Caller::new(vip).await;
    assert_eq!(caller.get("/").await.status, 503);
    assert_eq!((late.requests(), count(&mesh, Event::Retry, "wait_too_long")), (1, 1));
    // Of a second, the wait is one.
    let turns = AtomicUsize::new(0);
    let busy = Origin::start(move |_| match turns.fetch_add(1, SeqCst) {
        0 => "HTTP/1.1 503 No\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n".to_owned(),
        _ => ok("later"),
    })
    .await;
    let vip = scene(&mesh, &[busy.addr], &[]).await;
    let began = Instant::now();
    assert_eq!(Caller::new(vip).await.get("/").await.body, "later");
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
}

/// A gRPC server says when to come again, or that nobody need.
#[tokio::test]
async fn pushback_is_honoured() {
    for (pushback, attempts) in [("300", 2), ("-1", 1)] {
        let mesh = Mesh::new(1);
        let (listener, addr) = backend().await;
        let vip = mesh.pod_calling("web", &[addr], |s| s.ports[0].name = "grpc".into()).await;
        let other = Conditions { grpc_codes: GrpcCodes::UNAVAILABLE, ..Conditions::untouched() };
        mesh.traffic("web", traffic(RetryPolicy { other, ..retries() }));
        let mut client = client(vip).await;
        let (response, _) = client.send_request(call("Buy"), true).unwrap();
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        let serving = tokio::spawn(async move {
            let mut server = server(&listener).await;
            while let Some(Ok((_, mut respond))) = server.accept().await {
                let head = Response::builder().header("content-type", "application/grpc");
                let head = match counted.fetch_add(1, SeqCst) {
                    0 => head.header("grpc-status", "14").header("grpc-retry-pushback-ms", pushback),
                    _ => head.header("grpc-status", "0"),
                };
                respond.send_response(head.body(()).unwrap(), true).unwrap();
            }
        });
        let began = Instant::now();
        let status = soon(response).await.unwrap().headers()["grpc-status"].to_str().unwrap().to_owned();
        assert_eq!((status == "0", calls.load(SeqCst)), (attempts == 2, attempts), "{pushback}");
        assert!(attempts == 1 || began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
        serving.abort();
    }
}

/// A dead backend sees the offered load, and what the budget adds to it: a fifth, and one a second.
#[tokio::test]
async fn a_dead_backend_sees_no_more_than_the_budget() {
    let mesh = Mesh::new(1);
    let origin = failing(usize::MAX, 503).await;
    let vip = scene(&mesh, &[origin.addr], &[]).await;
    mesh.traffic("web", ServiceTraffic { budget: BudgetLimits::default(), ..traffic(retries()) });
    let began = Instant::now();
    const CLIENTS: usize = 10;
    const REQUESTS: usize = 50;
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        callers.spawn(async move {
            let mut caller = Caller::new(vip).await;
            for _ in 0..REQUESTS {
                assert_eq!(caller.get("/").await.status, 503);
            }
        });
    }
    while let Some(done) = soon(callers.join_next()).await {
        done.unwrap();
    }
    let most = CLIENTS * REQUESTS * 12 / 10 + began.elapsed().as_secs() as usize + 2;
    assert!(origin.requests() <= most, "{} of {most}", origin.requests());
    assert!(origin.requests() > CLIENTS * REQUESTS, "some were retried");
    assert!(count(&mesh, Event::Retry, "budget_exhausted") > 0);
}

#[tokio::test]
async fn times_are_kept_and_told_apart() {
    let mesh = Mesh::new(1);
    let (addr, _holding) = silent_origin().await;
    let vip = scene(&mesh, &[addr], &[]).await;
    let soon = Some(Duration::from_millis(200));
    for (timeouts, reason) in [
        (Timeouts { request: soon, ..Timeouts::default() }, "route_timeout"),
        (Timeouts { backend_request: soon, ..Timeouts::default() }, "response_timeout"),
        (Timeouts { idle: soon, ..Timeouts::default() }, "stream_idle_timeout"),
        (Timeouts { stream: soon, ..Timeouts::default() }, "stream_duration_max"),
    ] {
        mesh.traffic("web", timed(timeouts));
        let mut caller = Caller::new(vip).await;
        let began = Instant::now();
        let got = caller.get("/").await;
        assert_eq!((got.status, got.reason()), (504, reason));
        assert!(began.elapsed() >= Duration::from_millis(200), "{reason}");
        let mut http2 = client(vip).await;
        let (response, _) = http2.send_request(super::http2::get("/"), true).unwrap();
        let response = super::support::soon(response).await.unwrap();
        assert_eq!(
            (response.status().as_u16(), response.headers()["x-heddle-reason"].to_str().unwrap()),
            (504, reason)
        );
    }
}

#[tokio::test]
async fn an_attempt_that_takes_too_long_is_followed_by_another() {
    let mesh = Mesh::new(1);
    let (hangs, _holding) = silent_origin().await;
    let good = Origin::named("good").await;
    let vip = scene(&mesh, &[hangs, good.addr], &[]).await;
    // The good one may be slow now and then too, which another attempt mends.
    let per_try = Some(Duration::from_millis(250));
    mesh.traffic("web", traffic(RetryPolicy { per_try_timeout: per_try, retries_max: 20, ..retries() }));
    let mut caller = Caller::new(vip).await;
    for _ in 0..10 {
        assert_eq!(caller.get("/").await.body, "good");
    }
}

#[tokio::test]
async fn a_grpc_deadline_is_kept_and_told_on() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = mesh.pod_calling("web", &[addr], |s| s.ports[0].name = "grpc".into()).await;
    let mut client = client(vip).await;
    let mut request = call("Buy");
    request.headers_mut().insert("grpc-timeout", "3S".parse().unwrap());
    let (response, _) = client.send_request(request, true).unwrap();
    let mut server = server(&listener).await;
    let (asked, _respond) = next(&mut server).await;
    let left = asked.headers()["grpc-timeout"].to_str().unwrap().to_owned();
    let micros: u64 = left.strip_suffix('u').expect(&left).parse().unwrap();
    assert!((1..3_000_000).contains(&micros), "{left}");
    let _serving = super::http2::keep_going(server);
    let response = soon(response).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "4");
    assert_eq!(response.headers()["x-heddle-reason"], "grpc_deadline");
}

pub(super) fn trailers(code: &str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", code.parse().unwrap());
    trailers
}

/// UNAVAILABLE as trailers alone, and as trailers behind a head; then an answer.
#[tokio::test]
async fn grpc_codes_are_retried_wherever_they_stand() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = mesh.pod_calling("web", &[addr], |s| s.ports[0].name = "grpc".into()).await;
    let other = Conditions { grpc_codes: GrpcCodes::UNAVAILABLE, ..Conditions::untouched() };
    mesh.traffic("web", traffic(RetryPolicy { other, ..retries() }));
    let mut client = client(vip).await;
    let (response, mut sink) = client.send_request(call("Buy"), false).unwrap();
    sink.send_data("\0\0\0\0\x03abc".into(), true).unwrap();
    let serving = tokio::spawn(async move {
        let mut server = server(&listener).await;
        for attempt in 0..3 {
            let (request, mut respond) = next(&mut server).await;
            let mut body = request.into_body();
            tokio::select! {
                got = data(&mut body) => assert_eq!(got, "\0\0\0\0\x03abc", "attempt {attempt}"),
                _ = server.accept() => panic!("another stream"),
            }
            let head = Response::builder().header("content-type", "application/grpc");
            match attempt {
                0 => drop(respond.send_response(head.header("grpc-status", "14").body(()).unwrap(), true).unwrap()),
                1 => {
                    let mut sink = respond.send_response(head.body(()).unwrap(), false).unwrap();
                    sink.send_trailers(trailers("14")).unwrap();
                }
                _ => {
                    let mut sink = respond.send_response(head.body(()).unwrap(), false).unwrap();
                    sink.send_data("\0\0\0\0\x02ok".into(), false).unwrap();
                    sink.send_trailers(trailers("0")).unwrap();
                }
            }
        }
        while let Some(Ok(_)) = server.accept().await {}
    });
    let mut body = soon(response).await.unwrap().into_body();
    assert_eq!(data(&mut body).await, "\0\0\0\0\x02ok");
    assert_eq!(soon(body.trailers()).await.unwrap().unwrap()["grpc-status"], "0");
    assert_eq!(count(&mesh, Event::Retry, "retried"), 2);
    serving.abort();
}

#[tokio::test]
async fn a_full_circuit_is_answered_at_once() {
    let mesh = Mesh::new(1);
    let (addr, _holding) = silent_origin().await;
    let vip = scene(&mesh, &[addr], &[]).await;
    let limits = Limits { requests_max: 2, ..Limits::default() };
    mesh.traffic(
        "web",
        ServiceTraffic {
            circuit: CircuitLimits { service: limits, ..CircuitLimits::default() },
            ..ServiceTraffic::default()
        },
    );
    let mut waiting = Vec::new();
    for _ in 0..2 {
        let mut caller = Caller::new(vip).await;
        caller.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        waiting.push(caller);
    }
    until("both to be under way", || mesh.proxy.pods()[0].requests == 2).await;
    let got = Caller::new(vip).await.get("/").await;
    assert_eq!((got.status, got.reason()), (503, "upstream_overflow"));
    assert_eq!(count(&mesh, Event::Overflow, "requests"), 1);
    drop(waiting.pop());
    until("one to be gone", || mesh.proxy.pods()[0].requests == 1).await;
    let mut caller = Caller::new(vip).await;
    caller.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
    until("another in its place", || mesh.proxy.pods()[0].requests == 2).await;
}

#[tokio::test]
async fn an_endpoint_that_is_full_leaves_requests_to_others() {
    for port in ["http", "main"] {
        a_full_endpoint_leaves_requests_to_others(port).await;
    }
}

/// `port`: its name, which may leave open what it speaks.
async fn a_full_endpoint_leaves_requests_to_others(port: &str) {
    let mesh = Mesh::new(1);
    let (hangs, _holding) = silent_origin().await;
    let good = Origin::named("good").await;
    let vip = mesh.pod_calling("web", &[hangs, good.addr], |service| service.ports[0].name = port.into()).await;
    let endpoint = Limits { requests_max: 1, ..Limits::default() };
    let settings = ServiceTraffic {
        circuit: CircuitLimits { endpoint, ..CircuitLimits::default() },
        balance: Balance { algorithm: Algorithm::RoundRobin, slow_start: None },
        ..ServiceTraffic::default()
    };
    mesh.traffic("web", settings);
    let mut waiting = Vec::new();
    // In turn: one of two hangs.
    for _ in 0..2 {
        let mut caller = Caller::new(vip).await;
        caller.send("GET / HTTP/1.1\r\nHost: web\r\n\r\n").await;
        waiting.push(caller);
    }
    until("one answer", || good.requests() == 1).await;
    until("the other to hang", || mesh.proxy.pods()[0].requests == 1).await;
    for _ in 0..10 {
        let mut caller = Caller::new(vip).await;
        for _ in 0..2 {
            assert_eq!(caller.get("/").await.body, "good", "a port named {port}");
        }
    }
}

pub(super) fn ejecting(base: Duration) -> ServiceTraffic {
    let outlier =
        OutlierSettings { ejection_base: base, success_rate: None, panic_percent: 0, ..OutlierSettings::default() };
    ServiceTraffic { outlier: Some(outlier), ..ServiceTraffic::default() }
}

#[tokio::test]
async fn an_endpoint_that_fails_is_ejected_and_probed_with_one_request() {
    let mesh = Mesh::new(1);
    let (bad, good) = (failing(5, 500).await, Origin::named("good").await);
    let vip = scene(&mesh, &[bad.addr, good.addr], &[]).await;
    let ejection = Duration::from_millis(400);
    mesh.traffic("web", ejecting(ejection));
    let mut caller = Caller::new(vip).await;
    // No later than the moment of its ejection: when the request was sent that brings it about.
    let (mut failed, mut sent) = (0, Instant::now());
    while failed < 5 {
        sent = Instant::now();
        failed += usize::from(caller.get("/").await.status == 500);
    }
    assert_eq!(count(&mesh, Event::Ejection, "consecutive_5xx"), 1);
    let before = bad.requests();
    loop {
        assert_eq!(caller.get("/").await.status, 200);
        let now = bad.requests();
        // It ends on a millisecond, up to one early.
        if sent.elapsed() + Duration::from_millis(1) >= ejection {
            break;
        }
        assert_eq!(now, before, "nothing goes to it");
    }
    // It has recovered: one request proves that, and it takes its share again.
    let deadline = Instant::now() + PATIENCE;
    while bad.requests() < before + 5 {
        assert_eq!(caller.get("/").await.status, 200);
        assert!(Instant::now() < deadline, "it is not used again");
    }
    assert_eq!(count(&mesh, Event::Ejection, "readmitted"), 1);
}

#[tokio::test]
async fn what_a_rule_says_counts_before_what_its_service_does() {
    let mesh = Mesh::new(1);
    let (addr, _holding) = silent_origin().await;
    let vip = scene(&mesh, &[], &[("v1", &[addr])]).await;
    mesh.traffic("v1", timed(Timeouts { request: Some(Duration::from_secs(60)), ..Timeouts::default() }));
    let timeouts = Timeouts { request: Some(Duration::from_millis(100)), ..Timeouts::default() };
    let traffic = RequestTraffic { timeouts, ..RequestTraffic::default() };
    mesh.route(route("r", vec![Rule { traffic, ..rule("/", &[("v1", 1)]) }]));
    let got = Caller::new(vip).await.get("/").await;
    assert_eq!((got.status, got.reason()), (504, "route_timeout"));
}

/// Weights move, endpoints come and go, and no request fails; each change is in force at once.
#[tokio::test]
async fn changes_under_load_fail_nothing() {
    let mesh = Arc::new(Mesh::new(2));
    let (one, two) = (Origin::named("one").await, Origin::named("two").await);
    let vip = scene(&mesh, &[], &[("one", &[one.addr]), ("two", &[two.addr])]).await;
    mesh.route(route("r", vec![rule("/", &[("one", 1), ("two", 1)])]));
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let failures = Arc::new(Mutex::new(Vec::new()));
    let answered = Arc::new([const { AtomicUsize::new(0) }; 4]);
    let mut callers = tokio::task::JoinSet::new();
    for n in 0..4 {
        let (stop, failures, answered) = (stop.clone(), failures.clone(), answered.clone());
        callers.spawn(async move {
            let mut caller = Caller::new(vip).await;
            while !stop.load(SeqCst) {
                let got = caller.get("/").await;
                if got.status != 200 {
                    failures.lock().unwrap().push(got.head);
                }
                answered[n].fetch_add(1, SeqCst);
            }
        });
    }
    // Until each caller has so many answers more.
    let answers = async |more: usize| {
        let least = answered.each_ref().map(|count| count.load(SeqCst) + more);
        until("answers", || answered.iter().zip(least).all(|(count, least)| count.load(SeqCst) >= least)).await;
    };
    for round in 0..50_u32 {
        mesh.route(route("r", vec![rule("/", &[("one", round % 3), ("two", 1 + round % 2)])]));
        answers(2).await;
    }
    mesh.route(route("r", vec![rule("/", &[("one", 0), ("two", 1)])]));
    // The first may be under way already.
    answers(1).await;
    let before = one.requests();
    answers(50).await;
    assert_eq!(one.requests(), before, "a weight of 0 is none, on every worker");
    stop.store(true, SeqCst);
    while let Some(done) = soon(callers.join_next()).await {
        done.unwrap();
    }
    assert_eq!(failures.lock().unwrap().as_slice(), [] as [String; 0]);
    assert!(one.requests() > 0 && two.requests() > 0);
}

#[tokio::test]
async fn connections_of_bytes_have_their_places_too() {
    let mesh = Mesh::new(1);
    let (addr, _holding) = silent_origin().await;
    let vip = mesh.pod("web", &[addr]).await;
    let service = Limits { connections_max: 2, ..Limits::default() };
    let circuit = CircuitLimits { service, ..CircuitLimits::default() };
    mesh.traffic("web", ServiceTraffic { circuit, ..ServiceTraffic::default() });
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut stream = connect(vip).await;
        say(&mut stream, "x").await;
        open.push(stream);
    }
    until("both to be open", || mesh.sockets.taken.load(SeqCst) == 2).await;
    is_refused(vip).await;
    assert_eq!(mesh.records(1).await[0]["reason"], "upstream_overflow");
    reset(open.pop().unwrap());
    until("one to be gone", || mesh.proxy.pods()[0].connections == 1).await;
    let mut again = connect(vip).await;
    say(&mut again, "x").await;
    until("another in its place", || mesh.sockets.taken.load(SeqCst) == 3).await;
}

/// A switched connection is no response: only what is said of streams ends it.
#[tokio::test]
async fn a_tunnel_outlives_the_time_of_requests() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = scene(&mesh, &[addr], &[]).await;
    let (request, idle) = (Some(Duration::from_secs(1)), Some(Duration::from_secs(3)));
    mesh.traffic("web", timed(Timeouts { request, backend_request: request, idle, ..Timeouts::default() }));
    let mut client = connect(vip).await;
    say(&mut client, "GET /ws HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n").await;
    let mut server = accept(&listener).await;
    head(&mut server).await;
    say(&mut server, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n").await;
    assert!(head(&mut client).await.starts_with("HTTP/1.1 101 "));
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        passes(&mut client, &mut server, b"still here").await;
    }
    // And then nobody says a word.
    is_reset(&mut client).await;
    assert_eq!(mesh.only_reason().await, "stream_idle_timeout");
}

/// That a port can be connected to says nothing about requests that fail there.
#[tokio::test]
async fn a_connection_that_detection_made_is_no_success() {
    let mesh = Mesh::new(1);
    let bad = Origin::start(|_| status(500, "no")).await;
    let vip = mesh.pod_calling("web", &[bad.addr], |service| service.ports[0].name = "main".into()).await;
    mesh.traffic("web", ejecting(Duration::from_secs(30)));
    for _ in 0..5 {
        assert_eq!(Caller::new(vip).await.get("/").await.status, 500);
    }
    assert_eq!(count(&mesh, Event::Ejection, "consecutive_5xx"), 1);
}

/// One place for a connection that turns out to be of requests, not two.
#[tokio::test]
async fn a_detected_connection_has_one_place() {
    let mesh = Mesh::new(1);
    let origin = Origin::named("origin").await;
    let vip = mesh.pod_calling("web", &[origin.addr], |service| service.ports[0].name = "main".into()).await;
    let service = Limits { connections_max: 1, ..Limits::default() };
    let circuit = CircuitLimits { service, endpoint: service };
    mesh.traffic("web", ServiceTraffic { circuit, ..ServiceTraffic::default() });
    let mut caller = Caller::new(vip).await;
    for _ in 0..3 {
        assert_eq!(caller.get("/").await.status, 200);
    }
}

/// UNAVAILABLE as trailers alone is one failure, not two.
#[tokio::test]
async fn a_grpc_failure_counts_once() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = mesh.pod_calling("web", &[addr], |s| s.ports[0].name = "grpc".into()).await;
    mesh.traffic("web", ejecting(Duration::from_secs(30)));
    let serving = tokio::spawn(async move {
        let mut server = server(&listener).await;
        while let Some(Ok((_, mut respond))) = server.accept().await {
            let head = Response::builder().header("content-type", "application/grpc").header("grpc-status", "14");
            respond.send_response(head.body(()).unwrap(), true).unwrap();
        }
    });
    let mut client = client(vip).await;
    let ejected =
        || count(&mesh, Event::Ejection, "consecutive_gateway") + count(&mesh, Event::Ejection, "consecutive_5xx");
    for n in 1..=5 {
        assert_eq!(ejected(), 0, "before call {n}");
        let (response, _) = client.send_request(call("Buy"), true).unwrap();
        assert_eq!(soon(response).await.unwrap().headers()["grpc-status"], "14");
        mesh.records(n).await;
    }
    assert_eq!(ejected(), 1);
    serving.abort();
}
