//! Retries and their budget, timeouts, the circuit breaker and balancing in a TrafficPolicy.

use std::time::Duration;

use heddle_model::balance::SlowStart;
use heddle_model::traffic::{
    Algorithm, Backoff, Balance, BudgetLimits, CircuitLimits, Conditions, GrpcCodes, Limits, Retries, RetryPolicy,
    StatusSet, Timeouts,
};

use super::faults::GRPC_CODES;
use super::{ATTEMPTS_MAX, number, real, some_time, time};
use crate::duration::{self, NEVER, written};
use crate::meta;
use crate::problem::Problems;
use crate::route::fields;
use crate::schema;

/// Greatest limit of a circuit breaker.
pub(super) const PLACES_MAX: i64 = 1_000_000;
/// Greatest `minPerSecond` of a retry budget.
const FLOOR_MAX: i64 = 10_000;
/// Most entries of `statuses`.
const STATUSES_MAX: usize = 200;
/// Most entries of `headers`.
const HEADERS_MAX: usize = 16;

/// `spec.retries`.
#[derive(Debug, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RetriesFields {
    /// Retries of one request, the first attempt not counted; 0 is none.
    #[schemars(range(min = 0, max = ATTEMPTS_MAX), extend("default" = RetryPolicy::default().retries_max))]
    pub attempts: Option<i64>,
    /// What one attempt may take until its response head; without it only the request's own deadline ends it.
    #[schemars(extend("pattern" = duration::PATTERN))]
    pub per_try_timeout: Option<String>,
    /// How long to wait before a retry.
    pub backoff: Option<BackoffFields>,
    /// Failures of the way after which a request is retried; all of them without it. A request whose method is not idempotent only after the
    /// first two, which prove that the server did nothing.
    #[schemars(length(max = FAILURES.len()), extend("items" = schema::item(failures()), "default" = failures()))]
    pub retry_on: Option<Vec<String>>,
    /// Statuses after which an idempotent request is retried.
    #[schemars(length(max = STATUSES_MAX), inner(range(min = 400, max = 599)))]
    #[schemars(extend("default" = statuses(RetryPolicy::default().idempotent.statuses)))]
    pub statuses: Option<Vec<i64>>,
    /// Codes after which a gRPC call is retried, by name (`UNAVAILABLE`); calls are POST, and these are for them.
    #[schemars(length(max = GRPC_CODES.len()), extend("items" = schema::item(schema::words(&GRPC_CODES))))]
    pub grpc_codes: Option<Vec<String>>,
    /// Names of response fields that ask for a retry of an idempotent request, whatever their value.
    #[schemars(length(max = HEADERS_MAX), inner(length(min = 1, max = 256)))]
    pub headers: Option<Vec<String>>,
    /// `true`: requests with any method are retried like idempotent ones, though the server may have acted on them.
    #[schemars(extend("default" = false))]
    pub retry_non_idempotent: Option<bool>,
    /// The longest wait that a server may ask for (`Retry-After`, `grpc-retry-pushback-ms`): who asks for more is not retried.
    #[schemars(extend("pattern" = duration::PATTERN, "default" = written(RetryPolicy::default().wait_max)))]
    pub wait_max: Option<String>,
}

/// `spec.retries.backoff`.
#[derive(Debug, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BackoffFields {
    /// The least before any retry.
    #[schemars(extend("pattern" = duration::PATTERN, "default" = written(Backoff::default().least)))]
    pub min: Option<String>,
    /// The most before the first retry, beyond `min`; twice as much before each further one.
    #[schemars(extend("pattern" = duration::PATTERN, "default" = written(Backoff::default().base)))]
    pub base: Option<String>,
    /// The most before any, beyond `min`.
    #[schemars(extend("pattern" = duration::PATTERN, "default" = written(Backoff::default().max)))]
    pub max: Option<String>,
}

/// `spec.retryBudget`.
#[derive(Debug, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BudgetFields {
    /// Retries per hundred requests.
    #[schemars(range(min = 0, max = 100), extend("default" = BudgetLimits::default().percent))]
    pub percent: Option<i64>,
    /// Retries per second and node that are granted in any case.
    #[schemars(range(min = 0, max = FLOOR_MAX), extend("default" = BudgetLimits::default().floor_per_second))]
    pub min_per_second: Option<i64>,
}

