//! How requests to a Service are carried: retries, timeouts, circuit breaking, outlier ejection, balancing, faults. What a `TrafficPolicy`
//! says, with the defaults that hold without one.

mod breaker;
mod outlier;
mod retry;

use std::sync::Arc;
use std::time::Duration;

pub use breaker::{CircuitLimits, Limits};
pub use outlier::{OutlierSettings, SuccessRate};
pub use retry::{Backoff, BudgetLimits, Conditions, GrpcCodes, Retries, RetryPolicy, StatusSet};

use crate::balance::{SlowStart, Weight};

/// What holds for requests to one Service: the defaults, and over them what its TrafficPolicy says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServiceTraffic {
    /// The policies it follows from, the one in force first; none for the defaults.
    pub origin: Option<Arc<str>>,
    /// What may also be said of one rule of a route.
    pub request: RequestTraffic,
    /// How many retries of all requests to the Service together.
    pub budget: BudgetLimits,
    /// What may be in use at once.
    pub circuit: CircuitLimits,
    /// Outlier ejection; `None` ejects nobody. Default none.
    pub outlier: Option<OutlierSettings>,
    /// How an endpoint is chosen.
    pub balance: Balance,
    /// How long a connection may take to be made. Default: the agent's own (1 s).
    pub connect_timeout: Option<Duration>,
}

/// What holds for one request; for a rule of a route it is what its TrafficPolicy says, and the Service's where that is silent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestTraffic {
    /// Retries; `None`: [`RetryPolicy::untold`].
    pub retry: Option<Arc<RetryPolicy>>,
    /// Times.
    pub timeouts: Timeouts,
    /// Faults to inject.
    pub faults: Option<Arc<Faults>>,
}

/// A limit that is none, said aloud: `None` would leave the word to whoever is asked next. The longest duration of the API (GEP-2257).
pub const NEVER: Duration = Duration::from_secs(99_999 * 3600);

/// Times a request may take. `None` says nothing, [`NEVER`] that there is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// From the request's head until the response is complete, all attempts and waits among them (`timeouts.request`). A response that has begun
    /// by then is cut short by a reset.
    pub request: Option<Duration>,
    /// Each attempt, until its response is complete (`timeouts.backendRequest`, as in the Gateway API).
    pub backend_request: Option<Duration>,
    /// Neither direction moved a byte for so long.
    pub idle: Option<Duration>,
    /// The whole exchange, however busy it is.
    pub stream: Option<Duration>,
}

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Balance {
    /// By what.
    pub algorithm: Algorithm,
    /// New endpoints take a growing share; `None` a full one at once.
    pub slow_start: Option<SlowStart>,
}

/// By what an endpoint is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// Of two drawn the one with fewer requests.
    #[default]
    LeastRequest,
    /// Of two drawn the one where latency times requests is less.
    PeakEwma,
    /// In turn.
    RoundRobin,
    /// Any.
    Random,
}

/// Faults injected on the client's side, before an endpoint is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Only requests all of whose conditions hold; none: every one.
    pub matches: Box<[crate::routing::HeaderMatch]>,
    /// Wait first.
    pub delay: Option<(Share, Duration)>,
    /// Answer instead of the Service.
    pub abort: Option<(Share, Abort)>,
}

/// The answer of an injected fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    /// An HTTP status; a gRPC call is answered with the code that stands for it.
    Http(u16),
    /// A gRPC code; a request that is no gRPC call is answered with the status that stands for it.
    Grpc(u8),
}

/// A part of all requests: so many of so many, in lowest terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    numerator: u32,
    denominator: u32,
}

impl Share {
    /// All.
    pub const ALL: Self = Self { numerator: 1, denominator: 1 };

    /// `numerator` of `denominator`, at most all; a denominator of 0 is none.
    #[must_use]
    pub fn of(numerator: u32, denominator: u32) -> Self {
        if denominator == 0 {
            return Self { numerator: 0, denominator: 1 };
        }
        let numerator = numerator.min(denominator);
        let (mut divisor, mut rest) = (denominator, numerator);
        while rest > 0 {
            (divisor, rest) = (rest, divisor % rest);
        }
        Self { numerator: numerator / divisor, denominator: denominator / divisor }
    }

    /// Whether a request is among them; `random` is 64 uniformly random bits.
    #[must_use]
    pub fn draws(self, random: u64) -> bool {
        ((u128::from(random) * u128::from(self.denominator)) >> 64) < u128::from(self.numerator)
    }

    /// So many of so many.
    #[must_use]
    pub const fn parts(self) -> (u32, u32) {
        (self.numerator, self.denominator)
    }
}

impl Balance {
    /// The weight of an endpoint that has been there for `age`; `None`: for longer than anybody here knows.
    #[must_use]
    pub fn weight(&self, age: Option<Duration>) -> Weight {
        self.slow_start.zip(age).map_or(Weight::FULL, |(slow, age)| slow.weight(age))
    }
}

impl Algorithm {
    /// The word of the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LeastRequest => "LeastRequest",
            Self::PeakEwma => "PeakEwma",
            Self::RoundRobin => "RoundRobin",
            Self::Random => "Random",
        }
    }
}

impl RequestTraffic {
    /// This where it says something, the other where it does not.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        let (mine, theirs) = (self.timeouts, other.timeouts);
        let retry = match (&self.retry, &other.retry) {
            (Some(mine), Some(theirs)) => Some(mine.or(theirs)),
            (mine, theirs) => mine.as_ref().or(theirs.as_ref()).cloned(),
        };
        Self {
            retry,
            timeouts: Timeouts {
                request: mine.request.or(theirs.request),
                backend_request: mine.backend_request.or(theirs.backend_request),
                idle: mine.idle.or(theirs.idle),
                stream: mine.stream.or(theirs.stream),
            },
            faults: self.faults.clone().or_else(|| other.faults.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_as_fine_as_it_is_said() {
        for (numerator, denominator, parts) in [
            (0, 100, (0, 1)),
            (5, 100, (1, 20)),
            (100, 100, (1, 1)),
            (101, 100, (1, 1)),
            (1, 0, (0, 1)),
            (1, 10_000_000, (1, 10_000_000)),
            (2, u32::MAX, (2, u32::MAX)),
        ] {
            let share = Share::of(numerator, denominator);
            assert_eq!(share.parts(), parts, "{numerator} of {denominator}");
            // Of all random numbers the first so many: the least is drawn unless nobody is, the greatest only if all are.
            assert_eq!((share.draws(0), share.draws(u64::MAX)), (parts.0 > 0, parts.0 == parts.1));
        }
        let tenth = (0..1000).filter(|part| Share::of(1, 10).draws(u64::MAX / 1000 * part)).count();
        assert!((100..=101).contains(&tenth), "{tenth}");
    }
}
