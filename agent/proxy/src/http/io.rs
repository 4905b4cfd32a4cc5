//! A socket as the `h2` crate reads and writes it: what a client sends is metered, and how the socket is closed is decided by
//! whoever knows how the connection ended.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::frames::{FrameMeter, HEADER_BYTES as FRAME_HEADER_BYTES};

/// Bytes of a client's frames read in one turn of its connection. A byte can be a whole header field: what bounds copying
/// is too much here.
pub(crate) const TURN_BYTES_MAX: usize = 64 << 10;

/// What is known of a connection besides its bytes.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// It ended cleanly: the socket is closed, not reset.
    pub(crate) is_clean: Cell<bool>,
    /// The client sent more than any honest one does.
    pub(crate) is_abuse: Cell<bool>,
    /// The server's first frame came: its SETTINGS (RFC 9113 §3.4).
    pub(crate) has_greeted: Cell<bool>,
    /// Bytes that are read of a client before its connection has to wait for its next turn.
    pub(crate) allowance: Cell<usize>,
}

/// The socket.
pub(crate) struct Io {
    stream: TcpStream,
    meter: Option<FrameMeter>,
    greeting: Greeting,
    verdict: Rc<Verdict>,
}

impl Io {
    /// Of a client.
    pub(crate) fn to_client(stream: TcpStream, verdict: Rc<Verdict>) -> Self {
        verdict.allowance.set(TURN_BYTES_MAX);
        Self { stream, meter: Some(FrameMeter::new()), greeting: Greeting::default(), verdict }
    }

    /// Of a server.
    pub(crate) fn to_server(stream: TcpStream, verdict: Rc<Verdict>) -> Self {
        Self { stream, meter: None, greeting: Greeting::default(), verdict }
    }
}

/// A server's bytes as far as its first frame.
#[derive(Default)]
struct Greeting {
    length: [u8; 3],
    seen: usize,
}

impl Greeting {
    /// Bytes came; true once the frame is whole.
    fn read(&mut self, bytes: &[u8]) -> bool {
        for (to, from) in self.length.iter_mut().skip(self.seen).zip(bytes) {
            *to = *from;
        }
        self.seen += bytes.len();
        let [a, b, c] = self.length;
        self.seen >= FRAME_HEADER_BYTES && self.seen - FRAME_HEADER_BYTES >= u32::from_be_bytes([0, a, b, c]) as usize
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        if self.verdict.is_clean.get() {
            // Fails only on a socket that is already gone.
            let _ = SockRef::from(&self.stream).set_linger(None);
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.meter.is_some() && self.verdict.allowance.get() == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let read = &buf.filled()[before..];
        let Self { meter, greeting, verdict, .. } = &mut *self;
        if let Some(meter) = meter {
            verdict.allowance.update(|left| left.saturating_sub(read.len()));
            if !meter.read(read) {
                verdict.is_abuse.set(true);
                return Poll::Ready(Err(io::Error::other("more control frames than any honest client sends")));
            }
        } else if !verdict.has_greeted.get() {
            verdict.has_greeted.set(greeting.read(read));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
