//! One client's way to its upstreams: the route its requests take as of now, endpoints in turn until one is reached, and the
//! connections whose server was told this client's address, which serve no other.

use std::cell::{Cell, OnceCell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use h2::client::ResponseFuture;
use h2::ext::Protocol;
use heddle_http::Reject;
use heddle_http::detect::HttpVersion;
use heddle_http::h1::RequestHead;
use heddle_http::retry;
use heddle_model::OriginalDst;
use heddle_telemetry::{Direction, Reason, Via};
use http::{HeaderValue, Method, Request};

use super::flow::{Flow, Outgoing};
use super::plan::{Plan, within};
use super::pool::{self, Pool};
use super::pool_h2::{CONNECTIONS_PER_ENDPOINT_MAX, Place, PoolH2, reason_of};
use super::record::Record;
use crate::authz::{self, Permit, View};
use crate::budget::Pod;
use crate::dial::{self, Failure, Hop};
use crate::hash::FastMap;
use crate::mesh::headers;
use crate::mesh::way::Way;
use crate::registry::Conn;
use crate::route::{Choice, EndpointRef, From, Route, Upstream};

/// Connections tried for one stream: as many as there may be to an endpoint, and a new one.
const OPEN_TRIES_MAX: usize = CONNECTIONS_PER_ENDPOINT_MAX + 1;

/// A stream with a request's head on it.
pub(crate) struct Opened {
    pub(crate) response: ResponseFuture,
    pub(crate) sink: Outgoing,
    /// What its connection holds.
    pub(crate) flow: Rc<Flow>,
    /// On a connection that was there already: its server may have closed it just now.
    pub(crate) reused: bool,
    /// Its weight on the endpoint, its place on the connection.
    pub(crate) held: (EndpointRef, Place),
    pub(crate) permit: Permit,
}

/// Why there is no way to an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreached {
    Failed(Reason),
    /// The endpoint that is next speaks another version of HTTP than those before.
    OtherVersion,
}

impl std::convert::From<Reason> for Unreached {
    fn from(reason: Reason) -> Self {
        Self::Failed(reason)
    }
}

/// What the requests of one client share.
pub(crate) struct Client {
    pub(crate) conn: Rc<Conn>,
    route: RefCell<Rc<Route>>,
    /// Connections that are this client's alone: shared by its streams, or idle.
    own_h2: PoolH2,
    own: OnceCell<Rc<Pool>>,
    /// The called side of requests handed over to pods of this node, by address.
    handed: RefCell<FastMap<SocketAddr, Rc<Conn>>>,
    /// Who it is, as other agents are told.
    told: OnceCell<Option<HeaderValue>>,
    /// Why the dial of detection failed, until the first request is told.
    pub(crate) dialled: Cell<Option<Reason>>,
    /// The endpoint of the HTTP/2 connection that detection dialled, for the first stream.
    first: Cell<Option<SocketAddr>>,
    /// Times the connection wrote what its streams had sent.
    pub(crate) turns: Rc<Cell<u64>>,
}

impl Client {
    pub(crate) fn new(conn: &Rc<Conn>, route: Rc<Route>) -> Self {
        Self::carried(conn, route, Rc::default())
    }

    /// One of several clients of a connection that counts its turns in `turns`.
    pub(crate) fn carried(conn: &Rc<Conn>, route: Rc<Route>, turns: Rc<Cell<u64>>) -> Self {
        Self {
            conn: conn.clone(),
            route: RefCell::new(route),
            own_h2: PoolH2::default(),
            own: OnceCell::new(),
            handed: RefCell::default(),
            told: OnceCell::new(),
            dialled: Cell::new(None),
            first: Cell::new(None),
            turns,
        }
    }

    /// The route as of the newest snapshot.
    pub(crate) fn route(&self) -> Rc<Route> {
        let mut route = self.route.borrow_mut();
        if let Some(original) = self.conn.original {
            let snapshot = self.conn.worker.refresh();
            if snapshot.generation != route.generation {
                *route = Rc::new(Route::of(&self.conn, original, &snapshot));
                self.conn.set_target(route.target());
            }
        }
        route.clone()
    }

