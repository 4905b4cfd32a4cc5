//! HTTP-date (RFC 9110 §5.6.7): the form that is sent, and the two obsolete ones that a recipient must still read.

use super::{days_from_epoch, days_in};

/// Year, month, day.
type Date = (i64, i64, i64);

/// Seconds since the epoch.
pub(super) fn parse(text: &[u8], now: i64) -> Option<i64> {
    let (date, time) = match text {
        // Sun, 06 Nov 1994 08:49:37 GMT
        [a, b, c, b',', b' ', d @ .., b' ', b'G', b'M', b'T'] => {
            is_short_day(&[*a, *b, *c]).then_some(())?;
            let [d1, d2, b' ', m1, m2, m3, b' ', y1, y2, y3, y4, b' ', time @ ..] = d else { return None };
            ((number(&[*y1, *y2, *y3, *y4])?, month(&[*m1, *m2, *m3])?, number(&[*d1, *d2])?), time)
        }
        // Sunday, 06-Nov-94 08:49:37 GMT
        [
            day @ ..,
            b',',
            b' ',
            d1,
            d2,
            b'-',
            m1,
            m2,
            m3,
            b'-',
            y1,
            y2,
            b' ',
            h1,
            h2,
            c1,
            n1,
            n2,
            c2,
            s1,
            s2,
            b' ',
            b'G',
            b'M',
            b'T',
        ] => {
            DAYS.contains(&std::str::from_utf8(day).ok()?).then_some(())?;
            let time = &[*h1, *h2, *c1, *n1, *n2, *c2, *s1, *s2];
            let (month, day) = (month(&[*m1, *m2, *m3])?, number(&[*d1, *d2])?);
            return at((century(number(&[*y1, *y2])?, month, day, now), month, day), time);
        }
        // Sun Nov  6 08:49:37 1994
        [a, b, c, b' ', m1, m2, m3, b' ', d1, d2, b' ', time @ .., b' ', y1, y2, y3, y4] => {
            is_short_day(&[*a, *b, *c]).then_some(())?;
            let day = if *d1 == b' ' { number(&[*d2])? } else { number(&[*d1, *d2])? };
            ((number(&[*y1, *y2, *y3, *y4])?, month(&[*m1, *m2, *m3])?, day), time)
        }
        _ => return None,
    };
    at(date, time)
}

const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

fn is_short_day(word: &[u8; 3]) -> bool {
    DAYS.iter().any(|day| day.as_bytes().starts_with(word))
}

fn month(word: &[u8; 3]) -> Option<i64> {
    const MONTHS: [&[u8; 3]; 12] =
        [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];
    (1..).zip(MONTHS).find_map(|(number, name)| (name == word).then_some(number))
}

fn number(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0, |n, d| d.is_ascii_digit().then(|| n * 10 + i64::from(d - b'0')))
}

/// The year that ends in these two digits and is the latest of which `month` and `day` lie no more than 50 years ahead of `now`.
fn century(digits: i64, month: i64, day: i64, now: i64) -> i64 {
    let today = now.div_euclid(86_400);
    // Some year near enough: the right one is this or at most two centuries away.
    let near = 1970 + today.div_euclid(366);
    let latest = near - near.rem_euclid(100) + digits + 200;
    (0..5)
        .map(|back| latest - back * 100)
        .find(|year| days_from_epoch(year - 50, month, day) <= today)
        .unwrap_or(latest - 400)
}

fn at((year, month, day): Date, time: &[u8]) -> Option<i64> {
    let [h1, h2, b':', m1, m2, b':', s1, s2] = time else { return None };
    let (hour, minute, second) = (number(&[*h1, *h2])?, number(&[*m1, *m2])?, number(&[*s1, *s2])?);
    // A leap second is the second after :59.
    let is_real = (1..=days_in(year, month)).contains(&day) && hour <= 23 && minute <= 59 && second <= 60;
    is_real.then(|| days_from_epoch(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use crate::Timestamp;

    /// 2026-08-09T10:11:12Z.
    const NOW: Timestamp = Timestamp::from_unix(1_786_270_272);

    fn read(text: &str) -> Option<i64> {
        Timestamp::parse_http(text.as_bytes(), NOW).map(Timestamp::unix)
    }

    #[test]
    fn three_forms() {
        // Expected values from `date -u -d … +%s`.
        let table = [
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", Some(784_111_777)),
            ("Sun Nov  6 08:49:37 1994", Some(784_111_777)),
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Tue, 29 Feb 2000 12:30:45 GMT", Some(951_827_445)),
            ("Sat, 31 Dec 2016 23:59:60 GMT", Some(1_483_228_800)),
            ("Sun Aug 16 10:11:12 2026", Some(1_786_875_072)),
            ("Sunday, 09-Aug-26 10:11:12 GMT", Some(1_786_270_272)),
            // 2076 is not more than 50 years ahead, 2077 is.
            ("Sunday, 09-Aug-76 10:11:12 GMT", Some(3_364_193_472)),
            ("Tuesday, 09-Aug-77 10:11:12 GMT", Some(239_969_472)),
            ("Monday, 10-Aug-76 00:00:00 GMT", Some(208_483_200)),
            ("Sun, 06 Nov 1994 08:49:37 UTC", None),
            ("Sun, 06 Nov 1994 08:49:37", None),
            ("Sun, 6 Nov 1994 08:49:37 GMT", None),
            ("Sunday, 06 Nov 1994 08:49:37 GMT", None),
            ("Sun, 06-Nov-94 08:49:37 GMT", None),
            ("Son, 06 Nov 1994 08:49:37 GMT", None),
            ("sun, 06 nov 1994 08:49:37 gmt", None),
            ("Sun, 31 Nov 1994 08:49:37 GMT", None),
            ("Sun, 00 Nov 1994 08:49:37 GMT", None),
            ("Tue, 29 Feb 2100 12:30:45 GMT", None),
            ("Sun, 06 Nov 1994 24:00:00 GMT", None),
            ("Sun, 06 Nov 1994 08:60:00 GMT", None),
            ("Sun, 06 Nov 1994 08:49:61 GMT", None),
            ("Sun, 06 Nov 1994 0:49:37 GMT", None),
            ("Sun Nov 6 08:49:37 1994", None),
            ("Sun Nov  6 08:49:37 1994 GMT", None),
            (" Sun, 06 Nov 1994 08:49:37 GMT", None),
            ("120", None),
            ("", None),
        ];
        for (text, expected) in table {
            assert_eq!(read(text), expected, "{text}");
        }
    }

    #[test]
    fn two_digits_mean_a_year_at_most_fifty_ahead_and_fifty_behind() {
        for now in [0, 915_148_799, 946_684_800, 1_786_270_272, 4_102_444_800, -2_000_000_000] {
            for year in 0..100 {
                let text = format!("Monday, 15-Jun-{year:02} 12:00:00 GMT");
                let at = Timestamp::parse_http(text.as_bytes(), Timestamp::from_unix(now)).unwrap().unix();
                let years = (at - now) as f64 / 86_400.0 / 365.2425;
                assert!((-50.01..=50.01).contains(&years), "{text} read at {now}: {years} years away");
            }
        }
    }
}
