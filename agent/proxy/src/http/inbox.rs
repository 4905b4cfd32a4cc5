//! Bytes read from a connection and not yet used. A buffer is borrowed when there is something to read and given back when
//! all of it is used: an idle connection holds none. A request's body can be kept as it is used, to be read again by another attempt.

use std::io;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use heddle_http::Limits;
use heddle_http::h1::{Body, BodyDecoder};
use heddle_http::retry::REPLAY_BYTES_MAX;
use heddle_telemetry::Reason;
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::budget::Charge;
use crate::buffers::{Lent, SIZES};
use crate::copy::not_ready;
use crate::registry::Conn;

/// What a connection gets when its pod's budget is used up, uncharged: enough for a small message to go on, so that nothing
/// waits for another connection's buffer. A head that does not fit is refused.
const LEAN_BYTES: usize = 2 << 10;

enum Store {
    Lent(Lent),
    Lean(Box<[u8; LEAN_BYTES]>),
    /// What was kept, and what was there behind it.
    Again(Box<[u8]>, #[expect(dead_code, reason = "held until it is used")] Charge),
}

impl Store {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Lent(lent) => lent,
            Self::Lean(lean) => &lean[..],
            Self::Again(again, _) => again,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Lent(lent) => lent,
            Self::Lean(lean) => &mut lean[..],
            Self::Again(again, _) => again,
        }
    }
}

/// What was read from one side.
#[derive(Default)]
pub(crate) struct Inbox {
    store: Option<Store>,
    start: usize,
    end: usize,
    /// Size to borrow next, index into [`SIZES`].
    class: usize,
    kept: Option<Box<Kept>>,
}

/// What was used since keeping began.
struct Kept {
    /// None once there was more than may be kept.
    bytes: Option<Vec<u8>>,
    charge: Charge,
}

/// What a fill brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filled {
    /// So many more bytes.
    Bytes(usize),
    /// The end of the stream.
    End,
    /// There is no room for more: the pod's budget is used up.
    NoRoom,
}

