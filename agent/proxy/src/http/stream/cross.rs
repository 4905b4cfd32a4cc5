//! A stream's request on a connection to an HTTP/1 upstream. Extended CONNECT (RFC 8441) becomes an upgrade to WebSocket, whose
//! handshake is the agent's own.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::server::SendResponse;
use heddle_http::h1::{Body, BodyDecoder, BodyEncoder, Exchange, Progress, Received, ResponseHead, ResponseParser};
use heddle_http::translate::{self, Kind};
use heddle_http::{Limits, Reject, websocket};
use heddle_telemetry::Reason;
use socket2::SockRef;
use tokio::net::TcpStream;

use super::{Asking, Failed, Otherwise, again, fail, refuse, unless_reset};
use crate::authz::View;
use crate::copy::{self, Side, burst};
use crate::http::bridge::{Broke, ToSocket, ToStream};
use crate::http::client::Unreached;
use crate::http::clock::BodyClock;
use crate::http::flow::{Flow, Incoming, Outgoing};
use crate::http::inbox::{Filled, Inbox};
use crate::http::pipe::Broken;
use crate::http::plan::{self, Ended, within};
use crate::http::record::{Messages, Record};
use crate::http::relay::Facts;
use crate::registry::Conn;
use crate::route::{Choice, From};

impl Asking {
    /// Serves it by an upstream that speaks HTTP/1.
    pub(super) async fn on_a_connection(self, mut choice: Choice) -> Otherwise {
        let Self { client, flow, parts, checked, mut body, mut respond, mut record } = self;
        let worker = client.conn.worker.clone();
        let websocket_key = match checked.kind {
            Kind::WebSocket => websocket::key(fastrand::u128(..).to_ne_bytes()),
            Kind::Plain | Kind::Connect => String::new(),
        };
        let mut heads = worker.spare_heads.take();
        if let Err(rule) = translate::request_to_h1(&parts, &checked, &websocket_key, &mut heads.request) {
            record.detail = rule.as_str();
            refuse(&client, respond, record, rule.request_reason());
            return None;
        }
        let facts = Facts::of(&heads.request, &Limits::DEFAULT);
        let mut from = From::Pool;
        loop {
            let by = record.plan.connect_by();
            let connecting = within(by, client.connection(&mut choice, from, &heads.request, &mut record));
            let (upstream, permit) = match unless_reset(&mut body, &mut respond, connecting).await {
                Ok(connected) => connected,
                Err(Unreached::OtherVersion) => {
                    let asking = Self { client, flow, parts, checked, body, respond, record };
                    return Some(Box::new((asking, choice)));
                }
                Err(Unreached::Failed(reason)) => {
                    refuse(&client, respond, record, reason);
                    return None;
                }
            };
            let renewed = client.renewed(permit, &upstream.endpoint, || View::of_head(&heads.request), &mut record);
            let permit = match renewed {
                Ok(permit) => permit,
                Err(reason) => {
                    client.put_back(upstream, true);
                    refuse(&client, respond, record, reason);
                    return None;
                }
            };
            record.set_endpoint(&upstream.endpoint);
            if let Err(rule) = permit.apply_to_head(&mut heads.request) {
                record.detail = rule.as_str();
                client.put_back(upstream, true);
                refuse(&client, respond, record, rule.request_reason());
                return None;
            }
            if record.plan.number() > 1 {
                // What a former attempt was told.
                heads.request.fields_mut().remove("x-heddle-attempt");
                if upstream.endpoint.way.via().is_authenticated() {
                    // A word of ours has no byte a value may not have.
                    let number = record.plan.number().to_string();
                    let _ = heads.request.fields_mut().set(b"x-heddle-attempt", number.as_bytes());
                }
            }
            let mut judge = permit.judge();
            let mut wire = worker.spare.take();
            heads.request.write(&mut wire);
            let mut crossing = Crossing {
                conn: &client.conn,
                kind: checked.kind,
                websocket_key: &websocket_key,
                facts,
                exchange: facts.exchange,
                flow: flow.clone(),
                source: &mut body,
                respond: &mut respond,
                up: &upstream.stream,
                inbox: Inbox::default(),
                request: ToSocket::new(wire, BodyEncoder::new(facts.body), Messages::new(record.grpc)),
                request_lost: None,
                clock: (checked.kind == Kind::Plain && !record.grpc).then(|| BodyClock::new(&client.conn)),
                parser: ResponseParser::new(Limits::DEFAULT),
                head: &mut heads.response,
                interim_came: false,
                response: None,
                record: &mut record,
                is_tunnel: false,
            };
            let mut revoked = None;
            let outcome = {
                let mut gone = pin!(copy::watch(&upstream.stream));
                poll_fn(|cx| {
                    if let Poll::Ready(by) = judge.poll(cx, || View::of_head(&heads.request)) {
                        revoked = Some(by);
                        return Poll::Ready(Err(crossing.failed(Reason::PolicyClosed)));
                    }
                    match crossing.poll(cx) {
                        // Nothing else would show that the server is gone.
                        Poll::Pending if crossing.is_deaf() => {
                            gone.as_mut().poll(cx).map(|error| Err(crossing.failed(Side::Upstream.broke(&error))))
                        }
                        polled => polled,
                    }
                })
                .await
            };
            let (replayable, begun) = (crossing.is_replayable(), crossing.is_begun());
            let (sink, keep_upstream) = crossing.finish();
            revoked.into_iter().for_each(|by| record.judged.revoke(by));
            match outcome {
                Ok(()) => {
                    client.put_back(upstream, keep_upstream);
                    record.finish(Reason::Completed);
                }
                Err(failed) => {
                    let ended = failed.ended.on(upstream.reused);
                    // The upstream is reset: it learns at once that nobody waits.
                    drop(upstream);
                    if let Some(wait) = record.plan.after(&client.conn, ended, replayable, begun) {
                        body.rewind();
                        // What was closed while it was idle may have others that are as stale: a new one is not.
                        from = if ended == Ended::Stale { From::Dial } else { From::Pool };
                        match again(&client, wait, &mut body, &mut respond, choice.spoken(), &record).await {
                            Ok(chosen) => choice = chosen,
                            Err(reason) => {
                                refuse(&client, respond, record, reason);
                                return None;
                            }
                        }
                        continue;
                    }
                    fail(&client, respond, sink, record, &failed).await;
                }
            }
            worker.spare_heads.give(heads);
            return None;
        }
    }
}

