//! What a connection's destination means, as of one snapshot, and the way to an upstream: pick an endpoint, take an idle
//! connection to it or dial.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use heddle_http::detect::{Declared, HttpVersion};
use heddle_model::balance::{self, Affinity};
use heddle_model::{Candidates, Endpoint, OriginalDst, Resolution, Service, Snapshot, Workload};
use heddle_telemetry::{Direction, Reason};
use tokio::net::TcpStream;

use crate::affinity::Key;
use crate::dial::{self, Failure, Hop, NamedBy};
use crate::protocol;
use crate::registry::{Conn, Target};
use crate::worker::{Load, Worker};

/// Where a connection, or each of its requests, should go.
pub(crate) struct Route {
    /// Of the snapshot it follows from.
    pub(crate) generation: u64,
    /// What the destination is said to speak.
    pub(crate) declared: Declared,
    pub(crate) kind: Kind,
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
    Service { service: Arc<Service>, port_index: usize, candidates: Candidates },
}

/// One connection to an endpoint.
pub(crate) struct Upstream {
    pub(crate) stream: TcpStream,
    pub(crate) endpoint: EndpointRef,
    /// It was idle in the pool: the server may have closed it just now.
    pub(crate) reused: bool,
}

/// The endpoint a connection goes to, and this use's weight on it.
pub(crate) struct EndpointRef {
    pub(crate) addr: SocketAddr,
    pub(crate) workload: Option<Arc<Workload>>,
    /// Its server was told who the client is: it serves no other client.
    pub(crate) private: bool,
    /// It is an endpoint of a Service, chosen among others.
    is_chosen: bool,
    /// Its weight in the balance while a connection or request uses it; none where there is no choice, or at rest.
    load: Option<Load>,
}

impl EndpointRef {
    /// The one address there is: nothing is balanced.
    pub(crate) fn only(hop: &Hop, workload: Option<&Arc<Workload>>) -> Self {
        Self { addr: hop.addr, workload: workload.cloned(), private: hop.publish, is_chosen: false, load: None }
    }

    /// Chosen among others: it weighs from now on.
    pub(crate) fn chosen(conn: &Conn, hop: &Hop, workload: Option<&Arc<Workload>>) -> Self {
        let mut chosen = Self::only(hop, workload);
        chosen.is_chosen = true;
        chosen.weigh(&conn.worker);
        chosen
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
        Self { generation: snapshot.generation, declared: protocol::declared(&kind, snapshot), kind }
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

    /// An upstream connection: `kept` if it leads to the endpoint that is chosen. `conn.attempts` counts the dials.
    pub(crate) async fn connect(
        &self,
        conn: &Rc<Conn>,
        downstream: &TcpStream,
        from: From,
        kept: &mut Option<Upstream>,
    ) -> Result<Upstream, Reason> {
        match &self.kind {
            Kind::Refused { reason, .. } => Err(*reason),
            Kind::Address { hop, workload, .. } => {
                conn.upstream.set(Some(hop.addr));
                let endpoint = EndpointRef::only(hop, workload.as_ref());
                if let Some(stream) = idle(conn, from, &endpoint, kept) {
                    return Ok(Upstream { stream, endpoint, reused: true });
                }
                let stream = dial::same_address(conn, downstream, *hop).await?;
                Ok(Upstream { stream, endpoint, reused: false })
            }
            Kind::Service { service, port_index, candidates } => {
                let mut picking = Picking::new(conn, service, *port_index, candidates);
                loop {
                    let (hop, workload) = picking.next(conn)?;
                    conn.set_endpoint(hop.addr, workload.as_ref());
                    let endpoint = EndpointRef::chosen(conn, &hop, workload.as_ref());
                    if let Some(stream) = idle(conn, from, &endpoint, kept) {
                        picking.connected(conn, hop.addr);
                        return Ok(Upstream { stream, endpoint, reused: true });
                    }
                    match dial::once(conn, downstream, hop).await {
                        Ok(stream) => {
                            picking.connected(conn, hop.addr);
                            return Ok(Upstream { stream, endpoint, reused: false });
                        }
                        Err(failure) => picking.failed(hop.addr, failure)?,
                    }
                }
            }
        }
    }
}

impl Kind {
    /// For a connection that a pod made.
    fn outbound(conn: &Conn, original: OriginalDst, snapshot: &Snapshot) -> Self {
        let config = &conn.worker.config;
        let address = |addr: SocketAddr, timeout, workload, external| {
            let publish = conn.pod.has_address(addr.ip());
            let hop = Hop { addr, publish, named_by: NamedBy::Application, timeout };
            Self::Address { hop, workload, service: None, external }
        };
        match snapshot.resolve(conn.source.as_deref(), original) {
            Resolution::Unserved { service, port_index, refusal } => {
                Self::Refused { reason: refusal.into(), service: Some((service, port_index)) }
            }
            Resolution::Refused(refusal) => Self::Refused { reason: refusal.into(), service: None },
            Resolution::Service { service, port_index, candidates } => {
                Self::Service { service, port_index, candidates }
            }
            Resolution::Workload { workload, addr } => address(addr, config.connect_timeout, Some(workload), false),
            Resolution::External { addr } => address(addr, config.connect_timeout_external, None, true),
        }
    }

