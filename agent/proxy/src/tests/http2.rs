//! HTTP/2 and gRPC through the proxy: the test plays the client and the server with the `h2` crate, or frame by frame.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use heddle_model::mesh::PodLimits;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::support::*;
use crate::Config;

pub type Server = Connection<TcpStream, Bytes>;

pub async fn h2_pod(mesh: &Mesh, endpoints: &[SocketAddr]) -> SocketAddr {
    mesh.pod_calling("web", endpoints, |s| s.ports[0].name = "grpc".into()).await
}

pub async fn client(vip: SocketAddr) -> SendRequest<Bytes> {
    client_on(connect(vip).await).await
}

pub async fn client_on(stream: TcpStream) -> SendRequest<Bytes> {
    // One stream that is not read must not close the window of the others on the test's own side.
    let mut builder = h2::client::Builder::new();
    builder.initial_connection_window_size(1 << 20);
    let (sender, connection) = soon(builder.handshake(stream)).await.unwrap();
    tokio::spawn(async move {
        let _ = connection.await;
    });
    soon(sender.ready()).await.unwrap()
}

pub async fn server(listener: &TcpListener) -> Server {
    let stream = soon(listener.accept()).await.unwrap().0;
    soon(h2::server::Builder::new().enable_connect_protocol().handshake(stream)).await.unwrap()
}

pub async fn next(server: &mut Server) -> (Request<RecvStream>, SendResponse<Bytes>) {
    soon(server.accept()).await.expect("a stream").unwrap()
}

/// Goes on serving the connection, so that what was sent goes out and windows move.
pub fn keep_going(mut server: Server) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move { while let Some(Ok(_)) = server.accept().await {} })
}

pub fn get(path: &str) -> Request<()> {
    Request::get(format!("http://web{path}")).body(()).unwrap()
}

pub fn call(method: &str) -> Request<()> {
    Request::post(format!("http://web/shop.Cart/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap()
}

fn message(text: &str) -> Bytes {
    let mut bytes = vec![0];
    bytes.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
    bytes.extend(text.as_bytes());
    bytes.into()
}

fn grpc_ok() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    trailers
}

pub async fn data(stream: &mut RecvStream) -> Bytes {
    let data = soon(stream.data()).await.expect("data").unwrap();
    stream.flow_control().release_capacity(data.len()).unwrap();
    data
}

fn answer(respond: &mut SendResponse<Bytes>) -> SendStream<Bytes> {
    let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    respond.send_response(head, false).unwrap()
}

#[tokio::test]
async fn streams_of_all_clients_share_a_connection() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = h2_pod(&mesh, &[addr]).await;
    let (mut one, mut two) = (client(vip).await, client(vip).await);
    let asked: Vec<_> = (0..60)
        .map(|n| if n % 2 == 0 { &mut one } else { &mut two }.send_request(get(&format!("/{n}")), true).unwrap().0)
        .collect();
    let mut server = server(&listener).await;
    let mut seen = Vec::new();
    for _ in 0..60 {
        let (request, mut respond) = next(&mut server).await;
        assert_eq!(request.uri().authority().unwrap(), "web");
        seen.push(request.uri().path().to_owned());
        respond.send_response(Response::new(()), false).unwrap().send_data("ok".into(), true).unwrap();
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 60);
    let serving = keep_going(server);
    for response in asked {
        let response = soon(response).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(data(&mut response.into_body()).await, "ok");
    }
    assert_eq!(mesh.sockets.taken.load(SeqCst), 1, "one dial for all");
    let records = mesh.records(60).await;
    assert!(records.iter().all(|r| r["reason"] == "completed" && r["protocol"] == "HTTP/2" && r["status"] == 200));
    assert!(records.iter().all(|r| r["attempts"] == 1), "{records:?}");
    serving.abort();
}