impl Inbox {
    /// What is there.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.store.as_ref().map_or(&[], |store| &store.bytes()[self.start..self.end])
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    /// Drops bytes from the front.
    pub(crate) fn consume(&mut self, count: usize) {
        if let (Some(kept), Some(store)) = (&mut self.kept, &self.store) {
            let end = self.start.saturating_add(count).min(self.end);
            kept.push(&store.bytes()[self.start..end]);
        }
        self.start = self.start.saturating_add(count).min(self.end);
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Drops everything and gives the buffer back.
    pub(crate) fn discard(&mut self) {
        (self.start, self.end) = (0, 0);
        self.store = None;
    }

    /// Gives the buffer back if nothing is in it.
    pub(crate) fn release(&mut self) {
        if self.is_empty() {
            self.store = None;
            (self.start, self.end) = (0, 0);
        }
    }

    /// From here on what is used is kept, as far as it may be.
    pub(crate) fn keep(&mut self, conn: &Conn) {
        self.kept = Some(Box::new(Kept { bytes: Some(Vec::new()), charge: Charge::new(conn) }));
    }

    /// Nobody will read it again.
    pub(crate) fn forget(&mut self) {
        self.kept = None;
    }

    /// Whether all that was used since keeping began is kept.
    pub(crate) fn can_rewind(&self) -> bool {
        self.kept.as_ref().is_some_and(|kept| kept.bytes.is_some())
    }

    /// The body that was used since keeping began, if all of it is kept.
    pub(crate) fn kept_body(&self, body: Body) -> Option<Bytes> {
        let raw = self.kept.as_ref()?.bytes.as_ref()?;
        let (mut decoder, mut at, mut decoded) = (BodyDecoder::new(body, &Limits::DEFAULT), 0, BytesMut::new());
        while !decoder.is_done() {
            let part = decoder.decode(raw.get(at..)?).ok()?;
            decoded.extend_from_slice(raw.get(at..)?.get(part.data)?);
            at += part.consumed;
            if part.consumed == 0 && !part.done {
                return None;
            }
        }
        Some(decoded.freeze())
    }

    /// What was used since keeping began is there again, and is kept anew.
    pub(crate) fn rewind(&mut self) {
        let Some(kept) = &mut self.kept else { return };
        let Some(mut again) = kept.bytes.as_mut().filter(|bytes| !bytes.is_empty()).map(std::mem::take) else { return };
        let mut charge = kept.charge.hand_over();
        again.extend_from_slice(self.bytes());
        // What was read ahead is in a buffer that is charged, and given back for this one. Where the budget has no more, the little that was
        // charged for has to do.
        self.store = None;
        let _ = charge.to(again.len());
        (self.start, self.end) = (0, again.len());
        self.store = Some(Store::Again(again.into_boxed_slice(), charge));
    }

    /// Reads more behind what is there; makes room where it has to. Holds no buffer while it waits, unless bytes are in it.
    pub(crate) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        conn: &Conn,
        source: &TcpStream,
    ) -> Poll<io::Result<Filled>> {
        loop {
            match source.poll_read_ready(cx) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => {
                    self.release();
                    return Poll::Pending;
                }
            }
            if !self.make_room(conn) {
                return Poll::Ready(Ok(Filled::NoRoom));
            }
            let Some(store) = &mut self.store else { return Poll::Ready(Ok(Filled::NoRoom)) };
            let room = &mut store.bytes_mut()[self.end..];
            let size = room.len();
            match source.try_read(room) {
                Ok(0) => return Poll::Ready(Ok(Filled::End)),
                Ok(count) => {
                    self.end += count;
                    if count < size {
                        not_ready(source, Interest::READABLE);
                        if self.len() < SIZES[self.class] / 4 {
                            self.class = self.class.saturating_sub(1);
                        }
                    } else {
                        self.class = (self.class + 1).min(SIZES.len() - 1);
                    }
                    return Poll::Ready(Ok(Filled::Bytes(count)));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn make_room(&mut self, conn: &Conn) -> bool {
        // Reads filled what there was: a long body comes in larger pieces.
        if self.is_empty()
            && let Some(Store::Lent(lent)) = &self.store
            && lent.class() < self.class
        {
            self.store = None;
        }
        if let Some(store) = &mut self.store {
            let size = store.bytes().len();
            if self.end < size {
                return true;
            }
            if self.start > 0 {
                store.bytes_mut().copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
                return true;
            }
            // Full from the front: a larger one.
            let class = SIZES.iter().position(|s| *s > size).unwrap_or(SIZES.len());
            let Some(mut larger) = (class < SIZES.len()).then(|| lend(conn, class)).flatten() else { return false };
            if larger.len() <= size {
                return false;
            }
            larger[..size].copy_from_slice(store.bytes());
            self.store = Some(Store::Lent(larger));
            return true;
        }
        (self.start, self.end) = (0, 0);
        self.store = Some(match lend(conn, self.class) {
            Some(lent) => Store::Lent(lent),
            None => {
                conn.worker.metrics().count_budget_exceeded(Reason::PodBufferedBytesMax);
                Store::Lean(Box::new([0; LEAN_BYTES]))
            }
        });
        true
    }
}

impl Kept {
    fn push(&mut self, used: &[u8]) {
        let Some(bytes) = &mut self.bytes else { return };
        if bytes.len() + used.len() <= REPLAY_BYTES_MAX && self.charge.to(bytes.len() + used.len()) {
            bytes.extend_from_slice(used);
        } else {
            self.bytes = None;
            self.charge.to(0);
        }
    }
}

fn lend(conn: &Conn, class: usize) -> Option<Lent> {
    conn.worker.buffers.lend(class, &conn.pod.budget, conn.worker.limits().buffered_bytes_max)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use heddle_telemetry::HttpMetrics;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;
    use crate::measure;

    #[tokio::test]
    async fn what_is_long_comes_in_larger_pieces_each_time() {
        let conn = measure::connection(&measure::worker(HttpMetrics::new(1, 10)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let receiver = listener.accept().await.unwrap().0;
        let total = SIZES[0] + SIZES[1] / 2;
        sender.write_all(&vec![1; total]).await.unwrap();
        let mut scratch = vec![0; total];
        while receiver.peek(&mut scratch).await.unwrap() < total {
            tokio::task::yield_now().await;
        }
        let mut inbox = Inbox::default();
        for expected in [SIZES[0], SIZES[1] / 2] {
            let filled = poll_fn(|cx| inbox.poll_fill(cx, &conn, &receiver)).await.unwrap();
            assert_eq!(filled, Filled::Bytes(expected));
            inbox.consume(expected);
        }
        conn.end(Reason::Completed);
    }
}
