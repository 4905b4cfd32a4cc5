//! The chapter about traffic: a canary that moves while everybody calls, a version that fails and is left out, a retry that nobody notices, and
//! a breaker that opens.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use heddle_testkit::prelude::*;

use crate::account::{self, Record};
use crate::apps::{self, Connections, HTTP_1};
use crate::interrupt;
use crate::page::Page;
use crate::row;
use crate::story::{Demo, ECHO_PORT};

/// Who calls.
const CALLER: &str = "frontend";
/// The version that is tried, and that breaks.
const CANARY: &str = "web-2";
const ROUTE_FILE: &str = "routes.yaml";
const POLICY_FILE: &str = "traffic.yaml";
const SOON: Duration = Duration::from_secs(5);
/// What is promised of a change.
const LIVE_MAX: Duration = Duration::from_secs(1);
/// Requests of one look at the shares.
const REQUESTS: usize = 200;
/// Connections to db that the breaker lets be.
const PLACES: u64 = 4;

/// Of a hundred requests so many go to each version.
fn route(stable: u32, canary: u32) -> String {
    format!(
        "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: web, namespace: boutique}}
spec:
  parentRefs: [{{group: \"\", kind: Service, name: web}}]
  rules:
  - name: canary
    backendRefs:
    - {{name: web-v1, port: 80, weight: {stable}}}
    - {{name: web-v2, port: 80, weight: {canary}}}
"
    )
}

const TRAFFIC: &str = "\
apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: web, namespace: boutique}
spec:
  targetRefs: [{kind: Service, name: web}]
  retries: {statuses: [503]}
  outlierDetection: {consecutive5xx: 3, baseEjection: 2s}
---
apiVersion: heddle.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: db, namespace: boutique}
spec:
  targetRefs: [{kind: Service, name: db}]
  circuitBreaker: {service: {connections: 4}}
";

/// The chapter.
pub fn tell(demo: &Demo, page: &mut Page) -> Result<()> {
    page.chapter("Where traffic goes: a canary moves, a version fails, a breaker opens, and nobody's request is lost");
    let web = demo.service("web", 80);
    canary(demo, page, web)?;
    interrupt::check()?;
    failing(demo, page, web)?;
    interrupt::check()?;
    breaker(demo, page)?;
    demo.mesh.source().remove(POLICY_FILE)?;
    Ok(())
}

fn canary(demo: &Demo, page: &Page, web: SocketAddr) -> Result<()> {
    let caller = demo.mesh.pod(CALLER);
    page.remark(format!("a new file in the directory of objects, {ROUTE_FILE}: web-1 is version 1, web-2 version 2"));
    show(page, "+ ", &route(90, 10));
    demo.mesh.source().write_text(ROUTE_FILE, &route(90, 10))?;
    wait_until("the route is in force", SOON, || {
        let answer = apps::curl_page(caller, web, "/item/1");
        let is_routed = |record: Record<'_>| record.text("destination_service").starts_with("web-v");
        answer.is_ok() && demo.mesh_nodes()[0].access_log().iter().any(|value| is_routed(Record(value)))
    })?;
    let mut rows = vec![row!["weights", "requests", "web-1", "web-2", "failed"]];
    let first = shares(demo, web)?;
    rows.push(row!["90 : 10", REQUESTS, first.stable, first.canary, first.failed]);
    // While it moves, somebody goes on calling.
    let asking = apps::ask(caller, web, "/item/1")?;
    demo.mesh.source().write_text(ROUTE_FILE, &route(50, 50))?;
    let moved = Instant::now();
    let (second, began, ended) = loop {
        let began = moved.elapsed();
        let shares = shares(demo, web)?;
        if shares.canary * 10 > REQUESTS * 3 || began > SOON {
            break (shares, began, moved.elapsed());
        }
    };
    rows.push(row!["50 : 50", REQUESTS, second.stable, second.canary, second.failed]);
    let answers = asking.finish()?;
    page.table(&rows);
    let failed = answers.iter().filter(|answer| answer.status != 200).count();
    page.verdict(
        // One in ten of 200, with a deviation of 4.2; half of them, with one of 7.1.
        (4..=40).contains(&first.canary) && (65..=135).contains(&second.canary),
        "the shares are those of the weights",
    );
    page.verdict(
        first.failed + second.failed + failed == 0 && began < LIVE_MAX,
        format!(
            "the weight moved live, seen {} ms behind the edit, and of {} calls meanwhile {failed} failed",
            ended.as_millis(),
            answers.len() + REQUESTS
        ),
    );
    let records = demo.mesh_nodes()[0].access_log();
    let is_canary = |record: &Record<'_>| {
        record.is_at_source() && record.is_request() && record.text("destination_service").starts_with("web-v2.")
    };
    let routed: Vec<Record<'_>> = records.iter().map(Record).filter(is_canary).collect();
    let is_secure = |record: &&Record<'_>| record.text("transport") == "heddle";
    page.verdict(
        !routed.is_empty() && routed.iter().all(|record| is_secure(&record)),
        format!("all {} to web-2, on the other node, went by mutual TLS to spiffe://…/sa/{CANARY}", routed.len()),
    );
    demo.mesh.source().remove(ROUTE_FILE)?;
    Ok(())
}

fn failing(demo: &Demo, page: &Page, web: SocketAddr) -> Result<()> {
    page.remark(format!("the route goes, {POLICY_FILE} comes; then {CANARY} begins to answer 503 to everything:"));
    show(page, "+ ", TRAFFIC);
    demo.mesh.source().write_text(POLICY_FILE, TRAFFIC)?;
    wait_until("both serve by turns", SOON, || {
        shares(demo, web).is_ok_and(|shares| shares.failed == 0 && shares.stable.min(shares.canary) * 5 > REQUESTS)
    })?;
    let broken = Broken::new(&demo.programs_directory(), CANARY)?;
    let during = apps::curl(demo.mesh.pod(CALLER), web, HTTP_1, REQUESTS, Connections::OneForAll)?;
    let metrics = demo.mesh_nodes()[0].metrics()?;
    let of =
        |family: &str, label: &str| account::sum(&metrics, family, &["service=\"web\"", label]).unwrap_or_default();
    let retried = of("heddle_upstream_retries_total", "outcome=\"retried\"");
    let ejected = of("heddle_upstream_ejections_total", "cause=\"consecutive_5xx\"");
    let gateway = of("heddle_upstream_ejections_total", "cause=\"consecutive_gateway\"");
    page.verdict(
        during.failed == 0 && retried > 0.0,
        format!(
            "of {REQUESTS} requests {} failed: {retried} attempts failed there and were made again at web-1",
            during.failed
        ),
    );
    page.verdict(
        ejected + gateway > 0.0,
        format!(
            "then {CANARY} was ejected, and got one request at a time to prove itself (heddle_upstream_ejections_total)"
        ),
    );
    drop(broken);
    let healed = Instant::now();
    let is_back = wait_until("the version serves again", SOON * 3, || {
        shares(demo, web).is_ok_and(|shares| shares.failed == 0 && shares.canary * 5 > REQUESTS)
    });
    page.verdict(
        is_back.is_ok(),
        format!(
            "it recovers, one request finds that out, and {:.1} s later it has its share again",
            healed.elapsed().as_secs_f64()
        ),
    );
    Ok(())
}

fn breaker(demo: &Demo, page: &Page) -> Result<()> {
    let to = demo.service("db", ECHO_PORT);
    let db = dial(to.ip(), to.port());
    let caller = demo.mesh.pod(CALLER);
    let held = caller.hold(&db, PLACES)?;
    ensure!(held.ping()? == (PLACES, 0), "db does not answer\n{}", held.tail());
    let one_more = caller.connect(&db)?;
    let mut logged = Vec::new();
    let is_logged = wait_until("the record of what was refused", SOON, || {
        logged = demo.mesh_nodes()[0].access_log();
        logged.iter().any(|value| Record(value).text("reason") == "upstream_overflow")
    });
    page.verdict(
        one_more.summary.succeeded == 0 && is_logged.is_ok() && held.ping()? == (PLACES, 0),
        format!("db may have {PLACES} connections: the next is refused at once, upstream_overflow in the log; the {PLACES} go on"),
    );
    held.close()?;
    let after = wait_until("a place is free again", LIVE_MAX, || {
        caller.connect(&db).is_ok_and(|outcome| outcome.summary.succeeded == 1)
    });
    page.verdict(after.is_ok(), "they end, and the next is let through");
    Ok(())
}

/// Who answered.
#[derive(Clone, Copy, Default)]
struct Shares {
    stable: usize,
    canary: usize,
    failed: usize,
}

fn shares(demo: &Demo, web: SocketAddr) -> Result<Shares> {
    let fetches = apps::curl(demo.mesh.pod(CALLER), web, HTTP_1, REQUESTS, Connections::OneForAll)?;
    let canary = fetches.fetched.iter().filter(|fetched| fetched.server == CANARY).count();
    Ok(Shares { stable: fetches.fetched.len() - canary, canary, failed: fetches.failed })
}

/// A server that answers 503 as long as this lives.
struct Broken(PathBuf);

impl Broken {
    fn new(directory: &Path, pod: &str) -> Result<Self> {
        let mark = apps::broken_mark(directory, pod);
        std::fs::write(&mark, "").with_context(|| format!("cannot write {}", mark.display()))?;
        Ok(Self(mark))
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        // The directory goes with the mesh.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn show(page: &Page, mark: &str, text: &str) {
    for line in text.lines() {
        page.say(format!("{mark}{}", line.trim_end()));
    }
}
