//! Who is compared: nobody in between, Envoy, HAProxy, and Heddle at one end, at the other, and at both.
//!
//! Envoy and HAProxy stand where Heddle's inbound pass stands: in the server's pod, with the application behind them on
//! that pod's loopback, so that every contestant moves the same bytes over the same devices. Heddle's cost is that of agent
//! and keeper together.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use heddle_testkit::node::Node;
use heddle_testkit::prelude::*;
use heddle_testkit::process::Process;

use crate::cpu::{self, LOAD_CORE, PROXY_CORE};
use crate::load::Seen;
use crate::origin::{ECHO_PORT, SINK_PORT};

const START_TIMEOUT: Duration = Duration::from_secs(15);

/// Each proxy listens on the origin's port plus this.
const ENVOY_OFFSET: u16 = 100;
const HAPROXY_OFFSET: u16 = 200;

/// Where the baselines' binaries are.
#[derive(Debug, Clone)]
pub struct Binaries {
    pub envoy: PathBuf,
    pub haproxy: PathBuf,
}

/// One way from a client to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contestant {
    /// Straight over veth, on a node without Heddle.
    Direct,
    /// Through Envoy in the server's pod, on a node without Heddle.
    Envoy,
    /// Through an Envoy in the client's pod and another in the server's.
    EnvoyPair,
    /// Through HAProxy in the server's pod.
    Haproxy,
    /// Only the server's pod is in the mesh: one inbound pass.
    HeddleInbound,
    /// Only the client's pod is in the mesh: one outbound pass.
    HeddleOutbound,
    /// Both are, on one node.
    HeddleBoth,
    /// Neither is, but the node runs Heddle: what its hooks cost those who are not in the mesh.
    Bystander,
}

impl Contestant {
    /// As results name it.
    pub fn name(self) -> &'static str {
        match self {
            Contestant::Direct => "direct over veth",
            Contestant::Envoy => "envoy 1.40 tcp_proxy",
            Contestant::EnvoyPair => "a pair of envoys 1.40",
            Contestant::Haproxy => "haproxy mode tcp",
            Contestant::HeddleInbound => "heddle inbound pass",
            Contestant::HeddleOutbound => "heddle outbound pass",
            Contestant::HeddleBoth => "heddle both passes",
            Contestant::Bystander => "unmeshed pod beside heddle",
        }
    }
}

/// Which of the origin's ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Echo,
    Sink,
}

/// Two nodes: `bare` without Heddle, and `woven` with it, each with clients and servers.
pub struct Arena {
    // Programs end before the mesh does.
    _origins: Vec<Process>,
    envoy: Process,
    /// In the client's pod, leads to the one in the server's.
    client_envoy: Process,
    haproxy: Process,
    agent: Process,
    mesh: Mesh,
    bench: PathBuf,
}

