//! Whether whoever connects to a pod is one of the mesh: a ClientHello with ALPN `heddle/h2`. Bytes are only peeked at, so that whatever else
//! it is goes on to the application untouched.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use heddle_http::detect::{self, Detection, HELLO_BYTES_MAX, Hello, Protocol};
use heddle_identity::Alpn;
use tokio::io::{Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::copy::not_ready;
use crate::protocol;
use crate::registry::Conn;

/// Looks at a ClientHello that grows: a peer of the mesh sends it at once.
const LOOKS_MAX: u32 = 64;

/// Who connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Greeting {
    /// A peer of the mesh begins its handshake.
    Ours,
    /// Anybody else, or nobody yet who could be told.
    Other,
}

/// What was heard, and whether the socket's readiness was forgotten though bytes are there.
pub(crate) struct Heard {
    pub(crate) greeting: Greeting,
    pub(crate) is_unwatched: bool,
}

/// Listens for `patience`, less where the first bytes decide.
pub(crate) async fn listen(conn: &Conn, downstream: &TcpStream, patience: Duration) -> io::Result<Heard> {
    let is_unwatched = Cell::new(false);
    let (mut seen, mut looks) = (0, 0);
    let listening = poll_fn(|cx: &mut Context<'_>| -> Poll<io::Result<Greeting>> {
        loop {
            {
                let mut scratch = conn.worker.scratch.borrow_mut();
                let mut into = ReadBuf::new(&mut scratch[..HELLO_BYTES_MAX]);
                let Poll::Ready(peeked) = downstream.poll_peek(cx, &mut into) else { return Poll::Pending };
                is_unwatched.set(false);
                let count = peeked?;
                // A socket that is ready with nothing new need not have ended.
                if count == 0 || count == seen && protocol::has_ended(cx, downstream) {
                    return Poll::Ready(Ok(Greeting::Other));
                }
                seen = count;
                match detect::detect(into.filled()) {
                    Detection::NeedMore => {}
                    Detection::Decided(Protocol::Tls) => match detect::client_hello(into.filled()) {
                        Hello::NeedMore => {}
                        Hello::Invalid => return Poll::Ready(Ok(Greeting::Other)),
                        Hello::Complete(hello) => {
                            let is_ours = hello.alpn.iter().any(|name| name == Alpn::Heddle.as_bytes());
                            return Poll::Ready(Ok(if is_ours { Greeting::Ours } else { Greeting::Other }));
                        }
                    },
                    Detection::Decided(_) => return Poll::Ready(Ok(Greeting::Other)),
                }
            }
            looks += 1;
            if looks == LOOKS_MAX {
                return Poll::Ready(Ok(Greeting::Other));
            }
            not_ready(downstream, Interest::READABLE);
            is_unwatched.set(true);
        }
    });
    let greeting = match tokio::time::timeout(patience, listening).await {
        Ok(greeting) => greeting?,
        Err(_) => Greeting::Other,
    };
    Ok(Heard { greeting, is_unwatched: is_unwatched.get() })
}
