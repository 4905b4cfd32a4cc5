//! Who is compared: nobody in between, Envoy, HAProxy (TCP), nginx (HTTP), and Heddle at one end, at the other, and at both.
//!
//! The other proxies stand where Heddle's inbound pass stands: in the server's pod, with the application behind them on
//! that pod's loopback, so that every contestant moves the same bytes over the same devices. Heddle's cost is that of agent
//! and keeper together.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use heddle_testkit::node::Node;
use heddle_testkit::prelude::*;
use heddle_testkit::process::Process;

use crate::cpu::{self, LOAD_CORE, PROXY_CORE};
use crate::load::Seen;
use crate::origin::{ECHO_PORT, SINK_PORT};
use crate::peers::{self, ENVOY_OFFSET, ENVOY_ROUTED_OFFSET, H1_PORT, H2_PORT, HAPROXY_OFFSET, NGINX_OFFSET};
use crate::scenarios::Load;

const START_TIMEOUT: Duration = Duration::from_secs(15);

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
    /// Through HAProxy in the server's pod (TCP).
    Haproxy,
    /// Through nginx in the server's pod (HTTP).
    Nginx,
    /// Only the server's pod is in the mesh: one inbound pass.
    HeddleInbound,
    /// Only the client's pod is in the mesh: one outbound pass.
    HeddleOutbound,
    /// Both are, on one node.
    HeddleBoth,
    /// Through two Envoys on two nodes, in mutual TLS between them.
    EnvoyMtlsPair,
    /// The same server's Envoy, to which a client comes again with a session of before. Nobody of ours resumes.
    EnvoyResuming,
    /// Through two ztunnels, in HBONE between them.
    ZtunnelPair,
    /// Both pods are in the mesh and on two nodes, whose agents have identities.
    HeddleMtlsPair,
    /// Both are on one node, whose agent has identities and hands requests over in memory.
    HeddleHandOver,
    /// Through Envoy in the server's pod, by the last of ten routes, with retries, a circuit breaker and outlier detection.
    EnvoyRouted,
    /// The outbound pass with as many routes and the like of a TrafficPolicy.
    HeddleRouted,
    /// Neither is, but the node runs Heddle: what its hooks cost those who are not in the mesh.
    Bystander,
}

impl Contestant {
    /// As results name it.
    pub fn name(self, load: &Load) -> &'static str {
        match (self, load) {
            (Contestant::Direct, _) => "direct over veth",
            (Contestant::Envoy, Load::Tcp { .. }) => "envoy 1.40 tcp_proxy",
            (Contestant::Envoy, _) => "envoy 1.40 http",
            (Contestant::EnvoyPair, _) => "a pair of envoys 1.40",
            (Contestant::Haproxy, _) => "haproxy mode tcp",
            (Contestant::Nginx, _) => "nginx proxy_pass",
            (Contestant::HeddleInbound, _) => "heddle inbound pass",
            (Contestant::HeddleOutbound, _) => "heddle outbound pass",
            (Contestant::HeddleBoth, _) => "heddle both passes",
            (Contestant::EnvoyMtlsPair, _) => "envoys 1.40 with mtls",
            (Contestant::EnvoyResuming, _) => "envoy 1.40, resumed",
            (Contestant::ZtunnelPair, _) => "a pair of ztunnels",
            (Contestant::HeddleMtlsPair, _) => "heddle pair with mtls",
            (Contestant::HeddleHandOver, _) => "heddle hand-over",
            (Contestant::EnvoyRouted, _) => "envoy 1.40 with routes",
            (Contestant::HeddleRouted, _) => "heddle with routes",
            (Contestant::Bystander, _) => "unmeshed pod beside heddle",
        }
    }

    /// The Service whose only endpoint is the server it leads to.
    fn service(self) -> &'static str {
        match self {
            Contestant::HeddleBoth => "meshed",
            Contestant::HeddleRouted => "routed",
            _ => "plain",
        }
    }
}

