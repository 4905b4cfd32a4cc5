//! What is counted: requests to the issuer, certificates by state and end, handshakes by side and failure.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use heddle_telemetry::collect::{Family, FamilyDesc, FnCollector};
use prometheus::core::Collector;

use crate::failure::HandshakeFailure;
use crate::issuer::IssueErrorKind;
use crate::rotation::State;
use crate::store::CertificateStore;

const REQUESTS: FamilyDesc = FamilyDesc::counter(
    "heddle_certificate_requests_total",
    "Requests to the issuer that ended, by result.",
    &["result"],
);
const OPEN: FamilyDesc =
    FamilyDesc::gauge("heddle_certificate_requests_open", "Requests the issuer has not answered.", &[]);
const CERTIFICATES: FamilyDesc = FamilyDesc::gauge(
    "heddle_certificates",
    "Service accounts of this node by the state of their certificate.",
    &["state"],
);
const NOT_AFTER: FamilyDesc = FamilyDesc::gauge(
    "heddle_certificate_not_after_timestamp_seconds",
    "When the certificate in use ends, seconds since 1970.",
    &["identity"],
);
const SILENT: FamilyDesc = FamilyDesc::gauge(
    "heddle_certificate_issuer_silent_seconds",
    "How long the issuer has not answered, since the first attempt in vain; 0 while it does.",
    &[],
);
const LEFT_OUT: FamilyDesc = FamilyDesc::gauge(
    "heddle_certificates_left_out",
    "Accounts whose keys the keeper's memory has no room for: after a restart of the agent they wait for the issuer.",
    &[],
);
const WAITS: FamilyDesc = FamilyDesc::counter(
    "heddle_certificate_wait_timeouts_total",
    "Handshakes that waited for their own certificate in vain.",
    &[],
);
const GENERATION: FamilyDesc =
    FamilyDesc::gauge("heddle_trust_bundle_generation", "Generation of the trust bundles in use.", &[]);
const ROOTS: FamilyDesc = FamilyDesc::gauge("heddle_trust_bundle_roots", "Roots trusted.", &["trust_domain"]);
const ROOTS_NOT_AFTER: FamilyDesc = FamilyDesc::gauge(
    "heddle_trust_bundle_not_after_timestamp_seconds",
    "When the last root of the trust domain ends, seconds since 1970.",
    &["trust_domain"],
);
const HANDSHAKES: FamilyDesc =
    FamilyDesc::counter("heddle_tls_handshakes_total", "Mesh TLS handshakes completed.", &["side"]);
const HANDSHAKE_FAILURES: FamilyDesc =
    FamilyDesc::counter("heddle_tls_handshake_failures_total", "Mesh TLS handshakes failed.", &["side", "reason"]);
const HANDSHAKES_UNDER_WAY: FamilyDesc = FamilyDesc::gauge(
    "heddle_tls_handshakes_under_way",
    "Mesh TLS handshakes that have begun and not ended.",
    &["side"],
);

/// The families of a certificate store.
pub const STORE_FAMILIES: [FamilyDesc; 10] =
    [REQUESTS, OPEN, SILENT, CERTIFICATES, NOT_AFTER, LEFT_OUT, WAITS, GENERATION, ROOTS, ROOTS_NOT_AFTER];
/// The families of handshakes.
pub const HANDSHAKE_FAMILIES: [FamilyDesc; 3] = [HANDSHAKES, HANDSHAKE_FAILURES, HANDSHAKES_UNDER_WAY];

/// Counters of the store.
#[derive(Debug, Default)]
pub struct StoreMetrics {
    issued: AtomicU64,
    failed: [AtomicU64; IssueErrorKind::ALL.len()],
    waits_timed_out: AtomicU64,
    left_out: AtomicU64,
}

impl StoreMetrics {
    pub(crate) fn issued(&self) {
        self.issued.fetch_add(1, Relaxed);
    }

    pub(crate) fn failed(&self, kind: IssueErrorKind) {
        self.failed[kind as usize].fetch_add(1, Relaxed);
    }

