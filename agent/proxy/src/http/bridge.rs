//! A body between a socket and a stream of HTTP/2, one direction each: [`ToStream`] for what comes off a socket, [`ToSocket`] for
//! what comes off a stream. The stream's window and the socket's buffer hold each other back: at most one inbox is read ahead
//! of a closed window, and a sender's window is opened only by what its receiver took.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use heddle_http::h1::{BodyDecoder, BodyEncoder};
use heddle_http::{Reject, translate};
use http::HeaderMap;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::flow::{Incoming, Outgoing};
use super::inbox::{Filled, Inbox};
use super::record::{Messages, Record, grpc_status};
use crate::copy::not_ready;
use crate::registry::Conn;

/// Runs of data sent as one: many small chunks become one DATA frame.
const RUNS_MAX: usize = 16;

/// Why a direction broke.
#[derive(Debug)]
pub(crate) enum Broke {
    /// The socket failed.
    Socket(io::Error),
    /// The socket ended inside the message.
    Truncated,
    /// The stream was reset, or its connection is gone; `None` if it takes no more, and its other direction says why.
    Stream(Option<h2::Error>),
    /// The message broke a rule.
    Rule(Reject),
    /// Not even a small buffer was left.
    NoRoom,
}

/// A body off a socket, as DATA.
pub(crate) struct ToStream {
    decoder: BodyDecoder,
    /// Data in the inbox, decoded and not yet sent: `runs[at..count]`, `left` bytes.
    runs: [Range<usize>; RUNS_MAX],
    at: usize,
    count: usize,
    left: usize,
    /// Bytes of the inbox that the runs and their framing take.
    used: usize,
    trailers: Option<HeaderMap>,
    /// The message is decoded to its end.
    is_whole: bool,
    is_done: bool,
    /// Bytes of the message were taken out of the inbox for good.
    is_touched: bool,
    /// Body bytes sent.
    pub(crate) bytes: u64,
    pub(crate) messages: Messages,
}

impl ToStream {
    pub(crate) fn new(decoder: BodyDecoder, messages: Messages) -> Self {
        Self {
            is_whole: decoder.is_done(),
            decoder,
            runs: Default::default(),
            at: 0,
            count: 0,
            left: 0,
            used: 0,
            trailers: None,
            is_done: false,
            is_touched: false,
            bytes: 0,
            messages,
        }
    }

    /// Nothing is sent behind the message's head.
    pub(crate) fn ended(messages: Messages) -> Self {
        let decoder = BodyDecoder::new(heddle_http::h1::Body::Empty, &heddle_http::Limits::DEFAULT);
        Self { is_done: true, ..Self::new(decoder, messages) }
    }

    /// Whether all of it is sent.
    pub(crate) fn is_done(&self) -> bool {
        self.is_done
    }

    /// Whether the message can still be sent from its beginning.
    pub(crate) fn is_untouched(&self) -> bool {
        !self.is_touched
    }

    /// Whether it waits for the stream's window, not for the socket.
    pub(crate) fn is_held_up(&self) -> bool {
        self.left > 0
    }

