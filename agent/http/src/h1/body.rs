//! Bodies: decoders that point into the caller's buffer, encoders that write framing only.

use std::ops::Range;

use bytes::BufMut;

use super::Fields;
use super::chunked::ChunkedDecoder;
use super::fields::Known;
use crate::{Limits, Reject};

/// How a body is framed (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Body {
    /// None: also what Content-Length: 0 means, and what HEAD, 204, 304 have whatever their fields say.
    #[default]
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
pub struct BodyDecoder {
    state: Decoder,
}

#[derive(Debug)]
enum Decoder {
    Done,
    Length(u64),
    // Few bodies are chunked; an idle connection should not pay for the largest state.
    Chunked(Box<ChunkedDecoder>),
    UntilClose,
}

impl BodyDecoder {
    /// A decoder for this framing. A tunnel is everything until the close.
    #[must_use]
    pub fn new(body: Body, limits: &Limits) -> Self {
        let state = match body {
            Body::Empty | Body::Length(0) => Decoder::Done,
            Body::Length(length) => Decoder::Length(length),
            Body::Chunked => Decoder::Chunked(Box::new(ChunkedDecoder::new(limits))),
            Body::UntilClose | Body::Tunnel => Decoder::UntilClose,
        };
        Self { state }
    }

    /// Looks at the front of `buffer`. One call yields at most one run of data (of one chunk); call again while it consumes.
    /// `consumed == 0 && !done` means: more bytes are needed. Framing that is split over reads is consumed piecewise: the decoder
    /// never asks to keep bytes.
    pub fn decode(&mut self, buffer: &[u8]) -> Result<Decoded, Reject> {
        match &mut self.state {
            Decoder::Done => Ok(Decoded { data: 0..0, consumed: 0, done: true }),
            Decoder::Length(left) => {
                let len = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
                *left -= len as u64;
                let done = *left == 0;
                if done {
                    self.state = Decoder::Done;
                }
                Ok(Decoded { data: 0..len, consumed: len, done })
            }
            Decoder::Chunked(chunked) => chunked.decode(buffer),
            Decoder::UntilClose => Ok(Decoded { data: 0..buffer.len(), consumed: buffer.len(), done: false }),
        }
    }

    /// The peer closed: `Ok` where the body is complete or ends that way, [`Reject::BodyIncomplete`] otherwise.
    pub fn finish(&mut self) -> Result<(), Reject> {
        match &self.state {
            Decoder::UntilClose => {
                self.state = Decoder::Done;
                Ok(())
            }
            _ if self.is_done() => Ok(()),
            _ => Err(Reject::BodyIncomplete),
        }
    }

    /// Whether the body is complete.
    #[must_use]
    pub fn is_done(&self) -> bool {
        match &self.state {
            Decoder::Done => true,
            Decoder::Chunked(chunked) => chunked.is_done(),
            Decoder::Length(_) | Decoder::UntilClose => false,
        }
    }

    /// The trailer section, once the body is done, if there was one that was not empty.
    #[must_use]
    pub fn trailers(&self) -> Option<&Fields> {
        match &self.state {
            Decoder::Chunked(chunked) => chunked.trailers(),
            _ => None,
        }
    }

    /// Takes the trailer section to edit or to translate.
    pub fn take_trailers(&mut self) -> Option<Fields> {
        match &mut self.state {
            Decoder::Chunked(chunked) => chunked.take_trailers(),
            _ => None,
        }
    }
}

/// What goes around one run of data: `size CRLF` and `CRLF` for chunked, nothing otherwise. Made on the stack.
#[derive(Clone, Copy, Debug)]
pub struct ChunkFraming {
    line: [u8; 18],
    start: u8,
    after: &'static [u8],
}

impl ChunkFraming {
    const NONE: Self = Self { line: [0; 18], start: 18, after: b"" };

    fn of(len: usize) -> Self {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut line = [0; 18];
        line[16] = b'\r';
        line[17] = b'\n';
        let mut start = 16;
        let mut rest = len;
        loop {
            start -= 1;
            line[start] = HEX[rest & 15];
            rest >>= 4;
            if rest == 0 {
                break;
            }
        }
        Self { line, start: start as u8, after: b"\r\n" }
    }

    /// To be written before the data.
    #[must_use]
    pub fn before(&self) -> &[u8] {
        &self.line[self.start as usize..]
    }

    /// To be written behind the data.
    #[must_use]
    pub fn after(&self) -> &'static [u8] {
        self.after
    }
}

/// Writes the framing of one body. The data itself goes out by the caller, vectored or copied.
#[derive(Clone, Copy, Debug)]
pub struct BodyEncoder {
    body: Body,
    ended: bool,
}

impl BodyEncoder {
    /// An encoder for this framing.
    #[must_use]
    pub fn new(body: Body) -> Self {
        Self { body, ended: false }
    }

    /// What to write around `len` bytes of data. [`Reject::BodyTooLong`] if the framing does not hold them: nothing of them may be sent.
    pub fn data(&mut self, len: usize) -> Result<ChunkFraming, Reject> {
        match &mut self.body {
            // An empty chunk would end the body.
            _ if len == 0 => Ok(ChunkFraming::NONE),
            _ if self.ended => Err(Reject::BodyTooLong),
            Body::Empty => Err(Reject::BodyTooLong),
            Body::Length(left) => {
                *left = left.checked_sub(len as u64).ok_or(Reject::BodyTooLong)?;
                Ok(ChunkFraming::NONE)
            }
            Body::Chunked => Ok(ChunkFraming::of(len)),
            Body::UntilClose | Body::Tunnel => Ok(ChunkFraming::NONE),
        }
    }

    /// [`BodyEncoder::data`] with the data copied: for small bodies.
    pub fn copy(&mut self, data: &[u8], out: &mut impl BufMut) -> Result<(), Reject> {
        let framing = self.data(data.len())?;
        out.put_slice(framing.before());
        out.put_slice(data);
        out.put_slice(framing.after());
        Ok(())
    }

    /// What to write at the end: the last chunk and the trailers. [`Reject::BodyIncomplete`] if a declared length was not reached: then
    /// the connection must be reset. Trailers are dropped where the framing has no place for them; of the agents' own none is sent.
    pub fn end(&mut self, trailers: Option<&Fields>, out: &mut impl BufMut) -> Result<(), Reject> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        match self.body {
            Body::Length(left) if left > 0 => Err(Reject::BodyIncomplete),
            Body::Chunked => {
                out.put_slice(b"0\r\n");
                for (known, name, value) in trailers.into_iter().flat_map(Fields::iter_known) {
                    if known != Known::Heddle {
                        out.put_slice(name);
                        out.put_slice(b": ");
                        out.put_slice(value);
                        out.put_slice(b"\r\n");
                    }
                }
                out.put_slice(b"\r\n");
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
