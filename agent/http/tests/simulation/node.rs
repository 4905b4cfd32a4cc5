//! A node in simulated time: requests arrive, are balanced, broken, retried and judged by the real modules; only endpoints and clock are made up.
//!
//! Everything follows from the seed. After every event the laws are checked ([`Node::check`]); a broken one prints the seed and what happened
//! last.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use heddle_http::breaker::{Breaker, Circuit, CircuitLimits, CircuitPermit, Resource};
use heddle_http::outlier::{self, Admission, Detector, Host, Probe, Scene, Standing, Transition};
use heddle_http::retry::{self, ActiveRequest, Attempt, Budget, BudgetLimits, Decision, Policy, Stop, Token};
use heddle_model::balance::{PeakEwma, candidates, least_request, peak_ewma};
use heddle_model::{Candidates, Endpoint, Family, Service, ServicePort, Timestamp};
use http::{HeaderMap, HeaderValue};

/// Environment variable with the one seed to run.
pub const SEED_VARIABLE: &str = "HEDDLE_SIMULATION_SEED";

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    pub fn exponential(&mut self, mean: Duration) -> Duration {
        let unit = ((self.next() >> 11) as f64 + 1.0) / (1_u64 << 53) as f64;
        mean.mul_f64(-unit.ln())
    }
}

/// What an endpoint does with requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 200, after an exponential time of this mean.
    Healthy(Duration),
    /// No connection.
    Refusing,
    /// 503, at once.
    Failing,
    /// 503 with `Retry-After` of so many seconds.
    Asking(u64),
    /// The stream is reset before a response.
    Resetting,
    /// The stream is refused unprocessed, by a connection that closes.
    Closing,
    /// No answer until the attempt times out.
    Hanging,
    /// The head of a response, and then a reset.
    Breaking,
}

/// What is simulated.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    /// For each endpoint what it does from when on, the first from zero.
    pub endpoints: Vec<Vec<(Duration, Mode)>>,
    /// Requests per second.
    pub rate: f64,
    /// How long requests arrive; what runs then is run to its end.
    pub length: Duration,
    /// Of a hundred requests so many are POST.
    pub post_percent: usize,
    pub by_latency: bool,
    pub policy: Policy,
    pub budget: BudgetLimits,
    pub breaker: CircuitLimits,
    pub outlier: outlier::Settings,
}

impl Plan {
    /// Endpoints that are healthy but for what is set later.
    pub fn new(seed: u64, endpoints: usize) -> Self {
        Self {
            seed,
            endpoints: vec![vec![(Duration::ZERO, Mode::Healthy(Duration::from_millis(5)))]; endpoints],
            rate: 500.0,
            length: Duration::from_secs(60),
            post_percent: 0,
            by_latency: false,
            policy: Policy { per_try_timeout: Some(Duration::from_secs(1)), ..Policy::default() },
            budget: BudgetLimits::default(),
            breaker: CircuitLimits::default(),
            outlier: outlier::Settings::default(),
        }
    }
}

/// What came of it.
#[derive(Default)]
pub struct Report {
    pub requests: u64,
    pub attempts: u64,
    pub succeeded: u64,
    /// Requests that failed, by why no further attempt was made.
    pub failed: BTreeMap<String, u64>,
    pub overflowed: u64,
    pub transitions: Vec<(Duration, usize, Transition)>,
    /// When each endpoint got its attempts, in whole seconds: attempts by second.
    pub by_second: Vec<BTreeMap<u64, u64>>,
    /// FNV-1a of every line of the trace.
    pub trace_hash: u64,
    pub trace_lines: u64,
}

#[derive(Debug)]
enum Event {
    Arrive,
    Attempt(u64),
    Answer(u64, Answer),
    Broke(u64),
    Sweep,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Status(u16, Option<u64>),
    ConnectFailed,
    Refused,
    Reset,
    TimedOut,
    HeadOnly,
}

