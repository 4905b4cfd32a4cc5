//! What is passed on, and what an exchange allows.

use super::*;
use crate::{Limits, Reject};

fn request(text: &str) -> RequestHead {
    let mut head = RequestHead::default();
    let progress = RequestParser::new(Limits::DEFAULT).parse(text.as_bytes(), &mut head);
    assert_eq!(progress, Ok(Progress::Complete { consumed: text.len() }), "{text}");
    head
}

fn response(text: &str, asked: Asked) -> ResponseHead {
    let mut head = ResponseHead::default();
    let progress = ResponseParser::new(Limits::DEFAULT).parse(text.as_bytes(), asked, &mut head);
    assert_eq!(progress, Ok(Progress::Complete { consumed: text.len() }), "{text}");
    head
}

#[test]
fn requests_as_they_are_passed_on() {
    for (received, sent) in [
        // Order, case, and odd but legal bytes stay.
        (
            "get /a?b HTTP/1.1\r\nhOST: a\r\nX-b: 2\r\nx-A:1\r\nX-b:\t 3 \r\nEmpty:\r\n\r\n",
            "get /a?b HTTP/1.1\r\nhOST: a\r\nX-b: 2\r\nx-A: 1\r\nX-b: 3\r\nEmpty:\r\n\r\n",
        ),
        // The connection's own ends here.
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: close\r\nX: 1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n\r\n",
        ),
        ("GET / HTTP/1.1\r\nConnection: close\r\nHost: a\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        // Nobody but an agent sets these.
        (
            "GET / HTTP/1.1\r\nHost: a\r\nX-Heddle-Reason: x\r\nx_heddle_attempt: 1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        // HTTP/1.0 becomes 1.1, with a Host.
        ("GET / HTTP/1.0\r\nX: 1\r\n\r\n", "GET / HTTP/1.1\r\nX: 1\r\nHost: svc:80\r\n\r\n"),
        ("GET http://b:81/ HTTP/1.0\r\n\r\n", "GET http://b:81/ HTTP/1.1\r\nHost: b:81\r\n\r\n"),
        // An upgrade is passed on, h2c is not.
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c, websocket\r\nConnection: Upgrade\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        ),
        ("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nTE: deflate, trailers\r\nConnection: TE\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: TE\r\nTE: trailers\r\n\r\n",
        ),
        // Framing is spelt one way.
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 007\r\nX: 1\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 7\r\nX: 1\r\n\r\n",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: Chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        ),
        // An expectation that means nothing is not passed on, one that does is.
        (
            "POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n",
        ),
    ] {
        let mut head = request(received);
        forward_request(&mut head, "svc:80").unwrap();
        let mut out = Vec::new();
        head.write(&mut out);
        assert_eq!(String::from_utf8(out).unwrap(), sent);
    }
}

