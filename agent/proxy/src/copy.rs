//! Carrying bytes between two sockets until both directions ended, or one broke.
//!
//! * Each direction ends on its own (half-close). A direction that breaks breaks the connection: never a clean end for a
//!   broken stream.
//! * A buffer is borrowed when there are bytes to read and given back when they are written; an idle connection holds none.
//! * A slow reader stops the reading at the other side: at most one buffer per direction is held.
//! * When the pod's byte budget is used up, bytes are peeked, written, and only then consumed: nothing is held, so the
//!   connection needs no budget to make progress and can wait for nobody but its own reader.
//! * A side that nobody reads from (its reader is slow, or it ended its direction) is watched for a reset.

use std::future::{Future, pending, poll_fn};
use std::io;
use std::net::Shutdown;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use heddle_telemetry::Reason;
use socket2::SockRef;
use tokio::io::{Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::authz::Permit;
use crate::buffers::{Lent, SIZES};
use crate::config::{COPY_BURST_BYTES_MAX, COPY_BURST_BYTES_MIN, COPY_ROUND_BYTES};
use crate::registry::{Conn, State};
use crate::task::Ended;

/// Carries bytes both ways to the end.
pub(crate) async fn run(conn: &Rc<Conn>, _permit: &Permit, downstream: TcpStream, upstream: TcpStream) -> Ended {
    conn.open_series();
    let reason = carry(conn, &downstream, &upstream).await;
    Ended { reason, downstream: Some(downstream), upstream: Some(upstream), held: None }
}

/// Bytes one connection may move in its turn: with many open, less, so that a round over all of them stays short and a
/// quiet connection does not wait behind a flood.
pub(crate) fn burst(open: usize) -> usize {
    (COPY_ROUND_BYTES / open.max(1)).clamp(COPY_BURST_BYTES_MIN, COPY_BURST_BYTES_MAX)
}

/// The same without a series: what an HTTP tunnel carries is counted with its request.
pub(crate) async fn carry(conn: &Conn, downstream: &TcpStream, upstream: &TcpStream) -> Reason {
    conn.state.set(State::Open);
    let mut to_upstream = Pipe::new(Side::Downstream);
    let mut to_downstream = Pipe::new(Side::Upstream);
    let mut downstream_broke = pin!(watch(downstream));
    let mut upstream_broke = pin!(watch(upstream));
    poll_fn(|cx| {
        // One allowance each: a full upload must not keep the download waiting.
        let (mut there, mut back) = (burst(conn.worker.table.len()), burst(conn.worker.table.len()));
        let forward = to_upstream.poll(cx, conn, downstream, upstream, &mut there);
        if let Some(reason) = forward.or_else(|| to_downstream.poll(cx, conn, upstream, downstream, &mut back)) {
            return Poll::Ready(reason);
        }
        if to_upstream.is_done() && to_downstream.is_done() {
            return Poll::Ready(Reason::Completed);
        }
        // A side that is being read from shows a reset by itself.
        if !to_upstream.waits_for_bytes()
            && let Poll::Ready(error) = downstream_broke.as_mut().poll(cx)
        {
            return Poll::Ready(Side::Downstream.broke(&error));
        }
        if !to_downstream.waits_for_bytes()
            && let Poll::Ready(error) = upstream_broke.as_mut().poll(cx)
        {
            return Poll::Ready(Side::Upstream.broke(&error));
        }
        Poll::Pending
    })
    .await
}

/// Completes with the error when the socket is reset or otherwise broken, without reading from it.
pub(crate) async fn watch(socket: &TcpStream) -> io::Error {
    match socket.ready(Interest::ERROR).await {
        Ok(_) => {}
        Err(error) => return error,
    }
    match socket.take_error() {
        Ok(Some(error)) | Err(error) => error,
        // Someone else took it, and saw it.
        Ok(None) => pending().await,
    }
}

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Downstream,
    Upstream,
}

