//! What one pod may take of the agent: connections, requests in flight, buffered bytes; and what it took: CPU time at poll.
//!
//! Limits come from the snapshot at each check, so a change holds at once. Over the connection limit a connection is refused,
//! over the request limit a request is answered with the reason.
//! Over the byte limit nothing is refused and nothing waits: the pod's connections go on without buffers (see `copy`), which is
//! slower for that pod alone. So no connection ever waits for another's buffer, and there can be no deadlock between them.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use heddle_identity::Lease;
use heddle_model::{ClientAddr, Family, PodUid, Snapshot, Workload, WorkloadPolicies};
use tokio::sync::Semaphore;

use crate::mesh::HANDSHAKES_MAX;
use crate::registry::Conn;

#[derive(Default)]
#[repr(align(64))]
struct CpuCell(AtomicU64);

/// One pod's use, shared by all workers.
pub(crate) struct PodBudget {
    pub(crate) uid: PodUid,
    /// False once detached; the budget lives on until its last connection ends.
    pub(crate) attached: AtomicBool,
    connections: AtomicU32,
    requests: AtomicU32,
    buffered_bytes: AtomicU64,
    refused: AtomicU64,
    requests_refused: AtomicU64,
    cpu_nanos: Box<[CpuCell]>,
    /// Turns of handshakes with peers of the mesh.
    pub(crate) handshakes: Semaphore,
}

/// One pod's use at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodUsage {
    /// Which pod.
    pub uid: PodUid,
    /// Whether its listeners are being served.
    pub attached: bool,
    /// Open connections.
    pub connections: u32,
    /// Connections refused because of `connections_max`.
    pub connections_refused: u64,
    /// HTTP requests in flight.
    pub requests: u32,
    /// Requests refused because of `requests_max`.
    pub requests_refused: u64,
    /// Bytes of buffers its connections hold.
    pub buffered_bytes: u64,
    /// CPU time its connections took in the agent.
    pub cpu: Duration,
}

impl PodBudget {
    pub(crate) fn new(uid: PodUid, workers: usize) -> Self {
        Self {
            uid,
            attached: AtomicBool::new(true),
            connections: AtomicU32::new(0),
            requests: AtomicU32::new(0),
            buffered_bytes: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            requests_refused: AtomicU64::new(0),
            cpu_nanos: (0..workers).map(|_| CpuCell::default()).collect(),
            handshakes: Semaphore::new(HANDSHAKES_MAX),
        }
    }

    /// Takes one connection's place, or counts the refusal.
    pub(crate) fn try_connect(&self, max: u32) -> bool {
        let taken = self.connections.fetch_update(Relaxed, Relaxed, |n| (n < max).then_some(n + 1)).is_ok();
        if !taken {
            self.refused.fetch_add(1, Relaxed);
        }
        taken
    }

    /// Gives a connection's place back.
    pub(crate) fn disconnect(&self) {
        self.connections.fetch_sub(1, Relaxed);
    }

    /// Takes one request's place, or counts the refusal.
    pub(crate) fn try_request(self: &Arc<Self>, max: u32) -> Option<InFlight> {
        let taken = self.requests.fetch_update(Relaxed, Relaxed, |n| (n < max).then_some(n + 1)).is_ok();
        if !taken {
            self.requests_refused.fetch_add(1, Relaxed);
        }
        taken.then(|| InFlight(self.clone()))
    }

    /// Takes `bytes` of buffer if they fit.
    pub(crate) fn try_buffer(&self, bytes: u64, max: u64) -> bool {
        let before = self.buffered_bytes.fetch_add(bytes, Relaxed);
        let fits = before.saturating_add(bytes) <= max;
        if !fits {
            self.buffered_bytes.fetch_sub(bytes, Relaxed);
        }
        fits
    }

    /// Gives buffer back.
    pub(crate) fn unbuffer(&self, bytes: u64) {
        self.buffered_bytes.fetch_sub(bytes, Relaxed);
    }

    /// Adds time a connection of the pod was polled on `worker`.
    pub(crate) fn charge_cpu(&self, worker: usize, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        if let Some(cell) = self.cpu_nanos.get(worker) {
            cell.0.fetch_add(nanos, Relaxed);
        }
    }

    /// Whether anything still refers to the pod.
    pub(crate) fn in_use(&self) -> bool {
        self.attached.load(Relaxed) || self.connections.load(Relaxed) > 0
    }

    pub(crate) fn usage(&self) -> PodUsage {
        PodUsage {
            uid: self.uid.clone(),
            attached: self.attached.load(Relaxed),
            connections: self.connections.load(Relaxed),
            connections_refused: self.refused.load(Relaxed),
            requests: self.requests.load(Relaxed),
            requests_refused: self.requests_refused.load(Relaxed),
            buffered_bytes: self.buffered_bytes.load(Relaxed),
            cpu: Duration::from_nanos(self.cpu_nanos.iter().map(|c| c.0.load(Relaxed)).sum()),
        }
    }
}

/// A request's place, given back when dropped.
pub(crate) struct InFlight(Arc<PodBudget>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Relaxed);
    }
}

static NEXT_SERIAL: AtomicU64 = AtomicU64::new(0);

