//! Messages between the versions: what passes the checks is one message of the other version, with the framing that was promised,
//! and means the same when it comes back.

use heddle_http::Limits;
use heddle_http::Reject;
use heddle_http::h1::{
    Asked, Body, ClientSide, Progress, RequestHead, RequestParser, ResponseHead, ResponseParser, Version,
    forward_request, forward_response,
};
use heddle_http::translate::{
    Checked, Kind, check_request, check_response, request_to_h1, request_to_h2, response_to_h1, response_to_h2,
};
use http::uri::Scheme;
use http::{HeaderMap, request, response};

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// The authority of requests that name none.
const AUTHORITY: &str = "a.example:80";
/// For heads that were written by us.
const ROOMY: Limits =
    Limits { fields_max: usize::MAX, head_bytes_max: 1 << 24, target_bytes_max: 1 << 20, ..Limits::DEFAULT };

/// `flags`, then lines: method, URI, fields as `name:value`.
pub fn h2_to_h1(input: &[u8]) {
    let [flags, text @ ..] = input else { return };
    let mut lines = text.split(|&b| b == b'\n');
    let (method, uri) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let mut builder = http::Request::builder().method(method).uri(uri);
    for (name, value) in fields(lines) {
        builder = builder.header(name, value);
    }
    let Ok(request) = builder.body(()) else { return };
    let (mut parts, ()) = request.into_parts();
    let protocol = (flags & 2 != 0).then_some("websocket");
    let Ok(checked) = check_request(&mut parts, protocol, flags & 1 != 0) else { return };
    let Some(h1) = as_h1(&parts, &checked) else { return };

    // And back again: the same message.
    let (request, kind) = request_to_h2(&h1, Scheme::HTTP, AUTHORITY).expect("what we wrote ourselves goes back");
    assert_eq!(kind, checked.kind);
    let (mut back, ()) = request.into_parts();
    let again = check_again(&mut back, kind, checked.body == Body::Empty);
    // An upgrade has no trailers to take.
    assert_eq!(again, Checked { te_trailers: checked.te_trailers && kind != Kind::WebSocket, ..checked });
    assert_eq!(back.method, parts.method);
    let path = |parts: &request::Parts| parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    assert_eq!((back.uri.authority(), path(&back)), (parts.uri.authority(), path(&parts)));
    if checked.kind == Kind::WebSocket {
        // HTTP/1 has to name the version, HTTP/2 need not.
        back.headers.remove("sec-websocket-version");
        parts.headers.remove("sec-websocket-version");
    }
    // An expectation means something where there is a body only (RFC 9110 §10.1.1).
    if matches!(checked.body, Body::Empty | Body::Tunnel) {
        parts.headers.remove("expect");
    }
    assert_eq!(meaning(&back.headers), meaning(&parts.headers));
}

/// `flags`, then an HTTP/1 request head.
pub fn h1_to_h2(input: &[u8]) {
    let [flags, bytes @ ..] = input else { return };
    let mut head = RequestHead::default();
    let parsed = RequestParser::new(Limits::DEFAULT).parse(bytes, &mut head);
    let Ok(Progress::Complete { .. }) = parsed else { return };
    // The proxy may translate before or behind the step that prepares a request for HTTP/1.
    if flags & 1 != 0 && forward_request(&mut head, AUTHORITY).is_err() {
        return;
    }
    let scheme = if flags & 2 != 0 { Scheme::HTTPS } else { Scheme::HTTP };
    let Ok((request, kind)) = request_to_h2(&head, scheme, AUTHORITY) else { return };
    let (mut parts, ()) = request.into_parts();
    let checked = check_again(&mut parts, kind, head.body() == Body::Empty);
    match kind {
        Kind::Plain => assert_eq!(checked.body, head.body()),
        Kind::Connect | Kind::WebSocket => assert_eq!(checked.body, Body::Tunnel),
    }

    let back = as_h1(&parts, &checked).expect("what we translated ourselves goes back");
    assert_eq!(back.method(), head.method());
    if kind != Kind::Connect {
        let path = match head.path_and_query() {
            "" if head.method() == "OPTIONS" => "*".to_owned(),
            path if path.starts_with('/') || path == "*" => path.to_owned(),
            path => format!("/{path}"),
        };
        assert_eq!(back.path_and_query(), path);
    }
    assert_eq!(back.authority(), Some(head.authority().unwrap_or(AUTHORITY)));
    assert_eq!(back.body(), head.body());
    // An upgrade has no trailers to take.
    assert_eq!(back.te_trailers(), head.te_trailers() && kind != Kind::WebSocket);
    assert_eq!(back.upgrade().is_some(), kind == Kind::WebSocket);
}

/// Our own HTTP/2 must pass our own checks.
fn check_again(parts: &mut request::Parts, kind: Kind, end_stream: bool) -> Checked {
    let protocol = (kind == Kind::WebSocket).then_some("websocket");
    let checked = check_request(parts, protocol, end_stream && kind == Kind::Plain);
    checked.unwrap_or_else(|rule| panic!("our own HTTP/2 request is rejected: {rule}: {parts:?}"))
}

