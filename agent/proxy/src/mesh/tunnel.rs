//! A byte stream of the mesh: one TCP connection of an application on one CONNECT stream. Each direction ends on its own; a reset travels as
//! RST_STREAM and becomes a reset again.

use std::future::{Future, poll_fn};
use std::net::Shutdown;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use heddle_http::Limits;
use heddle_http::h1::{Body, BodyDecoder, BodyEncoder};
use heddle_telemetry::{Reason, Via};
use http::{Method, Request, Response, StatusCode, Uri};
use socket2::SockRef;
use tokio::net::TcpStream;

use super::{TUNNEL_TIMEOUT, headers};
use crate::authz::Permit;
use crate::copy::{self, Side, burst};
use crate::dial::{Failure, Hop};
use crate::http::bridge::{Broke, ToSocket, ToStream};
use crate::http::flow::{Incoming, Outgoing};
use crate::http::inbox::Inbox;
use crate::http::pool_h2::{Place, is_unprocessed, reason_of};
use crate::http::record::Messages;
use crate::registry::{Conn, State};
use crate::route::{EndpointRef, Tunnel};

/// Connections tried for one stream that nobody looked at.
const TRIES_MAX: usize = 3;

/// Opens a byte stream to an endpoint: its agent has connected to the application when this returns. Given up when the downstream is reset.
pub(crate) async fn open(
    conn: &Rc<Conn>,
    downstream: &TcpStream,
    hop: &Hop,
    endpoint: EndpointRef,
) -> Result<Box<Tunnel>, Failure> {
    let opening = tokio::time::timeout(TUNNEL_TIMEOUT, opened(conn, hop, endpoint));
    tokio::select! {
        biased;
        _ = copy::watch(downstream) => Err(Failure::last(Reason::DownstreamReset)),
        opened = opening => opened.unwrap_or(Err(Failure::retryable(Reason::UpstreamConnectTimeout))),
    }
}

async fn opened(conn: &Rc<Conn>, hop: &Hop, endpoint: EndpointRef) -> Result<Box<Tunnel>, Failure> {
    conn.attempts.set(conn.attempts.get() + 1);
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    let authority = hop.addr.to_string();
    *request.uri_mut() = Uri::try_from(authority).map_err(|_| Failure::last(Reason::UpstreamUnreachable))?;
    match hop.way.via() {
        Via::Hbone => {
            let mesh = &conn.worker.snapshot().mesh;
            headers::tell_hbone(request.headers_mut(), conn.client.get(), conn.source.as_deref(), mesh);
        }
        _ => headers::tell_bytes(request.headers_mut(), conn.client.get()),
    }
    let mut last = Failure::last(Reason::UpstreamReset);
    for _ in 0..TRIES_MAX {
        let place = conn.worker.pool_h2.place(conn, hop, &mut 0).await?;
        let why = |error: &h2::Error, place: &Place| Failure::last(place.why(reason_of(error)));
        let (response, sink) = match place.open(request.clone(), false).await {
            Ok(opened) => opened,
            Err(error) if place.reused => {
                last = why(&error, &place);
                continue;
            }
            Err(error) => return Err(why(&error, &place)),
        };
        match response.await {
            Ok(response) if response.status().is_success() => {
                let source = Incoming::new(response.into_body(), place.flow());
                let sink = Outgoing::new(sink, place.flow());
                return Ok(Box::new(Tunnel { source, sink, first: None, place, endpoint }));
            }
            Ok(response) => return Err(declined(hop, &response)),
            // Nobody looked at it: another connection will.
            Err(error) if is_unprocessed(&error) || place.reused && error.is_io() => last = why(&error, &place),
            Err(error) => return Err(why(&error, &place)),
        }
    }
    Err(last)
}

/// Why the other agent did not connect: in its own word, if it is one of ours.
fn declined<T>(hop: &Hop, response: &Response<T>) -> Failure {
    let told = headers::reason(response.headers()).filter(|_| hop.way.via() == Via::Heddle);
    let reason = told.unwrap_or(match response.status() {
        StatusCode::SERVICE_UNAVAILABLE => Reason::UpstreamConnectRefused,
        StatusCode::GATEWAY_TIMEOUT => Reason::UpstreamConnectTimeout,
        _ => Reason::UpstreamReset,
    });
    Failure::told(reason)
}

