//! Upstream connections that speak HTTP/2: shared by many streams, driven by a task of their own that their owner ends.
//!
//! Streams that need a connection at once share one dial. A connection whose server was told who the client is belongs to that
//! client's connection alone, so each keeps a set of its own beside the worker's.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::SendStream;
use h2::client::{Builder, Connection, ResponseFuture, SendRequest};
use heddle_model::Snapshot;
use heddle_telemetry::Reason;
use http::Request;
use std::net::SocketAddr;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::io::{Io, Verdict};
use super::standing::Standing;
use super::{CONNECTION_WINDOW_BYTES, HEADER_LIST_BYTES_MAX, SEND_BUFFER_BYTES_MAX, STREAM_WINDOW_BYTES};
use crate::dial::{self, Failure, Hop};
use crate::registry::Conn;

/// Connections to one endpoint per pod; beyond it streams wait for a place on them.
pub(crate) const CONNECTIONS_PER_ENDPOINT_MAX: usize = 8;
/// Streams that were given up before a connection takes no more, if they are more than half of all. Servers end a connection on which most
/// streams are reset, and with it the streams of clients that had no part in it: it has to retire before.
const GIVEN_UP_MAX: u32 = 100;

/// One connection.
pub(crate) struct Shared {
    sender: RefCell<SendRequest<Bytes>>,
    streams: Cell<usize>,
    /// Streams it ever had, and those of them that were given up.
    opened: Cell<u32>,
    given_up: Cell<u32>,
    /// It takes no more streams: it ended, or its server said so.
    is_dead: Rc<Cell<bool>>,
    greeted: Rc<Greeted>,
    /// Tick since which it has no stream.
    idle_since: Cell<u64>,
    task: AbortHandle,
}

/// Whether the server's SETTINGS are known, or never will be.
#[derive(Default)]
struct Greeted {
    is_settled: Cell<bool>,
    settled: Notify,
}

impl Greeted {
    fn settle(&self) {
        if !self.is_settled.replace(true) {
            self.settled.notify_waiters();
        }
    }
}

impl Shared {
    /// Whether it may take another stream, now or later.
    fn is_good(&self) -> bool {
        let given_up = self.given_up.get();
        let is_worn = given_up >= GIVEN_UP_MAX && given_up > self.opened.get() / 2;
        !self.is_dead.get() && !is_worn
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Without a stream the connection says goodbye by itself once its last sender is gone.
        if self.streams.get() > 0 {
            self.task.abort();
        }
    }
}

/// A place on a connection for one stream.
pub(crate) struct Place {
    shared: Rc<Shared>,
    /// On a connection that served others before: its server may have closed it just now.
    pub(crate) reused: bool,
    tick: u64,
    is_complete: Cell<bool>,
}

impl Place {
    fn on(shared: &Rc<Shared>, tick: u64) -> Self {
        shared.streams.set(shared.streams.get() + 1);
        let opened = shared.opened.replace(shared.opened.get().saturating_add(1));
        Self { shared: shared.clone(), reused: opened > 0, tick, is_complete: Cell::new(false) }
    }

    /// Its stream came to its end.
    pub(crate) fn complete(&self) {
        self.is_complete.set(true);
    }

    /// Opens the stream. Where that fails nothing of the request was sent; a connection that takes no more streams is not
    /// offered again.
    pub(crate) async fn open(
        &self,
        request: Request<()>,
        ended: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        let mut sender = self.shared.sender.borrow().clone();
        let opened = match poll_fn(|cx| sender.poll_ready(cx)).await {
            Ok(()) => sender.send_request(request, ended),
            Err(error) => Err(error),
        };
        opened.inspect_err(|error| {
            if error.is_go_away() || error.is_io() {
                self.shared.is_dead.set(true);
            }
        })
    }

    /// Whether its connection takes no more streams.
    pub(crate) fn is_over(&self) -> bool {
        self.shared.is_dead.get()
    }

