//! Counters of the data plane itself: accepted, ended by reason, dial failures, buffers. One padded block per worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus::core::Collector;

use crate::collect::{FamilyDesc, FnCollector};
use crate::reason::Reason;

const ACCEPTED: FamilyDesc =
    FamilyDesc::counter("heddle_tcp_connections_accepted_total", "Captured connections accepted.", &["direction"]);
const ENDED: FamilyDesc =
    FamilyDesc::counter("heddle_tcp_connections_ended_total", "Captured connections ended.", &["direction", "reason"]);
const OPEN: FamilyDesc = FamilyDesc::gauge("heddle_tcp_connections_open", "Captured connections open.", &["direction"]);
const DIAL_FAILURES: FamilyDesc = FamilyDesc::counter(
    "heddle_tcp_dial_failures_total",
    "Attempts to connect upstream that failed, whether or not another succeeded.",
    &["reason"],
);
const ACCEPT_ERRORS: FamilyDesc =
    FamilyDesc::counter("heddle_tcp_accept_errors_total", "Failed accept calls.", &["kind"]);
const BUDGET: FamilyDesc = FamilyDesc::counter(
    "heddle_pod_budget_exceeded_total",
    "Times a pod's budget made the agent refuse a connection or a request, or carry bytes unbuffered.",
    &["reason"],
);
const BUFFERS: FamilyDesc =
    FamilyDesc::gauge("heddle_proxy_buffer_bytes", "Copy buffers: lent to connections, kept for reuse.", &["state"]);

/// The families this module exposes.
pub const FAMILIES: [FamilyDesc; 7] = [ACCEPTED, ENDED, OPEN, DIAL_FAILURES, ACCEPT_ERRORS, BUDGET, BUFFERS];

/// Which of a pod's two listeners accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// The pod called.
    Outbound,
    /// The pod was called.
    Inbound,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Outbound, Self::Inbound];

    /// `outbound` or `inbound`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// Why accept failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptError {
    /// The process or the system has no file descriptor or memory left; the listener backs off.
    Exhausted,
    /// The connection ended before it was accepted.
    Aborted,
    /// Anything else.
    Other,
}

impl AcceptError {
    const ALL: [Self; 3] = [Self::Exhausted, Self::Aborted, Self::Other];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Exhausted => "exhausted",
            Self::Aborted => "aborted",
            Self::Other => "other",
        }
    }
}

const REASONS: usize = Reason::ALL.len();

/// One worker's counters.
#[repr(align(64))]
pub struct ProxyShard {
    accepted: [AtomicU64; 2],
    ended: [[AtomicU64; REASONS]; 2],
    dial_failures: [AtomicU64; REASONS],
    budget: [AtomicU64; REASONS],
    accept_errors: [AtomicU64; 3],
    buffer_lent: AtomicU64,
    buffer_kept: AtomicU64,
}

/// All workers' counters. Cloning shares them.
#[derive(Clone)]
pub struct ProxyMetrics(Arc<[ProxyShard]>);

impl ProxyMetrics {
    /// For `shards` workers.
    #[must_use]
    pub fn new(shards: usize) -> Self {
        Self((0..shards.max(1)).map(|_| ProxyShard::new()).collect())
    }