#[test]
fn responses_as_they_are_passed_on() {
    let new = ClientSide { version: Version::Http11, keep_alive: true, head: false };
    let closing = ClientSide { keep_alive: false, ..new };
    let old = ClientSide { version: Version::Http10, ..new };
    let plain = Asked::default();
    let upgrade = Asked { upgrade: true, ..plain };
    for (received, asked, client, sent, body, keep_alive) in [
        (
            "HTTP/1.1 200 Fine\r\nx-A:1\r\nContent-Length: 5\r\nConnection: keep-alive\r\nKeep-Alive: 5\r\n\r\n",
            plain,
            new,
            "HTTP/1.1 200 Fine\r\nx-A: 1\r\nContent-Length: 5\r\n\r\n",
            Body::Length(5),
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n",
            plain,
            closing,
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n",
            Body::Length(5),
            false,
        ),
        // The upstream closes, the client's connection lives.
        (
            "HTTP/1.0 200 OK\r\n\r\n",
            plain,
            new,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            Body::Chunked,
            true,
        ),
        (
            "HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n",
            plain,
            old,
            "HTTP/1.1 200 \r\nConnection: close\r\n\r\n",
            Body::UntilClose,
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            plain,
            old,
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n",
            Body::Length(5),
            true,
        ),
        (
            "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
            plain,
            new,
            "HTTP/1.1 204 No Content\r\n\r\n",
            Body::Empty,
            true,
        ),
        (
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
            plain,
            new,
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
            Body::Empty,
            true,
        ),
        (
            "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: x\r\nX: 1\r\n\r\n",
            plain,
            closing,
            "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
            Body::Empty,
            false,
        ),
        (
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\nX-Heddle-A: 1\r\n\r\n",
            upgrade,
            new,
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
            Body::Tunnel,
            false,
        ),
        (
            "HTTP/1.1 426 Upgrade Required\r\nUpgrade: TLS/1.0\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\n",
            plain,
            new,
            "HTTP/1.1 426 Upgrade Required\r\nUpgrade: TLS/1.0\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\n",
            Body::Empty,
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\n",
            plain,
            new,
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            Body::Empty,
            true,
        ),
    ] {
        let mut head = response(received, asked);
        let outgoing = forward_response(&mut head, client);
        let mut out = Vec::new();
        head.write(&mut out);
        assert_eq!(String::from_utf8(out).unwrap(), sent);
        assert_eq!((outgoing.body, outgoing.keep_alive), (body, keep_alive), "{received}");
    }
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";

fn exchange(text: &str) -> Exchange {
    Exchange::new(&request(text), &Limits::DEFAULT)
}

#[test]
fn connections_live_on_when_both_messages_are_complete() {
    let mut e = exchange(GET);
    assert!(!e.upstream_reusable(false) && !e.client_reusable());
    e.request_sent();
    assert_eq!(e.response_head(&response(OK, e.asked())), Ok(Received::Final));
    assert!(!e.upstream_reusable(false), "the body is still to come");
    assert!(e.client_reusable());
    e.response_received();
    assert!(e.upstream_reusable(false));
    assert!(!e.upstream_reusable(true), "bytes that nobody asked for");
    assert_eq!(e.response_head(&response(OK, e.asked())), Err(Reject::UnexpectedBytes));
}

#[test]
fn connections_end_where_the_messages_say_so() {
    for (request_text, response_text, upstream, client) in [
        (GET, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", false, true),
        (GET, "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", false, true),
        (GET, "HTTP/1.1 200 OK\r\n\r\n", false, true),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", OK, true, false),
        ("GET / HTTP/1.0\r\n\r\n", OK, true, false),
        // What a client sends behind a CONNECT is not for us to read.
        (
            "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
            "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
            true,
            false,
        ),
    ] {
        let mut e = exchange(request_text);
        e.request_sent();
        e.response_head(&response(response_text, e.asked())).unwrap();
        e.response_received();
        assert_eq!((e.upstream_reusable(false), e.client_reusable()), (upstream, client), "{response_text}");
    }
}

#[test]
fn an_early_response_costs_both_connections() {
    let mut e = exchange(POST);
    assert!(e.awaits_continue());
    assert_eq!(
        e.response_head(&response("HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n", e.asked())),
        Ok(Received::Final)
    );
    e.response_received();
    assert!(e.is_early_response() && !e.awaits_continue());
    assert!(!e.client_reusable() && !e.upstream_reusable(false));
}

#[test]
fn expect_continue() {
    let hundred = "HTTP/1.1 100 Continue\r\n\r\n";
    let mut e = exchange(POST);
    assert_eq!(e.response_head(&response(hundred, e.asked())), Ok(Received::Interim { forward: true }));
    assert!(!e.awaits_continue());
    let mut e = exchange(POST);
    e.body_begun();
    assert!(!e.awaits_continue(), "the client did not wait");
    let mut e = exchange("GET / HTTP/1.0\r\n\r\n");
    let early = "HTTP/1.1 103 Early Hints\r\n\r\n";
    assert_eq!(e.response_head(&response(early, e.asked())), Ok(Received::Interim { forward: false }));
    for left in (0..15).rev() {
        assert!(e.response_head(&response(early, e.asked())).is_ok(), "{left} left");
    }
    assert_eq!(e.response_head(&response(early, e.asked())), Err(Reject::TooManyInterim));
}

#[test]
fn tunnels() {
    let switching = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
    let mut e = exchange("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n");
    let head = response(switching, e.asked());
    assert_eq!(e.response_head(&head), Err(Reject::UpgradeUnasked), "before the request was sent");
    e.request_sent();
    assert_eq!(e.response_head(&head), Ok(Received::Tunnel));
    e.response_received();
    assert!(!e.client_reusable() && !e.upstream_reusable(false));
    let mut e = exchange("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n");
    e.request_sent();
    assert_eq!(e.response_head(&response("HTTP/1.1 200 OK\r\n\r\n", e.asked())), Ok(Received::Tunnel));
}

#[test]
fn encoders_keep_to_their_framing() {
    let mut out = Vec::new();
    let mut length = BodyEncoder::new(Body::Length(5));
    length.copy(b"hel", &mut out).unwrap();
    assert_eq!(length.data(3).err(), Some(Reject::BodyTooLong));
    assert_eq!(length.end(None, &mut out), Err(Reject::BodyIncomplete));
    assert_eq!(out, b"hel");
    assert_eq!(BodyEncoder::new(Body::Empty).data(1).err(), Some(Reject::BodyTooLong));

    let mut out = Vec::new();
    let mut trailers = Fields::default();
    trailers.append(b"grpc-status", b"0").unwrap();
    trailers.append(b"x-heddle-reason", b"no").unwrap();
    let mut chunked = BodyEncoder::new(Body::Chunked);
    chunked.copy(b"", &mut out).unwrap();
    chunked.copy(&[b'x'; 26], &mut out).unwrap();
    chunked.end(Some(&trailers), &mut out).unwrap();
    chunked.end(Some(&trailers), &mut out).unwrap();
    assert_eq!(out, b"1a\r\nxxxxxxxxxxxxxxxxxxxxxxxxxx\r\n0\r\ngrpc-status: 0\r\n\r\n");
    assert_eq!(BodyEncoder::new(Body::Chunked).data(usize::MAX).unwrap().before(), b"ffffffffffffffff\r\n");
}

#[test]
fn rewrites_of_the_path() {
    let mut head = request("GET http://a/x HTTP/1.1\r\nHost: a\r\n\r\n");
    head.set_path_and_query("/y?z").unwrap();
    assert_eq!((head.target(), head.path_and_query(), head.authority()), ("http://a/y?z", "/y?z", Some("a")));
    assert_eq!(head.set_path_and_query("y"), Err(Reject::TargetForm));
    assert_eq!(head.set_path_and_query("/ y"), Err(Reject::TargetByte));
    assert_eq!(head.set_path_and_query("/\r\nX: 1"), Err(Reject::TargetByte));
    let mut out = Vec::new();
    head.write(&mut out);
    assert_eq!(out, b"GET http://a/y?z HTTP/1.1\r\nHost: a\r\n\r\n");
}

#[test]
fn a_large_head_does_not_fatten_its_connection() {
    let mut head = request(&format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "a".repeat(60_000)));
    assert!(head.capacity_bytes() > 60_000);
    head.clear();
    assert!(head.capacity_bytes() <= 4096, "{}", head.capacity_bytes());
}
