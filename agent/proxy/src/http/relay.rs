//! One request and its response, both at once: the response may begin before the request is complete, and may end before it.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};

use heddle_http::Limits;
use heddle_http::h1::{
    Body, BodyDecoder, BodyEncoder, ClientSide, Exchange, Progress, Received, RequestHead, ResponseHead,
    ResponseParser, Version, forward_response,
};
use heddle_telemetry::Reason;
use tokio::net::TcpStream;

use super::inbox::{Filled, Inbox};
use super::pipe::{Broken, Pipe};
use super::plan::{self, Ended};
use super::record::{Messages, Record};
use crate::copy::{Side, burst, watch};
use crate::registry::Conn;

/// Bytes of following requests read ahead while a response is awaited: reading is how a client's leaving is noticed.
const AHEAD_BYTES_MAX: usize = 16 << 10;

/// One end of an exchange: its connection, and what was read from it.
pub(crate) struct End<'a> {
    pub(crate) stream: &'a TcpStream,
    pub(crate) inbox: &'a mut Inbox,
}

impl End<'_> {
    /// Its request is complete: a client is read only for requests that follow, and for its leaving, which has a reason.
    pub(crate) fn poll_ahead(&mut self, cx: &mut Context<'_>, conn: &Conn) -> Option<Reason> {
        while self.inbox.len() < AHEAD_BYTES_MAX {
            match self.inbox.poll_fill(cx, conn, self.stream) {
                Poll::Pending | Poll::Ready(Ok(Filled::NoRoom)) => return None,
                Poll::Ready(Ok(Filled::Bytes(_))) => {}
                Poll::Ready(Ok(Filled::End)) => return Some(Reason::RequestCancelled),
                Poll::Ready(Err(error)) => return Some(Side::Downstream.broke(&error)),
            }
        }
        None
    }

    /// Ready when the client left, where nothing else reads from it, and why. Where no more is read ahead its reset still shows.
    pub(crate) async fn left(mut self, conn: &Conn) -> Reason {
        let mut gone = pin!(watch(self.stream));
        poll_fn(|cx| match self.poll_ahead(cx, conn) {
            Some(reason) => Poll::Ready(reason),
            None => gone.as_mut().poll(cx).map(|error| Side::Downstream.broke(&error)),
        })
        .await
    }
}

/// Whether a request's body stands still for too long.
pub(crate) fn is_overdue(conn: &Conn, stands_still: bool) -> bool {
    if !stands_still {
        conn.clear_deadline();
    } else if conn.is_out_of_time() {
        return true;
    } else if !conn.has_deadline() {
        conn.set_deadline(conn.worker.config.request_body_idle_timeout);
    }
    false
}

/// How an exchange came out.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The response is complete, and so is the request unless the connections say otherwise.
    Complete {
        /// Whether the client's connection is kept.
        keep_client: bool,
        /// Whether the upstream's may serve again.
        keep_upstream: bool,
    },
    /// Not HTTP any more: both directions are opaque from here.
    Tunnel,
    /// It broke.
    Failed(Failed),
}

/// How an exchange broke.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failed {
    pub(crate) reason: Reason,
    /// Nothing of a final response was sent: the client can be answered.
    pub(crate) answerable: bool,
    /// What that says about another attempt.
    pub(crate) ended: Ended,
    /// What was sent of the body can be sent again.
    pub(crate) replayable: bool,
    /// A byte of a response, be it an interim one, is the client's.
    pub(crate) begun: bool,
    /// The request is complete, so the connection can be kept behind an answer.
    pub(crate) request_complete: bool,
}

/// Where the response is.
enum Response {
    /// Interim responses and the final head are awaited; what is written goes through here.
    Head {
        framing: Vec<u8>,
        written: usize,
    },
    /// The final response is on its way.
    Body {
        pipe: Box<Pipe>,
        keep_client: bool,
    },
    /// A tunnel's head is on its way.
    Tunnel {
        framing: Vec<u8>,
        written: usize,
    },
    Taken,
}

