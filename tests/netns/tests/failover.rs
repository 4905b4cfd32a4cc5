//! The agent dies, and nobody is refused (FEATURES J2, demand 5): new connections wait in the keeper's backlog for the
//! next agent; the open ones end with a reset, not with a hang and not with a clean end.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use heddle_testkit::prelude::*;
use heddle_tests_netns::{SOON, both_families};

/// The longest a connection may wait.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// Kills and replaces the node's agent under a load of `rate` new connections per second to `target`.
fn kill_under_load(mesh: &Mesh, node: &str, client: &Place, target: &Pod, rate: u32) -> Result<()> {
    let node = mesh.node(node);
    let load = client.start_client(&dial(target.v4(), 8080).rate(rate, Duration::from_secs(3)))?;
    let before = target.server(0).stats()?.accepted;
    wait_until("the load runs", Duration::from_secs(5), || {
        target.server(0).stats().is_ok_and(|s| s.accepted > before + u64::from(rate) / 2)
    })?;
    let start = Instant::now();
    node.kill_agent()?;
    ensure!(load.is_running(), "positive control: the load outlives the agent");
    node.start_agent()?;
    let outage = start.elapsed();
    let outcome = load.finish()?;
    let sum = &outcome.summary;
    ensure!(sum.skipped == 0 && sum.attempted == u64::from(rate) * 3, "the load was not what it should be: {sum:?}");
    ensure!(sum.connected == sum.attempted, "connections were refused while no agent ran: {sum:?}");
    // What the dead agent had accepted and not finished is reset; it is no more than was in flight at one moment.
    let lost = sum.attempted - sum.succeeded;
    ensure!(sum.failures.keys().all(|why| why == "reset"), "other ends than resets: {sum:?}");
    ensure!(lost <= u64::from(rate) / 20, "{lost} connections lost at one kill: {sum:?}");
    let slowest = Duration::from_micros(sum.slowest_exchange_us);
    ensure!(slowest <= WAIT_MAX, "a connection waited {slowest:?}; the new agent was ready after {outage:?}");
    Ok(())
}

#[test]
fn a_killed_agent_of_the_callers_refuses_nobody() -> Result<()> {
    let mesh = Mesh::declare("kill_outbound")
        .node("a")
        .pod("client")
        .node("b")
        .pod("web")
        .serves(tcp(8080).quiet())
        .start()?;
    kill_under_load(&mesh, "a", mesh.pod("client"), mesh.pod("web"), 100)
}

#[test]
fn a_killed_agent_of_the_called_refuses_nobody() -> Result<()> {
    let mesh =
        Mesh::declare("kill_inbound").external("internet").node("a").pod("web").serves(tcp(8080).quiet()).start()?;
    kill_under_load(&mesh, "a", mesh.external("internet"), mesh.pod("web"), 100)
}

#[test]
#[ignore = "long: cargo xtask test --all"]
fn a_killed_agent_refuses_nobody_at_500_connections_per_second() -> Result<()> {
    let mesh = Mesh::declare("kill_500").node("a").pod("client").pod("near").serves(tcp(8080).quiet()).start()?;
    for _ in 0..5 {
        kill_under_load(&mesh, "a", mesh.pod("client"), mesh.pod("near"), 500)?;
    }
    Ok(())
}

#[test]
fn open_connections_of_a_killed_agent_end_with_a_reset() -> Result<()> {
    let mesh = Mesh::declare("kill_open")
        .external("internet")
        .node("a")
        .pod("client")
        .pod("web")
        .serves(tcp(8080))
        .node("b")
        .pod("far")
        .serves(tcp(8080))
        .start()?;
    let (client, web, far) = (mesh.pod("client"), mesh.pod("web"), mesh.pod("far"));
    let mut held = Vec::new();
    for ip in both_families(far) {
        held.push(client.hold(&dial(ip, 8080), 10)?);
    }
    for ip in both_families(web) {
        held.push(mesh.external("internet").hold(&dial(ip, 8080), 10)?);
    }
    for one in &held {
        assert_eq!(one.ping()?, (10, 0), "positive control");
    }
    mesh.node("a").kill_agent()?;
    for one in &held {
        let ends = one.wait_ended(10, SOON)?;
        assert!(ends.iter().all(|e| *e == End::Reset), "clients: {ends:?}");
    }
    for server in [web, far] {
        let ends = server.server(0).wait_ended(20)?;
        assert!(ends.iter().all(|e| *e == End::Reset), "servers: {ends:?}");
    }
    mesh.node("a").start_agent()?;
    client.connect(&dial(far.v4(), 8080))?.assert_succeeded()
}

#[test]
fn connections_made_while_no_agent_runs_wait_for_the_next() -> Result<()> {
    let mesh = Mesh::declare("kill_wait").node("a").pod("client").pod("near").serves(tcp(8080)).start()?;
    let (client, near, node) = (mesh.pod("client"), mesh.pod("near"), mesh.node("a"));
    node.kill_agent()?;
    let waiting: Vec<_> =
        both_families(near).into_iter().map(|ip| client.start_client(&dial(ip, 8080))).collect::<Result<_>>()?;
    // They are connected, to the keeper's listener, before there is anyone to accept them.
    wait_until("connections wait", SOON, || {
        heddle_tests_netns::captured_outbound(client).is_ok_and(|n| n == waiting.len())
    })?;
    assert!(near.server(0).accepted()?.is_empty(), "nobody carries them yet");
    node.start_agent()?;
    for one in waiting {
        one.finish()?.assert_succeeded()?;
    }
    Ok(())
}
