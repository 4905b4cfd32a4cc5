//! Decisions of policies, by policy, written from the hot path without sharing (see [`crate::series`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use prometheus::core::Collector;

use crate::collect::{FamilyDesc, FnCollector};
use crate::series::{self, Handle, LabelSet, SeriesTable, Usage};

/// Default limit of label sets per agent.
pub const SERIES_MAX_DEFAULT: usize = 10_000;

const DECISIONS: FamilyDesc = FamilyDesc::counter(
    "heddle_policy_decisions_total",
    "Requests and opaque connections that a policy decided about, or would have.",
    &["kind", "policy", "verdict"],
);
/// The families this module exposes.
pub const FAMILIES: [FamilyDesc; 1] = [DECISIONS];

/// What a policy said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PolicyVerdict {
    /// One of its rules let it in.
    Allowed,
    /// One of its rules refused it; without a policy's name: none let it in.
    Denied,
    /// It is only tried, and would have refused it; without a policy's name: none of those would have let it in.
    WouldDeny,
    /// An Audit rule matched.
    Audited,
}

impl PolicyVerdict {
    /// Every verdict.
    pub const ALL: [Self; 4] = [Self::Allowed, Self::Denied, Self::WouldDeny, Self::Audited];

    /// The word of the label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::WouldDeny => "would_deny",
            Self::Audited => "audited",
        }
    }
}

/// One series.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PolicyLabels {
    /// `AuthorizationPolicy` or `NetworkPolicy`.
    pub kind: &'static str,
    /// `namespace/name`; empty where it follows from no single one.
    pub policy: Arc<str>,
    /// What it said.
    pub verdict: PolicyVerdict,
}

#[derive(Default)]
#[repr(align(64))]
struct Cell(AtomicU64);

impl series::Cell for Cell {
    fn activity(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl LabelSet for PolicyLabels {
    fn overflow() -> Self {
        Self { kind: "overflow", policy: "overflow".into(), verdict: PolicyVerdict::Denied }
    }
}

/// The decisions of one agent. Cloning shares them.
#[derive(Clone)]
pub struct PolicyMetrics(Arc<SeriesTable<PolicyLabels, Cell>>);

/// One series as one worker writes it.
#[derive(Clone)]
pub struct PolicyHandle(Handle<PolicyLabels, Cell>);

impl PolicyMetrics {
    /// For `shards` workers and at most `series_max` label sets.
    #[must_use]
    pub fn new(shards: usize, series_max: usize) -> Self {
        Self(Arc::new(SeriesTable::new(shards, series_max)))
    }

    /// The handle of worker `shard` for a series. Takes a lock: keep it.
    #[must_use]
    pub fn handle(&self, shard: usize, labels: &PolicyLabels) -> PolicyHandle {
        PolicyHandle(self.0.handle(shard, labels))
    }

    /// How often each policy decided, in no particular order.
    #[must_use]
    pub fn counts(&self) -> Vec<(PolicyLabels, u64)> {
        self.0.counts()
    }

    /// What the registry scrapes.
    #[must_use]
    pub fn collector(&self) -> Box<dyn Collector> {
        let metrics = self.clone();
        FnCollector::boxed(&FAMILIES, move || {
            metrics.0.drop_idle(Instant::now());
            let mut decisions = DECISIONS.family();
            for (labels, count) in metrics.counts() {
                decisions.push(&[labels.kind, &labels.policy, labels.verdict.as_str()], count as f64);
            }
            vec![decisions]
        })
    }

    /// How much of the limit is used.
    pub(crate) fn usage(&self) -> Usage {
        self.0.usage("heddle_policy")
    }
}

impl PolicyHandle {
    /// Counts one decision.
    pub fn count(&self) {
        self.0.cell().0.fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_summed_and_the_limit_loses_no_count() {
        let metrics = PolicyMetrics::new(2, 2);
        let labels =
            |policy: &str, verdict| PolicyLabels { kind: "AuthorizationPolicy", policy: policy.into(), verdict };
        for shard in 0..2 {
            metrics.handle(shard, &labels("shop/a", PolicyVerdict::Denied)).count();
        }
        for policy in ["shop/b", "shop/c", "shop/d"] {
            metrics.handle(0, &labels(policy, PolicyVerdict::Allowed)).count();
        }
        let counts = metrics.counts();
        let of = |policy: &str| counts.iter().find(|(l, _)| *l.policy == *policy).map(|(_, count)| *count);
        assert_eq!((of("shop/a"), of("shop/b"), of("overflow")), (Some(2), Some(1), Some(2)));
        assert_eq!((metrics.usage().used, metrics.usage().overflowed), (2, 2));
    }
}