/// Two nodes: `bare` without Heddle, and `woven` with it, each with clients and servers.
pub struct Arena {
    // Programs end before the mesh does.
    _origins: Vec<Process>,
    envoy: Process,
    /// In the client's pod, leads to the one in the server's.
    client_envoy: Process,
    haproxy: Process,
    nginx: Process,
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
            .service(Contestant::HeddleOutbound.service())
            .port(H1_PORT, H1_PORT)
            .port(H2_PORT, H2_PORT)
            .with("ports", peers::service_ports())
            .backed_by("plain-server")
            .service(Contestant::HeddleBoth.service())
            .port(H1_PORT, H1_PORT)
            .port(H2_PORT, H2_PORT)
            .with("ports", peers::service_ports())
            .backed_by("meshed-server")
            .service(Contestant::HeddleRouted.service())
            .port(H1_PORT, H1_PORT)
            .port(H2_PORT, H2_PORT)
            .with("ports", peers::service_ports())
            .backed_by("plain-server")
            .start()?
            .quietly();
        let bench = std::env::current_exe().context("where heddle-bench is")?;
        let directory = mesh.id().directory().join("bench");
        fs::create_dir(&directory).and_then(|()| fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)))?;

        mesh.source().write_text("routes.yaml", &peers::routes(Contestant::HeddleRouted.service()))?;
        let agent = start_agent(mesh.node("woven"), 1, &[])?;
        for pod in ["meshed-client", "meshed-server"] {
            mesh.node("woven").wait_enrolled(mesh.pod(pod), START_TIMEOUT).with_context(|| agent.tail())?;
        }
        cpu::pin(agent.pid(), PROXY_CORE)?;
        cpu::pin(mesh.node("woven").keeper_pid()?, PROXY_CORE)?;

        peers::write_bodies(&directory)?;
        let mut origins = Vec::new();
        for pod in ["bare-server", "plain-server", "meshed-server"] {
            let place = mesh.pod(pod);
            let mut command = Command::new(&bench);
            command.args(["origin", "--core", &LOAD_CORE.to_string()]);
            let origin = place.spawn("origin", command)?;
            wait_for_ports(place, &origin, &[ECHO_PORT, SINK_PORT])?;
            let http = peers::start_origin(place, &directory)?;
            cpu::pin(http.pid(), LOAD_CORE)?;
            origins.extend([origin, http]);
        }
        let (client, server) = (mesh.pod("bare-client"), mesh.pod("bare-server"));
        let envoy = peers::start_envoy(server, &binaries.envoy, &directory, server.v4(), 0)?;
        let client_envoy = peers::start_envoy(client, &binaries.envoy, &directory, server.v4(), ENVOY_OFFSET)?;
        let haproxy = peers::start_haproxy(server, &binaries.haproxy, &directory)?;
        let nginx = peers::start_nginx(server, &directory)?;
        for proxy in [&envoy, &client_envoy, &haproxy, &nginx] {
            cpu::pin(proxy.pid(), PROXY_CORE)?;
        }
        Ok(Arena { _origins: origins, envoy, client_envoy, haproxy, nginx, agent, mesh, bench })
    }

    /// Runs one load through a contestant.
    pub fn measure(&self, contestant: Contestant, load: &Load, connections: usize, seconds: f64) -> Result<Seen> {
        let (client, server) = match contestant {
            Contestant::Direct
            | Contestant::Envoy
            | Contestant::EnvoyRouted
            | Contestant::Haproxy
            | Contestant::Nginx => ("bare-client", "bare-server"),
            // The load talks to the Envoy in its own pod.
            Contestant::EnvoyPair => ("bare-client", "bare-client"),
            Contestant::HeddleInbound => ("plain-client", "meshed-server"),
            Contestant::HeddleOutbound | Contestant::HeddleRouted => ("meshed-client", "plain-server"),
            Contestant::HeddleBoth => ("meshed-client", "meshed-server"),
            Contestant::Bystander => ("plain-client", "plain-server"),
            secured => bail!("{secured:?} is of other nodes"),
        };
        let (offset, watch) = match contestant {
            Contestant::Direct | Contestant::Bystander => (0, Vec::new()),
            Contestant::Envoy => (ENVOY_OFFSET, vec![self.envoy.pid()]),
            Contestant::EnvoyRouted => (ENVOY_ROUTED_OFFSET, vec![self.envoy.pid()]),
            Contestant::EnvoyPair => (ENVOY_OFFSET, vec![self.client_envoy.pid(), self.envoy.pid()]),
            Contestant::Haproxy => (HAPROXY_OFFSET, vec![self.haproxy.pid()]),
            Contestant::Nginx => (NGINX_OFFSET, vec![self.nginx.pid()]),
            Contestant::HeddleInbound
            | Contestant::HeddleOutbound
            | Contestant::HeddleRouted
            | Contestant::HeddleBoth => (0, vec![self.agent.pid(), self.mesh.node("woven").keeper_pid()?]),
            secured => bail!("{secured:?} is of other nodes"),
        };
        let address = match (load, contestant) {
            // Applications call Services; a proxy in the server's pod knows none.
            (Load::Http { .. }, Contestant::HeddleOutbound | Contestant::HeddleRouted | Contestant::HeddleBoth) => {
                self.mesh.service(contestant.service()).cluster_v4()
            }
            _ => self.mesh.pod(server).v4(),
        };
        let to = SocketAddr::new(address, load.port() + offset);
        let run =
            LoadRun::start(&self.bench, self.mesh.pod(client), &load.arguments(), to, connections, seconds, &watch)?;
        run.finish().with_context(|| format!("through {}", contestant.name(load)))
    }
}

