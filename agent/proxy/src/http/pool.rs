//! Idle upstream connections of one worker, by pod and endpoint. A connection whose server was told who the client is never
//! comes here: it stays with its client's connection.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;

use heddle_model::Snapshot;
use socket2::SockRef;
use tokio::net::TcpStream;

use super::standing::Standing;
use crate::hash::FastMap;
use crate::registry::Conn;
use crate::route::EndpointRef;

/// Idle connections kept per pod and endpoint.
const IDLE_PER_ENDPOINT_MAX: usize = 512;
/// Idle connections kept per worker. Where it is full the pod that has most gives way.
const IDLE_MAX: usize = 4096;

/// Of which pod (its attachment), to which endpoint.
type Key = (u64, SocketAddr);

struct Idle<S> {
    stream: S,
    /// Tick from which it is no longer kept.
    until: u64,
}

struct Queue<S> {
    idle: VecDeque<Idle<S>>,
    standing: Standing,
}

/// Who has how many, and which goes first. Apart from sockets, so that its rules can be tested.
struct Shelf<S> {
    queues: FastMap<Key, Queue<S>>,
    count: usize,
    by_pod: FastMap<u64, usize>,
}

impl<S> Default for Shelf<S> {
    fn default() -> Self {
        Self { queues: FastMap::default(), count: 0, by_pod: FastMap::default() }
    }
}

impl<S> Shelf<S> {
    /// Puts one on; what has to go for it, or itself.
    fn put(&mut self, key: Key, idle: Idle<S>, standing: impl FnOnce() -> Standing) -> Option<S> {
        let mut gone = None;
        if self.queues.get(&key).is_some_and(|q| q.idle.len() >= IDLE_PER_ENDPOINT_MAX) {
            return Some(idle.stream);
        }
        if self.count >= IDLE_MAX {
            let own = self.by_pod.get(&key.0).copied().unwrap_or(0);
            let greatest = self.by_pod.iter().max_by_key(|(_, count)| **count).filter(|(_, count)| **count > own + 1);
            let Some((&pod, _)) = greatest else { return Some(idle.stream) };
            gone = self.take_oldest(pod);
        }
        self.queues
            .entry(key)
            .or_insert_with(|| Queue { idle: VecDeque::new(), standing: standing() })
            .idle
            .push_back(idle);
        self.count += 1;
        *self.by_pod.entry(key.0).or_insert(0) += 1;
        gone
    }

    /// The one of the pod's longest queue that was idle for longest.
    fn take_oldest(&mut self, pod: u64) -> Option<S> {
        let of_pod = self.queues.iter_mut().filter(|(key, _)| key.0 == pod);
        let (_, queue) = of_pod.max_by_key(|(_, queue)| queue.idle.len())?;
        let oldest = queue.idle.pop_front()?;
        self.forget(pod, 1);
        Some(oldest.stream)
    }

    /// The one used last.
    fn take(&mut self, key: Key) -> Option<S> {
        let taken = self.queues.get_mut(&key)?.idle.pop_back();
        match taken {
            Some(_) => self.forget(key.0, 1),
            None => drop(self.queues.remove(&key)),
        }
        taken.map(|idle| idle.stream)
    }

    /// Keeps what `keep` says, of the queues that `keep_all` does not give up.
    fn retain(
        &mut self,
        mut keep_all: impl FnMut(&Key, &mut Standing) -> bool,
        keep: impl Fn(&Idle<S>) -> bool,
        mut gone: impl FnMut(S),
    ) {
        let (count, by_pod) = (&mut self.count, &mut self.by_pod);
        self.queues.retain(|key, queue| {
            let is_kept = keep_all(key, &mut queue.standing);
            let before = queue.idle.len();
            for _ in 0..before {
                match queue.idle.pop_front() {
                    Some(idle) if is_kept && keep(&idle) => queue.idle.push_back(idle),
                    Some(idle) => gone(idle.stream),
                    None => break,
                }
            }
            let left = before - queue.idle.len();
            *count -= left;
            if let Some(of_pod) = by_pod.get_mut(&key.0) {
                *of_pod -= left;
            }
            !queue.idle.is_empty()
        });
        by_pod.retain(|_, count| *count > 0);
    }

    fn forget(&mut self, pod: u64, count: usize) {
        self.count -= count;
        if let Some(of_pod) = self.by_pod.get_mut(&pod) {
            *of_pod -= count;
        }
    }
}

/// One worker's idle connections.
#[derive(Default)]
pub(crate) struct Pool(RefCell<Shelf<TcpStream>>);

impl Pool {
    /// The connection used last, if one is still good.
    pub(crate) fn take(&self, pod: u64, addr: SocketAddr) -> Option<TcpStream> {
        let mut shelf = self.0.borrow_mut();
        while let Some(stream) = shelf.take((pod, addr)) {
            if is_quiet(&stream) {
                return Some(stream);
            }
            close(stream);
        }
        None
    }

