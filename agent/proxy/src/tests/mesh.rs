//! The mesh's own transports: two proxies as two nodes, with a CA in this process. The called pod's application takes its listener's
//! address over once the peer is connected, as in the tests of the inbound side.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use heddle_identity::metrics::Side;
use heddle_identity::tls::no_server_name;
use heddle_identity::{
    Alpn, BundleStore, CertificateIssuer, CertificateRequest, CertificateStore, ClientConfigs, ExpectedIds,
    HandshakeFailure, HandshakeMetrics, IssuedCertificate, Issuing, Lease, SpiffeId, StoreConfig, SystemClock,
};
use heddle_model::{Delta, Endpoint, MeshConfig, MtlsMode, PodUid, Service, Transport, Workload};
use heddle_telemetry::Reason;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::support::*;
use crate::{Config, Identity, PodListeners, ShardListeners};

/// Where the calling pods are, and the called ones.
pub(super) const CALLERS: &str = "127.0.0.1";
/// An address of this process alone: between the listener and the application its port is nobody's.
pub(super) static CALLED: LazyLock<String> = LazyLock::new(|| {
    let [_, _, a, b] = std::process::id().to_be_bytes();
    format!("127.{}.{a}.{b}", 128 + (std::process::id() >> 16))
});
/// Of the Service, which is nobody's own.
pub(super) const SERVICE: &str = "127.0.3.1";

/// A root that signs whatever it is asked.
pub(super) struct Ca {
    params: CertificateParams,
    key: KeyPair,
    pub root: CertificateDer<'static>,
    /// Seconds for which what it signs is good.
    pub lifetime: AtomicU64,
    /// A root that those who ask shall trust besides.
    other: Option<CertificateDer<'static>>,
}

impl Ca {
    pub fn new() -> Arc<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "test root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap().der().clone();
        Arc::new(Self { params, key, root, lifetime: AtomicU64::new(3600), other: None })
    }

    /// One whose holders trust `other` too, and are not trusted by its.
    fn trusting(other: &Self) -> Arc<Self> {
        let Ok(own) = Arc::try_unwrap(Self::new()) else { unreachable!("nobody else has it") };
        Arc::new(Self { other: Some(other.root.clone()), ..own })
    }

    /// A certificate with a key of its own, as a peer shows it that asked nobody; good from and until so many seconds from now.
    pub fn peer(&self, id: &str, validity: Range<i64>) -> Arc<CertifiedKey> {
        let at = |seconds: i64| {
            let (now, by) = (std::time::SystemTime::now(), Duration::from_secs(seconds.unsigned_abs()));
            if seconds < 0 { now - by } else { now + by }
        };
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = at(validity.start).into();
        params.not_after = at(validity.end).into();
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &Issuer::from_params(&self.params, &self.key)).unwrap().der().clone();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap();
        Arc::new(CertifiedKey::new(vec![leaf], key))
    }
}

impl CertificateIssuer for Ca {
    fn issue<'a>(&'a self, request: &'a CertificateRequest) -> Issuing<'a> {
        let csr = CertificateSigningRequestDer::from(&request.csr[..]);
        let mut csr = CertificateSigningRequestParams::from_der(&csr).unwrap();
        csr.params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        csr.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let now = std::time::SystemTime::now();
        csr.params.not_before = (now - Duration::from_secs(60)).into();
        csr.params.not_after = (now + Duration::from_secs(self.lifetime.load(SeqCst))).into();
        let leaf = csr.signed_by(&Issuer::from_params(&self.params, &self.key)).unwrap().der().clone();
        let roots = std::iter::once(&self.root).chain(&self.other).cloned().collect();
        let issued = IssuedCertificate { chain: vec![leaf], roots };
        Box::pin(async move { Ok(issued) })
    }

    fn name(&self) -> String {
        "test".into()
    }
}

/// A node: a proxy with identities.
pub(super) struct Node {
    pub mesh: Mesh,
    pub store: CertificateStore,
    pub handshakes: HandshakeMetrics,
    pub issuing: tokio::task::JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.issuing.abort();
    }
}

impl Node {
    pub fn new(ca: &Arc<Ca>) -> Self {
        Self::with(ca, Config { socket_wait: PATIENCE, ..Config::default() })
    }

