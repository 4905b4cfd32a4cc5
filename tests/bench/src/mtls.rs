//! Two nodes for every contestant that encrypts: `bare-a` and `bare-b` with other people's proxies, `woven-a` and `woven-b` with
//! agents that have identities. Both proxies of a pair share one core, the load and the origin have the other.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use heddle_testkit::pki::{Authority, Credential, claims, spiffe_id};
use heddle_testkit::prelude::*;
use heddle_testkit::process::Process;
use heddle_testkit::topology::{DEFAULT_NAMESPACE, ServiceWords};
use heddle_testkit::ztunnel;

use crate::contestants::{Binaries, Contestant, LoadRun, start_agent, wait_for_ports};
use crate::cpu::{self, LOAD_CORE, PROXY_CORE};
use crate::load::{Meter, Seen};
use crate::mtls_peers::{self, Party, RESUMING_PORT};
use crate::origin::{ECHO_PORT, SINK_PORT};
use crate::peers::{self, ENVOY_OFFSET, H1_PORT, H2_PORT, OPAQUE_PORT};
use crate::scenarios::Load;

/// Pods a load may come from.
const SOURCES: usize = 10;

/// The four nodes.
pub struct SecuredArena {
    // Programs end before the mesh does.
    _origins: Vec<Process>,
    envoys: [Process; 2],
    agents: [Process; 2],
    /// Of the client's pod and the server's, where a ztunnel is given.
    ztunnels: Option<[Process; 2]>,
    credential: Credential,
    /// Signed by the root of Heddle's mesh, for handshakes with its agents.
    woven_credential: Credential,
    mesh: Mesh,
    bench: PathBuf,
}

/// How long pods may take to be enrolled and to have certificates.
const CERTIFICATES_TIMEOUT: Duration = Duration::from_secs(15);

fn source(node: &str, number: usize) -> String {
    format!("{node}-client-{number}")
}

