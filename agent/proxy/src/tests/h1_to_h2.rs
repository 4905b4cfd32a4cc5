//! HTTP/1 clients of a port that declares HTTP/2: the test plays the client byte by byte and the server with the `h2` crate.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use h2::Reason;
use h2::ext::Protocol;
use http::{HeaderMap, Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::http1::{GET, accept, head, say, until_text};
use super::http2::{Server, data, frame, keep_going, next, server};
use super::support::*;

/// A pod whose Service port declares HTTP/2.
async fn h2c_pod(mesh: &Mesh, endpoints: &[SocketAddr]) -> SocketAddr {
    mesh.pod_calling("web", endpoints, |s| s.ports[0].app_protocol = Some("kubernetes.io/h2c".into())).await
}

async fn parts() -> (Mesh, TcpListener, TcpStream) {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = h2c_pod(&mesh, &[addr]).await;
    let client = connect(vip).await;
    (mesh, listener, client)
}

fn status(code: u16) -> Response<()> {
    Response::builder().status(code).body(()).unwrap()
}

fn trailers(name: &'static str) -> HeaderMap {
    let mut map = HeaderMap::new();
    map.insert(name, "1".parse().unwrap());
    map.insert("x-heddle-reason", "forged".parse().unwrap());
    map
}

#[tokio::test]
async fn requests_of_kept_connections_are_streams_of_one() {
    let (mesh, listener, mut client) = parts().await;
    let request = "POST /a?b=c HTTP/1.1\r\nHost: web\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nX-Heddle-Attempt: 9\r\n\
        Cookie: a=1\r\nContent-Length: 4\r\n\r\nbody";
    say(&mut client, request).await;
    let mut server = server(&listener).await;
    for (n, (response, body, expected)) in [
        (status(200), "answer", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nanswer\r\n0\r\n\r\n"),
        (status(404), "", "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
        (status(204), "", "HTTP/1.1 204 No Content\r\n\r\n"),
        (status(304), "", "HTTP/1.1 304 Not Modified\r\n\r\n"),
    ]
    .into_iter()
    .enumerate()
    {
        if n > 0 {
            say(&mut client, request).await;
        }
        let (asked, mut respond) = next(&mut server).await;
        assert_eq!((asked.method().as_str(), asked.uri().to_string()), ("POST", "http://web/a?b=c".into()));
        let fields: Vec<_> = asked.headers().iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
        assert_eq!(fields, ["cookie: a=1", "content-length: 4"]);
        let sent = async {
            let mut told = respond.send_response(response, body.is_empty()).unwrap();
            if !body.is_empty() {
                told.send_data(body.into(), true).unwrap();
            }
            let mut asked = asked.into_body();
            assert_eq!(data(&mut asked).await, "body");
            assert_eq!(until_text(&mut client, expected).await, expected);
        };
        tokio::select! { () = sent => {}, _ = server.accept() => panic!("another stream") }
    }
    let records = mesh.records(4).await;
    assert!(records.iter().all(|r| r["protocol"] == "HTTP/1.1" && r["reason"] == "completed"), "{records:?}");
    assert_eq!((&records[0]["bytes_received"], &records[0]["bytes_sent"]), (&4.into(), &6.into()));
    assert_eq!(mesh.sockets.taken.load(SeqCst), 1, "one dial for all");
    drop(client);
    mesh.is_empty().await;
}

#[tokio::test]
async fn a_head_request_is_answered_without_its_body() {
    let (_mesh, listener, mut client) = parts().await;
    say(&mut client, "HEAD / HTTP/1.1\r\nHost: web\r\n\r\n").await;
    let mut server = server(&listener).await;
    let (asked, mut respond) = next(&mut server).await;
    assert!(asked.body().is_end_stream());
    let announced = Response::builder().header("content-length", "500").body(()).unwrap();
    respond.send_response(announced, true).unwrap();
    say(&mut client, GET).await;
    let (_, mut respond) = next(&mut server).await;
    respond.send_response(status(200), true).unwrap();
    let _serving = keep_going(server);
    assert_eq!(head(&mut client).await, "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n");
    assert_eq!(head(&mut client).await, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
}

#[tokio::test]
async fn chunks_and_trailers_pass_both_ways() {
    let (mesh, listener, mut client) = parts().await;
    say(&mut client, "POST / HTTP/1.1\r\nHost: web\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    let mut server = server(&listener).await;
    let (asked, mut respond) = next(&mut server).await;
    let serving = keep_going(server);
    assert_eq!(asked.headers()["te"], "trailers");
    let mut asked = asked.into_body();
    for (part, expected) in [("5\r\nhe", "he"), ("llo\r\n3;x=y\r\n wo\r\n2\r\nrl\r\n", "llo worl")] {
        say(&mut client, part).await;
        assert_eq!(data(&mut asked).await, expected, "chunks that came together are one frame");
    }
    say(&mut client, "1\r\nd\r\n0\r\nSum: 1\r\nX-Heddle-Reason: forged\r\n\r\n").await;
    assert_eq!(data(&mut asked).await, "d");
    assert!(soon(asked.data()).await.is_none());
    let got = soon(asked.trailers()).await.unwrap().unwrap();
    assert_eq!((got.len(), &got["sum"]), (1, &"1".parse().unwrap()));
    let mut told = respond.send_response(status(200), false).unwrap();
    assert_eq!(head(&mut client).await, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    for part in ["well", "done"] {
        told.send_data(part.into(), false).unwrap();
        assert_eq!(until_text(&mut client, &format!("{part}\r\n")).await, format!("4\r\n{part}\r\n"));
    }
    told.send_trailers(trailers("done")).unwrap();
    assert_eq!(until_text(&mut client, "\r\n\r\n").await, "0\r\ndone: 1\r\n\r\n");
    let record = &mesh.records(1).await[0];
    assert_eq!((&record["bytes_received"], &record["bytes_sent"]), (&11.into(), &8.into()));
    serving.abort();
}

#[tokio::test]
async fn an_http10_client_is_served_until_the_close() {
    let (_mesh, listener, mut client) = parts().await;
    say(&mut client, "GET /old HTTP/1.0\r\n\r\n").await;
    let mut server = server(&listener).await;
    let (asked, mut respond) = next(&mut server).await;
    let called = client.peer_addr().unwrap().to_string();
    assert_eq!(asked.uri().authority().unwrap().as_str(), called, "the address it called stands for the host");
    respond.send_informational(status(103)).unwrap();
    let mut told = respond.send_response(status(200), false).unwrap();
    told.send_data("to the end".into(), false).unwrap();
    told.send_trailers(trailers("lost")).unwrap();
    let _serving = keep_going(server);
    let got = String::from_utf8(rest(&mut client).await).unwrap();
    assert_eq!(got, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nto the end");
}

#[tokio::test]
async fn interim_responses_pass_at_once() {
    let (_mesh, listener, mut client) = parts().await;
    say(&mut client, "PUT / HTTP/1.1\r\nHost: web\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").await;
    let mut server = server(&listener).await;
    let (asked, mut respond) = next(&mut server).await;
    let serving = keep_going(server);
    assert_eq!(asked.headers()["expect"], "100-continue");
    respond.send_informational(status(100)).unwrap();
    assert_eq!(head(&mut client).await, "HTTP/1.1 100 Continue\r\n\r\n");
    say(&mut client, "body").await;
    assert_eq!(data(&mut asked.into_body()).await, "body");
    let hints = Response::builder().status(103).header("link", "</x>").header("x-heddle-reason", "no").body(());
    respond.send_informational(hints.unwrap()).unwrap();
    assert_eq!(head(&mut client).await, "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n");
    respond.send_response(status(200), true).unwrap();
    assert_eq!(head(&mut client).await, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    serving.abort();
}

const UPGRADE: &str = "GET /chat HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: chat\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

#[tokio::test]
async fn an_upgrade_to_websocket_is_an_extended_connect() {
    let (mesh, listener, mut client) = parts().await;
    // What comes behind the handshake waits for its answer.
    say(&mut client, &format!("{UPGRADE}early")).await;
    let mut server = server(&listener).await;
    let (asked, mut respond) = next(&mut server).await;
    let serving = keep_going(server);
    assert_eq!((asked.method().as_str(), asked.uri().to_string()), ("CONNECT", "http://web/chat".into()));
    assert_eq!(asked.extensions().get::<Protocol>().unwrap().as_str(), "websocket");
    assert_eq!(asked.headers()["sec-websocket-version"], "13");
    assert!(asked.headers().get("sec-websocket-key").is_none() && asked.headers().get("upgrade").is_none());
    let mut asked = asked.into_body();
    let nothing = tokio::time::timeout(Duration::from_millis(100), asked.data()).await;
    assert!(nothing.is_err(), "{nothing:?}");
    let agreed = Response::builder().header("sec-websocket-protocol", "chat").body(()).unwrap();
    let mut told = respond.send_response(agreed, false).unwrap();
    let switched = head(&mut client).await;
    assert!(switched.starts_with("HTTP/1.1 101 Switching Protocols\r\nsec-websocket-protocol: chat\r\n"), "{switched}");
    assert!(switched.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{switched}");
    assert_eq!(data(&mut asked).await, "early");
    told.send_data("to you".into(), false).unwrap();
    until_text(&mut client, "to you").await;
    // Each direction ends by itself.
    soon(client.shutdown()).await.unwrap();
    assert_eq!(data(&mut asked).await, "");
    assert!(soon(asked.data()).await.is_none());
    told.send_data("bye".into(), true).unwrap();
    assert_eq!(rest(&mut client).await, b"bye");
    let record = &mesh.records(1).await[0];
    assert_eq!((&record["status"], &record["reason"]), (&101.into(), &"completed".into()));
    assert_eq!((&record["bytes_received"], &record["bytes_sent"]), (&5.into(), &9.into()));
    serving.abort();
    mesh.is_empty().await;
}

#[tokio::test]
async fn a_server_that_declines_an_upgrade_is_heard() {
    let (_mesh, listener, mut client) = parts().await;
    say(&mut client, UPGRADE).await;
    let mut server = server(&listener).await;
    let (_, mut respond) = next(&mut server).await;
    respond.send_response(status(403), false).unwrap().send_data("no".into(), true).unwrap();
    let _serving = keep_going(server);
    let refused = "HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n";
    assert_eq!(until_text(&mut client, "0\r\n\r\n").await, refused);
}

#[tokio::test]
async fn websocket_needs_the_servers_leave() {
    let (mesh, listener, mut client) = parts().await;
    say(&mut client, UPGRADE).await;
    let stream = accept(&listener).await;
    // Its SETTINGS are waited for, and do not allow it.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut server: Server = soon(h2::server::handshake(stream)).await.unwrap();
    let serving = async {
        while let Some(Ok((_, mut r))) = server.accept().await {
            r.send_response(status(200), true).unwrap();
        }
    };
    let served = async {
        let told = head(&mut client).await;
        assert!(told.starts_with("HTTP/1.1 501 ") && told.contains("request_not_implemented"), "{told}");
        until_text(&mut client, ".").await;
        say(&mut client, GET).await;
        assert!(head(&mut client).await.starts_with("HTTP/1.1 200 "), "the connection is in step");
    };
    tokio::select! { () = served => {}, () = serving => panic!("the server ended") }
    assert_eq!(mesh.records(1).await[0]["detail"], "extended_connect");
}

#[tokio::test]
async fn connect_is_a_tunnel_and_breaks_as_one() {
    for client_breaks in [true, false] {
        let (mesh, listener, mut client) = parts().await;
        say(&mut client, "CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n").await;
        let mut server = server(&listener).await;
        let (asked, mut respond) = next(&mut server).await;
        let serving = keep_going(server);
        assert_eq!((asked.method().as_str(), asked.uri().to_string()), ("CONNECT", "db:5432".into()));
        let mut told = respond.send_response(status(200), false).unwrap();
        assert_eq!(head(&mut client).await, "HTTP/1.1 200 OK\r\n\r\n");
        say(&mut client, "\0binary").await;
        let mut asked = asked.into_body();
        assert_eq!(data(&mut asked).await, "\0binary");
        if client_breaks {
            reset(client);
            let error = soon(asked.data()).await.unwrap().unwrap_err();
            assert_eq!(error.reason(), Some(Reason::CONNECT_ERROR));
        } else {
            told.send_reset(Reason::CONNECT_ERROR);
            is_reset(&mut client).await;
        }
        let reason = if client_breaks { "downstream_reset" } else { "upstream_stream_reset" };
        assert_eq!(mesh.only_reason().await, reason);
        serving.abort();
    }
}

#[tokio::test]
async fn an_early_answer_reaches_a_client_that_is_still_sending() {
    let (mesh, listener, mut client) = parts().await;
    say(&mut client, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nsome").await;
    let mut server = server(&listener).await;
    let (asked, mut respond) = next(&mut server).await;
    respond.send_response(status(413), false).unwrap().send_data("no.".into(), true).unwrap();
    drop((asked, respond));
    let _serving = keep_going(server);
    let got = until_text(&mut client, "0\r\n\r\n").await;
    assert!(got.starts_with("HTTP/1.1 413 ") && got.contains("Connection: close") && got.contains("no."), "{got}");
    say(&mut client, &"x".repeat(5000)).await;
    assert_eq!(rest(&mut client).await, b"");
    let record = &mesh.records(1).await[0];
    assert_eq!((&record["status"], &record["reason"]), (&413.into(), &"completed".into()));
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_stream_at_once() {
    for stage in ["waiting", "response", "request", "window"] {
        let (mesh, listener, mut client) = parts().await;
        let up = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9000000\r\n\r\nhalf";
        say(&mut client, if stage == "request" || stage == "window" { up } else { GET }).await;
        let mut server = server(&listener).await;
        let (asked, mut respond) = next(&mut server).await;
        let serving = keep_going(server);
        let mut asked = asked.into_body();
        if stage == "request" {
            assert_eq!(data(&mut asked).await, "half");
        }
        if stage == "window" {
            // Nobody reads: the window closes, and the client's socket fills.
            let filled = async { while client.write_all(&[0; 100_000]).await.is_ok() {} };
            assert!(tokio::time::timeout(Duration::from_millis(300), filled).await.is_err());
        }
        let mut told = None;
        if stage == "response" {
            told = Some(respond.send_response(status(200), false).unwrap());
            head(&mut client).await;
        }
        reset(client);
        // `told` or the pending response: the reset shows on both.
        let code = match &mut told {
            Some(told) => soon(poll_fn(|cx| told.poll_reset(cx))).await,
            None => soon(poll_fn(|cx| respond.poll_reset(cx))).await,
        };
        assert_eq!(code.unwrap(), Reason::CANCEL, "{stage}");
        assert_eq!(mesh.only_reason().await, "downstream_reset", "{stage}");
        serving.abort();
        mesh.is_empty().await;
    }
}

#[tokio::test]
async fn a_reset_stream_is_a_status_before_the_head_and_a_reset_behind_it() {
    for begun in [false, true] {
        let (mesh, listener, mut client) = parts().await;
        say(&mut client, GET).await;
        let mut server = server(&listener).await;
        let (_, mut respond) = next(&mut server).await;
        let serving = keep_going(server);
        if begun {
            let mut told = respond.send_response(status(200), false).unwrap();
            told.send_data("half".into(), false).unwrap();
            until_text(&mut client, "half\r\n").await;
            told.send_reset(Reason::INTERNAL_ERROR);
            is_reset(&mut client).await;
        } else {
            respond.send_reset(Reason::INTERNAL_ERROR);
            let told = head(&mut client).await;
            assert!(told.starts_with("HTTP/1.1 502 ") && told.contains("upstream_stream_reset"), "{told}");
            assert!(!told.contains("close"), "the request was complete: {told}");
        }
        assert_eq!(mesh.only_reason().await, "upstream_stream_reset");
        serving.abort();
    }
}

#[tokio::test]
async fn a_stream_the_server_did_not_look_at_is_sent_again() {
    let (_mesh, listener, mut client) = parts().await;
    // A body that nobody took yet can be sent again too.
    say(&mut client, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n").await;
    let mut server = server(&listener).await;
    next(&mut server).await.1.send_reset(Reason::REFUSED_STREAM);
    let (asked, mut respond) = next(&mut server).await;
    say(&mut client, "body").await;
    respond.send_response(status(201), true).unwrap();
    let serving = keep_going(server);
    assert!(head(&mut client).await.starts_with("HTTP/1.1 201 "));
    assert_eq!(data(&mut asked.into_body()).await, "body");
    serving.abort();

    // What of a body is gone cannot be sent again.
    let (mesh, listener, mut client) = parts().await;
    say(&mut client, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf").await;
    let mut server = self::server(&listener).await;
    let (asked, mut respond) = next(&mut server).await;
    let serving = keep_going(server);
    assert_eq!(data(&mut asked.into_body()).await, "half");
    respond.send_reset(Reason::REFUSED_STREAM);
    assert!(head(&mut client).await.starts_with("HTTP/1.1 502 "));
    assert_eq!(mesh.only_reason().await, "upstream_stream_reset");
    serving.abort();
}

#[tokio::test]
async fn a_connection_that_goes_away_is_replaced() {
    let (_mesh, listener, mut client) = parts().await;
    let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody";
    say(&mut client, post.strip_suffix("body").unwrap()).await;
    let mut first = accept(&listener).await;
    let mut buffer = [0; 1000];
    soon(first.read(&mut buffer)).await.unwrap();
    // SETTINGS, and a GOAWAY that leaves the stream out.
    soon(first.write_all(&[frame(4, 0, 0, &[]), frame(7, 0, 0, &[0; 8])].concat())).await.unwrap();
    let mut second = accept(&listener).await;
    soon(second.read(&mut buffer)).await.unwrap();
    // A response that begins, and a GOAWAY that leaves it in: new requests go elsewhere, this one is not disturbed.
    let begins = [
        frame(4, 0, 0, &[]),
        frame(1, 4, 1, &[0x88]),
        frame(7, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]),
        frame(0, 0, 1, b"begins"),
    ];
    soon(second.write_all(&begins.concat())).await.unwrap();
    assert!(until_text(&mut client, "begins\r\n").await.starts_with("HTTP/1.1 200 "));
    let mut other = connect(client.peer_addr().unwrap()).await;
    say(&mut other, post).await;
    let mut server = server(&listener).await;
    next(&mut server).await.1.send_response(status(201), true).unwrap();
    let _serving = keep_going(server);
    assert!(head(&mut other).await.starts_with("HTTP/1.1 201 "));
    soon(second.write_all(&frame(0, 1, 1, b"ends"))).await.unwrap();
    until_text(&mut client, "ends\r\n0\r\n\r\n").await;
}

#[tokio::test]
async fn a_slow_server_stops_the_client_and_a_slow_client_the_server() {
    let (mesh, listener, mut client) = parts().await;
    let length = 64 << 20;
    say(&mut client, &format!("POST / HTTP/1.1\r\nHost: web\r\nContent-Length: {length}\r\n\r\n")).await;
    let mut server = server(&listener).await;
    let (asked, mut respond) = next(&mut server).await;
    let serving = keep_going(server);
    let (mut read, mut write) = client.into_split();
    let body = pattern(1 << 20);
    let writing = tokio::spawn(async move {
        for _ in 0..64 {
            write.write_all(&body).await.unwrap();
        }
        write
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!writing.is_finished(), "64 MiB went somewhere");
    assert!(mesh.metrics.buffer_lent() <= 256 << 10, "{}", mesh.metrics.buffer_lent());
    let mut asked = asked.into_body();
    let (mut got, sample) = (0, pattern(1 << 20));
    while got < length {
        let part = data(&mut asked).await;
        let at = got % sample.len();
        let same = part.len().min(sample.len() - at);
        assert!(part[..same] == sample[at..at + same], "other bytes at {got}");
        got += part.len();
    }
    let _write = soon(writing).await.unwrap();
    let mut told = respond.send_response(status(200), false).unwrap();
    told.reserve_capacity(64 << 20);
    let mut sent = 0;
    while let Ok(Some(Ok(capacity))) =
        tokio::time::timeout(Duration::from_millis(300), poll_fn(|cx| told.poll_capacity(cx))).await
    {
        sent += capacity;
        told.send_data(vec![b'x'; capacity].into(), false).unwrap();
    }
    // The windows, and what the sockets on the way hold.
    assert!(sent < 16 << 20, "{sent} bytes went somewhere");
    told.send_data("".into(), true).unwrap();
    let mut all = Vec::new();
    while !all.ends_with(b"0\r\n\r\n") {
        let mut buffer = vec![0; 1 << 16];
        let count = soon(read.read(&mut buffer)).await.unwrap();
        all.extend_from_slice(&buffer[..count]);
    }
    assert_eq!(all.iter().filter(|b| **b == b'x').count(), sent);
    serving.abort();
}

#[tokio::test]
async fn what_breaks_a_rule_is_told_so_and_cancels_the_stream() {
    let (mesh, listener, mut client) = parts().await;
    say(&mut client, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
    let mut server = server(&listener).await;
    let (asked, _respond) = next(&mut server).await;
    let serving = keep_going(server);
    let mut asked = asked.into_body();
    assert_eq!(data(&mut asked).await, "abc");
    say(&mut client, "+3\r\nabc\r\n").await;
    assert!(head(&mut client).await.starts_with("HTTP/1.1 400 "));
    assert_eq!(soon(asked.data()).await.unwrap().unwrap_err().reason(), Some(Reason::CANCEL));
    assert_eq!(mesh.records(1).await[0]["detail"], "chunk_size");
    serving.abort();

    let (mesh, _listener, mut client) = parts().await;
    say(&mut client, &UPGRADE.replace("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "")).await;
    assert!(head(&mut client).await.starts_with("HTTP/1.1 400 "));
    assert_eq!(mesh.records(1).await[0]["detail"], "upgrade_invalid");
    assert_eq!(mesh.sockets.taken.load(SeqCst), 0);
}

#[tokio::test]
async fn a_response_that_breaks_a_rule_is_not_passed_on() {
    for (fields, length) in [(&[("content-length", "2")][..], 4), (&[("content-length", "9")], 4)] {
        let (mesh, listener, mut client) = parts().await;
        say(&mut client, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        let mut server = server(&listener).await;
        let (_, mut respond) = next(&mut server).await;
        let mut response = status(200);
        for (name, value) in fields {
            response.headers_mut().insert(*name, value.parse().unwrap());
        }
        respond.send_response(response, false).unwrap().send_data(vec![b'x'; length].into(), true).unwrap();
        let serving = keep_going(server);
        let mut got = Vec::new();
        let error = soon(client.read_to_end(&mut got)).await.err();
        let got = String::from_utf8(got).unwrap();
        assert!(error.is_some() || got.starts_with("HTTP/1.1 502 "), "{got}");
        assert!(!got.contains("xxxx") || error.is_some(), "{got}");
        assert_ne!(mesh.only_reason().await, "completed");
        serving.abort();
    }
}

#[tokio::test]
async fn an_upstream_that_cannot_be_reached_is_told_as_ever() {
    let mesh = Mesh::new(1);
    let vip = h2c_pod(&mesh, &[dead_address().await]).await;
    let mut client = connect(vip).await;
    for n in 1..3 {
        say(&mut client, GET).await;
        let told = head(&mut client).await;
        assert!(told.starts_with("HTTP/1.1 503 ") && told.contains("upstream_connect_refused"), "{told}");
        until_text(&mut client, ".").await;
        assert_eq!(mesh.records(n).await[n - 1]["reason"], "upstream_connect_refused");
    }
}

#[tokio::test]
async fn grpc_of_an_http1_client_is_counted_by_its_status() {
    let (mesh, listener, mut client) = parts().await;
    say(
        &mut client,
        "POST /shop.Cart/Get HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc\r\nTE: trailers\r\nContent-Length: 5\r\n\r\n\0\0\0\0\0",
    )
    .await;
    let mut server = server(&listener).await;
    let (_, mut respond) = next(&mut server).await;
    let mut told = respond.send_response(status(200), false).unwrap();
    told.send_data(vec![0; 5].into(), false).unwrap();
    let mut end = HeaderMap::new();
    end.insert("grpc-status", "7".parse().unwrap());
    told.send_trailers(end).unwrap();
    let serving = keep_going(server);
    assert!(until_text(&mut client, "grpc-status: 7\r\n\r\n").await.starts_with("HTTP/1.1 200 "));
    assert_eq!(mesh.records(1).await[0]["grpc_status"], 7);
    serving.abort();
}

#[tokio::test]
async fn the_version_follows_what_the_port_declares_now() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = mesh.pod_calling("web", &[addr], |s| s.ports[0].name = "http".into()).await;
    let mut client = connect(vip).await;
    say(&mut client, GET).await;
    let mut one = accept(&listener).await;
    assert_eq!(head(&mut one).await, GET);
    say(&mut one, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    head(&mut client).await;
    let mut service = service("web", vip, &[addr]);
    service.ports[0].name = "http2".into();
    mesh.apply(heddle_model::Delta { services: vec![(service.key(), Some(service))], ..Default::default() });
    say(&mut client, GET).await;
    let mut server = server(&listener).await;
    let (asked, mut respond) = next(&mut server).await;
    assert_eq!(asked.uri().path(), "/a");
    respond.send_response(status(200), true).unwrap();
    let _serving = keep_going(server);
    assert!(head(&mut client).await.starts_with(&format!("HTTP/1.1 {}", StatusCode::OK.as_str())));
}
