//! A request of an HTTP/1 client on a stream of an HTTP/2 upstream. An upgrade to WebSocket becomes extended CONNECT (RFC 8441).

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::ext::Protocol;
use heddle_http::h1::{
    Asked, Body, BodyDecoder, BodyEncoder, ClientSide, Exchange, Received, RequestHead, ResponseHead, forward_response,
};
use heddle_http::translate::{self, Kind};
use heddle_http::{Limits, Reject, answer, websocket};
use heddle_telemetry::Reason;
use http::uri::Scheme;
use http::{Request, response};
use socket2::SockRef;

use super::{Heads, Next, Server, Streamed};
use crate::authz::View;
use crate::copy::{self, Side, burst};
use crate::http::bridge::{Broke, ToSocket, ToStream};
use crate::http::client::{Opened, Unreached};
use crate::http::flow::Incoming;
use crate::http::pipe::Broken;
use crate::http::plan::{self, Ended, within};
use crate::http::pool_h2::{is_goodbye, is_unprocessed, reason_of};
use crate::http::record::{Messages, Record, grpc_status};
use crate::http::relay::{End, Facts, Failed, flush, is_overdue};
use crate::registry::Conn;
use crate::route::Choice;

impl Server<'_> {
    /// One request, from its checked head to its end.
    pub(super) async fn exchange_on_a_stream(
        &mut self,
        heads: &mut Heads,
        facts: Facts,
        mut record: Record,
        mut choice: Choice,
    ) -> Streamed {
        let (version, is_head, wants_more) = (facts.version, facts.is_head, facts.wants_more(&heads.request));
        let response = &mut heads.response;
        let host = if heads.request.authority().is_none() { self.original_host() } else { String::new() };
        let asking = match Asking::of(&heads.request, facts, &host) {
            Ok(asking) => asking,
            Err(rule) => {
                record.detail = rule.as_str();
                let reason = rule.request_reason();
                return Streamed::Done(self.refuse(response, record, reason, version, is_head, false).await);
            }
        };
        loop {
            let by = record.plan.connect_by();
            let down = End { stream: self.downstream, inbox: &mut self.inbox };
            let opened = tokio::select! {
                biased;
                left = down.left(self.conn) => Err(left.into()),
                opened = within(by, self.client.open(&mut choice, &asking.request, asking.ends_with_head(), &mut record)) => opened,
            };
            let opened = match opened {
                Ok(opened) => opened,
                Err(Unreached::OtherVersion) => return Streamed::Otherwise(Box::new((record, choice))),
                Err(Unreached::Failed(reason)) => {
                    let keep = facts.body == Body::Empty && wants_more;
                    return Streamed::Done(self.refuse(response, record, reason, version, is_head, keep).await);
                }
            };
            let endpoint = &opened.held.0;
            self.conn.set_endpoint(endpoint.addr, endpoint.workload.as_ref());
            let down = End { stream: self.downstream, inbox: &mut self.inbox };
            let mut judge = opened.permit.judge();
            let mut crossing = Crossing::new(self.conn, down, &asking, opened, response, &mut record);
            let mut gone = pin!(copy::watch(self.downstream));
            let mut revoked = None;
            let outcome = poll_fn(|cx| {
                if let Poll::Ready(by) = judge.poll(cx, || View::of_request(&asking.request)) {
                    revoked = Some(by);
                    return Poll::Ready(Err(crossing.failed(Reason::PolicyClosed)));
                }
                match crossing.poll(cx) {
                    // Nothing else would show that the client is gone.
                    Poll::Pending if crossing.is_deaf() => {
                        gone.as_mut().poll(cx).map(|error| Err(crossing.failed(Side::Downstream.broke(&error))))
                    }
                    polled => polled,
                }
            })
            .await;
            crossing.finish(outcome.err().map(|failed| failed.reason));
            revoked.into_iter().for_each(|by| record.judged.revoke(by));
            match outcome {
                Ok(keep_client) => return Streamed::Done(self.complete(record, keep_client).await),
                Err(failed) => {
                    if let Some(wait) = record.plan.after(self.conn, failed.ended, failed.replayable, failed.begun) {
                        if let Err(left) = self.waits(wait).await {
                            record.finish(left);
                            return Streamed::Done(Next::End(left));
                        }
                        self.inbox.rewind();
                        choice = match self.client.choose(choice.spoken(), &record.plan) {
                            Ok(choice) => choice,
                            Err(reason) => {
                                let keep = facts.body == Body::Empty && wants_more;
                                return Streamed::Done(
                                    self.refuse(response, record, reason, version, is_head, keep).await,
                                );
                            }
                        };
                        continue;
                    }
                    self.inbox.forget();
                    if !failed.answerable {
                        record.finish(failed.reason);
                        return Streamed::Done(Next::End(failed.reason));
                    }
                    let keep = failed.request_complete && wants_more;
                    let reason = failed.reason;
                    return Streamed::Done(self.refuse(response, record, reason, version, is_head, keep).await);
                }
            }
        }
    }
}

