//! What this agent knows of the Service ports its pods call: the retry budget, the breakers and the ejections, shared by its workers, and each
//! worker's view of one port, made once for each change of it.
//!
//! The hot path takes no lock: a worker finds its view in a map of its own; only a view that is new asks for what is shared.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use heddle_http::breaker::{Breaker, Circuit, CircuitPermit, Overflow, Resource, Scope, Usage};
use heddle_http::outlier::{self, Admission, Detector, Host, Probe, Standing, Transition};
use heddle_http::retry::{Budget, BudgetUse};
use heddle_model::balance::{self, PeakEwma, RoundRobin, Weight};
use heddle_model::traffic::{Algorithm, OutlierSettings, ServiceTraffic};
use heddle_model::{Candidates, Endpoint, Service, ServiceKey, Snapshot, Workload};
use heddle_telemetry::{Event, Reason};

use crate::hash::FastMap;
use crate::worker::Worker;

/// A port of a Service.
pub(crate) type PortKey = (ServiceKey, u16);

/// What all workers share.
pub(crate) struct Upstreams {
    started: Instant,
    ports: Mutex<HashMap<PortKey, Weak<Port>>>,
}

/// One Service port, in this agent.
pub(crate) struct Port {
    pub(crate) budget: Arc<Budget>,
    pub(crate) breaker: Arc<Breaker>,
    pub(crate) detector: Detector,
    endpoints: Mutex<Known>,
}

/// The endpoints of a port, as of the newest snapshot that a worker asked with.
#[derive(Default)]
struct Known {
    generation: u64,
    all: HashMap<SocketAddr, Arc<Upstream>>,
}

/// One endpoint of a Service port, in this agent.
pub(crate) struct Upstream {
    pub(crate) breaker: Arc<Breaker>,
    pub(crate) host: Arc<Host>,
    latency: Latency,
    /// When it was first seen; none where it was there before this agent was.
    since: Option<Duration>,
}

/// How slow an endpoint has been lately, as all workers saw it: a [`PeakEwma`], packed.
#[derive(Default)]
struct Latency(AtomicU64);

impl Latency {
    /// `None` before its first answer.
    fn get(&self, now: Duration) -> Option<PeakEwma> {
        PeakEwma::unpack(self.0.load(Relaxed), now)
    }

    fn observe(&self, latency: Duration, now: Duration) {
        let observed = |word| {
            let mut ewma = PeakEwma::unpack(word, now).unwrap_or(PeakEwma::new(latency, now));
            ewma.observe(latency, now, PeakEwma::DECAY);
            Some(ewma.pack())
        };
        // Never refused: the closure has always something to say.
        let _ = self.0.fetch_update(Relaxed, Relaxed, observed);
    }
}

impl Default for Upstreams {
    fn default() -> Self {
        Self { started: Instant::now(), ports: Mutex::default() }
    }
}

impl Upstreams {
    /// The time that everything here counts in.
    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn port(&self, key: &PortKey) -> Arc<Port> {
        let mut ports = lock(&self.ports);
        if let Some(port) = ports.get(key).and_then(Weak::upgrade) {
            return port;
        }
        ports.retain(|_, port| port.strong_count() > 0);
        let port = Arc::new(Port {
            budget: Arc::default(),
            breaker: Arc::default(),
            detector: Detector::default(),
            endpoints: Mutex::default(),
        });
        ports.insert(key.clone(), Arc::downgrade(&port));
        port
    }

    /// How a port that pods of this node call is used now; `None` where none does.
    pub(crate) fn usage(&self, service: &ServiceKey, port: u16) -> Option<PortUsage> {
        let port = lock(&self.ports).get(&(service.clone(), port)).and_then(Weak::upgrade)?;
        let now = self.now();
        let endpoints = lock(&port.endpoints);
        let mut endpoints: Vec<_> = endpoints.all.iter().map(|(addr, upstream)| upstream.usage(*addr, now)).collect();
        endpoints.sort_by_key(|endpoint| endpoint.addr);
        let budget = port.budget.usage();
        Some(PortUsage { budget, circuit: circuit_usage(&port.breaker), endpoints })
    }
}

