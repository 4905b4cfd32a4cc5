//! Strictness as it is lived (issue 3, demand 3): the codec's own cases and sequences of messages, sent over raw sockets through real
//! agents to real origins. Proved for each: what the client gets, what the origin understood (so that no reader on the way took one
//! request for two), what becomes of the connection, and that an honest client behind it is served properly.
//!
//! The strict origin is h11, the parser of uvicorn and hypercorn, which refuses what the grammar does not have. The lenient one is
//! eventlet on Python's own http.server, told to forgive: it takes nearly anything, so what passes us shows there. Both are unmodified.

#[path = "strictness/case.rs"]
mod case;
#[path = "../../../agent/http/tests/support/mod.rs"]
mod codec;
#[path = "strictness/judge.rs"]
mod judge;

#[path = "strictness/stage.rs"]
mod stage;

use std::time::Instant;

use anyhow::{Result, ensure};
use case::{Case, Origin};
use heddle_testkit::prelude::*;
use heddle_testkit::process::Process;
use judge::Evidence;
use serde_json::{Value, json};
use stage::{
    CONCURRENCY, PATIENCE_SECONDS, access_log, address, finish_client, hex, in_front_of, origin_log, report,
    start_client, start_origin, write,
};

#[test]
fn requests_are_understood_alike_by_everyone_or_refused() -> Result<()> {
    let both = case::sequences().into_iter().filter(|c| c.origin == Origin::Both);
    let cases = case::numbered(case::requests().into_iter().chain(both));
    ensure!(cases.len() >= 150, "{} cases", cases.len());
    let ports: Vec<u16> = cases.iter().map(|c| c.port).collect();
    // One worker: an honest client that follows finds the very pool that a bad one could have poisoned.
    let topology = Mesh::declare("strictness")
        .node("a")
        .agent_arguments(&["--workers", "1"])
        .pod("client")
        .pod("bare")
        .unmeshed()
        .node("b")
        .agent_arguments(&["--workers", "1"])
        .pod("strict")
        .pod("lenient")
        .pod("detected")
        .pod("outside")
        .unmeshed()
        .topology();
    let topology = in_front_of(in_front_of(topology, "strict", &ports, Some("http")), "lenient", &ports, Some("http"));
    let topology = in_front_of(topology, "detected", &ports, None);
    let mesh = topology.start()?;
    let directory = mesh.node("a").paths().run.clone();
    let ports = write(&directory, "ports.json", &json!(ports))?;
    let strict = start_origin(mesh.pod("strict"), "strict_origin.py", &["h11"], &ports)?;
    let lenient = start_origin(mesh.pod("lenient"), "lenient_origin.py", &["eventlet"], &ports)?;
    let detected = start_origin(mesh.pod("detected"), "lenient_origin.py", &["eventlet"], &ports)?;
    let outside = start_origin(mesh.pod("outside"), "lenient_origin.py", &["eventlet"], &ports)?;

    let started = Instant::now();
    let run = |from: &str, pod: &str, direct: bool| -> Result<Process> {
        let host = |c: &Case| if direct { mesh.pod(pod).v4() } else { address(&mesh, pod, c.port) };
        let plan: Vec<Value> = cases.iter().map(|c| c.plan(&host(c).to_string())).collect();
        let patience = if direct { 0.3 } else { PATIENCE_SECONDS };
        start_client(mesh.pod(from), &write(&directory, &format!("{pod}.json"), &json!(plan))?, CONCURRENCY, patience)
    };
    let (mut faults, mut judged) = (Vec::new(), 0);
    for (pod, origin) in [("strict", &strict), ("lenient", &lenient), ("detected", &detected)] {
        let client = finish_client(&run("client", pod, false)?)?;
        let (origin_log, access_log) = (origin_log(origin)?, access_log(&mesh, pod));
        let (client, origin_log, access_log) = (&client, &origin_log, &access_log);
        let word = if pod == "detected" { "lenient" } else { pod };
        let evidence = Evidence { origin: word, client, origin_log, access_log, one_agent: false };
        // On a port of which nothing is said, what does not begin like HTTP is none, and passes unread.
        for case in cases.iter().filter(|c| pod != "detected" || c.begins_like_http()) {
            judged += 1;
            faults.extend(evidence.judge(case).into_iter().map(|fault| format!("{pod}: {fault}")));
        }
    }
    let took = started.elapsed();

    // Controls: the same bytes from outside the mesh to an origin outside the mesh.
    finish_client(&run("bare", "outside", true)?)?;
    let direct = origin_log(&outside)?;
    let saw = |case: &Case, method: &str, target: &str| {
        let log = direct.get(&u64::from(case.port)).map_or(&[][..], Vec::as_slice);
        log.iter().any(|e| e["event"] == "request" && e["method"] == method && e["target"] == target)
    };
    for case in &cases {
        if let Some((method, target)) = &case.direct
            && !saw(case, method, target)
        {
            faults.push(format!("{}: control: sent directly, the origin does not see {method} {target}", case.name));
        }
    }
    let forgiven = cases.iter().filter(|c| c.saw.is_empty() && (saw(c, "POST", "/") || saw(c, "GET", "/"))).count();
    let smuggled = cases.iter().filter(|c| saw(c, "GET", "/poison")).count();
    eprintln!("without us the lenient origin takes {forgiven} refused requests, and {smuggled} hidden ones");
    ensure!(forgiven >= 40 && smuggled >= 10, "the origin is not lenient: {forgiven}, {smuggled}");
    report(&faults, judged, took)
}

