//! What bounds the connections of the mesh: their age, their peers' patience, and streams that nobody reads.

use std::future::poll_fn;
use std::net::TcpListener as StdListener;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use heddle_identity::metrics::Side;
use heddle_identity::tls::no_server_name;
use heddle_identity::{Alpn, ClientConfigs, ExpectedIds};
use http::{Method, Request, StatusCode};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use super::mesh::{CALLED, Ca, Node, REQUEST};
use super::support::*;
use crate::{Config, ShardListeners};

#[tokio::test]
async fn a_connection_of_age_takes_no_more_streams() {
    let ca = Ca::new();
    // Half of it, at the least, is time enough for two requests.
    let age = Duration::from_secs(6);
    let here = Node::with(&ca, Config { mesh_connection_age_max: age, ..Config::default() });
    let there = Node::new(&ca);
    let called = there.called().await;
    let vip = here.caller(called, |s| s.ports[0].name = "http".into()).await;
    there.mesh.sockets.closed.store(true, SeqCst);
    let mut clients = Vec::new();
    let mut ask = async |handshakes| {
        let mut client = connect(vip).await;
        client.write_all(REQUEST).await.unwrap();
        clients.push(client);
        let asked = clients.len() as u32;
        until("the request", || there.mesh.proxy.pods().iter().map(|pod| pod.requests).sum::<u32>() == asked).await;
        assert_eq!(here.handshakes.completed(Side::Client), handshakes);
    };
    ask(1).await;
    ask(1).await;
    tokio::time::sleep(age + Duration::from_secs(2)).await;
    // What is under way on the old one goes on; what is new proves anew who it is.
    ask(2).await;
}

/// A peer that comes by HBONE to `there`, as `client`, and its connection's PINGs.
async fn hbone(there: &Node, port: std::net::SocketAddr) -> (SendRequest<Bytes>, h2::PingPong) {
    let own = there.lease("client").await;
    let expected = ExpectedIds::from(there.lease("server").await.id().clone());
    let config = ClientConfigs::new(&there.store).get(&own, &expected, Alpn::Hbone).unwrap();
    let connector = tokio_rustls::TlsConnector::from(config);
    let stream = connector.connect(no_server_name(), TcpStream::connect(port).await.unwrap()).await.unwrap();
    let (sender, mut connection) = h2::client::Builder::new().handshake(stream).await.unwrap();
    let ping_pong = connection.ping_pong().unwrap();
    tokio::spawn(async move {
        // Dropping the store's own key ends nothing here.
        let _own = own;
        connection.await
    });
    (sender, ping_pong)
}

fn connect_to(target: &str) -> Request<()> {
    Request::builder().method(Method::CONNECT).uri(target).body(()).unwrap()
}

#[tokio::test]
async fn hbone_answers_pings_while_nobody_reads_and_says_what_it_will_not_do() {
    let there = Node::new(&Ca::new());
    let port = StdListener::bind((CALLED.as_str(), 0)).unwrap();
    let hbone_port = port.local_addr().unwrap();
    there.attach("server", &CALLED, ShardListeners { hbone: vec![port], ..ShardListeners::default() }).await;
    let application = TcpListener::bind((CALLED.as_str(), 0)).await.unwrap();
    let target = application.local_addr().unwrap().to_string();
    let (mut sender, mut ping_pong) = hbone(&there, hbone_port).await;

    let (response, mut body) = sender.send_request(connect_to(&target), false).unwrap();
    assert_eq!(soon(response).await.unwrap().status(), StatusCode::OK);
    let (server, _) = soon(application.accept()).await.unwrap();
    // Nobody reads: the window closes, and stays closed.
    let mut sent = 0;
    while sent < 64 << 20 {
        body.reserve_capacity(64 << 10);
        let capacity = tokio::time::timeout(Duration::from_secs(1), poll_fn(|cx| body.poll_capacity(cx))).await;
        let Ok(Some(Ok(size))) = capacity else { break };
        body.send_data(Bytes::from(vec![0; size]), false).unwrap();
        sent += size;
    }
    assert!(sent < 64 << 20, "no back-pressure");
    soon(ping_pong.ping(h2::Ping::opaque())).await.unwrap();
    // Other streams of the same connection are not held up by it.
    let (response, _body) = sender.send_request(connect_to(&target), false).unwrap();
    assert_eq!(soon(response).await.unwrap().status(), StatusCode::OK);
    soon(application.accept()).await.unwrap();

    let other = format!("127.0.0.1:{}", application.local_addr().unwrap().port());
    let dead = format!("{}:{}", CALLED.as_str(), dead_port());
    for (request, status) in [
        (connect_to(&other), StatusCode::BAD_REQUEST),
        (connect_to(&format!("{}:15001", CALLED.as_str())), StatusCode::BAD_REQUEST),
        (connect_to("web:80"), StatusCode::BAD_REQUEST),
        (Request::get(format!("http://{target}/")).body(()).unwrap(), StatusCode::BAD_REQUEST),
        (connect_to(&dead), StatusCode::SERVICE_UNAVAILABLE),
    ] {
        let what = format!("{request:?}");
        let (response, _body) = sender.send_request(request, false).unwrap();
        assert_eq!(soon(response).await.unwrap().status(), status, "{what}");
    }
    drop(server);
}

/// A port of the called pod where nobody listens.
fn dead_port() -> u16 {
    let listener = StdListener::bind((CALLED.as_str(), 0)).unwrap();
    listener.local_addr().unwrap().port()
}