/// The HTTP/1 form, if there is one: one whole request, with the framing that was promised.
fn as_h1(parts: &request::Parts, checked: &Checked) -> Option<RequestHead> {
    let mut head = RequestHead::default();
    request_to_h1(parts, checked, KEY, &mut head).ok()?;
    let mut out = Vec::new();
    head.write(&mut out);
    let mut again = RequestHead::default();
    let progress = RequestParser::new(ROOMY).parse(&out, &mut again);
    assert_eq!(progress, Ok(Progress::Complete { consumed: out.len() }), "{}", String::from_utf8_lossy(&out));
    assert_eq!(again.body(), head.body());
    Some(again)
}

/// `flags`, then lines: status, fields as `name:value`.
pub fn h2_response_to_h1(input: &[u8]) {
    let [flags, text @ ..] = input else { return };
    let mut lines = text.split(|&b| b == b'\n');
    let mut builder = http::Response::builder().status(lines.next().unwrap_or_default());
    for (name, value) in fields(lines) {
        builder = builder.header(name, value);
    }
    let Ok(response) = builder.body(()) else { return };
    let (mut parts, ()) = response.into_parts();
    let asked = Asked { head: flags & 2 != 0, connect: flags & 4 != 0, upgrade: flags & 24 == 24 };
    let Ok(body) = check_response(&mut parts, flags & 1 != 0, asked) else { return };
    let version = if flags & 32 != 0 { Version::Http10 } else { Version::Http11 };
    let head = response_as_h1(&parts, body, asked, version);
    if head.body() == Body::Tunnel || version == Version::Http10 {
        return;
    }
    assert_eq!(head.status(), parts.status.as_u16());
    let back = match response_to_h2(&head, if asked.upgrade { KEY.as_bytes() } else { b"" }) {
        // A server that declines an upgrade with success must not open a tunnel at an HTTP/2 client.
        Err(Reject::UpgradeDeclined) if asked.upgrade => return,
        back => back.expect("what we wrote ourselves goes back"),
    };
    let (mut back, ()) = back.into_parts();
    let again = check_response(&mut back, head.body() == Body::Empty && !head.is_interim(), asked);
    let expected = if head.body() == Body::Length(0) { Body::Empty } else { head.body() };
    assert_eq!(again, Ok(expected));
    assert_eq!(meaning(&back.headers), meaning(&parts.headers));
}

/// `flags`, then an HTTP/1 response head.
pub fn h1_response_to_h2(input: &[u8]) {
    let [flags, bytes @ ..] = input else { return };
    let asked = Asked { head: flags & 1 != 0, connect: flags & 2 != 0, upgrade: flags & 4 != 0 };
    let mut head = ResponseHead::default();
    let Ok(Progress::Complete { .. }) = ResponseParser::new(Limits::DEFAULT).parse(bytes, asked, &mut head) else {
        return;
    };
    let key = if asked.upgrade { KEY.as_bytes() } else { b"" };
    let Ok(response) = response_to_h2(&head, key) else { return };
    // A server that declines an upgrade with success must not open a tunnel at an HTTP/2 client.
    if asked.upgrade && head.status() != 101 && response.status().is_success() {
        return;
    }
    let (mut parts, ()) = response.into_parts();
    let is_empty = head.body() == Body::Empty && !head.is_interim();
    let body = check_response(&mut parts, is_empty, asked);
    let body = body.unwrap_or_else(|rule| panic!("our own HTTP/2 response is rejected: {rule}: {parts:?}"));
    match head.body() {
        Body::Empty | Body::Length(0) => assert_eq!(body, Body::Empty),
        Body::Length(length) => assert_eq!(body, Body::Length(length)),
        Body::Chunked | Body::UntilClose => assert_eq!(body, Body::Chunked),
        Body::Tunnel => assert_eq!(body, Body::Tunnel),
    }
    let back = response_as_h1(&parts, body, asked, Version::Http11);
    assert_eq!(back.status(), head.status());
}

/// One whole response, with the framing that was promised.
fn response_as_h1(parts: &response::Parts, body: Body, asked: Asked, version: Version) -> ResponseHead {
    let mut head = ResponseHead::default();
    response_to_h1(parts, body, asked, KEY.as_bytes(), &mut head).unwrap();
    let outgoing = forward_response(&mut head, ClientSide { version, keep_alive: true, head: asked.head });
    let mut out = Vec::new();
    head.write(&mut out);
    let mut again = ResponseHead::default();
    let progress = ResponseParser::new(ROOMY).parse(&out, asked, &mut again);
    assert_eq!(progress, Ok(Progress::Complete { consumed: out.len() }), "{}", String::from_utf8_lossy(&out));
    assert_eq!(again.body(), outgoing.body, "{}", String::from_utf8_lossy(&out));
    again
}

fn fields<'a>(lines: impl Iterator<Item = &'a [u8]>) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
    lines.filter_map(|line| {
        let colon = line.iter().position(|&b| b == b':')?;
        Some((&line[..colon], &line[colon + 1..]))
    })
}

/// The fields that neither version makes anew: name and value, in the order of their names.
fn meaning(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    const MADE: [&str; 4] = ["content-length", "te", "sec-websocket-key", "sec-websocket-accept"];
    let kept = headers.iter().filter(|(name, _)| !MADE.contains(&name.as_str()));
    let mut all: Vec<_> = kept.map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec())).collect();
    all.sort_by(|(a, _), (b, _)| a.cmp(b));
    all
}
