//! The ClientHello of TLS 1.0 to 1.3, as far as it is in the clear: server name and ALPN (RFC 8446 §4.1.2, RFC 6066 §3, RFC 7301 §3.1).

use std::net::IpAddr;

/// What a ClientHello says before anything is encrypted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// Server name, lower case, without a final dot, if one was sent and is a host name.
    pub server_name: Option<String>,
    /// ALPN protocol ids, in order.
    pub alpn: Vec<Vec<u8>>,
}

/// The answer of [`client_hello`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hello {
    /// The message is not complete.
    NeedMore,
    /// Read.
    Complete(ClientHello),
    /// Not a ClientHello, malformed, or larger than [`HELLO_BYTES_MAX`]: pass it through unnamed.
    Invalid,
}

/// The largest ClientHello that is read, record headers included. Post-quantum key shares make hellos of 2 KiB.
pub const HELLO_BYTES_MAX: usize = 16 * 1024;

/// Protocol ids in one ALPN list. Clients send two or three; each costs an allocation.
const ALPN_MAX: usize = 32;
const RECORD_HEADER_BYTES: usize = 5;
const MESSAGE_HEADER_BYTES: usize = 4;

/// Reads a ClientHello from the first TLS records; it may be spread over several.
#[must_use]
pub fn client_hello(bytes: &[u8]) -> Hello {
    match message(bytes) {
        Message::Whole(body) => match read(&body) {
            Some(hello) => Hello::Complete(hello),
            None => Hello::Invalid,
        },
        Message::Part if bytes.len() < HELLO_BYTES_MAX => Hello::NeedMore,
        Message::Part | Message::Not => Hello::Invalid,
    }
}

enum Message {
    Part,
    Whole(Vec<u8>),
    Not,
}

/// Joins the record fragments until the handshake message is whole.
fn message(bytes: &[u8]) -> Message {
    let mut joined: Vec<u8> = Vec::new();
    let mut rest = bytes;
    loop {
        if joined.first().is_some_and(|kind| *kind != 1) {
            return Message::Not;
        }
        if let [_, a, b, c, ..] = joined[..] {
            let len = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            if len > HELLO_BYTES_MAX {
                return Message::Not;
            }
            if joined.len() >= MESSAGE_HEADER_BYTES + len {
                joined.truncate(MESSAGE_HEADER_BYTES + len);
                joined.drain(..MESSAGE_HEADER_BYTES);
                return Message::Whole(joined);
            }
        }
        let (kind, version) = (rest.first(), rest.get(1));
        if kind.is_some_and(|kind| *kind != 0x16) || version.is_some_and(|major| *major != 3) {
            return Message::Not;
        }
        let Some((header, body)) = rest.split_at_checked(RECORD_HEADER_BYTES) else { return Message::Part };
        let len = usize::from(header[3]) << 8 | usize::from(header[4]);
        if len == 0 || len > 1 << 14 {
            return Message::Not;
        }
        let taken = len.min(body.len());
        joined.extend_from_slice(&body[..taken]);
        rest = &body[taken..];
    }
}

/// A cursor whose reads fail at the end.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<usize> {
        self.take(1).map(|b| usize::from(b[0]))
    }

    fn u16(&mut self) -> Option<usize> {
        self.take(2).map(|b| usize::from(b[0]) << 8 | usize::from(b[1]))
    }

    /// A vector with a length of one or two bytes.
    fn vector8(&mut self) -> Option<&'a [u8]> {
        let len = self.u8()?;
        self.take(len)
    }

    fn vector16(&mut self) -> Option<Reader<'a>> {
        let len = self.u16()?;
        self.take(len).map(Reader)
    }
}

fn read(body: &[u8]) -> Option<ClientHello> {
    const SERVER_NAME: usize = 0;
    const ALPN: usize = 16;
    let mut hello = ClientHello::default();
    let mut reader = Reader(body);
    reader.take(2 + 32)?;
    reader.vector8()?;
    reader.vector16()?;
    reader.vector8()?;
    if reader.0.is_empty() {
        // TLS 1.2 and older may have no extensions at all.
        return Some(hello);
    }
    let mut extensions = reader.vector16()?;
    if !reader.0.is_empty() {
        return None;
    }
    let (mut names_seen, mut alpn_seen) = (false, false);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let mut data = extensions.vector16()?;
        match kind {
            // An extension may come once (RFC 8446 §4.2): of two names, peers could pick different ones.
            SERVER_NAME if std::mem::replace(&mut names_seen, true) => return None,
            ALPN if std::mem::replace(&mut alpn_seen, true) => return None,
            SERVER_NAME => {
                let mut names = data.vector16()?;
                let mut name_seen = false;
                while !names.0.is_empty() {
                    let name_type = names.u8()?;
                    let name = names.vector16()?.0;
                    if name_type == 0 {
                        if std::mem::replace(&mut name_seen, true) {
                            return None;
                        }
                        let name = host_name(name)?;
                        // Addresses are no server names (RFC 6066 §3), yet clients send them.
                        hello.server_name = name.parse::<IpAddr>().is_err().then_some(name);
                    }
                }
            }
            ALPN => {
                let mut protocols = data.vector16()?;
                while !protocols.0.is_empty() {
                    let protocol = protocols.vector8()?;
                    if protocol.is_empty() || hello.alpn.len() == ALPN_MAX {
                        return None;
                    }
                    hello.alpn.push(protocol.to_vec());
                }
            }
            _ => {}
        }
    }
    Some(hello)
}

/// A DNS host name, lower case, without its final dot.
fn host_name(name: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(name).ok()?;
    let name = name.strip_suffix('.').unwrap_or(name);
    let good = !name.is_empty()
        && name.len() <= 253
        && name.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        });
    good.then(|| name.to_ascii_lowercase())
}
