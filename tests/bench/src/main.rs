//! `heddle-bench`: what Heddle costs, measured against direct connections, Envoy, HAProxy and nginx on the same machine.
//!
//! One program in parts: `run` builds the nodes and compares, `load`, `http-load` and `origin` are what it starts inside the
//! pods. Started by `cargo xtask bench`.
#![forbid(unsafe_code)]

mod contestants;
mod cpu;
mod handshakes;
mod http_client;
mod http_load;
mod load;
mod mtls;
mod mtls_peers;
mod mtls_scenarios;
mod origin;
mod peers;
mod rows;
mod run;
mod scenarios;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What Heddle costs.
#[derive(Parser)]
#[command(name = "heddle-bench")]
struct Arguments {
    #[command(subcommand)]
    part: Part,
}

#[derive(Subcommand)]
enum Part {
    /// Build the nodes, compare, print and write the results
    Run(run::Arguments),
    /// Put load on an address and print one JSON object
    Load(load::Arguments),
    /// Put HTTP load on an address and print one JSON object
    HttpLoad(http_load::Arguments),
    /// Shake hands and print one JSON object
    Handshakes(handshakes::Arguments),
    /// Answer the load
    Origin(origin::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().part {
        Part::Run(arguments) => run::run(&arguments),
        Part::Load(arguments) => load::run(&arguments).map(|()| ExitCode::SUCCESS),
        Part::HttpLoad(arguments) => http_load::run(&arguments).map(|()| ExitCode::SUCCESS),
        Part::Handshakes(arguments) => handshakes::run(&arguments).map(|()| ExitCode::SUCCESS),
        Part::Origin(arguments) => origin::run(&arguments).map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
