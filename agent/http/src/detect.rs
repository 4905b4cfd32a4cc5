//! Which protocol a connection speaks: declared by its port, else read from the client's first bytes (FEATURES D7).
//!
//! A client that has sent nothing is nobody's protocol yet: whether the server speaks first is the driver's race, not a question of bytes.

mod hello;

pub use hello::{ClientHello, HELLO_BYTES_MAX, Hello, client_hello};

use crate::syntax::{self, TOKEN};

/// A protocol the data plane can tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.x.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// TLS; [`client_hello`] reads its names.
    Tls,
    /// Anything else: copied as it is.
    Opaque,
}

/// What a port declares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Declared {
    /// Nothing: detect.
    Unknown,
    /// HTTP, 1 or 2 by the first bytes.
    Http,
    /// HTTP/1 and no other: what the word stands for is defined there only (WebSocket, RFC 6455), or it says so.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// TLS.
    Tls,
    /// Opaque bytes.
    Opaque,
}

impl Declared {
    /// The protocol of one word: an `appProtocol`, or the part of a port's name before its first dash. Kubernetes' own words (KEP-3726),
    /// and those of Istio's protocol selection. A word nobody knows declares nothing.
    #[must_use]
    pub fn of(word: &str) -> Self {
        let word = word.to_ascii_lowercase();
        match word.as_str() {
            "http" | "grpc-web" => Self::Http,
            "http1" | "http/1.1" | "kubernetes.io/ws" | "ws" => Self::Http1,
            "http2" | "http/2" | "h2c" | "grpc" | "kubernetes.io/h2c" => Self::Http2,
            "https" | "tls" | "wss" | "kubernetes.io/wss" => Self::Tls,
            "tcp" | "mongo" | "mysql" | "redis" | "postgres" | "postgresql" | "amqp" | "kafka" | "mqtt" | "smtp"
            | "ssh" => Self::Opaque,
            _ => Self::Unknown,
        }
    }

    /// What several declarations for one address come to; those that declare nothing do not count. Where they disagree the client's
    /// bytes decide.
    #[must_use]
    pub fn agreed(all: impl IntoIterator<Item = Self>) -> Self {
        let known = all.into_iter().filter(|declared| *declared != Self::Unknown);
        known
            .reduce(|one, other| match (one, other) {
                _ if one == other => one,
                _ if one.is_http() && other.is_http() => Self::Http,
                _ => Self::Unknown,
            })
            .unwrap_or(Self::Unknown)
    }

    /// Whether it is HTTP of some version.
    #[must_use]
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http1 | Self::Http2)
    }

    /// The version to call an upstream with, for a client that speaks `client`: the one its port declares, else the client's own.
    #[must_use]
    pub fn upstream_version(self, client: HttpVersion) -> HttpVersion {
        match self {
            Self::Http1 => HttpVersion::Http1,
            Self::Http2 => HttpVersion::Http2,
            Self::Unknown | Self::Http | Self::Tls | Self::Opaque => client,
        }
    }
}

/// A major version of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpVersion {
    /// 1.0 and 1.1.
    Http1,
    /// 2.
    Http2,
}

/// What a port declares: `appProtocol` if it says anything known, else the port's name (`http`, `grpc-api`).
#[must_use]
pub fn declared(app_protocol: Option<&str>, port_name: &str) -> Declared {
    match app_protocol.map_or(Declared::Unknown, Declared::of) {
        Declared::Unknown if port_name.to_ascii_lowercase().starts_with("grpc-web") => Declared::Http,
        Declared::Unknown => Declared::of(port_name.split('-').next().unwrap_or_default()),
        known => known,
    }
}

/// The answer of [`detect`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detection {
    /// The bytes fit more than one protocol.
    NeedMore,
    /// Decided for good.
    Decided(Protocol),
}

/// [`detect`] has decided when it has seen this many bytes.
pub const DETECT_BYTES_MAX: usize = 48;

/// What an HTTP/2 client sends first (RFC 9113 §3.4).
pub const HTTP2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A method that is longer is none that HTTP clients send; shorter than the parser's limit, so that detection needs few bytes.
const METHOD_BYTES_MAX: usize = 24;

