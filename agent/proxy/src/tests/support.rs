//! A proxy with one or more pods on loopback, and the words the tests are told in.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::{BorrowedFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use heddle_model::mesh::PodLimits;
use heddle_model::{ClientAddr, Delta, Endpoint, Family, MeshConfig, PodUid, Service, ServicePort, Snapshot, Workload};
use heddle_telemetry::{AccessLog, HttpMetrics, PolicyMetrics, ProxyMetrics, TcpMetrics, UpstreamMetrics};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::{
    Config, Identity, PodListeners, Proxy, ShardListeners, SocketError, SocketFuture, SocketSource, Telemetry,
};

/// Longer than anything here takes, shorter than a person's patience.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// The address of every test pod; nothing is ever sent to it.
pub const POD_ADDRESS: &str = "10.99.0.7";

/// Plain sockets of this machine, with switches for what can go wrong.
#[derive(Default)]
pub struct FakeSockets {
    pub published: Mutex<Vec<SocketAddr>>,
    pub panic_on_take: AtomicBool,
    pub refuse: AtomicBool,
    /// While set, `try_take` has none and `take` waits.
    pub closed: AtomicBool,
    pub taken: AtomicUsize,
    pub opened: tokio::sync::Notify,
}

fn new_socket(family: Family) -> OwnedFd {
    let domain = match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), None).expect("a socket");
    socket.set_linger(Some(Duration::ZERO)).expect("linger");
    socket.into()
}

impl SocketSource for FakeSockets {
    fn try_take(&self, _worker: usize, _pod: &PodUid, family: Family) -> Option<OwnedFd> {
        assert!(!self.panic_on_take.load(SeqCst), "planted panic");
        if self.closed.load(SeqCst) || self.refuse.load(SeqCst) {
            return None;
        }
        self.taken.fetch_add(1, SeqCst);
        Some(new_socket(family))
    }

    fn take<'a>(&'a self, _worker: usize, _pod: &'a PodUid, family: Family) -> SocketFuture<'a> {
        Box::pin(async move {
            if self.refuse.load(SeqCst) {
                return Err(SocketError::PodGone);
            }
            while self.closed.load(SeqCst) {
                let opened = self.opened.notified();
                if !self.closed.load(SeqCst) {
                    break;
                }
                opened.await;
            }
            self.taken.fetch_add(1, SeqCst);
            Ok(new_socket(family))
        })
    }

    fn publish_client(&self, _socket: BorrowedFd<'_>, client: ClientAddr) -> io::Result<()> {
        self.published.lock().unwrap().push(client.get());
        Ok(())
    }
}

#[derive(Clone, Default)]
struct LogBuffer(Arc<Mutex<Vec<u8>>>);

