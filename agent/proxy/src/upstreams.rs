//! What this agent knows of the Services its pods call, shared by its workers: the retry budget and the breaker of each Service, and of each of
//! its ports the endpoints, with their breakers, ejections and latencies.
//!
//! The hot path takes no lock: a worker finds its [`View`] of a port in a map of its own; only a view that is new asks for what is shared.

mod view;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use heddle_http::breaker::{Breaker, Resource, Usage};
use heddle_http::outlier::{Detector, Host, Standing, is_panic};
use heddle_http::retry::{Budget, BudgetUse};
use heddle_model::balance::PeakEwma;
use heddle_model::traffic::OutlierSettings;
use heddle_model::{Candidates, Endpoint, Family, Service, ServiceKey};

pub(crate) use view::{Attempt, View, Views};

/// A port of a Service.
pub(crate) type PortKey = (ServiceKey, u16);

/// The time that everything here counts in, the same for all workers.
#[derive(Clone, Copy)]
struct Clock(Instant);

impl Clock {
    fn now(self) -> Duration {
        self.0.elapsed()
    }
}

/// What all workers share.
pub(crate) struct Upstreams {
    clock: Clock,
    ports: Mutex<HashMap<PortKey, Weak<Port>>>,
}

/// One Service port, in this agent.
pub(crate) struct Port {
    /// Of the Service, which all of its ports share; so is the breaker.
    pub(crate) budget: Arc<Budget>,
    pub(crate) breaker: Arc<Breaker>,
    /// Of IPv4 endpoints and of IPv6 ones: a client chooses among those of one family.
    detectors: [Detector; 2],
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
    /// Since when it is ready, in milliseconds; 0: since before this agent knew of it, [`UNREADY`]: it is not.
    ready_millis: AtomicU64,
}

/// Not ready, see [`Upstream::ready_millis`].
const UNREADY: u64 = u64::MAX;

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

    /// An answer was waited for in vain for so long. `untold` is what is assumed of an endpoint before its first answer: a wait that is not
    /// longer says no more of it.
    fn waited(&self, waited: Duration, now: Duration, untold: impl Fn() -> PeakEwma) {
        let raised = |word| {
            let mut ewma = PeakEwma::unpack(word, now).unwrap_or_else(&untold);
            ewma.waited(waited, now, PeakEwma::DECAY).then(|| ewma.pack())
        };
        // Refused where it was not longer: then all stays as it is.
        let _ = self.0.fetch_update(Relaxed, Relaxed, raised);
    }
}

impl Default for Upstreams {
    fn default() -> Self {
        Self { clock: Clock(Instant::now()), ports: Mutex::default() }
    }
}

impl Upstreams {
    /// See [`Clock`].
    pub(crate) fn now(&self) -> Duration {
        self.clock.now()
    }

    fn port(&self, key: &PortKey) -> Arc<Port> {
        let mut ports = lock(&self.ports);
        if let Some(port) = ports.get(key).and_then(Weak::upgrade) {
            return port;
        }
        let of_service =
            ports.iter().filter(|((service, _), _)| *service == key.0).find_map(|(_, port)| port.upgrade());
        let (budget, breaker) = match of_service {
            Some(port) => (port.budget.clone(), port.breaker.clone()),
            None => Default::default(),
        };
        let port = Arc::new(Port { budget, breaker, detectors: Default::default(), endpoints: Mutex::default() });
        ports.insert(key.clone(), Arc::downgrade(&port));
        port
    }

