//! Faults in a TrafficPolicy, and the names of gRPC's codes.

use std::time::Duration;

use heddle_model::policy::{PATTERN_BYTES_MAX, Pattern};
use heddle_model::routing::{HeaderMatch, ValueMatch};
use heddle_model::traffic::{Abort, Faults, Share};

use super::share::{FractionFields, share};
use super::{number, some_time};
use crate::duration;
use crate::meta;
use crate::node::shortened;
use crate::problem::Problems;
use crate::route::fields;
use crate::schema;

/// Most entries of `headers`.
const HEADERS_MAX: usize = 16;
const VALUE_BYTES_MAX: usize = 4096;
/// Longest `delay.duration`: who waits holds a place.
const DELAY_MAX: Duration = Duration::from_secs(3600);

/// Codes of errors, by the names that gRPC gives them.
pub(super) const GRPC_CODES: [(&str, u8); 16] = [
    ("CANCELLED", 1),
    ("UNKNOWN", 2),
    ("INVALID_ARGUMENT", 3),
    ("DEADLINE_EXCEEDED", 4),
    ("NOT_FOUND", 5),
    ("ALREADY_EXISTS", 6),
    ("PERMISSION_DENIED", 7),
    ("RESOURCE_EXHAUSTED", 8),
    ("FAILED_PRECONDITION", 9),
    ("ABORTED", 10),
    ("OUT_OF_RANGE", 11),
    ("UNIMPLEMENTED", 12),
    ("INTERNAL", 13),
    ("UNAVAILABLE", 14),
    ("DATA_LOSS", 15),
    ("UNAUTHENTICATED", 16),
];

/// `spec.faults`.
#[derive(Debug, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct FaultsFields {
    /// Only requests whose header fields match all of these; every request without it.
    #[schemars(length(min = 1, max = HEADERS_MAX))]
    pub headers: Option<Vec<HeaderFields>>,
    /// Wait first.
    pub delay: Option<DelayFields>,
    /// Answer instead of the Service.
    pub abort: Option<AbortFields>,
}

/// An item of `spec.faults.headers`: `name`, and one of the others.
#[derive(Debug, serde::Deserialize, schemars::JsonSchema)]
#[schemars(extend("minProperties" = 2, "maxProperties" = 2))]
#[serde(deny_unknown_fields)]
pub struct HeaderFields {
    /// Name, in any case.
    #[schemars(length(min = 1, max = 256))]
    pub name: String,
    /// This value.
    #[serde(default)]
    #[schemars(length(max = VALUE_BYTES_MAX))]
    pub exact: Option<String>,
    /// A regular expression over the whole value.
    #[serde(default)]
    #[schemars(length(max = PATTERN_BYTES_MAX))]
    pub regex: Option<String>,
}

/// `spec.faults.delay`.
#[derive(Debug, Default, serde::Deserialize, schemars::JsonSchema)]
#[schemars(extend("required" = ["duration"]))]
#[serde(deny_unknown_fields, default)]
pub struct DelayFields {
    /// Of a hundred requests so many; all without `percent` and `fraction`.
    #[schemars(range(min = 0, max = 100))]
    pub percent: Option<i64>,
    /// A smaller part.
    pub fraction: Option<FractionFields>,
    /// How long, an hour at most.
    #[schemars(extend("pattern" = duration::PATTERN))]
    pub duration: Option<String>,
}

/// `spec.faults.abort`: one of the statuses.
#[derive(Debug, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AbortFields {
    /// Of a hundred requests so many; all without `percent` and `fraction`.
    #[schemars(range(min = 0, max = 100))]
    pub percent: Option<i64>,
    /// A smaller part.
    pub fraction: Option<FractionFields>,
    /// The status of the answer; a gRPC call is answered with the code that stands for it.
    #[schemars(range(min = 200, max = 599))]
    pub http_status: Option<i64>,
    /// The gRPC code of the answer, by name; other requests are answered with the status that stands for it.
    #[schemars(extend("enum" = schema::words(&GRPC_CODES)))]
    pub grpc_status: Option<String>,
}

impl FaultsFields {
    pub(super) fn convert(&self, path: &str, problems: &mut Problems) -> Faults {
        if self.delay.is_none() && self.abort.is_none() {
            problems.error(path, "does nothing: `delay`, `abort` or both are needed");
        }
        let (delay, abort) = (self.delay.as_ref(), self.abort.as_ref());
        Faults {
            matches: self.matches(&format!("{path}.headers"), problems),
            delay: delay.and_then(|fields| fields.convert(&format!("{path}.delay"), problems)),
            abort: abort.and_then(|fields| fields.convert(&format!("{path}.abort"), problems)),
        }
    }

    fn matches(&self, path: &str, problems: &mut Problems) -> Box<[HeaderMatch]> {
        let Some(headers) = &self.headers else { return Box::default() };
        match headers.len() {
            0 => problems.error(path, "is empty, and would not restrict anything: leave it out, or name something"),
            count if count > HEADERS_MAX => problems.error(path, format!("{count} entries: at most {HEADERS_MAX}")),
            _ => {}
        }
        let numbered = headers.iter().take(HEADERS_MAX).enumerate();
        numbered.filter_map(|(index, fields)| fields.convert(&format!("{path}[{index}]"), problems)).collect()
    }
}

impl HeaderFields {
    fn convert(&self, path: &str, problems: &mut Problems) -> Option<HeaderMatch> {
        let name = fields::name(path, &self.name, problems)?;
        let value = match (&self.exact, &self.regex) {
            (Some(text), None) if text.len() > VALUE_BYTES_MAX => {
                Err(("exact", format!("longer than {VALUE_BYTES_MAX} bytes")))
            }
            (Some(text), None) => Ok(ValueMatch::Exact(text.as_str().into())),
            (None, Some(text)) => Pattern::new(text)
                .map(ValueMatch::Regex)
                .map_err(|error| ("regex", format!("`{}`: {error}", shortened(text)))),
            _ => {
                problems.error(path, "exactly one of `exact`, `regex` is needed");
                return None;
            }
        };
        let value = value.map_err(|(field, message)| problems.error(format!("{path}.{field}"), message)).ok()?;
        Some(HeaderMatch { name, value })
    }
}

impl DelayFields {
    fn convert(&self, path: &str, problems: &mut Problems) -> Option<(Share, Duration)> {
        if self.duration.is_none() {
            problems.error(format!("{path}.duration"), "is missing");
        }
        let share = share(path, self.percent, self.fraction.as_ref(), problems);
        let duration = some_time(path, "duration", &self.duration, problems)?;
        if duration > DELAY_MAX {
            problems.error(format!("{path}.duration"), "is longer than an hour");
        }
        Some((share?, duration))
    }
}

impl AbortFields {
    fn convert(&self, path: &str, problems: &mut Problems) -> Option<(Share, Abort)> {
        let share = share(path, self.percent, self.fraction.as_ref(), problems);
        let abort = match (self.http_status, &self.grpc_status) {
            (status @ Some(_), None) => number(path, "httpStatus", status, 200..=599, problems).map(Abort::Http),
            (None, Some(word)) => {
                meta::one_of(problems, &format!("{path}.grpcStatus"), word, &GRPC_CODES).map(Abort::Grpc)
            }
            _ => {
                problems.error(path, "exactly one of `httpStatus`, `grpcStatus` is needed");
                None
            }
        };
        Some((share?, abort?))
    }
}
