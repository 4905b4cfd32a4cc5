//! A new agent takes over from a running one, and nothing fails (FEATURES J3, demand 5).

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use heddle_testkit::prelude::*;

#[test]
fn a_new_agent_takes_over_under_load_and_nothing_fails() -> Result<()> {
    let mesh = Mesh::declare("takeover").node("a").pod("client").pod("web").serves(tcp(8080).quiet()).start()?;
    let (client, web, node) = (mesh.pod("client"), mesh.pod("web"), mesh.node("a"));
    let load = client.start_client(&dial(web.v4(), 8080).rate(150, Duration::from_secs(4)))?;
    wait_until("the load runs", Duration::from_secs(5), || web.server(0).stats().is_ok_and(|s| s.accepted > 100))?;
    let first = node.agent_pid()?;
    let old = node.replace_agent()?;
    let status = old.wait(Duration::from_secs(10))?;
    ensure!(status.success(), "the old agent ended with {status}\n{}", old.tail());
    ensure!(node.agent_pid()? != first && load.is_running(), "positive control: replaced while the load ran");
    let outcome = load.finish()?;
    outcome.assert_succeeded().with_context(|| {
        let unusual = |line: &&str| !line.contains("\"reason\":\"completed\"");
        format!("the former agent said\n{}", old.stdout().lines().filter(unusual).collect::<Vec<_>>().join("\n"))
    })?;
    assert_eq!(outcome.summary.attempted, 600);
    client.connect(&dial(web.v6(), 8080))?.assert_succeeded()
}

#[test]
fn the_old_agent_carries_its_connections_to_their_end() -> Result<()> {
    let mesh = Mesh::declare("drain").node("a").pod("client").node("b").pod("web").serves(tcp(8080)).start()?;
    let (client, web, node) = (mesh.pod("client"), mesh.pod("web"), mesh.node("a"));
    let held = client.hold(&dial(web.v4(), 8080), 5)?;
    let old = node.replace_agent()?;
    wait_until("the new agent is ready", Duration::from_secs(10), || {
        node.is_ready() && client.connect(&dial(web.v4(), 8080)).is_ok_and(|o| o.assert_succeeded().is_ok())
    })?;
    assert_eq!(held.ping()?, (5, 0), "the old agent drains");
    ensure!(old.is_running(), "positive control: it is the old agent that carries them");
    held.close()?;
    let status = old.wait(Duration::from_secs(10))?;
    ensure!(status.success(), "{status}\n{}", old.tail());
    Ok(())
}

#[test]
fn a_stopped_agent_drains_and_new_connections_wait_for_the_next() -> Result<()> {
    let mesh = Mesh::declare("stop").node("a").pod("client").pod("web").serves(tcp(8080)).start()?;
    let (client, web, node) = (mesh.pod("client"), mesh.pod("web"), mesh.node("a"));
    let status = node.stop_agent()?;
    assert_eq!(status.code(), Some(0));
    node.keeper_pid()?;
    let waiting = client.start_client(&dial(web.v4(), 8080))?;
    node.start_agent()?;
    waiting.finish()?.assert_succeeded()
}

#[test]
fn the_drain_has_a_deadline() -> Result<()> {
    let mesh = Mesh::declare("deadline").node("a").pod("client").node("b").pod("web").serves(tcp(8080)).start()?;
    let (client, web, node) = (mesh.pod("client"), mesh.pod("web"), mesh.node("a"));
    let held = client.hold(&dial(web.v4(), 8080), 3)?;
    let start = std::time::Instant::now();
    // The testkit starts agents with a deadline of 5 s.
    let status = node.stop_agent()?;
    let took = start.elapsed();
    assert_eq!(status.code(), Some(0));
    ensure!(took > Duration::from_secs(3) && took < Duration::from_secs(9), "the drain took {took:?}");
    let ends = held.wait_ended(3, Duration::from_secs(1))?;
    assert!(ends.iter().all(|e| *e == End::Reset), "cut connections are resets: {ends:?}");
    Ok(())
}
