//! When to ask for which certificate: a state machine without clock, I/O or keys. Events and the time go in, actions come out.
//!
//! ```text
//!            need                 slot free               issued, valid
//!  (absent) ──────▶ Queued ─────────────────▶ Requested ───────────────▶ Idle ──┐ renewal due
//!      ▲              ▲  ▲                        │ issued, but begins later     │
//!      │ forget       │  │ due                    ├──────────▶ Staged ──▶ Idle   │
//!      │ (anywhere)   │  └──────── Backoff ◀──────┘ failed                       │
//!                     └──────────────────────────────────────────────────────────┘
//! ```
//!
//! Certificates are valid by the wall clock, waiting is done by the monotonic one. When the two are seen to move apart (a clock was set, a
//! machine slept) every renewal is timed anew; a clock set back never postpones one beyond what was planned at its issue.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::certificate::Validity;
use crate::issuer::{IssueErrorKind, Retry};
use crate::spiffe::SpiffeId;

mod schedule;

pub use schedule::Settings;

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Monotonic, from any origin.
    pub monotonic: Duration,
    /// Wall clock, since 1970.
    pub unix: Duration,
}

/// How urgent; declared most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Priority {
    /// A handshake waits for it.
    NeededNow,
    /// A pod of this account is here and will call or be called.
    WarmUp,
    /// A valid one is held; it is to be renewed.
    Background,
}

/// One request to the issuer; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// What happened.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// Somebody wants a certificate for this id, first or again.
    Need(&'a SpiffeId, Priority),
    /// The last pod of this account left.
    Forget(&'a SpiffeId),
    /// A certificate was taken over from a former agent.
    Restored(&'a SpiffeId, Validity),
    /// The issuer answered, and the answer was checked.
    Issued(&'a SpiffeId, RequestId, Validity),
    /// It did not, or the answer was refused.
    Failed(&'a SpiffeId, RequestId, IssueErrorKind, Retry),
    /// Time passed.
    Tick,
}

/// What to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask the issuer.
    Request(SpiffeId, RequestId),
    /// Abandon this request; its answer would be ignored.
    Cancel(RequestId),
    /// Take into use what this request brought.
    Use(SpiffeId, RequestId),
}

/// Where an account's certificate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// None yet, and a handshake waits.
    NeededNow,
    /// None yet.
    WarmUp,
    /// Held, not due.
    Valid,
    /// Held; the next one is asked for (again, if attempts failed: the last valid one is kept).
    Renewing,
    /// None, and the last attempt failed.
    Failed,
    /// Held beyond its end.
    Expired,
}

impl State {
    /// All.
    pub const ALL: [Self; 6] =
        [Self::NeededNow, Self::WarmUp, Self::Valid, Self::Renewing, Self::Failed, Self::Expired];

    /// The stable word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NeededNow => "needed_now",
            Self::WarmUp => "warm_up",
            Self::Valid => "valid",
            Self::Renewing => "renewing",
            Self::Failed => "failed",
            Self::Expired => "expired",
        }
    }
}

#[derive(Debug)]
enum Phase {
    Queued { order: u64 },
    Requested(RequestId),
    Backoff { kind: IssueErrorKind },
    Staged { request: RequestId, next: Validity },
    Idle,
}

#[derive(Debug)]
struct Held {
    validity: Validity,
    /// When to renew, by either clock, whichever comes first.
    renew_unix: Duration,
    renew_monotonic: Duration,
}

#[derive(Debug)]
struct Entry {
    phase: Phase,
    demand: Priority,
    failures: u32,
    held: Option<Held>,
    /// Its place in `timers`, by the monotonic clock.
    timer: Option<Duration>,
}

impl Entry {
    fn is_held_valid(&self, now: Now) -> bool {
        self.held.as_ref().is_some_and(|held| now.unix <= held.validity.not_after)
    }

    fn priority(&self, now: Now) -> Priority {
        if self.is_held_valid(now) { Priority::Background } else { self.demand.min(Priority::WarmUp) }
    }
}

