//! What mutual TLS between nodes costs, and the bars of issue 4.
//!
//! Byte streams are held against a pair of ztunnels where one is given; a pair of Envoys stands beside them without a bar.

use crate::contestants::Contestant;
use crate::load::Seen;
use crate::origin::{ECHO_PORT, SINK_PORT};
use crate::peers::PATH_1_KIB;
use crate::scenarios::{
    HttpVersion, Load, Metric, Scenario, closed, metric, microseconds_each, proxy_cost, seconds_per_gigabyte,
};

const PAIR: &[Contestant] = &[Contestant::HeddleMtlsPair];
const HAND_OVER: &[Contestant] = &[Contestant::HeddleHandOver];
const ENVOYS: &[Contestant] = &[Contestant::EnvoyMtlsPair];
/// Heddle's full handshakes stand beside Envoy's full and Envoy's resumed ones: resumption is off on our side.
const ENVOYS_FULL_AND_RESUMED: &[Contestant] = &[Contestant::EnvoyMtlsPair, Contestant::EnvoyResuming];
const ENVOYS_AND_ZTUNNELS: &[Contestant] = &[Contestant::EnvoyMtlsPair, Contestant::ZtunnelPair];

/// Issue 4: of the CPU of two Envoys.
const PAIR_BAR: f64 = 0.52;
const HAND_OVER_BAR: f64 = 0.22;

const fn per_request(bars: &'static [(Contestant, f64)]) -> [Metric; 3] {
    [
        proxy_cost("proxy CPU per request", "µs", cpu_each, bars),
        metric("machine CPU per request", "µs", |seen| microseconds_each(seen.machine_cpu_ns, seen.count)),
        metric("requests per second", "1/s", |seen| seen.count as f64 / seen.seconds),
    ]
}

fn cpu_each(seen: &Seen) -> f64 {
    microseconds_each(seen.watched_cpu_ns, seen.count)
}

const OF_PAIR: &[Metric] = &per_request(&[(Contestant::EnvoyMtlsPair, PAIR_BAR)]);
const OF_HAND_OVER: &[Metric] = &per_request(&[(Contestant::EnvoyMtlsPair, HAND_OVER_BAR)]);
const OF_OPAQUE_REQUEST: &[Metric] = &per_request(&[]);
/// A byte there and back, over and over: what an exchange costs whoever carries bytes.
const OF_STREAM: &[Metric] = &per_request(&[(Contestant::ZtunnelPair, 1.0)]);

const TIMES: &[Metric] = &[
    proxy_cost("request p99", "µs", |seen| seen.p99_ns as f64 / 1000.0, &[(Contestant::EnvoyMtlsPair, 1.0)]),
    metric("request p50", "µs", |seen| seen.p50_ns as f64 / 1000.0),
    proxy_cost("proxy CPU per request", "µs", cpu_each, &[]),
];

const OF_NEW_CONNECTION: &[Metric] = &[
    proxy_cost("proxy CPU per connection", "µs", cpu_each, &[(Contestant::ZtunnelPair, 0.6)]),
    metric("connections per second", "1/s", |seen| seen.count as f64 / seen.seconds),
    metric("connection p99", "µs", |seen| seen.p99_ns as f64 / 1000.0),
];

const OF_BULK: &[Metric] = &[
    proxy_cost(
        "proxy CPU per GB",
        "s",
        |seen| seconds_per_gigabyte(seen.watched_cpu_ns, seen.bytes),
        &[(Contestant::ZtunnelPair, 0.8)],
    ),
    metric("throughput", "Gbit/s", |seen| seen.bytes as f64 * 8.0 / 1e9 / seen.seconds),
];

const OF_HANDSHAKE: &[Metric] = &[
    proxy_cost("proxy CPU per handshake", "µs", cpu_each, &[]),
    metric("handshakes per second", "1/s", |seen| seen.count as f64 / seen.seconds),
    metric("handshake p99", "µs", |seen| seen.p99_ns as f64 / 1000.0),
];