/// One exchange. `head` is reused from exchange to exchange.
pub(crate) struct Relay<'a> {
    pub(crate) conn: &'a Rc<Conn>,
    pub(crate) down: End<'a>,
    pub(crate) up: End<'a>,
    pub(crate) head: &'a mut ResponseHead,
    pub(crate) record: &'a mut Record,
    request: Pipe,
    /// Writing the request failed: only an answer that is here already can save it.
    request_lost: Option<Reason>,
    request_told: bool,
    has_body: bool,
    /// As it comes.
    body: Body,
    is_idempotent: bool,
    version: Version,
    is_head: bool,
    exchange: Exchange,
    parser: ResponseParser,
    limits: Limits,
    response: Response,
    client_gone: Option<Pin<Box<dyn Future<Output = io::Error> + 'a>>>,
}

impl<'a> Relay<'a> {
    /// `request` is as the client sent it; `wire` is its head as it goes upstream, `body` the framing it goes with.
    #[expect(clippy::too_many_arguments, reason = "an exchange has that many parts")]
    pub(crate) fn new(
        conn: &'a Rc<Conn>,
        down: End<'a>,
        up: End<'a>,
        request: Facts,
        wire: Vec<u8>,
        head: &'a mut ResponseHead,
        record: &'a mut Record,
        limits: Limits,
    ) -> Self {
        let decoder = BodyDecoder::new(request.body, &limits);
        let messages = Messages::new(record.grpc);
        Self {
            conn,
            down,
            up,
            head,
            record,
            request: Pipe::new(wire, decoder, BodyEncoder::new(request.wire_body), messages),
            request_lost: None,
            request_told: false,
            has_body: request.body != Body::Empty,
            body: request.body,
            is_idempotent: request.is_idempotent,
            version: request.version,
            is_head: request.is_head,
            exchange: request.exchange,
            parser: ResponseParser::new(limits),
            limits,
            response: Response::Head { framing: conn.worker.spare.take(), written: 0 },
            client_gone: None,
        }
    }

    /// Gives its buffers back to the worker.
    pub(crate) fn recycle(self) {
        let spare = &self.conn.worker.spare;
        spare.give(self.request.into_framing());
        match self.response {
            Response::Head { framing, .. } | Response::Tunnel { framing, .. } => spare.give(framing),
            Response::Body { pipe, .. } => spare.give(pipe.into_framing()),
            Response::Taken => {}
        }
    }

