//! The handle of the data plane: starts workers, gives them pods, drains and ends them.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use heddle_identity::{CertificateStore, HandshakeMetrics};
use heddle_model::{PodUid, ServiceKey, Snapshot};
use heddle_telemetry::collect::{FamilyDesc, FnCollector};
use heddle_telemetry::{
    AccessLog, HttpMetrics, PolicyMetrics, ProxyMetrics, Registry as MetricRegistry, TcpMetrics, UpstreamMetrics,
};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::affinity::AffinityTable;
use crate::budget::{PodBudget, PodUsage};
use crate::config::{COMMANDS_MAX, Config};
use crate::drain::DrainReport;
use crate::mesh::HANDSHAKES_OF_AGENT_MAX;
use crate::registry::Registry;
use crate::sockets::{PodListeners, ShardListeners, SocketSource};
use crate::upstreams::{PortUsage, Upstreams};
use crate::worker::{Command, Seed};

const POD_CONNECTIONS: FamilyDesc =
    FamilyDesc::gauge("heddle_pod_connections", "Open connections of a pod through the agent.", &["pod"]);
const POD_REFUSED: FamilyDesc = FamilyDesc::counter(
    "heddle_pod_connections_refused_total",
    "Connections of a pod refused because of its connection budget.",
    &["pod"],
);
const POD_REQUESTS: FamilyDesc =
    FamilyDesc::gauge("heddle_pod_requests", "HTTP requests of a pod in flight through the agent.", &["pod"]);
const POD_REQUESTS_REFUSED: FamilyDesc = FamilyDesc::counter(
    "heddle_pod_requests_refused_total",
    "HTTP requests of a pod refused because of its request budget.",
    &["pod"],
);
const POD_BUFFERED: FamilyDesc =
    FamilyDesc::gauge("heddle_pod_buffered_bytes", "Bytes of buffers a pod's connections hold.", &["pod"]);
const POD_CPU: FamilyDesc = FamilyDesc::counter(
    "heddle_pod_cpu_seconds_total",
    "CPU time of the agent spent on a pod's connections, measured at poll.",
    &["pod"],
);
const AFFINITY: FamilyDesc =
    FamilyDesc::gauge("heddle_session_affinity_entries", "Remembered clients of Services with affinity.", &["bound"]);
const WORKERS: FamilyDesc = FamilyDesc::gauge("heddle_proxy_workers", "Data plane threads.", &["state"]);

/// The families this room exposes besides `telemetry`'s own. `pod` is the pod's uid.
pub(crate) const FAMILIES: [FamilyDesc; 8] =
    [POD_CONNECTIONS, POD_REFUSED, POD_REQUESTS, POD_REQUESTS_REFUSED, POD_BUFFERED, POD_CPU, AFFINITY, WORKERS];

/// Where the data plane reports to.
#[derive(Clone)]
pub struct Telemetry {
    /// `istio_tcp_*`.
    pub tcp: TcpMetrics,
    /// `istio_request*`.
    pub http: HttpMetrics,
    /// The data plane's own counters.
    pub proxy: ProxyMetrics,
    /// Decisions of policies.
    pub policy: PolicyMetrics,
    /// Retries, ejections, overflows, faults, mirrored requests.
    pub upstream: UpstreamMetrics,
    /// Access records.
    pub access: AccessLog,
}

/// What connections of the mesh are authenticated with. Without it the data plane speaks plain text only.
#[derive(Clone)]
pub struct Identity {
    /// Certificates and trust bundles.
    pub store: CertificateStore,
    /// Handshakes, counted.
    pub handshakes: HandshakeMetrics,
}

/// Why a call on the proxy failed.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// A worker thread ended; the agent should end too and be replaced (the keeper holds the listeners).
    #[error("worker {0} of the data plane has died; restart the agent")]
    WorkerDied(usize),
    /// A listener could not be used.
    #[error("pod {pod}: cannot serve its listeners: {error}")]
    Listener {
        /// Which pod.
        pod: PodUid,
        /// What the system said.
        error: io::Error,
    },
}

/// Channels to the workers.
#[derive(Clone)]
pub(crate) struct Workers(Arc<[mpsc::Sender<Command>]>);

impl Workers {
    /// Asks every worker and waits for all answers; a dead one gives none.
    pub(crate) async fn ask<T>(&self, mut command: impl FnMut(oneshot::Sender<T>) -> Command) -> Vec<T> {
        let mut replies = Vec::with_capacity(self.0.len());
        for worker in self.0.iter() {
            let (reply, answer) = oneshot::channel();
            if worker.send(command(reply)).await.is_ok() {
                replies.push(answer);
            }
        }
        let mut answers = Vec::with_capacity(replies.len());
        for reply in replies {
            answers.extend(reply.await.ok());
        }
        answers
    }