/// One pod as one worker sees it.
pub(crate) struct Pod {
    pub(crate) budget: Arc<PodBudget>,
    /// Tells this attachment of the pod from every other, for keys.
    pub(crate) serial: u64,
    addresses: Vec<IpAddr>,
    /// What it proves to be, where the agent has identities.
    pub(crate) identity: Option<Arc<Lease>>,
    /// What the snapshot last said: a pod whose object is gone works until its last process exits (FEATURES J7).
    workload: RefCell<Option<Arc<Workload>>>,
    /// The policies that select it, likewise.
    pub(crate) policies: RefCell<Option<Arc<WorkloadPolicies>>>,
}

impl Pod {
    pub(crate) fn new(budget: Arc<PodBudget>, addresses: Vec<IpAddr>, identity: Option<Arc<Lease>>) -> Self {
        let serial = NEXT_SERIAL.fetch_add(1, Relaxed);
        Self { budget, serial, addresses, identity, workload: RefCell::new(None), policies: RefCell::new(None) }
    }

    /// Who it proves to be; empty where the agent has no identities.
    pub(crate) fn principal(&self) -> &str {
        self.identity.as_deref().map_or("", |lease| lease.id().as_str())
    }

    pub(crate) fn uid(&self) -> &PodUid {
        &self.budget.uid
    }

    /// The pod's object, or the last one there was.
    pub(crate) fn workload(&self, snapshot: &Snapshot) -> Option<Arc<Workload>> {
        let mut last = self.workload.borrow_mut();
        if let Some(now) = snapshot.workload(self.uid())
            && !last.as_ref().is_some_and(|l| Arc::ptr_eq(l, now))
        {
            *last = Some(now.clone());
        }
        last.clone()
    }

    /// Whether `ip` is the pod's own.
    pub(crate) fn has_address(&self, ip: IpAddr) -> bool {
        match self.workload.borrow().as_ref() {
            Some(workload) if !workload.addresses.is_empty() => workload.addresses.contains(&ip),
            _ => self.addresses.contains(&ip),
        }
    }

    /// The true address of a client in the pod that came over the pod's loopback: the pod's address of that family and the
    /// client's port. `peer` itself if the pod has no such address.
    pub(crate) fn client(&self, peer: SocketAddr) -> ClientAddr {
        let family = Family::of(peer.ip());
        let own = |list: &[IpAddr]| list.iter().copied().find(|ip| Family::of(*ip) == family);
        let known = self.workload.borrow().as_ref().and_then(|w| own(&w.addresses)).or_else(|| own(&self.addresses));
        ClientAddr::new(known.map_or(peer, |ip| SocketAddr::new(ip, peer.port())))
    }
}

/// Bytes charged to a pod's budget until it is dropped.
pub(crate) struct Charge {
    pod: Rc<Pod>,
    max: u64,
    bytes: usize,
}

impl Charge {
    /// Nothing yet.
    pub(crate) fn new(conn: &Conn) -> Self {
        Self { pod: conn.pod.clone(), max: conn.worker.limits().buffered_bytes_max, bytes: 0 }
    }

    /// Charges for so many in all; false if the budget has no more, and then nothing changes.
    pub(crate) fn to(&mut self, bytes: usize) -> bool {
        if bytes > self.bytes {
            if !self.pod.budget.try_buffer((bytes - self.bytes) as u64, self.max) {
                return false;
            }
        } else {
            self.pod.budget.unbuffer((self.bytes - bytes) as u64);
        }
        self.bytes = bytes;
        true
    }

    /// What is charged.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// All that is charged, as another charge.
    pub(crate) fn hand_over(&mut self) -> Self {
        Self { pod: self.pod.clone(), max: self.max, bytes: std::mem::take(&mut self.bytes) }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.pod.budget.unbuffer(self.bytes as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_hold_and_places_come_back() {
        let budget = Arc::new(PodBudget::new(PodUid::new("a"), 1));
        assert!(budget.try_connect(1) && !budget.try_connect(1));
        budget.disconnect();
        assert!(budget.try_connect(1));
        assert!(budget.try_buffer(60, 100) && !budget.try_buffer(41, 100) && budget.try_buffer(40, 100));
        budget.unbuffer(100);
        let first = budget.try_request(1);
        assert!(first.is_some() && budget.try_request(1).is_none());
        drop(first);
        assert!(budget.try_request(1).is_some());
        budget.charge_cpu(0, Duration::from_nanos(5));
        let usage = budget.usage();
        assert_eq!((usage.connections, usage.connections_refused, usage.buffered_bytes), (1, 1, 0));
        assert_eq!((usage.requests, usage.requests_refused), (0, 1));
        assert_eq!(usage.cpu, Duration::from_nanos(5));
    }

    #[test]
    fn the_client_is_shown_with_the_pods_address_of_its_family() {
        let addresses = vec!["10.1.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        let pod = Pod::new(Arc::new(PodBudget::new(PodUid::new("a"), 1)), addresses, None);
        for (peer, client) in [
            ("127.0.0.1:4000", "10.1.0.5:4000"),
            ("[::1]:4000", "[fd00::5]:4000"),
            ("[::ffff:127.0.0.1]:4000", "10.1.0.5:4000"),
        ] {
            assert_eq!(pod.client(peer.parse().unwrap()).get(), client.parse().unwrap(), "{peer}");
        }
        let v4_only = Pod::new(Arc::new(PodBudget::new(PodUid::new("a"), 1)), vec!["10.1.0.5".parse().unwrap()], None);
        assert_eq!(v4_only.client("[::1]:1".parse().unwrap()).get(), "[::1]:1".parse().unwrap());
    }
}