    pub fn with(ca: &Arc<Ca>, config: Config) -> Self {
        let store =
            CertificateStore::new(StoreConfig::default(), Arc::new(SystemClock::default()), BundleStore::default(), 3);
        let (driven, ca) = (store.clone(), Arc::clone(ca));
        let issuing = tokio::spawn(async move { driven.run(ca, std::future::pending()).await });
        let handshakes = HandshakeMetrics::new(1);
        let identity = Identity { store: store.clone(), handshakes: handshakes.clone() };
        let mesh = Mesh::identified(config, Some(identity));
        Self { mesh, store, handshakes, issuing }
    }

    pub async fn lease(&self, account: &str) -> Lease {
        let id: SpiffeId = format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap();
        let lease = self.store.lease(&id).unwrap();
        // Unless nobody signs any more.
        if !self.issuing.is_finished() {
            lease.ready(PATIENCE).await.unwrap();
        }
        lease
    }

    pub async fn attach(&self, name: &str, address: &str, shard: ShardListeners) {
        let identity = Some(self.lease(name).await);
        let (uid, addresses) = (PodUid::new(name), vec![address.parse().unwrap()]);
        self.mesh.proxy.attach(PodListeners { uid, addresses, identity, shards: vec![shard] }).await.unwrap();
    }

    /// A pod that calls Service `shop/web`, whose only endpoint is `called`; returns the Service's address.
    pub async fn caller(&self, called: SocketAddr, change: impl Fn(&mut Service)) -> SocketAddr {
        let listener = StdListener::bind((SERVICE, 0)).unwrap();
        let vip = listener.local_addr().unwrap();
        let mut service = service("web", vip, &[]);
        service.ports[0].endpoints =
            vec![Endpoint { workload: Some(Arc::new(pod("server", &CALLED))), ..Endpoint::ready(called) }].into();
        change(&mut service);
        self.knows(vec![pod("client", CALLERS), pod("server", &CALLED)]);
        self.mesh.apply(Delta { services: vec![(service.key(), Some(service))], ..Delta::default() });
        self.attach("client", CALLERS, ShardListeners { outbound: vec![listener], ..ShardListeners::default() }).await;
        vip
    }

