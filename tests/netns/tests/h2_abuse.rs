//! HTTP/2 used against the agent (issue 3, demand 3): floods, bombs and window games of one pod, each for a while over several connections.
//! Proved for each: how it ends and what the log calls it, that the agents' memory is bounded meanwhile, and that two honest clients are
//! served without a failure: one in another pod, and one in the very same pod, whose streams share upstream connections with the abuse.

#[path = "strictness/stage.rs"]
mod stage;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use heddle_testkit::prelude::*;
use heddle_testkit::probe::usage;
use heddle_testkit::process::Process;
use heddle_testkit::programs::python;
use serde_json::{Value, json};
use stage::{PORT_FIRST, address, in_front_of, peer, report, start_origin, text, write};

const SECONDS: &str = "2";
const CONNECTIONS: &str = "4";
/// What an agent may grow by under one abuse.
const GROWTH_KIB_MAX: u64 = 48 << 10;
/// Of honest requests while the machine is busy with the abuse itself, whose clients are as hungry as the agents.
const P99_MS_MAX: f64 = 1000.0;

/// One way, and how its connections may end.
struct Way {
    name: &'static str,
    /// Beginnings of what the client tells of its connections' ends.
    ends: &'static [&'static str],
    /// Reasons the log gives, one of them at least.
    reasons: &'static [&'static str],
}