    pub(crate) fn wait_timed_out(&self) {
        self.waits_timed_out.fetch_add(1, Relaxed);
    }

    /// Of the last export.
    pub(crate) fn left_out(&self, accounts: usize) {
        self.left_out.store(accounts as u64, Relaxed);
    }

    /// Certificates that came and were found good.
    #[must_use]
    pub fn issued_total(&self) -> u64 {
        self.issued.load(Relaxed)
    }

    /// Requests that failed in this way.
    #[must_use]
    pub fn failed_total(&self, kind: IssueErrorKind) -> u64 {
        self.failed[kind as usize].load(Relaxed)
    }
}

/// What the registry scrapes of a store.
#[must_use]
pub fn store_collector(store: &CertificateStore) -> Box<dyn Collector> {
    let store = store.clone();
    FnCollector::boxed(&STORE_FAMILIES, move || collect_store(&store))
}

fn collect_store(store: &CertificateStore) -> Vec<Family> {
    let families = STORE_FAMILIES.map(|family| family.family());
    let [mut requests, mut open, mut silent, mut certificates, mut not_after, mut left_out, rest @ ..] = families;
    let [mut waits, mut generation, mut roots, mut ends] = rest;
    let metrics = store.metrics();
    requests.push(&["issued"], metrics.issued_total() as f64);
    for kind in IssueErrorKind::ALL {
        requests.push(&[kind.as_str()], metrics.failed_total(kind) as f64);
    }
    open.push(&[], store.open_requests() as f64);
    let silence = store.issuer_status().silence;
    silent.push(&[], silence.map(|silence| silence.lasts).unwrap_or_default().as_secs_f64());
    left_out.push(&[], metrics.left_out.load(Relaxed) as f64);
    let status = store.status();
    for state in State::ALL {
        certificates.push(&[state.as_str()], status.iter().filter(|row| row.state == state).count() as f64);
    }
    for row in &status {
        if let Some(facts) = &row.certificate {
            not_after.push(&[row.id.as_str()], facts.validity.not_after.as_secs_f64());
        }
    }
    waits.push(&[], metrics.waits_timed_out.load(Relaxed) as f64);
    let bundles = store.bundles().current();
    generation.push(&[], bundles.generation() as f64);
    for (domain, set) in bundles.iter() {
        roots.push(&[domain.as_str()], set.certificates().len() as f64);
        ends.push(&[domain.as_str()], set.not_after().as_secs_f64());
    }
    vec![requests, open, silent, certificates, not_after, left_out, waits, generation, roots, ends]
}

/// Which side of a handshake this agent was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// We called.
    Client,
    /// We were called.
    Server,
}

impl Side {
    const ALL: [Self; 2] = [Self::Client, Self::Server];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct Shard {
    done: [AtomicU64; 2],
    failed: [[AtomicU64; HandshakeFailure::ALL.len()]; 2],
    under_way: [AtomicU64; 2],
}

/// Handshakes, one padded block per worker. Cloning shares them.
#[derive(Clone, Debug)]
pub struct HandshakeMetrics(Arc<[Shard]>);

impl HandshakeMetrics {
    /// For `workers` workers.
    #[must_use]
    pub fn new(workers: usize) -> Self {
        Self((0..workers.max(1)).map(|_| Shard::default()).collect())
    }

    /// A handshake of `worker` ended.
    pub fn record(&self, worker: usize, side: Side, result: Result<(), HandshakeFailure>) {
        let shard = &self.0[worker % self.0.len()];
        match result {
            Ok(()) => &shard.done[side as usize],
            Err(failure) => &shard.failed[side as usize][failure as usize],
        }
        .fetch_add(1, Relaxed);
    }

    /// A handshake of `worker` is under way until the guard is dropped.
    #[must_use]
    pub fn begin(&self, worker: usize, side: Side) -> UnderWay {
        let under_way = UnderWay { metrics: self.clone(), worker: worker % self.0.len(), side };
        under_way.count().fetch_add(1, Relaxed);
        under_way
    }

