//! Byte classes of RFC 9110 §5.6 and RFC 3986 as one table, and the small grammars built on them.

/// `tchar` (RFC 9110 §5.6.2).
pub(crate) const TOKEN: u8 = 1;
/// A byte of a request target's path: RFC 3986 `pchar`, `/`, and what browsers leave raw there (`[ ] ^ { | }`).
pub(crate) const PATH: u8 = 2;
/// A byte of a query: [`PATH`], `?`, and what browsers leave raw there (`` ` `` and `\`).
pub(crate) const QUERY: u8 = 4;
/// A byte of a host name: `reg-name` of RFC 3986 without the comma, which only a joined duplicate of Host has.
pub(crate) const HOST: u8 = 8;
/// `HTAB / SP / VCHAR / obs-text` (RFC 9110 §5.5).
pub(crate) const TEXT: u8 = 16;

const fn classes() -> [u8; 256] {
    let mut table = [0u8; 256];
    let mut i = 0;
    while i < 256 {
        let b = i as u8;
        let unreserved = b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
        let sub_delims = matches!(b, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=');
        let mut class = 0;
        if b.is_ascii_alphanumeric()
            || matches!(
                b,
                b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
            )
        {
            class |= TOKEN;
        }
        let path = unreserved
            || sub_delims
            || matches!(b, b':' | b'@' | b'%' | b'/' | b'[' | b']' | b'^' | b'{' | b'|' | b'}');
        if path {
            class |= PATH;
        }
        if path || matches!(b, b'?' | b'`' | b'\\') {
            class |= QUERY;
        }
        if unreserved || (sub_delims && b != b',') || b == b'%' {
            class |= HOST;
        }
        if b == b'\t' || (b >= 0x20 && b != 0x7f) {
            class |= TEXT;
        }
        table[i] = class;
        i += 1;
    }
    table
}

static CLASS: [u8; 256] = classes();

/// Whether `byte` is in `class`.
#[inline]
pub(crate) fn is(byte: u8, class: u8) -> bool {
    CLASS[byte as usize] & class != 0
}

/// Whether every byte is in `class`.
#[inline]
pub(crate) fn all(bytes: &[u8], class: u8) -> bool {
    bytes.iter().fold(class, |acc, &b| acc & CLASS[b as usize]) != 0
}

/// [`all`] for [`TEXT`], in a form that vectorizes: field values are most of a head.
#[inline]
pub(crate) fn is_text(bytes: &[u8]) -> bool {
    let mut chunks = bytes.chunks_exact(16);
    let mut bad = 0u8;
    for chunk in &mut chunks {
        bad |= chunk.iter().fold(0u8, |acc, &b| acc | not_text(b));
    }
    bad |= chunks.remainder().iter().fold(0u8, |acc, &b| acc | not_text(b));
    bad == 0
}

#[inline]
fn not_text(b: u8) -> u8 {
    (u8::from(b < 0x20) & u8::from(b != b'\t')) | u8::from(b == 0x7f)
}

/// `token` (RFC 9110 §5.6.2).
#[inline]
pub(crate) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && all(bytes, TOKEN)
}

/// Without the spaces and tabs at both ends.
#[inline]
pub(crate) fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = bytes {
        bytes = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// The members of a comma-separated list (RFC 9110 §5.6.1), empty ones left out.
pub(crate) fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&b| b == b',').map(trim).filter(|member| !member.is_empty())
}

/// Host and port of `uri-host [ ":" port ]` (RFC 9110 §7.2): no user information, an empty port counts as none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostPort<'a> {
    pub(crate) host: &'a str,
    pub(crate) port: Option<u16>,
}

impl<'a> HostPort<'a> {
    /// `None` if it is anything else, or the host is empty.
    pub(crate) fn parse(text: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let (host, rest) = if text.starts_with('[') {
            let end = text.find(']')? + 1;
            text[1..end - 1].parse::<std::net::Ipv6Addr>().ok()?;
            text.split_at(end)
        } else {
            let end = text.find(':').unwrap_or(text.len());
            let (host, rest) = text.split_at(end);
            if host.is_empty() || !all(host.as_bytes(), HOST) || !percent_encoded(host.as_bytes()) {
                return None;
            }
            (host, rest)
        };
        let port = match rest.strip_prefix(':') {
            None if rest.is_empty() => None,
            None => return None,
            Some("") => None,
            Some(digits) if digits.len() <= 5 && digits.bytes().all(|b| b.is_ascii_digit()) => {
                Some(digits.parse::<u16>().ok()?)
            }
            Some(_) => return None,
        };
        Some(Self { host, port })
    }

    /// Whether both name the same host and port, where a missing port means `default`.
    pub(crate) fn same(self, other: Self, default: Option<u16>) -> bool {
        self.host.eq_ignore_ascii_case(other.host) && self.port.or(default) == other.port.or(default)
    }
}

/// Every `%` is followed by two hexadecimal digits.
fn percent_encoded(bytes: &[u8]) -> bool {
    bytes
        .iter()
        .enumerate()
        .filter(|(_, b)| **b == b'%')
        .all(|(i, _)| bytes.get(i + 1..i + 3).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)))
}

/// Whether these bytes may be `/path?query` of a request target (RFC 9112 §3.2.1).
pub(crate) fn is_path_and_query(bytes: &[u8]) -> bool {
    let (path, query) = match memchr::memchr(b'?', bytes) {
        Some(at) => bytes.split_at(at),
        None => (bytes, &bytes[..0]),
    };
    all(path, PATH) && all(query, QUERY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ports() {
        for (text, expected) in [
            ("a", Some(("a", None))),
            ("A.b-c_d:80", Some(("A.b-c_d", Some(80)))),
            ("a:", Some(("a", None))),
            ("a%41", Some(("a%41", None))),
            ("[::1]", Some(("[::1]", None))),
            ("[2001:db8::1]:65535", Some(("[2001:db8::1]", Some(65535)))),
            ("10.0.0.1:8080", Some(("10.0.0.1", Some(8080)))),
            ("", None),
            (":80", None),
            ("a:80:80", None),
            ("a:65536", None),
            ("a:+80", None),
            ("a:8 0", None),
            ("a b", None),
            ("a,b", None),
            ("u@a", None),
            ("a/", None),
            ("a%4", None),
            ("a%zz", None),
            ("[::1", None),
            ("[::1]x", None),
            ("[a]", None),
            ("::1", None),
            ("é", None),
        ] {
            let parsed = HostPort::parse(text.as_bytes()).map(|h| (h.host, h.port));
            assert_eq!(parsed, expected, "{text}");
        }
    }

    #[test]
    fn text_is_the_same_by_table_and_by_comparison() {
        for b in 0..=255u8 {
            for len in [1, 15, 16, 17, 40] {
                let mut bytes = vec![b'a'; len];
                bytes[len - 1] = b;
                assert_eq!(is_text(&bytes), is(b, TEXT), "{b:#x}");
            }
        }
    }

    #[test]
    fn lists_skip_empty_members() {
        let members: Vec<_> = list(b", a ,,b\t,").collect();
        assert_eq!(members, [&b"a"[..], b"b"]);
    }
}
