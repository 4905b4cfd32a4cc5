//! The keeper process: small, privileged, and the only one that is. It parses heddle.keeper.v1 and nothing else.
//!
//! One thread per connection, all state behind one lock, a main loop that accepts, waits for signals and ticks.

mod persist;
mod session;
mod state;

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use heddle_proto::keeper::v1::error::Kind;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, listen, socket};

use crate::error::DatapathError;
use crate::kernel::{Kernel, KernelConfig, remove_pins};

use state::State;

/// Connections to the keeper at a time.
pub const CONNECTIONS_MAX: usize = 32;
/// Further ones for root: whatever the agent's user holds open, an operator can still release the node.
pub const CONNECTIONS_OF_ROOT: usize = 8;
/// Listener shards, at most: those of three ports and two families travel in one packet.
pub const SHARDS_MAX: usize = 32;
const TICK: Duration = Duration::from_millis(200);

/// How a keeper runs.
#[derive(Clone, Debug)]
pub struct KeeperConfig {
    /// Directory of the sockets and the state file, `/run/heddle`.
    pub run_dir: PathBuf,
    /// Where the datapath lives.
    pub kernel: KernelConfig,
    /// Listeners per pod, direction and family.
    pub listener_shards: usize,
    /// The agent's user: it, and root, may connect.
    pub agent_uid: u32,
    /// Shown to the other side.
    pub version: &'static str,
}

/// `<run-dir>/keeper.sock`
#[must_use]
pub fn socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("keeper.sock")
}

/// `<run-dir>/debug.sock`
#[must_use]
pub fn debug_socket_path(run_dir: &Path) -> PathBuf {
    run_dir.join("debug.sock")
}

/// State shared by the sessions.
pub(crate) struct Shared {
    state: Mutex<State>,
    sessions: AtomicUsize,
}

