//! The frame around every connection's future: CPU time is charged to the pod, a panic ends this connection only, a cut is
//! obeyed at once, and the end is recorded exactly once, whichever way it comes.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use heddle_telemetry::Reason;
use socket2::SockRef;
use tokio::net::TcpStream;

use crate::registry::Conn;

/// How a connection's future ended, and the sockets it still has.
pub(crate) struct Ended {
    pub(crate) reason: Reason,
    pub(crate) downstream: Option<TcpStream>,
    pub(crate) upstream: Option<TcpStream>,
    /// A connection that owns its socket and knows how to close it: dropped when the end is recorded.
    pub(crate) held: Option<Box<dyn Any>>,
}

impl Ended {
    /// Before there was an upstream.
    pub(crate) fn refused(reason: Reason, downstream: TcpStream) -> Self {
        Self { reason, downstream: Some(downstream), upstream: None, held: None }
    }

    /// The downstream is gone.
    pub(crate) fn lost(reason: Reason) -> Self {
        Self { reason, downstream: None, upstream: None, held: None }
    }

    /// Closes both sockets: cleanly only if both directions ended cleanly, with a reset otherwise. Sockets that are
    /// dropped elsewhere (cut, panic, shutdown, kill) reset too, because they were made with `SO_LINGER {on, 0}`.
    fn close(self) {
        let linger = (!self.reason.is_success()).then_some(Duration::ZERO);
        for socket in [&self.downstream, &self.upstream].into_iter().flatten() {
            // Fails only on a socket that is already gone.
            let _ = SockRef::from(socket).set_linger(linger);
        }
        drop(self.held);
    }
}

/// Drops a refused connection that never got a task, with a reset.
pub(crate) fn refuse(conn: &Conn, downstream: TcpStream, reason: Reason) {
    conn.end(reason);
    Ended::refused(reason, downstream).close();
}

type ConnectionFuture = Pin<Box<dyn Future<Output = Ended>>>;

/// A connection's task.
pub(crate) struct ConnectionTask {
    conn: Rc<Conn>,
    inner: Option<ConnectionFuture>,
}

impl ConnectionTask {
    pub(crate) fn new(conn: Rc<Conn>, inner: impl Future<Output = Ended> + 'static) -> Self {
        Self { conn, inner: Some(Box::pin(inner)) }
    }

    /// Records the end first, so that whoever sees the socket close finds it recorded; then closes the sockets.
    fn finish(&mut self, reason: Reason, ended: Option<Ended>) -> Poll<()> {
        self.conn.end(reason);
        let inner = self.inner.take();
        if catch_unwind(AssertUnwindSafe(|| drop(inner))).is_err() {
            tracing::error!(connection = self.conn.id, "panic while dropping a connection; it ended with its reason");
        }
        if let Some(ended) = ended {
            ended.close();
        }
        Poll::Ready(())
    }
}

impl Future for ConnectionTask {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(reason) = self.conn.poll_cut(cx.waker()) {
            return self.finish(reason, None);
        }
        let Some(inner) = self.inner.as_mut() else { return Poll::Ready(()) };
        let start = Instant::now();
        let polled = catch_unwind(AssertUnwindSafe(|| inner.as_mut().poll(cx)));
        self.conn.pod.budget.charge_cpu(self.conn.worker.index, start.elapsed());
        match polled {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(ended)) => self.finish(ended.reason, Some(ended)),
            Err(_) => {
                tracing::error!(
                    connection = self.conn.id,
                    pod = %self.conn.pod.uid(),
                    "a fault in the agent ended this connection; the panic message is above, please report it"
                );
                self.finish(Reason::Panic, None)
            }
        }
    }
}

impl Drop for ConnectionTask {
    fn drop(&mut self) {
        // Normally a second call, which does nothing: this is for a task that is dropped before it ended.
        let reason = if std::thread::panicking() { Reason::Panic } else { Reason::AgentShutdown };
        self.conn.end(reason);
    }
}