struct Request {
    idempotent: bool,
    deadline: Duration,
    number: u32,
    has_begun: bool,
    /// The last failure proved that the server did nothing.
    was_untouched: bool,
    tried: Vec<std::net::SocketAddr>,
    sent: Option<Sent>,
    token: Option<Token>,
    _active: ActiveRequest,
}

/// An attempt on its way.
struct Sent {
    at: usize,
    since: Duration,
    probe: Option<Probe>,
    _permit: CircuitPermit,
}

struct Upstream {
    host: Arc<Host>,
    breaker: Arc<Breaker>,
    load: u32,
    ewma: PeakEwma,
    probes: u32,
}

pub struct Node {
    plan: Plan,
    random: Random,
    now: Duration,
    queue: BinaryHeap<Reverse<(Duration, u64)>>,
    events: BTreeMap<u64, Event>,
    scheduled: u64,
    candidates: Candidates,
    upstreams: Vec<Upstream>,
    service: Arc<Breaker>,
    budget: Arc<Budget>,
    detector: Detector,
    requests: BTreeMap<u64, Request>,
    report: Report,
    recent: VecDeque<String>,
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.recent.iter().for_each(|line| eprintln!("{line}"));
            eprintln!("at {:?}; run it again with {SEED_VARIABLE}={}", self.now, self.plan.seed);
        }
    }
}

impl Node {
    pub fn run(plan: Plan) -> Report {
        let mut node = Self::new(plan);
        node.schedule(Duration::ZERO, Event::Arrive);
        node.schedule(Duration::ZERO, Event::Sweep);
        while let Some(Reverse((at, id))) = node.queue.pop() {
            assert!(at >= node.now, "time goes on");
            node.now = at;
            let event = node.events.remove(&id).unwrap();
            node.handle(event);
            node.check();
        }
        node.check_end();
        std::mem::take(&mut node.report)
    }

    fn new(plan: Plan) -> Self {
        let detector = Detector::default();
        let endpoint = |n: u32| Endpoint::ready(std::net::SocketAddr::new(std::net::Ipv4Addr::from(n + 1).into(), 80));
        let upstream = |_| Upstream {
            host: detector.host(),
            breaker: Arc::default(),
            load: 0,
            ewma: PeakEwma::new(PeakEwma::INITIAL, Duration::ZERO),
            probes: 0,
        };
        let count = plan.endpoints.len();
        let endpoints = (0..count as u32).map(endpoint).collect();
        let port = ServicePort { name: "http".into(), port: 80, app_protocol: None, endpoints };
        let service = Service { ports: vec![port], ..Service::new("shop", "web") };
        Self {
            random: Random(plan.seed),
            now: Duration::ZERO,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            scheduled: 0,
            candidates: candidates(&service, 0, Family::V4, "n1").unwrap(),
            upstreams: (0..count).map(upstream).collect(),
            service: Arc::default(),
            budget: Arc::default(),
            detector,
            requests: BTreeMap::new(),
            report: Report {
                by_second: vec![BTreeMap::new(); count],
                trace_hash: 0xcbf2_9ce4_8422_2325,
                ..Report::default()
            },
            recent: VecDeque::new(),
            plan,
        }
    }

    fn schedule(&mut self, after: Duration, event: Event) {
        self.scheduled += 1;
        self.queue.push(Reverse((self.now + after, self.scheduled)));
        self.events.insert(self.scheduled, event);
    }

