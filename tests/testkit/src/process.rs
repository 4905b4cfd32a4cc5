//! Programs started inside a network namespace and a cgroup, with their output in files.
//!
//! All of them are started by one thread that lives as long as the test process: `PR_SET_PDEATHSIG` fires when the
//! *thread* that forked ends, not the process.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};
use std::time::Duration;

use anyhow::{Context, anyhow};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cgroup::Cgroup;
use crate::netns::Netns;
use crate::wait::wait_for;

/// Lines of output shown when something went wrong.
const TAIL_LINES: usize = 40;
/// How long a killed process may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// A program of a mesh. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: u32,
    child: Mutex<Child>,
    stdin: Mutex<Option<ChildStdin>>,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// Starts `command` in the namespace and cgroup; its output goes to `<directory>/<name>.{out,err}`.
    pub(crate) fn spawn(
        name: &str,
        mut command: Command,
        netns: &Netns,
        cgroup: &Cgroup,
        directory: &Path,
    ) -> anyhow::Result<Self> {
        let (stdout, stderr) = (directory.join(format!("{name}.out")), directory.join(format!("{name}.err")));
        let open = |path: &Path| File::create(path).with_context(|| format!("create {}", path.display()));
        command.stdin(Stdio::piped()).stdout(open(&stdout)?).stderr(open(&stderr)?);
        let procs = cgroup.procs_for_joining()?;
        let netns = netns.as_fd().try_clone_to_owned()?;
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = on_spawner(move || {
            let (netns_fd, procs_fd) = (netns.as_raw_fd(), procs.as_raw_fd());
            // SAFETY: between fork and exec `enter` makes system calls only: it allocates nothing and takes no lock.
            // Both descriptors stay open until `spawn` has returned, because this closure owns them.
            unsafe { command.pre_exec(move || enter(netns_fd, procs_fd)) };
            let child = command.spawn();
            drop((netns, procs));
            child
        })?
        .with_context(|| format!("start {program}"))?;
        let stdin = Mutex::new(child.stdin.take());
        Ok(Self { name: name.to_owned(), pid: child.id(), child: Mutex::new(child), stdin, stdout, stderr })
    }

    /// What the test calls it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The exit status, if it has ended.
    pub fn status(&self) -> Option<ExitStatus> {
        self.child().try_wait().ok().flatten()
    }

    /// Whether it still runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.status().is_none()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It did not end in time; the error shows its output.
    pub fn wait(&self, timeout: Duration) -> anyhow::Result<ExitStatus> {
        wait_for(&format!("{} (pid {}) ends", self.name, self.pid), timeout, || Ok(self.status()))
            .with_context(|| self.tail())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        // The child lock keeps the pid from being reaped, and so from being reused, under our feet.
        let mut child = self.child();
        if let Some(status) = child.try_wait()? {
            return Err(anyhow!("{} has ended: {status}\n{}", self.name, self.tail()));
        }
        kill(Pid::from_raw(i32::try_from(self.pid)?), signal).with_context(|| format!("{signal} to {}", self.name))
    }

    /// `SIGTERM`, then waits for its end.
    ///
    /// # Errors
    /// It has ended before, or does not end in time.
    pub fn terminate(&self, timeout: Duration) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(timeout)
    }

    /// `SIGKILL`, then waits for its end. One that has ended is fine.
    pub fn kill(&self) {
        let _ = self.child().kill();
        let _ = self.wait(KILL_TIMEOUT);
    }

    /// Writes a line to its standard input.
    ///
    /// # Errors
    /// Its standard input is closed.
    pub fn send_line(&self, line: &str) -> anyhow::Result<()> {
        let mut stdin = self.stdin.lock().unwrap_or_else(PoisonError::into_inner);
        let stdin = stdin.as_mut().with_context(|| format!("standard input of {} is closed", self.name))?;
        writeln!(stdin, "{line}").with_context(|| format!("write to {}\n{}", self.name, self.tail()))
    }

    /// Closes its standard input.
    pub fn close_stdin(&self) {
        self.stdin.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// The file its standard output goes to.
    #[must_use]
    pub fn stdout_path(&self) -> &Path {
        &self.stdout
    }

    /// Everything it wrote to standard output.
    #[must_use]
    pub fn stdout(&self) -> String {
        lossy(&self.stdout)
    }

    /// Everything it wrote to standard error.
    #[must_use]
    pub fn stderr(&self) -> String {
        lossy(&self.stderr)
    }

    /// The end of its output, for messages.
    #[must_use]
    pub fn tail(&self) -> String {
        let end = |text: &str| {
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
        };
        format!("--- {} stdout\n{}\n--- {} stderr\n{}", self.name, end(&self.stdout()), self.name, end(&self.stderr()))
    }

    fn child(&self) -> std::sync::MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.close_stdin();
        self.kill();
    }
}

/// The exit status of a process that was ended by SIGKILL.
#[must_use]
pub fn was_killed(status: ExitStatus) -> bool {
    status.signal() == Some(libc::SIGKILL)
}

fn lossy(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

/// Moves the process that calls it into the namespace and the cgroup, and ties its life to the test's.
fn enter(netns: RawFd, procs: RawFd) -> std::io::Result<()> {
    let check = |result: libc::c_int| if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) };
    // SAFETY: setns and prctl take no pointers here; write reads one byte of a static string.
    unsafe {
        check(libc::setns(netns, libc::CLONE_NEWNET))?;
        if libc::write(procs, c"0".as_ptr().cast(), 1) != 1 {
            return Err(std::io::Error::last_os_error());
        }
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0))
    }
}

/// Runs `work` on the thread that starts every process.
fn on_spawner<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> anyhow::Result<R> {
    type Job = Box<dyn FnOnce() + Send>;
    static SPAWNER: OnceLock<mpsc::SyncSender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, inbox) = mpsc::sync_channel::<Job>(16);
        std::thread::spawn(move || inbox.into_iter().for_each(|job| job()));
        jobs
    });
    let (result, outbox) = mpsc::sync_channel(1);
    let job = move || {
        let _ = result.send(work());
    };
    spawner.send(Box::new(job)).map_err(|_| anyhow!("the spawner thread is gone"))?;
    outbox.recv().context("the spawner thread panicked")
}