#[tokio::test]
async fn a_grpc_call_streams_both_ways_and_ends_with_trailers() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = h2_pod(&mesh, &[addr]).await;
    let mut client = client(vip).await;
    let (response, mut sink) = client.send_request(call("Chat"), false).unwrap();
    let mut server = server(&listener).await;
    let (request, mut respond) = next(&mut server).await;
    assert_eq!(request.headers()["te"], "trailers");
    let serving = keep_going(server);
    let mut asked = request.into_body();
    let mut told = answer(&mut respond);
    let mut response = soon(response).await.unwrap().into_body();
    for n in 0..3 {
        sink.send_data(message(&format!("ping {n}")), false).unwrap();
        assert_eq!(data(&mut asked).await, message(&format!("ping {n}")));
        told.send_data(message("pong"), false).unwrap();
        assert_eq!(data(&mut response).await, message("pong"));
    }
    sink.send_data(Bytes::new(), true).unwrap();
    assert_eq!(data(&mut asked).await, "");
    assert!(soon(asked.data()).await.is_none());
    let mut trailers = grpc_ok();
    trailers.insert("x-cost", "3".parse().unwrap());
    told.send_trailers(trailers.clone()).unwrap();
    assert!(soon(response.data()).await.is_none());
    assert_eq!(soon(response.trailers()).await.unwrap(), Some(trailers));
    let record = &mesh.records(1).await[0];
    assert_eq!((&record["grpc_status"], &record["path"]), (&0.into(), &"/shop.Cart/Chat".into()));
    let registry = heddle_telemetry::Registry::new();
    registry.register(mesh.http.collector()).unwrap();
    let text = heddle_telemetry::encode::encode(&registry.gather(), heddle_telemetry::Format::Text);
    for (family, value) in [
        ("istio_request_messages_total{", " 3"),
        ("istio_response_messages_total{", " 3"),
        ("istio_requests_total{", " 1"),
    ] {
        let line = text.lines().find(|l| l.starts_with(family)).unwrap_or_else(|| panic!("{family}\n{text}"));
        assert!(
            line.ends_with(value)
                && line.contains("request_protocol=\"grpc\"")
                && line.contains("grpc_response_status=\"0\""),
            "{line}"
        );
    }
    serving.abort();
}

#[tokio::test]
async fn trailers_only_passes_and_is_what_grpc_gets_from_us() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = h2_pod(&mesh, &[addr]).await;
    let mut client = client(vip).await;
    let (response, _) = client.send_request(call("Get"), true).unwrap();
    let mut server = server(&listener).await;
    let (_, mut respond) = next(&mut server).await;
    let head =
        Response::builder().header("content-type", "application/grpc").header("grpc-status", "5").body(()).unwrap();
    respond.send_response(head, true).unwrap();
    let serving = keep_going(server);
    let response = soon(response).await.unwrap();
    assert!(response.body().is_end_stream() && response.headers()["grpc-status"] == "5");
    assert_eq!(mesh.records(1).await[0]["grpc_status"], 5);
    serving.abort();

    let mesh = Mesh::new(1);
    let vip = h2_pod(&mesh, &[dead_address().await]).await;
    let mut sender = self::client(vip).await;
    let (response, _) = sender.send_request(call("Get"), true).unwrap();
    let response = soon(response).await.unwrap();
    assert_eq!((response.status(), &response.headers()["grpc-status"]), (StatusCode::OK, &"14".parse().unwrap()));
    assert!(response.body().is_end_stream());
    let (response, _) = sender.send_request(get("/"), true).unwrap();
    let response = soon(response).await.unwrap();
    assert_eq!(
        (response.status(), &response.headers()["x-heddle-reason"]),
        (StatusCode::SERVICE_UNAVAILABLE, &"upstream_connect_refused".parse().unwrap())
    );
    let records = mesh.records(2).await;
    assert!(records.iter().all(|r| r["reason"] == "upstream_connect_refused"), "{records:?}");
}