impl Shared {
    /// The state. A panic in a session leaves it usable: every operation writes the kernel first and the books after.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs a keeper until SIGTERM, SIGINT or an uninstall. Pins stay on a signal: capture goes on.
///
/// # Errors
/// Another keeper runs in this directory, or the datapath cannot be set up.
pub fn run(config: KeeperConfig) -> Result<(), DatapathError> {
    if config.listener_shards == 0 || config.listener_shards > SHARDS_MAX {
        return Err(DatapathError::Protocol(format!(
            "--listener-shards {}: must be 1 to {SHARDS_MAX}",
            config.listener_shards
        )));
    }
    // It holds the agent's keys.
    crate::keys::never_dump()?;
    let run_dir = &config.run_dir;
    fs::create_dir_all(run_dir).map_err(DatapathError::io(format!("create {}", run_dir.display())))?;
    fs::set_permissions(run_dir, fs::Permissions::from_mode(0o755))
        .map_err(DatapathError::io(format!("permissions of {}", run_dir.display())))?;
    let _lock = KeeperLock::take(run_dir)?;
    let signals = block_signals()?;
    let listener = control_socket(&socket_path(run_dir), config.agent_uid)?;
    let debug = debug_socket(&debug_socket_path(run_dir))?;

    let kernel = Kernel::open(config.kernel.clone())?;
    let state = State::adopt(config.clone(), kernel, debug)?;
    let shared = Arc::new(Shared { state: Mutex::new(state), sessions: AtomicUsize::new(0) });
    listen(&listener, Backlog::new(64).unwrap_or(Backlog::MAXALLOWABLE))
        .map_err(DatapathError::errno("listen on the keeper socket"))?;
    tracing::info!(
        socket = %socket_path(run_dir).display(),
        pins = %config.kernel.pin_dir.display(),
        cgroup = %config.kernel.cgroup.display(),
        "keeper ready"
    );
    let result = serve(&listener, &signals, &shared);
    let uninstalled = shared.lock().uninstalled();
    for path in [socket_path(run_dir), debug_socket_path(run_dir)] {
        let _ = fs::remove_file(path);
    }
    if uninstalled {
        shared.lock().close();
        let removed = remove_pins(&config.kernel.pin_dir)?;
        persist::remove(run_dir);
        let _ = fs::remove_file(lock_path(run_dir));
        tracing::info!(removed, "uninstalled");
    }
    result
}

fn serve(listener: &OwnedFd, signals: &SignalFd, shared: &Arc<Shared>) -> Result<(), DatapathError> {
    let mut last_tick = Instant::now();
    loop {
        let mut fds =
            [PollFd::new(listener.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(TICK).unwrap_or(PollTimeout::ZERO);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(DatapathError::errno("wait for connections")(errno)),
        }
        let ready = |i: usize| fds[i].revents().is_some_and(|r| r.contains(PollFlags::POLLIN));
        if ready(1) {
            tracing::info!("signal: keeper ends, pins stay");
            return Ok(());
        }
        if ready(0) {
            accept(listener, shared);
        }
        if last_tick.elapsed() >= TICK {
            last_tick = Instant::now();
            let mut state = shared.lock();
            state.tick();
            if state.uninstalled() {
                return Ok(());
            }
        }
    }
}

fn accept(listener: &OwnedFd, shared: &Arc<Shared>) {
    let fd = match accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
        // SAFETY: the kernel just gave us this descriptor.
        Ok(fd) => unsafe { OwnedFd::from_raw_fd(fd) },
        Err(error) => {
            tracing::warn!(%error, "accept on the keeper socket");
            std::thread::sleep(Duration::from_millis(10));
            return;
        }
    };
    let Some(peer) = session::Peer::of(fd.as_fd(), shared) else {
        return;
    };
    let Some(place) = Place::take(shared, peer.is_root()) else {
        session::refuse(fd.as_fd(), Kind::Limit, "too many connections to the keeper: try again");
        return;
    };
    let shared = Arc::clone(shared);
    let spawned = std::thread::Builder::new().name("session".into()).stack_size(256 * 1024).spawn(move || {
        session::serve(&fd, peer, &shared);
        drop(place);
    });
    if let Err(error) = spawned {
        tracing::error!(%error, "no thread for a keeper session");
    }
}

/// A place among the sessions; given back on drop.
struct Place(Arc<Shared>);

impl Place {
    fn take(shared: &Arc<Shared>, root: bool) -> Option<Self> {
        let max = CONNECTIONS_MAX + if root { CONNECTIONS_OF_ROOT } else { 0 };
        if shared.sessions.fetch_add(1, Ordering::AcqRel) >= max {
            shared.sessions.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(Self(Arc::clone(shared)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Whether a keeper runs in this directory, ready or not yet.
#[must_use]
pub fn is_running(run_dir: &Path) -> bool {
    fs::File::open(lock_path(run_dir)).is_ok_and(|file| Flock::lock(file, FlockArg::LockSharedNonblock).is_err())
}

fn lock_path(run_dir: &Path) -> PathBuf {
    run_dir.join("keeper.lock")
}

/// Held by the one keeper of a directory, or by who must be sure that there is none.
pub struct KeeperLock(#[allow(dead_code, reason = "held, not read")] Flock<fs::File>);

impl KeeperLock {
    /// Takes it; `None` where there is no directory, and so no keeper.
    ///
    /// # Errors
    /// A keeper holds it.
    pub fn take(run_dir: &Path) -> Result<Option<Self>, DatapathError> {
        if !run_dir.exists() {
            return Ok(None);
        }
        let path = lock_path(run_dir);
        let file = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(DatapathError::io(format!("open {}", path.display())))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| DatapathError::Io {
            what: format!("{}: another keeper runs in this directory", path.display()),
            source: errno.into(),
        })?;
        Ok(Some(Self(lock)))
    }
}

/// Signals arrive on an fd: blocked here, before the first thread, so that every thread inherits it.
fn block_signals() -> Result<SignalFd, DatapathError> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.add(Signal::SIGINT);
    set.thread_block().map_err(DatapathError::errno("block signals"))?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(DatapathError::errno("signal fd"))
}

fn control_socket(path: &Path, agent_uid: u32) -> Result<OwnedFd, DatapathError> {
    let what = || format!("keeper socket {}", path.display());
    remove_stale(path)?;
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
        .map_err(DatapathError::errno(what()))?;
    let address = UnixAddr::new(path).map_err(DatapathError::errno(what()))?;
    bind(fd.as_raw_fd(), &address).map_err(DatapathError::errno(what()))?;
    // 0600 and the agent's: root may connect anyhow, nobody else. Not listening yet, so nobody got in before this.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(DatapathError::io(what()))?;
    chown(path, Some(agent_uid), None).map_err(DatapathError::io(what()))?;
    Ok(fd)
}

fn debug_socket(path: &Path) -> Result<UnixListener, DatapathError> {
    let what = || format!("debug socket {}", path.display());
    remove_stale(path)?;
    let listener = UnixListener::bind(path).map_err(DatapathError::io(what()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(DatapathError::io(what()))?;
    listener.set_nonblocking(true).map_err(DatapathError::io(what()))?;
    Ok(listener)
}

fn remove_stale(path: &Path) -> Result<(), DatapathError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(DatapathError::Io { what: format!("remove the old {}", path.display()), source: error })
        }
        _ => Ok(()),
    }
}
