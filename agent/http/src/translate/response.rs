//! Responses between the versions (RFC 9113 §8.1, §8.3.2; RFC 8441 §5).

use http::{HeaderMap, Response, StatusCode, Version, header, response};

use super::{check_value, insert, is_of_connection, strip_heddle};
use crate::Reject;
use crate::h1::{Asked, Body, Known, ResponseHead, content_length};
use crate::syntax;
use crate::websocket;

/// Checks a response, interim or final, that came by HTTP/2; `x-heddle-*` goes. `asked`: what its request was. The answer is its body as
/// `Empty`, `Length`, `Chunked` (length unknown) or `Tunnel` (2xx to CONNECT).
pub fn check_response(parts: &mut response::Parts, end_stream: bool, asked: Asked) -> Result<Body, Reject> {
    let status = parts.status.as_u16();
    // There is no 101 in HTTP/2 (RFC 9113 §8.6), and an interim response never ends the stream (§8.1).
    if !(100..=599).contains(&status) || status == 101 || (status < 200 && end_stream) {
        return Err(Reject::Status);
    }
    let length = check_fields(&mut parts.headers)?;
    let announced_only = asked.head || status == 304;
    match (status, length) {
        (100..200 | 204, Some(1..)) => Err(Reject::FramingForbidden),
        (100..200 | 204, _) => Ok(Body::Empty),
        (200..300, _) if asked.connect || asked.upgrade => {
            parts.headers.remove(header::CONTENT_LENGTH);
            Ok(Body::Tunnel)
        }
        _ if announced_only => Ok(Body::Empty),
        (_, Some(0)) => Ok(Body::Empty),
        (_, Some(_)) if end_stream => Err(Reject::BodyIncomplete),
        (_, Some(length)) => Ok(Body::Length(length)),
        (_, None) if end_stream => Ok(Body::Empty),
        (_, None) => Ok(Body::Chunked),
    }
}

fn check_fields(headers: &mut HeaderMap) -> Result<Option<u64>, Reject> {
    let mut length = None;
    let mut ours = false;
    for (name, value) in headers.iter() {
        check_value(value)?;
        match Known::of(name.as_str().as_bytes()) {
            known if is_of_connection(known) => return Err(Reject::ConnectionField),
            Known::ContentLength if length.is_some() => return Err(Reject::ContentLengthDuplicate),
            Known::ContentLength => length = Some(content_length(value.as_bytes())?),
            Known::Heddle => ours = true,
            _ => {}
        }
    }
    if ours {
        strip_heddle(headers);
    }
    Ok(length)
}

/// The HTTP/1 form of a checked response, ready for [`crate::h1::forward_response`]. 2xx to a WebSocket request (`asked.upgrade`) becomes 101
/// with the `Sec-WebSocket-Accept` of the client's `websocket_key`.
pub fn response_to_h1(
    parts: &response::Parts,
    body: Body,
    asked: Asked,
    websocket_key: &[u8],
    head: &mut ResponseHead,
) -> Result<(), Reject> {
    let status = parts.status.as_u16();
    let switches = body == Body::Tunnel && asked.upgrade;
    let announced = parts.headers.get(header::CONTENT_LENGTH);
    let may_announce = status >= 200 && !matches!(status, 204 | 304) && !asked.head;
    let framed = match body {
        // Nothing follows and nothing says so yet: an HTTP/1 client would wait for the close.
        Body::Empty if may_announce => Body::Length(0),
        other => other,
    };
    head.compose(if switches { 101 } else { status }, framed);
    for (name, value) in &parts.headers {
        match Known::of(name.as_str().as_bytes()) {
            Known::ContentLength | Known::Heddle => {}
            _ if switches && name == "sec-websocket-accept" => {}
            _ => head.compose_field(name.as_str().as_bytes(), value.as_bytes()),
        }
    }
    if let Some(length) = announced.filter(|_| asked.head || status == 304) {
        head.compose_field(b"Content-Length", content_length(length.as_bytes())?.to_string().as_bytes());
    }
    if switches {
        if !websocket::is_key(websocket_key) {
            return Err(Reject::UpgradeInvalid);
        }
        head.compose_field(b"Sec-WebSocket-Accept", websocket::accept(websocket_key).as_bytes());
        head.compose_field(b"Upgrade", b"websocket");
        head.compose_field(b"Connection", b"Upgrade");
    }
    Ok(())
}

/// The HTTP/2 form of a parsed HTTP/1 response, interim or final, before or behind [`crate::h1::forward_response`]. 101 becomes 200, if it
/// answers the key that was sent; another 2xx to a request with a key is an error, for it would read as success.
pub fn response_to_h2(head: &ResponseHead, websocket_key: &[u8]) -> Result<Response<()>, Reject> {
    let switches = head.status() == 101;
    if switches {
        let accept = websocket::accept(websocket_key);
        if head.fields().get("sec-websocket-accept") != Some(accept.as_bytes()) {
            return Err(Reject::UpgradeUnasked);
        }
    } else if !websocket_key.is_empty() && (200..300).contains(&head.status()) {
        return Err(Reject::UpgradeDeclined);
    }
    let mut response = Response::new(());
    *response.version_mut() = Version::HTTP_2;
    *response.status_mut() =
        StatusCode::from_u16(if switches { 200 } else { head.status() }).map_err(|_| Reject::Status)?;
    let nominated: Vec<&[u8]> = head.fields().known(Known::Connection).flat_map(syntax::list).collect();
    let headers = response.headers_mut();
    headers.reserve(head.fields().len());
    for (known, name, value) in head.fields().iter_known() {
        match known {
            known if is_of_connection(known) => {}
            Known::Te | Known::Http2Settings | Known::Heddle => {}
            Known::Other if nominated.iter().any(|nominated| nominated.eq_ignore_ascii_case(name)) => {}
            Known::Other if switches && name.eq_ignore_ascii_case(b"sec-websocket-accept") => {}
            _ => insert(headers, name, value)?,
        }
    }
    Ok(response)
}
