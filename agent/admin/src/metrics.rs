//! `GET /metrics`: Prometheus text or OpenMetrics, by the `Accept` header.

use std::sync::Arc;

use heddle_telemetry::{Format, Registry, encode};
use hyper::body::Incoming;
use hyper::header::ACCEPT;
use hyper::{Request, StatusCode};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::reply::{Reply, allow, is_read, text, with_type};
use crate::server::{Limits, Router, serve};

/// Scrapes gathered at once, each on a blocking thread: a large one must not stall the control runtime.
const SCRAPES_MAX: usize = 2;

/// Serves `/metrics` until dropped.
pub async fn run(listener: TcpListener, registry: Registry, limits: Limits) {
    let scrapes = Arc::new(Semaphore::new(SCRAPES_MAX));
    serve(listener, Metrics { registry, scrapes }, limits).await;
}

#[derive(Clone)]
struct Metrics {
    registry: Registry,
    scrapes: Arc<Semaphore>,
}

impl Router for Metrics {
    async fn answer(&self, request: Request<Incoming>) -> Reply {
        if request.uri().path() != "/metrics" {
            return text(StatusCode::NOT_FOUND, "not found; metrics are at /metrics");
        }
        if !is_read(request.method()) {
            return allow(text(StatusCode::METHOD_NOT_ALLOWED, "/metrics answers GET"), "GET, HEAD");
        }
        let accept: Vec<&str> = request.headers().get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
        let format = Format::negotiate(Some(&accept.join(",")));
        let _scrape = self.scrapes.acquire().await;
        let registry = self.registry.clone();
        let gathered = tokio::task::spawn_blocking(move || encode::encode(&registry.gather(), format)).await;
        match gathered {
            Ok(body) => with_type(StatusCode::OK, format.content_type(), body),
            Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "a collector panicked; see the agent's log"),
        }
    }
}