    /// Under way, over all workers.
    #[must_use]
    pub fn under_way(&self, side: Side) -> u64 {
        self.0.iter().map(|shard| shard.under_way[side as usize].load(Relaxed)).sum()
    }

    /// Completed, over all workers.
    #[must_use]
    pub fn completed(&self, side: Side) -> u64 {
        self.0.iter().map(|shard| shard.done[side as usize].load(Relaxed)).sum()
    }

    /// Failed in this way, over all workers.
    #[must_use]
    pub fn failed(&self, side: Side, failure: HandshakeFailure) -> u64 {
        self.0.iter().map(|shard| shard.failed[side as usize][failure as usize].load(Relaxed)).sum()
    }

    /// What the registry scrapes.
    #[must_use]
    pub fn collector(&self) -> Box<dyn Collector> {
        let metrics = self.clone();
        FnCollector::boxed(&HANDSHAKE_FAMILIES, move || {
            let [mut done, mut failed, mut under_way] = HANDSHAKE_FAMILIES.map(|family| family.family());
            for side in Side::ALL {
                done.push(&[side.as_str()], metrics.completed(side) as f64);
                under_way.push(&[side.as_str()], metrics.under_way(side) as f64);
                for failure in HandshakeFailure::ALL {
                    let count = metrics.failed(side, failure);
                    if count > 0 {
                        failed.push(&[side.as_str(), failure.as_str()], count as f64);
                    }
                }
            }
            vec![done, failed, under_way]
        })
    }
}

/// One handshake that has begun.
#[derive(Debug)]
pub struct UnderWay {
    metrics: HandshakeMetrics,
    worker: usize,
    side: Side,
}

impl UnderWay {
    fn count(&self) -> &AtomicU64 {
        &self.metrics.0[self.worker].under_way[self.side as usize]
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.count().fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_state_and_result_is_documented() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md");
        let text = std::fs::read_to_string(path).expect("docs/metrics.md");
        for family in STORE_FAMILIES.iter().chain(&HANDSHAKE_FAMILIES) {
            assert!(family.desc().is_some(), "{} is no legal name", family.name);
            let row = text.lines().find(|line| line.contains(&format!("`{}`", family.name)));
            let row = row.unwrap_or_else(|| panic!("{} is not in docs/metrics.md", family.name));
            for label in family.labels {
                assert!(row.contains(&format!("`{label}`")), "label {label} of {} is not in its row", family.name);
            }
        }
        let words = State::ALL.iter().map(|state| state.as_str());
        let words = words.chain(IssueErrorKind::ALL.iter().map(|kind| kind.as_str()));
        for word in words.chain(HandshakeFailure::ALL.iter().map(|failure| failure.as_str())) {
            assert!(text.contains(&format!("`{word}`")), "{word} is not in docs/metrics.md");
        }
    }

    #[test]
    fn handshakes_are_counted_by_side_and_failure_over_all_workers() {
        let metrics = HandshakeMetrics::new(3);
        for worker in 0..6 {
            metrics.record(worker, Side::Server, Err(HandshakeFailure::Expired));
            metrics.record(worker, Side::Client, Ok(()));
        }
        assert_eq!(metrics.failed(Side::Server, HandshakeFailure::Expired), 6);
        assert_eq!(metrics.failed(Side::Client, HandshakeFailure::Expired), 0);
        assert_eq!((metrics.completed(Side::Client), metrics.completed(Side::Server)), (6, 0));
        let families = metrics.collector().collect();
        let failed = families[1].get_metric();
        assert_eq!((families.len(), failed.len()), (3, 1));
        assert_eq!(failed[0].get_label()[1].value(), "tls_expired");
        let (one, _other) = (metrics.begin(4, Side::Server), metrics.begin(0, Side::Server));
        assert_eq!((metrics.under_way(Side::Server), metrics.under_way(Side::Client)), (2, 0));
        drop(one);
        assert_eq!(metrics.under_way(Side::Server), 1);
    }
}
