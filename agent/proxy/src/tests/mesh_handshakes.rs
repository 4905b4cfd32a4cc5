//! What bounds handshakes with peers of the mesh, at both of a pod's doors: the application's own port, and HBONE's.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use heddle_identity::metrics::Side;
use heddle_identity::tls::no_server_name;
use heddle_identity::{Alpn, ClientConfigs, ExpectedIds, HandshakeFailure, Lease};
use heddle_model::MtlsMode;
use rustls::ClientConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::mesh::{CALLED, Ca, Node, pod};
use super::support::*;
use crate::mesh::HANDSHAKES_MAX;
use crate::{Config, ShardListeners};

/// More than have a turn at once.
const FLOOD: usize = HANDSHAKES_MAX + 76;

/// A called pod with both doors, and a peer's certificate.
pub(super) struct Called {
    pub ca: Arc<Ca>,
    pub node: Node,
    pub doors: [(Alpn, SocketAddr); 2],
    lease: Lease,
}

impl Called {
    pub async fn new(timeout: Duration) -> Self {
        let config =
            Config { mesh_handshake_timeout: timeout, mesh_handshake_turn_timeout: timeout, ..Config::default() };
        let ca = Ca::new();
        let node = Node::with(&ca, config);
        // Nobody gets as far as the application, which would be the listener itself.
        node.mesh.sockets.closed.store(true, SeqCst);
        let [inbound, hbone] = [(); 2].map(|()| StdListener::bind((CALLED.as_str(), 0)).unwrap());
        let doors = [(Alpn::Heddle, &inbound), (Alpn::Hbone, &hbone)];
        let doors = doors.map(|(alpn, listener)| (alpn, listener.local_addr().unwrap()));
        node.knows(vec![pod("server", &CALLED)]);
        let shard = ShardListeners { inbound: vec![inbound], hbone: vec![hbone], ..ShardListeners::default() };
        node.attach("server", &CALLED, shard).await;
        let lease = node.lease("client").await;
        Self { ca, node, doors, lease }
    }

    fn config(&self, alpn: Alpn) -> Arc<ClientConfig> {
        let server =
            ExpectedIds::from("spiffe://cluster.local/ns/shop/sa/server".parse::<heddle_identity::SpiffeId>().unwrap());
        ClientConfigs::new(&self.node.store).get(&self.lease, &server, alpn).unwrap()
    }

    /// A ClientHello as a peer sends it.
    fn hello(&self, alpn: Alpn) -> Vec<u8> {
        let mut hello = Vec::new();
        rustls::ClientConnection::new(self.config(alpn), no_server_name()).unwrap().write_tls(&mut hello).unwrap();
        hello
    }

    /// An honest peer's handshake, until the server has let it in.
    async fn shake(&self, (alpn, door): (Alpn, SocketAddr)) {
        let before = self.node.handshakes.completed(Side::Server);
        let connector = tokio_rustls::TlsConnector::from(self.config(alpn));
        let _wire = soon(connector.connect(no_server_name(), connect(door).await)).await.unwrap();
        until("the server's end of the handshake", || self.node.handshakes.completed(Side::Server) > before).await;
    }

    fn connections(&self) -> usize {
        self.node.mesh.proxy.pods().iter().map(|pod| pod.connections as usize).sum()
    }

    fn timed_out(&self) -> u64 {
        self.node.handshakes.failed(Side::Server, HandshakeFailure::Timeout)
    }
}

#[tokio::test]
async fn whoever_connects_and_says_nothing_keeps_nobody_out() {
    // Longer than a test waits for anything.
    let called = Called::new(PATIENCE * 10).await;
    let half = called.hello(Alpn::Hbone);
    for (door, first) in [(called.doors[1].1, &b""[..]), (called.doors[1].1, &half[..half.len() / 2])] {
        let mut flood = Vec::new();
        for _ in 0..FLOOD {
            let mut client = connect(door).await;
            client.write_all(first).await.unwrap();
            flood.push(client);
        }
        until("the flood", || called.connections() >= FLOOD).await;
        for door in called.doors {
            called.shake(door).await;
        }
        assert!(called.connections() >= FLOOD && called.timed_out() == 0, "the flood is still there");
        assert_eq!(called.node.handshakes.under_way(Side::Server), 0, "and has no turn");
        drop(flood);
        until("its end", || called.connections() < FLOOD).await;
    }
}

