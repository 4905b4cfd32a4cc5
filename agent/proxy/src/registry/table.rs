//! The open connections of one worker, and of all of them: what lists and closes.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use heddle_model::{MtlsMode, Snapshot};
use heddle_telemetry::{Direction, Reason};
use tokio::sync::oneshot;

use super::{Conn, ConnectionView};
use crate::authz;
use crate::hash::FastMap;
use crate::proxy::Workers;
use crate::worker::Command;

/// One worker's connections.
#[derive(Default)]
pub(crate) struct Table {
    open: RefCell<FastMap<u64, Rc<Conn>>>,
    /// Notified whenever a connection ended.
    pub(crate) ended: tokio::sync::Notify,
}

impl Table {
    pub(super) fn insert(&self, conn: Rc<Conn>) {
        self.open.borrow_mut().insert(conn.id, conn);
    }

    pub(super) fn remove(&self, id: u64) {
        let mut open = self.open.borrow_mut();
        open.remove(&id);
        // After a flood the table gives its memory back.
        if open.capacity() > 1024 && open.len() < open.capacity() / 8 {
            open.shrink_to(256);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.open.borrow().len()
    }

    /// Wakes the connections whose deadline is `tick` or earlier: they are out of time.
    pub(crate) fn expire(&self, tick: u64) {
        for conn in self.open.borrow().values() {
            if conn.deadline.get().is_some_and(|deadline| deadline <= tick) {
                conn.deadline.set(None);
                conn.expired.set(true);
                conn.wake();
            }
        }
    }

    /// Has every connection's task look around.
    pub(crate) fn wake_all(&self) {
        self.open.borrow().values().for_each(|conn| conn.wake());
    }

    /// Waits until no connection is open.
    pub(crate) async fn empty(&self) {
        loop {
            let ended = self.ended.notified();
            if self.len() == 0 {
                return;
            }
            ended.await;
        }
    }

    /// Ends plain-text connections to ports that take none any more.
    pub(crate) fn enforce_strict(&self, snapshot: &Snapshot) {
        for conn in self.open.borrow().values().filter(|conn| conn.is_plaintext.get()) {
            if conn.mode(snapshot) == MtlsMode::Strict {
                conn.cut(Reason::PlaintextRefused);
            }
        }
    }

    /// Ends what policies do not let in any more.
    pub(crate) fn enforce_policies(&self) {
        let inbound = |conn: &&Rc<Conn>| conn.direction == Direction::Inbound && !conn.is_peers.get();
        // Ended behind the borrow: that takes them out of the table.
        let all: Vec<_> = self.open.borrow().values().filter(inbound).cloned().collect();
        for conn in all {
            match conn.is_http.get() {
                true if conn.carrier.is_some() => {}
                is_http => authz::enforce(&conn, is_http),
            }
        }
    }

    /// The first `limit` by number that match, and how many matched.
    pub(crate) fn list(&self, predicate: &Predicate, limit: usize) -> ConnectionList {
        let mut connections: Vec<_> = self.open.borrow().values().map(|c| c.view()).filter(|v| predicate(v)).collect();
        let total = connections.len();
        connections.sort_unstable_by_key(|v| v.id);
        connections.truncate(limit);
        ConnectionList { total, connections }
    }

    /// Ends every connection that matches; how many did.
    pub(crate) fn close(&self, predicate: &Predicate, reason: Reason) -> usize {
        let matching: Vec<_> = self.open.borrow().values().filter(|c| predicate(&c.view())).cloned().collect();
        matching.iter().for_each(|c| c.cut(reason));
        matching.len()
    }
}

/// Selects connections; runs on the workers, so it must be quick and must not panic.
pub(crate) type Predicate = Arc<dyn Fn(&ConnectionView) -> bool + Send + Sync>;

/// Open connections that matched.
#[derive(Clone, Debug, Default)]
pub struct ConnectionList {
    /// How many matched, listed or not.
    pub total: usize,
    /// Up to the limit asked for, oldest first within each worker.
    pub connections: Vec<ConnectionView>,
}

/// The registry of all workers: list and close open connections.
#[derive(Clone)]
pub struct Registry {
    pub(crate) workers: Workers,
}

impl Registry {
    /// Open connections that match, at most `limit` of them listed. Workers that died have none.
    pub async fn list(
        &self,
        limit: usize,
        predicate: impl Fn(&ConnectionView) -> bool + Send + Sync + 'static,
    ) -> ConnectionList {
        let predicate: Predicate = Arc::new(predicate);
        let mut all = ConnectionList::default();
        let asked = |reply| Command::List { predicate: predicate.clone(), limit, reply };
        for part in self.workers.ask(asked).await {
            all.total += part.total;
            all.connections.extend(part.connections);
        }
        all.connections.truncate(limit);
        all
    }

    /// Ends all connections that match with `reason` (their peers see a reset); returns how many.
    pub async fn close(
        &self,
        reason: Reason,
        predicate: impl Fn(&ConnectionView) -> bool + Send + Sync + 'static,
    ) -> usize {
        let predicate: Predicate = Arc::new(predicate);
        let asked = |reply: oneshot::Sender<usize>| Command::Close { predicate: predicate.clone(), reason, reply };
        self.workers.ask(asked).await.into_iter().sum()
    }
}
