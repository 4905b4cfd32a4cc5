//! How requests are carried (issue 6), on whole nodes: retries, their budget, times, breakers, ejections, faults, and changes under load.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use heddle_testkit::prelude::*;
use heddle_testkit::process::Process;
use heddle_testkit::programs::program;
use heddle_tests_netns::exposition::{scrape, sum};
use heddle_tests_netns::requests::{Origin, ask, backends, load, origin, route, traffic, wait_got};
use heddle_tests_netns::secure_peers::wait_certified;
use heddle_tests_netns::{SOON, wait_logged};
use serde_json::{Value, json};

/// `client` and `near` on node a, `far`, `more`, `last` and `own` on node b. Behind `web` are `near` and `far`; the others have Services
/// that are called as they are.
fn mesh(test: &str) -> Result<Mesh> {
    let mesh = Mesh::declare(test)
        .node("a")
        .pod("client")
        .pod("near")
        .node("b")
        .pod("far")
        .pod("more")
        .pod("last")
        .pod("own")
        .service("web")
        .port(80, 8080)
        .backed_by("near")
        .backed_by("far")
        .service("near")
        .port(80, 8080)
        .backed_by("near")
        .service("far")
        .port(80, 8080)
        .backed_by("far")
        .service("more")
        .port(80, 8080)
        .backed_by("more")
        .service("own")
        .port(80, 8080)
        .backed_by("own")
        .with_ca()
        .start()?;
    wait_certified(&mesh)?;
    Ok(mesh)
}

fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

fn cluster(mesh: &Mesh, service: &str) -> SocketAddr {
    at(mesh.service(service).cluster_v4(), 80)
}

/// A counter of node a's agent for `shop/<service>`.
fn counted(mesh: &Mesh, name: &str, service: &str, label: (&str, &str)) -> Result<u64> {
    let labels = [("namespace", "shop"), ("service", service), label];
    Ok(sum(&scrape(mesh.node("a"))?, name, &labels) as u64)
}

fn wait_counted(mesh: &Mesh, name: &str, service: &str, label: (&str, &str), least: u64) -> Result<()> {
    wait_until(&format!("{name} of {service} with {label:?} is {least}"), SOON * 2, || {
        counted(mesh, name, service, label).is_ok_and(|count| count >= least)
    })
    .with_context(|| format!("{:?}\n{}", counted(mesh, name, service, label), mesh.node("a").agent_tail()))
}

/// Retries that no budget ends.
fn plenty(attempts: u32) -> Value {
    json!({"retries": {"attempts": attempts}, "retryBudget": {"percent": 100, "minPerSecond": 1000}})
}

/// Waits until a server that fails always is asked so often for one request.
fn wait_attempts(mesh: &Mesh, origin: &Origin, service: &str, attempts: usize) -> Result<()> {
    wait_until(&format!("one request to {service} is {attempts} attempts"), SOON, || {
        let asked = || -> Result<usize> {
            let before = origin.requests()?;
            ask(mesh.pod("client"), cluster(mesh, service), "/", &[])?;
            Ok(origin.requests()? - before)
        };
        asked().is_ok_and(|count| count == attempts)
    })
    .with_context(|| mesh.node("a").agent_tail())
}

