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

use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use case::{Case, Origin, hex};
use heddle_testkit::prelude::*;
use heddle_testkit::process::Process;
use heddle_testkit::programs::python;
use heddle_testkit::topology::Topology;
use judge::{Evidence, text};
use serde_json::{Value, json};

/// Ports of one EndpointSlice (Kubernetes' limit).
const PORTS_PER_SERVICE: usize = 100;
/// Cases a client has under way.
const CONCURRENCY: usize = 24;
/// Nothing that an agent owes takes longer.
const PATIENCE_SECONDS: f64 = 8.0;
/// For all cases of one client.
const SUITE_TIMEOUT: Duration = Duration::from_secs(60);
const START_TIMEOUT: Duration = Duration::from_secs(60);

fn peer(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(name)
}

/// Services of these ports in front of one pod, declared as HTTP/1 or not declared at all.
fn in_front_of(mut topology: Topology, pod: &str, ports: &[u16], is_declared: bool) -> Topology {
    for (number, ports) in ports.chunks(PORTS_PER_SERVICE).enumerate() {
        let mut service = topology.service(&format!("{pod}-{number}")).backed_by(pod);
        if is_declared {
            let declare = |p| json!({"name": format!("port-{p}"), "port": p, "targetPort": p, "appProtocol": "http"});
            service = service.with("ports", ports.iter().map(declare).collect::<Vec<_>>());
        }
        for port in ports {
            service = service.port(*port, *port);
        }
        topology = service.topology();
    }
    topology
}

/// The cluster address in front of a pod for a case.
fn address(mesh: &Mesh, pod: &str, cases: &[Case], port: u16) -> IpAddr {
    let place = cases.iter().position(|c| c.port == port).unwrap_or_default();
    mesh.service(&format!("{pod}-{}", place / PORTS_PER_SERVICE)).cluster_v4()
}

fn write(directory: &Path, name: &str, value: &Value) -> Result<PathBuf> {
    let path = directory.join(name);
    fs::write(&path, value.to_string()).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

fn start_origin(place: &Place, script: &str, packages: &[&str], argument: &Path) -> Result<Process> {
    let mut command = python(packages)?;
    command.arg(peer(script)).arg(argument);
    let process = place.spawn("origin", command)?;
    wait_until(&format!("{script} listens"), START_TIMEOUT, || process.stdout().contains("listening"))
        .with_context(|| process.tail())?;
    Ok(process)
}

/// Starts the client with a plan; silence of `patience` seconds counts as the end.
fn start_client(place: &Place, plan: &Path, concurrency: usize, patience: f64) -> Result<Process> {
    let mut command = python(&[])?;
    command.arg(peer("raw_client.py")).arg(plan).args([concurrency.to_string(), patience.to_string()]);
    place.spawn("raw-client", command)
}

/// What it told, by case.
fn finish_client(process: &Process) -> Result<HashMap<String, Value>> {
    let status = process.wait(SUITE_TIMEOUT)?;
    ensure!(status.success(), "{status}\n{}", process.tail());
    let lines = lines_of(process)?;
    Ok(lines.into_iter().map(|line| (text(&line["id"]).to_owned(), line)).collect())
}

fn lines_of(process: &Process) -> Result<Vec<Value>> {
    process.stdout().lines().map(|l| serde_json::from_str(l).with_context(|| l.to_owned())).collect()
}

/// What an origin told, by port.
fn origin_log(process: &Process) -> Result<HashMap<u64, Vec<Value>>> {
    let mut by_port: HashMap<u64, Vec<Value>> = HashMap::new();
    for line in lines_of(process)? {
        if let Some(port) = line["port"].as_u64() {
            by_port.entry(port).or_default().push(line);
        }
    }
    Ok(by_port)
}

/// Access records of both agents for connections to this pod or its Services, by port.
fn access_log(mesh: &Mesh, pod: &str) -> HashMap<u64, Vec<Value>> {
    let mut by_port: HashMap<u64, Vec<Value>> = HashMap::new();
    for record in mesh.nodes().iter().flat_map(Node::access_log) {
        let is_to_pod = record["destination_pod"] == pod || text(&record["destination_service"]).starts_with(pod);
        let port = text(&record["original_destination"]).rsplit(':').next().and_then(|p| p.parse().ok());
        if let (true, Some(port)) = (is_to_pod, port) {
            by_port.entry(port).or_default().push(record);
        }
    }
    by_port
}

fn report(faults: &[String], cases: usize, took: Duration) -> Result<()> {
    eprintln!("{cases} cases in {took:.1?}, {} faults", faults.len());
    ensure!(faults.is_empty(), "{} faults:\n  {}", faults.len(), faults.join("\n  "));
    Ok(())
}

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
    let topology = in_front_of(in_front_of(topology, "strict", &ports, true), "lenient", &ports, true);
    let topology = in_front_of(topology, "detected", &ports, false);
    let mesh = topology.start()?;
    let directory = mesh.node("a").paths().run.clone();
    let ports = write(&directory, "ports.json", &json!(ports))?;
    let strict = start_origin(mesh.pod("strict"), "strict_origin.py", &["h11"], &ports)?;
    let lenient = start_origin(mesh.pod("lenient"), "lenient_origin.py", &["eventlet"], &ports)?;
    let detected = start_origin(mesh.pod("detected"), "lenient_origin.py", &["eventlet"], &ports)?;
    let outside = start_origin(mesh.pod("outside"), "lenient_origin.py", &["eventlet"], &ports)?;

    let started = Instant::now();
    let run = |from: &str, pod: &str, direct: bool| -> Result<Process> {
        let host = |c: &Case| if direct { mesh.pod(pod).v4() } else { address(&mesh, pod, &cases, c.port) };
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
    let topology = in_front_of(in_front_of(topology, "raw", &ports, true), "outside", &ports, true);
    let mesh = topology.start()?;
    let directory = mesh.node("a").paths().run.clone();
    let scripts: serde_json::Map<String, Value> = cases.iter().map(|c| (c.port.to_string(), c.script())).collect();
    let scripts = write(&directory, "scripts.json", &scripts.into())?;
    let started = Instant::now();
    let mut faults = Vec::new();
    for (pod, one_agent) in [("raw", false), ("outside", true)] {
        let origin = start_origin(mesh.pod(pod), "raw_origin.py", &[], &scripts)?;
        let plan: Vec<Value> = cases.iter().map(|c| c.plan(&address(&mesh, pod, &cases, c.port).to_string())).collect();
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
    let mesh = in_front_of(topology, "strict", &ports, true).start()?;
    let directory = mesh.node("a").paths().run.clone();
    let ports = write(&directory, "ports.json", &json!(ports))?;
    let origin = start_origin(mesh.pod("strict"), "strict_origin.py", &["h11"], &ports)?;
    let plan: Vec<Value> =
        cases.iter().map(|c| c.plan(&address(&mesh, "strict", &cases, c.port).to_string())).collect();
    let plan = write(&directory, "plan.json", &json!(plan))?;
    let started = Instant::now();
    // Enough of them to take the place of others, if they took any.
    let host = address(&mesh, "strict", &cases, cases[0].port).to_string();
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