impl Write for LogBuffer {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(buf);
        Ok(buf.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A proxy, its snapshot and its log.
pub struct Mesh {
    pub proxy: Proxy,
    pub sockets: Arc<FakeSockets>,
    pub metrics: ProxyMetrics,
    pub tcp: TcpMetrics,
    pub http: HttpMetrics,
    pub policy: PolicyMetrics,
    pub upstream: UpstreamMetrics,
    snapshot: watch::Sender<Arc<Snapshot>>,
    log: LogBuffer,
}

impl Mesh {
    pub fn new(workers: usize) -> Self {
        Self::with(Config { workers, ..Config::default() })
    }

    pub fn with(config: Config) -> Self {
        Self::identified(config, None)
    }

    /// With certificates of its own.
    pub fn identified(config: Config, identity: Option<Identity>) -> Self {
        let config = Config { dial_loopback: true, node: "n1".into(), ..config };
        let (snapshot, receiver) = watch::channel(Arc::new(Snapshot::new("n1")));
        let (sockets, log) = (Arc::new(FakeSockets::default()), LogBuffer::default());
        let telemetry = Telemetry {
            tcp: TcpMetrics::new(config.workers, 1000),
            http: HttpMetrics::new(config.workers, 1000),
            proxy: ProxyMetrics::new(config.workers),
            policy: PolicyMetrics::new(config.workers, 1000),
            upstream: UpstreamMetrics::new(1000),
            access: AccessLog::to(log.clone(), 100_000).unwrap(),
        };
        let (metrics, tcp, http) = (telemetry.proxy.clone(), telemetry.tcp.clone(), telemetry.http.clone());
        let (policy, upstream) = (telemetry.policy.clone(), telemetry.upstream.clone());
        let proxy = Proxy::start(config, receiver, sockets.clone(), identity, telemetry).unwrap();
        Self { proxy, sockets, metrics, tcp, http, policy, upstream, snapshot, log }
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.borrow().clone()
    }

    pub fn apply(&self, delta: Delta) {
        self.snapshot.send_modify(|s| *s = Arc::new(s.apply(delta)));
    }

    pub fn limits(&self, limits: PodLimits) {
        self.apply(Delta { mesh: Some(MeshConfig { limits, ..MeshConfig::default() }), ..Delta::default() });
    }

    /// A pod whose outbound listener is the only address of Service `shop/<name>`, served by `endpoints`.
    pub async fn pod(&self, name: &str, endpoints: &[SocketAddr]) -> SocketAddr {
        self.pod_calling(name, endpoints, |_| {}).await
    }

    pub async fn pod_calling(&self, name: &str, endpoints: &[SocketAddr], change: impl Fn(&mut Service)) -> SocketAddr {
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let mut service = service(name, addr, endpoints);
        change(&mut service);
        let mut workload = Workload::new(name, "shop", name);
        workload.addresses = vec![POD_ADDRESS.parse().unwrap()];
        self.apply(Delta {
            workloads: vec![(workload.uid.clone(), Some(workload))],
            services: vec![(service.key(), Some(service))],
            ..Delta::default()
        });
        self.attach(name, vec![listener], vec![]).await;
        addr
    }

    pub async fn attach(&self, name: &str, outbound: Vec<StdListener>, inbound: Vec<StdListener>) {
        let shards = vec![ShardListeners { outbound, inbound, hbone: Vec::new() }];
        let pod = PodListeners {
            uid: PodUid::new(name),
            addresses: vec![POD_ADDRESS.parse().unwrap()],
            identity: None,
            shards,
        };
        self.proxy.attach(pod).await.unwrap();
    }

    fn logged(&self) -> Vec<serde_json::Value> {
        let bytes = self.log.0.lock().unwrap().clone();
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
        let text = std::str::from_utf8(&bytes[..whole]).unwrap();
        text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    /// Waits until the log holds `count` records, and returns all there are: the one a test looks for has to be among the first so many.
    pub async fn records(&self, count: usize) -> Vec<serde_json::Value> {
        until("access records", || self.logged().len() >= count).await;
        self.logged()
    }

    /// Waits until the log holds a record like this, however many come before it.
    pub async fn record(&self, what: &str, is: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        until(&format!("a record {what}"), || self.logged().iter().any(&is)).await;
        self.logged().into_iter().find(is).expect("it is never taken away")
    }

    /// The reason of the only record there is.
    pub async fn only_reason(&self) -> String {
        let records = self.records(1).await;
        assert_eq!(records.len(), 1, "{records:?}");
        records[0]["reason"].as_str().unwrap().to_owned()
    }

    /// Nothing is left behind: no connection, no budget, no buffer.
    pub async fn is_empty(&self) {
        until("budgets and buffers to come back", || {
            self.proxy.pods().iter().all(|p| p.connections == 0 && p.requests == 0 && p.buffered_bytes == 0)
                && self.metrics.buffer_lent() == 0
        })
        .await;
        assert_eq!(self.proxy.registry().list(10, |_| true).await.total, 0);
    }
}

/// Service `shop/<name>` at `vip`.
pub fn service(name: &str, vip: SocketAddr, endpoints: &[SocketAddr]) -> Service {
    let mut service = Service::new("shop", name);
    service.vips = vec![vip.ip()];
    service.cluster_ips = vec![vip.ip()];
    let mut endpoints: Vec<_> = endpoints.iter().map(|a| Endpoint::ready(*a)).collect();
    endpoints.sort_by_key(|e| e.addr);
    service.ports.push(ServicePort {
        name: "tcp".into(),
        port: vip.port(),
        app_protocol: None,
        endpoints: endpoints.into(),
    });
    service
}

/// A backend the test itself plays.
pub async fn backend() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

/// An address where nobody listens: connecting is refused.
pub async fn dead_address() -> SocketAddr {
    // Bound but not listening, and never given back to anyone else while the tests run.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    let addr = socket.local_addr().unwrap().as_socket().unwrap();
    let _ = socket.into_raw_fd();
    addr
}

/// A listener whose queue is full: connecting is not answered. The streams keep it full.
pub async fn silent_address() -> (StdListener, Vec<TcpStream>, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    socket.listen(0).unwrap();
    let listener: StdListener = socket.into();
    let addr = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(addr)).await {
        waiting.push(stream.unwrap());
    }
    (listener, waiting, addr)
}

/// Both ends of a proxied connection.
pub async fn pair(mesh: &Mesh, name: &str) -> (TcpStream, TcpStream) {
    let (listener, addr) = backend().await;
    let vip = mesh.pod(name, &[addr]).await;
    let client = connect(vip).await;
    let (server, _) = soon(listener.accept()).await.unwrap();
    (client, server)
}

pub async fn connect(addr: SocketAddr) -> TcpStream {
    soon(TcpStream::connect(addr)).await.unwrap()
}

/// Fails the test if `future` does not complete in time.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("still not done")
}

/// Waits for a condition.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Writes, and reads the same at the other end.
pub async fn passes(from: &mut TcpStream, to: &mut TcpStream, bytes: &[u8]) {
    soon(from.write_all(bytes)).await.unwrap();
    let mut got = vec![0; bytes.len()];
    soon(to.read_exact(&mut got)).await.unwrap();
    assert!(got == bytes, "other bytes arrived");
}

/// Reads to the clean end.
pub async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut got = Vec::new();
    soon(stream.read_to_end(&mut got)).await.unwrap();
    got
}

/// The connection ends with a reset, not with a clean end.
pub async fn is_reset(stream: &mut TcpStream) {
    let mut got = Vec::new();
    let error = soon(stream.read_to_end(&mut got)).await.expect_err("a clean end instead of a reset");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
}

/// A connection to `addr` is accepted and then reset; the reset may come before `connect` has looked.
pub async fn is_refused(addr: SocketAddr) {
    match soon(TcpStream::connect(addr)).await {
        Ok(mut stream) => is_reset(&mut stream).await,
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}"),
    }
}

/// Closes with a reset.
pub fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

/// Bytes that differ everywhere, so that lost, doubled or swapped ones show.
pub fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
    .take(length)
    .collect()
}
