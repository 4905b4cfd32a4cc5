//! Istio-compatible TCP metrics, written from the hot path without sharing (see [`crate::series`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use prometheus::core::Collector;

use crate::collect::{FamilyDesc, FnCollector};
use crate::labels::{TCP_LABEL_NAMES, TcpLabels};
use crate::series::{self, Handle, LabelSet, SeriesTable, Usage};

/// Default limit of label sets, which is series per family, per agent.
pub const SERIES_MAX_DEFAULT: usize = 10_000;
pub use crate::series::SERIES_IDLE_MAX;

const OPENED: FamilyDesc =
    FamilyDesc::counter("istio_tcp_connections_opened_total", "TCP connections opened.", &TCP_LABEL_NAMES);
const CLOSED: FamilyDesc =
    FamilyDesc::counter("istio_tcp_connections_closed_total", "TCP connections closed.", &TCP_LABEL_NAMES);
const SENT: FamilyDesc = FamilyDesc::counter(
    "istio_tcp_sent_bytes_total",
    "Bytes sent by the destination to the source, counted while connections live.",
    &TCP_LABEL_NAMES,
);
const RECEIVED: FamilyDesc = FamilyDesc::counter(
    "istio_tcp_received_bytes_total",
    "Bytes received by the destination from the source, counted while connections live.",
    &TCP_LABEL_NAMES,
);
/// The families this module exposes.
pub const FAMILIES: [FamilyDesc; 4] = [OPENED, CLOSED, SENT, RECEIVED];

#[derive(Default)]
#[repr(align(64))]
struct Cell {
    opened: AtomicU64,
    closed: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

impl series::Cell for Cell {
    fn activity(&self) -> u64 {
        self.numbers().iter().fold(0, |a, b| a.wrapping_add(*b))
    }
}

impl Cell {
    fn numbers(&self) -> [u64; 4] {
        [&self.opened, &self.closed, &self.sent, &self.received].map(|n| n.load(Relaxed))
    }
}

impl LabelSet for TcpLabels {
    fn overflow() -> Self {
        Self::overflow()
    }
}

/// All `istio_tcp_*` families of one agent. Cloning shares them.
#[derive(Clone)]
pub struct TcpMetrics(Arc<SeriesTable<TcpLabels, Cell>>);

/// One label set as one worker writes it.
#[derive(Clone)]
pub struct TcpHandle(Handle<TcpLabels, Cell>);

impl TcpMetrics {
    /// For `shards` workers and at most `series_max` label sets.
    #[must_use]
    pub fn new(shards: usize, series_max: usize) -> Self {
        Self(Arc::new(SeriesTable::new(shards, series_max)))
    }

    /// The handle of worker `shard` for a label set. Takes a lock: call it once per connection at most, and cache.
    #[must_use]
    pub fn handle(&self, shard: usize, labels: &TcpLabels) -> TcpHandle {
        TcpHandle(self.0.handle(shard, labels))
    }

    /// Drops label sets that no handle refers to and that have not moved for [`SERIES_IDLE_MAX`] at `now`.
    pub fn drop_idle(&self, now: Instant) {
        self.0.drop_idle(now);
    }

    /// Number of label sets held, the overflow series not counted.
    #[must_use]
    pub fn series_count(&self) -> usize {
        self.0.len()
    }

    /// What the registry scrapes.
    #[must_use]
    pub fn collector(&self) -> Box<dyn Collector> {
        let metrics = self.clone();
        FnCollector::boxed(&FAMILIES, move || {
            metrics.drop_idle(Instant::now());
            metrics.collect()
        })
    }

    fn collect(&self) -> Vec<crate::collect::Family> {
        let all = self.0.all();
        let [mut opened, mut closed, mut sent, mut received] = FAMILIES.map(|f| f.family());
        for series in &all {
            let values = series.labels.values();
            let [o, c, s, r] =
                series.cells.iter().map(Cell::numbers).fold([0; 4], |sum, n| std::array::from_fn(|i| sum[i] + n[i]));
            // A label set with flags exists only for ends; one without may have had none yet, but starts at 0.
            if o > 0 || series.labels.response_flags == "-" {
                opened.push(&values, o as f64);
                sent.push(&values, s as f64);
                received.push(&values, r as f64);
            }
            closed.push(&values, c as f64);
        }
        vec![opened, closed, sent, received]
    }

