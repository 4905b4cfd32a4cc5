//! What HTTP/2 connections may hold: bounded by their pod's budget, no stream stopped by another that nobody reads.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use heddle_http::retry::REPLAY_BYTES_MAX;
use heddle_model::mesh::PodLimits;
use heddle_telemetry::Reason;
use http::{Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::support::*;

async fn h2_pod(mesh: &Mesh, name: &str, endpoints: &[SocketAddr]) -> SocketAddr {
    mesh.pod_calling(name, endpoints, |s| s.ports[0].name = "grpc".into()).await
}

/// A client that takes any number of bytes.
async fn client(vip: SocketAddr) -> (SendRequest<Bytes>, JoinHandle<()>) {
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(1 << 30).initial_connection_window_size(1 << 30).max_send_buffer_size(1 << 30);
    let (sender, connection) = soon(builder.handshake(connect(vip).await)).await.unwrap();
    let driving = tokio::spawn(async move {
        let _ = connection.await;
    });
    (soon(sender.ready()).await.unwrap(), driving)
}

type Accepted = (Request<RecvStream>, SendResponse<Bytes>);

/// A server that hands over the streams of all its connections.
fn serve(listener: TcpListener) -> tokio::sync::mpsc::UnboundedReceiver<Accepted> {
    let (sender, streams) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(connection(stream, sender.clone()));
        }
    });
    streams
}

async fn connection(stream: TcpStream, to: tokio::sync::mpsc::UnboundedSender<Accepted>) {
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(1000).initial_connection_window_size(1 << 30).data_frame_budget(usize::MAX);
    let Ok(mut connection) = builder.handshake(stream).await else { return };
    while let Some(Ok(accepted)) = connection.accept().await {
        if to.send(accepted).is_err() {
            return;
        }
    }
}

fn get(path: &str) -> Request<()> {
    Request::get(format!("http://web{path}")).body(()).unwrap()
}

fn post() -> Request<()> {
    Request::post("http://web/").body(()).unwrap()
}

async fn next(streams: &mut tokio::sync::mpsc::UnboundedReceiver<Accepted>) -> Accepted {
    soon(streams.recv()).await.unwrap()
}

/// Reads a body to its end; how many bytes.
async fn drain(body: &mut RecvStream) -> usize {
    let mut count = 0;
    while let Some(data) = soon(body.data()).await {
        let length = data.unwrap().len();
        body.flow_control().release_capacity(length).unwrap();
        count += length;
    }
    count
}

/// Sends `length` bytes as the window allows.
fn send(mut sink: SendStream<Bytes>, length: usize) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut left = length;
        while left > 0 {
            sink.reserve_capacity(left);
            // The test may be over before all is sent.
            let Some(Ok(capacity)) = std::future::poll_fn(|cx| sink.poll_capacity(cx)).await else { return };
            let size = capacity.min(left);
            left -= size;
            sink.send_data(vec![7; size].into(), left == 0).unwrap();
        }
    })
}

fn buffered(mesh: &Mesh, pod: &str) -> u64 {
    mesh.proxy.pods().iter().find(|p| p.uid.as_str() == pod).unwrap().buffered_bytes
}