    /// Whether the server takes extended CONNECT, which its SETTINGS say (RFC 8441 §3). They are waited for.
    pub(crate) async fn takes_extended_connect(&self, patience: Duration) -> bool {
        let Shared { sender, greeted, .. } = &*self.shared;
        let is_enabled = || sender.borrow().is_extended_connect_protocol_enabled();
        if !is_enabled() && !greeted.is_settled.get() {
            // A server that never greets is one that does not.
            let _ = tokio::time::timeout(patience, greeted.settled.notified()).await;
        }
        is_enabled()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.streams.set(self.shared.streams.get() - 1);
        self.shared.idle_since.set(self.tick);
        if !self.is_complete.get() {
            self.shared.given_up.set(self.shared.given_up.get().saturating_add(1));
        }
    }
}

#[derive(Default)]
struct Entry {
    all: Vec<Rc<Shared>>,
    standing: Standing,
    /// A dial is under way.
    dialling: bool,
    /// Dials begun, and how the last one failed, by its number.
    dials: u64,
    failed: Option<(u64, Failure)>,
    changed: Rc<Notify>,
}

/// Connections by pod and endpoint.
#[derive(Default)]
pub(crate) struct PoolH2(RefCell<crate::hash::FastMap<(u64, SocketAddr), Entry>>);

enum Turn {
    Take(Place),
    Dial(u64),
    Wait(u64, Rc<Notify>),
}

impl PoolH2 {
    /// A place on a connection to `hop`, dialled if need be. `dialled` says whether this very call did.
    pub(crate) async fn place(&self, conn: &Rc<Conn>, hop: Hop, dialled: &mut u32) -> Result<Place, Failure> {
        let key = (conn.pod.serial, hop.addr);
        loop {
            match self.turn(key, conn.worker.tick()) {
                Turn::Take(place) => return Ok(place),
                Turn::Wait(dial, changed) => {
                    changed.notified().await;
                    let pool = self.0.borrow();
                    if let Some((failed, failure)) = pool.get(&key).and_then(|e| e.failed)
                        && failed == dial
                    {
                        return Err(failure);
                    }
                }
                Turn::Dial(dial) => {
                    *dialled += 1;
                    // Boxed: most streams never dial, and all would carry the room for it.
                    Box::pin(self.dial(conn, hop, dial)).await?;
                }
            }
        }
    }

    async fn dial(&self, conn: &Rc<Conn>, hop: Hop, dial: u64) -> Result<(), Failure> {
        let mut under_way = Dialling { pool: self, key: (conn.pod.serial, hop.addr), dial, failure: None };
        match dial::unwatched(conn, hop).await {
            Ok(stream) => {
                self.add(conn, hop.addr, stream).await;
                Ok(())
            }
            Err(failure) => {
                under_way.failure = Some(failure);
                Err(failure)
            }
        }
    }

    fn turn(&self, key: (u64, SocketAddr), tick: u64) -> Turn {
        let mut pool = self.0.borrow_mut();
        let entry = pool.entry(key).or_default();
        entry.all.retain(|shared| shared.is_good());
        let room = |s: &&Rc<Shared>| s.streams.get() < s.sender.borrow().current_max_send_streams();
        let least = entry.all.iter().min_by_key(|s| s.streams.get());
        let full = entry.all.len() >= CONNECTIONS_PER_ENDPOINT_MAX;
        if let Some(shared) = entry.all.iter().find(room).or(least.filter(|_| full)) {
            return Turn::Take(Place::on(shared, tick));
        }
        if entry.dialling {
            return Turn::Wait(entry.dials, entry.changed.clone());
        }
        entry.dialling = true;
        entry.dials += 1;
        Turn::Dial(entry.dials)
    }

