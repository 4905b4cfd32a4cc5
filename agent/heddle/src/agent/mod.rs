//! `heddle agent`: gives privileges up, then wires source, keeper, data plane and admin together and lives until it is
//! replaced, told to stop, or loses a worker.

mod enrol;
mod identity;
mod keeper;
mod link;
mod metrics;
mod policy_views;
mod route_views;
mod serve;
mod sockets;
mod views;

pub use views::requirement;

use std::fs::OpenOptions;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use heddle_telemetry::AccessLog;
use heddle_telemetry::access::QUEUE_MAX;

use crate::cli::{AccessLogTarget, AgentOptions};
use crate::{logging, privileges};

/// Runs the agent.
pub fn run(options: AgentOptions) -> Result<ExitCode> {
    logging::start(&options.log_level)?;
    if options.node.is_empty() || options.node.len() > 253 {
        bail!("--node: must be the node's name, 1 to 253 characters");
    }
    privileges::raise_open_files();
    keeper::ensure(&options)?;
    // Opened while we may, written by a thread that is started when we may not any more: privileges are per thread.
    let log_file = match &options.access_log {
        AccessLogTarget::File(path) => {
            let file = OpenOptions::new().create(true).append(true).open(path);
            Some(file.with_context(|| format!("--access-log {}", path.display()))?)
        }
        AccessLogTarget::None | AccessLogTarget::Stdout => None,
    };
    let authority = identity::Authority::open(&options.identity)?;
    privileges::give_up(options.user)?;
    let access = match (log_file, &options.access_log) {
        (Some(file), _) => AccessLog::to(file, QUEUE_MAX).context("access log")?,
        (None, AccessLogTarget::None) => AccessLog::none(),
        (None, _) => AccessLog::stdout().context("access log on stdout")?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("control")
        .build()
        .context("control runtime")?;
    runtime.block_on(serve::serve(options, access, authority))
}
