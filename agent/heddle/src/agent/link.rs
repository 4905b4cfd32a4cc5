//! The agent's tie to its keeper: attach, tell it which pods are wanted, take their listeners, and do it all again when
//! the keeper restarts. One thread owns the connection; the data plane never waits for it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use heddle_datapath::DatapathError;
use heddle_datapath::agent::{ClientPublisher, CounterReader, HeartbeatWriter};
use heddle_datapath::client::{KeeperClient, PodListeners, WatchGuard, Watcher};
use heddle_model::PodUid;
use heddle_proto::keeper::v1::event::Event;
use heddle_proto::keeper::v1::{InspectReply, MapInfo, PodSpec, PodState, Role};
use tokio::sync::{mpsc, oneshot};

use super::sockets::NetnsSockets;
use crate::VERSION;

/// Longest pause between two attempts to reach the keeper.
const BACKOFF_MAX: Duration = Duration::from_secs(1);
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// Enrolment is told again this often, so that a pod refused for a passing reason gets in.
const RESYNC: Duration = Duration::from_secs(2);
/// Time between the first beats of an agent that finds the kernel without one.
const FIRST_BEATS: Duration = Duration::from_millis(200);
/// How often the use of the maps is asked for.
const INSPECT: Duration = Duration::from_secs(10);

/// What the rest of the agent must do.
#[derive(Debug)]
pub enum LinkEvent {
    /// Attached: the debug socket to serve.
    Attached(std::os::unix::net::UnixListener),
    /// Accept for this pod; the sender is told when that is so.
    Enrolled(PodUid, heddle_proxy::PodListeners, oneshot::Sender<()>),
    /// Stop accepting for this pod.
    Released(PodUid),
    /// Another agent accepts, or Heddle is being removed: drain and exit.
    Drain(&'static str),
}

/// State shared with readers.
#[derive(Default)]
pub struct LinkView {
    /// Pods by uid, as the keeper last said.
    pub pods: BTreeMap<String, PodState>,
    /// Connected and attached.
    pub attached: bool,
    /// The keeper was told the first desired set and every enrolled pod is accepted for.
    pub settled: bool,
    /// Released by hand.
    pub released: bool,
    /// Last trouble with the keeper.
    pub trouble: Option<String>,
    /// Version of the keeper.
    pub keeper_version: String,
    /// How full the maps are, refreshed every [`INSPECT`].
    pub maps: Vec<MapInfo>,
}

#[derive(Default)]
struct Wishes {
    desired: Option<Vec<PodSpec>>,
    changed: bool,
    /// Pods whose listeners are to be handed to the data plane once more.
    anew: BTreeSet<String>,
    /// The connection that was lost last, by its number.
    lost: u64,
    stop: bool,
}

/// Handle to the link's thread.
pub struct Link {
    wishes: Arc<(Mutex<Wishes>, Condvar)>,
    view: Arc<Mutex<LinkView>>,
    beat: Arc<Mutex<Option<HeartbeatWriter>>>,
    counters: Arc<Mutex<Option<CounterReader>>>,
    run_dir: PathBuf,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    /// Starts the thread.
    ///
    /// # Errors
    /// No thread.
    pub fn start(run_dir: PathBuf, sockets: Arc<NetnsSockets>, events: mpsc::Sender<LinkEvent>) -> Result<Self> {
        let link = Self {
            wishes: Arc::default(),
            view: Arc::default(),
            beat: Arc::default(),
            counters: Arc::default(),
            run_dir: run_dir.clone(),
        };
        let worker = Worker {
            wishes: Arc::clone(&link.wishes),
            view: Arc::clone(&link.view),
            beat: Arc::clone(&link.beat),
            counters: Arc::clone(&link.counters),
            run_dir,
            sockets,
            events,
            held: BTreeMap::new(),
            connection: 0,
        };
        std::thread::Builder::new().name("keeper-link".into()).spawn(move || worker.run()).context("start a thread")?;
        Ok(link)
    }

    /// Wants these pods enrolled, and no others.
    pub fn desire(&self, pods: Vec<PodSpec>) {
        let mut wishes = lock(&self.wishes.0);
        if wishes.desired.as_ref() != Some(&pods) {
            wishes.desired = Some(pods);
            wishes.changed = true;
            self.wishes.1.notify_all();
        }
    }

