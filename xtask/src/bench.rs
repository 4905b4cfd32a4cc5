//! `bench`: builds for release and starts `heddle-bench`, which measures.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::Args;

use crate::setup::{self, Group};
use crate::{ebpf, tools};

/// What to measure.
#[derive(Args)]
pub struct Arguments {
    /// Write the results there, as a JSON array
    #[arg(long)]
    json: Option<PathBuf>,
    /// Only scenarios whose name contains this: `http` for all of HTTP, `http2-1k-64x1` for one
    #[arg(long)]
    filter: Option<String>,
    /// Interleaved rounds per scenario
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Length of one measurement
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
}

/// Builds, measures, and passes on whether every bar was met.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    tools::require_root("bench", "nodes and pods are network namespaces with real eBPF")?;
    setup::run(&[Group::Build, Group::Bench])?;
    ebpf::build()?;
    let packages = ["-p", "heddle", "-p", "heddle-bench", "-p", "heddle-testkit"];
    tools::run(tools::cargo().args(["build", "--release", "--bins"]).args(packages))?;
    for (package, example) in
        [("heddle-discovery", "load_bench"), ("heddle-proxy", "record_bench"), ("heddle-model", "policy_bench")]
    {
        tools::run(tools::cargo().args(["build", "--release", "-p", package, "--example", example]))?;
    }

    let release = tools::target().join("release");
    let envoy = setup::envoy()?;
    let haproxy = tools::find("haproxy").context("haproxy is not on this machine: run `cargo xtask setup --all`")?;
    let mut bench = Command::new(release.join("heddle-bench"));
    bench.env("HEDDLE_BIN", release.join("heddle")).env("PODAPP_BIN", release.join("podapp"));
    bench.arg("run").arg("--envoy").arg(envoy).arg("--haproxy").arg(haproxy);
    bench.arg("--discovery-bench").arg(release.join("examples/load_bench"));
    bench.arg("--record-bench").arg(release.join("examples/record_bench"));
    bench.arg("--policy-bench").arg(release.join("examples/policy_bench"));
    bench.args(["--rounds", &arguments.rounds.to_string(), "--seconds", &arguments.seconds.to_string()]);
    if let Some(path) = &arguments.json {
        bench.arg("--json").arg(path);
    }
    if let Some(filter) = &arguments.filter {
        bench.args(["--filter", filter]);
    }
    Err(tools::become_program(&mut bench))
}
