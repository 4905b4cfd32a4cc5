//! What happens while no agent runs (FEATURES A9): the kernel reads the heartbeat and does as the namespace says.

use std::time::Duration;

use anyhow::{Result, ensure};
use heddle_testkit::prelude::*;
use heddle_tests_netns::{Carried, assert_carried, both_families, captured_outbound};

/// The kernel believes the agent dead after 5 s without a heartbeat (DESIGN §4); this is generous.
const DEAD_MAX: Duration = Duration::from_secs(9);
/// Alive again after two good beats.
const BACK_MAX: Duration = Duration::from_secs(5);

/// Tries until a connection ends as wanted.
fn wait_outcome(what: &str, client: &Place, dial: &Dial, max: Duration, good: impl Fn(&Outcome) -> bool) -> Result<()> {
    let dial = dial.clone().within(Duration::from_millis(500));
    wait_until(what, max, || client.connect(&dial).is_ok_and(|o| good(&o)))
}

#[test]
fn closed_refuses_after_the_threshold_and_recovers() -> Result<()> {
    let mesh = Mesh::declare("closed")
        .external("internet")
        .serves(tcp(443))
        .node("a")
        .pod("client")
        .pod("web")
        .serves(tcp(8080))
        .pod("plain")
        .unmeshed()
        .start()?;
    let (client, web, node) = (mesh.pod("client"), mesh.pod("web"), mesh.node("a"));
    let out = dial(mesh.external("internet").v4(), 443);
    let out6 = dial(mesh.external("internet").v6(), 443);
    client.connect(&out)?.assert_succeeded()?;
    node.kill_agent()?;
    // At first connections wait: they are neither refused nor let through.
    let early = client.connect(&out.clone().within(Duration::from_millis(300)))?;
    assert_eq!(early.one()?.end, End::Timeout, "{early:?}");
    let refused = |o: &Outcome| o.one().is_ok_and(|c| c.connect_error.as_deref() == Some("ECONNREFUSED"));
    wait_outcome("outbound is refused", client, &out, DEAD_MAX, refused)?;
    wait_outcome("outbound IPv6 is refused", client, &out6, BACK_MAX, refused)?;
    let mapped = client.connect(&out.clone().v4_mapped())?;
    mapped.assert_refused()?;
    let internet = mesh.external("internet");
    for ip in both_families(web) {
        wait_outcome("inbound is refused", internet, &dial(ip, 8080), BACK_MAX, |o| o.assert_refused().is_ok())?;
    }
    // Positive control: a pod outside the mesh is not concerned, nor is a connection inside the pod.
    mesh.pod("plain").connect(&out)?.assert_succeeded()?;
    web.connect(&dial("127.0.0.1".parse()?, 8080))?.assert_succeeded()?;
    web.connect(&dial(web.v4(), 8080))?.assert_succeeded()?;

    node.start_agent()?;
    let good = |o: &Outcome| o.assert_succeeded().is_ok();
    wait_outcome("outbound is back", client, &out, BACK_MAX, good)?;
    wait_outcome("inbound is back", internet, &dial(web.v4(), 8080), BACK_MAX, good)?;
    assert_carried(client, web, &dial(web.v6(), 8080), 8080, Carried::BothSides)
}

#[test]
fn open_passes_after_the_threshold_and_is_captured_again() -> Result<()> {
    let mesh = Mesh::declare("open")
        .namespace("open")
        .meshed()
        .annotated("heddle.dev/failure-policy", "Open")
        .external("internet")
        .serves(tcp(443))
        .node("a")
        .pod("client")
        .in_namespace("open")
        .pod("web")
        .in_namespace("open")
        .serves(tcp(8080))
        .pod("closed-client")
        .start()?;
    let (client, web, node) = (mesh.pod("client"), mesh.pod("web"), mesh.node("a"));
    let internet = mesh.external("internet");
    let out = dial(internet.v4(), 443);
    let out6 = dial(internet.v6(), 443);
    node.kill_agent()?;
    let good = |o: &Outcome| o.assert_succeeded().is_ok();
    wait_outcome("outbound passes", client, &out, DEAD_MAX, good)?;
    assert_carried(client, internet, &out, 443, Carried::Direct)?;
    assert_carried(client, internet, &out6, 443, Carried::Direct)?;
    assert_carried(client, internet, &out.clone().v4_mapped(), 443, Carried::Direct)?;
    for ip in both_families(web) {
        wait_outcome("inbound passes", internet, &dial(ip, 8080), BACK_MAX, good)?;
        assert_carried(internet, web, &dial(ip, 8080), 8080, Carried::Direct)?;
    }
    // Positive control: Closed is the default of the other namespace at the same moment.
    mesh.pod("closed-client").connect(&out)?.assert_refused()?;
    let direct = client.hold(&out, 2)?;

    node.start_agent()?;
    wait_until("outbound is captured again", BACK_MAX, || {
        client.hold(&out, 1).is_ok_and(|_held| captured_outbound(client).is_ok_and(|n| n == 1))
    })?;
    assert_eq!(direct.ping()?, (2, 0), "what passed goes on");
    drop(direct);
    wait_outcome("inbound is back", internet, &dial(web.v4(), 8080), BACK_MAX, good)?;
    assert_carried(internet, web, &dial(web.v4(), 8080), 8080, Carried::Inbound)
}

