//! How HTTP/1 exchanges and their connections end when something goes wrong, or in peace: who is told, and what they are told.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::http1::*;
use super::support::*;
use crate::Config;

#[tokio::test]
async fn a_truncated_response_is_a_reset() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhalf",
    ] {
        let mesh = Mesh::new(1);
        let (listener, addr) = backend().await;
        let vip = http_pod(&mesh, &[addr]).await;
        let mut client = connect(vip).await;
        say(&mut client, GET).await;
        let mut server = accept(&listener).await;
        head(&mut server).await;
        say(&mut server, answer).await;
        until_text(&mut client, "half").await;
        drop(server);
        is_reset(&mut client).await;
        let record = &mesh.records(1).await[0];
        assert_eq!((&record["reason"], &record["status"]), (&"response_incomplete".into(), &200.into()));
        mesh.is_empty().await;
    }
}

#[tokio::test]
async fn a_body_until_close_ends_cleanly_only_if_the_server_did() {
    for clean in [true, false] {
        let mesh = Mesh::new(1);
        let (listener, addr) = backend().await;
        let vip = http_pod(&mesh, &[addr]).await;
        let mut client = connect(vip).await;
        say(&mut client, GET).await;
        let mut server = accept(&listener).await;
        head(&mut server).await;
        say(&mut server, "HTTP/1.1 200 OK\r\n\r\nlong").await;
        let got = until_text(&mut client, "long\r\n").await;
        assert!(got.contains("Transfer-Encoding: chunked") && got.contains("4\r\n"), "{got}");
        if clean {
            drop(server);
            assert_eq!(until_text(&mut client, "0\r\n\r\n").await, "0\r\n\r\n");
        } else {
            reset(server);
            is_reset(&mut client).await;
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_is_felt_by_the_server_at_once() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = http_pod(&mesh, &[addr]).await;
    for (n, stage) in ["waiting", "response", "request"].into_iter().enumerate() {
        let mut client = connect(vip).await;
        say(
            &mut client,
            if stage == "request" { "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf" } else { GET },
        )
        .await;
        let mut server = accept(&listener).await;
        head(&mut server).await;
        if stage == "request" {
            until_text(&mut server, "half").await;
        }
        if stage == "response" {
            say(&mut server, "HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\nbegun").await;
            until_text(&mut client, "begun").await;
        }
        drop(client);
        is_reset(&mut server).await;
        let record = &mesh.records(n + 1).await[n];
        assert_eq!(record["reason"], "request_cancelled", "{stage}");
    }
    mesh.is_empty().await;
}

#[tokio::test]
async fn an_early_answer_reaches_a_client_that_is_still_sending() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = http_pod(&mesh, &[addr]).await;
    let mut client = connect(vip).await;
    say(&mut client, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nsome").await;
    let mut server = accept(&listener).await;
    head(&mut server).await;
    say(&mut server, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nno.").await;
    let got = until_text(&mut client, "no.").await;
    assert!(got.contains("413") && got.to_ascii_lowercase().contains("connection: close"), "{got}");
    // The client may go on sending for a while without losing the answer; then the end.
    say(&mut client, &"x".repeat(5000)).await;
    assert_eq!(rest(&mut client).await, b"");
    assert_eq!(mesh.records(1).await[0]["status"], 413);
}

#[tokio::test]
async fn a_stale_connection_is_replaced_only_where_that_is_safe() {
    for (request, safe) in [
        (GET, true),
        ("DELETE /a HTTP/1.1\r\nHost: web\r\n\r\n", true),
        ("POST /a HTTP/1.1\r\nHost: web\r\nContent-Length: 0\r\n\r\n", false),
        ("PUT /a HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\n\r\nbody", true),
    ] {
        let mesh = Mesh::new(1);
        let (listener, addr) = backend().await;
        let vip = http_pod(&mesh, &[addr]).await;
        let mut client = connect(vip).await;
        say(&mut client, GET).await;
        let mut server = accept(&listener).await;
        head(&mut server).await;
        say(&mut server, OK).await;
        until_text(&mut client, "ok").await;
        mesh.records(1).await;
        // The server reads the next request and closes: it may have acted on it.
        say(&mut client, request).await;
        head(&mut server).await;
        drop(server);
        if safe {
            let mut server = accept(&listener).await;
            let (head, body) = (head(&mut server).await, if request.ends_with("body") { "body" } else { "" });
            assert_eq!(head + &until_text(&mut server, body).await, request);
            say(&mut server, OK).await;
            assert_eq!(until_text(&mut client, "ok").await, OK);
        } else {
            assert!(head(&mut client).await.starts_with("HTTP/1.1 502 "), "{request}");
        }
    }
}

#[tokio::test]
async fn a_connection_the_server_closed_while_idle_is_not_used() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = http_pod(&mesh, &[addr]).await;
    let mut client = connect(vip).await;
    say(&mut client, GET).await;
    let mut server = accept(&listener).await;
    head(&mut server).await;
    say(&mut server, OK).await;
    until_text(&mut client, "ok").await;
    mesh.records(1).await;
    drop(server);
    // A request that could not be repeated: it goes out once, on a new connection.
    let post = "POST /a HTTP/1.1\r\nHost: web\r\nContent-Length: 4\r\n\r\nbody";
    tokio::time::sleep(Duration::from_millis(50)).await;
    say(&mut client, post).await;
    let mut server = accept(&listener).await;
    assert_eq!(until_text(&mut server, "body").await, post);
    say(&mut server, OK).await;
    until_text(&mut client, "ok").await;
}

#[tokio::test]
async fn what_breaks_a_rule_or_a_limit_is_told_so() {
    let mesh = Mesh::with(Config { request_head_timeout: Duration::from_secs(1), ..Config::default() });
    let (_listener, addr) = backend().await;
    let vip = http_pod(&mesh, &[addr]).await;
    let long = "x".repeat(70_000);
    let many: String = (0..200).map(|n| format!("A{n}: b\r\n")).collect();
    for (n, (request, status, reason)) in [
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".to_owned(), 400, "request_malformed"),
        ("GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n".to_owned(), 400, "request_malformed"),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
            400,
            "request_malformed",
        ),
        (format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n"), 414, "request_target_too_long"),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n"), 431, "request_head_too_large"),
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n"), 431, "request_head_too_large"),
        ("GET / HTTP/3.0\r\nHost: a\r\n\r\n".to_owned(), 505, "request_version"),
        ("\x16\x03\x01\x02\0\x01\0\x01\x7c\x03\x03\r\n".to_owned(), 400, "request_malformed"),
        // A head that stops is out of time.
        ("GET / HTTP/1.1\r\nHost".to_owned(), 408, "request_timeout"),
        ("PRI * HT".to_owned(), 408, "request_timeout"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut client = connect(vip).await;
        let _ = soon(client.write_all(request.as_bytes())).await;
        let got = String::from_utf8(rest(&mut client).await).unwrap();
        assert!(got.starts_with(&format!("HTTP/1.1 {status} ")), "{request:.60}: {got}");
        assert!(got.to_ascii_lowercase().contains("connection: close"), "{got}");
        assert!(got.contains(&format!("x-heddle-reason: {reason}")), "{got}");
        let record = &mesh.records(n + 1).await[n];
        assert_eq!((&record["status"], &record["reason"]), (&status.into(), &reason.into()));
    }
    mesh.is_empty().await;
}

#[tokio::test]
async fn a_client_without_a_request_is_closed_cleanly() {
    let mesh = Mesh::with(Config { client_idle_timeout: Duration::from_secs(1), ..Config::default() });
    let (listener, addr) = backend().await;
    let vip = http_pod(&mesh, &[addr]).await;
    // Whoever asks does so at once: later would be too late on a machine that stood still.
    let mut idle = connect(vip).await;
    say(&mut idle, GET).await;
    let mut server = accept(&listener).await;
    head(&mut server).await;
    say(&mut server, OK).await;
    until_text(&mut idle, "ok").await;
    mesh.records(1).await;
    let mut waits = connect(vip).await;
    say(&mut waits, GET).await;
    head(&mut server).await;
    let mut silent = connect(vip).await;
    // Behind a request, or without one ever; one that waits for its response is not idle.
    assert_eq!(rest(&mut idle).await, b"");
    assert_eq!(rest(&mut silent).await, b"");
    tokio::time::sleep(Duration::from_millis(2500)).await;
    say(&mut server, OK).await;
    until_text(&mut waits, "ok").await;
    assert_eq!(rest(&mut waits).await, b"");
    assert_eq!(mesh.records(2).await.len(), 2, "a clean end of an idle connection is no news");
    mesh.is_empty().await;
}

#[tokio::test]
async fn a_body_that_stands_still_is_out_of_time() {
    let mesh = Mesh::with(Config { request_body_idle_timeout: Duration::from_secs(1), ..Config::default() });
    let (listener, addr) = backend().await;
    let vip = http_pod(&mesh, &[addr]).await;
    let mut client = connect(vip).await;
    say(&mut client, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf").await;
    let mut server = accept(&listener).await;
    head(&mut server).await;
    let got = String::from_utf8(rest(&mut client).await).unwrap();
    assert!(got.starts_with("HTTP/1.1 408 "), "{got}");
    let mut sink = Vec::new();
    assert!(soon(server.read_to_end(&mut sink)).await.is_err(), "the server is told by a reset");
    assert_eq!(mesh.only_reason().await, "request_timeout");
}

#[tokio::test]
async fn an_upstream_that_fails_is_a_status_with_its_reason() {
    let mesh = Mesh::new(1);
    let vip = http_pod(&mesh, &[dead_address().await]).await;
    let mut client = connect(vip).await;
    for n in 1..3 {
        say(&mut client, GET).await;
        let got = head(&mut client).await;
        assert!(got.starts_with("HTTP/1.1 503 ") && got.contains("x-heddle-reason: upstream_connect_refused"), "{got}");
        until_text(&mut client, ".").await;
        // The request was complete, so the connection goes on.
        assert_eq!(mesh.records(n).await[n - 1]["reason"], "upstream_connect_refused");
    }

    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = http_pod(&mesh, &[addr]).await;
    for (answer, reason) in [
        ("", "response_incomplete"),
        ("HTTP/1.1 2x0 OK\r\n\r\n", "response_malformed"),
        ("HTTP/1.1 200 OK\r\nA", "response_incomplete"),
    ] {
        let mut client = connect(vip).await;
        say(&mut client, GET).await;
        let mut server = accept(&listener).await;
        head(&mut server).await;
        say(&mut server, answer).await;
        drop(server);
        let got = head(&mut client).await;
        assert!(got.starts_with("HTTP/1.1 502 ") && got.contains(&format!("x-heddle-reason: {reason}")), "{got}");
    }
}

#[tokio::test]
async fn a_drain_ends_connections_behind_their_requests() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = http_pod(&mesh, &[addr]).await;
    let (mut idle, mut busy) = (connect(vip).await, connect(vip).await);
    // Connections that have not said a word, on ports that say HTTP and on ports that say nothing.
    let (other, other_addr) = backend().await;
    let undeclared = mesh.pod_calling("undeclared", &[other_addr], |s| s.ports[0].name = "".into()).await;
    let (mut silent, mut unknown) = (connect(vip).await, connect(undeclared).await);
    let mut unused = accept(&other).await;
    say(&mut idle, GET).await;
    let mut server = accept(&listener).await;
    head(&mut server).await;
    say(&mut server, OK).await;
    until_text(&mut idle, "ok").await;
    mesh.records(1).await;
    say(&mut busy, GET).await;
    head(&mut server).await;
    let drained = mesh.proxy.drain(std::time::Instant::now() + PATIENCE);
    let served = async {
        for silent in [&mut idle, &mut silent, &mut unknown, &mut unused] {
            assert_eq!(rest(silent).await, b"", "an idle connection ends, and nobody waits for its first word long");
        }
        say(&mut server, OK).await;
        let got = String::from_utf8(rest(&mut busy).await).unwrap();
        assert!(got.to_ascii_lowercase().contains("connection: close") && got.ends_with("ok"), "{got}");
        drop(busy);
    };
    let (report, ()) = soon(async { tokio::join!(drained, served) }).await;
    assert!(report.cut.is_empty());
}

/// A new agent accepts while the former one drains: what the latter accepted last is served like everything else.
#[tokio::test]
async fn a_drain_serves_what_was_on_its_way() {
    // It waits a second for a first word. A machine that stood still so long proves nothing: once more.
    while !is_served_while_draining(Duration::from_secs(1)).await {}
}

/// False if the clients' words came too late.
async fn is_served_while_draining(silence_max: Duration) -> bool {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = http_pod(&mesh, &[addr]).await;
    let (other, other_addr) = backend().await;
    let undeclared = mesh.pod_calling("undeclared", &[other_addr], |s| s.ports[0].name = "".into()).await;
    let connected = std::time::Instant::now();
    let (mut request, mut bytes) = (connect(vip).await, connect(undeclared).await);
    while mesh.proxy.registry().list(10, |_| true).await.total < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let drained = mesh.proxy.drain(std::time::Instant::now() + PATIENCE);
    let served = async move {
        while tokio::net::TcpStream::connect(vip).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let said = (bytes.write_all(b"ping").await, request.write_all(GET.as_bytes()).await);
        if connected.elapsed() >= silence_max {
            return false;
        }
        said.0.and(said.1).unwrap();
        let mut unused = accept(&other).await;
        soon(unused.read_exact(&mut [0; 4])).await.unwrap();
        drop((bytes, unused));
        let mut server = accept(&listener).await;
        head(&mut server).await;
        // Longer than silence is waited for: the answer is.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        say(&mut server, OK).await;
        let got = String::from_utf8(rest(&mut request).await).unwrap();
        assert!(got.to_ascii_lowercase().contains("connection: close") && got.ends_with("ok"), "{got}");
        true
    };
    let (report, is_served) = soon(async { tokio::join!(drained, served) }).await;
    assert!(report.cut.is_empty());
    is_served
}

#[tokio::test]
async fn what_is_pipelined_behind_the_last_answer_does_no_harm() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = http_pod(&mesh, &[addr]).await;
    let mut client = connect(vip).await;
    say(&mut client, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET /more HTTP/1.1\r\n").await;
    let mut server = accept(&listener).await;
    head(&mut server).await;
    say(&mut server, OK).await;
    let got = String::from_utf8(rest(&mut client).await).unwrap();
    assert!(got.ends_with("ok"), "{got}");
    drop(client);
    assert_eq!(mesh.only_reason().await, "completed");
}

#[tokio::test]
async fn the_refusal_of_a_request_for_a_head_has_no_content() {
    let mesh = Mesh::new(1);
    let vip = http_pod(&mesh, &[dead_address().await]).await;
    for (refused, has_content) in [
        ("HEAD / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", false),
        ("\r\nHEAD nothing HTTP/1.1\r\nHost: a\r\n\r\n", false),
        ("GET nothing HTTP/1.1\r\nHost: a\r\n\r\n", true),
    ] {
        let mut client = connect(vip).await;
        say(&mut client, refused).await;
        let text = String::from_utf8(rest(&mut client).await).unwrap();
        assert!(text.starts_with("HTTP/1.1 400 ") && text.contains("Content-Length: "), "{text}");
        assert_eq!(!text.ends_with("\r\n\r\n"), has_content, "{text}");
    }
}

#[tokio::test]
async fn an_answer_that_ends_the_connection_comes_whole_behind_pipelined_requests() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = http_pod(&mesh, &[addr]).await;
    let mut client = connect(vip).await;
    // What is refused begins in the middle of the buffer, and is not all that is in it.
    say(&mut client, "GET /1 HTTP/1.1\r\nHost: web\r\n\r\nPOST /2 HTTP/1.1\r\nHost: web\r\nHost: web\r\n\r\nand more")
        .await;
    let mut server = accept(&listener).await;
    head(&mut server).await;
    say(&mut server, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").await;
    let text = String::from_utf8(rest(&mut client).await).unwrap();
    assert!(text.contains("hiHTTP/1.1 400 "), "{text}");
    // While the agent lingers it holds no buffer for what it threw away.
    assert_eq!(mesh.metrics.buffer_lent(), 0);
    drop(client);
    mesh.records(2).await;
    assert_eq!(mesh.metrics.ended(heddle_telemetry::Direction::Outbound, heddle_telemetry::Reason::Panic), 0);
}
