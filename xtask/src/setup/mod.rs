//! `setup`: makes a bare Debian machine with Rust able to build, test, demonstrate and measure Heddle.
//!
//! Looks first ([`Facts`]), then decides ([`plan`], pure), then acts ([`install`]). A machine that has everything is
//! only looked at, which takes well under a second; nothing is ever asked.

mod facts;
mod install;
mod plan;

use std::time::Instant;

use anyhow::{Result, bail};

pub use facts::Facts;
pub use install::envoy;
pub use plan::Group;
use plan::{missing, plan};

/// Installs what `groups` need and this machine lacks.
pub fn run(groups: &[Group]) -> Result<()> {
    let started = Instant::now();
    let facts = Facts::gather(groups);
    let actions = plan(groups, &facts);
    if actions.is_empty() {
        eprintln!("setup: everything needed is installed ({:.1} s)", started.elapsed().as_secs_f64());
        return Ok(());
    }
    if let Some(obstacle) = plan::obstacle(&actions, &facts) {
        bail!("{obstacle}\nmissing:\n{}", missing(groups, &facts).join("\n"));
    }
    eprintln!("setup: installing what is missing");
    for action in &actions {
        install::perform(action)?;
    }
    // Believe the machine, not the exit codes: what is still missing now would fail later with a worse message.
    let after = Facts::gather(groups);
    let left = missing(groups, &after);
    if !left.is_empty() {
        bail!("these are still missing after the installation:\n{}", left.join("\n"));
    }
    eprintln!("setup: done ({:.0} s)", started.elapsed().as_secs_f64());
    Ok(())
}
