//! One worker's view of a Service port: whom to choose among its endpoints, the places an attempt takes, and what came of it.
//!
//! Made once for each change of the Service or its policies; what changes more often is in what workers share.

use std::cell::{Cell, OnceCell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use heddle_http::breaker::{Circuit, CircuitPermit, Overflow, Permit, Resource, Scope};
use heddle_http::outlier::{self, Admission, Probe, Standing, Transition};
use heddle_model::balance::{self, PeakEwma, RoundRobin, Weight};
use heddle_model::traffic::{Algorithm, OutlierSettings, ServiceTraffic};
use heddle_model::{Candidates, Endpoint, Family, Service, Snapshot, Workload};
use heddle_telemetry::{Event, Reason};

use super::{Clock, Port, PortKey, Upstream};
use crate::hash::FastMap;
use crate::worker::Worker;

/// One worker's view of a Service port, as of the Service and the policies that it was made from.
pub(crate) struct View {
    pub(crate) service: Arc<Service>,
    pub(crate) port_index: usize,
    pub(crate) traffic: Arc<ServiceTraffic>,
    pub(crate) port: Arc<Port>,
    clock: Clock,
    /// In the order of the port's endpoints.
    upstreams: Box<[Arc<Upstream>]>,
    /// Until when an endpoint may be new enough to have less than its share.
    warm_at: Duration,
    /// Endpoints that a client may call, of each family: the ejections are a part of these.
    hosts: [u32; 2],
    /// Who is left of the candidates while some are ejected.
    left: RefCell<Option<Left>>,
    /// Copies of requests that are on their way to it.
    pub(crate) shadows: Cell<usize>,
    robin: Rc<Cell<RoundRobin>>,
}

/// Candidates that are not ejected.
struct Left {
    /// Of these candidates, while ejections are as they were.
    of: Candidates,
    version: u32,
    until: Duration,
    /// None where ejections are to be ignored: nobody is left, or too few.
    all: Option<Candidates>,
}

/// A worker's views.
#[derive(Default)]
pub(crate) struct Views(RefCell<FastMap<PortKey, Rc<View>>>);

impl Views {
    /// The view of a Service port.
    pub(crate) fn get(
        &self,
        worker: &Worker,
        service: &Arc<Service>,
        port_index: usize,
        snapshot: &Snapshot,
    ) -> Rc<View> {
        let port = service.ports.get(port_index).map_or(0, |port| port.port);
        let key = (service.key(), port);
        let traffic = snapshot.traffic(&key.0);
        let mut views = self.0.borrow_mut();
        let former = views.get(&key);
        if let Some(view) = former
            && Arc::ptr_eq(&view.service, service)
            && Arc::ptr_eq(&view.traffic, traffic)
        {
            return view.clone();
        }
        let shared = &worker.upstreams;
        let (state, now) = (shared.port(&key), shared.now());
        let endpoints = service.ports.get(port_index).map_or(&[][..], |port| &port.endpoints);
        let upstreams = state.endpoints(service, endpoints, snapshot.generation, now);
        let youngest = upstreams.iter().filter_map(|upstream| upstream.since()).max();
        let hosts = [Family::V4, Family::V6].map(|family| {
            let all = balance::candidates(service, port_index, family, &snapshot.node);
            all.map_or(0, |all| u32::try_from(all.len()).unwrap_or(u32::MAX))
        });
        let warm_at = match (traffic.balance.slow_start, youngest) {
            (Some(slow), Some(since)) => since.saturating_add(slow.window),
            _ => Duration::ZERO,
        };
        let robin = match former {
            Some(former) => former.robin.clone(),
            None => Rc::new(Cell::new(RoundRobin::starting_at(fastrand::u64(..)))),
        };
        let view = Rc::new(View {
            service: service.clone(),
            port_index,
            traffic: traffic.clone(),
            port: state,
            clock: shared.clock,
            upstreams,
            warm_at,
            hosts,
            left: RefCell::default(),
            shadows: Cell::default(),
            robin,
        });
        views.insert(key, view.clone());
        view
    }

    /// A second has passed: compares success rates, and lets go of ports that are no more.
    pub(crate) fn tick(&self, worker: &Worker, snapshot: &Snapshot) {
        self.0.borrow_mut().retain(|((namespace, name), number), view| {
            let service = snapshot.service(namespace, name);
            let is_there = service.is_some_and(|service| service.ports.iter().any(|port| port.port == *number));
            if is_there {
                view.sweep(worker);
            }
            is_there
        });
        // What they share is one worker's to look after.
        if worker.index == 0 {
            worker.upstreams.sweep();
        }
    }
}

impl View {
    /// An endpoint for one attempt or connection: not one of `tried` (`None`: all were), nor one that is ejected while others are there.
    pub(crate) fn pick(
        &self,
        worker: &Worker,
        candidates: &Candidates,
        tried: &[SocketAddr],
    ) -> Option<(SocketAddr, Option<Arc<Workload>>)> {
        let now = worker.upstreams.now();
        let among = |candidates: &Candidates| {
            let weight = |e: &Endpoint| {
                let upstream = self.upstream(e.addr);
                upstream.map_or(Weight::FULL, |upstream| self.traffic.balance.weight(upstream.age(now)))
            };
            let weights: balance::Weights<'_> = if now < self.warm_at { Some(&weight) } else { None };
            let (load, random) = (|e: &Endpoint| worker.load_of(e.addr), fastrand::u64(..));
            let pick = match self.traffic.balance.algorithm {
                Algorithm::LeastRequest => balance::least_request_weighted(candidates, load, weights, random, tried),
                Algorithm::PeakEwma => {
                    let untold = OnceCell::new();
                    let cost = |e: &Endpoint| {
                        let told = self.upstream(e.addr).and_then(|upstream| upstream.latency.get(now));
                        let ewma = told.unwrap_or_else(|| *untold.get_or_init(|| self.untold_latency(now)));
                        ewma.cost(load(e), now, PeakEwma::DECAY)
                    };
                    balance::peak_ewma(candidates, cost, weights, random, tried)
                }
                Algorithm::RoundRobin => {
                    let mut robin = self.robin.get();
                    let pick = robin.next(candidates, weights, tried);
                    self.robin.set(robin);
                    pick
                }
                Algorithm::Random => balance::random(candidates, weights, random, tried),
            };
            pick.map(|pick| (pick.endpoint.addr, pick.endpoint.workload.clone()))
        };
        // One that is ejected is better than none, but not than one that failed just once.
        self.serving(candidates, now).map_or_else(|| among(candidates), |serving| among(&serving))
    }

    /// What is assumed of an endpoint that has not answered yet: the mean of the others. A fixed value would keep it from ever being asked beside
    /// faster ones.
    fn untold_latency(&self, now: Duration) -> PeakEwma {
        let told = self.upstreams.iter().filter_map(|upstream| upstream.latency.get(now));
        let add = |(sum, count): (Duration, u32), ewma: PeakEwma| {
            (sum.saturating_add(ewma.latency(now, PeakEwma::DECAY)), count.saturating_add(1))
        };
        let (sum, count) = told.fold((Duration::ZERO, 0), add);
        PeakEwma::new(sum.checked_div(count).unwrap_or(PeakEwma::INITIAL), now)
    }

    /// The candidates without those that are ejected; `None` where nobody is, or ejections are to be ignored.
    fn serving(&self, candidates: &Candidates, now: Duration) -> Option<Candidates> {
        let settings = self.traffic.outlier.as_ref()?;
        let detector = self.port.detector(family(candidates.iter().next()?.addr));
        if detector.ejected() == 0 {
            return None;
        }
        let version = detector.version();
        if let Some(left) = &*self.left.borrow()
            && (left.version, left.of.is_same(candidates)) == (version, true)
            && now < left.until
        {
            return left.all.clone();
        }
        let (mut until, mut left) = (Duration::MAX, 0);
        let serves = |e: &Endpoint| match self.upstream(e.addr).map(|upstream| upstream.host.standing(now)) {
            None | Some(Standing::Serving) => {
                left += 1;
                true
            }
            Some(Standing::Ejected { until: end }) => {
                until = until.min(end);
                false
            }
            // Whether one is probed changes with every request; until it succeeds nobody counts on the endpoint.
            Some(Standing::HalfOpen { is_probed }) => {
                until = Duration::ZERO;
                !is_probed
            }
        };
        let all = candidates.filtered(serves);
        let all = all.filter(|_| !outlier::is_panic(settings, left, candidates.len()));
        *self.left.borrow_mut() = Some(Left { of: candidates.clone(), version, until, all: all.clone() });
        all
    }

    /// Whether an endpoint takes requests, or the one that probes it.
    pub(crate) fn may_serve(&self, addr: SocketAddr, now: Duration) -> bool {
        let standing = self.upstream(addr).map(|upstream| upstream.host.standing(now));
        matches!(standing, None | Some(Standing::Serving | Standing::HalfOpen { is_probed: false }))
    }

    /// Takes the places of one attempt at an endpoint; a connection's too where it has one to itself (`is_alone`), and the endpoint's place of a
    /// retry (the Service's was taken when it was decided).
    pub(crate) fn begin(
        self: &Rc<Self>,
        worker: &Worker,
        addr: SocketAddr,
        is_alone: bool,
        is_retry: bool,
    ) -> Result<Attempt, Overflow> {
        let mut attempt = Attempt {
            view: self.clone(),
            addr,
            request: None,
            connection: None,
            pending: None,
            _retry: None,
            probe: None,
            began: Instant::now(),
            turn: Turn::Nobody,
            is_told: false,
        };
        let Some(upstream) = self.upstream(addr) else { return Ok(attempt) };
        let circuit = Circuit { service: &self.port.breaker, endpoint: &upstream.breaker };
        if is_retry {
            let full = Overflow { scope: Scope::Endpoint, resource: Resource::Retries };
            attempt._retry =
                Some(upstream.breaker.take(Resource::Retries, &self.traffic.circuit.endpoint).ok_or(full)?);
        }
        attempt.request = Some(circuit.take(Resource::Requests, &self.traffic.circuit)?);
        if is_alone {
            attempt.connection = Some(circuit.take(Resource::Connections, &self.traffic.circuit)?);
        }
        attempt.pending = Some(circuit.take(Resource::Pending, &self.traffic.circuit)?);
        if self.traffic.outlier.is_some()
            && let Admission::Probe(probe) = upstream.host.admit(worker.upstreams.now())
        {
            attempt.probe = Some(probe);
        }
        attempt.turn = Turn::Endpoint(attempt.began);
        Ok(attempt)
    }

    /// Takes a connection's place at an endpoint. An error is why there is none, and whether another endpoint may have one.
    pub(crate) fn connection(
        &self,
        worker: &Worker,
        addr: SocketAddr,
    ) -> Result<Option<CircuitPermit>, (Reason, bool)> {
        let Some(upstream) = self.upstream(addr) else { return Ok(None) };
        let circuit = Circuit { service: &self.port.breaker, endpoint: &upstream.breaker };
        circuit
            .take(Resource::Connections, &self.traffic.circuit)
            .map(Some)
            .map_err(|full| self.overflowed(worker, full))
    }

    /// A limit was reached: the reason, and whether another endpoint may have a place.
    pub(crate) fn overflowed(&self, worker: &Worker, full: Overflow) -> (Reason, bool) {
        let (namespace, name) = (&self.service.namespace, &self.service.name);
        worker.telemetry.upstream.count(Event::Overflow, namespace, name, full.resource.as_str());
        (full.reason(), full.scope == Scope::Endpoint)
    }

    /// What a connection of bytes came to.
    pub(crate) fn connected(&self, worker: &Worker, addr: SocketAddr, outcome: outlier::Outcome) {
        if self.traffic.outlier.is_none() {
            return;
        }
        let probe = match self.upstream(addr).map(|upstream| upstream.host.admit(worker.upstreams.now())) {
            Some(Admission::Probe(probe)) => Some(probe),
            _ => None,
        };
        self.result(worker, addr, outcome, probe);
    }

    /// What came of an attempt.
    fn result(&self, worker: &Worker, addr: SocketAddr, outcome: outlier::Outcome, probe: Option<Probe>) {
        let Some(settings) = &self.traffic.outlier else { return };
        let Some(upstream) = self.upstream(addr) else { return };
        let family = family(addr);
        let scene = self.scene(settings, family, worker.upstreams.now());
        if let Some(transition) = self.port.detector(family).on_result(&upstream.host, outcome, probe, &scene) {
            self.tell(worker, addr, transition);
        }
    }

    fn sweep(&self, worker: &Worker) {
        let Some(settings) = &self.traffic.outlier else { return };
        for of in [Family::V4, Family::V6] {
            let scene = self.scene(settings, of, worker.upstreams.now());
            let (addresses, hosts): (Vec<_>, Vec<_>) = self
                .endpoints()
                .iter()
                .zip(&self.upstreams)
                .filter(|(endpoint, _)| family(endpoint.addr) == of)
                .map(|(endpoint, upstream)| (endpoint.addr, upstream.host.clone()))
                .unzip();
            for (index, transition) in self.port.detector(of).sweep(&hosts, &scene) {
                addresses.get(index).inspect(|addr| self.tell(worker, **addr, transition));
            }
        }
    }

    fn tell(&self, worker: &Worker, addr: SocketAddr, transition: Transition) {
        let (namespace, name) = (&self.service.namespace, &self.service.name);
        let metrics = &worker.telemetry.upstream;
        match transition {
            Transition::Ejected { cause, length } => {
                metrics.count(Event::Ejection, namespace, name, cause.as_str());
                tracing::warn!(%namespace, service = %name, endpoint = %addr, %cause, seconds = length.as_secs_f32(), "endpoint is ejected");
            }
            Transition::Capped(cause) => {
                metrics.count(Event::Ejection, namespace, name, "capped");
                tracing::debug!(%namespace, service = %name, endpoint = %addr, %cause, "endpoint would be ejected, but as many are as may be");
            }
            Transition::Readmitted => {
                metrics.count(Event::Ejection, namespace, name, "readmitted");
                tracing::info!(%namespace, service = %name, endpoint = %addr, "endpoint serves again");
            }
        }
    }

    fn scene<'a>(&self, settings: &'a OutlierSettings, family: Family, now: Duration) -> outlier::Scene<'a> {
        outlier::Scene { settings, hosts: self.hosts[family as usize], now }
    }

    fn endpoints(&self) -> &[Endpoint] {
        self.service.ports.get(self.port_index).map_or(&[], |port| &port.endpoints)
    }

    fn upstream(&self, addr: SocketAddr) -> Option<&Arc<Upstream>> {
        let index = self.endpoints().binary_search_by_key(&addr, |e| e.addr).ok()?;
        self.upstreams.get(index)
    }
}

