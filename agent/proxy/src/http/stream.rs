//! One HTTP/2 stream between a client and an upstream: both directions at once, each held by the slower side's window.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::ext::Protocol;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use heddle_http::h1::{Asked, Body};
use heddle_http::translate::{self, Kind, LengthCheck};
use heddle_http::{Limits, Reject, answer};
use heddle_telemetry::{Direction, Reason};
use http::{HeaderMap, HeaderValue, Method, Request};

use super::h2::Client;
use super::pool_h2::{Place, reason_of};
use super::record::{Messages, Record, Told};
use crate::route::EndpointRef;

/// Times a request is sent again because its stream was refused before the server looked at it.
const REFUSED_RETRIES_MAX: u32 = 2;

/// Serves one stream to its end.
pub(crate) async fn serve(client: Rc<Client>, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let mut record = Record::begin(&client.conn);
    let (mut parts, mut body) = request.into_parts();
    let protocol = parts.extensions.get::<Protocol>().map(|p| p.as_str().to_owned());
    let checked = translate::check_request(&mut parts, protocol.as_deref(), body.is_end_stream());
    record.describe(|| {
        let value = |name: &str| parts.headers.get(name).map_or(&b""[..], |v| v.as_bytes());
        Told {
            protocol: "HTTP/2",
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
    let asked = Asked {
        head: parts.method == Method::HEAD,
        connect: checked.kind == Kind::Connect,
        upgrade: checked.kind == Kind::WebSocket,
    };
    let mut up = Carry::new(checked.body, record.grpc);
    for refused in 0..=REFUSED_RETRIES_MAX {
        let (endpoint, place) = match client.place(&mut record).await {
            Ok(place) => place,
            Err(reason) => return refuse(&client, respond, record, reason),
        };
        record.set_endpoint(endpoint.addr, endpoint.workload.as_ref());
        let ended = body.is_end_stream();
        let mut upstream = Request::new(());
        *upstream.method_mut() = parts.method.clone();
        *upstream.uri_mut() = parts.uri.clone();
        // A request with a body is never sent twice.
        *upstream.headers_mut() = if ended { parts.headers.clone() } else { std::mem::take(&mut parts.headers) };
        if let Some(protocol) = parts.extensions.get::<Protocol>() {
            upstream.extensions_mut().insert(protocol.clone());
        }
        let opened = open(&place, upstream, ended).await;
        let (response, sink) = match opened {
            Ok(opened) => opened,
            Err(error) => return refuse(&client, respond, record, reason_of(&error)),
        };
        up.ended = ended;
        let mut exchange = Exchange {
            response: Some(response),
            interim_left: Limits::DEFAULT.interim_responses_max,
            up,
            down: Carry::new(Body::Empty, record.grpc),
            up_sink: sink,
            up_source: body,
            down_sink: None,
            down_source: None,
            asked,
            is_tunnel: false,
        };
        let outcome = poll_fn(|cx| {
            let polled = exchange.poll(cx, &mut respond, &mut record);
            record.progress(exchange.up.bytes, exchange.down.bytes);
            polled
        })
        .await;
        record.request_messages = exchange.up.messages.count;
        record.response_messages = exchange.down.messages.count;
        let _ends_after = (endpoint, place);
        match outcome {
            Ok(()) => return record.finish(Reason::Completed),
            Err(Failed { reason: Reason::RequestCancelled, code }) => {
                exchange.up_sink.send_reset(code);
                return record.finish(Reason::RequestCancelled);
            }
            Err(Failed { reason, code }) => {
                if exchange.down_sink.is_none() {
                    if code == h2::Reason::REFUSED_STREAM && refused < REFUSED_RETRIES_MAX && ended {
                        (body, up) = (exchange.up_source, Carry::new(Body::Empty, record.grpc));
                        continue;
                    }
                    exchange.up_sink.send_reset(h2::Reason::CANCEL);
                    return refuse(&client, respond, record, reason);
                }
                // The response has begun: a reset is the only truth left.
                exchange.up_sink.send_reset(h2::Reason::CANCEL);
                if let Some(mut sink) = exchange.down_sink {
                    client.written().await;
                    sink.send_reset(code);
                }
                return record.finish(reason);
            }
        }
    }
}

async fn open(
    place: &Place,
    request: Request<()>,
    ended: bool,
) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
    let mut sender = place.sender();
    poll_fn(|cx| sender.poll_ready(cx)).await?;
    sender.send_request(request, ended)
}

/// Answers for the upstream and records the request.
fn refuse(client: &Client, mut respond: SendResponse<Bytes>, mut record: Record, reason: Reason) {
    let Some(status) = answer::status(reason) else {
        respond.send_reset(h2::Reason::INTERNAL_ERROR);
        return record.finish(reason);
    };
    let reveal = client.conn.direction == Direction::Outbound || client.conn.source.is_some();
    let (response, body) = answer::h2(reason, status, record.grpc, reveal);
    record.status = response.status().as_u16();
    record.grpc_status = record.grpc.then(|| answer::grpc_status_of(reason));
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
}

impl Failed {
    fn of_upstream(error: &h2::Error) -> Self {
        let code = error.reason().filter(|_| error.is_reset()).unwrap_or(h2::Reason::INTERNAL_ERROR);
        Self { reason: reason_of(error), code }
    }

    fn of_client(code: h2::Reason) -> Self {
        Self { reason: Reason::RequestCancelled, code }
    }
}

struct Exchange {
    /// Until the final head came.
    response: Option<ResponseFuture>,
    /// Interim responses that may still come before it: they are outside flow control.
    interim_left: u32,
    up: Carry,
    down: Carry,
    up_source: RecvStream,
    up_sink: SendStream<Bytes>,
    down_source: Option<RecvStream>,
    down_sink: Option<SendStream<Bytes>>,
    asked: Asked,
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
                    let code = h2::Reason::PROTOCOL_ERROR;
                    return Poll::Ready(Err(Failed { reason: rule.request_reason(), code }));
                }
                // The server wants no more of it; its answer says why.
                Poll::Ready(Err(Broke::Sink)) => self.up.ended = true,
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        if self.response.is_some() {
            ready!(self.poll_head(cx, respond, record))?;
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
                    let code = h2::Reason::INTERNAL_ERROR;
                    return Poll::Ready(Err(Failed { reason: rule.response_reason(), code }));
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
        let Some(response) = &mut self.response else { return Poll::Ready(Ok(())) };
        while let Poll::Ready(Some(interim)) = response.poll_informational(cx) {
            let (mut parts, ()) = interim.map_err(|e| Failed::of_upstream(&e))?.into_parts();
            let Some(left) = self.interim_left.checked_sub(1) else {
                record.detail = Reject::TooManyInterim.as_str();
                let reason = Reject::TooManyInterim.response_reason();
                return Poll::Ready(Err(Failed { reason, code: h2::Reason::INTERNAL_ERROR }));
            };
            self.interim_left = left;
            if translate::check_response(&mut parts, false, self.asked).is_ok() {
                // An error means that the client is gone, which shows elsewhere.
                let _ = respond.send_informational(http::Response::from_parts(parts, ()));
            }
        }
        let (mut parts, source) = match ready!(Pin::new(response).poll(cx)) {
            Ok(response) => response.into_parts(),
            Err(error) => return Poll::Ready(Err(Failed::of_upstream(&error))),
        };
        self.response = None;
        let ended = source.is_end_stream();
        let body = translate::check_response(&mut parts, ended, self.asked).map_err(|rule| {
            record.detail = rule.as_str();
            Failed { reason: rule.response_reason(), code: h2::Reason::INTERNAL_ERROR }
        })?;
        self.is_tunnel = body == Body::Tunnel;
        self.down = Carry::new(body, record.grpc);
        self.down.ended = ended;
        record.status = parts.status.as_u16();
        if ended {
            record.read_grpc_status(grpc_status(&parts.headers));
        }
        let gone = |_| Failed::of_client(h2::Reason::CANCEL);
        let sink = respond.send_response(http::Response::from_parts(parts, ()), ended).map_err(gone)?;
        (self.down_source, self.down_sink) = (Some(source), Some(sink));
        Poll::Ready(Ok(()))
    }
}

fn grpc_status(fields: &HeaderMap) -> Option<&[u8]> {
    fields.get("grpc-status").map(HeaderValue::as_bytes)
}

/// Why a direction broke.
enum Broke {
    /// The peer that sends reset it, or is gone.
    Source(h2::Error),
    /// The peer that receives wants no more.
    Sink,
    /// A rule.
    Rule(Reject),
}

/// One direction's body.
struct Carry {
    /// Received and not yet sent, for the receiver's window is closed.
    pending: Bytes,
    data_ended: bool,
    pub(crate) ended: bool,
    length: LengthCheck,
    bytes: u64,
    messages: Messages,
}

impl Carry {
    fn new(body: Body, grpc: bool) -> Self {
        Self {
            pending: Bytes::new(),
            data_ended: false,
            ended: false,
            length: LengthCheck::new(body),
            bytes: 0,
            messages: Messages::new(grpc),
        }
    }

    /// Moves what can be moved; ready at the end. Bytes are given back to the sender's window when they are sent on.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut RecvStream,
        sink: &mut SendStream<Bytes>,
        record: Option<&mut Record>,
    ) -> Poll<Result<(), Broke>> {
        loop {
            while !self.pending.is_empty() {
                sink.reserve_capacity(self.pending.len());
                let capacity = match sink.capacity() {
                    0 => match ready!(sink.poll_capacity(cx)) {
                        Some(Ok(capacity)) => capacity,
                        Some(Err(_)) | None => return Poll::Ready(Err(Broke::Sink)),
                    },
                    capacity => capacity,
                };
                let part = self.pending.split_to(capacity.min(self.pending.len()));
                let length = part.len();
                let last = self.pending.is_empty() && source.is_end_stream();
                if last {
                    self.length.end().map_err(Broke::Rule)?;
                }
                sink.send_data(part, last).map_err(|_| Broke::Sink)?;
                // An error means that the stream is closed.
                let _ = source.flow_control().release_capacity(length);
                if last {
                    self.ended = true;
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
            self.ended = true;
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

/// What a stream leaves behind: its weight on the endpoint and its place on the connection.
pub(crate) type Taken = (EndpointRef, Place);
