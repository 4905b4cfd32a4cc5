//! One small HTTP/1.1 server for all of them: accepts within limits, serves a router, ends with its listener.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::reply::Reply;
use crate::stall::StallGuard;

/// What one server allows.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections served at once; more wait in the kernel's queue.
    pub connections_max: usize,
    /// Bytes of a request's line and headers; more is answered with 431.
    pub header_bytes_max: usize,
    /// How long a client may take to send a whole request head; also how long a kept connection may be idle.
    pub header_timeout: Duration,
    /// How long a client may go without taking a byte of the answer.
    pub write_stall_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 64,
            header_bytes_max: 16 << 10,
            header_timeout: Duration::from_secs(10),
            write_stall_timeout: Duration::from_secs(10),
        }
    }
}

/// Header lines of one request.
const HEADERS_MAX: usize = 64;
/// hyper's smallest buffer.
const HEADER_BYTES_LEAST: usize = 8 << 10;
/// Pause after a failed accept (no file descriptor left): never spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers requests; cloned per connection.
pub(crate) trait Router: Clone + Send + Sync + 'static {
    fn answer(&self, request: Request<Incoming>) -> impl Future<Output = Reply> + Send;
}

/// Something that hands out connections, and may turn one away at once.
pub(crate) trait Listener: Send + 'static {
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;
    fn accept(&mut self) -> impl Future<Output = io::Result<Option<Self::Stream>>> + Send;
}

impl Listener for TcpListener {
    type Stream = TcpStream;
    async fn accept(&mut self) -> io::Result<Option<TcpStream>> {
        Ok(Some(TcpListener::accept(self).await?.0))
    }
}

/// A Unix listener that serves only certain users, by SO_PEERCRED.
pub(crate) struct ForUsers {
    pub(crate) listener: UnixListener,
    pub(crate) uids: Arc<[u32]>,
}

impl Listener for ForUsers {
    type Stream = UnixStream;
    async fn accept(&mut self) -> io::Result<Option<UnixStream>> {
        let (stream, _) = self.listener.accept().await?;
        let uid = stream.peer_cred()?.uid();
        if self.uids.contains(&uid) {
            return Ok(Some(stream));
        }
        tracing::warn!(uid, "refused a user on the debug socket; only root and the agent's own user may ask");
        Ok(None)
    }
}

/// Serves until dropped; open connections end with it.
pub(crate) async fn serve<L: Listener, R: Router>(mut listener: L, router: R, limits: Limits) {
    let slots = Arc::new(Semaphore::new(limits.connections_max.max(1)));
    let mut connections = JoinSet::new();
    loop {
        // The semaphore is never closed.
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok(None) => {}
            Ok(Some(stream)) => {
                let router = router.clone();
                connections.spawn(async move {
                    let _slot = slot;
                    connection(stream, router, limits).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to an admin server");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    stream: S,
    router: impl Router,
    limits: Limits,
) {
    let service = service_fn(move |request| {
        let router = router.clone();
        async move { Ok::<_, Infallible>(router.answer(request).await) }
    });
    let io = TokioIo::new(StallGuard::new(stream, limits.write_stall_timeout));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_buf_size(limits.header_bytes_max.max(HEADER_BYTES_LEAST))
        .max_headers(HEADERS_MAX)
        .serve_connection(io, service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "an admin connection ended early");
    }
}
