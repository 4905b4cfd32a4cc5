//! Bodies: decoders that point into the caller's buffer, encoders that write framing only.

use std::ops::Range;

use super::Fields;
use crate::{Limits, Reject};

/// How a body is framed (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// None: also what Content-Length: 0 means, and what HEAD, 204, 304 have whatever their fields say.
    Empty,
    /// Content-Length, more than 0.
    Length(u64),
    /// Transfer-Encoding: chunked.
    Chunked,
    /// Until the server closes (responses only).
    UntilClose,
    /// Not HTTP any more: 101, or 2xx to CONNECT. Both directions are opaque from here.
    Tunnel,
}

/// What the front of a buffer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Body bytes, as a range of the buffer that was passed in; may be empty.
    pub data: Range<usize>,
    /// Bytes to drop from the front once `data` is used: framing and data.
    pub consumed: usize,
    /// The body is complete (trailers included); nothing behind `consumed` belongs to it.
    pub done: bool,
}

/// Decodes one body.
#[derive(Debug)]
pub struct BodyDecoder {}

impl BodyDecoder {
    /// A decoder for this framing.
    pub fn new(body: Body, limits: &Limits) -> Self { todo!() }
    /// Looks at the front of `buffer`. One call yields at most one run of data (one chunk's part); call again while it consumes
    /// or yields. `consumed == 0 && !done` means: more bytes are needed. Framing that is split over reads is consumed piecewise: the
    /// decoder never asks to keep bytes, except inside a trailer section (bounded by its limit).
    pub fn decode(&mut self, buffer: &[u8]) -> Result<Decoded, Reject> { todo!() }
    /// The peer closed: `Ok` where that is how the body ends, `BodyIncomplete` otherwise.
    pub fn finish(&mut self) -> Result<(), Reject> { todo!() }
    /// Whether the body is complete.
    pub fn is_done(&self) -> bool { todo!() }
    /// Bytes that are known to be left: `Length` only.
    pub fn remaining(&self) -> Option<u64> { todo!() }
    /// The trailer section, once `done`, if there was one.
    pub fn trailers(&self) -> Option<&Fields> { todo!() }
    /// Takes the trailer section to edit or to translate.
    pub fn take_trailers(&mut self) -> Option<Fields> { todo!() }
}

/// A chunk's size line, made on the stack: `size CRLF`, preceded by the CRLF that ends the chunk before.
#[derive(Clone, Copy, Debug)]
pub struct ChunkLine {}

impl AsRef<[u8]> for ChunkLine {
    fn as_ref(&self) -> &[u8] { todo!() }
}

/// Writes the framing of one body. The data itself goes out by the caller, vectored or copied.
#[derive(Debug)]
pub struct BodyEncoder {}

impl BodyEncoder {
    /// An encoder for this framing.
    pub fn new(body: Body) -> Self { todo!() }
    /// What to write before `len` bytes of data (nothing for anything but chunked). `BodyTooLong` if a declared length does not hold them.
    pub fn data(&mut self, len: usize) -> Result<ChunkLine, Reject> { todo!() }
    /// What to write at the end: the last chunk and trailers. `BodyIncomplete` if a declared length was not reached: then the
    /// connection must be reset. Trailers are dropped where the framing has no place for them.
    pub fn end(&mut self, trailers: Option<&Fields>, out: &mut impl bytes::BufMut) -> Result<(), Reject> { todo!() }
    /// Whether the end of the body is the end of the connection.
    pub fn ends_by_close(&self) -> bool { todo!() }
}