#[test]
fn a_client_sees_nothing_of_what_a_retry_saves() -> Result<()> {
    let mesh = mesh("resilience-retries")?;
    let client = mesh.pod("client");
    let (near, far) = (origin(mesh.pod("near"), 8080)?, origin(mesh.pod("far"), 8080)?);
    far.fails(503, 1, 1)?;
    near.fails(503, 1, 1)?;
    let got = ask(client, cluster(&mesh, "far"), "/", &[])?;
    ensure!(got.status == 503 && got.origin() == "far", "positive control: without a policy it is passed on: {got:?}");
    let policies = ["web", "far", "near"].map(|service| traffic(service, plenty(2)));
    mesh.source().write("traffic.yaml", &policies)?;
    for (origin, service) in [(&far, "far"), (&near, "near")] {
        wait_attempts(&mesh, origin, service, 3)?;
    }
    // One of two servers fails every other request.
    far.fails(503, 1, 2)?;
    near.works()?;
    let before = [near.requests()?, far.requests()?];
    let load = load(client, cluster(&mesh, "web"), 16, 0)?;
    load.wait_answered(1000)?;
    let went = load.stop()?;
    went.assert_none_failed()?;
    let extra = near.requests()? + far.requests()? - before[0] - before[1] - went.attempted;
    let failures = far.seen()?.iter().filter(|request| request["status"] == 503).count();
    ensure!(extra > 50 && failures > 10, "{extra} more than {went:?}");
    wait_counted(&mesh, "heddle_upstream_retries_total", "web", ("outcome", "retried"), extra as u64)?;
    ensure!(counted(&mesh, "heddle_upstream_retries_total", "web", ("outcome", "retried"))? == extra as u64);
    // Which attempt it is comes to the application as the agent counts it, through the mesh and on hand-over, and from nobody else.
    for (origin, service) in [(&far, "far"), (&near, "near")] {
        origin.fails(503, 1, 1)?;
        let lies = ["-H", "X-Heddle-Attempt: 9", "-H", "x-heddle-shadow: 1", "-H", "x-heddle-client: 9.9.9.9:9"];
        let got = ask(client, cluster(&mesh, service), "/told", &lies)?;
        ensure!(got.status == 503 && got.origin() == service, "{got:?}");
        let seen: Vec<Value> = origin.seen()?.into_iter().filter(|request| request["path"] == "/told").collect();
        let told: Vec<&Value> = seen.iter().map(|request| &request["fields"]["x-heddle-attempt"]).collect();
        ensure!(told == [&Value::Null, &json!("2"), &json!("3")], "{service}: {told:?}");
        let names = seen.iter().filter_map(|request| request["fields"].as_object()).flat_map(|fields| fields.keys());
        let leaked: Vec<&String> =
            names.filter(|name| name.starts_with("x-heddle-") && *name != "x-heddle-attempt").collect();
        ensure!(leaked.is_empty(), "{service}: {leaked:?}");
        // What may have done something is not sent again, and neither is what got its response.
        let before = origin.requests()?;
        ensure!(ask(client, cluster(&mesh, service), "/", &["--data", "x"])?.status == 503);
        ensure!(origin.requests()? == before + 1, "a POST is sent once");
    }
    wait_counted(&mesh, "heddle_upstream_retries_total", "far", ("outcome", "not_idempotent"), 1)
}

#[test]
fn a_dead_backend_sees_no_more_than_the_budget() -> Result<()> {
    let mesh = mesh("resilience-budget")?;
    let far = origin(mesh.pod("far"), 8080)?;
    far.fails(503, 1, 1)?;
    mesh.source().write("traffic.yaml", &[traffic("far", json!({"retries": {"attempts": 2}}))])?;
    wait_attempts(&mesh, &far, "far", 2)?;
    let (before, began) = (far.requests()?, Instant::now());
    let load = load(mesh.pod("client"), cluster(&mesh, "far"), 8, 0)?;
    load.wait_answered(800)?;
    let went = load.stop()?;
    ensure!(went.failed == went.attempted && went.of(&["far"]) == went.attempted, "{went:?}");
    let seen = far.requests()? - before;
    // A fifth more, one a second, and what was saved before.
    let most = went.attempted * 12 / 10 + began.elapsed().as_secs() as usize + 10;
    ensure!(seen > went.attempted && seen <= most, "{seen} attempts of {}, at most {most}", went.attempted);
    wait_counted(&mesh, "heddle_upstream_retries_total", "far", ("outcome", "budget_exhausted"), 100)?;
    // One that is gone is tried no more than that either.
    far.closes()?;
    let dials = |outcome: &str| counted(&mesh, "heddle_upstream_retries_total", "far", ("outcome", outcome));
    let (client, to) = (mesh.pod("client"), cluster(&mesh, "far"));
    wait_got(&mesh, client, to, "/", &[], |got| got.status == 503 && got.origin().is_empty())?;
    let (before, began) = (dials("retried")?, Instant::now());
    let load = crate::load(client, to, 8, 0)?;
    load.wait_answered(800)?;
    let went = load.stop()?;
    ensure!(went.failed == went.attempted, "{went:?}");
    let (retried, most) = (dials("retried")? - before, went.attempted as u64 / 5 + began.elapsed().as_secs() + 10);
    ensure!(retried > 0 && retried <= most, "{retried} retries of {} requests, at most {most}", went.attempted);
    Ok(())
}