#[tokio::test]
async fn handshakes_that_begin_and_never_end_are_so_many_and_no_more() {
    // Longer than it takes to begin them all.
    let called = Called::new(Duration::from_secs(12)).await;
    let (door, hello) = (called.doors[1], called.hello(Alpn::Hbone));
    let mut flood = Vec::new();
    for _ in 0..FLOOD {
        let mut client = connect(door.1).await;
        client.write_all(&hello).await.unwrap();
        flood.push(client);
        let under_way = called.node.handshakes.under_way(Side::Server);
        assert!(under_way <= HANDSHAKES_MAX as u64, "{under_way}");
    }
    until("all turns to be taken", || called.node.handshakes.under_way(Side::Server) == HANDSHAKES_MAX as u64).await;
    assert_eq!((called.node.handshakes.completed(Side::Server), called.timed_out()), (0, 0));
    // It waits for its turn, which comes as those who have one run out of time.
    called.shake(door).await;
    assert!(called.timed_out() > 0);
    until("all of them to be given up", || called.timed_out() == FLOOD as u64).await;
    until("their places", || called.connections() == 0).await;
    assert_eq!(called.node.handshakes.under_way(Side::Server), 0);
}

#[tokio::test]
async fn greeting_and_handshake_have_one_limit_together() {
    let limit = Duration::from_secs(6);
    let called = Called::new(limit).await;
    called.node.settings(|mesh| mesh.mtls = MtlsMode::Strict);
    let greets = async |(alpn, door), late: bool| {
        let hello = called.hello(alpn);
        let (first, rest) = hello.split_at(hello.len() / 2);
        let start = Instant::now();
        let mut client = connect(door).await;
        client.write_all(first).await.unwrap();
        if late {
            tokio::time::sleep(limit * 2 / 3).await;
        }
        client.write_all(rest).await.unwrap();
        assert_eq!(soon(client.read_u8()).await.unwrap(), 22, "positive control: it was heard");
        let mut unread = Vec::new();
        soon(client.read_to_end(&mut unread)).await.unwrap_err();
        let taken = start.elapsed();
        assert!(taken >= limit && taken < limit * 3 / 2, "{alpn:?} {late}: {taken:?}");
    };
    let [inbound, hbone] = called.doors;
    tokio::join!(greets(inbound, false), greets(inbound, true), greets(hbone, false), greets(hbone, true));
    until("all of them to be counted", || called.timed_out() == 4).await;
}

#[tokio::test]
async fn a_greeting_byte_by_byte_is_heard_at_both_doors() {
    let called = Called::new(PATIENCE).await;
    called.node.settings(|mesh| mesh.mtls = MtlsMode::Strict);
    for (alpn, door) in called.doors {
        let mut client = connect(door).await;
        client.set_nodelay(true).unwrap();
        for byte in called.hello(alpn) {
            client.write_all(&[byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        assert_eq!(soon(client.read_u8()).await.unwrap(), 22, "{alpn:?}: a handshake goes on");
    }
}

#[tokio::test]
async fn what_is_no_hello_is_told_at_once_and_takes_no_turn() {
    let called = Called::new(PATIENCE).await;
    let oversized = [&[22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff][..], &[0; 100]].concat();
    for (count, bytes) in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\0", &oversized].into_iter().enumerate() {
        let mut client = connect(called.doors[1].1).await;
        client.write_all(bytes).await.unwrap();
        assert_eq!(rest(&mut client).await, b"");
        let failed = |failure| called.node.handshakes.failed(Side::Server, failure);
        until("its end", || failed(HandshakeFailure::Protocol) == count as u64 + 1).await;
    }
    let client: TcpStream = connect(called.doors[1].1).await;
    drop(client);
    until("another end", || called.node.handshakes.failed(Side::Server, HandshakeFailure::Closed) == 1).await;
}
