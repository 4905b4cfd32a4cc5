//! `run`: rounds of all contestants in turn, then memory at rest and the cost of configuration.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use heddle_testkit::prelude::*;
use heddle_testkit::ztunnel;
use serde::Deserialize;

use crate::contestants::{Arena, Binaries, Contestant, start_agent};
use crate::cpu::{self, PROXY_CORE};
use crate::load::Seen;
use crate::mtls::SecuredArena;
use crate::mtls_scenarios;
use crate::peers::PATH_1_KIB;
use crate::rows::{self, Row};
use crate::scenarios::{self, HttpVersion, Load, Scenario};

/// How much, and where to.
#[derive(Args)]
pub struct Arguments {
    /// The Envoy binary
    #[arg(long)]
    envoy: PathBuf,
    /// The HAProxy binary
    #[arg(long)]
    haproxy: PathBuf,
    /// The program that measures loading of configuration
    #[arg(long)]
    discovery_bench: PathBuf,
    /// The program that measures the recording of requests
    #[arg(long)]
    record_bench: PathBuf,
    /// The program that measures decisions of policies
    #[arg(long)]
    policy_bench: PathBuf,
    /// Write the rows there
    #[arg(long)]
    json: Option<PathBuf>,
    /// Only scenarios whose name contains this
    #[arg(long, default_value = "")]
    filter: String,
    /// Interleaved rounds
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Length of one measurement
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
}

/// Pods of the node whose memory is measured, and its workers.
const IDLE_PODS: usize = 20;
const IDLE_WORKERS: usize = 2;
/// Issue 2: agent and keeper together.
const IDLE_MIB_MAX: f64 = 25.0;
/// Above this the results deserve a warning.
const BUSY_SHARE_MAX: f64 = 0.05;
/// Open connections whose memory is measured, and what one of HTTP/1.1 may take (issue 3, whose figure for Envoy is that of
/// HTTP/1.1). Of HTTP/2 the number is shown without a bar: the `h2` crate keeps 28 KiB of buffers per connection.
const IDLE_CONNECTIONS: usize = 1000;
const IDLE_CONNECTION_KIB_MAX: f64 = 12.0;
/// The metrics of one request (issue 3).
const RECORD_US_MAX: f64 = 1.0;
const KIB: f64 = 1024.0;
const MIB: f64 = 1024.0 * 1024.0;

/// Measures; success means that every bar was met.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    ensure!(cores > PROXY_CORE, "{cores} core: load and proxies need one each, or they measure each other");
    let busy = busy_share(Duration::from_secs(1))?;
    if busy > BUSY_SHARE_MAX {
        eprintln!("warning: others use {:.0} % of this machine: ratios of CPU hold, latencies do not", busy * 100.0);
    }
    let started = Instant::now();
    let is_wanted = |name: &str| name.contains(&arguments.filter);

    let binaries = Binaries { envoy: arguments.envoy.clone(), haproxy: arguments.haproxy.clone() };
    let mut rows = Vec::new();
    let wanted: Vec<&Scenario> = scenarios::ALL.iter().filter(|scenario| is_wanted(scenario.name)).collect();
    if !wanted.is_empty() {
        let arena = Arena::build(&binaries)?;
        for scenario in wanted {
            rows.extend(compare(scenario, arguments, |contestant| {
                arena.measure(contestant, &scenario.load, scenario.connections, arguments.seconds)
            })?);
        }
    }
    let wanted: Vec<Scenario> = mtls_scenarios::all(ztunnel::binary().is_some());
    let wanted: Vec<&Scenario> = wanted.iter().filter(|scenario| is_wanted(scenario.name)).collect();
    let unmeasured: usize = wanted.iter().map(|scenario| scenario.unmeasured_bars()).sum();
    if !wanted.is_empty() {
        let arena = SecuredArena::build(&binaries)?;
        for scenario in wanted {
            rows.extend(compare(scenario, arguments, |contestant| {
                arena.measure(contestant, &scenario.load, scenario.connections, scenario.sources, arguments.seconds)
            })?);
        }
    }
    for (version, name) in [(HttpVersion::H1, "http1-idle"), (HttpVersion::H2, "http2-idle")] {
        if is_wanted(name) {
            rows.extend(idle_connections(&binaries, name, version)?);
        }
    }
    if is_wanted("idle-memory") {
        rows.extend(idle_memory()?);
    }
    if is_wanted("http-record") {
        rows.extend(told_by(&arguments.record_bench, "http-record", Some(RECORD_US_MAX))?);
    }
    if is_wanted("policy") {
        rows.extend(told_by(&arguments.policy_bench, "policy", None)?);
    }
    if is_wanted("discovery-load") {
        rows.extend(told_by(&arguments.discovery_bench, "discovery-load", None)?);
    }
    ensure!(!rows.is_empty(), "no scenario contains {:?}", arguments.filter);

    print!("{}", rows::table(&rows));
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&rows)? + "\n";
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        println!("\nwritten to {}", path.display());
    }
    let missed: Vec<&Row> = rows.iter().filter(|row| row.met == Some(false)).collect();
    let barred = rows.iter().filter(|row| row.bar.is_some()).count();
    println!(
        "\n{} of {barred} bars met, {} rows, {:.0} s",
        barred - missed.len(),
        rows.len(),
        started.elapsed().as_secs_f64()
    );
    if unmeasured > 0 {
        println!("not measured: {unmeasured} bars (no ztunnel)");
    }
    Ok(if missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// How much of all cores others use while we do nothing.
fn busy_share(window: Duration) -> Result<f64> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (before, started) = (cpu::of_machine()?, Instant::now());
    std::thread::sleep(window);
    let used = cpu::of_machine()?.saturating_sub(before);
    Ok(used.as_secs_f64() / started.elapsed().as_secs_f64() / cores as f64)
}

