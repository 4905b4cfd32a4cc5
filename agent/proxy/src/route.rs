//! What a connection's destination means, as of one snapshot, and the way to an upstream: pick an endpoint, take an idle
//! connection to it or dial.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use heddle_http::breaker::CircuitPermit;
use heddle_http::detect::{Declared, HttpVersion};
use heddle_http::outlier;
use heddle_model::balance::{self, Affinity};
use heddle_model::routing::{BackendFailure, BackendRef, Table};
use heddle_model::{Candidates, Class, Endpoint, Family, OriginalDst, Resolution, Service, Snapshot, Workload};
use heddle_telemetry::{Direction, Reason};
use tokio::net::TcpStream;

use crate::affinity::Key;
use crate::dial::{self, Failure, Hop, NamedBy};
use crate::hash::FastMap;
use crate::http::flow::{Incoming, Outgoing};
use crate::http::pool_h2::Place;
use crate::mesh::tunnel;
use crate::mesh::way::Way;
use crate::protocol;
use crate::registry::{Conn, Target};
use crate::upstreams::View;
use crate::worker::{Load, Worker};

/// Where a connection, or each of its requests, should go.
pub(crate) struct Route {
    /// Of the snapshot it follows from.
    pub(crate) generation: u64,
    /// What the destination is said to speak.
    pub(crate) declared: Declared,
    pub(crate) kind: Kind,
    /// Where its rules lead, as far as anybody asked.
    backends: RefCell<FastMap<*const BackendRef, Result<Rc<Self>, Reason>>>,
}

pub(crate) enum Kind {
    /// Nowhere, and why; the Service port that was meant, if it was one.
    Refused { reason: Reason, service: Option<(Arc<Service>, usize)> },
    /// To one address that has no alternative.
    Address {
        hop: Hop,
        workload: Option<Arc<Workload>>,
        /// The Service that leads here, where the address is a pod's own.
        service: Option<(Arc<Service>, u16)>,
        external: bool,
    },
    /// To an endpoint of a Service port.
    Service {
        service: Arc<Service>,
        port_index: usize,
        candidates: Candidates,
        /// How requests to it are carried.
        view: Rc<View>,
        /// The rules that may lead elsewhere; none for what a rule led to.
        table: Option<Arc<Table>>,
    },
}

/// One connection to an endpoint.
pub(crate) struct Upstream {
    pub(crate) stream: TcpStream,
    pub(crate) endpoint: EndpointRef,
    /// It was idle in the pool: the server may have closed it just now.
    pub(crate) reused: bool,
}

/// What carries bytes to an endpoint.
pub(crate) enum Connected {
    /// A connection of its own.
    Socket(Upstream),
    /// A stream of a connection of the mesh.
    Stream(Box<Tunnel>),
}

/// A byte stream to an endpoint, accepted by its agent.
pub(crate) struct Tunnel {
    pub(crate) source: Incoming,
    pub(crate) sink: Outgoing,
    /// What the server said before the client did.
    pub(crate) first: Option<Bytes>,
    pub(crate) place: Place,
    pub(crate) endpoint: EndpointRef,
}

/// A connection's place in the circuit breaker of a Service port.
type Occupied = (Rc<View>, CircuitPermit);

/// The endpoint a connection goes to, and this use's weight on it.
pub(crate) struct EndpointRef {
    pub(crate) addr: SocketAddr,
    pub(crate) workload: Option<Arc<Workload>>,
    /// Its server was told who the client is: it serves no other client.
    pub(crate) private: bool,
    /// By what it is reached.
    pub(crate) way: Way,
    /// It is an endpoint of a Service, chosen among others.
    is_chosen: bool,
    /// A connection's place in the circuit breaker, where that of its requests does not stand for it.
    connection: Option<Occupied>,
    /// Its weight in the balance while a connection or request uses it; none where there is no choice, or at rest.
    load: Option<Load>,
}

impl EndpointRef {
    /// A pod, called as it is.
    pub(crate) fn of(addr: SocketAddr, workload: &Arc<Workload>) -> Self {
        let workload = Some(workload.clone());
        Self { addr, workload, private: false, way: Way::Direct, is_chosen: false, connection: None, load: None }
    }

