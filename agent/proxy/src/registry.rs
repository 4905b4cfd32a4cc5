//! The connection registry: every open connection, from before its budget is checked until it is closed.
//!
//! Each worker keeps its own table, touched only by its own thread. Listing and closing go to the workers as commands over
//! bounded channels; a busy worker answers when it next runs, and the asker bounds its patience.

mod table;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant, SystemTime};

use heddle_model::{ClientAddr, MtlsMode, OriginalDst, PodUid, Service, Snapshot, Workload};
use heddle_telemetry::{AccessRecord, Direction, Reason, Reporter, TcpHandle, Via};
use tokio::sync::Notify;

use crate::authz::{AsOf, Decided, NetworkVerdict, Rules};
use crate::budget::Pod;
use crate::labels::LabelKey;
use crate::worker::Worker;

pub use table::{ConnectionList, Registry};
pub(crate) use table::{Predicate, Table};

/// How long after it was accepted a connection may be silent although its worker drains, at least.
const FIRST_BYTES_GRACE: Duration = Duration::from_secs(1);

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Accepted; not resolved yet.
    Accepted,
    /// Connecting upstream.
    Dialling,
    /// Carrying bytes both ways.
    Open,
    /// The downstream ended its direction.
    DownstreamClosed,
    /// The upstream ended its direction.
    UpstreamClosed,
}

impl State {
    /// Stable word for the CLI.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Dialling => "dialling",
            Self::Open => "open",
            Self::DownstreamClosed => "downstream_closed",
            Self::UpstreamClosed => "upstream_closed",
        }
    }
}

/// One open connection at a moment.
#[derive(Clone, Debug)]
pub struct ConnectionView {
    /// Number of the connection in this agent, also in its access record.
    pub id: u64,
    /// Worker that carries it.
    pub worker: usize,
    /// Pod whose listener accepted it.
    pub pod: PodUid,
    /// Whether the pod calls or is called.
    pub direction: Direction,
    /// Where it is in its life.
    pub state: State,
    /// True client.
    pub client: SocketAddr,
    /// The caller, if it is a pod we know.
    pub source: Option<Arc<Workload>>,
    /// What the client asked for.
    pub original_destination: Option<SocketAddr>,
    /// The Service it belongs to, and its port.
    pub service: Option<(Arc<Service>, u16)>,
    /// The pod behind the chosen endpoint, if we know it.
    pub destination: Option<Arc<Workload>>,
    /// Address dialled last.
    pub upstream: Option<SocketAddr>,
    /// When it was accepted.
    pub started: SystemTime,
    /// How long it has been open.
    pub age: Duration,
    /// Bytes from the destination to the source; of a connection of requests those of the bodies.
    pub bytes_sent: u64,
    /// The same from the source to the destination.
    pub bytes_received: u64,
    /// HTTP requests so far, those under way included.
    pub requests: u64,
    /// What carries it between the two pods.
    pub transport: Via,
    /// SPIFFE id the caller proved; empty if none.
    pub source_principal: Arc<str>,
    /// SPIFFE id of the called side; empty if none.
    pub destination_principal: Arc<str>,
    /// Server name of a TLS ClientHello that was passed through.
    pub sni: Option<Box<str>>,
}

/// What a connection is connected to, as far as it is known.
#[derive(Clone, Default)]
pub(crate) struct Target {
    pub(crate) service: Option<(Arc<Service>, u16)>,
    pub(crate) workload: Option<Arc<Workload>>,
    /// Passed through to an address nobody knows.
    pub(crate) external: bool,
}

