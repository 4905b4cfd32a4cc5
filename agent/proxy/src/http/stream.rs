//! One HTTP/2 stream between a client and an upstream: both directions at once, each held by the slower side's window.

mod carry;
mod cross;
mod held;

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::client::ResponseFuture;
use h2::ext::Protocol;
use h2::server::SendResponse;
use heddle_http::detect::HttpVersion;
use heddle_http::h1::{Asked, Body, is_idempotent};
use heddle_http::retry;
use heddle_http::translate::{self, Checked, Kind};
use heddle_http::{Limits, Reject, answer};
use heddle_telemetry::{Direction, Reason};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, header};

use self::carry::{Broke, Carry};
use self::held::{Came, Held};
use super::client::{Client, Unreached};
use super::clock::BodyClock;
use super::flow::{Flow, Incoming, Outgoing};
use super::plan::{self, Ended, ResponseFields, within};
use super::pool_h2::{is_goodbye, is_unprocessed, reason_of};
use super::record::{Record, Told, grpc_status};
use crate::authz::View;
use crate::registry::Conn;
use crate::route::Choice;

/// Serves one stream of a client that speaks `spoken` to its end: another agent may ask on behalf of one that speaks HTTP/1. `told`: what that
/// agent says to the application, whose own client's `x-heddle-*` goes.
pub(crate) async fn serve(
    client: Rc<Client>,
    flow: Rc<Flow>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    spoken: HttpVersion,
    told: Vec<(HeaderName, HeaderValue)>,
) {
    let mut record = Record::begin(&client.conn);
    let (mut parts, body) = request.into_parts();
    let body = Incoming::new(body, flow.clone());
    let protocol = parts.extensions.get::<Protocol>().map(|p| p.as_str().to_owned());
    let checked = translate::check_request(&mut parts, protocol.as_deref(), body.is_end_stream());
    parts.headers.extend(told.into_iter().map(|(name, value)| (Some(name), value)));
    record.is_head = parts.method == Method::HEAD;
    record.describe(|| {
        let value = |name: &str| parts.headers.get(name).map_or(&b""[..], |v| v.as_bytes());
        Told {
            protocol: match spoken {
                HttpVersion::Http1 => "HTTP/1.1",
                HttpVersion::Http2 => "HTTP/2",
            },
            method: parts.method.as_str(),
            authority: parts.uri.authority().map_or("", |a| a.as_str()),
            path: parts.uri.path_and_query().map_or("", |p| p.as_str()),
            user_agent: value("user-agent"),
            request_id: value("x-request-id"),
        }
    });
    let checked = match checked {
        Ok(checked) => checked,
        Err(rule) => {
            record.detail = rule.as_str();
            return refuse(&client, respond, record, rule.request_reason());
        }
    };
    record.grpc = checked.grpc;
    if let Err(reason) = record.take_budget() {
        return refuse(&client, respond, record, reason);
    }
    let mut body = body;
    let view = View::of_parts(&parts.method, &parts.uri, &parts.headers, protocol.is_some());
    let mut begun = client.begin(view, spoken, is_idempotent(parts.method.as_str()), &mut record);
    if let Some(delay) = record.plan.delay()
        && let Err(reason) = Box::pin(waits(delay, &mut body, &mut respond)).await
    {
        begun = Err(reason);
    }
    if let Err(reason) = begun {
        return refuse(&client, respond, record, reason);
    }
    if let Err(rule) = record.plan.edit_request(&mut parts) {
        record.detail = rule.as_str();
        return refuse(&client, respond, record, rule.request_reason());
    }
    let mut choice = match client.choose(spoken, &record.plan) {
        Ok(choice) => choice,
        Err(reason) => return refuse(&client, respond, record, reason),
    };
    if record.plan.is_mirrored() {
        let copied = (checked.kind == Kind::Plain).then(|| Request::from_parts(parts.clone(), ()));
        record.plan.copy_of(&client.conn, copied, !body.is_end_stream());
    }
    if !body.is_end_stream() && record.plan.keeps_body() {
        body.keep();
    }
    let mut asking = Asking { client, flow, parts, checked, body, respond, record };
    loop {
        let otherwise = match choice.version() {
            HttpVersion::Http2 => asking.on_a_stream(choice).await,
            // Boxed: few streams need the room.
            HttpVersion::Http1 => Box::pin(asking.on_a_connection(choice)).await,
        };
        match otherwise {
            Some(parts) => (asking, choice) = *parts,
            None => return,
        }
    }
}

