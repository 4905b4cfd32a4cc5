//! HTTP/2 clients of a port that declares HTTP/1: the test plays the client with the `h2` crate and the server byte by byte.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::client::SendRequest;
use h2::ext::Protocol;
use heddle_http::websocket;
use heddle_model::{Delta, Workload};
use http::{HeaderMap, Method, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::http1::{OK, accept, head, say, until_text};
use super::http2::{PREFACE, call, client, data, frame, get};
use super::support::*;

/// A pod whose Service port declares HTTP/1.
async fn ws_pod(mesh: &Mesh, endpoints: &[SocketAddr]) -> SocketAddr {
    mesh.pod_calling("web", endpoints, |s| s.ports[0].app_protocol = Some("kubernetes.io/ws".into())).await
}

async fn parts() -> (Mesh, TcpListener, SendRequest<Bytes>) {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = ws_pod(&mesh, &[addr]).await;
    let client = client(vip).await;
    (mesh, listener, client)
}

fn post(path: &str) -> Request<()> {
    Request::post(format!("http://web{path}")).body(()).unwrap()
}

fn trailers(name: &'static str) -> HeaderMap {
    let mut map = HeaderMap::new();
    map.insert(name, "1".parse().unwrap());
    map.insert("x-heddle-reason", "forged".parse().unwrap());
    map
}

#[tokio::test]
async fn each_stream_has_a_connection_that_serves_the_next_one() {
    let (mesh, listener, mut client) = parts().await;
    let mut first = get("/1?a=b");
    for (name, value) in [("cookie", "a=1"), ("cookie", "b=2"), ("x-heddle-attempt", "9"), ("accept", "*/*")] {
        first.headers_mut().append(name, value.parse().unwrap());
    }
    let (one, _) = client.send_request(first, true).unwrap();
    let mut a = accept(&listener).await;
    let got = head(&mut a).await;
    assert!(got.starts_with("GET /1?a=b HTTP/1.1\r\nHost: web\r\n"), "{got}");
    assert!(
        got.contains("cookie: a=1; b=2\r\n") && got.contains("accept: */*\r\n") && !got.contains("heddle"),
        "{got}"
    );
    // At the same time: another connection.
    let (two, _) = client.send_request(get("/2"), true).unwrap();
    let mut b = accept(&listener).await;
    assert_eq!(head(&mut b).await, "GET /2 HTTP/1.1\r\nHost: web\r\n\r\n");
    say(&mut b, OK).await;
    let response = soon(two).await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["content-length"]), (200, &"2".parse().unwrap()));
    assert_eq!(data(&mut response.into_body()).await, "ok");
    mesh.records(1).await;
    let (three, _) = client.send_request(get("/3"), true).unwrap();
    assert_eq!(head(&mut b).await, "GET /3 HTTP/1.1\r\nHost: web\r\n\r\n", "the idle one is used");
    let fields =
        "Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nX-Heddle-Reason: no\r\nX-Mixed: 1\r\n";
    say(&mut b, &format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 0\r\n\r\n")).await;
    let response = soon(three).await.unwrap();
    assert!(response.body().is_end_stream());
    let names: Vec<_> = response.headers().keys().map(http::HeaderName::as_str).collect();
    assert_eq!(names, ["x-mixed", "content-length"]);
    say(&mut a, OK).await;
    assert_eq!(soon(one).await.unwrap().status(), 200);
    let records = mesh.records(3).await;
    assert!(records.iter().all(|r| r["protocol"] == "HTTP/2" && r["reason"] == "completed"), "{records:?}");
    assert_eq!(mesh.sockets.taken.load(SeqCst), 2);
}

#[tokio::test]
async fn a_response_without_a_body_leaves_the_connection_in_step() {
    let (mesh, listener, mut client) = parts().await;
    let mut server = None;
    for (n, (method, answer, length)) in [
        ("HEAD", "200 OK\r\nContent-Length: 500", Some("500")),
        ("GET", "204 No Content", None),
        ("GET", "304 Not Modified\r\nContent-Length: 500", Some("500")),
        ("GET", "200 OK\r\nContent-Length: 0", Some("0")),
    ]
    .into_iter()
    .enumerate()
    {
        let request = Request::builder().method(method).uri("http://web/").body(()).unwrap();
        let (response, _) = client.send_request(request, true).unwrap();
        if server.is_none() {
            server = Some(accept(&listener).await);
        }
        let server = server.as_mut().unwrap();
        assert!(head(server).await.starts_with(&format!("{method} / ")));
        say(server, &format!("HTTP/1.1 {answer}\r\n\r\n")).await;
        let response = soon(response).await.unwrap();
        assert!(response.body().is_end_stream(), "{answer}");
        let got = response.headers().get("content-length").map(|v| v.to_str().unwrap());
        assert_eq!((response.status().as_str(), got), (&answer[..3], length));
        mesh.records(n + 1).await;
    }
}