/// One connection: its registry entry and its access record in the making. The task's future borrows it, the task ends it.
pub(crate) struct Conn {
    pub(crate) id: u64,
    pub(crate) worker: Rc<Worker>,
    pub(crate) pod: Rc<Pod>,
    pub(crate) direction: Direction,
    pub(crate) client: ClientAddr,
    pub(crate) original: Option<OriginalDst>,
    pub(crate) source: Option<Arc<Workload>>,
    pub(crate) state: Cell<State>,
    pub(crate) upstream: Cell<Option<SocketAddr>>,
    pub(crate) attempts: Cell<u32>,
    /// The connection of the mesh that carries it, or the client's that was handed over: it can end it, this one has no task.
    carrier: Option<Rc<Conn>>,
    /// The called side, where its bytes are handed over on this node: counted there too. Let go of at the end, for it holds this one.
    called: RefCell<Option<Rc<Conn>>>,
    /// It was taken as plain text, which its port may stop to allow.
    pub(crate) is_plaintext: Cell<bool>,
    /// Its bytes were let in: it ends when they are not any more.
    pub(crate) carries_bytes: Cell<bool>,
    /// It carries the streams of a peer, each of which is judged by itself.
    pub(crate) is_peers: Cell<bool>,
    is_retired: Cell<bool>,
    /// The rules of the called port, as of which policies.
    pub(crate) rules: RefCell<Option<AsOf<Rc<Rules>>>>,
    /// What NetworkPolicies say of it, likewise.
    pub(crate) network: RefCell<Option<AsOf<Option<Rc<NetworkVerdict>>>>>,
    /// What was decided about its bytes.
    pub(crate) decided: RefCell<Option<Box<Decided>>>,
    /// Told when a carried connection is cut.
    pub(crate) carried_cut: Notify,
    via: Cell<Via>,
    /// SPIFFE ids of source and destination, as far as they are proved.
    principals: RefCell<(Arc<str>, Arc<str>)>,
    target: RefCell<Target>,
    tcp: RefCell<Option<TcpHandle>>,
    started: Instant,
    started_wall: SystemTime,
    sent: Cell<u64>,
    received: Cell<u64>,
    has_budget: Cell<bool>,
    /// The tick at which it is out of time, if it waits for something that has to come in time.
    deadline: Cell<Option<u64>>,
    expired: Cell<bool>,
    /// Carries HTTP: its requests are counted and logged, not the connection itself.
    is_http: Cell<bool>,
    /// It ends for something that none of its requests can tell.
    ends_for_itself: Cell<bool>,
    requests: Cell<u64>,
    requests_under_way: Cell<u64>,
    sni: RefCell<Option<Box<str>>>,
    ended: Cell<Option<Reason>>,
    cut: Cell<Option<Reason>>,
    waker: RefCell<Option<Waker>>,
}

impl Conn {
    /// Enters a new connection in the registry and counts it as accepted. From here on [`Conn::end`] is called exactly once,
    /// by the accept loop if it is refused at once, else by its task, whatever happens to that.
    pub(crate) fn enter(
        worker: &Rc<Worker>,
        pod: &Rc<Pod>,
        direction: Direction,
        client: ClientAddr,
        original: Option<OriginalDst>,
        source: Option<Arc<Workload>>,
    ) -> Rc<Self> {
        Self::enter_carried(worker, pod, direction, client, original, source, None)
    }

    /// The same for one that has no socket of its own: it lives inside `carrier`, whose task ends it.
    pub(crate) fn enter_carried(
        worker: &Rc<Worker>,
        pod: &Rc<Pod>,
        direction: Direction,
        client: ClientAddr,
        original: Option<OriginalDst>,
        source: Option<Arc<Workload>>,
        carrier: Option<Rc<Self>>,
    ) -> Rc<Self> {
        let conn = Rc::new(Self {
            id: worker.next_connection_id(),
            worker: worker.clone(),
            pod: pod.clone(),
            direction,
            client,
            original,
            source,
            state: Cell::new(State::Accepted),
            upstream: Cell::new(None),
            attempts: Cell::new(0),
            carrier,
            called: RefCell::default(),
            is_plaintext: Cell::new(false),
            carries_bytes: Cell::new(false),
            is_peers: Cell::new(false),
            is_retired: Cell::new(false),
            rules: RefCell::default(),
            network: RefCell::default(),
            decided: RefCell::default(),
            carried_cut: Notify::new(),
            via: Cell::new(Via::Plain),
            principals: RefCell::default(),
            target: RefCell::default(),
            tcp: RefCell::new(None),
            started: Instant::now(),
            started_wall: SystemTime::now(),
            sent: Cell::new(0),
            received: Cell::new(0),
            has_budget: Cell::new(false),
            deadline: Cell::new(None),
            expired: Cell::new(false),
            is_http: Cell::new(false),
            ends_for_itself: Cell::new(false),
            requests: Cell::new(0),
            requests_under_way: Cell::new(0),
            sni: RefCell::new(None),
            ended: Cell::new(None),
            cut: Cell::new(None),
            waker: RefCell::new(None),
        });
        worker.metrics().count_accepted(direction);
        worker.table.insert(conn.clone());
        conn
    }

