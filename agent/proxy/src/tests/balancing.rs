//! Balancing and ejection against real servers: the shares of algorithms, slow endpoints, new ones, the odd one out, and panic.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use heddle_model::balance::{self, SlowStart};
use heddle_model::traffic::{Algorithm, Balance, OutlierSettings, RetryPolicy, ServiceTraffic, SuccessRate};
use heddle_model::{Delta, Family};
use heddle_telemetry::Event;

use super::http1::{declare_http, head, say};
use super::resilience::{count, ejecting, failing, retries, traffic};
use super::routing::*;
use super::support::*;

#[tokio::test]
async fn algorithms_share_as_they_say() {
    let mesh = Mesh::new(1);
    let origins = [Origin::named("a").await, Origin::named("b").await, Origin::named("c").await];
    let vip = scene(&mesh, &origins.clone().map(|origin| origin.addr), &[]).await;
    let mut caller = Caller::new(vip).await;
    let mut before = [0; 3];
    // By latency one that was slow once may get no more: it was asked to be found so.
    for (algorithm, least) in
        [(Algorithm::RoundRobin, 30), (Algorithm::Random, 12), (Algorithm::LeastRequest, 12), (Algorithm::PeakEwma, 1)]
    {
        let balance = Balance { algorithm, slow_start: None };
        mesh.traffic("web", ServiceTraffic { balance, ..ServiceTraffic::default() });
        for _ in 0..90 {
            assert_eq!(caller.get("/").await.status, 200);
        }
        let now = origins.clone().map(|origin| origin.requests());
        for (now, before) in now.iter().zip(before) {
            assert!(now - before >= least, "{algorithm:?}: {now} {before}");
        }
        before = now;
    }
}

/// One slow endpoint in three: peak-EWMA finds out and leaves it alone, turns do not. Unless a busy machine made both others as slow as
/// that once, which is remembered for long: then all is begun anew.
#[tokio::test]
async fn latency_moves_requests_away_from_a_slow_endpoint() {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (in_turn, by_latency) = shares_of_a_slow_one().await;
        assert_eq!(in_turn, 10, "a third in turn");
        // By chance no more than one in three hundred times.
        if by_latency <= 3 {
            break;
        }
        assert!(Instant::now() < deadline, "{by_latency} of 30 by latency");
    }
}

/// How many of 30 requests it gets in turn, and how many by latency.
async fn shares_of_a_slow_one() -> (usize, usize) {
    const LATE: Duration = Duration::from_millis(200);
    let mesh = Mesh::new(1);
    let (listener, slow) = backend().await;
    let served = Arc::new(AtomicUsize::new(0));
    let counted = served.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let counted = counted.clone();
            tokio::spawn(async move {
                loop {
                    let _ = head(&mut stream).await;
                    counted.fetch_add(1, SeqCst);
                    tokio::time::sleep(LATE).await;
                    say(&mut stream, &ok("slow")).await;
                }
            });
        }
    });
    let (fast, other) = (Origin::named("fast").await, Origin::named("fast").await);
    let vip = scene(&mesh, &[slow, fast.addr, other.addr], &[]).await;
    let mut shares = Vec::new();
    for algorithm in [Algorithm::RoundRobin, Algorithm::PeakEwma] {
        let balance = Balance { algorithm, slow_start: None };
        mesh.traffic("web", ServiceTraffic { balance, ..ServiceTraffic::default() });
        let before = served.load(SeqCst);
        let mut caller = Caller::new(vip).await;
        for _ in 0..30 {
            caller.get("/").await;
        }
        shares.push(served.load(SeqCst) - before);
    }
    let usage = mesh.proxy.usage(&key("web"), vip.port()).unwrap();
    let of = |addr| usage.endpoints.iter().find(|e| e.addr == addr).unwrap().latency.unwrap();
    assert!(of(slow) > LATE / 2 && (shares[1] > 3 || of(fast.addr).min(of(other.addr)) < of(slow)), "{usage:?}");
    (shares[0], shares[1])
}