    /// Keeps a connection behind a complete response. `generation` is that of the snapshot it was chosen by. Closed instead
    /// where there is no room for it, the pod or the endpoint is gone or the worker drains.
    pub(crate) fn put(&self, conn: &Conn, endpoint: &EndpointRef, generation: u64, stream: TcpStream) {
        let worker = &conn.worker;
        let attached = conn.pod.budget.attached.load(std::sync::atomic::Ordering::Relaxed);
        let snapshot = worker.refresh();
        let stands = snapshot.generation == generation || endpoint.stands(&snapshot);
        if !attached || !stands || worker.draining.get() {
            return close(stream);
        }
        let idle = Idle { stream, until: worker.tick() + worker.config.pool_idle_timeout.as_secs() + 1 };
        let standing = || Standing::of(&snapshot, endpoint.addr);
        if let Some(gone) = self.0.borrow_mut().put((conn.pod.serial, endpoint.addr), idle, standing) {
            close(gone);
        }
    }

    /// Closes what was idle for too long, what its server closed, and what leads to an address that is no longer what it was.
    pub(crate) fn sweep(&self, tick: u64, snapshot: &Snapshot) {
        let keep_all = |key: &Key, standing: &mut Standing| standing.holds(snapshot, key.1);
        self.0.borrow_mut().retain(keep_all, |idle| tick < idle.until && is_quiet(&idle.stream), close);
    }

    /// Closes the connections of a pod that leaves.
    pub(crate) fn purge(&self, pod: u64) {
        self.0.borrow_mut().retain(|key, _| key.0 != pod, |_| true, close);
    }

    /// Closes all.
    pub(crate) fn clear(&self) {
        self.0.borrow_mut().retain(|_, _| false, |_| false, close);
    }
}

impl Drop for Pool {
    /// Nothing is under way on any of them: they end, and are not reset.
    fn drop(&mut self) {
        self.clear();
    }
}

/// Whether nothing came on an idle connection: neither its end nor bytes nobody asked for. No system call unless the runtime
/// knows of something.
pub(crate) fn is_quiet(stream: &TcpStream) -> bool {
    matches!(stream.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// Ends a connection on which nothing is under way, cleanly.
pub(crate) fn close(stream: TcpStream) {
    // Fails only on a socket that is already gone.
    let _ = SockRef::from(&stream).set_linger(None);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(pod: u64, endpoint: usize) -> Key {
        (pod, SocketAddr::from(([10, 0, 0, 1], u16::try_from(endpoint).unwrap() + 1)))
    }

    fn put(shelf: &mut Shelf<u32>, key: Key, stream: u32) -> Option<u32> {
        shelf.put(key, Idle { stream, until: 10 }, Standing::default)
    }

    #[test]
    fn a_pod_cannot_use_up_what_others_need() {
        let mut shelf = Shelf::default();
        for n in 0..IDLE_MAX {
            assert_eq!(put(&mut shelf, key(1, n / IDLE_PER_ENDPOINT_MAX), n as u32), None);
        }
        assert_eq!(put(&mut shelf, key(1, 100), 7), Some(7), "full, and nobody has more");
        // Others get up to an equal share; what goes is the greedy one's oldest.
        for n in 0..IDLE_MAX / 2 {
            let gone = put(&mut shelf, key(2, n / IDLE_PER_ENDPOINT_MAX), 1_000_000);
            assert!(gone.is_some_and(|gone| gone < 1_000_000), "{n}: {gone:?}");
        }
        assert_eq!(put(&mut shelf, key(2, 100), 7), Some(7));
        assert_eq!((shelf.count, shelf.by_pod[&1], shelf.by_pod[&2]), (IDLE_MAX, IDLE_MAX / 2, IDLE_MAX / 2));
        assert!(put(&mut shelf, key(3, 0), 8).is_some());
        assert_eq!(shelf.take(key(3, 0)), Some(8));
    }

    #[test]
    fn one_endpoint_keeps_so_many_and_gives_the_latest_first() {
        let mut shelf = Shelf::default();
        for n in 0..IDLE_PER_ENDPOINT_MAX {
            assert_eq!(put(&mut shelf, key(1, 0), n as u32), None);
        }
        assert_eq!(put(&mut shelf, key(1, 0), 9999), Some(9999));
        assert_eq!(shelf.take(key(1, 0)), Some(IDLE_PER_ENDPOINT_MAX as u32 - 1));
        let mut gone = 0;
        shelf.retain(|_, _| true, |idle| idle.stream % 2 == 0, |_| gone += 1);
        assert_eq!((gone, shelf.count, shelf.by_pod[&1]), (255, 256, 256));
        shelf.retain(|_, _| false, |_| true, |_| gone += 1);
        assert_eq!((gone, shelf.count, shelf.by_pod.len(), shelf.queues.len()), (511, 0, 0, 0));
    }
}