impl Side {
    /// What an error on this side's socket means.
    pub(crate) fn broke(self, error: &io::Error) -> Reason {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected};
        let reset = matches!(error.kind(), ConnectionReset | BrokenPipe | ConnectionAborted | NotConnected);
        match (self, reset) {
            (Self::Downstream, true) => Reason::DownstreamReset,
            (Self::Downstream, false) => Reason::DownstreamLost,
            (Self::Upstream, true) => Reason::UpstreamReset,
            (Self::Upstream, false) => Reason::UpstreamLost,
        }
    }

    pub(crate) fn other(self) -> Self {
        match self {
            Self::Downstream => Self::Upstream,
            Self::Upstream => Self::Downstream,
        }
    }
}

/// What a direction waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waits {
    /// Bytes from its source.
    ForBytes,
    /// Room at its destination.
    ForRoom,
    /// Nothing: it ended.
    Done,
}

/// One direction.
struct Pipe {
    source: Side,
    waits: Waits,
    /// Bytes read and not yet written: `buffer[start..end]`.
    buffer: Option<Lent>,
    start: usize,
    end: usize,
    /// Bytes written from a peek and not yet consumed.
    unconsumed: usize,
    /// Size to borrow next, index into [`SIZES`].
    class: usize,
    /// Working without a buffer now, for the pod's budget is used up.
    lean: bool,
}

impl Pipe {
    fn new(source: Side) -> Self {
        Self { source, waits: Waits::ForBytes, buffer: None, start: 0, end: 0, unconsumed: 0, class: 0, lean: false }
    }

    fn is_done(&self) -> bool {
        self.waits == Waits::Done
    }

    fn waits_for_bytes(&self) -> bool {
        self.waits == Waits::ForBytes
    }

