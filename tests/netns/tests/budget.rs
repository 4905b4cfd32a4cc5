//! One pod's excess is its own affair (FEATURES K1, K2, demand 8).

use std::time::Duration;

use anyhow::{Result, ensure};
use heddle_testkit::prelude::*;
use heddle_tests_netns::{SOON, wait_logged};
use serde_json::json;

fn limit(mesh: &Mesh, connections_max: u64) -> Result<()> {
    let object = json!({
        "apiVersion": "heddle.dev/v1alpha1",
        "kind": "Mesh",
        "metadata": {"name": "default"},
        "spec": {"limits": {"connectionsMax": connections_max}},
    });
    mesh.source().write("mesh.yaml", &[object])
}

#[test]
fn a_pod_over_its_connection_budget_is_refused_with_a_reason_and_no_other() -> Result<()> {
    const MAX: u64 = 50;
    let mesh = Mesh::declare("budget")
        .node("a")
        .pod("noisy")
        .pod("quiet")
        .node("b")
        .pod("web")
        .unmeshed()
        .serves(tcp(8080).quiet())
        .start()?;
    let (noisy, quiet, web, node) = (mesh.pod("noisy"), mesh.pod("quiet"), mesh.pod("web"), mesh.node("a"));
    let to_web = dial(web.v4(), 8080);
    let free = noisy.hold(&to_web, MAX + 20)?;
    assert_eq!(free.opened()?, MAX + 20, "positive control: the default budget is larger");
    drop(free);
    wait_until("the registry is empty", SOON, || node.connections().is_ok_and(|c| c.is_empty()))?;

    limit(&mesh, MAX)?;
    // The limit holds for what comes after the agent has read it.
    let held = wait_for("the limit is in force", SOON, || {
        let held = noisy.hold(&to_web, MAX + 20)?;
        if held.opened()? == MAX {
            return Ok(Some(held));
        }
        drop(held);
        wait_until("the registry is empty", SOON, || node.connections().is_ok_and(|c| c.is_empty()))?;
        Ok(None)
    })?;
    noisy.connect(&to_web)?.assert_refused()?;
    wait_logged(node, "over budget", |r| r["reason"] == "pod_connections_max" && r["source_pod"] == "noisy")?;
    quiet.connect(&to_web.clone().many(5, 10))?.assert_succeeded()?;
    assert_eq!(held.ping()?, (MAX, 0), "those within the budget go on");
    held.close()?;
    wait_until("the budget is free again", SOON, || noisy.connect(&to_web).is_ok_and(|o| o.assert_succeeded().is_ok()))
}

#[test]
fn a_flooding_pod_leaves_a_quiet_one_alone() -> Result<()> {
    let mesh = Mesh::declare("flood")
        .node("a")
        .pod("noisy")
        .pod("quiet")
        .node("b")
        .pod("sink")
        .unmeshed()
        .serves(tcp(8080).never_reads().quiet())
        .pod("web")
        .unmeshed()
        .serves(tcp(8080).quiet())
        .start()?;
    let (noisy, quiet) = (mesh.pod("noisy"), mesh.pod("quiet"));
    let probe = dial(mesh.pod("web").v4(), 8080).rate(50, Duration::from_secs(2));
    let calm = quiet.connect(&probe)?;
    calm.assert_succeeded()?;
    let flood = noisy.flood(&dial(mesh.pod("sink").v4(), 8080), 500, Duration::from_secs(5))?;
    wait_until("the flood is on", SOON, || mesh.pod("sink").server(0).stats().is_ok_and(|s| s.open >= 100))?;
    let storm = quiet.connect(&probe)?;
    ensure!(flood.is_running(), "positive control: the flood outlasted the measurement");
    storm.assert_succeeded()?;
    let (before, after) = (calm.summary.exchange_p99_us, storm.summary.exchange_p99_us);
    // Two times, and what two cores shared with other tests add. The bench measures it on a quiet machine.
    ensure!(after <= before * 2 + 50_000, "p99 of the quiet pod went from {before} to {after} µs");
    let flooded = flood.finish()?;
    ensure!(flooded.summary.connected >= 100, "positive control: {flooded:?}");
    Ok(())
}

#[test]
fn a_flood_does_not_grow_the_agent_without_bound() -> Result<()> {
    let mesh = Mesh::declare("flood_memory")
        .node("a")
        .pod("noisy")
        .node("b")
        .pod("sink")
        .unmeshed()
        .serves(tcp(8080).never_reads().quiet())
        .start()?;
    let node = mesh.node("a");
    let before = heddle_testkit::probe::usage(node.agent_pid()?)?;
    let flood = mesh.pod("noisy").flood(&dial(mesh.pod("sink").v4(), 8080), 1_000, Duration::from_secs(4))?.finish()?;
    ensure!(flood.summary.connected >= 500, "positive control: {flood:?}");
    let after = heddle_testkit::probe::usage(node.agent_pid()?)?;
    let grown = after.rss_kib.saturating_sub(before.rss_kib);
    // 16 MiB of buffers are the pod's budget; 1,000 connections take something themselves.
    ensure!(grown < 40 * 1024, "the agent grew by {grown} KiB");
    Ok(())
}
