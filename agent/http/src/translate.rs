//! HTTP/2 ↔ HTTP/1 as pure functions (RFC 9113 §8), and the same checks for HTTP/2 → HTTP/2.
//!
//! What a length, a name or a host means must not change on the way: a field that the other version reads as framing or as another message
//! is an error here, never dropped silently (RFC 9113 §10.3).

mod request;
mod response;

pub use request::{Checked, Kind, check_request, request_to_h1, request_to_h2};
pub use response::{check_response, response_to_h1, response_to_h2};

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::Reject;
use crate::h1::{Body, Fields, Known, may_trail};
use crate::syntax;

/// Trailers of an HTTP/1 body for HTTP/2.
pub fn trailers_to_h2(fields: &Fields) -> Result<HeaderMap, Reject> {
    let mut map = HeaderMap::with_capacity(fields.len());
    for (known, name, value) in fields.iter_known() {
        match known {
            Known::Heddle => {}
            known if may_trail(known) => insert(&mut map, name, value)?,
            _ => return Err(Reject::TrailerForbidden),
        }
    }
    Ok(map)
}

/// Trailers of an HTTP/2 message for an HTTP/1 body.
pub fn trailers_to_h1(trailers: &HeaderMap) -> Result<Fields, Reject> {
    let mut fields = Fields::default();
    for (name, value) in trailers {
        match Known::of(name.as_str().as_bytes()) {
            Known::Heddle => {}
            known => {
                check_trailer(known, value)?;
                fields.push_checked(name.as_str().as_bytes(), value.as_bytes());
            }
        }
    }
    Ok(fields)
}

/// Checks trailers that go from HTTP/2 to HTTP/2; `x-heddle-*` goes.
pub fn check_trailers(trailers: &mut HeaderMap) -> Result<(), Reject> {
    for (name, value) in trailers.iter() {
        check_trailer(Known::of(name.as_str().as_bytes()), value)?;
    }
    strip_heddle(trailers);
    Ok(())
}

fn check_trailer(known: Known, value: &HeaderValue) -> Result<(), Reject> {
    if !may_trail(known) {
        return Err(if is_of_connection(known) { Reject::ConnectionField } else { Reject::TrailerForbidden });
    }
    check_value(value)
}

/// Checks that DATA frames add up to a declared Content-Length (RFC 9113 §8.1.1).
#[derive(Clone, Copy, Debug)]
pub struct LengthCheck {
    left: Option<u64>,
}

impl LengthCheck {
    /// For a message with this body; an empty one may have no byte.
    #[must_use]
    pub fn new(body: Body) -> Self {
        let left = match body {
            Body::Empty => Some(0),
            Body::Length(length) => Some(length),
            Body::Chunked | Body::UntilClose | Body::Tunnel => None,
        };
        Self { left }
    }

    /// `len` bytes of DATA came.
    pub fn data(&mut self, len: usize) -> Result<(), Reject> {
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(len as u64).ok_or(Reject::BodyTooLong)?;
        }
        Ok(())
    }

    /// The stream ended.
    pub fn end(&self) -> Result<(), Reject> {
        if self.left.is_some_and(|left| left > 0) { Err(Reject::BodyIncomplete) } else { Ok(()) }
    }
}

/// Fields that HTTP/2 messages may not have (RFC 9113 §8.2.2).
fn is_of_connection(known: Known) -> bool {
    matches!(
        known,
        Known::Connection | Known::KeepAlive | Known::ProxyConnection | Known::TransferEncoding | Known::Upgrade
    )
}

/// RFC 9113 §8.2.1: no blanks at the ends; the other bytes were checked when the value was made.
fn check_value(value: &HeaderValue) -> Result<(), Reject> {
    let bytes = value.as_bytes();
    if syntax::is_text(bytes) && syntax::trim(bytes).len() == bytes.len() { Ok(()) } else { Err(Reject::FieldValue) }
}

/// Names in HTTP/2 are lower case, which [`HeaderName`] sees to.
fn insert(map: &mut HeaderMap, name: &[u8], value: &[u8]) -> Result<(), Reject> {
    let name = HeaderName::from_bytes(name).map_err(|_| Reject::FieldName)?;
    let value = HeaderValue::from_bytes(value).map_err(|_| Reject::FieldValue)?;
    map.try_append(name, value).map_err(|_| Reject::TooManyFields)?;
    Ok(())
}

fn strip_heddle(map: &mut HeaderMap) {
    let ours: Vec<HeaderName> =
        map.keys().filter(|name| Known::of(name.as_str().as_bytes()) == Known::Heddle).cloned().collect();
    for name in ours {
        map.remove(name);
    }
}

#[cfg(test)]
mod tests;