/// The state machine.
#[derive(Debug)]
pub struct Rotation {
    settings: Settings,
    rng: fastrand::Rng,
    entries: BTreeMap<SpiffeId, Entry>,
    queue: BTreeSet<(Priority, u64, SpiffeId)>,
    timers: BTreeSet<(Duration, SpiffeId)>,
    open_requests: usize,
    next_request: u64,
    next_order: u64,
    last: Option<Now>,
}

impl Rotation {
    /// `seed` makes the jitter: another one on every node.
    #[must_use]
    pub fn new(settings: Settings, seed: u64) -> Self {
        Self {
            settings,
            rng: fastrand::Rng::with_seed(seed),
            entries: BTreeMap::new(),
            queue: BTreeSet::new(),
            timers: BTreeSet::new(),
            open_requests: 0,
            next_request: 0,
            next_order: 0,
            last: None,
        }
    }

    /// Takes one event. Call it also when [`Self::next_wake`] has passed.
    #[must_use = "actions not done are lost"]
    pub fn step(&mut self, now: Now, event: Event<'_>) -> Vec<Action> {
        let mut actions = Vec::new();
        self.watch_clocks(now);
        match event {
            Event::Need(id, priority) => self.need(now, id, priority),
            Event::Forget(id) => self.forget(id, &mut actions),
            Event::Restored(id, validity) => self.restored(now, id, validity),
            Event::Issued(id, request, validity) => self.issued(now, id, request, validity, &mut actions),
            Event::Failed(id, request, kind, retry) => self.failed(now, id, request, kind, retry),
            Event::Tick => {}
        }
        self.fire_timers(now, &mut actions);
        self.start_requests(&mut actions);
        actions
    }

    /// How long nothing will happen by itself; never longer than the interval at which clocks are compared.
    #[must_use]
    pub fn next_wake(&self, now: Now) -> Duration {
        let first = self.timers.first().map(|(at, _)| at.saturating_sub(now.monotonic));
        first.unwrap_or(self.settings.clock_check).min(self.settings.clock_check)
    }

    /// Where `id` stands; `None` if it is not wanted.
    #[must_use]
    pub fn state(&self, id: &SpiffeId, now: Now) -> Option<State> {
        let entry = self.entries.get(id)?;
        let is_waiting = matches!(entry.phase, Phase::Backoff { .. });
        Some(match (&entry.held, &entry.phase) {
            (Some(_), _) if !entry.is_held_valid(now) => State::Expired,
            (Some(_), Phase::Idle) => State::Valid,
            (Some(_), _) => State::Renewing,
            (None, _) if is_waiting => State::Failed,
            (None, _) if entry.demand == Priority::NeededNow => State::NeededNow,
            (None, _) => State::WarmUp,
        })
    }

    /// When `id` is next acted on by itself, by the monotonic clock: renewal or the next attempt.
    #[must_use]
    pub fn due(&self, id: &SpiffeId) -> Option<Duration> {
        self.entries.get(id)?.timer
    }

    /// Attempts that failed since the last success.
    #[must_use]
    pub fn failures(&self, id: &SpiffeId) -> u32 {
        self.entries.get(id).map_or(0, |entry| entry.failures)
    }

    /// Requests the issuer has not answered.
    #[must_use]
    pub fn open_requests(&self) -> usize {
        self.open_requests
    }

    /// Whether `request` is the one open for `id`; answers to any other are ignored.
    #[must_use]
    pub fn is_open(&self, id: &SpiffeId, request: RequestId) -> bool {
        self.entries.get(id).is_some_and(|entry| matches!(entry.phase, Phase::Requested(open) if open == request))
    }

