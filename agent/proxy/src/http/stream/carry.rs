//! One direction's body between two streams of HTTP/2.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use heddle_http::Reject;
use heddle_http::h1::Body;
use heddle_http::translate::{self, LengthCheck};

use crate::http::flow::{Incoming, Outgoing};
use crate::http::record::{Messages, Record, grpc_status};

/// Why a direction broke.
pub(super) enum Broke {
    /// The peer that sends reset it, or is gone.
    Source(h2::Error),
    /// The peer that receives wants no more.
    Sink,
    /// A rule.
    Rule(Reject),
}

/// One direction's body.
pub(super) struct Carry {
    /// Received and not yet sent, for the receiver's window is closed.
    pub(super) pending: Bytes,
    data_ended: bool,
    pub(super) ended: bool,
    /// All of it was sent on: it did not end because nobody wanted more.
    pub(super) is_whole: bool,
    length: LengthCheck,
    pub(super) bytes: u64,
    pub(super) messages: Messages,
}

impl Carry {
    pub(super) fn new(body: Body, grpc: bool) -> Self {
        Self {
            pending: Bytes::new(),
            data_ended: false,
            ended: false,
            is_whole: false,
            length: LengthCheck::new(body),
            bytes: 0,
            messages: Messages::new(grpc),
        }
    }

    /// Whether nothing was taken from the one that sends.
    pub(super) fn is_untouched(&self) -> bool {
        self.bytes == 0 && !self.data_ended
    }

    /// Moves what can be moved; ready at the end. Bytes are given back to the sender's window when they are sent on.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Incoming,
        sink: &mut Outgoing,
        record: Option<&mut Record>,
    ) -> Poll<Result<(), Broke>> {
        loop {
            while !self.pending.is_empty() {
                let Poll::Ready(capacity) = sink.poll_capacity(cx, self.pending.len()) else {
                    source.wait(cx, self.pending.len());
                    return Poll::Pending;
                };
                let Some(length) = capacity else { return Poll::Ready(Err(Broke::Sink)) };
                let part = self.pending.split_to(length);
                let last = self.pending.is_empty() && source.is_end_stream();
                if last {
                    self.length.end().map_err(Broke::Rule)?;
                }
                sink.send_data(part, last).map_err(|_| Broke::Sink)?;
                source.release(length);
                if last {
                    (self.ended, self.is_whole) = (true, true);
                    return Poll::Ready(Ok(()));
                }
            }
            if !self.data_ended {
                match ready!(source.poll_data(cx)) {
                    Some(Ok(data)) => {
                        self.length.data(data.len()).map_err(Broke::Rule)?;
                        self.bytes += data.len() as u64;
                        self.messages.read(&data);
                        self.pending = data;
                        continue;
                    }
                    Some(Err(error)) => return Poll::Ready(Err(Broke::Source(error))),
                    None => self.data_ended = true,
                }
            }
            let trailers = match ready!(source.poll_trailers(cx)) {
                Ok(trailers) => trailers,
                Err(error) => return Poll::Ready(Err(Broke::Source(error))),
            };
            self.length.end().map_err(Broke::Rule)?;
            (self.ended, self.is_whole) = (true, true);
            let sent = match trailers {
                Some(mut trailers) => {
                    translate::check_trailers(&mut trailers).map_err(Broke::Rule)?;
                    if let Some(record) = record {
                        record.read_grpc_status(grpc_status(&trailers));
                    }
                    sink.send_trailers(trailers)
                }
                None => sink.send_data(Bytes::new(), true),
            };
            return Poll::Ready(sent.map_err(|_| Broke::Sink));
        }
    }
}