/// A checked request and whoever waits for its answer.
struct Asking {
    client: Rc<Client>,
    /// What the client's connection holds.
    flow: Rc<Flow>,
    parts: Parts,
    checked: Checked,
    body: Incoming,
    respond: SendResponse<Bytes>,
    record: Record,
}

impl Asking {
    /// Serves it by an upstream that speaks HTTP/2.
    async fn on_a_stream(self, mut choice: Choice) -> Otherwise {
        let Self { client, flow, parts, checked, mut body, mut respond, mut record } = self;
        let asked = Asked {
            head: parts.method == Method::HEAD,
            connect: checked.kind == Kind::Connect,
            upgrade: checked.kind == Kind::WebSocket,
        };
        let ended = body.is_end_stream();
        let is_harmless = ended && is_idempotent(parts.method.as_str());
        let request = Request::from_parts(parts, ());
        // A call, like a tunnel, may be silent for as long as its peers like; whoever awaits 100 is not the one to move.
        let is_timed = checked.kind == Kind::Plain && !record.grpc && !request.headers().contains_key(header::EXPECT);
        loop {
            let by = record.plan.connect_by();
            let opening = within(by, client.open(&mut choice, &request, ended, &mut record));
            let opened = match unless_reset(&mut body, &mut respond, opening).await {
                Ok(opened) => opened,
                Err(Unreached::OtherVersion) => {
                    let (parts, ()) = request.into_parts();
                    let asking = Self { client, flow, parts, checked, body, respond, record };
                    return Some(Box::new((asking, choice)));
                }
                Err(Unreached::Failed(reason)) => {
                    refuse(&client, respond, record, reason);
                    return None;
                }
            };
            let mut exchange = Exchange {
                response: Some(opened.response),
                held: None,
                interim_left: Limits::DEFAULT.interim_responses_max,
                up: Carry::new(checked.body, record.grpc),
                down: Carry::new(Body::Empty, record.grpc),
                up_sink: opened.sink,
                flows: (flow.clone(), opened.flow),
                up_source: body,
                down_sink: None,
                down_source: None,
                asked,
                clock: is_timed.then(|| BodyClock::new(&client.conn)),
                may_be_stale: opened.reused && is_harmless,
                has_no_body: ended,
                conn: client.conn.clone(),
                is_tunnel: false,
            };
            exchange.up.ended = ended;
            if ended {
                record.plan.sent();
            }
            let mut judge = opened.permit.judge();
            let mut revoked = None;
            let outcome = poll_fn(|cx| {
                if let Poll::Ready(by) = judge.poll(cx, || View::of_request(&request)) {
                    revoked = Some(by);
                    return Poll::Ready(Err(Failed::new(Reason::PolicyClosed, h2::Reason::CANCEL)));
                }
                let polled = exchange.poll(cx, &mut respond, &mut record);
                let response = (exchange.down.bytes, &exchange.down.messages);
                record.progress((exchange.up.bytes, &exchange.up.messages), Some(response));
                polled
            })
            .await;
            revoked.into_iter().for_each(|by| record.judged.revoke(by));
            let Err(mut failed) = outcome else {
                opened.held.1.complete();
                record.finish(Reason::Completed);
                return None;
            };
            let replayable = exchange.is_replayable();
            let begun = exchange.is_begun();
            if let Some(wait) = record.plan.after(&client.conn, failed.ended, replayable, begun) {
                if failed.ended == Ended::Judged {
                    // It served: that its answer is not wanted is no fault of its connection.
                    opened.held.1.complete();
                }
                exchange.up_sink.send_reset(h2::Reason::CANCEL);
                body = exchange.up_source;
                body.rewind();
                match again(&client, wait, &mut body, &mut respond, choice.spoken(), &record).await {
                    Ok(chosen) => choice = chosen,
                    Err(reason) => {
                        refuse(&client, respond, record, reason);
                        return None;
                    }
                }
                if choice.version() != HttpVersion::Http2 {
                    let (parts, ()) = request.into_parts();
                    return Some(Box::new((Self { client, flow, parts, checked, body, respond, record }, choice)));
                }
                continue;
            }
            failed.reason = opened.held.1.why(failed.reason);
            let is_clients = failed.reason == Reason::RequestCancelled;
            exchange.up_sink.send_reset(if is_clients { failed.code } else { h2::Reason::CANCEL });
            fail(&client, respond, exchange.down_sink, record, &failed).await;
            return None;
        }
    }
}

/// A request whose next endpoint speaks another version of HTTP than those before.
type Otherwise = Option<Box<(Asking, Choice)>>;