    /// Whether it is still what it was chosen for, by a later snapshot: an endpoint that serves, its pod the same.
    pub(crate) fn stands(&self, snapshot: &Snapshot) -> bool {
        let owner = snapshot.workload_by_ip(self.addr.ip());
        let is_same = match &self.workload {
            Some(workload) => workload.host_network || owner.is_some_and(|now| now.uid == workload.uid),
            None => owner.is_none(),
        };
        let serves = |e: &Endpoint| e.addr == self.addr && (e.ready || e.serving);
        is_same && (!self.is_chosen || snapshot.ports_at(self.addr).any(|port| port.endpoints.iter().any(serves)))
    }

    /// A connection to it carries bytes: that it was made is all that will be known of it.
    pub(crate) fn carries_bytes(&self, worker: &Worker) {
        if let Some((view, _)) = &self.connection {
            view.connected(worker, self.addr, outlier::Outcome::status(200));
        }
    }

    /// A connection to it turned out to be of requests, each of which has a place of its own.
    pub(crate) fn carries_requests(&mut self) {
        self.connection = None;
    }

    /// Nothing uses it for now: a connection that only waits for the next request must not weigh.
    pub(crate) fn rest(&mut self) {
        self.load = None;
    }

    /// It is chosen again.
    pub(crate) fn weigh(&mut self, worker: &Rc<Worker>) {
        self.load = Some(worker.load(self.addr));
    }
}

/// Whether a connection from the pool will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// An idle one if there is one.
    Pool,
    /// A new one only.
    Dial,
}

impl Route {
    /// For a connection to `original`.
    pub(crate) fn of(conn: &Conn, original: OriginalDst, snapshot: &Snapshot) -> Self {
        let kind = match conn.direction {
            Direction::Outbound => Kind::outbound(conn, original, snapshot),
            Direction::Inbound => Kind::inbound(conn, original, snapshot),
        };
        Self::from_kind(kind, snapshot)
    }

    fn from_kind(kind: Kind, snapshot: &Snapshot) -> Self {
        let declared = protocol::declared(&kind, snapshot);
        Self { generation: snapshot.generation, declared, kind, backends: RefCell::default() }
    }

    /// Where a backend of one of its rules leads; `to` is in its table.
    pub(crate) fn backend(&self, conn: &Conn, to: &BackendRef) -> Result<Rc<Self>, Reason> {
        let key = std::ptr::from_ref(to);
        if let Some(known) = self.backends.borrow().get(&key) {
            return known.clone();
        }
        let snapshot = conn.worker.snapshot();
        let family = conn.original.map_or(Family::V4, |original| Family::of(original.get().ip()));
        let route = backend(&snapshot, to, family).map(|(service, port_index, candidates)| {
            let view = conn.worker.views.get(&conn.worker, &service, port_index, &snapshot);
            let kind = Kind::Service { service, port_index, candidates, view, table: None };
            Rc::new(Self::from_kind(kind, &snapshot))
        });
        self.backends.borrow_mut().insert(key, route.clone());
        route
    }

    /// The version of HTTP its upstream is called with, for a client that speaks `client`.
    pub(crate) fn version(&self, client: HttpVersion) -> HttpVersion {
        self.declared.upstream_version(client)
    }

    /// What the registry and the records say about it before an endpoint is chosen.
    pub(crate) fn target(&self) -> Target {
        let of_service = |service: &Arc<Service>, port_index: usize| {
            let port = service.ports.get(port_index).map_or(0, |p| p.port);
            Target { service: Some((service.clone(), port)), ..Target::default() }
        };
        match &self.kind {
            Kind::Refused { service, .. } => {
                service.as_ref().map_or_else(Target::default, |(service, index)| of_service(service, *index))
            }
            Kind::Address { workload, service, external, .. } => {
                Target { service: service.clone(), workload: workload.clone(), external: *external }
            }
            Kind::Service { service, port_index, .. } => of_service(service, *port_index),
        }
    }
}

