//! TLS behind its handshake, in large steps: what one read of the socket brings is decrypted together, what a turn of the
//! connection wrote is encrypted together. The stream of `tokio-rustls` reads 4 KiB at a time, and writes with every frame.

use std::io::{self, BufRead, IoSlice, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::Connection;
use tokio::io::{AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use crate::copy::not_ready;
use crate::http::inbox::{Filled, Inbox};
use crate::registry::Conn;

/// Decrypted bytes above which no more are decrypted before they are taken: `rustls` takes no more input above 16 KiB.
const DECRYPTED_BYTES_MAX: usize = 8 << 10;

/// All that TLS 1.3 sends behind its handshake looks like this (RFC 8446 §5.2).
const APPLICATION_DATA: u8 = 23;
const RECORD_HEADER_BYTES: usize = 5;

/// One connection.
pub(crate) struct Session {
    socket: TcpStream,
    tls: Connection,
    /// Read off the socket and not yet decrypted.
    inbox: Inbox,
    /// What came broke TLS: told behind what came before.
    failure: Option<rustls::Error>,
    /// The peer was told that nothing more comes.
    is_closing: bool,
}

impl From<TlsStream<TcpStream>> for Session {
    fn from(stream: TlsStream<TcpStream>) -> Self {
        let (socket, tls) = match stream {
            TlsStream::Client(stream) => {
                let (socket, tls) = stream.into_inner();
                (socket, Connection::Client(tls))
            }
            TlsStream::Server(stream) => {
                let (socket, tls) = stream.into_inner();
                (socket, Connection::Server(tls))
            }
        };
        Self { socket, tls, inbox: Inbox::default(), failure: None, is_closing: false }
    }
}

impl Session {
    pub(crate) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Reads what there is, as far as it fits. Nothing was read at the end.
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        conn: &Conn,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if self.take(buf)? {
                return Poll::Ready(Ok(()));
            }
            if let Some(failure) = &self.failure {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, failure.clone())));
            }
            if self.inbox.is_empty() {
                match ready!(self.inbox.poll_fill(cx, conn, &self.socket))? {
                    Filled::Bytes(_) => {}
                    Filled::End => drop(self.tls.read_tls(&mut io::empty())?),
                    Filled::NoRoom => return Poll::Ready(Err(io::ErrorKind::OutOfMemory.into())),
                }
            }
            self.decrypt(buf.remaining().min(DECRYPTED_BYTES_MAX))?;
            if self.failure.is_some() {
                // Says why. The peer may be gone: the failure is what counts.
                let _ = self.poll_sent(cx);
            }
        }
    }

    /// Takes decrypted bytes; whether there were any, or the end.
    fn take(&mut self, buf: &mut ReadBuf<'_>) -> io::Result<bool> {
        let before = buf.filled().len();
        while buf.remaining() > 0 {
            let count = match self.tls.reader().into_first_chunk() {
                Ok([]) => return Ok(true),
                Ok(chunk) => {
                    let count = chunk.len().min(buf.remaining());
                    buf.put_slice(&chunk[..count]);
                    count
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The end, or a cut, shows once more behind what came before it.
                Err(_) if buf.filled().len() > before => break,
                Err(error) => return Err(error),
            };
            self.tls.reader().consume(count);
        }
        Ok(buf.filled().len() > before)
    }

    /// Decrypts what was read, until there are about `wanted` bytes, or it fails.
    fn decrypt(&mut self, wanted: usize) -> io::Result<()> {
        while !self.inbox.is_empty() {
            let bytes = self.inbox.bytes();
            let mut next = &bytes[..whole_record(bytes).unwrap_or(bytes.len())];
            let count = self.tls.read_tls(&mut next)?;
            self.inbox.consume(count);
            let state = match self.tls.process_new_packets() {
                Ok(state) => state,
                Err(failure) => {
                    self.failure = Some(failure);
                    self.inbox.discard();
                    break;
                }
            };
            // Nothing is taken behind a peer's goodbye.
            if state.plaintext_bytes_to_read() >= wanted || count == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Takes bytes to be sent, and sends what the socket takes of them; no more are taken while some wait.
    pub(crate) fn poll_write(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        ready!(self.poll_sent(cx))?;
        let count = self.tls.writer().write_vectored(bufs)?;
        // What is not sent now is when the socket is ready for it.
        let _ = self.poll_sent(cx)?;
        Poll::Ready(Ok(count))
    }

    /// Ready when the socket has taken everything.
    pub(crate) fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.tls.wants_write() {
            ready!(self.socket.poll_write_ready(cx))?;
            match self.tls.write_tls(&mut Sink(&self.socket)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Says goodbye and ends this direction.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.is_closing, true) {
            self.tls.send_close_notify();
        }
        ready!(self.poll_sent(cx))?;
        match ready!(Pin::new(&mut self.socket).poll_shutdown(cx)) {
            // It is gone already.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            ended => Poll::Ready(ended),
        }
    }
}

/// The size of a record that begins `bytes` and is all there. Given alone, `rustls` has no part of the next to move and to grow its buffer
/// for. Inside a record bytes can look like the beginning of one: what is given is right whatever it is.
fn whole_record(bytes: &[u8]) -> Option<usize> {
    let [APPLICATION_DATA, 3, 3, high, low, ..] = bytes else { return None };
    let size = RECORD_HEADER_BYTES + usize::from(u16::from_be_bytes([*high, *low]));
    (size <= bytes.len()).then_some(size)
}

/// A socket that is ready to be written to.
struct Sink<'a>(&'a TcpStream);

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let count = self.0.try_write_vectored(bufs)?;
        if count < bufs.iter().map(|buf| buf.len()).sum() {
            not_ready(self.0, Interest::WRITABLE);
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_records_are_told_from_parts() {
        let record = |size: usize| [&[23, 3, 3, (size >> 8) as u8, size as u8][..], &vec![7; size]].concat();
        for (what, bytes, expected) in [
            ("one", record(300), Some(305)),
            ("one and a part of the next", [record(20), record(300)[..40].to_vec()].concat(), Some(25)),
            ("all but a byte", record(300)[..304].to_vec(), None),
            ("a part of a header", record(300)[..4].to_vec(), None),
            ("the middle of one", record(300)[2..].to_vec(), None),
            ("a handshake's", vec![22, 3, 3, 0, 1, 0], None),
            ("nothing", vec![], None),
        ] {
            assert_eq!(whole_record(&bytes), expected, "{what}");
        }
    }
}
