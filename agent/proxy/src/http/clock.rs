//! How long the body of an HTTP/2 request may stand still while nothing else happens. The connection's own deadline serves its
//! head and its idleness; streams are many.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

use crate::registry::Conn;

/// One body's clock.
pub(crate) struct BodyClock {
    conn: Rc<Conn>,
    /// Tick since which the client has not moved, while it is its turn.
    since: Option<u64>,
    bytes: u64,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl BodyClock {
    pub(crate) fn new(conn: &Rc<Conn>) -> Self {
        Self { conn: conn.clone(), since: None, bytes: 0, sleep: None }
    }

    /// Ready when time is up; `bytes` of the body came so far. One sleep serves for many frames: it is set anew only when it is
    /// over.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, bytes: u64, is_clients_turn: bool) -> Poll<()> {
        if !is_clients_turn || std::mem::replace(&mut self.bytes, bytes) != bytes {
            self.since = None;
        }
        if !is_clients_turn {
            return Poll::Pending;
        }
        let (limit, tick) = (self.conn.worker.config.request_body_idle_timeout, self.conn.worker.tick());
        let since = *self.since.get_or_insert(tick);
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep(limit)));
        while sleep.as_mut().poll(cx).is_ready() {
            // The tick it began in was under way already.
            let still = Duration::from_secs((tick - since).saturating_sub(1));
            if still >= limit {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(Instant::now() + (limit - still));
        }
        Poll::Pending
    }
}
