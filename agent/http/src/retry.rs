//! Whether an attempt that failed is followed by another: the decision, apart from its mechanism.
//!
//! [`decide`] is a pure function of the [`Policy`], what the request is and has behind it ([`Attempt`]), how the attempt ended
//! ([`Outcome`]), time and randomness. It runs on the client's side only; the server's side never retries. The [`Budget`] is asked last,
//! when everything else speaks for a retry.

mod after;
mod budget;
mod deadline;

use std::fmt;
use std::time::Duration;

use heddle_model::Timestamp;
use http::HeaderMap;

use crate::answer;
use crate::h1;

pub use after::{PUSHBACK, Pushback, retry_after};
pub use budget::{ActiveRequest, Budget, BudgetUse, Token};
pub use deadline::{grpc_timeout, grpc_timeout_value};
pub use heddle_model::traffic::{Backoff, BudgetLimits, Conditions, GrpcCodes, RetryPolicy as Policy, StatusSet};

/// Bytes of a request's body that are kept for a retry. A request whose body is longer is not retried once more than these were sent.
pub const REPLAY_BYTES_MAX: usize = 64 * 1024;

/// The request as far as it concerns retries, and the attempt that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The method is idempotent ([`h1::is_idempotent`]).
    pub idempotent: bool,
    /// The request is a gRPC call ([`answer::is_grpc`]): its status is `grpc-status`.
    pub grpc: bool,
    /// The number of the attempt; the first is 1.
    pub number: u32,
    /// What was sent of the body can be sent again: there is none, or all that was sent is kept ([`REPLAY_BYTES_MAX`]).
    pub replayable: bool,
    /// A byte of a response, be it an interim one, went out to the client.
    pub response_begun: bool,
    /// Time left until the request's deadline; `None` if it has none.
    pub left: Option<Duration>,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug)]
pub enum Outcome<'a> {
    /// No connection to the endpoint came about in time: refused, unreachable, timed out, TLS failed.
    ConnectFailed,
    /// The server did nothing with the request: `REFUSED_STREAM`, or GOAWAY with a lower stream id.
    Refused {
        /// The connection is being closed gracefully (GOAWAY with `NO_ERROR`): nothing is wrong with the endpoint.
        graceful: bool,
    },
    /// The stream or connection ended before the response head, or, for a unary gRPC call whose response was held back, before its status.
    Reset,
    /// The attempt took longer than the policy's per-try timeout.
    TimedOut,
    /// A response's head came.
    Response {
        /// Its status.
        status: u16,
        /// Its fields.
        head: &'a dyn Lookup,
        /// The trailers, if the response was held back until they came (unary gRPC calls).
        trailers: Option<&'a dyn Lookup>,
    },
}

/// Fields by name, so that the decision reads HTTP/1 and HTTP/2 alike.
pub trait Lookup: fmt::Debug {
    /// The first value of a field; `name` in lower case.
    fn lookup(&self, name: &str) -> Option<&[u8]>;
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision<T> {
    /// Another attempt.
    Retry {
        /// Wait so long first.
        after: Duration,
        /// What the budget gave; to be kept until the retry ended.
        token: T,
    },
    /// None: what came is what the client gets.
    Stop(Stop),
}

/// Why there is no further attempt. Of several causes the first in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stop {
    /// A byte of the response went out to the client.
    ResponseBegun,
    /// The outcome is no failure that the policy retries, or no failure at all.
    NotRetriable,
    /// The policy retries it for idempotent methods only.
    NotIdempotent,
    /// All the retries that the policy allows were made.
    LimitReached,
    /// More of the body was sent than was kept.
    BodyNotReplayable,
    /// The server forbids it (a negative `grpc-retry-pushback-ms`).
    PushedBack,
    /// The server asks for a longer wait than the policy allows.
    WaitTooLong,
    /// The retry would begin at or after the request's deadline.
    DeadlineTooNear,
    /// The retry budget is used up.
    BudgetExhausted,
    /// As many retries are in flight as the circuit breaker of the Service allows.
    UpstreamOverflow,
}

/// Decides what follows an attempt.
///
/// `now` is the wall clock, for dates in `Retry-After`; `random` is 64 uniformly random bits. `withdraw` takes a token from the budget, or says
/// why there is none, and is called at most once, when nothing else speaks against the retry.
pub fn decide<T>(
    policy: &Policy,
    attempt: &Attempt,
    outcome: &Outcome<'_>,
    now: Timestamp,
    random: u64,
    withdraw: impl FnOnce() -> Result<T, Stop>,
) -> Decision<T> {
    match check(policy, attempt, outcome, now, random) {
        Err(stop) => Decision::Stop(stop),
        Ok(after) => match withdraw() {
            Ok(token) => Decision::Retry { after, token },
            Err(stop) => Decision::Stop(stop),
        },
    }
}

