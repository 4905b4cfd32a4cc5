//! `grpc-timeout`: what the caller of a gRPC call gives it (gRPC over HTTP/2, "Requests").

use std::time::Duration;

use http::HeaderValue;

/// Most digits of a value.
const DIGITS_MAX: usize = 8;
const UNITS: [(u8, Duration); 6] = [
    (b'n', Duration::from_nanos(1)),
    (b'u', Duration::from_micros(1)),
    (b'm', Duration::from_millis(1)),
    (b'S', Duration::from_secs(1)),
    (b'M', Duration::from_secs(60)),
    (b'H', Duration::from_secs(3600)),
];

/// Reads one: up to eight digits and a unit. What is none counts as not sent, as in other servers.
#[must_use]
pub fn grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    let (_, unit) = UNITS.into_iter().find(|(letter, _)| letter == unit)?;
    if digits.is_empty() || digits.len() > DIGITS_MAX || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count: u32 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(unit.saturating_mul(count))
}

/// Writes one, in the finest unit that it fits; never longer than `left`.
#[must_use]
pub fn grpc_timeout_value(left: Duration) -> HeaderValue {
    let most = 10_u128.pow(DIGITS_MAX as u32);
    let (letter, count) = UNITS
        .into_iter()
        .map(|(letter, unit)| (letter, left.as_nanos() / unit.as_nanos()))
        .find(|(_, count)| *count < most)
        .unwrap_or((b'H', most - 1));
    HeaderValue::try_from(format!("{count}{}", char::from(letter))).unwrap_or_else(|_| HeaderValue::from_static("0n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read() {
        for (value, expected) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("250m", Some(Duration::from_millis(250))),
            ("7u", Some(Duration::from_micros(7))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("0S", Some(Duration::ZERO)),
            ("100000000n", None),
            ("1", None),
            ("S", None),
            ("", None),
            ("-1S", None),
            ("+1S", None),
            ("1s", None),
            ("1.5S", None),
            (" 1S", None),
        ] {
            assert_eq!(grpc_timeout(value.as_bytes()), expected, "{value}");
        }
    }

    #[test]
    fn what_is_written_is_read_and_never_longer() {
        for nanos in [0, 1, 99_999_999, 100_000_000, 1_234_567_891, 86_400_000_000_000, u64::MAX] {
            let left = Duration::from_nanos(nanos);
            let read = grpc_timeout(grpc_timeout_value(left).as_bytes()).unwrap();
            assert!(read <= left && left - read <= left / 1_000_000, "{left:?} {read:?}");
        }
        assert_eq!(grpc_timeout_value(Duration::from_secs(3)), "3000000u");
        assert!(grpc_timeout(grpc_timeout_value(Duration::MAX).as_bytes()).is_some());
    }
}