    /// Forgets the ports that no worker has a view of any more.
    fn sweep(&self) {
        lock(&self.ports).retain(|_, port| port.strong_count() > 0);
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
    /// Requests and retries of its Service, by whatever port.
    pub budget: BudgetUse,
    /// Places taken in its Service's circuit breaker, by whatever port.
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
    /// How long it has been ready; none: since before this agent knew of it, or it is not.
    pub age: Option<Duration>,
    /// How long it takes to answer lately, by the average that faded since its last answer; only where endpoints are chosen by that.
    pub latency: Option<Duration>,
    /// Places taken in its circuit breaker.
    pub circuit: CircuitUsage,
}

impl PortUsage {
    /// How many of the candidates are ejected, and whether so many that it is ignored.
    #[must_use]
    pub fn ejected(&self, candidates: &Candidates, settings: &OutlierSettings) -> (usize, bool) {
        let is_out = |e: &Endpoint| self.endpoints.iter().any(|of| of.addr == e.addr && of.ejected != Ejected::No);
        let ejected = candidates.iter().filter(|e| is_out(e)).count();
        (ejected, ejected > 0 && is_panic(settings, candidates.len() - ejected, candidates.len()))
    }
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

    /// How long it has been ready, where that is known.
    fn age(&self, now: Duration) -> Option<Duration> {
        self.since().map(|since| now.saturating_sub(since))
    }

    fn since(&self) -> Option<Duration> {
        match self.ready_millis.load(Relaxed) {
            0 | UNREADY => None,
            millis => Some(Duration::from_millis(millis)),
        }
    }

    /// It is ready, or not, from now on; `is_first`: nothing was known before.
    fn set_ready(&self, is_ready: bool, is_first: bool, now: Duration) {
        let millis = match (is_ready, self.ready_millis.load(Relaxed)) {
            (false, _) => UNREADY,
            (true, UNREADY) if is_first => 0,
            (true, UNREADY) => u64::try_from(now.as_millis()).unwrap_or(UNREADY).clamp(1, UNREADY - 1),
            (true, since) => since,
        };
        self.ready_millis.store(millis, Relaxed);
    }
}

impl Port {
    /// Who is ejected of a family.
    pub(crate) fn detector(&self, family: Family) -> &Detector {
        &self.detectors[family as usize]
    }

    /// What is known of each endpoint of a Service's port, in their order. Those that are no more are forgotten.
    fn endpoints(
        &self,
        service: &Service,
        endpoints: &[Endpoint],
        generation: u64,
        now: Duration,
    ) -> Box<[Arc<Upstream>]> {
        let mut known = lock(&self.endpoints);
        let is_first = known.all.is_empty();
        let new = |e: &Endpoint| {
            Arc::new(Upstream {
                breaker: Arc::default(),
                host: self.detector(Family::of(e.addr.ip())).host(),
                latency: Latency::default(),
                ready_millis: AtomicU64::new(UNREADY),
            })
        };
        let state = |e: &Endpoint| known.all.entry(e.addr).or_insert_with(|| new(e)).clone();
        let states: Box<[_]> = endpoints.iter().map(state).collect();
        // A worker that is behind changes nothing that another has seen since.
        if generation >= known.generation {
            known.generation = generation;
            for (endpoint, upstream) in endpoints.iter().zip(&states) {
                upstream.set_ready(endpoint.ready || service.publish_not_ready, is_first, now);
            }
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_a_service_share_its_budget_and_breaker() {
        let upstreams = Upstreams::default();
        let key = |name: &str, port| (("shop".into(), name.into()), port);
        let (web, admin) = (upstreams.port(&key("web", 80)), upstreams.port(&key("web", 8080)));
        let other = upstreams.port(&key("other", 80));
        assert!(Arc::ptr_eq(&web.budget, &admin.budget) && Arc::ptr_eq(&web.breaker, &admin.breaker));
        assert!(!Arc::ptr_eq(&web.budget, &other.budget) && !Arc::ptr_eq(&web.breaker, &other.breaker));
    }

    #[test]
    fn ports_that_nobody_views_are_forgotten() {
        let upstreams = Upstreams::default();
        let key = |port| (("shop".into(), "web".into()), port);
        let (gone, stays) = (upstreams.port(&key(80)), upstreams.port(&key(8080)));
        drop(gone);
        upstreams.sweep();
        assert_eq!(lock(&upstreams.ports).keys().collect::<Vec<_>>(), [&key(8080)]);
        assert!(Arc::ptr_eq(&stays, &upstreams.port(&key(8080))));
    }
}
