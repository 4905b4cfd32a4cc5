//! Bytes, ends and resets both ways.

use heddle_model::mesh::PodLimits;
use heddle_telemetry::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::*;
use crate::buffers::SIZES;

#[tokio::test]
async fn each_direction_ends_on_its_own() {
    for client_first in [true, false] {
        let mesh = Mesh::new(1);
        let (client, server) = pair(&mesh, "a").await;
        let (mut first, mut second) = if client_first { (client, server) } else { (server, client) };
        passes(&mut first, &mut second, b"question").await;
        soon(first.shutdown()).await.unwrap();
        assert_eq!(rest(&mut second).await, b"");
        let state = if client_first { "downstream_closed" } else { "upstream_closed" };
        let list = mesh.proxy.registry().list(10, |_| true).await;
        assert_eq!(list.connections[0].state.as_str(), state);
        // The other direction is as open as ever.
        passes(&mut second, &mut first, &pattern(300_000)).await;
        soon(second.shutdown()).await.unwrap();
        assert_eq!(rest(&mut first).await, b"");
        assert_eq!(mesh.only_reason().await, "completed");
        mesh.is_empty().await;
    }
}

#[tokio::test]
async fn bytes_before_the_end_arrive_though_both_sides_closed() {
    let mesh = Mesh::new(1);
    let (mut client, mut server) = pair(&mesh, "a").await;
    let sent = pattern(200_000);
    soon(client.write_all(&sent)).await.unwrap();
    soon(client.shutdown()).await.unwrap();
    soon(server.shutdown()).await.unwrap();
    assert_eq!(rest(&mut client).await, b"");
    drop(client);
    assert!(rest(&mut server).await == sent, "a clean close lost bytes that were under way");
    assert_eq!(mesh.only_reason().await, "completed");
}

#[tokio::test]
async fn a_reset_travels_as_a_reset_both_ways() {
    for (from_client, reason) in [(true, "downstream_reset"), (false, "upstream_reset")] {
        let mesh = Mesh::new(1);
        let (client, server) = pair(&mesh, "a").await;
        let (mut first, mut second) = if from_client { (client, server) } else { (server, client) };
        passes(&mut first, &mut second, b"x").await;
        reset(first);
        is_reset(&mut second).await;
        assert_eq!(mesh.only_reason().await, reason);
        mesh.is_empty().await;
    }
}

