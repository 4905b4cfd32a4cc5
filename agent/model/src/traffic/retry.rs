//! Retries: what the operator wants retried, how often and how soon, and the budget of all retries to a Service.

use std::sync::Arc;
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
    /// What one attempt may take until its response head. Default none: the request's deadline is the only limit.
    pub per_try_timeout: Option<Duration>,
    /// How long to wait before a retry.
    pub backoff: Backoff,
    /// The longest wait that a server may ask for (`Retry-After`, `grpc-retry-pushback-ms`): who asks for more is not retried, because
    /// the client waits meanwhile. Default 10 s.
    pub wait_max: Duration,
    /// What of it was said by somebody; the rest is default, and gives way to who speaks with less right. `None`: all of it.
    pub said: Option<Arc<Retries>>,
}

/// What one object says of retries, field by field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retries {
    /// [`RetryPolicy::retries_max`].
    pub retries_max: Option<u32>,
    /// [`RetryPolicy::per_try_timeout`].
    pub per_try_timeout: Option<Duration>,
    /// [`Backoff::least`].
    pub least: Option<Duration>,
    /// [`Backoff::base`].
    pub base: Option<Duration>,
    /// [`Backoff::max`]; where it would be less than the base it is that.
    pub max: Option<Duration>,
    /// Failures of the way: of [`Conditions`] only these are read.
    pub failures: Option<Conditions>,
    /// Statuses after which an idempotent request is retried.
    pub statuses: Option<StatusSet>,
    /// Codes after which a gRPC call is retried.
    pub grpc_codes: Option<GrpcCodes>,
    /// Fields of a response that ask for a retry.
    pub headers: Option<Box<[Box<str>]>>,
    /// Whether requests with any method are retried like idempotent ones.
    pub non_idempotent: Option<bool>,
    /// [`RetryPolicy::wait_max`].
    pub wait_max: Option<Duration>,
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

impl Retries {
    /// What it comes to, with the defaults for the rest.
    #[must_use]
    pub fn policy(self) -> RetryPolicy {
        let policy = self.over(&RetryPolicy::default());
        RetryPolicy { said: Some(Arc::new(self)), ..policy }
    }

    /// This where it says something, the other where it does not.
    fn or(&self, other: &Self) -> Self {
        Self {
            retries_max: self.retries_max.or(other.retries_max),
            per_try_timeout: self.per_try_timeout.or(other.per_try_timeout),
            least: self.least.or(other.least),
            base: self.base.or(other.base),
            max: self.max.or(other.max),
            failures: self.failures.as_ref().or(other.failures.as_ref()).cloned(),
            statuses: self.statuses.or(other.statuses),
            grpc_codes: self.grpc_codes.or(other.grpc_codes),
            headers: self.headers.as_ref().or(other.headers.as_ref()).cloned(),
            non_idempotent: self.non_idempotent.or(other.non_idempotent),
            wait_max: self.wait_max.or(other.wait_max),
        }
    }

    fn over(&self, policy: &RetryPolicy) -> RetryPolicy {
        let of = &policy.idempotent;
        let failures = self.failures.as_ref().unwrap_or(of);
        let idempotent = Conditions {
            connect_failure: failures.connect_failure,
            refused_stream: failures.refused_stream,
            reset_before_response: failures.reset_before_response,
            per_try_timeout: failures.per_try_timeout,
            statuses: self.statuses.unwrap_or(of.statuses),
            grpc_codes: GrpcCodes::NONE,
            headers: self.headers.clone().unwrap_or_else(|| of.headers.clone()),
        };
        // POST is not idempotent, but a code of a call is asked for by name.
        let grpc_codes = self.grpc_codes.unwrap_or(policy.other.grpc_codes);
        let other = if self.non_idempotent == Some(true) {
            Conditions { grpc_codes, ..idempotent.clone() }
        } else {
            let (connect_failure, refused_stream) = (idempotent.connect_failure, idempotent.refused_stream);
            Conditions { connect_failure, refused_stream, grpc_codes, ..Conditions::default() }
        };
        let base = self.base.unwrap_or(policy.backoff.base);
        RetryPolicy {
            idempotent,
            other,
            retries_max: self.retries_max.unwrap_or(policy.retries_max),
            per_try_timeout: self.per_try_timeout.or(policy.per_try_timeout),
            backoff: Backoff {
                least: self.least.unwrap_or(policy.backoff.least),
                base,
                // Of a greater base a maximum that somebody else said would make a smaller one.
                max: self.max.unwrap_or(policy.backoff.max).max(base),
            },
            wait_max: self.wait_max.unwrap_or(policy.wait_max),
            said: None,
        }
    }
}