    /// Takes a place in the pod's budget; the end gives it back.
    pub(crate) fn take_budget(&self) -> Result<(), Reason> {
        if self.pod.budget.try_connect(self.worker.limits().connections_max) {
            self.has_budget.set(true);
            return Ok(());
        }
        self.worker.metrics().count_budget_exceeded(Reason::PodConnectionsMax);
        Err(Reason::PodConnectionsMax)
    }

    /// Says what it is meant to be connected to.
    pub(crate) fn set_target(&self, target: Target) {
        *self.target.borrow_mut() = target;
    }

    /// The endpoint tried now, of the same Service.
    pub(crate) fn set_endpoint(&self, addr: SocketAddr, workload: Option<&Arc<Workload>>) {
        self.upstream.set(Some(addr));
        self.target.borrow_mut().workload = workload.cloned();
    }

    /// Counts bytes from the downstream to the upstream, which is from source to destination on both sides.
    pub(crate) fn add_received(&self, bytes: u64) {
        self.received.set(self.received.get() + bytes);
        if let Some(tcp) = &*self.tcp.borrow() {
            tcp.received(bytes);
        }
        if let Some(called) = &*self.called.borrow() {
            called.add_received(bytes);
        }
    }

    /// Counts bytes from the upstream to the downstream.
    pub(crate) fn add_sent(&self, bytes: u64) {
        self.sent.set(self.sent.get() + bytes);
        if let Some(tcp) = &*self.tcp.borrow() {
            tcp.sent(bytes);
        }
        if let Some(called) = &*self.called.borrow() {
            called.add_sent(bytes);
        }
    }

    /// Counts the connection as opened, with the labels known now; the first call decides. Called when the upstream is
    /// connected, so that the series names the workload that answered, or at the end if none did.
    pub(crate) fn open_series(&self) {
        let mut tcp = self.tcp.borrow_mut();
        if tcp.is_none() {
            let handle = self.label_key("-").handle(&self.worker);
            handle.opened();
            *tcp = Some(handle);
        }
    }

    /// Asks the connection's task to end it with `reason`; the first reason stands.
    pub(crate) fn cut(&self, reason: Reason) {
        if self.cut.get().is_none() && self.ended.get().is_none() {
            self.cut.set(Some(reason));
            self.wake();
            self.carried_cut.notify_waiters();
            if self.via.get() == Via::Handover
                && let Some(carrier) = &self.carrier
            {
                // A client that asks nothing of this side has no part in its end.
                if self.is_http.get() && self.requests_under_way.get() == 0 {
                    self.end(reason);
                } else {
                    carrier.cut(reason);
                }
            }
        }
    }

    /// Whether it ended, or is about to.
    pub(crate) fn is_leaving(&self) -> bool {
        self.ended.get().is_some() || self.cut.get().is_some()
    }

    /// Waits until a connection that is carried by another is cut.
    pub(crate) async fn cut_while_carried(&self) -> Reason {
        loop {
            let notified = self.carried_cut.notified();
            if let Some(reason) = self.cut.get() {
                return reason;
            }
            notified.await;
        }
    }

    /// What carries it between the two pods, and who they proved to be: source, destination.
    pub(crate) fn set_via(&self, via: Via, source: &str, destination: &str) {
        let mut principals = self.principals.borrow_mut();
        self.via.set(via);
        // Set for every request: the same most of the time.
        if &*principals.0 != source {
            principals.0 = source.into();
        }
        if &*principals.1 != destination {
            principals.1 = destination.into();
        }
    }

    /// The connection that carries it.
    pub(crate) fn carrier(&self) -> Option<&Rc<Self>> {
        self.carrier.as_ref()
    }

    /// Whether another connection carries it, and it has no socket of its own.
    pub(crate) fn is_carried(&self) -> bool {
        self.carrier.is_some()
    }

    /// What carries it between the two pods.
    pub(crate) fn via(&self) -> Via {
        self.via.get()
    }

    /// SPIFFE id the caller proved; empty if none.
    pub(crate) fn source_principal(&self) -> Arc<str> {
        self.principals.borrow().0.clone()
    }

