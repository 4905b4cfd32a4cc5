//! What request, response and trailer parsing share: lines and field lines. A parser keeps its place between reads, and its verdict
//! does not depend on how the input was split.

use memchr::memchr;

use super::fields::{Field, Known};
use crate::Reject;
use crate::syntax::{self, TOKEN};

/// How far a parser came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More bytes are needed; call again with the same bytes and more behind them.
    NeedMore,
    /// The head is complete and took this many bytes from the front.
    Complete {
        /// Bytes to drop from the front of the buffer; the body begins behind them.
        consumed: usize,
    },
}

/// Finds lines. Never looks at a byte twice, so that a head sent byte by byte costs no more than one sent whole.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Scanner {
    /// Where the message begins: behind ignored empty lines.
    pub(super) begin: usize,
    /// Where the line that is not complete yet begins.
    pub(super) line: usize,
    /// Bytes known to hold no end of that line.
    scanned: usize,
}

/// One line, without its CRLF.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    pub(super) start: usize,
    pub(super) end: usize,
}

impl Scanner {
    pub(super) fn at(begin: usize) -> Self {
        Self { begin, line: begin, scanned: begin }
    }

    /// The next complete line. Its LF must stand before `limit`, or `beyond` is the verdict.
    #[inline]
    pub(super) fn next(&mut self, buffer: &[u8], limit: usize, beyond: Reject) -> Result<Option<Line>, Reject> {
        let Some(found) = memchr(b'\n', &buffer[self.scanned..]) else {
            self.scanned = buffer.len();
            return if buffer.len() >= limit { Err(beyond) } else { Ok(None) };
        };
        let lf = self.scanned + found;
        if lf >= limit {
            return Err(beyond);
        }
        if lf == self.line || buffer[lf - 1] != b'\r' {
            return Err(Reject::BareLf);
        }
        let line = Line { start: self.line, end: lf - 1 };
        self.line = lf + 1;
        self.scanned = lf + 1;
        Ok(Some(line))
    }
}

/// Parses `name ":" OWS value OWS`. Offsets are relative to `base`.
#[inline]
pub(super) fn field_line(buffer: &[u8], line: Line, base: usize) -> Result<Field, Reject> {
    let bytes = &buffer[line.start..line.end];
    let mut name_len = 0;
    while name_len < bytes.len() && syntax::is(bytes[name_len], TOKEN) {
        name_len += 1;
    }
    if name_len == 0 || bytes.get(name_len) != Some(&b':') {
        return Err(bad_name(bytes, name_len));
    }
    let rest = &bytes[name_len + 1..];
    let value = syntax::trim(rest);
    if !syntax::is_text(value) {
        return Err(if memchr(b'\r', value).is_some() { Reject::BareCr } else { Reject::FieldValue });
    }
    let leading = rest.iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
    let canonical = match value.len() {
        0 => rest.is_empty(),
        len => leading == 1 && rest[0] == b' ' && rest.len() == len + 1,
    };
    let start = line.start - base;
    Ok(Field {
        start: start as u32,
        name_len: name_len as u32,
        value_start: (start + name_len + 1 + leading) as u32,
        value_len: value.len() as u32,
        end: (line.end + 2 - base) as u32,
        known: Known::of(&bytes[..name_len]),
        canonical,
    })
}

/// The rule that a field line broke whose name did not parse.
#[cold]
fn bad_name(line: &[u8], name_len: usize) -> Reject {
    if memchr(b'\r', line).is_some() {
        return Reject::BareCr;
    }
    match line.get(name_len) {
        Some(b' ' | b'\t') if name_len == 0 => Reject::ObsFold,
        Some(b' ' | b'\t') if syntax::trim(&line[name_len..]).first() == Some(&b':') => Reject::SpaceBeforeColon,
        Some(b':') | None => Reject::FieldLine,
        Some(_) if memchr(b':', line).is_none() => Reject::FieldLine,
        Some(_) => Reject::FieldName,
    }
}
