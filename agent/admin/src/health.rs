//! `GET /healthz` and `GET /readyz`: 200, or 503 with the reasons, one per line.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use tokio::net::TcpListener;

use crate::reply::{Reply, allow, is_read, text};
use crate::server::{Limits, Router, serve};

/// What the probes ask. Called on the control runtime: it must not block.
pub trait Health: Send + Sync + 'static {
    /// Why the agent cannot recover without a restart; empty while it can.
    fn not_live(&self) -> Vec<String>;
    /// Why it should not be relied on now; empty when it should.
    fn not_ready(&self) -> Vec<String>;
}

/// Serves the probes until dropped.
pub async fn run(listener: TcpListener, health: Arc<dyn Health>, limits: Limits) {
    serve(listener, Probes(health), limits).await;
}

#[derive(Clone)]
struct Probes(Arc<dyn Health>);

impl Router for Probes {
    async fn answer(&self, request: Request<Incoming>) -> Reply {
        let (reasons, good) = match request.uri().path() {
            "/healthz" => (self.0.not_live(), "ok"),
            "/readyz" => (self.0.not_live().into_iter().chain(self.0.not_ready()).collect(), "ready"),
            _ => return text(StatusCode::NOT_FOUND, "not found; probes are at /healthz and /readyz"),
        };
        if !is_read(request.method()) {
            return allow(text(StatusCode::METHOD_NOT_ALLOWED, "probes answer GET"), "GET, HEAD");
        }
        if reasons.is_empty() {
            text(StatusCode::OK, good)
        } else {
            text(StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n"))
        }
    }
}