    /// The called pod, and the address of its port.
    pub async fn called(&self) -> SocketAddr {
        let listener = StdListener::bind((CALLED.as_str(), 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        self.knows(vec![pod("client", CALLERS), pod("server", &CALLED)]);
        self.attach("server", &CALLED, ShardListeners { inbound: vec![listener], ..ShardListeners::default() }).await;
        addr
    }

    pub fn knows(&self, workloads: Vec<Workload>) {
        let workloads = workloads.into_iter().map(|w| (w.uid.clone(), Some(w))).collect();
        self.mesh.apply(Delta { workloads, ..Delta::default() });
    }

    pub fn settings(&self, change: impl Fn(&mut MeshConfig)) {
        let mut mesh = MeshConfig::default();
        change(&mut mesh);
        self.mesh.apply(Delta { mesh: Some(mesh), ..Delta::default() });
    }

    /// The application begins to listen: the peer is connected, its listener is not needed any more.
    pub async fn application(&self, addr: SocketAddr) -> TcpListener {
        until("a connection of the mesh", || self.handshakes.completed(Side::Server) > 0).await;
        self.mesh.proxy.detach(&PodUid::new("server")).await;
        loop {
            match TcpListener::bind(addr).await {
                Ok(listener) => break listener,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }
}

pub(super) fn pod(name: &str, address: &str) -> Workload {
    let mut workload = Workload::new(name, "shop", name);
    workload.addresses = vec![address.parse().unwrap()];
    workload.service_account = name.into();
    workload.membership = heddle_model::workload::Membership::Enabled;
    workload.transport = Transport::Heddle;
    workload
}

/// Two nodes, a client connected to the Service, and the application. `first` is what the client says to begin with.
async fn connected(change: impl Fn(&mut Service), first: &[u8]) -> (Node, Node, SocketAddr, TcpStream, TcpListener) {
    let ca = Ca::new();
    let (here, there) = (Node::new(&ca), Node::new(&ca));
    let called = there.called().await;
    let vip = here.caller(called, change).await;
    // Before anybody connects: the application would be the listener itself.
    there.mesh.sockets.closed.store(true, SeqCst);
    let mut client = connect(vip).await;
    soon(client.write_all(first)).await.unwrap();
    let application = there.application(called).await;
    there.mesh.sockets.closed.store(false, SeqCst);
    there.mesh.sockets.opened.notify_waiters();
    (here, there, vip, client, application)
}

pub(super) async fn read_until(stream: &mut TcpStream, end: &[u8]) -> String {
    let mut got = Vec::new();
    while !got.ends_with(end) {
        let mut byte = [0];
        soon(stream.read_exact(&mut byte)).await.unwrap();
        got.push(byte[0]);
    }
    String::from_utf8(got).unwrap()
}

fn is_mutual(record: &Value) {
    assert_eq!(record["transport"], "heddle", "{record}");
    assert_eq!(record["source_principal"], "spiffe://cluster.local/ns/shop/sa/client", "{record}");
    assert_eq!(record["destination_principal"], "spiffe://cluster.local/ns/shop/sa/server", "{record}");
    assert_eq!((&record["source_pod"], &record["destination_pod"]), (&"client".into(), &"server".into()), "{record}");
}

pub(super) const REQUEST: &[u8] = b"GET /a HTTP/1.1\r\nhost: web\r\nx-heddle-client: 9.9.9.9:9\r\n\r\n";

#[tokio::test]
async fn a_request_goes_by_mutual_tls_and_comes_out_as_it_was() {
    let (here, there, _, mut client, application) = connected(|s| s.ports[0].name = "http".into(), REQUEST).await;
    // Three times on one connection of the client; the called pod is detached, so that its agent keeps none to the application.
    for round in 0..3 {
        let (mut server, _) = soon(application.accept()).await.unwrap();
        let head = read_until(&mut server, b"\r\n\r\n").await;
        assert!(head.starts_with("GET /a HTTP/1.1\r\n") && head.contains("Host: web\r\n"), "{head}");
        assert!(!head.contains("x-heddle"), "{head}");
        server.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await.unwrap();
        let answer = read_until(&mut client, b"hi").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        if round < 2 {
            client.write_all(REQUEST).await.unwrap();
        }
    }
    let own = client.local_addr().unwrap();
    let published = there.mesh.sockets.published.lock().unwrap().clone();
    assert!(
        !published.is_empty() && published.iter().all(|client| *client == own),
        "the application sees the true client"
    );
    for node in [&here, &there] {
        let records = node.mesh.records(3).await;
        records.iter().for_each(is_mutual);
        assert!(records.iter().all(|record| record["source_address"] == own.to_string()), "{records:?}");
    }
    assert_eq!((here.handshakes.completed(Side::Client), there.handshakes.completed(Side::Server)), (1, 1));
}

#[tokio::test]
async fn bytes_go_by_connect_with_both_ends_of_their_own() {
    let opaque = |s: &mut Service| s.ports[0].name = "tcp-db".into();
    let (here, there, _, mut client, application) = connected(opaque, b"first").await;
    let (mut server, _) = soon(application.accept()).await.unwrap();
    let mut got = [0; 5];
    soon(server.read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"first");
    passes(&mut server, &mut client, &pattern(300_000)).await;
    // The client ends its direction; the other goes on.
    client.shutdown().await.unwrap();
    assert_eq!(rest(&mut server).await, b"");
    passes(&mut server, &mut client, b"behind the end").await;
    drop(server);
    assert_eq!(rest(&mut client).await, b"");
    for node in [&here, &there] {
        let record = &node.mesh.records(1).await[0];
        is_mutual(record);
        assert_eq!(record["reason"], "completed", "{record}");
        assert_eq!((&record["bytes_received"], &record["bytes_sent"]), (&5.into(), &300_014.into()), "{record}");
    }
}

#[tokio::test]
async fn a_reset_stays_a_reset_either_way() {
    let opaque = |s: &mut Service| s.ports[0].name = "tcp-db".into();
    let (here, there, vip, client, application) = connected(opaque, b"1").await;
    let (mut server, _) = soon(application.accept()).await.unwrap();
    soon(server.read_u8()).await.unwrap();
    reset(client);
    is_reset(&mut server).await;
    let mut client = connect(vip).await;
    client.write_all(b"2").await.unwrap();
    let (mut server, _) = soon(application.accept()).await.unwrap();
    soon(server.read_u8()).await.unwrap();
    reset(server);
    is_reset(&mut client).await;
    for node in [&here, &there] {
        let reasons: Vec<_> = node.mesh.records(2).await.iter().map(|r| r["reason"].clone()).collect();
        assert_eq!(reasons, ["downstream_reset", "upstream_reset"]);
    }
    assert_eq!(here.handshakes.completed(Side::Client), 1);
}

#[tokio::test]
async fn a_reset_passes_what_nobody_reads() {
    let opaque = |s: &mut Service| s.ports[0].name = "tcp-db".into();
    let (here, there, _, mut client, application) = connected(opaque, b"1").await;
    let (_server, _) = soon(application.accept()).await.unwrap();
    let block = pattern(1 << 20);
    while let Ok(written) = tokio::time::timeout(Duration::from_millis(500), client.write_all(&block)).await {
        written.unwrap();
    }
    reset(client);
    here.mesh.is_empty().await;
    // All but the connection that carried it.
    until("the end of what was carried", || there.mesh.proxy.pods().iter().all(|pod| pod.connections <= 1)).await;
    assert_eq!(there.mesh.records(1).await[0]["reason"], "downstream_reset");
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard() {
    let (_here, _there, _, mut client, application) = connected(|_| {}, b"").await;
    let (mut server, _) = soon(application.accept()).await.unwrap();
    passes(&mut server, &mut client, b"220 ready").await;
    passes(&mut client, &mut server, b"HELO").await;
}

#[tokio::test]
async fn a_burst_of_clients_costs_one_handshake_and_its_cancel_none() {
    let ca = Ca::new();
    let (here, there) = (Node::new(&ca), Node::new(&ca));
    let called = there.called().await;
    let vip = here.caller(called, |s| s.ports[0].name = "http".into()).await;
    there.mesh.sockets.closed.store(true, SeqCst);
    for _ in 0..2 {
        let mut clients = Vec::new();
        for _ in 0..256 {
            let mut client = connect(vip).await;
            client.write_all(REQUEST).await.unwrap();
            clients.push(client);
        }
        until("256 requests at the other node", || {
            there.mesh.proxy.pods().iter().map(|pod| pod.requests).sum::<u32>() == 256
        })
        .await;
        clients.into_iter().for_each(reset);
        until("all of them gone", || there.mesh.proxy.pods().iter().all(|pod| pod.requests == 0)).await;
    }
    assert_eq!((here.handshakes.completed(Side::Client), there.handshakes.completed(Side::Server)), (1, 1));
}

#[tokio::test]
async fn whoever_is_not_the_expected_one_gets_nothing() {
    let ca = Ca::new();
    let (here, there) = (Node::new(&ca), Node::new(&ca));
    let called = there.called().await;
    let vip = here.caller(called, |s| s.ports[0].name = "http".into()).await;
    here.knows(vec![Workload { service_account: "somebody-else".into(), ..pod("server", &CALLED) }]);
    let mut client = connect(vip).await;
    client.write_all(REQUEST).await.unwrap();
    let head = read_until(&mut client, b"\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("x-heddle-reason: tls_wrong_identity"), "{head}");
    assert!(here.handshakes.failed(Side::Client, HandshakeFailure::WrongIdentity) > 0);
    let record = &here.mesh.records(1).await[0];
    assert_eq!(record["reason"], "tls_wrong_identity");
}

#[tokio::test]
async fn a_server_of_another_root_is_refused_and_refuses() {
    let (here, there) = (Node::new(&Ca::new()), Node::new(&Ca::new()));
    let called = there.called().await;
    let vip = here.caller(called, |s| s.ports[0].name = "tcp-db".into()).await;
    is_refused(vip).await;
    assert_eq!(here.mesh.only_reason().await, "tls_unknown_root");
}

#[tokio::test]
async fn a_server_that_refuses_us_behind_the_handshake_is_asked_once() {
    let ca = Ca::new();
    let (here, there) = (Node::new(&Ca::trusting(&ca)), Node::new(&ca));
    let called = there.called().await;
    let vip = here.caller(called, |s| s.ports[0].name = "tcp-db".into()).await;
    is_refused(vip).await;
    assert_eq!(here.mesh.only_reason().await, "tls_refused_by_peer");
    // What it says of it is heard before it is counted there.
    let refused = || there.handshakes.failed(Side::Server, HandshakeFailure::UnknownRoot);
    until("the refusal to be counted", || refused() > 0).await;
    assert_eq!(refused(), 1);
    assert_eq!(here.handshakes.completed(Side::Client), 1, "as far as the client can tell");
}

#[tokio::test]
async fn nobody_is_connected_to_before_there_is_a_certificate() {
    let node = Node::new(&Ca::new());
    node.issuing.abort();
    until("the end of the authority", || node.issuing.is_finished()).await;
    let called = StdListener::bind((CALLED.as_str(), 0)).unwrap();
    called.set_nonblocking(true).unwrap();
    let vip = node.caller(called.local_addr().unwrap(), |s| s.ports[0].name = "http".into()).await;
    let mut client = connect(vip).await;
    client.write_all(REQUEST).await.unwrap();
    let head = read_until(&mut client, b"\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("x-heddle-reason: tls_no_own_certificate"), "{head}");
    assert_eq!(called.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    assert_eq!(node.handshakes.failed(Side::Client, HandshakeFailure::NoOwnCertificate), 1);
}

#[tokio::test]
async fn strict_takes_no_plain_text_and_ends_what_was_open() {
    let node = Node::new(&Ca::new());
    let called = node.called().await;
    // The application would be the listener itself.
    node.mesh.sockets.closed.store(true, SeqCst);
    let mut open = connect(called).await;
    open.write_all(b"\x00permissive").await.unwrap();
    until("the connection", || node.mesh.proxy.pods().iter().any(|pod| pod.connections == 1)).await;
    node.settings(|mesh| mesh.mtls = MtlsMode::Strict);
    is_reset(&mut open).await;
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x00\x01", b"\x16\x03\x01\x00\x01\x02", HELLO_OF_AN_APPLICATION] {
        let mut client = connect(called).await;
        let _ = client.write_all(bytes).await;
        is_reset(&mut client).await;
    }
    let records = node.mesh.records(5).await;
    assert!(records.iter().all(|record| record["reason"] == "plaintext_refused"), "{records:?}");
}

/// TLS 1.2 at the least, ALPN `h2`.
const HELLO_OF_AN_APPLICATION: &[u8] = b"\x16\x03\x01\x00\x41\x01\x00\x00\x3d\x03\x03\
    00000000000000000000000000000000\x00\x00\x02\x13\x01\x01\x00\x00\x12\x00\x10\x00\x05\x00\x03\x02h2\
    \x00\x2b\x00\x03\x02\x03\x04";

#[tokio::test]
async fn a_pod_of_the_same_node_is_handed_the_request_with_both_sides_told() {
    let node = Node::new(&Ca::new());
    let application = TcpListener::bind((CALLED.as_str(), 0)).await.unwrap();
    let called = application.local_addr().unwrap();
    node.attach("server", &CALLED, ShardListeners::default()).await;
    let vip = node.caller(called, |s| s.ports[0].name = "http".into()).await;
    let mut client = connect(vip).await;
    client.write_all(REQUEST).await.unwrap();
    let (mut server, _) = soon(application.accept()).await.unwrap();
    read_until(&mut server, b"\r\n\r\n").await;
    server.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await.unwrap();
    read_until(&mut client, b"hi").await;
    assert_eq!(*node.mesh.sockets.published.lock().unwrap(), [client.local_addr().unwrap()]);
    let records = node.mesh.records(2).await;
    let mut reporters: Vec<_> = records.iter().map(|r| r["reporter"].as_str().unwrap()).collect();
    reporters.sort_unstable();
    assert_eq!(reporters, ["destination", "source"]);
    for record in &records {
        assert_eq!(record["transport"], "handover", "{record}");
        assert_eq!(record["source_principal"], "spiffe://cluster.local/ns/shop/sa/client");
        assert_eq!(record["destination_principal"], "spiffe://cluster.local/ns/shop/sa/server");
        assert_eq!((&record["status"], &record["bytes_sent"]), (&200.into(), &2.into()), "{record}");
    }
    assert_eq!(node.handshakes.completed(Side::Client), 0);
    drop((client, server));
    node.mesh.is_empty().await;
}

#[tokio::test]
async fn a_connection_handed_over_leaves_nothing_behind() {
    let node = Node::new(&Ca::new());
    let application = TcpListener::bind((CALLED.as_str(), 0)).await.unwrap();
    let called = application.local_addr().unwrap();
    node.attach("server", &CALLED, ShardListeners::default()).await;
    let vip = node.caller(called, |s| s.ports[0].name = "tcp-db".into()).await;
    let mut client = connect(vip).await;
    let (mut server, _) = soon(application.accept()).await.unwrap();
    passes(&mut client, &mut server, b"bytes").await;
    assert_eq!(node.store.status().len(), 2);
    drop((client, server));
    node.mesh.is_empty().await;
    for uid in ["client", "server"] {
        node.mesh.proxy.detach(&PodUid::new(uid)).await;
    }
    // Whoever still held a pod would hold its key.
    until("both keys to be forgotten", || node.store.status().is_empty()).await;
}

#[tokio::test]
async fn the_end_of_a_called_pod_leaves_its_idle_clients_alone() {
    let node = Node::new(&Ca::new());
    let application = TcpListener::bind((CALLED.as_str(), 0)).await.unwrap();
    let called = application.local_addr().unwrap();
    node.attach("server", &CALLED, ShardListeners::default()).await;
    let vip = node.caller(called, |s| s.ports[0].name = "http".into()).await;
    let mut client = connect(vip).await;
    for round in 0..2 {
        client.write_all(REQUEST).await.unwrap();
        let (mut server, _) = soon(application.accept()).await.unwrap();
        read_until(&mut server, b"\r\n\r\n").await;
        server.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi").await.unwrap();
        read_until(&mut client, b"hi").await;
        if round == 0 {
            node.mesh.records(2).await;
            let server = |connection: &crate::ConnectionView| connection.pod == PodUid::new("server");
            assert_eq!(node.mesh.proxy.registry().close(Reason::PodReleased, server).await, 1);
            assert_eq!(node.mesh.proxy.registry().list(9, server).await.total, 0);
        }
    }
}

#[tokio::test]
async fn a_greeting_in_many_parts_is_heard() {
    let node = Node::new(&Ca::new());
    let called = node.called().await;
    node.settings(|mesh| mesh.mtls = MtlsMode::Strict);
    let (lease, nobody) = (node.lease("client").await, ExpectedIds::new(None));
    let config = ClientConfigs::new(&node.store).get(&lease, &nobody, Alpn::Heddle).unwrap();
    for _ in 0..20 {
        let mut hello = Vec::new();
        let mut tls = rustls::ClientConnection::new(config.clone(), no_server_name()).unwrap();
        tls.write_tls(&mut hello).unwrap();
        let mut client = connect(called).await;
        client.set_nodelay(true).unwrap();
        for part in hello.chunks(hello.len().div_ceil(24)) {
            client.write_all(part).await.unwrap();
            tokio::task::yield_now().await;
        }
        assert_eq!(soon(client.read_u8()).await.unwrap(), 22, "a handshake goes on");
    }
}

#[tokio::test]
async fn byte_streams_of_a_peer_that_is_gone_at_once_leave_nothing() {
    let node = Node::new(&Ca::new());
    let called = node.called().await;
    // Nobody gets as far as the application, which would be the listener itself.
    node.mesh.sockets.closed.store(true, SeqCst);
    let (lease, server) = (node.lease("client").await, "spiffe://cluster.local/ns/shop/sa/server".parse::<SpiffeId>());
    let config = ClientConfigs::new(&node.store).get(&lease, &server.unwrap().into(), Alpn::Heddle).unwrap();
    for _ in 0..20 {
        let tls = tokio_rustls::TlsConnector::from(config.clone());
        let wire = soon(tls.connect(no_server_name(), connect(called).await)).await.unwrap();
        let (mut sender, connection) = h2::client::handshake(wire).await.unwrap();
        let driven = tokio::spawn(connection);
        let mut open = Vec::new();
        for _ in 0..80 {
            let request = http::Request::connect(called.to_string()).body(()).unwrap();
            sender = soon(sender.ready()).await.unwrap();
            open.push(sender.send_request(request, false).unwrap());
        }
        until("the first of them", || node.mesh.proxy.pods().iter().any(|pod| pod.connections > 1)).await;
        driven.abort();
    }
    node.mesh.is_empty().await;
}
