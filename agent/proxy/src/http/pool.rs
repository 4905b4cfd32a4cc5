//! Idle upstream connections of one worker, by pod and endpoint. A connection whose server was told who the client is never
//! comes here: it stays with its client's connection.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;

use socket2::SockRef;
use tokio::net::TcpStream;

use crate::hash::FastMap;
use crate::registry::Conn;

/// Idle connections kept per pod and endpoint.
const IDLE_PER_ENDPOINT_MAX: usize = 512;
/// Idle connections kept per worker.
const IDLE_MAX: usize = 4096;

/// Of which pod (its attachment), to which endpoint.
type Key = (u64, SocketAddr);

struct Idle {
    stream: TcpStream,
    /// Tick from which it is no longer kept.
    until: u64,
}

/// One worker's idle connections.
#[derive(Default)]
pub(crate) struct Pool {
    idle: RefCell<FastMap<Key, VecDeque<Idle>>>,
    count: Cell<usize>,
}

impl Pool {
    /// The connection used last, if one is still good.
    pub(crate) fn take(&self, pod: u64, addr: SocketAddr) -> Option<TcpStream> {
        let mut idle = self.idle.borrow_mut();
        let queue = idle.get_mut(&(pod, addr))?;
        while let Some(Idle { stream, .. }) = queue.pop_back() {
            self.count.set(self.count.get() - 1);
            if is_quiet(&stream) {
                return Some(stream);
            }
            close(stream);
        }
        idle.remove(&(pod, addr));
        None
    }

    /// Keeps a connection behind a complete response. Closed instead where there is no room for it, the pod is gone or
    /// the worker drains.
    pub(crate) fn put(&self, conn: &Conn, addr: SocketAddr, stream: TcpStream) {
        let worker = &conn.worker;
        let attached = conn.pod.budget.attached.load(std::sync::atomic::Ordering::Relaxed);
        if !attached || worker.draining.get() || self.count.get() >= IDLE_MAX {
            return close(stream);
        }
        let mut idle = self.idle.borrow_mut();
        let queue = idle.entry((conn.pod.serial, addr)).or_default();
        if queue.len() >= IDLE_PER_ENDPOINT_MAX {
            return close(stream);
        }
        queue.push_back(Idle { stream, until: worker.tick() + worker.config.pool_idle_timeout.as_secs() + 1 });
        self.count.set(self.count.get() + 1);
    }

    /// Closes what was idle for too long, and what its server closed.
    pub(crate) fn sweep(&self, tick: u64) {
        self.retain(|_, idle| tick < idle.until && is_quiet(&idle.stream));
    }

    /// Closes the connections of a pod that leaves.
    pub(crate) fn purge(&self, pod: u64) {
        self.retain(|key, _| key.0 != pod);
    }

    /// Closes all.
    pub(crate) fn clear(&self) {
        self.retain(|_, _| false);
    }

    fn retain(&self, keep: impl Fn(&Key, &Idle) -> bool) {
        let mut idle = self.idle.borrow_mut();
        idle.retain(|key, queue| {
            let before = queue.len();
            for _ in 0..before {
                let Some(one) = queue.pop_front() else { break };
                if keep(key, &one) {
                    queue.push_back(one);
                } else {
                    close(one.stream);
                }
            }
            self.count.set(self.count.get() - (before - queue.len()));
            !queue.is_empty()
        });
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
