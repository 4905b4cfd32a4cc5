//! What is measured, between whom, and which bars an issue named.

use crate::contestants::Contestant;
use crate::load::Seen;
use crate::mtls_peers::HBONE_PORT;
use crate::origin::{ECHO_PORT, SINK_PORT};
use crate::peers::{H1_PORT, H2_PORT, OPAQUE_PORT, PATH_1_KIB, PATH_64_KIB};
use crate::rows::{Measured, Row};

/// What is put on an address.
pub enum Load {
    /// A pattern of `load`, on one of the origin's ports.
    Tcp { pattern: &'static str, port: u16 },
    /// A loop of `http-load`.
    Http {
        requests: &'static str,
        version: HttpVersion,
        path: &'static str,
        /// Requests at a time on each connection.
        streams: usize,
    },
    /// A loop of `http-load` over HTTP/1.1, to the port that is carried as bytes.
    Opaque { requests: &'static str },
    /// Full handshakes of mutual TLS, on HBONE's port.
    Handshakes,
}

/// Which HTTP, on both sides of a proxy that can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpVersion {
    H1,
    H2,
}

/// Requests per second of a fixed rate: a fifth of what the slowest contestant can do, so that time is not waiting time.
const PACED_RATE: u32 = 2000;

impl Load {
    /// The origin's port it belongs to.
    pub fn port(&self) -> u16 {
        match self {
            Load::Tcp { port, .. } => *port,
            Load::Http { version: HttpVersion::H1, .. } => H1_PORT,
            Load::Http { version: HttpVersion::H2, .. } => H2_PORT,
            Load::Opaque { .. } => OPAQUE_PORT,
            Load::Handshakes => HBONE_PORT,
        }
    }

