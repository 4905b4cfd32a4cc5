//! Sockets of pods' network namespaces for the workers: a pool per worker, pod and family, filled by one thread from the
//! keeper. Batches double while a pool keeps running dry, so a quiet pod holds a handful and a busy one never waits.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use heddle_datapath::DatapathError;
use heddle_datapath::agent::ClientPublisher;
use heddle_datapath::client::KeeperClient;
use heddle_model::{ClientAddr, Family, PodUid};
use heddle_proto::keeper::v1::{Role, error::Kind};
use heddle_proxy::{SocketError, SocketFuture, SocketSource};
use tokio::sync::oneshot;

use crate::VERSION;

/// First batch of a pool, made when its pod is enrolled: what a pod can dial while the keeper restarts.
const BATCH_MIN: u32 = 16;
/// Largest batch, and largest pool.
const BATCH_MAX: u32 = 128;
/// A pool that ran dry this soon after its last batch gets a larger one.
const BUSY: Duration = Duration::from_secs(1);
/// A pool that was not refilled for so long is cut back to a first batch.
const IDLE: Duration = Duration::from_secs(2);
/// How long a request outlives a keeper that is being restarted.
const KEEPER_MAX: Duration = Duration::from_secs(3);
/// Pause between two attempts to reach it.
const KEEPER_PAUSE: Duration = Duration::from_millis(20);
/// Requests waiting for the filling thread; beyond it a caller is told to try later.
const REQUESTS_MAX: usize = 4096;

type Key = (PodUid, Family);

#[derive(Default)]
struct Pool {
    sockets: Vec<OwnedFd>,
    batch: u32,
    filled: Option<Instant>,
    /// A refill is under way.
    asked: bool,
}

struct Request {
    worker: usize,
    key: Key,
    asked: Instant,
    reply: Option<oneshot::Sender<Result<OwnedFd, SocketError>>>,
}

/// The pools of all workers, and the way to publish clients.
pub struct NetnsSockets {
    pools: Vec<Mutex<HashMap<Key, Pool>>>,
    /// Pods whose sockets may be kept: a batch that arrives after a release is dropped.
    enrolled: Mutex<HashSet<PodUid>>,
    requests: SyncSender<Request>,
    publisher: ArcSwapOption<ClientPublisher>,
}

impl NetnsSockets {
    /// Starts the filling thread.
    ///
    /// # Errors
    /// No thread.
    pub fn start(workers: usize, run_dir: PathBuf) -> io::Result<Arc<Self>> {
        let (requests, queue) = sync_channel(REQUESTS_MAX);
        let sockets = Arc::new(Self {
            pools: (0..workers).map(|_| Mutex::default()).collect(),
            enrolled: Mutex::default(),
            requests,
            publisher: ArcSwapOption::empty(),
        });
        let weak = Arc::downgrade(&sockets);
        std::thread::Builder::new().name("sockets".into()).spawn(move || {
            let mut keeper = None;
            fill(&queue, &run_dir, &mut keeper, &|| weak.upgrade());
        })?;
        Ok(sockets)
    }

    /// Uses this map from now on (a keeper that was reinstalled has new ones).
    pub fn set_publisher(&self, publisher: ClientPublisher) {
        self.publisher.store(Some(Arc::new(publisher)));
    }

    /// Keeps sockets for a pod from now on.
    pub fn admit(&self, pod: &PodUid) {
        self.enrolled().insert(pod.clone());
    }

    /// Fills a pod's pools before its first connection.
    pub fn prefill(&self, pod: &PodUid, families: impl Iterator<Item = Family>) {
        for family in families {
            for worker in 0..self.pools.len() {
                let request = Request { worker, key: (pod.clone(), family), asked: Instant::now(), reply: None };
                // A full queue is filled on demand instead.
                let _ = self.ask(request);
            }
        }
    }

    /// Drops a released pod's sockets: they would keep its namespace alive.
    pub fn forget(&self, pod: &PodUid) {
        self.enrolled().remove(pod);
        for worker in 0..self.pools.len() {
            if let Some(mut pools) = self.pools(worker) {
                pools.retain(|(uid, _), _| uid != pod);
            }
        }
    }

    /// Returns what quiet pods do not need.
    fn cut_back(&self) {
        for pools in &self.pools {
            let mut pools = pools.lock().unwrap_or_else(PoisonError::into_inner);
            for pool in pools.values_mut().filter(|pool| pool.filled.is_none_or(|at| at.elapsed() > IDLE)) {
                pool.sockets.truncate(usize::try_from(BATCH_MIN).unwrap_or(usize::MAX));
                pool.batch = BATCH_MIN;
            }
        }
    }

    fn enrolled(&self) -> MutexGuard<'_, HashSet<PodUid>> {
        self.enrolled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pools(&self, worker: usize) -> Option<MutexGuard<'_, HashMap<Key, Pool>>> {
        Some(self.pools.get(worker)?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn ask(&self, request: Request) -> Result<(), SocketError> {
        self.requests.try_send(request).map_err(|error| {
            SocketError::Keeper(match error {
                TrySendError::Full(_) => "too many waiting".to_owned(),
                TrySendError::Disconnected(_) => "the filling thread has ended".to_owned(),
            })
        })
    }
}

impl SocketSource for NetnsSockets {
    fn try_take(&self, worker: usize, pod: &PodUid, family: Family) -> Option<OwnedFd> {
        let mut pools = self.pools(worker)?;
        let key = (pod.clone(), family);
        let pool = pools.get_mut(&key)?;
        let socket = pool.sockets.pop();
        let low = pool.sockets.len() * 2 <= usize::try_from(pool.batch).unwrap_or(usize::MAX);
        if low && !pool.asked {
            pool.asked = true;
            drop(pools);
            let request = Request { worker, key: key.clone(), asked: Instant::now(), reply: None };
            if self.ask(request).is_err()
                && let Some(mut pools) = self.pools(worker)
                && let Some(pool) = pools.get_mut(&key)
            {
                pool.asked = false;
            }
        }
        socket
    }

