//! Connections into a pod reach the application as they were meant, and only so (DESIGN §4): at the original address,
//! from that same address, never through loopback.

use anyhow::Result;
use heddle_testkit::prelude::*;
use heddle_tests_netns::{Carried, assert_carried, both_families};

#[test]
fn a_loopback_only_listener_stays_unreachable_from_outside() -> Result<()> {
    let mesh = Mesh::declare("loopback_only")
        .external("internet")
        .node("a")
        .pod("web")
        .serves(tcp(9000).on_loopback())
        .serves(tcp(8080))
        .pod("neighbour")
        .pod("plain")
        .unmeshed()
        .node("b")
        .pod("far")
        .start()?;
    let web = mesh.pod("web");
    // Positive control of the listener: inside the pod it answers.
    web.connect(&dial("127.0.0.1".parse()?, 9000))?.assert_succeeded()?;
    web.connect(&dial("::1".parse()?, 9000))?.assert_succeeded()?;
    let before = web.server(0).accepted()?.len();
    let callers: [&Place; 5] =
        [mesh.pod("neighbour"), mesh.pod("plain"), mesh.pod("far"), mesh.node("a"), mesh.external("internet")];
    for caller in callers {
        for ip in both_families(web) {
            let what = format!("{} to the loopback-only listener by {ip}", caller.name());
            refused_but(&what, || caller.connect(&dial(ip, 9000)), || caller.connect(&dial(ip, 8080)))?;
        }
    }
    assert_eq!(web.server(0).accepted()?.len(), before, "the listener has seen nobody");
    Ok(())
}

#[test]
fn a_listener_on_the_pods_addresses_only_works() -> Result<()> {
    let mesh = Mesh::declare("pod_ip_only")
        .node("a")
        .pod("web")
        .serves(tcp(9000).on_pod_addresses())
        .pod("neighbour")
        .pod("plain")
        .unmeshed()
        .node("b")
        .pod("far")
        .start()?;
    let web = mesh.pod("web");
    for ip in both_families(web) {
        assert_carried(mesh.pod("neighbour"), web, &dial(ip, 9000), 9000, Carried::BothSides)?;
        assert_carried(mesh.pod("far"), web, &dial(ip, 9000), 9000, Carried::BothSides)?;
        assert_carried(mesh.pod("plain"), web, &dial(ip, 9000), 9000, Carried::Inbound)?;
    }
    // The kernel would refuse this without Heddle, too; the agent must not make it work.
    web.connect(&dial("127.0.0.1".parse()?, 9000))?.assert_refused()
}

#[test]
fn every_port_is_taken_care_of() -> Result<()> {
    let ports = [1, 80, 443, 8080, 15000, 15007, 33333, 65535];
    let mut words = Mesh::declare("ports").node("a").pod("web");
    for port in ports {
        words = words.serves(tcp(port));
    }
    let mesh = words.node("b").pod("client").pod("plain").unmeshed().start()?;
    let web = mesh.pod("web");
    for (listener, port) in ports.into_iter().enumerate() {
        for ip in both_families(web) {
            assert_carried(mesh.pod("client"), web, &dial(ip, port), port, Carried::BothSides)?;
            assert_carried(mesh.pod("plain"), web, &dial(ip, port), port, Carried::Inbound)?;
        }
        let seen = web.server(listener).accepted()?;
        assert!(seen.iter().all(|a| a.local.is_some_and(|l| l.port() == port)), "{seen:?}");
    }
    Ok(())
}
