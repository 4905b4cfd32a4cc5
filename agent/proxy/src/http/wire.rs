//! The way of a connection's frames to its socket: gathered while the connection's task has its turn, and sent at its end in one record
//! of TLS and one system call. The `h2` crate would write and flush every frame of DATA by itself, and with it a record, a segment and
//! the peer's wake-up for each.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::mesh::session::Session;
use crate::registry::Conn;

/// Bytes gathered at most: the largest record of TLS.
pub(crate) const OUTBOX_BYTES: usize = 16 << 10;
/// Outboxes a worker keeps for the next turns, of whatever connections.
pub(crate) const OUTBOXES_KEPT_MAX: usize = 16;
/// So many bytes go out at once where nothing waits before them: a socket without TLS copies nothing itself, and with it they fill a record by
/// themselves.
const DIRECT_BYTES_MIN: usize = 4 << 10;
const DIRECT_BYTES_MIN_TLS: usize = 8 << 10;

/// What HTTP/2 is spoken on.
pub(crate) enum Wire {
    Plain(TcpStream),
    Tls(Box<Session>),
}

impl From<TcpStream> for Wire {
    fn from(stream: TcpStream) -> Self {
        Self::Plain(stream)
    }
}

impl Wire {
    pub(crate) fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(session) => session.socket(),
        }
    }

    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        conn: &Conn,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(session) => session.poll_read(cx, conn, buf),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(session) => session.poll_write(cx, bufs),
        }
    }

    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(_) => Poll::Ready(Ok(())),
            Self::Tls(session) => session.poll_sent(cx),
        }
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(session) => session.poll_shutdown(cx),
        }
    }
}

/// Bytes on their way to the wire. An empty one holds no buffer. What of the streams' bytes the socket does not take is charged by
/// [`super::flow`], as are those in the queues of `h2`.
#[derive(Default)]
struct Outbox {
    bytes: Vec<u8>,
    start: usize,
}

impl Outbox {
    fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }

    /// Takes what fits.
    fn put(&mut self, conn: &Conn, bufs: &[IoSlice<'_>]) -> usize {
        if self.bytes.capacity() == 0 {
            self.bytes = conn.worker.outboxes.take();
        }
        let before = self.bytes.len();
        for buf in bufs {
            let count = buf.len().min(OUTBOX_BYTES - self.bytes.len());
            self.bytes.extend_from_slice(&buf[..count]);
        }
        self.bytes.len() - before
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    fn consume(&mut self, conn: &Conn, count: usize) {
        self.start += count;
        if self.is_empty() {
            conn.worker.outboxes.give(std::mem::take(&mut self.bytes));
            self.start = 0;
        }
    }
}

struct State {
    wire: Wire,
    outbox: Outbox,
    /// The wire takes no more; told once, by its own error.
    failure: Option<io::Error>,
    is_broken: bool,
}

/// One end of a connection: `h2` reads and writes it, whoever drives the connection sends.
#[derive(Clone)]
pub(crate) struct Line(Rc<Inner>);

struct Inner {
    conn: Rc<Conn>,
    state: RefCell<State>,
    /// Whoever drives the connection sends at the end of each turn.
    is_driven: Cell<bool>,
}

impl Line {
    pub(crate) fn new(wire: Wire, conn: &Rc<Conn>) -> Self {
        let state = State { wire, outbox: Outbox::default(), failure: None, is_broken: false };
        Self(Rc::new(Inner { conn: conn.clone(), state: RefCell::new(state), is_driven: Cell::new(false) }))
    }

    /// From here on [`Line::send`] is called at the end of each turn; before, every flush sends.
    pub(crate) fn begin(&self) {
        self.0.is_driven.set(true);
    }

    /// Does something with the socket's options.
    pub(crate) fn with_socket<T>(&self, of: impl FnOnce(&TcpStream) -> T) -> T {
        of(self.0.state.borrow().wire.socket())
    }

    pub(crate) fn poll_read(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.state.borrow_mut().wire.poll_read(cx, &self.0.conn, buf)
    }

    /// Takes bytes to be sent.
    pub(crate) fn poll_write(&self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.0.state.borrow_mut().poll_write(cx, &self.0.conn, bufs)
    }

    /// Ready when everything is sent, or will be at the end of the turn.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.state.borrow_mut();
        if self.0.is_driven.get() { Poll::Ready(state.check()) } else { state.poll_sent(cx, &self.0.conn) }
    }

    pub(crate) fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.state.borrow_mut();
        ready!(state.poll_sent(cx, &self.0.conn))?;
        state.wire.poll_shutdown(cx)
    }

    /// Sends what was written, as much as the socket takes. What went wrong the next write is told, or the next flush: there may be
    /// something to read before, which says why.
    pub(crate) fn send(&self, cx: &mut Context<'_>) -> Sent {
        let mut state = self.0.state.borrow_mut();
        if state.is_broken {
            return Sent::Nothing;
        }
        match state.poll_sent(cx, &self.0.conn) {
            Poll::Ready(Ok(())) => Sent::All,
            Poll::Ready(Err(error)) => {
                state.break_with(error);
                Sent::Broken
            }
            Poll::Pending => Sent::Nothing,
        }
    }
}

/// What became of bytes to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// The socket has them all.
    All,
    /// It takes the rest later, or never.
    Nothing,
    /// It takes no more, as shows just now: the connection has to look around.
    Broken,
}

impl State {
    fn poll_write(&mut self, cx: &mut Context<'_>, conn: &Conn, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.check()?;
        let size: usize = bufs.iter().map(|buf| buf.len()).sum();
        let is_direct = match self.wire {
            Wire::Plain(_) => size >= DIRECT_BYTES_MIN,
            Wire::Tls(_) => size >= DIRECT_BYTES_MIN_TLS,
        };
        loop {
            if !(is_direct && self.outbox.is_empty()) {
                let count = self.outbox.put(conn, bufs);
                if count > 0 || size == 0 {
                    return Poll::Ready(Ok(count));
                }
                ready!(self.poll_emptied(cx, conn))?;
            } else {
                return self.wire.poll_write(cx, bufs);
            }
        }
    }

    /// Ready when the wire has taken what the outbox held.
    fn poll_emptied(&mut self, cx: &mut Context<'_>, conn: &Conn) -> Poll<io::Result<()>> {
        while !self.outbox.is_empty() {
            let count = ready!(self.wire.poll_write(cx, &[IoSlice::new(self.outbox.bytes())]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.outbox.consume(conn, count);
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when the socket has everything.
    fn poll_sent(&mut self, cx: &mut Context<'_>, conn: &Conn) -> Poll<io::Result<()>> {
        self.check()?;
        ready!(self.poll_emptied(cx, conn))?;
        self.wire.poll_sent(cx)
    }

    fn break_with(&mut self, error: io::Error) {
        self.outbox = Outbox::default();
        self.failure = Some(error);
        self.is_broken = true;
    }

    fn check(&mut self) -> io::Result<()> {
        match self.failure.take() {
            Some(error) => Err(error),
            None if self.is_broken => Err(io::ErrorKind::BrokenPipe.into()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