#[tokio::test]
async fn requests_over_the_pods_budget_are_told_so() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = h2_pod(&mesh, &[addr]).await;
    mesh.limits(PodLimits { requests_max: 2, ..PodLimits::default() });
    let mut client = client(vip).await;
    let (first, mut sink) = client.send_request(call("Watch"), false).unwrap();
    let (_second, _sink) = client.send_request(call("Watch"), false).unwrap();
    let mut server = server(&listener).await;
    let (_, mut respond) = next(&mut server).await;
    let _other = next(&mut server).await;
    let serving = keep_going(server);
    let over = soon(client.send_request(call("Get"), true).unwrap().0).await.unwrap();
    assert_eq!((over.status(), &over.headers()["grpc-status"]), (StatusCode::OK, &"8".parse().unwrap()));
    assert!(over.body().is_end_stream(), "trailers only");
    let over = soon(client.send_request(get("/"), true).unwrap().0).await.unwrap();
    assert_eq!(
        (over.status(), &over.headers()["x-heddle-reason"]),
        (StatusCode::SERVICE_UNAVAILABLE, &"pod_requests_max".parse().unwrap())
    );
    let list = mesh.proxy.registry().list(10, |_| true).await;
    assert_eq!(list.connections[0].requests, 4, "two told off, two under way");
    assert_eq!(mesh.proxy.pods()[0].requests, 2);
    sink.send_data(message("half"), false).unwrap();
    let mut told = answer(&mut respond);
    told.send_data(message("well"), false).unwrap();
    let mut body = soon(first).await.unwrap().into_body();
    data(&mut body).await;
    let list = mesh.proxy.registry().list(10, |_| true).await;
    assert_eq!((list.connections[0].bytes_received, list.connections[0].bytes_sent), (9, 9), "while they live");
    drop((body, sink, _second, _sink));
    until("the places to come back", || mesh.proxy.pods()[0].requests == 0).await;
    serving.abort();
}

#[tokio::test]
async fn a_cancel_travels_to_the_server() {
    for begun in [false, true] {
        let mesh = Mesh::new(1);
        let (listener, addr) = backend().await;
        let vip = h2_pod(&mesh, &[addr]).await;
        let mut client = client(vip).await;
        let (response, mut sink) = client.send_request(call("Watch"), false).unwrap();
        let mut server = server(&listener).await;
        let (request, mut respond) = next(&mut server).await;
        let serving = keep_going(server);
        let mut told = None;
        if begun {
            told = Some(answer(&mut respond));
            drop(soon(response).await.unwrap());
        }
        sink.send_reset(Reason::CANCEL);
        let error = soon(request.into_body().data()).await.unwrap().unwrap_err();
        assert_eq!(error.reason(), Some(Reason::CANCEL));
        drop(told);
        assert_eq!(mesh.records(1).await[0]["reason"], "request_cancelled");
        serving.abort();
    }
}

#[tokio::test]
async fn a_client_that_is_gone_cancels_its_streams() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = h2_pod(&mesh, &[addr]).await;
    let (mut sender, connection) = soon(h2::client::handshake(connect(vip).await)).await.unwrap();
    let connection = tokio::spawn(async move {
        let _ = connection.await;
    });
    let (_response, _sink) = sender.send_request(call("Watch"), false).unwrap();
    let mut server = server(&listener).await;
    let (request, _respond) = next(&mut server).await;
    let serving = keep_going(server);
    connection.abort();
    let error = soon(request.into_body().data()).await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Some(Reason::CANCEL));
    assert_eq!(mesh.records(1).await[0]["reason"], "request_cancelled");
    serving.abort();
    mesh.is_empty().await;
}

