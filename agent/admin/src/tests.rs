//! The servers over real sockets, asked in raw HTTP, by clients that behave and clients that do not.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use heddle_proto::debug::v1;
use heddle_telemetry::collect::{FamilyDesc, FnCollector};
use heddle_telemetry::{Reason, Registry};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;

use crate::{ConnectionQuery, ExplainQuery, Health, Limits, ViewError, ViewFuture, Views, debug, health, metrics};

const PATIENCE: Duration = Duration::from_secs(20);

fn quick() -> Limits {
    let short = Duration::from_millis(200);
    Limits { connections_max: 1, header_timeout: short, write_stall_timeout: short, ..Limits::default() }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("still not done")
}

/// Status, head and body of one request on a connection that is closed after it.
async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> (u16, String, String) {
    soon(stream.write_all(request.as_bytes())).await.unwrap();
    let mut answer = Vec::new();
    soon(stream.read_to_end(&mut answer)).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_ascii_lowercase(), body.to_owned())
}

fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n")
}

struct Server {
    addr: std::net::SocketAddr,
    _task: JoinSet<()>,
}

impl Server {
    async fn start<F: Future<Output = ()> + Send + 'static>(run: impl FnOnce(TcpListener) -> F) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut task = JoinSet::new();
        task.spawn(run(listener));
        Self { addr, _task: task }
    }

    async fn ask(&self, request: &str) -> (u16, String, String) {
        ask(TcpStream::connect(self.addr).await.unwrap(), request).await
    }
}

/// A registry with `series` samples.
fn registry(series: usize) -> Registry {
    const FAMILY: FamilyDesc = FamilyDesc::counter("test_total", "For tests.", &["n"]);
    let registry = Registry::new();
    let collect = move || {
        let mut family = FAMILY.family();
        (0..series).for_each(|n| family.push(&[&n.to_string()], n as f64));
        vec![family]
    };
    registry.register(FnCollector::boxed(&[FAMILY], collect)).unwrap();
    registry
}

#[tokio::test]
async fn metrics_come_in_the_format_asked_for() {
    let server = Server::start(|l| metrics::run(l, registry(2), Limits::default())).await;
    let (status, head, body) = server.ask(&get("/metrics", "")).await;
    assert_eq!(status, 200);
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    assert!(body.ends_with("test_total{n=\"1\"} 1\n"), "{body}");
    let (_, head, body) = server.ask(&get("/metrics", "accept: application/openmetrics-text; version=1.0.0\r\n")).await;
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(body.contains("# TYPE test counter") && body.ends_with("# EOF\n"), "{body}");
}

