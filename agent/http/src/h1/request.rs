//! Request heads (RFC 9112 §3, §5, §6).

use bytes::BufMut;

use super::{Asked, Body, Fields, Progress};
use crate::{Limits, Reject};

/// The HTTP/1 minor version of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
}

/// The four forms of a request target (RFC 9112 §3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetForm {
    /// `/path?query`.
    Origin,
    /// `http://host/path?query`.
    Absolute,
    /// `host:port`, CONNECT only.
    Authority,
    /// `*`, OPTIONS only.
    Asterisk,
}

/// What a client offers to switch to. `h2c` is ignored (RFC 9113 §3.1), so it is not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upgrade {
    /// RFC 6455.
    WebSocket,
    /// Some other protocol; forwarded as it is.
    Other,
}

/// A request head that kept every rule. Reuse one per connection: its buffers stay.
#[derive(Clone, Debug, Default)]
pub struct RequestHead {}

impl RequestHead {
    /// The method as sent (case matters).
    pub fn method(&self) -> &str { todo!() }
    /// The target as sent.
    pub fn target(&self) -> &str { todo!() }
    /// The target's form.
    pub fn form(&self) -> TargetForm { todo!() }
    /// `/path?query` of origin- and absolute-form (`/` where the path is empty), `*`, or empty for CONNECT.
    pub fn path_and_query(&self) -> &str { todo!() }
    /// Host and port the request is for: of the target, else Host; `None` only in HTTP/1.0 or with an empty Host.
    pub fn authority(&self) -> Option<&str> { todo!() }
    /// The version the client sent.
    pub fn version(&self) -> Version { todo!() }
    /// The fields, in order.
    pub fn fields(&self) -> &Fields { todo!() }
    /// The fields, to edit. Framing fields (Content-Length, Transfer-Encoding) and Connection are the codec's: `append`/`set` refuse them.
    pub fn fields_mut(&mut self) -> &mut Fields { todo!() }
    /// How the body is framed.
    pub fn body(&self) -> Body { todo!() }
    /// Whether the client wants its connection kept (RFC 9112 §9.3).
    pub fn keep_alive(&self) -> bool { todo!() }
    /// `Expect: 100-continue` in an HTTP/1.1 request with a body.
    pub fn expects_continue(&self) -> bool { todo!() }
    /// The upgrade it asks for, `h2c` apart.
    pub fn upgrade(&self) -> Option<Upgrade> { todo!() }
    /// What its response parser has to know.
    pub fn asked(&self) -> Asked { todo!() }
    /// gRPC by content-type (`application/grpc`, `+proto` …, not grpc-web).
    pub fn is_grpc(&self) -> bool { todo!() }
    /// Whether the method is idempotent (RFC 9110 §9.2.2), so that it may be sent again after a lost connection.
    pub fn is_idempotent(&self) -> bool { todo!() }
    /// Replaces the target (rewrites, tests). The form must not change.
    pub fn set_target(&mut self, target: &str) -> Result<(), Reject> { todo!() }
    /// Writes the head. Untouched runs of fields are copied as they came; whitespace around values becomes one space.
    pub fn write(&self, out: &mut impl BufMut) { todo!() }
}

/// Parses request heads of one connection, one after the other.
#[derive(Debug)]
pub struct RequestParser {}

impl RequestParser {
    /// A parser with these limits.
    pub fn new(limits: Limits) -> Self { todo!() }
    /// Reads one head from the front of `buffer` into `head`. On `NeedMore` call again with the same bytes and more behind them;
    /// after `Complete` the parser is ready for the next head. After an error the connection is over.
    pub fn parse(&mut self, buffer: &[u8], head: &mut RequestHead) -> Result<Progress, Reject> { todo!() }
    /// Whether a request has begun: bytes other than leading empty lines were seen. Idle otherwise.
    pub fn has_begun(&self) -> bool { todo!() }
}
