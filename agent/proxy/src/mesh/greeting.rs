//! Whether whoever connects to a pod is one of the mesh: a ClientHello with ALPN `heddle/h2`. Bytes are only peeked at, so that whatever else
//! it is goes on to the application untouched.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use heddle_http::detect::{self, Detection, HELLO_BYTES_MAX, Hello, Protocol};
use heddle_identity::{Alpn, HandshakeFailure};
use tokio::io::{Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::tls::Failed;
use crate::copy::not_ready;
use crate::protocol;
use crate::registry::Conn;

/// Looks at a ClientHello that grows, as it grows: a peer of the mesh sends it at once. What comes byte by byte is looked at in turns
/// from then on.
const LOOKS_MAX: u32 = 64;
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

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

/// Listens until then, less where the first bytes decide.
pub(crate) async fn listen(conn: &Conn, downstream: &TcpStream, until: Instant) -> io::Result<Heard> {
    let is_unwatched = Cell::new(false);
    let listening = look(conn, downstream, &is_unwatched, |bytes| match detect::detect(bytes) {
        Detection::NeedMore => None,
        Detection::Decided(Protocol::Tls) => match detect::client_hello(bytes) {
            Hello::NeedMore => None,
            Hello::Complete(hello) if hello.alpn.iter().any(|name| name == Alpn::Heddle.as_bytes()) => {
                Some(Greeting::Ours)
            }
            Hello::Complete(_) | Hello::Invalid => Some(Greeting::Other),
        },
        Detection::Decided(_) => Some(Greeting::Other),
    });
    let greeting = match tokio::time::timeout_at(until, listening).await {
        Ok(greeting) => greeting?.unwrap_or(Greeting::Other),
        Err(_) => Greeting::Other,
    };
    Ok(Heard { greeting, is_unwatched: is_unwatched.get() })
}

/// Waits for a whole ClientHello, whoever sends it; where none can come of what came, says why. A handshake that begins behind it needs
/// the peer's certificate and nothing else.
pub(crate) async fn whole(conn: &Conn, downstream: TcpStream) -> Result<TcpStream, Failed> {
    let is_unwatched = Cell::new(false);
    let looking = look(conn, &downstream, &is_unwatched, |bytes| match detect::client_hello(bytes) {
        Hello::NeedMore => None,
        Hello::Complete(_) => Some(Ok(())),
        Hello::Invalid => Some(Err(HandshakeFailure::Protocol)),
    });
    let ended = || Err(HandshakeFailure::Closed);
    let looked = looking.await.map_err(|error| HandshakeFailure::of_io(&error))?.unwrap_or_else(ended);
    if let Err(failure) = looked {
        return Err(Failed { failure, socket: Some(downstream) });
    }
    if is_unwatched.get() {
        return protocol::watched_anew(downstream).map_err(|_| HandshakeFailure::Closed.into());
    }
    Ok(downstream)
}

/// What came of one look.
enum Look<T> {
    Decided(T),
    More,
    /// Nothing more comes.
    End,
}

/// Looks at what comes until it is enough to decide; none if it ends before. Cut off in the middle it leaves a socket that may have to be
/// watched anew.
async fn look<T>(
    conn: &Conn,
    downstream: &TcpStream,
    is_unwatched: &Cell<bool>,
    decide: impl Fn(&[u8]) -> Option<T>,
) -> io::Result<Option<T>> {
    let (mut seen, mut looks) = (0, 0);
    loop {
        let look = poll_fn(|cx: &mut Context<'_>| -> Poll<io::Result<Look<T>>> {
            let mut scratch = conn.worker.scratch.borrow_mut();
            let mut into = ReadBuf::new(&mut scratch[..HELLO_BYTES_MAX]);
            let peeked = ready!(downstream.poll_peek(cx, &mut into));
            is_unwatched.set(false);
            let count = peeked?;
            // A socket that is ready with nothing new need not have ended.
            if count == 0 || count == seen && protocol::has_ended(cx, downstream) {
                return Poll::Ready(Ok(Look::End));
            }
            seen = count;
            Poll::Ready(Ok(decide(into.filled()).map_or(Look::More, Look::Decided)))
        });
        match look.await? {
            Look::Decided(decided) => return Ok(Some(decided)),
            Look::End => return Ok(None),
            Look::More => {}
        }
        not_ready(downstream, Interest::READABLE);
        is_unwatched.set(true);
        looks += 1;
        if looks >= LOOKS_MAX {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
}
