//! Istio-compatible HTTP and gRPC metrics, written from the hot path without sharing (see [`crate::series`]).
//!
//! A request is recorded once, at its end, in the cells of its worker: one counter, three histograms, two message counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use prometheus::core::Collector;

use crate::collect::{FamilyDesc, FnCollector};
use crate::labels::{HTTP_LABEL_NAMES, HttpLabels};
use crate::series::{self, Handle, LabelSet, SeriesTable, Usage};

/// Default limit of label sets per agent. Each is up to 69 lines of exposition.
pub const SERIES_MAX_DEFAULT: usize = 4_000;

/// Upper bounds of every histogram's buckets, as Istio's proxies have them: milliseconds for the duration, bytes for sizes.
pub const BOUNDS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1000.0,
    2500.0,
    5000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];
const BUCKETS: usize = BOUNDS.len() + 1;
/// The same in thousandths, which is what is recorded: whole microseconds, thousandths of a byte.
const BOUNDS_MILLI: [u64; BOUNDS.len()] = {
    let mut bounds = [0; BOUNDS.len()];
    let mut i = 0;
    while i < bounds.len() {
        bounds[i] = (BOUNDS[i] * 1000.0) as u64;
        i += 1;
    }
    bounds
};

const REQUESTS: FamilyDesc = FamilyDesc::counter("istio_requests_total", "Requests ended.", &HTTP_LABEL_NAMES);
const DURATION: FamilyDesc = FamilyDesc::histogram(
    "istio_request_duration_milliseconds",
    "From the first byte of a request to the last of its response, milliseconds.",
    &HTTP_LABEL_NAMES,
);
const REQUEST_BYTES: FamilyDesc =
    FamilyDesc::histogram("istio_request_bytes", "Size of request bodies, bytes.", &HTTP_LABEL_NAMES);
const RESPONSE_BYTES: FamilyDesc =
    FamilyDesc::histogram("istio_response_bytes", "Size of response bodies, bytes.", &HTTP_LABEL_NAMES);
const REQUEST_MESSAGES: FamilyDesc =
    FamilyDesc::counter("istio_request_messages_total", "gRPC messages sent by clients.", &HTTP_LABEL_NAMES);
const RESPONSE_MESSAGES: FamilyDesc =
    FamilyDesc::counter("istio_response_messages_total", "gRPC messages sent by servers.", &HTTP_LABEL_NAMES);

/// The families this module exposes.
pub const FAMILIES: [FamilyDesc; 6] =
    [REQUESTS, DURATION, REQUEST_BYTES, RESPONSE_BYTES, REQUEST_MESSAGES, RESPONSE_MESSAGES];

#[derive(Default)]
struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum: AtomicU64,
}

impl Histogram {
    fn record(&self, milli: u64) {
        let bucket = BOUNDS_MILLI.partition_point(|bound| *bound < milli);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum.fetch_add(milli, Relaxed);
    }
}

#[derive(Default)]
#[repr(align(64))]
struct Cell {
    requests: AtomicU64,
    request_messages: AtomicU64,
    response_messages: AtomicU64,
    duration: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
}

impl series::Cell for Cell {
    fn activity(&self) -> u64 {
        self.requests.load(Relaxed)
    }
}

impl LabelSet for HttpLabels {
    fn overflow() -> Self {
        Self::overflow()
    }
}

/// One request as it ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestSample {
    /// From its first byte to the end.
    pub duration: Duration,
    /// Body bytes, framing not counted.
    pub request_bytes: u64,
    /// Body bytes, framing not counted.
    pub response_bytes: u64,
    /// gRPC messages from the client.
    pub request_messages: u64,
    /// gRPC messages from the server.
    pub response_messages: u64,
}

/// All `istio_request*` families of one agent. Cloning shares them.
#[derive(Clone)]
pub struct HttpMetrics(Arc<SeriesTable<HttpLabels, Cell>>);

/// One label set as one worker writes it.
#[derive(Clone)]
pub struct HttpHandle(Handle<HttpLabels, Cell>);

impl HttpMetrics {
    /// For `shards` workers and at most `series_max` label sets.
    #[must_use]
    pub fn new(shards: usize, series_max: usize) -> Self {
        Self(Arc::new(SeriesTable::new(shards, series_max)))
    }

    /// The handle of worker `shard` for a label set. Takes a lock: keep what it returns.
    #[must_use]
    pub fn handle(&self, shard: usize, labels: &HttpLabels) -> HttpHandle {
        HttpHandle(self.0.handle(shard, labels))
    }

    /// What the registry scrapes.
    #[must_use]
    pub fn collector(&self) -> Box<dyn Collector> {
        let metrics = self.clone();
        FnCollector::boxed(&FAMILIES, move || {
            metrics.0.drop_idle(Instant::now());
            metrics.collect()
        })
    }

