//! Names outlive what made them only as long as they are true (FEATURES A5): a socket used again, an agent replaced, a pod
//! that left the mesh.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use heddle_testkit::prelude::*;
use heddle_tests_netns::{SOON, captured_outbound};

fn start() -> Result<Mesh> {
    Mesh::declare("reuse").node("a").pod("client").serves(tcp(9000)).node("b").pod("web").serves(tcp(8080)).start()
}

fn loopback(of: IpAddr) -> Result<IpAddr> {
    Ok(if of.is_ipv4() { "127.0.0.1".parse()? } else { "::1".parse()? })
}

#[test]
fn a_socket_used_again_does_not_show_its_former_peer() -> Result<()> {
    let mesh = start()?;
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    for to in [web.v4(), web.v6()] {
        for mptcp in [false, true] {
            let here = loopback(to)?;
            let next = SocketAddr::new(here, 9000);
            let first = dial(to, 8080);
            let socket = client.reuse(&first, Again::Connects(next), mptcp)?;
            ensure!(captured_outbound(client)? == 1, "positive control: it was captured");
            let names = socket.finish().with_context(|| format!("{to}, mptcp {mptcp}"))?;
            let [before, after] = names.as_slice() else { anyhow::bail!("{names:?}") };
            assert_eq!(before.peer, Some(first.target()), "positive control: mptcp {mptcp}");
            assert_eq!((after.peer, after.local.map(|a| a.ip())), (Some(next), Some(here)), "mptcp {mptcp}");
        }
    }
    Ok(())
}

#[test]
fn a_socket_that_listens_after_it_was_captured_lends_nobody_its_peer() -> Result<()> {
    let mesh = start()?;
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    for to in [web.v4(), web.v6()] {
        let on = SocketAddr::new(loopback(to)?, 9100);
        let names = client.reuse(&dial(to, 8080), Again::Listens(on), false)?.finish()?;
        let [before, listening, accepted] = names.as_slice() else { anyhow::bail!("{names:?}") };
        assert_eq!(before.peer.map(|a| a.ip()), Some(to), "positive control");
        assert_eq!((listening.peer, listening.local), (None, Some(on)), "a listener has its own name");
        ensure!(accepted.peer.is_some_and(|a| a.ip() == on.ip() && a.port() != 8080), "{accepted:?}");
        assert_eq!(accepted.local, Some(on));
    }
    Ok(())
}

#[test]
fn a_socket_used_again_after_its_pod_has_left_shows_where_it_is() -> Result<()> {
    let mesh = start()?;
    let (client, web, node) = (mesh.pod("client"), mesh.pod("web"), mesh.node("a"));
    for mptcp in [false, true] {
        let next = SocketAddr::new(web.v4(), 8080);
        let socket = client.reuse(&dial(web.v6(), 8080), Again::Connects(SocketAddr::new(web.v6(), 8080)), mptcp)?;
        let other = client.reuse(&dial(web.v4(), 8080), Again::Connects("127.0.0.1:9000".parse()?), mptcp)?;
        client.leave_mesh()?;
        node.wait_state(client, "not_in_mesh", SOON)?;
        let names = socket.finish()?;
        assert_eq!(names[1].peer, Some(SocketAddr::new(web.v6(), 8080)), "mptcp {mptcp}");
        let names = other.finish()?;
        assert_eq!(names[0].peer, Some(next), "positive control: it was another's, mptcp {mptcp}");
        assert_eq!(names[1].peer, Some("127.0.0.1:9000".parse()?), "mptcp {mptcp}");
        ensure!(names[1].local.is_some_and(|a| a.ip().is_loopback()), "{names:?}");
        client.join_mesh()?;
        node.wait_enrolled(client, SOON)?;
    }
    Ok(())
}

/// What both ends of two held connections are called: client, then server.
fn both_ends(held: &Held, web: &Pod) -> Result<(Vec<Named>, Vec<Named>)> {
    let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let mut server = web.server(0).names()?;
    for one in &mut server {
        (one.peer, one.local) = (one.peer.map(plain), one.local.map(plain));
    }
    Ok((held.names()?, server))
}

#[test]
fn open_connections_keep_their_names_when_agent_and_mesh_go() -> Result<()> {
    let mesh = Mesh::declare("names").node("a").pod("client").pod("web").serves(tcp(8080)).start()?;
    let (client, web, node) = (mesh.pod("client"), mesh.pod("web"), mesh.node("a"));
    for to in [web.v4(), web.v6()] {
        let before = web.server(0).accepted()?.len();
        let held = client.hold(&dial(to, 8080), 2)?;
        let first = both_ends(&held, web)?;
        let own = client.addresses().iter().copied().find(|a| a.is_ipv4() == to.is_ipv4());
        for one in &first.0 {
            assert_eq!((one.peer, one.local.map(|a| a.ip())), (Some(dial(to, 8080).target()), own), "positive control");
        }
        for one in &first.1 {
            assert_eq!(one.peer.map(|a| a.ip()), own, "positive control: {one:?}");
        }
        ensure!(first.1.len() == 2 && web.server(0).accepted()?.len() == before + 2, "{first:?}");

        // A new agent; the old one drains and carries these.
        let old = node.replace_agent()?;
        wait_until("the new agent accepts", SOON * 2, || {
            node.is_ready() && client.connect(&dial(to, 8080)).is_ok_and(|o| o.assert_succeeded().is_ok())
        })?;
        ensure!(old.is_running() && held.ping()? == (2, 0), "positive control: they are open");
        wait_until("the probe's connections are over", SOON, || web.server(0).names().is_ok_and(|n| n.len() == 2))?;
        assert_eq!(both_ends(&held, web)?, first, "after a new agent");
        let fresh = client.connect(&dial(to, 8080))?;
        assert_eq!(fresh.one()?.peer, Some(dial(to, 8080).target()));
        let accepted = web.server(0).accepted()?;
        let last = accepted.last().context("accepted")?;
        assert_eq!((Some(last.accept.ip().to_canonical()), Some(last.accept)), (own, last.peer));
        held.close()?;
        old.wait(SOON * 2)?;

        let held = client.hold(&dial(to, 8080), 2)?;
        wait_until("only these are open", SOON, || web.server(0).names().is_ok_and(|n| n.len() == 2))?;
        let first = both_ends(&held, web)?;
        for pod in [client, web] {
            pod.leave_mesh()?;
            node.wait_state(pod, "not_in_mesh", SOON)?;
        }
        assert_eq!(held.ping()?, (2, 0), "positive control: they are open");
        assert_eq!(both_ends(&held, web)?, first, "after their pods left the mesh");
        held.close()?;
        for pod in [client, web] {
            pod.join_mesh()?;
            node.wait_enrolled(pod, SOON)?;
        }
    }
    Ok(())
}
