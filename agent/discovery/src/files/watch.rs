//! inotify on one directory: which names changed, gathered until it is quiet.
//!
//! The directory is looked up anew by its path now and then: it may be removed, come back, or be another (a renamed
//! directory, a changed link). Only names are passed on; what they mean is seen by reading. Blocking, for a thread of
//! its own: tokio's registration of foreign descriptors is unsafe, and a directory is no hot path.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent};

use super::{DIRECTORY_CHECK, QUIET, QUIET_WAIT_MAX};

/// What may have changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Changes {
    /// These names.
    Names(BTreeSet<Arc<str>>),
    /// Anything: the directory is new or another, a link in it changed, or events were lost.
    All,
}

/// A watch of a directory.
#[derive(Debug)]
pub(super) struct Watch {
    inotify: Inotify,
    /// Device and inode of the directory that is watched; `None` while there is none.
    watched: Option<(u64, u64)>,
    /// See [`QUIET`].
    pub(super) quiet: Duration,
    /// See [`QUIET_WAIT_MAX`].
    pub(super) quiet_wait_max: Duration,
}

impl Watch {
    pub(super) fn new(dir: &Path) -> io::Result<Self> {
        let inotify = descriptor()?;
        let mut watch = Self { inotify, watched: None, quiet: QUIET, quiet_wait_max: QUIET_WAIT_MAX };
        watch.attach(dir)?;
        Ok(watch)
    }

    /// Waits for the next changes; `None` once the other end of `stop` is closed. With `unsettled` changes in hand it
    /// waits for quiet alone, and returns even if what was pending concerns no file of ours.
    pub(super) fn next(&mut self, dir: &Path, stop: BorrowedFd<'_>, unsettled: bool) -> io::Result<Option<Changes>> {
        let mut changes = Changes::none();
        let mut first = unsettled.then(Instant::now);
        let mut last = Instant::now();
        loop {
            let now = Instant::now();
            let quiet_at = first.map(|first: Instant| (last + self.quiet).min(first + self.quiet_wait_max));
            if quiet_at.is_some_and(|at| at <= now) {
                first = None;
                if unsettled || changes != Changes::none() {
                    return Ok(Some(changes));
                }
                continue;
            }
            let wait = quiet_at.map_or(DIRECTORY_CHECK, |at| at - now);
            let (stopped, readable) = self.wait(stop, wait)?;
            if stopped {
                return Ok(None);
            }
            let mut lost = first.is_none() && !readable && identity(dir) != self.watched;
            if readable {
                match self.inotify.read_events() {
                    Ok(events) => {
                        last = Instant::now();
                        first = first.or(Some(last));
                        lost = changes.add(&events);
                    }
                    Err(Errno::EAGAIN | Errno::EINTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            if lost {
                let was_there = self.watched.is_some();
                // What is missing is told by reading, as an error; what came back is told here.
                if self.attach(dir).is_ok() || was_there {
                    return Ok(Some(Changes::All));
                }
            }
        }
    }

    /// Whether something changed since the last [`Self::next`].
    pub(super) fn is_pending(&self) -> io::Result<bool> {
        let mut fds = [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::ZERO) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::EINTR) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    fn wait(&self, stop: BorrowedFd<'_>, wait: Duration) -> io::Result<(bool, bool)> {
        // Rounded up: waking a moment early would spin until it has passed.
        let milliseconds = u16::try_from(wait.as_millis().saturating_add(1)).unwrap_or(u16::MAX);
        let mut fds = [PollFd::new(stop, PollFlags::POLLIN), PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(milliseconds)) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok((false, false)),
            Err(error) => return Err(error.into()),
        }
        let [stopped, readable] = fds.map(|fd| fd.revents().is_some_and(|events| !events.is_empty()));
        Ok((stopped, readable))
    }

    /// Watches what the path means now. Comes before reading, so that no change falls between.
    fn attach(&mut self, dir: &Path) -> io::Result<()> {
        self.watched = None;
        // A new descriptor drops the watch of what the path meant before, with its events.
        self.inotify = descriptor()?;
        let mask = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        let before = identity(dir);
        self.inotify.add_watch(dir, mask)?;
        // If the path changed its meaning in between, the next check sees that it is not `before`.
        self.watched = before;
        Ok(())
    }
}

impl Changes {
    const fn none() -> Self {
        Self::Names(BTreeSet::new())
    }

    /// Both.
    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Names(mut names), Self::Names(others)) => {
                names.extend(others);
                Self::Names(names)
            }
            _ => Self::All,
        }
    }

    /// Adds what events tell; true if the watch is no longer of the directory.
    fn add(&mut self, events: &[InotifyEvent]) -> bool {
        let mut lost = false;
        for event in events {
            let gone = AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF | AddWatchFlags::IN_IGNORED;
            if event.mask.intersects(gone) {
                lost = true;
            } else if event.mask.intersects(AddWatchFlags::IN_Q_OVERFLOW) {
                *self = Self::All;
            } else if let Some(name) = &event.name {
                match (name.to_str(), &mut *self) {
                    // Kubernetes swaps the link `..data`, to which every file of a ConfigMap is a link.
                    (Some(name), all) if name.starts_with("..") => *all = Self::All,
                    (Some(name), Self::Names(names)) if super::is_ours(name) => drop(names.insert(name.into())),
                    _ => {}
                }
            }
        }
        lost
    }
}

fn descriptor() -> io::Result<Inotify> {
    Ok(Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?)
}

/// Which directory a path means.
fn identity(dir: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(dir).ok().filter(std::fs::Metadata::is_dir).map(|m| (m.dev(), m.ino()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn unsettled_changes_wait_for_quiet_and_no_longer() {
        let dir = tempfile::TempDir::new().unwrap();
        let (keep, stop) = UnixStream::pair().unwrap();
        let mut watch = Watch::new(dir.path()).unwrap();
        assert!(!watch.is_pending().unwrap());
        std::fs::write(dir.path().join(".ours.yaml.tmp"), "").unwrap();
        assert!(watch.is_pending().unwrap());
        let next = watch.next(dir.path(), stop.as_fd(), true).unwrap();
        assert_eq!(next, Some(Changes::none()), "a file that is not ours holds nothing up");
        std::fs::write(dir.path().join(".other"), "").unwrap();
        std::fs::write(dir.path().join("ours.yaml"), "").unwrap();
        let next = watch.next(dir.path(), stop.as_fd(), false).unwrap();
        assert_eq!(next, Some(Changes::Names(BTreeSet::from(["ours.yaml".into()]))));
        drop(keep);
        assert_eq!(watch.next(dir.path(), stop.as_fd(), false).unwrap(), None);
    }
}