    /// Accounts wanted.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no account is wanted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn need(&mut self, now: Now, id: &SpiffeId, priority: Priority) {
        let Some(entry) = self.entries.get_mut(id) else {
            let phase = Phase::Queued { order: 0 };
            let entry = Entry { phase, demand: priority, failures: 0, held: None, timer: None };
            self.entries.insert(id.clone(), entry);
            self.enqueue(now, id);
            return;
        };
        if priority >= entry.demand || entry.is_held_valid(now) {
            return;
        }
        entry.demand = priority;
        // In back-off the answer of the issuer stands: it is asked when that ends, now as an urgent case.
        if let Phase::Queued { .. } = entry.phase {
            self.enqueue(now, id);
        }
    }

    fn forget(&mut self, id: &SpiffeId, actions: &mut Vec<Action>) {
        let Some(entry) = self.entries.remove(id) else { return };
        match entry.phase {
            Phase::Queued { order } => dequeue(&mut self.queue, id, order),
            Phase::Requested(request) => {
                self.open_requests -= 1;
                actions.push(Action::Cancel(request));
            }
            Phase::Staged { request, .. } => actions.push(Action::Cancel(request)),
            Phase::Backoff { .. } | Phase::Idle => {}
        }
        if let Some(at) = entry.timer {
            self.timers.remove(&(at, id.clone()));
        }
    }

    fn restored(&mut self, now: Now, id: &SpiffeId, validity: Validity) {
        let entry = Entry { phase: Phase::Idle, demand: Priority::WarmUp, failures: 0, held: None, timer: None };
        // Whatever is known already is fresher.
        if self.entries.contains_key(id) {
            return;
        }
        self.entries.insert(id.clone(), entry);
        let in_time = self.settings.renew_in_restored(&mut self.rng, now, validity);
        self.hold(now, id, validity, in_time);
    }

    fn issued(&mut self, now: Now, id: &SpiffeId, request: RequestId, validity: Validity, actions: &mut Vec<Action>) {
        if !self.close_request(id, request) {
            return;
        }
        let Some(entry) = self.entries.get_mut(id) else { return };
        entry.failures = 0;
        entry.demand = Priority::Background;
        let is_old_better = validity.not_before > now.unix
            && entry.held.as_ref().is_some_and(|held| held.validity.not_after > validity.not_before);
        if is_old_better {
            entry.phase = Phase::Staged { request, next: validity };
            self.set_timer(id, Some(now.monotonic + (validity.not_before - now.unix)));
        } else {
            self.take_into_use(now, id, request, validity, actions);
        }
        self.issuer_is_back(now);
    }

    fn failed(&mut self, now: Now, id: &SpiffeId, request: RequestId, kind: IssueErrorKind, retry: Retry) {
        if !self.close_request(id, request) {
            return;
        }
        let Some(entry) = self.entries.get_mut(id) else { return };
        entry.failures = entry.failures.saturating_add(1);
        entry.phase = Phase::Backoff { kind };
        let left = entry.held.as_ref().map(|held| held.validity.not_after.saturating_sub(now.unix));
        let wait = self.settings.backoff(&mut self.rng, entry.failures, retry, left);
        self.set_timer(id, Some(now.monotonic + wait));
    }

    /// Whether `request` is the one open for `id`; it no longer is.
    fn close_request(&mut self, id: &SpiffeId, request: RequestId) -> bool {
        let is_open = self.is_open(id, request);
        if is_open {
            self.open_requests -= 1;
        }
        is_open
    }

    fn take_into_use(
        &mut self,
        now: Now,
        id: &SpiffeId,
        request: RequestId,
        validity: Validity,
        actions: &mut Vec<Action>,
    ) {
        let renew_in = self.settings.renew_in(&mut self.rng, now, validity);
        self.hold(now, id, validity, renew_in);
        actions.push(Action::Use(id.clone(), request));
    }

    fn hold(&mut self, now: Now, id: &SpiffeId, validity: Validity, renew_in: Duration) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        entry.phase = Phase::Idle;
        let (renew_unix, renew_monotonic) = (now.unix + renew_in, now.monotonic + renew_in);
        entry.held = Some(Held { validity, renew_unix, renew_monotonic });
        self.set_timer(id, Some(renew_monotonic));
    }

    /// One success says that the issuer works: accounts that wait because it did not are asked for soon.
    fn issuer_is_back(&mut self, now: Now) {
        let soon = now.monotonic + self.settings.recovery_spread;
        let waiting: Vec<SpiffeId> = self
            .entries
            .iter()
            .filter(|(_, entry)| {
                matches!(entry.phase, Phase::Backoff { kind: IssueErrorKind::Unavailable | IssueErrorKind::Timeout })
                    && entry.timer.is_some_and(|at| at > soon)
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in waiting {
            let spread = self.settings.recovery_spread.mul_f64(self.rng.f64());
            self.set_timer(&id, Some(now.monotonic + spread));
        }
    }

    fn fire_timers(&mut self, now: Now, actions: &mut Vec<Action>) {
        while let Some((at, _)) = self.timers.first()
            && *at <= now.monotonic
            && let Some((_, id)) = self.timers.pop_first()
        {
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            entry.timer = None;
            if let Phase::Staged { request, next } = entry.phase {
                self.take_into_use(now, &id, request, next, actions);
            } else {
                self.enqueue(now, &id);
            }
        }
    }

    /// Puts `id` into the queue, or to its right place in it.
    fn enqueue(&mut self, now: Now, id: &SpiffeId) {
        self.set_timer(id, None);
        let Some(entry) = self.entries.get_mut(id) else { return };
        if let Phase::Queued { order } = entry.phase {
            dequeue(&mut self.queue, id, order);
        }
        self.next_order += 1;
        entry.phase = Phase::Queued { order: self.next_order };
        self.queue.insert((entry.priority(now), self.next_order, id.clone()));
    }

    fn start_requests(&mut self, actions: &mut Vec<Action>) {
        while self.open_requests < self.settings.requests_max
            && let Some((_, _, id)) = self.queue.pop_first()
        {
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            self.next_request += 1;
            let request = RequestId(self.next_request);
            entry.phase = Phase::Requested(request);
            self.open_requests += 1;
            actions.push(Action::Request(id, request));
        }
    }

    fn set_timer(&mut self, id: &SpiffeId, at: Option<Duration>) {
        let Some(entry) = self.entries.get_mut(id) else { return };
        if let Some(old) = entry.timer.take() {
            self.timers.remove(&(old, id.clone()));
        }
        if let Some(at) = at {
            entry.timer = Some(at);
            self.timers.insert((at, id.clone()));
        }
    }

    /// Notices that the wall clock was set against the monotonic one, and times what depends on it anew.
    fn watch_clocks(&mut self, now: Now) {
        let Some(last) = self.last.replace(now) else { return };
        let elapsed = now.monotonic.saturating_sub(last.monotonic);
        let drift = (last.unix + elapsed).abs_diff(now.unix);
        if drift <= self.settings.clock_drift_max {
            // Small steps must not add up unseen.
            self.last = Some(Now { monotonic: now.monotonic, unix: last.unix + elapsed });
            return;
        }
        let timed: Vec<SpiffeId> = self
            .entries
            .iter()
            .filter(|(_, entry)| matches!(entry.phase, Phase::Idle | Phase::Staged { .. }))
            .map(|(id, _)| id.clone())
            .collect();
        for id in timed {
            let Some(entry) = self.entries.get(&id) else { continue };
            let at = match (&entry.phase, &entry.held) {
                (Phase::Staged { next, .. }, _) => now.monotonic + next.not_before.saturating_sub(now.unix),
                (_, Some(held)) => {
                    let by_wall = now.monotonic + held.renew_unix.saturating_sub(now.unix);
                    by_wall.min(held.renew_monotonic)
                }
                _ => continue,
            };
            self.set_timer(&id, Some(at));
        }
    }
}

fn dequeue(queue: &mut BTreeSet<(Priority, u64, SpiffeId)>, id: &SpiffeId, order: u64) {
    for priority in [Priority::NeededNow, Priority::WarmUp, Priority::Background] {
        queue.remove(&(priority, order, id.clone()));
    }
}

#[cfg(test)]
mod tests;
