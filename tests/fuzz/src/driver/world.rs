//! One agent's data plane for all runs, its pod on loopback, and the server that plays a script.

use std::cell::Cell;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use heddle_model::{ClientAddr, Delta, Endpoint, Family, PodUid, Service, ServicePort, Snapshot, Workload};
use heddle_proxy::{Config, PodListeners, Proxy, ShardListeners, SocketFuture, SocketSource, Telemetry};
use heddle_telemetry::{
    AccessLog, Direction, HttpMetrics, PolicyMetrics, ProxyMetrics, Reason, TcpMetrics, UpstreamMetrics,
};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::breathe;
use crate::oracle;

/// What a port of the Service says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    Http,
    Http2,
    Undeclared,
}

const PORTS: [(Port, &str); 3] = [(Port::Http, "http"), (Port::Http2, "http2"), (Port::Undeclared, "")];
const POD: &str = "caller";
/// The pod's address; nothing is ever sent to it.
const POD_ADDRESS: &str = "10.99.0.7";
/// Budgets and buffers must be back in this time.
const EMPTY_TIMEOUT: Duration = Duration::from_secs(10);

/// What the server does.
#[derive(Clone, Debug)]
pub struct Script {
    /// One to each request, in order.
    pub answers: Vec<Vec<u8>>,
    /// The first answer comes before any request.
    pub speaks_first: bool,
    /// It closes behind each answer.
    pub closes: bool,
    /// It closes with a reset.
    pub resets: bool,
    /// It answers what it reads, whether or not that is a whole request.
    pub answers_early: bool,
    /// An answer comes in this many pieces.
    pub pieces: usize,
    /// It is a server of HTTP/2 that works.
    pub is_h2: bool,
}

/// What the server saw on one connection.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub bytes: Vec<u8>,
    /// As the HTTP/2 server that works counted them.
    pub requests: usize,
}

/// Plain sockets of this machine.
struct Sockets;

impl SocketSource for Sockets {
    fn try_take(&self, _worker: usize, _pod: &PodUid, _family: Family) -> Option<OwnedFd> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking().cloexec(), None).ok()?;
        socket.set_linger(Some(Duration::ZERO)).ok()?;
        Some(socket.into())
    }

    fn take<'a>(&'a self, worker: usize, pod: &'a PodUid, family: Family) -> SocketFuture<'a> {
        Box::pin(async move { self.try_take(worker, pod, family).ok_or(heddle_proxy::SocketError::PodGone) })
    }

    fn publish_client(&self, _socket: BorrowedFd<'_>, _client: ClientAddr) -> io::Result<()> {
        Ok(())
    }
}

/// The agent and its pod.
pub struct World {
    runtime: Runtime,
    proxy: Proxy,
    metrics: ProxyMetrics,
    panics: Cell<u64>,
    addresses: Vec<(Port, SocketAddr)>,
    server: TcpListener,
    _snapshot: watch::Sender<Arc<Snapshot>>,
}