#[tokio::test]
async fn a_reset_after_a_half_close_is_a_reset_still() {
    for (from_client, reason) in [(true, "downstream_reset"), (false, "upstream_reset")] {
        let mesh = Mesh::new(1);
        let (client, server) = pair(&mesh, "a").await;
        let (mut first, mut second) = if from_client { (client, server) } else { (server, client) };
        soon(first.shutdown()).await.unwrap();
        assert_eq!(soon(second.read(&mut [0; 1])).await.unwrap(), 0);
        // The proxy reads nothing from `first` any more; it must notice all the same.
        reset(first);
        assert_eq!(mesh.only_reason().await, reason);
        // After an end a receiver is not told of a reset by reading; by writing it is.
        let error = loop {
            if let Err(error) = soon(second.write_all(b"anyone?")).await {
                break error;
            }
            tokio::task::yield_now().await;
        };
        assert!(
            matches!(error.kind(), std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_reset_is_noticed_while_the_other_side_does_not_read() {
    for (from_client, reason) in [(true, "downstream_reset"), (false, "upstream_reset")] {
        let mesh = Mesh::new(1);
        let (client, server) = pair(&mesh, "a").await;
        let (mut writer, stuck) = if from_client { (client, server) } else { (server, client) };
        fill(&mut writer, &stuck).await;
        reset(writer);
        assert_eq!(mesh.only_reason().await, reason);
        mesh.is_empty().await;
        drop(stuck);
    }
}

/// Writes until nothing more is taken, and the proxy holds bytes it cannot deliver.
async fn fill(writer: &mut tokio::net::TcpStream, _stuck: &tokio::net::TcpStream) -> usize {
    let chunk = pattern(64 << 10);
    let mut total = 0;
    while let Ok(written) = tokio::time::timeout(std::time::Duration::from_millis(300), writer.write(&chunk)).await {
        total += written.unwrap();
    }
    total
}

#[tokio::test]
async fn a_server_may_speak_first() {
    let mesh = Mesh::new(1);
    let (mut client, mut server) = pair(&mesh, "a").await;
    passes(&mut server, &mut client, b"220 welcome\r\n").await;
    passes(&mut client, &mut server, b"EHLO\r\n").await;
    drop((client, server));
    let record = &mesh.records(1).await[0];
    assert_eq!((record["bytes_sent"].as_u64(), record["bytes_received"].as_u64()), (Some(13), Some(6)), "{record}");
}

#[tokio::test]
async fn a_large_transfer_to_a_slow_reader_holds_one_buffer() {
    let mesh = Mesh::new(1);
    let (mut client, mut server) = pair(&mesh, "a").await;
    let sent = pattern(32 << 20);
    let expected = sent.clone();
    let writing = tokio::spawn(async move {
        client.write_all(&sent).await.unwrap();
        client.shutdown().await.unwrap();
        client
    });
    let (mut got, mut chunk) = (Vec::new(), vec![0; 50_000]);
    let mut most_held = 0;
    loop {
        let read = soon(server.read(&mut chunk)).await.unwrap();
        if read == 0 {
            break;
        }
        got.extend_from_slice(&chunk[..read]);
        most_held = most_held.max(mesh.proxy.pods()[0].buffered_bytes);
        tokio::task::yield_now().await;
    }
    assert!(got == expected, "other bytes arrived: {} of {}", got.len(), expected.len());
    assert!(most_held <= SIZES[2] as u64, "{most_held} bytes held for one direction");
    drop((writing.await.unwrap(), server));
    assert_eq!(mesh.only_reason().await, "completed");
    mesh.is_empty().await;
}

#[tokio::test]
async fn an_idle_connection_holds_no_buffer() {
    let mesh = Mesh::new(1);
    let (mut client, mut server) = pair(&mesh, "a").await;
    passes(&mut client, &mut server, &pattern(500_000)).await;
    until("the buffers to be given back", || mesh.metrics.buffer_lent() == 0).await;
    assert_eq!(mesh.proxy.registry().list(1, |_| true).await.total, 1);
}

#[tokio::test]
async fn readers_that_never_read_cost_the_budget_and_no_more() {
    let mesh = Mesh::new(1);
    let budget = (SIZES[2] + SIZES[0]) as u64;
    mesh.limits(PodLimits { buffered_bytes_max: budget, ..PodLimits::default() });
    let (listener, addr) = backend().await;
    let vip = mesh.pod_calling("a", &[addr], |_| {}).await;
    let mut stuck = Vec::new();
    for _ in 0..6 {
        let mut client = connect(vip).await;
        let (server, _) = soon(listener.accept()).await.unwrap();
        fill(&mut client, &server).await;
        stuck.push((client, server));
        assert!(mesh.proxy.pods()[0].buffered_bytes <= budget);
    }
    until("the budget to be reached", || mesh.metrics.budget_exceeded(Reason::PodBufferedBytesMax) > 0).await;
    // With the budget gone a connection of the same pod still carries bytes, unharmed, both ways, ends included.
    let (mut client, mut server) = (connect(vip).await, soon(listener.accept()).await.unwrap().0);
    let sent = pattern(3 << 20);
    for _ in 0..2 {
        let (expected, bytes) = (sent.clone(), sent.clone());
        let writing = tokio::spawn(async move {
            client.write_all(&bytes).await.unwrap();
            client
        });
        let mut got = vec![0; expected.len()];
        soon(server.read_exact(&mut got)).await.unwrap();
        assert!(got == expected, "other bytes arrived");
        (client, server) = (server, writing.await.unwrap());
    }
    soon(client.shutdown()).await.unwrap();
    assert_eq!(rest(&mut server).await, b"");
    drop((client, server));
    assert_eq!(mesh.only_reason().await, "completed");
    // And each stuck one gets all its bytes when its reader wakes up.
    for (mut client, mut server) in stuck {
        soon(client.shutdown()).await.unwrap();
        assert!(!rest(&mut server).await.is_empty());
        drop((client, server));
    }
    mesh.is_empty().await;
}