/// Reads the client's first bytes and decides at the first byte that leaves one answer.
///
/// HTTP/1 is an upper-case method, one space, and a byte that begins a target: text protocols whose clients speak first (`EHLO `, `USER `,
/// RESP's inline `PING\r\n`) are told apart by the target, which theirs do not begin with `/`, a scheme, `*` or a port.
#[must_use]
pub fn detect(bytes: &[u8]) -> Detection {
    use Detection::{Decided, NeedMore};
    // Empty lines before a request line (RFC 9112 §2.2).
    let bytes = skip_empty_lines(bytes);
    match bytes {
        [] | [b'\r'] => return NeedMore,
        [0x16, rest @ ..] => return tls(rest),
        _ => {}
    }
    let preface = &HTTP2_PREFACE[..];
    if preface.starts_with(bytes) && bytes.len() < preface.len() {
        return NeedMore;
    }
    if bytes.starts_with(preface) {
        return Decided(Protocol::Http2);
    }
    let method_len = bytes.iter().take_while(|b| is_method_byte(**b)).count();
    let Some(after) = bytes.get(method_len) else {
        return if method_len > METHOD_BYTES_MAX { Decided(Protocol::Opaque) } else { NeedMore };
    };
    if *after != b' ' || method_len == 0 || method_len > METHOD_BYTES_MAX {
        return Decided(Protocol::Opaque);
    }
    match target_begins(&bytes[..method_len], &bytes[method_len + 1..]) {
        Some(true) => Decided(Protocol::Http1),
        Some(false) => Decided(Protocol::Opaque),
        None => NeedMore,
    }
}

/// Methods in use are upper case, with dashes (`M-SEARCH`) or underscores.
fn is_method_byte(byte: u8) -> bool {
    syntax::is(byte, TOKEN) && (byte.is_ascii_uppercase() || matches!(byte, b'-' | b'_'))
}

/// At most four empty lines; more are nobody's protocol, and decided by the first byte that remains.
fn skip_empty_lines(mut bytes: &[u8]) -> &[u8] {
    for _ in 0..4 {
        match bytes {
            [b'\r', b'\n', rest @ ..] => bytes = rest,
            _ => break,
        }
    }
    bytes
}

/// Whether a target may begin like this; `None` while both are possible.
fn target_begins(method: &[u8], target: &[u8]) -> Option<bool> {
    if method == b"CONNECT" {
        // host:port; NATS' clients say `CONNECT {`.
        return target.first().map(|&b| syntax::is(b, syntax::HOST) && b != b'%' || b == b'[');
    }
    match target.first()? {
        b'/' => Some(true),
        b'*' if method == b"OPTIONS" => Some(true),
        b'h' | b'H' => {
            let scheme = b"http";
            let len = scheme.len().min(target.len());
            if !target[..len].eq_ignore_ascii_case(&scheme[..len]) {
                return Some(false);
            }
            if len < scheme.len() {
                return None;
            }
            let rest = match &target[len..] {
                [b's' | b'S', rest @ ..] => rest,
                rest => rest,
            };
            let separator = b"://";
            let len = separator.len().min(rest.len());
            if rest[..len] != separator[..len] {
                Some(false)
            } else if len < separator.len() {
                None
            } else {
                Some(true)
            }
        }
        _ => Some(false),
    }
}

/// Behind the content type of a TLS record: version 3.x, a length that is not absurd, ClientHello (RFC 8446 §5.1, §4).
fn tls(rest: &[u8]) -> Detection {
    use Detection::{Decided, NeedMore};
    let opaque = Decided(Protocol::Opaque);
    match rest {
        [] => NeedMore,
        [major, ..] if *major != 3 => opaque,
        [_] => NeedMore,
        [_, minor, ..] if *minor > 4 => opaque,
        [_, _, high, low, ..] if !(1..=1 << 14).contains(&(usize::from(*high) << 8 | usize::from(*low))) => opaque,
        [_, _, _, _, 1, ..] => Decided(Protocol::Tls),
        [_, _, _, _, _, ..] => opaque,
        _ => NeedMore,
    }
}

#[cfg(test)]
mod tests;