#[tokio::test]
async fn a_reset_of_the_server_is_a_status_before_the_head_and_a_reset_behind_it() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = h2_pod(&mesh, &[addr]).await;
    let mut client = client(vip).await;
    let (response, _) = client.send_request(get("/"), true).unwrap();
    let mut server = server(&listener).await;
    let (_, mut respond) = next(&mut server).await;
    respond.send_reset(Reason::INTERNAL_ERROR);
    let (second, _) = client.send_request(get("/"), true).unwrap();
    let (_, mut respond) = next(&mut server).await;
    assert_eq!(soon(response).await.unwrap().status(), 502);
    let mut told = respond.send_response(Response::new(()), false).unwrap();
    told.send_data("half".into(), false).unwrap();
    let serving = keep_going(server);
    let mut body = soon(second).await.unwrap().into_body();
    assert_eq!(data(&mut body).await, "half");
    told.send_reset(Reason::ENHANCE_YOUR_CALM);
    let error = soon(body.data()).await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Some(Reason::ENHANCE_YOUR_CALM), "the code travels");
    let records = mesh.records(2).await;
    assert!(records.iter().all(|r| r["reason"] == "upstream_stream_reset"), "{records:?}");
    serving.abort();
}

/// What a server says and resets in one breath: an Envoy whose WebSocket ended, a server that gives up. The words come first.
#[tokio::test]
async fn what_came_before_a_reset_arrives_before_it() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = h2_pod(&mesh, &[addr]).await;
    let mut client = client(vip).await;
    let (response, _) = client.send_request(get("/"), true).unwrap();
    let (mut read, mut write) = soon(listener.accept()).await.unwrap().0.into_split();
    let serving = tokio::spawn(async move {
        write.write_all(&[frame(4, 0, 0, &[]), frame(4, 1, 0, &[])].concat()).await.unwrap();
        // The agent's preface and SETTINGS, then its HEADERS, may come in any cut: nothing is said before they are here.
        let mut seen = Vec::new();
        while !seen.windows(9).any(|w| w[3] == 1 && w[5..] == [0, 0, 0, 1]) {
            read.read_buf(&mut seen).await.unwrap();
        }
        let words = [frame(1, 4, 1, b"\x88"), frame(0, 0, 1, b"last "), frame(0, 0, 1, b"words")].concat();
        write.write_all(&[words, frame(3, 0, 1, &[0, 0, 0, 8])].concat()).await.unwrap();
        (read, write)
    });
    let mut body = soon(response).await.unwrap().into_body();
    let mut said = Vec::new();
    let error = loop {
        match soon(body.data()).await {
            Some(Ok(data)) => said.extend(data),
            Some(Err(error)) => break error,
            None => panic!("a cut body ended well behind {said:?}"),
        }
    };
    assert_eq!(String::from_utf8(said).unwrap(), "last words");
    assert_eq!(error.reason(), Some(Reason::CANCEL));
    assert_eq!(mesh.only_reason().await, "upstream_stream_reset");
    serving.abort();
}

#[tokio::test]
async fn a_refused_stream_is_sent_again() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = h2_pod(&mesh, &[addr]).await;
    let mut client = client(vip).await;
    let (response, _) = client.send_request(get("/"), true).unwrap();
    let mut server = server(&listener).await;
    next(&mut server).await.1.send_reset(Reason::REFUSED_STREAM);
    next(&mut server).await.1.send_response(Response::new(()), true).unwrap();
    let serving = keep_going(server);
    assert_eq!(soon(response).await.unwrap().status(), 200);
    serving.abort();
}

#[tokio::test]
async fn a_slow_reader_stops_its_server_and_no_other_stream() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = h2_pod(&mesh, &[addr]).await;
    let mut client = client(vip).await;
    let (slow, _) = client.send_request(get("/slow"), true).unwrap();
    let mut server = server(&listener).await;
    let (_, mut respond) = next(&mut server).await;
    let mut told = respond.send_response(Response::new(()), false).unwrap();
    let (quick, _) = client.send_request(get("/quick"), true).unwrap();
    let (_, mut respond) = next(&mut server).await;
    respond.send_response(Response::new(()), false).unwrap().send_data("ok".into(), true).unwrap();
    let serving = keep_going(server);
    // As much as the windows on the way take: far less than is offered.
    told.reserve_capacity(64 << 20);
    let mut sent = 0;
    while let Ok(Some(Ok(capacity))) =
        tokio::time::timeout(Duration::from_millis(300), std::future::poll_fn(|cx| told.poll_capacity(cx))).await
    {
        sent += capacity;
        told.send_data(vec![0; capacity].into(), false).unwrap();
    }
    assert!(sent < 2 << 20, "{sent} bytes went somewhere");
    assert_eq!(data(&mut soon(quick).await.unwrap().into_body()).await, "ok");
    let mut body = soon(slow).await.unwrap().into_body();
    let mut got = 0;
    while got < sent {
        got += data(&mut body).await.len();
    }
    serving.abort();
}