    /// Number of shards.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.0.len()
    }

    /// Worker `shard`'s counters.
    #[must_use]
    pub fn shard(&self, shard: usize) -> &ProxyShard {
        &self.0[shard % self.0.len()]
    }

    /// Connections that ended with `reason`, over all workers.
    #[must_use]
    pub fn ended(&self, direction: Direction, reason: Reason) -> u64 {
        self.sum(|s| &s.ended[direction as usize][reason as usize])
    }

    /// Accepted connections over all workers.
    #[must_use]
    pub fn accepted(&self, direction: Direction) -> u64 {
        self.sum(|s| &s.accepted[direction as usize])
    }

    /// Failed dials with `reason` over all workers.
    #[must_use]
    pub fn dial_failures(&self, reason: Reason) -> u64 {
        self.sum(|s| &s.dial_failures[reason as usize])
    }

    /// Times a budget was exceeded, over all workers.
    #[must_use]
    pub fn budget_exceeded(&self, reason: Reason) -> u64 {
        self.sum(|s| &s.budget[reason as usize])
    }

    /// Bytes of buffers lent to connections now, over all workers.
    #[must_use]
    pub fn buffer_lent(&self) -> u64 {
        self.sum(|s| &s.buffer_lent)
    }

    fn sum(&self, cell: impl Fn(&ProxyShard) -> &AtomicU64) -> u64 {
        self.0.iter().map(|s| cell(s).load(Relaxed)).sum()
    }

    /// What the registry scrapes.
    #[must_use]
    pub fn collector(&self) -> Box<dyn Collector> {
        let metrics = self.clone();
        FnCollector::boxed(&FAMILIES, move || metrics.collect())
    }

    fn collect(&self) -> Vec<crate::collect::Family> {
        let [mut accepted, mut ended, mut open, mut dial, mut accept, mut budget, mut buffers] =
            FAMILIES.map(|f| f.family());
        for direction in Direction::ALL {
            // Ends are read before accepts, so that the difference is never negative.
            let ends: Vec<u64> = Reason::ALL.iter().map(|&r| self.ended(direction, r)).collect();
            let accepts = self.accepted(direction);
            accepted.push(&[direction.as_str()], accepts as f64);
            open.push(&[direction.as_str()], accepts.saturating_sub(ends.iter().sum()) as f64);
            for (reason, count) in Reason::ALL.iter().zip(ends) {
                // Reasons that never happened are left out, except the good one.
                if count > 0 || reason.is_success() {
                    ended.push(&[direction.as_str(), reason.as_str()], count as f64);
                }
            }
        }
        for &reason in Reason::ALL {
            let failures = self.dial_failures(reason);
            if failures > 0 {
                dial.push(&[reason.as_str()], failures as f64);
            }
        }
        for reason in [Reason::PodConnectionsMax, Reason::PodBufferedBytesMax] {
            budget.push(&[reason.as_str()], self.budget_exceeded(reason) as f64);
        }
        for kind in AcceptError::ALL {
            accept.push(&[kind.as_str()], self.sum(|s| &s.accept_errors[kind as usize]) as f64);
        }
        buffers.push(&["lent"], self.buffer_lent() as f64);
        buffers.push(&["kept"], self.sum(|s| &s.buffer_kept) as f64);
        vec![accepted, ended, open, dial, accept, budget, buffers]
    }
}

impl ProxyShard {
    fn new() -> Self {
        let zeros = || std::array::from_fn(|_| AtomicU64::new(0));
        Self {
            accepted: [AtomicU64::new(0), AtomicU64::new(0)],
            ended: [zeros(), zeros()],
            dial_failures: zeros(),
            budget: zeros(),
            accept_errors: std::array::from_fn(|_| AtomicU64::new(0)),
            buffer_lent: AtomicU64::new(0),
            buffer_kept: AtomicU64::new(0),
        }
    }

    /// A connection was accepted.
    pub fn count_accepted(&self, direction: Direction) {
        self.accepted[direction as usize].fetch_add(1, Relaxed);
    }

    /// A connection ended.
    pub fn count_ended(&self, direction: Direction, reason: Reason) {
        self.ended[direction as usize][reason as usize].fetch_add(1, Relaxed);
    }

    /// An attempt to connect upstream failed.
    pub fn count_dial_failure(&self, reason: Reason) {
        self.dial_failures[reason as usize].fetch_add(1, Relaxed);
    }

    /// A budget was exceeded.
    pub fn count_budget_exceeded(&self, reason: Reason) {
        self.budget[reason as usize].fetch_add(1, Relaxed);
    }

    /// An accept call failed.
    pub fn count_accept_error(&self, kind: AcceptError) {
        self.accept_errors[kind as usize].fetch_add(1, Relaxed);
    }

    /// Sizes of the worker's buffer pool, bytes.
    pub fn set_buffers(&self, lent: u64, kept: u64) {
        self.buffer_lent.store(lent, Relaxed);
        self.buffer_kept.store(kept, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::{Format, encode};

    #[test]
    fn open_is_accepted_less_ended_over_all_workers() {
        let metrics = ProxyMetrics::new(2);
        for shard in 0..2 {
            metrics.shard(shard).count_accepted(Direction::Inbound);
        }
        metrics.shard(1).count_ended(Direction::Inbound, Reason::DownstreamReset);
        let registry = prometheus::Registry::new();
        registry.register(metrics.collector()).unwrap();
        let text = encode(&registry.gather(), Format::Text);
        for line in [
            "heddle_tcp_connections_accepted_total{direction=\"inbound\"} 2",
            "heddle_tcp_connections_open{direction=\"inbound\"} 1",
            "heddle_tcp_connections_ended_total{direction=\"inbound\",reason=\"downstream_reset\"} 1",
            "heddle_tcp_connections_ended_total{direction=\"outbound\",reason=\"completed\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "no {line} in\n{text}");
        }
    }
}