/// A request as it goes on a stream.
struct Asking {
    request: Request<()>,
    kind: Kind,
    facts: Facts,
    /// What its answer depends on.
    asked: Asked,
    /// The client's: the server never sees it.
    websocket_key: Vec<u8>,
}

impl Asking {
    /// `authority` where the head names none.
    fn of(head: &RequestHead, facts: Facts, authority: &str) -> Result<Self, Reject> {
        let (mut request, kind) = translate::request_to_h2(head, Scheme::HTTP, authority)?;
        let mut websocket_key = Vec::new();
        if kind == Kind::WebSocket {
            let mut keys = head.fields().get_all("sec-websocket-key");
            websocket_key.extend_from_slice(keys.next().unwrap_or_default());
            if !websocket::is_key(&websocket_key) || keys.next().is_some() {
                return Err(Reject::UpgradeInvalid);
            }
            request.extensions_mut().insert(Protocol::from_static("websocket"));
        }
        // Other upgrades are not offered on.
        let asked = Asked { upgrade: kind == Kind::WebSocket, ..facts.exchange.asked() };
        Ok(Self { request, kind, facts, asked, websocket_key })
    }

    /// Whether nothing follows the head. A tunnel's bytes wait until it is one: a server that declines must not take them for
    /// anything else.
    fn ends_with_head(&self) -> bool {
        self.kind == Kind::Plain && self.facts.body == Body::Empty
    }

    fn client_side(&self, keep_alive: bool) -> ClientSide {
        ClientSide { version: self.facts.version, keep_alive, head: self.facts.is_head }
    }
}

/// One exchange.
struct Crossing<'a> {
    conn: &'a Rc<Conn>,
    asking: &'a Asking,
    down: End<'a>,
    head: &'a mut ResponseHead,
    record: &'a mut Record,
    exchange: Exchange,
    up: Opened,
    request: ToStream,
    /// The server takes no more of the request; its answer, or its reset, says why.
    is_lost: bool,
    /// The final head is awaited.
    awaits_head: bool,
    /// Interim responses; what was written is `framing[..written]`.
    framing: Vec<u8>,
    written: usize,
    response: Option<(Incoming, ToSocket)>,
    keep_client: bool,
    is_tunnel: bool,
}

impl<'a> Crossing<'a> {
    fn new(
        conn: &'a Rc<Conn>,
        down: End<'a>,
        asking: &'a Asking,
        up: Opened,
        head: &'a mut ResponseHead,
        record: &'a mut Record,
    ) -> Self {
        let messages = Messages::new(record.grpc);
        let (body, mut exchange) = (asking.facts.body, asking.facts.exchange);
        let request = if body == Body::Empty {
            exchange.request_sent();
            record.plan.sent();
            ToStream::ended(messages)
        } else {
            ToStream::new(BodyDecoder::new(body, &Limits::DEFAULT), messages)
        };
        Self {
            conn,
            asking,
            down,
            head,
            record,
            exchange,
            up,
            request,
            is_lost: false,
            awaits_head: true,
            framing: conn.worker.spare.take(),
            written: 0,
            response: None,
            keep_client: false,
            is_tunnel: false,
        }
    }