/// Every scenario in mutual TLS; with ztunnels where they are given.
pub fn all(has_ztunnel: bool) -> Vec<Scenario> {
    let requests = |name, connections, sources, metrics| Scenario {
        name,
        load: closed(HttpVersion::H1, PATH_1_KIB, 1),
        connections,
        sources,
        metrics,
        ours: PAIR,
        baselines: ENVOYS,
    };
    let stream = |name, load, connections, metrics| Scenario {
        name,
        load,
        connections,
        sources: 1,
        metrics,
        ours: PAIR,
        baselines: if has_ztunnel { ENVOYS_AND_ZTUNNELS } else { ENVOYS },
    };
    vec![
        requests("mtls-http1-1k-64", 64, 1, OF_PAIR),
        requests("mtls-http1-1k-64-from-10-pods", 64, 10, OF_PAIR),
        Scenario {
            load: Load::Http { requests: "timed", version: HttpVersion::H1, path: PATH_1_KIB, streams: 1 },
            ..requests("mtls-http1-1k-256-times", 256, 1, TIMES)
        },
        Scenario { ours: HAND_OVER, ..requests("mtls-hand-over-1k-64", 64, 1, OF_HAND_OVER) },
        // h2load, which makes these, cannot go by ztunnel's SOCKS5; the round trips below can.
        Scenario {
            load: Load::Opaque { requests: "closed" },
            ..requests("mtls-stream-requests-64", 64, 1, OF_OPAQUE_REQUEST)
        },
        stream("mtls-stream-round-trips-64", Load::Tcp { pattern: "ping-pong", port: ECHO_PORT }, 64, OF_STREAM),
        stream("mtls-stream-new-connections", Load::Tcp { pattern: "connect", port: ECHO_PORT }, 16, OF_NEW_CONNECTION),
        stream("mtls-stream-bulk", Load::Tcp { pattern: "bulk", port: SINK_PORT }, 1, OF_BULK),
        Scenario {
            load: Load::Handshakes,
            baselines: ENVOYS_FULL_AND_RESUMED,
            ..requests("mtls-handshakes-full", 16, 1, OF_HANDSHAKE)
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen() -> Seen {
        Seen {
            count: 100,
            failed: 0,
            failure: None,
            bytes: 1 << 30,
            seconds: 2.0,
            p50_ns: 1000,
            p99_ns: 2000,
            watched_cpu_ns: 1_000_000,
            machine_cpu_ns: 1,
            resident_bytes: 0,
        }
    }

    #[test]
    fn full_handshakes_stand_beside_resumed_ones_and_say_so() {
        let scenario = all(false).into_iter().find(|scenario| scenario.name == "mtls-handshakes-full").unwrap();
        let seen: Vec<Vec<Seen>> = scenario.contestants().map(|_| vec![seen()]).collect();
        let rows = scenario.rows(&seen);
        let rates: Vec<_> = rows.iter().filter(|row| row.metric == "handshakes per second").collect();
        let against: Vec<_> = rates.iter().filter_map(|row| row.baseline.as_deref()).collect();
        assert_eq!(against, ["envoys 1.40 with mtls", "envoy 1.40, resumed"]);
        assert!(rates.iter().all(|row| row.scenario.starts_with("mtls-handshakes-full / heddle")), "{rates:?}");
    }

    #[test]
    fn the_bars_of_issue_4_stand_where_they_were_set() {
        let barred = |has_ztunnel| {
            let rows = all(has_ztunnel).into_iter().flat_map(|scenario| {
                let all: Vec<Vec<Seen>> = scenario.contestants().map(|_| vec![seen()]).collect();
                scenario.rows(&all)
            });
            rows.filter_map(|row| Some((row.scenario.split(" / ").next()?.to_owned(), row.bar?))).collect::<Vec<_>>()
        };
        let of_requests = [
            ("mtls-http1-1k-64".to_owned(), 0.52),
            ("mtls-http1-1k-64-from-10-pods".to_owned(), 0.52),
            ("mtls-http1-1k-256-times".to_owned(), 1.0),
            ("mtls-hand-over-1k-64".to_owned(), 0.22),
        ];
        let of_streams = [
            ("mtls-stream-round-trips-64".to_owned(), 1.0),
            ("mtls-stream-new-connections".to_owned(), 0.6),
            ("mtls-stream-bulk".to_owned(), 0.8),
        ];
        assert_eq!(barred(false), of_requests);
        assert_eq!(barred(true), [&of_requests[..], &of_streams[..]].concat());
        // Bars that cannot be measured are counted, not forgotten.
        let unmeasured = |has_ztunnel| all(has_ztunnel).iter().map(Scenario::unmeasured_bars).sum::<usize>();
        assert_eq!((unmeasured(false), unmeasured(true)), (of_streams.len(), 0));
    }
}
