//! Pods come into the mesh and leave it while they run (FEATURES A1, A2, demand 6).

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use heddle_testkit::prelude::*;
use heddle_testkit::probe::{AGENT_PORTS, netns_holders};
use heddle_testkit::topology::MESH_LABEL;
use heddle_tests_netns::{Carried, SOON, assert_carried, both_families, captured_outbound};

/// FEATURES A2.
const LIVE_MAX: Duration = Duration::from_secs(1);

#[test]
fn a_label_enrols_and_releases_a_running_pod() -> Result<()> {
    let mesh = Mesh::declare("live")
        .node("a")
        .pod("client")
        .unmeshed()
        .serves(tcp(8080))
        .node("b")
        .pod("web")
        .serves(tcp(8080))
        .programs_before_agents()
        .start()?;
    let (client, web, node) = (mesh.pod("client"), mesh.pod("web"), mesh.node("a"));
    let to_web = dial(web.v4(), 8080);
    let direct = client.hold(&to_web, 3)?;
    assert_eq!(captured_outbound(client)?, 0, "positive control: not captured yet");

    client.join_mesh()?;
    node.wait_enrolled(client, LIVE_MAX)?;
    for ip in both_families(web) {
        assert_carried(client, web, &dial(ip, 8080), 8080, Carried::BothSides)?;
    }
    for ip in both_families(client) {
        assert_carried(web, client, &dial(ip, 8080), 8080, Carried::BothSides)?;
    }
    assert_eq!(direct.ping()?, (3, 0), "connections from before go on");
    assert_eq!(captured_outbound(client)?, 0, "and are what they were");

    let carried = client.hold(&to_web, 3)?;
    assert_eq!(captured_outbound(client)?, 3);
    client.leave_mesh()?;
    node.wait_state(client, "not_in_mesh", LIVE_MAX)?;
    assert_carried(client, web, &to_web, 8080, Carried::Inbound)?;
    assert_carried(web, client, &dial(client.v4(), 8080), 8080, Carried::Outbound)?;
    assert_eq!((carried.ping()?, direct.ping()?), ((3, 0), (3, 0)), "captured and direct connections go on");

    // And once more: nothing of the first time is in the way.
    carried.close()?;
    client.join_mesh()?;
    node.wait_enrolled(client, LIVE_MAX)?;
    assert_carried(client, web, &to_web, 8080, Carried::BothSides)
}

#[test]
fn the_namespace_label_speaks_for_pods_without_one() -> Result<()> {
    let mesh = Mesh::declare("namespace")
        .namespace("plain")
        .node("a")
        .pod("silent")
        .in_namespace("plain")
        .serves(tcp(8080))
        .pod("eager")
        .in_namespace("plain")
        .labelled(MESH_LABEL, "enabled")
        .pod("never")
        .in_namespace("plain")
        .unmeshed()
        .pod("odd")
        .labelled(MESH_LABEL, "perhaps")
        .not_enrollable()
        .start()?;
    let node = mesh.node("a");
    node.wait_enrolled(mesh.pod("eager"), SOON)?;
    for outside in ["silent", "never", "odd"] {
        node.wait_state(mesh.pod(outside), "not_in_mesh", SOON)?;
    }
    let odd = node.workload(mesh.pod("odd"))?.unwrap_or_default();
    assert!(odd["mesh_reason"].as_str().is_some_and(|r| !r.is_empty()), "{odd}");

    mesh.edit_namespace("plain", |n| _ = n.labels.insert(MESH_LABEL.to_owned(), "enabled".to_owned()))?;
    node.wait_enrolled(mesh.pod("silent"), LIVE_MAX)?;
    node.wait_state(mesh.pod("never"), "not_in_mesh", SOON)?;
    let silent = mesh.pod("silent");
    assert_carried(mesh.pod("eager"), silent, &dial(silent.v4(), 8080), 8080, Carried::BothSides)?;
    mesh.edit_namespace("plain", |n| n.labels.clear())?;
    node.wait_state(silent, "not_in_mesh", LIVE_MAX)?;
    assert_carried(mesh.pod("eager"), silent, &dial(silent.v4(), 8080), 8080, Carried::Outbound)
}

