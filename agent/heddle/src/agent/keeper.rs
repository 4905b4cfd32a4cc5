//! Stand-alone mode: a keeper is started if none answers. It outlives the agent.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use heddle_datapath::DatapathError;
use heddle_datapath::client::KeeperClient;
use heddle_datapath::keeper::is_running;
use heddle_proto::keeper::v1::Role;

use crate::VERSION;
use crate::cli::{AgentOptions, KeeperMode};
use crate::node::default_workers;

/// A keeper loads its programs in well under a second.
const START_MAX: Duration = Duration::from_secs(10);

/// Makes sure that a keeper of a fitting version answers.
///
/// # Errors
/// None does, and none could be started; or it is of another version.
pub fn ensure(options: &AgentOptions) -> Result<()> {
    let connect = || KeeperClient::connect(&options.paths.run_dir, Role::Agent, VERSION);
    match connect() {
        Ok(_) => return Ok(()),
        // Nobody there. Anything else (another version, not allowed) another keeper would not mend.
        Err(DatapathError::Io { .. }) if options.keeper == KeeperMode::Spawn => {}
        Err(error) if options.keeper == KeeperMode::Connect => {
            return Err(error).context("--keeper connect: no keeper to connect to; is its DaemonSet running?");
        }
        Err(error) => return Err(error.into()),
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("no keeper answers, and starting one needs root: start `heddle keeper` or this agent as root");
    }
    let program = std::env::current_exe().context("path of this program")?;
    let workers = options.workers.map_or_else(default_workers, usize::from);
    let mut command = Command::new(program);
    command
        .args(["keeper", "--detach"])
        .arg("--run-dir")
        .arg(&options.paths.run_dir)
        .arg("--pin-dir")
        .arg(&options.paths.pin_dir)
        .args(["--listener-shards", &workers.to_string()])
        .args(["--user", &format!("{}:{}", options.user.uid, options.user.gid)])
        .args(["--log-level", &options.log_level])
        // The keeper allocates once, to load the programs, and is idle from then on: the allocator would keep 25 MiB of that.
        .env("MIMALLOC_PURGE_DELAY", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    if let Some(cgroup) = &options.datapath.cgroup {
        command.arg("--cgroup").arg(cgroup);
    }
    let mut child = command.spawn().context("start `heddle keeper`")?;
    let deadline = Instant::now() + START_MAX;
    loop {
        match connect() {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                return Err(error).context("the keeper was started but does not answer; see its log above");
            }
            Err(_) => {}
        }
        if let Some(status) = child.try_wait().context("wait for the keeper")? {
            // Two agents at once start two keepers; one of them finds the directory taken and ends, perhaps before the
            // other is ready.
            if connect().is_ok() {
                return Ok(());
            }
            if !is_running(&options.paths.run_dir) {
                bail!("the keeper ended at once ({status}); see its log above");
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