const fn way(name: &'static str, ends: &'static [&'static str], reasons: &'static [&'static str]) -> Way {
    Way { name, ends, reasons }
}

const ABUSE: &[&str] = &["request_abuse"];
const CALM: &[&str] = &["ENHANCE_YOUR_CALM", "nothing said, reset"];

/// Ends: GOAWAY's code if it came, how the connection ended.
const FLOODS: &[Way] = &[
    way("rapid_reset", CALM, ABUSE),
    way("rapid_reset_with_data", CALM, ABUSE),
    way("continuation", CALM, ABUSE),
    way("continuation_of_small_fields", CALM, ABUSE),
    way("empty_continuation", CALM, ABUSE),
    way("settings", CALM, ABUSE),
    way("settings_of_the_table", CALM, ABUSE),
    way("ping", CALM, ABUSE),
    way("priority", CALM, ABUSE),
    way("unknown", CALM, ABUSE),
    way("empty_data", CALM, ABUSE),
    way("window_updates", CALM, ABUSE),
    way("malformed", CALM, ABUSE),
    way("overflown_windows", CALM, ABUSE),
];

/// What is no flood, but holds or costs: it may go on, within bounds.
const GAMES: &[Way] = &[
    way("hpack_bomb", &[], &[]),
    way("hpack_table_games", &[], &[]),
    way("long_bodies", &[], &[]),
    way("zero_windows", &[], &[]),
    way("one_byte_windows", &[], &[]),
    way("large_heads_held", &[], &[]),
    way("responses_unread", &[], &[]),
];

fn pulse(from: &Place, version: &str, mesh: &Mesh) -> Result<Process> {
    let mut command = python(&["h2"])?;
    let host = address(mesh, "h2", PORT_FIRST).to_string();
    command.arg(peer("pulse.py")).args([version, &host, &PORT_FIRST.to_string()]);
    let process = from.spawn("pulse", command)?;
    wait_until("the honest client began", Duration::from_secs(10), || process.stdout().contains("first"))
        .with_context(|| process.tail())?;
    Ok(process)
}

/// What the honest client tells when it is stopped.
fn stop(pulse: &Process) -> Result<Value> {
    pulse.close_stdin();
    ensure!(pulse.wait(Duration::from_secs(10))?.success(), "{}", pulse.tail());
    let out = pulse.stdout();
    Ok(serde_json::from_str(out.lines().last().unwrap_or_default())?)
}

fn run(test: &str, ways: &[Way]) -> Result<()> {
    let port = PORT_FIRST;
    let topology = Mesh::declare(test).node("a").pod("client").pod("quiet").node("b").pod("h2").topology();
    let mesh = in_front_of(topology, "h2", &[port], Some("kubernetes.io/h2c")).start()?;
    let ports = write(&mesh.node("a").paths().run, "ports.json", &json!([port]))?;
    let _origin = start_origin(mesh.pod("h2"), "h2_origin.py", &["h2"], &ports)?;
    let host = address(&mesh, "h2", port).to_string();
    let (client, quiet) = (mesh.pod("client"), mesh.pod("quiet"));
    let agents = [mesh.node("a"), mesh.node("b")];
    let started = Instant::now();
    let mut faults = Vec::new();
    for way in ways {
        let before: Vec<u64> = agents.iter().map(|n| Ok(usage(n.agent_pid()?)?.rss_kib)).collect::<Result<_>>()?;
        let logged = agents.iter().map(|n| n.access_log().len()).collect::<Vec<_>>();
        let pulses = [pulse(client, "h2", &mesh)?, pulse(quiet, "h2", &mesh)?];
        let mut command = python(&["h2"])?;
        command.arg(peer("h2_abuse.py")).args([way.name, &host, &port.to_string(), SECONDS, CONNECTIONS]);
        let abuse = client.spawn("abuse", command)?;
        let mut most = before.clone();
        let deadline = Instant::now() + Duration::from_secs(20);
        while abuse.is_running() && Instant::now() < deadline {
            for (most, node) in most.iter_mut().zip(&agents) {
                *most = usage(node.agent_pid()?)?.rss_kib.max(*most);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let honest = [stop(&pulses[0])?, stop(&pulses[1])?];
        let mut fault = |what: String| faults.push(format!("{}: {what}", way.name));
        let growth: Vec<u64> = most.iter().zip(&before).map(|(m, b)| (m - b) >> 10).collect();
        let ended = abuse.status().is_some_and(|s| s.success());
        if !ended {
            fault(format!("the abuse itself failed: {}", abuse.tail()));
            continue;
        }
        let told: Value = serde_json::from_str(abuse.stdout().trim())?;
        eprintln!("{}: {told}; agents grew by {growth:?} MiB; honest: {} | {}", way.name, honest[0], honest[1]);
        let ends = told.as_object().into_iter().flatten().map(|(end, _)| end).filter(|end| end.contains(", "));
        for end in ends {
            if !way.ends.is_empty() && !way.ends.iter().any(|wanted| end.starts_with(wanted)) {
                fault(format!("connections ended by {end}: {told}"));
            }
        }
        let mut reasons = std::collections::BTreeSet::new();
        for (node, seen) in agents.iter().zip(&logged) {
            reasons.extend(node.access_log().iter().skip(*seen).map(|r| text(&r["reason"]).to_owned()));
        }
        if !way.reasons.is_empty() && !way.reasons.iter().any(|r| reasons.contains(*r)) {
            fault(format!("no record says {:?}: {reasons:?}", way.reasons));
        }
        if growth.iter().any(|grew| *grew > GROWTH_KIB_MAX >> 10) {
            fault(format!("agents grew by {growth:?} MiB"));
        }
        for (place, told) in ["same pod", "other pod"].iter().zip(&honest) {
            if told["failed"] != 0 {
                fault(format!("the honest client of the {place} failed: {told}"));
            }
            if told["p99_ms"].as_f64().is_none_or(|p99| p99 > P99_MS_MAX) {
                fault(format!("the honest client of the {place} waited: {told}"));
            }
        }
    }
    for node in agents {
        ensure!(!node.agent_tail().contains("panicked"), "{}", node.agent_tail());
    }
    report(&faults, ways.len(), started.elapsed())
}

#[test]
fn floods_end_their_connection_and_nobody_elses() -> Result<()> {
    run("h2_floods", FLOODS)
}

#[test]
fn bombs_and_windows_hold_no_more_than_they_may() -> Result<()> {
    run("h2_games", GAMES)
}
