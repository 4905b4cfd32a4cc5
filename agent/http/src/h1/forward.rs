//! Making a message ours to pass on: hop-by-hop fields end here, everything else stays as it was.

use super::{Body, RequestHead, ResponseHead, Version};
use crate::Reject;

/// The client's side of an exchange, for its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientSide {
    /// The version of its request.
    pub version: Version,
    /// Whether the connection should be kept: the client's wish, [`super::Exchange::client_reusable`] and no drain.
    pub keep_alive: bool,
    /// Its request was HEAD.
    pub head: bool,
}

/// How the forwarded response is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// The framing of its body towards the client.
    pub body: Body,
    /// Whether the client's connection is kept behind it.
    pub keep_alive: bool,
}

/// Turns a parsed request into the one to send upstream over HTTP/1.1: connection options, `h2c` and `x-heddle-*` go, an upgrade and
/// `TE: trailers` stay. `host` fills a missing or empty Host of an HTTP/1.0 request. The answer is the framing to send with.
pub fn forward_request(head: &mut RequestHead, host: &str) -> Result<Body, Reject> { todo!() }

/// Turns a parsed response into the one for this client. Chunked becomes until-close for HTTP/1.0; until-close becomes chunked for HTTP/1.1.
pub fn forward_response(head: &mut ResponseHead, client: ClientSide) -> Outgoing { todo!() }