    /// Detection dialled an HTTP/2 server.
    pub(crate) async fn take_first(&self, upstream: Upstream) {
        let Upstream { stream, endpoint, .. } = upstream;
        // One that broke already is dialled again for the first stream.
        if Box::pin(self.pool_h2(endpoint.private).add(&self.conn, endpoint.addr, stream)).await.is_ok() {
            self.first.set(Some(endpoint.addr));
        }
    }

    /// A request begins: finds out what becomes of it. An error is answered at once.
    pub(crate) fn begin(
        &self,
        view: View<'_>,
        spoken: HttpVersion,
        idempotent: bool,
        record: &mut Record,
    ) -> Result<(), Reason> {
        let grpc = record.grpc;
        record.plan.begin(&self.conn, self.route(), &view, spoken, idempotent, grpc)
    }

    /// Whom to send a request to, of a client that speaks `spoken`.
    pub(crate) fn choose(&self, spoken: HttpVersion, plan: &Plan) -> Result<Choice, Reason> {
        // What detection came to says nothing about where a rule leads.
        let (dialled, first) = (self.dialled.take(), self.first.take());
        if plan.is_routed() {
            let route = plan.route().cloned().unwrap_or_else(|| self.route());
            return self.chosen(&route, spoken, None, plan);
        }
        if let Some(reason) = dialled {
            return Err(reason);
        }
        self.chosen(&self.route(), spoken, first, plan)
    }

    /// Whom to send a request to where the endpoint that detection connected to takes no more, for this `reason`.
    pub(crate) fn choose_beside(
        &self,
        full: SocketAddr,
        reason: Reason,
        spoken: HttpVersion,
        plan: &Plan,
    ) -> Result<Choice, Reason> {
        let mut choice = self.chosen(&self.route(), spoken, Some(full), plan)?;
        // It may be no endpoint any more.
        if choice.hop().addr == full {
            choice.pass_by(&self.conn, reason)?;
        }
        Ok(choice)
    }

    fn chosen(
        &self,
        route: &Rc<Route>,
        spoken: HttpVersion,
        first: Option<SocketAddr>,
        plan: &Plan,
    ) -> Result<Choice, Reason> {
        let mut choice = Choice::new(&self.conn, route, spoken, first, plan.tried())?;
        if plan.has_retry_policy() {
            choice.leave_to_policy();
        }
        Ok(choice)
    }

    /// Opens a stream for a request. A connection that turns out to take no more is replaced: nothing was sent on it.
    pub(crate) async fn open(
        &self,
        choice: &mut Choice,
        request: &Request<()>,
        ended: bool,
        record: &mut Record,
    ) -> Result<Opened, Unreached> {
        let is_extended = request.extensions().get::<Protocol>().is_some();
        let mut last = Reason::UpstreamReset;
        for _ in 0..OPEN_TRIES_MAX {
            let place =
                async |hop: &Hop, dials: &mut u32| self.pool_h2(hop.publish).place(&self.conn, hop, dials).await;
            let view = || View::of_request(request);
            let (endpoint, place, permit) = self.reach(choice, HttpVersion::Http2, view, record, place).await?;
            let permit = self.renewed(permit, &endpoint, || View::of_request(request), record)?;
            record.set_endpoint(&endpoint);
            // What few streams need is boxed: the others hold no room for it.
            let patience = self.conn.worker.config.connect_timeout;
            if is_extended && !Box::pin(place.takes_extended_connect(patience)).await {
                record.detail = Reject::ExtendedConnect.as_str();
                return Err(Reject::ExtendedConnect.request_reason().into());
            }
            let mut request = request.clone();
            permit.apply_to(&mut request).map_err(Reject::request_reason)?;
            if let Some(left) = record.plan.left() {
                request.headers_mut().insert("grpc-timeout", retry::grpc_timeout_value(left));
            }
            if endpoint.way.via().is_authenticated() {
                headers::tell_attempt(request.headers_mut(), record.plan.number());
            }
            if endpoint.way.via() == Via::Heddle {
                let is_connect = request.method() == Method::CONNECT && !is_extended;
                let client = self.told.get_or_init(|| headers::of_client(self.conn.client.get()));
                headers::tell(request.headers_mut(), client.clone(), choice.spoken(), is_connect);
            }
            match place.open(request, ended).await {
                Ok((response, sink)) => {
                    let (flow, sink) = (place.flow(), Outgoing::new(sink, place.flow()));
                    let (reused, held) = (place.reused, (endpoint, place));
                    return Ok(Opened { response, sink, flow, reused, held, permit });
                }
                Err(error) => {
                    last = place.why(reason_of(&error));
                    if !place.is_over() {
                        break;
                    }
                    // What another agent says against us it would say again.
                    let is_of_mesh = endpoint.way.tls().is_some();
                    let may_dial = !is_of_mesh && record.attempts < self.conn.worker.config.connect_attempts_max;
                    if place.reused || may_dial {
                        record.plan.begin_anew();
                        continue;
                    }
                }
            }
            // It came about and broke off before a stream was there.
            Box::pin(pause(self.unreached(choice, Failure::told(last), record)?)).await;
        }
        Err(last.into())
    }