/// A load under way in a pod.
pub struct LoadRun {
    process: Process,
    words: String,
    limit: Duration,
}

impl LoadRun {
    /// Starts it; `watch` are the processes whose cost it reads.
    pub fn start(
        bench: &Path,
        from: &Place,
        words: &[String],
        to: SocketAddr,
        connections: usize,
        seconds: f64,
        watch: &[u32],
    ) -> Result<LoadRun> {
        let mut command = Command::new(bench);
        command.args(words).args(["--to", &to.to_string()]);
        command.args(["--connections", &connections.to_string(), "--seconds", &seconds.to_string()]);
        command.args(["--core", &LOAD_CORE.to_string()]);
        if !watch.is_empty() {
            let watch: Vec<String> = watch.iter().map(u32::to_string).collect();
            command.args(["--watch", &watch.join(",")]);
        }
        let limit = Duration::from_secs_f64(seconds) + 2 * START_TIMEOUT;
        Ok(LoadRun { process: from.spawn("load", command)?, words: words.join(" "), limit })
    }

    /// What it saw; an error if anything failed.
    pub fn finish(self) -> Result<Seen> {
        let LoadRun { process, words, limit } = self;
        let status = process.wait(limit).with_context(|| words.clone())?;
        ensure!(status.success(), "{words}: {status}\n{}", process.tail());
        let seen: Seen = serde_json::from_str(process.stdout().trim()).with_context(|| words.clone())?;
        let all = seen.count + seen.failed;
        ensure!(seen.failed == 0, "{words}: {} of {all} failed, first: {:?}", seen.failed, seen.failure);
        Ok(seen)
    }
}

/// Starts an agent (and with it a keeper) on a node that has none, with more arguments than those all have.
pub fn start_agent(node: &Node, workers: usize, more: &[String]) -> Result<Process> {
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
    command.args(more);
    let agent = node.heddle_place().spawn("agent", command)?;
    wait_until("the agent is ready", START_TIMEOUT, || !agent.is_running() || node.is_ready())
        .with_context(|| agent.tail())?;
    ensure!(agent.is_running(), "the agent has ended\n{}", agent.tail());
    Ok(agent)
}

/// Waits until a process accepts on all of these ports.
pub fn wait_for_ports(place: &Place, process: &Process, ports: &[u16]) -> Result<()> {
    let are_open = || {
        let open = place.listeners().unwrap_or_default();
        ports.iter().all(|port| open.iter().any(|address| address.port() == *port))
    };
    wait_until(&format!("{} listens", process.name()), START_TIMEOUT, || !process.is_running() || are_open())
        .with_context(|| process.tail())?;
    ensure!(process.is_running(), "{} has ended\n{}", process.name(), process.tail());
    Ok(())
}
