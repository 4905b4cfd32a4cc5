//! One request and its responses on a client's and an upstream's connection: what may come, and which connection lives on.

use super::{Asked, RequestHead, ResponseHead};
use crate::{Limits, Reject};

/// What a response head is in its exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// 1xx: forward to an HTTP/1.1 client, drop towards an HTTP/1.0 one; another head follows.
    Interim {
        /// Whether the client may be told.
        forward: bool,
    },
    /// The final response; its body follows.
    Final,
    /// 101 or 2xx to CONNECT: forward the head, then copy both ways.
    Tunnel,
}

/// The state of one exchange. Feed it what happened, ask it what may be done.
#[derive(Clone, Copy, Debug)]
pub struct Exchange {}

impl Exchange {
    /// A new exchange for this request (as the client sent it).
    pub fn new(request: &RequestHead, limits: &Limits) -> Self { todo!() }
    /// What the response parser has to know.
    pub fn asked(&self) -> Asked { todo!() }
    /// A response head came.
    pub fn response_head(&mut self, head: &ResponseHead) -> Result<Received, Reject> { todo!() }
    /// The last byte of the request went upstream.
    pub fn request_sent(&mut self) { todo!() }
    /// The last byte of the response came.
    pub fn response_received(&mut self) { todo!() }
    /// Expect-continue: the client waits for 100 before it sends its body, and nothing released it yet.
    pub fn awaits_continue(&self) -> bool { todo!() }
    /// Body bytes of the request came without waiting for 100.
    pub fn body_begun(&mut self) { todo!() }
    /// Whether the upstream connection may serve another request. `leftover`: bytes are in the buffer behind the response.
    pub fn upstream_reusable(&self, leftover: bool) -> bool { todo!() }
    /// Whether the client's connection may serve another request. Ask before the final head is written (the answer is what
    /// `Connection` tells the client, through [`super::ClientSide::keep_alive`]) and obey it at the end.
    pub fn client_reusable(&self) -> bool { todo!() }
}
