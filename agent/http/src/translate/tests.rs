//! Traps of translation, and what must come through it.

use http::{Request, Response};

use super::*;
use crate::Limits;
use crate::h1::{Asked, Progress, RequestHead, RequestParser, ResponseHead, ResponseParser};
use crate::websocket;

/// A request as h2 hands it over. Fields with an empty name are left out.
fn h2_request(method: &str, uri: &str, fields: &[(&str, &str)]) -> http::request::Parts {
    let mut builder = Request::builder().method(method).uri(uri).version(http::Version::HTTP_2);
    for (name, value) in fields {
        builder = builder.header(*name, *value);
    }
    builder.body(()).unwrap().into_parts().0
}

fn h1_text(parts: &http::request::Parts, checked: &Checked) -> String {
    let mut head = RequestHead::default();
    request_to_h1(parts, checked, "dGhlIHNhbXBsZSBub25jZQ==", &mut head).unwrap();
    let mut out = Vec::new();
    head.write(&mut out);
    let mut again = RequestHead::default();
    let progress = RequestParser::new(Limits::DEFAULT).parse(&out, &mut again);
    assert_eq!(progress, Ok(Progress::Complete { consumed: out.len() }));
    assert_eq!(again.body(), head.body());
    String::from_utf8(out).unwrap()
}

fn h1_request(text: &str) -> RequestHead {
    let mut head = RequestHead::default();
    RequestParser::new(Limits::DEFAULT).parse(text.as_bytes(), &mut head).unwrap();
    head
}

fn h1_response(text: &str, asked: Asked) -> ResponseHead {
    let mut head = ResponseHead::default();
    ResponseParser::new(Limits::DEFAULT).parse(text.as_bytes(), asked, &mut head).unwrap();
    head
}

#[test]
fn traps_of_http2_requests() {
    for (method, uri, fields, end_stream, rule) in [
        ("GET", "http://a/", &[("connection", "close")][..], true, Reject::ConnectionField),
        ("GET", "http://a/", &[("transfer-encoding", "chunked")], false, Reject::ConnectionField),
        ("GET", "http://a/", &[("upgrade", "websocket")], true, Reject::ConnectionField),
        ("GET", "http://a/", &[("keep-alive", "1")], true, Reject::ConnectionField),
        ("GET", "http://a/", &[("proxy-connection", "close")], true, Reject::ConnectionField),
        ("GET", "http://a/", &[("te", "gzip")], true, Reject::TeInvalid),
        ("GET", "http://a/", &[("te", "trailers, gzip")], true, Reject::TeInvalid),
        ("GET", "http://a/", &[("host", "b")], true, Reject::HostMismatch),
        ("GET", "http://a/", &[("host", "a:81")], true, Reject::HostMismatch),
        ("GET", "http://a/", &[("host", "a"), ("host", "a")], true, Reject::HostDuplicate),
        ("GET", "http://u@a/", &[], true, Reject::PseudoHeader),
        ("GET", "/", &[], true, Reject::HostMissing),
        ("GET", "ftp://a/", &[], true, Reject::PseudoHeader),
        ("GET", "http://a/b\\c", &[], true, Reject::TargetByte),
        ("GET", "http://a/caf\u{e9}", &[], true, Reject::TargetByte),
        (
            "POST",
            "http://a/",
            &[("content-length", "5"), ("content-length", "5")],
            false,
            Reject::ContentLengthDuplicate,
        ),
        ("POST", "http://a/", &[("content-length", "+5")], false, Reject::ContentLengthInvalid),
        ("POST", "http://a/", &[("content-length", "5, 5")], false, Reject::ContentLengthInvalid),
        ("POST", "http://a/", &[("content-length", "5")], true, Reject::BodyIncomplete),
        ("TRACE", "http://a/", &[("content-length", "5")], false, Reject::FramingForbidden),
        ("POST", "http://a/", &[("expect", "200-ok")], false, Reject::ExpectationUnknown),
        ("GET", "http://a/", &[("x", " a")], true, Reject::FieldValue),
        ("GET", "http://a/", &[("x", "a\t")], true, Reject::FieldValue),
        ("CONNECT", "a", &[], false, Reject::PseudoHeader),
        ("CONNECT", "a:443", &[("content-length", "5")], false, Reject::FramingForbidden),
        ("CONNECT", "a:443", &[("host", "b:443")], false, Reject::HostMismatch),
        ("MMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMMM", "http://a/", &[], true, Reject::MethodTooLong),
    ] {
        let mut parts = h2_request(method, uri, fields);
        assert_eq!(check_request(&mut parts, None, end_stream), Err(rule), "{method} {uri} {fields:?}");
    }
    let mut parts = h2_request("GET", "http://a/", &[]);
    assert_eq!(check_request(&mut parts, Some("websocket"), false), Err(Reject::PseudoHeader));
    let mut parts = h2_request("CONNECT", "http://a/", &[]);
    assert_eq!(check_request(&mut parts, Some("connect-udp"), false), Err(Reject::ProtocolUnknown));
}