/// One in three accepts and never answers: who only learned from answers would take it for as good as the others for ever.
#[tokio::test]
async fn an_endpoint_that_hangs_is_left_alone() {
    let mesh = Mesh::new(1);
    let (hangs, _holding) = silent_origin().await;
    let origins = [Origin::named("good").await, Origin::named("good").await];
    let vip = scene(&mesh, &[hangs, origins[0].addr, origins[1].addr], &[]).await;
    let balance = Balance { algorithm: Algorithm::PeakEwma, slow_start: None };
    let per_try_timeout = Some(Duration::from_millis(100));
    let policy = RetryPolicy { per_try_timeout, ..retries() };
    mesh.traffic("web", ServiceTraffic { balance, ..traffic(policy) });
    let latency = || {
        let usage = mesh.proxy.usage(&key("web"), vip.port()).unwrap();
        usage.endpoints.iter().find(|e| e.addr == hangs).unwrap().latency
    };
    let mut caller = Caller::new(vip).await;
    for _ in 0..100 {
        assert_eq!(caller.get("/").await.body, "good");
    }
    let timed_out = count(&mesh, Event::Retry, "retried");
    assert!((1..=5).contains(&timed_out), "{timed_out} of 100");
    assert!(latency() > Some(Duration::from_millis(50)), "{:?}", latency());
}

/// A client that leaves tells how long it waited, if that is news; one that is still sending tells nothing.
#[tokio::test]
async fn who_gives_up_tells_how_long_it_waited() {
    let mesh = Mesh::new(1);
    let (hangs, _holding) = silent_origin().await;
    let vip = scene(&mesh, &[hangs], &[]).await;
    let balance = Balance { algorithm: Algorithm::PeakEwma, slow_start: None };
    mesh.traffic("web", ServiceTraffic { balance, ..ServiceTraffic::default() });
    let latency = || mesh.proxy.usage(&key("web"), vip.port()).and_then(|usage| usage.endpoints[0].latency);
    for (request, told) in [
        ("PUT / HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\n\r\nhal", false),
        ("GET / HTTP/1.1\r\nHost: web\r\n\r\n", true),
    ] {
        let began = Instant::now();
        let mut client = connect(vip).await;
        say(&mut client, request).await;
        until("it to have waited", || began.elapsed() > Duration::from_millis(200)).await;
        reset(client);
        until("it to be given up", || mesh.proxy.pods()[0].requests == 0).await;
        assert_eq!(latency().is_some_and(|latency| latency > Duration::from_millis(100)), told, "{:?}", latency());
    }
}

#[tokio::test]
async fn no_more_are_ejected_than_may_be() {
    let mesh = Mesh::new(1);
    let mut origins = Vec::new();
    for _ in 0..4 {
        origins.push(failing(usize::MAX, 500).await);
    }
    let addresses: Vec<SocketAddr> = origins.iter().map(|origin| origin.addr).collect();
    let vip = scene(&mesh, &addresses, &[]).await;
    mesh.traffic("web", ejecting(Duration::from_secs(30)));
    let mut caller = Caller::new(vip).await;
    for _ in 0..100 {
        assert_eq!(caller.get("/").await.status, 500);
    }
    assert_eq!(count(&mesh, Event::Ejection, "consecutive_5xx"), 2, "half of four");
    assert!(count(&mesh, Event::Ejection, "capped") > 0);
}

/// One that is new takes a tenth of its share at first, and what it takes is told.
#[tokio::test]
async fn a_new_endpoint_starts_slowly() {
    let mesh = Mesh::new(1);
    let origins = [Origin::named("a").await, Origin::named("b").await, Origin::named("new").await];
    let all = origins.clone().map(|origin| origin.addr);
    let vip = scene(&mesh, &all[..2], &[]).await;
    let slow_start = Some(SlowStart::over(Duration::from_secs(3600)));
    for algorithm in [Algorithm::LeastRequest, Algorithm::Random, Algorithm::RoundRobin, Algorithm::PeakEwma] {
        mesh.traffic("web", ServiceTraffic { balance: Balance { algorithm, slow_start }, ..ServiceTraffic::default() });
        let mut service = service("web", vip, &all[..2]);
        declare_http(&mut service);
        mesh.apply(Delta { services: vec![(service.key(), Some(service))], ..Delta::default() });
        let mut caller = Caller::new(vip).await;
        for _ in 0..10 {
            assert_eq!(caller.get("/").await.status, 200);
        }
        // It is known before it is ready, and called by nobody.
        for is_ready in [false, true] {
            let mut service = self::service("web", vip, &all);
            declare_http(&mut service);
            let mut endpoints = service.ports[0].endpoints.to_vec();
            endpoints.iter_mut().filter(|e| e.addr == all[2]).for_each(|e| e.ready = is_ready);
            service.ports[0].endpoints = endpoints.into();
            mesh.apply(Delta { services: vec![(service.key(), Some(service))], ..Delta::default() });
            let before = origins[2].requests();
            assert_eq!(caller.get("/").await.status, 200);
            assert!(is_ready || origins[2].requests() == before);
        }
        let before = origins[2].requests();
        // 21 shares in all, of which it has one: about 19 of 400.
        for _ in 0..400 {
            assert_eq!(caller.get("/").await.status, 200);
        }
        let got = origins[2].requests() - before;
        let usage = mesh.proxy.usage(&key("web"), vip.port()).unwrap();
        // By latency all may go to the one that was fastest; and what one that was slow once, on a busy machine, does not get may be the new one's.
        let by_latency = algorithm == Algorithm::PeakEwma;
        let latency =
            |addr| usage.endpoints.iter().find(|e| e.addr == addr).and_then(|e| e.latency).unwrap_or_default();
        let was_slow = by_latency && all[..2].iter().any(|old| latency(*old) > 4 * latency(all[2]));
        let least = if by_latency { 0 } else { 3 };
        assert!((least..=60).contains(&got) || was_slow, "{algorithm:?}: {got} of 400, {usage:?}");
        let new = usage.endpoints.iter().filter(|e| e.age.is_some()).map(|e| e.addr).collect::<Vec<_>>();
        assert_eq!(new, [all[2]], "{algorithm:?}");
    }
}

