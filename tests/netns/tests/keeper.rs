//! Two processes, one with privileges (DESIGN §2, demand 4): the keeper may go and come back under traffic; the agent
//! never has a capability.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use heddle_testkit::prelude::*;
use heddle_testkit::probe::status_field;
use heddle_tests_netns::{Carried, assert_carried};
use nix::sys::signal::Signal;

#[test]
fn the_agent_has_no_privileges_and_works() -> Result<()> {
    let mesh = Mesh::declare("privileges").node("a").pod("client").pod("web").serves(tcp(8080)).start()?;
    let node = mesh.node("a");
    let (agent, keeper) = (node.agent_pid()?, node.keeper_pid()?);
    let threads = fs::read_dir(format!("/proc/{agent}/task"))?.count();
    ensure!(threads >= 2, "positive control: the agent has workers");
    for thread in fs::read_dir(format!("/proc/{agent}/task"))? {
        let id: u32 = thread?.file_name().to_str().context("thread id")?.parse()?;
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(status_field(id, set)?, "0000000000000000", "{set} of thread {id}");
        }
        for ids in ["Uid", "Gid"] {
            let all = status_field(id, ids)?;
            assert!(all.split_whitespace().all(|n| n == "65532"), "{ids} of thread {id}: {all}");
        }
        let groups = status_field(id, "Groups")?;
        assert!(groups.split_whitespace().all(|g| g == "65532"), "groups of thread {id}: {groups}");
        assert_eq!(status_field(id, "NoNewPrivs")?, "1", "thread {id}");
    }
    // Positive control: the same look at the keeper finds capabilities.
    assert_ne!(status_field(keeper, "CapEff")?, "0000000000000000");
    assert_ne!(agent, keeper);
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    assert_carried(client, web, &dial(web.v4(), 8080), 8080, Carried::BothSides)
}

#[test]
fn sockets_are_for_root_only() -> Result<()> {
    let mesh = Mesh::declare("sockets").node("a").pod("web").start()?;
    for socket in ["keeper.sock", "debug.sock"] {
        let path = mesh.node("a").paths().run.join(socket);
        let mode = fs::metadata(&path).with_context(|| path.display().to_string())?.permissions().mode() & 0o777;
        assert_eq!(mode & 0o077, 0, "{socket} has mode {mode:o}");
    }
    Ok(())
}

fn traffic_goes_on_without_the_keeper(signal: Signal) -> Result<()> {
    let mesh = Mesh::declare("keeper")
        .node("a")
        .pod("client")
        .pod("late")
        .unmeshed()
        .serves(tcp(8080))
        .node("b")
        .pod("web")
        .serves(tcp(8080))
        .start()?;
    let (client, web, late, node) = (mesh.pod("client"), mesh.pod("web"), mesh.pod("late"), mesh.node("a"));
    let before = node.bpf_objects()?;
    ensure!(before.programs.len() >= 5, "positive control: {before:?}");
    let held = client.hold(&dial(web.v4(), 8080), 5)?;
    node.end_keeper(signal)?;
    ensure!(node.keeper_pid().is_err(), "positive control: the keeper is gone");
    assert_eq!(held.ping()?, (5, 0));
    // As many as the agent has sockets in store; it gets no new ones meanwhile.
    client.connect(&dial(web.v4(), 8080).many(2, 5))?.assert_succeeded()?;

    node.start_keeper()?;
    wait_until("traffic needs the new keeper's sockets and gets them", Duration::from_secs(10), || {
        client.connect(&dial(web.v4(), 8080).many(10, 10)).is_ok_and(|o| o.assert_succeeded().is_ok())
    })?;
    assert_eq!(held.ping()?, (5, 0), "the old connections are still there");
    let after = node.bpf_objects()?;
    assert_eq!(after.links, before.links, "links were adopted, not made anew");
    late.join_mesh()?;
    node.wait_enrolled(late, Duration::from_secs(5))?;
    assert_carried(client, late, &dial(late.v4(), 8080), 8080, Carried::BothSides)?;
    // And the next agent finds everything with the new keeper.
    node.kill_agent()?;
    node.start_agent()?;
    assert_carried(client, web, &dial(web.v6(), 8080), 8080, Carried::BothSides)
}

#[test]
fn a_stopped_keeper_is_replaced_under_traffic() -> Result<()> {
    traffic_goes_on_without_the_keeper(Signal::SIGTERM)
}

#[test]
fn a_killed_keeper_is_replaced_under_traffic() -> Result<()> {
    traffic_goes_on_without_the_keeper(Signal::SIGKILL)
}

#[test]
fn keeper_and_agent_may_both_die() -> Result<()> {
    let mesh = Mesh::declare("both").node("a").pod("client").pod("web").serves(tcp(8080)).start()?;
    let (client, web, node) = (mesh.pod("client"), mesh.pod("web"), mesh.node("a"));
    let before = node.bpf_objects()?;
    node.kill_agent()?;
    node.end_keeper(Signal::SIGKILL)?;
    node.start_agent()?;
    for pod in [client, web] {
        node.wait_enrolled(pod, Duration::from_secs(5))?;
    }
    for ip in heddle_tests_netns::both_families(web) {
        assert_carried(client, web, &dial(ip, 8080), 8080, Carried::BothSides)?;
    }
    let after = node.bpf_objects()?;
    assert_eq!(after.programs.len(), before.programs.len(), "no program is there twice: {before:?} {after:?}");
    Ok(())
}

#[test]
fn an_agent_connects_to_a_keeper_that_runs() -> Result<()> {
    let mesh = Mesh::declare("apart").node("a").without_agent().pod("client").pod("web").serves(tcp(8080)).start()?;
    let node = mesh.node("a");
    node.start_keeper()?;
    let keeper = node.keeper_pid()?;
    node.start_agent()?;
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    for pod in [client, web] {
        node.wait_enrolled(pod, Duration::from_secs(5))?;
    }
    assert_eq!(node.keeper_pid()?, keeper, "no second keeper was started");
    assert_carried(client, web, &dial(web.v4(), 8080), 8080, Carried::BothSides)
}