#[test]
fn http2_requests_as_http1() {
    for (method, uri, protocol, fields, end_stream, expected) in [
        ("GET", "http://a/x?y", None, &[][..], true, "GET /x?y HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("OPTIONS", "http://a:81/*", None, &[], true, "OPTIONS /* HTTP/1.1\r\nHost: a:81\r\n\r\n"),
        ("POST", "http://a/", None, &[], true, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"),
        ("POST", "http://a/", None, &[], false, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (
            "POST",
            "http://a/",
            None,
            &[("content-length", "05")],
            false,
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n",
        ),
        (
            "GET",
            "https://a/",
            None,
            &[
                ("host", "A:443"),
                ("cookie", ""),
                ("cookie", "a=1"),
                ("cookie", ""),
                ("cookie", "b=2"),
                ("cookie", ""),
                ("x-heddle-reason", "no"),
                ("x_heddle_a", "no"),
            ],
            true,
            "GET / HTTP/1.1\r\nHost: a\r\ncookie: a=1; b=2\r\n\r\n",
        ),
        (
            "POST",
            "http://a/s/M",
            None,
            &[("te", "trailers"), ("content-type", "application/grpc-web")],
            false,
            "POST /s/M HTTP/1.1\r\nHost: a\r\ncontent-type: application/grpc-web\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\nConnection: TE\r\n\r\n",
        ),
        (
            "PUT",
            "http://a/",
            None,
            &[("expect", "100-continue"), ("content-length", "5")],
            false,
            "PUT / HTTP/1.1\r\nHost: a\r\nexpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
        ),
        ("GET", "http://a/", None, &[("expect", "100-continue")], true, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("CONNECT", "a:443", None, &[], false, "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"),
        (
            "CONNECT",
            "http://a/chat",
            Some("websocket"),
            &[("sec-websocket-version", "13"), ("sec-websocket-key", "no")],
            false,
            "GET /chat HTTP/1.1\r\nHost: a\r\nsec-websocket-version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        ),
    ] {
        let mut parts = h2_request(method, uri, fields);
        let checked = check_request(&mut parts, protocol, end_stream).unwrap();
        assert_eq!(h1_text(&parts, &checked), expected);
    }
}

#[test]
fn grpc_stays_on_http2() {
    let mut parts = h2_request("POST", "http://a/s/M", &[("content-type", "application/grpc+proto")]);
    let checked = check_request(&mut parts, None, false).unwrap();
    assert!(checked.grpc);
    assert_eq!(request_to_h1(&parts, &checked, "", &mut RequestHead::default()), Err(Reject::GrpcOverHttp1));
    let code = crate::answer::grpc_status_of(Reject::GrpcOverHttp1.request_reason());
    assert_eq!(code, 12, "UNIMPLEMENTED");
}

#[test]
fn a_host_goes_where_the_authority_says_the_same() {
    for (method, uri) in [("GET", "http://a/"), ("CONNECT", "a:443")] {
        let mut parts = h2_request(method, uri, &[("host", "a")]);
        check_request(&mut parts, None, method == "GET").unwrap();
        assert!(parts.headers.is_empty(), "{method}");
    }
}

#[test]
fn a_host_alone_becomes_the_authority() {
    // As it comes from the `h2` crate: the `http` crate holds no scheme without an authority.
    let from_wire = |fields| {
        let mut parts = h2_request("GET", "/x?y", fields);
        parts.uri = "/x?y".parse().unwrap();
        parts
    };
    let mut parts = from_wire(&[("host", "a:81")]);
    assert!(check_request(&mut parts, None, true).is_ok());
    assert_eq!(parts.uri, "http://a:81/x?y");
    assert!(parts.headers.get("host").is_none());
    assert_eq!(check_request(&mut from_wire(&[]), None, true), Err(Reject::HostMissing));
    assert_eq!(check_request(&mut from_wire(&[("host", "a b")]), None, true), Err(Reject::HostInvalid));
    // With an authority the scheme is held: without one there was none.
    let mut parts = h2_request("CONNECT", "a:80", &[]);
    parts.method = http::Method::GET;
    assert_eq!(check_request(&mut parts, None, true), Err(Reject::PseudoHeader));
}

#[test]
fn a_path_has_the_limit_of_a_request_line() {
    for (length, expected) in [(16 * 1024, Ok(())), (16 * 1024 + 1, Err(Reject::TargetTooLong))] {
        let path = format!("/{}", "a".repeat(length - 1));
        let mut parts = h2_request("GET", &format!("http://a{path}"), &[]);
        assert_eq!(check_request(&mut parts, None, true).map(drop), expected, "{length}");
    }
}

#[test]
fn http1_requests_as_http2() {
    let head = h1_request(
        "POST http://A:81?x HTTP/1.1\r\nHost: a:81\r\nX-Mixed-Case: 1\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nTE: trailers, deflate\r\n\
         Transfer-Encoding: chunked\r\nX-Heddle-Attempt: 3\r\nExpect: 100-continue\r\n\r\n",
    );
    let (request, kind) = request_to_h2(&head, http::uri::Scheme::HTTP, "unused").unwrap();
    assert_eq!(kind, Kind::Plain);
    assert_eq!(request.uri(), "http://A:81/?x");
    let fields: Vec<_> = request.headers().iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
    assert_eq!(fields, ["x-mixed-case: 1", "expect: 100-continue", "te: trailers"]);

    let head = h1_request("GET / HTTP/1.0\r\n\r\n");
    let (request, _) = request_to_h2(&head, http::uri::Scheme::HTTP, "10.0.0.1:80").unwrap();
    assert_eq!(request.uri(), "http://10.0.0.1:80/");
    let head = h1_request("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n");
    let (request, _) = request_to_h2(&head, http::uri::Scheme::HTTP, "unused").unwrap();
    assert_eq!(request.uri().path(), "*");
    let head = h1_request("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n");
    let (request, kind) = request_to_h2(&head, http::uri::Scheme::HTTP, "unused").unwrap();
    assert_eq!((kind, request.uri().to_string().as_str()), (Kind::Connect, "a:443"));
}

#[test]
fn a_websocket_between_the_versions() {
    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    let head = h1_request(&format!(
        "GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ));
    let asked = head.asked();
    let (request, kind) = request_to_h2(&head, http::uri::Scheme::HTTP, "unused").unwrap();
    assert_eq!((kind, request.method().as_str()), (Kind::WebSocket, "CONNECT"));
    assert!(request.headers().get("sec-websocket-key").is_none());
    assert_eq!(request.headers()["sec-websocket-version"], "13");

    let mut parts =
        Response::builder().status(200).header("sec-websocket-protocol", "chat").body(()).unwrap().into_parts().0;
    let body = check_response(&mut parts, false, asked).unwrap();
    assert_eq!(body, Body::Tunnel);
    let mut response = ResponseHead::default();
    response_to_h1(&parts, body, asked, KEY.as_bytes(), &mut response).unwrap();
    let mut out = Vec::new();
    response.write(&mut out);
    let parsed = h1_response(std::str::from_utf8(&out).unwrap(), asked);
    assert_eq!((parsed.status(), parsed.body()), (101, Body::Tunnel));
    assert_eq!(parsed.fields().get("sec-websocket-accept"), Some(websocket::accept(KEY.as_bytes()).as_bytes()));

    assert_eq!(response_to_h2(&parsed, KEY.as_bytes()).unwrap().status(), 200);
    assert_eq!(response_to_h2(&parsed, b"another").err(), Some(Reject::UpgradeUnasked));
    // A refusal stays what it is.
    let refused = h1_response("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", asked);
    assert_eq!(response_to_h2(&refused, KEY.as_bytes()).unwrap().status(), 403);
    // A server that took it for an ordinary request must not look as if it had agreed.
    let declined = h1_response("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", asked);
    assert_eq!(response_to_h2(&declined, KEY.as_bytes()).err(), Some(Reject::UpgradeDeclined));
    assert_eq!(response_to_h2(&declined, b"").unwrap().status(), 200);
}

#[test]
fn http2_responses() {
    let none = Asked::default();
    let head = Asked { head: true, ..none };
    let connect = Asked { connect: true, ..none };
    for (status, fields, end_stream, asked, expected) in [
        (200, &[][..], false, none, Ok(Body::Chunked)),
        (200, &[], true, none, Ok(Body::Empty)),
        (200, &[("content-length", "5")], false, none, Ok(Body::Length(5))),
        (200, &[("content-length", "5")], true, none, Err(Reject::BodyIncomplete)),
        (200, &[("content-length", "5")], true, head, Ok(Body::Empty)),
        (304, &[("content-length", "5")], true, none, Ok(Body::Empty)),
        (204, &[("content-length", "5")], true, none, Err(Reject::FramingForbidden)),
        (204, &[], true, none, Ok(Body::Empty)),
        (103, &[], false, none, Ok(Body::Empty)),
        (103, &[], true, none, Err(Reject::Status)),
        (101, &[], false, none, Err(Reject::Status)),
        (600, &[], false, none, Err(Reject::Status)),
        (200, &[], false, connect, Ok(Body::Tunnel)),
        (403, &[("content-length", "2")], false, connect, Ok(Body::Length(2))),
        (200, &[("transfer-encoding", "chunked")], false, none, Err(Reject::ConnectionField)),
        (200, &[("connection", "close")], false, none, Err(Reject::ConnectionField)),
        (200, &[("x", "a ")], false, none, Err(Reject::FieldValue)),
    ] {
        let mut builder = Response::builder().status(status);
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        let mut parts = builder.body(()).unwrap().into_parts().0;
        assert_eq!(check_response(&mut parts, end_stream, asked), expected, "{status} {fields:?} {asked:?}");
    }
}

#[test]
fn an_empty_http2_response_does_not_leave_the_client_waiting() {
    for (status, asked, expected) in [
        (200, Asked::default(), "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        (200, Asked { head: true, ..Asked::default() }, "HTTP/1.1 200 OK\r\n\r\n"),
        (204, Asked::default(), "HTTP/1.1 204 No Content\r\n\r\n"),
        (103, Asked::default(), "HTTP/1.1 103 Early Hints\r\n\r\n"),
    ] {
        let parts = Response::builder().status(status).body(()).unwrap().into_parts().0;
        let mut head = ResponseHead::default();
        response_to_h1(&parts, Body::Empty, asked, b"", &mut head).unwrap();
        let mut out = Vec::new();
        head.write(&mut out);
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}

#[test]
fn trailers_cross_without_framing() {
    let mut map = HeaderMap::new();
    map.insert("grpc-status", HeaderValue::from_static("0"));
    map.insert("x-heddle-reason", HeaderValue::from_static("no"));
    let fields = trailers_to_h1(&map).unwrap();
    assert_eq!(fields.iter().collect::<Vec<_>>(), [(&b"grpc-status"[..], &b"0"[..])]);
    assert_eq!(trailers_to_h2(&fields).unwrap().len(), 1);
    check_trailers(&mut map).unwrap();
    assert_eq!(map.len(), 1);
    for (name, value, rule) in [
        ("content-length", "1", Reject::TrailerForbidden),
        ("host", "a", Reject::TrailerForbidden),
        ("transfer-encoding", "chunked", Reject::ConnectionField),
        ("connection", "close", Reject::ConnectionField),
        ("x", "a ", Reject::FieldValue),
    ] {
        let mut map = HeaderMap::new();
        map.insert(name, HeaderValue::from_static(value));
        assert_eq!(trailers_to_h1(&map).err(), Some(rule), "{name}");
        assert_eq!(check_trailers(&mut map), Err(rule), "{name}");
    }
}

#[test]
fn data_must_add_up() {
    let mut check = LengthCheck::new(Body::Length(5));
    assert_eq!(check.data(3), Ok(()));
    assert_eq!(check.end(), Err(Reject::BodyIncomplete));
    assert_eq!(check.data(3), Err(Reject::BodyTooLong));
    assert_eq!(LengthCheck::new(Body::Empty).data(1), Err(Reject::BodyTooLong));
    let mut check = LengthCheck::new(Body::Chunked);
    assert_eq!(check.data(1_000_000), Ok(()));
    assert_eq!(check.end(), Ok(()));
}