/// Carries bytes between a socket, which is on `side` of the agent, and a stream on the other, until both directions ended or one broke.
/// The stream is reset where the socket broke; the caller resets the socket.
pub(crate) async fn carry(
    conn: &Rc<Conn>,
    _permit: &Permit,
    socket: &TcpStream,
    side: Side,
    source: Incoming,
    sink: Outgoing,
    first: Option<Bytes>,
) -> Reason {
    conn.state.set(State::Open);
    let mut tunnel = Carried::new(conn, socket, side, source, sink, first);
    tunnel.run().await
}

/// Bytes that are judged and counted where they are read: at the other end of a socket of our own, which is the upstream.
pub(crate) struct Unread<'a>(Carried<'a>);

impl<'a> Unread<'a> {
    pub(crate) fn new(conn: &'a Rc<Conn>, socket: &'a TcpStream, source: Incoming, sink: Outgoing) -> Self {
        let tunnel = Carried::new(conn, socket, Side::Upstream, source, sink, None);
        Self(Carried { is_counted: false, ..tunnel })
    }

    /// Carries them to the end.
    pub(crate) async fn carry(&mut self) -> Reason {
        self.0.run().await
    }

    /// Carries to its client what was written last.
    pub(crate) async fn deliver(&mut self) -> Reason {
        let ended = poll_fn(|cx| match self.0.poll(cx) {
            Poll::Pending if self.0.to_stream.is_done() => Poll::Ready(Ok(())),
            polled => polled,
        });
        let ended = ended.await;
        self.0.end(ended)
    }

    /// Whoever read them refused them: their client sees a reset.
    pub(crate) fn reset(mut self) {
        self.0.sink.send_reset(h2::Reason::CONNECT_ERROR);
    }
}

impl<'a> Carried<'a> {
    fn new(
        conn: &'a Rc<Conn>,
        socket: &'a TcpStream,
        side: Side,
        mut source: Incoming,
        sink: Outgoing,
        first: Option<Bytes>,
    ) -> Self {
        let messages = Messages::new(false);
        let first = first.map_or(Vec::new(), |first| {
            source.release(first.len());
            first.to_vec()
        });
        Self {
            conn,
            socket,
            side,
            source,
            sink,
            inbox: Inbox::default(),
            bytes_ahead: first.len() as u64,
            to_socket: ToSocket::new(first, BodyEncoder::new(Body::Tunnel), messages),
            to_stream: ToStream::new(BodyDecoder::new(Body::Tunnel, &Limits::DEFAULT), messages),
            is_told: false,
            is_counted: true,
        }
    }

    /// To the end.
    async fn run(&mut self) -> Reason {
        let (socket, side) = (self.socket, self.side);
        let mut gone = pin!(copy::watch(socket));
        let ended = poll_fn(|cx| {
            // One that is carried has no task that would obey a cut.
            if self.conn.is_carried()
                && let Some(reason) = self.conn.poll_cut(cx.waker())
            {
                return Poll::Ready(Err(reason));
            }
            let polled = self.poll(cx);
            if self.is_counted {
                self.count();
            }
            match polled {
                // Nothing else would show that the socket was reset.
                Poll::Pending if self.is_deaf() => gone.as_mut().poll(cx).map(|error| Err(side.broke(&error))),
                polled => polled,
            }
        })
        .await;
        self.end(ended)
    }

    fn end(&mut self, ended: Result<(), Reason>) -> Reason {
        match ended {
            Ok(()) => Reason::Completed,
            Err(reason) => {
                self.sink.send_reset(h2::Reason::CONNECT_ERROR);
                reason
            }
        }
    }
}

