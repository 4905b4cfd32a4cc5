//! Which protocol a connection speaks (FEATURES D7): declared by its port, else found out by dialling and listening to both
//! sides at once. Whoever speaks first decides.
//!
//! A server that speaks first is copied without delay, for it was dialled at once. A client that stays silent holds that one
//! connection and no timer. Bytes are only peeked at: whoever takes the connection over finds all of them. A socket tells an
//! error once, to a peek too: it is passed on, for the next read would show a clean end.

mod routed;

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use heddle_http::answer;
use heddle_http::detect::{
    self, DETECT_BYTES_MAX, Declared, Detection, HELLO_BYTES_MAX, HTTP2_PREFACE, Hello, HttpVersion, Protocol,
};
use heddle_identity::Alpn;
use heddle_model::routing::Table;
use heddle_model::{Candidates, MtlsMode, Service, ServicePort, Snapshot, Transport, Workload};
use heddle_telemetry::{Direction, Reason, Via};
use tokio::io::{Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::authz::{self, Admission, Permit};
use crate::copy::{self, Side, not_ready};
use crate::http;
use crate::http::client::enter_called;
use crate::inbound;
use crate::mesh::greeting::{self, Greeting};
use crate::mesh::tunnel;
use crate::mesh::way::Way;
use crate::registry::{Conn, State};
use crate::route::{self, Choice, Connected, EndpointRef, Kind, Route, Tunnel, Upstream};
use crate::task::Ended;

/// Where a dial failed before the client spoke, and nothing says whether it speaks HTTP: how long it may take to begin. A request
/// is answered with the reason; without one a reset says it.
const UNTOLD_GRACE: Duration = Duration::from_millis(100);
/// How long a client of the mesh may take to say its first word before it is taken for one whose server speaks first.
const SPEAK_FIRST_GRACE: Duration = Duration::from_millis(10);
/// How long after it was accepted a stranger is told nothing by a server that speaks first. It may be a pod this node has not heard of yet, whose
/// greeting was lost once on its way: that comes 200 ms later, and what it was told in plain text before would break its connection.
const STRANGER_HOLD: Duration = Duration::from_millis(250);
/// How long the rest of a ClientHello is waited for, and how often it is looked at as it grows.
const HELLO_WAIT_MAX: Duration = Duration::from_millis(500);
const HELLO_LOOKS_MAX: u32 = 16;

/// What is said about the destination of a route: by the Service port, and by the opaque ports of the pods behind it.
pub(crate) fn declared(kind: &Kind, snapshot: &Snapshot) -> Declared {
    match kind {
        Kind::Refused { service: None, .. } => Declared::Unknown,
        Kind::Refused { service: Some((service, port_index)), .. } => {
            service.ports.get(*port_index).map_or(Declared::Unknown, of_port)
        }
        Kind::Service { service, port_index, candidates, table, .. } => {
            of_service(service, *port_index, candidates, table.as_deref(), snapshot)
        }
        Kind::Address { hop, workload, .. } => {
            if workload.as_ref().is_some_and(|w| is_opaque(w, hop.addr, snapshot)) {
                return Declared::Opaque;
            }
            // The Services that lead here.
            Declared::agreed(snapshot.ports_at(hop.addr).map(of_port))
        }
    }
}

/// The same of a Service port with these endpoints to choose from and these routes.
pub(crate) fn of_service(
    service: &Service,
    port_index: usize,
    candidates: &Candidates,
    table: Option<&Table>,
    snapshot: &Snapshot,
) -> Declared {
    let opaque = |w: &Workload, addr: SocketAddr| is_opaque(w, addr, snapshot);
    let declared = if candidates.iter().any(|e| e.workload.as_ref().is_some_and(|w| opaque(w, e.addr))) {
        Declared::Opaque
    } else {
        service.ports.get(port_index).map_or(Declared::Unknown, of_port)
    };
    match declared {
        // Whoever writes a route for requests says that there are some, and a request that goes by its rules goes where it must not.
        Declared::Unknown | Declared::Opaque if table.is_some_and(Table::has_http) => Declared::Http,
        // What the application encrypts itself nobody can read; what it does not is a request.
        Declared::Tls if table.is_some_and(Table::has_http) => Declared::Unknown,
        declared => declared,
    }
}

/// Told by the pod, or because HBONE carries bytes.
fn is_opaque(workload: &Workload, addr: SocketAddr, snapshot: &Snapshot) -> bool {
    workload.capture.opaque_ports.contains(&addr.port())
        || workload.transport_to(addr.port(), &snapshot.mesh) == Transport::Hbone
}

/// What a Service port says of itself.
pub(crate) fn of_port(port: &ServicePort) -> Declared {
    detect::declared(port.app_protocol.as_deref(), &port.name)
}

/// Carries a connection to its end, as what it is. What only a part of its life needs is boxed for that part: an idle
/// connection holds no room for a dial.
pub(crate) async fn run(conn: &Rc<Conn>, route: impl Into<Rc<Route>>, mut downstream: TcpStream) -> Ended {
    // Whoever connects may be a peer of the mesh.
    let may_be_peer = conn.direction == Direction::Inbound && conn.worker.tls.is_some() && !conn.is_carried();
    let route = route.into();
    if routed::is_routed(conn, &route) {
        return Box::pin(routed::run(conn, route, downstream)).await;
    }
    let declared = match route.declared {
        // Listened to for that alone.
        Declared::Opaque if may_be_peer => Declared::Tls,
        declared => declared,
    };
    let declared = match (declared, admission(conn, &route)) {
        (Declared::Http | Declared::Http1 | Declared::Http2, _) | (_, Admission::Free) => declared,
        (_, Admission::Parsed) => Declared::Unknown,
        (_, Admission::Requests | Admission::Refused) => {
            return Box::pin(requests_only(conn, route, downstream, may_be_peer)).await;
        }
    };
    match declared {
        Declared::Opaque => {
            conn.state.set(State::Dialling);
            let dialled = Box::pin(route::connect(conn, &route, &downstream)).await;
            opaque(conn, downstream, dialled).await
        }
        Declared::Http | Declared::Http1 | Declared::Http2 => match spoken(conn, downstream, may_be_peer).await {
            Spoken::Http2(downstream) => http::run_h2(conn, route, downstream, None).await,
            Spoken::Ours(downstream, is_unwatched) => inbound::greeted(conn.clone(), downstream, is_unwatched).await,
            // What is no HTTP is told so.
            Spoken::Http1(downstream) | Spoken::Other(downstream) => http::run_h1(conn, route, downstream, None).await,
            Spoken::Lost(ended) => ended,
        },
        Declared::Tls | Declared::Unknown => {
            conn.state.set(State::Dialling);
            // On a port that is said to be TLS there is nobody to answer.
            let grace = if declared == Declared::Tls { Duration::ZERO } else { UNTOLD_GRACE };
            let Heard { dialled, spoken, is_unwatched, is_peer } =
                Box::pin(listen(conn, &route, &downstream, grace, may_be_peer)).await;
            if is_peer && may_be_peer {
                drop(dialled);
                return inbound::greeted(conn.clone(), downstream, is_unwatched).await;
            }
            if is_unwatched {
                match watched_anew(downstream) {
                    Ok(again) => downstream = again,
                    Err(reason) => return Ended::lost(reason),
                }
            }
            match spoken {
                Protocol::Http1 if declared == Declared::Unknown => {
                    http::run_h1(conn, route, downstream, of_its_own(dialled)).await
                }
                Protocol::Http2 if declared == Declared::Unknown => {
                    http::run_h2(conn, route, downstream, of_its_own(dialled)).await
                }
                _ => opaque(conn, downstream, dialled.unwrap_or(Err(Reason::UpstreamUnreachable))).await,
            }
        }
    }
}

/// How the bytes of a connection are taken: at the called side, and where they may be handed over to one on this node.
fn admission(conn: &Rc<Conn>, route: &Route) -> Admission {
    if conn.direction == Direction::Inbound {
        return authz::admission(conn);
    }
    let to = |workload: Option<&Arc<Workload>>, addr| match Way::to(conn, workload, addr) {
        Way::Handover(pod) => authz::admission_of_handover(conn, &pod, addr),
        Way::Direct | Way::Heddle(_) | Way::Hbone(_) => Admission::Free,
    };
    match &route.kind {
        Kind::Refused { .. } => Admission::Free,
        Kind::Address { hop, workload, .. } => to(workload.as_ref(), hop.addr),
        Kind::Service { candidates, .. } => {
            let mut all = candidates.iter().map(|e| to(e.workload.as_ref(), e.addr));
            let Some(first) = all.next() else { return Admission::Free };
            // Where some would let in what others would not, what comes of it is decided when one is chosen.
            all.fold(first, |one, other| if one == other { one } else { Admission::Parsed })
        }
    }
}

/// Only requests may be let in, and each is judged by itself. The application hears of nothing before that.
async fn requests_only(conn: &Rc<Conn>, route: Rc<Route>, downstream: TcpStream, may_be_peer: bool) -> Ended {
    match spoken(conn, downstream, may_be_peer).await {
        Spoken::Http1(downstream) => http::run_h1(conn, route, downstream, None).await,
        Spoken::Http2(downstream) => http::run_h2(conn, route, downstream, None).await,
        Spoken::Ours(downstream, is_unwatched) => inbound::greeted(conn.clone(), downstream, is_unwatched).await,
        // Both sides tell of it; nobody is dialled for what is refused whoever is chosen.
        Spoken::Other(downstream) if conn.direction == Direction::Outbound => {
            let reason = Choice::new(conn, &route, HttpVersion::Http1, None, &[])
                .and_then(|choice| permit_bytes(conn, &choice.endpoint(conn)))
                .map_or_else(|reason| reason, |_| Reason::PolicyDenied);
            Ended::refused(reason, downstream)
        }
        Spoken::Other(downstream) => Ended::refused(authz::refusal(conn), downstream),
        Spoken::Lost(ended) => ended,
    }
}

/// What the first bytes of a client are that speaks HTTP, if it keeps to what is said of it.
enum Spoken {
    Http1(TcpStream),
    Http2(TcpStream),
    /// A peer of the mesh; see [`watched_anew`].
    Ours(TcpStream, bool),
    Other(TcpStream),
    Lost(Ended),
}

async fn spoken(conn: &Rc<Conn>, mut downstream: TcpStream, may_be_peer: bool) -> Spoken {
    let mut seen = 0;
    let spoken = poll_fn(|cx| poll_declared(cx, conn, &downstream, &mut seen)).await;
    if seen > 0 && conn.is_out_of_time() {
        match watched_anew(downstream) {
            Ok(again) => downstream = again,
            Err(reason) => return Spoken::Lost(Ended::lost(reason)),
        }
        // What it said is still there, and it stays out of time: whoever reads the head says so.
        if let Err(error) = downstream.readable().await {
            return Spoken::Lost(Ended::refused(Side::Downstream.broke(&error), downstream));
        }
    }
    match spoken {
        Ok(Protocol::Http1) => Spoken::Http1(downstream),
        Ok(Protocol::Http2) => Spoken::Http2(downstream),
        Ok(Protocol::Tls) if may_be_peer => {
            let heard = match Box::pin(greeting::listen(conn, &downstream, Instant::now() + HELLO_WAIT_MAX)).await {
                Ok(heard) => heard,
                Err(error) => return Spoken::Lost(Ended::refused(Side::Downstream.broke(&error), downstream)),
            };
            if heard.greeting == Greeting::Ours {
                return Spoken::Ours(downstream, heard.is_unwatched);
            }
            match watched_anew(downstream) {
                Ok(downstream) => Spoken::Other(downstream),
                Err(reason) => Spoken::Lost(Ended::lost(reason)),
            }
        }
        Ok(_) => Spoken::Other(downstream),
        Err(error) => Spoken::Lost(Ended::refused(Side::Downstream.broke(&error), downstream)),
    }
}

/// A socket whose bytes were peeked at and whose readiness was then forgotten, though they are still there to be read.
pub(crate) fn watched_anew(stream: TcpStream) -> Result<TcpStream, Reason> {
    stream.into_std().and_then(TcpStream::from_std).map_err(|error| Side::Downstream.broke(&error))
}

/// A connection that requests can be sent on; what is none is let go, and each request finds its own way.
fn of_its_own(dialled: Option<Result<Connected, Reason>>) -> Option<Result<Upstream, Reason>> {
    match dialled {
        Some(Ok(Connected::Socket(upstream))) => Some(Ok(upstream)),
        Some(Ok(Connected::Stream(_))) | None => None,
        Some(Err(reason)) => Some(Err(reason)),
    }
}

async fn opaque(conn: &Rc<Conn>, downstream: TcpStream, dialled: Result<Connected, Reason>) -> Ended {
    match dialled {
        Ok(Connected::Socket(Upstream { stream, endpoint, .. })) => {
            let permit = match permit_bytes(conn, &endpoint) {
                Ok(permit) => permit,
                Err(reason) => {
                    http::pool::close(stream);
                    return Ended::refused(reason, downstream);
                }
            };
            endpoint.carries_bytes(&conn.worker);
            let ended = copy::run(conn, &permit, downstream, stream).await;
            drop(endpoint);
            ended
        }
        Ok(Connected::Stream(tunnel)) => {
            let Tunnel { source, sink, first, place, endpoint } = *tunnel;
            show_way(conn, &endpoint);
            conn.open_series();
            endpoint.carries_bytes(&conn.worker);
            let reason = tunnel::carry(conn, &Permit::free(), &downstream, Side::Downstream, source, sink, first).await;
            let reason = place.why(reason);
            if reason.is_success() {
                place.complete();
            }
            drop(endpoint);
            Ended { reason, downstream: Some(downstream), upstream: None, held: None }
        }
        Err(reason) => Ended::refused(reason, downstream),
    }
}

/// Says by what the connection goes, and who is at the other end.
fn show_way(conn: &Conn, endpoint: &EndpointRef) {
    if let Some((_, expected)) = endpoint.way.tls() {
        let peer = expected.ids().first().map_or("", |id| id.as_str());
        conn.set_via(endpoint.way.via(), conn.pod.principal(), peer);
    }
}

/// Whether the bytes of a connection may go to an endpoint. Where they are handed over to a pod of this node, its side of the connection
/// begins here.
fn permit_bytes(conn: &Rc<Conn>, endpoint: &EndpointRef) -> Result<Permit, Reason> {
    let Way::Handover(pod) = &endpoint.way else { return authz::opaque(conn) };
    let called = enter_called(conn, pod, endpoint.addr)?;
    conn.set_via(Via::Handover, conn.pod.principal(), pod.principal());
    conn.hands_over_to(&called);
    let permit = authz::opaque(&called)?;
    called.open_series();
    Ok(permit)
}

/// What came of listening.
struct Heard {
    /// None where a request came first, which finds its own way.
    dialled: Option<Result<Connected, Reason>>,
    spoken: Protocol,
    /// Its ClientHello is one of the mesh.
    is_peer: bool,
    /// See [`watched_anew`].
    is_unwatched: bool,
}

/// Dials, and waits until one of the two sides spoke. Where the dial fails first, the client has `grace` to begin a request that
/// can be answered. Whoever `may_be_peer` and is not known is not told anything before it had the time to say so.
async fn listen(
    conn: &Rc<Conn>,
    route: &Rc<Route>,
    downstream: &TcpStream,
    grace: Duration,
    may_be_peer: bool,
) -> Heard {
    let may_be_requests = !grace.is_zero();
    let is_stranger = may_be_peer && conn.source.is_none() && conn.mode(&conn.worker.snapshot()) != MtlsMode::Disabled;
    let mut held = None;
    let is_of_mesh = is_of_mesh(conn, route);
    let hurry = Notify::new();
    let mut dialling = pin!(async {
        if is_of_mesh {
            // A stream that a request makes useless costs the server's agent a connection to its application.
            tokio::select! {
                () = tokio::time::sleep(SPEAK_FIRST_GRACE) => {}
                () = hurry.notified() => {}
            }
        }
        route::connect(conn, route, downstream).await
    });
    let (mut dialled, mut spoken, mut seen) = (None, None, 0);
    let mut waiting = None;
    let (dialled, spoken) = poll_fn(|cx| {
        if dialled.is_none()
            && let Poll::Ready(result) = dialling.as_mut().poll(cx)
        {
            dialled = Some(result);
        }
        if spoken.is_none()
            && let Poll::Ready(result) = poll_spoken(cx, conn, downstream, &mut seen)
        {
            match result {
                Ok(protocol) => {
                    hurry.notify_one();
                    spoken = Some(protocol);
                }
                Err(error) => return Poll::Ready((Some(Err(Side::Downstream.broke(&error))), None)),
            }
        }
        match (&dialled, spoken) {
            (None, Some(Protocol::Http1 | Protocol::Http2)) if is_of_mesh && may_be_requests => {
                return Poll::Ready((None, spoken));
            }
            (None, _) => return Poll::Pending,
            (Some(_), Some(_)) => {}
            (Some(Err(reason)), None) => {
                if !grace.is_zero() && answer::status(*reason).is_some() {
                    let waiting = waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(grace)));
                    ready!(waiting.as_mut().poll(cx));
                }
            }
            (Some(Ok(_)), None) => match poll_speaks_first(cx, conn, &mut dialled) {
                Poll::Ready(Ok(())) if is_stranger => {
                    let hold = || Box::pin(tokio::time::sleep(STRANGER_HOLD.saturating_sub(conn.age())));
                    ready!(held.get_or_insert_with(hold).as_mut().poll(cx));
                }
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(reason)) => return Poll::Ready((Some(Err(reason)), None)),
                // Nobody has said a word, and nobody will be waited for.
                Poll::Pending if seen == 0 && conn.leaves_in_silence() => {
                    if let Some(Ok(Connected::Socket(unused))) = dialled.take() {
                        http::pool::close(unused.stream);
                    }
                    return Poll::Ready((Some(Err(Reason::Completed)), None));
                }
                Poll::Pending => return Poll::Pending,
            },
        }
        match dialled.take() {
            Some(result) => Poll::Ready((Some(result), spoken)),
            None => Poll::Pending,
        }
    })
    .await;
    if conn.worker.draining.get() {
        conn.clear_deadline();
    }
    let Some(spoken) = spoken else {
        return Heard { dialled, spoken: Protocol::Opaque, is_unwatched: seen > 0, is_peer: false };
    };
    let (mut is_unwatched, mut is_peer) = (false, false);
    if spoken == Protocol::Tls {
        let upstream = match &dialled {
            // A peer's greeting comes before anything that its application's server says.
            Some(Ok(Connected::Socket(upstream))) if !may_be_peer => Some(&upstream.stream),
            _ => None,
        };
        let is_worth = matches!(dialled, Some(Ok(_))) || conn.direction == Direction::Inbound;
        (is_unwatched, is_peer) = read_hello(conn, downstream, upstream, is_worth).await;
    }
    Heard { dialled, spoken, is_unwatched, is_peer }
}

