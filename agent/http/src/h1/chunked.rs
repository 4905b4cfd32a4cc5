//! The chunked coding (RFC 9112 §7.1), byte by byte where it is framing and run by run where it is data.

use super::body::Decoded;
use super::fields::{Fields, Known};
use super::parse::{Scanner, field_line};
use crate::syntax::{self, TEXT, TOKEN};
use crate::{Limits, Reject};

/// Decodes one chunked body.
#[derive(Debug)]
pub(super) struct ChunkedDecoder {
    state: State,
    /// Of the size line being read, then what is left of the chunk.
    size: u64,
    /// Bytes of the size line so far.
    line_bytes: usize,
    /// Bytes of extensions so far, of all chunks.
    extension_bytes: usize,
    /// The trailer section as far as it came.
    trailers: Fields,
    scanner: Scanner,
    limits: ChunkLimits,
}

#[derive(Debug)]
struct ChunkLimits {
    line_bytes_max: usize,
    extension_bytes_max: usize,
    trailer_bytes_max: usize,
    trailer_fields_max: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before the first digit.
    SizeFirst,
    /// Behind a digit.
    Size,
    /// Behind size or extension and a blank: only `;` may come.
    Blank,
    /// Behind `;`.
    NameFirst,
    Name,
    /// Behind a name and a blank: `=` or `;`.
    NameBlank,
    /// Behind `=`.
    ValueFirst,
    Value,
    Quoted,
    Escaped,
    /// Behind a quoted value.
    ValueEnd,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// At the first byte behind the last chunk.
    TrailerFirst,
    /// The LF that ends the body without trailers.
    LastLf,
    Trailer,
    Done,
}

impl ChunkedDecoder {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            state: State::SizeFirst,
            size: 0,
            line_bytes: 0,
            extension_bytes: 0,
            trailers: Fields::default(),
            scanner: Scanner::default(),
            limits: ChunkLimits {
                line_bytes_max: limits.chunk_line_bytes_max,
                extension_bytes_max: limits.chunk_extension_bytes_max,
                trailer_bytes_max: limits.trailer_bytes_max,
                trailer_fields_max: limits.trailer_fields_max,
            },
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    pub(super) fn trailers(&self) -> Option<&Fields> {
        (self.is_done() && !self.trailers.is_empty()).then_some(&self.trailers)
    }

    pub(super) fn take_trailers(&mut self) -> Option<Fields> {
        (self.is_done() && !self.trailers.is_empty()).then(|| std::mem::take(&mut self.trailers))
    }

    /// Framing, one run of data, and the framing behind it: a buffer that holds a whole short body needs one call.
    pub(super) fn decode(&mut self, buffer: &[u8]) -> Result<Decoded, Reject> {
        let mut data = 0..0;
        let mut at = 0;
        while at < buffer.len() {
            match self.state {
                State::Done => break,
                State::Data if !data.is_empty() => break,
                State::Data => {
                    let len = usize::try_from(self.size).unwrap_or(usize::MAX).min(buffer.len() - at);
                    data = at..at + len;
                    at += len;
                    self.size -= len as u64;
                    if self.size == 0 {
                        self.state = State::DataCr;
                    }
                }
                State::Trailer => at += self.trailer(&buffer[at..])?,
                _ => {
                    self.framing(buffer[at])?;
                    // The first byte of a trailer section is read again as part of it.
                    at += usize::from(self.state != State::Trailer);
                }
            }
        }
        Ok(Decoded { data, consumed: at, done: self.is_done() })
    }

    fn framing(&mut self, byte: u8) -> Result<(), Reject> {
        self.state = match (self.state, byte) {
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::SizeFirst,
            (State::DataCr | State::DataLf, _) => return Err(Reject::ChunkEnd),
            (State::TrailerFirst, b'\r') => State::LastLf,
            (State::TrailerFirst, _) => {
                self.scanner = Scanner::default();
                State::Trailer
            }
            (State::LastLf, b'\n') => State::Done,
            (State::LastLf, _) => return Err(Reject::BareCr),
            _ => self.size_line(byte)?,
        };
        Ok(())
    }