    /// A connection for one HTTP/1 request.
    pub(crate) async fn connection(
        &self,
        choice: &mut Choice,
        from: From,
        request: &RequestHead,
        record: &mut Record,
    ) -> Result<(Upstream, Permit), Unreached> {
        let connect = async |hop: &Hop, dials: &mut u32| {
            if from == From::Pool
                && let Some(stream) = self.pool(hop.publish).take(self.conn.pod.serial, hop.addr)
            {
                return Ok((stream, true));
            }
            *dials += 1;
            Ok((Box::pin(dial::unwatched(&self.conn, hop)).await?, false))
        };
        let view = || View::of_head(request);
        let (endpoint, (stream, reused), permit) =
            self.reach(choice, HttpVersion::Http1, view, record, connect).await?;
        Ok((Upstream { stream, endpoint, reused }, permit))
    }

    /// The next life of a connection behind a request: `keep` if it may serve another.
    pub(crate) fn put_back(&self, upstream: Upstream, keep: bool) {
        let Upstream { stream, endpoint, .. } = upstream;
        if !keep {
            return pool::close(stream);
        }
        let generation = self.route.borrow().generation;
        self.pool(endpoint.private).put(&self.conn, &endpoint, generation, stream);
    }

    /// Ready when what streams sent before is written, as far as the client takes it: a reset would take back what is not.
    pub(crate) async fn written(&self) {
        let before = self.turns.get();
        poll_fn(|cx| {
            if self.turns.get() != before {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// Tries the endpoints of the route in turn until one that speaks `version` is reached.
    async fn reach<'v, T>(
        &self,
        choice: &mut Choice,
        version: HttpVersion,
        view: impl Fn() -> View<'v>,
        record: &mut Record,
        mut reach: impl AsyncFnMut(&Hop, &mut u32) -> Result<T, Failure>,
    ) -> Result<(EndpointRef, T, Permit), Unreached> {
        loop {
            if choice.version() != version {
                return Err(Unreached::OtherVersion);
            }
            // Only bytes go by HBONE: where nobody else is there, a connection of requests has to begin anew.
            if choice.hop().way.via() == Via::Hbone {
                choice.pass_by(&self.conn, Reason::UpstreamUnreachable)?;
                continue;
            }
            let permit = self.permit(&choice.hop().way, choice.hop().addr, &view, record)?;
            if !self.attempt(choice, record)? {
                continue;
            }
            let endpoint = choice.endpoint(&self.conn);
            // What its connection may take, whoever makes it and with all that belongs to it.
            let by = record.plan.connected_by();
            let reached = match by {
                None => reach(choice.hop(), &mut record.attempts).await,
                // Boxed: most requests have no such time.
                Some(_) => Box::pin(within(by, reach(choice.hop(), &mut record.attempts))).await,
            };
            match reached {
                Ok(reached) => {
                    record.plan.reached();
                    choice.connected(&self.conn);
                    return Ok((endpoint, reached, permit));
                }
                Err(failure) => pause(self.unreached(choice, failure, record)?).await,
            }
        }
    }

    /// Begins an attempt at the endpoint that was chosen; false if it takes no more and another was chosen.
    pub(crate) fn attempt(&self, choice: &mut Choice, record: &mut Record) -> Result<bool, Reason> {
        match record.plan.attempt(&self.conn, choice.hop().addr, choice.version() == HttpVersion::Http1) {
            Ok(()) => {
                choice.limit(record.plan.per_try());
                Ok(true)
            }
            Err((reason, true)) => choice.pass_by(&self.conn, reason).map(|()| false),
            Err((reason, false)) => Err(reason),
        }
    }

    /// The endpoint was not reached: chooses another; how long the policy says to wait first.
    pub(crate) fn unreached(
        &self,
        choice: &mut Choice,
        failure: Failure,
        record: &mut Record,
    ) -> Result<Duration, Reason> {
        let addr = choice.hop().addr;
        let next = choice.failed(&self.conn, failure);
        record.plan.unreached(&self.conn, addr, failure, next)
    }

    /// Whether a request may go to an endpoint, as far as this agent decides that: where it is called, or where it is handed over to a pod
    /// of this node. That pod's side of the request begins here: its budget, its record, its policies.
    pub(crate) fn permit<'v>(
        &self,
        way: &Way,
        addr: SocketAddr,
        view: impl FnOnce() -> View<'v>,
        record: &mut Record,
    ) -> Result<Permit, Reason> {
        if self.conn.direction == Direction::Inbound {
            return authz::request(&self.conn, view, &mut record.judged);
        }
        let Way::Handover(pod) = way else {
            record.goes_elsewhere();
            return Ok(Permit::free());
        };
        let called = self.called(pod, addr)?;
        record.hand_over(called.clone())?;
        authz::request(&called, view, &mut record.judged)
    }

    /// The permit with which a request is sent that had to wait for its upstream: policies may have changed meanwhile.
    pub(crate) fn renewed<'v>(
        &self,
        permit: Permit,
        endpoint: &EndpointRef,
        view: impl FnOnce() -> View<'v>,
        record: &mut Record,
    ) -> Result<Permit, Reason> {
        if permit.is_stale() { self.permit(&endpoint.way, endpoint.addr, view, record) } else { Ok(permit) }
    }

    /// The called side of requests to a pod of this node.
    fn called(&self, pod: &Rc<Pod>, addr: SocketAddr) -> Result<Rc<Conn>, Reason> {
        // Another pod may have the address by now.
        let is_its = |called: &&Rc<Conn>| !called.is_leaving() && Rc::ptr_eq(&called.pod, pod);
        let called = self.handed.borrow().get(&addr).filter(is_its).cloned();
        let called = match called {
            Some(called) => called,
            None => {
                let called = enter_called(&self.conn, pod, addr)?;
                called.carries_http();
                let gone = self.handed.borrow_mut().insert(addr, called.clone());
                if let Some(gone) = gone {
                    gone.end(Reason::Completed);
                }
                called
            }
        };
        Ok(called)
    }

    fn pool_h2(&self, is_private: bool) -> &PoolH2 {
        if is_private { &self.own_h2 } else { &self.conn.worker.pool_h2 }
    }

    fn pool(&self, is_private: bool) -> &Pool {
        let worker = &self.conn.worker;
        if is_private { self.own.get_or_init(|| worker.own_pool()) } else { &worker.pool }
    }
}

/// The wait before another endpoint is tried. Who calls drops it when the client leaves.
async fn pause(wait: Duration) {
    if !wait.is_zero() {
        tokio::time::sleep(wait).await;
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let reason = self.conn.ended().unwrap_or(Reason::Completed);
        self.handed.get_mut().drain().for_each(|(_, called)| called.end(reason));
    }
}

/// The called side of a connection that is handed over to `pod` of this node, as its agent sees it: the same entry, budget and records as if
/// it had come over the network, with the identity that the calling pod's listener attests.
pub(crate) fn enter_called(conn: &Rc<Conn>, pod: &Rc<Pod>, addr: SocketAddr) -> Result<Rc<Conn>, Reason> {
    let (worker, snapshot) = (&conn.worker, conn.worker.snapshot());
    let original = OriginalDst::new(addr);
    let (client, source) = (conn.client, conn.source.clone());
    let called =
        Conn::enter_carried(worker, pod, Direction::Inbound, client, Some(original), source, Some(conn.clone()));
    called.set_via(Via::Handover, conn.pod.principal(), pod.principal());
    called.set_target(Route::of(&called, original, &snapshot).target());
    called.upstream.set(Some(addr));
    if let Err(reason) = called.take_budget() {
        called.end(reason);
        return Err(reason);
    }
    Ok(called)
}
