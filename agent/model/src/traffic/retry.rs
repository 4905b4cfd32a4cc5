//! Retries: what the operator wants retried, how often and how soon, and the budget of all retries to a Service.

use std::time::Duration;

/// How the requests of one route or Service are retried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// After what a request with an idempotent method (RFC 9110 §9.2.2) is retried.
    pub idempotent: Conditions,
    /// After what any other is: by default only where the server cannot have acted on it. gRPC calls are POST and count here.
    pub other: Conditions,
    /// Retries of one request; the first attempt is none. Default 2.
    pub retries_max: u32,
    /// What one attempt may take until its response head, or for a unary gRPC call its status. Default none: the request's deadline
    /// is the only limit.
    pub per_try_timeout: Option<Duration>,
    /// How long to wait before a retry.
    pub backoff: Backoff,
    /// The longest wait that a server may ask for (`Retry-After`, `grpc-retry-pushback-ms`): who asks for more is not retried, because
    /// the client waits meanwhile. Default 10 s.
    pub wait_max: Duration,
}

/// Failures after which a request is retried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// No connection came about: no byte was sent.
    pub connect_failure: bool,
    /// The server says that it did nothing with the request: `REFUSED_STREAM`, or GOAWAY with a lower stream id (RFC 9113 §8.7).
    pub refused_stream: bool,
    /// The stream or connection ended before the response head: the server may have acted on the request.
    pub reset_before_response: bool,
    /// The attempt took longer than [`RetryPolicy::per_try_timeout`].
    pub per_try_timeout: bool,
    /// A response with one of these statuses.
    pub statuses: StatusSet,
    /// A gRPC call that ended with one of these codes.
    pub grpc_codes: GrpcCodes,
    /// A response that has one of these fields, whatever its value; names in lower case.
    pub headers: Box<[Box<str>]>,
}

/// Exponential backoff with full jitter: before retry n `least` and any time from nothing to `min(max, base × 2ⁿ⁻¹)`, all alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The least before any retry. Default nothing.
    pub least: Duration,
    /// The most beyond it before the first retry. Default 25 ms.
    pub base: Duration,
    /// The most beyond it before any. Default 250 ms.
    pub max: Duration,
}

/// A set of HTTP statuses that are errors, 400 to 599.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatusSet([u64; 4]);

/// A set of gRPC status codes, 0 to 16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GrpcCodes(u32);

impl RetryPolicy {
    /// What holds where no policy speaks of retries: only what proves that the server did nothing with the request.
    #[must_use]
    pub fn untold() -> Self {
        Self { idempotent: Conditions::untouched(), ..Self::default() }
    }

    /// The conditions for a method.
    #[must_use]
    pub const fn conditions(&self, idempotent: bool) -> &Conditions {
        if idempotent { &self.idempotent } else { &self.other }
    }
}

impl Default for RetryPolicy {
    /// Idempotent requests after every failure of the way and gateway errors; others only where the server did nothing.
    fn default() -> Self {
        Self {
            idempotent: Conditions {
                reset_before_response: true,
                per_try_timeout: true,
                statuses: StatusSet::GATEWAY_ERROR,
                ..Conditions::untouched()
            },
            other: Conditions::untouched(),
            retries_max: 2,
            per_try_timeout: None,
            backoff: Backoff::default(),
            wait_max: Duration::from_secs(10),
        }
    }
}

impl Conditions {
    /// Only what proves that the server did nothing with the request.
    #[must_use]
    pub fn untouched() -> Self {
        Self { connect_failure: true, refused_stream: true, ..Self::default() }
    }
}

impl Backoff {
    /// The wait before retry `retry` (the first is 1). `random` is 64 uniformly random bits.
    #[must_use]
    pub fn wait(&self, retry: u32, random: u64) -> Duration {
        let doublings = retry.saturating_sub(1).min(31);
        let most = self.base.saturating_mul(1 << doublings).min(self.max);
        let nanos = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX);
        // 64 random bits times n + 1, upper half: uniform from 0 to n.
        let drawn = Duration::from_nanos(((u128::from(random) * (u128::from(nanos) + 1)) >> 64) as u64);
        self.least.saturating_add(drawn)
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self { least: Duration::ZERO, base: Duration::from_millis(25), max: Duration::from_millis(250) }
    }
}

impl StatusSet {
    /// None.
    pub const NONE: Self = Self([0; 4]);
    /// 500 to 599.
    pub const SERVER_ERROR: Self = Self::NONE.with_range(500, 599);
    /// 502, 503 and 504.
    pub const GATEWAY_ERROR: Self = Self::NONE.with_range(502, 504);

    /// This set and one status more; what is no error (below 400, above 599) adds nothing: success is never retried.
    #[must_use]
    pub const fn with(self, status: u16) -> Self {
        if is_error(status) { self.with_range(status, status) } else { self }
    }

    /// Whether a status is in the set.
    #[must_use]
    pub const fn contains(&self, status: u16) -> bool {
        is_error(status) && self.0[(status - 400) as usize / 64] >> ((status - 400) % 64) & 1 == 1
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::NONE
    }

    /// This set and all of another.
    #[must_use]
    pub const fn union(mut self, other: Self) -> Self {
        let mut word = 0;
        while word < self.0.len() {
            self.0[word] |= other.0[word];
            word += 1;
        }
        self
    }

    /// Both ends must be errors.
    const fn with_range(mut self, first: u16, last: u16) -> Self {
        let mut status = first;
        while status <= last {
            self.0[(status - 400) as usize / 64] |= 1 << ((status - 400) % 64);
            status += 1;
        }
        self
    }
}

const fn is_error(status: u16) -> bool {
    matches!(status, 400..=599)
}

impl FromIterator<u16> for StatusSet {
    fn from_iter<I: IntoIterator<Item = u16>>(statuses: I) -> Self {
        statuses.into_iter().fold(Self::NONE, Self::with)
    }
}

impl GrpcCodes {
    /// None.
    pub const NONE: Self = Self(0);
    /// UNAVAILABLE (14), the one code that says: try again.
    pub const UNAVAILABLE: Self = Self::NONE.with(14);

    /// This set and one code more; what is no code (above 16) adds nothing, nor does OK (0).
    #[must_use]
    pub const fn with(self, code: u8) -> Self {
        if matches!(code, 1..=16) { Self(self.0 | 1 << code) } else { self }
    }

    /// Whether a code is in the set.
    #[must_use]
    pub const fn contains(self, code: u8) -> bool {
        code <= 16 && self.0 >> code & 1 == 1
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl FromIterator<u8> for GrpcCodes {
    fn from_iter<I: IntoIterator<Item = u8>>(codes: I) -> Self {
        codes.into_iter().fold(Self::NONE, Self::with)
    }
}

/// What a budget grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetLimits {
    /// Retries per hundred requests, 0 to 100. Default 20.
    pub percent: u32,
    /// Retries per second and agent that are granted in any case. Default 1; 0 is none.
    pub floor_per_second: u32,
    /// Retries that can be saved up in quiet times. Default 100.
    pub saved_max: u32,
}

impl Default for BudgetLimits {
    fn default() -> Self {
        Self { percent: 20, floor_per_second: 1, saved_max: 100 }
    }
}
