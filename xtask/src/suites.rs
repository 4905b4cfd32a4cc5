//! `test`: set-up, eBPF build, build of the binaries, then every test of the workspace.
//!
//! The runner's own closing lines are the last thing printed and its exit code is ours.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::progress::Step;
use crate::setup::{self, Group};
use crate::{ebpf, tools};

/// What to run.
#[derive(Args)]
pub struct Arguments {
    /// Also the long tests (those marked `#[ignore]`)
    #[arg(long)]
    all: bool,
    /// Passed on to the test runner, such as the name of a test
    #[arg(last = true)]
    runner: Vec<String>,
}

/// Builds and tests; the runner's exit code.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    tools::require_root(
        "test",
        "whole nodes are tested in network namespaces with real eBPF (what needs no root: `cargo test --workspace --exclude heddle-tests-netns --exclude heddle-testkit`)",
    )?;
    setup::run(&[Group::Build])?;
    ebpf::build()?;
    // The nodes of the suites run the real binaries, which a test run alone would not build.
    tools::run(tools::cargo().args(["build", "--workspace", "--bins"]))?;
    if arguments.runner.is_empty() {
        Step::run("documentation examples", |step| {
            step.command(tools::cargo().args(["test", "--workspace", "--doc", "--quiet"]))
        })?;
    }
    let status =
        tools::status(&mut if tools::find("cargo-nextest").is_some() { nextest(arguments) } else { plain(arguments) })?;
    Ok(tools::exit_code(status))
}

fn nextest(arguments: &Arguments) -> std::process::Command {
    let mut command = tools::cargo();
    command.args(["nextest", "run", "--workspace"]);
    if arguments.all {
        command.args(["--profile", "long", "--run-ignored", "all"]);
    }
    command.args(&arguments.runner);
    command
}

/// Without nextest: the same tests, fewer at a time, because the suites of whole nodes share two cores.
fn plain(arguments: &Arguments) -> std::process::Command {
    let mut command = tools::cargo();
    command.args(["test", "--workspace", "--lib", "--bins", "--tests", "--"]).arg("--test-threads=2");
    if arguments.all {
        command.arg("--include-ignored");
    }
    command.args(&arguments.runner);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_long_tier_includes_ignored_tests_with_either_runner() {
        let long = Arguments { all: true, runner: vec!["drain".into()] };
        assert_eq!(
            tools::display(&nextest(&long)),
            "cargo nextest run --workspace --profile long --run-ignored all drain"
        );
        assert!(tools::display(&plain(&long)).ends_with("-- --test-threads=2 --include-ignored drain"));
        let short = Arguments { all: false, runner: Vec::new() };
        assert_eq!(tools::display(&nextest(&short)), "cargo nextest run --workspace");
        assert!(!tools::display(&plain(&short)).contains("ignored"));
    }
}