    fn collect(&self) -> Vec<crate::collect::Family> {
        let [mut requests, mut duration, mut request_bytes, mut response_bytes, mut sent, mut received] =
            FAMILIES.map(|f| f.family());
        for series in self.0.all() {
            let mut numbers = Default::default();
            let values = series.labels.values(&mut numbers);
            let sum =
                |number: fn(&Cell) -> &AtomicU64| series.cells.iter().map(|c| number(c).load(Relaxed)).sum::<u64>();
            let count = sum(|c| &c.requests);
            if count == 0 {
                continue;
            }
            requests.push(&values, count as f64);
            type Of = fn(&Cell) -> &Histogram;
            for (family, histogram) in [
                (&mut duration, (|c| &c.duration) as Of),
                (&mut request_bytes, |c| &c.request_bytes),
                (&mut response_bytes, |c| &c.response_bytes),
            ] {
                let cells = || series.cells.iter().map(histogram);
                let counts: [u64; BUCKETS] = std::array::from_fn(|i| cells().map(|h| h.buckets[i].load(Relaxed)).sum());
                let milli: u64 = cells().map(|h| h.sum.load(Relaxed)).sum();
                family.push_histogram(&values, &BOUNDS, &counts, milli as f64 / 1000.0);
            }
            if series.labels.grpc {
                sent.push(&values, sum(|c| &c.request_messages) as f64);
                received.push(&values, sum(|c| &c.response_messages) as f64);
            }
        }
        vec![requests, duration, request_bytes, response_bytes, sent, received]
    }

    /// How much of the limit is used.
    pub(crate) fn usage(&self) -> Usage {
        self.0.usage("istio_request")
    }
}

impl HttpHandle {
    /// Records one request.
    pub fn record(&self, sample: &RequestSample) {
        let cell = self.0.cell();
        cell.requests.fetch_add(1, Relaxed);
        cell.duration.record(u64::try_from(sample.duration.as_micros()).unwrap_or(u64::MAX));
        cell.request_bytes.record(sample.request_bytes.saturating_mul(1000));
        cell.response_bytes.record(sample.response_bytes.saturating_mul(1000));
        if sample.request_messages | sample.response_messages != 0 {
            cell.request_messages.fetch_add(sample.request_messages, Relaxed);
            cell.response_messages.fetch_add(sample.response_messages, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::{Format, encode};
    use crate::labels::{PeerLabels, Reporter, ServiceLabels, TcpLabels};

    fn labels(workload: &str, grpc_status: Option<u8>) -> HttpLabels {
        let source = PeerLabels { workload: workload.into(), ..PeerLabels::unknown() };
        let peers = TcpLabels {
            reporter: Reporter::Source,
            source,
            destination: PeerLabels::unknown(),
            service: ServiceLabels::unknown(),
            response_flags: "-",
            security: "",
        };
        HttpLabels { peers, grpc: grpc_status.is_some(), response_code: 200, grpc_status }
    }

    fn scrape(metrics: &HttpMetrics) -> String {
        let registry = prometheus::Registry::new();
        registry.register(metrics.collector()).unwrap();
        encode(&registry.gather(), Format::Text)
    }

    #[test]
    fn requests_fall_into_istios_buckets_over_all_workers() {
        let metrics = HttpMetrics::new(2, 10);
        for (shard, micros, bytes) in [(0, 500, 0), (0, 501, 1), (1, 4_000_000_000, 1024)] {
            let sample = RequestSample {
                duration: Duration::from_micros(micros),
                response_bytes: bytes,
                ..RequestSample::default()
            };
            metrics.handle(shard, &labels("web", None)).record(&sample);
        }
        let text = scrape(&metrics);
        let value = |family: &str, le: &str| {
            let line =
                text.lines().find(|l| l.starts_with(family) && (le.is_empty() || l.contains(&format!("le=\"{le}\""))));
            line.unwrap_or_else(|| panic!("no {family} {le} in\n{text}")).rsplit(' ').next().unwrap().to_owned()
        };
        assert_eq!(value("istio_requests_total{", ""), "3");
        for (le, count) in [("0.5", "1"), ("1", "2"), ("3600000", "2"), ("+Inf", "3")] {
            assert_eq!(value("istio_request_duration_milliseconds_bucket{", le), count, "le {le}");
        }
        assert_eq!(value("istio_request_duration_milliseconds_sum{", ""), "4000001.001");
        for (le, count) in [("0.5", "1"), ("1", "2"), ("1000", "2"), ("2500", "3")] {
            assert_eq!(value("istio_response_bytes_bucket{", le), count, "le {le}");
        }
        assert_eq!(value("istio_response_bytes_sum{", ""), "1025");
        assert!(!text.contains("istio_request_messages_total{"), "not gRPC:\n{text}");
        for label in ["request_protocol=\"http\"", "response_code=\"200\"", "grpc_response_status=\"\""] {
            assert!(text.contains(label), "{label}");
        }
    }

    #[test]
    fn grpc_counts_messages_and_the_limit_holds() {
        let metrics = HttpMetrics::new(1, 2);
        for n in 0..5 {
            let sample = RequestSample { request_messages: 2, response_messages: 3, ..RequestSample::default() };
            metrics.handle(0, &labels(&format!("w{n}"), Some(14))).record(&sample);
        }
        let text = scrape(&metrics);
        let line = |start: &str, part: &str| {
            text.lines().any(|l| l.starts_with(start) && l.contains("workload=\"w1\"") && l.ends_with(part))
        };
        assert!(
            line("istio_request_messages_total{", "} 2") && line("istio_response_messages_total{", "} 3"),
            "{text}"
        );
        assert!(text.contains("grpc_response_status=\"14\""), "{text}");
        let overflow = text.lines().find(|l| l.starts_with("istio_requests_total{") && l.contains("overflow"));
        assert!(overflow.unwrap().ends_with("} 3"), "{text}");
        assert_eq!((metrics.usage().used, metrics.usage().overflowed), (2, 3));
    }
}