impl Kind {
    /// For a connection that a pod made.
    fn outbound(conn: &Conn, original: OriginalDst, snapshot: &Snapshot) -> Self {
        let config = &conn.worker.config;
        let address = |addr: SocketAddr, timeout, workload, external| {
            let publish = conn.pod.has_address(addr.ip());
            let hop = Hop { addr, publish, named_by: NamedBy::Application, timeout, way: Way::Direct };
            Self::Address { hop, workload, service: None, external }
        };
        match snapshot.resolve(conn.source.as_deref(), original) {
            Resolution::Unserved { service, port_index, refusal } => {
                if let Some(table) = table(conn, &service, port_index, snapshot).filter(|_| !service.invalid) {
                    // It has nobody itself; its rules may lead to others.
                    let endpoints =
                        service.ports.get(port_index).map(|port| port.endpoints.clone()).unwrap_or_default();
                    let candidates = Candidates { endpoints, eligible: Some(Arc::default()), class: Class::Ready };
                    let view = conn.worker.views.get(&conn.worker, &service, port_index, snapshot);
                    return Self::Service { service, port_index, candidates, view, table: Some(table) };
                }
                Self::Refused { reason: refusal.into(), service: Some((service, port_index)) }
            }
            Resolution::Refused(refusal) => Self::Refused { reason: refusal.into(), service: None },
            Resolution::Service { service, port_index, candidates } => {
                let view = conn.worker.views.get(&conn.worker, &service, port_index, snapshot);
                let table = table(conn, &service, port_index, snapshot);
                Self::Service { service, port_index, candidates, view, table }
            }
            Resolution::Workload { workload, addr } => address(addr, config.connect_timeout, Some(workload), false),
            Resolution::External { addr } => address(addr, config.connect_timeout_external, None, true),
        }
    }

    /// For a connection to a pod: the application, at the original address.
    fn inbound(conn: &Conn, original: OriginalDst, snapshot: &Snapshot) -> Self {
        let (addr, timeout) = (original.get(), conn.worker.config.connect_timeout);
        let service = snapshot.service_of_endpoint(addr).map(|(service, port)| (service.clone(), port));
        let hop = Hop { addr, publish: true, named_by: NamedBy::Application, timeout, way: Way::Direct };
        Self::Address { hop, workload: conn.pod.workload(snapshot), service, external: false }
    }
}

/// Whom a connection or request is sent to: the endpoints of its route in turn, until one is reached.
pub(crate) struct Choice {
    route: Rc<Route>,
    /// Of a Service's endpoints; none where there is only one address.
    picking: Option<Picking>,
    /// Rounds at the one address: a failure that was waited for is one, as a dial is.
    rounds: u32,
    hop: Hop,
    workload: Option<Arc<Workload>>,
    /// The version of HTTP the client speaks, if it speaks any.
    spoken: HttpVersion,
}

impl Choice {
    /// The first endpoint to try: `first` if detection is connected to one, else what the balance picks; none of those `tried` while there is
    /// another.
    pub(crate) fn new(
        conn: &Conn,
        route: &Rc<Route>,
        spoken: HttpVersion,
        first: Option<SocketAddr>,
        tried: &[SocketAddr],
    ) -> Result<Self, Reason> {
        let (picking, hop, workload) = match &route.kind {
            Kind::Refused { reason, .. } => return Err(*reason),
            Kind::Address { hop, workload, .. } => (None, hop.clone(), workload.clone()),
            Kind::Service { service, port_index, candidates, view, .. } => {
                let mut picking = Picking::new(conn, service, *port_index, view, tried);
                let first = first.and_then(|addr| candidates.endpoints.iter().find(|e| e.addr == addr));
                let (hop, workload) = match first {
                    Some(endpoint) => (picking.hop(conn, endpoint.addr), endpoint.workload.clone()),
                    None => picking.next(conn, candidates)?,
                };
                (Some(picking), hop, workload)
            }
        };
        let mut choice = Self { route: route.clone(), picking, rounds: 0, hop, workload, spoken };
        choice.find_way(conn);
        Ok(choice)
    }

    fn find_way(&mut self, conn: &Conn) {
        self.hop.way = Way::to(conn, self.workload.as_ref(), self.hop.addr);
        self.hop.publish |= matches!(self.hop.way, Way::Handover(_));
    }

    /// The endpoint to try now.
    pub(crate) fn hop(&self) -> &Hop {
        &self.hop
    }

    /// A connection to it may take so long, at most.
    pub(crate) fn limit(&mut self, timeout: Option<Duration>) {
        self.hop.timeout = timeout.into_iter().fold(self.hop.timeout, Duration::min);
    }

    /// Its pod, if it is one we know.
    pub(crate) fn workload(&self) -> Option<&Arc<Workload>> {
        self.workload.as_ref()
    }

    /// The version of HTTP it is called with: between agents it is always 2.
    pub(crate) fn version(&self) -> HttpVersion {
        if self.hop.way.tls().is_some() { HttpVersion::Http2 } else { self.route.version(self.spoken) }
    }

    /// The version of HTTP its client speaks.
    pub(crate) fn spoken(&self) -> HttpVersion {
        self.spoken
    }

