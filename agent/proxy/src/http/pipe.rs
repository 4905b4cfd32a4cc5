//! One message in one direction: decoded out of one side's inbox, framed anew, written to the other side without copying the
//! body. What is written is at most what one inbox holds: a slow reader stops the reading at the other side.

use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};

use heddle_http::Reject;
use heddle_http::h1::{BodyDecoder, BodyEncoder, Fields};
use heddle_telemetry::Reason;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::inbox::{Filled, Inbox};
use super::record::Messages;
use crate::copy::not_ready;
use crate::registry::Conn;

/// Pieces written by one system call.
const PIECES_MAX: usize = 16;

/// A run of bytes to write: of the framing, or of the inbox.
#[derive(Clone, Copy, Default)]
struct Piece {
    start: usize,
    end: usize,
    is_framing: bool,
}

/// Why a direction broke.
#[derive(Debug)]
pub(crate) enum Broken {
    /// Reading failed.
    Source(io::Error),
    /// The source ended inside the message.
    Truncated,
    /// Writing failed.
    Sink(io::Error),
    /// The message broke a rule.
    Rule(Reject),
    /// Not even a small buffer was left.
    NoRoom,
}

impl Broken {
    pub(crate) const fn no_room() -> Reason {
        Reason::PodBufferedBytesMax
    }
}

/// One direction of an exchange.
pub(crate) struct Pipe {
    decoder: BodyDecoder,
    encoder: BodyEncoder,
    /// Head and framing to write.
    framing: Vec<u8>,
    pieces: [Piece; PIECES_MAX],
    /// Pieces written, pieces there are.
    at: usize,
    count: usize,
    /// Bytes of the inbox the pieces stand for.
    used: usize,
    ended: bool,
    /// Body bytes carried.
    pub(crate) bytes: u64,
    /// Whether any byte was written.
    pub(crate) begun: bool,
    pub(crate) messages: Messages,
}

impl Pipe {
    /// Sends `head` and then a body as it comes. `framing` holds the head.
    pub(crate) fn new(framing: Vec<u8>, decoder: BodyDecoder, encoder: BodyEncoder, messages: Messages) -> Self {
        let mut pipe = Self {
            decoder,
            encoder,
            framing,
            pieces: [Piece::default(); PIECES_MAX],
            at: 0,
            count: 0,
            used: 0,
            ended: false,
            bytes: 0,
            begun: false,
            messages,
        };
        pipe.push_framing(0);
        pipe
    }

    /// Whether all of it is written.
    pub(crate) fn is_done(&self) -> bool {
        self.ended && self.at == self.count
    }

    /// Whether it waits for the one it writes to, not for the one it reads from.
    pub(crate) fn is_held_up(&self) -> bool {
        self.at < self.count
    }

    /// The trailers, once the message is complete.
    pub(crate) fn trailers(&self) -> Option<&Fields> {
        self.decoder.trailers()
    }

    /// Gives the framing buffer back.
    pub(crate) fn into_framing(self) -> Vec<u8> {
        self.framing
    }

    /// Ready when the whole message was written, or broke.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        conn: &Conn,
        source: &TcpStream,
        inbox: &mut Inbox,
        sink: &TcpStream,
        allowance: &mut usize,
    ) -> Poll<Result<(), Broken>> {
        loop {
            if !self.ended {
                self.gather(inbox).map_err(Broken::Rule)?;
            }
            let gathered = self.at < self.count;
            ready!(self.poll_flush(cx, inbox, sink))?;
            if self.ended {
                return Poll::Ready(Ok(()));
            }
            if gathered {
                continue;
            }
            if *allowance == 0 {
                inbox.release();
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            match ready!(inbox.poll_fill(cx, conn, source)).map_err(Broken::Source)? {
                Filled::Bytes(count) => *allowance = allowance.saturating_sub(count),
                Filled::End => {
                    self.decoder.finish().map_err(|_| Broken::Truncated)?;
                    self.end().map_err(Broken::Rule)?;
                }
                Filled::NoRoom => return Poll::Ready(Err(Broken::NoRoom)),
            }
        }
    }

    /// Decodes what the inbox holds behind what is gathered already, until there are no more pieces to be had.
    fn gather(&mut self, inbox: &Inbox) -> Result<(), Reject> {
        if self.at == self.count {
            (self.at, self.count) = (0, 0);
            self.framing.clear();
        } else if self.at > 0 {
            return Ok(());
        }
        // A chunk takes three pieces, the end one more.
        while !self.ended && self.count + 4 <= PIECES_MAX {
            let bytes = inbox.bytes();
            let found = self.decoder.decode(&bytes[self.used..])?;
            if !found.data.is_empty() {
                let length = found.data.len();
                let around = self.encoder.data(length)?;
                self.add_framing(around.before());
                let start = self.used + found.data.start;
                self.push(Piece { start, end: start + length, is_framing: false });
                self.add_framing(around.after());
                self.bytes += length as u64;
                self.messages.read(&bytes[start..start + length]);
            }
            self.used += found.consumed;
            if found.done {
                self.end()?;
            } else if found.consumed == 0 {
                break;
            }
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), Reject> {
        if self.at == self.count {
            (self.at, self.count) = (0, 0);
            self.framing.clear();
        }
        let before = self.framing.len();
        self.encoder.end(self.decoder.trailers(), &mut self.framing)?;
        self.push_framing(before);
        self.ended = true;
        Ok(())
    }

    fn add_framing(&mut self, bytes: &[u8]) {
        let before = self.framing.len();
        self.framing.extend_from_slice(bytes);
        self.push_framing(before);
    }

    /// The framing written from `before` on is to be sent now.
    fn push_framing(&mut self, before: usize) {
        let end = self.framing.len();
        if before == end {
            return;
        }
        match self.count.checked_sub(1).map(|last| &mut self.pieces[last]) {
            Some(last) if last.is_framing && last.end == before => last.end = end,
            _ => self.push(Piece { start: before, end, is_framing: true }),
        }
    }

    fn push(&mut self, piece: Piece) {
        self.pieces[self.count] = piece;
        self.count += 1;
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>, inbox: &mut Inbox, sink: &TcpStream) -> Poll<Result<(), Broken>> {
        while self.at < self.count {
            ready!(sink.poll_write_ready(cx)).map_err(Broken::Sink)?;
            let (bytes, pieces) = (inbox.bytes(), &self.pieces[self.at..self.count]);
            let slice = |p: &Piece| if p.is_framing { &self.framing[p.start..p.end] } else { &bytes[p.start..p.end] };
            let total: usize = pieces.iter().map(|p| p.end - p.start).sum();
            let written = match pieces {
                [one] => sink.try_write(slice(one)),
                many => {
                    let mut slices = [IoSlice::new(&[]); PIECES_MAX];
                    for (to, piece) in slices.iter_mut().zip(many) {
                        *to = IoSlice::new(slice(piece));
                    }
                    sink.try_write_vectored(&slices[..many.len()])
                }
            };
            match written {
                Ok(count) => {
                    self.begun |= count > 0;
                    if count < total {
                        not_ready(sink, Interest::WRITABLE);
                    }
                    self.advance(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(Broken::Sink(error))),
            }
        }
        inbox.consume(std::mem::take(&mut self.used));
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, mut count: usize) {
        while count > 0 && self.at < self.count {
            let piece = &mut self.pieces[self.at];
            let step = count.min(piece.end - piece.start);
            piece.start += step;
            count -= step;
            if piece.start == piece.end {
                self.at += 1;
            }
        }
    }
}
