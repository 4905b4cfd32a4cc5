//! A new agent takes over from a running one, and nothing fails (FEATURES J3, demand 5).

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use heddle_testkit::prelude::*;
use heddle_testkit::process::Process;
use heddle_tests_netns::SOON;
use heddle_tests_netns::peers::{hey, nginx};
use heddle_tests_netns::secure_peers::{id_of, wait_certified};
use serde_json::{Value, json};

#[test]
fn a_new_agent_takes_over_under_load_and_nothing_fails() -> Result<()> {
    let mesh = Mesh::declare("takeover").node("a").pod("client").pod("web").serves(tcp(8080).quiet()).start()?;
    let (client, web, node) = (mesh.pod("client"), mesh.pod("web"), mesh.node("a"));
    let load = client.start_client(&dial(web.v4(), 8080).rate(150, Duration::from_secs(4)))?;
    wait_until("the load runs", Duration::from_secs(5), || web.server(0).stats().is_ok_and(|s| s.accepted > 100))?;
    let first = node.agent_pid()?;
    let old = node.replace_agent()?;
    let status = old.wait(Duration::from_secs(10))?;
    ensure!(status.success(), "the old agent ended with {status}\n{}", old.tail());
    ensure!(node.agent_pid()? != first && load.is_running(), "positive control: replaced while the load ran");
    let outcome = load.finish()?;
    outcome.assert_succeeded().with_context(|| {
        let unusual = |line: &&str| !line.contains("\"reason\":\"completed\"");
        format!("the former agent said\n{}", old.stdout().lines().filter(unusual).collect::<Vec<_>>().join("\n"))
    })?;
    assert_eq!(outcome.summary.attempted, 600);
    client.connect(&dial(web.v6(), 8080))?.assert_succeeded()
}

#[test]
fn the_old_agent_carries_its_connections_to_their_end() -> Result<()> {
    let mesh = Mesh::declare("drain").node("a").pod("client").node("b").pod("web").serves(tcp(8080)).start()?;
    let (client, web, node) = (mesh.pod("client"), mesh.pod("web"), mesh.node("a"));
    let held = client.hold(&dial(web.v4(), 8080), 5)?;
    let old = node.replace_agent()?;
    wait_until("the new agent is ready", Duration::from_secs(10), || {
        node.is_ready() && client.connect(&dial(web.v4(), 8080)).is_ok_and(|o| o.assert_succeeded().is_ok())
    })?;
    assert_eq!(held.ping()?, (5, 0), "the old agent drains");
    ensure!(old.is_running(), "positive control: it is the old agent that carries them");
    held.close()?;
    let status = old.wait(Duration::from_secs(10))?;
    ensure!(status.success(), "{status}\n{}", old.tail());
    Ok(())
}

/// The same by mutual TLS between two nodes, for requests on connections that applications keep, on new ones, and for bytes.
#[test]
fn both_agents_are_replaced_under_secured_load_and_no_request_fails() -> Result<()> {
    let mesh = Mesh::declare("takeover_mtls")
        .node("a")
        .pod("client")
        .node("b")
        .pod("web")
        .serves(tcp(9000).quiet())
        .service("web")
        .port(80, 8080)
        .backed_by("web")
        .with_ca()
        .start()?;
    wait_certified(&mesh)?;
    let (client, web) = (mesh.pod("client"), mesh.pod("web"));
    let _nginx = nginx(web, &mesh.node("b").paths().run.join("nginx"))?;
    let url = format!("http://{}/who", SocketAddr::new(mesh.service("web").cluster_v4(), 80));
    let kept = hey(client, &["-c", "6", "-q", "25"], &url)?;
    let anew = hey(client, &["-c", "3", "-q", "15", "-disable-keepalive"], &url)?;
    let streams = client.start_client(&dial(web.v6(), 9000).rate(40, Duration::from_secs(15)))?;
    let is_request =
        |r: &Value| r["transport"] == "heddle" && r["path"] == "/who" && r["source_principal"] == id_of(client);
    let mut former = Vec::new();
    for node in mesh.nodes() {
        let carries = || node.access_log().into_iter().filter(is_request).count() > 50;
        wait_until("it carries requests by mutual TLS", SOON, carries).with_context(|| node.agent_tail())?;
        let old = node.replace_agent()?;
        let status = old.wait(SOON * 3)?;
        ensure!(status.success(), "the old agent ended with {status}\n{}", old.tail());
        wait_until("its successor carries them", SOON, carries).with_context(|| node.agent_tail())?;
        former.push(old);
    }
    ensure!(streams.is_running(), "positive control: replaced while the load ran");
    let all = || {
        let said = former.iter().map(Process::stdout).collect::<String>();
        let now = mesh.nodes().iter().flat_map(Node::access_log).map(|record| record.to_string());
        let is_usual = |line: &String| line.contains("\"reason\":\"completed\"") || line.contains("\"status\":200");
        said.lines().map(ToOwned::to_owned).chain(now).filter(|line| !is_usual(line)).collect::<Vec<_>>().join("\n")
    };
    streams.finish()?.assert_succeeded().with_context(all)?;
    let counts = [kept.finish().with_context(all)?, anew.finish().with_context(all)?];
    ensure!(counts.iter().all(|count| *count > 100), "{counts:?} requests");
    Ok(())
}

