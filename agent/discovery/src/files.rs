//! `files:DIR`: the objects of a directory of YAML files, hot-reloaded.
//!
//! Read are `*.yaml` and `*.yml` directly in the directory (links followed; names that begin with a dot and other
//! endings are left alone, so editors' temporary files do not count). Files are best written by rename. A change is
//! read once the directory has been quiet for a moment ([`QUIET`]), all changes of that moment are published as one
//! snapshot, and only the files that changed are read again.
//!
//! The last good state is kept while the directory, or a file in it, cannot be read; the status and the report say so.

mod state;
mod watch;

use std::collections::BTreeSet;
use std::fs;
use std::future::Future;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use heddle_model::Snapshot;
use nix::fcntl::OFlag;
use tokio::sync::watch as latest;

use state::{Change, Stamp, State};
use watch::{Changes, Watch};

/// How long the directory must be quiet before changes are read.
pub const QUIET: Duration = Duration::from_millis(10);
/// How long a directory that is never quiet is waited for.
pub const QUIET_WAIT_MAX: Duration = Duration::from_millis(100);
/// How often the directory itself is looked at: whether it is still there and still the same.
pub const DIRECTORY_CHECK: Duration = Duration::from_millis(500);

/// Why a source cannot start.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The directory cannot be read.
    #[error("cannot read the directory {}: {source}; create it, or name another with --source files:DIR", dir.display())]
    Unreadable {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No watch for changes can be had.
    #[error("cannot watch the directory {}: {source}; the limits are in /proc/sys/fs/inotify", dir.display())]
    Unwatchable {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A reload panicked; the last snapshot stays as it is.
    #[error("a reload of {} panicked: this is a defect", dir.display())]
    Panicked {
        /// The directory.
        dir: PathBuf,
    },
}

/// How a source is doing, for `heddle status` and `heddle check`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilesStatus {
    /// The directory.
    pub dir: PathBuf,
    /// Files read.
    pub files: usize,
    /// Objects in force, rejected ones included.
    pub objects: usize,
    /// Objects of kinds that mean nothing to us.
    pub ignored: usize,
    /// Reports of rejected objects.
    pub invalid: usize,
    /// Reports of parts that have no effect.
    pub warnings: usize,
    /// Generation of the last snapshot.
    pub generation: u64,
    /// When files were last read.
    pub loaded_at: Option<SystemTime>,
    /// How long the last load took, from first byte to snapshot.
    pub load_duration: Duration,
    /// Set while the directory cannot be read: the last state is in force.
    pub alarm: Option<String>,
}

/// A directory of files as a source of snapshots.
#[derive(Debug)]
pub struct FilesSource {
    dir: PathBuf,
    watch: Watch,
    state: State,
    status: latest::Sender<FilesStatus>,
}

impl FilesSource {
    /// Opens a directory for the agent of `node`, and watches it from now on; reads nothing yet.
    ///
    /// # Errors
    /// If there is no such directory, or it cannot be watched.
    pub fn open(dir: impl Into<PathBuf>, node: &str) -> Result<Self, FilesError> {
        let dir = dir.into();
        fs::read_dir(&dir).map_err(|source| FilesError::Unreadable { dir: dir.clone(), source })?;
        let watch = Watch::new(&dir).map_err(|source| FilesError::Unwatchable { dir: dir.clone(), source })?;
        let (status, _) = latest::channel(FilesStatus { dir: dir.clone(), ..FilesStatus::default() });
        Ok(Self { dir, watch, state: State::new(node), status })
    }

    /// Sets how long the directory must be quiet before changes are read (default [`QUIET`]), and how long one that is
    /// never quiet is waited for (default [`QUIET_WAIT_MAX`]).
    #[must_use]
    pub const fn with_quiet(mut self, quiet: Duration, wait_max: Duration) -> Self {
        self.watch.quiet = quiet;
        self.watch.quiet_wait_max = wait_max;
        self
    }

    /// Reads everything that changed since the last time; everything, the first time.
    ///
    /// # Errors
    /// If the directory cannot be read: the state is then what it was.
    pub fn load(&mut self) -> Result<Arc<Snapshot>, FilesError> {
        let started = Instant::now();
        let unreadable = |source| FilesError::Unreadable { dir: self.dir.clone(), source };
        let batch = self.gather(&Changes::All).map_err(unreadable)?;
        self.take_in(batch, started);
        Ok(self.snapshot())
    }

