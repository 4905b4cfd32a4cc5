//! One worker: a thread with a single-threaded runtime, its own listeners, buffers, registry table and metric shard.
//!
//! Everything a connection touches on its way belongs to its worker and is reached without locks; other threads send commands.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use heddle_identity::Lease;
use heddle_model::mesh::PodLimits;
use heddle_model::traffic::RetryPolicy;
use heddle_model::{PodUid, Snapshot};
use heddle_telemetry::proxy::ProxyShard;
use heddle_telemetry::{HttpHandle, Reason, TcpHandle};
use socket2::SockRef;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::{AbortHandle, LocalSet};
use tokio::time::MissedTickBehavior;

use crate::accept::{self, Port};
use crate::affinity::AffinityTable;
use crate::authz::{self, Judges, RuleCache};
use crate::budget::{Pod, PodBudget};
use crate::buffers::BufferPool;
use crate::config::Config;
use crate::dial;
use crate::drain;
use crate::hash::FastMap;
use crate::http::flow::Flow;
use crate::http::link::Links;
use crate::http::mirror::InFlight;
use crate::http::pool::Pool;
use crate::http::pool_h2::PoolH2;
use crate::http::spare::{Spare, SpareBytes};
use crate::http::{Heads, HttpKey, wire};
use crate::labels::{LabelCache, LabelKey};
use crate::mesh::REVIEWS_PER_TICK_MAX;
use crate::mesh::accept::Accepted;
use crate::mesh::tls::Tls;
use crate::proxy::{Identity, Telemetry};
use crate::registry::{ConnectionList, ConnectionView, Predicate, Table};
use crate::sockets::{ShardListeners, SocketSource};
use crate::upstreams::{Upstreams, Views};

/// Bytes peeked at once when a pod's byte budget is used up.
const SCRATCH_BYTES: usize = 64 << 10;
/// How often a worker lets go of its cached metric handles, so that idle series can be dropped.
const HOUSEKEEPING: Duration = Duration::from_secs(600);
/// How often deadlines and idle pooled connections are looked at.
const TICK: Duration = Duration::from_secs(1);
/// Between two looks at what changed in a flood of snapshots.
const CHANGES_PAUSE: Duration = Duration::from_millis(100);

/// What other threads ask of a worker.
pub(crate) enum Command {
    Attach {
        budget: Arc<PodBudget>,
        addresses: Vec<IpAddr>,
        identity: Option<Arc<Lease>>,
        shards: Vec<ShardListeners>,
        reply: oneshot::Sender<io::Result<()>>,
    },
    Detach {
        uid: PodUid,
        reply: oneshot::Sender<()>,
    },
    List {
        predicate: Predicate,
        limit: usize,
        reply: oneshot::Sender<ConnectionList>,
    },
    Close {
        predicate: Predicate,
        reason: Reason,
        reply: oneshot::Sender<usize>,
    },
    Drain {
        deadline: Instant,
        reply: oneshot::Sender<Vec<ConnectionView>>,
    },
}

/// The state connections run on.
pub(crate) struct Worker {
    pub(crate) index: usize,
    pub(crate) config: Arc<Config>,
    pub(crate) sockets: Arc<dyn SocketSource>,
    pub(crate) telemetry: Telemetry,
    pub(crate) affinity: Arc<AffinityTable>,
    /// What is known of the Services that pods call, by all workers.
    pub(crate) upstreams: Arc<Upstreams>,
    /// And as this worker sees them.
    pub(crate) views: Views,
    /// How requests are retried of which no policy speaks.
    pub(crate) untold_retries: Arc<RetryPolicy>,
    pub(crate) table: Table,
    pub(crate) labels: LabelCache<LabelKey, TcpHandle>,
    pub(crate) http_labels: LabelCache<HttpKey, HttpHandle>,
    /// Idle upstream connections.
    pub(crate) pool: Pool,
    /// Pools of single clients that are swept with it.
    own_pools: RefCell<Vec<Weak<Pool>>>,
    /// Upstream connections that speak HTTP/2.
    pub(crate) pool_h2: PoolH2,
    /// All of those, wherever they are kept.
    pub(crate) links: Links,
    /// HTTP/2 connections whose windows follow what flows, or wait for budget.
    pub(crate) watched_flows: RefCell<Vec<Weak<Flow>>>,
    /// Copies of requests on their way.
    pub(crate) mirrors: InFlight,
    pub(crate) spare: SpareBytes,
    pub(crate) spare_heads: Spare<Heads>,
    /// What HTTP/2 connections write in their turns.
    pub(crate) outboxes: SpareBytes,
    /// Set once the worker drains: HTTP connections end behind the request they are at.
    pub(crate) draining: Cell<bool>,
    /// Seconds since the worker started, about: the clock of deadlines.
    tick: Cell<u64>,
    /// Certificates and TLS configs; none where the agent has no identities.
    pub(crate) tls: Option<Tls>,
    /// Connections of authenticated peers.
    pub(crate) accepted: RefCell<Vec<Weak<Accepted>>>,
    /// The rules of called ports.
    pub(crate) rules: RuleCache,
    /// Requests that are judged anew when policies change.
    pub(crate) judges: Judges,
    /// Pods attached now.
    pub(crate) pods: RefCell<FastMap<PodUid, Rc<Pod>>>,
    pub(crate) buffers: Rc<BufferPool>,
    pub(crate) scratch: RefCell<Box<[u8]>>,
    snapshots: RefCell<watch::Receiver<Arc<Snapshot>>>,
    current: RefCell<Rc<Current>>,
    loads: RefCell<FastMap<SocketAddr, u32>>,
    next_id: Cell<u64>,
}

