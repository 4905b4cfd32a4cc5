//! Which protocol a connection speaks (FEATURES D7): declared by its port, else found out by dialling and listening to both
//! sides at once. Whoever speaks first decides.
//!
//! A server that speaks first is copied without delay, for it was dialled at once. A client that stays silent holds that one
//! connection and no timer. Bytes are only peeked at: whoever takes the connection over finds all of them. A socket tells an
//! error once, to a peek too: it is passed on, for the next read would show a clean end.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use heddle_http::detect::{self, DETECT_BYTES_MAX, Declared, Detection, HTTP2_PREFACE, Protocol};
use heddle_model::{ServicePort, Snapshot, Workload};
use heddle_telemetry::Reason;
use tokio::io::{Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::copy::{self, Side, not_ready};
use crate::http;
use crate::registry::{Conn, State};
use crate::route::{From, Kind, Route, Upstream};
use crate::task::Ended;

/// What is said about the destination of a route: by the Service port, and by the opaque ports of the pods behind it.
pub(crate) fn declared(kind: &Kind, snapshot: &Snapshot) -> Declared {
    match kind {
        Kind::Refused(_) => Declared::Opaque,
        Kind::Service { service, port_index, candidates } => {
            let opaque = |w: &Workload, addr: SocketAddr| w.capture.opaque_ports.contains(&addr.port());
            if candidates.iter().any(|e| e.workload.as_ref().is_some_and(|w| opaque(w, e.addr))) {
                return Declared::Opaque;
            }
            service.ports.get(*port_index).map_or(Declared::Unknown, of_port)
        }
        Kind::Address { hop, workload, .. } => {
            if workload.as_ref().is_some_and(|w| w.capture.opaque_ports.contains(&hop.addr.port())) {
                return Declared::Opaque;
            }
            // The Services that lead here.
            Declared::agreed(snapshot.ports_at(hop.addr).map(of_port))
        }
    }
}

fn of_port(port: &ServicePort) -> Declared {
    detect::declared(port.app_protocol.as_deref(), &port.name)
}

/// Carries a connection to its end, as what it is.
pub(crate) async fn run(conn: &Rc<Conn>, route: Route, downstream: TcpStream) -> Ended {
    match route.declared {
        Declared::Opaque | Declared::Tls => {
            conn.state.set(State::Dialling);
            let dialled = route.connect(conn, &downstream, From::Dial, &mut None).await;
            opaque(conn, downstream, dialled).await
        }
        Declared::Http | Declared::Http1 | Declared::Http2 => {
            match poll_fn(|cx| poll_declared(cx, conn, &downstream)).await {
                Ok(Protocol::Http2) => http::run_h2(conn, route, downstream, None).await,
                // What is no HTTP is told so.
                Ok(_) => http::run_h1(conn, route, downstream, None).await,
                Err(error) => Ended::refused(Side::Downstream.broke(&error), downstream),
            }
        }
        Declared::Unknown => {
            conn.state.set(State::Dialling);
            let (dialled, spoken) = listen(conn, &route, &downstream).await;
            match spoken {
                Protocol::Opaque | Protocol::Tls => opaque(conn, downstream, dialled).await,
                Protocol::Http1 => http::run_h1(conn, route, downstream, Some(dialled)).await,
                Protocol::Http2 => http::run_h2(conn, route, downstream, Some(dialled)).await,
            }
        }
    }
}

async fn opaque(conn: &Rc<Conn>, downstream: TcpStream, dialled: Result<Upstream, Reason>) -> Ended {
    match dialled {
        Ok(Upstream { stream, endpoint, .. }) => {
            let ended = copy::run(conn, downstream, stream).await;
            drop(endpoint);
            ended
        }
        Err(reason) => Ended::refused(reason, downstream),
    }
}

/// Dials, and waits until one of the two sides spoke.
async fn listen(conn: &Rc<Conn>, route: &Route, downstream: &TcpStream) -> (Result<Upstream, Reason>, Protocol) {
    let mut none = None;
    let mut dialling = pin!(route.connect(conn, downstream, From::Dial, &mut none));
    let (mut dialled, mut spoken, mut seen) = (None, None, 0);
    poll_fn(|cx| {
        if dialled.is_none()
            && let Poll::Ready(result) = dialling.as_mut().poll(cx)
        {
            dialled = Some(result);
        }
        if spoken.is_none()
            && let Poll::Ready(result) = poll_spoken(cx, conn, downstream, &mut seen)
        {
            match result {
                Ok(protocol) => spoken = Some(protocol),
                Err(error) => return Poll::Ready((Err(Side::Downstream.broke(&error)), Protocol::Opaque)),
            }
        }
        match (&dialled, spoken) {
            (None, _) => return Poll::Pending,
            // A dial that failed is told at once, a silent client too.
            (Some(Err(_)), _) | (Some(Ok(_)), Some(_)) => {}
            (Some(Ok(upstream)), None) => {
                if let Err(error) = ready!(poll_speaks_first(cx, conn, &upstream.stream)) {
                    return Poll::Ready((Err(Side::Upstream.broke(&error)), Protocol::Opaque));
                }
            }
        }
        match dialled.take() {
            Some(result) => Poll::Ready((result, spoken.unwrap_or(Protocol::Opaque))),
            None => Poll::Pending,
        }
    })
    .await
}

/// Ready when the server speaks first: bytes, an end or an error. An HTTP/2 server greets with SETTINGS and does not wait for
/// its client (RFC 9113 §3.4), which does not wait for it either: there the client's bytes decide.
fn poll_speaks_first(cx: &mut Context<'_>, conn: &Conn, upstream: &TcpStream) -> Poll<io::Result<()>> {
    loop {
        let mut scratch = conn.worker.scratch.borrow_mut();
        let mut into = ReadBuf::new(&mut scratch[..SETTINGS_HEAD.len() + 3]);
        let count = ready!(upstream.poll_peek(cx, &mut into))?;
        let is_settings = match into.filled() {
            [0, 0, length, rest @ ..] => length % 6 == 0 && SETTINGS_HEAD.starts_with(rest),
            short => count > 0 && [0, 0].starts_with(short),
        };
        if !is_settings {
            return Poll::Ready(Ok(()));
        }
        not_ready(upstream, Interest::READABLE);
    }
}

/// What follows the length of a SETTINGS frame that is no acknowledgement: type, flags, stream.
const SETTINGS_HEAD: &[u8] = &[4, 0, 0, 0, 0, 0];

/// Ready when the client's first bytes have decided, or it ended before they could.
fn poll_spoken(
    cx: &mut Context<'_>,
    conn: &Conn,
    downstream: &TcpStream,
    seen: &mut usize,
) -> Poll<io::Result<Protocol>> {
    loop {
        let mut scratch = conn.worker.scratch.borrow_mut();
        let mut into = ReadBuf::new(&mut scratch[..DETECT_BYTES_MAX]);
        let count = ready!(downstream.poll_peek(cx, &mut into))?;
        if count == 0 || count == *seen {
            return Poll::Ready(Ok(Protocol::Opaque));
        }
        *seen = count;
        match detect::detect(into.filled()) {
            Detection::Decided(protocol) => return Poll::Ready(Ok(protocol)),
            Detection::NeedMore => not_ready(downstream, Interest::READABLE),
        }
    }
}

/// HTTP it is; ready when it is clear which. A client that begins the HTTP/2 preface and stops is out of time like any slow head.
fn poll_declared(cx: &mut Context<'_>, conn: &Conn, downstream: &TcpStream) -> Poll<io::Result<Protocol>> {
    let mut seen = 0;
    loop {
        if conn.is_out_of_time() {
            return Poll::Ready(Ok(Protocol::Http1));
        }
        let mut scratch = conn.worker.scratch.borrow_mut();
        let mut into = ReadBuf::new(&mut scratch[..DETECT_BYTES_MAX]);
        let count = ready!(downstream.poll_peek(cx, &mut into))?;
        match detect::detect(into.filled()) {
            Detection::NeedMore if count > seen && HTTP2_PREFACE.starts_with(into.filled()) => {
                seen = count;
                if !conn.has_deadline() {
                    conn.set_deadline(conn.worker.config.request_head_timeout);
                }
                not_ready(downstream, Interest::READABLE);
            }
            Detection::Decided(protocol) => return Poll::Ready(Ok(protocol)),
            Detection::NeedMore => return Poll::Ready(Ok(Protocol::Http1)),
        }
    }
}