impl Arena {
    /// Builds it all and pins the proxies.
    pub fn build(binaries: &Binaries) -> Result<Arena> {
        let mesh = Mesh::declare("bench")
            .node("bare")
            .without_agent()
            .pod("bare-client")
            .unmeshed()
            .pod("bare-server")
            .unmeshed()
            .node("woven")
            .without_agent()
            .pod("plain-client")
            .unmeshed()
            .pod("plain-server")
            .unmeshed()
            .pod("meshed-client")
            .pod("meshed-server")
            .start()?
            .quietly();
        let bench = std::env::current_exe().context("where heddle-bench is")?;
        let directory = mesh.id().directory().join("bench");
        fs::create_dir(&directory).and_then(|()| fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)))?;

        let agent = start_agent(mesh.node("woven"), 1)?;
        for pod in ["meshed-client", "meshed-server"] {
            mesh.node("woven").wait_enrolled(mesh.pod(pod), START_TIMEOUT).with_context(|| agent.tail())?;
        }
        cpu::pin(agent.pid(), PROXY_CORE)?;
        cpu::pin(mesh.node("woven").keeper_pid()?, PROXY_CORE)?;

        let server = mesh.pod("bare-server");
        let mut origins = Vec::new();
        for pod in ["bare-server", "plain-server", "meshed-server"] {
            let mut command = Command::new(&bench);
            command.args(["origin", "--core", &LOAD_CORE.to_string()]);
            let origin = mesh.pod(pod).spawn("origin", command)?;
            wait_for_ports(mesh.pod(pod), &origin, &[ECHO_PORT, SINK_PORT])?;
            origins.push(origin);
        }
        let client = mesh.pod("bare-client");
        let envoy = start_envoy(server, &binaries.envoy, &directory, server.v4(), 0)?;
        let client_envoy = start_envoy(client, &binaries.envoy, &directory, server.v4(), ENVOY_OFFSET)?;
        let haproxy = start_haproxy(server, &binaries.haproxy, &directory)?;
        for proxy in [&envoy, &client_envoy, &haproxy] {
            cpu::pin(proxy.pid(), PROXY_CORE)?;
        }
        Ok(Arena { _origins: origins, envoy, client_envoy, haproxy, agent, mesh, bench })
    }

    /// Runs one load through a contestant.
    pub fn measure(
        &self,
        contestant: Contestant,
        pattern: &str,
        target: Target,
        connections: usize,
        seconds: f64,
    ) -> Result<Seen> {
        let (client, server) = match contestant {
            Contestant::Direct | Contestant::Envoy | Contestant::Haproxy => ("bare-client", "bare-server"),
            // The load talks to the Envoy in its own pod.
            Contestant::EnvoyPair => ("bare-client", "bare-client"),
            Contestant::HeddleInbound => ("plain-client", "meshed-server"),
            Contestant::HeddleOutbound => ("meshed-client", "plain-server"),
            Contestant::HeddleBoth => ("meshed-client", "meshed-server"),
            Contestant::Bystander => ("plain-client", "plain-server"),
        };
        let port = match target {
            Target::Echo => ECHO_PORT,
            Target::Sink => SINK_PORT,
        };
        let (offset, watch) = match contestant {
            Contestant::Direct | Contestant::Bystander => (0, Vec::new()),
            Contestant::Envoy => (ENVOY_OFFSET, vec![self.envoy.pid()]),
            Contestant::EnvoyPair => (ENVOY_OFFSET, vec![self.client_envoy.pid(), self.envoy.pid()]),
            Contestant::Haproxy => (HAPROXY_OFFSET, vec![self.haproxy.pid()]),
            Contestant::HeddleInbound | Contestant::HeddleOutbound | Contestant::HeddleBoth => {
                (0, vec![self.agent.pid(), self.mesh.node("woven").keeper_pid()?])
            }
        };
        let to = SocketAddr::new(self.mesh.pod(server).v4(), port + offset);
        let mut command = Command::new(&self.bench);
        command.args(["load", "--pattern", pattern, "--to", &to.to_string()]);
        command.args(["--connections", &connections.to_string(), "--seconds", &seconds.to_string()]);
        command.args(["--core", &LOAD_CORE.to_string()]);
        if !watch.is_empty() {
            let watch: Vec<String> = watch.iter().map(u32::to_string).collect();
            command.args(["--watch", &watch.join(",")]);
        }
        let what = || format!("{pattern} through {}", contestant.name());
        let load = self.mesh.pod(client).spawn("load", command)?;
        let status = load.wait(Duration::from_secs_f64(seconds) + START_TIMEOUT).with_context(what)?;
        ensure!(status.success(), "{}: {status}\n{}", what(), load.tail());
        let seen: Seen = serde_json::from_str(load.stdout().trim()).with_context(what)?;
        ensure!(
            seen.failed == 0,
            "{}: {} of {} failed, first: {:?}",
            what(),
            seen.failed,
            seen.count + seen.failed,
            seen.failure
        );
        Ok(seen)
    }
}