    /// How much of the limit is used.
    pub(crate) fn usage(&self) -> Usage {
        self.0.usage("istio_tcp")
    }
}

impl TcpHandle {
    /// Counts an opened connection.
    pub fn opened(&self) {
        self.cell().opened.fetch_add(1, Relaxed);
    }

    /// Counts a closed connection.
    pub fn closed(&self) {
        self.cell().closed.fetch_add(1, Relaxed);
    }

    /// Counts bytes from the destination to the source.
    pub fn sent(&self, bytes: u64) {
        self.cell().sent.fetch_add(bytes, Relaxed);
    }

    /// Counts bytes from the source to the destination.
    pub fn received(&self, bytes: u64) {
        self.cell().received.fetch_add(bytes, Relaxed);
    }

    fn cell(&self) -> &Cell {
        self.0.cell()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::{Format, encode};
    use crate::labels::{PeerLabels, Reporter, ServiceLabels};

    fn labels(workload: &str) -> TcpLabels {
        let mut source = PeerLabels::unknown();
        source.workload = workload.into();
        TcpLabels {
            reporter: Reporter::Source,
            source,
            destination: PeerLabels::unknown(),
            service: ServiceLabels::unknown(),
            response_flags: "-",
            security: "",
        }
    }

    fn scrape(metrics: &TcpMetrics) -> String {
        let registry = prometheus::Registry::new();
        registry.register(metrics.collector()).unwrap();
        encode(&registry.gather(), Format::Text)
    }

    #[test]
    fn shards_are_summed_and_unknown_is_written_out() {
        let metrics = TcpMetrics::new(2, 10);
        for shard in 0..2 {
            let handle = metrics.handle(shard, &labels("web"));
            handle.opened();
            handle.sent(10);
            handle.received(3);
        }
        let text = scrape(&metrics);
        let line = |family: &str| {
            let prefix = format!("{family}{{");
            text.lines().find(|l| l.starts_with(&prefix)).unwrap_or_else(|| panic!("no {family} in\n{text}")).to_owned()
        };
        assert!(line("istio_tcp_connections_opened_total").ends_with("} 2"));
        assert!(line("istio_tcp_connections_closed_total").ends_with("} 0"));
        assert!(line("istio_tcp_sent_bytes_total").ends_with("} 20"));
        assert!(line("istio_tcp_received_bytes_total").ends_with("} 6"));
        let opened = line("istio_tcp_connections_opened_total");
        for name in TCP_LABEL_NAMES {
            assert!(opened.contains(&format!("{name}=\"")), "{name} missing in {opened}");
        }
        assert!(opened.contains("source_workload=\"web\""), "{opened}");
        assert!(opened.contains("source_canonical_service=\"web\""), "{opened}");
        assert!(opened.contains("source_canonical_revision=\"latest\""), "{opened}");
        assert!(opened.contains("destination_workload=\"unknown\""), "{opened}");
        assert!(opened.contains("destination_canonical_revision=\"unknown\""), "{opened}");
    }

    #[test]
    fn beyond_the_limit_one_overflow_series_takes_all() {
        let metrics = TcpMetrics::new(1, 3);
        for i in 0..10 {
            metrics.handle(0, &labels(&format!("w{i}"))).opened();
        }
        assert_eq!(metrics.series_count(), 3);
        let text = scrape(&metrics);
        let overflow = text.lines().find(|l| l.starts_with("istio_tcp_connections_opened") && l.contains("overflow"));
        assert!(overflow.unwrap().ends_with("} 7"), "{text}");
        assert_eq!((metrics.usage().used, metrics.usage().max, metrics.usage().overflowed), (3, 3, 7));
    }

    #[test]
    fn idle_label_sets_are_dropped_but_never_one_in_use() {
        let metrics = TcpMetrics::new(1, 10);
        let held = metrics.handle(0, &labels("held"));
        metrics.handle(0, &labels("gone")).opened();
        let now = Instant::now();
        metrics.drop_idle(now);
        assert_eq!(metrics.series_count(), 2, "they changed just now");
        metrics.drop_idle(now + SERIES_IDLE_MAX);
        assert_eq!(metrics.series_count(), 1);
        held.opened();
        assert!(scrape(&metrics).contains("source_workload=\"held\""));
    }
}