    /// Moves both directions as far as they go. Ready at the end: whether the client's connection is kept.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Failed>> {
        let moved = self.record.request_bytes + self.record.response_bytes;
        if let Poll::Ready((reason, ended)) = self.record.plan.poll_late(cx, moved, self.request.is_done()) {
            return Poll::Ready(Err(Failed { ended, ..self.failed(reason) }));
        }
        // One allowance each: a full upload must not keep the download waiting.
        let (mut there, mut back) = (burst(self.conn.worker.table.len()), burst(self.conn.worker.table.len()));
        let mut polled = self.poll_request(cx, &mut there).map_or(Poll::Pending, |failed| Poll::Ready(Err(failed)));
        if polled.is_pending() {
            polled = self.poll_response(cx, &mut back);
        }
        if polled.is_ready() {
            self.conn.clear_deadline();
        }
        let response = self.response.as_ref().map(|(_, pipe)| (pipe.bytes, &pipe.messages));
        self.record.progress((self.request.bytes, &self.request.messages), response);
        polled
    }

    /// Whether the client is not read from, so that its leaving would not show.
    fn is_deaf(&self) -> bool {
        self.is_lost || self.request.is_held_up() || (self.is_tunnel && self.request.is_done())
    }

    /// `Some` if the exchange is over for it.
    fn poll_request(&mut self, cx: &mut Context<'_>, allowance: &mut usize) -> Option<Failed> {
        if self.is_lost {
            return None;
        }
        if !self.request.is_done() {
            let before = self.request.bytes;
            let down = &mut self.down;
            let polled = self.request.poll(cx, self.conn, down.stream, down.inbox, &mut self.up.sink, allowance);
            if self.request.bytes > before {
                self.exchange.body_begun();
                self.conn.clear_deadline();
            }
            match polled {
                Poll::Ready(Ok(())) => {
                    self.exchange.request_sent();
                    self.record.plan.sent();
                    self.conn.clear_deadline();
                }
                Poll::Ready(Err(broke)) => return self.request_broke(&broke),
                Poll::Pending => {
                    let is_clients_turn = self.awaits_head && !self.exchange.awaits_continue();
                    let stands_still = is_clients_turn && !self.request.is_held_up();
                    return is_overdue(self.conn, stands_still).then(|| self.failed(Reason::RequestTimeout));
                }
            }
        }
        if self.is_tunnel {
            return None;
        }
        self.down.poll_ahead(cx, self.conn).map(|reason| self.failed(reason))
    }

    fn request_broke(&mut self, broke: &Broke) -> Option<Failed> {
        let reason = match broke {
            Broke::Socket(error) => Side::Downstream.broke(error),
            Broke::Truncated => Reason::RequestCancelled,
            Broke::Rule(rule) => {
                self.record.detail = rule.as_str();
                rule.request_reason()
            }
            Broke::NoRoom => Broken::no_room(),
            Broke::Stream(_) => {
                self.is_lost = true;
                return None;
            }
        };
        Some(self.failed(reason))
    }

    fn poll_response(&mut self, cx: &mut Context<'_>, allowance: &mut usize) -> Poll<Result<bool, Failed>> {
        if self.awaits_head {
            ready!(self.poll_head(cx))?;
            if self.is_tunnel
                && let Some(failed) = self.poll_request(cx, allowance)
            {
                return Poll::Ready(Err(failed));
            }
        }
        let Some((source, pipe)) = &mut self.response else { return Poll::Pending };
        if !pipe.is_done() {
            let client = self.down.stream;
            match ready!(pipe.poll(cx, source, client, Some(self.record))) {
                Err(broke) => return Poll::Ready(Err(self.response_broke(&broke))),
                Ok(()) if self.is_tunnel => {
                    let ended = SockRef::from(client).shutdown(std::net::Shutdown::Write);
                    ended.map_err(|e| self.failed(Side::Downstream.broke(&e)))?;
                }
                Ok(()) => {}
            }
        }
        if self.is_tunnel {
            return if self.request.is_done() || self.is_lost { Poll::Ready(Ok(false)) } else { Poll::Pending };
        }
        self.exchange.response_received();
        Poll::Ready(Ok(self.keep_client && self.request.is_done() && self.exchange.client_reusable()))
    }

    /// Interim responses as they come, then the final head.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        while let Poll::Ready(Some(interim)) = self.up.response.poll_informational(cx) {
            let (parts, ()) = interim.map_err(|error| self.upstream_failed(&error))?.into_parts();
            if self.read_head(parts, false)?.0 == (Received::Interim { forward: true }) {
                forward_response(self.head, self.asking.client_side(true));
                self.head.write(&mut self.framing);
            }
        }
        let Poll::Ready(response) = Pin::new(&mut self.up.response).poll(cx) else {
            return match flush(cx, self.down.stream, &self.framing, &mut self.written) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(self.failed(Side::Downstream.broke(&error)))),
                Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
            };
        };
        let (parts, source) = response.map_err(|error| self.upstream_failed(&error))?.into_parts();
        let ended = source.is_end_stream();
        if ended {
            self.record.read_grpc_status(grpc_status(&parts.headers));
        }
        let reason = self.record.read_reason(&parts.headers);
        let response = plan::Response {
            status: parts.status.as_u16(),
            head: &parts.headers,
            trailers: None,
            ended,
            replayable: self.is_replayable(),
            begun: !self.framing.is_empty(),
        };
        if self.record.plan.judge(self.conn, &response) {
            return Poll::Ready(Err(Failed { ended: Ended::Judged, ..self.failed(Reason::UpstreamReset) }));
        }
        if self.record.plan.is_mirrored() {
            let is_complete = self.request.is_done();
            let body = if is_complete { self.down.inbox.kept_body(self.asking.facts.body) } else { None };
            self.record.plan.launch(self.conn, body);
        }
        self.down.inbox.forget();
        let (received, body) = self.read_head(parts, ended)?;
        let keep = self.exchange.client_reusable() && !self.conn.worker.draining.get();
        let outgoing = forward_response(self.head, self.asking.client_side(keep));
        self.record.plan.edit_response(self.head);
        if let Some(reason) = reason {
            // Behind the step that strips what others say in our name. A word of ours has no byte a value may not have.
            let _ = self.head.fields_mut().append(answer::REASON_HEADER.as_bytes(), reason.as_str().as_bytes());
        }
        self.awaits_head = false;
        self.keep_client = outgoing.keep_alive;
        self.is_tunnel = received == Received::Tunnel;
        let messages = Messages::new(self.record.grpc);
        if self.is_tunnel {
            self.record.plan.begin_tunnel();
            self.request = ToStream::new(BodyDecoder::new(body, &Limits::DEFAULT), messages);
        } else if self.asking.kind != Kind::Plain {
            // There will be no tunnel. An error means that the server closed the stream already.
            let _ = self.up.sink.send_data(Bytes::new(), true);
        }
        self.record.status = self.head.status();
        // What of an interim response is not yet written goes out with it.
        let is_within_interim = self.written > 0 && self.written < self.framing.len();
        self.head.write(&mut self.framing);
        let mut rest = std::mem::take(&mut self.framing);
        rest.drain(..std::mem::take(&mut self.written));
        let mut pipe = ToSocket::new(rest, BodyEncoder::new(outgoing.body), messages);
        pipe.begun = is_within_interim;
        self.response = Some((Incoming::new(source, self.up.flow.clone()), pipe));
        Poll::Ready(Ok(()))
    }

    /// Makes a head that came the client's.
    fn read_head(&mut self, mut parts: response::Parts, ended: bool) -> Result<(Received, Body), Failed> {
        let Asking { asked, websocket_key, .. } = self.asking;
        let read = translate::check_response(&mut parts, ended, *asked).and_then(|body| {
            translate::response_to_h1(&parts, body, *asked, websocket_key, self.head)?;
            Ok((self.exchange.response_head(self.head)?, body))
        });
        read.map_err(|rule| self.broke_a_rule(rule))
    }

    fn broke_a_rule(&mut self, rule: Reject) -> Failed {
        self.record.detail = rule.as_str();
        self.failed(rule.response_reason())
    }

    fn response_broke(&mut self, broke: &Broke) -> Failed {
        match broke {
            Broke::Socket(error) => self.failed(Side::Downstream.broke(error)),
            Broke::Stream(Some(error)) => self.failed(reason_of(error)),
            Broke::Stream(None) => self.failed(Reason::UpstreamStreamReset),
            Broke::Truncated => self.failed(Reason::ResponseIncomplete),
            Broke::Rule(rule) => self.broke_a_rule(*rule),
            Broke::NoRoom => self.failed(Broken::no_room()),
        }
    }

    /// The stream failed before the final head.
    fn upstream_failed(&self, error: &h2::Error) -> Failed {
        let Facts { is_idempotent, .. } = self.asking.facts;
        let is_stale = error.is_io() && self.up.reused && self.asking.ends_with_head() && is_idempotent;
        let ended = if is_unprocessed(error) {
            Ended::Refused { graceful: is_goodbye(error) }
        } else if is_stale {
            Ended::Stale
        } else {
            Ended::Reset
        };
        Failed { ended, ..self.failed(reason_of(error)) }
    }

    fn is_replayable(&self) -> bool {
        self.asking.ends_with_head() || self.request.is_untouched() || self.down.inbox.can_rewind()
    }

    fn failed(&self, reason: Reason) -> Failed {
        let answerable = match &self.response {
            Some((_, pipe)) => !pipe.begun,
            None => self.written == 0 || self.written == self.framing.len(),
        };
        Failed {
            reason,
            answerable,
            ended: Ended::Final,
            replayable: self.is_replayable(),
            begun: self.response.is_some() || !self.framing.is_empty(),
            request_complete: self.request.is_done(),
        }
    }

    /// Gives its buffers back to the worker, and lets the server know how it ended: a tunnel's broken connection is no cancel.
    fn finish(mut self, failed: Option<Reason>) {
        if failed.is_some() {
            let is_broken = self.is_tunnel && self.asking.kind == Kind::Connect;
            self.up.sink.send_reset(if is_broken { h2::Reason::CONNECT_ERROR } else { h2::Reason::CANCEL });
        } else {
            self.up.held.1.complete();
        }
        let spare = &self.conn.worker.spare;
        spare.give(self.framing);
        if let Some((_, pipe)) = self.response {
            spare.give(pipe.into_framing());
        }
    }
}