    fn alive(&self) -> usize {
        self.0.iter().filter(|w| !w.is_closed()).count()
    }
}

type Pods = Arc<Mutex<HashMap<PodUid, Arc<PodBudget>>>>;

/// The running data plane. Dropping it resets every open connection (reason `agent_shutdown`) and joins the threads:
/// [`Proxy::drain`] first for a graceful end.
pub struct Proxy {
    workers: Workers,
    threads: Vec<JoinHandle<()>>,
    /// Dropped to stop the workers: registry handles elsewhere keep the command channels open.
    stop: Option<watch::Sender<()>>,
    pods: Pods,
    affinity: Arc<AffinityTable>,
    upstreams: Arc<Upstreams>,
    affinity_max: usize,
    died: watch::Receiver<Option<usize>>,
}

impl Proxy {
    /// Starts the worker threads; nothing is accepted until the first [`Proxy::attach`].
    ///
    /// # Errors
    /// If a thread or its runtime cannot be made.
    pub fn start(
        config: Config,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        sockets: Arc<dyn SocketSource>,
        identity: Option<Identity>,
        telemetry: Telemetry,
    ) -> io::Result<Self> {
        let config = Arc::new(Config { workers: config.workers.max(1), ..config });
        let affinity = Arc::new(AffinityTable::new(config.affinity_entries_max));
        let upstreams = Arc::new(Upstreams::default());
        let (death, died) = watch::channel(None);
        let (stop, stopped) = watch::channel(());
        let (mut senders, mut threads) = (Vec::new(), Vec::new());
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES_OF_AGENT_MAX));
        for index in 0..config.workers {
            let (sender, commands) = mpsc::channel(COMMANDS_MAX);
            let seed = Seed {
                index,
                config: config.clone(),
                snapshots: snapshots.clone(),
                stopped: stopped.clone(),
                sockets: sockets.clone(),
                identity: identity.clone(),
                handshakes: handshakes.clone(),
                telemetry: telemetry.clone(),
                affinity: affinity.clone(),
                upstreams: upstreams.clone(),
            };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let death = death.clone();
            let run = move || {
                let run = std::panic::AssertUnwindSafe(|| seed.run(runtime, commands));
                if std::panic::catch_unwind(run).is_err() {
                    tracing::error!(worker = index, "a data plane worker died; its connections were reset");
                    death.send_replace(Some(index));
                }
            };
            threads.push(thread::Builder::new().name(format!("worker-{index}")).spawn(run)?);
            senders.push(sender);
        }
        let workers = Workers(senders.into());
        Ok(Self {
            workers,
            threads,
            stop: Some(stop),
            pods: Pods::default(),
            affinity,
            upstreams,
            affinity_max: config.affinity_entries_max,
            died,
        })
    }

    /// How pods of this node use a Service port now; `None` where none calls it.
    #[must_use]
    pub fn usage(&self, service: &ServiceKey, port: u16) -> Option<PortUsage> {
        self.upstreams.usage(service, port)
    }

    /// Serves a pod's listeners; of a pod already attached, in place of the former ones.
    ///
    /// # Errors
    /// If a listener cannot be registered (the pod is then not served at all), or a worker is dead.
    pub async fn attach(&self, pod: PodListeners) -> Result<(), ProxyError> {
        let PodListeners { uid, addresses, identity, shards } = pod;
        let identity = identity.map(Arc::new);
        let budget = {
            let mut pods = self.lock();
            pods.retain(|_, b| b.in_use());
            let budget =
                pods.entry(uid.clone()).or_insert_with(|| Arc::new(PodBudget::new(uid.clone(), self.workers.0.len())));
            budget.attached.store(true, Relaxed);
            budget.clone()
        };
        let mut by_worker: Vec<Vec<ShardListeners>> = self.workers.0.iter().map(|_| Vec::new()).collect();
        let count = by_worker.len();
        for (i, shard) in shards.into_iter().enumerate() {
            by_worker[i % count].push(shard);
        }
        for (index, (worker, shards)) in self.workers.0.iter().zip(by_worker).enumerate() {
            let (reply, answer) = oneshot::channel();
            let command = Command::Attach {
                budget: budget.clone(),
                addresses: addresses.clone(),
                identity: identity.clone(),
                shards,
                reply,
            };
            let attached = match worker.send(command).await {
                Ok(()) => answer.await.map_err(|_| ProxyError::WorkerDied(index)),
                Err(_) => Err(ProxyError::WorkerDied(index)),
            };
            let attached = attached.and_then(|r| r.map_err(|error| ProxyError::Listener { pod: uid.clone(), error }));
            if let Err(error) = attached {
                self.detach(&uid).await;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Stops accepting for a pod and closes our copies of its listeners. Open connections go on.
    pub async fn detach(&self, uid: &PodUid) {
        self.workers.ask(|reply| Command::Detach { uid: uid.clone(), reply }).await;
        let mut pods = self.lock();
        if let Some(budget) = pods.get(uid) {
            budget.attached.store(false, Relaxed);
        }
        pods.retain(|_, b| b.in_use());
    }

    /// Stops accepting everywhere and waits until every connection ended or `deadline` passed; what is left is listed, then
    /// reset. Connections still in the kernel's queues wait there for the next agent.
    pub async fn drain(&self, deadline: Instant) -> DrainReport {
        let parts = self.workers.ask(|reply| Command::Drain { deadline, reply }).await;
        DrainReport { cut: parts.into_iter().flatten().collect() }
    }

    /// Lists and closes connections.
    #[must_use]
    pub fn registry(&self) -> Registry {
        Registry { workers: self.workers.clone() }
    }

    /// What each pod uses now, by uid.
    #[must_use]
    pub fn pods(&self) -> Vec<PodUsage> {
        usage(&self.pods)
    }

    /// Completes when a worker died, with its number. The agent should then end, not go on with a part of its listeners deaf.
    pub fn died(&self) -> impl Future<Output = usize> + Send + 'static {
        let mut died = self.died.clone();
        async move {
            loop {
                if let Some(worker) = *died.borrow_and_update() {
                    return worker;
                }
                if died.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    /// Whether every worker is alive.
    ///
    /// # Errors
    /// [`ProxyError::WorkerDied`] otherwise.
    pub fn health(&self) -> Result<(), ProxyError> {
        match self.workers.0.iter().position(|w| w.is_closed()) {
            Some(index) => Err(ProxyError::WorkerDied(index)),
            None => Ok(()),
        }
    }

    /// Registers the metrics of pods and workers.
    ///
    /// # Errors
    /// If they are registered already.
    pub fn register_metrics(&self, registry: &MetricRegistry) -> Result<(), heddle_telemetry::RegistryError> {
        let (pods, affinity, affinity_max) = (self.pods.clone(), self.affinity.clone(), self.affinity_max);
        // The collector must not keep the workers' channels open: dropping the proxy ends them.
        let workers = Arc::downgrade(&self.workers.0);
        registry.register(FnCollector::boxed(&FAMILIES, move || {
            let [
                mut connections,
                mut refused,
                mut requests,
                mut requests_refused,
                mut buffered,
                mut cpu,
                mut entries,
                mut threads,
            ] = FAMILIES.map(|f| f.family());
            for pod in usage(&pods) {
                let labels = [pod.uid.as_str()];
                connections.push(&labels, pod.connections.into());
                refused.push(&labels, pod.connections_refused as f64);
                requests.push(&labels, pod.requests.into());
                requests_refused.push(&labels, pod.requests_refused as f64);
                buffered.push(&labels, pod.buffered_bytes as f64);
                cpu.push(&labels, pod.cpu.as_secs_f64());
            }
            entries.push(&["used"], affinity.len() as f64);
            entries.push(&["max"], affinity_max as f64);
            let (total, alive) = workers.upgrade().map_or((0, 0), |w| (w.len(), Workers(w).alive()));
            threads.push(&["alive"], alive as f64);
            threads.push(&["dead"], (total - alive) as f64);
            vec![connections, refused, requests, requests_refused, buffered, cpu, entries, threads]
        }))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PodUid, Arc<PodBudget>>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.stop.take());
        for thread in self.threads.drain(..) {
            // A panic was caught and reported inside.
            let _ = thread.join();
        }
    }
}

fn usage(pods: &Pods) -> Vec<PodUsage> {
    let pods = pods.lock().unwrap_or_else(PoisonError::into_inner);
    let mut all: Vec<_> = pods.values().filter(|b| b.in_use()).map(|b| b.usage()).collect();
    all.sort_by(|a, b| a.uid.cmp(&b.uid));
    all
}
