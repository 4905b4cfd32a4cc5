//! One HTTP/2 connection to a server as a task: its time is charged to the pod, it asks a silent server whether it is still
//! there, and it ends soon after its last user. A drain waits for it.
//!
//! Why PING and not `TCP_USER_TIMEOUT`: the kernel counts that also against a live peer that closed its window, so it would cut
//! uploads whose server takes a pause. An HTTP/2 server reads its socket whatever its streams do, so silence means that it is gone.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use h2::client::Connection;
use h2::{Ping, PingPong};
use heddle_telemetry::Reason;
use tokio::sync::Notify;

use super::flow::Flow;
use super::io::{Io, Outlet, Verdict};
use crate::budget::Pod;
use crate::config::Config;
use crate::copy::burst;
use crate::hash::FastMap;
use crate::registry::Conn;
use crate::worker::Worker;

/// Ticks a connection that nobody uses any more has to say goodbye: a server that does not read would hold it for ever.
pub(crate) const GOODBYE_TICKS: u64 = 5;
/// Ticks between two PINGs to a server that sends neither responses nor data. gRPC servers allow one in five minutes, and close
/// the connection ("too_many_pings") after the third that comes sooner.
const PING_INTERVAL_TICKS: u64 = 310;

/// What the pool, the driver and the worker's clock know of a connection.
pub(crate) struct Link {
    /// Streams that have a place on it.
    pub(crate) streams: Cell<usize>,
    pod: Rc<Pod>,
    verdict: Rc<Verdict>,
    /// It takes no more streams.
    is_over: Cell<bool>,
    /// Ticks since its last user is gone.
    released: Cell<Option<u64>>,
    /// The worker's clock as of its last tick.
    now: Cell<u64>,
    /// Ticks with streams open since the server last said anything.
    silent: Cell<u64>,
    /// Ticks since the last PING, and what the server had sent of use before it.
    pinged: Cell<Option<(u64, u64)>>,
    wants_ping: Cell<bool>,
    awaits_pong: Cell<bool>,
    is_cut: Cell<bool>,
    ended_for: Cell<Option<Reason>>,
    /// The server's SETTINGS are known, or never will be.
    is_settled: Cell<bool>,
    settled: Notify,
    waker: RefCell<Option<Waker>>,
}

impl Link {
    fn new(pod: &Rc<Pod>, verdict: &Rc<Verdict>, now: u64) -> Self {
        Self {
            now: Cell::new(now),
            streams: Cell::new(0),
            pod: pod.clone(),
            verdict: verdict.clone(),
            is_over: Cell::new(false),
            released: Cell::new(None),
            silent: Cell::new(0),
            pinged: Cell::new(None),
            wants_ping: Cell::new(false),
            awaits_pong: Cell::new(false),
            is_cut: Cell::new(false),
            ended_for: Cell::new(None),
            is_settled: Cell::new(false),
            settled: Notify::new(),
            waker: RefCell::new(None),
        }
    }

    /// It takes no more streams; those it has go on.
    pub(crate) fn leave(&self) {
        self.is_over.set(true);
    }

    /// Whether it takes no more streams.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over.get()
    }

    /// Seconds since its worker started.
    pub(crate) fn tick_now(&self) -> u64 {
        self.now.get()
    }

    /// Whether its pod is still there to use it.
    pub(crate) fn is_wanted(&self) -> bool {
        self.pod.budget.attached.load(Relaxed)
    }

    /// Why it ended, where its streams cannot tell.
    pub(crate) fn ended_for(&self) -> Option<Reason> {
        self.ended_for.get()
    }

    /// Nobody uses it any more: it has to end.
    pub(crate) fn release(&self) {
        self.leave();
        self.released.set(Some(0));
        self.wake();
    }

    /// Ends it at once, with a reset.
    fn cut(&self) {
        self.leave();
        self.is_cut.set(true);
        self.wake();
    }

    /// Waits until the server's SETTINGS are known, or never will be.
    pub(crate) async fn greeted(&self) {
        if !self.is_settled.get() {
            self.settled.notified().await;
        }
    }

    fn settle(&self) {
        if !self.is_settled.replace(true) {
            self.settled.notify_waiters();
        }
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// A second passed.
    fn tick(&self, ping_after: u64, pong_within: u64) {
        self.now.update(|now| now + 1);
        if let Some(ticks) = self.released.get() {
            self.released.set(Some(ticks + 1));
            if ticks >= GOODBYE_TICKS {
                self.cut();
            }
            return;
        }
        let pinged = self.pinged.get().map(|(ticks, useful)| (ticks + 1, useful));
        self.pinged.set(pinged);
        if self.verdict.has_heard.replace(false) {
            self.silent.set(0);
            self.awaits_pong.set(false);
            return;
        }
        if self.awaits_pong.get() {
            if pinged.is_some_and(|(ticks, _)| ticks >= pong_within) {
                self.ended_for.set(Some(Reason::UpstreamLost));
                self.cut();
            }
            return;
        }
        if self.streams.get() == 0 {
            return;
        }
        self.silent.update(|ticks| ticks + 1);
        let useful = self.verdict.meter.borrow().received();
        let is_too_soon = pinged.is_some_and(|(ticks, before)| before == useful && ticks < PING_INTERVAL_TICKS);
        if self.silent.get() >= ping_after && !is_too_soon {
            self.pinged.set(Some((0, useful)));
            self.awaits_pong.set(true);
            self.wants_ping.set(true);
            self.wake();
        }
    }
}