/// Reads the server name out of a ClientHello that is only peeked at. It delays nothing: no server can answer one before it is
/// complete, and one that stops in the middle, or a server that speaks all the same, is not waited for; nor is the rest of it where it is
/// not `is_worth` it. Returns what [`watched_anew`] is for, and whether the client is a peer of the mesh.
async fn read_hello(conn: &Conn, downstream: &TcpStream, upstream: Option<&TcpStream>, is_worth: bool) -> (bool, bool) {
    let (mut seen, mut looks) = (0, 0);
    let is_unwatched = Cell::new(false);
    let reading = poll_fn(|cx| {
        loop {
            {
                let mut scratch = conn.worker.scratch.borrow_mut();
                let mut into = ReadBuf::new(&mut scratch[..HELLO_BYTES_MAX]);
                match downstream.poll_peek(cx, &mut into) {
                    Poll::Ready(peeked) => {
                        is_unwatched.set(false);
                        // The end, or an error: whoever reads next finds it.
                        match peeked {
                            Ok(count) if count > seen => seen = count,
                            Ok(count) if count == seen && !has_ended(cx, downstream) => {}
                            Ok(_) | Err(_) => return Poll::Ready(None),
                        }
                    }
                    Poll::Pending if upstream.is_some_and(|u| u.poll_read_ready(cx).is_ready()) => {
                        return Poll::Ready(None);
                    }
                    Poll::Pending => return Poll::Pending,
                }
                match detect::client_hello(into.filled()) {
                    Hello::Complete(hello) => return Poll::Ready(Some(hello)),
                    Hello::Invalid => return Poll::Ready(None),
                    Hello::NeedMore => {}
                }
            }
            looks += 1;
            if looks == HELLO_LOOKS_MAX || !is_worth {
                return Poll::Ready(None);
            }
            not_ready(downstream, Interest::READABLE);
            is_unwatched.set(true);
        }
    });
    let mut is_peer = false;
    if let Ok(Some(hello)) = tokio::time::timeout(HELLO_WAIT_MAX, reading).await {
        is_peer = hello.alpn.iter().any(|name| name == Alpn::Heddle.as_bytes());
        if let Some(name) = hello.server_name {
            conn.set_sni(name);
        }
    }
    (is_unwatched.get(), is_peer)
}