#[tokio::test]
async fn bad_requests_are_told_what_would_be_right() {
    let server = Server::start(|l| metrics::run(l, registry(1), Limits::default())).await;
    let (status, _, body) = server.ask(&get("/", "")).await;
    assert_eq!(status, 404);
    assert!(body.contains("/metrics"), "{body}");
    let (status, head, _) = server.ask("POST /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert_eq!(status, 405);
    assert!(head.contains("allow: get, head"), "{head}");
    let (status, ..) = server.ask("nonsense\r\n\r\n").await;
    assert_eq!(status, 400);
    let long = format!("x-long: {}\r\n", "a".repeat(64 << 10));
    let (status, ..) = server.ask(&get("/metrics", &long)).await;
    assert_eq!(status, 431);
}

#[tokio::test]
async fn a_client_that_never_ends_its_request_holds_a_slot_for_a_while() {
    let server = Server::start(|l| metrics::run(l, registry(1), quick())).await;
    let mut silent = TcpStream::connect(server.addr).await.unwrap();
    silent.write_all(b"GET /metrics HTTP/1.1\r\n").await.unwrap();
    // There is one slot: the next client is served when the first was given up.
    assert_eq!(server.ask(&get("/nowhere", "")).await.0, 404);
    let mut rest = Vec::new();
    let _ = soon(silent.read_to_end(&mut rest)).await;
    assert!(!rest.starts_with(b"HTTP/1.1 200"), "an unfinished request was answered");
}

#[tokio::test]
async fn a_client_that_never_reads_holds_a_slot_for_a_while() {
    const SERIES: usize = 400_000;
    let server = Server::start(|l| metrics::run(l, registry(SERIES), quick())).await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut deaf = socket.connect(server.addr).await.unwrap();
    deaf.write_all(get("/metrics", "").as_bytes()).await.unwrap();
    assert_eq!(server.ask(&get("/nowhere", "")).await.0, 404);
    let mut rest = Vec::new();
    let _ = soon(deaf.read_to_end(&mut rest)).await;
    let whole = SERIES * "test_total{n=\"1\"} 1".len();
    assert!(rest.len() < whole, "the whole answer fitted in buffers; the test proves nothing");
}

struct Switch {
    live: AtomicBool,
    ready: AtomicBool,
}

impl Health for Switch {
    fn not_live(&self) -> Vec<String> {
        if self.live.load(SeqCst) { vec![] } else { vec!["worker 0 of the data plane has died".into()] }
    }
    fn not_ready(&self) -> Vec<String> {
        if self.ready.load(SeqCst) { vec![] } else { vec!["objects are not loaded yet".into(), "no keeper".into()] }
    }
}

#[tokio::test]
async fn probes_say_why_not() {
    let switch = Arc::new(Switch { live: true.into(), ready: false.into() });
    let health = switch.clone();
    let server = Server::start(move |l| health::run(l, health, Limits::default())).await;
    let (status, _, body) = server.ask(&get("/readyz", "")).await;
    assert_eq!((status, &*body), (503, "objects are not loaded yet\nno keeper\n"));
    assert_eq!(server.ask(&get("/healthz", "")).await.0, 200);
    switch.ready.store(true, SeqCst);
    assert_eq!(server.ask(&get("/readyz", "")).await.0, 200);
    switch.live.store(false, SeqCst);
    assert_eq!(server.ask(&get("/healthz", "")).await.0, 503);
    let (status, _, body) = server.ask(&get("/readyz", "")).await;
    assert_eq!((status, &*body), (503, "worker 0 of the data plane has died\n"));
    assert_eq!(server.ask("DELETE /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.0, 405);
}

#[derive(Default)]
struct Canned {
    asked: Mutex<Vec<String>>,
}

impl Canned {
    fn give<T: Default + Send + 'static>(&self, asked: String) -> ViewFuture<'_, T> {
        self.asked.lock().unwrap().push(asked);
        Box::pin(async { Ok(T::default()) })
    }
}

impl Views for Canned {
    fn status(&self) -> ViewFuture<'_, v1::Status> {
        Box::pin(async { Ok(v1::Status { node: "n1".into(), ready: true, ..v1::Status::default() }) })
    }
    fn workloads(&self, namespace: Option<String>) -> ViewFuture<'_, v1::Workloads> {
        self.give(format!("workloads {namespace:?}"))
    }
    fn services(&self, namespace: Option<String>) -> ViewFuture<'_, v1::Services> {
        self.give(format!("services {namespace:?}"))
    }
    fn connections(&self, query: ConnectionQuery) -> ViewFuture<'_, v1::Connections> {
        self.give(format!("connections {query:?}"))
    }
    fn policies(&self, namespace: Option<String>) -> ViewFuture<'_, v1::Policies> {
        self.give(format!("policies {namespace:?}"))
    }
    fn routes(&self, namespace: Option<String>) -> ViewFuture<'_, v1::Routes> {
        self.give(format!("routes {namespace:?}"))
    }
    fn endpoints(&self, namespace: Option<String>) -> ViewFuture<'_, v1::Endpoints> {
        self.give(format!("endpoints {namespace:?}"))
    }
    fn explain(&self, query: ExplainQuery) -> ViewFuture<'_, v1::Explanation> {
        self.give(format!("explain {query:?}"))
    }
    fn certs(&self) -> ViewFuture<'_, v1::Certificates> {
        self.give("certs".into())
    }
    fn bpf(&self) -> ViewFuture<'_, v1::BpfView> {
        Box::pin(async { Err(ViewError::Unavailable("the keeper does not answer; is it running?".into())) })
    }
    fn check(&self) -> ViewFuture<'_, v1::CheckReport> {
        self.give("check".into())
    }
    fn log_levels(&self) -> ViewFuture<'_, v1::LogLevels> {
        self.give("log levels".into())
    }
    fn set_log_level(&self, level: v1::LogLevel) -> ViewFuture<'_, v1::LogLevels> {
        if level.level == "loud" {
            return Box::pin(async { Err(ViewError::Invalid("\"loud\" is not a level".into())) });
        }
        self.give(format!("set {}={}", level.target, level.level))
    }
}

struct DebugServer {
    dir: tempfile::TempDir,
    views: Arc<Canned>,
    _task: JoinSet<()>,
}

impl DebugServer {
    fn start(uids: &'static [u32]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("debug.sock")).unwrap();
        let views = Arc::new(Canned::default());
        let mut task = JoinSet::new();
        let shown = views.clone();
        task.spawn(async move { debug::run(listener, uids, shown, Limits::default()).await });
        Self { dir, views, _task: task }
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.dir.path().join("debug.sock")).await.unwrap()
    }

    async fn ask(&self, request: &str) -> (u16, serde_json::Value) {
        let (status, head, body) = ask(self.connect().await, request).await;
        assert!(head.contains("content-type: application/json"), "{head}");
        (status, serde_json::from_str(&body).unwrap())
    }
}