/// A client that waits for an answer that does not come.
fn hangs(from: &Pod, to: SocketAddr) -> Result<Process> {
    let mut command = program("curl", "curl")?;
    command.args(["--silent", "--max-time", "60", &format!("http://{to}/hang")]);
    from.spawn("curl", command)
}

#[test]
fn times_are_kept_and_a_full_circuit_is_answered_at_once() -> Result<()> {
    let mesh = mesh("resilience-times")?;
    let (client, node) = (mesh.pod("client"), mesh.node("a"));
    let (far, near) = (origin(mesh.pod("far"), 8080)?, origin(mesh.pod("near"), 8080)?);
    for (service, origin) in [("far", &far), ("near", &near)] {
        for (timeouts, reason) in [
            (json!({"request": "300ms"}), "route_timeout"),
            (json!({"backendRequest": "300ms"}), "response_timeout"),
            (json!({"idle": "300ms"}), "stream_idle_timeout"),
            (json!({"stream": "300ms"}), "stream_duration_max"),
        ] {
            mesh.source().write("traffic.yaml", &[traffic(service, json!({"timeouts": timeouts}))])?;
            let began = Instant::now();
            let timed_out = |got: &heddle_tests_netns::requests::Got| (got.status, got.reason()) == (504, reason);
            wait_got(&mesh, client, cluster(&mesh, service), "/hang", &["--max-time", "2"], timed_out)?;
            ensure!(began.elapsed() >= Duration::from_millis(300), "{reason}");
            let pod = service;
            wait_logged(node, reason, |r| {
                r["reason"] == reason && r["status"] == 504 && r["path"] == "/hang" && r["destination_pod"] == pod
            })?;
            wait_got(&mesh, client, cluster(&mesh, service), "/", &[], |got| got.origin() == service)
                .with_context(|| format!("{reason}: others go on"))?;
        }
        let before = origin.requests()?;
        let breaker = json!({"circuitBreaker": {"service": {"requests": 2}}});
        mesh.source().write("traffic.yaml", &[traffic(service, breaker)])?;
        let full = |got: &heddle_tests_netns::requests::Got| (got.status, got.reason()) == (503, "upstream_overflow");
        let held = [hangs(client, cluster(&mesh, service))?, hangs(client, cluster(&mesh, service))?];
        wait_until("both are under way", SOON, || origin.requests().is_ok_and(|n| n >= before + 2))?;
        wait_got(&mesh, client, cluster(&mesh, service), "/full", &[], full)?;
        wait_logged(node, "the overflow", |r| {
            r["reason"] == "upstream_overflow" && r["status"] == 503 && r["flags"] != ""
        })?;
        wait_counted(&mesh, "heddle_upstream_overflows_total", service, ("limit", "requests"), 1)?;
        let other = if service == "far" { "near" } else { "far" };
        ensure!(ask(client, cluster(&mesh, other), "/", &[])?.status == 200, "another Service has its own");
        held[0].kill();
        wait_got(&mesh, client, cluster(&mesh, service), "/", &[], |got| got.status == 200)?;
        held[1].kill();
    }
    Ok(())
}

#[test]
fn an_endpoint_that_fails_is_left_alone_until_it_works() -> Result<()> {
    let mesh = mesh("resilience-outliers")?;
    let node = mesh.node("a");
    let (near, far) = (origin(mesh.pod("near"), 8080)?, origin(mesh.pod("far"), 8080)?);
    let policy = json!({"outlierDetection": {"consecutive5xx": 3, "baseEjection": "1s", "maxEjection": "1s", "successRate": {"disabled": true}}});
    mesh.source().write("traffic.yaml", &[traffic("web", policy)])?;
    far.fails(500, 1, 1)?;
    let load = load(mesh.pod("client"), cluster(&mesh, "web"), 4, 200)?;
    let ejections = "heddle_upstream_ejections_total";
    wait_counted(&mesh, ejections, "web", ("cause", "consecutive_5xx"), 1)?;
    load.mark(&["far"])?;
    load.wait_streak(50)?;
    far.works()?;
    load.mark(&["near"])?;
    wait_counted(&mesh, ejections, "web", ("cause", "readmitted"), 1)?;
    wait_until("it has its share again", SOON, || {
        load.went().is_ok_and(|went| went.of(&["far"]) > 20 && went.of(&["near"]) > 20)
    })?;
    let went = load.stop()?;
    let failed = far.seen()?;
    // Those that led to it, and the probes of it.
    ensure!((3..20).contains(&went.failed), "{went:?} {failed:?}");
    let log = node.agent_log();
    let endpoint = at(mesh.pod("far").v4(), 8080).to_string();
    for words in ["endpoint is ejected", "endpoint serves again"] {
        ensure!(log.lines().any(|l| l.contains(words) && l.contains(&endpoint)), "no {words:?} in {log}");
    }
    ensure!(!log.lines().any(|l| l.contains("is ejected") && l.contains(&mesh.pod("near").v4().to_string())), "{log}");
    drop(near);
    Ok(())
}