    /// Moves both directions as far as they go.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        let moved = self.record.request_bytes + self.record.response_bytes;
        if let Poll::Ready((reason, ended)) = self.record.plan.poll_late(cx, moved, self.request_told) {
            return Poll::Ready(Outcome::Failed(Failed { ended, ..self.failed(reason) }));
        }
        // One allowance each: a full upload must not keep the download waiting.
        let (mut there, mut back) = (burst(self.conn.worker.table.len()), burst(self.conn.worker.table.len()));
        if let Some(failed) = self.poll_request(cx, &mut there) {
            return Poll::Ready(Outcome::Failed(failed));
        }
        let polled = self.poll_response(cx, &mut back);
        if polled.is_ready() {
            self.conn.clear_deadline();
        } else if let Some(failed) = self.poll_client_gone(cx) {
            return Poll::Ready(Outcome::Failed(failed));
        }
        self.count();
        polled
    }

    fn count(&mut self) {
        let response = match &self.response {
            Response::Body { pipe, .. } => Some((pipe.bytes, &pipe.messages)),
            _ => None,
        };
        self.record.progress((self.request.bytes, &self.request.messages), response);
    }

    /// `Some` if the exchange is over for it.
    fn poll_request(&mut self, cx: &mut Context<'_>, allowance: &mut usize) -> Option<Failed> {
        if self.request_lost.is_some() {
            return None;
        }
        if !self.request_told {
            let before = self.request.bytes;
            match self.request.poll(cx, self.conn, self.down.stream, self.down.inbox, self.up.stream, allowance) {
                Poll::Ready(Ok(())) => {
                    self.request_told = true;
                    self.record.plan.sent();
                    self.exchange.request_sent();
                    self.conn.clear_deadline();
                }
                Poll::Ready(Err(broken)) => return self.request_broke(&broken),
                Poll::Pending => {
                    if self.request.bytes > before {
                        self.exchange.body_begun();
                        self.conn.clear_deadline();
                    }
                    return self.watch_the_clock();
                }
            }
            if self.request.bytes > 0 {
                self.exchange.body_begun();
            }
        }
        self.down.poll_ahead(cx, self.conn).map(|reason| self.failed(reason))
    }

    /// A body that stands still while nothing else happens has a limit.
    fn watch_the_clock(&self) -> Option<Failed> {
        let is_clients_turn = matches!(self.response, Response::Head { .. }) && !self.exchange.awaits_continue();
        let stands_still = is_clients_turn && !self.request.is_held_up();
        is_overdue(self.conn, stands_still).then(|| self.failed(Reason::RequestTimeout))
    }

    /// A client that nobody reads from, because the upstream does not take what it sent, is watched for its reset.
    fn poll_client_gone(&mut self, cx: &mut Context<'_>) -> Option<Failed> {
        if self.request_told || self.request_lost.is_some() || !self.request.is_held_up() {
            return None;
        }
        let stream = self.down.stream;
        let watch = self.client_gone.get_or_insert_with(|| Box::pin(watch(stream)));
        match watch.as_mut().poll(cx) {
            Poll::Ready(error) => Some(self.failed(Side::Downstream.broke(&error))),
            Poll::Pending => None,
        }
    }

    fn request_broke(&mut self, broken: &Broken) -> Option<Failed> {
        match broken {
            Broken::Source(error) => Some(self.failed(Side::Downstream.broke(error))),
            Broken::Truncated => Some(self.failed(Reason::RequestCancelled)),
            Broken::Rule(rule) => {
                self.record.detail = rule.as_str();
                Some(self.failed(rule.request_reason()))
            }
            Broken::NoRoom => Some(self.failed(Broken::no_room())),
            Broken::Sink(error) => {
                // The server may have answered before it closed: that answer counts.
                self.request_lost = Some(Side::Upstream.broke(error));
                None
            }
        }
    }

    /// The exchange is over, whatever it waits for.
    pub(crate) fn cut(&self, reason: Reason) -> Outcome {
        Outcome::Failed(self.failed(reason))
    }

    fn failed(&self, reason: Reason) -> Failed {
        Failed {
            reason,
            answerable: self.is_answerable(),
            ended: Ended::Final,
            replayable: self.is_replayable(),
            begun: !matches!(&self.response, Response::Head { framing, .. } if framing.is_empty()),
            request_complete: self.request.is_done(),
        }
    }

    fn is_replayable(&self) -> bool {
        !self.has_body || self.is_untouched() || self.down.inbox.can_rewind()
    }

    fn is_untouched(&self) -> bool {
        !self.request.begun && self.request.bytes == 0
    }

    fn is_answerable(&self) -> bool {
        match &self.response {
            Response::Head { framing, written } => *written == 0 || *written == framing.len(),
            Response::Body { pipe, .. } => !pipe.begun,
            Response::Tunnel { written, .. } => *written == 0,
            Response::Taken => false,
        }
    }

    fn poll_response(&mut self, cx: &mut Context<'_>, allowance: &mut usize) -> Poll<Outcome> {
        loop {
            match std::mem::replace(&mut self.response, Response::Taken) {
                Response::Taken => return Poll::Ready(Outcome::Failed(self.failed(Reason::Panic))),
                Response::Head { mut framing, mut written } => {
                    match self.read_head(&mut framing, written) {
                        Ok(Some(next)) => {
                            self.response = next;
                            continue;
                        }
                        Ok(None) => {}
                        Err(failed) => {
                            self.response = Response::Head { framing, written };
                            return Poll::Ready(Outcome::Failed(Failed { answerable: self.is_answerable(), ..failed }));
                        }
                    }
                    // Interim responses go out as they come.
                    let flushed = flush(cx, self.down.stream, &framing, &mut written);
                    self.response = Response::Head { framing, written };
                    match flushed {
                        Poll::Ready(Err(error)) => {
                            return Poll::Ready(Outcome::Failed(self.failed(Side::Downstream.broke(&error))));
                        }
                        Poll::Ready(Ok(())) | Poll::Pending => {}
                    }
                    match self.up.inbox.poll_fill(cx, self.conn, self.up.stream) {
                        Poll::Pending => return Poll::Pending,
                        Poll::Ready(Ok(Filled::Bytes(_))) => {}
                        Poll::Ready(Ok(Filled::NoRoom)) => {
                            return Poll::Ready(Outcome::Failed(self.failed(Broken::no_room())));
                        }
                        Poll::Ready(Ok(Filled::End)) => {
                            return Poll::Ready(self.no_response(Reason::ResponseIncomplete));
                        }
                        Poll::Ready(Err(error)) => return Poll::Ready(self.no_response(Side::Upstream.broke(&error))),
                    }
                }
                Response::Body { mut pipe, keep_client } => {
                    let polled = pipe.poll(cx, self.conn, self.up.stream, self.up.inbox, self.down.stream, allowance);
                    self.response = Response::Body { pipe, keep_client };
                    return match polled {
                        Poll::Pending => Poll::Pending,
                        Poll::Ready(Ok(())) => Poll::Ready(self.complete(keep_client)),
                        Poll::Ready(Err(broken)) => Poll::Ready(Outcome::Failed(self.response_broke(&broken))),
                    };
                }
                Response::Tunnel { framing, mut written } => {
                    let flushed = flush(cx, self.down.stream, &framing, &mut written);
                    self.response = Response::Tunnel { framing, written };
                    return match flushed {
                        Poll::Pending => Poll::Pending,
                        Poll::Ready(Ok(())) => Poll::Ready(Outcome::Tunnel),
                        Poll::Ready(Err(error)) => {
                            Poll::Ready(Outcome::Failed(self.failed(Side::Downstream.broke(&error))))
                        }
                    };
                }
            }
        }
    }

    fn complete(&mut self, keep_client: bool) -> Outcome {
        if self.record.grpc
            && let Response::Body { pipe, .. } = &self.response
        {
            let trailer = pipe.trailers().and_then(|fields| fields.get("grpc-status"));
            self.record.read_grpc_status(trailer.or_else(|| self.head.fields().get("grpc-status")));
        }
        self.exchange.response_received();
        let sent = self.request.is_done();
        Outcome::Complete {
            keep_client: keep_client && sent && self.exchange.client_reusable(),
            keep_upstream: sent && self.exchange.upstream_reusable(!self.up.inbox.is_empty()),
        }
    }

    /// Reads heads out of the inbox: interim ones are written to `framing`, a final one becomes what follows.
    fn read_head(&mut self, framing: &mut Vec<u8>, written: usize) -> Result<Option<Response>, Failed> {
        while !self.up.inbox.is_empty() {
            let parsed = self.parser.parse(self.up.inbox.bytes(), self.exchange.asked(), self.head);
            let received = match parsed.map_err(|rule| self.broke_a_rule(rule))? {
                Progress::NeedMore => return Ok(None),
                Progress::Complete { consumed } => {
                    self.up.inbox.consume(consumed);
                    self.exchange.response_head(self.head).map_err(|rule| self.broke_a_rule(rule))?
                }
            };
            let body = self.head.body();
            let client = |keep_alive| ClientSide { version: self.version, keep_alive, head: self.is_head };
            match received {
                Received::Interim { forward } => {
                    if forward {
                        forward_response(self.head, client(true));
                        self.head.write(framing);
                    }
                }
                Received::Tunnel => {
                    // What is switched to is never sent twice; the endpoint has answered.
                    let response = plan::Response {
                        status: self.head.status(),
                        head: self.head.fields(),
                        trailers: None,
                        ended: false,
                        replayable: false,
                        begun: true,
                    };
                    let _ = self.record.plan.judge(self.conn, &response);
                    self.record.plan.begin_tunnel();
                    forward_response(self.head, client(true));
                    self.record.plan.edit_response(self.head);
                    self.record.status = self.head.status();
                    self.head.write(framing);
                    return Ok(Some(Response::Tunnel { framing: std::mem::take(framing), written }));
                }
                Received::Final => {
                    let response = plan::Response {
                        status: self.head.status(),
                        head: self.head.fields(),
                        trailers: None,
                        ended: body == Body::Empty,
                        replayable: !self.has_body || !self.request.begun || self.down.inbox.can_rewind(),
                        begun: !framing.is_empty(),
                    };
                    if self.record.plan.judge(self.conn, &response) {
                        let failed = self.failed(Reason::UpstreamReset);
                        return Err(Failed { ended: Ended::Judged, begun: false, replayable: true, ..failed });
                    }
                    if self.record.plan.is_mirrored() {
                        let is_complete = self.request_told;
                        let body = if is_complete { self.down.inbox.kept_body(self.body) } else { None };
                        self.record.plan.launch(self.conn, body);
                    }
                    self.down.inbox.forget();
                    let keep = self.exchange.client_reusable() && !self.conn.worker.draining.get();
                    let outgoing = forward_response(self.head, client(keep));
                    self.record.plan.edit_response(self.head);
                    self.record.status = self.head.status();
                    // What of an interim response is not yet written goes out with it.
                    let is_within_interim = written > 0 && written < framing.len();
                    self.head.write(framing);
                    let mut rest = std::mem::take(framing);
                    rest.drain(..written);
                    let decoder = BodyDecoder::new(body, &self.limits);
                    let messages = Messages::new(self.record.grpc);
                    let mut pipe = Pipe::new(rest, decoder, BodyEncoder::new(outgoing.body), messages);
                    pipe.begun = is_within_interim;
                    return Ok(Some(Response::Body { pipe: Box::new(pipe), keep_client: outgoing.keep_alive }));
                }
            }
        }
        Ok(None)
    }

    fn broke_a_rule(&mut self, rule: heddle_http::Reject) -> Failed {
        self.record.detail = rule.as_str();
        self.failed(rule.response_reason())
    }

    /// The upstream ended before a final head. If nothing at all came, its connection may have been closed all along, and the request may be
    /// sent again where that is safe: when not one byte of it was sent, or it is idempotent and no part of a body is lost.
    fn no_response(&mut self, reason: Reason) -> Outcome {
        let reason = self.request_lost.unwrap_or(reason);
        let nothing_came =
            !self.parser.has_begun() && matches!(&self.response, Response::Head { framing, .. } if framing.is_empty());
        let is_harmless = self.is_untouched() || (self.is_idempotent && self.is_replayable());
        let ended = if nothing_came && is_harmless { Ended::Stale } else { Ended::Reset };
        Outcome::Failed(Failed { ended, ..self.failed(reason) })
    }

    fn response_broke(&mut self, broken: &Broken) -> Failed {
        match broken {
            Broken::Source(error) => self.failed(Side::Upstream.broke(error)),
            Broken::Truncated => self.failed(Reason::ResponseIncomplete),
            Broken::Sink(error) => self.failed(Side::Downstream.broke(error)),
            Broken::Rule(rule) => self.broke_a_rule(*rule),
            Broken::NoRoom => self.failed(Broken::no_room()),
        }
    }
}