    fn trace(&mut self, line: fmt::Arguments<'_>) {
        let line = format!("{:?} {line}", self.now);
        for byte in line.bytes() {
            self.report.trace_hash = (self.report.trace_hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        self.report.trace_lines += 1;
        if self.recent.len() == 40 {
            self.recent.pop_front();
        }
        self.recent.push_back(line);
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrive => self.arrive(),
            Event::Attempt(id) => self.attempt(id),
            Event::Answer(id, answer) => self.answer(id, answer),
            Event::Broke(id) => {
                self.trace(format_args!("request {id} broke inside its response"));
                self.decide(id, &retry::Outcome::Reset, false);
            }
            Event::Sweep => {
                let hosts: Vec<_> = self.upstreams.iter().map(|u| Arc::clone(&u.host)).collect();
                for (index, transition) in self.detector.sweep(&hosts, &self.scene()) {
                    self.changed(index, transition);
                }
                if self.now < self.plan.length {
                    self.schedule(Duration::from_secs(1), Event::Sweep);
                }
            }
        }
    }

    fn arrive(&mut self) {
        self.report.requests += 1;
        let id = self.report.requests;
        let request = Request {
            idempotent: self.random.below(100) >= self.plan.post_percent,
            deadline: self.now + Duration::from_secs(5),
            number: 0,
            has_begun: false,
            was_untouched: true,
            tried: Vec::new(),
            sent: None,
            token: None,
            _active: self.budget.request(),
        };
        self.requests.insert(id, request);
        self.attempt(id);
        let pause = self.random.exponential(Duration::from_secs_f64(1.0 / self.plan.rate));
        if self.now + pause < self.plan.length {
            self.schedule(pause, Event::Arrive);
        }
    }

    fn attempt(&mut self, id: u64) {
        let at = self.choose(id);
        let limits = self.plan.breaker;
        let circuit = Circuit { service: &self.service, endpoint: &self.upstreams[at].breaker };
        let permit = match circuit.take(Resource::Requests, &limits) {
            Ok(permit) => permit,
            Err(overflow) => {
                self.trace(format_args!("request {id} at endpoint {at}: {overflow}"));
                self.report.overflowed += 1;
                return self.fail(id, overflow.reason().as_str());
            }
        };
        let is_panic = self.is_panic();
        let standing = self.upstreams[at].host.standing(self.now);
        let probe = match self.upstreams[at].host.admit(self.now) {
            Admission::Serve => None,
            Admission::Probe(probe) => Some(probe),
            Admission::Ejected => {
                assert!(is_panic, "an ejected endpoint gets a request");
                None
            }
        };
        let upstream = &mut self.upstreams[at];
        upstream.load += 1;
        if probe.is_some() {
            upstream.probes += 1;
            assert_eq!(upstream.probes, 1, "one probe at a time");
        }
        *self.report.by_second[at].entry(self.now.as_secs()).or_default() += 1;
        self.report.attempts += 1;

        let request = self.requests.get_mut(&id).unwrap();
        request.number += 1;
        assert!(!request.has_begun, "a request is sent again after its response began");
        assert!(request.number <= self.plan.policy.retries_max + 1, "more attempts than the policy allows");
        assert!(self.now < request.deadline, "an attempt begins beyond the deadline");
        assert!(request.idempotent || request.was_untouched, "what a server may have acted on is sent again");
        assert_eq!(request.token.is_some(), request.number > 1, "every retry has its token, and no first attempt has");
        request.sent = Some(Sent { at, since: self.now, probe, _permit: permit });
        let number = request.number;
        self.trace(format_args!("request {id} attempt {number} at endpoint {at}, {standing:?}"));

        let (after, answer) = self.behave(at);
        let timeout = self.plan.policy.per_try_timeout.unwrap_or(Duration::MAX);
        let (after, answer) = if after > timeout { (timeout, Answer::TimedOut) } else { (after, answer) };
        self.schedule(after, Event::Answer(id, answer));
    }

    /// Balances as the proxy would: over what serves or wants a probe, over all in a panic, over what was tried when all was.
    fn choose(&mut self, id: u64) -> usize {
        let bits = self.random.next();
        let is_panic = self.is_panic();
        let index_of = |e: &Endpoint| self.candidates.find(e.addr).unwrap();
        let is_open = |e: &Endpoint| match self.upstreams[index_of(e)].host.standing(self.now) {
            Standing::Serving | Standing::HalfOpen { is_probed: false } => true,
            Standing::Ejected { .. } | Standing::HalfOpen { is_probed: true } => is_panic,
        };
        let open = self.candidates.filtered(is_open).unwrap();
        let pick = |tried: &[std::net::SocketAddr]| {
            let upstream = |e: &Endpoint| &self.upstreams[index_of(e)];
            let picked = if self.plan.by_latency {
                let cost = |e: &Endpoint| upstream(e).ewma.cost(upstream(e).load, self.now, PeakEwma::DECAY);
                peak_ewma(&open, cost, None, bits, tried)
            } else {
                least_request(&open, |e| upstream(e).load, bits, tried)
            };
            picked.map(|pick| pick.index)
        };
        let request = &self.requests[&id];
        pick(&request.tried).or_else(|| pick(&[])).unwrap()
    }

    fn is_panic(&self) -> bool {
        let hosts = self.upstreams.len();
        outlier::is_panic(self.scene().settings, hosts - self.detector.ejected() as usize, hosts)
    }

    fn behave(&mut self, at: usize) -> (Duration, Answer) {
        let now = self.now;
        let mode = self.plan.endpoints[at].iter().rev().find(|(from, _)| *from <= now).unwrap().1;
        let quick = self.random.exponential(Duration::from_millis(1));
        match mode {
            Mode::Healthy(mean) => (self.random.exponential(mean), Answer::Status(200, None)),
            Mode::Refusing => (quick, Answer::ConnectFailed),
            Mode::Failing => (quick, Answer::Status(503, None)),
            Mode::Asking(seconds) => (quick, Answer::Status(503, Some(seconds))),
            Mode::Resetting => (quick, Answer::Reset),
            Mode::Closing => (quick, Answer::Refused),
            Mode::Hanging => (Duration::MAX, Answer::TimedOut),
            Mode::Breaking => (quick, Answer::HeadOnly),
        }
    }

    fn answer(&mut self, id: u64, answer: Answer) {
        let sent = self.requests.get_mut(&id).unwrap().sent.take().unwrap();
        let Sent { at, since, probe, .. } = sent;
        let upstream = &mut self.upstreams[at];
        upstream.load -= 1;
        upstream.probes -= u32::from(probe.is_some());
        upstream.ewma.observe(self.now - since, self.now, PeakEwma::DECAY);
        self.trace(format_args!("request {id}: {answer:?}"));

        let verdict = match answer {
            Answer::Status(status, asked) => {
                Some(outlier::Outcome::Response { status, retry_after: asked.map(Duration::from_secs) })
            }
            Answer::HeadOnly => Some(outlier::Outcome::status(200)),
            Answer::ConnectFailed | Answer::Reset | Answer::TimedOut => Some(outlier::Outcome::Local),
            // A connection that closes in order says nothing about its endpoint.
            Answer::Refused => None,
        };
        if let Some(verdict) = verdict
            && let Some(transition) = self.detector.on_result(&self.upstreams[at].host, verdict, probe, &self.scene())
        {
            self.changed(at, transition);
        }

        let mut head = HeaderMap::new();
        if let Answer::Status(_, Some(seconds)) = answer {
            head.insert(http::header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        let addr = self.candidates.endpoints[at].addr;
        let request = self.requests.get_mut(&id).unwrap();
        request.tried.push(addr);
        // The retry ended, whatever came of it.
        request.token = None;
        request.was_untouched = matches!(answer, Answer::ConnectFailed | Answer::Refused);
        request.has_begun = matches!(answer, Answer::HeadOnly | Answer::Status(200, _));
        match answer {
            Answer::HeadOnly => {
                let after = self.random.exponential(Duration::from_millis(3));
                self.schedule(after, Event::Broke(id));
            }
            Answer::Status(200, _) => {
                self.report.succeeded += 1;
                self.requests.remove(&id);
            }
            Answer::Status(status, _) => {
                self.decide(id, &retry::Outcome::Response { status, head: &head, trailers: None }, true);
            }
            Answer::ConnectFailed => self.decide(id, &retry::Outcome::ConnectFailed, true),
            Answer::Refused => self.decide(id, &retry::Outcome::Refused { graceful: true }, true),
            Answer::Reset => self.decide(id, &retry::Outcome::Reset, true),
            Answer::TimedOut => self.decide(id, &retry::Outcome::TimedOut, true),
        }
    }

    fn decide(&mut self, id: u64, outcome: &retry::Outcome<'_>, may_retry: bool) {
        let random = self.random.next();
        let request = &self.requests[&id];
        let attempt = Attempt {
            idempotent: request.idempotent,
            grpc: false,
            number: request.number,
            replayable: true,
            response_begun: request.has_begun,
            left: Some(request.deadline.saturating_sub(self.now)),
        };
        let wall = Timestamp::from_unix(1_800_000_000 + self.now.as_secs() as i64);
        let withdraw = || self.budget.withdraw(&self.plan.budget, self.now).ok_or(Stop::BudgetExhausted);
        match retry::decide(&self.plan.policy, &attempt, outcome, wall, random, withdraw) {
            Decision::Retry { after, token } => {
                assert!(may_retry, "a retry after the response began");
                self.trace(format_args!("request {id} again in {after:?}"));
                let request = self.requests.get_mut(&id).unwrap();
                request.token = Some(token);
                if matches!(outcome, retry::Outcome::Refused { graceful: true }) {
                    // Nothing is wrong with the endpoint.
                    request.tried.pop();
                }
                self.schedule(after, Event::Attempt(id));
            }
            Decision::Stop(stop) => {
                assert!(may_retry || stop == Stop::ResponseBegun, "{stop:?} after the response began");
                self.fail(id, stop.as_str());
            }
        }
    }

    fn fail(&mut self, id: u64, why: &str) {
        self.trace(format_args!("request {id} failed: {why}"));
        *self.report.failed.entry(why.to_owned()).or_default() += 1;
        self.requests.remove(&id);
    }

    fn changed(&mut self, at: usize, transition: Transition) {
        self.trace(format_args!("endpoint {at}: {transition:?}"));
        self.report.transitions.push((self.now, at, transition));
    }

    fn scene(&self) -> Scene<'_> {
        Scene { settings: &self.plan.outlier, hosts: self.upstreams.len() as u32, now: self.now }
    }

    /// The laws that hold at any moment.
    fn check(&self) {
        let is_out = |u: &&Upstream| u.host.standing(self.now) != Standing::Serving;
        let out = self.upstreams.iter().filter(is_out).count() as u32;
        let most = (self.upstreams.len() as u32 * self.plan.outlier.ejected_percent_max / 100).max(1);
        assert_eq!(self.detector.ejected(), out, "the count of the ejected is theirs");
        assert!(out <= most, "{out} ejected of at most {most}");

        let retries = (self.report.attempts + self.report.overflowed).saturating_sub(self.report.requests);
        let share = self.report.requests as f64 * f64::from(self.plan.budget.percent) / 100.0;
        let floor = self.now.as_secs_f64() * f64::from(self.plan.budget.floor_per_second) + 1.0;
        assert!(retries as f64 <= share + floor, "{retries} retries, {share} and {floor} granted");

        let flying = self.requests.values().filter(|r| r.sent.is_some()).count() as u32;
        let used = |b: &Breaker| b.usage(Resource::Requests).used;
        assert_eq!(used(&self.service), flying);
        assert_eq!(self.upstreams.iter().map(|u| used(&u.breaker)).sum::<u32>(), flying);
        assert!(self.upstreams.iter().all(|u| used(&u.breaker) == u.load));
        assert_eq!(self.budget.usage().requests as usize, self.requests.len());
    }

    /// Nothing is left behind.
    fn check_end(&self) {
        assert!(self.requests.is_empty() && self.events.is_empty());
        let usage = self.budget.usage();
        assert_eq!((usage.requests, usage.retries), (0, 0), "the budget got everything back");
        let failed: u64 = self.report.failed.values().sum();
        assert_eq!(self.report.succeeded + failed, self.report.requests, "every request ends once");
    }
}