#[tokio::test]
async fn data_becomes_chunks_and_trailers_pass_both_ways() {
    let (mesh, listener, mut client) = parts().await;
    let mut request = post("/up");
    request.headers_mut().insert("te", "trailers".parse().unwrap());
    let (response, mut sink) = client.send_request(request, false).unwrap();
    let mut server = accept(&listener).await;
    let asked = head(&mut server).await;
    assert!(asked.contains("Transfer-Encoding: chunked\r\n") && asked.contains("TE: trailers\r\n"), "{asked}");
    for part in ["hello", "world"] {
        sink.send_data(part.into(), false).unwrap();
        assert_eq!(until_text(&mut server, &format!("{part}\r\n")).await, format!("5\r\n{part}\r\n"));
    }
    sink.send_trailers(trailers("sum")).unwrap();
    assert_eq!(until_text(&mut server, "\r\n\r\n").await, "0\r\nsum: 1\r\n\r\n");
    say(&mut server, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nwe\r\n2\r\nll\r\n").await;
    let mut body = soon(response).await.unwrap().into_body();
    assert_eq!(data(&mut body).await, "well", "chunks that came together are one frame");
    say(&mut server, "0\r\nDone: 1\r\nX-Heddle-Reason: forged\r\n\r\n").await;
    assert!(soon(body.data()).await.is_none());
    let got = soon(body.trailers()).await.unwrap().unwrap();
    assert_eq!((got.len(), &got["done"]), (1, &"1".parse().unwrap()));
    let record = &mesh.records(1).await[0];
    assert_eq!((&record["bytes_received"], &record["bytes_sent"]), (&10.into(), &4.into()));
}

#[tokio::test]
async fn a_declared_length_is_kept_or_the_request_is_broken() {
    for (sent, whole) in [("body", true), ("bo", false), ("body and more", false)] {
        let (mesh, listener, mut client) = parts().await;
        let mut request = post("/up");
        request.headers_mut().insert("content-length", "4".parse().unwrap());
        let (response, mut sink) = client.send_request(request, false).unwrap();
        let mut server = accept(&listener).await;
        let asked = head(&mut server).await;
        assert!(asked.contains("Content-Length: 4\r\n") && !asked.contains("chunked"), "{asked}");
        sink.send_data(sent.into(), true).unwrap();
        if whole {
            until_text(&mut server, "body").await;
            say(&mut server, OK).await;
            assert_eq!(soon(response).await.unwrap().status(), 200);
        } else {
            is_reset(&mut server).await;
            assert!(soon(response).await.is_err());
            assert_eq!(mesh.only_reason().await, "request_cancelled");
        }
    }
}

#[tokio::test]
async fn interim_responses_pass_at_once() {
    let (_mesh, listener, mut client) = parts().await;
    let mut request = post("/up");
    request.headers_mut().insert("expect", "100-continue".parse().unwrap());
    let (mut response, mut sink) = client.send_request(request, false).unwrap();
    let mut server = accept(&listener).await;
    assert!(head(&mut server).await.contains("expect: 100-continue\r\n"));
    say(&mut server, "HTTP/1.1 100 Continue\r\n\r\n").await;
    let interim = soon(poll_fn(|cx| response.poll_informational(cx))).await.unwrap().unwrap();
    assert_eq!(interim.status(), 100);
    sink.send_data("body".into(), true).unwrap();
    assert_eq!(until_text(&mut server, "0\r\n\r\n").await, "4\r\nbody\r\n0\r\n\r\n");
    say(&mut server, "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\nX-Heddle-Reason: no\r\nConnection: X\r\nX: 1\r\n\r\n")
        .await;
    let interim = soon(poll_fn(|cx| response.poll_informational(cx))).await.unwrap().unwrap();
    assert_eq!((interim.status().as_u16(), interim.headers().len()), (103, 1));
    say(&mut server, OK).await;
    assert_eq!(soon(response).await.unwrap().status(), 200);
}

fn websocket() -> Request<()> {
    let mut request = Request::builder().method(Method::CONNECT).uri("http://web/chat").body(()).unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "chat".parse().unwrap());
    request.extensions_mut().insert(Protocol::from_static("websocket"));
    request
}