/// Waits until the pod holds so much, and no more comes.
async fn settled(mesh: &Mesh, pod: &str, least: u64) -> u64 {
    until("bytes to be held", || buffered(mesh, pod) >= least).await;
    let mut last = 0;
    loop {
        let now = buffered(mesh, pod);
        if now == last {
            return now;
        }
        last = now;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

#[tokio::test]
async fn uploads_nobody_reads_are_held_within_the_budget_and_complete_when_they_are_read() {
    const CONNECTIONS: usize = 12;
    const STREAMS: usize = 8;
    const LENGTH: usize = 300 << 10;
    const BUDGET: u64 = 2 << 20;
    let mesh = Mesh::new(1);
    mesh.limits(PodLimits { buffered_bytes_max: BUDGET, ..PodLimits::default() });
    let ((stuck, stuck_addr), (fine, fine_addr)) = (backend().await, backend().await);
    let vip = h2_pod(&mesh, "greedy", &[stuck_addr]).await;
    let quiet = h2_pod(&mesh, "quiet", &[fine_addr]).await;
    let (mut stuck, mut fine) = (serve(stuck), serve(fine));
    let (mut clients, mut uploads, mut responses, mut bodies) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..CONNECTIONS {
        let (mut sender, driving) = client(vip).await;
        for _ in 0..STREAMS {
            let (response, sink) = sender.send_request(post(), false).unwrap();
            responses.push(response);
            uploads.push(send(sink, LENGTH));
        }
        clients.push((sender, driving));
    }
    for _ in 0..CONNECTIONS * STREAMS {
        bodies.push(next(&mut stuck).await);
    }
    let held = settled(&mesh, "greedy", BUDGET / 2).await;
    assert!(held <= BUDGET, "{held}");
    until("the budget to be reached", || mesh.metrics.budget_exceeded(Reason::PodBufferedBytesMax) > 0).await;
    // Another pod is not disturbed.
    let (mut other, _) = client(quiet).await;
    let (response, sink) = other.send_request(post(), false).unwrap();
    let upload = send(sink, 1 << 20);
    let (request, mut respond) = next(&mut fine).await;
    assert_eq!(drain(&mut request.into_body()).await, 1 << 20);
    respond.send_response(Response::new(()), true).unwrap();
    assert_eq!(soon(response).await.unwrap().status(), 200);
    soon(upload).await.unwrap();
    assert!(buffered(&mesh, "quiet") < 1 << 20, "what it may send for having been fast");
    drop(other);
    // All complete when it is read, and everything comes back.
    let mut reading = tokio::task::JoinSet::new();
    for (request, mut respond) in bodies {
        reading.spawn(async move {
            let count = drain(&mut request.into_body()).await;
            respond.send_response(Response::new(()), true).unwrap();
            count
        });
    }
    while let Some(count) = soon(reading.join_next()).await {
        assert_eq!(count.unwrap(), LENGTH);
    }
    for (upload, response) in uploads.into_iter().zip(responses) {
        soon(upload).await.unwrap();
        assert_eq!(soon(response).await.unwrap().status(), 200);
    }
    drop(clients);
    until("the budget to come back", || mesh.proxy.pods().iter().all(|p| p.buffered_bytes == 0)).await;
}

#[tokio::test]
async fn streams_that_nobody_reads_do_not_stop_the_next_one() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = h2_pod(&mesh, "web", &[addr]).await;
    let mut server = serve(listener);
    // Downloads: of a client whose windows are small, from the connection to the server that all clients share.
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(1000);
    let (mut slow, connection) = soon(builder.handshake::<_, Bytes>(connect(vip).await)).await.unwrap();
    tokio::spawn(connection);
    let mut stalled = Vec::new();
    for _ in 0..60 {
        let (response, _) = slow.send_request(get("/slow"), true).unwrap();
        let (_, mut respond) = next(&mut server).await;
        send(respond.send_response(Response::new(()), false).unwrap(), 1 << 20);
        stalled.push(soon(response).await.unwrap());
    }
    // Uploads: streams of one client, to a server that reads only one of them.
    let (mut fast, _driving) = client(vip).await;
    let mut unread = Vec::new();
    for _ in 0..60 {
        let (response, sink) = fast.send_request(post(), false).unwrap();
        unread.push((response, send(sink, 1 << 20), next(&mut server).await));
    }
    settled(&mesh, "web", 60 * (60 << 10)).await;
    for sender in [&mut slow, &mut fast] {
        let (response, sink) = sender.send_request(post(), false).unwrap();
        let upload = send(sink, 500 << 10);
        let (request, mut respond) = next(&mut server).await;
        assert_eq!(drain(&mut request.into_body()).await, 500 << 10);
        respond.send_response(Response::new(()), false).unwrap().send_data("fine".into(), true).unwrap();
        soon(upload).await.unwrap();
        assert_eq!(drain(&mut soon(response).await.unwrap().into_body()).await, 4);
    }
    drop((stalled, unread, slow, fast));
    until("the budget to come back", || buffered(&mesh, "web") == 0).await;
}

#[tokio::test]
async fn responses_a_client_does_not_take_off_its_socket_are_bounded() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = h2_pod(&mesh, "web", &[addr]).await;
    let mut server = serve(listener);
    // Windows without end, and nobody who reads: every response could be handed over at once.
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(1 << 30).initial_connection_window_size(1 << 30);
    let socket = connect(vip).await;
    let (mut sender, mut connection) = soon(builder.handshake::<_, Bytes>(socket)).await.unwrap();
    let mut asked = Vec::new();
    for _ in 0..100 {
        asked.push(sender.send_request(get("/"), true).unwrap().0);
    }
    let mut sending = Vec::new();
    for n in 0..100 {
        let accepted = async {
            tokio::select! {
                accepted = next(&mut server) => accepted,
                // Only until the requests are out.
                _ = &mut connection, if n < 1 => unreachable!(),
            }
        };
        let (_, mut respond) = accepted.await;
        sending.push(send(respond.send_response(Response::new(()), false).unwrap(), 1 << 20));
    }
    let held = settled(&mesh, "web", 1 << 20).await;
    // 64 KiB handed over, a window of each stream of the server's, and one that is wide while bytes flow: not 64 KiB more for
    // each stream.
    let most = (64 << 10) + 100 * (64 << 10) + (1 << 20) + (32 << 10);
    assert!(held <= most, "{held} of {most}");
    let reading_all = tokio::spawn(connection);
    let mut reading = tokio::task::JoinSet::new();
    for response in asked {
        reading.spawn(async move { drain(&mut soon(response).await.unwrap().into_body()).await });
    }
    while let Some(count) = soon(reading.join_next()).await {
        assert_eq!(count.unwrap(), 1 << 20);
    }
    drop(sender);
    soon(reading_all).await.unwrap().unwrap();
    until("the budget to come back", || buffered(&mesh, "web") == 0).await;
}

