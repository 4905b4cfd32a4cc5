//! Whatever dies, in whatever order (demands 4 to 6): traffic resumes, nothing is left over, what was open ends with a
//! reset, and no second agent or broken file does harm.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use heddle_proto::keeper::v1::Role;
use heddle_testkit::prelude::*;
use heddle_testkit::probe::usage;
use heddle_tests_netns::{Carried, SOON, assert_carried, both_families};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn start(test: &str) -> Result<Mesh> {
    Mesh::declare(test).node("a").pod("client").node("b").pod("web").serves(tcp(8080)).start()
}

fn carried_by_both(mesh: &Mesh) -> Result<()> {
    let web = mesh.pod("web");
    for ip in both_families(web) {
        assert_carried(mesh.pod("client"), web, &dial(ip, 8080), 8080, Carried::BothSides)?;
    }
    Ok(())
}

fn signal(pid: u32, signal: Signal) -> Result<()> {
    Ok(kill(Pid::from_raw(i32::try_from(pid)?), signal)?)
}

#[test]
fn keeper_and_agent_killed_at_once_leave_nothing_behind() -> Result<()> {
    let mesh = start("both_killed")?;
    let (node, client, web) = (mesh.node("a"), mesh.pod("client"), mesh.pod("web"));
    carried_by_both(&mesh)?;
    let footprint = || -> Result<_> {
        let objects = node.bpf_objects()?;
        let counts = (objects.programs.len(), objects.maps.len(), objects.links.len());
        Ok((counts, node.map_entries()?, usage(node.keeper_pid()?)?.fds))
    };
    let before = footprint()?;
    for round in 0..3 {
        let held = client.hold(&dial(web.v4(), 8080), 5)?;
        let keeper = node.keeper_pid()?;
        signal(keeper, Signal::SIGKILL)?;
        node.kill_agent()?;
        let ends = held.wait_ended(5, SOON)?;
        ensure!(ends.iter().all(|end| *end == End::Reset), "round {round}: {ends:?}");
        wait_until("the keeper is gone", SOON, || node.keeper_pid().map_or(true, |pid| pid != keeper))?;
        node.start_agent()?;
        carried_by_both(&mesh)?;
    }
    let mut after = footprint()?;
    wait_until("everything is as before", SOON, || {
        after = footprint().unwrap_or_else(|_| after.clone());
        after.0 == before.0 && after.1 == before.1 && after.2 <= before.2 + 4
    })
    .with_context(|| format!("before {before:?}, after {after:?}"))
}

#[test]
fn an_agent_killed_while_it_drains_takes_only_its_own_with_it() -> Result<()> {
    let mesh = start("drain_killed")?;
    let (node, client, web) = (mesh.node("a"), mesh.pod("client"), mesh.pod("web"));
    let old_ones = client.hold(&dial(web.v4(), 8080), 3)?;
    let old = node.replace_agent()?;
    wait_until("the old agent drains, the new one accepts", SOON * 2, || {
        old.stderr().contains("draining") && node.is_ready()
    })?;
    let new_ones = client.hold(&dial(web.v4(), 8080), 3)?;
    ensure!(old.is_running() && old_ones.ping()? == (3, 0), "positive control: it drains");
    old.kill();
    let ends = old_ones.wait_ended(3, SOON)?;
    ensure!(ends.iter().all(|end| *end == End::Reset), "{ends:?}");
    assert_eq!(new_ones.ping()?, (3, 0), "the new agent's connections go on");
    carried_by_both(&mesh)
}

/// Waits until one of these serves and the other has ended in order.
fn one_is_left(node: &Node, agents: [heddle_testkit::process::Process; 2]) -> Result<()> {
    wait_until("one of two agents ends", Duration::from_secs(12), || agents.iter().any(|a| !a.is_running()))
        .with_context(|| format!("{}\n{}", agents[0].tail(), agents[1].tail()))?;
    let [one, two] = agents;
    let (gone, left) = if one.is_running() { (two, one) } else { (one, two) };
    let status = gone.wait(SOON)?;
    ensure!(status.success(), "it ended with {status}\n{}", gone.tail());
    ensure!(left.is_running(), "both ended\n{}", left.tail());
    node.adopt_agent(left);
    wait_until("the other serves", SOON, || node.is_ready())
}

