//! What applications are told about addresses is the truth (FEATURES A5, demand 7): `getpeername`, `getsockname` and
//! `accept()`, on both ends, for every kind of socket, and never another connection's.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use heddle_testkit::prelude::*;
use heddle_tests_netns::{Carried, assert_carried, both_families};

/// Runs one client and checks every address both ends saw.
fn check(client: &Place, server: &Pod, listener: usize, dial: &Dial) -> Result<Connection> {
    let before = server.server(listener).accepted()?.len();
    let outcome = client.connect(dial)?;
    outcome.assert_succeeded().with_context(|| format!("{dial:?}"))?;
    let seen = outcome.one()?.clone();
    let to = dial.target();
    let canonical = |a: SocketAddr| SocketAddr::new(a.ip().to_canonical(), a.port());
    ensure!(seen.peer.map(canonical) == Some(to), "getpeername of the client: {seen:?}, wanted {to}");
    let own = client.addresses().iter().copied().find(|a| a.is_ipv4() == to.is_ipv4());
    ensure!(seen.local.map(|a| a.ip().to_canonical()) == own, "getsockname of the client: {seen:?}, wanted {own:?}");
    let all = server.server(listener).wait_accepted(before + 1)?;
    let accepted = all.last().context("no accepted connection")?;
    ensure!(Some(accepted.accept.ip().to_canonical()) == own, "accept(): {accepted:?}, wanted {own:?}");
    ensure!(Some(accepted.accept) == accepted.peer, "accept() and getpeername differ: {accepted:?}");
    let here = accepted.local.map(canonical);
    let own = server.addresses().iter().any(|ip| here.map(|a| a.ip()) == Some(*ip));
    ensure!(own, "getsockname of the server: {accepted:?}, wanted an address of {}", server.name());
    Ok(seen)
}

#[test]
fn both_ends_see_the_truth_with_every_kind_of_socket() -> Result<()> {
    let mesh = Mesh::declare("truth")
        .node("a")
        .pod("client")
        .pod("near")
        .serves(tcp(8080))
        .serves(tcp(8081).mptcp())
        .node("b")
        .pod("far")
        .serves(tcp(8080))
        .serves(tcp(8081).mptcp())
        .start()?;
    let client = mesh.pod("client");
    for server in [mesh.pod("near"), mesh.pod("far")] {
        for (to, from) in both_families(server).into_iter().zip(both_families(client)) {
            let base = dial(to, 8080);
            check(client, server, 0, &base)?;
            check(client, server, 0, &base.clone().nonblocking())?;
            check(client, server, 0, &base.clone().epoll())?;
            check(client, server, 0, &base.clone().bound_to(SocketAddr::new(from, 0)))?;
            let any: IpAddr = if to.is_ipv4() { "0.0.0.0".parse()? } else { "::".parse()? };
            let seen = check(client, server, 0, &base.clone().bound_to(SocketAddr::new(any, 40_001)))?;
            assert_eq!(seen.local.map(|a| a.port()), Some(40_001));
            check(client, server, 0, &base.clone().bound_to_device("eth0"))?;
            check(client, server, 0, &base.clone().mptcp())?;
            check(client, server, 0, &base.clone().fast_open())?;
            check(client, server, 0, &base.clone().msg_fastopen())?;
            check(client, server, 1, &dial(to, 8081).mptcp())?;
            check(client, server, 1, &dial(to, 8081))?;
        }
        let mapped = check(client, server, 0, &dial(server.v4(), 8080).v4_mapped())?;
        let shape = [mapped.peer, mapped.local].map(|a| a.is_some_and(|a| a.is_ipv6()));
        assert_eq!(shape, [true, true], "an IPv6 socket is told IPv6 addresses: {mapped:?}");
        check(client, server, 0, &dial(server.v4(), 8080).v4_mapped().nonblocking())?;
    }
    // Positive control: these connections were captured, or the addresses would be true for nothing.
    assert_carried(client, mesh.pod("far"), &dial(mesh.pod("far").v4(), 8080), 8080, Carried::BothSides)
}