/// An attempt at an endpoint: its places, and what it proves.
pub(crate) struct Attempt {
    view: Rc<View>,
    addr: SocketAddr,
    request: Option<CircuitPermit>,
    connection: Option<CircuitPermit>,
    /// While it waits for a connection.
    pending: Option<CircuitPermit>,
    _retry: Option<Permit>,
    probe: Option<Probe>,
    began: Instant,
    turn: Turn,
    is_told: bool,
}

/// Whose turn it is in an attempt.
#[derive(Clone, Copy)]
enum Turn {
    /// The endpoint's, which was called then, or has had all of the request since.
    Endpoint(Instant),
    /// The client's: not all of its request is sent.
    Client,
    /// Nobody's: what there is to learn of the endpoint's latency was learned.
    Nobody,
}

impl Attempt {
    /// Where it goes.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// For how long it has been waiting for a connection; `None` once it has one.
    pub(crate) fn connecting(&self) -> Option<Duration> {
        self.pending.as_ref().map(|_| self.began.elapsed())
    }

    /// It has a connection.
    pub(crate) fn reached(&mut self) {
        self.pending = None;
        self.turn = Turn::Client;
    }

    /// All of the request is sent.
    pub(crate) fn sent(&mut self) {
        if matches!(self.turn, Turn::Client) && self.is_measured() {
            self.turn = Turn::Endpoint(Instant::now());
        }
    }

