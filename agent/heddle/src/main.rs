//! The heddle binary: command line, composition root, and the adapters between rooms. Rooms meet only here.
#![forbid(unsafe_code)]

mod agent;
mod ca;
mod cli;
mod issuer;
mod logging;
mod node;
mod privileges;

/// Requests allocate and free many small things per turn: a tenth less of the CPU of a pair of agents than with the system's allocator. Version 2,
/// without huge pages, is resident with a third of what version 3 is.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

use std::process::ExitCode;

use clap::Parser;

/// Shown to the other side of every protocol.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    let result = match arguments.command {
        cli::Command::Agent(options) => agent::run(*options),
        cli::Command::Keeper(options) => node::keeper(options),
        cli::Command::Release(options) => node::release(&options),
        cli::Command::Uninstall(options) => node::uninstall(&options),
        cli::Command::Ca(command) => ca::run(*command),
        cli::Command::Debug(query) => cli::query(&query),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("heddle: {error:#}");
            ExitCode::FAILURE
        }
    }
}