/// `spec.timeouts`. `0s` is no limit.
#[derive(Debug, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TimeoutsFields {
    /// From the request's head until the response is complete, all attempts among it.
    #[schemars(extend("pattern" = duration::PATTERN))]
    pub request: Option<String>,
    /// Each attempt, until its response is complete.
    #[schemars(extend("pattern" = duration::PATTERN))]
    pub backend_request: Option<String>,
    /// How long no byte may move in either direction.
    #[schemars(extend("pattern" = duration::PATTERN))]
    pub idle: Option<String>,
    /// The whole exchange, however busy it is.
    #[schemars(extend("pattern" = duration::PATTERN))]
    pub stream: Option<String>,
    /// How long a connection may take to be made; without it what the agent takes for all.
    #[schemars(extend("pattern" = duration::PATTERN))]
    pub connect: Option<String>,
}

/// `spec.circuitBreaker`.
#[derive(Debug, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CircuitFields {
    /// Limits of all endpoints together.
    pub service: Option<LimitsFields>,
    /// Limits of each endpoint.
    pub endpoint: Option<LimitsFields>,
}

/// `spec.circuitBreaker.service` and `endpoint`.
#[derive(Debug, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LimitsFields {
    /// Connections at once.
    #[schemars(range(min = 1, max = PLACES_MAX), extend("default" = Limits::default().connections_max))]
    pub connections: Option<i64>,
    /// Requests that wait for a connection at once.
    #[schemars(range(min = 1, max = PLACES_MAX), extend("default" = Limits::default().pending_max))]
    pub pending: Option<i64>,
    /// Requests at once.
    #[schemars(range(min = 1, max = PLACES_MAX), extend("default" = Limits::default().requests_max))]
    pub requests: Option<i64>,
    /// Retries at once; without it only the retry budget bounds them.
    #[schemars(range(min = 0, max = PLACES_MAX))]
    pub retries: Option<i64>,
}

/// `spec.loadBalancing`.
#[derive(Debug, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LoadBalancingFields {
    /// Of two endpoints drawn the one with fewer requests (`LeastRequest`) or less latency times requests (`PeakEwma`), one after the other
    /// (`RoundRobin`), or any (`Random`).
    #[schemars(extend("enum" = schema::words(&ALGORITHMS), "default" = Algorithm::default().as_str()))]
    pub algorithm: Option<String>,
    /// New endpoints take a growing share; without it a full one at once.
    pub slow_start: Option<SlowStartFields>,
}

/// `spec.loadBalancing.slowStart`.
#[derive(Debug, Default, serde::Deserialize, schemars::JsonSchema)]
#[schemars(extend("required" = ["window"]))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SlowStartFields {
    /// How long until an endpoint takes its full share.
    #[schemars(extend("pattern" = duration::PATTERN))]
    pub window: Option<String>,
    /// How the share grows: with 1 evenly, above 1 fast at first, below 1 slowly at first.
    #[schemars(range(min = 0.1, max = 10.0), extend("default" = SlowStart::over(Duration::ZERO).aggression))]
    pub aggression: Option<f64>,
    /// The share from the beginning.
    #[schemars(range(min = 0.0, max = 1.0), extend("default" = SlowStart::over(Duration::ZERO).share_min))]
    pub min_share: Option<f64>,
}

const ALGORITHMS: [(&str, Algorithm); 4] = [
    (Algorithm::LeastRequest.as_str(), Algorithm::LeastRequest),
    (Algorithm::PeakEwma.as_str(), Algorithm::PeakEwma),
    (Algorithm::RoundRobin.as_str(), Algorithm::RoundRobin),
    (Algorithm::Random.as_str(), Algorithm::Random),
];

#[derive(Clone, Copy, PartialEq)]
enum Failure {
    Connect,
    Refused,
    Reset,
    PerTryTimeout,
}

const FAILURES: [(&str, Failure); 4] = [
    ("ConnectFailure", Failure::Connect),
    ("RefusedStream", Failure::Refused),
    ("ResetBeforeResponse", Failure::Reset),
    ("PerTryTimeout", Failure::PerTryTimeout),
];

