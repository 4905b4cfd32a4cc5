//! `heddle-demo`: two nodes on this machine, real programs in their pods, and what the mesh does for them, told in under a
//! minute. Started by `cargo xtask demo`.
//!
//! [`story`] is what happens, [`traffic`] its middle part, [`wire`] and [`policy`] the chapters about identities and who may call what, [`apps`]
//! the programs, [`account`] what is made of logs and metrics, [`page`] how it looks.
#![forbid(unsafe_code)]

mod account;
mod apps;
mod interrupt;
mod page;
mod policy;
mod routing;
mod story;
mod traffic;
mod wire;

use std::process::ExitCode;

use clap::Parser;

/// Two nodes, real programs, real traffic.
#[derive(Parser)]
#[command(name = "cargo xtask demo", bin_name = "cargo xtask demo")]
struct Arguments {
    /// Keep the nodes running afterwards, to look around, until Ctrl-C
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = interrupt::watch().and_then(|()| story::tell(arguments.keep));
    match outcome {
        // A program that Ctrl-C ended looks like a failure; it is not one.
        _ if interrupt::requested() && !arguments.keep => {
            println!("\nInterrupted. Everything that was started has been taken down.");
            ExitCode::from(130)
        }
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}
