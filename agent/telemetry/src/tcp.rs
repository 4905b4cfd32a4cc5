//! Istio-compatible TCP metrics, written from the hot path without sharing.
//!
//! A series is looked up once per connection (cold: one mutex) and holds one padded cell per worker; bytes and ends are
//! relaxed adds to the worker's own cell, summed at scrape. The number of label sets has a limit: what is beyond it goes to
//! one `overflow` series and is counted. A label set that no connection holds and that has not moved for
//! [`SERIES_IDLE_MAX`] is dropped, so churn of pods does not fill the limit for ever.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus::core::Collector;

use crate::collect::{FamilyDesc, FnCollector};
use crate::labels::{TCP_LABEL_NAMES, TcpLabels};

/// Default limit of label sets, which is series per family, per agent.
pub const SERIES_MAX_DEFAULT: usize = 10_000;
/// A label set without an open connection and without a change for this long is dropped at the next scrape. Long enough
/// for any sensible scrape interval to have seen its last value.
pub const SERIES_IDLE_MAX: Duration = Duration::from_secs(3600);

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
const SERIES: FamilyDesc =
    FamilyDesc::gauge("heddle_metrics_series", "Label sets held, by family.", &["family", "bound"]);
const OVERFLOWED: FamilyDesc = FamilyDesc::counter(
    "heddle_metrics_series_overflow_total",
    "Look-ups answered with the overflow series because the limit of label sets was reached.",
    &["family"],
);

/// The families this module exposes.
pub const FAMILIES: [FamilyDesc; 6] = [OPENED, CLOSED, SENT, RECEIVED, SERIES, OVERFLOWED];

#[derive(Default)]
#[repr(align(64))]
struct Cell {
    opened: AtomicU64,
    closed: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

struct Series {
    labels: TcpLabels,
    cells: Box<[Cell]>,
}

struct Entry {
    series: Arc<Series>,
    last_sum: u64,
    changed: Instant,
}

struct Index {
    entries: HashMap<TcpLabels, Entry>,
    overflow: Option<Arc<Series>>,
}

struct Inner {
    shards: usize,
    series_max: usize,
    overflowed: AtomicU64,
    index: Mutex<Index>,
}

/// All `istio_tcp_*` families of one agent. Cloning shares them.
#[derive(Clone)]
pub struct TcpMetrics(Arc<Inner>);

/// One label set as one worker writes it.
#[derive(Clone)]
pub struct TcpHandle {
    series: Arc<Series>,
    shard: usize,
}

impl TcpMetrics {
    /// For `shards` workers and at most `series_max` label sets.
    #[must_use]
    pub fn new(shards: usize, series_max: usize) -> Self {
        let index = Index { entries: HashMap::new(), overflow: None };
        Self(Arc::new(Inner {
            shards: shards.max(1),
            series_max,
            overflowed: AtomicU64::new(0),
            index: Mutex::new(index),
        }))
    }

    /// The handle of worker `shard` for a label set. Takes a lock: call it once per connection at most, and cache.
    #[must_use]
    pub fn handle(&self, shard: usize, labels: &TcpLabels) -> TcpHandle {
        let mut index = self.0.lock();
        let series = match index.entries.get(labels) {
            Some(entry) => entry.series.clone(),
            None if index.entries.len() >= self.0.series_max => {
                self.0.overflowed.fetch_add(1, Relaxed);
                index.overflow.get_or_insert_with(|| self.0.series(TcpLabels::overflow())).clone()
            }
            None => {
                let series = self.0.series(labels.clone());
                let entry = Entry { series: series.clone(), last_sum: 0, changed: Instant::now() };
                index.entries.insert(labels.clone(), entry);
                series
            }
        };
        TcpHandle { series, shard: shard % self.0.shards }
    }

    /// Drops label sets that no handle refers to and that have not moved for [`SERIES_IDLE_MAX`] at `now`.
    pub fn drop_idle(&self, now: Instant) {
        let mut index = self.0.lock();
        let idle: Vec<TcpLabels> = index
            .entries
            .iter_mut()
            .filter_map(|(labels, entry)| {
                let sum = entry.series.sum().iter().fold(0u64, |a, b| a.wrapping_add(*b));
                if sum != entry.last_sum {
                    entry.last_sum = sum;
                    entry.changed = now;
                }
                let idle = now.saturating_duration_since(entry.changed) >= SERIES_IDLE_MAX;
                (idle && Arc::strong_count(&entry.series) == 1).then(|| labels.clone())
            })
            .collect();
        for labels in idle {
            // The lock is held and handles are only made under it: nobody can have got one since the count was 1.
            index.entries.remove(&labels);
        }
    }

    /// Number of label sets held, the overflow series not counted.
    #[must_use]
    pub fn series_count(&self) -> usize {
        self.0.lock().entries.len()
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
        let (all, count) = {
            let index = self.0.lock();
            let all: Vec<_> = index.entries.values().map(|e| e.series.clone()).chain(index.overflow.clone()).collect();
            (all, index.entries.len())
        };
        let [mut opened, mut closed, mut sent, mut received, mut series_use, mut overflowed] =
            FAMILIES.map(|f| f.family());
        for series in &all {
            let values = series.labels.values();
            let [o, c, s, r] = series.sum();
            // A label set with flags exists only for ends; one without may have had none yet, but starts at 0.
            if o > 0 || series.labels.response_flags == "-" {
                opened.push(&values, o as f64);
                sent.push(&values, s as f64);
                received.push(&values, r as f64);
            }
            closed.push(&values, c as f64);
        }
        series_use.push(&["istio_tcp", "used"], count as f64);
        series_use.push(&["istio_tcp", "max"], self.0.series_max as f64);
        overflowed.push(&["istio_tcp"], self.0.overflowed.load(Relaxed) as f64);
        vec![opened, closed, sent, received, series_use, overflowed]
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Index> {
        // No code runs under the lock that could leave the index half changed.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn series(&self, labels: TcpLabels) -> Arc<Series> {
        Arc::new(Series { labels, cells: (0..self.shards).map(|_| Cell::default()).collect() })
    }
}

impl Series {
    fn sum(&self) -> [u64; 4] {
        self.cells.iter().fold([0; 4], |[o, c, s, r], cell| {
            [
                o + cell.opened.load(Relaxed),
                c + cell.closed.load(Relaxed),
                s + cell.sent.load(Relaxed),
                r + cell.received.load(Relaxed),
            ]
        })
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
        &self.series.cells[self.shard]
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
        assert!(text.contains("heddle_metrics_series_overflow_total{family=\"istio_tcp\"} 7"), "{text}");
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
