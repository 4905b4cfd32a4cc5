//! Ten thousand connections later everything is as it was: maps, descriptors, memory (demand 13).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use heddle_testkit::pki::{claims, spiffe_id};
use heddle_testkit::prelude::*;
use heddle_testkit::probe::{Usage, usage};
use heddle_tests_netns::secure_peers::{id_of, mtls_client, wait_certified};
use heddle_tests_netns::{SOON, both_families};

#[derive(Debug, PartialEq)]
struct Footprint {
    agent: Usage,
    keeper: Usage,
    maps: BTreeMap<String, u64>,
}

fn footprint(node: &Node) -> Result<Footprint> {
    let maps = node.map_entries()?;
    Ok(Footprint { agent: usage(node.agent_pid()?)?, keeper: usage(node.keeper_pid()?)?, maps })
}

/// Opens and closes `rounds` times 400 connections of all kinds and compares before and after.
fn connections_leave_nothing(rounds: u64) -> Result<()> {
    let mesh = Mesh::declare("leaks")
        .node("a")
        .pod("client")
        .pod("web")
        .serves(tcp(8080).quiet())
        .serves(tcp(8081).resets())
        .external("internet")
        .start()?;
    let (client, web, node) = (mesh.pod("client"), mesh.pod("web"), mesh.node("a"));
    let internet = mesh.external("internet");
    let round = || -> Result<u64> {
        let mut made = 0;
        for ip in both_families(web) {
            for outcome in
                [client.connect(&dial(ip, 8080).many(10, 10))?, internet.connect(&dial(ip, 8080).many(10, 8))?]
            {
                outcome.assert_succeeded()?;
                made += outcome.summary.attempted;
            }
            // Ends that are not in order leak first.
            made += client.connect(&dial(ip, 8081).silent().wait_end().many(2, 5))?.summary.attempted;
            made += client.connect(&dial(ip, 9999).many(2, 2))?.summary.attempted;
            made += client.connect(&dial(ip, 8080).reset().many(2, 3))?.summary.attempted;
        }
        Ok(made)
    };
    let mut made = round()?;
    let idle = || wait_until("the registry is empty", SOON, || node.connections().is_ok_and(|c| c.is_empty()));
    idle()?;
    let before = footprint(node)?;

    let held = client.hold(&dial(web.v4(), 8080), 50)?;
    let during = footprint(node)?;
    ensure!(
        during.agent.fds >= before.agent.fds + 100,
        "positive control: held connections show: {before:?} {during:?}"
    );
    drop(held);
    for _ in 0..rounds {
        made += round()?;
    }
    ensure!(made >= rounds * 400, "positive control: {made} connections");
    idle()?;
    let mut after = footprint(node)?;
    let settled = wait_until("maps and descriptors are as before", Duration::from_secs(5), || {
        let Ok(now) = footprint(node) else { return false };
        after = now;
        // Sockets kept in store for the next dial come and go.
        after.maps == before.maps
            && after.agent.fds <= before.agent.fds + 32
            && after.keeper.fds <= before.keeper.fds + 8
    });
    ensure!(settled.is_ok(), "after {made} connections: before {before:#?}, after {after:#?}");
    let grown = |a: Usage, b: Usage| a.rss_kib.saturating_sub(b.rss_kib);
    ensure!(grown(after.agent, before.agent) < 8 * 1024, "the agent grew: {before:?} {after:?}");
    ensure!(grown(after.keeper, before.keeper) < 4 * 1024, "the keeper grew: {before:?} {after:?}");
    Ok(())
}

#[test]
fn a_thousand_connections_leave_nothing() -> Result<()> {
    connections_leave_nothing(3)
}

#[test]
#[ignore = "long: cargo xtask test --all"]
fn ten_thousand_connections_leave_nothing() -> Result<()> {
    connections_leave_nothing(25)
}

