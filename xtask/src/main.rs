//! `cargo xtask`: every task of the house, one way to do each.
//!
//! `setup` is called by the tasks that need something installed, so a newcomer types one command. Nothing here is part of
//! the mesh: xtask builds, runs and checks it.
#![forbid(unsafe_code)]

mod bench;
mod crds;
mod demo;
mod ebpf;
mod fuzz;
mod progress;
mod setup;
mod suites;
mod tidy;
mod tools;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use setup::Group;

/// Set-up, eBPF build, demo, tests, benchmarks and house rules of Heddle.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing to build and test (the other tasks call this by themselves)
    Setup {
        /// Also what `bench`, `demo` and `fuzz` use
        #[arg(long)]
        all: bool,
    },
    /// Build the eBPF programs into target/ebpf/heddle-ebpf.o
    BuildEbpf,
    /// Build everything and run the tests (root: whole nodes run in network namespaces)
    Test(suites::Arguments),
    /// Two nodes, real programs, real traffic: what a mesh does, in under a minute (root)
    Demo(demo::Arguments),
    /// Measure Heddle against direct connections, Envoy and HAProxy (root)
    Bench(bench::Arguments),
    /// Throw bytes at everything that parses, and at the data plane, under libFuzzer (a short run is part of `test`)
    Fuzz(fuzz::Arguments),
    /// Write the CustomResourceDefinitions of our kinds into deploy/crds (a test fails while they are old)
    Crds,
    /// Check the rules of the house: arrows, unsafe, docs, orphans, sizes, links
    Tidy,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::Setup { all } => {
            let groups: &[Group] =
                if all { &[Group::Build, Group::Demo, Group::Bench, Group::Fuzz] } else { &[Group::Build] };
            setup::run(groups).map(|()| ExitCode::SUCCESS)
        }
        Task::BuildEbpf => setup::run(&[Group::Build]).and_then(|()| ebpf::build()).map(|_| ExitCode::SUCCESS),
        Task::Test(arguments) => suites::run(&arguments),
        Task::Demo(arguments) => demo::run(&arguments),
        Task::Bench(arguments) => bench::run(&arguments),
        Task::Fuzz(arguments) => fuzz::run(&arguments),
        Task::Crds => crds::run(),
        Task::Tidy => tidy::run(),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