#[test]
fn faults_are_injected_where_they_match() -> Result<()> {
    let mesh = mesh("resilience-faults")?;
    let client = mesh.pod("client");
    let far = origin(mesh.pod("far"), 8080)?;
    let to = cluster(&mesh, "far");
    let faults = |faults: Value| mesh.source().write("traffic.yaml", &[traffic("far", json!({"faults": faults}))]);
    let tester = ["-H", "x-tester: yes"];
    faults(json!({"headers": [{"name": "x-tester", "exact": "yes"}], "abort": {"httpStatus": 418}}))?;
    wait_got(&mesh, client, to, "/", &tester, |got| (got.status, got.reason()) == (418, "fault_injected"))?;
    let before = far.requests()?;
    ensure!(ask(client, to, "/", &tester)?.status == 418 && far.requests()? == before, "it is not sent");
    ensure!(ask(client, to, "/", &[])?.origin() == "far", "others are");
    wait_logged(mesh.node("a"), "the abort", |r| r["reason"] == "fault_injected" && r["status"] == 418)?;
    wait_counted(&mesh, "heddle_faults_injected_total", "far", ("fault", "abort"), 2)?;
    faults(json!({"delay": {"duration": "400ms"}, "headers": [{"name": "x-tester", "regex": "y.*"}]}))?;
    wait_got(&mesh, client, to, "/", &tester, |got| got.origin() == "far")?;
    let began = Instant::now();
    ensure!(ask(client, to, "/", &tester)?.origin() == "far");
    ensure!(began.elapsed() >= Duration::from_millis(400), "{:?}", began.elapsed());
    wait_counted(&mesh, "heddle_faults_injected_total", "far", ("fault", "delay"), 2)?;
    // By chance: half of them.
    faults(json!({"abort": {"percent": 50, "httpStatus": 503}}))?;
    wait_got(&mesh, client, to, "/", &[], |got| got.reason() == "fault_injected")?;
    let load = load(client, to, 4, 0)?;
    load.mark(&[])?;
    load.wait_answered(600)?;
    let went = load.stop()?;
    // Six deviations of the share of so many.
    let (share, deviation) = (went.of(&["far"]) as f64 / went.attempted as f64, (0.25 / went.attempted as f64).sqrt());
    ensure!((share - 0.5).abs() < 6.0 * deviation, "{share} of {went:?}");
    Ok(())
}

/// Weights move a hundred times in ten seconds, endpoints come and go, and those that go do so without a word.
/// Within a second it holds for new connections, which all workers accept.
fn is_in_force(from: &Pod, to: SocketAddr, round: u32) -> Result<()> {
    let (changed, round) = (Instant::now(), round.to_string());
    let is_so = || Ok::<_, anyhow::Error>(ask(from, to, "/", &[])?.field("x-round") == Some(&*round));
    while !is_so()? {
        ensure!(changed.elapsed() < Duration::from_secs(1), "change {round} is not in force after a second");
    }
    for _ in 0..6 {
        ensure!(is_so()?, "change {round} is in force on one worker only");
    }
    Ok(())
}