#[tokio::test]
async fn an_extended_connect_is_an_upgrade_to_websocket() {
    let (mesh, listener, mut client) = parts().await;
    let (response, mut sink) = client.send_request(websocket(), false).unwrap();
    sink.send_data("early".into(), false).unwrap();
    let mut server = accept(&listener).await;
    let asked = head(&mut server).await;
    assert!(asked.starts_with("GET /chat HTTP/1.1\r\nHost: web\r\n"), "{asked}");
    for line in
        ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13", "sec-websocket-protocol: chat"]
    {
        assert!(asked.contains(&format!("{line}\r\n")), "{asked}");
    }
    let key = asked.lines().find_map(|l| l.strip_prefix("Sec-WebSocket-Key: ")).expect("a key");
    assert!(websocket::is_key(key.as_bytes()));
    // A server that declines would take what comes behind the handshake for another request.
    let mut byte = [0];
    let nothing = tokio::time::timeout(Duration::from_millis(100), server.read(&mut byte)).await;
    assert!(nothing.is_err(), "{nothing:?}");
    let accept = websocket::accept(key.as_bytes());
    let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n";
    say(&mut server, &format!("{switch}Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: chat\r\n\r\nfirst"))
        .await;
    let response = soon(response).await.unwrap();
    assert_eq!((response.status().as_u16(), response.headers().len()), (200, 1));
    let mut body = response.into_body();
    assert_eq!(data(&mut body).await, "first");
    until_text(&mut server, "early").await;
    // Each direction ends by itself.
    soon(server.shutdown()).await.unwrap();
    assert_eq!(data(&mut body).await, "");
    assert!(soon(body.data()).await.is_none());
    sink.send_data("bye".into(), true).unwrap();
    assert_eq!(rest(&mut server).await, b"bye");
    let record = &mesh.records(1).await[0];
    assert_eq!((&record["status"], &record["reason"]), (&200.into(), &"completed".into()));
    assert_eq!((&record["bytes_received"], &record["bytes_sent"]), (&8.into(), &5.into()));
}

#[tokio::test]
async fn only_a_server_that_agrees_to_websocket_opens_the_tunnel() {
    let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n";
    for (answer, status, detail) in [
        (format!("{switch}Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"), 502, "upgrade_unasked"),
        (format!("{switch}\r\n"), 502, "upgrade_unasked"),
        (OK.to_owned(), 502, "upgrade_declined"),
        ("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno".to_owned(), 403, ""),
    ] {
        let (mesh, listener, mut client) = parts().await;
        let (response, _sink) = client.send_request(websocket(), false).unwrap();
        let mut server = accept(&listener).await;
        head(&mut server).await;
        say(&mut server, &answer).await;
        assert_eq!(soon(response).await.unwrap().status(), status, "{answer}");
        assert_eq!(mesh.records(1).await[0].get("detail").and_then(|d| d.as_str()).unwrap_or(""), detail);
    }
}

#[tokio::test]
async fn connect_is_a_tunnel_and_breaks_as_one() {
    for client_breaks in [true, false] {
        let (mesh, listener, mut client) = parts().await;
        let request = Request::builder().method(Method::CONNECT).uri("db:5432").body(()).unwrap();
        let (response, mut sink) = client.send_request(request, false).unwrap();
        let mut server = accept(&listener).await;
        assert_eq!(head(&mut server).await, "CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n");
        say(&mut server, "HTTP/1.1 200 Connection established\r\n\r\n").await;
        let mut body = soon(response).await.unwrap().into_body();
        sink.send_data("\0binary".into(), false).unwrap();
        until_text(&mut server, "\0binary").await;
        if client_breaks {
            sink.send_reset(Reason::CONNECT_ERROR);
            is_reset(&mut server).await;
        } else {
            reset(server);
            let error = soon(body.data()).await.unwrap().unwrap_err();
            assert_eq!(error.reason(), Some(Reason::CONNECT_ERROR));
        }
        let reason = if client_breaks { "request_cancelled" } else { "upstream_reset" };
        assert_eq!(mesh.only_reason().await, reason);
    }
}