/// One exchange.
struct Crossing<'a> {
    conn: &'a Rc<Conn>,
    kind: Kind,
    /// Of the upgrade that stands for extended CONNECT.
    websocket_key: &'a str,
    facts: Facts,
    exchange: Exchange,
    /// What the client's connection holds.
    flow: Rc<Flow>,
    source: &'a mut Incoming,
    respond: &'a mut SendResponse<Bytes>,
    up: &'a TcpStream,
    inbox: Inbox,
    request: ToSocket,
    /// Writing the request failed: only an answer that is here already can save it.
    request_lost: Option<Reason>,
    clock: Option<BodyClock>,
    parser: ResponseParser,
    head: &'a mut ResponseHead,
    interim_came: bool,
    response: Option<(Outgoing, ToStream)>,
    record: &'a mut Record,
    is_tunnel: bool,
}

impl Crossing<'_> {
    /// Moves both directions as far as they go.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        let polled = self.poll_both(cx);
        let response = self.response.as_ref().map(|(_, pipe)| (pipe.bytes, &pipe.messages));
        self.record.progress((self.request.bytes, &self.request.messages), response);
        polled
    }

    fn poll_both(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        let moved = self.record.request_bytes + self.record.response_bytes;
        if let Poll::Ready((reason, ended)) = self.record.plan.poll_late(cx, moved, self.request.is_done()) {
            return Poll::Ready(Err(Failed { ended, ..self.failed(reason) }));
        }
        // The client's reset is felt upstream at once.
        let reset = match &mut self.response {
            Some((sink, pipe)) if !pipe.is_done() => sink.poll_reset(cx),
            Some(_) => Poll::Pending,
            None => self.respond.poll_reset(cx),
        };
        if let Poll::Ready(reset) = reset {
            return Poll::Ready(Err(Failed::of_client(reset.unwrap_or(h2::Reason::CANCEL))));
        }
        self.poll_request(cx)?;
        if self.response.is_none() {
            ready!(self.poll_head(cx))?;
            if self.is_tunnel {
                self.poll_request(cx)?;
            }
        }
        let Some((sink, pipe)) = &mut self.response else { return Poll::Pending };
        if !pipe.is_done() {
            let mut allowance = burst(self.conn.worker.table.len());
            ready!(pipe.poll(cx, self.conn, self.up, &mut self.inbox, sink, &mut allowance))
                .map_err(|broke| self.response_broke(&broke))?;
        }
        if self.is_tunnel && !self.request.is_done() {
            return Poll::Pending;
        }
        self.exchange.response_received();
        Poll::Ready(Ok(()))
    }

    /// Whether the server is not read from, so that its end would not show, in a tunnel, which ends by nothing else.
    fn is_deaf(&self) -> bool {
        self.is_tunnel && self.response.as_ref().is_some_and(|(_, pipe)| pipe.is_done() || pipe.is_held_up())
    }

    fn poll_request(&mut self, cx: &mut Context<'_>) -> Result<(), Failed> {
        if self.request_lost.is_some() || self.request.is_done() {
            return Ok(());
        }
        // A tunnel's bytes wait until it is one: a server that declines must not take them for anything else.
        let polled = if self.kind == Kind::Plain || self.is_tunnel {
            self.request.poll(cx, self.source, self.up, None)
        } else {
            self.request.poll_flush(cx, self.source, self.up)
        };
        if self.request.bytes > 0 {
            self.exchange.body_begun();
        }
        let broke = match polled {
            Poll::Pending => {
                let is_clients_turn =
                    self.response.is_none() && self.request.is_flushed() && !self.exchange.awaits_continue();
                let late =
                    self.clock.as_mut().is_some_and(|c| c.poll(cx, self.request.bytes, is_clients_turn).is_ready());
                return if late { Err(Failed::late()) } else { Ok(()) };
            }
            Poll::Ready(Ok(())) if self.is_tunnel => {
                let ended = SockRef::from(self.up).shutdown(std::net::Shutdown::Write);
                return ended.map_err(|error| self.failed(Side::Upstream.broke(&error)));
            }
            Poll::Ready(Ok(())) => {
                self.exchange.request_sent();
                self.record.plan.sent();
                return Ok(());
            }
            Poll::Ready(Err(broke)) => broke,
        };
        match broke {
            Broke::Socket(error) if self.is_tunnel => Err(self.failed(Side::Upstream.broke(&error))),
            // The server may have answered before it closed: that answer counts.
            Broke::Socket(error) => {
                self.request_lost = Some(Side::Upstream.broke(&error));
                Ok(())
            }
            Broke::Rule(rule) => {
                self.record.detail = rule.as_str();
                Err(Failed::of_request(rule))
            }
            Broke::Stream(_) | Broke::Truncated | Broke::NoRoom => Err(Failed::of_client(h2::Reason::CANCEL)),
        }
    }

    /// Interim responses as they come, then the final head.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        loop {
            while let Some(received) = self.read_head().map_err(|rule| self.broke_a_rule(rule))? {
                let key = self.websocket_key.as_bytes();
                let response = translate::response_to_h2(self.head, key).map_err(|rule| self.broke_a_rule(rule))?;
                if matches!(received, Received::Interim { .. }) {
                    self.interim_came = true;
                    // An error means that the client is gone, which shows elsewhere.
                    let _ = self.respond.send_informational(response);
                    continue;
                }
                let mut response = response;
                let (body, messages) = (self.head.body(), Messages::new(self.record.grpc));
                let told = plan::Response {
                    status: response.status().as_u16(),
                    head: response.headers(),
                    trailers: None,
                    ended: body == Body::Empty,
                    replayable: self.is_replayable(),
                    begun: self.interim_came,
                };
                if self.record.plan.judge(self.conn, &told) {
                    return Poll::Ready(Err(Failed { ended: Ended::Judged, ..self.failed(Reason::UpstreamReset) }));
                }
                if self.record.plan.is_mirrored() {
                    let body = if self.request.is_done() { self.source.kept_body() } else { None };
                    self.record.plan.launch(self.conn, body);
                }
                self.source.forget();
                self.record.plan.edit_response(response.headers_mut());
                self.is_tunnel = received == Received::Tunnel;
                if self.is_tunnel {
                    self.record.plan.begin_tunnel();
                    self.request = ToSocket::new(Vec::new(), BodyEncoder::new(Body::Tunnel), messages);
                }
                self.record.status = response.status().as_u16();
                let ended = body == Body::Empty;
                let gone = |_| Failed::of_client(h2::Reason::CANCEL);
                let sink = self.respond.send_response(response, ended).map_err(gone)?;
                let decoder = BodyDecoder::new(body, &Limits::DEFAULT);
                let pipe = if ended { ToStream::ended(messages) } else { ToStream::new(decoder, messages) };
                self.response = Some((Outgoing::new(sink, self.flow.clone()), pipe));
                return Poll::Ready(Ok(()));
            }
            match ready!(self.inbox.poll_fill(cx, self.conn, self.up)) {
                Ok(Filled::Bytes(_)) => {}
                Ok(Filled::End) => return Poll::Ready(Err(self.no_response(Reason::ResponseIncomplete))),
                Ok(Filled::NoRoom) => return Poll::Ready(Err(self.failed(Broken::no_room()))),
                Err(error) => return Poll::Ready(Err(self.no_response(Side::Upstream.broke(&error)))),
            }
        }
    }

    /// The next head in the inbox.
    fn read_head(&mut self) -> Result<Option<Received>, Reject> {
        if self.inbox.is_empty() {
            return Ok(None);
        }
        let Progress::Complete { consumed } =
            self.parser.parse(self.inbox.bytes(), self.exchange.asked(), self.head)?
        else {
            return Ok(None);
        };
        self.inbox.consume(consumed);
        let received = self.exchange.response_head(self.head)?;
        // A tunnel before its request is not what was asked for.
        let is_unasked = received == Received::Tunnel && !self.request.is_flushed();
        if is_unasked { Err(Reject::UpgradeUnasked) } else { Ok(Some(received)) }
    }

    /// The upstream ended before a final head. If nothing at all came, its connection may have been closed all along, and the request may be
    /// sent again where that is safe: when not one byte of it was sent, or it is idempotent and no part of a body is lost.
    fn no_response(&self, reason: Reason) -> Failed {
        let nothing_came = !self.parser.has_begun() && !self.interim_came;
        let is_unsent = !self.request.begun && self.request.is_untouched();
        let is_harmless = is_unsent || (self.facts.is_idempotent && self.is_replayable());
        let ended = if nothing_came && is_harmless { Ended::Stale } else { Ended::Reset };
        Failed { ended, ..self.failed(self.request_lost.unwrap_or(reason)) }
    }

    fn is_replayable(&self) -> bool {
        self.facts.body == Body::Empty || self.request.is_untouched() || self.source.can_rewind()
    }

    /// Whether the client got a byte of a response.
    fn is_begun(&self) -> bool {
        self.response.is_some() || self.interim_came
    }

    fn response_broke(&mut self, broke: &Broke) -> Failed {
        match broke {
            Broke::Socket(error) => self.failed(Side::Upstream.broke(error)),
            Broke::Truncated => self.failed(Reason::ResponseIncomplete),
            Broke::Stream(_) => Failed::of_client(h2::Reason::CANCEL),
            Broke::Rule(rule) => self.broke_a_rule(*rule),
            Broke::NoRoom => self.failed(Broken::no_room()),
        }
    }

    fn broke_a_rule(&mut self, rule: Reject) -> Failed {
        self.record.detail = rule.as_str();
        Failed::of_response(rule)
    }

    fn failed(&self, reason: Reason) -> Failed {
        let code = match self.kind {
            Kind::Plain => h2::Reason::INTERNAL_ERROR,
            // RFC 9113 §8.5, RFC 8441 §5.
            Kind::Connect => h2::Reason::CONNECT_ERROR,
            Kind::WebSocket => h2::Reason::CANCEL,
        };
        Failed::new(reason, code)
    }

    /// Gives its buffers back to the worker. The client's stream, if a response began, and whether the upstream may serve again.
    fn finish(self) -> (Option<Outgoing>, bool) {
        let keep_upstream = self.exchange.upstream_reusable(!self.inbox.is_empty());
        self.conn.worker.spare.give(self.request.into_framing());
        (self.response.map(|(sink, _)| sink), keep_upstream)
    }
}