#[tokio::test]
async fn interim_responses_pass() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = h2_pod(&mesh, &[addr]).await;
    let mut client = client(vip).await;
    let (mut response, _) = client.send_request(get("/"), true).unwrap();
    let mut server = server(&listener).await;
    let (_, mut respond) = next(&mut server).await;
    let hints = Response::builder().status(103).header("link", "</x.css>").body(()).unwrap();
    respond.send_informational(hints).unwrap();
    let serving = keep_going(server);
    let interim = soon(std::future::poll_fn(|cx| response.poll_informational(cx))).await.unwrap().unwrap();
    assert_eq!((interim.status().as_u16(), &interim.headers()["link"]), (103, &"</x.css>".parse().unwrap()));
    respond.send_response(Response::new(()), true).unwrap();
    assert_eq!(soon(response).await.unwrap().status(), 200);
    serving.abort();
}

#[tokio::test]
async fn a_cancel_is_felt_while_there_is_no_server_yet() {
    for (name, declared) in [("grpc", "stream"), ("http1", "connection")] {
        let mesh = Mesh::with(crate::Config { connect_timeout: PATIENCE, ..crate::Config::default() });
        let (_listener, _waiting, addr) = silent_address().await;
        let vip = mesh.pod_calling("web", &[addr], |s| s.ports[0].name = name.into()).await;
        let mut client = client(vip).await;
        let (_response, mut sink) = client.send_request(get("/"), false).unwrap();
        until("the dial", || mesh.sockets.taken.load(SeqCst) > 0).await;
        sink.send_reset(Reason::CANCEL);
        assert_eq!(mesh.only_reason().await, "request_cancelled", "for a {declared}");
    }
}

#[tokio::test]
async fn a_refused_head_request_gets_no_body() {
    let mesh = Mesh::new(1);
    let vip = h2_pod(&mesh, &[dead_address().await]).await;
    let mut client = client(vip).await;
    let request = Request::builder().method(Method::HEAD).uri("http://web/").body(()).unwrap();
    let response = soon(client.send_request(request, true).unwrap().0).await.unwrap();
    assert_eq!(response.status(), 503);
    assert!(response.body().is_end_stream(), "{response:?}");
    assert_eq!(mesh.records(1).await[0]["bytes_sent"], 0);
}

#[tokio::test]
async fn extended_connect_needs_the_servers_leave() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = h2_pod(&mesh, &[addr]).await;
    let mut client = client(vip).await;
    let mut request = Request::builder().method(Method::CONNECT).uri("http://web/chat").body(()).unwrap();
    request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
    let (response, _sink) = client.send_request(request, false).unwrap();
    let stream = soon(listener.accept()).await.unwrap().0;
    let _serving = keep_going(soon(h2::server::handshake(stream)).await.unwrap());
    assert_eq!(soon(response).await.unwrap().status(), StatusCode::NOT_IMPLEMENTED);
    assert_eq!(mesh.records(1).await[0]["detail"], "extended_connect");
}

