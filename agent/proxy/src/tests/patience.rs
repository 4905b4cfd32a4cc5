//! What an HTTP/1 connection waits for, and what it does not wait for.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::support::*;
use crate::Config;

/// What has come, up to the end of a response whose body is `ok`.
async fn answer(client: &mut TcpStream) -> String {
    let mut got = Vec::new();
    while !got.ends_with(b"ok") {
        got.push(soon(client.read_u8()).await.unwrap());
    }
    String::from_utf8(got).unwrap()
}

#[tokio::test]
async fn empty_lines_between_requests_are_no_slow_request() {
    let mesh = Mesh::with(Config { request_head_timeout: Duration::from_secs(1), ..Config::default() });
    let (listener, addr) = backend().await;
    let vip = mesh.pod_calling("web", &[addr], |s| s.ports[0].name = "http".into()).await;
    let mut client = connect(vip).await;
    let post = b"POST /a HTTP/1.1\r\nHost: web\r\nContent-Length: 2\r\n\r\nhi";
    let ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    soon(client.write_all(post)).await.unwrap();
    soon(client.write_all(b"\r\n")).await.unwrap();
    let (mut server, _) = soon(listener.accept()).await.unwrap();
    for _ in 0..2 {
        let mut got = vec![0; post.len()];
        soon(server.read_exact(&mut got)).await.unwrap();
        assert_eq!(got, post);
        soon(server.write_all(ok)).await.unwrap();
        assert!(answer(&mut client).await.starts_with("HTTP/1.1 200 "));
        // Longer than a head may take: nothing is said, and nothing is held.
        soon(client.write_all(b"\r\n\r\n")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2500)).await;
        assert_eq!(mesh.metrics.buffer_lent(), 0);
        soon(client.write_all(post)).await.unwrap();
    }
    drop((client, server));
    assert!(mesh.records(3).await.iter().all(|r| r["reason"] != "request_timeout"));
}

#[tokio::test]
async fn a_client_that_resets_is_felt_while_its_upload_is_held_up() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = mesh.pod_calling("web", &[addr], |s| s.ports[0].name = "http".into()).await;
    let mut client = connect(vip).await;
    let head = format!("POST /a HTTP/1.1\r\nHost: web\r\nContent-Length: {}\r\n\r\n", 1_u64 << 40);
    soon(client.write_all(head.as_bytes())).await.unwrap();
    let (_never_reads, _) = soon(listener.accept()).await.unwrap();
    let block = vec![b'x'; 64 << 10];
    // Until nothing moves any more.
    while tokio::time::timeout(Duration::from_millis(300), client.write_all(&block)).await.is_ok() {}
    reset(client);
    assert_eq!(mesh.only_reason().await, "downstream_reset");
    mesh.is_empty().await;
}