#[test]
fn a_client_outside_the_mesh_is_seen_with_its_address_and_port() -> Result<()> {
    let mesh = Mesh::declare("outside")
        .external("internet")
        .node("a")
        .pod("web")
        .serves(tcp(8080))
        .pod("plain")
        .unmeshed()
        .start()?;
    let web = mesh.pod("web");
    for client in [mesh.external("internet"), mesh.pod("plain").place(), mesh.node("a")] {
        for ip in both_families(web) {
            let seen = check(client, web, 0, &dial(ip, 8080))?;
            let accepted = web.server(0).accepted()?;
            let last = accepted.last().context("nothing accepted")?;
            assert_eq!(Some(last.accept.port()), seen.local.map(|a| a.port()), "{} {ip}", client.name());
            assert_eq!(last.local.map(|a| a.port()), Some(8080));
        }
    }
    Ok(())
}

/// Three pods and two hosts outside use the same source ports at the same time; in one pod, IPv4 and IPv6 do.
#[test]
fn colliding_source_ports_never_show_a_stranger() -> Result<()> {
    const PORTS: u64 = 100;
    // Outside the ephemeral range: the agent's own sockets in the pods take their ports from it.
    const FIRST: u16 = 61_000;
    let mesh = Mesh::declare("colliding")
        .external("east")
        .external("west")
        .node("a")
        .pod("web")
        .serves(tcp(8080))
        .pod("one")
        .pod("two")
        .node("b")
        .pod("three")
        .start()?;
    let web = mesh.pod("web");
    let clients: [&Place; 5] =
        [mesh.external("east"), mesh.external("west"), mesh.pod("one"), mesh.pod("two"), mesh.pod("three")];
    let held = std::thread::scope(|scope| {
        let mut started = Vec::new();
        for client in clients {
            for (to, from) in both_families(web).into_iter().zip(both_families(client)) {
                let dial = dial(to, 8080).bound_from(SocketAddr::new(from, FIRST));
                started.push(scope.spawn(move || client.hold(&dial, PORTS)));
            }
        }
        started
            .into_iter()
            .map(|t| t.join().map_err(|_| anyhow::anyhow!("a client panicked"))?)
            .collect::<Result<Vec<_>>>()
    })?;
    for one in &held {
        ensure!(one.opened()? == PORTS, "{}", one.tail());
        assert_eq!(one.ping()?, (PORTS, 0));
    }
    let accepted = web.server(0).wait_accepted(held.len() * PORTS as usize)?;
    for one in &accepted {
        ensure!(one.peer == Some(one.accept), "accept() and getpeername differ: {one:?}");
    }
    for client in clients {
        for ip in both_families(client) {
            let ports: Vec<u16> =
                accepted.iter().map(|a| a.accept).filter(|a| a.ip().to_canonical() == ip).map(|a| a.port()).collect();
            assert_eq!(ports.len() as u64, PORTS, "connections shown as {}'s {ip}", client.name());
            // Outside the mesh the very ports are seen, each once.
            if client.name() == "east" || client.name() == "west" {
                let wanted: BTreeSet<u16> = (FIRST..FIRST + PORTS as u16).collect();
                assert_eq!(ports.into_iter().collect::<BTreeSet<_>>(), wanted, "{} {ip}", client.name());
            }
        }
    }
    Ok(())
}

/// A source port that was another client's a moment ago shows the new client: records are used once.
#[test]
fn a_reused_source_port_shows_its_new_owner() -> Result<()> {
    let mesh = Mesh::declare("reused")
        .external("east")
        .external("west")
        .node("a")
        .pod("web")
        .serves(tcp(8080))
        .serves(tcp(8081))
        .start()?;
    let web = mesh.pod("web");
    for round in 0..5_u16 {
        for (name, listener, port) in [("east", 0, 8080), ("west", 0, 8080), ("east", 1, 8081), ("west", 1, 8081)] {
            let client = mesh.external(name);
            let source = SocketAddr::new(client.v4(), 42_000 + round);
            // A reset leaves no TIME_WAIT behind, so that the port is free again at once.
            let dial = dial(web.v4(), port).bound_to(source).reset();
            let seen = check(client, web, listener, &dial)?;
            assert_eq!(seen.local, Some(source));
            assert_eq!(web.server(listener).accepted()?.last().map(|a| a.accept.port()), Some(source.port()));
        }
    }
    Ok(())
}
