//! HTTP between the two sides of a connection: [`h1`] serves an HTTP/1 client, [`h2`] an HTTP/2 one.
//!
//! Each has two ways on: to an upstream of its own version, and (`cross`) to one of the other, through [`bridge`]. Which it is the port
//! declares ([`crate::route::Route::version`]). What both share, the [`client`] knows: the route, endpoints in turn, its own connections.
//!
//! A request's way: head ([`inbox`], parsed by `heddle_http`) → upstream from the [`pool`] or dialled ([`crate::route`]) →
//! [`relay`]: request and response at once, each through a [`pipe`] that holds no more than one buffer → [`record`]: metrics and log,
//! once, however it ended. The connection's own task drives all of it: dropping the task ends both sides.

pub(crate) mod bridge;
pub(crate) mod client;
mod clock;
pub(crate) mod flow;
mod frames;
mod h1;
pub(crate) mod h2;
pub(crate) mod inbox;
pub(crate) mod io;
pub(crate) mod link;
pub(crate) mod mirror;
mod pipe;
pub(crate) mod plan;
pub(crate) mod pool;
pub(crate) mod pool_h2;
pub(crate) mod record;
mod relay;
pub(crate) mod spare;
mod standing;
pub(crate) mod stream;
pub(crate) mod wire;

/// What a stream's peer may send before it is read on.
const STREAM_WINDOW_BYTES: u32 = 64 << 10;
/// What a connection's peer may send beyond what is held and charged ([`flow`]): the window RFC 9113 §6.9.2 begins with.
const WINDOW_LEAN_BYTES: u32 = 65_535;
/// Small DATA frames in a connection's own queue, as `h2` counts them (256 less their length): more than fit the lean window. They
/// do not stay there ([`flow::Incoming::wait`]).
const SMALL_FRAMES_BUDGET: usize = 2 << 20;
/// Header fields of one response, uncompressed, as RFC 9113 §6.5.2 counts them. Of a request `h2` takes twice as many and
/// `heddle_http` checks them, so that the answer is ours and recorded.
const HEADER_LIST_BYTES_MAX: u32 = 64 << 10;
/// Streams a client may have open, and those opened on one connection to a server.
const STREAMS_MAX: u32 = 128;
/// Streams that were reset and are still remembered; more at a time end the connection.
const RESET_STREAMS_MAX: usize = 64;
/// Streams of a connection that `h2` may reset by itself, over its whole life, because the peer broke a rule or sent behind a
/// reset. Its default of 1024 ends an honest connection after some weeks; the share of them is what [`frames`] looks at.
const LOCAL_RESETS_MAX: usize = 16_384;
/// Streams that were reset before this side looked at them; more at a time end the connection. Another agent's connection carries the
/// streams of many clients, of which one may give up all it has at once, and again before the connection is retired for it.
const PENDING_RESETS_MAX: usize = 256;
/// Bytes of one stream waiting for its connection's socket.
const SEND_BUFFER_BYTES_MAX: usize = 64 << 10;

pub(crate) use h1::{Heads, run as run_h1};
pub(crate) use h2::run as run_h2;
pub(crate) use record::{HttpKey, Record};