/// The use of each resource, in the order of [`Resource::ALL`].
pub type CircuitUsage = [Usage; Resource::ALL.len()];

fn circuit_usage(breaker: &Breaker) -> CircuitUsage {
    std::array::from_fn(|index| breaker.usage(Resource::ALL[index]))
}

/// How a Service port is used by this agent.
#[derive(Clone, Debug)]
pub struct PortUsage {
    /// Its requests and retries.
    pub budget: BudgetUse,
    /// Places taken in its circuit breaker.
    pub circuit: CircuitUsage,
    /// Its endpoints, by address.
    pub endpoints: Vec<EndpointUsage>,
}

/// How an endpoint of a Service port is used by this agent.
#[derive(Clone, Debug)]
pub struct EndpointUsage {
    /// Address and port.
    pub addr: SocketAddr,
    /// Whether it is ejected, and for how long from now.
    pub ejected: Ejected,
    /// How long it has been there; none: since before this agent was.
    pub age: Option<Duration>,
    /// How long it takes to answer lately, by the average that faded since its last answer; only where endpoints are chosen by that.
    pub latency: Option<Duration>,
    /// Places taken in its circuit breaker.
    pub circuit: CircuitUsage,
}

/// Whether an endpoint is ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ejected {
    /// No.
    No,
    /// For so long from now.
    For(Duration),
    /// It was; the next request decides.
    Probed,
}

impl Upstream {
    fn usage(&self, addr: SocketAddr, now: Duration) -> EndpointUsage {
        let ejected = match self.host.standing(now) {
            Standing::Serving => Ejected::No,
            Standing::Ejected { until } => Ejected::For(until.saturating_sub(now)),
            Standing::HalfOpen { .. } => Ejected::Probed,
        };
        let latency = self.latency.get(now).map(|ewma| ewma.latency(now, PeakEwma::DECAY));
        EndpointUsage { addr, ejected, age: self.age(now), latency, circuit: circuit_usage(&self.breaker) }
    }

    fn age(&self, now: Duration) -> Option<Duration> {
        self.since.map(|since| now.saturating_sub(since))
    }
}

impl Port {
    /// What is known of each of these endpoints, in their order. Those that are no more are forgotten.
    fn endpoints(&self, endpoints: &[Endpoint], generation: u64, now: Duration) -> Box<[Arc<Upstream>]> {
        let mut known = lock(&self.endpoints);
        let since = (!known.all.is_empty()).then_some(now);
        let new = || {
            Arc::new(Upstream {
                breaker: Arc::default(),
                host: self.detector.host(),
                latency: Latency::default(),
                since,
            })
        };
        let states: Box<[_]> = endpoints.iter().map(|e| known.all.entry(e.addr).or_insert_with(new).clone()).collect();
        // A worker that is behind forgets nothing that another has seen since.
        if generation >= known.generation {
            known.generation = generation;
            if known.all.len() > endpoints.len() {
                known.all.retain(|addr, upstream| {
                    let stays = endpoints.binary_search_by_key(addr, |e| e.addr).is_ok();
                    if !stays {
                        upstream.host.retire();
                    }
                    stays
                });
            }
        }
        states
    }
}

/// One worker's view of a Service port, as of the Service and the policies that it was made from.
pub(crate) struct View {
    pub(crate) service: Arc<Service>,
    pub(crate) port_index: usize,
    pub(crate) traffic: Arc<ServiceTraffic>,
    pub(crate) port: Arc<Port>,
    /// In the order of the port's endpoints.
    upstreams: Box<[Arc<Upstream>]>,
    /// Until when an endpoint may be new enough to have less than its share.
    warm_at: Duration,
    robin: Rc<Cell<RoundRobin>>,
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
        let upstreams = state.endpoints(endpoints, snapshot.generation, now);
        let youngest = upstreams.iter().filter_map(|upstream| upstream.since).max();
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
            upstreams,
            warm_at,
            robin,
        });
        views.insert(key, view.clone());
        view
    }

    /// A second has passed: compares success rates, and lets go of Services that are no more.
    pub(crate) fn tick(&self, worker: &Worker, snapshot: &Snapshot) {
        self.0.borrow_mut().retain(|(service, _), view| {
            let is_there = snapshot.service(&service.0, &service.1).is_some();
            if is_there {
                view.sweep(worker);
            }
            is_there
        });
    }
}