    fn take<'a>(&'a self, worker: usize, pod: &'a PodUid, family: Family) -> SocketFuture<'a> {
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            let key = (pod.clone(), family);
            self.ask(Request { worker, key, asked: Instant::now(), reply: Some(reply) })?;
            answer.await.unwrap_or_else(|_| Err(SocketError::Keeper("the filling thread has ended".into())))
        })
    }

    fn publish_client(&self, socket: BorrowedFd<'_>, client: ClientAddr) -> io::Result<()> {
        match &*self.publisher.load() {
            Some(publisher) => publisher.publish(socket, client.get()),
            None => Err(io::Error::new(io::ErrorKind::NotConnected, "not attached to a keeper")),
        }
    }
}

/// The filling thread: ends when the pools are gone.
fn fill(
    queue: &Receiver<Request>,
    run_dir: &Path,
    keeper: &mut Option<KeeperClient>,
    sockets: &dyn Fn() -> Option<Arc<NetnsSockets>>,
) {
    loop {
        let request = match queue.recv_timeout(IDLE) {
            Ok(request) => request,
            Err(RecvTimeoutError::Timeout) => {
                let Some(sockets) = sockets() else {
                    return;
                };
                sockets.cut_back();
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let Some(sockets) = sockets() else {
            return;
        };
        if request.reply.as_ref().is_some_and(oneshot::Sender::is_closed) {
            continue;
        }
        let Some(mut pools) = sockets.pools(request.worker) else {
            continue;
        };
        if !sockets.enrolled().contains(&request.key.0) {
            pools.remove(&request.key);
            drop(pools);
            answer(request, Err(SocketError::PodGone));
            continue;
        }
        let pool = pools.entry(request.key.clone()).or_default();
        // An earlier request may have filled the pool meanwhile.
        if request.reply.is_some() {
            if let Some(socket) = pool.sockets.pop() {
                answer(request, Ok(socket));
                continue;
            }
            let batch = next_batch(pool);
            drop(pools);
            let outcome = make(keeper, run_dir, &request, batch);
            let outcome = outcome.and_then(|mut made| {
                let first = made.pop().ok_or_else(|| SocketError::Keeper("an empty batch".into()))?;
                store(&sockets, request.worker, &request.key, made);
                Ok(first)
            });
            answer(request, outcome);
        } else {
            let batch = next_batch(pool);
            drop(pools);
            match make(keeper, run_dir, &request, batch) {
                Ok(made) => store(&sockets, request.worker, &request.key, made),
                Err(error) => {
                    tracing::debug!(pod = %request.key.0, %error, "no sockets");
                    if let Some(mut pools) = sockets.pools(request.worker)
                        && let Some(pool) = pools.get_mut(&request.key)
                    {
                        // What is in stock is all there is until the keeper is back; the next one taken asks again.
                        pool.asked = false;
                    }
                }
            }
        }
    }
}

fn answer(request: Request, outcome: Result<OwnedFd, SocketError>) {
    if let Some(reply) = request.reply {
        let _ = reply.send(outcome);
    }
}

fn next_batch(pool: &mut Pool) -> u32 {
    let busy = pool.filled.is_some_and(|at| at.elapsed() < BUSY);
    pool.batch = if busy { (pool.batch * 2).clamp(BATCH_MIN, BATCH_MAX) } else { BATCH_MIN };
    pool.filled = Some(Instant::now());
    pool.batch
}

fn store(sockets: &NetnsSockets, worker: usize, key: &Key, mut made: Vec<OwnedFd>) {
    if let Some(mut pools) = sockets.pools(worker)
        && sockets.enrolled().contains(&key.0)
    {
        let pool = pools.entry(key.clone()).or_default();
        pool.asked = false;
        let room = usize::try_from(BATCH_MAX * 2).unwrap_or(usize::MAX).saturating_sub(pool.sockets.len());
        made.truncate(room);
        pool.sockets.append(&mut made);
    }
}

/// Asks the keeper; a keeper that is being restarted is waited for as long as the caller waits.
fn make(
    keeper: &mut Option<KeeperClient>,
    run_dir: &Path,
    request: &Request,
    count: u32,
) -> Result<Vec<OwnedFd>, SocketError> {
    let (pod, family) = &request.key;
    loop {
        let client = match keeper.take() {
            Some(client) => Ok(client),
            None => KeeperClient::connect(run_dir, Role::Agent, VERSION),
        };
        let error = match client {
            Err(error) => error,
            Ok(client) => match client.make_sockets(pod.as_str(), *family == Family::V6, count) {
                Ok(made) => {
                    *keeper = Some(client);
                    return Ok(made);
                }
                Err(DatapathError::Refused { kind: Kind::UnknownPod, .. }) => {
                    *keeper = Some(client);
                    return Err(SocketError::PodGone);
                }
                Err(error) => error,
            },
        };
        let given_up = request.reply.as_ref().is_none_or(oneshot::Sender::is_closed);
        if !error.is_disconnected() || given_up || request.asked.elapsed() > KEEPER_MAX {
            return Err(SocketError::Keeper(error.to_string()));
        }
        std::thread::sleep(KEEPER_PAUSE);
    }
}