    /// For a connection to a pod: the application, at the original address.
    fn inbound(conn: &Conn, original: OriginalDst, snapshot: &Snapshot) -> Self {
        let (addr, timeout) = (original.get(), conn.worker.config.connect_timeout);
        let service = snapshot.service_of_endpoint(addr).map(|(service, port)| (service.clone(), port));
        let hop = Hop { addr, publish: true, named_by: NamedBy::Application, timeout };
        Self::Address { hop, workload: conn.pod.workload(snapshot), service, external: false }
    }
}

/// An idle connection to an endpoint: the client's own one, or one of the pool.
fn idle(conn: &Conn, from: From, endpoint: &EndpointRef, kept: &mut Option<Upstream>) -> Option<TcpStream> {
    if from == From::Dial {
        return None;
    }
    if let Some(own) = kept.take_if(|k| k.endpoint.addr == endpoint.addr && k.endpoint.private == endpoint.private) {
        return Some(own.stream);
    }
    if endpoint.private { None } else { conn.worker.pool.take(conn.pod.serial, endpoint.addr) }
}

/// Endpoints of a Service in turn until one answers: the remembered one under session affinity, else the less loaded of
/// two; never one that failed for this connection or request while there is another.
pub(crate) struct Picking<'a> {
    candidates: &'a Candidates,
    affinity: Option<(Key, Duration)>,
    tried: Vec<SocketAddr>,
    last: Failure,
    attempts: u32,
}

impl<'a> Picking<'a> {
    pub(crate) fn new(conn: &Conn, service: &Service, port_index: usize, candidates: &'a Candidates) -> Self {
        let affinity = service.session_affinity.map(|timeout| {
            let port = service.ports.get(port_index).map_or(0, |p| p.port);
            (Key { service: service.key(), port, client: conn.client.get().ip() }, timeout)
        });
        let last = Failure { reason: Reason::NoReadyEndpoint, retryable: false };
        Self { candidates, affinity, tried: Vec::new(), last, attempts: 0 }
    }

    /// The endpoint to try now, or why there is none left.
    pub(crate) fn next(&mut self, conn: &Conn) -> Result<(Hop, Option<Arc<Workload>>), Reason> {
        let config = &conn.worker.config;
        if self.attempts >= config.connect_attempts_max {
            return Err(self.last.reason);
        }
        let picked = match pick(conn, self.affinity.as_ref(), self.candidates, &self.tried) {
            Some(endpoint) => endpoint,
            // Every endpoint failed once. A lost SYN is worth another; a refusal is final, and the application learns at once.
            None if self.last.retryable => {
                self.tried.clear();
                pick(conn, self.affinity.as_ref(), self.candidates, &[]).ok_or(self.last.reason)?
            }
            None => return Err(self.last.reason),
        };
        self.attempts += 1;
        Ok((self.hop(conn, picked.addr), picked.workload.clone()))
    }

    /// The way to an endpoint that was chosen before.
    pub(crate) fn hop(&self, conn: &Conn, addr: SocketAddr) -> Hop {
        let publish = conn.pod.has_address(addr.ip());
        Hop { addr, publish, named_by: NamedBy::Object, timeout: conn.worker.config.connect_timeout }
    }

    /// The endpoint did not answer; an error if trying another makes no sense.
    pub(crate) fn failed(&mut self, addr: SocketAddr, failure: Failure) -> Result<(), Reason> {
        if failure.is_ours() {
            return Err(failure.reason);
        }
        self.tried.push(addr);
        self.last = failure;
        Ok(())
    }

    /// The endpoint answered: under affinity it is the client's from now on.
    pub(crate) fn connected(&mut self, conn: &Conn, addr: SocketAddr) {
        if let Some((key, timeout)) = self.affinity.take() {
            conn.worker.affinity.remember(key, addr, timeout, Instant::now());
        }
    }
}

fn pick<'a>(
    conn: &Conn,
    affinity: Option<&(Key, Duration)>,
    candidates: &'a Candidates,
    tried: &[SocketAddr],
) -> Option<&'a Endpoint> {
    let worker = &conn.worker;
    if let Some((key, timeout)) = affinity {
        let remembered = worker.affinity.get(key, Instant::now());
        if let Affinity::Keep(index) = balance::affinity(candidates, remembered, *timeout, tried) {
            return candidates.endpoints.get(index);
        }
    }
    let load = |e: &Endpoint| worker.load_of(e.addr);
    balance::least_request(candidates, load, fastrand::u64(..), tried).map(|p| p.endpoint)
}