#[test]
fn pods_on_the_host_network_are_never_captured_and_say_so() -> Result<()> {
    let mesh = Mesh::declare("host_network")
        .node("a")
        .pod("system")
        .on_host_network()
        .serves(tcp(8080))
        .pod("client")
        .node("b")
        .pod("web")
        .serves(tcp(8080))
        .start()?;
    let (node, system, client, web) = (mesh.node("a"), mesh.pod("system"), mesh.pod("client"), mesh.pod("web"));
    let workload = node.workload(system)?.unwrap_or_default();
    assert_eq!(
        (&workload["capture"], &workload["mesh_reason"]),
        (&"not_in_mesh".into(), &"host_network".into()),
        "{workload}"
    );
    for ip in both_families(web) {
        assert_carried(system, web, &dial(ip, 8080), 8080, Carried::Inbound)?;
    }
    for ip in both_families(system) {
        assert_carried(client, system, &dial(ip, 8080), 8080, Carried::Outbound)?;
    }
    Ok(())
}

#[test]
fn a_deleted_pod_leaves_nothing_in_its_namespace() -> Result<()> {
    let mesh =
        Mesh::declare("deleted").node("a").pod("gone").serves(tcp(8080)).pod("stays").serves(tcp(8080)).start()?;
    let (node, gone, stays) = (mesh.node("a"), mesh.pod("gone"), mesh.pod("stays"));
    let agent_listeners = |pod: &Pod| -> Result<usize> {
        Ok(pod.listeners()?.iter().filter(|a| AGENT_PORTS.contains(&a.port())).count())
    };
    let attached =
        || heddle_testkit::probe::BpfObjects::of(node.node_cgroup().path(), &[gone.netns()], "/none".as_ref());
    ensure!(agent_listeners(gone)? > 0, "positive control: listeners are there");
    let links_before = attached()?.links.len();
    gone.delete_object()?;
    wait_until("nothing is left in the deleted pod's namespace", SOON, || {
        agent_listeners(gone).is_ok_and(|n| n == 0) && netns_holders(&[gone.netns()]).is_empty()
    })?;
    ensure!(attached()?.links.len() < links_before, "the namespace's sk_lookup link is gone");
    // The neighbour is untouched, and the pod itself works on, uncaptured.
    ensure!(agent_listeners(stays)? > 0);
    assert_carried(stays, gone, &dial(gone.v4(), 8080), 8080, Carried::Outbound)?;
    assert_carried(gone, stays, &dial(stays.v4(), 8080), 8080, Carried::Inbound)
}

#[test]
fn a_pod_whose_namespace_does_not_exist_is_reported_and_harms_nobody() -> Result<()> {
    let mesh = Mesh::declare("no_netns").node("a").pod("client").pod("web").serves(tcp(8080)).start()?;
    let (node, client, web) = (mesh.node("a"), mesh.pod("client"), mesh.pod("web"));
    let ghost = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "ghost", "namespace": "shop", "uid": "uid-ghost",
            "annotations": {"standalone.heddle.dev/netns": "/run/netns/heddle-test-none"},
        },
        "spec": {"nodeName": "a"},
        "status": {"phase": "Running", "podIP": "10.77.1.99", "podIPs": [{"ip": "10.77.1.99"}]},
    });
    mesh.source().write("ghost.yaml", &[ghost])?;
    wait_until("the ghost's failure is reported", SOON, || {
        let all = node.json(&["workloads"]).unwrap_or_default();
        let ghost = all["workloads"].as_array().and_then(|w| w.iter().find(|w| w["name"] == "ghost").cloned());
        ghost.is_some_and(|g| g["capture"] == "failed" && g["capture_error"].as_str().is_some_and(|r| !r.is_empty()))
    })?;
    assert_carried(client, web, &dial(web.v4(), 8080), 8080, Carried::BothSides)
}

#[test]
fn many_pods_are_enrolled_at_once() -> Result<()> {
    let names: Vec<String> = (0..20).map(|n| format!("pod{n}")).collect();
    let mut words = Mesh::declare("many").node("a").pod("web").serves(tcp(8080));
    for name in &names {
        words = words.pod(name).unmeshed();
    }
    let mesh = words.start()?;
    let node = mesh.node("a");
    let start = Instant::now();
    for name in &names {
        mesh.pod(name).join_mesh()?;
    }
    for name in &names {
        node.wait_enrolled(mesh.pod(name), SOON)?;
    }
    ensure!(start.elapsed() < SOON, "20 pods took {:?}", start.elapsed());
    let web = mesh.pod("web");
    for name in &names {
        assert_carried(mesh.pod(name), web, &dial(web.v4(), 8080), 8080, Carried::BothSides)?;
    }
    Ok(())
}