    /// Accepts for a pod anew, if it is accepted for: in place of what was, which goes on with the connections it has.
    pub fn accept_anew(&self, pod: &PodUid) {
        let mut wishes = lock(&self.wishes.0);
        wishes.anew.insert(pod.to_string());
        wishes.changed = true;
        self.wishes.1.notify_all();
    }

    /// Ends the thread at its next step.
    pub fn stop(&self) {
        lock(&self.wishes.0).stop = true;
        self.wishes.1.notify_all();
        // From now on the kernel counts: no beat, no agent.
        *lock(&self.beat) = None;
    }

    /// Writes one heartbeat, if attached.
    pub fn beat(&self) {
        if let Some(writer) = lock(&self.beat).as_mut()
            && let Err(error) = writer.beat()
        {
            tracing::error!(%error, "heartbeat");
        }
    }

    /// What the programs counted.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        match lock(&self.counters).as_ref().map(CounterReader::read) {
            Some(Ok(counters)) => counters,
            Some(Err(error)) => {
                tracing::warn!(%error, "datapath counters");
                Vec::new()
            }
            None => Vec::new(),
        }
    }

    /// Reads the shared view.
    pub fn view<T>(&self, read: impl FnOnce(&LinkView) -> T) -> T {
        read(&lock(&self.view))
    }

    /// Programs, maps and pods as the keeper sees them. Blocks for one round trip.
    ///
    /// # Errors
    /// No keeper.
    pub fn inspect(&self) -> Result<InspectReply, DatapathError> {
        KeeperClient::connect(&self.run_dir, Role::Agent, VERSION)?.inspect()
    }
}

struct Worker {
    wishes: Arc<(Mutex<Wishes>, Condvar)>,
    view: Arc<Mutex<LinkView>>,
    beat: Arc<Mutex<Option<HeartbeatWriter>>>,
    counters: Arc<Mutex<Option<CounterReader>>>,
    run_dir: PathBuf,
    sockets: Arc<NetnsSockets>,
    events: mpsc::Sender<LinkEvent>,
    /// Listeners of the pods this agent accepts for, with the cookie of their namespace: kept to give back to a
    /// restarted keeper.
    held: BTreeMap<String, (u64, PodListeners)>,
    /// Counts connections to keepers.
    connection: u64,
}

/// Why a connection's life ended.
enum End {
    Stop,
    Lost(DatapathError),
}

impl From<DatapathError> for End {
    fn from(error: DatapathError) -> Self {
        Self::Lost(error)
    }
}

