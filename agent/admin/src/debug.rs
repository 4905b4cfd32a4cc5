//! The debug API: `heddle.debug.v1` as JSON on the agent's Unix socket, for root and the agent's own user only.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use heddle_proto::debug::v1;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use serde::Serialize;
use tokio::net::UnixListener;
use tokio::time::timeout;

use crate::reply::{Reply, allow, is_read, json, json_error};
use crate::server::{ForUsers, Limits, Router, serve};

/// How long a view may take (a busy worker, a keeper that does not answer) before the answer is 504.
pub const VIEW_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a request's body.
pub const BODY_BYTES_MAX: usize = 4 << 10;
/// Connections listed at once.
pub const CONNECTIONS_LISTED_MAX: usize = 10_000;
/// Connections listed when nothing else is asked.
pub const CONNECTIONS_LISTED_DEFAULT: usize = 1000;

/// A view to come.
pub type ViewFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, ViewError>> + Send + 'a>>;

/// Why there is no view.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    /// The request makes no sense; says what would.
    #[error("{0}")]
    Invalid(String),
    /// What it would be read from does not answer.
    #[error("{0}")]
    Unavailable(String),
}

/// Which connections to list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionQuery {
    /// Only of the pod with this uid.
    pub pod: Option<String>,
    /// At most so many.
    pub limit: usize,
}

/// What call to explain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExplainQuery {
    /// `namespace/name` of the calling pod.
    pub pod: String,
    /// `host:port` as the application would name it.
    pub to: String,
    /// Method of the request; with neither it nor `path` nor `headers` it is about bytes that are no HTTP.
    pub method: Option<String>,
    /// Path and query.
    pub path: Option<String>,
    /// `name:value`.
    pub headers: Vec<String>,
    /// Server name of its TLS handshake.
    pub sni: Option<String>,
}

/// What the debug API shows. Implemented by the binary, which knows all rooms.
pub trait Views: Send + Sync + 'static {
    /// The agent at a glance.
    fn status(&self) -> ViewFuture<'_, v1::Status>;
    /// All pods, or those of a namespace.
    fn workloads(&self, namespace: Option<String>) -> ViewFuture<'_, v1::Workloads>;
    /// All Services, or those of a namespace.
    fn services(&self, namespace: Option<String>) -> ViewFuture<'_, v1::Services>;
    /// Open connections.
    fn connections(&self, query: ConnectionQuery) -> ViewFuture<'_, v1::Connections>;
    /// Certificates of this node's accounts.
    fn certs(&self) -> ViewFuture<'_, v1::Certificates>;
    /// All policies, or those of a namespace.
    fn policies(&self, namespace: Option<String>) -> ViewFuture<'_, v1::Policies>;
    /// Routes and TrafficPolicies with what became of them: all, or those of a namespace.
    fn routes(&self, namespace: Option<String>) -> ViewFuture<'_, v1::Routes>;
    /// How Service ports and their endpoints are used: all, or those of a namespace.
    fn endpoints(&self, namespace: Option<String>) -> ViewFuture<'_, v1::Endpoints>;
    /// What would become of a call, and why.
    fn explain(&self, query: ExplainQuery) -> ViewFuture<'_, v1::Explanation>;
    /// eBPF: programs, maps, told versus in kernel.
    fn bpf(&self) -> ViewFuture<'_, v1::BpfView>;
    /// What is wrong on this node, and the fix.
    fn check(&self) -> ViewFuture<'_, v1::CheckReport>;
    /// Log levels in force.
    fn log_levels(&self) -> ViewFuture<'_, v1::LogLevels>;
    /// Changes one; returns those in force then.
    fn set_log_level(&self, level: v1::LogLevel) -> ViewFuture<'_, v1::LogLevels>;
}

/// Serves the API until dropped, to peers whose uid is in `uids`.
pub async fn run(listener: UnixListener, uids: &[u32], views: Arc<dyn Views>, limits: Limits) {
    serve(ForUsers { listener, uids: uids.into() }, Api(views), limits).await;
}

const PATHS: &str =
    "status, workloads, services, endpoints, connections, certs, policies, routes, explain, bpf, check, log-level";

#[derive(Clone)]
struct Api(Arc<dyn Views>);

impl Router for Api {
    async fn answer(&self, request: Request<Incoming>) -> Reply {
        let path = request.uri().path().to_owned();
        let Some(view) = path.strip_prefix("/debug/v1/") else {
            return json_error(StatusCode::NOT_FOUND, format!("no {path}; there are /debug/v1/ with {PATHS}"));
        };
        let changes = request.method() == Method::POST && view == "log-level";
        if !is_read(request.method()) && !changes && PATHS.split(", ").any(|p| p == view) {
            let methods = if view == "log-level" { "GET, HEAD, POST" } else { "GET, HEAD" };
            return allow(json_error(StatusCode::METHOD_NOT_ALLOWED, format!("{path} answers {methods}")), methods);
        }
        let mut query = match Query::parse(request.uri().query()) {
            Ok(query) => query,
            Err(error) => return error_reply(&error),
        };
        let views = &self.0;
        match view {
            "status" => show(query.none(), |()| views.status()).await,
            "workloads" => show(query.namespace(), |n| views.workloads(n)).await,
            "services" => show(query.namespace(), |n| views.services(n)).await,
            "connections" => show(query.connections(), |q| views.connections(q)).await,
            "certs" => show(query.none(), |()| views.certs()).await,
            "policies" => show(query.namespace(), |n| views.policies(n)).await,
            "routes" => show(query.namespace(), |n| views.routes(n)).await,
            "endpoints" => show(query.namespace(), |n| views.endpoints(n)).await,
            "explain" => show(query.explain(), |q| views.explain(q)).await,
            "bpf" => show(query.none(), |()| views.bpf()).await,
            "check" => show(query.none(), |()| views.check()).await,
            "log-level" if changes => match log_level(request).await {
                Ok(level) => show(query.none(), |()| views.set_log_level(level)).await,
                Err(reply) => reply,
            },
            "log-level" => show(query.none(), |()| views.log_levels()).await,
            _ => json_error(StatusCode::NOT_FOUND, format!("no view {view:?}; there are {PATHS}")),
        }
    }
}

