//! What the suites of HTTP's rules share: a port per case, origins and clients in other languages, and what all of them told.
#![allow(dead_code, reason = "each suite uses its part")]

use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use heddle_testkit::prelude::*;
use heddle_testkit::process::Process;
use heddle_testkit::programs::python;
use heddle_testkit::topology::Topology;
use serde_json::{Value, json};

/// The first port of the cases; each has its own, so that what an origin saw on a port belongs to one case.
pub const PORT_FIRST: u16 = 20_000;
/// Ports of one EndpointSlice (Kubernetes' limit).
const PORTS_PER_SERVICE: usize = 100;
/// Cases a client has under way.
pub const CONCURRENCY: usize = 24;
/// Nothing that an agent owes takes longer.
pub const PATIENCE_SECONDS: f64 = 8.0;
/// For all cases of one client.
const SUITE_TIMEOUT: Duration = Duration::from_secs(60);
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A file of `peers`.
pub fn peer(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(name)
}

/// Services of these ports in front of one pod, declared as `app_protocol` or not declared at all.
pub fn in_front_of(mut topology: Topology, pod: &str, ports: &[u16], app_protocol: Option<&str>) -> Topology {
    for (number, ports) in ports.chunks(PORTS_PER_SERVICE).enumerate() {
        let mut service = topology.service(&format!("{pod}-{number}")).backed_by(pod);
        if let Some(protocol) = app_protocol {
            let declare = |p| json!({"name": format!("port-{p}"), "port": p, "targetPort": p, "appProtocol": protocol});
            service = service.with("ports", ports.iter().map(declare).collect::<Vec<_>>());
        }
        for port in ports {
            service = service.port(*port, *port);
        }
        topology = service.topology();
    }
    topology
}

/// The cluster address in front of a pod for the case with this port.
pub fn address(mesh: &Mesh, pod: &str, port: u16) -> IpAddr {
    mesh.service(&format!("{pod}-{}", usize::from(port - PORT_FIRST) / PORTS_PER_SERVICE)).cluster_v4()
}

/// Writes a file for a peer.
pub fn write(directory: &Path, name: &str, value: &Value) -> Result<PathBuf> {
    let path = directory.join(name);
    fs::write(&path, value.to_string()).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// Starts a server of `peers` and returns when it listens.
pub fn start_origin(place: &Place, script: &str, packages: &[&str], argument: &Path) -> Result<Process> {
    let mut command = python(packages)?;
    command.arg(peer(script)).arg(argument);
    let process = place.spawn("origin", command)?;
    wait_until(&format!("{script} listens"), START_TIMEOUT, || process.stdout().contains("listening"))
        .with_context(|| process.tail())?;
    Ok(process)
}

/// Starts a client of raw sockets with a plan; silence of `patience` seconds counts as the end.
pub fn start_client(place: &Place, plan: &Path, concurrency: usize, patience: f64) -> Result<Process> {
    let mut command = python(&[])?;
    command.arg(peer("raw_client.py")).arg(plan).args([concurrency.to_string(), patience.to_string()]);
    place.spawn("raw-client", command)
}

/// What a client told, by case.
pub fn finish_client(process: &Process) -> Result<HashMap<String, Value>> {
    let status = process.wait(SUITE_TIMEOUT)?;
    ensure!(status.success(), "{status}\n{}", process.tail());
    let lines = lines_of(process)?;
    Ok(lines.into_iter().map(|line| (text(&line["id"]).to_owned(), line)).collect())
}

fn lines_of(process: &Process) -> Result<Vec<Value>> {
    process.stdout().lines().map(|l| serde_json::from_str(l).with_context(|| l.to_owned())).collect()
}

/// What an origin told, by port.
pub fn origin_log(process: &Process) -> Result<HashMap<u64, Vec<Value>>> {
    let mut by_port: HashMap<u64, Vec<Value>> = HashMap::new();
    for line in lines_of(process)? {
        if let Some(port) = line["port"].as_u64() {
            by_port.entry(port).or_default().push(line);
        }
    }
    Ok(by_port)
}

/// Access records of all agents for connections to this pod or its Services, by port.
pub fn access_log(mesh: &Mesh, pod: &str) -> HashMap<u64, Vec<Value>> {
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

/// Fails with what is wrong.
pub fn report(faults: &[String], cases: usize, took: Duration) -> Result<()> {
    eprintln!("{cases} cases in {took:.1?}, {} faults", faults.len());
    ensure!(faults.is_empty(), "{} faults:\n  {}", faults.len(), faults.join("\n  "));
    Ok(())
}

/// A string, or nothing.
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Bytes as the Python peers read them.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The other way.
pub fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).filter_map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()).collect()
}
