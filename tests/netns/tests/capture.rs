//! Which connections are captured (FEATURES A4, A6, A8), proved by the kernel's tables in both namespaces.

use anyhow::Result;
use heddle_testkit::prelude::*;
use heddle_tests_netns::{Carried, assert_carried, both_families, wait_logged};

#[test]
fn meshed_pods_are_captured_on_both_sides_in_every_family() -> Result<()> {
    let mesh = Mesh::declare("both_sides")
        .node("a")
        .pod("client")
        .pod("near")
        .serves(tcp(8080))
        .node("b")
        .pod("far")
        .serves(tcp(8080))
        .start()?;
    let client = mesh.pod("client");
    for server in [mesh.pod("near"), mesh.pod("far")] {
        for ip in both_families(server) {
            for dial in [dial(ip, 8080), dial(ip, 8080).nonblocking(), dial(ip, 8080).epoll()] {
                assert_carried(client, server, &dial, 8080, Carried::BothSides)?;
            }
        }
        assert_carried(client, server, &dial(server.v4(), 8080).v4_mapped(), 8080, Carried::BothSides)?;
        let device = dial(server.v4(), 8080).bound_to_device("eth0");
        assert_carried(client, server, &device, 8080, Carried::BothSides)?;
    }
    Ok(())
}

#[test]
fn pods_outside_the_mesh_are_captured_on_the_other_side_only() -> Result<()> {
    let mesh = Mesh::declare("one_side")
        .node("a")
        .pod("meshed")
        .serves(tcp(8080))
        .pod("plain")
        .unmeshed()
        .serves(tcp(8080))
        .node("b")
        .pod("far")
        .serves(tcp(8080))
        .pod("plain-far")
        .unmeshed()
        .serves(tcp(8080))
        .start()?;
    for ip in both_families(mesh.pod("plain")) {
        assert_carried(mesh.pod("meshed"), mesh.pod("plain"), &dial(ip, 8080), 8080, Carried::Outbound)?;
    }
    for ip in both_families(mesh.pod("meshed")) {
        assert_carried(mesh.pod("plain"), mesh.pod("meshed"), &dial(ip, 8080), 8080, Carried::Inbound)?;
    }
    for ip in both_families(mesh.pod("plain-far")) {
        assert_carried(mesh.pod("meshed"), mesh.pod("plain-far"), &dial(ip, 8080), 8080, Carried::Outbound)?;
        assert_carried(mesh.pod("plain"), mesh.pod("plain-far"), &dial(ip, 8080), 8080, Carried::Direct)?;
    }
    for ip in both_families(mesh.pod("far")) {
        assert_carried(mesh.pod("plain"), mesh.pod("far"), &dial(ip, 8080), 8080, Carried::Inbound)?;
    }
    Ok(())
}

#[test]
fn external_hosts_are_called_through_the_agent_and_may_call() -> Result<()> {
    let mesh = Mesh::declare("external")
        .external("internet")
        .serves(tcp(443))
        .node("a")
        .pod("web")
        .serves(tcp(8080))
        .start()?;
    let (internet, web) = (mesh.external("internet"), mesh.pod("web"));
    for ip in both_families(internet) {
        assert_carried(web, internet, &dial(ip, 443), 443, Carried::Outbound)?;
    }
    for ip in both_families(web) {
        assert_carried(internet, web, &dial(ip, 8080), 8080, Carried::Inbound)?;
    }
    Ok(())
}

#[test]
fn programs_of_the_node_itself_reach_its_pods() -> Result<()> {
    let mesh =
        Mesh::declare("host").node("a").pod("near").serves(tcp(8080)).node("b").pod("far").serves(tcp(8080)).start()?;
    let host = mesh.node("a");
    for server in [mesh.pod("near"), mesh.pod("far")] {
        for ip in both_families(server) {
            assert_carried(host, server, &dial(ip, 8080), 8080, Carried::Inbound)?;
            let before = server.server(0).accepted()?.len();
            let seen = host.connect(&dial(ip, 8080))?;
            seen.assert_succeeded()?;
            let client = seen.one()?.local;
            let accepted = server.server(0).wait_accepted(before + 1)?;
            let last = accepted.last().map(|a| (a.accept.ip().to_canonical(), a.accept.port()));
            assert_eq!(last, client.map(|a| (a.ip(), a.port())), "the node's own address and port");
        }
    }
    Ok(())
}

#[test]
fn loopback_and_own_addresses_are_not_captured() -> Result<()> {
    let mesh = Mesh::declare("own").node("a").pod("web").serves(tcp(8080)).pod("other").serves(tcp(8080)).start()?;
    let web = mesh.pod("web");
    let loopback = ["127.0.0.1".parse()?, "::1".parse()?];
    for ip in loopback {
        let held = web.hold(&dial(ip, 8080), 1)?;
        assert_eq!(held.opened()?, 1);
        assert_eq!(heddle_tests_netns::captured_outbound(web)?, 0, "{ip} must not be captured");
    }
    for ip in both_families(web) {
        let held = web.hold(&dial(ip, 8080), 1)?;
        assert_eq!(held.opened()?, 1);
        assert_eq!(heddle_tests_netns::captured_outbound(web)?, 0, "{ip} must not be captured");
        // One leg from the pod to itself, the application's own; nothing of the agent's between.
        assert_eq!(heddle_tests_netns::captured_inbound(web, 8080)?, 1, "exactly the connection itself");
    }
    // Positive control: the same client to another pod is captured.
    assert_carried(web, mesh.pod("other"), &dial(mesh.pod("other").v4(), 8080), 8080, Carried::BothSides)
}