/// What an agent may do does not stop changing when it drains: its connections are judged by the configuration of now, as any.
#[test]
fn a_draining_agent_goes_by_the_modes_and_policies_of_now() -> Result<()> {
    let mesh = Mesh::declare("drain_strict")
        .node("a")
        .pod("client")
        .pod("stranger")
        .unmeshed()
        .node("b")
        // Not the deadline ends what is to be ended by a change.
        .agent_arguments(&["--drain-deadline-seconds", "60"])
        .pod("web")
        .serves(tcp(8080))
        .serves(tcp(8081))
        .with_ca()
        .allow_opting_out()
        .start()?;
    wait_certified(&mesh)?;
    let (client, stranger, web, node) = (mesh.pod("client"), mesh.pod("stranger"), mesh.pod("web"), mesh.node("b"));
    let plain = stranger.hold(&dial(web.v4(), 8080), 3)?;
    let plain_elsewhere = stranger.hold(&dial(web.v4(), 8081), 2)?;
    let ours = client.hold(&dial(web.v6(), 8080), 2)?;
    let all = [(&plain, 3), (&plain_elsewhere, 2), (&ours, 2)];
    let old = node.replace_agent()?;
    // Until the new agent has the socket, it is the old one that answers; and that has these connections as long as they are open.
    wait_until("the new agent answers, and has none of them", SOON * 2, || {
        old.stderr().contains("draining") && node.is_ready() && node.connections().is_ok_and(|all| all.is_empty())
    })
    .with_context(|| old.tail())?;
    for (held, count) in all {
        ensure!(held.ping()? == (count, 0), "positive control: the old agent carries them\n{}", old.tail());
    }

    let strict = json!({"mode": "Permissive", "ports": [{"port": 8080, "mode": "Strict"}]});
    let metadata = json!({"name": "web", "namespace": "shop"});
    let modes = json!({"apiVersion": "heddle.dev/v1alpha1", "kind": "MeshTLS", "metadata": metadata, "spec": strict});
    mesh.source().write("modes.yaml", &[modes])?;
    plain.wait_ended(3, SOON).with_context(|| format!("plain text to a port that is strict now\n{}", old.tail()))?;
    ensure!(old.is_running(), "it was not the end of the agent that ended them");
    for (held, count) in [(&plain_elsewhere, 2), (&ours, 2)] {
        ensure!(held.ping()? == (count, 0), "what may go on goes on\n{}", old.tail());
    }

    // Nobody may call any more, whoever he is.
    let deny = json!({
        "apiVersion": "heddle.dev/v1alpha1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "nobody", "namespace": "shop"},
        "spec": {},
    });
    mesh.source().write("policy.yaml", &[deny])?;
    for (held, count) in [(&plain_elsewhere, 2), (&ours, 2)] {
        held.wait_ended(count, SOON).with_context(|| format!("denied since\n{}", old.tail()))?;
    }
    let status = old.wait(SOON * 2)?;
    ensure!(status.success(), "nothing is left to carry: {status}\n{}", old.tail());
    Ok(())
}

#[test]
fn a_stopped_agent_drains_and_new_connections_wait_for_the_next() -> Result<()> {
    let mesh = Mesh::declare("stop").node("a").pod("client").pod("web").serves(tcp(8080)).start()?;
    let (client, web, node) = (mesh.pod("client"), mesh.pod("web"), mesh.node("a"));
    let status = node.stop_agent()?;
    assert_eq!(status.code(), Some(0));
    node.keeper_pid()?;
    let waiting = client.start_client(&dial(web.v4(), 8080))?;
    node.start_agent()?;
    waiting.finish()?.assert_succeeded()
}

#[test]
fn the_drain_has_a_deadline() -> Result<()> {
    let mesh = Mesh::declare("deadline").node("a").pod("client").node("b").pod("web").serves(tcp(8080)).start()?;
    let (client, web, node) = (mesh.pod("client"), mesh.pod("web"), mesh.node("a"));
    let held = client.hold(&dial(web.v4(), 8080), 3)?;
    let start = std::time::Instant::now();
    // The testkit starts agents with a deadline of 5 s.
    let status = node.stop_agent()?;
    let took = start.elapsed();
    assert_eq!(status.code(), Some(0));
    ensure!(took > Duration::from_secs(3) && took < Duration::from_secs(9), "the drain took {took:?}");
    let ends = held.wait_ended(3, SOON)?;
    assert!(ends.iter().all(|e| *e == End::Reset), "cut connections are resets: {ends:?}");
    Ok(())
}