/// The snapshot a worker works with: counted by this thread alone.
pub(crate) struct Current(Arc<Snapshot>);

impl Deref for Current {
    type Target = Snapshot;
    fn deref(&self) -> &Snapshot {
        &self.0
    }
}

/// What a worker thread is started with.
pub(crate) struct Seed {
    pub(crate) index: usize,
    pub(crate) config: Arc<Config>,
    pub(crate) snapshots: watch::Receiver<Arc<Snapshot>>,
    pub(crate) stopped: watch::Receiver<()>,
    pub(crate) sockets: Arc<dyn SocketSource>,
    pub(crate) identity: Option<Identity>,
    /// Turns of handshakes with peers of the mesh.
    pub(crate) handshakes: Arc<Semaphore>,
    pub(crate) telemetry: Telemetry,
    pub(crate) affinity: Arc<AffinityTable>,
    pub(crate) upstreams: Arc<Upstreams>,
}

impl Seed {
    /// The life of a worker thread: until the proxy is dropped. What is open then is reset and logged.
    pub(crate) fn run(self, runtime: tokio::runtime::Runtime, commands: mpsc::Receiver<Command>) {
        let local = LocalSet::new();
        let stopped = self.stopped.clone();
        local.block_on(&runtime, serve(Rc::new(Worker::new(self)), commands, stopped));
    }
}

async fn serve(worker: Rc<Worker>, mut commands: mpsc::Receiver<Command>, mut stopped: watch::Receiver<()>) {
    let mut pods: HashMap<PodUid, Attached> = HashMap::new();
    let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut changes = worker.snapshots.borrow().clone();
    let (mut judged, mut pause) = (worker.snapshot().policy_generation, tokio::time::Instant::now());
    loop {
        let changed = async {
            tokio::time::sleep_until(pause).await;
            if changes.changed().await.is_err() {
                // The writer is gone: the last snapshot stands.
                std::future::pending::<()>().await;
            }
        };
        let command = tokio::select! {
            _ = stopped.changed() => None,
            command = commands.recv() => command,
            () = changed => {
                pause = tokio::time::Instant::now() + CHANGES_PAUSE;
                let snapshot = worker.refresh();
                worker.table.enforce_strict(&snapshot);
                if std::mem::replace(&mut judged, snapshot.policy_generation) != snapshot.policy_generation {
                    worker.pods.borrow().values().for_each(|pod| authz::remember(pod, &snapshot));
                    worker.table.enforce_policies();
                    worker.judges.wake_all();
                }
                continue;
            }
            _ = housekeeping.tick() => {
                worker.labels.clear();
                worker.http_labels.clear();
                worker.rules.clear();
                continue;
            }
            _ = ticks.tick() => {
                worker.tick.set(worker.tick.get() + 1);
                worker.table.expire(worker.tick.get());
                let watched = std::mem::take(&mut *worker.watched_flows.borrow_mut());
                watched.iter().filter_map(Weak::upgrade).for_each(|flow| flow.tick());
                let snapshot = worker.refresh();
                worker.sweep(&snapshot);
                worker.views.tick(&worker, &snapshot);
                worker.table.enforce_strict(&snapshot);
                let idle = worker.config.pool_idle_timeout.as_secs();
                worker.pool_h2.sweep(worker.tick.get(), idle, &snapshot, worker.tls.as_ref());
                worker.links.tick(&worker.config);
                worker.sweep_accepted();
                continue;
            }
        };
        let Some(command) = command else { break };
        // A reply nobody waits for any more is no error.
        match command {
            Command::Attach { budget, addresses, identity, shards, reply } => {
                let uid = budget.uid.clone();
                let pod = Pod::new(budget, addresses, identity);
                authz::remember(&pod, &worker.refresh());
                let attached = Attached::new(&worker, pod, shards);
                let _ = reply.send(attached.map(|a| {
                    worker.pods.borrow_mut().insert(uid.clone(), a.pod.clone());
                    // Under another identity perhaps: what the former one has in stock is nobody's to use any more.
                    if let Some(former) = pods.insert(uid, a) {
                        worker.pool.purge(former.pod.serial);
                        worker.pool_h2.purge(former.pod.serial);
                    }
                }));
            }
            Command::Detach { uid, reply } => {
                if let Some(attached) = pods.remove(&uid) {
                    worker.pods.borrow_mut().remove(&uid);
                    worker.pool.purge(attached.pod.serial);
                    worker.pool_h2.purge(attached.pod.serial);
                }
                let _ = reply.send(());
            }
            Command::List { predicate, limit, reply } => {
                let _ = reply.send(worker.table.list(&predicate, limit));
            }
            Command::Close { predicate, reason, reply } => {
                let _ = reply.send(worker.table.close(&predicate, reason));
            }
            Command::Drain { deadline, reply } => {
                pods.clear();
                worker.pods.borrow_mut().clear();
                worker.draining.set(true);
                worker.pool.clear();
                worker.pool_h2.clear();
                worker.table.wake_all();
                tokio::task::spawn_local(drain::run(worker.clone(), deadline, reply));
            }
        }
    }
}

