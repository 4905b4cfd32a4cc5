//! HTTP/2 used against the agent: floods end their connection, and what one client gives up does not reach the others' upstream.

use h2::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::http2::{PREFACE, client, frame, get, h2_pod, keep_going, next, server};
use super::support::*;

#[tokio::test]
async fn floods_end_the_connection() {
    // :method GET, :scheme http, :path /, :authority a, by static table and literals.
    let request: &[u8] = b"\x82\x86\x84\x01\x01a";
    let rapid_reset: Vec<u8> = (0..2000)
        .flat_map(|n| [frame(1, 5, n * 2 + 1, request), frame(3, 0, n * 2 + 1, &[0, 0, 0, 8])].concat())
        .collect();
    let continuation = [frame(1, 1, 1, request), frame(9, 0, 1, &[b'\0'; 16_000]).repeat(100)].concat();
    for (what, flood) in [
        ("ping", frame(6, 0, 0, &[0; 8]).repeat(5000)),
        ("settings", frame(4, 0, 0, &[]).repeat(5000)),
        ("priority", frame(2, 0, 1, &[0, 0, 0, 3, 1]).repeat(5000)),
        ("rapid reset", rapid_reset),
        ("continuation", continuation),
    ] {
        let mesh = Mesh::new(1);
        let (listener, addr) = backend().await;
        let vip = h2_pod(&mesh, &[addr]).await;
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(server) = h2::server::handshake(stream).await else { continue };
                keep_going(server);
            }
        });
        let (mut read, mut write) = connect(vip).await.into_split();
        let writing = tokio::spawn(async move {
            let _ = write.write_all(&[PREFACE, &frame(4, 0, 0, &[]), &flood].concat()).await;
            write
        });
        let mut sink = Vec::new();
        let end = soon(read.read_to_end(&mut sink)).await;
        writing.abort();
        let count = |r| mesh.metrics.ended(heddle_telemetry::Direction::Outbound, r);
        until("the end", || heddle_telemetry::Reason::ALL.iter().any(|r| count(*r) > 0)).await;
        let ended = heddle_telemetry::Reason::ALL.iter();
        let ended: Vec<_> = ended.filter(|r| count(**r) > 0).collect();
        assert_eq!(ended, [&heddle_telemetry::Reason::RequestAbuse], "{what}: {end:?} {sink:x?}");
        serving.abort();
    }
}

/// GET of a path of two bytes, by static table and literals.
fn request(path: &[u8; 2]) -> Vec<u8> {
    [b"\x82\x86\x04\x02", &path[..], b"\x01\x01a"].concat()
}

#[tokio::test]
async fn what_is_given_up_at_once_is_not_heard_upstream() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = h2_pod(&mesh, &[addr]).await;
    let mut client = connect(vip).await;
    let mut wire = [PREFACE, &frame(4, 0, 0, &[])].concat();
    for n in 0..50 {
        wire.extend([frame(1, 5, n * 2 + 1, &request(b"/x")), frame(3, 0, n * 2 + 1, &[0, 0, 0, 8])].concat());
    }
    wire.extend(frame(1, 5, 101, &request(b"/y")));
    client.write_all(&wire).await.unwrap();
    let mut server = server(&listener).await;
    let (request, _respond) = next(&mut server).await;
    assert_eq!(request.uri().path(), "/y", "the only one that is still wanted");
    let records = mesh.records(50).await;
    assert!(records.iter().all(|r| r["reason"] == "request_cancelled" && r["attempts"] == 0), "{records:?}");
}

#[tokio::test]
async fn a_connection_whose_streams_are_given_up_retires() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = h2_pod(&mesh, &[addr]).await;
    let (mut fickle, mut honest) = (client(vip).await, client(vip).await);
    let mut asked: Vec<_> = (0..100).map(|_| fickle.send_request(get("/fickle"), true).unwrap()).collect();
    let mut first = server(&listener).await;
    let mut held = Vec::new();
    for _ in 0..100 {
        held.push(next(&mut first).await);
    }
    let (kept, _) = honest.send_request(get("/kept"), true).unwrap();
    let (_, mut respond) = next(&mut first).await;
    asked.iter_mut().for_each(|(_, stream)| stream.send_reset(Reason::CANCEL));
    mesh.records(100).await;
    // What is new goes elsewhere, what is under way ends where it is.
    let _new = honest.send_request(get("/new"), true).unwrap();
    let mut second = server(&listener).await;
    assert_eq!(next(&mut second).await.0.uri().path(), "/new");
    respond.send_response(http::Response::new(()), true).unwrap();
    let serving = keep_going(first);
    assert_eq!(soon(kept).await.unwrap().status(), 200);
    soon(serving).await.unwrap();
}

#[tokio::test]
async fn requests_under_way_end_for_the_reason_of_their_connection() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = h2_pod(&mesh, &[addr]).await;
    let mut client = connect(vip).await;
    client.write_all(&[PREFACE, &frame(4, 0, 0, &[]), &frame(1, 5, 1, &request(b"/x"))].concat()).await.unwrap();
    let mut server = server(&listener).await;
    let _held = next(&mut server).await;
    let _ = client.write_all(&frame(6, 0, 0, &[0; 8]).repeat(5000)).await;
    let records = mesh.records(2).await;
    assert!(records.iter().all(|r| r["reason"] == "request_abuse"), "{records:?}");
}