#[tokio::test]
async fn nobody_speaks_in_the_agents_name() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = h2_pod(&mesh, &[addr]).await;
    let mut client = client(vip).await;
    let mut ours = HeaderMap::new();
    for name in ["x-heddle-attempt", "x-heddle-reason", "x_heddle_shadow"] {
        ours.insert(name, "forged".parse().unwrap());
    }
    ours.insert("x-cost", "3".parse().unwrap());
    let mut request = call("Chat");
    request.headers_mut().extend(ours.clone());
    let (mut response, mut sink) = client.send_request(request, false).unwrap();
    sink.send_trailers(ours.clone()).unwrap();
    let mut server = server(&listener).await;
    let (request, mut respond) = next(&mut server).await;
    let serving = keep_going(server);
    let is_clean = |what: &str, fields: &HeaderMap| {
        let names: Vec<_> = fields.keys().map(http::HeaderName::as_str).collect();
        assert!(names.iter().all(|n| !n.contains("heddle")) && fields["x-cost"] == "3", "{what}: {names:?}");
    };
    is_clean("request", request.headers());
    let mut asked = request.into_body();
    assert!(soon(asked.data()).await.is_none());
    is_clean("request trailers", &soon(asked.trailers()).await.unwrap().unwrap());
    let mut hints = Response::builder().status(103).body(()).unwrap();
    hints.headers_mut().extend(ours.clone());
    respond.send_informational(hints).unwrap();
    let interim = soon(std::future::poll_fn(|cx| response.poll_informational(cx))).await.unwrap().unwrap();
    is_clean("interim response", interim.headers());
    let mut head = Response::new(());
    head.headers_mut().extend(ours.clone());
    let mut told = respond.send_response(head, false).unwrap();
    told.send_trailers(ours).unwrap();
    let response = soon(response).await.unwrap();
    is_clean("response", response.headers());
    let mut body = response.into_body();
    assert!(soon(body.data()).await.is_none());
    is_clean("response trailers", &soon(body.trailers()).await.unwrap().unwrap());
    serving.abort();
}

#[tokio::test]
async fn interim_responses_without_end_are_cut_off() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = h2_pod(&mesh, &[addr]).await;
    let mut client = client(vip).await;
    let (response, _) = client.send_request(get("/"), true).unwrap();
    let mut server = server(&listener).await;
    let (_, mut respond) = next(&mut server).await;
    for _ in 0..17 {
        respond.send_informational(Response::builder().status(102).body(()).unwrap()).unwrap();
    }
    let serving = keep_going(server);
    assert_eq!(soon(response).await.unwrap().status(), 502);
    let record = &mesh.records(1).await[0];
    assert_eq!((&record["reason"], &record["detail"]), (&"response_malformed".into(), &"too_many_interim".into()));
    serving.abort();
}

#[tokio::test]
async fn extended_connect_is_a_tunnel_until_both_ends() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = h2_pod(&mesh, &[addr]).await;
    let mut client = client(vip).await;
    let mut request = Request::builder().method(Method::CONNECT).uri("http://web/chat").body(()).unwrap();
    request.headers_mut().insert("sec-websocket-version", "13".parse().unwrap());
    request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
    let (response, mut sink) = client.send_request(request, false).unwrap();
    let mut server = server(&listener).await;
    let (request, mut respond) = next(&mut server).await;
    assert_eq!(request.extensions().get::<h2::ext::Protocol>().unwrap().as_str(), "websocket");
    let serving = keep_going(server);
    let mut told = respond.send_response(Response::new(()), false).unwrap();
    let mut body = soon(response).await.unwrap().into_body();
    told.send_data("bye".into(), true).unwrap();
    assert_eq!(data(&mut body).await, "bye");
    assert!(soon(body.data()).await.is_none());
    // The other direction is as open as ever.
    sink.send_data("late".into(), true).unwrap();
    assert_eq!(data(&mut request.into_body()).await, "late");
    assert_eq!(mesh.only_reason().await, "completed");
    serving.abort();
}