#[tokio::test]
async fn a_truncated_response_is_a_reset() {
    for (answer, reason) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", "response_incomplete"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhalf", "response_incomplete"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", "response_incomplete"),
    ] {
        let (mesh, listener, mut client) = parts().await;
        let (response, _) = client.send_request(get("/"), true).unwrap();
        let mut server = accept(&listener).await;
        head(&mut server).await;
        say(&mut server, answer).await;
        let mut body = soon(response).await.unwrap().into_body();
        drop(server);
        let mut got = Vec::new();
        let error = loop {
            match soon(body.data()).await.expect("no clean end") {
                Ok(part) => got.extend_from_slice(&part),
                Err(error) => break error,
            }
        };
        assert_eq!((error.reason(), &*got), (Some(Reason::INTERNAL_ERROR), &b"half"[..]), "{answer}");
        let record = &mesh.records(1).await[0];
        assert_eq!((&record["reason"], &record["status"]), (&reason.into(), &200.into()));
    }
    for (answer, reason) in [
        ("", "response_incomplete"),
        ("HTTP/1.1 200 OK\r\nA", "response_incomplete"),
        ("HTTP/1.1 2x0 OK\r\n\r\n", "response_malformed"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "response_malformed"),
    ] {
        let (mesh, listener, mut client) = parts().await;
        let (response, _) = client.send_request(get("/"), true).unwrap();
        let mut server = accept(&listener).await;
        head(&mut server).await;
        say(&mut server, answer).await;
        drop(server);
        let response = soon(response).await.unwrap();
        assert_eq!(
            (response.status().as_u16(), &response.headers()["x-heddle-reason"]),
            (502, &reason.parse().unwrap())
        );
        assert_eq!(mesh.only_reason().await, reason);
    }
}

#[tokio::test]
async fn a_body_until_close_ends_cleanly_only_if_the_server_did() {
    for clean in [true, false] {
        let (_mesh, listener, mut client) = parts().await;
        let (response, _) = client.send_request(get("/"), true).unwrap();
        let mut server = accept(&listener).await;
        head(&mut server).await;
        say(&mut server, "HTTP/1.0 200 OK\r\n\r\nlong").await;
        let mut body = soon(response).await.unwrap().into_body();
        assert_eq!(data(&mut body).await, "long");
        if clean {
            drop(server);
            assert_eq!(data(&mut body).await, "");
            assert!(soon(body.data()).await.is_none());
        } else {
            reset(server);
            assert_eq!(soon(body.data()).await.unwrap().unwrap_err().reason(), Some(Reason::INTERNAL_ERROR));
        }
    }
}

#[tokio::test]
async fn a_cancel_resets_the_servers_connection_at_once() {
    for stage in ["waiting", "response", "request", "slow reader"] {
        let (mesh, listener, mut client) = parts().await;
        let uploads = stage == "request";
        let (response, mut sink) = client.send_request(if uploads { post("/") } else { get("/") }, !uploads).unwrap();
        let mut server = accept(&listener).await;
        head(&mut server).await;
        let mut body = None;
        if uploads {
            sink.send_data("half".into(), false).unwrap();
            until_text(&mut server, "half\r\n").await;
        }
        if stage == "response" || stage == "slow reader" {
            say(&mut server, "HTTP/1.1 200 OK\r\nContent-Length: 90000000\r\n\r\nbegun").await;
            let response = soon(response).await.unwrap();
            if stage == "slow reader" {
                let filled = async { while server.write_all(&[0; 100_000]).await.is_ok() {} };
                assert!(tokio::time::timeout(Duration::from_millis(300), filled).await.is_err());
            }
            body = Some(response.into_body());
        }
        sink.send_reset(Reason::CANCEL);
        is_reset(&mut server).await;
        drop(body);
        assert_eq!(mesh.only_reason().await, "request_cancelled", "{stage}");
        until("the buffers to come back", || mesh.metrics.buffer_lent() == 0).await;
    }
}

#[tokio::test]
async fn grpc_is_told_that_it_needs_http2() {
    let (mesh, _listener, mut client) = parts().await;
    let (response, _sink) = client.send_request(call("Get"), false).unwrap();
    let response = soon(response).await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["grpc-status"]), (200, &"12".parse().unwrap()));
    assert!(response.body().is_end_stream());
    let record = &mesh.records(1).await[0];
    assert_eq!(
        (&record["reason"], &record["detail"], &record["grpc_status"]),
        (&"request_not_implemented".into(), &"grpc_over_http1".into(), &12.into())
    );
    assert_eq!(mesh.sockets.taken.load(SeqCst), 0);
}

