//! Node commands: the keeper itself, break-glass release, uninstall.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use heddle_datapath::DatapathError;
use heddle_datapath::client::KeeperClient;
use heddle_datapath::keeper::{KeeperConfig, KeeperLock, SHARDS_MAX, run, socket_path};
use heddle_datapath::kernel::{KernelConfig, cgroup2_mount, remove_pins};
use heddle_datapath::node::remove_without_keeper;
use heddle_proto::keeper::v1::Role;

use crate::cli::{KeeperOptions, ReleaseOptions, UninstallOptions};
use crate::{VERSION, logging, privileges};

/// A keeper answers a command line within this time, or it hangs.
const ANSWER_MAX: Duration = Duration::from_secs(5);

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
    let paths = &options.paths;
    match reach_keeper(&paths.run_dir)? {
        Reachable::Keeper(keeper) => {
            let released = keeper.release(options.resume)?;
            if options.resume {
                println!("Enrolment resumes: the agent enrols its pods again within two seconds.");
            } else {
                println!("Released {released} pods. They stay out until `heddle release --node --resume`.");
            }
        }
        Reachable::None(_) if options.resume => {
            bail!("no keeper answers at {}: start the agent", socket_path(&paths.run_dir).display())
        }
        Reachable::Wedged(error) if options.resume => return Err(error.into()),
        Reachable::None(lock) => {
            let removed = remove_without_keeper(&paths.run_dir, &paths.pin_dir)?;
            drop(lock);
            println!(
                "No keeper runs: removed the datapath instead ({removed} pins). No pod of this node is captured now."
            );
        }
        Reachable::Wedged(error) => {
            let removed = remove_pins(&paths.pin_dir)?;
            println!(
                "The keeper hangs ({error}): removed the datapath instead ({removed} pins). No pod of this node is \
                 captured now. Kill the keeper; the next one starts anew."
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `heddle uninstall --node`
pub fn uninstall(options: &UninstallOptions) -> Result<ExitCode> {
    demand_root("uninstall")?;
    let pins = &options.paths.pin_dir;
    match reach_keeper(&options.paths.run_dir)? {
        Reachable::Keeper(keeper) => {
            keeper.uninstall()?;
            let socket = socket_path(&options.paths.run_dir);
            let deadline = Instant::now() + Duration::from_secs(10);
            while socket.exists() || pins.exists() {
                if Instant::now() > deadline {
                    bail!("the keeper has not removed {} in 10 s: see its log", pins.display());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Reachable::None(lock) => {
            remove_without_keeper(&options.paths.run_dir, pins)?;
            drop(lock);
        }
        Reachable::Wedged(error) => {
            return Err(anyhow!(error).context("the keeper hangs: kill it, then run this again"));
        }
    }
    println!("Uninstalled from this node: programs, links, maps and pins under {} are gone.", pins.display());
    Ok(ExitCode::SUCCESS)
}

/// What there is to talk to on this node.
enum Reachable {
    /// One that answers.
    Keeper(KeeperClient),
    /// None runs; while this is held, none starts.
    None(Option<KeeperLock>),
    /// One runs and does not answer.
    Wedged(DatapathError),
}

/// Looks for the keeper. One that is just starting is waited for; one that answers and refuses is an error.
fn reach_keeper(run_dir: &Path) -> Result<Reachable> {
    let deadline = Instant::now() + ANSWER_MAX;
    loop {
        let error = match KeeperClient::connect_within(run_dir, Role::Cli, VERSION, ANSWER_MAX) {
            Ok(keeper) => return Ok(Reachable::Keeper(keeper)),
            Err(error @ DatapathError::Io { .. }) => error,
            Err(error) => return Err(error.into()),
        };
        match KeeperLock::take(run_dir) {
            Ok(lock) => return Ok(Reachable::None(lock)),
            // Somebody holds it: a keeper that starts, ends, or hangs.
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(100)),
            Err(_) => return Ok(Reachable::Wedged(error)),
        }
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
