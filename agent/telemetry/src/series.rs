//! Series written from the hot path without sharing: one padded cell per worker, summed at scrape.
//!
//! A label set is looked up once (cold: one mutex) and kept as a [`Handle`]. The number of label sets has a limit: what is
//! beyond it goes to one `overflow` series and is counted. A label set that nobody holds and that has not moved for
//! [`SERIES_IDLE_MAX`] is dropped, so churn of pods does not fill the limit for ever.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus::core::Collector;

use crate::collect::{FamilyDesc, FnCollector};
use crate::{HttpMetrics, PolicyMetrics, TcpMetrics, UpstreamMetrics};

const SERIES: FamilyDesc =
    FamilyDesc::gauge("heddle_metrics_series", "Label sets held, by family.", &["family", "bound"]);
const OVERFLOWED: FamilyDesc = FamilyDesc::counter(
    "heddle_metrics_series_overflow_total",
    "Look-ups answered with the overflow series because the limit of label sets was reached.",
    &["family"],
);

/// The families this module exposes.
pub const FAMILIES: [FamilyDesc; 2] = [SERIES, OVERFLOWED];

/// A label set without a holder and without a change for this long is dropped at the next scrape. Long enough for any
/// sensible scrape interval to have seen its last value.
pub const SERIES_IDLE_MAX: Duration = Duration::from_secs(3600);

/// A label set.
pub(crate) trait LabelSet: Clone + Eq + Hash {
    /// The series that collects everything beyond the limit.
    fn overflow() -> Self;
}

/// One worker's numbers of one series.
pub(crate) trait Cell: Default {
    /// A number that changes whenever any of them does.
    fn activity(&self) -> u64;
}

/// One label set and its cells.
pub(crate) struct Series<L, C> {
    pub(crate) labels: L,
    pub(crate) cells: Box<[C]>,
}

/// One label set as one worker writes it.
pub(crate) struct Handle<L, C> {
    series: Arc<Series<L, C>>,
    shard: usize,
}

impl<L, C> Clone for Handle<L, C> {
    fn clone(&self) -> Self {
        Self { series: self.series.clone(), shard: self.shard }
    }
}

impl<L, C> Handle<L, C> {
    pub(crate) fn cell(&self) -> &C {
        &self.series.cells[self.shard]
    }
}

struct Entry<L, C> {
    series: Arc<Series<L, C>>,
    last_sum: u64,
    changed: Instant,
}

struct Index<L, C> {
    entries: HashMap<L, Entry<L, C>>,
    overflow: Option<Arc<Series<L, C>>>,
}

/// How much of a limit of label sets is used.
pub(crate) struct Usage {
    pub(crate) family: &'static str,
    pub(crate) used: usize,
    pub(crate) max: usize,
    pub(crate) overflowed: u64,
}

/// What the registry scrapes about the limits themselves.
#[must_use]
pub fn collector(
    tcp: &TcpMetrics,
    http: &HttpMetrics,
    policy: &PolicyMetrics,
    upstream: &UpstreamMetrics,
) -> Box<dyn Collector> {
    let (tcp, http, policy, upstream) = (tcp.clone(), http.clone(), policy.clone(), upstream.clone());
    FnCollector::boxed(&FAMILIES, move || {
        let [mut series, mut overflowed] = FAMILIES.map(|f| f.family());
        for usage in [tcp.usage(), http.usage(), policy.usage(), upstream.usage()] {
            series.push(&[usage.family, "used"], usage.used as f64);
            series.push(&[usage.family, "max"], usage.max as f64);
            overflowed.push(&[usage.family], usage.overflowed as f64);
        }
        vec![series, overflowed]
    })
}

/// All label sets of one kind.
pub(crate) struct SeriesTable<L, C> {
    shards: usize,
    series_max: usize,
    overflowed: AtomicU64,
    index: Mutex<Index<L, C>>,
}

impl<L: LabelSet, C: Cell> SeriesTable<L, C> {
    /// For `shards` workers and at most `series_max` label sets.
    pub(crate) fn new(shards: usize, series_max: usize) -> Self {
        let index = Mutex::new(Index { entries: HashMap::new(), overflow: None });
        Self { shards: shards.max(1), series_max, overflowed: AtomicU64::new(0), index }
    }

    /// The handle of worker `shard` for a label set. Takes a lock: keep what it returns.
    pub(crate) fn handle(&self, shard: usize, labels: &L) -> Handle<L, C> {
        let mut index = self.lock();
        let series = match index.entries.get(labels) {
            Some(entry) => entry.series.clone(),
            None if index.entries.len() >= self.series_max => {
                self.overflowed.fetch_add(1, Relaxed);
                index.overflow.get_or_insert_with(|| self.series(L::overflow())).clone()
            }
            None => {
                let series = self.series(labels.clone());
                let entry = Entry { series: series.clone(), last_sum: 0, changed: Instant::now() };
                index.entries.insert(labels.clone(), entry);
                series
            }
        };
        Handle { series, shard: shard % self.shards }
    }

    /// Drops label sets that no handle refers to and that have not moved for [`SERIES_IDLE_MAX`] at `now`.
    pub(crate) fn drop_idle(&self, now: Instant) {
        let mut index = self.lock();
        // The lock is held and handles are only made under it: nobody can get one while the count is 1.
        index.entries.retain(|_, entry| {
            let sum = entry.series.cells.iter().fold(0u64, |sum, cell| sum.wrapping_add(cell.activity()));
            if sum != entry.last_sum {
                entry.last_sum = sum;
                entry.changed = now;
            }
            let idle = now.saturating_duration_since(entry.changed) >= SERIES_IDLE_MAX;
            !idle || Arc::strong_count(&entry.series) > 1
        });
    }

    /// Every series, the overflow series last.
    pub(crate) fn all(&self) -> Vec<Arc<Series<L, C>>> {
        let index = self.lock();
        index.entries.values().map(|e| e.series.clone()).chain(index.overflow.clone()).collect()
    }

    /// The activity of every series over all shards: the count, where cells are counters.
    pub(crate) fn counts(&self) -> Vec<(L, u64)> {
        let sum = |cells: &[C]| cells.iter().map(Cell::activity).sum();
        self.all().iter().map(|series| (series.labels.clone(), sum(&series.cells))).collect()
    }

    /// Number of label sets held, the overflow series not counted.
    pub(crate) fn len(&self) -> usize {
        self.lock().entries.len()
    }

    /// How much of the limit is used, under the name of its families.
    pub(crate) fn usage(&self, family: &'static str) -> Usage {
        Usage { family, used: self.len(), max: self.series_max, overflowed: self.overflowed.load(Relaxed) }
    }

    fn series(&self, labels: L) -> Arc<Series<L, C>> {
        Arc::new(Series { labels, cells: (0..self.shards).map(|_| C::default()).collect() })
    }

    fn lock(&self) -> MutexGuard<'_, Index<L, C>> {
        // No code runs under the lock that could leave the index half changed.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
