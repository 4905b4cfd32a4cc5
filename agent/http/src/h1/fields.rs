//! An ordered list of header fields over one buffer: order and case stay as they were sent; what the codec must know is classified once.

use std::ops::Range;

use bytes::BufMut;

use crate::Reject;
use crate::syntax::{self, HostPort};

/// Fields the codec or the proxy acts on. Everything else is [`Known::Other`].
#[allow(missing_docs, reason = "the variants are the field names")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Known {
    Other,
    Host,
    ContentLength,
    TransferEncoding,
    Connection,
    KeepAlive,
    ProxyConnection,
    Upgrade,
    Te,
    Trailer,
    Expect,
    Http2Settings,
    Cookie,
    ContentType,
    Authorization,
    /// `x-heddle-*`: set by agents only. Also with `_`, which CGI-like servers take for the same name.
    Heddle,
}

impl Known {
    /// The kind of a field name, whatever its case.
    #[inline]
    #[must_use]
    pub fn of(name: &[u8]) -> Self {
        let (known, word): (Self, &[u8]) = match (name.len(), name.first().map_or(0, |b| b | 0x20)) {
            (2, b't') => (Self::Te, b"te"),
            (4, b'h') => (Self::Host, b"host"),
            (6, b'c') => (Self::Cookie, b"cookie"),
            (6, b'e') => (Self::Expect, b"expect"),
            (7, b'u') => (Self::Upgrade, b"upgrade"),
            (7, b't') => (Self::Trailer, b"trailer"),
            (10, b'c') => (Self::Connection, b"connection"),
            (10, b'k') => (Self::KeepAlive, b"keep-alive"),
            (12, b'c') => (Self::ContentType, b"content-type"),
            (13, b'a') => (Self::Authorization, b"authorization"),
            (14, b'c') => (Self::ContentLength, b"content-length"),
            (14, b'h') => (Self::Http2Settings, b"http2-settings"),
            (16, b'p') => (Self::ProxyConnection, b"proxy-connection"),
            (17, b't') => (Self::TransferEncoding, b"transfer-encoding"),
            (9.., b'x') => return if is_heddle(name) { Self::Heddle } else { Self::Other },
            _ => return Self::Other,
        };
        if name.eq_ignore_ascii_case(word) { known } else { Self::Other }
    }

    /// Fields that frame the message or belong to its connection: only the codec writes them.
    fn is_codecs(self) -> bool {
        matches!(self, Self::ContentLength | Self::TransferEncoding | Self::Connection)
    }
}

/// Whether a name is `x-heddle-*`, with `-` and `_` alike.
#[must_use]
pub(crate) fn is_heddle(name: &[u8]) -> bool {
    const PREFIX: &[u8] = b"x-heddle-";
    name.len() >= PREFIX.len()
        && name.iter().zip(PREFIX).all(|(&b, &p)| b.eq_ignore_ascii_case(&p) || (b == b'_' && p == b'-'))
}

/// One field: places in the buffer of its list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    /// Where its line begins.
    pub(super) start: u32,
    pub(super) name_len: u32,
    pub(super) value_start: u32,
    pub(super) value_len: u32,
    /// Behind its CRLF.
    pub(super) end: u32,
    pub(super) known: Known,
    /// The line is `name: value CRLF` with exactly one space, and can be copied as it is.
    pub(super) canonical: bool,
}

/// Header fields in the order they were sent.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    /// The head as it came, start line included; added fields behind it.
    pub(super) bytes: Vec<u8>,
    pub(super) list: Vec<Field>,
}

/// A buffer larger than this is given back when the list is cleared: one large head does not fatten a connection for good.
const BYTES_KEPT_MAX: usize = 2 * 1024;
const FIELDS_KEPT_MAX: usize = 32;