/// One in five fails every other request: never twice in a row, yet it is found out.
#[tokio::test]
async fn the_odd_one_out_is_ejected() {
    let mesh = Mesh::new(1);
    let turns = AtomicUsize::new(0);
    let odd = Origin::start(
        move |_| {
            if turns.fetch_add(1, SeqCst).is_multiple_of(2) { status(500, "no") } else { ok("odd") }
        },
    )
    .await;
    let mut all = vec![odd.addr];
    for _ in 0..4 {
        all.push(Origin::named("even").await.addr);
    }
    let vip = scene(&mesh, &all, &[]).await;
    let outlier = OutlierSettings {
        success_rate: Some(SuccessRate { requests_min: 10, ..SuccessRate::default() }),
        // Time for fifty requests, one after another.
        interval: Duration::from_secs(2),
        ..OutlierSettings::default()
    };
    let balance = Balance { algorithm: Algorithm::RoundRobin, slow_start: None };
    mesh.traffic("web", ServiceTraffic { outlier: Some(outlier), balance, ..ServiceTraffic::default() });
    let mut caller = Caller::new(vip).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while count(&mesh, Event::Ejection, "success_rate") == 0 {
        caller.get("/").await;
        assert!(Instant::now() < deadline, "it is not found out");
    }
    let before = odd.requests();
    for _ in 0..50 {
        assert_eq!(caller.get("/").await.status, 200);
    }
    assert_eq!(odd.requests(), before);
    let ejections: u64 =
        mesh.upstream.counts().iter().filter(|(of, _)| of.event == Event::Ejection).map(|(_, n)| n).sum();
    assert_eq!(ejections, 1, "nobody else");
}

/// Where too few are left, all are used: an ejection must not make an outage of a slump.
#[tokio::test]
async fn ejections_do_not_count_in_panic() {
    for (panic_percent, is_used) in [(50, true), (0, false)] {
        let mesh = Mesh::new(1);
        let mut bad = Vec::new();
        for _ in 0..3 {
            bad.push(failing(usize::MAX, 500).await);
        }
        let good = Origin::named("good").await;
        let all: Vec<SocketAddr> = bad.iter().chain([&good]).map(|origin| origin.addr).collect();
        let vip = scene(&mesh, &all, &[]).await;
        let mut traffic = ejecting(Duration::from_secs(30));
        let outlier = traffic.outlier.as_mut().unwrap();
        (outlier.ejected_percent_max, outlier.panic_percent) = (100, panic_percent);
        let settings = *outlier;
        mesh.traffic("web", traffic);
        let mut caller = Caller::new(vip).await;
        let deadline = Instant::now() + Duration::from_secs(20);
        while count(&mesh, Event::Ejection, "consecutive_5xx") < 3 {
            caller.get("/").await;
            assert!(Instant::now() < deadline, "they are not ejected");
        }
        let asked = || bad.iter().map(Origin::requests).sum::<usize>();
        let before = asked();
        for _ in 0..60 {
            caller.get("/").await;
        }
        assert_eq!(asked() > before, is_used, "panic below {panic_percent} %");
        // What is explained of it is what happens.
        let service = mesh.snapshot().service("shop", "web").cloned().unwrap();
        let candidates = balance::candidates(&service, 0, Family::V4, "n1").unwrap();
        let told = mesh.proxy.usage(&key("web"), vip.port()).unwrap().ejected(&candidates, &settings);
        assert_eq!(told, (3, is_used));
    }
}