impl RetryPolicy {
    /// This where it says something, the other where it does not.
    #[must_use]
    pub fn or(self: &Arc<Self>, other: &Arc<Self>) -> Arc<Self> {
        match (&self.said, &other.said) {
            (None, _) => Arc::clone(self),
            (Some(mine), Some(theirs)) => Arc::new(mine.or(theirs).policy()),
            (Some(mine), None) => Arc::new(mine.over(other)),
        }
    }

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
            said: None,
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

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Option<Duration> {
        Some(Duration::from_millis(millis))
    }

    /// What a route says, what its Service says, and what holds.
    #[test]
    fn what_one_does_not_say_is_as_the_other_says() {
        let default = RetryPolicy::default();
        let route = Retries { retries_max: Some(5), base: ms(100), ..Retries::default() };
        let codes = GrpcCodes::UNAVAILABLE;
        let service = Retries {
            retries_max: Some(1),
            per_try_timeout: ms(500),
            max: ms(50),
            statuses: Some(StatusSet::from_iter([429])),
            grpc_codes: Some(codes),
            headers: Some(["x-retry".into()].into()),
            wait_max: ms(7),
            ..Retries::default()
        };
        let (mine, theirs) = (Arc::new(route.policy()), Arc::new(service.policy()));
        let merged = mine.or(&theirs);
        assert_eq!(
            (merged.retries_max, merged.per_try_timeout, merged.wait_max),
            (5, ms(500), Duration::from_millis(7))
        );
        assert_eq!(
            merged.backoff,
            Backoff { least: Duration::ZERO, base: Duration::from_millis(100), max: Duration::from_millis(100) }
        );
        assert_eq!(merged.idempotent.statuses, StatusSet::from_iter([429]));
        assert_eq!((&*merged.idempotent.headers, merged.other.grpc_codes), (&["x-retry".into()][..], codes));
        assert_eq!(theirs.or(&mine).retries_max, 1);
        // Who says nothing is nobody.
        let silent = Arc::new(Retries::default().policy());
        assert_eq!((silent.or(&theirs), theirs.or(&silent)), (Arc::clone(&theirs), Arc::clone(&theirs)));
        assert_eq!(RetryPolicy { said: None, ..RetryPolicy::clone(&silent) }, default);
        // A word of one side changes what follows from a word of the other.
        let any = Arc::new(Retries { non_idempotent: Some(true), ..Retries::default() }.policy());
        let both = any.or(&theirs);
        assert_eq!(both.other, Conditions { grpc_codes: codes, ..both.idempotent.clone() });
        assert_eq!(both.idempotent.statuses, StatusSet::from_iter([429]));
        let none = Arc::new(Retries { failures: Some(Conditions::default()), ..Retries::default() }.policy());
        assert!(!none.or(&theirs).other.connect_failure && none.or(&theirs).idempotent.statuses.contains(429));
        // Three of them: the first that speaks counts.
        assert_eq!(mine.or(&silent).or(&theirs), merged);
        assert_eq!(any.or(&mine).or(&theirs), any.or(&mine.or(&theirs)));
        // One of which all is said gives way in nothing.
        let whole = Arc::new(RetryPolicy { retries_max: 9, ..default });
        assert_eq!(whole.or(&theirs), whole);
        assert_eq!(any.or(&whole).retries_max, 9);
    }
}