impl Fields {
    /// Every field as (name, value), in order. Values carry no outer whitespace.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.list.iter().map(|field| (self.name(field), self.value(field)))
    }

    /// Every field with its kind, in order.
    pub fn iter_known(&self) -> impl Iterator<Item = (Known, &[u8], &[u8])> {
        self.list.iter().map(|field| (field.known, self.name(field), self.value(field)))
    }

    /// The first value of `name` (any case).
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.list.iter().find(|field| self.is_named(field, name.as_bytes())).map(|field| self.value(field))
    }

    /// All values of `name` (any case), in order.
    pub fn get_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.list.iter().filter(move |field| self.is_named(field, name.as_bytes())).map(|field| self.value(field))
    }

    /// All values of a known field, in order: cheaper than by name.
    pub fn known(&self, known: Known) -> impl Iterator<Item = &[u8]> {
        self.list.iter().filter(move |field| field.known == known).map(|field| self.value(field))
    }

    /// How many fields there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Adds a field at the end. Fails on bytes that a name or value may not have, and on the codec's own fields
    /// (Content-Length, Transfer-Encoding, Connection), and on a second or malformed Host.
    pub fn append(&mut self, name: &[u8], value: &[u8]) -> Result<(), Reject> {
        check(name, value)?;
        if Known::of(name) == Known::Host && self.has(Known::Host) {
            return Err(Reject::HostDuplicate);
        }
        self.push(name, value);
        Ok(())
    }

    /// Replaces all fields of that name by one, at the place of the first, else at the end. Fails as [`Fields::append`] does.
    pub fn set(&mut self, name: &[u8], value: &[u8]) -> Result<(), Reject> {
        check(name, value)?;
        self.put(name, value);
        Ok(())
    }

    /// Removes all fields of that name (any case) and says how many there were. The codec's own fields stay.
    pub fn remove(&mut self, name: &str) -> usize {
        if Known::of(name.as_bytes()).is_codecs() {
            return 0;
        }
        self.remove_named(name.as_bytes())
    }

    pub(super) fn remove_named(&mut self, name: &[u8]) -> usize {
        let before = self.list.len();
        let bytes = &self.bytes;
        self.list.retain(|field| !bytes[field.start as usize..][..field.name_len as usize].eq_ignore_ascii_case(name));
        before - self.list.len()
    }

    pub(super) fn remove_known(&mut self, known: Known) -> usize {
        self.remove_if(|k| k == known)
    }

    pub(super) fn remove_if(&mut self, mut remove: impl FnMut(Known) -> bool) -> usize {
        let before = self.list.len();
        self.list.retain(|field| !remove(field.known));
        before - self.list.len()
    }

    pub(super) fn has(&self, known: Known) -> bool {
        self.list.iter().any(|field| field.known == known)
    }

    /// Adds a field whose bytes are known to be good.
    pub(super) fn push(&mut self, name: &[u8], value: &[u8]) {
        let field = self.store(name, value);
        self.list.push(field);
    }

    /// [`Fields::push`] for translation.
    pub(crate) fn push_checked(&mut self, name: &[u8], value: &[u8]) {
        self.push(name, value);
    }

    /// Replaces or adds a field whose bytes are known to be good.
    pub(super) fn put(&mut self, name: &[u8], value: &[u8]) {
        let field = self.store(name, value);
        let first = self.list.iter().position(|old| self.is_named(old, name));
        self.remove_named(name);
        self.list.insert(first.unwrap_or(self.list.len()), field);
    }

    /// Keeps the buffers, unless they grew large.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(BYTES_KEPT_MAX);
        self.list.clear();
        self.list.shrink_to(FIELDS_KEPT_MAX);
    }

    /// Bytes of memory held.
    pub(super) fn capacity_bytes(&self) -> usize {
        self.bytes.capacity() + self.list.capacity() * size_of::<Field>()
    }

    /// Writes all field lines and the empty line behind them. `run` is what may be copied before the first: a start line, or nothing.
    pub(super) fn write(&self, mut run: Range<usize>, out: &mut impl BufMut) {
        for field in &self.list {
            let line = field.start as usize..field.end as usize;
            if !field.canonical {
                out.put_slice(&self.bytes[run]);
                run = 0..0;
                out.put_slice(self.name(field));
                out.put_slice(if field.value_len == 0 { b":" } else { b": " });
                out.put_slice(self.value(field));
                out.put_slice(b"\r\n");
            } else if line.start == run.end {
                run.end = line.end;
            } else {
                out.put_slice(&self.bytes[run]);
                run = line;
            }
        }
        out.put_slice(&self.bytes[run]);
        out.put_slice(b"\r\n");
    }

    #[inline]
    fn name(&self, field: &Field) -> &[u8] {
        &self.bytes[field.start as usize..][..field.name_len as usize]
    }

    #[inline]
    fn value(&self, field: &Field) -> &[u8] {
        &self.bytes[field.value_start as usize..][..field.value_len as usize]
    }

    fn is_named(&self, field: &Field, name: &[u8]) -> bool {
        self.name(field).eq_ignore_ascii_case(name)
    }

    fn store(&mut self, name: &[u8], value: &[u8]) -> Field {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(if value.is_empty() { b":" } else { b": " });
        let value_start = self.bytes.len();
        self.bytes.extend_from_slice(value);
        self.bytes.extend_from_slice(b"\r\n");
        Field {
            start: start as u32,
            name_len: name.len() as u32,
            value_start: value_start as u32,
            value_len: value.len() as u32,
            end: self.bytes.len() as u32,
            known: Known::of(name),
            canonical: true,
        }
    }
}