/// A pod's listeners on this worker; dropping it stops accepting, open connections go on.
struct Attached {
    pod: Rc<Pod>,
    accepting: Vec<AbortHandle>,
}

impl Attached {
    fn new(worker: &Rc<Worker>, pod: Pod, shards: Vec<ShardListeners>) -> io::Result<Self> {
        let pod = Rc::new(pod);
        let mut attached = Self { pod: pod.clone(), accepting: Vec::new() };
        for shard in shards {
            let outbound = shard.outbound.into_iter().map(|l| (Port::Outbound, l));
            let inbound = shard.inbound.into_iter().map(|l| (Port::Inbound, l));
            let hbone = shard.hbone.into_iter().map(|l| (Port::Hbone, l));
            for (port, listener) in outbound.chain(inbound).chain(hbone) {
                let listener = prepare(listener)?;
                let accepting = accept::run(worker.clone(), pod.clone(), port, listener);
                attached.accepting.push(tokio::task::spawn_local(accepting).abort_handle());
            }
        }
        Ok(attached)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.accepting.iter().for_each(AbortHandle::abort);
    }
}

/// What every accepted socket needs is set once on the listener and inherited: it saves three system calls per connection.
fn prepare(listener: std::net::TcpListener) -> io::Result<TcpListener> {
    let socket = SockRef::from(&listener);
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_linger(Some(Duration::ZERO))?;
    dial::set_keepalive(&socket)?;
    TcpListener::from_std(listener)
}

impl Worker {
    pub(crate) fn new(mut seed: Seed) -> Self {
        let snapshot = seed.snapshots.borrow_and_update().clone();
        Self {
            index: seed.index,
            tls: seed.identity.map(|identity| Tls::new(identity, seed.index, seed.handshakes.clone())),
            accepted: RefCell::default(),
            rules: RuleCache::default(),
            judges: Judges::default(),
            pods: RefCell::default(),
            buffers: BufferPool::new(seed.telemetry.proxy.clone(), seed.index),
            config: seed.config,
            sockets: seed.sockets,
            telemetry: seed.telemetry,
            affinity: seed.affinity,
            upstreams: seed.upstreams,
            views: Views::default(),
            untold_retries: Arc::new(RetryPolicy::untold()),
            table: Table::default(),
            labels: LabelCache::default(),
            http_labels: LabelCache::default(),
            pool: Pool::default(),
            own_pools: RefCell::default(),
            pool_h2: PoolH2::default(),
            links: Links::default(),
            watched_flows: RefCell::default(),
            mirrors: InFlight::default(),
            spare: SpareBytes::default(),
            spare_heads: Spare::default(),
            outboxes: SpareBytes::of(wire::OUTBOX_BYTES, wire::OUTBOXES_KEPT_MAX),
            draining: Cell::new(false),
            tick: Cell::new(0),
            scratch: RefCell::new(vec![0; SCRATCH_BYTES].into_boxed_slice()),
            snapshots: RefCell::new(seed.snapshots),
            current: RefCell::new(Rc::new(Current(snapshot))),
            loads: RefCell::default(),
            // Unique in the agent: the worker's number in the top bits.
            next_id: Cell::new((seed.index as u64) << 48),
        }
    }