/// Tells the client that its request failed: by an answer, or by a reset where one has begun; nothing else is true then.
async fn fail(client: &Client, respond: SendResponse<Bytes>, begun: Option<Outgoing>, record: Record, failed: &Failed) {
    match begun {
        _ if failed.reason == Reason::RequestCancelled => {}
        None => return refuse(client, respond, record, failed.reason),
        Some(mut sink) => {
            client.written().await;
            sink.send_reset(failed.code);
        }
    }
    record.finish(failed.reason);
}

/// Waits for an upstream as long as the client waits for its answer.
async fn unless_reset<T>(
    body: &mut Incoming,
    respond: &mut SendResponse<Bytes>,
    upstream: impl Future<Output = Result<T, Unreached>>,
) -> Result<T, Unreached> {
    tokio::select! {
        biased;
        _ = poll_fn(|cx| {
            body.wait(cx, 0);
            respond.poll_reset(cx)
        }) => Err(Reason::RequestCancelled.into()),
        upstream = upstream => upstream,
    }
}

/// Waits before another attempt, as long as the client waits for its answer.
async fn waits(wait: Duration, body: &mut Incoming, respond: &mut SendResponse<Bytes>) -> Result<(), Reason> {
    if wait.is_zero() {
        return Ok(());
    }
    let waited = async {
        tokio::time::sleep(wait).await;
        Ok(())
    };
    unless_reset(body, respond, waited).await.map_err(|_| Reason::RequestCancelled)
}

/// Whom another attempt goes to, once it is time for it.
async fn again(
    client: &Client,
    wait: Duration,
    body: &mut Incoming,
    respond: &mut SendResponse<Bytes>,
    spoken: HttpVersion,
    record: &Record,
) -> Result<Choice, Reason> {
    waits(wait, body, respond).await?;
    client.choose(spoken, &record.plan)
}

/// Answers for the upstream and records the request.
fn refuse(client: &Client, mut respond: SendResponse<Bytes>, mut record: Record, reason: Reason) {
    record.plan.given_up(&client.conn, reason);
    let made = record.plan.answer.take();
    let Some(status) = made.as_ref().map(|made| made.status).or_else(|| answer::status(reason)) else {
        respond.send_reset(h2::Reason::INTERNAL_ERROR);
        return record.finish(reason);
    };
    let reveal = client.conn.direction == Direction::Outbound || client.conn.source.is_some();
    let (mut response, body) = answer::h2(reason, status, record.grpc, reveal);
    let mut grpc_status = record.grpc.then(|| answer::grpc_status_of(reason));
    if let Some(made) = made {
        for (name, value) in &made.fields {
            // They were checked when the route was read; a request's own parts were when it came.
            let _ = response.headers_mut().add(name, value.as_bytes());
        }
        if let (Some(code), Some(told)) = (made.grpc_status, &mut grpc_status) {
            *told = code;
            response.headers_mut().insert("grpc-status", HeaderValue::from(u16::from(code)));
        }
    }
    record.plan.edit_answer(response.headers_mut());
    let body = if record.is_head { "" } else { body };
    record.status = response.status().as_u16();
    record.grpc_status = grpc_status;
    // An error means that the client is gone.
    if let Ok(mut sink) = respond.send_response(response, body.is_empty())
        && !body.is_empty()
    {
        let _ = sink.send_data(Bytes::from_static(body.as_bytes()), true);
        record.response_bytes = body.len() as u64;
    }
    record.finish(reason);
}

/// How an exchange broke, and what a peer that has heard a part of it is told.
struct Failed {
    reason: Reason,
    code: h2::Reason,
    /// What that says about another attempt.
    ended: Ended,
}

impl Failed {
    fn new(reason: Reason, code: h2::Reason) -> Self {
        Self { reason, code, ended: Ended::Final }
    }

    fn of_upstream(error: &h2::Error) -> Self {
        let code = error.reason().filter(|_| error.is_reset()).unwrap_or(h2::Reason::INTERNAL_ERROR);
        Self::new(reason_of(error), code)
    }

    fn of_client(code: h2::Reason) -> Self {
        Self::new(Reason::RequestCancelled, code)
    }

    /// The client did not go on with its body.
    fn late() -> Self {
        Self::new(Reason::RequestTimeout, h2::Reason::CANCEL)
    }

    fn of_request(rule: Reject) -> Self {
        Self::new(rule.request_reason(), h2::Reason::PROTOCOL_ERROR)
    }

