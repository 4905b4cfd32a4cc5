//! From what a connection knows to its metric series: a per-worker cache in front of the shared index.
//!
//! Keys compare by pointer, which is cheap, and hold what they point to, so a pointer never means something else. The cache is
//! emptied when the snapshot changes or it is full; the series live on in the index.

use std::cell::{Cell, RefCell};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use heddle_model::{MeshConfig, Service, Workload};
use heddle_telemetry::{Direction, PeerLabels, Reporter, ServiceLabels, TcpHandle, TcpLabels};

use crate::hash::FastMap;
use crate::worker::Worker;

/// Entries before the cache starts anew.
const CACHE_MAX: usize = 4096;

/// Everything the labels follow from, besides mesh-wide settings.
#[derive(Clone)]
pub(crate) struct LabelKey {
    pub(crate) direction: Direction,
    pub(crate) flags: &'static str,
    pub(crate) source: Option<Arc<Workload>>,
    pub(crate) destination: Option<Arc<Workload>>,
    pub(crate) service: Option<Arc<Service>>,
    pub(crate) external: bool,
    /// Both ends proved who they are.
    pub(crate) is_authenticated: bool,
}

impl LabelKey {
    fn identity(&self) -> (Direction, &'static str, usize, usize, usize, bool, bool) {
        fn at<T>(arc: &Option<Arc<T>>) -> usize {
            arc.as_ref().map_or(0, |a| Arc::as_ptr(a).addr())
        }
        (
            self.direction,
            self.flags,
            at(&self.source),
            at(&self.destination),
            at(&self.service),
            self.external,
            self.is_authenticated,
        )
    }

    /// The label set itself.
    pub(crate) fn labels(&self, mesh: &MeshConfig) -> TcpLabels {
        let peer = |w: &Option<Arc<Workload>>| {
            w.as_ref().map(|w| {
                let mut labels = PeerLabels::of(w, mesh);
                if self.is_authenticated {
                    let (domain, namespace, account) = (&mesh.trust_domain, &w.namespace, &w.service_account);
                    labels.principal = format!("spiffe://{domain}/ns/{namespace}/sa/{account}").into();
                }
                labels
            })
        };
        TcpLabels {
            reporter: match self.direction {
                Direction::Outbound => Reporter::Source,
                Direction::Inbound => Reporter::Destination,
            },
            source: peer(&self.source).unwrap_or_else(PeerLabels::unknown),
            destination: peer(&self.destination).unwrap_or_else(PeerLabels::unknown),
            service: match &self.service {
                Some(service) => ServiceLabels::of(service, mesh),
                None if self.external => ServiceLabels::passthrough(),
                None => ServiceLabels::unknown(),
            },
            response_flags: self.flags,
            // Istio: only the destination's reporter knows what the transport was; the source's says unknown.
            security: match self.direction {
                Direction::Outbound => "",
                Direction::Inbound if self.is_authenticated => "mutual_tls",
                Direction::Inbound => "none",
            },
        }
    }
}

impl LabelKey {
    /// The cells of its series.
    pub(crate) fn handle(&self, worker: &Worker) -> TcpHandle {
        worker.labels.handle(worker, self, |mesh| worker.telemetry.tcp.handle(worker.index, &self.labels(mesh)))
    }
}

impl PartialEq for LabelKey {
    fn eq(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }
}

impl Eq for LabelKey {}

impl Hash for LabelKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

/// One worker's cache from what labels follow from to the cells of their series, as of one snapshot.
pub(crate) struct LabelCache<K, H> {
    generation: Cell<u64>,
    handles: RefCell<FastMap<K, H>>,
}

impl<K, H> Default for LabelCache<K, H> {
    fn default() -> Self {
        Self { generation: Cell::new(0), handles: RefCell::default() }
    }
}

impl<K: Clone + Eq + Hash, H: Clone> LabelCache<K, H> {
    /// The handle of `key`; `make` is asked where it is not known.
    pub(crate) fn handle(&self, worker: &Worker, key: &K, make: impl FnOnce(&MeshConfig) -> H) -> H {
        let snapshot = worker.snapshot();
        let mut handles = self.handles.borrow_mut();
        if self.generation.replace(snapshot.generation) != snapshot.generation || handles.len() >= CACHE_MAX {
            handles.clear();
        }
        if let Some(handle) = handles.get(key) {
            return handle.clone();
        }
        let handle = make(&snapshot.mesh);
        handles.insert(key.clone(), handle.clone());
        handle
    }

    /// Lets go of everything, so that idle series can be dropped from the index.
    pub(crate) fn clear(&self) {
        self.handles.borrow_mut().clear();
    }
}
