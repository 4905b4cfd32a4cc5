//! What is known about one endpoint, in a few words of memory that all workers share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed};
use std::time::Duration;

use super::{Outcome, Scene, length, millis};

/// The record of one endpoint. Its place among the ejected is given back when it is dropped or [retired](Host::retire).
#[derive(Debug)]
pub struct Host {
    /// See [`Word`].
    word: AtomicU64,
    /// Requests of this interval (upper half), and of these the successful ones.
    window: AtomicU64,
    any_5xx: AtomicU32,
    gateway: AtomicU32,
    local: AtomicU32,
    /// The detector's count.
    ejected: Arc<AtomicU32>,
}

/// How an endpoint stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It takes requests.
    Serving,
    /// It takes none until this time.
    Ejected {
        /// In the caller's time.
        until: Duration,
    },
    /// Its ejection is over; it takes one request at a time until one succeeds.
    HalfOpen {
        /// One is on its way, so there is no place for another.
        is_probed: bool,
    },
}

/// Whether a request may go to an endpoint.
#[derive(Debug)]
pub enum Admission {
    /// Yes.
    Serve,
    /// Yes, as the one request that decides; to be given to [`super::Detector::on_result`].
    Probe(Probe),
    /// No, unless in a panic; then without a say.
    Ejected,
}

/// The one request that decides whether a half-open endpoint serves again. Dropped without a result it makes room for another.
#[derive(Debug)]
pub struct Probe {
    host: Arc<Host>,
    word: u64,
}

/// Requests of one interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) requests: u32,
    pub(super) successes: u32,
}

/// Failures in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) any_5xx: u32,
    pub(super) gateway: u32,
    pub(super) local: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It serves; so many of its ejections are remembered.
    Serving { times: u16 },
    /// Ejected until then, half-open from then on.
    Ejected { until_millis: u64, is_probed: bool },
    /// The endpoint is gone.
    Retired,
}

/// The state in one word: until when in milliseconds (44 bits, 557 years), how many ejections (16), whether probed, and which state (2).
struct Word;

impl Word {
    const SERVING: u64 = 0;
    const EJECTED: u64 = 1;
    const RETIRED: u64 = 2;
    const PROBED: u64 = 4;
    const TIMES: u32 = 4;
    const UNTIL: u32 = 20;

    const fn serving(times: u16) -> u64 {
        (times as u64) << Self::TIMES | Self::SERVING
    }

    fn ejected(times: u16, until_millis: u64) -> u64 {
        until_millis.min((1 << 44) - 1) << Self::UNTIL | u64::from(times) << Self::TIMES | Self::EJECTED
    }

    const fn times(word: u64) -> u16 {
        (word >> Self::TIMES) as u16
    }

    const fn read(word: u64) -> State {
        match word & 3 {
            Self::SERVING => State::Serving { times: Self::times(word) },
            Self::EJECTED => State::Ejected { until_millis: word >> Self::UNTIL, is_probed: word & Self::PROBED != 0 },
            _ => State::Retired,
        }
    }
}

impl Host {
    pub(super) fn new(ejected: Arc<AtomicU32>) -> Self {
        Self {
            word: AtomicU64::new(Word::serving(0)),
            window: AtomicU64::new(0),
            any_5xx: AtomicU32::new(0),
            gateway: AtomicU32::new(0),
            local: AtomicU32::new(0),
            ejected,
        }
    }

    /// How it stands.
    #[must_use]
    pub fn standing(&self, now: Duration) -> Standing {
        match self.state() {
            State::Ejected { until_millis, .. } if millis(now) < until_millis => {
                Standing::Ejected { until: Duration::from_millis(until_millis) }
            }
            State::Ejected { is_probed, .. } => Standing::HalfOpen { is_probed },
            State::Serving { .. } | State::Retired => Standing::Serving,
        }
    }

    /// Asks whether a request may go there; to be called when the endpoint was chosen.
    #[must_use]
    pub fn admit(self: &Arc<Self>, now: Duration) -> Admission {
        let word = self.word.load(Acquire);
        match Word::read(word) {
            State::Serving { .. } | State::Retired => Admission::Serve,
            State::Ejected { until_millis, is_probed } if is_probed || millis(now) < until_millis => Admission::Ejected,
            State::Ejected { .. } => {
                let probed = word | Word::PROBED;
                match self.word.compare_exchange(word, probed, AcqRel, Acquire) {
                    Ok(_) => Admission::Probe(Probe { host: Arc::clone(self), word: probed }),
                    Err(_) => Admission::Ejected,
                }
            }
        }
    }