/// One scenario: in every round each contestant has its turn, in an order that changes with the round.
fn compare(
    scenario: &Scenario,
    arguments: &Arguments,
    measure: impl Fn(Contestant) -> Result<Seen>,
) -> Result<Vec<Row>> {
    let contestants: Vec<_> = scenario.contestants().collect();
    let mut seen: Vec<Vec<Seen>> = vec![Vec::new(); contestants.len()];
    for round in 0..arguments.rounds.max(1) {
        eprintln!("{}: round {} of {}", scenario.name, round + 1, arguments.rounds.max(1));
        for turn in 0..contestants.len() {
            let index = (turn + round as usize) % contestants.len();
            seen[index].push(measure(contestants[index])?);
        }
    }
    Ok(scenario.rows(&seen))
}

/// Memory of proxies per connection that made one request and stays open. Each pass of Heddle gets an arena of its own: memory
/// that an earlier load made a process keep would hide what the next one takes. nginx makes room for all its connections when
/// it starts, so its number leaves that out.
fn idle_connections(binaries: &Binaries, name: &str, version: HttpVersion) -> Result<Vec<Row>> {
    let load = Load::Http { requests: "idle", version, path: PATH_1_KIB, streams: 1 };
    let mut kib = Vec::new();
    for contestants in
        [&[Contestant::Envoy, Contestant::Nginx, Contestant::HeddleInbound][..], &[Contestant::HeddleOutbound]]
    {
        let arena = Arena::build(binaries)?;
        for contestant in contestants {
            eprintln!("{name}: {IDLE_CONNECTIONS} connections through {}", contestant.name(&load));
            let seen = arena.measure(*contestant, &load, IDLE_CONNECTIONS, 0.0)?;
            kib.push((*contestant, seen.resident_bytes as f64 / KIB / seen.count.max(1) as f64));
        }
    }
    let row = |(contestant, kib): &(Contestant, f64)| {
        let is_ours = matches!(contestant, Contestant::HeddleInbound | Contestant::HeddleOutbound);
        let bar = (is_ours && version == HttpVersion::H1).then_some(IDLE_CONNECTION_KIB_MAX);
        let name = format!("{name} / {}", contestant.name(&load));
        Row::alone(&name, IDLE_CONNECTIONS, "RSS per idle connection", "KiB", *kib, bar)
    };
    Ok(kib.iter().map(row).collect())
}

/// Memory of agent and keeper with pods enrolled and nothing to do.
fn idle_memory() -> Result<Vec<Row>> {
    eprintln!("idle-memory: a node with {IDLE_PODS} pods");
    let names: Vec<String> = (1..=IDLE_PODS).map(|number| format!("pod-{number}")).collect();
    let mut words = Mesh::declare("bench-idle").node("idle").without_agent().pod(&names[0]);
    for name in &names[1..] {
        words = words.pod(name);
    }
    let mesh = words.start()?.quietly();
    let node = mesh.node("idle");
    let agent = start_agent(node, IDLE_WORKERS, &[])?;
    for pod in node.pods() {
        node.wait_enrolled(pod, Duration::from_secs(20))?;
    }
    let (agent, keeper) =
        (cpu::resident_bytes(agent.pid())? as f64 / MIB, cpu::resident_bytes(node.keeper_pid()?)? as f64 / MIB);
    let row = |metric: &str, value: f64, bar: Option<f64>| Row::alone("idle-memory", 0, metric, "MiB", value, bar);
    Ok(vec![
        row("RSS of agent and keeper, 20 pods, 2 workers", agent + keeper, Some(IDLE_MIB_MAX)),
        row("RSS of the agent", agent, None),
        row("RSS of the keeper", keeper, None),
    ])
}

#[derive(Deserialize)]
struct Told {
    metric: String,
    value: f64,
    unit: String,
    /// Its own, if it knows one.
    bar: Option<f64>,
}

/// What a room measures about itself: a program that prints a JSON object per measurement.
fn told_by(program: &Path, scenario: &str, bar: Option<f64>) -> Result<Vec<Row>> {
    eprintln!("{scenario}: {}", program.display());
    let output = Command::new(program).output().with_context(|| format!("cannot start {}", program.display()))?;
    ensure!(
        output.status.success(),
        "{}: {}\n{}",
        program.display(),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).context("its output is not UTF-8")?;
    text.lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| {
            let told: Told = serde_json::from_str(line).with_context(|| format!("not a measurement: {line}"))?;
            Ok(Row::alone(scenario, 0, &told.metric, &told.unit, told.value, told.bar.or(bar)))
        })
        .collect()
}
