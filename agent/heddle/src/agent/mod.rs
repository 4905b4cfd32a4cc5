//! `heddle agent`: gives privileges up, then wires source, keeper, data plane and admin together and lives until it is
//! replaced, told to stop, or loses a worker.

mod enrol;
mod keeper;
mod link;
mod serve;
mod sockets;
mod views;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use heddle_telemetry::AccessLog;

use crate::cli::{AccessLogTarget, AgentOptions};
use crate::{logging, privileges};

/// Time between two heartbeats: a tenth of the kernel's threshold.
const BEAT: Duration = Duration::from_millis(500);

/// Runs the agent.
pub fn run(options: AgentOptions) -> Result<ExitCode> {
    logging::start(&options.log_level)?;
    if options.node.is_empty() || options.node.len() > 253 {
        bail!("--node: must be the node's name, 1 to 253 characters");
    }
    let _ = BEAT;
    privileges::raise_open_files();
    keeper::ensure(&options)?;
    let access = match &options.access_log {
        AccessLogTarget::None => AccessLog::none(),
        AccessLogTarget::Stdout => AccessLog::stdout().context("access log on stdout")?,
        AccessLogTarget::File(path) => {
            AccessLog::file(path).with_context(|| format!("access log {}", path.display()))?
        }
    };
    privileges::give_up(options.user)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("control")
        .build()
        .context("control runtime")?;
    runtime.block_on(serve::serve(options, access))
}