    /// The endpoint is gone from the Service: it no longer counts among the ejected, even while requests still hold it.
    pub fn retire(&self) {
        let word = self.word.swap(Word::RETIRED, AcqRel);
        if matches!(Word::read(word), State::Ejected { .. }) {
            self.ejected.fetch_sub(1, Relaxed);
        }
    }

    pub(super) fn state(&self) -> State {
        Word::read(self.word.load(Acquire))
    }

    /// Counts a result; the runs if it was a failure.
    pub(super) fn count(&self, outcome: Outcome) -> Option<Run> {
        let is_failure = outcome.is_failure();
        self.window.fetch_add(1 << 32 | u64::from(!is_failure), Relaxed);
        let run = Run {
            any_5xx: next(&self.any_5xx, is_failure),
            gateway: next(&self.gateway, outcome.is_gateway_failure()),
            local: next(&self.local, outcome == Outcome::Local),
        };
        is_failure.then_some(run)
    }

    pub(super) fn reset_runs(&self) {
        for run in [&self.any_5xx, &self.gateway, &self.local] {
            next(run, false);
        }
    }

    /// Ends the interval.
    pub(super) fn take_window(&self) -> Window {
        let window = self.window.swap(0, Relaxed);
        Window { requests: (window >> 32) as u32, successes: window as u32 }
    }

    /// Forgets one ejection of a host that serves.
    pub(super) fn forgive(&self) {
        let less = |word: u64| match Word::read(word) {
            State::Serving { times } if times > 0 => Some(Word::serving(times - 1)),
            _ => None,
        };
        // Nothing to forget is no error.
        let _ = self.word.fetch_update(AcqRel, Acquire, less);
    }

    /// From serving to ejected; for how long, or `None` if it did not serve any more. The caller has taken the place among the ejected.
    pub(super) fn eject(&self, times: u16, asked: Option<Duration>, scene: &Scene<'_>) -> Option<Duration> {
        let (times, length) = sentence(times, asked, scene);
        let ejected = Word::ejected(times, millis(scene.now.saturating_add(length)));
        let serves = |word: u64| matches!(Word::read(word), State::Serving { .. }).then_some(ejected);
        self.word.fetch_update(AcqRel, Acquire, serves).ok().map(|_| length)
    }

    /// From half-open to ejected again; for how long, or `None` if the probe is of another ejection.
    pub(super) fn fail_probe(&self, probe: &Probe, asked: Option<Duration>, scene: &Scene<'_>) -> Option<Duration> {
        let (times, length) = sentence(Word::times(probe.word), asked, scene);
        let ejected = Word::ejected(times, millis(scene.now.saturating_add(length)));
        self.word.compare_exchange(probe.word, ejected, AcqRel, Acquire).ok().map(|_| length)
    }

    /// From half-open to serving, with a clean record but for the number of ejections.
    pub(super) fn readmit(&self, probe: &Probe) -> bool {
        let serving = Word::serving(Word::times(probe.word));
        self.reset_runs();
        self.window.store(0, Relaxed);
        let is_readmitted = self.word.compare_exchange(probe.word, serving, AcqRel, Acquire).is_ok();
        if is_readmitted {
            self.ejected.fetch_sub(1, Relaxed);
        }
        is_readmitted
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.retire();
    }
}

impl Probe {
    pub(super) fn is_of(&self, host: &Host) -> bool {
        std::ptr::eq(Arc::as_ptr(&self.host), host)
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // Only if there was no result: that changed the word.
        let free = self.word & !Word::PROBED;
        let _ = self.host.word.compare_exchange(self.word, free, AcqRel, Relaxed);
    }
}

/// The number of this ejection and its length: what the endpoint asked for, which counts as none, or the nth.
fn sentence(times: u16, asked: Option<Duration>, scene: &Scene<'_>) -> (u16, Duration) {
    match asked {
        Some(length) => (times, length),
        None => {
            let times = times.saturating_add(1);
            (times, length(scene.settings, times))
        }
    }
}

/// Counts one more in a row, or begins anew; writes nothing where nothing changes, which is the usual case.
fn next(run: &AtomicU32, goes_on: bool) -> u32 {
    if goes_on {
        run.fetch_add(1, Relaxed).saturating_add(1)
    } else {
        if run.load(Relaxed) != 0 {
            run.store(0, Relaxed);
        }
        0
    }
}