#[tokio::test]
async fn many_small_messages_to_a_slow_reader_cost_their_bytes_and_no_connection() {
    const MESSAGES: usize = 40_000;
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = h2_pod(&mesh, "web", &[addr]).await;
    let mut server = serve(listener);
    let (mut sender, _driving) = client(vip).await;
    let (response, mut sink) = sender.send_request(post(), false).unwrap();
    // A frame each, as gRPC libraries send them.
    for n in 0..MESSAGES {
        sink.send_data(Bytes::from_static(b"\0\0\0\0\x03abc"), n == MESSAGES - 1).unwrap();
    }
    let (request, mut respond) = next(&mut server).await;
    let held = settled(&mesh, "web", 48 << 10).await;
    // What waits, and what is kept for another attempt.
    assert!(held <= (80 << 10) + REPLAY_BYTES_MAX as u64, "{held}");
    assert_eq!(drain(&mut request.into_body()).await, MESSAGES * 8);
    respond.send_response(Response::new(()), true).unwrap();
    assert_eq!(soon(response).await.unwrap().status(), 200);
    until("the budget to come back", || buffered(&mesh, "web") == 0).await;
}

#[tokio::test]
async fn budget_that_comes_back_is_used_by_those_who_found_none() {
    let mesh = Mesh::new(1);
    mesh.limits(PodLimits { buffered_bytes_max: 0, ..PodLimits::default() });
    let (listener, addr) = backend().await;
    let vip = h2_pod(&mesh, "web", &[addr]).await;
    let mut server = serve(listener);
    let (mut sender, _driving) = client(vip).await;
    let mut unread = Vec::new();
    for _ in 0..4 {
        let (response, sink) = sender.send_request(post(), false).unwrap();
        unread.push((response, send(sink, 1 << 20), next(&mut server).await));
    }
    // The lean window is all there is; what is under way fills it.
    until("the budget to be missed", || mesh.metrics.budget_exceeded(Reason::PodBufferedBytesMax) > 0).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    let (response, sink) = sender.send_request(post(), false).unwrap();
    let upload = send(sink, 1 << 10);
    let (request, mut respond) = next(&mut server).await;
    let mut body = request.into_body();
    tokio::time::timeout(Duration::from_millis(1500), body.data()).await.unwrap_err();
    assert_eq!(buffered(&mesh, "web"), 0);
    mesh.limits(PodLimits::default());
    assert_eq!(drain(&mut body).await, 1 << 10);
    respond.send_response(Response::new(()), true).unwrap();
    assert_eq!(soon(response).await.unwrap().status(), 200);
    soon(upload).await.unwrap();
}
