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

use super::frames::FrameMeter;

/// What is known of a connection besides its bytes.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// It ended cleanly: the socket is closed, not reset.
    pub(crate) is_clean: Cell<bool>,
    /// The client sent more than any honest one does.
    pub(crate) is_abuse: Cell<bool>,
}

/// The socket.
pub(crate) struct Io {
    stream: TcpStream,
    meter: Option<FrameMeter>,
    verdict: Rc<Verdict>,
}

impl Io {
    /// Of a client.
    pub(crate) fn to_client(stream: TcpStream, verdict: Rc<Verdict>) -> Self {
        Self { stream, meter: Some(FrameMeter::new()), verdict }
    }

    /// Of a server.
    pub(crate) fn to_server(stream: TcpStream, verdict: Rc<Verdict>) -> Self {
        Self { stream, meter: None, verdict }
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
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if let Some(meter) = &mut self.meter
            && !meter.read(&buf.filled()[before..])
        {
            self.verdict.is_abuse.set(true);
            return Poll::Ready(Err(io::Error::other("more control frames than any honest client sends")));
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
