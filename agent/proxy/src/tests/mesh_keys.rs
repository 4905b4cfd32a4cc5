//! What connections between agents are shared by, and by whom they never are (DESIGN §5): source pod, called pod, port and expected identity.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use heddle_identity::metrics::Side;
use heddle_identity::{HandshakeFailure, Roots};
use heddle_model::traffic::{CircuitLimits, Limits, ServiceTraffic};
use heddle_model::{Delta, Endpoint, Workload};
use http::Request;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::http2::client;
use super::mesh::{CALLED, Ca, Node, REQUEST, SERVICE, pod};
use super::support::*;
use crate::ShardListeners;

/// Two nodes: the called one takes requests, and its application never answers.
struct Nodes {
    here: Node,
    there: Node,
    called: SocketAddr,
    vip: SocketAddr,
    asked: Vec<TcpStream>,
}

impl Nodes {
    async fn new() -> Self {
        let ca = Ca::new();
        let (here, there) = (Node::new(&ca), Node::new(&ca));
        let called = there.called().await;
        there.mesh.sockets.closed.store(true, SeqCst);
        let vip = here.caller(called, |s| s.ports[0].name = "http".into()).await;
        Self { here, there, called, vip, asked: Vec::new() }
    }

    fn requests(&self) -> usize {
        self.there.mesh.proxy.pods().iter().map(|pod| pod.requests as usize).sum()
    }

    /// Sends a request to the called pod and leaves it there; how many handshakes there were.
    async fn ask(&mut self, vip: SocketAddr) -> u64 {
        let mut client = connect(vip).await;
        client.write_all(REQUEST).await.unwrap();
        self.asked.push(client);
        until("the request", || self.requests() == self.asked.len()).await;
        self.here.handshakes.completed(Side::Client)
    }

    /// Another pod is at the called address.
    fn replace(&self, with: Workload) {
        let mut service = service("web", self.vip, &[]);
        service.ports[0].name = "http".into();
        service.ports[0].endpoints =
            vec![Endpoint { workload: Some(Arc::new(with.clone())), ..Endpoint::ready(self.called) }].into();
        let workloads = vec![(pod("server", &CALLED).uid, None), (with.uid.clone(), Some(with))];
        self.here.mesh.apply(Delta { workloads, services: vec![(service.key(), Some(service))], ..Delta::default() });
    }
}

#[tokio::test]
async fn two_calling_pods_never_share_a_connection() {
    let mut nodes = Nodes::new().await;
    let listener = StdListener::bind((SERVICE, 0)).unwrap();
    let other = listener.local_addr().unwrap();
    let mut second = service("second", other, &[]);
    second.ports[0].name = "http".into();
    second.ports[0].endpoints =
        vec![Endpoint { workload: Some(Arc::new(pod("server", &CALLED))), ..Endpoint::ready(nodes.called) }].into();
    nodes.here.mesh.apply(Delta { services: vec![(second.key(), Some(second))], ..Delta::default() });
    // Of the same account: it is the pod that counts.
    let twin = Workload { service_account: "client".into(), ..pod("twin", "127.0.0.9") };
    nodes.here.knows(vec![twin.clone()]);
    let identity = Some(nodes.here.lease("client").await);
    let shards = vec![ShardListeners { outbound: vec![listener], ..ShardListeners::default() }];
    let listeners = crate::PodListeners { uid: twin.uid, addresses: twin.addresses, identity, shards };
    nodes.here.mesh.proxy.attach(listeners).await.unwrap();
    assert_eq!(nodes.ask(nodes.vip).await, 1);
    assert_eq!(nodes.ask(nodes.vip).await, 1, "positive control: one pod's clients share");
    assert_eq!(nodes.ask(other).await, 2);
    assert_eq!((nodes.ask(other).await, nodes.ask(nodes.vip).await), (2, 2));
}

