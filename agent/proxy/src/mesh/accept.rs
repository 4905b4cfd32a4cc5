//! Connections of the mesh, accepted for a pod: the peer proves who it is, then each of its streams is served on behalf of the true
//! client it names, which may only be the peer's own address.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use h2::RecvStream;
use h2::ext::Protocol;
use h2::server::SendResponse;
use heddle_http::answer;
use heddle_http::detect::HttpVersion;
use heddle_identity::{Alpn, SpiffeId};
use heddle_model::{ClientAddr, OriginalDst, Workload};
use heddle_telemetry::{Direction, Reason, Via};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::tls::Tls;
use super::trust::{Lapse, Trust};
use super::{GOODBYE, IDLE_CLIENT_TICKS, IDLE_CLIENTS_MAX, LEAVING_TICKS, headers, tunnel};
use crate::authz::{self, Admission};
use crate::config::AGENT_PORTS;
use crate::copy::Side;
use crate::dial;
use crate::hash::FastMap;
use crate::http::client::Client;
use crate::http::flow::{Flow, Incoming, Outgoing};
use crate::http::wire::Wire;
use crate::http::{h2 as http2, stream};
use crate::protocol;
use crate::registry::Conn;
use crate::route::{Choice, Route};
use crate::task::Ended;

/// Serves one connection of a peer to its end; it has until then to prove who it is.
pub(crate) async fn run(conn: Rc<Conn>, downstream: TcpStream, alpn: Alpn, until: Instant) -> Ended {
    let Some(tls) = &conn.worker.tls else { return Ended::refused(Reason::TlsNoOwnCertificate, downstream) };
    let (wire, trust) = match Box::pin(tls.accept(&conn, downstream, alpn, until)).await {
        Ok(accepted) => accepted,
        Err(failed) => {
            if let Some(socket) = failed.socket {
                Box::pin(say_goodbye(&conn, socket)).await;
            }
            return Ended::lost(failed.failure.reason());
        }
    };
    let (via, kind) = match alpn {
        Alpn::Heddle => (Via::Heddle, http2::Kind::Heddle),
        Alpn::Hbone => (Via::Hbone, http2::Kind::Hbone),
    };
    conn.carries_http();
    conn.is_peers.set(true);
    conn.set_via(via, trust.id().as_str(), conn.pod.principal());
    let source = source(&conn, trust.id());
    let age_max = conn.worker.config.mesh_connection_age_max.as_secs();
    let accepted = Rc::new(Accepted {
        conn: conn.clone(),
        via,
        trust,
        standing: Cell::new(Standing::Trusted),
        leaves_since: Cell::new(None),
        // Later than a peer of our own make, which goes by itself.
        retires: conn.worker.tick() + fastrand::u64(age_max..=age_max + age_max / 4),
        source,
        clients: RefCell::default(),
        turns: Rc::default(),
    });
    conn.worker.accepted.borrow_mut().push(Rc::downgrade(&accepted));
    let turns = accepted.turns.clone();
    let start = |flow: &Rc<Flow>, request, respond| Accepted::start(&accepted, flow, request, respond);
    let ended = http2::serve(&conn, &turns, Wire::Tls(Box::new(wire.into())), kind, start).await;
    accepted.end(ended.reason);
    ended
}

