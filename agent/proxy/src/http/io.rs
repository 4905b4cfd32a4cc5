//! A socket as the `h2` crate reads and writes it: what its peer sends is metered, how much moves in one turn of its task is
//! limited, and how the socket is closed is decided by whoever knows how the connection ended.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use heddle_identity::HandshakeFailure;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frames::FrameMeter;
use super::wire::{Line, Sent, Wire};
use crate::config::COPY_BURST_BYTES_MIN;
use crate::mesh::tls::failure_in;
use crate::registry::Conn;

/// Bytes of a client's frames read in one turn of its connection. A byte can be a whole header field: what bounds copying
/// is too much here.
pub(crate) const TURN_BYTES_MAX: usize = 64 << 10;

/// What is known of a connection besides its bytes.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// It ended cleanly: the socket is closed, not reset.
    pub(crate) is_clean: Cell<bool>,
    /// The peer sent more than any honest one does.
    pub(crate) is_abuse: Cell<bool>,
    /// What the peer, or TLS itself, said against the connection.
    pub(crate) tls_failure: Cell<Option<HandshakeFailure>>,
    /// The peer sent something since this was last cleared.
    pub(crate) has_heard: Cell<bool>,
    pub(crate) meter: RefCell<FrameMeter>,
    /// `h2` has nothing more to write.
    is_written: Cell<bool>,
    /// And the socket took it all.
    pub(crate) is_flushed: Cell<bool>,
    /// Bytes that may yet be read, and written, in this turn.
    readable: Cell<usize>,
    writable: Cell<usize>,
}

impl Verdict {
    /// The connection's task has its turn, in which so many bytes may be read and written: h2 would go on as long as there are any.
    pub(crate) fn begin_turn(&self, readable: usize, writable: usize) {
        self.readable.set(readable);
        self.writable.set(writable);
    }
}

/// The socket.
pub(crate) struct Io {
    line: Line,
    verdict: Rc<Verdict>,
}

impl Io {
    /// Of a client.
    pub(crate) fn to_client(wire: Wire, conn: &Rc<Conn>, verdict: Rc<Verdict>) -> Self {
        Self::new(wire, conn, verdict, FrameMeter::of_client())
    }

    /// Of another agent.
    pub(crate) fn to_peer(wire: Wire, conn: &Rc<Conn>, verdict: Rc<Verdict>) -> Self {
        Self::new(wire, conn, verdict, FrameMeter::of_peer())
    }

    /// Of a server.
    pub(crate) fn to_server(wire: Wire, conn: &Rc<Conn>, verdict: Rc<Verdict>) -> Self {
        Self::new(wire, conn, verdict, FrameMeter::of_server())
    }

    fn new(wire: Wire, conn: &Rc<Conn>, verdict: Rc<Verdict>, meter: FrameMeter) -> Self {
        *verdict.meter.borrow_mut() = meter;
        // For the handshake.
        verdict.begin_turn(COPY_BURST_BYTES_MIN, COPY_BURST_BYTES_MIN);
        Self { line: Line::new(wire, conn), verdict }
    }

    /// What sends at the end of each turn.
    pub(crate) fn outlet(&self) -> Outlet {
        Outlet { line: self.line.clone(), verdict: self.verdict.clone() }
    }
}

/// Sends what a connection wrote in its turn.
pub(crate) struct Outlet {
    line: Line,
    verdict: Rc<Verdict>,
}

impl Outlet {
    /// From here on every turn ends with [`Outlet::send`].
    pub(crate) fn begin(&self) {
        self.line.begin();
    }

    /// Sends. Where that shows that the connection is broken, it has another turn, in which it hears of it.
    pub(crate) fn send(&self, cx: &mut Context<'_>) {
        let sent = self.line.send(cx);
        self.verdict.is_flushed.set(sent == Sent::All && self.verdict.is_written.get());
        if sent == Sent::Broken {
            cx.waker().wake_by_ref();
        }
    }
}

/// Pending if nothing may move any more in this turn; the next follows behind the others.
fn poll_allowance(cx: &Context<'_>, left: &Cell<usize>) -> Poll<()> {
    if left.get() > 0 {
        return Poll::Ready(());
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}

impl Drop for Io {
    fn drop(&mut self) {
        if self.verdict.is_clean.get() {
            // Fails only on a socket that is already gone.
            let _ = self.line.with_socket(|socket| SockRef::from(socket).set_linger(None));
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { line, verdict } = &*self;
        ready!(poll_allowance(cx, &verdict.readable));
        let before = buf.filled().len();
        ready!(line.poll_read(cx, buf)).inspect_err(|error| verdict.tls_failure.set(failure_in(error)))?;
        let bytes = &buf.filled()[before..];
        verdict.readable.update(|left| left.saturating_sub(bytes.len()));
        verdict.has_heard.set(true);
        if !verdict.meter.borrow_mut().read(bytes) {
            verdict.is_abuse.set(true);
            return Poll::Ready(Err(io::Error::other("more control frames than any honest peer sends")));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { line, verdict } = &*self;
        verdict.is_written.set(false);
        verdict.is_flushed.set(false);
        ready!(poll_allowance(cx, &verdict.writable));
        let count = ready!(line.poll_write(cx, bufs))?;
        verdict.writable.update(|left| left.saturating_sub(count));
        let (mut meter, mut left) = (verdict.meter.borrow_mut(), count);
        for buf in bufs {
            let length = left.min(buf.len());
            meter.wrote(&buf[..length]);
            left -= length;
        }
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// `h2` comes here behind each frame of DATA, and when it has nothing more to write.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.line.poll_flush(cx))?;
        self.verdict.is_written.set(true);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.line.poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use heddle_telemetry::HttpMetrics;
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::measure;

    #[tokio::test]
    async fn a_turn_moves_no_more_than_its_allowance() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let verdict = Rc::new(Verdict::default());
        let conn = measure::connection(&measure::worker(HttpMetrics::new(1, 10)));
        let mut io = Io::to_server(listener.accept().await.unwrap().0.into(), &conn, verdict.clone());
        // One frame of DATA and more of it than a turn moves.
        peer.write_all(&[&[0x0f, 0, 0, 0, 0, 0, 0, 0, 1][..], &[0; 99_991]].concat()).await.unwrap();
        let (mut turns, mut read, mut written) = (0, 0, 0);
        while read < 100_000 || written < 100_000 {
            poll_fn(|cx| {
                turns += 1;
                verdict.begin_turn(10_000, 10_000);
                let before = (read, written);
                while read < 100_000 {
                    let mut room = [0; 1000];
                    let mut buf = ReadBuf::new(&mut room);
                    let Poll::Ready(result) = Pin::new(&mut io).poll_read(cx, &mut buf) else { break };
                    result.unwrap();
                    read += buf.filled().len();
                }
                while let Poll::Ready(result) = Pin::new(&mut io).poll_write(cx, &[0; 1000]) {
                    written += result.unwrap();
                }
                // The last write of a turn is not cut.
                assert!(
                    read - before.0 <= 10_000 && written - before.1 < 11_000,
                    "{turns}: {before:?} {read} {written}"
                );
                // The next turn comes without anything happening.
                if turns % 2 == 0 { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
        }
        assert!(turns >= 10);
    }
}
