//! The times of a request: the caller's deadline, the route's, the attempt's, and those of its stream. One timer for the next of them.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use heddle_model::traffic::{NEVER, Timeouts};
use heddle_telemetry::Reason;
use tokio::time::{Sleep, sleep_until};

/// How long a response's head is held back at most, where attempts have no time of their own: whether a call is tried again does not matter to a
/// client as much as the head of one that goes on for hours.
const HELD_MAX: Duration = Duration::from_secs(1);

/// See the module documentation. Without limits it is asked and costs a comparison.
pub(crate) struct Clock {
    timeouts: Timeouts,
    per_try: Option<Duration>,
    /// The whole request: the nearer one of the route's and the caller's.
    deadline: Option<(Instant, Reason)>,
    /// The end of the exchange, however busy it is.
    stream: Option<Instant>,
    /// The attempt, until its response's head is there.
    attempt: Option<Instant>,
    /// The attempt, until its response is complete.
    backend: Option<Instant>,
    /// An attempt is under way, and its response's head is awaited.
    awaits_head: bool,
    /// Bytes that had moved when idle time began, and when that was.
    moved: (u64, Instant),
    /// When bytes were counted last.
    looked: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Clock {
    /// Begins now. `told` is the caller's own time.
    pub(crate) fn new(timeouts: Timeouts, per_try: Option<Duration>, told: Option<Duration>) -> Self {
        let now = Instant::now();
        let limit = |time: Option<Duration>| time.filter(|time| *time < NEVER);
        let timeouts = Timeouts {
            request: limit(timeouts.request),
            backend_request: limit(timeouts.backend_request),
            idle: limit(timeouts.idle),
            stream: limit(timeouts.stream),
        };
        let at = |time: Option<Duration>, reason| time.and_then(|time| Some((now.checked_add(time)?, reason)));
        let deadlines = [at(timeouts.request, Reason::RouteTimeout), at(told, Reason::GrpcDeadline)];
        Self {
            timeouts,
            per_try,
            deadline: deadlines.into_iter().flatten().min_by_key(|(at, _)| *at),
            stream: timeouts.stream.and_then(|time| now.checked_add(time)),
            attempt: None,
            backend: None,
            awaits_head: false,
            moved: (0, now),
            looked: now,
            timer: None,
        }
    }

    /// Another attempt begins.
    pub(crate) fn begin_attempt(&mut self) {
        let ends = |time: Option<Duration>| time.and_then(|time| Instant::now().checked_add(time));
        (self.attempt, self.backend) = (ends(self.per_try), ends(self.timeouts.backend_request));
        self.awaits_head = true;
        if self.timeouts.idle.is_some() {
            self.looked = Instant::now();
            self.moved.1 = self.looked;
        }
    }

    /// What one attempt may take until there is a response, its connection included.
    pub(crate) fn per_try(&self) -> Option<Duration> {
        self.per_try.into_iter().chain(self.timeouts.backend_request).min()
    }

    /// When the attempt that is under way has to have a response.
    pub(crate) fn attempt_ends(&self) -> Option<Instant> {
        self.attempt.into_iter().chain(self.backend).min()
    }

    /// The head of the attempt's response is there.
    pub(crate) fn head_came(&mut self) {
        self.attempt = None;
        self.awaits_head = false;
    }

    /// The head of the attempt's response is there in time, and is held back: no longer than it could have taken to come.
    pub(crate) fn hold_head(&mut self) -> Instant {
        self.attempt.take().unwrap_or_else(|| Instant::now() + HELD_MAX)
    }

    /// The attempt is over.
    pub(crate) fn end_attempt(&mut self) {
        self.head_came();
        self.backend = None;
    }

    /// A tunnel's bytes are no response.
    pub(crate) fn begin_tunnel(&mut self) {
        self.deadline = None;
        self.end_attempt();
    }

    /// Time until the deadline of the whole request.
    pub(crate) fn left(&self) -> Option<Duration> {
        self.deadline.map(|(at, _)| at.saturating_duration_since(Instant::now()))
    }

    /// The next time to be over.
    pub(crate) fn next(&self) -> Option<(Instant, Reason)> {
        let stream = self.stream.map(|at| (at, Reason::StreamDurationMax));
        let attempt = self.attempt_ends().map(|at| (at, Reason::ResponseTimeout));
        let idle =
            self.timeouts.idle.and_then(|time| Some((self.moved.1.checked_add(time)?, Reason::StreamIdleTimeout)));
        self.deadline.into_iter().chain(stream).chain(attempt).chain(idle).min_by_key(|(at, _)| *at)
    }

    /// Ready when one is: which, and whether a response's head was awaited. `moved` counts the bytes of both bodies; to be asked before more move.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, moved: u64) -> Poll<(Reason, bool)> {
        if self.timeouts.idle.is_some() {
            if self.moved.0 != moved {
                // Right behind the former look.
                self.moved = (moved, self.looked);
            }
            self.looked = Instant::now();
        }
        let Some((at, reason)) = self.next() else { return Poll::Pending };
        let at = tokio::time::Instant::from(at);
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if timer.deadline() > at {
            timer.as_mut().reset(at);
        }
        // One that was set for less wakes in vain: that is cheaper than to set it anew with each byte.
        while timer.as_mut().poll(cx).is_ready() {
            if timer.deadline() >= at {
                return Poll::Ready((reason, self.awaits_head));
            }
            timer.as_mut().reset(at);
        }
        Poll::Pending
    }
}
