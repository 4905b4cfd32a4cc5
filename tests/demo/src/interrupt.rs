//! Ctrl-C as a wish instead of an end, so that namespaces, cgroups and eBPF are taken down in any case.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Takes SIGINT, SIGTERM and SIGHUP over. Must come before any other thread: threads inherit the mask.
pub fn watch() -> Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().context("cannot hold back signals")?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        while signals.wait().is_ok() {
            REQUESTED.store(true, Ordering::Relaxed);
        }
    })?;
    Ok(())
}

/// Whether somebody wants it to end.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// Between two steps: goes on, or unwinds so that everything is taken down.
pub fn check() -> Result<()> {
    if requested() {
        bail!("interrupted");
    }
    Ok(())
}

/// Waits for so long, or until somebody wants it to end.
pub fn pause(duration: Duration) {
    let until = Instant::now() + duration;
    while Instant::now() < until && !requested() {
        thread::sleep(Duration::from_millis(20));
    }
}