/// The same between two nodes with identities on: each connection a stream of mutual TLS, handshakes that fail, and connections between agents
/// that are given up for new ones.
#[test]
fn mutual_tls_leaves_nothing() -> Result<()> {
    let mesh = Mesh::declare("mtls_leaks")
        .node("a")
        .pod("client")
        .pod("attacker")
        .unmeshed()
        .node("b")
        .pod("web")
        .serves(tcp(8080).quiet())
        .serves(tcp(8081).resets())
        .with_ca()
        .start()?;
    wait_certified(&mesh)?;
    let (client, attacker, web) = (mesh.pod("client"), mesh.pod("attacker"), mesh.pod("web"));
    let id = spiffe_id("shop", "attacker");
    let expired = mesh.ca().issue("expired", &claims(&id).expired())?;
    let good = mesh.ca().issue("good", &claims(&id))?;
    let knock = |credential| {
        let to = SocketAddr::new(web.v4(), 8080);
        mtls_client(to, credential).with(&["--alpn", "heddle/h2"]).tunnel(to, "x").expects(&id_of(web)).run(attacker)
    };
    let round = || -> Result<u64> {
        let mut made = 0;
        for ip in both_families(web) {
            let outcome = client.connect(&dial(ip, 8080).many(10, 10))?;
            outcome.assert_succeeded()?;
            made += outcome.summary.attempted;
            made += client.connect(&dial(ip, 8081).silent().wait_end().many(2, 5))?.summary.attempted;
            made += client.connect(&dial(ip, 9999).many(2, 2))?.summary.attempted;
            made += client.connect(&dial(ip, 8080).reset().many(2, 3))?.summary.attempted;
        }
        knock(&expired)?.assert_refused()?;
        knock(&good)?.assert_echoed("x")?;
        Ok(made)
    };
    let mut made = round()?;
    let nodes = [mesh.node("a"), mesh.node("b")];
    let print = || nodes.into_iter().map(footprint).collect::<Result<Vec<_>>>();
    // Sockets in store and connections between agents come and go; streams and handshakes leave none behind.
    let is_as = |now: &Footprint, before: &Footprint| {
        now.maps == before.maps && now.agent.fds <= before.agent.fds + 32 && now.keeper.fds <= before.keeper.fds + 8
    };
    let mut before = print()?;
    wait_until("the first round has settled", SOON, || {
        let Ok(now) = print() else { return false };
        // Memory settles later, or never to the KiB.
        let of =
            |all: &[Footprint]| all.iter().map(|f| (f.maps.clone(), f.agent.fds, f.keeper.fds)).collect::<Vec<_>>();
        let is_settled = of(&now) == of(&before);
        before = now;
        is_settled
    })?;
    let held = client.hold(&dial(web.v4(), 8080), 50)?;
    let during = print()?;
    // At the calling side; the called side takes its sockets from a store that is filled already.
    ensure!(during[0].agent.fds >= before[0].agent.fds + 50, "positive control: {before:?} {during:?}");
    drop(held);
    for _ in 0..3 {
        made += round()?;
    }
    ensure!(made >= 900, "positive control: {made} connections");
    let mut after = print()?;
    let settled = wait_until("maps and descriptors are as before", SOON, || {
        let Ok(now) = print() else { return false };
        after = now;
        after.iter().zip(&before).all(|(after, before)| is_as(after, before))
    });
    ensure!(settled.is_ok(), "after {made} connections: before {before:#?}, after {after:#?}");
    for (after, before) in after.iter().zip(&before) {
        let grown = |a: Usage, b: Usage| a.rss_kib.saturating_sub(b.rss_kib);
        ensure!(grown(after.agent, before.agent) < 8 * 1024, "the agent grew: {before:?} {after:?}");
        ensure!(grown(after.keeper, before.keeper) < 4 * 1024, "the keeper grew: {before:?} {after:?}");
    }
    Ok(())
}

#[test]
fn enrolment_back_and_forth_leaves_nothing() -> Result<()> {
    let mesh = Mesh::declare("enrol_leaks").node("a").pod("client").pod("web").serves(tcp(8080)).start()?;
    let (client, node) = (mesh.pod("client"), mesh.node("a"));
    let turn = || -> Result<()> {
        client.leave_mesh()?;
        node.wait_state(client, "not_in_mesh", SOON)?;
        client.join_mesh()?;
        node.wait_enrolled(client, SOON)
    };
    turn()?;
    let before = footprint(node)?;
    let objects = node.bpf_objects()?;
    for _ in 0..10 {
        turn()?;
    }
    let mut after = footprint(node)?;
    let settled = wait_until("everything is as before", SOON, || {
        let Ok(now) = footprint(node) else { return false };
        after = now;
        after.maps == before.maps
            && after.agent.fds <= before.agent.fds + 8
            && after.keeper.fds <= before.keeper.fds + 8
    });
    ensure!(settled.is_ok(), "before {before:#?}, after {after:#?}");
    let now = node.bpf_objects()?;
    assert_eq!(
        (now.programs.len(), now.links.len(), now.maps.len()),
        (objects.programs.len(), objects.links.len(), objects.maps.len())
    );
    Ok(())
}

#[test]
fn agents_back_and_forth_leave_nothing_with_the_keeper() -> Result<()> {
    let mesh = Mesh::declare("agent_leaks").node("a").pod("client").pod("web").serves(tcp(8080)).start()?;
    let (client, web, node) = (mesh.pod("client"), mesh.pod("web"), mesh.node("a"));
    let turn = || -> Result<()> {
        node.kill_agent()?;
        node.start_agent()?;
        client.connect(&dial(web.v4(), 8080))?.assert_succeeded()
    };
    turn()?;
    let before = usage(node.keeper_pid()?)?;
    for _ in 0..5 {
        turn()?;
    }
    let mut after = usage(node.keeper_pid()?)?;
    wait_until("the keeper's descriptors are as before", SOON, || {
        after = node.keeper_pid().and_then(usage).unwrap_or(after);
        after.fds <= before.fds + 2
    })
    .map_err(|error| error.context(format!("before {before:?}, after {after:?}")))
}