#[test]
fn what_a_server_answers_is_told_truly() -> Result<()> {
    let raw = case::sequences().into_iter().filter(|c| c.origin == Origin::Raw);
    let cases = case::numbered(case::responses().into_iter().chain(raw));
    ensure!(cases.len() >= 100, "{} cases", cases.len());
    let ports: Vec<u16> = cases.iter().map(|c| c.port).collect();
    let topology = Mesh::declare("responses")
        .node("a")
        .agent_arguments(&["--workers", "1"])
        .pod("client")
        .node("b")
        .agent_arguments(&["--workers", "1"])
        .pod("raw")
        .pod("outside")
        .unmeshed()
        .topology();
    let topology = in_front_of(in_front_of(topology, "raw", &ports, Some("http")), "outside", &ports, Some("http"));
    let mesh = topology.start()?;
    let directory = mesh.node("a").paths().run.clone();
    let scripts: serde_json::Map<String, Value> = cases.iter().map(|c| (c.port.to_string(), c.script())).collect();
    let scripts = write(&directory, "scripts.json", &scripts.into())?;
    let started = Instant::now();
    let mut faults = Vec::new();
    for (pod, one_agent) in [("raw", false), ("outside", true)] {
        let origin = start_origin(mesh.pod(pod), "raw_origin.py", &[], &scripts)?;
        let plan: Vec<Value> = cases.iter().map(|c| c.plan(&address(&mesh, pod, c.port).to_string())).collect();
        let plan = write(&directory, &format!("{pod}.json"), &json!(plan))?;
        let client = finish_client(&start_client(mesh.pod("client"), &plan, CONCURRENCY, PATIENCE_SECONDS)?)?;
        let (origin_log, access_log) = (origin_log(&origin)?, access_log(&mesh, pod));
        let (client, origin_log, access_log) = (&client, &origin_log, &access_log);
        let evidence = Evidence { origin: "raw", client, origin_log, access_log, one_agent };
        faults.extend(cases.iter().flat_map(|c| evidence.judge(c)).map(|fault| format!("{pod}: {fault}")));
    }
    report(&faults, cases.len() * 2, started.elapsed())
}

#[test]
fn slow_clients_are_told_and_let_go() -> Result<()> {
    let cases = case::numbered(case::sequences().into_iter().filter(|c| c.origin == Origin::Slow));
    let ports: Vec<u16> = cases.iter().map(|c| c.port).collect();
    let timeouts =
        ["--workers", "1", "--request-head-timeout-seconds", "2", "--request-body-idle-timeout-seconds", "3"];
    let topology = Mesh::declare("slow")
        .node("a")
        .agent_arguments(&timeouts)
        .pod("client")
        .node("b")
        .agent_arguments(&["--workers", "1"])
        .pod("strict")
        .topology();
    let mesh = in_front_of(topology, "strict", &ports, Some("http")).start()?;
    let directory = mesh.node("a").paths().run.clone();
    let ports = write(&directory, "ports.json", &json!(ports))?;
    let origin = start_origin(mesh.pod("strict"), "strict_origin.py", &["h11"], &ports)?;
    let plan: Vec<Value> = cases.iter().map(|c| c.plan(&address(&mesh, "strict", c.port).to_string())).collect();
    let plan = write(&directory, "plan.json", &json!(plan))?;
    let started = Instant::now();
    // Enough of them to take the place of others, if they took any.
    let host = address(&mesh, "strict", cases[0].port).to_string();
    let crowd: Vec<Value> = (0..200)
        .map(|n| {
            let steps = json!([
                ["drip", hex(b"GET / HTTP/1.1\r\nHost: a\r\nX: and so on and on and on"), 0.5],
                ["read", "GET"]
            ]);
            json!({"id": format!("crowd-{n}"), "host": host, "port": cases[0].port, "steps": steps, "honest": false})
        })
        .collect();
    let crowd = write(&directory, "crowd.json", &json!(crowd))?;
    let crowd = start_client(mesh.pod("client"), &crowd, 200, PATIENCE_SECONDS)?;
    let client = finish_client(&start_client(mesh.pod("client"), &plan, CONCURRENCY, PATIENCE_SECONDS)?)?;
    let took = started.elapsed();
    let crowd = finish_client(&crowd)?;
    let (origin_log, access_log) = (origin_log(&origin)?, access_log(&mesh, "strict"));
    let (client, origin_log, access_log) = (&client, &origin_log, &access_log);
    let evidence = Evidence { origin: "strict", client, origin_log, access_log, one_agent: false };
    let mut faults: Vec<String> = cases.iter().flat_map(|c| evidence.judge(c)).collect();
    let told = crowd.values().filter(|t| t["responses"][0]["status"] == 408).count();
    if told != 200 {
        faults.push(format!("{told} of 200 slow clients were told 408"));
    }
    report(&faults, cases.len(), took)
}