#[test]
fn of_two_agents_started_at_once_one_serves() -> Result<()> {
    let mesh = start("two_agents")?;
    let (node, client, web) = (mesh.node("a"), mesh.pod("client"), mesh.pod("web"));
    for with_keeper in [true, false] {
        if !with_keeper {
            // Without one, each of the two starts a keeper as well.
            node.end_keeper(Signal::SIGKILL)?;
        }
        node.kill_agent()?;
        let agents = [node.spawn_agent()?, node.spawn_agent()?];
        if with_keeper {
            let load = client.start_client(&dial(web.v4(), 8080).rate(50, Duration::from_secs(3)))?;
            one_is_left(node, agents)?;
            let outcome = load.finish()?;
            outcome.assert_succeeded().context("new connections meanwhile")?;
        } else {
            one_is_left(node, agents)?;
        }
        let keepers = node.heddle_place().cgroup().processes().into_iter().filter(|pid| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|c| c.split(|b| *b == 0).nth(1) == Some(b"keeper"))
        });
        assert_eq!(keepers.count(), 1, "keepers");
        carried_by_both(&mesh)?;
    }
    Ok(())
}

/// Pods in the pinned map.
fn captured_by_kernel(pins: &Path) -> Option<usize> {
    let map = Map::HashMap(MapData::from_pin(pins.join("maps").join(heddle_abi::names::PODS)).ok()?);
    let pods: HashMap<MapData, u64, [u8; 24]> = map.try_into().ok()?;
    Some(pods.keys().filter(Result::is_ok).count())
}

#[test]
fn a_keeper_with_a_broken_memory_starts_and_is_told_again() -> Result<()> {
    let mesh = start("memory")?;
    let node = mesh.node("a");
    let file = node.paths().run.join("keeper.json");
    let good = fs::read(&file)?;
    ensure!(String::from_utf8_lossy(&good).contains("client"), "positive control: the pod is remembered");
    let half = &good[..good.len() / 2];
    for (content, agent_dies) in [(&b"\x00\xff not JSON"[..], false), (half, true), (&b""[..], false)] {
        node.end_keeper(Signal::SIGKILL)?;
        fs::write(&file, content)?;
        if agent_dies {
            node.kill_agent()?;
            node.start_agent()?;
        } else {
            node.start_keeper()?;
        }
        // Until it is told, the pod's connections are refused, or go on through the old listeners; none passes by.
        let keeper = || heddle_datapath::client::KeeperClient::connect(&node.paths().run, Role::Cli, "test");
        wait_until("the keeper is told again", SOON, || {
            captured_by_kernel(&node.paths().pins) == Some(1)
                && keeper().and_then(|k| k.inspect()).is_ok_and(|i| i.pods.iter().filter(|p| p.enrolled).count() == 1)
        })
        .with_context(|| node.agent_tail())?;
        carried_by_both(&mesh)?;
        assert_eq!(fs::read(file.with_extension("json.bad"))?, content, "put aside");
        ensure!(String::from_utf8_lossy(&fs::read(&file)?).contains("client"), "and written anew");
    }
    Ok(())
}

#[test]
fn a_keeper_started_on_another_cgroup_moves_there() -> Result<()> {
    let mesh = start("move")?;
    let (node, client, web) = (mesh.node("a"), mesh.pod("client"), mesh.pod("web"));
    let before = node.bpf_objects()?;
    let above = node.node_cgroup().path().parent().context("the mesh's cgroup")?.to_owned();
    node.end_keeper(Signal::SIGTERM)?;
    node.start_keeper_on(&above)?;
    wait_until("the agent is attached to it", SOON, || node.is_ready())?;
    carried_by_both(&mesh)?;
    let moved = heddle_testkit::probe::BpfObjects::of(&above, &[], "/none".as_ref())?;
    ensure!(moved.links.len() >= 9, "attached above: {moved:?}");
    let left = heddle_testkit::probe::BpfObjects::of(node.node_cgroup().path(), &[], "/none".as_ref())?;
    ensure!(left.links.is_empty(), "and not below any more: {left:?}");
    // And back, with the agent gone as well.
    node.end_keeper(Signal::SIGKILL)?;
    node.kill_agent()?;
    node.start_keeper()?;
    node.start_agent()?;
    carried_by_both(&mesh)?;
    let after = node.bpf_objects()?;
    assert_eq!((after.links.len(), after.programs.len()), (before.links.len(), before.programs.len()));
    client.connect(&dial(web.v4(), 8080).many(4, 5))?.assert_succeeded()
}

