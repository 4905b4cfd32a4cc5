//! Outlier ejection in a TrafficPolicy.

use heddle_model::traffic::{OutlierSettings, SuccessRate};

use super::settings::PLACES_MAX;
use super::{number, real, some_time, time};
use crate::duration::{self, written};
use crate::problem::Problems;

const STDEV_FACTOR: std::ops::RangeInclusive<f64> = 0.1..=10.0;
/// With fewer endpoints there is no mean to be below.
const HOSTS_MIN: i64 = 2;

/// `spec.outlierDetection`.
#[derive(Debug, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct OutlierFields {
    /// 5xx responses or local failures in a row that eject an endpoint; 0 is never.
    #[schemars(range(min = 0, max = PLACES_MAX), extend("default" = OutlierSettings::default().consecutive_5xx))]
    #[serde(rename = "consecutive5xx")]
    pub consecutive_5xx: Option<i64>,
    /// 502, 503 and 504 responses or local failures in a row; 0 is never.
    #[schemars(range(min = 0, max = PLACES_MAX), extend("default" = OutlierSettings::default().consecutive_gateway))]
    pub consecutive_gateway_errors: Option<i64>,
    /// Failures of the way to it in a row: no connection, no response; 0 is never.
    #[schemars(range(min = 0, max = PLACES_MAX), extend("default" = OutlierSettings::default().consecutive_local))]
    pub consecutive_local_errors: Option<i64>,
    /// Comparison with the other endpoints.
    pub success_rate: Option<SuccessRateFields>,
    /// How often success rates are compared, and how long an endpoint must serve until one of its ejections is forgotten.
    #[schemars(extend("pattern" = duration::PATTERN, "default" = written(OutlierSettings::default().interval)))]
    pub interval: Option<String>,
    /// The length of the first ejection; the nth is n times as long.
    #[schemars(extend("pattern" = duration::PATTERN, "default" = written(OutlierSettings::default().ejection_base)))]
    pub base_ejection: Option<String>,
    /// The longest ejection.
    #[schemars(extend("pattern" = duration::PATTERN, "default" = written(OutlierSettings::default().ejection_max)))]
    pub max_ejection: Option<String>,
    /// Of a hundred endpoints so many may be ejected at once, and of any number one.
    #[schemars(range(min = 0, max = 100), extend("default" = OutlierSettings::default().ejected_percent_max))]
    pub max_ejected_percent: Option<i64>,
    /// With less than so many of a hundred endpoints left, ejections are ignored; 0 is never.
    #[schemars(range(min = 0, max = 100), extend("default" = OutlierSettings::default().panic_percent))]
    pub panic_percent: Option<i64>,
    /// The longest ejection that an endpoint asks for itself, with `Retry-After` on a 503; `0s` ignores it.
    #[schemars(extend("pattern" = duration::PATTERN, "default" = written(OutlierSettings::default().retry_after_max)))]
    pub max_retry_after: Option<String>,
}

/// `spec.outlierDetection.successRate`.
#[derive(Debug, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SuccessRateFields {
    /// `true`: endpoints are not compared.
    #[schemars(extend("default" = false))]
    pub disabled: Option<bool>,
    /// Compare only if so many endpoints had enough requests.
    #[schemars(range(min = HOSTS_MIN, max = PLACES_MAX), extend("default" = SuccessRate::default().hosts_min))]
    pub min_hosts: Option<i64>,
    /// Requests of an endpoint in one interval that are enough.
    #[schemars(range(min = 1, max = PLACES_MAX), extend("default" = SuccessRate::default().requests_min))]
    pub min_requests: Option<i64>,
    /// Ejected is who lies more than so many standard deviations below the mean.
    #[schemars(range(min = *STDEV_FACTOR.start(), max = *STDEV_FACTOR.end()))]
    #[schemars(extend("default" = SuccessRate::default().stdev_factor))]
    pub stdev_factor: Option<f64>,
}

impl OutlierFields {
    pub(super) fn convert(&self, path: &str, problems: &mut Problems) -> OutlierSettings {
        let default = OutlierSettings::default();
        let ejection_base =
            some_time(path, "baseEjection", &self.base_ejection, problems).unwrap_or(default.ejection_base);
        let ejection_max = some_time(path, "maxEjection", &self.max_ejection, problems);
        // Of a longer first ejection the default maximum would make a shorter one.
        let ejection_max = ejection_max.unwrap_or(default.ejection_max.max(ejection_base));
        if ejection_max < ejection_base {
            let message = format!("{} is less than `baseEjection`, {}", written(ejection_max), written(ejection_base));
            problems.error(format!("{path}.maxEjection"), message);
        }
        let mut count =
            |field: &str, value, max, default| number::<u32>(path, field, value, 0..=max, problems).unwrap_or(default);
        let consecutive_5xx = count("consecutive5xx", self.consecutive_5xx, PLACES_MAX, default.consecutive_5xx);
        let gateway = ("consecutiveGatewayErrors", self.consecutive_gateway_errors);
        let local = ("consecutiveLocalErrors", self.consecutive_local_errors);
        let consecutive_gateway = count(gateway.0, gateway.1, PLACES_MAX, default.consecutive_gateway);
        let consecutive_local = count(local.0, local.1, PLACES_MAX, default.consecutive_local);
        let ejected_percent_max =
            count("maxEjectedPercent", self.max_ejected_percent, 100, default.ejected_percent_max);
        let panic_percent = count("panicPercent", self.panic_percent, 100, default.panic_percent);
        OutlierSettings {
            consecutive_5xx,
            consecutive_gateway,
            consecutive_local,
            success_rate: match &self.success_rate {
                None => default.success_rate,
                Some(fields) => fields.convert(&format!("{path}.successRate"), problems),
            },
            interval: some_time(path, "interval", &self.interval, problems).unwrap_or(default.interval),
            ejection_base,
            ejection_max,
            ejected_percent_max,
            panic_percent,
            retry_after_max: time(path, "maxRetryAfter", &self.max_retry_after, problems)
                .unwrap_or(default.retry_after_max),
        }
    }
}

impl SuccessRateFields {
    fn convert(&self, path: &str, problems: &mut Problems) -> Option<SuccessRate> {
        let default = SuccessRate::default();
        let hosts_min = number(path, "minHosts", self.min_hosts, HOSTS_MIN..=PLACES_MAX, problems);
        let requests_min = number(path, "minRequests", self.min_requests, 1..=PLACES_MAX, problems);
        let stdev_factor = real(path, "stdevFactor", self.stdev_factor, STDEV_FACTOR, problems);
        if self.disabled == Some(true) {
            let says_more = self.min_hosts.is_some() || self.min_requests.is_some() || self.stdev_factor.is_some();
            if says_more {
                problems.error(format!("{path}.disabled"), "beside others, which then say nothing: one or the other");
            }
            return None;
        }
        Some(SuccessRate {
            hosts_min: hosts_min.unwrap_or(default.hosts_min),
            requests_min: requests_min.unwrap_or(default.requests_min),
            stdev_factor: stdev_factor.unwrap_or(default.stdev_factor),
        })
    }
}