    /// The endpoint as a use of it: it weighs from now on.
    pub(crate) fn endpoint(&self, conn: &Conn) -> EndpointRef {
        let Hop { addr, publish, way, .. } = self.hop.clone();
        let mut endpoint = EndpointRef {
            addr,
            workload: self.workload.clone(),
            private: publish,
            way,
            is_chosen: self.picking.is_some(),
            connection: None,
            load: None,
        };
        if endpoint.is_chosen {
            endpoint.weigh(&conn.worker);
        }
        endpoint
    }

    /// The endpoint did not answer: the next one to try, which may be the same, or why there is none.
    pub(crate) fn failed(&mut self, conn: &Conn, failure: Failure) -> Result<(), Reason> {
        match (&mut self.picking, &self.route.kind) {
            (Some(picking), Kind::Service { candidates, .. }) => {
                picking.failed(self.hop.addr, failure)?;
                (self.hop, self.workload) = picking.next(conn, candidates)?;
                self.find_way(conn);
                Ok(())
            }
            _ => {
                self.rounds += 1;
                let may_try = failure.retryable && self.rounds < dial::attempts_max(conn, &self.hop);
                if may_try { Ok(()) } else { Err(failure.reason) }
            }
        }
    }

    /// The endpoint takes nothing, for this `reason`: the next one that was not tried, if there is one.
    pub(crate) fn pass_by(&mut self, conn: &Conn, reason: Reason) -> Result<(), Reason> {
        let (Some(picking), Kind::Service { candidates, .. }) = (&mut self.picking, &self.route.kind) else {
            return Err(reason);
        };
        picking.tried.push(self.hop.addr);
        let (addr, workload) = picking.pick(conn, candidates).ok_or(reason)?;
        (self.hop, self.workload) = (picking.hop(conn, addr), workload);
        self.find_way(conn);
        Ok(())
    }

    /// A policy says how often a request is tried: it is asked before each, and where all endpoints failed they are tried anew.
    pub(crate) fn leave_to_policy(&mut self) {
        self.picking.iter_mut().for_each(|picking| picking.is_planned = true);
    }

    /// A place for a connection to the endpoint, where there is a choice. An error is why there is none, and whether another may have one.
    fn connection(&self, conn: &Conn) -> Result<Option<Occupied>, (Reason, bool)> {
        let Some(picking) = &self.picking else { return Ok(None) };
        let place = picking.view.connection(&conn.worker, self.hop.addr)?;
        Ok(place.map(|place| (picking.view.clone(), place)))
    }

    /// What a connection says about the endpoint.
    fn tell(&self, conn: &Conn, outcome: outlier::Outcome) {
        if let Some(picking) = &self.picking {
            picking.view.connected(&conn.worker, self.hop.addr, outcome);
        }
    }

    /// The endpoint answered.
    pub(crate) fn connected(&mut self, conn: &Conn) {
        if let Some(picking) = &mut self.picking {
            picking.connected(conn, self.hop.addr);
        }
    }
}

/// What carries a connection's bytes; `conn.attempts` counts the dials.
pub(crate) async fn connect(conn: &Rc<Conn>, route: &Rc<Route>, downstream: &TcpStream) -> Result<Connected, Reason> {
    let mut choice = Choice::new(conn, route, HttpVersion::Http1, None, &[])?;
    loop {
        conn.set_endpoint(choice.hop().addr, choice.workload());
        let mut endpoint = choice.endpoint(conn);
        match choice.connection(conn) {
            Ok(place) => endpoint.connection = place,
            Err((reason, true)) => {
                choice.pass_by(conn, reason)?;
                continue;
            }
            Err((reason, false)) => return Err(reason),
        }
        let connected = match endpoint.way.tls() {
            None => {
                let stream = dial::once(conn, downstream, choice.hop()).await;
                stream.map(|stream| Connected::Socket(Upstream { stream, endpoint, reused: false }))
            }
            Some(_) => Box::pin(tunnel::open(conn, downstream, choice.hop(), endpoint)).await.map(Connected::Stream),
        };
        match connected {
            Ok(connected) => {
                choice.connected(conn);
                return Ok(connected);
            }
            Err(failure) => {
                if !failure.is_ours() {
                    choice.tell(conn, outlier::Outcome::Local);
                }
                choice.failed(conn, failure)?;
            }
        }
    }
}