    /// The newest snapshot. One atomic read when nothing changed.
    pub(crate) fn refresh(&self) -> Rc<Current> {
        let mut snapshots = self.snapshots.borrow_mut();
        // An error means that the writer is gone: the last snapshot stands.
        if snapshots.has_changed().unwrap_or(false) {
            let snapshot = snapshots.borrow_and_update().clone();
            *self.current.borrow_mut() = Rc::new(Current(snapshot));
        }
        self.snapshot()
    }

    /// The snapshot of the last [`Worker::refresh`].
    pub(crate) fn snapshot(&self) -> Rc<Current> {
        self.current.borrow().clone()
    }

    /// Counts the snapshots that may have changed what a policy decides; of the last [`Worker::refresh`].
    pub(crate) fn policy_generation(&self) -> u64 {
        self.current.borrow().policy_generation
    }

    /// Budgets of each pod.
    pub(crate) fn limits(&self) -> PodLimits {
        self.current.borrow().mesh.limits
    }

    /// This worker's counters.
    pub(crate) fn metrics(&self) -> &ProxyShard {
        self.telemetry.proxy.shard(self.index)
    }

    pub(crate) fn next_connection_id(&self) -> u64 {
        let id = self.next_id.get() + 1;
        self.next_id.set(id);
        id
    }

    /// Seconds since the worker started, about.
    pub(crate) fn tick(&self) -> u64 {
        self.tick.get()
    }

    /// Closes idle upstream connections that are of no more use.
    fn sweep(&self, snapshot: &Snapshot) {
        self.pool.sweep(self.tick(), snapshot);
        let sweep = |pool: Rc<Pool>| pool.sweep(self.tick(), snapshot);
        self.own_pools.borrow_mut().retain(|pool| pool.upgrade().map(sweep).is_some());
    }

    /// Lets true clients of peers go that ask nothing any more, and peers that are not what they were.
    fn sweep_accepted(&self) {
        self.accepted.borrow_mut().retain(|accepted| accepted.strong_count() > 0);
        let all: Vec<_> = self.accepted.borrow().iter().filter_map(Weak::upgrade).collect();
        all.iter().for_each(|accepted| accepted.sweep(self.tick()));
        let Some(tls) = &self.tls else { return };
        let (now, mut reviews) = (tls.now(), REVIEWS_PER_TICK_MAX);
        all.iter().for_each(|accepted| accepted.look_again(tls, now, &mut reviews));
    }

    /// A pool of a single client, swept as long as it lives.
    pub(crate) fn own_pool(&self) -> Rc<Pool> {
        let pool = Rc::new(Pool::default());
        self.own_pools.borrow_mut().push(Rc::downgrade(&pool));
        pool
    }

    /// Connections and requests of this worker to an endpoint, those being dialled included.
    pub(crate) fn load_of(&self, addr: SocketAddr) -> u32 {
        self.loads.borrow().get(&addr).copied().unwrap_or(0)
    }

    /// Counts one more connection to an endpoint until the guard is dropped.
    pub(crate) fn load(self: &Rc<Self>, addr: SocketAddr) -> Load {
        *self.loads.borrow_mut().entry(addr).or_insert(0) += 1;
        Load { worker: self.clone(), addr }
    }
}

/// One connection's weight on an endpoint.
pub(crate) struct Load {
    worker: Rc<Worker>,
    addr: SocketAddr,
}

impl Drop for Load {
    fn drop(&mut self) {
        let mut loads = self.worker.loads.borrow_mut();
        if let Some(load) = loads.get_mut(&self.addr) {
            *load -= 1;
            if *load == 0 {
                loads.remove(&self.addr);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn accepted_sockets_inherit_what_the_listener_was_given() {
        let listener = prepare(std::net::TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        let client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let socket = SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.linger().unwrap(), Some(Duration::ZERO));
        drop(client);
    }
}