    /// `1*HEXDIG *( BWS ";" BWS token [ BWS "=" BWS ( token / quoted-string ) ] ) CRLF`
    fn size_line(&mut self, byte: u8) -> Result<State, Reject> {
        if !matches!(self.state, State::SizeFirst | State::Size | State::SizeLf) {
            self.extension_bytes += 1;
            if self.extension_bytes > self.limits.extension_bytes_max {
                return Err(Reject::ChunkExtension);
            }
        }
        self.line_bytes += 1;
        if self.line_bytes > self.limits.line_bytes_max {
            return Err(Reject::ChunkExtension);
        }
        Ok(match (self.state, byte) {
            (State::SizeFirst, _) => {
                self.line_bytes = 1;
                self.size = u64::from(hex(byte).ok_or(Reject::ChunkSize)?);
                State::Size
            }
            (State::SizeLf, b'\n') => match self.size {
                0 => State::TrailerFirst,
                _ => State::Data,
            },
            (State::SizeLf, _) => return Err(Reject::BareCr),
            (_, b'\n') => return Err(Reject::BareLf),
            (State::Size | State::Name | State::Value | State::ValueEnd, b'\r') => State::SizeLf,
            (State::Size | State::Name | State::Value | State::ValueEnd, b';')
            | (State::Blank | State::NameBlank, b';') => State::NameFirst,
            (State::Size | State::Value | State::ValueEnd | State::Blank, b' ' | b'\t') => State::Blank,
            (State::Size, _) => {
                let digit = u64::from(hex(byte).ok_or(Reject::ChunkSize)?);
                if self.size >= 1 << 59 {
                    return Err(Reject::ChunkSizeOverflow);
                }
                self.size = self.size << 4 | digit;
                State::Size
            }
            // `5 \r\n`: what stands behind the blank decides whether it is the size or an extension that is wrong.
            (State::Blank, _) => return Err(Reject::ChunkSize),
            (State::NameFirst, b' ' | b'\t') => State::NameFirst,
            (State::NameFirst | State::Name, _) if syntax::is(byte, TOKEN) => State::Name,
            (State::Name, b' ' | b'\t') => State::NameBlank,
            (State::NameBlank, b' ' | b'\t') => State::NameBlank,
            (State::Name | State::NameBlank, b'=') => State::ValueFirst,
            (State::ValueFirst, b' ' | b'\t') => State::ValueFirst,
            (State::ValueFirst, b'"') => State::Quoted,
            (State::ValueFirst | State::Value, _) if syntax::is(byte, TOKEN) => State::Value,
            (State::Quoted, b'"') => State::ValueEnd,
            (State::Quoted, b'\\') => State::Escaped,
            (State::Quoted | State::Escaped, _) if syntax::is(byte, TEXT) => State::Quoted,
            _ => return Err(Reject::ChunkExtension),
        })
    }

    /// Takes bytes of the trailer section; its buffer is the decoder's own, so that the caller keeps none.
    fn trailer(&mut self, bytes: &[u8]) -> Result<usize, Reject> {
        // Line by line: what stands behind the empty line is not ours to take.
        let mut taken = 0;
        while taken < bytes.len() {
            let rest = &bytes[taken..];
            let len = memchr::memchr(b'\n', rest).map_or(rest.len(), |lf| lf + 1);
            let room = self.limits.trailer_bytes_max.saturating_sub(self.trailers.bytes.len());
            self.trailers.bytes.extend_from_slice(&rest[..len.min(room)]);
            taken += len;
            let line =
                self.scanner.next(&self.trailers.bytes, self.limits.trailer_bytes_max, Reject::TrailerTooLarge)?;
            let Some(line) = line else { continue };
            if line.start == line.end {
                self.trailers.remove_known(Known::Heddle);
                self.state = State::Done;
                break;
            }
            if self.trailers.list.len() >= self.limits.trailer_fields_max {
                return Err(Reject::TrailerTooLarge);
            }
            let field = field_line(&self.trailers.bytes, line, 0)?;
            if !may_trail(field.known) {
                return Err(Reject::TrailerForbidden);
            }
            self.trailers.list.push(field);
        }
        Ok(taken)
    }
}

/// Whether a field may stand in a trailer section: not what frames or routes the message, or says who sent it (RFC 9110 §6.5.1).
pub(crate) fn may_trail(known: Known) -> bool {
    matches!(known, Known::Other | Known::Heddle | Known::ContentType)
}

fn hex(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}