#[tokio::test]
async fn an_early_answer_ends_the_stream_and_the_servers_connection() {
    let (mesh, listener, mut client) = parts().await;
    let (response, mut sink) = client.send_request(post("/"), false).unwrap();
    let mut server = accept(&listener).await;
    head(&mut server).await;
    sink.send_data("some".into(), false).unwrap();
    until_text(&mut server, "some\r\n").await;
    say(&mut server, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nno.").await;
    let response = soon(response).await.unwrap();
    assert_eq!(response.status(), 413);
    assert_eq!(data(&mut response.into_body()).await, "no.");
    assert_eq!(soon(poll_fn(|cx| sink.poll_reset(cx))).await.unwrap(), Reason::NO_ERROR);
    assert_eq!(rest(&mut server).await, b"", "what is left of the request goes nowhere, so the connection is over");
    assert_eq!(mesh.only_reason().await, "completed");
}

#[tokio::test]
async fn a_stale_connection_is_replaced_only_where_that_is_safe() {
    for (method, body, safe) in [("GET", "", true), ("DELETE", "", true), ("POST", "", false), ("PUT", "body", true)] {
        let (mesh, listener, mut client) = parts().await;
        let (response, _) = client.send_request(get("/"), true).unwrap();
        let mut server = accept(&listener).await;
        head(&mut server).await;
        say(&mut server, OK).await;
        assert_eq!(data(&mut soon(response).await.unwrap().into_body()).await, "ok");
        mesh.records(1).await;
        // The server reads the next request and closes: it may have acted on it.
        let request = Request::builder().method(method).uri("http://web/again").body(()).unwrap();
        let (response, mut sink) = client.send_request(request, body.is_empty()).unwrap();
        if !body.is_empty() {
            sink.send_data(body.into(), true).unwrap();
        }
        head(&mut server).await;
        drop(server);
        if safe {
            let mut server = accept(&listener).await;
            assert!(head(&mut server).await.starts_with(&format!("{method} /again ")));
            say(&mut server, OK).await;
            assert_eq!(soon(response).await.unwrap().status(), 200);
        } else {
            assert_eq!(soon(response).await.unwrap().status(), 502, "{method}");
        }
    }
}

#[tokio::test]
async fn a_slow_reader_stops_its_server_and_a_slow_server_its_client() {
    let (mesh, listener, mut client) = parts().await;
    let (response, mut sink) = client.send_request(post("/"), false).unwrap();
    let mut server = accept(&listener).await;
    head(&mut server).await;
    sink.reserve_capacity(64 << 20);
    let mut sent = 0;
    while let Ok(Some(Ok(capacity))) =
        tokio::time::timeout(Duration::from_millis(300), poll_fn(|cx| sink.poll_capacity(cx))).await
    {
        sent += capacity;
        sink.send_data(vec![b'x'; capacity].into(), false).unwrap();
    }
    // The window, and what the sockets on the way hold.
    assert!(sent < 16 << 20, "{sent} bytes went somewhere");
    sink.send_data("".into(), true).unwrap();
    let mut got = Vec::new();
    while !got.ends_with(b"0\r\n\r\n") {
        let mut buffer = vec![0; 1 << 16];
        let count = soon(server.read(&mut buffer)).await.unwrap();
        got.extend_from_slice(&buffer[..count]);
    }
    assert_eq!(got.iter().filter(|b| **b == b'x').count(), sent);
    let length = 64 << 20;
    say(&mut server, &format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n")).await;
    let body = pattern(1 << 20);
    let writing = tokio::spawn(async move {
        for _ in 0..64 {
            server.write_all(&body).await.unwrap();
        }
        server
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!writing.is_finished(), "64 MiB went somewhere");
    assert!(mesh.metrics.buffer_lent() <= 256 << 10, "{}", mesh.metrics.buffer_lent());
    let mut body = soon(response).await.unwrap().into_body();
    let (mut count, sample) = (0, pattern(1 << 20));
    while count < length {
        let part = data(&mut body).await;
        let at = count % sample.len();
        let same = part.len().min(sample.len() - at);
        assert!(part[..same] == sample[at..at + same], "other bytes at {count}");
        count += part.len();
    }
    soon(writing).await.unwrap();
}

#[tokio::test]
async fn nothing_in_a_head_becomes_another_head() {
    // Literal fields without indexing: name and value as they are.
    let literal = |name: &str, value: &str| {
        let length = |text: &str| u8::try_from(text.len()).unwrap();
        [&[0, length(name)][..], name.as_bytes(), &[length(value)], value.as_bytes()].concat()
    };
    let request = |fields: &[(&str, &str)]| fields.iter().flat_map(|(n, v)| literal(n, v)).collect::<Vec<_>>();
    let plain = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "web")];
    let with = |change: &[(&'static str, &'static str)]| {
        let mut all: Vec<_> = plain.iter().filter(|(n, _)| !change.iter().any(|(c, _)| c == n)).copied().collect();
        all.splice(0..0, change.iter().filter(|(n, _)| n.starts_with(':')).copied());
        all.extend(change.iter().filter(|(n, _)| !n.starts_with(':')));
        request(&all)
    };
    for change in [
        (":path", "/ HTTP/1.1\r\nEvil: 1\r\n\r\nGET /evil"),
        (":path", "/evil HTTP/1.1"),
        (":path", "http://evil/"),
        (":path", "evil"),
        (":path", "/evil\u{e9}"),
        (":path", "*"),
        (":path", ""),
        (":method", "GET /evil HTTP/1.1\r\nA:"),
        (":method", "G T"),
        (":authority", "web\r\nEvil: 1"),
        (":authority", "web evil"),
        (":authority", "evil@web"),
        (":scheme", "evil"),
        ("evil", "1\r\nEvil: 2"),
        ("evil", "1\n2"),
        ("evil", "1\0"),
        ("evil", " 1"),
        ("evil: 1\r\nx", "1"),
        ("evil ", "1"),
        ("Evil", "1"),
        ("host", "evil"),
        ("transfer-encoding", "chunked"),
        ("connection", "evil"),
        ("upgrade", "evil"),
        ("content-length", "4"),
        ("content-length", "+0"),
        ("content-length", "0, 0"),
        ("te", "chunked"),
        (":protocol", "websocket"),
        (":evil", "1"),
    ] {
        let mesh = Mesh::new(1);
        let (listener, addr) = backend().await;
        let mut raw = connect(ws_pod(&mesh, &[addr]).await).await;
        let good = request(&plain);
        let wire = [PREFACE, &frame(4, 0, 0, &[]), &frame(1, 5, 1, &with(&[change])), &frame(1, 5, 3, &good)].concat();
        soon(raw.write_all(&wire)).await.unwrap();
        // The next request is the first that a server sees, or the connection is over.
        tokio::select! {
            server = listener.accept() => {
                let mut server = server.unwrap().0;
                let seen = head(&mut server).await;
                assert_eq!(seen, "GET / HTTP/1.1\r\nHost: web\r\n\r\n", "{change:?}");
                say(&mut server, OK).await;
            }
            () = async { while soon(raw.read(&mut [0; 1000])).await.is_ok_and(|n| n > 0) {} } => {}
        }
    }
}

#[tokio::test]
async fn connections_that_show_their_client_serve_no_other() {
    let mesh = Mesh::new(1);
    let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let vip = ws_pod(&mesh, &[addr]).await;
    // The endpoint is in the pod itself: its server is told who calls.
    let mut own = Workload::new("web", "shop", "web");
    own.addresses = vec![addr.ip()];
    mesh.apply(Delta { workloads: vec![(own.uid.clone(), Some(own))], ..Delta::default() });
    let (mut one, mut two) = (client(vip).await, client(vip).await);
    let mut servers = Vec::new();
    for (n, client) in [&mut one, &mut two].into_iter().enumerate() {
        let (response, _) = client.send_request(get("/"), true).unwrap();
        let mut server = accept(&listener).await;
        head(&mut server).await;
        say(&mut server, OK).await;
        assert_eq!(soon(response).await.unwrap().status(), 200);
        servers.push(server);
        mesh.records(n + 1).await;
    }
    assert_eq!(mesh.sockets.published.lock().unwrap().len(), 2);
    let (response, _) = one.send_request(get("/again"), true).unwrap();
    assert!(head(&mut servers[0]).await.starts_with("GET /again "), "its own is kept for it");
    say(&mut servers[0], OK).await;
    assert_eq!(soon(response).await.unwrap().status(), 200);
    drop(one);
    assert_eq!(rest(&mut servers[0]).await, b"", "and ends with it");
    // An idle one whose server left is let go.
    soon(servers[1].shutdown()).await.unwrap();
    assert_eq!(rest(&mut servers[1]).await, b"");
}