async fn show<'a, Q, T: Serialize>(query: Result<Q, ViewError>, view: impl FnOnce(Q) -> ViewFuture<'a, T>) -> Reply {
    let query = match query {
        Ok(query) => query,
        Err(error) => return error_reply(&error),
    };
    match timeout(VIEW_TIMEOUT, view(query)).await {
        Ok(Ok(message)) => json(&message),
        Ok(Err(error)) => error_reply(&error),
        Err(_) => json_error(StatusCode::GATEWAY_TIMEOUT, format!("the view was not ready within {VIEW_TIMEOUT:?}")),
    }
}

fn error_reply(error: &ViewError) -> Reply {
    let status = match error {
        ViewError::Invalid(_) => StatusCode::BAD_REQUEST,
        ViewError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    json_error(status, error.to_string())
}

async fn log_level(request: Request<Incoming>) -> Result<v1::LogLevel, Reply> {
    let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect();
    let body = match timeout(VIEW_TIMEOUT, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            let error = format!("the body is longer than {BODY_BYTES_MAX} bytes");
            return Err(json_error(StatusCode::PAYLOAD_TOO_LARGE, error));
        }
        Ok(Err(error)) => return Err(json_error(StatusCode::BAD_REQUEST, format!("the body broke off: {error}"))),
        Err(_) => return Err(json_error(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time")),
    };
    serde_json::from_slice(&body).map_err(|error| {
        let wanted = "{\"target\": \"\", \"level\": \"debug\"}";
        json_error(StatusCode::BAD_REQUEST, format!("the body is not a log level such as {wanted}: {error}"))
    })
}

/// The parameters of a request, each used once.
struct Query(Vec<(String, String)>);

impl Query {
    fn parse(query: Option<&str>) -> Result<Self, ViewError> {
        let pairs = query.unwrap_or_default().split('&').filter(|p| !p.is_empty());
        let pairs: Result<Vec<_>, _> = pairs
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                let value = decode(value).ok_or_else(|| {
                    ViewError::Invalid(format!("parameter {name}: {value:?} is not percent-encoded text"))
                })?;
                Ok((name.to_owned(), value))
            })
            .collect();
        Ok(Self(pairs?))
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(n, _)| n == name)?;
        Some(self.0.remove(at).1)
    }

    /// Whatever was not taken is unknown or given twice.
    fn none(&self) -> Result<(), ViewError> {
        match self.0.first() {
            Some((name, _)) => Err(ViewError::Invalid(format!("parameter {name:?} is not known here or given twice"))),
            None => Ok(()),
        }
    }

    fn namespace(&mut self) -> Result<Option<String>, ViewError> {
        let namespace = self.take("namespace");
        self.none().map(|()| namespace)
    }

    fn explain(&mut self) -> Result<ExplainQuery, ViewError> {
        let mut wanted = |name: &str, what: &str| {
            self.take(name).ok_or_else(|| ViewError::Invalid(format!("parameter {name} is missing: {what}")))
        };
        let (pod, to) = (wanted("pod", "NAMESPACE/NAME of the calling pod")?, wanted("to", "HOST:PORT it calls")?);
        let (method, path, sni) = (self.take("method"), self.take("path"), self.take("sni"));
        let headers = std::iter::from_fn(|| self.take("header")).collect();
        self.none().map(|()| ExplainQuery { pod, to, method, path, headers, sni })
    }

    fn connections(&mut self) -> Result<ConnectionQuery, ViewError> {
        let limit = match self.take("limit") {
            None => CONNECTIONS_LISTED_DEFAULT,
            Some(limit) => {
                limit.parse().ok().filter(|l| (1..=CONNECTIONS_LISTED_MAX).contains(l)).ok_or_else(|| {
                    ViewError::Invalid(format!(
                        "parameter limit: {limit:?} is not a number from 1 to {CONNECTIONS_LISTED_MAX}"
                    ))
                })?
            }
        };
        let pod = self.take("pod");
        self.none().map(|()| ConnectionQuery { pod, limit })
    }
}

/// Percent-decoding (RFC 3986 §2.1); `None` if it is malformed or not UTF-8.
fn decode(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digit = |b: u8| char::from(b).to_digit(16);
                u8::try_from(digit(bytes.next()?)? * 16 + digit(bytes.next()?)?).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_read_strictly() {
        let parse = |q: &str| Query::parse(Some(q)).and_then(|mut q| q.connections());
        assert_eq!(parse(""), Ok(ConnectionQuery { pod: None, limit: CONNECTIONS_LISTED_DEFAULT }));
        assert_eq!(parse("pod=a%2Fb&limit=7"), Ok(ConnectionQuery { pod: Some("a/b".into()), limit: 7 }));
        for (query, word) in [
            ("limit=0", "limit"),
            ("limit=many", "limit"),
            ("limit=10001", "limit"),
            ("limit=1&limit=2", "limit"),
            ("colour=red", "colour"),
            ("pod=%G1", "pod"),
            ("pod=%f", "pod"),
            ("pod=%ff", "pod"),
        ] {
            let Err(ViewError::Invalid(error)) = parse(query) else { panic!("{query} was accepted") };
            assert!(error.contains(word), "{query}: {error}");
        }
    }
}