    /// As `heddle-bench` takes it.
    pub fn arguments(&self) -> Vec<String> {
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        match self {
            Load::Tcp { pattern, .. } => words(&["load", "--pattern", pattern]),
            Load::Http { requests, version, path, streams } => {
                let version = if *version == HttpVersion::H1 { "h1" } else { "h2" };
                let (streams, rate) = (streams.to_string(), PACED_RATE.to_string());
                let first = ["http-load", "--loop", requests, "--version", version, "--path", path];
                words(&[&first[..], &["--streams", &streams, "--rate", &rate]].concat())
            }
            Load::Opaque { requests } => {
                words(&["http-load", "--loop", requests, "--version", "h1", "--path", PATH_1_KIB])
            }
            Load::Handshakes => words(&["handshakes"]),
        }
    }
}

/// A load put through several contestants in turn, round after round.
pub struct Scenario {
    pub name: &'static str,
    pub load: Load,
    pub connections: usize,
    /// Pods the load comes from, which share the connections.
    pub sources: usize,
    pub metrics: &'static [Metric],
    pub ours: &'static [Contestant],
    pub baselines: &'static [Contestant],
}

/// A number made of what one load saw.
pub struct Metric {
    pub name: &'static str,
    pub unit: &'static str,
    pub of: fn(&Seen) -> f64,
    /// Baselines, and the ratio to each that is not to be exceeded.
    pub bars: &'static [(Contestant, f64)],
    /// Whether it is the cost of a proxy, which contestants without one do not have.
    pub is_proxy_cost: bool,
}

pub const fn metric(name: &'static str, unit: &'static str, of: fn(&Seen) -> f64) -> Metric {
    Metric { name, unit, of, bars: &[], is_proxy_cost: false }
}

pub const fn proxy_cost(
    name: &'static str,
    unit: &'static str,
    of: fn(&Seen) -> f64,
    bars: &'static [(Contestant, f64)],
) -> Metric {
    Metric { name, unit, of, bars, is_proxy_cost: true }
}

pub fn microseconds_each(total_ns: u64, count: u64) -> f64 {
    total_ns as f64 / 1000.0 / count.max(1) as f64
}

pub fn seconds_per_gigabyte(total_ns: u64, bytes: u64) -> f64 {
    total_ns as f64 / bytes.max(1) as f64
}

const PER_CONNECTION: &[Metric] = &[
    // Issue 2: one pass costs no more than Envoy's.
    proxy_cost(
        "proxy CPU per connection",
        "µs",
        |seen| microseconds_each(seen.watched_cpu_ns, seen.count),
        &[(Contestant::Envoy, 1.0)],
    ),
    metric("machine CPU per connection", "µs", |seen| microseconds_each(seen.machine_cpu_ns, seen.count)),
    metric("connections per second", "1/s", |seen| seen.count as f64 / seen.seconds),
    metric("connection p50", "µs", |seen| seen.p50_ns as f64 / 1000.0),
    metric("connection p99", "µs", |seen| seen.p99_ns as f64 / 1000.0),
];

const PER_ROUND_TRIP: &[Metric] = &[
    metric("round trip p50", "µs", |seen| seen.p50_ns as f64 / 1000.0),
    metric("round trip p99", "µs", |seen| seen.p99_ns as f64 / 1000.0),
    proxy_cost("proxy CPU per round trip", "µs", |seen| microseconds_each(seen.watched_cpu_ns, seen.count), &[]),
    metric("machine CPU per round trip", "µs", |seen| microseconds_each(seen.machine_cpu_ns, seen.count)),
];

const BULK: &[Metric] = &[
    metric("throughput", "Gbit/s", |seen| seen.bytes as f64 * 8.0 / 1e9 / seen.seconds),
    proxy_cost("proxy CPU per GB", "s", |seen| seconds_per_gigabyte(seen.watched_cpu_ns, seen.bytes), &[]),
    metric("machine CPU per GB", "s", |seen| seconds_per_gigabyte(seen.machine_cpu_ns, seen.bytes)),
];

const CONNECT_CALL: &[Metric] = &[
    metric("connect() p50", "ns", |seen| seen.p50_ns as f64),
    metric("connect() p99", "ns", |seen| seen.p99_ns as f64),
];

/// What a closed loop of requests costs; issue 3 names the bars.
const fn per_request(bars: &'static [(Contestant, f64)]) -> [Metric; 3] {
    [
        proxy_cost("proxy CPU per request", "µs", |seen| microseconds_each(seen.watched_cpu_ns, seen.count), bars),
        metric("machine CPU per request", "µs", |seen| microseconds_each(seen.machine_cpu_ns, seen.count)),
        metric("requests per second", "1/s", |seen| seen.count as f64 / seen.seconds),
    ]
}

const PER_REQUEST: &[Metric] = &per_request(&[]);
const PER_H1_REQUEST_AT_64: &[Metric] = &per_request(&[(Contestant::Envoy, 0.42)]);
const PER_H2_REQUEST_AT_64: &[Metric] = &per_request(&[(Contestant::Envoy, 0.85)]);
/// Issue 6: ten routes, retries, breaker, outlier ejection and metrics on.
const PER_ROUTED_REQUEST: &[Metric] =
    &per_request(&[(Contestant::HeddleOutbound, 1.25), (Contestant::EnvoyRouted, 0.45)]);

const AT_FIXED_RATE: &[Metric] = &[
    metric("request p50", "µs", |seen| seen.p50_ns as f64 / 1000.0),
    metric("request p99", "µs", |seen| seen.p99_ns as f64 / 1000.0),
    proxy_cost("proxy CPU per request", "µs", |seen| microseconds_each(seen.watched_cpu_ns, seen.count), &[]),
];

const REQUEST_ON_NEW_CONNECTION: &[Metric] = &[
    proxy_cost("proxy CPU per request", "µs", |seen| microseconds_each(seen.watched_cpu_ns, seen.count), &[]),
    metric("machine CPU per request", "µs", |seen| microseconds_each(seen.machine_cpu_ns, seen.count)),
    metric("requests per second", "1/s", |seen| seen.count as f64 / seen.seconds),
    metric("connect to close p50", "µs", |seen| seen.p50_ns as f64 / 1000.0),
    metric("connect to close p99", "µs", |seen| seen.p99_ns as f64 / 1000.0),
];

const ONE_PASS: &[Contestant] = &[Contestant::HeddleInbound, Contestant::HeddleOutbound];
const ALL_PASSES: &[Contestant] = &[Contestant::HeddleInbound, Contestant::HeddleOutbound, Contestant::HeddleBoth];
const PEERS: &[Contestant] = &[Contestant::Direct, Contestant::Envoy, Contestant::EnvoyPair, Contestant::Haproxy];
const SINGLE_PEERS: &[Contestant] = &[Contestant::Direct, Contestant::Envoy, Contestant::Haproxy];
const HTTP_PEERS: &[Contestant] = &[Contestant::Direct, Contestant::Envoy, Contestant::EnvoyPair, Contestant::Nginx];
const SINGLE_HTTP_PEERS: &[Contestant] = &[Contestant::Direct, Contestant::Envoy, Contestant::Nginx];

/// Requests one after the other on each connection, or as many at a time as there are streams.
pub const fn closed(version: HttpVersion, path: &'static str, streams: usize) -> Load {
    Load::Http { requests: "closed", version, path, streams }
}

/// Every scenario in which contestants are compared.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "tcp-connection-rate",
        load: Load::Tcp { pattern: "connect", port: ECHO_PORT },
        connections: 16,
        sources: 1,
        metrics: PER_CONNECTION,
        ours: ALL_PASSES,
        baselines: PEERS,
    },
    Scenario {
        name: "tcp-round-trip",
        load: Load::Tcp { pattern: "ping-pong", port: ECHO_PORT },
        connections: 1,
        sources: 1,
        metrics: PER_ROUND_TRIP,
        ours: ALL_PASSES,
        baselines: PEERS,
    },
    Scenario {
        name: "tcp-round-trip-64",
        load: Load::Tcp { pattern: "ping-pong", port: ECHO_PORT },
        connections: 64,
        sources: 1,
        metrics: PER_ROUND_TRIP,
        ours: ONE_PASS,
        baselines: SINGLE_PEERS,
    },
    Scenario {
        name: "tcp-bulk",
        load: Load::Tcp { pattern: "bulk", port: SINK_PORT },
        connections: 1,
        sources: 1,
        metrics: BULK,
        ours: ALL_PASSES,
        baselines: PEERS,
    },
    Scenario {
        name: "connect-call",
        load: Load::Tcp { pattern: "connect-call", port: ECHO_PORT },
        connections: 1,
        sources: 1,
        metrics: CONNECT_CALL,
        ours: &[Contestant::HeddleOutbound, Contestant::Bystander],
        baselines: &[Contestant::Direct],
    },
    Scenario {
        name: "http1-1k-1",
        load: closed(HttpVersion::H1, PATH_1_KIB, 1),
        connections: 1,
        sources: 1,
        metrics: PER_REQUEST,
        ours: ONE_PASS,
        baselines: SINGLE_HTTP_PEERS,
    },
    Scenario {
        name: "http1-1k-16",
        load: closed(HttpVersion::H1, PATH_1_KIB, 1),
        connections: 16,
        sources: 1,
        metrics: PER_REQUEST,
        ours: ONE_PASS,
        baselines: SINGLE_HTTP_PEERS,
    },
    Scenario {
        name: "http1-1k-64",
        load: closed(HttpVersion::H1, PATH_1_KIB, 1),
        connections: 64,
        sources: 1,
        metrics: PER_H1_REQUEST_AT_64,
        ours: ALL_PASSES,
        baselines: HTTP_PEERS,
    },
    Scenario {
        name: "http1-1k-256",
        load: closed(HttpVersion::H1, PATH_1_KIB, 1),
        connections: 256,
        sources: 1,
        metrics: PER_REQUEST,
        ours: ONE_PASS,
        baselines: SINGLE_HTTP_PEERS,
    },
    Scenario {
        name: "http1-64k-64",
        load: closed(HttpVersion::H1, PATH_64_KIB, 1),
        connections: 64,
        sources: 1,
        metrics: PER_REQUEST,
        ours: ONE_PASS,
        baselines: SINGLE_HTTP_PEERS,
    },
    Scenario {
        name: "http2-1k-8x16",
        load: closed(HttpVersion::H2, PATH_1_KIB, 16),
        connections: 8,
        sources: 1,
        metrics: PER_REQUEST,
        ours: ONE_PASS,
        baselines: SINGLE_HTTP_PEERS,
    },
    Scenario {
        name: "http2-1k-64x1",
        load: closed(HttpVersion::H2, PATH_1_KIB, 1),
        connections: 64,
        sources: 1,
        metrics: PER_H2_REQUEST_AT_64,
        ours: ALL_PASSES,
        baselines: HTTP_PEERS,
    },
    Scenario {
        name: "http1-routed-1k-64",
        load: closed(HttpVersion::H1, PATH_1_KIB, 1),
        connections: 64,
        sources: 1,
        metrics: PER_ROUTED_REQUEST,
        ours: &[Contestant::HeddleRouted],
        baselines: &[Contestant::HeddleOutbound, Contestant::EnvoyRouted],
    },
    Scenario {
        name: "http1-new-connections",
        load: Load::Http { requests: "connect", version: HttpVersion::H1, path: PATH_1_KIB, streams: 1 },
        connections: 16,
        sources: 1,
        metrics: REQUEST_ON_NEW_CONNECTION,
        ours: ONE_PASS,
        baselines: SINGLE_HTTP_PEERS,
    },
    Scenario {
        name: "http1-fixed-rate",
        load: Load::Http { requests: "paced", version: HttpVersion::H1, path: PATH_1_KIB, streams: 1 },
        connections: 64,
        sources: 1,
        metrics: AT_FIXED_RATE,
        ours: ALL_PASSES,
        baselines: HTTP_PEERS,
    },
    Scenario {
        name: "http2-fixed-rate",
        load: Load::Http { requests: "paced", version: HttpVersion::H2, path: PATH_1_KIB, streams: 1 },
        connections: 64,
        sources: 1,
        metrics: AT_FIXED_RATE,
        ours: ALL_PASSES,
        baselines: HTTP_PEERS,
    },
];