/// What the relay has to know of a request.
#[derive(Clone, Copy)]
pub(crate) struct Facts {
    pub(crate) exchange: Exchange,
    /// Framing it comes with.
    pub(crate) body: Body,
    /// Framing it goes with.
    pub(crate) wire_body: Body,
    pub(crate) is_idempotent: bool,
    pub(crate) is_head: bool,
    pub(crate) version: Version,
}

impl Facts {
    /// Whether the client's connection may be kept behind an answer of the agent's own. Not behind a CONNECT: a client need not wait
    /// for its tunnel before it fills it, and what is meant for the tunnel must not be taken for a request.
    pub(crate) fn wants_more(&self, head: &RequestHead) -> bool {
        head.keep_alive() && !self.exchange.asked().connect
    }

    /// Of a request as the client sent it.
    pub(crate) fn of(head: &RequestHead, limits: &Limits) -> Self {
        Self {
            exchange: Exchange::new(head, limits),
            body: head.body(),
            wire_body: head.body(),
            is_idempotent: head.is_idempotent(),
            is_head: head.asked().head,
            version: head.version(),
        }
    }
}

/// Writes the rest of `bytes`.
pub(crate) fn flush(cx: &mut Context<'_>, sink: &TcpStream, bytes: &[u8], written: &mut usize) -> Poll<io::Result<()>> {
    while *written < bytes.len() {
        match sink.poll_write_ready(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(ready) => ready?,
        }
        match sink.try_write(&bytes[*written..]) {
            Ok(count) => *written += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
    Poll::Ready(Ok(()))
}
