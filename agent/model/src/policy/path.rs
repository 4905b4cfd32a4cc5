//! The one reading of a request's path that policies match and servers get.
//!
//! A policy is bypassed where the server reads a path otherwise than its guard did. So a path that a policy asks for is brought to one form,
//! which is then forwarded: whatever the server does to it further, it starts from what was judged. What Envoy does under the name
//! `DECODE_AND_MERGE_SLASHES` (Istio) is the least that is expected:
//!
//! * escapes of unreserved characters are decoded, all others written in upper case (RFC 3986 §6.2.2.1, §6.2.2.2). Once: of `%252e` the `%25`
//!   stays as it is, so that nothing is left to find for a second pass;
//! * `%2F`, `%5C` and `\` mean `/`: some servers take them so. That is no rule of RFC 3986, where they are data;
//! * runs of slashes are one, and only then dot segments are removed (RFC 3986 §5.2.4, §6.2.2.3), never above the root: `/a//../b` is `/b`, as
//!   in nginx, Tomcat and Go. A slash at the end stays, and `/a/..` has one;
//! * bytes that no path may have (RFC 3986 §3.3: `[`, `|`, blanks, what is not ASCII …) are escaped, as browsers do.
//!
//! What servers are known to read in more than one way, and honest clients do not send, is refused ([`Ambiguous`]). Parameters
//! (`/a;v=1/b`) are data of their segment (RFC 3986 §3.3) and stay; as some servers drop them, a path is matched with and without them.
//!
//! The query is nobody's business here, and stays byte for byte.

use std::borrow::Cow;
use std::fmt;

/// Why a path has no one reading. The request is answered 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ambiguous {
    /// `%` without two hexadecimal digits (RFC 3986 §2.1), IIS's `%u002e` among them.
    Escape,
    /// A control byte, escaped or not: `%00` ends a path in some servers, `%0A` a line in their logs.
    Control,
    /// UTF-8 in more bytes than it takes (RFC 3629 §3), escaped: decoders that do not refuse it find `.` and `/` there.
    Overlong,
    /// Parameters of a segment that is empty or all dots (`/..;x/`): servers that drop parameters then find a dot segment, or none at all.
    Parameters,
    /// `#`: no request has a fragment (RFC 9112 §3.2), and servers that cut it off see another path.
    Fragment,
    /// Not from the root.
    Relative,
}

impl Ambiguous {
    /// The stable word for logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Escape => "path_escape",
            Self::Control => "path_control",
            Self::Overlong => "path_overlong",
            Self::Parameters => "path_parameters",
            Self::Fragment => "path_fragment",
            Self::Relative => "path_relative",
        }
    }
}

impl fmt::Display for Ambiguous {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::error::Error for Ambiguous {}

/// `/path?query` with its path in normal form; borrowed where it is already. Without a path it is `/`, as in HTTP/1's absolute form
/// (RFC 9112 §3.2.1); the `*` of OPTIONS stays (§3.2.4). To do it again changes nothing.
///
/// # Errors
/// [`Ambiguous`].
pub fn normalize(path_and_query: &str) -> Result<Cow<'_, str>, Ambiguous> {
    if path_and_query == "*" || is_plain(path_and_query.as_bytes()) {
        return Ok(Cow::Borrowed(path_and_query));
    }
    let path = without_query(path_and_query);
    let mut normal = rewrite(path)?;
    if normal == path {
        return Ok(Cow::Borrowed(path_and_query));
    }
    normal.push_str(&path_and_query[path.len()..]);
    Ok(Cow::Owned(normal))
}

/// What is before the first `?`.
#[must_use]
pub fn without_query(path_and_query: &str) -> &str {
    path_and_query.split_once('?').map_or(path_and_query, |(path, _)| path)
}

/// `unreserved` of RFC 3986 §2.3.
const UNRESERVED: u8 = 1;
/// The rest of its `pchar` (§3.3), but for `%`.
const RESERVED: u8 = 2;

static CLASS: [u8; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let b = i as u8;
        if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~') {
            table[i] = UNRESERVED;
        } else if matches!(b, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':' | b'@')
        {
            table[i] = RESERVED;
        }
        i += 1;
    }
    table
};

