//! When a server wants to be asked again: `Retry-After` (RFC 9110 §10.2.3) and gRPC's `grpc-retry-pushback-ms` (gRFC A6).

use std::time::Duration;

use heddle_model::Timestamp;

/// The name of gRPC's field.
pub const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// What a `Retry-After` asks for: seconds, or an HTTP-date, which a moment in the past makes zero. `None` for anything else, which a
/// recipient ignores. Seconds beyond what a `u32` holds mean that many: nobody waits 136 years.
#[must_use]
pub fn retry_after(value: &[u8], now: Timestamp) -> Option<Duration> {
    if !value.is_empty() && value.iter().all(u8::is_ascii_digit) {
        let seconds = value.iter().fold(0_u64, |n, d| n.saturating_mul(10).saturating_add(u64::from(d - b'0')));
        return Some(Duration::from_secs(seconds.min(u64::from(u32::MAX))));
    }
    let at = Timestamp::parse_http(value, now)?;
    let seconds = at.unix().saturating_sub(now.unix());
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0).min(u64::from(u32::MAX))))
}

/// What a server's pushback says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushback {
    /// Retry after exactly this time.
    After(Duration),
    /// Do not retry: a negative number, or anything that is none.
    Never,
}

impl Pushback {
    /// Reads the field's value: a decimal `i32` of milliseconds.
    #[must_use]
    pub fn read(value: &[u8]) -> Self {
        std::str::from_utf8(value)
            .ok()
            .filter(|text| !text.starts_with('+'))
            .and_then(|text| text.parse::<i32>().ok())
            .and_then(|millis| u64::try_from(millis).ok())
            .map_or(Self::Never, |millis| Self::After(Duration::from_millis(millis)))
    }
}