    /// The snapshot of the last load.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.state.snapshot()
    }

    /// How the source is doing, now and from now on.
    #[must_use]
    pub fn status(&self) -> latest::Receiver<FilesStatus> {
        self.status.subscribe()
    }

    /// Loads, publishes, and goes on publishing what changes until `shutdown` is ready.
    ///
    /// # Errors
    /// If the watch fails for good or a reload panics. A directory that vanishes is no error: the last state stays in
    /// force, the status says so, and the directory is picked up again when it returns.
    pub async fn run(
        self,
        snapshots: latest::Sender<Arc<Snapshot>>,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), FilesError> {
        let dir = self.dir.clone();
        let unwatchable = |source| FilesError::Unwatchable { dir: dir.clone(), source };
        let (keep, stop) = UnixStream::pair().map_err(unwatchable)?;
        // A thread of its own: a file may be long, and a disk slow. It ends when `keep` is dropped.
        let mut follower = tokio::task::spawn_blocking(move || self.follow(&snapshots, &stop));
        let ended = tokio::select! {
            ended = &mut follower => ended,
            () = shutdown => {
                drop(keep);
                follower.await
            }
        };
        ended.map_err(|_panic| FilesError::Panicked { dir: dir.clone() })?.map_err(unwatchable)
    }

    fn follow(mut self, snapshots: &latest::Sender<Arc<Snapshot>>, stop: &UnixStream) -> io::Result<()> {
        let mut changes = Changes::All;
        let mut started = Instant::now();
        loop {
            let gathered = self.gather(&changes);
            // Something changed while it was read: half of it may be old and half new. Read again, but not for ever.
            let settled = !self.watch.is_pending()? || started.elapsed() >= self.watch.quiet_wait_max;
            if settled {
                let outcome = gathered.map(|batch| self.take_in(batch, started));
                self.set_alarm(outcome.err());
                let snapshot = self.snapshot();
                let news = snapshots.borrow().generation != snapshot.generation;
                if news {
                    snapshots.send_replace(snapshot);
                }
            }
            let Some(next) = self.watch.next(&self.dir, stop.as_fd(), !settled)? else { return Ok(()) };
            if settled {
                started = Instant::now();
                changes = next;
            } else {
                changes = changes.and(next);
            }
        }
    }

    fn set_alarm(&self, error: Option<io::Error>) {
        let alarm = error.map(|e| format!("cannot read {}: {e}; the last state stays in force", self.dir.display()));
        self.status.send_if_modified(|status| {
            if status.alarm == alarm {
                return false;
            }
            match &alarm {
                Some(alarm) => tracing::error!(target: "discovery", "{alarm}"),
                None => tracing::info!(target: "discovery", dir = %self.dir.display(), "the directory is back"),
            }
            status.alarm = alarm;
            true
        });
    }

    /// Reads what changed, and takes in nothing yet.
    fn gather(&self, changes: &Changes) -> io::Result<Vec<(Arc<str>, Change)>> {
        let names: Vec<Arc<str>> = match changes {
            Changes::All => {
                let present = list(&self.dir)?;
                // What was known and is no more is a change too.
                let gone: Vec<Arc<str>> = self.state.files().filter(|name| !present.contains(*name)).cloned().collect();
                present.into_iter().chain(gone).collect()
            }
            Changes::Names(names) => names.iter().cloned().collect(),
        };
        let read = |name: Arc<str>| read(&self.dir, &name, self.state.stamp(&name)).map(|change| (name, change));
        let batch = names.into_iter().filter_map(read).collect();
        // If the directory went away meanwhile, nothing that was missing in it proves anything.
        fs::read_dir(&self.dir)?;
        Ok(batch)
    }

    fn take_in(&mut self, batch: Vec<(Arc<str>, Change)>, started: Instant) {
        if batch.is_empty() && self.state.snapshot().generation > 0 {
            return;
        }
        self.state.apply(batch);
        let snapshot = self.state.snapshot();
        let status = FilesStatus {
            dir: self.dir.clone(),
            files: self.state.files().count(),
            objects: self.state.objects(),
            ignored: self.state.ignored(),
            invalid: snapshot.invalid.len(),
            warnings: snapshot.warnings.len(),
            generation: snapshot.generation,
            loaded_at: Some(SystemTime::now()),
            load_duration: started.elapsed(),
            alarm: None,
        };
        tracing::debug!(target: "discovery", generation = status.generation, objects = status.objects, "loaded");
        self.status.send_replace(status);
    }
}

/// Whether a name is one of a file we read.
fn is_ours(name: &str) -> bool {
    !name.starts_with('.') && (name.ends_with(".yaml") || name.ends_with(".yml"))
}

fn list(dir: &Path) -> io::Result<BTreeSet<Arc<str>>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(dir)? {
        // A name that is not UTF-8 cannot be reported, so it is not read.
        if let Some(name) = entry?.file_name().to_str().filter(|name| is_ours(name)) {
            names.insert(name.into());
        }
    }
    Ok(names)
}

/// Reads a file if it is not the one that `known` stamps; `None` if it is.
fn read(dir: &Path, name: &Arc<str>, known: Option<Stamp>) -> Option<Change> {
    let path = dir.join(&**name);
    let metadata = match fs::metadata(&path) {
        Ok(metadata) if metadata.is_file() => metadata,
        // A directory or a device is not ours, whatever its name.
        Ok(_) => return known.map(|_| Change::Gone),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return known.map(|_| Change::Gone),
        Err(error) => return Some(Change::Unreadable(error)),
    };
    if Some(Stamp::of(&metadata)) == known {
        return None;
    }
    // Not blocking: the name may have become a pipe since.
    let open = fs::OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&path);
    let content = open.and_then(|file| {
        // The stamp of what is read, not of what the name meant a moment ago.
        let metadata = file.metadata()?;
        let mut bytes = Vec::new();
        file.take(heddle_api::FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        Ok((Stamp::of(&metadata), bytes))
    });
    match content {
        Ok((stamp, bytes)) => Some(Change::Content(stamp, Box::new(heddle_api::read(name, &bytes)))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => known.map(|_| Change::Gone),
        Err(error) => Some(Change::Unreadable(error)),
    }
}
