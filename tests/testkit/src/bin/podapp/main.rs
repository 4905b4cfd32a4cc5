//! `podapp`: the program that runs in the pods of a test.
//!
//! It does plain socket work with the options applications use and prints what the kernel told it, one
//! [`heddle_testkit::report::Event`] per line. It knows nothing of Heddle: what it sees is what an application sees.
//! Every mode ends when its standard input ends, so no test can leave one behind.

mod connect;
mod flood;
mod hold;
mod reuse;
mod serve;
mod socket;
mod tally;

use std::io::Write;

use clap::{Parser, Subcommand};
use heddle_testkit::report::Event;

#[derive(Parser)]
#[command(name = "podapp", about = "Server and client of Heddle's network tests")]
struct Arguments {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Subcommand)]
enum Mode {
    /// Listen and answer.
    Serve(serve::Options),
    /// Open connections, exchange bytes, report.
    Connect(connect::Options),
    /// Open connections and keep them, driven by lines on standard input: `ping`, `names`, `half-close`, `rst`, `close`.
    Hold(hold::Options),
    /// Connect, disconnect with AF_UNSPEC, and use the same socket for something else.
    Reuse(reuse::Options),
    /// Open connections without end and write into them without reading.
    Flood(flood::Options),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().mode {
        Mode::Serve(options) => serve::run(&options),
        Mode::Connect(options) => connect::run(&options),
        Mode::Hold(options) => hold::run(&options),
        Mode::Reuse(options) => reuse::run(&options),
        Mode::Flood(options) => flood::run(&options),
    }
}

/// Prints one event. A reader that went away ends the program: nobody is left to tell.
fn emit(event: &Event) {
    let Ok(mut line) = serde_json::to_vec(event) else { return };
    line.push(b'\n');
    let mut out = std::io::stdout().lock();
    if out.write_all(&line).and_then(|()| out.flush()).is_err() {
        std::process::exit(1);
    }
}