#[test]
fn exclusions_count_only_where_the_namespace_allows_them() -> Result<()> {
    let mesh = Mesh::declare("exclusions")
        .namespace("lenient")
        .meshed()
        .annotated("heddle.dev/allow-exclusions", "true")
        .node("a")
        .pod("lenient-client")
        .in_namespace("lenient")
        .annotated("heddle.dev/exclude-outbound-ports", "8081")
        .pod("lenient-cidr")
        .in_namespace("lenient")
        .annotated("heddle.dev/exclude-outbound-cidrs", "203.0.113.0/24,2001:db8::/32")
        .pod("lenient-server")
        .in_namespace("lenient")
        .annotated("heddle.dev/exclude-inbound-ports", "8081")
        .serves(tcp(8080))
        .serves(tcp(8081))
        .pod("strict-client")
        .annotated("heddle.dev/exclude-outbound-ports", "8081")
        .annotated("heddle.dev/exclude-outbound-cidrs", "0.0.0.0/0,::/0")
        .pod("strict-server")
        .annotated("heddle.dev/exclude-inbound-ports", "8081")
        .serves(tcp(8080))
        .serves(tcp(8081))
        .external("internet")
        .serves(tcp(8080))
        .start()?;
    let pod = |name| mesh.pod(name);
    let cases = [
        ("lenient-client", "strict-server", 8080, Carried::BothSides),
        ("lenient-client", "strict-server", 8081, Carried::Inbound),
        ("lenient-client", "lenient-server", 8081, Carried::Direct),
        ("strict-client", "strict-server", 8080, Carried::BothSides),
        ("strict-client", "strict-server", 8081, Carried::BothSides),
        ("strict-client", "lenient-server", 8080, Carried::BothSides),
        ("strict-client", "lenient-server", 8081, Carried::Outbound),
    ];
    for (client, server, port, expected) in cases {
        for ip in both_families(pod(server)) {
            assert_carried(pod(client), pod(server), &dial(ip, port), port, expected)?;
        }
    }
    let internet = mesh.external("internet");
    for ip in both_families(internet) {
        assert_carried(pod("lenient-cidr"), internet, &dial(ip, 8080), 8080, Carried::Direct)?;
        assert_carried(pod("strict-client"), internet, &dial(ip, 8080), 8080, Carried::Outbound)?;
        assert_carried(pod("lenient-client"), internet, &dial(ip, 8080), 8080, Carried::Outbound)?;
    }
    Ok(())
}

#[test]
fn pods_of_one_family_are_captured() -> Result<()> {
    let mesh = Mesh::declare("families")
        .node("a")
        .pod("four")
        .with_families(Families::V4)
        .serves(tcp(8080))
        .pod("six")
        .with_families(Families::V6)
        .serves(tcp(8080))
        .node("b")
        .pod("four-far")
        .with_families(Families::V4)
        .serves(tcp(8080))
        .pod("six-far")
        .with_families(Families::V6)
        .serves(tcp(8080))
        .start()?;
    let (four, six) = (mesh.pod("four-far").v4(), mesh.pod("six-far").v6());
    assert_carried(mesh.pod("four"), mesh.pod("four-far"), &dial(four, 8080), 8080, Carried::BothSides)?;
    assert_carried(mesh.pod("six"), mesh.pod("six-far"), &dial(six, 8080), 8080, Carried::BothSides)
}

#[test]
fn the_agents_know_what_they_carry() -> Result<()> {
    let mesh = Mesh::declare("views").node("a").pod("client").node("b").pod("web").serves(tcp(8080)).start()?;
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    let held = client.hold(&dial(web.v4(), 8080), 1)?;
    let target = format!("{}:8080", web.v4());
    let of = |node: &Node, direction: &str| -> Result<Vec<serde_json::Value>> {
        Ok(node.connections()?.into_iter().filter(|c| c["direction"] == direction).collect())
    };
    let outbound = of(mesh.node("a"), "outbound")?;
    assert_eq!(outbound.len(), 1, "{outbound:?}");
    assert_eq!(outbound[0]["original_destination"], target.as_str(), "{outbound:?}");
    let inbound = of(mesh.node("b"), "inbound")?;
    assert_eq!(inbound.len(), 1, "{inbound:?}");
    held.close()?;
    for (node, side) in [("a", "source"), ("b", "destination")] {
        let record = wait_logged(mesh.node(node), side, |r| r["reporter"] == side)?;
        assert_eq!(record["reason"], "completed", "{record}");
        assert_eq!(record["destination_pod"], "web", "{record}");
        assert!(record["bytes_received"].as_u64().is_some_and(|n| n > 0), "{record}");
        let metrics = mesh.node(node).metrics()?;
        assert!(metrics.contains("istio_tcp_connections_opened_total{"), "{metrics}");
    }
    wait_until("the registries are empty again", heddle_tests_netns::SOON, || {
        mesh.nodes().iter().all(|n| n.connections().is_ok_and(|c| c.is_empty()))
    })
}
