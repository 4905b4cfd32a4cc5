//! Node commands: the keeper itself, break-glass release, uninstall.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use heddle_datapath::client::KeeperClient;
use heddle_datapath::keeper::{KeeperConfig, SHARDS_MAX, run, socket_path};
use heddle_datapath::kernel::{KernelConfig, cgroup2_mount};
use heddle_proto::keeper::v1::Role;

use crate::cli::{KeeperOptions, ReleaseOptions, UninstallOptions};
use crate::{VERSION, logging, privileges};

/// `heddle keeper`
pub fn keeper(options: KeeperOptions) -> Result<ExitCode> {
    logging::start(&options.log_level)?;
    demand_root("keeper")?;
    if options.detach {
        // Not the agent's session: a terminal's Ctrl-C, or the agent's end, is not the keeper's.
        nix::unistd::setsid().context("start a session of its own")?;
    }
    // Listeners of every pod, shard, direction and family.
    privileges::raise_open_files();
    let cgroup = match options.datapath.cgroup {
        Some(cgroup) => cgroup,
        None => cgroup2_mount()?,
    };
    run(KeeperConfig {
        run_dir: options.node.run_dir,
        kernel: KernelConfig { pin_dir: options.node.pin_dir, cgroup },
        listener_shards: options.listener_shards.unwrap_or_else(default_workers),
        agent_uid: options.user.uid,
        version: VERSION,
    })?;
    Ok(ExitCode::SUCCESS)
}

/// One per CPU this process may use, within what a pod's listeners can be handed over in.
#[must_use]
pub fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(SHARDS_MAX)
}

/// `heddle release --node`
pub fn release(options: &ReleaseOptions) -> Result<ExitCode> {
    demand_root("release")?;
    if let Some(keeper) = reachable_keeper(&options.paths.run_dir)? {
        let released = keeper.release(options.resume)?;
        if options.resume {
            println!("Enrolment resumes: the agent enrols its pods again within two seconds.");
        } else {
            println!("Released {released} pods. They stay out until `heddle release --node --resume`.");
        }
        return Ok(ExitCode::SUCCESS);
    }
    if options.resume {
        bail!("no keeper answers at {}: start the agent", socket_path(&options.paths.run_dir).display());
    }
    let removed = heddle_datapath::node::remove_without_keeper(&options.paths.run_dir, &options.paths.pin_dir)?;
    println!("No keeper answers: removed the datapath instead ({removed} pins). No pod of this node is captured now.");
    Ok(ExitCode::SUCCESS)
}

/// `heddle uninstall --node`
pub fn uninstall(options: &UninstallOptions) -> Result<ExitCode> {
    demand_root("uninstall")?;
    let pins = &options.paths.pin_dir;
    if let Some(keeper) = reachable_keeper(&options.paths.run_dir)? {
        keeper.uninstall()?;
        let socket = socket_path(&options.paths.run_dir);
        let deadline = Instant::now() + Duration::from_secs(10);
        while socket.exists() || pins.exists() {
            if Instant::now() > deadline {
                bail!("the keeper has not removed {} in 10 s: see its log", pins.display());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    } else {
        heddle_datapath::node::remove_without_keeper(&options.paths.run_dir, pins)?;
    }
    println!("Uninstalled from this node: programs, links, maps and pins under {} are gone.", pins.display());
    Ok(ExitCode::SUCCESS)
}

/// The keeper, or `None` if none answers. A keeper that answers but refuses is an error.
fn reachable_keeper(run_dir: &Path) -> Result<Option<KeeperClient>> {
    match KeeperClient::connect(run_dir, Role::Cli, VERSION) {
        Ok(keeper) => Ok(Some(keeper)),
        Err(heddle_datapath::DatapathError::Io { source, .. })
            if matches!(source.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused) =>
        {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn demand_root(command: &str) -> Result<()> {
    if nix::unistd::geteuid().is_root() { Ok(()) } else { bail!("`heddle {command}` must run as root") }
}

/// Paths of a node's instance.
#[derive(Clone, Debug, clap::Args)]
pub struct NodePaths {
    /// Directory of the sockets.
    #[arg(long, env = "HEDDLE_RUN_DIR", default_value = "/run/heddle")]
    pub run_dir: PathBuf,
    /// Directory of the pins, on bpffs.
    #[arg(long, env = "HEDDLE_PIN_DIR", default_value = "/sys/fs/bpf/heddle")]
    pub pin_dir: PathBuf,
}