#[tokio::test]
async fn the_preface_is_detected_where_nothing_is_declared() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = mesh.pod_calling("web", &[addr], |s| s.ports[0].name = "".into()).await;
    let mut client = client(vip).await;
    let (response, _) = client.send_request(get("/"), true).unwrap();
    let mut server = server(&listener).await;
    next(&mut server).await.1.send_response(Response::new(()), true).unwrap();
    let serving = keep_going(server);
    assert_eq!(soon(response).await.unwrap().status(), 200);
    assert_eq!(mesh.sockets.taken.load(SeqCst), 1, "the connection that was dialled meanwhile serves");
    serving.abort();
}

#[tokio::test]
async fn a_server_that_greets_with_settings_does_not_speak_first() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = mesh.pod_calling("web", &[addr], |s| s.ports[0].name = "".into()).await;
    let stream = connect(vip).await;
    let mut greeting = soon(listener.accept()).await.unwrap().0;
    // As grpcio does: before the client has said a word.
    soon(greeting.write_all(&frame(4, 0, 0, &[0, 3, 0, 0, 0, 100]))).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let (mut sender, connection) = soon(h2::client::handshake(stream)).await.unwrap();
    tokio::spawn(async move {
        let _ = connection.await;
    });
    let _asked = sender.send_request(get("/seen"), true).unwrap();
    let mut got = vec![0; PREFACE.len()];
    soon(greeting.read_exact(&mut got)).await.unwrap();
    assert_eq!(got, PREFACE);
    drop((greeting, listener));
    assert_eq!(mesh.records(1).await[0]["path"], "/seen", "parsed, not copied");
}

#[tokio::test]
async fn a_client_without_a_stream_is_told_goodbye() {
    let mesh = Mesh::with(Config { client_idle_timeout: Duration::from_secs(1), ..Config::default() });
    let (listener, addr) = backend().await;
    let vip = h2_pod(&mesh, &[addr]).await;
    let (mut sender, connection) = soon(h2::client::handshake(connect(vip).await)).await.unwrap();
    let connection = tokio::spawn(connection);
    let (response, _) = sender.send_request(get("/"), true).unwrap();
    let mut server = server(&listener).await;
    let (_, mut respond) = next(&mut server).await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(!connection.is_finished(), "a stream is under way");
    respond.send_response(Response::new(()), true).unwrap();
    let serving = keep_going(server);
    assert_eq!(soon(response).await.unwrap().status(), 200);
    // The client's own handle keeps the connection: only a GOAWAY ends it, and ends it cleanly.
    soon(connection).await.unwrap().unwrap();
    assert!(soon(std::future::poll_fn(|cx| sender.poll_ready(cx))).await.is_err());
    until("the end", || mesh.proxy.pods()[0].connections == 0).await;
    serving.abort();

    // One that does not listen is closed all the same.
    let mut deaf = connect(vip).await;
    soon(deaf.write_all(&[PREFACE, &frame(4, 0, 0, &[]), &frame(4, 1, 0, &[])].concat())).await.unwrap();
    let told = rest(&mut deaf).await;
    assert!(told.windows(9).any(|w| w[3] == 7 && w[5..9] == [0; 4]), "a GOAWAY before the end: {told:x?}");
    mesh.is_empty().await;
}

#[tokio::test]
async fn a_drain_lets_streams_end() {
    let mesh = Mesh::new(1);
    let (listener, addr) = backend().await;
    let vip = h2_pod(&mesh, &[addr]).await;
    let mut client = client(vip).await;
    let (response, _) = client.send_request(get("/"), true).unwrap();
    let mut server = server(&listener).await;
    let (_, mut respond) = next(&mut server).await;
    let drained = mesh.proxy.drain(std::time::Instant::now() + PATIENCE);
    let served = async {
        respond.send_response(Response::new(()), true).unwrap();
        let serving = keep_going(server);
        assert_eq!(soon(response).await.unwrap().status(), 200);
        serving.abort();
    };
    let (report, ()) = soon(async { tokio::join!(drained, served) }).await;
    assert!(report.cut.is_empty(), "{report:?}");
}

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}