impl View {
    /// An endpoint for one attempt or connection: not one of `tried`, nor one that is ejected while others are there.
    pub(crate) fn pick(
        &self,
        worker: &Worker,
        candidates: &Candidates,
        tried: &[SocketAddr],
    ) -> Option<(SocketAddr, Option<Arc<Workload>>)> {
        let now = worker.upstreams.now();
        let serving = self.serving(candidates, now);
        let among = |candidates: &Candidates, tried: &[SocketAddr]| {
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
        // One that is ejected is better than none.
        serving.and_then(|serving| among(&serving, tried)).or_else(|| among(candidates, tried))
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

    /// The candidates without those that are ejected; `None` where nobody is, or too many are.
    fn serving(&self, candidates: &Candidates, now: Duration) -> Option<Candidates> {
        let settings = self.traffic.outlier.as_ref()?;
        if self.port.detector.ejected() == 0 || self.port.detector.is_panic(&self.scene(settings, now)) {
            return None;
        }
        candidates.filtered(|e| self.may_serve(e.addr, now))
    }

    /// Whether an endpoint takes requests, or the one that probes it.
    pub(crate) fn may_serve(&self, addr: SocketAddr, now: Duration) -> bool {
        let standing = self.upstream(addr).map(|upstream| upstream.host.standing(now));
        matches!(standing, None | Some(Standing::Serving | Standing::HalfOpen { is_probed: false }))
    }

    /// Takes the places of one attempt at an endpoint; a connection's too where it has one to itself (`is_alone`).
    pub(crate) fn begin(
        self: &Rc<Self>,
        worker: &Worker,
        addr: SocketAddr,
        is_alone: bool,
    ) -> Result<Attempt, Overflow> {
        let mut attempt = Attempt {
            view: self.clone(),
            addr,
            request: None,
            connection: None,
            pending: None,
            probe: None,
            began: Instant::now(),
            is_told: false,
        };
        let Some(upstream) = self.upstream(addr) else { return Ok(attempt) };
        let circuit = Circuit { service: &self.port.breaker, endpoint: &upstream.breaker };
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
        let scene = self.scene(settings, worker.upstreams.now());
        if let Some(transition) = self.port.detector.on_result(&upstream.host, outcome, probe, &scene) {
            self.tell(worker, addr, transition);
        }
    }

    fn sweep(&self, worker: &Worker) {
        let Some(settings) = &self.traffic.outlier else { return };
        let hosts: Vec<_> = self.upstreams.iter().map(|upstream| upstream.host.clone()).collect();
        for (index, transition) in self.port.detector.sweep(&hosts, &self.scene(settings, worker.upstreams.now())) {
            if let Some(endpoint) = self.endpoints().get(index) {
                self.tell(worker, endpoint.addr, transition);
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

    fn scene<'a>(&self, settings: &'a OutlierSettings, now: Duration) -> outlier::Scene<'a> {
        let hosts = u32::try_from(self.upstreams.len()).unwrap_or(u32::MAX);
        outlier::Scene { settings, hosts, now }
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
    probe: Option<Probe>,
    began: Instant,
    is_told: bool,
}

impl Attempt {
    /// Where it goes.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// It has a connection.
    pub(crate) fn reached(&mut self) {
        self.pending = None;
    }

    /// The endpoint said something: so long it took.
    pub(crate) fn answered(&self, worker: &Worker) {
        if self.view.traffic.balance.algorithm == Algorithm::PeakEwma
            && let Some(upstream) = self.view.upstream(self.addr)
        {
            upstream.latency.observe(self.began.elapsed(), worker.upstreams.now());
        }
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
