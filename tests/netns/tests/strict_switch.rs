//! Connections that go round the agent when their port becomes STRICT (FEATURES A2): they end, and nothing else does.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use heddle_testkit::prelude::*;
use heddle_tests_netns::{SOON, both_families, captured_inbound, wait_reason};

/// FEATURES A2.
const LIVE_MAX: Duration = Duration::from_secs(1);

fn modes(spec: &str) -> String {
    format!(
        "apiVersion: heddle.dev/v1alpha1\nkind: MeshTLS\nmetadata: {{name: web, namespace: shop}}\nspec: {{{spec}}}\n"
    )
}

/// Waits until all connections of a client have ended, each by a reset.
fn wait_reset(held: &Held, count: usize) -> Result<()> {
    let ends = held.wait_ended(count, SOON)?;
    ensure!(ends.iter().all(|end| *end == End::Reset), "{ends:?}\n{}", held.tail());
    Ok(())
}

#[test]
fn enrolment_ends_what_goes_round_the_agent_to_strict_ports_only() -> Result<()> {
    let mesh = Mesh::declare("strict-enrol")
        .namespace("shop")
        .external("internet")
        .serves(tcp(443))
        .node("a")
        .pod("web")
        .in_namespace("shop")
        .serves(tcp(8080))
        .serves(tcp(9090))
        .programs_before_agents()
        .start()?;
    let (internet, web, node) = (mesh.external("internet"), mesh.pod("web"), mesh.node("a"));
    mesh.source().write_text("modes.yaml", &modes("mode: Strict, ports: [{port: 9090, mode: Permissive}]"))?;
    let to_strict: Vec<Held> =
        both_families(web).into_iter().map(|ip| internet.hold(&dial(ip, 8080), 3)).collect::<Result<_>>()?;
    let to_lenient = internet.hold(&dial(web.v4(), 9090), 2)?;
    let outgoing = web.hold(&dial(internet.v4(), 443), 2)?;
    let within = web.hold(&dial(web.v4(), 8080), 2)?;
    for held in to_strict.iter().chain([&to_lenient, &outgoing, &within]) {
        let (alive, gone) = held.ping()?;
        ensure!(alive > 0 && gone == 0, "positive control: {alive} {gone}\n{}", held.tail());
    }
    web.join_mesh()?;
    node.wait_enrolled(web, LIVE_MAX)?;
    for held in &to_strict {
        wait_reset(held, 3)?;
    }
    for (held, what) in [(&to_lenient, "to a lenient port"), (&outgoing, "to outside"), (&within, "within the pod")] {
        ensure!(held.ping()? == (2, 0), "what goes {what} goes on\n{}", held.tail());
    }
    let check = node.json(&["check"]).or_else(|error| Err(error).context(node.agent_tail()))?;
    ensure!(!check.to_string().contains("strict-ports"), "nothing is left: {check}");

    // A port that becomes STRICT later: what went round the agent before the pod was captured ends now.
    mesh.source().write_text("modes.yaml", &modes("mode: Permissive, ports: [{port: 9090, mode: Strict}]"))?;
    wait_reset(&to_lenient, 2)?;
    ensure!(outgoing.ping()? == (2, 0) && within.ping()? == (2, 0), "the rest goes on still");
    Ok(())
}

#[test]
fn what_passed_while_excluded_or_without_an_agent_ends_too() -> Result<()> {
    let mesh = Mesh::declare("strict-later")
        .namespace("shop")
        .meshed()
        .annotated("heddle.dev/failure-policy", "Open")
        .annotated("heddle.dev/allow-exclusions", "true")
        .external("internet")
        .node("a")
        .pod("web")
        .in_namespace("shop")
        .annotated("heddle.dev/exclude-inbound-ports", "9100")
        .serves(tcp(8080))
        .serves(tcp(9090))
        .serves(tcp(9100))
        .start()?;
    let (internet, web, node) = (mesh.external("internet"), mesh.pod("web"), mesh.node("a"));
    let excluded = internet.hold(&dial(web.v6(), 9100), 2)?;
    ensure!(captured_inbound(web, 9100)? == 0, "positive control: excluded");
    node.kill_agent()?;
    let mut passed = None;
    wait_until("inbound passes without an agent", Duration::from_secs(9), || {
        passed = internet.hold(&dial(web.v4(), 8080).within(Duration::from_millis(500)), 2).ok();
        passed.as_ref().is_some_and(|held| held.ping().is_ok_and(|pings| pings == (2, 0)))
    })?;
    let passed = passed.context("held connections")?;
    node.start_agent()?;
    let mut carried = None;
    wait_until("inbound is carried again", SOON, || {
        carried = internet.hold(&dial(web.v4(), 9090), 2).ok();
        captured_inbound(web, 9090).is_ok_and(|n| n == 2)
    })?;
    let carried = carried.context("held connections")?;
    ensure!(passed.ping()? == (2, 0) && excluded.ping()? == (2, 0), "an agent's return ends nothing");

    mesh.source()
        .write_text("modes.yaml", &modes("ports: [{port: 8080, mode: Strict}, {port: 9100, mode: Strict}]"))?;
    wait_reset(&passed, 2)?;
    wait_reset(&excluded, 2)?;
    ensure!(carried.ping()? == (2, 0), "what the agent carries to another port goes on\n{}", carried.tail());
    // The exclusion is refused, and said to be.
    let check = node.json(&["check"])?;
    let warned =
        check["warnings"].as_array().into_iter().flatten().any(|w| {
            w["field"] == "metadata.annotations[heddle.dev/exclude-inbound-ports]" && w["object"] == "shop/web"
        });
    ensure!(warned, "the exclusion of a STRICT port is warned of: {check}");
    let of_web = node.workload(web)?.context("the pod")?;
    ensure!(of_web["mtls"] == "Permissive, 8080 Strict, 9100 Strict", "{of_web}");
    Ok(())
}

#[test]
fn an_agent_without_identities_closes_strict_ports() -> Result<()> {
    let mesh = Mesh::declare("strict-no-ca")
        .namespace("shop")
        .meshed()
        .node("a")
        .pod("client")
        .in_namespace("shop")
        .pod("web")
        .in_namespace("shop")
        .serves(tcp(8080))
        .serves(tcp(9090))
        .start()?;
    let (client, web, node) = (mesh.pod("client"), mesh.pod("web"), mesh.node("a"));
    let held: Vec<Held> =
        both_families(web).into_iter().map(|ip| client.hold(&dial(ip, 8080), 2)).collect::<Result<_>>()?;
    let elsewhere = client.hold(&dial(web.v4(), 9090), 2)?;
    for held in held.iter().chain([&elsewhere]) {
        ensure!(held.ping()? == (2, 0), "positive control\n{}", held.tail());
    }
    mesh.source().write_text("modes.yaml", &modes("ports: [{port: 8080, mode: Strict}]"))?;
    for held in &held {
        held.wait_ended(2, SOON)?;
    }
    for ip in both_families(web) {
        let outcome = client.connect(&dial(ip, 8080))?;
        ensure!(outcome.summary.succeeded == 0, "{outcome:?}");
        client.connect(&dial(ip, 9090))?.assert_succeeded()?;
        web.connect(&dial(ip, 8080))?.assert_succeeded()?;
    }
    wait_reason(node, "plaintext_refused")?;
    ensure!(elsewhere.ping()? == (2, 0), "what goes to another port goes on");
    mesh.source().remove("modes.yaml")?;
    wait_until("the port is open again", SOON, || {
        client.connect(&dial(web.v4(), 8080)).is_ok_and(|o| o.assert_succeeded().is_ok())
    })
}