fn failures() -> Vec<&'static str> {
    schema::words(&FAILURES)
}

fn statuses(set: StatusSet) -> Vec<u16> {
    (400..600).filter(|status| set.contains(*status)).collect()
}

impl RetriesFields {
    pub(super) fn convert(&self, path: &str, problems: &mut Problems) -> RetryPolicy {
        let (mut least, mut base, mut max) = (None, None, None);
        if let Some(fields) = &self.backoff {
            (least, base, max) = fields.convert(&format!("{path}.backoff"), problems);
        }
        let said = Retries {
            retries_max: number(path, "attempts", self.attempts, 0..=ATTEMPTS_MAX, problems),
            per_try_timeout: some_time(path, "perTryTimeout", &self.per_try_timeout, problems),
            least,
            base,
            max,
            failures: self.failures(&format!("{path}.retryOn"), problems),
            statuses: self.statuses(&format!("{path}.statuses"), problems),
            grpc_codes: self.grpc_codes(&format!("{path}.grpcCodes"), problems),
            headers: self.headers(&format!("{path}.headers"), problems),
            non_idempotent: self.retry_non_idempotent,
            wait_max: time(path, "waitMax", &self.wait_max, problems),
        };
        said.policy()
    }

    fn failures(&self, path: &str, problems: &mut Problems) -> Option<Conditions> {
        let words = self.retry_on.as_ref()?;
        bounded(path, words.len(), FAILURES.len(), problems);
        let one =
            |(index, word): (usize, &String)| meta::one_of(problems, &format!("{path}[{index}]"), word, &FAILURES);
        let failures: Vec<Failure> = words.iter().take(FAILURES.len()).enumerate().filter_map(one).collect();
        let is_on = |failure| failures.contains(&failure);
        Some(Conditions {
            connect_failure: is_on(Failure::Connect),
            refused_stream: is_on(Failure::Refused),
            reset_before_response: is_on(Failure::Reset),
            per_try_timeout: is_on(Failure::PerTryTimeout),
            ..Conditions::default()
        })
    }

    fn statuses(&self, path: &str, problems: &mut Problems) -> Option<StatusSet> {
        let list = self.statuses.as_ref()?;
        bounded(path, list.len(), STATUSES_MAX, problems);
        let mut set = StatusSet::NONE;
        for (index, status) in list.iter().take(STATUSES_MAX).enumerate() {
            match u16::try_from(*status) {
                Ok(status @ 400..=599) => set = set.with(status),
                _ => problems.error(format!("{path}[{index}]"), format!("{status} is no error: 400 to 599")),
            }
        }
        Some(set)
    }

    fn grpc_codes(&self, path: &str, problems: &mut Problems) -> Option<GrpcCodes> {
        let list = self.grpc_codes.as_deref()?;
        bounded(path, list.len(), GRPC_CODES.len(), problems);
        let numbered = list.iter().take(GRPC_CODES.len()).enumerate();
        let codes =
            numbered.filter_map(|(index, word)| meta::one_of(problems, &format!("{path}[{index}]"), word, &GRPC_CODES));
        Some(codes.collect())
    }

    fn headers(&self, path: &str, problems: &mut Problems) -> Option<Box<[Box<str>]>> {
        let list = self.headers.as_deref()?;
        bounded(path, list.len(), HEADERS_MAX, problems);
        let mut names: Vec<Box<str>> = Vec::new();
        for (index, text) in list.iter().take(HEADERS_MAX).enumerate() {
            let name = text.to_ascii_lowercase();
            if !fields::is_token(&name) {
                let message = format!("`{}` is no name of a header field", crate::node::shortened(text));
                problems.error(format!("{path}[{index}]"), message);
            } else if !names.iter().any(|other| **other == *name) {
                names.push(name.into());
            }
        }
        Some(names.into())
    }
}