    /// What the called port takes.
    pub(crate) fn mode(&self, snapshot: &Snapshot) -> MtlsMode {
        let port = self.original.map_or(0, |original| original.port());
        let own = self.pod.workload(snapshot);
        own.map_or(snapshot.mesh.mtls, |workload| workload.mtls.of(port, &snapshot.mesh))
    }

    /// Its bytes are handed over to `called`, which ends with it.
    pub(crate) fn hands_over_to(&self, called: &Rc<Self>) {
        *self.called.borrow_mut() = Some(called.clone());
    }

    /// Its peer is to make another one: it takes what is on its way, and ends behind its last stream.
    pub(crate) fn retire(&self) {
        if !self.is_retired.replace(true) {
            self.wake();
        }
    }

    /// Whether it is.
    pub(crate) fn is_retired(&self) -> bool {
        self.is_retired.get()
    }

    /// How long ago it was accepted.
    pub(crate) fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Has the connection's task look around.
    pub(crate) fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// The connection is out of time after `timeout`, to the second, unless [`Conn::clear_deadline`] comes first.
    pub(crate) fn set_deadline(&self, timeout: std::time::Duration) {
        // The tick under way has begun already.
        self.deadline.set(Some(self.worker.tick() + timeout.as_secs() + 1));
    }

    /// Nothing has to come in time any more.
    pub(crate) fn clear_deadline(&self) {
        self.deadline.set(None);
        self.expired.set(false);
    }

    /// Whether a deadline is set.
    pub(crate) fn has_deadline(&self) -> bool {
        self.deadline.get().is_some()
    }

    /// Whether a drain ends it now, nobody having said a word. One that was accepted a moment before gets that moment, for its client's
    /// first bytes may be on their way; it is woken when that is over. Whoever hears them calls [`Conn::clear_deadline`].
    pub(crate) fn leaves_in_silence(&self) -> bool {
        if !self.worker.draining.get() {
            return false;
        }
        if self.started.elapsed() >= FIRST_BYTES_GRACE {
            return true;
        }
        if self.deadline.get().is_none_or(|at| at > self.worker.tick() + FIRST_BYTES_GRACE.as_secs() + 1) {
            self.set_deadline(FIRST_BYTES_GRACE);
        }
        false
    }

    /// Whether the deadline passed.
    pub(crate) fn is_out_of_time(&self) -> bool {
        self.expired.get()
    }

    /// From here on it carries HTTP.
    pub(crate) fn carries_http(&self) {
        self.is_http.set(true);
        self.state.set(State::Open);
    }

    /// The name a TLS client asked for, where it was read.
    pub(crate) fn sni(&self) -> Option<Box<str>> {
        self.sni.borrow().clone()
    }

    /// A TLS client asked for this name.
    pub(crate) fn set_sni(&self, name: String) {
        *self.sni.borrow_mut() = Some(name.into());
    }

    /// It ends for something that none of its requests can tell: its own record does.
    pub(crate) fn ends_for_itself(&self) {
        self.ends_for_itself.set(true);
    }

    /// A request of it is under way.
    pub(crate) fn begin_request(&self) {
        self.requests_under_way.set(self.requests_under_way.get() + 1);
    }

    /// It is no longer.
    pub(crate) fn end_request(&self) {
        self.requests_under_way.set(self.requests_under_way.get() - 1);
    }

    /// Whether any is.
    pub(crate) fn has_requests_under_way(&self) -> bool {
        self.requests_under_way.get() > 0
    }

    /// A request of it was recorded.
    pub(crate) fn count_request(&self) {
        self.requests.set(self.requests.get() + 1);
    }

    /// The reason it ended for, once it has.
    pub(crate) fn ended(&self) -> Option<Reason> {
        self.ended.get()
    }

    /// Bytes carried so far: received, sent.
    pub(crate) fn carried(&self) -> (u64, u64) {
        (self.received.get(), self.sent.get())
    }

    /// The reason it is to be ended for, if any; otherwise `waker` will be woken when there is one.
    pub(crate) fn poll_cut(&self, waker: &Waker) -> Option<Reason> {
        let cut = self.cut.get();
        if cut.is_none() {
            let mut slot = self.waker.borrow_mut();
            if !slot.as_ref().is_some_and(|w| w.will_wake(waker)) {
                *slot = Some(waker.clone());
            }
        }
        cut
    }

