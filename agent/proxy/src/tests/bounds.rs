//! What a client can make the agent hold or wait for, and that a fault ends one connection only.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use heddle_telemetry::{Direction, Reason};
use tokio::io::AsyncWriteExt;

use super::support::*;
use crate::Config;

async fn pod(mesh: &Mesh, name: &str, port: &str, endpoint: std::net::SocketAddr) -> std::net::SocketAddr {
    mesh.pod_calling(name, &[endpoint], |s| s.ports[0].name = port.into()).await
}

#[tokio::test]
async fn a_client_that_pipelines_and_never_reads_is_stopped_by_its_own_socket() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = pod(&mesh, "web", "http", addr).await;
    // A server that answers every request with 64 KiB.
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 65536\r\n\r\n";
        let (mut answered, mut ends, mut buffer) = (0_usize, 0_usize, vec![0; 4096]);
        loop {
            let count = tokio::io::AsyncReadExt::read(&mut stream, &mut buffer).await.unwrap_or(0);
            if count == 0 {
                return answered;
            }
            ends += buffer[..count].iter().filter(|b| **b == b'\n').count();
            while ends >= 3 {
                ends -= 3;
                answered += 1;
                if stream.write_all(&[&head[..], &[7; 65536]].concat()).await.is_err() {
                    return answered;
                }
            }
        }
    });
    let mut client = connect(vip).await;
    let requests = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(1000);
    let mut sent = 0;
    while let Ok(count) = tokio::time::timeout(Duration::from_secs(1), client.write(&requests)).await {
        sent += count.unwrap();
        assert!(sent < 64 << 20, "nothing stops it");
    }
    // One inbox each way, whatever it sent.
    assert!(mesh.metrics.buffer_lent() <= 512 << 10, "{}", mesh.metrics.buffer_lent());
    until("one request at a time", || mesh.proxy.pods()[0].requests == 1).await;
    drop(client);
    mesh.is_empty().await;
    serving.abort();
}

#[tokio::test]
async fn a_chunked_body_that_drips_framing_is_out_of_time() {
    let mesh = Mesh::with(Config { request_body_idle_timeout: Duration::from_secs(2), ..Config::default() });
    let (listener, addr) = backend().await;
    let vip = pod(&mesh, "web", "http", addr).await;
    let mut client = connect(vip).await;
    soon(client.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n5;x="))
        .await
        .unwrap();
    let _server = soon(listener.accept()).await.unwrap().0;
    let (mut read, mut write) = client.into_split();
    // A byte of a chunk extension now and then is no progress.
    let dripping = tokio::spawn(async move {
        while write.write_all(b"y").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    });
    let mut got = [0; 12];
    soon(tokio::io::AsyncReadExt::read_exact(&mut read, &mut got)).await.unwrap();
    assert_eq!(&got, b"HTTP/1.1 408");
    assert_eq!(mesh.only_reason().await, "request_timeout");
    dripping.abort();
}

#[tokio::test]
async fn a_panic_in_a_stream_ends_its_connection_and_gives_everything_back() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = pod(&mesh, "web", "grpc", addr).await;
    let get = || http::Request::get("http://web/").body(()).unwrap();
    let (mut other, connection) = soon(h2::client::handshake(connect(vip).await)).await.unwrap();
    tokio::spawn(connection);
    let (held, _) = other.send_request(get(), true).unwrap();
    let mut server = soon(h2::server::handshake(soon(listener.accept()).await.unwrap().0)).await.unwrap();
    let (_, mut respond) = soon(server.accept()).await.unwrap().unwrap();
    let serving = tokio::spawn(async move { while let Some(Ok(_)) = server.accept().await {} });
    // Another pod, so that its stream has to dial.
    let second = pod(&mesh, "second", "grpc", addr).await;
    let (mut sender, connection) = soon(h2::client::handshake(connect(second).await)).await.unwrap();
    let broken = tokio::spawn(connection);
    mesh.sockets.panic_on_take.store(true, SeqCst);
    let (first, _) = sender.send_request(get(), true).unwrap();
    soon(first).await.unwrap_err();
    assert!(soon(broken).await.unwrap().is_err(), "its connection is reset");
    mesh.sockets.panic_on_take.store(false, SeqCst);
    // The unwinding closes the socket before anyone can record why.
    until("the end to be counted", || mesh.metrics.ended(Direction::Outbound, Reason::Panic) == 1).await;
    assert_eq!(mesh.only_reason().await, "panic");
    until("everything to come back", || {
        let pods = mesh.proxy.pods();
        let second = pods.iter().find(|p| p.uid.as_str() == "second").unwrap();
        (second.connections, second.requests, second.buffered_bytes) == (0, 0, 0)
    })
    .await;
    // The pod's next client dials as if nothing had happened, and the other pod's stream goes on.
    let (mut sender, connection) = soon(h2::client::handshake(connect(second).await)).await.unwrap();
    tokio::spawn(connection);
    let (again, _) = sender.send_request(get(), true).unwrap();
    let mut server = soon(h2::server::handshake(soon(listener.accept()).await.unwrap().0)).await.unwrap();
    soon(server.accept()).await.unwrap().unwrap().1.send_response(http::Response::new(()), true).unwrap();
    let also = tokio::spawn(async move { while let Some(Ok(_)) = server.accept().await {} });
    assert_eq!(soon(again).await.unwrap().status(), 200);
    respond.send_response(http::Response::new(()), true).unwrap();
    assert_eq!(soon(held).await.unwrap().status(), 200);
    mesh.proxy.health().unwrap();
    serving.abort();
    also.abort();
}