/// This process's user, whom the kernel reports as the peer.
fn own_uid() -> &'static [u32] {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    vec![std::fs::metadata(dir.path()).unwrap().uid()].leak()
}

#[tokio::test]
async fn the_debug_api_shows_views_as_json() {
    let server = DebugServer::start(own_uid());
    let (status, body) = server.ask(&get("/debug/v1/status", "")).await;
    assert_eq!((status, &body["node"], &body["ready"]), (200, &"n1".into(), &true.into()));
    for path in [
        "workloads",
        "workloads?namespace=shop",
        "services",
        "connections?pod=a%2Fb&limit=5",
        "routes?namespace=shop",
        "endpoints",
        "explain?pod=a&to=b:1&path=%2F&sni=x",
        "check",
        "log-level",
    ] {
        assert_eq!(server.ask(&get(&format!("/debug/v1/{path}"), "")).await.0, 200, "{path}");
    }
    let asked = server.views.asked.lock().unwrap().join("; ");
    assert_eq!(
        asked,
        "workloads None; workloads Some(\"shop\"); services None; \
         connections ConnectionQuery { pod: Some(\"a/b\"), limit: 5 }; routes Some(\"shop\"); endpoints None; \
         explain ExplainQuery { pod: \"a\", to: \"b:1\", method: None, path: Some(\"/\"), headers: [], sni: Some(\"x\") }; \
         check; log levels"
    );
}

#[tokio::test]
async fn the_debug_api_names_what_is_wrong() {
    let server = DebugServer::start(own_uid());
    let post = |path: &str, body: &str| {
        let length = body.len();
        format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}")
    };
    for (request, status, word) in [
        (get("/debug/v1/bpf", ""), 503, "keeper"),
        (get("/debug/v1/nothing", ""), 404, "workloads"),
        (get("/metrics", ""), 404, "/debug/v1/"),
        (get("/debug/v1/connections?limit=x", ""), 400, "limit"),
        (get("/debug/v1/status?pod=x", ""), 400, "pod"),
        (get("/debug/v1/routes?pod=x", ""), 400, "pod"),
        (post("/debug/v1/status", ""), 405, "GET"),
        (post("/debug/v1/log-level", "not json"), 400, "level"),
        (post("/debug/v1/log-level", "{\"level\":\"loud\"}"), 400, "loud"),
        (post("/debug/v1/log-level", &" ".repeat(8000)), 413, "4096"),
    ] {
        let (got, body) = server.ask(&request).await;
        let error = body["error"].as_str().unwrap_or_default();
        assert!(got == status && error.contains(word), "{request:?}: {got} {error}");
    }
    let (status, _) =
        server.ask(&post("/debug/v1/log-level", "{\"target\":\"heddle_proxy\",\"level\":\"debug\"}")).await;
    assert_eq!(status, 200);
    assert_eq!(*server.views.asked.lock().unwrap(), ["set heddle_proxy=debug"]);
}

#[tokio::test]
async fn other_users_get_no_answer_at_all() {
    let server = DebugServer::start(&[4_000_000_000]);
    let mut stream = server.connect().await;
    let _ = stream.write_all(get("/debug/v1/status", "").as_bytes()).await;
    let mut answer = Vec::new();
    let _ = soon(stream.read_to_end(&mut answer)).await;
    assert!(answer.is_empty(), "{answer:?}");
}

/// Every family any room declares is in docs/metrics.md with its labels, and so is every reason.
#[test]
fn metrics_and_reasons_are_documented() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md");
    let text = std::fs::read_to_string(path).expect("docs/metrics.md");
    let families = heddle_telemetry::families();
    for family in families {
        let row = text.lines().find(|l| l.contains(&format!("`{}`", family.name)));
        let row = row.unwrap_or_else(|| panic!("{} is not in docs/metrics.md", family.name));
        if family.labels.len() < 10 {
            for label in family.labels {
                assert!(row.contains(&format!("`{label}`")), "label {label} of {} is not in its row", family.name);
            }
        }
    }
    for label in heddle_telemetry::labels::HTTP_LABEL_NAMES {
        assert!(text.contains(&format!("`{label}`")), "label {label} is not in docs/metrics.md");
    }
    for reason in Reason::ALL {
        assert!(text.contains(&format!("`{reason}`")), "reason {reason} is not in docs/metrics.md");
    }
}
