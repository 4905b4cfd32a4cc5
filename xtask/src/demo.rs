//! `demo`: builds and starts `heddle-demo`, which shows two nodes at work.

use std::process::{Command, ExitCode};

use anyhow::Result;
use clap::Args;

use crate::setup::{self, Group};
use crate::{ebpf, tools};

/// How to show it.
#[derive(Args)]
pub struct Arguments {
    /// Keep the nodes running afterwards, to look around, until Ctrl-C
    #[arg(long)]
    keep: bool,
}

/// Builds and shows.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    tools::require_root("demo", "nodes and pods are network namespaces with real eBPF")?;
    setup::run(&[Group::Build, Group::Demo])?;
    ebpf::build()?;
    tools::run(tools::cargo().args(["build", "-p", "heddle", "-p", "heddle-demo", "-p", "heddle-testkit", "--bins"]))?;
    let built = tools::target().join("debug");
    let mut demo = Command::new(built.join("heddle-demo"));
    demo.env("HEDDLE_BIN", built.join("heddle")).env("PODAPP_BIN", built.join("podapp"));
    if arguments.keep {
        demo.arg("--keep");
    }
    Err(tools::become_program(&mut demo))
}
