//! The HTTP/1 codec. Strict in what it accepts, faithful in what it passes on: names keep their case and order.
//!
//! A request's life: [`RequestParser`] fills a [`RequestHead`] (a value that exists only when every rule held, so framing, Host and
//! connection options are facts) → [`forward_request`] makes it the upstream's message → [`RequestHead::write`] → [`BodyDecoder`] and
//! [`BodyEncoder`] carry the body without copying → [`ResponseParser`] → [`Exchange`] says what the response may be →
//! [`forward_response`] → [`Exchange`] says which of the two connections may be used again.

mod body;
mod chunked;
mod exchange;
mod fields;
mod forward;
mod framing;
mod parse;
mod request;
mod response;

pub use body::{Body, BodyDecoder, BodyEncoder, ChunkFraming, Decoded};
pub(crate) use chunked::may_trail;
pub use exchange::{Exchange, Received};
pub use fields::{Fields, Known};
pub use forward::{ClientSide, Outgoing, forward_request, forward_response};
pub(crate) use framing::content_length;
pub use parse::Progress;
pub use request::{RequestHead, RequestParser, TargetForm, Upgrade, Version, is_idempotent};
pub use response::{Asked, ResponseHead, ResponseParser};

#[cfg(test)]
mod tests;
