//! What is measured, between whom, and which bars an issue named.

use crate::contestants::{Contestant, Target};
use crate::load::Seen;
use crate::rows::{Measured, Row};

/// A load put through several contestants in turn, round after round.
pub struct Scenario {
    pub name: &'static str,
    pub pattern: &'static str,
    pub target: Target,
    pub connections: usize,
    pub metrics: &'static [Metric],
    pub ours: &'static [Contestant],
    pub baselines: &'static [Contestant],
}

/// A number made of what one load saw.
pub struct Metric {
    pub name: &'static str,
    pub unit: &'static str,
    pub of: fn(&Seen) -> f64,
    /// The baseline and the ratio not to exceed.
    pub bar: Option<(Contestant, f64)>,
    /// Whether it is the cost of a proxy, which contestants without one do not have.
    pub is_proxy_cost: bool,
}

const fn metric(name: &'static str, unit: &'static str, of: fn(&Seen) -> f64) -> Metric {
    Metric { name, unit, of, bar: None, is_proxy_cost: false }
}

const fn proxy_cost(
    name: &'static str,
    unit: &'static str,
    of: fn(&Seen) -> f64,
    bar: Option<(Contestant, f64)>,
) -> Metric {
    Metric { name, unit, of, bar, is_proxy_cost: true }
}

fn microseconds_each(total_ns: u64, count: u64) -> f64 {
    total_ns as f64 / 1000.0 / count.max(1) as f64
}

fn seconds_per_gigabyte(total_ns: u64, bytes: u64) -> f64 {
    total_ns as f64 / bytes.max(1) as f64
}

const PER_CONNECTION: &[Metric] = &[
    // Issue 2: one pass costs no more than Envoy's.
    proxy_cost(
        "proxy CPU per connection",
        "µs",
        |seen| microseconds_each(seen.watched_cpu_ns, seen.count),
        Some((Contestant::Envoy, 1.0)),
    ),
    metric("machine CPU per connection", "µs", |seen| microseconds_each(seen.machine_cpu_ns, seen.count)),
    metric("connections per second", "1/s", |seen| seen.count as f64 / seen.seconds),
    metric("connection p50", "µs", |seen| seen.p50_ns as f64 / 1000.0),
    metric("connection p99", "µs", |seen| seen.p99_ns as f64 / 1000.0),
];

const PER_ROUND_TRIP: &[Metric] = &[
    metric("round trip p50", "µs", |seen| seen.p50_ns as f64 / 1000.0),
    metric("round trip p99", "µs", |seen| seen.p99_ns as f64 / 1000.0),
    proxy_cost("proxy CPU per round trip", "µs", |seen| microseconds_each(seen.watched_cpu_ns, seen.count), None),
    metric("machine CPU per round trip", "µs", |seen| microseconds_each(seen.machine_cpu_ns, seen.count)),
];

const BULK: &[Metric] = &[
    metric("throughput", "Gbit/s", |seen| seen.bytes as f64 * 8.0 / 1e9 / seen.seconds),
    proxy_cost("proxy CPU per GB", "s", |seen| seconds_per_gigabyte(seen.watched_cpu_ns, seen.bytes), None),
    metric("machine CPU per GB", "s", |seen| seconds_per_gigabyte(seen.machine_cpu_ns, seen.bytes)),
];

const CONNECT_CALL: &[Metric] = &[
    metric("connect() p50", "ns", |seen| seen.p50_ns as f64),
    metric("connect() p99", "ns", |seen| seen.p99_ns as f64),
];

const ONE_PASS: &[Contestant] = &[Contestant::HeddleInbound, Contestant::HeddleOutbound];
const ALL_PASSES: &[Contestant] = &[Contestant::HeddleInbound, Contestant::HeddleOutbound, Contestant::HeddleBoth];
const PEERS: &[Contestant] = &[Contestant::Direct, Contestant::Envoy, Contestant::EnvoyPair, Contestant::Haproxy];
const SINGLE_PEERS: &[Contestant] = &[Contestant::Direct, Contestant::Envoy, Contestant::Haproxy];

/// Every scenario in which contestants are compared.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "tcp-connection-rate",
        pattern: "connect",
        target: Target::Echo,
        connections: 16,
        metrics: PER_CONNECTION,
        ours: ALL_PASSES,
        baselines: PEERS,
    },
    Scenario {
        name: "tcp-round-trip",
        pattern: "ping-pong",
        target: Target::Echo,
        connections: 1,
        metrics: PER_ROUND_TRIP,
        ours: ALL_PASSES,
        baselines: PEERS,
    },
    Scenario {
        name: "tcp-round-trip-64",
        pattern: "ping-pong",
        target: Target::Echo,
        connections: 64,
        metrics: PER_ROUND_TRIP,
        ours: ONE_PASS,
        baselines: SINGLE_PEERS,
    },
    Scenario {
        name: "tcp-bulk",
        pattern: "bulk",
        target: Target::Sink,
        connections: 1,
        metrics: BULK,
        ours: ALL_PASSES,
        baselines: PEERS,
    },
    Scenario {
        name: "connect-call",
        pattern: "connect-call",
        target: Target::Echo,
        connections: 1,
        metrics: CONNECT_CALL,
        ours: &[Contestant::HeddleOutbound, Contestant::Bystander],
        baselines: &[Contestant::Direct],
    },
];

impl Scenario {
    /// Everyone who takes part, in the order of a round.
    pub fn contestants(&self) -> impl Iterator<Item = Contestant> {
        self.baselines.iter().chain(self.ours).copied()
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
            let name = format!("{} / {}", self.name, ours.name());
            for metric in self.metrics {
                for baseline in self.baselines.iter().filter(|baseline| is_comparable(*ours, **baseline, metric)) {
                    // The bars of issue 2 are for one pass.
                    let bar = metric
                        .bar
                        .filter(|(against, _)| against == baseline && ONE_PASS.contains(ours))
                        .map(|(_, bar)| bar);
                    let theirs = measured(*baseline, metric);
                    rows.push(Row::against(
                        &name,
                        self.connections,
                        &measured(*ours, metric),
                        baseline.name(),
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
            let is_pair = row.baseline.as_deref() == Some(Contestant::EnvoyPair.name());
            let is_alone = [Contestant::Envoy, Contestant::Haproxy]
                .iter()
                .any(|peer| row.baseline.as_deref() == Some(peer.name()));
            let is_both = row.scenario.ends_with(Contestant::HeddleBoth.name());
            assert!(!(is_pair && !is_both || is_alone && is_both), "{row:?}");
        }
    }

    #[test]
    fn units_are_what_they_say() {
        assert_eq!(microseconds_each(5_000_000, 100), 50.0);
        assert_eq!(seconds_per_gigabyte(2_000_000_000, 1_000_000_000), 2.0);
    }
}
