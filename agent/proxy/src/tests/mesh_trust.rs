//! How long a connected peer is believed: it proved who it is once, by a certificate that ends and a root that may be withdrawn.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use heddle_identity::metrics::Side;
use heddle_identity::tls::no_server_name;
use heddle_identity::{Alpn, ClientConfigs, ExpectedIds, Lease, Roots, SpiffeId};
use http::{Request, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;

use super::http2::{PREFACE, frame};
use super::mesh::{CALLED, Ca, Node, REQUEST, read_until};
use super::support::*;
use crate::{Config, ShardListeners};

/// A called pod, its application, and a peer that is connected by HBONE.
struct Connected {
    there: Node,
    port: SocketAddr,
    application: TcpListener,
    target: String,
}

/// A byte stream, and the application's end of it.
struct Bytestream {
    sink: SendStream<Bytes>,
    _source: RecvStream,
    server: TcpStream,
}

impl Bytestream {
    async fn passes(&mut self, bytes: &'static [u8]) {
        self.sink.send_data(Bytes::from_static(bytes), false).unwrap();
        let mut got = vec![0; bytes.len()];
        soon(self.server.read_exact(&mut got)).await.unwrap();
        assert_eq!(got, bytes);
    }
}

impl Connected {
    async fn new(ca: &Arc<Ca>, config: Config) -> Self {
        let there = Node::with(ca, config);
        let listener = StdListener::bind((CALLED.as_str(), 0)).unwrap();
        let port = listener.local_addr().unwrap();
        there.attach("server", &CALLED, ShardListeners { hbone: vec![listener], ..ShardListeners::default() }).await;
        let application = TcpListener::bind((CALLED.as_str(), 0)).await.unwrap();
        let target = application.local_addr().unwrap().to_string();
        Self { there, port, application, target }
    }

    async fn peer(&self, from: &Node) -> SendRequest<Bytes> {
        peer(from, Alpn::Hbone, self.port).await
    }

    /// Roots that count from now on.
    fn trusts(&self, roots: &[&Arc<Ca>]) {
        trusts(&self.there, roots);
    }

    fn ask(&self, peer: &mut SendRequest<Bytes>) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        peer.send_request(Request::connect(&self.target).body(()).unwrap(), false)
    }

    /// Another stream on the connection; none if it takes no more.
    async fn open(&self, peer: &SendRequest<Bytes>) -> Option<Bytestream> {
        let mut peer = soon(peer.clone().ready()).await.ok()?;
        let (response, sink) = self.ask(&mut peer).ok()?;
        let response = match soon(response).await {
            Ok(response) => response,
            Err(error) => {
                let is_refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
                assert!(error.is_go_away() || is_refused, "{error:?}");
                return None;
            }
        };
        assert_eq!(response.status(), StatusCode::OK);
        let (server, _) = soon(self.application.accept()).await.unwrap();
        let mut opened = Bytestream { sink, _source: response.into_body(), server };
        opened.passes(b"open").await;
        Some(opened)
    }

    async fn until_closed(&self) {
        until("the connection to be closed", || self.there.mesh.proxy.pods().iter().all(|pod| pod.connections == 0))
            .await;
    }
}

/// A connection to a door of the called pod, by the newest certificate of `from`.
async fn wire(from: &Node, alpn: Alpn, door: SocketAddr) -> (TlsStream<TcpStream>, Lease) {
    let own = from.lease("client").await;
    let server = ExpectedIds::from("spiffe://cluster.local/ns/shop/sa/server".parse::<SpiffeId>().unwrap());
    let config = ClientConfigs::new(&from.store).get(&own, &server, alpn).unwrap();
    let connector = tokio_rustls::TlsConnector::from(config);
    (soon(connector.connect(no_server_name(), connect(door).await)).await.unwrap(), own)
}

async fn peer(from: &Node, alpn: Alpn, door: SocketAddr) -> SendRequest<Bytes> {
    let (wire, own) = wire(from, alpn, door).await;
    let (sender, connection) = h2::client::handshake(wire).await.unwrap();
    tokio::spawn(async move {
        let _own = own;
        connection.await
    });
    sender
}

/// Roots that count at `node` from now on.
fn trusts(node: &Node, roots: &[&Arc<Ca>]) {
    let roots = Roots::new(roots.iter().map(|ca| ca.root.clone()).collect()).unwrap();
    let domain = "cluster.local".parse().unwrap();
    node.store.bundles().set(&domain, Some(Arc::new(roots)));
}

/// Waits until the connection takes no more streams.
async fn told_to_leave(connected: &Connected, peer: &SendRequest<Bytes>) {
    until_refused(async || connected.open(peer).await.is_some()).await;
}