/// Every HTTP/2 connection to a server that a worker has: in a pool, a client's own, or saying goodbye.
#[derive(Default)]
pub(crate) struct Links {
    all: RefCell<FastMap<u64, Rc<Link>>>,
    next: Cell<u64>,
    ended: Notify,
}

impl Links {
    /// A second passed.
    pub(crate) fn tick(&self, config: &Config) {
        let (ping_after, pong_within) = (config.upstream_silence_max.as_secs(), config.upstream_ping_timeout.as_secs());
        self.all.borrow().values().for_each(|link| link.tick(ping_after, pong_within));
    }

    /// Ends all of them at once.
    pub(crate) fn cut(&self) {
        self.all.borrow().values().for_each(|link| link.cut());
    }

    /// Waits until there are none.
    pub(crate) async fn empty(&self) {
        loop {
            let ended = self.ended.notified();
            if self.all.borrow().is_empty() {
                return;
            }
            ended.await;
        }
    }

    fn insert(&self, link: Rc<Link>) -> u64 {
        let id = self.next.get();
        self.next.set(id + 1);
        self.all.borrow_mut().insert(id, link);
        id
    }

    fn remove(&self, id: u64) {
        self.all.borrow_mut().remove(&id);
        self.ended.notify_waiters();
    }
}

/// Drives a connection to its end.
pub(crate) struct Driver {
    worker: Rc<Worker>,
    id: u64,
    link: Rc<Link>,
    flow: Rc<Flow>,
    connection: Connection<Io, Bytes>,
    outlet: Outlet,
    ping_pong: Option<PingPong>,
}

impl Driver {
    /// Begins to drive a connection on behalf of `conn`'s pod.
    pub(crate) fn spawn(
        conn: &Rc<Conn>,
        flow: Rc<Flow>,
        mut connection: Connection<Io, Bytes>,
        verdict: Rc<Verdict>,
        outlet: Outlet,
    ) -> Rc<Link> {
        outlet.begin();
        let (worker, link) = (conn.worker.clone(), Rc::new(Link::new(&conn.pod, &verdict, conn.worker.tick())));
        let (id, ping_pong) = (worker.links.insert(link.clone()), connection.ping_pong());
        tokio::task::spawn_local(Self { worker, id, link: link.clone(), flow, connection, outlet, ping_pong });
        link
    }

    fn poll_connection(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Self { link, flow, connection, outlet, ping_pong, .. } = self;
        if link.is_cut.get() {
            return Poll::Ready(());
        }
        if let Some(ping_pong) = ping_pong {
            // Takes the answer, so that another PING can be sent.
            let _ = ping_pong.poll_pong(cx);
            if link.wants_ping.get() && ping_pong.send_ping(Ping::opaque()).is_ok() {
                link.wants_ping.set(false);
            }
        }
        let turn = burst(self.worker.table.len());
        link.verdict.begin_turn(turn, turn);
        if let Some(window) = flow.new_window() {
            connection.set_target_window_size(window);
        }
        let polled = Pin::new(connection).poll(cx);
        outlet.send(cx);
        flow.driven(cx, link.verdict.is_flushed.get());
        if link.verdict.meter.borrow().has_greeted() {
            link.settle();
        }
        let Poll::Ready(ended) = polled else { return Poll::Pending };
        link.verdict.is_clean.set(ended.is_ok());
        if link.verdict.is_abuse.get() {
            link.ended_for.set(Some(Reason::ResponseAbuse));
        } else if let Some(failure) = link.verdict.tls_failure.get() {
            link.ended_for.set(Some(failure.reason()));
        }
        Poll::Ready(())
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let start = Instant::now();
        {
            let mut waker = self.link.waker.borrow_mut();
            if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
        }
        let polled = self.poll_connection(cx);
        if polled.is_ready() {
            self.link.leave();
        }
        self.link.pod.budget.charge_cpu(self.worker.index, start.elapsed());
        polled
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.link.leave();
        self.link.settle();
        self.flow.ended();
        self.worker.links.remove(self.id);
    }
}