/// Closes the socket of a failed handshake behind the alert that says why. A reset would take it away, and what the client sent already, for
/// it thinks the handshake complete, makes one of a close.
async fn say_goodbye(conn: &Conn, socket: TcpStream) {
    let options = SockRef::from(&socket);
    if options.set_linger(None).and_then(|()| options.shutdown(Shutdown::Write)).is_err() {
        return;
    }
    let mut left = GOODBYE.1;
    let unread = async {
        while left > 0 && socket.readable().await.is_ok() {
            let mut scratch = conn.worker.scratch.borrow_mut();
            match socket.try_read(&mut scratch[..]) {
                Ok(0) => return,
                Ok(count) => left = left.saturating_sub(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    };
    // Late is as good as done.
    let _ = timeout(GOODBYE.0, unread).await;
}

/// The pod that calls: the one whose address it comes from, if that is who the peer proved to be.
fn source(conn: &Conn, id: &SpiffeId) -> Option<Arc<Workload>> {
    let (tls, snapshot) = (conn.worker.tls.as_ref()?, conn.worker.snapshot());
    let workload = snapshot.workload_by_ip(conn.client.get().ip())?;
    let expected = tls.ids_of(workload, &snapshot.mesh.trust_domain);
    expected.ids().contains(id).then(|| workload.clone())
}

type Stream = Pin<Box<dyn Future<Output = ()>>>;

/// A connection whose peer is authenticated.
pub(crate) struct Accepted {
    conn: Rc<Conn>,
    via: Via,
    trust: Trust,
    standing: Cell<Standing>,
    /// Tick of the word that it is time to leave.
    leaves_since: Cell<Option<u64>>,
    /// Tick behind which it is told to leave.
    retires: u64,
    source: Option<Arc<Workload>>,
    /// True clients with connections of their own to the application.
    clients: RefCell<FastMap<ClientAddr, Entry>>,
    turns: Rc<Cell<u64>>,
}

/// What the proof is worth by which a peer was let in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Trusted,
    /// Its time is up. What is open goes on to its own end: no connection can be proved twice.
    Expired,
    /// No root vouches for it, since a tick. What is open has a grace.
    Withdrawn(u64),
}

struct Entry {
    client: Rc<Client>,
    /// When it last asked.
    tick: u64,
}

impl Accepted {
    /// One stream: a request, or the bytes of a connection.
    fn start(
        this: &Rc<Self>,
        flow: &Rc<Flow>,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) -> Option<Stream> {
        if !this.takes_streams() {
            respond.send_reset(h2::Reason::REFUSED_STREAM);
            return None;
        }
        let peer = this.conn.client.get();
        let is_connect = request.method() == Method::CONNECT && request.extensions().get::<Protocol>().is_none();
        if this.via == Via::Hbone {
            let client = headers::read_forwarded(request.headers(), peer);
            if !is_connect {
                refuse(respond, StatusCode::BAD_REQUEST, None);
                return None;
            }
            return this.bytes(client, flow, request, respond);
        }
        let told = headers::read(request.headers(), peer);
        if is_connect && !told.is_own_connect {
            return this.bytes(told.client, flow, request, respond);
        }
        let client = match this.client(ClientAddr::new(told.client.unwrap_or(peer))) {
            Ok(client) => client,
            Err(reason) => {
                refuse(respond, StatusCode::SERVICE_UNAVAILABLE, Some(reason));
                return None;
            }
        };
        let (conn, flow) = (client.conn.clone(), flow.clone());
        let for_application = headers::for_application(request.headers());
        Some(Box::pin(async move {
            tokio::select! {
                biased;
                reason = conn.cut_while_carried() => conn.end(reason),
                () = stream::serve(client, flow, request, respond, told.version, for_application) => {}
            }
        }))
    }

    /// A byte stream: to the very address that was called, or by HBONE to a port of this pod.
    fn bytes(
        &self,
        client: Option<SocketAddr>,
        flow: &Rc<Flow>,
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
    ) -> Option<Stream> {
        let target = request.uri().authority().and_then(|authority| authority.as_str().parse::<SocketAddr>().ok());
        let is_meant = |target: &SocketAddr| match self.via {
            Via::Hbone => self.conn.pod.has_address(target.ip()) && target.port() != 0,
            _ => self.conn.original.is_some_and(|original| original.get() == *target),
        };
        let Some(target) = target.filter(is_meant).filter(|target| !AGENT_PORTS.contains(&target.port())) else {
            refuse(respond, StatusCode::BAD_REQUEST, None);
            return None;
        };
        let client = ClientAddr::new(client.unwrap_or(self.conn.client.get()));
        let (conn, route) = match self.enter(client, OriginalDst::new(target)) {
            Ok(entered) => entered,
            Err(reason) => {
                refuse(respond, StatusCode::SERVICE_UNAVAILABLE, Some(reason));
                return None;
            }
        };
        let admission = authz::admission(&conn);
        if admission == Admission::Refused {
            let reason = authz::refusal(&conn);
            refuse(respond, self.forbidden(), Some(reason));
            conn.end(reason);
            return None;
        }
        let source = Incoming::new(request.into_body(), flow.clone());
        let (flow, forbidden) = (flow.clone(), self.forbidden());
        // Made here: the stream may be gone before it has its first turn.
        let carried = EndsWith(conn);
        Some(Box::pin(async move {
            let conn = &carried.0;
            let reason = tokio::select! {
                biased;
                // First, as it resets its stream when it is cut.
                reason = async {
                    match admission {
                        Admission::Free => carry(conn, &route, flow, source, respond, forbidden).await,
                        _ => Box::pin(parse(conn, route, flow, source, respond)).await,
                    }
                } => reason,
                reason = conn.cut_while_carried() => reason,
            };
            conn.end(reason);
        }))
    }

    /// How a peer is told that policies do not let its bytes in.
    fn forbidden(&self) -> StatusCode {
        // HBONE's word for it.
        if self.via == Via::Hbone { StatusCode::UNAUTHORIZED } else { StatusCode::FORBIDDEN }
    }

    /// The true client of a request.
    fn client(&self, address: ClientAddr) -> Result<Rc<Client>, Reason> {
        let tick = self.conn.worker.tick();
        let mut clients = self.clients.borrow_mut();
        if let Some(entry) = clients.get_mut(&address)
            && !entry.client.conn.is_leaving()
        {
            entry.tick = tick;
            return Ok(entry.client.clone());
        }
        let original = self.conn.original.ok_or(Reason::NoOriginalDestination)?;
        let (conn, route) = self.enter(address, original)?;
        conn.carries_http();
        let client = Rc::new(Client::carried(&conn, route, self.turns.clone()));
        if let Some(former) = clients.insert(address, Entry { client: client.clone(), tick }) {
            former.client.conn.end(Reason::Completed);
        }
        if clients.len() > IDLE_CLIENTS_MAX {
            let idle = clients.iter().filter(|(_, entry)| entry.is_idle());
            if let Some(oldest) = idle.min_by_key(|(_, entry)| entry.tick).map(|(address, _)| *address)
                && let Some(gone) = clients.remove(&oldest)
            {
                gone.client.conn.end(Reason::Completed);
            }
        }
        Ok(client)
    }

    /// An entry in the registry for what a stream of this connection carries, and where that goes.
    fn enter(&self, client: ClientAddr, original: OriginalDst) -> Result<(Rc<Conn>, Rc<Route>), Reason> {
        let (worker, carrier) = (&self.conn.worker, self.conn.clone());
        let source = self.source.clone();
        let conn = Conn::enter_carried(
            worker,
            &self.conn.pod,
            Direction::Inbound,
            client,
            Some(original),
            source,
            Some(carrier),
        );
        conn.set_via(self.via, self.trust.id().as_str(), self.conn.pod.principal());
        let route = Rc::new(Route::of(&conn, original, &worker.snapshot()));
        conn.set_target(route.target());
        if let Err(reason) = conn.take_budget() {
            conn.end(reason);
            return Err(reason);
        }
        Ok((conn, route))
    }

    /// Whether another stream may begin: behind the word that it is time to leave only those that were on their way.
    fn takes_streams(&self) -> bool {
        if let Some(tls) = &self.conn.worker.tls
            && self.trust.is_due(tls.generation(), Duration::ZERO)
        {
            self.review(tls, tls.now());
        }
        self.leaves_since.get().is_none_or(|since| self.conn.worker.tick() < since + LEAVING_TICKS)
    }

    fn review(&self, tls: &Tls, now: Duration) {
        let Err(lapse) = tls.review(&self.trust, now) else { return };
        match (lapse, self.standing.get()) {
            (_, Standing::Withdrawn(_)) => {}
            (Lapse::Expired, _) => self.standing.set(Standing::Expired),
            (Lapse::Withdrawn, _) => self.standing.set(Standing::Withdrawn(self.conn.worker.tick())),
        }
        self.leave();
    }

    /// Tells the peer that it has to make another connection.
    fn leave(&self) {
        if self.leaves_since.get().is_none() {
            self.leaves_since.set(Some(self.conn.worker.tick()));
            self.conn.retire();
        }
    }

    /// A second passed: who is too old, or not trusted any more, is told to leave. So many may be verified anew.
    pub(crate) fn look_again(&self, tls: &Tls, now: Duration, reviews: &mut usize) {
        let tick = self.conn.worker.tick();
        if self.trust.is_due(tls.generation(), now) && *reviews > 0 {
            *reviews -= 1;
            self.review(tls, now);
        }
        if tick > self.retires {
            self.leave();
        }
        if let Standing::Withdrawn(since) = self.standing.get()
            && tick > since + self.conn.worker.config.mesh_withdrawn_grace.as_secs()
        {
            self.conn.cut(Reason::TlsUnknownRoot);
        }
    }

    /// A second passed: clients that ask nothing let go of their connections.
    pub(crate) fn sweep(&self, tick: u64) {
        self.clients.borrow_mut().retain(|_, entry| {
            let is_wanted = entry.tick + IDLE_CLIENT_TICKS > tick && !entry.client.conn.is_leaving();
            let stays = !entry.is_idle() || is_wanted;
            if !stays {
                entry.client.conn.end(Reason::Completed);
            }
            stays
        });
    }

    fn end(&self, reason: Reason) {
        self.clients.borrow_mut().drain().for_each(|(_, entry)| entry.client.conn.end(reason));
    }
}

impl Drop for Accepted {
    fn drop(&mut self) {
        let reason = self.conn.ended().unwrap_or(Reason::AgentShutdown);
        self.end(reason);
    }
}

impl Entry {
    /// Whether no stream holds it.
    fn is_idle(&self) -> bool {
        Rc::strong_count(&self.client) == 1
    }
}

/// A carried connection whose stream was dropped ended with its carrier.
struct EndsWith(Rc<Conn>);

impl Drop for EndsWith {
    fn drop(&mut self) {
        let carrier = self.0.carrier().and_then(|carrier| carrier.ended());
        self.0.end(carrier.unwrap_or(Reason::DownstreamReset));
    }
}

/// Connects to the application, says so, and carries the bytes.
async fn carry(
    conn: &Rc<Conn>,
    route: &Rc<Route>,
    flow: Rc<Flow>,
    source: Incoming,
    mut respond: SendResponse<Bytes>,
    forbidden: StatusCode,
) -> Reason {
    let permit = match authz::opaque(conn) {
        Ok(permit) => permit,
        Err(reason) => {
            refuse(respond, forbidden, Some(reason));
            return reason;
        }
    };
    let dialling = async {
        let mut choice = Choice::new(conn, route, HttpVersion::Http1, None, &[])?;
        loop {
            conn.upstream.set(Some(choice.hop().addr));
            conn.attempts.set(conn.attempts.get() + 1);
            match dial::unwatched(conn, choice.hop()).await {
                Ok(upstream) => return Ok(upstream),
                Err(failure) => choice.failed(conn, failure)?,
            }
        }
    };
    let dialled: Result<TcpStream, Reason> = tokio::select! {
        biased;
        _ = std::future::poll_fn(|cx| respond.poll_reset(cx)) => return Reason::DownstreamReset,
        dialled = Box::pin(dialling) => dialled,
    };
    let upstream = match dialled {
        Ok(upstream) => upstream,
        Err(reason) => {
            refuse(respond, StatusCode::SERVICE_UNAVAILABLE, Some(reason));
            return reason;
        }
    };
    let Ok(sink) = respond.send_response(Response::new(()), false) else { return Reason::DownstreamReset };
    conn.open_series();
    let sink = Outgoing::new(sink, flow);
    let reason = tunnel::carry(conn, &permit, &upstream, Side::Upstream, source, sink, None).await;
    if reason.is_success() {
        // Fails only on a socket that is already gone.
        let _ = SockRef::from(&upstream).set_linger(None);
    }
    reason
}

/// Rules ask for HTTP: the bytes are read as if their client had connected by itself, and the application is called for what is let in of
/// them.
async fn parse(
    conn: &Rc<Conn>,
    route: Rc<Route>,
    flow: Rc<Flow>,
    source: Incoming,
    mut respond: SendResponse<Bytes>,
) -> Reason {
    let (ours, clients) = match pair() {
        Ok(pair) => pair,
        Err(error) => {
            tracing::warn!(%error, "no pair of sockets for a byte stream that is to be parsed");
            refuse(respond, StatusCode::SERVICE_UNAVAILABLE, Some(Reason::SocketUnavailable));
            return Reason::SocketUnavailable;
        }
    };
    let Ok(sink) = respond.send_response(Response::new(()), false) else { return Reason::DownstreamReset };
    let sink = Outgoing::new(sink, flow);
    let mut unread = tunnel::Unread::new(conn, &clients, source, sink);
    let reason = {
        let carrying = pin!(unread.carry());
        let mut serving = pin!(protocol::run(conn, route, ours));
        // It has no task of its own: this is where it hears that it is out of time.
        let serving = pin!(poll_fn(|cx| {
            let _ = conn.poll_cut(cx.waker());
            serving.as_mut().poll(cx).map(|ended| ended.reason)
        }));
        match select(serving, carrying).await {
            Either::Left((reason, _)) => reason,
            Either::Right((reason, serving)) if reason.is_success() => {
                return timeout(GOODBYE.0, serving).await.unwrap_or(reason);
            }
            Either::Right((reason, _)) => return reason,
        }
    };
    if !reason.is_success() {
        unread.reset();
        return reason;
    }
    // What was answered last may be on its way still: as long as its client takes, like what is in a socket's queue.
    let delivered = unread.deliver().await;
    if !delivered.is_success() {
        return delivered;
    }
    let _ = timeout(GOODBYE.0, unread.carry()).await;
    reason
}

/// Two ends of one connection inside this process.
fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let (one, other) = UnixStream::pair()?;
    let stream = |end: UnixStream| {
        end.set_nonblocking(true)?;
        // A socket of any family is read and written alike.
        TcpStream::from_std(std::net::TcpStream::from(OwnedFd::from(end)))
    };
    Ok((stream(one)?, stream(other)?))
}

/// Declines a stream.
fn refuse(mut respond: SendResponse<Bytes>, status: StatusCode, reason: Option<Reason>) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    if let Some(reason) = reason {
        response.headers_mut().insert(answer::REASON_HEADER, HeaderValue::from_static(reason.as_str()));
    }
    // An error means that nobody waits for it any more.
    let _ = respond.send_response(response, true);
}