    /// The endpoint said something: so long it took.
    pub(crate) fn answered(&mut self) {
        self.turn = Turn::Nobody;
        if let Some(upstream) = self.view.upstream(self.addr).filter(|_| self.is_measured()) {
            upstream.latency.observe(self.began.elapsed(), self.view.clock.now());
        }
    }

    /// It ends for what has nothing to do with the endpoint.
    pub(crate) fn acquit(&mut self) {
        self.turn = Turn::Nobody;
    }

    /// Whether it matters how long it takes.
    fn is_measured(&self) -> bool {
        self.view.traffic.balance.algorithm == Algorithm::PeakEwma
    }

    /// Whether it is the one that decides about an ejected endpoint.
    pub(crate) fn is_probe(&self) -> bool {
        self.probe.is_some()
    }

    /// What it says about the endpoint; what is said first counts.
    pub(crate) fn result(&mut self, worker: &Worker, outcome: outlier::Outcome) {
        if std::mem::replace(&mut self.is_told, true) {
            return;
        }
        self.view.result(worker, self.addr, outcome, self.probe.take());
    }
}

impl Drop for Attempt {
    /// Without an answer, whoever gave up: one that hangs would look ever better if only answers counted.
    fn drop(&mut self) {
        let Turn::Endpoint(since) = self.turn else { return };
        if let Some(upstream) = self.view.upstream(self.addr).filter(|_| self.is_measured()) {
            let now = self.view.clock.now();
            upstream.latency.waited(since.elapsed(), now, || self.view.untold_latency(now));
        }
    }
}

fn family(addr: SocketAddr) -> Family {
    Family::of(addr.ip())
}