impl Worker {
    fn run(mut self) {
        let mut backoff = BACKOFF_MIN;
        loop {
            let began = Instant::now();
            match self.serve_one_keeper() {
                Err(End::Stop) | Ok(()) => return,
                Err(End::Lost(error)) => {
                    if error.is_not_allowed() {
                        self.send(LinkEvent::Drain("another agent has attached to the keeper"));
                        return;
                    }
                    let mut view = lock(&self.view);
                    if view.attached || view.trouble.is_none() {
                        tracing::warn!(%error, "keeper lost; captured traffic goes on, trying again");
                    } else {
                        tracing::debug!(%error, "keeper still away");
                    }
                    view.attached = false;
                    view.trouble = Some(error.to_string());
                }
            }
            if began.elapsed() > BACKOFF_MAX {
                backoff = BACKOFF_MIN;
            }
            // Jitter: agents of a node image do not all come at once.
            let pause = backoff.mul_f64(0.5 + f64::from(std::process::id() % 64) / 128.0);
            if self.wait(Some(pause), |wishes| wishes.stop) {
                return;
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    fn serve_one_keeper(&mut self) -> Result<(), End> {
        let keeper = KeeperClient::connect(&self.run_dir, Role::Agent, VERSION)?;
        let attached = keeper.attach()?;
        self.connection += 1;
        let connection = self.connection;
        // Ends the watching thread, and gives its place at the keeper back, however this connection ends.
        let _watching = self.watch()?;
        self.sockets.set_publisher(ClientPublisher::new(attached.agent_sockets)?);
        *lock(&self.counters) = Some(CounterReader::new(attached.counters)?);
        self.come_alive(HeartbeatWriter::new(attached.heartbeat)?)?;
        {
            let mut view = lock(&self.view);
            view.attached = true;
            view.released = attached.released;
            view.trouble = None;
            keeper.hello().binary_version.clone_into(&mut view.keeper_version);
        }
        self.send(LinkEvent::Attached(attached.debug));
        tracing::info!(keeper = keeper.hello().binary_version, pods = attached.pods.len(), "attached to the keeper");
        // A keeper that has lost its memory enrols its pods anew: what is left of the last time would be in the way.
        let forgotten = |uid: &String| !attached.pods.iter().any(|pod| pod.enrolled && pod.uid == *uid);
        let forgotten: Vec<String> = self.held.keys().filter(|uid| forgotten(uid)).cloned().collect();
        for uid in &forgotten {
            self.let_go(uid);
        }
        for pod in attached.pods.iter().filter(|pod| pod.enrolled) {
            if let Some((_, held)) = self.held.get(&pod.uid)
                && let Err(error) = keeper.offer_listeners(&pod.uid, held)
            {
                if error.is_disconnected() {
                    return Err(error.into());
                }
                tracing::info!(pod = pod.uid, %error, "listeners not given back: taking the keeper's");
                self.held.remove(&pod.uid);
            }
            if !self.held.contains_key(&pod.uid) {
                self.take(&keeper, pod)?;
            }
        }
        // Every pod that is in is accepted for: a former agent may go, and from here on we say who is in.
        keeper.ready()?;
        let mut inspected: Option<Instant> = None;
        loop {
            let (desired, anew) = {
                let mut wishes = lock(&self.wishes.0);
                wishes.changed = false;
                (wishes.desired.clone(), std::mem::take(&mut wishes.anew))
            };
            if let Some(desired) = desired {
                self.reconcile(&keeper, &desired)?;
                lock(&self.view).settled = true;
            }
            for uid in anew {
                if let Some((_, held)) = self.held.get(&uid) {
                    self.hand_over(&PodUid::new(&uid), held);
                }
            }
            if inspected.is_none_or(|at| at.elapsed() > INSPECT) {
                inspected = Some(Instant::now());
                lock(&self.view).maps = keeper.inspect()?.maps;
            }
            if self.wait(Some(RESYNC), |wishes| wishes.stop || wishes.changed || wishes.lost == connection) {
                let wishes = lock(&self.wishes.0);
                if wishes.stop {
                    return Err(End::Stop);
                }
                if wishes.lost == connection {
                    return Err(DatapathError::Protocol("the keeper closed the connection".into()).into());
                }
            }
        }
    }

    /// Beats until the kernel believes it: a pod enrolled before that would have its connections refused. An agent that
    /// takes over in time is believed at once.
    fn come_alive(&self, mut writer: HeartbeatWriter) -> Result<(), End> {
        while writer.beat()?.streak < heddle_abi::heartbeat::GOOD_BEATS {
            if self.wait(Some(FIRST_BEATS), |wishes| wishes.stop) {
                return Err(End::Stop);
            }
        }
        *lock(&self.beat) = Some(writer);
        Ok(())
    }

    /// Sets the desired pods; takes listeners of new ones, lets go of released ones.
    fn reconcile(&mut self, keeper: &KeeperClient, desired: &[PodSpec]) -> Result<(), End> {
        let states = keeper.set_pods(desired)?;
        let states: BTreeMap<String, PodState> = states.into_iter().map(|s| (s.uid.clone(), s)).collect();
        // Out, or in again in another namespace: what we hold of the old one would keep it alive, and be taken for the new.
        let same = |uid: &String, cookie: u64| states.get(uid).is_some_and(|s| s.enrolled && s.netns_cookie == cookie);
        let gone: Vec<String> =
            self.held.iter().filter(|(uid, (cookie, _))| !same(uid, *cookie)).map(|(uid, _)| uid.clone()).collect();
        for uid in &gone {
            self.let_go(uid);
        }
        for state in states.values().filter(|state| state.enrolled) {
            // Generation 0: a restarted keeper that has the listeners we gave back.
            let stale = |(_, held): &(u64, PodListeners)| {
                state.listener_generation != 0 && held.generation != state.listener_generation
            };
            if self.held.get(&state.uid).is_none_or(stale) {
                self.take(keeper, state)?;
            }
        }
        let mut view = lock(&self.view);
        for (uid, state) in &states {
            if !state.enrolled && view.pods.get(uid).map(|s| &s.reason) != Some(&state.reason) {
                tracing::warn!(reason = state.reason, "pod not enrolled");
            }
        }
        view.released = states.is_empty() && !desired.is_empty();
        view.pods = states;
        Ok(())
    }

    /// Stops accepting for a pod, at once.
    fn let_go(&mut self, uid: &str) {
        if let Some((_, held)) = self.held.remove(uid) {
            held.shut_down();
        }
        let uid = PodUid::new(uid);
        self.sockets.forget(&uid);
        self.send(LinkEvent::Released(uid));
    }

    fn take(&mut self, keeper: &KeeperClient, pod: &PodState) -> Result<(), End> {
        let listeners = match keeper.take_listeners(&pod.uid) {
            Ok(listeners) => listeners,
            Err(error) if error.is_disconnected() => return Err(error.into()),
            Err(error) => {
                tracing::error!(pod = pod.uid, %error, "no listeners");
                return Ok(());
            }
        };
        let uid = PodUid::new(&pod.uid);
        self.sockets.admit(&uid);
        if self.hand_over(&uid, &listeners) {
            self.held.insert(pod.uid.clone(), (pod.netns_cookie, listeners));
        }
        Ok(())
    }

    /// Gives the data plane copies of a pod's listeners, and returns when it accepts.
    fn hand_over(&self, uid: &PodUid, listeners: &PodListeners) -> bool {
        let copies = match duplicate(uid, listeners) {
            Ok(copies) => copies,
            Err(error) => {
                tracing::error!(pod = %uid, %error, "no descriptors for the listeners");
                return false;
            }
        };
        let (accepting, accepts) = oneshot::channel();
        self.send(LinkEvent::Enrolled(uid.clone(), copies, accepting));
        // Ready means that every listener is served. An agent that ends meanwhile drops the sender.
        let _ = accepts.blocking_recv();
        true
    }

    /// A thread that waits for events of this keeper; it ends with the connection.
    fn watch(&self) -> Result<WatchGuard, End> {
        let watcher = KeeperClient::connect(&self.run_dir, Role::Agent, VERSION)?.watch()?;
        let guard = watcher.guard()?;
        let (events, wishes, connection) = (self.events.clone(), Arc::clone(&self.wishes), self.connection);
        let watching = move || {
            if let Some(reason) = wait_for_event(&watcher) {
                let _ = events.blocking_send(LinkEvent::Drain(reason));
            } else {
                lock(&wishes.0).lost = connection;
                wishes.1.notify_all();
            }
        };
        std::thread::Builder::new()
            .name("keeper-events".into())
            .spawn(watching)
            .map_err(|source| DatapathError::Io { what: "start a thread".into(), source })?;
        Ok(guard)
    }

    fn send(&self, event: LinkEvent) {
        // Bounded: if the control runtime is behind, this thread waits; the data plane does not.
        if self.events.blocking_send(event).is_err() {
            lock(&self.wishes.0).stop = true;
        }
    }

    /// Waits until `wanted` or the time is over; says whether it was wanted.
    fn wait(&self, time: Option<Duration>, wanted: impl Fn(&Wishes) -> bool) -> bool {
        let (mutex, condvar) = &*self.wishes;
        let time = time.unwrap_or(BACKOFF_MAX);
        let (wishes, _) = condvar
            .wait_timeout_while(lock(mutex), time, |wishes| !wanted(wishes))
            .unwrap_or_else(PoisonError::into_inner);
        wanted(&wishes)
    }
}

fn wait_for_event(watcher: &Watcher) -> Option<&'static str> {
    match watcher.next() {
        Ok(Some(Event::Superseded(_))) => Some("another agent accepts now"),
        Ok(Some(Event::Uninstalled(_))) => Some("Heddle is being removed from this node"),
        Ok(None) => None,
        Err(error) => {
            tracing::debug!(%error, "keeper events end");
            None
        }
    }
}

fn duplicate(uid: &PodUid, listeners: &PodListeners) -> std::io::Result<heddle_proxy::PodListeners> {
    let copy = |list: &[std::net::TcpListener]| -> std::io::Result<Vec<_>> {
        list.iter().map(std::net::TcpListener::try_clone).collect()
    };
    let shards = listeners
        .outbound
        .iter()
        .zip(&listeners.inbound)
        .zip(&listeners.hbone)
        .map(|((outbound, inbound), hbone)| {
            Ok(heddle_proxy::ShardListeners { outbound: copy(outbound)?, inbound: copy(inbound)?, hbone: copy(hbone)? })
        })
        .collect::<std::io::Result<_>>()?;
    Ok(heddle_proxy::PodListeners { uid: uid.clone(), addresses: Vec::new(), identity: None, shards })
}
