//! Pods whose loopback has no IPv6 (DESIGN §4, facts): native IPv6 cannot be captured there, so it is refused at once or
//! the pod is not enrolled; it never hangs and never passes by.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use heddle_testkit::prelude::*;
use heddle_tests_netns::{Carried, SOON, assert_carried};

fn take_ipv6_from_loopback(pod: &Pod, off: bool) -> Result<()> {
    let value = if off { "1" } else { "0" };
    pod.netns().inside(|| fs::write("/proc/sys/net/ipv6/conf/lo/disable_ipv6", value))?.context("sysctl")
}

#[test]
fn an_ipv4_pod_works_and_its_ipv6_is_refused_at_once() -> Result<()> {
    let mesh = Mesh::declare("v4_only")
        .external("internet")
        .serves(tcp(443))
        .node("a")
        .pod("client")
        .with_families(Families::V4)
        .serves(tcp(8080))
        .unmeshed()
        .pod("other")
        .start()?;
    let (client, node, internet) = (mesh.pod("client"), mesh.node("a"), mesh.external("internet"));
    take_ipv6_from_loopback(client, true)?;
    client.join_mesh()?;
    node.wait_enrolled(client, SOON)?;
    assert_carried(client, internet, &dial(internet.v4(), 443), 443, Carried::Outbound)?;
    assert_carried(client, internet, &dial(internet.v4(), 443).v4_mapped(), 443, Carried::Outbound)?;
    assert_carried(mesh.pod("other"), client, &dial(client.v4(), 8080), 8080, Carried::BothSides)?;

    let counted = node.counter("outbound refused no_listener")?;
    let start = Instant::now();
    let refused = client.connect(&dial(internet.v6(), 443))?;
    ensure!(refused.one()?.connect_error.as_deref() == Some("ECONNREFUSED"), "{refused:?}");
    ensure!(start.elapsed() < Duration::from_secs(1), "it took {:?}", start.elapsed());
    assert_eq!(node.counter("outbound refused no_listener")?, counted + 1);
    // Positive control: the same address from a pod with IPv6.
    mesh.pod("other").connect(&dial(internet.v6(), 443))?.assert_succeeded()
}

#[test]
fn a_dual_stack_pod_is_not_enrolled_and_told_why() -> Result<()> {
    let mesh = Mesh::declare("dual_no_lo").node("a").pod("odd").serves(tcp(8080)).unmeshed().pod("client").start()?;
    let (odd, client, node) = (mesh.pod("odd"), mesh.pod("client"), mesh.node("a"));
    take_ipv6_from_loopback(odd, true)?;
    odd.join_mesh()?;
    node.wait_state(odd, "failed", SOON)?;
    let told = node.workload(odd)?.unwrap_or_default();
    let reason = told["capture_error"].as_str().unwrap_or_default();
    for word in ["shop/odd", "[::1]:15001", "disable_ipv6"] {
        ensure!(reason.contains(word), "{word} is not in {reason:?}");
    }
    // Undone as a whole: nothing of it is captured, and nothing listens.
    assert_carried(client, odd, &dial(odd.v4(), 8080), 8080, Carried::Outbound)?;
    let agents = odd.listeners()?.into_iter().filter(|a| heddle_testkit::probe::AGENT_PORTS.contains(&a.port()));
    assert_eq!(agents.count(), 0);
    // What it was told helps, without anything else being done.
    take_ipv6_from_loopback(odd, false)?;
    node.wait_enrolled(odd, SOON)?;
    assert_carried(client, odd, &dial(odd.v4(), 8080), 8080, Carried::BothSides)
}