impl SecuredArena {
    /// Builds it all and pins the proxies.
    pub fn build(binaries: &Binaries) -> Result<SecuredArena> {
        let mut words = Mesh::declare("bench-mtls").node("bare-a").without_agent().pod(&source("bare", 0)).unmeshed();
        for number in 1..SOURCES {
            words = words.pod(&source("bare", number)).unmeshed();
        }
        let words = words.node("bare-b").without_agent().pod("bare-server").unmeshed();
        let opaque = [ECHO_PORT, SINK_PORT, OPAQUE_PORT].map(|port| port.to_string()).join(",");
        let mut words = words.node("woven-a").without_agent().pod("woven-near");
        for number in 0..SOURCES {
            words = words.pod(&source("woven", number));
        }
        let words = words.node("woven-b").without_agent();
        let words = words.pod("woven-server").annotated("heddle.dev/opaque-ports", &opaque);
        // Nodes of their own: a ztunnel binds the ports that Envoy's HBONE has on the bare ones.
        let words = words.node("tunnel-a").without_agent().pod(&source("tunnel", 0)).unmeshed();
        let words = words.node("tunnel-b").without_agent().pod("tunnel-server").unmeshed();
        let service = |words: ServiceWords, pod: &str| {
            words.port(H1_PORT, H1_PORT).port(H2_PORT, H2_PORT).with("ports", peers::service_ports()).backed_by(pod)
        };
        let words = service(words.service("far"), "woven-server");
        let words = service(words.service("near"), "woven-near");
        let mesh = words.with_ca().start()?.quietly();
        // Or the annotation of opaque ports has no effect.
        mesh.edit_namespace(DEFAULT_NAMESPACE, |namespace| {
            namespace.annotations.insert("heddle.dev/allow-exclusions".to_owned(), "true".to_owned());
        })?;
        let bench = std::env::current_exe().context("where heddle-bench is")?;
        let directory = mesh.id().directory().join("bench");
        fs::create_dir(&directory).and_then(|()| fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)))?;

        peers::write_bodies(&directory)?;
        let mut origins = Vec::new();
        for pod in ["bare-server", "woven-server", "woven-near", "tunnel-server"] {
            let place = mesh.pod(pod);
            let mut command = Command::new(&bench);
            command.args(["origin", "--core", &LOAD_CORE.to_string()]);
            let origin = place.spawn("origin", command)?;
            wait_for_ports(place, &origin, &[ECHO_PORT, SINK_PORT])?;
            let http = peers::start_origin(place, &directory)?;
            cpu::pin(http.pid(), LOAD_CORE)?;
            origins.extend([origin, http]);
        }

        let authority = Authority::new("root of the benchmark")?;
        let (client, server) = (mesh.pod(&source("bare", 0)), mesh.pod("bare-server"));
        let [client_id, server_id] = ["bare-client", "bare-server"].map(|account| spiffe_id("shop", account));
        let credential = authority.issue(&directory, "client", &claims(&client_id))?;
        let of_server = authority.issue(&directory, "server", &claims(&server_id))?;
        let party = Party { credential: &of_server, peer_id: &client_id };
        let server_envoy = mtls_peers::start_server(server, &binaries.envoy, &directory, &party)?;
        let party = Party { credential: &credential, peer_id: &server_id };
        let client_envoy = mtls_peers::start_client(client, &binaries.envoy, &directory, &party, server.v4())?;
        for envoy in [&server_envoy, &client_envoy] {
            cpu::pin(envoy.pid(), PROXY_CORE)?;
        }
        let agents = [start_secured(&mesh, "woven-a")?, start_secured(&mesh, "woven-b")?];
        let woven_credential = mesh.ca().issue("handshakes", &claims(&spiffe_id("shop", "handshakes")))?;
        let ztunnels = ztunnel::binary().map(|binary| start_ztunnels(&mesh, &binary)).transpose()?;
        let envoys = [client_envoy, server_envoy];
        Ok(SecuredArena { _origins: origins, envoys, agents, ztunnels, credential, woven_credential, mesh, bench })
    }

    /// Runs one load through a contestant, from as many pods as are wanted.
    pub fn measure(
        &self,
        contestant: Contestant,
        load: &Load,
        connections: usize,
        sources: usize,
        seconds: f64,
    ) -> Result<Seen> {
        let mut words = load.arguments();
        let to_pod = |pod: &str| SocketAddr::new(self.mesh.pod(pod).v4(), load.port());
        let to_service = |service: &str| SocketAddr::new(self.mesh.service(service).cluster_v4(), load.port());
        let shown = |credential: &Credential| {
            let file = |path: &Path| path.display().to_string();
            ["--chain".to_owned(), file(&credential.chain), "--key".to_owned(), file(&credential.key)]
        };
        let (node, to, watch) = match (contestant, load) {
            (Contestant::EnvoyMtlsPair, Load::Handshakes) => {
                words.extend(shown(&self.credential));
                ("bare", to_pod("bare-server"), vec![self.envoys[1].pid()])
            }
            (Contestant::EnvoyResuming, Load::Handshakes) => {
                words.extend(shown(&self.credential));
                words.push("--resume".to_owned());
                let to = SocketAddr::new(self.mesh.pod("bare-server").v4(), RESUMING_PORT);
                ("bare", to, vec![self.envoys[1].pid()])
            }
            (Contestant::ZtunnelPair, _) => {
                let pair = self.ztunnels.as_ref().context("no ztunnel is given")?;
                words.extend(["--socks5".to_owned(), format!("127.0.0.1:{}", ztunnel::SOCKS5_PORT)]);
                ("tunnel", to_pod("tunnel-server"), pair.iter().map(Process::pid).collect())
            }
            // From a pod outside the mesh: between the two is no other agent.
            (Contestant::HeddleMtlsPair, Load::Handshakes) => {
                words.extend(shown(&self.woven_credential));
                ("bare", to_pod("woven-server"), vec![self.agents[1].pid()])
            }
            (Contestant::EnvoyMtlsPair, _) => {
                let envoy = self.mesh.pod(&source("bare", 0));
                let to = SocketAddr::new(envoy.v4(), load.port() + ENVOY_OFFSET);
                ("bare", to, self.envoys.iter().map(Process::pid).collect())
            }
            (Contestant::HeddleMtlsPair, Load::Http { .. }) => ("woven", to_service("far"), self.heddle(&[0, 1])?),
            (Contestant::HeddleMtlsPair, _) => ("woven", to_pod("woven-server"), self.heddle(&[0, 1])?),
            (Contestant::HeddleHandOver, _) => ("woven", to_service("near"), self.heddle(&[0])?),
            (other, _) => bail!("{other:?} is not on these nodes"),
        };
        let name = || format!("through {} from {sources} pods", contestant.name(load));
        if sources == 1 {
            let from = self.mesh.pod(&source(node, 0));
            let run = LoadRun::start(&self.bench, from, &words, to, connections, seconds, &watch)?;
            return run.finish().with_context(name);
        }
        // The load's own clocks are many: the cost is read here, around all of them.
        let before = Meter::read(&watch)?;
        let runs = (0..sources).map(|number| {
            let share = connections / sources + usize::from(number < connections % sources);
            let from = self.mesh.pod(&source(node, number));
            LoadRun::start(&self.bench, from, &words, to, share, seconds, &[])
        });
        let runs = runs.collect::<Result<Vec<_>>>()?;
        let mut all = Vec::new();
        for run in runs {
            all.push(run.finish().with_context(name)?);
        }
        let mut seen = Seen::between(&before, &Meter::read(&watch)?);
        (seen.count, seen.bytes) = (all.iter().map(|s| s.count).sum(), all.iter().map(|s| s.bytes).sum());
        seen.seconds = seconds;
        seen.p99_ns = all.iter().map(|s| s.p99_ns).max().unwrap_or_default();
        Ok(seen)
    }

    /// Agents and keepers of these nodes: what they cost together.
    fn heddle(&self, which: &[usize]) -> Result<Vec<u32>> {
        let mut pids = Vec::new();
        for index in which {
            let (agent, node) = (&self.agents[*index], ["woven-a", "woven-b"][*index]);
            pids.extend([agent.pid(), self.mesh.node(node).keeper_pid()?]);
        }
        Ok(pids)
    }
}

/// A ztunnel in the client's pod and one in the server's.
fn start_ztunnels(mesh: &Mesh, binary: &Path) -> Result<[Process; 2]> {
    let (client, server) = (mesh.pod(&source("tunnel", 0)), mesh.pod("tunnel-server"));
    let pair = [ztunnel::start(binary, mesh, client, &[server])?, ztunnel::start(binary, mesh, server, &[client])?];
    for one in &pair {
        cpu::pin(one.pid(), PROXY_CORE)?;
    }
    Ok(pair)
}

/// An agent with an identity, when its pods are enrolled and have certificates.
fn start_secured(mesh: &Mesh, name: &str) -> Result<Process> {
    let node = mesh.node(name);
    let agent = start_agent(node, 1, node.agent_arguments())?;
    for pod in node.pods() {
        node.wait_enrolled(pod, CERTIFICATES_TIMEOUT).with_context(|| agent.tail())?;
    }
    cpu::pin(agent.pid(), PROXY_CORE)?;
    cpu::pin(node.keeper_pid()?, PROXY_CORE)?;
    Ok(agent)
}