fn check(
    policy: &Policy,
    attempt: &Attempt,
    outcome: &Outcome<'_>,
    now: Timestamp,
    random: u64,
) -> Result<Duration, Stop> {
    if attempt.response_begun {
        return Err(Stop::ResponseBegun);
    }
    if !meets(policy.conditions(attempt.idempotent), attempt, outcome) {
        let is_for_others = !attempt.idempotent && meets(&policy.idempotent, attempt, outcome);
        return Err(if is_for_others { Stop::NotIdempotent } else { Stop::NotRetriable });
    }
    if attempt.number > policy.retries_max {
        return Err(Stop::LimitReached);
    }
    if !attempt.replayable {
        return Err(Stop::BodyNotReplayable);
    }
    let after = wait(policy, attempt, outcome, now, random)?;
    if attempt.left.is_some_and(|left| after >= left) {
        return Err(Stop::DeadlineTooNear);
    }
    Ok(after)
}

fn meets(conditions: &Conditions, attempt: &Attempt, outcome: &Outcome<'_>) -> bool {
    match outcome {
        Outcome::ConnectFailed => conditions.connect_failure,
        Outcome::Refused { .. } => conditions.refused_stream,
        Outcome::Reset => conditions.reset_before_response,
        Outcome::TimedOut => conditions.per_try_timeout,
        Outcome::Response { status, head, trailers } => {
            let has_code =
                || grpc_code(*status, *head, *trailers).is_some_and(|code| conditions.grpc_codes.contains(code));
            conditions.statuses.contains(*status)
                || (attempt.grpc && !conditions.grpc_codes.is_empty() && has_code())
                || conditions.headers.iter().any(|name| head.lookup(name).is_some())
        }
    }
}

/// gRPC's UNKNOWN.
const UNKNOWN: u8 = 2;

/// The gRPC status of a response, as far as it is known: that of the trailers, or of a head that is nothing but trailers.
///
/// What is no known code is UNKNOWN (2). Without one, an HTTP status other than 200 stands for a code (gRPC's
/// `http-grpc-status-mapping.md`), and trailers that lack it mean UNKNOWN; `None` if it is still to come.
#[must_use]
pub fn grpc_code(status: u16, head: &dyn Lookup, trailers: Option<&dyn Lookup>) -> Option<u8> {
    let stated = trailers.and_then(|trailers| trailers.lookup("grpc-status")).or_else(|| head.lookup("grpc-status"));
    match stated {
        Some(value) => Some(read_grpc_status(value)),
        None if status != 200 => Some(answer::grpc_status(status)),
        None => trailers.map(|_| UNKNOWN),
    }
}

/// The code that a `grpc-status` says; what is no known code is UNKNOWN.
#[must_use]
pub fn read_grpc_status(value: &[u8]) -> u8 {
    let code = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    code.filter(|code| *code <= 16).unwrap_or(UNKNOWN)
}

/// How long to wait: what a gRPC server says, exactly, but where the policy wants more; at least what `Retry-After` says; else the backoff.
fn wait(
    policy: &Policy,
    attempt: &Attempt,
    outcome: &Outcome<'_>,
    now: Timestamp,
    random: u64,
) -> Result<Duration, Stop> {
    let backoff = policy.backoff.wait(attempt.number, random);
    let Outcome::Response { head, trailers, .. } = outcome else { return Ok(backoff) };
    let pushback = || trailers.and_then(|trailers| trailers.lookup(PUSHBACK)).or_else(|| head.lookup(PUSHBACK));
    let asked = match pushback().filter(|_| attempt.grpc).map(Pushback::read) {
        Some(Pushback::Never) => return Err(Stop::PushedBack),
        Some(Pushback::After(wait)) if wait > policy.wait_max => return Err(Stop::WaitTooLong),
        Some(Pushback::After(wait)) => return Ok(wait.max(policy.backoff.least)),
        None => head.lookup("retry-after").and_then(|value| retry_after(value, now)),
    };
    match asked {
        None => Ok(backoff),
        Some(asked) if asked > policy.wait_max => Err(Stop::WaitTooLong),
        // Everyone who was told the same moment should not come at the same moment.
        Some(asked) => Ok(asked.saturating_add(backoff)),
    }
}

impl<T> Decision<T> {
    /// Why there is no further attempt; `None` if there is one.
    #[must_use]
    pub const fn stop(&self) -> Option<Stop> {
        match self {
            Self::Retry { .. } => None,
            Self::Stop(stop) => Some(*stop),
        }
    }
}

impl Stop {
    /// The stable snake_case word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ResponseBegun => "response_begun",
            Self::NotRetriable => "not_retriable",
            Self::NotIdempotent => "not_idempotent",
            Self::LimitReached => "limit_reached",
            Self::BodyNotReplayable => "body_not_replayable",
            Self::PushedBack => "pushed_back",
            Self::WaitTooLong => "wait_too_long",
            Self::DeadlineTooNear => "deadline_too_near",
            Self::BudgetExhausted => "budget_exhausted",
            Self::UpstreamOverflow => "upstream_overflow",
        }
    }
}

impl Lookup for HeaderMap {
    fn lookup(&self, name: &str) -> Option<&[u8]> {
        self.get(name).map(http::HeaderValue::as_bytes)
    }
}

impl Lookup for h1::Fields {
    fn lookup(&self, name: &str) -> Option<&[u8]> {
        self.get(name)
    }
}

#[cfg(test)]
mod tests;
