//! What the tests of routes, retries, timeouts, breakers and ejections share: origins that say who they are, and objects in few words.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use heddle_model::routing::{
    Backend, BackendRef, Filters, Match, ParentRef, ParentTarget, PathMatch, Route, RouteKey, RouteKind, RoutingDelta,
    Rule, RuleId, TrafficPolicy, TrafficTarget,
};
use heddle_model::traffic::{RequestTraffic, ServiceTraffic};
use heddle_model::{Delta, Endpoint, Service, ServiceKey, ServicePort};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::http1::{declare_http, until_text};
use super::support::*;

/// An HTTP/1 server: answers each request with what `answer` makes of it, all of its text; an empty answer closes the connection.
#[derive(Clone)]
pub struct Origin {
    pub addr: SocketAddr,
    requests: Arc<AtomicUsize>,
}

impl Origin {
    pub async fn start(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        let (listener, addr) = backend().await;
        let (requests, answer) = (Arc::new(AtomicUsize::new(0)), Arc::new(answer));
        let origin = Self { addr, requests: requests.clone() };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, answer.clone(), requests.clone()));
            }
        });
        origin
    }

    /// One that answers 200 and says `name`.
    pub async fn named(name: &'static str) -> Self {
        Self::start(move |_| ok(name)).await
    }

    /// How many requests it got.
    pub fn requests(&self) -> usize {
        self.requests.load(SeqCst)
    }
}

async fn serve(mut stream: TcpStream, answer: Arc<impl Fn(&str) -> String>, requests: Arc<AtomicUsize>) {
    let mut got = Vec::new();
    loop {
        let head = loop {
            if let Some(at) = got.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            match stream.read_buf(&mut got).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        };
        let text = String::from_utf8_lossy(&got[..head]).to_lowercase();
        let length = text.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next()?.parse().ok());
        let end = head + length.unwrap_or(0_usize);
        while got.len() < end {
            match stream.read_buf(&mut got).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
        requests.fetch_add(1, SeqCst);
        let request: Vec<u8> = got.drain(..end).collect();
        let response = answer(&String::from_utf8_lossy(&request));
        if response.is_empty() || stream.write_all(response.as_bytes()).await.is_err() {
            return;
        }
    }
}

pub fn ok(body: &str) -> String {
    status(200, body)
}

pub fn status(status: u16, body: &str) -> String {
    format!("HTTP/1.1 {status} Any\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// A connection of a client that asks one request at a time.
pub struct Caller(TcpStream);

/// What it got.
#[derive(Debug)]
pub struct Got {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Caller {
    pub async fn new(vip: SocketAddr) -> Self {
        Self(connect(vip).await)
    }

    pub async fn get(&mut self, path: &str) -> Got {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: web\r\n\r\n")).await
    }

    pub async fn ask(&mut self, request: &str) -> Got {
        self.send(request).await;
        self.answer().await
    }

    pub async fn send(&mut self, request: &str) {
        soon(self.0.write_all(request.as_bytes())).await.unwrap();
    }

    pub async fn answer(&mut self) -> Got {
        let head = until_text(&mut self.0, "\r\n\r\n").await;
        let lower = head.to_lowercase();
        let length = lower.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next()?.parse().ok());
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let has_content = !matches!(status, 204 | 304);
        assert!(has_content || length.is_none(), "a length where there is no content: {head}");
        let mut body = vec![0; if has_content { length.unwrap_or(0) } else { 0 }];
        soon(self.0.read_exact(&mut body)).await.unwrap();
        Got { status, head, body: String::from_utf8(body).unwrap() }
    }
}

impl Got {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|f| f.1)
    }

    pub fn reason(&self) -> &str {
        self.field("x-heddle-reason").unwrap_or_default()
    }
}

/// `shop/<name>` with a port 80 that is declared HTTP/1, called by routes only.
pub fn backend_service(name: &str, endpoints: &[SocketAddr]) -> Service {
    let mut service = Service::new("shop", name);
    let mut endpoints: Vec<_> = endpoints.iter().map(|addr| Endpoint::ready(*addr)).collect();
    endpoints.sort_by_key(|e| e.addr);
    let port =
        ServicePort { name: "web".into(), port: 80, app_protocol: Some("http1".into()), endpoints: endpoints.into() };
    service.ports.push(port);
    service
}

pub fn key(name: &str) -> ServiceKey {
    ("shop".into(), name.into())
}

/// A pod that calls `shop/web` at the address returned, and the Services that its routes lead to.
pub async fn scene(mesh: &Mesh, own: &[SocketAddr], backends: &[(&str, &[SocketAddr])]) -> SocketAddr {
    let vip = mesh.pod_calling("web", own, declare_http).await;
    let services = backends.iter().map(|(name, endpoints)| backend_service(name, endpoints));
    mesh.apply(Delta { services: services.map(|s| (s.key(), Some(s))).collect(), ..Delta::default() });
    vip
}

/// An HTTPRoute `shop/<name>` for `shop/web`.
pub fn route(name: &str, rules: Vec<Rule>) -> Route {
    let key = RouteKey { kind: RouteKind::Http, namespace: "shop".into(), name: name.into() };
    let rules = rules.into_iter().zip(0..).map(|(rule, index)| {
        Arc::new(Rule { id: RuleId { route: key.clone(), index, name: rule.id.name.clone() }, ..rule })
    });
    Route {
        created: None,
        generation: 1,
        parents: [ParentRef { target: ParentTarget::Service(self::key("web")), section: None, port: None }].into(),
        hostnames: Box::default(),
        rules: rules.collect(),
        key,
    }
}

/// A rule for a prefix that leads to these Services by these weights.
pub fn rule(prefix: &str, backends: &[(&str, u32)]) -> Rule {
    let key = RouteKey { kind: RouteKind::Http, namespace: "shop".into(), name: "".into() };
    let path = PathMatch::Prefix(prefix.trim_end_matches('/').into());
    Rule {
        id: RuleId { route: key, index: 0, name: None },
        matches: [Match { path, ..Match::default() }].into(),
        filters: Filters::default(),
        backends: backends.iter().map(|(name, weight)| to(name, *weight)).collect(),
        traffic: RequestTraffic::default(),
        invalid: None,
    }
}

pub fn to(name: &str, weight: u32) -> Backend {
    Backend { to: BackendRef::Service { service: key(name), port: 80 }, weight, filters: Filters::default() }
}

impl Mesh {
    /// Makes a route what it is to be.
    pub fn route(&self, route: Route) {
        let routes = vec![(route.key.clone(), Some(Arc::new(route)))];
        self.apply(Delta { routing: RoutingDelta { routes, ..RoutingDelta::default() }, ..Delta::default() });
    }

    /// Makes what holds for `shop/<service>` what it is to be.
    pub fn traffic(&self, service: &str, settings: ServiceTraffic) {
        let policy = TrafficPolicy {
            key: key(service),
            created: None,
            targets: [TrafficTarget::Service(key(service))].into(),
            settings: Ok(Arc::new(settings)),
        };
        let traffic = vec![(policy.key.clone(), Some(Arc::new(policy)))];
        self.apply(Delta { routing: RoutingDelta { traffic, ..RoutingDelta::default() }, ..Delta::default() });
    }
}

/// A listener that accepts and never says a word.
pub async fn silent_origin() -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let holding = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    (addr, holding)
}