#[tokio::test]
async fn two_pods_that_had_one_address_never_share_a_connection() {
    let mut nodes = Nodes::new().await;
    assert_eq!((nodes.ask(nodes.vip).await, nodes.ask(nodes.vip).await), (1, 1));
    // The same account at the same address: only the pod is another.
    nodes.replace(Workload { service_account: "server".into(), ..pod("heir", &CALLED) });
    assert_eq!(nodes.ask(nodes.vip).await, 2);
    assert_eq!(nodes.ask(nodes.vip).await, 2);
}

#[tokio::test]
async fn two_identities_never_share_a_connection() {
    let mut nodes = Nodes::new().await;
    assert_eq!(nodes.ask(nodes.vip).await, 1);
    nodes.replace(Workload { service_account: "other".into(), ..pod("server", &CALLED) });
    let mut client = connect(nodes.vip).await;
    client.write_all(REQUEST).await.unwrap();
    let head = super::mesh::read_until(&mut client, b"\r\n\r\n").await;
    assert!(head.contains("x-heddle-reason: tls_wrong_identity"), "{head}");
    assert!(nodes.here.handshakes.failed(Side::Client, HandshakeFailure::WrongIdentity) > 0);
    assert_eq!((nodes.requests(), nodes.here.handshakes.completed(Side::Client)), (1, 1), "the first goes on");
}

#[tokio::test]
async fn a_server_whose_root_is_withdrawn_is_proved_anew_and_not_asked() {
    let mut nodes = Nodes::new().await;
    assert_eq!(nodes.ask(nodes.vip).await, 1);
    let trust = |roots: &[&Arc<Ca>]| {
        let roots = Roots::new(roots.iter().map(|ca| ca.root.clone()).collect()).unwrap();
        nodes.here.store.bundles().set(&"cluster.local".parse().unwrap(), Some(Arc::new(roots)));
    };
    trust(&[&Ca::new()]);
    // Looked at every second: what is asked before has no answer.
    let deadline = Instant::now() + PATIENCE;
    let head = loop {
        let mut client = connect(nodes.vip).await;
        client.write_all(REQUEST).await.unwrap();
        let answer = super::mesh::read_until(&mut client, b"\r\n\r\n");
        if let Ok(head) = tokio::time::timeout(Duration::from_secs(1), answer).await {
            break head;
        }
        assert!(Instant::now() < deadline, "it is still trusted");
    };
    assert!(head.contains("x-heddle-reason: tls_unknown_root"), "{head}");
    until("the first to go on alone", || nodes.requests() == 1).await;
    assert_eq!(nodes.here.handshakes.completed(Side::Client), 1);
}

/// Streams of one connection, and the requests of one client's connection.
const STREAMS: usize = crate::mesh::STREAMS_MAX as usize;
const OF_ONE_CLIENT: usize = 128;

#[tokio::test]
async fn one_stream_more_than_a_connection_takes_opens_another() {
    let nodes = Nodes::new().await;
    let limits = Limits { requests_max: 10_000, pending_max: 10_000, connections_max: 10_000, ..Limits::default() };
    let circuit = CircuitLimits { service: limits, endpoint: limits };
    nodes.here.mesh.traffic("web", ServiceTraffic { circuit, ..ServiceTraffic::default() });
    let mut clients = Vec::new();
    let mut responses = Vec::new();
    let mut ask = async |count: usize| {
        let mut sender = client(nodes.vip).await;
        for _ in 0..count {
            let request = Request::get("http://web/").body(()).unwrap();
            sender = soon(sender.ready()).await.unwrap();
            responses.push(sender.send_request(request, true).unwrap());
        }
        clients.push(sender);
        until("the requests", || nodes.requests() == responses.len()).await;
        (nodes.here.handshakes.completed(Side::Client), nodes.there.handshakes.completed(Side::Server))
    };
    for _ in 0..STREAMS / OF_ONE_CLIENT {
        assert_eq!(ask(OF_ONE_CLIENT).await, (1, 1));
    }
    assert_eq!(ask(1).await, (2, 2));
    assert_eq!(ask(OF_ONE_CLIENT).await, (2, 2), "which takes the next ones");
}