/// Starts an agent (and with it a keeper) on a node that has none.
pub fn start_agent(node: &Node, workers: usize) -> Result<Process> {
    let paths = node.paths();
    let mut command = Command::new(&paths.heddle);
    command.args(["agent", "--node", node.name(), "--source", &format!("files:{}", paths.source.display())]);
    command
        .arg("--run-dir")
        .arg(&paths.run)
        .arg("--pin-dir")
        .arg(&paths.pins)
        .arg("--cgroup")
        .arg(node.node_cgroup().path());
    command.args(["--workers", &workers.to_string(), "--access-log", "none"]);
    command.args(["--metrics-address", "0.0.0.0:15020", "--health-address", "0.0.0.0:15021"]);
    let agent = node.heddle_place().spawn("agent", command)?;
    wait_until("the agent is ready", START_TIMEOUT, || !agent.is_running() || node.is_ready())
        .with_context(|| agent.tail())?;
    ensure!(agent.is_running(), "the agent has ended\n{}", agent.tail());
    Ok(agent)
}

fn wait_for_ports(place: &Place, process: &Process, ports: &[u16]) -> Result<()> {
    let are_open = || {
        let open = place.listeners().unwrap_or_default();
        ports.iter().all(|port| open.iter().any(|address| address.port() == *port))
    };
    wait_until(&format!("{} listens", process.name()), START_TIMEOUT, || !process.is_running() || are_open())
        .with_context(|| process.tail())?;
    ensure!(process.is_running(), "{} has ended\n{}", process.name(), process.tail());
    Ok(())
}

/// An Envoy that leads from its own ports to those of `server`, shifted by `offset`.
fn start_envoy(place: &Place, binary: &Path, directory: &Path, server: IpAddr, offset: u16) -> Result<Process> {
    let path = directory.join(format!("envoy-{}.yaml", place.name()));
    fs::write(&path, envoy_configuration(server, offset))
        .with_context(|| format!("cannot write {}", path.display()))?;
    let mut command = Command::new(binary);
    command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "error", "--config-path"]).arg(&path);
    let envoy = place.spawn("envoy", command)?;
    wait_for_ports(place, &envoy, &[ECHO_PORT + ENVOY_OFFSET, SINK_PORT + ENVOY_OFFSET])?;
    Ok(envoy)
}

fn envoy_configuration(server: IpAddr, offset: u16) -> String {
    let mut listeners = String::new();
    let mut clusters = String::new();
    for port in [ECHO_PORT, SINK_PORT] {
        let (listen, to) = (port + ENVOY_OFFSET, port + offset);
        listeners.push_str(&format!(
            "  - address: {{ socket_address: {{ address: 0.0.0.0, port_value: {listen} }} }}\n    filter_chains:\n    - filters:\n      - name: tcp\n        \
             typed_config:\n          \"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy\n          \
             stat_prefix: s{port}\n          cluster: c{port}\n"
        ));
        clusters.push_str(&format!(
            "  - name: c{port}\n    type: STATIC\n    connect_timeout: 5s\n    \
             circuit_breakers: {{ thresholds: [{{ max_connections: 100000, max_pending_requests: 100000 }}] }}\n    \
             load_assignment:\n      cluster_name: c{port}\n      endpoints:\n      - lb_endpoints:\n        - endpoint: {{ address: {{ socket_address: {{ address: \"{server}\", port_value: {to} }} }} }}\n"
        ));
    }
    format!("static_resources:\n  listeners:\n{listeners}  clusters:\n{clusters}")
}

fn start_haproxy(place: &Place, binary: &Path, directory: &Path) -> Result<Process> {
    let path = directory.join("haproxy.cfg");
    fs::write(&path, haproxy_configuration(place.v4())).with_context(|| format!("cannot write {}", path.display()))?;
    let mut command = Command::new(binary);
    command.arg("-db").arg("-f").arg(&path);
    let haproxy = place.spawn("haproxy", command)?;
    wait_for_ports(place, &haproxy, &[ECHO_PORT + HAPROXY_OFFSET, SINK_PORT + HAPROXY_OFFSET])?;
    Ok(haproxy)
}

fn haproxy_configuration(origin: IpAddr) -> String {
    let mut text = "global\n  nbthread 1\n  maxconn 4000\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n".to_owned();
    for port in [ECHO_PORT, SINK_PORT] {
        text.push_str(&format!(
            "listen l{port}\n  bind 0.0.0.0:{}\n  server s{port} {origin}:{port}\n",
            port + HAPROXY_OFFSET
        ));
    }
    text
}