#[test]
fn release_frees_the_pods_of_a_node_without_an_agent() -> Result<()> {
    let mesh = Mesh::declare("release")
        .external("internet")
        .serves(tcp(443))
        .node("a")
        .pod("client")
        .pod("web")
        .serves(tcp(8080))
        .start()?;
    let (client, web, node) = (mesh.pod("client"), mesh.pod("web"), mesh.node("a"));
    let internet = mesh.external("internet");
    let out = dial(internet.v4(), 443);
    node.kill_agent()?;
    let stuck = client.connect(&out.clone().within(Duration::from_millis(300)))?;
    ensure!(!stuck.one()?.succeeded(), "positive control: without an agent nothing goes");
    let answer = node.heddle(&["release", "--node"])?;
    ensure!(answer.status.success(), "{answer:?}");
    assert_carried(client, internet, &out, 443, Carried::Direct)?;
    for ip in both_families(web) {
        assert_carried(internet, web, &dial(ip, 8080), 8080, Carried::Direct)?;
    }
    for pod in node.pods() {
        let agents = pod.listeners()?.into_iter().filter(|a| heddle_testkit::probe::AGENT_PORTS.contains(&a.port()));
        assert_eq!(agents.count(), 0, "listeners are left in {}", pod.name());
    }
    // The next agent does not undo what an operator did by hand; he does.
    node.start_agent()?;
    for pod in [client, web] {
        node.wait_state(pod, "released", Duration::from_secs(5))?;
    }
    assert_carried(client, internet, &out, 443, Carried::Direct)?;
    let answer = node.heddle(&["release", "--node", "--resume"])?;
    ensure!(answer.status.success(), "{answer:?}");
    for pod in [client, web] {
        node.wait_enrolled(pod, Duration::from_secs(5))?;
    }
    assert_carried(client, web, &dial(web.v4(), 8080), 8080, Carried::BothSides)
}

/// A MeshTLS object in namespace `open`.
fn modes(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: heddle.dev/v1alpha1\nkind: MeshTLS\nmetadata: {{name: {name}, namespace: open}}\nspec: {{{spec}}}\n"
    )
}

#[test]
fn open_never_opens_a_strict_port() -> Result<()> {
    let mesh = Mesh::declare("strict-open")
        .namespace("open")
        .meshed()
        .annotated("heddle.dev/failure-policy", "Open")
        .external("internet")
        .node("a")
        .pod("client")
        .pod("some")
        .in_namespace("open")
        .labelled("app", "some")
        .serves(tcp(8080))
        .serves(tcp(9090))
        .pod("most")
        .in_namespace("open")
        .labelled("app", "most")
        .serves(tcp(8080))
        .serves(tcp(9090))
        .start()?;
    let (internet, client, node) = (mesh.external("internet"), mesh.pod("client"), mesh.node("a"));
    let (some, most) = (mesh.pod("some"), mesh.pod("most"));
    let all_ports = || [some, most].into_iter().flat_map(|pod| [8080, 9090].map(|port| (pod, port)));
    // Positive control: nothing is STRICT yet.
    for (pod, port) in all_ports() {
        for ip in both_families(pod) {
            internet.connect(&dial(ip, port))?.assert_succeeded()?;
        }
    }
    mesh.source().write_text(
        "some.yaml",
        &modes("some", "selector: {matchLabels: {app: some}}, ports: [{port: 8080, mode: Strict}]"),
    )?;
    let spec = "selector: {matchLabels: {app: most}}, mode: Strict, ports: [{port: 9090, mode: Permissive}]";
    mesh.source().write_text("most.yaml", &modes("most", spec))?;
    // While an agent lives: what counts is what the kernel knows when it dies.
    wait_until("the kernel knows both ports with a mode of their own", heddle_tests_netns::SOON, || {
        node.map_entries().is_ok_and(|maps| maps.get("HEDDLE_MODES") == Some(&2))
    })?;
    node.kill_agent()?;
    let good = |o: &Outcome| o.assert_succeeded().is_ok();
    wait_outcome("a lenient port passes", internet, &dial(some.v4(), 9090), DEAD_MAX, good)?;
    for (pod, port) in all_ports() {
        for ip in both_families(pod) {
            let dial = dial(ip, port);
            if port == 9090 {
                assert_carried(internet, pod, &dial, port, Carried::Direct)?;
                // Its own agent is dead too, and as Closed as its namespace says.
                client.connect(&dial)?.assert_refused()?;
            } else {
                internet.connect(&dial)?.assert_refused()?;
                // Positive control: the application is there.
                pod.connect(&dial)?.assert_succeeded()?;
            }
        }
    }
    // The whole mesh STRICT, and none of these pods' own: every port closed.
    mesh.source().remove("some.yaml")?;
    mesh.source().remove("most.yaml")?;
    let strict =
        "apiVersion: heddle.dev/v1alpha1\nkind: Mesh\nmetadata: {name: default}\nspec: {mtls: {mode: Strict}}\n";
    mesh.source().write_text("mesh.yaml", strict)?;
    node.start_agent()?;
    ensure!(node.counter("inbound refused strict")? > 0, "the refusals were counted");
    ensure!(node.map_entries()?.get("HEDDLE_MODES") == Some(&0), "no port has a mode of its own");
    node.kill_agent()?;
    let passes = dial(internet.v4(), 9);
    let not_waiting = |o: &Outcome| o.one().is_ok_and(|c| c.end != End::Timeout);
    wait_outcome("outbound does not wait for the agent", some, &passes, DEAD_MAX, not_waiting)?;
    for (pod, port) in all_ports() {
        for ip in both_families(pod) {
            internet.connect(&dial(ip, port))?.assert_refused()?;
        }
    }
    // And open again when nothing is STRICT any more.
    mesh.source().remove("mesh.yaml")?;
    node.start_agent()?;
    for (pod, port) in all_ports() {
        for ip in both_families(pod) {
            wait_outcome("inbound is back", internet, &dial(ip, port), BACK_MAX, good)?;
            assert_carried(internet, pod, &dial(ip, port), port, Carried::Inbound)?;
        }
    }
    Ok(())
}
