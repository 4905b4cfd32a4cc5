//! One client's way to its upstreams: the route its requests take as of now, endpoints in turn until one is reached, and the
//! connections whose server was told this client's address, which serve no other.

use std::cell::{Cell, OnceCell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use h2::client::ResponseFuture;
use h2::ext::Protocol;
use heddle_http::Reject;
use heddle_http::detect::HttpVersion;
use heddle_telemetry::Reason;
use http::Request;

use super::flow::{Flow, Outgoing};
use super::pool::{self, Pool};
use super::pool_h2::{CONNECTIONS_PER_ENDPOINT_MAX, Place, PoolH2, reason_of};
use super::record::Record;
use crate::dial::{self, Failure, Hop};
use crate::registry::Conn;
use crate::route::{EndpointRef, From, Kind, Picking, Route, Upstream};

/// Times a request is sent again because a server did not look at it, or was gone already.
pub(crate) const REPEATS_MAX: u32 = 2;
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
}

/// What the requests of one client share.
pub(crate) struct Client {
    pub(crate) conn: Rc<Conn>,
    route: RefCell<Rc<Route>>,
    /// Connections that are this client's alone: shared by its streams, or idle.
    own_h2: PoolH2,
    own: OnceCell<Rc<Pool>>,
    /// Why the dial of detection failed, until the first request is told.
    pub(crate) dialled: Cell<Option<Reason>>,
    /// The endpoint of the HTTP/2 connection that detection dialled, for the first stream.
    first: RefCell<Option<EndpointRef>>,
    /// Times the connection wrote what its streams had sent.
    pub(crate) turns: Cell<u64>,
}

impl Client {
    pub(crate) fn new(conn: &Rc<Conn>, route: Route) -> Self {
        Self {
            conn: conn.clone(),
            route: RefCell::new(Rc::new(route)),
            own_h2: PoolH2::default(),
            own: OnceCell::new(),
            dialled: Cell::new(None),
            first: RefCell::new(None),
            turns: Cell::new(0),
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

    /// The version its upstreams are called with, for one that speaks `own` itself.
    pub(crate) fn upstream_version(&self, own: HttpVersion) -> HttpVersion {
        self.route().version(own)
    }

    /// Detection dialled an HTTP/2 server.
    pub(crate) async fn take_first(&self, upstream: Upstream) {
        let Upstream { stream, mut endpoint, .. } = upstream;
        endpoint.rest();
        // One that broke already is dialled again for the first stream.
        if Box::pin(self.pool_h2(endpoint.private).add(&self.conn, endpoint.addr, stream)).await.is_ok() {
            *self.first.borrow_mut() = Some(endpoint);
        }
    }

    /// A place for one stream at an endpoint.
    pub(crate) async fn place(&self, record: &mut Record) -> Result<(EndpointRef, Place), Reason> {
        let place = async |hop: Hop, dials: &mut u32| self.pool_h2(hop.publish).place(&self.conn, hop, dials).await;
        self.reach(record, place).await
    }

    /// Opens a stream for a request. A connection that turns out to take no more is replaced: nothing was sent on it.
    pub(crate) async fn open(&self, request: &Request<()>, ended: bool, record: &mut Record) -> Result<Opened, Reason> {
        let is_extended = request.extensions().get::<Protocol>().is_some();
        let mut last = Reason::UpstreamReset;
        for _ in 0..OPEN_TRIES_MAX {
            let (endpoint, place) = self.place(record).await?;
            record.set_endpoint(endpoint.addr, endpoint.workload.as_ref());
            // What few streams need is boxed: the others hold no room for it.
            let patience = self.conn.worker.config.connect_timeout;
            if is_extended && !Box::pin(place.takes_extended_connect(patience)).await {
                record.detail = Reject::ExtendedConnect.as_str();
                return Err(Reject::ExtendedConnect.request_reason());
            }
            match place.open(request.clone(), ended).await {
                Ok((response, sink)) => {
                    let (flow, sink) = (place.flow(), Outgoing::new(sink, place.flow()));
                    return Ok(Opened { response, sink, flow, reused: place.reused, held: (endpoint, place) });
                }
                Err(error) => {
                    last = place.why(reason_of(&error));
                    let may_dial = record.attempts < self.conn.worker.config.connect_attempts_max;
                    if !place.is_over() || !(place.reused || may_dial) {
                        break;
                    }
                }
            }
        }
        Err(last)
    }

    /// A connection for one HTTP/1 request.
    pub(crate) async fn connection(&self, from: From, record: &mut Record) -> Result<Upstream, Reason> {
        let connect = async |hop: Hop, dials: &mut u32| {
            if from == From::Pool
                && let Some(stream) = self.pool(hop.publish).take(self.conn.pod.serial, hop.addr)
            {
                return Ok((stream, true));
            }
            *dials += 1;
            Ok((Box::pin(dial::unwatched(&self.conn, hop)).await?, false))
        };
        let (endpoint, (stream, reused)) = self.reach(record, connect).await?;
        Ok(Upstream { stream, endpoint, reused })
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

    /// Tries the endpoints of the route in turn until one is reached.
    async fn reach<T>(
        &self,
        record: &mut Record,
        mut reach: impl AsyncFnMut(Hop, &mut u32) -> Result<T, Failure>,
    ) -> Result<(EndpointRef, T), Reason> {
        if let Some(reason) = self.dialled.take() {
            return Err(reason);
        }
        let first = self.first.borrow_mut().take();
        let route = self.route();
        match &route.kind {
            Kind::Refused { reason, .. } => Err(*reason),
            Kind::Address { hop, workload, .. } => {
                // Rounds, not dials: a failure that was waited for is one.
                let mut rounds = 0;
                loop {
                    rounds += 1;
                    let endpoint = EndpointRef::only(hop, workload.as_ref());
                    match reach(*hop, &mut record.attempts).await {
                        Ok(reached) => return Ok((endpoint, reached)),
                        Err(f) if f.retryable && rounds < dial::attempts_max(&self.conn, hop) => {}
                        Err(failure) => return Err(failure.reason),
                    }
                }
            }
            Kind::Service { service, port_index, candidates } => {
                let mut picking = Picking::new(&self.conn, service, *port_index, candidates);
                if let Some(mut first) = first {
                    first.weigh(&self.conn.worker);
                    let hop = picking.hop(&self.conn, first.addr);
                    if let Ok(reached) = reach(hop, &mut record.attempts).await {
                        return Ok((first, reached));
                    }
                }
                loop {
                    let (hop, workload) = picking.next(&self.conn)?;
                    let endpoint = EndpointRef::chosen(&self.conn, &hop, workload.as_ref());
                    match reach(hop, &mut record.attempts).await {
                        Ok(reached) => {
                            picking.connected(&self.conn, hop.addr);
                            return Ok((endpoint, reached));
                        }
                        Err(failure) => picking.failed(hop.addr, failure)?,
                    }
                }
            }
        }
    }

    fn pool_h2(&self, is_private: bool) -> &PoolH2 {
        if is_private { &self.own_h2 } else { &self.conn.worker.pool_h2 }
    }

    fn pool(&self, is_private: bool) -> &Pool {
        let worker = &self.conn.worker;
        if is_private { self.own.get_or_init(|| worker.own_pool()) } else { &worker.pool }
    }
}
