//! What happens between a pod's agent and the Services it calls: retries, ejections, overflows, faults, mirrored requests. All of it is rare
//! beside requests, so a count may take a lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use prometheus::core::Collector;

use crate::collect::{FamilyDesc, FnCollector};
use crate::series::{self, LabelSet, SeriesTable, Usage};

/// Default limit of label sets per agent.
pub const SERIES_MAX_DEFAULT: usize = 10_000;

const RETRIES: FamilyDesc = FamilyDesc::counter(
    "heddle_upstream_retries_total",
    "Failed attempts by what followed: `retried`, or why there was no further attempt.",
    &["namespace", "service", "outcome"],
);
const EJECTIONS: FamilyDesc = FamilyDesc::counter(
    "heddle_upstream_ejections_total",
    "Endpoints that were ejected by cause, that would have been (`capped`), and that serve again (`readmitted`).",
    &["namespace", "service", "cause"],
);
const OVERFLOWS: FamilyDesc = FamilyDesc::counter(
    "heddle_upstream_overflows_total",
    "Times that a limit of the circuit breaker was reached.",
    &["namespace", "service", "limit"],
);
const FAULTS: FamilyDesc = FamilyDesc::counter(
    "heddle_faults_injected_total",
    "Faults injected into requests.",
    &["namespace", "service", "fault"],
);
const MIRRORED: FamilyDesc = FamilyDesc::counter(
    "heddle_mirrored_requests_total",
    "Copies of requests by how they ended: a status class, `failed`, or `dropped` before they were sent.",
    &["namespace", "service", "outcome"],
);
/// The families this module exposes, in the order of [`Event`].
pub const FAMILIES: [FamilyDesc; 5] = [RETRIES, EJECTIONS, OVERFLOWS, FAULTS, MIRRORED];

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Event {
    /// A failed attempt.
    Retry,
    /// An ejection.
    Ejection,
    /// A limit that was reached.
    Overflow,
    /// A fault.
    Fault,
    /// A copy of a request.
    Mirrored,
}

/// One series.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamLabels {
    /// Of which family.
    pub event: Event,
    /// Of the Service.
    pub namespace: Arc<str>,
    /// Of the Service.
    pub service: Arc<str>,
    /// The value of the family's third label.
    pub word: &'static str,
}

#[derive(Default)]
struct Cell(AtomicU64);

impl series::Cell for Cell {
    fn activity(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl LabelSet for UpstreamLabels {
    fn overflow() -> Self {
        Self { event: Event::Retry, namespace: "overflow".into(), service: "overflow".into(), word: "overflow" }
    }
}

/// The counts of one agent. Cloning shares them.
#[derive(Clone)]
pub struct UpstreamMetrics(Arc<SeriesTable<UpstreamLabels, Cell>>);

impl UpstreamMetrics {
    /// For at most `series_max` label sets.
    #[must_use]
    pub fn new(series_max: usize) -> Self {
        Self(Arc::new(SeriesTable::new(1, series_max)))
    }

    /// Counts one.
    pub fn count(&self, event: Event, namespace: &Arc<str>, service: &Arc<str>, word: &'static str) {
        let (namespace, service) = (namespace.clone(), service.clone());
        self.0.handle(0, &UpstreamLabels { event, namespace, service, word }).cell().0.fetch_add(1, Relaxed);
    }

    /// All counts, in no particular order.
    #[must_use]
    pub fn counts(&self) -> Vec<(UpstreamLabels, u64)> {
        self.0.counts()
    }

    /// What the registry scrapes.
    #[must_use]
    pub fn collector(&self) -> Box<dyn Collector> {
        let metrics = self.clone();
        FnCollector::boxed(&FAMILIES, move || {
            metrics.0.drop_idle(Instant::now());
            let mut families: Vec<_> = FAMILIES.iter().map(FamilyDesc::family).collect();
            for (labels, count) in metrics.counts() {
                if let Some(family) = families.get_mut(labels.event as usize) {
                    family.push(&[&labels.namespace, &labels.service, labels.word], count as f64);
                }
            }
            families
        })
    }

    /// How much of the limit is used.
    pub(crate) fn usage(&self) -> Usage {
        self.0.usage("heddle_upstream")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_counted_apart_and_the_limit_loses_none() {
        let metrics = UpstreamMetrics::new(2);
        let count = |event, service: &str, word| metrics.count(event, &"shop".into(), &service.into(), word);
        count(Event::Retry, "web", "retried");
        count(Event::Retry, "web", "retried");
        count(Event::Ejection, "web", "consecutive_5xx");
        count(Event::Retry, "other", "retried");
        let counts = metrics.counts();
        let of = |event, service: &str| {
            counts
                .iter()
                .filter(|(l, _)| l.event == event && *l.service == *service)
                .map(|(_, count)| count)
                .sum::<u64>()
        };
        assert_eq!((of(Event::Retry, "web"), of(Event::Ejection, "web")), (2, 1));
        assert_eq!((of(Event::Retry, "overflow"), metrics.usage().overflowed), (1, 1));
    }
}
