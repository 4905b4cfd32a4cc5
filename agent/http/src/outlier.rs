//! Outlier ejection: endpoints that fail are left out for a while, then tried with one real request at a time.
//!
//! ```text
//!            threshold reached, cap not             the ejection's time is over
//!  serving ─────────────────────────────▶ ejected ─────────────────────────────▶ half-open
//!     ▲                                      ▲  the probe failed: longer than before │
//!     │                                      └───────────────────────────────────────┤
//!     └──────────────────────────────────────────────────────────────────────────────┘
//!                                   the probe succeeded
//! ```
//!
//! A [`Detector`] belongs to one Service in one agent, a [`Host`] to one of its endpoints; both are shared by the workers with plain
//! atomics. A result of a healthy endpoint costs one addition. Half-open counts as ejected until the probe succeeds. When too few endpoints
//! are left ([`is_panic`]) ejections are to be ignored: an endpoint that may work is better than none.

mod host;
mod success_rate;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed};
use std::time::Duration;

pub use heddle_model::traffic::{OutlierSettings as Settings, SuccessRate};
pub use host::{Admission, Host, Probe, Standing};

use crate::answer;
use host::State;

/// What a request told about the endpoint. One that the client gave up, that this agent refused, or that a closing connection left unprocessed
/// tells nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It responded.
    Response {
        /// The status; for gRPC see [`Outcome::grpc`].
        status: u16,
        /// What its `Retry-After` asks for ([`crate::retry::retry_after`]).
        retry_after: Option<Duration>,
    },
    /// It did not: no connection, a reset before the response, a timeout.
    Local,
}

/// What every call needs to know.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// The settings now in force.
    pub settings: &'a Settings,
    /// How many endpoints of the Service may be called.
    pub hosts: u32,
    /// Monotonic, counted from a start of the caller's choosing that is the same for all workers. Milliseconds count.
    pub now: Duration,
}

/// Why an endpoint was ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// [`Settings::consecutive_5xx`].
    Consecutive5xx,
    /// [`Settings::consecutive_gateway`].
    ConsecutiveGateway,
    /// [`Settings::consecutive_local`].
    ConsecutiveLocal,
    /// [`Settings::success_rate`].
    SuccessRate,
    /// It asked for it: a 503 with `Retry-After`.
    RetryAfter,
    /// The probe after an ejection failed.
    ProbeFailed,
}

/// What changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// The endpoint is left out from now on.
    Ejected {
        /// Why.
        cause: Cause,
        /// For how long.
        length: Duration,
    },
    /// It would have been, but as many are ejected as may be.
    Capped(Cause),
    /// The probe succeeded: the endpoint serves again.
    Readmitted,
}

/// The ejections of one Service in one agent.
#[derive(Debug, Default)]
pub struct Detector {
    /// Hosts that are ejected or half-open.
    ejected: Arc<AtomicU32>,
    /// Counts the transitions that change who serves.
    version: AtomicU32,
    /// When success rates are compared next, in milliseconds of the caller's time; 0 before the first time.
    sweep_next_millis: AtomicU64,
}

impl Detector {
    /// An endpoint that is new to this Service.
    #[must_use]
    pub fn host(&self) -> Arc<Host> {
        Arc::new(Host::new(Arc::clone(&self.ejected)))
    }

    /// Takes note of a result. `probe` is what [`Host::admit`] gave for this request.
    ///
    /// While a host is ejected only its probe counts: requests that were sent before, or in a panic, say nothing about its recovery.
    pub fn on_result(
        &self,
        host: &Arc<Host>,
        outcome: Outcome,
        probe: Option<Probe>,
        scene: &Scene<'_>,
    ) -> Option<Transition> {
        let transition = match probe {
            Some(probe) => self.on_probe(host, outcome, &probe, scene),
            None => match host.state() {
                State::Serving { times } => self.on_served(host, outcome, times, scene),
                State::Ejected { .. } | State::Retired => None,
            },
        };
        if matches!(transition, Some(Transition::Ejected { .. } | Transition::Readmitted)) {
            self.version.fetch_add(1, Relaxed);
        }
        transition
    }

    /// Compares success rates and forgets old ejections, if the interval is over; to be called now and then with all hosts. Of several
    /// workers that call it at the same time one does the work. The numbers are indices into `hosts`.
    pub fn sweep(&self, hosts: &[Arc<Host>], scene: &Scene<'_>) -> Vec<(usize, Transition)> {
        let (now, interval) = (millis(scene.now), millis(scene.settings.interval).max(1));
        let due = |next: u64| (next == 0 || now >= next).then(|| now.saturating_add(interval).max(1));
        match self.sweep_next_millis.fetch_update(AcqRel, Acquire, due) {
            // The first interval begins here.
            Ok(0) | Err(_) => return Vec::new(),
            Ok(_) => {}
        }
        let windows: Vec<_> = hosts.iter().map(|host| host.take_window()).collect();
        for host in hosts {
            host.forgive();
        }
        let Some(rule) = &scene.settings.success_rate else { return Vec::new() };
        let mut transitions = Vec::new();
        for index in success_rate::outliers(rule, &windows) {
            let Some(host) = hosts.get(index) else { continue };
            if let State::Serving { times } = host.state() {
                let transition = self.eject(host, Cause::SuccessRate, times, None, scene);
                transitions.extend(transition.map(|transition| (index, transition)));
            }
        }
        let ejected = transitions.iter().filter(|(_, t)| matches!(t, Transition::Ejected { .. })).count();
        self.version.fetch_add(u32::try_from(ejected).unwrap_or(u32::MAX), Relaxed);
        transitions
    }

