//! After `heddle uninstall --node` the node is as if Heddle had never been there (demand 6), and a leak would be seen.

use std::fs::File;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use heddle_testkit::prelude::*;
use heddle_testkit::process::Process;
use heddle_tests_netns::{Carried, INBOUND_PORT, SOON, assert_carried, both_families};

fn start() -> Result<Mesh> {
    Mesh::declare("uninstall")
        .node("a")
        .pod("client")
        .pod("web")
        .serves(tcp(8080))
        .node("b")
        .without_agent()
        .pod("far")
        .serves(tcp(8080))
        .start()
}

fn uninstall(node: &Node) -> Result<()> {
    let answer = node.heddle(&["uninstall", "--node"])?;
    ensure!(answer.status.success(), "heddle uninstall --node: {answer:?}");
    Ok(())
}

#[test]
fn uninstall_leaves_nothing() -> Result<()> {
    let mesh = start()?;
    let (node, client, web, far) = (mesh.node("a"), mesh.pod("client"), mesh.pod("web"), mesh.pod("far"));
    assert_carried(client, web, &dial(web.v4(), 8080), 8080, Carried::BothSides)?;
    let objects = node.bpf_objects()?;
    let there = node.leftovers(&objects)?;
    for kind in ["bpf prog", "bpf map", "bpf link", "pin ", "listener ", "process ", "file "] {
        ensure!(there.iter().any(|l| l.starts_with(kind)), "positive control, {kind:?} of a running node: {there:#?}");
    }
    node.stop_agent()?;
    uninstall(node)?;
    let mut left = Vec::new();
    let clean = wait_until("nothing is left", SOON, || {
        left = node.leftovers(&objects).unwrap_or_else(|e| vec![e.to_string()]);
        left.is_empty()
    });
    ensure!(clean.is_ok(), "left behind: {left:#?}");
    for ip in both_families(far) {
        assert_carried(client, far, &dial(ip, 8080), 8080, Carried::Direct)?;
    }
    for ip in both_families(web) {
        assert_carried(far, web, &dial(ip, 8080), 8080, Carried::Direct)?;
    }
    // A second time there is nothing to do, and that is no failure.
    uninstall(node)
}

#[test]
fn uninstall_works_with_keeper_and_agent_dead() -> Result<()> {
    let mesh = start()?;
    let (node, client, far) = (mesh.node("a"), mesh.pod("client"), mesh.pod("far"));
    let objects = node.bpf_objects()?;
    node.kill_agent()?;
    node.end_keeper(nix::sys::signal::Signal::SIGKILL)?;
    ensure!(!node.leftovers(&objects)?.is_empty(), "positive control: pins hold the programs");
    uninstall(node)?;
    let mut left = Vec::new();
    let clean = wait_until("nothing is left", SOON, || {
        left = node.leftovers(&objects).unwrap_or_else(|e| vec![e.to_string()]);
        left.is_empty()
    });
    ensure!(clean.is_ok(), "left behind: {left:#?}");
    assert_carried(client, far, &dial(far.v4(), 8080), 8080, Carried::Direct)
}

/// The proof above can fail: each kind of leak is planted and must be noticed, alone.
#[test]
fn a_planted_leak_is_noticed() -> Result<()> {
    let mesh = start()?;
    let (node, web) = (mesh.node("a"), mesh.pod("web"));
    let objects = node.bpf_objects()?;
    node.stop_agent()?;
    uninstall(node)?;
    wait_until("nothing is left", SOON, || node.leftovers(&objects).is_ok_and(|l| l.is_empty()))?;
    let only = |kind: &str| -> Result<()> {
        let found = node.leftovers(&objects)?;
        ensure!(found.len() == 1 && found[0].contains(kind), "planted a {kind}, found {found:#?}");
        Ok(())
    };

    let listener = web.serve(&tcp(INBOUND_PORT).on_loopback())?;
    let both = node.leftovers(&objects)?;
    ensure!(both.len() == 2 && both.iter().all(|l| l.starts_with("listener")), "IPv4 and IPv6: {both:#?}");
    drop(listener);

    let mut holder =
        Command::new("sleep").arg("60").stdin(Stdio::from(File::open(web.netns().path())?)).spawn().context("sleep")?;
    let noticed = only("holds namespace");
    holder.kill()?;
    holder.wait()?;
    noticed?;

    let mut command = Command::new("sleep");
    command.arg("60");
    let process: Process = node.heddle_place().spawn("planted", command)?;
    only("process ")?;
    drop(process);

    let socket = node.paths().run.join("keeper.sock");
    let planted = std::os::unix::net::UnixListener::bind(&socket)?;
    only("file ")?;
    drop(planted);
    std::fs::remove_file(&socket)?;

    std::fs::create_dir_all(&node.paths().pins)?;
    let pin = node.paths().pins.join("planted");
    let made = Command::new("bpftool")
        .args(["map", "create"])
        .arg(&pin)
        .args(["type", "hash", "key", "4", "value", "4", "entries", "1", "name", "planted"])
        .output()?;
    ensure!(made.status.success(), "{made:?}");
    let found = node.leftovers(&objects)?;
    ensure!(found.iter().any(|l| l.starts_with("pin ")), "{found:#?}");
    ensure!(found.iter().any(|l| l.starts_with("attached or pinned")), "{found:#?}");
    std::fs::remove_file(&pin)?;
    wait_until("every plant is gone", SOON, || node.leftovers(&objects).is_ok_and(|l| l.is_empty()))
}

#[test]
fn a_planted_object_held_by_a_descriptor_is_noticed() -> Result<()> {
    let mesh = start()?;
    let node = mesh.node("a");
    let objects = node.bpf_objects()?;
    // A pin outside the instance's directory keeps one of its programs, as a leaked descriptor would.
    let program = objects.programs.first().context("positive control: a program")?;
    let pin = std::path::Path::new("/sys/fs/bpf").join(mesh.id().name("planted"));
    let pinned = Command::new("bpftool").args(["prog", "pin", "id", &program.to_string()]).arg(&pin).output()?;
    ensure!(pinned.status.success(), "{pinned:?}");
    node.stop_agent()?;
    uninstall(node)?;
    let alive = |ids: &[String]| ids.iter().any(|l| l.starts_with(&format!("bpf prog {program} ")));
    let found = node.leftovers(&objects)?;
    let noticed = alive(&found);
    std::fs::remove_file(&pin)?;
    ensure!(noticed, "the program kept alive is not noticed: {found:#?}");
    wait_until("nothing is left", SOON, || node.leftovers(&objects).is_ok_and(|l| l.is_empty()))
}