async fn until_refused(takes: impl AsyncFn() -> bool) {
    let start = Instant::now();
    while takes().await {
        assert!(start.elapsed() < PATIENCE, "it takes streams for ever");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A called pod at the application's own port. Its agent answers by itself: the application would be the listener.
struct OwnPort {
    there: Node,
    port: SocketAddr,
}

impl OwnPort {
    async fn new(ca: &Arc<Ca>, config: Config) -> Self {
        let there = Node::with(ca, config);
        let port = there.called().await;
        there.mesh.sockets.refuse.store(true, SeqCst);
        Self { there, port }
    }

    async fn peer(&self, from: &Node) -> SendRequest<Bytes> {
        peer(from, Alpn::Heddle, self.port).await
    }

    /// Whether a request on this connection is taken.
    async fn takes(&self, peer: &SendRequest<Bytes>) -> bool {
        let Ok(mut peer) = soon(peer.clone().ready()).await else { return false };
        let request = Request::get("http://web/a").body(()).unwrap();
        let Ok((response, _)) = peer.send_request(request, true) else { return false };
        match soon(response).await {
            Ok(response) => {
                assert_eq!(response.headers()["x-heddle-reason"], "socket_unavailable", "{response:?}");
                true
            }
            Err(error) => {
                let is_refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
                assert!(error.is_go_away() || is_refused, "{error:?}");
                false
            }
        }
    }

    /// Waits until it takes no more, and is closed.
    async fn told_to_leave(&self, peer: &SendRequest<Bytes>) {
        until_refused(async || self.takes(peer).await).await;
        until("it to be closed", || self.there.mesh.proxy.pods().iter().all(|pod| pod.connections == 0)).await;
    }
}

#[tokio::test]
async fn at_the_own_port_a_certificate_that_ended_opens_no_more_streams() {
    let ca = Ca::new();
    let own_port = OwnPort::new(&ca, Config::default()).await;
    ca.lifetime.store(7, SeqCst);
    let start = Instant::now();
    let here = Node::new(&ca);
    let peer = own_port.peer(&here).await;
    here.issuing.abort();
    assert!(own_port.takes(&peer).await, "positive control: it is good");
    own_port.told_to_leave(&peer).await;
    assert!(start.elapsed() > Duration::from_secs(1), "{:?}", start.elapsed());
}

#[tokio::test]
async fn at_the_own_port_a_root_that_is_withdrawn_opens_no_more_streams() {
    let (ca, other) = (Ca::new(), Ca::new());
    let own_port = OwnPort::new(&ca, Config::default()).await;
    let here = Node::new(&ca);
    let peer = own_port.peer(&here).await;
    trusts(&own_port.there, &[&ca, &other]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(own_port.takes(&peer).await, "positive control: roots that overlap change nothing");
    trusts(&own_port.there, &[&other]);
    own_port.told_to_leave(&peer).await;
}

#[tokio::test]
async fn at_the_own_port_an_accepted_connection_has_an_age() {
    let ca = Ca::new();
    let age = Duration::from_secs(4);
    let own_port = OwnPort::new(&ca, Config { mesh_connection_age_max: age, ..Config::default() }).await;
    let here = Node::new(&ca);
    let start = Instant::now();
    let peer = own_port.peer(&here).await;
    assert!(own_port.takes(&peer).await, "positive control: it is young");
    own_port.told_to_leave(&peer).await;
    assert!(start.elapsed() >= age / 2, "{:?}", start.elapsed());
    let again = own_port.peer(&here).await;
    assert!(own_port.takes(&again).await, "another connection is as good as the first was");
}

#[tokio::test]
async fn a_certificate_that_ended_opens_no_more_streams() {
    let ca = Ca::new();
    let connected = Connected::new(&ca, Config::default()).await;
    ca.lifetime.store(7, SeqCst);
    let start = Instant::now();
    let here = Node::new(&ca);
    let peer = connected.peer(&here).await;
    here.issuing.abort();
    let mut before = connected.open(&peer).await.expect("positive control: it is good");
    told_to_leave(&connected, &peer).await;
    assert!(start.elapsed() > Duration::from_secs(1), "{:?}", start.elapsed());
    // What is open goes on to its own end, and the connection with it.
    before.passes(b"as before").await;
    assert!(connected.open(&peer).await.is_none());
    drop(before);
    connected.until_closed().await;
}

#[tokio::test]
async fn a_root_that_is_withdrawn_opens_no_more_streams_and_what_is_open_has_a_grace() {
    let (ca, other) = (Ca::new(), Ca::new());
    let grace = Duration::from_secs(6);
    let connected = Connected::new(&ca, Config { mesh_withdrawn_grace: grace, ..Config::default() }).await;
    let here = Node::new(&ca);
    let peer = connected.peer(&here).await;
    let mut open = connected.open(&peer).await.expect("positive control: it is good");
    // Roots that overlap change nothing, though all are looked at again.
    connected.trusts(&[&ca, &other]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(connected.open(&peer).await.is_some());
    connected.trusts(&[&other]);
    let withdrawn = Instant::now();
    told_to_leave(&connected, &peer).await;
    open.passes(b"in its grace").await;
    assert!(withdrawn.elapsed() < grace, "positive control");
    let mut server = open.server;
    is_reset(&mut server).await;
    assert!(withdrawn.elapsed() >= grace, "{:?}", withdrawn.elapsed());
    connected.until_closed().await;
    connected.there.mesh.record("of what its grace ended", |record| record["reason"] == "tls_unknown_root").await;
}

/// Opens a byte stream frame by frame, whatever it was told; whether the server took it.
async fn insists(wire: &mut TlsStream<TcpStream>, stream: u32, target: &str) -> bool {
    let authority = [&[1, u8::try_from(target.len()).unwrap()], target.as_bytes()].concat();
    // Not indexed, not compressed: `:method` and `:authority`.
    let fields = [&b"\x02\x07CONNECT"[..], &authority].concat();
    wire.write_all(&frame(1, 4, stream, &fields)).await.unwrap();
    loop {
        let mut head = [0; 9];
        soon(wire.read_exact(&mut head)).await.unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        soon(wire.read_exact(&mut payload)).await.unwrap();
        match (head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]]) == stream) {
            (1, true) => return true,
            (3, true) => {
                assert_eq!(payload, [0, 0, 0, 7], "REFUSED_STREAM");
                return false;
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn who_does_not_listen_is_refused() {
    let (ca, other) = (Ca::new(), Ca::new());
    let connected = Connected::new(&ca, Config::default()).await;
    let here = Node::new(&ca);
    let (mut wire, _own) = wire(&here, Alpn::Hbone, connected.port).await;
    wire.write_all(&[PREFACE, &frame(4, 0, 0, &[])].concat()).await.unwrap();
    // It never answers the PING between the first word and the last, and its first stream keeps the connection.
    assert!(insists(&mut wire, 1, &connected.target).await);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(insists(&mut wire, 3, &connected.target).await, "positive control: while it is trusted");
    connected.trusts(&[&other]);
    let (withdrawn, mut stream) = (Instant::now(), 5);
    while insists(&mut wire, stream, &connected.target).await {
        assert!(withdrawn.elapsed() < PATIENCE, "still taken");
        stream += 2;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for _ in 0..3 {
        stream += 2;
        assert!(!insists(&mut wire, stream, &connected.target).await);
    }
}

#[tokio::test]
async fn an_accepted_connection_has_an_age() {
    let ca = Ca::new();
    let age = Duration::from_secs(4);
    let connected = Connected::new(&ca, Config { mesh_connection_age_max: age, ..Config::default() }).await;
    let here = Node::new(&ca);
    let start = Instant::now();
    let peer = connected.peer(&here).await;
    let mut before = connected.open(&peer).await.expect("positive control: it is young");
    told_to_leave(&connected, &peer).await;
    assert!(start.elapsed() >= age / 2, "{:?}", start.elapsed());
    before.passes(b"as before").await;
    // Another connection is as good as the first was.
    let again = connected.peer(&here).await;
    assert!(connected.open(&again).await.is_some());
    drop((before, again));
    connected.until_closed().await;
}

#[tokio::test]
async fn requests_move_to_another_connection_and_none_fails() {
    let ca = Ca::new();
    let (here, there) = (Node::new(&ca), Node::new(&ca));
    let called = there.called().await;
    // The called side answers by itself: its application would be the listener.
    there.mesh.sockets.refuse.store(true, SeqCst);
    ca.lifetime.store(7, SeqCst);
    let vip = here.caller(called, |s| s.ports[0].name = "http".into()).await;
    let mut clients = tokio::task::JoinSet::new();
    let over = Arc::new(AtomicBool::new(false));
    for _ in 0..8 {
        let over = over.clone();
        clients.spawn(async move {
            let (mut client, mut asked) = (connect(vip).await, 0);
            while !over.load(SeqCst) {
                client.write_all(REQUEST).await.unwrap();
                let head = read_until(&mut client, b"\r\n\r\n").await.to_lowercase();
                assert!(head.contains("x-heddle-reason: socket_unavailable"), "behind {asked}: {head}");
                let length =
                    head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next()?.parse().ok());
                let mut body = vec![0; length.unwrap_or(0)];
                soon(client.read_exact(&mut body)).await.unwrap();
                asked += 1;
            }
            asked
        });
    }
    until("the first connection", || there.handshakes.completed(Side::Server) == 1).await;
    // What comes from now on is good for long.
    ca.lifetime.store(3600, SeqCst);
    until("the second", || there.handshakes.completed(Side::Server) >= 2).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    over.store(true, SeqCst);
    let mut asked = 0;
    while let Some(client) = clients.join_next().await {
        asked += client.unwrap();
    }
    assert!(asked > 100, "positive control: {asked}");
    assert_eq!(there.handshakes.completed(Side::Server), 2, "one more and no storm");
}
