//! Peers of the mesh whose greeting comes late, on ports that take plain text too; and who waits for it, who does not.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use heddle_identity::tls::no_server_name;
use heddle_identity::{Alpn, ClientConfigs, ExpectedIds};
use heddle_model::{MtlsMode, PodUid};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::mesh::{CALLERS, Ca, Node};
use super::support::*;

/// An address that no pod is known to have.
const STRANGER: &str = "127.0.0.77";

/// A called port, connections to it from `from` and since when at the most, and the application that took the port over behind their backs.
struct Port {
    _node: Node,
    /// Of a peer of the mesh.
    hello: Vec<u8>,
    clients: Vec<(TcpStream, Instant)>,
    application: TcpListener,
}

impl Port {
    async fn new(mode: MtlsMode, from: &str, clients: usize) -> Self {
        let node = Node::new(&Ca::new());
        node.settings(|mesh| mesh.mtls = mode);
        node.mesh.sockets.closed.store(true, SeqCst);
        let called = node.called().await;
        let (lease, nobody) = (node.lease("client").await, ExpectedIds::new(None));
        let config = ClientConfigs::new(&node.store).get(&lease, &nobody, Alpn::Heddle).unwrap();
        let mut hello = Vec::new();
        rustls::ClientConnection::new(config, no_server_name()).unwrap().write_tls(&mut hello).unwrap();
        let from = SocketAddr::new(from.parse::<IpAddr>().unwrap(), 0);
        let mut connected = Vec::new();
        for _ in 0..clients {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(from).unwrap();
            let before = Instant::now();
            connected.push((soon(socket.connect(called)).await.unwrap(), before));
        }
        let accepted = || node.mesh.proxy.pods().iter().map(|pod| pod.connections as usize).sum::<usize>();
        until("the agent's side", || accepted() == clients).await;
        node.mesh.proxy.detach(&PodUid::new("server")).await;
        let application = loop {
            match TcpListener::bind(called).await {
                Ok(listener) => break listener,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        node.mesh.sockets.closed.store(false, SeqCst);
        node.mesh.sockets.opened.notify_waiters();
        Self { _node: node, hello, clients: connected, application }
    }
}

/// An application that speaks first.
fn greets(application: TcpListener) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut server, _)) = application.accept().await {
            server.write_all(b"220 ready").await.unwrap();
            open.push(server);
        }
    })
}

#[tokio::test]
async fn a_late_greeting_is_heard_before_the_server_is() {
    let ms = Duration::from_millis;
    for (from, late, hold, in_parts) in [
        (CALLERS, ms(500), ms(1000), false),
        (STRANGER, ms(100), ms(250), false),
        (CALLERS, ms(300), ms(1000), true),
        (STRANGER, ms(50), ms(250), true),
    ] {
        // A machine that stood still until nobody waits any more proves nothing: once more.
        while !is_heard(from, late, hold, in_parts).await {}
    }
}

/// A greeting comes so late; false if that is later than the server is held back for it.
async fn is_heard(from: &str, late: Duration, hold: Duration, in_parts: bool) -> bool {
    let mut port = Port::new(MtlsMode::Permissive, from, 1).await;
    let (mut client, connected) = port.clients.remove(0);
    let speaking = greets(port.application);
    tokio::time::sleep(late.saturating_sub(connected.elapsed())).await;
    let (first, rest) = port.hello.split_at(if in_parts { port.hello.len() / 2 } else { 0 });
    if in_parts {
        client.write_all(first).await.unwrap();
        tokio::time::sleep(late).await;
    }
    client.write_all(rest).await.unwrap();
    let is_in_time = connected.elapsed() < hold;
    let first_byte = soon(client.read_u8()).await;
    speaking.abort();
    assert!(!is_in_time || first_byte.as_ref().is_ok_and(|byte| *byte == 22), "{from} {late:?}: {first_byte:?}");
    is_in_time
}

#[tokio::test]
async fn a_server_that_speaks_first_waits_for_whoever_may_greet_and_for_nobody_else() {
    let ms = Duration::from_millis;
    for (mode, from, at_least, at_most) in [
        (MtlsMode::Disabled, CALLERS, ms(0), ms(700)),
        (MtlsMode::Disabled, STRANGER, ms(0), ms(200)),
        (MtlsMode::Permissive, CALLERS, ms(1000), ms(2500)),
        (MtlsMode::Permissive, STRANGER, ms(250), ms(900)),
    ] {
        let (mut least, deadline) = (PATIENCE, Instant::now() + PATIENCE);
        // No longer than that, unless the machine stood still.
        while least > at_most {
            assert!(Instant::now() < deadline, "{mode:?} {from}: {least:?}");
            let port = Port::new(mode, from, 3).await;
            let speaking = greets(port.application);
            for (mut client, connected) in port.clients {
                let mut got = [0; 9];
                soon(client.read_exact(&mut got)).await.unwrap();
                assert_eq!(&got, b"220 ready");
                assert!(connected.elapsed() >= at_least, "{mode:?} {from}: {:?}", connected.elapsed());
                least = least.min(connected.elapsed());
            }
            speaking.abort();
        }
    }
}

#[tokio::test]
async fn who_speaks_first_waits_for_nothing() {
    for from in [CALLERS, STRANGER] {
        let deadline = Instant::now() + PATIENCE;
        while !is_answered_at_once(from).await {
            assert!(Instant::now() < deadline, "{from}");
        }
    }
}

/// Whether one of several was, which a machine that stood still does not see.
async fn is_answered_at_once(from: &str) -> bool {
    let port = Port::new(MtlsMode::Permissive, from, 5).await;
    let answering = tokio::spawn(async move {
        while let Ok((mut server, _)) = port.application.accept().await {
            tokio::spawn(async move {
                let mut got = [0; 5];
                server.read_exact(&mut got).await.unwrap();
                server.write_all(b"heard").await.unwrap();
                let _ = server.read_u8().await;
            });
        }
    });
    let mut least = PATIENCE;
    for (mut client, _) in port.clients {
        let said = Instant::now();
        client.write_all(b"\0said").await.unwrap();
        let mut got = [0; 5];
        soon(client.read_exact(&mut got)).await.unwrap();
        least = least.min(said.elapsed());
    }
    answering.abort();
    least < Duration::from_millis(100)
}
