//! Port 15008 (DESIGN §4): outside connections to it reach a listener of their own inside the pod, under their own names, where the
//! agent serves HBONE, and nobody where it does not. The agent here is the test itself: what is proved is keeper and kernel.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use heddle_datapath::agent::HeartbeatWriter;
use heddle_datapath::client::{KeeperClient, PodListeners};
use heddle_proto::keeper::v1::{PodSpec, PodState, Role};
use heddle_testkit::prelude::*;
use heddle_tests_netns::{HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT, SOON, both_families};
use nix::sys::signal::Signal;

/// An agent that accepts nothing on its own.
struct Agent {
    keeper: KeeperClient,
    pods: Vec<PodState>,
    stop: Arc<AtomicBool>,
    beating: Option<JoinHandle<()>>,
}

impl Agent {
    fn attach(node: &Node) -> Result<Self> {
        let keeper = KeeperClient::connect(&node.paths().run, Role::Agent, "test")?;
        let attached = keeper.attach()?;
        let mut heartbeat = HeartbeatWriter::new(attached.heartbeat)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let beating = std::thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) && heartbeat.beat().is_ok() {
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let pods = keeper.inspect()?.pods;
        Ok(Self { keeper, pods, stop, beating: Some(beating) })
    }

    /// Becomes the node's agent and says who is in.
    fn enrol(&self, node: &Node, pods: &[&Pod], hbone: bool) -> Result<()> {
        let spec = |pod: &&Pod| -> Result<PodSpec> {
            let known = self.pods.iter().find(|p| p.name == pod.name()).context("not enrolled")?;
            Ok(PodSpec {
                uid: known.uid.clone(),
                namespace: pod.namespace(),
                name: pod.name().to_owned(),
                netns_path: pod.netns().path().display().to_string(),
                addresses: pod.addresses().iter().map(IpAddr::to_string).collect(),
                hbone,
                ..PodSpec::default()
            })
        };
        let specs = pods.iter().map(spec).collect::<Result<Vec<_>>>()?;
        self.keeper.ready()?;
        let states = self.keeper.set_pods(&specs)?;
        ensure!(states.len() == pods.len() && states.iter().all(|s| s.enrolled), "{}: {states:?}", node.name());
        Ok(())
    }

    fn listeners(&self, pod: &Pod) -> Result<PodListeners> {
        let uid = &self.pods.iter().find(|p| p.name == pod.name()).context("not enrolled")?.uid;
        Ok(self.keeper.take_listeners(uid)?)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = self.beating.take().map(JoinHandle::join);
    }
}

/// Connects from a place and returns both ends: the client's name of itself, and what one of `group` accepted.
fn reach(from: &Place, to: SocketAddr, group: &[Vec<TcpListener>]) -> Result<(SocketAddr, TcpStream)> {
    let client = from
        .netns()
        .inside(|| TcpStream::connect_timeout(&to, SOON))?
        .with_context(|| format!("{} to {to}", from.name()))?;
    let accepted = wait_for(&format!("{to} is accepted"), SOON, || {
        Ok(group.iter().flatten().find_map(|listener| listener.accept().ok()))
    })?;
    let name = client.local_addr()?;
    ensure!(accepted.1 == name, "accept says {}, the client is {name}", accepted.1);
    Ok((name, accepted.0))
}

fn refused(from: &Place, to: SocketAddr) -> Result<()> {
    match from.netns().inside(|| TcpStream::connect_timeout(&to, SOON))? {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Ok(()),
        other => bail!("{} to {to}: {other:?}, not refused", from.name()),
    }
}

