//! The mesh's own transports (DESIGN §5): who the other side must be, TLS with it, and HTTP/2 inside.
//!
//! Out: [`way`] says by what an endpoint is reached, [`tls`] proves both sides, the pool of HTTP/2 connections keeps the connection for this
//! source pod; a request goes on a stream as it is, bytes go through a [`tunnel`]. In: [`greeting`] tells a peer of ours from the
//! application's own TLS, [`accept`] serves its streams, each on behalf of the true client it names. Authenticated is the TLS
//! peer and nothing else: [`headers`] only say what that peer may say about itself.

pub(crate) mod accept;
pub(crate) mod greeting;
pub(crate) mod headers;
pub(crate) mod session;
pub(crate) mod tls;
pub(crate) mod trust;
pub(crate) mod tunnel;
pub(crate) mod way;

use std::time::Duration;

/// How long a handshake may take that this side began: the application waits for it.
pub(crate) const CONNECT_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long, and how many bytes, a client whose handshake failed may go on sending.
pub(crate) const GOODBYE: (Duration, usize) = (Duration::from_secs(1), 64 << 10);
/// Handshakes with peers of one pod under way, each with its whole ClientHello; more wait for their turn, as long as a handshake may take.
pub(crate) const HANDSHAKES_MAX: usize = 1024;
/// The same of all pods: what half a handshake holds, a few dozen KiB, times this.
pub(crate) const HANDSHAKES_OF_AGENT_MAX: usize = 4096;
/// Streams on one connection of the mesh: a burst of clients costs one handshake.
pub(crate) const STREAMS_MAX: u32 = 1024;
/// The largest frame that is taken from a peer of HBONE, which sends as much at once as it may: no window takes more.
pub(crate) const FRAME_BYTES_MAX: u32 = 64 << 10;
/// True clients of one connection that keep connections to the application while they ask nothing.
pub(crate) const IDLE_CLIENTS_MAX: usize = 256;
/// Ticks for which they do.
pub(crate) const IDLE_CLIENT_TICKS: u64 = 30;
/// Peers a worker verifies anew in one second, besides those that open streams: roots change for all at once.
pub(crate) const REVIEWS_PER_TICK_MAX: usize = 64;
/// Ticks for which a peer that was told to leave may open streams: those that were on their way.
pub(crate) const LEAVING_TICKS: u64 = 2;
/// How long a server may take to connect to its application: its own attempts, and the way there and back.
pub(crate) const TUNNEL_TIMEOUT: Duration = Duration::from_secs(5);