impl BackoffFields {
    /// `min`, `base` and `max`.
    fn convert(&self, path: &str, problems: &mut Problems) -> (Option<Duration>, Option<Duration>, Option<Duration>) {
        let base = some_time(path, "base", &self.base, problems);
        let max = some_time(path, "max", &self.max, problems);
        let least_max = base.unwrap_or(Backoff::default().base);
        if let Some(max) = max.filter(|max| *max < least_max) {
            let message = format!("{} is less than `base`, {}", written(max), written(least_max));
            problems.error(format!("{path}.max"), message);
        }
        (time(path, "min", &self.min, problems), base, max)
    }
}

impl BudgetFields {
    pub(super) fn convert(&self, path: &str, problems: &mut Problems) -> BudgetLimits {
        let default = BudgetLimits::default();
        BudgetLimits {
            percent: number(path, "percent", self.percent, 0..=100, problems).unwrap_or(default.percent),
            floor_per_second: number(path, "minPerSecond", self.min_per_second, 0..=FLOOR_MAX, problems)
                .unwrap_or(default.floor_per_second),
            saved_max: default.saved_max,
        }
    }
}

impl TimeoutsFields {
    /// All but `connect`, and that.
    pub(super) fn convert(&self, path: &str, problems: &mut Problems) -> (Timeouts, Option<Duration>) {
        let mut limit = |field: &str, text: &Option<String>| {
            let limit = time(path, field, text, problems)?;
            Some(if limit.is_zero() { NEVER } else { limit })
        };
        let timeouts = Timeouts {
            request: limit("request", &self.request),
            backend_request: limit("backendRequest", &self.backend_request),
            idle: limit("idle", &self.idle),
            stream: limit("stream", &self.stream),
        };
        if let (Some(request), Some(backend_request)) = (timeouts.request, timeouts.backend_request)
            && backend_request > request
            && backend_request != NEVER
        {
            problems.error(format!("{path}.backendRequest"), "is longer than `request`");
        }
        (timeouts, some_time(path, "connect", &self.connect, problems))
    }
}

impl CircuitFields {
    pub(super) fn convert(&self, path: &str, problems: &mut Problems) -> CircuitLimits {
        let mut of = |field: &str, fields: &Option<LimitsFields>| {
            fields.as_ref().map(|fields| fields.convert(&format!("{path}.{field}"), problems)).unwrap_or_default()
        };
        CircuitLimits { service: of("service", &self.service), endpoint: of("endpoint", &self.endpoint) }
    }
}

impl LimitsFields {
    fn convert(&self, path: &str, problems: &mut Problems) -> Limits {
        let default = Limits::default();
        let mut limit = |field: &str, value, min| number::<u32>(path, field, value, min..=PLACES_MAX, problems);
        Limits {
            connections_max: limit("connections", self.connections, 1).unwrap_or(default.connections_max),
            pending_max: limit("pending", self.pending, 1).unwrap_or(default.pending_max),
            requests_max: limit("requests", self.requests, 1).unwrap_or(default.requests_max),
            retries_max: limit("retries", self.retries, 0).or(default.retries_max),
        }
    }
}

impl LoadBalancingFields {
    pub(super) fn convert(&self, path: &str, problems: &mut Problems) -> Balance {
        let word = self.algorithm.as_deref();
        let algorithm = word.and_then(|word| meta::one_of(problems, &format!("{path}.algorithm"), word, &ALGORITHMS));
        let slow_start = self.slow_start.as_ref();
        let slow_start = slow_start.and_then(|fields| fields.convert(&format!("{path}.slowStart"), problems));
        Balance { algorithm: algorithm.unwrap_or_default(), slow_start }
    }
}

impl SlowStartFields {
    fn convert(&self, path: &str, problems: &mut Problems) -> Option<SlowStart> {
        if self.window.is_none() {
            problems.error(format!("{path}.window"), "is missing");
        }
        let aggression = real(path, "aggression", self.aggression, 0.1..=10.0, problems);
        let share_min = real(path, "minShare", self.min_share, 0.0..=1.0, problems);
        let even = SlowStart::over(some_time(path, "window", &self.window, problems)?);
        Some(SlowStart {
            aggression: aggression.unwrap_or(even.aggression),
            share_min: share_min.unwrap_or(even.share_min),
            ..even
        })
    }
}

fn bounded(path: &str, count: usize, max: usize, problems: &mut Problems) {
    if count > max {
        problems.error(path, format!("{count} entries: at most {max}"));
    }
}