#[test]
fn port_15008_reaches_its_own_listener_and_only_where_the_agent_serves_it() -> Result<()> {
    let mesh = Mesh::declare("hbone")
        .external("internet")
        .node("a")
        .pod("web")
        .serves(tcp(8080))
        .pod("other")
        .pod("plain")
        .unmeshed()
        .start()?;
    let (node, web, other) = (mesh.node("a"), mesh.pod("web"), mesh.pod("other"));
    let (internet, plain) = (mesh.external("internet"), mesh.pod("plain"));
    for ip in both_families(web) {
        // An agent without identity does not serve it.
        refused(internet, SocketAddr::new(ip, HBONE_PORT))?;
    }
    node.kill_agent()?;
    let agent = Agent::attach(node)?;
    agent.enrol(node, &[web, other], true)?;
    let (listeners, others) = (agent.listeners(web)?, agent.listeners(other)?);
    let shards = listeners.outbound.len();
    ensure!(listeners.hbone.len() == shards && listeners.ipv6 && shards > 1, "{shards} shards");
    for group in [&listeners.hbone, &others.hbone] {
        for (socket, ip) in group.iter().flat_map(|shard| shard.iter().zip(["127.0.0.1", "::1"])) {
            ensure!(socket.local_addr()? == SocketAddr::new(ip.parse()?, HBONE_PORT), "{:?}", socket.local_addr());
        }
    }
    for from in [internet, plain as &Place] {
        for ip in both_families(web) {
            let to = SocketAddr::new(ip, HBONE_PORT);
            for _ in 0..20 {
                let (client, accepted) = reach(from, to, &listeners.hbone)?;
                assert_eq!((accepted.local_addr()?, accepted.peer_addr()?), (to, client));
            }
            // Positive control: other ports go where they went, and 15001 and 15006 nowhere.
            let (client, accepted) = reach(from, SocketAddr::new(ip, 8080), &listeners.inbound)?;
            assert_eq!((accepted.local_addr()?, accepted.peer_addr()?), (SocketAddr::new(ip, 8080), client));
            for port in [OUTBOUND_PORT, INBOUND_PORT] {
                refused(from, SocketAddr::new(ip, port))?;
            }
        }
    }
    ensure!(others.hbone.iter().flatten().all(|l| l.accept().is_err()), "another pod's listener was given some");
    // Not from inside: neither by its own address nor by loopback, nor from another captured pod.
    for (from, ip) in [(web, web.v4()), (web, web.v6()), (web, "127.0.0.1".parse()?), (other, web.v4())] {
        from.connect(&dial(ip, HBONE_PORT))?.assert_refused()?;
    }
    // An agent that takes over and has no identity: refused again, at once.
    agent.enrol(node, &[web, other], false)?;
    for ip in both_families(web) {
        refused(internet, SocketAddr::new(ip, HBONE_PORT))?;
        reach(internet, SocketAddr::new(ip, 8080), &listeners.inbound).context("positive control")?;
    }
    Ok(())
}

#[test]
fn a_restarted_keeper_gets_the_hbone_listeners_back() -> Result<()> {
    let mesh = Mesh::declare("hbone_back").external("internet").node("a").pod("web").start()?;
    let (node, web, internet) = (mesh.node("a"), mesh.pod("web"), mesh.external("internet"));
    node.kill_agent()?;
    let agent = Agent::attach(node)?;
    agent.enrol(node, &[web], true)?;
    let listeners = agent.listeners(web)?;
    let to = SocketAddr::new(web.v4(), HBONE_PORT);
    node.end_keeper(Signal::SIGKILL)?;
    reach(internet, to, &listeners.hbone).context("no keeper is needed")?;
    node.start_keeper()?;
    reach(internet, to, &listeners.hbone).context("nor one that waits for its listeners")?;
    let next = Agent::attach(node)?;
    let uid = &next.pods.first().context("the pod was taken over")?.uid;
    next.keeper.offer_listeners(uid, &listeners)?;
    reach(internet, to, &listeners.hbone).context("nor one that has them back, and keeps the pod as it was")?;
    next.enrol(node, &[web], false)?;
    refused(internet, to)?;
    next.enrol(node, &[web], true)?;
    reach(internet, to, &next.listeners(web)?.hbone)?;
    Ok(())
}
