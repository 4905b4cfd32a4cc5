//! 15001, 15006 and 15008 are no application's targets, from whatever direction (DESIGN §4, demand 3).

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use heddle_testkit::prelude::*;
use heddle_testkit::probe::AGENT_PORTS;
use heddle_tests_netns::{Carried, OUTBOUND_PORT, assert_carried, both_families};
use socket2::{Domain, Socket, Type};

#[test]
fn nobody_reaches_an_agent_port() -> Result<()> {
    let mesh = Mesh::declare("agent_ports")
        .external("internet")
        .node("a")
        .pod("web")
        .serves(tcp(8080))
        .pod("neighbour")
        .pod("plain")
        .unmeshed()
        .node("b")
        .pod("far")
        .start()?;
    let web = mesh.pod("web");
    let callers: [&Place; 6] =
        [web, mesh.pod("neighbour"), mesh.pod("plain"), mesh.pod("far"), mesh.node("a"), mesh.external("internet")];
    for caller in callers {
        for ip in both_families(web) {
            for port in AGENT_PORTS {
                let what = format!("{} to {ip} port {port}", caller.name());
                refused_but(&what, || caller.connect(&dial(ip, port)), || caller.connect(&dial(ip, 8080)))?;
            }
        }
    }
    for loopback in ["127.0.0.1".parse()?, "::1".parse()?] {
        for port in AGENT_PORTS {
            let what = format!("web to its {loopback} port {port}");
            refused_but(&what, || web.connect(&dial(loopback, port)), || web.connect(&dial(loopback, 8080)))?;
        }
    }
    let mapped = web.connect(&dial("127.0.0.1".parse()?, OUTBOUND_PORT).v4_mapped())?;
    mapped.assert_refused()?;
    // A loop would still turn.
    for node in mesh.nodes() {
        wait_until("no connection is left in the registry", heddle_tests_netns::SOON, || {
            node.connections().is_ok_and(|c| c.is_empty())
        })?;
    }
    Ok(())
}

#[test]
fn an_application_cannot_join_the_agents_listeners() -> Result<()> {
    let mesh = Mesh::declare("join").node("a").pod("client").node("b").pod("web").serves(tcp(8080)).start()?;
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    // Positive control: SO_REUSEPORT lets the same program join a listener of its own.
    let first = client.serve(&tcp(16001).reuse_port().on_loopback())?;
    let second = client.serve(&tcp(16001).reuse_port().on_loopback())?;
    drop((first, second));

    // The outbound listener is on loopback: every address that overlaps with it is taken, whatever the options.
    let mut thieves = Vec::new();
    for place in [client, web] {
        for thief in [tcp(OUTBOUND_PORT).reuse_port().on_loopback(), tcp(OUTBOUND_PORT).on_loopback()] {
            let server = place.try_serve(&thief)?;
            assert_eq!(server.listen_errors()?, ["EADDRINUSE", "EADDRINUSE"], "{} binds {thief:?}", place.name());
        }
        // Others may or may not be bindable; what counts is that they steal nothing.
        for port in AGENT_PORTS {
            thieves.push(place.try_serve(&tcp(port).reuse_port())?);
            thieves.push(place.try_serve(&tcp(port).reuse_port().on_pod_addresses())?);
        }
    }
    let load = client.connect(&dial(web.v4(), 8080).many(10, 20))?;
    load.assert_succeeded()?;
    assert_carried(client, web, &dial(web.v6(), 8080), 8080, Carried::BothSides)?;
    for thief in &thieves {
        assert!(thief.accepted()?.is_empty(), "{} stole traffic: {:?}", thief.name(), thief.accepted()?);
    }
    Ok(())
}

#[test]
fn a_pod_that_uses_an_agent_port_is_not_enrolled_and_the_reason_is_told() -> Result<()> {
    let mesh = Mesh::declare("conflict")
        .node("a")
        .pod("squatter")
        .serves(tcp(15001).on_loopback())
        .serves(tcp(8080))
        .not_enrollable()
        .pod("tunnel")
        .serves(tcp(15008).on_pod_addresses())
        .not_enrollable()
        .pod("client")
        .programs_before_agents()
        .start()?;
    let (node, squatter, client) = (mesh.node("a"), mesh.pod("squatter"), mesh.pod("client"));
    node.wait_state(squatter, "failed", heddle_tests_netns::SOON)?;
    let workload = node.workload(squatter)?.unwrap_or_default();
    let reason = workload["capture_error"].as_str().unwrap_or_default();
    ensure!(reason.contains("15001"), "the reason names the port: {workload}");
    assert_eq!(workload["capture"], "failed", "{workload}");
    // Undone as a whole: the pod is as it was, and its neighbour is enrolled.
    assert_carried(client, squatter, &dial(squatter.v4(), 8080), 8080, Carried::Outbound)?;
    squatter.server(0).kill();
    node.wait_enrolled(squatter, Duration::from_secs(10))?;

    let tunnel = mesh.pod("tunnel");
    node.wait_state(tunnel, "failed", heddle_tests_netns::SOON)?;
    let workload = node.workload(tunnel)?.unwrap_or_default();
    let reason = workload["capture_error"].as_str().unwrap_or_default();
    ensure!(reason.contains("15008"), "the reason names the port: {workload}");
    tunnel.server(0).kill();
    node.wait_enrolled(tunnel, Duration::from_secs(10))
}

#[test]
fn a_socket_that_waits_to_join_the_agents_listeners_keeps_its_pod_out() -> Result<()> {
    let mesh = Mesh::declare("ambush")
        .node("a")
        .pod("outbound")
        .unmeshed()
        .pod("inbound")
        .unmeshed()
        .pod("hbone")
        .unmeshed()
        .start()?;
    let node = mesh.node("a");
    for (name, port) in [("outbound", OUTBOUND_PORT), ("inbound", 15006), ("hbone", 15008)] {
        let pod = mesh.pod(name);
        // Bound with every option that lets it share, and not listening: no list of listeners shows it.
        let ambush = pod.netns().inside(|| -> std::io::Result<Socket> {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.set_reuse_port(true)?;
            socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
            Ok(socket)
        })??;
        pod.join_mesh()?;
        node.wait_state(pod, "failed", heddle_tests_netns::SOON)?;
        let workload = node.workload(pod)?.unwrap_or_default();
        let reason = workload["capture_error"].as_str().unwrap_or_default();
        ensure!(reason.contains(&port.to_string()), "the reason names the port: {workload}");
        // Positive control: it was the socket.
        drop(ambush);
        node.wait_enrolled(pod, Duration::from_secs(10))?;
    }
    Ok(())
}
