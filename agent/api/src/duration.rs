//! Durations as the Gateway API writes them (GEP-2257): `1h30m`, `500ms`; one to four numbers of at most five digits, each with its unit.

use std::time::Duration;

use crate::node::shortened;

/// The form, for schemas.
pub(crate) const PATTERN: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";
pub use heddle_model::traffic::NEVER;

const PARTS_MAX: usize = 4;
const DIGITS_MAX: usize = 5;

/// Reads one.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{}` is no duration such as `500ms`, `10s` or `1h30m`", shortened(text));
    let mut rest = text;
    let mut sum = Duration::ZERO;
    for _ in 0..PARTS_MAX {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        let number: u64 = if digits > DIGITS_MAX { None } else { number.parse().ok() }.ok_or_else(wrong)?;
        // `ms` before `m`.
        let units = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1000)];
        let found = units.into_iter().find_map(|(unit, millis)| Some((after.strip_prefix(unit)?, millis)));
        let (after, millis) = found.ok_or_else(wrong)?;
        sum += Duration::from_millis(number * millis);
        rest = after;
        if rest.is_empty() {
            return Ok(sum);
        }
    }
    Err(wrong())
}

/// The shortest text for whole milliseconds.
pub(crate) fn written(duration: Duration) -> String {
    let mut millis = duration.as_millis();
    let mut text = String::new();
    for (unit, of) in [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)] {
        if millis >= of {
            text.push_str(&format!("{}{unit}", millis / of));
            millis %= of;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_table() {
        let table = [
            ("0s", Some(0)),
            ("0h0m0s0ms", Some(0)),
            ("500ms", Some(500)),
            ("10s", Some(10_000)),
            ("1h30m", Some(5_400_000)),
            ("1m1ms", Some(60_001)),
            ("99999h", Some(359_996_400_000)),
            ("1s1s", Some(2000)),
            ("", None),
            ("0", None),
            ("10", None),
            ("s", None),
            ("-1s", None),
            ("+1s", None),
            ("1.5s", None),
            ("1d", None),
            ("1us", None),
            ("1S", None),
            (" 1s", None),
            ("1s ", None),
            ("100000s", None),
            ("1h1m1s1ms1s", None),
            ("1mss", None),
            ("1é", None),
        ];
        for (text, millis) in table {
            assert_eq!(parse(text).ok(), millis.map(Duration::from_millis), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(hours in 0_u64..99_999, millis in 0_u64..3_600_000) {
            let duration = Duration::from_millis(hours * 3_600_000 + millis);
            let text = written(duration);
            prop_assert!(text.len() <= 28);
            prop_assert_eq!(parse(&text), Ok(duration));
        }
    }
}
