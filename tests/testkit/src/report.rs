//! What `podapp` prints: one [`Event`] per line of standard output, as JSON.
//!
//! The program and the tests share these types, so a test never parses text.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One line of `podapp`'s standard output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A server listens (`error` absent) or could not.
    Listening {
        /// The address asked for.
        address: SocketAddr,
        /// Name of the errno of `bind` or `listen`.
        error: Option<String>,
    },
    /// A server accepted a connection.
    Accepted(Accepted),
    /// A server's connection ended.
    Closed {
        /// The number in [`Accepted::id`].
        id: u64,
        /// Bytes read from the client.
        bytes: u64,
        /// How the client's direction ended.
        end: End,
    },
    /// Answer to the line `stats` on a server's standard input.
    Stats {
        /// Connections accepted so far.
        accepted: u64,
        /// Connections open now.
        open: u64,
        /// Bytes read so far.
        bytes: u64,
    },
    /// One connection of a client, from `connect()` to its end.
    Connection(Connection),
    /// `hold` has opened what it could.
    Holding {
        /// Connections open.
        open: u64,
        /// Connections that did not come up.
        failed: u64,
    },
    /// A held connection ended without being asked to.
    Ended {
        /// Which one.
        index: u64,
        /// How.
        end: End,
    },
    /// Answer to the line `ping` on the standard input of `hold`.
    Pong {
        /// Connections that echoed.
        ok: u64,
        /// Connections that did not.
        bad: u64,
    },
    /// Answer to the line `names` of `hold` and `serve`, one per open connection; and the steps of `reuse`.
    Named(Named),
    /// End of the answer to `names`.
    NamedAll,
    /// Totals of a client, its last line.
    Summary(Summary),
}

/// The addresses a server was told about one connection, each by another system call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Counts from 1 in each server process.
    pub id: u64,
    /// What `accept()` returned.
    pub accept: SocketAddr,
    /// `getpeername()`; absent if the connection was gone by then.
    pub peer: Option<SocketAddr>,
    /// `getsockname()`.
    pub local: Option<SocketAddr>,
}

/// What one socket is called, long after it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// Which one.
    pub index: u64,
    /// `getpeername()`; absent if it fails.
    pub peer: Option<SocketAddr>,
    /// `getsockname()`.
    pub local: Option<SocketAddr>,
}

/// One connection as its client saw it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Connection {
    /// Counts from 0.
    pub index: u64,
    /// Name of the errno of `connect()`, `TIMEOUT` if it did not return in time; absent if it succeeded.
    pub connect_error: Option<String>,
    /// `getpeername()` after `connect()`.
    pub peer: Option<SocketAddr>,
    /// `getsockname()` after `connect()`.
    pub local: Option<SocketAddr>,
    /// Time `connect()` took, microseconds.
    pub connect_us: u64,
    /// Time from the start of `connect()` until the exchange was complete, microseconds; absent if it never was.
    pub exchange_us: Option<u64>,
    /// Bytes written.
    pub sent: u64,
    /// Bytes read.
    pub received: u64,
    /// The first 512 bytes read, as text.
    pub text: String,
    /// Whether everything came back that was wanted (`--expect`, and the echo of what was sent), unchanged.
    pub complete: bool,
    /// How it ended.
    pub end: End,
}

impl Connection {
    /// Connected and got everything it wanted.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.connect_error.is_none() && self.complete && !matches!(self.end, End::Reset | End::Timeout | End::Error(_))
    }

    /// The destination could not be reached, as a captured application can see it: `connect()` failed with
    /// ECONNREFUSED, or the connection was reset before a byte arrived.
    #[must_use]
    pub fn refused(&self) -> bool {
        match self.connect_error.as_deref() {
            Some(error) => error == "ECONNREFUSED",
            None => self.received == 0 && self.end == End::Reset,
        }
    }

    /// Time from the start of `connect()` until the exchange was complete.
    #[must_use]
    pub fn exchange(&self) -> Option<Duration> {
        self.exchange_us.map(Duration::from_micros)
    }
}

/// How a connection ended, seen from one side.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// `connect()` failed.
    NotConnected,
    /// This side closed it after a complete exchange.
    Closed,
    /// The other side ended its direction in order.
    Eof,
    /// ECONNRESET or EPIPE.
    Reset,
    /// Nothing happened within the time limit.
    Timeout,
    /// What arrived differs from what was wanted.
    Mismatch,
    /// Another error: the errno's name.
    Error(String),
}

/// Totals of a client.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Connections tried.
    pub attempted: u64,
    /// `connect()` succeeded.
    pub connected: u64,
    /// Exchanges that were complete ([`Connection::succeeded`]).
    pub succeeded: u64,
    /// Connections that were refused ([`Connection::refused`]).
    pub refused: u64,
    /// Connections never started because too many were in flight.
    pub skipped: u64,
    /// Bytes read in all.
    pub received: u64,
    /// errno of `connect()` or end of the connection → how many did not succeed for it.
    pub failures: BTreeMap<String, u64>,
    /// Longest `connect()`, microseconds.
    pub slowest_connect_us: u64,
    /// Longest time from `connect()` to the complete exchange, microseconds.
    pub slowest_exchange_us: u64,
    /// Median of that time, microseconds.
    pub exchange_p50_us: u64,
    /// 99th percentile of that time, microseconds.
    pub exchange_p99_us: u64,
}