    /// Ends the connection: leaves the registry, gives the budget back, counts, and logs. Only the first call does anything.
    pub(crate) fn end(&self, reason: Reason) {
        if self.ended.get().is_some() {
            return;
        }
        self.ended.set(Some(reason));
        if let Some(called) = self.called.take() {
            called.end(reason);
        }
        self.worker.table.remove(self.id);
        if self.has_budget.get() {
            self.pod.budget.disconnect();
        }
        let flags = reason.response_flags();
        if self.is_http.get() {
            // Its requests were counted.
        } else if flags == "-" {
            self.open_series();
            if let Some(tcp) = &*self.tcp.borrow() {
                tcp.closed();
            }
        } else {
            self.open_series();
            self.label_key(flags).handle(&self.worker).closed();
        }
        self.worker.metrics().count_ended(self.direction, reason);
        // A request under way is told when its own record ends, with this reason.
        let has_requests = self.requests.get() + self.requests_under_way.get() > 0;
        let is_told = self.is_http.get() && !self.ends_for_itself.get() && (has_requests || reason.is_success());
        if !is_told && self.worker.telemetry.access.enabled() {
            self.worker.telemetry.access.log(self.record(reason));
        }
        self.worker.table.ended.notify_waiters();
    }

    pub(crate) fn label_key(&self, flags: &'static str) -> LabelKey {
        let target = self.target.borrow();
        LabelKey {
            direction: self.direction,
            flags,
            source: self.source.clone(),
            destination: target.workload.clone(),
            service: target.service.as_ref().map(|(s, _)| s.clone()),
            external: target.external,
            is_authenticated: self.via.get().is_authenticated(),
        }
    }

    pub(crate) fn record(&self, reason: Reason) -> AccessRecord {
        let target = self.target.borrow();
        let (source, destination) = (self.source.as_ref(), target.workload.as_ref());
        let name =
            |w: Option<&Arc<Workload>>, f: fn(&Workload) -> &Arc<str>| w.map(|w| f(w).clone()).unwrap_or_default();
        let service = target.service.as_ref().map(|(service, port)| {
            let host = service.host(&self.worker.snapshot().mesh.cluster_domain);
            Arc::from(format!("{host}:{port}"))
        });
        AccessRecord {
            start_time: self.started_wall,
            duration: self.started.elapsed(),
            node: self.worker.config.node.clone(),
            reporter: match self.direction {
                Direction::Outbound => Reporter::Source,
                Direction::Inbound => Reporter::Destination,
            },
            reason,
            response_flags: reason.response_flags(),
            source_address: self.client.get(),
            source_namespace: name(source, |w| &w.namespace),
            source_pod: name(source, |w| &w.name),
            source_workload: name(source, |w| &w.workload_name),
            original_destination: self.original.map(OriginalDst::get),
            destination_service: service.unwrap_or_default(),
            destination_namespace: name(destination, |w| &w.namespace),
            destination_pod: name(destination, |w| &w.name),
            destination_workload: name(destination, |w| &w.workload_name),
            upstream_address: self.upstream.get(),
            attempts: self.attempts.get(),
            bytes_sent: self.sent.get(),
            bytes_received: self.received.get(),
            connection_id: self.id,
            transport: self.via.get(),
            source_principal: self.principals.borrow().0.clone(),
            destination_principal: self.principals.borrow().1.clone(),
            sni: self.sni.borrow().clone().unwrap_or_default(),
            http: None,
            policy: self.decided.borrow().as_ref().and_then(|decided| decided.fields()),
        }
    }

    fn view(&self) -> ConnectionView {
        let target = self.target.borrow();
        ConnectionView {
            id: self.id,
            worker: self.worker.index,
            pod: self.pod.uid().clone(),
            direction: self.direction,
            state: self.state.get(),
            client: self.client.get(),
            source: self.source.clone(),
            original_destination: self.original.map(OriginalDst::get),
            service: target.service.clone(),
            destination: target.workload.clone(),
            upstream: self.upstream.get(),
            started: self.started_wall,
            age: self.started.elapsed(),
            bytes_sent: self.sent.get(),
            bytes_received: self.received.get(),
            requests: self.requests.get() + self.requests_under_way.get(),
            transport: self.via.get(),
            source_principal: self.principals.borrow().0.clone(),
            destination_principal: self.principals.borrow().1.clone(),
            sni: self.sni.borrow().clone(),
        }
    }
}