/// Whether a stream of the mesh may carry it.
fn is_of_mesh(conn: &Conn, route: &Route) -> bool {
    let is_tls = |workload: Option<&Arc<Workload>>, addr| Way::to(conn, workload, addr).tls().is_some();
    match &route.kind {
        _ if conn.direction == Direction::Inbound || conn.worker.tls.is_none() => false,
        Kind::Refused { .. } => false,
        Kind::Address { hop, workload, .. } => is_tls(workload.as_ref(), hop.addr),
        Kind::Service { candidates, .. } => candidates.endpoints.iter().any(|e| is_tls(e.workload.as_ref(), e.addr)),
    }
}

/// Ready when the server speaks first: bytes, an end or an error. An HTTP/2 server greets with SETTINGS and does not wait for
/// its client (RFC 9113 §3.4), which does not wait for it either: there the client's bytes decide.
fn poll_speaks_first(
    cx: &mut Context<'_>,
    conn: &Conn,
    dialled: &mut Option<Result<Connected, Reason>>,
) -> Poll<Result<(), Reason>> {
    let upstream = match dialled {
        Some(Ok(Connected::Socket(upstream))) => &upstream.stream,
        Some(Ok(Connected::Stream(tunnel))) => return tunnel.poll_first(cx),
        _ => return Poll::Pending,
    };
    loop {
        let mut scratch = conn.worker.scratch.borrow_mut();
        let mut into = ReadBuf::new(&mut scratch[..SETTINGS_HEAD.len() + 3]);
        let count = ready!(upstream.poll_peek(cx, &mut into)).map_err(|error| Side::Upstream.broke(&error))?;
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
        if count == 0 || count == *seen && has_ended(cx, downstream) {
            return Poll::Ready(Ok(Protocol::Opaque));
        }
        *seen = count;
        match detect::detect(into.filled()) {
            Detection::Decided(protocol) => return Poll::Ready(Ok(protocol)),
            Detection::NeedMore => not_ready(downstream, Interest::READABLE),
        }
    }
}