impl Tunnel {
    /// Ready when the server spoke, ended or broke; what it said is kept.
    pub(crate) fn poll_first(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Reason>> {
        if self.first.is_some() {
            return Poll::Ready(Ok(()));
        }
        match ready!(self.source.poll_data(cx)) {
            Some(Ok(data)) => {
                self.first = Some(data);
                Poll::Ready(Ok(()))
            }
            Some(Err(error)) => Poll::Ready(Err(self.place.why(reason_of(&error)))),
            None => Poll::Ready(Ok(())),
        }
    }
}

struct Carried<'a> {
    conn: &'a Rc<Conn>,
    socket: &'a TcpStream,
    side: Side,
    source: Incoming,
    sink: Outgoing,
    inbox: Inbox,
    /// Of what goes to the socket.
    bytes_ahead: u64,
    to_socket: ToSocket,
    to_stream: ToStream,
    /// The socket was told that no more comes.
    is_told: bool,
    /// Its bytes are the connection's own.
    is_counted: bool,
}

impl Carried<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Reason>> {
        // A stream that only takes from us shows its reset by itself while it is read.
        if self.to_socket.is_done()
            && !self.to_stream.is_done()
            && let Poll::Ready(reset) = self.sink.poll_reset(cx)
        {
            return Poll::Ready(Err(self.stream_broke(reset.err().as_ref())));
        }
        if !self.is_told {
            match self.to_socket.poll(cx, &mut self.source, self.socket, None) {
                // What waits for a socket that nobody reads from hides a reset behind it.
                Poll::Pending if !self.to_socket.is_flushed() && !self.to_stream.is_done() => {
                    if let Poll::Ready(reset) = self.sink.poll_reset(cx)
                        && !matches!(reset, Ok(h2::Reason::NO_ERROR))
                    {
                        return Poll::Ready(Err(self.stream_broke(reset.err().as_ref())));
                    }
                }
                Poll::Pending => {}
                Poll::Ready(Ok(())) => {
                    self.is_told = true;
                    self.conn.state.set(self.ended_state(self.side.other()));
                    let ended = SockRef::from(self.socket).shutdown(Shutdown::Write);
                    ended.map_err(|error| self.side.broke(&error))?;
                }
                Poll::Ready(Err(broke)) => return Poll::Ready(Err(self.broke(&broke))),
            }
        }
        if !self.to_stream.is_done() {
            let mut allowance = burst(self.conn.worker.table.len());
            let Self { to_stream, conn, socket, inbox, sink, .. } = self;
            match to_stream.poll(cx, conn, socket, inbox, sink, &mut allowance) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => self.conn.state.set(self.ended_state(self.side)),
                Poll::Ready(Err(broke)) => return Poll::Ready(Err(self.broke(&broke))),
            }
        }
        if self.is_told && self.to_stream.is_done() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// Whether the socket is not read from.
    fn is_deaf(&self) -> bool {
        self.to_stream.is_done() || self.to_stream.is_held_up()
    }

    fn ended_state(&self, side: Side) -> State {
        match side {
            Side::Downstream => State::DownstreamClosed,
            Side::Upstream => State::UpstreamClosed,
        }
    }

    fn broke(&self, broke: &Broke) -> Reason {
        match broke {
            Broke::Socket(error) => self.side.broke(error),
            Broke::Stream(error) => self.stream_broke(error.as_ref()),
            Broke::NoRoom => Reason::PodBufferedBytesMax,
            // A tunnel has no end but its socket's, and no rules.
            Broke::Truncated | Broke::Rule(_) => Reason::ResponseMalformed,
        }
    }

    /// The other agent reset the stream, or the connection to it is gone: the applications see a reset.
    fn stream_broke(&self, error: Option<&h2::Error>) -> Reason {
        let lost = error.is_some_and(|error| error.is_io() && reason_of(error) == Reason::UpstreamLost);
        match (self.side, lost) {
            (Side::Downstream, false) => Reason::UpstreamReset,
            (Side::Downstream, true) => Reason::UpstreamLost,
            (Side::Upstream, false) => Reason::DownstreamReset,
            (Side::Upstream, true) => Reason::DownstreamLost,
        }
    }

    fn count(&mut self) {
        let to_socket = self.bytes_ahead + self.to_socket.bytes;
        let (received, sent) = match self.side {
            Side::Downstream => (self.to_stream.bytes, to_socket),
            Side::Upstream => (to_socket, self.to_stream.bytes),
        };
        let before = self.conn.carried();
        self.conn.add_received(received - before.0);
        self.conn.add_sent(sent - before.1);
    }
}