    /// How many hosts are ejected or half-open.
    #[must_use]
    pub fn ejected(&self) -> u32 {
        self.ejected.load(Relaxed)
    }

    /// A number that changes with every ejection and readmission, to know when what was derived from them is out of date.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version.load(Acquire)
    }

    fn on_served(&self, host: &Host, outcome: Outcome, times: u16, scene: &Scene<'_>) -> Option<Transition> {
        let settings = scene.settings;
        if let Some(length) = outcome.asked_length(settings) {
            host.count(outcome);
            return self.eject(host, Cause::RetryAfter, times, Some(length), scene);
        }
        let run = host.count(outcome)?;
        let is_reached = |count: u32, threshold: u32| threshold > 0 && count >= threshold;
        // The narrowest cause first: it says most.
        let cause = if is_reached(run.local, settings.consecutive_local) {
            Cause::ConsecutiveLocal
        } else if is_reached(run.gateway, settings.consecutive_gateway) {
            Cause::ConsecutiveGateway
        } else if is_reached(run.any_5xx, settings.consecutive_5xx) {
            Cause::Consecutive5xx
        } else {
            return None;
        };
        // Whether ejected or capped, the next run counts from the beginning.
        host.reset_runs();
        self.eject(host, cause, times, None, scene)
    }

    fn on_probe(&self, host: &Host, outcome: Outcome, probe: &Probe, scene: &Scene<'_>) -> Option<Transition> {
        if !probe.is_of(host) {
            return None;
        }
        if outcome.is_failure() {
            let asked = outcome.asked_length(scene.settings);
            let length = host.fail_probe(probe, asked, scene)?;
            return Some(Transition::Ejected { cause: Cause::ProbeFailed, length });
        }
        host.readmit(probe).then_some(Transition::Readmitted)
    }

    /// Ejects a host that serves, if one more may be. `asked` is its own wish, which does not count against it.
    fn eject(
        &self,
        host: &Host,
        cause: Cause,
        times: u16,
        asked: Option<Duration>,
        scene: &Scene<'_>,
    ) -> Option<Transition> {
        let most = (u64::from(scene.hosts) * u64::from(scene.settings.ejected_percent_max) / 100).max(1);
        let place = |ejected: u32| (u64::from(ejected) < most).then(|| ejected + 1);
        if self.ejected.fetch_update(Relaxed, Relaxed, place).is_err() {
            return Some(Transition::Capped(cause));
        }
        match host.eject(times, asked, scene) {
            Some(length) => Some(Transition::Ejected { cause, length }),
            None => {
                // Another worker was faster, or the endpoint is gone.
                self.ejected.fetch_sub(1, Relaxed);
                None
            }
        }
    }
}

/// Whether so few of `hosts` are `left` that ejections are to be ignored.
#[must_use]
pub fn is_panic(settings: &Settings, left: usize, hosts: usize) -> bool {
    (left as u64).saturating_mul(100) < (hosts as u64).saturating_mul(u64::from(settings.panic_percent))
}

/// The length of the nth ejection.
fn length(settings: &Settings, nth: u16) -> Duration {
    settings.ejection_base.saturating_mul(u32::from(nth)).min(settings.ejection_max)
}

impl Outcome {
    /// A response with this status and nothing else to say.
    #[must_use]
    pub const fn status(status: u16) -> Self {
        Self::Response { status, retry_after: None }
    }

    /// A gRPC call that ended with this code: the HTTP status that says the same, so that one set of thresholds serves both.
    #[must_use]
    pub const fn grpc(code: u8) -> Self {
        Self::status(answer::http_status(code))
    }

    /// Whether it speaks against the endpoint.
    #[must_use]
    pub const fn is_failure(self) -> bool {
        match self {
            Self::Response { status, .. } => status >= 500,
            Self::Local => true,
        }
    }

    const fn is_gateway_failure(self) -> bool {
        match self {
            Self::Response { status, .. } => matches!(status, 502..=504),
            Self::Local => true,
        }
    }

    /// The ejection that the endpoint asks for.
    fn asked_length(self, settings: &Settings) -> Option<Duration> {
        match self {
            Self::Response { status: 503, retry_after: Some(asked) } => {
                Some(asked.min(settings.retry_after_max)).filter(|length| millis(*length) > 0)
            }
            _ => None,
        }
    }
}

impl Cause {
    /// The stable snake_case word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Consecutive5xx => "consecutive_5xx",
            Self::ConsecutiveGateway => "consecutive_gateway",
            Self::ConsecutiveLocal => "consecutive_local",
            Self::SuccessRate => "success_rate",
            Self::RetryAfter => "retry_after",
            Self::ProbeFailed => "probe_failed",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