#[test]
fn a_flapping_label_settles_where_it_stopped() -> Result<()> {
    let mesh = start("flap")?;
    let (node, client, web) = (mesh.node("a"), mesh.pod("client"), mesh.pod("web"));
    let to = dial(web.v4(), 8080);
    let held = client.hold(&to, 5)?;
    let before = (usage(node.agent_pid()?)?.fds, usage(node.keeper_pid()?)?.fds);
    let load = client.start_client(&to.clone().rate(50, Duration::from_secs(4)))?;
    let mut flaps = 0;
    while flaps < 30 {
        client.leave_mesh()?;
        if flaps % 3 == 0 {
            node.wait_state(client, "not_in_mesh", SOON)?;
        }
        client.join_mesh()?;
        if flaps % 2 == 0 {
            node.wait_enrolled(client, SOON)?;
        }
        flaps += 1;
    }
    node.wait_enrolled(client, SOON)?;
    let outcome = load.finish()?;
    // A connection that was waiting in a listener of the former enrolment is reset; none hangs, none is misled.
    let sum = &outcome.summary;
    ensure!(sum.failures.keys().all(|why| why == "reset" || why == "ECONNREFUSED"), "{outcome:#?}");
    ensure!(sum.succeeded * 10 >= sum.attempted * 9, "{sum:?}");
    assert_eq!(held.ping()?, (5, 0), "open connections go on");
    carried_by_both(&mesh)?;
    held.close()?;
    let mut after = before;
    wait_until("descriptors are as before", SOON, || {
        let now = || Ok::<_, anyhow::Error>((usage(node.agent_pid()?)?.fds, usage(node.keeper_pid()?)?.fds));
        after = now().unwrap_or(after);
        after.0 <= before.0 + 8 && after.1 <= before.1 + 8
    })
    .with_context(|| format!("before {before:?}, after {after:?}"))
}

#[test]
fn a_hundred_pods_on_one_node() -> Result<()> {
    let names: Vec<String> = (0..100).map(|n| format!("pod{n}")).collect();
    let mut words = Mesh::declare("hundred").node("a").pod("web").serves(tcp(8080).quiet());
    for name in &names {
        words = words.pod(name).unmeshed();
    }
    let mesh = words.start()?;
    let (node, web) = (mesh.node("a"), mesh.pod("web"));
    let before = (usage(node.agent_pid()?)?.fds, usage(node.keeper_pid()?)?.fds);
    let start = Instant::now();
    for name in &names {
        mesh.pod(name).join_mesh()?;
    }
    wait_until("all are enrolled", SOON, || {
        let all = node.json(&["workloads"]).unwrap_or_default();
        let enrolled = |w: &&serde_json::Value| w["capture"] == "enrolled";
        all["workloads"].as_array().is_some_and(|w| w.iter().filter(enrolled).count() == names.len() + 1)
    })
    .with_context(|| node.agent_tail())?;
    let took = start.elapsed();
    for name in names.iter().step_by(9) {
        assert_carried(mesh.pod(name), web, &dial(web.v4(), 8080), 8080, Carried::BothSides)?;
    }
    let after = (usage(node.agent_pid()?)?.fds, usage(node.keeper_pid()?)?.fds);
    // Two workers: keeper 12 listeners and the namespace; agent 12 to serve, 12 to give back, 2 × 2 × 16 sockets in stock.
    let per_pod = ((after.0 - before.0) / names.len(), (after.1 - before.1) / names.len());
    ensure!(per_pod.0 <= 90 && per_pod.1 <= 14, "descriptors per pod: agent {}, keeper {}", per_pod.0, per_pod.1);
    eprintln!("100 pods: {took:?}; descriptors before {before:?}, after {after:?}");
    Ok(())
}