#[test]
fn changes_under_load_fail_nothing() -> Result<()> {
    let mesh = mesh("resilience-changes")?;
    let pods = ["near", "far", "more", "last"];
    let origins = pods.iter().map(|name| origin(mesh.pod(name), 8080)).collect::<Result<Vec<_>>>()?;
    let own = origin(mesh.pod("own"), 8080)?;
    let web = cluster(&mesh, "own");
    // Two Services share the requests to `own`; behind both are the same two of four pods, and ever others.
    let weights = |one: u32, two: u32, round: u32| {
        let told = json!({"set": [{"name": "x-round", "value": round.to_string()}]});
        let filters = json!([{"type": "ResponseHeaderModifier", "responseHeaderModifier": told}]);
        let rule = json!({"backendRefs": backends(80, &[("web", one), ("far", two)]), "filters": filters});
        route("HTTPRoute", "own", "own", json!([rule]))
    };
    let endpoints = |service: &str, first: usize| {
        let of = |n: usize| mesh.endpoint(pods[n % pods.len()]);
        mesh.source().write_service(mesh.service(service), &[of(first), of(first + 1)])
    };
    for service in ["web", "far"] {
        endpoints(service, 0)?;
    }
    for origin in &origins[2..] {
        origin.closes()?;
    }
    // Of the few requests that are active at once, the default budget lets one or two be tried again: fewer than a dying server breaks.
    let policies = ["web", "far"].map(|service| traffic(service, plenty(3)));
    mesh.source().write("traffic.yaml", &policies)?;
    mesh.source().write("route.yaml", &[weights(1, 1, 0)])?;
    wait_got(&mesh, mesh.pod("client"), web, "/", &[], |got| got.status == 200 && got.origin() != "own")?;
    let own_before = own.requests()?;
    let load = load(mesh.pod("client"), web, 16, 300)?;
    load.mark(&[])?;
    let (mut next, beat) = (Instant::now(), Duration::from_millis(100));
    for round in 0..100_u32 {
        mesh.source().write("route.yaml", &[weights(round % 3, 1 + round % 2, round)])?;
        if round % 10 == 9 {
            is_in_force(mesh.pod("client"), web, round)?;
        }
        if round % 5 == 0 {
            let oldest = (round / 5) as usize;
            // The next one comes, both Services are told, and at once the oldest is gone with all its connections.
            origins[(oldest + 2) % pods.len()].opens()?;
            for service in ["web", "far"] {
                endpoints(service, oldest + 1)?;
            }
            origins[oldest % pods.len()].closes()?;
        }
        // What a look took is not caught up with: two servers in a row would be gone before anybody is told of the first.
        next = (next + beat).max(Instant::now());
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let went = load.stop()?;
    went.assert_none_failed().with_context(|| {
        let metrics = mesh.node("a").metrics().unwrap_or_default();
        metrics.lines().filter(|l| l.contains("_retries_total{")).collect::<Vec<_>>().join("\n")
    })?;
    ensure!(went.attempted > 1000 && pods.iter().all(|pod| went.of(&[pod]) > 50), "{went:?}");
    ensure!(own.requests()? == own_before, "the Service's own endpoint is not what its route names");
    Ok(())
}

#[test]
fn no_request_strays_while_an_agent_is_killed_and_comes_back() -> Result<()> {
    let mesh = mesh("resilience-kill")?;
    let client = mesh.pod("client");
    let (named, own, other) =
        (origin(mesh.pod("far"), 8080)?, origin(mesh.pod("own"), 8080)?, origin(mesh.pod("more"), 8080)?);
    // `own` is behind the Service that is called; `more` has a weight of 0, and a path that is not asked for.
    let rules = json!([
        {
            "matches": [{"path": {"type": "PathPrefix", "value": "/more"}}],
            "backendRefs": backends(80, &[("more", 1)]),
        },
        {"backendRefs": backends(80, &[("far", 1), ("more", 0)])},
    ]);
    mesh.source().write("route.yaml", &[route("HTTPRoute", "own", "own", rules)])?;
    let to = cluster(&mesh, "own");
    wait_got(&mesh, client, to, "/", &[], |got| got.origin() == "far")?;
    let before = [own.requests()?, other.requests()?];
    let load = load(client, to, 8, 200)?;
    for round in 0..4 {
        load.mark(&[])?;
        load.wait_answered(100)?;
        let node = mesh.node(if round % 2 == 0 { "a" } else { "b" });
        node.kill_agent()?;
        node.start_agent()?;
    }
    load.mark(&[])?;
    let went = load.wait_answered(100)?;
    ensure!(went.from.len() == 1 && went.of(&["far"]) > 0, "{went:?}");
    load.stop()?;
    ensure!([own.requests()?, other.requests()?] == before, "requests went where the route does not lead");
    ensure!(named.requests()? > 500);
    Ok(())
}