/// Endpoints of a Service in turn until one answers: the remembered one under session affinity, else the less loaded of
/// two; never one that failed for this connection or request while there is another.
struct Picking {
    affinity: Option<(Key, Duration)>,
    view: Rc<View>,
    tried: Vec<SocketAddr>,
    last: Failure,
    attempts: u32,
    /// See [`Choice::leave_to_policy`].
    is_planned: bool,
}

impl Picking {
    fn new(conn: &Conn, service: &Service, port_index: usize, view: &Rc<View>, tried: &[SocketAddr]) -> Self {
        let affinity = service.session_affinity.map(|timeout| {
            let port = service.ports.get(port_index).map_or(0, |p| p.port);
            (Key { service: service.key(), port, client: conn.client.get().ip() }, timeout)
        });
        let last = Failure::last(Reason::NoReadyEndpoint);
        Self { affinity, view: view.clone(), tried: tried.to_vec(), last, attempts: 0, is_planned: false }
    }

    /// The endpoint to try now, or why there is none left.
    fn next(&mut self, conn: &Conn, candidates: &Candidates) -> Result<(Hop, Option<Arc<Workload>>), Reason> {
        let config = &conn.worker.config;
        if !self.is_planned && self.attempts >= config.connect_attempts_max {
            return Err(self.last.reason);
        }
        let (addr, workload) = match self.pick(conn, candidates) {
            Some(picked) => picked,
            // Every endpoint failed once. A lost SYN is worth another, and so is what a former attempt came to; a refusal is final, and the
            // application learns at once.
            None if self.is_planned || self.last.retryable || self.attempts == 0 => {
                self.tried.clear();
                self.pick(conn, candidates).ok_or(self.last.reason)?
            }
            None => return Err(self.last.reason),
        };
        self.attempts += 1;
        Ok((self.hop(conn, addr), workload))
    }

    fn pick(&self, conn: &Conn, candidates: &Candidates) -> Option<(SocketAddr, Option<Arc<Workload>>)> {
        let worker = &conn.worker;
        if let Some((key, timeout)) = &self.affinity {
            let remembered = worker.affinity.get(key, Instant::now());
            if let Affinity::Keep(index) = balance::affinity(candidates, remembered, *timeout, &self.tried)
                && let Some(endpoint) = candidates.endpoints.get(index)
                && self.view.may_serve(endpoint.addr, worker.upstreams.now())
            {
                return Some((endpoint.addr, endpoint.workload.clone()));
            }
        }
        self.view.pick(worker, candidates, &self.tried)
    }

    /// The way to an endpoint that was chosen before.
    fn hop(&self, conn: &Conn, addr: SocketAddr) -> Hop {
        let publish = conn.pod.has_address(addr.ip());
        let timeout = self.view.traffic.connect_timeout.unwrap_or(conn.worker.config.connect_timeout);
        Hop { addr, publish, named_by: NamedBy::Object, timeout, way: Way::Direct }
    }

    /// The endpoint did not answer; an error if trying another makes no sense.
    fn failed(&mut self, addr: SocketAddr, failure: Failure) -> Result<(), Reason> {
        if failure.is_ours() {
            return Err(failure.reason);
        }
        self.tried.push(addr);
        self.last = failure;
        Ok(())
    }

    /// The endpoint answered: under affinity it is the client's from now on.
    fn connected(&mut self, conn: &Conn, addr: SocketAddr) {
        if let Some((key, timeout)) = self.affinity.take() {
            conn.worker.affinity.remember(key, addr, timeout, Instant::now());
        }
    }
}

/// What a backend of a rule means to a client of `family`: the port of a Service, and its endpoints to choose from.
pub(crate) fn backend(
    snapshot: &Snapshot,
    to: &BackendRef,
    family: Family,
) -> Result<(Arc<Service>, usize, Candidates), Reason> {
    let BackendRef::Service { service, port } = to else { return Err(Reason::BackendInvalid) };
    snapshot.backend(service, *port, family).map_err(|failure| match failure {
        BackendFailure::NotFound => Reason::BackendInvalid,
        BackendFailure::Refused(refusal) => refusal.into(),
    })
}

/// The rules for requests and connections of this caller to a Service port.
fn table(conn: &Conn, service: &Service, port_index: usize, snapshot: &Snapshot) -> Option<Arc<Table>> {
    let port = service.ports.get(port_index)?.port;
    let namespace = conn.source.as_ref().map(|source| &*source.namespace);
    snapshot.route_table(&service.key(), port, namespace).cloned()
}