impl Scenario {
    /// Everyone who takes part, in the order of a round.
    pub fn contestants(&self) -> impl Iterator<Item = Contestant> {
        self.baselines.iter().chain(self.ours).copied()
    }

    /// How many of its bars stand on a baseline that is not there.
    pub fn unmeasured_bars(&self) -> usize {
        let bars = self.metrics.iter().flat_map(|metric| metric.bars);
        bars.filter(|(against, _)| !self.baselines.contains(against)).count() * self.ours.len()
    }

    /// Rows for all rounds; `seen` has one list per contestant, in the order of [`Scenario::contestants`].
    pub fn rows(&self, seen: &[Vec<Seen>]) -> Vec<Row> {
        let measured = |contestant: Contestant, metric: &Metric| {
            let index = self.contestants().position(|other| other == contestant).unwrap_or_default();
            let values = seen.get(index).into_iter().flatten().map(metric.of).collect();
            Measured { metric: metric.name, unit: metric.unit, values }
        };
        let mut rows = Vec::new();
        for ours in self.ours {
            let name = format!("{} / {}", self.name, ours.name(&self.load));
            for metric in self.metrics {
                for baseline in self.baselines.iter().filter(|baseline| is_comparable(*ours, **baseline, metric)) {
                    // Of the plain contestants the bars are for one pass.
                    let bar = metric
                        .bars
                        .iter()
                        .find(|(against, _)| against == baseline && *ours != Contestant::HeddleBoth)
                        .map(|(_, bar)| *bar);
                    let theirs = measured(*baseline, metric);
                    rows.push(Row::against(
                        &name,
                        self.connections,
                        &measured(*ours, metric),
                        baseline.name(&self.load),
                        &theirs,
                        bar,
                    ));
                }
            }
        }
        rows
    }
}