    /// Moves what can be moved. `Some` if the connection is broken.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        conn: &Conn,
        source: &TcpStream,
        destination: &TcpStream,
        allowance: &mut usize,
    ) -> Option<Reason> {
        if self.is_done() {
            return None;
        }
        match self.step(cx, conn, source, destination, allowance) {
            Poll::Pending => None,
            Poll::Ready(Ok(())) => {
                self.waits = Waits::Done;
                conn.state.set(match self.source {
                    Side::Downstream => State::DownstreamClosed,
                    Side::Upstream => State::UpstreamClosed,
                });
                None
            }
            Poll::Ready(Err(broken)) => Some(broken),
        }
    }

    /// Ready when this direction ended cleanly, or broke.
    fn step(
        &mut self,
        cx: &mut Context<'_>,
        conn: &Conn,
        source: &TcpStream,
        destination: &TcpStream,
        allowance: &mut usize,
    ) -> Poll<Result<(), Reason>> {
        loop {
            ready!(self.flush(cx, conn, destination))?;
            self.waits = Waits::ForBytes;
            if *allowance == 0 {
                self.buffer = None;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            match source.poll_read_ready(cx) {
                Poll::Ready(ready) => ready.map_err(|e| self.source.broke(&e))?,
                Poll::Pending => {
                    self.buffer = None;
                    return Poll::Pending;
                }
            }
            let moved = if self.unconsumed > 0 {
                self.consume(conn, source)?
            } else if self.borrow(conn) {
                self.fill(source)?
            } else {
                ready!(self.pass_through(cx, conn, source, destination))?
            };
            match moved {
                Moved::Nothing => {}
                Moved::Bytes(count) => *allowance = allowance.saturating_sub(count),
                Moved::End => {
                    self.buffer = None;
                    let ended = SockRef::from(destination).shutdown(Shutdown::Write);
                    return Poll::Ready(ended.map_err(|e| self.source.other().broke(&e)));
                }
            }
        }
    }

    /// Writes what was read.
    fn flush(&mut self, cx: &mut Context<'_>, conn: &Conn, destination: &TcpStream) -> Poll<Result<(), Reason>> {
        while self.start < self.end {
            let Some(buffer) = &self.buffer else { break };
            self.waits = Waits::ForRoom;
            let written = ready!(write(cx, destination, &buffer[self.start..self.end]));
            let written = written.map_err(|e| self.source.other().broke(&e))?;
            self.start += written;
            self.count(conn, written);
        }
        Poll::Ready(Ok(()))
    }

    /// Makes sure of a buffer, the right size; false if the pod's budget has none left.
    fn borrow(&mut self, conn: &Conn) -> bool {
        if self.buffer.as_ref().is_some_and(|b| b.class() >= self.class) {
            return true;
        }
        self.buffer = None;
        let worker = &conn.worker;
        self.buffer = worker.buffers.lend(self.class, &conn.pod.budget, worker.limits().buffered_bytes_max);
        let lean = self.buffer.is_none();
        if lean && !self.lean {
            worker.metrics().count_budget_exceeded(Reason::PodBufferedBytesMax);
        }
        self.lean = lean;
        !lean
    }

    /// Reads into the buffer. A read that fills it asks for a larger one next time.
    fn fill(&mut self, source: &TcpStream) -> Result<Moved, Reason> {
        let Some(buffer) = &mut self.buffer else { return Ok(Moved::Nothing) };
        let size = buffer.len();
        let moved = read(source, buffer).map_err(|e| self.source.broke(&e))?;
        if let Moved::Bytes(count) = moved {
            (self.start, self.end) = (0, count);
            if count == size {
                self.class = (self.class + 1).min(SIZES.len() - 1);
            } else if count < SIZES[self.class] / 4 {
                self.class = self.class.saturating_sub(1);
            }
        }
        Ok(moved)
    }

    /// Peeks into the worker's scratch and writes as much as the destination takes; exactly that is consumed next.
    fn pass_through(
        &mut self,
        cx: &mut Context<'_>,
        conn: &Conn,
        source: &TcpStream,
        destination: &TcpStream,
    ) -> Poll<Result<Moved, Reason>> {
        let mut scratch = conn.worker.scratch.borrow_mut();
        let mut into = ReadBuf::new(&mut scratch);
        let peeked = ready!(source.poll_peek(cx, &mut into)).map_err(|e| self.source.broke(&e))?;
        if peeked == 0 {
            return Poll::Ready(Ok(Moved::End));
        }
        self.waits = Waits::ForRoom;
        let written = ready!(write(cx, destination, &scratch[..peeked]));
        let written = written.map_err(|e| self.source.other().broke(&e))?;
        self.unconsumed = written;
        self.count(conn, written);
        Poll::Ready(Ok(Moved::Bytes(written)))
    }

    /// Takes out of the source's queue what was already written.
    fn consume(&mut self, conn: &Conn, source: &TcpStream) -> Result<Moved, Reason> {
        let mut scratch = conn.worker.scratch.borrow_mut();
        let length = self.unconsumed.min(scratch.len());
        match read(source, &mut scratch[..length]).map_err(|e| self.source.broke(&e))? {
            Moved::Bytes(count) => self.unconsumed -= count,
            Moved::Nothing => {}
            // The bytes were there a moment ago: only a reset takes them away.
            Moved::End => return Err(self.source.broke(&io::ErrorKind::ConnectionReset.into())),
        }
        Ok(Moved::Nothing)
    }

    fn count(&self, conn: &Conn, bytes: usize) {
        match self.source {
            Side::Downstream => conn.add_received(bytes as u64),
            Side::Upstream => conn.add_sent(bytes as u64),
        }
    }
}

/// What a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moved {
    /// Not ready after all.
    Nothing,
    /// So many bytes.
    Bytes(usize),
    /// The end of the stream.
    End,
}

/// One read. A short one tells that the queue is empty, which saves the call that would say so.
fn read(source: &TcpStream, buffer: &mut [u8]) -> io::Result<Moved> {
    match source.try_read(buffer) {
        Ok(0) => Ok(Moved::End),
        Ok(count) => {
            if count < buffer.len() {
                not_ready(source, Interest::READABLE);
            }
            Ok(Moved::Bytes(count))
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Moved::Nothing),
        Err(error) => Err(error),
    }
}

/// One write that took something. A short one tells that there is no more room.
fn write(cx: &mut Context<'_>, destination: &TcpStream, bytes: &[u8]) -> Poll<io::Result<usize>> {
    loop {
        ready!(destination.poll_write_ready(cx))?;
        match destination.try_write(bytes) {
            Ok(count) => {
                if count < bytes.len() {
                    not_ready(destination, Interest::WRITABLE);
                }
                return Poll::Ready(Ok(count));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
}

/// Forgets the runtime's memory that the socket was ready; the next edge from the kernel brings it back. Sound because this
/// thread alone drives both, and a peer's close is remembered apart.
pub(crate) fn not_ready(socket: &TcpStream, interest: Interest) {
    let _ = socket.try_io(interest, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
}