    /// Ready when the whole message was sent, or broke.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        conn: &Conn,
        source: &TcpStream,
        inbox: &mut Inbox,
        sink: &mut Outgoing,
        allowance: &mut usize,
    ) -> Poll<Result<(), Broke>> {
        while !self.is_done {
            if !self.is_whole && self.left == 0 {
                self.gather(inbox).map_err(Broke::Rule)?;
            }
            let gathered = self.used > 0;
            ready!(self.poll_send(cx, inbox, sink))?;
            if gathered || self.is_done {
                continue;
            }
            if *allowance == 0 {
                inbox.release();
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            match ready!(inbox.poll_fill(cx, conn, source)).map_err(Broke::Socket)? {
                Filled::Bytes(count) => *allowance = allowance.saturating_sub(count),
                Filled::End => {
                    self.decoder.finish().map_err(|_| Broke::Truncated)?;
                    self.is_whole = true;
                }
                Filled::NoRoom => return Poll::Ready(Err(Broke::NoRoom)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Decodes what the inbox holds.
    fn gather(&mut self, inbox: &Inbox) -> Result<(), Reject> {
        (self.at, self.count) = (0, 0);
        while !self.is_whole && self.count < RUNS_MAX {
            let found = self.decoder.decode(&inbox.bytes()[self.used..])?;
            if !found.data.is_empty() {
                let run = self.used + found.data.start..self.used + found.data.end;
                self.messages.read(&inbox.bytes()[run.clone()]);
                self.left += run.len();
                self.runs[self.count] = run;
                self.count += 1;
            }
            self.used += found.consumed;
            if found.done {
                self.is_whole = true;
                self.trailers = self.decoder.take_trailers().map(|t| translate::trailers_to_h2(&t)).transpose()?;
            } else if found.consumed == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Sends what was gathered as the window allows, and the end behind it.
    fn poll_send(&mut self, cx: &mut Context<'_>, inbox: &mut Inbox, sink: &mut Outgoing) -> Poll<Result<(), Broke>> {
        while self.left > 0 {
            let Some(size) = ready!(sink.poll_capacity(cx, self.left)) else {
                return Poll::Ready(Err(Broke::Stream(None)));
            };
            let data = self.take(inbox, size);
            let is_last = self.is_whole && self.left == 0 && self.trailers.is_none();
            sink.send_data(data, is_last).map_err(|_| Broke::Stream(None))?;
            self.bytes += size as u64;
            self.is_done = is_last;
        }
        self.is_touched |= self.used > 0;
        inbox.consume(std::mem::take(&mut self.used));
        if self.is_whole && !self.is_done {
            let ended = match self.trailers.take() {
                Some(trailers) => sink.send_trailers(trailers),
                None => sink.send_data(Bytes::new(), true),
            };
            ended.map_err(|_| Broke::Stream(None))?;
            self.is_done = true;
        }
        Poll::Ready(Ok(()))
    }

    /// The next `size` bytes of data.
    fn take(&mut self, inbox: &Inbox, size: usize) -> Bytes {
        self.left -= size;
        let mut data = BytesMut::with_capacity(size);
        while data.len() < size {
            let run = &mut self.runs[self.at];
            let end = run.end.min(run.start + size - data.len());
            data.extend_from_slice(&inbox.bytes()[run.start..end]);
            run.start = end;
            self.at += usize::from(run.start == run.end);
        }
        data.freeze()
    }
}

/// A body off a stream, framed for a socket, behind the head of its message.
pub(crate) struct ToSocket {
    encoder: BodyEncoder,
    /// Head and framing to be written before `data`; what was written is `before[..at]`.
    before: Vec<u8>,
    at: usize,
    data: Bytes,
    after: BytesMut,
    data_ended: bool,
    /// The end is on its way.
    ended: bool,
    /// Body bytes that came off the stream.
    pub(crate) bytes: u64,
    /// Whether any byte was written.
    pub(crate) begun: bool,
    pub(crate) messages: Messages,
}

impl ToSocket {
    /// Sends `head` and then a body as it comes.
    pub(crate) fn new(head: Vec<u8>, encoder: BodyEncoder, messages: Messages) -> Self {
        Self {
            encoder,
            before: head,
            at: 0,
            data: Bytes::new(),
            after: BytesMut::new(),
            data_ended: false,
            ended: false,
            bytes: 0,
            begun: false,
            messages,
        }
    }

    /// Whether all of it is written.
    pub(crate) fn is_done(&self) -> bool {
        self.ended && self.is_flushed()
    }

    /// Whether nothing was taken off the stream.
    pub(crate) fn is_untouched(&self) -> bool {
        self.bytes == 0 && !self.data_ended
    }

    /// Whether what came so far is written.
    pub(crate) fn is_flushed(&self) -> bool {
        self.at == self.before.len() && self.data.is_empty() && self.after.is_empty()
    }

    /// Gives the buffer of the head back.
    pub(crate) fn into_framing(self) -> Vec<u8> {
        self.before
    }

    /// Ready when the whole message was written, or broke. `record` is told what trailers say.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Incoming,
        sink: &TcpStream,
        mut record: Option<&mut Record>,
    ) -> Poll<Result<(), Broke>> {
        loop {
            // Head and first data go out together.
            let may_load = !self.ended && self.data.is_empty() && self.after.is_empty();
            let loaded = if may_load { self.poll_load(cx, source, record.as_deref_mut())? } else { Poll::Ready(()) };
            ready!(self.poll_flush(cx, source, sink))?;
            if self.ended {
                return Poll::Ready(Ok(()));
            }
            ready!(loaded);
        }
    }

    /// Takes the next frame off the stream.
    fn poll_load(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Incoming,
        record: Option<&mut Record>,
    ) -> Poll<Result<(), Broke>> {
        let broke = |error| Broke::Stream(Some(error));
        if !self.data_ended {
            match ready!(source.poll_data(cx)).transpose().map_err(broke)? {
                Some(data) => {
                    let around = self.encoder.data(data.len()).map_err(Broke::Rule)?;
                    self.before.extend_from_slice(around.before());
                    self.after.extend_from_slice(around.after());
                    self.bytes += data.len() as u64;
                    self.messages.read(&data);
                    self.data = data;
                    if !source.is_end_stream() {
                        return Poll::Ready(Ok(()));
                    }
                    self.data_ended = true;
                    return Poll::Ready(self.end(None));
                }
                None => self.data_ended = true,
            }
        }
        let trailers = ready!(source.poll_trailers(cx)).map_err(broke)?;
        if let (Some(record), Some(trailers)) = (record, &trailers) {
            record.read_grpc_status(grpc_status(trailers));
        }
        Poll::Ready(self.end(trailers.as_ref()))
    }

    fn end(&mut self, trailers: Option<&HeaderMap>) -> Result<(), Broke> {
        let trailers = trailers.map(translate::trailers_to_h1).transpose().map_err(Broke::Rule)?;
        self.encoder.end(trailers.as_ref(), &mut self.after).map_err(Broke::Rule)?;
        self.ended = true;
        Ok(())
    }

    /// Writes what there is; the stream's sender may send as much again.
    pub(crate) fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Incoming,
        sink: &TcpStream,
    ) -> Poll<Result<(), Broke>> {
        while !self.is_flushed() {
            let Poll::Ready(ready) = sink.poll_write_ready(cx) else {
                source.wait(cx, self.data.len());
                return Poll::Pending;
            };
            ready.map_err(Broke::Socket)?;
            let before = &self.before[self.at..];
            let total = before.len() + self.data.len() + self.after.len();
            let slices = [IoSlice::new(before), IoSlice::new(&self.data), IoSlice::new(&self.after)];
            match sink.try_write_vectored(&slices) {
                Ok(count) => {
                    self.begun |= count > 0;
                    if count < total {
                        not_ready(sink, Interest::WRITABLE);
                    }
                    let (of_before, count) = split(count, before.len());
                    let (of_data, count) = split(count, self.data.len());
                    self.at += of_before;
                    self.data.advance(of_data);
                    self.after.advance(count);
                    source.release(of_data);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(Broke::Socket(error))),
            }
        }
        self.before.clear();
        self.at = 0;
        Poll::Ready(Ok(()))
    }
}

/// What of `count` falls to the first `length`, and the rest.
fn split(count: usize, length: usize) -> (usize, usize) {
    let first = count.min(length);
    (first, count - first)
}