/// Whether the path is in normal form, at one glance. In doubt it is not.
fn is_plain(path_and_query: &[u8]) -> bool {
    if path_and_query.first() != Some(&b'/') {
        return false;
    }
    let mut at = 0;
    while let Some(&byte) = path_and_query.get(at) {
        at += 1;
        if CLASS[usize::from(byte)] != 0 {
            continue;
        }
        let rest = &path_and_query[at..];
        let is_plain = match byte {
            b'?' => return true,
            b'/' => match rest {
                [b'/' | b'\\' | b';', ..] | [b'.'] => false,
                // Of segments that begin with a dot `.well-known` is plain.
                [b'.', next, ..] => !matches!(next, b'.' | b';') && CLASS[usize::from(*next)] != 0,
                _ => true,
            },
            b'%' => {
                at += 2;
                rest.iter().take(2).all(|digit| digit.is_ascii_digit() || matches!(digit, b'A'..=b'F'))
                    && escaped(rest).is_ok_and(|code| reading(code) == Reading::Escape && code != b';' && !leads(code))
            }
            _ => false,
        };
        if !is_plain {
            return false;
        }
    }
    true
}

/// What a byte of a path, or the byte that an escape stands for, is in normal form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    Slash,
    Itself,
    Escape,
    Control,
}

/// That of a byte that was escaped.
fn reading(byte: u8) -> Reading {
    match byte {
        b'/' | b'\\' => Reading::Slash,
        _ if byte.is_ascii_control() => Reading::Control,
        _ if CLASS[usize::from(byte)] == UNRESERVED => Reading::Itself,
        _ => Reading::Escape,
    }
}

fn rewrite(path: &str) -> Result<String, Ambiguous> {
    let bytes = path.as_bytes();
    let mut normal = String::with_capacity(path.len());
    let mut at = 0;
    if bytes.is_empty() {
        normal.push('/');
    }
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        let (byte, reading) = match byte {
            b'#' => return Err(Ambiguous::Fragment),
            b'%' => {
                let code = escaped(&bytes[at..])?;
                at += 2;
                if is_overlong(code, &bytes[at..]) {
                    return Err(Ambiguous::Overlong);
                }
                (code, reading(code))
            }
            _ if CLASS[usize::from(byte)] == RESERVED => (byte, Reading::Itself),
            _ => (byte, reading(byte)),
        };
        if normal.is_empty() && reading != Reading::Slash {
            return Err(Ambiguous::Relative);
        }
        match reading {
            Reading::Slash => {
                end_segment(&mut normal)?;
                if !normal.ends_with('/') {
                    normal.push('/');
                }
            }
            Reading::Itself => normal.push(char::from(byte)),
            Reading::Escape => {
                const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
                normal.push('%');
                normal.push(char::from(DIGITS[usize::from(byte >> 4)]));
                normal.push(char::from(DIGITS[usize::from(byte & 15)]));
            }
            Reading::Control => return Err(Ambiguous::Control),
        }
    }
    end_segment(&mut normal)?;
    Ok(normal)
}

/// The byte that two hexadecimal digits behind a `%` stand for.
fn escaped(rest: &[u8]) -> Result<u8, Ambiguous> {
    let digit = |at: usize| rest.get(at).and_then(|&b| char::from(b).to_digit(16)).and_then(|d| u8::try_from(d).ok());
    let (high, low) = digit(0).zip(digit(1)).ok_or(Ambiguous::Escape)?;
    Ok(high << 4 | low)
}

/// Bytes that may begin UTF-8 in more bytes than it takes. `F8` and `FC` led five and six of them (RFC 2279, obsolete).
const fn leads(byte: u8) -> bool {
    matches!(byte, 0xC0 | 0xC1 | 0xE0 | 0xF0 | 0xF8 | 0xFC)
}

/// Whether an escaped byte and the escape behind it do.
fn is_overlong(lead: u8, rest: &[u8]) -> bool {
    let next = || rest.strip_prefix(b"%").and_then(|digits| escaped(digits).ok());
    match lead {
        0xC0 | 0xC1 => true,
        0xE0 => matches!(next(), Some(0x80..=0x9F)),
        0xF0 => matches!(next(), Some(0x80..=0x8F)),
        0xF8 => matches!(next(), Some(0x80..=0x87)),
        0xFC => matches!(next(), Some(0x80..=0x83)),
        _ => false,
    }
}

/// Removes the segment at the end if it is a dot segment, with what it leads out of.
fn end_segment(normal: &mut String) -> Result<(), Ambiguous> {
    let Some(slash) = normal.rfind('/') else { return Ok(()) };
    let segment = &normal[slash + 1..];
    // Escaped or not: whether it was decoded before parameters were looked for, nobody knows.
    let end = segment.find(';').into_iter().chain(segment.find("%3B")).min();
    if matches!(end.map(|end| &segment[..end]), Some("" | "." | "..")) {
        return Err(Ambiguous::Parameters);
    }
    match segment {
        "." => normal.truncate(slash + 1),
        ".." => {
            normal.truncate(slash);
            normal.truncate(normal.rfind('/').unwrap_or_default());
            normal.push('/');
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
#[path = "path_tests.rs"]
mod tests;
