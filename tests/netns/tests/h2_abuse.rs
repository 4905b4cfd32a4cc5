//! HTTP/2 used against the agent (issue 3, demand 3): floods, bombs and window games of one pod, each for a while over several connections.
//! Proved for each: how it ends and what the log calls it, that the agents' memory is bounded meanwhile, and that two honest clients are
//! served without a failure: one in another pod, and one in the very same pod, whose streams share upstream connections with the abuse.

#[path = "strictness/stage.rs"]
mod stage;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use heddle_testkit::prelude::*;
use heddle_testkit::probe::usage;
use heddle_testkit::process::Process;
use heddle_testkit::programs::{program, python};
use serde_json::Value;
use stage::{PORT_FIRST, address, in_front_of, peer, report, text};

const SECONDS: &str = "1.5";
const CONNECTIONS: &str = "4";
/// What an agent may grow by under one abuse.
const GROWTH_KIB_MAX: u64 = 48 << 10;
/// Median and longest wait of honest requests, by agents without optimization on a machine that is busy with the abuse itself.
const P50_MS_MAX: f64 = 200.0;
const WAIT_MS_MAX: f64 = 3000.0;

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
    way("rapid_reset_in_turns", CALM, ABUSE),
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
    way("overflown_windows", CALM, &["request_abuse", "request_malformed"]),
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

/// nginx, so that the origin is not what is slow.
fn nginx(pod: &Pod, directory: &Path) -> Result<Process> {
    fs::create_dir_all(directory.join("logs"))?;
    fs::write(directory.join("big"), vec![b'x'; 1 << 20])?;
    let configuration = format!(
        "daemon off; worker_processes 1; error_log stderr; pid nginx.pid; user root;\n\
         events {{ worker_connections 1024; }}\n\
         http {{ access_log off; client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;\n\
         large_client_header_buffers 8 64k; keepalive_requests 1000000;\n\
         server {{ listen {PORT_FIRST} http2; root .; location / {{ return 200 \"ok\"; }} location /big {{ }} }} }}\n"
    );
    fs::write(directory.join("nginx.conf"), configuration)?;
    let mut command = program("nginx", "nginx-light")?;
    command.arg("-p").arg(directory).arg("-c").arg(directory.join("nginx.conf"));
    let process = pod.spawn("nginx", command)?;
    let listens = || pod.listeners().is_ok_and(|l| l.iter().any(|a| a.port() == PORT_FIRST));
    wait_until("nginx listens", Duration::from_secs(10), listens).with_context(|| process.tail())?;
    Ok(process)
}

fn pulse(from: &Place, version: &str, mesh: &Mesh) -> Result<Process> {
    let mut command = python(&["h2"])?;
    let host = address(mesh, "h2", PORT_FIRST).to_string();
    command.arg(peer("pulse.py")).args([version, &host, &PORT_FIRST.to_string()]);
    from.spawn("pulse", command)
}

/// What an honest client tells about the time since it was last asked.
fn ask(pulse: &Process) -> Result<Value> {
    let before = pulse.stdout().lines().count();
    pulse.send_line("how was it?")?;
    wait_for("the honest client tells", Duration::from_secs(15), || {
        let out = pulse.stdout();
        let whole = out.rfind('\n').map_or("", |end| &out[..end]);
        Ok(whole.lines().nth(before).map(serde_json::from_str).transpose()?)
    })
    .with_context(|| pulse.tail())
}

fn run(test: &str, ways: &[Way]) -> Result<()> {
    let port = PORT_FIRST;
    let topology = Mesh::declare(test).node("a").pod("client").pod("quiet").node("b").pod("h2").topology();
    let mesh = in_front_of(topology, "h2", &[port], Some("kubernetes.io/h2c")).start()?;
    let _origin = nginx(mesh.pod("h2"), &mesh.node("b").paths().run.join("nginx"))?;
    let host = address(&mesh, "h2", port).to_string();
    let (client, quiet) = (mesh.pod("client"), mesh.pod("quiet"));
    let agents = [mesh.node("a"), mesh.node("b")];
    let pulses = [pulse(client, "h2", &mesh)?, pulse(quiet, "h2", &mesh)?];
    let started = Instant::now();
    let mut faults = Vec::new();
    for way in ways {
        let before: Vec<u64> = agents.iter().map(|n| Ok(usage(n.agent_pid()?)?.rss_kib)).collect::<Result<_>>()?;
        let logged = agents.iter().map(|n| n.access_log().len()).collect::<Vec<_>>();
        ask(&pulses[0])?;
        ask(&pulses[1])?;
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
        let honest = [ask(&pulses[0])?, ask(&pulses[1])?];
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
        // The time of those that are open is up, not their welcome.
        let ends = ends.filter(|end| !end.ends_with("still open"));
        for end in ends {
            if !way.ends.is_empty() && !way.ends.iter().any(|wanted| end.starts_with(wanted)) {
                fault(format!("connections ended by {end}: {told}"));
            }
        }
        let (mut reasons, mut failed) = (BTreeSet::new(), Vec::new());
        for (node, seen) in agents.iter().zip(&logged) {
            for record in node.access_log().iter().skip(*seen) {
                reasons.insert(text(&record["reason"]).to_owned());
                if text(&record["path"]).starts_with("/pulse") && record["status"] != 200 {
                    failed.push(record.to_string());
                }
            }
        }
        if !way.reasons.is_empty() && !way.reasons.iter().any(|r| reasons.contains(*r)) {
            fault(format!("no record says {:?}: {reasons:?}", way.reasons));
        }
        if growth.iter().any(|grew| *grew > GROWTH_KIB_MAX >> 10) {
            fault(format!("agents grew by {growth:?} MiB"));
        }
        for (place, told) in ["same pod", "other pod"].iter().zip(&honest) {
            if told["failed"] != 0 {
                fault(format!("the honest client of the {place} failed: {told}\n{}", failed.join("\n")));
            }
            let (p50, longest) = (told["p50_ms"].as_f64(), told["max_ms"].as_f64());
            if !(p50.is_some_and(|t| t < P50_MS_MAX) && longest.is_some_and(|t| t < WAIT_MS_MAX)) {
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