    fn of_response(rule: Reject) -> Self {
        Self::new(rule.response_reason(), h2::Reason::INTERNAL_ERROR)
    }
}

struct Exchange {
    /// Until the final head came.
    response: Option<ResponseFuture>,
    /// That head, while it is held back.
    held: Option<Box<Held>>,
    /// Interim responses that may still come before it: they are outside flow control.
    interim_left: u32,
    up: Carry,
    down: Carry,
    up_source: Incoming,
    up_sink: Outgoing,
    down_source: Option<Incoming>,
    down_sink: Option<Outgoing>,
    /// Of the client's connection and the upstream's.
    flows: (Rc<Flow>, Rc<Flow>),
    asked: Asked,
    clock: Option<BodyClock>,
    /// The upstream's connection may have been closed while it was idle, and the request may be sent twice.
    may_be_stale: bool,
    has_no_body: bool,
    conn: Rc<Conn>,
    /// The response began a tunnel, which lives until both directions ended.
    is_tunnel: bool,
}

impl Exchange {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        respond: &mut SendResponse<Bytes>,
        record: &mut Record,
    ) -> Poll<Result<(), Failed>> {
        let moved = record.request_bytes + record.response_bytes;
        if let Poll::Ready((reason, ended)) = record.plan.poll_late(cx, moved, self.up.ended) {
            return Poll::Ready(Err(Failed { ended, ..Failed::new(reason, h2::Reason::CANCEL) }));
        }
        // The client's reset is felt upstream at once.
        let reset = match &mut self.down_sink {
            Some(sink) => sink.poll_reset(cx),
            None => respond.poll_reset(cx),
        };
        if let Poll::Ready(reset) = reset
            && !self.down.ended
        {
            return Poll::Ready(Err(Failed::of_client(reset.unwrap_or(h2::Reason::CANCEL))));
        }
        if !self.up.ended {
            match self.up.poll(cx, &mut self.up_source, &mut self.up_sink, None) {
                Poll::Ready(Err(Broke::Source(_))) => {
                    return Poll::Ready(Err(Failed::of_client(h2::Reason::CANCEL)));
                }
                Poll::Ready(Err(Broke::Rule(rule))) => {
                    record.detail = rule.as_str();
                    return Poll::Ready(Err(Failed::of_request(rule)));
                }
                // The server wants no more of it; its answer says why.
                Poll::Ready(Err(Broke::Sink)) => self.up.ended = true,
                Poll::Ready(Ok(())) => record.plan.sent(),
                Poll::Pending => {
                    let is_clients_turn = self.response.is_some() && self.up.pending.is_empty();
                    if let Some(clock) = &mut self.clock
                        && clock.poll(cx, self.up.bytes, is_clients_turn).is_ready()
                    {
                        return Poll::Ready(Err(Failed::late()));
                    }
                }
            }
        }
        if self.response.is_some() {
            ready!(self.poll_head(cx, respond, record))?;
        }
        if self.held.is_some() {
            ready!(self.poll_held(cx, respond, record))?;
        }
        let (Some(source), Some(sink)) = (&mut self.down_source, &mut self.down_sink) else {
            return Poll::Ready(Ok(()));
        };
        if !self.down.ended {
            match ready!(self.down.poll(cx, source, sink, Some(record))) {
                Ok(()) => {}
                Err(Broke::Source(error)) => return Poll::Ready(Err(Failed::of_upstream(&error))),
                Err(Broke::Sink) => return Poll::Ready(Err(Failed::of_client(h2::Reason::CANCEL))),
                Err(Broke::Rule(rule)) => {
                    record.detail = rule.as_str();
                    return Poll::Ready(Err(Failed::of_response(rule)));
                }
            }
        }
        if self.is_tunnel && !self.up.ended { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    /// Interim responses as they come, then the head.
    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        respond: &mut SendResponse<Bytes>,
        record: &mut Record,
    ) -> Poll<Result<(), Failed>> {
        let Some(mut response) = self.response.take() else { return Poll::Ready(Ok(())) };
        while let Poll::Ready(Some(interim)) = response.poll_informational(cx) {
            let (mut parts, ()) = interim.map_err(|e| self.upstream_failed(&e))?.into_parts();
            let Some(left) = self.interim_left.checked_sub(1) else {
                record.detail = Reject::TooManyInterim.as_str();
                return Poll::Ready(Err(Failed::of_response(Reject::TooManyInterim)));
            };
            self.interim_left = left;
            if translate::check_response(&mut parts, false, self.asked).is_ok() {
                // An error means that the client is gone, which shows elsewhere.
                let _ = respond.send_informational(http::Response::from_parts(parts, ()));
            }
        }
        let (mut parts, source) = match Pin::new(&mut response).poll(cx) {
            Poll::Ready(Ok(response)) => response.into_parts(),
            Poll::Ready(Err(error)) => return Poll::Ready(Err(self.upstream_failed(&error))),
            Poll::Pending => {
                self.response = Some(response);
                return Poll::Pending;
            }
        };
        let ended = source.is_end_stream();
        let reason = record.read_reason(&parts.headers);
        let body = translate::check_response(&mut parts, ended, self.asked).map_err(|rule| {
            record.detail = rule.as_str();
            Failed::of_response(rule)
        })?;
        let source = Incoming::new(source, self.flows.1.clone());
        let came = Came { parts, source, body, ended, reason };
        // A unary call that fails is often told so behind a head of its own: who is asked for another attempt wants to know first. A client that
        // has more to say may wait for that head.
        if !ended && self.up.ended && self.up.messages.count <= 1 && record.plan.awaits_status() {
            self.held = Some(Box::new(Held::new(came, record.plan.hold_head())));
            return self.poll_held(cx, respond, record);
        }
        self.pass_on(came, None, respond, record)
    }

    /// Waits for what a head is held back for.
    fn poll_held(
        &mut self,
        cx: &mut Context<'_>,
        respond: &mut SendResponse<Bytes>,
        record: &mut Record,
    ) -> Poll<Result<(), Failed>> {
        let Some(mut held) = self.held.take() else { return Poll::Ready(Ok(())) };
        match held.poll(cx) {
            Poll::Pending => {
                self.held = Some(held);
                Poll::Pending
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(self.upstream_failed(&error))),
            Poll::Ready(Ok(trailers)) => self.pass_on(held.response, trailers, respond, record),
        }
    }

    /// Passes a head on, unless it asks for another attempt.
    fn pass_on(
        &mut self,
        came: Came,
        trailers: Option<HeaderMap>,
        respond: &mut SendResponse<Bytes>,
        record: &mut Record,
    ) -> Poll<Result<(), Failed>> {
        let Came { mut parts, source, body, ended, reason } = came;
        let response = plan::Response {
            status: parts.status.as_u16(),
            head: &parts.headers,
            trailers: trailers.as_ref().map(|trailers| trailers as &dyn retry::Lookup),
            ended,
            replayable: self.is_replayable(),
            begun: self.is_begun(),
        };
        if record.plan.judge(&self.conn, &response) {
            return Poll::Ready(Err(Failed { ended: Ended::Judged, ..Failed::of_client(h2::Reason::CANCEL) }));
        }
        if record.plan.is_mirrored() {
            let body = if self.up.is_whole { self.up_source.kept_body() } else { None };
            record.plan.launch(&self.conn, body);
        }
        self.up_source.forget();
        record.plan.edit_response(&mut parts.headers);
        self.is_tunnel = body == Body::Tunnel;
        if self.is_tunnel {
            record.plan.begin_tunnel();
        }
        self.down = Carry::new(body, record.grpc);
        self.down.ended = ended;
        record.status = parts.status.as_u16();
        if ended {
            record.read_grpc_status(grpc_status(&parts.headers));
        }
        if let Some(reason) = reason {
            parts.headers.insert(answer::REASON_HEADER, HeaderValue::from_static(reason.as_str()));
        }
        let gone = |_| Failed::of_client(h2::Reason::CANCEL);
        let sink = respond.send_response(http::Response::from_parts(parts, ()), ended).map_err(gone)?;
        self.down_source = Some(source);
        self.down_sink = Some(Outgoing::new(sink, self.flows.0.clone()));
        Poll::Ready(Ok(()))
    }
}

impl Exchange {
    /// Before the final head.
    fn upstream_failed(&self, error: &h2::Error) -> Failed {
        let ended = if is_unprocessed(error) {
            Ended::Refused { graceful: is_goodbye(error) }
        } else if error.is_io() && self.may_be_stale {
            Ended::Stale
        } else {
            Ended::Reset
        };
        Failed { ended, ..Failed::of_upstream(error) }
    }

    /// Whether the client got a byte of a response.
    fn is_begun(&self) -> bool {
        self.down_sink.is_some() || self.interim_left != Limits::DEFAULT.interim_responses_max
    }

    fn is_replayable(&self) -> bool {
        self.up.is_untouched() || self.up_source.can_rewind() || self.has_no_body
    }
}
