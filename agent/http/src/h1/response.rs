//! Response heads (RFC 9112 §4 to §6).

use bytes::BufMut;

use super::{Body, Fields, Progress, Version};
use crate::{Limits, Reject};

/// What the request was, as far as its response's framing depends on it (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// HEAD: no response has a body.
    pub head: bool,
    /// CONNECT: 2xx begins a tunnel.
    pub connect: bool,
    /// Upgrade was forwarded: 101 is allowed and begins a tunnel.
    pub upgrade: bool,
}

/// A response head that kept every rule. Reuse one per connection.
#[derive(Clone, Debug, Default)]
pub struct ResponseHead {}

impl ResponseHead {
    /// The status code, 100 to 599.
    pub fn status(&self) -> u16 { todo!() }
    /// The reason phrase as sent.
    pub fn reason(&self) -> &[u8] { todo!() }
    /// The version the server sent.
    pub fn version(&self) -> Version { todo!() }
    /// The fields, in order.
    pub fn fields(&self) -> &Fields { todo!() }
    /// The fields, to edit.
    pub fn fields_mut(&mut self) -> &mut Fields { todo!() }
    /// How the body is framed: [`Body::Tunnel`] for 101 and for 2xx to CONNECT.
    pub fn body(&self) -> Body { todo!() }
    /// 1xx other than 101.
    pub fn is_interim(&self) -> bool { todo!() }
    /// Whether the server keeps its connection open behind this response.
    pub fn keep_alive(&self) -> bool { todo!() }
    /// Starts an empty response to be filled and written.
    pub fn reset(&mut self, status: u16, reason: &str, body: Body) { todo!() }
    /// Writes the head.
    pub fn write(&self, out: &mut impl BufMut) { todo!() }
}

/// Parses response heads of one upstream connection, one after the other.
#[derive(Debug)]
pub struct ResponseParser {}

impl ResponseParser {
    /// A parser with these limits.
    pub fn new(limits: Limits) -> Self { todo!() }
    /// Reads one head, interim or final, from the front of `buffer`.
    pub fn parse(&mut self, buffer: &[u8], asked: Asked, head: &mut ResponseHead) -> Result<Progress, Reject> { todo!() }
    /// Whether any byte of a response was seen: an upstream that closes before that may have its request repeated.
    pub fn has_begun(&self) -> bool { todo!() }
}
