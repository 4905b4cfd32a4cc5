//! HTTP/2 ↔ HTTP/1 as pure functions (RFC 9113 §8), and the same checks for h2 → h2.

use http::{HeaderMap, Request, Response, request, response};

use crate::Reject;
use crate::h1::{Body, Fields, RequestHead, ResponseHead};

/// What an HTTP/2 request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An ordinary request.
    Plain,
    /// CONNECT: a byte stream to an authority.
    Connect,
    /// Extended CONNECT for WebSocket (RFC 8441): an HTTP/1 upgrade on the other side.
    WebSocket,
}

/// Checks a request that came by HTTP/2 and makes it fit to be passed on by either version: forbidden fields are errors, cookies are joined,
/// `host` is folded into the authority, `x-heddle-*` goes. `protocol` is h2's `:protocol`; `end_stream`: no body follows.
pub fn check_request(parts: &mut request::Parts, protocol: Option<&str>, end_stream: bool) -> Result<Checked, Reject> { todo!() }

/// Facts of a checked HTTP/2 request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    /// What it asks for.
    pub kind: Kind,
    /// The body: `Empty`, `Length` (a Content-Length that DATA must match: RFC 9113 §8.1.1) or `Chunked` (unknown length).
    pub body: Body,
    /// gRPC by content-type.
    pub grpc: bool,
    /// `TE: trailers`.
    pub te_trailers: bool,
}

/// The HTTP/1 form of a checked request. The head's `body()` is the framing to send with. Write it as it is: no `forward_request`.
pub fn request_to_h1(parts: &request::Parts, checked: &Checked, head: &mut RequestHead) -> Result<(), Reject> { todo!() }

/// The HTTP/2 form of a parsed HTTP/1 request (before [`crate::h1::forward_request`]). `authority` where the request has none. A WebSocket
/// upgrade becomes CONNECT and the caller sets `:protocol` from the returned kind.
pub fn request_to_h2(head: &RequestHead, scheme: &str, authority: &str) -> Result<(Request<()>, Kind), Reject> { todo!() }

/// Checks a response (or 1xx) that came by HTTP/2. `head`: the request was HEAD. The answer is its body as `Empty`, `Length` or `Chunked`.
pub fn check_response(parts: &mut response::Parts, end_stream: bool, head: bool) -> Result<Body, Reject> { todo!() }

/// The HTTP/1 form of a checked response, ready for [`crate::h1::forward_response`]. `kind` of its request: 200 to WebSocket becomes 101, with
/// `Sec-WebSocket-Accept` computed from `websocket_key`.
pub fn response_to_h1(parts: &response::Parts, body: Body, kind: Kind, websocket_key: Option<&[u8]>, head: &mut ResponseHead) -> Result<(), Reject> { todo!() }

/// The HTTP/2 form of a parsed HTTP/1 response, interim or final; 101 to a WebSocket request becomes 200.
pub fn response_to_h2(head: &ResponseHead) -> Result<Response<()>, Reject> { todo!() }

/// Trailers of an HTTP/1 body for HTTP/2.
pub fn trailers_to_h2(fields: &Fields) -> Result<HeaderMap, Reject> { todo!() }

/// Trailers of an HTTP/2 message for an HTTP/1 body. Also the check for passing them on by HTTP/2.
pub fn trailers_to_h1(trailers: &HeaderMap) -> Result<Fields, Reject> { todo!() }

/// Checks that DATA frames add up to a declared Content-Length (RFC 9113 §8.1.1).
#[derive(Clone, Copy, Debug)]
pub struct LengthCheck {}

impl LengthCheck {
    /// For a message with this body.
    pub fn new(body: Body) -> Self { todo!() }
    /// `len` bytes of DATA came.
    pub fn data(&mut self, len: usize) -> Result<(), Reject> { todo!() }
    /// The stream ended.
    pub fn end(&self) -> Result<(), Reject> { todo!() }
}