/// Whether the peer ended its direction. A socket that is readable with no more bytes than before need not have: the kernel tells
/// all it knows whenever anything changes.
pub(crate) fn has_ended(cx: &mut Context<'_>, socket: &TcpStream) -> bool {
    let ready = pin!(socket.ready(Interest::READABLE)).poll(cx);
    !matches!(ready, Poll::Ready(Ok(ready)) if !ready.is_read_closed())
}

/// HTTP it is; ready when it is clear which. A client that begins the HTTP/2 preface and stops is out of time like any slow head,
/// one that is silent like any idle connection.
fn poll_declared(
    cx: &mut Context<'_>,
    conn: &Conn,
    downstream: &TcpStream,
    seen: &mut usize,
) -> Poll<io::Result<Protocol>> {
    if !conn.has_deadline() && !conn.is_out_of_time() {
        conn.set_deadline(conn.worker.config.client_idle_timeout);
    }
    loop {
        if conn.is_out_of_time() {
            return Poll::Ready(Ok(Protocol::Http1));
        }
        let mut scratch = conn.worker.scratch.borrow_mut();
        let mut into = ReadBuf::new(&mut scratch[..DETECT_BYTES_MAX]);
        let Poll::Ready(peeked) = downstream.poll_peek(cx, &mut into) else {
            // Whoever serves an idle connection ends it.
            let ends = *seen == 0 && conn.leaves_in_silence();
            return if ends { Poll::Ready(Ok(Protocol::Http1)) } else { Poll::Pending };
        };
        let count = peeked?;
        match detect::detect(into.filled()) {
            Detection::NeedMore
                if HTTP2_PREFACE.starts_with(into.filled()) && (count > *seen || !has_ended(cx, downstream)) =>
            {
                if std::mem::replace(seen, count) == 0 {
                    conn.set_deadline(conn.worker.config.request_head_timeout);
                }
                not_ready(downstream, Interest::READABLE);
            }
            decided => {
                if conn.worker.draining.get() {
                    conn.clear_deadline();
                }
                let Detection::Decided(protocol) = decided else { return Poll::Ready(Ok(Protocol::Http1)) };
                return Poll::Ready(Ok(protocol));
            }
        }
    }
}
