//! Outlier ejection: what makes an endpoint an outlier, and for how long it is left out.

use std::time::Duration;

/// What makes an endpoint an outlier, and what follows. Defaults as Envoy documents them where it has the setting, but for
/// `ejected_percent_max` (Envoy: 10) and the gateway and local thresholds, which Envoy applies only on request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OutlierSettings {
    /// 5xx responses or local failures in a row; 0 is never. Default 5.
    pub consecutive_5xx: u32,
    /// 502, 503 and 504 responses or local failures in a row; 0 is never. Default 5.
    pub consecutive_gateway: u32,
    /// Local failures in a row; 0 is never. Default 5.
    pub consecutive_local: u32,
    /// Comparison with the other endpoints; `None` is none.
    pub success_rate: Option<SuccessRate>,
    /// How often success rates are compared, and how long an endpoint must serve until one of its past ejections is forgotten.
    /// Default 10 s.
    pub interval: Duration,
    /// The length of the first ejection; the nth is n times as long. Default 30 s.
    pub ejection_base: Duration,
    /// The longest ejection. Default 300 s.
    pub ejection_max: Duration,
    /// Of a hundred endpoints at most so many are ejected at once, and of any number at least one may be. Default 50.
    pub ejected_percent_max: u32,
    /// With less than so many of a hundred endpoints left, ejections are ignored; 0 is never. Default 50.
    pub panic_percent: u32,
    /// The longest ejection that an endpoint asks for itself, with `Retry-After` on a 503; zero ignores it. Default 300 s.
    pub retry_after_max: Duration,
}

/// When an endpoint succeeds so much less often than the others that it is ejected.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SuccessRate {
    /// Compare only if so many endpoints had enough requests. Default 5, the least with which the default factor can tell: one of n that
    /// fails among equals lies √(n − 1) deviations below the mean. (Two such of five lie 1.2 below: this finds the odd one out, no more.)
    pub hosts_min: u32,
    /// Requests of an endpoint in one interval that are enough. Default 100.
    pub requests_min: u32,
    /// Ejected is who lies more than so many standard deviations below the mean. Default 1.9.
    pub stdev_factor: f64,
}

impl Default for OutlierSettings {
    fn default() -> Self {
        Self {
            consecutive_5xx: 5,
            consecutive_gateway: 5,
            consecutive_local: 5,
            success_rate: Some(SuccessRate::default()),
            interval: Duration::from_secs(10),
            ejection_base: Duration::from_secs(30),
            ejection_max: Duration::from_secs(300),
            ejected_percent_max: 50,
            panic_percent: 50,
            retry_after_max: Duration::from_secs(300),
        }
    }
}

impl Default for SuccessRate {
    fn default() -> Self {
        Self { hosts_min: 5, requests_min: 100, stdev_factor: 1.9 }
    }
}