    /// Speaks HTTP/2 on a new connection and offers it.
    pub(crate) async fn add(&self, conn: &Rc<Conn>, addr: SocketAddr, stream: TcpStream) {
        let verdict = Rc::new(Verdict::default());
        let io = Io::to_server(stream, verdict.clone());
        let mut builder = Builder::new();
        builder
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(HEADER_LIST_BYTES_MAX)
            .max_send_buffer_size(SEND_BUFFER_BYTES_MAX)
            .enable_push(false);
        // The handshake only writes: it does not wait for the server.
        let Ok((sender, connection)) = builder.handshake::<_, Bytes>(io).await else { return };
        let (is_dead, greeted) = (Rc::new(Cell::new(false)), Rc::new(Greeted::default()));
        let driver =
            Driver { conn: conn.clone(), connection, verdict, is_dead: is_dead.clone(), greeted: greeted.clone() };
        // The pool's entry owns the task and ends it.
        let task = tokio::task::spawn_local(driver).abort_handle();
        let idle_since = Cell::new(conn.worker.tick());
        let sender = RefCell::new(sender);
        let (streams, opened, given_up) = (Cell::new(0), Cell::new(0), Cell::new(0));
        let shared = Rc::new(Shared { sender, streams, opened, given_up, is_dead, greeted, idle_since, task });
        let mut pool = self.0.borrow_mut();
        let entry = pool.entry((conn.pod.serial, addr)).or_default();
        if entry.all.is_empty() {
            entry.standing = Standing::of(&conn.worker.snapshot(), addr);
        }
        entry.all.push(shared);
    }

    /// Lets go of connections that died, had no stream for `idle` ticks, or lead to an address that is no longer what it was.
    /// Streams under way end in peace.
    pub(crate) fn sweep(&self, tick: u64, idle: u64, snapshot: &Snapshot) {
        self.0.borrow_mut().retain(|key, entry| {
            if !entry.standing.holds(snapshot, key.1) {
                entry.all.clear();
            }
            entry.all.retain(|s| {
                let idles = s.streams.get() == 0 && s.idle_since.get() + idle < tick;
                !s.is_dead.get() && !idles
            });
            !entry.all.is_empty() || entry.dialling
        });
    }

    /// Lets go of a pod's connections. Streams under way keep theirs until they end.
    pub(crate) fn purge(&self, pod: u64) {
        self.0.borrow_mut().retain(|key, _| key.0 != pod);
    }

    /// Lets go of all.
    pub(crate) fn clear(&self) {
        self.0.borrow_mut().clear();
    }
}

/// A dial under way: whatever becomes of it, those who wait are told.
struct Dialling<'a> {
    pool: &'a PoolH2,
    key: (u64, SocketAddr),
    dial: u64,
    failure: Option<Failure>,
}

impl Drop for Dialling<'_> {
    fn drop(&mut self) {
        if let Some(entry) = self.pool.0.borrow_mut().get_mut(&self.key) {
            entry.dialling = false;
            entry.failed = self.failure.map(|failure| (self.dial, failure));
            entry.changed.notify_waiters();
        }
    }
}

/// Drives a connection; its time is the pod's.
struct Driver {
    conn: Rc<Conn>,
    connection: Connection<Io, Bytes>,
    verdict: Rc<Verdict>,
    is_dead: Rc<Cell<bool>>,
    greeted: Rc<Greeted>,
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let start = Instant::now();
        let polled = Pin::new(&mut self.connection).poll(cx);
        self.conn.pod.budget.charge_cpu(self.conn.worker.index, start.elapsed());
        if self.verdict.has_greeted.get() {
            self.greeted.settle();
        }
        let Poll::Ready(ended) = polled else { return Poll::Pending };
        self.is_dead.set(true);
        self.verdict.is_clean.set(ended.is_ok());
        Poll::Ready(())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.is_dead.set(true);
        self.greeted.settle();
    }
}

/// Whether the server says that it did not look at a request: its stream was refused, or it is behind the last one of a GOAWAY
/// (RFC 9113 §8.7).
pub(crate) fn is_unprocessed(error: &h2::Error) -> bool {
    let is_refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    error.is_remote() && (is_refused || error.is_go_away())
}

/// What an error of an upstream's connection or stream means.
pub(crate) fn reason_of(error: &h2::Error) -> Reason {
    if error.is_reset() {
        Reason::UpstreamStreamReset
    } else if let Some(io) = error.get_io() {
        crate::copy::Side::Upstream.broke(io)
    } else if error.is_go_away() && error.is_remote() {
        Reason::UpstreamReset
    } else {
        Reason::ResponseMalformed
    }
}