impl World {
    /// Runs with the one world there is, one run after another.
    pub fn run(play: impl FnOnce(&World)) {
        static WORLD: OnceLock<Mutex<World>> = OnceLock::new();
        let world = WORLD.get_or_init(|| Mutex::new(World::new()));
        // A run that failed left nothing that the next could trip over: it is told by its own checks.
        play(&world.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn new() -> World {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let server = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a listener");
        let endpoint = server.local_addr().expect("its address");
        let (snapshot, receiver) = watch::channel(Arc::new(Snapshot::new("fuzz")));
        let telemetry = Telemetry {
            tcp: TcpMetrics::new(1, 100),
            http: HttpMetrics::new(1, 1000),
            proxy: ProxyMetrics::new(1),
            policy: PolicyMetrics::new(1, 1000),
            upstream: UpstreamMetrics::new(100),
            access: AccessLog::to(io::sink(), 10_000).expect("a log"),
        };
        let metrics = telemetry.proxy.clone();
        let config = Config { workers: 1, node: "fuzz".into(), dial_loopback: true, ..Config::default() };
        let proxy = Proxy::start(config, receiver, Arc::new(Sockets), None, telemetry).expect("a data plane");

        let mut workload = Workload::new(POD, "shop", POD);
        workload.addresses = vec![POD_ADDRESS.parse().expect("an address")];
        let mut delta = Delta { workloads: vec![(workload.uid.clone(), Some(workload))], ..Delta::default() };
        let (mut addresses, mut outbound) = (Vec::new(), Vec::new());
        for (port, name) in PORTS {
            // The listener's own address is the Service's: nothing captures connections here.
            let listener = StdListener::bind("127.0.0.1:0").expect("a listener");
            let address = listener.local_addr().expect("its address");
            let mut service = Service::new("shop", &format!("web-{name}"));
            (service.vips, service.cluster_ips) = (vec![address.ip()], vec![address.ip()]);
            service.ports.push(ServicePort {
                name: name.into(),
                port: address.port(),
                app_protocol: None,
                endpoints: [Endpoint::ready(endpoint)].into(),
            });
            delta.services.push((service.key(), Some(service)));
            addresses.push((port, address));
            outbound.push(listener);
        }
        snapshot.send_modify(|state| *state = Arc::new(state.apply(delta)));
        let shards = vec![ShardListeners { outbound, inbound: Vec::new(), hbone: Vec::new() }];
        let addresses_of_pod = vec![POD_ADDRESS.parse().expect("an address")];
        let pod = PodListeners { uid: PodUid::new(POD), addresses: addresses_of_pod, identity: None, shards };
        runtime.block_on(proxy.attach(pod)).expect("the pod is attached");
        World { runtime, proxy, metrics, panics: Cell::new(0), addresses, server, _snapshot: snapshot }
    }

    /// Where a client connects.
    pub fn address(&self, port: Port) -> SocketAddr {
        let found = self.addresses.iter().find(|(known, _)| *known == port);
        found.map(|(_, address)| *address).expect("every port has a listener")
    }

    /// Has a client play against the server's script; then everything must be as before. What the client tells, and what
    /// the server saw, by connection.
    pub fn play<T>(&self, script: Script, client: impl AsyncFnOnce(&World) -> T) -> (T, Vec<Seen>) {
        self.runtime.block_on(async {
            let (stop, stopped) = watch::channel(false);
            let serving = self.serve(script, stopped);
            tokio::pin!(serving);
            let told = tokio::select! {
                told = client(self) => told,
                _ = &mut serving => unreachable!("the server goes on until it is stopped"),
            };
            let emptied = async {
                self.wait_empty().await;
                stop.send_replace(true);
            };
            let ((), seen) = tokio::join!(emptied, serving);
            // Caught by the worker, so that it ends one connection only: it is a fault all the same.
            let panics = self.metrics.ended(Direction::Outbound, Reason::Panic);
            assert_eq!(self.panics.replace(panics), panics, "a connection panicked");
            (told, seen)
        })
    }

    /// Nothing is left behind: no connection, no request, no buffer.
    async fn wait_empty(&self) {
        let deadline = Instant::now() + EMPTY_TIMEOUT;
        loop {
            let pods = self.proxy.pods();
            let is_empty =
                |pod: &heddle_proxy::PodUsage| (pod.connections, pod.requests, pod.buffered_bytes) == (0, 0, 0);
            let open = self.proxy.registry().list(3, |_| true).await;
            if open.total == 0 && pods.iter().all(is_empty) && self.metrics.buffer_lent() == 0 {
                return;
            }
            let lent = self.metrics.buffer_lent();
            assert!(Instant::now() < deadline, "left behind: {lent} bytes of buffers, {pods:?}, {open:?}");
            breathe().await;
        }
    }

    async fn serve(&self, script: Script, mut stopped: watch::Receiver<bool>) -> Vec<Seen> {
        let mut connections = JoinSet::new();
        let answers = Arc::new(Mutex::new(script.answers.clone().into_iter()));
        let mut number = 0;
        loop {
            let stream = tokio::select! {
                // First what the agent opened and left again: it must not be taken for the next run's.
                biased;
                accepted = self.server.accept() => accepted.expect("the server accepts").0,
                () = async {
                    let _ = stopped.wait_for(|stopped| *stopped).await;
                    breathe().await;
                } => break,
            };
            let (script, answers, stopped) = (script.clone(), answers.clone(), stopped.clone());
            number += 1;
            connections.spawn(async move {
                let seen = if script.is_h2 {
                    serve_h2(stream, stopped).await
                } else {
                    Connection { stream, script, answers, seen: Vec::new() }.serve(stopped).await
                };
                (number, seen)
            });
        }
        let mut seen = timeout(EMPTY_TIMEOUT, connections.join_all()).await.expect("the server's connections end");
        seen.sort_by_key(|(number, _)| *number);
        seen.into_iter().map(|(_, seen)| seen).collect()
    }
}

/// One connection of the server that plays a script.
struct Connection {
    stream: TcpStream,
    script: Script,
    answers: Arc<Mutex<std::vec::IntoIter<Vec<u8>>>>,
    seen: Vec<u8>,
}

impl Connection {
    async fn serve(mut self, mut stopped: watch::Receiver<bool>) -> Seen {
        let mut goes_on = !self.script.speaks_first || self.answer().await;
        let mut answered = usize::from(self.script.speaks_first);
        while goes_on {
            let has_ended = tokio::select! {
                read = self.read() => !read,
                _ = stopped.wait_for(|stopped| *stopped) => break,
            };
            let (requests, end) = oracle::requests(&self.seen);
            let whole = requests.iter().filter(|request| request.is_complete).count();
            let is_other = matches!(end, oracle::End::Bad(_) | oracle::End::Tunnel);
            let wanted = if self.script.answers_early || is_other { answered + 1 } else { whole };
            while goes_on && answered < wanted {
                goes_on = self.answer().await;
                answered += 1;
            }
            goes_on &= !has_ended;
        }
        // What the agent wrote before it ended is here.
        while self.read_now() > 0 {}
        if self.script.resets {
            let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        }
        Seen { bytes: self.seen, requests: 0 }
    }

    /// False at the end.
    async fn read(&mut self) -> bool {
        loop {
            if self.stream.readable().await.is_err() {
                return false;
            }
            let mut buffer = [0; 4096];
            match self.stream.try_read(&mut buffer) {
                Ok(0) => return false,
                Ok(count) => {
                    self.seen.extend_from_slice(&buffer[..count]);
                    return true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return false,
            }
        }
    }

    fn read_now(&mut self) -> usize {
        let mut buffer = [0; 4096];
        let count = self.stream.try_read(&mut buffer).unwrap_or(0);
        self.seen.extend_from_slice(&buffer[..count]);
        count
    }

    /// Says the next answer; false if the connection is to be closed.
    async fn answer(&mut self) -> bool {
        let next = self.answers.lock().unwrap_or_else(PoisonError::into_inner).next();
        let Some(answer) = next else { return false };
        for piece in answer.chunks(answer.len().div_ceil(self.script.pieces).max(1)) {
            // An agent that does not read any more is none of our business.
            match timeout(EMPTY_TIMEOUT, self.stream.write_all(piece)).await {
                Ok(Ok(())) => tokio::task::yield_now().await,
                _ => return false,
            }
        }
        !self.script.closes
    }
}

/// A server of HTTP/2 that works: reads every request to its end, answers with a few bytes and trailers.
async fn serve_h2(stream: TcpStream, mut stopped: watch::Receiver<bool>) -> Seen {
    let mut seen = Seen::default();
    let mut streams = JoinSet::new();
    let serving = async {
        let Ok(mut connection) = h2::server::handshake(stream).await else { return };
        while let Some(Ok((request, respond))) = connection.accept().await {
            seen.requests += 1;
            streams.spawn(answer_h2(request, respond));
        }
    };
    tokio::select! {
        () = serving => {}
        _ = stopped.wait_for(|stopped| *stopped) => {}
    }
    streams.shutdown().await;
    seen
}

async fn answer_h2(request: http::Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>) {
    let (parts, mut body) = request.into_parts();
    let Ok(mut stream) = respond.send_response(http::Response::new(()), false) else { return };
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
    }
    let text = Bytes::from(parts.method.to_string());
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    let _ = stream.send_data(text, false).and_then(|()| stream.send_trailers(trailers));
}