fn check(name: &[u8], value: &[u8]) -> Result<(), Reject> {
    if !syntax::is_token(name) {
        return Err(Reject::FieldName);
    }
    if !syntax::is_text(value) || syntax::trim(value).len() != value.len() {
        return Err(Reject::FieldValue);
    }
    if Known::of(name).is_codecs() {
        return Err(Reject::FramingForbidden);
    }
    if Known::of(name) == Known::Host && HostPort::parse(value).is_none() {
        return Err(Reject::HostInvalid);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(fields: &Fields) -> String {
        let mut out = Vec::new();
        fields.write(0..0, &mut out);
        out.truncate(out.len() - 2);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn edits_keep_order_and_case() {
        let mut fields = Fields::default();
        for (name, value) in [("A", "1"), ("b", "2"), ("a", "3"), ("C", "")] {
            fields.append(name.as_bytes(), value.as_bytes()).unwrap();
        }
        assert_eq!(written(&fields), "A: 1\r\nb: 2\r\na: 3\r\nC:\r\n");
        assert_eq!(fields.get("B"), Some(&b"2"[..]));
        assert_eq!(fields.get_all("a").collect::<Vec<_>>(), [b"1", b"3"]);
        fields.set(b"A", b"9").unwrap();
        assert_eq!(written(&fields), "A: 9\r\nb: 2\r\nC:\r\n");
        assert_eq!(fields.remove("c"), 1);
        fields.set(b"d", b"4").unwrap();
        assert_eq!(written(&fields), "A: 9\r\nb: 2\r\nd: 4\r\n");
    }

    #[test]
    fn edits_can_neither_split_nor_reframe_a_message() {
        let mut fields = Fields::default();
        fields.push(b"Content-Length", b"5");
        for (name, value, rule) in [
            ("a", "1\r\nb: 2", Reject::FieldValue),
            ("a", "1\0", Reject::FieldValue),
            ("a", " 1", Reject::FieldValue),
            ("a:", "1", Reject::FieldName),
            ("", "1", Reject::FieldName),
            ("content-length", "1", Reject::FramingForbidden),
            ("Transfer-Encoding", "chunked", Reject::FramingForbidden),
            ("connection", "close", Reject::FramingForbidden),
        ] {
            assert_eq!(fields.append(name.as_bytes(), value.as_bytes()), Err(rule), "{name}: {value}");
            assert_eq!(fields.set(name.as_bytes(), value.as_bytes()), Err(rule), "{name}: {value}");
        }
        assert_eq!(fields.remove("Content-Length"), 0);
        assert_eq!(written(&fields), "Content-Length: 5\r\n");
    }

    #[test]
    fn known_names_in_any_case() {
        for (name, known) in [
            ("hOsT", Known::Host),
            ("Content-LENGTH", Known::ContentLength),
            ("transfer-encoding", Known::TransferEncoding),
            ("TE", Known::Te),
            ("X-Heddle-Reason", Known::Heddle),
            ("x_heddle_reason", Known::Heddle),
            ("X-Heddle-", Known::Heddle),
            ("x-heddl", Known::Other),
            ("hast", Known::Other),
            ("content_length", Known::Other),
        ] {
            assert_eq!(Known::of(name.as_bytes()), known, "{name}");
        }
    }
}