/// Two passes are compared with two proxies, one with one; a way without a proxy has no cost of one.
fn is_comparable(ours: Contestant, baseline: Contestant, metric: &Metric) -> bool {
    match baseline {
        Contestant::Direct => !metric.is_proxy_cost,
        Contestant::EnvoyPair => ours == Contestant::HeddleBoth,
        _ => ours != Contestant::HeddleBoth,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(watched_us: u64) -> Seen {
        Seen {
            count: 100,
            failed: 0,
            failure: None,
            bytes: 1 << 30,
            seconds: 2.0,
            p50_ns: 1000,
            p99_ns: 2000,
            watched_cpu_ns: watched_us * 1000 * 100,
            machine_cpu_ns: 1,
            resident_bytes: 0,
        }
    }

    #[test]
    fn the_bar_of_issue_2_stands_on_both_single_passes_against_envoy_only() {
        let scenario = &ALL[0];
        let costs = scenario.contestants().map(|contestant| match contestant {
            Contestant::Envoy => 60,
            Contestant::HeddleInbound => 50,
            Contestant::HeddleOutbound => 70,
            _ => 100,
        });
        let all: Vec<Vec<Seen>> = costs.map(|cost| vec![seen(cost); 3]).collect();
        let rows = scenario.rows(&all);
        let barred: Vec<(&str, Option<bool>)> =
            rows.iter().filter(|row| row.bar.is_some()).map(|row| (row.scenario.as_str(), row.met)).collect();
        let wanted = [
            ("tcp-connection-rate / heddle inbound pass", Some(true)),
            ("tcp-connection-rate / heddle outbound pass", Some(false)),
        ];
        assert_eq!(barred, wanted);
        assert!(
            rows.iter()
                .filter(|row| row.bar.is_some())
                .all(|row| row.baseline.as_deref() == Some("envoy 1.40 tcp_proxy"))
        );
    }

    #[test]
    fn a_cost_of_a_proxy_is_not_compared_with_a_way_that_has_none() {
        let scenario = &ALL[0];
        let all: Vec<Vec<Seen>> = scenario.contestants().map(|_| vec![seen(1)]).collect();
        let odd = scenario
            .rows(&all)
            .into_iter()
            .any(|row| row.metric.starts_with("proxy CPU") && row.baseline.as_deref() == Some("direct over veth"));
        assert!(!odd);
    }

    #[test]
    fn two_passes_are_compared_with_two_proxies() {
        let scenario = &ALL[0];
        let all: Vec<Vec<Seen>> = scenario.contestants().map(|_| vec![seen(1)]).collect();
        for row in scenario.rows(&all) {
            let is_pair = row.baseline.as_deref() == Some(Contestant::EnvoyPair.name(&scenario.load));
            let is_alone = [Contestant::Envoy, Contestant::Haproxy]
                .iter()
                .any(|peer| row.baseline.as_deref() == Some(peer.name(&scenario.load)));
            let is_both = row.scenario.ends_with(Contestant::HeddleBoth.name(&scenario.load));
            assert!(!(is_pair && !is_both || is_alone && is_both), "{row:?}");
        }
    }

    #[test]
    fn the_bars_of_issue_3_stand_on_single_passes_at_64_connections() {
        for (name, bar) in [("http1-1k-64", 0.42), ("http2-1k-64x1", 0.85)] {
            let scenario = ALL.iter().find(|scenario| scenario.name == name).unwrap();
            assert_eq!(scenario.connections, 64);
            let all: Vec<Vec<Seen>> = scenario.contestants().map(|_| vec![seen(1)]).collect();
            let rows = scenario.rows(&all);
            let barred: Vec<_> = rows.iter().filter(|row| row.bar.is_some()).collect();
            assert_eq!(barred.len(), 2, "{barred:?}");
            for row in barred {
                assert_eq!((row.bar, row.baseline.as_deref()), (Some(bar), Some("envoy 1.40 http")));
                assert!(row.metric == "proxy CPU per request" && !row.scenario.ends_with("both passes"), "{row:?}");
            }
        }
    }

    #[test]
    fn units_are_what_they_say() {
        assert_eq!(microseconds_each(5_000_000, 100), 50.0);
        assert_eq!(seconds_per_gigabyte(2_000_000_000, 1_000_000_000), 2.0);
    }
}
