//! Upstream connections that speak HTTP/2, shared by many streams; each is driven by a task of its own ([`super::link`]).
//!
//! Streams that need a connection at once share one dial, and its failure. A connection whose server was told who the client is
//! belongs to that client's connection alone, so each keeps a set of its own beside the worker's.

use std::cell::{Cell, OnceCell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::SendStream;
use h2::client::{Builder, ResponseFuture, SendRequest};
use heddle_identity::HandshakeFailure;
use heddle_model::Snapshot;
use heddle_telemetry::Reason;
use http::Request;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::flow::Flow;
use super::io::{Io, Verdict};
use super::link::{Driver, Link};
use super::standing::Standing;
use super::wire::Wire;
use super::{
    HEADER_LIST_BYTES_MAX, LOCAL_RESETS_MAX, SEND_BUFFER_BYTES_MAX, SMALL_FRAMES_BUDGET, STREAM_WINDOW_BYTES,
    STREAMS_MAX,
};
use crate::dial::{self, Failure, Hop};
use crate::hash::FastMap;
use crate::mesh;
use crate::mesh::tls::Tls;
use crate::mesh::trust::Trust;
use crate::mesh::way::Called;
use crate::registry::Conn;

/// Connections to one endpoint per pod; beyond it streams wait for a place on them.
pub(crate) const CONNECTIONS_PER_ENDPOINT_MAX: usize = 8;
/// Streams that were given up before a connection takes no more, if they are more than half of all. Servers end a connection on which most
/// streams are reset, and with it the streams of clients that had no part in it: it has to retire before.
const GIVEN_UP_MAX: u32 = 100;
/// The same where another agent serves it, which knows that they are many clients'.
const GIVEN_UP_OF_MESH_MAX: u32 = 2 * mesh::STREAMS_MAX;

/// Connections without a stream that a worker keeps. Beyond it the pod that has most gives one up for each that is dialled.
const IDLE_MAX: usize = 1024;
/// Ticks for which a connection without a stream may cost its pod budget.
const IDLE_CHARGED_TICKS_MAX: u64 = 5;

/// One connection, until the pool and all its streams let go of it.
pub(crate) struct Shared {
    /// In its server, if that proved who it is.
    trust: Option<Trust>,
    sender: RefCell<SendRequest<Bytes>>,
    link: Rc<Link>,
    flow: Rc<Flow>,
    /// Streams it ever had, and those of them that were given up.
    opened: Cell<u32>,
    given_up: Cell<u32>,
    /// Tick since which it has no stream.
    idle_since: Cell<u64>,
    streams_max: usize,
    given_up_max: u32,
    /// Tick behind which it takes no more streams.
    retires: u64,
}

impl Shared {
    fn streams(&self) -> usize {
        self.link.streams.get()
    }

    fn has_room(&self) -> bool {
        self.streams() < self.sender.borrow().current_max_send_streams().min(self.streams_max)
    }
}

impl Shared {
    /// Whether it may take another stream, now or later.
    fn is_good(&self) -> bool {
        let given_up = self.given_up.get();
        let is_worn = given_up >= self.given_up_max && given_up > self.opened.get() / 2;
        !self.link.is_over() && !is_worn && self.link.tick_now() < self.retires
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // The connection says goodbye by itself once its last sender is gone, in the time there is for that.
        self.link.release();
    }
}

/// A place on a connection for one stream.
pub(crate) struct Place {
    shared: Rc<Shared>,
    conn: Rc<Conn>,
    /// On a connection that served others before: its server may have closed it just now.
    pub(crate) reused: bool,
    is_complete: Cell<bool>,
}

impl Place {
    fn on(shared: &Rc<Shared>, conn: &Rc<Conn>) -> Self {
        shared.link.streams.update(|streams| streams + 1);
        let opened = shared.opened.replace(shared.opened.get().saturating_add(1));
        Self { shared: shared.clone(), conn: conn.clone(), reused: opened > 0, is_complete: Cell::new(false) }
    }

    /// What its connection holds.
    pub(crate) fn flow(&self) -> Rc<Flow> {
        self.shared.flow.clone()
    }

    /// Its stream came to its end.
    pub(crate) fn complete(&self) {
        self.is_complete.set(true);
    }

    /// Opens the stream. Where that fails nothing of the request was sent; a connection that takes no more streams, for its
    /// server said so or its stream numbers are used up, is not offered again.
    pub(crate) async fn open(
        &self,
        request: Request<()>,
        ended: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        let mut sender = self.shared.sender.borrow().clone();
        // What fails here is the connection, behind it the request.
        poll_fn(|cx| sender.poll_ready(cx)).await.inspect_err(|_| self.shared.link.leave())?;
        sender.send_request(request, ended)
    }

    /// Whether its connection takes no more streams.
    pub(crate) fn is_over(&self) -> bool {
        self.shared.link.is_over()
    }

    /// Whether the server takes extended CONNECT, which its SETTINGS say (RFC 8441 §3). They are waited for.
    pub(crate) async fn takes_extended_connect(&self, patience: Duration) -> bool {
        let Shared { sender, link, .. } = &*self.shared;
        let is_enabled = || sender.borrow().is_extended_connect_protocol_enabled();
        if !is_enabled() {
            // A server that never greets is one that does not.
            let _ = tokio::time::timeout(patience, link.greeted()).await;
        }
        is_enabled()
    }

    /// What an error of the stream means, knowing how the connection ended.
    pub(crate) fn why(&self, reason: Reason) -> Reason {
        match reason {
            Reason::UpstreamReset | Reason::UpstreamLost => self.shared.link.ended_for().unwrap_or(reason),
            other => other,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.link.streams.update(|streams| streams - 1);
        self.shared.idle_since.set(self.conn.worker.tick());
        if !self.is_complete.get() {
            self.shared.given_up.update(|given_up| given_up.saturating_add(1));
        }
    }
}

/// A dial under way. Those who wait for it hold it themselves: whatever becomes of the pool, they are told.
#[derive(Default)]
struct Dial {
    /// Once it is over: how it failed, if it did.
    over: Cell<Option<Option<Failure>>>,
    /// What came of it, where it was for all who wait.
    made: OnceCell<Rc<Shared>>,
    changed: Notify,
}

impl Dial {
    /// Waits until it is over. A connection that ended before anybody could use it is a failure too: a server says only behind the
    /// handshake what it thinks of its client, and another dial would hear the same.
    async fn over(&self) -> Option<Failure> {
        loop {
            let changed = self.changed.notified();
            if let Some(failure) = self.over.get() {
                let unused = self.made.get().filter(|made| made.link.is_over() && made.opened.get() == 0);
                let why = |made: &Rc<Shared>| made.link.ended_for().unwrap_or(Reason::UpstreamReset);
                return failure.or_else(|| unused.map(|made| Failure::last(why(made))));
            }
            changed.await;
        }
    }
}

#[derive(Default)]
struct Entry {
    all: Vec<Rc<Shared>>,
    standing: Standing,
    dial: Option<Rc<Dial>>,
}

/// Of which pod (its attachment), to which address, and which pod has to be there, as who, if it is one of the mesh.
type Key = (u64, SocketAddr, Option<Called>);

fn key(conn: &Conn, hop: &Hop) -> Key {
    (conn.pod.serial, hop.way.address(hop.addr), hop.way.called().cloned())
}

/// Connections by pod and endpoint.
#[derive(Default)]
pub(crate) struct PoolH2(RefCell<FastMap<Key, Entry>>);

enum Turn {
    Take(Place),
    Dial(Rc<Dial>),
    Wait(Rc<Dial>),
}

impl PoolH2 {
    /// A place on a connection to `hop`, dialled if need be; `dials` counts what this very call dialled. A failure is that of
    /// one round: of the dial, own or another's, that was waited for.
    pub(crate) async fn place(&self, conn: &Rc<Conn>, hop: &Hop, dials: &mut u32) -> Result<Place, Failure> {
        loop {
            match self.turn(conn, hop) {
                Turn::Take(place) => return Ok(place),
                Turn::Wait(dial) => {
                    if let Some(failure) = dial.over().await {
                        return Err(failure);
                    }
                }
                Turn::Dial(dial) if hop.way.tls().is_some() && std::ptr::eq(self, &conn.worker.pool_h2) => {
                    *dials += 1;
                    // Whoever else waits for it must not begin anew because this one gives up: a handshake is dear. The entry
                    // owns the task, and it has an end in time.
                    tokio::task::spawn_local(Self::dial_for_all(conn.clone(), hop.clone(), dial));
                }
                Turn::Dial(dial) => {
                    *dials += 1;
                    // Boxed: most streams never dial, and all would carry the room for it.
                    return Box::pin(self.dial(conn, hop, dial)).await;
                }
            }
        }
    }

    async fn dial(&self, conn: &Rc<Conn>, hop: &Hop, dial: Rc<Dial>) -> Result<Place, Failure> {
        let mut under_way = Dialling { pool: self, key: key(conn, hop), dial, failure: None };
        let placed = self.connect(conn, hop).await.map(|shared| Place::on(&shared, conn));
        under_way.failure = placed.as_ref().err().copied();
        placed
    }

    /// The same for all who wait, with no stream of its own: a connection nobody has used yet is no stale one.
    async fn dial_for_all(conn: Rc<Conn>, hop: Hop, dial: Rc<Dial>) {
        let pool = &conn.worker.pool_h2;
        let mut under_way = Dialling { pool, key: key(&conn, &hop), dial, failure: None };
        match pool.connect(&conn, &hop).await {
            Ok(shared) => drop(under_way.dial.made.set(shared)),
            Err(failure) => under_way.failure = Some(failure),
        }
    }

    async fn connect(&self, conn: &Rc<Conn>, hop: &Hop) -> Result<Rc<Shared>, Failure> {
        let (Some((alpn, expected)), Some(tls)) = (hop.way.tls(), &conn.worker.tls) else {
            let stream = dial::unwatched(conn, hop).await?;
            return self.greet(conn, key(conn, hop), stream.into(), None).await;
        };
        let failed = |failure: HandshakeFailure| {
            conn.worker.metrics().count_dial_failure(failure.reason());
            Failure::last(failure.reason())
        };
        // A server that is connected to and hears nothing would take this for a client that lets it speak first.
        tls.prepare(&conn.pod).await.map_err(failed)?;
        let stream = dial::unwatched(conn, hop).await?;
        let (stream, trust) = tls.connect(&conn.pod, stream, alpn, expected).await.map_err(failed)?;
        self.greet(conn, key(conn, hop), Wire::Tls(Box::new(stream.into())), Some(trust)).await
    }

    fn turn(&self, conn: &Rc<Conn>, hop: &Hop) -> Turn {
        let mut pool = self.0.borrow_mut();
        let entry = pool.entry(key(conn, hop)).or_default();
        entry.all.retain(|shared| shared.is_good());
        let least = entry.all.iter().min_by_key(|s| s.streams());
        let is_full = entry.all.len() >= CONNECTIONS_PER_ENDPOINT_MAX;
        if let Some(shared) = entry.all.iter().find(|s| s.has_room()).or(least.filter(|_| is_full)) {
            return Turn::Take(Place::on(shared, conn));
        }
        if let Some(dial) = &entry.dial {
            return Turn::Wait(dial.clone());
        }
        Turn::Dial(entry.dial.insert(Rc::default()).clone())
    }

    /// Speaks HTTP/2 on a new connection and offers it.
    pub(crate) async fn add(&self, conn: &Rc<Conn>, addr: SocketAddr, stream: TcpStream) -> Result<(), Failure> {
        self.greet(conn, (conn.pod.serial, addr, None), stream.into(), None).await.map(|_| ())
    }

    async fn greet(&self, conn: &Rc<Conn>, key: Key, wire: Wire, trust: Option<Trust>) -> Result<Rc<Shared>, Failure> {
        let verdict = Rc::new(Verdict::default());
        let is_of_mesh = key.2.is_some();
        let io = Io::to_server(wire, conn, verdict.clone());
        let outlet = io.outlet();
        let mut builder = Builder::new();
        builder
            .initial_window_size(STREAM_WINDOW_BYTES)
            .data_frame_budget(SMALL_FRAMES_BUDGET)
            .max_header_list_size(HEADER_LIST_BYTES_MAX)
            .max_local_error_reset_streams(Some(LOCAL_RESETS_MAX))
            .max_send_buffer_size(SEND_BUFFER_BYTES_MAX)
            .enable_push(false);
        if is_of_mesh {
            // What every agent allows; its SETTINGS come later.
            builder.initial_max_send_streams(mesh::STREAMS_MAX as usize);
        }
        // The handshake only writes: it does not wait for the server.
        let (sender, connection) =
            builder.handshake::<_, Bytes>(io).await.map_err(|error| Failure::last(reason_of(&error)))?;
        let flow = Flow::new(conn);
        let link = Driver::spawn(conn, flow.clone(), connection, verdict, outlet);
        let idle_since = Cell::new(conn.worker.tick());
        let sender = RefCell::new(sender);
        let (opened, given_up) = (Cell::new(0), Cell::new(0));
        let streams_max = if is_of_mesh { mesh::STREAMS_MAX } else { STREAMS_MAX } as usize;
        let given_up_max = if is_of_mesh { GIVEN_UP_OF_MESH_MAX } else { GIVEN_UP_MAX };
        let age_max = conn.worker.config.mesh_connection_age_max.as_secs();
        let age = fastrand::u64(age_max / 2..=age_max);
        let retires = if is_of_mesh { conn.worker.tick() + age } else { u64::MAX };
        let shared = Rc::new(Shared {
            trust,
            sender,
            link,
            flow,
            opened,
            given_up,
            idle_since,
            retires,
            streams_max,
            given_up_max,
        });
        let mut pool = self.0.borrow_mut();
        let addr = key.1;
        let entry = pool.entry(key).or_default();
        if entry.all.is_empty() {
            entry.standing = Standing::of(&conn.worker.snapshot(), addr);
        }
        entry.all.push(shared.clone());
        // The new one has no stream yet, and is not for others to lose.
        let mut idle: Vec<_> = pool
            .iter()
            .flat_map(|(key, entry)| entry.all.iter().map(|s| (key.0, s.clone())))
            .filter(|(_, s)| s.streams() == 0 && !Rc::ptr_eq(s, &shared))
            .collect();
        if idle.len() > IDLE_MAX {
            let ages: Vec<_> = idle.iter().map(|(pod, s)| (*pod, s.idle_since.get())).collect();
            if let Some(index) = to_give_up(&ages) {
                let (_, gone) = idle.swap_remove(index);
                pool.values_mut().for_each(|entry| entry.all.retain(|s| !Rc::ptr_eq(s, &gone)));
            }
        }
        Ok(shared)
    }

    /// Lets go of connections that are over, had no stream for `idle` ticks, have none and their pod is gone, or lead to an
    /// address that is no longer what it was, or to a server that would not be taken for what it is again. Streams under way end in peace.
    pub(crate) fn sweep(&self, tick: u64, idle: u64, snapshot: &Snapshot, tls: Option<&Tls>) {
        let (now, mut reviews) = (tls.map_or(Duration::ZERO, Tls::now), mesh::REVIEWS_PER_TICK_MAX);
        let mut is_trusted = |trust: &Trust| match tls {
            Some(tls) if trust.is_due(tls.generation(), now) && reviews > 0 => {
                reviews -= 1;
                tls.review(trust, now).is_ok()
            }
            _ => true,
        };
        self.prune(|key, Entry { all, standing, .. }| {
            if !standing.holds(snapshot, key.1) {
                all.clear();
            }
            all.retain(|s| {
                // A window that was given for speed costs budget until the connection is gone.
                let idle = if s.flow.is_charged() { idle.min(IDLE_CHARGED_TICKS_MAX) } else { idle };
                let is_idle = s.streams() == 0 && (s.idle_since.get() + idle < tick || !s.link.is_wanted());
                !s.link.is_over() && !is_idle && s.trust.as_ref().is_none_or(&mut is_trusted)
            });
        });
    }

    /// Lets go of a pod's connections. Streams under way keep theirs until they end.
    pub(crate) fn purge(&self, pod: u64) {
        self.prune(|key, entry| {
            if key.0 == pod {
                entry.all.clear();
            }
        });
    }

    /// Lets go of all.
    pub(crate) fn clear(&self) {
        self.prune(|_, entry| entry.all.clear());
    }

    /// An entry stays as long as there is something in it: a dial under way too, for those who wait for it.
    fn prune(&self, mut prune: impl FnMut(&Key, &mut Entry)) {
        self.0.borrow_mut().retain(|key, entry| {
            prune(key, entry);
            !entry.all.is_empty() || entry.dial.is_some()
        });
    }
}

/// Which of too many idle connections goes, each of a pod and idle since a tick: of the pod that has most the one idle for longest.
fn to_give_up(idle: &[(u64, u64)]) -> Option<usize> {
    let mut by_pod: FastMap<u64, usize> = FastMap::default();
    idle.iter().for_each(|(pod, _)| *by_pod.entry(*pod).or_default() += 1);
    let (greatest, _) = by_pod.into_iter().max_by_key(|(_, count)| *count)?;
    let of_greatest = idle.iter().enumerate().filter(|(_, (pod, _))| *pod == greatest);
    of_greatest.min_by_key(|(_, (_, since))| *since).map(|(index, _)| index)
}

/// A dial under way: whatever becomes of it, those who wait are told.
struct Dialling<'a> {
    pool: &'a PoolH2,
    key: Key,
    dial: Rc<Dial>,
    failure: Option<Failure>,
}

impl Drop for Dialling<'_> {
    fn drop(&mut self) {
        if let Some(entry) = self.pool.0.borrow_mut().get_mut(&self.key) {
            entry.dial = None;
        }
        // Who waits must not begin anew for ever.
        let fault = std::thread::panicking().then_some(Failure::last(Reason::Panic));
        self.dial.over.set(Some(fault.or(self.failure)));
        self.dial.changed.notify_waiters();
    }
}

/// Whether the server says that it did not look at a request: its stream was refused, or it is behind the last one of a GOAWAY
/// (RFC 9113 §8.7).
pub(crate) fn is_unprocessed(error: &h2::Error) -> bool {
    let is_refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    error.is_remote() && (is_refused || error.is_go_away())
}

/// Whether the server only says goodbye: nothing is wrong with it.
pub(crate) fn is_goodbye(error: &h2::Error) -> bool {
    error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR)
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

#[cfg(test)]
mod tests {
    #[test]
    fn the_pod_that_has_most_gives_up_its_oldest() {
        for (idle, expected) in [
            (&[][..], None),
            (&[(1, 5)][..], Some(0)),
            (&[(1, 5), (2, 1), (1, 4), (1, 9)][..], Some(2)),
            (&[(2, 7), (1, 0), (2, 8)][..], Some(0)),
        ] {
            assert_eq!(super::to_give_up(idle), expected, "{idle:?}");
        }
    }
}
